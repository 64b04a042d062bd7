from __future__ import annotations

import dataclasses
import datetime as dt
from typing import Any

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from bronze_assets.audit import Check, LoadRecord, RuleCount, Verdict, checks, combine, verdicts
from bronze_assets.catalog import TABLES

ORDERS, CUSTOMERS, SUPPLIERS, INVENTORY, PRODUCTS, WAREHOUSES, SENSORS = (
    next(table for table in TABLES if table.name == f"bz_{name}")
    for name in ("orders", "customers", "suppliers", "inventory", "products", "warehouses", "sensor_data")
)
START = dt.datetime(2026, 1, 31, 12, tzinfo=dt.UTC)


def a_record(**values: Any) -> LoadRecord:
    """A load of 1,000 orders in one second, all of them loaded."""
    facts: dict[str, Any] = {
        "table": "bz_orders",
        "schema": "inventory_bronze",
        "partition": "2026-01-31",
        "batch_id": "2026-01-31/1",
        "scope": "full",
        "started": START,
        "ended": START + dt.timedelta(seconds=1),
        "read": 1000,
        "loaded": 1000,
        "score_sum": 100_000,
        **values,
    }
    return LoadRecord(**facts)


def verdict(name: str, **values: Any) -> Verdict:
    (found,) = [v for v in verdicts(ORDERS, a_record(**values)) if v.name == name]
    return found


@pytest.mark.parametrize(
    ("name", "facts", "passed"),
    [
        # An average score below 85 is a warning.
        ("quality_score", {"score_sum": 84_999}, False),
        ("quality_score", {"score_sum": 85_000}, True),
        ("quality_score", {"score_sum": 85_001}, True),
        # More than 2 % of the rows read in quarantine is critical.
        ("error_rate", {"loaded": 981, "quarantined": 19}, True),
        ("error_rate", {"loaded": 980, "quarantined": 20}, True),
        ("error_rate", {"loaded": 979, "quarantined": 21}, False),
        # At most 5 % NULL in each column, among the rows read.
        ("null_share", {"nulls": {"customer_id": 49, "order_status": 50}}, True),
        ("null_share", {"nulls": {"customer_id": 51, "order_status": 0}}, False),
        # More than 60 minutes is critical.
        ("processing_time", {"ended": START + dt.timedelta(minutes=59, seconds=59.999)}, True),
        ("processing_time", {"ended": START + dt.timedelta(minutes=60)}, True),
        ("processing_time", {"ended": START + dt.timedelta(minutes=60, microseconds=1)}, False),
        # More than 20 % growth a day is worth a note.
        ("storage_growth", {"table_bytes": 1_199, "bytes_day_ago": 1_000}, True),
        ("storage_growth", {"table_bytes": 1_200, "bytes_day_ago": 1_000}, True),
        ("storage_growth", {"table_bytes": 1_201, "bytes_day_ago": 1_000}, False),
        ("storage_growth", {"table_bytes": 10, "bytes_day_ago": 1_000}, True),
        ("storage_growth", {"table_bytes": 1_201, "bytes_day_ago": None}, True),
        ("storage_growth", {"table_bytes": 1_201, "bytes_day_ago": 0}, True),
        # Every row read has one outcome.
        ("conservation", {"loaded": 1, "quarantined": 2, "duplicates": 3, "unchanged": 4, "erased": 990}, True),
        ("conservation", {"loaded": 999}, False),
        ("conservation", {"loaded": 1000, "duplicates": 1}, False),
        ("conservation", {"deleted": 7}, True),
        # A single broken row fails its rule.
        ("order_date_not_in_future", {"rules": {"order_date_not_in_future": RuleCount(0)}}, True),
        ("order_date_not_in_future", {"rules": {"order_date_not_in_future": RuleCount(1, ("7",))}}, False),
        ("key_unique", {"rules": {"key_unique": RuleCount(1, ("7",))}}, False),
        ("key", {"rules": {"key": RuleCount(3)}}, False),
    ],
)
def test_a_verdict_turns_exactly_at_its_threshold(name: str, facts: dict[str, Any], passed: bool) -> None:
    assert verdict(name, **facts).passed is passed


@pytest.mark.parametrize("table", TABLES, ids=lambda table: table.name)
def test_an_empty_batch_passes_every_check(table: Any) -> None:
    empty = a_record(read=0, loaded=0, score_sum=0, nulls={c.name: 0 for c in table.columns})

    assert empty.average_score is None
    assert all(v.passed for v in verdicts(table, empty))


def test_severities_are_those_of_the_design_and_only_the_contract_blocks() -> None:
    severities = {
        check.name: check.severity for table in (ORDERS, CUSTOMERS, SUPPLIERS, INVENTORY) for check in checks(table)
    }

    assert severities == {
        "schema": "ERROR",
        "classified": "WARN",
        "conservation": "ERROR",
        "key": "ERROR",
        "parsed": "ERROR",
        "key_unique": "ERROR",
        "order_date_not_in_future": "WARN",  # Medium
        "email_matches": "WARN",  # Medium
        "contact_number_matches": "WARN",  # Low
        "quantity_available_ge": "ERROR",  # High
        "null_share": "WARN",
        "quality_score": "WARN",
        "error_rate": "ERROR",
        "processing_time": "ERROR",
        "storage_growth": "WARN",
        "unreadable_files": "WARN",
        "schema_evolution": "WARN",
        "moved_away": "ERROR",
        "backlog": "ERROR",
        "file_size": "WARN",
    }
    for table in TABLES:
        assert [check.name for check in checks(table) if check.blocking] == ["schema"]


@pytest.mark.parametrize("table", TABLES, ids=lambda table: table.name)
def test_each_check_has_one_verdict_in_the_same_order_with_its_severity(table: Any) -> None:
    stated = checks(table)
    answers = verdicts(table, a_record())

    assert [v.name for v in answers] == [c.name for c in stated]
    assert [v.severity for v in answers] == [c.severity for c in stated]
    assert len({c.name for c in stated}) == len(stated)
    assert all(c.description for c in stated)


def test_a_rules_verdict_tells_count_share_and_examples() -> None:
    examples = tuple("12345")
    found = verdict("order_date_not_in_future", rules={"order_date_not_in_future": RuleCount(25, examples)})

    assert (found.count, found.share, found.examples, found.severity) == (25, 0.025, examples, "WARN")


def test_the_share_of_nulls_is_one_verdict_with_its_columns() -> None:
    found = verdict("null_share", nulls={"order_id": 0, "customer_id": 60, "order_status": 120})

    assert (found.passed, found.count, found.share) == (False, 2, 0.12)
    assert found.details["null_shares"] == {"order_id": 0.0, "customer_id": 0.06, "order_status": 0.12}


def test_new_columns_are_told_and_fail_nothing() -> None:
    found = verdict("schema", new_columns=("colour", "size"))

    assert (found.passed, found.count) == (True, 2)
    assert found.details == {"new_columns": ["colour", "size"]}


MEGABYTE = 2**20


@pytest.mark.parametrize(
    ("name", "facts", "passed"),
    [
        ("unreadable_files", {"files": 3}, True),
        ("unreadable_files", {"files": 3, "files_quarantined": 1}, False),
        ("schema_evolution", {}, True),
        ("schema_evolution", {"new_columns": ("colour",)}, False),
        # A file that waits for more than an hour is critical.
        ("backlog", {"backlog_files": 0, "backlog_seconds": None}, True),
        ("backlog", {"backlog_files": 1, "backlog_seconds": 3_600.0}, True),
        ("backlog", {"backlog_files": 1, "backlog_seconds": 3_600.1}, False),
        # A file that is loaded and stays where it arrived has to be moved by somebody.
        ("moved_away", {"files": 3}, True),
        ("moved_away", {"files": 3, "stuck_files": 1, "stuck": "'a.json' cannot be moved"}, False),
        # Delta files of 128 MB to 1 GB on average; a table that is smaller than one such file has none.
        ("file_size", {"table_bytes": 127 * MEGABYTE, "table_files": 50}, True),
        ("file_size", {"table_bytes": 500 * MEGABYTE, "table_files": 4}, False),
        ("file_size", {"table_bytes": 512 * MEGABYTE, "table_files": 4}, True),
        ("file_size", {"table_bytes": 4_096 * MEGABYTE, "table_files": 4}, True),
        ("file_size", {"table_bytes": 4_097 * MEGABYTE, "table_files": 4}, False),
        ("file_size", {"table_bytes": 0, "table_files": 0}, True),
    ],
)
def test_the_thresholds_of_feeds_are_those_of_the_issue(name: str, facts: dict[str, Any], passed: bool) -> None:
    assert verdict(name, **facts).passed is passed


@pytest.mark.parametrize(("quarantined", "passed"), [(50, True), (51, False)])
def test_a_feed_of_files_may_have_five_bad_rows_in_a_hundred(quarantined: int, passed: bool) -> None:
    record = a_record(table="bz_sensor_data", loaded=1000 - quarantined, quarantined=quarantined)
    (found,) = [v for v in verdicts(SENSORS, record) if v.name == "error_rate"]
    assert (found.passed, found.severity) == (passed, "ERROR")


def test_a_table_that_takes_no_files_has_no_checks_of_files() -> None:
    of_files = {"unreadable_files", "schema_evolution", "moved_away", "backlog", "file_size"}
    assert not of_files & {check.name for check in checks(WAREHOUSES)}
    assert of_files <= {check.name for check in checks(ORDERS)} & {check.name for check in checks(SENSORS)}


# --- records ----------------------------------------------------------------------------------------------------------

_whole = st.integers(0, 2**63)
_words = st.text(max_size=8)
_moments = st.datetimes(timezones=st.just(dt.UTC))
_BY_TYPE: dict[str, st.SearchStrategy[Any]] = {
    "str": _words,
    "int": _whole,
    "bool": st.booleans(),
    "int | None": st.none() | _whole,
    "str | None": st.none() | _words,
    "float | None": st.none() | st.floats(min_value=0, allow_infinity=False),
    "dt.datetime": _moments,
    "tuple[str, ...]": st.lists(_words, max_size=3).map(tuple),
    "dict[str, int]": st.dictionaries(_words, _whole, max_size=3),
    "dict[str, RuleCount]": st.dictionaries(
        _words,
        st.builds(RuleCount, broken=_whole, examples=st.lists(_words, max_size=5).map(tuple)),
        max_size=3,
    ),
}
_records = st.builds(LoadRecord, **{f.name: _BY_TYPE[str(f.type)] for f in dataclasses.fields(LoadRecord)})


@hypothesis_settings(deadline=None, derandomize=True, max_examples=50)
@given(_records)
def test_a_record_survives_its_json(record: LoadRecord) -> None:
    assert LoadRecord.from_json(record.to_json()) == record


def test_records_of_key_ranges_add_up_to_one() -> None:
    first = a_record(
        batch_id="2026-01-31/1",
        scope="order_id < 500",
        read=10,
        loaded=5,
        quarantined=1,
        duplicates=2,
        unchanged=2,
        warned=3,
        score_sum=900,
        rules={"key": RuleCount(1, ("1", "2", "3")), "parsed": RuleCount(2, ("9",))},
        nulls={"customer_id": 1},
        partition_rows=5,
        table_rows=5,
        resumed=True,
    )
    second = a_record(
        batch_id="2026-01-31/2",
        scope="500 <= order_id",
        started=START + dt.timedelta(seconds=5),
        ended=START + dt.timedelta(seconds=9),
        read=20,
        loaded=18,
        quarantined=2,
        deleted=4,
        replaced=6,
        erased=0,
        score_sum=1900,
        rules={"key": RuleCount(3, ("4", "5", "6"))},
        nulls={"customer_id": 2, "order_status": 7},
        partition_rows=27,
        table_rows=27,
    )

    total = combine([first, second])

    assert total.conserved
    assert (total.read, total.loaded, total.quarantined, total.duplicates, total.unchanged) == (30, 23, 3, 2, 2)
    assert (total.deleted, total.replaced, total.warned, total.score_sum) == (4, 6, 3, 2800)
    assert total.average_score == pytest.approx(2800 / 30)
    assert total.rules == {"key": RuleCount(4, ("1", "2", "3", "4", "5")), "parsed": RuleCount(2, ("9",))}
    assert total.nulls == {"customer_id": 3, "order_status": 7}
    assert (total.started, total.ended, total.seconds) == (START, START + dt.timedelta(seconds=9), 9.0)
    assert (total.partition_rows, total.table_rows, total.batch_id) == (27, 27, "2026-01-31/2")
    assert total.scope == "full"
    assert total.resumed


def test_the_scope_of_several_batches_says_what_all_of_them_read() -> None:
    def scope(*parts: tuple[str, int]) -> str:
        return combine([a_record(scope=name, files=files) for name, files in parts]).scope

    assert scope(("order_id < 5", 0), ("5 <= order_id", 0)) == "full"
    assert scope(("1 file", 1), ("1 file", 1)) == "2 files"
    assert scope(("1,000 files", 1_000), ("1,000 files", 1_000), ("7 files", 7)) == "2,007 files"
    assert scope(("full", 0), ("3 files", 3)) == "full, 3 files"
    assert scope(("full", 0), ("1,000 files", 1_000), ("1 file", 1)) == "full, 1,001 files"
    assert scope(("order_date = 2026-01-31", 0), ("2 files again", 2)) == "order_date = 2026-01-31, 2 files"


def test_latencies_of_several_batches_are_the_worse_ones() -> None:
    one = a_record(files=1, latency_p50=1.0, latency_p95=9.0, latency_max=10.0)
    other = a_record(files=2, files_quarantined=1, latency_p50=2.0, latency_p95=3.0, latency_max=4.0)

    total = combine([one, other, a_record()])

    assert (total.latency_p50, total.latency_p95, total.latency_max) == (2.0, 9.0, 10.0)
    assert (total.files, total.files_quarantined) == (3, 1)


def test_one_record_alone_stays_as_it_is() -> None:
    record = a_record(scope="order_date = 2026-01-31")

    assert combine([record]) == record


def test_a_check_is_plain_data() -> None:
    assert checks(PRODUCTS)[0] == Check(
        "schema", "Required columns exist with a compatible type.", "ERROR", blocking=True
    )
