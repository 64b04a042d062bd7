"""Runs of this instance: which have not ended, which will never end because their process is gone, and what is kept of
a failure where personal data is at work.
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import TypeVar

import dagster as dg

from bronze_assets.audit import safe_message
from bronze_assets.orchestration.assets import PROCESS_TAG
from bronze_assets.processes import is_running

T = TypeVar("T")

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
        message = safe_message(error)
    # Outside of the handler: Dagster keeps causes and contexts, and theirs may quote a value.
    raise dg.Failure(description=message, allow_retries=False)
