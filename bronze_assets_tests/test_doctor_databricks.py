"""`doctor` where loads run on Databricks: the real SDK before a workspace that is a fake."""

from __future__ import annotations

import io
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from databricks.sdk import errors
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from bronze_assets import access, databricks_workspace, doctor_databricks, engine
from bronze_assets.catalog import TABLES
from bronze_assets.databricks_workspace import Kind, Refused
from bronze_assets.doctor import examine
from bronze_assets.findings import Finding
from bronze_assets.settings import Settings
from bronze_assets_tests.conftest import CHECKOUT
from bronze_assets_tests.fake_workspace import CLIENT_ID, CLIENT_SECRET, CLUSTER, FakeWorkspace, Fault, serving

ME = "someone@example.com"
CATALOG = "dev_inventory"
SCHEMAS = access.schemas(TABLES)
FILES = f"{CATALOG}.bronze_files"
VOLUME = f"{FILES}.files"
POLICY, POOL, WAREHOUSE = "0123456789ABCDEF", "1127-101010-pool", "1234567890abcdef"
HEAD = f"""
environment = "dev"
catalog = "{CATALOG}"
landing = "/Volumes/{CATALOG}/bronze_files/files/landing"
source_url = "databricks-secret://bronze-dev/source-url"
master_key = "databricks-secret://bronze-dev/master-key"
sql_warehouse = "{WAREHOUSE}"
"""
EXISTING = f'[databricks.cluster]\nexisting_cluster_id = "{CLUSTER}"\n'
JOB = f"""
[databricks.cluster]
spark_version = "17.3.x-scala2.13"
policy_id = "{POLICY}"
instance_pool_id = "{POOL}"
autoscale = {{min = 1, max = 2}}
"""
NODES = """
[databricks.cluster]
spark_version = "17.3.x-scala2.13"
node_type_id = "i3.xlarge"
driver_node_type_id = "i3.2xlarge"
workers = 2
"""


def permit(state: FakeWorkspace, kind: str, name: str, principal: str, *privileges: str) -> None:
    state.effective_permissions.setdefault((kind, name), []).append(
        {"principal": principal, "privileges": [{"privilege": one.replace(" ", "_")} for one in privileges]}
    )


def revoke(state: FakeWorkspace, kind: str, name: str) -> None:
    state.effective_permissions[kind, name] = []


def acl(*levels: str, **who: str) -> dict[str, Any]:
    return {**who, "all_permissions": [{"permission_level": level, "inherited": False} for level in levels]}


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeWorkspace]:
    """A workspace in which nothing is wrong, and its token in the environment."""
    monkeypatch.setattr(databricks_workspace, "ANSWER_SECONDS", 2)
    keys = {"source-url": "postgresql://bronze:hunter2@db/DE", "master-key": "hunter2"}
    with serving(tmp_path / "workspace", secrets={"bronze-dev": keys, "bronze": {}}) as state:
        for name in [name for name in os.environ if name.startswith(("DATABRICKS_", "BRONZE_"))]:
            monkeypatch.delenv(name)
        monkeypatch.setenv("DATABRICKS_CONFIG_FILE", str(tmp_path / "none"))
        monkeypatch.setenv("DATABRICKS_TOKEN", state.token)
        state.add_volume(VOLUME)
        for schema in SCHEMAS:
            name = f"{CATALOG}.{schema}"
            state.securables["schemas"][name] = {"name": schema, "catalog_name": CATALOG, "full_name": name}
            permit(state, "schema", name, ME, "USE SCHEMA", "CREATE TABLE", "SELECT", "MODIFY")
        permit(state, "catalog", CATALOG, ME, "USE CATALOG")
        permit(state, "schema", FILES, ME, "USE SCHEMA")
        permit(state, "volume", VOLUME, ME, "READ VOLUME", "WRITE VOLUME")
        state.clusters[CLUSTER]["autotermination_minutes"] = 30
        state.warehouses = {WAREHOUSE: {"id": WAREHOUSE, "name": "bronze-dev", "state": "STOPPED"}}
        state.instance_pools[POOL] = {"instance_pool_id": POOL, "node_type_id": "i3.xlarge"}
        definition = {
            "spark_version": {"type": "fixed", "value": "17.3.x-scala2.13"},
            "instance_pool_id": {"type": "fixed", "value": POOL},
            "node_type_id": {"type": "forbidden"},
            "autoscale.max_workers": {"type": "range", "minValue": 1, "maxValue": 2},
            "cluster_type": {"type": "fixed", "value": "job"},
        }
        state.policies[POLICY] = {"policy_id": POLICY, "name": "jobs", "definition": json.dumps(definition)}
        state.permissions["cluster-policies", POLICY] = [acl("CAN_USE", user_name=ME)]
        state.permissions["instance-pools", POOL] = [acl("CAN_ATTACH_TO", user_name=ME)]
        yield state


class Doctor:
    """Asks `doctor` about a settings file."""

    def __init__(self, state: FakeWorkspace, folder: Path) -> None:
        self.state, self.folder = state, folder

    def settings(self, head: str, rest: str, launch: str, staging: str | None = None) -> Settings:
        if staging is None:
            in_the_volume = f'staging_volume = "/Volumes/{CATALOG}/bronze_files/files/staging"\n'
            staging = "" if launch == "step_launcher" else in_the_volume
        section = f'[databricks]\nhost = "{self.state.url}"\nlaunch = "{launch}"\nsecret_scope = "bronze-dev"\n'
        path = self.folder / "dev.toml"
        path.write_text(f"{head}{section}{staging}{rest}")
        own = {"BRONZE_ENV": "dev", "BRONZE_SETTINGS": str(path), "BRONZE_HOME": str(self.folder / "home")}
        return Settings.from_environment(own)

    def all(
        self, head: str = HEAD, rest: str = EXISTING, launch: str = "step_launcher", staging: str | None = None
    ) -> list[Finding]:
        return list(examine(self.settings(head, rest, launch, staging), TABLES))

    def wrong(
        self, head: str = HEAD, rest: str = EXISTING, launch: str = "step_launcher", staging: str | None = None
    ) -> list[Finding]:
        return [finding for finding in self.all(head, rest, launch, staging) if finding.fix is not None]


@pytest.fixture
def doctor(workspace: FakeWorkspace, tmp_path: Path) -> Doctor:
    return Doctor(workspace, tmp_path)


def left_behind(state: FakeWorkspace) -> list[Path]:
    return [path for folder in (state.dbfs, state.volumes) for path in folder.rglob("*") if path.is_file()]


ONLY_FILES = [table for table in TABLES if table.files is not None]


class TestWhereAllIsWell:
    def test_everything_is_told_and_nothing_is_started_or_left_behind(
        self, doctor: Doctor, workspace: FakeWorkspace, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        # What only a load on this machine needs is not looked at.
        monkeypatch.setattr(engine, "find_java", None)
        found = doctor.all()
        assert [str(finding) for finding in found if finding.fix is not None] == []
        assert [finding.of for finding in found] == [
            "home",
            "alerts",
            "settings",
            "extra databricks",
            "workspace",
            "secrets",
            "catalog",
            *["schema"] * len(SCHEMAS),
            "schema",
            "volume",
            "staging",
            "cluster",
            "SQL warehouse",
        ]
        words = {finding.of: finding.words for finding in found}
        assert words["workspace"] == f"{workspace.url}, signed in as {ME} (Someone)."
        assert words["secrets"] == (
            "the scope bronze-dev can be read, with source-url (source_url), master-key (master_key)."
        )
        assert words["volume"] == f"`{CATALOG}`.`bronze_files`.`files` is there, with READ VOLUME, WRITE VOLUME."
        assert words["cluster"] == f"{CLUSTER} is there, 17.3.x-scala2.13, SINGLE_USER, RUNNING."
        assert left_behind(workspace) == []
        assert workspace.runs == []
        assert {method for method, path in workspace.requests if not path.startswith("/api/2.0/dbfs/")} == {"GET"}
        # No secret is fetched to look whether it is there.
        assert ("GET", "/api/2.0/secrets/get") not in workspace.requests

    @pytest.mark.parametrize("rest", [JOB, NODES])
    def test_a_job_cluster_is_looked_at_in_its_parts(self, doctor: Doctor, rest: str) -> None:
        found = doctor.all(rest=rest)
        assert [str(finding) for finding in found if finding.fix is not None] == []
        words = [finding.words for finding in found if finding.of == "cluster"]
        assert words == [
            "spark_version = 17.3.x-scala2.13 is offered.",
            *(
                [f"the pool {POOL} is there, of i3.xlarge.", f"the policy {POLICY} is there and allows the cluster."]
                if rest == JOB
                else ["node_type_id = i3.xlarge is offered.", "node_type_id = i3.2xlarge is offered."]
            ),
        ]

    def test_pipes_are_staged_in_the_volume(self, doctor: Doctor, workspace: FakeWorkspace) -> None:
        assert doctor.wrong(launch="pipes") == []
        assert left_behind(workspace) == []
        assert not any(path.startswith("/api/2.0/dbfs/") for _, path in workspace.requests)
        assert ("PUT", f"/api/2.0/fs/directories/Volumes/{CATALOG}/bronze_files/files/staging") in workspace.requests

    def test_serverless_serves_tables_of_files_and_no_others(self, doctor: Doctor) -> None:
        settings = doctor.settings(HEAD, "", "serverless")
        assert [finding for finding in examine(settings, ONLY_FILES) if finding.fix] == []
        (finding,) = doctor.wrong(rest="", launch="serverless")
        assert finding.of == "serverless"
        for table in TABLES:
            assert (f" {table.name}" in f"{finding.words.replace('.', ',')}") == (table.files is None)

    def test_a_service_principal_signs_in_too(
        self, doctor: Doctor, workspace: FakeWorkspace, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.delenv("DATABRICKS_TOKEN")
        monkeypatch.setenv("DATABRICKS_CLIENT_ID", CLIENT_ID)
        monkeypatch.setenv("DATABRICKS_CLIENT_SECRET", CLIENT_SECRET)
        assert doctor.wrong() == []


class TestSigningIn:
    def test_a_token_that_has_expired_is_told(self, doctor: Doctor, workspace: FakeWorkspace) -> None:
        workspace.expire_token()
        found = doctor.all()
        assert found[-1].words == f"the token for {workspace.url} has expired (PermissionDenied)."
        assert "make a new one" in str(found[-1].fix)
        assert [finding.of for finding in found] == ["home", "alerts", "settings", "extra databricks", "workspace"]

    def test_a_token_of_another_workspace_is_told(self, doctor: Doctor, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("DATABRICKS_TOKEN", "dapi-hunter2-of-elsewhere")
        (finding,) = doctor.wrong()
        assert "refuses who signs in (PermissionDenied)" in finding.words
        assert "hunter2" not in str(finding)

    def test_nobody_or_two_are_no_one_way_to_sign_in(self, doctor: Doctor, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("DATABRICKS_CLIENT_ID", CLIENT_ID)
        monkeypatch.setenv("DATABRICKS_CLIENT_SECRET", "dose-hunter2")
        (both,) = doctor.wrong()
        for name in ("DATABRICKS_TOKEN", "DATABRICKS_CLIENT_ID", "DATABRICKS_CLIENT_SECRET"):
            monkeypatch.delenv(name)
        (neither,) = doctor.wrong()
        for finding in (both, neither):
            assert "there is no one way to sign in to http://" in finding.words
            assert "DATABRICKS_TOKEN" in str(finding.fix)
            assert "hunter2" not in str(finding)

    def test_a_host_that_does_not_answer_is_named_in_time(
        self, doctor: Doctor, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with socket.socket() as closed:
            closed.bind(("127.0.0.1", 0))
            monkeypatch.setenv("DATABRICKS_HOST", f"http://127.0.0.1:{closed.getsockname()[1]}")
            settings = Settings.from_environment(
                {
                    "BRONZE_ENV": "dev",
                    "BRONZE_HOME": str(doctor.folder / "home"),
                    "BRONZE_SETTINGS": str(doctor.settings(HEAD, EXISTING, "step_launcher").settings_file),
                    "DATABRICKS_HOST": os.environ["DATABRICKS_HOST"],
                }
            )
            began = time.monotonic()
            # Nobody listens there.
            (finding,) = (finding for finding in examine(settings, TABLES) if finding.fix)
            assert time.monotonic() - began < 6
        assert f"{os.environ['DATABRICKS_HOST']} does not answer within 2 seconds" in finding.words
        assert "check databricks.host in the settings file, DATABRICKS_HOST" in str(finding.fix)

    def test_a_host_that_is_no_workspace_is_told(self, doctor: Doctor, workspace: FakeWorkspace) -> None:
        workspace.faults = [Fault("GET", "/api/2.0/preview/scim/v2/Me", status=404, code="ENDPOINT_NOT_FOUND")]
        (finding,) = doctor.wrong()
        assert "does not answer as a workspace of Databricks (NotFound, ENDPOINT_NOT_FOUND)" in finding.words

    def test_the_extra_must_be_installed(self, doctor: Doctor, monkeypatch: pytest.MonkeyPatch) -> None:
        settings = doctor.settings(HEAD, EXISTING, "step_launcher")
        with monkeypatch.context() as patch:
            for name in [name for name in sys.modules if name.partition(".")[0] == "databricks"]:
                patch.delitem(sys.modules, name)
            patch.setitem(sys.modules, "databricks", None)
            found = list(examine(settings, TABLES))
        assert [finding.of for finding in found] == ["home", "alerts", "settings", "extra databricks"]
        assert 'pip install "bronze-assets[databricks]"' in str(found[-1].fix)


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (errors.InvalidParameterValue("Cluster hunter2 does not exist"), Kind.MISSING),
        (errors.InvalidParameterValue("Can't find an instance pool with id hunter2"), Kind.MISSING),
        (errors.InvalidParameterValue("hunter2"), Kind.OTHER),
        (errors.ResourceDoesNotExist("hunter2"), Kind.MISSING),
        (errors.PermissionDenied("hunter2"), Kind.DENIED),
        (errors.Unauthenticated("hunter2: Access token expired"), Kind.EXPIRED),
        (errors.PermissionDenied("Public DBFS root is disabled: hunter2"), Kind.DBFS_OFF),
        (errors.BadRequest("Public DBFS root is disabled: hunter2"), Kind.DBFS_OFF),
        (ConnectionError("hunter2"), Kind.UNREACHABLE),
        (TimeoutError("hunter2"), Kind.UNREACHABLE),
        (ValueError("hunter2"), Kind.NOBODY),
        (KeyError("hunter2"), Kind.OTHER),
    ],
)
def test_why_there_is_no_answer_is_told_by_kind_and_never_in_words(error: Exception, kind: Kind) -> None:
    def refuse() -> None:
        raise error

    with pytest.raises(Refused) as caught:
        databricks_workspace.asked(refuse)
    assert caught.value.kind is kind
    assert "hunter2" not in str(caught.value)
    assert caught.value.__context__ is None


class TestSecrets:
    @pytest.mark.parametrize(
        ("change", "words", "fix"),
        [
            (
                ("bronze-dev/source-url", "none/source-url"),
                "no secret scope none that",
                "databricks secrets create-scope none",
            ),
            (
                ("bronze-dev/source-url", "bronze-dev/url"),
                "the secret scope bronze-dev has no url, which source_url names.",
                "databricks secrets put-secret bronze-dev url",
            ),
            (
                ("databricks-secret://bronze-dev/source-url", "file:/run/secrets/url"),
                "source_url is kept in a file of this machine",
                "set source_url to databricks-secret://<scope>/<key>",
            ),
        ],
    )
    def test_that_a_cluster_cannot_have_are_named(
        self, doctor: Doctor, change: tuple[str, str], words: str, fix: str
    ) -> None:
        (finding,) = doctor.wrong(HEAD.replace(*change))
        assert finding.of == "secrets"
        assert words in finding.words
        assert fix in str(finding.fix)

    def test_of_a_scope_that_is_for_others_are_named(self, doctor: Doctor, workspace: FakeWorkspace) -> None:
        workspace.faults = [Fault("GET", "/api/2.0/secrets/list", times=None, status=403, code="PERMISSION_DENIED")]
        (finding,) = doctor.wrong()
        assert finding.words == ("the secret scope bronze-dev may not be used (PermissionDenied, PERMISSION_DENIED).")
        assert finding.fix == f"give the right: databricks secrets put-acl bronze-dev {ME} READ."

    def test_the_platforms_scope_must_be_there_whoever_names_it(self, doctor: Doctor, workspace: FakeWorkspace) -> None:
        secrets = workspace.secrets.pop("bronze-dev")
        workspace.secrets["other"] = secrets
        (finding,) = doctor.wrong(HEAD.replace("bronze-dev", "other"))
        assert "there is no secret scope bronze-dev" in finding.words

    def test_in_a_key_vault_are_told_with_what_they_need(self, doctor: Doctor) -> None:
        found = doctor.all(HEAD.replace("databricks-secret://bronze-dev/master-key", "azure-keyvault://vault/key"))
        assert any(
            "master_key is azure-keyvault://vault/key: clusters must be able to sign in" in f.words for f in found
        )
        assert not any(finding.fix for finding in found)


class TestUnityCatalog:
    def test_what_is_not_granted_is_written_out(self, doctor: Doctor, workspace: FakeWorkspace) -> None:
        workspace.effective_permissions.clear()
        fixes = {finding.words.split(" ")[0]: str(finding.fix) for finding in doctor.wrong(launch="pipes")}
        assert fixes == {
            f"`{CATALOG}`": f"let its owner run: GRANT USE CATALOG ON CATALOG `{CATALOG}` TO `{ME}`;",
            **{
                f"`{CATALOG}`.`{schema}`": "let its owner run:"
                + "".join(
                    f" GRANT {privilege} ON SCHEMA `{CATALOG}`.`{schema}` TO `{ME}`;"
                    for privilege in ("USE SCHEMA", "CREATE TABLE", "SELECT", "MODIFY")
                )
                for schema in SCHEMAS
            },
            f"`{CATALOG}`.`bronze_files`": (
                f"let its owner run: GRANT USE SCHEMA ON SCHEMA `{CATALOG}`.`bronze_files` TO `{ME}`;"
            ),
            f"`{CATALOG}`.`bronze_files`.`files`": (
                f"let its owner run: GRANT READ VOLUME ON VOLUME `{CATALOG}`.`bronze_files`.`files` TO `{ME}`;"
                f" GRANT WRITE VOLUME ON VOLUME `{CATALOG}`.`bronze_files`.`files` TO `{ME}`;"
            ),
        }

    @hypothesis_settings(deadline=None, max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(
        st.lists(
            st.tuples(
                st.sampled_from([ME, "bronze_platform", "account users", "strangers"]),
                st.sampled_from(["USE SCHEMA", "CREATE TABLE", "SELECT", "MODIFY", "ALL PRIVILEGES", "EXECUTE"]),
            )
        )
    )
    def test_what_is_granted_to_them_or_their_groups_and_only_that_counts(
        self, doctor: Doctor, workspace: FakeWorkspace, grants: list[tuple[str, str]]
    ) -> None:
        workspace.me["groups"] = [{"display": "bronze_platform"}]
        name = f"{CATALOG}.{SCHEMAS[0]}"
        revoke(workspace, "schema", name)
        for principal, privilege in grants:
            permit(workspace, "schema", name, principal, privilege)
        held = {privilege for principal, privilege in grants if principal != "strangers"}
        needed = ["USE SCHEMA", "CREATE TABLE", "SELECT", "MODIFY"]
        missing = [] if "ALL PRIVILEGES" in held else [one for one in needed if one not in held]
        found = doctor.wrong()
        # The platform's rights are its group's.
        statements = [f"GRANT {one} ON SCHEMA `{CATALOG}`.`{SCHEMAS[0]}` TO `bronze_platform`;" for one in missing]
        assert [finding.fix for finding in found] == ([f"let its owner run: {' '.join(statements)}"] if missing else [])

    def test_owners_need_no_grant(self, doctor: Doctor, workspace: FakeWorkspace) -> None:
        workspace.effective_permissions.clear()
        workspace.me["groups"] = [{"display": "owners"}]
        for kind in ("catalogs", "schemas", "volumes"):
            for securable in workspace.securables[kind].values():
                securable["owner"] = "owners"
        assert doctor.wrong() == []

    def test_what_cannot_be_seen_may_be_there(self, doctor: Doctor, workspace: FakeWorkspace) -> None:
        path = f"/api/2.1/unity-catalog/catalogs/{CATALOG}"
        workspace.faults = [Fault("GET", path, times=None, status=403, code="PERMISSION_DENIED")]
        (finding,) = doctor.wrong()
        assert finding.words == f"`{CATALOG}` cannot be seen; {ME} lacks USE CATALOG."
        assert "GRANT USE CATALOG ON CATALOG" in str(finding.fix)

    def test_grants_that_cannot_be_seen_are_told_as_that(self, doctor: Doctor, workspace: FakeWorkspace) -> None:
        path = f"/api/2.1/unity-catalog/effective-permissions/CATALOG/{CATALOG}"
        workspace.faults = [Fault("GET", path, times=None, status=403, code="PERMISSION_DENIED")]
        (finding,) = doctor.wrong()
        assert f"{ME} lacks USE CATALOG (not all grants could be seen)." in finding.words

    def test_a_catalog_that_is_not_there_is_to_be_made(self, doctor: Doctor, workspace: FakeWorkspace) -> None:
        del workspace.securables["catalogs"][CATALOG]
        (finding,) = doctor.wrong()
        assert (finding.of, finding.words) == ("catalog", f"`{CATALOG}` is not there.")
        assert f"CREATE CATALOG `{CATALOG}`;" in str(finding.fix)

    def test_schemas_that_are_not_there_are_to_be_made(self, doctor: Doctor, workspace: FakeWorkspace) -> None:
        for schema in SCHEMAS:
            del workspace.securables["schemas"][f"{CATALOG}.{schema}"]
        findings = doctor.wrong()
        assert [finding.fix for finding in findings] == [
            f"let the catalog's owner run: CREATE SCHEMA `{CATALOG}`.`{schema}`;" for schema in SCHEMAS
        ]

    def test_a_volume_that_is_not_there_is_named_by_the_key(self, doctor: Doctor) -> None:
        found = doctor.wrong(HEAD.replace("bronze_files/files/landing", "inbox/new/landing"))
        assert [finding.of for finding in found] == ["schema", "volume"]
        assert (
            f"correct landing in the settings, let Terraform make it, or run: CREATE SCHEMA `{CATALOG}`.`inbox`;"
            in str(found[0].fix)
        )
        assert f"CREATE VOLUME `{CATALOG}`.`inbox`.`new`;" in str(found[1].fix)

    def test_files_may_lie_in_another_catalog(self, doctor: Doctor, workspace: FakeWorkspace) -> None:
        workspace.add_volume("shared.inbox.new")
        found = doctor.wrong(
            HEAD.replace(f"/Volumes/{CATALOG}/bronze_files/files/landing", "/Volumes/shared/inbox/new/x")
        )
        assert [str(finding.fix).split(" TO ")[0] for finding in found] == [
            "let its owner run: GRANT USE CATALOG ON CATALOG `shared`",
            "let its owner run: GRANT USE SCHEMA ON SCHEMA `shared`.`inbox`",
            "let its owner run: GRANT READ VOLUME ON VOLUME `shared`.`inbox`.`new`",
        ]

    def test_what_is_staged_may_lie_elsewhere_and_is_looked_at_where_it_is_used(
        self, doctor: Doctor, workspace: FakeWorkspace
    ) -> None:
        workspace.add_volume(f"{CATALOG}.platform.staging")
        staging = f'staging_volume = "/Volumes/{CATALOG}/platform/staging"\n'
        found = doctor.wrong(rest=EXISTING, launch="pipes", staging=staging)
        assert [finding.words.split(" ")[0] for finding in found] == [
            f"`{CATALOG}`.`platform`",
            f"`{CATALOG}`.`platform`.`staging`",
        ]
        assert doctor.wrong(rest=EXISTING, staging=staging) == []

    def test_object_stores_need_an_external_location(self, doctor: Doctor, workspace: FakeWorkspace) -> None:
        box = "abfss://files@stbronzedev.dfs.core.windows.net"
        head = HEAD.replace(f"/Volumes/{CATALOG}/bronze_files/files/landing", f"{box}/in/landing")
        found = doctor.wrong(head)
        assert [finding.words for finding in found] == [
            f"none that {ME} can see holds {key}, {box}/in/{key}." for key in ("landing", "archive")
        ]
        workspace.securables["external-locations"] = {
            name: {"name": name, "url": url}
            for name, url in (("all", f"{box}/"), ("nearest", f"{box}/in"), ("beside", f"{box}/in/land"))
        }
        workspace.securables["external-locations"]["itself"] = {"name": "itself", "url": f"{box}/in/archive"}
        permit(workspace, "external_location", "itself", ME, "READ FILES", "WRITE FILES")
        (finding,) = doctor.wrong(head)
        assert finding.fix == (
            f"let its owner run: GRANT READ FILES ON EXTERNAL LOCATION `nearest` TO `{ME}`;"
            f" GRANT WRITE FILES ON EXTERNAL LOCATION `nearest` TO `{ME}`;"
        )
        permit(workspace, "external_location", "nearest", ME, "READ FILES", "WRITE FILES")
        assert doctor.wrong(head) == []
        # Of a folder that is a location itself, that one.
        assert ("GET", "/api/2.1/unity-catalog/external-locations/itself") in workspace.requests

    def test_files_of_this_machine_are_refused(self, doctor: Doctor) -> None:
        found = doctor.wrong(HEAD.replace(f"/Volumes/{CATALOG}/bronze_files/files/landing", "file:///data/landing"))
        assert [finding.words for finding in found] == [
            f"{key} is file:///data/{key}, which no cluster can read." for key in ("landing", "archive")
        ]


class TestStaging:
    def test_without_a_dbfs_root_there_is_another_way(self, doctor: Doctor, workspace: FakeWorkspace) -> None:
        workspace.dbfs_enabled = False
        (finding,) = doctor.wrong()
        assert finding.of == "staging"
        assert "the workspace has its DBFS root off, which launch = step_launcher needs" in finding.words
        assert finding.fix == "set launch to pipes or serverless and staging_volume."
        assert doctor.wrong(launch="pipes") == []

    @pytest.mark.parametrize("call", ["create", "add-block", "close", "read", "delete"])
    def test_each_call_on_dbfs_must_succeed(self, doctor: Doctor, workspace: FakeWorkspace, call: str) -> None:
        path = f"/api/2.0/dbfs/{call}"
        method = "GET" if call == "read" else "POST"
        workspace.faults = [Fault(method, path, times=None, status=403, code="PERMISSION_DENIED")]
        (finding,) = doctor.wrong()
        assert finding.words == (
            "/dagster_staging on DBFS cannot be written, read and cleaned up (PermissionDenied, PERMISSION_DENIED)."
        )

    @pytest.mark.parametrize(
        ("method", "what"), [("PUT", "directories"), ("PUT", "files"), ("GET", "files"), ("DELETE", "files")]
    )
    def test_each_call_on_the_volume_must_succeed(
        self, doctor: Doctor, workspace: FakeWorkspace, method: str, what: str
    ) -> None:
        workspace.faults = [Fault(method, f"/api/2.0/fs/{what}/.*", times=None, status=403, code="PERMISSION_DENIED")]
        (finding,) = doctor.wrong(launch="pipes")
        assert finding.of == "staging"
        assert "cannot be written, read and cleaned up (PermissionDenied, PERMISSION_DENIED)." in finding.words

    def test_what_comes_back_is_compared(
        self, doctor: Doctor, workspace: FakeWorkspace, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        # Something else is written than what is looked for then.
        other = SimpleNamespace(BytesIO=lambda _: io.BytesIO(b"something else"))
        monkeypatch.setattr(doctor_databricks, "io", other)
        (finding,) = doctor.wrong(launch="pipes")
        assert "gives back something else than was written" in finding.words
        assert left_behind(workspace) == []


class TestAnExistingCluster:
    @pytest.mark.parametrize(
        ("change", "words"),
        [
            ({"spark_version": "16.4.x-scala2.12"}, "comes with Spark 3.5 and Scala 2.12; tested are 17.3 LTS"),
            ({"data_security_mode": "NONE"}, "has the access mode NONE, which has no Unity Catalog"),
            ({"data_security_mode": None}, "has the access mode NONE, which has no Unity Catalog"),
            ({"single_user_name": "6f1f2c1e"}, f"its single user is 6f1f2c1e, and {ME} is signed in"),
        ],
    )
    def test_that_cannot_do_is_told(
        self, doctor: Doctor, workspace: FakeWorkspace, change: dict[str, Any], words: str
    ) -> None:
        described = workspace.clusters[CLUSTER] | change
        workspace.clusters[CLUSTER] = {key: value for key, value in described.items() if value is not None}
        (finding,) = doctor.wrong()
        assert finding.of == "cluster"
        assert words in finding.words

    @pytest.mark.parametrize(
        ("entries", "state", "words"),
        [
            ([acl("CAN_RESTART", user_name=ME)], "TERMINATED", None),
            ([acl("CAN_ATTACH_TO", user_name=ME)], "RUNNING", None),
            ([acl("CAN_ATTACH_TO", user_name=ME)], "TERMINATED", "may attach to it, but not start it"),
            ([acl("CAN_MANAGE", user_name="eve@example.com")], "RUNNING", f"{ME} may not use the cluster"),
            ([acl("CAN_RESTART", group_name="bronze_platform")], "TERMINATED", None),
            ([acl("CAN_RESTART", service_principal_name=ME)], "TERMINATED", None),
        ],
    )
    def test_must_be_theirs_to_start(
        self, doctor: Doctor, workspace: FakeWorkspace, entries: Sequence[dict[str, Any]], state: str, words: str | None
    ) -> None:
        workspace.me["groups"] = [{"display": "bronze_platform"}]
        workspace.permissions["clusters", CLUSTER] = list(entries)
        workspace.clusters[CLUSTER]["state"] = state
        found = doctor.wrong()
        assert len(found) == (words is not None)
        for finding in found:
            assert str(words) in finding.words
            assert finding.fix == "let a manager of it give CAN_RESTART to bronze_platform."

    def test_that_is_not_there_or_not_theirs_is_told(self, doctor: Doctor, workspace: FakeWorkspace) -> None:
        (finding,) = doctor.wrong(rest=EXISTING.replace(CLUSTER, "1127-none"))
        assert "there is no cluster 1127-none (" in finding.words
        workspace.faults = [Fault("GET", ".*/clusters/get", times=None, status=403, code="PERMISSION_DENIED")]
        (finding,) = doctor.wrong()
        assert "the cluster" in finding.words
        assert "CAN_RESTART" in str(finding.fix)

    def test_whose_permissions_cannot_be_seen_or_that_never_ends_is_told_so(
        self, doctor: Doctor, workspace: FakeWorkspace
    ) -> None:
        workspace.faults = [Fault("GET", "/api/2.0/permissions/.*", times=None, status=403, code="PERMISSION_DENIED")]
        workspace.clusters[CLUSTER]["autotermination_minutes"] = 0
        (words,) = (finding.words for finding in doctor.all() if finding.of == "cluster")
        assert "; its permissions cannot be seen; it does not end by itself (autotermination is off)." in words

    def test_is_an_admins_whatever_its_list_says(self, doctor: Doctor, workspace: FakeWorkspace) -> None:
        workspace.me["groups"] = [{"display": "admins"}]
        workspace.permissions["clusters", CLUSTER] = []
        assert doctor.wrong() == []


class TestAJobCluster:
    def test_of_what_is_not_offered_is_told_with_what_is(self, doctor: Doctor, workspace: FakeWorkspace) -> None:
        workspace.spark_versions["18.x-scala2.13"] = "18 LTS"
        del workspace.spark_versions["17.3.x-scala2.13"]
        version, node = doctor.wrong(rest=NODES.replace("i3.2xlarge", "Standard_D4ds_v5"))
        assert version.words == "spark_version = 17.3.x-scala2.13 is not offered."
        assert version.fix == "use one of 18.x-scala2.13."
        assert node.words == "node_type_id = Standard_D4ds_v5 is not offered."

    def test_of_a_pool_or_policy_that_is_not_there_is_told(self, doctor: Doctor, workspace: FakeWorkspace) -> None:
        workspace.policies.clear()
        workspace.instance_pools.clear()
        pool, policy = doctor.wrong(rest=JOB)
        assert f"there is no pool {POOL}" in pool.words
        assert f"there is no policy {POLICY}" in policy.words

    def test_of_a_pool_or_policy_of_others_is_told(self, doctor: Doctor, workspace: FakeWorkspace) -> None:
        workspace.permissions["cluster-policies", POLICY] = [acl("CAN_USE", group_name="strangers")]
        workspace.permissions["instance-pools", POOL] = []
        pool, policy = doctor.wrong(rest=JOB)
        assert pool.fix == f"let an admin give CAN_ATTACH_TO on it to {ME}."
        assert policy.fix == f"let an admin give CAN_USE on it to {ME}."

    @pytest.mark.parametrize(
        ("change", "words"),
        [
            (
                ("17.3.x-scala2.13", "17.3.x-photon-scala2.13"),
                "spark_version = 17.3.x-photon-scala2.13: it fixes 17.3.x-scala2.13",
            ),
            (("max = 2", "max = 8"), "autoscale.max_workers = 8: it allows 1 to 2"),
            ((f'instance_pool_id = "{POOL}"', 'node_type_id = "i3.xlarge"'), "node_type_id at all"),
        ],
    )
    def test_that_the_policy_does_not_allow_is_told(
        self, doctor: Doctor, workspace: FakeWorkspace, change: tuple[str, str], words: str
    ) -> None:
        workspace.spark_versions["17.3.x-photon-scala2.13"] = "17.3 LTS Photon"
        (finding,) = doctor.wrong(rest=JOB.replace(*change))
        assert finding.words == f"the policy {POLICY} does not allow {words}."

    def test_of_another_user_is_told(self, doctor: Doctor) -> None:
        (finding,) = doctor.wrong(rest=f'{NODES}single_user_name = "6f1f2c1e"\n')
        assert f"its single user is 6f1f2c1e, and {ME} is signed in." in finding.words


def test_a_warehouse_that_is_not_there_is_told(doctor: Doctor, workspace: FakeWorkspace) -> None:
    workspace.warehouses.clear()
    (finding,) = doctor.wrong()
    assert f"there is no SQL warehouse {WAREHOUSE}" in finding.words


def test_what_the_workspace_says_is_never_quoted(doctor: Doctor, workspace: FakeWorkspace) -> None:
    workspace.faults = [Fault("GET", "(?!.*/scim/).*", times=None, status=400, code="ODD")]
    found = "".join(map(str, doctor.all()))
    assert "a fault of the test" not in found
    assert workspace.token not in found
    assert "hunter2" not in found
    assert found.count("cannot be looked at") >= 5


def test_the_command_sums_it_up(doctor: Doctor, workspace: FakeWorkspace) -> None:
    settings = doctor.settings(HEAD, EXISTING, "step_launcher")
    environ = {
        **os.environ,
        "BRONZE_ENV": "dev",
        "BRONZE_SETTINGS": str(settings.settings_file),
        "BRONZE_HOME": str(settings.home),
    }
    for catalog, code in (("", 0), ("none", 1)):
        done = subprocess.run(
            [sys.executable, "-m", "bronze_assets", "doctor"],
            cwd=CHECKOUT,
            env={**environ, "BRONZE_CATALOG": catalog},
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert (done.returncode, done.stderr) == (code, "")
        assert done.stdout.splitlines()[-1].startswith("BRONZE_ENV=dev: ")
