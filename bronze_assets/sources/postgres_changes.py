"""Committed changes of PostgreSQL tables, through a publication and a logical replication slot of their own."""

from __future__ import annotations

import time
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import psycopg2

from bronze_assets.errors import BronzeError, CaptureBusy, SourceBusy, SourceRefused
from bronze_assets.sources.pgoutput import MalformedMessage, Message, decode
from bronze_assets.sources.postgres import LOCK_TIMEOUT_SECONDS, RELATION_MATCHES, only_match
from bronze_assets.sources.postgres_address import Address
from bronze_assets.sources.postgres_types import quote_name
from bronze_assets.table import BronzeTable

FETCH_ROWS = 2_000
FLUSH_TIMEOUT_SECONDS = 30
_CLAIM_SECONDS = 2


@dataclass(frozen=True)
class Publication:
    """The publication as it stands.

    Attributes:
        oid: of the publication; another one means that it was made anew and that changes in between were not published.
        members: bronze table → oid of the table's membership, which likewise is another when it was interrupted.
    """

    oid: int
    members: Mapping[str, int]


@dataclass(frozen=True)
class Slot:
    """A replication slot as the server shows it.

    Attributes:
        active: whether another session reads from it at this moment.
        wal_status: `reserved`, `extended`, `unreserved` or `lost`; None if the server does not know.
        usable: whether it is a pgoutput slot of this database that has not been invalidated.
        confirmed: position up to which changes have been received.
        retained_from: position from which the server keeps write-ahead log for it.
    """

    active: bool
    wal_status: str | None
    usable: bool
    confirmed: int
    retained_from: int


def lsn_text(lsn: int) -> str:
    """A position as PostgreSQL writes it."""
    return f"{lsn >> 32:X}/{lsn & 0xFFFFFFFF:X}"


class ChangeSource:
    """One connection to the source, for one capture.

    Args:
        publication: its name.
        slot: its name.

    Raises:
        SourceUnreachable: no answer; worth a retry.
        SourceRefused: the server said no.
    """

    def __init__(self, address: Address, publication: str, slot: str) -> None:
        self._address = address
        self._publication = publication
        self._slot = slot
        self._connection = address.connect()
        self._connection.autocommit = True
        # How values look in the stream is decided by this session.
        self._run(
            "set client_encoding = 'UTF8'; set datestyle = 'ISO, YMD'; set timezone = 'UTC';"
            " set intervalstyle = 'postgres'; set bytea_output = 'hex'; set extra_float_digits = 1;"
            f" set statement_timeout = 0; set lock_timeout = '{LOCK_TIMEOUT_SECONDS}s'"
        )
        with suppress(psycopg2.Error), self._connection.cursor() as cursor:
            # A server on some systems cannot. Else the session of a killed capture would go on until it has peeked.
            cursor.execute("set client_connection_check_interval = '1s'")

    def close(self) -> None:
        """End the connection, and with it the claim."""
        self._connection.close()

    def claim(self) -> None:
        """Be the only capture of the slot until the connection ends.

        Raises:
            CaptureBusy: another one is at work.
        """
        # The server lets go of a claim some time after its connection has ended.
        deadline = time.monotonic() + _CLAIM_SECONDS
        while not self._claims():
            if time.monotonic() >= deadline:
                raise self._busy()
            time.sleep(0.1)

    def _claims(self) -> bool:
        ((claimed,),) = self._ask("select pg_try_advisory_lock(hashtextextended(%s, 0))", (f"bronze {self._slot}",))
        return bool(claimed)

    def require_logical(self) -> None:
        """Raise `SourceRefused` unless the server can decode its write-ahead log."""
        ((level, recovering, version),) = self._ask(
            "select current_setting('wal_level'), pg_is_in_recovery(), current_setting('server_version_num')::int"
        )
        if version < 140000:
            raise SourceRefused("the source is older than PostgreSQL 14.", "upgrade it, or set BRONZE_CAPTURE=off.")
        if recovering:
            raise SourceRefused(
                "changes cannot be captured from a standby.", "name the primary in BRONZE_SOURCE_URL for the capture."
            )
        if level != "logical":
            raise SourceRefused(
                f"the server's wal_level is {level}, which holds no changes of rows.",
                "ALTER SYSTEM SET wal_level = logical, restart the server; or set BRONZE_CAPTURE=off.",
            )

    def epoch(self) -> str:
        """`<system identifier>/<timeline>` of the server, as `Snapshot.epoch`."""
        ((epoch,),) = self._ask(
            "select (select system_identifier from pg_control_system())::text || '/' ||"
            " (select timeline_id from pg_control_checkpoint())"
        )
        return str(epoch)

    def written(self) -> int:
        """Where the write-ahead log ends at present, flushed or not."""
        ((lsn,),) = self._ask("select (pg_current_wal_insert_lsn() - '0/0'::pg_lsn)::bigint")
        return int(lsn)

    def flushed(self) -> int:
        """A position at or after every commit that has been answered; the log is flushed up to there.

        Raises:
            SourceBusy: the server does not flush.
        """
        wanted = self.written()
        deadline = time.monotonic() + FLUSH_TIMEOUT_SECONDS
        while True:
            ((lsn,),) = self._ask("select (pg_current_wal_flush_lsn() - '0/0'::pg_lsn)::bigint")
            if lsn >= wanted:
                return int(lsn)
            if time.monotonic() > deadline:
                raise SourceBusy("the server does not flush its write-ahead log.", "look into the server's log.")
            # With synchronous_commit = off commits lie in memory for a while; a transaction of our own brings them out.
            self._run("begin; set local synchronous_commit = local; select pg_current_xact_id(); commit")

    # --- publication ------------------------------------------------------------------------------------------------

    def publish(self, tables: Sequence[BronzeTable], *, set_replica_identity: bool) -> Publication:
        """Make the publication hold exactly these tables.

        No table gets in of which PostgreSQL would then refuse updates or deletes, or whose key they would lack.

        Args:
            set_replica_identity: whether to give such a table REPLICA IDENTITY FULL instead of refusing it.

        Raises:
            SourceRefused: a table is missing, cannot be published, lacks a replica identity; or a privilege is missing.
            SourceBusy: a table stays locked.
        """
        with self._transaction():
            # Captures into other landing zones share it.
            self._run("select pg_advisory_xact_lock(hashtextextended(%s, 0))", (f"bronze {self._publication}",))
            found = {table.name: self._find(table) for table in tables}
            self._require_identities([(table, *found[table.name]) for table in tables], set_replica_identity)
            self._fit(tables, found)
            ((oid,),) = self._ask("select oid from pg_publication where pubname = %s", (self._publication,))
            members = dict(self._ask("select prrelid, oid from pg_publication_rel where prpubid = %s", (oid,)))
            return Publication(oid, {name: members[relid] for name, (relid, _) in found.items()})

    def _find(self, table: BronzeTable) -> tuple[int, str]:
        """Oid and quoted name."""
        oid, relation, kind, persistence, inherited = only_match(
            self._ask(
                "select c.oid, quote_ident(n.nspname) || '.' || quote_ident(c.relname), c.relkind, c.relpersistence,"
                " c.relkind = 'r' and exists (select from pg_inherits where inhparent = c.oid)"
                f" from pg_class c join pg_namespace n on n.oid = c.relnamespace where {RELATION_MATCHES}",
                table.source.split("."),
                table=table,
            ),
            table,
        )
        if kind not in ("r", "p") or persistence != "p" or inherited:
            raise SourceRefused(
                f"{relation} is {'a parent of inheriting tables' if inherited else 'no permanent table'}, whose changes"
                " PostgreSQL does not publish.",
                "declare the table that holds the rows, or another cadence than streaming.",
                table=table.name,
            )
        return int(oid), str(relation)

    def _require_identities(self, tables: Sequence[tuple[BronzeTable, int, str]], mend: bool) -> None:
        lacking: list[tuple[BronzeTable, str]] = []
        for table, oid, relation in tables:
            key = {column.name for column in table.key}
            # Of the tables that hold the rows: the table itself, or its partitions.
            for name, identity, columns, leaf in self._ask(
                "select quote_ident(n.nspname) || '.' || quote_ident(c.relname), c.relreplident,"
                " array(select lower(a.attname::text) from pg_index i"
                " join pg_attribute a on a.attrelid = i.indrelid and a.attnum = any(i.indkey[0:i.indnkeyatts - 1])"
                " where i.indrelid = c.oid and i.indisvalid and i.indimmediate and"
                # A partition that is made later gets the primary key, and no other identity.
                " case when c.relkind = 'p' or c.relreplident = 'd' then i.indisprimary"
                " else c.relreplident = 'i' and i.indisreplident end), c.relkind <> 'p'"
                " from pg_class c join pg_namespace n on n.oid = c.relnamespace"
                " where c.oid in (select %s::oid union select relid from pg_partition_tree(%s))"
                " and (c.relkind <> 'p' or c.oid = %s)",
                (oid, oid, oid),
                table=table,
            ):
                if key <= set(columns) or (leaf and identity == "f"):
                    continue
                if not leaf:
                    raise SourceRefused(
                        f"{relation} is partitioned and has no primary key that holds {', '.join(sorted(key))}: updates"
                        " of a partition made later would be refused by PostgreSQL.",
                        f"ALTER TABLE {relation} ADD PRIMARY KEY (…).",
                        table=table.name,
                    )
                if mend:
                    self._run(f"alter table {name} replica identity full", table=table)
                else:
                    lacking.append((table, name))
        if lacking:
            raise SourceRefused(
                f"{', '.join(name for _, name in lacking)}: the replica identity does not hold the key. Once published,"
                " PostgreSQL would refuse the updates and deletes of a table without one.",
                " ".join(f"ALTER TABLE {name} REPLICA IDENTITY FULL;" for _, name in lacking)
                + " Or give the table a primary key of the declared key.",
                table=lacking[0][0].name,
            )

    def _fit(self, tables: Sequence[BronzeTable], found: Mapping[str, tuple[int, str]]) -> None:
        name = quote_name(self._publication)
        relations = ", ".join(found[table.name][1] for table in tables)
        ((generated,),) = self._ask("select current_setting('server_version_num')::int >= 180000")
        options = "publish_via_partition_root = true"
        if generated:
            # As the snapshots have them.
            options += ", publish_generated_columns = stored"
        create = f"create publication {name} for table {relations} with ({options})"
        present = self._ask(
            "select oid, pubinsert and pubupdate and pubdelete and pubtruncate and pubviaroot and not puballtables"
            " from pg_publication where pubname = %s",
            (self._publication,),
        )
        if not present:
            self._run(create, fix=f"let the tables' owner run: {create}")
            return
        ((oid, whole),) = present
        if not whole:
            # Not altered: another oid tells that changes may have been missed.
            remake = f"drop publication {name}; {create}"
            self._run(remake, fix=f"let the publication's owner run: {remake}")
            return
        members = self._ask(
            "select prrelid, to_jsonb(r) ->> 'prqual' is null and to_jsonb(r) ->> 'prattrs' is null"
            " from pg_publication_rel r where prpubid = %s",
            (oid,),
        )
        if {(relid, True) for relid, _ in found.values()} != set(members):
            alter = f"alter publication {name} set table {relations}"
            self._run(alter, fix=f"let the publication's owner run: {alter}")

    def published(self) -> int | None:
        """Oid of the publication; None if there is none."""
        found = self._ask("select oid from pg_publication where pubname = %s", (self._publication,))
        return int(found[0][0]) if found else None

    def drop_publication(self) -> None:
        """Drop the publication, if it is there and no slot of another capture may need it."""
        others = self._ask(
            "select slot_name from pg_replication_slots where database = current_database()"
            " and starts_with(slot_name, %s) and slot_name <> %s",
            (f"{self._publication}_", self._slot),
        )
        if not others:
            drop = f"drop publication if exists {quote_name(self._publication)}"
            self._run(drop, fix=f"let the publication's owner run: {drop}")

    # --- slot -------------------------------------------------------------------------------------------------------

    def slot(self) -> Slot | None:
        """The slot, if there is one of that name."""
        found = self._ask(
            "select active, wal_status, plugin = 'pgoutput' and database = current_database()"
            " and wal_status is distinct from 'lost' and to_jsonb(s) ->> 'invalidation_reason' is null"
            " and confirmed_flush_lsn is not null, coalesce((confirmed_flush_lsn - '0/0'::pg_lsn)::bigint, 0),"
            " coalesce((restart_lsn - '0/0'::pg_lsn)::bigint, 0)"
            " from pg_replication_slots s where slot_name = %s",
            (self._slot,),
        )
        return Slot(*found[0]) if found else None

    def create_slot(self) -> int:
        """Make the slot; returns its consistent point: it tells all that is committed at or after it, and nothing else.

        Raises:
            SourceBusy: a transaction that was open at the beginning stays open.
            SourceRefused: a privilege or a free slot is missing.
        """
        with self._transaction():
            self._run(f"set local statement_timeout = '{LOCK_TIMEOUT_SECONDS}s'")
            ((lsn,),) = self._ask(
                "select (lsn - '0/0'::pg_lsn)::bigint from pg_create_logical_replication_slot(%s, 'pgoutput')",
                (self._slot,),
            )
        return int(lsn)

    def drop_slot(self) -> None:
        """Drop the slot, if it is there.

        Raises:
            CaptureBusy: a session reads from it.
        """
        if self.slot() is not None:
            self._run("select pg_drop_replication_slot(%s)", (self._slot,))

    def advance(self, lsn: int) -> None:
        """Let the server forget the changes before this position."""
        self._run("select pg_replication_slot_advance(%s, %s::pg_lsn)", (self._slot, lsn_text(lsn)))

    def peek(self, up_to: int) -> Generator[tuple[int, Message]]:
        """Messages from the slot's position on, each with its own position, in the order of commits.

        Ends with the transaction that reaches `up_to`; its commit may start at or after it. The server keeps what is
        ahead in temporary files, the client at most `FETCH_ROWS` messages.
        """
        with self._transaction():
            self._run(
                "declare bronze_changes no scroll cursor for select (lsn - '0/0'::pg_lsn)::bigint, data"
                " from pg_logical_slot_peek_binary_changes(%s, %s::pg_lsn, null,"
                " 'proto_version', '1', 'publication_names', %s)",
                (self._slot, lsn_text(up_to), quote_name(self._publication)),
            )
            while rows := self._ask(f"fetch forward {FETCH_ROWS} from bronze_changes"):
                for lsn, data in rows:
                    try:
                        yield lsn, decode(bytes(data))
                    except MalformedMessage as error:
                        raise SourceRefused(
                            f"the server's change stream cannot be read: {error}.", "report this as a defect."
                        ) from None

    def domains(self) -> Mapping[int, int]:
        """Oid of each domain → oid of the type that it is over in the end."""
        return dict(
            self._ask(
                "with recursive of as (select oid, typbasetype as base from pg_type where typtype = 'd'"
                " union all select of.oid, t.typbasetype from of join pg_type t on t.oid = of.base"
                " where t.typtype = 'd')"
                " select of.oid::bigint, of.base::bigint from of join pg_type t on t.oid = of.base"
                " where t.typtype <> 'd'"
            )
        )

    # --- errors -----------------------------------------------------------------------------------------------------

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        self._run("begin")
        try:
            yield
        except BaseException:
            with suppress(psycopg2.Error), self._connection.cursor() as cursor:
                cursor.execute("rollback")
            raise
        self._run("commit")

    def _run(
        self, sql: str, parameters: Sequence[Any] = (), *, table: BronzeTable | None = None, fix: str | None = None
    ) -> None:
        self._execute(sql, parameters, table, fix, fetch=False)

    def _ask(self, sql: str, parameters: Sequence[Any] = (), *, table: BronzeTable | None = None) -> list[Any]:
        return self._execute(sql, parameters, table, None, fetch=True)

    def _execute(
        self, sql: str, parameters: Sequence[Any], table: BronzeTable | None, fix: str | None, *, fetch: bool
    ) -> list[Any]:
        try:
            with self._connection.cursor() as cursor:
                cursor.execute(sql, parameters or None)
                return list(cursor.fetchall()) if fetch else []
        except psycopg2.Error as error:
            raise self._translated(error, table.name if table else None, fix) from None

    def _translated(self, error: psycopg2.Error, table: str | None, fix: str | None) -> BronzeError:
        code = error.pgcode or ""
        said = error.diag.message_primary or type(error).__name__
        user = self._address.user
        if code.startswith("22"):
            # Said without PostgreSQL's words, which show the value.
            return SourceRefused(
                "a changed value cannot be had as UTF-8.",
                "correct it at the source (a database with the encoding SQL_ASCII checks none), then start anew with"
                " `Capture.drop` (docs/capture.md).",
                table=table,
            )
        if self._connection.closed or code.startswith(("08", "57P")):
            return self._address.unreachable("the connection was lost.", table)
        if code == "55006":
            return self._busy()
        if code in ("55P03", "57014"):
            return SourceBusy(
                f"the source made the capture wait for {LOCK_TIMEOUT_SECONDS} s ({said}): a transaction stays open.",
                "none needed if that transaction ends, it is tried again; else find it in pg_stat_activity (column"
                " xact_start) and end it.",
                table=table,
            )
        if code == "53400":
            return SourceRefused(
                f"the server has no free replication slot ({said}).",
                "drop one that is left behind (docs/capture.md), or raise max_replication_slots and restart.",
                table=table,
            )
        if code == "42501" and fix is None:
            fix = f"ALTER ROLE {quote_name(user)} REPLICATION, and see docs/capture.md for the other privileges."
        return SourceRefused(
            f"the source refused the capture: {said}.",
            fix or f"give {user} the privileges that `docs/capture.md` lists.",
            table=table,
        )

    def _busy(self) -> CaptureBusy:
        return CaptureBusy(
            f"another process captures through the slot {self._slot}.", "none needed, it is tried again after that one."
        )
