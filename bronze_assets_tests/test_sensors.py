"""What the sensors ask for, tell and hold back: real folders, ledgers and batch logs; no JVM, no PostgreSQL."""

from __future__ import annotations

import contextlib
import datetime as dt
import json
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import dagster as dg
import pyarrow as arrow
import pytest
from deltalake import write_deltalake
from pyspark.sql import types as T

from bronze_assets.audit import LoadRecord
from bronze_assets.batches import BatchLog
from bronze_assets.catalog import TABLES
from bronze_assets.definitions import build_definitions
from bronze_assets.lakehouse import Lakehouse
from bronze_assets.leases import lease
from bronze_assets.orchestration.capture import job_name
from bronze_assets.orchestration.jobs import file_jobs
from bronze_assets.orchestration.runs import PROCESS_TAG
from bronze_assets.orchestration.sensors import files_waiting, tick
from bronze_assets.schema_versions import SchemaVersions
from bronze_assets.settings import CaptureMode, Environment, Settings
from bronze_assets.sources.landing import LandingZone
from bronze_assets.sources.ledger import FileEvent, FileState, Ledger
from bronze_assets.sources.scope import FULL
from bronze_assets.table import BronzeTable, Loaded, Retention

NOON = dt.datetime(2026, 3, 10, 12, tzinfo=dt.UTC)
TODAY, YESTERDAY = "2026-03-10", "2026-03-09"
MINUTE = dt.timedelta(minutes=1)
BY_NAME = {table.name: table for table in TABLES}
SENSORS, LOGS, METRICS = (BY_NAME[name] for name in ("bz_sensor_data", "bz_equipment_logs", "bz_quality_metrics"))
ORDERS, PRODUCTS = BY_NAME["bz_orders"], BY_NAME["bz_products"]
SENSOR_FILES = "raw/sensor-data"
CAPTURED = sorted(t.name for t in TABLES if t.feed is not None and t.feed.captured)
EPOCH = "7000000000000000000/1"


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(
        Environment.LOCAL,
        tmp_path,
        tmp_path / "lake",
        "postgresql://nobody@127.0.0.1:1/DE",
        str(tmp_path / "landing"),
        str(tmp_path / "archive"),
        capture=CaptureMode.BUILTIN,
    )


@pytest.fixture
def instance() -> Iterator[dg.DagsterInstance]:
    with dg.DagsterInstance.ephemeral() as instance:
        yield instance


class Feeds:
    """One schema's feeds: its landing zone as producers see it, its sensor, and what loads leave behind."""

    def __init__(self, schema: str, settings: Settings, instance: dg.DagsterInstance) -> None:
        (self.job,) = [job for job in file_jobs(TABLES, settings) if job.name == f"load_{schema}_files"]
        self.schema = schema
        self.settings = settings
        self.instance = instance
        self.lake = Lakehouse(settings.lake)
        self.cursor: str | None = None
        self.said: list[str] = []

    def drop(self, path: str, content: str = "x", *, written: dt.datetime = NOON - 10 * MINUTE) -> Path:
        """A file as a producer leaves it."""
        file = Path(self.settings.landing) / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(content)
        os.utime(file, (written.timestamp(), written.timestamp()))
        return file

    def look(self, now: dt.datetime = NOON) -> dg.SensorResult:
        """One tick, with the cursor of the one before."""
        self.said.clear()
        result = tick(self.job, self.settings, self.instance, self.cursor, now, self.said.append)
        self.cursor = result.cursor
        return result

    def asked(self, now: dt.datetime = NOON) -> dict[str, list[str]]:
        """Partition → the tables that a tick asks to be loaded."""
        return {str(request.partition_key): names(request) for request in self.look(now).run_requests or []}

    def reason(self, now: dt.datetime = NOON) -> str:
        """Why a tick asks for nothing."""
        result = self.look(now)
        assert not result.run_requests
        assert result.skip_reason is not None
        return str(result.skip_reason.skip_message)

    def told(self, now: dt.datetime = NOON) -> list[str]:
        """The tables that a tick tells to be up to date."""
        return sorted(event.asset_key.path[-1] for event in self.look(now).asset_events)

    def record(self, table: BronzeTable, path: str, event: FileEvent, attempt: int = 1) -> None:
        """What a load writes into the ledger of a file that lies in the landing zone, or did."""
        file = Path(self.settings.landing) / path
        state = file.stat() if file.exists() else None
        size = state.st_size if state else 1
        written = dt.datetime.fromtimestamp(state.st_mtime, dt.UTC) if state else NOON - 10 * MINUTE
        known = FileState(path, event, size, written, TODAY, "hash", f"{TODAY}/1", attempt=attempt)
        Ledger(self.lake, table, lambda: NOON).record([known], event)

    def snapshot(self, *tables: BronzeTable, lsn: int) -> None:
        """A snapshot load of these tables that saw the source at that position."""
        for table in tables:
            write_deltalake(self.lake.location(table.schema, table.name), arrow.table({"x": [1]}), mode="append")
            log = BatchLog(self.lake, table, lambda: NOON, TODAY)
            batch = log.begin(log.next_id(TODAY), TODAY, "a run", FULL, EPOCH)
            position = f"0001/{lsn:016X}/0000000000"
            record = LoadRecord(table.name, table.schema, TODAY, batch.id, "full", NOON, NOON, source_position=position)
            log.note(batch, "done", run_id="a run", record=record)

    def captures(self, confirmed_at: dt.datetime | None, *, start: int = 0x100, epoch: str = EPOCH) -> None:
        """What a capture leaves beside its files."""
        manifest = {
            "slot": "bronze",
            "source_epoch": epoch,
            "start_lsn": f"{start:016X}",
            "watermark": f"{start + 0x1000:016X}",
            "confirmed_at": confirmed_at and confirmed_at.isoformat(),
            "publication": 1,
            "tables": {table.name: {"start_lsn": f"{start:016X}", "member": 1} for table in self.job.tables},
        }
        folder = Path(self.settings.landing) / self.schema / "_capture"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "manifest.json").write_text(json.dumps(manifest))

    def running(self, partition: str, **tags: str) -> dg.DagsterRun:
        """A run of the job that has not ended."""
        definition = build_definitions(self.settings, TABLES).resolve_job_def(self.job.name)
        return self.instance.create_run_for_job(
            definition, tags={"dagster/partition": partition, **tags}, status=dg.DagsterRunStatus.STARTED
        )


def names(request: dg.RunRequest) -> list[str]:
    return sorted(key.path[-1] for key in request.asset_selection or [])


def run_key(result: dg.SensorResult) -> str:
    (request,) = result.run_requests or []
    assert request.run_key
    return request.run_key


def gone() -> str:
    """The identity of a process of this machine that has ended."""
    process = subprocess.Popen([sys.executable, "-c", "pass"])
    process.wait()
    return f"{socket.gethostname()}:{process.pid}:1"


@pytest.fixture
def shop_floor(settings: Settings, instance: dg.DagsterInstance) -> Feeds:
    return Feeds("manufacturing_bronze", settings, instance)


@pytest.fixture
def inventory(settings: Settings, instance: dg.DagsterInstance) -> Feeds:
    """The captured tables, after their first load."""
    feeds = Feeds("inventory_bronze", settings, instance)
    feeds.captures(NOON, start=0x100)
    feeds.snapshot(*feeds.job.tables, lsn=0x200)
    return feeds


def change(feeds: Feeds, table: BronzeTable, day: str = TODAY) -> Path:
    return feeds.drop(f"{table.schema}/{table.name}/{day}/00-01.json")


class TestRequests:
    def test_new_files_are_asked_for_in_one_run_of_the_tables_that_have_some(self, shop_floor: Feeds) -> None:
        shop_floor.drop(f"{SENSOR_FILES}/a.csv")
        shop_floor.drop(f"{SENSOR_FILES}/b.json")
        shop_floor.drop("raw/quality-metrics/a.parquet")
        (request,) = shop_floor.look().run_requests or []
        assert request.partition_key == TODAY
        assert names(request) == ["bz_quality_metrics", "bz_sensor_data"]
        assert request.tags["bronze/trigger"] == "sensor"
        assert request.tags["bronze/source"] == "Manufacturing_Files"

    def test_day_folders_are_partitions_of_their_own(self, shop_floor: Feeds) -> None:
        shop_floor.drop(f"{SENSOR_FILES}/a.csv")
        shop_floor.drop(f"{SENSOR_FILES}/2026-02-01/a.csv")
        shop_floor.drop("raw/equipment-logs/2026-02-01/a.json")
        assert shop_floor.asked() == {
            "2026-02-01": ["bz_equipment_logs", "bz_sensor_data"],
            TODAY: ["bz_sensor_data"],
        }

    def test_the_same_tick_again_has_the_same_run_key(self, shop_floor: Feeds) -> None:
        shop_floor.drop(f"{SENSOR_FILES}/a.csv")
        first = run_key(shop_floor.look())
        assert run_key(shop_floor.look()) == first
        assert run_key(shop_floor.look(NOON + MINUTE)) == first
        shop_floor.cursor = None
        assert run_key(shop_floor.look()) == first, "also after somebody reset the cursor"

    def test_the_run_key_is_another_for_other_files(self, shop_floor: Feeds) -> None:
        shop_floor.drop(f"{SENSOR_FILES}/a.csv")
        keys = [run_key(shop_floor.look())]
        shop_floor.drop(f"{SENSOR_FILES}/b.csv")
        keys.append(run_key(shop_floor.look()))
        shop_floor.drop(f"{SENSOR_FILES}/b.csv", "longer")
        keys.append(run_key(shop_floor.look()))
        shop_floor.drop(f"{SENSOR_FILES}/b.csv", "LONGER", written=NOON - 9 * MINUTE)
        keys.append(run_key(shop_floor.look()))
        assert len(set(keys)) == 4

    def test_the_run_key_is_another_for_another_attempt(self, shop_floor: Feeds) -> None:
        shop_floor.drop(f"{SENSOR_FILES}/a.csv")
        first = run_key(shop_floor.look())
        shop_floor.record(SENSORS, f"{SENSOR_FILES}/a.csv", FileEvent.FAILED, attempt=1)
        second = run_key(shop_floor.look())
        shop_floor.record(SENSORS, f"{SENSOR_FILES}/a.csv", FileEvent.FAILED, attempt=2)
        assert len({first, second, run_key(shop_floor.look())}) == 3

    def test_what_a_run_did_not_load_is_asked_for_again_later(self, shop_floor: Feeds) -> None:
        shop_floor.drop(f"{SENSOR_FILES}/a.csv")
        first = run_key(shop_floor.look())
        assert run_key(shop_floor.look(NOON + 5 * MINUTE)) != first

    def test_loaded_files_are_not_asked_for_and_overwritten_ones_are(self, shop_floor: Feeds) -> None:
        for path, event in {"a": FileEvent.ARCHIVED, "b": FileEvent.QUARANTINED, "c": FileEvent.IGNORED}.items():
            shop_floor.drop(f"{SENSOR_FILES}/{path}.csv")
            shop_floor.record(SENSORS, f"{SENSOR_FILES}/{path}.csv", event)
        assert shop_floor.reason() == "No new files."
        shop_floor.drop(f"{SENSOR_FILES}/b.csv", "mended")
        assert shop_floor.asked() == {TODAY: ["bz_sensor_data"]}

    @pytest.mark.parametrize(
        ("loaded", "days", "asks"),
        [(Loaded.DELETE, 29, False), (Loaded.DELETE, 30, True), (Loaded.ARCHIVE, 0, True), (Loaded.LEAVE, 365, False)],
    )
    def test_loaded_files_are_asked_for_when_it_is_time_for_them_to_leave(
        self, shop_floor: Feeds, loaded: Loaded, days: int, asks: bool
    ) -> None:
        assert SENSORS.files is not None
        table = replace(SENSORS, files=replace(SENSORS.files, loaded=loaded), retention=Retention())
        shop_floor.job = replace(shop_floor.job, tables=(table,))
        shop_floor.drop(f"{SENSOR_FILES}/a.csv")
        shop_floor.record(table, f"{SENSOR_FILES}/a.csv", FileEvent.LOADED)
        assert shop_floor.asked(NOON + dt.timedelta(days=days)) == ({TODAY: ["bz_sensor_data"]} if asks else {})

    def test_one_tick_asks_for_few_partitions_and_later_ones_for_the_rest(self, shop_floor: Feeds) -> None:
        days = [f"2026-02-{day:02}" for day in range(1, 8)]
        for day in days:
            shop_floor.drop(f"{SENSOR_FILES}/{day}/a.csv")
        assert list(shop_floor.asked()) == days[:5]
        assert "2026-02-07 waits for a later tick, with 1 file." in shop_floor.said
        for day in days[:5]:
            shop_floor.record(SENSORS, f"{SENSOR_FILES}/{day}/a.csv", FileEvent.QUARANTINED)
        assert list(shop_floor.asked()) == days[5:]

    def test_a_request_is_one_that_dagster_takes(self, shop_floor: Feeds) -> None:
        """Through the sensor as Dagster evaluates it: partition, selection and job must fit."""
        today = dt.datetime.now(dt.UTC)
        shop_floor.drop(f"{SENSOR_FILES}/a.csv", written=today - MINUTE)
        definitions = build_definitions(shop_floor.settings, TABLES)
        context = dg.build_sensor_context(instance=shop_floor.instance, repository_def=definitions.get_repository_def())
        data = definitions.resolve_sensor_def("manufacturing_bronze_files_sensor").evaluate_tick(context)
        (request,) = data.run_requests or []
        assert request.partition_key in (f"{today:%Y-%m-%d}", f"{dt.datetime.now(dt.UTC):%Y-%m-%d}")
        assert names(request) == ["bz_sensor_data"]


class TestWaiting:
    def test_nothing_at_all_says_so(self, shop_floor: Feeds) -> None:
        assert shop_floor.reason() == "No new files."

    def test_a_partition_that_a_run_is_loading_waits_and_others_do_not(self, shop_floor: Feeds) -> None:
        shop_floor.drop(f"{SENSOR_FILES}/a.csv")
        run = shop_floor.running(TODAY)
        assert shop_floor.reason() == f"Run {run.run_id} is loading {TODAY}; waiting: 1 file."
        shop_floor.drop(f"{SENSOR_FILES}/{YESTERDAY}/a.csv")
        assert shop_floor.asked() == {YESTERDAY: ["bz_sensor_data"]}
        assert any(run.run_id in line for line in shop_floor.said)

    def test_a_run_whose_process_is_gone_is_closed_and_holds_nothing_back(self, shop_floor: Feeds) -> None:
        shop_floor.drop(f"{SENSOR_FILES}/a.csv")
        run = shop_floor.running(TODAY, **{PROCESS_TAG: gone()})
        assert shop_floor.asked() == {TODAY: ["bz_sensor_data"]}
        closed = shop_floor.instance.get_run_by_id(run.run_id)
        assert closed is not None
        assert closed.status is dg.DagsterRunStatus.FAILURE

    def test_a_file_that_may_still_be_written_waits(self, shop_floor: Feeds) -> None:
        shop_floor.drop(f"{SENSOR_FILES}/a.csv", written=NOON - dt.timedelta(seconds=4))
        assert shop_floor.reason() == f"'{SENSOR_FILES}/a.csv' is younger than 5 s."
        assert shop_floor.asked(NOON + dt.timedelta(seconds=1)) == {TODAY: ["bz_sensor_data"]}

    def test_a_file_of_a_clock_that_goes_ahead_does_not_wait_for_ever(self, shop_floor: Feeds) -> None:
        shop_floor.drop(f"{SENSOR_FILES}/a.csv", written=NOON + 120 * MINUTE)
        assert shop_floor.asked() == {TODAY: ["bz_sensor_data"]}

    @pytest.mark.parametrize(
        ("day", "why"),
        [
            ("2025-12-31", "2025-12-31 lies before the first partition, 2026-01-01; it holds 1 file."),
            ("2026-03-11", "2026-03-11 lies in the future; it holds 1 file."),
        ],
    )
    def test_a_day_that_is_no_partition_is_named(self, day: str, why: str, shop_floor: Feeds) -> None:
        shop_floor.drop(f"{SENSOR_FILES}/{day}/a.csv")
        assert shop_floor.reason() == why
        shop_floor.drop(f"{SENSOR_FILES}/a.csv")
        assert shop_floor.asked() == {TODAY: ["bz_sensor_data"]}
        assert shop_floor.said == [why]

    def test_a_table_waits_until_its_new_columns_are_accepted_and_the_others_go_on(self, shop_floor: Feeds) -> None:
        shop_floor.drop(f"{SENSOR_FILES}/a.csv")
        shop_floor.drop("raw/equipment-logs/a.json")
        versions = SchemaVersions(shop_floor.lake, SENSORS, lambda: NOON)
        versions.record("proposed", {"vibration": T.StringType()}, batch_id=None, actor="a run")
        assert shop_floor.asked() == {TODAY: ["bz_equipment_logs"]}
        (line,) = shop_floor.said
        assert line == "bz_sensor_data waits until somebody accepts 'vibration', and with it 1 file."
        versions.accept("somebody")
        assert shop_floor.asked() == {TODAY: ["bz_equipment_logs", "bz_sensor_data"]}

    def test_a_file_that_failed_three_times_is_left_to_a_person(self, shop_floor: Feeds) -> None:
        shop_floor.drop(f"{SENSOR_FILES}/a.csv")
        shop_floor.record(SENSORS, f"{SENSOR_FILES}/a.csv", FileEvent.FAILED, attempt=2)
        assert shop_floor.asked() == {TODAY: ["bz_sensor_data"]}
        shop_floor.record(SENSORS, f"{SENSOR_FILES}/a.csv", FileEvent.FAILED, attempt=3)
        assert shop_floor.reason() == f"'{SENSOR_FILES}/a.csv' failed 3 times; load its partition by hand."

    def test_many_reasons_are_cut_short(self, shop_floor: Feeds) -> None:
        for number in range(50):
            shop_floor.drop(f"{SENSOR_FILES}/{number}.csv", written=NOON)
        reason = shop_floor.reason()
        assert reason.count("is younger than") == 5
        assert reason.endswith("And 45 more.")

    def test_a_landing_zone_that_cannot_be_listed_is_named_with_a_fix(
        self, settings: Settings, instance: dg.DagsterInstance
    ) -> None:
        (Path(settings.landing) / "raw").mkdir(parents=True)
        (Path(settings.landing) / SENSOR_FILES).write_text("not a folder")
        definition = build_definitions(settings, TABLES).resolve_sensor_def("manufacturing_bronze_files_sensor")
        data = definition.evaluate_tick(dg.build_sensor_context(instance=instance))
        assert f"{SENSOR_FILES} of the landing zone cannot be listed" in (data.skip_message or "")
        assert "Fix: " in (data.skip_message or "")


class TestFirstSighting:
    def test_in_a_flat_prefix_the_day_of_the_first_tick_is_the_partition(self, shop_floor: Feeds) -> None:
        late = dt.datetime(2026, 3, 9, 23, 59, 57, tzinfo=dt.UTC)
        shop_floor.drop(f"{SENSOR_FILES}/a.csv", written=late - dt.timedelta(seconds=1))
        assert "younger" in shop_floor.reason(late)
        assert shop_floor.asked(late + MINUTE) == {YESTERDAY: ["bz_sensor_data"]}
        assert files_waiting([SENSORS], shop_floor.settings, late + MINUTE, late + MINUTE) == {
            YESTERDAY: ["bz_sensor_data"]
        }

    def test_a_run_that_began_before_midnight_takes_what_arrives_after_it(self, shop_floor: Feeds) -> None:
        late = dt.datetime(2026, 3, 9, 23, 59, 57, tzinfo=dt.UTC)
        shop_floor.drop(f"{SENSOR_FILES}/a.csv", written=late)
        waiting = files_waiting([SENSORS], shop_floor.settings, late + MINUTE, late)
        assert waiting == {YESTERDAY: ["bz_sensor_data"]}

    def test_it_is_told_to_the_ledger_once(self, shop_floor: Feeds) -> None:
        shop_floor.drop(f"{SENSOR_FILES}/a.csv")
        for _ in range(3):
            shop_floor.look()
        version = shop_floor.lake.control_version("manufacturing_bronze", "bz_file_ledger")
        shop_floor.look()
        assert shop_floor.lake.control_version("manufacturing_bronze", "bz_file_ledger") == version
        state = Ledger(shop_floor.lake, SENSORS, lambda: NOON).files[f"{SENSOR_FILES}/a.csv"]
        assert (state.event, state.partition) == (FileEvent.SEEN, TODAY)

    def test_it_disturbs_no_load_that_is_at_work(self, shop_floor: Feeds) -> None:
        """The sensor ticks between a load's reading of the ledger and its writing, and before its next writing."""
        shop_floor.drop(f"{SENSOR_FILES}/a.csv")
        at_work = Ledger(shop_floor.lake, SENSORS, lambda: NOON)
        shop_floor.look()
        path = f"{SENSOR_FILES}/a.csv"
        claimed = FileState(path, FileEvent.CLAIMED, 1, NOON - 10 * MINUTE, TODAY, "hash", f"{TODAY}/1", attempt=1)
        at_work.record([claimed], FileEvent.CLAIMED)
        shop_floor.drop(f"{SENSOR_FILES}/b.csv")
        shop_floor.look()
        at_work.record([claimed], FileEvent.LOADED)
        now = Ledger(shop_floor.lake, SENSORS, lambda: NOON).files
        assert {name: state.event for name, state in now.items()} == {
            path: FileEvent.LOADED,
            f"{SENSOR_FILES}/b.csv": FileEvent.SEEN,
        }

    def test_a_late_sighting_does_not_hide_that_a_load_has_claimed_the_file(self, shop_floor: Feeds) -> None:
        shop_floor.drop(f"{SENSOR_FILES}/a.csv")
        late = Ledger(shop_floor.lake, SENSORS, lambda: NOON)
        shop_floor.record(SENSORS, f"{SENSOR_FILES}/a.csv", FileEvent.CLAIMED)
        seen = FileState(f"{SENSOR_FILES}/a.csv", FileEvent.SEEN, 1, NOON, YESTERDAY)
        late.record([seen], FileEvent.SEEN)
        state = Ledger(shop_floor.lake, SENSORS, lambda: NOON).files[f"{SENSOR_FILES}/a.csv"]
        assert (state.event, state.partition) == (FileEvent.CLAIMED, TODAY)


class TestKilledLoads:
    @pytest.mark.parametrize("event", [FileEvent.CLAIMED, FileEvent.LOADED])
    def test_what_a_killed_load_left_is_asked_for_without_a_new_file(self, event: FileEvent, shop_floor: Feeds) -> None:
        shop_floor.drop(f"{SENSOR_FILES}/a.csv")
        shop_floor.record(SENSORS, f"{SENSOR_FILES}/a.csv", event)
        assert shop_floor.asked() == {TODAY: ["bz_sensor_data"]}
        shop_floor.record(SENSORS, f"{SENSOR_FILES}/a.csv", FileEvent.ARCHIVED)
        assert shop_floor.reason() == "No new files."

    def test_a_load_that_is_at_work_is_not_disturbed(self, shop_floor: Feeds) -> None:
        """One that somebody started by hand: it is no run of the sensor's job."""
        shop_floor.drop(f"{SENSOR_FILES}/a.csv")
        shop_floor.record(SENSORS, f"{SENSOR_FILES}/a.csv", FileEvent.CLAIMED)
        shop_floor.drop(f"{SENSOR_FILES}/b.csv")
        shop_floor.drop("raw/equipment-logs/a.json")
        with lease(shop_floor.lake, SENSORS.schema, SENSORS.name, "by-hand", 60):
            assert [*shop_floor.asked().values()] == [["bz_equipment_logs"]]
            assert shop_floor.said == ["Run by-hand is loading bz_sensor_data; waiting: 1 file."]
        assert [*shop_floor.asked().values()] == [["bz_equipment_logs", "bz_sensor_data"]]

    def test_a_load_at_work_with_all_that_is_there_leaves_nothing_waiting(self, shop_floor: Feeds) -> None:
        shop_floor.drop(f"{SENSOR_FILES}/a.csv")
        shop_floor.record(SENSORS, f"{SENSOR_FILES}/a.csv", FileEvent.CLAIMED)
        with lease(shop_floor.lake, SENSORS.schema, SENSORS.name, "by-hand", 60):
            assert shop_floor.reason() == "Run by-hand is loading bz_sensor_data."


class TestCapturedTables:
    def test_changes_are_asked_for_as_any_files(self, inventory: Feeds) -> None:
        change(inventory, ORDERS)
        (request,) = inventory.look().run_requests or []
        assert (request.partition_key, names(request)) == (TODAY, ["bz_orders"])
        assert request.tags["bronze/source"] == "PostgreSQL_DE"

    def test_quiet_tables_are_told_to_be_up_to_date_while_the_capture_lives(self, inventory: Feeds) -> None:
        events = inventory.look().asset_events
        assert sorted(event.asset_key.path[-1] for event in events) == CAPTURED
        for event in events:
            assert isinstance(event, dg.AssetMaterialization)
            assert event.partition == TODAY
            assert event.metadata["rows"].value == 0
            assert event.metadata["confirmed_at"].value == NOON.timestamp()

    def test_they_are_told_at_most_every_ten_minutes(self, inventory: Feeds) -> None:
        def told(minutes: float) -> list[str]:
            now = NOON + minutes * MINUTE
            inventory.captures(now)
            return inventory.told(now)

        assert told(0) == CAPTURED
        assert told(0.2) == told(9.9) == []
        assert told(10) == CAPTURED
        assert told(19.9) == []

    def test_why_nothing_is_told_in_between_is_said(self, inventory: Feeds) -> None:
        inventory.look()
        assert inventory.reason() == "No new files; the capture is alive."

    def test_a_table_with_changes_does_not_keep_the_quiet_ones_from_being_told(self, inventory: Feeds) -> None:
        change(inventory, ORDERS)
        result = inventory.look()
        assert [names(request) for request in result.run_requests or []] == [["bz_orders"]]
        quiet = [name for name in CAPTURED if name != "bz_orders"]
        assert sorted(event.asset_key.path[-1] for event in result.asset_events) == quiet

    @pytest.mark.parametrize(
        ("confirmed_at", "why"),
        [
            (NOON - 2 * MINUTE, "The capture is not alive: last heard of 2026-03-10 11:58:00 UTC."),
            (None, "The capture is not alive: it has never confirmed its position."),
        ],
    )
    def test_a_dead_capture_tells_nothing_and_the_reason_says_so(
        self, confirmed_at: dt.datetime | None, why: str, inventory: Feeds
    ) -> None:
        inventory.captures(confirmed_at)
        assert inventory.told() == []
        assert inventory.reason() == why

    def test_without_a_manifest_nothing_is_told_either(self, inventory: Feeds) -> None:
        (Path(inventory.settings.landing) / "inventory_bronze" / "_capture" / "manifest.json").unlink()
        assert inventory.told() == []
        assert inventory.reason() == "The capture is not alive: it has never confirmed its position."

    def test_changes_that_wait_for_whatever_reason_are_not_up_to_date(self, inventory: Feeds) -> None:
        """A busy partition, a file that failed for good, a table that waits for a person, a load at work."""
        shipments, returns = BY_NAME["bz_shipments"], BY_NAME["bz_returns"]
        change(inventory, ORDERS, YESTERDAY)
        inventory.running(YESTERDAY)
        inventory.record(
            PRODUCTS, str(change(inventory, PRODUCTS).relative_to(inventory.settings.landing)), FileEvent.FAILED, 3
        )
        change(inventory, shipments)
        SchemaVersions(inventory.lake, shipments, lambda: NOON).record(
            "proposed", {"colour": T.StringType()}, batch_id=None, actor="a run"
        )
        change(inventory, returns)
        with lease(inventory.lake, returns.schema, returns.name, "by-hand", 60):
            behind = {"bz_orders", "bz_products", "bz_shipments", "bz_returns"}
            assert inventory.told() == [name for name in CAPTURED if name not in behind]

    def test_a_table_that_was_never_loaded_is_asked_for_and_not_told(
        self, settings: Settings, instance: dg.DagsterInstance
    ) -> None:
        feeds = Feeds("inventory_bronze", settings, instance)
        feeds.captures(NOON)
        feeds.snapshot(*(table for table in feeds.job.tables if table is not ORDERS), lsn=0x200)
        result = feeds.look()
        assert [(r.partition_key, names(r)) for r in result.run_requests or []] == [(TODAY, ["bz_orders"])]
        assert "bz_orders" not in [event.asset_key.path[-1] for event in result.asset_events]

    def test_a_capture_that_began_anew_is_met_by_snapshots_without_any_file(self, inventory: Feeds) -> None:
        assert not inventory.look().run_requests
        inventory.captures(NOON, start=0x300)
        first = run_key(inventory.look())
        assert inventory.asked() == {TODAY: CAPTURED}
        assert inventory.told() == []
        assert run_key(inventory.look()) == first
        file = change(inventory, ORDERS)
        with lease(inventory.lake, ORDERS.schema, ORDERS.name, "by-hand", 60):
            inventory.look()
            assert inventory.said == ["Run by-hand is loading bz_orders; waiting: 1 file and a snapshot."]
        file.unlink()
        assert run_key(inventory.look(NOON + 5 * MINUTE)) != first
        inventory.snapshot(*inventory.job.tables, lsn=0x300)
        assert inventory.asked() == {}

    def test_tables_that_lack_their_snapshot_one_after_the_other_have_run_keys_of_their_own(
        self, inventory: Feeds
    ) -> None:
        inventory.captures(NOON, start=0x300)
        inventory.snapshot(*(table for table in inventory.job.tables if table is not ORDERS), lsn=0x300)
        first = run_key(inventory.look())
        inventory.snapshot(ORDERS, lsn=0x300)
        inventory.captures(NOON, start=0x400)
        inventory.snapshot(*(table for table in inventory.job.tables if table is not PRODUCTS), lsn=0x400)
        assert run_key(inventory.look()) != first

    def test_a_source_that_is_another_server_is_met_by_snapshots(self, inventory: Feeds) -> None:
        inventory.look()
        inventory.captures(NOON, start=0x100, epoch="7111111111111111111/1")
        assert inventory.asked() == {TODAY: CAPTURED}

    def test_a_lake_that_was_removed_is_loaded_anew_whatever_the_cursor_remembers(self, inventory: Feeds) -> None:
        inventory.look()
        with contextlib.suppress(FileNotFoundError):
            inventory.settings.lake.rename(inventory.settings.home / "elsewhere")
        assert inventory.asked() == {TODAY: CAPTURED}

    def test_what_comes_from_a_connector_is_loaded_but_never_told_without_changes(
        self, settings: Settings, instance: dg.DagsterInstance
    ) -> None:
        feeds = Feeds("inventory_bronze", replace(settings, capture=CaptureMode.EXTERNAL), instance)
        feeds.snapshot(*feeds.job.tables, lsn=0x200)
        assert feeds.reason() == "No new files."
        change(feeds, ORDERS)
        assert feeds.asked() == {TODAY: ["bz_orders"]}


class TestKeepingTheCaptureAlive:
    @pytest.fixture
    def kept(self, tmp_path: Path) -> Iterator[dg.DagsterInstance]:
        with dg.DagsterInstance.local_temp(str(tmp_path)) as instance:
            yield instance

    def look(self, settings: Settings, instance: dg.DagsterInstance) -> tuple[int, str]:
        """How many runs a tick asks for, and why not."""
        definition = build_definitions(settings, TABLES).resolve_sensor_def("capture_inventory_bronze_sensor")
        data = definition.evaluate_tick(dg.build_sensor_context(instance=instance))
        return len(data.run_requests or []), data.skip_message or ""

    def run(
        self,
        settings: Settings,
        instance: dg.DagsterInstance,
        *events: dg.DagsterEventType,
        seconds: float = 0,
        process: str | None = None,
    ) -> dg.DagsterRun:
        """A run with these events, so many seconds apart."""
        definition = build_definitions(settings, TABLES).resolve_job_def(job_name("inventory_bronze"))
        run = instance.create_run_for_job(definition, tags={PROCESS_TAG: process} if process else {})
        for number, event in enumerate(events, start=1):
            moment = time.time() - (len(events) - number) * seconds
            instance.report_dagster_event(dg.DagsterEvent(event.value, run.job_name), run.run_id, timestamp=moment)
        return run

    def test_one_run_at_a_time(self, settings: Settings, kept: dg.DagsterInstance) -> None:
        assert self.look(settings, kept) == (1, "")
        run = self.run(settings, kept, dg.DagsterEventType.RUN_START)
        assert self.look(settings, kept) == (0, f"Run {run.run_id} captures.")
        kept.report_dagster_event(dg.DagsterEvent("PIPELINE_SUCCESS", run.job_name), run.run_id)
        assert self.look(settings, kept) == (1, "")

    def test_without_a_source_no_run_is_started_for_nothing(self, settings: Settings, kept: dg.DagsterInstance) -> None:
        count, why = self.look(replace(settings, source_url=f"file:{settings.home}/postgres/source_url"), kept)
        assert count == 0
        assert re.search(r"BRONZE_SOURCE_URL points to .*postgres/source_url, which cannot be read.*make demo", why)

    def test_a_killed_run_is_closed_and_followed_at_once(self, settings: Settings, kept: dg.DagsterInstance) -> None:
        run = self.run(settings, kept, dg.DagsterEventType.RUN_START, process=gone())
        assert self.look(settings, kept) == (1, "")
        closed = kept.get_run_by_id(run.run_id)
        assert closed is not None
        assert closed.status is dg.DagsterRunStatus.FAILURE

    def test_runs_that_fail_at_once_are_followed_ever_later(self, settings: Settings, kept: dg.DagsterInstance) -> None:
        ends = dg.DagsterEventType.RUN_START, dg.DagsterEventType.RUN_FAILURE
        self.run(settings, kept, *ends)
        assert self.look(settings, kept) == (1, "")
        pauses = []
        for _ in range(7):
            run = self.run(settings, kept, *ends)
            count, why = self.look(settings, kept)
            assert count == 0
            assert run.run_id in why
            moment = dt.datetime.fromisoformat(why.split(" at ")[-1].removesuffix(" UTC.")).replace(tzinfo=dt.UTC)
            pauses.append((moment - dt.datetime.now(dt.UTC)).total_seconds())
        for pause, expected in zip(pauses, (30, 60, 120, 240, 480, 600, 600), strict=True):
            assert expected - 20 < pause <= expected
        self.run(settings, kept, dg.DagsterEventType.RUN_START, dg.DagsterEventType.RUN_SUCCESS)
        self.run(settings, kept, *ends)
        assert self.look(settings, kept) == (1, ""), "after one that ended well"
        self.run(settings, kept, *ends)
        assert self.look(settings, kept)[0] == 0
        self.run(settings, kept, *ends, seconds=120)
        assert self.look(settings, kept) == (1, ""), "after one that had captured for a while"


@pytest.mark.slow
def test_a_tick_over_a_hundred_thousand_loaded_files_reads_none_of_them(
    shop_floor: Feeds, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = Path(shop_floor.settings.landing) / SENSOR_FILES
    folder.mkdir(parents=True)
    paths = [f"{SENSOR_FILES}/{number:06}.json" for number in range(100_000)]
    for path in paths:
        (folder / path.rsplit("/", 1)[-1]).touch()
    states = []
    for path in paths:
        state = (Path(shop_floor.settings.landing) / path).stat()
        written = dt.datetime.fromtimestamp(state.st_mtime, dt.UTC)
        states.append(FileState(path, FileEvent.QUARANTINED, 0, written, TODAY, "hash", f"{TODAY}/1", attempt=1))
    ledger = Ledger(shop_floor.lake, SENSORS, lambda: NOON)
    ledger.record(states, FileEvent.CLAIMED)
    ledger.record(states, FileEvent.QUARANTINED)

    monkeypatch.setattr(LandingZone, "open", None)
    now = dt.datetime.now(dt.UTC) + MINUTE
    began = time.monotonic()
    assert shop_floor.reason(now) == "No new files."
    with capsys.disabled():
        print(f"\na tick over 100,000 loaded files: {time.monotonic() - began:.2f} s")
    shop_floor.drop(f"{SENSOR_FILES}/new.json", written=now - MINUTE / 2)
    assert [*shop_floor.asked(now).values()] == [["bz_sensor_data"]]
