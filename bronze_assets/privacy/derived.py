"""Tables derived from bronze in which an erasure forgets persons too, and their registry `bz_derived_tables`.

Whoever writes such a table registers it, at every run if they like: `register` writes only what is new. The registry is
append-only, one per schema, beside the bronze tables; what holds is the latest event of a table and its key columns.
"""

from __future__ import annotations

import datetime as dt
import logging
import re
import shlex
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
from pyspark.sql import SparkSession
from pyspark.sql import types as T

from bronze_assets.access import DERIVED_TABLES
from bronze_assets.errors import LakeError, PrivacyRefused
from bronze_assets.lakehouse import Lakehouse
from bronze_assets.spark_errors import SPARK_ERRORS
from bronze_assets.storage import OVERTAKEN, Described, sql_literal
from bronze_assets.table import BronzeTable

logger = logging.getLogger(__name__)

REGISTERED = "registered"
WITHDRAWN = "withdrawn"
_TRIES = 3
_WHOLE = frozenset({"tinyint", "smallint", "int", "bigint"})
_SCHEMA = pa.schema(
    [
        ("table_name", pa.string()),
        ("number", pa.int64()),
        ("event", pa.string()),
        ("at", pa.timestamp("us", tz="UTC")),
        ("place", pa.string()),
        ("key_columns", pa.list_(pa.string())),
        ("blanked_columns", pa.list_(pa.string())),
        ("who", pa.string()),
        ("reason", pa.string()),
        ("run_id", pa.string()),
    ]
)


@dataclass(frozen=True)
class Derived:
    """A registered table.

    Attributes:
        place: `<schema>.<name>` of the same lake, or a path or URI.
        key: the columns that hold the key of the bronze table, part by part in its order.
        blanks: columns that become NULL in a person's rows; without any, the rows are deleted.
    """

    place: str
    key: tuple[str, ...]
    blanks: tuple[str, ...] = ()

    @property
    def words(self) -> str:
        """One line for people."""
        done = f"{', '.join(self.blanks)} become NULL" if self.blanks else "rows are deleted"
        return f"{self.place} by {', '.join(self.key)}: {done}"


@dataclass
class Swept:
    """What a sweep did.

    Attributes:
        tables, rows: swept, and deleted or emptied there.
        retention: for how long the files that it removed stay at most.
        obstacles: why others could not be swept.
    """

    tables: int = 0
    rows: int = 0
    retention: dt.timedelta = dt.timedelta(0)
    obstacles: list[LakeError] = field(default_factory=list)


def _now() -> dt.datetime:
    return dt.datetime.now(dt.UTC)


def registered(lake: Lakehouse, table: BronzeTable) -> list[Derived]:
    """The tables in which an erasure of this bronze table forgets persons too, by place.

    Raises:
        LakeError: the registry cannot be read.
    """
    rows = {(row["place"], tuple(row["key_columns"])): row for row in _events(lake, table)}
    found = [
        Derived(place, key, tuple(row["blanked_columns"]))
        for (place, key), row in rows.items()
        if row["event"] == REGISTERED
    ]
    return sorted(found, key=lambda one: (one.place, one.key))


def register(
    lake: Lakehouse,
    table: BronzeTable,
    place: str,
    *,
    key: Sequence[str],
    blank: Sequence[str] = (),
    who: str,
    run_id: str = "",
    clock: Callable[[], dt.datetime] = _now,
) -> bool:
    """Let every erasure in a bronze table forget the persons in a table that was derived from it, too.

    For the asset or notebook that writes the derived table, after it has written it, at every run; nothing is written
    if that is registered already. Other `blank` columns for the same `key` columns take the place of the earlier ones;
    other `key` columns are another registration, as of a table that names two persons.

    Args:
        table: where the persons come from.
        place: of the derived Delta table: `<schema>.<name>` of the same lake, or an absolute path or URI.
        key: its columns with the key of the bronze table, in the order of the key, with the values as bronze has them.
        blank: its columns that are to become NULL in the rows of a person; without any, the rows are deleted.
        who: registers it, for the record.

    Returns:
        Whether it was new.

    Raises:
        PrivacyRefused: the bronze table holds no personal data, or this is no place, or one of bronze's own.
        LakeError: no erasure could be done there: it is no Delta table, lacks a column or has one of a type that the
            key cannot be found by, or would keep what is erased. Nothing was registered.
    """
    derived = Derived(place, tuple(key), tuple(sorted(set(blank))))
    _check_table(table)
    _check_place(lake, place, table)
    if not who.strip():
        raise PrivacyRefused("nobody says who registers it.", "name them.", table=table.name)
    try:
        _looked_at(lake, table, derived)
    except LakeError as error:
        culprit, fix = error.culprit, error.fix
        raise LakeError(f"{culprit} Nothing was registered.", fix, table=table.name) from None
    if derived in registered(lake, table):
        return False
    _record(lake, table, REGISTERED, [derived], who=who, run_id=run_id, reason="", now=clock())
    return True


def withdraw(
    lake: Lakehouse,
    table: BronzeTable,
    place: str,
    *,
    who: str,
    reason: str,
    run_id: str = "",
    clock: Callable[[], dt.datetime] = _now,
) -> list[Derived]:
    """Leave a table out of erasures from now on, as when it has been removed; all of its registrations.

    Args:
        reason: for the record; not a person's name.

    Returns:
        What was withdrawn.

    Raises:
        PrivacyRefused: it is not registered, or nobody says who withdraws it and why.
    """
    _check_table(table)
    if not who.strip() or not reason.strip():
        raise PrivacyRefused("a withdrawal needs a reason and somebody who asks.", "say both.", table=table.name)
    there = registered(lake, table)
    gone = [one for one in there if one.place == place]
    if not gone:
        known = ", ".join(dict.fromkeys(one.place for one in there)) or "none"
        raise PrivacyRefused(f"{place!r} is not registered.", f"name one of those that are: {known}.", table=table.name)
    _record(lake, table, WITHDRAWN, gone, who=who, run_id=run_id, reason=reason, now=clock())
    return gone


def sweep(lake: Lakehouse, session: SparkSession, table: BronzeTable, keys: Sequence[str], mark: str) -> Swept:
    """Forget persons in all registered tables of a bronze table; may be done again.

    Args:
        keys: key texts.
        mark: of the commits.

    Returns:
        What was done; a table that cannot be swept is told of, and keeps no other from being swept.
    """
    done = Swept()
    try:
        there = registered(lake, table)
    except LakeError as error:
        done.obstacles.append(error)
        there = []
    for derived in there:
        try:
            found = _looked_at(lake, table, derived)
            done.rows += _swept(lake, session, derived, found, keys, mark)
        except LakeError as error:
            leave = f"python -m bronze_assets derived withdraw {table.name} {shlex.quote(derived.place)} --reason …"
            fix = f"{error.fix.removesuffix('.')}, or leave the table out with `{leave}`."
            done.obstacles.append(LakeError(error.culprit, fix, table=table.name))
            continue
        done.tables += 1
        done.retention = max(done.retention, found.retention)
    return done


def locations(lake: Lakehouse, table: BronzeTable) -> list[str]:
    """Where the registered tables of a bronze table lie.

    Raises:
        LakeError: the registry cannot be read.
    """
    return list(dict.fromkeys(_location(lake, one.place) for one in registered(lake, table)))


@dataclass(frozen=True)
class _Found:
    """A derived table that can be swept.

    Attributes:
        key: SQL of the parts of the key's text.
    """

    location: str
    key: tuple[str, ...]
    retention: dt.timedelta


def _swept(
    lake: Lakehouse, session: SparkSession, derived: Derived, found: _Found, keys: Sequence[str], mark: str
) -> int:
    for left in reversed(range(_TRIES)):
        try:
            rows = lake.forget_derived(session, found.location, found.key, keys, mark, derived.blanks)
            _vacuum(lake, found)
            return rows
        except SPARK_ERRORS as error:
            overtaken = OVERTAKEN.search(str(error)[:2000])
            why = "others kept changing it" if overtaken else type(error).__name__
            if not left or not overtaken:
                break
    # Outside of the handler: Spark's message may quote a value.
    raise LakeError(
        f"the derived table {derived.place} cannot be changed ({why}).",
        "see whether its files are there, may be written and read, and nobody else writes it meanwhile.",
    )


def _vacuum(lake: Lakehouse, found: _Found) -> None:
    try:
        lake.vacuum(found.location, found.retention)
    except LakeError as error:
        # `removal` does so again when the erasure comes of age, and their owner vacuums too.
        logger.warning("%s", error)


def _looked_at(lake: Lakehouse, table: BronzeTable, derived: Derived) -> _Found:
    """How the table can be swept.

    Raises:
        LakeError: it cannot.
    """
    name = f"the derived table {derived.place}"
    location = _location(lake, derived.place)
    described = lake.described(location)
    if described is None:
        raise LakeError(f"there is no {name.removeprefix('the ')} at {location}.", "write or restore it.")
    _check_keeps_nothing(name, described)
    columns = {known.lower(): (known, kind) for known, kind in described.types.items()}
    lacking = [one for one in (*derived.key, *derived.blanks) if one.lower() not in columns]
    if lacking:
        raise LakeError(
            f"{name} has no column {', '.join(map(repr, lacking))}.", "bring it back, or name columns that are there."
        )
    required = [one for one in derived.blanks if columns[one.lower()][0] in described.required]
    if required:
        raise LakeError(
            f"{', '.join(map(repr, required))} of {name} cannot be NULL.",
            "let the table's schema allow it, or let the rows be deleted.",
        )
    if len(derived.key) != len(table.key):
        raise LakeError(
            f"{name} has {len(derived.key)} columns with the key, and the key of {table.name} has {len(table.key)}.",
            f"name the columns that hold {', '.join(column.name for column in table.key)}.",
        )
    texts = []
    for declared, own in zip(table.key, derived.key, strict=True):
        known, kind = columns[own.lower()]
        text = _text(known, kind, declared.type)
        if text is None:
            wanted = declared.type.simpleString().upper()
            raise LakeError(
                f"{known!r} of {name} is {kind.upper()} and {declared.name!r} of {table.name} is {wanted}, so nobody"
                " can be found by it.",
                f"write it as {wanted}.",
            )
        texts.append(text)
    return _Found(location, tuple(texts), described.retention)


def _check_keeps_nothing(name: str, described: Described) -> None:
    """Raise `LakeError` if rows would stay readable in the table's files after they are deleted, or cannot be."""

    def on(what: str) -> bool:
        return described.properties.get(what, "false").lower() == "true"

    if on("delta.appendOnly"):
        raise LakeError(f"{name} is append-only.", "set its property delta.appendOnly = 'false'.")
    if on("delta.enableChangeDataFeed"):
        raise LakeError(
            f"{name} has a change data feed, which would keep the values.",
            "set its property delta.enableChangeDataFeed = 'false'.",
        )
    if on("delta.enableDeletionVectors") or described.soft_deleted:
        raise LakeError(
            f"{name} has deletion vectors, which leave erased rows in its files.",
            "set its property delta.enableDeletionVectors = 'false' and run REORG TABLE … APPLY (PURGE).",
        )


def _text(name: str, kind: str, declared: T.DataType) -> str | None:
    """SQL of a column's text as `quality.key_text` writes the declared one's; None where the two differ."""
    column, wanted = f"t.`{name.replace('`', '``')}`", declared.simpleString()
    if kind == wanted or (_whole(kind) and _whole(wanted)):
        return f"cast({column} as string)"
    if kind == "string":
        # '007' is 7; what is no such value is compared as it is.
        return f"coalesce(cast(try_cast({column} as {wanted}) as string), {column})"
    return None


def _whole(kind: str) -> bool:
    return kind in _WHOLE or bool(re.fullmatch(r"decimal\(\d+,0\)", kind))


def _location(lake: Lakehouse, place: str) -> str:
    schema, mark, name = place.partition(".")
    return place if "/" in place or not mark else lake.location(schema, name)


def _check_place(lake: Lakehouse, place: str, table: BronzeTable) -> None:
    named = re.fullmatch(r"[A-Za-z_]\w*\.[A-Za-z_]\w*", place, re.ASCII)
    if not named and not re.match(r"/|[a-z][a-z0-9+.-]*://", place):
        raise PrivacyRefused(
            f"{place!r} is no place of a table.",
            "write <schema>.<name> of the same lake, or an absolute path or URI.",
            table=table.name,
        )
    where = _location(lake, place)
    own = re.fullmatch(r"bz_\w+(?<!_recovered)", re.split(r"[/.]", where)[-1])
    if own and lake.storage.owns(where):
        raise PrivacyRefused(
            f"{place!r} is bronze's own, and is erased as such.", "register derived tables only.", table=table.name
        )


def _check_table(table: BronzeTable) -> None:
    if not table.has_personal_data:
        raise PrivacyRefused("it holds no personal data.", "name a table that does.", table=table.name)


def _events(lake: Lakehouse, table: BronzeTable) -> list[dict[str, Any]]:
    """The events of a bronze table's derived tables, oldest first."""
    try:
        rows = lake.rows(table.schema, DERIVED_TABLES, where=f"table_name = {sql_literal(table.name)}")
    except Exception as error:  # DataFusion raises no other
        kind = type(error).__name__
    else:
        return sorted(rows, key=lambda row: (row["number"], row["at"]))
    raise LakeError(
        f"{DERIVED_TABLES}, the registry of its derived tables, cannot be read ({kind}).",
        "see whether its files are there.",
        table=table.name,
    )


def _record(
    lake: Lakehouse,
    table: BronzeTable,
    event: str,
    found: Iterable[Derived],
    *,
    who: str,
    reason: str,
    run_id: str,
    now: dt.datetime,
) -> None:
    number = max((row["number"] for row in _events(lake, table)), default=0) + 1
    rows = [
        {
            "table_name": table.name,
            "number": number,
            "event": event,
            "at": now,
            "place": one.place,
            "key_columns": list(one.key),
            "blanked_columns": list(one.blanks),
            "who": who,
            "reason": reason or None,
            "run_id": run_id or None,
        }
        for one in found
    ]
    lake.append_rows(table.schema, DERIVED_TABLES, _SCHEMA, rows)
