"""Peak resident memory of a process and those that it started, while something is at work."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil


@contextlib.contextmanager
def peak_memory(pid: int | None = None) -> Iterator[Callable[[], int]]:
    """Yields a function that tells, after the block, the megabytes of its peak; 0 where the system has no /proc.

    The peaks of the processes are added, as if they had come at once. What a JVM has taken before and keeps counts
    too: its heap does not shrink.

    Args:
        pid: of the process, with all its children. None takes this process and the JVMs among its children.
    """
    for number in _processes(pid):
        with contextlib.suppress(OSError):
            # Sets the peak back to what is resident now.
            Path(f"/proc/{number}/clear_refs").write_text("5")
    peak = 0
    try:
        yield lambda: peak
    finally:
        peak = sum(map(_peak, _processes(pid))) // 1024


def _processes(pid: int | None) -> list[int]:
    found = []
    with contextlib.suppress(psutil.NoSuchProcess):
        process = psutil.Process(pid or os.getpid())
        found.append(process.pid)
        for child in process.children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):
                if pid is not None or child.name() == "java":
                    found.append(child.pid)
    return found


def _peak(pid: int) -> int:
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0
    return sum(int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))
