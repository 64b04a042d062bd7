"""The monitoring query over today's audit rows, as a view for Unity Catalog and as SQL that Spark runs anywhere."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from bronze_assets.access import checked_catalog, literal, quoted, schemas, script
from bronze_assets.audit import AUDIT_LOG
from bronze_assets.table import BronzeTable

VIEW: Final = "bz_monitoring"
"""The view of a schema. It reads with its owner's rights; who may look is granted by the dashboard."""

_HEADING: Final = """The view `bz_monitoring` of each schema: today's loads of each table, from its audit log. The
dashboard of deploy/bundle shows it. To be run by the service principal that owns the schemas."""
_COMMENT: Final = "Loads of today by table: records, average quality, last load, minutes since, failed attempts."


def monitoring_query(audit_log: str) -> str:
    """The query: `table_name`, `records` read, `average_quality` of them, `last_load`, `minutes_since`, `loads` and
    `failed_attempts`, one row for each table with an attempt today. The day is that of the session's time zone, UTC on
    Databricks by default.

    Args:
        audit_log: the audit log's name in Spark SQL.
    """
    last = "max(CASE WHEN status = 'SUCCESS' THEN processing_end_time END)"
    scored = "CASE WHEN data_quality_avg_score IS NOT NULL THEN record_count END"
    return (
        "SELECT table_name,\n"
        "  sum(record_count) AS records,\n"
        # By rows: a load of ten rows says less than one of a million.
        f"  round(sum(data_quality_avg_score * record_count) / nullif(sum({scored}), 0), 2) AS average_quality,\n"
        f"  {last} AS last_load,\n"
        f"  timestampdiff(MINUTE, {last}, current_timestamp()) AS minutes_since,\n"
        "  count_if(status = 'SUCCESS') AS loads,\n"
        "  count_if(status = 'FAILED') AS failed_attempts\n"
        f"FROM {audit_log}\n"
        "WHERE processing_end_time >= date_trunc('DAY', current_timestamp())\n"
        "GROUP BY table_name"
    )


def monitoring_script(tables: Sequence[BronzeTable], catalog: str) -> str:
    """The views of all schemas as one file of SQL.

    Raises:
        SettingsError: the catalog cannot have that name.
    """
    checked_catalog(catalog)
    statements = [
        f"CREATE OR REPLACE VIEW {quoted(catalog, schema, VIEW)}\n"
        f"COMMENT {literal(_COMMENT)}\n"
        f"AS {monitoring_query(quoted(catalog, schema, AUDIT_LOG))}"
        for schema in schemas(tables)
    ]
    return script(_HEADING, statements)
