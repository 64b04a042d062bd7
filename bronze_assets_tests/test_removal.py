"""What erasures took out of tables leaves the disk when its date has come, and not before."""

from __future__ import annotations

import datetime as dt
import json
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote

import dagster as dg
import pyarrow as arrow
import pyarrow.parquet as pq
import pytest
from deltalake import DeltaTable, write_deltalake

from bronze_assets import __main__ as command_line
from bronze_assets.access import ERASURE_LOG
from bronze_assets.definitions import build_definitions
from bronze_assets.errors import LakeError
from bronze_assets.lakehouse import Lakehouse
from bronze_assets.orchestration import erasure as orchestration
from bronze_assets.privacy import derived
from bronze_assets.privacy.removal import Removed, remove_due
from bronze_assets.settings import Environment, Settings
from bronze_assets_tests import lake_reader
from bronze_assets_tests.conftest import settings_for
from bronze_assets_tests.people import NAME, NOW, drop, erased, loaded, path, people, person

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

MONTH = dt.timedelta(days=30)
QUARANTINE = f"{NAME}_quarantine"
# A Low value: it stands in the files of earlier versions as it is.
CITY = "Castrop-Rauxel"


def removed(settings: Settings, after: dt.timedelta) -> list[Removed]:
    return remove_due(Lakehouse(settings.lake), [people()], lambda: NOW + after, who="dpo", run_id="r1")


def files_with(folder: Path, text: str) -> list[str]:
    """Parquet files below the folder, change data among them, that hold the text anywhere."""
    return sorted(
        str(file.relative_to(folder))
        for file in folder.rglob("*.parquet")
        if "_delta_log" not in file.parts and any(text in str(row) for row in pq.read_table(file).to_pylist())
    )


def age(folder: Path, *, written: float, removed: float) -> None:
    """Let files look as if they had been written, and removed from the table, that many days ago."""
    then = time.time() - written * 86400
    for file in folder.rglob("*.parquet"):
        os.utime(file, (then, then))
    moment = int((time.time() - removed * 86400) * 1000)
    for log in folder.rglob("_delta_log/*.json"):
        told = [json.loads(line) for line in log.read_text().splitlines()]
        for action in told:
            if "remove" in action:
                action["remove"]["deletionTimestamp"] = moment
        log.write_text("".join(json.dumps(action) + "\n" for action in told))
        # Hadoop's, of what stood there.
        log.with_name(f".{log.name}.crc").unlink(missing_ok=True)


@pytest.fixture
def forgotten(spark: SparkSession, settings: Settings) -> Settings:
    """A home in which person 2 has been erased, a month ago by the clock of its files."""
    drop(settings, "a.json", person(1), person(2, city=CITY), person(3, city=CITY, visits=-1))
    loaded(settings)
    erased(settings, "2", "3")
    for name in (NAME, QUARANTINE):
        age(path(settings, name), written=60, removed=31)
    return settings


def test_files_of_earlier_versions_go_when_the_date_has_come(forgotten: Settings) -> None:
    table, quarantine = path(forgotten), path(forgotten, QUARANTINE)
    before = sorted(map(str, lake_reader.read(table)))
    assert any("_change_data" in name for name in files_with(table, CITY)), "an erasure's change data holds the row"
    assert [name for name in files_with(table, CITY) if "_change_data" not in name]
    assert files_with(quarantine, CITY)

    assert removed(forgotten, MONTH - dt.timedelta(seconds=1)) == []
    assert files_with(table, CITY)
    (one,) = removed(forgotten, MONTH)

    assert (one.table, one.erasures) == (NAME, 1)
    assert files_with(table, CITY) == files_with(quarantine, CITY) == []
    assert sorted(map(str, lake_reader.read(table))) == before
    (told,) = lake_reader.read(path(forgotten, ERASURE_LOG), "select * from t where event = 'vacuumed'")
    (done,) = lake_reader.read(path(forgotten, ERASURE_LOG), "select * from t where event = 'done'")
    assert (told["erasure_id"], told["subject_hmacs"]) == (done["erasure_id"], done["subject_hmacs"])
    assert (told["who"], told["run_id"], told["at"], told["files"]) == ("dpo", "r1", NOW + MONTH, one.files)
    assert one.files > 0

    assert removed(forgotten, MONTH) == []


def test_files_that_time_travel_still_needs_stay(forgotten: Settings) -> None:
    # They went when somebody else was erased, yesterday.
    age(path(forgotten), written=60, removed=1)
    earlier = DeltaTable(str(path(forgotten)), version=DeltaTable(str(path(forgotten))).version() - 1)
    assert removed(forgotten, MONTH)
    assert all(Path(unquote(uri.removeprefix("file://"))).exists() for uri in earlier.file_uris())
    assert files_with(path(forgotten), CITY)


def test_a_table_that_cannot_be_vacuumed_is_told_of_and_stays_due(forgotten: Settings) -> None:
    log = max(path(forgotten).joinpath("_delta_log").glob("*.json"))
    whole = log.read_bytes()
    log.write_bytes(b"{")
    with pytest.raises(LakeError, match=r"bz_people cannot be read .*Fix: "):
        removed(forgotten, MONTH)
    log.write_bytes(whole)
    assert len(removed(forgotten, MONTH)) == 1


def test_a_derived_table_that_cannot_be_vacuumed_keeps_the_erasure_due(forgotten: Settings) -> None:
    lake = Lakehouse(forgotten.lake)
    folder = forgotten.lake / "club_gold" / "members"
    rows = arrow.table({"person_id": arrow.array([1], arrow.int32()), "city": ["Köln"]})
    write_deltalake(str(folder), rows)
    derived.register(lake, people(), "club_gold.members", key=["person_id"], blank=["city"], who="gold")
    aside = folder.rename(folder.with_name("aside"))
    with pytest.raises(LakeError, match=r"there is no table at .*members any more.*Fix: .*withdraw"):
        removed(forgotten, MONTH)
    assert not lake_reader.read(path(forgotten, ERASURE_LOG), "select * from t where event = 'vacuumed'")
    aside.rename(folder)
    # Its owner keeps removed files for longer than when the erasure swept it.
    longer = {"delta.deletedFileRetentionDuration": "interval 40 days"}
    DeltaTable(str(folder)).alter.set_table_properties(longer)
    assert removed(forgotten, MONTH) == []
    assert len(removed(forgotten, dt.timedelta(days=40))) == 1


def test_the_job_removes_what_is_due_every_day(forgotten: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    definitions = build_definitions(forgotten, [people()])
    schedule = definitions.get_schedule_def("remove_erased_schedule")
    assert (schedule.cron_schedule, schedule.job_name) == ("30 3 * * *", "remove_erased")
    assert schedule.default_status is dg.DefaultScheduleStatus.RUNNING
    job = definitions.get_job_def("remove_erased")

    def metadata() -> dict[str, object]:
        result = job.execute_in_process()
        (output,) = (event for event in result.all_events if event.event_type_value == "STEP_OUTPUT")
        return {name: value.value for name, value in output.step_output_data.metadata.items()}

    monkeypatch.setattr(orchestration, "_now", lambda: NOW)
    assert metadata() == {"erasures": 0, "files": 0}
    monkeypatch.setattr(orchestration, "_now", lambda: NOW + MONTH)
    found = metadata()
    assert found["erasures"] == 1
    assert found["files"]
    assert files_with(path(forgotten), CITY) == []


def test_elsewhere_the_schedule_waits_to_be_started(tmp_path: Path) -> None:
    settings = settings_for(
        tmp_path / "home", {"BRONZE_ENV": Environment.DEV.value, "BRONZE_MASTER_KEY": f"file:{tmp_path}/key"}
    )
    definitions = build_definitions(settings, [people()])
    schedule = definitions.get_schedule_def("remove_erased_schedule")
    assert schedule.default_status is dg.DefaultScheduleStatus.STOPPED


def test_the_command_says_what_went(
    forgotten: Settings, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(command_line, "TABLES", [people()])
    for name, value in {"BRONZE_HOME": str(forgotten.home)}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(command_line, "_now", lambda: NOW)
    assert command_line.main(["erase", "--due"]) == 0
    assert "No erasure has come of age." in capsys.readouterr().out
    monkeypatch.setattr(command_line, "_now", lambda: NOW + MONTH)
    assert command_line.main(["erase", "--due", "--by", "dpo"]) == 0
    assert "bz_people: 1 erasures came of age, " in capsys.readouterr().out
    with pytest.raises(SystemExit):
        command_line.main(["erase", "--due", "--customer", "5"])
    assert "--due forgets nobody" in capsys.readouterr().err
