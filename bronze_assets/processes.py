"""Processes of this machine: which one it is, its end, and those that are kept running beside another."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil

_LONGEST_PAUSE = 60.0
_LONGEST_STOP = 20.0


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


@contextlib.contextmanager
def kept_running(module: str, home: Path) -> Iterator[None]:
    """Keep `python -m <module>` running for a home while the block does; one that ends by itself is started again."""
    stop = threading.Event()
    thread = threading.Thread(target=_supervise, args=(module, home, stop), name=module, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def _supervise(module: str, home: Path, stop: threading.Event) -> None:
    pause = 1.0
    while not stop.is_set():
        began = time.monotonic()
        child = subprocess.Popen(
            [sys.executable, "-m", module],
            env=os.environ | {"BRONZE_HOME": str(home)},
            stdin=subprocess.DEVNULL,
            # Ctrl-C comes to the UI alone, which ends its runs before what they work with.
            start_new_session=True,
        )
        while child.poll() is None and not stop.wait(0.2):
            pass
        if stop.is_set():
            family: list[psutil.Process] = []
            with contextlib.suppress(psutil.NoSuchProcess):
                process = psutil.Process(child.pid)
                family = [process, *process.children(recursive=True)]
            child.terminate()
            kill_after(family, _LONGEST_STOP)
            child.wait()
            return
        # One that cannot start (no memory, no port) is not to keep the machine busy.
        pause = 1.0 if time.monotonic() - began > _LONGEST_PAUSE else min(2 * pause, _LONGEST_PAUSE)
        stop.wait(pause)


def write_private(path: Path, content: Mapping[str, Any]) -> None:
    """Write a file that this user alone may read, whole or not at all."""
    part = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    with os.fdopen(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as file:
        json.dump(dict(content), file)
    part.replace(path)
