"""Capture: the committed changes of PostgreSQL tables, as files of JSON lines in the landing zone.

A drain writes, in this order: the intent (which range of the write-ahead log, which day: they name the files), the
files under hidden names, the files, the manifest (the watermark: what lies before it is in files); then the slot
advances. A transaction belongs to the range in which its commit record starts, and what lies before the watermark is
skipped. So a drain that is killed anywhere is made up for by the next: it takes the intent up again and writes the same
files with the same bytes.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import hashlib
import json
import logging
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from json.encoder import encode_basestring
from pathlib import Path
from typing import IO, Any, TypeVar

from upath import UPath

from bronze_assets.errors import DeclarationError, LakeError, SchemaMismatch, SourceRefused
from bronze_assets.sources import pgoutput
from bronze_assets.sources.pgoutput import UNCHANGED, Row, Value
from bronze_assets.sources.postgres_address import Address
from bronze_assets.sources.postgres_changes import ChangeSource, Publication, Slot
from bronze_assets.table import BronzeTable

logger = logging.getLogger(__name__)

ROUND_BYTES = 256 * 2**20
"""Write-ahead log that one round of a drain covers."""

NEVER_BEFORE = "nothing was captured before"
"""Why the first drain of all makes a slot: nothing is lost by that."""

_INTEGERS = (20, 21, 23)
_BOOLEAN = 16
_MOST_NAME_BYTES = 63
_Read = TypeVar("_Read")


@dataclass(frozen=True)
class Manifest:
    """What the landing zone holds of a schema's changes.

    Attributes:
        slot: name of the replication slot.
        source_epoch: `<system identifier>/<timeline>` of the server, as `Snapshot.epoch`.
        start_lsn: where this slot begins.
        watermark: every change that was committed from `start_lsn` to here is in files.
        confirmed_at: every change that was committed up to this moment (UTC) is in files; None before the first drain
            has ended well.
        tables: bronze table → from where on its changes are complete. A snapshot of the table must be at or after it.
    """

    slot: str
    source_epoch: str
    start_lsn: int
    watermark: int
    confirmed_at: dt.datetime | None
    tables: Mapping[str, int]


@dataclass(frozen=True)
class Drained:
    """What a drain did.

    Attributes:
        from_lsn, up_to_lsn: the range of the write-ahead log.
        files: paths below the landing zone.
        rows: bronze table → lines written; only tables with changes.
        confirmed_at: as `Manifest.confirmed_at`.
        started_anew: why a new slot had to be made, in words; the tables then need a snapshot. None if it went on.
        incomplete: bronze tables that need a snapshot: for that reason, or because they were not published until now
            (`Manifest.tables` tells from where on their changes are complete).
    """

    from_lsn: int
    up_to_lsn: int
    files: tuple[str, ...]
    rows: Mapping[str, int]
    confirmed_at: dt.datetime
    started_anew: str | None
    incomplete: tuple[str, ...]


@dataclass(frozen=True)
class SlotStatus:
    """How a capture stands.

    Attributes:
        slot: name of the replication slot.
        present: whether the server has it.
        active: whether a session reads from it at this moment.
        wal_status: as in `pg_replication_slots`; None without a slot.
        lost: why the next drain will start anew, in words; None if it will go on.
        lag_bytes: write-ahead log since the slot's position; 0 without a slot.
        retained_bytes: write-ahead log that the server keeps for the slot; 0 without one.
        lag_seconds: time since `confirmed_at`; None before the first drain has ended well.
        watermark: as in the manifest; None without one.
        confirmed_at: as in the manifest; None without one.
    """

    slot: str
    present: bool
    active: bool
    wal_status: str | None
    lost: str | None
    lag_bytes: int
    retained_bytes: int
    lag_seconds: float | None
    watermark: int | None
    confirmed_at: dt.datetime | None


def manifest(landing: str, schema: str) -> Manifest | None:
    """The manifest of a schema's capture; None if there is none. Needs no PostgreSQL.

    Raises:
        LakeError: the landing zone cannot be read.
    """
    state = _Files(landing, schema).manifest()
    return state.public() if state is not None else None


class Capture:
    """Writes the committed changes of the captured tables of one schema as JSON-lines files into the landing zone.

    The files are `<landing>/<feed.path>/<YYYY-MM-DD>/<from>-<up to>.json`; `docs/capture.md` shows a line.

    Args:
        url: `postgresql://user:password@host:port/database?sslmode=…`.
        landing: a folder or an fsspec URL.
        tables: tables of one schema with a captured feed.
        clock: gives the present moment, in UTC.
        max_lag_bytes: a slot that is further behind is given up and made anew, so that it does not fill the source's
            disk; the tables are then loaded from a snapshot.
        set_replica_identity: whether to give a table without a usable replica identity REPLICA IDENTITY FULL, which the
            role must own it for, instead of refusing it.
        round_bytes: write-ahead log that is written into one set of files.

    Attributes:
        publication, slot: their names.

    Raises:
        SettingsError: the URL is malformed; the message does not show it.
        DeclarationError: the tables are not captured tables of one schema.
    """

    def __init__(
        self,
        url: str,
        landing: str,
        tables: Sequence[BronzeTable],
        *,
        clock: Callable[[], dt.datetime] = lambda: dt.datetime.now(dt.UTC),
        max_lag_bytes: int = 10 * 2**30,
        set_replica_identity: bool = False,
        round_bytes: int = ROUND_BYTES,
    ) -> None:
        self._address = Address.parse(url)
        schemas = {table.schema for table in tables}
        strangers = [table.name for table in tables if table.feed is None or not table.feed.captured]
        if len(schemas) != 1 or strangers:
            raise DeclarationError(
                f"a capture is of the captured tables of one schema, not of {strangers or sorted(schemas)}.",
                "give it tables whose feed is captured.",
            )
        (self._schema,) = schemas
        self._tables = tuple(tables)
        self._clock = clock
        self._max_lag_bytes = max_lag_bytes
        self._set_replica_identity = set_replica_identity
        self._round_bytes = round_bytes
        self._files = _Files(landing, self._schema)
        # Lower case, digits and underscores are all that a slot's name may have.
        safe = re.sub(r"[^a-z0-9_]", "_", f"bronze_{self._schema}".lower())[: _MOST_NAME_BYTES - 9]
        digest = hashlib.sha256(f"{self._address.database}\n{self._files.root}".encode()).hexdigest()[:8]
        self.publication = safe
        self.slot = f"{safe}_{digest}"

    def drain(self) -> Drained:
        """Write everything that is committed by now; safe to repeat, to kill anywhere and to race.

        Raises:
            CaptureBusy: another process drains, or reads from the slot; worth a retry.
            SourceUnreachable: no answer; worth a retry.
            SourceBusy: a table is locked, or a transaction stays open while the slot is made; worth a retry.
            SourceRefused: a table, a privilege, a replica identity or a setting of the server is missing.
            SchemaMismatch: changes lack a declared column; nothing of their range was published.
            LakeError: the landing zone cannot be read or written.
        """
        with self._claimed() as source:
            source.require_logical()
            self._files.clear_spool()
            publication = source.publish(self._tables, set_replica_identity=self._set_replica_identity)
            reason, state = self._resumed(source, publication)
            return self._drain(source, publication, state, reason)

    def status(self) -> SlotStatus:
        """How the capture stands; changes nothing.

        Raises:
            SourceUnreachable, SourceRefused, LakeError: as `drain`.
        """
        with contextlib.closing(self._connect()) as source:
            state, slot, end = self._files.manifest(), source.slot(), source.written()
            lost = self._lost(source, state, slot, end, source.published())
        confirmed_at = state.confirmed_at if state is not None else None
        return SlotStatus(
            slot=self.slot,
            present=slot is not None,
            active=slot is not None and slot.active,
            wal_status=slot.wal_status if slot is not None else None,
            lost=lost,
            lag_bytes=max(0, end - slot.confirmed) if slot is not None and slot.confirmed else 0,
            retained_bytes=max(0, end - slot.retained_from) if slot is not None and slot.retained_from else 0,
            lag_seconds=(self._clock() - confirmed_at).total_seconds() if confirmed_at is not None else None,
            watermark=state.watermark if state is not None else None,
            confirmed_at=confirmed_at,
        )

    def drop(self) -> None:
        """Remove the slot, the publication (unless a capture into another landing zone uses it) and the manifest.

        Raises:
            CaptureBusy: a drain is at work.
            SourceUnreachable, SourceRefused, LakeError: as `drain`.
        """
        with self._claimed() as source:
            # The slot first: if it cannot be dropped, the capture stays as it is.
            source.drop_slot()
            self._files.forget_manifest()
            self._files.forget_intent()
            self._files.clear_spool()
            source.drop_publication()

    # --- beginning --------------------------------------------------------------------------------------------------

    def _connect(self) -> ChangeSource:
        return ChangeSource(self._address, self.publication, self.slot)

    @contextlib.contextmanager
    def _claimed(self) -> Iterator[ChangeSource]:
        with contextlib.closing(self._connect()) as source:
            source.claim()
            yield source

    def _resumed(self, source: ChangeSource, publication: Publication) -> tuple[str | None, _State]:
        """The state to go on from, and the reason if it is a new one."""
        state, slot = self._files.manifest(), source.slot()
        lost = self._lost(source, state, slot, source.written(), publication.oid)
        if lost is not None or state is None:
            lost = lost or "there is no manifest"
            return lost, self._begin_anew(source, publication, lost)
        return None, state

    def _lost(
        self, source: ChangeSource, state: _State | None, slot: Slot | None, end: int, publication: int | None
    ) -> str | None:
        if state is None:
            return NEVER_BEFORE if slot is None else "there is a slot without a manifest"
        if slot is None:
            return f"the slot {self.slot} is gone"
        if not slot.usable:
            return f"the slot {self.slot} was invalidated by the server"
        if state.epoch != source.epoch():
            return "the source is another server, or another timeline of it"
        if slot.confirmed > state.watermark:
            return f"the slot {self.slot} was moved by somebody else"
        if state.publication != publication:
            return "the publication was dropped or made anew: changes may have been missed"
        if end < state.watermark:
            return "the source was set back to an earlier state"
        if end - slot.confirmed > self._max_lag_bytes:
            return f"the slot {self.slot} was {end - slot.confirmed} bytes behind, more than {self._max_lag_bytes}"
        return None

    def _begin_anew(self, source: ChangeSource, publication: Publication, reason: str) -> _State:
        level = logging.INFO if reason == NEVER_BEFORE else logging.WARNING
        logger.log(level, "capture of %s starts anew: %s", self._schema, reason)
        source.drop_slot()
        start = source.create_slot()
        state = _State(
            slot=self.slot,
            epoch=source.epoch(),
            start=start,
            watermark=start,
            confirmed_at=None,
            publication=publication.oid,
            tables={name: _Begun(start, member) for name, member in publication.members.items()},
        )
        self._files.write_manifest(state)
        self._files.forget_intent()
        return state

    # --- draining ---------------------------------------------------------------------------------------------------

    def _drain(
        self, source: ChangeSource, publication: Publication, state: _State, started_anew: str | None
    ) -> Drained:
        before, now = state, self._clock()
        end = source.flushed()
        # The membership of a table that is new, or was interrupted, began before this moment.
        begun = {
            name: state.tables[name]
            if name in state.tables and state.tables[name].member == member
            else _Begun(end, member)
            for name, member in publication.members.items()
        }
        incomplete = tuple(name for name in begun if started_anew or begun[name] != state.tables.get(name))
        state = replace(state, tables=begun)
        files: dict[str, None] = {}
        rows: dict[str, int] = {}
        domains = source.domains()
        round_bytes = self._round_bytes
        while True:
            before_round = set(files)
            intent = self._files.intent()
            if intent is None or (intent.begin, intent.epoch) != (state.watermark, state.epoch):
                up_to = min(max(end, state.watermark), state.watermark + round_bytes)
                intent = _Intent(state.watermark, up_to, now.date().isoformat(), state.epoch)
            if intent.up_to > state.watermark:
                self._files.write_intent(intent)
                for table, path, count in self._write(source, intent, domains):
                    files[path] = None
                    rows[table] = rows.get(table, 0) + count
            last = intent.up_to >= end
            state = replace(state, watermark=intent.up_to, confirmed_at=now if last else state.confirmed_at)
            self._files.write_manifest(state)
            source.advance(state.watermark)
            self._files.forget_intent()
            # Each round decodes from the beginning of the oldest transaction that is open: with ever longer rounds, a
            # very long one takes a time that grows with its length alone.
            round_bytes = round_bytes * 2 if files.keys() == before_round else self._round_bytes
            if last:
                return Drained(before.watermark, state.watermark, tuple(files), rows, now, started_anew, incomplete)

    def _write(
        self, source: ChangeSource, intent: _Intent, domains: Mapping[int, int]
    ) -> Iterator[tuple[str, str, int]]:
        """Write and publish the files of a range: table, path and lines of each."""
        writer = _Lines(self._tables, domains, intent.epoch)
        with self._files.spool() as spool, contextlib.ExitStack() as stack:
            messages = stack.enter_context(contextlib.closing(source.peek(intent.up_to)))
            for position, message in messages:
                if isinstance(message, pgoutput.Begin):
                    if message.commit_lsn >= intent.up_to:
                        break
                    writer.begin(message, skipped=message.commit_lsn < intent.begin)
                else:
                    for name, line in writer.lines(position, message):
                        spool.write(name, line)
            written = spool.complete()
            for table in self._tables:
                if table.name in written:
                    yield table.name, self._files.publish(spool, table, intent), written[table.name]


# --- lines ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Described:
    """A relation as its changes come: where they go and how its values are written."""

    table: BronzeTable
    names: tuple[str, ...]
    prefixes: tuple[str, ...]
    plain: tuple[str, ...]
    identity: tuple[bool, ...]
    key: tuple[int, ...]
    nulls: str
    problems: tuple[str, ...]


class _Lines:
    """Turns messages into lines."""

    def __init__(self, tables: Sequence[BronzeTable], domains: Mapping[int, int], epoch: str) -> None:
        self._tables = {table.source.lower(): table for table in tables}
        self._domains = domains
        self._epoch = json.dumps(epoch)
        self._relations: dict[int, _Described | None] = {}
        self._skipped = True
        self._sequence = 0
        self._commit_lsn = self._commit_ms = 0

    def begin(self, message: pgoutput.Begin, *, skipped: bool) -> None:
        """Start a transaction."""
        self._skipped = skipped
        self._sequence = 0
        self._commit_lsn = message.commit_lsn
        self._commit_ms = message.commit_time_us // 1000

    def lines(self, lsn: int, message: pgoutput.Message) -> Iterator[tuple[str, str]]:
        """Bronze table and line of each change that a message tells."""
        match message:
            case pgoutput.Relation():
                # Seen for skipped transactions too: a relation is told once, before its first change.
                self._relations[message.oid] = self._describe(message)
            case pgoutput.Insert() | pgoutput.Update() | pgoutput.Delete() if not self._skipped:
                described = self._relations[message.relation]
                if described is None:
                    return
                _require_contract(described)
                yield from ((described.table.name, line) for line in self._change(lsn, described, message))
            case pgoutput.Truncate() if not self._skipped:
                for oid in message.relations:
                    described = self._relations.get(oid)
                    if described is not None:
                        _require_contract(described)
                        yield described.table.name, self._line(described.nulls, "t", lsn)

    def _change(
        self, lsn: int, described: _Described, message: pgoutput.Insert | pgoutput.Update | pgoutput.Delete
    ) -> Iterator[str]:
        if isinstance(message, pgoutput.Insert):
            yield self._line(self._row(described, message.new)[0], "c", lsn)
            return
        if isinstance(message, pgoutput.Delete):
            yield self._line(self._only_key(described, message.old), "d", lsn)
            return
        old, new = message.old, message.new
        if old is not None and UNCHANGED in new:
            new = tuple(
                before if value is UNCHANGED and (message.whole or identity) else value
                for value, before, identity in zip(new, old, described.identity, strict=True)
            )
        row, unchanged = self._row(described, new)
        if old is None or all(old[at] == new[at] for at in described.key):
            yield self._line(row, "u", lsn, unchanged)
            return
        yield self._line(self._only_key(described, old), "d", lsn)
        if unchanged:
            # Under the new key there is no version to carry these values over from.
            previous = ",".join(described.prefixes[at] + self._value(described, at, old[at]) for at in described.key)
            unchanged += f',"__previous_key":{{{previous}}}'
        yield self._line(row, "c", lsn, unchanged)

    def _row(self, described: _Described, values: Row) -> tuple[str, str]:
        """The columns of a line, and what tells which were left out."""
        parts, unchanged = [], []
        for at, value in enumerate(values):
            if value is UNCHANGED:
                unchanged.append(described.names[at])
            else:
                parts.append(described.prefixes[at] + self._value(described, at, value))
        told = f',"__unchanged":{json.dumps(unchanged, ensure_ascii=False)}' if unchanged else ""
        return ",".join(parts), told

    def _only_key(self, described: _Described, old: Row) -> str:
        return ",".join(
            prefix + (self._value(described, at, old[at]) if at in described.key else "null")
            for at, prefix in enumerate(described.prefixes)
        )

    def _value(self, described: _Described, at: int, value: Value) -> str:
        if value is None or value is UNCHANGED:
            return "null"
        try:
            text = value.decode("utf-8")
        except UnicodeDecodeError:
            # Without the cause, which shows the value.
            raise SourceRefused(
                f"a value of column {described.names[at]!r} is not UTF-8.",
                "correct it at the source; a database with the encoding SQL_ASCII checks none.",
                table=described.table.name,
            ) from None
        match described.plain[at]:
            case "integer":
                return text
            case "boolean":
                return "true" if text == "t" else "false"
            case _:
                return encode_basestring(text)

    def _line(self, columns: str, op: str, lsn: int, unchanged: str = "") -> str:
        self._sequence += 1
        deleted = "true" if op in ("d", "t") else "false"
        return (
            f'{{{columns},"__op":"{op}","__source_lsn":{lsn},"__source_ts_ms":{self._commit_ms},'
            f'"__deleted":"{deleted}","__commit_lsn":{self._commit_lsn},"__seq":{self._sequence},'
            f'"__source_epoch":{self._epoch}{unchanged}}}\n'
        )

    def _describe(self, relation: pgoutput.Relation) -> _Described | None:
        table = self._tables.get(f"{relation.schema}.{relation.name}".lower())
        if table is None:
            return None
        names = tuple(column.name.lower() for column in relation.columns)
        kinds = []
        for column in relation.columns:
            oid = self._domains.get(column.type_oid, column.type_oid)
            kinds.append("integer" if oid in _INTEGERS else "boolean" if oid == _BOOLEAN else "text")
        problems = [f"column {c.name!r} is missing" for c in table.columns if c.name not in names]
        problems += [f"columns that differ only in case: {name!r}" for name in set(names) if names.count(name) > 1]
        problems += [f"column {name!r} has a name that is taken" for name in names if name.startswith("__")]
        identity = {name for name, column in zip(names, relation.columns, strict=True) if column.identity}
        problems += [
            f"key column {c.name!r} was not in the replica identity"
            for c in table.key
            if c.name in names and c.name not in identity
        ]
        prefixes = tuple(f"{encode_basestring(name)}:" for name in names)
        return _Described(
            table=table,
            names=names,
            prefixes=prefixes,
            plain=tuple(kinds),
            identity=tuple(column.identity for column in relation.columns),
            key=tuple(names.index(column.name) for column in table.key if column.name in names),
            nulls=",".join(f"{prefix}null" for prefix in prefixes),
            problems=tuple(problems),
        )


def _require_contract(described: _Described) -> None:
    if described.problems:
        raise SchemaMismatch(
            f"changes of {described.table.source} do not hold its contract: {'; '.join(described.problems)}."
            " No file was published.",
            "declare the table as it is now; or mend it at the source and start anew with a snapshot"
            " (`Capture.drop`, docs/capture.md), since the changes made meanwhile stay as they are.",
            table=described.table.name,
        )


# --- files ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Intent:
    begin: int
    up_to: int
    date: str
    epoch: str

    @property
    def name(self) -> str:
        return f"{self.date}/{self.begin:016X}-{self.up_to:016X}.json"

    def to_json(self) -> dict[str, Any]:
        return {
            "from": f"{self.begin:016X}",
            "up_to": f"{self.up_to:016X}",
            "date": self.date,
            "source_epoch": self.epoch,
        }

    @classmethod
    def of_json(cls, stored: Mapping[str, Any]) -> _Intent:
        return cls(int(stored["from"], 16), int(stored["up_to"], 16), stored["date"], stored["source_epoch"])


@dataclass(frozen=True)
class _Begun:
    """From where on a table's changes are complete, and the membership that this holds for."""

    lsn: int
    member: int


@dataclass(frozen=True)
class _State:
    """The manifest with what only the capture needs."""

    slot: str
    epoch: str
    start: int
    watermark: int
    confirmed_at: dt.datetime | None
    publication: int
    tables: Mapping[str, _Begun] = field(default_factory=dict)

    def public(self) -> Manifest:
        begun = {name: table.lsn for name, table in self.tables.items()}
        return Manifest(self.slot, self.epoch, self.start, self.watermark, self.confirmed_at, begun)

    def to_json(self) -> dict[str, Any]:
        return {
            "slot": self.slot,
            "source_epoch": self.epoch,
            "start_lsn": f"{self.start:016X}",
            "watermark": f"{self.watermark:016X}",
            "confirmed_at": self.confirmed_at.isoformat() if self.confirmed_at is not None else None,
            "publication": self.publication,
            "tables": {
                name: {"start_lsn": f"{table.lsn:016X}", "member": table.member} for name, table in self.tables.items()
            },
        }

    @classmethod
    def of_json(cls, stored: Mapping[str, Any]) -> _State:
        confirmed = stored["confirmed_at"]
        return cls(
            slot=stored["slot"],
            epoch=stored["source_epoch"],
            start=int(stored["start_lsn"], 16),
            watermark=int(stored["watermark"], 16),
            confirmed_at=dt.datetime.fromisoformat(confirmed) if confirmed is not None else None,
            publication=stored["publication"],
            tables={
                name: _Begun(int(table["start_lsn"], 16), table["member"]) for name, table in stored["tables"].items()
            },
        )


class _Spool:
    """Lines on the way to files, on local disk."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._open: dict[str, IO[str]] = {}
        self._counts: dict[str, int] = {}

    def write(self, table: str, line: str) -> None:
        file = self._open.get(table)
        if file is None:
            path = self.folder / table
            file = self._open[table] = path.open("w", encoding="utf-8", newline="\n", buffering=2**18)
            self._counts[table] = 0
        file.write(line)
        self._counts[table] += 1

    def complete(self) -> Mapping[str, int]:
        """Table → lines, all of them on disk."""
        for file in self._open.values():
            file.flush()
            os.fsync(file.fileno())
        return self._counts

    def close(self) -> None:
        for file in self._open.values():
            file.close()


class _Files:
    """The landing zone as a capture uses it: its state in `<schema>/_capture/`, and the files of the feeds."""

    def __init__(self, landing: str, schema: str) -> None:
        place = UPath(landing)
        local = place.protocol in ("", "file", "local")
        self._local = Path(place.path).absolute() if local else None
        self.root = str(self._local or place)
        self._place = UPath(self.root)
        self._state = self._place / schema / "_capture"
        # On the same file system as the files, or they could not be renamed into their places.
        self._hidden = Path(self._state.path) / "spool"

    def manifest(self) -> _State | None:
        return self._read("manifest.json", _State.of_json)

    def write_manifest(self, state: _State) -> None:
        self._write("manifest.json", state.to_json())

    def forget_manifest(self) -> None:
        self._remove("manifest.json")

    def intent(self) -> _Intent | None:
        return self._read("intent.json", _Intent.of_json)

    def write_intent(self, intent: _Intent) -> None:
        self._write("intent.json", intent.to_json())

    def forget_intent(self) -> None:
        self._remove("intent.json")

    def clear_spool(self) -> None:
        """Remove what a killed drain left."""
        with self._reporting():
            if self._local is not None and self._hidden.is_dir():
                shutil.rmtree(self._hidden)

    @contextlib.contextmanager
    def spool(self) -> Iterator[_Spool]:
        """Where lines wait until all of a range are there."""
        with self._reporting(), contextlib.ExitStack() as stack:
            if self._local is None:
                folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bronze-capture-")))
            else:
                folder = self._hidden
                folder.mkdir(parents=True, exist_ok=True)
                stack.callback(self.clear_spool)
            yield stack.enter_context(contextlib.closing(_Spool(folder)))

    def publish(self, spool: _Spool, table: BronzeTable, intent: _Intent) -> str:
        """Make the complete file of a table appear, all at once; returns its path below the landing zone."""
        assert table.feed is not None
        path = f"{table.feed.path}/{intent.name}"
        complete = spool.folder / table.name
        with self._reporting():
            if self._local is not None:
                target = self._local / path
                target.parent.mkdir(parents=True, exist_ok=True)
                complete.replace(target)
                for folder in target.parents[:3]:
                    _sync_folder(folder)
            else:
                remote = self._place / path
                remote.fs.put_file(str(complete), remote.path)
                complete.unlink()
        return path

    def _read(self, name: str, made_of: Callable[[Mapping[str, Any]], _Read]) -> _Read | None:
        path = self._state / name
        with self._reporting():
            try:
                path.fs.invalidate_cache()
                stored = path.fs.cat_file(path.path)
            except FileNotFoundError:
                return None
        try:
            return made_of(json.loads(stored))
        except (ValueError, KeyError, TypeError, AttributeError):
            logger.warning("%s is not readable as what it should be: it counts as missing", path)
            return None

    def _write(self, name: str, content: Mapping[str, Any]) -> None:
        data = (json.dumps(content, indent=1) + "\n").encode()
        with self._reporting():
            if self._local is None:
                path = self._state / name
                path.fs.pipe_file(path.path, data)
                return
            folder = Path(self._state.path)
            folder.mkdir(parents=True, exist_ok=True)
            with (folder / f".{name}").open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            (folder / f".{name}").replace(folder / name)
            _sync_folder(folder)

    def _remove(self, name: str) -> None:
        path = self._state / name
        with self._reporting(), contextlib.suppress(FileNotFoundError):
            path.fs.rm_file(path.path)

    @contextlib.contextmanager
    def _reporting(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise LakeError(
                f"the landing zone {self.root} cannot be used: {error.strerror or type(error).__name__}.",
                "check BRONZE_LANDING, its permissions, credentials and free space.",
            ) from error


def _sync_folder(folder: Path) -> None:
    """Make a rename in it last."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
