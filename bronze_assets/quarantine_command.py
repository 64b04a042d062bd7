"""The command `quarantine` of the command line: list, replay, dismiss. Calls what the Dagster job calls."""

from __future__ import annotations

import argparse
import datetime as dt
import getpass
import uuid
from pathlib import Path
from typing import Any

from bronze_assets import quarantine
from bronze_assets.catalog import TABLES
from bronze_assets.lakehouse import open_lake
from bronze_assets.settings import Settings
from bronze_assets.table import BronzeTable
from bronze_assets.terminal import say
from bronze_assets.workbench import Run, Workbench


def add_parser(commands: Any) -> None:
    """Add the command to the subparsers of a command line."""
    parser = commands.add_parser("quarantine", help="list, replay or dismiss the rows that could not be loaded")
    actions = parser.add_subparsers(dest="action", required=True)
    listing = actions.add_parser("list", help="how many rows of which rule and state")
    replay = actions.add_parser("replay", help="load the open rows that pass the rules of now")
    dismiss = actions.add_parser("dismiss", help="say of open rows that they are not to be loaded")
    for action in (listing, replay, dismiss):
        action.add_argument("table", choices=[table.name for table in TABLES])
        action.add_argument("--rule", help="only rows that broke this rule")
        action.add_argument("--batch", help="only rows that this batch brought or saw last")
        action.add_argument("--older-than", metavar="AGE", help="only rows first seen so long ago: 30m, 12h, 7d, 2w")
        action.add_argument("--newer-than", metavar="AGE", help="only rows first seen since then")
        action.add_argument("--key", help="only rows of this key; several values separated by ', '")
    replay.add_argument("--dry-run", action="store_true", help="only say what would happen")
    replay.add_argument(
        "--file", type=Path, help="JSON or CSV with whole rows, in the place of the quarantined rows of their keys"
    )
    dismiss.add_argument("--all", action="store_true", help="all open rows: has to be said where no filter is given")
    # An attempt without one is refused by who keeps it.
    dismiss.add_argument("--reason", default="", help="why, for the quarantine; not a value; refused without")
    dismiss.add_argument("--by", default=getpass.getuser(), help="who says so (default: you)")


def run(settings: Settings, table: BronzeTable, options: argparse.Namespace) -> int:
    """Run the command; returns the exit code."""
    chosen = quarantine.Selection(
        rule=options.rule,
        batch=options.batch,
        older_than=quarantine.age(options.older_than) if options.older_than else None,
        newer_than=quarantine.age(options.newer_than) if options.newer_than else None,
        key=options.key,
    )
    if options.action == "list":
        now = dt.datetime.now(dt.UTC)
        for line in quarantine.lines_of(quarantine.summary(open_lake(settings), table, chosen, now), table):
            say(line)
        return 0
    told = Run(f"{uuid.uuid4()}", "cli")
    with Workbench.open(settings, say=say) as bench:
        if options.action == "dismiss":
            said = {"reason": options.reason, "who": options.by, "everything": options.all}
            rows = quarantine.dismiss(bench, table, chosen, told, **said)
            say(f"{table.name}: {rows:,} rows dismissed.")
            return 0
        record = quarantine.replay(bench, table, chosen, told, corrected=options.file, dry_run=options.dry_run)
    say(quarantine.told_of(record))
    return 0
