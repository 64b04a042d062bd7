"""The command line: `python -m bronze_assets load` and `show`. Each calls what a Dagster job or a reader would call."""

from __future__ import annotations

import argparse
import logging
import sys
import time
from collections.abc import Sequence

from pyspark.sql import functions as F

from bronze_assets.catalog import TABLES
from bronze_assets.demo import home
from bronze_assets.errors import LakeError
from bronze_assets.load import current
from bronze_assets.settings import Settings
from bronze_assets.table import BronzeTable
from bronze_assets.terminal import load_and_report, run_command
from bronze_assets.workbench import Workbench


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code: 0, 1 for an error, 130 when interrupted."""
    parser = argparse.ArgumentParser(prog="python -m bronze_assets", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("load", help="materialise the current partition of the ten tables, through Dagster")
    show_parser = commands.add_parser("show", help="print rows of a table; protected personal data is masked")
    show_parser.add_argument("table", choices=[table.name for table in TABLES])
    show_parser.add_argument(
        "--versions", action="store_true", help="all row versions instead of the current view, bz_<table>_current"
    )
    show_parser.add_argument("--quarantine", action="store_true", help="the quarantine of the table")
    show_parser.add_argument("--limit", type=int, default=20, help="rows at most (default 20)")
    options = parser.parse_args(arguments)
    logging.getLogger("bronze_assets").setLevel(logging.WARNING)

    def command(settings: Settings) -> int:
        if options.command == "load":
            return load_all(settings)
        (table,) = (table for table in TABLES if table.name == options.table)
        return show(settings, table, versions=options.versions, quarantine=options.quarantine, limit=options.limit)

    return run_command(command, interrupted="Interrupted. The next load finishes or takes back what was begun.")


def load_all(settings: Settings) -> int:
    """Materialise the current partition of every table and print the report; returns the exit code."""
    began = time.monotonic()
    settings.require_local()
    home.mark(settings.home)
    return load_and_report(settings, began=began)


def show(settings: Settings, table: BronzeTable, *, versions: bool, quarantine: bool, limit: int) -> int:
    """Print rows of a table, in key order."""
    with Workbench.open(settings, say=lambda _: None) as bench:
        name = table.quarantine_name if quarantine else table.name
        if not bench.lake.exists(table.schema, name):
            raise LakeError(
                f"there is no table at {bench.lake.path(table.schema, name)}.",
                "load it first (`make demo` or `make load`), or check BRONZE_HOME and BRONZE_LAKE.",
                table=name,
            )
        if quarantine:
            frame = bench.lake.read(bench.session, table.schema, name).orderBy("row_key")
        else:
            rows = bench.lake.read(bench.session, table.schema, name) if versions else current(bench, table)
            order = [column.name for column in table.key] + ["source_position"]
            masked = {c.name: F.when(F.col(c.name).isNotNull(), "***") for c in table.columns if c.pii.protected}
            frame = rows.orderBy(*order).withColumns(masked)
        frame.show(limit, truncate=40)
    return 0


if __name__ == "__main__":
    sys.exit(main())
