"""Restores: a bronze table as it was at a version or a moment, beside it or in its place.

In place, what the platform knows of the table follows: quarantine → table → ledger → batch log → audit row. The rows
come before what is known of them, so that a load in between duplicates nothing; each step may be repeated, and the same
restore again finishes one that was killed. Whoever has been forgotten stays so: rows of erased persons are emptied in
the commit in which they come back (docs/adr/0027).
"""

from __future__ import annotations

import datetime as dt
import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Final

from pyspark.sql import Column as SparkColumn
from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from bronze_assets import audit
from bronze_assets.access import TOMBSTONES
from bronze_assets.batches import Batch, BatchLog
from bronze_assets.errors import LakeError, LoadRefused
from bronze_assets.frames import ACTIVE
from bronze_assets.lakehouse import (
    DISMISSED,
    OPEN,
    QUARANTINE,
    QUARANTINE_IDENTITY,
    RECOVERED,
    RESTORE,
    Lakehouse,
    recovered_name,
)
from bronze_assets.leases import lease
from bronze_assets.privacy import derived
from bronze_assets.privacy.erasure import blanked
from bronze_assets.privacy.protection import ERASED, Protection
from bronze_assets.quality import LINE
from bronze_assets.replay_load import with_all_columns
from bronze_assets.sources.ledger import FileEvent, FileState, Ledger
from bronze_assets.storage import Commit
from bronze_assets.table import BronzeTable
from bronze_assets.workbench import Run, Workbench

logger = logging.getLogger(__name__)

_BATCH = re.compile(r"(\d{4}-\d\d-\d\d\S*/\d+)(?: [0-9a-f]{32})?")
_RESTORED = re.compile(rf"{RESTORE} (\d+) [0-9a-f]{{32}}")
_FENCE = "restore fence "
_CLASSIFIED = "classified "
_QUIET: Final = frozenset(
    {
        *("OPTIMIZE", "VACUUM START", "VACUUM END", "FSCK", "COMPUTE STATS", "ANALYZE", "REORG"),
        *("CREATE TABLE", "ADD COLUMN", "ADD COLUMNS", "CHANGE COLUMN", "CHANGE COLUMNS", "CLUSTER BY"),
        *("SET TBLPROPERTIES", "UNSET TBLPROPERTIES", "UPGRADE PROTOCOL", "ADD FEATURE", "SET TABLE COMMENT"),
    }
)
"""Operations that change no row."""


@dataclass(frozen=True)
class BatchChange:
    """A batch whose rows go or come back.

    Attributes:
        rows: row versions that the batch wrote.
    """

    id: str
    partition: str
    rows: int


@dataclass(frozen=True)
class Plan:
    """What a restore changes, or has changed.

    Attributes:
        version: that is brought back, and `then`, when it was committed.
        current: the version of now.
        rows_now, rows_then: row versions in the table.
        going, coming: row versions that go, and that come back.
        undone, redone: batches whose rows go, and that come back.
        pending: files that wait again.
        lost: of those, the ones that are nowhere any more: nothing loads their rows again.
        quarantine: the version of the quarantine that goes with it; None if the quarantine stays as it is.
        erased_versions, erased_subjects: row versions that would come back with values of forgotten persons, and how
            many persons that is; they come back empty.
        bytes: of the version.
        by_log: whether the table's log alone is written, and no row.
        nothing: whether the table is as it was already.
    """

    table: str
    in_place: bool
    version: int
    then: dt.datetime
    current: int
    rows_now: int
    rows_then: int
    going: int
    coming: int
    undone: tuple[BatchChange, ...]
    redone: tuple[BatchChange, ...]
    pending: tuple[str, ...]
    lost: tuple[str, ...]
    quarantine: int | None
    erased_versions: int
    erased_subjects: int
    bytes: int
    by_log: bool
    nothing: bool

    @property
    def partitions(self) -> tuple[str, ...]:
        """Partitions of which rows go or come back."""
        return tuple(sorted({one.partition for one in (*self.undone, *self.redone)}))

    def lines(self) -> list[str]:
        """The same for people, without a value of a row."""
        where = "in place" if self.in_place else f"beside it, as {self.table}_recovered"
        lines = [
            f"{self.table}: version {self.version} of {self.then:%F %T} UTC, {where}; it is at version {self.current}.",
            f"Row versions: {self.rows_now:,} now, {self.rows_then:,} then; {self.going:,} go, {self.coming:,} come"
            f" back. {self.bytes:,} bytes, {'by the log alone' if self.by_log else 'written anew'}.",
        ]
        if self.erased_versions:
            lines.append(
                f"Forgotten persons: {self.erased_versions:,} row versions of {self.erased_subjects:,} come back empty."
            )
        if not self.in_place:
            return lines
        for word, batches in (("undone", self.undone), ("back", self.redone)):
            lines += [f"Batch {one.id} is {word}: {one.rows:,} row versions." for one in batches[:_SHOWN]]
            lines += [f"… and {len(batches) - _SHOWN:,} more batches."] if len(batches) > _SHOWN else []
        for words, files in (
            ("Waits again", self.pending),
            ("Is gone, and cannot be loaded again", self.lost),
        ):
            lines += [f"{words}: {path!r}." for path in files[:_SHOWN]]
            lines += [f"… and {len(files) - _SHOWN:,} more files."] if len(files) > _SHOWN else []
        if self.quarantine is not None:
            lines.append(f"The quarantine goes back to its version {self.quarantine}; what was dismissed stays so.")
        lines.append(f"Partitions: {', '.join(self.partitions) or 'none'}.")
        if self.nothing:
            lines.append("The table has those rows already.")
        return lines


@dataclass(frozen=True)
class Restored:
    """What a restore has done.

    Attributes:
        place: of the restored table.
        version: that it has now.
        table_rows: row versions in it.
        partition_rows: partition → row versions of its batches, for all of which batches were ever undone; None where
            no batch is left.
        bytes_written: of data files; 0 where the log alone was written.
    """

    plan: Plan
    place: str
    version: int
    table_rows: int
    partition_rows: Mapping[str, int | None]
    seconds: float
    bytes_written: int

    @property
    def words(self) -> str:
        """One line for people."""
        plan = self.plan
        return (
            f"{plan.table}: version {plan.version} is back in {self.place}, as version {self.version}:"
            f" {self.table_rows:,} row versions, {plan.bytes:,} bytes, in {self.seconds:.1f} s."
        )


_SHOWN = 20


class Lineage:
    """The commits of a table, and which of them made what a version holds.

    Args:
        commits: all that are known.
    """

    def __init__(self, commits: Sequence[Commit]) -> None:
        self.by_version = {one.version: one for one in commits}
        self.first = min(self.by_version, default=0)

    def of(self, version: int) -> list[Commit]:
        """The commits that made what the version holds, newest first; restores among them, what they undid not."""
        found = []
        while version in self.by_version:
            commit = self.by_version[version]
            found.append(commit)
            back = self.restored(commit)
            version = version - 1 if back is None else back
        return found

    def rows_of(self, version: int) -> list[int]:
        """The versions of those that have changed rows, and of restores that are none of ours."""
        return [
            c.version for c in self.of(version) if not is_quiet(c) and (self.restored(c) is None or not self.is_ours(c))
        ]

    def restored(self, commit: Commit) -> int | None:
        """The version that a commit has brought back; None if it is no restore."""
        if marked := _RESTORED.fullmatch(commit.mark):
            return int(marked[1])
        if commit.operation != "RESTORE":
            return None
        told = commit.parameters.get("version")
        if told not in (None, "null"):
            return int(told)
        before = [c for c in self.by_version.values() if c.version < commit.version]
        moment = str(commit.parameters.get("timestamp") or commit.parameters.get("datetime") or "")
        try:
            at = dt.datetime.fromisoformat(moment)
        except ValueError:
            return None
        at = at if at.tzinfo else at.replace(tzinfo=dt.UTC)
        return max((c.version for c in before if c.time <= at), default=None)

    def is_ours(self, commit: Commit) -> bool:
        """Whether a restore is one of these."""
        before = self.by_version.get(commit.version - 1)
        return bool(_RESTORED.fullmatch(commit.mark)) or (before is not None and before.mark.startswith(_FENCE))


def is_quiet(commit: Commit) -> bool:
    """Whether it changed no row."""
    return commit.operation in _QUIET or commit.mark.startswith(_FENCE)


def batch_of(commit: Commit) -> str | None:
    """The batch whose commit it is."""
    found = _BATCH.fullmatch(commit.mark)
    return found[1] if found else None


def plan(
    bench: Workbench,
    table: BronzeTable,
    *,
    version: int | None = None,
    at: dt.datetime | None = None,
    in_place: bool = False,
) -> Plan:
    """What a restore would change; nothing is written.

    Args:
        version: of the table that is to be brought back; or
        at: a moment, UTC: the version that was the current one then.

    Raises:
        LakeError: there is no such table or version, or its files are gone.
        LoadRefused: it cannot be restored so; says what can.
    """
    return _Restore(bench, table, version, at, in_place).plan


def restore(
    bench: Workbench,
    table: BronzeTable,
    run: Run,
    *,
    version: int | None = None,
    at: dt.datetime | None = None,
    in_place: bool = False,
    who: str,
    reason: str,
) -> Restored:
    """Bring a version back; may be done again, and then finishes what was killed.

    In place, batches whose rows are gone are undone in the batch log, their files wait again in the ledger, and the
    next load of their partitions brings in what is outstanding. Beside, `<table>_recovered` is written anew.

    Args:
        who: wants it, and why: for the audit log.

    Raises:
        TableBusy: a load, an erasure or another restore of the table is at work.
        LakeError, LoadRefused: as of `plan`; nothing was changed.
    """
    if not who.strip() or not reason.strip():
        raise LoadRefused("a restore needs a reason and somebody who wants it.", "say both.", table=table.name)
    started = bench.clock()
    operation = "restore" if at is None else f"restore to {at:%F %T}"
    operation = operation if version is None else f"{RESTORE} {version}"
    try:
        _check_made(bench.lake, table)
        with _held(bench, table, run, in_place):
            work = _Restore(bench, table, version, at, in_place)
            operation = f"{RESTORE} {work.plan.version}"
            done = work.in_place(run) if in_place else work.beside(run, who)
    except BaseException as error:
        _record(bench, table, run, operation, started, who, reason, error=error)
        raise
    done = replace(done, seconds=(bench.clock() - started).total_seconds())
    _record(bench, table, run, operation, started, who, reason, rows=done.table_rows)
    logger.info("%s", done.words)
    return done


def follow_copy(bench: Workbench, table: BronzeTable, copied_at: dt.datetime, run: Run) -> list[str]:
    """Let batch log and ledger follow a table that has come back from a copy, in its own place: batches that came after
    the copy are undone, and their files wait again. May be repeated.

    Args:
        copied_at: when the copied version was read.

    Returns:
        The batches that were undone.

    Raises:
        TableBusy: a load of the table is at work.
    """
    lake = bench.lake
    with lease(lake, table.schema, table.name, run.id, bench.settings.lease_seconds):
        place = lake.location(table.schema, table.name)
        there = lake.storage.counts(place, "batch_id", lake.version(table.schema, table.name))
        log = BatchLog(lake, table, bench.clock, None)
        # What it copied has rows of a batch that ended later; one without rows is in it if it ended before.
        undone = [
            batch
            for batch in log.batches
            if "main" in batch.events
            and (batch.done or not batch.finished)
            and batch.record is not None
            and batch.record.ended > copied_at
            and not there.get(batch.id)
        ]
        gone = {batch.id for batch in undone}
        if table.feed is not None:
            ledger = Ledger(lake, table, bench.clock)
            _record_all(ledger, ledger.without({batch.id for batch in log.batches if batch.done} - gone, gone))
        for batch in undone:
            log.note(batch, "undone", run_id=run.id)
    return sorted(gone)


@contextmanager
def _held(bench: Workbench, table: BronzeTable, run: Run, in_place: bool) -> Iterator[None]:
    lake = bench.lake
    # Beside, a load does not matter; an erasure does, which would not see the copy.
    if not in_place and not table.has_personal_data:
        yield
        return
    held = lake.held(table.schema) if table.has_personal_data else nullcontext()
    with lease(lake, table.schema, table.name, run.id, bench.settings.lease_seconds), held:
        yield


def _record(
    bench: Workbench,
    table: BronzeTable,
    run: Run,
    operation: str,
    started: dt.datetime,
    who: str,
    reason: str,
    *,
    rows: int = 0,
    error: BaseException | None = None,
) -> None:
    try:
        audit.write_restore(
            bench.lake,
            table,
            operation,
            rows=rows,
            started=started,
            ended=bench.clock(),
            run_id=run.id,
            who=who,
            message=reason if error is None else audit.safe_message(error),
            failed=error is not None,
        )
    except Exception as second:
        # The error that is being recorded matters more than this one.
        if error is None:
            raise
        logger.warning("%s: the failure could not be recorded (%s)", table.name, audit.safe_message(second))


def _check_made(lake: Lakehouse, table: BronzeTable) -> None:
    if not lake.exists(table.schema, table.name):
        raise LakeError(
            f"there is no table at {lake.location(table.schema, table.name)}.",
            "load it first, or check BRONZE_HOME and BRONZE_LAKE.",
            table=table.name,
        )


class _Restore:
    """One restore: its plan is made when it begins, and under the lease nothing changes it."""

    def __init__(
        self, bench: Workbench, table: BronzeTable, version: int | None, at: dt.datetime | None, in_place: bool
    ) -> None:
        self._bench = bench
        self._lake = bench.lake
        self._table = table
        _check_made(bench.lake, table)
        self._place = bench.lake.location(table.schema, table.name)
        self._lineage = Lineage(bench.lake.storage.history(self._place))
        self._current = max(self._lineage.by_version)
        self._version = self._resolved(version, at)
        self._check_files()
        self._log = BatchLog(bench.lake, table, bench.clock, None)
        kept, undone, redone = self._fates()
        self._kept = kept
        self._undone, self._redone = undone, redone
        self._ledger = Ledger(bench.lake, table, bench.clock) if table.feed is not None else None
        if in_place:
            self._check_sound()
        else:
            self._check_beside()
        self.plan = self._planned(in_place)

    def _resolved(self, version: int | None, at: dt.datetime | None) -> int:
        if (version is None) is (at is None):
            raise LoadRefused(
                "a restore goes to a version or to a moment.", "give one of both.", table=self._table.name
            )
        commits = sorted(self._lineage.by_version.values(), key=lambda one: one.version)
        first, last = commits[0], commits[-1]
        known = (
            f"it has the versions {first.version} ({first.time:%F %T} UTC) to {last.version} ({last.time:%F %T} UTC)"
        )
        if version is not None:
            if version not in self._lineage.by_version:
                raise LakeError(f"version {version} is not there.", f"choose another: {known}.", table=self._table.name)
            return version
        assert at is not None
        if not first.time <= at <= last.time:
            early = "before its first" if at < first.time else "after its last"
            raise LakeError(
                f"{at:%F %T} UTC lies {early} known version.", f"choose another: {known}.", table=self._table.name
            )
        return max(one.version for one in commits if one.time <= at)

    def _check_files(self) -> None:
        missing = self._lake.storage.missing_files(self._place, self._version)
        if missing:
            more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
            raise LakeError(
                f"version {self._version} cannot be restored: its files are gone, {', '.join(missing[:3])!r}"
                f"{more if len(missing) > 3 else ''}. Nothing was changed.",
                "choose a later version: removed files are kept for 30 days; or restore a copy.",
                table=self._table.name,
            )

    def _last_commits(self) -> dict[str, int]:
        """Batch → the version of its last commit."""
        commits = sorted(self._lineage.by_version.values(), key=lambda one: one.version)
        return {name: commit.version for commit in commits if (name := batch_of(commit))}

    def _check_sound(self) -> None:
        """Raise `LoadRefused` where what is known of the table cannot follow."""
        there = {c.version: batch_of(c) for c in self._lineage.of(self._version)}
        lineage = self._lineage.of(self._current)
        last = self._last_commits()
        for name in filter(None, there.values()):
            if last[name] not in there:
                versions = [c.version for c in self._lineage.by_version.values() if batch_of(c) == name]
                raise LoadRefused(
                    f"version {self._version} has a part of batch {name}, which was interrupted and done again.",
                    f"choose version {min(versions) - 1}, before it, or {max(versions)}, after it; or restore beside.",
                    table=self._table.name,
                )
        rewritten = [c for c in lineage if c.mark.startswith(_CLASSIFIED) and c.version > self._version]
        if rewritten:
            raise LoadRefused(
                f"version {self._version} is of before version {rewritten[-1].version}, in which columns got the form"
                " that they are declared with.",
                f"choose version {rewritten[-1].version} or a later one, or restore beside.",
                table=self._table.name,
            )

    def _check_beside(self) -> None:
        place = self._lake.location(self._table.schema, recovered_name(self._table))
        if not self._lake.storage.exists(place):
            return
        first = self._lake.storage.history(place)[-1]
        if not first.mark.startswith(f"{RECOVERED} {self._table.name} "):
            raise LoadRefused(
                f"there is a table {recovered_name(self._table)} that no restore has made.",
                "rename or remove it.",
                table=self._table.name,
            )

    def _fates(self) -> tuple[set[str], list[Batch], list[Batch]]:
        """Ids of the batches that have their rows in the version; and those that are to be undone, or done again."""
        last = self._last_commits()
        held = {c.version for c in self._lineage.of(self._version)}
        kept: set[str] = set()
        undone: list[Batch] = []
        redone: list[Batch] = []
        for batch in self._log.batches:
            if "failed" in batch.events:
                continue
            if batch.id in last:
                present = last[batch.id] in held
            elif "main" not in batch.events:
                # Nothing of it has been written: it is for the next load.
                continue
            elif "undone" in batch.events:
                present = batch.done
            else:
                # Older than the history, or a batch of which no row was read: it follows those before it.
                older = batch.record is not None and batch.record.delta_version is not None
                present = older or not undone
            if present:
                kept.add(batch.id)
                if batch.finished and not batch.done:
                    redone.append(batch)
            elif batch.done or not batch.finished:
                undone.append(batch)
        return kept, undone, redone

    def _planned(self, in_place: bool) -> Plan:
        table, storage = self._table, self._lake.storage
        now = storage.counts(self._place, "batch_id", self._current)
        then = storage.counts(self._place, "batch_id", self._version)
        names = set(now) | set(then)
        changes = {name: then.get(name, 0) - now.get(name, 0) for name in names}
        versions, subjects = self._coming_back()
        pending, lost = self._files() if in_place else ((), ())
        nothing = in_place and self._lineage.rows_of(self._current) == self._lineage.rows_of(self._version)
        return Plan(
            table=table.name,
            in_place=in_place,
            version=self._version,
            then=self._lineage.by_version[self._version].time,
            current=self._current,
            rows_now=sum(now.values()),
            rows_then=sum(then.values()),
            going=-sum(n for n in changes.values() if n < 0),
            coming=sum(n for n in changes.values() if n > 0),
            undone=tuple(map(_change, self._undone)),
            redone=tuple(map(_change, self._redone)),
            pending=pending,
            lost=lost,
            quarantine=self._quarantine_version() if in_place else None,
            erased_versions=versions,
            erased_subjects=subjects,
            bytes=storage.bytes_of(self._place, self._version),
            by_log=in_place and not versions,
            nothing=nothing,
        )

    def _protection(self) -> Protection | None:
        """What tells forgotten persons; None where there can be none."""
        bench, table = self._bench, self._table
        if not table.has_personal_data or not self._lake.exists(table.schema, TOMBSTONES):
            return None
        return Protection(bench.session, self._lake, bench.ring, table, bench.clock, writes=False)

    def _coming_back(self) -> tuple[int, int]:
        """Row versions that have values of forgotten persons, and how many persons that is."""
        rows = self._told()
        if rows is None:
            return 0, 0
        keys = [F.col(c.name) for c in self._table.key]
        found = rows.where(_revived()).agg(F.count(F.lit(1)), F.count_distinct(F.struct(*keys))).first()
        assert found is not None
        return int(found[0]), int(found[1])

    def _rows(self) -> DataFrame:
        return self._lake.read(self._bench.session, self._table.schema, self._table.name, version=self._version)

    def _told(self) -> DataFrame | None:
        protection = self._protection()
        return None if protection is None else protection.forgotten(self._rows())

    def _emptied(self) -> DataFrame:
        """The rows of the version, those of forgotten persons without their values, as an erasure leaves them."""
        rows, told = self._rows(), self._told()
        if told is None:
            return rows
        blanks = [*blanked(self._table, rows.columns), "record_hash"]
        values = {name: F.when(~_revived(), F.col(name)) for name in blanks}
        values |= {
            "record_status": F.when(_revived(), "ERASED").otherwise(F.col("record_status")),
            "update_timestamp": F.when(_revived(), F.lit(self._bench.clock())).otherwise(F.col("update_timestamp")),
        }
        return told.withColumns(values).select(*rows.columns)

    def _gone(self) -> set[str]:
        """Batches that have no rows when this is done."""
        before = {b.id for b in self._log.batches if "undone" in b.events and b.id not in self._kept}
        return before | {b.id for b in self._undone}

    def _file_changes(self) -> list[FileState]:
        if self._ledger is None:
            return []
        return self._ledger.without(self._kept, self._gone() | {b.id for b in self._redone})

    def _files(self) -> tuple[tuple[str, ...], tuple[str, ...]]:
        states = [s for s in self._file_changes() if s.event in (FileEvent.UNDONE, FileEvent.CHANGED)]
        lost = [s.path for s in states if self._bench.zone.find(s.path, s.archived_as) is None]
        return tuple(sorted(s.path for s in states)), tuple(sorted(lost))

    def _quarantine_version(self) -> int | None:
        """The version of the quarantine that has what the kept batches put there, and nothing of the others."""
        place = self._lake.location(self._table.schema, self._table.quarantine_name)
        if not self._lake.storage.exists(place):
            return None
        lineage = Lineage(self._lake.storage.history(place))
        current = max(lineage.by_version)
        touched = {batch_of(c) for c in lineage.by_version.values()} - {None}
        wanted = touched & self._kept
        gone = self._gone()

        def has(version: int) -> set[str | None]:
            return {batch_of(c) for c in lineage.of(version)} - {None}

        there = has(current)
        if not there & gone and wanted <= there:
            return None
        for version in sorted(lineage.by_version):
            found = has(version)
            if wanted <= found and not found & gone:
                missing = self._lake.storage.missing_files(place, version)
                if missing:
                    raise LakeError(
                        f"version {version} of {self._table.quarantine_name}, which goes with it, cannot be restored:"
                        f" its files are gone, {missing[0]!r} the first. Nothing was changed.",
                        "choose a later version, or restore beside.",
                        table=self._table.name,
                    )
                return version
        raise LakeError(
            f"the history of {self._table.quarantine_name} does not lead back to that version. Nothing was changed.",
            "choose a later version, or restore beside.",
            table=self._table.name,
        )

    def in_place(self, run: Run) -> Restored:
        """Do what the plan says."""
        lake, table, plan = self._lake, self._table, self.plan
        if plan.quarantine is not None:
            lake.restore_quarantine(self._quarantine_rows(plan.quarantine), table, plan.quarantine)
        written = 0
        if not plan.nothing:
            commit = lake.restore(table, plan.version, None if plan.by_log else self._emptied())
            written = 0 if plan.by_log else int(commit.metrics.get("numOutputBytes") or 0)
        if self._ledger is not None:
            _record_all(self._ledger, self._file_changes())
        for batch in self._undone:
            self._log.note(batch, "undone", run_id=run.id)
        for batch in self._redone:
            self._log.note(batch, "done", run_id=run.id, record=batch.record)
        size = lake.size(table.schema, table.name)
        # Also what an earlier call has undone, that was killed before anybody was told.
        touched = {b.partition for b in self._log.batches if "undone" in b.events} | set(plan.partitions)
        left = {b.partition for b in self._log.batches if b.done}
        rows = {one: self._log.partition_rows(one) if one in left else None for one in sorted(touched)}
        return Restored(plan, table.name, size.version, size.rows, rows, 0.0, written)

    def beside(self, run: Run, who: str) -> Restored:
        """Write the version as a table of its own."""
        lake, table = self._lake, self._table
        name = recovered_name(table)
        rows = self._emptied()
        if table.has_personal_data:
            # Before there is a row: whoever is forgotten from now on is to leave the copy as well.
            if not lake.exists(table.schema, name):
                lake.write_recovered(rows.where("false"), table, self.plan.version)
            keys = [c.name for c in table.key]
            derived.register(lake, table, f"{table.schema}.{name}", key=keys, who=who, run_id=run.id)
        lake.write_recovered(rows, table, self.plan.version)
        size = lake.size(table.schema, name)
        return Restored(self.plan, name, size.version, size.rows, {}, 0.0, size.bytes)

    def _quarantine_rows(self, version: int) -> DataFrame:
        """The quarantine of a version, without forgotten persons; what has been dismissed since stays so."""
        lake, table, session = self._lake, self._table, self._bench.session
        rows = with_all_columns(lake.read(session, table.schema, table.quarantine_name, version=version))
        now = with_all_columns(lake.read(session, table.schema, table.quarantine_name))
        said = ["state", "dismissed_by", "dismissed_at", "dismissed_because"]
        dismissed = now.where(F.col("state") == DISMISSED).dropDuplicates([*QUARANTINE_IDENTITY])
        dismissed = dismissed.select(
            *(F.col(name).alias(f"__{name}") for name in (*QUARANTINE_IDENTITY, *said)), F.lit(True).alias("__said")
        )
        same = [F.col(name).eqNullSafe(F.col(f"__{name}")) for name in QUARANTINE_IDENTITY]
        rows = rows.join(dismissed, same, "left")
        anew = F.coalesce(F.col("__said"), F.lit(False)) & (F.col("state") == OPEN)
        rows = rows.withColumns({name: F.when(anew, F.col(f"__{name}")).otherwise(F.col(name)) for name in said})
        protection = self._protection()
        if protection is not None:
            rows = protection.forgotten_keys(rows).where(~F.col(ERASED))
            # Lines are nobody's row: which of them name a forgotten person, only their erasure could tell.
            there = now.select(*(F.col(name).alias(f"_now_{name}") for name in QUARANTINE_IDENTITY)).distinct()
            same = [F.col(name).eqNullSafe(F.col(f"_now_{name}")) for name in QUARANTINE_IDENTITY]
            line = F.coalesce(F.col("raw_row").contains(f'"{LINE}"'), F.lit(False))
            found = rows.join(there.withColumn("__still", F.lit(True)), same, "left")
            rows = found.where(~line | F.coalesce(F.col("__still"), F.lit(False)))
        return rows.select(*QUARANTINE.names)


def _record_all(ledger: Ledger, changes: Sequence[FileState]) -> None:
    """Say of each file what its state says."""
    for event in dict.fromkeys(state.event for state in changes):
        ledger.record([state for state in changes if state.event is event], event)


def _revived() -> SparkColumn:
    """Whether a row version has values of somebody who has been forgotten."""
    return F.col(ERASED) & (F.col("record_status") == ACTIVE)


def _change(batch: Batch) -> BatchChange:
    record = batch.record
    return BatchChange(batch.id, batch.partition, record.loaded + record.deleted if record else 0)
