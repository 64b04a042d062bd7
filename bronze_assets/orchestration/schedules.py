"""When the tables are loaded. Each tick asks for the partition in progress."""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping
from typing import TYPE_CHECKING

import dagster as dg

from bronze_assets.orchestration.assets import WAITING, asset_key
from bronze_assets.orchestration.jobs import LoadJob
from bronze_assets.orchestration.runs import SOURCE_TAG, TRIGGER_TAG, UNFINISHED
from bronze_assets.orchestration.sensors import MOST_PARTITIONS
from bronze_assets.settings import Environment, Settings
from bronze_assets.table import Cadence
from bronze_assets.workbench import current_partition

if TYPE_CHECKING:
    from dagster._core.definitions.unresolved_asset_job_definition import UnresolvedAssetJobDefinition

CRON: Mapping[Cadence, str] = {
    # Where their changes are not captured, streaming tables are compared with a snapshot often enough to stay fresh.
    Cadence.STREAMING: "*/15 * * * *",
    Cadence.HOURLY: "0 * * * *",
    Cadence.DAILY: "0 0 * * *",
}


def job_schedule(
    job: dg.JobDefinition | UnresolvedAssetJobDefinition,
    cron: str,
    description: str,
    settings: Settings,
    *,
    name: str | None = None,
) -> dg.ScheduleDefinition:
    """The schedule of a job that loads nothing, in UTC: running where the environment is local, stopped elsewhere.

    Args:
        name: `<job>_schedule` by default.
    """
    return dg.ScheduleDefinition(
        name=name or f"{job.name}_schedule",
        job=job,
        cron_schedule=cron,
        execution_timezone="UTC",
        description=description,
        default_status=_status(settings),
    )


def _status(settings: Settings) -> dg.DefaultScheduleStatus:
    local = settings.environment is Environment.LOCAL
    return dg.DefaultScheduleStatus.RUNNING if local else dg.DefaultScheduleStatus.STOPPED


def schedule(job: LoadJob, settings: Settings, *, looks_for_files: bool = False) -> dg.ScheduleDefinition:
    """The schedule of a job: running where the environment is local, stopped elsewhere.

    Args:
        looks_for_files: every five minutes, in the place of a sensor; where the last load of a table has seen files of
            other partitions, these are asked for too.
    """
    cron = "*/5 * * * *" if looks_for_files else CRON[job.cadence]

    @dg.schedule(
        name=f"{job.name}_schedule",
        job_name=job.name,
        cron_schedule=cron,
        execution_timezone="UTC",
        description=f"Loads the partition in progress of the {job.cadence.value} tables.",
        default_status=_status(settings),
    )
    def tick(context: dg.ScheduleEvaluationContext) -> list[dg.RunRequest] | dg.SkipReason:
        now = dt.datetime.now(dt.UTC)
        if now.date() < settings.start_date:
            return dg.SkipReason(f"The first partition begins on {settings.start_date}.")
        asked = current_partition(job.cadence, context.scheduled_execution_time.astimezone(dt.UTC))
        current = current_partition(job.cadence, now)
        # A tick caught up late: what the source holds now must not be loaded under a past name.
        if asked != current:
            return dg.SkipReason(f"Partition {asked} is not in progress; the next tick loads {current}.")
        filters = dg.RunsFilter(job_name=job.name, statuses=UNFINISHED)
        for run in context.instance.get_runs(filters=filters, limit=1):
            return dg.SkipReason(f"Run {run.run_id} of {job.name} has not ended.")
        wanted = [asked]
        if looks_for_files:
            first = settings.start_date.isoformat()
            wanted += [one for one in _waiting(job, context.instance) if first <= one < asked][:MOST_PARTITIONS]
        tags = {SOURCE_TAG: job.tables[0].source_system, TRIGGER_TAG: "schedule"}
        moment = f"{context.scheduled_execution_time:%FT%T%z}"
        return [dg.RunRequest(f"{moment} {partition}", partition_key=partition, tags=tags) for partition in wanted]

    return tick


def _waiting(job: LoadJob, instance: dg.DagsterInstance) -> list[str]:
    """The partitions in which files waited when the tables were last loaded, latest first."""
    found: set[str] = set()
    for table in job.tables:
        event = instance.get_latest_materialization_event(asset_key(table))
        last = event.asset_materialization if event is not None else None
        told = last.metadata.get(WAITING) if last is not None else None
        if told is not None and isinstance(told.value, list):
            found |= {str(one) for one in told.value}
    return sorted(found, reverse=True)
