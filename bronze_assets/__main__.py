"""The command line: doctor, load, show, capture, accept-schema, access, reveal, erase, derived, rotate-keys,
compliance, quarantine, restore, report. But for `doctor`, each calls what a Dagster job or reader would call.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import datetime as dt
import getpass
import logging
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from pyspark.sql import functions as F

from bronze_assets import (
    access,
    access_evidence,
    derived_command,
    doctor,
    hold_command,
    quarantine_command,
    report_command,
    restore_command,
)
from bronze_assets.catalog import TABLES
from bronze_assets.demo import home, postgres
from bronze_assets.errors import LakeError, PrivacyRefused, SettingsError
from bronze_assets.lakehouse import open_lake
from bronze_assets.load import current
from bronze_assets.operations.monitoring import monitoring_script
from bronze_assets.privacy import compliance, erasure, evidence, removal, reveal, rotation
from bronze_assets.privacy.keys import existing_ring
from bronze_assets.schema_versions import SchemaVersions
from bronze_assets.settings import CaptureMode, Settings
from bronze_assets.table import RESCUED, BronzeTable
from bronze_assets.terminal import load_and_report, run_command, say
from bronze_assets.thresholds import MAX_LAG_BYTES
from bronze_assets.workbench import Workbench


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code: 0, 1 for an error, 130 when interrupted."""
    parser = argparse.ArgumentParser(prog="python -m bronze_assets", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("load", help="capture and load what is outstanding of every table, through Dagster")
    show_parser = commands.add_parser("show", help="print rows of a table; protected personal data is masked")
    show_parser.add_argument("table", choices=[table.name for table in TABLES])
    show_parser.add_argument(
        "--versions", action="store_true", help="all row versions instead of the current view, bz_<table>_current"
    )
    show_parser.add_argument("--quarantine", action="store_true", help="the quarantine of the table")
    show_parser.add_argument("--limit", type=int, default=20, help="rows at most (default 20)")
    capture_parser = commands.add_parser("capture", help="write the committed changes into the landing zone, once")
    capture_parser.add_argument("--status", action="store_true", help="only say how the replication slot stands")
    capture_parser.add_argument(
        "--drop", action="store_true", help="remove the slot and the publication: for a capture that is given up"
    )
    accept_parser = commands.add_parser("accept-schema", help="show and accept the new columns that stopped a table")
    accept_parser.add_argument("table", choices=[table.name for table in TABLES if table.feed is not None])
    accept_parser.add_argument("columns", nargs="*", help="only these of them; all by default")
    accept_parser.add_argument("--by", default=getpass.getuser(), help="who accepts, for the record (default: you)")
    accept_parser.add_argument("--show", action="store_true", help="only show what is different")
    access_parser = commands.add_parser("access", help="the SQL for Unity Catalog: grants, tags, masks, row filters")
    access_parser.add_argument("--catalog", help="the catalog of the tables (default BRONZE_CATALOG)")
    access_parser.add_argument(
        "--output", type=Path, metavar="FOLDER", help="write one file of each; printed by default"
    )
    access_parser.add_argument(
        "--evidence",
        action="store_true",
        help="instead, ask Unity Catalog: log who has read by SQL, and compare the grants with the declared ones",
    )
    access_parser.add_argument(
        "--since", metavar="YYYY-MM-DD", help="with --evidence, ask for reads from then on (default: since the last)"
    )
    reveal_parser = commands.add_parser("reveal", help="print a person's values; each attempt is in the access log")
    reveal_parser.add_argument("--table", required=True, choices=[t.name for t in TABLES if t.has_personal_data])
    reveal_parser.add_argument("--key", required=True, help="of the row; several values separated by ', '")
    # An attempt without one is refused where it is logged too.
    reveal_parser.add_argument("--purpose", default="", help="why, for the access log; refused without")
    reveal_parser.add_argument("--columns", nargs="+", default=[], help="only these; all declared ones by default")
    reveal_parser.add_argument("--by", default=getpass.getuser(), help="who asks, for the access log (default: you)")
    rotate_parser = commands.add_parser("rotate-keys", help="wrap all keys with a new version of the master key")
    rotate_parser.add_argument(
        "--retire", type=int, metavar="VERSION", help="instead, remove an old version that nothing needs"
    )
    erase_parser = commands.add_parser("erase", help="forget persons, for good; safe to repeat")
    erase_parser.add_argument("--customer", action="append", default=[], metavar="ID", help="a customer")
    erase_parser.add_argument("--subject", action="append", default=[], metavar="TABLE:KEY", help="a row's person")
    erase_parser.add_argument("--subjects-from", type=Path, metavar="FILE", help="a file with one TABLE:KEY a line")
    erase_parser.add_argument(
        "--reason", default="", help="for the evidence, without the person's name; refused without"
    )
    erase_parser.add_argument("--by", default=getpass.getuser(), help="who asks, for the evidence (default: you)")
    erase_parser.add_argument(
        "--due", action="store_true", help="instead, remove the files of earlier erasures whose time has come"
    )
    compliance_parser = commands.add_parser(
        "compliance", help="judge the controls over personal data; exit code 0 also where one fails"
    )
    compliance_parser.add_argument(
        "--output", type=Path, metavar="FOLDER", help="of compliance.html and .json (default <home>/reports)"
    )
    commands.add_parser("doctor", help="check the environment before anything is started; says what to do")
    derived_command.add_parser(commands)
    hold_command.add_parser(commands)
    quarantine_command.add_parser(commands)
    report_command.add_parser(commands)
    restore_command.add_parser(commands)
    options = parser.parse_args(arguments)
    logging.getLogger("bronze_assets").setLevel(logging.WARNING)

    def command(settings: Settings) -> int:
        if options.command == "load":
            return load_all(settings)
        if options.command == "capture":
            return run_capture(settings, status=options.status, drop=options.drop)
        if options.command == "access":
            own = settings if options.catalog is None else dataclasses.replace(settings, catalog=options.catalog)
            if options.evidence:
                return collect_evidence(own, options.since)
            return write_access(own, options.output)
        if options.command == "compliance":
            return report_compliance(settings, options.output)
        if options.command == "erase":
            if options.due:
                if options.customer or options.subject or options.subjects_from or options.reason:
                    erase_parser.error("--due forgets nobody: leave out who is to be forgotten, or --due")
                return remove_due(settings, by=options.by)
            subjects = [*(f"bz_customers:{key}" for key in options.customer), *options.subject]
            return erase(settings, subjects, options.subjects_from, reason=options.reason, by=options.by)
        if options.command == "doctor":
            return doctor.report(settings, TABLES, say)
        if options.command == "derived":
            return derived_command.run(settings, options)
        if options.command == "report":
            return report_command.run(settings, options)
        if options.command == "hold":
            return hold_command.run(settings, options)
        if options.command == "rotate-keys":
            return rotate_keys(settings, retire=options.retire)
        (table,) = (table for table in TABLES if table.name == options.table)
        if options.command == "restore":
            return restore_command.run(settings, table, options)
        if options.command == "accept-schema":
            return accept_schema(settings, table, options.columns, by=options.by, only_show=options.show)
        if options.command == "reveal":
            return reveal_values(
                settings, table, options.key, purpose=options.purpose, by=options.by, columns=options.columns
            )
        if options.command == "quarantine":
            return quarantine_command.run(settings, table, options)
        return show(settings, table, versions=options.versions, quarantine=options.quarantine, limit=options.limit)

    return run_command(command, interrupted="Interrupted. The next load finishes or takes back what was begun.")


def load_all(settings: Settings) -> int:
    """Materialise the current partition of every table and print the report; returns the exit code."""
    began = time.monotonic()
    settings.require_local()
    home.mark(settings.home)
    # As for `make ui`: the demo has stopped its server.
    embedded = settings.embedded and (settings.home / "postgres").is_dir()
    with postgres.running(settings, say) if embedded else contextlib.nullcontext():
        return load_and_report(settings, began=began)


def run_capture(settings: Settings, *, status: bool, drop: bool) -> int:
    """Capture once, or show or remove the captures; returns the exit code: 1 if a slot is lost or too far behind."""
    from bronze_assets.orchestration.capture import capture_of, captured

    if settings.capture is not CaptureMode.BUILTIN:
        raise SettingsError(
            f"BRONZE_CAPTURE={settings.capture} captures nothing from here.", "set BRONZE_CAPTURE=builtin."
        )
    good = True
    for schema, tables in captured(TABLES).items():
        capture = capture_of(settings, tables)
        if drop:
            capture.drop()
            say(f"{schema}: removed the replication slot {capture.slot} and its publication.")
            continue
        if not status:
            drained = capture.drain()
            why = f", from a new slot ({drained.started_anew})" if drained.started_anew else ""
            say(f"{schema}: captured {sum(drained.rows.values()):,} changes in {len(drained.files)} files{why}.")
        found = capture.status()
        lag = "never confirmed" if found.lag_seconds is None else f"confirmed {found.lag_seconds:.0f} s ago"
        there = "is lost: " + found.lost if found.lost else "is there" if found.present else "is not there yet"
        say(
            f"{schema}: slot {found.slot} {there}; {lag}; {found.lag_bytes / 2**20:.1f} MB behind,"
            f" the server keeps {found.retained_bytes / 2**20:.1f} MB for it."
        )
        good = good and found.lost is None and found.retained_bytes < MAX_LAG_BYTES
    return 0 if good else 1


def accept_schema(settings: Settings, table: BronzeTable, names: Sequence[str], *, by: str, only_show: bool) -> int:
    """Show the columns that wait to be accepted for a table, and accept them; returns the exit code."""
    versions = SchemaVersions(open_lake(settings), table, _now)
    for line in versions.difference():
        say(line)
    if only_show:
        return 0
    accepted = versions.accept(by, names)
    say(f"{table.name}: {by} accepted {', '.join(accepted)}; the next load takes the waiting files.")
    return 0


def collect_evidence(settings: Settings, since: str | None) -> int:
    """Ask Unity Catalog who has read and who may, keep both, and print what is different; returns the exit code: 0 also
    where a grant differs, since it was found.
    """
    now = _now()
    start = None if since is None else evidence.day(since, now)
    for line in evidence.collect(settings, open_lake(settings), TABLES, now, since=start).lines():
        say(line)
    return 0


def write_access(settings: Settings, output: Path | None) -> int:
    """Print who may see what as SQL, or write it into a folder; returns the exit code."""
    catalog = settings.catalog
    if catalog is None:
        raise SettingsError("no catalog is named.", "give --catalog, or set BRONZE_CATALOG.")
    files = {
        **access.scripts(TABLES, catalog),
        "queries.sql": access_evidence.query_script(TABLES, catalog),
        "monitoring.sql": monitoring_script(TABLES, catalog),
    }
    if output is None:
        say("\n".join(f"-- {name}\n{text}" for name, text in files.items()))
        return 0
    try:
        output.mkdir(parents=True, exist_ok=True)
        for name, text in files.items():
            (output / name).write_text(text, encoding="utf-8")
    except OSError as error:
        raise SettingsError(f"{output} cannot be written ({error.strerror}).", "name another folder.") from None
    say(f"{output}: {', '.join(files)}.")
    return 0


def reveal_values(
    settings: Settings, table: BronzeTable, key_text: str, *, purpose: str, by: str, columns: Sequence[str]
) -> int:
    """Print the versions of a row with a person's values; returns the exit code."""
    reveal.remove_old_answers(settings.home, _now())
    rows = reveal.reveal(
        open_lake(settings),
        lambda: existing_ring(settings),
        _now,
        table,
        key_text,
        purpose=purpose,
        who=by,
        columns=columns,
    )
    for line in reveal.as_lines(rows):
        say(line)
    return 0


def erase(settings: Settings, subjects: Sequence[str], file: Path | None, *, reason: str, by: str) -> int:
    """Forget persons; returns the exit code."""
    try:
        more = [] if file is None else file.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"{file} cannot be read ({type(error).__name__}).", "name a text file.") from None
    wanted = erasure.subjects_of([*subjects, *(line.strip() for line in more if line.strip())], TABLES)
    if not wanted:
        raise PrivacyRefused("nobody is named.", "give --customer, --subject or --subjects-from.")
    by_name = {table.name: table for table in TABLES}
    with Workbench.open(settings, say=say) as bench:
        erasure.check_all(bench, wanted, TABLES, reason=reason, who=by)
        for name, keys in wanted.items():
            say(erasure.erase(bench, by_name[name], keys, reason=reason, who=by).words)
    return 0


def remove_due(settings: Settings, *, by: str) -> int:
    """Remove the files of earlier erasures whose time has come; returns the exit code."""
    found = removal.remove_due(open_lake(settings), TABLES, _now, who=by)
    for line in [one.words for one in found] or ["No erasure has come of age."]:
        say(line)
    return 0


def rotate_keys(settings: Settings, *, retire: int | None) -> int:
    """Wrap all keys with a new version of the master key, or remove an old one; returns the exit code."""
    lake = open_lake(settings)
    if retire is not None:
        rotation.retire(settings, lake, TABLES, _now, retire)
        say(f"Version {retire} of the master key is removed.")
        return 0
    for line in rotation.rotate(settings, lake, TABLES, _now).lines():
        say(line)
    return 0


def report_compliance(settings: Settings, output: Path | None) -> int:
    """Judge the controls over personal data, print those that fail and write the report; returns the exit code: 0 also
    where one fails, since the report was made.
    """
    lake = open_lake(settings)
    report = compliance.compliance(settings, lake, lambda: existing_ring(settings), TABLES, _now)
    path = report.write(output or settings.home / compliance.FOLDER)
    for line in report.lines():
        say(line)
    say(f"The report: {path}. The exit code is 0 also where a control fails.")
    return 0


def _now() -> dt.datetime:
    return dt.datetime.now(dt.UTC)


def show(settings: Settings, table: BronzeTable, *, versions: bool, quarantine: bool, limit: int) -> int:
    """Print rows of a table, in key order."""
    with Workbench.open(settings, say=lambda _: None) as bench:
        name = table.quarantine_name if quarantine else table.name
        if not bench.lake.exists(table.schema, name):
            raise LakeError(
                f"there is no table at {bench.lake.location(table.schema, name)}.",
                "load it first (`make demo` or `make load`), or check BRONZE_HOME and BRONZE_LAKE.",
                table=name,
            )
        if quarantine:
            frame = bench.lake.read(bench.session, table.schema, name).orderBy("row_key")
        else:
            rows = bench.lake.read(bench.session, table.schema, name) if versions else current(bench, table)
            order = [column.name for column in table.key] + ["source_position"]
            hidden = [c.name for c in table.columns if c.pii.protected]
            if hidden and RESCUED in rows.columns:
                # A misspelt name brings a protected value there.
                hidden.append(RESCUED)
            masked = {name: F.when(F.col(name).isNotNull(), "***") for name in hidden}
            frame = rows.orderBy(*order).withColumns(masked)
        frame.show(limit, truncate=40)
    return 0


if __name__ == "__main__":
    sys.exit(main())
