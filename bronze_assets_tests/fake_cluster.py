"""What a cluster of `fake_workspace` does with one task: runs its file, in a process that knows nothing of the host.

Runs as `python -I -S fake_cluster.py`, so nothing but the standard library is importable at first: what the cluster has
installed is added without reading its `.pth` files, which keeps editable installs out. What the task is to be like is
read from standard input, since it holds secrets; how it failed is written to a file.

As on Databricks, the file runs as `__main__` and has no `__file__`, `spark` and `dbutils` are there, and `sc` unless
it is serverless. There nothing of the JVM can be reached: no Spark context, no RDD, no cache, and few configurations.
Nobody may stop Spark.
"""

from __future__ import annotations

import base64
import contextlib
import importlib.machinery
import importlib.metadata
import json
import os
import signal
import sys
import traceback
import types
import urllib.parse
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Any

SERVERLESS_CONFIGURATIONS = frozenset(
    {
        "spark.databricks.execution.timeout",
        "spark.sql.ansi.enabled",
        "spark.sql.files.maxPartitionBytes",
        "spark.sql.legacy.timeParserPolicy",
        "spark.sql.session.localRelationCacheThreshold",
        "spark.sql.session.timeZone",
        "spark.sql.shuffle.partitions",
    }
)
"""Those that can be set there, of the public documentation."""

_OF_THE_JVM = frozenset(
    {"sparkContext", "_sc", "_jsc", "_jvm", "_jsparkSession", "rdd", "_jdf", "_jc", "_jconf", "_jreader", "_jwrite"}
)
_MAY_REACH_THE_JVM = ("pyspark", "py4j", "delta")


class Finder:
    """Finds modules in the standard library, in what is installed and in what the task has brought, and nowhere else.

    A path of the host may well come to `sys.path`: the step launcher sends its working directory along.
    """

    def __init__(self, installed: Sequence[str], hidden: Sequence[str], own: Path) -> None:
        self._standard = frozenset(sys.path)
        self._installed = frozenset(installed)
        self._hidden = frozenset(hidden)
        self._own = own.resolve()

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: types.ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if path is None:
            path = [entry for entry in sys.path if self._may_have(name, entry)]
        return importlib.machinery.PathFinder.find_spec(name, path, target)

    def _may_have(self, name: str, entry: str) -> bool:
        if entry in self._installed:
            return name not in self._hidden
        return entry in self._standard or self._own in Path(entry).resolve().parents

    find_distributions = staticmethod(importlib.machinery.PathFinder.find_distributions)
    invalidate_caches = staticmethod(importlib.machinery.PathFinder.invalidate_caches)


class _Secrets:
    def __init__(self, host: str, token: str) -> None:
        self.__where = (host, token)

    def get(self, scope: str, key: str) -> str:
        host, token = self.__where
        request = urllib.request.Request(
            f"{host}/api/2.0/secrets/get?{urllib.parse.urlencode({'scope': scope, 'key': key})}",
            headers={"Authorization": f"Bearer {token}"},
        )
        try:
            with urllib.request.urlopen(request, timeout=30) as answer:
                return base64.b64decode(json.load(answer)["value"]).decode()
        except urllib.error.HTTPError as error:
            message = json.load(error).get("message", "")
        raise RuntimeError(f"Secret does not exist with scope: {scope} and key: {key} ({message})")


class _Utilities:
    def __init__(self, secrets: _Secrets) -> None:
        self.secrets = secrets


def _on_a_running_jvm(port: int, secret: str) -> Any:
    """A session of its own there, as `bronze_assets.warm_engine` gets one."""
    from pyspark import SparkConf, SparkContext
    from pyspark.java_gateway import launch_gateway
    from pyspark.sql import SparkSession

    os.environ |= {"PYSPARK_GATEWAY_PORT": str(port), "PYSPARK_GATEWAY_SECRET": secret}
    try:
        gateway = launch_gateway()  # type: ignore[no-untyped-call]
    finally:
        for name in ("PYSPARK_GATEWAY_PORT", "PYSPARK_GATEWAY_SECRET"):
            del os.environ[name]
    SparkContext._ensure_initialized(gateway=gateway)
    running = gateway.jvm.org.apache.spark.SparkContext.getOrCreate()
    jsc = gateway.jvm.JavaSparkContext.fromSparkContext(running)
    handler = signal.getsignal(signal.SIGINT)
    context = SparkContext(conf=SparkConf(_jconf=jsc.getConf()), gateway=gateway, jsc=jsc)
    signal.signal(signal.SIGINT, handler)
    session = SparkSession(context).newSession()
    # For this process; to the JVM the default session stays that of whoever started it.
    SparkSession._instantiatedSession = SparkSession._activeSession = session
    gateway.jvm.SparkSession.setActiveSession(session._jsparkSession)
    return session


def _on_a_jvm_of_its_own(jars: Sequence[str], conf: dict[str, str]) -> Any:
    from pyspark.sql import SparkSession

    os.environ["PYSPARK_SUBMIT_ARGS"] = "pyspark-shell"
    builder = SparkSession.builder.master("local[2]").appName("fake cluster")
    for name, value in {
        "spark.driver.extraClassPath": os.pathsep.join(jars),
        "spark.driver.extraJavaOptions": "-Duser.timezone=UTC -XX:-UsePerfData",
        "spark.driver.bindAddress": "127.0.0.1",
        "spark.driver.host": "127.0.0.1",
        "spark.ui.enabled": "false",
        "spark.ui.showConsoleProgress": "false",
        "spark.local.dir": str(Path.cwd()),
        "spark.sql.warehouse.dir": str(Path.cwd() / "warehouse"),
        "spark.sql.extensions": "io.delta.sql.DeltaSparkSessionExtension",
        "spark.sql.catalog.spark_catalog": "org.apache.spark.sql.delta.catalog.DeltaCatalog",
        "spark.sql.session.timeZone": "UTC",
        "spark.sql.shuffle.partitions": "2",
        "spark.databricks.delta.snapshotPartitions": "1",
        **conf,
    }.items():
        builder = builder.config(name, value)
    return builder.getOrCreate()


def _refuse_to_stop(*_: object, **__: object) -> None:
    raise RuntimeError("The Spark context has stopped and the driver is restarting: a task must not stop Spark.")


def _guard_serverless() -> None:
    """Have Spark refuse what it refuses behind Spark Connect on serverless compute."""
    from pyspark import SparkContext
    from pyspark.errors import AnalysisException, PySparkAttributeError
    from pyspark.sql import SparkSession
    from pyspark.sql.classic.column import Column
    from pyspark.sql.classic.dataframe import DataFrame
    from pyspark.sql.conf import RuntimeConfig

    def guarded(kind: type) -> None:
        plain: Any = kind.__getattribute__

        def get(self: object, name: str) -> Any:
            if name in _OF_THE_JVM:
                asking = str(sys._getframe(1).f_globals.get("__name__"))
                if asking.partition(".")[0] not in _MAY_REACH_THE_JVM:
                    raise PySparkAttributeError(
                        errorClass="JVM_ATTRIBUTE_NOT_SUPPORTED", messageParameters={"attr_name": name}
                    )
            return plain(self, name)

        kind.__getattribute__ = get  # type: ignore[method-assign, assignment]

    for kind in (SparkSession, DataFrame, Column):
        guarded(kind)

    def unsupported(what: str) -> Any:
        def refuse(*_: object, **__: object) -> None:
            raise AnalysisException(
                f"[NOT_SUPPORTED_WITH_SERVERLESS] {what} is not supported on serverless compute. SQLSTATE: 0A000"
            )

        return refuse

    for name, what in {
        "cache": "PERSIST TABLE",
        "persist": "PERSIST TABLE",
        "checkpoint": "CHECKPOINT",
        "createGlobalTempView": "GLOBAL TEMPORARY VIEW",
        "createOrReplaceGlobalTempView": "GLOBAL TEMPORARY VIEW",
    }.items():
        setattr(DataFrame, name, unsupported(what))
    setattr(SparkContext, "getOrCreate", unsupported("A Spark context"))  # noqa: B010
    plain_set = RuntimeConfig.set

    def set_allowed(self: Any, key: str, value: Any) -> None:
        if key not in SERVERLESS_CONFIGURATIONS:
            raise AnalysisException(f"[CONFIG_NOT_AVAILABLE] Configuration {key} is not available. SQLSTATE: 42K0I")
        plain_set(self, key, value)

    setattr(RuntimeConfig, "set", set_allowed)  # noqa: B010


def _spark(told: dict[str, Any]) -> dict[str, Any]:
    """The globals `spark` and `sc`, as the task has them."""
    gateway, jars = told["gateway"], told["jars"]
    if gateway is None and jars is None:
        # A cluster without Spark: for tests of what needs none.
        return {}
    session = _on_a_running_jvm(*gateway) if gateway is not None else _on_a_jvm_of_its_own(jars, told["spark_conf"])
    if gateway is not None:
        for name, value in told["spark_conf"].items():
            # What is fixed when a JVM starts is that of this one.
            with contextlib.suppress(Exception):
                session.conf.set(name, value)
    context = session.sparkContext
    context.setJobGroup(told["group"], "a task of the fake workspace", interruptOnCancel=True)
    for name, value in told["session_conf"].items():
        session.conf.set(name, value)
    setattr(type(context), "stop", _refuse_to_stop)  # noqa: B010
    setattr(type(session), "stop", _refuse_to_stop)  # noqa: B010
    if told["serverless"]:
        _guard_serverless()
        return {"spark": session}
    return {"spark": session, "sc": context}


def main() -> int:
    """Run the task; returns the exit code."""
    told = json.load(sys.stdin)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    finder = Finder(told["installed"], told["hidden"], Path(told["own"]))
    sys.meta_path[sys.meta_path.index(importlib.machinery.PathFinder)] = finder
    sys.path += [*told["shipped"], *told["installed"]]
    file = told["python_file"]
    code = 0
    try:
        given = _spark(told) | {"dbutils": _Utilities(_Secrets(told["host"], told["token"]))}
        module = types.ModuleType("__main__")
        module.__dict__.update(given)
        # What the task pickles is looked up there.
        sys.modules["__main__"] = module
        sys.argv = [file, *told["parameters"]]
        exec(compile(Path(file).read_bytes(), file, "exec"), module.__dict__)
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else 0 if ended.code is None else 1
        if code:
            _tell(told["failure"], f"SystemExit: {ended.code}", "")
    except BaseException as error:
        code = 1
        traceback.print_exc()
        _tell(told["failure"], f"{type(error).__name__}: {error}", traceback.format_exc())
    sys.stdout.flush()
    return code


def _tell(path: str, error: str, trace: str) -> None:
    Path(path).write_text(json.dumps({"error": error, "error_trace": trace}), encoding="utf-8")


_of_this_file = sys.modules["__main__"]
"""Kept: the task's own `__main__` takes its place."""

if __name__ == "__main__":
    sys.exit(main())
