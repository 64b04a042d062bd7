"""A lake as weeks of loads leave it, written in one commit for each table: batch log, audit log, ledger, quarantine."""

from __future__ import annotations

import dataclasses
import datetime as dt
from collections.abc import Sequence
from typing import Any

import pyarrow as pa
from deltalake import write_deltalake

from bronze_assets import audit, batches, lakehouse
from bronze_assets.arrow_schema import arrow_schema
from bronze_assets.audit import LoadRecord
from bronze_assets.lakehouse import Lakehouse
from bronze_assets.sources import ledger
from bronze_assets.table import BronzeTable, Cadence

DAY = dt.timedelta(days=1)
HOUR = dt.timedelta(hours=1)


def a_load(table: BronzeTable, ended: dt.datetime, seconds: float = 4, **changes: Any) -> LoadRecord:
    """What a load of 100 rows did, nothing wrong with it."""
    partition = ended.strftime("%Y-%m-%d-%H:00" if table.cadence is Cadence.HOURLY else "%Y-%m-%d")
    record = LoadRecord(
        table=table.name,
        schema=table.schema,
        partition=partition,
        batch_id=f"{partition}/{ended:%H%M%S}",
        scope="full",
        started=ended - dt.timedelta(seconds=seconds),
        ended=ended,
        read=100,
        loaded=100,
        score_sum=9_900,
        table_rows=1_000,
        table_bytes=5_000,
        has_files=table.feed is not None,
    )
    return dataclasses.replace(record, **changes)


def log(lake: Lakehouse, records: Sequence[LoadRecord], *, event: str = "done") -> None:
    """The end of these loads in the batch log, all of one schema."""
    rows = []
    for record in records:
        event_row = dict.fromkeys(batches._EVENT.names) | {
            "table_name": record.table,
            "batch_id": record.batch_id,
            "partition_key": record.partition,
            "attempt": 1,
            "event": event,
            "event_time": record.ended,
            "run_id": "r",
        }
        rows.append(event_row | {"record": record.to_json()})
    lake.append_rows(records[0].schema, batches.BATCHES, batches._EVENT, rows)


def bronze(lake: Lakehouse, table: BronzeTable, rows: int = 3) -> None:
    """The Delta table itself, with a column of its own."""
    write_deltalake(lake.location(table.schema, table.name), pa.table({"n": list(range(rows))}), mode="append")


def quarantined(lake: Lakehouse, table: BronzeTable, *rows: tuple[str | None, dt.datetime]) -> None:
    """Rows of its quarantine: state, first seen."""
    schema = arrow_schema(lakehouse.QUARANTINE)
    told = [dict.fromkeys(schema.names) | {"state": state, "first_seen": seen} for state, seen in rows]
    place = lake.location(table.schema, table.quarantine_name)
    write_deltalake(place, pa.Table.from_pylist(told, schema=schema), mode="append")


def file_events(lake: Lakehouse, table: BronzeTable, *events: tuple[str, str, int, str, dt.datetime]) -> None:
    """Events of its ledger: path, event, number, partition, modified."""
    rows = [
        dict.fromkeys(ledger._SCHEMA.names)
        | {"table_name": table.name, "path": path, "event": event, "number": number, "partition_key": partition}
        | {"modified": modified, "event_time": modified, "size": 1, "attempt": 1}
        for path, event, number, partition, modified in events
    ]
    lake.append_rows(table.schema, ledger.LEDGER, ledger._SCHEMA, rows)


def attempts(lake: Lakehouse, schema: str, *rows: tuple[str, str, dt.datetime, int, float | None, str | None]) -> None:
    """Rows of the audit log: table, status, end, rows read, average score, message."""
    told = [
        dict.fromkeys(audit._AUDIT.names)
        | {"table_name": name, "status": status, "processing_start_time": ended, "processing_end_time": ended}
        | {"record_count": read, "data_quality_avg_score": score, "error_message": message}
        for name, status, ended, read, score, message in rows
    ]
    lake.append_rows(schema, audit.AUDIT_LOG, audit._AUDIT, told)
