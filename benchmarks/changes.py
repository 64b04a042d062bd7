"""Incremental loads: few changed rows of many, through a snapshot that is compared and through capture files.

Captured changes are timed from the drain of the replication slot on. Each side has a source table of its own, so that
none sees the changes of another.
"""

from __future__ import annotations

import dataclasses
import itertools
import time
from collections.abc import Callable, Iterator

from benchmarks.full_load import ORDERS, make_orders, plain_read
from benchmarks.ground import Ground, fresh, loads_anew, timed_load
from benchmarks.measure import Comparison, Scenario, Side
from bronze_assets.capture import Capture
from bronze_assets.settings import CaptureMode
from bronze_assets.table import BronzeTable

CAPTURED, SMALL = (dataclasses.replace(ORDERS, source=f"tests.{name}") for name in ("Captured", "Captured_Small"))
_SMALLER = 10


def incremental(ground: Ground) -> Iterator[Scenario]:
    """Against the full load of the same table; and capture against itself with a tenth of the rows in the table."""
    rows, changed = ground.sizes.orders, ground.sizes.changed
    small = max(rows // _SMALLER, changed)
    for table, count in ((ORDERS, rows), (CAPTURED, rows), (SMALL, small)):
        make_orders(ground, table, count)
    bench = ground.workbench("lake-captured", CaptureMode.BUILTIN)
    capture = Capture(ground.url, bench.settings.landing, [CAPTURED, SMALL])
    fresh(bench)
    capture.drain()
    try:
        by_capture = {}
        for table, count in ((CAPTURED, rows), (SMALL, small)):
            loaded = timed_load(bench, table)[1].loaded
            assert loaded == count, loaded

            def drained(table: BronzeTable = table) -> float:
                began = time.perf_counter()
                capture.drain()
                drain = time.perf_counter() - began
                seconds, record = timed_load(bench, table)
                assert record.loaded == changed, record
                return drain + seconds

            # What others have written to the log since then is no part of these changes.
            by_capture[table] = _after_changes(ground, table, count, drained, before=lambda: [capture.drain()])
        compared = ground.workbench("lake-compared")
        fresh(compared)
        timed_load(compared, ORDERS)

        def compare() -> float:
            seconds, record = timed_load(compared, ORDERS)
            assert (record.read, record.loaded, record.unchanged) == (rows, changed, rows - changed), record
            return seconds

        def read() -> float:
            began = time.perf_counter()
            plain_read(ground, ORDERS, rows).write.format("noop").mode("overwrite").save()
            return time.perf_counter() - began

        full, snapshot, jdbc = "full load", "through a snapshot", "the JDBC read alone"
        captured, of_small = "through capture", f"through capture, {small:,} rows in the table"
        yield Scenario(
            [
                Side(full, loads_anew(ground.workbench("lake"), ORDERS, rows), rows),
                Side(snapshot, _after_changes(ground, ORDERS, rows, compare), changed),
                Side(jdbc, read, rows),
                Side(captured, by_capture[CAPTURED], changed),
                Side(of_small, by_capture[SMALL], changed),
            ],
            [
                Comparison(f"{changed:,} changed of {rows:,}, snapshot", snapshot, full, 0.6),
                Comparison("the JDBC read alone", jdbc, full),
                Comparison(f"{changed:,} changed of {rows:,}, capture", captured, full, 0.1),
                Comparison(f"capture, {rows:,} rows in the table", captured, of_small, 1.1),
            ],
        )
    finally:
        bench.close()
        capture.drop()
        ground.forget("tests.orders", "tests.captured", "tests.captured_small")


def _after_changes(
    ground: Ground, table: BronzeTable, rows: int, run: Callable[[], float], before: Callable[[], object] = lambda: None
) -> Callable[[], float]:
    """A side that is run when so many rows of the table, all over it, have got another value."""
    step = rows // ground.sizes.changed
    turns = itertools.count()

    def after() -> float:
        before()
        turn = next(turns)
        ground.execute(
            f"update {table.source.lower()} set order_status = 'TURN {turn}' where order_id in"
            f" (select order_id from {table.source.lower()} where order_id % {step} = {turn % step}"
            f" order by order_id limit {ground.sizes.changed})"
        )
        return run()

    return after
