"""The capture as a Dagster asset: what its runs tell and check, on a real PostgreSQL."""

from __future__ import annotations

import contextlib
import datetime as dt
import json
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import dagster as dg
import pytest
from psycopg2 import sql

from bronze_assets.catalog import TABLES
from bronze_assets.definitions import build_definitions
from bronze_assets.demo import postgres
from bronze_assets.load import current
from bronze_assets.orchestration import capture as capture_module
from bronze_assets.orchestration import runs as runs_module
from bronze_assets.orchestration import slot_checks
from bronze_assets.orchestration.jobs import file_jobs
from bronze_assets.orchestration.sensors import tick
from bronze_assets.settings import CaptureMode, Environment, Settings
from bronze_assets.workbench import Workbench
from bronze_assets_tests.conftest import Server

if TYPE_CHECKING:
    from psycopg2.extensions import connection as Connection
    from pyspark.sql import SparkSession

SOME = [table for table in TABLES if table.name in ("bz_orders", "bz_products")]
KEY = dg.AssetKey(["landing", "inventory_bronze"])
STREAMING = ("products", "suppliers", "inventory", "orders", "order_details", "shipments", "returns", "customers")


@pytest.fixture
def settings(settings: Settings) -> Settings:
    return replace(settings, capture=CaptureMode.BUILTIN)


@pytest.fixture
def instance() -> Iterator[dg.DagsterInstance]:
    with dg.DagsterInstance.ephemeral() as instance:
        yield instance


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    quick = runs_module.RETRY_POLICY._replace(delay=0.01)
    monkeypatch.setattr(runs_module, "RETRY_POLICY", quick)
    monkeypatch.setattr(capture_module, "RETRY_POLICY", quick)


@pytest.fixture
def shop(source: Connection, server: Server) -> Iterator[Connection]:
    """A source with products and orders; the slot that a capture of it leaves is dropped."""
    ask(
        source,
        "create schema tests;"
        "create table tests.products (product_id int primary key, product_name text, category text,"
        " unit_price numeric(12,2));"
        "create table tests.orders (order_id bigint primary key, customer_id int, order_date date, order_status text);"
        "insert into tests.products select n, 'thing ' || n, 'toys', n from generate_series(1, 20) n;"
        "insert into tests.orders select n, n % 7, date '2026-01-05', 'NEW' from generate_series(1, 30) n",
    )
    yield source
    drop_slots(source)


def ask(connection: Connection, query: str) -> list[tuple[Any, ...]]:
    with connection.cursor() as cursor:
        cursor.execute(query)
        return cursor.fetchall() if cursor.description else []


def drop_slots(source: Connection) -> None:
    ask(
        source,
        "select pg_drop_replication_slot(slot_name) from pg_replication_slots where database = current_database()",
    )


def run(settings: Settings, instance: dg.DagsterInstance, **config: float) -> dg.ExecuteInProcessResult:
    """A run of the capture; once, until now, by default."""
    job = build_definitions(settings, SOME).resolve_job_def("capture_inventory_bronze")
    return job.execute_in_process(
        instance=instance,
        run_config={"ops": {"landing__inventory_bronze": {"config": {"seconds": 0, **config}}}},
        raise_on_error=False,
    )


def told(result: dg.ExecuteInProcessResult) -> list[dict[str, Any]]:
    """The metadata of each materialisation of a run."""
    events = [event.step_materialization_data.materialization for event in result.get_asset_materialization_events()]
    assert {event.asset_key for event in events} <= {KEY}
    return [{name: value.value for name, value in event.metadata.items()} for event in events]


def checked(result: dg.ExecuteInProcessResult) -> Mapping[str, dg.AssetCheckEvaluation]:
    return {evaluation.check_name: evaluation for evaluation in result.get_asset_check_evaluations()}


def failures(result: dg.ExecuteInProcessResult) -> list[str]:
    data = [event.step_failure_data.user_failure_data for event in result.get_step_failure_events()]
    return [failure.description or "" for failure in data if failure]


def judgements(result: dg.ExecuteInProcessResult) -> list[dg.AssetCheckEvaluation]:
    """Each judgement of the lag in a run."""
    return [check for check in result.get_asset_check_evaluations() if check.check_name == "slot_lag"]


def latest_judgement(instance: dg.DagsterInstance) -> dg.AssetCheckEvaluation | None:
    """The judgement of the lag that Dagster's UI shows."""
    found = instance.get_latest_asset_check_evaluation_record(dg.AssetCheckKey(KEY, "slot_lag"))
    evaluation = found.evaluation if found is not None else None
    return evaluation if isinstance(evaluation, dg.AssetCheckEvaluation) else None


def forget_judgements(instance: dg.DagsterInstance) -> None:
    instance.wipe_assets([KEY])


def tick_of(settings: Settings, instance: dg.DagsterInstance) -> Any:
    """A tick of the sensor that keeps the capture going."""
    definitions = build_definitions(settings, SOME)
    context = dg.build_sensor_context(instance=instance, repository_def=definitions.get_repository_def())
    return definitions.resolve_sensor_def("capture_inventory_bronze_sensor").evaluate_tick(context)


def let_an_hour_pass(settings: Settings, hours: int = 1) -> None:
    """As if the last drain that ended well had been that long ago."""
    path = Path(settings.landing) / "inventory_bronze" / "_capture" / "manifest.json"
    stored = json.loads(path.read_text())
    stored["confirmed_at"] = (dt.datetime.now(dt.UTC) - dt.timedelta(hours=hours)).isoformat()
    path.write_text(json.dumps(stored))


@contextlib.contextmanager
def held_back(settings: Settings, shop: Connection) -> Iterator[None]:
    """A transaction that stays open, and 4 MB of log after it."""
    with postgres.connect(settings.source_url) as forgotten:
        forgotten.autocommit = False
        ask(forgotten, "insert into tests.products values (999, 'never committed', 'toys', 1)")
        for _ in range(4):
            ask(shop, "select pg_logical_emit_message(false, 'test', repeat('x', 1000000))")
        yield
        forgotten.rollback()


class TestDefinitions:
    @pytest.fixture
    def settings(self, tmp_path: Path) -> Settings:
        return Settings(
            Environment.LOCAL,
            tmp_path,
            tmp_path / "lake",
            "file:nowhere",
            "landing",
            "archive",
            capture=CaptureMode.BUILTIN,
        )

    def parts(self, settings: Settings) -> tuple[set[str], set[str], set[str]]:
        """Names of the jobs, schedules and sensors."""
        repository = build_definitions(settings, TABLES).get_repository_def()
        return (
            {job.name for job in repository.get_all_jobs()} - {"__ASSET_JOB"},
            {schedule.name for schedule in repository.schedule_defs},
            {sensor.name for sensor in repository.sensor_defs},
        )

    def test_our_own_capture_is_an_asset_between_the_sources_and_the_tables(self, settings: Settings) -> None:
        graph = build_definitions(settings, TABLES).resolve_asset_graph()
        changes = graph.get(KEY)
        assert changes.is_executable
        assert {key.to_user_string() for key in changes.parent_keys} == {f"postgres/tests/{name}" for name in STREAMING}
        assert {key.to_user_string() for key in changes.child_keys} == {
            f"inventory_bronze/bz_{name}" for name in STREAMING
        }
        orders = graph.get(dg.AssetKey(["inventory_bronze", "bz_orders"]))
        assert {key.to_user_string() for key in orders.parent_keys} == {
            "postgres/tests/orders",
            "landing/inventory_bronze",
        }

    def test_a_connectors_files_are_an_asset_that_nothing_here_makes(self, settings: Settings) -> None:
        external = replace(settings, capture=CaptureMode.EXTERNAL)
        graph = build_definitions(external, TABLES).resolve_asset_graph()
        assert not graph.get(KEY).is_executable
        assert len(graph.get(KEY).child_keys) == 8
        jobs, _, sensors = self.parts(external)
        assert "capture_inventory_bronze" not in jobs
        assert sensors == {"inventory_bronze_files_sensor", "manufacturing_bronze_files_sensor", "alerts"}

    def test_without_a_capture_there_is_nothing_of_it(self, settings: Settings) -> None:
        off = replace(settings, capture=CaptureMode.OFF)
        assert KEY not in build_definitions(off, TABLES).resolve_asset_graph().get_all_asset_keys()
        jobs, schedules, sensors = self.parts(off)
        assert not jobs & {"capture_inventory_bronze", "load_inventory_bronze_files"}
        assert "load_streaming_tables_schedule" in schedules
        assert sensors == {"manufacturing_bronze_files_sensor", "alerts"}

    def test_captured_tables_have_a_sensor_instead_of_a_schedule(self, settings: Settings) -> None:
        jobs, schedules, sensors = self.parts(settings)
        assert {"capture_inventory_bronze", "load_inventory_bronze_files", "load_streaming_tables"} <= jobs
        loads = {name for name in schedules if name.startswith("load_")}
        assert loads == {"load_daily_tables_schedule", "load_hourly_tables_schedule"}
        assert sensors == {
            "capture_inventory_bronze_sensor",
            "inventory_bronze_files_sensor",
            "manufacturing_bronze_files_sensor",
            "alerts",
        }

    @pytest.mark.parametrize("environment", list(Environment))
    def test_sensors_run_by_default_only_locally(self, environment: Environment, settings: Settings) -> None:
        repository = build_definitions(replace(settings, environment=environment), TABLES).get_repository_def()
        running = environment is Environment.LOCAL
        assert {sensor.default_status.value for sensor in repository.sensor_defs} == {
            "RUNNING" if running else "STOPPED"
        }

    def test_one_capture_at_a_time(self, settings: Settings) -> None:
        asset = build_definitions(settings, TABLES).resolve_assets_def(KEY)
        assert asset.op.pool == "capture_inventory_bronze"
        assert sorted(spec.name for spec in asset.check_specs) == ["slot_lag", "slot_went_on"]


class TestRuns:
    def test_the_changes_of_each_table_and_the_slot_are_told(
        self, settings: Settings, instance: dg.DagsterInstance, shop: Connection
    ) -> None:
        assert run(settings, instance).success
        ask(shop, "insert into tests.orders values (101, 1, '2026-02-01', 'NEW')")
        ask(shop, "update tests.orders set order_status = 'PAID' where order_id in (1, 2)")
        ask(shop, "delete from tests.products where product_id = 3")
        began = dt.datetime.now(dt.UTC).timestamp()
        result = run(settings, instance)
        assert result.success
        (metadata,) = told(result)
        ((slot, wal_status),) = ask(
            shop, "select slot_name, wal_status from pg_replication_slots where database = current_database()"
        )
        counts = {name: value for name, value in metadata.items() if name.startswith("changes")}
        assert counts == {"changes": 4, "changes/bz_orders": 3, "changes/bz_products": 1}
        assert (metadata["slot"], metadata["wal_status"]) == (slot, wal_status)
        assert metadata["confirmed_at"] >= began
        assert 0 <= metadata["slot_lag_seconds"] < 60
        assert {"slot_lag_bytes", "slot_retained_bytes"} <= set(metadata)
        assert {name: check.passed for name, check in checked(result).items()} == {
            "slot_went_on": True,
            "slot_lag": True,
        }
        lines = [
            line
            for file in (Path(settings.landing) / "inventory_bronze").glob("bz_*/*/*.json")
            for line in file.read_text().splitlines()
        ]
        assert len(lines) == 4
        assert "bronze/process" in instance.get_runs()[0].tags

    def test_a_run_that_finds_nothing_says_that_it_did(
        self, settings: Settings, instance: dg.DagsterInstance, shop: Connection
    ) -> None:
        run(settings, instance)
        (metadata,) = told(run(settings, instance))
        assert metadata["changes"] == 0
        assert "confirmed_at" in metadata

    def test_a_long_run_tells_each_change_once(
        self, settings: Settings, instance: dg.DagsterInstance, shop: Connection, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        run(settings, instance)
        monkeypatch.setattr(capture_module, "_REPORT_SECONDS", 0.5)
        stop = threading.Event()
        made: list[int] = []

        def application() -> None:
            with postgres.connect(settings.source_url) as connection:
                while not stop.wait(0.2):
                    made.append(1000 + len(made))
                    ask(connection, f"insert into tests.orders values ({made[-1]}, 1, '2026-02-01', 'NEW')")

        thread = threading.Thread(target=application)
        thread.start()
        result = run(settings, instance, seconds=5, every=0.2)
        stop.set()
        thread.join()
        reports = told(result)
        assert len(reports) > 2, "not only at its end"
        assert len(made) > 10
        last = told(run(settings, instance))
        assert sum(report["changes/bz_orders"] for report in [*reports, *last] if report["changes"]) == len(made)

    def test_a_source_that_is_away_for_a_moment_ends_no_long_run(
        self,
        settings: Settings,
        instance: dg.DagsterInstance,
        shop: Connection,
        server: Server,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        run(settings, instance)
        name = sql.Identifier(urlsplit(settings.source_url).path.lstrip("/"))

        def allow(connections: int) -> None:
            with postgres.connect(server.admin_url) as admin, admin.cursor() as cursor:
                cursor.execute(sql.SQL("alter database {} connection limit {}").format(name, sql.Literal(connections)))

        refused: list[str] = []

        def sleep(seconds: float) -> None:
            # Between the first look and the third: the second finds nobody.
            allow(0 if not refused else -1)
            refused.append("")
            threading.Event().wait(seconds)

        monkeypatch.setattr(capture_module, "time", SimpleNamespace(sleep=sleep, monotonic=time.monotonic))
        result = run(settings, instance, seconds=3, every=0.2)
        assert result.success
        messages = [entry.user_message for entry in instance.all_logs(result.run_id)]
        assert any("Trying again." in message for message in messages)

    def test_a_refused_password_is_not_tried_again_and_not_shown(
        self, settings: Settings, instance: dg.DagsterInstance, shop: Connection
    ) -> None:
        real = urlsplit(settings.source_url)
        wrong = real._replace(netloc=f"{real.username}:hunter2@{real.hostname}:{real.port}").geturl()
        result = run(replace(settings, source_url=wrong), instance)
        assert not result.success
        (failure,) = failures(result)
        assert "password authentication failed" in failure
        assert not [event for event in result.all_events if event.event_type_value == "STEP_UP_FOR_RETRY"]
        assert not any("hunter2" in str(entry) for entry in instance.all_logs(result.run_id))

    def test_a_source_that_does_not_answer_is_asked_again_three_times(
        self, settings: Settings, instance: dg.DagsterInstance
    ) -> None:
        nobody = replace(settings, source_url="postgresql://bronze:hunter2@127.0.0.1:1/DE")
        result = run(nobody, instance)
        assert not result.success
        assert len([event for event in result.all_events if event.event_type_value == "STEP_UP_FOR_RETRY"]) == 3
        (failure,) = failures(result)
        assert "cannot be reached" in failure


class TestChecks:
    def test_log_that_the_server_keeps_for_the_slot_is_an_error(
        self, settings: Settings, instance: dg.DagsterInstance, shop: Connection, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A transaction left open holds the slot back, however often it is read."""
        run(settings, instance)
        monkeypatch.setattr(slot_checks, "MAX_LAG_BYTES", 2**20)
        with held_back(settings, shop):
            result = run(settings, instance)
        check = checked(result)["slot_lag"]
        assert result.success
        assert not check.passed
        assert check.severity is dg.AssetCheckSeverity.ERROR
        assert told(result)[-1]["slot_retained_bytes"] > 4_000_000
        assert checked(result)["slot_went_on"].passed

    def test_the_lag_is_judged_while_a_run_goes_on_and_nothing_changes(
        self, settings: Settings, instance: dg.DagsterInstance, shop: Connection, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        run(settings, instance)
        monkeypatch.setattr(capture_module, "_REPORT_SECONDS", 0.5)
        monkeypatch.setattr(slot_checks, "MAX_LAG_BYTES", 2**20)
        with held_back(settings, shop):
            result = run(settings, instance, seconds=3, every=0.2)
        assert result.success
        found = judgements(result)
        assert len(found) > 2, "not only at its end"
        assert not any(check.passed for check in found)
        assert {check.severity for check in found} == {dg.AssetCheckSeverity.ERROR}
        assert len(told(result)) == 1, "nothing was captured in between"
        latest = latest_judgement(instance)
        assert latest is not None
        assert latest.metadata["slot_retained_bytes"].value == told(result)[0]["slot_retained_bytes"]

    @pytest.mark.parametrize("lag", ["bytes", "seconds"])
    def test_the_lag_is_judged_when_nothing_can_be_drained(
        self,
        settings: Settings,
        instance: dg.DagsterInstance,
        shop: Connection,
        monkeypatch: pytest.MonkeyPatch,
        lag: str,
    ) -> None:
        run(settings, instance)
        ((slot,),) = ask(shop, "select slot_name from pg_replication_slots where database = current_database()")
        monkeypatch.setattr(slot_checks, "MAX_LAG_BYTES", 2**20)
        if lag == "seconds":
            let_an_hour_pass(settings)
        with contextlib.ExitStack() as stack:
            if lag == "bytes":
                stack.enter_context(held_back(settings, shop))
            # As a capture does that hangs somewhere else.
            ask(shop, f"select pg_advisory_lock(hashtextextended('bronze {slot}', 0))")
            result = run(settings, instance)
        assert not result.success
        assert [check.passed for check in judgements(result)] == [False] * 4, "one for each try"
        latest = latest_judgement(instance)
        assert latest is not None
        assert not latest.passed

    def test_the_lag_is_judged_by_the_manifest_when_the_source_does_not_answer(
        self, settings: Settings, instance: dg.DagsterInstance, shop: Connection
    ) -> None:
        run(settings, instance)
        nobody = replace(settings, source_url="postgresql://bronze:hunter2@127.0.0.1:1/DE")
        assert [check.passed for check in judgements(run(nobody, instance))] == [True] * 4
        let_an_hour_pass(settings)
        assert [check.passed for check in judgements(run(nobody, instance))] == [False] * 4
        latest = latest_judgement(instance)
        assert latest is not None
        assert "cannot be reached" in (latest.description or "")
        assert "hunter2" not in str(latest)

    def test_without_a_capture_there_is_no_lag_to_judge(
        self, settings: Settings, instance: dg.DagsterInstance, shop: Connection
    ) -> None:
        nobody = replace(settings, source_url="postgresql://bronze:hunter2@127.0.0.1:1/DE")
        assert judgements(run(nobody, instance)) == []
        assert tick_of(settings, instance).run_requests
        assert latest_judgement(instance) is None

    def test_the_lag_is_judged_while_no_run_captures(
        self, settings: Settings, instance: dg.DagsterInstance, shop: Connection
    ) -> None:
        """Whether runs are killed or fail at once, and the next waits: the sensor looks."""
        run(settings, instance)
        let_an_hour_pass(settings)
        assert tick_of(settings, instance).run_requests, "a run is asked for all the same"
        latest = latest_judgement(instance)
        assert latest is not None
        assert latest.passed, "it is a moment since a run judged it"
        forget_judgements(instance)
        tick_of(settings, instance)
        latest = latest_judgement(instance)
        assert latest is not None
        assert not latest.passed
        assert latest.severity is dg.AssetCheckSeverity.ERROR
        # And not again by the tick after that.
        let_an_hour_pass(settings, hours=0)
        tick_of(settings, instance)
        assert latest_judgement(instance) == latest
        # A run's own comes after it.
        assert run(settings, instance).success
        latest = latest_judgement(instance)
        assert latest is not None
        assert latest.passed

    def test_a_run_that_captures_is_left_to_judge_by_itself(
        self, settings: Settings, instance: dg.DagsterInstance, shop: Connection
    ) -> None:
        run(settings, instance)
        let_an_hour_pass(settings)
        forget_judgements(instance)
        job = build_definitions(settings, SOME).resolve_job_def("capture_inventory_bronze")
        instance.create_run_for_job(job, status=dg.DagsterRunStatus.STARTED)
        assert not tick_of(settings, instance).run_requests
        assert latest_judgement(instance) is None

    def test_a_new_slot_of_a_run_that_was_killed_is_told_by_the_next(
        self, settings: Settings, instance: dg.DagsterInstance, shop: Connection
    ) -> None:
        first = checked(run(settings, instance))["slot_went_on"]
        assert first.passed, "the first slot of all is none that was lost"
        for _ in range(2):
            drop_slots(shop)
            # What a run does that is killed before its end.
            assert capture_module.capture_of(settings, SOME).drain().started_anew
        check = checked(run(settings, instance))["slot_went_on"]
        assert (check.passed, check.severity) == (False, dg.AssetCheckSeverity.WARN)
        assert (check.description or "").count("is gone") == 2
        assert checked(run(settings, instance))["slot_went_on"].passed
        drop_slots(shop)
        check = checked(run(settings, instance))["slot_went_on"]
        assert not check.passed
        assert (check.description or "").count("is gone") == 1

    @pytest.mark.slow
    def test_a_slot_that_is_gone_is_told_and_made_good_by_a_snapshot_without_a_gap(
        self, settings: Settings, instance: dg.DagsterInstance, shop: Connection, spark: SparkSession
    ) -> None:
        bench = Workbench(settings)
        definitions = build_definitions(settings, SOME)
        (job,) = file_jobs(SOME, settings)

        def load_what_is_asked() -> list[list[str]]:
            """Run what the sensor asks for; the scopes that were loaded, by table."""
            found = tick(job, settings, instance, None, dt.datetime.now(dt.UTC)).run_requests or []
            scopes = []
            for request in found:
                result = definitions.resolve_job_def(job.name).execute_in_process(
                    instance=instance,
                    partition_key=request.partition_key,
                    asset_selection=list(request.asset_selection or []),
                    tags=request.tags,
                )
                for table in SOME:
                    events = result.asset_materializations_for_node(f"{table.schema}__{table.name}")
                    scopes += [[table.name, str(e.metadata["scope"].value)] for e in events if "scope" in e.metadata]
            return scopes

        def in_bronze() -> dict[str, list[tuple[Any, ...]]]:
            columns = {"bz_orders": ("order_id", "order_status"), "bz_products": ("product_id", "product_name")}
            return {
                table.name: sorted(tuple(row) for row in current(bench, table).select(*columns[table.name]).collect())
                for table in SOME
            }

        def at_the_source() -> dict[str, list[tuple[Any, ...]]]:
            return {
                "bz_orders": ask(shop, "select order_id, order_status from tests.orders order by 1"),
                "bz_products": ask(shop, "select product_id, product_name from tests.products order by 1"),
            }

        run(settings, instance)
        assert sorted(load_what_is_asked()) == [["bz_orders", "full"], ["bz_products", "full"]]
        ask(shop, "update tests.orders set order_status = 'PAID' where order_id = 1")
        assert run(settings, instance).success
        assert load_what_is_asked() == [["bz_orders", "1 file"]]
        assert in_bronze() == at_the_source()

        # Committed, not captured, and lost with the slot.
        ask(shop, "update tests.orders set order_status = 'LOST' where order_id = 2")
        ask(shop, "delete from tests.products where product_id = 4")
        drop_slots(shop)
        ask(shop, "insert into tests.products values (501, 'in between', 'toys', 1)")
        result = run(settings, instance)
        assert result.success
        check = checked(result)["slot_went_on"]
        assert not check.passed
        assert check.severity is dg.AssetCheckSeverity.WARN
        assert "is gone" in (check.description or "")
        # And after it, captured by the new slot.
        ask(shop, "insert into tests.products values (502, 'afterwards', 'toys', 1)")
        run(settings, instance)
        scopes = load_what_is_asked()
        assert ["bz_orders", "full"] in scopes
        assert in_bronze() == at_the_source()
        assert load_what_is_asked() == []
