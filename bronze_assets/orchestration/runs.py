"""Runs of this instance: their tags, how a step is tried again, which have not ended, which never will because their
process is gone, and what is kept of a failure where personal data is at work.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

import dagster as dg

from bronze_assets.audit import safe_message
from bronze_assets.processes import is_running, process_identity
from bronze_assets.settings import Settings

T = TypeVar("T")

TABLE_TAG = "bronze/table"
BATCH_TAG = "bronze/batch"
TRIGGER_TAG = "bronze/trigger"
ENVIRONMENT_TAG = "bronze/environment"
SOURCE_TAG = "bronze/source"
CADENCE_TAG = "bronze/cadence"
PROCESS_TAG = "bronze/process"
DATABRICKS_TAG = "bronze/databricks_run"

RESTORED = "restore"
"""Trigger of a run that only shows that a restore has undone a partition."""

RETRY_POLICY = dg.RetryPolicy(max_retries=3, delay=5, backoff=dg.Backoff.EXPONENTIAL, jitter=dg.Jitter.PLUS_MINUS)
"""How a retryable error is tried again. Not given to Dagster as the assets' policy: it would also try again what
somebody stopped, with Ctrl-C or in the UI."""


UNFINISHED = [
    dg.DagsterRunStatus.NOT_STARTED,
    dg.DagsterRunStatus.QUEUED,
    dg.DagsterRunStatus.STARTING,
    dg.DagsterRunStatus.STARTED,
    dg.DagsterRunStatus.CANCELING,
]


def close_dead_runs(instance: dg.DagsterInstance) -> None:
    """Mark as failed what a process of this machine executed and left unfinished when it was killed."""
    for run in instance.get_runs(filters=dg.RunsFilter(statuses=UNFINISHED)):
        host, _, number = run.tags.get(PROCESS_TAG, "").partition(":")
        pid, _, _ = number.partition(":")
        # Without the tag, no table of it has begun; Dagster's own monitoring ends such a run.
        if host != socket.gethostname() or not pid.isdigit():
            continue
        if not is_running(run.tags[PROCESS_TAG]):
            instance.report_run_failed(run, f"Process {pid}, which executed this run, is gone.")


def without_values(work: Callable[[], T]) -> T:
    """What `work` returns.

    Raises:
        Failure: it failed; says what `safe_message` says, has no cause, and is not tried again.
    """
    try:
        return work()
    except Exception as error:
        message, kind = safe_message(error), type(error).__name__
    # Outside of the handler: Dagster keeps causes and contexts, and theirs may quote a value.
    raise dg.Failure(description=message, metadata={"error": kind}, allow_retries=False)


def retry_request(retry_number: int) -> dg.RetryRequested | None:
    """A request to try once more; None when that has been done often enough.

    Args:
        retry_number: how often it has been tried again.
    """
    if retry_number >= RETRY_POLICY.max_retries:
        return None
    return dg.RetryRequested(RETRY_POLICY.max_retries, RETRY_POLICY.calculate_delay(retry_number + 1))


def tag_run(instance: dg.DagsterInstance, run_id: str, tags: Mapping[str, str]) -> None:
    """Add run tags; where a run loads several tables, each adds its name and batch to those before it.

    On a cluster the instance knows no run: whoever launched the step tags it.
    """
    run = instance.get_run_by_id(run_id)
    if run is None:
        return
    joined = dict(tags)
    for name in (TABLE_TAG, BATCH_TAG, DATABRICKS_TAG):
        if name in tags:
            known = run.tags[name].split(", ") if name in run.tags else []
            joined[name] = ", ".join(dict.fromkeys([*known, tags[name]]))
    instance.add_run_tags(run_id, joined)


def begun_tags(run: dg.DagsterRun, table: str, settings: Settings) -> dict[str, str]:
    """What a run is tagged with when it begins to load a table, by the process that waits for it."""
    return {
        TABLE_TAG: table,
        TRIGGER_TAG: trigger_of(run.tags),
        ENVIRONMENT_TAG: settings.environment.value,
        PROCESS_TAG: process_identity(),
    }


def first_and_last(batches: Sequence[str]) -> str:
    """Batch ids as one tag."""
    return batches[0] if len(batches) == 1 else f"{batches[0]} … {batches[-1]}"


def trigger_of(tags: Mapping[str, str]) -> str:
    """What started a run: manual, schedule, sensor, backfill or cli."""
    if TRIGGER_TAG in tags:
        return tags[TRIGGER_TAG]
    for trigger, marks in {
        "backfill": ("dagster/backfill", "dagster/asset_partition_range_start"),
        "schedule": ("dagster/schedule_name",),
        "sensor": ("dagster/sensor_name",),
    }.items():
        if any(mark in tags for mark in marks):
            return trigger
    return "manual"
