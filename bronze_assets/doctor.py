"""`doctor`: what would keep an environment from working, found before anything is started, each with what to do.

Changes nothing, but that it makes the folders of landing zone and archive, and a file, removed again, wherever the
process must be able to write. Where loads run on Databricks, `doctor_databricks` looks there instead.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import itertools
import shutil
import uuid
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from upath import UPath

from bronze_assets import doctor_databricks, engine
from bronze_assets.errors import BronzeError, KeyMissing, LakeError, SourceUnreachable
from bronze_assets.findings import Finding, Look, run_looks
from bronze_assets.operations.channels import look_at_channels
from bronze_assets.privacy.keys import existing_ring
from bronze_assets.settings import CaptureMode, Environment, Settings
from bronze_assets.sources.landing import LandingZone
from bronze_assets.sources.postgres import PostgresSource
from bronze_assets.table import BronzeTable
from bronze_assets.vaults import resolve_secret

LEAST_FREE_BYTES = 2 * 2**30


def examine(settings: Settings, tables: Sequence[BronzeTable]) -> Iterator[Finding]:
    """Look at everything that a load of these tables needs, one after the other.

    Yields:
        The findings, as they are made; a look that cannot be had does not keep the others back.
    """
    if settings.databricks is None:
        return run_looks(_local_looks(settings, tables))
    # Loads run there: this machine needs neither Java nor a lake.
    here: list[Look] = [
        ("home", lambda: _home(settings)),
        ("alerts", lambda: list(look_at_channels(settings))),
    ]
    return itertools.chain(run_looks(here), doctor_databricks.examine(settings, settings.databricks, tables))


def _local_looks(settings: Settings, tables: Sequence[BronzeTable]) -> list[Look]:
    looks: list[Look] = [
        ("environment", lambda: _environment(settings)),
        ("home", lambda: _home(settings)),
        ("memory", lambda: _memory(settings)),
        ("Java", lambda: Finding("Java", f"{engine.find_java(settings)}.")),
        ("jars", lambda: _jars(settings)),
        ("lake", lambda: _lake(settings)),
        ("landing zone", lambda: _landing(settings, tables)),
        ("master key", lambda: _master_key(settings, tables)),
        ("alerts", lambda: list(look_at_channels(settings))),
        ("source", lambda: _source(settings, [table for table in tables if table.files is None])),
    ]
    if settings.embedded and _stopped(settings):
        looks[-1] = (
            "source",
            lambda: Finding("source", "the demo's PostgreSQL is stopped; loads and the UI start it."),
        )
    elif settings.capture is CaptureMode.BUILTIN:
        looks.append(("capture", lambda: _capture(settings, tables)))
    return looks


def _environment(settings: Settings) -> Finding:
    settings.require_local()
    return Finding("environment", f"BRONZE_ENV={settings.environment}.")


def _home(settings: Settings) -> Finding:
    place = _probed(settings.home, "BRONZE_HOME")
    free = shutil.disk_usage(place).free
    if free < LEAST_FREE_BYTES:
        return Finding("home", f"{settings.home} has {free / 2**30:.1f} GiB left.", "free at least 2 GiB there.")
    return Finding("home", f"{settings.home} can be written, {free / 2**30:.0f} GiB are free.")


def _probed(folder: Path, variable: str) -> Path:
    """The folder, or the nearest above it that is there, in which the process can write."""
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    probe = folder / f".doctor-{uuid.uuid4().hex}"
    try:
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise LakeError(
            f"{folder} cannot be written ({error.strerror}).",
            f"give the process the right to it, or let {variable} name another folder.",
        ) from None
    return folder


def _memory(settings: Settings) -> Finding:
    there = engine.check_memory(settings)
    return Finding("memory", f"{there:,} MB, of which Spark's driver may take {settings.driver_memory}.")


def _jars(settings: Settings) -> Finding:
    folder = settings.jars or settings.home / "jars"
    missing = engine.missing_jars(settings)
    if not missing:
        return Finding("jars", f"{len(engine.pinned_jars())} in {folder}.")
    names = ", ".join(jar.file_name for jar in missing)
    if settings.jars is not None:
        return Finding("jars", f"BRONZE_JARS={folder} lacks {names}.", "put them there, or unset BRONZE_JARS.")
    return Finding("jars", f"{names}: the first load fetches them.")


def _lake(settings: Settings) -> Finding:
    _probed(settings.lake, "BRONZE_LAKE")
    return Finding("lake", f"{settings.lake} can be written.")


def _landing(settings: Settings, tables: Sequence[BronzeTable]) -> Finding:
    zone = LandingZone(settings.landing, settings.archive)
    feeds = [table.feed for table in tables if table.feed is not None]
    waiting = sum(len(zone.files(feed)) for feed in feeds)
    name = f".doctor-{uuid.uuid4().hex}"
    arrived, archived = UPath(settings.landing) / name, UPath(settings.archive) / name
    try:
        for place in (arrived, archived):
            place.parent.mkdir(parents=True, exist_ok=True)
        arrived.write_text("")
        arrived.fs.mv(arrived.path, archived.path)
        archived.unlink()
    except Exception as error:
        # Each file system has errors of its own.
        with contextlib.suppress(Exception):
            arrived.unlink()
        raise LakeError(
            f"a file cannot be moved from {settings.landing} to {settings.archive}"
            f" ({getattr(error, 'strerror', None) or type(error).__name__}).",
            "give the process write access to both, or check BRONZE_LANDING and BRONZE_ARCHIVE.",
        ) from None
    return Finding("landing zone", f"files can be moved to the archive; {waiting:,} wait in {len(feeds)} feeds.")


def _master_key(settings: Settings, tables: Sequence[BronzeTable]) -> Finding:
    if not any(table.has_personal_data for table in tables):
        return Finding("master key", "none is needed: no table holds personal data.")
    try:
        ring = existing_ring(settings)
    except KeyMissing:
        if settings.environment is not Environment.LOCAL or not settings.master_key.startswith("file:"):
            raise
        return Finding("master key", f"there is none yet at {settings.master_key}: the first load makes it.")
    return Finding("master key", f"version {ring.current} of {len(ring.versions)} at {settings.master_key}.")


def _connected(settings: Settings) -> PostgresSource:
    return PostgresSource(
        resolve_secret(settings.source_url, meaning="BRONZE_SOURCE_URL", host=settings.databricks_host)
    )


def _source(settings: Settings, tables: Sequence[BronzeTable]) -> list[Finding]:
    findings = []
    with contextlib.closing(_connected(settings)) as source:
        snapshot = source.snapshot()
        for table in tables:
            try:
                found = snapshot.describe(table)
            except BronzeError as error:
                findings.append(Finding.of_error("source", error))
                continue
            new = f", new columns {', '.join(found.extra)}" if found.extra else ""
            findings.append(
                Finding("source", f"{table.name}: {found.relation}, about {found.estimated_rows:,} rows{new}.")
            )
    return findings


def _stopped(settings: Settings) -> bool:
    if not (settings.home / "postgres").is_dir():
        return False
    try:
        with contextlib.closing(_connected(settings)) as source:
            source.snapshot()
    except SourceUnreachable:
        return True
    except BronzeError:
        return False
    return False


def _capture(settings: Settings, tables: Sequence[BronzeTable]) -> list[Finding]:
    from bronze_assets.orchestration.capture import capture_of, captured

    findings = []
    for schema, mine in captured(tables).items():
        capture = capture_of(settings, mine)
        capture.require_logical()
        status = capture.status()
        if status.lost is not None and status.present:
            fix = "none needed: the next capture makes a new one, and the tables are loaded from a snapshot."
            findings.append(Finding("capture", f"{schema}: slot {status.slot} is lost: {status.lost}.", fix))
            continue
        there = "is there" if status.present else "is made by the first capture"
        findings.append(Finding("capture", f"{schema}: slot {status.slot} {there}."))
    return findings


def report(settings: Settings, tables: Sequence[BronzeTable], say: Callable[[str], None]) -> int:
    """Say every finding; returns the exit code: 1 where something is wrong."""
    began = dt.datetime.now()
    wrong = 0
    for finding in examine(settings, tables):
        say(str(finding))
        wrong += finding.fix is not None
    seconds = (dt.datetime.now() - began).total_seconds()
    say(f"BRONZE_ENV={settings.environment}: {wrong or 'nothing'} to mend, {seconds:.1f} s.")
    return 1 if wrong else 0
