"""Evidence of access on Unity Catalog: asks a SQL warehouse who may read and who has read, and keeps both.

Reads past `reveal` go into the access log; how the grants differ from the declared ones into `bz_grant_checks`, one row
per comparison and schema, where the compliance report finds it. What is understood by what the platform says is in
`access_evidence`.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Final

import pyarrow as pa

from bronze_assets.access import GRANT_CHECKS, grants, schemas
from bronze_assets.access_evidence import SAME_READ, GrantDifference, Row, grant_differences, queries, sql_reads
from bronze_assets.errors import SettingsError
from bronze_assets.lakehouse import Lakehouse
from bronze_assets.privacy.access_log import log_sql_reads
from bronze_assets.settings import Settings
from bronze_assets.sql_warehouse import SqlWarehouse
from bronze_assets.table import BronzeTable

OVERLAP: Final = dt.timedelta(days=1)
"""How late the platform may tell of a read: so far before the last comparison reads are asked for again."""
FIRST: Final = dt.timedelta(days=30)
"""How far back reads are asked for where there was no comparison yet."""

# The API gives 25 MiB inline at most, and a whole year may have more reads than that.
_WINDOW = dt.timedelta(days=1)


@dataclass(frozen=True)
class Difference:
    """A grant that is not as declared.

    Attributes:
        grantee: an account group, an application id or a person's address.
        what: the privilege and its object.
        missing: whether it is declared and missing; else it is there and not declared.
        statement: the GRANT or REVOKE that mends it.
    """

    grantee: str
    what: str
    missing: bool
    statement: str


@dataclass(frozen=True)
class GrantCheck:
    """One comparison of the grants that concern a schema; `catalog` is where, `declared` how many there should be."""

    at: dt.datetime
    catalog: str
    schema_name: str
    declared: int
    differences: tuple[Difference, ...]
    run_id: str | None = None


@dataclass(frozen=True)
class Evidence:
    """What one look at the platform found.

    Attributes:
        since: from when on reads were asked for.
        reads: reads of personal data by SQL since then.
        new: those that the access log did not have.
        differences: of the grants, missing ones first.
    """

    since: dt.datetime
    reads: int
    new: int
    differences: tuple[GrantDifference, ...]

    @property
    def words(self) -> str:
        """The counts; names nobody."""
        return (
            f"Reads by SQL since {self.since:%F %H:%M} UTC: {self.reads:,}, new in the access log: {self.new:,}."
            f" Grants that are not as declared: {len(self.differences):,}."
        )

    def lines(self) -> list[str]:
        """The counts, and each difference with the statement that mends it, for a terminal."""
        return [self.words, *map(str, self.differences)]


_SCHEMA = pa.schema(
    [
        ("at", pa.timestamp("us", tz="UTC")),
        ("catalog", pa.string()),
        ("schema_name", pa.string()),
        ("declared", pa.int64()),
        (
            "differences",
            pa.list_(
                pa.struct(
                    [
                        ("grantee", pa.string()),
                        ("what", pa.string()),
                        ("missing", pa.bool_()),
                        ("statement", pa.string()),
                    ]
                )
            ),
        ),
        ("run_id", pa.string()),
    ]
)


def collect(
    settings: Settings,
    lake: Lakehouse,
    tables: Sequence[BronzeTable],
    at: dt.datetime,
    *,
    since: dt.datetime | None = None,
    run_id: str | None = None,
) -> Evidence:
    """Ask the warehouse for grants and reads, log the reads that are new, and record how the grants differ.

    Safe to repeat: a read that is met twice is logged once. A run that fails has recorded no comparison, so the next
    asks for the same reads again.

    Args:
        at: now; up to when reads are asked for.
        since: from when on reads are asked for; default a day before the last comparison, 30 days ago at the first.

    Raises:
        SettingsError: BRONZE_CATALOG, BRONZE_SQL_WAREHOUSE or BRONZE_PLATFORM_PRINCIPALS is not set, or a package is
            not installed.
        WarehouseError: the warehouse cannot be asked or does not answer.
        LakeError: what was found cannot be written.
    """
    catalog, warehouse_id = _configured(settings)
    since = since or _since(lake, tables, catalog, at)
    asked = queries(tables, catalog)
    warehouse = SqlWarehouse(warehouse_id, host=settings.databricks_host)
    differences = tuple(grant_differences(tables, catalog, warehouse.rows(asked.privileges)))
    # Lineage belongs to an audit event of up to so long before.
    audit = _within(warehouse, asked.audit, since - SAME_READ, at)
    lineage = _within(warehouse, asked.lineage, since, at)
    reads = sql_reads(tables, catalog, audit, lineage, platform=settings.platform_principals)
    new = log_sql_reads(lake, reads)
    for schema in schemas(tables):
        check = _check(tables, catalog, schema, differences, at, run_id)
        lake.append_rows(schema, GRANT_CHECKS, _SCHEMA, [asdict(check)])
    return Evidence(since, len(reads), new, differences)


def last_checks(lake: Lakehouse, tables: Sequence[BronzeTable], catalog: str) -> dict[str, GrantCheck | None]:
    """Schema → the last comparison of its grants in that catalog; None where there is none."""
    found: dict[str, GrantCheck | None] = {}
    for schema in schemas(tables):
        rows = lake.rows(schema, GRANT_CHECKS, _SCHEMA.names)
        checks = [_of_row(row) for row in rows if row["catalog"].lower() == catalog.lower()]
        found[schema] = max(checks, key=lambda check: check.at, default=None)
    return found


def day(text: str, now: dt.datetime) -> dt.datetime:
    """The beginning of a past day, UTC, given as YYYY-MM-DD.

    Raises:
        SettingsError: it is not one.
    """
    try:
        moment = dt.datetime.combine(dt.date.fromisoformat(text), dt.time(), dt.UTC)
    except ValueError:
        raise SettingsError(f"{text!r} is not a day.", "write it as YYYY-MM-DD.") from None
    if moment >= now:
        raise SettingsError(f"{text!r} has not begun yet.", "name a day of the past.")
    return moment


def _configured(settings: Settings) -> tuple[str, str]:
    """The catalog and the warehouse."""
    if settings.catalog is None:
        raise _missing("BRONZE_CATALOG", "the catalog of the tables")
    if settings.sql_warehouse is None:
        raise _missing("BRONZE_SQL_WAREHOUSE", "the id of the SQL warehouse to ask")
    if not settings.platform_principals:
        # Every load would be a read past `reveal`.
        raise _missing("BRONZE_PLATFORM_PRINCIPALS", "the application ids of the principals that load and reveal")
    return settings.catalog, settings.sql_warehouse


def _missing(name: str, meaning: str) -> SettingsError:
    return SettingsError(
        f"{name} is not set: Unity Catalog cannot be asked for grants and reads.", f"set it to {meaning}."
    )


def _since(lake: Lakehouse, tables: Sequence[BronzeTable], catalog: str, at: dt.datetime) -> dt.datetime:
    last = [None if check is None else check.at for check in last_checks(lake, tables, catalog).values()]
    known = [moment for moment in last if moment is not None]
    return min(known) - OVERLAP if len(known) == len(last) else at - FIRST


def _within(warehouse: SqlWarehouse, query: str, since: dt.datetime, until: dt.datetime) -> Iterator[Row]:
    while since < until:
        end = min(since + _WINDOW, until)
        yield from warehouse.rows(query, since=since, until=end)
        since = end


def _check(
    tables: Sequence[BronzeTable],
    catalog: str,
    schema: str,
    differences: Sequence[GrantDifference],
    at: dt.datetime,
    run_id: str | None,
) -> GrantCheck:
    """The comparison of a schema, which those of its catalog concern too."""

    def concerns(path: tuple[str, ...]) -> bool:
        return not path[1:] or path[1] == schema.lower()

    found = [
        Difference(one.grant.grantee, one.what, one.missing, one.statement)
        for one in differences
        if concerns(one.grant.path)
    ]
    declared = sum(concerns(tuple(map(str.lower, grant.path))) for grant in grants(tables, catalog))
    return GrantCheck(at, catalog, schema, declared, tuple(found), run_id)


def _of_row(row: Row) -> GrantCheck:
    return GrantCheck(**{**row, "differences": tuple(Difference(**one) for one in row["differences"])})
