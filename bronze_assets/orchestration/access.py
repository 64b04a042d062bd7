"""The job that asks Unity Catalog who may read and who has read personal data, and its schedule."""

# No postponed annotations here: Dagster reads those of an op's function as objects.

import datetime as dt
from collections.abc import Sequence

import dagster as dg
from pydantic import Field

from bronze_assets.lakehouse import open_lake
from bronze_assets.orchestration.runs import without_values
from bronze_assets.privacy import evidence
from bronze_assets.settings import Settings
from bronze_assets.table import BronzeTable


class EvidenceConfig(dg.Config):
    """From when on reads are asked for."""

    since: str = Field(
        default="", description="YYYY-MM-DD, UTC; a day before the last comparison when left out, 30 days at the first."
    )


def access_definitions(settings: Settings, tables: Sequence[BronzeTable]) -> dg.Definitions:
    """The job `access_evidence` and a daily schedule, stopped at first; nothing where no table holds personal data or
    no Unity Catalog is configured. A grant that differs fails no run.
    """
    if settings.catalog is None or not any(table.has_personal_data for table in tables):
        return dg.Definitions()

    @dg.op(description="Logs reads by SQL, compares the grants with the declared ones.", out=dg.Out(dg.Nothing))
    def collect_evidence(context: dg.OpExecutionContext, config: EvidenceConfig) -> None:
        def collect() -> None:
            now = dt.datetime.now(dt.UTC)
            found = evidence.collect(
                settings,
                open_lake(settings),
                tables,
                now,
                since=evidence.day(config.since, now) if config.since else None,
                run_id=context.run_id,
            )
            # Who is named by a difference is in the compliance report: Dagster's logs are read by more people.
            context.log.info(found.words)
            context.add_output_metadata({"reads": found.reads, "new": found.new, "differences": len(found.differences)})

        without_values(collect)

    @dg.job(
        description="Logs reads of personal data by SQL, and compares grants with the declared ones.",
        executor_def=dg.in_process_executor,
    )
    def access_evidence() -> None:
        collect_evidence()

    schedule = dg.ScheduleDefinition(
        name="access_evidence_schedule",
        job=access_evidence,
        cron_schedule="0 5 * * *",
        execution_timezone="UTC",
        description="Asks Unity Catalog once a day.",
        default_status=dg.DefaultScheduleStatus.STOPPED,
    )
    return dg.Definitions(jobs=[access_evidence], schedules=[schedule])
