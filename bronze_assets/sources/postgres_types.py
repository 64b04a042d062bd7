"""PostgreSQL's types: which of them fit a declared one, and how their values travel over JDBC unbent.

JDBC bends some values (semantics.md): infinite dates, NaN, numerics that do not fit. The query itself tells them apart.
Dates and timestamps travel as whole numbers, which is exact for every calendar and cheaper than JDBC's own decoding.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from pyspark.sql import Column as SparkColumn
from pyspark.sql import functions as F
from pyspark.sql import types as T


@dataclass(frozen=True)
class SourceColumn:
    """A column as PostgreSQL's catalog has it; precision and scale only for a constrained numeric.

    Attributes:
        not_null: whether the source keeps every NULL out of it.
    """

    name: str
    type: str
    not_null: bool
    precision: int | None = None
    scale: int | None = None

    def __str__(self) -> str:
        return self.type if self.precision is None else f"{self.type}({self.precision},{self.scale})"


_INTEGERS = ("int2", "int4")
_TEXTS = ("text", "varchar", "bpchar", "name", "citext", "uuid")
COMPATIBLE: Mapping[type[T.DataType], tuple[str, ...]] = {
    T.IntegerType: _INTEGERS,
    T.LongType: (*_INTEGERS, "int8"),
    T.StringType: _TEXTS,
    T.DecimalType: (*_INTEGERS, "int8", "numeric"),
    T.DateType: ("date",),
    T.TimestampType: ("timestamp", "timestamptz"),
    T.BooleanType: ("bool",),
}
"""Spark type → the source types whose every value either fits or is told apart by the query. Text → number is not here:
a number that arrives as text means that somebody changed the column."""


def spark_type(column: SourceColumn) -> T.DataType:
    """The type under which an undeclared source column joins the table: its own, else text."""
    match column.type:
        case "int2" | "int4":
            return T.IntegerType()
        case "int8":
            return T.LongType()
        case "bool":
            return T.BooleanType()
        case "date":
            return T.DateType()
        case "timestamp" | "timestamptz":
            return T.TimestampType()
        case "numeric" if column.precision is not None and 0 <= (column.scale or 0) <= column.precision <= 38:
            return T.DecimalType(column.precision, column.scale or 0)
        case _:
            return T.StringType()


def expressions(column: SourceColumn, kind: T.DataType) -> tuple[str, str | None]:
    """SQL for the value, and for its text where it cannot be had as `kind` (None if it always can)."""
    c = quote_name(column.name)

    def told_apart(fits: str, value: str) -> tuple[str, str]:
        return f"case when {fits} then {value} end", f"case when not ({fits}) then {c}::text end"

    match kind:
        case T.DateType():
            return told_apart(f"{c} between '0001-01-01' and '9999-12-31'", f"{c} - date '1970-01-01'")
        case T.TimestampType():
            utc = f"({c} at time zone 'UTC')" if column.type == "timestamptz" else c
            micros = (
                f"extract(epoch from date_trunc('second', {utc}))::bigint * 1000000"
                f" + extract(microseconds from {utc})::bigint % 1000000"
            )
            return told_apart(f"{c} >= '0001-01-01' and {c} < '10000-01-01'", micros)
        case T.DecimalType() if column.type == "numeric":
            p, s = kind.precision, kind.scale
            fits = f"abs({c}) < 1e{p - s}::numeric and {c} = round({c}, {s})"
            if column.precision is not None and column.scale is not None and column.scale <= s:
                # What the source's own type bounds need not be asked of every row.
                bounded = column.precision - column.scale <= p - s
                fits = f"{c} <> 'NaN'" if bounded else f"abs({c}) < 1e{p - s}::numeric"
            value, raw = told_apart(fits, c)
            # Around the whole: JDBC does not see through a `case` to its branch's precision, and would bend the value.
            return f"({value})::numeric({p},{s})", raw
        case T.DecimalType():
            p, s = kind.precision, kind.scale
            value, raw = told_apart(f"abs({c}::numeric) < 1e{p - s}::numeric", c)
            return f"({value})::numeric({p},{s})", raw
        case T.LongType():
            return f"{c}::bigint", None
        case T.IntegerType():
            return f"{c}::int", None
        case T.BooleanType():
            return c, None
        case _:
            return f"{c}::text", None


def finished(name: str, kind: T.DataType) -> SparkColumn:
    """What Spark makes of a value that travelled as `expressions` wrote it."""
    value = F.col(name)
    match kind:
        case T.DateType():
            return F.date_from_unix_date(value)
        case T.TimestampType():
            return F.timestamp_micros(value)
        case T.DecimalType():
            return value.cast(kind)
        case _:
            return value


def quote_name(name: str) -> str:
    """A name as PostgreSQL quotes it."""
    return '"' + name.replace('"', '""') + '"'
