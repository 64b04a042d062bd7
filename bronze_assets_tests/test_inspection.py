"""What one look at the bytes of a CSV file tells, against a plain reading of the same text."""

from __future__ import annotations

import csv
import datetime as dt
import gzip
import io
import tempfile
from pathlib import Path
from typing import Literal

import hypothesis
import hypothesis.strategies as st
import pandera.pyspark as pa
import pyspark.sql.types as T
import pytest

from bronze_assets.sources.inspection import Inspected, _each_alone, inspect
from bronze_assets.sources.landing import LandingZone
from bronze_assets.table import BronzeTable, Cadence, Feed, column


class Seen(pa.DataFrameModel):
    place: T.StringType = column(key=True, description="Where.")
    number: T.IntegerType = column(key=True, description="Which.")
    day: T.DateType = column(key=True, description="On which day.")
    moment: T.TimestampType = column(key=True, description="When.")
    note: T.StringType = column(description="What.")


SEEN = BronzeTable("s_bronze", "s.Seen", Seen, Cadence.STREAMING, "Seen.", files=Feed("raw/seen"), source_system="S")
HEADER = ["place", "number", "day", "moment", "note"]
PLACES = st.sampled_from(["a", "b", "A", "", " a", 'a"b', "é"])
NUMBERS = st.sampled_from(["1", "2", "1", "01", "+1", "1.0", "-0", "0", "", "x"])
DAYS = st.sampled_from(["2026-06-01", "2026-06-02", "2026-06-01Z", "2026-02-30"])
MOMENTS = st.sampled_from(
    ["2026-06-01 10:00:00", "2026-06-01T10:00:00", "2026-06-01 10:00:00Z", "2026-06-01 10:00:00.0", "no"]
)
NOTES = st.sampled_from(["", "x", "a,b", 'say "no"'])


def inspected(folder: str, content: bytes, name: str = "a.csv", table: BronzeTable = SEEN) -> Inspected:
    place = Path(folder) / "raw/seen"
    place.mkdir(parents=True, exist_ok=True)
    (place / name).write_bytes(content)
    zone = LandingZone(folder, str(Path(folder) / "archive"))
    assert table.feed is not None
    (one,) = inspect(zone, table, [file for file in zone.files(table.feed) if file.path.endswith(name)])
    return one


def text_of(*rows: tuple[str, ...], header: list[str] = HEADER, quoting: Literal[0, 1] = 0) -> bytes:
    target = io.StringIO()
    writer = csv.writer(target, quoting=quoting, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    return target.getvalue().encode()


def value(text: str) -> object:
    """The value of a text, in whatever form; the text itself where it is none of a number, a day and a moment."""
    for reading in (
        lambda: int(float(text)),
        lambda: dt.datetime.fromisoformat(text.replace("Z", "")).replace(tzinfo=None),
    ):
        try:
            return reading()
        except ValueError:
            pass
    return text


@hypothesis.settings(max_examples=300, deadline=None)
@hypothesis.given(
    st.lists(st.tuples(PLACES, NUMBERS, DAYS, MOMENTS, NOTES), min_size=1, max_size=6),
    st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL]),
)
def test_keys_are_said_to_differ_only_if_they_do(rows: list[tuple[str, ...]], quoting: Literal[0, 1]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        unique = inspected(folder, text_of(*rows, quoting=quoting)).unique
    keys = {(place, *map(value, others)) for place, *others, _ in rows}
    if unique:
        assert len(keys) == len(rows)
    # And it is said where it matters: of plain texts.
    usual = all(row[1] in ("0", "1", "2") and len(row[2]) == 10 and len(row[3]) == 19 for row in rows)
    if usual and len(keys) == len(rows):
        assert unique


ROWS = [("a", str(n), "2026-06-01", "2026-06-01 10:00:00", "x") for n in range(1, 4)]
OTHER_ORDER = [tuple(reversed(row)) for row in ROWS]


@pytest.mark.parametrize(
    ("content", "unique"),
    [
        (text_of(*ROWS), True),
        (b"\xef\xbb\xbf" + text_of(*ROWS), True),
        (text_of(*ROWS).replace(b"\n", b"\r\n"), True),
        (text_of(*OTHER_ORDER, header=[name.upper() for name in reversed(HEADER)]), True),
        (text_of(*ROWS, ROWS[1]), False),
        # Spark reads the first of these keys without its NUL.
        (text_of(('a"b\0', *ROWS[0][1:]), ('a"b', *ROWS[0][1:])), False),
        # Nobody knows the key of a line that is no row.
        (text_of(*ROWS) + b"a,4\n", False),
        (text_of(*ROWS) + b"a,4,2026-06-01,2026-06-01 10:00:00,x,y\n", False),
        # The look is at lines: a row of several is left alone.
        (text_of(*ROWS, ("a", "4", "2026-06-01", "2026-06-01 10:00:00", "x\ny")), False),
        (text_of(), True),
    ],
)
def test_files_whose_keys_differ(tmp_path: Path, content: bytes, unique: bool) -> None:
    found = inspected(str(tmp_path), content)
    assert (found.problem, found.unique) == (None, unique)
    assert inspected(str(tmp_path), gzip.compress(content), "b.csv.gz").unique is unique


@pytest.mark.parametrize("ends", [("\n", "\r\n"), ("\r\n", "\n"), ("\r", "\n")])
def test_where_values_span_lines_rows_must_end_alike(tmp_path: Path, ends: tuple[str, str]) -> None:
    header, first, second, third = text_of(*ROWS).decode().splitlines()
    spanning = second.replace(",x", f',"x{ends[0]}y"')

    def problem(end: str, row: str) -> str | None:
        found = inspected(str(tmp_path), f"{header}{end}{first}{ends[1]}{row}{ends[1]}{third}".encode())
        assert found.multiline == (row == spanning and found.problem is None)
        return found.problem

    told = f"values span lines, and its rows end in different ways ({', '.join(sorted(map(repr, ends)))})"
    assert problem(ends[0], spanning) == told
    # A last row without an end, and a quoted end of another kind, are no reason.
    assert problem(ends[1], spanning) is None
    assert problem(ends[0], second) is None


def test_keys_are_looked_at_up_to_a_number_of_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bronze_assets.sources.copies.MOST_ROWS", 2)
    assert not inspected(str(tmp_path), text_of(*ROWS)).unique
    assert inspected(str(tmp_path), text_of(*ROWS[:2])).unique


@hypothesis.settings(max_examples=1000, deadline=None)
@hypothesis.given(st.text(alphabet='aé,"\n\r\ufeff', max_size=24), st.integers(1, 8))
def test_lines_are_said_to_be_rows_only_if_a_plain_reading_finds_them_so(text: str, size: int) -> None:
    content = text.encode()
    alone = _each_alone(content[start : start + size] for start in range(0, len(content), size))
    plain_text = text.removeprefix("\ufeff")
    rows = csv.reader(io.StringIO(plain_text, newline=""), strict=True)
    try:
        plain = all(rows.line_num == number for number, _ in enumerate(rows, 1))
    except csv.Error:
        plain = False
    assert alone == plain
