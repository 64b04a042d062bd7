"""A load killed from outside between any two commits, paused, or met by another: what a new Dagster run makes of it.

The killed process is a real one with a JVM of its own (`killed_load`); each has its own copy of one prepared lake.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime as dt
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

import dagster as dg
import psutil
import pytest

from bronze_assets.catalog.inventory import TABLES
from bronze_assets.demo import postgres
from bronze_assets.load import load
from bronze_assets.settings import Settings
from bronze_assets.workbench import Run, Workbench
from bronze_assets_tests import lake_reader
from bronze_assets_tests.conftest import CHECKOUT, Server, settings_for
from bronze_assets_tests.engines import Engine, started
from bronze_assets_tests.killed_load import COMMITTING, POINTS, QUIET, materialise, ticking

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

(PRODUCTS,) = [table for table in TABLES if table.name == "bz_products"]
TODAY = dt.datetime.now(dt.UTC).replace(hour=1, minute=0, second=0, microsecond=0)
D0, D1, D2 = (f"{(TODAY + dt.timedelta(days=days)).date()}" for days in (-2, 0, 1))
"""The days of the first load, of the killed one and of a late recovery."""
PATIENCE = 300

DONE_AGAIN = ("begun noted", "rows committed", "main noted")
"""Killed after these, not all rows of the batch are in the lake."""
NOT_AUDITED = (*DONE_AGAIN, "quarantine committed", "quarantine noted")

FIRST = """
    create schema tests;
    create table tests.products (product_id int, product_name text, category text, unit_price numeric(12,2));
    insert into tests.products
        select n, 'product ' || n, case when n % 5 > 0 then 'Home' end, n + 0.5 from generate_series(1, 20) n;
    insert into tests.products values (21, 'unpriced', 'Home', 'NaN'), (null, 'nobody', 'Home', 1)
"""
SECOND = """
    update tests.products set unit_price = 100 where product_id <= 3;
    delete from tests.products where product_id = 4;
    insert into tests.products values (31, 'new', 'Tools', 1), (31, 'new too', 'Tools', 2),
        (32, 'newly unpriced', 'Tools', 'NaN'), (-1, 'below', 'Tools', 3), (-1, 'below', 'Tools', 3)
"""
THIRD = """
    update tests.products set unit_price = 200 where product_id in (3, 10);
    update tests.products set unit_price = 1 where product_id = 1;
    delete from tests.products where product_id = 31;
    insert into tests.products values (4, 'back', 'Home', 4.5), (33, 'late', 'Tools', 'NaN')
"""


@dataclass(frozen=True)
class Prepared:
    """A lake after its first load, of the source as it was then, and the source as it was changed after that."""

    settings: Settings
    changed_again: str
    """URL of a copy of the source that has been changed once more."""

    def copy(self, home: Path) -> Settings:
        """Settings of a new home with its own copy of the lake."""
        lake = home / "lake"
        shutil.copytree(self.settings.lake, lake)
        return dataclasses.replace(self.settings, home=home, lake=lake)


@dataclass(frozen=True)
class State:
    """What a lake holds, without times, ids of runs and positions."""

    rows: list[tuple[Any, ...]]
    quarantine: list[tuple[Any, ...]]
    audit: list[tuple[Any, ...]]

    @classmethod
    def of(cls, settings: Settings) -> State:
        folder = settings.lake / lake_reader.SCHEMA
        columns = ("product_id", "product_name", "category", "unit_price", "source_system", "record_status")
        kept = ("row_key", "row_hash", "rule_set", "raw_row", "reasons", "batch_id", "rows_in_batch")
        told = ("batch_id", "status", "operation_type", "record_count", "error_count", "warning_count", "table_name")
        return cls(
            lake_reader.tuples(
                folder / "bz_products", *columns, "data_quality_score", "batch_id", "file_name", "record_hash"
            ),
            lake_reader.tuples(folder / "bz_products_quarantine", *kept),
            lake_reader.tuples(folder / "bz_audit_log", *told),
        )

    def of_batch(self, batch_id: str) -> list[tuple[Any, ...]]:
        return [row for row in self.rows if row[7] == batch_id]


def events(settings: Settings) -> list[dict[str, Any]]:
    folder = settings.lake / lake_reader.SCHEMA
    return lake_reader.read(folder / "bz_batches", "select * from t order by event_time")


def sightings(settings: Settings) -> dict[str, int]:
    rows = lake_reader.read(settings.lake / lake_reader.SCHEMA / "bz_products_quarantine")
    return {row["row_key"]: row["sightings"] for row in rows}


def load_anew(settings: Settings, now: dt.datetime = TODAY) -> dict[str, Any]:
    """A new Dagster run of the present day, in this process; returns the materialisation's metadata."""
    bench = Workbench(settings, clock=ticking(now))
    with dg.DagsterInstance.local_temp(str(dagster_folder(settings)), overrides=QUIET) as instance:
        result = materialise(PRODUCTS, f"{now.date()}", bench, instance)
        bench.close()
        assert result.success
        key = dg.AssetKey([PRODUCTS.schema, PRODUCTS.name])
        (event,) = [
            m for m in result.asset_materializations_for_node("inventory_bronze__bz_products") if m.asset_key == key
        ]
        return {name: entry.value for name, entry in event.metadata.items()}


def dagster_folder(settings: Settings) -> Path:
    folder = settings.home / "dagster"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@pytest.fixture(scope="module")
def prepared(
    server: Server, spark: SparkSession, jars: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Prepared]:
    url = server.make_database()
    home = tmp_path_factory.mktemp("prepared home")
    settings = settings_for(
        home,
        {
            "BRONZE_JARS": str(jars),
            "BRONZE_SOURCE_URL": url,
            "BRONZE_START_DATE": "2020-01-01",
            "BRONZE_LEASE_SECONDS": "3",
        },
    )
    change(url, FIRST)
    bench = Workbench(settings, clock=ticking(TODAY - dt.timedelta(days=2)))
    load(PRODUCTS, D0, bench, Run("first", "cli"))
    bench.close()
    change(url, SECOND)
    again = server.make_database(url.rpartition("/")[2])
    change(again, THIRD)
    yield Prepared(settings, again)
    server.drop_database(again)
    server.drop_database(url)


def change(url: str, statements: str) -> None:
    with postgres.connect(url) as connection, connection.cursor() as cursor:
        cursor.execute(statements)


@pytest.fixture(scope="module")
def undisturbed(prepared: Prepared, tmp_path_factory: pytest.TempPathFactory) -> State:
    """What one load leaves that nothing happens to."""
    settings = prepared.copy(tmp_path_factory.mktemp("undisturbed home"))
    load_anew(settings)
    state = State.of(settings)
    assert len(state.of_batch(f"{D1}/1")) == 5, "three changed, one added, one deleted"
    assert [row[:2] for row in state.audit] == [(f"{D0}/1", "SUCCESS"), (f"{D1}/1", "SUCCESS")]
    return state


@dataclass(frozen=True)
class Child:
    """A Dagster run in a process of its own, which may stand still at a point."""

    process: subprocess.Popen[bytes]
    reached: Path
    log: Path

    def wait_for_point(self) -> None:
        self._wait(self.reached.exists)

    def end(self) -> str:
        """Its last line, once it has ended by itself."""
        self._wait(lambda: self.process.poll() is not None)
        return self.log.read_text().splitlines()[-1]

    def _wait(self, until: Callable[[], bool]) -> None:
        deadline = time.monotonic() + PATIENCE
        while not until():
            stopped = self.process.poll() is not None
            if (stopped and not until()) or time.monotonic() > deadline:
                pytest.fail(f"{'ended' if stopped else 'hangs'}: {self.log.read_text()[-5000:]}")
            time.sleep(0.05)


@contextlib.contextmanager
def running(settings: Settings, *, point: str = "", name: str = "child", memory: str = "700m") -> Iterator[Child]:
    """A child that loads the present day; whatever is left of it at the end is killed."""
    reached, log = settings.home / f"{name}.reached", settings.home / f"{name}.log"
    asked = {
        "table": PRODUCTS.name,
        "partition": D1,
        "now": TODAY.isoformat(),
        "dagster": str(dagster_folder(settings)),
        "point": point,
        "reached": str(reached),
    }
    environment = {key: value for key, value in os.environ.items() if not key.startswith("BRONZE_")} | {
        "BRONZE_HOME": str(settings.home),
        "BRONZE_JARS": str(settings.jars),
        "BRONZE_SOURCE_URL": settings.source_url,
        "BRONZE_START_DATE": settings.start_date.isoformat(),
        "BRONZE_LEASE_SECONDS": str(settings.lease_seconds),
        "BRONZE_DRIVER_MEMORY": memory,
    }
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "bronze_assets_tests.killed_load", json.dumps(asked)],
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


@pytest.fixture(scope="module")
def killed(
    request: pytest.FixtureRequest, prepared: Prepared, tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, Settings]:
    """A point, and the home of a Dagster run whose process was killed there, with SIGKILL."""
    point = request.param
    settings = prepared.copy(tmp_path_factory.mktemp("killed home"))
    with running(settings, point=point) as child:
        child.wait_for_point()
        family = psutil.Process(child.process.pid).children(recursive=True)
        assert "java" in [process.name() for process in family]
        child.process.kill()
        child.process.wait()
        _, alive = psutil.wait_procs(family, timeout=PATIENCE)
        assert not alive, "the JVM survived"
    return point, settings


def copied(settings: Settings, home: Path) -> Settings:
    shutil.copytree(settings.home, home)
    return dataclasses.replace(settings, home=home, lake=home / "lake")


OFTEN = ("rows committed", "main noted", "quarantine committed", "audit row written")
"""The points that differ in what is committed; the others run at night."""
at_every_point = pytest.mark.parametrize(
    "killed",
    [pytest.param(point, marks=pytest.mark.slow if point in OFTEN else pytest.mark.nightly) for point in POINTS],
    indirect=True,
    ids=lambda point: point.replace(" ", "_"),
)


def at_points(*points: str) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("killed", points, indirect=True, ids=lambda point: point.replace(" ", "_"))


@at_every_point
def test_a_load_killed_between_any_two_commits_and_run_anew_leaves_what_an_undisturbed_one_does(
    killed: tuple[str, Settings], undisturbed: State, tmp_path: Path
) -> None:
    point, settings = killed[0], copied(killed[1], tmp_path / "home")
    killed_run = events(settings)[-1]["run_id"]

    metadata = load_anew(settings)

    state = State.of(settings)
    assert state.rows == undisturbed.rows
    assert state.quarantine == undisturbed.quarantine
    added = list(state.audit)
    for row in undisturbed.audit:
        added.remove(row)
    # Where all its rows were in the lake, the batch was finished, and the new run loaded what came after: nothing.
    again = point in DONE_AGAIN
    expected = [(f"{D1}/1", "FAILED")] if point in NOT_AUDITED else []
    expected += [] if again else [(f"{D1}/2", "SUCCESS")]
    assert [row[:2] for row in added] == expected
    audit = lake_reader.read(settings.lake / lake_reader.SCHEMA / "bz_audit_log")
    assert [row["pipeline_run_id"] for row in audit if row["status"] == "FAILED"] == [killed_run] * (
        point in NOT_AUDITED
    )
    later = 0 if again else 1
    assert sightings(settings) == {"-1": 1 + later, "21": 2 + later, "32": 1 + later, "NULL": 2 + later}
    assert metadata["dagster/partition_row_count"] == len(undisturbed.of_batch(f"{D1}/1"))
    assert metadata["dagster/row_count"] == len(undisturbed.rows)
    assert [event["event"] for event in events(settings)].count("done") == (2 if again else 3)
    # And then it is over.
    assert load_anew(settings)["unchanged"] == 20
    assert State.of(settings).rows == undisturbed.rows


@pytest.mark.slow
@at_points("rows committed", "main noted", "quarantine committed")
def test_a_load_killed_on_another_day_is_taken_back_or_finished_and_all_is_loaded_under_the_new_days_name(
    killed: tuple[str, Settings], undisturbed: State, tmp_path: Path
) -> None:
    point, settings = killed[0], copied(killed[1], tmp_path / "home")
    bench = Workbench(settings, clock=ticking(TODAY + dt.timedelta(days=1)))
    record = load(PRODUCTS, D2, bench, Run("next day", "cli"))
    bench.close()

    state = State.of(settings)
    finished = point == "quarantine committed"
    assert (record.batch_id, record.loaded + record.deleted) == (f"{D2}/1", 0 if finished else 5)
    name = f"{D1}/1" if finished else f"{D2}/1"
    assert state.rows == sorted(
        ((*row[:7], name if row[7] == f"{D1}/1" else row[7], *row[8:]) for row in undisturbed.rows), key=repr
    )
    assert {row[0] for row in state.quarantine} == {row[0] for row in undisturbed.quarantine}
    assert [row[:2] for row in state.audit] == sorted(
        [
            (f"{D0}/1", "SUCCESS"),
            (f"{D1}/1", "FAILED"),
            *([(f"{D1}/1", "SUCCESS")] if finished else []),
            (f"{D2}/1", "SUCCESS"),
        ]
    )
    last = {event["batch_id"]: event["event"] for event in events(settings)}
    assert last[f"{D1}/1"] == ("done" if finished else "failed")


@pytest.mark.slow
@at_points("rows committed", "main noted", "quarantine noted")
def test_a_batch_never_holds_rows_of_two_states_of_the_source(
    killed: tuple[str, Settings], prepared: Prepared, undisturbed: State, tmp_path: Path
) -> None:
    settings = dataclasses.replace(copied(killed[1], tmp_path / "home"), source_url=prepared.changed_again)
    load_anew(settings)

    state = State.of(settings)
    if killed[0] == "quarantine noted":
        assert state.of_batch(f"{D1}/1") == undisturbed.of_batch(f"{D1}/1")
        assert [row for row in state.quarantine if row[5] == f"{D1}/1"] == [
            row for row in undisturbed.quarantine if row[5] == f"{D1}/1"
        ]
        # 1, 3 and 10 changed, 4 is back, 31 gone.
        assert [row[0] for row in state.of_batch(f"{D1}/2")] == [1, 10, 3, 31, 4]
    else:
        straight = dataclasses.replace(prepared.copy(tmp_path / "straight"), source_url=prepared.changed_again)
        load_anew(straight)
        expected = State.of(straight)
        assert (state.rows, state.quarantine) == (expected.rows, expected.quarantine)
        # 1, 2, 3, 4 and 10 changed; 31, there only in between, is as if it had never been.
        assert [row[0] for row in state.of_batch(f"{D1}/1")] == [1, 10, 2, 3, 4]


@pytest.fixture(scope="module")
def engine(jars: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    with started(tmp_path_factory.mktemp("warm home"), jars) as engine:
        yield engine


@pytest.mark.parametrize(
    ("point", "seconds"),
    [
        (COMMITTING, 0.3),
        (COMMITTING, 1.2),
        *(
            pytest.param(point, seconds, marks=pytest.mark.slow)
            for point, seconds in ((COMMITTING, 0.0), (COMMITTING, 0.6), ("rows committed", 0.0))
        ),
    ],
)
def test_a_client_of_the_warm_engine_killed_while_it_commits_loses_nothing_and_leaves_nothing_twice(
    prepared: Prepared, undisturbed: State, engine: Engine, tmp_path: Path, point: str, seconds: float
) -> None:
    settings = prepared.copy(tmp_path / "home")
    (settings.home / "engine").symlink_to(engine.settings.home / "engine")
    jvm = engine.jvm
    with running(settings, point=point, memory=engine.settings.driver_memory) as child:
        child.wait_for_point()
        time.sleep(seconds)
        child.process.kill()
        child.process.wait()
        assert "Starting Spark" not in child.log.read_text()
    # What the JVM had been told to commit may land now, before the next load or while it is at work.
    load_anew(settings)
    assert jvm.is_running()
    assert State.of(settings).rows == undisturbed.rows
    assert State.of(settings).quarantine == undisturbed.quarantine
    with running(settings, memory=engine.settings.driver_memory, name="after") as after:
        assert after.end() == 'LOADED {"loaded": 0, "unchanged": 20, "deleted": 0}'
        assert "Starting Spark" not in after.log.read_text()
    assert State.of(settings).rows == undisturbed.rows


def test_of_two_processes_that_load_a_table_at_once_one_is_refused_by_name(
    prepared: Prepared, undisturbed: State, tmp_path: Path
) -> None:
    settings = prepared.copy(tmp_path / "home")
    with running(settings, point="begun noted", name="one") as one:
        one.wait_for_point()
        holder = events(settings)[-1]["run_id"]
        with running(settings, name="other") as other:
            refused = other.end()
        assert refused.startswith("FAILED")
        assert f"bz_products: run {holder} on " in refused
        one.reached.unlink()
        assert one.end() == 'LOADED {"loaded": 4, "unchanged": 16, "deleted": 1}'
    assert State.of(settings).rows == undisturbed.rows
    assert State.of(settings).quarantine == undisturbed.quarantine


def test_of_two_processes_that_start_together_both_end_and_each_version_is_there_once(
    prepared: Prepared, undisturbed: State, tmp_path: Path
) -> None:
    settings = prepared.copy(tmp_path / "home")
    with running(settings, name="one") as one, running(settings, name="other") as other:
        ends = sorted([one.end(), other.end()])
    assert ends[-1].startswith("LOADED")
    assert State.of(settings).rows == undisturbed.rows
    assert State.of(settings).quarantine == undisturbed.quarantine


@pytest.mark.slow
@pytest.mark.parametrize("point", ["begun noted", "main noted"])
def test_a_process_that_was_paused_and_overtaken_does_no_harm_when_it_wakes_up(
    prepared: Prepared, undisturbed: State, tmp_path: Path, point: str
) -> None:
    settings = prepared.copy(tmp_path / "home")
    with running(settings, point=point, name="paused") as paused:
        paused.wait_for_point()
        paused.process.send_signal(signal.SIGSTOP)
        # The lease falls silent, and so the next run takes over, under the same batch id.
        assert load_anew(settings)["batch_id"] == f"{D1}/1"
        assert State.of(settings).rows == undisturbed.rows
        paused.reached.unlink()
        paused.process.send_signal(signal.SIGCONT)
        paused.end()
    assert State.of(settings).rows == undisturbed.rows
    assert State.of(settings).quarantine == undisturbed.quarantine
    assert load_anew(settings)["unchanged"] == 20
