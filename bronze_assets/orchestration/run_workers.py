"""Processes for runs, forked from one that has imported everything: a run begins at once, not after 3 s of imports.

`python -m bronze_assets.orchestration.run_workers` waits beside a UI until its parent ends; where, is told by
`<home>/engine/workers.json`. Nothing needs it: where nobody answers, where the code has changed since it was imported,
and on other systems than Linux, Dagster's own launcher starts a run.
"""

from __future__ import annotations

import contextlib
import gc
import json
import logging
import os
import shutil
import signal
import socket
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import dagster as dg
import psutil
from dagster._core.launcher import CheckRunHealthResult, DefaultRunLauncher, LaunchRunContext, WorkerStatus
from dagster._grpc.types import ExecuteRunArgs
from typing_extensions import override

from bronze_assets import processes
from bronze_assets.processes import is_running, process_identity
from bronze_assets.settings import Settings

logger = logging.getLogger(__name__)

WORKER_TAG = "bronze/worker"
_PACKAGE = Path(__file__).parents[1]
_ANSWER_SECONDS = 5.0
_LARGEST = 2**20


class WarmRunLauncher(DefaultRunLauncher):
    """Dagster's launcher, with a process that is there already where there is one."""

    @override
    def launch_run(self, context: LaunchRunContext) -> None:
        run = context.dagster_run
        origin = context.job_code_origin
        worker = None
        if origin is not None:
            # What other launchers give to a container.
            arguments = ExecuteRunArgs(origin, run.run_id, self._instance.get_ref()).get_command_args()
            worker = fork(Settings.from_environment(), arguments)
        if worker is None:
            super().launch_run(context)
            return
        self._instance.add_run_tags(run.run_id, {WORKER_TAG: worker})

    @override
    def terminate(self, run_id: str) -> bool:
        run = self._instance.get_run_by_id(run_id) if self.has_instance else None
        worker = run.tags.get(WORKER_TAG) if run is not None else None
        if run is None or worker is None:
            return bool(super().terminate(run_id))  # type: ignore[no-untyped-call]
        if run.is_finished:
            return False
        self._instance.report_run_canceling(run)
        if not is_running(worker):
            return False
        os.kill(int(worker.split(":")[1]), signal.SIGINT)
        return True

    @property
    @override
    def supports_check_run_worker_health(self) -> bool:
        return True

    @override
    def check_run_worker_health(self, run: dg.DagsterRun) -> CheckRunHealthResult:
        worker = run.tags.get(WORKER_TAG)
        if worker is None or is_running(worker):
            return CheckRunHealthResult(WorkerStatus.RUNNING)
        return CheckRunHealthResult(WorkerStatus.FAILED, f"Process {worker.split(':')[1]} of the run is gone.")


def fork(settings: Settings, arguments: Sequence[str]) -> str | None:
    """Have a process forked that runs a command of Dagster's.

    Args:
        arguments: the command, beginning with `dagster`.

    Returns:
        The process's identity; None if there is nobody to fork it.
    """
    with contextlib.suppress(OSError, ValueError, KeyError):
        told = json.loads(_note(settings).read_text(encoding="utf-8"))
        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(_ANSWER_SECONDS)
            client.connect(told["socket"])
            client.sendall(json.dumps([told["secret"], *arguments]).encode() + b"\n")
            answer: dict[str, str] = json.loads(_line(client))
            return answer.get("worker")
    return None


@contextlib.contextmanager
def kept_ready(settings: Settings) -> Iterator[None]:
    """Keep the process running that forks runs, while the block does."""
    if sys.platform != "linux":
        # Elsewhere, frameworks of the system do not survive a fork.
        yield
        return
    with processes.kept_running(__name__, settings.home):
        yield


def serve(settings: Settings) -> Sequence[str] | None:
    """Import what runs need, and fork for each request, until the parent process ends or the code changes.

    Returns:
        In a fork, the command that it is to run; None in the process itself.
    """
    code = _code(settings)
    _import_everything()
    # A fork that collects garbage would write to, and so copy, all memory.
    gc.collect()
    gc.freeze()
    note, parent, own = _note(settings), os.getppid(), process_identity()
    note.parent.mkdir(parents=True, exist_ok=True)
    note.parent.chmod(0o700)
    # Not in the home, whose path may be too long for a socket.
    folder = Path(tempfile.mkdtemp(prefix="bronze-workers-"))
    secret = os.urandom(16).hex()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    try:
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(folder / "socket"))
            listener.listen()
            listener.settimeout(1.0)
            processes.write_private(note, {"process": own, "socket": str(folder / "socket"), "secret": secret})
            while os.getppid() == parent:
                with contextlib.suppress(OSError, ValueError):
                    connection, _ = listener.accept()
                    with connection:
                        connection.settimeout(_ANSWER_SECONDS)
                        given, *arguments = json.loads(_line(connection))
                        if given != secret:
                            continue
                        if _code(settings) != code:
                            connection.sendall(b"{}\n")
                            return None
                        child = os.fork()
                        if child == 0:
                            return [str(one) for one in arguments]
                        connection.sendall(json.dumps({"worker": process_identity(child)}).encode() + b"\n")
        return None
    finally:
        if process_identity() == own:
            shutil.rmtree(folder, ignore_errors=True)
            with contextlib.suppress(OSError, ValueError, KeyError):
                if json.loads(note.read_text(encoding="utf-8"))["process"] == own:
                    note.unlink()


def main() -> int:
    """Serve; in a fork, run the command. Returns the exit code."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _end)
    arguments = serve(Settings.from_environment())
    if arguments is None:
        return 0
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGCHLD):
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    from dagster._cli import create_dagster_cli

    sys.argv = list(arguments)
    create_dagster_cli()(arguments[arguments.index("api") :])  # type: ignore[no-untyped-call]
    return 0


def _end(number: int, _: object) -> None:
    for run in psutil.Process().children():
        with contextlib.suppress(psutil.NoSuchProcess):
            run.send_signal(signal.SIGINT)
    raise SystemExit(128 + number)


def _import_everything() -> None:
    """What a load imports on its way, as far as importing it starts no thread."""
    import bronze_assets.definitions
    import bronze_assets.load
    import bronze_assets.privacy.protection
    import bronze_assets.warm_engine  # noqa: F401


def _code(settings: Settings) -> Mapping[str, tuple[int, int]]:
    """Size and time of each file that the imported code is made from."""
    files = [*_PACKAGE.rglob("*.py")] + ([settings.settings_file] if settings.settings_file is not None else [])
    found: dict[str, tuple[int, int]] = {}
    for file in files:
        with contextlib.suppress(OSError):
            about = file.stat()
            found[str(file)] = (about.st_size, about.st_mtime_ns)
    return found


def _line(connection: socket.socket) -> bytes:
    text = b""
    while not text.endswith(b"\n"):
        part = connection.recv(65536)
        if not part or len(text) > _LARGEST:
            raise ValueError("there is no end")
        text += part
    return text


def _note(settings: Settings) -> Path:
    return settings.home / "engine" / "workers.json"


if __name__ == "__main__":
    sys.exit(main())
