"""Load of many small JSON files against Spark's own file stream, which writes them to Delta without any checks.

All read the same files in the same session, in turn, several times, each into a fresh table; the medians and their
ratios are printed. The stream takes as many files a trigger as a batch of ours takes by default: once as Spark comes,
once with the settings that our sessions have for small tables. Ours checks, hashes, records and archives, in batches of
the default size and as one batch (`Feed(max_files=…)`); the stream does none of that.

Then what a sensor's tick costs over a folder of files that have all been loaded; it may read none of them.
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime as dt
import json
import os
import platform
import shutil
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING
from unittest import mock

import dagster as dg
from pyspark.sql import types as T

from bronze_assets.catalog import manufacturing
from bronze_assets.lakehouse import Lakehouse
from bronze_assets.load import load
from bronze_assets.orchestration.jobs import file_jobs
from bronze_assets.orchestration.sensors import tick
from bronze_assets.settings import Settings
from bronze_assets.sources.landing import LandingZone
from bronze_assets.sources.ledger import FileEvent, FileState, Ledger
from bronze_assets.table import BronzeTable, Loaded
from bronze_assets.workbench import Run, Workbench, current_partition

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

FILES, ROWS = 5_000, 100
LISTED = 100_000
(SENSOR_DATA,) = (table for table in manufacturing.TABLES if table.name == "bz_sensor_data")
assert SENSOR_DATA.feed is not None
FEED = SENSOR_DATA.feed
# What our sessions set for small tables; Spark's and Delta's defaults are for large ones.
_OURS = ("spark.sql.shuffle.partitions", "spark.databricks.delta.snapshotPartitions")
_SENSORS = 500
# Older than any time for which a young file waits.
_AGE = dt.timedelta(hours=1)


def main() -> None:
    """Measure and print both sides."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.files", description=__doc__)
    parser.add_argument("--files", type=int, default=FILES)
    parser.add_argument("--rows", type=int, default=ROWS, help="of each file")
    parser.add_argument("--runs", type=int, default=3, help="runs of each side; the medians are compared")
    arguments = parser.parse_args()
    settings = bench_settings(Settings.from_environment())
    try:
        made = make_json_files(settings.home / "made", arguments.files, arguments.rows)
        with Workbench.open(settings, say=print) as bench:
            print(
                f"{os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}, {dt.date.today()}"
            )
            whole = dataclasses.replace(FEED, max_files=max(arguments.files, FEED.max_files))
            sides: dict[str, Callable[[], float]] = {
                "stream, as Spark comes": lambda: _stream(bench.session, settings, SENSOR_DATA, made, _OURS),
                "stream, our session": lambda: _stream(bench.session, settings, SENSOR_DATA, made),
                f"load, {FEED.max_files:,} files a batch": lambda: _load(bench, SENSOR_DATA, made),
                "load, one batch": lambda: _load(bench, dataclasses.replace(SENSOR_DATA, files=whole), made),
            }
            times: dict[str, list[float]] = {name: [] for name in sides}
            # The first round pays for the JIT on all sides and is not counted.
            for number in range(arguments.runs + 1):
                round_of = {name: side() for name, side in sides.items()}
                print("  ".join(f"{seconds:.2f} s" for seconds in round_of.values()), flush=True)
                if number:
                    for name, seconds in round_of.items():
                        times[name].append(seconds)
        rows = arguments.files * arguments.rows
        medians = {name: statistics.median(found) for name, found in times.items()}
        as_it_comes, tuned, *_ = medians.values()
        print(
            f"{arguments.files:,} files, {rows:,} rows{'s':>24}{'rows/s':>11}{'as it comes /':>15}{'our session /':>15}"
        )
        for name, seconds in medians.items():
            ratios = f"{as_it_comes / seconds:>15.2f}{tuned / seconds:>15.2f}"
            print(f"{name:<38}{seconds:>9.2f}{rows / seconds:>11,.0f}{ratios}")
        ticks = _ticks(dataclasses.replace(settings, home=settings.home / "listed"), arguments.runs)
        print(f"a tick over {LISTED:,} loaded files: {statistics.median(ticks):.2f} s, none of them read")
    finally:
        shutil.rmtree(settings.home, ignore_errors=True)


def bench_settings(settings: Settings) -> Settings:
    """Settings of a home of its own below the given one, with that one's jars."""
    home = settings.home / "bench" / "files"
    jars = settings.home / "jars"
    return dataclasses.replace(
        settings,
        home=home,
        lake=home / "lake",
        landing=str(home / "landing"),
        archive=str(home / "archive"),
        jars=settings.jars or (jars if jars.is_dir() else None),
    )


def make_json_files(folder: Path, files: int, rows: int) -> Path:
    """Make that many files of faultless sensor data, as JSON lines, with a modified time an hour ago.

    Returns:
        The folder.
    """
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


def _ticks(settings: Settings, runs: int) -> list[float]:
    """Seconds of each look of the sensor at that many files which have all been loaded."""
    settings = dataclasses.replace(
        settings,
        lake=settings.home / "lake",
        landing=str(settings.home / "landing"),
        archive=str(settings.home / "archive"),
    )
    table = dataclasses.replace(SENSOR_DATA, files=dataclasses.replace(FEED, loaded=Loaded.LEAVE))
    zone = LandingZone(settings.landing, settings.archive)
    now = dt.datetime.now(dt.UTC)
    _make_listing(Path(settings.landing) / FEED.path, now)
    states = [
        FileState(file.path, FileEvent.LOADED, file.size, file.modified, f"{now:%F}", content_hash="0" * 64, rows=1)
        for file in zone.files(FEED)
    ]
    Ledger(Lakehouse(settings.lake), table, lambda: now, "bench").record(states, FileEvent.LOADED)
    (job,) = file_jobs([table], settings)
    took = []
    unread = mock.patch.object(LandingZone, "open", side_effect=AssertionError("a tick reads no file"))
    with dg.DagsterInstance.ephemeral() as instance, unread:
        for _ in range(runs + 1):
            began = time.perf_counter()
            result = tick(job, settings, instance, None, dt.datetime.now(dt.UTC))
            took.append(time.perf_counter() - began)
            assert not result.run_requests, "all of them have been loaded"
    return took[1:]


def _make_listing(folder: Path, now: dt.datetime) -> None:
    """Fill a folder with tiny files, one row each, with a modified time an hour ago."""
    folder.mkdir(parents=True)
    row = '{"sensor_id": "S-%06d", "timestamp": "' + f"{now - _AGE:%Y-%m-%d %H:%M:%S}" + '", "temperature": 20.5}\n'
    for file in range(LISTED):
        _write_old(folder / f"listed-{file:06}.json", row % file, now - _AGE)


def _write_old(path: Path, text: str, modified: dt.datetime) -> None:
    path.write_text(text, encoding="utf-8")
    os.utime(path, (modified.timestamp(), modified.timestamp()))


def _stream(
    session: SparkSession, settings: Settings, table: BronzeTable, made: Path, unset: Sequence[str] = ()
) -> float:
    """Seconds of Spark's stream.

    Args:
        unset: settings of the session that are to have their defaults meanwhile.
    """
    own = {name: str(session.conf.get(name)) for name in unset}
    for name in own:
        session.conf.unset(name)
    try:
        return _streamed(session, settings, table, made)
    finally:
        for name, value in own.items():
            session.conf.set(name, value)


def _streamed(session: SparkSession, settings: Settings, table: BronzeTable, made: Path) -> float:
    assert table.feed is not None
    target, checkpoint = settings.home / "streamed", settings.home / "checkpoint"
    for folder in (target, checkpoint):
        shutil.rmtree(folder, ignore_errors=True)
    schema = T.StructType([T.StructField(c.name, c.type) for c in table.columns])
    began = time.perf_counter()
    query = (
        session.readStream.schema(schema)
        .option("maxFilesPerTrigger", table.feed.max_files)
        .option("timestampFormat", table.feed.timestamp_format)
        .json(str(made))
        .writeStream.format("delta")
        .option("checkpointLocation", str(checkpoint))
        .trigger(availableNow=True)
        .start(str(target))
    )
    query.awaitTermination()
    seconds = time.perf_counter() - began
    _check(session, target, table, made)
    return seconds


def _load(bench: Workbench, table: BronzeTable, made: Path) -> float:
    settings = bench.settings
    assert table.feed is not None
    for folder in (settings.lake, Path(settings.landing), Path(settings.archive)):
        shutil.rmtree(folder, ignore_errors=True)
    arrived = Path(settings.landing) / table.feed.path
    # Links, for the load moves its files away: making them anew would take as long as loading them.
    shutil.copytree(made, arrived, copy_function=os.link)
    bench.close()
    began = time.perf_counter()
    load(table, current_partition(table.cadence, bench.clock()), bench, Run("bench", "manual"))
    seconds = time.perf_counter() - began
    _check(bench.session, settings.lake / table.schema / table.name, table, made)
    return seconds


def _check(session: SparkSession, target: Path, table: BronzeTable, made: Path) -> None:
    """Every row arrived, with a value in every column: neither side may win by reading NULLs."""
    frame = session.read.format("delta").load(str(target))
    found = frame.dropna(subset=[c.name for c in table.columns]).count()
    with next(made.iterdir()).open() as file:
        expected = sum(1 for _ in made.iterdir()) * sum(1 for _ in file)
    assert found == expected, f"{target.name} has {found:,} of {expected:,} rows"


if __name__ == "__main__":
    main()
