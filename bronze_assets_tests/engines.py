"""A warm engine for tests, and processes that use it."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil

from bronze_assets import warm_engine
from bronze_assets.processes import still_alive
from bronze_assets.settings import Settings
from bronze_assets_tests.conftest import CHECKOUT, settings_for

PATIENCE = 120
CLIENT = """
import sys, pathlib
from bronze_assets import engine, warm_engine
from bronze_assets.settings import Settings
said = []
session = engine.start_session(Settings.from_environment(), said.append, warm_engine.connect)
assert said == [], said
target, home = sys.argv[1], pathlib.Path(sys.argv[2])
"""
IMPATIENT = """
import sys
from bronze_assets import warm_engine
warm_engine.IDLE_SECONDS = {}
sys.exit(warm_engine.main())
"""


@dataclasses.dataclass(frozen=True)
class Engine:
    settings: Settings
    process: psutil.Process

    def environment(self) -> dict[str, str]:
        plain = {key: value for key, value in os.environ.items() if not key.startswith("BRONZE_")}
        return plain | {"BRONZE_HOME": str(self.settings.home), "BRONZE_JARS": str(self.settings.jars)}

    @contextlib.contextmanager
    def client(self, code: str, target: Path) -> Iterator[subprocess.Popen[str]]:
        """A process with a session on the engine that runs the code; killed at the end if it still does."""
        process = subprocess.Popen(
            [sys.executable, "-c", CLIENT + code, str(target), str(self.settings.home)],
            cwd=CHECKOUT,
            env=self.environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        try:
            yield process
        finally:
            process.kill()
            process.communicate()

    def told(self) -> dict[str, Any]:
        """What it says of itself."""
        told: dict[str, Any] = json.loads((self.settings.home / "engine" / "engine.json").read_text())
        return told

    @property
    def jvm(self) -> psutil.Process:
        (jvm,) = self.children("java")
        return jvm

    def children(self, name: str) -> list[psutil.Process]:
        return [child for child in self.process.children(recursive=True) if child.name() == name]


def wait_until(path: Path) -> None:
    deadline = time.monotonic() + PATIENCE
    while not path.exists():
        assert time.monotonic() < deadline, f"no {path.name}"
        time.sleep(0.05)


def ready(settings: Settings, *, other_than: Engine | None = None) -> Engine:
    """The home's engine, once its JVM is ready."""
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        told = warm_engine._told(settings)
        if told is not None and told["port"] is not None:
            engine = Engine(settings, psutil.Process(int(told["process"].split(":")[1])))
            if other_than is None or engine.process != other_than.process:
                return engine
        time.sleep(0.1)
    raise AssertionError("no engine")


@contextlib.contextmanager
def started(home: Path, jars: Path, *, idle: float | None = None) -> Iterator[Engine]:
    """An engine of that home, with a JVM that is ready.

    Args:
        idle: seconds after which the JVM ends where nobody uses it.
    """
    settings = settings_for(home, {"BRONZE_JARS": str(jars)})
    child = subprocess.Popen(
        [sys.executable, *(["-m", "bronze_assets.warm_engine"] if idle is None else ["-c", IMPATIENT.format(idle)])],
        cwd=CHECKOUT,
        env=Engine(settings, psutil.Process()).environment() | {"BRONZE_DRIVER_MEMORY": settings.driver_memory},
        stdin=subprocess.DEVNULL,
    )
    family: list[psutil.Process] = []
    try:
        yield ready(settings)
    finally:
        with contextlib.suppress(psutil.NoSuchProcess):
            family = [psutil.Process(child.pid), *psutil.Process(child.pid).children(recursive=True)]
        child.terminate()
        child.wait(PATIENCE)
        assert not still_alive(family, 10)
        assert not (home / "engine" / "engine.json").exists()
