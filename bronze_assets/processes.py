"""Processes of this machine: which one it is, and its end."""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Sequence

import psutil


def process_identity(pid: int | None = None) -> str:
    """`<host>:<pid>:<start>` of a process of this machine; this one by default.

    Raises:
        psutil.NoSuchProcess: there is none of that number.
    """
    # With its moment of birth, since numbers of processes come again.
    process = psutil.Process(pid)
    return f"{socket.gethostname()}:{process.pid}:{process.create_time():.0f}"


def is_running(identity: str) -> bool:
    """Whether a process of this machine with that identity is still there."""
    pid = identity.partition(":")[2].partition(":")[0]
    try:
        return process_identity(int(pid)) == identity
    except (ValueError, psutil.NoSuchProcess):
        return False


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
