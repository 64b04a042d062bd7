"""The jobs that copy and archive the tables, restore them from there and try that out.

They wait for one another and for maintenance (one pool), and no load waits for them.
"""

# No postponed annotations here: Dagster reads those of an op's function as objects.

import datetime as dt
from collections.abc import Sequence
from typing import Any

import dagster as dg
from pydantic import Field

from bronze_assets.access import RESTORE_DRILLS
from bronze_assets.errors import SettingsError
from bronze_assets.lakehouse import open_lake
from bronze_assets.operations import drills
from bronze_assets.operations.clones import Clones, copies_of
from bronze_assets.operations.copies import Copies, Kind
from bronze_assets.operations.recovery import follow_copy
from bronze_assets.orchestration.databricks import step_launcher
from bronze_assets.orchestration.resources import LOGGER, STEP_LAUNCHER
from bronze_assets.orchestration.runs import trigger_of, without_values
from bronze_assets.orchestration.schedules import job_schedule
from bronze_assets.settings import Settings
from bronze_assets.table import BronzeTable
from bronze_assets.workbench import Run, Workbench

POOL = "maintenance"
RECOVERY_TIME = "recovery_time"


class CopyConfig(dg.Config):
    """Which tables, and how closely they are looked at."""

    tables: list[str] = Field(default=[], description="As <table> or <schema>.<table>; all by default.")
    verify: bool = Field(
        default=False,
        description="Read every file of the copy again, also those copied before; what is damaged is copied anew.",
    )


class RestoreCopyConfig(dg.Config):
    """Which table comes back, and as of when."""

    table: str = Field(description="As <table> or <schema>.<table>.")
    source: str = Field(default=Kind.COPY.value, description="copy (daily, 90 days) or archive (weekly, seven years).")
    version: int = Field(default=-1, description="Of the table when it was copied; -1: the latest that was.")
    timestamp: str = Field(default="", description="The latest copy of what the table was then, ISO 8601, UTC.")
    into: str = Field(
        default="", description="Name of the restored table; <table>_recovered, or its own if the lake has lost it."
    )
    only_show: bool = Field(default=True, description="Say what would be done.")


class DrillConfig(dg.Config):
    """Which tables are restored to try it out."""

    tables: list[str] = Field(
        default=[], description="Declared tables, as <table> or <schema>.<table>; all by default."
    )


def copies_definitions(settings: Settings, tables: Sequence[BronzeTable]) -> dg.Definitions:
    """The jobs `copy_tables`, `archive_tables`, `restore_from_copy` and `restore_drill`, their schedules, and for each
    schema the evidence of its drills as an asset, with the check `recovery_time`.
    """
    groups = {table.schema: table.group for table in tables}

    def copier(bench: Workbench, kind: Kind, run_id: str) -> Copies | Clones:
        return copies_of(bench, tables, kind, run_id=run_id, say=LOGGER.debug)

    def copying(kind: Kind, description: str) -> dg.JobDefinition:
        name = f"{kind}_tables"

        @dg.op(
            name=f"{kind}_all",
            description=description,
            out=dg.Out(dg.Nothing),
            required_resource_keys={STEP_LAUNCHER},
            pool=POOL,
        )
        def copy_all(context: dg.OpExecutionContext, config: CopyConfig) -> None:
            def work() -> None:
                with Workbench.open(settings, say=LOGGER.info) as bench:
                    copies = copier(bench, kind, context.run_id)
                    if config.verify:
                        for one in copies.verify_all(config.tables):
                            context.log.info(one)
                    found = copies.copy(config.tables)
                for line in [one.words for one in found] or ["There is no table yet."]:
                    context.log.info(line)
                context.add_output_metadata(
                    {
                        "tables": len(found),
                        "files": sum(one.files for one in found),
                        "bytes": sum(one.bytes for one in found),
                        "files_removed": sum(one.files_removed for one in found),
                        "seconds": round(sum(one.seconds for one in found), 3),
                        "verified": len(found),
                        "target": dg.MetadataValue.text(copies.target),
                    }
                )

            without_values(work)

        @dg.job(
            name=name,
            description=description,
            executor_def=dg.in_process_executor,
            resource_defs={STEP_LAUNCHER: step_launcher(settings)},
        )
        def copy_job() -> None:
            copy_all()

        return copy_job

    by_name = {table.name: table for table in tables}

    @dg.op(
        description="Restores a table from the copy or the archive.",
        out=dg.Out(dg.Nothing),
        required_resource_keys={STEP_LAUNCHER},
        pool=POOL,
    )
    def restore_table_from_copy(context: dg.OpExecutionContext, config: RestoreCopyConfig) -> None:
        def work() -> None:
            with Workbench.open(settings, say=LOGGER.info) as bench:
                restored = copier(bench, _kind(config.source), context.run_id).restore(
                    config.table,
                    version=None if config.version < 0 else config.version,
                    timestamp=_moment(config.timestamp),
                    into=config.into or None,
                    only_show=config.only_show,
                )
                context.log.info(restored.words)
                table = by_name.get(restored.into)
                if restored.done and table is not None:
                    run = Run(context.run_id, trigger_of(context.run.tags))
                    for batch in follow_copy(bench, table, restored.copied_at, run):
                        context.log.info(
                            f"{table.name}: batch {batch} is undone; the next load of its partition does it."
                        )
            names = ("table", "into", "source_version", "files", "bytes", "rows", "erased", "done")
            told: dict[str, Any] = {name: getattr(restored, name) for name in names}
            context.add_output_metadata(
                told | {"seconds": round(restored.seconds, 3), "copied_at": restored.copied_at.isoformat()}
            )

        without_values(work)

    @dg.job(
        description="Restores a table from the copy or the archive, beside it; in its place if the lake has lost it.",
        executor_def=dg.in_process_executor,
        resource_defs={STEP_LAUNCHER: step_launcher(settings)},
    )
    def restore_from_copy() -> None:
        restore_table_from_copy()

    @dg.op(
        description="Restores tables by time travel, from the copy and from the archive, into a scratch folder.",
        out=dg.Out(dg.Nothing),
        required_resource_keys={STEP_LAUNCHER},
        pool=POOL,
    )
    def try_restores(context: dg.OpExecutionContext, config: DrillConfig) -> None:
        def work() -> None:
            with Workbench.open(settings, say=LOGGER.info) as bench:
                copies = [copier(bench, kind, context.run_id) for kind in Kind]
                found = drills.drill(
                    bench.lake,
                    tables,
                    copies,
                    settings.home / drills.FOLDER,
                    _now,
                    names=config.tables,
                    run_id=context.run_id,
                )
                for one in found:
                    context.log.info(one.words)
                for schema in dict.fromkeys(one.schema for one in found):
                    key = dg.AssetKey([schema, RESTORE_DRILLS])
                    context.log_event(dg.AssetMaterialization(asset_key=key))
                    result = _judged(drills.standing(bench.lake, schema, _now()))
                    evaluation = dg.AssetCheckEvaluation(
                        asset_key=key,
                        check_name=RECOVERY_TIME,
                        passed=bool(result.passed),
                        severity=result.severity,
                        metadata=result.metadata,
                        description=result.description,
                    )
                    # It takes them, and its types do not say so.
                    context.log_event(evaluation)  # type: ignore[arg-type]
            told: dict[str, Any] = {"restored": sum(one.verified for one in found), "of": len(found)}
            for way in drills.Way:
                mine = [one for one in found if one.way is way]
                seconds, size = sum(one.seconds for one in mine), sum(one.bytes for one in mine)
                told |= {f"{way}_seconds": round(seconds, 3), f"{way}_bytes": size}
                told[f"{way}_bytes_per_second"] = round(size / seconds) if seconds else 0
            told["not_restored"] = [one.words for one in found if not one.passed]
            context.add_output_metadata(told)

        without_values(work)

    @dg.job(
        description="Tries out whether tables can be restored, and measures how long that takes.",
        executor_def=dg.in_process_executor,
        resource_defs={STEP_LAUNCHER: step_launcher(settings)},
    )
    def restore_drill() -> None:
        try_restores()

    def check(schema: str) -> dg.AssetChecksDefinition:
        @dg.asset_check(
            name=RECOVERY_TIME,
            asset=dg.AssetKey([schema, RESTORE_DRILLS]),
            description="The latest drills brought every table back: by time travel in under 1 h, from the copy in"
            " under 4 h, from the archive in under 24 h.",
            required_resource_keys={STEP_LAUNCHER},
        )
        def recovery_time() -> dg.AssetCheckResult:
            return without_values(lambda: _judged(drills.standing(open_lake(settings), schema, _now())))

        return recovery_time

    copy_job = copying(Kind.COPY, "Copies what has changed to the other region; kept for 90 days.")
    archive_job = copying(Kind.ARCHIVE, "Archives what has changed; kept for seven years.")
    return dg.Definitions(
        assets=[
            dg.AssetSpec(
                dg.AssetKey([schema, RESTORE_DRILLS]),
                description="Which tables were restored to try it out, how long that took and how many bytes it moved.",
                group_name=group,
            )
            for schema, group in groups.items()
        ],
        asset_checks=[check(schema) for schema in groups],
        jobs=[copy_job, archive_job, restore_from_copy, restore_drill],
        schedules=[
            job_schedule(copy_job, "20 1 * * *", "Copies the tables once a day.", settings),
            job_schedule(archive_job, "20 5 * * 6", "Archives the tables once a week.", settings),
            job_schedule(restore_drill, "20 6 1 * *", "Tries restores out once a month.", settings),
        ],
    )


def _judged(standing: drills.Standing) -> dg.AssetCheckResult:
    return dg.AssetCheckResult(
        passed=not standing.failing,
        severity=dg.AssetCheckSeverity.WARN,
        description="; ".join(standing.failing) or None,
        metadata={
            "slowest": dg.MetadataValue.json(standing.slowest),
            "failing": dg.MetadataValue.json(list(standing.failing)),
            "at": "never" if standing.at is None else standing.at.isoformat(),
        },
    )


def _kind(text: str) -> Kind:
    try:
        return Kind(text)
    except ValueError:
        raise SettingsError(f"{text!r} is no source of copies.", f"write {' or '.join(Kind)}.") from None


def _moment(text: str) -> dt.datetime | None:
    if not text:
        return None
    try:
        moment = dt.datetime.fromisoformat(text)
    except ValueError:
        raise SettingsError(f"{text!r} is no moment.", "write it as 2026-06-15T12:00:00+00:00.") from None
    return moment if moment.tzinfo else moment.replace(tzinfo=dt.UTC)


def _now() -> dt.datetime:
    return dt.datetime.now(dt.UTC)
