"""A load into a table that has been loaded for long, against the same load into a fresh one.

The old table got its commits one after the other: the first by a load, the others as files of a few rows each, with
what the batch log and the audit say of them. The source then changes every row, so that both loads write as many.
"""

from __future__ import annotations

import dataclasses
import datetime as dt
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from deltalake import CommitProperties, DeltaTable, write_deltalake

from benchmarks.full_load import ORDERS
from benchmarks.ground import Ground, fresh, loads_anew, timed_load
from benchmarks.measure import Comparison, Scenario, Side
from bronze_assets.audit import AUDIT_LOG
from bronze_assets.batches import BATCHES
from bronze_assets.workbench import Workbench

TABLE = dataclasses.replace(ORDERS, source="tests.Aged")
_CONTROL = (BATCHES, AUDIT_LOG)
# As Spark does when it commits.
_CHECKPOINT_EVERY = 10


def aged(ground: Ground) -> Iterator[Scenario]:
    """A thousand commits and three hundred partitions against none."""
    rows, partitions, commits = ground.sizes.aged_rows, ground.sizes.partitions, ground.sizes.commits
    ground.execute(
        "create schema if not exists tests",
        "drop table if exists tests.aged",
        "create table tests.aged (order_id bigint primary key, customer_id int, order_date date, order_status text)",
        f"insert into tests.aged select i, i % 1000, current_date - {partitions} + (i - 1) / {rows // partitions + 1},"
        f" 'NEW' from generate_series(1, {rows}) i",
        "vacuum analyze tests.aged",
    )
    old, bench = ground.workbench("lake-old"), ground.workbench("lake-again")
    _age(ground, old, commits)
    ground.execute("update tests.aged set order_status = 'OLD'", "vacuum analyze tests.aged")
    made = DeltaTable(str(_place(old, TABLE.name)))
    days = len(set(pa.table(made.get_add_actions(flatten=True))["partition.order_date"].to_pylist()))
    assert made.version() >= commits, made.version()

    def into_old() -> float:
        fresh(bench)
        shutil.copytree(old.settings.lake, bench.settings.lake, copy_function=_copy)
        seconds, record = timed_load(bench, TABLE)
        assert (record.loaded, record.table_rows) == (rows, 2 * rows), record
        return seconds

    yield Scenario(
        [
            Side("into a fresh table", loads_anew(ground.workbench("lake"), TABLE, rows), rows),
            Side("into an old table", into_old, rows),
        ],
        [Comparison(f"{made.version():,} commits, {days} partitions", "into an old table", "into a fresh table", 1.5)],
    )
    ground.forget("tests.aged")


def _age(ground: Ground, bench: Workbench, commits: int) -> None:
    """Give the table all rows of the source, in so many commits."""
    fresh(bench)
    timed_load(bench, TABLE)
    loaded = DeltaTable(str(_place(bench, TABLE.name))).to_pyarrow_table().sort_by("order_id")
    fresh(bench)
    part = -(-loaded.num_rows // commits)
    ground.execute("create table tests.later as select * from tests.aged")
    ground.execute(f"delete from tests.aged where order_id > {part}")
    timed_load(bench, TABLE)
    ground.execute(
        f"insert into tests.aged select * from tests.later where order_id > {part}", "drop table tests.later"
    )
    first = {name: _rows(bench, name) for name in _CONTROL}
    moment = dt.datetime.now(dt.UTC)
    for number in range(1, -(-loaded.num_rows // part)):
        # Twenty-four loads a day, the last of them yesterday.
        age = dt.timedelta(days=1, hours=commits - number)
        day = (moment - age).date()
        batch_id = f"{day}/{number}"
        rows = loaded.slice(number * part, part)
        write_deltalake(
            str(_place(bench, TABLE.name)),
            _with(rows, batch_id=batch_id),
            mode="append",
            commit_properties=CommitProperties(custom_metadata={"userMetadata": batch_id}),
        )
        if number % _CHECKPOINT_EVERY == 0:
            DeltaTable(str(_place(bench, TABLE.name))).create_checkpoint()
        for name, of_first in first.items():
            told = _with(_older(of_first, age), batch_id=batch_id, partition_key=str(day))
            bench.lake.append_rows(TABLE.schema, name, told.schema, told.to_pylist())


def _rows(bench: Workbench, name: str) -> pa.Table:
    return DeltaTable(str(_place(bench, name))).to_pyarrow_table()


def _with(rows: pa.Table, **values: Any) -> pa.Table:
    for place, field in enumerate(rows.schema):
        if field.name in values:
            rows = rows.set_column(place, field, pa.array([values[field.name]] * rows.num_rows, field.type))
    return rows


def _older(rows: pa.Table, age: dt.timedelta) -> pa.Table:
    for place, field in enumerate(rows.schema):
        if pa.types.is_timestamp(field.type):
            rows = rows.set_column(place, field, pc.subtract(rows.column(place), pa.scalar(age, pa.duration("us"))))
    return rows


def _place(bench: Workbench, name: str) -> Path:
    return bench.settings.lake / TABLE.schema / name


def _copy(source: str, target: str) -> None:
    """Data files are linked, for nobody changes them; a log has files that are written anew in their place."""
    if "_delta_log" in source or not source.endswith(".parquet"):
        shutil.copy2(source, target)
    else:
        Path(target).hardlink_to(source)
