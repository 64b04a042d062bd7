from __future__ import annotations

import shutil
import tempfile
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dagster as dg
import pytest
from dagster._core.definitions.reconstruct import ReconstructableJob
from databricks.sdk import WorkspaceClient
from databricks.sdk.service import jobs

from bronze_assets_tests.fake_workspace import CLUSTER, FakeWorkspace, Run, gateway_of, serving

if TYPE_CHECKING:
    from pyspark.sql import SparkSession


@pytest.fixture
def workspace(tmp_path: Path) -> Iterator[FakeWorkspace]:
    """A workspace whose tasks have no Spark."""
    with serving(tmp_path / "workspace", secrets={"bronze": {"pepper": "of the test"}}) as state:
        yield state


@pytest.fixture
def client(workspace: FakeWorkspace) -> WorkspaceClient:
    return WorkspaceClient(host=workspace.url, token=workspace.token)


def submit(workspace: FakeWorkspace, script: str, *parameters: str, **fields: Any) -> int:
    """Submit a script on the cluster that is there, by the SDK."""
    (workspace.dbfs / "script.py").write_text(textwrap.dedent(script))
    task = {
        "task_key": "one",
        "spark_python_task": {"python_file": "dbfs:/script.py", "parameters": list(parameters)},
        "existing_cluster_id": CLUSTER,
        **fields,
    }
    if "new_cluster" in fields or "environment_key" in fields:
        del task["existing_cluster_id"]
    client = WorkspaceClient(host=workspace.url, token=workspace.token)
    waiter = client.jobs.submit(run_name="a test", tasks=[jobs.SubmitTask.from_dict(task)])
    return int(waiter.bind()["run_id"])


def ran(workspace: FakeWorkspace, script: str, *parameters: str, **fields: Any) -> Run:
    return workspace.wait(submit(workspace, script, *parameters, **fields))


def test_a_script_runs_in_a_process_that_cannot_import_what_only_this_machine_has(workspace: FakeWorkspace) -> None:
    workspace.local("/dbfs/data").mkdir()
    workspace.local("/dbfs/data/text").write_text("of dbfs")
    run = ran(
        workspace,
        """
        import importlib.util, os, sys
        from pathlib import Path
        import dagster
        print(Path(sys.argv[1]).read_text(), dbutils.secrets.get(scope="bronze", key="pepper"))
        for name in ("bronze_assets", "bronze_assets_tests"):
            try:
                __import__(name)
            except ModuleNotFoundError as error:
                print(error)
        print([name for name in os.environ if name.startswith(("BRONZE_", "DAGSTER_", "PYTEST_"))])
        print(os.listdir("."), "__file__" in globals(), hasattr(dbutils, "notebook"))
        """,
        "/dbfs/data/text",
    )
    assert run.stdout.read_text() == textwrap.dedent("""\
        of dbfs of the test
        No module named 'bronze_assets'
        No module named 'bronze_assets_tests'
        []
        [] False False
        """)
    assert run.state == ("TERMINATED", "SUCCESS", "")


LAUNCHED = """
import dagster as dg
from dagster_databricks import databricks_pyspark_step_launcher


@dg.asset(required_resource_keys={"launcher"})
def numbers(context):
    from pyspark.sql import SparkSession

    session = SparkSession.getActiveSession()
    assert SparkSession.active().conf.get("spark.databricks.clusterUsageTags.clusterWorkers") == "2"
    SparkSession.builder.getOrCreate().conf.set("of.the.task", "1")
    session.range(5).createTempView("five")
    return dg.MaterializeResult(
        metadata={
            "file": __file__,
            "node": session.conf.get("spark.databricks.clusterUsageTags.clusterNodeType"),
            "rows": SparkSession.builder.getOrCreate().table("five").count(),
            "set": session.conf.get("of.the.task"),
        }
    )


launched = dg.Definitions(
    assets=[numbers],
    jobs=[dg.define_asset_job("launched", executor_def=dg.in_process_executor)],
    resources={"launcher": databricks_pyspark_step_launcher},
).resolve_job_def("launched")
"""


@pytest.fixture
def package() -> Iterator[Path]:
    """A folder for a package of code: the launcher leaves out of its archive what has `pytest` in its path."""
    folder = Path(tempfile.mkdtemp(prefix="launched-"))
    yield folder
    shutil.rmtree(folder)


def launch(workspace: FakeWorkspace, package: Path, **fields: Any) -> dg.ExecuteJobResult:
    """Run the job of `LAUNCHED` through the step launcher."""
    (package / "launched_code.py").write_text(LAUNCHED)
    config = {
        "run_config": {"cluster": {"existing": CLUSTER}, "run_name": "a step"},
        "permissions": {},
        "databricks_host": workspace.url,
        "databricks_token": workspace.token,
        "env_variables": {},
        "secrets_to_env_variables": [],
        "local_dagster_job_package_path": str(package),
        "poll_interval_sec": 0.2,
        **fields,
    }
    with dg.DagsterInstance.ephemeral() as home:
        return dg.execute_job(
            ReconstructableJob.for_file(str(package / "launched_code.py"), "launched"),
            instance=home,
            run_config={"resources": {"launcher": {"config": config}}},
            raise_on_error=False,
        )


def test_the_real_step_launcher_runs_a_step_on_the_jvm_of_the_tests(
    tmp_path: Path, spark: SparkSession, package: Path
) -> None:
    with serving(tmp_path / "workspace", gateway=gateway_of(spark)) as workspace:
        result = launch(workspace, package)
        assert result.success
        (materialized,) = result.asset_materializations_for_node("numbers")
        told = {name: value.value for name, value in materialized.metadata.items()}
        file = Path(told.pop("file"))
        assert file.name == "launched_code.py"
        assert workspace.runs[0].tasks[0].folder in file.parents
        assert told == {"node": "i3.xlarge", "rows": 5, "set": "1"}
        assert [run.state for run in workspace.runs] == [("TERMINATED", "SUCCESS", "")]
    # The task's session is one of its own.
    assert spark.conf.get("of.the.task", None) is None
    assert not spark.catalog.tableExists("five")
