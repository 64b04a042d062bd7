"""Assets on Databricks, end to end: Dagster's command line, the real launcher and Pipes clients, a strict workspace.

Each step runs in a clean process that has no checkout, with a session of its own on the tests' JVM.
"""

from __future__ import annotations

import datetime as dt
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
from pyspark.sql import SparkSession

from bronze_assets import shipping
from bronze_assets.catalog import TABLES
from bronze_assets.demo import postgres
from bronze_assets.orchestration.assets import asset_key
from bronze_assets_tests import lake_reader
from bronze_assets_tests.fake_workspace import CLUSTER, FakeWorkspace, Fault, gateway_of, serving
from bronze_assets_tests.on_databricks import CATALOG, INTERPRETED, SCOPE, Environment, secret_values

BY_NAME = {table.name: table for table in TABLES}
SCHEMA = lake_reader.SCHEMA
# What differs between two runs of the same load: moments, and what is made of a batch's moment.
TIMES = {"load_timestamp", "update_timestamp", "load_date", "source_position"}
PRICES = (
    "[databricks.prices]",
    'currency = "EUR"',
    "dbu = 0.3",
    'nodes = {"i3.xlarge" = {dbu_per_hour = 1.0, vm_per_hour = 0.25}}',
)


def today() -> str:
    return dt.datetime.now(dt.UTC).date().isoformat()


@pytest.fixture
def place() -> Iterator[Path]:
    """A folder whose path has no word that the launcher leaves out, as pytest's own has."""
    folder = Path(tempfile.mkdtemp(prefix="bronze-"))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def workspace(place: Path, spark: SparkSession, sample_url: str) -> Iterator[FakeWorkspace]:
    secrets = secret_values(sample_url)
    with serving(place / "workspace", gateway=gateway_of(spark), spark_conf=INTERPRETED, secrets=secrets) as found:
        found.add_volume(f"{CATALOG}.platform.files")
        found.add_volume(f"{CATALOG}.platform.staging")
        yield found


@pytest.fixture
def dev(place: Path, spark: SparkSession, workspace: FakeWorkspace) -> Iterator[Environment]:
    """An environment whose schemas somebody has made, as Terraform does."""
    schemas = dict.fromkeys(table.schema for table in TABLES)
    for schema in schemas:
        spark.sql(f"create schema {CATALOG}.{schema} location '{place / 'lake' / schema}'")
    yield Environment(place / "host", place / "lake", workspace)
    for schema in schemas:
        spark.sql(f"drop schema {CATALOG}.{schema} cascade")


def table_path(dev: Environment, name: str) -> Path:
    return dev.lake / SCHEMA / name


def run_of(instance: dg.DagsterInstance) -> dg.DagsterRun:
    """The latest run."""
    return instance.get_runs(limit=1)[0]


def metadata(instance: dg.DagsterInstance, name: str) -> dict[str, Any]:
    """Of the latest materialisation."""
    (record,) = instance.fetch_materializations(asset_key(BY_NAME[name]), limit=1).records
    assert record.asset_materialization is not None
    return {key: value.value for key, value in record.asset_materialization.metadata.items()}


def failure(instance: dg.DagsterInstance) -> str:
    """What the latest run's failed step says."""
    events = instance.all_logs(run_of(instance).run_id, of_type=dg.DagsterEventType.STEP_FAILURE)
    errors = [event.get_dagster_event().step_failure_data for event in events]
    found = errors[-1]
    assert found.error is not None
    said = found.user_failure_data.description if found.user_failure_data else None
    return said or found.error.message


def rows(dev: Environment, name: str, columns: str = "*") -> list[dict[str, Any]]:
    return lake_reader.read(table_path(dev, name), f"select {columns} from t")


def source_rows(url: str, query: str) -> int:
    with postgres.connect(url) as connection, connection.cursor() as cursor:
        cursor.execute(query)
        (found,) = cursor.fetchone() or (None,)
        return int(found)


class TestThroughTheStepLauncher:
    def test_a_partition_is_loaded_there_and_told_here(
        self, dev: Environment, workspace: FakeWorkspace, sample_url: str
    ) -> None:
        dev.databricks = PRICES

        done = dev.materialise("bz_warehouses", "bz_customers", partition=today())

        assert done.returncode == 0, done.stderr[-3000:]
        assert [run.state[:2] for run in workspace.runs] == [("TERMINATED", "SUCCESS")] * 2
        # Values and counts, from the source and from the lake's own log.
        expected = source_rows(sample_url, "select count(*) from tests.warehouses")
        assert len(rows(dev, "bz_warehouses")) == expected
        assert {row["email"].split(":")[0] for row in rows(dev, "bz_customers", "email") if row["email"]} == {"enc"}
        with dev.instance() as instance:
            told = metadata(instance, "bz_warehouses")
            run = run_of(instance)
            checks = instance.event_log_storage.get_latest_asset_check_execution_by_key(
                [dg.AssetCheckKey(asset_key(BY_NAME["bz_warehouses"]), name) for name in ("schema", "conservation")]
            )
        assert told["read"] == told["loaded"] == expected
        assert told["dagster/row_count"] == expected
        # Cost: 3 nodes for these seconds, worked out by hand from the price table.
        assert told["databricks/cluster"] == CLUSTER
        assert (told["databricks/node_type"], told["databricks/workers"]) == ("i3.xlarge", 2)
        hourly = 3 * 1.0 * 0.3 + 3 * 0.25
        assert told["databricks/cost"] == pytest.approx(told["seconds"] / 3600 * hourly)
        assert told["databricks/cost_per_gb"] == pytest.approx(told["databricks/cost"] / told["bytes_written"] * 1e9)
        assert told["databricks/currency"] == "EUR"
        # The run is tagged by the host, and links to its page.
        assert set(run.tags["bronze/table"].split(", ")) == {"bz_warehouses", "bz_customers"}
        assert run.tags["bronze/batch"] == f"{today()}/1"
        assert run.tags["bronze/environment"] == "dev"
        for one in run.tags["bronze/databricks_run"].split(", "):
            assert one.startswith(workspace.url)
        assert {check.status.value for check in checks.values() if check} == {"SUCCEEDED"}
        assert len(checks) == 2

    def test_no_secret_is_staged_and_only_the_package_is_shipped(
        self, dev: Environment, workspace: FakeWorkspace, sample_url: str
    ) -> None:
        done = dev.materialise("bz_warehouses", partition=today())

        assert done.returncode == 0, done.stderr[-3000:]
        staged = [path for path in workspace.dbfs.rglob("*") if path.is_file()]
        assert {path.name for path in staged} >= {"code.zip", "config.pkl", "step_run_ref.pkl"}
        secret = [sample_url, *json.loads(workspace.secrets[SCOPE]["master-key"])["versions"].values()]
        for path in staged:
            content = path.read_bytes()
            for word in [*secret, workspace.token]:
                assert word.encode() not in content, path.name
        (zipped,) = (path for path in staged if path.name == "code.zip")
        names = subprocess.run(
            [sys.executable, "-m", "zipfile", "-l", str(zipped)], capture_output=True, text=True, check=True
        ).stdout
        shipped = {line.split()[0] for line in names.splitlines()[1:]}
        package = Path(shipping.__file__).parent
        assert shipped == {
            f"bronze_assets/{path.relative_to(package).as_posix()}"
            for path in package.rglob("*")
            if path.is_file() and "__pycache__" not in path.parts
        }
        assert workspace.token not in done.stdout + done.stderr
        assert sample_url not in done.stdout + done.stderr

    def test_the_tables_are_row_for_row_those_of_a_local_load(
        self, dev: Environment, workspace: FakeWorkspace, sample_url: str, place: Path, jars: Path
    ) -> None:
        names = ["bz_products", "bz_orders", "bz_suppliers"]

        done = dev.materialise(*names, partition=today())
        assert done.returncode == 0, done.stderr[-3000:]
        key = place / "master.key"
        key.write_text(workspace.secrets[SCOPE]["master-key"], encoding="utf-8")
        key.chmod(0o600)
        local = {name: value for name, value in os.environ.items() if not name.startswith("BRONZE_")} | {
            "BRONZE_HOME": str(place / "local"),
            "BRONZE_SOURCE_URL": sample_url,
            "BRONZE_CAPTURE": "off",
            "BRONZE_JARS": str(jars),
            "BRONZE_MASTER_KEY": f"file:{key}",
            "DAGSTER_HOME": str(dev.home / "dagster"),
        }
        keys = ",".join(f"key:{SCHEMA}/{name}" for name in names)
        command = [sys.executable, "-m", "dagster", "asset", "materialize", "-m", "bronze_assets.definitions"]
        subprocess.run(
            [*command, "--select", keys, "--partition", today()],
            env=local,
            cwd=place,
            check=True,
            capture_output=True,
            timeout=300,
        )

        for name in names:
            for part in (name, f"{name}_quarantine"):
                there = table_path(dev, part)
                here = place / "local" / "lake" / SCHEMA / part
                assert lake_reader.column_types(there) == lake_reader.column_types(here)
                assert lake_reader.partition_columns(there) == lake_reader.partition_columns(here)
                left, right = comparable(there), comparable(here)
                assert left == right
                assert left or part != name

    def test_a_backfill_is_one_run_with_a_record_for_each_day(self, dev: Environment, workspace: FakeWorkspace) -> None:
        assert dev.materialise("bz_orders", partition=today()).returncode == 0
        first = dt.date.fromisoformat(today()) - dt.timedelta(days=3)
        last = first + dt.timedelta(days=2)

        done = dev.materialise("bz_orders", partition=f"{first}...{last}", partition_range=True)

        assert done.returncode == 0, done.stderr[-3000:]
        assert len(workspace.runs) == 2
        days = {(first + dt.timedelta(days=number)).isoformat() for number in range(3)}
        with dev.instance() as instance:
            assert instance.get_materialized_partitions(asset_key(BY_NAME["bz_orders"])) == days | {today()}
            assert run_of(instance).tags["bronze/trigger"] == "backfill"
        batches = {row["batch_id"].split("/")[0] for row in rows(dev, "bz_audit_log", "batch_id")}
        assert batches == days | {today()}

    def test_a_contract_that_is_broken_stops_the_load_and_says_so_here(self, dev: Environment, sample_url: str) -> None:
        with postgres.connect(sample_url) as connection, connection.cursor() as cursor:
            cursor.execute("alter table tests.warehouses rename column capacity to size")

        done = dev.materialise("bz_warehouses", partition=today())

        assert done.returncode != 0
        with dev.instance() as instance:
            checks = instance.event_log_storage.get_latest_asset_check_execution_by_key(
                [dg.AssetCheckKey(asset_key(BY_NAME["bz_warehouses"]), "schema")]
            )
            (check,) = checks.values()
            assert check is not None
            assert check.status.value == "FAILED"
            assert "capacity" in failure(instance)
        assert not (table_path(dev, "bz_warehouses") / "_delta_log").exists()

    def test_a_source_that_comes_back_is_asked_again(
        self, dev: Environment, workspace: FakeWorkspace, sample_url: str
    ) -> None:
        good = workspace.secrets[SCOPE]["source-url"]
        # Nobody listens there.
        workspace.secrets[SCOPE]["source-url"] = "postgresql://bronze:x@127.0.0.1:1/x"

        def mend() -> None:
            _after(lambda: any(run.ended for run in workspace.runs))
            workspace.secrets[SCOPE]["source-url"] = good

        mended = threading.Thread(target=mend)
        mended.start()

        done = dev.materialise("bz_warehouses", partition=today())

        mended.join()
        assert done.returncode == 0, done.stderr[-3000:]
        assert len(workspace.runs) == 2
        with dev.instance() as instance:
            run_id = run_of(instance).run_id
            retries = instance.all_logs(run_id, of_type=dg.DagsterEventType.STEP_UP_FOR_RETRY)
            assert len(retries) == 1
        assert {row["status"] for row in rows(dev, "bz_audit_log")} == {"FAILED", "SUCCESS"}


def _after(condition: Callable[[], object], seconds: float = 120.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def comparable(path: Path) -> list[str]:
    """Rows without what is another's in every run: moments, ids, and the ciphers of protected values."""
    found = []
    for row in lake_reader.read(path):
        kept = {name: value for name, value in row.items() if name not in TIMES and not isinstance(value, dt.datetime)}
        for name, value in kept.items():
            if isinstance(value, str) and value.startswith("enc:"):
                kept[name] = "enc"
        found.append(json.dumps(kept, default=str, sort_keys=True))
    return sorted(found)


class TestFaults:
    def test_a_load_that_is_cancelled_ends_there_and_leaves_nothing_half_done(
        self, dev: Environment, workspace: FakeWorkspace, sample_url: str
    ) -> None:
        with postgres.connect(sample_url) as blocker, blocker.cursor() as cursor:
            # The load's read of the source waits for this.
            blocker.autocommit = False
            cursor.execute("lock table tests.warehouses in access exclusive mode")
            command = [sys.executable, "-m", "dagster", "asset", "materialize", "-m", "bronze_assets.definitions"]
            command += ["--select", f"key:{SCHEMA}/bz_warehouses", "--partition", today()]
            with subprocess.Popen(
                command, env=dev.variables, cwd=dev.home, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
            ) as host:
                _after(lambda: (table_path(dev, "bz_leases") / "_delta_log").exists())
                host.send_signal(signal.SIGINT)
                host.wait(60)
        (run,) = workspace.runs
        workspace.wait(run.run_id)
        assert run.state[:2] == ("TERMINATED", "CANCELED")
        assert run.exit_code is not None
        with dev.instance() as instance:
            assert run_of(instance).status in (dg.DagsterRunStatus.FAILURE, dg.DagsterRunStatus.CANCELED)

        # The next load finishes or takes back what was begun.
        done = dev.materialise("bz_warehouses", partition=today())

        assert done.returncode == 0, done.stderr[-3000:]
        assert len(rows(dev, "bz_warehouses")) == source_rows(sample_url, "select count(*) from tests.warehouses")

    def test_a_driver_that_crashes_is_tried_again(
        self, dev: Environment, workspace: FakeWorkspace, sample_url: str
    ) -> None:
        workspace.faults.append(Fault("POST", r".*/jobs/runs/submit", run="crash_driver", after=6.0))

        done = dev.materialise("bz_warehouses", partition=today())

        assert done.returncode == 0, done.stderr[-3000:]
        first, second = workspace.runs
        assert first.state[1] != "SUCCESS"
        assert second.state[1] == "SUCCESS"
        assert len(rows(dev, "bz_warehouses")) == source_rows(sample_url, "select count(*) from tests.warehouses")

    def test_a_token_that_has_expired_is_named(self, dev: Environment, workspace: FakeWorkspace) -> None:
        workspace.expire_token()

        done = dev.materialise("bz_warehouses", partition=today())

        assert done.returncode != 0
        with dev.instance() as instance:
            assert "refuses who is signed in" in failure(instance)
            assert "renew DATABRICKS_TOKEN" in failure(instance)
        assert workspace.token not in done.stdout + done.stderr
        assert not workspace.runs

    def test_busy_answers_and_a_lost_connection_are_waited_out(
        self, dev: Environment, workspace: FakeWorkspace
    ) -> None:
        workspace.faults += [
            Fault("POST", r".*/dbfs/create", status=429, retry_after=1, times=2),
            Fault("GET", r".*/jobs/runs/get", status=503, retry_after=1, times=2),
            Fault("GET", r".*/jobs/runs/get", drop=True, times=1),
            Fault("GET", r".*/dbfs/read", drop=True, times=1),
        ]

        done = dev.materialise("bz_warehouses", partition=today())

        assert done.returncode == 0, done.stderr[-3000:]
        assert not [fault for fault in workspace.faults if fault.times]
        assert len(workspace.runs) == 1

    def test_a_run_that_never_starts_is_ended_and_told(self, dev: Environment, workspace: FakeWorkspace) -> None:
        dev.databricks = ("start_timeout_seconds = 3", "run_timeout_seconds = 600")
        workspace.faults.append(Fault("POST", r".*/jobs/runs/submit", run="never_starts"))

        done = dev.materialise("bz_warehouses", partition=today())

        assert done.returncode != 0
        with dev.instance() as instance:
            assert "has not started in 3 s and was cancelled" in failure(instance)
        assert workspace.runs[0].state[1] == "CANCELED"

    def test_nothing_is_shipped_from_a_path_that_the_launcher_leaves_out(
        self, dev: Environment, workspace: FakeWorkspace, tmp_path: Path
    ) -> None:
        dev.home = tmp_path / "pytest" / "host"

        done = dev.materialise("bz_warehouses", partition=today())

        assert done.returncode != 0
        assert "would ship nothing" in done.stderr
        assert not workspace.runs

    def test_another_version_on_the_cluster_ends_the_run_before_it_loads(
        self, dev: Environment, workspace: FakeWorkspace
    ) -> None:
        dev.databricks = ('libraries = ["psutil==1.0"]',)

        done = dev.materialise("bz_warehouses", partition=today())

        assert done.returncode != 0
        assert not (table_path(dev, "bz_warehouses") / "_delta_log").exists()


@pytest.mark.parametrize("launch", ["pipes", "serverless"])
class TestThroughPipes:
    @pytest.fixture
    def without_dbfs(self, dev: Environment, workspace: FakeWorkspace, launch: str) -> Environment:
        workspace.dbfs_enabled = False
        dev.databricks = (f'launch = "{launch}"', f'staging_volume = "/Volumes/{CATALOG}/platform/staging"')
        (workspace.volumes / CATALOG / "platform" / "staging").mkdir(parents=True, exist_ok=True)
        if launch == "serverless":
            dev.cluster = ()
        return dev

    def test_files_are_loaded_there_and_told_here(
        self, without_dbfs: Environment, workspace: FakeWorkspace, launch: str
    ) -> None:
        dev = without_dbfs
        drop_measurements(workspace)

        done = dev.materialise("bz_sensor_data", partition=today())

        assert done.returncode == 0, done.stderr[-3000:]
        (run,) = workspace.runs
        assert run.state[:2] == ("TERMINATED", "SUCCESS")
        assert not [path for _, path in workspace.requests if "/dbfs/" in path]
        with dev.instance() as instance:
            told = metadata(instance, "bz_sensor_data")
            assert run_of(instance).tags["bronze/databricks_run"].startswith(workspace.url)
        assert (told["read"], told["loaded"], told["quarantined"]) == (3, 2, 1)
        assert ("databricks/cluster" in told) is (launch == "pipes")

    def test_a_database_is_read_on_a_cluster_only(
        self, without_dbfs: Environment, workspace: FakeWorkspace, launch: str, sample_url: str
    ) -> None:
        dev = without_dbfs

        done = dev.materialise("bz_warehouses", partition=today())

        with dev.instance() as instance:
            if launch == "serverless":
                assert done.returncode != 0
                assert "serverless compute has no JDBC" in failure(instance)
            else:
                assert done.returncode == 0, done.stderr[-3000:]
                found = metadata(instance, "bz_warehouses")["loaded"]
                assert found == source_rows(sample_url, "select count(*) from tests.warehouses")


def drop_measurements(workspace: FakeWorkspace) -> None:
    """Three rows in the landing zone, one of which has no key."""
    folder = workspace.volumes / CATALOG / "platform" / "files" / "landing" / "raw" / "sensor-data" / today()
    folder.mkdir(parents=True)
    moment = dt.datetime.now(dt.UTC).replace(microsecond=0).isoformat()
    lines = [
        {"sensor_id": name, "timestamp": moment, "temperature": 21.5, "humidity": 40, "pressure": 1000}
        for name in ("s-1", "s-2", None)
    ]
    (folder / "one.json").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
