"""Compacts the Delta tables of a schema, and removes the files that each has promised to keep no longer.

Control tables too: where tables are in a catalog, loads leave them to this job. Runs on Databricks as a Python task,
without the wheel: it needs nothing but SQL. A table that fails does not stop the others; the task fails at the end and
names them.

Left alone: keys, vault and tombstones. Nothing that was removed from them may stay behind; loads and erasures see to
that, and hold them meanwhile.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from typing import Any

PRIVATE = frozenset({"bz_subject_keys", "bz_token_vault", "bz_tombstones"})
NOT_COMPACTED = frozenset({"bz_leases"})
"""Each load that is at work replaces its row there all the time: one of the two commits would fail. It stays small."""

Sql = Callable[[str], Sequence[Any]]
"""Runs a statement; returns its rows, of which the columns are attributes."""


def tables(sql: Sql, catalog: str, schema: str) -> list[str]:
    """Names of the Delta tables of a schema, without the private ones."""
    rows = sql(
        f"SELECT table_name FROM {_quoted(catalog)}.information_schema.tables"
        f" WHERE table_schema = {_literal(schema)} AND data_source_format = 'DELTA'"
        " AND table_type IN ('MANAGED', 'EXTERNAL') ORDER BY table_name"
    )
    return [row.table_name for row in rows if row.table_name not in PRIVATE]


def maintain(sql: Sql, catalog: str, schema: str, say: Callable[[str], None]) -> list[str]:
    """Compact and vacuum each table; returns the names of those that failed."""
    failed = []
    for name in tables(sql, catalog, schema):
        path = ".".join(map(_quoted, (catalog, schema, name)))
        try:
            if name not in NOT_COMPACTED:
                sql(f"OPTIMIZE {path}")
            # Without RETAIN, by the table's own property: 30 days for rows, a week for control tables. One number for
            # all would keep each heartbeat of `bz_leases` for as long as a person's rows.
            sql(f"VACUUM {path}")
        except Exception as error:
            # The first line: what follows is the plan of the statement.
            say(f"{name}: {type(error).__name__}: {str(error).partition(chr(10))[0]}")
            failed.append(name)
        else:
            say(f"{name}: done")
    return failed


def main(sql: Sql, arguments: Sequence[str]) -> int:
    """Maintain the tables of a schema; returns the exit code: 1 if there are none, or one failed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--catalog", required=True)
    parser.add_argument("--schema", required=True)
    options = parser.parse_args(arguments)
    if not tables(sql, options.catalog, options.schema):
        print(f"{options.catalog}.{options.schema} has no table that is to be maintained.", file=sys.stderr)
        return 1
    failed = maintain(sql, options.catalog, options.schema, print)
    if failed:
        print(f"Failed: {', '.join(failed)}.", file=sys.stderr)
    return 1 if failed else 0


def _quoted(name: str) -> str:
    return "`" + name.replace("`", "``") + "`"


def _literal(text: str) -> str:
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"


if __name__ == "__main__":
    from pyspark.sql import SparkSession

    session = SparkSession.builder.getOrCreate()
    code = main(lambda statement: session.sql(statement).collect(), sys.argv[1:])
    # Databricks takes any SystemExit for a failure, also that of 0.
    if code:
        sys.exit(code)
