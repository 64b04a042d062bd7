"""What a text means as a value of each type: Spark's reading against plain Python's of the same rules."""

from __future__ import annotations

import datetime as dt
import re
from collections.abc import Callable
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pyspark.sql import functions as F
from pyspark.sql import types as T

from bronze_assets.sources.files import parsed
from bronze_assets.table import Feed

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

FEED = Feed("raw/things")


def whole(bits: int) -> Callable[[str], int | None]:
    def read(text: str) -> int | None:
        if not re.fullmatch(r"[+-]?[0-9]+(\.0+)?", text):
            return None
        value = int(text.partition(".")[0])
        return value if -(2 ** (bits - 1)) <= value < 2 ** (bits - 1) else None

    return read


def decimal(text: str) -> Decimal | None:
    """A decimal(12,4), exactly or not at all; with an exponent of two digits, and at most 18 characters before it."""
    if not re.fullmatch(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)|[+-]?[0-9][0-9.]{0,17}[eE][+-]?[0-9]{1,2}", text):
        return None
    try:
        value = Decimal(text)
    except ArithmeticError:
        return None
    _, digits, exponent = value.as_tuple()
    places = len(digits) + int(exponent)
    while digits and digits[-1] == 0:
        digits, exponent = digits[:-1], int(exponent) + 1
    fits = not digits or (int(exponent) >= -4 and places <= 8)
    return value if fits else None


def date(text: str) -> dt.date | None:
    if not re.fullmatch(r"[0-9]{4}-[0-9]{2}-[0-9]{2}Z?", text):
        return None
    try:
        return dt.date.fromisoformat(text[:10])
    except ValueError:
        return None


def boolean(text: str) -> bool | None:
    return {"true": True, "false": False}.get(text.lower())


def moment(text: str) -> dt.datetime | None:
    """Without offsets, which the generated texts do not have: Python and Spark differ in the widest."""
    if not re.fullmatch(r"[0-9]{4}-[0-9]{2}-[0-9]{2}[ T][0-9]{2}:[0-9]{2}:[0-9]{2}(\.[0-9]{1,6})?Z?", text):
        return None
    try:
        head, _, fraction = text.removesuffix("Z").partition(".")
        return dt.datetime.fromisoformat(head).replace(microsecond=int(fraction.ljust(6, "0") or 0))
    except ValueError:
        return None


KINDS: dict[str, tuple[T.DataType, Callable[[str], Any]]] = {
    "int": (T.IntegerType(), whole(32)),
    "long": (T.LongType(), whole(64)),
    "decimal": (T.DecimalType(12, 4), decimal),
    "date": (T.DateType(), date),
    "boolean": (T.BooleanType(), boolean),
    "timestamp": (T.TimestampType(), moment),
    "string": (T.StringType(), lambda text: text),
}

digits = st.text("0123456789", max_size=12)
numbers = st.builds(
    lambda sign, head, dot, tail, exponent: f"{sign}{head}{dot}{tail}{exponent}",
    st.sampled_from(["", "-", "+"]),
    digits,
    st.sampled_from(["", "."]),
    st.one_of(digits, st.just("0000"), st.builds(lambda n: n + "0" * 20, digits)),
    st.sampled_from(["", "", "e2", "E-3", "e-30", "E+5", "e400"]),
)
days = st.one_of(
    st.dates().map(str),
    st.builds("{:04}-{:02}-{:02}".format, st.integers(0, 9999), st.integers(0, 13), st.integers(0, 32)),
)
moments = st.builds(
    lambda day, between, clock, fraction, zone: f"{day}{between}{clock}{fraction}{zone}",
    days,
    st.sampled_from([" ", "T", "  ", "t"]),
    st.builds("{:02}:{:02}:{:02}".format, st.integers(0, 24), st.integers(0, 60), st.integers(0, 60)),
    st.one_of(st.just(""), st.text("0123456789", max_size=8).map(".{}".format)),
    st.sampled_from(["", "Z"]),
)
anything = st.text(st.characters(codec="utf-8", exclude_characters="\x00"), max_size=12)
texts = st.one_of(
    numbers, days, moments, anything, st.sampled_from(["true", "FALSE", "True", "yes", "1", "t", "NaN", "Infinity"])
)
padded = st.builds(lambda text, pad: pad.format(text), texts, st.sampled_from(["{}", "{}", "{}", " {}", "{}\n", "{} "]))


@settings(max_examples=12, deadline=None)
@example([])
@example(["0.12340000000000000000001", "1e-30", "12345678.99999", "99999999.9999", "-.5", "5.", ".", "+", "1e", "e1"])
@example(["2026-02-30", "2024-02-29", "0000-01-01", "2026-06-01\n", "10000-01-01", "2026-06-01 24:00:00"])
@example(["2147483647", "2147483648", "-2147483648", "3.0", "3.5", "٣", "1_000", "0x1", "1L", "1d", "1e2"])
@given(st.lists(padded, min_size=60, max_size=120))
def test_a_text_is_the_value_that_plain_python_reads_or_none(spark: SparkSession, found: list[str]) -> None:
    frame = spark.createDataFrame([(n, text) for n, text in enumerate(found)], "n int, text string")
    text = F.col("text")
    rows = frame.select(
        "n", *(parsed(text, kind, FEED).cast("string").alias(name) for name, (kind, _) in KINDS.items())
    ).collect()
    for row in rows:
        for name, (_, read) in KINDS.items():
            expected = read(found[row.n])
            got = row[name]
            if got is not None and name == "decimal":
                got = Decimal(got)
            shown = expected if name in ("decimal", "string") or expected is None else written(expected)
            assert got == shown, (name, found[row.n])


def written(value: object) -> str:
    """As Spark writes it."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, dt.datetime):
        return value.isoformat(" ").rstrip("0").rstrip(".") if value.microsecond else value.isoformat(" ")
    return str(value)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2026-06-01 10:00:00+02:00", "2026-06-01 08:00:00"),
        ("2026-06-01 10:00:00-0530", "2026-06-01 15:30:00"),
        ("2026-06-01T10:00:00.5+02:00", "2026-06-01 08:00:00.5"),
        ("2026-06-01 10:00:00+99:00", None),
        ("2026-06-01 10:00:00 Europe/Berlin", None),
    ],
)
def test_an_offset_is_taken_into_account_or_the_text_is_none(
    spark: SparkSession, text: str, expected: str | None
) -> None:
    value = parsed(F.col("text"), T.TimestampType(), FEED).cast("string").alias("value")
    assert spark.createDataFrame([(text,)], "text string").select(value).collect()[0].value == expected


def test_formats_of_dates_and_times_can_be_stated(spark: SparkSession) -> None:
    feed = Feed("raw/things", date_format="dd.MM.yyyy", timestamp_format="dd/MM/yyyy HH:mm")
    frame = spark.createDataFrame(
        [("01.06.2026", "02/06/2026 10:30"), ("2026-06-01", "31/02/2026 10:30")], "d string, t string"
    )
    found = frame.select(
        parsed(F.col("d"), T.DateType(), feed).cast("string").alias("d"),
        parsed(F.col("t"), T.TimestampType(), feed).cast("string").alias("t"),
    ).collect()
    assert [tuple(row) for row in found] == [("2026-06-01", "2026-06-02 10:30:00"), (None, None)]
