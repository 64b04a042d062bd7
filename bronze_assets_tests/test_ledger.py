"""The file ledger: a file's state, whose it is, and two loads that want the same."""

from __future__ import annotations

import datetime as dt
from pathlib import Path

import pytest

from bronze_assets.errors import StaleBase
from bronze_assets.lakehouse import Lakehouse
from bronze_assets.sources.landing import LandedFile
from bronze_assets.sources.ledger import FileEvent, FileState, Ledger
from bronze_assets.table import BronzeTable
from bronze_assets_tests import lake_reader
from bronze_assets_tests.file_tables import DAY, NOW, SCHEMA, things

OTHER = BronzeTable(
    SCHEMA, "shop.Others", things().model, things().cadence, "Other things.", files=things().files, source_system="S"
)


@pytest.fixture
def lake(tmp_path: Path) -> Lakehouse:
    return Lakehouse(tmp_path / "lake")


def ledger(lake: Lakehouse, table: BronzeTable | None = None) -> Ledger:
    return Ledger(lake, table or things(), lambda: NOW, "run")


def state(name: str, **values: object) -> FileState:
    known: dict[str, object] = {"size": 10, "modified": NOW, "partition": DAY, "event": FileEvent.SEEN}
    return FileState(path=f"raw/things/{name}", **{**known, **values})  # type: ignore[arg-type]


def landed(name: str, *, size: int = 10, archived: bool = False, modified: dt.datetime = NOW) -> LandedFile:
    return LandedFile(f"raw/things/{name}", size, modified, f"raw/things/{name}", archived)


def test_the_latest_event_of_a_file_is_its_state_and_tables_do_not_mix(lake: Lakehouse) -> None:
    mine, other = ledger(lake), ledger(lake, OTHER)
    mine.record([state("a.json", batch_id="b/1", attempt=1), state("it's.json")], FileEvent.CLAIMED)
    other.record([state("a.json", size=99)], FileEvent.SEEN)
    mine.record([mine.files["raw/things/a.json"]], FileEvent.LOADED, rows=3)
    for found in (mine, ledger(lake)):
        a, its = (found.files[f"raw/things/{name}"] for name in ("a.json", "it's.json"))
        assert (a.event, a.rows, a.batch_id, a.attempt, a.size, a.settled) == ("loaded", 3, "b/1", 1, 10, True)
        assert (its.event, its.settled, its.event_time) == ("claimed", False, NOW)
    assert ledger(lake, OTHER).files["raw/things/a.json"].size == 99
    rows = lake_reader.read(Path(lake.location(SCHEMA, "bz_file_ledger")), "select table_name, number, event from t")
    assert sorted((one["table_name"], one["number"], one["event"]) for one in rows) == [
        ("bz_others", 0, "seen"),
        ("bz_things", 1, "claimed"),
        ("bz_things", 2, "claimed"),
        ("bz_things", 3, "loaded"),
    ]


@pytest.mark.parametrize("begun", [False, True])
def test_of_two_that_decided_on_one_state_the_second_is_refused_and_nothing_of_it_is_written(
    lake: Lakehouse, begun: bool
) -> None:
    if begun:
        ledger(lake).record([state("z.json")], FileEvent.SEEN)
    one, two, other = ledger(lake), ledger(lake), ledger(lake, OTHER)
    one.record([state("a.json", batch_id="1")], FileEvent.CLAIMED)
    other.record([state("a.json", batch_id="3")], FileEvent.CLAIMED)
    with pytest.raises(StaleBase, match="bz_things: another load wrote to bz_file_ledger"):
        two.record([state("a.json", batch_id="2")], FileEvent.CLAIMED)
    assert ledger(lake).files["raw/things/a.json"].batch_id == "1"
    two.refresh()
    two.record([state("b.json", batch_id="2")], FileEvent.CLAIMED)
    assert [found.path for found in ledger(lake).batch("1")] == ["raw/things/a.json"]
    assert [found.path for found in ledger(lake).batch("2")] == ["raw/things/b.json"]


def test_what_waits_is_what_is_new_failed_changed_or_undone(lake: Lakehouse) -> None:
    found = ledger(lake)
    for event in FileEvent:
        found.record([state(f"{event}.json")], event)
    same = [landed(f"{event}.json") for event in FileEvent]
    names = {file.path.removeprefix("raw/things/").removesuffix(".json") for file in found.outstanding(same)}
    assert names == {"seen", "failed", "changed", "undone"}
    changed = [landed(f"{event}.json", size=11) for event in FileEvent]
    names = {file.path.removeprefix("raw/things/").removesuffix(".json") for file in found.outstanding(changed)}
    # A claimed one belongs to a batch, which is settled first.
    assert names == {*FileEvent} - {"claimed"}
    archived = [landed(f"{event}.json", size=11, archived=True) for event in FileEvent]
    assert {file.path for file in found.outstanding(archived)} == {
        f"raw/things/{event}.json" for event in ("seen", "failed", "changed", "undone")
    }
    assert found.outstanding([landed("new.json")]) == [landed("new.json")]


def test_a_file_belongs_to_the_day_of_its_folder_or_of_its_first_sight(lake: Lakehouse) -> None:
    found = ledger(lake)
    found.record([state("a.json", partition="2026-06-01")], FileEvent.SEEN)
    found.record([state("b.json", partition="2026-06-01")], FileEvent.LOADED)
    assert found.partition_of(landed("2026-05-05/x.json"), DAY) == "2026-05-05"
    assert found.partition_of(landed("new.json"), DAY) == DAY
    assert found.partition_of(landed("a.json", size=99), DAY) == "2026-06-01"
    assert found.partition_of(landed("b.json"), DAY) == "2026-06-01"
    assert found.partition_of(landed("b.json", size=99), DAY) == DAY
