"""A Databricks workspace as its public REST API shows it, which runs what is submitted in processes of this machine.

What is in front of it is real: the SDK, dagster-databricks' step launcher, its Pipes clients. It is strict: a call that
the API does not document, an unknown or missing field, a wrong or expired token and a path that is none are refused,
and what only a mistake asks for is noted in `odd`. `fake_cluster` runs a task, in a clean process.

The one thing in which a cluster here differs from one of Databricks: `/dbfs` and `/Volumes` are not mounted. Instead,
what a task is given is made to point into the folders `FakeWorkspace.dbfs` and `FakeWorkspace.volumes`:

- `python_file`, wheels among `libraries` and `dependencies`: `dbfs:/…` and `/Volumes/…`;
- parameters, and what follows `=` in them, and the values of `spark_env_vars`: `/dbfs/…` and `/Volumes/…`;
- the paths within Pipes' bootstrap parameters, on the command line and in `spark_env_vars`: `/dbfs/…`, `dbfs:/…` and
  `/Volumes/…`. `PipesDbfsContextLoader` and `PipesDbfsMessageWriter` prepend `/dbfs` themselves and do not run here.

A path that travels otherwise, such as in a pickle, must be one of this machine: `FakeWorkspace.local` tells it.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import hashlib
import importlib
import importlib.metadata
import inspect
import itertools
import json
import os
import re
import secrets as random
import shlex
import signal
import subprocess
import sys
import sysconfig
import threading
import time
import typing
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import parse_qsl, unquote, urlsplit

from dagster_pipes import (
    DAGSTER_PIPES_CONTEXT_CLI_ARGUMENT,
    DAGSTER_PIPES_CONTEXT_ENV_VAR,
    DAGSTER_PIPES_MESSAGES_CLI_ARGUMENT,
    DAGSTER_PIPES_MESSAGES_ENV_VAR,
    decode_param,
    encode_param,
)
from packaging.requirements import InvalidRequirement, Requirement

from bronze_assets_tests import fake_cluster, fake_warehouse

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

CLUSTER = "0923-164208-meows279"
"""The one cluster that is there already."""

CLIENT_ID = "5a1b2c3d-0000-4000-8000-000000000001"
CLIENT_SECRET = "dose-of-the-test"

_TICK = 0.02
_DRIVER_DOWN = (
    "The spark driver has stopped unexpectedly and is restarting. Your notebook will be automatically reattached."
)
_FAILED = "Workload failed, see run output for details"
_PIPES = (
    DAGSTER_PIPES_CONTEXT_CLI_ARGUMENT,
    DAGSTER_PIPES_MESSAGES_CLI_ARGUMENT,
    DAGSTER_PIPES_CONTEXT_ENV_VAR,
    DAGSTER_PIPES_MESSAGES_ENV_VAR,
)
ENDED = ("TERMINATED", "SKIPPED", "INTERNAL_ERROR")


@dataclass
class Fault:
    """What goes wrong with requests, in the order of `FakeWorkspace.faults`; the first that fits is taken.

    Attributes:
        method: of the request.
        path: a regular expression for the whole path, without the query.
        times: how many requests it meets; None is all.
        status: is answered instead.
        retry_after: the seconds of the header, where there is to be one.
        code: `error_code` of the answer.
        drop: the connection ends without an answer, and the request has done nothing.
        lose: the connection ends without an answer, and the request has been carried out.
        run: what becomes of the run that the request submits: it stays PENDING, is SKIPPED, or its driver is killed
            `after` seconds from its start.
    """

    method: str
    path: str
    times: int | None = 1
    status: int | None = None
    retry_after: int | None = None
    code: str = "TEMPORARILY_UNAVAILABLE"
    drop: bool = False
    lose: bool = False
    run: Literal["never_starts", "skip", "crash_driver"] | None = None
    after: float = 0.0


@dataclass
class Task:
    """A task of a run.

    Attributes:
        key: `task_key`.
        run_id: its own; that of the whole run is another.
        body: as submitted.
        folder: holds its working directory and what it printed.
        state: `life_cycle_state`.
        result: `result_state`, once there is one.
        message: `state_message`.
        code: of the termination details.
        exit_code: of its process; negative for a signal, None before its end.
        pid: of its process, which leads a process group.
        cluster_id: None until there is a cluster, and for serverless.
    """

    key: str
    run_id: int
    body: dict[str, Any]
    folder: Path
    state: str = "PENDING"
    result: str | None = None
    message: str = ""
    code: str | None = None
    exit_code: int | None = None
    pid: int | None = None
    cluster_id: str | None = None
    started: int = 0
    ran: int = 0
    stopped: int = 0
    ended: int = 0
    killed: bool = False

    @property
    def stdout(self) -> Path:
        return self.folder / "stdout"

    @property
    def stderr(self) -> Path:
        return self.folder / "stderr"

    @property
    def failure(self) -> Path:
        return self.folder / "failure.json"

    @property
    def serverless(self) -> bool:
        return "environment_key" in self.body or not {"existing_cluster_id", "new_cluster"} & set(self.body)


@dataclass
class Run:
    """A run, as submitted and as it went."""

    run_id: int
    job_id: int
    body: dict[str, Any]
    tasks: list[Task]
    fault: Fault | None
    started: int
    cancelled: threading.Event = field(default_factory=threading.Event)

    @property
    def state(self) -> tuple[str, str | None, str]:
        """Life cycle state, result and message: of the only task, but for how Databricks words a failure."""
        states = [task.state for task in self.tasks]
        for stage in ("RUNNING", "TERMINATING", "PENDING"):
            if stage in states:
                # What of several tasks runs still, runs.
                some_ran = any(state != "PENDING" for state in states)
                stage = "RUNNING" if stage == "PENDING" and some_ran else stage
                done = next((task for task in self.tasks if task.result), None)
                return stage, done.result if stage == "TERMINATING" and done else None, "In run" if some_ran else ""
        for result in ("FAILED", "TIMEDOUT", "CANCELED"):
            for task in self.tasks:
                if task.result == result:
                    if result != "FAILED":
                        return "TERMINATED", result, task.message
                    told = f"Task {task.key} failed with message: {task.message}."
                    return "INTERNAL_ERROR", result, f"{told} This caused all downstream tasks to get skipped."
        if "SKIPPED" in states:
            return "SKIPPED", None, self.tasks[0].message
        return "TERMINATED", "SUCCESS", ""

    @property
    def ended(self) -> bool:
        return self.state[0] in ENDED

    @property
    def exit_code(self) -> int | None:
        return self.tasks[0].exit_code

    @property
    def stdout(self) -> Path:
        return self.tasks[0].stdout

    @property
    def stderr(self) -> Path:
        return self.tasks[0].stderr


class Refused(Exception):
    """An answer that tells an error."""

    def __init__(self, status: int, code: str | int, message: str) -> None:
        super().__init__(message)
        self.status, self.code, self.message = status, code, message


@dataclass
class Raw:
    """An answer that is no JSON."""

    content: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)
    status: int = 200


@dataclass
class Asked:
    """A request whose body is no JSON."""

    here: FakeWorkspace
    query: Mapping[str, str]
    headers: Mapping[str, str]
    body: bytes

    def knows(self, *names: str) -> None:
        """Refuse the request if its query names anything else."""
        if unknown := set(self.query) - set(names):
            raise self.here.strange(f"unknown parameters {sorted(unknown)}", 400, "INVALID_PARAMETER_VALUE")


@dataclass
class _Token:
    kind: Literal["pat", "oauth", "cluster"]
    left: float = float("inf")
    until: float = float("inf")


@dataclass
class FakeWorkspace:
    """What the workspace holds, how it behaves and what it was asked.

    Attributes:
        root: everything lies there.
        gateway: port and secret of a JVM that tasks attach to, each with a session of its own.
        jars: for a JVM of a task's own, where there is no `gateway`. With neither, tasks have no Spark.
        java_home: for that JVM; else the caller's JAVA_HOME.
        spark_conf: for that JVM.
        secrets: scope, key, value.
        warehouse: answers for SQL statements, if there is one.
        dbfs_enabled: False is a workspace with its DBFS root switched off.
        pending_seconds: from the submission of a task to its start.
        terminating_seconds: from the end of its process to its end.
        cluster_environ: variables of the clusters' environment.
        tells_token: whether DATABRICKS_TOKEN is among them; dagster-databricks has it that Databricks sets none.
        hidden: packages of this machine that no cluster has, unless a task brings them.
        oauth_seconds: how long a service principal's token is valid.
        clusters: answers of clusters/get, by id; new clusters come in here.
        spark_versions: name by key.
        node_types: their ids.
        policies: cluster policies, by id.
        warehouses: answers of sql/warehouses, by id. Statements are answered by `warehouse`.
        instance_pools: by id.
        me: the user whose token it is.
        securables: what Unity Catalog tells, by type as in its paths (`catalogs`, `external-locations`) and full name.
        effective_permissions: privilege assignments, by type (`catalog`, `external_location`) and full name.
        permissions_page: assignments of a page of them.
        permissions: access control lists, by type as in its paths (`clusters`) and id.
        runs: in the order of submission.
        requests: method and path of each request.
        odd: requests that nobody documents.
        faults: what goes wrong.
    """

    root: Path
    gateway: tuple[int, str] | None = None
    jars: Sequence[Path] | None = None
    java_home: Path | None = None
    spark_conf: Mapping[str, str] = field(default_factory=dict)
    secrets: dict[str, dict[str, str]] = field(default_factory=dict)
    warehouse: fake_warehouse.FakeWarehouse | None = None
    dbfs_enabled: bool = True
    pending_seconds: float = 0.0
    terminating_seconds: float = 0.0
    cluster_environ: dict[str, str] = field(default_factory=dict)
    tells_token: bool = True
    hidden: Sequence[str] = ("bronze_assets", "bronze_assets_tests", "benchmarks")
    oauth_seconds: int = 3600
    clusters: dict[str, dict[str, Any]] = field(
        default_factory=lambda: {
            CLUSTER: {
                "cluster_id": CLUSTER,
                "cluster_name": "shared",
                "spark_version": "17.3.x-scala2.13",
                "node_type_id": "i3.xlarge",
                "driver_node_type_id": "i3.xlarge",
                "num_workers": 2,
                "state": "RUNNING",
                "data_security_mode": "SINGLE_USER",
                "cluster_source": "UI",
            }
        }
    )
    spark_versions: dict[str, str] = field(
        default_factory=lambda: {
            "16.4.x-scala2.12": "16.4 LTS (includes Apache Spark 3.5.2, Scala 2.12)",
            "17.3.x-scala2.13": "17.3 LTS (includes Apache Spark 4.0.0, Scala 2.13)",
        }
    )
    node_types: list[str] = field(default_factory=lambda: ["i3.xlarge", "i3.2xlarge"])
    policies: dict[str, dict[str, Any]] = field(default_factory=dict)
    warehouses: dict[str, dict[str, Any]] = field(default_factory=dict)
    instance_pools: dict[str, dict[str, Any]] = field(default_factory=dict)
    me: dict[str, Any] = field(
        default_factory=lambda: {
            "id": "42",
            "userName": "someone@example.com",
            "displayName": "Someone",
            "active": True,
        }
    )
    securables: dict[str, dict[str, dict[str, Any]]] = field(default_factory=dict)
    effective_permissions: dict[tuple[str, str], list[dict[str, Any]]] = field(default_factory=dict)
    permissions_page: int = 2
    permissions: dict[tuple[str, str], list[dict[str, Any]]] = field(
        default_factory=lambda: {
            ("clusters", CLUSTER): [
                {
                    "user_name": "someone@example.com",
                    "all_permissions": [{"permission_level": "CAN_MANAGE", "inherited": False}],
                }
            ]
        }
    )
    runs: list[Run] = field(default_factory=list)
    requests: list[tuple[str, str]] = field(default_factory=list)
    odd: list[str] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)
    token: str = fake_warehouse.TOKEN
    port: int = 0
    _tokens: dict[str, _Token] = field(default_factory=dict)
    _cluster_token: str = field(default_factory=lambda: f"dapi-of-the-cluster-{random.token_hex(8)}")
    # Those of an earlier workspace in the same folder, or on the same JVM, are others.
    numbers: Iterator[int] = field(default_factory=lambda: itertools.count(int(time.time() * 1000)))
    handles: dict[int, tuple[Path, Path]] = field(default_factory=dict)
    lock: threading.RLock = field(default_factory=threading.RLock)
    _threads: list[threading.Thread] = field(default_factory=list)
    _closing: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        self._tokens = {self.token: _Token("pat"), self._cluster_token: _Token("cluster")}
        for folder in (self.dbfs, self.volumes, self.root / "runs"):
            folder.mkdir(parents=True, exist_ok=True)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def environ(self) -> dict[str, str]:
        """What the SDK finds the workspace and the token by."""
        return {"DATABRICKS_HOST": self.url, "DATABRICKS_TOKEN": self.token}

    @property
    def dbfs(self) -> Path:
        return self.root / "dbfs"

    @property
    def volumes(self) -> Path:
        return self.root / "Volumes"

    def local(self, path: str) -> Path:
        """Where on this machine a path of the workspace lies."""
        parts = [part for part in re.sub("^dbfs:", "", path).split("/") if part]
        if path.startswith(("/Volumes/", "dbfs:/Volumes/")):
            return self.volumes.joinpath(*parts[1:])
        return self.dbfs.joinpath(*(parts[1:] if path.startswith("/dbfs/") else parts))

    def add_volume(self, name: str) -> Path:
        """Make the volume `catalog.schema.volume`, with what it lies in; returns its folder on this machine."""
        catalog, schema, volume = name.split(".")
        self.securables.setdefault("catalogs", {}).setdefault(catalog, {"name": catalog})
        self.securables.setdefault("schemas", {}).setdefault(
            f"{catalog}.{schema}", {"name": schema, "catalog_name": catalog, "full_name": f"{catalog}.{schema}"}
        )
        self.securables.setdefault("volumes", {})[name] = {
            "name": volume,
            "catalog_name": catalog,
            "schema_name": schema,
            "full_name": name,
            "volume_type": "MANAGED",
        }
        folder = self.volumes / catalog / schema / volume
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def sign_in(self) -> str:
        """A new token of the service principal `CLIENT_ID`."""
        token = f"oauth-{random.token_hex(16)}"
        self._tokens[token] = _Token("oauth", until=time.monotonic() + self.oauth_seconds)
        return token

    def run(self, run_id: int) -> Run:
        """The run with that id, or whose task has it."""
        for run in self.runs:
            if run_id == run.run_id or run_id in [task.run_id for task in run.tasks]:
                return run
        raise Refused(400, "INVALID_PARAMETER_VALUE", f"Run {run_id} does not exist.")

    def wait(self, run_id: int, seconds: float = 300.0) -> Run:
        """The run, ended."""
        run = self.run(run_id)
        deadline = time.monotonic() + seconds
        while not run.ended:
            if time.monotonic() > deadline:
                raise TimeoutError(f"{run.state} after {seconds} s: {run.stderr}")
            time.sleep(_TICK)
        return run

    def expire_token(self, after: int = 0) -> None:
        """Let all tokens that there are, but the cluster's own, end after so many more requests."""
        with self.lock:
            for token in self._tokens.values():
                if token.kind != "cluster":
                    token.left = after

    def kill_driver(self, run_id: int) -> None:
        """Kill the processes of the run's tasks."""
        for task in self.run(run_id).tasks:
            _kill(task)

    # ---- requests

    def answer(self, method: str, target: str, headers: Mapping[str, str], body: bytes) -> Raw | None:
        """What is answered; None is a connection that ends."""
        split = urlsplit(target)
        path = unquote(split.path)
        with self.lock:
            self.requests.append((method, path))
            fault = next((one for one in self.faults if _meets(one, method, path)), None)
            if fault is not None and fault.times is not None:
                fault.times -= 1
        if fault is not None and fault.drop:
            return None
        if fault is not None and fault.status is not None:
            told = {"error_code": fault.code, "message": "a fault of the test"}
            retry = {} if fault.retry_after is None else {"Retry-After": str(fault.retry_after)}
            return json_answer(told, fault.status, retry)
        try:
            answer = self._answer(
                method, path, dict(parse_qsl(split.query, keep_blank_values=True)), headers, body, fault
            )
        except Refused as refused:
            answer = json_answer({"error_code": refused.code, "message": refused.message}, refused.status)
        except Exception as error:
            # A mistake of the fake: the SDK would try a lost connection again for five minutes.
            self.odd.append(f"{method} {path}: {error!r}")
            answer = json_answer({"error_code": "INTERNAL_ERROR", "message": repr(error)}, 500)
        return None if fault is not None and fault.lose else answer

    def _answer(
        self,
        method: str,
        path: str,
        query: dict[str, str],
        headers: Mapping[str, str],
        body: bytes,
        fault: Fault | None,
    ) -> Raw:
        endpoint, groups = _endpoint_of(method, path)
        if endpoint is None or endpoint.authorized:
            self._check_token(headers)
        if headers.get("X-Databricks-Workspace-Id") not in (None, "7"):
            raise self.strange(f"{method} {path}: another workspace", 400, "BAD_REQUEST")
        if path.startswith("/api/2.0/sql/statements") and self.warehouse is not None:
            self.warehouse.port = self.port
            passed = {"Authorization": f"Bearer {fake_warehouse.TOKEN}"}
            status, told = self.warehouse.answer(method, path, passed, body)
            return json_answer(told, status)
        if endpoint is None:
            raise self.strange(f"{method} {path}", 404, "ENDPOINT_NOT_FOUND")
        if endpoint.raw:
            given: dict[str, Any] = {"asked": Asked(self, query, headers, body)}
        else:
            given = self._parameters(endpoint, method, query, body, groups)
        if endpoint.takes_fault:
            given["fault"] = fault
        answer = endpoint.run(self, **groups, **given)
        return answer if isinstance(answer, Raw) else json_answer(answer)

    def _parameters(
        self, endpoint: _Endpoint, method: str, query: dict[str, str], body: bytes, groups: dict[str, str]
    ) -> dict[str, Any]:
        """What the request says, after a look whether each field is known, of its type, and there if it must be."""
        told: Any = query
        if method not in ("GET", "DELETE", "HEAD"):
            try:
                told = json.loads(body or b"{}")
            except ValueError:
                raise self.strange(f"{endpoint.pattern}: no JSON", 400, "MALFORMED_REQUEST") from None
            if query or not isinstance(told, dict):
                raise self.strange(f"{endpoint.pattern}: {query} {told}", 400, "MALFORMED_REQUEST")
        if endpoint.open:
            return dict(told)
        given = {}
        for name, value in told.items():
            kind = endpoint.fields.get(name)
            if kind is None or name in groups:
                raise self.strange(f"{endpoint.pattern}: unknown field {name}", 400, "INVALID_PARAMETER_VALUE")
            given[name] = _typed(value, kind) if told is query else value
            if type(given[name]) is not kind:
                raise self.strange(f"{endpoint.pattern}: {name} is no {kind}", 400, "MALFORMED_REQUEST")
        missing = endpoint.required - set(given) - set(groups)
        if missing:
            raise self.strange(f"{endpoint.pattern}: without {sorted(missing)}", 400, "INVALID_PARAMETER_VALUE")
        return given

    def strange(self, what: str, status: int, code: str) -> Refused:
        self.odd.append(what)
        return Refused(status, code, what)

    def _check_token(self, headers: Mapping[str, str]) -> None:
        kind, _, text = headers.get("Authorization", "").partition(" ")
        if kind != "Bearer":
            message = "Credential was not sent or was of an unsupported type for this API."
            raise Refused(401, 401, message)
        with self.lock:
            token = self._tokens.get(text)
            if token is None:
                raise Refused(403, 403, "Invalid access token.")
            if token.left <= 0 or time.monotonic() > token.until:
                raise Refused(403, 403, "Token is expiring within 30 seconds. (token expired)")
            token.left -= 1

    # ---- tasks

    def start(self, run: Run) -> None:
        self.runs.append(run)
        for task in run.tasks:
            thread = threading.Thread(target=self._carry_out, args=(run, task), daemon=True)
            self._threads.append(thread)
            thread.start()

    def _carry_out(self, run: Run, task: Task) -> None:
        try:
            self._go_through(run, task)
        except _Ended as ended:
            self._end(task, ended)
        except Exception as error:
            # A mistake of the fake must not leave a run that never ends.
            self.odd.append(f"run {run.run_id}: {error!r}")
            self._end(task, _Ended("INTERNAL_ERROR", "FAILED", repr(error), "INTERNAL_ERROR"))

    def _end(self, task: Task, ended: _Ended) -> None:
        task.stopped = now()
        task.message, task.code, task.result = ended.message, ended.code, ended.result
        task.state = "TERMINATING"
        self._closing.wait(self.terminating_seconds)
        task.ended = now()
        task.state = ended.state
        if task.cluster_id is not None and "new_cluster" in task.body:
            self.clusters[task.cluster_id]["state"] = "TERMINATED"

    def _go_through(self, run: Run, task: Task) -> None:
        limits = [limit for limit in (run.body.get("timeout_seconds"), task.body.get("timeout_seconds")) if limit]
        deadline = time.monotonic() + min(limits, default=float("inf"))

        def check() -> None:
            if run.cancelled.is_set() or self._closing.is_set():
                raise _Ended("TERMINATED", "CANCELED", "Run cancelled.", "USER_CANCELED")
            if time.monotonic() > deadline:
                raise _Ended("TERMINATED", "TIMEDOUT", f"Run timed out after {min(limits)} seconds.", "CANCELED")

        fault = run.fault
        begin = time.monotonic() + self.pending_seconds
        if fault is not None and fault.run == "never_starts":
            begin = float("inf")
        if fault is not None and fault.run == "skip":
            message = "Run was skipped, as an earlier one is still active."
            raise _Ended("SKIPPED", None, message, "MAX_CONCURRENT_RUNS_EXCEEDED")
        while time.monotonic() < begin:
            check()
            time.sleep(_TICK)
        self._assign_cluster(task)
        process = self._launch(task, self._install(run, task))
        task.ran = now()
        task.state = "RUNNING"
        crash = time.monotonic() + fault.after if fault is not None and fault.run == "crash_driver" else float("inf")
        try:
            while process.poll() is None:
                check()
                if time.monotonic() >= crash:
                    task.killed = True
                    _kill(task)
                time.sleep(_TICK)
        finally:
            _kill(task)
            task.exit_code = process.wait()
            if task.exit_code != 0:
                self._cancel_jobs(task)
        if task.exit_code < 0:
            raise _Ended("INTERNAL_ERROR", "FAILED", _DRIVER_DOWN, "DRIVER_ERROR")
        if task.exit_code > 0:
            raise _Ended("TERMINATED", "FAILED", _FAILED, "RUN_EXECUTION_ERROR")
        raise _Ended("TERMINATED", "SUCCESS", "", "SUCCESS")

    def _assign_cluster(self, task: Task) -> None:
        if "new_cluster" in task.body:
            made = dict(task.body["new_cluster"])
            cluster_id = f"{dt.datetime.now(dt.UTC):%m%d-%H%M%S}-fake{task.run_id}"
            made |= {
                "cluster_id": cluster_id,
                "cluster_name": f"job-{task.run_id}-run-{task.run_id}",
                "state": "RUNNING",
                "cluster_source": "JOB",
            }
            self.clusters[cluster_id] = made
            task.cluster_id = cluster_id

    def _install(self, run: Run, task: Task) -> list[str]:
        """The folders with the wheels that the task asks for; its other libraries must be there already."""
        asked = [_library(one) for one in task.body.get("libraries", [])]
        for environment in run.body.get("environments", []):
            if environment["environment_key"] == task.body.get("environment_key"):
                asked += [
                    ("whl" if one.endswith(".whl") else "pypi", one)
                    for one in environment["spec"].get("dependencies", [])
                ]
        folders = []
        for number, (kind, text) in enumerate(asked):
            problem = "No matching distribution found"
            if kind == "whl":
                wheel = self.local(text)
                if wheel.is_file() and (self.dbfs_enabled or self.volumes in wheel.parents):
                    folder = task.folder / "libraries" / str(number)
                    with zipfile.ZipFile(wheel) as archive:
                        archive.extractall(folder)
                    folders.append(str(folder))
                    continue
                problem = f"No such file or directory: {text}"
            elif kind == "pypi" and (mismatch := _mismatch(text)) is None:
                continue
            elif kind == "pypi":
                problem = str(mismatch)
            raise _Ended(
                "INTERNAL_ERROR",
                "FAILED",
                f'Library installation failed for library due to user error for {kind}: "{text}"\n Error messages:\n'
                f"Library installation attempted on the driver node of cluster {task.cluster_id} and failed. "
                f"Error Code: DRIVER_LIBRARY_INSTALLATION_FAILURE. Error Message: {problem}",
                "LIBRARY_INSTALLATION_ERROR",
            )
        return folders

    def _launch(self, task: Task, shipped: list[str]) -> subprocess.Popen[str]:
        asked = task.body["spark_python_task"]
        file = self.local(asked["python_file"])
        if not file.is_file() or not (self.dbfs_enabled or self.volumes in file.parents):
            message = f"Cannot read the python file {asked['python_file']}. Please check driver logs for more details."
            raise _Ended("INTERNAL_ERROR", "FAILED", message, "RESOURCE_NOT_FOUND")
        cluster = self.clusters.get(task.cluster_id or "", {})
        work, scratch = task.folder / "work", task.folder / "tmp"
        for folder in (work, scratch):
            folder.mkdir(parents=True)
        environ = {
            "PATH": os.pathsep.join([str(Path(sys.executable).parent), "/usr/local/bin", "/usr/bin", "/bin"]),
            "HOME": str(work),
            "TMPDIR": str(scratch),
            "LANG": "C.UTF-8",
            "SPARK_LOCAL_IP": "127.0.0.1",
            "PYSPARK_PYTHON": str(self._python_of_workers(shipped)),
            "DATABRICKS_RUNTIME_VERSION": _runtime(cluster),
            "DATABRICKS_HOST": self.url,
            **({"DATABRICKS_TOKEN": self._cluster_token} if self.tells_token else {}),
            # Serverless knows no variables of others.
            **({} if task.serverless else self.cluster_environ),
            **{name: self._mapped(value, name) for name, value in cluster.get("spark_env_vars", {}).items()},
        }
        if self.gateway is None and self.jars is not None:
            environ["JAVA_HOME"] = str(self.java_home or os.environ["JAVA_HOME"])
        parameters = asked.get("parameters", [])
        told = {
            "installed": _installed(),
            "shipped": shipped,
            "hidden": list(self.hidden),
            "own": str(task.folder),
            "python_file": str(file),
            "parameters": [
                self._mapped(one, before) for before, one in zip(["", *parameters], parameters, strict=False)
            ],
            "gateway": self.gateway,
            "jars": None if self.jars is None else [str(jar) for jar in self.jars],
            "spark_conf": {**self.spark_conf, **cluster.get("spark_conf", {})},
            "session_conf": self._session_conf(task, cluster),
            "group": self._group(task),
            "serverless": task.serverless,
            "host": self.url,
            "token": self._cluster_token,
            "failure": str(task.failure),
        }
        with task.stdout.open("wb") as stdout, task.stderr.open("wb") as stderr:
            process = subprocess.Popen(
                [sys.executable, "-I", "-S", str(Path(fake_cluster.__file__))],
                cwd=work,
                env=environ,
                stdin=subprocess.PIPE,
                stdout=stdout,
                stderr=stderr,
                start_new_session=True,
                text=True,
            )
        task.pid = process.pid
        assert process.stdin is not None
        with contextlib.suppress(BrokenPipeError), process.stdin as stdin:
            json.dump(told, stdin)
        return process

    def _session_conf(self, task: Task, cluster: Mapping[str, Any]) -> dict[str, str]:
        """What Databricks tells on the session about itself."""
        if task.serverless:
            return {}
        workers = cluster.get("num_workers", cluster.get("autoscale", {}).get("min_workers", 0))
        tags = {
            "clusterId": task.cluster_id,
            "clusterName": cluster["cluster_name"],
            "clusterNodeType": cluster.get("node_type_id", ""),
            "clusterWorkers": workers,
            "sparkVersion": cluster["spark_version"],
        }
        told = {f"spark.databricks.clusterUsageTags.{name}": str(value) for name, value in tags.items()}
        return told | {"spark.databricks.workspaceUrl": urlsplit(self.url).netloc}

    def _python_of_workers(self, shipped: Sequence[str]) -> Path:
        """The Python that Spark starts for functions of Python, as clean as the driver's."""
        text = (
            "#!/bin/sh\n"
            # An empty entry would be the working directory.
            f"export PYTHONPATH={shlex.quote(''.join(f'{one}:' for one in shipped))}"
            f"${{PYTHONPATH:+$PYTHONPATH:}}{shlex.quote(os.pathsep.join(_installed()))}\n"
            # Without .pth files and without the working directory, which is that of whoever started the JVM.
            f'exec {shlex.quote(sys.executable)} -S -P -s "$@"\n'
        )
        with self.lock:
            path = self.root / f"python-{hashlib.sha256(text.encode()).hexdigest()[:8]}"
            if not path.exists():
                path.write_text(text, encoding="utf-8")
                path.chmod(0o755)
        return path

    def _mapped(self, text: str, name: str) -> str:
        """A parameter or a variable of a task, with the paths of this machine."""
        if name in _PIPES:
            return encode_param(self._mapped_deep(decode_param(text)))
        head, equals, tail = text.partition("=")
        if equals and re.match("/(dbfs|Volumes)/", tail):
            return f"{head}={self.local(tail)}"
        return str(self.local(text)) if re.match("/(dbfs|Volumes)/", text) else text

    def _mapped_deep(self, value: Any) -> Any:
        if isinstance(value, dict):
            return {key: self._mapped_deep(one) for key, one in value.items()}
        if isinstance(value, list):
            return [self._mapped_deep(one) for one in value]
        if isinstance(value, str) and re.match("(/dbfs/|/Volumes/|dbfs:/)", value):
            return str(self.local(value))
        return value

    def _group(self, task: Task) -> str:
        return f"fake-{self._cluster_token[-16:]}-{task.run_id}"

    def _cancel_jobs(self, task: Task) -> None:
        """Cancel what the process, which is gone, has left on the shared JVM."""
        if self.gateway is None:
            return
        from py4j.clientserver import ClientServer, JavaParameters, PythonParameters

        port, secret = self.gateway
        client = ClientServer(
            JavaParameters(port=port, auth_token=secret, auto_gc=False), PythonParameters(port=0, eager_load=False)
        )
        try:
            # Also those that a command of several jobs, such as a commit to Delta, would start yet.
            client.jvm.org.apache.spark.SparkContext.getOrCreate().cancelJobGroupAndFutureJobs(self._group(task))
        finally:
            client.shutdown_callback_server()
            client.close()

    def _close(self) -> None:
        self._closing.set()
        for thread in self._threads:
            thread.join()


class _Ended(Exception):
    """How a task ended."""

    def __init__(self, state: str, result: str | None, message: str, code: str) -> None:
        super().__init__(message)
        self.state, self.result, self.message, self.code = state, result, message, code


def gateway_of(session: SparkSession) -> tuple[int, str]:
    """Port and secret of the JVM that a session of this process runs on."""
    gateway = session.sparkContext._gateway
    assert gateway is not None
    parameters = gateway.gateway_parameters
    return parameters.port, parameters.auth_token


def _kill(task: Task) -> None:
    if task.pid is not None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(task.pid, signal.SIGKILL)


def now() -> int:
    return int(time.time() * 1000)


def _meets(fault: Fault, method: str, path: str) -> bool:
    return fault.times != 0 and fault.method == method and re.fullmatch(fault.path, path) is not None


def json_answer(told: object, status: int = 200, headers: Mapping[str, str] | None = None) -> Raw:
    return Raw(json.dumps(told).encode(), {"Content-Type": "application/json", **(headers or {})}, status)


def _typed(text: str, kind: type) -> Any:
    try:
        return {"true": True, "false": False}[text] if kind is bool else kind(text)
    except (KeyError, ValueError):
        return text


def _installed() -> list[str]:
    return sorted({sysconfig.get_path("purelib"), sysconfig.get_path("platlib")})


def _runtime(cluster: Mapping[str, Any]) -> str:
    return str(cluster["spark_version"].partition(".x")[0]) if cluster else "client.4.2"


def _library(one: Mapping[str, Any]) -> tuple[str, str]:
    ((kind, told),) = one.items()
    return kind, told["package"] if kind == "pypi" else str(told)


def _mismatch(text: str) -> str | None:
    """Why what is installed is not what is asked for, if it is not."""
    try:
        asked = Requirement(text)
    except InvalidRequirement:
        return f"Invalid requirement: {text!r}"
    if not asked.specifier:
        return None
    try:
        there = importlib.metadata.version(asked.name)
    except importlib.metadata.PackageNotFoundError:
        return f"No matching distribution found for {text}"
    if asked.specifier.contains(there, prereleases=True):
        return None
    return f"Could not find a version that satisfies the requirement {text} (there is {there})"


# ---- endpoints: what a function's signature does not name is refused


@dataclass
class _Endpoint:
    method: str
    pattern: str
    run: Callable[..., Any]
    fields: dict[str, type]
    required: set[str]
    open: bool
    raw: bool
    authorized: bool
    takes_fault: bool


_ENDPOINTS: list[_Endpoint] = []


def on(method: str, pattern: str, *, raw: bool = False, authorized: bool = True) -> Callable[[Any], Any]:
    """Let the function answer these requests; raw ones see query, headers and body instead of fields."""

    def register(function: Any) -> Any:
        parameters = list(inspect.signature(function).parameters.values())[1:]
        hints = typing.get_type_hints(function)
        named = {}
        for one in parameters:
            if one.kind is one.KEYWORD_ONLY and one.name != "fault":
                named[one.name] = typing.get_origin(hints[one.name]) or hints[one.name]
        required = {one.name for one in parameters if one.name in named and one.default is one.empty}
        is_open = any(one.kind is one.VAR_KEYWORD for one in parameters)
        takes_fault = any(one.name == "fault" for one in parameters)
        _ENDPOINTS.append(_Endpoint(method, pattern, function, named, required, is_open, raw, authorized, takes_fault))
        return function

    return register


def _endpoint_of(method: str, path: str) -> tuple[_Endpoint | None, dict[str, str]]:
    for endpoint in _ENDPOINTS:
        match = re.fullmatch(endpoint.pattern, path)
        if match and endpoint.method == method:
            return endpoint, match.groupdict()
    return None, {}


@contextmanager
def serving(
    root: Path,
    *,
    gateway: tuple[int, str] | None = None,
    jars: Sequence[Path] | None = None,
    java_home: Path | None = None,
    spark_conf: Mapping[str, str] | None = None,
    secrets: Mapping[str, Mapping[str, str]] | None = None,
    warehouse: fake_warehouse.FakeWarehouse | None = None,
) -> Iterator[FakeWorkspace]:
    """A workspace; its tasks end with it, and nobody may have asked it for what is not documented."""
    # Registers what answers.
    importlib.import_module("bronze_assets_tests.fake_workspace_api")
    state = FakeWorkspace(
        root.absolute(),
        gateway=gateway,
        jars=jars,
        java_home=java_home,
        spark_conf=dict(spark_conf or {}),
        secrets={scope: dict(found) for scope, found in (secrets or {}).items()},
        warehouse=warehouse,
    )

    class Handler(BaseHTTPRequestHandler):
        def _answer(self) -> None:
            body = self._body()
            answer = state.answer(self.command, self.path, dict(self.headers), body)
            if answer is None:
                self.close_connection = True
                return
            self.send_response(answer.status)
            for name, value in answer.headers.items():
                self.send_header(name, value)
            if "Content-Length" not in answer.headers:
                self.send_header("Content-Length", str(len(answer.content)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(answer.content)

        def _body(self) -> bytes:
            if self.headers.get("Transfer-Encoding") != "chunked":
                return self.rfile.read(int(self.headers.get("Content-Length") or 0))
            # So `requests` sends streams whose length it does not see, and empty ones.
            content = b""
            while size := int(self.rfile.readline().partition(b";")[0], 16):
                content += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
            return content

        do_GET = do_POST = do_PUT = do_HEAD = do_DELETE = do_PATCH = _answer  # noqa: N815

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002
            pass

    with fake_warehouse.listening(Handler) as state.port:
        try:
            yield state
        finally:
            state._close()
    assert state.odd == []
    assert warehouse is None or warehouse.odd == []
