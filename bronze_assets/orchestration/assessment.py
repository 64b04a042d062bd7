"""The job that assesses the quality of tables once a month, and its schedule.

Measuring may run on a cluster, whose disk goes with it: what was measured comes back as metadata, and the report is
written beside the other reports of this host.
"""

# No postponed annotations here: Dagster reads those of an op's function as objects.

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import dagster as dg
from pydantic import Field

from bronze_assets import runbook
from bronze_assets.errors import LoadRefused
from bronze_assets.operations import assessment_report
from bronze_assets.operations.assessment import Assessed, Level, measure
from bronze_assets.operations.assessment_facts import Measured
from bronze_assets.orchestration.databricks import step_launcher
from bronze_assets.orchestration.resources import LOGGER, STEP_LAUNCHER
from bronze_assets.orchestration.runs import without_values
from bronze_assets.orchestration.schedules import job_schedule
from bronze_assets.settings import Settings
from bronze_assets.table import BronzeTable
from bronze_assets.workbench import Workbench

JOB = "assess_quality"
CHECK = "assessment"
_MEASURED = "measured"


class AssessConfig(dg.Config):
    """What is assessed."""

    tables: list[str] = Field(default=[], description="Names of bronze tables, e.g. bz_orders; all where empty.")


def assessment_definitions(settings: Settings, tables: Sequence[BronzeTable]) -> dg.Definitions:
    """The job `assess_quality` and its monthly schedule: running where the environment is local, stopped elsewhere. A
    finding fails no run: it fails the check `assessment` of its table.
    """

    @dg.op(
        description="Looks at every row: our rules, pandera's own validation, a profile of each column.",
        out=dg.Out(dg.Nothing),
        required_resource_keys={STEP_LAUNCHER},
    )
    def measure_quality(context: dg.OpExecutionContext, config: AssessConfig) -> None:
        def found() -> list[dict[str, Any]]:
            wanted = _wanted(config.tables, tables)
            with Workbench.open(settings, say=LOGGER.info) as bench:
                return [measure(bench, table).to_dict() for table in wanted]

        context.add_output_metadata({_MEASURED: dg.MetadataValue.json(without_values(found))})

    @dg.op(
        description="Compares with the last assessment; writes HTML and JSON, and a check for each table.",
        ins={"measured": dg.In(dg.Nothing)},
        out=dg.Out(dg.Nothing),
    )
    def report_quality(context: dg.OpExecutionContext) -> Iterator[dg.AssetCheckEvaluation]:
        measured = _measured(context.instance, context.run_id)
        pages, assessed = without_values(lambda: _report(settings.home / assessment_report.FOLDER, measured))
        for one in assessed:
            yield _check(one, pages[one.measured.schema])
            for finding in one.findings:
                context.log.info(f"{one.measured.table}: {finding.level}: {finding.words}")
        context.add_output_metadata(
            {
                "tables": len(assessed),
                "failing": sum(not one.passed for one in assessed),
                **{f"path_{schema}": dg.MetadataValue.path(page) for schema, page in pages.items()},
            }
        )

    @dg.job(
        name=JOB,
        description="Assesses the quality of whole tables; a finding fails no run.",
        executor_def=dg.in_process_executor,
        resource_defs={STEP_LAUNCHER: step_launcher(settings)},
    )
    def assess_quality() -> None:
        report_quality(measure_quality())

    monthly = job_schedule(assess_quality, "5 5 1 * *", "Assesses all tables on the first of each month.", settings)
    return dg.Definitions(jobs=[assess_quality], schedules=[monthly])


def _wanted(names: Sequence[str], tables: Sequence[BronzeTable]) -> list[BronzeTable]:
    by_name = {table.name: table for table in tables}
    unknown = [name for name in names if name not in by_name]
    if unknown:
        raise LoadRefused(f"{unknown[0]!r} is no table; nothing was assessed.", f"use some of {', '.join(by_name)}.")
    return [by_name[name] for name in dict.fromkeys(names)] or list(tables)


def _measured(instance: dg.DagsterInstance, run_id: str) -> list[Measured]:
    entries = [
        record.event_log_entry.dagster_event.step_output_data.metadata[_MEASURED].value
        for record in instance.get_records_for_run(run_id, of_type=dg.DagsterEventType.STEP_OUTPUT).records
        if record.event_log_entry.dagster_event is not None
        and _MEASURED in record.event_log_entry.dagster_event.step_output_data.metadata
    ]
    return [Measured.from_dict(one) for one in entries[-1]]  # type: ignore[union-attr,arg-type]


def _report(folder: Path, measured: Sequence[Measured]) -> tuple[dict[str, Path], list[Assessed]]:
    assessed = assessment_report.judged(folder, measured)
    pages = {}
    for schema in dict.fromkeys(one.schema for one in measured):
        mine = [one for one in assessed if one.measured.schema == schema]
        pages[schema] = assessment_report.write(folder, schema, assessment_report.month_of(mine[0].measured.at), mine)
    return pages, assessed


def _check(one: Assessed, page: Path) -> dg.AssetCheckEvaluation:
    worst = [finding for finding in one.findings if finding.level is not Level.INFO]
    return dg.AssetCheckEvaluation(
        asset_key=dg.AssetKey([one.measured.schema, one.measured.table]),
        check_name=CHECK,
        passed=one.passed,
        severity=dg.AssetCheckSeverity.WARN,
        description=" ".join(finding.words for finding in worst[:5]) or None,
        metadata={
            "level": worst[0].level.value if worst else "ok",
            "count": len(worst),
            "rows": one.measured.rows or 0,
            "path": dg.MetadataValue.path(page),
            "page": dg.MetadataValue.url(page.as_uri()),
            "runbook": runbook.link(CHECK),
        },
    )
