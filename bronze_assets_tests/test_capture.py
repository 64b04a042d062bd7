"""What a capture writes of a real PostgreSQL's changes, whoever dies, loses a slot or comes in between."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime as dt
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import pandera.pyspark as pa
import psutil
import psycopg2
import pyspark.sql.types as T
import pytest
from psycopg2 import errors, sql
from psycopg2.extras import LogicalReplicationConnection
from upath import UPath

from bronze_assets.capture import Capture, Drained, manifest
from bronze_assets.catalog import TABLES
from bronze_assets.demo import postgres
from bronze_assets.errors import (
    CaptureBusy,
    DeclarationError,
    LakeError,
    SchemaMismatch,
    SourceBusy,
    SourceRefused,
    SourceUnreachable,
)
from bronze_assets.settings import CaptureMode, Settings
from bronze_assets.sources import postgres as postgres_source
from bronze_assets.sources import postgres_changes
from bronze_assets.sources.postgres import PostgresSource, Snapshot
from bronze_assets.table import BronzeTable, Cadence, column
from bronze_assets.workbench import Workbench
from bronze_assets_tests import killed_capture
from bronze_assets_tests.conftest import CHECKOUT, Server, database_url, settings_for

if TYPE_CHECKING:
    from psycopg2.extensions import connection as Connection

SCHEMA = "inventory_bronze"
PATIENCE = 60
METADATA = (
    "__op",
    "__source_lsn",
    "__source_ts_ms",
    "__deleted",
    "__commit_lsn",
    "__seq",
    "__source_epoch",
)
(PRODUCTS, ORDERS) = (next(table for table in TABLES if table.name == name) for name in ("bz_products", "bz_orders"))
CREATE = """
    create schema tests;
    create table tests.products (product_id int primary key, product_name text, category text, unit_price numeric);
    create table tests.orders (order_id bigint primary key, customer_id int, order_date date, order_status text)
"""


class Things(pa.DataFrameModel):
    thing_id: T.LongType = column(key=True, gt=0, description="Key.")
    label: T.StringType = column(description="Text.")
    amount: T.DecimalType = column(dtype_kwargs={"precision": 12, "scale": 2}, description="Money.")
    made_on: T.DateType = column(description="Day.")
    made_at: T.TimestampType = column(description="Moment.")
    good: T.BooleanType = column(description="Yes or no.")
    pieces: T.IntegerType = column(description="Count.")


class Labels(pa.DataFrameModel):
    thing_id: T.LongType = column(key=True, gt=0, description="Key.")
    label: T.StringType = column(description="Text.")


class Pairs(pa.DataFrameModel):
    left_id: T.IntegerType = column(key=True, description="Key.")
    right_id: T.IntegerType = column(key=True, description="Key.")
    label: T.StringType = column(description="Text.")


def declared(model: type[pa.DataFrameModel], source: str = "tests.things") -> BronzeTable:
    return BronzeTable(SCHEMA, source, model, Cadence.STREAMING, "A table of a test.")


THINGS = declared(Things)
LABELS = declared(Labels)
PAIRS = declared(Pairs, "tests.pairs")


def execute(connection: Connection, statement: str | sql.Composed, parameters: Sequence[Any] = ()) -> None:
    with connection.cursor() as cursor:
        cursor.execute(statement, parameters or None)


def ask(connection: Connection, query: str) -> list[tuple[Any, ...]]:
    with connection.cursor() as cursor:
        cursor.execute(query)
        return cursor.fetchall()


@dataclasses.dataclass(frozen=True)
class Landed:
    """A landing zone as a reader without our code sees it."""

    folder: Path

    def files(self) -> list[str]:
        """Paths of what a loader would load, in the order of their names."""
        return sorted(
            (
                str(path.relative_to(self.folder))
                for path in self.folder.rglob("*")
                if path.is_file()
                and not any(part.startswith(("_", ".")) for part in path.relative_to(self.folder).parts)
            ),
            key=lambda path: (Path(path).name, path),
        )

    def lines(self, table: BronzeTable) -> list[dict[str, Any]]:
        """The table's lines, file after file."""
        return [
            json.loads(line)
            for path in self.files()
            if path.startswith(f"{SCHEMA}/{table.name}/")
            for line in (self.folder / path).read_text(encoding="utf-8").split("\n")[:-1]
        ]

    def rows(self, table: BronzeTable) -> list[tuple[Any, ...]]:
        """Operation and values of each line."""
        return [
            (line["__op"], *(value for name, value in line.items() if name not in METADATA))
            for line in self.lines(table)
        ]

    def everything(self, tables: Sequence[BronzeTable]) -> list[tuple[Any, ...]]:
        """All lines by table, transaction and place in it, each as often as it is there; without the epoch, which no
        two captures share.
        """
        return sorted(
            (table.name, line["__commit_lsn"], line["__seq"], json.dumps(line | {"__source_epoch": ""}))
            for table in tables
            for line in self.lines(table)
        )

    def replayed(self, table: BronzeTable, since: int = 0, state: dict[Any, Any] | None = None) -> dict[Any, Any]:
        """Key → row after all changes committed at or after a position, on top of a state."""
        state = dict(state or {})
        for line in sorted(self.lines(table), key=lambda line: (line["__commit_lsn"], line["__seq"])):
            if line["__commit_lsn"] < since:
                continue
            row = {name: value for name, value in line.items() if not name.startswith("__")}
            key = tuple(row[column.name] for column in table.key)
            match line["__op"]:
                case "t":
                    state.clear()
                case "d":
                    del state[key]
                case "c":
                    assert key not in state
                    state[key] = row
                case "u":
                    assert key in state
                    state[key] = {**state[key], **row}
        return state


@pytest.fixture
def database(source: Connection) -> Connection:
    """The source database, with empty tables products and orders in its schema `tests`."""
    execute(source, CREATE)
    return source


@pytest.fixture
def things(source: Connection) -> Connection:
    """The source database, with an empty table `tests.things`."""
    execute(
        source,
        "create schema tests; create table tests.things (thing_id bigint primary key, label text, amount numeric,"
        " made_on date, made_at timestamptz, good bool, pieces int)",
    )
    return source


@pytest.fixture
def landed(tmp_path: Path) -> Landed:
    return Landed(tmp_path / "landing zone")


@pytest.fixture
def make(source_url: str, landed: Landed) -> Callable[..., Capture]:
    """Makes a capture of tables into the landing zone."""
    return lambda *tables, **options: Capture(source_url, str(landed.folder), tables, **options)


def drained(capture: Capture) -> Drained:
    """A drain; waits for the server to notice that a killed one is gone."""
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            return capture.drain()
        except CaptureBusy:
            assert time.monotonic() < deadline
            time.sleep(0.05)


def state_of(connection: Connection, table: BronzeTable) -> dict[Any, Any]:
    """Key → row as SQL gives it now, written as a line would have it."""
    casts = ", ".join(
        c.name if isinstance(c.type, T.IntegerType | T.LongType | T.BooleanType) else f"{c.name}::text"
        for c in table.columns
    )
    names = [c.name for c in table.columns]
    return {
        row[: len(table.key)]: dict(zip(names, row, strict=True))
        for row in ask(connection, f"select {casts} from {table.source}")
    }


def lsn_of(text: str) -> int:
    high, low = text.split("/")
    return int(high, 16) * 2**32 + int(low, 16)


# --- lines ----------------------------------------------------------------------------------------------------------


def test_a_line_holds_the_row_and_where_it_stands(
    things: Connection, landed: Landed, make: Callable[..., Capture], source_url: str
) -> None:
    capture = make(THINGS)
    capture.drain()
    ((before, began),) = ask(things, "select pg_current_wal_insert_lsn()::text, extract(epoch from now()) * 1000")
    execute(
        things,
        "insert into tests.things values"
        " (9007199254740993, 'täg', 1.50, '2026-02-03', '2026-02-03 01:02:03+02', true, -1)",
    )
    ((after, ended),) = ask(things, "select pg_current_wal_insert_lsn()::text, extract(epoch from now()) * 1000")
    outcome = capture.drain()

    (path,) = outcome.files
    text = (landed.folder / path).read_text(encoding="utf-8")
    (line,) = landed.lines(THINGS)
    row = {
        "thing_id": 9007199254740993,
        "label": "täg",
        "amount": "1.50",
        "made_on": "2026-02-03",
        "made_at": "2026-02-02 23:02:03+00",
        "good": True,
        "pieces": -1,
    }
    assert list(line) == [*row, *METADATA]
    assert {name: line[name] for name in row} == row
    assert (line["__op"], line["__deleted"], line["__seq"]) == ("c", "false", 1)
    assert lsn_of(before) <= line["__source_lsn"] < line["__commit_lsn"] < lsn_of(after)
    assert int(began) <= line["__source_ts_ms"] <= int(ended) + 1
    stored = manifest(str(landed.folder), SCHEMA)
    assert stored is not None
    assert line["__source_epoch"] == stored.epoch_of(PostgresSource(source_url).snapshot().epoch)
    assert line["__source_epoch"] == stored.source_epoch
    assert text.endswith("}\n")
    assert "täg" in text
    assert outcome.rows == {"bz_things": 1}


def test_a_file_is_named_after_the_day_and_the_range(things: Connection, make: Callable[..., Capture]) -> None:
    capture = make(THINGS, clock=lambda: dt.datetime(2026, 3, 4, 23, 59, tzinfo=dt.UTC))
    first = capture.drain()
    execute(things, "insert into tests.things values (1)")
    outcome = capture.drain()

    assert first.files == ()
    assert outcome.files == (
        f"inventory_bronze/bz_things/2026-03-04/{first.up_to_lsn:016X}-{outcome.up_to_lsn:016X}.json",
    )


def test_values_that_are_hard_to_write_survive(
    things: Connection, landed: Landed, make: Callable[..., Capture]
) -> None:
    capture = make(THINGS)
    capture.drain()
    labels = ['"', "\\", "\n\r\t", "\u2028\u2029\x85", "\x01\x1f\x7f", "€ 𝄞 ß עברית", "", " ", "null", "\ufeff", "{}"]
    for number, label in enumerate(labels, 1):
        execute(things, "insert into tests.things (thing_id, label) values (%s, %s)", (number, label))
    execute(
        things,
        "insert into tests.things values (101, null, 'NaN', 'infinity', '-infinity', false, null),"
        " (102, null, '-Infinity', '0044-03-15 BC', '10000-01-01 00:00:00.000001+00', null, 2147483647),"
        " (103, null, '12345678901234567890.12345678901234567890', '0001-01-01', null, null, -2147483648)",
    )
    capture.drain()

    rows = landed.replayed(THINGS)
    assert rows == state_of(things, THINGS)
    assert [rows[(number,)]["label"] for number in range(1, len(labels) + 1)] == labels
    assert rows[(101,)]["made_on"] == "infinity"
    assert rows[(102,)]["made_on"] == "0044-03-15 BC"
    assert rows[(103,)]["amount"] == "12345678901234567890.12345678901234567890"


def test_the_settings_of_the_role_do_not_change_how_values_look(
    things: Connection, landed: Landed, make: Callable[..., Capture]
) -> None:
    execute(things, "alter table tests.things add span interval, add bytes bytea, add ratio float8")
    ((database,),) = ask(things, "select current_database()")
    for setting in (
        "datestyle = 'German'",
        "timezone = 'Asia/Tokyo'",
        "intervalstyle = 'iso_8601'",
        "bytea_output = 'escape'",
        "extra_float_digits = -5",
        "client_encoding = 'LATIN1'",
        "statement_timeout = '1h'",
    ):
        execute(things, f"alter role bronze in database {database} set {setting}")
    capture = make(THINGS)
    capture.drain()
    execute(
        things,
        "insert into tests.things values"
        " (1, '€', 1, '2026-02-03', '2026-02-03 00:00+00', true, 1, '1 day 2 hours', '\\x00ff', 0.1::float8 + 0.2)",
    )
    capture.drain()

    (row,) = landed.rows(THINGS)
    assert row == (
        *("c", 1, "€", "1", "2026-02-03", "2026-02-03 00:00:00+00", True, 1),
        *("1 day 02:00:00", "\\x00ff", "0.30000000000000004"),
    )


def test_integers_and_booleans_behind_domains_are_written_as_such(
    source: Connection, landed: Landed, make: Callable[..., Capture]
) -> None:
    execute(
        source,
        "create schema tests; create domain tests.number as bigint; create domain tests.id as tests.number;"
        " create domain tests.flag as bool;"
        " create table tests.things (thing_id tests.id primary key, label text, sure tests.flag)",
    )
    capture = make(LABELS)
    capture.drain()
    execute(source, "insert into tests.things values (7, 'x', 'yes')")
    capture.drain()

    assert landed.rows(LABELS) == [("c", 7, "x", True)]


def test_each_kind_of_change_is_written_with_its_operation(
    database: Connection, landed: Landed, make: Callable[..., Capture]
) -> None:
    capture = make(PRODUCTS)
    capture.drain()
    execute(database, "insert into tests.products values (1, 'one', 'a', 1), (2, 'two', null, 2), (3, 'three', 'c', 3)")
    execute(database, "update tests.products set category = 'b' where product_id = 2")
    execute(database, "update tests.products set product_id = 20 where product_id = 2")
    execute(database, "delete from tests.products where product_id = 1")
    execute(database, "truncate tests.products")
    capture.drain()

    assert landed.rows(PRODUCTS) == [
        ("c", 1, "one", "a", "1"),
        ("c", 2, "two", None, "2"),
        ("c", 3, "three", "c", "3"),
        ("u", 2, "two", "b", "2"),
        ("d", 2, None, None, None),
        ("c", 20, "two", "b", "2"),
        ("d", 1, None, None, None),
        ("t", None, None, None, None),
    ]
    lines = landed.lines(PRODUCTS)
    assert [line["__seq"] for line in lines] == [1, 2, 3, 1, 1, 2, 1, 1]
    assert [line["__deleted"] for line in lines] == [
        {"c": "false", "u": "false", "d": "true", "t": "true"}[line["__op"]] for line in lines
    ]


def test_the_sequence_counts_over_all_tables_of_a_transaction(
    database: Connection, landed: Landed, make: Callable[..., Capture]
) -> None:
    capture = make(PRODUCTS, ORDERS)
    capture.drain()
    execute(
        database,
        "begin; insert into tests.products values (1); insert into tests.orders values (1); update tests.products set"
        " product_id = 2; insert into tests.orders values (2); truncate tests.orders, tests.products; commit",
    )
    capture.drain()

    lines = [line for table in (PRODUCTS, ORDERS) for line in landed.lines(table)]
    assert sorted(line["__seq"] for line in lines) == [1, 2, 3, 4, 5, 6, 7]
    assert [line["__seq"] for line in landed.lines(PRODUCTS)][:3] == [1, 3, 4]
    assert len({line["__commit_lsn"] for line in lines}) == 1


def test_a_full_replica_identity_gives_the_same_lines(
    database: Connection, landed: Landed, make: Callable[..., Capture]
) -> None:
    execute(database, "alter table tests.products drop constraint products_pkey, replica identity full")
    capture = make(PRODUCTS)
    capture.drain()
    execute(database, "insert into tests.products values (1, 'one', 'a', 1), (2, 'two', null, 2)")
    execute(database, "update tests.products set category = 'b'")
    execute(database, "update tests.products set product_id = 20 where product_id = 2")
    execute(database, "delete from tests.products where product_id = 1")
    capture.drain()

    assert landed.rows(PRODUCTS)[2:] == [
        ("u", 1, "one", "b", "1"),
        ("u", 2, "two", "b", "2"),
        ("d", 2, None, None, None),
        ("c", 20, "two", "b", "2"),
        ("d", 1, None, None, None),
    ]


def test_a_rolled_back_change_never_shows_and_transactions_come_in_the_order_of_their_commits(
    database: Connection, source_url: str, landed: Landed, make: Callable[..., Capture]
) -> None:
    capture = make(PRODUCTS)
    capture.drain()
    with postgres.connect(source_url) as other:
        execute(database, "begin; insert into tests.products values (1)")
        execute(other, "begin; insert into tests.products values (2)")
        execute(database, "savepoint s; insert into tests.products values (3); rollback to s")
        execute(database, "insert into tests.products values (4)")
        execute(other, "commit; begin; insert into tests.products values (5); rollback")
        capture.drain()
        first = landed.rows(PRODUCTS)
        execute(database, "commit")
        capture.drain()

    assert [row[1] for row in first] == [2]
    assert [row[1] for row in landed.rows(PRODUCTS)] == [2, 1, 4]
    two, one, four = landed.lines(PRODUCTS)
    assert two["__commit_lsn"] < one["__commit_lsn"] == four["__commit_lsn"]
    # Why versions are ordered by commits and not by the positions of changes.
    assert one["__source_lsn"] < two["__source_lsn"]


# --- values out of line ---------------------------------------------------------------------------------------------

LONG = "string_agg(md5(n::text), '') from generate_series(1, 400) n"


def test_an_untouched_long_value_is_left_out_and_told(
    things: Connection, landed: Landed, make: Callable[..., Capture]
) -> None:
    execute(things, "alter table tests.things alter label set storage external")
    capture = make(THINGS)
    capture.drain()
    execute(things, f"insert into tests.things (thing_id, label) select 1, {LONG}")
    execute(things, "update tests.things set pieces = 5")
    capture.drain()

    created, updated = landed.lines(THINGS)
    assert len(created["label"]) == 12800
    assert "label" not in updated
    assert updated["__unchanged"] == ["label"]
    assert list(updated)[-1] == "__unchanged"
    assert landed.replayed(THINGS) == state_of(things, THINGS)


def test_an_untouched_long_value_is_taken_from_a_full_old_row(
    things: Connection, landed: Landed, make: Callable[..., Capture]
) -> None:
    execute(things, "alter table tests.things alter label set storage external, replica identity full")
    capture = make(THINGS)
    capture.drain()
    execute(things, f"insert into tests.things (thing_id, label) select 1, {LONG}")
    execute(things, "update tests.things set pieces = 5")
    execute(things, "update tests.things set thing_id = 2")
    capture.drain()

    created, updated, deleted, moved = landed.lines(THINGS)
    assert updated["label"] == moved["label"] == created["label"]
    assert deleted["label"] is None
    assert all("__unchanged" not in line for line in (updated, moved))


def test_a_row_that_changes_its_key_tells_whose_long_values_it_keeps(
    things: Connection, landed: Landed, make: Callable[..., Capture]
) -> None:
    execute(things, "alter table tests.things alter label set storage external")
    capture = make(THINGS)
    capture.drain()
    execute(things, f"insert into tests.things (thing_id, label) select 1, {LONG}")
    execute(things, "update tests.things set thing_id = 2")
    capture.drain()

    _, deleted, moved = landed.lines(THINGS)
    assert (deleted["__op"], deleted["thing_id"], moved["__op"], moved["thing_id"]) == ("d", 1, "c", 2)
    assert "label" not in moved
    assert (moved["__unchanged"], moved["__previous_key"]) == (["label"], {"thing_id": 1})


def test_a_long_key_is_never_left_out(source: Connection, landed: Landed, make: Callable[..., Capture]) -> None:
    class Named(pa.DataFrameModel):
        name: T.StringType = column(key=True, description="Key.")
        pieces: T.IntegerType = column(description="Count.")

    named = declared(Named, "tests.named")
    execute(source, "create schema tests; create table tests.named (name text primary key, pieces int)")
    execute(source, "alter table tests.named alter name set storage external")
    capture = make(named)
    capture.drain()
    execute(source, "insert into tests.named values (repeat('k', 2600), 1)")
    execute(source, "update tests.named set pieces = 2")
    execute(source, "delete from tests.named")
    capture.drain()

    assert [(op, len(name), pieces) for op, name, pieces in landed.rows(named)] == [
        ("c", 2600, 1),
        ("u", 2600, 2),
        ("d", 2600, None),
    ]


# --- tables ---------------------------------------------------------------------------------------------------------


def test_names_match_without_regard_to_case(source: Connection, landed: Landed, make: Callable[..., Capture]) -> None:
    execute(
        source, 'create schema "Tests"; create table "Tests"."THINGS" ("Thing_ID" bigint primary key, "Label" text)'
    )
    capture = make(LABELS)
    capture.drain()
    execute(source, """insert into "Tests"."THINGS" values (1, 'x')""")
    execute(source, """update "Tests"."THINGS" set "Thing_ID" = 2""")
    capture.drain()

    assert landed.rows(LABELS) == [("c", 1, "x"), ("d", 1, None), ("c", 2, "x")]
    assert list(landed.lines(LABELS)[0])[:2] == ["thing_id", "label"]


def test_a_partitioned_table_comes_under_its_own_name(
    source: Connection, landed: Landed, make: Callable[..., Capture]
) -> None:
    execute(
        source,
        "create schema tests; create table tests.things (thing_id bigint primary key, label text)"
        " partition by range (thing_id); create table tests.low partition of tests.things for values from (1) to (100);"
        # Its columns lie in another order.
        " create table tests.high (label text, thing_id bigint primary key);"
        " alter table tests.things attach partition tests.high for values from (100) to (200)",
    )
    capture = make(LABELS)
    capture.drain()
    execute(source, "insert into tests.things values (1, 'low'), (100, 'high')")
    execute(source, "update tests.things set thing_id = 101 where thing_id = 1")
    execute(source, "create table tests.higher partition of tests.things for values from (200) to (300)")
    execute(source, "insert into tests.things values (200, 'higher')")
    execute(source, "update tests.things set label = 'highest' where thing_id = 200")
    capture.drain()

    assert landed.replayed(LABELS) == state_of(source, LABELS)
    assert len(landed.rows(LABELS)) == 6
    execute(source, "truncate tests.things")
    capture.drain()
    assert landed.rows(LABELS)[6:] == [("t", None, None)]


def test_a_stored_generated_column_comes_as_a_snapshot_has_it(
    things: Connection, landed: Landed, make: Callable[..., Capture]
) -> None:
    execute(things, "alter table tests.things add twice int generated always as (pieces * 2) stored")
    capture = make(THINGS)
    capture.drain()
    execute(things, "insert into tests.things (thing_id, pieces) values (1, 4)")
    capture.drain()

    assert landed.lines(THINGS)[0]["twice"] == 8


def test_a_new_column_joins_the_lines_from_its_first_change_on(
    database: Connection, landed: Landed, make: Callable[..., Capture]
) -> None:
    capture = make(PRODUCTS)
    capture.drain()
    execute(database, "insert into tests.products values (1, 'one', 'a', 1)")
    execute(database, "alter table tests.products add colour text, drop unit_price, add unit_price int")
    execute(database, "insert into tests.products values (2, 'two', 'b', 'red', 2)")
    capture.drain()

    first, second = landed.lines(PRODUCTS)
    assert list(first)[:4] == ["product_id", "product_name", "category", "unit_price"]
    assert list(second)[:5] == ["product_id", "product_name", "category", "colour", "unit_price"]
    assert (first["unit_price"], second["unit_price"], second["colour"]) == ("1", 2, "red")


@pytest.mark.parametrize(
    ("alteration", "problem"),
    [
        ("rename category to kind", "column 'category' is missing"),
        ("drop category", "column 'category' is missing"),
        ('add "Category" text', "differ only in case: 'category'"),
        ("add __op text", "'__op' has a name that is taken"),
    ],
)
def test_a_range_that_breaks_the_contract_is_refused_before_anything_is_published(
    database: Connection, landed: Landed, make: Callable[..., Capture], alteration: str, problem: str
) -> None:
    capture = make(ORDERS, PRODUCTS)
    capture.drain()
    execute(database, "insert into tests.orders values (1)")
    execute(database, f"alter table tests.products {alteration}")
    execute(database, "insert into tests.products (product_id, product_name) values (1, 'secret')")

    for _ in range(2):
        with pytest.raises(SchemaMismatch, match=f"bz_products: .*{problem}.* Fix: ") as caught:
            capture.drain()
        assert "secret" not in str(caught.value)
    assert landed.files() == []

    capture.drop()
    execute(database, "drop table tests.products; create table tests.products (like tests.orders)")
    execute(database, "drop table tests.products")
    execute(
        database,
        "create table tests.products (product_id int primary key, product_name text, category text,"
        " unit_price numeric)",
    )
    assert capture.drain().started_anew
    execute(database, "insert into tests.products values (2)")
    capture.drain()
    assert [row[1] for row in landed.rows(PRODUCTS)] == [2]


def test_changes_made_while_the_identity_lacked_the_key_are_refused(
    database: Connection, landed: Landed, make: Callable[..., Capture]
) -> None:
    execute(database, "alter table tests.products alter product_name set not null")
    execute(database, "create unique index by_name on tests.products (product_name)")
    capture = make(PRODUCTS)
    capture.drain()
    execute(database, "insert into tests.products values (1, 'secret')")
    execute(database, "alter table tests.products replica identity using index by_name")
    execute(database, "update tests.products set product_id = 2")
    execute(database, "alter table tests.products replica identity default")

    with pytest.raises(SchemaMismatch, match="key column 'product_id' was not in the replica identity") as caught:
        capture.drain()
    assert "secret" not in str(caught.value)
    assert landed.files() == []


def test_changes_of_other_tables_do_not_show_but_move_the_watermark(
    database: Connection, landed: Landed, make: Callable[..., Capture]
) -> None:
    capture = make(PRODUCTS)
    first = capture.drain()
    execute(database, "create table tests.others (n int); insert into tests.others select generate_series(1, 1000)")
    execute(database, "insert into tests.orders values (1)")
    second = capture.drain()

    assert second.files == ()
    assert landed.files() == []
    assert second.up_to_lsn > first.up_to_lsn
    stored = manifest(str(landed.folder), SCHEMA)
    assert stored is not None
    assert stored.watermark == second.up_to_lsn
    ((confirmed,),) = ask(
        database, f"select confirmed_flush_lsn::text from pg_replication_slots where slot_name = '{capture.slot}'"
    )
    assert lsn_of(confirmed) == second.up_to_lsn


# --- replica identity -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "identity",
    [
        "drop constraint products_pkey",
        "replica identity nothing",
        "drop constraint products_pkey, add primary key (product_name)",
        "drop constraint products_pkey, add primary key (product_id) deferrable",
        "drop constraint products_pkey, add primary key (product_name) include (product_id)",
    ],
)
def test_a_table_whose_updates_would_be_refused_is_refused_before_it_is_published(
    database: Connection, landed: Landed, make: Callable[..., Capture], identity: str
) -> None:
    execute(database, "insert into tests.products values (1, 'one', 'a', 1)")
    execute(database, f"alter table tests.products {identity}")

    with pytest.raises(SourceRefused, match=r"ALTER TABLE tests\.products REPLICA IDENTITY FULL;") as caught:
        make(ORDERS, PRODUCTS).drain()

    assert str(caught.value).startswith("bz_products: ")
    assert not caught.value.retryable
    execute(database, "update tests.products set category = 'b'")
    execute(database, "delete from tests.products")
    assert ask(database, "select count(*) from pg_publication") == [(0,)]
    assert ask(database, "select count(*) from pg_replication_slots where database = current_database()") == [(0,)]
    assert landed.files() == []


def test_all_tables_that_lack_an_identity_stand_in_one_message(
    database: Connection, make: Callable[..., Capture]
) -> None:
    execute(database, "alter table tests.products drop constraint products_pkey")
    execute(database, "alter table tests.orders drop constraint orders_pkey")

    with pytest.raises(SourceRefused) as caught:
        make(ORDERS, PRODUCTS).drain()

    for statement in caught.value.fix.split(";")[:2]:
        execute(database, statement)
    make(ORDERS, PRODUCTS).drain()


def test_the_owner_may_let_the_capture_set_the_identity(
    database: Connection, landed: Landed, make: Callable[..., Capture]
) -> None:
    execute(database, "alter table tests.products drop constraint products_pkey")
    capture = make(ORDERS, PRODUCTS, set_replica_identity=True)
    capture.drain()
    execute(database, "insert into tests.products values (1); update tests.products set category = 'b'")
    execute(database, "delete from tests.products")
    capture.drain()

    assert [row[0] for row in landed.rows(PRODUCTS)] == ["c", "u", "d"]
    identities = dict(ask(database, "select relname, relreplident::text from pg_class"))
    assert (identities["orders"], identities["products"]) == ("d", "f")


def test_an_index_as_identity_serves_if_it_holds_the_key(
    database: Connection, landed: Landed, make: Callable[..., Capture]
) -> None:
    execute(
        database,
        "alter table tests.products drop constraint products_pkey; alter table tests.products"
        " alter product_id set not null, alter product_name set not null;"
        " create unique index both_columns on tests.products (product_name, product_id);"
        " alter table tests.products replica identity using index both_columns",
    )
    capture = make(PRODUCTS)
    capture.drain()
    execute(database, "insert into tests.products values (1, 'one')")
    # The identity changes, the key does not.
    execute(database, "update tests.products set product_name = 'eins'")
    execute(database, "update tests.products set product_id = 2")
    capture.drain()

    assert [(row[0], row[1], row[2]) for row in landed.rows(PRODUCTS)] == [
        ("c", 1, "one"),
        ("u", 1, "eins"),
        ("d", 1, None),
        ("c", 2, "eins"),
    ]


def test_a_key_of_several_columns_moves_as_a_whole(
    source: Connection, landed: Landed, make: Callable[..., Capture]
) -> None:
    execute(
        source,
        "create schema tests; create table tests.pairs (label text, right_id int, left_id int,"
        " primary key (left_id, right_id))",
    )
    capture = make(PAIRS)
    capture.drain()
    execute(source, "insert into tests.pairs values ('x', 2, 1); update tests.pairs set right_id = 3")
    capture.drain()

    assert [
        {name: line[name] for name in ("__op", "left_id", "right_id", "label")} for line in landed.lines(PAIRS)
    ] == [
        {"__op": "c", "left_id": 1, "right_id": 2, "label": "x"},
        {"__op": "d", "left_id": 1, "right_id": 2, "label": None},
        {"__op": "c", "left_id": 1, "right_id": 3, "label": "x"},
    ]


def test_the_partitions_are_what_needs_an_identity(source: Connection, make: Callable[..., Capture]) -> None:
    execute(
        source,
        "create schema tests; create table tests.things (thing_id bigint, label text) partition by range (thing_id);"
        " create table tests.low partition of tests.things for values from (1) to (100)",
    )
    with pytest.raises(SourceRefused, match=r"tests\.things is partitioned and has no primary key"):
        make(LABELS, set_replica_identity=True).drain()

    execute(source, "alter table tests.things add primary key (thing_id)")
    execute(source, "alter table tests.low replica identity nothing")
    with pytest.raises(SourceRefused, match=r"ALTER TABLE tests\.low REPLICA IDENTITY FULL;"):
        make(LABELS).drain()

    make(LABELS, set_replica_identity=True).drain()
    execute(source, "insert into tests.things values (1, 'x'); update tests.things set label = 'y'")


# --- what is refused --------------------------------------------------------------------------------------------------


def test_tables_that_are_not_captured_are_refused(source_url: str, landed: Landed) -> None:
    (warehouses,) = [table for table in TABLES if table.name == "bz_warehouses"]
    elsewhere = dataclasses.replace(PRODUCTS, schema="elsewhere_bronze")
    for tables in ((), (PRODUCTS, warehouses), (PRODUCTS, elsewhere)):
        with pytest.raises(DeclarationError):
            Capture(source_url, str(landed.folder), tables)


@pytest.mark.parametrize(
    ("statement", "culprit"),
    [
        ("select", "bz_things: the source has no table tests.things"),
        ("create view tests.things as select 1 as thing_id", "bz_things: tests.things is no permanent table"),
        ("create unlogged table tests.things (thing_id int primary key)", "bz_things: tests.things is no permanent"),
        ('create table tests."Things" (n int); create table tests.things (n int)', "bz_things: .*several tables"),
        (
            "create table tests.things (thing_id int primary key); create table tests.child () inherits (tests.things)",
            "bz_things: tests.things is a parent of inheriting tables",
        ),
    ],
)
def test_what_cannot_be_published_is_refused_by_name(
    source: Connection, make: Callable[..., Capture], statement: str, culprit: str
) -> None:
    execute(source, "create schema tests")
    execute(source, statement)

    with pytest.raises(SourceRefused, match=f"^{culprit}.* Fix: "):
        make(LABELS).drain()


def test_a_role_without_privileges_is_told_what_to_ask_for(
    database: Connection, server: Server, source_url: str, landed: Landed
) -> None:
    role = f"nobody_{os.getpid()}"
    with postgres.connect(server.admin_url) as admin:
        execute(admin, f"create role {role} login password 'pw'")
        try:
            parts = urlsplit(source_url)
            url = parts._replace(netloc=f"{role}:pw@{parts.hostname}:{parts.port}").geturl()
            capture = Capture(url, str(landed.folder), [PRODUCTS])
            with pytest.raises(SourceRefused, match="Fix: let the tables' owner run: create publication") as caught:
                capture.drain()

            # As told.
            execute(database, caught.value.fix.removeprefix("let the tables' owner run: "))
            with pytest.raises(SourceRefused, match=f'Fix: ALTER ROLE "{role}" REPLICATION'):
                capture.drain()

            execute(admin, f"alter role {role} replication")
            assert capture.drain().started_anew
            execute(database, "insert into tests.products values (1)")
            capture.drain()
            assert [row[1] for row in landed.rows(PRODUCTS)] == [1]

            both = Capture(url, str(landed.folder), [PRODUCTS, ORDERS])
            with pytest.raises(SourceRefused, match="alter publication") as caught:
                both.drain()
            execute(database, caught.value.fix.removeprefix("let the publication's owner run: "))
            assert both.drain().incomplete == ("bz_orders",)

            with pytest.raises(SourceRefused, match="drop publication"):
                both.drop()
        finally:
            execute(admin, f"drop role {role}")


def test_a_server_without_a_free_slot_is_told_apart(
    database: Connection, make: Callable[..., Capture], source_url: str
) -> None:
    taken = []
    try:
        with contextlib.suppress(errors.ConfigurationLimitExceeded):
            for number in range(100):
                execute(database, f"select pg_create_logical_replication_slot('taken_{number}', 'pgoutput')")
                taken.append(number)
        with pytest.raises(SourceRefused, match=r"no free replication slot .* Fix: drop one that is left behind"):
            make(PRODUCTS).drain()
        with pytest.raises(SourceRefused, match=r"no snapshot at a slot's point.* Fix: drop a slot that is left"):
            PostgresSource(source_url, slot_point=True).snapshot()
    finally:
        for number in taken:
            execute(database, f"select pg_drop_replication_slot('taken_{number}')")


def test_a_slot_is_not_waited_for_for_ever(
    database: Connection, source_url: str, make: Callable[..., Capture], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(postgres_changes, "LOCK_TIMEOUT_SECONDS", 1)
    capture = make(PRODUCTS)
    with postgres.connect(source_url) as other:
        execute(other, "begin; insert into tests.orders values (1)")
        with pytest.raises(SourceBusy, match="a transaction stays open") as caught:
            capture.drain()
        execute(other, "commit")

    assert caught.value.retryable
    assert capture.drain().started_anew


def test_a_source_that_does_not_answer_is_worth_a_retry(source_url: str, landed: Landed) -> None:
    nowhere = urlsplit(source_url)
    url = nowhere._replace(netloc=nowhere.netloc.rpartition(":")[0] + ":1").geturl()

    with pytest.raises(SourceUnreachable):
        Capture(url, str(landed.folder), [PRODUCTS]).drain()


def test_a_landing_zone_that_cannot_be_written_is_named(
    database: Connection, make: Callable[..., Capture], landed: Landed
) -> None:
    landed.folder.write_text("in the way")

    with pytest.raises(LakeError, match=r"landing zone .*landing zone.* Fix: check BRONZE_LANDING"):
        make(PRODUCTS).drain()


def test_a_value_that_is_no_text_is_refused_and_not_shown(server: Server, landed: Landed) -> None:
    name = f"ascii_{os.getpid()}"
    with postgres.connect(server.admin_url) as admin:
        execute(admin, f"create database {name} owner bronze template template0 encoding 'SQL_ASCII' locale 'C'")
    url = database_url(server.url, name)
    try:
        with postgres.connect(url) as connection:
            execute(connection, CREATE)
            capture = Capture(url, str(landed.folder), [PRODUCTS])
            capture.drain()
            execute(connection, "set client_encoding = 'SQL_ASCII'")
            execute(connection, "insert into tests.products values (1, E'secret \\xff')")
            with pytest.raises(SourceRefused, match="a changed value cannot be had as UTF-8") as caught:
                capture.drain()
            assert "secret" not in str(caught.value)
            assert caught.value.__cause__ is None
            capture.drop()
    finally:
        server.drop_database(url)


@pytest.mark.slow
def test_a_server_that_logs_no_rows_is_refused(tmp_path: Path, landed: Landed) -> None:
    settings = settings_for(tmp_path / "home")
    try:
        url = postgres.start(settings, print)
        admin_url = (settings.home / "postgres" / "admin_url").read_text(encoding="utf-8")
        with postgres.connect(admin_url) as admin:
            execute(admin, "alter system set wal_level = 'replica'")
        postgres.stop(settings)
        url = postgres.start(settings, print)
        with pytest.raises(SourceRefused, match=r"wal_level is replica.* Fix: ALTER SYSTEM SET wal_level = logical"):
            Capture(url, str(landed.folder), [PRODUCTS]).drain()
        with pytest.raises(SourceRefused, match="Fix: ALTER SYSTEM SET wal_level = logical"):
            PostgresSource(url, slot_point=True).snapshot()
    finally:
        postgres.remove(settings)


# --- a capture that goes on, or starts anew ---------------------------------------------------------------------------


def lose_the_slot(source: Connection, capture: Capture, landed: Landed) -> None:
    execute(source, "select pg_drop_replication_slot(%s)", (capture.slot,))


def replace_the_slot(source: Connection, capture: Capture, landed: Landed) -> None:
    lose_the_slot(source, capture, landed)
    insert_unseen(source)
    execute(source, "select pg_create_logical_replication_slot(%s, 'pgoutput')", (capture.slot,))


def advance_the_slot(source: Connection, capture: Capture, landed: Landed) -> None:
    insert_unseen(source)
    execute(source, "select pg_replication_slot_advance(%s, pg_current_wal_flush_lsn())", (capture.slot,))


def remake_the_publication(source: Connection, capture: Capture, landed: Landed) -> None:
    execute(source, f"drop publication {capture.publication}")
    insert_unseen(source)
    execute(
        source,
        f"create publication {capture.publication} for table tests.products, tests.orders"
        " with (publish_via_partition_root = true)",
    )


def drop_the_publication(source: Connection, capture: Capture, landed: Landed) -> None:
    execute(source, f"drop publication {capture.publication}")
    insert_unseen(source)


def restrict_the_publication(source: Connection, capture: Capture, landed: Landed) -> None:
    execute(source, f"alter publication {capture.publication} set (publish = 'update')")
    insert_unseen(source)


def lose_the_manifest(source: Connection, capture: Capture, landed: Landed) -> None:
    (landed.folder / SCHEMA / "_capture" / "manifest.json").unlink()


def spoil_the_manifest(source: Connection, capture: Capture, landed: Landed) -> None:
    (landed.folder / SCHEMA / "_capture" / "manifest.json").write_text('{"slot": "')


def meet_another_timeline(source: Connection, capture: Capture, landed: Landed) -> None:
    def edit(stored: dict[str, Any]) -> None:
        system, _, slot = stored["source_epoch"].split("/")
        stored["source_epoch"] = f"{system}/2/{slot}"

    edit_manifest(landed, edit)


def set_the_source_back(source: Connection, capture: Capture, landed: Landed) -> None:
    edit_manifest(landed, lambda stored: stored.update(watermark="00FF000000000000"))


def lose_the_slot_in_a_restore(source: Connection, capture: Capture, landed: Landed) -> None:
    lose_the_slot(source, capture, landed)
    set_the_source_back(source, capture, landed)


def set_the_source_back_and_go_on(source: Connection, capture: Capture, landed: Landed) -> None:
    """Other transactions lie between the slot's position and the watermark than were captured."""
    insert_unseen(source)
    ((end,),) = ask(source, "select pg_current_wal_flush_lsn()::text")
    edit_manifest(landed, lambda stored: stored.update(watermark=f"{lsn_of(end):016X}"))


LOSSES = {
    "is gone": lose_the_slot,
    "was moved by somebody else": advance_the_slot,
    "was moved by somebody else, too": replace_the_slot,
    "the publication was dropped or made anew": remake_the_publication,
    "the publication was dropped or made anew, by us": drop_the_publication,
    "the publication was dropped or made anew, as it was altered": restrict_the_publication,
    "there is a slot without a manifest": lose_the_manifest,
    "there is a slot without a manifest, that can be read": spoil_the_manifest,
    "another timeline": meet_another_timeline,
    "set back": set_the_source_back,
    "set back, without the slot": lose_the_slot_in_a_restore,
    "set back, and went on": set_the_source_back_and_go_on,
}
SEEN_BY_THE_DRAIN_ALONE = (restrict_the_publication, set_the_source_back_and_go_on)


def insert_unseen(source: Connection) -> None:
    # Else a slot could not be moved beyond it yet.
    execute(source, "set synchronous_commit = on; insert into tests.products values (99)")


def edit_manifest(landed: Landed, edit: Callable[[dict[str, Any]], object]) -> None:
    path = landed.folder / SCHEMA / "_capture" / "manifest.json"
    stored = json.loads(path.read_text())
    edit(stored)
    path.write_text(json.dumps(stored))


@pytest.mark.parametrize("reason", LOSSES)
def test_a_lost_slot_is_made_anew_and_misses_nothing_from_then_on(
    database: Connection, source_url: str, landed: Landed, make: Callable[..., Capture], reason: str
) -> None:
    capture = make(PRODUCTS, ORDERS)
    first = capture.drain()
    execute(database, "insert into tests.products values (1); insert into tests.orders values (1)")
    capture.drain()
    LOSSES[reason](database, capture, landed)
    execute(database, "insert into tests.products values (2)")
    foretold = capture.status().lost
    outcome = capture.drain()
    snapshot = Snapshot(capture._address, dt.datetime.now(dt.UTC), slot_point=True)
    snapshot.close()
    execute(database, "insert into tests.products values (3); delete from tests.orders")
    last = capture.drain()

    assert outcome.started_anew is not None
    assert reason.split(",")[0] in outcome.started_anew
    assert foretold == (None if LOSSES[reason] in SEEN_BY_THE_DRAIN_ALONE else outcome.started_anew)
    assert outcome.incomplete == ("bz_products", "bz_orders")
    assert (last.started_anew, last.incomplete) == (None, ())
    stored = manifest(str(landed.folder), SCHEMA)
    assert stored is not None
    assert first.up_to_lsn < stored.start_lsn <= snapshot.lsn <= stored.watermark
    assert set(stored.tables.values()) == {stored.start_lsn}
    # What comes from the new slot is of another epoch, whatever became of the server's positions.
    before, after = (line["__source_epoch"] for line in landed.lines(PRODUCTS))
    assert before != after == stored.source_epoch == stored.epoch_of(snapshot.epoch)
    assert {epoch.rsplit("/", 1)[0] for epoch in (before, after)} == {snapshot.epoch}
    assert [restart.reason for restart in stored.restarts] == [outcome.started_anew]
    assert landed.rows(PRODUCTS) == [("c", 1, None, None, None), ("c", 3, None, None, None)]
    assert [row[:2] for row in landed.rows(ORDERS)] == [("c", 1), ("d", 1)]
    slots = ask(database, "select slot_name from pg_replication_slots where database = current_database()")
    assert slots == [(capture.slot,)]


def test_an_epoch_of_another_server_is_not_the_captures(
    database: Connection, landed: Landed, make: Callable[..., Capture]
) -> None:
    make(PRODUCTS).drain()
    stored = manifest(str(landed.folder), SCHEMA)
    assert stored is not None
    assert stored.restarts == ()
    system, timeline, _ = stored.source_epoch.split("/")
    assert stored.epoch_of(f"{system}/{timeline}") == stored.source_epoch
    for other in (f"{system}/{timeline}1", f"{system}1/{timeline}", system):
        assert stored.epoch_of(other) == other


def test_a_manifest_of_before_slots_had_epochs_goes_on(
    database: Connection, landed: Landed, make: Callable[..., Capture]
) -> None:
    capture = make(PRODUCTS)
    capture.drain()
    execute(database, "insert into tests.products values (1)")
    capture.drain()

    def edit(stored: dict[str, Any]) -> None:
        stored["source_epoch"] = stored["source_epoch"].rsplit("/", 1)[0]
        del stored["restarts"], stored["last_commit"]

    edit_manifest(landed, edit)
    execute(database, "insert into tests.products values (2)")
    assert capture.drain().started_anew is None
    stored = manifest(str(landed.folder), SCHEMA)
    assert stored is not None
    assert landed.lines(PRODUCTS)[-1]["__source_epoch"] == stored.source_epoch == stored.epoch_of(stored.source_epoch)


def test_why_a_slot_was_made_is_on_record_although_its_drain_was_killed(
    database: Connection, source_url: str, landed: Landed, make: Callable[..., Capture]
) -> None:
    capture = make(PRODUCTS, ORDERS)
    capture.drain()
    lose_the_slot(database, capture, landed)
    began = dt.datetime.now(dt.UTC)
    with draining(source_url, landed, "manifest begun"):
        pass
    assert drained(capture).started_anew is None
    capture.drain()
    stored = manifest(str(landed.folder), SCHEMA)
    assert stored is not None
    (restart,) = stored.restarts
    assert restart.reason == f"the slot {capture.slot} is gone"
    assert began <= restart.at <= dt.datetime.now(dt.UTC)


def test_only_the_latest_restarts_are_on_record(
    database: Connection, landed: Landed, make: Callable[..., Capture]
) -> None:
    now = dt.datetime(2026, 3, 4, tzinfo=dt.UTC)
    capture = make(PRODUCTS, clock=lambda: now)
    capture.drain()
    for _ in range(12):
        now += dt.timedelta(seconds=1)
        lose_the_slot(database, capture, landed)
        capture.drain()
    stored = manifest(str(landed.folder), SCHEMA)
    assert stored is not None
    assert [restart.at.second for restart in stored.restarts] == list(range(3, 13))


@contextlib.contextmanager
def own_server(folder: Path) -> Iterator[Settings]:
    """A server that a test may stop, kill and set back."""
    settings = settings_for(folder)
    try:
        yield settings
    finally:
        postgres.remove(settings)


def slot_position(connection: Connection, capture: Capture) -> int:
    ((position,),) = ask(
        connection, f"select confirmed_flush_lsn::text from pg_replication_slots where slot_name = '{capture.slot}'"
    )
    return lsn_of(position)


@pytest.mark.slow
def test_a_server_that_crashed_goes_on_though_its_slot_is_behind(tmp_path: Path, landed: Landed) -> None:
    with own_server(tmp_path / "home") as settings:
        url = postgres.start(settings, print)
        capture = Capture(url, str(landed.folder), [PRODUCTS])
        with postgres.connect(url) as source:
            execute(source, CREATE)
            capture.drain()
            for number in (1, 2, 3):
                execute(source, f"insert into tests.products values ({number})")
                capture.drain()
            before = slot_position(source, capture)
        data = settings.home / "postgres" / "data"
        crashed = psutil.Process(int((data / "postmaster.pid").read_text().split("\n", 1)[0]))
        crashed.send_signal(signal.SIGQUIT)
        crashed.wait(PATIENCE)
        capture = Capture(postgres.start(settings, print), str(landed.folder), [PRODUCTS])
        with postgres.connect(url) as source:
            assert slot_position(source, capture) < before, "or this shows nothing"
            execute(source, "insert into tests.products values (4)")
            assert capture.drain().started_anew is None
        assert [row[1] for row in landed.rows(PRODUCTS)] == [1, 2, 3, 4]


@pytest.mark.slow
@pytest.mark.parametrize("slot", ["with its slot", "without"])
@pytest.mark.parametrize("log", ["short", "beyond the watermark"])
def test_a_server_that_was_set_back_is_captured_anew(tmp_path: Path, landed: Landed, log: str, slot: str) -> None:
    with own_server(tmp_path / "home") as settings:
        url = postgres.start(settings, print)
        capture = Capture(url, str(landed.folder), [PRODUCTS])
        data, saved = (settings.home / "postgres" / "data").resolve(), tmp_path / "saved"
        with postgres.connect(url) as source:
            execute(source, CREATE)
            capture.drain()
            execute(source, "insert into tests.products values (1)")
            capture.drain()
        postgres.stop(settings)
        subprocess.run(["cp", "-a", str(data), str(saved)], check=True)

        with postgres.connect(postgres.start(settings, print)) as source:
            for number in (2, 3):
                execute(source, f"insert into tests.products values ({number})")
                execute(source, "select pg_logical_emit_message(false, 'x', repeat('x', 1000000), true)")
                capture.drain()
        first = manifest(str(landed.folder), SCHEMA)
        assert first is not None
        postgres.stop(settings)
        subprocess.run(["rm", "-rf", str(data)], check=True)
        subprocess.run(["cp", "-a", str(saved), str(data)], check=True)

        with postgres.connect(postgres.start(settings, print)) as source:
            if slot == "without":
                lose_the_slot(source, capture, landed)
            execute(source, "insert into tests.products values (4)")
            while log != "short":
                execute(source, "select pg_logical_emit_message(false, 'x', repeat('x', 1000000), true)")
                ((end,),) = ask(source, "select pg_current_wal_flush_lsn()::text")
                if lsn_of(end) > first.watermark + 2**20:
                    break
            outcome = capture.drain()
            execute(source, "insert into tests.products values (5)")
            capture.drain()
    stored = manifest(str(landed.folder), SCHEMA)
    assert stored is not None
    # Without its slot, and that long after, nothing tells it from one whose slot was dropped. It comes to the same.
    expected = "is gone" if slot == "without" and log != "short" else "set back"
    assert expected in (outcome.started_anew or "")
    assert outcome.incomplete == ("bz_products",)
    assert [row[1] for row in landed.rows(PRODUCTS) if row[1] != 5] == [1, 2, 3]
    assert {line["__source_epoch"] for line in landed.lines(PRODUCTS) if line["product_id"] < 4} == {first.source_epoch}
    assert [line["__source_epoch"] for line in landed.lines(PRODUCTS) if line["product_id"] == 5] == [
        stored.source_epoch
    ]
    assert stored.source_epoch != first.source_epoch


def test_a_slot_that_is_too_far_behind_is_given_up(
    database: Connection, landed: Landed, make: Callable[..., Capture]
) -> None:
    capture = make(PRODUCTS, max_lag_bytes=1_000_000)
    capture.drain()
    execute(database, "insert into tests.products values (1)")
    assert capture.drain().started_anew is None
    execute(database, "insert into tests.orders select n from generate_series(1, 20000) n")
    before = capture.status()
    outcome = capture.drain()

    assert before.lost == outcome.started_anew
    assert before.lost is not None
    assert "bytes behind, more than 1000000" in before.lost
    assert before.lag_bytes > 1_000_000
    assert before.retained_bytes >= before.lag_bytes
    assert capture.status().lost is None
    assert capture.status().lag_bytes < 1_000_000


def test_a_slot_that_the_server_invalidated_is_made_anew(
    database: Connection, server: Server, landed: Landed, make: Callable[..., Capture]
) -> None:
    capture = make(PRODUCTS)
    capture.drain()
    with postgres.connect(server.admin_url) as admin:
        execute(admin, "alter system set max_slot_wal_keep_size = '1MB'; ".rstrip("; "))
        execute(admin, "select pg_reload_conf()")
        try:
            for _ in range(2):
                execute(database, "select pg_logical_emit_message(false, 'x', repeat('x', 20000000))")
                execute(admin, "select pg_switch_wal()")
                execute(admin, "checkpoint")
            status = capture.status()
            outcome = capture.drain()
        finally:
            execute(admin, "alter system reset max_slot_wal_keep_size")
            execute(admin, "select pg_reload_conf()")

    assert (status.present, status.wal_status) == (True, "lost")
    assert status.lost == outcome.started_anew == f"the slot {capture.slot} was invalidated by the server"
    execute(database, "insert into tests.products values (1)")
    capture.drain()
    assert [row[1] for row in landed.rows(PRODUCTS)] == [1]


def test_a_table_that_joins_is_complete_from_then_on(
    database: Connection, landed: Landed, make: Callable[..., Capture]
) -> None:
    capture = make(PRODUCTS)
    capture.drain()
    execute(database, "insert into tests.products values (1); insert into tests.orders values (1)")
    ((before,),) = ask(database, "select pg_current_wal_insert_lsn()::text")
    both = make(PRODUCTS, ORDERS)
    outcome = both.drain()
    execute(database, "insert into tests.products values (2); insert into tests.orders values (2)")
    both.drain()

    assert both.slot == capture.slot
    assert (outcome.started_anew, outcome.incomplete) == (None, ("bz_orders",))
    stored = manifest(str(landed.folder), SCHEMA)
    assert stored is not None
    assert stored.tables["bz_products"] == stored.start_lsn
    assert lsn_of(before) <= stored.tables["bz_orders"] <= outcome.up_to_lsn
    assert [row[1] for row in landed.rows(PRODUCTS)] == [1, 2]
    assert [row[1] for row in landed.rows(ORDERS)] == [2]

    capture.drain()
    assert ask(database, "select tablename from pg_publication_tables") == [("products",)]


@pytest.mark.parametrize("swap", ["drop table", "alter publication {} drop table"])
def test_a_table_that_was_away_counts_as_new(
    database: Connection, landed: Landed, make: Callable[..., Capture], swap: str
) -> None:
    capture = make(PRODUCTS, ORDERS)
    capture.drain()
    execute(database, f"{swap.format(capture.publication)} tests.orders")
    execute(
        database,
        "create table if not exists tests.orders (order_id bigint primary key, customer_id int, order_date date,"
        " order_status text)",
    )
    execute(database, "insert into tests.orders values (1); insert into tests.products values (1)")
    outcome = capture.drain()
    execute(database, "insert into tests.orders values (2)")
    capture.drain()

    assert (outcome.started_anew, outcome.incomplete) == (None, ("bz_orders",))
    assert [row[1] for row in landed.rows(ORDERS)] == [2]
    assert [row[1] for row in landed.rows(PRODUCTS)] == [1]


def test_a_filter_on_the_publication_does_not_stay(
    database: Connection, landed: Landed, make: Callable[..., Capture]
) -> None:
    capture = make(PRODUCTS, ORDERS)
    capture.drain()
    execute(
        database,
        f"alter publication {capture.publication} set table tests.products where (product_id > 5), tests.orders",
    )
    outcome = capture.drain()
    execute(database, "insert into tests.products values (1)")
    capture.drain()

    assert outcome.incomplete == ("bz_products",)
    assert [row[1] for row in landed.rows(PRODUCTS)] == [1]


def test_dropping_leaves_nothing_on_the_server(
    database: Connection, source_url: str, tmp_path: Path, landed: Landed, make: Callable[..., Capture]
) -> None:
    capture, other = make(PRODUCTS), Capture(source_url, str(tmp_path / "elsewhere"), [PRODUCTS])
    capture.drain()
    other.drain()
    assert capture.slot != other.slot
    for each in (capture, other):
        each.drop()
        execute(database, "insert into tests.products values (%s)", (2 if each is capture else 3,))
        if each is capture:
            # The other one still needs it.
            assert other.drain().rows == {"bz_products": 1}

    assert ask(database, "select count(*) from pg_publication") == [(0,)]
    assert ask(database, "select count(*) from pg_replication_slots where database = current_database()") == [(0,)]
    assert manifest(str(landed.folder), SCHEMA) is None
    capture.drop()
    assert capture.drain().started_anew == "nothing was captured before"
    again = manifest(str(landed.folder), SCHEMA)
    assert again is not None
    assert again.source_epoch not in {line["__source_epoch"] for line in landed.lines(PRODUCTS)}


def test_the_status_tells_how_far_behind_a_capture_is(
    database: Connection, landed: Landed, make: Callable[..., Capture]
) -> None:
    now = dt.datetime(2026, 3, 4, 12, tzinfo=dt.UTC)
    capture = make(PRODUCTS, clock=lambda: now)
    before = capture.status()
    outcome = capture.drain()
    drained_status = capture.status()
    execute(database, "insert into tests.products values (1)")
    now += dt.timedelta(minutes=5)
    after = capture.status()

    assert (before.present, before.active, before.wal_status, before.confirmed_at) == (False, False, None, None)
    assert (before.lag_bytes, before.lag_seconds, before.lost) == (0, None, "nothing was captured before")
    assert (drained_status.present, drained_status.wal_status, drained_status.lost) == (True, "reserved", None)
    assert (drained_status.watermark, drained_status.lag_seconds) == (outcome.up_to_lsn, 0)
    assert after.lag_bytes > drained_status.lag_bytes
    assert after.lag_seconds == 300
    assert after.confirmed_at == outcome.confirmed_at == dt.datetime(2026, 3, 4, 12, tzinfo=dt.UTC)


def test_a_drain_that_finds_nothing_confirms_the_position(
    database: Connection, landed: Landed, make: Callable[..., Capture]
) -> None:
    now = dt.datetime(2026, 3, 4, 12, tzinfo=dt.UTC)
    capture = make(PRODUCTS, clock=lambda: now)
    capture.drain()
    for _ in range(3):
        now += dt.timedelta(minutes=1)
        outcome = capture.drain()
        stored = manifest(str(landed.folder), SCHEMA)
        assert stored is not None
        assert stored.confirmed_at == outcome.confirmed_at == now
        # Else each drain would have to compare what lies between.
        assert slot_position(database, capture) == stored.watermark
        assert outcome.files == ()
    assert sorted(path.name for path in (landed.folder / SCHEMA / "_capture").iterdir()) == ["manifest.json"]


def test_names_fit_whatever_the_schema_is_called(source_url: str, landed: Landed) -> None:
    schema = "very_long_ÄÖ_Name_" + "x" * 80
    capture = Capture(source_url, str(landed.folder), [dataclasses.replace(PRODUCTS, schema=schema)])

    assert len(capture.slot) <= 63
    assert capture.slot.startswith(capture.publication)


def test_an_object_store_gets_the_same_files(
    database: Connection, source_url: str, landed: Landed, make: Callable[..., Capture]
) -> None:
    place = f"memory://{landed.folder.parent.name}/landing"
    remote, local = Capture(source_url, place, [PRODUCTS, ORDERS]), make(PRODUCTS, ORDERS)
    remote.drain()
    local.drain()
    execute(database, "insert into tests.products values (1); insert into tests.orders values (1)")
    outcome = remote.drain()
    local.drain()

    store = UPath(place)
    here, there = manifest(str(landed.folder), SCHEMA), manifest(place, SCHEMA)
    assert here is not None
    assert there is not None
    assert {path.split("/")[1]: (store / path).read_text() for path in outcome.files} == {
        path.split("/")[1]: (landed.folder / path).read_text().replace(here.source_epoch, there.source_epoch)
        for path in landed.files()
    }
    assert sorted(path.name for path in (store / SCHEMA).iterdir()) == ["_capture", "bz_orders", "bz_products"]
    assert sorted(path.name for path in (store / SCHEMA / "_capture").iterdir()) == ["manifest.json"]
    stored = manifest(place, SCHEMA)
    assert stored is not None
    assert stored.watermark == outcome.up_to_lsn
    remote.drop()
    assert manifest(place, SCHEMA) is None


# --- killed, raced ----------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def draining(
    source_url: str, landed: Landed, point: str, tables: Sequence[BronzeTable] = (PRODUCTS, ORDERS)
) -> Iterator[subprocess.Popen[str]]:
    """A process that drains and stands still at a point; it is killed at the end, if it still stands there."""
    reached = landed.folder.parent / "reached"
    asked = {
        "landing": str(landed.folder),
        "tables": [table.name for table in tables],
        "point": point,
        "reached": str(reached),
    }
    process = subprocess.Popen(
        [sys.executable, "-m", killed_capture.__name__, json.dumps(asked)],
        cwd=CHECKOUT,
        env={**os.environ, "BRONZE_SOURCE_URL": source_url},
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        deadline = time.monotonic() + PATIENCE
        while point and not reached.exists():
            assert process.poll() is None, process.communicate()[0]
            assert time.monotonic() < deadline
            time.sleep(0.02)
        yield process
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
        process.wait()
        reached.unlink(missing_ok=True)


def until_free(source_url: str, capture: Capture) -> None:
    """Wait until no session is left that claims the capture or reads from its slot."""
    deadline = time.monotonic() + PATIENCE
    with postgres.connect(source_url) as connection:
        while ask(
            connection,
            "select from pg_locks l join pg_database d on d.oid = l.database where locktype = 'advisory'"
            f" and datname = current_database() union all select from pg_replication_slots"
            f" where slot_name = '{capture.slot}' and active",
        ):
            assert time.monotonic() < deadline
            time.sleep(0.02)


def change(connection: Connection, number: int) -> None:
    """Some changes of every kind, other ones for every number."""
    low = number * 100
    execute(
        connection,
        f"insert into tests.products select n, 'täg ' || n, 'c', n from generate_series({low}, {low + 20}) n;"
        f" insert into tests.orders select n, n, '2026-01-01', 'new' from generate_series({low}, {low + 20}) n",
    )
    execute(
        connection,
        f"begin; update tests.products set category = 'd' where product_id % 3 = 0;"
        f" update tests.orders set order_id = -order_id where order_id = {low + 1}; commit",
    )
    execute(connection, f"delete from tests.products where product_id = {low + 2}")
    execute(connection, f"begin; delete from tests.orders; rollback; insert into tests.orders values ({low + 99})")


@pytest.mark.parametrize("point", killed_capture.POINTS)
def test_a_drain_that_is_killed_is_made_up_for(
    database: Connection, source_url: str, tmp_path: Path, landed: Landed, make: Callable[..., Capture], point: str
) -> None:
    undisturbed = Landed(tmp_path / "undisturbed")
    other = Capture(source_url, str(undisturbed.folder), [PRODUCTS, ORDERS])
    capture = make(PRODUCTS, ORDERS, clock=lambda: dt.datetime.now(dt.UTC) + dt.timedelta(days=40))
    other.drain()
    capture.drain()
    change(database, 1)
    with draining(source_url, landed, point):
        loaded = {path: (landed.folder / path).read_bytes() for path in landed.files()}
    assert len(loaded) == {"one file published": 1}.get(
        point, 0 if point in killed_capture.POINTS[: killed_capture.POINTS.index("one file published")] else 2
    )
    change(database, 2)
    drained(capture)
    change(database, 3)
    drained(capture)
    other.drain()

    for path, content in loaded.items():
        assert (landed.folder / path).read_bytes() == content
    lines = landed.everything([PRODUCTS, ORDERS])
    assert lines == undisturbed.everything([PRODUCTS, ORDERS])
    assert len(lines) == len(set(lines)) > 150
    for table in (PRODUCTS, ORDERS):
        assert landed.replayed(table) == state_of(database, table)
    assert sorted(path.name for path in (landed.folder / SCHEMA / "_capture").iterdir()) == ["manifest.json"]
    assert not list(landed.folder.rglob(".*"))


@pytest.mark.parametrize("point", killed_capture.FIRST_POINTS)
def test_a_first_drain_that_is_killed_leaves_one_slot_and_no_gap(
    database: Connection, source_url: str, landed: Landed, make: Callable[..., Capture], point: str
) -> None:
    capture = make(PRODUCTS, ORDERS)
    with draining(source_url, landed, point):
        pass
    outcome = drained(capture)
    stored = manifest(str(landed.folder), SCHEMA)
    assert stored is not None
    if point in ("connected", "publication made"):
        assert outcome.started_anew == "nothing was captured before"
    elif point == "slot made":
        assert outcome.started_anew == "there is a slot without a manifest"
    else:
        assert outcome.started_anew is None
    assert set(stored.tables) == {"bz_products", "bz_orders"}
    change(database, 1)
    drained(capture)

    for table in (PRODUCTS, ORDERS):
        assert landed.replayed(table) == state_of(database, table)
    slots = ask(database, "select slot_name from pg_replication_slots where database = current_database()")
    assert slots == [(capture.slot,)]


def test_killed_again_and_again_it_still_writes_everything_once(
    database: Connection, source_url: str, tmp_path: Path, landed: Landed, make: Callable[..., Capture]
) -> None:
    undisturbed = Landed(tmp_path / "undisturbed")
    other, capture = Capture(source_url, str(undisturbed.folder), [PRODUCTS, ORDERS]), make(PRODUCTS, ORDERS)
    other.drain()
    capture.drain()
    points = ["one file published", "line spooled", "one file published", "all files published", "manifest written"]
    for number, point in enumerate([*points, "advanced", "intent forgotten", "spooled", "one file published"], 1):
        if point == "spooled" or number == 1:
            change(database, number)
        # The server may take a moment to notice that the last one was killed.
        until_free(source_url, capture)
        with draining(source_url, landed, point):
            pass
    drained(capture)
    other.drain()

    assert landed.everything([PRODUCTS, ORDERS]) == undisturbed.everything([PRODUCTS, ORDERS])


def test_a_claim_that_is_let_go_in_a_moment_is_waited_for(
    database: Connection, source_url: str, make: Callable[..., Capture]
) -> None:
    capture = make(PRODUCTS)
    capture.drain()
    change(database, 1)
    with postgres.connect(source_url) as other:
        ask(other, f"select pg_advisory_lock(hashtextextended('bronze {capture.slot}', 0))::text")
        closing = threading.Timer(0.5, other.close)
        closing.start()
        capture.drain()
        closing.join()
    assert capture.status().present


@pytest.mark.parametrize("point", ["connected", "intent written", "line spooled", "manifest written", "advanced"])
def test_of_two_drains_at_once_one_works(
    database: Connection, source_url: str, landed: Landed, make: Callable[..., Capture], point: str
) -> None:
    capture = make(PRODUCTS, ORDERS)
    capture.drain()
    change(database, 1)
    with draining(source_url, landed, point) as process:
        with pytest.raises(CaptureBusy) as caught:
            capture.drain()
        with pytest.raises(CaptureBusy):
            capture.drop()
        assert capture.status().present
        (landed.folder.parent / "reached").unlink()
        assert process.communicate(timeout=PATIENCE)[0].startswith("DRAINED")
    assert caught.value.retryable
    capture.drain()

    for table in (PRODUCTS, ORDERS):
        assert landed.replayed(table) == state_of(database, table)


def test_a_connection_that_breaks_is_worth_a_retry(
    database: Connection, source_url: str, landed: Landed, make: Callable[..., Capture]
) -> None:
    capture = make(PRODUCTS, ORDERS)
    capture.drain()
    change(database, 1)
    with draining(source_url, landed, "line spooled") as process:
        execute(database, "select pg_terminate_backend(pid) from pg_locks where locktype = 'advisory'")
        (landed.folder.parent / "reached").unlink()
        told = process.communicate(timeout=PATIENCE)[0]
    assert told.startswith("FAILED SourceUnreachable")
    capture.drain()

    for table in (PRODUCTS, ORDERS):
        assert landed.replayed(table) == state_of(database, table)


def test_a_slot_that_another_program_reads_is_left_alone(
    database: Connection, source_url: str, landed: Landed, make: Callable[..., Capture]
) -> None:
    capture = make(PRODUCTS)
    capture.drain()
    execute(database, "insert into tests.products values (1)")
    parts = urlsplit(source_url)
    with contextlib.closing(
        psycopg2.connect(
            host=parts.hostname,
            port=parts.port,
            user=parts.username,
            password=parts.password,
            dbname=parts.path[1:],
            connection_factory=LogicalReplicationConnection,
        )
    ) as reader:
        options = {"proto_version": "1", "publication_names": capture.publication}
        reader.cursor().start_replication(slot_name=capture.slot, options=options)
        assert capture.status().active
        for attempt in (capture.drain, capture.drop):
            with pytest.raises(CaptureBusy):
                attempt()
    drained(capture)
    assert [row[1] for row in landed.rows(PRODUCTS)] == [1]


# --- a snapshot and the changes after it ------------------------------------------------------------------------------


def until_gone(watcher: Connection, query: str) -> None:
    """Wait until a query finds nothing more: what a session held goes shortly after its connection is closed."""
    deadline = time.monotonic() + PATIENCE
    while ask(watcher, query):
        assert time.monotonic() < deadline
        time.sleep(0.02)


def until_waited_for(watcher: Connection, waited_for: Connection) -> None:
    """Wait until another session waits for the end of a connection's transaction."""
    ((number,),) = ask(waited_for, "select pg_current_xact_id()::text")
    deadline = time.monotonic() + PATIENCE
    while not ask(watcher, f"select from pg_locks where not granted and transactionid = {number}::text::xid"):
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.parametrize("mode", [CaptureMode.BUILTIN, CaptureMode.EXTERNAL])
def test_a_snapshot_at_a_slots_point_parts_all_transactions(
    database: Connection,
    source_url: str,
    tmp_path: Path,
    landed: Landed,
    make: Callable[..., Capture],
    mode: CaptureMode,
) -> None:
    capture = make(PRODUCTS)
    capture.drain()
    settings = dataclasses.replace(settings_for(tmp_path), source_url=source_url, capture=mode)
    source = Workbench(settings).source
    execute(database, "insert into tests.products values (1)")
    with postgres.connect(source_url) as first, postgres.connect(source_url) as second:
        # The server waits for those that are open when it begins, then for those that are open at the end of that.
        execute(first, "begin; insert into tests.products values (2)")
        taken: list[Snapshot] = []
        taking = threading.Thread(target=lambda: taken.append(source.snapshot()))
        taking.start()
        until_waited_for(database, first)
        execute(second, "begin; insert into tests.products values (3)")
        execute(first, "insert into tests.products values (4); commit")
        until_waited_for(database, second)
        execute(database, "begin; insert into tests.products values (5)")
        execute(second, "commit")
        taking.join(PATIENCE)
        (snapshot,) = taken
        execute(database, "insert into tests.products values (6); commit")
    seen = {row[0] for row in snapshot._query("select product_id from tests.products")}
    until_gone(database, "select from pg_replication_slots where temporary")
    source.close()
    capture.drain()

    def at_or_after(position: str) -> set[int]:
        return {line["product_id"] for line in landed.lines(PRODUCTS) if line[position] >= snapshot.lsn}

    assert seen == {1, 2, 3, 4}
    if mode is CaptureMode.BUILTIN:
        assert at_or_after("__commit_lsn") == {5, 6}
        # One of them was made before the point: by its own position it would be lost.
        assert at_or_after("__source_lsn") == {6}
    else:
        # Debezium's positions. What it has seen may be told once more, up to the same row; none is lost.
        assert {5, 6} <= at_or_after("__source_lsn") <= {2, 3, 4, 5, 6}


def test_what_other_connections_read_is_the_same_snapshot(database: Connection, source_url: str) -> None:
    source = PostgresSource(source_url, slot_point=True)
    execute(database, "insert into tests.products values (1)")
    snapshot = source.snapshot()
    execute(database, "insert into tests.products values (2)")
    with postgres.connect(source_url) as reader:
        execute(reader, "begin isolation level repeatable read")
        execute(reader, f"set transaction snapshot '{snapshot._id}'")
        assert ask(reader, "select product_id from tests.products") == [(1,)]
    assert source.snapshot() is snapshot
    assert snapshot.describe(PRODUCTS).relation == "tests.products"
    source.close()


def test_an_open_transaction_is_not_waited_for_for_ever(
    database: Connection, source_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(postgres_source, "LOCK_TIMEOUT_SECONDS", 1)
    source = PostgresSource(source_url, slot_point=True)
    with postgres.connect(source_url) as other:
        execute(other, "begin; insert into tests.products values (1)")
        with pytest.raises(SourceBusy, match="a transaction has stayed open at the source for 1 s") as caught:
            source.snapshot()
        execute(other, "commit")
    assert caught.value.retryable
    until_gone(database, "select from pg_replication_slots where database = current_database()")
    assert source.snapshot().lsn > 0
    source.close()


def test_a_role_that_may_not_replicate_gets_no_snapshot_at_a_slots_point(server: Server, source_url: str) -> None:
    role = f"reader_{os.getpid()}"
    with postgres.connect(server.admin_url) as admin:
        execute(admin, f"create role {role} login password 'pw'")
        try:
            parts = urlsplit(source_url)
            url = parts._replace(netloc=f"{role}:pw@{parts.hostname}:{parts.port}").geturl()
            with pytest.raises(SourceRefused, match="REPLICATION"):
                PostgresSource(url, slot_point=True).snapshot()
        finally:
            execute(admin, f"drop role {role}")


WRITERS = 4


def write(url: str, number: int, stop: threading.Event, failures: list[Exception]) -> None:
    """Changes at random, in transactions of all lengths, until stopped; each writer has keys of its own."""
    chance = random.Random(number)
    low, high = number * 1000, number * 1000 + 59
    statements = (
        "insert into tests.products values (%(key)s, 'täg', null, 1.50)"
        " on conflict (product_id) do update set category = 'again', unit_price = 'NaN'",
        "update tests.products set unit_price = unit_price + 1 where product_id = %(key)s",
        "update tests.products set product_id = product_id + 100 where product_id = %(key)s and not exists"
        " (select from tests.products where product_id = %(key)s + 100)",
        "delete from tests.products where product_id in (%(key)s, %(key)s + 100)",
        "insert into tests.orders values (%(key)s) on conflict (order_id) do update set customer_id = 1",
        "delete from tests.orders where order_id = %(key)s",
        f"savepoint s; delete from tests.products where product_id between {low} and {high}; rollback to s",
    )
    try:
        with contextlib.closing(psycopg2.connect(url)) as connection, connection.cursor() as cursor:
            while not stop.is_set():
                if chance.random() < 0.02:
                    cursor.execute("truncate tests.orders")
                else:
                    for _ in range(chance.choice((1, 1, 2, 20))):
                        cursor.execute(chance.choice(statements), {"key": chance.randint(low, high)})
                        time.sleep(0.01)
                connection.rollback() if chance.random() < 0.1 else connection.commit()
    except Exception as error:
        failures.append(error)


def described(source: PostgresSource, *tables: BronzeTable) -> Snapshot:
    """A snapshot that holds the tables; a new one if one was truncated meanwhile, which no snapshot survives."""
    while True:
        snapshot = source.snapshot()
        try:
            for table in tables:
                snapshot.describe(table)
        except SourceBusy:
            source.close()
        else:
            return snapshot


@pytest.mark.parametrize("round_bytes", [8 * 1024, 256 * 2**20])
def test_snapshot_and_later_changes_make_the_final_state_whoever_writes_meanwhile(
    database: Connection, source_url: str, landed: Landed, make: Callable[..., Capture], round_bytes: int
) -> None:
    capture = make(PRODUCTS, ORDERS, round_bytes=round_bytes)
    capture.drain()
    stop, failures = threading.Event(), list[Exception]()
    writers = [threading.Thread(target=write, args=(source_url, n, stop, failures)) for n in range(WRITERS)]
    snapshots: list[tuple[int, dict[str, dict[Any, Any]]]] = [(0, {"bz_products": {}, "bz_orders": {}})]
    for writer in writers:
        writer.start()
    try:
        for _ in range(8):
            source = PostgresSource(source_url, slot_point=True)
            snapshot = described(source, PRODUCTS, ORDERS)
            # Not from another connection: behind a TRUNCATE that waits for this one, it would wait too.
            rows = {table.name: state_of(snapshot._connection, table) for table in (PRODUCTS, ORDERS)}
            snapshots.append((snapshot.lsn, rows))
            source.close()
            capture.drain()
    finally:
        stop.set()
        for writer in writers:
            writer.join(PATIENCE)
    capture.drain()

    assert failures == []
    for table in (PRODUCTS, ORDERS):
        final = state_of(database, table)
        assert len(landed.lines(table)) > 50
        for lsn, rows in snapshots:
            assert landed.replayed(table, lsn, rows[table.name]) == final
    # The files are in order themselves, and so are their names.
    for table in (PRODUCTS, ORDERS):
        order = [(line["__commit_lsn"], line["__seq"]) for line in landed.lines(table)]
        assert order == sorted(set(order))


@pytest.mark.nightly
def test_a_transaction_of_two_million_rows_takes_bounded_memory(
    database: Connection, source_url: str, landed: Landed, make: Callable[..., Capture]
) -> None:
    make(PRODUCTS).drain()
    peaks = []
    for rows in (1_000, 2_000_000):
        execute(database, "truncate tests.products")
        make(PRODUCTS).drain()
        execute(
            database,
            f"insert into tests.products select n, 'product ' || n, 'Home', n from generate_series(1, {rows}) n",
        )
        with draining(source_url, landed, "", [PRODUCTS]) as process:
            told = process.communicate(timeout=300)[0]
        assert told.startswith("DRAINED"), told
        outcome = json.loads(told.removeprefix("DRAINED "))
        assert outcome["rows"] == {"bz_products": rows}
        peaks.append(outcome["peak_megabytes"])

    small, large = peaks
    assert large < small + 100
    newest = landed.folder / landed.files()[-1]
    with newest.open(encoding="utf-8") as lines:
        sequences = [(line["__seq"], line["product_id"]) for line in map(json.loads, lines)]
    assert sequences == [(n, n) for n in range(1, 2_000_001)]
