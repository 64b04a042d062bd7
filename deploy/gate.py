#!/usr/bin/env python3
"""Whether a deployment loads: a smoke backfill through its own Dagster, whose checks must all have passed.

Asks Dagster's GraphQL to backfill the latest partitions of some assets, waits for the end, and looks at every check of
these assets that the backfill's runs evaluated. Exit code 0 only if the backfill succeeded, each asset was
materialised, and no check of severity ERROR failed (with `--strict` none at all).

Needs Python 3.11 and nothing else.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

_ASSETS = """query ($keys: [AssetKeyInput!]!) { assetNodes(assetKeys: $keys) {
  assetKey { path } partitionKeys repository { name location { name } }
} }"""

_BACKFILL = """mutation ($parameters: LaunchBackfillParams!) { launchPartitionBackfill(backfillParams: $parameters) {
  __typename ... on LaunchBackfillSuccess { backfillId } ... on Error { message }
} }"""

_STATUS = """query ($id: String!) { partitionBackfillOrError(backfillId: $id) {
  __typename ... on PartitionBackfill { status runs { runId status } } ... on Error { message }
} }"""

_CHECKS = """query ($keys: [AssetKeyInput!]!) { assetNodes(assetKeys: $keys) { assetKey { path }
  assetMaterializations(limit: 1) { runId }
  assetChecksOrError { ... on AssetChecks { checks { name
    executionForLatestMaterialization { runId status evaluation { success severity } }
  } } }
} }"""

_ENDED = {"COMPLETED", "COMPLETED_SUCCESS", "COMPLETED_FAILED", "FAILED", "CANCELED"}


class GateError(Exception):
    """Why nothing could be judged."""


@dataclass(frozen=True)
class Dagster:
    """A Dagster webserver, and the header that its proxy may ask for."""

    url: str
    authorization: str | None = None

    def ask(self, query: str, **variables: Any) -> Any:
        """The data that answers a query.

        Raises:
            GateError: it does not answer, or with an error.
        """
        headers = {"Content-Type": "application/json"}
        if self.authorization:
            headers["Authorization"] = self.authorization
        body = json.dumps({"query": query, "variables": variables}).encode()
        request = urllib.request.Request(f"{self.url.rstrip('/')}/graphql", body, headers)
        try:
            with urllib.request.urlopen(request, timeout=60) as response:
                answer = json.load(response)
        except (OSError, urllib.error.URLError, ValueError) as error:
            raise GateError(f"{self.url} does not answer: {error}.") from None
        if answer.get("errors"):
            raise GateError(f"{self.url} answers: {answer['errors'][0]['message']}")
        return answer["data"]


def backfill(dagster: Dagster, assets: Sequence[str], partitions: int) -> str:
    """Start a backfill of the latest partitions of the assets; returns its id.

    Args:
        assets: keys as Dagster's UI shows them, `schema/table`.
        partitions: how many.

    Raises:
        GateError: an asset is not there, has no such partitions, or the assets have not the same ones.
    """
    keys = [{"path": asset.split("/")} for asset in assets]
    nodes = dagster.ask(_ASSETS, keys=keys)["assetNodes"]
    missing = set(assets) - {"/".join(node["assetKey"]["path"]) for node in nodes}
    if missing:
        raise GateError(f"the deployment has no asset {', '.join(sorted(missing))}.")
    latest = {tuple(node["partitionKeys"][-partitions:]) for node in nodes}
    if len(latest) != 1:
        raise GateError("the assets do not have the same latest partitions; ask for those of one cadence at a time.")
    (names,) = latest
    if len(names) < partitions:
        raise GateError(f"the assets have {len(names)} partitions, not {partitions}.")
    parameters = {
        "assetSelection": keys,
        "partitionNames": list(names),
        "fromFailure": False,
        "title": "Quality gate of a deployment",
        "tags": [{"key": "bronze/trigger", "value": "gate"}],
    }
    answer = dagster.ask(_BACKFILL, parameters=parameters)["launchPartitionBackfill"]
    if "backfillId" not in answer:
        raise GateError(f"the backfill is refused: {answer.get('message', answer['__typename'])}")
    return str(answer["backfillId"])


def wait(dagster: Dagster, backfill_id: str, seconds: float) -> dict[str, Any]:
    """The backfill when it has ended: its status and its runs.

    Raises:
        GateError: it has not after that time.
    """
    end = time.monotonic() + seconds
    while True:
        found = dagster.ask(_STATUS, id=backfill_id)["partitionBackfillOrError"]
        if found["__typename"] != "PartitionBackfill":
            raise GateError(f"the backfill {backfill_id} is gone: {found.get('message', '')}")
        if found["status"] in _ENDED:
            return dict(found)
        if time.monotonic() > end:
            raise GateError(f"the backfill {backfill_id} is still {found['status']} after {seconds:.0f} s.")
        time.sleep(2)


def faults(dagster: Dagster, assets: Sequence[str], ended: dict[str, Any], *, strict: bool) -> tuple[int, list[str]]:
    """How many checks the backfill's runs evaluated, and what is wrong."""
    wrong = [f"run {run['runId']} is {run['status']}" for run in ended["runs"] if run["status"] != "SUCCESS"]
    if ended["status"] != "COMPLETED_SUCCESS" and not wrong:
        wrong.append(f"the backfill ended as {ended['status']}")
    runs = {run["runId"] for run in ended["runs"]}
    judged = 0
    for node in dagster.ask(_CHECKS, keys=[{"path": asset.split("/")} for asset in assets])["assetNodes"]:
        asset = "/".join(node["assetKey"]["path"])
        if not any(event["runId"] in runs for event in node["assetMaterializations"]):
            wrong.append(f"{asset} was not materialised")
            continue
        checks = node["assetChecksOrError"].get("checks", [])
        if not checks:
            wrong.append(f"{asset} has no checks")
        for check in checks:
            execution = check["executionForLatestMaterialization"]
            evaluation = execution and execution["evaluation"]
            if not evaluation or execution["runId"] not in runs:
                wrong.append(f"{asset}: the check {check['name']} was not evaluated")
                continue
            judged += 1
            if not evaluation["success"] and (strict or evaluation["severity"] == "ERROR"):
                wrong.append(f"{asset}: the check {check['name']} failed ({evaluation['severity']})")
    return judged, wrong


def main(arguments: Sequence[str] | None = None) -> int:
    """Judge a deployment; returns the exit code: 0 if it may stay."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", required=True, help="of the webserver; DAGSTER_AUTHORIZATION is sent to it if set")
    parser.add_argument("--assets", nargs="+", required=True, metavar="SCHEMA/TABLE", help="of one cadence")
    parser.add_argument("--partitions", type=int, default=1, help="how many of the latest (default 1)")
    parser.add_argument("--timeout", type=float, default=1800, help="seconds (default 1800)")
    parser.add_argument("--strict", action="store_true", help="checks of severity WARN must pass too")
    options = parser.parse_args(arguments)
    dagster = Dagster(options.url, os.environ.get("DAGSTER_AUTHORIZATION"))
    try:
        started = backfill(dagster, options.assets, options.partitions)
        print(f"Backfill {started} of {', '.join(options.assets)}.", flush=True)
        ended = wait(dagster, started, options.timeout)
        judged, wrong = faults(dagster, options.assets, ended, strict=options.strict)
    except GateError as error:
        print(f"Not judged: {error}", file=sys.stderr)
        return 1
    for fault in wrong:
        print(fault, file=sys.stderr)
    print(f"{judged} checks in {len(ended['runs'])} runs: {'refused' if wrong else 'passed'}.")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
