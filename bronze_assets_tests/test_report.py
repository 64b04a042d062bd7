from __future__ import annotations

import datetime as dt
import re
from pathlib import Path
from typing import Any

from bronze_assets.audit import LoadOutcome, LoadRecord
from bronze_assets.demo.report import render

LAKE = Path("/somewhere/a lake")
NOON = dt.datetime(2026, 3, 10, 12, tzinfo=dt.UTC)


def loaded(table: str, *failed_checks: str, seconds: float = 1, **counts: Any) -> LoadOutcome:
    """The outcome of a load with those counts."""
    ended = NOON + dt.timedelta(seconds=seconds)
    record = LoadRecord(table, "inventory_bronze", "2026-03-10", "2026-03-10/1", "full", NOON, ended, **counts)
    return LoadOutcome(table, record, failed_checks)


def test_a_line_per_table_and_a_total_that_adds_up() -> None:
    text = render(
        [
            loaded("bz_orders", read=1000, loaded=990, quarantined=7, duplicates=3, score_sum=99_000, seconds=1.25),
            loaded("bz_products", read=10, loaded=4, unchanged=6, deleted=1, score_sum=880, seconds=0.5),
        ],
        lake=LAKE,
    )

    lines = text.splitlines()
    assert lines[2].split() == ["bz_orders", "1,000", "990", "7", "3", "0", "0", "99.0", "ok", "1.2"]
    assert lines[3].split() == ["bz_products", "10", "4", "0", "0", "6", "1", "88.0", "ok", "0.5"]
    assert lines[5].split() == ["total", "1,010", "994", "7", "3", "6", "1", "98.9", "ok", "1.8"]
    assert "1,010 read = 994 loaded + 7 quarantined + 3 duplicates + 6 unchanged + 0 erased" in text
    assert "1 row is gone from the source" in text
    assert f"The tables   {LAKE}" in text
    assert "make ui" in text


def test_the_kpi_pages_are_named_at_the_end() -> None:
    pages = [Path("/home/reports/kpi_a.html"), Path("/home/reports/kpi_b.html")]

    lines = render([loaded("bz_orders")], lake=LAKE, kpis=pages).splitlines()

    at = lines.index(f"The tables   {LAKE}")
    assert lines[at + 1 : at + 3] == [f"The KPIs     {pages[0]}", f"             {pages[1]}"]
    assert "KPIs" not in render([loaded("bz_orders")], lake=LAKE)


def test_columns_are_aligned_whatever_the_numbers() -> None:
    text = render(
        [loaded("bz_a", read=1, loaded=1), loaded("bz_a_long_name", read=123_456_789, loaded=123_456_789)],
        lake=LAKE,
    )

    table = text.splitlines()[:6]
    assert len({len(line) for line in table}) == 1


def test_it_says_when_nothing_changed_also_with_rows_that_stay_in_quarantine() -> None:
    same = loaded("bz_orders", read=10, unchanged=8, quarantined=1, duplicates=1)

    assert "Nothing changed" in render([same], lake=LAKE)
    assert "Nothing changed" not in render([same, loaded("bz_products", read=1, loaded=1)], lake=LAKE)
    assert "Nothing changed" not in render([loaded("bz_orders", read=1, unchanged=1, deleted=1)], lake=LAKE)
    assert "Nothing changed" not in render([same, LoadOutcome("bz_products", error="no source")], lake=LAKE)


def test_failed_checks_are_named_below_the_table() -> None:
    text = render(
        [
            loaded("bz_shipments", "null_share", "error_rate", read=10, loaded=10),
            loaded("bz_x"),
        ],
        lake=LAKE,
    )

    assert "2 failed" in text
    assert re.search(r"bz_shipments +null_share, error_rate", text)


def test_a_table_that_failed_shows_its_error_and_no_numbers() -> None:
    text = render([LoadOutcome("bz_orders", error="bz_orders: tests.orders is missing. Fix: make it.")], lake=LAKE)

    assert "not loaded" in text.splitlines()[2]
    assert not re.search(r"\d", text.splitlines()[2])
    assert "bz_orders: bz_orders: " not in text
    assert "tests.orders is missing. Fix: make it." in text
    assert "0 read = 0 loaded" in text


def test_rows_that_do_not_add_up_are_not_hidden() -> None:
    assert "10 read is NOT 9 loaded" in render([loaded("bz_orders", read=10, loaded=9)], lake=LAKE)


def test_colours_only_when_asked_for() -> None:
    lines = [loaded("bz_orders", "a"), LoadOutcome("bz_products", error="no")]

    assert "\033" not in render(lines, lake=LAKE)
    coloured = render(lines, lake=LAKE, colour=True)
    assert "\033" in coloured
    assert re.sub(r"\033\[\d+m", "", coloured) == render(lines, lake=LAKE)


def test_what_comes_next_is_said_for_the_state_in_force() -> None:
    text = render([loaded("bz_orders")], lake=LAKE, make="BRONZE_HOME=/there make")

    assert "BRONZE_HOME=/there make ui" in text
    assert "BRONZE_HOME=/there make clean" in text


def test_what_files_brought_has_a_line_per_table_and_the_others_have_none() -> None:
    text = render(
        [
            loaded("bz_warehouses", read=5, loaded=5),
            loaded(
                "bz_sensor_data",
                files=12,
                files_quarantined=2,
                read=2_400,
                loaded=2_300,
                quarantined=100,
                backlog_files=3,
                latency_p50=1.24,
                latency_p95=61.0,
                latency_max=3_600.0,
            ),
        ],
        arrived=[loaded("bz_orders", files=1, read=10, loaded=9, deleted=1), loaded("bz_products")],
        lake=LAKE,
    )

    lines = text.splitlines()
    (heading,) = [number for number, line in enumerate(lines) if line.startswith("from files")]
    assert re.sub(" +", " ", lines[heading + 2]) == "bz_sensor_data 12 2 2,400 2,300 0 100 3 1.2 61.0 3600.0"
    assert re.sub(" +", " ", lines[heading + 3]) == "bz_orders 1 0 10 9 1 0 0 - - -"
    assert set(lines[heading + 4]) == {"-"}, "no line for a table without files"
    assert len({len(line) for line in lines[heading : heading + 5]}) == 1


def test_without_files_nothing_is_said_about_them() -> None:
    assert "files" not in render([loaded("bz_orders", read=10, unchanged=10)], lake=LAKE)


def test_checks_and_failures_of_what_arrived_later_are_told_too_and_each_once() -> None:
    text = render(
        [loaded("bz_orders", "null_share", read=10, loaded=10)],
        arrived=[loaded("bz_orders", "null_share", "backlog", files=1), LoadOutcome("bz_customers", error="no disk")],
        lake=LAKE,
    )

    assert re.search(r"bz_orders +null_share, backlog$", text, re.MULTILINE)
    assert "bz_customers: no disk" in text
    assert "Nothing changed" not in text


def test_files_that_brought_changes_are_not_nothing() -> None:
    same = loaded("bz_orders", read=10, unchanged=10)

    assert "Nothing changed" not in render([same], arrived=[loaded("bz_orders", files=1, read=1, loaded=1)], lake=LAKE)
