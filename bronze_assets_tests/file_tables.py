"""What the tests of file loads share: a small table of files, files on the shelf of a clock, and one load."""

from __future__ import annotations

import csv
import datetime as dt
import gzip
import io
import itertools
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandera.pyspark as pa
import pyarrow.parquet as pq
import pyspark.sql.types as T

from bronze_assets.audit import LoadRecord
from bronze_assets.load import load
from bronze_assets.settings import Settings
from bronze_assets.table import BronzeTable, Cadence, Feed, column
from bronze_assets.workbench import Options, Run, Workbench
from bronze_assets_tests import lake_reader

SCHEMA = "shop_bronze"
NOW = dt.datetime(2026, 6, 15, 12, tzinfo=dt.UTC)
DAY, BEFORE, AFTER = "2026-06-15", "2026-06-14", "2026-06-16"
COLUMNS = ("thing_id", "name", "amount", "made_on", "made_at", "good")
HEADER = ",".join(COLUMNS)

_seconds = itertools.count()


class Things(pa.DataFrameModel):
    thing_id: T.IntegerType = column(key=True, gt=0, description="Identifies a thing.")
    name: T.StringType = column(description="What it is called.")
    amount: T.DecimalType = column(dtype_kwargs={"precision": 12, "scale": 4}, description="How much of it.")
    made_on: T.DateType = column(description="The day it was made.")
    made_at: T.TimestampType = column(description="The moment it was made.")
    good: T.BooleanType = column(description="Whether it is good.")


def things(**feed: Any) -> BronzeTable:
    """A table of things; arguments of its `Feed`."""
    return BronzeTable(
        SCHEMA, "shop.Things", Things, Cadence.STREAMING, "Things.", files=Feed("raw/things", **feed), source_system="S"
    )


def row(number: int, **values: Any) -> dict[str, Any]:
    """A good thing."""
    return {
        "thing_id": number,
        "name": f"thing {number}",
        "amount": 1.5,
        "made_on": "2026-06-01",
        "made_at": "2026-06-01 10:00:00",
        "good": True,
    } | values


def json_lines(*rows: Mapping[str, Any]) -> bytes:
    return "".join(json.dumps(one, ensure_ascii=False) + "\n" for one in rows).encode()


def csv_text(*rows: Mapping[str, Any], header: Sequence[str] = COLUMNS) -> bytes:
    target = io.StringIO()
    writer = csv.DictWriter(target, header, lineterminator="\n")
    writer.writeheader()
    writer.writerows({k: str(v).lower() if isinstance(v, bool) else v for k, v in one.items()} for one in rows)
    return target.getvalue().encode()


def drop(settings: Settings, name: str, content: bytes, *, modified: dt.datetime | None = None) -> Path:
    """Put a file into the landing zone of the things, older than the clock."""
    path = Path(settings.landing) / "raw/things" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    moment = modified or NOW - dt.timedelta(hours=1) + dt.timedelta(seconds=next(_seconds))
    os.utime(path, (moment.timestamp(), moment.timestamp()))
    return path


def loaded(
    settings: Settings, table: BronzeTable, day: str = DAY, *, now: dt.datetime = NOW, **options: Any
) -> LoadRecord:
    """One load, by a workbench of its own."""
    bench = Workbench(settings, clock=lambda: now)
    try:
        return load(table, day, bench, Run("run", "cli"), Options(**options))
    finally:
        bench.close()


def table_path(settings: Settings, name: str = "bz_things") -> Path:
    return settings.lake / SCHEMA / name


def ids(settings: Settings, where: str = "true") -> list[int]:
    return [one[0] for one in lake_reader.tuples(table_path(settings), "thing_id", where=where)]


def quarantine(settings: Settings) -> list[dict[str, Any]]:
    return lake_reader.read(table_path(settings, "bz_things_quarantine"), "select * from t order by file_name")


def reasons(settings: Settings) -> dict[str, list[str]]:
    """File → what was expected, and of a whole file what is wrong with it."""
    found: dict[str, list[str]] = {}
    for one in quarantine(settings):
        for reason in one["reasons"]:
            words = reason["found"] if reason["rule"] == "file" else f"{reason['column']}: {reason['expected']}"
            found.setdefault(one["file_name"].removeprefix("raw/things/"), []).append(words)
    return found


def states(settings: Settings) -> dict[str, str]:
    """File → its latest event."""
    rows = lake_reader.read(table_path(settings, "bz_file_ledger"), "select path, event, number from t order by number")
    return {one["path"].removeprefix("raw/things/"): one["event"] for one in rows}


def landing(settings: Settings) -> list[str]:
    return sorted(lake_reader.listing(Path(settings.landing) / "raw/things"))


def archive(settings: Settings) -> list[str]:
    return sorted(lake_reader.listing(Path(settings.archive) / "raw/things"))


def lines_in(path: Path) -> int:
    """How many rows a readable file has, counted without the code under test."""
    if path.suffix == ".parquet":
        return int(pq.ParquetFile(path).metadata.num_rows)
    content = gzip.decompress(path.read_bytes()) if path.suffix.lower() == ".gz" else path.read_bytes()
    if ".csv" in path.name.lower():
        rows = csv.reader(io.StringIO(content.decode("utf-8-sig"), newline=""))
        return sum(1 for one in rows if one) - 1
    return sum(1 for line in content.split(b"\n") if line.removeprefix(b"\xef\xbb\xbf").strip())
