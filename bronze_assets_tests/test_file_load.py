"""Files become bronze rows: every kind of bad file beside good ones, and every fate of a file.

Expected values come from plain Python's reading of the files; the lake is read with the `deltalake` package.
"""

from __future__ import annotations

import dataclasses
import datetime as dt
import gzip
import hashlib
import json
import os
import shutil
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as arrow
import pyarrow.parquet as pq
import pytest

from bronze_assets.errors import FileChanged, LakeError, LoadRefused, PartitionRefused, SchemaMismatch
from bronze_assets.file_load import FileLoad
from bronze_assets.lakehouse import Lakehouse
from bronze_assets.orchestration.checks import failed_checks
from bronze_assets.schema_versions import SchemaVersions
from bronze_assets.settings import Settings
from bronze_assets.sources import packing
from bronze_assets.table import Evolution, Loaded, Overwritten
from bronze_assets_tests import lake_reader
from bronze_assets_tests.conftest import settings_for
from bronze_assets_tests.file_tables import (
    AFTER,
    BEFORE,
    DAY,
    HEADER,
    NOW,
    archive,
    csv_text,
    drop,
    ids,
    json_lines,
    landing,
    lines_in,
    loaded,
    quarantine,
    reasons,
    row,
    states,
    table_path,
    things,
)

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

NESTED = 100_000
WHOLE = "_line: a whole and valid JSON object"
OBJECT = "_line: a JSON object"
NOTHING_AFTER = "_line: nothing after the JSON object"
GOOD_BUT = '{"thing_id": 7, "name": %s}'

# Name → a line, and what the quarantine says; None where it loads.
LINES: dict[str, tuple[bytes, str | None]] = {
    "truncated": (b'{"thing_id": 7, "name": "x', WHOLE),
    "brackets": (b'{"thing_id": 7, "name": ' + b"[" * NESTED + b"]" * NESTED + b"}", WHOLE),
    "open brackets": (b"[" * NESTED, WHOLE),
    "objects": (b'{"name":' * NESTED + b"1" + b"}" * NESTED, WHOLE),
    "twice": (b'{"thing_id": 7, "thing_id": 8}', "_line: each name once"),
    "twice escaped": (b'{"thing_id": 7, "thing\\u005fid": 8}', "_line: each name once"),
    "case": (b'{"thing_id": 7, "THING_ID": 8}', "_line: each name once, whatever its case"),
    "utf-8": (b'{"thing_id": 7, "name": "\xff\xfe"}', "_line: UTF-8 text"),
    "nul": (b'{"thing_id": 7, "name": "x\x00y"}', WHOLE),
    "leading nul": (b'\x00{"thing_id": 7}', OBJECT),
    "control": (b'{"thing_id": 7, "name": "x\x01y"}', WHOLE),
    "scalar": (b"42", OBJECT),
    "null": (b"null", OBJECT),
    "array": (b'[{"thing_id": 7}]', OBJECT),
    "garbage": (b'{"thing_id": 7} x', NOTHING_AFTER),
    "two": (b'{"thing_id": 7} {"thing_id": 8}', NOTHING_AFTER),
    "comma": (b'{"thing_id": 7}, {"thing_id": 8}', NOTHING_AFTER),
    "bracket": (b'{"thing_id": 7}]', NOTHING_AFTER),
    "bracket and two": (b'{"thing_id": 7} ] {"thing_id": 8}', NOTHING_AFTER),
    "brackets and two": (b'{"thing_id": 7}],[{"thing_id": 8}', NOTHING_AFTER),
    "brace and two": (b'{"thing_id": 7}} {"thing_id": 8}', NOTHING_AFTER),
    "surrogate": (b'{"thing_id": 7, "name": "\\ud800"}', WHOLE),
    "second surrogate": (b'{"thing_id": 7, "name": "\\\\\\udC00"}', WHOLE),
    "surrogates swapped": (b'{"thing_id": 7, "name": "\\udc00\\ud83d"}', WHOLE),
    "one surrogate more": (b'{"thing_id": 7, "name": "\\ud83d\\ud83d\\ude00"}', WHOLE),
    "both surrogates": (b'{"thing_id": 114, "name": "\\\\\\uD83D\\ude00\\u00e9"}', None),
    "no surrogate": (b'{"thing_id": 115, "name": "\\\\ud800"}', None),
    "40 digits": (b'{"thing_id": 7, "name": 1234567890123456789012345678901234567890}', "_line: numbers of at most"),
    "exponent": (b'{"thing_id": 7, "name": 1e400}', "_line: numbers of at most"),
    "long mantissa": (b'{"thing_id": 7, "name": 1.23456789012345678E5}', "_line: numbers of at most"),
    "single quotes": (b"{'thing_id': 7}", WHOLE),
    "nan": (b'{"thing_id": 7, "amount": NaN}', WHOLE),
    "no key": (b'{"name": "x"}', "thing_id: thing_id is present and thing_id > 0"),
    "bad key": (b'{"thing_id": 0, "name": "x"}', "thing_id: thing_id is present and thing_id > 0"),
    "no int": (b'{"thing_id": 7, "good": "yes"}', "good: parses as boolean"),
    "too many places": (b'{"thing_id": 7, "amount": 1.00001}', "amount: parses as decimal(12,4)"),
    "too large": (b'{"thing_id": 7, "amount": 123456789}', "amount: parses as decimal(12,4)"),
    "fraction": (b'{"thing_id": 7.5}', "thing_id: parses as int"),
    "no day": (b'{"thing_id": 7, "made_on": "2026-02-30"}', "made_on: parses as date"),
    "no hour": (b'{"thing_id": 7, "made_at": "2026-06-01 25:00:00"}', "made_at: parses as timestamp"),
    "nested": (b'{"thing_id": 7, "amount": {"x": 1}}', "amount: parses as decimal(12,4)"),
    "bom": (b'\xef\xbb\xbf{"thing_id": 107}', None),
    "crlf": (b'{"thing_id": 108}\r', None),
    "escaped nul": (b'{"thing_id": 109, "name": "x\\u0000y"}', None),
    "long": (b'{"thing_id": 110, "name": "' + b"x" * 20_000_000 + b'"}', None),
    "blank": (b" \t\r\n\n{}", "thing_id: thing_id is present and thing_id > 0"),
    "integral": (b'{"thing_id": 111.0, "amount": 1e2}', None),
    "38 digits": (b'{"thing_id": 112, "name": 12345678901234567890123456789012345678}', None),
    "line end inside": ('{"thing_id": 113, "name": "x\u0085y\u2028z"}'.encode(), None),
}
# Name → a CSV file's rows below the header, ids loaded, and what the quarantine says.
TEXTS: dict[str, tuple[bytes, list[int], list[str]]] = {
    "missing": (b"201,x\n202,x,,,,\n", [202], ["_line: the 6 values of the header"]),
    "extra": (b"203,x,,,,,y\n204,x,,,,\n", [204], ["_line: the 6 values of the header"]),
    "quotes": (b'205,"a ""b"", c",,,,\n206,"",,,,\n207,,,,,\n', [205, 206, 207], []),
    "newline": (b'208,"x\ny",,,,\n209,"x\r\ny",,,,\n210,"x\ry",,,,\n', [208, 209, 210], []),
    "carriage return": (b'211,"x\ry",,,,\n212,z,,,,\n', [211, 212], []),
    "unclosed": (b'213,"abc,,,,\n214,x,,,,\n', [], ["a quote is not closed"]),
    "unclosed and closed": (b'215,"abc,,,,\n216,x,,,,\n217,"y",,,,\n218,z,,,,\n', [], ["a quote is not closed"]),
    "after a quote": (b'219,"abc"def,,,,\n220,x,,,,\n', [], ["text follows a closing one (seen at line 2)"]),
    "inch": (b'221,5" pipe,,,,\n222,x,,,,\n', [221, 222], []),
    "header only": (b"", [], []),
    "no end": (b"223,x,,,,", [223], []),
    "backslash": (b'224,"a\\",,,,\n225,b\\,,,,\n', [224, 225], []),
    "utf-8": (b"226,\xff,,,,\n", [], ["the file is not UTF-8 text"]),
    "nul": (b"227,a\x00b,,,,\n\x00228,x,,,,\n", [227], ["thing_id: parses as int"]),
    "hash": (b"#229,x,,,,\n230,x,,,,\n", [230], ["thing_id: parses as int"]),
    "many": (b"231,x,,,," + b"," * 30_000 + b"\n232,x,,,,\n", [], ["Spark cannot read the file"]),
    "bent": (
        b"233,,1.00001,,,\n234,,1e-30,,,\n235,,0.12340000000000000000001,,,\n236,,5.,,,\n237,, 5,,,\n",
        [236],
        ["amount: parses as decimal(12,4)"] * 4,
    ),
    "space": (b"   \n238,x,,,,\n", [238], []),
}
# Name of a whole file → its bytes, and what the quarantine says.
BAD_FILES: dict[str, tuple[bytes, str]] = {
    "empty.json": (b"", "the file is empty (0 bytes)"),
    "empty.csv": (b"", "the file is empty (0 bytes)"),
    "empty.parquet": (b"", "the file is empty (0 bytes)"),
    "headers twice.csv": (f"{HEADER},NAME\n".encode(), "its header names 'name' more than once"),
    "semicolons.csv": (f"{HEADER};\n".replace(",", ";").encode(), "is the delimiter a comma?"),
    "no header.csv": (b"1,x,2,2026-01-01,,true\n", "its header lacks 'thing_id'"),
    "blank first.csv": (b"\n" + HEADER.encode(), "its header lacks 'thing_id'"),
    "text.parquet": (b"PAR1 nothing PAR1", "not a whole Parquet file"),
    "cut.json.gz": (gzip.compress(json_lines(*map(row, range(1, 2000))))[:-20], "not a whole gzip file"),
    "behind.json.gz": (gzip.compress(json_lines(row(1))) + b"garbage", "not a whole gzip file"),
    "no gzip.csv.gz": (csv_text(row(1)), "not a whole gzip file"),
}
NAMES = (
    "with space.json",
    "100%.json",
    "%41.json",
    "#1.json",
    "12:30.json",
    "what?.json",
    "*.json",
    "[a-z].json",
    "{a,b}.json",
    "a+b=c.json",
    "it's.json",
    'say "hi".json',
    "back\\slash.json",
    "größe 数.json",
    "a,b;c&d.json",
    "$HOME.json",
    "new\nline.json",
    "UPPER.JSON",
    "rows.ndjson",
    "rows.jsonl",
    "zipped.CSV.GZ",
    "x" * 250 + ".json",
)


def corrupt(parquet: bytes) -> bytes:
    """The same with its middle overwritten."""
    middle = len(parquet) // 3
    return parquet[:middle] + b"\xff" * 400 + parquet[middle + 400 :]


def parquet(path: Path, **columns: Any) -> bytes:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(arrow.table(columns), path)
    return path.read_bytes()


def named(name: str) -> str:
    return name.replace(" ", "-")


@dataclasses.dataclass(frozen=True)
class Evil:
    """A lake after one load of every bad file there is, and what lay in the landing zone before."""

    settings: Settings
    record: Any
    lines: dict[str, int]
    names: dict[str, int]


@pytest.fixture(scope="module")
def evil(spark: SparkSession, jars: Path, tmp_path_factory: pytest.TempPathFactory) -> Evil:
    home = tmp_path_factory.mktemp("evil home")
    settings = settings_for(home, {"BRONZE_JARS": str(jars)})
    for number, (name, (line, _)) in enumerate(LINES.items(), 1001):
        drop(settings, f"line {name}.json", json_lines(row(number)) + line + b"\n")
    for name, (text, _, _) in TEXTS.items():
        drop(settings, f"text-{named(name)}.csv", f"{HEADER}\n".encode() + text)
    drop(settings, "text-bom.csv", b"\xef\xbb\xbf" + csv_text(row(250)))
    drop(settings, "text-crlf.csv", csv_text(row(251), row(252)).replace(b"\n", b"\r\n"))
    drop(settings, "text-old-mac.csv", csv_text(row(253), row(254)).replace(b"\n", b"\r"))
    for name, (content, _) in BAD_FILES.items():
        drop(settings, name, content)
    for number, name in enumerate(NAMES, 301):
        content = gzip.compress(csv_text(row(number))) if name.endswith("GZ") else json_lines(row(number))
        drop(settings, name, content)
    drop(settings, "members.json.gz", gzip.compress(json_lines(row(401))) + gzip.compress(json_lines(row(402))))
    drop(settings, "no-end.json", json_lines(row(403)).rstrip())
    drop(settings, "blank.json", b"\n \n\r\n")
    scratch = home / "scratch.parquet"
    many = range(1, 3001)
    good = parquet(
        scratch,
        **{
            "thing_id": list(many),
            "name": [hashlib.sha256(bytes([n % 256, n // 256])).hexdigest() for n in many],
            **{c: [None] * 3000 for c in ("amount", "made_on", "made_at", "good")},
        },
    )
    drop(settings, "cut.parquet", good[: len(good) // 2])
    drop(settings, "corrupt.parquet", corrupt(good))
    drop(settings, "no-rows.parquet", parquet(scratch, **{c: [] for c in HEADER.split(",")}))
    for name in (".hidden.json", "_temporary.json", "notes.txt", "rows.json.part"):
        drop(settings, name, json_lines(row(999)))
    folder = Path(settings.landing) / "raw/things"
    (folder / "folder.json").mkdir()
    (folder / "2026-13-45").mkdir()
    drop(settings, "2026-13-45/no-day.json", json_lines(row(998)))
    elsewhere = home / "elsewhere.json"
    elsewhere.write_bytes(json_lines(row(404)))
    os.utime(elsewhere, (1, 1))
    (folder / "link.json").symlink_to(elsewhere)
    (folder / "dangling.json").symlink_to(home / "nothing")
    (folder / os.fsdecode(b"not-utf8-\xff.json")).write_bytes(json_lines(row(997)))
    bad = {
        *BAD_FILES,
        "cut.parquet",
        "corrupt.parquet",
        *(f"text-{named(n)}.csv" for n, t in TEXTS.items() if not t[1]),
    }
    readable = [
        p for p in folder.iterdir() if p.is_file() and p.name[0] not in "._" and p.suffix not in (".txt", ".part")
    ]
    lines = {
        p.name: lines_in(p) for p in readable if p.name.isprintable() and p.name not in bad and "not-utf8" not in p.name
    }
    lines["new\nline.json"] = 1
    lines["text-header-only.csv"] = 0
    record = loaded(settings, things())
    return Evil(settings, record, lines, dict(zip(NAMES, range(301, 999), strict=False)))


def test_every_line_of_every_file_is_loaded_or_in_quarantine(evil: Evil) -> None:
    record = evil.record
    rows = lake_reader.read(table_path(evil.settings), "select file_name, count(*) as n from t group by file_name")
    held = [one for one in quarantine(evil.settings) if one["reasons"][0]["rule"] != "file"]
    found = {one["file_name"]: one["n"] for one in rows}
    for one in held:
        found[one["file_name"]] = found.get(one["file_name"], 0) + one["rows_in_batch"]
    expected = {f"raw/things/{name}": count for name, count in evil.lines.items() if count}
    # A line of blanks is no row to some readers of CSV.
    expected["raw/things/text-space.csv"] = 1
    assert found == expected
    assert record.read == record.loaded + record.quarantined == sum(expected.values())
    assert record.quarantined == sum(one["rows_in_batch"] for one in held)
    assert record.duplicates == 0


@pytest.mark.parametrize("name", LINES)
def test_a_bad_line_is_in_quarantine_and_the_good_one_beside_it_is_loaded(evil: Evil, name: str) -> None:
    _, expected = LINES[name]
    file = f"line {name}.json"
    found = ids(evil.settings, f"file_name = 'raw/things/{file}'")
    assert 1001 + list(LINES).index(name) in found
    told = reasons(evil.settings).get(file, [])
    if expected is None:
        assert (told, len(found)) == ([], 2)
    else:
        assert len(found) == 1
        assert any(words.startswith(expected) for words in told), told


@pytest.mark.parametrize("name", TEXTS)
def test_a_bad_line_of_a_csv_file_is_in_quarantine_and_the_good_ones_are_loaded(evil: Evil, name: str) -> None:
    _, expected, words = TEXTS[name]
    file = f"text-{named(name)}.csv"
    assert ids(evil.settings, f"file_name = 'raw/things/{file}'") == expected
    told = reasons(evil.settings).get(file, [])
    # What does not parse is no key either.
    told = [one for one in told if not one.endswith("is present and thing_id > 0")]
    assert len(told) == len(words)
    assert all(word in one for word, one in zip(words, told, strict=True)), told


@pytest.mark.parametrize("name", [*BAD_FILES, "cut.parquet", "corrupt.parquet"])
def test_a_file_that_cannot_be_read_is_in_quarantine_and_stays_where_it_is(evil: Evil, name: str) -> None:
    (told,) = reasons(evil.settings)[name]
    assert BAD_FILES.get(name, (b"", "not a whole Parquet file"))[1] in told
    assert states(evil.settings)[name] == "quarantined"
    assert name in landing(evil.settings)


def test_a_file_of_any_name_is_loaded_under_it_and_archived(evil: Evil) -> None:
    rows = lake_reader.tuples(table_path(evil.settings), "file_name", "thing_id", where="thing_id between 301 and 399")
    assert dict(rows) == {f"raw/things/{name}": number for name, number in evil.names.items()}
    assert {f"{DAY}/{name}" for name in evil.names} <= set(archive(evil.settings))


def test_what_is_no_file_of_the_feed_is_left_alone(evil: Evil) -> None:
    left = set(landing(evil.settings))
    assert {".hidden.json", "_temporary.json", "notes.txt", "rows.json.part", "2026-13-45/no-day.json"} <= left
    assert not set(ids(evil.settings)) & {997, 998, 999}
    assert "folder.json" not in states(evil.settings)
    assert (Path(evil.settings.landing) / "raw/things/folder.json").is_dir()


def test_of_a_link_the_content_is_loaded_and_archived(evil: Evil) -> None:
    assert ids(evil.settings, "file_name = 'raw/things/link.json'") == [404]
    kept = Path(evil.settings.archive) / "raw/things" / DAY / "link.json"
    assert not kept.is_symlink()
    assert kept.read_bytes() == json_lines(row(404))
    assert "link.json" not in landing(evil.settings)


def test_quoted_texts_arrive_as_plain_python_reads_them(evil: Evil) -> None:
    names = dict(
        lake_reader.tuples(table_path(evil.settings), "thing_id", "name", where="thing_id between 205 and 226")
    )
    assert names == {
        205: 'a "b", c',
        206: "",
        207: None,
        208: "x\ny",
        209: "x\r\ny",
        210: "x\ry",
        211: "x\ry",
        212: "z",
        221: '5" pipe',
        222: "x",
        223: "x",
        224: "a\\",
        225: "b\\",
    }


def test_nothing_is_left_in_the_staging_folder(evil: Evil) -> None:
    assert lake_reader.listing(evil.settings.home / "staging") == {}


def test_a_file_that_spark_alone_cannot_read_is_not_taken_for_a_neighbour_with_a_similar_name(
    spark: SparkSession, settings: Settings
) -> None:
    drop(settings, "a.csv", csv_text(row(1)))
    drop(settings, "ba.csv", f"{HEADER}\n2,x,,,,{',' * 30_000}\n".encode())
    drop(settings, "a:ba.csv", f"{HEADER}\n3,x,,,,{',' * 30_000}\n".encode())
    record = loaded(settings, things())
    assert ids(settings) == [1]
    assert (record.files, record.files_quarantined) == (3, 2)
    assert states(settings) == {"a.csv": "archived", "ba.csv": "quarantined", "a:ba.csv": "quarantined"}
    assert landing(settings) == ["a:ba.csv", "ba.csv"]


def test_parquet_files_whose_types_differ_are_each_read_by_their_own(spark: SparkSession, settings: Settings) -> None:
    scratch = settings.home / "scratch.parquet"
    moment = dt.datetime(2026, 6, 1, 10, 0, 0, 123456)
    nothing = {name: [None] for name in ("name", "amount", "made_on", "good")}

    def write(file: str, **columns: Any) -> None:
        drop(settings, file, parquet(scratch, **({"made_at": [None]} | nothing | columns)))

    write("ints.parquet", thing_id=[1])
    write("texts.parquet", thing_id=["2"])
    write("doubles.parquet", thing_id=[3.0], amount=[0.1])
    write("large.parquet", thing_id=[12345678.0], amount=[12345678.0])
    write("half.parquet", thing_id=[4.5])
    write("decimal.parquet", thing_id=[5], amount=[Decimal("1.10")])
    write("micros.parquet", thing_id=[6], made_at=arrow.array([moment], arrow.timestamp("us", "UTC")))
    write("berlin.parquet", thing_id=[7], made_at=arrow.array([moment], arrow.timestamp("us", "Europe/Berlin")))
    nanos = int(moment.replace(tzinfo=dt.UTC).timestamp()) * 10**9 + 123_456_000
    write(
        "nanos.parquet",
        thing_id=[8, 9],
        **{
            **{c: [None, None] for c in ("name", "amount", "made_on", "good")},
            "made_at": arrow.array([nanos, nanos + 789], arrow.timestamp("ns")),
        },
    )
    write("zoned.parquet", thing_id=[10], made_at=arrow.array([nanos], arrow.timestamp("ns", "Europe/Berlin")))
    write("struct.parquet", thing_id=[11], name=[{"x": 1, "y": [1, 2]}])
    write("nested.parquet", thing_id=[12], name=[{"t": dt.time(1, 2)}])
    write("time.parquet", thing_id=[13], name=[dt.time(1, 2, 3)])
    write("wide.parquet", thing_id=[14], amount=arrow.array([Decimal("1.5")], arrow.decimal256(50, 4)))
    write(
        "binary.parquet",
        thing_id=[15, 16],
        **{**{c: [None, None] for c in ("amount", "made_on", "made_at", "good")}, "name": [b"\xff\x00", b"abc"]},
    )
    write("nan.parquet", thing_id=[17], amount=[float("nan")])
    write("int96.parquet", thing_id=[18])
    old = arrow.table({**nothing, "thing_id": [18], "made_at": arrow.array([moment], arrow.timestamp("us"))})
    pq.write_table(old, scratch, use_deprecated_int96_timestamps=True)
    drop(settings, "int96.parquet", scratch.read_bytes())

    record = loaded(settings, things())

    found = {
        number: (name, amount, at)
        for number, name, amount, at in lake_reader.tuples(
            table_path(settings), "thing_id", "name", "amount", "made_at"
        )
    }
    at = moment.replace(tzinfo=dt.UTC)
    assert found == {
        1: (None, None, None),
        2: (None, None, None),
        3: (None, Decimal("0.1"), None),
        12345678: (None, Decimal(12345678), None),
        5: (None, Decimal("1.1"), None),
        6: (None, None, at),
        7: (None, None, at),
        8: (None, None, at),
        10: (None, None, at),
        11: ('{"x":1,"y":[1,2]}', None, None),
        12: ('{"t": "01:02:00"}', None, None),
        13: ("01:02:03.000000", None, None),
        14: (None, Decimal("1.5"), None),
        16: ("abc", None, None),
        18: (None, None, at),
    }
    assert reasons(settings) == {
        "binary.parquet": ["_line: UTF-8 text"],
        "half.parquet": ["thing_id: thing_id is present and thing_id > 0", "thing_id: parses as int"],
        "nan.parquet": ["amount: parses as decimal(12,4)"],
        "nanos.parquet": ["made_at: parses as timestamp"],
    }
    assert (record.read, record.loaded, record.quarantined, record.files_quarantined) == (19, 15, 4, 0)


def test_a_row_is_the_same_as_csv_json_or_parquet(spark: SparkSession, settings: Settings) -> None:
    values = [
        (1, "x", Decimal("1.1"), dt.date(2026, 6, 1), dt.datetime(2026, 6, 1, 10, 0, 0, 5), True),
        (2, 'größe "x", 数\\', Decimal("-0.0001"), dt.date(1, 1, 1), dt.datetime(1969, 12, 31, 23, 59, 59), False),
        (3, "", Decimal(0), dt.date(9999, 12, 31), dt.datetime(9999, 12, 31, 23, 59, 59, 999999), None),
        (4, None, None, None, None, None),
        (5, " spaces ", Decimal("12345678.9"), dt.date(2024, 2, 29), dt.datetime(2026, 6, 1), True),
    ]
    names = HEADER.split(",")
    drop(
        settings,
        "a.json",
        b"".join(
            json.dumps(
                {
                    n: float(v) if isinstance(v, Decimal) else v if isinstance(v, (int, str)) or v is None else str(v)
                    for n, v in zip(names, one, strict=True)
                }
            ).encode()
            + b"\n"
            for one in values
        ),
    )

    def text(value: object) -> str:
        if isinstance(value, str):
            return '"' + value.replace('"', '""') + '"'
        return "" if value is None else str(value).lower() if isinstance(value, bool) else str(value)

    drop(settings, "b.csv", "\n".join([HEADER, *(",".join(map(text, one)) for one in values)]).encode())
    columns = dict(zip(names, map(list, zip(*values, strict=True)), strict=True))
    columns["made_at"] = arrow.array(columns["made_at"], arrow.timestamp("us"))
    drop(settings, "c.parquet", parquet(settings.home / "scratch.parquet", **columns))

    assert loaded(settings, things()).loaded == 15
    found = lake_reader.read(table_path(settings))
    expected = sorted(((n, *rest) for n, *rest in values), key=repr)
    for file in ("a.json", "b.csv", "c.parquet"):
        mine = [one for one in found if one["file_name"].endswith(file)]
        got = [
            tuple(v.replace(tzinfo=None) if isinstance(v, dt.datetime) else v for v in (one[n] for n in names))
            for one in mine
        ]
        assert sorted(got, key=repr) == expected, file
    hashes = {(one["thing_id"], one["record_hash"]) for one in found}
    assert len(hashes) == 5


def test_several_values_of_a_multiline_file_are_rows(spark: SparkSession, settings: Settings) -> None:
    drop(settings, "array.json", json.dumps([row(1), row(2)], indent=2).encode())
    drop(settings, "object.json", json.dumps(row(3), indent=2).encode())
    drop(settings, "lines.json", json_lines(row(4), row(5)))
    drop(settings, "mixed.json", json.dumps([row(6), 7, None, "x"]).encode())
    drop(settings, "behind.json", json.dumps([row(8)]).encode() + b"] [1]")
    drop(settings, "nothing.json", b"[]")
    drop(settings, "cut.json", json.dumps([row(9), row(10)]).encode()[:-5])
    record = loaded(settings, things(multiline=True))
    assert ids(settings) == [1, 2, 3, 6]
    assert reasons(settings) == {
        "behind.json": [NOTHING_AFTER],
        "cut.json": [WHOLE],
        "lines.json": [NOTHING_AFTER],
        "mixed.json": [OBJECT] * 3,
    }
    assert (record.read, record.loaded, record.quarantined, record.files) == (10, 4, 6, 7)


def test_of_two_rows_with_one_key_in_a_file_one_stays_and_rows_of_two_files_are_two_versions(
    spark: SparkSession, settings: Settings
) -> None:
    drop(settings, "a.json", json_lines(row(1, name="x"), row(1, name="y"), row(2)))
    drop(settings, "b.json", json_lines(row(1, name="z"), row(1, name="z")))
    record = loaded(settings, things())
    assert (record.read, record.loaded, record.duplicates) == (5, 3, 2)
    rows = lake_reader.read(table_path(settings), "select * from t where thing_id = 1 order by source_position")
    assert [one["file_name"] for one in rows] == ["raw/things/a.json", "raw/things/b.json"]
    assert rows[1]["name"] == "z"


def test_identical_bad_rows_of_two_files_are_two_quarantine_rows_and_the_correction_of_one_takes_one_away(
    spark: SparkSession, settings: Settings
) -> None:
    bad = json_lines(row(1, good="yes"))
    drop(settings, "a.json", bad)
    drop(settings, "b.json", bad)
    loaded(settings, things())
    assert sorted(reasons(settings)) == ["a.json", "b.json"]
    drop(settings, "a.json", json_lines(row(1)))
    record = loaded(settings, things())
    assert (record.loaded, record.quarantined) == (1, 0)
    assert sorted(reasons(settings)) == ["b.json"]


def test_an_overwritten_file_brings_its_new_rows_in_the_place_of_the_old_ones(
    spark: SparkSession, settings: Settings
) -> None:
    table = things()
    drop(settings, f"{DAY}/a.json", json_lines(row(1), row(2, good="yes"), row(3)))
    drop(settings, f"{DAY}/b.json", json_lines(row(4)))
    drop(settings, f"{DAY}/c.json", b"")
    loaded(settings, table)
    before = lake_reader.tuples(table_path(settings), "thing_id", "batch_id", where="thing_id = 4")
    # The same bytes again: nothing is read anew, and the copy leaves the landing zone.
    drop(settings, f"{DAY}/b.json", json_lines(row(4)))
    assert loaded(settings, table).scope == "nothing new"
    assert landing(settings) == [f"{DAY}/c.json"]
    assert archive(settings) == [f"{DAY}/a.json", f"{DAY}/b.json"]
    # Good by good and bad, and bad by good.
    drop(settings, f"{DAY}/a.json", json_lines(row(1, name="new"), row(5, good="no")))
    drop(settings, f"{DAY}/c.json", json_lines(row(6)))
    dry = loaded(settings, table, dry_run=True)
    record = loaded(settings, table)
    assert (record.read, record.loaded, record.quarantined) == (3, 2, 1)
    assert (dry.read, dry.loaded, dry.quarantined, dry.files) == (3, 2, 1, 2)
    assert lake_reader.tuples(table_path(settings), "thing_id", "name") == [(1, "new"), (4, "thing 4"), (6, "thing 6")]
    assert lake_reader.tuples(table_path(settings), "thing_id", "batch_id", where="thing_id = 4") == before
    assert [(one["row_key"], one["file_name"]) for one in quarantine(settings)] == [("5", f"raw/things/{DAY}/a.json")]
    # The archive keeps both versions of the day.
    kept = archive(settings)
    assert len(kept) == 4
    assert {f"{DAY}/a.json", f"{DAY}/b.json", f"{DAY}/c.json"} < set(kept)
    # Good by a file that cannot be read: the old rows are gone with the old file.
    drop(settings, f"{DAY}/b.json", b"")
    record = loaded(settings, table)
    assert (record.files, record.files_quarantined) == (1, 1)
    assert ids(settings) == [1, 6]
    assert states(settings)[f"{DAY}/b.json"] == "quarantined"
    # A quarantined file that is only touched stays what it is.
    drop(settings, f"{DAY}/b.json", b"")
    assert loaded(settings, table).scope == "nothing new"
    assert states(settings)[f"{DAY}/b.json"] == "quarantined"
    assert landing(settings) == [f"{DAY}/b.json"]


def test_an_overwritten_file_is_left_or_stops_the_table_where_that_is_the_policy(
    spark: SparkSession, settings: Settings
) -> None:
    ignoring, stopping = (things(overwritten=policy) for policy in (Overwritten.IGNORE, Overwritten.STOP))
    drop(settings, "a.json", json_lines(row(1)))
    drop(settings, "bad.json", b"")
    loaded(settings, ignoring)
    drop(settings, "a.json", json_lines(row(2)))
    drop(settings, "bad.json", json_lines(row(3)))
    drop(settings, "c.json", json_lines(row(4)))
    with pytest.raises(LoadRefused, match=r"'raw/things/a.json' was overwritten"):
        loaded(settings, stopping)
    assert ids(settings) == [1]
    loaded(settings, ignoring)
    # What could not be read was never loaded: its correction is.
    assert ids(settings) == [1, 3, 4]
    assert states(settings) == {"a.json": "ignored", "bad.json": "archived", "c.json": "archived"}
    drop(settings, "a.json", json_lines(row(2)))
    assert loaded(settings, ignoring).scope == "nothing new"
    assert landing(settings) == ["a.json"]
    # Loading the day again takes the file that was loaded, from the archive.
    loaded(settings, ignoring, reload=True)
    assert ids(settings) == [1, 3, 4]
    assert {batch for (batch,) in lake_reader.tuples(table_path(settings), "batch_id")} == {f"{DAY}/4"}


def test_a_reload_that_failed_is_still_a_reload_when_it_is_tried_again(
    spark: SparkSession, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = things()
    drop(settings, "a.json", json_lines(row(1), row(2)))
    drop(settings, "b.json", json_lines(row(3)))
    loaded(settings, table)
    drop(settings, "a.json", json_lines(row(1, name="new")))

    def full(*_: object, **__: object) -> int:
        raise LakeError("the disk is full.", "free some space.")

    with monkeypatch.context() as patched:
        patched.setattr(Lakehouse, "append", full)
        with pytest.raises(LakeError):
            loaded(settings, table)
    assert states(settings) == {"a.json": "failed", "b.json": "archived"}
    record = loaded(settings, table)
    assert (record.files, record.loaded) == (1, 1)
    assert lake_reader.tuples(table_path(settings), "thing_id", "name") == [(1, "new"), (3, "thing 3")]


def test_a_file_waits_while_it_is_being_written(spark: SparkSession, settings: Settings) -> None:
    table = things(settle_seconds=5)
    drop(settings, "young.json", json_lines(row(1)), modified=NOW - dt.timedelta(seconds=4))
    drop(settings, "old.json", json_lines(row(2)), modified=NOW - dt.timedelta(seconds=6))
    drop(settings, "ahead.json", json_lines(row(3)), modified=NOW + dt.timedelta(hours=1))
    loaded(settings, table)
    assert ids(settings) == [2, 3]
    assert loaded(settings, table, now=NOW + dt.timedelta(seconds=2)).loaded == 1


def test_days_come_from_folders_or_from_the_first_sight(spark: SparkSession, settings: Settings) -> None:
    table = things()
    drop(settings, f"{BEFORE}/late.json", json_lines(row(1)))
    drop(settings, f"{DAY}/a.json", json_lines(row(2)))
    drop(settings, f"{AFTER}/early.json", json_lines(row(3)))
    drop(settings, "flat.json", json_lines(row(4)))
    assert loaded(settings, table).files == 2
    assert loaded(settings, table, BEFORE).files == 1
    with pytest.raises(PartitionRefused, match="lies in the future"):
        loaded(settings, table, AFTER)
    assert loaded(settings, table, AFTER, now=NOW + dt.timedelta(days=1)).files == 1
    days = lake_reader.tuples(table_path(settings), "thing_id", "batch_id")
    assert days == [(1, f"{BEFORE}/1"), (2, f"{DAY}/1"), (3, f"{AFTER}/1"), (4, f"{DAY}/1")]
    assert archive(settings) == [f"{BEFORE}/late.json", f"{DAY}/a.json", f"{DAY}/flat.json", f"{AFTER}/early.json"]
    # The ledger and the tables are gone: archive and landing zone together bring everything back, each once.
    shutil.rmtree(settings.lake)
    drop(settings, f"{BEFORE}/later.json", json_lines(row(5)))
    drop(settings, f"{BEFORE}/late.json", json_lines(row(1)))
    now = NOW + dt.timedelta(days=2)
    for day in (BEFORE, DAY, AFTER, BEFORE):
        loaded(settings, table, day, now=now)
    assert ids(settings) == [1, 2, 3, 4, 5]
    assert landing(settings) == []


def test_a_day_is_loaded_again_on_demand_unless_a_file_of_it_is_gone(spark: SparkSession, settings: Settings) -> None:
    table = things()
    for number in range(1, 4):
        drop(settings, f"{DAY}/{number}.json", json_lines(row(number)))
    loaded(settings, table)
    assert loaded(settings, table, reload=True).files == 3
    assert lake_reader.tuples(table_path(settings), "thing_id", "batch_id") == [(n, f"{DAY}/2") for n in (1, 2, 3)]
    kept = archive(settings)
    (Path(settings.archive) / "raw/things" / kept[0]).unlink()
    with pytest.raises(LoadRefused, match=rf"'raw/things/{DAY}/1.json' of its files are gone"):
        loaded(settings, table, reload=True)
    assert ids(settings) == [1, 2, 3]


def test_loaded_files_are_left_or_deleted_after_days_where_that_is_the_policy(
    spark: SparkSession, settings: Settings
) -> None:
    leaving = things(loaded=Loaded.LEAVE)
    deleting = things(loaded=Loaded.DELETE, delete_after_days=2)
    drop(settings, "a.json", json_lines(row(1)))
    drop(settings, "bad.json", b"")
    loaded(settings, leaving)
    assert loaded(settings, leaving).scope == "nothing new"
    assert landing(settings) == ["a.json", "bad.json"]
    loaded(settings, deleting, now=NOW + dt.timedelta(hours=47), day=AFTER)
    assert landing(settings) == ["a.json", "bad.json"]
    for _ in range(2):
        loaded(settings, deleting, day="2026-06-17", now=NOW + dt.timedelta(hours=48))
        assert landing(settings) == ["bad.json"]
    assert states(settings) == {"a.json": "deleted", "bad.json": "quarantined"}
    assert archive(settings) == []
    # One that has not been loaded stays.
    drop(settings, "a.json", json_lines(row(2)), modified=NOW + dt.timedelta(hours=50))
    loaded(settings, deleting, day="2026-06-17", now=NOW + dt.timedelta(hours=50))
    assert "a.json" in landing(settings)


def test_a_file_that_cannot_be_archived_holds_back_no_other(
    spark: SparkSession, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = things()
    drop(settings, "a.json", json_lines(row(1)))
    drop(settings, "b.json", json_lines(row(2)))
    place = Path(settings.archive) / "raw/things" / DAY
    (place / "a.json").mkdir(parents=True)
    record = loaded(settings, table)
    assert (record.loaded, record.stuck_files) == (2, 1)
    assert record.stuck is not None
    assert record.stuck.startswith("'raw/things/a.json' cannot be moved")
    assert failed_checks(table, record) == ("moved_away",)
    assert ids(settings) == [1, 2]
    assert landing(settings) == ["a.json"]
    (place / "a.json").rmdir()
    assert failed_checks(table, loaded(settings, table)) == ()
    assert landing(settings) == []
    assert ids(settings) == [1, 2]


@pytest.mark.parametrize("option", ["snapshot", "full_compare", "max_rows", "read_connections"])
def test_an_option_that_files_do_not_have_is_refused_by_name(settings: Settings, option: str) -> None:
    options: Any = {option: 1}
    with pytest.raises(LoadRefused, match=f"bz_things: `{option}` is for tables of a database"):
        loaded(settings, things(), **options)


def test_a_partition_counts_its_rows_once_when_they_are_replaced(spark: SparkSession, settings: Settings) -> None:
    drop(settings, f"{DAY}/a.json", json_lines(row(1), row(2)))
    drop(settings, f"{DAY}/b.json", json_lines(row(3)))
    assert loaded(settings, things()).partition_rows == 3
    drop(settings, f"{DAY}/a.json", json_lines(row(1), row(4), row(5)))
    record = loaded(settings, things())
    assert (record.replaced, record.partition_rows, len(ids(settings))) == (2, 4, 4)
    record = loaded(settings, things(), reload=True)
    assert (record.replaced, record.partition_rows, len(ids(settings))) == (4, 4, 4)


def test_rows_of_one_moment_are_versions_by_file_however_they_are_batched(
    spark: SparkSession, settings: Settings, tmp_path: Path
) -> None:
    def versions(home: Settings, *files_of_a_load: list[str]) -> list[tuple[Any, ...]]:
        for names in files_of_a_load:
            for name in names:
                rows = [row(1, name=f"in {name}"), row(1, name=f"in {name}")] + [row(2)] * (name == "b.json")
                drop(home, f"{DAY}/{name}", json_lines(*rows), modified=moments[name])
            loaded(home, things(event_time="made_at"))
        columns = ("thing_id", "name", "source_position")
        return sorted(lake_reader.tuples(table_path(home), *columns), key=lambda one: str(one[2]))

    moments = {name: NOW - dt.timedelta(minutes=age) for name, age in (("b.json", 30), ("a.json", 20), ("c.json", 10))}
    at_once = versions(settings, ["a.json", "b.json", "c.json"])
    assert [one[:2] for one in at_once if one[0] == 1] == [(1, f"in {name}") for name in ("b.json", "a.json", "c.json")]
    assert len(at_once) == 4
    apart = settings_for(tmp_path / "apart", {"BRONZE_JARS": str(settings.jars)})
    assert versions(apart, ["c.json"], ["a.json", "b.json"]) == at_once


@pytest.mark.parametrize("small", [0, 2**22])
def test_small_and_large_files_of_lines_give_the_same_rows(
    spark: SparkSession, settings: Settings, monkeypatch: pytest.MonkeyPatch, small: int
) -> None:
    monkeypatch.setattr(packing, "SMALL", small)
    bom, crlf = b"\xef\xbb\xbf", b"\r\n"
    drop(settings, "a.json", bom + crlf.join(json.dumps(row(n)).encode() for n in (1, 2)) + crlf)
    drop(settings, "b.json", b"\n\n" + json_lines(row(3)) + b'{"thing_id": 4, "name": "\xff"}\n' + b"\0\n  \nnull")
    drop(settings, "c.json", json_lines(row(5, name="\u2028 one line \u0085")).rstrip())
    record = loaded(settings, things())
    assert (record.read, record.loaded, record.quarantined) == (7, 4, 3)
    assert ids(settings) == [1, 2, 3, 5]
    (expected,) = reasons(settings).values()
    assert sorted(expected) == ["_line: UTF-8 text", "_line: a JSON object", "_line: a JSON object"]
    assert {one[0] for one in lake_reader.tuples(table_path(settings), "file_name")} == {
        f"raw/things/{name}.json" for name in "abc"
    }


def test_a_file_that_changes_between_the_look_and_the_load_is_loaded_as_it_is_next_time(
    spark: SparkSession, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    drop(settings, "a.json", json_lines(row(1)))
    changing = drop(settings, "b.json", json_lines(row(2)))
    real = FileLoad._claim

    def claim(*arguments: Any) -> Any:
        claimed = real(*arguments)
        moment = changing.stat().st_mtime
        changing.write_bytes(json_lines(row(3)))
        os.utime(changing, (moment, moment))
        return claimed

    with monkeypatch.context() as patched:
        patched.setattr(FileLoad, "_claim", claim)
        with pytest.raises(FileChanged, match=r"'raw/things/b.json' was changed or removed while it was being loaded"):
            loaded(settings, things())
    assert loaded(settings, things()).loaded == 2
    assert ids(settings) == [1, 3]


def test_new_columns_join_are_rescued_or_stop_the_table(spark: SparkSession, settings: Settings) -> None:
    adding, rescuing, stopping = (
        things(evolution=policy) for policy in (Evolution.ADD, Evolution.RESCUE, Evolution.STOP)
    )
    strange = {"vendor": 7, "batch_id": "mine", "": "blank", "two words": 1, "x" * 300: 1, "Ähnlich": 1}
    drop(settings, "a.json", json_lines(row(1), row(2) | strange))
    record = loaded(settings, adding)
    assert "vendor" in record.new_columns
    kinds = lake_reader.column_types(table_path(settings))
    assert kinds["vendor"] == "string"
    assert lake_reader.tuples(table_path(settings), "thing_id", "vendor") == [(1, None), (2, "7")]
    (rescued,) = lake_reader.tuples(table_path(settings), "_rescued_data", where="_rescued_data is not null")
    assert json.loads(rescued[0]) == {"batch_id": "mine", "": "blank", "two words": "1", "x" * 300: "1", "ähnlich": "1"}
    # The same file looks the same whatever arrived before.
    drop(settings, "b.json", json_lines(row(3) | {"vendor": {"x": 1}}, row(4) | {"vendor": True}))
    loaded(settings, adding)
    assert lake_reader.tuples(table_path(settings), "thing_id", "vendor", where="thing_id > 2") == [
        (3, '{"x":1}'),
        (4, "true"),
    ]
    drop(settings, "c.csv", csv_text(row(5) | {"color": "red"}, header=[*HEADER.split(","), "color"]))
    loaded(settings, rescuing)
    assert lake_reader.tuples(table_path(settings), "_rescued_data", where="thing_id = 5") == [('{"color":"red"}',)]
    drop(settings, "d.json", json_lines(row(6) | {"weight": 1}))
    for _ in range(2):
        with pytest.raises(SchemaMismatch, match="columns that the table does not: 'weight'"):
            loaded(settings, stopping)
    assert ids(settings) == [1, 2, 3, 4, 5]
    versions = SchemaVersions(Lakehouse(settings.lake), stopping, lambda: NOW)
    assert list(versions.proposed()) == ["weight"]
    with pytest.raises(LoadRefused, match="no column 'height' is proposed"):
        versions.accept("somebody", ["height"])
    versions.accept("somebody")
    assert loaded(settings, stopping).loaded == 1
    assert lake_reader.tuples(table_path(settings), "thing_id", "weight", where="weight is not null") == [(6, "1")]


def test_a_thousand_new_names_in_one_file_do_not_bury_the_table(spark: SparkSession, settings: Settings) -> None:
    drop(settings, "a.json", json_lines(row(1) | {f"n{number:04}": number for number in range(1000)}, row(2)))
    loaded(settings, things())
    added = [name for name in lake_reader.column_types(table_path(settings)) if name.startswith("n0")]
    (rescued,) = lake_reader.tuples(table_path(settings), "_rescued_data", where="thing_id = 1")
    assert len(added) == 200
    assert len(json.loads(rescued[0])) == 800
    assert ids(settings) == [1, 2]


def test_a_dry_run_writes_nothing_and_counts_the_same(spark: SparkSession, settings: Settings) -> None:
    table = things(max_files=2)
    drop(settings, "a.json", json_lines(row(1), row(2, good="yes")))
    drop(settings, "b b.csv", csv_text(row(3), row(3)))
    drop(settings, "c.csv", b"x")
    before = lake_reader.listing(settings.home)
    dry = loaded(settings, table, dry_run=True)
    assert lake_reader.listing(settings.home) == before
    real = loaded(settings, table)
    for name in ("read", "loaded", "quarantined", "duplicates", "files", "files_quarantined", "score_sum", "rules"):
        assert getattr(dry, name) == getattr(real, name), name
    assert dry.dry_run


def test_a_batch_ends_where_its_files_are_large_together(
    spark: SparkSession, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = [drop(settings, f"{n}.csv", csv_text(*(row(m) for m in range(n, n + 3)))) for n in (10, 20, 30)]
    size = files[0].stat().st_size
    drop(settings, "40.csv", csv_text(*(row(m) for m in range(40, 60))))
    monkeypatch.setattr("bronze_assets.file_load.BATCH_BYTES", 2 * size)
    record = loaded(settings, things())
    assert (record.files, record.loaded) == (4, 29)
    found = lake_reader.tuples(table_path(settings), "thing_id", "batch_id")
    batches = [{batch for number, batch in found if first <= number < first + 10} for first in (10, 20, 30, 40)]
    assert [len(one) for one in batches] == [1, 1, 1, 1]
    assert batches[0] == batches[1]
    assert len({*map(tuple, batches)}) == 3


def test_a_failed_file_is_tried_again_without_the_others(
    spark: SparkSession, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = things()
    drop(settings, "a.json", json_lines(row(1)))
    drop(settings, "b.json", json_lines(row(2)))
    real = Path.open

    def closed(path: Path, *args: Any, **kwargs: Any) -> Any:
        if path.name == "b.json":
            raise PermissionError(13, "Permission denied")
        return real(path, *args, **kwargs)

    # Root may read everything, so that the file's mode would not do.
    with monkeypatch.context() as patched:
        patched.setattr(Path, "open", closed)
        assert loaded(settings, table).files == 1
    assert states(settings) == {"a.json": "archived", "b.json": "failed"}
    (error,) = lake_reader.tuples(table_path(settings, "bz_file_ledger"), "error", where="event = 'failed'")
    assert error == ("it cannot be opened (Permission denied)",)
    record = loaded(settings, table)
    assert (record.files, record.loaded) == (1, 1)
    assert ids(settings) == [1, 2]


def test_files_whose_load_was_stopped_with_ctrl_c_are_loaded_by_the_next_one(
    spark: SparkSession, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = things()
    drop(settings, "a.json", json_lines(row(1)))
    with monkeypatch.context() as patch:

        def stopped(*_: Any, **__: Any) -> int:
            raise KeyboardInterrupt

        patch.setattr(Lakehouse, "append", stopped)
        with pytest.raises(KeyboardInterrupt):
            loaded(settings, table)

    record = loaded(settings, table)

    assert ids(settings) == [1]
    assert record.backlog_files == 0
    assert states(settings) == {"a.json": "archived"}


def test_a_backfill_does_not_bring_back_what_a_later_version_of_a_file_has_replaced(
    spark: SparkSession, settings: Settings
) -> None:
    table = things()
    drop(settings, "a.json", json_lines(row(1, name="first"), row(2)))
    loaded(settings, table)
    drop(settings, "a.json", json_lines(row(1, name="second")))
    loaded(settings, table)

    tomorrow = NOW + dt.timedelta(days=1)
    record = loaded(settings, table, now=tomorrow)

    assert (record.batch_id, record.read) == ("", 0)
    assert lake_reader.tuples(table_path(settings), "thing_id", "name") == [(1, "second")]


def test_a_table_that_stopped_goes_on_when_the_files_are_mended_instead(
    spark: SparkSession, settings: Settings
) -> None:
    table = things(evolution=Evolution.STOP)
    drop(settings, "a.json", json_lines(row(1, colour="red")))
    for _ in range(4):
        with pytest.raises(SchemaMismatch, match="'colour'"):
            loaded(settings, table)
    versions = SchemaVersions(Lakehouse(settings.lake), table, lambda: NOW)
    assert list(versions.proposed()) == ["colour"]
    drop(settings, "a.json", json_lines(row(1)))

    loaded(settings, table)

    assert ids(settings) == [1]
    assert not SchemaVersions(Lakehouse(settings.lake), table, lambda: NOW).proposed()
