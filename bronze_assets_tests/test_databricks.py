"""Assets on Databricks, end to end: Dagster's command line, the real launcher and Pipes clients, a strict workspace.

Each step runs in a clean process that has no checkout, with a session of its own on the tests' JVM.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime as dt
import io
import json
import shutil
import signal
import subprocess
import tempfile
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
from pyspark.sql import SparkSession

from bronze_assets import engine, shipping
from bronze_assets.catalog import TABLES
from bronze_assets.demo import postgres
from bronze_assets.load import load
from bronze_assets.orchestration.assets import asset_key
from bronze_assets.workbench import Options, Run, Workbench
from bronze_assets_tests import lake_reader
from bronze_assets_tests.conftest import Server, settings_for
from bronze_assets_tests.fake_workspace import CLUSTER, FakeWorkspace, Fault, gateway_of, serving
from bronze_assets_tests.on_databricks import CATALOG, SCOPE, Environment, secret_values

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


@contextlib.contextmanager
def environment(spark: SparkSession, source_url: str) -> Iterator[Environment]:
    """An environment `dev` with a workspace, whose schemas somebody has made, as Terraform does."""
    # A path without a word that the launcher leaves out, as pytest's own has.
    place = Path(tempfile.mkdtemp(prefix="bronze-"))
    schemas = dict.fromkeys(table.schema for table in TABLES)
    secrets = secret_values(source_url)
    try:
        for schema in schemas:
            spark.sql(f"create schema {CATALOG}.{schema} location '{place / 'lake' / schema}'")
        with serving(
            place / "workspace", gateway=gateway_of(spark), spark_conf=engine.INTERPRETED, secrets=secrets
        ) as found:
            found.add_volume(f"{CATALOG}.platform.files")
            found.add_volume(f"{CATALOG}.platform.staging")
            yield Environment(place / "host", place / "lake", found)
    finally:
        for schema in schemas:
            spark.sql(f"drop schema if exists {CATALOG}.{schema} cascade")
        shutil.rmtree(place, ignore_errors=True)


@pytest.fixture
def dev(spark: SparkSession, sample_url: str) -> Iterator[Environment]:
    with environment(spark, sample_url) as found:
        yield found


@pytest.fixture
def workspace(dev: Environment) -> FakeWorkspace:
    return dev.workspace


@dataclasses.dataclass(frozen=True)
class Loaded:
    """Some tables, loaded once through the launcher.

    Attributes:
        url: of the source.
        staged: name → contents of what lay on DBFS meanwhile.
        done: Dagster's command line.
    """

    dev: Environment
    url: str
    staged: dict[str, set[bytes]]
    done: subprocess.CompletedProcess[str]


NAMES = ("bz_warehouses", "bz_customers", "bz_products", "bz_orders")


@pytest.fixture(scope="class")
def loaded(spark: SparkSession, server: Server, sample_template: str) -> Iterator[Loaded]:
    url = server.make_database(sample_template)
    with environment(spark, url) as dev:
        dev.databricks = PRICES
        with copied(dev.workspace.dbfs) as staged:
            done = dev.materialise(*NAMES, partition=today())
        yield Loaded(dev, url, staged, done)
    server.drop_database(url)


@contextlib.contextmanager
def copied(folder: Path) -> Iterator[dict[str, set[bytes]]]:
    """What lies in a folder for a while, before it is removed."""
    found: dict[str, set[bytes]] = {}
    over = threading.Event()

    def copy() -> None:
        while not over.wait(0.2):
            for path in folder.rglob("*"):
                with contextlib.suppress(OSError):
                    found.setdefault(path.name, set()).add(path.read_bytes())

    thread = threading.Thread(target=copy)
    thread.start()
    try:
        yield found
    finally:
        over.set()
        thread.join()


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


class TestTablesLoadedThroughTheStepLauncher:
    def test_they_are_loaded_there_and_told_here(self, loaded: Loaded) -> None:
        dev, workspace = loaded.dev, loaded.dev.workspace
        assert loaded.done.returncode == 0, loaded.done.stderr[-3000:]
        assert [run.state[:2] for run in workspace.runs] == [("TERMINATED", "SUCCESS")] * len(NAMES)
        # Values and counts, from the source and from the lake's own log.
        expected = source_rows(loaded.url, "select count(*) from tests.warehouses")
        assert len(rows(dev, "bz_warehouses")) == expected
        emails = [row["email"] for row in rows(dev, "bz_customers", "email") if row["email"]]
        assert emails
        assert {email.split(":")[0] for email in emails} == {"enc"}
        with dev.instance() as instance:
            told = metadata(instance, "bz_warehouses")
            run = run_of(instance)
            keys = [dg.AssetCheckKey(asset_key(BY_NAME["bz_warehouses"]), name) for name in ("schema", "conservation")]
            checks = instance.event_log_storage.get_latest_asset_check_execution_by_key(keys)
        assert told["read"] == told["loaded"] == expected
        assert told["dagster/row_count"] == expected
        # Cost: 3 nodes for these seconds, worked out by hand from the price table.
        assert told["databricks/cluster"] == CLUSTER
        assert (told["databricks/node_type"], told["databricks/workers"]) == ("i3.xlarge", 2)
        hourly = 3 * 1.0 * 0.3 + 3 * 0.25
        assert told["databricks/cost"] == pytest.approx(told["seconds"] / 3600 * hourly)
        assert told["databricks/cost_per_gb"] == pytest.approx(told["databricks/cost"] / told["bytes_written"] * 1e9)
        assert told["databricks/currency"] == "EUR"
        # The run is tagged by the host, and links to its pages.
        assert set(run.tags["bronze/table"].split(", ")) == {*NAMES}
        assert run.tags["bronze/batch"] == f"{today()}/1"
        assert run.tags["bronze/environment"] == "dev"
        pages = run.tags["bronze/databricks_run"].split(", ")
        assert len(pages) == len(NAMES)
        assert all(page.startswith(workspace.url) for page in pages)
        assert [check.status.value for check in checks.values() if check] == ["SUCCEEDED"] * 2

    def test_no_secret_is_staged_and_only_the_package_is_shipped(self, loaded: Loaded) -> None:
        workspace = loaded.dev.workspace
        assert loaded.staged.keys() >= {"code.zip", "config.pkl", "step_run_ref.pkl", "databricks_step_main.py"}
        keys = json.loads(workspace.secrets[SCOPE]["master-key"])["versions"].values()
        for word in [loaded.url, *keys, workspace.token]:
            assert not [name for name, found in loaded.staged.items() if any(word.encode() in one for one in found)]
            assert word not in loaded.done.stdout + loaded.done.stderr
        package = Path(shipping.__file__).parent
        expected = {
            f"bronze_assets/{path.relative_to(package).as_posix()}"
            for path in package.rglob("*")
            if path.is_file() and "__pycache__" not in path.parts
        }
        # The largest is whole; others were read while they were written.
        with zipfile.ZipFile(io.BytesIO(max(loaded.staged["code.zip"], key=len))) as zipped:
            assert set(zipped.namelist()) == expected
        # Nothing of it is left behind.
        assert not [path for path in workspace.dbfs.rglob("*") if path.is_file()]

    def test_they_are_row_for_row_those_of_a_local_load(
        self, loaded: Loaded, tmp_path: Path, jars: Path, spark: SparkSession
    ) -> None:
        key = tmp_path / "master.key"
        key.write_text(loaded.dev.workspace.secrets[SCOPE]["master-key"], encoding="utf-8")
        key.chmod(0o600)
        local = settings_for(
            tmp_path / "local",
            {"BRONZE_SOURCE_URL": loaded.url, "BRONZE_JARS": str(jars), "BRONZE_MASTER_KEY": f"file:{key}"},
        )
        with Workbench.open(local) as bench:
            for name in NAMES:
                load(BY_NAME[name], today(), bench, Run("local", "manual"), Options())

        for name in NAMES:
            for part in (name, f"{name}_quarantine"):
                there, here = table_path(loaded.dev, part), local.lake / SCHEMA / part
                assert lake_reader.column_types(there) == lake_reader.column_types(here)
                assert lake_reader.partition_columns(there) == lake_reader.partition_columns(here)
                assert comparable(there) == comparable(here)
            assert comparable(table_path(loaded.dev, name))


class TestThroughTheStepLauncher:
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
            with dev.started("bz_warehouses", partition=today()) as host:
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
        commits = table_path(dev, "bz_warehouses") / "_delta_log"
        with dev.started("bz_warehouses", partition=today()) as host:
            # Its rows are there, and nothing says yet that the load has ended. The first commit makes the table.
            _after(lambda: (commits / f"{1:020}.json").exists())
            workspace.kill_driver(workspace.runs[0].run_id)
            assert host.wait(300) == 0

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

    def test_a_run_that_is_skipped_is_told(self, dev: Environment, workspace: FakeWorkspace) -> None:
        workspace.faults.append(Fault("POST", r".*/jobs/runs/submit", run="skip"))

        done = dev.materialise("bz_warehouses", partition=today())

        assert done.returncode != 0
        with dev.instance() as instance:
            words = failure(instance)
        assert "Databricks has skipped run" in words
        assert workspace.runs[0].state[0] == "SKIPPED"

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

    def test_who_cancels_ends_the_run_there_and_starts_no_other(
        self, without_dbfs: Environment, workspace: FakeWorkspace
    ) -> None:
        dev = without_dbfs
        workspace.faults.append(Fault("POST", r".*/jobs/runs/submit", run="never_starts"))

        with dev.started("bz_sensor_data", "bz_equipment_logs", partition=today()) as host:
            _after(lambda: workspace.runs)
            time.sleep(1)
            host.send_signal(signal.SIGINT)
            host.wait(60)

        (run,) = workspace.runs
        assert run.state[1] == "CANCELED"
        with dev.instance() as instance:
            assert run_of(instance).status in (dg.DagsterRunStatus.FAILURE, dg.DagsterRunStatus.CANCELED)

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
