"""The walk of a batch, on a real PostgreSQL, Spark and Delta; what is expected comes from SQL on the source, and what
happened is read by the `deltalake` package.
"""

from __future__ import annotations

import dataclasses
import datetime as dt
import hashlib
import json
import re
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import pandera.pyspark as pa
import pyarrow.parquet as pq
import pyspark.sql.types as T
import pytest
from deltalake import DeltaTable
from py4j.protocol import Py4JJavaError
from pyspark.sql import functions as F

from bronze_assets import audit, engine, frames, quality
from bronze_assets.audit import LoadRecord
from bronze_assets.catalog import inventory
from bronze_assets.catalog.inventory import TABLES
from bronze_assets.demo import postgres
from bronze_assets.errors import (
    BronzeError,
    ConservationError,
    LakeError,
    LoadRefused,
    PartitionRefused,
    SchemaMismatch,
    SourceRefused,
    SourceUnreachable,
    StaleBase,
    TableBusy,
)
from bronze_assets.frames import Frames
from bronze_assets.lakehouse import Lakehouse
from bronze_assets.leases import lease
from bronze_assets.load import current, load
from bronze_assets.settings import Settings
from bronze_assets.sources.postgres import Snapshot
from bronze_assets.storage import Commit
from bronze_assets.table import BronzeTable, Cadence, Pii, column
from bronze_assets.workbench import Options, Run, Workbench
from bronze_assets_tests import lake_reader
from bronze_assets_tests.conftest import CHECKOUT, Server, settings_for
from bronze_assets_tests.people import Keys

if TYPE_CHECKING:
    from psycopg2.extensions import connection as Connection
    from pyspark.sql import SparkSession

NOON = dt.datetime(2026, 3, 10, 12, tzinfo=dt.UTC)
TODAY = "2026-03-10"
BY_NAME = {table.name: table for table in TABLES}
PRODUCTS = BY_NAME["bz_products"]
SUPPLIERS = BY_NAME["bz_suppliers"]
WAREHOUSES = BY_NAME["bz_warehouses"]
ORDERS = BY_NAME["bz_orders"]
STOCK_LEVELS = BY_NAME["bz_stock_levels"]
CUSTOMERS = BY_NAME["bz_customers"]

METADATA = (
    "load_timestamp",
    "update_timestamp",
    "source_system",
    "record_status",
    "data_quality_score",
    "batch_id",
    "file_name",
    "record_hash",
    "source_position",
)
AUDIT_COLUMNS = [
    "audit_id",
    "table_name",
    "operation_type",
    "record_count",
    "processing_start_time",
    "processing_end_time",
    "processing_duration_seconds",
    "data_quality_avg_score",
    "error_count",
    "warning_count",
    "batch_id",
    "pipeline_run_id",
    "source_system",
    "target_location",
    "created_by",
    "status",
    "error_message",
]
DDL = {
    "products": "product_id int, product_name text, category text, unit_price numeric(12,2)",
    "warehouses": "warehouse_id int, location text, capacity int",
    "orders": "order_id bigint, customer_id int, order_date date, order_status text",
    "stock_levels": "stock_level_id int, warehouse_id int, product_id int, quantity_on_hand int, reorder_threshold int",
    "customers": "customer_id int, customer_name text, email text",
}


@dataclass(frozen=True)
class Told:
    """What tables.md says of a source table, in PostgreSQL's words.

    Attributes:
        columns: its columns and their types, the key first.
        unparseable: column → when it holds what its type cannot.
        penalty: points off for rules beyond key and type.
        protected: columns that may not be read beside the table.
    """

    columns: dict[str, str]
    unparseable: dict[str, str] = field(default_factory=dict)
    penalty: str = "0"
    protected: tuple[str, ...] = ()

    @property
    def key(self) -> str:
        return next(iter(self.columns))

    def judged(self, source: str) -> str:
        """A query for each row with its hash, score and outcome, worked out from tables.md and semantics.md."""
        canonical = {
            "int": "{c}::text",
            "text": "{c}",
            "date": "case when isfinite({c}) then ({c} - date '1970-01-01')::text end",
            "money": "{c}::numeric(12,2)::text",
        }
        texts = {name: canonical[kind].format(c=name) for name, kind in self.columns.items()}
        strings = [name for name, kind in self.columns.items() if kind == "text"]
        fields = [f"octet_length({text})::text" if name in strings else text for name, text in texts.items()]
        form = ", ".join([f"coalesce({field}, 'N')" for field in fields] + strings)
        key = self.key
        unparsed = " or ".join(f"coalesce({c}, false)" for c in self.unparseable.values()) or "false"
        return f"""
            with hashed as (
                select *, md5(concat_ws(',', {form})) as hash,
                       {key} is null or {key} <= 0 as bad_key, {unparsed} as unparsed,
                       num_nulls({", ".join(self.columns)}) as nulls, {self.penalty} as penalty
                from {source})
            select *, greatest(0, 100 - 10 * nulls - penalty - 25 * bad_key::int - 25 * unparsed::int) as score,
                   case when bad_key or unparsed then 'quarantined'
                        when row_number() over (partition by {key}, bad_key or unparsed order by hash) > 1
                        then 'duplicate' else 'loaded' end as outcome
            from hashed"""


ID = "int"
NEGATIVE = "case when {c} < 0 then 25 else 0 end"
NAN = "{c} = 'NaN'"
INFINITE = "not isfinite({c})"
TOLD = {
    "bz_products": Told(
        {"product_id": ID, "product_name": "text", "category": "text", "unit_price": "money"},
        {"unit_price": NAN.format(c="unit_price")},
    ),
    "bz_suppliers": Told(
        {"supplier_id": ID, "supplier_name": "text", "contact_number": "text", "product_id": ID},
        penalty=r"case when contact_number !~ '^\+?[0-9 ().-]{6,20}$' then 5 else 0 end",
        protected=("contact_number",),
    ),
    "bz_warehouses": Told({"warehouse_id": ID, "location": "text", "capacity": ID}),
    "bz_inventory": Told(
        {"inventory_id": ID, "product_id": ID, "warehouse_id": ID, "quantity_available": ID},
        penalty=NEGATIVE.format(c="quantity_available"),
    ),
    "bz_orders": Told(
        {"order_id": ID, "customer_id": ID, "order_date": "date", "order_status": "text"},
        {"order_date": INFINITE.format(c="order_date")},
        penalty=f"case when isfinite(order_date) and order_date > date '{TODAY}' then 15 else 0 end",
    ),
    "bz_order_details": Told(
        {"order_detail_id": ID, "order_id": ID, "product_id": ID, "quantity_ordered": ID, "unit_price": "money"},
        {"unit_price": NAN.format(c="unit_price")},
        penalty=NEGATIVE.format(c="quantity_ordered"),
    ),
    "bz_shipments": Told(
        {"shipment_id": ID, "order_id": ID, "shipment_date": "date", "carrier": "text"},
        {"shipment_date": INFINITE.format(c="shipment_date")},
    ),
    "bz_returns": Told({"return_id": ID, "order_id": ID, "return_date": "date", "return_reason": "text"}),
    "bz_stock_levels": Told(
        {
            "stock_level_id": ID,
            "warehouse_id": ID,
            "product_id": ID,
            "quantity_on_hand": ID,
            "reorder_threshold": ID,
        },
        penalty=NEGATIVE.format(c="quantity_on_hand"),
    ),
    "bz_customers": Told(
        {"customer_id": ID, "customer_name": "text", "email": "text"},
        penalty=r"case when email !~ '^[^@\s]+@[^@\s]+\.[^@\s]+$' then 15 else 0 end",
        protected=("customer_name", "email"),
    ),
}


class Clock:
    """The present moment as a test sets it; it goes on by a millisecond each time it is read."""

    def __init__(self, now: dt.datetime = NOON) -> None:
        self.now = now

    def __call__(self) -> dt.datetime:
        self.now += dt.timedelta(milliseconds=1)
        return self.now

    def set(self, *args: int) -> None:
        self.now = dt.datetime(*args, tzinfo=dt.UTC)  # type: ignore[misc,arg-type]


@dataclass
class Lab:
    """A source, a lake and a clock. Each load is a run of its own, which sees the source as it is then."""

    settings: Settings
    connection: Connection
    clock: Clock = field(default_factory=Clock)
    runs: int = 0

    def sql(self, statement: str, *parameters: Any) -> list[tuple[Any, ...]]:
        with self.connection.cursor() as cursor:
            cursor.execute(statement, parameters or None)
            return list(cursor.fetchall()) if cursor.description else []

    def make(self, name: str, rows: Sequence[Sequence[Any]] = (), *, ddl: str | None = None) -> None:
        """A source table of that name with those rows."""
        self.sql("create schema if not exists tests")
        self.sql(f"create table tests.{name} ({ddl or DDL[name]})")
        self.insert(name, rows)

    def insert(self, name: str, rows: Sequence[Sequence[Any]]) -> None:
        for row in rows:
            self.sql(f"insert into tests.{name} values ({', '.join(['%s'] * len(row))})", *row)

    def load(self, table: BronzeTable, partition: str = TODAY, **options: Any) -> LoadRecord:
        self.runs += 1
        bench = Workbench(self.settings, clock=self.clock)
        try:
            return load(table, partition, bench, Run(f"run-{self.runs}", "cli"), Options(**options))
        finally:
            bench.close()

    def path(self, name: str) -> Path:
        return self.settings.lake / lake_reader.SCHEMA / name

    def rows(self, table: BronzeTable, *columns: str, where: str = "true") -> list[tuple[Any, ...]]:
        """Row versions of the bronze table, sorted."""
        return lake_reader.tuples(self.path(table.name), *columns, where=where)

    def quarantine(self, table: BronzeTable) -> list[dict[str, Any]]:
        return lake_reader.read(self.path(table.quarantine_name), "select * from t order by row_key, row_hash")

    def audit(self) -> list[dict[str, Any]]:
        return lake_reader.read(self.path("bz_audit_log"), "select * from t order by processing_end_time")

    def events(self, table: BronzeTable) -> list[tuple[str, str]]:
        """(batch id, event) in order of time."""
        rows = lake_reader.read(self.path("bz_batches"), "select * from t order by event_time")
        return [(row["batch_id"], row["event"]) for row in rows if row["table_name"] == table.name]

    def current(self, table: BronzeTable, *columns: str) -> list[tuple[Any, ...]]:
        """The current view, sorted."""
        bench = Workbench(self.settings, clock=self.clock)
        return sorted((tuple(row) for row in current(bench, table).select(*columns).toLocalIterator()), key=repr)


@pytest.fixture
def lab(settings: Settings, source: Connection, spark: SparkSession) -> Lab:
    return Lab(settings, source)


@dataclass(frozen=True)
class FirstLoads:
    """The ten sample tables, each with its planted faults, loaded once into an empty lake."""

    lab: Lab
    records: dict[str, LoadRecord]
    wal_before: int
    wal_after: int

    def query(self, table: str, columns: str, where: str = "true") -> list[tuple[Any, ...]]:
        """Of the judged source rows."""
        judged = TOLD[table].judged(BY_NAME[table].source)
        return sorted(self.lab.sql(f"select {columns} from ({judged}) judged where {where}"), key=repr)


@pytest.fixture(scope="module")
def first(
    server: Server, sample_template: str, spark: SparkSession, jars: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[FirstLoads]:
    url = server.make_database(sample_template)
    home = tmp_path_factory.mktemp("first loads")
    settings = settings_for(home, {"BRONZE_JARS": str(jars), "BRONZE_SOURCE_URL": url})
    clock = Clock()
    with postgres.connect(url) as connection:
        lab = Lab(settings, connection, clock)
        ((before,),) = lab.sql("select pg_current_wal_lsn() - '0/0'::pg_lsn")
        bench = Workbench(settings, clock=clock)
        records = {
            table.name: load(
                table,
                "2026-03-10-12:00" if table is STOCK_LEVELS else TODAY,
                bench,
                Run("run-1", "schedule"),
            )
            for table in TABLES
        }
        bench.close()
        ((after,),) = lab.sql("select pg_current_wal_lsn() - '0/0'::pg_lsn")
        yield FirstLoads(lab, records, int(before), int(after))
    server.drop_database(url)


every_table = pytest.mark.parametrize("name", sorted(BY_NAME))


# First load


@every_table
def test_a_first_load_brings_exactly_the_rows_that_sql_predicts(first: FirstLoads, name: str) -> None:
    columns = list(TOLD[name].columns)
    predicted = first.query(name, ", ".join([*columns, "hash", "score"]), "outcome = 'loaded'")
    assert len(predicted) > 0
    found = first.lab.rows(BY_NAME[name], *columns, "record_hash", "data_quality_score")
    if TOLD[name].protected:
        keys = Keys(first.lab.settings, inventory.SCHEMA, name)
        told = first.query(name, ", ".join([*columns, "score"]), "outcome in ('loaded', 'duplicate')")
        # Of two rows of a key the one with the smaller hash stays, and that has HMACs.
        smallest: dict[Any, tuple[Any, ...]] = {}
        hashed = [(*row[:-1], hash_by_hand(keys, name, row[:-1]), row[-1]) for row in told]
        for row in sorted(hashed, key=lambda one: str(one[-2])):
            smallest.setdefault(row[0], row)
        predicted = sorted(smallest.values(), key=repr)
        pairs = zip(found, predicted, strict=True)
        found = [(*opened_by_hand(keys, name, row[:-2], plain), *row[-2:]) for row, plain in pairs]
    assert found == predicted


def hash_by_hand(keys: Keys, name: str, row: Sequence[Any]) -> str:
    """`record_hash` of a row of integers and texts, with HMACs for what is protected."""
    head, bodies = [], []
    for told, value in zip(TOLD[name].columns, row, strict=True):
        if isinstance(value, str):
            text = keys.hmac("hash", value) if told in TOLD[name].protected else value
            head.append(str(len(text.encode())))
            bodies.append(text)
        else:
            head.append("N" if value is None else str(value))
    return hashlib.md5(",".join([*head, *bodies]).encode()).hexdigest()


def opened_by_hand(keys: Keys, name: str, row: Sequence[Any], plain: Sequence[Any]) -> Iterator[Any]:
    """The values of a stored row; the plain one where a token is that of the value that was told."""
    for named, value, told in zip(TOLD[name].columns, row, plain, strict=False):
        if named in TOLD[name].protected and value is not None:
            if value.startswith("tok:"):
                yield told if value == f"tok:{keys.hmac('token', told)}" else value
            else:
                yield keys.open(value, named, str(row[0]))
        else:
            yield value


@every_table
def test_every_row_of_a_first_load_has_the_metadata_columns(first: FirstLoads, name: str) -> None:
    types = lake_reader.column_types(first.lab.path(name))
    assert [column for column in types if column in METADATA] == list(METADATA)
    batch = "2026-03-10-12:00/1" if name == "bz_stock_levels" else "2026-03-10/1"
    for row in lake_reader.read(first.lab.path(name)):
        assert NOON < row["load_timestamp"] < NOON + dt.timedelta(minutes=1)
        assert row["update_timestamp"] == row["load_timestamp"]
        assert row["source_system"] == "PostgreSQL_DE"
        assert row["record_status"] == "ACTIVE"
        assert row["batch_id"] == batch
        assert row["file_name"] is None


def test_all_tables_of_a_process_stand_at_one_position_of_fixed_width(first: FirstLoads) -> None:
    positions = {p for table in TABLES for (p,) in first.lab.rows(table, "source_position")}
    (position,) = positions
    epoch, lsn, sequence = position.split("/")
    assert (epoch, len(lsn), int(sequence)) == ("0001", 16, 0)
    assert first.wal_before <= int(lsn, 16) <= first.wal_after


@every_table
def test_rows_read_are_conserved_and_counted_as_sql_counts_them(first: FirstLoads, name: str) -> None:
    record = first.records[name]
    outcomes = Counter(outcome for (outcome,) in first.query(name, "outcome"))
    assert (record.loaded, record.quarantined, record.duplicates, record.unchanged, record.deleted) == (
        outcomes["loaded"],
        outcomes["quarantined"],
        outcomes["duplicate"],
        0,
        0,
    )
    assert record.read == sum(outcomes.values())
    assert record.conserved
    ((total,),) = first.query(name, "sum(score)")
    assert record.score_sum == total
    ((*nulls,),) = first.query(name, ", ".join(f"count(*) - count({c})" for c in TOLD[name].columns))
    assert record.nulls == dict(zip(TOLD[name].columns, nulls, strict=True))


@every_table
def test_the_quarantine_holds_each_bad_row_with_its_reasons_and_no_protected_value(
    first: FirstLoads, name: str
) -> None:
    told = TOLD[name]
    shown = [c for c in told.columns if c not in told.protected]
    marks = ", ".join([f"{c}::text" for c in shown] + ["bad_key", *told.unparseable.values()])
    predicted: Counter[str] = Counter()
    for row in first.query(name, marks, "outcome = 'quarantined'"):
        raw = dict(zip(shown, row, strict=False))
        bad_key, *unparsed = row[len(shown) :]
        reasons = [("key", told.key, raw[told.key])] if bad_key else []
        reasons += [("parsed", c, raw[c]) for c, bad in zip(told.unparseable, unparsed, strict=True) if bad]
        predicted[repr((raw, reasons))] += 1
    held: Counter[str] = Counter()
    for found in first.lab.quarantine(BY_NAME[name]):
        said = [(reason["rule"], reason["column"], reason["found"]) for reason in found["reasons"]]
        raw = json.loads(found["raw_row"])
        sealed = [raw.pop(column) for column in told.protected]
        assert all(value is None or value.startswith("enc:1:") for value in sealed)
        held[repr((raw, said))] += found["rows_in_batch"]
        assert (found["sightings"], found["first_seen"]) == (1, found["last_seen"])
        assert found["batch_id"] == found["last_batch_id"] == first.records[name].batch_id
    assert held == predicted


@every_table
def test_each_load_leaves_one_audit_row_with_the_seventeen_columns(first: FirstLoads, name: str) -> None:
    assert list(lake_reader.column_types(first.lab.path("bz_audit_log"))) == AUDIT_COLUMNS
    (row,) = [row for row in first.lab.audit() if row["table_name"] == name]
    read, average, bad = first.query(name, "count(*), avg(score)::float8, count(*) filter (where bad_key or unparsed)")[
        0
    ]
    warned = len(first.query(name, "1", "penalty > 0 and not bad_key and not unparsed"))
    assert row["record_count"] == read
    assert row["data_quality_avg_score"] == pytest.approx(average)
    assert (row["error_count"], row["warning_count"]) == (bad, warned)
    assert (row["status"], row["error_message"], row["operation_type"]) == ("SUCCESS", None, "snapshot load")
    assert (row["pipeline_run_id"], row["created_by"]) == ("run-1", "bronze_assets/schedule")
    assert (row["batch_id"], row["source_system"]) == (first.records[name].batch_id, "PostgreSQL_DE")
    assert row["target_location"] == str(first.lab.path(name))
    assert NOON < row["processing_start_time"] <= row["processing_end_time"]
    assert isinstance(row["processing_duration_seconds"], int)


@every_table
def test_the_batch_log_tells_each_step_in_order(first: FirstLoads, name: str) -> None:
    bad = first.query(name, "1", "outcome = 'quarantined'")
    steps = ["begun", "main", *(["quarantine"] if bad else []), "audited", "done"]
    assert first.lab.events(BY_NAME[name]) == [(first.records[name].batch_id, step) for step in steps]


def test_the_batch_log_and_the_audit_log_refuse_changes(first: FirstLoads) -> None:
    for name in ("bz_batches", "bz_audit_log"):
        assert lake_reader.properties(first.lab.path(name))["delta.appendOnly"] == "true"


def test_parquet_keeps_no_least_and_greatest_value_of_what_nobody_searches(first: FirstLoads) -> None:
    (file, *_) = sorted(first.lab.path("bz_orders").rglob("*.parquet"))
    group = pq.ParquetFile(file).metadata.row_group(0)
    kept = {group.column(at).path_in_schema: group.column(at).statistics is not None for at in range(group.num_columns)}

    without = {"source_system", "record_status", "file_name", "record_hash", "source_position"}
    assert {name for name, known in kept.items() if not known} == without
    assert {"order_id", "batch_id"} <= kept.keys()


@every_table
def test_delta_tables_keep_thirty_days_have_a_change_feed_and_no_deletion_vectors(first: FirstLoads, name: str) -> None:
    for part in (name, f"{name}_quarantine"):
        properties = lake_reader.properties(first.lab.path(part))
        assert properties["delta.deletedFileRetentionDuration"] == "interval 30 days"
        assert properties["delta.logRetentionDuration"] == "interval 30 days"
        assert properties["delta.enableDeletionVectors"] == "false"
        assert properties["delta.enableChangeDataFeed"] == "true"
        statistics = str(properties["delta.dataSkippingStatsColumns"]).split(",")
        assert "batch_id" in statistics
        assert not {"customer_name", "email", "contact_number", "raw_row", "reasons"} & set(statistics)
    logs = "".join(path.read_text() for path in (first.lab.path(name) / "_delta_log").glob("*.json"))
    assert "example.org" not in logs


@every_table
def test_tables_are_partitioned_as_the_layout_says(first: FirstLoads, name: str) -> None:
    expected = {
        "bz_orders": ["order_date"],
        "bz_shipments": ["shipment_date"],
        "bz_inventory": ["load_date"],
        "bz_customers": ["load_date"],
    }
    assert lake_reader.partition_columns(first.lab.path(name)) == expected.get(name, [])


@pytest.mark.parametrize("name", ["bz_inventory", "bz_customers"])
def test_the_load_date_is_generated_from_the_load_timestamp(first: FirstLoads, name: str) -> None:
    assert set(first.lab.rows(BY_NAME[name], "load_date")) == {(dt.date(2026, 3, 10),)}


def test_tables_of_one_process_are_read_from_one_snapshot(lab: Lab) -> None:
    lab.make("warehouses", [(1, "Köln", 5)])
    lab.make("products", [(1, "Lamp", "Home", 5)])
    bench = Workbench(lab.settings, clock=lab.clock)
    load(WAREHOUSES, TODAY, bench, Run("one", "cli"))
    lab.sql("update tests.products set category = 'Garden'")
    lab.insert("products", [(2, "Chair", "Home", 5)])
    load(PRODUCTS, TODAY, bench, Run("one", "cli"))
    bench.close()
    assert lab.rows(PRODUCTS, "product_id", "category") == [(1, "Home")]
    assert lab.rows(PRODUCTS, "source_position") == lab.rows(WAREHOUSES, "source_position")


def test_an_empty_source_is_a_batch_that_passes(lab: Lab) -> None:
    lab.make("warehouses")
    record = lab.load(WAREHOUSES)
    assert (record.read, record.loaded, record.average_score, record.error_rate) == (0, 0, None, 0.0)
    assert all(verdict.passed for verdict in audit.verdicts(WAREHOUSES, record))
    (row,) = lab.audit()
    assert (row["record_count"], row["data_quality_avg_score"], row["status"]) == (0, None, "SUCCESS")


# Versions


def test_the_same_source_read_twice_adds_no_version_and_sees_the_same_quarantine_rows_again(lab: Lab) -> None:
    rows = [(1, "Lamp", "Home", 5), (2, "Chair", None, 7), (3, "Vase", "Home", "NaN"), (4, "Clock", "Home", 1)]
    lab.make("products", [*rows, (None, "Drill", "Tools", 2), (None, "Drill", "Tools", 2), (4, "Clock", "Home", 1)])
    lab.load(PRODUCTS)
    before = lab.rows(PRODUCTS, "*")
    held = lab.quarantine(PRODUCTS)
    assert [(row["row_key"], row["rows_in_batch"], row["sightings"]) for row in held] == [("3", 1, 1), ("NULL", 2, 1)]
    lab.clock.set(2026, 3, 10, 15)

    record = lab.load(PRODUCTS)

    assert lab.rows(PRODUCTS, "*") == before
    assert len(before) == 3
    assert (record.read, record.unchanged, record.quarantined, record.duplicates) == (7, 3, 3, 1)
    again = lab.quarantine(PRODUCTS)
    for old, new in zip(held, again, strict=True):
        assert (new["sightings"], new["last_batch_id"]) == (2, "2026-03-10/2")
        assert new["last_seen"] > dt.datetime(2026, 3, 10, 15, tzinfo=dt.UTC)
        kept = ("row_key", "row_hash", "raw_row", "reasons", "batch_id", "first_seen", "rows_in_batch")
        assert [new[name] for name in kept] == [old[name] for name in kept]


def test_one_row_changed_one_added_and_one_deleted_make_exactly_three_versions(lab: Lab) -> None:
    lab.make("warehouses", [(1, "Köln", 5), (2, "Łódź", 6), (3, "Malmö", 7)])
    lab.load(WAREHOUSES)
    lab.sql("update tests.warehouses set capacity = 50 where warehouse_id = 1")
    lab.sql("delete from tests.warehouses where warehouse_id = 2")
    lab.insert("warehouses", [(4, "Izmir", 8)])

    record = lab.load(WAREHOUSES)

    assert (record.loaded, record.unchanged, record.deleted) == (2, 1, 1)
    added = lab.rows(WAREHOUSES, *WAREHOUSES_SHOWN, where="batch_id = '2026-03-10/2'")
    assert added == [(1, "Köln", 50, "ACTIVE", 100), (2, None, None, "DELETED", None), (4, "Izmir", 8, "ACTIVE", 100)]
    assert len(lab.rows(WAREHOUSES, "*")) == 6
    assert lab.current(WAREHOUSES, "warehouse_id", "location", "capacity") == lab.sql(
        "select * from tests.warehouses order by 1"
    )


WAREHOUSES_SHOWN = ("warehouse_id", "location", "capacity", "record_status", "data_quality_score")


def test_a_load_runs_the_code_that_the_load_before_it_had_generated(lab: Lab, spark: SparkSession) -> None:
    compiled = spark._jvm.org.apache.spark.metrics.source.CodegenMetrics.METRIC_COMPILATION_TIME()  # type: ignore[union-attr]
    lab.make("warehouses", [(n, f"place {n}", n) for n in range(1, 21)])
    counts = []
    for day in range(4):
        lab.clock.now = NOON + dt.timedelta(minutes=day)
        lab.sql(f"update tests.warehouses set capacity = {1000 + day} where warehouse_id = {1 + day}")
        # One that is quarantined, since no key is 0.
        lab.insert("warehouses", [(-day, "nowhere", day)])
        before = compiled.getCount()
        record = lab.load(WAREHOUSES)
        counts.append(compiled.getCount() - before)

    assert (record.loaded, record.quarantined) == (1, 4)
    assert counts[3] == 0
    # That something is counted: code that nothing has run before.
    before = compiled.getCount()
    spark.range(3).selectExpr(f"id + {time.time_ns() % 10**9}").collect()
    assert compiled.getCount() > before


def test_a_deleted_version_holds_the_key_alone_and_is_written_once(lab: Lab) -> None:
    lab.make("orders", [(1, 9, dt.date(2026, 3, 1), "NEW"), (2, 9, dt.date(2026, 3, 1), "NEW")])
    lab.load(ORDERS)
    lab.sql("delete from tests.orders where order_id = 1")
    assert lab.load(ORDERS).deleted == 1
    assert lab.load(ORDERS).deleted == 0
    (gone,) = lake_reader.read(lab.path("bz_orders"), "select * from t where record_status = 'DELETED'")
    holds = {name for name, value in gone.items() if value is not None}
    assert holds == {
        "order_id",
        "load_timestamp",
        "update_timestamp",
        "source_system",
        "record_status",
        "batch_id",
        "source_position",
    }
    assert gone["order_id"] == 1


@pytest.mark.parametrize(
    ("bad", "name", "again", "apart"),
    [
        (3, 'a \\ quote " and\nlines, {braces}, ćwierć, 𝄞', False, False),
        (1000, "bad", False, False),
        (1001, "bad", True, False),
        (1, "long" * 1001, True, False),
        (3, 'a \\ quote " and\nlines, {braces}, ćwierć, 𝄞', False, True),
        (1001, "bad", True, True),
    ],
    ids=["odd text", "as many as are brought along", "one more", "too long", "before 4.2", "before 4.2, one more"],
)
def test_the_source_is_read_once_unless_very_much_of_it_is_bad(
    lab: Lab, spark: SparkSession, bad: int, name: str, again: bool, apart: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    apart = apart or not frames._samples_while_counting(spark)
    monkeypatch.setattr(frames, "_samples_while_counting", lambda _: not apart)
    passes = 1 + again + apart
    lab.make("products", [(1, "Lamp", "Home", 5), (2, "Chair", "Home", 7)])
    lab.sql(f"insert into tests.products select 100 + n, %s, 'Home', 'NaN' from generate_series(1, {bad}) n", name)
    rows = "select seq_tup_read from pg_stat_user_tables where relname = 'products'"
    ((before,),) = lab.sql(rows)

    record = lab.load(PRODUCTS)

    assert (record.read, record.quarantined) == (bad + 2, bad)
    hashes = spark.createDataFrame([(str(100 + n),) for n in range(1, bad + 1)], "key string")
    first = [row.key for row in hashes.orderBy(F.xxhash64(F.col("key").cast("int"))).take(frames.EXAMPLES)]
    assert list(record.rules[quality.PARSED].examples) == first
    held = {row["row_key"]: json.loads(row["raw_row"]) for row in lab.quarantine(PRODUCTS)}
    assert held == {
        str(100 + n): {"product_id": str(100 + n), "product_name": name, "category": "Home", "unit_price": "NaN"}
        for n in range(1, bad + 1)
    }
    # The server reports what a connection has read when it ends.
    while lab.sql("select from pg_stat_activity where application_name = 'bronze_assets'"):
        time.sleep(0.1)
    assert lab.sql(rows)[0][0] - before == passes * (bad + 2)


def test_rows_that_are_lost_between_counting_and_writing_are_noticed(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    lab.make("warehouses", [(1, "Köln", 5), (2, "Łódź", 6), (3, "Kyiv", 7)])
    whole = Frames.versions
    with monkeypatch.context() as patched:
        patched.setattr(Frames, "versions", lambda *args: whole(*args).where("warehouse_id <> 2"))
        with pytest.raises(ConservationError, match=r"bz_warehouses: .* counted 3 rows for the table, and wrote 2\."):
            lab.load(WAREHOUSES)

    record = lab.load(WAREHOUSES)

    assert (record.read, record.loaded) == (3, 3)
    assert lab.current(WAREHOUSES, "warehouse_id") == [(1,), (2,), (3,)]


def test_compared_rows_of_a_day_are_written_by_one_task(
    lab: Lab, spark: SparkSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As with a table that is large: its comparison ends in several tasks, each with rows of every day.
    monkeypatch.setattr(engine, "SMALL_BYTES", 0)
    before = str(spark.conf.get("spark.sql.adaptive.coalescePartitions.enabled"))
    spark.conf.set("spark.sql.adaptive.coalescePartitions.enabled", "false")
    try:
        lab.make("orders", [(n, 1, dt.date(2026, 3, 1 + n % 5), "NEW") for n in range(1, 41)])
        lab.load(ORDERS)
        lab.sql("update tests.orders set order_status = 'SHIPPED'")
        record = lab.load(ORDERS)
    finally:
        spark.conf.set("spark.sql.adaptive.coalescePartitions.enabled", before)

    assert record.loaded == 40
    added = DeltaTable(str(lab.path("bz_orders"))).history(1)[0]["operationMetrics"]
    assert (int(added["numFiles"]), int(added["numOutputRows"])) == (5, 40)


def test_a_row_that_comes_back_as_it_was_is_a_new_version(lab: Lab) -> None:
    lab.make("warehouses", [(1, "Köln", 5), (2, "Łódź", 6)])
    lab.load(WAREHOUSES)
    lab.sql("delete from tests.warehouses where warehouse_id = 1")
    lab.sql("update tests.warehouses set capacity = 60")
    lab.load(WAREHOUSES)
    assert lab.current(WAREHOUSES, "warehouse_id") == [(2,)]
    lab.insert("warehouses", [(1, "Köln", 5)])
    lab.sql("update tests.warehouses set capacity = 6 where warehouse_id = 2")

    record = lab.load(WAREHOUSES)

    assert (record.loaded, record.deleted) == (2, 0)
    assert lab.current(WAREHOUSES, "warehouse_id", "location", "capacity") == [(1, "Köln", 5), (2, "Łódź", 6)]
    history = lake_reader.read(lab.path("bz_warehouses"), "select * from t where warehouse_id = 1 order by batch_id")
    assert [row["record_status"] for row in history] == ["ACTIVE", "DELETED", "ACTIVE"]


def test_the_latest_version_is_told_by_source_position_and_not_by_load_time(lab: Lab) -> None:
    lab.make("warehouses", [(1, "Köln", 5)])
    lab.load(WAREHOUSES)
    lab.sql("update tests.warehouses set capacity = 6")
    lab.clock.set(2026, 3, 10, 9)
    lab.load(WAREHOUSES)
    rows = lake_reader.read(lab.path("bz_warehouses"), "select * from t order by source_position")
    assert [row["capacity"] for row in rows] == [5, 6]
    assert rows[0]["load_timestamp"] > rows[1]["load_timestamp"]
    assert lab.current(WAREHOUSES, "capacity") == [(6,)]
    assert lab.load(WAREHOUSES).unchanged == 1


def test_a_key_whose_row_is_quarantined_now_is_not_called_deleted(lab: Lab) -> None:
    lab.make("products", [(1, "Lamp", "Home", 5), (2, "Chair", "Home", 7)])
    lab.load(PRODUCTS)
    lab.sql("update tests.products set unit_price = 'NaN' where product_id = 1")
    record = lab.load(PRODUCTS)
    assert (record.quarantined, record.unchanged, record.deleted) == (1, 1, 0)
    assert lab.current(PRODUCTS, "product_id") == [(1,), (2,)]
    lab.sql("update tests.products set unit_price = 5 where product_id = 1")
    assert lab.load(PRODUCTS).unchanged == 2


def test_a_value_that_becomes_null_and_a_null_that_gets_a_value_are_changes(lab: Lab) -> None:
    lab.make("warehouses", [(1, None, 5), (2, "Łódź", 6), (3, "", None)])
    lab.load(WAREHOUSES)
    lab.sql("update tests.warehouses set location = 'Köln' where warehouse_id = 1")
    lab.sql("update tests.warehouses set capacity = null where warehouse_id = 2")
    lab.sql("update tests.warehouses set location = null where warehouse_id = 3")
    record = lab.load(WAREHOUSES)
    assert (record.loaded, record.unchanged) == (3, 0)
    assert lab.rows(WAREHOUSES, *WAREHOUSES_SHOWN, where="batch_id = '2026-03-10/2'") == [
        (1, "Köln", 5, "ACTIVE", 100),
        (2, "Łódź", None, "ACTIVE", 90),
        (3, None, None, "ACTIVE", 80),
    ]


def test_a_full_comparison_finds_values_that_differ_under_the_same_hash(lab: Lab, spark: SparkSession) -> None:
    lab.make("warehouses", [(1, "Köln", 5), (2, None, 6)], ddl=DDL["warehouses"] + ", floor int")
    lab.load(WAREHOUSES)
    spark.sql(f"update delta.`{lab.path('bz_warehouses')}` set location = 'Bonn' where warehouse_id = 1")
    assert lab.load(WAREHOUSES).unchanged == 2

    record = lab.load(WAREHOUSES, full_compare=True)

    assert (record.loaded, record.unchanged) == (1, 1)
    assert lab.current(WAREHOUSES, "warehouse_id", "location") == [(1, "Köln"), (2, None)]
    # What the hash alone tells is not lost: the declaration does not know this column.
    lab.sql("update tests.warehouses set floor = 3 where warehouse_id = 2")
    assert lab.load(WAREHOUSES, full_compare=True).loaded == 1


# Duplicates


def test_of_rows_with_one_key_the_smallest_hash_stays_in_whatever_order_they_come(lab: Lab) -> None:
    ddl = DDL["warehouses"] + ", turn int default 0"
    pairs = [(key, name, key) for key in range(1, 9) for name in ("Köln", "Łódź")]
    lab.make(
        "warehouses", [pair for pair in pairs if pair[0] % 2] + [pair for pair in reversed(pairs) if not pair[0] % 2]
    )
    staying = "select * from ({}) judged where outcome = 'loaded' order by 1"
    columns = ", ".join(TOLD["bz_warehouses"].columns)
    expected = lab.sql(staying.format(TOLD["bz_warehouses"].judged("tests.warehouses")).replace("*", columns, 1))
    assert {name for _, name, _ in expected} == {"Köln", "Łódź"}, ddl

    record = lab.load(WAREHOUSES)

    assert (record.loaded, record.duplicates) == (8, 8)
    assert lab.rows(WAREHOUSES, "warehouse_id", "location", "capacity") == expected
    lab.sql("create table tests.turned as select * from tests.warehouses order by warehouse_id, location")
    lab.sql("truncate tests.warehouses")
    lab.sql("insert into tests.warehouses select * from tests.turned")
    again = lab.load(WAREHOUSES)
    assert (again.unchanged, again.duplicates, again.loaded) == (8, 8, 0)


def test_of_exact_copies_one_stays_and_a_good_row_stays_beside_a_quarantined_one(lab: Lab) -> None:
    copies = [(1, "Lamp", "Home", 5)] * 3
    lab.make("products", [*copies, (2, "Chair", "Home", "NaN"), (2, "Chair", "Home", 7)])
    record = lab.load(PRODUCTS)
    assert (record.read, record.loaded, record.duplicates, record.quarantined) == (5, 2, 2, 1)
    assert lab.rows(PRODUCTS, "product_id", "unit_price::double") == [(1, 5.0), (2, 7.0)]
    assert set(record.rules["key_unique"].examples) == {"1"}


def test_the_shuffle_for_duplicates_is_skipped_when_an_index_proves_the_key_unique(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    plans = []
    append = Lakehouse.append

    def watched(self: Lakehouse, frame: Any, *args: Any, **kwargs: Any) -> Commit:
        plans.append(frame._jdf.queryExecution().executedPlan().toString())
        return append(self, frame, *args, **kwargs)

    monkeypatch.setattr(Lakehouse, "append", watched)
    lab.make("warehouses", [(1, "Köln", 5)])
    lab.make("products", [(1, "Lamp", "Home", 5)])
    lab.sql("alter table tests.products add primary key (product_id)")
    lab.load(WAREHOUSES)
    lab.load(PRODUCTS)
    assert ["Exchange" in plan for plan in plans] == [True, False]


# Partitions


MARCH_1, MARCH_2, MARCH_3 = (dt.date(2026, 3, day) for day in (1, 2, 3))


def test_a_past_day_of_orders_is_loaded_from_that_days_rows_and_twice_adds_nothing(lab: Lab) -> None:
    dates = (MARCH_1, MARCH_2, MARCH_3, None, "infinity")
    lab.make("orders", [(n, n, dates[n % 5], "NEW") for n in range(1, 21)])
    expected = lab.sql("select * from tests.orders where order_date = '2026-03-02' order by 1")

    record = lab.load(ORDERS, "2026-03-02")

    assert len(expected) == 4
    assert lab.rows(ORDERS, "order_id", "customer_id", "order_date", "order_status") == sorted(expected, key=repr)
    assert (record.read, record.loaded, record.batch_id) == (4, 4, "2026-03-02/1")
    again = lab.load(ORDERS, "2026-03-02")
    assert (again.read, again.unchanged, again.loaded, again.deleted) == (4, 4, 0, 0)
    assert [row["operation_type"] for row in lab.audit()] == ["snapshot load, order_date = 2026-03-02"] * 2
    assert lab.load(ORDERS).loaded == len(
        lab.sql(
            "select 1 from tests.orders where order_date <> '2026-03-02' and isfinite(order_date) or order_date is null"
        )
    )


def test_a_key_that_left_its_day_is_deleted_only_if_it_is_gone_from_every_day(lab: Lab) -> None:
    lab.make("orders", [(n, n, MARCH_2, "NEW") for n in range(1, 7)] + [(7, 7, MARCH_1, "NEW")])
    lab.load(ORDERS)
    lab.sql("update tests.orders set order_date = '2026-03-03' where order_id = 1")
    lab.sql("update tests.orders set order_date = 'infinity' where order_id = 2")
    lab.sql("delete from tests.orders where order_id in (3, 7)")
    lab.sql("update tests.orders set order_status = 'PAID' where order_id = 4")

    record = lab.load(ORDERS, "2026-03-02")

    assert (record.read, record.loaded, record.unchanged, record.deleted) == (3, 1, 2, 1)
    added = lab.rows(ORDERS, "order_id", "order_status", "record_status", where="batch_id = '2026-03-02/1'")
    assert added == [(3, None, "DELETED"), (4, "PAID", "ACTIVE")]
    assert lab.load(ORDERS, "2026-03-02").deleted == 0
    # The other days bring the rest.
    assert lab.load(ORDERS, "2026-03-03").loaded == 1
    assert lab.load(ORDERS, "2026-03-01").deleted == 1
    assert lab.current(ORDERS, "order_id", "order_date") == [
        (1, MARCH_3),
        (2, MARCH_2),
        *((n, MARCH_2) for n in (4, 5, 6)),
    ]


class Visits(pa.DataFrameModel):
    visit: T.StringType = column(key=True, description="Identifies a visit, in letters.")
    day: T.DateType = column(description="Day of the visit.")


VISITS = BronzeTable("inventory_bronze", "tests.Visits", Visits, Cadence.DAILY, "Visits.", event_date="day")


def test_a_past_day_is_compared_by_keys_of_text_too(lab: Lab) -> None:
    lab.make("visits", [("it's", MARCH_2), ("Ö", MARCH_2), ("z", MARCH_2)], ddl="visit text, day date")
    lab.load(VISITS)
    lab.sql("delete from tests.visits where visit = 'it''s'")
    lab.sql("update tests.visits set day = %s where visit = 'Ö'", MARCH_3)
    record = lab.load(VISITS, "2026-03-02")
    assert (record.unchanged, record.deleted) == (1, 1)
    assert lab.rows(VISITS, "visit", where="record_status = 'DELETED'") == [("it's",)]


def test_a_past_window_of_a_table_without_event_date_is_refused_by_name(lab: Lab) -> None:
    lab.make("warehouses", [(1, "Köln", 5)])
    with pytest.raises(PartitionRefused) as refused:
        lab.load(WAREHOUSES, "2026-03-09")
    assert not refused.value.retryable
    assert "bz_warehouses: partition 2026-03-09 has passed" in str(refused.value)
    assert "current partition, 2026-03-10" in refused.value.fix
    assert not lake_reader.is_table(lab.path("bz_warehouses"))
    (row,) = lab.audit()
    assert (row["status"], row["error_message"], row["batch_id"]) == ("FAILED", str(refused.value), None)


@pytest.mark.parametrize("partition", ["2026-03-11", "10.3.2026", "2026-03-10-12:00", "2026-02-30", ""])
def test_a_future_or_malformed_partition_is_refused(lab: Lab, partition: str) -> None:
    with pytest.raises(PartitionRefused, match=TODAY):
        lab.load(ORDERS, partition)


def test_an_hourly_table_loads_the_hour_in_progress_alone(lab: Lab) -> None:
    lab.make("stock_levels", [(1, 1, 1, 10, 5), (2, 1, 2, -3, 5)])
    assert lab.load(STOCK_LEVELS, "2026-03-10-12:00").loaded == 2
    lab.clock.set(2026, 3, 10, 12, 59, 59)
    assert lab.load(STOCK_LEVELS, "2026-03-10-12:00").batch_id == "2026-03-10-12:00/2"
    lab.clock.set(2026, 3, 10, 13)
    with pytest.raises(PartitionRefused, match="2026-03-10-13:00"):
        lab.load(STOCK_LEVELS, "2026-03-10-12:00")
    with pytest.raises(PartitionRefused, match="future"):
        lab.load(STOCK_LEVELS, "2026-03-10-14:00")
    with pytest.raises(PartitionRefused, match="is not a partition"):
        lab.load(STOCK_LEVELS, TODAY)


def test_a_table_whose_turn_comes_after_midnight_belongs_to_the_day_of_the_runs_snapshot(lab: Lab) -> None:
    yesterdays = [(1, 1, dt.date(2026, 3, 1), "new"), (2, 1, dt.date(2026, 3, 9), "new")]
    lab.make("orders", yesterdays)
    lab.make("warehouses", [(1, "Köln", 5)])
    lab.make("stock_levels", [(1, 1, 1, 5, 1)])
    bench = Workbench(lab.settings, clock=lab.clock)
    lab.clock.set(2026, 3, 10, 23, 59)
    load(WAREHOUSES, TODAY, bench, Run("a run", "schedule"))
    lab.insert("orders", [(3, 1, dt.date(2026, 3, 10), "after the snapshot")])
    lab.clock.set(2026, 3, 11, 0, 5)

    load(ORDERS, TODAY, bench, Run("a run", "schedule"))
    load(STOCK_LEVELS, "2026-03-10-23:00", bench, Run("a run", "schedule"))
    with pytest.raises(PartitionRefused, match="lies in the future"):
        load(WAREHOUSES, "2026-03-11", bench, Run("a run", "schedule"))
    bench.close()

    assert lab.rows(ORDERS, "order_id", "batch_id") == [(1, f"{TODAY}/1"), (2, f"{TODAY}/1")]
    assert lab.rows(STOCK_LEVELS, "stock_level_id") == [(1,)]
    # A run of its own has a snapshot of today.
    with pytest.raises(PartitionRefused, match="has passed"):
        lab.load(WAREHOUSES, TODAY)


@pytest.mark.parametrize(
    ("zone", "now", "score"),
    [
        ("UTC", (2026, 3, 10, 23, 30), 85),
        ("Europe/Berlin", (2026, 3, 10, 23, 30), 100),
        ("America/New_York", (2026, 3, 11, 2, 0), 85),
    ],
)
def test_an_order_of_today_is_told_from_one_of_tomorrow_in_business_time(
    lab: Lab, zone: str, now: tuple[int, ...], score: int
) -> None:
    lab.settings = dataclasses.replace(lab.settings, business_time_zone=zone)
    lab.clock.set(*now)
    lab.make("orders", [(1, 1, dt.date(2026, 3, 11), "NEW")])
    record = lab.load(ORDERS, f"{dt.date(*now[:3])}")
    assert lab.rows(ORDERS, "data_quality_score") == [(score,)]
    assert record.rules["order_date_not_in_future"].broken == (score < 100)


# Very large tables


def test_the_first_load_of_a_very_large_table_goes_on_where_it_was_stopped(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    lab.settings = dataclasses.replace(lab.settings, range_rows=10)
    lab.make("warehouses", [(key * 3, f"W{key}", key) for key in range(1, 36)] + [(None, "nowhere", 1)] * 2)
    lab.insert("warehouses", [(6, "copy", 1), (-1, "below", 1)])
    lab.sql("analyze tests.warehouses")
    append = Lakehouse.append
    appended: list[Commit] = []

    def second_fails(self: Lakehouse, *args: Any, **kwargs: Any) -> Commit:
        if len(appended) == 1:
            raise OSError("the disk is full")
        appended.append(append(self, *args, **kwargs))
        return appended[-1]

    monkeypatch.setattr(Lakehouse, "append", second_fails)
    with pytest.raises(OSError, match="disk"):
        lab.load(WAREHOUSES)
    monkeypatch.undo()
    after_first_range = lab.rows(WAREHOUSES, "warehouse_id")
    assert 0 < len(after_first_range) < 15

    resumed = lab.load(WAREHOUSES)

    judged = TOLD["bz_warehouses"].judged("tests.warehouses")
    columns = "warehouse_id, location, capacity, hash"
    predicted = lab.sql(f"select {columns} from ({judged}) judged where outcome = 'loaded'")
    assert lab.rows(WAREHOUSES, "warehouse_id", "location", "capacity", "record_hash") == sorted(predicted, key=repr)
    assert resumed.loaded == len(predicted) - len(after_first_range)
    assert {row["rows_in_batch"] for row in lab.quarantine(WAREHOUSES)} == {1, 2}
    events = lab.events(WAREHOUSES)
    assert [batch for batch, event in events if event == "done"] == [f"{TODAY}/{n}" for n in (1, 3, 4, 5)]
    assert [batch for batch, event in events if event == "failed"] == [f"{TODAY}/2"]
    # From then on it is one snapshot like any other, and notices what is gone.
    lab.sql("delete from tests.warehouses where warehouse_id = 9")
    later = lab.load(WAREHOUSES)
    assert (later.scope, later.read, later.loaded, later.deleted) == ("full", 38, 0, 1)


# New columns


def test_a_new_column_joins_with_its_own_type_and_leaves_rows_alone_while_it_is_null(lab: Lab) -> None:
    lab.make("warehouses", [(1, "Köln", 5), (2, "Łódź", 6)])
    lab.load(WAREHOUSES)
    lab.sql('alter table tests.warehouses add column "Opened On" date')
    assert lab.load(WAREHOUSES).unchanged == 2
    lab.sql("update tests.warehouses set \"Opened On\" = '2020-02-29' where warehouse_id = 2")

    record = lab.load(WAREHOUSES)

    assert (record.loaded, record.unchanged, record.new_columns, record.unclassified) == (1, 1, ("opened_on",), ())
    assert lake_reader.column_types(lab.path("bz_warehouses"))["opened_on"] == "date"
    assert lab.rows(WAREHOUSES, "warehouse_id", "opened_on") == [(1, None), (2, None), (2, dt.date(2020, 2, 29))]
    name, days = "opened_on", (dt.date(2020, 2, 29) - dt.date(1970, 1, 1)).days
    text = f"2,{len('Łódź'.encode())},6,Łódź,{len(name)}:{name}{len(str(days))}:{days}"
    ((expected,),) = lab.sql("select md5(%s)", text)
    assert lab.rows(WAREHOUSES, "record_hash", where="opened_on is not null") == [(expected,)]


class ClassifiedCustomers(pa.DataFrameModel):
    customer_id: T.IntegerType = column(key=True, gt=0, description="Identifies a customer.")
    customer_name: T.StringType = column(pii=Pii.HIGH, description="Full name.")
    email: T.StringType = column(pii=Pii.HIGH, description="Address.")
    nickname: T.StringType = column(pii=Pii.HIGH, added=True, description="What friends say.")
    pager: T.StringType = column(pii=Pii.MEDIUM, added=True, description="Number of the pager.")
    points: T.IntegerType = column(added=True, description="Points collected.")
    since: T.DateType = column(pii=Pii.LOW, added=True, description="First order.")


CUSTOMER_COLUMNS = DDL["customers"] + ", nickname text, pager text, points int, since date"


def classified_customers(**changed: T.DataType) -> BronzeTable:
    """The customers with all columns declared, some with another type."""
    declared = {name: column(added=True, description="-") for name in changed}
    model = type("Others", (ClassifiedCustomers,), {"__annotations__": changed, **declared})
    return dataclasses.replace(CUSTOMERS, model=model if changed else ClassifiedCustomers)


def test_new_columns_of_a_table_with_personal_data_are_sealed(lab: Lab) -> None:
    lab.make(
        "customers",
        [
            (1, "Ada", "a@example.org", "secret Ä", "0171", 5, "2020-02-29"),
            (2, "Eve", "e@example.org", None, None, None, None),
            (-1, "Bo", "b@example.org", "secret 2", "0172", 6, "infinity"),
        ],
        ddl=CUSTOMER_COLUMNS,
    )
    new = ("nickname", "pager", "points", "since")
    record = lab.load(CUSTOMERS)
    assert (record.new_columns, record.unclassified, record.loaded, record.quarantined) == (new, new, 2, 1)
    types = lake_reader.column_types(lab.path("bz_customers"))
    assert {types[name] for name in new} == {"string"}
    keys = Keys(lab.settings, CUSTOMERS.schema, CUSTOMERS.name)
    (ada,) = lab.rows(CUSTOMERS, *new, where="customer_id = 1")
    opened = [keys.open(text, name, "1") for name, text in zip(new, ada, strict=True)]
    assert opened == ["secret Ä", "0171", "5", "2020-02-29"]
    assert lab.rows(CUSTOMERS, *new, where="customer_id = 2") == [(None, None, None, None)]
    bad = lab.quarantine(CUSTOMERS)[0]
    assert not {"secret", "0172", "infinity"} & set(re.findall(r"\w+", bad["raw_row"] + str(bad["reasons"])))
    raw = json.loads(bad["raw_row"])
    assert [keys.open(raw[name], name, "-1") for name in ("nickname", "since")] == ["secret 2", "infinity"]

    (verdict,) = [v for v in audit.verdicts(CUSTOMERS, record) if v.name == "classified"]
    assert (verdict.passed, verdict.severity, verdict.count) == (False, "WARN", 4)
    assert verdict.details == {"unclassified": list(new)}

    again = lab.load(CUSTOMERS)
    assert (again.unchanged, again.unclassified) == (2, new)
    lab.sql("update tests.customers set points = 7 where customer_id = 2")
    assert lab.load(CUSTOMERS).loaded == 1
    ((seven,),) = lab.rows(CUSTOMERS, "points", where="customer_id = 2 and points is not null")
    assert keys.open(seven, "points", "2") == "7"


def test_a_column_that_joined_as_declared_is_left_alone_beside_one_that_was_sealed(lab: Lab) -> None:
    class Joined(pa.DataFrameModel):
        customer_id: T.IntegerType = column(key=True, gt=0, description="Identifies a customer.")
        customer_name: T.StringType = column(pii=Pii.HIGH, description="Full name.")
        email: T.StringType = column(pii=Pii.HIGH, description="Address.")
        colour: T.StringType = column(added=True, description="-")

    class Both(Joined):
        points: T.IntegerType = column(added=True, description="-")

    lab.make(
        "customers", [(1, "Ada", "a@example.org", "no base64!", 5)], ddl=DDL["customers"] + ", colour text, points int"
    )
    lab.load(dataclasses.replace(CUSTOMERS, model=Joined))
    events = lab.settings.lake / CUSTOMERS.schema / "bz_schema_versions"
    assert not lake_reader.is_table(events)
    lab.load(dataclasses.replace(CUSTOMERS, model=Both))
    assert lab.rows(CUSTOMERS, "colour", "points", where="batch_id like '%/1'") == [("no base64!", 5)]


def test_what_was_sealed_becomes_what_it_is_declared_as(lab: Lab) -> None:
    rows = [(n, f"N{n}", f"{n}@example.org", f"nick {n}", f"017{n % 2}", n * 5, f"2020-02-{n:02}") for n in (1, 2, 3)]
    lab.make("customers", [*rows, (4, "Quiet", "q@example.org", *[None] * 4)], ddl=CUSTOMER_COLUMNS)
    lab.load(CUSTOMERS)
    before = dict(lab.rows(CUSTOMERS, "customer_id", "nickname"))
    kept = ("customer_id", "customer_name", "email", "load_timestamp", "batch_id", "record_hash", "source_position")
    untouched = sorted(lab.rows(CUSTOMERS, *kept))

    wrong = classified_customers(pager=T.DateType())
    error = expect_failure(lab, wrong, LoadRefused)
    assert "3 values of 'pager', sealed before it was declared, are no date" in error.culprit
    assert dict(lab.rows(CUSTOMERS, "customer_id", "nickname")) == before

    table = classified_customers()
    lab.sql("update tests.customers set points = 100 where customer_id = 3")
    record = lab.load(table)
    assert record.unclassified == ()
    types = lake_reader.column_types(lab.path("bz_customers"))
    assert [types[name] for name in ("nickname", "pager", "points", "since")] == ["string", "string", "integer", "date"]
    keys = Keys(lab.settings, CUSTOMERS.schema, CUSTOMERS.name)
    first = lab.rows(table, *kept, where="batch_id like '%/1'")
    assert sorted(first) == untouched
    tokens = {n: "tok:" + keys.hmac("token", f"017{n % 2}") for n in (1, 2, 3)}
    columns = ("customer_id", "nickname", "pager", "points", "since")
    assert sorted(lab.rows(table, *columns, where="batch_id like '%/1'")) == [
        *((n, before[n], tokens[n], n * 5, dt.date(2020, 2, n)) for n in (1, 2, 3)),
        (4, None, None, None, None),
    ]
    vault = lake_reader.read(lab.settings.lake / CUSTOMERS.schema / "bz_token_vault")
    assert {(row["token"], row["subject"]) for row in vault} == {(tokens[n], f"bz_customers/{n}") for n in tokens}
    assert lab.rows(table, "points", where="customer_id = 3 and batch_id not like '%/1'") == [(100,)]
    # A value that is no longer hidden is hashed as it is: rows that have one get a version, once.
    assert (record.loaded, record.unchanged) == (3, 1)
    version = lake_reader.version(lab.path("bz_customers"))
    assert lab.load(table).unchanged == 4
    # The load's own commit, and no second rewriting.
    assert lake_reader.version(lab.path("bz_customers")) == version + 1


def test_a_new_column_with_the_name_of_a_metadata_column_stops_the_load(lab: Lab) -> None:
    lab.make("warehouses", [(1, "Köln", 5, "mine")], ddl=DDL["warehouses"] + ', "Batch_ID" text')
    error = expect_failure(lab, WAREHOUSES, SchemaMismatch)
    assert "'Batch_ID'" in error.culprit


# Limits and dry runs


def test_a_dry_run_counts_what_a_load_would_do_and_writes_nothing_at_all(lab: Lab) -> None:
    lab.make("products", [(1, "Lamp", "Home", 5), (2, "Chair", "Home", 7), (None, "Vase", "Home", 1)])
    dry = lab.load(PRODUCTS, dry_run=True)
    assert (dry.dry_run, dry.read, dry.loaded, dry.quarantined) == (True, 3, 2, 1)
    assert not lab.settings.lake.exists()
    lab.load(PRODUCTS)
    lab.sql("delete from tests.products where product_id = 1")
    lab.sql("update tests.products set unit_price = 8 where product_id = 2")
    before = lake_reader.listing(lab.settings.lake)

    dry = lab.load(PRODUCTS, dry_run=True)

    assert lake_reader.listing(lab.settings.lake) == before
    real = lab.load(PRODUCTS)
    counts = ("read", "loaded", "quarantined", "duplicates", "unchanged", "deleted", "score_sum", "nulls", "rules")
    assert [getattr(dry, name) for name in counts] == [getattr(real, name) for name in counts]
    assert (real.loaded, real.deleted) == (1, 1)


def test_more_rows_than_max_rows_are_refused_before_anything_is_written(lab: Lab) -> None:
    lab.make("orders", [(n, n, MARCH_2 if n < 3 else MARCH_1, "NEW") for n in range(1, 6)])
    with pytest.raises(LoadRefused, match="5 rows, more than max_rows = 4"):
        lab.load(ORDERS, max_rows=4)
    assert not lake_reader.is_table(lab.path("bz_orders"))
    assert [row["status"] for row in lab.audit()] == ["FAILED"]
    # Counted is what the batch would read.
    assert lab.load(ORDERS, "2026-03-02", max_rows=2).loaded == 2


# Errors


def expect_failure(lab: Lab, table: BronzeTable, error: type[BronzeError]) -> BronzeError:
    """That loading raises the error, leaves a FAILED audit row of the same words and touches no row."""
    before = lab.rows(table, "*") if lake_reader.is_table(lab.path(table.name)) else None
    with pytest.raises(error) as raised:
        lab.load(table)
    after = lab.rows(table, "*") if lake_reader.is_table(lab.path(table.name)) else None
    assert after == before
    row = lab.audit()[-1]
    assert (row["status"], row["error_message"], row["table_name"]) == ("FAILED", str(raised.value), table.name)
    assert (row["record_count"], row["error_count"], row["pipeline_run_id"]) == (0, 1, f"run-{lab.runs}")
    assert raised.value.fix
    return raised.value


@pytest.mark.parametrize(
    ("change", "culprit"),
    [
        ("drop column capacity", "column 'capacity' is missing (expected int)"),
        ("alter column capacity type text", "column 'capacity': expected int, found text"),
        ("alter column capacity type bigint", "column 'capacity': expected int, found int8"),
        ("rename column location to place", "column 'location' is missing (expected string)"),
    ],
)
def test_a_column_missing_or_of_another_type_stops_the_load_before_anything_is_written(
    lab: Lab, change: str, culprit: str
) -> None:
    lab.make("warehouses", [(1, "Köln", 5)])
    lab.sql(f"alter table tests.warehouses {change}")
    error = expect_failure(lab, WAREHOUSES, SchemaMismatch)
    assert culprit in error.culprit
    assert not error.retryable
    assert not lake_reader.is_table(lab.path("bz_warehouses"))
    assert not lake_reader.is_table(lab.path("bz_batches"))


def test_a_table_that_is_not_at_the_source_is_named(lab: Lab) -> None:
    error = expect_failure(lab, WAREHOUSES, SourceRefused)
    assert "no table tests.Warehouses" in error.culprit
    assert error.table == "bz_warehouses"
    assert not error.retryable


def test_a_refused_password_is_not_retried_and_not_shown(lab: Lab) -> None:
    parts = urlsplit(lab.settings.source_url)
    wrong = parts._replace(netloc=f"{parts.username}:hunter2-wrong@{parts.hostname}:{parts.port}").geturl()
    lab.settings = dataclasses.replace(lab.settings, source_url=wrong)
    error = expect_failure(lab, WAREHOUSES, SourceRefused)
    assert not error.retryable
    assert "password authentication failed" in str(error)
    assert "hunter2" not in str(error)


def test_a_source_that_does_not_answer_is_worth_a_retry(lab: Lab) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        url = f"postgresql://bronze:hunter2@127.0.0.1:{taken.getsockname()[1]}/DE"
        lab.settings = dataclasses.replace(lab.settings, source_url=url)
        error = expect_failure(lab, WAREHOUSES, SourceUnreachable)
    assert error.retryable
    assert "hunter2" not in str(error)


def test_a_lake_that_cannot_be_written_is_named(lab: Lab) -> None:
    lab.make("warehouses", [(1, "Köln", 5)])
    lab.settings.lake.parent.mkdir(parents=True)
    lab.settings.lake.write_text("a file where the folder should be")
    with pytest.raises(LakeError, match=re.escape(str(lab.settings.lake))) as raised:
        lab.load(WAREHOUSES)
    assert (raised.value.table, raised.value.retryable) == ("bz_warehouses", False)
    assert "BRONZE_LAKE" in raised.value.fix
    assert lab.settings.lake.read_text() == "a file where the folder should be"


def test_the_audit_row_of_a_failed_read_holds_no_value_of_a_row(lab: Lab) -> None:
    lab.make("people", [(1, "Jane Doe", "x")], ddl="warehouse_id int, location text, capacity text")
    lab.sql(
        "create view tests.warehouses as select warehouse_id, location, location::int as capacity from tests.people"
    )
    with pytest.raises(Py4JJavaError, match="Jane Doe"):
        lab.load(WAREHOUSES)
    (row,) = lab.audit()
    assert row["status"] == "FAILED"
    assert row["error_message"]
    assert "Jane" not in repr(lab.audit())
    assert "Jane" not in repr(lake_reader.read(lab.path("bz_batches")))
    assert lab.rows(WAREHOUSES, "*") == []


def test_a_failed_batch_is_closed_and_the_next_load_does_without_its_number(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    lab.make("warehouses", [(1, "Köln", 5)])

    def fails(*args: Any, **kwargs: Any) -> int:
        raise OSError("no")

    monkeypatch.setattr(Lakehouse, "append", fails)
    with pytest.raises(OSError, match="no"):
        lab.load(WAREHOUSES)
    monkeypatch.undo()
    assert lab.load(WAREHOUSES).batch_id == f"{TODAY}/2"
    assert [(row["batch_id"], row["status"]) for row in lab.audit()] == [
        (f"{TODAY}/1", "FAILED"),
        (f"{TODAY}/2", "SUCCESS"),
    ]


# Interrupted, overtaken, restored


def once(monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, error: Exception) -> None:
    """Let the function fail, the first time that it is called."""
    real = getattr(owner, name)

    def failing(*args: Any, **kwargs: Any) -> Any:
        monkeypatch.setattr(owner, name, real)
        raise error

    monkeypatch.setattr(owner, name, failing)


def test_a_batch_stopped_after_its_rows_landed_is_done_again_from_the_source_as_it_is_then(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    lab.make("products", [(1, "Lamp", "Home", 5), (2, "Chair", "Home", 7), (3, "Vase", "Home", "NaN")])
    once(monkeypatch, Lakehouse, "quarantine", OSError("the disk is full"))
    with pytest.raises(OSError, match="disk"):
        lab.load(PRODUCTS)
    assert len(lab.rows(PRODUCTS, "*")) == 2
    lab.sql("update tests.products set category = 'Garden' where product_id = 1")
    lab.sql("delete from tests.products where product_id = 2")

    record = lab.load(PRODUCTS)

    # The batch's own rows are no history to compare with: nothing is unchanged, nothing is gone.
    assert (record.loaded, record.unchanged, record.deleted, record.quarantined) == (1, 0, 0, 1)
    assert (record.batch_id, record.resumed) == (f"{TODAY}/1", True)
    assert lab.rows(PRODUCTS, "product_id", "category", "batch_id") == [(1, "Garden", f"{TODAY}/1")]
    assert [row["batch_id"] for row in lab.quarantine(PRODUCTS)] == [f"{TODAY}/1"]
    assert [row["status"] for row in lab.audit()] == ["FAILED", "SUCCESS"]


def test_a_quarantine_that_does_not_hold_what_was_counted_is_an_error_and_is_filled_anew(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    lab.make("products", [(1, "Lamp", "Home", 5), (9, "Sofa", "Home", "NaN")])
    lab.load(PRODUCTS)
    lab.insert("products", [(2, "Chair", "Home", "NaN"), (3, "Table", "Home", "NaN"), (4, "Desk", "Home", "NaN")])
    quarantine = Lakehouse.quarantine

    def loses_one(self: Lakehouse, rows: Any, *args: Any) -> None:
        monkeypatch.setattr(Lakehouse, "quarantine", quarantine)
        quarantine(self, rows.where("row_key <> '4'"), *args)

    monkeypatch.setattr(Lakehouse, "quarantine", loses_one)
    with pytest.raises(ConservationError, match="counted 4 rows for the quarantine, which holds 3"):
        lab.load(PRODUCTS)
    assert lab.audit()[-1]["status"] == "FAILED"
    lab.sql("update tests.products set unit_price = 7 where product_id = 2")

    record = lab.load(PRODUCTS)

    assert (record.batch_id, record.loaded, record.unchanged, record.quarantined) == (f"{TODAY}/2", 1, 1, 3)
    assert lab.rows(PRODUCTS, "product_id") == [(1,), (2,)]
    held = {row["row_key"]: (row["batch_id"], row["sightings"]) for row in lab.quarantine(PRODUCTS)}
    assert held == {"9": (f"{TODAY}/1", 2), "3": (f"{TODAY}/2", 1), "4": (f"{TODAY}/2", 1)}
    assert [row["status"] for row in lab.audit()] == ["SUCCESS", "FAILED", "SUCCESS"]


def test_a_load_whose_base_was_overtaken_writes_nothing_and_may_start_again(
    lab: Lab, monkeypatch: pytest.MonkeyPatch, spark: SparkSession
) -> None:
    lab.make("warehouses", [(1, "Köln", 5)])
    lab.load(WAREHOUSES)
    lab.insert("warehouses", [(2, "Łódź", 6)])
    append = Lakehouse.append

    def overtaken(self: Lakehouse, frame: Any, table: BronzeTable, batch_id: str, **kwargs: Any) -> Commit:
        monkeypatch.setattr(Lakehouse, "append", append)
        append(self, frame, table, "2026-03-10/9", **kwargs)
        return append(self, frame, table, batch_id, **kwargs)

    monkeypatch.setattr(Lakehouse, "append", overtaken)
    with pytest.raises(StaleBase, match="nothing was written") as stale:
        lab.load(WAREHOUSES)
    assert stale.value.retryable
    assert len(lab.rows(WAREHOUSES, "*")) == 2
    assert lab.load(WAREHOUSES).unchanged == 2


def test_a_stale_base_is_noticed_though_an_optimise_came_between(lab: Lab, spark: SparkSession) -> None:
    lab.make("warehouses", [(1, "Köln", 5)])
    lab.load(WAREHOUSES)
    lab.insert("warehouses", [(2, "Łódź", 6)])
    lab.load(WAREHOUSES)
    path = lab.path("bz_warehouses")
    lake = Lakehouse(lab.settings.lake)
    rows = lake.read(spark, WAREHOUSES.schema, WAREHOUSES.name).where("warehouse_id = 1")
    slow = lake.version(WAREHOUSES.schema, WAREHOUSES.name)
    spark.sql(f"optimize delta.`{path}`")
    later = lake.version(WAREHOUSES.schema, WAREHOUSES.name)
    assert later > slow
    # The slower load commits first, and above the base of the later one.
    lake.append(rows, WAREHOUSES, "slow", base=slow)
    with pytest.raises(StaleBase):
        lake.append(rows, WAREHOUSES, "later", base=later)
    assert lab.rows(WAREHOUSES, "warehouse_id") == [(1,), (1,), (2,)]


def test_of_two_loads_that_commit_while_both_write_one_lands(
    lab: Lab, source_url: str, monkeypatch: pytest.MonkeyPatch, spark: SparkSession
) -> None:
    lab.make("warehouses", [(1, "Köln", 5)])
    lab.load(WAREHOUSES)
    lab.insert("warehouses", [(2, "Łódź", 6)])
    lake = Lakehouse(lab.settings.lake)
    base = lake.version(WAREHOUSES.schema, WAREHOUSES.name)
    append = Lakehouse.append

    lab.sql("alter table tests.warehouses rename to shelf")
    lab.sql(
        "create view tests.warehouses as select * from tests.shelf"
        " where case when pg_advisory_lock_shared(7) is not null then pg_advisory_unlock_shared(7) end"
    )

    with postgres.connect(source_url) as other, other.cursor() as locker, ThreadPoolExecutor() as pool:

        def held_up(self: Lakehouse, *args: Any, **kwargs: Any) -> Commit:
            # The load's own read waits for this lock: its Delta transaction stays open until it is released.
            locker.execute("select pg_advisory_lock(7)")
            return append(self, *args, **kwargs)

        monkeypatch.setattr(Lakehouse, "append", held_up)
        loading = pool.submit(lab.load, WAREHOUSES)
        try:
            while not lab.sql("select 1 from pg_locks where not granted"):
                assert not loading.done(), loading.result()
            rows = lake.read(spark, WAREHOUSES.schema, WAREHOUSES.name)
            append(lake, rows, WAREHOUSES, "intruder", base=base)
        finally:
            locker.execute("select pg_advisory_unlock_all()")
        with pytest.raises(StaleBase):
            loading.result()
    assert lab.rows(WAREHOUSES, "warehouse_id") == [(1,), (1,)]


def test_a_table_restored_to_an_older_version_is_brought_up_to_date_again(lab: Lab, spark: SparkSession) -> None:
    lab.make("warehouses", [(1, "Köln", 5)])
    lab.load(WAREHOUSES)
    path = lab.path("bz_warehouses")
    version = Lakehouse(lab.settings.lake).version(WAREHOUSES.schema, WAREHOUSES.name)
    lab.sql("update tests.warehouses set capacity = 6")
    lab.insert("warehouses", [(2, "Łódź", 6)])
    lab.load(WAREHOUSES)
    spark.sql(f"optimize delta.`{path}`")
    assert lab.load(WAREHOUSES).unchanged == 2
    spark.sql(f"restore table delta.`{path}` to version as of {version}")
    assert lab.rows(WAREHOUSES, "warehouse_id") == [(1,)]

    record = lab.load(WAREHOUSES)

    assert (record.loaded, record.batch_id) == (2, f"{TODAY}/4")
    assert lab.current(WAREHOUSES, "warehouse_id", "capacity") == [(1, 6), (2, 6)]
    assert lab.load(WAREHOUSES).unchanged == 2


def test_rows_of_another_server_come_after_those_of_the_one_before_though_its_log_is_shorter(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    lab.make("warehouses", [(1, "Köln", 5), (2, "Łódź", 6), (3, "Malmö", 7)])
    lab.load(WAREHOUSES)
    lab.sql("update tests.warehouses set capacity = 50 where warehouse_id = 1")
    lab.sql("delete from tests.warehouses where warehouse_id = 2")
    opened = Snapshot.__init__

    def elsewhere(self: Snapshot, *args: Any, **options: Any) -> None:
        opened(self, *args, **options)
        self.epoch, self.lsn = "7000000000000000000/1", 17

    monkeypatch.setattr(Snapshot, "__init__", elsewhere)
    record = lab.load(WAREHOUSES)
    assert (record.loaded, record.unchanged, record.deleted) == (1, 1, 1)
    assert lab.current(WAREHOUSES, "warehouse_id", "capacity") == [(1, 50), (3, 7)]
    assert lab.load(WAREHOUSES).unchanged == 2
    assert (
        lab.rows(WAREHOUSES, "source_position", where="batch_id = '2026-03-10/2'")
        == [("0002/0000000000000011/0000000000",)] * 2
    )


# Two at once


def test_a_table_that_another_load_holds_is_refused_by_name(lab: Lab) -> None:
    lab.settings = dataclasses.replace(lab.settings, lease_seconds=3)
    lab.make("warehouses", [(1, "Köln", 5)])
    lab.make("products", [(1, "Lamp", "Home", 5)])
    with lease(Lakehouse(lab.settings.lake), WAREHOUSES.schema, WAREHOUSES.name, "run-of-another", 3):
        error = expect_failure(lab, WAREHOUSES, TableBusy)
        assert f"run run-of-another on {socket.gethostname()}" in error.culprit
        # Other tables are free.
        assert lab.load(PRODUCTS).loaded == 1
    assert lab.load(WAREHOUSES).loaded == 1


HOLDER = """
import socket, sys, time
from pathlib import Path
from bronze_assets.leases import lease
from bronze_assets.catalog.inventory import TABLES
from bronze_assets.lakehouse import Lakehouse

if sys.argv[2]:
    socket.gethostname = lambda: sys.argv[2]
(table,) = [table for table in TABLES if table.name == "bz_warehouses"]
with lease(Lakehouse(Path(sys.argv[1])), table.schema, table.name, "killed", 600):
    print("held", flush=True)
    time.sleep(600)
"""


@pytest.mark.parametrize("host", ["", "another-machine"])
def test_a_holder_that_is_dead_is_succeeded(lab: Lab, host: str) -> None:
    lab.settings = dataclasses.replace(lab.settings, lease_seconds=2)
    lab.make("warehouses", [(1, "Köln", 5)])
    command = [sys.executable, "-c", HOLDER, str(lab.settings.lake), host]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=CHECKOUT) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        holder.kill()
    assert lab.load(WAREHOUSES).loaded == 1


# Memory


def test_no_more_than_one_row_ever_reaches_the_driver(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    from pyspark.sql.classic.dataframe import DataFrame

    collect = DataFrame.collect
    sizes = []

    def watched(self: DataFrame) -> Any:
        rows = collect(self)
        sizes.append(len(rows))
        return rows

    def forbidden(*args: Any, **kwargs: Any) -> Any:
        raise AssertionError("a table was collected")

    monkeypatch.setattr(DataFrame, "collect", watched)
    for name in ("toPandas", "toArrow", "toLocalIterator", "tail"):
        monkeypatch.setattr(DataFrame, name, forbidden)
    lab.make("orders", [(n, n, MARCH_2, "NEW") for n in range(1, 21)] + [(-1, 1, MARCH_2, "NEW"), (1, 1, MARCH_2, "X")])
    lab.load(ORDERS)
    lab.sql("delete from tests.orders where order_id in (3, 4, 5)")
    lab.load(ORDERS, "2026-03-02")
    lab.load(ORDERS)
    assert len(lab.rows(ORDERS, "*")) == 23
    assert max(sizes, default=0) <= 1
