"""Retention: what a table has kept for longer than it declares, layer by layer, and its removal (docs/adr/0028).

files of the archive → rows → replaced versions → quarantine. The files go first, since a deleted row stays deleted in
bronze for as long as a file could bring it back. Each layer goes in one commit whose mark stands in `bz_retention_log`
before it is made; whoever removes next tells there of a removal that was killed. What a legal hold keeps stays.

Removed rows are there for time travel until a VACUUM, 30 days later at the earliest; removed files are gone at once.
"""

from __future__ import annotations

import datetime as dt
import enum
import functools
import logging
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import pyarrow as pa
from pyspark.sql import DataFrame, Window
from pyspark.sql import functions as F

from bronze_assets import engine
from bronze_assets.access import RETENTION_LOG
from bronze_assets.audit import safe_message
from bronze_assets.errors import BronzeError, KeyRefused, LakeError, RetentionRefused
from bronze_assets.lakehouse import DISMISSED, OPEN, QUARANTINE_IDENTITY, REPLAYED
from bronze_assets.leases import lease
from bronze_assets.privacy.archive import ENCRYPTED
from bronze_assets.privacy.holds import IS_HELD, Holds
from bronze_assets.privacy.redaction import without
from bronze_assets.quality import LINE, key_text
from bronze_assets.sources.landing import LandedFile
from bronze_assets.sources.ledger import LEDGER, FileEvent, Ledger
from bronze_assets.storage import sql_literal
from bronze_assets.table import BronzeTable
from bronze_assets.workbench import Workbench

logger = logging.getLogger(__name__)

DRY_RUN_DAYS: Final = 7
"""For so long a dry run is a reason to remove what it named."""
GROWTH: Final = 0.25
GROWTH_ROWS: Final = 1000
"""What is due may have grown by that share or by so many rows or files since, whichever is more."""
MARK: Final = "retention"
"""How the `userMetadata` of a removal's commits begins; the run's id and the layer follow."""
REPORTED, BEGUN, REMOVED, FAILED = "reported", "begun", "removed", "failed"
_LARGEST = 2**30
_SINCE = "__since"
_NEEDED = "__needed"
_TIME = pa.timestamp("us", tz="UTC")
_SCHEMA = pa.schema(
    [
        ("run", pa.string()),
        ("at", _TIME),
        ("event", pa.string()),
        ("dry_run", pa.bool_()),
        ("table_name", pa.string()),
        ("layer", pa.string()),
        ("days", pa.int32()),
        ("rows", pa.int64()),
        ("files", pa.int64()),
        ("bytes", pa.int64()),
        ("oldest", _TIME),
        ("newest", _TIME),
        ("held", pa.int64()),
        ("needed", pa.int64()),
        ("who", pa.string()),
        ("run_id", pa.string()),
        ("error", pa.string()),
    ]
)


class Layer(enum.StrEnum):
    """Where something is kept, in the order of removal; the value and `_days` is an attribute of `Retention`."""

    ARCHIVE = "archive"
    ROWS = "rows"
    SUPERSEDED = "superseded"
    QUARANTINE = "quarantine"
    OPEN_QUARANTINE = "open_quarantine"


@dataclass(frozen=True)
class LayerDue:
    """What of one layer has been kept for longer than declared, or was removed.

    Attributes:
        days: that it is kept.
        rows: of a table; None of the archive.
        files, bytes: of the archive; None of rows, of which a commit decides.
        oldest, newest: from when the days count, of what goes.
        held: rows or files that stay because of a legal hold.
        needed: that stay because loads still need them: deleted rows that a file of the archive could bring back, and
            quarantined changes that tell a later one which values it must not carry over.
    """

    layer: Layer
    days: int
    rows: int | None = None
    files: int | None = None
    bytes: int | None = None
    oldest: dt.datetime | None = None
    newest: dt.datetime | None = None
    held: int = 0
    needed: int = 0

    @property
    def count(self) -> int:
        """Rows, or files of the archive."""
        return (self.files if self.layer is Layer.ARCHIVE else self.rows) or 0

    @property
    def words(self) -> str:
        """One line for people."""
        what = "files" if self.layer is Layer.ARCHIVE else "rows"
        size = "" if self.bytes is None else f" ({self.bytes / 2**20:.1f} MB)"
        span = "" if self.oldest is None or self.newest is None else f" of {self.oldest:%F} to {self.newest:%F}"
        left = [f"{self.held:,} held"] * bool(self.held) + [f"{self.needed:,} still needed"] * bool(self.needed)
        stay = f"; {' and '.join(left)} stay" if left else ""
        return f"{self.layer}, kept {self.days} days: {self.count:,} {what}{size}{span}{stay}"


@dataclass(frozen=True)
class Due:
    """What of a table is due, or was removed, by layer that it declares."""

    table: str
    at: dt.datetime
    layers: tuple[LayerDue, ...]

    def lines(self) -> list[str]:
        """For people."""
        return [f"{self.table}: {one.words}" for one in self.layers] or [f"{self.table}: keeps everything for ever"]


def selected(names: Sequence[str], tables: Sequence[BronzeTable]) -> list[BronzeTable]:
    """The tables of these names, or all.

    Raises:
        RetentionRefused: there is no such table.
    """
    by_name = {table.name: table for table in tables}
    for name in names:
        if name not in by_name:
            raise RetentionRefused(f"there is no table {name!r}.", f"use some of {', '.join(sorted(by_name))}.")
    return [by_name[name] for name in dict.fromkeys(names)] or list(tables)


def due(bench: Workbench, table: BronzeTable) -> Due:
    """What of a table is to be removed now; nothing is changed.

    Raises:
        KeyMissing, KeyRefused: persons are held, and without the master key nobody can tell whose rows are whose.
        LakeError: the archive cannot be listed.
    """
    return _Work(bench, table).due()


def report(bench: Workbench, tables: Sequence[BronzeTable], *, who: str, run_id: str = "") -> list[Due]:
    """The dry run: what would be removed, kept in `bz_retention_log`.

    Args:
        who: started it, for the log.

    Raises:
        as `due`.
    """
    run, found = f"{uuid.uuid4()}", []
    for table in tables:
        one = due(bench, table)
        told = {"run": run, "event": REPORTED, "dry_run": True, "who": who, "run_id": run_id}
        _log(bench, table, [(layer, told) for layer in one.layers])
        found.append(one)
    return found


def remove(bench: Workbench, tables: Sequence[BronzeTable], *, who: str, run_id: str = "") -> list[Due]:
    """Remove what is due, one table after the other, under its lease; may be done again after it was killed.

    Args:
        who: started it, for the log.

    Returns:
        What was removed.

    Raises:
        RetentionRefused: a table has had no dry run of what it declares in the last `DRY_RUN_DAYS`, or has much more
            due than that said; nothing of any table was removed.
        TableBusy, LakeError: a table is at work, or something of it cannot be removed; the others are done.
        KeyMissing, KeyRefused: as `due`.
    """
    work = [_Work(bench, table) for table in tables if table.retention.days]
    for one in work:
        one.check_dry_run()
    run, removed, obstacles = f"{uuid.uuid4()}", [], list[BronzeError]()
    told = {"run": run, "dry_run": False, "who": who, "run_id": run_id}
    for one in work:
        try:
            removed.append(one.remove(told))
        except BronzeError as error:
            obstacles.append(error)
    if obstacles:
        first, *others = obstacles
        names = ", ".join(sorted({str(error.table) for error in others}))
        more = f" Nor is all removed of {names}." if others else ""
        done = f" Removed is what was due of {len(removed)} of {len(work)} tables."
        raise type(first)(f"{first.culprit}{more}{done}", first.fix, table=first.table)
    return removed


class _Work:
    """What is due in one table, by the holds and the moment at which this was made."""

    def __init__(self, bench: Workbench, table: BronzeTable) -> None:
        self._bench = bench
        self._lake = bench.lake
        self._table = table
        self._place = (table.schema, table.name)
        self._now = bench.clock()
        self._holds = Holds(bench, table)
        self._days = {layer: days for layer in Layer if (days := table.retention.days.get(f"{layer}_days")) is not None}

    def due(self) -> Due:
        """What is due in each declared layer."""
        return Due(self._table.name, self._now, tuple(self._found(layer) for layer in self._days))

    def check_dry_run(self) -> None:
        """Raise `RetentionRefused` unless a recent dry run has named about as much as is due."""
        since = self._now - dt.timedelta(days=DRY_RUN_DAYS)
        mine = f"table_name = {sql_literal(self._table.name)} and event = '{REPORTED}'"
        rows = self._lake.rows(self._table.schema, RETENTION_LOG, where=mine)
        recent = {
            row["layer"]: row for row in sorted(rows, key=lambda row: row["at"]) if since <= row["at"] <= self._now
        }
        again = "run `apply_retention` with dry_run: true for it, read what it names, and remove then."
        for one in self.due().layers:
            told = recent.get(one.layer.value)
            if told is None or told["days"] != one.days:
                raise RetentionRefused(
                    f"no dry run of the last {DRY_RUN_DAYS} days says what would go of {one.layer}, kept {one.days}"
                    " days. Nothing was removed.",
                    again,
                    table=self._table.name,
                )
            before = told["files" if one.layer is Layer.ARCHIVE else "rows"] or 0
            if one.count > before + max(GROWTH_ROWS, GROWTH * before):
                raise RetentionRefused(
                    f"the dry run of {told['at']:%F %H:%M} UTC named {before:,} of {one.layer}, and {one.count:,} are"
                    " due now. Nothing was removed.",
                    again,
                    table=self._table.name,
                )

    def remove(self, told: Mapping[str, Any]) -> Due:
        """Remove what is due, layer by layer."""
        table, bench = self._table, self._bench
        done = []
        run = str(told["run_id"] or told["run"])
        try:
            with lease(self._lake, table.schema, table.name, run, bench.settings.lease_seconds):
                # What was read before may have changed.
                work = _Work(bench, table)
                work.settle(told)
                for layer in work._days:
                    done.append(work.remove_layer(layer, told))
        except BaseException as error:
            words = str(error) if isinstance(error, BronzeError) else safe_message(error)
            nothing = LayerDue(Layer.ARCHIVE, 0)
            _log(bench, table, [(nothing, {**told, "event": FAILED, "layer": None, "days": None, "error": words})])
            raise
        return Due(table.name, self._now, tuple(done))

    def remove_layer(self, layer: Layer, told: Mapping[str, Any]) -> LayerDue:
        """Remove what is due of one layer; it is in the log before and after."""
        found = self._found(layer)
        if not found.count:
            _log(self._bench, self._table, [(found, {**told, "event": REMOVED})])
            return found
        _log(self._bench, self._table, [(found, {**told, "event": BEGUN})])
        if layer is Layer.ARCHIVE:
            self._remove_files(str(told["run"]))
            removed = found
        else:
            removed = replace(found, rows=self._remove_rows(layer, _mark(str(told["run"]), layer)))
        _log(self._bench, self._table, [(removed, {**told, "event": REMOVED})])
        logger.info("%s: removed: %s", self._table.name, removed.words)
        return removed

    def settle(self, told: Mapping[str, Any]) -> None:
        """Say in the log what removals have done that were killed before they could."""
        rows = self._lake.rows(
            self._table.schema, RETENTION_LOG, where=f"table_name = {sql_literal(self._table.name)} and not dry_run"
        )
        over = {(row["run"], row["layer"]) for row in rows if row["event"] == REMOVED}
        for row in rows:
            if row["event"] != BEGUN or (row["run"], row["layer"]) in over:
                continue
            layer = Layer(row["layer"])
            found = LayerDue(layer, row["days"], None, None, None, row["oldest"], row["newest"], row["held"])
            if layer is Layer.ARCHIVE:
                mine = f"table_name = {sql_literal(self._table.name)} and event = '{FileEvent.DELETED}'"
                mine += f" and run_id = {sql_literal(row['run'])}"
                (counted,) = self._lake.rows(self._table.schema, LEDGER, ["count(*) as n"], mine) or [{"n": 0}]
                found = replace(found, files=counted["n"])
            else:
                commit = self._lake.marked(self._table.schema, self._name(layer), _mark(row["run"], layer))
                gone = 0 if commit is None else int(commit.metrics.get("numTargetRowsDeleted") or 0)
                found = replace(found, rows=gone)
            killed = {"event": REMOVED, "error": f"killed; told by run {told['run']}", "who": row["who"]}
            _log(self._bench, self._table, [(found, {**told, **killed, "run": row["run"], "run_id": row["run_id"]})])

    def _cutoff(self, layer: Layer) -> dt.datetime:
        return self._now - dt.timedelta(days=self._days[layer])

    def _name(self, layer: Layer) -> str:
        quarantine = layer in (Layer.QUARANTINE, Layer.OPEN_QUARANTINE)
        return self._table.quarantine_name if quarantine else self._table.name

    def _found(self, layer: Layer) -> LayerDue:
        none = LayerDue(layer, self._days[layer], rows=0)
        if layer is Layer.ARCHIVE:
            files = self._files
            times = [at for _, at in files.due]
            size = sum(file.size for file, _ in files.due)
            ends = (min(times, default=None), max(times, default=None))
            return LayerDue(layer, self._days[layer], None, len(times), size, *ends, held=files.held)
        if not self._lake.exists(self._table.schema, self._name(layer)):
            return none
        with engine.sized(self._bench.session, self._lake.size(self._table.schema, self._name(layer)).bytes):
            return self._counted(layer, none)

    def _counted(self, layer: Layer, none: LayerDue) -> LayerDue:
        counts = self._aged(layer).groupBy(IS_HELD, _NEEDED)
        told = counts.agg(F.count(F.lit(1)).alias("n"), F.min(_SINCE).alias("oldest"), F.max(_SINCE).alias("newest"))
        # As microseconds: a moment would come in this machine's time zone.
        moments = {name: F.unix_micros(F.col(name)).alias(name) for name in ("oldest", "newest")}
        for row in told.select(IS_HELD, _NEEDED, "n", *moments.values()).collect():
            if row[IS_HELD]:
                none = replace(none, held=none.held + row["n"])
            elif row[_NEEDED]:
                none = replace(none, needed=row["n"])
            else:
                none = replace(none, rows=row["n"], oldest=_moment(row["oldest"]), newest=_moment(row["newest"]))
        return none

    def _remove_rows(self, layer: Layer, mark: str) -> int:
        bound, on = "true", [*QUARANTINE_IDENTITY, "batch_id", "state", "last_seen"]
        if self._name(layer) == self._table.name:
            on = [*(column.name for column in self._table.key), "source_position", "batch_id"]
            # Whatever is due was loaded by then: files that came later are not looked into.
            bound = f"t.load_timestamp <= timestamp '{self._cutoff(layer):%Y-%m-%d %H:%M:%S.%f}+00:00'"
        rows = self._aged(layer).where(f"not {IS_HELD} and not {_NEEDED}")
        schema, name = self._table.schema, self._name(layer)
        with engine.sized(self._bench.session, self._lake.size(schema, name).bytes):
            return self._lake.remove_rows(rows, schema, name, on=on, mark=mark, bound=bound)

    def _aged(self, layer: Layer) -> DataFrame:
        """The rows of a layer that are older than its days, with when these began, `IS_HELD` and `_NEEDED`."""
        rows = self._lake.read(self._bench.session, self._table.schema, self._name(layer))
        key = key_text(self._table)
        match layer:
            case Layer.ROWS:
                rows = rows.withColumns({_SINCE: F.col("load_timestamp"), _NEEDED: F.lit(False)})
            case Layer.SUPERSEDED:
                rows = self._superseded(rows)
            case _:
                rows, key = self._settled(rows, is_open=layer is Layer.OPEN_QUARANTINE), F.col("row_key")
        aged = rows.where(F.col(_SINCE) <= F.lit(self._cutoff(layer)))
        marked = self._holds.marked(self._bench.session, aged, key)
        if self._holds and self._name(layer) == self._table.quarantine_name:
            # A line that is no row may be of a key that is held: nobody reads it here.
            unread = F.col("raw_row").contains(f'"{LINE}"') | F.col("row_key").isNull()
            marked = marked.withColumn(IS_HELD, F.col(IS_HELD) | F.coalesce(unread, F.lit(False)))
        return marked

    def _superseded(self, rows: DataFrame) -> DataFrame:
        """The replaced and the deleted versions.

        They go in the order of their positions: a version is only due when those before it are. Else a late change
        would carry over values from a version that is not the one before it, instead of being quarantined.
        """
        order = Window.partitionBy(*(column.name for column in self._table.key)).orderBy(
            "source_position", "load_timestamp", "batch_id"
        )
        loaded = F.max("load_timestamp").over(order.rowsBetween(Window.unboundedPreceding, Window.currentRow))
        replaced = F.lead("load_timestamp").over(order)
        deleted = F.col("record_status") == "DELETED"
        since = F.when(deleted, loaded).when(replaced.isNotNull(), F.greatest(loaded, replaced))
        oldest = self._oldest_file
        needed = F.lit(False) if oldest is None else deleted & replaced.isNull() & (since >= F.lit(oldest))
        return rows.withColumns({_SINCE: since, _NEEDED: needed}).where(F.col(_SINCE).isNotNull())

    def _settled(self, rows: DataFrame, *, is_open: bool) -> DataFrame:
        state = F.coalesce(F.col("state"), F.lit(OPEN))
        rows = rows.where((state == OPEN) if is_open else (state != OPEN))
        # Nobody noted when a row was replayed; its batch tells the day.
        day = F.when(state == REPLAYED, F.to_timestamp(F.substring("replay_batch_id", 1, 10), "yyyy-MM-dd"))
        rows = rows.withColumn(_SINCE, F.greatest("last_seen", "dismissed_at", day + F.expr("interval 1 day")))
        feed = self._table.feed
        if feed is None or not feed.captured or not self._lake.exists(*self._place):
            return rows.withColumn(_NEEDED, F.lit(False))
        versions = self._lake.read(self._bench.session, *self._place)
        latest = versions.groupBy(key_text(self._table).alias("__key")).agg(F.max("source_position").alias("__latest"))
        rows = rows.join(latest, F.col("row_key") == F.col("__key"), "left")
        # A change that leaves values as they were must not take them from before this row.
        last = (F.col("__latest") < F.col("source_position")) & state.isin(OPEN, DISMISSED)
        return rows.withColumn(_NEEDED, F.coalesce(last, F.lit(False))).drop("__key", "__latest")

    @functools.cached_property
    def _oldest_file(self) -> dt.datetime | None:
        """When the first of the files was loaded that could bring a deleted row of a captured table back."""
        feed = self._table.feed
        if feed is None or not feed.captured:
            return None
        return self._files.oldest_left

    @functools.cached_property
    def _files(self) -> _Files:
        feed, zone, found = self._table.feed, self._bench.zone, _Files()
        if feed is None:
            return found
        mine = f"table_name = {sql_literal(self._table.name)}"

        def first(event: FileEvent, column: str) -> dict[str, dt.datetime]:
            where = f"{mine} and event = '{event}' and {column} is not null group by {column}"
            rows = self._lake.rows(self._table.schema, LEDGER, [column, "min(event_time) as at"], where)
            return {row[column]: row["at"] for row in rows}

        archived_at, loaded_at = first(FileEvent.ARCHIVED, "archived_as"), first(FileEvent.LOADED, "path")
        # A file that waits to be loaded, or is, is nobody's to remove.
        state = Ledger(self._lake, self._table, self._bench.clock).files
        days = self._days.get(Layer.ARCHIVE)
        for file in (file for day in zone.archived_days(feed) for file in zone.archived(feed, day)):
            at = archived_at.get(file.location) or archived_at.get(file.location.removesuffix(ENCRYPTED))
            known = state.get(file.path)
            old = at is not None and days is not None and at <= self._now - dt.timedelta(days=days)
            if at is not None and old and (known is None or known.settled):
                if not self._is_held(file):
                    found.due.append((file, at))
                    continue
                found.held += 1
            found.stays(loaded_at.get(file.path) or dt.datetime.min.replace(tzinfo=dt.UTC))
        return found

    def _is_held(self, file: LandedFile) -> bool:
        """Whether a file has a row that a hold keeps; also where nobody can tell."""
        holds = self._holds
        if not holds or holds.all or not holds.exact or file.size > _LARGEST:
            return bool(holds)
        try:
            with self._bench.zone.open(file) as stream:
                content = stream.read()
            return without(content, file.path, self._table, holds)[1] > 0
        except (OSError, ValueError, KeyRefused):
            return True

    def _remove_files(self, run: str) -> None:
        """Remove the due files. The ledger hears of it first: of a killed removal, the rest is due as it was."""
        ledger = Ledger(self._lake, self._table, self._bench.clock, run)
        states = {state.archived_as: state for state in ledger.files.values() if state.event is FileEvent.ARCHIVED}
        files = [file for file, _ in self._files.due]
        gone = [states.get(file.location) or states.get(file.location.removesuffix(ENCRYPTED)) for file in files]
        ledger.record([state for state in gone if state is not None], FileEvent.DELETED)
        stuck: list[str] = []
        for file in files:
            try:
                self._bench.zone.remove(file)
            except OSError:
                stuck.append(file.location)
        if stuck:
            raise LakeError(
                f"{len(stuck)} files of the archive cannot be removed, {stuck[0]!r} the first.",
                "give the process write access to the archive, and remove again.",
                table=self._table.name,
            )


class _Files:
    """Files of the archive: those due, with when they were archived, and how many a hold keeps.

    Attributes:
        oldest_left: when the first of the others was loaded; None without any.
    """

    def __init__(self) -> None:
        self.due: list[tuple[LandedFile, dt.datetime]] = []
        self.held = 0
        self.oldest_left: dt.datetime | None = None

    def stays(self, loaded: dt.datetime) -> None:
        self.oldest_left = loaded if self.oldest_left is None else min(self.oldest_left, loaded)


def _mark(run: str, layer: Layer) -> str:
    return f"{MARK} {run} {layer}"


def _moment(micros: int) -> dt.datetime:
    return dt.datetime(1970, 1, 1, tzinfo=dt.UTC) + dt.timedelta(microseconds=micros)


def _log(bench: Workbench, table: BronzeTable, layers: Sequence[tuple[LayerDue, Mapping[str, Any]]]) -> None:
    if not layers:
        return
    rows = []
    for layer, told in layers:
        row = {name: getattr(layer, name) for name in _SCHEMA.names if hasattr(layer, name)}
        row |= {"layer": layer.layer.value, "at": bench.clock(), "table_name": table.name, **told}
        rows.append(row)
    bench.lake.append_rows(table.schema, RETENTION_LOG, _SCHEMA, rows)
