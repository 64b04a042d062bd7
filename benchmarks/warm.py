"""How long a click takes on a warm engine, with `make ui` running on the demo's defaults.

Starts the UI as a user would, launches runs over GraphQL as its buttons do, and measures from outside: from the launch
to the end of the run, when the partition is materialised and each check has its result.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime as dt
import json
import os
import re
import signal
import statistics
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from typing import Any

from bronze_assets.settings import Settings
from bronze_assets.table import Cadence
from bronze_assets.workbench import current_partition

LAUNCH = """mutation ($parameters: ExecutionParams!) { launchPipelineExecution(executionParams: $parameters) {
  __typename ... on LaunchRunSuccess { run { runId } } ... on Error { message } } }"""
RUN = """query ($id: ID!) { runOrError(runId: $id) { ... on Run { status creationTime startTime endTime
  stepStats { startTime endTime } } } }"""


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

    def run(self, job: str, partition: str, assets: list[list[str]] | None = None) -> dict[str, Any]:
        """Launch one, wait until it has ended; its times and `click`, seconds from launch to end."""
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
        return run | {"click": run["endTime"] - began, "began": began}


@contextlib.contextmanager
def running_ui(settings: Settings) -> Iterator[tuple[Client, float]]:
    """`make ui`, and how many seconds it took until it was usable."""
    log = settings.home / "warm-ui.log"
    began = time.monotonic()
    with log.open("w") as out:
        ui = subprocess.Popen(
            [sys.executable, "-u", "-m", "bronze_assets.demo", "ui"],
            stdout=out,
            stderr=subprocess.STDOUT,
            env=os.environ,
            # In a background job SIGINT is ignored, and a child inherits that.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        )
        try:
            while not (found := re.search(r"http://[\d.:]+", log.read_text())):
                time.sleep(0.1)
            client = Client(found[0])
            while not client.usable():
                assert time.monotonic() - began < 120, log.read_text()[-2000:]
                time.sleep(0.1)
            yield client, time.monotonic() - began
        finally:
            ui.send_signal(signal.SIGINT)
            ui.wait(60)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.warm", description=__doc__)
    parser.add_argument("--runs", type=int, default=10, help="runs of one small table (default: 10)")
    parser.add_argument("--settle", type=float, default=60.0, help="seconds after the start that are left to itself")
    arguments = parser.parse_args()
    settings = Settings.from_environment()
    if not (settings.home / "postgres").is_dir():
        subprocess.run([sys.executable, "-m", "bronze_assets.demo", "demo"], check=True)
    with running_ui(settings) as (client, seconds):
        print(f"{os.cpu_count()} cores, {dt.date.today()}: usable after {seconds:.1f} s", flush=True)
        time.sleep(arguments.settle)
        day = current_partition(Cadence.DAILY, dt.datetime.now(dt.UTC))
        hour = current_partition(Cadence.HOURLY, dt.datetime.now(dt.UTC))
        one = [["inventory_bronze", "bz_warehouses"]]
        runs = [client.run("__ASSET_JOB", day, one) for _ in range(arguments.runs)]
        for run in runs:
            parts = (run["startTime"] - run["began"], run["endTime"] - run["startTime"], run["click"])
            print("launch to start {:.2f} s, start to end {:.2f} s, all {:.2f} s".format(*parts), flush=True)
        print(f"one small table: median {statistics.median(run['click'] for run in runs):.2f} s")
        for job, partition in (("initial_load", day), ("initial_load_hourly", hour)):
            again = [client.run(job, partition)["click"] for _ in range(3)]
            print(f"{job}: {' '.join(f'{s:.1f}' for s in again)} s", flush=True)


if __name__ == "__main__":
    main()
