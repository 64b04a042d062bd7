"""Leases, in the control table `bz_leases` of each schema: who is at work, seen from any machine.

A heartbeat shows that a holder lives. One on this machine whose process is gone is dead at once; one elsewhere when its
heartbeat has stood still. A process that was only paused is fenced off at its commit (`Lakehouse.append`).
"""

from __future__ import annotations

import datetime as dt
import logging
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psutil
import pyarrow as pa

from bronze_assets import storage as stored
from bronze_assets.control_tables import ControlTables, retried
from bronze_assets.errors import BronzeError, TableBusy
from bronze_assets.storage import Conflict, Storage, sql_literal

logger = logging.getLogger(__name__)

LEASES = "bz_leases"
_PRIVATE = "private tables"
"""What the holder of a schema's private tables has leased; who holds them with others has added a slash and a token."""
_LEASE = pa.schema(
    [
        ("table_name", pa.string()),
        ("token", pa.string()),
        ("run_id", pa.string()),
        ("host", pa.string()),
        ("pid", pa.int64()),
        ("process_start", pa.string()),
        ("beat", pa.int64()),
        ("beat_time", pa.timestamp("us", tz="UTC")),
        ("released", pa.bool_()),
        ("expected", pa.string()),
    ]
)


@contextmanager
def lease(lake: ControlTables, schema: str, name: str, run_id: str, seconds: float) -> Iterator[None]:
    """Hold a table for one load.

    Args:
        seconds: silence after which a holder on another machine counts as dead.

    Raises:
        TableBusy: another load of the table is alive.
    """
    mine = _Lease(lake, schema, name, run_id)
    holder = mine.put()
    while holder["token"] != mine.token:
        if not _dead(holder):
            _wait_until_still(lake, schema, holder, seconds)
        holder = mine.put(expected=holder["token"])
    with mine.beating(seconds):
        yield


def holder(lake: ControlTables, schema: str, name: str, seconds: float, now: dt.datetime) -> str | None:
    """The run that holds the table; None if nobody does who is alive.

    Args:
        seconds: silence after which a load on another machine counts as dead.
    """
    for row in lake.rows(schema, LEASES, where=f"table_name = {sql_literal(name)}"):
        here = row["host"] == socket.gethostname()
        if not _dead(row) and (here or now - row["beat_time"] < dt.timedelta(seconds=seconds)):
            return str(row["run_id"])
    return None


def forget_released(lake: ControlTables, schema: str, before: dt.datetime) -> int:
    """Remove the rows of those who had let go before that moment; returns how many there were."""
    moment = before.astimezone(dt.UTC)
    gone = [row for row in _rows(lake, schema, "released") if row["beat_time"] < moment]
    if gone:
        rows, place = pa.Table.from_pylist(gone, schema=_LEASE), lake.location(schema, LEASES)
        # Not those whom somebody has taken over meanwhile.
        same = "t.released and t.token = s.token"
        retried(lambda: lake.storage.merge(place, rows, ("delete",), on="table_name", where=same))
    return len(gone)


@contextmanager
def alone(storage: Storage, schema: str, seconds: float) -> Iterator[None]:
    """Hold the private tables of a schema alone; who comes later waits, who holds them already is waited for.

    Raises:
        TableBusy: it took `storage.HOLD_SECONDS`.
    """
    lake, others = ControlTables(storage), _Others(schema, seconds)
    mine = _Lease(lake, schema, _PRIVATE, "")
    holder = mine.put()
    while holder["token"] != mine.token:
        if others.gone(holder):
            holder = mine.put(expected=holder["token"])
            continue
        others.wait()
        holder = mine.put()
    with mine.beating(seconds):
        while True:
            there = _rows(lake, schema, f"table_name like '{_PRIVATE}/%'")
            for row in filter(others.gone, there):
                # Of one who was killed: nobody else would take it away.
                _Lease(lake, schema, row["table_name"], "").remove()
            if all(map(others.gone, there)):
                break
            others.wait()
        yield


@contextmanager
def beside(storage: Storage, schema: str, seconds: float) -> Iterator[None]:
    """Hold the private tables of a schema with others.

    Each writes first and looks then, so that of two who want the opposite at least one sees the other.

    Raises:
        TableBusy: it took `storage.HOLD_SECONDS`.
    """
    lake, others = ControlTables(storage), _Others(schema, seconds)
    token = uuid.uuid4().hex
    while True:
        mine = _Lease(lake, schema, f"{_PRIVATE}/{token}", "")
        mine.put()
        if all(others.gone(row) for row in _rows(lake, schema, f"table_name = '{_PRIVATE}'")):
            break
        mine.remove()
        others.wait()
    with mine.beating(seconds, remove=True):
        yield


class _Lease:
    """A row that this process wants to own, or owns."""

    def __init__(self, lake: ControlTables, schema: str, key: str, run_id: str) -> None:
        self._lake = lake
        self._schema = schema
        self.token = uuid.uuid4().hex
        self._row: dict[str, Any] = {
            "table_name": key,
            "token": self.token,
            "run_id": run_id,
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "process_start": _process_start(os.getpid()),
            "beat": 0,
            "released": False,
            "expected": "",
        }

    def put(self, **changes: Any) -> dict[str, Any]:
        """Write it unless somebody holds it whose token is not `expected`; the row that is there then."""
        row = {**self._row, **changes, "beat_time": dt.datetime.now(dt.UTC)}
        return self._lake.merge_row(
            self._schema, LEASES, _LEASE, row, on="table_name", when="t.released or t.token = s.expected"
        )

    def remove(self) -> None:
        """Take the row away."""
        row = self._row | {"beat_time": dt.datetime.now(dt.UTC)}
        rows, place = pa.Table.from_pylist([row], schema=_LEASE), self._lake.location(self._schema, LEASES)
        key = str(row["table_name"])
        retried(lambda: self._lake.storage.merge(place, rows, ("delete",), on="table_name", value=key))

    @contextmanager
    def beating(self, seconds: float, *, remove: bool = False) -> Iterator[None]:
        """Show that the holder lives while the block runs; then let go."""
        stop = threading.Event()

        def beat() -> None:
            count = 0
            while not stop.wait(seconds / 3):
                count += 1
                try:
                    there = self.put(beat=count, expected=self.token)
                    if there["token"] != self.token:
                        # Of two, one commits.
                        logger.warning("%s: taken over by run %s", self._row["table_name"], there["run_id"])
                        return
                except Exception as error:
                    # The next beat may be heard; whoever takes over meanwhile is fenced off at the commit.
                    logger.warning("%s: no heartbeat (%s)", self._row["table_name"], type(error).__name__)

        thread = threading.Thread(target=beat, name=f"lease-{self._row['table_name']}", daemon=True)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()
            try:
                if remove:
                    self.remove()
                else:
                    self.put(released=True, expected=self.token)
            except (Conflict, BronzeError) as error:
                # What was done under it is done; others wait until its silence has lasted.
                logger.warning("%s: not released (%s)", self._row["table_name"], type(error).__name__)


class _Others:
    """Who else holds a schema's private tables, and for how long they have been silent."""

    def __init__(self, schema: str, seconds: float) -> None:
        self._schema = schema
        self._seconds = seconds
        self._until = time.monotonic() + stored.HOLD_SECONDS
        self._seen: dict[tuple[str, int], float] = {}

    def gone(self, row: dict[str, Any]) -> bool:
        """Whether that one has let go, or is dead."""
        since = self._seen.setdefault((row["token"], row["beat"]), time.monotonic())
        return _dead(row) or time.monotonic() - since > self._seconds

    def wait(self) -> None:
        """For a moment."""
        if time.monotonic() > self._until:
            raise stored.busy(self._schema)
        time.sleep(min(1.0, self._seconds / 10))


def _rows(lake: ControlTables, schema: str, where: str) -> list[dict[str, Any]]:
    return lake.rows(schema, LEASES, where=where)


def _wait_until_still(lake: ControlTables, schema: str, holder: dict[str, Any], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        time.sleep(min(1.0, seconds / 10))
        (now,) = _rows(lake, schema, f"table_name = {sql_literal(holder['table_name'])}")
        if now["released"]:
            return
        if (now["token"], now["beat"]) != (holder["token"], holder["beat"]):
            raise TableBusy(
                f"run {now['run_id']} on {now['host']} (process {now['pid']}) is at work on it.",
                "wait until it has ended, or end it, then load again.",
                table=holder["table_name"],
            )


def _dead(holder: dict[str, Any]) -> bool:
    if holder["released"]:
        return True
    return bool(holder["host"] == socket.gethostname() and _process_start(holder["pid"]) != holder["process_start"])


def _process_start(pid: int) -> str:
    """When the process began; empty if it has ended. Tells a reused process id apart."""
    try:
        process = psutil.Process(pid)
        # A zombie has ended; only its parent has not asked for its exit code yet.
        return "" if process.status() == psutil.STATUS_ZOMBIE else f"{process.create_time():.2f}"
    except psutil.NoSuchProcess:
        return ""
