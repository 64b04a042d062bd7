"""From a commit in PostgreSQL to row versions in bronze: capture, landing files and load, nothing replaced."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from bronze_assets.capture import Capture
from bronze_assets.catalog.inventory import TABLES
from bronze_assets.load import load
from bronze_assets.settings import CaptureMode, Settings
from bronze_assets.workbench import Options, Run, Workbench, current_partition
from bronze_assets_tests import lake_reader

if TYPE_CHECKING:
    from psycopg2.extensions import connection as Connection
    from pyspark.sql import SparkSession

    from bronze_assets.audit import LoadRecord

PRODUCTS = next(table for table in TABLES if table.name == "bz_products")
LIVE = (
    "select product_id, product_name, category from (select *, row_number() over (partition by product_id"
    " order by source_position desc) as n from t) v where n = 1 and record_status = 'ACTIVE' order by 1"
)
RUN = Run("test", "manual")
LONG = 20_000


class Shop:
    """A products table at the source, its capture, and its bronze table."""

    def __init__(self, bench: Workbench, source: Connection) -> None:
        self.bench = bench
        self.source = source
        self.capture = Capture(bench.settings.source_url, bench.settings.landing, [PRODUCTS])

    def sql(self, *statements: str) -> None:
        with self.source.cursor() as cursor:
            for statement in statements:
                cursor.execute(statement)

    def rows(self) -> list[tuple[Any, ...]]:
        with self.source.cursor() as cursor:
            cursor.execute("select product_id, product_name, category from tests.products order by 1")
            return list(cursor.fetchall())

    def load(self, options: Options = Options()) -> LoadRecord:
        self.bench.close()
        partition = current_partition(PRODUCTS.cadence, self.bench.clock())
        return load(PRODUCTS, partition, self.bench, RUN, options)

    def bronze(self, query: str = LIVE) -> list[tuple[Any, ...]]:
        found = lake_reader.read(self.bench.settings.lake / PRODUCTS.schema / PRODUCTS.name, query)
        return [tuple(row.values()) for row in found]

    def versions(self) -> list[tuple[Any, ...]]:
        """Key, name, status and whether there is a hash, of every row version in source order."""
        return self.bronze(
            "select product_id, product_name, record_status, record_hash is not null from t"
            " order by source_position, product_id"
        )


@pytest.fixture
def shop(spark: SparkSession, settings: Settings, source_url: str, source: Connection) -> Iterator[Shop]:
    with source.cursor() as cursor:
        cursor.execute(
            "create schema tests; create table tests.products (product_id int primary key, product_name text,"
            " category text, unit_price numeric(12,2)); alter table tests.products alter product_name"
            " set storage external; insert into tests.products values (1, 'one', 'a', 1.50), (2, 'two', 'b', 2.50),"
            " (3, 'three', 'c', 3.50)"
        )
    with Workbench.open(dataclasses.replace(settings, capture=CaptureMode.BUILTIN)) as bench:
        shop = Shop(bench, source)
        try:
            shop.capture.drain()
            yield shop
        finally:
            shop.capture.drop()


def test_an_insert_an_update_and_a_delete_are_three_row_versions(shop: Shop) -> None:
    first = shop.load()
    assert (first.read, first.loaded, first.files) == (3, 3, 0)
    shop.sql(
        "insert into tests.products values (4, 'vier ✓', 'd', 4.00)",
        "update tests.products set product_name = 'ONE' where product_id = 1",
        "delete from tests.products where product_id = 2",
    )
    shop.capture.drain()

    record = shop.load()

    assert (record.files, record.read, record.loaded, record.deleted) == (1, 2, 2, 1)
    assert shop.versions()[3:] == [
        (4, "vier ✓", "ACTIVE", True),
        (1, "ONE", "ACTIVE", True),
        (2, None, "DELETED", False),
    ]
    assert shop.bronze() == shop.rows()
    again = shop.load()
    assert (again.batch_id, again.read) == ("", 0)
    assert len(shop.versions()) == 6


def test_the_same_file_written_again_after_a_crash_is_loaded_once(shop: Shop) -> None:
    shop.load()
    shop.sql("update tests.products set category = 'z'")
    shop.capture.drain()
    shop.load()
    before = shop.versions()
    archived = list(Path(shop.bench.settings.archive).rglob("*.json"))
    assert len(archived) == 1
    # What a drain does that was killed before its manifest: the same name, the same bytes, another time.
    landed = Path(shop.bench.settings.landing) / archived[0].relative_to(shop.bench.settings.archive)
    landed.write_bytes(archived[0].read_bytes())
    os.utime(landed, (landed.stat().st_mtime - 30,) * 2)

    record = shop.load()

    assert record.loaded == 0
    assert shop.versions() == before
    assert not landed.exists()


def test_a_truncate_deletes_every_live_key_and_no_other(shop: Shop) -> None:
    shop.load()
    shop.sql(
        "delete from tests.products where product_id = 3",
        "insert into tests.products values (5, 'five', 'e', 5.00)",
        "truncate tests.products",
        "insert into tests.products values (1, 'new one', 'a', 1.00), (6, 'six', 'f', 6.00)",
    )
    shop.capture.drain()

    record = shop.load()

    assert (record.loaded, record.deleted) == (3, 4)
    assert shop.versions()[3:] == [
        (3, None, "DELETED", False),
        (5, "five", "ACTIVE", True),
        (1, None, "DELETED", False),
        (2, None, "DELETED", False),
        (5, None, "DELETED", False),
        (1, "new one", "ACTIVE", True),
        (6, "six", "ACTIVE", True),
    ]
    assert shop.bronze() == shop.rows()


def test_long_values_that_an_update_did_not_touch_are_carried_over(shop: Shop) -> None:
    shop.sql(f"update tests.products set product_name = repeat('long ', {LONG}) || product_id")
    shop.capture.drain()
    shop.load()
    shop.sql(
        "update tests.products set category = 'from the lake' where product_id = 1",
        "update tests.products set category = 'twice' where product_id = 1",
        "update tests.products set product_id = 20, category = 'moved' where product_id = 2",
        "update tests.products set category = 'after' where product_id = 20",
        "update tests.products set product_name = null where product_id = 3",
        "update tests.products set category = 'of null' where product_id = 3",
    )
    shop.capture.drain()
    lines = [p.read_text() for p in Path(shop.bench.settings.landing).rglob("*.json") if p.parent.name != "_capture"]
    assert "__unchanged" in lines[0]
    assert "__previous_key" in lines[0]

    record = shop.load()

    assert (record.quarantined, record.deleted) == (0, 1)
    assert shop.bronze() == shop.rows()


def test_an_unchanged_value_without_an_earlier_version_is_quarantined_and_not_null(shop: Shop) -> None:
    shop.load()
    shop.sql(f"insert into tests.products values (9, repeat('long ', {LONG}), 'x', 9.00)")
    shop.capture.drain()
    # The file that brought the row is lost before it is loaded.
    for path in Path(shop.bench.settings.landing).rglob("*.json"):
        if path.parent.name != "_capture":
            path.unlink()
    shop.sql("update tests.products set category = 'y' where product_id = 9")
    shop.capture.drain()

    record = shop.load()

    assert (record.loaded, record.quarantined) == (0, 1)
    held = shop.bench.settings.lake / PRODUCTS.schema / PRODUCTS.quarantine_name
    (reasons,) = [row["reasons"] for row in lake_reader.read(held, "select reasons from t")]
    assert "an earlier version" in reasons[0]["expected"]


@pytest.mark.parametrize("lost", [True, False])
def test_a_lost_slot_costs_a_snapshot_and_no_row(shop: Shop, lost: bool) -> None:
    shop.load()
    if lost:
        shop.sql(f"select pg_drop_replication_slot('{shop.capture.slot}')")
    shop.sql("update tests.products set category = 'unseen'", "delete from tests.products where product_id = 1")
    drained = shop.capture.drain()
    assert bool(drained.started_anew) is lost
    shop.sql("insert into tests.products values (7, 'seven', 'g', 7.00)")
    shop.capture.drain()

    record = shop.load()

    assert lost or record.scope == "2 files"
    assert shop.bronze() == shop.rows()


def test_what_is_captured_before_a_snapshot_does_not_outrank_it(shop: Shop) -> None:
    shop.sql("update tests.products set category = 'captured first'")
    shop.capture.drain()
    shop.sql("update tests.products set category = 'seen by the snapshot' where product_id = 1")
    assert shop.load().loaded == 6
    assert shop.bronze() == shop.rows()
    shop.sql("update tests.products set category = 'late' where product_id = 3")
    shop.capture.drain()
    shop.load()
    assert shop.bronze() == shop.rows()


def test_values_of_a_column_whose_name_no_column_can_have_are_rescued(shop: Shop) -> None:
    shop.load()
    shop.sql(
        'alter table tests.products add "Gewicht (kg)" int, add weight int',
        "insert into tests.products values (4, 'four', 'd', 4.00, 12, 13), (5, 'five', 'd', 4.00, null, 14)",
    )
    shop.capture.drain()
    record = shop.load()
    assert record.new_columns == ("weight",)
    rescued = dict(shop.bronze("select product_id, _rescued_data from t where product_id > 3"))
    assert {key: text and json.loads(text) for key, text in rescued.items()} == {4: {"gewicht (kg)": "12"}, 5: None}
    assert shop.bronze("select product_id, weight from t where weight is not null") == [(4, 13), (5, 14)]


def test_a_table_of_before_gets_the_column_for_what_is_rescued(shop: Shop) -> None:
    shop.load()
    place = str(shop.bench.settings.lake / PRODUCTS.schema / PRODUCTS.name)
    frame = shop.bench.session.read.format("delta").load(place).drop("_rescued_data")
    frame.write.format("delta").mode("overwrite").option("overwriteSchema", "true").save(place)
    shop.sql("insert into tests.products values (4, 'four', 'd', 4.00)")
    shop.capture.drain()
    assert shop.load().loaded == 1
    assert lake_reader.column_types(Path(place))["_rescued_data"] == "string"
    assert shop.bronze() == shop.rows()


def test_a_new_column_at_the_source_joins_with_its_own_type(shop: Shop) -> None:
    shop.load()
    shop.sql(
        "alter table tests.products add weight int",
        "insert into tests.products values (4, 'four', 'd', 4.00, 12)",
    )
    shop.capture.drain()

    record = shop.load()

    assert record.new_columns == ("weight",)
    assert lake_reader.column_types(shop.bench.settings.lake / PRODUCTS.schema / PRODUCTS.name)["weight"] == "integer"
    assert shop.bronze("select product_id, weight from t where weight is not null") == [(4, 12)]
