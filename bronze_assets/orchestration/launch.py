"""Runs started from this process: Dagster's home, and the load of every table's current partition in one JVM."""

from __future__ import annotations

import datetime as dt
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import dagster as dg
import yaml

from bronze_assets.audit import LoadOutcome, LoadRecord, combine, safe_message
from bronze_assets.capture import Capture, Drained
from bronze_assets.catalog import TABLES
from bronze_assets.definitions import build_definitions
from bronze_assets.errors import CaptureBusy, LakeError, SchemaMismatch, SettingsError, SourceRefused, SourceUnreachable
from bronze_assets.load import make_ready
from bronze_assets.operations.recovery import Restored
from bronze_assets.orchestration.capture import capture_of, captured
from bronze_assets.orchestration.checks import SCHEMA, failed_checks
from bronze_assets.orchestration.jobs import file_jobs, initial_loads
from bronze_assets.orchestration.kpis import JOB as KPI_JOB
from bronze_assets.orchestration.recovery import tell
from bronze_assets.orchestration.resources import Loader
from bronze_assets.orchestration.runs import PROCESS_TAG, RETRY_POLICY, TRIGGER_TAG, close_dead_runs
from bronze_assets.orchestration.sensors import files_waiting
from bronze_assets.processes import process_identity
from bronze_assets.settings import CaptureMode, Settings
from bronze_assets.sources.scope import FileScope
from bronze_assets.table import BronzeTable
from bronze_assets.workbench import Workbench, current_partition

_CHECKOUT = Path(__file__).parents[2]
_HOME_IN_CHECKOUT = ".bronze/dagster"
_COMMAND_LINE = "command-line.yaml"
_BUSY_TRIES = 10


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
    """Materialise what is outstanding of each table through Dagster, in this process.

    First the changes of captured tables are captured, then the current partition of each table is loaded, and any other
    for which files wait. One Spark session and one source snapshot serve all tables. The runs are kept in the instance
    of `settings.dagster_home`. A table that fails does not stop the others. A source that does not answer is asked
    again here, once for all tables.

    Args:
        settings: where the source, the lake and Dagster's home are.
        say: takes a line of progress.
        tables: what to load.

    Returns:
        One outcome for each table, in the order of `tables`.

    Raises:
        SettingsError: Dagster's home cannot be made, or the first partition has not begun.
        SourceUnreachable, SourceRefused: the source cannot be had; every table of it has a FAILED audit row, and tables
            of files have been loaded.
        EngineError: Spark does not start; the tables of the source have a FAILED audit row.
        KeyboardInterrupt: the user stopped it; the run is marked as failed.
    """
    with _Launch.open(settings, say, tables) as launch:
        tries = range(1, RETRY_POLICY.max_retries + 1)
        waits = [RETRY_POLICY.calculate_delay(number) for number in tries]
        from_source = [table for table in tables if table.files is None]
        if from_source:
            try:
                # The slot is to be there before the snapshot: else another snapshot would have to meet its changes.
                make_ready(launch.bench, from_source, trigger="cli", waits=waits, first=launch.capture)
            except (SourceUnreachable, SourceRefused):
                # Files that somebody drops need none.
                launch.load_files(without_source=True)
                raise
        # Changes of earlier days first: each builds upon those before it.
        launch.load_files(past=True)
        for job in initial_loads(tables):
            launch.run(job.name, current_partition(job.cadence, launch.bench.moment()))
        launch.load_files()
        return launch.outcomes()


def load_arrived(
    settings: Settings, say: Callable[[str], None], tables: Sequence[BronzeTable] = TABLES
) -> list[LoadOutcome]:
    """Capture what has changed and load the files that have arrived; as `load_current`, without any snapshot.

    Returns:
        One outcome for each table that files are loaded into, in the order of `tables`.
    """
    fed = [table for job in file_jobs(tables, settings) for table in job.tables]
    with _Launch.open(settings, say, fed) as launch:
        launch.capture()
        launch.load_files()
        return launch.outcomes()


@dataclass(frozen=True)
class KpiPage:
    """A KPI page that was written: where, its headline and worst tables in words, and how many tables those are."""

    path: Path
    lines: tuple[str, ...]
    troubled: int


def report_kpis(settings: Settings, tables: Sequence[BronzeTable] = TABLES) -> list[KpiPage]:
    """Materialise the KPI report of each schema through Dagster, in this process and without Spark.

    Raises:
        SettingsError: Dagster's home cannot be made.
        LakeError: a report was not made; says why.
    """
    home = prepare_dagster_home(settings)
    job = build_definitions(settings, tables).resolve_job_def(KPI_JOB)
    with dg.DagsterInstance.from_config(str(home), _COMMAND_LINE) as instance:
        result = job.execute_in_process(
            instance=instance,
            tags={TRIGGER_TAG: "cli", PROCESS_TAG: process_identity()},
            run_config={"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}},
            raise_on_error=False,
        )
    if _interrupted(result):
        raise KeyboardInterrupt
    for event in result.all_events:
        if event.is_step_failure:
            told = event.step_failure_data.user_failure_data
            reason = told.description if told is not None and told.description else "Dagster's run log says why."
            raise LakeError(f"the KPIs were not reported ({event.step_key}): {reason}", "mend that, and report again.")
    pages = []
    for event in result.get_asset_materialization_events():
        metadata = event.step_materialization_data.materialization.metadata
        found: dict[str, Any] = {name: entry.value for name, entry in metadata.items()}
        pages.append(KpiPage(Path(found["path"]), tuple(found["told"].split("\n")), found["troubled"]))
    return pages


def tell_restored(settings: Settings, table: BronzeTable, done: Restored) -> None:
    """Let the instance of `settings.dagster_home` follow a restore that was done by this process."""
    home = prepare_dagster_home(settings)
    with dg.DagsterInstance.from_config(str(home), _COMMAND_LINE) as instance:
        tell(instance, settings, table, done)


@dataclass
class _Launch:
    """Runs of this process in one instance and on one workbench, and how each table's load ended."""

    settings: Settings
    say: Callable[[str], None]
    tables: Sequence[BronzeTable]
    bench: Workbench
    instance: dg.DagsterInstance
    definitions: dg.Definitions
    ends: dict[str, dict[str, LoadRecord | Exception]] = field(default_factory=dict)
    _partition: str = ""

    @classmethod
    @contextmanager
    def open(cls, settings: Settings, say: Callable[[str], None], tables: Sequence[BronzeTable]) -> Iterator[_Launch]:
        """Everything made ready; the source's snapshot is let go at the end."""
        if dt.datetime.now(dt.UTC).date() < settings.start_date:
            raise SettingsError(
                f"BRONZE_START_DATE={settings.start_date} lies in the future.", "set it to a day that has begun."
            )
        home = prepare_dagster_home(settings)
        definitions = build_definitions(settings, tables)
        with (
            dg.DagsterInstance.from_config(str(home), _COMMAND_LINE) as instance,
            Workbench.open(settings, say=say) as bench,
        ):
            yield cls(settings, say, tables, bench, instance, definitions)

    def capture(self) -> None:
        """Capture what has been committed, where the environment does so by itself."""
        if self.settings.capture is not CaptureMode.BUILTIN:
            return
        for schema, members in captured(self.tables).items():
            changes = self._drained(capture_of(self.settings, members))
            if changes.started_anew:
                self.say(f"The capture of {schema} begins with a new replication slot: {changes.started_anew}.")
            elif rows := sum(changes.rows.values()):
                self.say(f"Captured {rows:,} changes in {len(changes.rows)} tables of {schema}.")

    @staticmethod
    def _drained(capture: Capture) -> Drained:
        """A drain; the capture of a running UI, which is at one for a moment, is waited for."""
        for _ in range(_BUSY_TRIES):
            try:
                return capture.drain()
            except CaptureBusy:
                time.sleep(1)
        return capture.drain()

    def run(self, job_name: str, partition: str) -> None:
        """Execute a job for a partition."""
        self._partition = partition
        job = self.definitions.resolve_job_def(job_name)
        result = job.execute_in_process(
            instance=self.instance,
            partition_key=partition,
            tags={TRIGGER_TAG: "cli", PROCESS_TAG: process_identity()},
            run_config={"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}},
            resources={"loader": Loader(self.bench, self._listen)},
            raise_on_error=False,
        )
        if _interrupted(result):
            raise KeyboardInterrupt

    def load_files(self, *, past: bool = False, without_source: bool = False) -> None:
        """Load the files of all tables in every partition for which some wait, and in the current one unless it is for
        the past ones only.

        Args:
            without_source: only those of tables that have no other source than files.
        """
        for job in file_jobs(self.tables, self.settings):
            if without_source and any(table.files is None for table in job.tables):
                continue
            moment = self.bench.moment()
            today = current_partition(job.cadence, moment)
            waiting = files_waiting(job.tables, self.settings, self.bench.clock(), moment)
            if past:
                waiting.pop(today, None)
            elif any(today not in self.ends.get(table.name, {}) for table in job.tables):
                waiting.setdefault(today, [])
            for partition in sorted(waiting):
                if self.settings.start_date.isoformat() <= partition <= today:
                    self.run(job.name, partition)

    def outcomes(self) -> list[LoadOutcome]:
        """How the load of each table ended."""
        return [_outcome(table, self.ends.get(table.name, {})) for table in self.tables]

    def _listen(self, table: BronzeTable, end: LoadRecord | Exception) -> None:
        # A later try of the same partition makes an earlier one good.
        self.ends.setdefault(table.name, {})[self._partition] = end
        if isinstance(end, LoadRecord) and not end.batch_id:
            return
        text = safe_message(end) if isinstance(end, Exception) else _summary(end)
        self.say(text if text.startswith(f"{table.name}: ") else f"{table.name}: {text}")


def _outcome(table: BronzeTable, ends: Mapping[str, LoadRecord | Exception]) -> LoadOutcome:
    """How the loads of a table ended.

    Args:
        ends: partition → the end of the last try, in the order in which they were loaded.
    """
    if not ends:
        return LoadOutcome(table.name, error="the load did not start; Dagster's run log says why.")
    for partition, end in ends.items():
        if isinstance(end, Exception):
            failed = (SCHEMA,) if isinstance(end, SchemaMismatch) else ()
            where = f" (partition {partition})" if len(ends) > 1 else ""
            return LoadOutcome(table.name, failed_checks=failed, error=safe_message(end) + where)
    record = combine([end for end in ends.values() if isinstance(end, LoadRecord)])
    return LoadOutcome(table.name, record, failed_checks(table, record))


def _summary(record: LoadRecord) -> str:
    counts = [str(FileScope(record.files))] if record.files else []
    counts += [f"read {record.read:,}", f"loaded {record.loaded:,}"]
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
