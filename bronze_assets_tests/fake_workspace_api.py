"""What a `FakeWorkspace` answers, endpoint by endpoint."""

from __future__ import annotations

import base64
import email.utils
import inspect
import json
import re
import shutil
import uuid
from collections.abc import Callable, Container
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

from databricks.sdk.service import compute, jobs

from bronze_assets_tests.fake_workspace import (
    CLIENT_ID,
    CLIENT_SECRET,
    CLUSTER,
    ENDED,
    Asked,
    FakeWorkspace,
    Fault,
    Raw,
    Refused,
    Run,
    Task,
    json_answer,
    now,
    on,
)

_BLOCK = 2**20
_READ = 2**19

# ---- DBFS


def _on_dbfs(here: FakeWorkspace, path: str) -> Path:
    """Where the path lies; the DBFS API knows no volumes."""
    plain = path.removeprefix("dbfs:")
    if not re.fullmatch(r"/(?!/).*", plain) or ".." in plain.split("/"):
        raise here.strange(f"DBFS path {path!r}", 400, "INVALID_PARAMETER_VALUE")
    if plain.startswith("/Volumes"):
        raise here.strange(f"a volume by the DBFS API: {path}", 400, "INVALID_PARAMETER_VALUE")
    if not here.dbfs_enabled:
        raise Refused(403, "PERMISSION_DENIED", f"Public DBFS root is disabled. Access is denied on path: {plain}")
    return here.local(plain)


def _existing(here: FakeWorkspace, path: str) -> Path:
    local = _on_dbfs(here, path)
    if not local.exists():
        raise Refused(404, "RESOURCE_DOES_NOT_EXIST", f"No file or directory exists on path {path}.")
    return local


def _info(here: FakeWorkspace, local: Path) -> dict[str, Any]:
    status = local.stat()
    is_dir = local.is_dir()
    return {
        "path": f"/{local.relative_to(here.dbfs).as_posix()}".replace("/.", "/"),
        "is_dir": is_dir,
        "file_size": 0 if is_dir else status.st_size,
        "modification_time": int(status.st_mtime * 1000),
    }


def _decoded(here: FakeWorkspace, text: str) -> bytes:
    try:
        content = base64.b64decode(text, validate=True)
    except ValueError:
        raise here.strange("data that is no base64", 400, "MALFORMED_REQUEST") from None
    if len(content) > _BLOCK:
        raise Refused(400, "MAX_BLOCK_SIZE_EXCEEDED", f"The block of {len(content)} bytes exceeds 1 MB.")
    return content


@on("POST", "/api/2.0/dbfs/create")
def _create(here: FakeWorkspace, *, path: str, overwrite: bool = False) -> object:
    local = _on_dbfs(here, path)
    if local.is_dir() or (local.exists() and not overwrite):
        raise Refused(400, "RESOURCE_ALREADY_EXISTS", f"A file or directory already exists at the input path {path}.")
    local.parent.mkdir(parents=True, exist_ok=True)
    with here.lock:
        handle = next(here.numbers)
        part = here.root / f"handle-{handle}"
        part.touch()
        here.handles[handle] = (part, local)
    return {"handle": handle}


def _handle(here: FakeWorkspace, handle: int) -> tuple[Path, Path]:
    if handle not in here.handles:
        raise Refused(404, "RESOURCE_DOES_NOT_EXIST", f"No stream opened with handle {handle}.")
    return here.handles[handle]


@on("POST", "/api/2.0/dbfs/add-block")
def _add_block(here: FakeWorkspace, *, handle: int, data: str) -> object:
    content = _decoded(here, data)
    with _handle(here, handle)[0].open("ab") as file:
        file.write(content)
    return {}


@on("POST", "/api/2.0/dbfs/close")
def _close_handle(here: FakeWorkspace, *, handle: int) -> object:
    part, local = _handle(here, handle)
    del here.handles[handle]
    part.replace(local)
    return {}


@on("POST", "/api/2.0/dbfs/put")
def _put(here: FakeWorkspace, *, path: str, contents: str, overwrite: bool = False) -> object:
    local = _on_dbfs(here, path)
    if local.is_dir() or (local.exists() and not overwrite):
        raise Refused(400, "RESOURCE_ALREADY_EXISTS", f"A file or directory already exists at the input path {path}.")
    content = _decoded(here, contents)
    local.parent.mkdir(parents=True, exist_ok=True)
    local.write_bytes(content)
    return {}


@on("GET", "/api/2.0/dbfs/read")
def _read(here: FakeWorkspace, *, path: str, offset: int = 0, length: int = _READ) -> object:
    local = _existing(here, path)
    if local.is_dir() or offset < 0 or length < 0:
        raise Refused(400, "INVALID_PARAMETER_VALUE", f"Cannot read {path} from {offset} for {length} bytes.")
    if length > _BLOCK:
        raise Refused(400, "MAX_READ_SIZE_EXCEEDED", f"The read length {length} exceeds 1 MB.")
    with local.open("rb") as file:
        file.seek(offset)
        content = file.read(length)
    return {"bytes_read": len(content), "data": base64.b64encode(content).decode()}


@on("GET", "/api/2.0/dbfs/get-status")
def _get_status(here: FakeWorkspace, *, path: str) -> object:
    return _info(here, _existing(here, path))


@on("GET", "/api/2.0/dbfs/list")
def _list(here: FakeWorkspace, *, path: str) -> object:
    local = _existing(here, path)
    found = sorted(local.iterdir()) if local.is_dir() else [local]
    return {"files": [_info(here, one) for one in found]} if found else {}


@on("POST", "/api/2.0/dbfs/mkdirs")
def _mkdirs(here: FakeWorkspace, *, path: str) -> object:
    local = _on_dbfs(here, path)
    if local.is_file():
        raise Refused(400, "RESOURCE_ALREADY_EXISTS", f"A file already exists at {path}.")
    local.mkdir(parents=True, exist_ok=True)
    return {}


@on("POST", "/api/2.0/dbfs/delete")
def _delete(here: FakeWorkspace, *, path: str, recursive: bool = False) -> object:
    local = _existing(here, path)
    if local.is_file():
        local.unlink()
    elif recursive or not any(local.iterdir()):
        shutil.rmtree(local)
    else:
        raise Refused(400, "IO_ERROR", f"The directory {path} is not empty.")
    return {}


# ---- jobs

_JOBS = r"/api/2\.[12]/jobs/runs"
_SUBMITTED = set(inspect.signature(jobs.JobsAPI.submit).parameters) - {"self"}


@on("POST", f"{_JOBS}/submit")
def _submit(here: FakeWorkspace, fault: Fault | None = None, **body: Any) -> object:
    _check_submitted(here, body)
    token = body.get("idempotency_token")
    with here.lock:
        for run in here.runs:
            if token and run.body.get("idempotency_token") == token:
                return {"run_id": run.run_id}
        run_id, job_id = next(here.numbers), next(here.numbers)
        tasks = []
        for one in body["tasks"]:
            task_id = next(here.numbers)
            folder = here.root / "runs" / str(task_id)
            folder.mkdir()
            cluster = one.get("existing_cluster_id")
            tasks.append(Task(one["task_key"], task_id, one, folder, cluster_id=cluster, started=now()))
        fault = fault if fault is not None and fault.run is not None else None
        here.start(Run(run_id, job_id, body, tasks, fault, now()))
    return {"run_id": run_id}


def _check_submitted(here: FakeWorkspace, body: dict[str, Any]) -> None:
    def refuse(message: str) -> Refused:
        return here.strange(f"runs/submit: {message}", 400, "INVALID_PARAMETER_VALUE")

    if unknown := set(body) - _SUBMITTED:
        raise refuse(f"unknown fields {sorted(unknown)}")
    if not body.get("tasks"):
        raise refuse("no tasks")
    if len(body.get("idempotency_token", "")) > 64:
        raise refuse("an idempotency token of more than 64 characters")
    environments = {}
    for one in body.get("environments", []):
        if lost := _lost(one, jobs.JobEnvironment.from_dict(one).as_dict()):
            raise refuse(f"unknown fields {lost} in an environment")
        if not {"client", "environment_version"} & set(one.get("spec", {})):
            raise refuse("an environment without its version")
        environments[one["environment_key"]] = one
    keys = [one.get("task_key") for one in body["tasks"]]
    if None in keys or len(set(keys)) != len(keys):
        raise refuse("task keys must be there and differ")
    for one in body["tasks"]:
        if lost := _lost(one, jobs.SubmitTask.from_dict(one).as_dict()):
            raise refuse(f"unknown fields {lost} in a task")
        if one.get("depends_on") or "spark_python_task" not in one or not one["spark_python_task"].get("python_file"):
            raise refuse("this workspace runs nothing but files of Python that depend on no other task")
        where = {"existing_cluster_id", "new_cluster", "environment_key"} & set(one)
        if len(where) != 1:
            raise refuse(f"a task needs one of a cluster and an environment, and has {sorted(where)}")
        if "environment_key" in one:
            if one["environment_key"] not in environments:
                raise refuse(f"there is no environment {one['environment_key']}")
            if one.get("libraries"):
                message = "Libraries field is not supported for serverless task"
                raise refuse(f"{message}, please specify libraries in environment.")
        if one.get("existing_cluster_id", CLUSTER) not in here.clusters:
            raise Refused(400, "INVALID_PARAMETER_VALUE", f"Cluster {one['existing_cluster_id']} does not exist")
        if "new_cluster" in one:
            _check_cluster(here, refuse, one["new_cluster"])


def _check_cluster(here: FakeWorkspace, refuse: Callable[[str], Refused], new: dict[str, Any]) -> None:
    if lost := _lost(new, compute.ClusterSpec.from_dict(new).as_dict()):
        raise refuse(f"unknown fields {lost} in a cluster")
    for alternatives in (
        {"spark_version"},
        {"node_type_id", "instance_pool_id", "policy_id"},
        {"num_workers", "autoscale", "policy_id"},
    ):
        if not alternatives & set(new):
            raise refuse(f"a cluster without {sorted(alternatives)}")
    known: dict[str, Container[str]] = {
        "spark_version": here.spark_versions,
        "node_type_id": here.node_types,
        "driver_node_type_id": here.node_types,
        "policy_id": here.policies,
        "instance_pool_id": here.instance_pools,
        "driver_instance_pool_id": here.instance_pools,
    }
    for name, there in known.items():
        if name in new and new[name] not in there:
            raise Refused(400, "INVALID_PARAMETER_VALUE", f"Invalid {name}: {new[name]}")
    if "cluster_name" in new:
        raise refuse("Cluster name is not supported in job clusters")


def _lost(told: Any, kept: Any, path: str = "") -> list[str]:
    """What the SDK's classes, which are the API's documentation, do not know."""
    if isinstance(told, dict) and isinstance(kept, dict):
        lost = [f"{path}.{key}" for key in told if key not in kept and told[key]]
        return lost + [one for key in kept if key in told for one in _lost(told[key], kept[key], f"{path}.{key}")]
    if isinstance(told, list) and isinstance(kept, list):
        return [one for pair in zip(told, kept, strict=True) for one in _lost(*pair, path)]
    return [] if told == kept else [path]


@on("GET", f"{_JOBS}/get")
def _get_run(
    here: FakeWorkspace,
    *,
    run_id: int,
    include_history: bool = False,
    include_resolved_values: bool = False,
    page_token: str = "",
) -> object:
    run = here.run(run_id)
    for task in run.tasks:
        if task.run_id == run_id:
            return _told_task(here, run, task) | {"job_id": run.job_id, "tasks": [_told_task(here, run, task)]}
    return _told_run(here, run)


@on("GET", f"{_JOBS}/list")
def _list_runs(
    here: FakeWorkspace,
    *,
    active_only: bool = False,
    completed_only: bool = False,
    expand_tasks: bool = False,
    job_id: int = 0,
    limit: int = 20,
    offset: int = 0,
    page_token: str = "",
    run_type: str = "",
    start_time_from: int = 0,
    start_time_to: int = 2**62,
) -> object:
    if not 0 <= limit <= 25 or (active_only and completed_only):
        raise here.strange(f"runs/list: {limit} {active_only} {completed_only}", 400, "INVALID_PARAMETER_VALUE")
    found = [
        run
        for run in reversed(here.runs)
        if not (run.ended if active_only else completed_only and not run.ended)
        and job_id in (0, run.job_id)
        and run_type in ("", "SUBMIT_RUN")
        and start_time_from <= run.started <= start_time_to
    ]
    begin = int(page_token or offset)
    end = begin + (limit or 25)
    told = []
    for run in found[begin:end]:
        one = _told_run(here, run)
        if not expand_tasks:
            del one["tasks"]
        told.append(one)
    more: dict[str, Any] = {"has_more": end < len(found)}
    if more["has_more"]:
        more["next_page_token"] = str(end)
    return ({"runs": told} if told else {}) | more


@on("GET", f"{_JOBS}/get-output")
def _get_output(here: FakeWorkspace, *, run_id: int) -> object:
    run = here.run(run_id)
    for task in run.tasks:
        if task.run_id == run_id:
            told: dict[str, Any] = {"metadata": _told_task(here, run, task) | {"job_id": run.job_id}}
            if task.stdout.exists():
                logs = task.stdout.read_text(encoding="utf-8", errors="replace")
                told |= {"logs": logs[-5 * 2**20 :], "logs_truncated": len(logs) > 5 * 2**20}
            if task.failure.exists():
                told |= json.loads(task.failure.read_text(encoding="utf-8"))
            elif task.result == "FAILED":
                told["error"] = task.message
            return told
    message = (
        "Retrieving the output of runs with multiple tasks is not supported. "
        "Please retrieve the output of each individual task run instead."
    )
    raise Refused(400, "INVALID_PARAMETER_VALUE", message)


@on("POST", f"{_JOBS}/cancel")
def _cancel(here: FakeWorkspace, *, run_id: int) -> object:
    here.run(run_id).cancelled.set()
    return {}


def _state(life: str, result: str | None, message: str) -> dict[str, Any]:
    told: dict[str, Any] = {"life_cycle_state": life, "state_message": message}
    if result is not None:
        told["result_state"] = result
    return told | {"user_cancelled_or_timedout": result in ("CANCELED", "TIMEDOUT")}


def _status(life: str, code: str | None, message: str) -> dict[str, Any]:
    if life not in ENDED:
        return {"state": life}
    kind = {"SUCCESS": "SUCCESS", "DRIVER_ERROR": "CLOUD_FAILURE", "INTERNAL_ERROR": "INTERNAL_ERROR"}
    details = {"code": code, "type": kind.get(str(code), "CLIENT_ERROR"), "message": message}
    return {"state": "TERMINATED", "termination_details": details}


def _told_run(here: FakeWorkspace, run: Run) -> dict[str, Any]:
    life, result, message = run.state
    ended = max(task.ended for task in run.tasks) if life in ENDED else 0
    code = next((task.code for task in run.tasks if task.result != "SUCCESS"), "SUCCESS")
    told = {
        "job_id": run.job_id,
        "run_id": run.run_id,
        "number_in_job": run.run_id,
        "creator_user_name": "someone@example.com",
        "state": _state(life, result, message),
        "status": _status(life, code, message),
        "start_time": run.started,
        # Of a run of tasks these are 0.
        "setup_duration": 0,
        "execution_duration": 0,
        "cleanup_duration": 0,
        "end_time": ended,
        "trigger": "ONE_TIME",
        "run_name": run.body.get("run_name", "Untitled"),
        "run_page_url": f"{here.url}/?o=7#job/{run.job_id}/run/{run.run_id}",
        "run_type": "SUBMIT_RUN",
        "format": "MULTI_TASK",
        "tasks": [_told_task(here, run, task) for task in run.tasks],
    }
    return told | ({"run_duration": ended - run.started} if ended else {})


def _told_task(here: FakeWorkspace, run: Run, task: Task) -> dict[str, Any]:
    told = {
        **{key: value for key, value in task.body.items() if key != "timeout_seconds"},
        "run_id": task.run_id,
        "run_page_url": f"{here.url}/?o=7#job/{run.job_id}/run/{task.run_id}",
        "state": _state(task.state, task.result, task.message),
        "status": _status(task.state, task.code, task.message),
        "start_time": task.started,
        "setup_duration": max(0, (task.ran or task.ended) - task.started) if task.ran or task.ended else 0,
        "execution_duration": max(0, task.stopped - task.ran) if task.ran and task.stopped else 0,
        "cleanup_duration": max(0, task.ended - task.stopped) if task.ended and task.stopped else 0,
        "end_time": task.ended,
        "attempt_number": 0,
    }
    if task.cluster_id is not None:
        context = {"spark_context_id": str(task.run_id)} if task.ran else {}
        told["cluster_instance"] = {"cluster_id": task.cluster_id, **context}
    return told


# ---- volumes


def _on_volume(here: FakeWorkspace, path: str) -> Path:
    parts = path.split("/")
    if parts[:2] != ["", "Volumes"] or ".." in parts or len(parts) < 5:
        raise here.strange(f"path {path!r} is not that of a volume", 400, "INVALID_PARAMETER_VALUE")
    name = ".".join(parts[2:5])
    if name not in here.securables.get("volumes", {}):
        raise Refused(404, "NOT_FOUND", f"Volume '{name}' does not exist.")
    return here.local(path)


def _file(here: FakeWorkspace, path: str) -> Path:
    local = _on_volume(here, path)
    if not local.is_file():
        raise Refused(404, "NOT_FOUND", "The file being accessed is not found.")
    return local


def _directory(here: FakeWorkspace, path: str) -> Path:
    local = _on_volume(here, path.rstrip("/"))
    if not local.is_dir():
        raise Refused(404, "NOT_FOUND", "The directory being accessed is not found.")
    return local


_FILES = r"/api/2\.0/fs/files(?P<path>/.+)"
_DIRECTORIES = r"/api/2\.0/fs/directories(?P<path>/.+)"


@on("PUT", _FILES, raw=True)
def _upload(here: FakeWorkspace, asked: Asked, *, path: str) -> object:
    asked.knows("overwrite")
    local = _on_volume(here, path)
    if asked.headers.get("Content-Type") != "application/octet-stream":
        raise here.strange(f"an upload of {asked.headers.get('Content-Type')}", 400, "MALFORMED_REQUEST")
    if not local.parent.is_dir():
        raise Refused(404, "NOT_FOUND", "The parent directory being accessed is not found.")
    if local.is_dir() or (local.exists() and asked.query.get("overwrite", "true") == "false"):
        raise Refused(409, "ALREADY_EXISTS", "The file being created already exists.")
    # Whoever reads it meanwhile sees all or nothing.
    part = here.root / f"upload-{uuid.uuid4()}"
    part.write_bytes(asked.body)
    part.replace(local)
    return Raw(status=204)


def _file_headers(local: Path) -> dict[str, str]:
    status = local.stat()
    return {
        "Content-Type": "application/octet-stream",
        "Content-Length": str(status.st_size),
        "Last-Modified": email.utils.formatdate(status.st_mtime, usegmt=True),
    }


@on("GET", _FILES, raw=True)
def _download(here: FakeWorkspace, asked: Asked, *, path: str) -> object:
    asked.knows()
    local = _file(here, path)
    told = _file_headers(local)
    content = local.read_bytes()
    told["Content-Length"] = str(len(content))
    if (span := asked.headers.get("Range")) is None:
        return Raw(content, told)
    found = re.fullmatch(r"bytes=(\d+)-(\d*)", span)
    if found is None or int(found[1]) >= len(content):
        raise Refused(416, "RANGE_NOT_SATISFIABLE", f"The range {span} is none of the file's.")
    part = content[int(found[1]) : int(found[2]) + 1 if found[2] else None]
    told["Content-Length"] = str(len(part))
    told["Content-Range"] = f"bytes {found[1]}-{int(found[1]) + len(part) - 1}/{len(content)}"
    return Raw(part, told, 206)


@on("HEAD", _FILES, raw=True)
def _file_metadata(here: FakeWorkspace, asked: Asked, *, path: str) -> object:
    asked.knows()
    return Raw(headers=_file_headers(_file(here, path)))


@on("DELETE", _FILES, raw=True)
def _delete_file(here: FakeWorkspace, asked: Asked, *, path: str) -> object:
    asked.knows()
    _file(here, path).unlink()
    return Raw(status=204)


@on("PUT", _DIRECTORIES, raw=True)
def _create_directory(here: FakeWorkspace, asked: Asked, *, path: str) -> object:
    asked.knows()
    local = _on_volume(here, path.rstrip("/"))
    if local.is_file():
        raise Refused(409, "ALREADY_EXISTS", "A file is there already.")
    local.mkdir(parents=True, exist_ok=True)
    return Raw(status=204)


@on("HEAD", _DIRECTORIES, raw=True)
def _directory_metadata(here: FakeWorkspace, asked: Asked, *, path: str) -> object:
    asked.knows()
    _directory(here, path)
    return Raw()


@on("DELETE", _DIRECTORIES, raw=True)
def _delete_directory(here: FakeWorkspace, asked: Asked, *, path: str) -> object:
    asked.knows()
    local = _directory(here, path)
    if any(local.iterdir()):
        raise Refused(400, "FILES_API_DIRECTORY_IS_NOT_EMPTY", "The directory being accessed is not empty.")
    local.rmdir()
    return Raw(status=204)


@on("GET", _DIRECTORIES, raw=True)
def _list_directory(here: FakeWorkspace, asked: Asked, *, path: str) -> object:
    asked.knows("page_size", "page_token")
    found = sorted(_directory(here, path).iterdir())
    begin = int(asked.query.get("page_token", 0))
    end = begin + min(int(asked.query.get("page_size", 1000)), 1000)
    contents = []
    for one in found[begin:end]:
        status = one.stat()
        told = {
            "path": f"{path.rstrip('/')}/{one.name}",
            "name": one.name,
            "is_directory": one.is_dir(),
            "last_modified": int(status.st_mtime * 1000),
        }
        contents.append(told if one.is_dir() else told | {"file_size": status.st_size})
    answer: dict[str, Any] = {"contents": contents} if contents else {}
    return answer | ({"next_page_token": str(end)} if end < len(found) else {})


# ---- Unity Catalog


@on("GET", r"/api/2\.1/unity-catalog/(?P<kind>catalogs|schemas|volumes|tables|external-locations)/(?P<name>[^/]+)")
def _get_securable(here: FakeWorkspace, *, kind: str, name: str, include_browse: bool = False) -> object:
    return _securable(here, kind, name)


@on("GET", r"/api/2\.1/unity-catalog/(?P<kind>catalogs|external-locations)")
def _list_securables(
    here: FakeWorkspace, *, kind: str, include_browse: bool = False, max_results: int = 0, page_token: str = ""
) -> object:
    found = here.securables.get(kind, {})
    return {kind.replace("-", "_"): list(found.values())} if found else {}


def _securable(here: FakeWorkspace, kind: str, name: str) -> dict[str, Any]:
    found = here.securables.get(kind, {}).get(name)
    if found is None:
        singular = kind.removesuffix("s").replace("-", " ")
        code = f"{singular.upper().replace(' ', '_')}_DOES_NOT_EXIST"
        raise Refused(404, code, f"{singular.capitalize()} '{name}' does not exist.")
    return found


@on("GET", r"/api/2\.1/unity-catalog/effective-permissions/(?P<kind>[a-zA-Z_]+)/(?P<name>[^/]+)")
def _get_effective_permissions(
    here: FakeWorkspace, *, kind: str, name: str, principal: str = "", max_results: int = 0, page_token: str = ""
) -> object:
    kind = kind.lower()
    _securable(here, f"{kind.replace('_', '-')}s", name)
    found = [one for one in here.effective_permissions.get((kind, name), []) if principal in ("", one["principal"])]
    begin = int(page_token or 0)
    end = begin + here.permissions_page
    more = {"next_page_token": str(end)} if end < len(found) else {}
    return {"privilege_assignments": found[begin:end], **more}


# ---- permissions


_OBJECTS = r"/api/2\.0/permissions/(?P<kind>clusters|cluster-policies|instance-pools|jobs)/(?P<object_id>[^/]+)"


@on("GET", _OBJECTS)
def _get_permissions(here: FakeWorkspace, *, kind: str, object_id: str) -> object:
    found = here.permissions.get((kind, object_id))
    if found is None:
        raise Refused(404, "RESOURCE_DOES_NOT_EXIST", f"{kind} with id {object_id} does not exist.")
    singular = "cluster-policy" if kind == "cluster-policies" else kind.removesuffix("s")
    return {"object_id": f"/{kind}/{object_id}", "object_type": singular, "access_control_list": found}


@on("PATCH", _OBJECTS)
def _update_permissions(
    here: FakeWorkspace, *, kind: str, object_id: str, access_control_list: list[dict[str, str]]
) -> object:
    for one in access_control_list:
        who = {name: value for name, value in one.items() if name != "permission_level"}
        if len(who) != 1 or not set(who) <= {"user_name", "group_name", "service_principal_name"}:
            raise here.strange(f"permissions: {one}", 400, "INVALID_PARAMETER_VALUE")
        level = {"permission_level": one["permission_level"], "inherited": False}
        here.permissions.setdefault((kind, object_id), []).append({**who, "all_permissions": [level]})
    return _get_permissions(here, kind=kind, object_id=object_id)


# ---- clusters


@on("GET", r"/api/2\.[01]/clusters/spark-versions")
def _spark_versions(here: FakeWorkspace) -> object:
    return {"versions": [{"key": key, "name": name} for key, name in here.spark_versions.items()]}


@on("GET", r"/api/2\.[01]/clusters/list-node-types")
def _node_types(here: FakeWorkspace) -> object:
    return {
        "node_types": [
            {
                "node_type_id": one,
                "instance_type_id": one,
                "description": one,
                "memory_mb": 31232,
                "num_cores": 4.0,
                "is_deprecated": False,
                "category": "Storage Optimized",
            }
            for one in here.node_types
        ]
    }


@on("GET", r"/api/2\.0/policies/clusters/get")
def _get_policy(here: FakeWorkspace, *, policy_id: str) -> object:
    if policy_id not in here.policies:
        raise Refused(404, "RESOURCE_DOES_NOT_EXIST", f"Policy {policy_id} does not exist.")
    return here.policies[policy_id]


@on("GET", r"/api/2\.0/instance-pools/get")
def _get_pool(here: FakeWorkspace, *, instance_pool_id: str) -> object:
    if instance_pool_id not in here.instance_pools:
        raise Refused(404, "RESOURCE_DOES_NOT_EXIST", f"Instance pool {instance_pool_id} does not exist.")
    return here.instance_pools[instance_pool_id]


@on("GET", "/api/2.[01]/clusters/get")
def _get_cluster(here: FakeWorkspace, *, cluster_id: str) -> object:
    if cluster_id not in here.clusters:
        raise Refused(400, "INVALID_PARAMETER_VALUE", f"Cluster {cluster_id} does not exist")
    return here.clusters[cluster_id]


# ---- SQL warehouses


@on("GET", r"/api/2\.0/sql/warehouses/(?P<warehouse_id>[^/]+)")
def _get_warehouse(here: FakeWorkspace, *, warehouse_id: str) -> object:
    if warehouse_id not in here.warehouses:
        raise Refused(404, "RESOURCE_DOES_NOT_EXIST", f"SQL warehouse {warehouse_id} does not exist.")
    return here.warehouses[warehouse_id]


# ---- secrets


@on("GET", "/api/2.0/secrets/scopes/list")
def _list_scopes(here: FakeWorkspace) -> object:
    return {"scopes": [{"name": name, "backend_type": "DATABRICKS"} for name in here.secrets]} if here.secrets else {}


@on("GET", "/api/2.0/secrets/list")
def _list_secrets(here: FakeWorkspace, *, scope: str) -> object:
    if scope not in here.secrets:
        raise Refused(404, "RESOURCE_DOES_NOT_EXIST", f"Scope {scope} does not exist!")
    return {"secrets": [{"key": key, "last_updated_timestamp": 1790000000000} for key in here.secrets[scope]]}


@on("GET", "/api/2.0/secrets/get")
def _get_secret(here: FakeWorkspace, *, scope: str, key: str) -> object:
    if scope not in here.secrets:
        raise Refused(404, "RESOURCE_DOES_NOT_EXIST", f"Scope {scope} does not exist!")
    if key not in here.secrets[scope]:
        raise Refused(404, "RESOURCE_DOES_NOT_EXIST", f"Secret {key} does not exist!")
    return {"key": key, "value": base64.b64encode(here.secrets[scope][key].encode()).decode()}


# ---- who is who


@on("GET", "/.well-known/databricks-config", authorized=False)
def _about(here: FakeWorkspace) -> object:
    """Newer SDKs ask each host who it is, before anybody is signed in."""
    return {"oidc_endpoint": f"{here.url}/oidc", "workspace_id": "7", "account_id": str(uuid.UUID(int=1))}


@on("GET", "/oidc/.well-known/oauth-authorization-server", authorized=False)
def _oauth_endpoints(here: FakeWorkspace) -> object:
    return {
        "issuer": f"{here.url}/oidc",
        "authorization_endpoint": f"{here.url}/oidc/v1/authorize",
        "token_endpoint": f"{here.url}/oidc/v1/token",
    }


@on("POST", "/oidc/v1/token", raw=True, authorized=False)
def _oauth_token(here: FakeWorkspace, asked: Asked) -> object:
    form = dict(parse_qsl(asked.body.decode()))
    if form != {"grant_type": "client_credentials", "scope": "all-apis"}:
        here.odd.append(f"/oidc/v1/token: {form}")
        return json_answer({"error": "invalid_request", "error_description": f"{sorted(form)}"}, 400)
    known = base64.b64encode(f"{CLIENT_ID}:{CLIENT_SECRET}".encode()).decode()
    if asked.headers.get("Authorization") != f"Basic {known}":
        return json_answer({"error": "invalid_client", "error_description": "Client authentication failed"}, 401)
    told = {"token_type": "Bearer", "scope": "all-apis", "expires_in": here.oauth_seconds}
    return told | {"access_token": here.sign_in()}


@on("GET", "/api/2.0/preview/scim/v2/Me")
def _me(here: FakeWorkspace) -> object:
    return here.me
