"""Loads of files: many small ones against Spark's file stream, and a day of a large plant.

The stream takes 1,000 files a trigger, which is Auto Loader's default, or all that are there, as Spark comes and with
the settings that our sessions have for small tables. It checks, hashes, records and archives nothing.
"""

from __future__ import annotations

import dataclasses
import datetime as dt
import json
import os
import shutil
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

import dagster as dg
import pyarrow as pa
import pyarrow.compute as pc
from deltalake import DeltaTable, QueryBuilder
from pyarrow import csv
from pyspark.sql import types as T

from benchmarks.ground import Ground, fresh, timed_load
from benchmarks.measure import Comparison, Scenario, Side
from bronze_assets.catalog import manufacturing
from bronze_assets.orchestration.jobs import file_jobs
from bronze_assets.orchestration.sensors import tick
from bronze_assets.sources.ledger import FileEvent, FileState, Ledger
from bronze_assets.table import BronzeTable, Loaded
from bronze_assets.workbench import Workbench

(SENSOR_DATA,) = (table for table in manufacturing.TABLES if table.name == "bz_sensor_data")
assert SENSOR_DATA.feed is not None
FEED = SENSOR_DATA.feed
# What our sessions set for small tables; Spark's and Delta's defaults are for large ones.
_OURS = ("spark.sql.shuffle.partitions", "spark.databricks.delta.snapshotPartitions")
_A_TRIGGER = 1_000
_SENSORS = 500
# Older than any time for which a young file waits.
_AGE = dt.timedelta(hours=1)
_FILES_A_DAY = 288
_SECONDS_A_FILE = 300


def small_files(ground: Ground) -> Iterator[Scenario]:
    """JSON files of a hundred rows, which are one batch."""
    files, rows = ground.sizes.files, ground.sizes.files * ground.sizes.rows_of_file
    made = _make_json_files(ground.settings.home / "made", files, ground.sizes.rows_of_file)
    streams = {f"Spark's stream, {_A_TRIGGER:,} files a trigger": _stream(ground, made, unset=_OURS, most=_A_TRIGGER)}
    if not ground.sizes.reduced:
        streams["Spark's stream, one trigger"] = _stream(ground, made, unset=_OURS)
        streams["Spark's stream, one trigger, our session's settings"] = _stream(ground, made)
    target = ground.settings.home / "streamed" / "table"
    sides = [Side(name, run, rows, check=lambda: _check(target, rows)) for name, run in streams.items()]
    sides.append(_load("load", ground.workbench("lake"), SENSOR_DATA, made, rows))
    what = f"{files:,} JSON files of {ground.sizes.rows_of_file} rows"
    comparisons = [Comparison(what, "load", name, 0.2) for name in streams]
    yield Scenario(sides, comparisons)
    shutil.rmtree(made)
    ground.forget()
    if not ground.sizes.reduced:
        yield from _ticks(ground)


def sensor_day(ground: Ground) -> Iterator[Scenario]:
    """A day of sensor data as CSV in files of five minutes each, as one load. Run once: it is long."""
    size = ground.sizes.sensor_gigabytes
    free = shutil.disk_usage(ground.settings.home).free / 1e9
    assert free > 4 * size, f"{size:g} GB of files need {4 * size:.0f} GB of disk, and {free:.0f} GB are free"
    made = ground.settings.home / "made"
    rows = _make_csv_day(made, round(size * 1e9))
    bench = ground.workbench("lake")
    # No round goes before: the start of Spark is no part of the day.
    _ = ground.session
    load = _load("load", bench, SENSOR_DATA, made, rows)
    seconds = 0.0

    def run() -> float:
        nonlocal seconds
        seconds = load.run()
        return seconds

    def note() -> str:
        table = DeltaTable(str(bench.settings.lake / SENSOR_DATA.schema / SENSOR_DATA.name))
        sizes = pa.table(table.get_add_actions(flatten=True))["size_bytes"].to_pylist()
        return (
            f"{rows / seconds:,.0f} rows/s; {len(sizes)} files of {min(sizes) / 1e6:.0f} to {max(sizes) / 1e6:.0f} MB,"
            f" median {statistics.median(sizes) / 1e6:.0f} MB; run once"
        )

    yield Scenario(
        [dataclasses.replace(load, run=run)],
        [Comparison(f"a day of sensor CSV, {size:g} GB in {_FILES_A_DAY} files", "load")],
        rounds=1,
        uncounted=0,
        note=note,
    )
    shutil.rmtree(made)
    ground.forget()


def _load(name: str, bench: Workbench, table: BronzeTable, made: Path, rows: int) -> Side:
    """A side: the load of the files into a fresh lake."""
    assert table.feed is not None
    arrived = Path(bench.settings.landing) / table.feed.path

    def run() -> float:
        fresh(bench)
        # Links, for the load moves its files away: making them anew would take as long as loading them.
        shutil.copytree(made, arrived, copy_function=os.link)
        seconds, record = timed_load(bench, table)
        assert (record.read, record.loaded) == (rows, rows), record
        return seconds

    return Side(name, run, rows, check=lambda: _check(bench.settings.lake / table.schema / table.name, rows))


def _stream(ground: Ground, made: Path, *, unset: Sequence[str] = (), most: int | None = None) -> Callable[[], float]:
    """A side: Spark's stream into a fresh Delta table.

    Args:
        unset: settings of the session that are to have their defaults meanwhile.
        most: files a trigger; None takes them all.
    """
    session, target = ground.session, ground.settings.home / "streamed"
    schema = T.StructType([T.StructField(c.name, c.type) for c in SENSOR_DATA.columns])

    @contextmanager
    def defaults() -> Iterator[None]:
        own = {name: str(session.conf.get(name)) for name in unset}
        for name in own:
            session.conf.unset(name)
        try:
            yield
        finally:
            for name, value in own.items():
                session.conf.set(name, value)

    def run() -> float:
        shutil.rmtree(target, ignore_errors=True)
        with defaults():
            began = time.perf_counter()
            reader = session.readStream.schema(schema).option("timestampFormat", FEED.timestamp_format)
            if most is not None:
                reader = reader.option("maxFilesPerTrigger", most)
            query = (
                reader.json(str(made))
                .writeStream.format("delta")
                .option("checkpointLocation", str(target / "checkpoint"))
                .trigger(availableNow=True)
                .start(str(target / "table"))
            )
            query.awaitTermination()
            return time.perf_counter() - began

    return run


def _check(target: Path, rows: int) -> None:
    """Every row arrived, with a value in every column: nobody may win by reading NULLs."""
    # Our own tables have statistics of few columns, so the log cannot tell.
    columns = ", ".join(f'count("{c.name}") as "{c.name}"' for c in SENSOR_DATA.columns)
    answer = QueryBuilder().register("t", DeltaTable(str(target))).execute(f"select count(*) as rows, {columns} from t")
    (found,) = pa.table(answer.read_all()).to_pylist()
    assert set(found.values()) == {rows}, f"{target} should have {rows:,} rows, and has {found}"


def _make_json_files(folder: Path, files: int, rows: int) -> Path:
    """Make that many files of faultless sensor data, as JSON lines, with a modified time an hour ago."""
    folder.mkdir(parents=True)
    now = dt.datetime.now(dt.UTC).replace(microsecond=0) - _AGE
    for file in range(files):
        lines = []
        for n in range(file * rows, (file + 1) * rows):
            row = {
                "sensor_id": f"S-{n % _SENSORS:04}",
                "timestamp": f"{now - dt.timedelta(seconds=n // _SENSORS):%Y-%m-%d %H:%M:%S}",
                "temperature": (1800 + n * 7919 % 1200) / 100,
                "humidity": (300 + n * 104_729 % 500) / 10,
                "pressure": (9900 + n * 1299 % 350) / 10,
            }
            lines.append(json.dumps(row) + "\n")
        _write_old(folder / f"sensors-{file:06}.json", "".join(lines), now)
    return folder


def _make_csv_day(folder: Path, size: int) -> int:
    """Make the files of yesterday, about that many bytes together; returns their rows.

    Every sensor measures once a second.
    """
    folder.mkdir(parents=True)
    day = dt.datetime.combine(dt.datetime.now(dt.UTC).date() - dt.timedelta(days=1), dt.time(), dt.UTC)
    row = len("S-000000,2026-01-01 00:00:00,20.55,45.5,1000.5\n")
    sensors = max(1, round(size / row / _FILES_A_DAY / _SECONDS_A_FILE))
    count = sensors * _SECONDS_A_FILE
    numbers = pa.array(range(count), pa.int64())
    second = pc.divide(numbers, sensors)
    names = pa.array([f"S-{n:06}" for n in range(sensors)])
    ids = names.take(pc.subtract(numbers, pc.multiply(second, sensors)))
    for file in range(_FILES_A_DAY):
        begin = day + dt.timedelta(seconds=file * _SECONDS_A_FILE)
        moments = [begin + dt.timedelta(seconds=n) for n in range(_SECONDS_A_FILE)]
        made = pa.table(
            {
                "sensor_id": ids,
                "timestamp": pa.array([f"{moment:%Y-%m-%d %H:%M:%S}" for moment in moments]).take(second),
                "temperature": _measured(numbers, file, 7919, 1200, 1800, 100),
                "humidity": _measured(numbers, file, 104_729, 500, 300, 10),
                "pressure": _measured(numbers, file, 1299, 350, 9900, 10),
            }
        )
        path = folder / f"sensors-{file:06}.csv"
        csv.write_csv(made, path, csv.WriteOptions(quoting_style="none"))
        os.utime(path, (day.timestamp() + (file + 1) * _SECONDS_A_FILE,) * 2)
    return count * _FILES_A_DAY


def _measured(numbers: pa.Array, file: int, factor: int, spread: int, least: int, unit: int) -> pa.Array:
    """`least` to `least + spread` units, scattered."""
    mixed = pc.multiply(pc.add(numbers, file), factor)
    rest = pc.subtract(mixed, pc.multiply(pc.divide(mixed, spread), spread))
    return pc.divide(pc.cast(pc.add(rest, least), pa.float64()), float(unit))


def _ticks(ground: Ground) -> Iterator[Scenario]:
    """What a sensor's tick costs over a folder of files that have all been loaded; it may read none of them."""
    bench = ground.workbench("lake")
    settings, count = bench.settings, ground.sizes.listed
    left = dataclasses.replace(FEED, loaded=Loaded.LEAVE)
    kept = dataclasses.replace(SENSOR_DATA.retention, archive_days=None)
    table = dataclasses.replace(SENSOR_DATA, files=left, retention=kept)
    now = dt.datetime.now(dt.UTC)
    fresh(bench)
    _make_listing(Path(settings.landing) / FEED.path, now, count)
    states = [
        FileState(file.path, FileEvent.LOADED, file.size, file.modified, f"{now:%F}", content_hash="0" * 64, rows=1)
        for file in bench.zone.files(FEED)
    ]
    Ledger(bench.lake, table, lambda: now, "bench").record(states, FileEvent.LOADED)
    (job,) = file_jobs([table], settings)
    unread = mock.patch.object(type(bench.zone), "open", side_effect=AssertionError("a tick reads no file"))

    def look() -> float:
        with dg.DagsterInstance.ephemeral() as instance, unread:
            began = time.perf_counter()
            result = tick(job, settings, instance, None, dt.datetime.now(dt.UTC))
            seconds = time.perf_counter() - began
        assert not result.run_requests, "all of them have been loaded"
        return seconds

    yield Scenario([Side("tick", look, count)], [Comparison(f"a sensor's tick over {count:,} loaded files", "tick")])
    fresh(bench)


def _make_listing(folder: Path, now: dt.datetime, count: int) -> None:
    """Fill a folder with tiny files, one row each, with a modified time an hour ago."""
    folder.mkdir(parents=True)
    row = '{"sensor_id": "S-%06d", "timestamp": "' + f"{now - _AGE:%Y-%m-%d %H:%M:%S}" + '", "temperature": 20.5}\n'
    for file in range(count):
        _write_old(folder / f"listed-{file:06}.json", row % file, now - _AGE)


def _write_old(path: Path, text: str, modified: dt.datetime) -> None:
    path.write_text(text, encoding="utf-8")
    os.utime(path, (modified.timestamp(), modified.timestamp()))
