"""Queries on a SQL warehouse: the real SDK against a strict workspace of our own (`fake_warehouse`)."""

from __future__ import annotations

import datetime as dt
import os
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from bronze_assets import sql_warehouse
from bronze_assets.errors import SettingsError, WarehouseError
from bronze_assets.sql_warehouse import SqlWarehouse
from bronze_assets_tests.fake_warehouse import ID, TOKEN, FakeWarehouse, serving

NOON = dt.datetime(2026, 11, 21, 12, tzinfo=dt.UTC)
QUERY = (
    "SELECT event_id, event_time, response FROM system.access.audit WHERE event_time >= :since AND event_time < :until"
)
SECRET = "eve@example.com"


def event(number: int) -> dict[str, Any]:
    return {
        "event_id": f"e{number}",
        "event_time": NOON + dt.timedelta(seconds=number, milliseconds=250),
        "response": {"status_code": 200, "error_message": None} if number else None,
    }


@pytest.fixture
def warehouse(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeWarehouse]:
    for name in [name for name in os.environ if name.startswith("DATABRICKS_")]:
        monkeypatch.delenv(name)
    with serving({"audit": [event(number) for number in range(5)]}) as found:
        for name, value in found.environ.items():
            monkeypatch.setenv(name, value)
        yield found


def ask(patience: dt.timedelta = sql_warehouse.PATIENCE) -> list[dict[str, Any]]:
    return SqlWarehouse(ID, patience=patience).rows(QUERY, since=NOON, until=NOON + dt.timedelta(hours=1))


def test_the_workspace_may_be_named(warehouse: FakeWarehouse, monkeypatch: pytest.MonkeyPatch) -> None:
    host = warehouse.environ["DATABRICKS_HOST"]
    monkeypatch.delenv("DATABRICKS_HOST")

    assert len(SqlWarehouse(ID, host=host).rows(QUERY, since=NOON, until=NOON + dt.timedelta(hours=1))) == 5


@pytest.mark.parametrize("polls", [0, 2])
def test_rows_of_all_chunks_come_typed_also_of_a_statement_that_takes_long(
    warehouse: FakeWarehouse, polls: int
) -> None:
    warehouse.polls = polls

    rows = ask()

    assert [row["event_id"] for row in rows] == ["e0", "e1", "e2", "e3", "e4"]
    assert rows[1] == {
        "event_id": "e1",
        "event_time": dt.datetime(2026, 11, 21, 12, 0, 1, 250_000, tzinfo=dt.UTC),
        "response": {"status_code": "200", "error_message": None},
    }
    assert rows[0]["response"] is None


def test_parameters_are_passed_by_name_and_never_pasted(warehouse: FakeWarehouse) -> None:
    berlin = dt.timezone(dt.timedelta(hours=1))

    SqlWarehouse(ID).rows(QUERY, since=NOON.astimezone(berlin), until=NOON)

    (asked,) = warehouse.asked
    assert asked["statement"] == QUERY
    assert asked["parameters"] == [
        {"name": "since", "type": "TIMESTAMP", "value": "2026-11-21T12:00:00+00:00"},
        {"name": "until", "type": "TIMESTAMP", "value": "2026-11-21T12:00:00+00:00"},
    ]


def test_a_query_without_rows_has_none(warehouse: FakeWarehouse) -> None:
    warehouse.tables["audit"].clear()

    assert ask() == []


@pytest.mark.parametrize(
    ("end", "said"),
    [
        (
            {
                "state": "FAILED",
                "error": {"error_code": "BAD_REQUEST", "message": f"[TABLE_OR_VIEW_NOT_FOUND] No table {SECRET}"},
                "sql_state": "42P01",
            },
            r"FAILED \(TABLE_OR_VIEW_NOT_FOUND, BAD_REQUEST\)",
        ),
        ({"state": "FAILED", "error": {"message": SECRET}}, "ended as FAILED\\."),
        ({"state": "CANCELED"}, "ended as CANCELED\\."),
        ({"state": "CLOSED"}, "ended as CLOSED\\."),
    ],
)
def test_a_statement_that_does_not_succeed_is_named_by_its_condition_alone(
    end: dict[str, Any], said: str, warehouse: FakeWarehouse
) -> None:
    warehouse.end = end

    with pytest.raises(WarehouseError, match=f"A statement on the SQL warehouse {ID} ended as") as caught:
        ask()

    assert caught.match(said)
    assert caught.match(r"Fix: look at statement [0-9a-f-]{36} in the workspace's query history")
    assert SECRET not in str(caught.value)


def test_a_statement_that_takes_too_long_is_cancelled(warehouse: FakeWarehouse) -> None:
    warehouse.polls = 100

    with pytest.raises(WarehouseError, match=r"has not answered in 0 minutes; the statement is cancelled\. Fix: "):
        ask(dt.timedelta())

    assert len(warehouse.cancelled) == 1


def test_a_statement_is_cancelled_when_whoever_waits_is_interrupted(
    warehouse: FakeWarehouse, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(_: float) -> None:
        raise KeyboardInterrupt

    warehouse.polls = 100
    monkeypatch.setattr("bronze_assets.sql_warehouse.time.sleep", interrupted)

    with pytest.raises(KeyboardInterrupt):
        ask()

    assert len(warehouse.cancelled) == 1


@pytest.mark.parametrize("wrong", ["token", "warehouse", "nobody"])
def test_a_workspace_that_refuses_is_named_without_what_it_said(
    wrong: str, warehouse: FakeWarehouse, monkeypatch: pytest.MonkeyPatch
) -> None:
    if wrong == "token":
        monkeypatch.setenv("DATABRICKS_TOKEN", "dapi-wrong")
    if wrong == "nobody":
        monkeypatch.delenv("DATABRICKS_TOKEN")
    name = "fedcba0987654321" if wrong == "warehouse" else ID
    reason = {
        "token": "PermissionDenied, PERMISSION_DENIED",
        "warehouse": "ResourceDoesNotExist, RESOURCE_DOES_NOT_EXIST",
        "nobody": "ValueError",
    }

    with pytest.raises(
        WarehouseError, match=rf"warehouse {name} cannot be asked \({reason[wrong]}\)\. Fix: "
    ) as caught:
        SqlWarehouse(name).rows(QUERY, since=NOON, until=NOON)

    assert "dapi" not in str(caught.value)
    assert TOKEN not in str(caught.value)
    assert caught.value.__cause__ is None
    assert caught.value.__context__ is None


def test_a_workspace_that_is_away_is_named_soon(warehouse: FakeWarehouse, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sql_warehouse, "_ANSWER_SECONDS", 1)
    monkeypatch.setenv("DATABRICKS_HOST", "http://127.0.0.1:1")

    with pytest.raises(WarehouseError, match=r"cannot be asked \(TimeoutError\)\. Fix: check DATABRICKS_HOST"):
        ask()


def test_a_result_that_is_not_whole_is_refused(warehouse: FakeWarehouse) -> None:
    warehouse.lost = 1

    with pytest.raises(WarehouseError, match="not whole or not of a form known here"):
        ask()


def test_a_result_of_another_form_is_refused_and_not_quoted(warehouse: FakeWarehouse) -> None:
    # A struct that is none.
    warehouse.texts["response"] = f"{{{SECRET}"

    with pytest.raises(WarehouseError, match="not whole or not of a form known here") as caught:
        ask()

    assert caught.value.__cause__ is None
    assert caught.value.__context__ is None
    assert SECRET not in str(caught.value)


def test_a_missing_package_is_named_by_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "databricks.sdk", None)

    with pytest.raises(SettingsError, match=rf"BRONZE_SQL_WAREHOUSE={ID} needs .* Fix: .*bronze-assets\[databricks\]"):
        SqlWarehouse(ID)


def test_the_sdk_is_not_imported_before_it_is_needed() -> None:
    code = "import sys, bronze_assets.privacy.evidence\nassert not {'databricks.sdk', 'requests'} & set(sys.modules)\n"
    subprocess.run([sys.executable, "-c", code], check=True)
