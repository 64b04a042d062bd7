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
import logging
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from bronze_assets import epochs
from bronze_assets.capture_files import Begun, CaptureFiles, Intent, LastCommit, Restart, State
from bronze_assets.capture_lines import Lines
from bronze_assets.errors import DeclarationError
from bronze_assets.sources import pgoutput
from bronze_assets.sources.postgres_address import Address
from bronze_assets.sources.postgres_changes import ChangeSource, Publication, Slot
from bronze_assets.table import BronzeTable

logger = logging.getLogger(__name__)

ROUND_BYTES = 256 * 2**20
"""Write-ahead log that one round of a drain covers."""

NEVER_BEFORE = "nothing was captured before"
"""Why the first drain of all makes a slot: nothing is lost by that."""

_MOST_NAME_BYTES = 63
_MOST_RESTARTS = 10


@dataclass(frozen=True)
class Manifest:
    """What the landing zone holds of a schema's changes.

    Attributes:
        slot: name of the replication slot.
        source_epoch: what the positions belong to: the server, and this slot of it (`epochs`).
        start_lsn: where this slot begins.
        watermark: every change that was committed from `start_lsn` to here is in files.
        confirmed_at: every change that was committed up to this moment (UTC) is in files; None before the first drain
            has ended well.
        tables: bronze table → from where on its changes are complete. A snapshot of the table must be at or after it.
        restarts: when and why a slot was made in the place of one that was lost, oldest first; only the latest.
    """

    slot: str
    source_epoch: str
    start_lsn: int
    watermark: int
    confirmed_at: dt.datetime | None
    tables: Mapping[str, int]
    restarts: tuple[Restart, ...] = ()

    def epoch_of(self, server: str) -> str:
        """The source epoch of a snapshot: that of the changes that go on from it, if they are of the same server.

        Args:
            server: `Snapshot.epoch`.
        """
        return self.source_epoch if epochs.server_of(self.source_epoch) == server else server


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
        restarts: as in the manifest.
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
    restarts: tuple[Restart, ...]


def manifest(landing: str, schema: str) -> Manifest | None:
    """The manifest of a schema's capture; None if there is none. Needs no PostgreSQL.

    Raises:
        LakeError: the landing zone cannot be read.
    """
    state = CaptureFiles(landing, schema).manifest()
    if state is None:
        return None
    begun = {name: table.lsn for name, table in state.tables.items()}
    return Manifest(
        state.slot, state.epoch, state.start, state.watermark, state.confirmed_at, begun, restarts=state.restarts
    )


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
        self._files = CaptureFiles(landing, self._schema)
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

    def require_logical(self) -> None:
        """Raise `SourceRefused` unless the server can decode its write-ahead log; changes nothing."""
        with contextlib.closing(self._connect()) as source:
            source.require_logical()

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
            restarts=state.restarts if state is not None else (),
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

    def _resumed(self, source: ChangeSource, publication: Publication) -> tuple[str | None, State]:
        """The state to go on from, and the reason if it is a new one."""
        state, slot = self._files.manifest(), source.slot()
        lost = self._lost(source, state, slot, source.written(), publication.oid)
        if lost is None and state is not None and slot is not None and self._tells_otherwise(source, state, slot):
            lost = "the source was set back to an earlier state, and has gone on since"
        if lost is not None or state is None:
            lost = lost or "there is no manifest"
            return lost, self._begin_anew(source, publication, lost, state)
        return None, state

    def _lost(
        self, source: ChangeSource, state: State | None, slot: Slot | None, end: int, publication: int | None
    ) -> str | None:
        if state is None:
            return NEVER_BEFORE if slot is None else "there is a slot without a manifest"
        if epochs.server_of(state.epoch) != source.epoch():
            return "the source is another server, or another timeline of it"
        if end < state.watermark:
            return "the source was set back to an earlier state"
        if slot is None:
            return f"the slot {self.slot} is gone"
        if not slot.usable:
            return f"the slot {self.slot} was invalidated by the server"
        if slot.confirmed > state.watermark:
            return f"the slot {self.slot} was moved by somebody else"
        if state.publication != publication:
            return "the publication was dropped or made anew: changes may have been missed"
        if end - slot.confirmed > self._max_lag_bytes:
            return f"the slot {self.slot} was {end - slot.confirmed} bytes behind, more than {self._max_lag_bytes}"
        return None

    def _tells_otherwise(self, source: ChangeSource, state: State, slot: Slot) -> bool:
        """Whether the slot tells other transactions before the watermark than those that are in files.

        It is behind the watermark after a drain that was killed and after a crash of the server, which keeps a slot's
        position only now and then. It is so too on a server that was set back to a copy of its disk and has written as
        much log again since: there, other transactions stand where those stood.
        """
        if slot.confirmed >= state.watermark:
            return False
        told = None
        with contextlib.closing(source.peek(state.watermark)) as messages:
            for _, message in messages:
                if isinstance(message, pgoutput.Begin):
                    if message.commit_lsn >= state.watermark:
                        break
                    told = LastCommit(message.commit_lsn, message.commit_time_us)
        return told != (state.last if state.last is not None and state.last.lsn >= slot.confirmed else None)

    def _begin_anew(self, source: ChangeSource, publication: Publication, reason: str, before: State | None) -> State:
        restarts, now = before.restarts if before is not None else (), self._clock()
        if reason == NEVER_BEFORE:
            logger.info("capture of %s begins", self._schema)
        else:
            logger.warning("capture of %s starts anew: %s", self._schema, reason)
            restarts = (*restarts, Restart(now, reason))[-_MOST_RESTARTS:]
        source.drop_slot()
        start = source.create_slot()
        state = State(
            slot=self.slot,
            epoch=epochs.of_slot(source.epoch(), now),
            start=start,
            watermark=start,
            confirmed_at=None,
            publication=publication.oid,
            tables={name: Begun(start, member) for name, member in publication.members.items()},
            restarts=restarts,
        )
        self._files.write_manifest(state)
        self._files.forget_intent()
        return state

    # --- draining ---------------------------------------------------------------------------------------------------

    def _drain(self, source: ChangeSource, publication: Publication, state: State, started_anew: str | None) -> Drained:
        before, now = state, self._clock()
        end = source.flushed()
        # The membership of a table that is new, or was interrupted, began before this moment.
        begun = {
            name: state.tables[name]
            if name in state.tables and state.tables[name].member == member
            else Begun(end, member)
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
                intent = Intent(state.watermark, up_to, now.date().isoformat(), state.epoch)
            if intent.up_to > state.watermark:
                self._files.write_intent(intent)
                written, last_commit = self._write(source, intent, domains)
                for table, path, count in written:
                    files[path] = None
                    rows[table] = rows.get(table, 0) + count
                state = replace(state, last=last_commit or state.last)
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
        self, source: ChangeSource, intent: Intent, domains: Mapping[int, int]
    ) -> tuple[list[tuple[str, str, int]], LastCommit | None]:
        """Write and publish the files of a range: table, path and lines of each; and the range's last transaction."""
        writer, last = Lines(self._tables, domains, intent.epoch), None
        with self._files.spool() as spool, contextlib.ExitStack() as stack:
            messages = stack.enter_context(contextlib.closing(source.peek(intent.up_to)))
            for position, message in messages:
                if isinstance(message, pgoutput.Begin):
                    if message.commit_lsn >= intent.up_to:
                        break
                    writer.begin(message, skipped=message.commit_lsn < intent.begin)
                    last = LastCommit(message.commit_lsn, message.commit_time_us)
                else:
                    for name, line in writer.lines(position, message):
                        spool.write(name, line)
            lines = spool.complete()
            written = [table for table in self._tables if table.name in lines]
            paths = [self._files.publish(spool, table, intent) for table in written]
        return [(table.name, path, lines[table.name]) for table, path in zip(written, paths, strict=True)], last
