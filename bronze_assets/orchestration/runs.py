"""Runs of this instance: which have not ended, and which will never end because their process is gone."""

from __future__ import annotations

import socket

import dagster as dg

from bronze_assets.orchestration.assets import PROCESS_TAG
from bronze_assets.processes import is_running

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
