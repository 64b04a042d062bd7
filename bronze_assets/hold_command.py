"""The command `hold` of the command line: place, release, list. Calls what the Dagster job calls."""

from __future__ import annotations

import argparse
import getpass
from typing import Any

from bronze_assets.catalog import TABLES
from bronze_assets.lakehouse import open_lake
from bronze_assets.privacy import holds
from bronze_assets.settings import Settings
from bronze_assets.terminal import say
from bronze_assets.workbench import Workbench


def add_parser(commands: Any) -> None:
    """Add the command to the subparsers of a command line."""
    parser = commands.add_parser("hold", help="legal holds: what is kept from retention and erasures")
    actions = parser.add_subparsers(dest="action", required=True)
    listing = actions.add_parser("list", help="the holds that are in force")
    placing = actions.add_parser("place", help="keep what a table has of a key, or all of it")
    releasing = actions.add_parser("release", help="end a hold")
    names = [table.name for table in TABLES]
    listing.add_argument("table", nargs="?", choices=names, help="of this table; of all by default")
    for action in (placing, releasing):
        action.add_argument("table", choices=names)
        action.add_argument("--by", default=getpass.getuser(), help="who says so, for the record (default: you)")
        # An attempt without one is refused by who keeps it.
        action.add_argument("--reason", default="", help="which claim, or why it is over; not a person's name")
    placing.add_argument("key", help=f"of a row, several values separated by ', '; {holds.ALL} is the whole table")
    releasing.add_argument("key", help="likewise, or the id of the hold")


def run(settings: Settings, options: argparse.Namespace) -> int:
    """Run the command; returns the exit code."""
    tables = [table for table in TABLES if options.table in (None, table.name)]
    if options.action == "list":
        lake = open_lake(settings)
        lines = [one.words for table in tables for one in holds.in_force(lake, table)]
        for line in lines or ["No legal hold is in force."]:
            say(line)
        return 0
    (table,) = tables
    change = holds.place if options.action == "place" else holds.release
    with Workbench.open(settings, say=say) as bench:
        hold = change(bench, table, options.key, reason=options.reason, who=options.by)
    say(f"{'Placed' if options.action == 'place' else 'Released'}: {hold.words}.")
    return 0
