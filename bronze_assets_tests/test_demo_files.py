"""The generated files and changes; what they hold is counted anew here, with Python's own readers."""

from __future__ import annotations

import csv
import datetime as dt
import gzip
import io
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as arrow
import pyarrow.parquet as parquet
import pytest

from bronze_assets.demo import generate
from bronze_assets.demo.changes import change_sample_rows, make_changes
from bronze_assets.demo.files import FEEDS, Planted, drop_sample_files, make_files, planted_files
from bronze_assets.errors import SettingsError, SourceRefused
from bronze_assets_tests.conftest import settings_for

if TYPE_CHECKING:
    from psycopg2.extensions import connection as Connection

NOW = dt.datetime(2026, 2, 28, 12, 30, 15, 123456, tzinfo=dt.UTC)
FOLDERS = {
    "sensor_data": "raw/sensor-data",
    "equipment_logs": "raw/equipment-logs",
    "quality_metrics": "raw/quality-metrics",
}
COLUMNS = {
    "sensor_data": ["sensor_id", "timestamp", "temperature", "humidity", "pressure"],
    "equipment_logs": ["log_id", "equipment_id", "logged_at", "level", "message"],
    "quality_metrics": ["metric_id", "batch_number", "measured_at", "metric", "value", "passed"],
}
KEYS = {"sensor_data": ("sensor_id", "timestamp"), "equipment_logs": ("log_id",), "quality_metrics": ("metric_id",)}
RANGES = {"temperature": (-60, 150), "humidity": (0, 100), "pressure": (800, 1200)}
CORE = ("files", "bad_files", "rows", "loaded", "quarantined", "duplicates", "warned")

Row = Mapping[str, Any]


class Unreadable(Exception):
    """The file as a whole; its name tells why."""


def rows_of(path: Path, columns: Sequence[str]) -> Iterator[Row | None]:
    """The rows of a file; None for a line that is none."""
    data = path.read_bytes()
    if not data:
        raise Unreadable("empty")
    if path.name.endswith(".gz"):
        try:
            data = gzip.decompress(data)
        except EOFError:
            raise Unreadable("truncated_gzip") from None
    suffix = path.name.removesuffix(".gz").rpartition(".")[2]
    if suffix == "parquet":
        try:
            yield from parquet.read_table(io.BytesIO(data)).to_pylist()
        except arrow.ArrowInvalid:
            raise Unreadable("corrupt_parquet") from None
    elif suffix == "csv":
        reader = csv.DictReader(io.StringIO(data.decode()), strict=True)
        names = list(reader.fieldnames or ())
        if len(names) == 1:
            raise Unreadable("wrong_delimiter")
        if len(set(names)) < len(names):
            raise Unreadable("duplicate_headers")
        for row in reader:
            assert list(row) == list(columns)
            yield {name: value or None for name, value in row.items()}
    else:
        assert suffix in ("json", "jsonl")
        for line in data.splitlines():
            yield json_row(line)


def json_row(line: bytes) -> Row | None:
    def once(pairs: list[tuple[str, Any]]) -> Row:
        if len(dict(pairs)) < len(pairs):
            raise ValueError
        return dict(pairs)

    try:
        row = json.loads(line.decode(), object_pairs_hook=once, parse_float=Decimal)
    except ValueError:
        return None
    return row if isinstance(row, dict) else None


def moment(value: Any) -> dt.datetime:
    if isinstance(value, dt.datetime):
        return value.astimezone(dt.UTC)
    return dt.datetime.strptime(value, "%Y-%m-%d %H:%M:%S").replace(tzinfo=dt.UTC)


def faults_of(feed: str, row: Row) -> set[str]:
    """What is wrong with a row, read off its values."""
    found = set()
    columns = COLUMNS[feed]
    if any(row[name] is None for name in KEYS[feed]):
        found.add("missing_key")
    elif any(value is None for value in row.values()):
        found.add("null")
    when = columns[1] if feed == "sensor_data" else columns[2]
    try:
        age = NOW - moment(row[when])
    except ValueError:
        found.add("unparseable")
    else:
        if age < dt.timedelta(0):
            found.add("future")
        elif age > dt.timedelta(365):
            found.add("too_old")
        else:
            assert dt.timedelta(0) < age < dt.timedelta(4), row
    for name in {"temperature", "humidity", "pressure", "value"} & set(columns):
        if row[name] is None:
            continue
        try:
            number = Decimal(row[name])
        except InvalidOperation:
            found.add("unparseable")
            continue
        low, high = RANGES.get(name, (0, 100))
        if not low <= number <= high:
            found.add("out_of_range")
    if row.get("level", "INFO") not in ("INFO", "WARN", "ERROR", "FATAL"):
        found.add("unknown_level")
    return found


def counted(feed: str, paths: Sequence[Path]) -> dict[str, int]:
    counts: Counter[str] = Counter(dict.fromkeys(CORE, 0))
    for path in paths:
        counts["files"] += 1
        try:
            rows = list(rows_of(path, COLUMNS[feed]))
        except Unreadable as reason:
            counts.update({"bad_files": 1, str(reason): 1})
            continue
        seen: set[tuple[Any, ...]] = set()
        for row in rows:
            counts["rows"] += 1
            if row is None:
                counts.update({"malformed_lines": 1, "quarantined": 1})
                continue
            assert list(row) == COLUMNS[feed]
            faults = faults_of(feed, row)
            assert len(faults) <= 1, row
            key = tuple(row[name] for name in KEYS[feed])
            if key in seen and None not in key:
                faults = {"duplicate"}
            seen.add(key)
            counts.update(faults)
            if faults & {"missing_key", "unparseable"}:
                counts["quarantined"] += 1
            elif "duplicate" in faults:
                counts["duplicates"] += 1
            else:
                counts["loaded"] += 1
                counts["warned"] += bool(faults - {"null"})
    return dict(counts)


def files_in(landing: Path, feed: str) -> list[Path]:
    return sorted(path for path in (landing / FOLDERS[feed]).rglob("*") if path.is_file())


def contents(landing: Path) -> dict[str, bytes]:
    return {str(path.relative_to(landing)): path.read_bytes() for path in landing.rglob("*") if path.is_file()}


def test_the_sample_files_hold_what_is_stated(tmp_path: Path) -> None:
    landing = tmp_path / "landing"

    made = drop_sample_files(str(landing), str(tmp_path / "archive"), now=NOW)

    found = {feed: counted(feed, files_in(landing, feed)) for feed in FEEDS}
    assert made == found
    assert planted_files() == found
    for feed, counts in found.items():
        assert counts["files"] == 12
        assert counts["rows"] == counts["loaded"] + counts["quarantined"] + counts["duplicates"]
        # No more than a table may have in quarantine before a check fails.
        assert 0 < counts["quarantined"] <= 0.02 * counts["rows"], feed


@pytest.mark.parametrize(
    ("feed", "kinds"),
    [
        (
            "sensor_data",
            "out_of_range missing_key unparseable future too_old null duplicate"
            " empty truncated_gzip wrong_delimiter duplicate_headers malformed_lines",
        ),
        (
            "equipment_logs",
            "unknown_level missing_key unparseable future too_old null duplicate empty truncated_gzip malformed_lines",
        ),
        (
            "quality_metrics",
            "missing_key unparseable future too_old null duplicate"
            " empty truncated_gzip wrong_delimiter duplicate_headers corrupt_parquet",
        ),
    ],
)
def test_every_kind_of_fault_that_applies_is_in_a_feeds_samples(feed: str, kinds: str) -> None:
    assert set(planted_files()[feed]) == {*CORE, *kinds.split()}


def test_every_format_of_a_feed_is_there_with_rows_that_load(tmp_path: Path) -> None:
    drop_sample_files(str(tmp_path / "landing"), str(tmp_path / "archive"), now=NOW)

    found = {
        feed: {
            path.name.partition(".")[2]
            for path in files_in(tmp_path / "landing", feed)
            if counted(feed, [path])["loaded"] > 100
        }
        for feed in FEEDS
    }

    assert found == {
        "sensor_data": {"csv", "json", "csv.gz", "json.gz"},
        "equipment_logs": {"json", "jsonl", "json.gz"},
        "quality_metrics": {"parquet", "csv"},
    }


def test_the_malformed_lines_are_of_four_kinds(tmp_path: Path) -> None:
    drop_sample_files(str(tmp_path / "landing"), str(tmp_path / "archive"), now=NOW)

    for feed in ("sensor_data", "equipment_logs"):
        (path,) = (p for p in files_in(tmp_path / "landing", feed) if counted(feed, [p]).get("malformed_lines"))
        bad = [line for line in path.read_bytes().splitlines() if json_row(line) is None]
        key = COLUMNS[feed][0].encode()
        assert len(bad) == 4
        assert not bad[0].endswith(b"}")
        assert json.loads(bad[1]) == 42
        assert bad[2].count(b'"' + key + b'"') == 2
        with pytest.raises(UnicodeDecodeError):
            bad[3].decode()
        assert list(json.loads(bad[3].decode(errors="replace"))) == COLUMNS[feed]


def test_parquet_files_have_the_declared_types(tmp_path: Path) -> None:
    (made,) = make_files(str(tmp_path), ["quality_metrics"], now=NOW, files=1, rows=5)

    schema = parquet.read_schema(made.path)

    assert [str(kind) for kind in schema.types] == [
        "int64",
        "string",
        "timestamp[us, tz=UTC]",
        "string",
        "decimal128(18, 6)",
        "bool",
    ]


def test_the_same_moment_gives_the_same_bytes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        landing = str(tmp_path / name)
        drop_sample_files(landing, str(tmp_path / "archive"), now=NOW)
        list(make_files(landing, FEEDS, now=NOW, files=6, rows=20, faults=0.3, bad_files=0.3, seed=7))

    assert contents(tmp_path / "a") == contents(tmp_path / "b")


def test_sample_files_are_made_once(tmp_path: Path) -> None:
    landing, archive = tmp_path / "landing", tmp_path / "archive"
    later = NOW + dt.timedelta(days=1)
    drop_sample_files(str(landing), str(archive), now=NOW)
    before = contents(landing)

    assert drop_sample_files(str(landing), str(archive), now=later) == {}
    assert contents(landing) == before

    # The loaded ones of one feed move to the archive; of another feed one is gone, as after an interrupted call.
    for path in files_in(landing, "sensor_data")[:7]:
        target = archive / "raw" / "sensor-data" / "2026-02-28" / path.name
        target.parent.mkdir(parents=True, exist_ok=True)
        path.rename(target)
    gone = files_in(landing, "equipment_logs")[4]
    gone.unlink()
    made = drop_sample_files(str(landing), str(archive), now=later)

    assert list(made) == ["equipment_logs"]
    assert (made["equipment_logs"]["files"], gone.is_file()) == (1, True)
    assert len(files_in(landing, "sensor_data")) == 5


def test_made_files_are_counted_truly_and_their_keys_never_meet(tmp_path: Path) -> None:
    keys: Counter[tuple[Any, ...]] = Counter()
    for seed, now in ((1, NOW), (2, NOW), (1, NOW - dt.timedelta(seconds=30))):
        for made in make_files(str(tmp_path), FEEDS, now=now, files=8, rows=60, faults=0.2, bad_files=0.4, seed=seed):
            feed = made.path.name.partition("-")[0]
            assert {k: n for k, n in made.counts.items() if n} == {
                k: n for k, n in counted(feed, [made.path]).items() if n
            }, made
    for feed in FEEDS:
        for path in files_in(tmp_path, feed):
            try:
                rows = [row for row in rows_of(path, COLUMNS[feed]) if row is not None]
            except Unreadable:
                continue
            fine = [row for row in rows if not faults_of(feed, row)]
            keys.update({tuple(str(row[name]) for name in KEYS[feed]) for row in fine})

    assert len(files_in(tmp_path, "sensor_data")) == 3 * 8
    assert len(keys) > 1000
    assert set(keys.values()) == {1}


def test_shares_of_faults_and_bad_files_are_kept(tmp_path: Path) -> None:
    def total(made: Sequence[Planted], name: str) -> int:
        return sum(planted.counts[name] for planted in made)

    feeds = ["sensor_data"]
    none = list(make_files(str(tmp_path / "none"), feeds, now=NOW, files=20, rows=100))
    some = list(make_files(str(tmp_path / "some"), feeds, now=NOW, files=20, rows=100, faults=0.1))
    bad = list(make_files(str(tmp_path / "bad"), feeds, now=NOW, files=100, rows=2, bad_files=0.5))

    assert (total(none, "rows"), total(none, "loaded"), total(none, "warned")) == (2000, 2000, 0)
    faulty = sum(
        total(some, kind)
        for kind in ("out_of_range", "missing_key", "unparseable", "future", "too_old", "null", "duplicate")
    )
    assert 150 < faulty < 250
    # One kind in five is a file with some bad lines.
    assert (total(bad, "bad_files"), total(bad, "malformed_lines")) == (40, 10 * 2)


def test_dated_files_lie_in_the_folder_of_their_day(tmp_path: Path) -> None:
    made = list(make_files(str(tmp_path), FEEDS, now=NOW, files=1, rows=1, dated=True))

    assert [str(planted.path.parent.relative_to(tmp_path)) for planted in made] == [
        f"{FOLDERS[feed]}/2026-02-28" for feed in FEEDS
    ]


def test_a_file_that_is_not_complete_is_hidden(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[list[str]] = []
    rename = Path.rename

    def watched(path: Path, target: Path) -> Path:
        seen.append([p.name for p in tmp_path.rglob("*") if p.is_file()])
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", watched)
    list(make_files(str(tmp_path), ["sensor_data"], now=NOW, files=1, rows=1))

    ((name,),) = seen
    assert name.startswith(".")
    assert [path.name[0] for path in files_in(tmp_path, "sensor_data")] == ["s"]


def test_a_landing_zone_that_is_no_local_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(SettingsError, match="'s3://bucket/landing' is not a folder"):
        drop_sample_files("s3://bucket/landing", "s3://bucket/archive", now=NOW)
    with pytest.raises(SettingsError, match="cannot be written"):
        drop_sample_files(str(tmp_path / "file"), str(tmp_path / "archive"), now=NOW)


def test_the_command_makes_the_files_it_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("BRONZE_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("BRONZE_LANDING", raising=False)

    assert generate.main(["--feed", "equipment_logs", "--files", "3", "--rows-per-file", "4", "--rate", "30"]) == 0

    landing = tmp_path / "home" / "landing"
    assert counted_rows(landing, "equipment_logs") == 12
    assert capsys.readouterr().out.splitlines() == [f"Made 3 files, 0 of them bad, in {landing}."]


def counted_rows(landing: Path, feed: str) -> int:
    return sum(1 for path in files_in(landing, feed) for _ in rows_of(path, COLUMNS[feed]))


@pytest.mark.parametrize("arguments", [["--faults", "1.1"], ["--rate", "nan"], ["--files", "1.5"], ["--feed", "x"]])
def test_the_command_names_an_argument_that_cannot_be(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        generate.main(arguments)

    assert f"argument {arguments[0]}: " in capsys.readouterr().err


# --- changes ----------------------------------------------------------------------------------------------------------

CHANGED = {
    "products": "product_id",
    "suppliers": "supplier_id",
    "inventory": "inventory_id",
    "orders": "order_id",
    "order_details": "order_detail_id",
    "shipments": "shipment_id",
    "returns": "return_id",
    "customers": "customer_id",
}
UNSOUND = {
    "products": "unit_price = 'NaN' or unit_price <= 0",
    "suppliers": r"contact_number !~ '^\+?[0-9 ().-]{6,20}$'",
    "inventory": "quantity_available < 0",
    "orders": "not isfinite(order_date) or order_date > now()",
    "order_details": "unit_price = 'NaN' or quantity_ordered < 0",
    "shipments": "not isfinite(shipment_date)",
    "returns": "not isfinite(return_date)",
    "customers": r"email !~ '^[^@\s]+@[^@\s]+\.[^@\s]+$'",
}


def rows_by_key(connection: Connection, table: str) -> dict[int, list[str]]:
    found: dict[int, list[str]] = {}
    with connection.cursor() as cursor:
        cursor.execute(f"select {CHANGED[table]}, t::text from tests.{table} t where {CHANGED[table]} > 0 order by 2")
        for key, text in cursor.fetchall():
            found.setdefault(key, []).append(text)
    return found


def changes_between(before: dict[int, list[str]], after: dict[int, list[str]]) -> dict[str, int]:
    return {
        "updated": sum(before[key] != after[key] for key in before.keys() & after.keys()),
        "inserted": len(after.keys() - before.keys()),
        "deleted": len(before.keys() - after.keys()),
    }


def count(connection: Connection, query: str) -> int:
    with connection.cursor() as cursor:
        cursor.execute(query)
        ((number,),) = cursor.fetchall()
    return int(number)


def others(connection: Connection) -> list[int]:
    query = "select ('x' || md5(string_agg(t::text, '|' order by t::text)))::bit(64)::bigint from tests.{} t"
    return [count(connection, query.format(table)) for table in ("warehouses", "stock_levels")]


def test_each_call_changes_a_few_rows_of_the_eight_streaming_tables_and_of_no_other(
    source: Connection, source_url: str
) -> None:
    connection = source
    generate.generate(connection, scale=0.05)
    untouched = others(connection)
    for _ in range(2):
        before = {table: rows_by_key(connection, table) for table in CHANGED}
        unsound = {
            table: count(connection, f"select count(*) from tests.{table} where {condition}")
            for table, condition in UNSOUND.items()
        }

        made = change_sample_rows(source_url)

        assert list(made) == list(CHANGED)
        for table, kinds in made.items():
            after = rows_by_key(connection, table)
            assert changes_between(before[table], after) == kinds == {"updated": 6, "inserted": 3, "deleted": 1}, table
            assert min(after.keys() - before[table].keys()) > max(before[table]), table
            assert count(connection, f"select count(*) from tests.{table} where {UNSOUND[table]}") <= unsound[table]
    assert others(connection) == untouched


def test_a_key_that_several_rows_share_is_left_alone(source: Connection, source_url: str) -> None:
    generate.generate(source, scale=0.01)
    for table, key in CHANGED.items():
        with source.cursor() as cursor:
            cursor.execute(
                f"alter table tests.{table} drop constraint if exists {table}_pkey;"
                f"create temporary table two as select * from tests.{table} limit 2;"
                f"insert into tests.{table} select * from tests.{table} where {key} not in (select {key} from two);"
                "drop table two"
            )
    twice = {table: {k: r for k, r in rows_by_key(source, table).items() if len(r) > 1} for table in CHANGED}

    for _ in range(3):
        change_sample_rows(source_url)

    for table, rows in twice.items():
        now = rows_by_key(source, table)
        assert {key: now.get(key) for key in rows} == rows, table


def test_a_row_whose_fault_would_stay_is_left_alone(source: Connection, source_url: str) -> None:
    generate.generate(source, scale=0.05)
    faults = {
        "products": "unit_price = 'NaN'",
        "orders": "order_date = case when order_id % 2 = 0 then date 'infinity' else date '2099-01-01' end",
        "order_details": "unit_price = 'NaN'",
        "shipments": "shipment_date = '-infinity'",
    }
    bent = {}
    for table, fault in faults.items():
        with source.cursor() as cursor:
            cursor.execute(f"update tests.{table} set {fault} where {CHANGED[table]} % 7 <> 0")
        bent[table] = {key: rows for key, rows in rows_by_key(source, table).items() if key % 7}

    change_sample_rows(source_url)

    for table, before in bent.items():
        now = rows_by_key(source, table)
        assert {key: now.get(key) for key in before} == before, table


def test_changes_without_the_sample_tables_say_what_to_do(source_url: str) -> None:
    with pytest.raises(SourceRefused, match=r'relation "tests\.products" does not exist.*run `make demo` first'):
        change_sample_rows(source_url)


def test_changes_go_on_steadily_in_the_stated_mix(source: Connection, source_url: str, home: Path) -> None:
    generate.generate(source, scale=0.05)
    (home / "postgres").mkdir(parents=True)
    (home / "postgres" / "source_url").write_text(source_url)
    said: list[str] = []
    before = {table: rows_by_key(source, table) for table in CHANGED}
    began = dt.datetime.now()

    made = make_changes(settings_for(home), rate=160, seconds=2, say=said.append)

    took = (dt.datetime.now() - began).total_seconds()
    assert sum(made.values()) == 320
    assert 1.7 < took < 4
    assert made == {"updated": 192, "inserted": 96, "deleted": 32}
    for table, rows in before.items():
        found = changes_between(rows, rows_by_key(source, table))
        assert all(found.values()), table
        assert found["inserted"] <= 12, table
    assert said[-1].startswith("Made 320 changes in ")


def test_no_server_but_the_demos_own_is_changed(home: Path) -> None:
    settings = settings_for(home, {"BRONZE_SOURCE_URL": "postgresql://somebody:secret@db.example.org/theirs"})

    with pytest.raises(SettingsError, match="not the demo's") as caught:
        make_changes(settings, rate=1, seconds=1, say=print)

    assert "secret" not in str(caught.value)
