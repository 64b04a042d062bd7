"""How tests talk to a running `dagster dev`: over GraphQL, as its UI does."""

from __future__ import annotations

import json
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

MATERIALISE = """mutation ($parameters: ExecutionParams!) {
  launchPipelineExecution(executionParams: $parameters) {
    __typename ... on LaunchRunSuccess { run { runId } } ... on Error { message }
  }
}"""

BACKFILL = """mutation ($parameters: LaunchBackfillParams!) {
  launchPartitionBackfill(backfillParams: $parameters) {
    __typename ... on LaunchBackfillSuccess { backfillId } ... on Error { message }
  }
}"""

BACKFILLED = """query ($id: String!) { partitionBackfillOrError(backfillId: $id) { ... on PartitionBackfill {
  status runs { runId status } assetBackfillData { assetBackfillStatuses {
    ... on AssetPartitionsStatusCounts { numPartitionsMaterialized }
  } }
} } }"""


class Dagster:
    """A running `dagster dev`."""

    def __init__(self, url: str) -> None:
        self.url = url

    def ask(self, query: str, **variables: Any) -> Any:
        body = json.dumps({"query": query, "variables": variables}).encode()
        request = urllib.request.Request(f"{self.url}/graphql", body, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=30) as response:
            answer = json.load(response)
        assert "errors" not in answer, answer["errors"]
        return answer["data"]


def answers(dagster: Dagster) -> bool:
    """Whether its code location is loaded."""
    try:
        return bool(dagster.ask("{ assetNodes { id } }")["assetNodes"])
    except (OSError, urllib.error.URLError):
        return False


def until(happened: Callable[[], Any], seconds: float, log: Path | None = None) -> Any:
    """Wait for something to become true, and return it."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if result := happened():
            return result
        time.sleep(0.5)
    raise AssertionError(f"it did not happen; the log ends with\n{log.read_text()[-3000:] if log else ''}")


def an_execution(table: str, partition: str, location: str) -> dict[str, Any]:
    """What `MATERIALISE` takes for one partition of a table in a code location."""
    return {
        "selector": {
            "repositoryLocationName": location,
            "repositoryName": "__repository__",
            "pipelineName": "__ASSET_JOB",
            "assetSelection": [{"path": ["inventory_bronze", table]}],
            "assetCheckSelection": None,
        },
        "mode": "default",
        "runConfigData": {},
        "executionMetadata": {"tags": [{"key": "dagster/partition", "value": partition}]},
    }
