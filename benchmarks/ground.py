"""The ground that scenarios stand on: a PostgreSQL server, Spark, lakes of their own, and a load with a clock."""

from __future__ import annotations

import dataclasses
import functools
import json
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bronze_assets import engine
from bronze_assets.audit import LoadRecord
from bronze_assets.demo import postgres
from bronze_assets.load import load
from bronze_assets.settings import CaptureMode, Settings
from bronze_assets.table import BronzeTable
from bronze_assets.workbench import Run, Workbench, current_partition

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

CHECKOUT = Path(__file__).parents[1]
RIVALS_PYTHON = CHECKOUT / ".venv-bench" / "bin" / "python"


@dataclass(frozen=True)
class Sizes:
    """How much there is of everything; the numbers are those of the goals.

    Attributes:
        orders, customers, judged: rows of full loads, of protected ones, and of those with many rules.
        changed: rows of an incremental load.
        growth: rows of loads that are compared with the first.
        files, rows_of_file: small files.
        listed: loaded files that a sensor looks at.
        sensor_gigabytes: a day of sensor data.
        aged_rows, commits, partitions: of a table that has been loaded for long.
        reduced: whether only what tells a gross regression is measured.
    """

    orders: int = 3_000_000
    customers: int = 1_000_000
    judged: int = 1_000_000
    changed: int = 10_000
    growth: tuple[int, ...] = (1_000_000, 3_000_000, 10_000_000)
    files: int = 5_000
    rows_of_file: int = 100
    listed: int = 100_000
    sensor_gigabytes: float = 10.0
    aged_rows: int = 300_000
    commits: int = 1_000
    partitions: int = 300
    reduced: bool = False

    def scaled(self, factor: float) -> Sizes:
        """That part of everything but the rows of a file."""

        def part(number: int) -> int:
            return max(10, round(number * factor))

        counts = ("orders", "customers", "judged", "changed", "files", "listed", "aged_rows", "commits", "partitions")
        parts: dict[str, Any] = {name: part(getattr(self, name)) for name in counts}
        return dataclasses.replace(
            self,
            growth=tuple(map(part, self.growth)),
            sensor_gigabytes=self.sensor_gigabytes * factor,
            **parts,
        )


QUICK = Sizes(orders=300_000, customers=50_000, judged=200_000, files=500, reduced=True)


class Ground:
    """What scenarios share. Server, Spark and rivals start at first use.

    Args:
        settings: of the user; its jars are used, and a folder of its home.

    Attributes:
        settings: of the bench's own home, which goes at the end.
    """

    def __init__(self, settings: Settings, sizes: Sizes, say: Callable[[str], None], stack: ExitStack) -> None:
        home = settings.home / "bench" / "work"
        self.settings = dataclasses.replace(
            settings,
            home=home,
            lake=home / "lake",
            landing=str(home / "landing"),
            archive=str(home / "archive"),
            source_url=f"file:{home / 'postgres' / 'source_url'}",
            master_key=f"file:{home / 'keys' / 'master.key'}",
            capture=CaptureMode.OFF,
            # Those of the user's home: this one goes.
            jars=engine.ensure_jars(settings, say)[0].parent,
        )
        self.sizes = sizes
        self.say = say
        self._stack = stack

    @classmethod
    @contextmanager
    def open(cls, settings: Settings, sizes: Sizes, say: Callable[[str], None]) -> Iterator[Ground]:
        """A ground that is cleared at the end; the Spark session stays for the process."""
        with ExitStack() as stack:
            ground = cls(settings, sizes, say, stack)
            ground._clear()
            stack.callback(ground._clear)
            ground.settings.home.mkdir(parents=True)
            yield ground

    def _clear(self) -> None:
        postgres.stop(self.settings)
        postgres.remove(self.settings)
        shutil.rmtree(self.settings.home, ignore_errors=True)

    @functools.cached_property
    def url(self) -> str:
        """The URL of the PostgreSQL database."""
        return postgres.start(self.settings, self.say)

    @property
    def session(self) -> SparkSession:
        """The Spark session."""
        return self.workbench("lake").session

    @functools.cached_property
    def rivals(self) -> Rivals:
        """What others do with the same rows."""
        return self._stack.enter_context(Rivals.started(self.settings.home / "rivals"))

    def workbench(self, lake: str, capture: CaptureMode = CaptureMode.OFF) -> Workbench:
        """A workbench with a lake, a landing zone and an archive of that name."""
        home = self.settings.home
        return Workbench(
            dataclasses.replace(
                self.settings,
                lake=home / lake,
                landing=str(home / f"{lake}-landing"),
                archive=str(home / f"{lake}-archive"),
                capture=capture,
            ),
            say=self.say,
        )

    def execute(self, *statements: str) -> None:
        """Run SQL at the source, each statement in a transaction of its own."""
        with postgres.connect(self.url) as connection, connection.cursor() as cursor:
            for statement in statements:
                cursor.execute(statement)

    def forget(self, *tables: str) -> None:
        """Remove source tables, and every lake."""
        if tables:
            self.execute(f"drop table if exists {', '.join(tables)}")
        for place in self.settings.home.glob("lake*"):
            shutil.rmtree(place)


def fresh(bench: Workbench) -> None:
    """Remove the lake, the landing zone and the archive."""
    for place in (bench.settings.lake, Path(bench.settings.landing), Path(bench.settings.archive)):
        shutil.rmtree(place, ignore_errors=True)


def timed_load(bench: Workbench, table: BronzeTable) -> tuple[float, LoadRecord]:
    """Seconds of a load from a snapshot that is taken for it, and what it did."""
    bench.close()
    began = time.perf_counter()
    record = load(table, current_partition(table.cadence, bench.clock()), bench, Run("bench", "manual"))
    seconds = time.perf_counter() - began
    bench.close()
    return seconds, record


def loads_anew(bench: Workbench, table: BronzeTable, rows: int) -> Callable[[], float]:
    """A side: the load of that many rows into a fresh lake."""

    def run() -> float:
        fresh(bench)
        seconds, record = timed_load(bench, table)
        assert (record.read, record.loaded) == (rows, rows), record
        return seconds

    return run


class Rivals:
    """The process of `benchmarks.rival`, in its own environment."""

    def __init__(self, process: subprocess.Popen[str], folder: Path) -> None:
        self._process = process
        self._folder = folder

    @classmethod
    @contextmanager
    def started(cls, folder: Path) -> Iterator[Rivals]:
        """The process, until the block ends."""
        folder.mkdir(parents=True, exist_ok=True)
        # Nothing of theirs goes to anybody, or into the user's home.
        own = {"PATH": "/usr/bin:/bin", "HOME": str(folder), "TZ": "UTC"}
        own |= {
            "RUNTIME__DLTHUB_TELEMETRY": "false",
            "RUNTIME__LOG_LEVEL": "ERROR",
            "DLT_DATA_DIR": str(folder / "dlt"),
        }
        with (folder / "stderr").open("w") as log:
            process = subprocess.Popen(
                [str(RIVALS_PYTHON), str(CHECKOUT / "benchmarks" / "rival.py")],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                env=own,
                cwd=folder,
            )
        try:
            yield cls(process, folder)
        finally:
            assert process.stdin is not None
            process.stdin.close()
            process.wait(60)

    def pid(self) -> int:
        """Of the process."""
        return self._process.pid

    def copy(self, name: str, url: str, table: BronzeTable, rows: int) -> Callable[[], float]:
        """A side: the copy of a source table of that many rows into a fresh Delta table, partitioned as ours."""
        schema, source = table.source.lower().split(".")
        asked = {"copy": name, "url": url, "schema": schema, "table": source, "target": str(self._folder / "target")}

        def run() -> float:
            answer = self._ask(asked | {"partition_by": table.layout.partition_by or ""})
            assert answer["rows"] == rows, f"{name} has {answer['rows']:,} of {rows:,} rows"
            return float(answer["seconds"])

        return run

    def _ask(self, asked: dict[str, str]) -> dict[str, Any]:
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None
        assert stdout is not None
        stdin.write(json.dumps(asked) + "\n")
        stdin.flush()
        line = stdout.readline()
        # It tells of an error without the URL, which holds a password.
        answer: dict[str, Any] = json.loads(line) if line else {"error": "the process has ended"}
        if "error" in answer:
            raise RuntimeError(f"{asked['copy']}: {answer['error'].replace(asked['url'], '…')}")
        return answer
