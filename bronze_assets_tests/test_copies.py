"""Copies and archive of a lake's tables, restores from there and drills, read by `deltalake` and Spark."""

from __future__ import annotations

import datetime as dt
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import dagster as dg
import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from deltalake import DeltaTable, QueryBuilder, write_deltalake
from deltalake.exceptions import DeltaError
from moto.server import ThreadedMotoServer
from sqlglot import exp, parse_one

from bronze_assets.access import COPY_LOG, RESTORE_DRILLS, SUBJECT_KEYS, TOKEN_VAULT, TOMBSTONES
from bronze_assets.audit import LoadRecord
from bronze_assets.definitions import build_definitions
from bronze_assets.errors import CopyFailed, LakeError, SettingsError
from bronze_assets.lakehouse import Lakehouse
from bronze_assets.load import load
from bronze_assets.operations import drills, intact
from bronze_assets.operations.clones import Clones, clone
from bronze_assets.operations.copies import Copies, Kind
from bronze_assets.operations.delta_log import Folder
from bronze_assets.settings import Settings
from bronze_assets.storage import TableSize
from bronze_assets.workbench import Run, Workbench
from bronze_assets_tests import lake_reader
from bronze_assets_tests.conftest import settings_for
from bronze_assets_tests.people import NAME, NOW, SCHEMA, Keys, drop, erased, loaded, path, people, person

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

DAY = dt.timedelta(days=1)
QUARANTINE = f"{NAME}_quarantine"
CITY = "Castrop-Rauxel"


class Home:
    """A lake with a table of people that `deltalake` writes, and its copy; the clock is ours."""

    def __init__(self, folder: Path, target: str | None = None) -> None:
        self.root = folder / "lake"
        self.lake = Lakehouse(self.root)
        self.table = folder / "lake" / SCHEMA / NAME
        self.target = target or str(folder / "copy of it")
        self.copied = Path(self.target) / SCHEMA / NAME
        self.now = NOW

    def append(self, *numbers: int) -> None:
        """A commit of a file."""
        rows = [person(one) | {"record_status": "ACTIVE"} for one in numbers]
        write_deltalake(str(self.table), pa.Table.from_pylist(rows), mode="append", partition_by=["city"])

    def copies(self, kind: Kind = Kind.COPY, **told: Any) -> Copies:
        return Copies(self.lake, [people()], kind, self.target, lambda: self.now, **told)

    def copy(self, **told: Any) -> Any:
        (one,) = self.copies(**told).copy([NAME])
        return one


@pytest.fixture
def lake_home(tmp_path: Path) -> Home:
    return Home(tmp_path / "a home ü")


def data(folder: Path) -> dict[str, int]:
    """Parquet files of a table, with their sizes."""
    return {name: size for name, size in lake_reader.listing(folder).items() if not name.startswith("_")}


def rows(folder: Path, version: int) -> list[int]:
    """Who is in a version of a Delta table."""
    answer = QueryBuilder().register("t", DeltaTable(str(folder), version=version)).execute("select * from t")
    return sorted(pa.table(answer.read_all())["person_id"].to_pylist())


def ids(folder: Path) -> list[int]:
    return sorted(one for (one,) in lake_reader.tuples(folder, "person_id"))


def test_a_second_copy_brings_the_new_files_alone(lake_home: Home) -> None:
    lake_home.append(1, 2)
    lake_home.append(3)
    first = lake_home.copy()
    assert data(lake_home.copied) == data(lake_home.table)
    assert (first.files, first.bytes, first.rows) == (2, sum(data(lake_home.table).values()), 3)
    before = {name: (lake_home.copied / name).stat() for name in data(lake_home.copied)}

    lake_home.append(4)
    (new,) = data(lake_home.table).keys() - before.keys()
    second = lake_home.copy()
    assert (second.files, second.bytes, second.rows) == (1, data(lake_home.table)[new], 4)
    assert (second.source_version, second.target_version) == (2, 1)
    for name, was in before.items():
        assert (lake_home.copied / name).stat().st_ino == was.st_ino, "a file that was there is not written again"
    assert ids(lake_home.copied) == [1, 2, 3, 4]
    assert rows(lake_home.copied, 0) == [1, 2, 3]
    for name in data(lake_home.table):
        assert (lake_home.copied / name).read_bytes() == (lake_home.table / name).read_bytes()

    third = lake_home.copy()
    assert (third.files, third.bytes, third.target_version) == (0, 0, 1)
    told = lake_reader.read(lake_home.root / SCHEMA / COPY_LOG, "select * from t order by seconds")
    assert sorted((one["source_version"], one["files"], one["verified"]) for one in told) == [
        (1, 2, True),
        (2, 0, True),
        (2, 1, True),
    ]


def test_a_killed_copy_is_finished_and_equals_an_undisturbed_one(lake_home: Home, tmp_path: Path) -> None:
    for number in range(12):
        lake_home.append(number)
    told = [str(lake_home.root), lake_home.target, "3"]
    ended = subprocess.run([sys.executable, "-m", "bronze_assets_tests.killed_copy", *told], check=False)
    assert ended.returncode == -9
    there = {name for name in data(lake_home.copied) if name.endswith(".parquet")}
    assert 3 <= len(there) < 12
    assert not DeltaTable.is_deltatable(str(lake_home.copied)), "no reader takes it for whole"
    # As if it had been killed while it wrote a file on a storage that shows half-written ones.
    half = sorted(there)[0]
    (lake_home.copied / half).write_bytes(b"PAR1")

    done = lake_home.copy()
    assert done.files == 12 - len(there) + 1
    undisturbed = Home(tmp_path, str(tmp_path / "undisturbed"))
    undisturbed.lake, undisturbed.table = lake_home.lake, lake_home.table
    assert undisturbed.copy().content == done.content
    assert data(lake_home.copied) == data(undisturbed.copied)
    assert ids(lake_home.copied) == ids(undisturbed.copied) == list(range(12))


def test_a_file_of_the_right_size_and_other_bytes_is_not_taken(lake_home: Home) -> None:
    lake_home.append(1)
    (name,) = data(lake_home.table)
    fake = lake_home.copied / name
    fake.parent.mkdir(parents=True)
    fake.write_bytes(bytes(data(lake_home.table)[name]))
    assert lake_home.copy().files == 1
    assert fake.read_bytes() == (lake_home.table / name).read_bytes()


def started(monkeypatch: pytest.MonkeyPatch) -> ThreadedMotoServer:
    """A server that speaks S3, the only one that this process knows; moto's buckets outlive it."""
    server = ThreadedMotoServer("127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
    fsspec.filesystem("s3").clear_instance_cache()
    return server


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[ThreadedMotoServer]:
    for name, value in {
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_MAX_ATTEMPTS": "1",
        "AWS_ALLOW_HTTP": "true",
    }.items():
        monkeypatch.setenv(name, value)
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    server = started(monkeypatch)
    fsspec.filesystem("s3").mkdir("far")
    yield server
    fsspec.filesystem("s3").clear_instance_cache()


def test_a_target_that_goes_in_the_middle_is_named_and_nothing_is_broken(
    server: ThreadedMotoServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = Home(tmp_path, "s3://far/copies")
    home.append(1)
    home.copy()
    for number in range(2, 12):
        home.append(number)
    before = lake_reader.listing(home.table)

    def say(line: str) -> None:
        if line.startswith(f"{NAME}: 2 of"):
            server.stop()

    with pytest.raises(CopyFailed, match=r"bz_people: .*copy at s3://far/copies cannot be reached .*Fix: ") as failed:
        home.copy(say=say)
    assert failed.value.table == NAME
    assert lake_reader.listing(home.table) == before
    (told,) = lake_reader.read(tmp_path / "lake" / SCHEMA / COPY_LOG, "select * from t where error is not null")
    assert (told["verified"], told["table_name"]) == (False, NAME)

    again = started(monkeypatch)
    try:
        fs = fsspec.filesystem("s3")
        log = fs.ls(f"far/copies/{SCHEMA}/{NAME}/_delta_log")
        assert len(log) == 1, "the version of before is the current one"
        there = [one for one in fs.find(f"far/copies/{SCHEMA}/{NAME}") if one.endswith(".parquet")]
        done = home.copy()
        assert 0 < done.files <= 11 - len(there)
        # Not read where it lies: `deltalake` holds the lock that the server, in this process, needs to answer.
        fs.get(f"far/copies/{SCHEMA}/{NAME}", str(tmp_path / "fetched"), recursive=True)
        assert ids(tmp_path / "fetched") == list(range(1, 12))
        restored = home.copies().restore(NAME)
        assert (restored.into, ids(home.table.with_name(restored.into))) == (f"{NAME}_recovered", list(range(1, 12)))
        fs.rm("far", recursive=True)
    finally:
        again.stop()


def test_a_damaged_file_is_found_by_verify_and_mended_by_the_next_copy(lake_home: Home) -> None:
    lake_home.append(1)
    lake_home.append(2)
    lake_home.copy()
    copies = lake_home.copies()
    assert copies.verify(NAME).passed
    name = sorted(data(lake_home.copied))[0]
    whole = (lake_home.copied / name).read_bytes()
    (lake_home.copied / name).write_bytes(whole[:-9] + b"x" + whole[-8:])
    with pytest.raises(CopyFailed, match=r"copy of it.* is damaged: its bytes are not those"):
        copies.restore(NAME)
    assert not (lake_home.table.with_name(f"{NAME}_recovered")).exists()
    found = copies.verify(NAME)
    assert (list(found.damaged), found.passed, found.same) == ([name], False, True)
    assert lake_home.copy().files == 1
    assert (lake_home.copied / name).read_bytes() == whole
    assert copies.verify(NAME).passed
    (lake_home.copied / name).unlink()
    assert copies.verify(NAME).damaged == {name: "it is missing"}
    assert lake_home.copy().files == 1


def test_a_source_that_differs_from_what_was_copied_is_told(lake_home: Home) -> None:
    lake_home.append(1)
    lake_home.copy()
    (name,) = data(lake_home.table)
    whole = (lake_home.table / name).read_bytes()
    (lake_home.table / name).write_bytes(whole[:-9] + b"x" + whole[-8:])
    assert lake_home.copies().verify(NAME).same is False
    (lake_home.copied / name).unlink()
    with pytest.raises(CopyFailed, match=r"lake.* is damaged: its bytes are not those"):
        lake_home.copy()
    assert not (lake_home.copied / name).exists()


def test_versions_stay_for_ninety_days_in_the_copy_and_for_years_in_the_archive(
    lake_home: Home, spark: SparkSession
) -> None:
    archive = Home(lake_home.copied.parent, f"{lake_home.target} cold")
    archive.lake, archive.table = lake_home.lake, lake_home.table
    for number in range(3):
        lake_home.append(number)
        for one in (lake_home, archive):
            one.copies(Kind.COPY if one is lake_home else Kind.ARCHIVE).copy([NAME])
        lake_home.now = archive.now = lake_home.now + 40 * DAY
        DeltaTable(str(lake_home.table)).optimize.compact()
    # Day 120: what was copied on day 0 was current until day 40.
    assert len(data(lake_home.copied)) == 4
    lake_home.now += DAY * 11
    assert lake_home.copy().files == 1
    assert [rows(lake_home.copied, version) for version in (1, 2, 3)] == [[0, 1], [0, 1, 2], [0, 1, 2]]
    with pytest.raises(DeltaError, match="No files in log segment"):
        rows(lake_home.copied, 0)
    (archived,) = archive.copies(Kind.ARCHIVE).copy([NAME])
    assert archived.files_removed == 0
    assert [rows(archive.copied, version) for version in range(4)] == [[0], [0, 1], [0, 1, 2], [0, 1, 2]]
    # Spark reads what was written by hand: checkpoint and commits.
    for folder in (lake_home.copied, archive.copied):
        frame = spark.read.format("delta").load(str(folder))
        assert sorted(row.person_id for row in frame.select("person_id").collect()) == [0, 1, 2]
    assert spark.read.format("delta").option("versionAsOf", 1).load(str(lake_home.copied)).count() == 2
    archive.now += 8 * 365 * DAY
    (archived,) = archive.copies(Kind.ARCHIVE).copy([NAME])
    assert archived.files_removed == 4
    assert data(archive.copied) == {
        name: size for name, size in data(lake_home.table).items() if name in data(archive.copied)
    }
    assert ids(archive.copied) == [0, 1, 2]


def test_an_optimised_and_vacuumed_source_is_copied(spark: SparkSession, settings: Settings, tmp_path: Path) -> None:
    home = Home(settings.home, str(tmp_path / "copy"))
    drop(settings, "a.json", person(1), person(2))
    loaded(settings)
    home.copy()
    was = lake_reader.tuples(home.table, "person_id", "name", "record_hash")
    drop(settings, "b.json", person(3))
    loaded(settings)
    name = f"delta.`{home.table}`"
    spark.sql(f"optimize {name}")
    with_check = "spark.databricks.delta.retentionDurationCheck.enabled"
    spark.conf.set(with_check, "false")
    spark.sql(f"vacuum {name} retain 0 hours")
    spark.conf.unset(with_check)
    DeltaTable(str(home.table)).create_checkpoint()
    done = home.copy()
    assert done.rows == 3
    columns = ("person_id", "name", "record_hash")
    assert lake_reader.tuples(home.copied, *columns) == lake_reader.tuples(home.table, *columns)
    first = spark.read.format("delta").option("versionAsOf", 0).load(str(home.copied))
    assert sorted(map(tuple, first.select(*columns).collect()), key=repr) == was
    # What the lake can no longer give comes back from the copy.
    with pytest.raises(Exception, match=r"not found|No such file"):
        rows(home.table, 1)
    versions = [json.loads(one["userMetadata"])["source_version"] for one in DeltaTable(str(home.copied)).history()]
    home.copies().restore(NAME, version=min(versions))
    assert lake_reader.tuples(path(settings, f"{NAME}_recovered"), *columns) == was


def files_with(folder: Path, text: str) -> list[str]:
    """Files below the folder that hold the text; Parquet files are read."""
    found = []
    for file in folder.rglob("*"):
        if file.suffix == ".parquet" and "_delta_log" not in file.parts:
            held = any(text in str(row) for row in pq.ParquetFile(file).read().to_pylist())
        else:
            held = file.is_file() and text.encode() in file.read_bytes()
        if held:
            found.append(str(file.relative_to(folder)))
    return sorted(found)


@pytest.fixture
def forgotten(spark: SparkSession, settings: Settings) -> Settings:
    """A home that was copied and archived before persons 2 and 3 (in the quarantine) were erased."""
    drop(settings, "a.json", person(1), person(2, city=CITY), person(3, city=CITY, visits=-1))
    loaded(settings)
    for kind in Kind:
        copies(settings, kind, NOW - DAY).copy()
    erased(settings, "2", "3")
    return settings


def copies(settings: Settings, kind: Kind, now: dt.datetime) -> Copies:
    bench = Workbench(settings, clock=lambda: now)
    target = settings.copies if kind is Kind.COPY else settings.cold
    return Copies(
        bench.lake, [people()], kind, target, lambda: now, session=lambda: bench.session, ring=lambda: bench.ring
    )


def test_nobody_stays_readable_in_a_copy_when_an_erasure_has_come_of_age(forgotten: Settings) -> None:
    # Keys leave the copy with the next one, and are never archived.
    copied, cold = Path(forgotten.copies) / SCHEMA, Path(forgotten.cold) / SCHEMA
    assert not (cold / SUBJECT_KEYS).exists()
    assert not (cold / TOKEN_VAULT).exists()
    before = Keys(forgotten).subjects
    assert f"{NAME}/2" not in before
    (wrapped,) = lake_reader.read(copied / SUBJECT_KEYS, f"select wrapped from t where subject = '{NAME}/2'")
    copies(forgotten, Kind.COPY, NOW).copy()
    assert lake_reader.tuples(copied / SUBJECT_KEYS, "subject") == lake_reader.tuples(
        path(forgotten, SUBJECT_KEYS), "subject"
    )
    files = [one for one in (copied / SUBJECT_KEYS).rglob("*.parquet") if "_delta_log" not in one.parts]
    held = [row["wrapped"] for one in files for row in pq.ParquetFile(one).read().to_pylist()]
    assert held
    assert wrapped["wrapped"] not in held
    assert (copied / TOMBSTONES).exists()

    places = {Kind.COPY: Path(forgotten.copies), Kind.ARCHIVE: Path(forgotten.cold)}
    for kind, place in places.items():
        copies(forgotten, kind, NOW + DAY).copy()
        assert {Path(one).parts[1] for one in files_with(place, CITY)} == {NAME, QUARANTINE}
        copies(forgotten, kind, NOW + 30 * DAY - dt.timedelta(seconds=1)).copy()
        assert files_with(place, CITY)
        copies(forgotten, kind, NOW + 30 * DAY).copy()
        assert files_with(place, CITY) == []
        assert ids(place / SCHEMA / NAME) == [1, 2]
        (told,) = lake_reader.read(place / SCHEMA / NAME, "select * from t where person_id = 2")
        assert (told["city"], told["record_status"]) == (None, "ERASED")


def test_a_restored_table_brings_nobody_back(forgotten: Settings) -> None:
    before = {row["person_id"]: row for row in lake_reader.read(path(forgotten))}
    shown = copies(forgotten, Kind.COPY, NOW).restore(NAME, only_show=True)
    assert (shown.done, path(forgotten, f"{NAME}_recovered").exists()) == (False, False)
    restored = copies(forgotten, Kind.ARCHIVE, NOW).restore(NAME)
    folder = path(forgotten, restored.into)
    assert (restored.into, restored.erased, restored.rows) == (f"{NAME}_recovered", 1, 2)
    after = {row["person_id"]: row for row in lake_reader.read(folder)}
    # As the erasure left the table itself, but for the moment.
    assert {key: row | {"update_timestamp": None} for key, row in after.items()} == {
        key: row | {"update_timestamp": None} for key, row in before.items()
    }
    assert files_with(folder, CITY) == []
    copies(forgotten, Kind.COPY, NOW).restore(QUARANTINE)
    assert lake_reader.read(path(forgotten, f"{QUARANTINE}_recovered")) == []
    assert files_with(path(forgotten, f"{QUARANTINE}_recovered"), CITY) == []
    with pytest.raises(SettingsError, match=r"bz_people_recovered already, which a copy never replaces"):
        copies(forgotten, Kind.COPY, NOW).restore(NAME)
    with pytest.raises(SettingsError, match="keys are never restored beside"):
        copies(forgotten, Kind.COPY, NOW).restore(SUBJECT_KEYS)
    # The keys of before the erasure were copied: none comes back.
    lake = path(forgotten).parent
    for name in (NAME, SUBJECT_KEYS, TOMBSTONES):
        kept = lake / name
        kept.rename(lake / f".{name}")
    with pytest.raises(LakeError, match=r"bz_people: the lake has lost it.*Fix: restore it"):
        copies(forgotten, Kind.COPY, NOW).copy([NAME])
    (lake / f".{TOMBSTONES}").rename(lake / TOMBSTONES)
    with pytest.raises(SettingsError, match=r"no club_bronze.bz_subject_keys.*restore bz_tombstones first"):
        copies(forgotten, Kind.COPY, NOW).restore(NAME)
    again = copies(forgotten, Kind.COPY, NOW).restore(SUBJECT_KEYS)
    assert again.into == SUBJECT_KEYS
    assert again.erased > 0
    assert f"{NAME}/2" not in Keys(forgotten).subjects
    assert f"{NAME}/1" in Keys(forgotten).subjects
    back = copies(forgotten, Kind.COPY, NOW).restore(NAME)
    assert back.into == NAME
    assert ids(path(forgotten)) == [1, 2]
    assert files_with(path(forgotten), CITY) == []


def execute(settings: Settings, name: str, config: dict[str, Any] | None = None) -> tuple[dict[str, Any], Any]:
    """The metadata of a job's one op, and its result."""
    job = build_definitions(settings, [people()]).get_job_def(name)
    (op,) = job.nodes
    result = job.execute_in_process(run_config={"ops": {op.name: {"config": config or {}}}}, raise_on_error=False)
    found: dict[str, Any] = {}
    for event in result.all_events:
        if event.event_type_value == "STEP_OUTPUT":
            found = {key: value.value for key, value in event.step_output_data.metadata.items()}
    return found, result


def reason(result: Any) -> str:
    (failed,) = (event for event in result.all_events if event.event_type_value == "STEP_FAILURE")
    return str(failed.step_failure_data.user_failure_data.description)


def test_the_jobs_copy_archive_try_out_and_restore(spark: SparkSession, settings: Settings) -> None:
    drop(settings, "a.json", person(1), person(2))
    loaded(settings)
    drop(settings, "b.json", person(3))
    loaded(settings)
    table = path(settings)
    expected = lake_reader.tuples(table, "*")
    for name, place in (("copy_tables", settings.copies), ("archive_tables", settings.cold)):
        told, result = execute(settings, name)
        assert result.success
        assert told["verified"] == told["tables"] > 3
        parquet = [one for one in Path(place).rglob("*.parquet") if "_delta_log" not in one.parts]
        assert told["files"] == len(parquet)
        assert told["bytes"] == sum(one.stat().st_size for one in parquet)
        assert told["seconds"] > 0
        assert lake_reader.tuples(Path(place) / SCHEMA / NAME, "*") == expected
    damaged = Path(settings.copies) / SCHEMA / NAME / next(iter(data(Path(settings.copies) / SCHEMA / NAME)))
    whole = damaged.read_bytes()
    damaged.write_bytes(whole[:-9] + b"x" + whole[-8:])
    told, _ = execute(settings, "copy_tables", {"tables": [NAME], "verify": True})
    assert (told["files"], damaged.read_bytes()) == (1, whole)

    told, result = execute(settings, "restore_drill")
    assert (told["restored"], told["of"], told["not_restored"]) == (3, 3, [])
    rows_of = {row["way"]: row for row in lake_reader.read(path(settings, RESTORE_DRILLS))}
    assert rows_of.keys() == {"time_travel", "copy", "archive"}
    size = sum(data(Path(settings.copies) / SCHEMA / NAME).values())
    for way in ("copy", "archive"):
        assert (rows_of[way]["rows"], rows_of[way]["bytes"], rows_of[way]["verified"]) == (3, size, True)
        assert told[f"{way}_bytes"] == size
        assert told[f"{way}_seconds"] > 0
    earlier = lake_reader.version(table) - 1
    assert rows_of["time_travel"]["rows"] == len(rows(table, earlier))
    assert {way: row["goal_seconds"] for way, row in rows_of.items()} == {
        "time_travel": 3600,
        "copy": 4 * 3600,
        "archive": 24 * 3600,
    }
    assert list((settings.home / drills.FOLDER).iterdir()) == []
    (check,) = (event for event in result.all_events if event.event_type_value == "ASSET_CHECK_EVALUATION")
    assert (check.asset_check_evaluation_data.check_name, check.asset_check_evaluation_data.passed) == (
        "recovery_time",
        True,
    )

    before = lake_reader.listing(settings.lake)
    told, result = execute(settings, "restore_from_copy", {"table": NAME})
    assert (told["done"], told["into"]) == (False, f"{NAME}_recovered")
    assert lake_reader.listing(settings.lake) == before
    shutil.rmtree(table)
    told, _ = execute(settings, "restore_from_copy", {"table": NAME, "source": "archive", "only_show": False})
    assert (told["done"], told["into"], told["bytes"], told["rows"]) == (True, NAME, size, 3)
    assert lake_reader.tuples(table, "*") == expected
    # It is the table again, and loads go on.
    drop(settings, "c.json", person(4))
    assert loaded(settings).loaded == 1
    assert ids(table) == [1, 2, 3, 4]

    _, result = execute(settings, "restore_from_copy", {"table": NAME, "version": 99})
    assert "has nothing of version 99" in reason(result)
    _, result = execute(settings, "restore_from_copy", {"table": NAME, "source": "tape"})
    assert "'tape' is no source of copies. Fix: write copy or archive." in reason(result)
    _, result = execute(settings, "copy_tables", {"tables": ["bz_nobody"]})
    assert "there is no table 'bz_nobody'" in reason(result)
    assert f"{NAME}, {QUARANTINE}" in reason(result)
    _, result = execute(settings, "restore_from_copy", {"table": NAME, "timestamp": "yesterday"})
    assert "'yesterday' is no moment" in reason(result)


def test_a_drill_that_fails_fails_the_check(lake_home: Home) -> None:
    lake_home.append(1)
    lake_home.append(2)
    lake_home.copy()
    archive = Copies(lake_home.lake, [people()], Kind.ARCHIVE, f"{lake_home.target} cold", lambda: lake_home.now)
    scratch = lake_home.table.parents[2] / "drill"
    found = drills.drill(lake_home.lake, [people()], [lake_home.copies(), archive], scratch, lambda: lake_home.now)
    assert {one.way.value: one.verified for one in found} == {"time_travel": True, "copy": True, "archive": False}
    standing = drills.standing(lake_home.lake, SCHEMA, lake_home.now)
    (failing,) = standing.failing
    assert failing.startswith("bz_people by archive: bz_people: there is no archive of it")
    archive.copy([NAME])
    drills.drill(lake_home.lake, [people()], [lake_home.copies(), archive], scratch, lambda: lake_home.now + DAY)
    assert drills.standing(lake_home.lake, SCHEMA, lake_home.now + DAY).failing == ()
    (late,) = drills.standing(lake_home.lake, SCHEMA, lake_home.now + 40 * DAY).failing
    assert "the latest drill was on" in late
    # In the lake and in the copy, a file whose bytes are others.
    (one, *_) = sorted(data(lake_home.copied))
    whole = (lake_home.copied / one).read_bytes()
    (lake_home.copied / one).write_bytes(whole[:-9] + b"x" + whole[-8:])
    found = drills.drill(lake_home.lake, [people()], [lake_home.copies(), archive], scratch, lambda: lake_home.now)
    assert {one.way.value: one.passed for one in found} == {"time_travel": True, "copy": False, "archive": True}
    assert list(scratch.iterdir()) == []


def test_a_drill_tells_that_what_came_back_is_something_else(lake_home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    lake_home.append(1)
    lake_home.copy()
    real = Folder.take

    def damaging(self: Folder, name: str, stream: Any) -> tuple[int, str]:
        written = real(self, name, stream)
        if name.endswith(".parquet"):
            whole = (Path(self.root) / name).read_bytes()
            (Path(self.root) / name).write_bytes(whole[:5] + bytes([whole[5] ^ 1]) + whole[6:])
        return written

    monkeypatch.setattr(Folder, "take", damaging)
    scratch = lake_home.table.parents[2] / "drill"
    found = drills.drill(lake_home.lake, [people()], [lake_home.copies()], scratch, lambda: lake_home.now)
    assert [one.verified for one in found] == [False, False]
    assert "its files are not those of the version" in found[0].error


def test_schedules_run_off_peak_and_the_ops_share_a_pool(settings: Settings) -> None:
    definitions = build_definitions(settings, [people()])
    crons = {"copy_tables": "20 1 * * *", "archive_tables": "20 5 * * 6", "restore_drill": "20 6 1 * *"}
    for name, cron in crons.items():
        schedule = definitions.get_schedule_def(f"{name}_schedule")
        assert (schedule.cron_schedule, schedule.job_name, schedule.execution_timezone) == (cron, name, "UTC")
        assert schedule.default_status is dg.DefaultScheduleStatus.RUNNING
    for name in (*crons, "restore_from_copy"):
        (op,) = definitions.get_job_def(name).all_node_defs
        assert isinstance(op, dg.OpDefinition)
        assert op.pool == "maintenance"


def test_a_folder_that_is_no_copy_is_left_alone(lake_home: Home) -> None:
    lake_home.append(1)
    write_deltalake(str(lake_home.copied), pa.table({"a": [1]}))
    before = lake_reader.listing(lake_home.copied)
    with pytest.raises(CopyFailed, match="holds versions that no copy has written"):
        lake_home.copy()
    assert lake_reader.listing(lake_home.copied) == before


def test_what_a_copy_cannot_carry_is_refused(lake_home: Home) -> None:
    lake_home.append(1)
    DeltaTable(str(lake_home.table)).alter.set_table_properties({"delta.enableDeletionVectors": "true"})
    log = max(lake_home.table.joinpath("_delta_log").glob("*.json"))
    told = {"minReaderVersion": 3, "minWriterVersion": 7, "readerFeatures": ["deletionVectors"]}
    protocol = {"protocol": told | {"writerFeatures": ["deletionVectors"]}}
    log.write_text(log.read_text() + "\n" + json.dumps(protocol) + "\n")
    with pytest.raises(LakeError, match="uses deletionVectors, which a copy does not carry"):
        lake_home.copy()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"BRONZE_COPY": "s3://user:pass@bucket/x"}, "BRONZE_COPY holds a user or a password"),
        ({"BRONZE_COLD": "{lake}/cold"}, "lie within each other"),
        ({"BRONZE_COPY": "s3://b/x", "BRONZE_COLD": "s3://b/x"}, "BRONZE_COPY and BRONZE_COLD lie within"),
        ({"BRONZE_COPY": "s3://b/x", "BRONZE_COLD": "s3://b/x/cold"}, "BRONZE_COPY and BRONZE_COLD lie within"),
    ],
)
def test_places_of_copies_that_would_not_help_are_refused(tmp_path: Path, given: dict[str, str], message: str) -> None:
    lake = tmp_path / "home" / "lake"
    with pytest.raises(SettingsError, match=message) as refused:
        settings_for(tmp_path / "home", {key: value.format(lake=lake) for key, value in given.items()})
    assert "pass@" not in str(refused.value)
    settings = settings_for(tmp_path / "home", {"BRONZE_COPY": "s3://b/x/"})
    assert (settings.copies, settings.cold) == ("s3://b/x", str(tmp_path / "home" / "cold"))


class Databricks:
    """A session that knows the statements of clones and no others: catalog tables as versions, each rows and source."""

    def __init__(self) -> None:
        self.sent: list[str] = []
        self.tables: dict[str, list[tuple[int, int]]] = {}
        self.now = NOW
        self.properties: dict[str, str] = {}

    def sql(self, statement: str) -> Any:
        self.sent.append(statement)
        answer = self.answer(statement.replace("`", "").split())
        return SimpleNamespace(collect=lambda: answer)

    def answer(self, words: list[str]) -> list[Any]:
        match words:
            case [
                "create",
                "or",
                "replace",
                "table",
                target,
                "deep",
                "clone",
                source,
                "version",
                "as",
                "of",
                number,
                *_,
            ]:
                rows, _ = self.tables[source][int(number)]
                self.tables[target] = [*self.tables.get(target, []), (rows, int(number))]
                return []
            case ["select", "count(*)", "as", "n", "from", table, *at]:
                return [{"n": self.tables[table][int(at[-1]) if at else -1][0]}]
            case ["describe", "history", table]:
                return [
                    {
                        "version": number,
                        "timestamp": self.now,
                        "operation": "CLONE",
                        "operationParameters": {"sourceVersion": str(source)},
                        "operationMetrics": {"numCopiedFiles": "1", "copiedFilesSize": "10"},
                    }
                    for number, (_, source) in reversed(list(enumerate(self.tables[table])))
                ]
            case ["alter", "table", old, "rename", "to", new]:
                self.tables[new] = self.tables.pop(old)
                return []
            case ["alter", "table", table, "set", "tblproperties", *told]:
                self.properties[table] = " ".join(told)
                return []
            case ["drop", "table", "if", "exists", table]:
                self.tables.pop(table, None)
                return []
            case ["create", "schema", "if", "not", "exists", "far.club_bronze"]:
                return []
        raise AssertionError(words)


class Catalog:
    """What clones ask of a lake in a catalog."""

    def __init__(self, session: Databricks) -> None:
        self.session = session
        self.vacuumed: list[tuple[str, str]] = []
        self.told: list[dict[str, Any]] = []
        self.erasures: list[dict[str, Any]] = []
        self.storage = self

    def location(self, schema: str, name: str) -> str:
        return f"near.{schema}.{name}"

    def identifier(self, place: str) -> str:
        return ".".join(f"`{part}`" for part in place.split("."))

    def exists(self, *names: str) -> bool:
        return (names[0] if len(names) == 1 else self.location(*names)) in self.session.tables

    def version(self, schema: str, name: str) -> int:
        return len(self.session.tables[self.location(schema, name)]) - 1

    def size(self, place: str) -> TableSize:
        return TableSize(0, self.session.tables[place][-1][0], 30, 3)

    def vacuum(self, place: str, _: dt.timedelta) -> int:
        self.vacuumed.append((place, self.session.properties.get(place, "")))
        return 2

    def rows(self, _schema: str, name: str, *_: Any) -> list[dict[str, Any]]:
        return self.erasures if name == "bz_erasure_log" else []

    def append_rows(self, _schema: str, name: str, _columns: Any, rows: list[dict[str, Any]]) -> None:
        assert name == COPY_LOG
        self.told += rows


def test_tables_of_a_catalog_are_cloned_and_cloned_back() -> None:
    session = Databricks()
    lake = Catalog(session)
    session.tables[f"near.{SCHEMA}.{NAME}"] = [(1, 0), (5, 0)]
    bench: Any = SimpleNamespace(lake=lake, session=session, clock=lambda: NOW + 31 * DAY)
    clones = Clones(bench, [people()], Kind.COPY, "far")
    (one,) = clones.copy()
    assert (one.source_version, one.target_version, one.rows, one.files, one.bytes) == (1, 0, 5, 1, 10)
    keep = (
        "'delta.deletedFileRetentionDuration' = 'interval 90 days', 'delta.logRetentionDuration' = 'interval 90 days'"
    )
    source, target = f"`near`.`{SCHEMA}`.`{NAME}`", f"`far`.`{SCHEMA}`.`{NAME}`"
    assert (
        f"create or replace table {target} deep clone {source} version as of 1 tblproperties ({keep})" in session.sent
    )
    assert lake.vacuumed == [(f"far.{SCHEMA}.{NAME}", "")]
    (told,) = lake.told
    assert (told["kind"], told["verified"], told["rows"], told["files"]) == ("copy", True, 5, 1)

    # An erasure of a month ago: what was cloned before the first clone after it goes, 31 days old.
    lake.erasures = [{"at": NOW - DAY, "until": NOW + 29 * DAY}]
    clones.copy([NAME])
    assert lake.vacuumed[-1] == (
        f"far.{SCHEMA}.{NAME}",
        "('delta.deletedFileRetentionDuration' = 'interval 744 hours')",
    )
    assert session.properties[f"far.{SCHEMA}.{NAME}"] == "('delta.deletedFileRetentionDuration' = 'interval 90 days')"

    assert clones.restore(NAME, only_show=True).into == f"{NAME}_recovered"
    restored = clones.restore(NAME, version=1)
    assert (restored.rows, restored.into, session.tables[f"near.{SCHEMA}.{NAME}_recovered"]) == (
        5,
        f"{NAME}_recovered",
        [(5, 1)],
    )
    del session.tables[f"near.{SCHEMA}.{NAME}"]
    assert clones.restore(NAME).into == NAME
    with pytest.raises(SettingsError, match="has no such version"):
        clones.restore(NAME, version=7, into="bz_other")
    assert clones.tried(clones.units[0]) == (1, 5, 3, 30)
    assert f"near.{SCHEMA}.{NAME}_drill" not in session.tables


def test_a_clone_is_a_statement_of_databricks() -> None:
    statement = clone("`c`.`s`.`t`", "`l`.`s`.`t`", 7, {"delta.logRetentionDuration": "interval 90 days"})
    head, at, version, properties = re.split(r" (version as of) (\d+) ", statement)
    # sqlglot knows CLONE, which is deep without a word for it, and each clause, but not all of them together.
    made = parse_one(head.replace(" deep clone", " clone"), dialect="databricks")
    assert isinstance(made, exp.Create)
    assert (made.args["replace"], made.args["clone"].this.sql("databricks")) == (True, "`l`.`s`.`t`")
    assert made.this.sql("databricks") == "`c`.`s`.`t`"
    travelled = parse_one(f"select * from `l`.`s`.`t` {at} {version}", dialect="databricks").find(exp.Version)
    assert travelled is not None
    assert travelled.expression.sql() == "7"
    table = parse_one(f"create table t (a int) using delta {properties}", dialect="databricks")
    assert isinstance(table, exp.Create)
    assert "interval 90 days" in table.args["properties"].sql("databricks")


def loaded_now(settings: Settings) -> LoadRecord:
    """A load by the machine's clock, as copies have it."""
    bench = Workbench(settings)
    try:
        return load(people(), f"{bench.clock():%F}", bench, Run("run", "cli"))
    finally:
        bench.close()


def test_a_table_that_comes_back_from_a_copy_gets_what_came_after_it(spark: SparkSession, settings: Settings) -> None:
    drop(settings, "a.json", person(1), person(2))
    loaded_now(settings)
    execute(settings, "copy_tables")
    drop(settings, "b.json", person(3))
    loaded_now(settings)
    shutil.rmtree(path(settings))

    told, result = execute(settings, "restore_from_copy", {"table": NAME, "only_show": False})

    assert result.success
    assert (told["into"], told["done"]) == (NAME, True)
    assert ids(path(settings)) == [1, 2]
    record = loaded_now(settings)
    assert (record.read, record.loaded) == (1, 1)
    assert ids(path(settings)) == [1, 2, 3]
    bench = Workbench(settings)
    found = intact.judge(bench, people())
    assert found is not None
    assert found.intact, found
