"""`python -m bronze_assets.demo demo|ui|clean`: what `make demo`, `make ui` and `make clean` do."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import datetime as dt
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import psutil

from bronze_assets import warm_engine
from bronze_assets.demo import home, postgres
from bronze_assets.demo.changes import change_sample_rows
from bronze_assets.demo.files import drop_sample_files
from bronze_assets.demo.generate import PLANTED, ensure_sample_data
from bronze_assets.errors import SettingsError
from bronze_assets.processes import kill_after
from bronze_assets.settings import CaptureMode, Settings
from bronze_assets.terminal import load_and_report, run_command, say

UI_PORT = 3000
_CHANGES = ("inserted", "updated", "deleted")
_STOP_SECONDS = 20
_CHECKOUT = Path(__file__).parents[2]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command.

    Returns:
        The exit code: 0, 1 for an error, 130 after Ctrl-C.
    """
    parser = argparse.ArgumentParser(prog="python -m bronze_assets.demo", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("demo", help="start PostgreSQL with sample data, load tables, files and changes; report")
    commands.add_parser("ui", help="serve Dagster's UI on the home's state until Ctrl-C")
    commands.add_parser("clean", help="stop what was started and remove the home")
    command: str = parser.parse_args(arguments).command
    run: dict[str, Callable[[Settings], int]] = {"demo": demo, "ui": ui, "clean": clean}
    return run_command(run[command], interrupted="Interrupted; everything that was started is stopped.")


def demo(settings: Settings) -> int:
    """Load sample data from an embedded PostgreSQL, files and changes; returns the exit code."""
    settings.require_local()
    began = time.monotonic()
    rows = sum(counts["rows"] for counts in PLANTED.values())
    say(
        f"The demo starts PostgreSQL with {rows:,} sample rows, loads ten bronze tables from it and three from files "
        f"through Dagster\nand Spark, captures changes, and stops what it started. Everything lies in {settings.home}: "
        "about 200 MB. Memory: up to 3 GB."
    )
    home.mark(settings.home)
    if not settings.embedded or settings.capture is not CaptureMode.BUILTIN:
        say(
            "BRONZE_SOURCE_URL and BRONZE_CAPTURE are not used here: the demo captures the changes of a server of its "
            "own. `make load` loads from yours."
        )
        settings = dataclasses.replace(
            settings, source_url=f"file:{settings.home / 'postgres' / 'source_url'}", capture=CaptureMode.BUILTIN
        )
    with postgres.running(settings, say) as url:
        ensure_sample_data(url, say)
        if planted := drop_sample_files(settings.landing, settings.archive, now=dt.datetime.now(dt.UTC)):
            files = sum(counts["files"] for counts in planted.values())
            bad = sum(counts["bad_files"] for counts in planted.values())
            say(
                f"Put {files} files of {len(planted)} manufacturing feeds into the landing zone, {bad} of them damaged."
            )
        return load_and_report(settings, began=began, change=lambda: _change(url))


def _change(url: str) -> None:
    changed = change_sample_rows(url)
    counts = [f"{sum(table[name] for table in changed.values())} rows {name}" for name in _CHANGES]
    say(f"Changed the source, as applications do: {', '.join(counts)}.")


def ui(settings: Settings) -> int:
    """Serve Dagster's UI until Ctrl-C, beside the home's embedded server if it has one; returns the exit code."""
    if settings.databricks is None:
        settings.require_local()
    if not (_CHECKOUT / "workspace.yaml").is_file():
        raise SettingsError(f"{_CHECKOUT} holds no workspace.yaml.", "run from a checkout of the project.")
    home.mark(settings.home)
    process = _running_ui(settings)
    if process is not None:
        raise SettingsError(
            f"The UI of {settings.home} runs already (process {process.pid}).", "use that one, or end it first."
        )
    from bronze_assets.orchestration import run_workers
    from bronze_assets.orchestration.launch import prepare_dagster_home

    os.environ["DAGSTER_HOME"] = str(prepare_dagster_home(settings))
    # The child runs in the checkout, where a relative path would mean something else.
    os.environ["BRONZE_HOME"] = str(settings.home)
    os.environ["BRONZE_LAKE"] = str(settings.lake)
    os.environ["BRONZE_LANDING"] = settings.landing
    os.environ["BRONZE_ARCHIVE"] = settings.archive
    if settings.settings_file is not None:
        os.environ["BRONZE_SETTINGS"] = str(settings.settings_file)
    embedded = settings.embedded
    if embedded and not (settings.home / "postgres").is_dir():
        say("No source yet: `make demo` makes one with sample data, or set BRONZE_SOURCE_URL.")
        embedded = False
    with (
        postgres.running(settings, say) if embedded else contextlib.nullcontext(),
        contextlib.suppress(KeyboardInterrupt),
    ):
        port = postgres.free_port(UI_PORT)
        if port != UI_PORT:
            say(f"Port {UI_PORT} is taken; the UI gets port {port} instead.")
        say(f"Dagster's UI: http://127.0.0.1:{port} in a few seconds. Ctrl-C ends it.")
        # Where loads run on Databricks, nothing here needs Spark.
        engine = warm_engine.kept_running(settings) if settings.databricks is None else contextlib.nullcontext()
        with engine, run_workers.kept_ready(settings), _dagster(settings, port) as child:
            return child.wait()
    return 0


def clean(settings: Settings) -> int:
    """Stop the home's UI and server and remove the home; returns the exit code."""
    if not settings.home.is_dir():
        say(f"There is no {settings.home}; nothing to remove.")
        return 0
    process = _running_ui(settings)
    if process is not None:
        _end(process)
        say("Stopped the UI.")
    if postgres.stop(settings):
        say("Stopped PostgreSQL.")
    if not home.is_ours(settings.home):
        found = ", ".join(home.strangers(settings.home)[:5]) or "no mark of a demo or a load"
        raise SettingsError(
            f"{settings.home} holds other things than what was made here ({found}), so it is not removed.",
            "move them away, or check BRONZE_HOME.",
        )
    postgres.remove(settings)
    shutil.rmtree(settings.home)
    say(f"Removed {settings.home}.")
    if settings.home not in settings.lake.parents and settings.lake.is_dir():
        say(f"The lake {settings.lake} lies outside of it and was left alone.")
    return 0


@contextlib.contextmanager
def _dagster(settings: Settings, port: int) -> Iterator[subprocess.Popen[bytes]]:
    """`dagster dev` as a child that ends, with all runs it started, when the block does."""
    child = subprocess.Popen(
        [sys.executable, "-m", "dagster", "dev", "-w", "workspace.yaml", "-h", "127.0.0.1", "-p", str(port)],
        cwd=_CHECKOUT,
        # Ctrl-C comes to this process alone, which then ends the others in order.
        start_new_session=True,
        # In a background job SIGINT is ignored, a child inherits that, and Dagster could not be ended in order.
        preexec_fn=_default_sigint,
    )
    process = psutil.Process(child.pid)
    note = settings.home / "ui.json"
    try:
        note.write_text(json.dumps({"pid": child.pid, "created": process.create_time()}), encoding="utf-8")
        yield child
    finally:
        with postgres.uninterrupted():
            _end(process)
            child.wait()
            note.unlink(missing_ok=True)


def _default_sigint() -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def _running_ui(settings: Settings) -> psutil.Process | None:
    """The home's `dagster dev`, if it runs: its process id alone may belong to anybody by now."""
    try:
        note = json.loads((settings.home / "ui.json").read_text(encoding="utf-8"))
        process = psutil.Process(int(note["pid"]))
        same = abs(process.create_time() - float(note["created"])) < 1 and process.status() != psutil.STATUS_ZOMBIE
    except (OSError, ValueError, KeyError, TypeError, psutil.Error):
        return None
    return process if same else None


def _end(process: psutil.Process) -> None:
    """End the process and all below it: politely, then not."""
    try:
        # Before the signal: children of a dead process can no longer be told from others.
        family = [process, *process.children(recursive=True)]
    except psutil.NoSuchProcess:
        return
    with contextlib.suppress(psutil.NoSuchProcess):
        process.send_signal(signal.SIGINT)
    kill_after(family, _STOP_SECONDS)


if __name__ == "__main__":
    sys.exit(main())
