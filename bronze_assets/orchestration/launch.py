"""Runs started from this process: Dagster's home, and the load of every table's current partition in one JVM."""

from __future__ import annotations

import datetime as dt
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import dagster as dg
import yaml

from bronze_assets.audit import LoadOutcome, LoadRecord, safe_message
from bronze_assets.catalog import TABLES
from bronze_assets.definitions import build_definitions
from bronze_assets.errors import SchemaMismatch, SettingsError
from bronze_assets.load import make_ready
from bronze_assets.orchestration.assets import PROCESS_TAG, RETRY_POLICY, TRIGGER_TAG, process_identity
from bronze_assets.orchestration.checks import SCHEMA, failed_checks
from bronze_assets.orchestration.jobs import initial_loads
from bronze_assets.orchestration.resources import Loader
from bronze_assets.orchestration.runs import close_dead_runs
from bronze_assets.settings import Settings
from bronze_assets.table import BronzeTable
from bronze_assets.workbench import Workbench, current_partition

_CHECKOUT = Path(__file__).parents[2]
_HOME_IN_CHECKOUT = ".bronze/dagster"
_COMMAND_LINE = "command-line.yaml"


def prepare_dagster_home(settings: Settings) -> Path:
    """Make Dagster's home of these settings: the checkout's `dagster.yaml`, with this home's own path, and a copy of it
    for runs in a terminal, which write there and not into compute logs.

    Runs that a killed process left behind are closed, or they would keep their tables' pools.

    Returns:
        The folder for `DAGSTER_HOME`.

    Raises:
        SettingsError: the folder cannot be written, or this is not a checkout.
    """
    home = settings.dagster_home
    template = _CHECKOUT / "dagster.yaml"
    try:
        text = template.read_text(encoding="utf-8")
    except OSError as error:
        raise SettingsError(
            f"{template} cannot be read ({error.strerror}).", "run from a checkout of the project."
        ) from None
    # A JSON string is a YAML string: the path may hold blanks, colons or quotes.
    text = text.replace(f'"{_HOME_IN_CHECKOUT}/storage"', json.dumps(str(home / "storage")))
    text = text.replace(f'"{_HOME_IN_CHECKOUT}"', json.dumps(str(home)))
    try:
        home.mkdir(parents=True, exist_ok=True)
        # Compute logs are captured by processes that Ctrl-C reaches too, and that answer with a traceback each.
        nothing = {"module": "dagster.core.storage.noop_compute_log_manager", "class": "NoOpComputeLogManager"}
        quiet = yaml.safe_dump(yaml.safe_load(text) | {"compute_logs": nothing})
        for name, content in (("dagster.yaml", text), (_COMMAND_LINE, quiet)):
            unfinished = home / f"{name}.{os.getpid()}"
            unfinished.write_text(content, encoding="utf-8")
            unfinished.replace(home / name)
    except OSError as error:
        raise SettingsError(
            f"{home} cannot be written ({error.strerror}).", "choose another folder with BRONZE_HOME."
        ) from None
    with dg.DagsterInstance.from_config(str(home)) as instance:
        close_dead_runs(instance)
    return home


def load_current(
    settings: Settings, say: Callable[[str], None], tables: Sequence[BronzeTable] = TABLES
) -> list[LoadOutcome]:
    """Materialise the current partition of each table through Dagster, in this process.

    One Spark session and one source snapshot serve all tables. The runs are kept in the instance of
    `settings.dagster_home`. A table that fails does not stop the others. A source that does not answer is asked again
    here, once for all tables.

    Args:
        settings: where the source, the lake and Dagster's home are.
        say: takes a line of progress.
        tables: what to load.

    Returns:
        One outcome for each table, in the order of `tables`.

    Raises:
        SettingsError: Dagster's home cannot be made, or the first partition has not begun.
        SourceUnreachable, SourceRefused: the source cannot be had; every table has a FAILED audit row.
        EngineError: Spark does not start; likewise.
        KeyboardInterrupt: the user stopped it; the run is marked as failed.
    """
    if dt.datetime.now(dt.UTC).date() < settings.start_date:
        raise SettingsError(
            f"BRONZE_START_DATE={settings.start_date} lies in the future.", "set it to a day that has begun."
        )
    home = prepare_dagster_home(settings)
    ends: dict[str, LoadRecord | Exception] = {}

    def listen(table: BronzeTable, end: LoadRecord | Exception) -> None:
        ends[table.name] = end
        text = safe_message(end) if isinstance(end, Exception) else _summary(end)
        say(text if text.startswith(f"{table.name}: ") else f"{table.name}: {text}")

    definitions = build_definitions(settings, tables)
    tags = {TRIGGER_TAG: "cli", PROCESS_TAG: process_identity()}
    with (
        dg.DagsterInstance.from_config(str(home), _COMMAND_LINE) as instance,
        Workbench.open(settings, say=say) as bench,
    ):
        tries = range(1, RETRY_POLICY.max_retries + 1)
        make_ready(bench, tables, trigger="cli", waits=[RETRY_POLICY.calculate_delay(number) for number in tries])
        for job in initial_loads(tables):
            result = definitions.resolve_job_def(job.name).execute_in_process(
                instance=instance,
                partition_key=current_partition(job.cadence, bench.moment()),
                tags=tags,
                run_config={"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}},
                resources={"loader": Loader(bench, listen)},
                raise_on_error=False,
            )
            if _interrupted(result):
                raise KeyboardInterrupt
    return [_outcome(table, ends.get(table.name)) for table in tables]


def _outcome(table: BronzeTable, end: LoadRecord | Exception | None) -> LoadOutcome:
    if isinstance(end, LoadRecord):
        return LoadOutcome(table.name, end, failed_checks(table, end))
    if end is None:
        return LoadOutcome(table.name, error="the load did not start; Dagster's run log says why.")
    failed = (SCHEMA,) if isinstance(end, SchemaMismatch) else ()
    return LoadOutcome(table.name, failed_checks=failed, error=safe_message(end))


def _summary(record: LoadRecord) -> str:
    counts = [f"read {record.read:,}", f"loaded {record.loaded:,}"]
    for name in ("quarantined", "duplicates", "unchanged", "erased", "deleted"):
        if count := getattr(record, name):
            counts.append(f"{name} {count:,}")
    return f"{', '.join(counts)}, {record.seconds:.1f} s"


def _interrupted(result: dg.ExecuteInProcessResult) -> bool:
    # Without raise_on_error, Dagster ends the run on Ctrl-C and returns as if nothing had happened.
    for event in result.all_events:
        if event.event_type is dg.DagsterEventType.RUN_FAILURE:
            reason = event.job_failure_data.failure_reason
            return reason is not None and reason.name == "UNEXPECTED_TERMINATION"
    return False
