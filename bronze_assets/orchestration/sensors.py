"""File arrival: a sensor per schema asks for runs of the partitions that have new files. It starts no JVM.

The ledger says what is new. The cursor keeps, per captured table, when Dagster was last told that the table is up to
date, and the beginning of the capture that its snapshot is known to meet.
"""

from __future__ import annotations

import datetime as dt
import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import dagster as dg

from bronze_assets import capture
from bronze_assets.batches import BatchLog
from bronze_assets.errors import BronzeError, StaleBase
from bronze_assets.lakehouse import Lakehouse, open_lake
from bronze_assets.leases import holder
from bronze_assets.orchestration.assets import asset_key, partitions
from bronze_assets.orchestration.capture import is_alive
from bronze_assets.orchestration.jobs import LoadJob
from bronze_assets.orchestration.runs import SOURCE_TAG, TRIGGER_TAG, UNFINISHED, close_dead_runs
from bronze_assets.schema_versions import SchemaVersions
from bronze_assets.settings import CaptureMode, Environment, Settings
from bronze_assets.snapshot_load import snapshot_is_due
from bronze_assets.sources.landing import LandedFile, LandingZone
from bronze_assets.sources.ledger import MAX_ATTEMPTS, FileEvent, FileState, Ledger
from bronze_assets.table import BronzeTable, Feed
from bronze_assets.workbench import current_partition

MOST_PARTITIONS = 5
"""Partitions that one tick asks for."""
MOST_SIGHTINGS = 10_000
"""Files of flat prefixes whose first sighting one tick records."""
MOST_REASONS = 5
_SNAPSHOT = "snapshot"
RETRY = dt.timedelta(minutes=5)
"""After which files are asked for again that a run did not load."""
RENEWAL = dt.timedelta(minutes=10)
"""How often a quiet captured table is said to be up to date."""


@dataclass
class _Cursor:
    """What a sensor remembers from one tick to the next.

    Attributes:
        renewed: captured table → when it was last told, or asked, to be up to date.
        met: captured table → the beginning of the capture (see `_beginning`) that its snapshot meets.
    """

    renewed: dict[str, str] = field(default_factory=dict)
    met: dict[str, str] = field(default_factory=dict)

    @classmethod
    def read(cls, text: str | None) -> _Cursor:
        stored: dict[str, Any] = json.loads(text) if text else {}
        return cls(dict(stored.get("renewed") or {}), dict(stored.get("met") or {}))

    def write(self) -> str:
        return json.dumps({"renewed": self.renewed, "met": self.met})


@dataclass
class _Found:
    """What one look at the landing zone found.

    Attributes:
        files: partition → table → what waits there, one line for each file.
        behind: names of the tables that are not up to date, whether or not a run would help.
        manifests: schema → how its capture stood before the landing zone was listed.
    """

    files: dict[str, dict[str, list[str]]] = field(default_factory=dict)
    behind: set[str] = field(default_factory=set)
    reasons: list[str] = field(default_factory=list)
    manifests: dict[str, capture.Manifest | None] = field(default_factory=dict)

    def ask(self, table: BronzeTable, partition: str, what: str) -> None:
        self.behind.add(table.name)
        self.files.setdefault(partition, {}).setdefault(table.name, []).append(what)


def file_sensor(job: LoadJob, settings: Settings) -> dg.SensorDefinition:
    """The sensor of a job whose tables are loaded from files of one schema: running where the environment is local."""
    (schema,) = {table.schema for table in job.tables}

    @dg.sensor(
        name=f"{schema}_files_sensor",
        job_name=job.name,
        minimum_interval_seconds=5,
        description=f"Asks for a load when files of {schema} have arrived.",
        default_status=(
            dg.DefaultSensorStatus.RUNNING
            if settings.environment is Environment.LOCAL
            else dg.DefaultSensorStatus.STOPPED
        ),
    )
    def files_arrived(context: dg.SensorEvaluationContext) -> dg.SensorResult | dg.SkipReason:
        try:
            return tick(job, settings, context.instance, context.cursor, dt.datetime.now(dt.UTC), context.log.info)
        except BronzeError as error:
            return dg.SkipReason(str(error))

    return files_arrived


def tick(
    job: LoadJob,
    settings: Settings,
    instance: dg.DagsterInstance,
    cursor: str | None,
    now: dt.datetime,
    say: Callable[[str], None] = lambda _: None,
) -> dg.SensorResult:
    """One look: what to run, what to tell, and why not.

    Args:
        say: takes what keeps files waiting, when there is something to run or to tell beside it.
    """
    close_dead_runs(instance)
    memory = _Cursor.read(cursor)
    found = _look(job.tables, settings, now, now, memory)
    busy = {
        run.tags.get("dagster/partition"): run.run_id
        for run in instance.get_runs(filters=dg.RunsFilter(job_name=job.name, statuses=UNFINISHED))
    }
    requests: list[dg.RunRequest] = []
    reasons = found.reasons
    first = partitions(job.cadence, settings).get_first_partition_key() or ""
    for partition, by_table in sorted(found.files.items()):
        waiting = _counted([what for waits in by_table.values() for what in waits])
        if partition < first:
            reasons.append(f"{partition} lies before the first partition, {first}; it holds {waiting}.")
        elif partition > current_partition(job.cadence, now):
            reasons.append(f"{partition} lies in the future; it holds {waiting}.")
        elif partition in busy:
            reasons.append(f"Run {busy[partition]} is loading {partition}; waiting: {waiting}.")
        elif len(requests) < MOST_PARTITIONS:
            requests.append(_request(job, partition, by_table, now))
            memory.renewed |= dict.fromkeys(by_table, now.isoformat())
        else:
            reasons.append(f"{partition} waits for a later tick, with {waiting}.")
    events = _renewals(job, settings, found, memory, now)
    if len(reasons) > MOST_REASONS:
        reasons[MOST_REASONS:] = [f"And {len(reasons) - MOST_REASONS} more."]
    if requests or events:
        for reason in reasons:
            say(reason)
        return dg.SensorResult(run_requests=requests, asset_events=events, cursor=memory.write())
    return dg.SensorResult(skip_reason=" ".join(reasons) or "No new files.", cursor=memory.write())


def files_waiting(
    tables: Sequence[BronzeTable], settings: Settings, now: dt.datetime, moment: dt.datetime
) -> dict[str, list[str]]:
    """Partition → names of the tables for which files wait there.

    Args:
        moment: whose partition is in progress.
    """
    found = _look(tables, settings, now, moment, _Cursor())
    return {partition: list(by_table) for partition, by_table in found.files.items()}


def _look(
    tables: Sequence[BronzeTable], settings: Settings, now: dt.datetime, moment: dt.datetime, memory: _Cursor
) -> _Found:
    zone = LandingZone(settings.landing, settings.archive)
    lake = open_lake(settings)
    found = _Found()
    # Before the listing: what a manifest confirms is then in the files that are listed.
    for schema in {table.schema for table in tables}:
        builtin = settings.capture is CaptureMode.BUILTIN
        found.manifests[schema] = capture.manifest(settings.landing, schema) if builtin else None
    for table in tables:
        feed = table.feed
        assert feed is not None
        today = current_partition(table.cadence, moment)
        files = zone.files(feed)
        ledger = Ledger(lake, table, lambda: now)
        waiting = ledger.outstanding(ledger.with_undone(files, zone))
        left = [state for state in ledger.files.values() if _is_left_over(state, feed, now)]
        beginning = _snapshot_due(table, lake, found.manifests[table.schema], memory, now)
        if not (waiting or left or beginning):
            continue
        found.behind.add(table.name)
        _remember(ledger, [file for file in waiting if file.day is None], today)
        at_work = holder(lake, table.schema, table.name, settings.lease_seconds, now)
        if at_work is not None:
            asked = [file.path for file in waiting] + [_SNAPSHOT] * (beginning is not None)
            more = f"; waiting: {_counted(asked)}" if asked else ""
            found.reasons.append(f"Run {at_work} is loading {table.name}{more}.")
            continue
        if beginning:
            # Where the capture has just begun, or had to begin anew, a snapshot comes first.
            found.ask(table, today, f"{_SNAPSHOT} {beginning}")
        for state in left:
            found.ask(table, state.partition, f"{state.path} {state.event} {state.batch_id} {state.attempt}")
        proposed = SchemaVersions(lake, table, lambda: now).proposed()
        if waiting and proposed:
            found.reasons.append(
                f"{table.name} waits until somebody accepts {', '.join(map(repr, proposed))},"
                f" and with it {_counted([file.path for file in waiting])}."
            )
            continue
        for file in waiting:
            before = ledger.files.get(file.path)
            attempt = before.attempt if before is not None else 0
            if before is not None and before.event is FileEvent.FAILED and attempt >= MAX_ATTEMPTS:
                found.reasons.append(f"{file.path!r} failed {attempt} times; load its partition by hand.")
            elif not _is_settled(file, feed, now):
                found.reasons.append(f"{file.path!r} is younger than {feed.settle_seconds} s.")
            else:
                partition = ledger.partition_of(file, today)
                # What a restore took out has launched a run before, as it is.
                undone = f" {before.event_time}" if before and before.event is FileEvent.UNDONE else ""
                found.ask(table, partition, f"{file.path} {file.size} {file.modified} {attempt}{undone}")
    return found


def _is_settled(file: LandedFile, feed: Feed, now: dt.datetime) -> bool:
    # As the load sees it: a clock that goes ahead where the file was written must not hold it back for ever.
    settled = now - dt.timedelta(seconds=feed.settle_seconds)
    return file.modified <= settled or file.modified > now + dt.timedelta(minutes=1)


def _is_left_over(state: FileState, feed: Feed, now: dt.datetime) -> bool:
    """Whether something is left to do with a file, by a load that was killed or since its time in the landing zone is
    over: it asks for a run by itself, or a table without new files would never do it.
    """
    if state.event is FileEvent.CLAIMED:
        return True
    return state.event is FileEvent.LOADED and state.leaves(feed, now)


def _snapshot_due(
    table: BronzeTable, lake: Lakehouse, state: capture.Manifest | None, memory: _Cursor, now: dt.datetime
) -> str | None:
    """The beginning of the capture that the table lacks a snapshot for; None if it lacks none."""
    if state is None or table.feed is None or not table.feed.captured:
        return None
    beginning = f"{state.source_epoch} {state.tables.get(table.name, 0):X}"
    # A snapshot that meets the capture goes on meeting it. The batch log grows with every load, and is not read for it.
    if memory.met.get(table.name) == beginning and lake.exists(table.schema, table.name):
        return None
    log = BatchLog(lake, table, lambda: now, current_partition(table.cadence, now))
    if snapshot_is_due(log, table, state):
        memory.met.pop(table.name, None)
        return beginning
    memory.met[table.name] = beginning
    return None


def _remember(ledger: Ledger, files: Sequence[LandedFile], today: str) -> None:
    """Record the first sighting of files in a flat prefix: it is their day of arrival."""
    new = [file for file in files if file.path not in ledger.files][:MOST_SIGHTINGS]
    states = [FileState(file.path, FileEvent.SEEN, file.size, file.modified, today) for file in new]
    try:
        ledger.record(states, FileEvent.SEEN)
    except StaleBase:
        # Another sensor has just done so.
        return


def _counted(waiting: Sequence[str]) -> str:
    files = sum(not what.startswith(_SNAPSHOT) for what in waiting)
    counts = [f"{files:,} file{'s' * (files != 1)}"] if files else []
    return " and ".join(counts + ["a snapshot"] * (files < len(waiting)))


def _request(job: LoadJob, partition: str, by_table: dict[str, list[str]], now: dt.datetime) -> dg.RunRequest:
    # A key that has launched a run never launches another. What a run did not load is asked for again some time later.
    period = int(now.timestamp() // RETRY.total_seconds())
    digest = hashlib.sha256(f"{partition} {period}\n".encode())
    for name, files in sorted(by_table.items()):
        for file in files:
            digest.update(f"{name} {file}\n".encode())
    return dg.RunRequest(
        run_key=f"{partition}-{digest.hexdigest()[:24]}",
        partition_key=partition,
        asset_selection=[asset_key(table) for table in job.tables if table.name in by_table],
        tags={SOURCE_TAG: job.tables[0].source_system, TRIGGER_TAG: "sensor"},
    )


def _renewals(
    job: LoadJob, settings: Settings, found: _Found, memory: _Cursor, now: dt.datetime
) -> list[dg.AssetMaterialization]:
    """For captured tables without changes: that they are up to date, if the capture is alive and says so."""
    captured = [table for table in job.tables if table.feed is not None and table.feed.captured]
    # Nobody tells a quiet source from a dead connector where the files come from elsewhere.
    if not captured or settings.capture is not CaptureMode.BUILTIN:
        return []
    manifest = found.manifests[captured[0].schema]
    confirmed = manifest.confirmed_at if manifest is not None else None
    if confirmed is None or not is_alive(confirmed, now):
        told = "it has never confirmed its position" if confirmed is None else f"last heard of {confirmed:%F %T} UTC"
        found.reasons.append(f"The capture is not alive: {told}.")
        return []
    events = []
    for table in captured:
        last = memory.renewed.get(table.name)
        if table.name in found.behind or (last is not None and now - dt.datetime.fromisoformat(last) < RENEWAL):
            continue
        memory.renewed[table.name] = now.isoformat()
        events.append(
            dg.AssetMaterialization(
                asset_key(table),
                partition=current_partition(table.cadence, now),
                description="Nothing new: the capture is alive, and every change up to this moment has been loaded.",
                metadata={"rows": 0, "confirmed_at": dg.MetadataValue.timestamp(confirmed)},
            )
        )
    if not events and not found.behind:
        found.reasons.append("No new files; the capture is alive.")
    return events
