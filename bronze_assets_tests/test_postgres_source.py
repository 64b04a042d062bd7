from __future__ import annotations

import dataclasses
import datetime as dt
import socket
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from decimal import Decimal
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlsplit

import pandera.pyspark as pa
import pyspark.sql.types as T
import pytest
from psycopg2 import errors, sql

from bronze_assets.demo import postgres
from bronze_assets.errors import SchemaMismatch, SettingsError, SourceBusy, SourceRefused, SourceUnreachable
from bronze_assets.quality import raw_column
from bronze_assets.sources import postgres as postgres_source
from bronze_assets.sources.postgres import PostgresSource, Snapshot, SourceTable
from bronze_assets.sources.scope import FULL, Scope
from bronze_assets.table import BronzeTable, Cadence, column
from bronze_assets_tests.conftest import Server

if TYPE_CHECKING:
    from psycopg2.extensions import connection as Connection
    from pyspark.sql import SparkSession


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


class Named(pa.DataFrameModel):
    name: T.StringType = column(key=True, description="Key.")
    made_on: T.DateType = column(description="Day.")


class Dated(pa.DataFrameModel):
    moment: T.TimestampType = column(key=True, description="Key.")


class Amounts(pa.DataFrameModel):
    thing_id: T.LongType = column(key=True, gt=0, description="Key.")
    amount: T.DecimalType = column(dtype_kwargs={"precision": 12, "scale": 2}, description="Money.")


class Wide(pa.DataFrameModel):
    thing_id: T.LongType = column(key=True, gt=0, description="Key.")
    amount: T.DecimalType = column(dtype_kwargs={"precision": 38, "scale": 2}, description="Very much money.")


def declared(model: type[pa.DataFrameModel], source: str = "tests.things") -> BronzeTable:
    return BronzeTable("inventory_bronze", source, model, Cadence.STREAMING, "A table of a test.")


THINGS = declared(Things)
LABELS = declared(Labels)
ALL_COLUMNS = (
    "thing_id bigint primary key, label text, amount numeric(12,2), made_on date, made_at timestamp, good bool,"
    " pieces int"
)


@pytest.fixture
def database(source: Connection) -> Connection:
    """The source database, with an empty schema `tests`."""
    execute(source, "create schema tests")
    return source


@pytest.fixture
def opened(source_url: str) -> Iterator[PostgresSource]:
    """The source as the package sees it; its snapshot is closed afterwards."""
    source = PostgresSource(source_url)
    yield source
    source.close()


def execute(connection: Connection, statement: str | sql.Composed) -> None:
    with connection.cursor() as cursor:
        cursor.execute(statement)


def ask(connection: Connection, query: str) -> list[tuple[Any, ...]]:
    with connection.cursor() as cursor:
        cursor.execute(query)
        return cursor.fetchall()


def texts(
    spark: SparkSession, snapshot: Snapshot, source: SourceTable, table: BronzeTable, scope: Scope = FULL
) -> list[Mapping[str, str | None]]:
    """What a read brings, as text, in key order."""
    frame = snapshot.read(spark, source, table, scope, 1)
    rows = frame.select(*(frame[name].cast("string") for name in frame.columns)).collect()
    return sorted((row.asDict() for row in rows), key=lambda row: int(row[table.key[0].name] or 0))


def closed_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


# --- the contract ---------------------------------------------------------------------------------------------------


def test_a_missing_table_is_refused_by_name(database: Connection, opened: PostgresSource) -> None:
    with pytest.raises(SourceRefused, match=r"bz_things: the source has no table tests\.things .* Fix: ") as caught:
        opened.snapshot().describe(THINGS)

    assert not caught.value.retryable


def test_all_problems_of_the_columns_stand_in_one_message(database: Connection, opened: PostgresSource) -> None:
    execute(
        database,
        "create table tests.things (thing_id text, label int, amount float8, made_at timestamp, good bool,"
        " pieces int8)",
    )

    with pytest.raises(SchemaMismatch) as caught:
        opened.snapshot().describe(THINGS)

    message = str(caught.value)
    assert message.startswith("bz_things: ")
    for problem in (
        "'thing_id': expected bigint, found text",
        "'label': expected string, found int4",
        "'amount': expected decimal(12,2), found float8",
        "'made_on' is missing (expected date)",
        "'pieces': expected int, found int8",
    ):
        assert problem in message
    assert "'made_at'" not in message
    assert "'good'" not in message


def test_names_match_without_regard_to_case(database: Connection, opened: PostgresSource) -> None:
    execute(database, 'create schema "Tests"; create table "Tests"."THINGS" ("Thing_ID" int primary key, "LABEL" text)')

    source = opened.snapshot().describe(LABELS)

    assert source.relation == '"Tests"."THINGS"'
    assert {name: found.name for name, found in source.columns.items()} == {"thing_id": "Thing_ID", "label": "LABEL"}


def test_two_tables_or_columns_that_differ_only_in_case_are_refused(
    database: Connection, opened: PostgresSource
) -> None:
    execute(database, 'create table tests.things (thing_id int, label text, "Label" text)')
    with pytest.raises(SchemaMismatch, match="'label' and 'Label' differ only in case"):
        opened.snapshot().describe(LABELS)
    opened.close()

    execute(database, 'create table tests."Things" (thing_id int, label text)')
    with pytest.raises(SourceRefused, match=r'several tables of that name: tests\."Things", tests\.things'):
        opened.snapshot().describe(LABELS)


@pytest.mark.parametrize(
    ("ddl", "taken"),
    [
        ("batch_id text", "batch_id"),
        ("load_date date", "load_date"),
        ("__raw_label text", "__raw_label"),
        ('"la.bel" text, "la-bel" text', "la_bel"),
    ],
)
def test_an_undeclared_column_never_takes_the_name_of_another_column(
    ddl: str, taken: str, database: Connection, opened: PostgresSource
) -> None:
    execute(database, f"create table tests.things (thing_id int, label text, {ddl})")

    with pytest.raises(SchemaMismatch, match=f"would be loaded as '{taken}', a name that is taken: rename it.* Fix: "):
        opened.snapshot().describe(LABELS)


@pytest.mark.parametrize(
    "ddl",
    [
        "create table tests.base (thing_id int, label text); create view tests.things as select * from tests.base",
        "create table tests.base (thing_id int, label text);"
        "create materialized view tests.things as select * from tests.base",
        "create table tests.things (thing_id int, label text) partition by range (thing_id);"
        "create table tests.part partition of tests.things default",
        "create domain tests.id as int; create domain tests.real_id as tests.id check (value > 0);"
        "create domain tests.word as varchar(9); create table tests.things (thing_id tests.real_id, label tests.word)",
    ],
    ids=["view", "materialized view", "partitioned table", "domains"],
)
def test_whatever_can_be_selected_from_is_a_source_table(
    ddl: str, spark: SparkSession, database: Connection, opened: PostgresSource
) -> None:
    execute(database, ddl)
    execute(database, f"insert into {'tests.base' if 'base' in ddl else 'tests.things'} values (1, 'a'), (2, null)")
    if "materialized" in ddl:
        execute(database, "refresh materialized view tests.things")

    snapshot = opened.snapshot()
    source = snapshot.describe(LABELS)

    assert texts(spark, snapshot, source, LABELS) == [
        {"thing_id": "1", "label": "a"},
        {"thing_id": "2", "label": None},
    ]


def test_a_constrained_numeric_keeps_its_precision_through_domains(
    database: Connection, opened: PostgresSource
) -> None:
    execute(
        database,
        "create domain tests.money as numeric(12,2); create domain tests.price as tests.money;"
        "create table tests.things (thing_id int, label text, price tests.price, loose numeric)",
    )

    extra = opened.snapshot().describe(LABELS).extra

    assert (extra["price"].type, extra["price"].precision, extra["price"].scale) == ("numeric", 12, 2)
    assert (extra["loose"].type, extra["loose"].precision, extra["loose"].scale) == ("numeric", None, None)


@pytest.mark.parametrize("granted", ["usage on schema tests", "select on tests.things"])
def test_a_table_that_may_not_be_read_is_refused_before_it_is_read(
    granted: str, server: Server, source_url: str, opened: PostgresSource
) -> None:
    admin = urlsplit(server.admin_url)._replace(path=urlsplit(source_url).path).geturl()
    with postgres.connect(admin) as connection:
        execute(connection, "create schema tests; create table tests.things (thing_id int primary key, label text)")
        execute(connection, f"grant {granted} to {postgres.ROLE}")

    with pytest.raises(SourceRefused, match=r"bz_things: tests\.things may not be read by bronze.* Fix: GRANT SELECT"):
        opened.snapshot().describe(LABELS)


@pytest.mark.parametrize(
    ("ddl", "unique"),
    [
        ("create table tests.things (thing_id int primary key, label text)", True),
        ("create table tests.things (thing_id int not null unique, label text)", True),
        (
            "create table tests.things (thing_id int not null, label text);"
            "create unique index on tests.things (thing_id) include (label)",
            True,
        ),
        (
            "create table tests.things (thing_id int primary key, label text) partition by range (thing_id);"
            "create table tests.part partition of tests.things default",
            True,
        ),
        ("create table tests.things (thing_id int unique, label text)", False),
        ("create table tests.things (thing_id int not null, label text)", False),
        (
            "create table tests.things (thing_id int not null, label text);"
            "create unique index on tests.things (thing_id) where label is null",
            False,
        ),
        (
            "create table tests.things (thing_id int not null, label text);"
            "create unique index on tests.things ((thing_id / 2))",
            False,
        ),
        (
            "create table tests.things (thing_id int not null, label text not null, unique (thing_id, label))",
            False,
        ),
        ("create table tests.things (thing_id int not null, label text not null unique)", False),
        ("create table tests.things (thing_id int not null unique deferrable initially deferred, label text)", False),
        (
            "create table tests.things (thing_id int primary key, label text);"
            "create table tests.child () inherits (tests.things)",
            False,
        ),
        (
            "create table tests.base (thing_id int primary key, label text);"
            "create view tests.things as select * from tests.base union all select * from tests.base",
            False,
        ),
    ],
)
def test_only_a_valid_unique_index_on_not_null_columns_proves_the_key(
    ddl: str, unique: bool, database: Connection, opened: PostgresSource
) -> None:
    execute(database, ddl)

    assert opened.snapshot().describe(LABELS).unique is unique


@pytest.mark.parametrize(
    ("primary_key", "unique"), [("left_id", True), ("left_id, right_id", True), ("left_id, label", False)]
)
def test_a_unique_part_of_the_key_proves_all_of_it(
    primary_key: str, unique: bool, database: Connection, opened: PostgresSource
) -> None:
    execute(
        database,
        f"create table tests.things (left_id int, right_id int, label text, primary key ({primary_key}))",
    )

    assert opened.snapshot().describe(declared(Pairs)).unique is unique


@pytest.mark.parametrize(
    ("ddl", "not_null"),
    [
        ("create table tests.things (thing_id int, label text not null)", True),
        ("create table tests.things (thing_id int, label text primary key)", True),
        ("create table tests.things (thing_id int, label text)", False),
        ("create table tests.things (thing_id int, label text, check (label is not null))", False),
        (
            "create table tests.things (thing_id int, label text); insert into tests.things values (1, null);"
            "alter table tests.things add constraint later not null label not valid",
            False,
        ),
        (
            "create domain tests.word as text not null; create table tests.things (thing_id int, label tests.word);"
            "insert into tests.things values (1, (select label from tests.things where false))",
            False,
        ),
        (
            "create table tests.things (thing_id int, label text not null no inherit);"
            "create table tests.child () inherits (tests.things); insert into tests.child values (1, null)",
            False,
        ),
        (
            "create table tests.base (thing_id int, label text not null);"
            "create view tests.things as select b.thing_id, c.label from tests.base b left join tests.base c on false;"
            "insert into tests.base values (1, 'a')",
            False,
        ),
    ],
)
def test_a_column_counts_as_not_null_only_where_the_source_keeps_every_null_out(
    ddl: str, not_null: bool, database: Connection, opened: PostgresSource
) -> None:
    execute(database, ddl)

    assert opened.snapshot().describe(LABELS).columns["label"].not_null is not_null
    assert not (not_null and ask(database, "select 1 from tests.things where label is null"))


# --- values ---------------------------------------------------------------------------------------------------------

BENT: Mapping[str, tuple[str, ...]] = {
    "made_on": ("infinity", "-infinity", "0044-03-15 BC", "10000-01-01"),
    "made_at": ("infinity", "-infinity", "0044-03-15 12:00:00 BC", "10000-01-01"),
    "amount": ("NaN", "Infinity", "-Infinity", "10000000000", "-9999999999.995", "0.005", "1e-30"),
}
KEPT: Mapping[str, tuple[str, ...]] = {
    "made_on": ("2026-01-31", "1970-01-01", "1969-12-31", "1582-10-10", "1500-02-28", "0001-01-01", "9999-12-31"),
    "made_at": (
        "2026-01-31 12:34:56.789012",
        "1970-01-01 00:00:00",
        "1969-12-31 23:59:59.999999",
        "1969-12-31 23:59:59",
        "1500-03-01 00:00:00.000001",
        "0001-01-01 00:00:00",
        "9999-12-31 23:59:59.999999",
    ),
    "amount": ("0", "-0.01", "1.1", "1.10000", "9999999999.99", "-9999999999.99"),
}
UTC_TEXT: Mapping[str, str] = {
    # PostgreSQL leaves out a fraction's last zeros as Spark does.
    "timestamptz": "(made_at at time zone 'UTC')::text",
    "timestamp": "made_at::text",
}


@pytest.mark.parametrize("moment", ["timestamp", "timestamptz"])
def test_values_that_jdbc_would_bend_are_null_with_their_text_and_all_others_are_exact(
    moment: str, spark: SparkSession, database: Connection, opened: PostgresSource
) -> None:
    execute(
        database,
        f"create table tests.things (thing_id bigint primary key, label char(6), amount numeric, made_on date,"
        f" made_at {moment}, good bool, pieces int2)",
    )
    rows = [(name, value) for values in (BENT, KEPT) for name in values for value in values[name]]
    for number, (name, value) in enumerate(rows, 1):
        execute(database, f"insert into tests.things (thing_id, {name}) values ({number}, '{value}')")
    execute(
        database,
        "insert into tests.things (thing_id, label, good, pieces) values (1000, 'ab ', true, -32768),"
        " (1001, '', false, 32767), (9223372036854775807, E'\\n€😀', null, null)",
    )
    expected: list[dict[str, str | None]] = []
    # Asked of PostgreSQL, not of the code under test.
    for number, label, amount, made_on, made_at, good, pieces, raw_amount, raw_on, raw_at in ask(
        database,
        f"select thing_id, label::text, amount::text, made_on::text, {UTC_TEXT[moment]}, good::text, pieces::text,"
        " amount::text, made_on::text, made_at::text from tests.things order by 1",
    ):
        bent = number <= sum(map(len, BENT.values()))
        expected.append(
            {
                "thing_id": str(number),
                "label": label,
                "amount": None if bent or amount is None else str(Decimal(amount).quantize(Decimal("0.01"))),
                raw_column("amount"): raw_amount if bent else None,
                "made_on": None if bent else made_on,
                raw_column("made_on"): raw_on if bent else None,
                "made_at": None if bent else made_at,
                raw_column("made_at"): raw_at if bent else None,
                "good": good,
                "pieces": pieces,
            }
        )

    snapshot = opened.snapshot()
    found = texts(spark, snapshot, snapshot.describe(THINGS), THINGS)

    assert found == expected
    assert found[-3]["label"] == "ab"  # char(n) pads; the blanks are not the value's


@pytest.mark.parametrize(
    ("kind", "kept", "bent"),
    [
        ("numeric(12,2)", ["-9999999999.99", "0.01"], ["NaN"]),
        ("numeric(14,2)", ["9999999999.99"], ["NaN", "10000000000.00"]),
        ("numeric(12,4)", ["1.2300"], ["NaN", "1.2345"]),
        ("numeric(3,-2)", ["99900"], ["NaN"]),
        ("bigint", ["9999999999", "-9999999999"], ["10000000000", "-9223372036854775808"]),
    ],
)
def test_a_number_of_another_width_is_taken_where_it_fits(
    kind: str,
    kept: list[str],
    bent: list[str],
    spark: SparkSession,
    database: Connection,
    opened: PostgresSource,
) -> None:
    execute(database, f"create table tests.things (thing_id serial primary key, amount {kind})")
    for value in kept + bent:
        execute(database, f"insert into tests.things (amount) values ('{value}')")
    table = declared(Amounts)

    snapshot = opened.snapshot()
    found = texts(spark, snapshot, snapshot.describe(table), table)

    assert [row["amount"] for row in found] == [
        *(str(Decimal(value).quantize(Decimal("0.01"))) for value in kept),
        *(None for _ in bent),
    ]
    assert [row[raw_column("amount")] for row in found] == [*(None for _ in kept), *bent]


def test_a_decimal_of_38_digits_is_exact(spark: SparkSession, database: Connection, opened: PostgresSource) -> None:
    widest = "9" * 36 + ".99"
    execute(
        database,
        "create table tests.things (thing_id int primary key, amount numeric(38,2), undeclared numeric(38,2));"
        f"insert into tests.things values (1, {widest}, -{widest}), (2, 'NaN', null)",
    )
    table = declared(Wide)

    snapshot = opened.snapshot()
    found = texts(spark, snapshot, snapshot.describe(table), table)

    assert [row["amount"] for row in found] == [widest, None]
    assert [row["undeclared"] for row in found] == [f"-{widest}", None]
    assert [row[raw_column("amount")] for row in found] == [None, "NaN"]


UNDECLARED: Mapping[str, tuple[str, str, T.DataType]] = {
    "a_smallint": ("int2", "-7", T.IntegerType()),
    "an_int": ("int4", "2147483647", T.IntegerType()),
    "a_bigint": ("int8", "-9223372036854775808", T.LongType()),
    "a_bool": ("bool", "true", T.BooleanType()),
    "a_date": ("date", "'1500-02-28'", T.DateType()),
    "a_timestamp": ("timestamp", "'1969-12-31 23:59:59.5'", T.TimestampType()),
    "a_timestamptz": ("timestamptz", "'2026-01-01 00:30:00+02'", T.TimestampType()),
    "a_numeric": ("numeric(10,3)", "-0.125", T.DecimalType(10, 3)),
    "a_loose_numeric": ("numeric", "1e-40", T.StringType()),
    "a_wide_numeric": ("numeric(60,30)", "12345678901234567890.5", T.StringType()),
    "a_varchar": ("varchar(9)", "'é'", T.StringType()),
    "a_uuid": ("uuid", "'a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11'", T.StringType()),
    "a_json": ("jsonb", """'{"a": [1, null]}'""", T.StringType()),
    "an_array": ("int[]", "'{1,2,NULL}'", T.StringType()),
    "a_float": ("float8", "0.1", T.StringType()),
    "a_bytea": ("bytea", "'\\x00ff'", T.StringType()),
    "an_interval": ("interval", "'1 mon 2 days'", T.StringType()),
    "a_mood": ("tests.mood", "'fine'", T.StringType()),
}


def test_undeclared_columns_join_with_their_own_type_else_as_text(
    spark: SparkSession, database: Connection, opened: PostgresSource
) -> None:
    execute(
        database,
        "create type tests.mood as enum ('fine', 'tired');"
        f"create table tests.things (thing_id int primary key, label text,"
        f' {", ".join(f"{name} {kind}" for name, (kind, _, _) in UNDECLARED.items())}, "Per Cent %" int);'
        f"insert into tests.things values (1, 'a', {', '.join(value for _, value, _ in UNDECLARED.values())}, 5)",
    )
    as_text = [
        f"({name} at time zone 'UTC')::text" if kind == "timestamptz" else f"{name}::text"
        for name, (kind, _, _) in UNDECLARED.items()
    ]
    (expected,) = ask(database, f"select {', '.join(as_text)} from tests.things")

    snapshot = opened.snapshot()
    source = snapshot.describe(LABELS)
    frame = snapshot.read(spark, source, LABELS, FULL, 1)
    (found,) = texts(spark, snapshot, source, LABELS)

    assert list(source.extra) == [*UNDECLARED, "per_cent__"]
    assert {f.name: f.dataType for f in frame.schema if f.name in UNDECLARED} == {
        name: kind for name, (_, _, kind) in UNDECLARED.items()
    }
    assert tuple(found[name] for name in UNDECLARED) == expected
    assert found["per_cent__"] == "5"


# --- one snapshot ---------------------------------------------------------------------------------------------------


def in_ranges(source: SourceTable) -> SourceTable:
    """As if the table were large enough to be read in parallel ranges of the key."""
    return dataclasses.replace(source, estimated_rows=10_000_000)


def test_parallel_ranges_read_every_row_once_whatever_its_key(
    spark: SparkSession, database: Connection, opened: PostgresSource
) -> None:
    execute(
        database,
        "create table tests.things (thing_id bigint, label text);"
        "insert into tests.things select i * 7 - 100, i from generate_series(1, 40) i;"
        "insert into tests.things values (null, 'none'), (null, 'none'), (0, 'zero'), (0, 'zero'),"
        " (-9223372036854775808, 'least'), (9223372036854775807, 'most')",
    )
    expected = ask(database, "select label, count(*) from tests.things group by label")

    snapshot = opened.snapshot()
    frame = snapshot.read(spark, in_ranges(snapshot.describe(LABELS)), LABELS, FULL, 3)
    found = [row["label"] for row in frame.collect()]

    assert frame.rdd.getNumPartitions() == 3
    assert {label: found.count(label) for label in found} == dict(expected)
    assert len(found) == 46


def test_what_changes_during_a_load_is_seen_by_none_of_its_reads(
    spark: SparkSession, database: Connection, opened: PostgresSource
) -> None:
    execute(
        database,
        "create table tests.things (thing_id int primary key, label text);"
        "insert into tests.things select i, 'old' from generate_series(1, 20) i;"
        "create table tests.others (like tests.things including all);"
        "insert into tests.others select * from tests.things",
    )
    others = declared(Labels, "tests.others")
    change = (
        # The tests' server writes its log up to 0.6 s later, and a snapshot is at what has been written.
        "set local synchronous_commit = on;"
        "insert into tests.{0} select i, 'new' from generate_series(100, 140) i;"
        "update tests.{0} set label = 'new' where thing_id % 2 = 0; delete from tests.{0} where thing_id % 3 = 0"
    )
    old = [(number, "old") for number in range(1, 21)]

    snapshot = opened.snapshot()
    execute(database, change.format("things"))
    frame = snapshot.read(spark, in_ranges(snapshot.describe(LABELS)), LABELS, FULL, 2)
    first = sorted(map(tuple, frame.collect()))
    execute(database, change.format("others"))
    second = sorted(
        map(tuple, snapshot.read(spark, snapshot.describe(others), others, FULL, 1).unionAll(frame).collect())
    )

    assert frame.rdd.getNumPartitions() == 2
    assert first == old
    assert second == sorted(old + old)
    assert snapshot.count(snapshot.describe(others), FULL) == 20
    assert opened.snapshot() is snapshot

    opened.close()
    after = opened.snapshot()
    assert after.count(after.describe(others), FULL) == ask(database, "select count(*) from tests.others")[0][0] != 20
    assert after.epoch == snapshot.epoch
    assert after.lsn > snapshot.lsn


def test_a_table_truncated_after_the_snapshot_is_not_taken_for_empty(
    database: Connection, opened: PostgresSource
) -> None:
    execute(database, "create table tests.things (thing_id int primary key, label text)")
    execute(database, "insert into tests.things values (1, 'one')")
    snapshot = opened.snapshot()
    execute(database, "truncate tests.things; insert into tests.things values (2, 'two'), (3, 'three')")

    with pytest.raises(SourceBusy, match="rewritten after the snapshot"):
        snapshot.describe(LABELS)

    again = opened.snapshot()
    assert again.count(again.describe(LABELS), FULL) == 2
    # From then on the table is held: whoever wants to truncate it waits for the load.
    execute(database, "set lock_timeout = '200ms'")
    with pytest.raises(errors.LockNotAvailable):
        execute(database, "truncate tests.things")


def test_a_table_that_was_never_analysed_is_estimated_by_its_size(database: Connection, opened: PostgresSource) -> None:
    execute(database, "create table tests.things (thing_id int primary key, label text)")
    execute(database, "insert into tests.things select i, 'thing ' || i from generate_series(1, 50000) i")

    assert 5_000 < opened.snapshot().describe(LABELS).estimated_rows < 500_000


def test_key_ranges_cover_every_row_exactly_once(database: Connection, opened: PostgresSource) -> None:
    execute(
        database,
        "create table tests.things (thing_id bigint, label text);"
        "insert into tests.things select i * 3 - 30, i from generate_series(1, 25) i;"
        "insert into tests.things values (null, 'none'), (-9, 'twice'), (-9223372036854775808, 'least')",
    )
    snapshot = opened.snapshot()
    source = snapshot.describe(LABELS)

    counts, low = [], None
    while True:
        high = snapshot.next_bound(source, "thing_id", low, 8)
        counts.append(snapshot.count(source, Scope("thing_id", low, high)))
        if high is None:
            break
        low = high

    assert sum(counts) == 28
    assert len(counts) == 4
    assert max(counts) <= 8 + 1  # the NULL keys come with the first


def test_a_day_holds_the_rows_of_that_date_alone(
    spark: SparkSession, database: Connection, opened: PostgresSource
) -> None:
    execute(
        database,
        f"create table tests.things ({ALL_COLUMNS});"
        "insert into tests.things (thing_id, made_on) values (1, '2026-01-30'), (2, '2026-01-31'), (3, '2026-02-01'),"
        " (4, null), (5, 'infinity'), (6, '2026-01-31'), (7, '-infinity')",
    )
    scope = Scope("made_on", dt.date(2026, 1, 31), dt.date(2026, 2, 1))

    snapshot = opened.snapshot()
    source = snapshot.describe(THINGS)

    assert [row["thing_id"] for row in texts(spark, snapshot, source, THINGS, scope)] == ["2", "6"]
    assert snapshot.count(source, scope) == 2


def test_the_keys_at_the_source_are_found_between_bounds_of_any_type(
    spark: SparkSession, database: Connection, opened: PostgresSource
) -> None:
    execute(
        database,
        "create table tests.things (thing_id int, label text);"
        "insert into tests.things values (-3, 'a'), (2, 'b'), (2, 'c'), (5, 'd'), (9, 'e'), (null, 'f');"
        "create table tests.named (name text, made_on date);"
        "insert into tests.named values ('it''s', null), ('b', null), ('b', '2026-01-01');"
        "create table tests.dated (moment timestamp); insert into tests.dated values ('2026-01-31 12:00:00.5')",
    )
    named, dated = declared(Named, "tests.named"), declared(Dated, "tests.dated")
    snapshot = opened.snapshot()

    def keys(table: BronzeTable, low: Any, high: Any) -> set[str | None]:
        frame = snapshot.read_keys(spark, snapshot.describe(table), table, low, high)
        rows = frame.select(frame[table.key[0].name].cast("string")).collect()
        assert len(rows) == len(set(rows))
        return {row[0] for row in rows}

    assert keys(LABELS, -3, 5) == {"-3", "2", "5"}
    assert keys(LABELS, None, None) == {"-3", "2", "5", "9", None}
    assert keys(named, "b", "it's") >= {"b", "it's"}
    moment = ask(database, "select moment from tests.dated")[0][0]
    assert keys(dated, moment, moment) == {"2026-01-31 12:00:00.5"}


# --- connections, passwords, failures ---------------------------------------------------------------------------------


def shown(error: BaseException) -> str:
    """All that a log could show of an error."""
    return "".join(traceback.format_exception(error)) + repr(error) + repr(error.args) + repr(vars(error))


def test_a_wrong_password_is_refused_and_not_worth_a_retry(source_url: str) -> None:
    parts = urlsplit(source_url)
    wrong = parts._replace(netloc=f"bronze:hunter2@{parts.hostname}:{parts.port}").geturl()

    with pytest.raises(SourceRefused, match=r"refused the connection: .*password authentication failed") as caught:
        PostgresSource(wrong).snapshot()

    assert not caught.value.retryable
    assert "hunter2" not in shown(caught.value)
    assert f"bronze@{parts.hostname}:{parts.port}{parts.path}" in str(caught.value)


def test_a_missing_database_is_refused(source_url: str) -> None:
    with pytest.raises(SourceRefused, match='database "nowhere" does not exist'):
        PostgresSource(urlsplit(source_url)._replace(path="/nowhere").geturl()).snapshot()


def test_a_port_where_nobody_listens_is_worth_a_retry() -> None:
    port = closed_port()
    url = f"postgresql://bronze:{'hunter' + '2'}@127.0.0.1:{port}/DE"

    with pytest.raises(SourceUnreachable, match=rf"bronze@127\.0\.0\.1:{port}/DE cannot be reached") as caught:
        PostgresSource(url).snapshot()

    assert caught.value.retryable
    assert "hunter2" not in shown(caught.value)


@pytest.mark.parametrize(
    "url",
    [
        "",
        "hunter2",
        "mysql://user:hunter2@host/DE",
        "postgresql://user:hunter2@host:port/DE",
        "postgresql://user:hunter2@host:99999/DE",
        "postgresql://user:hunter2@[host/DE",
        "postgresql://user:hunter2@host",
        "postgresql://user:hunter2@/DE",
        "postgresql://host/hunter2",
        "postgresql://user:hun?ter2=hunter2@host/DE",
        "postgresql://user:hunter2/x@host/DE",
        "postgresql://user:hunter2#x@host/DE",
        "postgresql://user:x@hunter2/x@host/DE",
        "postgresql://user:hunter2@host/DE?target_session_attrs=any",
        "postgresql://user:hunter2@host/DE?sslmode=hunter2",
    ],
)
def test_a_malformed_url_is_an_error_that_does_not_show_it(url: str) -> None:
    with pytest.raises(SettingsError, match=r"BRONZE_SOURCE_URL .* Fix: ") as caught:
        PostgresSource(url)

    assert "hunter2" not in str(caught.value) + repr(caught.value) + repr(vars(caught.value))
    assert caught.value.__cause__ is None
    assert not caught.value.retryable


def test_the_password_shows_neither_in_objects_nor_in_plans(
    spark: SparkSession,
    source_url: str,
    database: Connection,
    opened: PostgresSource,
    capsys: pytest.CaptureFixture[str],
) -> None:
    password = urlsplit(source_url).password
    assert password
    execute(database, "create table tests.things (thing_id int primary key, label text)")

    snapshot = opened.snapshot()
    source = snapshot.describe(LABELS)
    snapshot.read(spark, source, LABELS, FULL, 2).explain("extended")

    plan = capsys.readouterr().out
    assert "Physical Plan" in plan
    assert password not in plan
    for thing in (opened, snapshot, source, *vars(opened).values(), *vars(snapshot).values()):
        assert password not in f"{thing!r} {thing}".replace("password=xxx", "")


def test_special_characters_are_percent_encoded_in_the_url(spark: SparkSession, server: Server) -> None:
    user, password, name = "o'dd: user%", "p@ss/w:rd?#[%20]&=ü €", "odd da%ta?base&ssl=true"
    with postgres.connect(server.admin_url) as admin:
        execute(admin, sql.SQL("create role {} login password {}").format(sql.Identifier(user), sql.Literal(password)))
        execute(admin, sql.SQL("create database {} owner {}").format(sql.Identifier(name), sql.Identifier(user)))
        try:
            own = urlsplit(server.admin_url)._replace(path="/" + quote(name, safe="")).geturl()
            with postgres.connect(own) as connection:
                execute(
                    connection,
                    sql.SQL(
                        "create schema tests authorization {user}; set role {user};"
                        "create table tests.things (thing_id int primary key, label text);"
                        "insert into tests.things values (1, 'a')"
                    ).format(user=sql.Identifier(user)),
                )
            parts = urlsplit(server.url)
            netloc = f"{quote(user, safe='')}:{quote(password, safe='')}@{parts.hostname}:{parts.port}"
            source = PostgresSource(f"postgresql://{netloc}/{quote(name, safe='')}")
            snapshot = source.snapshot()
            found = texts(spark, snapshot, snapshot.describe(LABELS), LABELS)
            source.close()
        finally:
            execute(admin, sql.SQL("drop database {} with (force)").format(sql.Identifier(name)))
            execute(admin, sql.SQL("drop role {}").format(sql.Identifier(user)))

    assert found == [{"thing_id": "1", "label": "a"}]


def kill_snapshots(connection: Connection) -> None:
    """Terminate the package's backends in this database, and wait until they are gone."""
    mine = "from pg_stat_activity where application_name = 'bronze_assets' and datname = current_database()"
    assert ask(connection, f"select pg_terminate_backend(pid) {mine}")
    while ask(connection, f"select 1 {mine}"):
        time.sleep(0.01)


@pytest.mark.parametrize(
    "use",
    [
        lambda snapshot, _: snapshot.describe(LABELS),
        lambda snapshot, source: snapshot.count(source, FULL),
        lambda snapshot, source: snapshot.next_bound(source, "thing_id", None, 1),
    ],
    ids=["describe", "count", "next_bound"],
)
def test_a_lost_connection_is_worth_a_retry_and_the_next_snapshot_works(
    use: Callable[[Snapshot, SourceTable], object], database: Connection, opened: PostgresSource
) -> None:
    execute(
        database,
        "create table tests.things (thing_id int primary key, label text); insert into tests.things values (1, 'a')",
    )
    snapshot = opened.snapshot()
    source = snapshot.describe(LABELS)
    kill_snapshots(database)

    with pytest.raises(SourceUnreachable, match="the connection was lost") as caught:
        use(snapshot, source)

    assert caught.value.retryable
    assert not snapshot.alive()
    again = opened.snapshot()
    assert again is not snapshot
    assert again.count(again.describe(LABELS), FULL) == 1


def test_a_connection_lost_under_a_spark_read_is_worth_a_retry(
    spark: SparkSession, source_url: str, database: Connection, opened: PostgresSource
) -> None:
    execute(
        database,
        "create table tests.things (thing_id int primary key, label text); insert into tests.things values (1, 'a')",
    )
    snapshot = opened.snapshot()
    frame = snapshot.read(spark, snapshot.describe(LABELS), LABELS, FULL, 1)
    kill_snapshots(database)

    with pytest.raises(SourceUnreachable, match=r"bz_things: .* the connection was lost while reading"):  # noqa: SIM117
        with snapshot.reading(LABELS):
            frame.collect()


def test_a_readers_connection_lost_alone_is_worth_a_retry(
    spark: SparkSession, database: Connection, opened: PostgresSource
) -> None:
    # The snapshot holds a lock on its tables, so that no lock could stop its readers: this one is slow by itself.
    execute(database, "create view tests.things as select 1 as thing_id, pg_sleep(2)::text as label")
    snapshot = opened.snapshot()
    frame = snapshot.read(spark, snapshot.describe(LABELS), LABELS, FULL, 1)
    killed = threading.Event()

    def kill_the_reader() -> None:
        asleep = "select pg_terminate_backend(pid) from pg_stat_activity where wait_event = 'PgSleep'"
        for _ in range(1000):
            if ask(database, asleep):
                killed.set()
                return
            time.sleep(0.01)

    killer = threading.Thread(target=kill_the_reader, daemon=True)
    killer.start()
    with pytest.raises(SourceUnreachable, match="lost while reading"), snapshot.reading(LABELS):
        frame.collect()
    killer.join()

    assert killed.is_set()
    assert snapshot.alive()


def test_whoever_waits_to_change_the_table_gets_it_and_the_load_is_worth_a_retry(
    spark: SparkSession,
    source_url: str,
    database: Connection,
    opened: PostgresSource,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(postgres_source, "LOCK_TIMEOUT_SECONDS", 1)
    execute(database, "create table tests.things (thing_id int primary key, label text)")
    snapshot = opened.snapshot()
    frame = snapshot.read(spark, snapshot.describe(LABELS), LABELS, FULL, 1)
    with postgres.connect(source_url) as other:
        # Waits for the snapshot; the snapshot's reader waits behind it.
        changing = threading.Thread(
            target=execute, args=(other, "alter table tests.things add column more int"), daemon=True
        )
        changing.start()
        while not ask(database, "select 1 from pg_stat_activity where wait_event_type = 'Lock'"):
            time.sleep(0.01)
        with pytest.raises(SourceBusy, match="another session has kept the source table locked") as caught:  # noqa: SIM117
            with snapshot.reading(LABELS):
                frame.collect()
        changing.join(10)

    assert caught.value.retryable
    assert not changing.is_alive()
    assert "more" in opened.snapshot().describe(LABELS).extra


def test_a_table_can_be_changed_as_soon_as_it_has_been_read_and_the_snapshot_lives_on(
    spark: SparkSession, database: Connection, opened: PostgresSource
) -> None:
    execute(database, "create table tests.things (thing_id int primary key, label text)")
    execute(database, "create table tests.others (thing_id int primary key, label text)")
    others = declared(Labels, "tests.others")
    snapshot = opened.snapshot()
    execute(database, "insert into tests.others values (1, 'too late')")
    source = snapshot.describe(LABELS)
    execute(database, "set lock_timeout = '200ms'")

    with snapshot.reading(LABELS):
        snapshot.read(spark, source, LABELS, FULL, 1).collect()
        with pytest.raises(errors.LockNotAvailable):
            execute(database, "truncate tests.things")
    execute(database, "truncate tests.things")

    with snapshot.reading(others):
        assert snapshot.read(spark, snapshot.describe(others), others, FULL, 1).collect() == []
    assert opened.snapshot() is snapshot


def test_a_table_that_is_locked_all_along_is_worth_a_retry(
    source_url: str, database: Connection, opened: PostgresSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(postgres_source, "LOCK_TIMEOUT_SECONDS", 1)
    execute(database, "create table tests.things (thing_id int primary key, label text)")
    with postgres.connect(source_url) as other:
        other.autocommit = False
        execute(other, "lock table tests.things in access exclusive mode")

        with pytest.raises(SourceBusy, match=r"bz_things: another session has kept the source table locked"):
            opened.snapshot().describe(LABELS)

        other.rollback()


def test_a_server_without_a_free_connection_is_worth_a_retry(
    spark: SparkSession, server: Server, source_url: str, database: Connection, opened: PostgresSource
) -> None:
    execute(database, "create table tests.things (thing_id int primary key, label text)")
    snapshot = opened.snapshot()
    frame = snapshot.read(spark, snapshot.describe(LABELS), LABELS, FULL, 1)
    with postgres.connect(server.admin_url) as admin:
        name = sql.Identifier(urlsplit(source_url).path.lstrip("/"))
        execute(admin, sql.SQL("alter database {} connection limit 1").format(name))

    with pytest.raises(SourceUnreachable), snapshot.reading(LABELS):
        frame.collect()
    with pytest.raises(SourceUnreachable):
        PostgresSource(source_url).snapshot()


def test_an_error_that_is_not_the_sources_stays_what_it_is(database: Connection, opened: PostgresSource) -> None:
    with pytest.raises(ZeroDivisionError), opened.snapshot().reading(LABELS):
        print(1 / 0)


def test_an_idle_snapshot_outlives_the_servers_patience(
    server: Server, source_url: str, database: Connection, opened: PostgresSource
) -> None:
    with postgres.connect(server.admin_url) as admin:
        name = sql.Identifier(urlsplit(source_url).path.lstrip("/"))
        execute(admin, sql.SQL("alter database {} set idle_in_transaction_session_timeout = '50ms'").format(name))

    snapshot = opened.snapshot()
    with postgres.connect(source_url) as other:
        other.autocommit = False
        execute(other, "select 1")
        # Until the server has ended a transaction as idle as ours, which began before it.
        pid = other.get_backend_pid()
        while ask(database, f"select 1 from pg_stat_activity where pid = {pid}"):
            time.sleep(0.02)

        assert snapshot.alive()
