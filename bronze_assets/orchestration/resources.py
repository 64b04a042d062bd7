"""What a run loads with: one workbench, opened at the first table and closed with the run."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import dagster as dg

from bronze_assets import load as walk
from bronze_assets.audit import LoadRecord
from bronze_assets.settings import Settings
from bronze_assets.table import BronzeTable
from bronze_assets.workbench import Options, Run, Workbench

LOGGER = logging.getLogger("bronze_assets")

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


def loader_resource(settings: Settings) -> dg.ResourceDefinition:
    """The resource `loader` of the assets. Making it opens nothing; neither does a run that loads nothing."""

    @dg.resource(description="One Spark session and one source snapshot for all tables of a run.")
    def loader(_: dg.InitResourceContext) -> Iterator[Loader]:
        with Workbench.open(settings, say=LOGGER.info) as bench:
            yield Loader(bench)

    return loader
