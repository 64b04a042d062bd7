"""How tests deploy: the wheel of this checkout, or of a changed copy, and the processes that compose would start."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psutil
import yaml

from bronze_assets.processes import kill_after
from bronze_assets_tests.conftest import CHECKOUT
from bronze_assets_tests.dagster_client import Dagster, answers, until

DEPLOY = CHECKOUT / "deploy"
# What the image's executables are, without an installation of their own.
_EXECUTABLES = {
    "dagster": ["-m", "dagster"],
    "dagster-daemon": ["-m", "dagster._daemon"],
    "dagster-webserver": ["-m", "dagster_webserver"],
    "python": [],
}
PATIENCE = 180


def copy_of_checkout(folder: Path) -> Path:
    """What a wheel is built from, where a build may leave things behind."""
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        folder.mkdir(exist_ok=True)
        shutil.copy(CHECKOUT / name, folder / name)
    shutil.copytree(CHECKOUT / "bronze_assets", folder / "bronze_assets", ignore=shutil.ignore_patterns("__pycache__"))
    return folder


def build_wheel(source: Path, output: Path) -> Path:
    """The wheel of a copy of the checkout."""
    _pip("wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(output), str(source))
    (wheel,) = output.glob("*.whl")
    return wheel


def install_wheel(wheel: Path, folder: Path) -> Path:
    """Unpack a wheel into a folder for PYTHONPATH; what it depends on comes from this environment."""
    _pip("install", "--no-deps", "--no-index", "--target", str(folder), str(wheel))
    return folder


def _pip(*arguments: str) -> None:
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet", *arguments]
    subprocess.run(command, check=True, cwd="/", stdin=subprocess.DEVNULL)


def run_python(site: Path, script: str, environment: Mapping[str, str] = {}) -> str:
    """What a script prints that an installation runs, and none of this checkout's code."""
    done = subprocess.run(
        [sys.executable, "-c", script],
        env=_clean() | {"PYTHONPATH": str(site)} | dict(environment),
        cwd=site,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return str(done.stdout)


def _clean() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith(("BRONZE_", "DAGSTER_"))}


def compose() -> dict[str, Any]:
    """compose.yaml."""
    found: dict[str, Any] = yaml.safe_load((DEPLOY / "dagster" / "compose.yaml").read_text())
    return found


def free_port() -> int:
    """A port on which nobody listens now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@dataclass
class Deployment:
    """The processes of compose.yaml with its own commands, health checks and dagster.yaml, on this machine.

    Attributes:
        site: where the wheel is installed.
        folder: stands for the containers' volumes, home and /opt/dagster.
        storage: URL of the PostgreSQL database for Dagster.
        module: loaded by the code server in place of `bronze_assets.definitions`.
    """

    site: Path
    folder: Path
    storage: str
    module: str = "bronze_assets.definitions"
    settings: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.home = self.folder / "dagster_home"
        self.state = self.folder / "dagster_state"
        self.user_home = self.folder / "user_home"
        for path in (self.home, self.state, self.user_home):
            path.mkdir(parents=True)
        self.code_port, self.web_port = free_port(), free_port()
        self.dagster = Dagster(f"http://127.0.0.1:{self.web_port}")
        for name in ("dagster.yaml", "workspace.yaml"):
            (self.home / name).write_text(self._here((DEPLOY / "dagster" / name).read_text()))
        self.processes: dict[str, subprocess.Popen[bytes]] = {}

    def environment(self) -> dict[str, str]:
        """What compose gives the containers, with this machine's addresses."""
        address = urlsplit(self.storage)
        given = compose()["x-bronze"]["environment"]
        return {
            **_clean(),
            **{name: value for name, value in given.items() if "$" not in value},
            "PYTHONPATH": f"{self.site}{os.pathsep}{self.folder}",
            "HOME": str(self.user_home),
            "DAGSTER_HOME": str(self.home),
            "DAGSTER_POSTGRES_HOST": str(address.hostname),
            "DAGSTER_POSTGRES_PORT": str(address.port),
            "DAGSTER_POSTGRES_USER": str(address.username),
            "DAGSTER_POSTGRES_PASSWORD": str(address.password),
            "DAGSTER_POSTGRES_DB": address.path.lstrip("/"),
            "BRONZE_CODE_HOST": "127.0.0.1",
            "BRONZE_HOME": str(self.folder / "bronze"),
            **self.settings,
        }

    def command(self, words: Sequence[str]) -> list[str]:
        """A command of compose.yaml as it runs here."""
        program, *rest = (self._here(word) for word in words)
        return [sys.executable, *_EXECUTABLES[program], *rest]

    def _here(self, text: str) -> str:
        for there, here in (
            ("/opt/dagster", str(self.home)),
            ("/var/lib/dagster", str(self.state)),
            ("0.0.0.0", "127.0.0.1"),
            ("bronze_assets.definitions", self.module),
            ("port: 4000", f"port: {self.code_port}"),
            ("127.0.0.1:3000", f"127.0.0.1:{self.web_port}"),
        ):
            text = text.replace(there, here)
        return {"4000": str(self.code_port), "3000": str(self.web_port)}.get(text, text)

    def healthy(self, service: str) -> bool:
        """Whether the service's own health check passes."""
        _, *words = compose()["services"][service]["healthcheck"]["test"]
        done = subprocess.run(
            self.command(words),
            env=self.environment(),
            cwd=self.folder,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            timeout=120,
            check=False,
        )
        return done.returncode == 0

    def _code_has_come_up_or_ended(self) -> bool:
        return self.processes["code"].poll() is not None or self.healthy("code")

    @contextlib.contextmanager
    def running(self, *services: str) -> Iterator[None]:
        """Those services, in the order in which compose starts them."""
        family: list[psutil.Process] = []
        try:
            for service in services:
                log = self.folder / f"{service}.log"
                with log.open("ab") as output:
                    process = subprocess.Popen(
                        self.command(compose()["services"][service]["command"]),
                        env=self.environment(),
                        cwd=self.folder,
                        stdout=output,
                        stderr=subprocess.STDOUT,
                        start_new_session=True,
                    )
                self.processes[service] = process
                if service == "code":
                    until(self._code_has_come_up_or_ended, PATIENCE, log)
                    assert process.poll() is None, log.read_text()[-3000:]
            if "webserver" in services:
                until(lambda: answers(self.dagster), PATIENCE, self.folder / "webserver.log")
            yield
        finally:
            # By number, each with its own children; as `docker stop` ends them.
            for process in self.processes.values():
                with contextlib.suppress(psutil.NoSuchProcess):
                    family += [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
            for process in reversed(self.processes.values()):
                process.send_signal(signal.SIGTERM)
            kill_after(family, 30)
            for process in self.processes.values():
                process.wait()
            self.processes.clear()
