"""Discovery by streams: the option sets of both readers, and that the ledger decides, whatever the checkpoint says."""

from __future__ import annotations

import dataclasses
import datetime as dt
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from pyspark.sql import SparkSession

from bronze_assets.catalog.manufacturing import TABLES
from bronze_assets.errors import SettingsError
from bronze_assets.load import load
from bronze_assets.settings import Discovery, Settings
from bronze_assets.sources.autoloader import auto_loader_options, file_stream_options
from bronze_assets.table import Evolution, Feed
from bronze_assets.workbench import Run, Workbench, current_partition
from bronze_assets_tests import lake_reader
from bronze_assets_tests.conftest import settings_for

SENSORS = next(table for table in TABLES if table.name == "bz_sensor_data")
FEED = Feed("raw/sensor-data")
ROWS = "select sensor_id, temperature from t"


def test_auto_loader_reads_with_the_options_that_the_platform_promises() -> None:
    assert auto_loader_options(FEED, "json", "/checkpoints/schema") == {
        "cloudFiles.format": "json",
        "cloudFiles.schemaLocation": "/checkpoints/schema",
        "cloudFiles.inferColumnTypes": "true",
        "cloudFiles.schemaEvolutionMode": "addNewColumns",
        "cloudFiles.maxFilesPerTrigger": "10000",
        "cloudFiles.allowOverwrites": "true",
        "pathGlobFilter": "*{.json,.json.gz,.jsonl,.jsonl.gz,.ndjson,.ndjson.gz}",
        "recursiveFileLookup": "true",
        "timestampFormat": "yyyy-MM-dd HH:mm:ss",
        "dateFormat": "yyyy-MM-dd",
    }
    csv = auto_loader_options(FEED, "csv", "s")
    assert (csv["header"], csv["escape"], csv["cloudFiles.format"]) == ("true", '"', "csv")
    assert "timestampFormat" not in auto_loader_options(FEED, "parquet", "s")


@pytest.mark.parametrize(
    ("policy", "mode"),
    [(Evolution.ADD, "addNewColumns"), (Evolution.RESCUE, "rescue"), (Evolution.STOP, "failOnNewColumns")],
)
def test_a_tables_policy_is_auto_loaders_evolution_mode(policy: Evolution, mode: str) -> None:
    options = auto_loader_options(dataclasses.replace(FEED, evolution=policy, multiline=True), "json", "s")

    assert options["cloudFiles.schemaEvolutionMode"] == mode
    assert options["multiLine"] == "true"


def test_sparks_own_stream_reads_names_only() -> None:
    assert file_stream_options(dataclasses.replace(FEED, max_files=7), "parquet") == {
        "maxFilesPerTrigger": "7",
        "pathGlobFilter": "*{.parquet,.parquet.gz}",
        "recursiveFileLookup": "true",
    }


def test_auto_loader_is_refused_where_there_is_none(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="BRONZE_DISCOVERY=autoloader needs Databricks"):
        settings_for(tmp_path, {"BRONZE_DISCOVERY": "autoloader"})
    with pytest.raises(SettingsError, match=r"BRONZE_DISCOVERY='magic'.*listing, stream, autoloader"):
        settings_for(tmp_path, {"BRONZE_DISCOVERY": "magic"})


@pytest.fixture
def bench(spark: SparkSession, settings: Settings) -> Iterator[Workbench]:
    with Workbench.open(dataclasses.replace(settings, discovery=Discovery.STREAM)) as bench:
        yield bench


def put(bench: Workbench, name: str, temperature: float) -> Path:
    file = Path(bench.settings.landing) / FEED.path / name
    file.parent.mkdir(parents=True, exist_ok=True)
    moment = f"{dt.datetime.now(dt.UTC):%Y-%m-%d %H:%M:%S}"
    row = {"sensor_id": name, "timestamp": moment, "temperature": temperature, "humidity": 1, "pressure": 1000}
    file.write_text(json.dumps(row))
    long_ago = file.stat().st_mtime - 60
    os.utime(file, (long_ago, long_ago))
    return file


def loaded(bench: Workbench) -> list[tuple[str, float]]:
    """Load, and what the table then holds."""
    load(SENSORS, current_partition(SENSORS.cadence, bench.clock()), bench, Run("test", "manual"))
    rows = lake_reader.read(bench.settings.lake / SENSORS.schema / SENSORS.name, ROWS)
    return sorted((row["sensor_id"], float(row["temperature"])) for row in rows)


def test_a_deleted_checkpoint_neither_loses_nor_doubles_a_file(bench: Workbench) -> None:
    put(bench, "a.json", 1.5)
    put(bench, "b b%.json", 2.5)
    assert loaded(bench) == [("a.json", 1.5), ("b b%.json", 2.5)]
    put(bench, "c.json", 3.5)
    shutil.rmtree(bench.settings.lake / "_discovery")
    assert loaded(bench) == [("a.json", 1.5), ("b b%.json", 2.5), ("c.json", 3.5)]
    put(bench, "d.json", 4.5)
    assert loaded(bench) == [("a.json", 1.5), ("b b%.json", 2.5), ("c.json", 3.5), ("d.json", 4.5)]


def test_a_file_that_the_stream_found_is_loaded_though_the_load_after_it_failed(
    bench: Workbench, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(bench, "a.json", 1.5)
    with monkeypatch.context() as patch:
        patch.setattr("bronze_assets.file_load.inspect", lambda *_: (_ for _ in ()).throw(OSError("away")))
        with pytest.raises(OSError, match="away"):
            loaded(bench)
    assert loaded(bench) == [("a.json", 1.5)]


def test_an_overwritten_file_found_by_the_stream_replaces_its_rows(bench: Workbench) -> None:
    put(bench, "a.json", 1.5)
    assert loaded(bench) == [("a.json", 1.5)]
    put(bench, "a.json", 9.25)
    # Spark's own stream takes a name once; Auto Loader proposes it again (cloudFiles.allowOverwrites).
    shutil.rmtree(bench.settings.lake / "_discovery")
    assert loaded(bench) == [("a.json", 9.25)]
