"""What Pipes starts on Databricks: the loads of one table, whose records and errors go back as messages.

Runs as `python_file` from the staging volume, with the shipped code beside it (`START`).
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Mapping
from typing import Any

from dagster_pipes import (
    DAGSTER_PIPES_CONTEXT_CLI_ARGUMENT,
    PipesCliArgsParamsLoader,
    PipesContext,
    PipesEnvVarParamsLoader,
    PipesParamsLoader,
    PipesUnityCatalogVolumesContextLoader,
    PipesUnityCatalogVolumesMessageWriter,
    open_dagster_pipes,
)

from bronze_assets import errors
from bronze_assets.audit import LoadRecord, safe_message
from bronze_assets.catalog import TABLES
from bronze_assets.databricks_job import bill
from bronze_assets.errors import BronzeError, RemoteFailure
from bronze_assets.load import load
from bronze_assets.settings import Settings
from bronze_assets.workbench import Options, Run, Workbench

START = """\
import sys, tempfile, zipfile
code = tempfile.mkdtemp()
with zipfile.ZipFile(sys.argv.pop(1)) as archive:
    archive.extractall(code)
sys.path.insert(0, code)
from bronze_assets.orchestration.remote import main
main()
"""
"""The file that Databricks runs; its first argument is the zip with the code."""


def main() -> None:
    """Load the partitions that the extras name, and say of each how it ended."""
    by_argument = DAGSTER_PIPES_CONTEXT_CLI_ARGUMENT in sys.argv
    parameters: PipesParamsLoader
    parameters = PipesCliArgsParamsLoader() if by_argument else PipesEnvVarParamsLoader()  # type: ignore[no-untyped-call]
    # Warnings and errors of our own come along; what others print may quote rows.
    logging.getLogger("bronze_assets").setLevel(logging.INFO)
    with open_dagster_pipes(
        context_loader=PipesUnityCatalogVolumesContextLoader(),
        message_writer=PipesUnityCatalogVolumesMessageWriter(interval=1),
        params_loader=parameters,
    ) as pipes:
        _load(pipes)


def _load(pipes: PipesContext) -> None:
    settings = Settings.from_environment(pipes.get_extra("environment"))
    try:
        (table,) = (table for table in TABLES if table.name == pipes.get_extra("table"))
        run, options = Run(*pipes.get_extra("run")), Options(**pipes.get_extra("options"))
        with Workbench.open(settings, say=pipes.log.info) as bench:
            for partition in pipes.get_extra("partitions"):
                record = load(table, partition, bench, run, options)
                cost = bill(settings, lambda: bench.session, record)
                pipes.report_custom_message({"partition": partition, "record": record.to_json(), "cost": cost})
    except Exception as error:
        pipes.report_custom_message({"error": told(error)})


def told(error: Exception) -> dict[str, Any]:
    """An error as a message: our own with all that is in it, another's without its words."""
    if not isinstance(error, BronzeError):
        return {"kind": RemoteFailure.__name__, "culprit": safe_message(error), "fix": "see the run's page."}
    return {"kind": type(error).__name__, "culprit": error.culprit, "fix": error.fix, "table": error.table}


def raised(message: Mapping[str, Any]) -> BronzeError:
    """The error of a message."""
    named = getattr(errors, message["kind"], None)
    kind = named if isinstance(named, type) and issubclass(named, BronzeError) else RemoteFailure
    return kind(message["culprit"], message["fix"], table=message.get("table"))


def record_of(message: Mapping[str, Any]) -> LoadRecord:
    """The record of a message."""
    return LoadRecord.from_json(message["record"])
