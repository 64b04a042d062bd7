"""A warm engine: one JVM with Spark that the processes of a home share, beside a UI that runs.

A run is then a client with a session of its own, which starts in a second where a JVM takes ten and is slow for as long
again. Nothing needs it: where no engine answers, a process starts a JVM of its own.

`python -m bronze_assets.warm_engine` serves until its parent ends. `<home>/engine/engine.json` (mode 0600) tells where
it listens and with which secret; each client leaves a file with its process id beside it. When a client is gone, its
jobs are cancelled: what it had not committed is for the next load, as after any kill.

Where nobody has used it for a while, the JVM ends, and the next client has it started again.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import re
import shutil
import signal
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil

from bronze_assets import engine, processes
from bronze_assets.processes import is_running, process_identity
from bronze_assets.settings import Settings

if TYPE_CHECKING:
    from py4j.java_gateway import JavaGateway
    from pyspark import SparkContext
    from pyspark.sql import SparkSession

_STARTING_SECONDS = 60.0
_WATCH_SECONDS = 0.5
IDLE_SECONDS = 1800.0
"""How long the JVM stays when no process uses it."""


def connect(settings: Settings) -> SparkSession | None:
    """A session of its own on the home's warm engine; None if there is none, or one with other settings.

    An engine that is starting is waited for.
    """
    deadline, wanted = time.monotonic() + _STARTING_SECONDS, _fingerprint(settings)
    while (told := _told(settings)) is not None and told["port"] is None and time.monotonic() < deadline:
        if told["settings"] != wanted:
            return None
        if told.get("resting"):
            _wanted(settings).touch()
        time.sleep(0.1)
    if told is None or told["port"] is None or told["settings"] != wanted:
        return None
    # Before the first job: the engine cancels what has a client's name and no client.
    client = _folder(settings) / "clients" / process_identity()
    client.touch()
    if _told(settings) == told:
        with contextlib.suppress(Exception):
            return _session(int(told["port"]), str(told["secret"]), client.name)
    # It ended in this moment, or is ending.
    client.unlink(missing_ok=True)
    return None


def kept_running(settings: Settings) -> contextlib.AbstractContextManager[None]:
    """Keep a warm engine running while the block does; one that ends by itself is started again."""
    return processes.kept_running(__name__, settings.home)


def serve(settings: Settings) -> int:
    """Start Spark and let others use it until the parent process ends, or SIGTERM; returns the exit code."""
    folder = _folder(settings)
    clients = folder / "clients"
    clients.mkdir(parents=True, exist_ok=True)
    folder.chmod(0o700)
    # As it was given: the launcher of the JVM is pointed by it to a Java of its own.
    environment = dict(os.environ)
    note = folder / "engine.json"
    own = process_identity()
    before = _told(settings)
    rests = before is not None and before["process"] == own and before["resting"]
    # It may have ended while this process was made anew.
    parent = before["parent"] if before is not None and rests else os.getppid()
    about = {"process": own, "parent": parent, "settings": _fingerprint(settings), "port": None, "resting": False}
    try:
        while rests and not _wanted(settings).exists():
            if os.getppid() != parent:
                return 0
            if _told(settings) is None:
                processes.write_private(note, about | {"resting": True})
            time.sleep(_WATCH_SECONDS / 5)
        processes.write_private(note, about)
        session = engine.start_session(dataclasses.replace(settings, driver_memory=_doubled(settings.driver_memory)))
        context = session.sparkContext
        _warm_up(session, folder / "warm-up")
        gateway = context._gateway
        assert gateway is not None
        parameters = gateway.gateway_parameters
        listening = about | {"port": parameters.port, "secret": parameters.auth_token}
        processes.write_private(note, listening)
        jvm = psutil.Process(gateway.proc.pid)
        used = time.monotonic()
        while os.getppid() == parent and jvm.is_running() and jvm.status() != psutil.STATUS_ZOMBIE:
            time.sleep(_WATCH_SECONDS)
            if _let_go(clients, context):
                used = time.monotonic()
            if time.monotonic() - used <= IDLE_SECONDS:
                continue
            _wanted(settings).unlink(missing_ok=True)
            processes.write_private(note, about | {"resting": True})
            # Whoever has read the note before has left its file by now, or finds nobody and goes on alone.
            if any(clients.iterdir()):
                processes.write_private(note, listening)
                continue
            engine.end_jvm()
            # Else it would stay as a zombie of the process that this one becomes.
            gateway.proc.wait()
            # Spark in Python is made for one JVM a process.
            os.execve(sys.executable, sys.orig_argv, environment)
        return 0
    finally:
        if (told := _told(settings)) is None or told["process"] == own:
            note.unlink(missing_ok=True)
        engine.end_jvm()


def _session(port: int, secret: str, group: str) -> SparkSession:
    from pyspark import SparkContext
    from pyspark.java_gateway import launch_gateway

    # How Spark tells a Python process of a JVM that runs already, as `spark-submit` does.
    os.environ |= {"PYSPARK_GATEWAY_PORT": str(port), "PYSPARK_GATEWAY_SECRET": secret}
    try:
        gateway = launch_gateway()  # type: ignore[no-untyped-call]
    finally:
        for name in ("PYSPARK_GATEWAY_PORT", "PYSPARK_GATEWAY_SECRET"):
            del os.environ[name]
    try:
        return _session_of(gateway, group)
    except Exception:
        # Else this process's own JVM would be looked for there.
        SparkContext._gateway = SparkContext._jvm = None
        raise


def _session_of(gateway: JavaGateway, group: str) -> SparkSession:
    from pyspark import SparkConf, SparkContext
    from pyspark.sql import SparkSession

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


def _let_go(clients: Path, context: SparkContext) -> bool:
    """Cancel the jobs of clients that are gone; returns whether there are others."""
    others = False
    for client in clients.iterdir():
        if is_running(client.name):
            others = True
        else:
            context.cancelJobGroup(client.name)
            client.unlink(missing_ok=True)
    return others


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


def _folder(settings: Settings) -> Path:
    return settings.home / "engine"


def _wanted(settings: Settings) -> Path:
    """Is there when somebody wants the engine that rests."""
    return _folder(settings) / "wanted"


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
