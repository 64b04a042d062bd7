"""The batch log `bz_batches`: what has been begun, and how far it came.

The log is append-only: begun → main → quarantine → audited → done, or failed; undone where a restore took its rows out
of the table, and done again where another brought them back. It is the write-ahead log of the load: a
batch id is recorded before the first row is written, and whoever loads the table next can tell what is unfinished.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from bronze_assets import epochs
from bronze_assets.audit import LoadRecord
from bronze_assets.lakehouse import Lakehouse
from bronze_assets.sources.scope import FILE_SCOPES, REPLAY, FileScope, ReplayScope, Scope
from bronze_assets.storage import sql_literal
from bronze_assets.table import BronzeTable

BATCHES = "bz_batches"
_RECORDS_OF = dt.timedelta(days=7)

_TIME = pa.timestamp("us", tz="UTC")
_EVENT = pa.schema(
    [
        ("table_name", pa.string()),
        ("batch_id", pa.string()),
        ("partition_key", pa.string()),
        ("attempt", pa.int32()),
        ("event", pa.string()),
        ("event_time", _TIME),
        ("run_id", pa.string()),
        ("scope_kind", pa.string()),
        ("scope", pa.string()),
        ("scope_high", pa.string()),
        ("epoch", pa.int32()),
        ("source_epoch", pa.string()),
        ("source_position", pa.string()),
        ("record", pa.string()),
    ]
)


@dataclass
class Batch:
    """One batch as the log tells it.

    Attributes:
        attempt: how often it has been begun.
        scope_high: for a key range of a first load, the key at which the next range begins; None when open.
        events: names of the events of the last attempt.
        record: what its last attempt counted, from the event `main` on.
        position: source position up to which its rows are, likewise.
    """

    id: str
    partition: str
    attempt: int
    run_id: str
    scope_kind: str
    scope: str
    scope_high: str | None
    epoch: int
    source_epoch: str
    started: dt.datetime
    events: list[str] = field(default_factory=list)
    record: LoadRecord | None = None
    position: str | None = None

    @property
    def of_files(self) -> bool:
        """Whether its source state is a list of files."""
        return self.scope_kind in FILE_SCOPES

    @property
    def of_quarantine(self) -> bool:
        """Whether its source state is a selection of quarantined rows."""
        return self.scope_kind == REPLAY

    @property
    def finished(self) -> bool:
        """Whether nothing is left to do for it."""
        return not {"done", "failed", "undone"}.isdisjoint(self.events)

    @property
    def done(self) -> bool:
        """Whether its rows are in the lake for good, but for a restore."""
        return next((event == "done" for event in reversed(self.events) if event in ("done", "undone")), False)


class BatchLog:
    """The batches of one table, read once and kept in step with what is appended.

    Args:
        partition: whose records are wanted; of other partitions only those of the last days are read. None wants all.
    """

    def __init__(
        self, lake: Lakehouse, table: BronzeTable, clock: Callable[[], dt.datetime], partition: str | None
    ) -> None:
        self._lake = lake
        self._table = table
        self._clock = clock
        self.batches: list[Batch] = []
        self._by_id: dict[str, Batch] = {}
        # The log grows by four events a load, and the records are nearly all of it.
        recent = (clock() - _RECORDS_OF).isoformat()
        wanted = f"partition_key = {sql_literal(partition)} or event_time > to_timestamp({sql_literal(recent)})"
        wanted = "true" if partition is None else wanted
        columns = [name for name in _EVENT.names if name != "record"]
        columns.append(f"case when {wanted} then record end as record")
        rows = lake.rows(table.schema, BATCHES, columns, f"table_name = {sql_literal(table.name)}")
        for row in sorted(rows, key=lambda r: r["event_time"]):
            self._apply(row)

    def unfinished(self) -> list[Batch]:
        """Batches begun and neither done nor failed, oldest first."""
        return [batch for batch in self.batches if not batch.finished]

    def next_id(self, partition: str) -> str:
        """`<partition>/<number>`, one more than any number given for that partition."""
        numbers = [int(b.id.rsplit("/", 1)[1]) for b in self.batches if b.partition == partition]
        return f"{partition}/{max(numbers, default=0) + 1}"

    def epoch(self, source_epoch: str) -> int:
        """Ordinal of the source epoch for a snapshot: the last one's while the server is the same, one more when it has
        changed. A server that comes back after another counts as a new one.
        """
        known = self._ordinals(source_epoch)
        snapshots = [b.epoch for b in self.batches if b.source_epoch and not b.of_files]
        if known and (not snapshots or known >= snapshots[-1]):
            return known
        return self._ordinals() + 1

    def epoch_of_changes(self, source_epoch: str) -> int:
        """Ordinal of the source epoch for captured changes, which may come when another epoch has begun; for changes
        that name none, the latest.
        """
        if known := self._ordinals(source_epoch or None):
            return known
        # Changes of a slot that was lost before any of them was loaded: what is known of later ones stays in force.
        later = [b.epoch for b in self.batches if source_epoch and epochs.is_before(source_epoch, b.source_epoch)]
        return max(0, min(later) - 1) if later else self._ordinals() + bool(source_epoch) or 1

    def _ordinals(self, source_epoch: str | None = None) -> int:
        """The highest ordinal of that epoch, or of all; 0 if there is none."""
        known = (b.epoch for b in self.batches if b.source_epoch and source_epoch in (None, b.source_epoch))
        return max(known, default=0)

    def partition_rows(self, partition: str) -> int:
        """Row versions that the finished batches of a partition wrote and none of them replaced."""
        records = [b.record for b in self.batches if b.partition == partition and b.done]
        return sum(record.loaded + record.deleted - record.replaced for record in records if record)

    def bytes_a_day_before(self, moment: dt.datetime) -> int | None:
        """The table's bytes at its last load at least 24 hours before; None if there was none."""
        before = moment - dt.timedelta(days=1)
        old = [b.record for b in self.batches if b.done and b.record and b.record.ended <= before]
        return max(old, key=lambda r: r.ended).table_bytes if old else None

    def snapshot_position(self) -> str | None:
        """The position of the latest snapshot that has the whole source table; None if there is none yet.

        A first load in key ranges counts from its oldest range on.
        """
        done = [b for b in self.batches if b.done and b.position]
        full = [str(b.position) for b in done if b.scope_kind == "full"]
        ranges = [b for b in done if b.scope_kind == "range"]
        if any(b.scope_high is None for b in ranges):
            full.append(min(str(b.position) for b in ranges))
        return max(full, default=None)

    def begin(
        self, batch_id: str, partition: str, run_id: str, scope: Scope | FileScope | ReplayScope, source_epoch: str
    ) -> Batch:
        """Record that an attempt at a batch begins, before its first write."""
        before = self._by_id.get(batch_id)
        self._append(
            batch_id=batch_id,
            partition_key=partition,
            attempt=before.attempt + 1 if before else 1,
            event="begun",
            run_id=run_id,
            scope_kind=scope.kind,
            scope=str(scope),
            scope_high=str(scope.high) if isinstance(scope, Scope) and scope.high is not None else None,
            epoch=(self.epoch if isinstance(scope, Scope) else self.epoch_of_changes)(source_epoch),
            source_epoch=source_epoch,
        )
        return self._by_id[batch_id]

    def note(self, batch: Batch, event: str, *, run_id: str, record: LoadRecord | None = None) -> None:
        """Record that the batch has come one step further."""
        self._append(
            batch_id=batch.id,
            partition_key=batch.partition,
            attempt=batch.attempt,
            event=event,
            run_id=run_id,
            scope_kind=batch.scope_kind,
            scope=batch.scope,
            scope_high=batch.scope_high,
            epoch=batch.epoch,
            source_epoch=batch.source_epoch,
            source_position=record.source_position if record else None,
            record=record.to_json() if record else None,
        )

    def _append(self, **event: Any) -> None:
        # Events of one process are strictly ordered even where the clock's ticks are coarse or it is set back.
        now = self._clock()
        if self._last is not None and now <= self._last:
            now = self._last + dt.timedelta(microseconds=1)
        row = dict.fromkeys(_EVENT.names) | event
        row |= {"table_name": self._table.name, "event_time": now}
        self._lake.append_rows(self._table.schema, BATCHES, _EVENT, [row])
        self._apply(row)

    _last: dt.datetime | None = None

    def _apply(self, row: dict[str, Any]) -> None:
        self._last = row["event_time"]
        batch = self._by_id.get(row["batch_id"])
        if row["event"] == "begun":
            if batch is not None:
                self.batches.remove(batch)
            batch = Batch(
                id=row["batch_id"],
                partition=row["partition_key"],
                attempt=row["attempt"],
                run_id=row["run_id"],
                scope_kind=row["scope_kind"],
                scope=row["scope"],
                scope_high=row["scope_high"],
                epoch=row["epoch"],
                source_epoch=row["source_epoch"],
                started=row["event_time"],
            )
            self.batches.append(batch)
            self._by_id[batch.id] = batch
        assert batch is not None, f"event {row['event']} of {row['batch_id']} without a begin"
        if row["attempt"] < batch.attempt:
            # Of a process that was paused, and woke up when another had taken over its batch.
            return
        batch.events.append(row["event"])
        batch.position = row["source_position"] or batch.position
        if row["record"]:
            batch.record = LoadRecord.from_json(row["record"])
