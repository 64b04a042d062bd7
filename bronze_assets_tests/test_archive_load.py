"""A table with protected columns: its files are archived encrypted, and loaded again from there."""

from __future__ import annotations

import dataclasses
import datetime as dt
import io
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandera.pyspark as pa
import pyarrow as arrow
import pyarrow.parquet as pq
import pyspark.sql.types as T
import pytest

from bronze_assets.attempt import Attempt
from bronze_assets.errors import KeyMissing
from bronze_assets.file_load import FileLoad
from bronze_assets.lakehouse import Lakehouse
from bronze_assets.privacy.keys import KeyRing
from bronze_assets.settings import Environment, Settings
from bronze_assets.sources.landing import LandingZone
from bronze_assets.sources.ledger import FileEvent, FileState, Ledger
from bronze_assets.table import BronzeTable, Cadence, Feed, Pii, column
from bronze_assets.workbench import Options, Run, Workbench
from bronze_assets_tests import lake_reader
from bronze_assets_tests.conftest import settings_for
from bronze_assets_tests.file_tables import (
    DAY,
    NOW,
    SCHEMA,
    archive,
    csv_text,
    drop,
    ids,
    json_lines,
    landing,
    loaded,
    row,
    states,
    table_path,
)
from bronze_assets_tests.file_tables import things as open_things

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

CANARY = "canary-7f3a"
NAMES = ("a.json", "b.csv", "c.parquet", "d e.json")


class Things(pa.DataFrameModel):
    thing_id: T.IntegerType = column(key=True, gt=0, description="Identifies a thing.")
    name: T.StringType = column(pii=Pii.HIGH, description="Whose it is.")
    amount: T.DecimalType = column(dtype_kwargs={"precision": 12, "scale": 4}, description="How much of it.")
    made_on: T.DateType = column(description="The day it was made.")
    made_at: T.TimestampType = column(description="The moment it was made.")
    good: T.BooleanType = column(description="Whether it is good.")


def things(**feed: Any) -> BronzeTable:
    return BronzeTable(
        SCHEMA, "shop.Things", Things, Cadence.STREAMING, "Things.", files=Feed("raw/things", **feed), source_system="S"
    )


def owned(number: int) -> dict[str, Any]:
    return row(number, name=f"{CANARY} {number}")


def put(settings: Settings) -> None:
    target = io.BytesIO()
    pq.write_table(arrow.Table.from_pylist([owned(3) | {"amount": "1.5", "good": "true"}]), target, compression="none")
    contents = (json_lines(owned(1)), csv_text(owned(2)), target.getvalue(), json_lines(owned(4), owned(5)))
    for name, content in zip(NAMES, contents, strict=True):
        drop(settings, f"{DAY}/{name}", content)


def rows(settings: Settings) -> list[tuple[Any, ...]]:
    """What of the rows is the same whenever they are loaded: not ciphertexts, batches and times of the load."""
    return lake_reader.tuples(
        table_path(settings), "thing_id", "amount", "made_on", "made_at", "good", "record_hash", "file_name"
    )


def plain_files(folder: Path) -> list[Path]:
    """Files of a folder in which the canary can be read."""
    return [path for path in folder.rglob("*") if path.is_file() and CANARY.encode() in path.read_bytes()]


def attempted(home: Path, table: BronzeTable, *, day: str = DAY) -> FileLoad:
    """A load that has not begun, without Spark."""
    bench = Workbench(settings_for(home), clock=lambda: NOW)
    attempt = Attempt(table, day, bench, Run("run", "cli"), Options(), NOW)
    attempt.open_log()
    return FileLoad(attempt)


def record_loaded(home: Path, table: BronzeTable) -> None:
    """All files of the landing zone have been loaded, and are to be archived."""
    settings = settings_for(home)
    zone = LandingZone(settings.landing, settings.archive)
    states = [
        FileState(f.path, FileEvent.LOADED, f.size, f.modified, DAY, content_hash=zone.content_hash(f), rows=1)
        for f in zone.files(Feed("raw/things"))
    ]
    Ledger(Lakehouse(settings.lake), table, lambda: NOW).record(states, FileEvent.LOADED)


@pytest.mark.parametrize("protected", [False, True])
def test_which_table_has_its_files_encrypted(home: Path, protected: bool) -> None:
    table, settings = things() if protected else open_things(), settings_for(home)
    put(settings)
    record_loaded(home, table)
    attempted(home, table).archive()
    names = [f"{DAY}/{name}.enc" if protected else f"{DAY}/{name}" for name in NAMES]
    assert (landing(settings), archive(settings)) == ([], names)
    assert (settings.home / "keys").exists() is protected
    assert len(plain_files(Path(settings.archive))) == (0 if protected else len(NAMES))
    assert set(states(settings).values()) == {"archived"}
    ledger = Ledger(Lakehouse(settings.lake), table, lambda: NOW)
    assert sorted(str(state.archived_as) for state in ledger.files.values()) == [f"raw/things/{name}" for name in names]
    # All of it has been loaded, also what is only in the archive.
    late = attempted(home, table)
    late._bench.clock = lambda: NOW + dt.timedelta(days=1)
    assert late._outstanding() == []
    # Of a lost ledger, all of it is to be loaded.
    shutil.rmtree(settings.lake)
    late = attempted(home, table)
    late._bench.clock = lambda: NOW + dt.timedelta(days=1)
    assert [file.path for file in late._outstanding()] == [f"raw/things/{DAY}/{name}" for name in NAMES]


@pytest.mark.parametrize("protected", [False, True])
def test_what_a_killed_load_of_a_protected_table_left_is_removed_first(home: Path, protected: bool) -> None:
    table, settings = things() if protected else open_things(), settings_for(home)
    staged, other = (settings.home / f"staging/{name}/killed/000001.json" for name in ("bz_things", "bz_others"))
    part = Path(settings.archive) / "raw/things/.parts/abc"
    for left in (staged, other, part):
        left.parent.mkdir(parents=True)
        left.write_bytes(b"x")
    assert list(attempted(home, table).load(None)) == []
    assert (staged.exists(), part.exists(), other.exists()) == (not protected, not protected, True)


def test_without_the_key_nothing_is_archived_and_nothing_lost(home: Path) -> None:
    table, settings = things(), settings_for(home)
    put(settings)
    record_loaded(home, table)
    load = attempted(home, table)
    load._bench.settings = dataclasses.replace(
        settings, environment=Environment.PROD, master_key=f"file:{home / 'nowhere.json'}"
    )
    with pytest.raises(KeyMissing):
        load.archive()
    assert (len(landing(settings)), archive(settings)) == (len(NAMES), [])


def test_files_of_a_protected_table_are_archived_encrypted_and_loaded_again_from_there(
    spark: SparkSession, settings: Settings
) -> None:
    table = things()
    put(settings)
    left = settings.home / "staging/bz_things/killed/000001.json"
    left.parent.mkdir(parents=True)
    left.write_bytes(json_lines(owned(9)))
    record = loaded(settings, table)
    assert (record.read, record.loaded, record.quarantined) == (5, 5, 0)
    assert (landing(settings), archive(settings)) == ([], [f"{DAY}/{name}.enc" for name in NAMES])
    assert set(states(settings).values()) == {"archived"}
    assert plain_files(Path(settings.archive)) == []
    assert lake_reader.listing(settings.home / "staging") == {}
    before = rows(settings)
    assert len(before) == 5
    # What is archived has been loaded.
    assert loaded(settings, table, now=NOW + dt.timedelta(days=1)).scope == "nothing new"
    record = loaded(settings, table, reload=True)
    assert (record.loaded, record.replaced) == (5, 5)
    assert rows(settings) == before
    assert archive(settings) == [f"{DAY}/{name}.enc" for name in NAMES]
    assert lake_reader.listing(settings.home / "staging") == {}
    # The lake is lost: the archive brings it back.
    shutil.rmtree(settings.lake)
    assert loaded(settings, table, now=NOW + dt.timedelta(days=1)).loaded == 5
    assert rows(settings) == before
    assert archive(settings) == [f"{DAY}/{name}.enc" for name in NAMES]


def test_a_second_version_of_a_file_is_archived_beside_the_first(spark: SparkSession, settings: Settings) -> None:
    table = things()
    for number in (1, 2):
        drop(settings, f"{DAY}/a.json", json_lines(owned(number)))
        loaded(settings, table)
    assert ids(settings) == [2]
    assert len(archive(settings)) == 2
    assert plain_files(Path(settings.archive)) == []
    assert loaded(settings, table, reload=True).loaded == 1
    assert ids(settings) == [2]


def test_a_table_without_protected_columns_never_asks_for_the_key(
    spark: SparkSession, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(_: Workbench) -> KeyRing:
        raise AssertionError("the key was asked for")

    monkeypatch.setattr(Workbench, "ring", property(never))
    put(settings)
    assert loaded(settings, open_things()).loaded == 5
    assert archive(settings) == [f"{DAY}/{name}" for name in NAMES]
    assert loaded(settings, open_things(), reload=True).loaded == 5
