"""The KPIs: what the lake and Dagster hold, judged; through Dagster on Delta tables, and over weeks of loads."""

from __future__ import annotations

import dataclasses
import datetime as dt
import json
import webbrowser
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dagster as dg
import pytest
from deltalake import DeltaTable

from bronze_assets import __main__ as command_line
from bronze_assets import engine
from bronze_assets.catalog import TABLES
from bronze_assets.definitions import build_definitions
from bronze_assets.lakehouse import Lakehouse
from bronze_assets.operations.kpi_facts import Facts, Known, Load, facts_of_lake
from bronze_assets.operations.kpis import KINDS, KpiReport, State, TableKpis, judge
from bronze_assets.orchestration.assets import asset_key, record_metadata
from bronze_assets.orchestration.kpis import report_key, report_of
from bronze_assets.orchestration.resources import Loader
from bronze_assets.settings import CaptureMode, Environment, Settings
from bronze_assets.table import BronzeTable
from bronze_assets.workbench import Workbench
from bronze_assets_tests import lake_reader
from bronze_assets_tests.conftest import settings_for
from bronze_assets_tests.kpi_lake import DAY, HOUR, a_load, attempts, bronze, file_events, log, quarantined
from bronze_assets_tests.people import NAME, SCHEMA, drop, path, people, person

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

NOW = dt.datetime(2026, 6, 15, 12, 30, tzinfo=dt.UTC)
MINUTE = dt.timedelta(minutes=1)
BY_NAME = {table.name: table for table in TABLES}
ORDERS, STOCK, WAREHOUSES = BY_NAME["bz_orders"], BY_NAME["bz_stock_levels"], BY_NAME["bz_warehouses"]
SENSORS, CUSTOMERS = BY_NAME["bz_sensor_data"], BY_NAME["bz_customers"]
# Of the issue and of tables.md, once more by hand.
ISSUE = {
    "latency": (300, None),
    "processing_time": (None, 3600),
    "quality_score": (85, None),
    "error_rate": (None, 0.02),
    "storage_growth": (0.20, None),
    "throughput": (1_000_000, None),
    "cost": (0.10, None),
    "time_to_insight": (1800, None),
    "compliance": (None, 100),
    "capture_lag": (None, 900),
    "backlog": (None, 3600),
}


@pytest.fixture
def instance() -> Iterator[dg.DagsterInstance]:
    with dg.DagsterInstance.ephemeral() as instance:
        yield instance


@pytest.fixture
def no_jvm(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test that asks for it may start Spark."""

    def start(*_: Any, **__: Any) -> None:
        raise AssertionError("Spark was asked for")

    monkeypatch.setattr(engine, "start_session", start)


def load(ended: dt.datetime, **values: Any) -> Load:
    told: dict[str, Any] = {"partition": f"{ended:%F}", "seconds": 4.0, "read": 100, "quarantined": 0, "score": 99.0}
    return Load(ended=ended, **told | values)


NOTHING, NOBODY = Facts(), Known()


def judged(table: BronzeTable = ORDERS, facts: Facts = NOTHING, known: Known = NOBODY, **options: Any) -> TableKpis:
    told: dict[str, Any] = {"start_date": dt.date(2026, 1, 1), "capture": CaptureMode.BUILTIN} | options
    return judge("s", [table], {table.name: facts}, {table.name: known}, NOW, **told).tables[0]


def state(table: TableKpis, name: str) -> tuple[str, Any]:
    return table.kpi(name).state.value, table.kpi(name).value


# ------------------------------------------------------------------------------------------------------ through Dagster


def test_a_bad_load_is_found_by_the_checks_of_the_report_and_a_good_one_makes_it_well(
    settings: Settings, spark: SparkSession, instance: dg.DagsterInstance
) -> None:
    definitions = build_definitions(settings, [people()])
    today = f"{dt.datetime.now(dt.UTC):%F}"

    def loaded(name: str, *rows: dict[str, Any]) -> None:
        drop(settings, name, *rows)
        with Workbench.open(settings) as bench:
            job = definitions.resolve_job_def(f"load_{SCHEMA}_files")
            job.execute_in_process(instance=instance, partition_key=today, resources={"loader": Loader(bench)})

    def reported() -> tuple[dict[str, dg.AssetCheckEvaluation], dict[str, Any], dict[str, Any]]:
        result = definitions.resolve_job_def("kpi_report").execute_in_process(instance=instance)
        (event,) = result.get_asset_materialization_events()
        metadata: dict[str, Any] = {
            n: v.value for n, v in event.step_materialization_data.materialization.metadata.items()
        }
        told = json.loads(Path(metadata["path"]).with_suffix(".json").read_text())
        return {e.check_name: e for e in result.get_asset_check_evaluations()}, metadata, told

    # Two of ten cannot be loaded.
    loaded("a.jsonl", *(person(n, visits=-1 if n in (3, 4) else n) for n in range(1, 11)))
    checks, metadata, told = reported()

    assert set(checks) == set(KINDS)
    assert metadata["path"] == str(settings.home / "reports" / f"kpi_{SCHEMA}.html")
    assert metadata["page"] == Path(metadata["path"]).as_uri()
    assert (metadata["tables_critical"], metadata["tables_ok"]) == (1, 0)
    (row,) = metadata["tables"].records
    assert (row.data["table"], row.data["state"], row.data["error_rate"]) == (NAME, "critical", "20 %")
    bad = checks["error_rate"]
    assert (bad.passed, bad.severity) == (False, dg.AssetCheckSeverity.ERROR)
    found = bad.metadata["tables"].value
    assert isinstance(found, dict)
    assert (found[NAME]["value"], found[NAME]["threshold"]) == (0.2, 0.05)
    assert not checks["failed_checks"].passed
    assert checks["freshness"].passed
    (table,) = told["tables"]
    kpis = {kpi["name"]: kpi for kpi in table["kpis"]}
    delta = DeltaTable(str(path(settings)))
    assert table["rows"] == len(lake_reader.read(path(settings))) == 8
    assert table["bytes"] == sum(delta.get_add_actions(flatten=True)["size_bytes"].to_pylist())
    assert table["version"] == delta.version()
    assert table["open_rows"] == len(lake_reader.read(path(settings, f"{NAME}_quarantine"))) == 2
    (audited,) = lake_reader.read(settings.lake / SCHEMA / "bz_audit_log")
    assert kpis["quality_score"]["value"] == pytest.approx(audited["data_quality_avg_score"])
    assert dt.datetime.fromisoformat(table["last_load"]) >= audited["processing_end_time"]
    assert kpis["cost"]["value"] is kpis["availability"]["value"] is None
    # A person's name stands nowhere.
    assert "Zoë" not in Path(metadata["path"]).read_text() + json.dumps(told, ensure_ascii=False)

    loaded("b.jsonl", *(person(n) for n in range(20, 40)))
    checks, metadata, told = reported()

    assert checks["error_rate"].passed
    assert checks["error_rate"].metadata["tables"].value == {}
    audit_rows = sorted(
        lake_reader.read(settings.lake / SCHEMA / "bz_audit_log"), key=lambda r: r["processing_end_time"]
    )
    assert [point["score"] for point in told["tables"][0]["points"]] == [
        pytest.approx(row["data_quality_avg_score"]) for row in audit_rows
    ]
    assert len(audit_rows) == 2


@pytest.mark.usefixtures("no_jvm")
def test_without_a_lake_it_says_what_is_not_known_and_fails_nothing(home: Path, instance: dg.DagsterInstance) -> None:
    settings = settings_for(home)

    result = build_definitions(settings, TABLES).resolve_job_def("kpi_report").execute_in_process(instance=instance)

    assert result.success
    assert all(evaluation.passed for evaluation in result.get_asset_check_evaluations())
    told = json.loads((home / "reports" / "kpi_inventory_bronze.json").read_text())
    assert told["headline"] == "10 of 10 tables have never been loaded."
    assert {kpi["value"] for table in told["tables"] for kpi in table["kpis"]} == {None}
    assert all(kpi["reason"] for table in told["tables"] for kpi in table["kpis"])
    assert sorted(p.name for p in (home / "reports").iterdir()) == [
        f"kpi_{schema}_bronze.{end}" for schema in ("inventory", "manufacturing") for end in ("html", "json")
    ]


@pytest.mark.usefixtures("no_jvm")
def test_where_the_lake_is_a_catalog_it_is_built_from_what_the_loads_told_dagster(
    home: Path, instance: dg.DagsterInstance
) -> None:
    settings = dataclasses.replace(settings_for(home), on_cluster=True, catalog="dev")
    now = dt.datetime.now(dt.UTC)
    record = a_load(SENSORS, now - 10 * MINUTE, read=1000, quarantined=100, score_sum=80_000, table_bytes=12_000)
    old = a_load(SENSORS, now - 25 * HOUR, read=10, score_sum=990, table_bytes=9_000)
    for one in (old, record):
        bill = {"databricks/cost_per_gb": 0.25, "databricks/currency": "EUR"}
        metadata = record_metadata(one) | bill
        instance.report_runless_asset_event(
            dg.AssetMaterialization(asset_key(SENSORS), partition=one.partition, metadata=metadata)
        )

    report = report_of(instance, settings, [table for table in TABLES if table.schema == SENSORS.schema])

    assert "cannot read without Spark" in report.limits
    first = report.tables[0]
    assert first.table == "bz_sensor_data"
    assert state(first, "error_rate") == ("critical", 0.1)
    assert state(first, "quality_score") == ("warning", 80.0)
    assert state(first, "cost") == ("warning", 0.25)
    assert first.kpi("cost").reason == "In EUR."
    assert state(first, "storage_growth") == ("warning", pytest.approx(1 / 3))
    assert (first.rows, first.bytes) == (1_000, 12_000)
    assert state(first, "availability") == state(first, "quarantine") == ("unknown", None)
    assert "not known from this host" in first.kpi("quarantine").reason.lower()
    assert len(first.points) == 2
    assert "cannot read without Spark" in report.to_html()


def test_the_asset_stands_behind_its_tables_and_its_schedule_runs_where_local(home: Path) -> None:
    settings = settings_for(home)
    definitions = build_definitions(settings, TABLES)
    graph = definitions.resolve_asset_graph()
    for schema in ("inventory_bronze", "manufacturing_bronze"):
        parents = graph.get(report_key(schema)).parent_keys
        assert parents == {asset_key(table) for table in TABLES if table.schema == schema}
        assert {key.name for key in graph.get(report_key(schema)).check_keys} == set(KINDS)
    job = definitions.resolve_job_def("kpi_report")
    assert job.asset_layer.executable_asset_keys == {
        report_key("inventory_bronze"),
        report_key("manufacturing_bronze"),
    }
    schedule = definitions.resolve_schedule_def("kpi_report_schedule")
    assert (schedule.cron_schedule, schedule.execution_timezone) == ("*/15 * * * *", "UTC")
    assert schedule.default_status is dg.DefaultScheduleStatus.RUNNING
    elsewhere = dataclasses.replace(settings, environment=Environment.DEV)
    stopped = build_definitions(elsewhere, TABLES).resolve_schedule_def("kpi_report_schedule")
    assert stopped.default_status is dg.DefaultScheduleStatus.STOPPED


@pytest.mark.usefixtures("no_jvm")
def test_a_damaged_control_table_is_named_and_the_old_page_stays(home: Path, instance: dg.DagsterInstance) -> None:
    settings = settings_for(home)
    lake = Lakehouse(settings.lake)
    log(lake, [a_load(SENSORS, NOW)])
    tables = [table for table in TABLES if table.schema == SENSORS.schema]
    job = build_definitions(settings, tables).resolve_job_def("kpi_report")
    assert job.execute_in_process(instance=instance).success
    before = (home / "reports" / "kpi_manufacturing_bronze.html").read_bytes()
    for data in (settings.lake / SENSORS.schema / "bz_batches").glob("*.parquet"):
        data.write_bytes(b"not parquet")

    result = job.execute_in_process(instance=instance, raise_on_error=False)

    (failure,) = [event.step_failure_data.user_failure_data for event in result.all_events if event.is_step_failure]
    assert failure is not None
    assert "manufacturing_bronze.bz_batches" in str(failure.description)
    assert "Fix:" in str(failure.description)
    assert (home / "reports" / "kpi_manufacturing_bronze.html").read_bytes() == before


# ---------------------------------------------------------------------------------------------------------- the lake


def test_what_the_lake_tells(tmp_path: Path) -> None:
    lake = Lakehouse(tmp_path)
    other = BY_NAME["bz_equipment_logs"]
    first = NOW - 90 * DAY
    records = [
        a_load(SENSORS, first),
        a_load(SENSORS, NOW - 3 * DAY, seconds=8, score_sum=8_000, quarantined=5),
        a_load(SENSORS, NOW - 2 * DAY, table_bytes=7_000),
        # Again in the same partition: the first counts.
        a_load(SENSORS, NOW - 2 * DAY + HOUR, latency_p95=9.0, latency_max=11.0, backlog_files=2, backlog_seconds=60.0),
        a_load(other, NOW - 5 * DAY),
    ]
    log(lake, records)
    # An attempt that did not come to its end tells nothing.
    log(lake, [a_load(SENSORS, NOW, read=999)], event="main")
    bronze(lake, SENSORS, rows=3)
    bronze(lake, SENSORS, rows=4)
    quarantined(lake, SENSORS, ("open", NOW - 9 * DAY), (None, NOW - 10 * DAY), ("dismissed", NOW - 50 * DAY))
    day = f"{NOW - 2 * DAY:%F}"
    file_events(
        lake,
        SENSORS,
        ("a", "claimed", 1, day, NOW - 50 * HOUR),
        ("a", "loaded", 2, day, NOW - 50 * HOUR),
        ("b", "seen", 0, f"{NOW:%F}", NOW - 2 * HOUR),
        ("c", "claimed", 3, f"{NOW:%F}", NOW - HOUR),
        ("c", "failed", 4, f"{NOW:%F}", NOW - HOUR),
    )
    message = "bz_sensor_data: the disk is full."
    attempts(
        lake,
        SENSORS.schema,
        ("bz_sensor_data", "FAILED", NOW - 25 * HOUR, 0, None, "long ago"),
        ("bz_sensor_data", "FAILED", NOW - 2 * HOUR, 0, None, "earlier"),
        ("bz_sensor_data", "FAILED", NOW - HOUR, 0, None, message),
        ("bz_equipment_logs", "SUCCESS", NOW - HOUR, 1, 99.0, None),
    )

    found = facts_of_lake(lake, [SENSORS, other], NOW)
    sensors = found["bz_sensor_data"]

    assert (sensors.first_load, sensors.last_load) == (first, NOW - 2 * DAY + HOUR)
    assert [(one.ended, one.read, one.seconds, one.score) for one in sensors.loads] == [
        (NOW - 3 * DAY, 100, 8.0, 80.0),
        (NOW - 2 * DAY, 100, 4.0, 99.0),
        (NOW - 2 * DAY + HOUR, 100, 4.0, 99.0),
    ]
    assert (sensors.loads[2].latency_p95, sensors.loads[2].backlog_files) == (9.0, 2)
    assert sensors.done == {f"{NOW - 3 * DAY:%F}": NOW - 3 * DAY, day: NOW - 2 * DAY}
    assert sensors.arrived == {day: NOW - 50 * HOUR, f"{NOW:%F}": NOW - 2 * HOUR}
    assert (sensors.open_rows, sensors.oldest_open) == (2, NOW - 10 * DAY)
    assert (sensors.waiting_files, sensors.waiting_since) == (2, NOW - 2 * HOUR)
    assert (sensors.rows, sensors.version) == (7, 1)
    assert (sensors.failed_attempts, sensors.last_failure) == (2, message)
    assert (found[other.name].open_rows, found[other.name].rows, found[other.name].failed_attempts) == (None, None, 0)

    table = judged(SENSORS, sensors)
    assert state(table, "quarantine") == ("warning", (10 * DAY).total_seconds())
    assert state(table, "backlog") == ("critical", (2 * DAY - HOUR + MINUTE).total_seconds())
    assert message in table.kpi("freshness").reason
    assert table.state is State.CRITICAL


def test_a_record_of_an_older_release_is_read(tmp_path: Path) -> None:
    lake = Lakehouse(tmp_path)
    record = a_load(SENSORS, NOW)
    told = json.loads(record.to_json())
    for name in ("latency_p95", "latency_max", "backlog_files", "backlog_seconds", "has_files", "table_rows"):
        del told[name]

    class Older(type(record)):  # type: ignore[misc]
        def to_json(self) -> str:
            return json.dumps(told)

    log(lake, [Older(**{f.name: getattr(record, f.name) for f in dataclasses.fields(record)})])

    (load,) = facts_of_lake(lake, [SENSORS], NOW)["bz_sensor_data"].loads
    assert (load.read, load.latency_p95, load.backlog_files) == (100, None, None)


# ---------------------------------------------------------------------------------------------------------- judgements


@pytest.mark.parametrize(
    ("table", "warn", "fail", "target"),
    [(ORDERS, 30, 60, 15), (STOCK, 90, 180, 60), (WAREHOUSES, 26 * 60, 50 * 60, 24 * 60), (SENSORS, 15, 60, 15)],
    ids=["streaming", "hourly", "daily", "files"],
)
def test_freshness_goes_by_the_cadence(table: BronzeTable, warn: int, fail: int, target: int) -> None:
    def after(minutes: float) -> tuple[str, bool | None]:
        found = judged(table, Facts(last_load=NOW - minutes * MINUTE)).kpi("freshness")
        return found.state.value, found.on_target

    assert after(target) == ("ok", True)
    assert after(warn) == ("ok", warn <= target)
    assert after(warn + 0.1) == ("warning", False)
    assert after(fail) == ("warning", False)
    assert after(fail + 0.1) == ("critical", False)


def test_a_load_for_which_nothing_was_outstanding_counts_as_one() -> None:
    facts = Facts(last_load=NOW - 3 * HOUR)
    assert state(judged(facts=facts), "freshness")[0] == "critical"
    known = Known(materialised=load(NOW - 5 * MINUTE, read=0, score=None))
    assert state(judged(facts=facts, known=known), "freshness") == ("ok", 300.0)


@pytest.mark.parametrize("name", ISSUE)
def test_each_threshold_is_the_one_of_the_issue(name: str) -> None:
    """At the threshold all is well, just beyond it is broken, and by its level."""
    warning, critical = ISSUE[name]
    bound = critical if warning is None else warning
    assert bound is not None
    table = CUSTOMERS if name in ("compliance", "capture_lag", "backlog") else ORDERS
    beyond = bound * (1 - 1e-6 if KINDS[name].least else 1 + 1e-6)

    def at(value: float) -> str:
        ended = NOW - MINUTE
        seconds = dt.timedelta(seconds=value) if name in ("capture_lag", "backlog") else dt.timedelta()
        loads = {
            "latency": lambda: [load(ended, latency_p95=value)],
            "time_to_insight": lambda: [load(ended, latency_max=value)],
            "processing_time": lambda: [load(ended, seconds=value)],
            "quality_score": lambda: [load(ended, score=value)],
            "error_rate": lambda: [load(ended, read=10**9, quarantined=round(value * 10**9))],
            "storage_growth": lambda: [load(NOW - DAY, table_bytes=10**9), load(ended)],
            "throughput": lambda: [load(ended, read=10**6, seconds=3600 * 10**6 / value)],
            "backlog": lambda: [load(NOW, backlog_files=1, backlog_seconds=value)],
        }
        facts = Facts(
            loads=tuple(loads[name]()) if name in loads else (),
            bytes=round((1 + value) * 10**9) if name == "storage_growth" else None,
        )
        known = Known(
            cost_per_gb=value if name == "cost" else None,
            compliance=value if name == "compliance" else None,
            compliance_at=NOW,
            captured_at=NOW - seconds,
        )
        return judged(table, facts, known).kpi(name).state.value

    assert at(bound) == "ok"
    assert at(beyond) == ("critical" if warning is None else "warning")


def test_a_table_of_files_may_have_more_errors() -> None:
    facts = Facts(loads=(load(NOW, read=100, quarantined=5),))
    assert state(judged(ORDERS, facts), "error_rate") == ("critical", 0.05)
    assert state(judged(SENSORS, facts), "error_rate") == ("ok", 0.05)


def test_the_last_load_that_read_rows_is_judged() -> None:
    facts = Facts(loads=(load(NOW - HOUR, score=70.0), load(NOW, read=0, score=None)))
    assert state(judged(facts=facts), "quality_score") == ("warning", 70.0)


def test_the_pace_of_small_loads_says_nothing() -> None:
    small = load(NOW, read=9_999, seconds=100.0)
    assert state(judged(facts=Facts(loads=(small,))), "throughput") == ("unknown", None)
    large = load(NOW - HOUR, read=10_000, seconds=40.0)
    assert state(judged(facts=Facts(loads=(large, small))), "throughput") == ("warning", 900_000.0)


def test_growth_is_measured_against_what_was_there_a_day_ago_however_old_that_load_is() -> None:
    loads = (load(NOW - 9 * DAY, table_bytes=100), load(NOW - 2 * HOUR, table_bytes=125))
    assert state(judged(facts=Facts(loads=loads, bytes=130)), "storage_growth") == ("warning", pytest.approx(0.3))
    assert state(judged(facts=Facts(loads=loads[1:], bytes=130)), "storage_growth") == ("unknown", None)


@pytest.mark.parametrize(
    ("failed", "expected"),
    [(None, "unknown"), ({}, "ok"), ({"null_share": False}, "warning"), ({"a": False, "key": True}, "critical")],
)
def test_failed_checks_are_as_bad_as_the_worst(failed: dict[str, bool] | None, expected: str) -> None:
    assert judged(known=Known(failed_checks=failed)).kpi("failed_checks").state.value == expected


def test_quarantine_is_judged_by_its_oldest_row() -> None:
    def after(days: float) -> str:
        return judged(facts=Facts(open_rows=5, oldest_open=NOW - days * DAY)).kpi("quarantine").state.value

    assert [after(days) for days in (7, 7.01, 30, 30.01)] == ["ok", "warning", "warning", "critical"]
    assert state(judged(facts=Facts(open_rows=0)), "quarantine") == ("ok", 0.0)


def test_a_slot_that_is_too_far_behind_is_critical_however_fresh() -> None:
    known = Known(captured_at=NOW, capture_failed=True)
    assert state(judged(known=known), "capture_lag")[0] == "critical"
    assert state(judged(WAREHOUSES, known=known), "capture_lag") == ("unknown", None)
    assert state(judged(known=known, capture=CaptureMode.OFF), "capture_lag") == ("unknown", None)


def test_trends_compare_this_week_with_the_one_before() -> None:
    old = [load(NOW - 10 * DAY, score=90.0, read=300, seconds=10.0), load(NOW - 8 * DAY, score=98.0, seconds=30.0)]
    new = [load(NOW - DAY, score=95.0, seconds=25.0)]
    table = judged(facts=Facts(loads=(*old, *new)))
    assert table.score_change == pytest.approx(95 - (90 * 300 + 98 * 100) / 400)
    assert table.seconds_change == pytest.approx(25 / 20 - 1)
    assert judged(facts=Facts(loads=tuple(new))).score_change is None


def test_many_loads_become_a_point_a_day() -> None:
    loads = [load(NOW - n * HOUR, seconds=float(n), score=90.0 if n < 24 else 99.0, table_bytes=n) for n in range(48)]
    points = judged(facts=Facts(loads=tuple(sorted(loads, key=lambda one: one.ended)))).points
    days = sorted({one.ended.date() for one in loads})
    assert [point.at.date() for point in points] == days
    for point in points:
        mine = [one for one in loads if one.ended.date() == point.at.date()]
        assert point.seconds == max(one.seconds for one in mine)
        assert point.score == pytest.approx(sum(one.score or 0 for one in mine) / len(mine))
        assert point.bytes == max(mine, key=lambda one: one.ended).table_bytes


class TestAvailability:
    """NOW is 12:30 on the 15th: a day is due from 01:00 of the next on, an hour from an hour after it."""

    def share(self, table: BronzeTable, facts: Facts, **options: Any) -> str:
        return judged(table, facts, **options).kpi("availability").reason

    def days(self, *numbers: int, at: str = "12:00") -> dict[str, dt.datetime]:
        return {f"2026-06-{n:02}": dt.datetime.fromisoformat(f"2026-06-{n:02}T{at}+00:00") for n in numbers}

    def test_of_a_daily_table(self) -> None:
        first = dt.datetime(2026, 6, 10, 23, tzinfo=dt.UTC)
        facts = Facts(first_load=first, done=self.days(10, 11, 12, 14, 15))
        # The 10th to the 14th; today is not over.
        assert self.share(WAREHOUSES, facts) == "4 of 5 partitions were loaded in time."
        assert judged(WAREHOUSES, facts).kpi("availability").state is State.WARNING
        # Not before the first partition.
        late = {"start_date": dt.date(2026, 6, 13)}
        assert self.share(WAREHOUSES, facts, **late) == "1 of 2 partitions were loaded in time."

    def test_an_hour_late_is_in_time_and_more_is_not(self) -> None:
        done = self.days(13) | {"2026-06-14": dt.datetime(2026, 6, 15, 1, tzinfo=dt.UTC)}
        facts = Facts(first_load=dt.datetime(2026, 6, 13, 5, tzinfo=dt.UTC), done=done)
        assert self.share(WAREHOUSES, facts) == "2 of 2 partitions were loaded in time."
        done["2026-06-14"] += dt.timedelta(seconds=1)
        assert self.share(WAREHOUSES, facts) == "1 of 2 partitions were loaded in time."

    def test_of_an_hourly_table(self) -> None:
        done = {f"2026-06-15-{h:02}:00": dt.datetime(2026, 6, 15, h, 3, tzinfo=dt.UTC) for h in (7, 8, 10, 11)}
        facts = Facts(first_load=dt.datetime(2026, 6, 15, 7, 3, tzinfo=dt.UTC), done=done)
        # 7 to 10; 11:00 is due at 13:00.
        assert self.share(STOCK, facts) == "3 of 4 partitions were loaded in time."

    def test_goes_back_thirty_days(self) -> None:
        facts = Facts(first_load=NOW - 300 * DAY, done={})
        # From the 17th of May, the first whole day, to the 14th of June.
        assert self.share(WAREHOUSES, facts) == "0 of 29 partitions were loaded in time."
        assert self.share(STOCK, facts) == "0 of 718 partitions were loaded in time."

    def test_of_a_table_of_files_counts_the_days_on_which_files_came(self) -> None:
        first = dt.datetime(2026, 6, 10, 9, tzinfo=dt.UTC)
        arrived = self.days(10, 12, 13, at="08:00")
        # Of a past day, but copied into its folder only yesterday.
        arrived["2026-06-11"] = dt.datetime(2026, 6, 14, 9, tzinfo=dt.UTC)
        done = self.days(10, 12) | {"2026-06-11": dt.datetime(2026, 6, 14, 9, 30, tzinfo=dt.UTC)}
        facts = Facts(first_load=first, done=done, arrived=arrived)
        assert self.share(SENSORS, facts) == "3 of 4 partitions were loaded in time."

    def test_one_missed_hour_of_thirty_days_is_more_than_a_thousandth(self) -> None:
        hours = [NOW.replace(minute=0) - n * HOUR for n in range(30 * 24)]
        done = {f"{hour:%F-%H}:00": hour for hour in hours}
        facts = Facts(first_load=NOW - 300 * DAY, done=done)
        assert state(judged(STOCK, facts), "availability") == ("ok", 1.0)
        del done[f"{hours[100]:%F-%H}:00"]
        assert state(judged(STOCK, facts), "availability") == ("warning", pytest.approx(717 / 718))
        assert judged(STOCK, facts).kpi("availability").threshold == 0.999

    def test_is_not_known_before_anything_was_due(self) -> None:
        assert judged(WAREHOUSES, Facts(first_load=NOW, done=self.days(15))).kpi("availability").value is None
        assert judged(WAREHOUSES, Facts(done={})).kpi("availability").value is None


def test_the_worst_table_comes_first() -> None:
    fresh = Facts(last_load=NOW)
    facts = {
        "bz_products": fresh,
        "bz_orders": Facts(last_load=NOW - 40 * MINUTE),
        "bz_customers": Facts(last_load=NOW - 5 * HOUR),
        "bz_suppliers": Facts(last_load=NOW - 5 * HOUR, loads=(load(NOW - 5 * HOUR, score=10.0),)),
        "bz_returns": fresh,
    }
    tables = [BY_NAME[name] for name in [*facts, "bz_shipments"]]
    report = judge("s", tables, facts, {}, NOW, start_date=dt.date(2026, 1, 1))

    assert [table.table for table in report.tables] == [
        *("bz_suppliers", "bz_customers", "bz_orders", "bz_shipments", "bz_products", "bz_returns")
    ]
    assert report.headline == "3 of 6 tables need attention."
    assert report.lines()[1] == "  CRITICAL  bz_suppliers: freshness 5 h, quality score 10.0"
    assert [kpi.name for kpi in report.tables[0].kpis][:2] == ["freshness", "quality_score"]


# --------------------------------------------------------------------------------------------------------- the command


def test_the_command_writes_through_dagster_and_opens_the_page_where_somebody_can_see_it(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    opened: list[str] = []

    def open_(url: str) -> bool:
        opened.append(url)
        return True

    monkeypatch.setattr(webbrowser, "open", open_)
    for name in ("BRONZE_LAKE", "BRONZE_LANDING", "BRONZE_ARCHIVE", "WAYLAND_DISPLAY", "DISPLAY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("BRONZE_HOME", str(home))
    monkeypatch.setenv("BRONZE_CAPTURE", "off")
    monkeypatch.setattr("sys.platform", "linux")
    lake = Lakehouse(home / "lake")
    log(lake, [a_load(SENSORS, dt.datetime.now(dt.UTC) - 5 * HOUR)])
    page = home / "reports" / "kpi_manufacturing_bronze.html"

    assert command_line.main(["report"]) == 0

    said = capsys.readouterr().out
    assert "manufacturing_bronze: 1 of 3 tables needs attention.\n  CRITICAL  bz_sensor_data: freshness 5 h" in said
    assert f"The KPIs: {page}\n" in said
    assert opened == []

    monkeypatch.setenv("DISPLAY", ":0")
    assert command_line.main(["report", "--no-open"]) == 0
    assert opened == []
    assert command_line.main(["report"]) == 0
    assert opened == [page.as_uri()]
    with dg.DagsterInstance.from_config(str(home / "dagster")) as instance:
        event = instance.get_latest_materialization_event(report_key("manufacturing_bronze"))
        assert event is not None
        assert event.asset_materialization is not None
        assert event.asset_materialization.metadata["troubled"].value == 1
        assert len(instance.get_runs()) == 3


def test_the_command_says_why_a_report_was_not_made(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("BRONZE_HOME", str(home))
    home.mkdir()
    (home / "reports").write_text("a file")

    assert command_line.main(["report", "--no-open"]) == 1

    told = capsys.readouterr().err
    assert "reports cannot be written" in told
    assert "Fix:" in told


def test_a_report_is_frozen_and_whole_as_json() -> None:
    report = judge("s", [ORDERS], {}, {}, NOW, start_date=dt.date(2026, 1, 1))
    assert isinstance(report, KpiReport)
    told = json.loads(report.to_json())
    (table,) = told["tables"]
    assert [kpi["name"] for kpi in table["kpis"]] == list(KINDS)
    assert told["at"] == NOW.isoformat()
    with pytest.raises(dataclasses.FrozenInstanceError):
        report.schema = "x"  # type: ignore[misc]
