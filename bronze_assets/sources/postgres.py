"""PostgreSQL as a source: one exported snapshot for all that one process reads, in parallel JDBC ranges.

A frame from here has, for each column, the typed value, or NULL and the value's text in `quality.raw_column(name)`.
"""

from __future__ import annotations

import datetime as dt
import re
import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import psycopg2
from pyspark.sql import Column as SparkColumn
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F
from pyspark.sql import types as T

from bronze_assets.errors import BronzeError, SchemaMismatch, SourceBusy, SourceRefused
from bronze_assets.quality import raw_column
from bronze_assets.sources.postgres_address import Address
from bronze_assets.sources.postgres_types import COMPATIBLE, SourceColumn, expressions, finished, quote_name, spark_type
from bronze_assets.sources.scope import Scope, bound_literal
from bronze_assets.table import LOAD_DATE, METADATA_COLUMNS, BronzeTable

LOCK_TIMEOUT_SECONDS = 30
FETCH_ROWS = 10_000
PARALLEL_FROM_ROWS = 100_000

RELATION_MATCHES = (
    "lower(n.nspname) = lower(%s) and lower(c.relname) = lower(%s) and c.relkind in ('r', 'p', 'v', 'm', 'f')"
)
"""SQL for the relations (pg_class c, pg_namespace n) that `BronzeTable.source`, split at its dot, may mean."""

_LOST_BY_JDBC = re.compile(
    r"PSQLException: (?:FATAL: (?:terminating connection|the database system is|sorry, too many|too many connections"
    r"|remaining connection slots)|An I/O error occurred|The connection attempt failed|This connection has been closed"
    r"|Connection to \S+ refused)"
)
_LOCKED_BY_JDBC = re.compile(r"PSQLException: ERROR: canceling statement due to lock timeout")


@dataclass(frozen=True)
class SourceTable:
    """A source table that holds its contract.

    Attributes:
        relation: schema-qualified, quoted name.
        columns: declared name → the source's column.
        extra: bronze name of each undeclared column → the source's column.
        unique: whether a valid unique index on NOT NULL columns proves that the key is unique.
        estimated_rows: from statistics and size; exact for views.
    """

    relation: str
    columns: Mapping[str, SourceColumn]
    extra: Mapping[str, SourceColumn]
    unique: bool
    estimated_rows: int


class PostgresSource:
    """A PostgreSQL database as a process sees it: at most one open snapshot at a time.

    Args:
        url: `postgresql://user:password@host:port/database?sslmode=…`.
        clock: gives the present moment, in UTC.
        slot_point: whether snapshots are to meet captured changes without gap or overlap, see `Snapshot`.
        by_change: whether those changes are ordered by their own positions, likewise.

    Raises:
        SettingsError: the URL is malformed; the message does not show it.
    """

    def __init__(
        self,
        url: str,
        clock: Callable[[], dt.datetime] = lambda: dt.datetime.now(dt.UTC),
        *,
        slot_point: bool = False,
        by_change: bool = False,
    ) -> None:
        self._address = Address.parse(url)
        self._clock = clock
        self._slot_point = slot_point
        self._by_change = by_change
        self._snapshot: Snapshot | None = None

    def snapshot(self) -> Snapshot:
        """The process's snapshot; a new one if there is none or its connection has died.

        Raises:
            SourceUnreachable: no answer; worth a retry.
            SourceRefused: the server said no.
            SourceBusy: with `slot_point`, a transaction that was open at the beginning stays open.
        """
        if self._snapshot is not None and not self._snapshot.alive():
            self.close()
        if self._snapshot is None:
            self._snapshot = Snapshot(
                self._address, self._clock(), slot_point=self._slot_point, by_change=self._by_change
            )
        return self._snapshot

    @property
    def taken(self) -> dt.datetime | None:
        """When the open snapshot was taken; None without one."""
        return self._snapshot.taken if self._snapshot is not None else None

    def close(self) -> None:
        """End the snapshot's transaction; the next `snapshot()` sees the source anew."""
        if self._snapshot is not None:
            self._snapshot.close()
            self._snapshot = None


class Snapshot:
    """One exported snapshot: every read through it, from any connection, sees the same committed rows.

    Attributes:
        epoch: `<system identifier>/<timeline>` of the server.
        lsn: the write-ahead log position of the snapshot.
        taken: the moment before it was taken.

    Args:
        slot_point: whether `lsn` is to part all transactions exactly: the snapshot sees those whose commit record
            starts before it and no others. Without, one that commits while it is taken may be on either side. Needs
            `wal_level = logical`, REPLICATION and, for a moment, a free slot; waits for open transactions.
        by_change: with `slot_point`, whether changes are ordered by their own position and not by their commit's, as
            Debezium's are. `lsn` then lies before all changes that the snapshot does not see; some that it does see
            come after it, and end at the same rows.
    """

    def __init__(
        self, address: Address, taken: dt.datetime, *, slot_point: bool = False, by_change: bool = False
    ) -> None:
        self._address = address
        self.taken = taken
        self._connection = address.connect()
        try:
            self._connection.set_session(isolation_level="REPEATABLE READ", readonly=True)
            with self._connection.cursor() as cursor:
                cursor.execute(f"set lock_timeout = '{LOCK_TIMEOUT_SECONDS}s'")
            self._connection.commit()
            point = self._import_slot_point(by_change) if slot_point else None
            ((self._id, lsn, epoch),) = self._query(
                "select pg_export_snapshot(),"
                " case when pg_is_in_recovery() then pg_last_wal_replay_lsn() else pg_current_wal_lsn() end"
                " - '0/0'::pg_lsn,"
                " (select system_identifier from pg_control_system())::text || '/' ||"
                " (select timeline_id from pg_control_checkpoint())"
            )
            with self._connection.cursor() as cursor:
                cursor.execute("savepoint unlocked")
        except BaseException:
            self._connection.close()
            raise
        self.lsn = int(lsn) if point is None else point
        self.epoch = str(epoch)

    def _import_slot_point(self, by_change: bool) -> int:
        """Begin the transaction with the snapshot of a temporary slot's consistent point; returns that point, or with
        `by_change` where the slot begins to read.

        The server waits for the transactions that are open when a slot begins to read. So what is open at its
        consistent point has begun in between, and every change of it lies in between too, or later.
        """
        slot = f"bronze_snapshot_{secrets.token_hex(8)}"
        with closing(self._address.connect(replication=True)) as replication, replication.cursor() as cursor:
            try:
                # Bounds the wait for each transaction that is open; a replication command knows no statement_timeout.
                cursor.execute(f"SET lock_timeout = '{LOCK_TIMEOUT_SECONDS}s'")
                cursor.execute(
                    f'CREATE_REPLICATION_SLOT "{slot}" TEMPORARY LOGICAL pgoutput'
                    # The way to write it that PostgreSQL 14 knows too.
                    " EXPORT_SNAPSHOT"
                )
                _, point, exported, _ = cursor.fetchone()
                with self._connection.cursor() as importing:
                    importing.execute("set transaction snapshot %s", (exported,))
                    if by_change:
                        importing.execute("select restart_lsn from pg_replication_slots where slot_name = %s", (slot,))
                        ((point,),) = importing.fetchall()
            except psycopg2.Error as error:
                raise self._no_slot_point(error) from None
        high, low = point.split("/")
        return (int(high, 16) << 32) + int(low, 16)

    def _no_slot_point(self, error: psycopg2.Error) -> BronzeError:
        said = error.diag.message_primary or type(error).__name__
        match error.pgcode:
            case "55P03" | "57014":
                return SourceBusy(
                    f"a transaction has stayed open at the source for {LOCK_TIMEOUT_SECONDS} s; a snapshot that"
                    " meets the captured changes waits for those that were open when it began.",
                    "none needed if that transaction ends, the load is tried again; else find it in pg_stat_activity"
                    " (column xact_start) and end it.",
                )
            case "53400":
                fix = "drop a slot that is left behind (docs/capture.md), or raise max_replication_slots and restart."
            case "55000":
                fix = "ALTER SYSTEM SET wal_level = logical and restart the server; or set BRONZE_CAPTURE=off."
            case "42501":
                fix = f"ALTER ROLE {self._address.user} REPLICATION."
            case None | "57P01" | "57P02" | "57P03":
                return self._address.unreachable("the connection was lost.", None)
            case _:
                fix = "see docs/capture.md for what the server must allow."
        return SourceRefused(f"the source gave no snapshot at a slot's point: {said}.", fix)

    def alive(self) -> bool:
        """Whether the snapshot can still be read."""
        if self._connection.closed:
            return False
        try:
            with self._connection.cursor() as cursor:
                cursor.execute("select 1")
        except psycopg2.Error:
            return False
        return True

    def close(self) -> None:
        """End the transaction that holds the snapshot."""
        self._connection.close()

    def describe(self, table: BronzeTable) -> SourceTable:
        """Find the source table and hold it against the declaration, before anything is read.

        Raises:
            SourceRefused: the table is not there or may not be read.
            SchemaMismatch: a required column is missing or has an incompatible type.
            SourceBusy: the table is locked, or was truncated or rewritten after the snapshot, which then cannot see its
                rows.
        """
        schema, name = table.source.split(".")
        found = self._query(
            "select c.oid, quote_ident(n.nspname) || '.' || quote_ident(c.relname),"
            " has_table_privilege(c.oid, 'SELECT') and has_schema_privilege(n.oid, 'USAGE'),"
            " c.relkind, c.reltuples::bigint,"
            # A table without partitions has no partition tree, not even itself.
            " (select coalesce(sum(pg_relation_size(relid)), 0)"
            " from (select c.oid as relid union select relid from pg_partition_tree(c.oid)) parts)::bigint,"
            " c.relkind = 'r' and exists (select from pg_inherits where inhparent = c.oid)"
            " from pg_class c join pg_namespace n on n.oid = c.relnamespace"
            f" where {RELATION_MATCHES}",
            (schema, name),
            table=table,
        )
        oid, relation, readable, kind, tuples, size, inherited = only_match(found, table)
        if not readable:
            raise SourceRefused(
                f"{relation} may not be read by {self._address.user}.",
                f"GRANT SELECT ON {relation} and USAGE on its schema TO {self._address.user}.",
                table=table.name,
            )
        self._hold(table, oid, relation)
        columns, extra = self._match_columns(table, oid, enforced=kind in ("r", "p") and not inherited)
        if kind in ("v", "f"):
            ((rows,),) = self._query(f"select count(*) from {relation}", table=table)
        else:
            rows = max(tuples, size // 200)
        unique = not inherited and self._unique(oid, {columns[c.name].name for c in table.key})
        return SourceTable(relation, columns, extra, unique, int(rows))

    def _hold(self, table: BronzeTable, oid: int, relation: str) -> None:
        """Keep the table from being truncated or rewritten until it has been read.

        To a snapshot that is older than a TRUNCATE the table is empty: every key would be called deleted.
        """
        self._query(f"select from {relation} limit 0", table=table)
        ((rewritten,),) = self._query(
            "select coalesce(bool_or(c.relfilenode <> pg_relation_filenode(c.oid)), false)"
            " from pg_class c where c.relkind in ('r', 'm')"
            " and c.oid in (select %s::oid union select relid from pg_partition_tree(%s))",
            (oid, oid),
            table=table,
        )
        if rewritten:
            self.close()
            raise SourceBusy(
                f"{relation} was truncated or rewritten after the snapshot was taken.",
                "none needed, the load is tried again with a new snapshot.",
                table=table.name,
            )

    def count(self, source: SourceTable, scope: Scope) -> int:
        """Rows of the scope, exactly."""
        condition = self._condition(source, scope)
        ((rows,),) = self._query(f"select count(*) from {source.relation} where {condition}")
        return int(rows)

    def next_bound(self, source: SourceTable, key: str, low: int | None, rows: int) -> int | None:
        """The key that lies `rows` rows after `low` in key order; None if fewer are left."""
        quoted = quote_name(source.columns[key].name)
        condition = Scope(key, low).sql(quoted) if low is not None else f"{quoted} is not null"
        found = self._query(
            f"select {quoted} from {source.relation} where {condition} order by {quoted} offset {rows} limit 1"
        )
        return int(found[0][0]) if found else None

    def read(
        self, session: SparkSession, source: SourceTable, table: BronzeTable, scope: Scope, connections: int
    ) -> DataFrame:
        """The scope's rows as a source frame (see `quality`): declared columns, then the undeclared ones.

        Args:
            connections: how many ranges of the key are read at once, for large tables with one integer key.
        """
        selected: list[str] = []
        finish: list[SparkColumn] = []
        wanted = [(c.name, c.type, source.columns[c.name]) for c in table.columns]
        wanted += [(name, spark_type(column), column) for name, column in source.extra.items()]
        for name, kind, column in wanted:
            value, raw = expressions(column, kind)
            selected.append(f"{value} as {quote_name(name)}")
            finish.append(finished(name, kind).alias(name))
            if raw is not None:
                selected.append(f"{raw} as {quote_name(raw_column(name))}")
                finish.append(F.col(raw_column(name)))
        query = (
            f"(select {', '.join(selected)} from {source.relation} where {self._condition(source, scope)}) as source"
        )
        return self._jdbc(session, query, self._ranges(source, table, scope, connections)).select(*finish)

    def read_keys(
        self, session: SparkSession, source: SourceTable, table: BronzeTable, low: Any = None, high: Any = None
    ) -> DataFrame:
        """The distinct keys at the source; with bounds, only those whose first key column lies in [low, high], if that
        is an integer or a date.
        """
        keys = [f"{expressions(source.columns[c.name], c.type)[0]} as {quote_name(c.name)}" for c in table.key]
        first = quote_name(source.columns[table.key[0].name].name)
        bounded = low is not None and isinstance(table.key[0].type, (T.IntegerType, T.LongType, T.DateType))
        condition = f"{first} between {bound_literal(low)} and {bound_literal(high)}" if bounded else "true"
        query = f"(select distinct {', '.join(keys)} from {source.relation} where {condition}) as keys"
        return self._jdbc(session, query, {}).select(*(finished(c.name, c.type).alias(c.name) for c in table.key))

    @contextmanager
    def reading(self, table: BronzeTable) -> Iterator[None]:
        """For all that is done with a table, from `describe` on: lets it go at the end, and turns what goes wrong in
        Spark because the source went away into `SourceUnreachable`.
        """
        try:
            yield
        except Exception as error:
            # Of pyspark's or py4j's own type, as the failure of a task is.
            if isinstance(error, BronzeError):
                raise
            if _LOCKED_BY_JDBC.search(str(error)):
                raise self._locked(table.name) from error
            if not self.alive() or _LOST_BY_JDBC.search(str(error)):
                raise self._address.unreachable("the connection was lost while reading.", table.name) from error
            raise
        finally:
            # Or ALTER TABLE, and all who come behind it, would wait for the other tables of the run.
            with suppress(psycopg2.Error), self._connection.cursor() as cursor:
                cursor.execute("rollback to savepoint unlocked")

    def _locked(self, table: str | None) -> SourceBusy:
        # Who waits for an exclusive lock (ALTER TABLE) waits for this snapshot, and its readers would queue behind.
        self.close()
        return SourceBusy(
            f"another session has kept the source table locked for {LOCK_TIMEOUT_SECONDS} s, as ALTER TABLE does.",
            "none needed if that session ends, the load is tried again; else find it in pg_locks and end it.",
            table=table,
        )

    def _jdbc(self, session: SparkSession, query: str, ranges: Mapping[str, Any]) -> DataFrame:
        options = {
            **self._address.jdbc_options(),
            "dbtable": query,
            "fetchsize": FETCH_ROWS,
            "sessionInitStatement": (
                f"SET TRANSACTION ISOLATION LEVEL REPEATABLE READ; SET TRANSACTION SNAPSHOT '{self._id}';"
                f" SET lock_timeout = '{LOCK_TIMEOUT_SECONDS}s'"
            ),
            **ranges,
        }
        return session.read.format("jdbc").options(**options).load()

    def _ranges(self, source: SourceTable, table: BronzeTable, scope: Scope, connections: int) -> dict[str, Any]:
        key = table.key[0]
        if (
            connections < 2
            or len(table.key) > 1
            or not isinstance(key.type, (T.IntegerType, T.LongType))
            or source.estimated_rows < PARALLEL_FROM_ROWS
        ):
            return {}
        quoted = quote_name(source.columns[key.name].name)
        ((low, high),) = self._query(
            f"select min({quoted}), max({quoted}) from {source.relation} where {self._condition(source, scope)}",
            table=table,
        )
        if low is None or low == high:
            return {}
        return {"partitionColumn": key.name, "lowerBound": low, "upperBound": high, "numPartitions": connections}

    def _condition(self, source: SourceTable, scope: Scope) -> str:
        return "true" if scope.column is None else scope.sql(quote_name(source.columns[scope.column].name))

    def _match_columns(
        self, table: BronzeTable, oid: int, *, enforced: bool
    ) -> tuple[dict[str, SourceColumn], dict[str, SourceColumn]]:
        rows = self._query(
            # A domain may be over a domain: down to the type that is none.
            # A constraint may be there and not hold yet; a domain's NOT NULL does not keep every NULL out of a column.
            "with recursive of as (select attnum, atttypid as type, atttypmod as modifier"
            " from pg_attribute where attrelid = %s and attnum > 0 and not attisdropped"
            " union all select of.attnum, t.typbasetype, t.typtypmod"
            " from of join pg_type t on t.oid = of.type where t.typtype = 'd')"
            " select a.attname, t.typname, of.modifier, a.attnotnull and not exists (select from pg_constraint"
            " where conrelid = a.attrelid and contype = 'n' and conkey = array[a.attnum] and not convalidated)"
            " from of join pg_type t on t.oid = of.type"
            " join pg_attribute a on a.attrelid = %s and a.attnum = of.attnum"
            " where t.typtype <> 'd' order by of.attnum",
            (oid, oid),
            table=table,
        )
        by_name: dict[str, SourceColumn] = {}
        for name, type_name, modifier, not_null in rows:
            if name.lower() in by_name:
                raise SchemaMismatch(
                    f"source columns {by_name[name.lower()].name!r} and {name!r} differ only in case.",
                    "rename one of them at the source.",
                    table=table.name,
                )
            precision = scale = None
            if type_name == "numeric" and modifier >= 4:
                precision = (modifier - 4) >> 16 & 0xFFFF
                scale = (((modifier - 4) & 0x7FF) ^ 1024) - 1024
            by_name[name.lower()] = SourceColumn(name, type_name, enforced and not_null, precision, scale)
        problems = []
        for column in table.columns:
            found = by_name.get(column.name)
            if found is None:
                problems.append(f"column {column.name!r} is missing (expected {column.type.simpleString()})")
            elif found.type not in COMPATIBLE[type(column.type)]:
                problems.append(f"column {column.name!r}: expected {column.type.simpleString()}, found {found}")
        declared = {c.name: by_name[c.name] for c in table.columns if c.name in by_name}
        extra: dict[str, SourceColumn] = {}
        for name, undeclared in by_name.items():
            if name in declared:
                continue
            bronze = _bronze_name(name)
            if bronze in {*declared, *extra, *METADATA_COLUMNS, LOAD_DATE} or bronze.startswith("__"):
                problems.append(
                    f"column {undeclared.name!r} would be loaded as {bronze!r}, a name that is taken: rename it"
                )
            extra[bronze] = undeclared
        if problems:
            raise SchemaMismatch(
                f"{table.source} does not hold its contract: {'; '.join(problems)}. Nothing was written.",
                "mend the columns at the source, or change the declaration in the catalog.",
                table=table.name,
            )
        return declared, extra

    def _unique(self, oid: int, key: set[str]) -> bool:
        rows = self._query(
            "select array_agg(a.attname::text), bool_and(a.attnotnull)"
            " from pg_index i cross join lateral unnest(i.indkey[0:i.indnkeyatts - 1]) as k(attnum)"
            " join pg_attribute a on a.attrelid = i.indrelid and a.attnum = k.attnum"
            " where i.indrelid = %s and i.indisunique and i.indisvalid and i.indimmediate"
            " and i.indpred is null and i.indexprs is null group by i.indexrelid",
            (oid,),
        )
        return any(not_null and set(names) <= key for names, not_null in rows)

    def _query(self, sql: str, parameters: Sequence[Any] = (), *, table: BronzeTable | None = None) -> list[Any]:
        name = table.name if table else None
        try:
            with self._connection.cursor() as cursor:
                cursor.execute(sql, parameters or None)
                return list(cursor.fetchall())
        except psycopg2.Error as error:
            if self._connection.closed or (error.pgcode or "").startswith(("08", "57P")):
                raise self._address.unreachable("the connection was lost.", name) from None
            if error.pgcode == "55P03":
                raise self._locked(name) from None
            raise SourceRefused(
                f"the source refused a query: {error.diag.message_primary or type(error).__name__}.",
                f"give {self._address.user} the privileges that `docs/source.md` lists.",
                table=name,
            ) from None


def only_match(found: Sequence[Any], table: BronzeTable) -> Any:
    """The one row of what `RELATION_MATCHES` found; its second value is the quoted name.

    Raises:
        SourceRefused: there is none, or there are several.
    """
    if not found:
        raise SourceRefused(
            f"the source has no table {table.source} (upper and lower case do not matter).",
            "create it, grant USAGE on its schema, or correct `source` in the catalog.",
            table=table.name,
        )
    if len(found) > 1:
        names = ", ".join(sorted(row[1] for row in found))
        raise SourceRefused(
            f"the source has several tables of that name: {names}.", "leave one of them.", table=table.name
        )
    return found[0]


def _bronze_name(source_name: str) -> str:
    return re.sub(r"\W", "_", source_name.lower())
