"""A run on Databricks, looked after while it is waited for: its page, its start, and why it ended badly."""

from __future__ import annotations

import contextlib
import re
import threading
import uuid
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from bronze_assets.errors import BronzeError, RemoteFailure, RemoteLost
from bronze_assets.settings import Settings

if TYPE_CHECKING:
    from databricks.sdk import WorkspaceClient
    from databricks.sdk.service._internal import Wait
    from databricks.sdk.service.jobs import Run

_WAITING = ("PENDING", "QUEUED", "BLOCKED", "WAITING_FOR_RETRY")
# What Databricks says when a machine was lost, and not when the work failed.
_LOST = re.compile(r"driver|spot|preempt|node.*lost|unreachable|INTERNAL_ERROR", re.IGNORECASE)
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
        submit = self._client.jobs.submit

        def submitted(*args: Any, **kwargs: Any) -> Wait[Run]:
            # The SDK asks again when an answer is lost: that shall not be a second run.
            kwargs["idempotency_token"] = uuid.uuid4().hex
            waiter = submit(*args, **kwargs)
            self._run_id = waiter.bind()["run_id"]
            with contextlib.suppress(Exception):
                self.url = self._client.jobs.get_run(self._run_id).run_page_url
            self._started(self.url or str(self._run_id))
            self._guard.start()
            return waiter

        self._client.jobs.submit = submitted  # type: ignore[method-assign]
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        if self._guard.is_alive():
            self._guard.join()
        # The method of the class is seen again.
        del self._client.jobs.submit

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

    def skipped(self) -> BronzeError:
        """What is said of a run that ended well for the launcher and in which the step never ran."""
        return RemoteFailure(
            f"Databricks has skipped run {self._run_id}, and nothing was loaded.",
            "look at its page for the reason, for example too many runs at once, and start it again.",
            table=self._name,
        )

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
        if run is None:
            return RemoteFailure(
                f"nothing could be started on {host} ({kind}).",
                "`python -m bronze_assets doctor` finds what is missing.",
                table=name,
            )
        lost = RemoteLost if _LOST.search(str(error)) or kind in _NO_ANSWER else RemoteFailure
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
