"""Retention and legal holds, through Dagster on real tables: what goes is worked out by plain Python from what the
`deltalake` package read before.
"""

from __future__ import annotations

import datetime as dt
import json
import os
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dagster as dg
import pandera.pyspark as pa
import pyarrow as arrow
import pyspark.sql.types as T
import pytest
from deltalake import DeltaTable, QueryBuilder

from bronze_assets import __main__ as command_line
from bronze_assets import engine, hold_command, quality
from bronze_assets.access import ERASURE_LOG, LEGAL_HOLDS, RETENTION_LOG
from bronze_assets.audit import LoadRecord
from bronze_assets.catalog import TABLES
from bronze_assets.catalog.inventory import TABLES as INVENTORY
from bronze_assets.definitions import build_definitions
from bronze_assets.errors import BronzeError, DeclarationError, PrivacyRefused, RetentionRefused
from bronze_assets.lakehouse import Lakehouse
from bronze_assets.leases import lease
from bronze_assets.load import load
from bronze_assets.operations import retention
from bronze_assets.orchestration.erasure import erasure_definitions
from bronze_assets.orchestration.retention import retention_definitions
from bronze_assets.privacy import holds
from bronze_assets.privacy.compliance import compliance
from bronze_assets.privacy.keys import key_ring
from bronze_assets.quarantine import Selection, dismiss
from bronze_assets.settings import Environment, Settings
from bronze_assets.table import BronzeTable, Cadence, Feed, Loaded, Retention, column
from bronze_assets.workbench import Options, Run, Workbench, current_partition
from bronze_assets_tests import file_tables, lake_reader, people
from bronze_assets_tests.conftest import IN_BOTH, settings_for
from bronze_assets_tests.people import Keys, person

if TYPE_CHECKING:
    from psycopg2.extensions import connection as Connection
    from pyspark.sql import SparkSession

START = dt.datetime(2026, 3, 10, 12, tzinfo=dt.UTC)
DAY = dt.timedelta(days=1)
MONTH = Retention(superseded_days=30, quarantine_days=30, reason="a test")
WAREHOUSES = next(table for table in INVENTORY if table.name == "bz_warehouses")


@pytest.fixture(autouse=True)
def as_for_little_data(monkeypatch: pytest.MonkeyPatch) -> None:
    """Loads are tested elsewhere; here they are to be quick, as those of little data are."""
    monkeypatch.setattr(engine, "SMALL_BYTES", 2**20)


def loaded(settings: Settings, table: BronzeTable, at: dt.datetime, **options: Any) -> LoadRecord:
    """One load at that moment, by a workbench of its own."""
    bench = Workbench(settings, clock=lambda: at)
    try:
        return load(table, current_partition(table.cadence, at), bench, Run("run", "cli"), Options(**options))
    finally:
        bench.close()


def drop(settings: Settings, table: BronzeTable, name: str, at: dt.datetime, *rows: Mapping[str, Any]) -> None:
    """A file of a table's feed, a minute older than that moment."""
    assert table.feed is not None
    path = Path(settings.landing) / table.feed.path / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    moment = (at - dt.timedelta(minutes=1)).timestamp()
    os.utime(path, (moment, moment))


def failure(result: dg.ExecuteInProcessResult) -> str:
    """What a failed run says."""
    (failed,) = (event for event in result.all_node_events if event.is_step_failure)
    told = failed.step_failure_data.user_failure_data
    assert told is not None
    return str(told.description)


def applied(
    settings: Settings, declared: Sequence[BronzeTable], at: dt.datetime, *, fails: bool = False, **config: Any
) -> dict[str, Any]:
    """The metadata of one run of `apply_retention`, or why it failed."""
    job = retention_definitions(settings, declared, lambda: at).get_job_def("apply_retention")
    result = job.execute_in_process({"ops": {"retain": {"config": config}}}, raise_on_error=not fails)
    assert result.success is not fails
    if fails:
        return {"error": failure(result)}
    (output,) = (event for event in result.all_events if event.event_type_value == "STEP_OUTPUT")
    return {name: value.value for name, value in output.step_output_data.metadata.items()}


def removed(
    settings: Settings, tables: Sequence[BronzeTable], at: dt.datetime
) -> dict[tuple[str, str], dict[str, Any]]:
    """(table, layer) → what a removal told, after a dry run of the same."""
    applied(settings, tables, at)
    told = applied(settings, tables, at, dry_run=False, by="me")
    return {(one.data["table"], one.data["layer"]): one.data for one in told["removed"].records}


def path(settings: Settings, table: BronzeTable, name: str | None = None) -> Path:
    return settings.lake / table.schema / (name or table.name)


def rows_of(settings: Settings, table: BronzeTable, name: str | None = None) -> list[dict[str, Any]]:
    return lake_reader.read(path(settings, table, name))


def log(settings: Settings, table: BronzeTable) -> list[dict[str, Any]]:
    return lake_reader.read(path(settings, table, RETENTION_LOG), "select * from t order by at")


def key_of(row: Mapping[str, Any], table: BronzeTable) -> tuple[Any, ...]:
    return tuple(row[column.name] for column in table.key)


def identity(row: Mapping[str, Any], table: BronzeTable) -> tuple[Any, ...]:
    return (*key_of(row, table), row["source_position"], row["batch_id"])


def superseded(rows: Sequence[dict[str, Any]], table: BronzeTable, cutoff: dt.datetime) -> set[tuple[Any, ...]]:
    """The versions that are replaced or deleted since before then, by the words of `Retention`."""
    versions = defaultdict(list)
    for row in rows:
        versions[key_of(row, table)].append(row)
    gone = set()
    for mine in versions.values():
        mine.sort(key=lambda row: (row["source_position"], row["load_timestamp"]))
        for row, later in zip(mine, [*mine[1:], None], strict=True):
            if row["record_status"] == "DELETED":
                since = row["load_timestamp"]
            elif later is None:
                continue
            else:
                since = later["load_timestamp"]
            if since <= cutoff:
                gone.add(identity(row, table))
    return gone


@IN_BOTH
def test_replaced_and_deleted_versions_go_and_loads_stay_right(
    spark: SparkSession, settings: Settings, source: Connection
) -> None:
    table = replace(WAREHOUSES, retention=MONTH)

    def sql(statement: str) -> None:
        with source.cursor() as cursor:
            cursor.execute(statement)

    sql(
        "create schema tests; create table tests.warehouses (warehouse_id int primary key, location text, capacity int)"
    )
    sql("insert into tests.warehouses select n, 'place ' || n, n from generate_series(1, 5) n")
    loaded(settings, table, START)
    sql(
        "update tests.warehouses set capacity = 11 where warehouse_id = 1;"
        " delete from tests.warehouses where warehouse_id = 2"
    )
    loaded(settings, table, START + 10 * DAY)
    sql(
        "update tests.warehouses set capacity = 12 where warehouse_id = 1;"
        " update tests.warehouses set capacity = 33 where warehouse_id = 3"
    )
    loaded(settings, table, START + 50 * DAY)
    before, now = rows_of(settings, table), START + 60 * DAY
    gone = superseded(before, table, now - 30 * DAY)
    assert len(gone) == 3
    version = lake_reader.version(path(settings, table))

    told = applied(settings, [table], now, by="dpo")
    assert (told["dry_run"], told["rows"], told["held"]) == (True, 3, 0)
    assert lake_reader.version(path(settings, table)) == version
    assert applied(settings, [table], now, dry_run=False, by="dpo")["rows"] == 3

    after = rows_of(settings, table)
    assert {identity(row, table) for row in before} - {identity(row, table) for row in after} == gone
    assert len(after) == len(before) - 3
    delta = DeltaTable(str(path(settings, table)))
    commit, *_ = delta.history(1)
    (done,) = [row for row in log(settings, table) if (row["event"], row["layer"]) == ("removed", "superseded")]
    assert commit["userMetadata"].startswith(f"retention {done['run']} ")
    assert (done["rows"], done["days"], done["who"], done["dry_run"]) == (3, 30, "dpo", False)
    assert (done["oldest"], done["newest"]) == (START + 10 * DAY, START + 10 * DAY)
    # For time travel they are there until a VACUUM.
    earlier = DeltaTable(str(path(settings, table)), version=version)
    read = arrow.table(QueryBuilder().register("t", earlier).execute("select * from t").read_all()).to_pylist()
    assert sorted(map(str, read)) == sorted(map(str, before))

    record = loaded(settings, table, now + DAY)
    assert (record.read, record.unchanged, record.loaded, record.deleted) == (4, 4, 0, 0)
    sql("insert into tests.warehouses values (2, 'back', 2)")
    record = loaded(settings, table, now + 2 * DAY)
    assert (record.unchanged, record.loaded) == (4, 1)
    assert applied(settings, [table], now + 2 * DAY)["rows"] == 0


THINGS = replace(
    file_tables.things(),
    retention=Retention(rows_days=100, quarantine_days=100, open_quarantine_days=200, archive_days=60, reason="events"),
)


def things(settings: Settings) -> None:
    """Files of three moments; the second of them has a bad row, which is dismissed ten days later."""
    for number, days in enumerate((0, 20, 90)):
        at = START + days * DAY
        good = [file_tables.row(10 * number + one) for one in (1, 2)]
        bad = [{"thing_id": 10 * number + 9, "amount": "none"}] if number == 1 else []
        drop(settings, THINGS, f"{number}.json", at, *good, *bad)
        record = loaded(settings, THINGS, at)
        assert (record.loaded, record.quarantined) == (2, len(bad))
    bench = Workbench(settings, clock=lambda: START + 30 * DAY)
    assert dismiss(bench, THINGS, Selection(), Run("run", "cli"), reason="no", who="me", everything=True) == 1


def archived(settings: Settings, table: BronzeTable) -> list[str]:
    assert table.feed is not None
    return sorted(Path(name).name for name in lake_reader.listing(Path(settings.archive) / table.feed.path))


def test_events_their_files_and_what_is_settled_go_by_their_age(spark: SparkSession, settings: Settings) -> None:
    things(settings)
    now = START + 125 * DAY
    told = removed(settings, [THINGS], now)
    assert {layer: (one["rows"], one["files"]) for (_, layer), one in told.items()} == {
        "archive": (0, 2),
        "rows": (4, 0),
        "quarantine": (0, 0),
        "open_quarantine": (0, 0),
    }
    assert file_tables.ids(settings) == [21, 22]
    assert archived(settings, THINGS) == ["2.json"]
    assert file_tables.states(settings) == {"0.json": "deleted", "1.json": "deleted", "2.json": "archived"}
    # Settled on day 30, and so kept until day 130.
    assert removed(settings, [THINGS], START + 131 * DAY)["bz_things", "quarantine"]["rows"] == 1
    assert rows_of(settings, THINGS, "bz_things_quarantine") == []
    record = loaded(settings, THINGS, START + 132 * DAY)
    assert (record.read, record.backlog_files) == (0, 0)


def test_open_rows_stay_where_nothing_else_is_declared(spark: SparkSession, settings: Settings) -> None:
    drop(settings, THINGS, "a.json", START, {"thing_id": 1, "amount": "none"})
    loaded(settings, THINGS, START)
    silent = replace(THINGS, retention=replace(THINGS.retention, open_quarantine_days=None))
    assert not any(one["rows"] for one in removed(settings, [silent], START + 999 * DAY).values())
    assert len(rows_of(settings, THINGS, "bz_things_quarantine")) == 1
    assert removed(settings, [THINGS], START + 201 * DAY)["bz_things", "open_quarantine"]["rows"] == 1


def test_what_is_held_stays_in_every_layer_until_it_is_released(spark: SparkSession, settings: Settings) -> None:
    things(settings)
    bench = Workbench(settings, clock=lambda: START + 100 * DAY)
    one = holds.place(bench, THINGS, "1", reason="case 7", who="counsel")
    holds.place(bench, THINGS, "19", reason="case 8", who="counsel")
    now = START + 300 * DAY
    told = removed(settings, [THINGS], now)
    # Thing 1 with its file, and 19, which is in quarantine, with the file that it came in.
    assert (told["bz_things", "rows"]["rows"], told["bz_things", "rows"]["held"]) == (5, 1)
    assert (told["bz_things", "archive"]["files"], told["bz_things", "archive"]["held"]) == (1, 2)
    assert (told["bz_things", "quarantine"]["rows"], told["bz_things", "quarantine"]["held"]) == (0, 1)
    assert file_tables.ids(settings) == [1]
    assert archived(settings, THINGS) == ["0.json", "1.json"]
    (row,) = [row for row in log(settings, THINGS) if (row["event"], row["layer"]) == ("removed", "rows")]
    assert (row["rows"], row["held"]) == (5, 1)
    assert sorted(x["key_text"] for x in rows_of(settings, THINGS, LEGAL_HOLDS)) == ["1", "19"]

    holds.release(bench, THINGS, one.id, reason="over", who="counsel")
    told = removed(settings, [THINGS], now)
    assert (told["bz_things", "rows"]["rows"], told["bz_things", "archive"]["files"]) == (1, 1)
    everything = holds.place(bench, THINGS, holds.ALL, reason="case 9", who="counsel")
    assert removed(settings, [THINGS], now)["bz_things", "archive"]["held"] == 1
    assert archived(settings, THINGS) == ["1.json"]
    assert {hold.key for hold in holds.in_force(bench.lake, THINGS)} == {"19", holds.ALL}
    assert everything.words.startswith("bz_things: hold ")


class Items(pa.DataFrameModel):
    item_id: T.IntegerType = column(key=True, gt=0, description="Identifies an item.")
    name: T.StringType = column(description="What it is called.")
    amount: T.IntegerType = column(ge=0, quarantine=True, description="How many.")


ITEMS = BronzeTable(
    "shop_bronze",
    "shop.Items",
    Items,
    Cadence.STREAMING,
    "Items.",
    files=Feed("raw/items", captured=True),
    retention=replace(MONTH, archive_days=300),
)


def change(op: str, number: int, at: int, **values: Any) -> dict[str, Any]:
    told = {"__op": op, "__source_lsn": at, "__commit_lsn": at, "__seq": 1, "__source_ts_ms": 1_780_000_000_000 + at}
    return {"item_id": number, **values, **told, "__deleted": "true" if op == "d" else "false"}


def live(settings: Settings) -> dict[int, tuple[Any, ...]]:
    """Key → name and amount of the latest version, as `current` has it."""
    latest: dict[int, dict[str, Any]] = {}
    for row in sorted(rows_of(settings, ITEMS), key=lambda row: row["source_position"]):
        latest[row["item_id"]] = row
    return {key: (row["name"], row["amount"]) for key, row in latest.items() if row["record_status"] == "ACTIVE"}


def test_a_deleted_row_does_not_come_back_by_a_file_that_is_still_there(
    spark: SparkSession, settings: Settings
) -> None:
    drop(
        settings, ITEMS, "a.json", START, change("c", 1, 10, name="a", amount=1), change("c", 2, 11, name="b", amount=2)
    )
    loaded(settings, ITEMS, START)
    later = START + 5 * DAY
    drop(settings, ITEMS, "b.json", later, change("d", 1, 20), change("u", 2, 21, name="c", amount=2))
    loaded(settings, ITEMS, later)
    assert live(settings) == {2: ("c", 2)}

    told = removed(settings, [ITEMS], START + 60 * DAY)["bz_items", "superseded"]
    # The deletion itself stays, for what is in the archive still has the row.
    assert (told["rows"], told["needed"]) == (2, 1)
    assert lake_reader.tuples(path(settings, ITEMS), "item_id", "record_status") == [(1, "DELETED"), (2, "ACTIVE")]
    again = Workbench(settings, clock=lambda: START + 61 * DAY)
    load(ITEMS, "2026-03-10", again, Run("run", "cli"), Options(reload=True))
    assert live(settings) == {2: ("c", 2)}

    layers = removed(settings, [ITEMS], START + 400 * DAY)
    assert layers["bz_items", "archive"]["files"] == 2
    assert (layers["bz_items", "superseded"]["rows"], layers["bz_items", "superseded"]["needed"]) == (3, 0)
    assert [row["item_id"] for row in rows_of(settings, ITEMS)] == [2]
    with pytest.raises(BronzeError, match="its files are gone"):
        load(ITEMS, "2026-03-10", again, Run("run", "cli"), Options(reload=True))


def test_a_change_carries_no_value_over_from_before_what_went(spark: SparkSession, settings: Settings) -> None:
    def name_stays(number: int, at: int, amount: int) -> dict[str, Any]:
        return change("u", number, at, name=None, amount=amount) | {"__unchanged": json.dumps(["name"])}

    drop(
        settings,
        ITEMS,
        "a.json",
        START,
        change("c", 1, 10, name="old", amount=1),
        change("u", 1, 20, name="new", amount=-1),
        change("c", 2, 11, name="first", amount=1),
        change("u", 2, 30, name="last", amount=2),
    )
    loaded(settings, ITEMS, START)
    bench = Workbench(settings, clock=lambda: START)
    assert dismiss(bench, ITEMS, Selection(), Run("run", "cli"), reason="no", who="me", everything=True) == 1
    now = START + 90 * DAY
    told = removed(settings, [ITEMS], now)
    assert (told["bz_items", "superseded"]["rows"], told["bz_items", "quarantine"]["needed"]) == (1, 1)
    # Of 1, the bad row had the name; of 2, a change of long ago had the version that went.
    drop(settings, ITEMS, "b.json", now, name_stays(1, 40, 5), name_stays(2, 25, 6), name_stays(2, 50, 7))
    record = loaded(settings, ITEMS, now)
    assert (record.loaded, record.quarantined) == (1, 2)
    assert live(settings) == {1: ("old", 1), 2: ("last", 7)}


def test_removing_wants_a_dry_run_that_named_about_as_much(
    spark: SparkSession, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    things(settings)
    table = THINGS
    refused = applied(settings, [table], START + 119 * DAY, fails=True, dry_run=False)["error"]
    assert refused.startswith("bz_things: no dry run of the last 7 days says what would go of archive, kept 60 days.")
    assert "Fix: run `apply_retention` with dry_run: true" in refused
    # Of the rows, two are due on day 119, and four on day 121.
    applied(settings, [table], START + 119 * DAY)
    monkeypatch.setattr(retention, "GROWTH_ROWS", 0)
    error = applied(settings, [table], START + 121 * DAY, fails=True, dry_run=False)["error"]
    assert "named 2 of rows, and 4 are due now. Nothing was removed." in error
    shorter = replace(table, retention=replace(table.retention, archive_days=10))
    assert "kept 10 days" in applied(settings, [shorter], START + 121 * DAY, fails=True, dry_run=False)["error"]
    late = applied(settings, [table], START + 127 * DAY, fails=True, dry_run=False)["error"]
    assert "no dry run of the last 7 days" in late
    assert sorted(file_tables.ids(settings)) == [1, 2, 11, 12, 21, 22]
    assert archived(settings, table) == ["0.json", "1.json", "2.json"]


def test_a_load_at_work_is_told_of_and_other_tables_are_done(spark: SparkSession, settings: Settings) -> None:
    things(settings)
    drop(
        settings, ITEMS, "a.json", START, change("c", 1, 10, name="a", amount=1), change("u", 1, 11, name="b", amount=1)
    )
    loaded(settings, ITEMS, START)
    now = START + 300 * DAY
    applied(settings, [THINGS, ITEMS], now)
    quick = replace(settings, lease_seconds=6)
    with lease(Lakehouse(settings.lake), THINGS.schema, THINGS.name, "the load", quick.lease_seconds):
        error = applied(quick, [THINGS, ITEMS], now, fails=True, dry_run=False)["error"]
    assert error.startswith("bz_things: run the load on ")
    assert "Removed is what was due of 1 of 2 tables." in error
    assert len(rows_of(settings, ITEMS)) == 1
    assert len(rows_of(settings, THINGS)) == 6
    (failed,) = [row for row in log(settings, THINGS) if row["event"] == "failed"]
    assert "at work" in failed["error"]
    assert applied(settings, [THINGS, ITEMS], now, dry_run=False)["rows"] == 6 + 1


@pytest.mark.parametrize("point", ["between layers", "before the log"])
def test_a_killed_removal_goes_on(
    spark: SparkSession, settings: Settings, monkeypatch: pytest.MonkeyPatch, point: str
) -> None:
    things(settings)
    now = START + 300 * DAY
    applied(settings, [THINGS], now)
    real, calls = Lakehouse.remove_rows, []

    def killed(lake: Lakehouse, *args: Any, **options: Any) -> int:
        calls.append(args)
        if point == "before the log":
            real(lake, *args, **options)
        raise KeyboardInterrupt

    monkeypatch.setattr(Lakehouse, "remove_rows", killed)
    with pytest.raises((KeyboardInterrupt, dg.DagsterExecutionInterruptedError)):
        applied(settings, [THINGS], now, dry_run=False)
    assert len(calls) == 1
    assert archived(settings, THINGS) == []
    assert len(rows_of(settings, THINGS)) == (0 if point == "before the log" else 6)
    monkeypatch.undo()

    applied(settings, [THINGS], now, dry_run=False)
    assert rows_of(settings, THINGS) == rows_of(settings, THINGS, "bz_things_quarantine") == []
    ends = [row for row in log(settings, THINGS) if row["event"] == "removed"]
    assert sum(row["rows"] or 0 for row in ends if row["layer"] == "rows") == 6
    assert sum(row["files"] or 0 for row in ends if row["layer"] == "archive") == 3
    (first,) = [row["run"] for row in log(settings, THINGS) if row["event"] == "failed"]
    (settled,) = [row for row in ends if row["run"] == first and row["layer"] == "rows"]
    assert settled["rows"] == (6 if point == "before the log" else 0)
    assert settled["error"].startswith("killed; told by run ")


PEOPLE = replace(people.people(), retention=Retention(rows_days=30, archive_days=30, reason="a test"))


def erasing(settings: Settings, tables: Sequence[BronzeTable], *subjects: str) -> dg.ExecuteInProcessResult:
    job = erasure_definitions(settings, tables).get_job_def("erase")
    config = {"subjects": list(subjects), "reason": "asked for", "by": "dpo"}
    return job.execute_in_process({"ops": {"erase_subjects": {"config": config}}}, raise_on_error=False)


def control(settings: Settings, name: str) -> tuple[bool | None, str]:
    lake = Lakehouse(settings.lake)
    report = compliance(settings, lake, lambda: key_ring(settings), [PEOPLE], lambda: people.NOW)
    (found,) = [one for one in report.controls if one.name == name]
    return found.holds, found.sentence


def test_a_hold_on_a_person_beats_retention_and_erasure_and_names_nobody(
    spark: SparkSession, settings: Settings
) -> None:
    members = replace(people.people(), source="club.Members", files=Feed("raw/members"), retention=Retention())
    drop(settings, PEOPLE, "a.json", people.NOW, person(77123), person(2))
    drop(settings, PEOPLE, "b.json", people.NOW, person(3))
    drop(settings, members, "a.json", people.NOW, person(5))
    for table in (PEOPLE, members):
        loaded(settings, table, people.NOW)
    bench = Workbench(settings, clock=lambda: people.NOW)
    hold = holds.place(bench, PEOPLE, "77123", reason="case 7", who="counsel")
    (placed,) = rows_of(settings, PEOPLE, LEGAL_HOLDS)
    assert (placed["key_text"], placed["hold_id"]) == (None, hold.id)
    assert placed["subject_hmac"] == Keys(settings).hmac("tombstone", "club_bronze/bz_people/77123")
    for file in path(settings, PEOPLE, LEGAL_HOLDS).rglob("*"):
        assert not file.is_file() or b"77123" not in file.read_bytes()

    before = {
        str(file): file.read_bytes()
        for name in ("bz_people", "bz_members")
        for file in path(settings, PEOPLE, name).rglob("*")
        if file.is_file()
    }
    # Of another table and not held, but in the same request.
    result = erasing(settings, [PEOPLE, members], "bz_members:5", "bz_people:2", "bz_people:77123")
    message = failure(result)
    assert message.startswith(f"bz_people: the legal hold {hold.id} (case 7) keeps what is asked to be erased.")
    assert "Art. 17(3)(e)" in message
    assert "Fix: have the hold released" in message
    assert before == {name: Path(name).read_bytes() for name in before}
    assert not lake_reader.is_table(path(settings, PEOPLE, "bz_tombstones"))
    (refused,) = rows_of(settings, PEOPLE, ERASURE_LOG)
    assert (refused["event"], refused["table_name"], refused["error"]) == ("held", "bz_people", message)
    with pytest.raises(PrivacyRefused, match=hold.id):
        people.erased(settings, "77123")
    holds_now, sentence = control(settings, "erasures_held")
    assert holds_now
    assert "2 requests wait for a legal hold" in sentence

    told = removed(settings, [PEOPLE], people.NOW + 40 * DAY)
    assert (told["bz_people", "rows"]["rows"], told["bz_people", "rows"]["held"]) == (2, 1)
    assert (told["bz_people", "archive"]["files"], told["bz_people", "archive"]["held"]) == (1, 1)
    assert [row["person_id"] for row in rows_of(settings, PEOPLE)] == [77123]
    assert archived(settings, PEOPLE) == ["a.json.enc"]

    holds.release(bench, PEOPLE, "77123", reason="over", who="counsel")
    holds_now, sentence = control(settings, "erasures_held")
    assert holds_now is False
    assert "nobody has erased since" in sentence
    assert erasing(settings, [PEOPLE, members], "bz_members:5", "bz_people:2", "bz_people:77123").success
    assert control(settings, "erasures_held")[0]
    assert rows_of(settings, PEOPLE)[0]["record_status"] == "ERASED"


def test_files_that_a_table_deletes_by_itself_wait_for_a_hold(spark: SparkSession, settings: Settings) -> None:
    table = file_tables.things(loaded=Loaded.DELETE, delete_after_days=1)
    drop(settings, table, "a.json", START, file_tables.row(1))
    loaded(settings, table, START)
    bench = Workbench(settings, clock=lambda: START)
    hold = holds.place(bench, table, "1", reason="case 7", who="counsel")
    loaded(settings, table, START + 3 * DAY)
    assert file_tables.landing(settings) == ["a.json"]
    holds.release(bench, table, hold.id, reason="over", who="counsel")
    loaded(settings, table, START + 4 * DAY)
    assert file_tables.landing(settings) == []


def test_the_job_of_holds_and_its_refusals(settings: Settings) -> None:
    definitions = retention_definitions(settings, [THINGS, ITEMS], lambda: START)
    job = definitions.get_job_def("legal_hold")

    def execute(config: Mapping[str, str]) -> dg.ExecuteInProcessResult:
        return job.execute_in_process({"ops": {"keep_holds": {"config": dict(config)}}}, raise_on_error=False)

    def refused(**config: str) -> str:
        return failure(execute(config))

    def run(**config: str) -> list[str]:
        (output,) = (e for e in execute(config).all_events if e.event_type_value == "STEP_OUTPUT")
        lines: Any = output.step_output_data.metadata["holds"].value
        return list(lines)

    said = {"reason": "case 7", "by": "counsel"}
    assert run() == []
    (line,) = run(action="place", table="bz_things", key="7", **said)
    assert line.endswith("keeps key '7' since 2026-03-10: case 7 (placed by counsel)")
    assert "'07' can be nobody's key" in refused(action="place", table="bz_things", key="07", **said)
    assert "needs a reason" in refused(action="place", table="bz_things", key="7", by="counsel")
    assert "there is no table 'bz_nothing'" in refused(action="place", table="bz_nothing", key="7", **said)
    assert "no table is named" in refused(action="place", key="7", **said)
    assert "no hold of that key or id" in refused(action="release", table="bz_things", key="8", **said)
    assert len(run(action="place", table="bz_things", key="7", **said)) == 2
    assert "2 holds are on that key" in refused(action="release", table="bz_things", key="7", **said)
    assert len(run(action="release", table="bz_things", key=line.split()[2], **said)) == 1
    assert run(action="release", table="bz_things", key="7", **said) == []


def test_the_command_of_holds(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(hold_command, "TABLES", [THINGS])
    monkeypatch.setenv("BRONZE_HOME", str(settings.home))
    assert command_line.main(["hold", "place", "bz_things", "7", "--reason", "case 7", "--by", "counsel"]) == 0
    assert "Placed: bz_things: hold " in capsys.readouterr().out
    assert command_line.main(["hold", "list"]) == 0
    assert "keeps key '7'" in capsys.readouterr().out
    assert command_line.main(["hold", "release", "bz_things", "7"]) == 1
    assert "a hold needs a reason" in capsys.readouterr().err
    assert command_line.main(["hold", "release", "bz_things", "7", "--reason", "over"]) == 0
    assert command_line.main(["hold", "list"]) == 0
    assert "No legal hold is in force." in capsys.readouterr().out


def test_an_unknown_table_is_refused_by_name(settings: Settings) -> None:
    error = applied(settings, [THINGS], START, fails=True, tables=["bz_thing"])["error"]
    assert "there is no table 'bz_thing'. Fix: use some of bz_things." in error


def test_a_month_begins_with_a_dry_run(settings: Settings, tmp_path: Path) -> None:
    definitions = build_definitions(settings, [THINGS])
    schedule = definitions.get_schedule_def("retention_report_schedule")
    assert (schedule.cron_schedule, schedule.execution_timezone) == ("0 4 1 * *", "UTC")
    assert schedule.default_status is dg.DefaultScheduleStatus.RUNNING
    told = definitions.get_job_def(schedule.job_name).execute_in_process()
    (output,) = (event for event in told.all_events if event.event_type_value == "STEP_OUTPUT")
    assert output.step_output_data.metadata["dry_run"].value is True
    assert {row["event"] for row in log(settings, THINGS)} == {"reported"}
    away = settings_for(tmp_path / "x", {"BRONZE_ENV": "dev", "BRONZE_MASTER_KEY": f"file:{tmp_path}/key"})
    assert away.environment is Environment.DEV
    elsewhere = retention_definitions(away, [THINGS]).get_schedule_def("retention_report_schedule")
    assert elsewhere.default_status is dg.DefaultScheduleStatus.STOPPED


@pytest.mark.parametrize(
    "arguments", [{"superseded_days": 0}, {"rows_days": True}, {"archive_days": 1.5}, {"quarantine_days": 40_000}]
)
def test_a_number_of_days_is_one(arguments: dict[str, Any]) -> None:
    with pytest.raises(DeclarationError, match=rf"{next(iter(arguments))}=.* is not a whole number of days.*Fix: "):
        Retention(**arguments, reason="a test")


def test_a_declaration_that_cannot_be_kept_is_refused() -> None:
    with pytest.raises(DeclarationError, match="nobody says why"):
        Retention(superseded_days=1)
    rows = Retention(rows_days=30, reason="a test")
    for table in (WAREHOUSES, replace(ITEMS, retention=Retention())):
        with pytest.raises(DeclarationError, match=rf"{table.name}: retention.rows_days is for files that are events"):
            replace(table, retention=rows)
    with pytest.raises(DeclarationError, match="no file of it is ever archived"):
        replace(WAREHOUSES, retention=Retention(archive_days=30, reason="a test"))


def test_every_table_says_how_long_and_it_is_no_part_of_its_rules() -> None:
    for table in TABLES:
        assert table.retention.days
        assert table.retention.open_quarantine_days is None
        bare = replace(table, retention=Retention())
        assert quality.fingerprint(bare) == quality.fingerprint(table)


def test_words_of_refusals_name_the_table() -> None:
    with pytest.raises(RetentionRefused, match="there is no table 'x'"):
        retention.selected(["x"], TABLES)
    assert retention.selected(["bz_orders", "bz_orders"], TABLES) == [t for t in TABLES if t.name == "bz_orders"]
