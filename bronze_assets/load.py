"""The walk of a batch: what one load of one partition does, from the source's rows to the record.

contract → typed columns, outcome, score and hash in one projection → Delta commit of the loaded rows, counted in the
same pass → quarantine → audit row. Each step is noted in the batch log, so that whoever loads the table next can
finish what was interrupted (design: semantics.md, batches).
"""

from __future__ import annotations

import datetime as dt
import functools
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from zoneinfo import ZoneInfo

from pyspark.sql import DataFrame, SparkSession, Window
from pyspark.sql import functions as F
from pyspark.sql import types as T

from bronze_assets import audit, engine
from bronze_assets.audit import LoadRecord
from bronze_assets.batches import Batch, BatchLog, lease
from bronze_assets.errors import BronzeError, ConservationError, LoadRefused, PartitionRefused
from bronze_assets.frames import ACTIVE, Frames
from bronze_assets.lakehouse import Lakehouse
from bronze_assets.settings import Settings, resolve_secret
from bronze_assets.sources.postgres import PostgresSource, Snapshot, SourceTable
from bronze_assets.sources.scope import FULL, Scope
from bronze_assets.table import BronzeTable, Cadence

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Options:
    """What a caller may ask of one load.

    Attributes:
        dry_run: read, judge and count, but write nothing.
        full_compare: compare every value with the latest version of its row, not the hash alone.
        max_rows: refuse, before anything is written, when the source holds more rows than this.
        read_connections: parallel JDBC reads; None takes the settings' number.
    """

    dry_run: bool = False
    full_compare: bool = False
    max_rows: int | None = None
    read_connections: int | None = None


@dataclass(frozen=True)
class Run:
    """Who loads: the Dagster run and what started it (manual, schedule, sensor, backfill, cli)."""

    id: str
    trigger: str


class Workbench:
    """What loads of one process share: session, source, lake, settings and clock. All start at first use.

    Args:
        settings: of this process.
        clock: gives the present moment, in UTC.
        say: shows progress of long steps to a person.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        clock: Callable[[], dt.datetime] = lambda: dt.datetime.now(dt.UTC),
        say: Callable[[str], None] = logger.info,
    ) -> None:
        self.settings = settings
        self.clock = clock
        self.lake = Lakehouse(settings.lake)
        self.say = say

    @classmethod
    @contextmanager
    def open(cls, settings: Settings, *, say: Callable[[str], None] = logger.info) -> Iterator[Workbench]:
        """A workbench whose snapshot is closed at the end; the Spark session stays for the process."""
        bench = cls(settings, say=say)
        try:
            yield bench
        finally:
            bench.close()

    @functools.cached_property
    def session(self) -> SparkSession:
        """The process's Spark session."""
        return engine.start_session(self.settings, say=self.say)

    @functools.cached_property
    def source(self) -> PostgresSource:
        """The source; connects when its snapshot is first asked for."""
        return PostgresSource(resolve_secret(self.settings.source_url, meaning="BRONZE_SOURCE_URL"), self.clock)

    def moment(self) -> dt.datetime:
        """The moment that a load speaks of: that of the process's snapshot, else now.

        All tables of a run belong to the partition in which its snapshot was taken, also those whose turn comes after
        the hour or the day has ended.
        """
        taken = self.source.taken if "source" in self.__dict__ else None
        return taken or self.clock()

    def close(self) -> None:
        """Let the source's snapshot go."""
        if "source" in self.__dict__:
            self.source.close()


def load(table: BronzeTable, partition: str, bench: Workbench, run: Run, options: Options = Options()) -> LoadRecord:
    """Load what is outstanding for a partition, and first settle what an interrupted load left.

    The current partition is compared with the whole source. A past day is loaded from the source's rows of that day
    where the table declares an event date, else refused.

    Args:
        partition: Dagster's partition key: `YYYY-MM-DD`, or `YYYY-MM-DD-HH:MM` for hourly tables; UTC.

    Returns:
        What was done; for a first load in key ranges, all ranges together.

    Raises:
        BronzeError: see `errors`. An audit row FAILED has been written where the lake allows it.
    """
    started = bench.clock()
    if options.dry_run:
        return _dry_run(table, partition, bench, options, started)
    attempt = _Attempt(table, partition, bench, run, options, started)
    try:
        bench.lake.check_writable(table)
        with lease(bench.lake, table, run.id, bench.settings.lease_seconds):
            return attempt.load()
    except BaseException as error:
        attempt.record_failure(error)
        raise


def make_ready(bench: Workbench, tables: Sequence[BronzeTable], *, trigger: str, waits: Sequence[float]) -> None:
    """Make sure that the source answers and Spark starts, before each of many tables finds out by itself.

    Args:
        tables: that are to be loaded; each gets a FAILED audit row if one of the two cannot be had.
        waits: seconds before each further try at a source that does not answer.

    Raises:
        SourceUnreachable: no answer, also after the last wait.
        SourceRefused: the server said no; asked once.
        SettingsError: the source's URL cannot be had or is malformed.
        EngineError: Spark does not start.
    """
    started = bench.clock()
    for wait in (*waits, None):
        try:
            bench.source.snapshot()
            _ = bench.session
            return
        except BronzeError as error:
            if error.retryable and wait is not None:
                bench.say(f"{error} Trying again in {wait:.0f} s.")
                time.sleep(wait)
                continue
            for table in tables:
                _record_failure(bench, table, error, started, None, Run("not begun", trigger))
            raise


def current_partition(cadence: Cadence, now: dt.datetime) -> str:
    """The partition key of the window that `now` lies in."""
    return now.strftime("%Y-%m-%d-%H:00" if cadence is Cadence.HOURLY else "%Y-%m-%d")


def current(bench: Workbench, table: BronzeTable) -> DataFrame:
    """`bz_<table>_current`: the latest version of each key by source position, without the deleted ones.

    Columns as in the bronze table.
    """
    versions = bench.lake.read(bench.session, table.schema, table.name)
    order = Window.partitionBy(*(c.name for c in table.key)).orderBy(
        F.col("source_position").desc(), F.col("load_timestamp").desc()
    )
    return (
        versions.withColumn("__rank", F.row_number().over(order))
        .where((F.col("__rank") == 1) & (F.col("record_status") == ACTIVE))
        .drop("__rank")
    )


def _scope(table: BronzeTable, partition: str, now: dt.datetime) -> Scope:
    hourly = table.cadence is Cadence.HOURLY
    try:
        start = dt.datetime.strptime(partition, "%Y-%m-%d-%H:%M" if hourly else "%Y-%m-%d").replace(tzinfo=dt.UTC)
    except ValueError:
        raise PartitionRefused(
            f"{partition!r} is not a partition.",
            f"use the form {current_partition(table.cadence, now)}.",
            table=table.name,
        ) from None
    end = start + (dt.timedelta(hours=1) if hourly else dt.timedelta(days=1))
    if now < start:
        raise PartitionRefused(
            f"partition {partition} lies in the future.",
            f"materialise the current one, {current_partition(table.cadence, now)}.",
            table=table.name,
        )
    if now < end:
        return FULL
    if table.event_date is not None:
        return Scope(table.event_date, start.date(), end.date())
    raise PartitionRefused(
        f"partition {partition} has passed: what the source held then cannot be read from it any more,"
        " and today's rows are not written under yesterday's name.",
        f"materialise the current partition, {current_partition(table.cadence, now)};"
        " it brings in everything that is outstanding.",
        table=table.name,
    )


@dataclass
class _Attempt:
    """One call of `load`, from the lease to the record."""

    table: BronzeTable
    partition: str
    bench: Workbench
    run: Run
    options: Options
    started: dt.datetime
    log: BatchLog = field(init=False)
    batch: Batch | None = None

    def load(self) -> LoadRecord:
        table, bench, lake = self.table, self.bench, self.bench.lake
        self.log = BatchLog(lake, table, bench.clock, self.partition)
        # Refused at once, before a connection or a JVM is started for it.
        _scope(table, self.partition, bench.moment())
        unfinished = self._settle()
        snapshot = bench.source.snapshot()
        scope = _scope(table, self.partition, snapshot.taken)
        records = []
        with snapshot.reading(table):
            source = _contract(table, snapshot, scope, self.options)
            lake.ensure(bench.session, table)
            for part in self._plan(scope, snapshot, source):
                batch_id = unfinished.id if unfinished else self.log.next_id(self.partition)
                replaces = unfinished is not None and lake.committed(table.schema, table.name, batch_id) is not None
                records.append(self._load_batch(batch_id, part, snapshot, source, replaces))
                unfinished = None
        return audit.combine(records)

    def record_failure(self, error: BaseException) -> None:
        """Write the FAILED audit row; a batch of which nothing was committed is closed, any other left to finish."""
        batch, table = self.batch, self.table
        recorded = _record_failure(self.bench, table, error, self.started, batch.id if batch else None, self.run)
        if not recorded or batch is None or batch.finished:
            return
        try:
            landed = self.bench.lake.committed(table.schema, table.name, batch.id) is not None
            self.log.note(batch, "stopped" if landed else "failed", run_id=self.run.id)
        except Exception as second:
            _warn_unrecorded(table, second)

    def _settle(self) -> Batch | None:
        """Finish or give up what earlier loads left; returns the batch of this partition that is to be done again."""
        again = None
        for batch in self.log.unfinished():
            told = {"stopped", "audited"} & set(batch.events) or audit.has_success(
                self.bench.lake, self.table, batch.id
            )
            if not told:
                audit.write_failure(
                    self.bench.lake,
                    self.table,
                    f"{self.table.name}: the process of run {batch.run_id} ended before batch {batch.id} was done."
                    " Fix: none needed, this run takes it up.",
                    started=batch.started,
                    ended=self.bench.clock(),
                    batch_id=batch.id,
                    run_id=batch.run_id,
                    trigger="killed",
                )
            lake, table = self.bench.lake, self.table
            held = lake.quarantined(table, batch.id)
            if "main" in batch.events and batch.record is not None and batch.record.quarantined == held:
                logger.info("%s: batch %s: all its rows are in the lake, finishing it", table.name, batch.id)
                self._finish(batch, replace(batch.record, resumed=True))
                continue
            if held:
                lake.empty_quarantine(self.bench.session, table, batch.id)
            if batch.partition == self.partition and again is None:
                logger.info("%s: batch %s: interrupted, doing it again", table.name, batch.id)
                again = batch
            else:
                logger.info("%s: batch %s: interrupted and past, taking it back", table.name, batch.id)
                if lake.committed(table.schema, table.name, batch.id) is not None:
                    lake.remove_batch(self.bench.session, table, batch.id)
                self.log.note(batch, "failed", run_id=self.run.id)
        return again

    def _plan(self, scope: Scope, snapshot: Snapshot, source: SourceTable) -> Iterator[Scope]:
        """The scopes to load one after the other: one, or for the first load of a very large table, ranges of its key,
        going on where an interrupted first load stopped.
        """
        rows = self.bench.settings.range_rows
        key = self.table.key[0]
        done = [b for b in self.log.batches if b.done]
        ranges = [b for b in done if b.scope_kind == "range"]
        first_load_done = any(b.scope_kind == "full" for b in done) or any(b.scope_high is None for b in ranges)
        if (
            scope.kind != "full"
            or first_load_done
            or len(self.table.key) > 1
            or not isinstance(key.type, (T.IntegerType, T.LongType))
            or (source.estimated_rows < rows and not ranges)
        ):
            yield scope
            return
        low = max((int(b.scope_high) for b in ranges if b.scope_high is not None), default=None)
        while True:
            high = snapshot.next_bound(source, key.name, low, rows)
            yield Scope(key.name, low, high)
            if high is None:
                return
            low = high

    def _load_batch(
        self, batch_id: str, scope: Scope, snapshot: Snapshot, source: SourceTable, replaces: bool
    ) -> LoadRecord:
        table, lake, session = self.table, self.bench.lake, self.bench.session
        started = self.bench.clock()
        size = lake.size(table.schema, table.name)
        batch = self.batch = self.log.begin(batch_id, self.partition, self.run.id, scope, snapshot.epoch)
        position = source_position(batch.epoch, snapshot.lsn, 0)
        logger.info("%s: batch %s: reading %s", table.name, batch_id, scope)
        frames = _frames(table, self.bench, scope, snapshot, source, self.options)
        judged = frames.judged()
        versions = None
        if size.rows:
            versions = lake.read(session, table.schema, table.name, version=size.version).where(
                (F.col("batch_id") != batch_id) & (F.col("source_position") <= position)
            )
        counted, observation = frames.counted(frames.outcomes(judged, versions))
        version = lake.append(
            frames.versions(counted, batch_id, position, started),
            table,
            batch_id,
            base=size.version,
            replace=replaces,
            new_columns=bool(frames.extra),
        )
        counts = observation.get
        record = frames.record(counts, self.partition, batch_id, started, self.bench.clock(), position)
        record = self._measured(replace(record, resumed=batch.attempt > 1, delta_version=version))
        self._stage(batch, "main", record, record.loaded + record.deleted)
        if record.quarantined:
            bad = frames.quarantine(judged, counts, batch_id, position, started)
            lake.quarantine(bad, table, batch_id)
            held = lake.quarantined(table, batch_id)
            if held != record.quarantined:
                raise ConservationError(
                    f"batch {batch_id} counted {record.quarantined} rows for the quarantine, which holds {held}.",
                    "report this as a defect; the next load reads the source anew.",
                    table=table.name,
                )
            self._stage(batch, "quarantine", record, record.quarantined)
        return self._finish(batch, record)

    def _finish(self, batch: Batch, record: LoadRecord) -> LoadRecord:
        """Audit row and end of a batch whose rows are all in the lake."""
        record = replace(record, ended=max(record.ended, self.bench.clock() if not batch.done else record.ended))
        if "audited" not in batch.events:
            # Only an attempt that was killed between the audit row and its event has one already.
            if not (record.resumed and audit.has_success(self.bench.lake, self.table, batch.id)):
                audit.write_success(self.bench.lake, self.table, record, run_id=self.run.id, trigger=self.run.trigger)
            self.log.note(batch, "audited", run_id=self.run.id)
        self.log.note(batch, "done", run_id=self.run.id, record=record)
        logger.info(
            "%s: batch %s: done, read %d, loaded %d, quarantined %d, duplicates %d, unchanged %d, deleted %d, %.1f s",
            self.table.name,
            batch.id,
            record.read,
            record.loaded,
            record.quarantined,
            record.duplicates,
            record.unchanged,
            record.deleted,
            record.seconds,
        )
        return record

    def _measured(self, record: LoadRecord) -> LoadRecord:
        size = self.bench.lake.size(self.table.schema, self.table.name)
        return replace(
            record,
            table_rows=size.rows,
            table_bytes=size.bytes,
            table_files=size.files,
            partition_rows=self.log.partition_rows(self.partition) + record.loaded + record.deleted,
            bytes_day_ago=self.log.bytes_a_day_before(record.ended),
        )

    def _stage(self, batch: Batch, stage: str, record: LoadRecord, rows: int) -> None:
        self.log.note(batch, stage, run_id=self.run.id, record=record)
        seconds = (self.bench.clock() - record.started).total_seconds()
        logger.info("%s: batch %s: %s committed, %d rows, %.1f s", self.table.name, batch.id, stage, rows, seconds)


def _record_failure(
    bench: Workbench,
    table: BronzeTable,
    error: BaseException,
    started: dt.datetime,
    batch_id: str | None,
    run: Run,
) -> bool:
    """Write the FAILED audit row of an attempt where the lake takes it; returns whether it did."""
    try:
        audit.write_failure(
            bench.lake,
            table,
            audit.safe_message(error),
            started=started,
            ended=bench.clock(),
            batch_id=batch_id,
            run_id=run.id,
            trigger=run.trigger,
        )
    except Exception as second:
        # The error that is being recorded matters more than this one.
        _warn_unrecorded(table, second)
        return False
    return True


def _warn_unrecorded(table: BronzeTable, error: Exception) -> None:
    logger.warning("%s: the failure could not be recorded (%s)", table.name, audit.safe_message(error))


def source_position(epoch: int, lsn: int, sequence: int) -> str:
    """Fixed width, so that text order is source order: epoch / LSN as 16 hex digits / sequence in the transaction."""
    return f"{epoch:04d}/{lsn:016X}/{sequence:010d}"


def _contract(table: BronzeTable, snapshot: Snapshot, scope: Scope, options: Options) -> SourceTable:
    source = snapshot.describe(table)
    if options.max_rows is not None:
        rows = snapshot.count(source, scope)
        if rows > options.max_rows:
            raise LoadRefused(
                f"the source holds {rows} rows, more than max_rows = {options.max_rows}. Nothing was written.",
                "raise max_rows in the run's config, or leave it out.",
                table=table.name,
            )
    return source


def _frames(
    table: BronzeTable, bench: Workbench, scope: Scope, snapshot: Snapshot, source: SourceTable, options: Options
) -> Frames:
    settings = bench.settings
    return Frames(
        bench.session,
        table,
        snapshot,
        source,
        scope,
        today=snapshot.taken.astimezone(ZoneInfo(settings.business_time_zone)).date(),
        connections=options.read_connections or settings.read_connections,
        full_compare=options.full_compare,
    )


def _dry_run(
    table: BronzeTable, partition: str, bench: Workbench, options: Options, started: dt.datetime
) -> LoadRecord:
    _scope(table, partition, bench.moment())
    snapshot = bench.source.snapshot()
    scope = _scope(table, partition, snapshot.taken)
    log = BatchLog(bench.lake, table, bench.clock, partition)
    position = source_position(log.epoch(snapshot.epoch), snapshot.lsn, 0)
    versions = None
    if bench.lake.exists(table.schema, table.name):
        versions = bench.lake.read(bench.session, table.schema, table.name)
    with snapshot.reading(table):
        source = _contract(table, snapshot, scope, options)
        frames = _frames(table, bench, scope, snapshot, source, options)
        counted, observation = frames.counted(frames.outcomes(frames.judged(), versions))
        counted.write.format("noop").mode("overwrite").save()
    record = frames.record(observation.get, partition, log.next_id(partition), started, bench.clock(), position)
    return replace(record, dry_run=True)
