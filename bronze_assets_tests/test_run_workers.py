"""Runs in processes that are forked: they end as Dagster's own do, and nothing needs them."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import psutil
import pytest
from dagster._core.code_pointer import ModuleCodePointer
from dagster._core.launcher import DefaultRunLauncher, LaunchRunContext, WorkerStatus
from dagster._core.origin import JobPythonOrigin, RepositoryPythonOrigin

from bronze_assets.orchestration import run_workers
from bronze_assets.orchestration.run_workers import WORKER_TAG, WarmRunLauncher
from bronze_assets.processes import is_running
from bronze_assets_tests.conftest import CHECKOUT, settings_for
from bronze_assets_tests.dagster_client import until

PATIENCE = 60
JOB = (
    "from pathlib import Path\nimport dagster as dg, os, time\n"
    + """
@dg.op
def told():
    Path(os.environ["TOLD"]).write_text(f"{os.getppid()}")
    time.sleep(float(os.environ.get("NAP", "0")))
@dg.job(executor_def=dg.in_process_executor)
def small():
    told()
defs = dg.Definitions(jobs=[small])
"""
)


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """A copy of the package, whose code may be changed."""
    shutil.copytree(CHECKOUT / "bronze_assets", tmp_path / "copy" / "bronze_assets")
    (tmp_path / "copy" / "small_job.py").write_text(JOB)
    return tmp_path / "copy"


@pytest.fixture
def instance(home: Path) -> Iterator[dg.DagsterInstance]:
    """An instance whose runs the launcher starts."""
    home.mkdir()
    (home / "dagster.yaml").write_text(
        "run_launcher:\n  module: bronze_assets.orchestration.run_workers\n  class: WarmRunLauncher\n"
        "telemetry:\n  enabled: false\n"
    )
    with dg.DagsterInstance.from_config(str(home)) as made:
        yield made


@pytest.fixture
def started(home: Path, package: Path, instance: dg.DagsterInstance, tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """The process that forks runs."""
    plain = {key: value for key, value in os.environ.items() if not key.startswith(("BRONZE_", "DAGSTER_"))}
    process = subprocess.Popen(
        [sys.executable, "-m", "bronze_assets.orchestration.run_workers"],
        cwd=package,
        env=plain | {"BRONZE_HOME": str(home), "TOLD": str(tmp_path / "told"), "NAP": "60", "PYTHONPATH": str(package)},
        stderr=(tmp_path / "err").open("w"),
        text=True,
    )
    try:
        note = home / "engine" / "workers.json"
        until(lambda: note.exists() or process.poll() is not None, PATIENCE)
        assert process.poll() is None, process.stderr
        yield process
    finally:
        process.terminate()
        process.wait(PATIENCE)


def launched(instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch, home: Path) -> dg.DagsterRun:
    """A run that the launcher was given."""
    monkeypatch.setenv("BRONZE_HOME", str(home))
    pointer = ModuleCodePointer("small_job", "defs", str(home.parent / "copy"))
    repository = RepositoryPythonOrigin(sys.executable, pointer)
    run = instance.create_run_for_job(
        _small(), job_code_origin=JobPythonOrigin("small", repository), status=dg.DagsterRunStatus.STARTING
    )
    instance.run_launcher.launch_run(LaunchRunContext(run, None))
    return _again(instance, run)


def _small() -> dg.JobDefinition:
    @dg.op
    def told() -> None: ...

    @dg.job
    def small() -> None:
        told()

    return small


def _again(instance: dg.DagsterInstance, run: dg.DagsterRun) -> dg.DagsterRun:
    found = instance.get_run_by_id(run.run_id)
    assert found is not None
    return found


def test_a_run_is_executed_by_a_fork_and_can_be_stopped(
    started: subprocess.Popen[str],
    instance: dg.DagsterInstance,
    home: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run = launched(instance, monkeypatch, home)

    until((tmp_path / "told").exists, PATIENCE)
    worker = run.tags[WORKER_TAG]
    assert (tmp_path / "told").read_text() == str(started.pid), "its parent is the process that waited"
    launcher = instance.run_launcher
    assert launcher.check_run_worker_health(run).status is WorkerStatus.RUNNING
    assert launcher.terminate(run.run_id)
    until(lambda: not is_running(worker), PATIENCE)
    assert _again(instance, run).status is dg.DagsterRunStatus.CANCELED
    assert not launcher.terminate(run.run_id), "it has ended"


def test_a_run_whose_process_is_killed_is_seen_to_have_failed(
    started: subprocess.Popen[str],
    instance: dg.DagsterInstance,
    home: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run = launched(instance, monkeypatch, home)
    until((tmp_path / "told").exists, PATIENCE)

    os.kill(int(run.tags[WORKER_TAG].split(":")[1]), signal.SIGKILL)

    until(lambda: not is_running(run.tags[WORKER_TAG]), PATIENCE)
    assert instance.run_launcher.check_run_worker_health(run).status is WorkerStatus.FAILED


def test_code_that_has_changed_is_not_run_from_memory(
    started: subprocess.Popen[str], home: Path, package: Path
) -> None:
    settings = settings_for(home)
    assert run_workers.fork(settings, ["dagster", "api", "--help"]) is not None

    (package / "bronze_assets" / "catalog" / "inventory.py").touch()

    assert run_workers.fork(settings, ["dagster", "api", "--help"]) is None
    assert started.wait(PATIENCE) == 0, "who keeps it running starts it anew"
    assert not (home / "engine" / "workers.json").exists()


def test_without_the_process_dagsters_own_launcher_starts_runs(
    instance: dg.DagsterInstance, home: Path, package: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = []
    monkeypatch.setattr(DefaultRunLauncher, "launch_run", lambda _, context: given.append(context.dagster_run))

    run = launched(instance, monkeypatch, home)

    assert [one.run_id for one in given] == [run.run_id]
    assert WORKER_TAG not in run.tags
    assert isinstance(instance.run_launcher, WarmRunLauncher)
    assert instance.run_launcher.check_run_worker_health(run).status is WorkerStatus.RUNNING


def test_nobody_else_of_the_machine_may_have_a_process_forked(started: subprocess.Popen[str], home: Path) -> None:
    note = home / "engine" / "workers.json"
    assert note.stat().st_mode & 0o077 == 0
    assert note.parent.stat().st_mode & 0o077 == 0
    told = note.read_text()
    note.write_text(told.replace('"secret": "', '"secret": "0'))

    assert run_workers.fork(settings_for(home), ["dagster", "api", "--help"]) is None

    note.write_text(told)
    assert run_workers.fork(settings_for(home), ["dagster", "api", "--help"]) is not None


def test_it_ends_with_its_parent_and_its_runs_are_interrupted(
    started: subprocess.Popen[str],
    instance: dg.DagsterInstance,
    home: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run = launched(instance, monkeypatch, home)
    until((tmp_path / "told").exists, PATIENCE)
    assert psutil.Process(started.pid).children()

    started.terminate()

    started.wait(PATIENCE)
    until(lambda: not is_running(run.tags[WORKER_TAG]), PATIENCE)
    # Nobody has asked for it in the UI: Dagster calls that a failure.
    assert _again(instance, run).status is dg.DagsterRunStatus.FAILURE
