"""`make ui` with nothing but its sensors at work: changes and files arrive in bronze, whoever is killed on the way."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest

from bronze_assets.catalog import TABLES
from bronze_assets.demo import generate, postgres
from bronze_assets_tests import lake_reader
from bronze_assets_tests.conftest import CHECKOUT, settings_for
from bronze_assets_tests.dagster_client import Dagster, answers, until

PATIENCE = 600
CAPTURED = sorted(table.name for table in TABLES if table.feed is not None and table.feed.captured)

RUNS = """query ($job: String!) { runsOrError(filter: {pipelineName: $job}) { ... on Runs { results {
  runId status tags { key value }
} } } }"""

RESET_CURSOR = """mutation ($sensor: SensorSelector!) { setSensorCursor(sensorSelector: $sensor, cursor: "") {
  __typename
} }"""

TOLD = """query ($key: AssetKeyInput!) { assetNodeOrError(assetKey: $key) { ... on AssetNode {
  assetMaterializations(limit: 20) { runId metadataEntries { label ... on IntMetadataEntry { intValue } } }
} } }"""


@dataclass
class Ui:
    """A running `make ui`, its home and its source."""

    dagster: Dagster
    home: Path
    url: str

    def runs(self, job: str) -> list[dict[str, Any]]:
        """The runs of a job, latest first."""
        found: list[dict[str, Any]] = self.dagster.ask(RUNS, job=job)["runsOrError"]["results"]
        return [run | {"tags": {tag["key"]: tag["value"] for tag in run["tags"]}} for run in found]

    def rows(self, table: str, *columns: str, where: str = "true") -> list[tuple[Any, ...]]:
        path = (
            self.home / "lake" / ("manufacturing_bronze" if table == "bz_sensor_data" else lake_reader.SCHEMA) / table
        )
        return lake_reader.tuples(path, *columns, where=where) if lake_reader.is_table(path) else []

    def process_of(self, run: dict[str, Any]) -> psutil.Process:
        _, pid, _ = run["tags"]["bronze/process"].split(":")
        return psutil.Process(int(pid))


@pytest.fixture
def ui(tmp_path: Path, jars: Path) -> Iterator[Ui]:
    """`make ui` on a home whose embedded server holds sample data, and into which nothing was ever loaded."""
    home = tmp_path / "home"
    own = {"BRONZE_HOME": str(home), "BRONZE_JARS": str(jars), "BRONZE_DRIVER_MEMORY": "1g"}
    settings = settings_for(home)
    inherited = {k: v for k, v in os.environ.items() if not k.startswith(("BRONZE_", "DAGSTER_"))}
    try:
        with postgres.running(settings, print) as url, postgres.connect(url) as connection:
            generate.generate(connection, scale=0.005)
        process = subprocess.Popen(
            [sys.executable, "-u", "-m", "bronze_assets.demo", "ui"],
            cwd=CHECKOUT,
            env=inherited | own,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            # A background process of a non-interactive shell ignores Ctrl-C, and so would its children.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        )
        log = tmp_path / "ui.log"
        lines: list[str] = []

        def read() -> None:
            assert process.stdout is not None
            with log.open("w") as copy:
                for line in process.stdout:
                    lines.append(line)
                    copy.write(line)
                    copy.flush()

        threading.Thread(target=read, daemon=True).start()
        try:
            address = until(lambda: re.search(r"http://[\d.:]+", "".join(lines)), 60)
            dagster = Dagster(address.group(0))
            until(lambda: answers(dagster), 120, log)
            yield Ui(dagster, home, (home / "postgres" / "source_url").read_text().strip())
        finally:
            family = psutil.Process(process.pid).children(recursive=True)
            process.send_signal(signal.SIGINT)
            process.wait(60)
            _, alive = psutil.wait_procs(family, timeout=20)
            assert not alive
    finally:
        postgres.remove(settings)


@pytest.mark.nightly
def test_changes_and_files_arrive_through_sensors_alone_also_when_the_capture_is_killed(ui: Ui) -> None:
    # Nothing was loaded, and nobody loads: the capture begins, and the snapshots that meet it follow.
    def snapshots() -> bool:
        done = ui.rows("bz_batches", "table_name", where="event = 'done' and scope_kind = 'full'")
        return {name for (name,) in done} >= set(CAPTURED)

    until(snapshots, PATIENCE)
    (capturing,) = [run for run in ui.runs("capture_inventory_bronze") if run["status"] == "STARTED"]
    before = {name: len(ui.rows(name, "batch_id")) for name in CAPTURED}
    assert all(before.values())

    # An insert, an update and a delete are three row versions; a file that arrives becomes rows.
    with postgres.connect(ui.url) as source, source.cursor() as cursor:
        cursor.execute("insert into tests.products values (700001, 'new', 'toys', 1.00)")
        cursor.execute("update tests.products set product_name = 'renamed' where product_id = 700001")
        cursor.execute("delete from tests.products where product_id = 700001")
    folder = ui.home / "landing" / "raw" / "sensor-data"
    folder.mkdir(parents=True)
    measured = [
        {"sensor_id": f"S{n}", "timestamp": "2026-03-10 12:00:00", "temperature": 20, "humidity": 50, "pressure": 1000}
        for n in range(25)
    ]
    (folder / ".arriving").write_text("\n".join(map(json.dumps, measured)))
    (folder / ".arriving").rename(folder / "line-7.json")
    versions = "product_name", "record_status"
    until(lambda: len(ui.rows("bz_products", *versions, where="product_id = 700001")) >= 3, PATIENCE)
    until(lambda: len(ui.rows("bz_sensor_data", "sensor_id")) >= 25, PATIENCE)
    assert ui.rows("bz_products", *versions, where="product_id = 700001") == [
        ("new", "ACTIVE"),
        ("renamed", "ACTIVE"),
        (None, "DELETED"),
    ]
    assert ui.rows("bz_sensor_data", "sensor_id") == sorted((row["sensor_id"],) for row in measured)
    until(lambda: [path.name for path in (ui.home / "archive" / "raw").rglob("*.json")] == ["line-7.json"], 60)

    # The capture's process is killed while changes go on: its run is closed, another follows, nothing is lost.
    process = ui.process_of(capturing)
    last = 0

    def change() -> None:
        nonlocal last
        last += 1
        with postgres.connect(ui.url) as source, source.cursor() as cursor:
            cursor.execute(f"insert into tests.orders values ({800_000 + last}, 1, '2026-02-01', 'NEW')")

    def killed() -> bool:
        change()
        return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE

    change()
    process.kill()
    until(killed, 30)

    def another() -> bool:
        change()
        runs = ui.runs("capture_inventory_bronze")
        status = {run["runId"]: run["status"] for run in runs}
        return status[capturing["runId"]] == "FAILURE" and "STARTED" in status.values()

    until(another, PATIENCE)
    change()
    until(lambda: ui.rows("bz_orders", "order_id", where=f"order_id = {800_000 + last}"), PATIENCE)
    arrived = Counter(key for (key,) in ui.rows("bz_orders", "order_id", where="order_id > 800000"))
    assert arrived == {800_000 + number: 1 for number in range(1, last + 1)}
    assert {name: len(ui.rows(name, "batch_id")) for name in CAPTURED} == before | {
        "bz_products": before["bz_products"] + 3,
        "bz_orders": before["bz_orders"] + last,
    }
    checks = ui.rows("bz_batches", "scope_kind", where="table_name = 'bz_orders' and event = 'done'")
    assert checks.count(("full",)) == 1, "the slot outlived the capture's process: no second snapshot"

    # Quiet tables are told to be up to date by events that belong to no run.
    selector = {
        "repositoryName": "__repository__",
        "repositoryLocationName": "bronze_assets",
        "sensorName": "inventory_bronze_files_sensor",
    }
    ui.dagster.ask(RESET_CURSOR, sensor=selector)

    def renewed() -> bool:
        node = ui.dagster.ask(TOLD, key={"path": ["inventory_bronze", "bz_returns"]})["assetNodeOrError"]
        for event in node["assetMaterializations"]:
            entries = {entry["label"]: entry.get("intValue") for entry in event["metadataEntries"]}
            if "confirmed_at" in entries and entries["rows"] == 0:
                return True
        return False

    until(renewed, 120)
