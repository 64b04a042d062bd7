"""The job with which persons are forgotten. Its config names keys of rows, which are no personal data by themselves."""

# No postponed annotations here: Dagster reads those of an op's function as objects.

from collections.abc import Sequence

import dagster as dg
from pydantic import Field

from bronze_assets.orchestration.resources import LOGGER
from bronze_assets.orchestration.runs import without_values
from bronze_assets.privacy import erasure
from bronze_assets.settings import Settings
from bronze_assets.table import BronzeTable
from bronze_assets.workbench import Workbench


class EraseConfig(dg.Config):
    """Who is to be forgotten, and why."""

    subjects: list[str] = Field(description="As <table>:<key>, e.g. bz_customers:123; thousands go in one run.")
    reason: str = Field(description="For the evidence; not the person's name.")
    by: str = Field(description="Who asked for it, for the evidence.")


def erasure_jobs(settings: Settings, tables: Sequence[BronzeTable]) -> list[dg.JobDefinition]:
    """The job `erase`; none where no table holds personal data."""
    if not any(table.has_personal_data for table in tables):
        return []

    @dg.op(description="Forgets persons in lake, landing zone and archive, and drops their keys.")
    def erase_subjects(context: dg.OpExecutionContext, config: EraseConfig) -> None:
        def forget() -> None:
            by_name = {table.name: table for table in tables}
            with Workbench.open(settings, say=LOGGER.info) as bench:
                for name, keys in erasure.subjects_of(config.subjects, tables).items():
                    evidence = erasure.erase(
                        bench, by_name[name], keys, reason=config.reason, who=config.by, run_id=context.run_id
                    )
                    context.log.info(evidence.words)

        without_values(forget)

    @dg.job(description="Forgets persons; safe to run again.", executor_def=dg.in_process_executor)
    def erase() -> None:
        erase_subjects()

    return [erase]
