"""Evidence of access: what a workspace tells (`fake_warehouse`, behind the real SDK) is logged and reported."""

from __future__ import annotations

import dataclasses
import datetime as dt
import itertools
import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
from deltalake import DeltaTable

from bronze_assets import __main__ as command_line
from bronze_assets.access import ACCESS_LOG, GRANT_CHECKS, Grant, grants
from bronze_assets.access_evidence import sql_reads
from bronze_assets.catalog import TABLES
from bronze_assets.definitions import build_definitions
from bronze_assets.errors import SettingsError, WarehouseError
from bronze_assets.lakehouse import Lakehouse
from bronze_assets.privacy import evidence
from bronze_assets.privacy.access_log import log_sql_reads
from bronze_assets.privacy.compliance import Report, compliance
from bronze_assets.privacy.controls import Control
from bronze_assets.privacy.keys import existing_ring
from bronze_assets.settings import Settings
from bronze_assets_tests.conftest import CHECKOUT, settings_for
from bronze_assets_tests.fake_warehouse import ID, FakeWarehouse, serving

NOW = dt.datetime(2026, 11, 21, 12, tzinfo=dt.UTC)
DAY, HOUR = dt.timedelta(days=1), dt.timedelta(hours=1)
SCHEMA = "inventory_bronze"
SCHEMAS = [SCHEMA, "manufacturing_bronze"]
PLATFORM = "6f1f2c1e-0000-4000-8000-000000000001"
EVE = "eve@example.com"
CUSTOMERS = "dev.inventory_bronze.bz_customers"


def granted(grant: Grant) -> dict[str, Any]:
    """As `information_schema` tells it."""
    path = [*grant.path, None, None][:3]
    return {
        "grantee": grant.grantee,
        **dict(zip(("table_catalog", "table_schema", "table_name"), path, strict=True)),
        "privilege_type": grant.privilege.replace(" ", "_"),
        "inherited_from": "NONE",
    }


def read(event_id: str, at: dt.datetime, who: str = EVE, table: str = CUSTOMERS) -> dict[str, Any]:
    """As `system.access.audit` tells it."""
    return {
        "event_id": event_id,
        "event_time": at,
        "user_identity": {"email": who, "subject_name": None},
        "identity_metadata": None,
        "source_ip_address": "10.0.0.7",
        "action_name": "generateTemporaryTableCredential",
        "request_params": {"table_full_name": table, "operation": "READ"},
        "response": {"status_code": 200, "error_message": None, "result": None},
    }


def took(column: str, at: dt.datetime, who: str = EVE) -> dict[str, Any]:
    """As `system.access.column_lineage` tells it."""
    return {
        "event_id": f"lineage of {column} {at}",
        "event_time": at,
        "created_by": who,
        "entity_type": "NOTEBOOK",
        "statement_id": None,
        "source_table_full_name": CUSTOMERS,
        "source_column_name": column,
    }


@pytest.fixture
def warehouse(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeWarehouse]:
    """A workspace whose grants are as declared; the environment names it."""
    for name in [name for name in os.environ if name.startswith(("DATABRICKS_", "BRONZE_"))]:
        monkeypatch.delenv(name)
    with serving({"table_privileges": [granted(one) for one in grants(TABLES, "dev")]}) as found:
        found.chunk = 50
        configured = {
            "BRONZE_CATALOG": "dev",
            "BRONZE_SQL_WAREHOUSE": ID,
            "BRONZE_PLATFORM_PRINCIPALS": f" {PLATFORM}, other",
        }
        for name, value in (found.environ | configured).items():
            monkeypatch.setenv(name, value)
        yield found


@pytest.fixture
def settings(warehouse: FakeWarehouse, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    monkeypatch.setenv("BRONZE_HOME", str(tmp_path / "a home"))
    monkeypatch.setenv("BRONZE_CAPTURE", "off")
    return Settings.from_environment()


def collect(settings: Settings, at: dt.datetime = NOW, **options: Any) -> evidence.Evidence:
    return evidence.collect(settings, Lakehouse(settings.lake), TABLES, at, **options)


def log(settings: Settings) -> list[dict[str, Any]]:
    names = ["event_id", "at", "who", "table_name", "columns", "purpose", "how", "outcome"]
    rows = Lakehouse(settings.lake).rows(SCHEMA, ACCESS_LOG, names)
    return sorted(rows, key=lambda row: row["at"])


def report(settings: Settings, at: dt.datetime = NOW) -> Report:
    return compliance(settings, Lakehouse(settings.lake), lambda: existing_ring(settings), TABLES, lambda: at)


def control(settings: Settings, at: dt.datetime = NOW) -> Control:
    (found,) = (one for one in report(settings, at).controls if one.name == "grants")
    return found


def test_a_read_by_sql_is_logged_once_with_the_columns_that_lineage_tells(
    warehouse: FakeWarehouse, settings: Settings
) -> None:
    warehouse.tables["audit"] += [read("e1", NOW - HOUR), read("e2", NOW - 2 * HOUR, PLATFORM)]
    warehouse.tables["column_lineage"] += [took("email", NOW - HOUR), took("customer_id", NOW - HOUR)]

    found = collect(settings)

    assert (found.reads, found.new, found.differences) == (1, 1, ())
    assert log(settings) == [
        {
            "event_id": "e1",
            "at": NOW - HOUR,
            "who": EVE,
            "table_name": "bz_customers",
            "columns": ["email"],
            "purpose": "sql",
            "how": "audit log: READ from 10.0.0.7",
            "outcome": "answered",
        }
    ]

    warehouse.tables["audit"].append(read("late", NOW - 3 * HOUR))
    again = collect(settings, NOW + HOUR)

    assert (again.since, again.reads, again.new) == (NOW - DAY, 2, 1)
    assert [row["event_id"] for row in log(settings)] == ["late", "e1"]


def test_runs_at_once_log_a_read_once(warehouse: FakeWarehouse, settings: Settings) -> None:
    warehouse.tables["audit"] += [read(f"e{number}", NOW - number * HOUR) for number in range(1, 6)]
    reads = sql_reads(TABLES, "dev", warehouse.tables["audit"], platform=())
    start = threading.Barrier(4)

    def at_once(_: int) -> int:
        start.wait()
        return log_sql_reads(Lakehouse(settings.lake), reads)

    with ThreadPoolExecutor(4) as pool:
        new = sorted(pool.map(at_once, range(4)))

    assert new == [0, 0, 0, 5]
    assert sorted(row["event_id"] for row in log(settings)) == ["e1", "e2", "e3", "e4", "e5"]


def test_windows_of_a_day_leave_no_gap_and_count_nothing_twice(warehouse: FakeWarehouse, settings: Settings) -> None:
    # Half a day apart, on the edges of the windows too.
    warehouse.tables["audit"] += [read(f"e{n}", NOW - n * DAY / 2 - dt.timedelta(minutes=10)) for n in range(70)]

    found = collect(settings)

    # 30 days, both ends included, and ten minutes for lineage.
    assert (found.since, found.reads) == (NOW - 30 * DAY, 61)
    assert len(log(settings)) == 61
    asked = [body["parameters"] for body in warehouse.asked if "system.access.audit" in body["statement"]]
    edges = [tuple(dt.datetime.fromisoformat(one["value"]) for one in named) for named in asked]
    assert edges[0][0] == NOW - 30 * DAY - dt.timedelta(minutes=10)
    assert edges[-1][1] == NOW
    assert all(before[1] == after[0] for before, after in itertools.pairwise(edges))
    assert all(end - start <= DAY for start, end in edges)


def test_lineage_at_the_edge_belongs_to_the_read_before_it(warehouse: FakeWarehouse, settings: Settings) -> None:
    collect(settings)
    edge = NOW - DAY
    warehouse.tables["audit"].append(read("e1", edge - dt.timedelta(minutes=1)))
    warehouse.tables["column_lineage"].append(took("email", edge + dt.timedelta(minutes=1)))

    collect(settings)

    assert [(row["event_id"], row["columns"]) for row in log(settings)] == [("e1", ["email"])]


def test_reads_are_asked_for_from_a_day_that_is_named(warehouse: FakeWarehouse, settings: Settings) -> None:
    warehouse.tables["audit"].append(read("old", NOW - 40 * DAY))

    assert collect(settings).reads == 0
    assert collect(settings, since=evidence.day("2026-10-01", NOW)).new == 1


@pytest.mark.parametrize(("text", "said"), [("1.10.2026", "is not a day"), ("2026-11-22", "has not begun yet")])
def test_what_is_no_past_day_is_refused(text: str, said: str) -> None:
    with pytest.raises(SettingsError, match=f"'{text}' {said}.* Fix: "):
        evidence.day(text, NOW)


@pytest.mark.parametrize("name", ["BRONZE_CATALOG", "BRONZE_SQL_WAREHOUSE", "BRONZE_PLATFORM_PRINCIPALS"])
def test_a_setting_that_is_missing_is_named(name: str, settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, "")

    with pytest.raises(SettingsError, match=f"{name} is not set.* Fix: set it to"):
        collect(Settings.from_environment())


@pytest.mark.parametrize(
    ("name", "value"),
    [("BRONZE_CATALOG", "dev.x"), ("BRONZE_SQL_WAREHOUSE", "/sql/1.0/warehouses/1234567890abcdef")],
)
def test_a_setting_that_is_malformed_is_named(name: str, value: str) -> None:
    with pytest.raises(SettingsError, match=f"{name}='{re.escape(value)}' is .* Fix: "):
        Settings.from_environment({name: value})


def test_a_warehouse_that_fails_leaves_no_comparison_and_the_next_run_asks_from_the_same_day(
    warehouse: FakeWarehouse, settings: Settings
) -> None:
    collect(settings, NOW - 5 * DAY)
    warehouse.end = {"state": "FAILED"}
    with pytest.raises(WarehouseError):
        collect(settings, NOW - DAY)

    warehouse.end = {"state": "SUCCEEDED"}
    assert collect(settings).since == NOW - 6 * DAY


# ------------------------------------------------------------------------------------------- the compliance report


def test_without_a_catalog_the_control_does_not_apply_and_does_not_count(tmp_path: Path) -> None:
    settings = settings_for(tmp_path / "home")

    found = report(settings)

    assert control(settings).holds is None
    assert "BRONZE_CATALOG" in control(settings).sentence
    assert (found.score, found.failing) == (100, ())
    assert found.lines() == ["Compliance: 100 %; 18 of 18 controls hold."]
    assert "What does not apply: 1" in found.to_html()


def test_grants_that_nobody_has_compared_do_not_hold(settings: Settings) -> None:
    assert control(settings).holds is False
    assert control(settings).sentence == (
        "Nobody has compared those of inventory_bronze, manufacturing_bronze in the catalog dev yet."
    )
    assert "access --evidence" in control(settings).fix


def test_grants_as_declared_hold_for_a_week(warehouse: FakeWarehouse, settings: Settings) -> None:
    collect(settings)

    assert control(settings).holds is True
    assert control(settings).sentence == "All are as declared, compared 2026-11-21 12:00 UTC."
    assert control(settings, NOW + 7 * DAY).holds is True
    assert control(settings, NOW + 7 * DAY + HOUR).holds is False
    assert "over 7 days ago" in control(settings, NOW + 7 * DAY + HOUR).sentence
    # Of another catalog it says nothing; Unity Catalog's names have no case.
    assert control(dataclasses.replace(settings, catalog="qa")).holds is False
    assert control(dataclasses.replace(settings, catalog="DEV")).holds is True


def test_differences_are_named_until_they_are_mended(warehouse: FakeWarehouse, settings: Settings) -> None:
    declared = list(warehouse.tables["table_privileges"])
    secret = Grant("TABLE", ("dev", SCHEMA, "bz_subject_keys"), "SELECT", EVE)
    whole = Grant("CATALOG", ("dev",), "SELECT", "everybody")
    warehouse.tables["table_privileges"][:] = [*declared[:-1], granted(secret), granted(whole)]

    found = collect(settings)

    assert len(found.differences) == 3
    assert control(settings).holds is False
    assert control(settings).sentence.startswith("3 are different, compared 2026-11-21 12:00 UTC: ")
    assert "everybody has SELECT on the catalog dev" in control(settings).sentence
    assert "bronze_auditors lacks SELECT on the table dev.manufacturing_bronze." in control(settings).sentence
    assert "a person has SELECT on the table dev.inventory_bronze.bz_subject_keys" in control(settings).sentence
    # The sentence stands in logs, the table of the report does not.
    told = report(settings)
    assert EVE not in "\n".join(told.lines())
    rows = json.loads(told.to_json())["grants"]
    assert {
        "grantee": EVE,
        "what": "SELECT on the table dev.inventory_bronze.bz_subject_keys",
        "missing": False,
        "statement": f"REVOKE SELECT ON TABLE `dev`.`inventory_bronze`.`bz_subject_keys` FROM `{EVE}`",
    } in rows
    assert len(rows) == 3
    assert f"<code>REVOKE SELECT ON TABLE `dev`.`inventory_bronze`.`bz_subject_keys` FROM `{EVE}`;</code>" in (
        told.to_html()
    )

    warehouse.tables["table_privileges"][:] = declared
    collect(settings, NOW + HOUR)
    assert control(settings, NOW + HOUR).holds is True
    assert report(settings, NOW + HOUR).grants == ()


def test_a_difference_stands_with_the_schema_that_it_concerns(warehouse: FakeWarehouse, settings: Settings) -> None:
    warehouse.tables["table_privileges"].append(granted(Grant("SCHEMA", ("dev", SCHEMA), "MODIFY", "everybody")))
    collect(settings, run_id="a run")

    lake = Lakehouse(settings.lake)
    kept = {
        schema: lake.rows(schema, GRANT_CHECKS, ["declared", "differences", "run_id", "catalog"]) for schema in SCHEMAS
    }

    assert [len(rows[0]["differences"]) for rows in kept.values()] == [1, 0]
    assert {(rows[0]["run_id"], rows[0]["catalog"]) for rows in kept.values()} == {("a run", "dev")}
    # The five groups' USE CATALOG is declared once and stands with both schemas.
    assert sum(rows[0]["declared"] for rows in kept.values()) == len(grants(TABLES, "dev")) + 5
    for schema in SCHEMAS:
        assert DeltaTable(lake.location(schema, GRANT_CHECKS)).metadata().configuration["delta.appendOnly"] == "true"


def test_a_log_of_comparisons_that_can_be_changed_fails(settings: Settings) -> None:
    collect(settings)
    path = Lakehouse(settings.lake).location("manufacturing_bronze", GRANT_CHECKS)
    DeltaTable(path).alter.set_table_properties({"delta.appendOnly": "false"})

    assert [one.name for one in report(settings).failing] == ["append_only"]


def test_the_report_counts_reads_by_sql(warehouse: FakeWarehouse, settings: Settings) -> None:
    warehouse.tables["audit"] += [read("e1", NOW - HOUR), read("e2", NOW - 2 * HOUR)]
    collect(settings)

    (reader,) = report(settings).access
    assert (reader.who, reader.attempts, reader.by_sql, reader.purposes, reader.answered) == (EVE, 2, 2, 0, 2)


# ------------------------------------------------------------------------------------------------ job and command


def run(settings: Settings, config: dict[str, str] | None = None) -> tuple[dg.ExecuteInProcessResult, str]:
    """The result of the job, and all that Dagster has kept of it."""
    job = build_definitions(settings, TABLES).resolve_job_def("access_evidence")
    with dg.instance_for_test() as instance:
        result = job.execute_in_process(
            run_config={"ops": {"collect_evidence": {"config": config or {}}}}, instance=instance, raise_on_error=False
        )
        return result, "\n".join(str(record) for record in instance.all_logs(result.run_id))


def test_the_job_tells_counts_and_names_nobody(warehouse: FakeWarehouse, settings: Settings) -> None:
    at = dt.datetime.now(dt.UTC) - HOUR
    warehouse.tables["audit"].append(read("e1", at))
    warehouse.tables["table_privileges"].append(granted(Grant("CATALOG", ("dev",), "MANAGE", EVE)))

    result, kept = run(settings)

    assert result.success
    (told,) = [event.step_output_data.metadata for event in result.all_events if event.is_successful_output]
    assert {name: told[name].value for name in told} == {"reads": 1, "new": 1, "differences": 1}
    assert "UTC: 1, new in the access log: 1. Grants that are not as declared: 1." in kept
    assert EVE not in kept
    assert [row["event_id"] for row in log(settings)] == ["e1"]
    run_ids = Lakehouse(settings.lake).rows(SCHEMA, GRANT_CHECKS, ["run_id"])
    assert run_ids == [{"run_id": result.run_id}]


def test_the_job_fails_in_words_and_keeps_none_of_the_workspaces(warehouse: FakeWarehouse, settings: Settings) -> None:
    warehouse.end = {"state": "FAILED", "error": {"error_code": "BAD_REQUEST", "message": f"[DENIED] by {EVE}"}}

    result, kept = run(settings, {"since": "2026-01-01"})

    assert not result.success
    assert f"A statement on the SQL warehouse {ID} ended as FAILED (DENIED, BAD_REQUEST). Fix: " in kept
    assert EVE not in kept


def test_there_is_a_job_only_where_unity_catalog_is_configured(settings: Settings) -> None:
    def names(own: Settings, tables: Any = TABLES) -> set[str]:
        found = build_definitions(own, tables)
        schedules = {one.name: one.default_status for one in found.schedules or []}
        assert schedules.get("access_evidence_schedule") in (None, dg.DefaultScheduleStatus.STOPPED)
        return {job.name for job in found.resolve_all_job_defs()} | set(schedules)

    assert {"access_evidence", "access_evidence_schedule"} <= names(settings)
    assert not any("evidence" in name for name in names(dataclasses.replace(settings, catalog=None)))
    assert not any("evidence" in name for name in names(settings, [t for t in TABLES if not t.has_personal_data]))


def test_the_command_prints_counts_and_each_difference_with_its_statement(
    warehouse: FakeWarehouse, settings: Settings
) -> None:
    warehouse.tables["audit"].append(read("e1", dt.datetime.now(dt.UTC) - HOUR))
    warehouse.tables["table_privileges"].append(granted(Grant("CATALOG", ("dev",), "MANAGE", EVE)))

    done = subprocess.run(
        [sys.executable, "-m", "bronze_assets", "access", "--evidence"], capture_output=True, text=True, cwd=CHECKOUT
    )

    assert (done.returncode, done.stderr) == (0, "")
    first, second = done.stdout.splitlines()
    assert re.fullmatch(
        r"Reads by SQL since \d{4}-\d\d-\d\d \d\d:\d\d UTC: 1, new in the access log: 1\."
        r" Grants that are not as declared: 1\.",
        first,
    )
    assert second == (
        f"{EVE} has MANAGE on the catalog dev, which is not declared. Fix: REVOKE MANAGE ON CATALOG `dev` FROM `{EVE}`;"
    )


def test_the_command_takes_a_catalog_and_a_day_and_fails_in_words(
    settings: Settings, warehouse: FakeWarehouse, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert command_line.main(["access", "--evidence", "--catalog", "qa", "--since", "2026-11-20"]) == 0
    assert "bronze_platform lacks USE CATALOG on the catalog qa." in capsys.readouterr().out
    assert command_line.main(["access", "--evidence", "--since", "yesterday"]) == 1
    assert capsys.readouterr().err == "'yesterday' is not a day. Fix: write it as YYYY-MM-DD.\n"
    monkeypatch.delenv("BRONZE_CATALOG")
    assert command_line.main(["access"]) == 1
    assert capsys.readouterr().err == "no catalog is named. Fix: give --catalog, or set BRONZE_CATALOG.\n"
