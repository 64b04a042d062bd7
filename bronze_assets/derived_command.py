"""The command `derived` of the command line: list, register, withdraw. Calls what an asset and the Dagster job call."""

from __future__ import annotations

import argparse
import getpass
from typing import Any

from bronze_assets.catalog import TABLES
from bronze_assets.lakehouse import open_lake
from bronze_assets.privacy import derived
from bronze_assets.settings import Settings
from bronze_assets.terminal import say


def add_parser(commands: Any) -> None:
    """Add the command to the subparsers of a command line."""
    parser = commands.add_parser("derived", help="the tables derived from bronze that an erasure sweeps too")
    actions = parser.add_subparsers(dest="action", required=True)
    listing = actions.add_parser("list", help="what is registered")
    register = actions.add_parser("register", help="let erasures sweep a table from now on; safe to repeat")
    withdraw = actions.add_parser("withdraw", help="leave a table out of erasures, as when it has been removed")
    personal = [table.name for table in TABLES if table.has_personal_data]
    listing.add_argument("table", nargs="?", choices=personal, help="of this bronze table; of all by default")
    for action in (register, withdraw):
        action.add_argument("table", choices=personal, help="the bronze table that its persons come from")
        action.add_argument("place", help="<schema>.<name> of the same lake, or an absolute path or URI")
        action.add_argument("--by", default=getpass.getuser(), help="who says so, for the record (default: you)")
    register.add_argument(
        "--key", nargs="+", required=True, metavar="COLUMN", help="its columns with the bronze key, in its order"
    )
    done = register.add_mutually_exclusive_group(required=True)
    done.add_argument("--delete", action="store_true", help="delete a person's rows")
    done.add_argument("--blank", nargs="+", default=[], metavar="COLUMN", help="set these columns to NULL instead")
    # An attempt without one is refused by who keeps it.
    withdraw.add_argument("--reason", default="", help="why, for the record; not a person's name; refused without")


def run(settings: Settings, options: argparse.Namespace) -> int:
    """Run the command; returns the exit code."""
    lake = open_lake(settings)
    tables = [table for table in TABLES if table.has_personal_data and options.table in (None, table.name)]
    if options.action == "list":
        lines = [f"{table.name}: {one.words}" for table in tables for one in derived.registered(lake, table)]
        for line in lines or ["No derived table is registered."]:
            say(line)
        return 0
    (table,) = tables
    if options.action == "register":
        new = derived.register(lake, table, options.place, key=options.key, blank=options.blank, who=options.by)
        say(f"{table.name}: {options.place} is {'registered' if new else 'registered already'}.")
        return 0
    for one in derived.withdraw(lake, table, options.place, who=options.by, reason=options.reason):
        say(f"{table.name}: withdrawn: {one.words}.")
    return 0
