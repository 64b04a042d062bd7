"""The jobs that remove what has been kept long enough, dry run first, and that place and release legal holds.

The config of `legal_hold` names keys of rows, which are no personal data by themselves.
"""

# No postponed annotations here: Dagster reads those of an op's function as objects.

import datetime as dt
from collections.abc import Callable, Sequence
from enum import Enum

import dagster as dg
from pydantic import Field

from bronze_assets.errors import RetentionRefused
from bronze_assets.lakehouse import open_lake
from bronze_assets.operations import retention
from bronze_assets.orchestration.databricks import step_launcher
from bronze_assets.orchestration.resources import LOGGER, STEP_LAUNCHER
from bronze_assets.orchestration.runs import without_values
from bronze_assets.orchestration.schedules import job_schedule
from bronze_assets.privacy import holds
from bronze_assets.settings import Settings
from bronze_assets.table import BronzeTable
from bronze_assets.workbench import Workbench


class RetentionConfig(dg.Config):
    """What is to be looked at, and whether it is to go."""

    tables: list[str] = Field(default=[], description="Names of bronze tables; all by default.")
    dry_run: bool = Field(
        default=True,
        description="Only say what is due. Removing needs a dry run of the same tables in the last"
        f" {retention.DRY_RUN_DAYS} days.",
    )
    by: str = Field(default="apply_retention", description="Who asked for it, for the log.")


class Action(Enum):
    """What is to become of a hold."""

    list = "list"
    place = "place"
    release = "release"


class HoldConfig(dg.Config):
    """Which hold, and what is to become of it."""

    action: Action = Field(default=Action.list, description="place, release or list.")
    table: str = Field(default="", description="Name of the bronze table; for list, all by default.")
    key: str = Field(
        default="", description=f"Key of a row, or {holds.ALL} for all of the table; for a release also a hold's id."
    )
    reason: str = Field(default="", description="Which claim, or why it is over; not a person's name.")
    by: str = Field(default="", description="Who asked for it, for the record.")


def _now() -> dt.datetime:
    return dt.datetime.now(dt.UTC)


def retention_definitions(
    settings: Settings, tables: Sequence[BronzeTable], clock: Callable[[], dt.datetime] = _now
) -> dg.Definitions:
    """The jobs `apply_retention` and `legal_hold`, and the monthly dry run `retention_report_schedule`: running where
    the environment is local, stopped elsewhere.

    Args:
        clock: gives the present moment, in UTC.
    """

    def bench() -> Workbench:
        return Workbench(settings, clock=clock, say=LOGGER.info)

    @dg.op(
        description="Says what each table has kept for longer than it declares, or removes it.",
        out=dg.Out(dg.Nothing),
        required_resource_keys={STEP_LAUNCHER},
    )
    def retain(context: dg.OpExecutionContext, config: RetentionConfig) -> None:
        def work() -> list[retention.Due]:
            chosen = retention.selected(config.tables, tables)
            act = retention.report if config.dry_run else retention.remove
            return act(bench(), chosen, who=config.by, run_id=context.run_id)

        found = without_values(work)
        for line in (line for one in found for line in one.lines()):
            context.log.info(line)
        layers = [layer for one in found for layer in one.layers]
        context.add_output_metadata(
            {
                "dry_run": config.dry_run,
                "rows": sum(layer.rows or 0 for layer in layers),
                "files": sum(layer.files or 0 for layer in layers),
                "held": sum(layer.held for layer in layers),
                "would_go" if config.dry_run else "removed": dg.MetadataValue.table(_records(found), _SCHEMA),
            }
        )

    @dg.job(
        description="Removes what tables have kept for longer than they declare; a dry run by default. Safe to run"
        " again.",
        executor_def=dg.in_process_executor,
        resource_defs={STEP_LAUNCHER: step_launcher(settings)},
    )
    def apply_retention() -> None:
        retain()

    @dg.op(
        description="Lists, places or releases legal holds.",
        out=dg.Out(dg.Nothing),
        required_resource_keys={STEP_LAUNCHER},
    )
    def keep_holds(context: dg.OpExecutionContext, config: HoldConfig) -> None:
        def change() -> list[str]:
            chosen = retention.selected([config.table] if config.table else [], tables)
            if config.action is not Action.list:
                if not config.table:
                    raise RetentionRefused("no table is named.", "name the one that the hold is on.")
                act = holds.place if config.action is Action.place else holds.release
                (table,) = chosen
                hold = act(bench(), table, config.key, reason=config.reason, who=config.by, run_id=context.run_id)
                context.log.info(f"{config.action.value}: {hold.words}")
            lake = open_lake(settings)
            return [one.words for table in chosen for one in holds.in_force(lake, table)]

        lines = without_values(change)
        for line in lines or ["No legal hold is in force."]:
            context.log.info(line)
        context.add_output_metadata({"in_force": len(lines), "holds": lines})

    @dg.job(
        description="Lists, places or releases legal holds, which keep rows and files from retention and erasures.",
        executor_def=dg.in_process_executor,
        resource_defs={STEP_LAUNCHER: step_launcher(settings)},
    )
    def legal_hold() -> None:
        keep_holds()

    monthly = job_schedule(
        apply_retention,
        "0 4 1 * *",
        "Says once a month what would be removed; a person removes it then.",
        settings,
        name="retention_report_schedule",
    )
    return dg.Definitions(jobs=[apply_retention, legal_hold], schedules=[monthly])


_SCHEMA = dg.TableSchema(
    [
        dg.TableColumn(name, kind)
        for name, kind in {
            "table": "string",
            "layer": "string",
            "days": "int",
            "rows": "int",
            "files": "int",
            "MB": "float",
            "oldest": "string",
            "newest": "string",
            "held": "int",
            "needed": "int",
        }.items()
    ]
)


def _records(found: Sequence[retention.Due]) -> list[dg.TableRecord]:
    """One line for each layer."""

    def day(moment: dt.datetime | None) -> str:
        return "" if moment is None else f"{moment:%F}"

    return [
        dg.TableRecord(
            {
                "table": one.table,
                "layer": layer.layer.value,
                "days": layer.days,
                "rows": layer.rows or 0,
                "files": layer.files or 0,
                "MB": round((layer.bytes or 0) / 2**20, 1),
                "oldest": day(layer.oldest),
                "newest": day(layer.newest),
                "held": layer.held,
                "needed": layer.needed,
            }
        )
        for one in found
        for layer in one.layers
    ]
