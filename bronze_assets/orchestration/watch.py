"""A run on Databricks, looked after while it is waited for: its page, its start, and why it ended badly."""

from __future__ import annotations

import contextlib
import re
import threading
import uuid
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from bronze_assets import databricks_job
from bronze_assets.errors import BronzeError, RemoteFailure, RemoteLost
from bronze_assets.settings import Settings

if TYPE_CHECKING:
    from databricks.sdk import WorkspaceClient
    from databricks.sdk.service._internal import Wait
    from databricks.sdk.service.jobs import Run, SubmitTask

_WAITING = ("PENDING", "QUEUED", "BLOCKED", "WAITING_FOR_RETRY")
# Termination codes of the Jobs API for what another try may not meet again.
_LOST = frozenset({"CLOUD_FAILURE", "CLUSTER_ERROR", "DRIVER_ERROR", "INTERNAL_ERROR"})
# What the SDK raises when the workspace does not answer as it should, after its own tries.
_NO_ANSWER = frozenset({"InternalError", "TemporarilyUnavailable", "TimeoutError", "ConnectionError"})


class Watch:
    """Looks after the run that a client of the SDK submits: its page, its start, and why it ended badly.

    Args:
        client: whose next submission it is.
        started: hears the page of the run's, or its number where there is none.
    """

    def __init__(self, client: WorkspaceClient, settings: Settings, name: str, started: Callable[[str], None]) -> None:
        self._client = client
        self._settings = settings
        self._name = name
        self._started = started
        self._ended = threading.Event()
        self._guard = threading.Thread(target=self._end_unless_started, name=f"start of {name}", daemon=True)
        self._never_started = False
        self._run_id: int | None = None
        self.url: str | None = None

    def __enter__(self) -> Watch:
        submit = self._submit = self._client.jobs.submit

        def submitted(*args: Any, **kwargs: Any) -> Wait[Run]:
            # The SDK asks again when an answer is lost: that shall not be a second run.
            kwargs["idempotency_token"] = uuid.uuid4().hex
            for task in kwargs["tasks"]:
                self._put_on_spot(task)
            waiter = submit(*args, **kwargs)
            self._run_id = waiter.bind()["run_id"]
            self._guard.start()
            # The run is there: what fails from here on must not hide it from who waits for it.
            with contextlib.suppress(Exception):
                self.url = self._client.jobs.get_run(self._run_id).run_page_url
            with contextlib.suppress(Exception):
                self._started(self.url or str(self._run_id))
            return waiter

        self._client.jobs.submit = submitted  # type: ignore[method-assign]
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        if self._guard.is_alive():
            self._guard.join()
        self._client.jobs.submit = self._submit  # type: ignore[method-assign]

    def _put_on_spot(self, task: SubmitTask) -> None:
        """Here, since the launcher's schema does not know spot with fallback on Azure (dagster-databricks 0.29)."""
        from databricks.sdk.service.compute import ClusterSpec

        there = self._settings.databricks
        if task.new_cluster is not None and there is not None and there.cluster is not None and there.cluster.spot:
            attributes = databricks_job.spot_attributes(databricks_job.host(self._settings))
            task.new_cluster = ClusterSpec.from_dict(task.new_cluster.as_dict() | attributes)

    def _end_unless_started(self) -> None:
        """Cancel the run if it still waits for its cluster when its time has passed."""
        there = self._settings.databricks
        assert there is not None
        assert self._run_id is not None
        if self._ended.wait(there.start_timeout_seconds):
            return
        with contextlib.suppress(Exception):
            state = self._client.jobs.get_run(self._run_id).state
            if state is not None and state.life_cycle_state and state.life_cycle_state.value in _WAITING:
                self._never_started = True
                self._client.jobs.cancel_run(self._run_id)

    def without_end(self) -> BronzeError:
        """What is said of a run that ended well for the launcher, but whose step has told of no end."""
        run = self._told_run()
        if run is not None and run.state is not None and getattr(run.state.life_cycle_state, "value", "") == "SKIPPED":
            return RemoteFailure(
                f"Databricks has skipped run {self._run_id}, and nothing was loaded.",
                "look at its page for the reason, for example too many runs at once, and start it again.",
                table=self._name,
            )
        return RemoteFailure(
            f"Databricks run {self._run_id} has ended without telling how its step did.",
            "look at its page. The next load finishes or takes back what this one had begun.",
            table=self._name,
        )

    @property
    def cancelled(self) -> bool:
        """Whether somebody has cancelled the run, other than this watch."""
        run = self._told_run()
        result = getattr(run.state.result_state, "value", "") if run is not None and run.state is not None else ""
        return result == "CANCELED" and not self._never_started

    def _ended_as(self) -> str:
        """The termination code of the run; empty where there is none."""
        run = self._told_run()
        details = run.status.termination_details if run is not None and run.status is not None else None
        return details.code.value if details is not None and details.code is not None else ""

    def _told_run(self) -> Run | None:
        if self._run_id is not None:
            with contextlib.suppress(Exception):
                return self._client.jobs.get_run(self._run_id)
        return None

    def failure(self, error: Exception) -> BronzeError:
        """What went wrong, in our words; what the SDK and Databricks say in theirs may quote."""
        there = self._settings.databricks
        assert there is not None
        if isinstance(error, BronzeError):
            return error
        host, run, name, kind = self._settings.databricks_host, self._run_id, self._name, type(error).__name__
        page = f" Its page: {self.url}." if self.url else ""
        if self._never_started:
            return RemoteFailure(
                f"Databricks run {run} has not started in {there.start_timeout_seconds} s and was cancelled.{page}",
                "see its cluster's event log for the quota, pool or policy that it waits for, or set"
                " databricks.start_timeout_seconds higher.",
                table=name,
            )
        if kind in ("Unauthenticated", "PermissionDenied"):
            left = f" Run {run} may still be at work.{page}" if run else ""
            return RemoteFailure(
                f"the workspace {host} refuses who is signed in ({kind}).{left}",
                "renew DATABRICKS_TOKEN or the service principal's secret; `python -m bronze_assets doctor` says what"
                " is missing.",
                table=name,
            )
        lost = RemoteLost if kind in _NO_ANSWER or self._ended_as() in _LOST else RemoteFailure
        if run is None:
            return lost(
                f"nothing could be started on {host} ({kind}).",
                "`python -m bronze_assets doctor` finds what is missing.",
                table=name,
            )
        return lost(
            f"Databricks run {run} has failed ({_reason(error)}).{page}",
            "see the driver's log on its page. The next load finishes or takes back what this one had begun.",
            table=name,
        )


def _reason(error: Exception) -> str:
    """The state that a run has ended in, as far as dagster-databricks' message has it."""
    found = re.search(r"result state: `([^`]*)`. Message: ([^\n]{0,300})", str(error))
    if found:
        return f"{found[1].rpartition('.')[2]}: {found[2].rstrip('.')}"
    if found := re.fullmatch(r"Error running Databricks job: ([^\n]{0,300}).*", str(error), re.DOTALL):
        return found[1].rstrip(".")
    return "it took too long" if "to complete" in str(error) else type(error).__name__
