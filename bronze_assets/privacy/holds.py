"""Legal holds, in the control table `bz_legal_holds` of each schema: what a claim keeps from retention and erasure.

Append-only events, placed and released. A hold is on a key of a table, or on all of it. Of a table with personal data
the key is kept as the HMAC that a tombstone of it would have: who does not know the person cannot tell who is held.
"""

from __future__ import annotations

import datetime as dt
import functools
import uuid
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final

import pyarrow as pa
from pyspark.sql import Column as SparkColumn
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F
from pyspark.sql import types as T

from bronze_assets.access import LEGAL_HOLDS
from bronze_assets.errors import RetentionRefused
from bronze_assets.lakehouse import Lakehouse
from bronze_assets.privacy.data_keys import DataKeys
from bronze_assets.privacy.protection import hmac_column, hmac_pads
from bronze_assets.privacy.values import hmac_hex
from bronze_assets.quality import canonical_key
from bronze_assets.storage import sql_literal
from bronze_assets.table import BronzeTable
from bronze_assets.workbench import Workbench

ALL: Final = "*"
"""The key of a hold on all rows and files of a table."""
IS_HELD: Final = "__is_held"
PLACED: Final = "placed"
RELEASED: Final = "released"
_NUMBERS = (T.IntegerType, T.LongType)
_SCHEMA = pa.schema(
    [
        ("hold_id", pa.string()),
        ("event", pa.string()),
        ("table_name", pa.string()),
        ("key_text", pa.string()),
        ("subject_hmac", pa.string()),
        ("reason", pa.string()),
        ("who", pa.string()),
        ("at", pa.timestamp("us", tz="UTC")),
        ("run_id", pa.string()),
    ]
)


@dataclass(frozen=True)
class Hold:
    """A hold that is in force.

    Attributes:
        key: key text, or `ALL`; None where only its HMAC is kept.
        hmac: of the key, in a table with personal data.
    """

    id: str
    table: str
    key: str | None
    hmac: str | None
    reason: str
    who: str
    at: dt.datetime

    @property
    def words(self) -> str:
        """One line for people."""
        what = "everything" if self.key == ALL else "one person" if self.key is None else f"key {self.key!r}"
        return f"{self.table}: hold {self.id} keeps {what} since {self.at:%F}: {self.reason} (placed by {self.who})"


class Holds:
    """The holds of one table that are in force, read once; contains the key texts that one of them keeps.

    Raises:
        KeyMissing, KeyRefused: (when a key is looked for) persons are held, and without the master key nobody can tell
            whose row is whose.
    """

    def __init__(self, bench: Workbench, table: BronzeTable) -> None:
        self._bench = bench
        self._table = table
        self.there = in_force(bench.lake, table)
        self.all = any(one.key == ALL for one in self.there)
        self._marks = frozenset(one.hmac or one.key for one in self.there if one.key != ALL)

    @property
    def exact(self) -> bool:
        """Whether a key has one text, in files too: a moment has many."""
        return all(isinstance(column.type, (*_NUMBERS, T.StringType)) for column in self._table.key)

    def __bool__(self) -> bool:
        return bool(self.there)

    def __contains__(self, key: object) -> bool:
        return self.all or (bool(self._marks) and isinstance(key, str) and self._mark(self._plain(key)) in self._marks)

    def of(self, keys: Iterable[str]) -> list[Hold]:
        """The holds that keep any of these keys, oldest first."""
        if not self.there:
            return []
        wanted = {self._mark(key) for key in keys} if self._marks else set()
        return [one for one in self.there if one.key == ALL or (one.hmac or one.key) in wanted]

    def marked(self, session: SparkSession, frame: DataFrame, key: SparkColumn) -> DataFrame:
        """The rows with a boolean column `IS_HELD`.

        Args:
            key: the key text of a row; one without is not held but by a hold on all of the table.
        """
        if self.all or not self._marks:
            return frame.withColumn(IS_HELD, F.lit(self.all))
        # In a frame, since a plan keeps literals.
        held = session.createDataFrame([(mark,) for mark in sorted(map(str, self._marks))], "__mark string")
        if not self._table.has_personal_data:
            frame = frame.withColumn("__of", key)
        else:
            pads = session.createDataFrame([tuple(hmac_pads(self._secret))], "__inner binary, __outer binary")
            subject = F.concat(F.lit(f"{self._table.schema}/{self._table.name}/"), key)
            frame = frame.crossJoin(F.broadcast(pads))
            frame = frame.withColumn("__of", hmac_column(subject, F.col("__inner"), F.col("__outer")))
            frame = frame.drop("__inner", "__outer")
        frame = frame.join(F.broadcast(held), F.col("__of") == F.col("__mark"), "left")
        return frame.withColumn(IS_HELD, F.col("__mark").isNotNull()).drop("__of", "__mark")

    @functools.cached_property
    def _secret(self) -> bytes:
        bench = self._bench
        return DataKeys(bench.lake, bench.ring, self._table.schema, bench.clock).hmac_key("tombstone")

    def _mark(self, key: str) -> str:
        if not self._table.has_personal_data:
            return key
        return hmac_hex(self._secret, f"{self._table.schema}/{self._table.name}/{key}")

    def _plain(self, key: str) -> str:
        """The key text of what a file says: a number may have a sign and zeros there."""
        if len(self._table.key) > 1 or not isinstance(self._table.key[0].type, _NUMBERS):
            return key
        try:
            return str(int(key))
        except ValueError:
            return key

    def event(self, hold: Hold, event: str, *, reason: str, who: str, run_id: str) -> None:
        """Append an event of a hold."""
        row: dict[str, Any] = {"hold_id": hold.id, "event": event, "table_name": hold.table, "key_text": hold.key}
        row |= {"subject_hmac": hold.hmac, "reason": reason, "who": who, "at": self._bench.clock(), "run_id": run_id}
        self._bench.lake.append_rows(self._table.schema, LEGAL_HOLDS, _SCHEMA, [row])

    def new(self, key: str, *, reason: str, who: str) -> Hold:
        """A hold on a key, not placed yet."""
        personal = key != ALL and self._table.has_personal_data
        shown, mark = (None, self._mark(key)) if personal else (key, None)
        return Hold(f"{uuid.uuid4()}", self._table.name, shown, mark, reason, who, self._bench.clock())


def in_force(lake: Lakehouse, table: BronzeTable) -> list[Hold]:
    """The holds of a table that have been placed and not released, oldest first. Needs no key."""
    rows = lake.rows(table.schema, LEGAL_HOLDS, where=f"table_name = {sql_literal(table.name)}")
    over = {row["hold_id"] for row in rows if row["event"] == RELEASED}
    found = [
        Hold(row["hold_id"], table.name, row["key_text"], row["subject_hmac"], row["reason"], row["who"], row["at"])
        for row in rows
        if row["event"] == PLACED and row["hold_id"] not in over
    ]
    return sorted(found, key=lambda one: (one.at, one.id))


def place(bench: Workbench, table: BronzeTable, key: str, *, reason: str, who: str, run_id: str = "") -> Hold:
    """Keep what a table has of a key from retention and erasure, until the hold is released.

    Each claim has a hold of its own: two on one key are released apart.

    Args:
        key: key text, as the quarantine shows it, or `ALL`. Nobody has to have loaded it yet.
        reason: which claim; not a person's name.
        who: places it.

    Raises:
        RetentionRefused: no key, no reason, or nobody who places it.
        PrivacyRefused: it can be nobody's key.
        KeyMissing, KeyRefused: the key is a person's, and there is no master key to keep it with.
    """
    _check(table, key, reason=reason, who=who)
    holds = Holds(bench, table)
    wanted = key.strip()
    hold = holds.new(wanted if wanted == ALL else canonical_key(table, wanted), reason=reason, who=who)
    holds.event(hold, PLACED, reason=reason, who=who, run_id=run_id)
    return hold


def release(bench: Workbench, table: BronzeTable, key: str, *, reason: str, who: str, run_id: str = "") -> Hold:
    """End a hold: retention and erasures have what it kept again.

    Args:
        key: the id of the hold, or its key text (or `ALL`) if that has one hold only.
        reason: why it is over; not a person's name.

    Returns:
        What was released.

    Raises:
        RetentionRefused: there is no such hold, or there are several; or nobody says who releases it and why.
        PrivacyRefused, KeyMissing, KeyRefused: as for `place`.
    """
    _check(table, key, reason=reason, who=who)
    holds, wanted = Holds(bench, table), key.strip()
    found = [one for one in holds.there if one.id == wanted]
    if not found and wanted == ALL:
        found = [one for one in holds.there if one.key == ALL]
    elif not found and holds:
        found = [one for one in holds.of([canonical_key(table, wanted)]) if one.key != ALL]
    if not found:
        raise RetentionRefused(
            "no hold of that key or id is in force.", "see `python -m bronze_assets hold list`.", table=table.name
        )
    if len(found) > 1:
        ids = ", ".join(one.id for one in found)
        raise RetentionRefused(
            f"{len(found)} holds are on that key: {ids}.", "name the one that is over by its id.", table=table.name
        )
    holds.event(found[0], RELEASED, reason=reason, who=who, run_id=run_id)
    return found[0]


def _check(table: BronzeTable, key: str, *, reason: str, who: str) -> None:
    if not key.strip():
        raise RetentionRefused("no key says what is held.", f"give the key of a row, or {ALL!r}.", table=table.name)
    if not reason.strip() or not who.strip():
        raise RetentionRefused("a hold needs a reason and somebody who asks.", "say both.", table=table.name)
