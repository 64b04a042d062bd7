"""How long a committed row takes to bronze, with `make ui` running on the demo's defaults.

Starts the UI as a user would, changes the demo's tables at a steady rate, waits until everything is loaded, and
measures from outside: the commit time of each change, as its landing file has it, against the time of the Delta commit
that brought it, as the table's log has it.
"""

from __future__ import annotations

import argparse
import datetime as dt
import json
import os
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path

import pyarrow as pa
from deltalake import DeltaTable, QueryBuilder

from bronze_assets.catalog import inventory
from bronze_assets.demo.changes import make_changes
from bronze_assets.privacy.keys import existing_ring
from bronze_assets.settings import Settings
from bronze_assets.sources.landing import LandingZone

SCHEMA = inventory.SCHEMA


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.latency", description=__doc__)
    parser.add_argument("--rate", type=float, default=100.0, help="changes a second (default: 100)")
    parser.add_argument("--seconds", type=float, default=600.0, help="for how long (default: 600)")
    arguments = parser.parse_args()
    settings = Settings.from_environment()
    if not (settings.home / "postgres").is_dir():
        subprocess.run([sys.executable, "-m", "bronze_assets.demo", "demo"], check=True)
    log = settings.home / "latency-ui.log"
    with log.open("w") as out:
        ui = subprocess.Popen(
            [sys.executable, "-m", "bronze_assets.demo", "ui"], stdout=out, stderr=subprocess.STDOUT, env=os.environ
        )
        try:
            # Until its sensors tick.
            time.sleep(45)
            began = dt.datetime.now(dt.UTC)
            made = make_changes(settings, rate=arguments.rate, seconds=arguments.seconds, say=print)
            ended = dt.datetime.now(dt.UTC)
            _wait_until_loaded(settings)
        finally:
            ui.send_signal(signal.SIGINT)
            ui.wait(60)
    log.unlink()
    ages = sorted(_ages(settings, began, ended))
    print(f"{os.cpu_count()} cores, {dt.date.today()}: {sum(made.values()):,} changes in {arguments.seconds:g} s")
    for name, at in (("p50", 0.5), ("p95", 0.95), ("max", 1.0)):
        print(f"{name}  {ages[min(len(ages) - 1, int(at * len(ages)))]:6.1f} s")
    print(f"mean {statistics.fmean(ages):6.1f} s over {len(ages):,} rows in bronze")


def _wait_until_loaded(settings: Settings) -> None:
    quiet_since = time.monotonic()
    while time.monotonic() - quiet_since < 25:
        time.sleep(1)
        if any(_files(Path(settings.landing))):
            quiet_since = time.monotonic()


def _files(root: Path) -> list[Path]:
    return [path for path in (root / SCHEMA).glob("bz_*/*/*.json") if not path.name.startswith(".")]


def _ages(settings: Settings, began: dt.datetime, ended: dt.datetime) -> list[float]:
    """Seconds from commit to commit of every change that was made between the two moments."""
    ledger = _rows(settings.lake / SCHEMA / "bz_file_ledger", "select path, batch_id from t where event = 'loaded'")
    batch_of = {row["path"]: row["batch_id"] for row in ledger}
    # Files of tables with personal data are archived encrypted.
    zone = LandingZone(settings.landing, settings.archive, lambda: existing_ring(settings))
    ages = []
    for table in inventory.TABLES:
        if table.feed is None:
            continue
        history = DeltaTable(str(settings.lake / SCHEMA / table.name)).history()
        committed = {(commit.get("userMetadata") or "").split(" ")[0]: commit["timestamp"] / 1000 for commit in history}
        for day in zone.archived_days(table.feed):
            for file in zone.archived(table.feed, day):
                with zone.open(file) as stream:
                    lines = stream.read().decode().splitlines()
                for line in lines:
                    moment = json.loads(line)["__source_ts_ms"] / 1000
                    if began.timestamp() <= moment <= ended.timestamp():
                        ages.append(committed[batch_of[file.path]] - moment)
    return ages


def _rows(path: Path, query: str) -> list[dict[str, str]]:
    answer = QueryBuilder().register("t", DeltaTable(str(path))).execute(query)
    rows: list[dict[str, str]] = pa.table(answer.read_all()).to_pylist()
    return rows


if __name__ == "__main__":
    main()
