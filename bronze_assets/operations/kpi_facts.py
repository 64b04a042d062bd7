"""What is known of the tables of a schema, for their KPIs: from batch log, audit log, ledger, quarantine and Delta.

Nothing is judged here, and nothing needs Spark where the lake is a folder.
"""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Final

from bronze_assets.audit import AUDIT_LOG
from bronze_assets.batches import BATCHES
from bronze_assets.errors import LakeError
from bronze_assets.lakehouse import OPEN, Lakehouse
from bronze_assets.sources.ledger import LEDGER
from bronze_assets.storage import sql_literal
from bronze_assets.table import BronzeTable

PERIOD: Final = dt.timedelta(days=30)
"""Of availability and of the charts."""
_DAY = dt.timedelta(days=1)


@dataclass(frozen=True)
class Load:
    """What one load did, as far as the KPIs want it. Counts are rows, times seconds.

    Attributes:
        score: average of the rows read; None for an empty batch.
    """

    partition: str
    ended: dt.datetime
    seconds: float
    read: int
    quarantined: int
    score: float | None
    table_rows: int | None = None
    table_bytes: int | None = None
    latency_p95: float | None = None
    latency_max: float | None = None
    backlog_files: int | None = None
    backlog_seconds: float | None = None

    @property
    def error_rate(self) -> float:
        """Share of the rows read that were quarantined; 0 for an empty batch."""
        return self.quarantined / self.read if self.read else 0.0


@dataclass(frozen=True)
class Facts:
    """What is known of one table, wherever from.

    Attributes:
        loads: that ended within the period, oldest first.
        first_load, last_load: whenever they were.
        done: partition → when its first load ended, of the period; None where nobody tells.
        arrived: partition → when its first file was written, of the period; None for a table without files.
        open_rows, oldest_open: of the quarantine. `open_rows` is None where it cannot be counted from here.
        waiting_files, waiting_since: that the ledger has seen, and the loads have not taken.
        failed_attempts, last_failure: within the last day; the last one's message if no load has ended since.
        unknown: why the lake is not known from here; empty where it is.
    """

    loads: tuple[Load, ...] = ()
    first_load: dt.datetime | None = None
    last_load: dt.datetime | None = None
    done: Mapping[str, dt.datetime] | None = None
    arrived: Mapping[str, dt.datetime] | None = None
    open_rows: int | None = None
    oldest_open: dt.datetime | None = None
    waiting_files: int | None = None
    waiting_since: dt.datetime | None = None
    rows: int | None = None
    bytes: int | None = None
    version: int | None = None
    failed_attempts: int | None = None
    last_failure: str | None = None
    unknown: str = ""


@dataclass(frozen=True)
class Known:
    """What only Dagster and the home know of a table; None and empty where they do not.

    Attributes:
        materialised: the load that its last materialisation tells of, also one for which nothing was outstanding.
        freshness: what Dagster's policy says, e.g. `PASS`.
        failed_checks: name → whether it is an error and not a warning; None where no check was ever evaluated.
        cost_per_gb, currency: of the last load that has a bill.
        captured_at: when all committed changes were last known to be in files.
        capture_failed: whether the slot has been found to be too far behind since.
        compliance: score of the last report over personal data, in percent.
        compliance_at: when that was made.
    """

    materialised: Load | None = None
    freshness: str | None = None
    failed_checks: Mapping[str, bool] | None = None
    cost_per_gb: float | None = None
    currency: str | None = None
    captured_at: dt.datetime | None = None
    capture_failed: bool = False
    compliance: float | None = None
    compliance_at: dt.datetime | None = None


def facts_of_lake(lake: Lakehouse, tables: Sequence[BronzeTable], now: dt.datetime) -> dict[str, Facts]:
    """What the lake knows of the tables of one schema, by name; without Spark where the lake is a folder.

    Raises:
        LakeError: a table of the lake cannot be read; names it.
    """
    schema = tables[0].schema
    since = f"to_timestamp({sql_literal((now - PERIOD - _DAY).isoformat())})"
    facts = {table.name: _Found() for table in tables}

    def found(schema_table: str, columns: Sequence[str], where: str = "true", grouped: str = "") -> list[Any]:
        query = f"select {', '.join(columns)} from t where {where}{grouped}"
        with _readable(schema, schema_table):
            answer = lake.query(schema, schema_table, query)
        return [] if answer is None else [row for row in answer.to_pylist() if row["table_name"] in facts]

    done = "event = 'done'"
    ends = ["table_name", "min(event_time) as first", "max(event_time) as last"]
    for row in found(BATCHES, ends, done, " group by table_name"):
        facts[row["table_name"]].first_load, facts[row["table_name"]].last_load = row["first"], row["last"]
    firsts = ["table_name", "partition_key", "min(event_time) as first"]
    # By the name of the partition: one of the period may have been loaded late.
    period = f"partition_key >= {sql_literal(f'{now - PERIOD - _DAY:%F}')}"
    for row in found(BATCHES, firsts, f"{done} and {period}", " group by table_name, partition_key"):
        facts[row["table_name"]].done[row["partition_key"]] = row["first"]
    for row in found(BATCHES, ["table_name", "record"], f"{done} and record is not null and event_time > {since}"):
        facts[row["table_name"]].loads.append(_load(json.loads(row["record"])))
    arrivals = ["table_name", "partition_key", "min(modified) as first"]
    for row in found(LEDGER, arrivals, period, " group by table_name, partition_key"):
        facts[row["table_name"]].arrived[row["partition_key"]] = row["first"]
    with _readable(schema, LEDGER):
        waiting = _waiting(lake, schema)
    for row in waiting:
        if row["table_name"] in facts:
            one = facts[row["table_name"]]
            one.waiting_files, one.waiting_since = row["files"], row["oldest"]
    attempts = ["table_name", "status", "processing_end_time", "error_message"]
    day = f"processing_end_time > to_timestamp({sql_literal((now - _DAY).isoformat())}) and status = 'FAILED'"
    for row in sorted(found(AUDIT_LOG, attempts, day), key=lambda row: row["processing_end_time"]):
        facts[row["table_name"]].failures.append((row["processing_end_time"], row["error_message"]))
    return {table.name: facts[table.name].of(lake, table) for table in tables}


@contextmanager
def _readable(schema: str, name: str) -> Iterator[None]:
    """What a storage cannot read is told by table and kind: its words may quote."""
    try:
        yield
    except Exception as error:
        kind = type(error).__name__
    else:
        return
    raise LakeError(
        f"it cannot be read ({kind}).",
        "see whether its files are there and whole; else restore it.",
        table=f"{schema}.{name}",
    )


@dataclass
class _Found:
    loads: list[Load] = field(default_factory=list)
    first_load: dt.datetime | None = None
    last_load: dt.datetime | None = None
    done: dict[str, dt.datetime] = field(default_factory=dict)
    arrived: dict[str, dt.datetime] = field(default_factory=dict)
    waiting_files: int = 0
    waiting_since: dt.datetime | None = None
    failures: list[tuple[dt.datetime, str | None]] = field(default_factory=list)

    def of(self, lake: Lakehouse, table: BronzeTable) -> Facts:
        with _readable(table.schema, table.name):
            size = lake.size(table.schema, table.name) if lake.exists(table.schema, table.name) else None
        with _readable(table.schema, table.quarantine_name):
            open_rows, oldest = _open(lake, table)
        failure = self.failures[-1] if self.failures else None
        mended = failure is not None and self.last_load is not None and self.last_load > failure[0]
        return Facts(
            loads=tuple(sorted(self.loads, key=lambda load: load.ended)),
            first_load=self.first_load,
            last_load=self.last_load,
            done=self.done,
            arrived=self.arrived,
            open_rows=open_rows,
            oldest_open=oldest,
            waiting_files=self.waiting_files,
            waiting_since=self.waiting_since,
            rows=size.rows if size else None,
            bytes=size.bytes if size else None,
            version=size.version if size else None,
            failed_attempts=len(self.failures),
            last_failure=None if failure is None or mended else failure[1],
        )


def _waiting(lake: Lakehouse, schema: str) -> list[dict[str, Any]]:
    """By table, the files whose latest event says that they are to be loaded."""
    answer = lake.query(
        schema,
        LEDGER,
        "select t.table_name, count(distinct t.path) as files, min(t.modified) as oldest from t join"
        " (select table_name, path, max(number) as latest from t group by table_name, path) as l"
        " on t.table_name = l.table_name and t.path = l.path and t.number = l.latest"
        " where t.event in ('seen', 'changed', 'failed') group by t.table_name",
    )
    found: list[dict[str, Any]] = [] if answer is None else answer.to_pylist()
    return found


def _open(lake: Lakehouse, table: BronzeTable) -> tuple[int | None, dt.datetime | None]:
    """Open rows of the quarantine and when the first was first seen; None where there is no quarantine."""
    nothing = lake.query(table.schema, table.quarantine_name, "select * from t limit 0")
    if nothing is None:
        return None, None
    # A quarantine of before there were states has none.
    is_open = f"coalesce(state, '{OPEN}') = '{OPEN}'" if "state" in nothing.column_names else "true"
    counted = ["count(*) as n", "min(first_seen) as oldest"]
    (row,) = lake.rows(table.schema, table.quarantine_name, counted, is_open)
    return row["n"], row["oldest"]


def _load(told: Mapping[str, Any]) -> Load:
    """A load, of its record as the batch log keeps it; of an older release some fields may be missing."""
    started, ended = (dt.datetime.fromisoformat(told[name]) for name in ("started", "ended"))
    with_files = bool(told.get("has_files"))
    return Load(
        partition=told["partition"],
        ended=ended,
        seconds=(ended - started).total_seconds(),
        read=told.get("read", 0),
        quarantined=told.get("quarantined", 0),
        score=told.get("score_sum", 0) / told["read"] if told.get("read") else None,
        table_rows=told.get("table_rows"),
        table_bytes=told.get("table_bytes"),
        latency_p95=told.get("latency_p95"),
        latency_max=told.get("latency_max"),
        backlog_files=told.get("backlog_files") if with_files else None,
        backlog_seconds=told.get("backlog_seconds") if with_files else None,
    )
