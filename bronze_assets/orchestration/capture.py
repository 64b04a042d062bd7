"""The capture as Dagster sees it: one asset per captured schema, a long run that keeps it going, and its checks."""

# No postponed annotations here: Dagster reads those of an asset's function as objects.

import datetime as dt
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import dagster as dg
from pydantic import Field

from bronze_assets.capture import NEVER_BEFORE, Capture
from bronze_assets.errors import BronzeError
from bronze_assets.orchestration.assets import as_dagster_wants
from bronze_assets.orchestration.runs import PROCESS_TAG, RETRY_POLICY, TRIGGER_TAG, UNFINISHED, close_dead_runs
from bronze_assets.orchestration.slot_checks import (
    check_specs,
    evaluation,
    lag_at_present,
    lag_was_judged,
    slot_lag,
    slot_metadata,
    went_on,
)
from bronze_assets.processes import process_identity
from bronze_assets.settings import CaptureMode, Environment, Settings
from bronze_assets.table import BronzeTable
from bronze_assets.vaults import resolve_secret

_REPORT_SECONDS = 60.0
_SHORTEST_PAUSE = dt.timedelta(seconds=30)
_LONGEST_PAUSE = dt.timedelta(minutes=10)
_MOST_FAILURES = 10


class CaptureConfig(dg.Config):
    """How long a run of the capture goes on."""

    seconds: float = Field(
        default=900.0, description="How long the run goes on; the sensor starts the next. 0: until now, once."
    )
    every: float = Field(default=3.0, description="Seconds between two looks at the write-ahead log.")


def captured(tables: Sequence[BronzeTable]) -> dict[str, list[BronzeTable]]:
    """Schema → its tables whose changes are captured."""
    found: dict[str, list[BronzeTable]] = {}
    for table in tables:
        if table.feed is not None and table.feed.captured:
            found.setdefault(table.schema, []).append(table)
    return found


def changes_key(schema: str) -> dg.AssetKey:
    """The captured changes of a schema."""
    return dg.AssetKey(["landing", schema])


def capture_of(settings: Settings, tables: Sequence[BronzeTable]) -> Capture:
    """The capture of these tables; connects when it is first used."""
    url = resolve_secret(settings.source_url, meaning="BRONZE_SOURCE_URL", host=settings.databricks_host)
    # Of the demo's own server alone: to give a company's tables another replica identity is for their owner to decide.
    return Capture(url, settings.landing, tables, set_replica_identity=settings.embedded)


def capture_definitions(settings: Settings, tables: Sequence[BronzeTable]) -> dg.Definitions:
    """Asset, job and sensor of each captured schema; nothing where the environment captures in another way."""
    if settings.capture is not CaptureMode.BUILTIN:
        return dg.Definitions()
    parts = []
    for schema, members in captured(tables).items():
        asset = _changes(schema, members, settings)
        job = dg.define_asset_job(
            job_name(schema),
            selection=dg.AssetSelection.assets(changes_key(schema)),
            description=f"Captures the changes of the streaming tables of {schema}, until its time is over.",
        )
        parts.append(dg.Definitions(assets=[asset], jobs=[job], sensors=[_keep_alive(schema, members, settings)]))
    return dg.Definitions.merge(*parts)


def job_name(schema: str) -> str:
    """The job that captures a schema."""
    return f"capture_{schema}"


def _changes(schema: str, tables: Sequence[BronzeTable], settings: Settings) -> dg.AssetsDefinition:
    key = changes_key(schema)

    @dg.asset(
        key=key,
        description=(
            f"Committed changes of the {len(tables)} streaming tables of {schema}, as files of JSON lines in the "
            "landing zone. See docs/capture.md."
        ),
        group_name=tables[0].group,
        owners=list(dict.fromkeys(owner for table in tables for owner in table.owners)),
        kinds={"postgres", "json"},
        metadata={"landing": f"{settings.landing}/{schema}"},
        deps=[dg.AssetKey(["postgres", *table.source.lower().split(".")]) for table in tables],
        pool=job_name(schema),
        check_specs=check_specs(key),
    )
    def changes(context: dg.AssetExecutionContext, config: CaptureConfig) -> Iterator[Any]:
        context.instance.add_run_tags(context.run.run_id, {PROCESS_TAG: process_identity()})
        try:
            capture = capture_of(settings, tables)
            yield from _go_on(context, config, capture, settings.landing, schema)
        except BronzeError as error:
            raise as_dagster_wants(error, "changes", context.retry_number) from error

    return changes


def _go_on(
    context: dg.AssetExecutionContext, config: CaptureConfig, capture: Capture, landing: str, schema: str
) -> Iterator[Any]:
    key = changes_key(schema)
    began = told = time.monotonic()
    since: Counter[str] = Counter()
    failures = 0
    while True:
        now = time.monotonic()
        try:
            drained = capture.drain()
            failures = 0
        except BronzeError as error:
            failures += 1
            # A source that is away for a moment is no reason to end a run of many minutes.
            over = not error.retryable or failures > RETRY_POLICY.max_retries or not config.seconds
            lag = lag_at_present(capture, landing, schema) if over or now - told > _REPORT_SECONDS else None
            if lag is not None:
                yield evaluation(lag, key)
                told = now
            if over:
                raise
            context.log.warning(f"{error} Trying again.")
            time.sleep(RETRY_POLICY.calculate_delay(failures))
            continue
        if drained.started_anew and drained.started_anew != NEVER_BEFORE:
            context.log.warning(f"A new replication slot was made: {drained.started_anew}")
        since.update(drained.rows)
        now = time.monotonic()
        if now - began + config.every > config.seconds:
            break
        if now - told > _REPORT_SECONDS:
            status = capture.status()
            if since:
                yield dg.AssetMaterialization(key, metadata={**_rows(since), **slot_metadata(status)})
                since.clear()
            yield evaluation(slot_lag(status), key)
            told = now
        time.sleep(config.every)
    status = capture.status()
    yield dg.MaterializeResult(
        asset_key=key,
        metadata={**_rows(since), **slot_metadata(status)},
        check_results=[went_on(context.instance, key, status.restarts), slot_lag(status)],
    )


def _rows(rows: Counter[str]) -> dict[str, Any]:
    return {"changes": sum(rows.values()), **{f"changes/{name}": count for name, count in sorted(rows.items())}}


def _keep_alive(schema: str, tables: Sequence[BronzeTable], settings: Settings) -> dg.SensorDefinition:
    @dg.sensor(
        name=f"{job_name(schema)}_sensor",
        job_name=job_name(schema),
        minimum_interval_seconds=15,
        description=f"Keeps one run of {job_name(schema)} going.",
        default_status=(
            dg.DefaultSensorStatus.RUNNING
            if settings.environment is Environment.LOCAL
            else dg.DefaultSensorStatus.STOPPED
        ),
    )
    def keep_alive(context: dg.SensorEvaluationContext) -> dg.RunRequest | dg.SkipReason:
        close_dead_runs(context.instance)
        try:
            resolve_secret(settings.source_url, meaning="BRONZE_SOURCE_URL", host=settings.databricks_host)
        except BronzeError as error:
            # A home without its server yet: no run could do anything.
            return dg.SkipReason(str(error))
        filters = dg.RunsFilter(job_name=job_name(schema), statuses=UNFINISHED)
        for run in context.instance.get_runs(filters=filters, limit=1):
            return dg.SkipReason(f"Run {run.run_id} captures.")
        _judge_lag(context.instance, schema, tables, settings)
        failed, again = _next_try(context.instance, job_name(schema))
        if again > dt.datetime.now(dt.UTC):
            return dg.SkipReason(f"Run {failed} failed at once; the next is started at {again:%F %T} UTC.")
        # Before the loads that wait: what is not captured keeps the source's log from being freed.
        return dg.RunRequest(tags={TRIGGER_TAG: "sensor", "dagster/priority": "10"})

    return keep_alive


def _judge_lag(instance: dg.DagsterInstance, schema: str, tables: Sequence[BronzeTable], settings: Settings) -> None:
    """Judge the lag while no run does: one that was killed tells nothing, and the next may wait or be killed too."""
    key = changes_key(schema)
    if lag_was_judged(instance, key, _REPORT_SECONDS):
        return
    lag = lag_at_present(capture_of(settings, tables), settings.landing, schema)
    if lag is not None:
        instance.report_runless_asset_event(evaluation(lag, key))


def _next_try(instance: dg.DagsterInstance, name: str) -> tuple[str, dt.datetime]:
    """The latest run, and from when on another may be started: at once, unless several failed soon after they began.

    A source that is away for hours costs one run every `_LONGEST_PAUSE`, and not four a minute.
    """
    pause, latest = dt.timedelta(), None
    for record in instance.get_run_records(filters=dg.RunsFilter(job_name=name), limit=_MOST_FAILURES):
        seconds = (record.end_time or 0.0) - (record.start_time or record.end_time or 0.0)
        if record.dagster_run.status is not dg.DagsterRunStatus.FAILURE or seconds > _REPORT_SECONDS:
            break
        # The first is made good at once: a process was killed, or the server was being started.
        pause = min(pause * 2, _LONGEST_PAUSE) if pause else _SHORTEST_PAUSE if latest else pause
        latest = latest or record
    if latest is None:
        return "", dt.datetime.min.replace(tzinfo=dt.UTC)
    ended = dt.datetime.fromtimestamp(latest.end_time or 0.0, dt.UTC)
    return latest.dagster_run.run_id, ended + pause


def is_alive(confirmed_at: dt.datetime | None, now: dt.datetime) -> bool:
    """Whether a capture has lately confirmed that all changes are in files."""
    return confirmed_at is not None and (now - confirmed_at).total_seconds() < _REPORT_SECONDS
