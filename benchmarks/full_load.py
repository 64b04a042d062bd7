"""Full loads of orders: against a bare Spark copy, against dlt, against the limit of the machine, and as they grow.

The bare copy has the same partitioning and reads with as many connections. It checks, hashes and records nothing, and
neither do dlt and ADBC: all but the keys, types and rows is ours alone.
"""

from __future__ import annotations

import dataclasses
import shutil
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from deltalake import DeltaTable

from benchmarks.ground import Ground, loads_anew
from benchmarks.measure import Comparison, Scenario, Side
from bronze_assets.catalog.inventory import TABLES
from bronze_assets.demo import postgres
from bronze_assets.demo.generate import generate_orders
from bronze_assets.sources.postgres_address import Address
from bronze_assets.table import BronzeTable, Layout

if TYPE_CHECKING:
    from pyspark.sql import DataFrame

(ORDERS,) = (table for table in TABLES if table.name == "bz_orders")
_RIVALS = {"dlt, ConnectorX": "dlt-connectorx", "dlt, PyArrow": "dlt-pyarrow", "ADBC to delta-rs": "adbc"}
_GOALS = {"bare Spark copy": 1.5, "dlt, ConnectorX": 1.0, "dlt, PyArrow": 1.0, "ADBC to delta-rs": None}


def full_loads(ground: Ground) -> Iterator[Scenario]:
    """Unpartitioned, and by order_date."""
    rows = ground.sizes.orders
    make_orders(ground, ORDERS, rows)
    for table, label in (
        (dataclasses.replace(ORDERS, layout=Layout()), "full load, orders, unpartitioned"),
        (ORDERS, "full load, orders, by order_date"),
    ):
        others = [Side("bare Spark copy", bare_copy(ground, table, rows), rows)]
        if not ground.sizes.reduced:
            rivals = ground.rivals
            others += [
                Side(name, rivals.copy(copy, ground.url, table, rows), rows, rivals.pid)
                for name, copy in _RIVALS.items()
            ]
        yield Scenario(
            [Side("load", loads_anew(ground.workbench("lake"), table, rows), rows), *others],
            [Comparison(label, "load", other.name, _GOALS[other.name]) for other in others],
        )
    ground.forget("tests.orders")


def growth(ground: Ground) -> Iterator[Scenario]:
    """Time per row of larger loads, against that of the first."""
    sides = []
    for rows in ground.sizes.growth:
        table = dataclasses.replace(ORDERS, source=f"tests.Orders_{rows}")
        make_orders(ground, table, rows)
        sides.append(Side(f"load of {rows:,}", loads_anew(ground.workbench("lake"), table, rows), rows))
    first, *more = sides
    yield Scenario(
        sides,
        [Comparison(f"growth, to {side.rows:,} rows", side.name, first.name, 1.1, per_row=True) for side in more],
        note=lambda: "ratio of times per row",
    )
    ground.forget(*(f"tests.orders_{rows}" for rows in ground.sizes.growth))


def make_orders(ground: Ground, table: BronzeTable, rows: int) -> None:
    """Make the source table of that many orders."""
    with postgres.connect(ground.url) as connection:
        generate_orders(connection, rows, table.source.lower().split(".")[1])
    ground.execute(f"vacuum analyze {table.source.lower()}")


def bare_copy(ground: Ground, table: BronzeTable, rows: int) -> Callable[[], float]:
    """A side: `spark.read.jdbc` → Delta."""
    target = ground.settings.home / "bare"

    def run() -> float:
        shutil.rmtree(target, ignore_errors=True)
        began = time.perf_counter()
        writer = plain_read(ground, table, rows).write.format("delta").mode("overwrite")
        if table.layout.partition_by:
            writer = writer.partitionBy(table.layout.partition_by)
        writer.save(str(target))
        seconds = time.perf_counter() - began
        # As the log counts them.
        copied = DeltaTable(str(target)).count()
        assert copied == rows, f"the bare copy has {copied:,} of {rows:,} rows"
        return seconds

    return run


def plain_read(ground: Ground, table: BronzeTable, rows: int) -> DataFrame:
    """The source table as Spark's documentation reads one, in as many ranges of the key as our loads do."""
    options = Address.parse(ground.url).jdbc_options()
    return ground.session.read.jdbc(
        options["url"],
        table.source.lower(),
        column=table.key[0].name,
        lowerBound=1,
        upperBound=rows,
        numPartitions=ground.settings.read_connections,
        properties={name: str(options[name]) for name in ("user", "password", "driver")} | {"fetchsize": "10000"},
    )
