"""Maintenance through Dagster, on Delta tables that real loads have made; looked at by `deltalake` alone."""

from __future__ import annotations

import dataclasses
import datetime as dt
import json
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dagster as dg
import pyarrow as pa
import pytest
from deltalake import DeltaTable, write_deltalake

from bronze_assets import storage
from bronze_assets.access import ACCESS_LOG, ERASURE_LOG, MAINTENANCE_LOG, SUBJECT_KEYS, TOKEN_VAULT
from bronze_assets.audit import AUDIT_LOG
from bronze_assets.errors import SettingsError, StaleBase, TableBusy
from bronze_assets.lakehouse import Lakehouse
from bronze_assets.leases import LEASES, forget_released, lease
from bronze_assets.operations import maintenance
from bronze_assets.orchestration import maintenance as orchestration
from bronze_assets.orchestration.maintenance import maintenance_definitions
from bronze_assets.settings import Discovery, Settings
from bronze_assets.storage import Conflict
from bronze_assets.table import BronzeTable, Layout
from bronze_assets.workbench import Workbench
from bronze_assets_tests import file_tables, lake_reader, people
from bronze_assets_tests.conftest import settings_for
from bronze_assets_tests.file_tables import SCHEMA, drop, json_lines, loaded, row, table_path
from bronze_assets_tests.test_removal import age, files_with

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

NAME = "bz_things"
MONTH = dt.timedelta(days=30)
TODAY = dt.datetime.now(dt.UTC).date()


def things(layout: Layout = Layout(partition_by="made_on", z_order=("amount", "thing_id"))) -> BronzeTable:
    return dataclasses.replace(file_tables.things(), layout=layout)


def run(
    settings: Settings,
    job: str,
    *tables: BronzeTable,
    instance: dg.DagsterInstance | None = None,
    fails: bool = False,
    **config: Any,
) -> dict[str, Any]:
    """A run of a job; the metadata of its op, and of `tables` the rows."""
    definitions = maintenance_definitions(settings, tables or [things()])
    definition = definitions.get_job_def(job)
    (op,) = definition.graph.node_dict
    result = definition.execute_in_process(
        run_config={"ops": {op: {"config": config}}}, instance=instance, raise_on_error=False
    )
    assert result.success is not fails
    kind = "STEP_FAILURE" if fails else "STEP_OUTPUT"
    (event,) = (event for event in result.all_events if event.event_type_value == kind)
    if fails:
        failure = event.step_failure_data.user_failure_data
        assert failure is not None
        told = {**failure.metadata, "error": dg.MetadataValue.text(failure.description or "")}
    else:
        told = dict(event.step_output_data.metadata)
    found = {name: value.value for name, value in told.items()}
    if "tables" in found:
        found["tables"] = [record.data for record in found["tables"]]
    return found


def rows(path: Path) -> list[str]:
    return sorted(map(str, lake_reader.read(path)))


def files(path: Path, **partition: str) -> int:
    wanted = [(column, "=", value) for column, value in partition.items()]
    return len(DeltaTable(str(path)).file_uris(wanted or None))


def history(path: Path) -> list[dict[str, Any]]:
    """Newest first."""
    return DeltaTable(str(path)).history()


def maintained(settings: Settings, schema: str = SCHEMA) -> list[dict[str, Any]]:
    return lake_reader.read(settings.lake / schema / MAINTENANCE_LOG, "select * from t order by at, version")


@pytest.fixture
def loads(spark: SparkSession, settings: Settings) -> Settings:
    """A home in which three loads brought rows of two past days, of today and of no day, and bad ones."""
    for number in range(3):
        days = ["2026-06-01", "2026-06-02", str(TODAY), None]
        good = [row(10 * number + n + 1, made_on=day, amount=n + 0.5) for n, day in enumerate(days)]
        drop(settings, f"{number}.json", json_lines(*good, row(-number - 1)))
        loaded(settings, things())
    return settings


def test_small_files_become_few_and_every_row_stays(loads: Settings) -> None:
    path, bad = table_path(loads), table_path(loads, f"{NAME}_quarantine")
    before, held_back, version = rows(path), rows(bad), lake_reader.version(path)
    assert files(path, made_on="2026-06-01") == 3
    assert files(bad) > 1

    intended = run(loads, "optimize_tables", dry_run=True)
    assert {one["table"]: one["action"] for one in intended["tables"]} == {
        NAME: "OPTIMIZE ZORDER",
        f"{NAME}_quarantine": "OPTIMIZE",
    }
    assert intended["done"] == 0
    assert lake_reader.version(path) == version
    assert not lake_reader.is_table(table_path(loads, MAINTENANCE_LOG))

    done = run(loads, "optimize_tables")
    assert (done["done"], done["failed"]) == (2, 0)
    assert rows(path) == before
    assert rows(bad) == held_back
    assert [files(path, made_on=day) for day in ("2026-06-01", "2026-06-02", str(TODAY))] == [1, 1, 3]
    assert files(bad) == 1
    latest = history(path)[0]
    assert latest["operation"] == "OPTIMIZE"
    assert json.loads(latest["operationParameters"]["zOrderBy"]) == ["amount", "thing_id"]
    # Delta tells of every version what it held.
    assert sorted(map(str, read_at(path, version))) == before

    told = {one["table"]: one for one in done["tables"]}
    assert (told[NAME]["files_before"], told[NAME]["files_after"]) == (9, 3) if aged_null() else (6, 2)
    assert told[NAME]["bytes_after"] < told[NAME]["bytes_before"]
    logged = {one["table_name"]: one for one in maintained(loads)}
    assert set(logged[NAME]["partitions"]) == {"2026-06-01", "2026-06-02"}
    assert logged[NAME]["version"] == latest["version"]
    assert (logged[NAME]["files_before"], logged[NAME]["files_after"]) == (6, 2)
    assert logged[f"{NAME}_quarantine"]["partitions"] is None

    again = run(loads, "optimize_tables")
    assert (again["done"], again["skipped"]) == (0, 2)
    assert {one["table"]: one["skipped"] for one in again["tables"]} == {
        NAME: "2 partitions: younger than a day; 2 partitions: one file cannot become fewer",
        f"{NAME}_quarantine": "one file cannot become fewer",
    }
    assert history(path)[0]["version"] == latest["version"]


def aged_null() -> bool:
    return False


def read_at(path: Path, version: int) -> list[dict[str, Any]]:
    from deltalake import QueryBuilder

    answer = QueryBuilder().register("t", DeltaTable(str(path), version=version)).execute("select * from t")
    return pa.table(answer.read_all()).to_pylist()
