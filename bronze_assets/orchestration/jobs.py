"""Jobs over the tables. A Dagster job has one partitioning, so hourly tables have jobs of their own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import dagster as dg

from bronze_assets.orchestration.assets import asset_key
from bronze_assets.orchestration.runs import SOURCE_TAG
from bronze_assets.settings import CaptureMode, Settings
from bronze_assets.table import BronzeTable, Cadence


@dataclass(frozen=True)
class LoadJob:
    """A job that loads one partition of some tables, in one run.

    Attributes:
        name: Dagster's name of it.
        cadence: of its tables; for several, one that has their partitions.
    """

    name: str
    cadence: Cadence
    description: str
    tables: tuple[BronzeTable, ...]


def file_jobs(tables: Sequence[BronzeTable], settings: Settings) -> list[LoadJob]:
    """For each schema with tables that files are loaded into, the job that its sensor starts."""
    captured = settings.capture is not CaptureMode.OFF
    fed = [t for t in tables if t.files is not None or (captured and t.feed is not None)]
    return [
        LoadJob(
            f"load_{schema}_files",
            Cadence.STREAMING,
            f"Loads the files of {schema} that have arrived, in one run.",
            tuple(table for table in fed if table.schema == schema),
        )
        for schema in dict.fromkeys(table.schema for table in fed)
    ]


def cadence_jobs(tables: Sequence[BronzeTable]) -> list[LoadJob]:
    """For each cadence that has tables with a database as their source, the job that loads them."""
    tables = [table for table in tables if table.files is None]
    jobs = [
        LoadJob(
            f"load_{cadence.value}_tables",
            cadence,
            f"Loads the {cadence.value} tables, in one run from one source snapshot.",
            tuple(table for table in tables if table.cadence is cadence),
        )
        for cadence in Cadence
    ]
    return [job for job in jobs if job.tables]


def initial_loads(tables: Sequence[BronzeTable]) -> list[LoadJob]:
    """The first load of all that a database holds: `initial_load` for daily partitions, `initial_load_hourly` for
    hourly ones.
    """
    tables = [table for table in tables if table.files is None]
    jobs = [
        LoadJob(
            name,
            cadence,
            f"First load of all tables with {cadence.value} partitions; start it for the latest partition.",
            tuple(table for table in tables if (table.cadence is Cadence.HOURLY) is (cadence is Cadence.HOURLY)),
        )
        for name, cadence in (("initial_load", Cadence.DAILY), ("initial_load_hourly", Cadence.HOURLY))
    ]
    return [job for job in jobs if job.tables]


def job_definitions(jobs: Sequence[LoadJob]) -> dg.Definitions:
    """The jobs as Dagster knows them."""
    return dg.Definitions(
        jobs=[
            dg.define_asset_job(
                job.name,
                selection=dg.AssetSelection.assets(*(asset_key(table) for table in job.tables)),
                description=job.description,
                tags={SOURCE_TAG: job.tables[0].source_system},
            )
            for job in jobs
        ]
    )
