"""Whether a bronze table is what its loads made of it: found by its log and theirs, without Spark on a path.

Rows of each batch are counted and compared with what the batch log says of it; every commit that still tells of what
the table holds must be one of ours; and its files must be there.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from bronze_assets.access import ERASURE_LOG
from bronze_assets.batches import BatchLog
from bronze_assets.lakehouse import Lakehouse
from bronze_assets.leases import holder
from bronze_assets.operations.recovery import Lineage, batch_of, is_quiet
from bronze_assets.sources.ledger import LEDGER, FileEvent
from bronze_assets.sources.scope import FileScope
from bronze_assets.storage import Commit, sql_literal
from bronze_assets.table import BronzeTable
from bronze_assets.workbench import Workbench

RETENTION = "retention"
"""With what the mark of a commit begins that removes rows since their time is over."""
_OWN = re.compile(rf"(classified|{RETENTION})\b.*")
FROM_COPY = "COPY"
"""Operation of the first commit of a table that has come back from a copy (`delta_log`)."""
_ERASURE = re.compile(r"([0-9a-f-]{36}) [0-9a-f]{32}")
_AGAIN = FileScope(0, again=True).kind
_TRIES = 3


@dataclass(frozen=True)
class Foreign:
    """A commit that none of ours has made."""

    version: int
    operation: str


@dataclass(frozen=True)
class Integrity:
    """What a table has against what its loads made of it.

    Attributes:
        version: that was looked at.
        rows: row versions in it.
        missing, extra: batch → row versions that are not there, or that are and should not; the batch `""` stands for
            rows without one, or for rows of which only the sum can be told.
        foreign: commits of others, oldest first.
        missing_files: data files that are gone.
        last_intact: the version before all of that; None if it cannot be told.
    """

    table: str
    version: int
    rows: int
    missing: dict[str, int]
    extra: dict[str, int]
    foreign: tuple[Foreign, ...]
    missing_files: tuple[str, ...]
    last_intact: int | None

    @property
    def intact(self) -> bool:
        """Whether nothing is wrong with it."""
        return not (self.missing or self.extra or self.foreign or self.missing_files)

    @property
    def words(self) -> str:
        """One line for people."""
        if self.intact:
            return f"{self.table}: version {self.version} has the {self.rows:,} row versions that its loads wrote."
        found = [f"{sum(self.missing.values()):,} row versions of {_named(self.missing)} are missing"] * bool(
            self.missing
        )
        found += [f"{sum(self.extra.values()):,} of {_named(self.extra)} should not be there"] * bool(self.extra)
        found += [f"version {one.version} ({one.operation}) was not made by a load" for one in self.foreign[:3]]
        found += [f"{len(self.missing_files)} data files are gone"] * bool(self.missing_files)
        fix = (
            ""
            if self.last_intact is None
            else f" Restore version {self.last_intact}: `python -m bronze_assets restore {self.table}"
            f" --version {self.last_intact} --in-place`."
        )
        return f"{self.table}: {'; '.join(found)}.{fix}"


def _named(batches: Iterable[str]) -> str:
    names = [name or "no single batch" for name in batches]
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def judge(bench: Workbench, table: BronzeTable) -> Integrity | None:
    """Judge a table as it is now; None if there is none yet, or somebody is at work on it who may not be done.

    Raises:
        LakeError: its log cannot be read.
    """
    if not bench.lake.exists(table.schema, table.name):
        return None
    lake, settings = bench.lake, bench.settings
    for _ in range(_TRIES):
        found, log = _judged(bench, table)
        if found.intact:
            return found
        # A load that has committed since its log was read is no damage, nor is what a restore has begun.
        at_work = holder(lake, table.schema, table.name, settings.lease_seconds, bench.clock())
        again = BatchLog(lake, table, bench.clock, None)
        same = [(b.id, b.events) for b in again.batches] == [(b.id, b.events) for b in log.batches]
        if at_work is None and same and lake.version(table.schema, table.name) == found.version:
            return found
    return None


def _judged(bench: Workbench, table: BronzeTable) -> tuple[Integrity, BatchLog]:
    lake = bench.lake
    log = BatchLog(lake, table, bench.clock, None)
    place = lake.location(table.schema, table.name)
    lineage = Lineage(lake.storage.history(place))
    version = max(lineage.by_version)
    commits = list(reversed(lineage.of(version)))
    files = lake.storage.missing_files(place, version)
    rows = {} if files else lake.storage.counts(place, "batch_id", version)
    missing, extra = ({}, {}) if files else _differences(lake, table, log, commits, rows)
    foreign = _foreign(lake, table, log, lineage, commits)
    last: int | None = None
    if foreign:
        # Of a restore by somebody else, what it has undone; unless that was damaged itself.
        last = foreign[0].version - 1
        if _foreign(lake, table, log, lineage, lineage.of(last)):
            before = [c.version for c in commits if c.version < foreign[0].version]
            last = before[-1] if before else None
    integrity = Integrity(table.name, version, sum(rows.values()), missing, extra, tuple(foreign), tuple(files), last)
    return integrity, log


def _foreign(
    lake: Lakehouse, table: BronzeTable, log: BatchLog, lineage: Lineage, commits: list[Commit]
) -> list[Foreign]:
    known = {batch.id for batch in log.batches}
    found, erasures = [], None
    for commit in commits:
        if commit.operation == FROM_COPY and commit.version == 0:
            continue
        if is_quiet(commit) or batch_of(commit) in known or _OWN.fullmatch(commit.mark):
            continue
        if lineage.restored(commit) is not None:
            if not lineage.is_ours(commit):
                found.append(Foreign(commit.version, commit.operation))
            continue
        if marked := _ERASURE.fullmatch(commit.mark):
            if erasures is None:
                mine = f"table_name = {sql_literal(table.name)}"
                rows = lake.rows(table.schema, ERASURE_LOG, ["distinct erasure_id"], mine)
                erasures = {row["erasure_id"] for row in rows}
            if marked[1] in erasures:
                continue
        found.append(Foreign(commit.version, commit.operation))
    return found


def _differences(
    lake: Lakehouse, table: BronzeTable, log: BatchLog, commits: list[Commit], rows: dict[str | None, int]
) -> tuple[dict[str, int], dict[str, int]]:
    expected, exact = _expected(lake, table, log)
    at_work = {b.id for b in log.batches if not b.finished}
    retained = [c for c in commits if c.mark.startswith(RETENTION)]
    if retained:
        # Which batches' rows they were, their commits do not tell; how many, they do.
        committed = {batch_of(c): c.version for c in commits}
        exact -= {name for name in expected if committed.get(name, -1) < retained[-1].version}
    missing, extra = {}, {}
    short = 0
    for name in sorted({*expected, *(name or "" for name in rows)}):
        if name in at_work:
            continue
        there = rows.get(name or None, 0)
        wanted = expected.get(name, 0)
        if there > wanted:
            extra[name] = there - wanted
        elif there < wanted and (name in exact):
            missing[name] = wanted - there
        else:
            short += wanted - there
    removed = sum(_removed(c) for c in retained)
    # What a file that was loaded again took along of a replay is not known.
    known = not (any(b.scope_kind == _AGAIN for b in log.batches) and any(b.of_quarantine for b in log.batches))
    if short > removed and known:
        missing[""] = short - removed
    return missing, extra


def _removed(commit: Commit) -> int:
    """Rows that a commit took out, as Delta counts them."""
    names = ("numDeletedRows", "numTargetRowsDeleted", "num_deleted_rows")
    return next((int(commit.metrics[name]) for name in names if commit.metrics.get(name) is not None), 0)


def _expected(lake: Lakehouse, table: BronzeTable, log: BatchLog) -> tuple[dict[str, int], set[str]]:
    """Batch → row versions that it should have, and the batches of which that is exact and no limit."""
    done = [b for b in log.batches if b.done and b.record is not None]
    expected = {b.id: b.record.loaded + b.record.deleted for b in done if b.record is not None}
    exact = set(expected)
    again = [b for b in done if b.scope_kind == _AGAIN]
    if not again:
        return expected, exact
    names = ", ".join(f"'{event}'" for event in (FileEvent.LOADED, FileEvent.QUARANTINED))
    events = lake.rows(
        table.schema,
        LEDGER,
        ["path", "batch_id", "rows"],
        f"table_name = {sql_literal(table.name)} and event in ({names}) order by number",
    )
    owners: dict[str, tuple[str, int]] = {}
    for event in events:
        batch = event["batch_id"]
        if batch not in expected:
            continue
        before = owners.get(event["path"])
        if before is not None and before[0] != batch:
            expected[before[0]] -= before[1]
        owners[event["path"]] = (batch, event["rows"] or 0)
    last = max(log.batches.index(b) for b in again)
    # A file that is loaded again takes what was replayed of it along.
    exact -= {b.id for b in log.batches[:last] if b.of_quarantine}
    return expected, exact
