"""The access log `bz_access_log`: who read whose personal data, one per schema, append-only; refused attempts too.

Rows come from `reveal`, and from what Unity Catalog tells of reads by SQL (`access_evidence.sql_reads`). None holds a
value.
"""

from __future__ import annotations

import datetime as dt
import enum
import uuid
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field

import pyarrow as pa

from bronze_assets.access import ACCESS_LOG
from bronze_assets.access_evidence import SqlRead
from bronze_assets.errors import StaleBase
from bronze_assets.lakehouse import Lakehouse


class Outcome(enum.StrEnum):
    """How an attempt ended: `answered`, `refused` (it may not be answered), or `failed` (it could not be)."""

    ANSWERED = "answered"
    REFUSED = "refused"
    FAILED = "failed"


@dataclass(frozen=True)
class Access:
    """One row of the log.

    Attributes:
        at: when, UTC.
        who: as they are known where they asked.
        schema_name, table_name: the table read.
        columns: the columns read, as they were asked for; empty where that is not known.
        purpose: in the words of who asked; `sql` where nobody was asked.
        how: `reveal`, or where a read by SQL was learnt from.
        outcome: of the attempt.
        row_key: the key text of the row that was asked for; None where that is not known.
        rows: how many row versions were answered; None where that is not known.
        error: why there was no answer; holds no value.
        run_id: of the Dagster run; None from the command line.
        event_id: a read that is met twice is logged once.
    """

    at: dt.datetime
    who: str
    schema_name: str
    table_name: str
    columns: tuple[str, ...]
    purpose: str
    how: str
    outcome: Outcome
    row_key: str | None = None
    rows: int | None = None
    error: str | None = None
    run_id: str | None = None
    event_id: str = field(default_factory=lambda: str(uuid.uuid4()))


_SCHEMA = pa.schema(
    [
        ("event_id", pa.string()),
        ("at", pa.timestamp("us", tz="UTC")),
        ("who", pa.string()),
        ("schema_name", pa.string()),
        ("table_name", pa.string()),
        ("columns", pa.list_(pa.string())),
        ("row_key", pa.string()),
        ("purpose", pa.string()),
        ("how", pa.string()),
        ("outcome", pa.string()),
        ("rows", pa.int64()),
        ("error", pa.string()),
        ("run_id", pa.string()),
    ]
)


def log_access(lake: Lakehouse, access: Access) -> None:
    """Append a row to the log of its schema.

    Raises:
        LakeError: it cannot be written.
    """
    lake.append_rows(access.schema_name, ACCESS_LOG, _SCHEMA, [asdict(access)])


def log_sql_reads(lake: Lakehouse, reads: Iterable[SqlRead]) -> int:
    """Append the reads by SQL that the logs of their schemas do not have; also by calls at once each is logged once.

    Returns:
        How many were new.

    Raises:
        LakeError: a log cannot be written.
        StaleBase: other processes kept logging reads by SQL.
    """
    by_schema: dict[str, dict[str, Access]] = {}
    for read in reads:
        schema, _, table = read.table.partition(".")
        by_schema.setdefault(schema, {})[read.event_id] = Access(
            read.when,
            read.who,
            schema,
            table,
            read.columns,
            read.purpose,
            read.how,
            Outcome.ANSWERED,
            event_id=read.event_id,
        )
    return sum(_log_new(lake, schema, found) for schema, found in by_schema.items())


def _log_new(lake: Lakehouse, schema: str, found: Mapping[str, Access], tries: int = 5) -> int:
    base = lake.control_version(schema, ACCESS_LOG)
    if base is None:
        lake.append_rows(schema, ACCESS_LOG, _SCHEMA, [])
        base = lake.version(schema, ACCESS_LOG)
    known = {row["event_id"] for row in lake.rows(schema, ACCESS_LOG, ["event_id"])}
    rows = [asdict(access) for event_id, access in found.items() if event_id not in known]
    if not rows:
        return 0
    try:
        # Appends of `reveal` have no fence and do not matter.
        data = pa.Table.from_pylist(rows, schema=_SCHEMA)
        lake.append_fenced(
            schema, ACCESS_LOG, data, writer="sql_reads", number=base + 1, base=base, partition_by="table_name"
        )
    except StaleBase:
        if tries > 1:
            return _log_new(lake, schema, found, tries - 1)
        raise StaleBase(
            "other processes kept logging reads by SQL.", "try again.", table=f"{schema}.{ACCESS_LOG}"
        ) from None
    return len(rows)
