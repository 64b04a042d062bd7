"""Snapshot loads: what a source table holds at one moment, compared with the latest version of each key."""

from __future__ import annotations

import datetime as dt
import logging
from collections.abc import Iterator

from pyspark.sql import functions as F
from pyspark.sql import types as T

from bronze_assets import capture
from bronze_assets.attempt import Attempt
from bronze_assets.audit import LoadRecord
from bronze_assets.batches import Batch, BatchLog
from bronze_assets.errors import LoadRefused, PartitionRefused
from bronze_assets.snapshot_frames import SnapshotFrames
from bronze_assets.sources.postgres import Snapshot, SourceTable
from bronze_assets.sources.scope import FULL, Scope
from bronze_assets.storage import spark_literal
from bronze_assets.table import BronzeTable, Cadence
from bronze_assets.workbench import Options, current_partition

logger = logging.getLogger(__name__)

_ROW_BYTES = 40


class SnapshotLoad:
    """The snapshot batches of one attempt."""

    def __init__(self, attempt: Attempt) -> None:
        self._attempt = attempt

    def check_partition(self) -> None:
        """Raise `PartitionRefused` if the source cannot tell what the partition holds."""
        _scope(self._attempt.table, self._attempt.partition, self._attempt.bench.moment())

    def outstanding(self) -> bool:
        """Whether a captured table lacks a snapshot that meets the captured changes, or a past day is asked for that
        the source can tell.
        """
        attempt = self._attempt
        if is_past(attempt):
            # A late file is no reason to read that day of the source anew.
            return attempt.table.event_date is not None and attempt.run.trigger in ("manual", "backfill")
        return snapshot_is_due(attempt.log, attempt.table, self._capture())

    def load(self, again: Batch | None) -> Iterator[LoadRecord]:
        """Load what has changed.

        Args:
            again: an interrupted batch of this partition, whose place the first batch takes.
        """
        attempt, lake, table = self._attempt, self._attempt.bench.lake, self._attempt.table
        snapshot = attempt.bench.source.snapshot()
        scope = _scope(table, attempt.partition, snapshot.taken)
        with snapshot.reading(table):
            source = _contract(table, snapshot, scope, attempt.options)
            lake.ensure(attempt.bench.session, table)
            for part in self._plan(scope, snapshot, source):
                batch_id = again.id if again else attempt.log.next_id(attempt.partition)
                replaces = again is not None and lake.committed(table.schema, table.name, batch_id) is not None
                yield self._batch(batch_id, part, snapshot, source, replaces)
                again = None

    def dry_run(self) -> LoadRecord:
        """What a load would do now; nothing is written."""
        attempt, bench, table = self._attempt, self._attempt.bench, self._attempt.table
        _scope(table, attempt.partition, bench.moment())
        snapshot = bench.source.snapshot()
        scope = _scope(table, attempt.partition, snapshot.taken)
        position = source_position(attempt.log.epoch(self._epoch(snapshot)), snapshot.lsn, 0)
        versions = None
        if bench.lake.exists(table.schema, table.name):
            versions = bench.lake.read(bench.session, table.schema, table.name)
        with snapshot.reading(table):
            source = _contract(table, snapshot, scope, attempt.options)
            frames = self._frames(scope, snapshot, source)
            counted, told = frames.counted(frames.outcomes(frames.judged(), versions))
            counted.write.format("noop").mode("overwrite").save()
            counts = told()
        batch_id = attempt.log.next_id(attempt.partition)
        return frames.record(counts, attempt.partition, batch_id, attempt.started, bench.clock(), position)

    def _batch(
        self, batch_id: str, scope: Scope, snapshot: Snapshot, source: SourceTable, replaces: bool
    ) -> LoadRecord:
        attempt, bench, table = self._attempt, self._attempt.bench, self._attempt.table
        started = bench.clock()
        size = bench.lake.size(table.schema, table.name)
        epoch = self._epoch(snapshot)
        batch = attempt.batch = attempt.log.begin(batch_id, attempt.partition, attempt.run.id, scope, epoch)
        position = source_position(batch.epoch, snapshot.lsn, 0)
        logger.info("%s: batch %s: reading %s", table.name, batch_id, scope)
        own = f"batch_id = {spark_literal(batch_id)}"
        versions = attempt.versions(size.rows, size.version, without=own)
        if versions is not None:
            versions = versions.where(F.col("source_position") <= position)
        record = attempt.commit(
            batch,
            self._frames(scope, snapshot, source),
            started=started,
            versions=versions,
            base=size.version,
            position=position,
            replace_where=own if replaces else None,
            # A row of these tables is some 40 bytes; what it is compared with comes to it.
            input_bytes=source.estimated_rows * _ROW_BYTES + size.bytes,
        )
        assert record is not None
        return attempt.finish(batch, record)

    def _capture(self) -> capture.Manifest | None:
        return capture.manifest(self._attempt.bench.settings.landing, self._attempt.table.schema)

    def _epoch(self, snapshot: Snapshot) -> str:
        state = self._capture()
        return state.epoch_of(snapshot.epoch) if state is not None else snapshot.epoch

    def _frames(self, scope: Scope, snapshot: Snapshot, source: SourceTable) -> SnapshotFrames:
        bench, options = self._attempt.bench, self._attempt.options
        return SnapshotFrames(
            bench.session,
            self._attempt.table,
            snapshot,
            source,
            scope,
            today=bench.business_date(snapshot.taken),
            connections=options.read_connections or bench.settings.read_connections,
            full_compare=options.full_compare,
            protection=self._attempt.protection,
        )

    def _plan(self, scope: Scope, snapshot: Snapshot, source: SourceTable) -> Iterator[Scope]:
        """The scopes to load one after the other: one, or for the first load of a very large table, ranges of its key,
        going on where an interrupted first load stopped.
        """
        rows = self._attempt.bench.settings.range_rows
        key = self._attempt.table.key[0]
        done = [b for b in self._attempt.log.batches if b.done]
        ranges = [b for b in done if b.scope_kind == "range"]
        first_load_done = any(b.scope_kind == "full" for b in done) or any(b.scope_high is None for b in ranges)
        if (
            scope.kind != "full"
            or first_load_done
            or len(self._attempt.table.key) > 1
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


def snapshot_is_due(log: BatchLog, table: BronzeTable, state: capture.Manifest | None) -> bool:
    """Whether a captured table has no snapshot that its captured changes go on from.

    Args:
        state: of the capture; None if changes come from elsewhere, or have not been captured yet.
    """
    taken = log.snapshot_position()
    if taken is None or state is None:
        return taken is None
    # Changes from before then are in no file: a snapshot from there on has them.
    start = state.tables.get(table.name)
    return start is not None and taken < source_position(log.epoch(state.source_epoch), start, 0)


def is_past(attempt: Attempt) -> bool:
    """Whether the attempt's partition has ended."""
    return attempt.partition < current_partition(attempt.table.cadence, attempt.bench.moment())


def source_position(epoch: int, lsn: int, sequence: int) -> str:
    """Fixed width, so that text order is source order: epoch / LSN as 16 hex digits / sequence in the transaction."""
    return f"{epoch:04d}/{lsn:016X}/{sequence:010d}"


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
