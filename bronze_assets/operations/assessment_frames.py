"""What the assessment asks Spark and pandera."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import pandera.pyspark as pa
from pandera.config import ValidationDepth, config_context
from pyspark.sql import Column as SparkColumn
from pyspark.sql import DataFrame, Window
from pyspark.sql import functions as F
from pyspark.sql import types as T

from bronze_assets import quality
from bronze_assets.operations.assessment_facts import MOST_TEXT, NEARLY_UNIQUE, TOP, Profile, shows_values
from bronze_assets.quality import Rule
from bronze_assets.settings import Settings
from bronze_assets.table import BronzeTable, Column

_NUMBERS = (T.IntegerType, T.LongType, T.DecimalType)


@dataclass(frozen=True)
class Counts:
    """Rows, and rows that break each rule."""

    rows: int
    broken: dict[str, int]


@contextmanager
def kept(frame: DataFrame, settings: Settings) -> Iterator[DataFrame]:
    """A frame that is not computed for each question anew, where Spark can keep one."""
    if settings.serverless:
        yield frame
        return
    frame.persist()
    try:
        yield frame
    finally:
        frame.unpersist()


def counted(
    frame: DataFrame,
    table: BronzeTable,
    rules: Sequence[Rule],
    columns: Sequence[Column],
    today: dt.date,
    now: dt.datetime,
) -> tuple[Counts, list[Profile]]:
    """Rows that break each rule, and the columns' profiles without frequent values, by one aggregation.

    Args:
        frame: the declared columns that the table has.
        today, now: what timely rules compare with.
    """
    # A column that no load has brought yet.
    missing = [column for column in table.columns if column.name not in frame.columns]
    whole = frame.withColumns({column.name: F.lit(None).cast(column.type) for column in missing}) if missing else frame
    judged = quality.judge(whole, table, extra=(), today=today, now=now)
    asked = [F.count(F.lit(1)).alias("rows")]
    breaks = quality.broken(table)
    asked += [F.count_if(breaks.is_set(rule.name)).alias(f"broken {rule.name}") for rule in rules]
    asked += [answer.alias(f"{name} {c.name}") for c in columns for name, answer in _asked(c).items()]
    row: dict[str, Any] = judged.agg(*asked).collect()[0].asDict()
    counts = Counts(row["rows"], {rule.name: row[f"broken {rule.name}"] for rule in rules})
    return counts, [_profile(column, row) for column in columns]


def _asked(column: Column) -> dict[str, SparkColumn]:
    value = F.col(f"`{column.name}`")
    asked = {"nulls": F.count_if(value.isNull())}
    if not column.pii.protected:
        asked["distinct"] = F.approx_count_distinct(value)
    if shows_values(column):
        asked |= {"least": _as_text(F.min(value)), "most": _as_text(F.max(value))}
        if isinstance(column.type, _NUMBERS):
            number = value.cast("double")
            asked |= {"mean": F.avg(number), "deviation": F.stddev_samp(number)}
    return asked


def _as_text(value: SparkColumn) -> SparkColumn:
    return F.left(value.cast("string"), F.lit(MOST_TEXT))


def _profile(column: Column, row: dict[str, Any]) -> Profile:
    told = {name: row[f"{name} {column.name}"] for name in _asked(column)}
    return Profile(column.name, column.type.simpleString(), str(column.pii), column.key, **told)


def with_top(frame: DataFrame, profiles: Sequence[Profile], columns: Sequence[Column], rows: int) -> list[Profile]:
    """The profiles with the most frequent values of unprotected, impersonal columns that repeat, by one aggregation."""
    repeating = [
        column.name
        for column, profile in zip(columns, profiles, strict=True)
        if shows_values(column) and not column.key and 0 < (profile.distinct or 0) <= max(TOP, rows * NEARLY_UNIQUE)
    ]
    if not repeating:
        return list(profiles)
    pairs = F.array(*(F.struct(F.lit(name).alias("c"), _as_text(F.col(f"`{name}`")).alias("v")) for name in repeating))
    counts = frame.select(F.explode(pairs).alias("p")).where("p.v is not null").groupBy("p.c", "p.v").count()
    # The value breaks ties, so that the same rows have the same answer.
    ranked = counts.withColumn("rank", F.row_number().over(Window.partitionBy("c").orderBy(F.desc("count"), "v")))
    found: dict[str, list[tuple[str, int]]] = {name: [] for name in repeating}
    # One more than is kept tells whether there are more.
    for row in ranked.where(F.col("rank") <= TOP + 1).orderBy("c", "rank").collect():
        found[row["c"]].append((row["v"], row["count"]))
    return [
        replace(one, top=tuple(found[one.column][:TOP]), top_is_all=len(found[one.column]) <= TOP)
        if one.column in found
        else one
        for one in profiles
    ]


def by_pandera(frame: DataFrame, table: BronzeTable) -> set[tuple[str, str]]:
    """Column and check of everything that pandera's own validation of schema and data has to say.

    Protected columns are left out: what lies there are no values.
    """
    whole = table.model.to_schema()
    hidden = quality.protected(table)
    readable: Any = pa.DataFrameSchema({name: spec for name, spec in whole.columns.items() if name not in hidden})
    with config_context(validation_enabled=True, validation_depth=ValidationDepth.SCHEMA_AND_DATA):
        validated: Any = readable.validate(frame.drop(*hidden), lazy=True)
        errors: dict[str, dict[str, list[dict[str, Any]]]] = validated.pandera.errors
    return {
        (str(problem["column"]), str(problem["check"]).partition("(")[0])
        for kinds in errors.values()
        for problems in kinds.values()
        for problem in problems
    }
