"""The command `report` of the command line: writes the KPI pages as the Dagster job does, and opens the first."""

from __future__ import annotations

import argparse
import os
import sys
import webbrowser
from pathlib import Path
from typing import Any

from bronze_assets.demo import home
from bronze_assets.settings import Settings
from bronze_assets.terminal import say


def add_parser(commands: Any) -> None:
    """Add the command to the subparsers of a command line."""
    parser = commands.add_parser("report", help="write the KPI pages, through Dagster; exit code 0 also for breaches")
    parser.add_argument("--no-open", action="store_true", help="do not open the page in a browser")


def run(settings: Settings, options: argparse.Namespace) -> int:
    """Run the command; returns the exit code: 0 also where a threshold is broken, since the report was made."""
    # Imported late: Dagster takes seconds, in which nothing could be said.
    from bronze_assets.orchestration.launch import report_kpis

    home.mark(settings.home)
    pages = report_kpis(settings)
    for page in pages:
        for line in page.lines:
            say(line)
    for page in pages:
        say(f"The KPIs: {page.path}")
    if not options.no_open and has_display():
        # The worst state is what somebody came for.
        _open(max(pages, key=lambda page: page.troubled).path)
    return 0


def has_display() -> bool:
    """Whether a browser's window can be shown here."""
    return sys.platform in ("darwin", "win32") or bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))


def _open(path: Path) -> None:
    if not webbrowser.open(path.as_uri()):
        say("No browser could be started: open the file yourself.")
