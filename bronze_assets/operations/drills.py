"""Restore drills: whether tables can be brought back, how long that takes and how many bytes it moves.

Each table is restored by time travel, from the copy and from the archive, into a folder that is removed afterwards, and
compared with what it should be. Times are those of the tables as they are: nothing is extrapolated, so bytes stand
beside seconds.
"""

from __future__ import annotations

import datetime as dt
import enum
import logging
import shutil
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa

from bronze_assets.access import RESTORE_DRILLS
from bronze_assets.audit import safe_message
from bronze_assets.control_tables import ControlTables
from bronze_assets.errors import LakeError
from bronze_assets.lakehouse import Lakehouse
from bronze_assets.operations.clones import Clones
from bronze_assets.operations.copies import Copies, Kind, Unit, chosen, content_of, units
from bronze_assets.operations.delta_log import DeltaLog, Folder, name_of
from bronze_assets.table import BronzeTable

logger = logging.getLogger(__name__)

FOLDER = "drill"
"""Below the home: where tables are restored to."""
EVERY = dt.timedelta(days=35)
"""A drill that is older tells nothing any more."""
_DAY = dt.timedelta(days=1)
_DRILLS = pa.schema(
    [
        ("at", pa.timestamp("us", tz="UTC")),
        ("drill_id", pa.string()),
        ("table_name", pa.string()),
        ("way", pa.string()),
        ("version", pa.int64()),
        ("rows", pa.int64()),
        ("files", pa.int64()),
        ("bytes", pa.int64()),
        ("seconds", pa.float64()),
        ("goal_seconds", pa.float64()),
        ("verified", pa.bool_()),
        ("error", pa.string()),
        ("run_id", pa.string()),
    ]
)


class Way(enum.StrEnum):
    """How a table is brought back."""

    TIME_TRAVEL = "time_travel"
    COPY = "copy"
    ARCHIVE = "archive"

    @property
    def goal(self) -> dt.timedelta:
        """In which time that is to be done."""
        return dt.timedelta(hours={"time_travel": 1, "copy": 4, "archive": 24}[self.value])


@dataclass(frozen=True)
class Drill:
    """One table, restored in one way.

    Attributes:
        version: of the table in the lake.
        seconds: of restoring and verifying; without looking for the version.
        verified: whether rows and content are those of the version.
        error: why it is not; empty if it is.
    """

    schema: str
    table_name: str
    way: Way
    version: int | None
    rows: int
    files: int
    bytes: int
    seconds: float
    verified: bool
    error: str = ""

    @property
    def passed(self) -> bool:
        """Whether the table came back whole and in time."""
        return self.verified and self.seconds < self.way.goal.total_seconds()

    @property
    def words(self) -> str:
        """One line for people."""
        if not self.verified:
            return f"{self.table_name} by {self.way}: NOT restored: {self.error}"
        rate = self.bytes / self.seconds if self.seconds else 0
        return (
            f"{self.table_name} by {self.way}: version {self.version}, {self.rows} rows, {self.bytes} bytes in"
            f" {self.seconds:.2f} s ({rate:,.0f} bytes/s; goal {self.way.goal.total_seconds():.0f} s)."
        )


def drill(
    lake: Lakehouse,
    tables: Sequence[BronzeTable],
    copies: Sequence[Copies | Clones],
    scratch: Path,
    clock: Callable[[], dt.datetime],
    *,
    names: Sequence[str] = (),
    run_id: str = "",
) -> list[Drill]:
    """Restore each declared table in each way, into a folder that is removed afterwards.

    A failure is a result and no error. Tables that were never made are passed over.

    Args:
        copies: copy and archive.
        scratch: the folder to work in.
        names: of the tables; all by default.

    Raises:
        SettingsError: a name is unknown.
    """
    found: list[Drill] = []
    drill_id = f"{uuid.uuid4()}"
    for unit in chosen([one for one in units(tables) if one.declared and one.name == one.declared.name], names):
        if not lake.exists(unit.schema, unit.name):
            continue
        done = [_tried(unit, way, scratch, restore) for way, restore in _ways(lake, copies, clock)]
        told = {"at": clock(), "drill_id": drill_id, "run_id": run_id}
        rows = [
            asdict(one) | {"way": one.way.value, "goal_seconds": one.way.goal.total_seconds()} | told for one in done
        ]
        lake.append_rows(
            unit.schema, RESTORE_DRILLS, _DRILLS, [{key: row[key] for key in _DRILLS.names} for row in rows]
        )
        for result in done:
            logger.log(logging.INFO if result.passed else logging.WARNING, "%s", result.words)
        found += done
    return found


@dataclass(frozen=True)
class Standing:
    """What the latest drills of a schema say.

    Attributes:
        failing: why a table cannot be brought back in time.
        slowest: way → seconds and bytes of the slowest table.
        at: of the latest drill; None if there was none.
    """

    failing: tuple[str, ...]
    slowest: dict[str, dict[str, Any]]
    at: dt.datetime | None


def standing(lake: ControlTables, schema: str, now: dt.datetime) -> Standing:
    """Judge the latest drill of each table and way."""
    latest: dict[tuple[str, str], dict[str, Any]] = {}
    for row in sorted(lake.rows(schema, RESTORE_DRILLS), key=lambda row: row["at"]):
        latest[row["table_name"], row["way"]] = row
    failing: list[str] = []
    slowest: dict[str, dict[str, Any]] = {}
    for (table, way), row in sorted(latest.items()):
        if not row["verified"]:
            failing.append(f"{table} by {way}: {row['error']}")
        elif row["seconds"] >= row["goal_seconds"]:
            failing.append(f"{table} by {way}: {row['seconds']:.0f} s, and the goal is {row['goal_seconds']:.0f} s")
        if way not in slowest or row["seconds"] > slowest[way]["seconds"]:
            slowest[way] = {name: row[name] for name in ("table_name", "seconds", "bytes", "goal_seconds")}
    at = max((row["at"] for row in latest.values()), default=None)
    if at is None or at < now - EVERY:
        failing.append(f"the latest drill was {'never' if at is None else f'on {at:%F}'}")
    return Standing(tuple(failing), slowest, at)


_Restore = Callable[[Unit, Path], "tuple[int, int, int, int]"]
"""Brings a table into a folder, or into a table of another name; its version, rows, files and bytes."""


def _ways(
    lake: Lakehouse, copies: Sequence[Copies | Clones], clock: Callable[[], dt.datetime]
) -> Iterator[tuple[Way, _Restore]]:
    (first, *_) = copies
    if isinstance(first, Clones):
        yield Way.TIME_TRAVEL, lambda unit, _: first.tried_time_travel(unit)
    else:
        yield Way.TIME_TRAVEL, partial(_by_time_travel, lake, clock)
    for one in copies:
        way = Way.COPY if one.kind is Kind.COPY else Way.ARCHIVE
        yield way, partial(_from_clone, one) if isinstance(one, Clones) else partial(_from_copy, one)


def _from_clone(clones: Clones, unit: Unit, _: Path) -> tuple[int, int, int, int]:
    return clones.tried(unit)


def _tried(unit: Unit, way: Way, scratch: Path, restore: _Restore) -> Drill:
    place = scratch / f"{unit.name}-{way}-{uuid.uuid4().hex[:8]}"
    start = time.monotonic()
    try:
        version, rows, files, size = restore(unit, place)
        seconds = time.monotonic() - start
        return Drill(unit.schema, unit.name, way, version, rows, files, size, seconds, True)
    except Exception as error:  # a table that does not come back is what a drill is to tell
        seconds = time.monotonic() - start
        return Drill(unit.schema, unit.name, way, None, 0, 0, 0, seconds, False, safe_message(error))
    finally:
        shutil.rmtree(place, ignore_errors=True)


def _by_time_travel(
    lake: Lakehouse, clock: Callable[[], dt.datetime], unit: Unit, place: Path
) -> tuple[int, int, int, int]:
    """The table as it was yesterday, or in the version before if it is younger."""
    now = clock()
    source = Folder(lake.location(unit.schema, unit.name))
    log = DeltaLog(source)
    times = {version: moment for version, (moment, _) in log.marks().items()}
    yesterday = (now - _DAY).timestamp() * 1000
    older = [version for version, moment in times.items() if moment is not None and moment <= yesterday]
    latest = max(times)
    state = log.state(max(older) if older else latest - 1 if latest - 1 in times else latest)
    assert state is not None
    target = Folder(str(place))
    for path in state.files:
        with source.open(name_of(path)) as stream:
            target.take(name_of(path), stream)
    DeltaLog(target).commit(None, state, {"drill": unit.name}, moment=int(now.timestamp() * 1000))
    rows = _verified(place, state.rows, content_of(source, state.version))
    return state.version, rows, len(state.files), state.bytes


def _from_copy(copies: Copies, unit: Unit, place: Path) -> tuple[int, int, int, int]:
    found = copies.latest(str(unit))
    if found is None:
        raise LakeError(
            f"there is no {copies.kind} of it at {copies.target}.", "run the job that makes it.", table=unit.name
        )
    _, state, told = found
    copies.materialise(unit, state, told, place)
    rows = _verified(place, int(told["rows"]), told["content"])
    return int(told["source_version"]), rows, len(state.files), state.bytes


def _verified(place: Path, rows: int | None, content: str) -> int:
    """How many rows the restored table has, if it is what it should be; its files are read again."""
    folder = Folder(str(place))
    state = DeltaLog(folder).state()
    assert state is not None
    counted = sum(folder.rows(name_of(path)) for path in state.files)
    if rows is not None and counted != rows:
        raise LakeError(f"it has {counted} rows, and {rows} are expected.", "restore another version.")
    if content_of(folder) != content:
        raise LakeError("its files are not those of the version.", "restore another version.")
    return counted
