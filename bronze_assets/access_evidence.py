"""What Unity Catalog says of access: the grants that are there, and who read personal data past `reveal`.

Rows come from the public system tables, as dictionaries (structs too), and go in as they are: from
`information_schema.table_privileges` and its siblings, or SHOW GRANTS; from `system.access.audit`; from
`system.access.column_lineage`. `queries` is the SQL that fetches them. Nothing here talks to a platform;
`privacy.evidence` does.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from bronze_assets.access import (
    Grant,
    checked_catalog,
    classified,
    controls,
    grants,
    literal,
    quoted,
    schemas,
    script,
)
from bronze_assets.table import BronzeTable

Row = Mapping[str, Any]

READ = "generateTemporaryTableCredential"
"""The audit event of a read: compute asks for access to a table's files. `getTable` is none: it looks columns up."""

BY_SQL = "sql"
"""The purpose of a read by SQL in the access log."""

SAME_READ = dt.timedelta(minutes=10)
"""How far apart audit log and lineage may tell of one read."""


@dataclass(frozen=True)
class GrantDifference:
    """A privilege that is declared and missing, or there and not declared; `str` says it in words."""

    grant: Grant
    missing: bool

    @property
    def what(self) -> str:
        """The privilege and its object."""
        return f"{self.grant.privilege} on the {self.grant.kind.lower()} {'.'.join(self.grant.path)}"

    @property
    def statement(self) -> str:
        """The GRANT or REVOKE that mends it."""
        return self.grant.statement if self.missing else self.grant.revocation

    def __str__(self) -> str:
        if self.missing:
            return f"{self.grant.grantee} lacks {self.what}. Fix: {self.statement};"
        return f"{self.grant.grantee} has {self.what}, which is not declared. Fix: {self.statement};"


def grant_differences(tables: Sequence[BronzeTable], catalog: str, rows: Iterable[Row]) -> list[GrantDifference]:
    """What differs between the declared grants and those that are there: missing ones first, in order of declaration.

    Owners need no grant and are not seen. BROWSE is passed over: it shows names, never rows. So are other schemas of
    the catalog. A privilege that a table has inherited is one difference, of the schema or catalog that it comes from.

    Args:
        rows: of all of the catalog's objects; what is not among them counts as missing. Columns as in
            `information_schema.table_privileges`, `schema_privileges`, `catalog_privileges`, or as SHOW GRANTS returns
            them; their names in upper or lower case.

    Raises:
        KeyError: a row is of none of these shapes.
    """
    own = {schema.lower() for schema in schemas(tables)}
    declared = [replace(grant, path=_lower(grant.path)) for grant in grants(tables, catalog)]
    there = {_granted({key.lower(): value for key, value in row.items()}, catalog) for row in rows}
    unexpected = sorted(
        grant
        for grant in there - set(declared)
        if grant.path[:1] in ((), (catalog.lower(),)) and own.issuperset(grant.path[1:2])
        if grant.privilege != "BROWSE"
    )
    return [
        *(GrantDifference(grant, missing=True) for grant in declared if grant not in there),
        *(GrantDifference(grant, missing=False) for grant in unexpected),
    ]


_LEVELS = ("METASTORE", "CATALOG", "SCHEMA", "TABLE")


def _granted(row: Row, catalog: str) -> Grant:
    if "actiontype" in row:
        kind, privilege, grantee = str(row["objecttype"]).upper(), row["actiontype"], row["principal"]
        kind = "SCHEMA" if kind == "DATABASE" else kind
        path = str(row["objectkey"]).replace("`", "").split(".")
        if kind == "SCHEMA" and len(path) == 1:
            path = [catalog, *path]
    else:
        names = [row.get(f"{level}_name", row.get(f"table_{level}")) for level in ("catalog", "schema")]
        path = [str(name) for name in [*names, row.get("table_name")] if name is not None]
        if not path:
            raise KeyError(f"no name of an object among the columns {sorted(row)}")
        privilege, grantee = row["privilege_type"], row["grantee"]
        kind = str(row.get("inherited_from") or "NONE").upper()
        kind = _LEVELS[len(path)] if kind == "NONE" else kind
        path = path[: _LEVELS.index(kind)]
    return Grant(kind, _lower(path), str(privilege).upper().replace("_", " "), str(grantee))


def _lower(path: Iterable[str]) -> tuple[str, ...]:
    # Unity Catalog keeps names in lower case.
    return tuple(name.lower() for name in path)


@dataclass(frozen=True)
class SqlRead:
    """One read of personal data past `reveal`, as a row of the access log.

    Attributes:
        event_id: of the event it was learnt from: a read that is met twice is logged once.
        who: the person or service principal; behind a group's compute, the person.
        table: `<schema>.<table>`.
        columns: the columns with personal data, where lineage tells them; empty where it does not.
        purpose: `BY_SQL`: nobody was asked for one.
        how: where it was learnt from.
    """

    event_id: str
    who: str
    when: dt.datetime
    table: str
    columns: tuple[str, ...]
    how: str
    purpose: str = BY_SQL


def sql_reads(
    tables: Sequence[BronzeTable],
    catalog: str,
    audit: Iterable[Row],
    lineage: Iterable[Row] = (),
    *,
    platform: Collection[str],
) -> list[SqlRead]:
    """The reads of tables with personal data, their quarantines, keys and vaults that passed `reveal` by; by time.

    Every successful read event of the audit log is one, whatever was selected: it names no columns. Lineage adds the
    columns, and the reads for which compute still had access from before; such a read counts if it took a column with
    personal data.

    Args:
        audit: rows of `system.access.audit`.
        lineage: rows of `system.access.column_lineage`.
        platform: the application ids of the platform's service principal, under which loads and `reveal` run.
    """
    watched = _watched(tables, catalog)
    learnt: dict[tuple[str, str, Any], list[Row]] = {}
    for row in lineage:
        name, who = str(row["source_table_full_name"]).lower(), str(row["created_by"] or "unknown")
        if name not in watched or who in platform or row["source_column_name"] is None:
            continue
        columns = watched[name]
        if columns is None or row["source_column_name"].lower() in columns:
            learnt.setdefault((who, name, row.get("statement_id") or row["event_time"]), []).append(row)
    reads: dict[str, SqlRead] = {}

    def add(row: Row, who: str, name: str, rows: Iterable[Row], how: str) -> None:
        selected = tuple(sorted({found["source_column_name"].lower() for found in rows}))
        schema_and_table = name.split(".", 1)[1]
        reads[row["event_id"]] = SqlRead(row["event_id"], who, row["event_time"], schema_and_table, selected, how)

    told: set[tuple[str, str, Any]] = set()
    for row in audit:
        params = row["request_params"] or {}
        name, who = str(params.get("table_full_name")).lower(), _who(row)
        if row["action_name"] != READ or name not in watched or who in platform or not _succeeded(row):
            continue
        same = {key for key, rows in learnt.items() if key[:2] == (who, name) and _near(row, rows)}
        told |= same
        how = f"audit log: {params.get('operation') or 'access'} from {row.get('source_ip_address') or 'unknown'}"
        add(row, who, name, (found for key in same for found in learnt[key]), how)
    for key, rows in learnt.items():
        if key not in told:
            first = min(rows, key=lambda row: (row["event_time"], row["event_id"]))
            add(first, key[0], key[1], rows, f"lineage: {first.get('entity_type') or 'a query'}")
    return sorted(reads.values(), key=lambda read: (read.when, read.event_id))


def _watched(tables: Sequence[BronzeTable], catalog: str) -> dict[str, set[str] | None]:
    """Full names of the tables with personal data → the columns that hold it; None for all of them."""
    columns: dict[str, set[str]] = {}
    for found in classified(tables):
        columns.setdefault(f"{catalog}.{found.schema}.{found.relation}".lower(), set()).add(found.column)
    # What nobody but the platform may read is as good as the values.
    secret = [
        f"{catalog}.{schema}.{control.name}".lower()
        for schema in schemas(tables)
        for control in controls(tables, schema)
        if not control.readers
    ]
    return {**columns, **dict.fromkeys(secret)}


def _who(row: Row) -> str:
    # On compute that belongs to a group, the identity is the group's; `run_by` is who was logged in.
    person = (row.get("identity_metadata") or {}).get("run_by")
    return str(person or (row["user_identity"] or {}).get("email") or "unknown")


def _succeeded(row: Row) -> bool:
    # Without an answer in the log, a read counts.
    # The API gives a number within a struct as a text.
    return str((row.get("response") or {}).get("status_code") or 200) == "200"


def _near(row: Row, others: Iterable[Row]) -> bool:
    return any(abs(row["event_time"] - other["event_time"]) <= SAME_READ for other in others)


_QUERIES = """What `python -m bronze_assets access --evidence` asks, to be reviewed or run by hand, as one who may see
all grants of the catalog (its owner, or an admin of the metastore) and with SELECT on system.access. `:since` and
`:until` are timestamps; events come late, so let `:since` lie a day before the last run: what is met again has the same
event_id."""


class Queries(NamedTuple):
    """The SQL that fetches what `grant_differences` takes, and the `audit` and `lineage` of `sql_reads`.

    The last two have the named markers `:since` and `:until`: timestamps, the second exclusive.
    """

    privileges: str
    audit: str
    lineage: str


def query_script(tables: Sequence[BronzeTable], catalog: str) -> str:
    """The queries as one file; raises as `queries` does."""
    return script(_QUERIES, queries(tables, catalog))


def queries(tables: Sequence[BronzeTable], catalog: str) -> Queries:
    """The queries for these tables.

    Raises:
        SettingsError: the catalog cannot have that name.
    """
    view = quoted(checked_catalog(catalog), "information_schema")
    own = ", ".join(literal(schema.lower()) for schema in schemas(tables))
    names = ",\n  ".join(literal(name) for name in _watched(tables, catalog))
    # The system tables are laid out by date, in a time zone that need not be the session's.
    period = (
        "WHERE event_date BETWEEN date_sub(to_date(:since), 1) AND date_add(to_date(:until), 1)\n"
        "AND event_time >= :since AND event_time < :until"
    )
    privileges = (
        "SELECT grantee, table_catalog, table_schema, table_name, privilege_type, inherited_from\n"
        f"FROM {view}.table_privileges\nWHERE table_schema IN ({own})\n"
        "UNION ALL\n"
        "SELECT grantee, catalog_name, schema_name, NULL, privilege_type, inherited_from\n"
        f"FROM {view}.schema_privileges\nWHERE schema_name IN ({own})\n"
        "UNION ALL\n"
        "SELECT grantee, catalog_name, NULL, NULL, privilege_type, inherited_from\n"
        f"FROM {view}.catalog_privileges\nWHERE catalog_name = {literal(catalog.lower())}"
    )
    audit = (
        "SELECT event_id, event_time, user_identity, identity_metadata, source_ip_address, action_name, request_params,"
        " response\n"
        "FROM system.access.audit\n"
        f"{period}\n"
        f"AND service_name = 'unityCatalog' AND action_name = {literal(READ)}\n"
        f"AND lower(request_params['table_full_name']) IN (\n  {names}\n)"
    )
    lineage = (
        "SELECT event_id, event_time, created_by, entity_type, statement_id, source_table_full_name,"
        " source_column_name\n"
        "FROM system.access.column_lineage\n"
        f"{period}\n"
        f"AND lower(source_table_full_name) IN (\n  {names}\n)"
    )
    return Queries(privileges, audit, lineage)
