"""The file ledger `bz_file_ledger`: what has happened to each file, and so which batch it belongs to.

Append-only events; a file's state is its latest event. Events of a table are written one after the other: each append
is fenced against the state it was decided on, so that two loads never claim one file.
"""

from __future__ import annotations

import datetime as dt
import enum
from collections.abc import Callable, Iterable, Sequence, Set
from dataclasses import dataclass, replace
from typing import Any

import pyarrow as pa

from bronze_assets.lakehouse import Lakehouse
from bronze_assets.sources.landing import LandedFile, LandingZone
from bronze_assets.storage import sql_literal
from bronze_assets.table import BronzeTable, Feed

LEDGER = "bz_file_ledger"
MAX_ATTEMPTS = 3


class FileEvent(enum.StrEnum):
    """What happened to a file.

    `seen`: found for the first time; fixes the day of arrival in a flat prefix. `claimed`: belongs to a batch that is
    being loaded. `loaded`: its rows are in the lake. `quarantined`: it could not be read, and the quarantine says why.
    `changed`: found with another size or time after it had been settled. `failed`: its batch was given up; it is tried
    again. `ignored`: changed after it was loaded, and the table's policy
    is to leave that. `archived`: moved to the archive. `deleted`: removed by the table's policy. `undone`: a restore
    took its rows out of the table; it is loaded again, from the archive too.
    """

    SEEN = "seen"
    CHANGED = "changed"
    CLAIMED = "claimed"
    LOADED = "loaded"
    QUARANTINED = "quarantined"
    FAILED = "failed"
    IGNORED = "ignored"
    ARCHIVED = "archived"
    DELETED = "deleted"
    UNDONE = "undone"


_SETTLED = frozenset(
    {FileEvent.LOADED, FileEvent.QUARANTINED, FileEvent.IGNORED, FileEvent.ARCHIVED, FileEvent.DELETED}
)
_OPEN = frozenset({FileEvent.SEEN, FileEvent.CHANGED, FileEvent.FAILED, FileEvent.UNDONE})
_TIME = pa.timestamp("us", tz="UTC")
_SCHEMA = pa.schema(
    [
        ("table_name", pa.string()),
        ("number", pa.int64()),
        ("event", pa.string()),
        ("event_time", _TIME),
        ("path", pa.string()),
        ("size", pa.int64()),
        ("modified", _TIME),
        ("content_hash", pa.string()),
        ("partition_key", pa.string()),
        ("batch_id", pa.string()),
        ("rows", pa.int64()),
        ("attempt", pa.int32()),
        ("archived_as", pa.string()),
        ("error", pa.string()),
        ("run_id", pa.string()),
    ]
)

_EVENTS = {event.value: event for event in FileEvent}
_STATE = (
    *("path", "number", "event", "size", "modified", "partition_key", "content_hash", "batch_id", "rows", "attempt"),
    *("archived_as", "error", "event_time"),
)
"""Columns of the ledger that a file's state is made of: path, number, event, then the fields of `FileState`."""


@dataclass(frozen=True, slots=True)
class FileState:
    """The latest event of a file.

    Attributes:
        partition: its day of arrival.
        rows: that it brought into the table when it was last loaded; None if it never was.
        attempt: how often it has been claimed.
        archived_as: where it lies in the archive.
        error: why it was quarantined or failed; never holds a row's values.
    """

    path: str
    event: FileEvent
    size: int
    modified: dt.datetime
    partition: str
    content_hash: str | None = None
    batch_id: str | None = None
    rows: int | None = None
    attempt: int = 0
    archived_as: str | None = None
    error: str | None = None
    event_time: dt.datetime | None = None

    @property
    def settled(self) -> bool:
        """Whether nothing is left to load of the file as it was."""
        return self.event in _SETTLED

    def is_of(self, file: LandedFile) -> bool:
        """Whether the file looks as it did then (size and modified time; its bytes are not read)."""
        return self.size == file.size and self.modified == file.modified

    def leaves(self, feed: Feed, now: dt.datetime) -> bool:
        """Whether it is time for a loaded file to leave the landing zone."""
        moment = None if self.event_time is None else feed.leaves_at(self.event_time)
        return moment is not None and moment <= now


class Ledger:
    """The files of one table.

    Args:
        clock: gives the present moment, in UTC.
    """

    def __init__(self, lake: Lakehouse, table: BronzeTable, clock: Callable[[], dt.datetime], run_id: str = "") -> None:
        self._lake = lake
        self._table = table
        self._clock = clock
        self._run_id = run_id
        self._number = 0
        self._version: int | None = None
        self.files: dict[str, FileState] = {}
        self.refresh()

    def refresh(self) -> None:
        """Read the state anew."""
        self._version = self._lake.control_version(self._table.schema, LEDGER)
        self.files = {}
        self._number = 0
        mine = f"t.table_name = {sql_literal(self._table.name)}"
        # Columns, and the latest events by a join: a window or `last_value` takes five times as long, rows twice.
        latest = self._lake.query(
            self._table.schema,
            LEDGER,
            f"select {', '.join(f't.{name}' for name in _STATE)} from t join"
            f" (select path, max(number) as latest from t where {mine} group by path) as l"
            f" on t.path = l.path and t.number = l.latest where {mine}"
            # Of two first sightings, which have one number, the first.
            " order by t.event_time desc",
            version=self._version,
        )
        if latest is None:
            return
        columns = [latest[name].to_pylist() for name in _STATE]
        for path, number, event, *values in zip(*columns, strict=True):
            self._number = max(self._number, number)
            self.files[path] = FileState(path, _EVENTS[event], *values)

    def batch(self, batch_id: str) -> list[FileState]:
        """The files that a batch has claimed and not yet settled, by path."""
        found = [s for s in self.files.values() if s.batch_id == batch_id and s.event is FileEvent.CLAIMED]
        return sorted(found, key=lambda state: state.path)

    def partition_of(self, file: LandedFile, today: str) -> str:
        """The partition a file belongs to: its day folder, else the day of its first sighting."""
        if file.day is not None:
            return file.day
        state = self.files.get(file.path)
        return state.partition if state is not None and (not state.settled or state.is_of(file)) else today

    def outstanding(self, files: Iterable[LandedFile]) -> list[LandedFile]:
        """Those of the files that are still to be loaded, or have changed since they were, by path."""
        found = []
        for file in files:
            state = self.files.get(file.path)
            again = state is not None and state.settled and not file.archived and not state.is_of(file)
            if again or state is None or state.event in _OPEN:
                found.append(file)
        return found

    def with_undone(self, files: Sequence[LandedFile], zone: LandingZone) -> list[LandedFile]:
        """These files of the landing zone, and those of the archive that are to be loaded again."""
        there = {file.path for file in files}
        again = [s for s in self.proposed() if s.archived_as is not None and s.path not in there]
        found = [zone.find(state.path, state.archived_as) for state in again]
        return [*files, *(file for file in found if file is not None)]

    def without(self, kept: Set[str], undone: Set[str]) -> list[FileState]:
        """What the files of these batches are when the rows of the batches are gone: `undone`, or what they were to
        batches that are kept. Those that are so already are left out.

        Args:
            kept: batches that have their rows.
            undone: batches that have not.
        """
        mine = [s for s in self.files.values() if s.batch_id in undone and s.event is not FileEvent.SEEN]
        before: dict[str, FileState] = {}
        if any(state.batch_id is not None for state in mine):
            names = ", ".join(f"'{event}'" for event in (*_SETTLED,))
            rows = self._lake.rows(
                self._table.schema,
                LEDGER,
                _STATE,
                f"table_name = {sql_literal(self._table.name)} and event in ({names}) order by number",
                version=self._version,
            )
            for row in rows:
                if row["batch_id"] in kept:
                    path, _, event, *values = row.values()
                    before[path] = FileState(path, _EVENTS[event], *values)
        found = []
        for state in mine:
            earlier = before.get(state.path)
            if earlier is None:
                if state.event not in _OPEN:
                    found.append(replace(state, event=FileEvent.UNDONE, rows=None, attempt=0, error=None))
            elif earlier.content_hash == state.content_hash or state.rows is None:
                event = FileEvent.ARCHIVED if state.archived_as and earlier.error is None else earlier.event
                found.append(replace(earlier, event=event, archived_as=state.archived_as))
            else:
                # What came in its place is to do so again.
                changed = replace(state, event=FileEvent.CHANGED, attempt=0, error=None)
                changed = replace(changed, content_hash=earlier.content_hash, batch_id=earlier.batch_id)
                found.append(replace(changed, rows=earlier.rows))
        return found

    def archived_places(self) -> set[str]:
        """Every place in the archive that a file of the table was ever moved to."""
        mine = f"table_name = {sql_literal(self._table.name)} and archived_as is not null"
        rows = self._lake.rows(self._table.schema, LEDGER, ["distinct archived_as"], mine)
        return {row["archived_as"] for row in rows}

    def proposed(self) -> list[FileState]:
        """Files that wait to be claimed, as far as the ledger knows, by path."""
        found = [state for state in self.files.values() if state.event in _OPEN]
        return sorted(found, key=lambda state: state.path)

    def record(self, states: Sequence[FileState], event: FileEvent | None, **changes: Any) -> None:
        """Append one event for each of the files.

        Args:
            event: None says again of each what its latest one said.
            changes: fields of `FileState` that are the same for all of them.

        Raises:
            StaleBase: another process has written to this table's ledger since it was read; of first sightings, another
                process has recorded some.
        """
        if not states:
            return
        now = self._clock()
        # A first sighting, which a sensor may record while a load is at work, stands below everything that a load says
        # of the file, and fences no load.
        seen = event is FileEvent.SEEN
        states = [replace(before, event=event or before.event, event_time=now, **changes) for before in states]
        first = 0 if seen else self._number + 1
        last = 0 if seen else self._number + len(states)
        # By column: thousands of dictionaries would take longer than the commit.
        columns = {
            name: [getattr(state, name) for state in states] for name in _SCHEMA.names if name in FileState.__slots__
        }
        columns |= {
            "table_name": [self._table.name] * len(states),
            "number": [*range(first, last + 1)] if not seen else [0] * len(states),
            "event": [state.event.value for state in states],
            "partition_key": [state.partition for state in states],
            "run_id": [self._run_id] * len(states),
        }
        self._version = self._lake.append_fenced(
            self._table.schema,
            LEDGER,
            pa.table([columns[name] for name in _SCHEMA.names], schema=_SCHEMA),
            writer=f"{self._table.name}/seen" if seen else self._table.name,
            # Of the first event: all who decided on one state have the same number, however many files they claim.
            number=(self._version or 0) + 1 if seen else first,
            base=self._version,
            partition_by="table_name",
        )
        self._number = max(self._number, last)
        self.files |= {state.path: state for state in states}
