"""Full load of generated rows against a bare `spark.read.jdbc` → Delta copy of the same rows in the same session.

The bare copy has the same partitioning and reads with as many connections; it checks, hashes and records nothing. Both
are run in turn, several times, each into a fresh table; the medians and the ratio of the medians are printed.

Then what protection costs: 1,000,000 customers with two encrypted columns, all of them new, against the same load of a
table that declares nothing personal.
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime as dt
import os
import platform
import shutil
import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pandera.pyspark as pa
import pyspark.sql.types as T

from bronze_assets.catalog.inventory import EMAIL, MONEY, TABLES
from bronze_assets.demo import postgres
from bronze_assets.demo.generate import generate_orders
from bronze_assets.load import load
from bronze_assets.settings import Settings
from bronze_assets.table import BronzeTable, Impact, Layout, column
from bronze_assets.workbench import Run, Workbench, current_partition

PRODUCTS, ORDERS, CUSTOMERS = (
    next(t for t in TABLES if t.name == name) for name in ("bz_products", "bz_orders", "bz_customers")
)


def main() -> None:
    """Measure and print one table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--rows", type=int, nargs="*", default=[1_000_000, 3_000_000], help="source rows")
    parser.add_argument("--runs", type=int, default=3, help="runs of each side; the medians are compared")
    parser.add_argument("--customers", type=int, default=1_000_000, help="rows to protect")
    arguments = parser.parse_args()
    settings = Settings.from_environment()
    home = settings.home / "bench"
    settings = dataclasses.replace(
        settings,
        home=home,
        lake=home / "lake",
        source_url=f"file:{home / 'postgres' / 'source_url'}",
        jars=settings.jars or _jars(settings),
    )
    with _server(settings) as url, Workbench.open(settings, say=print) as bench:
        print(f"{os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}, {dt.date.today()}")
        print(f"{'table':26}{'rows':>11}{'bare copy s':>13}{'load s':>9}{'ratio':>7}{'driver MB':>11}")
        for rows in arguments.rows:
            _generate(url, rows)
            for table, label in (
                (dataclasses.replace(PRODUCTS, layout=Layout()), "products, unpartitioned"),
                (dataclasses.replace(ORDERS, layout=Layout()), "orders, unpartitioned"),
                (ORDERS, "orders, by order_date"),
            ):
                _measure(bench, table, label, rows, arguments.runs)
        _measure_protection(bench, url, arguments.customers, arguments.runs)


def _measure(bench: Workbench, table: BronzeTable, label: str, rows: int, runs: int) -> None:
    bare, full = [], []
    # The first round pays for the JIT on both sides and is not counted.
    for number in range(runs + 1):
        times = (_bare_copy(bench, table, rows), _load(bench, table, rows))
        if number:
            bare.append(times[0])
            full.append(times[1])
    a, b = statistics.median(bare), statistics.median(full)
    print(f"{label:26}{rows:>11,}{a:>13.2f}{b:>9.2f}{b / a:>7.2f}{_driver_megabytes():>11,}", flush=True)


class Unprotected(pa.DataFrameModel):  # type: ignore[type-arg]
    """The customers, as if nothing of them were personal."""

    customer_id: T.IntegerType = column(key=True, gt=0, description="Identifies a customer.")
    customer_name: T.StringType = column(description="Full name.")
    email: T.StringType = column(str_matches=EMAIL, impact=Impact.MEDIUM, description="Address for order mail.")


def _measure_protection(bench: Workbench, url: str, rows: int, runs: int) -> None:
    with postgres.connect(url) as connection, connection.cursor() as cursor:
        cursor.execute(
            "create schema if not exists tests; drop table if exists tests.customers;"
            "create table tests.customers (customer_id int primary key, customer_name text, email text);"
            "insert into tests.customers select i, 'Zoë Customer ' || i, 'customer.' || i || '@example.org'"
            " from generate_series(1, %s) i; analyze tests.customers",
            (rows,),
        )
    plain, protected = [], []
    for number in range(runs + 1):
        times = (_load(bench, dataclasses.replace(CUSTOMERS, model=Unprotected), rows), _load(bench, CUSTOMERS, rows))
        if number:
            plain.append(times[0])
            protected.append(times[1])
    a, b = statistics.median(plain), statistics.median(protected)
    print(f"{'table':26}{'rows':>11}{'plain s':>13}{'protected':>9}{'ratio':>7}{'driver MB':>11}")
    print(f"{'customers':26}{rows:>11,}{a:>13.2f}{b:>9.2f}{b / a:>7.2f}{_driver_megabytes():>11,}", flush=True)


def _bare_copy(bench: Workbench, table: BronzeTable, rows: int) -> float:
    target = bench.settings.home / "bare"
    shutil.rmtree(target, ignore_errors=True)
    session = bench.session
    address = bench.source._address
    began = time.perf_counter()
    frame = session.read.jdbc(
        address.jdbc_options()["url"],
        table.source.lower(),
        column=table.key[0].name,
        lowerBound=1,
        upperBound=rows,
        numPartitions=bench.settings.read_connections,
        properties={
            "user": address.user,
            "password": str(address.jdbc_options()["password"]),
            "driver": "org.postgresql.Driver",
            "fetchsize": "10000",
        },
    )
    writer = frame.write.format("delta").mode("overwrite")
    if table.layout.partition_by:
        writer = writer.partitionBy(table.layout.partition_by)
    writer.save(str(target))
    seconds = time.perf_counter() - began
    copied = session.read.format("delta").load(str(target)).count()
    assert copied == rows, f"the bare copy has {copied} of {rows} rows"
    return seconds


def _load(bench: Workbench, table: BronzeTable, rows: int) -> float:
    shutil.rmtree(bench.settings.lake, ignore_errors=True)
    bench.close()
    began = time.perf_counter()
    record = load(table, current_partition(table.cadence, bench.clock()), bench, Run("bench", "manual"))
    seconds = time.perf_counter() - began
    assert (record.read, record.loaded) == (rows, rows), record
    return seconds


def _generate(url: str, rows: int) -> None:
    with postgres.connect(url) as connection:
        with connection.cursor() as cursor:
            cursor.execute("create schema if not exists tests")
            cursor.execute("drop table if exists tests.products, tests.orders")
            cursor.execute(
                "create table tests.products (product_id int primary key, product_name text, category text,"
                f" unit_price numeric({MONEY['precision']},{MONEY['scale']}))"
            )
            cursor.execute(
                "insert into tests.products select i, 'Product number ' || i, 'category ' || i %% 40,"
                " (i %% 90000) / 100.0 from generate_series(1, %s) i",
                (rows,),
            )
        connection.commit()
        generate_orders(connection, rows)
        connection.commit()
        connection.autocommit = True
        with connection.cursor() as cursor:
            cursor.execute("vacuum analyze")


@contextmanager
def _server(settings: Settings) -> Iterator[str]:
    url = postgres.start(settings, print)
    try:
        yield url
    finally:
        postgres.stop(settings)
        postgres.remove(settings)
        shutil.rmtree(settings.home, ignore_errors=True)


def _jars(settings: Settings) -> Path | None:
    folder = settings.home / "jars"
    return folder if folder.is_dir() else None


def _driver_megabytes() -> int:
    """Peak resident memory of the Spark driver, the only Java process below this one; 0 where /proc is missing."""
    peak = 0
    for status in Path("/proc").glob("[0-9]*/status"):
        try:
            fields = dict(line.split(":", 1) for line in status.read_text().splitlines() if ":" in line)
        except OSError:
            continue
        if fields["Name"].strip() == "java" and _descends(int(fields["PPid"])):
            peak = max(peak, int(fields.get("VmHWM", "0 kB").split()[0]) // 1024)
    return peak


def _descends(pid: int) -> bool:
    while pid > 1:
        if pid == os.getpid():
            return True
        try:
            pid = int(Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[1])
        except OSError:
            return False
    return False


if __name__ == "__main__":
    main()
