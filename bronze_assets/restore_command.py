"""The command `restore` of the command line. Calls what the Dagster job calls."""

from __future__ import annotations

import argparse
import getpass
import uuid
from typing import Any

from bronze_assets.catalog import TABLES
from bronze_assets.operations import recovery
from bronze_assets.settings import Settings
from bronze_assets.table import BronzeTable
from bronze_assets.terminal import say
from bronze_assets.workbench import Run, Workbench


def add_parser(commands: Any) -> None:
    """Add the command to the subparsers of a command line."""
    parser = commands.add_parser("restore", help="bring a table back to a version or a moment; shows what would change")
    parser.add_argument("table", choices=[table.name for table in TABLES])
    target = parser.add_mutually_exclusive_group(required=True)
    target.add_argument("--version", type=int, help="of the Delta table")
    target.add_argument("--at", metavar="TIMESTAMP", help="the version of then: 2026-06-15T12:00:00, UTC")
    parser.add_argument("--in-place", action="store_true", help="in the table's place; <table>_recovered by default")
    parser.add_argument("--yes", action="store_true", help="do it; without, nothing is changed")
    # One without a reason is refused by who does it.
    parser.add_argument("--reason", default="", help="why, for the audit log; not a value; refused without")
    parser.add_argument("--by", default=getpass.getuser(), help="who wants it, for the audit log (default: you)")


def run(settings: Settings, table: BronzeTable, options: argparse.Namespace) -> int:
    """Run the command; returns the exit code."""
    # Imported late: Dagster takes seconds.
    from bronze_assets.orchestration.recovery import moment

    at = None if options.at is None else moment(options.at)
    target: dict[str, Any] = {"version": options.version, "at": at, "in_place": options.in_place}
    with Workbench.open(settings, say=say) as bench:
        plan = recovery.plan(bench, table, **target)
        for line in plan.lines():
            say(line)
        if not options.yes:
            say("Nothing was changed. To do it, say --yes and --reason.")
            return 0
        told = Run(f"{uuid.uuid4()}", "cli")
        done = recovery.restore(bench, table, told, **target, who=options.by, reason=options.reason)
    say(done.words)
    from bronze_assets.orchestration.launch import tell_restored

    tell_restored(settings, table, done)
    return 0
