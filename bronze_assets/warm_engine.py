"""A warm engine: one JVM with Spark that the processes of a home share, beside a UI that runs.

A run is then a client with a session of its own, which starts in a second where a JVM takes ten and is slow for as long
again. Nothing needs it: where no engine answers, a process starts a JVM of its own.

`python -m bronze_assets.warm_engine` serves until its parent ends. `<home>/engine/engine.json` (mode 0600) tells where
it listens and with which secret; each client leaves a file with its process id beside it. When a client is gone, its
jobs are cancelled: what it had not committed is for the next load, as after any kill.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import re
import secrets
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil

from bronze_assets import engine
from bronze_assets.processes import is_running, kill_after, process_identity
from bronze_assets.settings import Settings

if TYPE_CHECKING:
    from pyspark import SparkContext
    from pyspark.sql import SparkSession

_STARTING_SECONDS = 60.0
_WATCH_SECONDS = 0.5
_LONGEST_PAUSE = 60.0
_LONGEST_STOP = 20.0


def connect(settings: Settings) -> SparkSession | None:
    """A session of its own on the home's warm engine; None if there is none, or one with other settings.

    An engine that is starting is waited for.
    """
    deadline = time.monotonic() + _STARTING_SECONDS
    while (told := _told(settings)) is not None and told["port"] is None and time.monotonic() < deadline:
        time.sleep(0.1)
    if told is None or told["port"] is None or told["settings"] != _fingerprint(settings):
        return None
    # Before the first job: the engine cancels what has a client's name and no client.
    client = _folder(settings) / "clients" / process_identity()
    client.touch()
    try:
        return _session(int(told["port"]), str(told["secret"]), client.name)
    except Exception:
        # It ended in this moment, or is ending.
        client.unlink(missing_ok=True)
        return None


@contextlib.contextmanager
def kept_running(settings: Settings) -> Iterator[None]:
    """Keep a warm engine running while the block does; one that ends by itself is started again."""
    stop = threading.Event()
    thread = threading.Thread(target=_supervise, args=(settings, stop), name="warm engine", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def _supervise(settings: Settings, stop: threading.Event) -> None:
    pause = 1.0
    while not stop.is_set():
        began = time.monotonic()
        child = subprocess.Popen(
            [sys.executable, "-m", "bronze_assets.warm_engine"],
            env=os.environ | {"BRONZE_HOME": str(settings.home)},
            stdin=subprocess.DEVNULL,
            # Ctrl-C comes to the UI alone, which ends its runs before their engine.
            start_new_session=True,
        )
        while child.poll() is None and not stop.wait(0.2):
            pass
        if stop.is_set():
            family = [psutil.Process(child.pid), *psutil.Process(child.pid).children(recursive=True)]
            child.terminate()
            kill_after(family, _LONGEST_STOP)
            child.wait()
            return
        # One that cannot start (no memory, no port) is not to keep the machine busy.
        pause = 1.0 if time.monotonic() - began > _LONGEST_PAUSE else min(2 * pause, _LONGEST_PAUSE)
        stop.wait(pause)


def serve(settings: Settings) -> int:
    """Start Spark and let others use it until the parent process ends, or SIGTERM; returns the exit code."""
    folder = _folder(settings)
    (folder / "clients").mkdir(parents=True, exist_ok=True)
    folder.chmod(0o700)
    parent = os.getppid()
    note = folder / "engine.json"
    about = {"process": process_identity(), "settings": _fingerprint(settings), "port": None, "secret": ""}
    try:
        _write(note, about)
        session = engine.start_session(dataclasses.replace(settings, driver_memory=_doubled(settings.driver_memory)))
        context = session.sparkContext
        _warm_up(session, folder / "warm-up")
        gateway = context._gateway
        assert gateway is not None
        parameters = gateway.gateway_parameters
        _write(note, about | {"port": parameters.port, "secret": parameters.auth_token})
        jvm = psutil.Process(gateway.proc.pid)
        while os.getppid() == parent and jvm.is_running() and jvm.status() != psutil.STATUS_ZOMBIE:
            time.sleep(_WATCH_SECONDS)
            _let_go(folder / "clients", context)
        return 0
    finally:
        if (told := _told(settings)) is None or told["process"] == about["process"]:
            note.unlink(missing_ok=True)
        engine.end_jvm()


def _session(port: int, secret: str, group: str) -> SparkSession:
    from pyspark import SparkConf, SparkContext
    from pyspark.java_gateway import launch_gateway
    from pyspark.sql import SparkSession

    # How Spark tells a Python process of a JVM that runs already, as `spark-submit` does.
    os.environ |= {"PYSPARK_GATEWAY_PORT": str(port), "PYSPARK_GATEWAY_SECRET": secret}
    try:
        gateway = launch_gateway()  # type: ignore[no-untyped-call]
    finally:
        for name in ("PYSPARK_GATEWAY_PORT", "PYSPARK_GATEWAY_SECRET"):
            del os.environ[name]
    SparkContext._ensure_initialized(gateway=gateway)
    running = gateway.jvm.org.apache.spark.SparkContext.getOrCreate()
    jsc = gateway.jvm.JavaSparkContext.fromSparkContext(running)
    in_main = threading.current_thread() is threading.main_thread()
    handler = signal.getsignal(signal.SIGINT) if in_main else None
    context = SparkContext(conf=SparkConf(_jconf=jsc.getConf()), gateway=gateway, jsc=jsc)
    if in_main:
        # Spark's own would cancel the jobs of every client.
        signal.signal(signal.SIGINT, handler)
    context.setJobGroup(group, "a client of the warm engine", interruptOnCancel=True)
    session = SparkSession(context).newSession()
    gateway.jvm.SparkSession.setActiveSession(session._jsparkSession)
    return session


def _let_go(clients: Path, context: SparkContext) -> None:
    """Cancel the jobs of clients that are gone."""
    for client in clients.iterdir():
        if not is_running(client.name):
            context.cancelJobGroup(client.name)
            client.unlink(missing_ok=True)


def _warm_up(session: SparkSession, folder: Path) -> None:
    """Have the JVM load and compile what each load needs: the first one would wait for it."""
    shutil.rmtree(folder, ignore_errors=True)
    with contextlib.suppress(Exception):
        for number in range(3):
            parsed = "try_cast(try_parse_json(concat('{\"a\": ', id, '}')) as map<string, string>)['a'] as text"
            rows = session.range(10).selectExpr("id", f"'{number}' as batch_id", "md5(string(id)) as hash", parsed)
            with engine.sized(session, number):
                rows.write.format("delta").mode("append").save(str(folder))
                session.read.format("delta").load(str(folder)).where("id > 3").count()
    shutil.rmtree(folder, ignore_errors=True)


def _told(settings: Settings) -> dict[str, Any] | None:
    """What the home's engine tells of itself, if it lives."""
    try:
        told: dict[str, Any] = json.loads((_folder(settings) / "engine.json").read_text(encoding="utf-8"))
        return told if is_running(told["process"]) else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _write(path: Path, content: dict[str, Any]) -> None:
    part = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    with os.fdopen(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as file:
        json.dump(content, file)
    part.replace(path)


def _folder(settings: Settings) -> Path:
    return settings.home / "engine"


def _fingerprint(settings: Settings) -> str:
    """What an engine must have been started with to serve a process of these settings."""
    import pyspark

    parts = [pyspark.__version__, settings.driver_memory, str(settings.java_home), str(settings.jars)]
    parts += [jar.sha256 for jar in engine.pinned_jars()]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def _doubled(memory: str) -> str:
    """A heap for two loads at once, as many as there may be."""
    number = re.match(r"\d+", memory)
    return memory if number is None else f"{2 * int(number[0])}{memory[number.end() :]}"


def main() -> int:
    """Serve; returns the exit code."""
    # Here, since it imports whoever uses an engine.
    from bronze_assets.terminal import run_command

    return run_command(serve, interrupted="The warm engine has ended.")


if __name__ == "__main__":
    sys.exit(main())
