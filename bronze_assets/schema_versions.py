"""`bz_schema_versions`: which columns a table of files has beside the declared ones, since when, and who accepted them.

Append-only, one per schema, beside the tables. An event is `evolved` (a column joined by the table's policy),
`proposed` (the policy stops the table until somebody accepts the column), `accepted`, `withdrawn` (the files were
mended instead), or, of a table with personal data, `classified` (somebody has declared the column since).
"""

from __future__ import annotations

import datetime as dt
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence

import pyarrow as pa
from pyspark.sql import types as T

from bronze_assets.errors import LoadRefused
from bronze_assets.lakehouse import Lakehouse
from bronze_assets.storage import sql_literal
from bronze_assets.table import LOAD_DATE, METADATA_COLUMNS, RESCUED, BronzeTable, Evolution

SCHEMA_VERSIONS = "bz_schema_versions"
USABLE_NAME = re.compile(r"[a-z]\w{0,127}", re.ASCII)
"""A name that a column can have; what stands under another is rescued."""
MOST_COLUMNS = 200
"""Undeclared columns that a table may have; more are rescued: a producer that makes up names is not to bury a table."""

_SCHEMA = pa.schema(
    [
        ("table_name", pa.string()),
        ("version", pa.int32()),
        ("event", pa.string()),
        ("columns", pa.string()),
        ("event_time", pa.timestamp("us", tz="UTC")),
        ("batch_id", pa.string()),
        ("actor", pa.string()),
    ]
)


class SchemaVersions:
    """The undeclared columns of one table."""

    def __init__(self, lake: Lakehouse, table: BronzeTable, clock: Callable[[], dt.datetime]) -> None:
        self._lake = lake
        self._table = table
        self._clock = clock
        rows = lake.rows(table.schema, SCHEMA_VERSIONS, where=f"table_name = {sql_literal(table.name)}")
        order = {"proposed": 0, "withdrawn": 1}
        self._events = sorted(rows, key=lambda row: (row["event_time"], row["version"], order.get(row["event"], 2)))

    @property
    def version(self) -> int:
        """How often columns have joined or been accepted."""
        return sum(event["event"] in ("evolved", "accepted") for event in self._events)

    def accepted(self) -> dict[str, T.DataType]:
        """Name → type of the columns that have joined or been accepted."""
        return self._columns("evolved", "accepted")

    def classified(self) -> set[str]:
        """The columns that have been declared since they joined, and are held as declared."""
        return set(self._columns("classified"))

    def proposed(self) -> dict[str, T.DataType]:
        """Name → type of the columns that wait for somebody to accept them."""
        found: dict[str, T.DataType] = {}
        for row in self._events:
            columns = {name: _type(text) for name, text in json.loads(row["columns"]).items()}
            if row["event"] == "proposed":
                found |= columns
            else:
                found = {name: kind for name, kind in found.items() if name not in columns}
        return found

    def withdraw(self, still: Iterable[str], *, batch_id: str, actor: str) -> None:
        """Take back what was proposed and is not in the files any more, since somebody mended them."""
        gone = {name: kind for name, kind in self.proposed().items() if name not in set(still)}
        if gone:
            self.record("withdrawn", gone, batch_id=batch_id, actor=actor)

    def joining(self, found: Iterable[str], extra: Mapping[str, T.DataType]) -> list[str]:
        """Those of the names found in files that join the table by its policy."""
        feed = self._table.feed
        if feed is None or feed.evolution is not Evolution.ADD:
            return []
        return self._usable(found, extra)[: max(0, MOST_COLUMNS - len(extra))]

    def refused(self, found: Iterable[str], extra: Mapping[str, T.DataType]) -> list[str]:
        """Those of the names that stop the table until somebody accepts them."""
        feed = self._table.feed
        if feed is None or feed.evolution is not Evolution.STOP:
            return []
        return self._usable(found, extra)

    def undeclared(self, stored: T.StructType) -> dict[str, T.DataType]:
        """The columns of the Delta table that are neither declared nor added by the platform."""
        own = {*(c.name for c in self._table.columns), *METADATA_COLUMNS, LOAD_DATE, RESCUED}
        return {field.name: field.dataType for field in stored.fields if field.name not in own}

    def record(self, event: str, columns: Mapping[str, T.DataType], *, batch_id: str | None, actor: str) -> None:
        """Append an event."""
        if event == "proposed" and set(columns) <= set(self.proposed()):
            return
        row = {
            "table_name": self._table.name,
            "version": self.version + (event in ("evolved", "accepted")),
            "event": event,
            "columns": json.dumps({name: kind.simpleString() for name, kind in columns.items()}),
            "event_time": self._clock(),
            "batch_id": batch_id,
            "actor": actor,
        }
        self._lake.append_rows(self._table.schema, SCHEMA_VERSIONS, _SCHEMA, [row])
        self._events.append(row)

    def difference(self) -> list[str]:
        """What the files have that the table has not, and what has joined before, a line each; for people."""
        declared = ", ".join(f"{c.name} {c.type.simpleString()}" for c in self._table.columns)
        lines = [f"{self._table.name}", f"    declared: {declared}"]
        for event in self._events:
            if event["event"] in ("proposed", "withdrawn"):
                continue
            columns = ", ".join(f"{name} {kind}" for name, kind in json.loads(event["columns"]).items())
            lines.append(f"  = {event['event']} {event['event_time']:%Y-%m-%d %H:%M} by {event['actor']}: {columns}")
        lines += [f"  + waits to be accepted: {name} {kind.simpleString()}" for name, kind in self.proposed().items()]
        return lines

    def accept(self, actor: str, names: Sequence[str] = ()) -> dict[str, T.DataType]:
        """Accept proposed columns, all of them unless some are named; the table is loaded again from then on.

        Returns:
            The columns accepted.

        Raises:
            LoadRefused: nothing is proposed, or not one of these names.
        """
        proposed = self.proposed()
        strange = sorted(set(names) - set(proposed))
        if not proposed or strange:
            what = f"no column {strange[0]!r} is proposed" if strange else "no column waits to be accepted"
            known = ", ".join(proposed) or "none"
            raise LoadRefused(f"{what}.", f"name some of the proposed ones: {known}.", table=self._table.name)
        chosen = {name: kind for name, kind in proposed.items() if not names or name in names}
        self.record("accepted", chosen, batch_id=None, actor=actor)
        return chosen

    def _columns(self, *events: str) -> dict[str, T.DataType]:
        found: dict[str, T.DataType] = {}
        for row in self._events:
            if row["event"] in events:
                found |= {name: _type(text) for name, text in json.loads(row["columns"]).items()}
        return found

    def _usable(self, found: Iterable[str], extra: Mapping[str, T.DataType]) -> list[str]:
        """Names that a column can have. Others stay in `_rescued_data`."""
        taken = {*(c.name for c in self._table.columns), *METADATA_COLUMNS, LOAD_DATE, RESCUED, *extra}
        return sorted(name for name in set(found) - taken if USABLE_NAME.fullmatch(name))


def _type(text: str) -> T.DataType:
    decimal = re.fullmatch(r"decimal\((\d+),(\d+)\)", text)
    if decimal:
        return T.DecimalType(int(decimal[1]), int(decimal[2]))
    kinds: tuple[type[T.DataType], ...] = (
        T.IntegerType,
        T.LongType,
        T.BooleanType,
        T.DateType,
        T.TimestampType,
        T.StringType,
    )
    return next((kind() for kind in kinds if kind().simpleString() == text), T.StringType())
