"""Files of captured changes as any connector may deliver them: in any order, twice, broken, of two epochs.

What our own capture writes is tested from commit to bronze in `test_captured_changes`; here they are written by hand.
"""

from __future__ import annotations

import dataclasses
import datetime as dt
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandera.pyspark as pa
import pyspark.sql.types as T
import pytest

from bronze_assets.audit import LoadRecord
from bronze_assets.demo import postgres
from bronze_assets.load import load
from bronze_assets.settings import CaptureMode, Settings
from bronze_assets.table import BronzeTable, Cadence, column
from bronze_assets.workbench import Run, Workbench
from bronze_assets_tests import lake_reader
from bronze_assets_tests.conftest import Server, settings_for

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

SCHEMA = "shop_bronze"


class Items(pa.DataFrameModel):
    item_id: T.IntegerType = column(key=True, gt=0, description="Identifies an item.")
    name: T.StringType = column(description="What it is called.")
    amount: T.IntegerType = column(ge=0, quarantine=True, description="How many.")


ITEMS = BronzeTable(SCHEMA, "shop.Items", Items, Cadence.STREAMING, "Items.")


@dataclasses.dataclass
class Shop:
    """A lake whose table of items has been loaded from a snapshot, and a landing zone for what follows."""

    settings: Settings
    spent: int = 0

    def drop(self, name: str, *changes: dict[str, Any] | str) -> None:
        day = f"{dt.datetime.now(dt.UTC).date()}"
        path = Path(self.settings.landing) / SCHEMA / "bz_items" / day / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join((one if isinstance(one, str) else json.dumps(one)) + "\n" for one in changes))
        past = dt.datetime.now(dt.UTC).timestamp() - 60
        os.utime(path, (past, past))

    def load(self) -> LoadRecord:
        bench = Workbench(self.settings)
        try:
            return load(ITEMS, f"{dt.datetime.now(dt.UTC).date()}", bench, Run("run", "cli"))
        finally:
            bench.close()

    def versions(self, first: int, last: int) -> list[tuple[Any, ...]]:
        """Versions of those keys in the order of their positions: key, status, name, amount."""
        rows = lake_reader.read(
            self.settings.lake / SCHEMA / "bz_items",
            f"select * from t where item_id between {first} and {last} order by item_id, source_position",
        )
        for one in rows:
            if one["record_status"] == "DELETED":
                assert (one["record_hash"], one["data_quality_score"]) == (None, None)
        return [(one["item_id"], one["record_status"], one["name"], one["amount"]) for one in rows]

    def quarantine(self) -> list[tuple[Any, ...]]:
        rows = lake_reader.read(self.settings.lake / SCHEMA / "bz_items_quarantine")
        return sorted((one["row_key"], one["reasons"][-1]["expected"]) for one in rows)


def change(op: str, number: int | None, at: int, seq: int | None = 1, **values: Any) -> dict[str, Any]:
    """A change at a position beyond any snapshot's."""
    position = (1 << 50) + at
    told = {"__commit_lsn": position, "__seq": seq} if seq is not None else {}
    return {
        "item_id": number,
        **values,
        "__op": op,
        "__source_lsn": position,
        "__source_ts_ms": 1_780_000_000_000 + at,
        "__deleted": "true" if op == "d" else "false",
        **told,
    }


@pytest.fixture(scope="module")
def shop(server: Server, spark: SparkSession, jars: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shop]:
    url = server.make_database()
    with postgres.connect(url) as connection, connection.cursor() as cursor:
        cursor.execute(
            "create schema shop; create table shop.items (item_id int primary key, name text, amount int);"
            "insert into shop.items select n, 'item ' || n, n from generate_series(1, 5) n"
        )
    home = tmp_path_factory.mktemp("captured home")
    settings = settings_for(
        home, {"BRONZE_JARS": str(jars), "BRONZE_SOURCE_URL": url, "BRONZE_CAPTURE": CaptureMode.EXTERNAL}
    )
    made = Shop(settings)
    assert made.load().loaded == 5
    yield made
    server.drop_database(url)


def test_changes_are_ordered_by_commit_and_sequence_whatever_the_files_say(shop: Shop) -> None:
    shop.drop("a-1.json", change("u", 11, 20, 2, name="third", amount=3), change("d", 12, 30))
    shop.drop("a-2.json", change("u", 11, 20, 1, name="second", amount=2), change("u", 12, 25, name="x", amount=1))
    shop.drop("a-3.json", change("c", 11, 10, name="first", amount=1), change("c", 12, 9, name="w", amount=0))
    record = shop.load()
    assert (record.read, record.loaded, record.deleted, record.quarantined, record.duplicates) == (5, 5, 1, 0, 0)
    assert shop.versions(11, 12) == [
        (11, "ACTIVE", "first", 1),
        (11, "ACTIVE", "second", 2),
        (11, "ACTIVE", "third", 3),
        (12, "ACTIVE", "w", 0),
        (12, "ACTIVE", "x", 1),
        (12, "DELETED", None, None),
    ]


def test_what_is_there_twice_is_loaded_once(shop: Shop) -> None:
    one, other = change("c", 21, 100, name="x", amount=1), change("d", 21, 101)
    shop.drop("b-1.json", one, one, other)
    shop.drop("b-2.json", one, other)
    record = shop.load()
    assert (record.read, record.loaded, record.deleted, record.duplicates) == (4, 1, 1, 3)
    shop.drop("b-3.json", one, other)
    record = shop.load()
    assert (record.read, record.loaded, record.deleted, record.duplicates) == (2, 0, 0, 2)
    assert shop.versions(21, 21) == [(21, "ACTIVE", "x", 1), (21, "DELETED", None, None)]


def test_a_change_that_is_none_is_in_quarantine_and_a_deletion_is_not_judged_by_its_values(shop: Shop) -> None:
    lines = [
        change("d", None, 200),
        {**change("u", 31, 201, name="x", amount=1), "__commit_lsn": None, "__source_lsn": None},
        {**change("u", 31, 201, name="y", amount=1), "__commit_lsn": "0/16B3748"},
        change("m", 31, 202, name="z", amount=1),
        change("c", 32, 203, name="bad", amount=-1),
        change("c", 33, 204, name="good", amount=1),
        change("d", 33, 205, name="good", amount=-1),
        change("d", 34, 206, name="good", amount="many"),
    ]
    before = len(shop.quarantine())
    shop.drop("c-1.json", *lines, '{"item_id": 35, "__op": ')
    record = shop.load()
    assert (record.read, record.loaded, record.deleted, record.quarantined) == (7, 1, 2, 6)
    assert shop.versions(31, 35) == [
        (33, "ACTIVE", "good", 1),
        (33, "DELETED", None, None),
        (34, "DELETED", None, None),
    ]
    found = shop.quarantine()
    assert len(found) - before == 6
    assert [expected for key, expected in found if key == "NULL"].count(
        "a change with its position in __source_lsn"
    ) == 2
    assert ("NULL", "a change with c, u, r, d or t in __op") in found
    assert ("NULL", "item_id is present and item_id > 0") in found
    assert ("32", "amount >= 0") in found


def test_a_truncate_deletes_what_was_live_then_however_often_it_is_told(shop: Shop) -> None:
    at, first = 300, 41
    truncate = json.dumps(change("t", None, at + 5)).replace('"__op": "t"', '"__op" : "t"')
    shop.drop(
        f"d-{at}-1.json",
        change("c", first, at + 1, name="before", amount=1),
        change("c", first + 1, at + 2, name="gone already", amount=1),
        change("d", first + 1, at + 3),
        truncate,
    )
    shop.drop(f"d-{at}-2.json", truncate, change("c", first + 2, at + 6, name="after", amount=1))
    shop.load()
    once = shop.versions(first, first + 2)
    assert once == [
        (first, "ACTIVE", "before", 1),
        (first, "DELETED", None, None),
        (first + 1, "ACTIVE", "gone already", 1),
        (first + 1, "DELETED", None, None),
        (first + 2, "ACTIVE", "after", 1),
    ]
    # Of the rows of the snapshot too, once.
    assert [status for _, status, _, _ in shop.versions(1, 1)] == ["ACTIVE", "DELETED"]
    shop.drop(f"d-{at}-3.json", truncate)
    assert shop.load().deleted == 0
    assert shop.versions(first, first + 2) == once


def test_a_value_left_as_it_was_is_not_taken_from_before_a_version_in_quarantine(shop: Shop) -> None:
    left = {"__unchanged": json.dumps(["name"])}
    shop.drop("t-1.json", change("c", 81, 700, name="first", amount=1), change("c", 82, 701, name="first", amount=1))
    shop.load()
    shop.drop("t-2.json", change("u", 81, 710, name="second", amount=-1))
    assert shop.load().quarantined == 1
    shop.drop("t-3.json", change("u", 81, 720, amount=3) | left, change("u", 82, 721, amount=3) | left)
    record = shop.load()
    assert (record.loaded, record.quarantined) == (1, 1)
    assert shop.versions(81, 82) == [
        (81, "ACTIVE", "first", 1),
        (82, "ACTIVE", "first", 1),
        (82, "ACTIVE", "first", 3),
    ]
    assert [expected for key, expected in shop.quarantine() if key == "81"] == [
        "amount >= 0",
        "an earlier version, with the values that the change left as they were",
    ]
    # A version that says the value ends it.
    shop.drop("t-4.json", change("u", 81, 730, name="third", amount=3))
    shop.drop("t-5.json", change("u", 81, 740, amount=4) | left)
    assert shop.load().loaded == 2
    assert shop.versions(81, 81)[1:] == [(81, "ACTIVE", "third", 3), (81, "ACTIVE", "third", 4)]


def test_changes_of_a_new_epoch_come_after_those_of_the_old_one_that_come_late(shop: Shop) -> None:
    def of(epoch: str, one: dict[str, Any]) -> dict[str, Any]:
        return one | {"__source_epoch": epoch}

    shop.drop("e-1.json", of("one/1", change("c", 71, 600, name="first", amount=1)))
    shop.drop("e-2.json", of("two/1", change("u", 71, 10, name="third", amount=3)))
    shop.load()
    shop.drop("e-3.json", of("one/1", change("u", 71, 601, name="second", amount=2)))
    # Where no epoch is named, it is the latest.
    shop.drop("e-4.json", change("u", 71, 11, name="fourth", amount=4))
    shop.load()
    assert [name for _, _, name, _ in shop.versions(71, 71)] == ["first", "second", "third", "fourth"]
