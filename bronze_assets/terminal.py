"""What the command lines share: progress, errors and signals as a person at a terminal meets them."""

from __future__ import annotations

import shlex
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType

from bronze_assets import engine
from bronze_assets.audit import LoadOutcome
from bronze_assets.demo.report import render
from bronze_assets.errors import BronzeError
from bronze_assets.settings import Settings


def run_command(command: Callable[[Settings], int], *, interrupted: str) -> int:
    """Call a command with the settings of the environment.

    Args:
        interrupted: what to say after Ctrl-C, SIGTERM or a closed terminal.

    Returns:
        The exit code: the command's own, 1 for a `BronzeError`, 130 when interrupted.
    """
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _interrupt)
    try:
        return command(Settings.from_environment())
    except BronzeError as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        engine.end_jvm()
        print(f"\n{interrupted}", file=sys.stderr)
        return 130


def say(line: str) -> None:
    """Show one line of progress at once, also when the output is piped."""
    print(line, flush=True)


def load_and_report(settings: Settings, *, began: float, change: Callable[[], object] | None = None) -> int:
    """Load what is outstanding of every table through Dagster, write the KPI pages and print the report.

    Args:
        began: `time.monotonic()` when the command began.
        change: is called when that is done; what it changes is captured and loaded too.

    Returns:
        The exit code: 1 if a table was not loaded.
    """
    # Imported late: Dagster and pandera take seconds, in which nothing could be said.
    from bronze_assets.orchestration.launch import load_arrived, load_current, report_kpis

    outcomes = load_current(settings, say)
    arrived: list[LoadOutcome] = []
    if change is not None:
        change()
        arrived = load_arrived(settings, say)
    try:
        pages = [page.path for page in report_kpis(settings)]
    except BronzeError as error:
        # The loads are done: no report may fail them.
        say(str(error))
        pages = []
    report = render(
        outcomes,
        arrived=arrived,
        kpis=pages,
        lake=settings.lake,
        make=_make(settings),
        seconds=time.monotonic() - began,
        colour=sys.stdout.isatty(),
    )
    say(f"\n{report}")
    return 1 if any(outcome.record is None for outcome in [*outcomes, *arrived]) else 0


def _make(settings: Settings) -> str:
    """`make` with the variables that name these settings' folders."""
    names = {
        "BRONZE_HOME": str(settings.home),
        "BRONZE_LAKE": str(settings.lake),
        "BRONZE_LANDING": settings.landing,
        "BRONZE_ARCHIVE": settings.archive,
    }
    usual = {
        "BRONZE_HOME": str(Path(".bronze").absolute()),
        "BRONZE_LAKE": str(settings.home / "lake"),
        "BRONZE_LANDING": str(settings.home / "landing"),
        "BRONZE_ARCHIVE": f"{settings.landing.rpartition('/')[0]}/archive",
    }
    given = [f"{name}={shlex.quote(place)}" for name, place in names.items() if place != usual[name]]
    return " ".join([*given, "make"])


def _interrupt(_number: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt
