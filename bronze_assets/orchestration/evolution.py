"""The job with which somebody accepts new columns of a table that stopped at them."""

# No postponed annotations here: Dagster reads those of an op's function as objects.

import datetime as dt
from collections.abc import Sequence

import dagster as dg
from pydantic import Field

from bronze_assets import audit
from bronze_assets.errors import BronzeError, LoadRefused
from bronze_assets.lakehouse import open_lake
from bronze_assets.orchestration.databricks import step_launcher
from bronze_assets.orchestration.resources import STEP_LAUNCHER
from bronze_assets.schema_versions import SchemaVersions
from bronze_assets.settings import Settings
from bronze_assets.table import BronzeTable


class AcceptConfig(dg.Config):
    """Which columns, and who says so."""

    table: str = Field(description="Name of the bronze table.")
    accepted_by: str = Field(description="Who accepts, for the record.")
    columns: list[str] = Field(default=[], description="Only these of the proposed columns; all when left out.")
    only_show: bool = Field(default=False, description="Only show what is different.")


def accept_schema_job(settings: Settings, tables: Sequence[BronzeTable]) -> dg.JobDefinition:
    """The job `accept_schema`: shows in the run's log what is different, then accepts it. The sensor does the rest."""
    by_name = {table.name: table for table in tables if table.feed is not None}

    @dg.op(
        description="Shows the columns that stopped a table, and accepts them.", required_resource_keys={STEP_LAUNCHER}
    )
    def accept_new_columns(context: dg.OpExecutionContext, config: AcceptConfig) -> None:
        try:
            table = by_name.get(config.table)
            if table is None:
                raise LoadRefused(f"{config.table!r} is no table of files.", f"use one of {', '.join(by_name)}.")
            versions = SchemaVersions(open_lake(settings), table, lambda: dt.datetime.now(dt.UTC))
            for line in versions.difference():
                context.log.info(line)
            if config.only_show:
                return
            accepted = versions.accept(config.accepted_by, config.columns)
        except BronzeError as error:
            raise dg.Failure(description=audit.safe_message(error), allow_retries=False) from error
        context.log.info(f"{config.accepted_by} accepted {', '.join(accepted)}; the next load takes the waiting files.")

    @dg.job(
        description="Accepts new columns of a table that its policy stopped.",
        executor_def=dg.in_process_executor,
        resource_defs={STEP_LAUNCHER: step_launcher(settings)},
    )
    def accept_schema() -> None:
        accept_new_columns()

    return accept_schema
