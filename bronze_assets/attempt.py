"""One attempt to load a table: its batches, committed step by step and noted in the batch log.

rows, counted in the same pass → quarantine → audit row → done. Whoever loads the table next can finish what was
interrupted at any of these steps (design: semantics.md, batches).
"""

from __future__ import annotations

import datetime as dt
import functools
import logging
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from bronze_assets import audit, engine
from bronze_assets.audit import LoadRecord
from bronze_assets.batches import Batch, BatchLog
from bronze_assets.errors import ConservationError
from bronze_assets.frames import Frames
from bronze_assets.privacy.protection import Protection
from bronze_assets.table import LOAD_DATE, BronzeTable
from bronze_assets.workbench import Options, Run, Workbench

logger = logging.getLogger(__name__)


@dataclass
class Attempt:
    """One call of `load.load`, from the lease to the record.

    Attributes:
        batch: the batch that is being loaded, or was last.
    """

    table: BronzeTable
    partition: str
    bench: Workbench
    run: Run
    options: Options
    started: dt.datetime
    log: BatchLog = field(init=False)
    batch: Batch | None = None

    @functools.cached_property
    def protection(self) -> Protection | None:
        """The protection of the table's personal data; None if it has none.

        Raises:
            KeyMissing, KeyRefused: it cannot be protected; nothing was written.
        """
        if not self.table.has_personal_data:
            return None
        bench = self.bench
        writes = not self.options.dry_run
        return Protection(bench.session, bench.lake, bench.ring, self.table, bench.clock, writes=writes)

    def open_log(self) -> None:
        """Read the batch log; only under the lease, or it may change behind this attempt."""
        self.log = BatchLog(self.bench.lake, self.table, self.bench.clock, self.partition)

    def versions(self, size_rows: int, version: int, without: str) -> DataFrame | None:
        """The row versions that the table has, without those that `without`, an SQL condition, selects."""
        if not size_rows:
            return None
        stored = self.bench.lake.read(self.bench.session, self.table.schema, self.table.name, version=version)
        return stored.where(~F.coalesce(F.expr(without), F.lit(False)))

    def commit(
        self,
        batch: Batch,
        frames: Frames,
        *,
        started: dt.datetime,
        versions: DataFrame | None,
        base: int,
        position: str,
        replace_where: str | None,
        input_bytes: int,
        complete: Callable[[LoadRecord], LoadRecord | None] = lambda record: record,
        more_quarantine: DataFrame | None = None,
        settle: Callable[[LoadRecord], None] | None = None,
    ) -> LoadRecord | None:
        """Commit the batch's rows, then its quarantine; both counted in one pass.

        Args:
            versions: what the rows are compared with.
            base: the version of the table that `versions` is of.
            position: of the batch, where its rows have none of their own.
            replace_where: SQL condition for the rows in whose place the batch's come; None appends.
            input_bytes: about how much is read.
            complete: completes the record before it is noted; None if the batch is to be done again.
            more_quarantine: quarantine rows that are no rows read.
            settle: what is done with the quarantine instead of adding the batch's bad rows to it.

        Returns:
            The record; None if the batch is to be done again.
        """
        table, lake, batch_id = self.table, self.bench.lake, batch.id
        with engine.sized(self.bench.session, input_bytes):
            judged = frames.judged()
            counted, told = frames.counted(frames.outcomes(judged, versions))
            # One moment for all batches: it is a constant in Spark's code, which would be compiled anew for each.
            rows = frames.versions(counted, batch_id, position, self.started)
            by = table.layout.partition_by
            if versions is not None and by and by != LOAD_DATE and input_bytes > engine.SMALL_BYTES:
                # The comparison has put them together by their keys.
                rows = engine.gathered(rows, by)
            commit = lake.append(
                rows,
                table,
                batch_id,
                base=base,
                replace_where=replace_where,
                new_columns=bool(frames.extra),
            )
            counts = told()
            record = frames.record(counts, self.partition, batch_id, started, self.bench.clock(), position)
            due, written = record.loaded + record.deleted, commit.metrics.get("numOutputRows")
            # What replaces others counts those that stay in the files that it writes anew.
            if replace_where is None and written is not None and int(written) != due:
                raise self._unequal(batch, f"counted {due} rows for the table, and wrote {written}")
            completed = complete(record)
            if completed is None:
                return None
            size = int(commit.metrics.get("numOutputBytes") or 0)
            completed = replace(completed, delta_version=commit.version, bytes_written=size)
            record = self.measured(replace(completed, resumed=batch.attempt > 1))
            self.stage(batch, "main", record, due)
            if settle is not None:
                settle(record)
                self.stage(batch, "quarantine", record, record.quarantined)
                return record
            bad = None
            if record.quarantined:
                bad = frames.quarantine(judged, counts, batch_id, position, started)
            if more_quarantine is not None:
                bad = more_quarantine if bad is None else bad.unionByName(more_quarantine)
            if bad is not None:
                self.quarantine(batch, bad, record)
        return record

    def quarantine(self, batch: Batch, bad: DataFrame, record: LoadRecord) -> None:
        """Commit the quarantine rows of a batch.

        Raises:
            ConservationError: the quarantine does not hold the rows that were counted for it.
        """
        lake = self.bench.lake
        lake.quarantine(bad, self.table, batch.id)
        held = lake.quarantined(self.table, batch.id)
        if held != record.quarantined:
            raise self._unequal(batch, f"counted {record.quarantined} rows for the quarantine, which holds {held}")
        self.stage(batch, "quarantine", record, record.quarantined)

    def _unequal(self, batch: Batch, what: str) -> ConservationError:
        return ConservationError(
            f"batch {batch.id} {what}.",
            "report this as a defect; the next load reads the source anew.",
            table=self.table.name,
        )

    def finish(self, batch: Batch, record: LoadRecord) -> LoadRecord:
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

    def measured(self, record: LoadRecord) -> LoadRecord:
        """The record with the size of the table as it is now."""
        size = self.bench.lake.size(self.table.schema, self.table.name)
        unclassified: tuple[str, ...] = ()
        if self.table.has_personal_data:
            unclassified = tuple(self.bench.lake.undeclared(self.table))
        return replace(
            record,
            unclassified=unclassified,
            table_rows=size.rows,
            table_bytes=size.bytes,
            table_files=size.files,
            partition_rows=self.log.partition_rows(self.partition) + record.loaded + record.deleted - record.replaced,
            bytes_day_ago=self.log.bytes_a_day_before(record.ended),
        )

    def stage(self, batch: Batch, stage: str, record: LoadRecord, rows: int) -> None:
        """Note that a step of the batch is committed."""
        self.log.note(batch, stage, run_id=self.run.id, record=record)
        seconds = (self.bench.clock() - record.started).total_seconds()
        logger.info("%s: batch %s: %s committed, %d rows, %.1f s", self.table.name, batch.id, stage, rows, seconds)

    def record_failure(self, error: BaseException) -> None:
        """Write the FAILED audit row; a batch of which nothing was committed is closed, any other left to finish."""
        batch, table = self.batch, self.table
        recorded = write_failure(self.bench, table, error, self.started, batch.id if batch else None, self.run)
        if not recorded or batch is None or batch.finished:
            return
        try:
            # A batch of files still has what it has claimed: it is for the next load to do again or to give up.
            landed = batch.of_files or self.bench.lake.committed(table.schema, table.name, batch.id) is not None
            self.log.note(batch, "stopped" if landed else "failed", run_id=self.run.id)
        except Exception as second:
            _warn_unrecorded(table, second)


def write_failure(
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
