"""What goes to Databricks, without Databricks: clusters in the API's and the launcher's words, code, versions, cost."""

from __future__ import annotations

import dataclasses
import datetime as dt
import importlib.metadata
import json
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
from dagster_databricks import databricks_pyspark_step_launcher
from dagster_databricks.databricks import DatabricksJobRunner
from databricks.sdk.service import jobs

from bronze_assets import databricks_job, shipping
from bronze_assets.catalog import TABLES
from bronze_assets.databricks_settings import Cluster, Databricks, NodePrice, Prices
from bronze_assets.definitions import build_definitions
from bronze_assets.errors import SettingsError
from bronze_assets.orchestration.assets import asset_key
from bronze_assets.orchestration.databricks import launcher_config, step_launcher
from bronze_assets.orchestration.jobs import file_jobs
from bronze_assets.orchestration.watch import Watch
from bronze_assets.settings import Settings
from bronze_assets_tests.conftest import settings_for

BY_NAME = {table.name: table for table in TABLES}
AZURE = "https://adb-1234567890123456.7.azuredatabricks.net"
POOLED = Cluster.model_validate(
    {"spark_version": "17.3.x-scala2.13", "instance_pool_id": "pool-1", "autoscale": {"min": 1, "max": 4}}
)
SPOT = Cluster.model_validate(
    {
        "spark_version": "17.3.x-scala2.13",
        "policy_id": "policy-1",
        "node_type_id": "Standard_D4ds_v5",
        "driver_node_type_id": "Standard_D8ds_v5",
        "workers": 2,
        "spot": True,
        "spark_conf": {"spark.sql.shuffle.partitions": "8"},
    }
)


@pytest.fixture
def home() -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="bronze-"))
    yield folder
    shutil.rmtree(folder)


def settings_of(home: Path, **databricks: Any) -> Settings:
    file = {"host": AZURE, "cluster": {"existing_cluster_id": "1127-101010-abcdefgh"}, **databricks}
    plain = settings_for(
        home,
        {
            "BRONZE_ENV": "dev",
            "BRONZE_CATALOG": "dev_inventory",
            "BRONZE_LANDING": "abfss://files@account.dfs.core.windows.net/landing",
            "BRONZE_SOURCE_URL": "databricks-secret://bronze/source-url",
            "BRONZE_MASTER_KEY": "databricks-secret://bronze/master-key",
        },
    )
    there = Databricks.model_validate(file)
    return dataclasses.replace(plain, databricks=there, databricks_host=AZURE, prices=there.prices)


def submitted(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What dagster-databricks makes of our configuration: the task that is submitted, after the watch around it."""
    config = launcher_config(settings, "run-1")
    # Its own schema is the judge.
    monkeypatch.setenv("DATABRICKS_TOKEN", "dapi-of-the-test")
    with dg.build_init_resource_context(config=config) as context:
        launcher: Any = databricks_pyspark_step_launcher(context)
    runner: DatabricksJobRunner = launcher.databricks_runner
    asked: dict[str, Any] = {}

    class Waiter:
        @staticmethod
        def bind() -> dict[str, int]:
            return {"run_id": 1}

    def submit(**arguments: Any) -> Waiter:
        asked.update(arguments)
        return Waiter()

    monkeypatch.setattr(runner.client.workspace_client.jobs, "submit", submit)
    monkeypatch.setattr(runner.client.workspace_client.jobs, "get_run", lambda _: jobs.Run(run_page_url=f"{AZURE}/1"))
    with Watch(runner.client.workspace_client, settings, "a table", lambda _: None):
        runner.submit_run(launcher.run_config, {"spark_python_task": {"python_file": "dbfs:/x.py", "parameters": []}})
    assert len(asked["idempotency_token"]) == 32
    (task,) = asked["tasks"]
    assert isinstance(task, jobs.SubmitTask)
    return {**task.as_dict(), "timeout_seconds": asked["timeout_seconds"], "run_name": asked["run_name"]}


def test_a_job_cluster_is_the_same_for_the_launcher_and_for_pipes(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for cluster in (POOLED, SPOT):
        settings = settings_of(home, cluster=cluster.model_dump(exclude_unset=True))
        told = submitted(settings, monkeypatch)["new_cluster"]
        told.pop("custom_tags")
        assert told == databricks_job.new_cluster(cluster, AZURE)


def test_a_spot_cluster_has_workers_on_spot_and_its_driver_on_demand() -> None:
    told = databricks_job.new_cluster(SPOT, AZURE)
    assert told["azure_attributes"] == {
        "availability": "SPOT_WITH_FALLBACK_AZURE",
        "first_on_demand": 1,
        "spot_bid_max_price": -1.0,
    }
    assert told["num_workers"] == 2
    assert told["policy_id"] == "policy-1"
    # Rows are not protected yet when they are shuffled.
    assert told["spark_conf"] == {"spark.io.encryption.enabled": "true", "spark.sql.shuffle.partitions": "8"}
    assert databricks_job.new_cluster(POOLED, AZURE)["autoscale"] == {"min_workers": 1, "max_workers": 4}


@pytest.mark.parametrize(
    ("workspace", "key"),
    [
        (AZURE, "azure_attributes"),
        ("https://1.2.gcp.databricks.com", "gcp_attributes"),
        ("https://dbc-1.cloud.databricks.com", "aws_attributes"),
    ],
)
def test_the_cloud_is_known_by_the_address(workspace: str, key: str) -> None:
    assert [*databricks_job.spot_attributes(workspace)] == [key]
    assert key in databricks_job.new_cluster(SPOT, workspace)


def test_an_existing_cluster_gets_the_hosts_versions(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    psutil = f"psutil=={importlib.metadata.version('psutil')}"
    settings = settings_of(home, libraries=["azure-identity==1.25.1", psutil], run_timeout_seconds=7200)

    told = submitted(settings, monkeypatch)

    assert told["existing_cluster_id"] == "1127-101010-abcdefgh"
    assert told["timeout_seconds"] == 7200
    packages = {one["pypi"]["package"] for one in told["libraries"]}
    for name in ("dagster", "dagster-databricks", "dagster-pyspark", "databricks-sdk", "pandera", "deltalake"):
        assert f"{name}=={importlib.metadata.version(name)}" in packages
    # Own requirements count, and none is asked for twice.
    assert {"azure-identity==1.25.1", psutil} <= packages
    names = [package.split("==")[0] for package in packages]
    assert len(names) == len(set(names))
    # Spark is Databricks' own, and the UI stays at home.
    assert not {"pyspark", "delta-spark", "dagster-webserver"} & set(names)


def test_a_library_that_loads_need_has_the_hosts_version_or_is_refused(home: Path) -> None:
    settings = settings_of(home, libraries=["PSUtil==5.9.8"])

    with pytest.raises(SettingsError, match=r"'PSUtil==5\.9\.8', but this host has PSUtil") as refused:
        launcher_config(settings, "run-1")

    assert "take it out of databricks.libraries" in str(refused.value)


def test_the_launchers_configuration_holds_no_secret(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATABRICKS_TOKEN", "dapi-of-the-test")
    config = launcher_config(settings_of(home), "run-1")
    assert "dapi-of-the-test" not in json.dumps(config)
    assert config["secrets_to_env_variables"] == []
    assert config["env_variables"]["BRONZE_SOURCE_URL"] == "databricks-secret://bronze/source-url"


def test_a_copy_of_the_package_is_all_that_is_shipped(home: Path) -> None:
    settings = settings_of(home)
    copy = shipping.clean_copy(settings)
    assert [path.name for path in copy.iterdir()] == ["bronze_assets"]
    assert not list(copy.rglob("__pycache__"))
    assert (copy / "bronze_assets" / "definitions.py").read_bytes() == Path(shipping.__file__).with_name(
        "definitions.py"
    ).read_bytes()
    assert shipping.clean_copy(settings) == copy


@pytest.mark.parametrize("word", ["pytest", "venv", "logs"])
def test_a_home_whose_files_the_launcher_leaves_out_is_refused(home: Path, word: str) -> None:
    with pytest.raises(SettingsError, match="would ship nothing from BRONZE_HOME"):
        shipping.clean_copy(settings_of(home / word))
    assert not (home / word).exists()


def test_other_code_and_other_versions_are_refused_on_the_cluster(home: Path) -> None:
    settings = settings_of(home)
    settings = dataclasses.replace(settings, shipped=shipping.manifest(settings))
    shipping.check_shipped(settings)
    told = json.loads(settings.shipped)
    for changed, words in [
        (told | {"code": "0" * 16}, "runs other code than was shipped"),
        (told | {"versions": told["versions"] | {"pandera": "0.1"}}, r"pandera \S+ instead of 0\.1"),
        (told | {"versions": told["versions"] | {"no-such-package": "1"}}, "no-such-package missing instead of 1"),
    ]:
        with pytest.raises(SettingsError, match=words):
            shipping.check_shipped(dataclasses.replace(settings, shipped=json.dumps(changed)))
    with pytest.raises(SettingsError, match="other code"):
        shipping.check_shipped(dataclasses.replace(settings, shipped=""))


def test_cost_is_told_where_a_price_is_known() -> None:
    prices = Prices(currency="EUR", dbu=0.5, nodes={"big": NodePrice(dbu_per_hour=2.0, vm_per_hour=1.0)})
    conf: dict[str, str] = {
        "spark.databricks.clusterUsageTags.clusterId": "c-1",
        "spark.databricks.clusterUsageTags.clusterNodeType": "big",
        "spark.databricks.clusterUsageTags.clusterWorkers": "3",
    }
    # Four nodes for half an hour: 4 x 0.5 x (2 x 0.5 + 1).
    assert databricks_job.cost_facts(lambda name: conf.get(name), prices, 1800) == {
        "databricks/cluster": "c-1",
        "databricks/seconds": 1800,
        "databricks/node_type": "big",
        "databricks/workers": 3,
        "databricks/cost": pytest.approx(4.0),
        "databricks/currency": "EUR",
    }
    conf["spark.databricks.clusterUsageTags.clusterNodeType"] = "odd"
    assert "databricks/cost" not in databricks_job.cost_facts(conf.get, prices, 1800)
    conf.clear()
    assert databricks_job.cost_facts(conf.get, prices, 1800) == {}


def test_steps_run_in_this_process_unless_the_settings_say_otherwise(home: Path) -> None:
    def made(settings: Settings) -> object:
        with dg.build_init_resource_context() as context:
            return step_launcher(settings)(context)

    local = settings_for(home)
    there = settings_of(home)
    assert made(local) is None
    # On the cluster, where the definitions are made anew.
    assert made(dataclasses.replace(local, on_cluster=True, catalog="c")) is None
    assert made(settings_of(home, launch="pipes", staging_volume="/Volumes/c/s/v")) is None
    assert "databricks" in str(step_launcher(there).description).lower()


def test_with_databricks_a_schedule_looks_for_files_and_no_sensor_does(home: Path) -> None:
    defs = build_definitions(settings_of(home), TABLES)
    names = {one.name for one in defs.schedules or ()}
    for job in file_jobs(TABLES, settings_of(home)):
        assert f"{job.name}_schedule" in names
    assert not [one for one in defs.sensors or () if "files" in one.name]
    today = dt.datetime.now(dt.UTC).date()
    sensors, day = BY_NAME["bz_sensor_data"], today - dt.timedelta(days=3)
    with dg.DagsterInstance.local_temp(str(home)) as instance:
        context = dg.build_schedule_context(
            instance,
            scheduled_execution_time=dt.datetime.now(dt.UTC),
            repository_def=defs.get_repository_def(),
        )
        tick = defs.resolve_schedule_def("load_manufacturing_bronze_files_schedule").evaluate_tick

        def asked() -> list[str | None]:
            return [one.partition_key for one in tick(context).run_requests or ()]

        assert asked() == [today.isoformat()]
        # Of an earlier day, seen by the last load.
        waits = {"waiting_partitions": [day.isoformat(), "2019-01-01"]}
        instance.report_runless_asset_event(dg.AssetMaterialization(asset_key(sensors), metadata=waits))
        assert asked() == [today.isoformat(), day.isoformat()]
