"""The tables as Dagster sees them: graph, metadata, checks, retries, schedules. Loads are faked; Spark never starts."""

from __future__ import annotations

import ast
import datetime as dt
import re
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

import bronze_assets
from bronze_assets import audit
from bronze_assets.audit import LoadRecord, RuleCount
from bronze_assets.catalog import TABLES
from bronze_assets.definitions import build_definitions
from bronze_assets.errors import (
    BronzeError,
    DeclarationError,
    PartitionRefused,
    SchemaMismatch,
    SourceRefused,
    SourceUnreachable,
    TableBusy,
)
from bronze_assets.orchestration import assets as assets_module
from bronze_assets.orchestration import runs as runs_module
from bronze_assets.orchestration.kpis import report_key
from bronze_assets.orchestration.resources import STEP_LAUNCHER, Loader
from bronze_assets.settings import Environment, Settings
from bronze_assets.table import LOAD_DATE, METADATA_COLUMNS, BronzeTable, Cadence
from bronze_assets.workbench import Options, Run, Workbench, current_partition

TODAY = current_partition(Cadence.DAILY, dt.datetime.now(dt.UTC))
START = dt.date(2026, 1, 1)
BY_NAME = {table.name: table for table in TABLES}
ORDERS = BY_NAME["bz_orders"]
ORDERS_KEY = dg.AssetKey(["inventory_bronze", "bz_orders"])

SOURCES = {
    "bz_products": "postgres/tests/products",
    "bz_suppliers": "postgres/tests/suppliers",
    "bz_warehouses": "postgres/tests/warehouses",
    "bz_inventory": "postgres/tests/inventory",
    "bz_orders": "postgres/tests/orders",
    "bz_order_details": "postgres/tests/order_details",
    "bz_shipments": "postgres/tests/shipments",
    "bz_returns": "postgres/tests/returns",
    "bz_stock_levels": "postgres/tests/stock_levels",
    "bz_customers": "postgres/tests/customers",
    "bz_sensor_data": "landing/raw/sensor_data",
    "bz_equipment_logs": "landing/raw/equipment_logs",
    "bz_quality_metrics": "landing/raw/quality_metrics",
}

Answer = Callable[[BronzeTable, str, Options], LoadRecord]


class FakeLoader(Loader):
    """Answers loads from a function and remembers what it was asked."""

    def __init__(self, settings: Settings, answer: Answer) -> None:
        super().__init__(Workbench(settings))
        self.answer = answer
        self.asked: list[tuple[str, str, Run, Options]] = []

    def load(self, table: BronzeTable, partition: str, run: Run, options: Options) -> LoadRecord:
        self.asked.append((table.name, partition, run, options))
        return self.answer(table, partition, options)


def a_record(table: BronzeTable, partition: str, options: Options = Options(), **changes: Any) -> LoadRecord:
    """A load of 100 rows, of which 2 are quarantined; nothing is wrong with it."""
    started = dt.datetime(2026, 6, 1, 12, tzinfo=dt.UTC)
    record = LoadRecord(
        table=table.name,
        schema=table.schema,
        partition=partition,
        batch_id=f"{partition}/1",
        scope="full",
        started=started,
        ended=started + dt.timedelta(seconds=4),
        source_position="1/00/0",
        read=100,
        loaded=97,
        quarantined=2,
        duplicates=1,
        score_sum=9_900,
        nulls={column.name: 0 for column in table.columns},
        partition_rows=97,
        table_rows=1_097,
        table_bytes=5_000,
        table_files=3,
        delta_version=7,
        dry_run=options.dry_run,
    )
    return replace(record, **changes)


def failing(error: Exception, *, at: str | None = None) -> Answer:
    """Loads well, but fails for one partition, or for all."""

    def answer(table: BronzeTable, partition: str, options: Options) -> LoadRecord:
        if at in (None, partition):
            raise error
        return a_record(table, partition, options)

    return answer


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(
        Environment.LOCAL, tmp_path, tmp_path / "lake", "file:nowhere", "landing", "archive", start_date=START
    )


@pytest.fixture
def instance() -> Iterator[dg.DagsterInstance]:
    with dg.DagsterInstance.ephemeral() as instance:
        yield instance


@pytest.fixture
def kept(tmp_path: Path) -> Iterator[dg.DagsterInstance]:
    """An instance on disk, which schedules want."""
    with dg.DagsterInstance.local_temp(str(tmp_path)) as instance:
        yield instance


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runs_module, "RETRY_POLICY", runs_module.RETRY_POLICY._replace(delay=0.01))


def materialise(
    settings: Settings,
    instance: dg.DagsterInstance,
    answer: Answer = a_record,
    *tables: BronzeTable,
    partition: str | None = TODAY,
    tags: Mapping[str, str] | None = None,
    **config: Any,
) -> tuple[dg.ExecuteInProcessResult, FakeLoader]:
    tables = tables or (ORDERS,)
    loader = FakeLoader(settings, answer)
    result = dg.materialize(
        assets_module.assets(settings, tables),
        selection=dg.AssetSelection.assets(*(assets_module.asset_key(table) for table in tables)),
        instance=instance,
        resources={"loader": loader, STEP_LAUNCHER: None},
        partition_key=partition,
        tags=tags,
        run_config={"ops": {f"{t.schema}__{t.name}": {"config": config} for t in tables}} if config else None,
        raise_on_error=False,
    )
    return result, loader


def days(first: str, last: str) -> dict[str, str]:
    return {"dagster/asset_partition_range_start": first, "dagster/asset_partition_range_end": last}


def materialisations(result: dg.ExecuteInProcessResult, key: dg.AssetKey = ORDERS_KEY) -> list[dg.AssetMaterialization]:
    events = [event.step_materialization_data.materialization for event in result.get_asset_materialization_events()]
    return [event for event in events if event.asset_key == key]


def values(metadata: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value.value for name, value in metadata.items()}


def evaluations(result: dg.ExecuteInProcessResult) -> dict[str, dg.AssetCheckEvaluation]:
    found = result.get_asset_check_evaluations()
    names = [evaluation.check_name for evaluation in found]
    assert len(names) == len(set(names)), "a check answers once per run"
    return {evaluation.check_name: evaluation for evaluation in found}


class TestGraph:
    def test_every_table_stands_between_its_source_and_its_quarantine(self, settings: Settings) -> None:
        graph = build_definitions(settings, TABLES).resolve_asset_graph()
        for table in TABLES:
            node = graph.get(assets_module.asset_key(table))
            assert {key.to_user_string() for key in node.parent_keys} == {SOURCES[table.name]}
            report = report_key(table.schema)
            assert {key.to_user_string() for key in node.child_keys - {report}} == {
                f"{table.schema}/{table.quarantine_name}",
                f"{table.schema}/bz_audit_log",
            }
            assert report in node.child_keys
            assert f"{node.group_name}_bronze" == table.schema
            assert node.owners == list(table.owners)
            assert node.is_materializable
            assert not any(graph.get(key).is_materializable for key in {*node.parent_keys, *node.child_keys} - {report})
        # The tables, and a report of each schema.
        assert len(graph.materializable_asset_keys) == 13 + 2

    def test_partitions_are_utc_and_include_the_one_in_progress(self, settings: Settings) -> None:
        for table in TABLES:
            windows = assets_module.partitions(table.cadence, settings)
            now = dt.datetime.now(dt.UTC)
            assert windows.timezone == "UTC"
            assert windows.get_last_partition_key() == current_partition(table.cadence, now)
            hourly = table.name == "bz_stock_levels"
            assert windows.get_first_partition_key() == ("2026-01-01-00:00" if hourly else "2026-01-01")

    def test_definition_metadata_says_what_the_table_is(self, settings: Settings) -> None:
        spec = spec_of("bz_customers", settings)
        assert spec.metadata["dagster/table_name"] == "inventory_bronze.bz_customers"
        assert spec.metadata["dagster/uri"] == (settings.lake / "inventory_bronze" / "bz_customers").as_uri()
        columns = {column.name: column for column in spec.metadata["dagster/column_schema"].columns}
        assert list(columns) == ["customer_id", "customer_name", "email", *METADATA_COLUMNS, LOAD_DATE]
        assert columns["email"].tags == {"pii": "High"}
        assert columns["customer_id"].tags == {}
        assert columns["customer_id"].type == "int"
        assert not columns["customer_id"].constraints.nullable
        assert columns["email"].constraints.nullable
        assert all(column.description for column in columns.values())
        lineage = spec.metadata["dagster/column_lineage"].deps_by_column
        source = dg.AssetKey(["postgres", "tests", "customers"])
        assert lineage["email"] == [dg.TableColumnDep(source, "email")]

    def test_only_tables_partitioned_by_load_date_have_that_column(self, settings: Settings) -> None:
        for table in TABLES:
            columns = spec_of(table.name, settings).metadata["dagster/column_schema"].columns
            assert (LOAD_DATE in [column.name for column in columns]) is (table.layout.partition_by == LOAD_DATE)

    def test_policies(self, settings: Settings) -> None:
        defs = build_definitions(settings, TABLES)
        for table in TABLES:
            definition = defs.resolve_assets_def(assets_module.asset_key(table))
            assert definition.backfill_policy == dg.BackfillPolicy.single_run()
            assert definition.op.pool == f"load_{table.name}"
            assert definition.op.retry_policy is None, "Dagster's own would retry an interrupted load"
        policy = runs_module.RETRY_POLICY
        assert (policy.max_retries, policy.backoff) == (3, dg.Backoff.EXPONENTIAL)
        assert policy.jitter is not None

    @pytest.mark.parametrize(
        ("name", "warn", "fail"),
        [
            ("bz_orders", dt.timedelta(minutes=30), dt.timedelta(minutes=60)),
            ("bz_stock_levels", dt.timedelta(minutes=90), dt.timedelta(hours=3)),
            ("bz_warehouses", dt.timedelta(hours=26), dt.timedelta(hours=50)),
            ("bz_sensor_data", dt.timedelta(minutes=15), dt.timedelta(minutes=60)),
        ],
    )
    def test_freshness_is_the_kpi_tables(
        self, name: str, warn: dt.timedelta, fail: dt.timedelta, settings: Settings
    ) -> None:
        policy = spec_of(name, settings).freshness_policy
        assert policy == dg.FreshnessPolicy.time_window(fail_window=fail, warn_window=warn)

    def test_checks_are_the_declarations_and_only_the_schema_blocks(self, settings: Settings) -> None:
        defs = build_definitions(settings, TABLES)
        for table in TABLES:
            specs = list(defs.resolve_assets_def(assets_module.asset_key(table)).check_specs)
            assert [spec.name for spec in specs] == [check.name for check in audit.checks(table)]
            assert [spec.name for spec in specs if spec.blocking] == ["schema"]
            assert all(spec.partitions_def is None for spec in specs)

    def test_a_table_declared_twice_is_refused_by_name(self, settings: Settings) -> None:
        with pytest.raises(DeclarationError, match=r"bz_orders.*more than once"):
            build_definitions(settings, [ORDERS, ORDERS])

    def test_what_dagster_cannot_take_is_refused_by_name(self, settings: Settings) -> None:
        with pytest.raises(DeclarationError, match=r"bz_orders.*no team"):
            build_definitions(settings, [replace(ORDERS, owners=("no team",))])

    def test_loading_the_definitions_starts_and_opens_nothing(self, tmp_path: Path) -> None:
        code = (
            "import socket, subprocess, dagster\n"
            "def refuse(*a, **k): raise AssertionError('started or opened something')\n"
            "socket.socket.connect = subprocess.Popen.__init__ = refuse\n"
            "import bronze_assets.definitions as d\n"
            "d.defs.resolve_all_job_defs()\n"
            "from pyspark.sql import SparkSession\n"
            "assert SparkSession.getActiveSession() is None\n"
        )
        subprocess.run(
            [sys.executable, "-c", code], check=True, timeout=120, env={"BRONZE_HOME": str(tmp_path / "home")}
        )
        assert not (tmp_path / "home").exists()


def test_only_the_wiring_and_the_orchestration_import_dagster() -> None:
    package = Path(bronze_assets.__file__).parent
    importing = {
        path.relative_to(package).as_posix()
        for path in package.rglob("*.py")
        if re.search(r"^\s*(import|from) dagster\b", path.read_text(encoding="utf-8"), re.MULTILINE)
    }
    assert {name for name in importing if not name.startswith("orchestration/")} == {"definitions.py"}


LOCAL_ONLY = {
    "engine.py": {"_jvm"},
    "warm_engine.py": {"sparkContext", "SparkContext", "_gateway", "_jsparkSession", "_jvm", "py4j"},
    # What is caught may come over py4j.
    "spark_errors.py": {"py4j"},
    # Over Spark Connect it runs in a process of the server's, which knows no ledger.
    "sources/autoloader.py": {"foreachBatch"},
    # Not where compute is serverless.
    "operations/assessment_frames.py": {"persist", "unpersist"},
}
"""Module → what it uses of Spark that Spark Connect does not serve, and so neither serverless compute nor a shared
cluster. Only the two engines may, which start a JVM of their own, and what is yet to be done."""


def test_loads_use_nothing_that_spark_connect_does_not_serve() -> None:
    package = Path(bronze_assets.__file__).parent
    internals = (
        r"_jvm|_jdf|_jc|_jconf|_jsc|_jsparkSession|_gateway|_sc|sparkContext|SparkContext|rdd|py4j|parallelize|"
        r"foreachBatch|foreachPartition|foreach|persist|unpersist|cache|checkpoint|localCheckpoint|toLocalIterator"
    )
    found: dict[str, set[str]] = {}
    for path in package.rglob("*.py"):
        nodes = list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
        names = {node.attr for node in nodes if isinstance(node, ast.Attribute)}
        names |= {node.id for node in nodes if isinstance(node, ast.Name)}
        names |= {str(node.module).split(".")[0] for node in nodes if isinstance(node, ast.ImportFrom)}
        if used := {name for name in names if re.fullmatch(internals, name)}:
            found[path.relative_to(package).as_posix()] = used
    assert found == LOCAL_ONLY


def spec_of(name: str, settings: Settings) -> dg.AssetSpec:
    table = BY_NAME[name]
    return build_definitions(settings, TABLES).resolve_assets_def(assets_module.asset_key(table)).get_asset_spec()


class TestOnePartition:
    def test_every_number_of_the_record_is_typed_metadata(
        self, settings: Settings, instance: dg.DagsterInstance
    ) -> None:
        def answer(table: BronzeTable, partition: str, options: Options) -> LoadRecord:
            return a_record(
                table,
                partition,
                nulls={"order_status": 3},
                rules={"order_date_not_in_future": RuleCount(2, ("7", "9"))},
                bytes_day_ago=4_000,
            )

        result, _ = materialise(settings, instance, answer)
        assert result.success
        (event,) = materialisations(result)
        assert event.partition == TODAY
        found = values(event.metadata)
        assert found | {"started": 0, "ended": 0} == found | {"started": 0, "ended": 0} | {
            "dagster/row_count": 1_097,
            "dagster/partition_row_count": 97,
            "batch_id": f"{TODAY}/1",
            "scope": "full",
            "read": 100,
            "loaded": 97,
            "quarantined": 2,
            "duplicates": 1,
            "unchanged": 0,
            "seconds": 4.0,
            "rows_per_second": 25.0,
            "average_score": 99.0,
            "error_rate": 0.02,
            "storage_growth": 0.25,
            "delta_version": 7,
            "nulls/order_status": 3,
            "broken/order_date_not_in_future": 2,
        }
        assert isinstance(event.metadata["average_score"], dg.FloatMetadataValue)
        assert isinstance(event.metadata["read"], dg.IntMetadataValue)
        assert isinstance(event.metadata["started"], dg.TimestampMetadataValue)

    def test_every_field_of_the_record_has_an_entry(self) -> None:
        record = a_record(
            ORDERS,
            TODAY,
            new_columns=("x",),
            unclassified=("y",),
            nulls={"a": 1},
            rules={"b": RuleCount(1)},
            bytes_day_ago=1,
            has_files=True,
            files=3,
            files_quarantined=1,
            latency_p50=1.5,
            latency_p95=2.5,
            latency_max=3.5,
            backlog_files=4,
            backlog_seconds=7.5,
            waiting_partitions=("2026-03-01",),
            stuck_files=1,
            stuck="'a.json' cannot be moved",
        )
        said = assets_module.record_metadata(record)
        elsewhere = {"table", "schema", "partition", "dry_run", "rules", "nulls", "table_rows", "partition_rows"}
        renamed = {name: f"{name}_seconds" for name in ("latency_p50", "latency_p95", "latency_max")}
        assert {renamed.get(name, name) for name in vars(record)} - elsewhere - {"has_files"} <= set(said)
        told = {name: said[name] for name in said if re.match(r"files|latency|backlog", name)}
        assert told == {
            "files": 3,
            "files_quarantined": 1,
            "latency_p50_seconds": 1.5,
            "latency_p95_seconds": 2.5,
            "latency_max_seconds": 3.5,
            "backlog_files": 4,
            "backlog_seconds": 7.5,
        }
        assert {"dagster/row_count", "dagster/partition_row_count", "nulls/a", "broken/b"} <= set(said)

    def test_a_table_that_takes_no_files_says_nothing_of_them(self) -> None:
        said = assets_module.record_metadata(a_record(BY_NAME["bz_warehouses"], TODAY))
        assert not [name for name in said if re.match(r"files|latency|backlog", name)]

    def test_checks_carry_counts_shares_and_examples(self, settings: Settings, instance: dg.DagsterInstance) -> None:
        def answer(table: BronzeTable, partition: str, options: Options) -> LoadRecord:
            return a_record(
                table, partition, rules={"order_date_not_in_future": RuleCount(2, ("7", "9"))}, quarantined=5, loaded=94
            )

        result, _ = materialise(settings, instance, answer)
        assert result.success, "a failed check that does not block fails nothing"
        found = evaluations(result)
        assert list(found) == [check.name for check in audit.checks(ORDERS)]
        assert {name for name, check in found.items() if not check.passed} == {"order_date_not_in_future", "error_rate"}
        late = found["order_date_not_in_future"]
        assert late.severity is dg.AssetCheckSeverity.WARN
        assert values(late.metadata)["count"] == 2
        assert values(late.metadata)["share"] == 0.02
        assert values(late.metadata)["examples"] == ["7", "9"]
        assert found["error_rate"].severity is dg.AssetCheckSeverity.ERROR

    def test_quarantine_and_audit_log_are_materialised_too(
        self, settings: Settings, instance: dg.DagsterInstance
    ) -> None:
        result, _ = materialise(settings, instance)
        (quarantine,) = materialisations(result, dg.AssetKey(["inventory_bronze", "bz_orders_quarantine"]))
        assert quarantine.partition == TODAY
        assert values(quarantine.metadata)["sightings"] == 2
        (log,) = materialisations(result, dg.AssetKey(["inventory_bronze", "bz_audit_log"]))
        assert log.partition is None
        assert values(log.metadata)["batch_id"] == f"{TODAY}/1"

    def test_run_is_tagged(self, settings: Settings, instance: dg.DagsterInstance) -> None:
        result, loader = materialise(settings, instance)
        tags = tags_of(result, instance)
        assert tags["bronze/table"] == "bz_orders"
        assert tags["bronze/batch"] == f"{TODAY}/1"
        assert tags["bronze/trigger"] == "manual"
        assert tags["bronze/environment"] == "local"
        assert loader.asked[0][2] == Run(result.run_id, "manual")

    @pytest.mark.parametrize(
        ("tags", "trigger"),
        [
            ({"dagster/backfill": "abc"}, "backfill"),
            ({"dagster/schedule_name": "s"}, "schedule"),
            ({"dagster/sensor_name": "s"}, "sensor"),
            ({"bronze/trigger": "cli"}, "cli"),
        ],
    )
    def test_trigger_is_known(
        self, tags: dict[str, str], trigger: str, settings: Settings, instance: dg.DagsterInstance
    ) -> None:
        _, loader = materialise(settings, instance, tags=tags)
        assert loader.asked[0][2].trigger == trigger

    def test_several_tables_of_a_run_share_one_loader_and_all_are_tagged(
        self, settings: Settings, instance: dg.DagsterInstance
    ) -> None:
        tables = [table for table in TABLES if table.cadence is not Cadence.HOURLY]
        result, loader = materialise(settings, instance, a_record, *tables)
        assert sorted(name for name, *_ in loader.asked) == sorted(table.name for table in tables)
        assert sorted(tags_of(result, instance)["bronze/table"].split(", ")) == sorted(table.name for table in tables)

    def test_config_reaches_the_load(self, settings: Settings, instance: dg.DagsterInstance) -> None:
        _, loader = materialise(settings, instance, full_compare=True, max_rows=5, read_connections=3)
        assert loader.asked[0][3] == Options(full_compare=True, max_rows=5, read_connections=3)

    def test_a_limit_that_is_none_is_refused(self, settings: Settings, instance: dg.DagsterInstance) -> None:
        result, loader = materialise(settings, instance, max_rows=0)
        assert not result.success
        assert not loader.asked
        assert "max_rows=0 is not positive" in failure_of(result)

    def test_config_is_described(self) -> None:
        assert all(field.description for field in assets_module.LoadConfig.model_fields.values())


class TestDryRun:
    def test_observes_and_materialises_nothing(self, settings: Settings, instance: dg.DagsterInstance) -> None:
        result, loader = materialise(settings, instance, dry_run=True)
        assert result.success
        assert loader.asked[0][3].dry_run
        assert not result.get_asset_materialization_events()
        assert not result.get_asset_check_evaluations()
        (event,) = result.get_asset_observation_events()
        observation = event.asset_observation_data.asset_observation
        assert observation.asset_key == ORDERS_KEY
        assert observation.partition == TODAY
        assert values(observation.metadata)["read"] == 100
        assert values(observation.metadata)["dry_run"] is True
        assert instance.get_latest_materialization_event(ORDERS_KEY) is None
        assert "bronze/batch" not in tags_of(result, instance)


class TestRanges:
    def test_each_partition_has_its_own_numbers_exactly_once(
        self, settings: Settings, instance: dg.DagsterInstance
    ) -> None:
        def answer(table: BronzeTable, partition: str, options: Options) -> LoadRecord:
            day = int(partition[-2:])
            return a_record(table, partition, read=100 + day, loaded=97 + day)

        result, loader = materialise(settings, instance, answer, partition=None, tags=days("2026-02-01", "2026-02-10"))
        assert result.success
        expected = [f"2026-02-{day:02}" for day in range(1, 11)]
        assert [partition for _, partition, *_ in loader.asked] == expected
        assert loader.asked[0][2].trigger == "backfill"
        events = materialisations(result)
        assert [event.partition for event in events] == expected
        assert [values(event.metadata)["read"] for event in events] == [100 + day for day in range(1, 11)]
        assert instance.get_materialized_partitions(ORDERS_KEY) == set(expected)
        assert tags_of(result, instance)["bronze/batch"] == "2026-02-01/1 … 2026-02-10/1"

    def test_each_check_answers_once_with_the_worst(self, settings: Settings, instance: dg.DagsterInstance) -> None:
        def answer(table: BronzeTable, partition: str, options: Options) -> LoadRecord:
            broken = {"2026-02-02": 3, "2026-02-03": 60}.get(partition, 0)
            keys = tuple(f"{partition}#{n}" for n in range(min(broken, 5)))
            return a_record(table, partition, rules={"order_date_not_in_future": RuleCount(broken, keys)})

        result, _ = materialise(settings, instance, answer, partition=None, tags=days("2026-02-01", "2026-02-04"))
        late = evaluations(result)["order_date_not_in_future"]
        assert not late.passed
        found = values(late.metadata)
        assert found["count"] == 63
        assert found["share"] == 0.6
        assert len(found["examples"]) == 5
        assert {day: numbers["count"] for day, numbers in found["partitions"].items()} == {
            "2026-02-01": 0,
            "2026-02-02": 3,
            "2026-02-03": 60,
            "2026-02-04": 0,
        }
        assert late.description == "failed in 2026-02-02, 2026-02-03"

    def test_what_was_loaded_before_a_failure_stays_reported(
        self, settings: Settings, instance: dg.DagsterInstance
    ) -> None:
        refused = PartitionRefused("no.", "do.", table="bz_orders")
        result, _ = materialise(
            settings,
            instance,
            failing(refused, at="2026-02-03"),
            partition=None,
            tags=days("2026-02-01", "2026-02-05"),
        )
        assert not result.success
        assert [event.partition for event in materialisations(result)] == ["2026-02-01", "2026-02-02"]
        assert instance.get_materialized_partitions(ORDERS_KEY) == {"2026-02-01", "2026-02-02"}


class TestFailures:
    def test_a_schema_mismatch_fails_the_blocking_check_and_is_not_tried_again(
        self, settings: Settings, instance: dg.DagsterInstance
    ) -> None:
        mismatch = SchemaMismatch("column order_date is text, expected date.", "alter it.", table="bz_orders")
        result, loader = materialise(settings, instance, failing(mismatch))
        assert not result.success
        assert len(loader.asked) == 1
        found = evaluations(result)
        assert list(found) == ["schema"]
        assert not found["schema"].passed
        assert found["schema"].severity is dg.AssetCheckSeverity.ERROR
        assert found["schema"].blocking
        assert "order_date is text" in (found["schema"].description or "")
        assert not materialisations(result)
        assert "bz_orders: column order_date is text, expected date. Fix: alter it." in failure_of(result)

    def test_what_depends_on_a_mismatched_table_does_not_run(
        self, settings: Settings, instance: dg.DagsterInstance
    ) -> None:
        @dg.asset(deps=[ORDERS_KEY])
        def silver() -> None:
            raise AssertionError("ran")

        loader = FakeLoader(settings, failing(SchemaMismatch("a.", "b.", table="bz_orders")))
        result = dg.materialize(
            [*assets_module.assets(settings, [ORDERS]), silver],
            instance=instance,
            partition_key=TODAY,
            resources={"loader": loader, STEP_LAUNCHER: None},
            raise_on_error=False,
        )
        assert [event.step_key for event in result.get_step_failure_events()] == ["inventory_bronze__bz_orders"]
        assert "silver" not in {event.step_key for event in result.get_step_success_events()}

    @pytest.mark.parametrize(
        ("error", "attempts"),
        [
            (SourceUnreachable("no answer.", "wait."), 4),
            (SourceRefused("password refused.", "correct it."), 1),
            (PartitionRefused("past.", "take today."), 1),
            (TableBusy("another load.", "wait."), 1),
            (ValueError("secret"), 1),
        ],
        ids=lambda value: type(value).__name__ if isinstance(value, Exception) else "",
    )
    def test_only_what_a_retry_may_cure_is_tried_again(
        self, error: Exception, attempts: int, settings: Settings, instance: dg.DagsterInstance
    ) -> None:
        result, loader = materialise(settings, instance, failing(error))
        assert not result.success
        assert len(loader.asked) == attempts
        assert (str(error) in failure_of(result)) is isinstance(error, BronzeError)

    def test_a_retry_that_helps_ends_well(self, settings: Settings, instance: dg.DagsterInstance) -> None:
        errors = [SourceUnreachable("no answer.", "wait.")] * 2

        def answer(table: BronzeTable, partition: str, options: Options) -> LoadRecord:
            if errors:
                raise errors.pop()
            return a_record(table, partition)

        result, _ = materialise(settings, instance, answer)
        assert result.success
        assert len(materialisations(result)) == 1

    def test_one_table_failing_leaves_the_others_alone(self, settings: Settings, instance: dg.DagsterInstance) -> None:
        def answer(table: BronzeTable, partition: str, options: Options) -> LoadRecord:
            if table is ORDERS:
                raise SourceRefused("a.", "b.", table=table.name)
            return a_record(table, partition)

        result, loader = materialise(settings, instance, answer, ORDERS, BY_NAME["bz_products"])
        assert len(loader.asked) == 2
        assert len(materialisations(result, dg.AssetKey(["inventory_bronze", "bz_products"]))) == 1


class TestJobsAndSchedules:
    def test_jobs_cover_each_table_once_by_cadence_and_once_at_first(self, settings: Settings) -> None:
        defs = build_definitions(settings, TABLES)
        covered = {
            name: {key.path[-1] for key in defs.resolve_job_def(name).asset_layer.selected_asset_keys}
            for name in (
                "initial_load",
                "initial_load_hourly",
                "load_streaming_tables",
                "load_daily_tables",
                "load_hourly_tables",
            )
        }
        assert covered["initial_load_hourly"] == covered["load_hourly_tables"] == {"bz_stock_levels"}
        assert covered["load_daily_tables"] == {"bz_warehouses"}
        assert len(covered["load_streaming_tables"]) == 8
        assert covered["initial_load"] == covered["load_streaming_tables"] | covered["load_daily_tables"]

    @pytest.mark.parametrize("environment", list(Environment))
    def test_schedules_run_by_default_only_locally(self, environment: Environment, settings: Settings) -> None:
        defs = build_definitions(replace(settings, environment=environment), TABLES)
        expected = (
            dg.DefaultScheduleStatus.RUNNING if environment is Environment.LOCAL else dg.DefaultScheduleStatus.STOPPED
        )
        found = {s.name: (s.cron_schedule, s.default_status, s.execution_timezone) for s in schedules(defs)}
        assert found == {
            "load_streaming_tables_schedule": ("*/15 * * * *", expected, "UTC"),
            "load_daily_tables_schedule": ("0 0 * * *", expected, "UTC"),
            "load_hourly_tables_schedule": ("0 * * * *", expected, "UTC"),
        }

    @pytest.mark.parametrize("name", ["load_streaming_tables", "load_daily_tables", "load_hourly_tables"])
    def test_a_tick_asks_for_the_partition_in_progress(
        self, name: str, settings: Settings, kept: dg.DagsterInstance
    ) -> None:
        now = dt.datetime.now(dt.UTC)
        (request,) = tick(name, settings, kept, now).run_requests or []
        cadence = Cadence.HOURLY if name == "load_hourly_tables" else Cadence.DAILY
        assert request.partition_key == current_partition(cadence, now)
        assert request.tags["bronze/trigger"] == "schedule"
        assert request.tags["bronze/source"] == "PostgreSQL_DE"

    def test_a_tick_of_yesterday_that_comes_late_loads_nothing(
        self, settings: Settings, kept: dg.DagsterInstance
    ) -> None:
        data = tick("load_daily_tables", settings, kept, dt.datetime.now(dt.UTC) - dt.timedelta(days=1))
        assert not data.run_requests
        assert "not in progress" in (data.skip_message or "")

    def test_a_tick_waits_for_the_run_before_it(self, settings: Settings, kept: dg.DagsterInstance) -> None:
        defs = build_definitions(settings, TABLES)
        run = kept.create_run_for_job(defs.resolve_job_def("load_streaming_tables"))
        data = tick("load_streaming_tables", settings, kept, dt.datetime.now(dt.UTC))
        assert not data.run_requests
        assert run.run_id in (data.skip_message or "")

    def test_before_the_first_partition_nothing_is_asked_for(
        self, settings: Settings, kept: dg.DagsterInstance
    ) -> None:
        now = dt.datetime.now(dt.UTC)
        later = replace(settings, start_date=now.date() + dt.timedelta(days=2))
        assert not tick("load_daily_tables", later, kept, now).run_requests


def schedules(defs: dg.Definitions) -> list[dg.ScheduleDefinition]:
    return [defs.resolve_schedule_def(f"load_{cadence.value}_tables_schedule") for cadence in Cadence]


def tick(name: str, settings: Settings, instance: dg.DagsterInstance, when: dt.datetime) -> dg.ScheduleExecutionData:
    defs = build_definitions(settings, TABLES)
    context = dg.build_schedule_context(
        instance=instance, scheduled_execution_time=when, repository_def=defs.get_repository_def()
    )
    return defs.resolve_schedule_def(f"{name}_schedule").evaluate_tick(context)


def tags_of(result: dg.ExecuteInProcessResult, instance: dg.DagsterInstance) -> Mapping[str, str]:
    run = instance.get_run_by_id(result.run_id)
    assert run is not None
    return run.tags


def failure_of(result: dg.ExecuteInProcessResult) -> str:
    (event,) = result.get_step_failure_events()
    data = event.step_failure_data
    said = [data.user_failure_data.description] if data.user_failure_data else []
    error = data.error
    while error is not None and not data.user_failure_data:
        said.append(error.message)
        error = error.cause
    return " ".join(text for text in said if text)
