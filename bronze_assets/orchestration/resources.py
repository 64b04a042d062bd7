"""What a run loads with: one workbench, opened at the first table and closed with the run."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import dagster as dg

from bronze_assets import load as walk
from bronze_assets.audit import LoadRecord
from bronze_assets.databricks_job import bill
from bronze_assets.databricks_settings import Launch
from bronze_assets.orchestration.pipes import pipes_loader
from bronze_assets.settings import Settings
from bronze_assets.table import BronzeTable
from bronze_assets.workbench import Options, Run, Workbench

LOGGER = logging.getLogger("bronze_assets")

STEP_LAUNCHER = "pyspark_step_launcher"
"""Key of the resource that runs steps elsewhere, or does nothing (`databricks.step_launcher`)."""

Listener = Callable[[BronzeTable, LoadRecord | Exception], None]
"""Is told of each attempt's end."""


def _nobody(table: BronzeTable, outcome: LoadRecord | Exception) -> None:
    pass


@dataclass
class Loader:
    """Loads tables on one workbench: one Spark session and one source snapshot for all tables of a run.

    Attributes:
        bench: where the loads happen.
        listener: is told of each attempt's end.
    """

    bench: Workbench
    listener: Listener = _nobody

    def load(self, table: BronzeTable, partition: str, run: Run, options: Options) -> LoadRecord:
        """`bronze_assets.load.load` on this workbench."""
        try:
            record = walk.load(table, partition, self.bench, run, options)
        except Exception as error:
            self.listener(table, error)
            raise
        self.listener(table, record)
        return record

    def loads(
        self,
        context: dg.AssetExecutionContext,  # noqa: ARG002  for who loads elsewhere
        table: BronzeTable,
        partitions: Sequence[str],
        run: Run,
        options: Options,
    ) -> Iterator[tuple[LoadRecord, dict[str, Any]]]:
        """Each partition's record, one after the other, and what its load is billed by."""
        for partition in partitions:
            record = self.load(table, partition, run, options)
            yield record, bill(self.bench.settings, lambda: self.bench.session, record)


def loader_resource(settings: Settings) -> dg.ResourceDefinition:
    """The resource `loader` of the assets. Making it opens nothing; neither does a run that loads nothing."""
    if settings.launch in (Launch.PIPES, Launch.SERVERLESS):
        return pipes_loader(settings)

    @dg.resource(description="One Spark session and one source snapshot for all tables of a run.")
    def loader(_: dg.InitResourceContext) -> Iterator[Loader]:
        with Workbench.open(settings, say=LOGGER.info) as bench:
            yield Loader(bench)

    return loader
