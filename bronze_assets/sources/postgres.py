"""PostgreSQL as a source: one exported snapshot for all that one process reads, in parallel JDBC ranges.

JDBC bends some values (semantics.md): infinite dates, NaN, numerics that do not fit. The query itself tells them apart,
so that a frame from here has the typed value, or NULL and the value's text in `quality.raw_column(name)`. Dates and
timestamps travel as whole numbers, which is exact for every calendar and cheaper than JDBC's own decoding.
"""

from __future__ import annotations

import datetime as dt
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qsl, quote, unquote, urlsplit

import psycopg2
from pyspark.sql import Column as SparkColumn
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F
from pyspark.sql import types as T

from bronze_assets.errors import BronzeError, SchemaMismatch, SettingsError, SourceRefused, SourceUnreachable
from bronze_assets.quality import raw_column
from bronze_assets.table import LOAD_DATE, METADATA_COLUMNS, BronzeTable

CONNECT_TIMEOUT_SECONDS = 10
LOCK_TIMEOUT_SECONDS = 30
FETCH_ROWS = 10_000
PARALLEL_FROM_ROWS = 100_000
_PASSED_ON = ("sslmode", "sslrootcert", "sslcert", "sslkey")
_RETRYABLE_FATAL = (
    "starting up",
    "shutting down",
    "recovery mode",
    "too many",
    "remaining connection slots",
    "SSL SYSCALL",
    "closed unexpectedly",
)
_LOST_BY_JDBC = re.compile(
    r"PSQLException: (?:FATAL: (?:terminating connection|the database system is|sorry, too many|too many connections"
    r"|remaining connection slots)|An I/O error occurred|The connection attempt failed|This connection has been closed"
    r"|Connection to \S+ refused)"
)
_LOCKED_BY_JDBC = re.compile(r"PSQLException: ERROR: canceling statement due to lock timeout")


@dataclass(frozen=True)
class Scope:
    """What of a source table a batch reads: all of it, or the rows whose `column` lies in [low, high).

    An open `low` includes rows in which the column is NULL.
    """

    column: str | None = None
    low: int | dt.date | None = None
    high: int | dt.date | None = None

    @property
    def kind(self) -> str:
        """`full`, `day` (of an event date) or `range` (of the key)."""
        if self.column is None:
            return "full"
        return "day" if isinstance(self.low, dt.date) else "range"

    def __str__(self) -> str:
        if self.column is None:
            return "full"
        if isinstance(self.low, dt.date):
            return f"{self.column} = {self.low}"
        if self.low is None and self.high is None:
            return f"all of {self.column}"
        low = "" if self.low is None else f"{self.low} <= "
        high = "" if self.high is None else f" < {self.high}"
        return f"{low}{self.column}{high}"

    def sql(self, quoted: str) -> str:
        """As a condition in PostgreSQL on the quoted column."""
        parts = []
        if self.low is not None:
            parts.append(f"{quoted} >= {_sql_literal(self.low)}")
        if self.high is not None:
            parts.append(f"{quoted} < {_sql_literal(self.high)}")
        if not parts:
            return "true"
        condition = " and ".join(parts)
        return condition if self.low is not None else f"({condition} or {quoted} is null)"

    def condition(self) -> SparkColumn:
        """As a condition on the bronze table."""
        if self.column is None:
            return F.lit(True)
        value = F.col(self.column)
        holds = F.lit(True)
        if self.low is not None:
            holds = holds & (value >= F.lit(self.low))
        if self.high is not None:
            holds = holds & (value < F.lit(self.high))
        return holds if self.low is not None else holds | value.isNull()


FULL = Scope()


@dataclass(frozen=True)
class SourceColumn:
    """A column as PostgreSQL's catalog has it; precision and scale only for a constrained numeric.

    Attributes:
        not_null: whether the source keeps every NULL out of it.
    """

    name: str
    type: str
    not_null: bool
    precision: int | None = None
    scale: int | None = None

    def __str__(self) -> str:
        return self.type if self.precision is None else f"{self.type}({self.precision},{self.scale})"


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

    Raises:
        SettingsError: the URL is malformed; the message does not show it.
    """

    def __init__(self, url: str) -> None:
        self._address = _Address.parse(url)
        self._snapshot: Snapshot | None = None

    def snapshot(self) -> Snapshot:
        """The process's snapshot; a new one if there is none or its connection has died.

        Raises:
            SourceUnreachable: no answer; worth a retry.
            SourceRefused: the server said no.
        """
        if self._snapshot is not None and not self._snapshot.alive():
            self.close()
        if self._snapshot is None:
            self._snapshot = Snapshot(self._address)
        return self._snapshot

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
    """

    def __init__(self, address: _Address) -> None:
        self._address = address
        self._connection = address.connect()
        try:
            self._connection.set_session(isolation_level="REPEATABLE READ", readonly=True)
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
        self.lsn = int(lsn)
        self.epoch = str(epoch)

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
            SourceUnreachable: the table was truncated or rewritten after the snapshot, which cannot see its rows.
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
            " where lower(n.nspname) = lower(%s) and lower(c.relname) = lower(%s)"
            " and c.relkind in ('r', 'p', 'v', 'm', 'f')",
            (schema, name),
            table=table,
        )
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
        ((oid, relation, readable, kind, tuples, size, inherited),) = found
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
            raise self._address.unreachable(f"{relation} was rewritten after the snapshot was taken.", table.name)

    def count(self, source: SourceTable, scope: Scope) -> int:
        """Rows of the scope, exactly."""
        condition = self._condition(source, scope)
        ((rows,),) = self._query(f"select count(*) from {source.relation} where {condition}")
        return int(rows)

    def next_bound(self, source: SourceTable, key: str, low: int | None, rows: int) -> int | None:
        """The key that lies `rows` rows after `low` in key order; None if fewer are left."""
        quoted = _quote(source.columns[key].name)
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
        expressions: list[str] = []
        finish: list[SparkColumn] = []
        wanted = [(c.name, c.type, source.columns[c.name]) for c in table.columns]
        wanted += [(name, spark_type(column), column) for name, column in source.extra.items()]
        for name, kind, column in wanted:
            value, raw = _expressions(column, kind)
            expressions.append(f"{value} as {_quote(name)}")
            finish.append(_finish(name, kind).alias(name))
            if raw is not None:
                expressions.append(f"{raw} as {_quote(raw_column(name))}")
                finish.append(F.col(raw_column(name)))
        query = (
            f"(select {', '.join(expressions)} from {source.relation} where {self._condition(source, scope)}) as source"
        )
        return self._jdbc(session, query, self._ranges(source, table, scope, connections)).select(*finish)

    def read_keys(
        self, session: SparkSession, source: SourceTable, table: BronzeTable, low: Any = None, high: Any = None
    ) -> DataFrame:
        """The distinct keys at the source; with bounds, only those whose first key column lies in [low, high], if that
        is an integer or a date.
        """
        keys = [f"{_expressions(source.columns[c.name], c.type)[0]} as {_quote(c.name)}" for c in table.key]
        first = _quote(source.columns[table.key[0].name].name)
        bounded = low is not None and isinstance(table.key[0].type, (T.IntegerType, T.LongType, T.DateType))
        condition = f"{first} between {_sql_literal(low)} and {_sql_literal(high)}" if bounded else "true"
        query = f"(select distinct {', '.join(keys)} from {source.relation} where {condition}) as keys"
        return self._jdbc(session, query, {}).select(*(_finish(c.name, c.type).alias(c.name) for c in table.key))

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

    def _locked(self, table: str | None) -> SourceUnreachable:
        # Who waits for an exclusive lock (ALTER TABLE) waits for this snapshot, and its readers would queue behind.
        self.close()
        return self._address.unreachable(
            f"another session kept the table locked for {LOCK_TIMEOUT_SECONDS} s (ALTER TABLE, TRUNCATE, VACUUM FULL).",
            table,
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
        quoted = _quote(source.columns[key.name].name)
        ((low, high),) = self._query(
            f"select min({quoted}), max({quoted}) from {source.relation} where {self._condition(source, scope)}",
            table=table,
        )
        if low is None or low == high:
            return {}
        return {"partitionColumn": key.name, "lowerBound": low, "upperBound": high, "numPartitions": connections}

    def _condition(self, source: SourceTable, scope: Scope) -> str:
        return "true" if scope.column is None else scope.sql(_quote(source.columns[scope.column].name))

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
            elif found.type not in _COMPATIBLE[type(column.type)]:
                problems.append(f"column {column.name!r}: expected {column.type.simpleString()}, found {found}")
        if problems:
            raise SchemaMismatch(
                f"{table.source} does not hold its contract: {'; '.join(problems)}. Nothing was written.",
                "restore the column at the source, or change the declaration in the catalog.",
                table=table.name,
            )
        declared = {c.name: by_name[c.name] for c in table.columns}
        extra: dict[str, SourceColumn] = {}
        for name, undeclared in by_name.items():
            if name in declared:
                continue
            bronze = _bronze_name(name)
            if bronze in {*declared, *extra, *METADATA_COLUMNS, LOAD_DATE} or bronze.startswith("__"):
                raise SchemaMismatch(
                    f"source column {undeclared.name!r} would be loaded as {bronze!r}, a name that is taken."
                    " Nothing was written.",
                    "rename it at the source.",
                    table=table.name,
                )
            extra[bronze] = undeclared
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


@dataclass(frozen=True)
class _Address:
    host: str
    port: int
    database: str
    user: str
    options: Mapping[str, str]
    _password: str | None

    def __repr__(self) -> str:
        return f"postgresql://{self.user}@{self.host}:{self.port}/{self.database}"

    @classmethod
    def parse(cls, url: str) -> _Address:
        fix = "write postgresql://user:password@host:port/database, special characters percent-encoded."
        try:
            parts = urlsplit(url)
            port = parts.port or 5432
        except ValueError:
            raise SettingsError("BRONZE_SOURCE_URL is malformed (its host or port).", fix) from None
        if parts.scheme not in ("postgresql", "postgres"):
            raise SettingsError("BRONZE_SOURCE_URL is not a postgresql:// URL.", fix)
        database = unquote(parts.path.lstrip("/"))
        # An unencoded `/` in the password ends the host there: what follows is part of the password, not to be shown.
        if re.search(r"[@/:]", parts.path.lstrip("/")) or "@" in parts.fragment or "@" in parts.query:
            raise SettingsError("BRONZE_SOURCE_URL is malformed (its database, or an unencoded password).", fix)
        if not parts.hostname or not parts.username or not database:
            raise SettingsError("BRONZE_SOURCE_URL lacks a host, a user or a database.", fix)
        options = dict(parse_qsl(parts.query))
        unknown = sorted(set(options) - set(_PASSED_ON))
        if unknown:
            raise SettingsError(
                f"BRONZE_SOURCE_URL has unknown parameters: {', '.join(unknown)}.", f"use {', '.join(_PASSED_ON)}."
            )
        password = unquote(parts.password) if parts.password is not None else None
        return cls(parts.hostname, port, database, unquote(parts.username), options, password)

    def connect(self) -> Any:
        try:
            return psycopg2.connect(
                host=self.host,
                port=self.port,
                dbname=self.database,
                user=self.user,
                password=self._password,
                connect_timeout=CONNECT_TIMEOUT_SECONDS,
                application_name="bronze_assets",
                # The snapshot's transaction is idle while Spark reads through other connections.
                options="-c DateStyle=ISO -c TimeZone=UTC -c idle_in_transaction_session_timeout=0"
                f" -c lock_timeout={LOCK_TIMEOUT_SECONDS}s",
                keepalives_idle=30,
                **dict[str, Any](self.options),
            )
        except psycopg2.OperationalError as error:
            said = str(error)
            fatal = re.search(r"(?:FATAL|certificate|SSL|no password supplied)[^\n]*", said)
            if fatal and not any(word in said for word in _RETRYABLE_FATAL):
                raise SourceRefused(
                    f"the source {self!r} refused the connection: {fatal.group(0)}.",
                    "correct BRONZE_SOURCE_URL, the server's pg_hba.conf or the certificate.",
                ) from None
            raise self.unreachable("it does not answer.", None) from None

    def unreachable(self, what: str, table: str | None) -> SourceUnreachable:
        return SourceUnreachable(
            f"the source {self!r} cannot be reached: {what}",
            "check that the server runs and that BRONZE_SOURCE_URL names it.",
            table=table,
        )

    def jdbc_options(self) -> dict[str, Any]:
        host = f"[{self.host}]" if ":" in self.host else self.host
        options: dict[str, Any] = {
            "url": f"jdbc:postgresql://{host}:{self.port}/{quote(self.database, safe='')}",
            "driver": "org.postgresql.Driver",
            "user": self.user,
            "connectTimeout": CONNECT_TIMEOUT_SECONDS,
            "tcpKeepAlive": "true",
            "ApplicationName": "bronze_assets",
            # From the first execution on, so that numbers arrive as numbers and not as text.
            "prepareThreshold": -1,
            **self.options,
        }
        if self._password is not None:
            options["password"] = self._password
        return options


_INTEGERS = ("int2", "int4")
_TEXTS = ("text", "varchar", "bpchar", "name", "citext", "uuid")
_COMPATIBLE: Mapping[type[T.DataType], tuple[str, ...]] = {
    T.IntegerType: _INTEGERS,
    T.LongType: (*_INTEGERS, "int8"),
    T.StringType: _TEXTS,
    T.DecimalType: (*_INTEGERS, "int8", "numeric"),
    T.DateType: ("date",),
    T.TimestampType: ("timestamp", "timestamptz"),
    T.BooleanType: ("bool",),
}
"""Spark type → the source types whose every value either fits or is told apart by the query. Text → number is not here:
a number that arrives as text means that somebody changed the column."""


def spark_type(column: SourceColumn) -> T.DataType:
    """The type under which an undeclared source column joins the table: its own, else text."""
    match column.type:
        case "int2" | "int4":
            return T.IntegerType()
        case "int8":
            return T.LongType()
        case "bool":
            return T.BooleanType()
        case "date":
            return T.DateType()
        case "timestamp" | "timestamptz":
            return T.TimestampType()
        case "numeric" if column.precision is not None and 0 <= (column.scale or 0) <= column.precision <= 38:
            return T.DecimalType(column.precision, column.scale or 0)
        case _:
            return T.StringType()


def _expressions(column: SourceColumn, kind: T.DataType) -> tuple[str, str | None]:
    """SQL for the value, and for its text where it cannot be had as `kind` (None if it always can)."""
    c = _quote(column.name)

    def told_apart(fits: str, value: str) -> tuple[str, str]:
        return f"case when {fits} then {value} end", f"case when not ({fits}) then {c}::text end"

    match kind:
        case T.DateType():
            return told_apart(f"{c} between '0001-01-01' and '9999-12-31'", f"{c} - date '1970-01-01'")
        case T.TimestampType():
            utc = f"({c} at time zone 'UTC')" if column.type == "timestamptz" else c
            micros = (
                f"extract(epoch from date_trunc('second', {utc}))::bigint * 1000000"
                f" + extract(microseconds from {utc})::bigint % 1000000"
            )
            return told_apart(f"{c} >= '0001-01-01' and {c} < '10000-01-01'", micros)
        case T.DecimalType() if column.type == "numeric":
            p, s = kind.precision, kind.scale
            fits = f"abs({c}) < 1e{p - s}::numeric and {c} = round({c}, {s})"
            if column.precision is not None and column.scale is not None and column.scale <= s:
                # What the source's own type bounds need not be asked of every row.
                bounded = column.precision - column.scale <= p - s
                fits = f"{c} <> 'NaN'" if bounded else f"abs({c}) < 1e{p - s}::numeric"
            value, raw = told_apart(fits, c)
            # Around the whole: JDBC does not see through a `case` to its branch's precision, and would bend the value.
            return f"({value})::numeric({p},{s})", raw
        case T.DecimalType():
            p, s = kind.precision, kind.scale
            value, raw = told_apart(f"abs({c}::numeric) < 1e{p - s}::numeric", c)
            return f"({value})::numeric({p},{s})", raw
        case T.LongType():
            return f"{c}::bigint", None
        case T.IntegerType():
            return f"{c}::int", None
        case T.BooleanType():
            return c, None
        case _:
            return f"{c}::text", None


def _finish(name: str, kind: T.DataType) -> SparkColumn:
    value = F.col(name)
    match kind:
        case T.DateType():
            return F.date_from_unix_date(value)
        case T.TimestampType():
            return F.timestamp_micros(value)
        case T.DecimalType():
            return value.cast(kind)
        case _:
            return value


def _bronze_name(source_name: str) -> str:
    return re.sub(r"\W", "_", source_name.lower())


def _quote(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _sql_literal(value: int | dt.date) -> str:
    return f"date '{value.isoformat()}'" if isinstance(value, dt.date) else str(int(value))
