"""One contract, two storages: tables under a folder through delta-rs, tables of a catalog through Spark.

Unity Catalog itself cannot be had here. Spark's own catalog stands for it: three-part names, managed tables whose paths
are never asked for, and the same SQL.
"""

from __future__ import annotations

import dataclasses
import datetime as dt
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from deltalake import DeltaTable
from hypothesis import given
from hypothesis import strategies as st
from pyspark.sql import Observation, SparkSession
from pyspark.sql import functions as F

from bronze_assets import storage
from bronze_assets.catalog import TABLES
from bronze_assets.catalog_storage import CatalogStorage, in_spark
from bronze_assets.control_tables import ControlTables
from bronze_assets.errors import LakeError, StaleBase, TableBusy
from bronze_assets.lakehouse import Lakehouse
from bronze_assets.sources.ledger import FileEvent, FileState, Ledger
from bronze_assets.storage import Conflict, FolderStorage, Storage, sql_literal

SCHEMA = pa.schema([("name", pa.string()), ("number", pa.int64()), ("at", pa.timestamp("us", tz="UTC"))])
_counter = iter(range(1000))


@pytest.fixture
def schema(spark: SparkSession, tmp_path: Path) -> Iterator[str]:
    """A schema of the session's catalog, made by whoever owns it."""
    name = f"storage_{next(_counter)}"
    spark.sql(f"create schema spark_catalog.{name} location '{tmp_path / 'managed'}'")
    yield name
    spark.sql(f"drop schema spark_catalog.{name} cascade")


@pytest.fixture(params=["folder", "catalog"])
def tables(request: pytest.FixtureRequest, tmp_path: Path, spark: SparkSession, schema: str) -> Storage:
    if request.param == "folder":
        return FolderStorage(tmp_path / "a lake")
    return CatalogStorage("spark_catalog", lambda: spark, 6)


def row(name: str, number: int) -> dict[str, Any]:
    return {"name": name, "number": number, "at": None}


def rows(*values: tuple[str, int]) -> pa.Table:
    return pa.Table.from_pylist([row(*one) for one in values], schema=SCHEMA)


def test_rows_are_appended_and_read_with_quotes_and_backslashes(tables: Storage, schema: str) -> None:
    lake = ControlTables(tables)
    odd = ["it's", 'said "so"', "back\\slash", "per%cent", "new\nline"]

    for number, name in enumerate(odd):
        lake.append_rows(schema, "log", SCHEMA, [row(name, number)])

    for number, name in enumerate(odd):
        assert lake.rows(schema, "log", ["number"], f"name = {sql_literal(name)}") == [{"number": number}]
    assert lake.rows(schema, "log", ['max("number") as m'], "name like '%s%'") == [{"m": 2}]
    assert lake.rows(schema, "missing") == []
    assert lake.control_version(schema, "missing") is None


def test_a_version_of_before_stays_readable(tables: Storage, schema: str) -> None:
    lake = ControlTables(tables)
    lake.append_rows(schema, "log", SCHEMA, [row("a", 1)])
    before = lake.version(schema, "log")
    lake.append_rows(schema, "log", SCHEMA, [row("b", 2)])

    assert lake.rows(schema, "log", ["name"], version=before) == [{"name": "a"}]
    assert lake.version(schema, "log") == before + 1


def test_a_row_is_kept_for_each_key_and_replaced_where_the_condition_holds(tables: Storage, schema: str) -> None:
    lake = ControlTables(tables)

    def put(name: str, number: int) -> int:
        kept = lake.merge_row(schema, "keyed", SCHEMA, row(name, number), on="name", when="s.number > t.number")
        return int(kept["number"])

    assert [put("a", 2), put("b'c", 1), put("a", 1), put("a", 3)] == [2, 1, 2, 3]
    assert sorted(one["number"] for one in lake.rows(schema, "keyed")) == [1, 3]


def test_rows_take_the_place_of_others_and_are_observed_once(tables: Storage, schema: str, spark: SparkSession) -> None:
    tables.create(tables.location(schema, "loaded"), SCHEMA, {})
    tables.append(tables.location(schema, "loaded"), rows(("a", 1), ("it's", 2), ("c", 3)))
    told = Observation()
    new = spark.createDataFrame(rows(("it's", 5), ("a", 6))).observe(told, F.count("*").alias("rows"))

    tables.replace(
        new, tables.location(schema, "loaded"), "(name in ('a') or name = 'it\\'s')", {"userMetadata": "2026-03-10/2 x"}
    )

    assert told.get == {"rows": 2}
    held = ControlTables(tables).rows(schema, "loaded", ["name", "number"])
    assert sorted((one["name"], one["number"]) for one in held) == [("a", 6), ("c", 3), ("it's", 5)]
    assert tables.history(tables.location(schema, "loaded"), 1)[0].mark == "2026-03-10/2 x"


def test_who_decided_on_a_state_that_is_past_appends_nothing(tables: Storage, schema: str) -> None:
    lake = ControlTables(tables)

    def append(value: int, base: int | None, number: int, writer: str = "w") -> int:
        return lake.append_fenced(
            schema, "fenced", rows(("n", value)), writer=writer, number=number, base=base, partition_by="name"
        )

    first = append(1, None, 1)
    append(2, first, 2)
    with pytest.raises(StaleBase):
        append(3, first, 2)
    append(4, first, 1, writer="other")
    assert sorted(one["number"] for one in lake.rows(schema, "fenced")) == [1, 2, 4]


def test_of_two_loads_that_claim_at_once_one_is_refused_however_many_files_they_claim(
    tables: Storage, schema: str
) -> None:
    table = dataclasses.replace(next(one for one in TABLES if one.files is not None), schema=schema)
    now = dt.datetime(2026, 11, 27, 12, tzinfo=dt.UTC)
    lake = Lakehouse(tables)

    def states(*names: str) -> list[FileState]:
        return [FileState(name, FileEvent.SEEN, 1, now, "2026-11-27") for name in names]

    Ledger(lake, table, lambda: now).record(states("first"), FileEvent.LOADED)
    one, other = Ledger(lake, table, lambda: now), Ledger(lake, table, lambda: now)

    one.record(states("a", "b"), FileEvent.CLAIMED, batch_id="1")
    with pytest.raises(StaleBase):
        other.record(states("a", "b", "c", "d", "e"), FileEvent.CLAIMED, batch_id="2")

    claimed = Ledger(lake, table, lambda: now).files
    assert {state.path: state.batch_id for state in claimed.values()} == {"first": None, "a": "1", "b": "1"}


def test_columns_of_another_release_join(tables: Storage, schema: str) -> None:
    lake = ControlTables(tables)
    more = pa.schema([*SCHEMA, ("added", pa.string())])
    lake.append_rows(schema, "log", SCHEMA, [row("a", 1)])
    lake.append_rows(schema, "log", more, [row("b", 2) | {"added": "x"}])
    lake.append_rows(schema, "log", SCHEMA, [row("c", 3)])
    lake.merge_row(schema, "keyed", SCHEMA, row("a", 1), on="name", when="true")
    kept = lake.merge_row(schema, "keyed", more, row("a", 2) | {"added": "y"}, on="name", when="true")

    assert sorted((one["name"], one["added"]) for one in lake.rows(schema, "log")) == [
        ("a", None),
        ("b", "x"),
        ("c", None),
    ]
    assert kept["number"] == 2


def test_rows_of_several_writers_are_all_kept(tables: Storage, schema: str) -> None:
    lake = ControlTables(tables)
    lake.append_rows(schema, "log", SCHEMA, [row("first", 0)])

    def write(writer: int) -> None:
        for number in range(3):
            lake.append_rows(schema, "log", SCHEMA, [row(str(writer), number)])

    threads = [threading.Thread(target=write, args=(writer,)) for writer in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(lake.rows(schema, "log")) == 7


def test_private_rows_go_with_every_file_that_held_them(tables: Storage, schema: str, tmp_path: Path) -> None:
    lake = Lakehouse(tables)

    def change(names: list[str], kind: storage.Change) -> int:
        found = rows(*((name, 1) for name in names))
        return lake.change_private(schema, "keys", SCHEMA, lambda _: found, on="name", change=kind)

    assert change(["maria", "eve"], "insert") == 2
    assert change(["maria"], "insert") == 1
    assert len(lake.rows(schema, "keys")) == 2
    with lake.held(schema, alone=True):
        change(["maria"], "delete")
        lake.purge(schema, "keys")

    assert [one["name"] for one in lake.rows(schema, "keys")] == ["eve"]
    folder = next(path for path in tmp_path.rglob("keys") if path.is_dir())
    assert not [path for path in folder.glob("*.parquet") if b"maria" in path.read_bytes()]
    assert not [path for path in folder.rglob("*.json") if b"maria" in path.read_bytes()]


def test_who_is_alone_waits_for_those_who_hold_and_keeps_others_out(
    tables: Storage, schema: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []

    def forget() -> None:
        with tables.held(schema, alone=True):
            said.append("alone")

    with tables.held(schema, alone=False), tables.held(schema, alone=False):
        thread = threading.Thread(target=forget)
        thread.start()
        time.sleep(1.5)
        said.append("load ends")
    thread.join(30)
    assert said == ["load ends", "alone"]

    monkeypatch.setattr(storage, "HOLD_SECONDS", 0.1)
    refused: list[type] = []

    def load() -> None:
        try:
            with tables.held(schema, alone=False):
                pass
        except TableBusy as error:
            refused.append(type(error))

    with tables.held(schema, alone=True):
        other = threading.Thread(target=load)
        other.start()
        other.join(30)
    assert refused == [TableBusy]


def test_size_and_description_are_those_of_the_log(tables: Storage, schema: str, tmp_path: Path) -> None:
    lake = Lakehouse(tables)
    lake.append_rows(schema, "log", SCHEMA, [row("a", 1), row("b", 2)])
    lake.append_rows(schema, "log", SCHEMA, [row("c", 3)])

    size = lake.size(schema, "log")
    told = lake.described(lake.location(schema, "log"))

    log = DeltaTable(str(next(path for path in tmp_path.rglob("log") if path.is_dir())))
    actions = pa.table(log.get_add_actions(flatten=True))
    assert (size.version, size.rows, size.files) == (log.version(), 3, actions.num_rows)
    assert size.bytes == sum(actions["size_bytes"].to_pylist())
    assert told is not None
    assert dict(told.types) == {"name": "string", "number": "bigint", "at": "timestamp"}
    assert told.properties["delta.appendOnly"] == "true"
    assert told.retention.days == 7
    assert lake.described(lake.location(schema, "missing")) is None
    assert tables.owns(lake.location(schema, "log"))


def test_a_schema_that_nobody_made_is_named(spark: SparkSession) -> None:
    tables = CatalogStorage("spark_catalog", lambda: spark, 6)
    with pytest.raises(LakeError, match=r"schema spark_catalog\.nowhere is not there.*CREATE SCHEMA"):
        tables.check_writable("nowhere", "bz_orders")


def test_what_cannot_be_read_is_named_without_its_words(spark: SparkSession, schema: str) -> None:
    tables = CatalogStorage("spark_catalog", lambda: spark, 6)
    ControlTables(tables).append_rows(schema, "log", SCHEMA, [row("a", 1)])
    with pytest.raises(LakeError, match="UNRESOLVED_COLUMN") as caught:
        tables.query(tables.location(schema, "log"), "select secret_column from t")
    assert "secret_column" not in str(caught.value)


def test_a_merge_that_was_overtaken_is_a_conflict(spark: SparkSession, schema: str) -> None:
    tables = CatalogStorage("spark_catalog", lambda: spark, 6)
    ControlTables(tables).append_rows(schema, "log", SCHEMA, [row("a", 1)])
    place = tables.location(schema, "log")
    conflicts = []

    def put(number: int) -> None:
        for _ in range(3):
            try:
                tables.merge(place, rows(("a", number)), ("update", "insert"), on="name")
            except Conflict:
                conflicts.append(number)

    spark.sql(f"alter table {tables.identifier(place)} unset tblproperties ('delta.appendOnly')")
    threads = [threading.Thread(target=put, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert conflicts
    assert len(ControlTables(tables).rows(schema, "log")) == 1


@given(st.text(alphabet=st.sampled_from("ab'\"\\%`")))
def test_texts_and_names_are_the_same_in_both_dialects(text: str) -> None:
    literal, quoted = sql_literal(text), '"' + text.replace('"', '""') + '"'

    found = in_spark(f"{literal}={quoted}")

    assert found == storage.spark_literal(text) + "=`" + text.replace("`", "``") + "`"
