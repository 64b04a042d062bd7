"""`make test-databricks`: one table through the launcher of the settings, in a real workspace that costs real money.

Needs BRONZE_ENV, BRONZE_SETTINGS and who signs in (docs/databricks.md). Loads BRONZE_SMOKE_TABLE, or `bz_warehouses`.
"""

from __future__ import annotations

import datetime as dt
import os
import subprocess
import sys
import tempfile

import dagster as dg

from bronze_assets import doctor
from bronze_assets.catalog import TABLES
from bronze_assets.errors import SettingsError
from bronze_assets.orchestration.assets import asset_key
from bronze_assets.settings import Settings
from bronze_assets.terminal import run_command, say
from bronze_assets.workbench import current_partition
from bronze_assets_tests.on_databricks import command

_SECONDS = 7200


def smoke(settings: Settings) -> int:
    """Doctor, then the partition in progress of one table, then what came back; returns the exit code."""
    if settings.databricks is None:
        raise SettingsError(
            "there is no workspace to test.",
            "set BRONZE_ENV and BRONZE_SETTINGS to an environment with [databricks]; docs/databricks.md has the steps.",
        )
    name = os.environ.get("BRONZE_SMOKE_TABLE", "bz_warehouses")
    (table,) = (one for one in TABLES if one.name == name)
    if doctor.report(settings, TABLES, say):
        return 1
    partition = current_partition(table.cadence, dt.datetime.now(dt.UTC))
    with (
        tempfile.TemporaryDirectory(prefix="bronze-smoke-") as folder,
        dg.DagsterInstance.local_temp(folder) as instance,
    ):
        say(f"Loading partition {partition} of {name} in {settings.databricks_host}; a cluster may have to start.")
        done = subprocess.run(
            command([name], "--partition", partition),
            env=os.environ | {"DAGSTER_HOME": folder},
            timeout=_SECONDS,
            check=False,
        )
        run = next(iter(instance.get_runs(limit=1)), None)
        page = run.tags.get("bronze/databricks_run", "none") if run else "none"
        say(f"Exit code {done.returncode}; its page: {page}.")
        records = instance.fetch_materializations(asset_key(table), limit=1).records
        if done.returncode or not records or records[0].asset_materialization is None:
            return 1
        told = {key: value.value for key, value in records[0].asset_materialization.metadata.items()}
        outcomes = ("loaded", "quarantined", "duplicates", "unchanged", "erased")
        for key in ("read", *outcomes, "seconds", "databricks/cluster", "databricks/cost", "databricks/currency"):
            say(f"{key}: {told.get(key)}")
        conserved = told["read"] == sum(int(str(told[key])) for key in outcomes)
        say("Rows are conserved." if conserved else "Rows are NOT conserved.")
        return 0 if conserved else 1


if __name__ == "__main__":
    sys.exit(run_command(smoke, interrupted="Interrupted; the launcher has cancelled the run."))
