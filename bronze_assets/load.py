"""The walk of a batch: what one load of one partition does, from the source's rows to the record.

source state → contract → typed columns, outcome, score and hash in one projection → Delta commit of the loaded rows,
counted in the same pass → quarantine → audit row. `snapshot_load` and `file_load` say what a batch reads, `attempt`
commits it.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

from pyspark.sql import DataFrame, Window
from pyspark.sql import functions as F

from bronze_assets import audit
from bronze_assets.attempt import Attempt, write_failure
from bronze_assets.audit import LoadRecord
from bronze_assets.batches import Batch
from bronze_assets.classification import classify
from bronze_assets.errors import BronzeError, LoadRefused
from bronze_assets.file_load import FileLoad
from bronze_assets.frames import ACTIVE
from bronze_assets.leases import lease
from bronze_assets.replay_load import resume_replay
from bronze_assets.settings import CaptureMode
from bronze_assets.snapshot_load import SnapshotLoad
from bronze_assets.table import BronzeTable
from bronze_assets.workbench import Options, Run, Workbench

logger = logging.getLogger(__name__)


def load(table: BronzeTable, partition: str, bench: Workbench, run: Run, options: Options = Options()) -> LoadRecord:
    """Load what is outstanding for a partition, and first settle what an interrupted load left.

    A table of files is loaded from the files that have arrived in that partition. A captured table likewise, and from
    a snapshot of the source as long as none meets the captured changes. For any other table the current partition is
    compared with the whole source, and a past day is loaded from the source's rows of that day where the table declares
    an event date, else refused.

    Args:
        partition: Dagster's partition key: `YYYY-MM-DD`, or `YYYY-MM-DD-HH:MM` for hourly tables; UTC.

    Returns:
        What was done; the batches of a partition together.

    Raises:
        LoadRefused: an option does not apply to the table; nothing was begun.
        BronzeError: see `errors`. An audit row FAILED has been written where the lake allows it.
    """
    _check_options(table, options)
    started = bench.clock()
    attempt = Attempt(table, partition, bench, run, options, started)
    if options.dry_run:
        attempt.open_log()
        records = [part.dry_run() for part in _parts(attempt)]
        return replace(audit.combine(records), dry_run=True)
    try:
        bench.lake.check_writable(table)
        with lease(bench.lake, table.schema, table.name, run.id, bench.settings.lease_seconds), keys_held(attempt):
            return _load(attempt)
    except BaseException as error:
        attempt.record_failure(error)
        raise


@contextmanager
def keys_held(attempt: Attempt) -> Iterator[None]:
    """While a load of personal data is at work, no key is dropped: whoever erases somebody waits for it."""
    if not attempt.table.has_personal_data:
        yield
        return
    with attempt.bench.lake.held(attempt.table.schema):
        yield


def _check_options(table: BronzeTable, options: Options) -> None:
    if options.reload and table.feed is None:
        raise LoadRefused("`reload` is for tables of files.", "load without it.", table=table.name)
    if table.files is None:
        return
    for name in ("snapshot", "full_compare", "max_rows", "read_connections"):
        if getattr(options, name):
            raise LoadRefused(
                f"`{name}` is for tables of a database, and this one is loaded from files.",
                "load without it.",
                table=table.name,
            )


def _load(attempt: Attempt) -> LoadRecord:
    attempt.open_log()
    parts = _parts(attempt)
    for part in parts:
        # Refused at once, before a connection or a JVM is started for it.
        part.check_partition()
    again = settle(attempt)
    classify(attempt)
    records = [record for part in parts for record in part.load(again)]
    if not records:
        nothing = LoadRecord(
            attempt.table.name,
            attempt.table.schema,
            attempt.partition,
            batch_id="",
            scope="nothing new",
            started=attempt.started,
            ended=attempt.bench.clock(),
        )
        records = [attempt.measured(nothing) if attempt.bench.lake.exists(*_place(attempt.table)) else nothing]
    record = audit.combine(records)
    for part in parts:
        if isinstance(part, FileLoad):
            record = part.standing(record)
    return record


def _place(table: BronzeTable) -> tuple[str, str]:
    return table.schema, table.name


def _parts(attempt: Attempt) -> list[SnapshotLoad | FileLoad]:
    """What is outstanding, in the order in which it is loaded."""
    table = attempt.table
    captured = attempt.bench.settings.capture is not CaptureMode.OFF and table.feed is not None
    parts: list[SnapshotLoad | FileLoad] = []
    if table.files is None:
        snapshot = SnapshotLoad(attempt)
        if not captured or attempt.options.snapshot or snapshot.outstanding():
            parts.append(snapshot)
    if captured or table.files is not None:
        parts.append(FileLoad(attempt))
    return parts


def settle(attempt: Attempt, *, redo: bool = True) -> Batch | None:
    """Finish or give up what earlier loads left.

    Args:
        redo: whether the caller does the snapshot batch of its partition again; else that is taken back too.

    Returns:
        That batch.
    """
    again = None
    table, lake = attempt.table, attempt.bench.lake
    for batch in attempt.log.unfinished():
        told = {"stopped", "audited"} & set(batch.events) or audit.has_success(lake, table, batch.id)
        if not told:
            audit.write_failure(
                lake,
                table,
                f"{table.name}: the process of run {batch.run_id} ended before batch {batch.id} was done."
                " Fix: none needed, this run takes it up.",
                started=batch.started,
                ended=attempt.bench.clock(),
                batch_id=batch.id,
                run_id=batch.run_id,
                trigger="killed",
            )
        if batch.of_quarantine:
            resume_replay(attempt, batch)
            continue
        if batch.of_files:
            FileLoad(attempt).resume(batch)
            continue
        held = lake.quarantined(table, batch.id)
        if "main" in batch.events and batch.record is not None and batch.record.quarantined == held:
            logger.info("%s: batch %s: all its rows are in the lake, finishing it", table.name, batch.id)
            attempt.finish(batch, replace(batch.record, resumed=True))
            continue
        if held:
            lake.empty_quarantine(attempt.bench.session, table, batch.id)
        if redo and batch.partition == attempt.partition and again is None:
            logger.info("%s: batch %s: interrupted, doing it again", table.name, batch.id)
            again = batch
        else:
            logger.info("%s: batch %s: interrupted and past, taking it back", table.name, batch.id)
            if lake.committed(table.schema, table.name, batch.id) is not None:
                lake.remove_batch(attempt.bench.session, table, batch.id)
            attempt.log.note(batch, "failed", run_id=attempt.run.id)
    return again


def make_ready(
    bench: Workbench,
    tables: Sequence[BronzeTable],
    *,
    trigger: str,
    waits: Sequence[float],
    first: Callable[[], None] = lambda: None,
) -> None:
    """Make sure that the source answers and Spark starts, before each of many tables finds out by itself.

    Args:
        tables: that are to be loaded; each gets a FAILED audit row if one of the two cannot be had.
        waits: seconds before each further try at a source that does not answer.
        first: is called before the snapshot is taken.

    Raises:
        SourceUnreachable: no answer, also after the last wait.
        SourceRefused: the server said no; asked once.
        SettingsError: the source's URL cannot be had or is malformed.
        EngineError: Spark does not start.
    """
    started = bench.clock()
    for wait in (*waits, None):
        try:
            first()
            bench.source.snapshot()
            _ = bench.session
            return
        except BronzeError as error:
            if error.retryable and wait is not None:
                bench.say(f"{error} Trying again in {wait:.0f} s.")
                time.sleep(wait)
                continue
            for table in tables:
                write_failure(bench, table, error, started, None, Run("not begun", trigger))
            raise


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
