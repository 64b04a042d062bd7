"""File arrival: a sensor per schema asks for runs of the partitions that have new files. It starts no JVM.

The ledger says what is new. A sensor keeps two things in its cursor: which files it asked for last, and when it last
told Dagster that a quiet table is up to date.
"""

from __future__ import annotations

import datetime as dt
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field

import dagster as dg

from bronze_assets import capture
from bronze_assets.batches import BatchLog
from bronze_assets.errors import BronzeError, StaleBase
from bronze_assets.lakehouse import Lakehouse
from bronze_assets.orchestration.assets import SOURCE_TAG, TRIGGER_TAG, asset_key, partitions
from bronze_assets.orchestration.capture import is_alive
from bronze_assets.orchestration.jobs import LoadJob
from bronze_assets.orchestration.runs import UNFINISHED, close_dead_runs
from bronze_assets.schema_versions import SchemaVersions
from bronze_assets.settings import Environment, Settings
from bronze_assets.snapshot_load import snapshot_is_due
from bronze_assets.sources.landing import LandedFile, LandingZone
from bronze_assets.sources.ledger import MAX_ATTEMPTS, FileEvent, FileState, Ledger
from bronze_assets.table import BronzeTable
from bronze_assets.workbench import current_partition

MOST_PARTITIONS = 5
"""Partitions that one tick asks for."""
MOST_SIGHTINGS = 10_000
"""Files of flat prefixes whose first sighting one tick records."""
RETRY = dt.timedelta(minutes=5)
"""After which files are asked for again that a run did not load."""
RENEWAL = dt.timedelta(minutes=10)
"""How often a quiet captured table is said to be up to date."""


@dataclass
class _Found:
    """What one look at the landing zone found: partition → table → its files."""

    files: dict[str, dict[str, list[tuple[LandedFile, int]]]] = field(default_factory=dict)
    reasons: list[str] = field(default_factory=list)


def file_sensor(job: LoadJob, settings: Settings) -> dg.SensorDefinition:
    """The sensor of a job whose tables are loaded from files of one schema: running where the environment is local."""
    (schema,) = {table.schema for table in job.tables}

    @dg.sensor(
        name=f"{schema}_files_sensor",
        job_name=job.name,
        minimum_interval_seconds=10,
        description=f"Asks for a load when files of {schema} have arrived.",
        default_status=(
            dg.DefaultSensorStatus.RUNNING
            if settings.environment is Environment.LOCAL
            else dg.DefaultSensorStatus.STOPPED
        ),
    )
    def files_arrived(context: dg.SensorEvaluationContext) -> dg.SensorResult | dg.SkipReason:
        try:
            return tick(job, settings, context.instance, context.cursor, dt.datetime.now(dt.UTC))
        except BronzeError as error:
            return dg.SkipReason(str(error))

    return files_arrived


def tick(
    job: LoadJob, settings: Settings, instance: dg.DagsterInstance, cursor: str | None, now: dt.datetime
) -> dg.SensorResult | dg.SkipReason:
    """One look: what to run, what to tell, and why not."""
    close_dead_runs(instance)
    found = _look(job.tables, settings, now)
    state: dict[str, str] = json.loads(cursor) if cursor else {}
    busy = {
        run.tags.get("dagster/partition"): run.run_id
        for run in instance.get_runs(filters=dg.RunsFilter(job_name=job.name, statuses=UNFINISHED))
    }
    requests: list[dg.RunRequest] = []
    reasons = list(found.reasons)
    first = partitions(job.cadence, settings).get_first_partition_key() or ""
    for partition, by_table in sorted(found.files.items()):
        count = sum(len(files) for files in by_table.values())
        if partition < first:
            reasons.append(f"{count} files of {partition} lie before the first partition, {first}.")
        elif partition > current_partition(job.cadence, now):
            reasons.append(f"{count} files of {partition} lie in the future.")
        elif partition in busy:
            reasons.append(f"Run {busy[partition]} is loading {partition}; {count} files wait.")
        elif len(requests) < MOST_PARTITIONS:
            requests.append(_request(job, partition, by_table, now))
    if requests:
        return dg.SensorResult(run_requests=requests, cursor=json.dumps(state))
    events, renewed = _renewals(job, settings, state, now, reasons) if not found.files else ([], state)
    if events:
        return dg.SensorResult(asset_events=events, cursor=json.dumps(renewed))
    return dg.SkipReason(" ".join(reasons) or "No new files.")


def files_waiting(tables: Sequence[BronzeTable], settings: Settings, now: dt.datetime) -> dict[str, list[str]]:
    """Partition → names of the tables for which files wait there."""
    return {partition: list(by_table) for partition, by_table in _look(tables, settings, now).files.items()}


def _look(tables: Sequence[BronzeTable], settings: Settings, now: dt.datetime) -> _Found:
    zone = LandingZone(settings.landing, settings.archive)
    lake = Lakehouse(settings.lake)
    found = _Found()
    states = {schema: capture.manifest(settings.landing, schema) for schema in {table.schema for table in tables}}
    for table in tables:
        feed = table.feed
        assert feed is not None
        today = current_partition(table.cadence, now)
        state = states[table.schema]
        # Where the capture has just begun, or had to begin anew, a snapshot comes first.
        log = BatchLog(lake, table, lambda: now, today) if state is not None and feed.captured else None
        if log is not None and snapshot_is_due(log, table, state):
            found.files.setdefault(today, {}).setdefault(table.name, [])
        files = zone.files(feed)
        ledger = Ledger(lake, table, lambda: now)
        waiting = ledger.outstanding(files)
        if not waiting:
            continue
        proposed = SchemaVersions(lake, table, lambda: now).proposed()
        if proposed:
            found.reasons.append(
                f"{table.name} waits until somebody accepts {', '.join(map(repr, proposed))},"
                f" and {len(waiting)} files with it."
            )
            continue
        _remember(ledger, [file for file in waiting if file.day is None], today)
        settled = now - dt.timedelta(seconds=feed.settle_seconds)
        for file in waiting:
            before = ledger.files.get(file.path)
            attempt = before.attempt if before is not None else 0
            if before is not None and before.event is FileEvent.FAILED and attempt >= MAX_ATTEMPTS:
                found.reasons.append(f"{file.path!r} failed {attempt} times; load its partition by hand.")
            elif file.modified > settled:
                found.reasons.append(f"{file.path!r} is younger than {feed.settle_seconds} s.")
            else:
                partition = ledger.partition_of(file, today)
                found.files.setdefault(partition, {}).setdefault(table.name, []).append((file, attempt))
    if len(found.reasons) > 5:
        found.reasons = [*found.reasons[:5], f"And {len(found.reasons) - 5} more."]
    return found


def _remember(ledger: Ledger, files: Sequence[LandedFile], today: str) -> None:
    """Record the first sighting of files in a flat prefix: it is their day of arrival."""
    new = [file for file in files if file.path not in ledger.files][:MOST_SIGHTINGS]
    states = [FileState(file.path, FileEvent.SEEN, file.size, file.modified, today) for file in new]
    try:
        ledger.record(states, FileEvent.SEEN)
    except StaleBase:
        # A load is at work in this table's ledger, and claims them itself.
        return


def _request(
    job: LoadJob, partition: str, by_table: dict[str, list[tuple[LandedFile, int]]], now: dt.datetime
) -> dg.RunRequest:
    # A key that has launched a run never launches another. What a run did not load is asked for again some time later.
    period = int(now.timestamp() // RETRY.total_seconds())
    digest = hashlib.sha256(f"{partition} {period}".encode())
    for name, files in sorted(by_table.items()):
        for file, attempt in files:
            digest.update(f"{name} {file.path} {file.size} {file.modified} {attempt}\n".encode())
    return dg.RunRequest(
        run_key=f"{partition}-{digest.hexdigest()[:24]}",
        partition_key=partition,
        asset_selection=[asset_key(table) for table in job.tables if table.name in by_table],
        tags={SOURCE_TAG: job.tables[0].source_system, TRIGGER_TAG: "sensor"},
    )


def _renewals(
    job: LoadJob, settings: Settings, state: dict[str, str], now: dt.datetime, reasons: list[str]
) -> tuple[list[dg.AssetMaterialization], dict[str, str]]:
    """For captured tables without changes: that they are up to date, if the capture is alive and says so."""
    captured = [table for table in job.tables if table.feed is not None and table.feed.captured]
    if not captured:
        return [], state
    manifest = capture.manifest(settings.landing, captured[0].schema)
    confirmed = manifest.confirmed_at if manifest is not None else None
    if not is_alive(confirmed, now):
        since = "never" if confirmed is None else f"last at {confirmed:%Y-%m-%d %H:%M:%S} UTC"
        reasons.append(f"The capture is not alive: it confirmed its position {since}.")
        return [], state
    last = state.get("renewed")
    if last is not None and now - dt.datetime.fromisoformat(last) < RENEWAL:
        reasons.append("No new files; the capture is alive.")
        return [], state
    events = [
        dg.AssetMaterialization(
            asset_key(table),
            partition=current_partition(table.cadence, now),
            description="Nothing new: the capture is alive, and every change up to this moment has been loaded.",
            metadata={"rows": 0, "confirmed_at": dg.MetadataValue.timestamp(confirmed or now)},
        )
        for table in captured
        if _has_snapshot(table, settings)
    ]
    return events, {**state, "renewed": now.isoformat()}


def _has_snapshot(table: BronzeTable, settings: Settings) -> bool:
    # A table that was never loaded is not up to date, however quiet its source is.
    return Lakehouse(settings.lake).exists(table.schema, table.name)
