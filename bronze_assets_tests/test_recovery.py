"""Tables that are damaged are found, brought back, and equal to what they were; what is known of them follows.

The lake is read with the `deltalake` package and damaged with it; loads, checks and restores run through Dagster.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dagster as dg
import pytest
from deltalake import DeltaTable, write_deltalake

from bronze_assets.definitions import build_definitions
from bronze_assets.orchestration.assets import asset_key, partitions
from bronze_assets.settings import Settings
from bronze_assets.table import BronzeTable
from bronze_assets_tests import lake_reader
from bronze_assets_tests.file_tables import drop, ids, json_lines, row, states, table_path, things

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

TODAY = f"{dt.datetime.now(dt.UTC):%F}"
INTACT = "intact"


@pytest.fixture
def instance(tmp_path: Path) -> Iterator[dg.DagsterInstance]:
    with dg.DagsterInstance.local_temp(str(tmp_path / "dagster")) as instance:
        yield instance


class Dagster:
    """The definitions of one table, as people use them."""

    def __init__(self, settings: Settings, instance: dg.DagsterInstance, table: BronzeTable) -> None:
        self.settings, self.instance, self.table = settings, instance, table
        self.definitions = build_definitions(settings, [table])

    def load(self, partition: str = TODAY) -> dict[str, Any]:
        """What the materialisation of a partition says."""
        job = self.definitions.resolve_job_def(f"load_{self.table.schema}_files")
        result = job.execute_in_process(instance=self.instance, partition_key=partition)
        (event,) = [
            e.step_materialization_data.materialization
            for e in result.get_asset_materialization_events()
            if e.asset_key == asset_key(self.table)
        ]
        return {name: value.value for name, value in event.metadata.items()}

    def check(self) -> dg.AssetCheckEvaluation:
        result = self.definitions.resolve_job_def("check_tables").execute_in_process(instance=self.instance)
        (found,) = result.get_asset_check_evaluations()
        assert found.check_name == INTACT
        return found

    def restore(self, *, raise_on_error: bool = True, **config: Any) -> dg.ExecuteInProcessResult:
        told = {"table": self.table.name, "by": "dpo", "reason": "damaged", "only_show": False} | config
        return self.definitions.resolve_job_def("restore").execute_in_process(
            instance=self.instance,
            run_config={"ops": {"restore_table": {"config": told}}},
            raise_on_error=raise_on_error,
        )

    def statuses(self, *days: str) -> list[str]:
        key, kept = asset_key(self.table), partitions(self.table.cadence, self.settings)
        found = self.instance.get_status_by_partition(key, list(days), kept) or {}
        return [str(found[day].value if found[day] is not None else None) for day in days]


def everything(path: Path) -> list[tuple[Any, ...]]:
    return lake_reader.tuples(path, "*")


def numbers(evaluation: dg.AssetCheckEvaluation) -> dict[str, Any]:
    return {name: value.value for name, value in evaluation.metadata.items()}


def test_damage_is_found_restored_and_proved_equal(
    spark: SparkSession, settings: Settings, instance: dg.DagsterInstance
) -> None:
    dagster = Dagster(settings, instance, things())
    drop(settings, "a.json", json_lines(*map(row, range(1, 6))))
    first = dagster.load()
    drop(settings, "b.json", json_lines(*map(row, range(6, 9))))
    dagster.load()
    path = table_path(settings)
    before, version = everything(path), lake_reader.version(path)
    assert dagster.check().passed
    DeltaTable(str(path)).delete("thing_id in (2, 3, 7)")
    found = dagster.check()
    assert not found.passed
    assert found.severity is dg.AssetCheckSeverity.ERROR
    told = numbers(found)
    assert (told["missing"], told["extra"]) == ({f"{TODAY}/1": 2, f"{TODAY}/2": 1}, {})
    assert told["foreign_commits"] == [f"{version + 1} DELETE"]
    assert told["last_intact_version"] == version
    bad = DeltaTable(str(path)).to_pyarrow_dataset().to_table().slice(0, 2)
    write_deltalake(
        str(path), bad.set_column(bad.column_names.index("batch_id"), "batch_id", [["x/1", "x/1"]]), mode="append"
    )
    assert numbers(dagster.check())["extra"] == {"x/1": 2}
    dagster.restore(version=version, only_show=True, in_place=True)
    assert lake_reader.version(path) == version + 2, "it was only shown"
    dagster.restore(version=version, in_place=True)
    assert everything(path) == before
    assert dagster.load()["loaded"] == 0
    assert everything(path) == before
    assert dagster.check().passed
    # Back to where the second file had not come.
    dagster.restore(version=first["delta_version"], in_place=True)
    assert ids(settings) == [1, 2, 3, 4, 5]
    assert states(settings) == {"a.json": "archived", "b.json": "undone"}
    assert dagster.check().passed
    assert dagster.load()["loaded"] == 3
    assert ids(settings) == [1, 2, 3, 4, 5, 6, 7, 8]
    assert dagster.check().passed
    assert dagster.load()["loaded"] == 0
