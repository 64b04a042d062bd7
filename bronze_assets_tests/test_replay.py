"""Replays of quarantined rows: what passes now is loaded where it belongs, once, and nothing is lost on the way."""

from __future__ import annotations

import argparse
import datetime as dt
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import dagster as dg
import pandera.pyspark as pa
import pyarrow as arrow
import pyspark.sql.types as T
import pytest
from deltalake import DeltaTable, write_deltalake

from bronze_assets import quarantine, quarantine_command
from bronze_assets.attempt import Attempt
from bronze_assets.audit import LoadRecord
from bronze_assets.batches import BatchLog
from bronze_assets.errors import LoadRefused
from bronze_assets.lakehouse import Lakehouse
from bronze_assets.load import current
from bronze_assets.orchestration.quarantine import replay_job
from bronze_assets.quarantine import Selection
from bronze_assets.settings import Settings
from bronze_assets.table import BronzeTable, Cadence, Evolution, Feed, column
from bronze_assets.workbench import Run, Workbench
from bronze_assets_tests import file_tables, lake_reader, people
from bronze_assets_tests.conftest import CHECKOUT, IN_BOTH
from bronze_assets_tests.file_tables import DAY, NOW, SCHEMA, csv_text, drop, ids, json_lines, row, table_path, things
from bronze_assets_tests.people import Keys, person
from bronze_assets_tests.test_load import Lab

if TYPE_CHECKING:
    from psycopg2.extensions import connection as Connection
    from pyspark.sql import SparkSession

# Each makes several loads: together they take longer than all other tests of loads.
pytestmark = pytest.mark.slow

A = TypeVar("A")
ALL = Selection()


class Strict(file_tables.Things):
    amount: T.DecimalType = column(
        dtype_kwargs={"precision": 12, "scale": 4}, ge=0, quarantine=True, description="How much of it."
    )


class AnyKey(file_tables.Things):
    thing_id: T.IntegerType = column(key=True, description="Identifies a thing.")


class LenientPeople(people.People):
    visits: T.IntegerType = column(description="How often the person came.")


def strict(**feed: Any) -> BronzeTable:
    """The things, of which none may be less than nothing."""
    told = Feed("raw/things", **feed)
    return BronzeTable(SCHEMA, "shop.Things", Strict, Cadence.STREAMING, "Things.", files=told, source_system="S")


def lenient_people() -> BronzeTable:
    feed = Feed("raw/people")
    return BronzeTable(
        people.SCHEMA, "club.People", LenientPeople, Cadence.STREAMING, "People.", files=feed, source_system="S"
    )


def loaded(settings: Settings, table: BronzeTable | None = None, **options: Any) -> LoadRecord:
    return file_tables.loaded(settings, table or strict(), **options)


def at_bench(settings: Settings, work: Callable[[Workbench], A], now: dt.datetime = NOW) -> A:
    bench = Workbench(settings, clock=lambda: now)
    try:
        return work(bench)
    finally:
        bench.close()


def replayed(
    settings: Settings, table: BronzeTable | None = None, selection: Selection = ALL, **options: Any
) -> LoadRecord:
    run = Run("replay run", "cli")
    record = at_bench(settings, lambda bench: quarantine.replay(bench, table or things(), selection, run, **options))
    assert record.conserved
    return record


def dismissed(settings: Settings, table: BronzeTable, selection: Selection = ALL, **told: Any) -> int:
    said = {"reason": "of a test", "who": "ada"} | told
    return at_bench(settings, lambda bench: quarantine.dismiss(bench, table, selection, Run("d", "cli"), **said))


def counts(record: LoadRecord) -> tuple[int, int, int, int, int, int]:
    """Read, loaded, quarantined, duplicates, unchanged, erased."""
    return record.read, record.loaded, record.quarantined, record.duplicates, record.unchanged, record.erased


def held(settings: Settings) -> dict[str, dict[str, Any]]:
    """Key → its quarantine row."""
    rows = lake_reader.read(table_path(settings, "bz_things_quarantine"))
    assert len({one["row_key"] for one in rows}) == len(rows)
    return {one["row_key"]: one for one in rows}


def states(settings: Settings) -> dict[str, tuple[str, int]]:
    return {key: (one["state"], one["attempts"]) for key, one in held(settings).items()}


def shown(settings: Settings, number: int) -> list[dict[str, Any]]:
    return lake_reader.read(table_path(settings), f"select * from t where thing_id = {number} order by source_position")


def now_current(settings: Settings, table: BronzeTable) -> dict[int, str]:
    def read(bench: Workbench) -> dict[int, str]:
        return {one["thing_id"]: one["name"] for one in current(bench, table).select("thing_id", "name").collect()}

    return at_bench(settings, read)


# Replaying


@IN_BOTH
def test_rows_that_pass_now_are_loaded_where_they_were_and_the_others_stay_open(
    spark: SparkSession, settings: Settings
) -> None:
    drop(settings, "a.json", json_lines(row(1), row(2, amount=-2.5, name="Łódź"), row(3, made_on="soon"), row(-4)))
    record = loaded(settings)
    assert (record.loaded, record.quarantined) == (1, 3)
    before = held(settings)
    assert states(settings) == {"2": ("open", 0), "3": ("open", 0), "-4": ("open", 0)}

    record = replayed(settings)

    assert counts(record) == (3, 1, 2, 0, 0, 0)
    assert record.batch_id == f"{DAY}/2"
    (mine,) = shown(settings, 2)
    (other,) = shown(settings, 1)
    assert (mine["name"], str(mine["amount"]), mine["made_on"], mine["good"]) == (
        *("Łódź", "-2.5000", dt.date(2026, 6, 1), True),
    )
    assert (mine["made_at"], mine["batch_id"], mine["record_status"]) == (other["made_at"], f"{DAY}/2", "ACTIVE")
    assert (mine["file_name"], mine["source_position"]) == (other["file_name"], other["source_position"])
    assert states(settings) == {"2": ("replayed", 1), "3": ("open", 1), "-4": ("open", 1)}
    after = held(settings)
    assert {one["replay_batch_id"] for one in after.values()} == {f"{DAY}/2"}
    assert after["3"]["rule_set"] != before["3"]["rule_set"]
    assert after["3"]["reasons"] == before["3"]["reasons"]
    told = lake_reader.read(table_path(settings, "bz_audit_log"), "select * from t order by processing_end_time")
    operations = {one["batch_id"]: (one["operation_type"], one["record_count"], one["status"]) for one in told}
    assert operations[f"{DAY}/2"] == ("replay, all", 3, "SUCCESS")


def test_a_replayed_row_has_the_hash_that_a_load_gives_it(spark: SparkSession, settings: Settings) -> None:
    values = {"made_at": "2026-06-01 10:00:00.123456", "name": 'Zoë, "x"', "good": None}
    drop(settings, "a.json", json_lines(row(1, amount=-2.5, **values)))
    loaded(settings)
    replayed(settings)
    drop(settings, "b.json", json_lines(row(1, amount=-2.5, **values)))
    loaded(settings, things())
    first, second = shown(settings, 1)
    assert first["batch_id"] != second["batch_id"]
    same = [*file_tables.COLUMNS, "record_hash", "data_quality_score", "_rescued_data"]
    assert [first[name] for name in same] == [second[name] for name in same]


def test_done_again_it_loads_nothing_twice(spark: SparkSession, settings: Settings) -> None:
    drop(settings, "a.json", json_lines(row(1, amount=-1), row(2, made_on="soon")))
    loaded(settings)
    replayed(settings)
    before = ids(settings)
    record = replayed(settings)
    assert counts(record) == (1, 0, 1, 0, 0, 0)
    assert states(settings) == {"1": ("replayed", 1), "2": ("open", 2)}
    record = replayed(settings, selection=Selection(key="1"))
    assert (record.read, record.batch_id) == (0, "")
    assert loaded(settings).read == 0
    assert ids(settings) == before == [1]


def test_a_dry_run_says_the_same_and_writes_nothing(spark: SparkSession, settings: Settings) -> None:
    drop(settings, "a.json", json_lines(row(1, amount=-1), row(2, made_on="soon")))
    loaded(settings)
    before = {p: p.stat().st_mtime_ns for p in settings.lake.rglob("*") if p.is_file()}
    dry = replayed(settings, dry_run=True)
    assert {p: p.stat().st_mtime_ns for p in settings.lake.rglob("*") if p.is_file()} == before
    assert (counts(dry), dry.dry_run) == ((2, 1, 1, 0, 0, 0), True)
    assert "2 rows would be tried: 1 loaded, 1 quarantined" in quarantine.told_of(dry)
    assert counts(replayed(settings)) == counts(dry)


def test_an_older_version_does_not_become_the_current_one(spark: SparkSession, settings: Settings) -> None:
    drop(settings, "a.json", json_lines(row(1, name="old", amount=-1), row(2, name="good")))
    loaded(settings)
    drop(settings, "b.json", json_lines(row(1, name="new"), row(2, name="newest", amount=-1)))
    loaded(settings)
    record = replayed(settings)
    assert record.loaded == 2
    assert [one["name"] for one in shown(settings, 1)] == ["old", "new"]
    assert now_current(settings, things()) == {1: "new", 2: "newest"}


def test_a_version_goes_where_its_event_time_says(spark: SparkSession, settings: Settings) -> None:
    drop(settings, "a.json", json_lines(row(1, name="late", made_at="2026-06-03 10:00:00")))
    drop(settings, "b.json", json_lines(row(1, name="early", made_at="2026-06-02 10:00:00", amount=-1)))
    loaded(settings, strict(event_time="made_at"))
    replayed(settings, things(event_time="made_at"))
    drop(settings, "c.json", json_lines(row(1, name="early again", made_at="2026-06-02 10:00:00")))
    loaded(settings, things(event_time="made_at"))
    assert [one["name"] for one in shown(settings, 1)] == ["early", "early again", "late"]
    first, second, _ = (one["source_position"].split("/")[0] for one in shown(settings, 1))
    assert first == second


def test_identical_rows_count_each_and_one_of_them_is_loaded(spark: SparkSession, settings: Settings) -> None:
    drop(settings, "a.json", json_lines(row(1, amount=-1), row(1, amount=-1), row(2), row(2, amount=-1)))
    record = loaded(settings)
    assert (record.read, record.loaded, record.quarantined) == (4, 1, 3)
    assert counts(replayed(settings)) == (3, 1, 0, 2, 0, 0)
    assert ids(settings) == [1, 2]
    assert {one["state"] for one in held(settings).values()} == {"replayed"}


def test_a_line_is_tried_again_and_stays_with_its_reason(spark: SparkSession, settings: Settings) -> None:
    drop(settings, "a.json", b'{"thing_id": 1, "na')
    drop(settings, "b.csv", csv_text(row(2)) + b"3,too,few\n")
    loaded(settings)
    before = {one["file_name"]: one for one in file_tables.quarantine(settings)}
    assert counts(replayed(settings)) == (2, 0, 2, 0, 0, 0)
    for one in file_tables.quarantine(settings):
        assert (one["state"], one["attempts"], one["reasons"]) == ("open", 1, before[one["file_name"]]["reasons"])
    # As if it had been quarantined by a reader that could do less.
    whole = json.dumps({"_line": json.dumps(row(1, colour="red"))})
    write_deltalake(
        str(table_path(settings, "bz_things_quarantine")),
        arrow.Table.from_pylist(
            [one | {"raw_row": whole} for one in before.values() if one["file_name"].endswith("json")],
            schema=arrow.schema(lake_reader_schema(settings)),
        ),
        mode="overwrite",
    )
    assert counts(replayed(settings)) == (1, 1, 0, 0, 0, 0)
    (mine,) = shown(settings, 1)
    assert (mine["name"], json.loads(mine["_rescued_data"])) == ("thing 1", {"colour": "red"})


def lake_reader_schema(settings: Settings) -> arrow.Schema:
    return arrow.schema(DeltaTable(str(table_path(settings, "bz_things_quarantine"))).schema().to_arrow())


def test_what_lies_under_names_that_nobody_declared_comes_back_too(spark: SparkSession, settings: Settings) -> None:
    feed = {"evolution": Evolution.RESCUE}
    drop(settings, "a.json", json_lines(row(1), row(2, amount=-1, colour="red")))
    loaded(settings, strict(**feed))
    replayed(settings, things(**feed))
    (mine,) = shown(settings, 2)
    assert json.loads(mine["_rescued_data"]) == {"colour": "red"}


def test_dates_of_a_feed_with_a_format_of_its_own_are_read_as_they_were(
    spark: SparkSession, settings: Settings
) -> None:
    feed = {"date_format": "yyyy-dd-MM"}
    drop(settings, "a.json", json_lines(row(1, amount=-1, made_on="2026-05-06"), row(2, made_on="2026-05-13")))
    loaded(settings, strict(**feed))
    record = replayed(settings, things(**feed))
    assert (record.loaded, record.quarantined) == (1, 1)
    assert shown(settings, 1)[0]["made_on"] == dt.date(2026, 6, 5)


def test_captured_changes_go_back_to_their_places_and_deletions_stay_deletions(
    spark: SparkSession, settings: Settings
) -> None:
    said = [
        row(1, name="A", amount=-1, __op="c", __source_lsn=10),
        row(1, name="B", __op="u", __source_lsn=20),
        row(1, name="A", amount=-1, __op="u", __source_lsn=30),
        row(2, __op="c", __source_lsn=40),
        {"thing_id": -4, "__op": "d", "__source_lsn": 50},
        {"thing_id": 5},
    ]
    drop(settings, "a.json", json_lines(*said))
    record = loaded(settings, strict(captured=True))
    assert (record.loaded, record.quarantined) == (2, 4)
    told = Feed("raw/things", captured=True)
    any_key = BronzeTable(SCHEMA, "shop.Things", AnyKey, Cadence.STREAMING, "Things.", files=told, source_system="S")
    record = replayed(settings, any_key)
    assert (counts(record), record.deleted) == ((3, 2, 1, 0, 0, 0), 1)
    assert [one["name"] for one in shown(settings, 1)] == ["A", "B", "A"]
    assert [(one["record_status"], one["name"]) for one in shown(settings, -4)] == [("DELETED", None)]
    assert now_current(settings, any_key) == {1: "A", 2: "thing 2"}


# Selections


def test_rows_are_chosen_by_rule_batch_age_and_key(spark: SparkSession, settings: Settings) -> None:
    drop(settings, "a.json", json_lines(row(1, amount=-1), row(2, made_on="soon")))
    loaded(settings)
    later = NOW + dt.timedelta(days=2)
    drop(settings, "b.json", json_lines(row(3, amount=-1)), modified=later - dt.timedelta(hours=1))
    file_tables.loaded(settings, strict(), "2026-06-17", now=later)

    def chosen(now: dt.datetime = later, **told: Any) -> int:
        def dry(bench: Workbench) -> LoadRecord:
            return quarantine.replay(bench, things(), Selection(**told), Run("r", "cli"), dry_run=True)

        return at_bench(settings, dry, now).read

    assert chosen() == 3
    assert chosen(rule="amount_ge") == 2
    assert chosen(rule="parsed") == 1
    assert chosen(batch="2026-06-17/1") == 1
    assert chosen(older_than=quarantine.age("1d")) == 2
    assert chosen(newer_than=quarantine.age("1d")) == 1
    assert chosen(key="3") == 1
    assert chosen(key="3", rule="parsed") == 0
    with pytest.raises(LoadRefused, match=r"bz_things: 'nonsense' is no rule.*amount_ge"):
        chosen(rule="nonsense")
    with pytest.raises(LoadRefused, match="'7 days' is no age"):
        quarantine.age("7 days")
    lake = Lakehouse(settings.lake)
    listed = {h.rule: (h.state, h.rows, h.oldest) for h in quarantine.summary(lake, strict(), ALL, later)}
    assert listed == {"amount_ge": ("open", 2, NOW), "parsed": ("open", 1, NOW)}


# Dismissals


def test_a_dismissed_row_is_not_replayed_and_says_who_when_and_why(spark: SparkSession, settings: Settings) -> None:
    drop(settings, "a.json", json_lines(row(1, amount=-1), row(2, amount=-1)))
    loaded(settings)
    assert dismissed(settings, strict(), Selection(key="1"), reason="a test order") == 1
    one = held(settings)["1"]
    assert (one["state"], one["dismissed_by"], one["dismissed_because"], one["dismissed_at"], one["attempts"]) == (
        *("dismissed", "ada", "a test order", NOW, 0),
    )
    assert counts(replayed(settings)) == (1, 1, 0, 0, 0, 0)
    assert ids(settings) == [2]
    told = lake_reader.read(table_path(settings, "bz_audit_log"))
    assert ("dismissal, one key", 1) in [(row["operation_type"], row["record_count"]) for row in told]
    drop(settings, "b.json", json_lines(row(3, amount=-1), row(4, amount=-1)))
    loaded(settings)
    with pytest.raises(LoadRefused, match=r"without a filter would be one of all open rows\. Fix: .*--all"):
        dismissed(settings, strict())
    assert {state["state"] for key, state in held(settings).items() if key in "34"} == {"open"}
    assert dismissed(settings, strict(), everything=True) == 2
    assert dismissed(settings, strict(), everything=True) == 0
    for wrong in ({"reason": " "}, {"who": ""}):
        with pytest.raises(LoadRefused, match="needs a reason and somebody"):
            dismissed(settings, strict(), Selection(key="1"), **wrong)


# Kills

STEPS: list[tuple[type, str]] = [
    (BatchLog, "begin"),
    (Lakehouse, "append"),
    (Attempt, "stage"),
    (Lakehouse, "settle_quarantined"),
    (Attempt, "finish"),
]


@IN_BOTH
def test_a_killed_replay_is_done_again_and_loads_nothing_twice(
    spark: SparkSession, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    numbers = range(1, len(STEPS) + 1)
    drop(settings, "a.json", json_lines(*(row(n, amount=-1) for n in numbers), row(9, made_on="soon"), row(10)))
    loaded(settings)
    for number, (owner, name) in zip(numbers, STEPS, strict=True):
        real = getattr(owner, name)

        def killed(*arguments: Any, real: Any = real, **named: Any) -> None:
            real(*arguments, **named)
            raise KeyboardInterrupt

        mine = Selection(key=f"{number}")
        with monkeypatch.context() as patched:
            patched.setattr(owner, name, killed)
            # A process that is gone records nothing.
            patched.setattr(Attempt, "record_failure", lambda *_: None)
            with pytest.raises(KeyboardInterrupt):
                replayed(settings, selection=mine)
        if number % 2:
            loaded(settings)
        there = [row["thing_id"] for row in shown(settings, number)]
        if number % 2:
            assert bool(there) == (states(settings)[f"{number}"][0] == "replayed"), name
        replayed(settings, selection=mine)
        assert len(shown(settings, number)) == 1, name
        assert states(settings)[f"{number}"][0] == "replayed", name
    replayed(settings)
    assert ids(settings) == sorted([*numbers, 10], key=lambda n: repr((n,)))
    after = held(settings)
    assert (after["9"]["state"], after["9"]["attempts"]) == ("open", 1)
    log = lake_reader.read(table_path(settings, "bz_batches"))
    events = {b: {e["event"] for e in log if e["batch_id"] == b} for b in {e["batch_id"] for e in log}}
    assert all({"done", "failed"} & one for one in events.values()), "nothing is left to do"
    told = lake_reader.read(table_path(settings, "bz_audit_log"))
    succeeded = [one["batch_id"] for one in told if one["status"] == "SUCCESS"]
    assert len(succeeded) == len(set(succeeded))
    for number in numbers:
        (mended,) = shown(settings, number)
        assert after[f"{number}"]["replay_batch_id"] == mended["batch_id"]
        assert mended["batch_id"] in succeeded


@pytest.mark.slow
def test_a_replay_whose_process_is_killed_is_taken_back_by_the_next_load(
    spark: SparkSession, settings: Settings, jars: Path
) -> None:
    drop(settings, "a.json", json_lines(row(1, amount=-1), row(2)))
    loaded(settings)
    before = held(settings)
    code = (
        "import os, signal\n"
        "from bronze_assets.lakehouse import Lakehouse\n"
        "from bronze_assets.settings import Settings\n"
        "from bronze_assets_tests.test_replay import replayed\n"
        "real = Lakehouse.append\n"
        "def killed(*arguments, **named):\n"
        "    real(*arguments, **named)\n"
        "    os.killpg(0, signal.SIGKILL)\n"
        "Lakehouse.append = killed\n"
        "replayed(Settings.from_environment())\n"
    )
    environment = {"BRONZE_HOME": str(settings.home), "BRONZE_JARS": str(jars), "BRONZE_CAPTURE": "off"}
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=CHECKOUT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        start_new_session=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == -signal.SIGKILL, done.stderr[-3000:]
    assert ids(settings) == [1, 2]
    assert held(settings) == before
    assert loaded(settings).read == 0
    assert ids(settings) == [2]
    assert held(settings) == before
    assert counts(replayed(settings)) == (1, 1, 0, 0, 0, 0)
    assert ids(settings) == [1, 2]
    told = lake_reader.read(table_path(settings, "bz_audit_log"))
    assert sorted((one["batch_id"], one["status"]) for one in told if one["batch_id"]) == [
        *((f"{DAY}/1", "SUCCESS"), (f"{DAY}/2", "FAILED"), (f"{DAY}/3", "SUCCESS")),
    ]


# Personal data


@IN_BOTH
def test_sealed_rows_are_opened_judged_and_sealed_again(spark: SparkSession, settings: Settings) -> None:
    people.drop(settings, "a.json", person(1), person(2, visits=-1), person(3, visits=-1, phone=None))
    assert people.loaded(settings).quarantined == 2
    record = replayed(settings, lenient_people())
    assert counts(record) == (2, 2, 0, 0, 0, 0)
    keys, versions = Keys(settings), people.versions(settings)
    assert keys.open(versions[2]["name"], "name", "2") == "Zoë Nr. 2"
    assert keys.open(versions[2]["email"], "email", "2") == "zoe.2@example.org"
    assert versions[2]["phone"] == f"tok:{keys.hmac('token', '+49 30 2')}"
    assert (versions[3]["phone"], versions[3]["visits"], versions[2]["city"]) == (None, -1, "Köln")
    # The same values by a load: the same hash.
    people.drop(settings, "b.json", person(2, visits=-1))
    people.loaded(settings, lenient_people())
    rows = lake_reader.read(people.path(settings), "select * from t where person_id = 2")
    assert len({one["record_hash"] for one in rows}) == 1 < len(rows)


def test_a_sealed_line_is_opened_with_the_tables_key(spark: SparkSession, settings: Settings) -> None:
    people.drop(settings, "a.json", person(1), '{"person_id": 2, "name": "Zoë')
    people.loaded(settings)
    before = lake_reader.read(people.path(settings, f"{people.NAME}_quarantine"))
    assert counts(replayed(settings, people.people())) == (1, 0, 1, 0, 0, 0)
    (after,) = lake_reader.read(people.path(settings, f"{people.NAME}_quarantine"))
    assert (after["raw_row"], after["reasons"], after["attempts"]) == (
        *(before[0]["raw_row"], before[0]["reasons"], 1),
    )


def test_rows_of_a_forgotten_subject_are_erased_and_leave_nothing(spark: SparkSession, settings: Settings) -> None:
    people.drop(settings, "a.json", person(1), person(2, visits=-1), person(3, visits=-1))
    people.loaded(settings)
    gone = [Keys(settings).hmac("tombstone", f"{people.SCHEMA}/{people.NAME}/2")]
    tombstones = arrow.table({"subject_hmac": gone, "erased_at": [NOW]})
    write_deltalake(str(people.path(settings, "bz_tombstones")), tombstones)
    assert counts(replayed(settings, lenient_people())) == (2, 1, 0, 0, 0, 1)
    assert set(people.versions(settings)) == {1, 3}
    rows = lake_reader.read(people.path(settings, f"{people.NAME}_quarantine"))
    (erased,) = (one for one in rows if one["state"] == "erased")
    assert [erased[name] for name in ("row_key", "row_hash", "raw_row", "reasons")] == [None] * 4
    assert replayed(settings, lenient_people()).read == 0


def test_values_that_no_key_opens_are_not_loaded_as_nothing(spark: SparkSession, settings: Settings) -> None:
    people.drop(settings, "a.json", person(1), person(2, visits=-1))
    people.loaded(settings)
    DeltaTable(str(people.path(settings, "bz_subject_keys"))).delete(f"subject = '{people.NAME}/2'")
    assert counts(replayed(settings, lenient_people())) == (1, 0, 1, 0, 0, 0)
    assert set(people.versions(settings)) == {1}


# A corrected file


def corrected(settings: Settings, name: str, content: bytes) -> Path:
    file = settings.home / name
    file.write_bytes(content)
    return file


def test_corrected_rows_take_the_place_of_the_quarantined_rows_of_their_keys(
    spark: SparkSession, settings: Settings
) -> None:
    drop(settings, "a.json", json_lines(row(1, made_on="soon"), row(2, made_on="never"), row(3, made_on="now")))
    loaded(settings)
    drop(settings, "b.json", json_lines(row(2, name="newer")))
    loaded(settings)
    file = corrected(settings, "c.json", json_lines(row(1, name="mended"), row(2, name="mended too")))
    assert counts(replayed(settings, strict(), corrected=file)) == (2, 2, 0, 0, 0, 0)
    assert now_current(settings, strict()) == {1: "mended", 2: "newer"}
    assert shown(settings, 1)[0]["file_name"].endswith("a.json")
    assert states(settings) == {"1": ("replayed", 1), "2": ("replayed", 1), "3": ("open", 0)}
    # What is wrong in it stays out, and the row that it was to mend stays as it was.
    before = held(settings)["3"]
    table = corrected(settings, "d.csv", csv_text(row(3, amount=-7)))
    assert counts(replayed(settings, strict(), corrected=table)) == (1, 0, 1, 0, 0, 0)
    assert held(settings)["3"] == before | {"attempts": 1, "replay_batch_id": f"{DAY}/4"}
    table = corrected(settings, "d.csv", csv_text(row(3, amount=7)))
    assert counts(replayed(settings, strict(), corrected=table)) == (1, 1, 0, 0, 0, 0)
    told = lake_reader.read(table_path(settings, "bz_audit_log"))
    assert "replay, all, corrected by d.csv" in {one["operation_type"] for one in told}


def test_a_corrected_file_that_fits_nothing_is_refused_with_its_culprit(
    spark: SparkSession, settings: Settings
) -> None:
    drop(settings, "a.json", json_lines(row(1, made_on="soon"), row(2)))
    loaded(settings)
    for content, why in {
        json_lines(row(2)): r"bz_things: key 2 of the file c\.json has no open row in the quarantine",
        json_lines(row(1), row(1)): r"key 1 of the file c\.json is there twice",
        json_lines(row(1, colour="red")): "has columns that the table does not: 'colour'",
        b"nonsense": "is no JSON",
        b"": "is empty",
        b"\xff": "cannot be read",
    }.items():
        with pytest.raises(LoadRefused, match=why):
            replayed(settings, strict(), corrected=corrected(settings, "c.json", content))
    assert states(settings) == {"1": ("open", 0)}


# A database


class Stock(pa.DataFrameModel):
    stock_id: T.IntegerType = column(key=True, gt=0, description="Identifies it.")
    amount: T.IntegerType = column(ge=0, quarantine=True, description="How many.")
    day: T.DateType = column(description="When.")


class LenientStock(Stock):
    amount: T.IntegerType = column(description="How many.")


STOCK = BronzeTable(lake_reader.SCHEMA, "tests.Stock", Stock, Cadence.DAILY, "Stock.")
LENIENT_STOCK = BronzeTable(lake_reader.SCHEMA, "tests.Stock", LenientStock, Cadence.DAILY, "Stock.")


def stock_replayed(lab: Lab, table: BronzeTable = LENIENT_STOCK) -> LoadRecord:
    bench = Workbench(lab.settings, clock=lab.clock)
    try:
        record = quarantine.replay(bench, table, ALL, Run("replay", "cli"))
    finally:
        bench.close()
    assert record.conserved
    return record


def test_rows_of_snapshots_keep_their_place_and_the_next_load_finds_them(
    spark: SparkSession, settings: Settings, source: Connection
) -> None:
    lab = Lab(settings, source)
    lab.make(
        "stock",
        [(1, 5, "2026-03-01"), (2, -5, "2026-03-02"), (3, -6, "infinity")],
        ddl="stock_id int, amount int, day date",
    )
    # The tests' server would tell one position for snapshots that are taken right after another.
    lab.sql("set synchronous_commit = on")
    assert lab.load(STOCK).quarantined == 2
    lab.sql("update tests.stock set amount = -7 where stock_id = 2")
    assert lab.load(STOCK).quarantined == 2
    # Once good in between, and bad as before: it is where it was seen last.
    lab.sql("update tests.stock set amount = 1 where stock_id = 2")
    assert lab.load(STOCK).loaded == 1
    lab.sql("update tests.stock set amount = -5 where stock_id = 2")
    lab.load(STOCK)
    positions = {row["raw_row"]: row["source_position"] for row in lab.quarantine(STOCK) if row["row_key"] == "2"}
    assert len(positions) == 2

    record = stock_replayed(lab)

    assert counts(record) == (3, 2, 1, 0, 0, 0)
    order = lake_reader.read(lab.path("bz_stock"), "select amount from t where stock_id = 2 order by source_position")
    assert [row["amount"] for row in order] == [-7, 1, -5]
    assert lab.current(STOCK, "stock_id", "amount") == lab.sql(
        "select stock_id, amount from tests.stock where stock_id < 3 order by 1"
    )
    record = lab.load(LENIENT_STOCK)
    assert (record.unchanged, record.loaded, record.quarantined, record.deleted) == (2, 0, 1, 0)


def test_a_row_that_has_come_in_since_is_unchanged_and_bad_ones_of_two_rule_sets_become_one(
    spark: SparkSession, settings: Settings, source: Connection
) -> None:
    lab = Lab(settings, source)
    lab.make(
        "stock",
        [(1, 5, "2026-03-01"), (2, -5, "2026-03-02"), (3, -6, "infinity")],
        ddl="stock_id int, amount int, day date",
    )
    lab.load(STOCK)
    assert lab.load(LENIENT_STOCK).loaded == 1
    assert sorted((row["row_key"], row["state"]) for row in lab.quarantine(STOCK)) == [
        *(("2", "open"), ("3", "open"), ("3", "open")),
    ]

    record = stock_replayed(lab)

    assert counts(record) == (3, 0, 2, 0, 1, 0)
    after = [(row["row_key"], row["state"], row["attempts"]) for row in lab.quarantine(STOCK)]
    assert after == [("2", "replayed", 1), ("3", "open", 1)]
    assert len(lab.rows(STOCK, "*")) == 2
    assert lab.load(LENIENT_STOCK).quarantined == 1
    assert [(row["row_key"], row["sightings"]) for row in lab.quarantine(STOCK) if row["state"] == "open"] == [("3", 2)]


def test_a_load_leaves_a_dismissed_row_dismissed_and_opens_a_replayed_one_again(
    spark: SparkSession, settings: Settings, source: Connection
) -> None:
    lab = Lab(settings, source)
    lab.make("stock", [(1, -5, "2026-03-01"), (2, -5, "2026-03-02")], ddl="stock_id int, amount int, day date")
    lab.load(STOCK)
    bench = Workbench(settings, clock=lab.clock)
    quarantine.dismiss(bench, STOCK, Selection(key="1"), Run("d", "cli"), reason="known", who="ada")
    bench.close()
    stock_replayed(lab)
    assert [(r["row_key"], r["state"]) for r in lab.quarantine(STOCK)] == [("1", "dismissed"), ("2", "replayed")]
    record = lab.load(STOCK)
    assert record.quarantined == 2
    after = [(r["row_key"], r["state"], r["sightings"], r["dismissed_by"]) for r in lab.quarantine(STOCK)]
    assert after == [("1", "dismissed", 2, "ada"), ("2", "open", 2, None)]


def test_a_quarantine_of_before_gets_its_columns_and_its_rows_are_open(
    spark: SparkSession, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    drop(settings, "a.json", json_lines(row(1, amount=-1), row(2, made_on="soon")))
    loaded(settings)
    path = table_path(settings, "bz_things_quarantine")
    old = lake_reader.read(path)
    later = {"operation", "rescued_data", "state", "attempts", "replay_batch_id"}
    later |= {"dismissed_by", "dismissed_at", "dismissed_because"}
    schema = arrow.schema([field for field in lake_reader_schema(settings) if field.name not in later])
    rows = arrow.Table.from_pylist([{k: v for k, v in one.items() if k not in later} for one in old], schema=schema)
    write_deltalake(str(path), rows, mode="overwrite", schema_mode="overwrite")
    assert "state" not in lake_reader.column_types(path)
    found = quarantine.summary(Lakehouse(settings.lake), strict(), ALL, NOW)
    assert [(h.rule, h.state, h.rows, h.attempts) for h in found] == [
        ("amount_ge", "open", 1, 0),
        ("parsed", "open", 1, 0),
    ]
    assert counts(replayed(settings, dry_run=True)) == (2, 1, 1, 0, 0, 0)
    drop(settings, "b.json", json_lines(row(3, amount=-1)))
    loaded(settings)
    assert {key: one["state"] for key, one in held(settings).items()} == {"1": None, "2": None, "3": "open"}
    assert counts(replayed(settings)) == (3, 2, 1, 0, 0, 0)
    assert states(settings) == {"1": ("replayed", 1), "2": ("open", 1), "3": ("replayed", 1)}


# Through the job and the command line


def test_the_job_and_the_command_line_do_the_same_and_tell_no_value(
    spark: SparkSession, settings: Settings, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    people.drop(settings, "a.json", person(1), person(2, visits=-1), person(3, visits=-1))
    people.loaded(settings)
    tables = (lenient_people(),)
    job = replay_job(settings, tables)

    def ran(**config: Any) -> tuple[bool, str]:
        told = {"ops": {"replay_rows": {"config": {"table": people.NAME} | config}}}
        with dg.DagsterInstance.ephemeral() as instance:
            result = job.execute_in_process(run_config=told, raise_on_error=False, instance=instance)
            records = instance.all_logs(result.run_id)
        return result.success, "\n".join(str(record) for record in records)

    good, said = ran(key="2", dry_run=True)
    assert good
    assert "1 rows would be tried: 1 loaded" in said
    good, said = ran(key="2")
    assert good
    assert "1 rows tried as batch" in said
    assert not [word for word in ("Zoë", "example.org", "+49") if word in said]
    good, said = ran(rule="nonsense")
    assert not good
    assert "'nonsense' is no rule" in said

    monkeypatch.setattr(quarantine_command, "TABLES", tables)
    parser = argparse.ArgumentParser()
    quarantine_command.add_parser(parser.add_subparsers())

    def line(*words: str) -> str:
        assert quarantine_command.run(settings, tables[0], parser.parse_args(["quarantine", *words])) == 0
        return capsys.readouterr().out

    assert re.search(r"visits_ge +open +1 .*\n.*visits_ge +replayed +1 ", line("list", people.NAME))
    assert "1 rows dismissed" in line("dismiss", people.NAME, "--rule", "visits_ge", "--reason", "no member")
    said = line("replay", people.NAME, "--older-than", "1m")
    assert "no open row" in said
    assert set(people.versions(settings)) == {1, 2}
