"""What Dagster loads: the only wiring of settings, tables and orchestration."""

from __future__ import annotations

from collections.abc import Sequence

import dagster as dg

from bronze_assets.catalog import TABLES
from bronze_assets.orchestration.access import access_definitions
from bronze_assets.orchestration.alerts import alerts_definitions
from bronze_assets.orchestration.assessment import assessment_definitions
from bronze_assets.orchestration.assets import assets
from bronze_assets.orchestration.capture import capture_definitions
from bronze_assets.orchestration.compliance import compliance_jobs
from bronze_assets.orchestration.copies import copies_definitions
from bronze_assets.orchestration.databricks import step_launcher
from bronze_assets.orchestration.derived import derived_jobs
from bronze_assets.orchestration.erasure import erasure_definitions
from bronze_assets.orchestration.evolution import accept_schema_job
from bronze_assets.orchestration.jobs import cadence_jobs, file_jobs, initial_loads, job_definitions
from bronze_assets.orchestration.kpis import kpis_definitions
from bronze_assets.orchestration.maintenance import maintenance_definitions
from bronze_assets.orchestration.privacy import privacy_jobs
from bronze_assets.orchestration.quarantine import replay_job
from bronze_assets.orchestration.recovery import recovery_definitions
from bronze_assets.orchestration.resources import STEP_LAUNCHER, loader_resource
from bronze_assets.orchestration.retention import retention_definitions
from bronze_assets.orchestration.schedules import schedule
from bronze_assets.orchestration.sensors import file_sensor
from bronze_assets.settings import Settings
from bronze_assets.table import BronzeTable


def build_definitions(settings: Settings, tables: Sequence[BronzeTable]) -> dg.Definitions:
    """Everything Dagster knows about these tables. Starts no JVM and opens no connection.

    Raises:
        DeclarationError: a table's declaration cannot be used; names the table.
    """
    by_cadence = cadence_jobs(tables)
    from_files = file_jobs(tables, settings)
    # What files bring needs no schedule: their sensor sees them.
    fed = {table for job in from_files for table in job.tables}
    scheduled = [job for job in by_cadence if not fed.issuperset(job.tables)]
    # The ledger lies where this process cannot read it: the loads themselves look for files there.
    watched = from_files if settings.databricks is None else []
    return dg.Definitions.merge(
        dg.Definitions(
            assets=assets(settings, tables),
            schedules=[
                *(schedule(job, settings) for job in scheduled),
                *(schedule(job, settings, looks_for_files=True) for job in from_files if job not in watched),
            ],
            sensors=[file_sensor(job, settings) for job in watched],
            resources={"loader": loader_resource(settings), STEP_LAUNCHER: step_launcher(settings)},
            # One JVM a run: all its tables share one Spark session.
            executor=dg.in_process_executor,
        ),
        job_definitions([*initial_loads(tables), *by_cadence, *from_files]),
        capture_definitions(settings, tables),
        dg.Definitions(jobs=[replay_job(settings, tables)]),
        dg.Definitions(jobs=[accept_schema_job(settings, tables)]) if from_files else dg.Definitions(),
        dg.Definitions(jobs=[*privacy_jobs(settings, tables), *derived_jobs(settings, tables)]),
        erasure_definitions(settings, tables),
        dg.Definitions(jobs=compliance_jobs(settings, tables)),
        access_definitions(settings, tables),
        alerts_definitions(settings, tables),
        kpis_definitions(settings, tables),
        maintenance_definitions(settings, tables),
        copies_definitions(settings, tables),
        retention_definitions(settings, tables),
        recovery_definitions(settings, tables),
        assessment_definitions(settings, tables),
    )


defs = build_definitions(Settings.from_environment(), TABLES)
