"""Lines of a usual form are read in another way than others: it must be the same rows, whatever the line."""

from __future__ import annotations

import datetime as dt
import itertools
import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hypothesis
import hypothesis.strategies as st
import pandera.pyspark as pa
import pyarrow.parquet as pq
import pyspark.sql.types as T
import pytest

from bronze_assets.settings import Settings
from bronze_assets.sources import packing
from bronze_assets.sources.files import _POSITIONS, _USUAL_FIELDS, OPERATION, POSITION, ClaimedFiles
from bronze_assets.sources.inspection import Inspected, inspect
from bronze_assets.sources.landing import LandedFile, LandingZone
from bronze_assets.sources.packing import Packed, UsualLines, pack
from bronze_assets.table import BronzeTable, Cadence, Feed, column

if TYPE_CHECKING:
    from pyspark.sql import SparkSession


class Readings(pa.DataFrameModel):
    reading_id: T.LongType = column(key=True, description="Identifies a reading.")
    text: T.StringType = column(description="A text.")
    exact: T.DecimalType = column(dtype_kwargs={"precision": 12, "scale": 4}, description="An exact number.")
    whole: T.DecimalType = column(dtype_kwargs={"precision": 5, "scale": 0}, description="A number without places.")
    share: T.DecimalType = column(dtype_kwargs={"precision": 3, "scale": 3}, description="A number below one.")
    small: T.IntegerType = column(description="A whole number.")
    good: T.BooleanType = column(description="Yes or no.")
    day: T.DateType = column(description="A day.")
    moment: T.TimestampType = column(description="A moment.")


NAMES = ("text", "exact", "whole", "share", "small", "good", "day", "moment")
VALUES = (
    *("null", "true", "false", "0", "-0", "1", "-1", "7", "21.0", "21.50", "0.0", "-0.0", "-0.5", "0.001", "0.0001"),
    *("0.1", "0.30000000000000004", "1.1", "12345678.5", "123456789012345.5", "2147483647", "2147483648", "1e5"),
    *("1E-3", "123456789012345678", "12345678901234567890", "1234567.8912", "1234567.89125", "99999999.9999"),
    *("999999999.5", "99999", "100000", "-99999", "0.999", "-0.999", "0.9990", "1.0000", "1.00000"),
    *('""', '"a"', '"null"', '"21.0"', '"-0"', '"1e5"', '"2026-06-01"', '"2026-06-01 10:00:00"', '"2026-13-01"'),
    *(r'"\u00e9"', '"é\u2028"', r'"a\"b"', r'"\\"', '"\x7f"', '"\x01"', '"true"', '"yes"', "[1]", '{"a": 1}', "nul"),
    *("01", "1.", ".5", "+1", "NaN", '" 1"', '"0x1F"', r'"\ud800"', '"a": 1', '1, "reading_id": 2', '1, "text": "b"'),
    *('"0001-01-01"', '"0000-01-01"', '"2026-06-01Z"', '"2026-6-1"', '"2026-06-01T10:00:00.123456Z"', '"9999-12-31"'),
    *('"2026-06-01 10:00:00.1234567"', '"2026-06-01 10:00:00+02"', '"2026-06-01 10:00:00-0530"', '"infinity"'),
    *('"2026-06-01 25:00:00"', '"1.5"', '"-1.2500"', '"1.25000"', '"100000000.5"', '"+1.5"', '"-0.0"', '"0.000"'),
    '1, "new": 2',
)


def readings(**feed: Any) -> BronzeTable:
    feed = {"path": "raw/readings"} | feed
    return BronzeTable(
        "lab_bronze", "lab.Readings", Readings, Cadence.STREAMING, "Readings.", files=Feed(**feed), source_system="S"
    )


def usual_lines(table: BronzeTable, *told: Any) -> UsualLines:
    assert table.feed is not None
    return UsualLines.of({c.name: c.type for c in table.columns}, table.feed, ["reading_id"], *told)


def claimed(settings: Settings, table: BronzeTable, staging: Path) -> ClaimedFiles:
    assert table.feed is not None
    zone = LandingZone(settings.landing, settings.archive, None)
    return ClaimedFiles(zone, inspect(zone, table, zone.files(table.feed)), {"e": 3}, staging)


def lines() -> list[str]:
    good = {"text": "t", "exact": 3.25, "whole": 2, "share": 0.5, "small": 4, "good": True, "day": "2026-06-01"}
    numbers = itertools.count(1)
    found = []
    for name, value in itertools.product(NAMES, VALUES):
        members = {key: json.dumps(one) for key, one in good.items()} | {name: value}
        body = ", ".join(f'"{key}": {one}' for key, one in members.items())
        found.append(f'{{"reading_id": {next(numbers)}, {body}}}')
    found += [one.replace(": ", ":").replace(", ", ",") for one in found[:3]]
    found += [
        found[0] + "\r",
        found[0] + " ",
        " " + found[0],
        "\ufeff" + found[0],
        found[0] + found[1],
        "null",
        "",
        "  ",
    ]
    found += ['{"small": 1, "reading_id": 5}', '{"READING_ID": 6}', '{"reading_id": 1,  "text" : "x"}', "{}", "[]", "{"]
    return found


@pytest.mark.parametrize("feed", [{}, {"event_time": "moment"}, {"captured": True}, {"date_format": "dd.MM.yyyy"}])
def test_usual_lines_are_read_as_any_other_line(
    spark: SparkSession, settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, feed: dict[str, Any]
) -> None:
    folder = Path(settings.landing) / "raw/readings"
    folder.mkdir(parents=True)
    every = lines()
    if "captured" in feed:
        every = [one.replace("{", '{"__source_lsn": 7, "__op": "u", ', 1) for one in every]
    for start in range(0, len(every), 40):
        content = "\n".join(every[start : start + 40]).encode("utf-8", "surrogatepass")
        (folder / f"{start:04}.json").write_bytes(content + (b"\n\xff\xfe\n" if start == 80 else b""))
    table = readings(**feed)

    def rows(small: int) -> list[Any]:
        monkeypatch.setattr(packing, "SMALL", small)
        frame = claimed(settings, table, tmp_path / str(small)).read(spark, table, {})
        return sorted(repr(row.asDict()) for row in frame.select(*sorted(frame.columns)).collect())

    assert rows(2**22) == rows(0)


def packed(settings: Settings, tmp_path: Path, table: BronzeTable, usual: UsualLines, *texts: str) -> Packed:
    folder = Path(settings.landing) / "raw/readings"
    folder.mkdir(parents=True)
    for number, text in enumerate(texts):
        (folder / f"{number}.json").write_text(text)
    files = claimed(settings, table, tmp_path)
    assert table.feed is not None
    return pack(files.zone, files.files, tmp_path, usual, table.feed)


def values(path: str | None) -> list[str]:
    return [] if path is None else [line.decode() for line in pq.read_table(path)["value"].to_pylist()]


def texts(path: str | None, usual: UsualLines) -> list[dict[str, str]]:
    """The texts of usual lines by name, without those that are NULL."""
    rows = [] if path is None else pq.read_table(path).to_pylist()
    named = ({name: row[column] for name, column in usual.columns.items()} for row in rows)
    return [{name: text for name, text in row.items() if text is not None} for row in named]


def test_lines_are_usual_by_their_form_alone(settings: Settings, tmp_path: Path) -> None:
    table = readings()
    usual = usual_lines(table)
    forms = ['{"reading_id": 1, "exact": 0.5}', '{"exact":1,"reading_id":2}', '{"reading_id": 3}']
    others = [
        '{"reading_id": 1, "reading_id": 2}',
        '{"reading_id": 4, "double": "x"}',
        '{"reading_id": 5, "new": 1}',
        "[",
    ]
    found = packed(settings, tmp_path, table, usual, "\n".join(forms + others), "\n".join([*others, "", *forms]))
    rows = [{"reading_id": "1", "exact": "0.5"}, {"exact": "1", "reading_id": "2"}, {"reading_id": "3"}]
    assert sorted(map(str, texts(found.usual, usual))) == sorted(
        str({name: row[name] for name in usual.columns if name in row}) for row in rows * 2
    )
    assert sorted(values(found.others)) == sorted(others * 2)


def test_files_without_a_line_are_read_as_no_rows(spark: SparkSession, settings: Settings, tmp_path: Path) -> None:
    table = readings()
    found = packed(
        settings, tmp_path, table, UsualLines.of({"reading_id": T.LongType()}, Feed(""), ["reading_id"]), "\n\n", "\n"
    )
    assert found.usual is None
    assert values(found.others) == []
    assert claimed(settings, table, tmp_path / "again").read(spark, table, {}).count() == 0


def test_a_change_without_its_position_is_not_usual(
    spark: SparkSession, settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = readings(captured=True)
    change = {"reading_id": 1, "text": "a", "__op": "u", "__commit_lsn": 77, "__seq": 4, "__source_epoch": "e"}
    change |= {"__source_ts_ms": 1_780_000_000_000, "__deleted": "false", "__source_lsn": 70}
    strange: list[dict[str, Any]] = [{"__commit_lsn": None}, {"__commit_lsn": -5}, {"__op": "x"}, {"__op": 1}]
    others = [json.dumps(change | one) for one in strange]
    others.append(json.dumps({name: value for name, value in change.items() if not name.endswith("lsn")}))
    usual = usual_lines(table, _USUAL_FIELDS, _POSITIONS)
    text = "\n".join([json.dumps(change), json.dumps(change | {"__op": "d"}), *others])
    found = packed(settings, tmp_path / "pack", table, usual, text)
    assert len(texts(found.usual, usual)) == 2
    assert sorted(values(found.others)) == sorted(others)

    def read(small: int) -> list[Any]:
        monkeypatch.setattr(packing, "SMALL", small)
        frame = claimed(settings, table, tmp_path / str(small)).read(spark, table, {})
        return sorted(repr(row.asDict()) for row in frame.select(*sorted(frame.columns)).collect())

    rows = read(2**22)
    assert rows == read(0)
    assert sum(f"'{POSITION}': '0003/000000000000004D/0000000004'" in row for row in rows) == 2
    # Without a commit's position, a change has its own.
    assert sum(f"'{POSITION}': '0003/0000000000000046/0000000004'" in row for row in rows) == 1
    assert sum(re.search(f"'{OPERATION}': 'd'", row) is not None for row in rows) == 1


def test_names_of_any_kind_make_no_pattern(settings: Settings, tmp_path: Path) -> None:
    names = {"a.b": T.StringType(), "c(": T.StringType(), "d\\e": T.StringType(), "F": T.StringType()}
    usual = UsualLines.of(names, Feed(""), ["F"])
    table = readings()
    good = ['{"a.b": 1, "c(": "x"}', '{"a.b": null, "c(": "null"}']
    others = ['{"axb": 1, "c(": "x"}', '{"F": 1}', json.dumps({"d\\e": 1})]
    found = packed(settings, tmp_path, table, usual, "\n".join(good + others))
    assert texts(found.usual, usual) == [{"a.b": "1", "c(": "x"}, {"c(": "null"}]
    assert sorted(values(found.others)) == sorted(others)


# -------------------------------------------------------------------------------------------------- copies of one row


def unique(settings: Settings, tmp_path: Path, table: BronzeTable, *files: list[dict[str, Any]]) -> bool:
    told: tuple[Any, ...] = ()
    assert table.feed is not None
    if table.feed.captured:
        told = (_USUAL_FIELDS, _POSITIONS)
    lines = ["\n".join(json.dumps(row) for row in rows) for rows in files]
    return packed(settings, tmp_path, table, usual_lines(table, *told), *lines).unique


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ([[{"reading_id": 1}, {"reading_id": 2}], [{"reading_id": 1}]], True),
        ([[{"reading_id": 1, "text": "a"}, {"reading_id": 2}, {"reading_id": 1, "text": "b"}]], False),
        # In another order, so that another form finds it.
        ([[{"reading_id": 1, "text": "a"}, {"text": "b", "reading_id": 1}]], False),
        # What is parsed in the slower way may be a copy of anything.
        ([[{"reading_id": 1}, {"reading_id": "1"}]], False),
        ([[{"reading_id": 1}, {"reading_id": 2, "new": 1}]], False),
    ],
)
def test_copies_are_noticed_within_a_file(
    settings: Settings, tmp_path: Path, files: list[list[dict[str, Any]]], expected: bool
) -> None:
    assert unique(settings, tmp_path, readings(), *files) is expected


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ([[{"__seq": 1}, {"__seq": 2}], [{"__seq": 3}]], True),
        ([[{"__seq": 1}], [{"__seq": 1}]], False),
        # A change without a sequence is the first of its transaction.
        ([[{"__seq": 1}], [{}]], False),
        ([[{"__seq": 1}, {"__seq": 1, "reading_id": 8}, {"__seq": 1, "__commit_lsn": 78}]], True),
        # `__commit_lsn` is the position where there is one.
        ([[{"__seq": 1}, {"__seq": 1, "__source_lsn": 5}]], False),
        ([[{"__seq": "one"}]], False),
    ],
)
def test_copies_of_changes_are_noticed_in_all_files(
    settings: Settings, tmp_path: Path, files: list[list[dict[str, Any]]], expected: bool
) -> None:
    change = {"reading_id": 7, "__op": "u", "__commit_lsn": 77, "__source_lsn": 70}
    every = [[change | row for row in rows] for rows in files]
    assert unique(settings, tmp_path, readings(captured=True), *every) is expected


class Sightings(pa.DataFrameModel):
    reading_id: T.IntegerType = column(key=True, description="Identifies a thing.")
    moment: T.TimestampType = column(key=True, description="When it was seen.")


SIGHTINGS = BronzeTable(
    "lab_bronze", "lab.Sightings", Sightings, Cadence.STREAMING, "-", files=Feed("s", event_time="moment")
)


def moment(text: str) -> dt.datetime:
    """The moment as a plain reading has it; UTC where no zone is named."""
    found = dt.datetime.fromisoformat(text)
    return found if found.tzinfo else found.replace(tzinfo=dt.UTC)


TEXTS = st.builds(
    lambda day, between, second, end: f"{day}{between}10:00:0{second}{end}",
    st.sampled_from(["2026-06-01", "1960-01-01", "0001-01-01"]),
    st.sampled_from([" ", "T"]),
    st.integers(0, 2),
    st.sampled_from(["", "", "", "Z", "+00:00", ".0", ".000000"]),
)


@hypothesis.settings(max_examples=300, deadline=None)
@hypothesis.given(st.lists(st.tuples(st.integers(0, 1), st.integers(1, 3), TEXTS), min_size=1, max_size=6))
def test_rows_are_said_to_differ_only_if_they_do(rows: list[tuple[int, int, str]]) -> None:
    assert SIGHTINGS.feed is not None
    usual = UsualLines.of({c.name: c.type for c in SIGHTINGS.columns}, SIGHTINGS.feed, ["reading_id", "moment"])
    modified = dt.datetime(2026, 6, 1, 10, tzinfo=dt.UTC)
    files = []
    for number in range(2):
        lines = (json.dumps({"reading_id": key, "moment": text}) for file, key, text in rows if file == number)
        content = "\n".join(lines).encode()
        files.append((Inspected(LandedFile(f"{number}", len(content), modified, f"{number}"), ""), content))
    seen = packing._Seen(usual, SIGHTINGS.feed)
    found, others = packing._apart(files, usual, [])
    seen.add(found, others)
    assert (found.num_rows, others.num_rows) == (len(rows), 0)
    # As `files` makes positions, where all before 1970 are one moment.
    epoch = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)
    plain = {(key, moment(text), max(moment(text), epoch), modified, file) for file, key, text in rows}
    if seen.unique():
        assert len(plain) == len(rows)
    # And it is said where it matters: of plain texts.
    if len(plain) == len(rows) and all(len(text) == 19 for *_, text in rows):
        assert seen.unique()


@pytest.mark.parametrize(
    ("feed", "rows"),
    [
        # Without one, a row's moment is that of its file.
        ({"event_time": "moment"}, [{"moment": None}, {"moment": "2026-06-01 10:00:00"}]),
        ({"event_time": "moment"}, [{"moment": "1960-01-01 10:00:00"}, {"moment": "1965-01-01 10:00:00"}]),
        ({"event_time": "day"}, [{"day": "1960-01-01"}, {"day": "1965-01-01"}]),
        ({"event_time": "text"}, [{"text": "2026-06-01"}, {"text": "2026-06-01 00:00:00"}]),
        # A position has ten digits for the number of a change.
        ({"captured": True}, [{"__seq": 12_345_678_901}, {"__seq": 12_345_678_902}]),
        ({"captured": True, "event_time": "moment"}, [{"moment": "2026-06-01 10:00:00"}, {"moment": None}]),
    ],
)
def test_rows_of_one_position_are_never_said_to_differ(
    settings: Settings, tmp_path: Path, feed: dict[str, Any], rows: list[dict[str, Any]]
) -> None:
    change = {"__op": "u", "__commit_lsn": 77} if "captured" in feed else {}
    assert not unique(settings, tmp_path, readings(**feed), [{"reading_id": 7} | change | row for row in rows])


def test_files_of_which_each_has_the_usual_form_are_packed_as_such_whatever_is_at_work(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Many small groups, so that several threads meet the form at once.
    monkeypatch.setattr(packing, "SMALL", 4096)
    files = [[{"reading_id": n, "small": file} for n in range(200)] for file in range(30)]
    table = readings()
    usual = usual_lines(table)
    found = packed(settings, tmp_path, table, usual, *("\n".join(map(json.dumps, rows)) for rows in files))
    assert (found.others, found.unique) == (None, True)
    assert len(texts(found.usual, usual)) == 6000
