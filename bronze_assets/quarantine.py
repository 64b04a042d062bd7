"""The quarantine of a table: what lies in it, and what becomes of it: replayed by the rules of now, or dismissed."""

from __future__ import annotations

import csv
import datetime as dt
import io
import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pyspark.sql import Column as SparkColumn
from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from bronze_assets import audit, quality
from bronze_assets.attempt import Attempt
from bronze_assets.audit import LoadRecord
from bronze_assets.errors import LakeError, LoadRefused
from bronze_assets.lakehouse import DISMISSED, OPEN, QUARANTINE_IDENTITY, Lakehouse
from bronze_assets.leases import lease
from bronze_assets.load import keys_held, settle
from bronze_assets.replay_load import CORRECTED, KEY, ReplayLoad, nothing_said, with_all_columns
from bronze_assets.schema_versions import SchemaVersions
from bronze_assets.sources.files import parsed
from bronze_assets.sources.scope import DISMISSAL
from bronze_assets.table import BronzeTable, Feed
from bronze_assets.workbench import Options, Run, Workbench, current_partition

FILE_RULE = "file"
"""The rule that a whole file broke, which could not be read: it is mended in the landing zone, and not here."""
_AGES = {"m": "minutes", "h": "hours", "d": "days", "w": "weeks"}


@dataclass(frozen=True)
class Selection:
    """Which open rows of a quarantine; everything that is given must hold.

    Attributes:
        rule: a rule that the row broke.
        batch: that brought it, or saw it last.
        older_than, newer_than: how long ago it was first seen.
        key: its key text, as the quarantine shows it.
    """

    rule: str | None = None
    batch: str | None = None
    older_than: dt.timedelta | None = None
    newer_than: dt.timedelta | None = None
    key: str | None = None

    def __str__(self) -> str:
        """In words that name no key: they are kept for ever, and the key may be a person's."""
        words = [f"rule {self.rule}"] if self.rule else []
        words += [f"batch {self.batch}"] if self.batch else []
        words += [f"older than {self.older_than}"] if self.older_than is not None else []
        words += [f"newer than {self.newer_than}"] if self.newer_than is not None else []
        words += ["one key"] if self.key is not None else []
        return ", ".join(words) or "all"

    def condition(self, now: dt.datetime) -> SparkColumn:
        """As a condition on the rows of a quarantine; NULL nowhere."""
        holds = F.coalesce(F.col("state"), F.lit(OPEN)) == OPEN
        if self.rule is not None:
            holds = holds & F.exists("reasons", lambda reason: reason["rule"] == F.lit(self.rule))
        if self.batch is not None:
            holds = holds & ((F.col("batch_id") == self.batch) | (F.col("last_batch_id") == self.batch))
        if self.older_than is not None:
            holds = holds & (F.col("first_seen") <= F.lit(now - self.older_than))
        if self.newer_than is not None:
            holds = holds & (F.col("first_seen") > F.lit(now - self.newer_than))
        if self.key is not None:
            holds = holds & (F.col("row_key") == self.key)
        return F.coalesce(holds, F.lit(False))

    def has(self, row: Mapping[str, Any], now: dt.datetime) -> bool:
        """Whether it is one of these, whatever its state."""
        return (
            (self.rule is None or any(reason["rule"] == self.rule for reason in row["reasons"] or ()))
            and (self.batch is None or self.batch in (row["batch_id"], row["last_batch_id"]))
            and (self.older_than is None or row["first_seen"] <= now - self.older_than)
            and (self.newer_than is None or row["first_seen"] > now - self.newer_than)
            and (self.key is None or row["row_key"] == self.key)
        )


@dataclass(frozen=True)
class Held:
    """The quarantined rows of one rule and state. A row that broke two rules counts under both.

    Attributes:
        rows: of the quarantine.
        oldest: when the first of them was first seen.
        attempts: most replays that have tried one of them.
    """

    rule: str
    state: str
    rows: int
    oldest: dt.datetime
    attempts: int


def age(text: str) -> dt.timedelta:
    """A number of minutes, hours, days or weeks: `30m`, `12h`, `7d`, `2w`.

    Raises:
        LoadRefused: it is none.
    """
    found = re.fullmatch(r"([0-9]{1,6})([mhdw])", text.strip())
    if found is None:
        raise LoadRefused(f"{text!r} is no age.", "write minutes, hours, days or weeks: 30m, 12h, 7d, 2w.")
    return dt.timedelta(**{_AGES[found[2]]: int(found[1])})


def summary(lake: Lakehouse, table: BronzeTable, selection: Selection, now: dt.datetime) -> list[Held]:
    """What the quarantine holds, by rule and state; without Spark.

    Raises:
        LakeError: there is no quarantine yet.
        LoadRefused: no such rule.
    """
    found: Counter[tuple[str, str]] = Counter()
    oldest: dict[tuple[str, str], dt.datetime] = {}
    attempts: dict[tuple[str, str], int] = {}
    for row in _rows(lake, table, selection):
        if not selection.has(row, now):
            continue
        for rule in sorted({reason["rule"] for reason in row["reasons"] or ()}) or [""]:
            group = rule, row["state"]
            found[group] += 1
            oldest[group] = min(oldest.get(group, row["first_seen"]), row["first_seen"])
            attempts[group] = max(attempts.get(group, 0), row["attempts"])
    return [Held(*group, rows, oldest[group], attempts[group]) for group, rows in sorted(found.items())]


def _rows(lake: Lakehouse, table: BronzeTable, selection: Selection) -> list[dict[str, Any]]:
    name = table.quarantine_name
    nothing = lake.query(table.schema, name, "select * from t limit 0")
    if nothing is None:
        raise LakeError(
            f"there is no table at {lake.location(table.schema, name)}.",
            "load it first, or check BRONZE_HOME and BRONZE_LAKE.",
            table=name,
        )
    columns = ["row_key", "batch_id", "last_batch_id", "reasons", "first_seen"]
    later = {"state": f"'{OPEN}'", "attempts": "0"}
    columns += [
        f"coalesce({one}, {default}) as {one}" if one in nothing.schema.names else f"{default} as {one}"
        for one, default in later.items()
    ]
    rows = lake.rows(table.schema, name, columns)
    known = {rule.name for rule in quality.rules(table)} | {r["rule"] for row in rows for r in row["reasons"] or ()}
    if selection.rule is not None and selection.rule not in known:
        raise LoadRefused(
            f"{selection.rule!r} is no rule.", f"use one of {', '.join(sorted(known))}.", table=table.name
        )
    return rows


def replay(
    bench: Workbench,
    table: BronzeTable,
    selection: Selection,
    run: Run,
    *,
    corrected: Path | None = None,
    dry_run: bool = False,
) -> LoadRecord:
    """Judge open quarantined rows by the rules of now, and load those that pass at the positions that they had.

    May be done again, also when it was killed: what has been loaded is not open any more, and what an interrupted
    replay had begun is finished or taken back first.

    Args:
        corrected: a file of whole rows, JSON or CSV, which come in the place of the quarantined rows of their keys.
        dry_run: only say what would happen.

    Returns:
        What was done; `read` is 0 if no row was selected.

    Raises:
        LoadRefused: the selection or the file cannot be used; nothing was begun.
        BronzeError: see `errors`. An audit row FAILED has been written where the lake allows it.
    """
    now = bench.clock()
    rows = _rows(bench.lake, table, selection)
    partition = current_partition(table.cadence, bench.moment())
    attempt = Attempt(table, partition, bench, run, Options(dry_run=dry_run), now)
    # Spark's columns need a session, and a process of its own has none yet.
    _ = bench.session
    # A whole file has no row here.
    condition = selection.condition(now) & F.col("raw_row").isNotNull()
    chosen = str(selection)
    told = None
    if corrected is not None:
        chosen += f", corrected by {corrected.name}"
        told = _corrected(bench, table, corrected)
        _check_keys(
            table, told, {r["row_key"] for r in rows if r["state"] == OPEN and selection.has(r, now)}, corrected
        )
    load = ReplayLoad(attempt, condition, chosen, told)
    if dry_run:
        attempt.open_log()
        return load.dry_run()
    with _at_work(attempt):
        settle(attempt, redo=False)
        return load.load()


@contextmanager
def _at_work(attempt: Attempt) -> Iterator[None]:
    """The table's lease, and its batch log; a failure is recorded."""
    bench, table = attempt.bench, attempt.table
    try:
        bench.lake.check_writable(table)
        with (
            lease(bench.lake, table.schema, table.name, attempt.run.id, bench.settings.lease_seconds),
            keys_held(attempt),
        ):
            attempt.open_log()
            yield
    except BaseException as error:
        attempt.record_failure(error)
        raise


def dismiss(
    bench: Workbench,
    table: BronzeTable,
    selection: Selection,
    run: Run,
    *,
    reason: str,
    who: str,
    everything: bool = False,
) -> int:
    """Say of open quarantined rows that they are not to be loaded; returns how many there were.

    A load that sees such a row again leaves it dismissed.

    Args:
        reason: why, for the quarantine; not a value of the row.
        who: says so.
        everything: has to be said where the selection is of all open rows.

    Raises:
        LoadRefused: without a reason, or nobody says so, or all would go unasked; nothing was changed.
    """
    if selection == Selection() and not everything:
        raise LoadRefused(
            "a dismissal without a filter would be one of all open rows.",
            "name a rule, a batch, an age or a key; or say `--all`, in the job `everything`.",
            table=table.name,
        )
    if not reason.strip() or not who.strip():
        raise LoadRefused("a dismissal needs a reason and somebody who says so.", "give both.", table=table.name)
    now = bench.clock()
    _rows(bench.lake, table, selection)
    partition = current_partition(table.cadence, bench.moment())
    attempt = Attempt(table, partition, bench, run, Options(), now)
    with _at_work(attempt):
        lake, session = bench.lake, bench.session
        lake.ensure(session, table)
        version = lake.version(table.schema, table.quarantine_name)
        held = lake.read(session, table.schema, table.quarantine_name, version=version)
        rows = with_all_columns(held).where(selection.condition(now)).select(*QUARANTINE_IDENTITY).distinct()
        said = {"dismissed_by": F.lit(who), "dismissed_at": F.lit(now), "dismissed_because": F.lit(reason)}
        fates = rows.select(
            "*",
            F.lit(DISMISSED).alias("fate"),
            F.lit(0).alias("tried"),
            *nothing_said("reasons", "replay_batch_id"),
            F.lit(None).cast("string").alias("new_rule_set"),
            *(value.alias(name) for name, value in said.items()),
        )
        dismissed = lake.settle_quarantined(fates, table, DISMISSAL)
        scope = f"{DISMISSAL}, {selection}"
        record = LoadRecord(table.name, table.schema, partition, "", scope, now, bench.clock(), read=dismissed)
        audit.write_success(lake, table, record, run_id=run.id, trigger=run.trigger)
    return dismissed


def told_of(record: LoadRecord) -> str:
    """One line of what a replay did, or would do; counts only."""
    if not record.read and not record.deleted:
        return f"{record.table}: {record.scope}: no open row."
    still = [f"{name} {count.broken:,}" for name, count in record.rules.items() if count.broken and record.quarantined]
    counts = ("loaded", "quarantined", "duplicates", "unchanged", "erased", "deleted")
    numbers = ", ".join(f"{getattr(record, name):,} {name}" for name in counts)
    words = "would be tried" if record.dry_run else f"tried as batch {record.batch_id}"
    broken = f" Still broken: {', '.join(still)}." if still else ""
    return f"{record.table}: {record.scope}: {record.read + record.deleted:,} rows {words}: {numbers}.{broken}"


def _corrected(bench: Workbench, table: BronzeTable, file: Path) -> DataFrame:
    """The rows of a corrected file, by key text."""
    feed = table.feed or Feed("quarantine")
    known = {c.name for c in table.columns}
    if bench.lake.exists(table.schema, table.name):
        stored = bench.lake.read(bench.session, table.schema, table.name).schema
        known |= set(SchemaVersions(bench.lake, table, bench.clock).undeclared(stored))
    rows = _texts_of(file, table)
    strange = sorted({name for row in rows for name in row} - known)
    if strange:
        raise LoadRefused(
            f"the file {file.name} has columns that the table does not: {', '.join(map(repr, strange))}.",
            "name the columns as the table does.",
            table=table.name,
        )
    texts = bench.session.createDataFrame([(row,) for row in rows], f"{CORRECTED} map<string, string>")
    key = [parsed(F.col(CORRECTED)[c.name], c.type, feed) for c in table.key]
    return texts.select(quality.as_key_text(key).alias(KEY), CORRECTED)


def _texts_of(file: Path, table: BronzeTable) -> list[dict[str, str | None]]:
    """The rows of a JSON or CSV file, every value as its text."""

    def refused(why: str) -> LoadRefused:
        return LoadRefused(
            f"the file {file.name} {why}.", "give whole rows, as JSON objects or CSV with a header.", table=table.name
        )

    try:
        content = file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise refused(f"cannot be read ({type(error).__name__})") from None
    if file.suffix.lower() == ".csv":
        reader = csv.reader(io.StringIO(content, newline=""), strict=True)
        try:
            header, *lines = [line for line in reader if line]
        except (csv.Error, ValueError):
            raise refused("is no CSV with a header") from None
        if any(len(line) != len(header) for line in lines) or len(set(map(str.lower, header))) != len(header):
            raise refused("has rows with more or fewer values than its header, or a name twice")
        names = [name.strip().lower() for name in header]
        # What is empty is NULL: nothing tells it from an empty text here.
        return _some(
            [{n: v if v else None for n, v in zip(names, line, strict=True)} for line in lines], refused("is empty")
        )
    try:
        try:
            value = json.loads(content, parse_int=str, parse_float=str)
            objects = value if isinstance(value, list) else [value]
        except ValueError:
            objects = [json.loads(one, parse_int=str, parse_float=str) for one in content.splitlines() if one.strip()]
    except (ValueError, RecursionError):
        objects = [None]
    if not all(isinstance(one, dict) for one in objects):
        raise refused("is no JSON: neither one object a line nor an array of them")
    return _some([{str(n).lower(): _text(v) for n, v in one.items()} for one in objects], refused("is empty"))


def _some(rows: list[dict[str, str | None]], empty: LoadRefused) -> list[dict[str, str | None]]:
    if not rows:
        raise empty
    return rows


def _text(value: Any) -> str | None:
    if value is None or isinstance(value, str):
        return value
    return json.dumps(value, ensure_ascii=False)


def _check_keys(table: BronzeTable, told: DataFrame, open_keys: set[str], file: Path) -> None:
    """Raise `LoadRefused` unless each row of a corrected file has the key of open quarantined rows, once."""
    keys = Counter(str(row[KEY]) for row in told.select(KEY).collect())
    twice = sorted(key for key, count in keys.items() if count > 1)
    lost = sorted(set(keys) - open_keys)
    for wrong, why in ((twice, "is there twice"), (lost, "has no open row in the quarantine")):
        if wrong:
            more = f" (and {len(wrong) - 1} more keys)" if len(wrong) > 1 else ""
            raise LoadRefused(
                f"key {wrong[0]}{more} of the file {file.name} {why}. Nothing was changed.",
                "leave it out; rows that are new go into the landing zone or the source.",
                table=table.name,
            )


def lines_of(held: Sequence[Held], table: BronzeTable) -> list[str]:
    """A summary as a person reads it."""
    if not held:
        return [f"{table.name}: no row."]
    head = f"{'rule':30} {'state':10} {'rows':>10}  {'oldest':19} {'replays':>8}"
    return [
        head,
        *(f"{h.rule:30} {h.state:10} {h.rows:>10,}  {h.oldest:%Y-%m-%d %H:%M:%S} {h.attempts:>8}" for h in held),
    ]
