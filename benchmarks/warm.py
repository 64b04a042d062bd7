"""How long a click takes on a warm engine, with `make ui` running on the demo's defaults.

Starts the UI as a user would, launches runs over GraphQL as its buttons do, and measures from outside: from the launch
to the end of the run, when the partition is materialised and each check has its result.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.ground import CHECKOUT, Ground
from benchmarks.measure import Comparison, Scenario, Side
from bronze_assets.table import Cadence
from bronze_assets.workbench import current_partition

_CLICKS = 10
_STARTS = 3
_UNCHANGED = 5
_SETTLE_SECONDS = 60.0

LAUNCH = """mutation ($parameters: ExecutionParams!) { launchPipelineExecution(executionParams: $parameters) {
  __typename ... on LaunchRunSuccess { run { runId } } ... on Error { message } } }"""
RUN = """query ($id: ID!) { runOrError(runId: $id) { ... on Run { status endTime } } }"""


class Client:
    """What the UI's buttons ask."""

    def __init__(self, url: str) -> None:
        self.url = url

    def ask(self, query: str, **variables: Any) -> Any:
        body = json.dumps({"query": query, "variables": variables}).encode()
        request = urllib.request.Request(f"{self.url}/graphql", body, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=30) as response:
            return json.load(response)["data"]

    def usable(self) -> bool:
        """Whether assets can be launched."""
        with contextlib.suppress(OSError, KeyError, TypeError):
            return bool(self.ask("{ assetNodes { id } }")["assetNodes"])
        return False

    def run(self, job: str, partition: str, assets: list[list[str]] | None = None) -> float:
        """Launch one and wait until it has ended well; the seconds from launch to end."""
        location = self.ask("{ repositoriesOrError { ... on RepositoryConnection { nodes { location { name } } } } }")
        name = location["repositoriesOrError"]["nodes"][0]["location"]["name"]
        began = time.time()
        answer = self.ask(
            LAUNCH,
            parameters={
                "selector": {
                    "repositoryLocationName": name,
                    "repositoryName": "__repository__",
                    "pipelineName": job,
                    "assetSelection": None if assets is None else [{"path": path} for path in assets],
                    "assetCheckSelection": None,
                },
                "mode": "default",
                "runConfigData": {},
                "executionMetadata": {"tags": [{"key": "dagster/partition", "value": partition}]},
            },
        )["launchPipelineExecution"]
        assert "run" in answer, answer
        while True:
            run: dict[str, Any] = self.ask(RUN, id=answer["run"]["runId"])["runOrError"]
            if run["status"] in ("SUCCESS", "FAILURE", "CANCELED"):
                break
            time.sleep(0.05)
        assert run["status"] == "SUCCESS", run
        return float(run["endTime"]) - began


@dataclass(frozen=True)
class Ui:
    """A UI that runs.

    Attributes:
        seconds: from its start until assets could be launched.
    """

    client: Client
    pid: int
    seconds: float


def warm(ground: Ground) -> Iterator[Scenario]:
    """The start of the UI; then one small table, and the demo's ten unchanged ones, daily and hourly."""
    home = ground.settings.home / "warm"
    home.mkdir(parents=True, exist_ok=True)
    environ = {name: value for name, value in os.environ.items() if not name.startswith("BRONZE_")}
    environ |= {"BRONZE_HOME": str(home), "BRONZE_JARS": str(ground.settings.jars)}
    demo = [sys.executable, "-m", "bronze_assets.demo"]
    try:
        with home.with_name("warm-demo.log").open("w") as out:
            subprocess.run([*demo, "demo"], check=True, stdout=out, stderr=subprocess.STDOUT, env=environ, cwd=CHECKOUT)

        def start() -> float:
            with _running_ui(environ, home.with_name("warm-ui.log")) as ui:
                return ui.seconds

        yield Scenario(
            [Side("start", start, 0)],
            [Comparison("`make ui`, until it is usable", "start", goal=15)],
            rounds=_STARTS,
            uncounted=0,
        )
        with _running_ui(environ, home.with_name("warm-ui.log")) as ui:
            # Its sensors bring in what the demo has left.
            time.sleep(_SETTLE_SECONDS)
            day, hour = (current_partition(of, dt.datetime.now(dt.UTC)) for of in (Cadence.DAILY, Cadence.HOURLY))
            one = [["inventory_bronze", "bz_warehouses"]]

            def click() -> float:
                return ui.client.run("__ASSET_JOB", day, one)

            def ten() -> float:
                return ui.client.run("initial_load", day) + ui.client.run("initial_load_hourly", hour)

            yield Scenario(
                [Side("click", click, 0, lambda: ui.pid)],
                [Comparison("one small table, from click to materialised", "click", goal=5)],
                rounds=_CLICKS,
            )
            yield Scenario(
                [Side("click", ten, 0, lambda: ui.pid)],
                [Comparison("the demo's ten tables, unchanged", "click", goal=15)],
                rounds=_UNCHANGED,
            )
    finally:
        subprocess.run([*demo, "clean"], check=True, stdout=subprocess.DEVNULL, env=environ, cwd=CHECKOUT)


@contextlib.contextmanager
def _running_ui(environ: Mapping[str, str], log: Path) -> Iterator[Ui]:
    """`make ui`."""
    began = time.monotonic()
    with log.open("w") as out:
        process = subprocess.Popen(
            [sys.executable, "-u", "-m", "bronze_assets.demo", "ui"],
            stdout=out,
            stderr=subprocess.STDOUT,
            env=environ,
            cwd=CHECKOUT,
            # In a background job SIGINT is ignored, and a child inherits that.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        )
        try:

            def wait_for(told: Callable[[], Any]) -> Any:
                while not (answer := told()):
                    assert time.monotonic() - began < 120, log.read_text()[-2000:]
                    assert process.poll() is None, log.read_text()[-2000:]
                    time.sleep(0.1)
                return answer

            client = Client(wait_for(lambda: re.search(r"http://[\d.:]+", log.read_text()))[0])
            wait_for(client.usable)
            yield Ui(client, process.pid, time.monotonic() - began)
        finally:
            process.send_signal(signal.SIGINT)
            process.wait(60)
