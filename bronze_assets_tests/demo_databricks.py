"""`make demo-databricks`: the ten tables through the step launcher, against a workspace that is not there.

What runs is what would run on Databricks: Dagster, the launcher, the shipped code in clean processes, tables in a
catalog. What it runs against is the tests' fake workspace, whose cluster is Spark on this machine.
"""

from __future__ import annotations

import dataclasses
import datetime as dt
import shutil
import sys
import time
from pathlib import Path

from bronze_assets import audit, engine
from bronze_assets.audit import LoadOutcome, LoadRecord
from bronze_assets.catalog import TABLES
from bronze_assets.demo import home, postgres, report
from bronze_assets.demo.generate import PLANTED, ensure_sample_data
from bronze_assets.settings import Settings
from bronze_assets.table import BronzeTable, Cadence
from bronze_assets.terminal import run_command, say
from bronze_assets.workbench import current_partition
from bronze_assets_tests import lake_reader
from bronze_assets_tests.fake_workspace import FakeWorkspace, gateway_of, serving
from bronze_assets_tests.on_databricks import CATALOG, Environment, secret_values

_SECONDS = 1800


def demo(settings: Settings) -> int:
    """Load the sample data; returns the exit code."""
    settings.require_local()
    began = time.monotonic()
    settings = dataclasses.replace(
        settings, source_url=f"file:{settings.home / 'postgres' / 'source_url'}", settings_file=None
    )
    place = settings.home / "demo-databricks"
    rows = sum(counts["rows"] for counts in PLANTED.values())
    say(
        f"The demo starts PostgreSQL with {rows:,} sample rows, Spark as a cluster, and a stand-in for a Databricks"
        " workspace,\nthen loads ten bronze tables through Dagster's step launcher. Everything lies in"
        f" {settings.home}."
    )
    home.mark(settings.home)
    # Anew: a catalog of this process forgets its tables when it ends.
    shutil.rmtree(place, ignore_errors=True)
    tables = [table for table in TABLES if table.files is None]
    with postgres.running(settings, say) as url:
        ensure_sample_data(url, say)
        spark = engine.start_session(settings, say)
        for schema in dict.fromkeys(table.schema for table in tables):
            spark.sql(f"create schema {CATALOG}.{schema} location '{place / 'lake' / schema}'")
        with serving(
            place / "workspace", gateway=gateway_of(spark), spark_conf=engine.INTERPRETED, secrets=secret_values(url)
        ) as workspace:
            dev = Environment(place / "host", place / "lake", workspace)
            say(f"The workspace is at {workspace.url}. Each table is a step there, in a process of its own.")
            ends = [_load(dev, cadence, tables) for cadence in dict.fromkeys(map(_hourly, tables))]
            _tell_runs(workspace)
    outcomes = [_outcome(dev.lake, table) for table in tables]
    say(report.render(outcomes, lake=dev.lake, seconds=time.monotonic() - began, colour=sys.stdout.isatty()))
    return 0 if not any(ends) and all(outcome.record is not None for outcome in outcomes) else 1


def _hourly(table: BronzeTable) -> Cadence:
    return Cadence.HOURLY if table.cadence is Cadence.HOURLY else Cadence.DAILY


def _load(dev: Environment, cadence: Cadence, tables: list[BronzeTable]) -> int:
    """Load the tables of one partitioning in one run; returns its exit code."""
    mine = [table.name for table in tables if _hourly(table) is cadence]
    partition = current_partition(cadence, dt.datetime.now(dt.UTC))
    say(f"Loading partition {partition} of {', '.join(mine)}.")
    done = dev.materialise(*mine, partition=partition, timeout=_SECONDS)
    if done.returncode != 0:
        say(done.stderr[-4000:])
    return done.returncode


def _tell_runs(workspace: FakeWorkspace) -> None:
    ended = [run.state[1] or run.state[0] for run in workspace.runs]
    counts = ", ".join(f"{ended.count(state)} {state}" for state in dict.fromkeys(ended))
    say(f"Runs in the workspace: {counts}.")


def _outcome(lake: Path, table: BronzeTable) -> LoadOutcome:
    """How a table's load ended, from its batch log."""
    log = lake / table.schema / "bz_batches"
    query = f"select record from t where table_name = '{table.name}' and event = 'done' order by event_time desc"
    found = lake_reader.read(log, query) if lake_reader.is_table(log) else []
    if not found:
        return LoadOutcome(table.name, error="it was not loaded; Dagster's run log says why.")
    record = LoadRecord.from_json(found[0]["record"])
    failed = tuple(verdict.name for verdict in audit.verdicts(table, record) if not verdict.passed)
    return LoadOutcome(table.name, record, failed)


if __name__ == "__main__":
    sys.exit(run_command(demo, interrupted="Interrupted; everything that was started is stopped."))
