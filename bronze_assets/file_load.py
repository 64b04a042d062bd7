"""File loads: files that have arrived, claimed in the ledger, loaded as batches, and moved to the archive.

claim → rows → quarantine → loaded → audit row → archived. A file belongs to the batch that the ledger names; an
interrupted batch still has its source state, and is done again with the same files under the same id.
"""

from __future__ import annotations

import datetime as dt
import functools
import logging
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from itertools import groupby
from pathlib import Path
from urllib.parse import unquote

from pyspark.sql import DataFrame
from pyspark.sql import functions as F
from pyspark.sql import types as T

from bronze_assets.attempt import Attempt
from bronze_assets.audit import LoadRecord, combine
from bronze_assets.batches import Batch
from bronze_assets.errors import LoadRefused, PartitionRefused, SchemaMismatch
from bronze_assets.file_frames import FileFrames
from bronze_assets.privacy.holds import in_force
from bronze_assets.schema_versions import SchemaVersions
from bronze_assets.settings import CLUSTER_HOME, CaptureMode, Discovery
from bronze_assets.snapshot_load import is_past
from bronze_assets.sources.autoloader import AUTO_LOADER, FILE_STREAM, discover
from bronze_assets.sources.files import UNKNOWN, ClaimedFiles, UnreadableFiles
from bronze_assets.sources.inspection import Inspected, inspect
from bronze_assets.sources.landing import LandedFile
from bronze_assets.sources.ledger import MAX_ATTEMPTS, FileEvent, FileState, Ledger
from bronze_assets.sources.postgres_types import spark_type
from bronze_assets.sources.scope import FileScope
from bronze_assets.spark_errors import SPARK_ERRORS
from bronze_assets.storage import spark_literal
from bronze_assets.table import LOAD_DATE, Evolution, Loaded, Overwritten
from bronze_assets.workbench import current_partition

_UNREADABLE: tuple[type[Exception], ...] = (UnreadableFiles, *SPARK_ERRORS)
BATCH_BYTES = 16 * 2**30
"""Most bytes of one batch, unless a single file has more: what is interrupted is done again as a whole."""
logger = logging.getLogger(__name__)


class FileLoad:
    """The file batches of one attempt."""

    def __init__(self, attempt: Attempt) -> None:
        self._attempt = attempt
        self._table = attempt.table
        self._bench = attempt.bench
        assert attempt.table.feed is not None
        self._feed = attempt.table.feed
        self._stuck: tuple[int, str | None] = (0, None)
        self._protected = attempt.table.has_personal_data

    # Both are read when they are first asked for: by then, interrupted batches have been settled.
    @functools.cached_property
    def _ledger(self) -> Ledger:
        return Ledger(self._bench.lake, self._table, self._bench.clock, self._attempt.run.id)

    @functools.cached_property
    def _schema(self) -> SchemaVersions:
        return SchemaVersions(self._bench.lake, self._table, self._bench.clock)

    def check_partition(self) -> None:
        """Raise `PartitionRefused` if the partition lies in the future."""
        current = current_partition(self._table.cadence, self._bench.moment())
        if self._attempt.partition > current:
            raise PartitionRefused(
                f"partition {self._attempt.partition} lies in the future.",
                f"materialise the current one, {current}.",
                table=self._table.name,
            )

    def load(self, _again: Batch | None) -> Iterator[LoadRecord]:
        """Load the files that are outstanding in the partition, in batches (`_together`); then archive."""
        if self._protected:
            # A killed load leaves its plain copies, and what it has half archived.
            shutil.rmtree(self._staging(""), ignore_errors=True)
            self._bench.zone.tidy(self._feed)
        # What an interrupted load has moved but not recorded would look like new files in the archive.
        self.archive()
        for inspected in self._inspected(self._outstanding()):
            found = self._sorted_out(inspected)
            for event, states in found.noted.items():
                self._ledger.record(states, event)
            for files, replaces in found.batches():
                yield self._batch(files, replaces)
        self.archive()

    def dry_run(self) -> LoadRecord:
        """What a load would do now; nothing is written."""
        batch_id = self._attempt.log.next_id(self._attempt.partition)
        records = [self._empty(batch_id, ())]
        for inspected in self._inspected(self._outstanding()):
            found = self._sorted_out(inspected)
            records += [self._counted(batch_id, files, replaces) for files, replaces in found.batches()]
        return combine(records)

    def _inspected(self, files: Sequence[LandedFile]) -> Iterator[list[Inspected]]:
        """The files, as many together as a batch may have; inspected while Spark is at work on those before them."""
        with ThreadPoolExecutor(1) as ahead:
            looks = (
                ahead.submit(inspect, self._bench.zone, self._table, part)
                for part in _together(files, self._feed.max_files)
            )
            looking = next(looks, None)
            while looking is not None:
                inspected = looking.result()
                looking = next(looks, None)
                yield inspected

    def _counted(self, batch_id: str, files: Sequence[Inspected], replaces: bool) -> LoadRecord:
        """What a batch of these files would count."""
        attempt, lake = self._attempt, self._bench.lake
        readable = [one for one in files if one.problem is None]
        record = self._empty(batch_id, files)
        if not readable:
            return record
        extra = self._extra()
        size = lake.size(self._table.schema, self._table.name) if self._exists() else None
        others = _of_files([one.file.path for one in files]) if replaces else "false"
        versions = attempt.versions(size.rows, size.version, without=others) if size else None
        try:
            frames = self._frames(batch_id, readable, extra, versions)
            counted, told = frames.counted(frames.outcomes(frames.judged(), versions))
            counted.write.format("noop").mode("overwrite").save()
            done = frames.record(told(), attempt.partition, batch_id, attempt.started, self._bench.clock(), "")
        finally:
            shutil.rmtree(self._staging(batch_id), ignore_errors=True)
        return replace(done, files=record.files, files_quarantined=record.files_quarantined)

    def resume(self, batch: Batch) -> None:
        """Finish an interrupted batch, with the files that it has claimed."""
        attempt = self._attempt
        attempt.batch = batch
        claimed = self._ledger.batch(batch.id)
        complete = batch.record is not None and (
            "quarantine" in batch.events or not (batch.record.quarantined or batch.record.files_quarantined)
        )
        if "main" in batch.events and complete and batch.record is not None:
            logger.info("%s: batch %s: all its rows are in the lake, finishing it", self._table.name, batch.id)
            self._close(batch, replace(batch.record, resumed=True), claimed)
            return
        if not claimed:
            logger.info("%s: batch %s: interrupted before it claimed a file", self._table.name, batch.id)
            attempt.log.note(batch, "failed", run_id=attempt.run.id)
            return
        logger.info("%s: batch %s: interrupted, doing it again", self._table.name, batch.id)
        there = {state.path: self._bench.zone.find(state.path, state.archived_as) for state in claimed}
        found = inspect(self._bench.zone, self._table, [file for file in there.values() if file is not None])
        closed = next((one for one in found if one.unopened), None)
        if closed is not None:
            raise LoadRefused(
                f"{closed.file.path!r}, of the interrupted batch {batch.id}: {closed.unopened}.",
                "give the process access to it, or remove it, then load again.",
                table=self._table.name,
            )
        same = {one.file.path: one for one in found if not one.moving}
        files = [same[s.path] for s in claimed if s.path in same and same[s.path].content_hash == s.content_hash]
        lost = [state for state in claimed if state.path not in {one.file.path for one in files}]
        if lost:
            self._take_back(batch, claimed)
        # What has changed or gone since it was claimed is no part of this batch any more.
        self._ledger.record(lost, FileEvent.FAILED, error="the file was changed or removed while it was being loaded")
        if not files:
            attempt.log.note(batch, "failed", run_id=attempt.run.id)
            return
        if self._bench.lake.exists(self._table.schema, self._table.quarantine_name):
            self._bench.lake.empty_quarantine(self._bench.session, self._table, batch.id)
        self._load(batch.id, files, batch.partition, replaces=batch.scope_kind == FileScope(0, again=True).kind)

    def _take_back(self, batch: Batch, claimed: Sequence[FileState]) -> None:
        """Bring back the rows in whose place an interrupted batch has put those of its files."""
        lake, session, table = self._bench.lake, self._bench.session, self._table
        landed = lake.committed(table.schema, table.name, batch.id)
        if landed is None:
            return
        own = f"batch_id = {spark_literal(batch.id)}"
        if batch.scope_kind != FileScope(0, again=True).kind:
            lake.remove_batch(session, table, batch.id)
            return
        condition = f"({_of_files([state.path for state in claimed])} or {own})"
        before = lake.read(session, table.schema, table.name, version=landed - 1).where(condition).drop(LOAD_DATE)
        base = lake.version(table.schema, table.name)
        lake.append(before, table, batch.id, base=base, replace_where=condition)

    def archive(self) -> None:
        """Do with every loaded file what the table's policy says; safe to repeat. What cannot be moved is loaded all
        the same: `standing` tells of it, and the next load tries again.
        """
        zone, now = self._bench.zone, self._bench.clock()
        if self._feed.loaded is Loaded.DELETE and in_force(self._bench.lake, self._table):
            # They go when the hold is over.
            return
        loaded = [s for s in self._ledger.files.values() if s.event is FileEvent.LOADED and s.leaves(self._feed, now)]
        moved: list[FileState] = []
        held: list[tuple[FileState, OSError]] = []
        for state in loaded:
            try:
                file = zone.find(state.path, None)
                # Another file under this name is for the next load, not for the archive.
                if file is not None and not state.is_of(file):
                    continue
                if self._feed.loaded is Loaded.DELETE:
                    if file is not None:
                        zone.remove(file)
                    moved.append(state)
                    continue
                if file is None:
                    file = LandedFile(state.path, state.size, state.modified, state.path)
                ring = self._bench.ring if self._protected else None
                place = zone.archive(file, state.partition, str(state.content_hash), ring=ring)
                moved.append(replace(state, archived_as=place))
            except OSError as why:
                held.append((state, why))
        event = FileEvent.DELETED if self._feed.loaded is Loaded.DELETE else FileEvent.ARCHIVED
        self._ledger.record(moved, event)
        if moved:
            logger.info("%s: %d loaded files %s", self._table.name, len(moved), event)
        if held:
            state, reason = held[0]
            words = (
                f"{state.path!r} cannot be moved out of the landing zone ({reason.strerror or type(reason).__name__})."
                " Fix: give the process write access to landing zone and archive; the next load moves it."
            )
            logger.warning("%s: %d loaded files stay where they are; %s", self._table.name, len(held), words)
            self._stuck = len(held), words
        else:
            self._stuck = 0, None

    def standing(self, record: LoadRecord) -> LoadRecord:
        """The record with what still waits of the feed after the load, in all partitions."""
        waiting = self._ledger.outstanding(self._listed())
        oldest = min((file.modified for file in waiting), default=None)
        stuck_files, stuck = self._stuck
        today = current_partition(self._table.cadence, self._bench.moment())
        hopeful = [] if self._schema.proposed() else [file for file in waiting if not self._given_up(file)]
        return replace(
            record,
            has_files=True,
            backlog_files=len(waiting),
            waiting_partitions=tuple(sorted({self._ledger.partition_of(file, today) for file in hopeful})),
            backlog_seconds=None if oldest is None else (self._bench.clock() - oldest).total_seconds(),
            stuck_files=stuck_files,
            stuck=stuck,
        )

    def _given_up(self, file: LandedFile) -> bool:
        """Whether it has failed so often that only a person loads it again."""
        state = self._ledger.files.get(file.path)
        return state is not None and state.event is FileEvent.FAILED and state.attempt >= MAX_ATTEMPTS

    def _outstanding(self) -> list[LandedFile]:
        zone, partition = self._bench.zone, self._attempt.partition
        today = current_partition(self._table.cadence, self._bench.moment())
        if self._attempt.options.reload:
            return self._reloaded()
        files = self._found(today)
        if is_past(self._attempt):
            # Whatever was archived has been loaded once, also what a later version of the file has replaced.
            known = self._ledger.archived_places()
            # What lies in the landing zone under the same name came later; or what it was to replace is kept.
            kept = self._feed.overwritten is Overwritten.IGNORE
            archived = {f.path: f for f in zone.archived(self._feed, partition) if f.location not in known}
            landed = {file.path: file for file in files}
            files = list(({**landed, **archived} if kept else {**archived, **landed}).values())
        # By the clock, not as of the run's snapshot: what arrived just before that one has long settled.
        now = self._bench.clock()
        settled = now - dt.timedelta(seconds=self._feed.settle_seconds)
        return [
            file
            for file in sorted(self._ledger.outstanding(files), key=lambda file: file.path)
            if self._ledger.partition_of(file, today) == partition
            # A clock that goes ahead where the file was written must not hold it back for ever.
            and (file.modified <= settled or file.modified > now + dt.timedelta(minutes=1))
        ]

    def _found(self, today: str) -> list[LandedFile]:
        settings, zone = self._bench.settings, self._bench.zone
        # A stream notes what it has found.
        if settings.discovery is Discovery.LISTING or self._attempt.options.dry_run:
            return self._listed()
        if zone.has(self._feed):
            self._discover(today)
        found = [zone.find(state.path, state.archived_as) for state in self._ledger.proposed()]
        return [file for file in found if file is not None]

    def _listed(self) -> list[LandedFile]:
        return self._ledger.with_undone(self._bench.zone.files(self._feed), self._bench.zone)

    def _discover(self, today: str) -> None:
        settings = self._bench.settings
        discover(
            self._bench.session,
            self._ledger,
            self._feed,
            landing=settings.landing,
            state=f"{settings.lake}/_discovery/{self._table.schema}/{self._table.name}",
            today=today,
            reader=AUTO_LOADER if settings.discovery is Discovery.AUTOLOADER else FILE_STREAM,
        )

    def _reloaded(self) -> list[LandedFile]:
        """All files of the partition that the ledger knows, wherever they lie now."""
        partition = self._attempt.partition
        states = [s for s in self._ledger.files.values() if s.partition == partition and s.event is not FileEvent.SEEN]
        found = {state.path: self._where(state) for state in states}
        # One that never brought a row may have been removed, as its quarantine row suggests.
        gone = sorted(s.path for s in states if found[s.path] is None and s.rows is not None and s.error is None)
        if gone:
            raise LoadRefused(
                f"partition {partition} cannot be loaded again: {gone[0]!r}"
                f"{f' and {len(gone) - 1} more' if len(gone) > 1 else ''} of its files are gone. Nothing was changed.",
                "bring them back into the landing zone, or load without `reload`.",
                table=self._table.name,
            )
        return sorted((file for file in found.values() if file is not None), key=lambda file: file.path)

    def _where(self, state: FileState) -> LandedFile | None:
        """Where the file lies that the table's rows are of."""
        kept = self._feed.overwritten is Overwritten.IGNORE
        return self._bench.zone.find(state.path, state.archived_as, archived_first=kept)

    def _sorted_out(self, files: Sequence[Inspected]) -> _SortedOut:
        found = _SortedOut()
        for one in files:
            before = self._ledger.files.get(one.file.path)
            if one.moving:
                logger.info("%s: %s is still being written, and waits", self._table.name, one.file.path)
            elif one.unopened is not None:
                logger.warning("%s: %s: %s", self._table.name, one.file.path, one.unopened)
                found.note(self._state(one, before), FileEvent.FAILED)
            elif self._attempt.options.reload and self._may_replace(one, before):
                found.again.append(one)
            elif before is None or not (before.settled or before.event is FileEvent.CHANGED):
                # One that was given up may have been loaded before, with other content.
                (found.fresh if before is None or before.rows is None else found.again).append(one)
            elif before.content_hash == one.content_hash:
                looks = replace(before, size=one.file.size, modified=one.file.modified)
                found.note(looks, FileEvent.LOADED if before.error is None else FileEvent.QUARANTINED)
            elif self._feed.overwritten is Overwritten.RELOAD or before.error is not None:
                # One that could not be read was never loaded.
                found.again.append(one)
            elif self._feed.overwritten is Overwritten.IGNORE:
                # The hash stays that of the content that was loaded.
                looks = replace(before, size=one.file.size, modified=one.file.modified)
                found.note(looks, FileEvent.IGNORED)
            else:
                raise LoadRefused(
                    f"{one.file.path!r} was overwritten after it had been loaded. Nothing was written.",
                    "remove it, or give it another name if it is to be loaded as well.",
                    table=self._table.name,
                )
        return found

    def _may_replace(self, one: Inspected, before: FileState | None) -> bool:
        """Whether a file that is loaded again on request is what was loaded, or may come in its place."""
        same = before is None or before.content_hash in (None, one.content_hash)
        return same or self._feed.overwritten is Overwritten.RELOAD

    def _batch(self, files: Sequence[Inspected], replaces: bool) -> LoadRecord:
        attempt = self._attempt
        return self._load(attempt.log.next_id(attempt.partition), files, attempt.partition, replaces)

    def _load(self, batch_id: str, files: Sequence[Inspected], partition: str, replaces: bool) -> LoadRecord:
        attempt, lake = self._attempt, self._bench.lake
        started = self._bench.clock()
        scope = FileScope(len(files), again=replaces)
        batch = attempt.batch = attempt.log.begin(batch_id, partition, attempt.run.id, scope, files[0].epoch)
        replaced = self._rows_of(files, partition) if replaces else 0
        claimed = self._claim(batch, files)
        try:
            lake.ensure(self._bench.session, self._table)
            record, claimed = self._commit(batch, files, claimed, started, replaces, replaced)
        except Exception as error:
            if lake.committed(self._table.schema, self._table.name, batch_id) is None:
                why = f"{type(error).__name__}; the run's log has the details"
                if isinstance(error, SchemaMismatch):
                    # It is the table that waits; the files have done nothing wrong.
                    claimed = [replace(state, attempt=state.attempt - 1) for state in claimed]
                self._ledger.record(claimed, FileEvent.FAILED, error=why)
            raise
        finally:
            shutil.rmtree(self._staging(batch_id), ignore_errors=True)
        return self._close(batch, record, claimed)

    def _rows_of(self, files: Sequence[Inspected], partition: str) -> int:
        """Row versions that these files brought before, in the same partition."""
        before = [self._ledger.files.get(one.file.path) for one in files]
        return sum(s.rows or 0 for s in before if s is not None and s.partition == partition)

    def _claim(self, batch: Batch, files: Sequence[Inspected]) -> list[FileState]:
        states = [self._state(one, self._ledger.files.get(one.file.path), batch) for one in files]
        self._ledger.record(states, FileEvent.CLAIMED)
        return states

    def _state(self, one: Inspected, before: FileState | None, batch: Batch | None = None) -> FileState:
        return FileState(
            one.file.path,
            FileEvent.CLAIMED,
            one.file.size,
            one.file.modified,
            batch.partition if batch else self._attempt.partition,
            content_hash=one.content_hash or None,
            batch_id=batch.id if batch else None,
            rows=before.rows if before else None,
            attempt=before.attempt + 1 if before else 1,
            archived_as=one.file.location if one.file.archived else before.archived_as if before else None,
            error=one.problem or one.unopened,
        )

    def _commit(
        self,
        batch: Batch,
        files: Sequence[Inspected],
        claimed: list[FileState],
        started: dt.datetime,
        replaces: bool,
        replaced: int,
    ) -> tuple[LoadRecord, list[FileState]]:
        attempt, lake, session = self._attempt, self._bench.lake, self._bench.session
        readable = [one for one in files if one.problem is None]
        unreadable = [one for one in files if one.problem is not None]
        extra = self._extra()
        joined: list[str] = []
        self._refuse_unaccepted(batch.id, readable, extra)
        logger.info("%s: batch %s: reading %s", self._table.name, batch.id, FileScope(len(files), again=replaces))
        if replaces:
            lake.forget_quarantined(session, self._table, [one.file.path for one in files], batch.id)
        while True:
            size = lake.size(self._table.schema, self._table.name)
            landed = lake.committed(self._table.schema, self._table.name, batch.id) is not None
            own = f"batch_id = {spark_literal(batch.id)}"
            replace_where = own if landed else None
            if replaces:
                # An interrupted attempt may have brought rows of a file that is gone since.
                replace_where = f"({_of_files([one.file.path for one in files])} or {own})"
            versions = attempt.versions(size.rows, size.version, without=replace_where or own)
            frames = self._frames(batch.id, readable, extra, versions)
            if not readable:
                record = self._nothing_readable(batch, frames, unreadable, started, replace_where, replaced)
                break
            joining: list[str] = []

            def complete(
                record: LoadRecord,
                joining: list[str] = joining,
                known: Mapping[str, T.DataType] = extra,
                bad: int = len(unreadable),
            ) -> LoadRecord | None:
                joining += self._schema.joining(record.new_columns, known)
                whole = replace(record, files=len(files), files_quarantined=bad, replaced=replaced)
                return None if joining else whole

            try:
                committed = attempt.commit(
                    batch,
                    frames,
                    started=started,
                    versions=versions,
                    base=size.version,
                    position="",
                    replace_where=replace_where,
                    input_bytes=sum(one.file.size for one in readable),
                    complete=complete,
                    more_quarantine=frames.whole_files(unreadable, batch.id, started) if unreadable else None,
                )
            except _UNREADABLE as error:
                damaged = error.files if isinstance(error, UnreadableFiles) else _damaged(error, readable, frames.files)
                if not damaged:
                    raise
                problem = "Spark cannot read the file (damaged, or of a kind that it does not know)"
                lost = {one.file.path for one in damaged}
                logger.warning("%s: batch %s: Spark cannot read %s", self._table.name, batch.id, sorted(lost))
                readable = [one for one in readable if one.file.path not in lost]
                unreadable += [replace(one, problem=problem) for one in damaged]
                # Recorded at once: an interrupted batch is finished by what the ledger says of its files.
                changed = [replace(state, error=problem) for state in claimed if state.path in lost]
                self._ledger.record(changed, FileEvent.CLAIMED)
                claimed = [state for state in claimed if state.path not in lost] + changed
                continue
            if committed is not None:
                record = committed
                break
            new = self._types(joining)
            logger.info("%s: batch %s: new columns %s", self._table.name, batch.id, ", ".join(new))
            self._schema.record("evolved", new, batch_id=batch.id, actor=f"policy add, run {attempt.run.id}")
            extra |= new
            joined += new
        return replace(record, new_columns=(*joined, *record.new_columns)), claimed

    def _nothing_readable(
        self,
        batch: Batch,
        frames: FileFrames,
        files: Sequence[Inspected],
        started: dt.datetime,
        replace_where: str | None,
        replaced: int,
    ) -> LoadRecord:
        if replace_where is not None:
            self._bench.lake.remove_batch(self._bench.session, self._table, batch.id, where=replace_where)
        record = self._attempt.measured(replace(self._empty(batch.id, files), started=started, replaced=replaced))
        self._attempt.stage(batch, "main", record, 0)
        self._attempt.quarantine(batch, frames.whole_files(files, batch.id, started), record)
        return record

    def _close(self, batch: Batch, record: LoadRecord, claimed: Sequence[FileState]) -> LoadRecord:
        """Settle the batch's files in the ledger, then the batch."""
        rows = self._bench.lake.rows_by_file(self._table, batch.id)
        loaded = [replace(s, rows=rows.get(s.path, 0)) for s in claimed if s.error is None]
        self._ledger.record(loaded, FileEvent.LOADED)
        self._ledger.record([s for s in claimed if s.error is not None], FileEvent.QUARANTINED, rows=0)
        return self._attempt.finish(batch, record)

    def _empty(self, batch_id: str, files: Sequence[Inspected]) -> LoadRecord:
        now = self._bench.clock()
        return LoadRecord(
            self._table.name,
            self._table.schema,
            self._attempt.partition,
            batch_id,
            str(FileScope(len(files))),
            self._attempt.started,
            now,
            files=len(files),
            files_quarantined=sum(one.problem is not None for one in files),
        )

    def _frames(
        self,
        batch_id: str,
        files: Sequence[Inspected],
        extra: Mapping[str, T.DataType],
        versions: DataFrame | None,
    ) -> FileFrames:
        epochs = self._epochs(files)
        # One moment for all batches, see `Attempt.commit`.
        now = self._attempt.started
        return FileFrames(
            self._bench.session,
            self._table,
            ClaimedFiles(self._bench.zone, files, epochs, self._staging(batch_id)),
            now=now,
            today=self._bench.business_date(now),
            extra=extra,
            versions=versions,
            held_back=self._held_back(batch_id) if any(one.unchanged for one in files) else None,
            redelivered=self._feed.captured and self._bench.settings.capture is CaptureMode.EXTERNAL,
            protection=self._attempt.protection,
        )

    def _held_back(self, batch_id: str) -> DataFrame | None:
        lake, table = self._bench.lake, self._table
        if not lake.exists(table.schema, table.quarantine_name):
            return None
        held = lake.read(self._bench.session, table.schema, table.quarantine_name)
        others = held.where((F.col("batch_id") != batch_id) & F.col("source_position").isNotNull())
        return others.select("row_key", "source_position")

    def _epochs(self, files: Sequence[Inspected]) -> dict[str, int]:
        """Source epoch → its ordinal; the empty one for files that name none, as Debezium's do."""
        return {one.epoch: self._attempt.log.epoch_of_changes(one.epoch) for one in files}

    def _refuse_unaccepted(self, batch_id: str, files: Sequence[Inspected], extra: Mapping[str, T.DataType]) -> None:
        """Raise `SchemaMismatch`, before anything is written, if the files have columns that stop the table."""
        if self._feed.evolution is not Evolution.STOP or not files:
            return
        frame = self._frames(batch_id, files, extra, None).judged()
        sets = frame.select(F.explode(UNKNOWN).alias("name")).distinct().collect()
        refused = self._schema.refused((row["name"] for row in sets), extra)
        self._schema.withdraw(refused, batch_id=batch_id, actor=self._attempt.run.id)
        if refused:
            self._schema.record("proposed", self._types(refused), batch_id=batch_id, actor=self._attempt.run.id)
            raise SchemaMismatch(
                f"files have columns that the table does not: {', '.join(map(repr, refused))}. Nothing was written.",
                f"accept them with `python -m bronze_assets accept-schema {self._table.name}`, or mend the files.",
                table=self._table.name,
            )

    def _types(self, names: Sequence[str]) -> dict[str, T.DataType]:
        """The types under which new columns join: a database's own, else STRING, whatever arrived first."""
        if not self._feed.captured:
            return dict.fromkeys(names, T.StringType())
        snapshot = self._bench.source.snapshot()
        with snapshot.reading(self._table):
            source = snapshot.describe(self._table)
        return {name: spark_type(source.extra[name]) if name in source.extra else T.StringType() for name in names}

    def _extra(self) -> dict[str, T.DataType]:
        """Undeclared columns that the table has, or that have been accepted for it."""
        found = dict(self._schema.accepted())
        if self._exists():
            stored = self._bench.lake.read(self._bench.session, self._table.schema, self._table.name).schema
            found |= self._schema.undeclared(stored)
        return found

    def _exists(self) -> bool:
        return self._bench.lake.exists(self._table.schema, self._table.name)

    def _staging(self, batch_id: str) -> Path:
        if self._bench.settings.home == CLUSTER_HOME:
            raise LoadRefused(
                "driver and executors share no folder for copies of its files.",
                "set databricks.staging_volume or databricks.scratch in the settings file to a folder of a volume.",
                table=self._table.name,
            )
        return self._bench.settings.home / "staging" / self._table.name / batch_id.replace("/", "-")


def _together(files: Iterable[LandedFile], most: int) -> Iterator[list[LandedFile]]:
    """The files in their order, in groups of at most so many and of at most `BATCH_BYTES`, but of one file at least."""
    group: list[LandedFile] = []
    size = 0
    for file in files:
        if group and (len(group) == most or size + file.size > BATCH_BYTES):
            yield group
            group, size = [], 0
        group.append(file)
        size += file.size
    if group:
        yield group


def _of_files(paths: Sequence[str]) -> str:
    """SQL condition for the rows that came from these files."""
    return f"file_name in ({', '.join(map(spark_literal, paths))})"


def _damaged(error: Exception, files: Sequence[Inspected], claimed: ClaimedFiles) -> list[Inspected]:
    """The file that Spark names when it cannot read one."""
    named = re.search(r"\[FAILED_READ_FILE[^\]]*\][^\n]*? (?:file|dbfs):/*(/[^\n]*?)\.\s", str(error)[:100_000])
    path = unquote(named[1]) if named else None
    return [one for one in files if claimed.place(one) == path]


@dataclass
class _SortedOut:
    """What is to be done with files.

    Attributes:
        fresh: are new.
        again: are to be loaded in the place of what they brought before.
        noted: event → states of files of which only that is to be recorded.
    """

    fresh: list[Inspected] = field(default_factory=list)
    again: list[Inspected] = field(default_factory=list)
    noted: dict[FileEvent, list[FileState]] = field(default_factory=dict)

    def note(self, state: FileState, event: FileEvent) -> None:
        self.noted.setdefault(event, []).append(state)

    def batches(self) -> Iterator[tuple[list[Inspected], bool]]:
        """Files that are loaded together, all of one source epoch, and whether they replace."""
        for files, replaces in ((self.fresh, False), (self.again, True)):
            for _, batch in groupby(files, key=lambda one: one.epoch):
                yield list(batch), replaces
