"""The job with which tables derived from bronze are listed, registered for erasures, or withdrawn."""

# No postponed annotations here: Dagster reads those of an op's function as objects.

from collections.abc import Sequence

import dagster as dg
from pydantic import Field

from bronze_assets.errors import PrivacyRefused
from bronze_assets.lakehouse import open_lake
from bronze_assets.orchestration.databricks import step_launcher
from bronze_assets.orchestration.resources import STEP_LAUNCHER
from bronze_assets.orchestration.runs import without_values
from bronze_assets.privacy import derived
from bronze_assets.settings import Settings
from bronze_assets.table import BronzeTable


class DerivedConfig(dg.Config):
    """Which table, and what is to become of it; without a `place`, what is registered is listed."""

    table: str = Field(default="", description="Name of the bronze table that its persons come from.")
    place: str = Field(default="", description="<schema>.<name> of the same lake, or an absolute path or URI.")
    key: list[str] = Field(default=[], description="Its columns with the bronze key, in the order of the key.")
    blank: list[str] = Field(default=[], description="Columns that become NULL in a person's rows.")
    delete: bool = Field(default=False, description="Delete a person's rows instead.")
    withdraw: bool = Field(default=False, description="Leave the table out of erasures from now on.")
    reason: str = Field(default="", description="Why it is withdrawn; not a person's name.")
    by: str = Field(default="", description="Who registers or withdraws it, for the record.")


def derived_jobs(settings: Settings, tables: Sequence[BronzeTable]) -> list[dg.JobDefinition]:
    """The job `derived_tables`; none where no table holds personal data."""
    personal = {table.name: table for table in tables if table.has_personal_data}
    if not personal:
        return []

    @dg.op(
        description="Lists, registers or withdraws tables that erasures sweep too.",
        out=dg.Out(dg.Nothing),
        required_resource_keys={STEP_LAUNCHER},
    )
    def keep_registry(context: dg.OpExecutionContext, config: DerivedConfig) -> None:
        lake = open_lake(settings)

        def change() -> None:
            table = personal.get(config.table)
            if table is None:
                raise PrivacyRefused(f"{config.table!r} has no persons.", f"use one of {', '.join(personal)}.")
            who, run_id = config.by, context.run_id
            if config.withdraw:
                derived.withdraw(lake, table, config.place, reason=config.reason, who=who, run_id=run_id)
                return
            if config.delete is bool(config.blank):
                raise PrivacyRefused(
                    "nobody says what is to become of a person's rows.",
                    "give `delete`, or the columns to `blank`.",
                    table=table.name,
                )
            derived.register(lake, table, config.place, key=config.key, blank=config.blank, who=who, run_id=run_id)

        def listed() -> list[str]:
            return [
                f"{table.name}: {one.words}" for table in personal.values() for one in derived.registered(lake, table)
            ]

        if config.place:
            without_values(change)
        lines = without_values(listed)
        for line in lines or ["No derived table is registered."]:
            context.log.info(line)
        context.add_output_metadata({"registered": len(lines), "tables": lines})

    @dg.job(
        description="Lists, registers or withdraws the tables derived from bronze that erasures sweep too.",
        executor_def=dg.in_process_executor,
        resource_defs={STEP_LAUNCHER: step_launcher(settings)},
    )
    def derived_tables() -> None:
        keep_registry()

    return [derived_tables]
