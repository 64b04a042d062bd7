"""The job that judges the controls over personal data and writes the report."""

# No postponed annotations here: Dagster reads those of an op's function as objects.

import datetime as dt
from collections.abc import Sequence

import dagster as dg

from bronze_assets.lakehouse import open_lake
from bronze_assets.orchestration.runs import without_values
from bronze_assets.privacy import compliance
from bronze_assets.privacy.keys import existing_ring
from bronze_assets.settings import Settings
from bronze_assets.table import BronzeTable


def compliance_jobs(settings: Settings, tables: Sequence[BronzeTable]) -> list[dg.JobDefinition]:
    """The job `compliance_report`; none where no table holds personal data. A failing control fails no run."""
    if not any(table.has_personal_data for table in tables):
        return []

    @dg.op(description="Judges the controls over personal data; writes HTML and JSON.", out=dg.Out(dg.Nothing))
    def judge_controls(context: dg.OpExecutionContext) -> None:
        def judge() -> None:
            report = compliance.compliance(settings, open_lake(settings), lambda: existing_ring(settings), tables, _now)
            path = report.write(settings.home / compliance.FOLDER)
            for line in report.lines():
                context.log.info(line)
            context.add_output_metadata(
                {"score": report.score, "failing": len(report.failing), "path": dg.MetadataValue.path(path)}
            )

        without_values(judge)

    @dg.job(
        description="Writes the compliance report of personal data; a failing control fails no run.",
        executor_def=dg.in_process_executor,
    )
    def compliance_report() -> None:
        judge_controls()

    return [compliance_report]


def _now() -> dt.datetime:
    return dt.datetime.now(dt.UTC)
