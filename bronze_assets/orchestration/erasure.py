"""The jobs with which persons are forgotten, and the schedule of the one that removes what time travel still kept.

The config of `erase` names keys of rows, which are no personal data by themselves.
"""

# No postponed annotations here: Dagster reads those of an op's function as objects.

import datetime as dt
from collections.abc import Sequence

import dagster as dg
from pydantic import Field

from bronze_assets.lakehouse import open_lake
from bronze_assets.orchestration.databricks import step_launcher
from bronze_assets.orchestration.resources import LOGGER, STEP_LAUNCHER
from bronze_assets.orchestration.runs import without_values
from bronze_assets.orchestration.schedules import job_schedule
from bronze_assets.privacy import erasure, removal
from bronze_assets.settings import Settings
from bronze_assets.table import BronzeTable
from bronze_assets.workbench import Workbench


class EraseConfig(dg.Config):
    """Who is to be forgotten, and why."""

    subjects: list[str] = Field(description="As <table>:<key>, e.g. bz_customers:123; thousands go in one run.")
    reason: str = Field(description="For the evidence; not the person's name.")
    by: str = Field(description="Who asked for it, for the evidence.")


def erasure_definitions(settings: Settings, tables: Sequence[BronzeTable]) -> dg.Definitions:
    """The jobs `erase` and `remove_erased`, and the latter's schedule: running where the environment is local, stopped
    elsewhere. Nothing where no table holds personal data.
    """
    if not any(table.has_personal_data for table in tables):
        return dg.Definitions()

    @dg.op(
        description="Forgets persons in lake, landing zone and archive, and drops their keys.",
        required_resource_keys={STEP_LAUNCHER},
    )
    def erase_subjects(context: dg.OpExecutionContext, config: EraseConfig) -> None:
        def forget() -> None:
            by_name = {table.name: table for table in tables}
            with Workbench.open(settings, say=LOGGER.info) as bench:
                wanted = erasure.subjects_of(config.subjects, tables)
                told = {"reason": config.reason, "who": config.by, "run_id": context.run_id}
                erasure.check_all(bench, wanted, tables, **told)
                for name, keys in wanted.items():
                    evidence = erasure.erase(bench, by_name[name], keys, **told)
                    context.log.info(evidence.words)

        without_values(forget)

    @dg.job(
        description="Forgets persons; safe to run again.",
        executor_def=dg.in_process_executor,
        resource_defs={STEP_LAUNCHER: step_launcher(settings)},
    )
    def erase() -> None:
        erase_subjects()

    @dg.op(
        description="Vacuums the tables of which an erasure's date has passed.",
        out=dg.Out(dg.Nothing),
        required_resource_keys={STEP_LAUNCHER},
    )
    def remove_erased_files(context: dg.OpExecutionContext) -> None:
        def remove() -> None:
            lake = open_lake(settings)
            found = removal.remove_due(lake, tables, _now, who="remove_erased", run_id=context.run_id)
            for line in [one.words for one in found] or ["No erasure has come of age."]:
                context.log.info(line)
            context.add_output_metadata(
                {"erasures": sum(one.erasures for one in found), "files": sum(one.files for one in found)}
            )

        without_values(remove)

    @dg.job(
        description="Removes the files that erasures took out of the tables, once time travel has had its 30 days.",
        executor_def=dg.in_process_executor,
        resource_defs={STEP_LAUNCHER: step_launcher(settings)},
    )
    def remove_erased() -> None:
        remove_erased_files()

    daily = job_schedule(remove_erased, "30 3 * * *", "Removes what has come of age once a day.", settings)
    return dg.Definitions(jobs=[erase, remove_erased], schedules=[daily])


def _now() -> dt.datetime:
    return dt.datetime.now(dt.UTC)
