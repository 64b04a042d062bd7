"""Runs of this instance: which have not ended, and which will never end because their process is gone."""

from __future__ import annotations

import socket

import dagster as dg
import psutil

from bronze_assets.orchestration.assets import PROCESS_TAG, process_identity

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
        try:
            alive = process_identity(int(pid)) == run.tags[PROCESS_TAG]
        except psutil.NoSuchProcess:
            alive = False
        if not alive:
            instance.report_run_failed(run, f"Process {pid}, which executed this run, is gone.")
