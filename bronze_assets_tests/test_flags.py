"""Flags against plain Python: more of them than one column holds, in any state."""

from __future__ import annotations

import random

from pyspark.sql import SparkSession
from pyspark.sql import functions as F
from pyspark.sql import types as T

from bronze_assets.flags import Flags

NAMES = [f"flag {number}" for number in range(130)]
SOME = [NAMES[at] for at in (0, 1, 61, 62, 63, 123, 124, 129)]


def test_flags_are_what_they_were_made_of(spark: SparkSession) -> None:
    numbers = random.Random(31)
    rows = [[numbers.choice([True, False, None]) for _ in NAMES] for _ in range(30)]
    rows += [[True] * len(NAMES), [False] * len(NAMES), [None] * len(NAMES)]
    rows += [[name == one for name in NAMES] for one in SOME]
    schema = T.StructType([T.StructField(name, T.BooleanType()) for name in NAMES])
    flags = Flags("__of_", NAMES)

    columns = flags.columns({name: F.col(name) for name in NAMES})
    found = spark.createDataFrame(rows, schema).coalesce(1).select(*(c.alias(name) for name, c in columns.items()))
    told = found.select(
        flags.any_set(NAMES).alias("any"),
        flags.any_set(SOME).alias("some"),
        flags.any_set([]).alias("none"),
        flags.number_set(NAMES).alias("all of them"),
        flags.number_set(SOME).alias("of some"),
        *(flags.is_set(name).alias(name) for name in NAMES),
    ).collect()

    assert found.columns == ["__of_0", "__of_1", "__of_2"]
    places = [NAMES.index(name) for name in SOME]
    for row, made in zip(told, rows, strict=True):
        assert [row[name] for name in NAMES] == [bool(value) for value in made]
        assert (row["any"], row["none"]) == (any(made), False)
        assert row["some"] == any(made[at] for at in places)
        assert row["all of them"] == sum(map(bool, made))
        assert row["of some"] == sum(bool(made[at]) for at in places)


def test_a_row_without_flags_has_none(spark: SparkSession) -> None:
    flags = Flags("__of_", NAMES[:2])
    row = spark.sql("select cast(null as bigint) as __of_0").select(flags.is_set(NAMES[0]), flags.number_set(NAMES[:2]))

    assert row.collect() == [(None, None)]
