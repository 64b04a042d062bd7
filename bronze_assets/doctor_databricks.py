"""What `doctor` looks at where loads run on Databricks: whether the workspace has what the settings name, and whether
whoever is signed in may use it.

It asks the REST API and starts nothing: no cluster, no warehouse, no run. It writes one small file where steps are
staged, and removes it.

What does not belong here: whether the source answers. Clusters reach it, and this machine perhaps does not.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import importlib.util
import io
import json
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Final

from bronze_assets import shipping
from bronze_assets.databricks_settings import Cluster, Databricks, Launch, runtime_fault
from bronze_assets.databricks_workspace import ADMINS, Kind, Refused, Workspace, asked, not_signed_in
from bronze_assets.doctor_unity_catalog import look_at_files, look_at_tables
from bronze_assets.errors import SettingsError
from bronze_assets.findings import Finding, Look, run_looks
from bronze_assets.secret_places import SECRET_PLACE
from bronze_assets.settings import Settings, place_fault
from bronze_assets.table import BronzeTable

_WITHOUT_UNITY_CATALOG: Final = ("NONE", "LEGACY_TABLE_ACL", "LEGACY_PASSTHROUGH")
_MAY_START: Final = frozenset({"CAN_RESTART", "CAN_MANAGE"})


def examine(settings: Settings, databricks: Databricks, tables: Sequence[BronzeTable]) -> Iterator[Finding]:
    """Look at everything on Databricks that a load of these tables needs.

    Yields:
        The findings, as they are made. Where nobody can sign in, nothing more is asked.
    """
    yield from run_looks(_looks_from_here(settings, databricks, tables))
    if not _has_sdk():
        return
    host = settings.databricks_host or databricks.host
    try:
        workspace = Workspace(host)
    except Refused as refused:
        yield not_signed_in(host, refused)
        return
    who = workspace.name if workspace.display_name == workspace.name else f"{workspace.name} ({workspace.display_name})"
    yield Finding("workspace", f"{host}, signed in as {who}.")
    yield from run_looks(_looks_there(settings, databricks, tables, workspace))


def _looks_from_here(settings: Settings, databricks: Databricks, tables: Sequence[BronzeTable]) -> list[Look]:
    """What can be judged without asking anybody."""
    looks: list[Look] = [
        ("settings", lambda: _settings(settings, databricks)),
        ("secrets", lambda: _places(settings)),
        ("extra databricks", lambda: _extra(settings, databricks)),
    ]
    if databricks.launch is Launch.SERVERLESS:
        looks.append(("serverless", lambda: _serverless(tables)))
    return looks


def _looks_there(
    settings: Settings, databricks: Databricks, tables: Sequence[BronzeTable], workspace: Workspace
) -> list[Look]:
    """What the workspace is asked."""
    catalog, cluster, warehouse = settings.catalog, databricks.cluster, settings.sql_warehouse
    places = {"landing": settings.landing, "archive": settings.archive}
    staged_on_dbfs = databricks.launch is Launch.STEP_LAUNCHER
    if databricks.staging_volume and not staged_on_dbfs:
        places["staging_volume"] = databricks.staging_volume
    looks: list[Look] = [("secrets", lambda: _secrets(settings, databricks, workspace))]
    if catalog is not None:
        looks.append(("catalog", lambda: look_at_tables(workspace, catalog, tables)))
    looks += [
        ("files", lambda: look_at_files(workspace, catalog, places)),
        ("staging", lambda: (_dbfs if staged_on_dbfs else _volume)(workspace, databricks)),
    ]
    if cluster is not None:
        look = _existing_cluster if cluster.existing_cluster_id else _job_cluster
        looks.append(("cluster", lambda: look(workspace, cluster)))
    if warehouse is not None:
        looks.append(("SQL warehouse", lambda: _warehouse(workspace, warehouse)))
    return looks


def _settings(settings: Settings, databricks: Databricks) -> Finding:
    where = f"{settings.settings_file}: " if settings.settings_file else ""
    words = f"{where}{settings.environment}, catalog {settings.catalog}, launch {databricks.launch}."
    return Finding("settings", words)


def _has_sdk() -> bool:
    with contextlib.suppress(ImportError):
        return importlib.util.find_spec("databricks.sdk") is not None
    return False


def _extra(settings: Settings, databricks: Databricks) -> Finding:
    of = "extra databricks"
    fix = 'install it: pip install "bronze-assets[databricks]".'
    if not _has_sdk():
        return Finding(of, "databricks-sdk is not installed.", fix)
    if importlib.util.find_spec("dagster_databricks") is None:
        return Finding(of, f"dagster-databricks is not installed, which launch = {databricks.launch} needs.", fix)
    try:
        shipping.libraries(settings)
    except SettingsError as error:
        return Finding(of, error.culprit, error.fix)
    versions = [f"{name} {importlib.metadata.version(name)}" for name in ("dagster-databricks", "databricks-sdk")]
    return Finding(of, f"{', '.join(versions)}.")


def _places(settings: Settings) -> list[Finding]:
    """Whether a cluster can fetch the secrets, as far as their places tell."""
    findings = []
    for key, reference in (("source_url", settings.source_url), ("master_key", settings.master_key)):
        place = SECRET_PLACE.fullmatch(reference)
        if problem := place_fault(reference):
            findings.append(
                Finding(
                    "secrets",
                    f"{key} {problem}.",
                    f"put it into a secret scope, and set {key} to databricks-secret://<scope>/<key>.",
                )
            )
        elif place is not None and place["vault"]:
            findings.append(
                Finding(
                    "secrets",
                    f"{key} is {reference}: clusters must be able to sign in there, and need the extra azure. A secret"
                    " scope on the vault needs neither.",
                )
            )
    return findings


def _serverless(tables: Sequence[BronzeTable]) -> Finding:
    read = [table.name for table in tables if table.files is None]
    if not read:
        return Finding("serverless", "no table is read from a database.")
    return Finding(
        "serverless",
        f"not served there, because JDBC is not allowed on serverless: {', '.join(read)}.",
        "use launch = step_launcher or pipes, with a cluster; serverless serves tables of files.",
    )


def _secrets(settings: Settings, databricks: Databricks, workspace: Workspace) -> list[Finding]:
    """The platform's secret scope, and those that source_url and master_key name, with their keys."""
    wanted: dict[str, dict[str, str]] = {databricks.secret_scope: {}}
    for meaning, reference in (("source_url", settings.source_url), ("master_key", settings.master_key)):
        place = SECRET_PLACE.fullmatch(reference)
        if place is not None and place["scope"]:
            wanted.setdefault(place["scope"], {})[place["key"]] = meaning
    return [finding for scope, keys in wanted.items() for finding in _scope(workspace, scope, keys)]


def _scope(workspace: Workspace, scope: str, wanted: Mapping[str, str]) -> list[Finding]:
    make = f"make it: databricks secrets create-scope {scope}; or let Terraform make it on the Key Vault."
    allow = f"give the right: databricks secrets put-acl {scope} {workspace.grantee} READ."
    try:
        # Whom a scope is not for is not told whether there is one.
        there = {one.name for one in asked(lambda: list(workspace.client.secrets.list_scopes()))}
        if scope not in there:
            return [Finding("secrets", f"there is no secret scope {scope} that {workspace.name} can see.", make)]
        keys = {secret.key for secret in asked(lambda: list(workspace.client.secrets.list_secrets(scope)))}
    except Refused as refused:
        return [refused.finding("secrets", f"secret scope {scope}", missing=make, denied=allow)]
    findings = [
        Finding(
            "secrets",
            f"the secret scope {scope} has no {key}, which {meaning} names.",
            f"put it there: databricks secrets put-secret {scope} {key}; in a scope on a Key Vault, make it there.",
        )
        for key, meaning in wanted.items()
        if key not in keys
    ]
    found = [f"{key} ({meaning})" for key, meaning in wanted.items() if key in keys]
    return [
        *findings,
        Finding("secrets", f"the scope {scope} can be read{', with ' if found else ''}{', '.join(found)}."),
    ]


def _dbfs(workspace: Workspace, databricks: Databricks) -> Finding:
    """Whether steps can be staged on DBFS: by the calls of the step launcher."""
    api = workspace.client.dbfs
    folder, content = databricks.staging_prefix, uuid.uuid4().bytes
    path = f"{folder}/.doctor-{uuid.uuid4().hex}"

    def probe() -> bytes:
        api.upload(path, io.BytesIO(content))
        try:
            with api.open(path, read=True) as file:
                return bytes(file.read())
        finally:
            api.delete(path)

    return _probed(
        probe,
        content,
        f"{folder} on DBFS",
        "let staging_prefix name another folder, or set launch to pipes or serverless and staging_volume.",
    )


def _volume(workspace: Workspace, databricks: Databricks) -> Finding:
    """Whether steps can be staged in the volume."""
    api = workspace.client.files
    folder, content = str(databricks.staging_volume), uuid.uuid4().bytes
    path = f"{folder}/.doctor-{uuid.uuid4().hex}"

    def probe() -> bytes:
        # Is none where it is there.
        api.create_directory(folder)
        api.upload(path, io.BytesIO(content))
        try:
            contents = api.download(path).contents
            if contents is None:
                return b""
            with contents:
                return bytes(contents.read())
        finally:
            api.delete(path)

    return _probed(
        probe,
        content,
        folder,
        "mend what is told of the volume above; staging_volume names a folder of a volume that is there.",
    )


def _probed(probe: Callable[[], bytes], content: bytes, where: str, fix: str) -> Finding:
    try:
        found = asked(probe)
    except Refused as refused:
        if refused.kind is Kind.DBFS_OFF:
            words = f"the workspace has its DBFS root off, which launch = step_launcher needs ({refused.reason})."
            return Finding("staging", words, "set launch to pipes or serverless and staging_volume.")
        return Finding("staging", f"{where} cannot be written, read and cleaned up ({refused.reason}).", fix)
    if found != content:
        return Finding("staging", f"{where} gives back something else than was written.", "ask the workspace's admins.")
    return Finding("staging", f"{where} can be written, read and cleaned up.")


def _existing_cluster(workspace: Workspace, wanted: Cluster) -> list[Finding]:
    cluster_id = str(wanted.existing_cluster_id)
    allow = f"let a manager of it give CAN_RESTART to {workspace.grantee}."
    try:
        cluster = asked(lambda: workspace.client.clusters.get(cluster_id))
    except Refused as refused:
        copy = "copy existing_cluster_id from the cluster's page, or describe a job cluster."
        return [refused.finding("cluster", f"cluster {cluster_id}", missing=copy, denied=allow)]
    faults = _of_another(workspace, cluster.single_user_name)
    if what := runtime_fault(cluster.spark_version or ""):
        faults.append(Finding("cluster", f"{cluster_id}: {what}.", "let it have a tested line, or name another."))
    mode = cluster.data_security_mode.value if cluster.data_security_mode else "NONE"
    if mode in _WITHOUT_UNITY_CATALOG:
        words = f"{cluster_id} has the access mode {mode}, which has no Unity Catalog."
        faults.append(Finding("cluster", words, "give it the access mode SINGLE_USER."))
    state = cluster.state.value if cluster.state else "UNKNOWN"
    levels = _levels(workspace, "clusters", cluster_id)
    if levels is not None and not levels & _MAY_START:
        if "CAN_ATTACH_TO" not in levels:
            faults.append(Finding("cluster", f"{workspace.name} may not use the cluster {cluster_id}.", allow))
        elif state != "RUNNING":
            words = f"{cluster_id} is {state}, and {workspace.name} may attach to it, but not start it."
            faults.append(Finding("cluster", words, allow))
    endless = "" if cluster.autotermination_minutes else "; it does not end by itself (autotermination is off)"
    words = f"{cluster_id} is there, {cluster.spark_version}, {mode}, {state}{_unseen(levels)}{endless}."
    return faults or [Finding("cluster", words)]


def _job_cluster(workspace: Workspace, wanted: Cluster) -> list[Finding]:
    findings = _of_another(workspace, wanted.single_user_name)
    clusters = workspace.client.clusters
    offers: list[tuple[str, Sequence[str | None], Callable[[], set[str]]]] = [
        (
            "spark_version",
            [wanted.spark_version],
            lambda: {version.key or "" for version in clusters.spark_versions().versions or []},
        ),
        (
            "node_type_id",
            [wanted.node_type_id, wanted.driver_node_type_id],
            lambda: {node.node_type_id for node in clusters.list_node_types().node_types or []},
        ),
    ]
    for key, names, ask in offers:
        findings += _offered(key, list(dict.fromkeys(name for name in names if name)), ask)
    pools = dict.fromkeys((wanted.instance_pool_id, wanted.driver_instance_pool_id))
    findings += [_pool(workspace, pool) for pool in pools if pool]
    if wanted.policy_id:
        findings += _policy(workspace, wanted, wanted.policy_id)
    return findings


def _of_another(workspace: Workspace, single_user: str | None) -> list[Finding]:
    """That a cluster of one user is somebody else's."""
    if not single_user or workspace.is_me(single_user):
        return []
    words = f"its single user is {single_user}, and {workspace.name} is signed in."
    fix = f"sign in as {single_user}, or let {workspace.name} be its single user."
    return [Finding("cluster", words, fix)]


def _offered(key: str, names: Sequence[str], ask: Callable[[], set[str]]) -> Iterator[Finding]:
    """Whether the workspace has what is named."""
    if not names:
        return
    try:
        there = asked(ask)
    except Refused as refused:
        yield refused.finding(
            "cluster", f"list for {key}", missing="run doctor again.", denied="ask the admins for it."
        )
        return
    tested = sorted(name for name in there if runtime_fault(name) is None)
    known = f"use one of {', '.join(tested)}." if tested else "see `databricks clusters list-node-types`, and use one."
    for name in names:
        is_there = name in there
        words = f"{key} = {name} is{'' if is_there else ' not'} offered."
        yield Finding("cluster", words, None if is_there else known)


def _pool(workspace: Workspace, pool_id: str) -> Finding:
    allow = f"let an admin give CAN_ATTACH_TO on it to {workspace.grantee}."
    try:
        pool = asked(lambda: workspace.client.instance_pools.get(pool_id))
    except Refused as refused:
        copy = "copy instance_pool_id from the pool's page in the workspace."
        return refused.finding("cluster", f"pool {pool_id}", missing=copy, denied=allow)
    levels = _levels(workspace, "instance-pools", pool_id)
    if levels is not None and not levels & {"CAN_ATTACH_TO", "CAN_MANAGE"}:
        return Finding("cluster", f"{workspace.name} may not use the pool {pool_id}.", allow)
    return Finding("cluster", f"the pool {pool_id} is there, of {pool.node_type_id}{_unseen(levels)}.")


def _policy(workspace: Workspace, wanted: Cluster, policy_id: str) -> list[Finding]:
    allow = f"let an admin give CAN_USE on it to {workspace.grantee}."
    try:
        policy = asked(lambda: workspace.client.cluster_policies.get(policy_id))
    except Refused as refused:
        copy = "copy policy_id from the policy's page in the workspace."
        return [refused.finding("cluster", f"policy {policy_id}", missing=copy, denied=allow)]
    levels = _levels(workspace, "cluster-policies", policy_id)
    if levels is not None and "CAN_USE" not in levels:
        return [Finding("cluster", f"{workspace.name} may not use the policy {policy_id}.", allow)]
    same = "let the settings file and the policy say the same."
    against = [
        Finding("cluster", f"the policy {policy_id} does not allow {what}.", same)
        for what in _against(policy.definition or "{}", wanted)
    ]
    allows = Finding("cluster", f"the policy {policy_id} is there and allows the cluster{_unseen(levels)}.")
    return against or [allows]


def _against(definition: str, wanted: Cluster) -> Iterator[str]:
    """What of the settings a policy does not allow; rules of other kinds are left to the workspace."""
    try:
        rules = json.loads(definition)
    except ValueError:
        return
    said = ("instance_pool_id", "driver_instance_pool_id", "node_type_id", "driver_node_type_id")
    given: dict[str, object] = {key: getattr(wanted, key) for key in ("spark_version", "data_security_mode", *said)}
    given["num_workers"] = wanted.workers
    if wanted.autoscale is not None:
        given |= {"autoscale.min_workers": wanted.autoscale.min, "autoscale.max_workers": wanted.autoscale.max}
    for key, value in given.items():
        rule = rules.get(key) if isinstance(rules, dict) else None
        if value is None or not isinstance(rule, dict):
            continue
        match rule.get("type"):
            case "forbidden":
                yield f"{key} at all"
            case "fixed" if rule.get("value") != value:
                yield f"{key} = {value}: it fixes {rule.get('value')}"
            case "range" if isinstance(value, int):
                least, most = rule.get("minValue", value), rule.get("maxValue", value)
                if not least <= value <= most:
                    yield f"{key} = {value}: it allows {least} to {most}"


def _levels(workspace: Workspace, kind: str, object_id: str) -> set[str] | None:
    """The permission levels of whoever is signed in on an object; None where they cannot be seen."""
    if ADMINS in workspace.groups:
        return {"CAN_MANAGE", "CAN_USE"}
    try:
        answer = asked(lambda: workspace.client.permissions.get(kind, object_id))
    except Refused:
        # Who does not manage an object is not always shown who may use it.
        return None
    return {
        permission.permission_level.value
        for entry in answer.access_control_list or []
        if any(map(workspace.is_me, (entry.user_name, entry.service_principal_name, entry.group_name)))
        for permission in entry.all_permissions or []
        if permission.permission_level
    }


def _unseen(levels: set[str] | None) -> str:
    return "; its permissions cannot be seen" if levels is None else ""


def _warehouse(workspace: Workspace, warehouse_id: str) -> Finding:
    of, what = "SQL warehouse", f"SQL warehouse {warehouse_id}"
    try:
        found = asked(lambda: workspace.client.warehouses.get(warehouse_id))
    except Refused as refused:
        copy = "use what stands after /warehouses/ in its HTTP path as sql_warehouse."
        allow = f"let an admin give CAN_USE on it to {workspace.grantee}."
        return refused.finding(of, what, missing=copy, denied=allow)
    return Finding(of, f"{warehouse_id} is there, {found.state.value if found.state else 'UNKNOWN'}.")
