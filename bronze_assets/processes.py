"""Processes that this one started, and their ends."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Sequence

import psutil


def still_alive(processes: Sequence[psutil.Process], seconds: float) -> list[psutil.Process]:
    """Those of the processes that have not ended after that time.

    One that waits to be reaped has ended: in a container, nobody may ever reap it.
    """
    deadline = time.monotonic() + seconds
    while True:
        alive = []
        for process in processes:
            with contextlib.suppress(psutil.NoSuchProcess):
                if process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
                    alive.append(process)
        if not alive or time.monotonic() > deadline:
            return alive
        time.sleep(0.02)


def kill_after(processes: Sequence[psutil.Process], seconds: float) -> None:
    """Kill those of the processes that have not ended by themselves after that time."""
    for stubborn in still_alive(processes, seconds):
        with contextlib.suppress(psutil.NoSuchProcess):
            stubborn.kill()
    still_alive(processes, 5)
