"""What loads of one process share, and what a caller may ask of one."""

from __future__ import annotations

import datetime as dt
import functools
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from zoneinfo import ZoneInfo

from pyspark.sql import SparkSession

from bronze_assets import engine, warm_engine
from bronze_assets.errors import LoadRefused
from bronze_assets.lakehouse import open_lake
from bronze_assets.privacy.keys import KeyRing, key_ring
from bronze_assets.settings import CaptureMode, Settings
from bronze_assets.sources.landing import LandingZone
from bronze_assets.sources.postgres import PostgresSource
from bronze_assets.table import Cadence
from bronze_assets.vaults import resolve_secret

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Options:
    """What a caller may ask of one load.

    Attributes:
        dry_run: read, judge and count, but write nothing.
        full_compare: compare every value with the latest version of its row, not the hash alone.
        max_rows: refuse, before anything is written, when the source holds more rows than this.
        read_connections: parallel JDBC reads; None takes the settings' number.
        snapshot: compare a captured table with a snapshot of the source, as a table is that is not captured.
        reload: load all files of the partition again, in the place of the rows that they brought.
    """

    dry_run: bool = False
    full_compare: bool = False
    max_rows: int | None = None
    read_connections: int | None = None
    snapshot: bool = False
    reload: bool = False


@dataclass(frozen=True)
class Run:
    """Who loads: the Dagster run and what started it (manual, schedule, sensor, backfill, cli)."""

    id: str
    trigger: str


class Workbench:
    """What loads of one process share: session, source, lake, settings and clock. All start at first use.

    Args:
        settings: of this process.
        clock: gives the present moment, in UTC.
        say: shows progress of long steps to a person.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        clock: Callable[[], dt.datetime] = lambda: dt.datetime.now(dt.UTC),
        say: Callable[[str], None] = logger.info,
    ) -> None:
        self.settings = settings
        self.clock = clock
        self.lake = open_lake(settings, lambda: self.session)
        self.say = say

    @classmethod
    @contextmanager
    def open(cls, settings: Settings, *, say: Callable[[str], None] = logger.info) -> Iterator[Workbench]:
        """A workbench whose snapshot is closed at the end; the Spark session stays for the process."""
        bench = cls(settings, say=say)
        try:
            yield bench
        finally:
            bench.close()

    @functools.cached_property
    def session(self) -> SparkSession:
        """The process's Spark session: on the home's warm engine if it has one, else in a JVM of this process."""
        return engine.start_session(self.settings, self.say, warm_engine.connect)

    @functools.cached_property
    def source(self) -> PostgresSource:
        """The source; connects when its snapshot is first asked for.

        Raises:
            LoadRefused: there is no JDBC where this runs.
        """
        if self.settings.serverless:
            raise LoadRefused(
                "serverless compute has no JDBC, by which a database is read.",
                "set databricks.launch to step_launcher or pipes, with a cluster, for tables of a database.",
            )
        url = resolve_secret(self.settings.source_url, meaning="BRONZE_SOURCE_URL", host=self.settings.databricks_host)
        mode = self.settings.capture
        return PostgresSource(
            url, self.clock, slot_point=mode is not CaptureMode.OFF, by_change=mode is CaptureMode.EXTERNAL
        )

    @functools.cached_property
    def zone(self) -> LandingZone:
        """The landing zone and the archive."""
        return LandingZone(self.settings.landing, self.settings.archive, lambda: self.ring)

    @functools.cached_property
    def ring(self) -> KeyRing:
        """The master key; opened for what is protected only."""
        return key_ring(self.settings)

    def business_date(self, moment: dt.datetime) -> dt.date:
        """The date of a moment in the business time zone."""
        return moment.astimezone(ZoneInfo(self.settings.business_time_zone)).date()

    def moment(self) -> dt.datetime:
        """The moment that a load speaks of: that of the process's snapshot, else now.

        All tables of a run belong to the partition in which its snapshot was taken, also those whose turn comes after
        the hour or the day has ended.
        """
        taken = self.source.taken if "source" in self.__dict__ else None
        return taken or self.clock()

    def close(self) -> None:
        """Let the source's snapshot go."""
        if "source" in self.__dict__:
            self.source.close()


def current_partition(cadence: Cadence, now: dt.datetime) -> str:
    """The partition key of the window that `now` lies in."""
    return now.strftime("%Y-%m-%d-%H:00" if cadence is Cadence.HOURLY else "%Y-%m-%d")
