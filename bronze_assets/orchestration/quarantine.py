"""The job with which quarantined rows are listed, replayed or dismissed."""

# No postponed annotations here: Dagster reads those of an op's function as objects.

import datetime as dt
import logging
from collections.abc import Sequence
from pathlib import Path

import dagster as dg
from pydantic import Field

from bronze_assets import quarantine
from bronze_assets.audit import LoadRecord
from bronze_assets.errors import LoadRefused
from bronze_assets.orchestration.databricks import step_launcher
from bronze_assets.orchestration.resources import STEP_LAUNCHER
from bronze_assets.orchestration.runs import without_values
from bronze_assets.settings import Settings
from bronze_assets.table import BronzeTable
from bronze_assets.workbench import Run, Workbench

LOGGER = logging.getLogger(__name__)


class ReplayConfig(dg.Config):
    """Which open rows of which quarantine, and what is to become of them."""

    table: str = Field(description="Name of the bronze table.")
    rule: str = Field(default="", description="Only rows that broke this rule.")
    batch: str = Field(default="", description="Only rows that this batch brought or saw last.")
    older_than: str = Field(default="", description="Only rows first seen so long ago: 30m, 12h, 7d, 2w.")
    newer_than: str = Field(default="", description="Only rows first seen since then.")
    key: str = Field(default="", description="Only rows of this key; several values separated by ', '.")
    dry_run: bool = Field(default=False, description="Only say what would happen.")
    file: str = Field(default="", description="JSON or CSV of whole rows, in the place of those of their keys.")
    dismiss: bool = Field(default=False, description="Do not replay the rows: they are not to be loaded.")
    everything: bool = Field(default=False, description="Dismiss all open rows: has to be said without a filter.")
    reason: str = Field(default="", description="Why they are dismissed; not a value of a row.")
    by: str = Field(default="", description="Who dismisses them.")


def replay_job(settings: Settings, tables: Sequence[BronzeTable]) -> dg.JobDefinition:
    """The job `replay_quarantine`; its log says counts, and never a value."""
    by_name = {table.name: table for table in tables}

    @dg.op(
        description="Replays or dismisses open rows of a table's quarantine.",
        out=dg.Out(dg.Nothing),
        required_resource_keys={STEP_LAUNCHER},
    )
    def replay_rows(context: dg.OpExecutionContext, config: ReplayConfig) -> None:
        def settle() -> None:
            table = by_name.get(config.table)
            if table is None:
                raise LoadRefused(f"{config.table!r} is no table.", f"use one of {', '.join(by_name)}.")
            if config.dismiss and (config.dry_run or config.file):
                raise LoadRefused(
                    "a dismissal has no `file` and no `dry_run`.", "leave them out, or `dismiss`.", table=table.name
                )
            selection = quarantine.Selection(
                rule=config.rule or None,
                batch=config.batch or None,
                older_than=quarantine.age(config.older_than) if config.older_than else None,
                newer_than=quarantine.age(config.newer_than) if config.newer_than else None,
                key=config.key or None,
            )
            run = Run(context.run_id, "manual")
            with Workbench.open(settings, say=LOGGER.info) as bench:
                for line in quarantine.lines_of(
                    quarantine.summary(bench.lake, table, selection, dt.datetime.now(dt.UTC)), table
                ):
                    context.log.info(line)
                if config.dismiss:
                    rows = quarantine.dismiss(
                        bench,
                        table,
                        selection,
                        run,
                        reason=config.reason,
                        who=config.by,
                        everything=config.everything,
                    )
                    context.log.info(f"{table.name}: {rows:,} rows dismissed.")
                    return
                corrected = Path(config.file) if config.file else None
                record = quarantine.replay(bench, table, selection, run, corrected=corrected, dry_run=config.dry_run)
            context.log.info(quarantine.told_of(record))
            context.add_output_metadata(_numbers(record))

        without_values(settle)

    @dg.job(
        description="Loads quarantined rows that pass the rules of now, or dismisses them; safe to run again.",
        executor_def=dg.in_process_executor,
        resource_defs={STEP_LAUNCHER: step_launcher(settings)},
    )
    def replay_quarantine() -> None:
        replay_rows()

    return replay_quarantine


def _numbers(record: LoadRecord) -> dict[str, int | bool | str]:
    names = ("read", "loaded", "quarantined", "duplicates", "unchanged", "erased", "deleted", "dry_run", "batch_id")
    return {name: getattr(record, name) for name in names}
