"""The job that restores a table, and the check `intact` that finds what is to be restored.

Dagster's own storages cannot take a materialisation back: a partition of which nothing is left gets a run that has
failed, which the UI and automation show as a failed partition until it is loaded again (docs/adr/0027).
"""

# No postponed annotations here: Dagster reads those of an op's function as objects.

import datetime as dt
from collections.abc import Sequence
from typing import Any

import dagster as dg
from pydantic import Field

from bronze_assets import runbook
from bronze_assets.errors import LoadRefused
from bronze_assets.operations import intact, recovery
from bronze_assets.operations.recovery import Restored
from bronze_assets.orchestration.assets import asset_key, assets, partitions
from bronze_assets.orchestration.databricks import step_launcher
from bronze_assets.orchestration.resources import LOGGER, STEP_LAUNCHER, loader_resource
from bronze_assets.orchestration.runs import RESTORED, TABLE_TAG, TRIGGER_TAG, without_values
from bronze_assets.orchestration.schedules import job_schedule
from bronze_assets.settings import Settings
from bronze_assets.table import BronzeTable
from bronze_assets.workbench import Run, Workbench

INTACT = "intact"
RESTORE_TAG = "bronze/restored"
_SHOWN = 20


class RestoreConfig(dg.Config):
    """Which table, to which version or moment, and where."""

    table: str = Field(description="Name of the bronze table.")
    version: int | None = Field(default=None, description="Version of the Delta table; or give `timestamp`.")
    timestamp: str = Field(default="", description="The version that was the current one then: ISO 8601, in UTC.")
    in_place: bool = Field(default=False, description="In the table's place; else as <table>_recovered beside it.")
    only_show: bool = Field(default=True, description="Only say what would change.")
    by: str = Field(default="", description="Who wants it, for the audit log.")
    reason: str = Field(default="", description="Why, for the audit log; not a value of a row.")


class CheckConfig(dg.Config):
    """Which tables are looked at."""

    tables: list[str] = Field(default=[], description="Names of bronze tables; all where empty.")


def recovery_definitions(settings: Settings, tables: Sequence[BronzeTable]) -> dg.Definitions:
    """The job `restore`; the check `intact` of each table, the job `check_tables` that answers it, and its hourly
    schedule: running where the environment is local, stopped elsewhere.
    """
    by_name = {table.name: table for table in tables}

    @dg.op(
        description="Restores a table to a version or a moment, beside it or in place.",
        out=dg.Out(dg.Nothing),
        required_resource_keys={STEP_LAUNCHER},
    )
    def restore_table(context: dg.OpExecutionContext, config: RestoreConfig) -> None:
        def work() -> None:
            table = by_name.get(config.table)
            if table is None:
                raise LoadRefused(f"{config.table!r} is no table.", f"use one of {', '.join(by_name)}.")
            target: dict[str, Any] = {"version": config.version, "in_place": config.in_place}
            target["at"] = moment(config.timestamp) if config.timestamp else None
            with Workbench.open(settings, say=LOGGER.info) as bench:
                plan = recovery.plan(bench, table, **target)
                for line in plan.lines():
                    context.log.info(line)
                if config.only_show:
                    context.add_output_metadata(_planned(plan))
                    return
                run = Run(context.run_id, "manual")
                done = recovery.restore(bench, table, run, **target, who=config.by, reason=config.reason)
            context.log.info(done.words)
            tell(context.instance, settings, table, done)
            context.add_output_metadata(_planned(done.plan) | _done(done))

        without_values(work)

    @dg.job(
        description="Restores a table to a version or a moment; shows what would change unless told to do it.",
        executor_def=dg.in_process_executor,
        resource_defs={STEP_LAUNCHER: step_launcher(settings)},
    )
    def restore() -> None:
        restore_table()

    @dg.op(
        description="Compares the tables with what their loads made of them.",
        out=dg.Out(dg.Nothing),
        required_resource_keys={STEP_LAUNCHER},
    )
    def check_bronze_tables(context: dg.OpExecutionContext, config: CheckConfig) -> None:
        def work() -> list[str]:
            wanted = config.tables or list(by_name)
            if unknown := [name for name in wanted if name not in by_name]:
                raise LoadRefused(f"{unknown[0]!r} is no table.", f"use some of {', '.join(by_name)}.")
            damaged = []
            with Workbench.open(settings, say=LOGGER.info) as bench:
                for table in map(by_name.__getitem__, wanted):
                    found = intact.judge(bench, table)
                    if found is None:
                        context.log.info(f"{table.name}: there is none yet, or loads are at work on it.")
                        continue
                    context.log.info(found.words)
                    damaged += [] if found.intact else [table.name]
                    # It takes them, and its types do not say so.
                    context.log_event(_evaluation(asset_key(table), found))  # type: ignore[arg-type]
            return damaged

        context.add_output_metadata({"damaged": without_values(work)})

    # No check that Dagster runs: it would run in each load of the table too, as a step of its own.
    @dg.job(
        description="Looks whether every table is what its loads made of it: the check `intact` of each.",
        executor_def=dg.in_process_executor,
        resource_defs={STEP_LAUNCHER: step_launcher(settings)},
    )
    def check_tables() -> None:
        check_bronze_tables()

    hourly = job_schedule(check_tables, "20 * * * *", "Looks for damage once an hour.", settings)
    return dg.Definitions(jobs=[restore, check_tables], schedules=[hourly])


def moment(text: str) -> dt.datetime:
    """A moment as people write it, ISO 8601; UTC where nothing else is said.

    Raises:
        LoadRefused: it is none.
    """
    try:
        found = dt.datetime.fromisoformat(text.strip())
    except ValueError:
        raise LoadRefused(f"{text!r} is no moment.", "write 2026-06-15T12:00:00, in UTC.") from None
    return found.astimezone(dt.UTC) if found.tzinfo else found.replace(tzinfo=dt.UTC)


def tell(instance: dg.DagsterInstance, settings: Settings, table: BronzeTable, done: Restored) -> None:
    """Let Dagster follow a restore: partitions whose batches are all undone count as failed, others that changed have
    an observation with their rows, and one of the table says what happened. Safe to repeat.
    """
    key, plan = asset_key(table), done.plan
    emptied = [partition for partition, rows in done.partition_rows.items() if rows is None]
    known = instance.get_status_by_partition(key, emptied, partitions(table.cadence, settings)) if emptied else {}
    for partition, rows in done.partition_rows.items():
        if rows is None:
            if (known or {}).get(partition) is dg.AssetPartitionStatus.MATERIALIZED:
                _fail(instance, settings, table, partition, plan.version)
        elif partition in plan.partitions:
            # No materialisation: the table is no fresher for it.
            about = {"dagster/partition_row_count": rows, "restored_version": plan.version}
            observed = dg.AssetObservation(key, partition=partition, description="Restored.", metadata=about)
            instance.report_runless_asset_event(observed)
    where = "in place" if plan.in_place else f"beside it, as {done.place}"
    instance.report_runless_asset_event(
        dg.AssetObservation(
            key, description=f"Restored version {plan.version} {where}.", metadata=_planned(plan) | _done(done)
        )
    )


def _fail(instance: dg.DagsterInstance, settings: Settings, table: BronzeTable, partition: str, version: int) -> None:
    """Let a partition count as failed, by a run that never was to load it."""
    key = asset_key(table)
    definitions = dg.Definitions(
        assets=assets(settings, [table]),
        resources={"loader": loader_resource(settings), STEP_LAUNCHER: step_launcher(settings)},
        executor=dg.in_process_executor,
    )
    job = definitions.resolve_implicit_global_asset_job_def().get_subset(asset_selection={key})
    tags = {
        "dagster/partition": partition,
        # Nothing is to try it again: the next load of the partition does what is outstanding.
        "dagster/max_retries": "0",
        TABLE_TAG: table.name,
        TRIGGER_TAG: RESTORED,
        RESTORE_TAG: str(version),
    }
    run = instance.create_run_for_job(job, tags=tags, asset_selection={key})
    words = f"{table.name}: the batches of {partition} were undone by a restore of version {version}: load it again."
    instance.report_run_failed(run, words)


def _evaluation(key: dg.AssetKey, found: intact.Integrity) -> dg.AssetCheckEvaluation:
    metadata: dict[str, Any] = {
        "version": found.version,
        "rows": found.rows,
        "missing": found.missing,
        "extra": found.extra,
        "foreign_commits": [f"{one.version} {one.operation}" for one in found.foreign[:_SHOWN]],
        "missing_files": len(found.missing_files),
        "last_intact_version": found.last_intact,
        "runbook": runbook.link(INTACT),
    }
    return dg.AssetCheckEvaluation(
        asset_key=key,
        check_name=INTACT,
        passed=found.intact,
        severity=dg.AssetCheckSeverity.ERROR,
        description=None if found.intact else found.words,
        metadata={name: value for name, value in metadata.items() if value is not None},
    )


def _planned(plan: recovery.Plan) -> dict[str, Any]:
    return {
        "version": plan.version,
        "of": dg.MetadataValue.timestamp(plan.then),
        "rows_before": plan.rows_now,
        "rows_then": plan.rows_then,
        "rows_going": plan.going,
        "rows_coming_back": plan.coming,
        "batches_undone": [batch.id for batch in plan.undone[:_SHOWN]],
        "batches_redone": [batch.id for batch in plan.redone[:_SHOWN]],
        "files_pending": len(plan.pending),
        "files_lost": len(plan.lost),
        "partitions": list(plan.partitions),
        "erased_versions": plan.erased_versions,
        "erased_subjects": plan.erased_subjects,
        "bytes": plan.bytes,
        "in_place": plan.in_place,
        "plan": dg.MetadataValue.md("\n\n".join(plan.lines())),
    }


def _done(done: Restored) -> dict[str, Any]:
    return {
        "place": done.place,
        "new_version": done.version,
        "rows": done.table_rows,
        "seconds": done.seconds,
        "bytes_written": done.bytes_written,
    }
