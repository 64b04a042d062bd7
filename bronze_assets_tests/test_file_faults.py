"""A load of files killed from outside after any step, paused, or met by another: what a new load makes of it.

The killed process is a real one with a JVM of its own (`killed_file_load`); each has its own copy of one prepared home.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import pytest

from bronze_assets.settings import Settings
from bronze_assets_tests import lake_reader
from bronze_assets_tests.conftest import CHECKOUT, settings_for
from bronze_assets_tests.file_tables import (
    BEFORE,
    DAY,
    archive,
    csv_text,
    drop,
    json_lines,
    landing,
    loaded,
    row,
    states,
    table_path,
    things,
)
from bronze_assets_tests.killed_file_load import POINTS

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

PATIENCE = 300


@dataclass(frozen=True)
class State:
    """What a home holds, without times and ids of runs."""

    rows: list[tuple[Any, ...]]
    quarantine: list[tuple[Any, ...]]
    files: dict[str, str]
    rows_of_files: list[tuple[Any, ...]]
    landing: list[str]
    archive: list[str]

    @classmethod
    def of(cls, settings: Settings) -> State:
        ledger = lake_reader.tuples(
            table_path(settings, "bz_file_ledger"), "path", "batch_id", "rows", where="event = 'loaded'"
        )
        return cls(
            rows=lake_reader.tuples(
                table_path(settings),
                "thing_id",
                "name",
                "made_on",
                "batch_id",
                "file_name",
                "record_hash",
                "_rescued_data",
            ),
            quarantine=lake_reader.tuples(
                table_path(settings, "bz_things_quarantine"),
                *(
                    "row_key",
                    "row_hash",
                    "raw_row",
                    "file_name",
                    "batch_id",
                    "last_batch_id",
                    "sightings",
                    "rows_in_batch",
                ),
            ),
            files=states(settings),
            rows_of_files=sorted(set(ledger), key=repr),
            landing=landing(settings),
            archive=archive(settings),
        )


def prepare(home: Path, jars: Path, *, overwritten: bool) -> Settings:
    """A home in which files wait; where some of them have been loaded before, with other content, if wanted."""
    settings = settings_for(home, {"BRONZE_JARS": str(jars), "BRONZE_LEASE_SECONDS": "3"})
    if overwritten:
        drop(settings, f"{DAY}/a.json", json_lines(row(1, name="old"), row(9), row(8, good="yes")))
        drop(settings, f"{DAY}/b c.csv", csv_text(row(3, name="old"), row(10)))
        drop(settings, f"{DAY}/c.json", json_lines(row(11)))
        drop(settings, f"{DAY}/bad.csv", csv_text(row(6)))
        loaded(settings, things())
    drop(settings, f"{DAY}/a.json", json_lines(row(1), row(2, good="yes")) + b'{"thing_id":\n')
    drop(settings, f"{DAY}/b c.csv", csv_text(row(3), row(3, name="twice"), row(4)))
    drop(settings, f"{DAY}/c.json", json_lines(row(5) | {"vendor": "x"}))
    drop(settings, f"{DAY}/bad.csv", b"not a header\n")
    drop(settings, f"{BEFORE}/late.json", json_lines(row(7)))
    return settings


@pytest.fixture(scope="module")
def prepared(
    request: pytest.FixtureRequest, spark: SparkSession, jars: Path, tmp_path_factory: pytest.TempPathFactory
) -> Settings:
    return prepare(tmp_path_factory.mktemp("prepared home"), jars, overwritten=request.param == "overwritten")


@pytest.fixture(scope="module")
def undisturbed(prepared: Settings, tmp_path_factory: pytest.TempPathFactory) -> State:
    settings = copied(prepared, tmp_path_factory.mktemp("undisturbed") / "home")
    loaded(settings, things())
    state = State.of(settings)
    assert [one[0] for one in state.rows] == [1, 3, 4, 5]
    assert len(state.quarantine) == 3
    assert state.landing == [f"{BEFORE}/late.json", f"{DAY}/bad.csv"]
    return state


def copied(settings: Settings, home: Path) -> Settings:
    # With the files' times, or all would look overwritten.
    shutil.copytree(settings.home, home)
    return dataclasses.replace(
        settings, home=home, lake=home / "lake", landing=str(home / "landing"), archive=str(home / "archive")
    )


@dataclass(frozen=True)
class Child:
    """A load in a process of its own, which may stand still at a point."""

    process: subprocess.Popen[bytes]
    reached: Path
    log: Path

    def wait_for_point(self) -> None:
        self._wait(self.reached.exists)

    def end(self) -> str:
        """Its last line, once it has ended by itself."""
        self._wait(lambda: self.process.poll() is not None)
        return self.log.read_text().splitlines()[-1]

    def kill(self) -> None:
        family = psutil.Process(self.process.pid).children(recursive=True)
        self.process.kill()
        self.process.wait()
        _, alive = psutil.wait_procs(family, timeout=PATIENCE)
        assert not alive, "the JVM survived"
        self.reached.unlink()

    def _wait(self, until: Callable[[], bool]) -> None:
        deadline = time.monotonic() + PATIENCE
        while not until():
            stopped = self.process.poll() is not None
            if (stopped and not until()) or time.monotonic() > deadline:
                pytest.fail(f"{'ended' if stopped else 'hangs'}: {self.log.read_text()[-5000:]}")
            time.sleep(0.05)


@contextlib.contextmanager
def running(settings: Settings, *, point: str = "", name: str = "child", day: str = DAY) -> Iterator[Child]:
    """A child that loads; whatever is left of it at the end is killed."""
    reached, log = settings.home / f"{name}.reached", settings.home / f"{name}.log"
    asked = {"day": day, "point": point, "reached": str(reached)}
    environment = {key: value for key, value in os.environ.items() if not key.startswith("BRONZE_")} | {
        "BRONZE_HOME": str(settings.home),
        "BRONZE_JARS": str(settings.jars),
        "BRONZE_CAPTURE": "off",
        "BRONZE_LEASE_SECONDS": str(settings.lease_seconds),
        "BRONZE_DRIVER_MEMORY": "700m",
    }
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "bronze_assets_tests.killed_file_load", json.dumps(asked)],
            cwd=CHECKOUT,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    try:
        yield Child(process, reached, log)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def events(settings: Settings) -> dict[str, str]:
    """Batch → its last event."""
    rows = lake_reader.read(table_path(settings, "bz_batches"), "select * from t order by event_time")
    return {one["batch_id"]: one["event"] for one in rows}


# The others differ from these in what is noted, and not in what is committed.
OFTEN = ("rows committed", "one archived")


def mark(point: str) -> pytest.MarkDecorator:
    return pytest.mark.slow if point in OFTEN else pytest.mark.nightly


new = pytest.mark.parametrize("prepared", ["new"], indirect=True)
overwritten = pytest.mark.parametrize("prepared", ["overwritten"], indirect=True)


@pytest.mark.parametrize(
    ("prepared", "point"),
    [
        *(pytest.param("new", point, marks=mark(point)) for point in POINTS),
        *(
            pytest.param("overwritten", point, marks=pytest.mark.nightly)
            for point in ("claimed recorded", "rows committed", "quarantine committed")
        ),
    ],
    indirect=["prepared"],
    ids=lambda value: value.replace(" ", "_"),
)
def test_a_load_killed_after_any_step_and_done_anew_leaves_what_an_undisturbed_one_does(
    prepared: Settings, undisturbed: State, tmp_path: Path, point: str
) -> None:
    settings = copied(prepared, tmp_path / "home")
    with running(settings, point=point) as child:
        child.wait_for_point()
        child.kill()
    elsewhere = copied(settings, tmp_path / "elsewhere")

    loaded(settings, things())
    again = renamed(State.of(settings), undisturbed)
    assert again == undisturbed
    assert set(events(settings).values()) <= {"done", "failed"}
    # And then it is over.
    assert loaded(settings, things()).scope == "nothing new"
    assert renamed(State.of(settings), undisturbed) == undisturbed

    # The next load is for another day: it settles the batch first, and leaves what was never claimed.
    loaded(elsewhere, things(), BEFORE)
    loaded(elsewhere, things())
    found = renamed(State.of(elsewhere), undisturbed)
    late = [one for one in found.rows if one[0] == 7]
    assert [one[3:5] for one in late] == [(f"{BEFORE}/1", f"raw/things/{BEFORE}/late.json")]
    assert [one for one in found.rows if one[0] != 7] == undisturbed.rows
    assert found.quarantine == undisturbed.quarantine
    assert found.landing == [f"{DAY}/bad.csv"]


def renamed(state: State, like: State) -> State:
    """The same under the batch ids of the other: a batch that was given up before it claimed a file has used one."""
    mine = sorted({one[3] for one in state.rows} | {one[4] for one in state.quarantine})
    theirs = sorted({one[3] for one in like.rows} | {one[4] for one in like.quarantine})
    names = dict(zip([b for b in mine if b.startswith(DAY)], theirs, strict=False))

    def named(rows: list[tuple[Any, ...]]) -> list[tuple[Any, ...]]:
        return sorted((tuple(names.get(value, value) for value in one) for one in rows), key=repr)

    return dataclasses.replace(
        state, rows=named(state.rows), quarantine=named(state.quarantine), rows_of_files=named(state.rows_of_files)
    )


@pytest.mark.slow
@overwritten
def test_a_load_killed_twice_in_a_row_leaves_what_an_undisturbed_one_does(
    prepared: Settings, undisturbed: State, tmp_path: Path
) -> None:
    settings = copied(prepared, tmp_path / "home")
    for point in ("rows committed", "quarantine committed"):
        with running(settings, point=point) as child:
            child.wait_for_point()
            child.kill()
    loaded(settings, things())
    assert State.of(settings) == undisturbed


@pytest.mark.slow
@overwritten
def test_a_new_version_of_a_file_that_is_removed_under_its_killed_load_leaves_the_old_rows(
    prepared: Settings, tmp_path: Path
) -> None:
    settings = copied(prepared, tmp_path / "home")
    before = [one for one in State.of(settings).rows if one[4] == f"raw/things/{DAY}/a.json"]
    assert len(before) == 3
    with running(settings, point="rows committed") as child:
        child.wait_for_point()
        child.kill()
    assert [one for one in State.of(settings).rows if one[4] == f"raw/things/{DAY}/a.json"] != before
    (Path(settings.landing) / f"raw/things/{DAY}/a.json").unlink()
    loaded(settings, things())
    found = State.of(settings)
    assert [one for one in found.rows if one[4] == f"raw/things/{DAY}/a.json"] == before
    # The other files of the batch are loaded as if nothing had happened.
    assert {one[0] for one in found.rows} == {1, 8, 9, 3, 4, 5}
    # And the old version can be loaded again from the archive.
    loaded(settings, things(), reload=True)
    assert {one[0] for one in State.of(settings).rows} == {1, 8, 9, 3, 4, 5}


@pytest.mark.slow
@new
def test_of_two_loads_at_once_one_is_refused_by_name_and_each_file_is_loaded_once(
    prepared: Settings, undisturbed: State, tmp_path: Path
) -> None:
    settings = copied(prepared, tmp_path / "home")
    with running(settings, point="claimed recorded", name="one") as one:
        one.wait_for_point()
        with running(settings, name="other") as other:
            assert other.end().startswith("FAILED TableBusy bz_things: run run on ")
        one.reached.unlink()
        assert one.end() == "LOADED 4"
    assert State.of(settings) == undisturbed


@new
@pytest.mark.parametrize(
    "point",
    [
        pytest.param("begun noted", marks=pytest.mark.nightly),
        pytest.param("claimed recorded", marks=pytest.mark.slow),
        pytest.param("rows committed", marks=pytest.mark.nightly),
    ],
)
def test_a_process_that_was_paused_and_overtaken_does_no_harm_when_it_wakes_up(
    prepared: Settings, undisturbed: State, tmp_path: Path, point: str
) -> None:
    settings = copied(prepared, tmp_path / "home")
    with running(settings, point=point, name="paused") as paused:
        paused.wait_for_point()
        paused.process.send_signal(signal.SIGSTOP)
        # The lease falls silent, and so this load takes over.
        loaded(settings, things())
        assert renamed(State.of(settings), undisturbed) == undisturbed
        paused.reached.unlink()
        paused.process.send_signal(signal.SIGCONT)
        assert paused.end().startswith("FAILED StaleBase")
    assert renamed(State.of(settings), undisturbed) == undisturbed
    assert loaded(settings, things()).scope == "nothing new"
    assert renamed(State.of(settings), undisturbed) == undisturbed
