"""Keeps tables few in files: OPTIMIZE where it pays, VACUUM within what was promised, and clean control tables.

Nothing here makes a load wait. No table is leased; one that somebody is at work on is left out, and an OPTIMIZE that a
load has overtaken writes nothing and is tried once more. What was done is in `bz_maintenance_log`.

Keys, vault and tombstones are left alone: loads and erasures see to them (`PrivateTables.tidy_private`).
"""

from __future__ import annotations

import datetime as dt
import logging
import shutil
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial

import pyarrow as pa

from bronze_assets.access import CONTROLS, ERASURE_LOG, MAINTENANCE_LOG, SUBJECT_KEYS, TOKEN_VAULT, TOMBSTONES, schemas
from bronze_assets.audit import safe_message
from bronze_assets.control_tables import ControlTables
from bronze_assets.errors import BronzeError, LakeError, SettingsError, TableBusy
from bronze_assets.lakehouse import LARGE_FILE, SMALL_FILE, Lakehouse, clustered_by
from bronze_assets.leases import LEASES, forget_released, holder, lease
from bronze_assets.privacy import removal
from bronze_assets.settings import Discovery, Settings
from bronze_assets.storage import Conflict, DataFile, spark_literal, sql_literal
from bronze_assets.table import BronzeTable
from bronze_assets.workbench import Workbench

logger = logging.getLogger(__name__)

TIME_TRAVEL = dt.timedelta(days=30)
"""For how long every version of a table can be read."""
_OLD = dt.timedelta(days=1)
_CHANGED = 0.2
"""The share of a partition's bytes that must be new before it is clustered anew: all of it is written then."""
_LEASE = "maintenance"
_PRIVATE = frozenset({SUBJECT_KEYS, TOKEN_VAULT, TOMBSTONES})

OPTIMIZE, Z_ORDER, VACUUM, CLEAN = "OPTIMIZE", "OPTIMIZE ZORDER", "VACUUM", "CLEAN"
REMOVE_ERASED = "REMOVE ERASED"
_LOG = pa.schema(
    [
        ("at", pa.timestamp("us", tz="UTC")),
        ("table_name", pa.string()),
        ("action", pa.string()),
        ("partitions", pa.list_(pa.string())),
        ("files_before", pa.int64()),
        ("files_after", pa.int64()),
        ("bytes_before", pa.int64()),
        ("bytes_after", pa.int64()),
        ("version", pa.int64()),
        ("seconds", pa.float64()),
        ("run_id", pa.string()),
        ("error", pa.string()),
    ]
)
"""Columns of `bz_maintenance_log`, a row per table and action; `partitions` is NULL where the whole table was meant."""


@dataclass(frozen=True)
class Part:
    """A partition of a table, or a table that has none, and what would pay.

    Attributes:
        value: text of the partition column's value; None for NULL, and for a table without partitions.
        small: files below `SMALL_FILE`; `small_bytes` are theirs.
        changed: files that came after it was last clustered, or compacted; `changed_bytes` are theirs.
        action: `OPTIMIZE`, `OPTIMIZE ZORDER`, or None.
        reason: why that, for people.
    """

    value: str | None
    files: int
    bytes: int
    small: int
    small_bytes: int
    changed: int
    changed_bytes: int
    action: str | None
    reason: str

    @property
    def small_share(self) -> float:
        """Of its files, the share that is small."""
        return self.small / self.files if self.files else 0.0


@dataclass(frozen=True)
class Plan:
    """What would pay for one bronze table, or its quarantine.

    Attributes:
        table: its declaration.
        name: of the bronze table or of the quarantine.
        partition_by: the column that it is partitioned by.
        parts: its partitions, in order; one part where it has none.
    """

    table: BronzeTable
    name: str
    partition_by: str | None
    parts: tuple[Part, ...]

    @property
    def files(self) -> int:
        """Files of the current version."""
        return sum(part.files for part in self.parts)

    @property
    def bytes(self) -> int:
        """Bytes of the current version."""
        return sum(part.bytes for part in self.parts)

    def values(self, action: str) -> list[str | None]:
        """The partitions for which that action pays."""
        return [part.value for part in self.parts if part.action == action]

    @property
    def words(self) -> str:
        """Why nothing else pays: the reasons, each with how many partitions have it."""
        reasons: dict[str, int] = defaultdict(int)
        for part in self.parts:
            if part.action is None:
                reasons[part.reason] += 1
        if self.partition_by is None:
            return next(iter(reasons), "")
        return "; ".join(f"{count:,} partitions: {reason}" for reason, count in reasons.items())


@dataclass(frozen=True)
class Outcome:
    """What maintenance did to a table, or why it did nothing. Files and bytes are None where nobody tells them.

    Attributes:
        partitions: those that were meant; None for the whole table.
        removed: files that VACUUM took from the disk; the others are told of what is there.
        skipped: why nothing was done; empty if something was.
        error: why it could not be done, and holds no value; None if it could.
    """

    schema: str
    table: str
    action: str
    partitions: tuple[str | None, ...] | None = None
    files_before: int | None = None
    files_after: int | None = None
    bytes_before: int | None = None
    bytes_after: int | None = None
    removed: int | None = None
    version: int | None = None
    seconds: float = 0.0
    skipped: str = ""
    error: str | None = None

    @property
    def words(self) -> str:
        """One line for people."""
        if self.error is not None:
            return f"{self.table}: {self.action} failed. {self.error}"
        if self.skipped:
            return f"{self.table}: no {self.action}, {self.skipped}."
        told = f"{self.table}: {self.action}"
        if self.partitions is not None:
            told += f" of {len(self.partitions):,} partitions"
        if self.files_before is not None and self.files_after is not None:
            told += f", {self.files_before:,} → {self.files_after:,} files"
        if self.bytes_before is not None and self.bytes_after is not None:
            told += f", {self.bytes_before:,} → {self.bytes_after:,} bytes"
        if self.removed is not None:
            told += f", {self.removed:,} removed files are gone"
        return f"{told}, {self.seconds:.1f} s."


Say = Callable[[str], None]


def chosen(tables: Sequence[BronzeTable], names: Sequence[str]) -> list[BronzeTable]:
    """The tables of these names, all without any.

    Raises:
        SettingsError: there is no such table; lists those that there are.
    """
    known = {table.name: table for table in tables}
    for name in names:
        if name not in known:
            raise SettingsError(f"there is no table {name!r}.", f"use some of {', '.join(known)}.")
    return [known[name] for name in dict.fromkeys(names)] if names else list(tables)


def plan(lake: Lakehouse, table: BronzeTable, now: dt.datetime) -> list[Plan]:
    """What would pay for a table and its quarantine, as far as they have been made. Needs no Spark on a folder."""
    found = []
    for name, column in ((table.name, table.layout.partition_by), (table.quarantine_name, None)):
        if not lake.exists(table.schema, name):
            continue
        last, clustered = _last(lake, table.schema, name), bool(clustered_by(table)) and name == table.name
        by_value: dict[str | None, list[DataFile]] = defaultdict(list)
        for file in lake.storage.files(lake.location(table.schema, name), column):
            by_value[file.partition].append(file)
        order = sorted(by_value, key=lambda value: (value is not None, value or ""))
        parts = [_part(value, by_value[value], column is not None, clustered, last, now) for value in order]
        found.append(Plan(table, name, column, tuple(parts)))
    return found


def optimize_tables(
    bench: Workbench, tables: Sequence[BronzeTable], run_id: str, *, dry_run: bool = False, say: Say = logger.info
) -> list[Outcome]:
    """Compact, and cluster, what `plan` says pays. A table that fails does not stop the others.

    Args:
        dry_run: only say what would be done.
        say: is told of each table as it is done.

    Raises:
        TableBusy: maintenance of a schema runs already; nothing was done.
    """
    done: list[Outcome] = []
    overtaken: list[Plan] = []
    if dry_run:
        return _told([one for plan in _plans(bench, tables) for one in _intended(plan)], say)
    with _alone(bench.lake, bench.settings, tables, run_id):
        for one in _plans(bench, tables):
            try:
                for outcome in _optimized(bench, one, run_id):
                    done += _told([outcome], say)
            except Conflict:
                say(f"{one.name}: a load was faster; it is tried once more after the others.")
                overtaken.append(one)
        for one in overtaken:
            for again in (p for p in plan(bench.lake, one.table, bench.clock()) if p.name == one.name):
                try:
                    for outcome in _optimized(bench, again, run_id):
                        done += _told([outcome], say)
                except Conflict:
                    reason = "loads were faster twice, nothing was written; the next maintenance tries it"
                    done += _told([Outcome(one.table.schema, one.name, OPTIMIZE, skipped=reason)], say)
    return done


def vacuum_tables(
    lake: Lakehouse,
    settings: Settings,
    tables: Sequence[BronzeTable],
    clock: Callable[[], dt.datetime],
    run_id: str,
    *,
    dry_run: bool = False,
    say: Say = logger.info,
) -> list[Outcome]:
    """Remove the files that no version of a table's retention needs, and say of erasures that have come of age that
    their files are gone. A table that fails does not stop the others.

    Args:
        dry_run: only count the files.
        say: is told of each table as it is done.

    Raises:
        TableBusy: maintenance of a schema runs already; nothing was done.
    """
    done: list[Outcome] = []
    with ExitStack() as stack:
        if not dry_run:
            stack.enter_context(_alone(lake, settings, tables, run_id))
        for table in tables:
            names = [name for name in (table.name, table.quarantine_name) if lake.exists(table.schema, name)]
            outcomes = [_tried(lake, table.schema, name, VACUUM, partial(_vacuumed, dry_run)) for name in names]
            _log(lake, outcomes, run_id)
            done += _told(outcomes, say)
            # Its files would go before their time.
            if names and table.has_personal_data and all(one.error is None for one in outcomes):
                done += _told([_forgotten(lake, table, clock, run_id, dry_run)], say)
    return done


def clean_control_tables(
    lake: Lakehouse,
    settings: Settings,
    tables: Sequence[BronzeTable],
    now: dt.datetime,
    run_id: str,
    *,
    dry_run: bool = False,
    say: Say = logger.info,
) -> list[Outcome]:
    """Compact the control tables and remove what of their files and logs has had its time, released leases that are
    older than a day, and the state of file streams that no table uses any more. Rows of evidence stay.

    Args:
        tables: all that are declared; their schemas are looked at.
        dry_run: only say what there is.
        say: is told of each table as it is done.

    Raises:
        TableBusy: maintenance of a schema runs already; nothing was done.
    """
    done: list[Outcome] = []
    with ExitStack() as stack:
        if not dry_run:
            stack.enter_context(_alone(lake, settings, tables, run_id))
        names = [control.name for control in CONTROLS if control.name not in _PRIVATE]
        for schema in schemas(tables):
            there = (name for name in names if lake.exists(schema, name))
            cleaned = [_tried(lake, schema, name, CLEAN, partial(_cleaned, dry_run, now)) for name in there]
            _log(lake, cleaned, run_id)
            done += _told(cleaned, say)
        done += _told(list(_unused_streams(settings, tables, now, dry_run)), say)
    return done


def failure(outcomes: Sequence[Outcome]) -> LakeError | None:
    """What to raise when all that could be done is done; None if nothing failed."""
    failed = [one for one in outcomes if one.error is not None]
    if not failed:
        return None
    names = ", ".join(dict.fromkeys(one.table for one in failed))
    return LakeError(
        f"maintenance of {names} failed; the others are done. {failed[0].table}: {failed[0].error}",
        "mend that and run it again: what is done already is skipped.",
    )


def _plans(bench: Workbench, tables: Sequence[BronzeTable]) -> Iterator[Plan]:
    for table in tables:
        yield from plan(bench.lake, table, bench.clock())


def _part(
    value: str | None,
    files: Sequence[DataFile],
    partitioned: bool,
    clustered: bool,
    last: Mapping[tuple[str | None, str], dt.datetime],
    now: dt.datetime,
) -> Part:
    small = [file.bytes for file in files if file.bytes < SMALL_FILE]
    since = last.get((value, Z_ORDER)) if clustered else last.get((value, OPTIMIZE))
    changed = [file.bytes for file in files if since is None or file.modified > since]
    total = sum(file.bytes for file in files)
    action, reason = None, ""
    fewer = len(small) > max(1, -(-sum(small) // LARGE_FILE))
    if partitioned and not _is_old(value, files, now):
        reason = "younger than a day"
    elif clustered and len(files) > 1 and sum(changed) >= _CHANGED * total:
        action = Z_ORDER
        reason = f"{len(changed):,} of {len(files):,} files are new since it was last clustered"
    elif fewer:
        action, reason = OPTIMIZE, f"{len(small):,} of {len(files):,} files are small"
    elif len(files) < 2:
        reason = "one file cannot become fewer"
    else:
        reason = "its files are large enough" + (", and few of them are new" if clustered else "")
    return Part(value, len(files), total, len(small), sum(small), len(changed), sum(changed), action, reason)


def _is_old(value: str | None, files: Sequence[DataFile], now: dt.datetime) -> bool:
    try:
        ended = dt.datetime.combine(dt.date.fromisoformat(value or ""), dt.time(), dt.UTC) + _OLD
    except ValueError:
        ended = max(file.modified for file in files)
    return ended + _OLD <= now


def _last(lake: ControlTables, schema: str, name: str) -> dict[tuple[str | None, str], dt.datetime]:
    """(partition, action) → when it last ended."""
    found: dict[tuple[str | None, str], dt.datetime] = {}
    where = f"table_name = {sql_literal(name)} and action like '{OPTIMIZE}%' and error is null"
    for row in lake.rows(schema, MAINTENANCE_LOG, ["at", "action", "partitions"], where):
        for value in [None] if row["partitions"] is None else row["partitions"]:
            # Clustering compacts too.
            for action in (OPTIMIZE, Z_ORDER) if row["action"] == Z_ORDER else (OPTIMIZE,):
                key = (value, action)
                found[key] = max(found.get(key, row["at"]), row["at"])
    return found


def _intended(plan: Plan) -> list[Outcome]:
    outcomes = []
    for action in (OPTIMIZE, Z_ORDER):
        meant = [part for part in plan.parts if part.action == action]
        if meant:
            values = None if plan.partition_by is None else tuple(part.value for part in meant)
            files, size = sum(part.files for part in meant), sum(part.bytes for part in meant)
            why = f"since this is a dry run; it would pay: {meant[0].reason}"
            outcomes.append(
                Outcome(
                    plan.table.schema, plan.name, action, values, files_before=files, bytes_before=size, skipped=why
                )
            )
    return outcomes or [_nothing_pays(plan)]


def _nothing_pays(plan: Plan) -> Outcome:
    outcome = Outcome(plan.table.schema, plan.name, OPTIMIZE, skipped=plan.words or "it has no file")
    return replace(
        outcome, files_before=plan.files, files_after=plan.files, bytes_before=plan.bytes, bytes_after=plan.bytes
    )


def _optimized(bench: Workbench, plan: Plan, run_id: str) -> Iterator[Outcome]:
    """What was done, one action after the other.

    Raises:
        Conflict: a load was faster.
    """
    lake, table = bench.lake, plan.table
    actions = [action for action in (OPTIMIZE, Z_ORDER) if plan.values(action)]
    if not actions:
        yield _nothing_pays(plan)
        return
    by = holder(lake, table.schema, table.name, bench.settings.lease_seconds, bench.clock())
    if by is not None:
        reason = f"since run {by} is at work on it; the next maintenance does it"
        yield Outcome(table.schema, plan.name, OPTIMIZE, skipped=reason)
        return
    for action in actions:
        values = plan.values(action)

        def rewritten(
            lake: Lakehouse, outcome: Outcome, action: str = action, values: list[str | None] = values
        ) -> Outcome:
            place = lake.location(table.schema, plan.name)
            if action == Z_ORDER:
                lake.ensure_statistics(bench.session, table)
            where = None if plan.partition_by is None else _condition(plan.partition_by, values)
            found = lake.optimize(
                bench.session, place, where=where, z_order=clustered_by(table) if action == Z_ORDER else ()
            )
            lake.storage.analyze(place)
            before = [part for part in plan.parts if part.value in values]
            files, size = sum(part.files for part in before), sum(part.bytes for part in before)
            return replace(
                outcome,
                partitions=None if plan.partition_by is None else tuple(values),
                files_before=files,
                files_after=files - found.removed + found.added,
                bytes_before=size,
                bytes_after=size - found.removed_bytes + found.added_bytes,
                version=found.version,
            )

        outcome = _tried(lake, table.schema, plan.name, action, rewritten)
        _log(lake, [outcome], run_id)
        yield outcome


def _condition(column: str, values: Sequence[str | None]) -> str:
    texts = [spark_literal(value) for value in values if value is not None]
    parts = [f"`{column}` in ({', '.join(texts)})"] if texts else []
    return " or ".join(parts + ([f"`{column}` is null"] if None in values else []))


def _vacuumed(dry_run: bool, lake: Lakehouse, outcome: Outcome) -> Outcome:
    place = lake.location(outcome.schema, outcome.table)
    described = lake.described(place)
    retention = described.retention if described else TIME_TRAVEL
    if retention < TIME_TRAVEL:
        raise LakeError(
            f"it keeps removed files for {retention.total_seconds() / 86400:g} days only, so that time travel would"
            f" lose versions of the last {TIME_TRAVEL.days} days; no file was removed.",
            "ALTER TABLE … SET TBLPROPERTIES ('delta.deletedFileRetentionDuration' = 'interval 30 days').",
            table=outcome.table,
        )
    before = lake.storage.stored(place)
    gone = lake.vacuum(place, retention, dry_run=dry_run)
    after = lake.storage.stored(place)
    outcome = replace(
        outcome,
        files_before=before[0] if before else None,
        files_after=after[0] if after else None,
        bytes_before=before[1] if before else None,
        bytes_after=after[1] if after else None,
        removed=0 if dry_run else gone,
        version=lake.version(outcome.schema, outcome.table),
    )
    if dry_run:
        return replace(outcome, skipped=f"since this is a dry run; {gone:,} files would go")
    return outcome if gone else replace(outcome, skipped=f"no removed file is older than {retention.days} days")


def _forgotten(
    lake: Lakehouse, table: BronzeTable, clock: Callable[[], dt.datetime], run_id: str, dry_run: bool
) -> Outcome:
    outcome = Outcome(table.schema, table.name, REMOVE_ERASED)
    try:
        if dry_run:
            due = len(removal.due(lake, table, clock()))
            return replace(outcome, skipped=f"since this is a dry run; {due:,} erasures have come of age")
        found = removal.remove_due(lake, [table], clock, who="vacuum_tables", run_id=run_id)
    except BronzeError as error:
        return replace(outcome, error=safe_message(error).removeprefix(f"{table.name}: "))
    if not found:
        return replace(outcome, skipped=f"no erasure of {ERASURE_LOG} has come of age")
    return replace(outcome, action=f"{REMOVE_ERASED}, {found[0].erasures:,} erasures", removed=found[0].files)


def _cleaned(dry_run: bool, now: dt.datetime, lake: Lakehouse, outcome: Outcome) -> Outcome:
    place = lake.location(outcome.schema, outcome.table)
    files, size = _of_version(lake, place)
    version = lake.version(outcome.schema, outcome.table)
    outcome = replace(outcome, files_before=files, bytes_before=size, version=version)
    if dry_run:
        return replace(outcome, files_after=files, bytes_after=size, skipped="since this is a dry run")
    if outcome.table == LEASES:
        forget_released(lake, outcome.schema, now - _OLD)
    described = lake.described(place)
    appended = described is not None and described.properties.get("delta.appendOnly") == "true"
    done = lake.storage.clean(place, compact=appended)
    files, size = _of_version(lake, place)
    version = lake.version(outcome.schema, outcome.table)
    outcome = replace(outcome, files_after=files, bytes_after=size, version=version)
    return outcome if done else replace(outcome, skipped="since a load is cleaning it")


def _of_version(lake: Lakehouse, place: str) -> tuple[int, int]:
    files = lake.storage.files(place)
    return len(files), sum(file.bytes for file in files)


def _unused_streams(
    settings: Settings, tables: Sequence[BronzeTable], now: dt.datetime, dry_run: bool
) -> Iterator[Outcome]:
    used = set()
    if settings.discovery is not Discovery.LISTING:
        used = {(table.schema, table.name) for table in tables if table.feed is not None}
    for folder in sorted((settings.lake / "_discovery").glob("*/*")):
        schema, name = folder.parts[-2:]
        files = [file for file in folder.rglob("*") if file.is_file()]
        touched = max([folder, *files], key=lambda path: path.stat().st_mtime).stat().st_mtime
        if (schema, name) in used or now.timestamp() - touched < _OLD.total_seconds():
            continue
        size = sum(file.stat().st_size for file in files)
        outcome = Outcome(schema, f"_discovery/{schema}/{name}", CLEAN, files_before=len(files), bytes_before=size)
        if dry_run:
            yield replace(outcome, skipped="since this is a dry run; no table uses this state of a stream any more")
            continue
        # A stream that has lost it finds all files again, which the ledger knows.
        shutil.rmtree(folder)
        yield replace(outcome, files_after=0, bytes_after=0)


def _tried(
    lake: Lakehouse, schema: str, name: str, action: str, work: Callable[[Lakehouse, Outcome], Outcome]
) -> Outcome:
    """What the work did, also if that was to fail.

    Raises:
        Conflict: a load was faster.
    """
    begun, outcome = time.monotonic(), Outcome(schema, name, action)
    try:
        outcome = work(lake, outcome)
    except Conflict:
        raise
    except Exception as error:
        outcome = replace(outcome, error=safe_message(error).removeprefix(f"{name}: "))
    return replace(outcome, seconds=round(time.monotonic() - begun, 3))


def _log(lake: Lakehouse, outcomes: Sequence[Outcome], run_id: str) -> None:
    """Note what was done or has failed, in one commit."""
    # By the clock of the files, which tells later whether one is newer.
    told = {"at": dt.datetime.now(dt.UTC), "run_id": run_id}
    rows = [asdict(one) | {"table_name": one.table} | told for one in outcomes if not one.skipped]
    if rows:
        lake.append_rows(outcomes[0].schema, MAINTENANCE_LOG, _LOG, [{n: row[n] for n in _LOG.names} for row in rows])


@contextmanager
def _alone(lake: Lakehouse, settings: Settings, tables: Sequence[BronzeTable], run_id: str) -> Iterator[None]:
    with ExitStack() as stack:
        for schema in schemas(tables):
            busy = None
            try:
                stack.enter_context(lease(lake, schema, f"{_LEASE}/{schema}", run_id, settings.lease_seconds))
            except TableBusy as error:
                busy = TableBusy(
                    f"maintenance of {schema} runs already: {error.culprit} Nothing was done.",
                    "wait until it has ended; what it has done is skipped then.",
                    table=error.table,
                )
            if busy is not None:
                raise busy
        yield


def _told(outcomes: list[Outcome], say: Say) -> list[Outcome]:
    for outcome in outcomes:
        say(outcome.words)
    return outcomes
