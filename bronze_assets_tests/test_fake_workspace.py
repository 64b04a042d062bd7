from __future__ import annotations

import io
import json
import os
import shutil
import tempfile
import textwrap
import time
import urllib.error
import urllib.request
import zipfile
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import dagster as dg
import pytest
from dagster._core.definitions.reconstruct import ReconstructableJob
from dagster_databricks import PipesDatabricksClient
from dagster_databricks.pipes import (
    PipesDatabricksServerlessClient,
    PipesUnityCatalogVolumesContextInjector,
    PipesUnityCatalogVolumesMessageReader,
)
from databricks.sdk import WorkspaceClient
from databricks.sdk.core import DatabricksError
from databricks.sdk.service import compute, jobs

from bronze_assets_tests import fake_warehouse
from bronze_assets_tests.fake_workspace import (
    CLIENT_ID,
    CLIENT_SECRET,
    CLUSTER,
    FakeWorkspace,
    Fault,
    Run,
    gateway_of,
    serving,
)

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

# Dagster's, of classes that are superseded and of Pipes' composite readers.
pytestmark = pytest.mark.filterwarnings("ignore:.*superseded", "ignore:.*currently in preview")

SUBMIT = r"/api/2\.[12]/jobs/runs/submit"
SERVERLESS = {"environment_key": "default"}
NEW = {"new_cluster": {"spark_version": "17.3.x-scala2.13", "node_type_id": "i3.2xlarge", "num_workers": 1}}
SLEEPS = """
import subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
print(child.pid, flush=True)
time.sleep(600)
"""


@pytest.fixture
def workspace(tmp_path: Path) -> Iterator[FakeWorkspace]:
    """A workspace whose tasks have no Spark."""
    with serving(tmp_path / "workspace", secrets={"bronze": {"pepper": "of the test"}}) as state:
        yield state


@pytest.fixture
def client(workspace: FakeWorkspace) -> WorkspaceClient:
    return client_of(workspace)


def client_of(workspace: FakeWorkspace) -> WorkspaceClient:
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
    more: dict[str, Any] = {name: task.pop(name) for name in ("timeout_seconds", "idempotency_token") if name in task}
    dependencies = task.pop("dependencies", [])
    if "new_cluster" in fields or "environment_key" in fields:
        del task["existing_cluster_id"]
    if "environment_key" in fields:
        spec = compute.Environment(environment_version="4", dependencies=dependencies)
        more["environments"] = [jobs.JobEnvironment("default", spec)]
    tasks = [jobs.SubmitTask.from_dict(task)]
    return int(client_of(workspace).jobs.submit(run_name="a test", tasks=tasks, **more).bind()["run_id"])


def ran(workspace: FakeWorkspace, script: str, *parameters: str, **fields: Any) -> Run:
    return workspace.wait(submit(workspace, script, *parameters, **fields))


def call(
    workspace: FakeWorkspace, method: str, path: str, body: object = None, token: str | None = None
) -> tuple[int, Any]:
    """The status and the JSON of a request that no SDK would make."""
    content = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(workspace.url + path, content, method=method)
    request.add_header("Authorization", f"Bearer {workspace.token if token is None else token}")
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


def printed(run: Run) -> str:
    """What the script has printed first, as soon as it has."""
    deadline = time.monotonic() + 120
    while not (run.stdout.exists() and run.stdout.read_text().endswith("\n")):
        assert time.monotonic() < deadline, run.stderr.read_text()
        time.sleep(0.02)
    return run.stdout.read_text().strip()


def lives(pid: int) -> bool:
    """Whether the process runs, and is no zombie that nobody has waited for yet."""
    try:
        return "State:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except FileNotFoundError:
        return False


def gone(pid: int) -> bool:
    deadline = time.monotonic() + 10
    while lives(pid) and time.monotonic() < deadline:
        time.sleep(0.02)
    return not lives(pid)


# ---- strictness


@pytest.mark.parametrize(
    ("method", "path", "body", "code"),
    [
        ("GET", "/api/2.0/mlflow/experiments/list", None, "ENDPOINT_NOT_FOUND"),
        ("POST", "/api/2.0/dbfs/move", {}, "ENDPOINT_NOT_FOUND"),
        ("POST", "/api/2.0/dbfs/create", {"path": "/x", "overwrites": True}, "INVALID_PARAMETER_VALUE"),
        ("POST", "/api/2.0/dbfs/create", {"overwrite": True}, "INVALID_PARAMETER_VALUE"),
        ("POST", "/api/2.0/dbfs/create", {"path": "/x", "overwrite": "yes"}, "MALFORMED_REQUEST"),
        ("POST", "/api/2.0/dbfs/create", {"path": "x"}, "INVALID_PARAMETER_VALUE"),
        ("POST", "/api/2.0/dbfs/create", {"path": "dbfs://x"}, "INVALID_PARAMETER_VALUE"),
        ("POST", "/api/2.0/dbfs/mkdirs", {"path": "/Volumes/a/b/c"}, "INVALID_PARAMETER_VALUE"),
        ("GET", "/api/2.0/dbfs/read?path=/x&size=1", None, "INVALID_PARAMETER_VALUE"),
        ("GET", "/api/2.0/dbfs/read?path=/x&length=much", None, "MALFORMED_REQUEST"),
        ("GET", "/api/2.0/fs/files/dbfs/a/b/c/x", None, "INVALID_PARAMETER_VALUE"),
        ("GET", "/api/2.0/fs/directories/Volumes/a/b", None, "INVALID_PARAMETER_VALUE"),
        ("GET", "/api/2.2/jobs/runs/get", None, "INVALID_PARAMETER_VALUE"),
        ("POST", "/api/2.2/jobs/runs/submit", {}, "INVALID_PARAMETER_VALUE"),
    ],
)
def test_what_nobody_documents_is_refused_and_noted(
    workspace: FakeWorkspace, method: str, path: str, body: object, code: str
) -> None:
    status, told = call(workspace, method, path, body)
    assert (status, told["error_code"]) == (404 if code == "ENDPOINT_NOT_FOUND" else 400, code)
    assert len(workspace.odd) == 1
    workspace.odd.clear()


PYTHON = {"task_key": "one", "spark_python_task": {"python_file": "dbfs:/script.py"}}


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"tags": {"a": "b"}}, "unknown fields ['.tags']"),
        ({"existing_cluster_id": None}, "needs one of"),
        ({"environment_key": "default"}, "needs one of"),
        ({"existing_cluster_id": None, "environment_key": "other"}, "there is no environment"),
        ({"existing_cluster_id": None, **SERVERLESS, "libraries": [{"pypi": {"package": "x"}}]}, "Libraries field"),
        ({"existing_cluster_id": None, "new_cluster": {"spark_version": "17.3.x-scala2.13"}}, "a cluster without"),
        ({"existing_cluster_id": None, "new_cluster": {**NEW["new_cluster"], "workers": 1}}, "'.new_cluster.workers'"),
        ({"existing_cluster_id": None, "new_cluster": {**NEW["new_cluster"], "node_type_id": "x"}}, "node_type_id: x"),
        ({"existing_cluster_id": "none"}, "Cluster none does not exist"),
        ({"spark_python_task": {"python_file": "dbfs:/script.py", "arguments": ["x"]}}, "arguments"),
        ({"depends_on": [{"task_key": "another"}]}, "depend on no other task"),
    ],
)
def test_a_run_is_refused_that_is_not_as_documented(
    workspace: FakeWorkspace, change: dict[str, Any], told: str
) -> None:
    task = {name: value for name, value in (PYTHON | {"existing_cluster_id": CLUSTER} | change).items() if value}
    environments = [{"environment_key": "default", "spec": {"environment_version": "4"}}]
    body = {"tasks": [task], "environments": environments}
    status, answer = call(workspace, "POST", "/api/2.2/jobs/runs/submit", body)
    assert status == 400
    assert told in answer["message"]
    assert workspace.runs == []
    workspace.odd.clear()


def test_a_token_must_be_one_that_is_valid_still(workspace: FakeWorkspace, client: WorkspaceClient) -> None:
    me = "/api/2.0/preview/scim/v2/Me"
    assert call(workspace, "GET", me, token="another") == (
        403,
        {"error_code": 403, "message": "Invalid access token."},
    )
    with pytest.raises(urllib.error.HTTPError) as none:
        urllib.request.urlopen(workspace.url + me, timeout=30)
    assert none.value.code == 401
    workspace.expire_token(after=2)
    assert [call(workspace, "GET", me)[0] for _ in range(3)] == [200, 200, 403]
    with pytest.raises(DatabricksError, match="token expired"):
        client.current_user.me()


def test_a_service_principal_gets_a_token_and_another_one_when_that_ends(workspace: FakeWorkspace) -> None:
    given = ("POST", "/oidc/v1/token")
    principal = WorkspaceClient(host=workspace.url, client_id=CLIENT_ID, client_secret=CLIENT_SECRET)
    principal.current_user.me()
    principal.current_user.me()
    assert workspace.requests.count(given) == 1
    # The SDK asks for the next one 40 seconds before its end.
    workspace.oauth_seconds = 35
    brief = WorkspaceClient(host=workspace.url, client_id=CLIENT_ID, client_secret=CLIENT_SECRET)
    brief.current_user.me()
    brief.current_user.me()
    assert workspace.requests.count(given) == 3
    # It does not where the workspace refuses one that looks valid.
    workspace.oauth_seconds = 3600
    later = WorkspaceClient(host=workspace.url, client_id=CLIENT_ID, client_secret=CLIENT_SECRET)
    later.current_user.me()
    workspace.expire_token()
    with pytest.raises(DatabricksError, match="token expired"):
        later.current_user.me()
    with pytest.raises(ValueError, match="invalid_client"):
        WorkspaceClient(host=workspace.url, client_id=CLIENT_ID, client_secret="another").current_user.me()


# ---- files


def test_dbfs_is_read_and_written_in_blocks_of_a_mebibyte(workspace: FakeWorkspace, client: WorkspaceClient) -> None:
    content = os.urandom(2**20 + 5)
    with client.dbfs.open("/a/b/file", write=True) as file:
        file.write(content)
    assert (workspace.dbfs / "a" / "b" / "file").read_bytes() == content
    with client.dbfs.open("/a/b/file", read=True) as file:
        assert file.read() == content
    # What is asked for without a length is half of that at most.
    assert client.dbfs.read("/a/b/file").bytes_read == 2**19
    assert client.dbfs.read("/a/b/file", offset=2**20, length=2**20).bytes_read == 5
    with pytest.raises(DatabricksError, match="1 MB"):
        client.dbfs.read("/a/b/file", length=2**20 + 1)
    with pytest.raises(DatabricksError, match="already exists"):
        client.dbfs.create("/a/b/file")
    status = client.dbfs.get_status("dbfs:/a/b/file")
    assert (status.path, status.file_size, status.is_dir) == ("/a/b/file", 2**20 + 5, False)
    assert [one.path for one in client.dbfs.list("/a")] == ["/a/b"]
    # The SDK itself would not let anybody ask that.
    assert call(workspace, "POST", "/api/2.0/dbfs/delete", {"path": "/a"})[1]["error_code"] == "IO_ERROR"
    client.dbfs.delete("/a", recursive=True)
    with pytest.raises(DatabricksError) as gone_now:
        client.dbfs.read("/a/b/file")
    assert gone_now.value.error_code == "RESOURCE_DOES_NOT_EXIST"


def test_a_block_of_more_than_a_mebibyte_is_refused(workspace: FakeWorkspace, client: WorkspaceClient) -> None:
    import base64

    handle = client.dbfs.create("/file").handle
    assert handle is not None
    with pytest.raises(DatabricksError) as refused:
        client.dbfs.add_block(handle, base64.b64encode(bytes(2**20 + 1)).decode())
    assert refused.value.error_code == "MAX_BLOCK_SIZE_EXCEEDED"
    # Nobody sees a file that is not closed.
    assert not (workspace.dbfs / "file").exists()
    client.dbfs.close(handle)
    assert (workspace.dbfs / "file").read_bytes() == b""


def test_a_workspace_without_a_dbfs_root_refuses_every_call_and_runs_nothing_from_there(
    workspace: FakeWorkspace, client: WorkspaceClient
) -> None:
    workspace.dbfs_enabled = False
    calls: list[Callable[[], object]] = [
        lambda: client.dbfs.create("/x"),
        lambda: client.dbfs.read("/x"),
        lambda: client.dbfs.put("/x", contents=""),
        lambda: client.dbfs.mkdirs("/x"),
        lambda: client.dbfs.get_status("/x"),
        lambda: list(client.dbfs.list("/x")),
        lambda: client.dbfs.delete("/x"),
    ]
    for one in calls:
        with pytest.raises(DatabricksError, match="Public DBFS root is disabled") as refused:
            one()
        assert refused.value.error_code == "PERMISSION_DENIED"
    run = ran(workspace, "print('never')")
    assert run.state[:2] == ("INTERNAL_ERROR", "FAILED")
    assert "Cannot read the python file dbfs:/script.py" in run.state[2]


def test_a_volume_holds_files_and_directories(workspace: FakeWorkspace, client: WorkspaceClient) -> None:
    folder = workspace.add_volume("main.bronze.staging")
    root = "/Volumes/main/bronze/staging"
    files = client.files
    files.create_directory(f"{root}/a b/c")
    files.upload(f"{root}/a b/c/file.txt", io.BytesIO(b"content"))
    assert (folder / "a b" / "c" / "file.txt").read_bytes() == b"content"
    download = files.download(f"{root}/a b/c/file.txt")
    assert download.contents is not None
    assert download.contents.read() == b"content"
    assert files.get_metadata(f"{root}/a b/c/file.txt").content_length == 7
    files.get_directory_metadata(f"{root}/a b")
    (entry,) = files.list_directory_contents(f"{root}/a b/c")
    assert (entry.name, entry.is_directory, entry.file_size) == ("file.txt", False, 7)
    with pytest.raises(DatabricksError, match="already exists"):
        files.upload(f"{root}/a b/c/file.txt", io.BytesIO(b"other"), overwrite=False)
    for path in ("none.txt", "a b/none/file"):
        with pytest.raises(DatabricksError, match="not found"):
            files.download(f"{root}/{path}")
    with pytest.raises(DatabricksError, match="not found"):
        files.upload(f"{root}/none/file", io.BytesIO(b""))
    with pytest.raises(DatabricksError, match=r"'main\.bronze\.none' does not exist"):
        files.upload("/Volumes/main/bronze/none/file", io.BytesIO(b""))
    with pytest.raises(DatabricksError, match="not empty"):
        files.delete_directory(f"{root}/a b")
    files.delete(f"{root}/a b/c/file.txt")
    files.delete_directory(f"{root}/a b/c")
    assert list(files.list_directory_contents(f"{root}/a b")) == []
    with pytest.raises(DatabricksError):
        files.get_directory_metadata(f"{root}/a b/c")
    for number in range(3):
        (folder / str(number)).touch()
    assert len(list(files.list_directory_contents(root, page_size=2))) == 4


# ---- what a doctor asks


def test_what_is_there_is_told_as_the_sdk_reads_it(workspace: FakeWorkspace, client: WorkspaceClient) -> None:
    workspace.add_volume("main.bronze.staging")
    location = {"name": "landing", "url": "s3://landing/", "read_only": False}
    workspace.securables["external-locations"] = {"landing": location}
    workspace.policies["P1"] = {"policy_id": "P1", "name": "small"}
    workspace.instance_pools["pool"] = {"instance_pool_id": "pool", "instance_pool_name": "warm", "state": "ACTIVE"}
    granted = [{"principal": name, "privileges": [{"privilege": "USE_CATALOG"}]} for name in ("us", "them")]
    workspace.effective_permissions["catalog", "main"] = granted
    cluster = client.clusters.get(CLUSTER)
    assert (cluster.node_type_id, cluster.num_workers, cluster.state) == ("i3.xlarge", 2, compute.State.RUNNING)
    with pytest.raises(DatabricksError, match="Cluster none does not exist"):
        client.clusters.get("none")
    assert cluster.spark_version in [one.key for one in client.clusters.spark_versions().versions or []]
    assert cluster.node_type_id in [one.node_type_id for one in client.clusters.list_node_types().node_types or []]
    assert client.cluster_policies.get("P1").name == "small"
    assert client.instance_pools.get("pool").instance_pool_name == "warm"
    assert client.current_user.me().user_name == "someone@example.com"
    assert [one.name for one in client.secrets.list_scopes()] == ["bronze"]
    assert [one.key for one in client.secrets.list_secrets("bronze")] == ["pepper"]
    assert client.dbutils.secrets.get("bronze", "pepper") == "of the test"
    for scope, key in (("none", "pepper"), ("bronze", "none")):
        with pytest.raises(DatabricksError, match="does not exist"):
            client.secrets.get_secret(scope, key)
    assert client.catalogs.get("main").name == "main"
    assert client.schemas.get("main.bronze").catalog_name == "main"
    assert client.volumes.read("main.bronze.staging").name == "staging"
    assert client.external_locations.get("landing").url == "s3://landing/"
    assert [one.name for one in client.external_locations.list()] == ["landing"]
    with pytest.raises(DatabricksError) as refused:
        client.schemas.get("main.none")
    assert refused.value.error_code == "SCHEMA_DOES_NOT_EXIST"
    effective = client.grants.get_effective("catalog", "main", principal="us").privilege_assignments or []
    assert [one.principal for one in effective] == ["us"]
    (access,) = client.permissions.get("clusters", CLUSTER).access_control_list or []
    assert access.user_name == "someone@example.com"


def test_statements_of_sql_go_to_the_warehouse(tmp_path: Path) -> None:
    warehouse = fake_warehouse.FakeWarehouse()
    with serving(tmp_path, warehouse=warehouse) as workspace:
        asked = {
            "warehouse_id": fake_warehouse.ID,
            "statement": "SELECT event_id FROM system.access.audit",
            "disposition": "INLINE",
            "format": "JSON_ARRAY",
            "on_wait_timeout": "CONTINUE",
        }
        status, told = call(workspace, "POST", "/api/2.0/sql/statements/", asked)
        assert (status, told["status"]) == (200, {"state": "SUCCEEDED"})
        assert call(workspace, "POST", "/api/2.0/sql/statements/", asked, token="another")[0] == 403


# ---- runs


def test_a_script_runs_in_a_process_that_cannot_import_what_only_this_machine_has(
    workspace: FakeWorkspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BRONZE_HOME", "of the host")
    monkeypatch.setenv("DAGSTER_HOME", "of the host")
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[1]))
    workspace.local("/dbfs/data").mkdir()
    workspace.local("/dbfs/data/text").write_text("of dbfs")
    run = ran(
        workspace,
        f"""
        import os, sys
        from pathlib import Path
        import dagster
        print(Path(sys.argv[1]).read_text(), dbutils.secrets.get(scope="bronze", key="pepper"))
        print(*(Path(one).read_text() for one in (sys.argv[2].partition("=")[2],)), sys.argv[3])
        # The step launcher puts the host's working directory there.
        sys.path.insert(0, {str(Path(__file__).parents[1])!r})
        for name in ("bronze_assets", "bronze_assets_tests"):
            try:
                __import__(name)
            except ModuleNotFoundError as error:
                print(error)
        print([name for name in os.environ if name.startswith(("BRONZE_", "DAGSTER_", "PYTEST_", "PYTHON"))])
        print(os.listdir("."), "__file__" in globals(), hasattr(dbutils, "notebook"), "spark" in globals())
        import urllib.request
        request = urllib.request.Request(os.environ["DATABRICKS_HOST"] + "/api/2.0/secrets/scopes/list")
        request.add_header("Authorization", "Bearer " + os.environ["DATABRICKS_TOKEN"])
        print(urllib.request.urlopen(request).status, os.environ["DATABRICKS_RUNTIME_VERSION"])
        """,
        "/dbfs/data/text",
        "--file=/dbfs/data/text",
        "/elsewhere/text",
    )
    assert run.stdout.read_text() == textwrap.dedent("""\
        of dbfs of the test
        of dbfs /elsewhere/text
        No module named 'bronze_assets'
        No module named 'bronze_assets_tests'
        []
        [] False False False
        200 17.3
        """)
    assert run.state == ("TERMINATED", "SUCCESS", "")
    assert run.exit_code == 0


def test_a_package_is_hidden_that_is_installed_for_good(workspace: FakeWorkspace) -> None:
    workspace.hidden = ["packaging"]
    assert "No module named 'packaging'" in ran(workspace, "import packaging").stderr.read_text()


def test_a_run_goes_through_its_states_with_its_times(workspace: FakeWorkspace, client: WorkspaceClient) -> None:
    workspace.pending_seconds = workspace.terminating_seconds = 0.5
    run_id = submit(workspace, "import time; time.sleep(0.5)", **NEW)
    seen: list[tuple[str, str | None, bool]] = []
    while not seen or seen[-1][0] not in ("TERMINATED", "INTERNAL_ERROR"):
        told = client.jobs.get_run(run_id)
        assert told.state is not None
        assert told.state.life_cycle_state is not None
        assert told.tasks is not None
        result = told.state.result_state and told.state.result_state.value
        state = (told.state.life_cycle_state.value, result, told.tasks[0].cluster_instance is not None)
        # A cluster may be there for a moment before the task runs on it.
        if state not in seen and state != ("PENDING", None, True):
            seen.append(state)
        time.sleep(0.05)
    assert seen == [
        ("PENDING", None, False),
        ("RUNNING", None, True),
        ("TERMINATING", "SUCCESS", True),
        ("TERMINATED", "SUCCESS", True),
    ]
    (task,) = told.tasks or []
    assert told.run_page_url == f"{workspace.url}/?o=7#job/{told.job_id}/run/{run_id}"
    assert told.run_duration == (told.end_time or 0) - (told.start_time or 0)
    assert 500 <= (task.setup_duration or 0) < 5000
    assert 500 <= (task.execution_duration or 0) < 5000
    assert 500 <= (task.cleanup_duration or 0) < 5000
    assert task.cluster_instance is not None
    made = client.clusters.get(task.cluster_instance.cluster_id or "")
    assert (made.node_type_id, made.num_workers, made.state) == ("i3.2xlarge", 1, compute.State.TERMINATED)
    assert [one.run_id for one in client.jobs.list_runs(completed_only=True)] == [run_id]
    assert list(client.jobs.list_runs(active_only=True)) == []


def test_a_script_that_fails_tells_why_in_the_output_of_its_task(
    workspace: FakeWorkspace, client: WorkspaceClient
) -> None:
    run = ran(workspace, "print('so far')\nraise ValueError('of the test')")
    assert run.state == (
        "INTERNAL_ERROR",
        "FAILED",
        "Task one failed with message: Workload failed, see run output for details. "
        "This caused all downstream tasks to get skipped.",
    )
    task = client.jobs.get_run(run.run_id).tasks
    assert task is not None
    output = client.jobs.get_run_output(task[0].run_id or 0)
    assert (output.logs, output.error) == ("so far\n", "ValueError: of the test")
    assert 'raise ValueError("of the test")' in (output.error_trace or "").replace("'", '"')
    assert run.exit_code == 1
    with pytest.raises(DatabricksError, match="multiple tasks is not supported"):
        client.jobs.get_run_output(run.run_id)
    with pytest.raises(DatabricksError, match="Run 7 does not exist"):
        client.jobs.get_run(7)


def test_a_file_that_is_not_there_ends_the_run(workspace: FakeWorkspace) -> None:
    run = ran(workspace, "", spark_python_task={"python_file": "dbfs:/none.py"})
    assert run.state[:2] == ("INTERNAL_ERROR", "FAILED")
    assert "Cannot read the python file dbfs:/none.py" in run.state[2]


def test_a_run_that_is_cancelled_or_takes_too_long_leaves_no_process(
    workspace: FakeWorkspace, client: WorkspaceClient
) -> None:
    run = workspace.run(submit(workspace, SLEEPS))
    child = int(printed(run))
    assert lives(child)
    client.jobs.cancel_run(run.run_id)
    assert workspace.wait(run.run_id).state == ("TERMINATED", "CANCELED", "Run cancelled.")
    assert run.exit_code == -9
    assert gone(child)
    run = workspace.run(submit(workspace, SLEEPS, timeout_seconds=1))
    child = int(printed(run))
    assert workspace.wait(run.run_id).state == ("TERMINATED", "TIMEDOUT", "Run timed out after 1 seconds.")
    assert gone(child)


def test_a_driver_that_is_killed_ends_the_run(workspace: FakeWorkspace) -> None:
    run = workspace.run(submit(workspace, SLEEPS))
    child = int(printed(run))
    workspace.kill_driver(run.run_id)
    workspace.wait(run.run_id)
    assert run.state[:2] == ("INTERNAL_ERROR", "FAILED")
    assert "The spark driver has stopped unexpectedly" in run.state[2]
    assert gone(child)
    workspace.faults.append(Fault("POST", SUBMIT, run="crash_driver", after=0.3))
    crashed = ran(workspace, SLEEPS)
    assert "The spark driver has stopped unexpectedly" in crashed.state[2]
    assert ran(workspace, "").state[1] == "SUCCESS"


def test_nothing_runs_on_when_the_workspace_ends(tmp_path: Path) -> None:
    with serving(tmp_path) as workspace:
        run = workspace.run(submit(workspace, SLEEPS))
        child = int(printed(run))
    assert gone(child)
    assert run.ended


@pytest.mark.parametrize("what", ["never_starts", "skip"])
def test_a_run_stays_pending_or_is_skipped_as_the_test_says(
    workspace: FakeWorkspace, client: WorkspaceClient, what: Literal["never_starts", "skip"]
) -> None:
    workspace.faults.append(Fault("POST", SUBMIT, run=what))
    run = workspace.run(submit(workspace, "print('never')"))
    time.sleep(0.3)
    if what == "skip":
        assert run.state[:2] == ("SKIPPED", None)
    else:
        assert run.state[:2] == ("PENDING", None)
        client.jobs.cancel_run(run.run_id)
        assert workspace.wait(run.run_id).state[:2] == ("TERMINATED", "CANCELED")
    assert not run.stdout.exists()


def test_a_token_of_idempotency_gets_the_run_that_has_it(workspace: FakeWorkspace) -> None:
    first = submit(workspace, "", idempotency_token="once")
    assert submit(workspace, "", idempotency_token="once") == first
    assert submit(workspace, "", idempotency_token="twice") != first
    assert len(workspace.runs) == 2


def test_libraries_must_be_what_is_installed_here(workspace: FakeWorkspace) -> None:
    def asking(*names: str) -> Run:
        return ran(workspace, "", libraries=[{"pypi": {"package": name}} for name in names])

    assert asking(f"dagster=={version('dagster')}", "something-else").state[1] == "SUCCESS"
    for wrong in ("dagster==1.0.0", "something-else==1.0.0"):
        run = asking(wrong)
        assert run.state[:2] == ("INTERNAL_ERROR", "FAILED")
        message = f'Library installation failed for library due to user error for pypi: "{wrong}"'
        assert message in run.state[2]
    message = 'due to user error for pypi: "dagster==1.0.0"'
    assert message in ran(workspace, "", **SERVERLESS, dependencies=["dagster==1.0.0"]).state[2]


def test_a_wheel_is_importable_where_a_task_asks_for_it(workspace: FakeWorkspace) -> None:
    wheel = workspace.add_volume("main.bronze.staging") / "bronze_assets-9-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("bronze_assets/__init__.py", "origin = 'the wheel'")
    script = "import bronze_assets; print(bronze_assets.origin)"
    path = "/Volumes/main/bronze/staging/bronze_assets-9-py3-none-any.whl"
    assert ran(workspace, script, libraries=[{"whl": path}]).stdout.read_text() == "the wheel\n"
    assert ran(workspace, script, **SERVERLESS, dependencies=[path]).stdout.read_text() == "the wheel\n"
    assert ran(workspace, script).state[1] == "FAILED"
    missing = ran(workspace, script, libraries=[{"whl": path.replace("-9", "-8")}])
    assert "No such file or directory" in missing.state[2]


def test_a_new_cluster_has_the_variables_that_are_asked_for(workspace: FakeWorkspace) -> None:
    workspace.cluster_environ["OF_THE_CLUSTER"] = "1"
    new = {"new_cluster": {**NEW["new_cluster"], "spark_env_vars": {"OF_THE_RUN": "/Volumes/main/bronze/staging/x"}}}
    workspace.tells_token = False
    names = ("OF_THE_CLUSTER", "OF_THE_RUN", "DATABRICKS_TOKEN")
    script = f"import os; print(*(os.environ.get(name) for name in {names}))"
    run = ran(workspace, script, **new)
    assert run.stdout.read_text() == f"1 {workspace.volumes / 'main' / 'bronze' / 'staging' / 'x'} None\n"
    assert ran(workspace, script, **SERVERLESS).stdout.read_text() == "None None None\n"


# ---- faults of requests


def test_the_sdk_gets_over_throttling_outages_and_lost_connections(
    workspace: FakeWorkspace, client: WorkspaceClient
) -> None:
    me = r"/api/2\.0/preview/scim/v2/Me"
    for fault in (
        Fault("GET", me, status=429, retry_after=0, times=2, code="REQUEST_LIMIT_EXCEEDED"),
        Fault("GET", me, status=503, retry_after=0),
        Fault("GET", me, drop=True),
    ):
        times = fault.times or 0
        workspace.requests.clear()
        workspace.faults[:] = [fault]
        assert client.current_user.me().user_name == "someone@example.com"
        assert [path for _, path in workspace.requests] == ["/api/2.0/preview/scim/v2/Me"] * (times + 1)
        assert fault.times == 0
    workspace.faults[:] = [Fault("GET", me, status=500, code="INTERNAL_ERROR")]
    with pytest.raises(DatabricksError, match="a fault of the test"):
        client.current_user.me()


def test_a_submission_whose_answer_is_lost_runs_twice_unless_it_has_a_token(workspace: FakeWorkspace) -> None:
    workspace.faults.append(Fault("POST", SUBMIT, lose=True))
    submit(workspace, "")
    assert len(workspace.runs) == 2
    workspace.faults.append(Fault("POST", SUBMIT, lose=True))
    submit(workspace, "", idempotency_token="once")
    assert len(workspace.runs) == 3


# ---- Spark


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


def test_a_step_whose_driver_is_killed_fails_and_one_that_is_skipped_is_lost(
    tmp_path: Path, package: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with serving(tmp_path / "workspace") as workspace:
        workspace.faults.append(Fault("POST", SUBMIT, run="crash_driver"))
        assert not launch(workspace, package).success
        workspace.faults.append(Fault("POST", SUBMIT, run="skip"))
        # The launcher takes it for done: the run fails, and no event tells of its step, so nothing is tried again.
        skipped = launch(workspace, package)
        assert "was skipped" in capsys.readouterr().err
        assert not skipped.success
        assert not [one for one in skipped.all_events if one.is_step_success or one.is_step_failure]


@pytest.mark.parametrize(("fault", "well"), [({"status": 503, "retry_after": 0}, True), ({"status": 500}, False)])
def test_a_step_survives_an_outage_that_the_sdk_knows_and_is_cancelled_at_any_other_error(
    tmp_path: Path, spark: SparkSession, package: Path, fault: dict[str, Any], well: bool
) -> None:
    with serving(tmp_path / "workspace", gateway=gateway_of(spark)) as workspace:
        workspace.faults.append(Fault("GET", r"/api/2\.2/jobs/runs/get", times=1, **fault))
        assert launch(workspace, package).success == well
        assert (("POST", "/api/2.2/jobs/runs/cancel") in workspace.requests) == (not well)


def on_spark(tmp_path: Path, spark: SparkSession, script: str, **fields: Any) -> list[str]:
    """What a script prints on the JVM of the tests."""
    with serving(tmp_path / "workspace", gateway=gateway_of(spark)) as workspace:
        run = ran(workspace, script, **fields)
        assert run.state[1] == "SUCCESS", run.stderr.read_text()
        return run.stdout.read_text().splitlines()


def test_python_workers_of_spark_know_as_little_as_the_driver(tmp_path: Path, spark: SparkSession) -> None:
    script = """
    from pyspark.sql.functions import udf

    @udf("string")
    def told(_):
        try:
            import bronze_assets
        except ModuleNotFoundError as error:
            return str(error)
        return bronze_assets.__file__

    print(spark.range(1).select(told("id")).first()[0], sc is spark.sparkContext)
    print(spark.conf.get("of.the.cluster"), spark.conf.get("spark.databricks.clusterUsageTags.clusterWorkers"))
    """
    spark_conf = {"of.the.cluster": "1", "spark.driver.memory": "8g"}
    new = {"new_cluster": {**NEW["new_cluster"], "spark_conf": spark_conf}}
    assert on_spark(tmp_path, spark, script, **new) == ["No module named 'bronze_assets' True", "1 1"]


def test_serverless_has_no_spark_context_and_refuses_what_spark_connect_does(
    tmp_path: Path, spark: SparkSession
) -> None:
    script = """
    import os
    from pyspark.sql import SparkSession
    from pyspark.sql.functions import col, udf

    rows = spark.range(3).withColumn("twice", udf("long")(lambda one: 2 * one)("id")).where(col("id") > 1)
    print([tuple(one) for one in rows.collect()], "sc" in globals(), os.environ["DATABRICKS_RUNTIME_VERSION"])
    rows.createTempView("rows_of_the_task")
    spark.conf.set("spark.sql.shuffle.partitions", "3")
    print(spark.table("rows_of_the_task").groupBy("id").count().count())

    def refused(what):
        try:
            what()
        except Exception as error:
            print(str(error).partition("]")[0])

    refused(lambda: spark.sparkContext)
    refused(lambda: SparkSession.active()._jvm)
    refused(lambda: rows.rdd)
    refused(lambda: rows.cache())
    refused(lambda: spark.conf.set("spark.databricks.delta.snapshotPartitions", "1"))
    refused(lambda: spark.conf.get("spark.databricks.clusterUsageTags.clusterId"))
    refused(lambda: spark.stop())
    """
    assert on_spark(tmp_path, spark, script, **SERVERLESS) == [
        "[(2, 4)] False client.4.2",
        "1",
        "[JVM_ATTRIBUTE_NOT_SUPPORTED",
        "[JVM_ATTRIBUTE_NOT_SUPPORTED",
        "[ATTRIBUTE_NOT_SUPPORTED",
        "[NOT_SUPPORTED_WITH_SERVERLESS",
        "[CONFIG_NOT_AVAILABLE",
        "[SQL_CONF_NOT_FOUND",
        "The Spark context has stopped and the driver is restarting: a task must not stop Spark.",
    ]
    assert spark.range(1).count() == 1


def test_a_cancelled_task_leaves_no_job_on_the_shared_jvm(tmp_path: Path, spark: SparkSession) -> None:
    tracker = spark.sparkContext.statusTracker()
    with serving(tmp_path / "workspace", gateway=gateway_of(spark)) as workspace:
        slow = "spark.range(10**12).selectExpr('sum(crc32(string(id)))').collect()"
        run = workspace.run(submit(workspace, f"print('ready', flush=True)\n{slow}"))
        printed(run)
        while not tracker.getActiveJobsIds():
            assert not run.ended, run.stderr.read_text()
            time.sleep(0.05)
        workspace.kill_driver(run.run_id)
        workspace.wait(run.run_id)
        deadline = time.monotonic() + 20
        while tracker.getActiveJobsIds() and time.monotonic() < deadline:
            time.sleep(0.05)
        assert tracker.getActiveJobsIds() == []
    assert spark.range(3).count() == 3


@pytest.mark.slow
def test_a_task_has_a_jvm_of_its_own_where_none_runs_and_leaves_none(
    tmp_path: Path, spark: SparkSession, jars: Path
) -> None:
    import psutil

    # The session of the tests has set JAVA_HOME.
    with serving(tmp_path / "workspace", jars=sorted(jars.glob("*.jar"))) as workspace:
        script = """
        import sys, time
        path = sys.argv[1]
        spark.range(3).write.format("delta").save(path)
        print(spark.read.format("delta").load(path).count(), sc.applicationId, flush=True)
        time.sleep(600)
        """
        run = workspace.run(submit(workspace, script, "/dbfs/table"))
        assert printed(run).startswith("3 local-"), run.stderr.read_text()
        assert spark.sparkContext.applicationId not in printed(run)
        (jvm,) = (one for one in psutil.Process(run.tasks[0].pid).children(recursive=True) if one.name() == "java")
        workspace.kill_driver(run.run_id)
        workspace.wait(run.run_id)
        assert gone(jvm.pid)


# ---- Pipes


PIPED = """
import sys
from dagster_pipes import (
    PipesCliArgsParamsLoader,
    PipesEnvVarParamsLoader,
    PipesUnityCatalogVolumesContextLoader,
    PipesUnityCatalogVolumesMessageWriter,
    open_dagster_pipes,
)

loader = PipesCliArgsParamsLoader() if "--dagster-pipes-context" in sys.argv else PipesEnvVarParamsLoader()
with open_dagster_pipes(
    context_loader=PipesUnityCatalogVolumesContextLoader(),
    message_writer=PipesUnityCatalogVolumesMessageWriter(interval=0.2),
    params_loader=loader,
) as pipes:
    print("printed on the cluster")
    pipes.report_asset_materialization(
        metadata={"loader": type(loader).__name__, "asset": pipes.asset_key, "extra": pipes.get_extra("one")}
    )
"""


@pytest.mark.parametrize(
    ("where", "loader"),
    [
        ("serverless", "PipesCliArgsParamsLoader"),
        ("existing cluster", "PipesCliArgsParamsLoader"),
        ("new cluster", "PipesEnvVarParamsLoader"),
    ],
)
def test_the_real_pipes_clients_carry_a_materialization_over_a_volume(
    workspace: FakeWorkspace, client: WorkspaceClient, where: str, loader: str
) -> None:
    workspace.add_volume("main.bronze.staging")
    volume = "/Volumes/main/bronze/staging"
    client.files.upload(f"{volume}/piped.py", io.BytesIO(PIPED.encode()))
    injector = PipesUnityCatalogVolumesContextInjector(client=client, volume_path=volume)
    reader = PipesUnityCatalogVolumesMessageReader(client=client, volume_path=volume, interval=0.2)
    task = jobs.SubmitTask("piped", spark_python_task=jobs.SparkPythonTask(f"{volume}/piped.py"))
    pipes: PipesDatabricksServerlessClient | PipesDatabricksClient
    more: dict[str, Any] = {}
    if where == "serverless":
        pipes = PipesDatabricksServerlessClient(client, volume, injector, reader, poll_interval_seconds=0.2)
        task.environment_key = "default"
        environment = jobs.JobEnvironment("default", compute.Environment(environment_version="4"))
        more = {"submit_args": {"environments": [environment]}}
    else:
        pipes = PipesDatabricksClient(
            client, context_injector=injector, message_reader=reader, poll_interval_seconds=0.2
        )
        if where == "new cluster":
            task.new_cluster = compute.ClusterSpec.from_dict(NEW["new_cluster"])
        else:
            task.existing_cluster_id = CLUSTER

    @dg.asset
    def piped(context) -> dg.MaterializeResult:  # type: ignore[no-untyped-def]
        invocation = pipes.run(context=context, task=task, extras={"one": "1"}, **more)
        return invocation.get_materialize_result()

    result = dg.materialize([piped])
    (materialized,) = result.asset_materializations_for_node("piped")
    told = {name: value.value for name, value in materialized.metadata.items()}
    assert told.pop("Databricks Job Run ID") == str(workspace.runs[0].run_id)
    assert workspace.url in str(told.pop("Databricks Job Run URL"))
    assert told == {"loader": loader, "asset": "piped", "extra": "1"}
    # Its temporary folders are gone.
    assert [one.name for one in (workspace.volumes / "main" / "bronze" / "staging" / "tmp").iterdir()] == []
