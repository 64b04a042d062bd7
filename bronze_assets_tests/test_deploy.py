"""`deploy/` and `.github/`: what can be judged without a cloud, docker and runners is judged here. Spark never starts.

The deployment is the real one: the wheel, the commands, health checks and dagster.yaml of compose, on the embedded
PostgreSQL. Only the loads are faked.
"""

from __future__ import annotations

import functools
import importlib.util
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import hcl2
import pytest
import yaml
from databricks.bundles.jobs import Job

from bronze_assets import access
from bronze_assets.catalog import TABLES
from bronze_assets.demo import postgres
from bronze_assets.leases import LEASES
from bronze_assets.settings import CaptureMode, Settings
from bronze_assets_tests import lake_reader
from bronze_assets_tests.conftest import CHECKOUT, Server
from bronze_assets_tests.dagster_client import until
from bronze_assets_tests.deployment import (
    DEPLOY,
    PATIENCE,
    Deployment,
    build_wheel,
    compose,
    copy_of_checkout,
    install_wheel,
    run_python,
)
from deploy import declared, gate, release
from deploy.release import ReleaseError, State

TERRAFORM = DEPLOY / "terraform"
WORKFLOWS = CHECKOUT / ".github" / "workflows"
ENVIRONMENTS = {"dev": "dev_inventory", "qa": "qa_inventory", "prod": "workspace"}
SCHEMAS = set(access.schemas(TABLES))
VARIABLE = re.compile(r"\$\{(\w+)(?:(:[-+?])((?:[^${}]|\$\{[^{}]*\})*))?\}")


def terraform_files() -> list[Path]:
    return sorted(path for path in TERRAFORM.rglob("*.tf") if ".terraform" not in path.parts)


def unquoted(value: Any) -> Any:
    """A parsed HCL body without the quotes that the parser leaves."""
    if isinstance(value, dict):
        return {unquoted(key): unquoted(item) for key, item in value.items()}
    if isinstance(value, list):
        return [unquoted(item) for item in value]
    return value[1:-1] if isinstance(value, str) and value[:1] == value[-1:] == '"' else value


def parsed(path: Path) -> dict[str, Any]:
    with path.open() as file:
        found: dict[str, Any] = unquoted(hcl2.load(file))
    return found


def resources(folder: Path) -> dict[tuple[str, str], dict[str, Any]]:
    """(type, name) → body of every resource of one folder."""
    return {
        (kind, name): body
        for path in sorted(folder.glob("*.tf"))
        for resource in parsed(path).get("resource", [])
        for kind, named in resource.items()
        for name, body in named.items()
    }


MODULES = sorted({path.parent for path in terraform_files()})
ALL_RESOURCES = {(folder.name, *key): body for folder in MODULES for key, body in resources(folder).items()}


class TestTerraform:
    def test_what_it_takes_from_the_declarations_is_up_to_date(self) -> None:
        assert declared.outdated(TERRAFORM, TABLES) == []
        assert declared.main(["--check"]) == 0

    def test_a_changed_declaration_is_noticed(self) -> None:
        without_customers = [table for table in TABLES if table.name != "bz_customers"]
        assert declared.outdated(TERRAFORM, without_customers) == [Path("grants") / declared.NAME]
        only_one_schema = [table for table in TABLES if table.schema == "inventory_bronze"]
        assert set(declared.outdated(TERRAFORM, only_one_schema)) == set(declared.files(TABLES))

    def test_its_grants_are_the_declared_ones_and_no_others(self) -> None:
        variables = json.loads((TERRAFORM / "grants" / declared.NAME).read_text())
        found: set[tuple[str, tuple[str, ...], str, str]] = {
            ("CATALOG", ("dev",), p, who) for who, all_ in variables["catalog_grants"].items() for p in all_
        }
        for schema, grantees in variables["schema_grants"].items():
            found |= {("SCHEMA", ("dev", schema), p, who) for who, all_ in grantees.items() for p in all_}
        for schema, relations in variables["table_grants"].items():
            for relation, grantees in relations.items():
                found |= {("TABLE", ("dev", schema, relation), p, who) for who, all_ in grantees.items() for p in all_}
        assert found == {
            (grant.kind, grant.path, grant.privilege.replace(" ", "_"), grant.grantee)
            for grant in access.grants(TABLES, "dev")
        }
        assert set(variables["schema_grants"]) == set(variables["table_grants"]) == SCHEMAS

    def test_every_schema_of_every_catalog_has_its_own(self) -> None:
        assert set(json.loads((TERRAFORM / "azure" / declared.NAME).read_text())["schemas"]) == SCHEMAS
        schema = ALL_RESOURCES["unity_catalog", "databricks_schema", "bronze"]
        assert schema["for_each"] == "${toset(var.schemas)}"
        assert schema["name"] == "${each.key}"
        modules = {name: body for m in parsed(TERRAFORM / "azure" / "main.tf")["module"] for name, body in m.items()}
        assert modules["unity_catalog"]["schemas"] == "${var.schemas}"
        for environment, catalog in ENVIRONMENTS.items():
            values = parsed(TERRAFORM / "azure" / f"{environment}.tfvars")
            assert (values["environment"], values["catalog"]) == (environment, catalog)
            # The workspace came with that catalog.
            assert values["create_catalog"] is (catalog != "workspace")

    def test_each_object_has_one_owner(self) -> None:
        kinds = {kind for _, kind, _ in ALL_RESOURCES}
        assert not kinds & {
            "databricks_job",
            "databricks_sql_table",
            "databricks_entity_tag_assignment",
            "databricks_policy_info",
        }
        granting = {
            (folder, name) for folder, kind, name in ALL_RESOURCES if kind in ("databricks_grant", "databricks_grants")
        }
        assert granting == {
            ("grants", "catalog"),
            ("grants", "schema"),
            ("grants", "table"),
            ("unity_catalog", "files_schema"),
            ("unity_catalog", "files_volume"),
            ("unity_catalog", "staging_volume"),
        }
        # Others have rights on a shared catalog: only the one that adds may be used there.
        assert ("grants", "databricks_grant", "catalog") in ALL_RESOURCES
        bundle = "".join(path.read_text() for path in (DEPLOY / "bundle").rglob("*.yml"))
        assert not re.search(r"^\s*(grants|schemas|volumes|catalogs|clusters|sql_warehouses):", bundle, re.MULTILINE)

    def test_nobody_but_the_platform_reaches_files(self) -> None:
        for name in ("files_schema", "files_volume", "staging_volume"):
            (grant,) = ALL_RESOURCES["unity_catalog", "databricks_grants", name]["grant"]
            assert grant["principal"] == "${var.platform}"
            if name.endswith("volume"):
                assert grant["privileges"] == ["READ_VOLUME", "WRITE_VOLUME"]
        # READ FILES on the location would pass by masks and row filters.
        assert not any("external_location" in body for (_, kind, _), body in ALL_RESOURCES.items() if "grant" in kind)

    def test_volumes_are_where_the_settings_files_say_and_do_not_overlap(self) -> None:
        volumes = {name: body for (_, kind, name), body in ALL_RESOURCES.items() if kind == "databricks_volume"}
        assert set(volumes) == {body["name"] for body in volumes.values()} == {"files", "staging"}
        assert {body["schema_name"] for body in volumes.values()} == {"${databricks_schema.files.name}"}
        assert ALL_RESOURCES["unity_catalog", "databricks_schema", "files"]["name"] == "bronze_files"
        places = [body["storage_location"] + "/" for body in volumes.values()]
        # Unity Catalog refuses a volume within another.
        assert not any(a != b and a.startswith(b) for a in places for b in places)
        for environment in ENVIRONMENTS:
            text = (DEPLOY / "settings" / f"{environment}.toml").read_text()
            assert set(re.findall(r"/bronze_files/(\w+)", text)) == set(volumes)

    def test_what_a_settings_file_asks_of_it_are_its_outputs(self) -> None:
        outputs = {name: body for o in parsed(TERRAFORM / "azure" / "outputs.tf")["output"] for name, body in o.items()}
        for environment in ENVIRONMENTS:
            text = (DEPLOY / "settings" / f"{environment}.toml").read_text()
            named = {
                name for line in re.findall(r"Terraform's outputs? ([^.\n]+)\.", text) for name in line.split(" and ")
            }
            assert {"BRONZE_SQL_WAREHOUSE", "staging_volume"} < named <= set(outputs)
            assert {"pooled_jobs_policy_id", "jobs_policy_id"} & named
        made = {
            module.name: {name for output in parsed(module / "outputs.tf")["output"] for name in output}
            for module in (TERRAFORM / "modules").iterdir()
        }
        for body in outputs.values():
            if found := re.match(r"\$\{module\.(\w+)\.(\w+)\}", body["value"]):
                assert found[2] in made[found[1]]

    def test_what_holds_data_or_keys_is_not_destroyed_by_a_plan(self) -> None:
        holding = {
            "azurerm_storage_account",
            "azurerm_storage_container",
            "azurerm_key_vault",
            "aws_s3_bucket",
            "databricks_catalog",
            "databricks_schema",
            "databricks_volume",
        }
        assert holding <= {kind for _, kind, _ in ALL_RESOURCES}
        for (folder, kind, name), body in ALL_RESOURCES.items():
            if kind in holding:
                assert body["lifecycle"][0]["prevent_destroy"] is True, f"{folder}: {kind}.{name}"

    def test_both_clouds_give_the_same(self) -> None:
        def outputs(module: str) -> set[str]:
            found = parsed(TERRAFORM / "modules" / module / "outputs.tf")["output"]
            return {name for output in found for name in output}

        assert outputs("azure_storage") == outputs("s3_storage") == {"tables_url", "files_url"}

    def test_providers_are_pinned_and_the_same_everywhere(self) -> None:
        pins: dict[str, set[str]] = {}
        for folder in MODULES:
            (block,) = parsed(folder / "versions.tf")["terraform"]
            for name, provider in block["required_providers"][0].items():
                if isinstance(provider, dict):
                    pins.setdefault(name, set()).add(provider["version"])
        assert pins["databricks"] == {"1.113.0"}
        assert pins["azurerm"] == {"5.2.0"}

    def test_compute_scales_and_ends_by_itself(self) -> None:
        (block,) = parsed(TERRAFORM / "modules" / "compute" / "main.tf")["locals"]
        text = (TERRAFORM / "modules" / "compute" / "main.tf").read_text()
        assert {"autoscale.min_workers", "autoscale.max_workers", "spark_version"} <= set(block["runtime"])
        assert '"autotermination_minutes" = { type = "range"' in text
        assert '"SPOT_WITH_FALLBACK_AZURE"' in (TERRAFORM / "azure" / "main.tf").read_text()
        assert ALL_RESOURCES["compute", "databricks_sql_endpoint", "this"]["auto_stop_mins"] == 10

    def test_the_pool_has_machines_for_all_runs_at_once(self) -> None:
        variables = {
            name: body
            for variable in parsed(TERRAFORM / "modules" / "compute" / "variables.tf")["variable"]
            for name, body in variable.items()
        }
        runs = yaml.safe_load((DEPLOY / "dagster" / "dagster.yaml").read_text())["concurrency"]["runs"]
        # And one for maintenance. A pool that is full refuses clusters.
        assert variables["concurrent_jobs"]["default"] == runs["max_concurrent_runs"] + 1
        most = ALL_RESOURCES["compute", "databricks_instance_pool", "jobs"]["max_capacity"]
        assert most == "${var.concurrent_jobs * (var.max_workers + 1)}"


SECRET_NAME = re.compile(
    r"""(?ix) [\w.-]* ( password | passwd | secret | token | access_key | api_key | master_key ) ["']? \s* [:=] \s* """
    r"(?P<value> \S.* )"
)
NO_SECRET = re.compile(
    r"""(?x) ["'\[]* ( \$\{ | var\. | module\. | azurerm_ | databricks_ | file:/ | env$ | write\b | unused\b | \{$ )"""
)
A_SECRET = re.compile(r"dapi[0-9a-f]{32}|AKIA[0-9A-Z]{16}|-----BEGIN|://[^/\s$]+:[^/\s$]+@")


def test_no_file_holds_a_secret_literal() -> None:
    checked = 0
    for path in sorted([*DEPLOY.rglob("*"), *WORKFLOWS.iterdir()]):
        if path.suffix in (".tf", ".tfvars", ".yaml", ".yml", ".example", ".json") or path.name == "Dockerfile":
            for line in path.read_text().splitlines():
                found = SECRET_NAME.search(line.partition("#")[0])
                if found and path.suffix != ".json":
                    checked += 1
                    assert NO_SECRET.match(found["value"].strip()), f"{path.name}: {line}"
            assert not A_SECRET.search(path.read_text()), path.name
    assert checked


def bundle_file(name: str) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((DEPLOY / "bundle" / name).read_text())
    return found


def maintenance() -> ModuleType:
    """The bundle's task, imported as the file that it is."""
    spec = importlib.util.spec_from_file_location("maintenance", DEPLOY / "bundle" / "src" / "maintenance.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class FakeSql:
    """Answers the question for tables, and notes every other statement."""

    def __init__(self, *tables: str, failing: str = "") -> None:
        self.tables = tables
        self.failing = failing
        self.statements: list[str] = []

    def __call__(self, statement: str) -> Sequence[Any]:
        if statement.startswith("SELECT"):
            self.question = statement
            return [SimpleNamespace(table_name=name) for name in self.tables]
        if self.failing and self.failing in statement:
            raise RuntimeError("[DELTA_CONCURRENT_WRITE] somebody else wrote\nplan: a value")
        self.statements.append(statement)
        return []


class TestBundle:
    def test_its_jobs_are_jobs_as_databricks_knows_them(self) -> None:
        jobs = bundle_file("resources/maintenance.job.yml")["resources"]["jobs"]
        assert set(jobs) == {"maintenance"}
        for body in jobs.values():
            # Raises for a field that does not exist, at any depth.
            job = Job.from_dict(body)
            assert job.as_dict() == body

    def test_its_targets_are_the_environments(self) -> None:
        bundle = bundle_file("databricks.yml")
        assert set(bundle) == {"bundle", "include", "variables", "targets"}
        assert [path.name for pattern in bundle["include"] for path in (DEPLOY / "bundle").glob(pattern)]
        for name, target in bundle["targets"].items():
            assert target["variables"] == {"catalog": ENVIRONMENTS[name], "environment": name}
            assert target["mode"] == ("development" if name == "dev" else "production")
            if name != "dev":
                assert target["run_as"] == {"service_principal_name": "${var.platform_application_id}"}
        assert set(bundle["targets"]) == set(ENVIRONMENTS)

    def test_its_variables_are_declared_and_used(self) -> None:
        text = "".join(path.read_text() for path in sorted((DEPLOY / "bundle").rglob("*.yml")))
        assert set(re.findall(r"\$\{var\.(\w+)\}", text)) == set(bundle_file("databricks.yml")["variables"])

    def test_it_uses_the_policy_that_terraform_makes(self) -> None:
        policy = bundle_file("databricks.yml")["variables"]["job_policy"]["lookup"]["cluster_policy"]
        made = ALL_RESOURCES["compute", "databricks_cluster_policy", "pooled_jobs"]["name"]
        assert policy == made

    def test_every_schema_is_maintained(self) -> None:
        (job,) = bundle_file("resources/maintenance.job.yml")["resources"]["jobs"].values()
        parameters = [task["spark_python_task"]["parameters"] for task in job["tasks"]]
        assert parameters == [["--catalog", "${var.catalog}", "--schema", schema] for schema in access.schemas(TABLES)]
        for task in job["tasks"]:
            assert (DEPLOY / "bundle" / "resources" / task["spark_python_task"]["python_file"]).is_file()

    def test_tables_are_compacted_and_keep_what_they_promise(self, capsys: pytest.CaptureFixture[str]) -> None:
        sql = FakeSql("bz_orders", "bz_odd`name")
        assert maintenance().main(sql, ["--catalog", "dev", "--schema", "it's"]) == 0
        assert sql.statements == [
            "OPTIMIZE `dev`.`it's`.`bz_orders`",
            "VACUUM `dev`.`it's`.`bz_orders`",
            "OPTIMIZE `dev`.`it's`.`bz_odd``name`",
            "VACUUM `dev`.`it's`.`bz_odd``name`",
        ]
        assert "`dev`.information_schema.tables WHERE table_schema = 'it\\'s'" in sql.question

    def test_what_leads_to_persons_is_left_to_erasures(self) -> None:
        private = {control.name for control in access.CONTROLS if control.personal and not control.readers}
        sql = FakeSql(*sorted(private), "bz_customers")
        assert maintenance().main(sql, ["--catalog", "dev", "--schema", "s"]) == 0
        assert [statement.split(".")[-1].split("`")[1] for statement in sql.statements] == ["bz_customers"] * 2

    def test_control_tables_are_maintained_and_heartbeats_are_not_disturbed(self) -> None:
        names = sorted(control.name for control in access.CONTROLS if control.readers)
        sql = FakeSql(*names)
        assert maintenance().main(sql, ["--catalog", "dev", "--schema", "s"]) == 0
        done = {(words[0], words[1].split("`")[5]) for words in map(str.split, sql.statements)}
        assert done == {(verb, name) for verb in ("OPTIMIZE", "VACUUM") for name in names} - {("OPTIMIZE", LEASES)}

    def test_a_table_that_fails_stops_no_other_and_is_named(self, capsys: pytest.CaptureFixture[str]) -> None:
        sql = FakeSql("bz_a", "bz_b", failing="VACUUM `dev`.`s`.`bz_a`")
        assert maintenance().main(sql, ["--catalog", "dev", "--schema", "s"]) == 1
        assert "VACUUM `dev`.`s`.`bz_b`" in sql.statements
        told = capsys.readouterr()
        assert told.err == "Failed: bz_a.\n"
        assert "bz_a: RuntimeError: [DELTA_CONCURRENT_WRITE] somebody else wrote\n" in told.out
        assert "plan" not in told.out

    def test_a_schema_without_tables_is_an_error(self) -> None:
        assert maintenance().main(FakeSql(), ["--catalog", "wrong", "--schema", "s"]) == 1


def check_schema(name: str, *paths: Path) -> None:
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", name, *map(str, paths)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def interpolated(given: dict[str, str]) -> dict[str, Any]:
    """compose.yaml with its variables filled in, as compose does it; raises KeyError for one that must be set."""
    given = {"BRONZE_ENV": "dev", "DAGSTER_POSTGRES_PASSWORD": "unused", **given}

    def value(found: re.Match[str]) -> str:
        name, operator, rest = found.groups()
        own = given.get(name, "")
        match operator:
            case ":?" if not own:
                raise KeyError(f"{name}: {rest}")
            case ":-":
                return own or rest
            case ":+":
                return rest if own else ""
        return own

    def filled(part: Any) -> Any:
        if isinstance(part, dict):
            return {key: filled(item) for key, item in part.items()}
        if isinstance(part, list):
            return [filled(item) for item in part]
        # The outer ones first: of those within, the ones that are left are asked for.
        while isinstance(part, str) and "${" in part:
            part = VARIABLE.sub(value, part)
        return part

    found: dict[str, Any] = filled(compose())
    return found


class TestCompose:
    def test_is_a_compose_file(self) -> None:
        check_schema("vendor.compose-spec", DEPLOY / "dagster" / "compose.yaml")

    def test_every_setting_is_in_the_example(self) -> None:
        asked = set(re.findall(r"\$\{(\w+)", (DEPLOY / "dagster" / "compose.yaml").read_text()))
        example = (DEPLOY / "dagster" / "settings.env.example").read_text()
        # release.py gives the tag of the image.
        assert asked - {"BRONZE_IMAGE_TAG"} == set(re.findall(r"^(?:# )?([A-Z_]+)=", example, re.MULTILINE))

    def test_what_must_be_set_is_empty_in_the_example_and_not_a_guess(self) -> None:
        text = (DEPLOY / "dagster" / "compose.yaml").read_text()
        example = (DEPLOY / "dagster" / "settings.env.example").read_text()
        required = set(re.findall(r"\$\{(\w+):\?", text)) - {"BRONZE_ENV"}
        assert required == {"DAGSTER_POSTGRES_PASSWORD"}
        for name in required | {"BRONZE_SETTINGS_FILE", "BRONZE_SOURCE_URL_FILE", "BRONZE_MASTER_KEY_FILE"}:
            assert f"\n{name}=\n" in example

    def test_the_code_servers_settings_are_ones_that_there_are(self) -> None:
        given = {name for name in compose()["services"]["code"]["environment"] if name.startswith("BRONZE_")}
        known = set(re.findall(r"BRONZE_[A-Z_]+", (CHECKOUT / "bronze_assets" / "settings.py").read_text()))
        assert given <= known | {"BRONZE_CODE_HOST"}
        assert {"BRONZE_ENV", "BRONZE_SOURCE_URL", "BRONZE_MASTER_KEY"} <= given

    def test_nothing_that_is_required_stands_in_a_default(self) -> None:
        """Compose wants it also where the default is not used (compose-go 2.6.0, tried)."""
        assert not re.search(r"\$\{\w+:?[-+][^}]*:?\?", (DEPLOY / "dagster" / "compose.yaml").read_text())

    def test_without_a_settings_file_both_secrets_are_used(self) -> None:
        given = interpolated({"BRONZE_SOURCE_URL_FILE": "/s/url", "BRONZE_MASTER_KEY_FILE": "/s/key"})
        variables = given["services"]["code"]["environment"]
        assert variables["BRONZE_SETTINGS"] == ""
        assert variables["BRONZE_SOURCE_URL"] == "file:/run/secrets/source_url"
        assert variables["BRONZE_MASTER_KEY"] == "file:/run/secrets/master_key"
        assert {name: secret["file"] for name, secret in given["secrets"].items()} == {
            "source_url": "/s/url",
            "master_key": "/s/key",
        }
        assert given["configs"]["settings"]["file"] == "/dev/null"
        settings = Settings.from_environment(variables)
        assert (settings.settings_file, settings.databricks, settings.capture) == (None, None, CaptureMode.OFF)
        vault = interpolated({"BRONZE_MASTER_KEY": "azure-keyvault://vault/key", "BRONZE_MASTER_KEY_FILE": "/s/key"})
        assert vault["services"]["code"]["environment"]["BRONZE_MASTER_KEY"] == "azure-keyvault://vault/key"

    @pytest.mark.parametrize("environment", ENVIRONMENTS)
    def test_with_a_settings_file_nothing_is_needed_beside_it_and_nothing_overrides_it(
        self, tmp_path: Path, environment: str
    ) -> None:
        text = (DEPLOY / "settings" / f"{environment}.toml").read_text()
        file = tmp_path / "settings.toml"
        file.write_text(text.replace("adb-…", "adb-1.2").replace('"…"', '"1127abcdef"').replace("UTC", "Europe/Berlin"))
        given = interpolated({"BRONZE_ENV": environment, "BRONZE_SETTINGS_FILE": str(file)})
        (mounted,) = given["services"]["code"]["configs"]
        assert given["configs"][mounted["source"]]["file"] == str(file)
        variables = given["services"]["code"]["environment"]
        assert variables["BRONZE_SETTINGS"] == mounted["target"]
        # A mount must be of something.
        assert {secret["file"] for secret in given["secrets"].values()} == {"/dev/null"}
        here = {"BRONZE_HOME": str(tmp_path), "BRONZE_SETTINGS": str(file)}
        alone = Settings.from_environment({"BRONZE_ENV": environment, **here})
        assert alone.databricks is not None
        assert Settings.from_environment(variables | here) == alone
        mine = {"BRONZE_ENV": environment, "BRONZE_SETTINGS_FILE": str(file), "BRONZE_CATALOG": "mine"}
        variables = interpolated(mine)["services"]["code"]["environment"]
        assert Settings.from_environment(variables | here).catalog == "mine"

    def test_who_signs_in_to_databricks_is_told_to_the_code_server_alone(self) -> None:
        names = {"DATABRICKS_HOST", "DATABRICKS_TOKEN", "DATABRICKS_CLIENT_ID", "DATABRICKS_CLIENT_SECRET"}
        given = {"BRONZE_SETTINGS_FILE": "/s/dev.toml"} | {name: f"my {name}" for name in names}
        for name, service in interpolated(given)["services"].items():
            told = {one for one in names if service.get("environment", {}).get(one) == f"my {one}"}
            assert told == (names if name == "code" else set())
        assert "[azure,databricks,deploy,java]" in (DEPLOY / "dagster" / "Dockerfile").read_text()

    def test_processes_are_unprivileged_and_watched(self) -> None:
        for name, service in compose()["services"].items():
            assert "healthcheck" in service, name
            assert service["restart"] == "unless-stopped"
            if name != "postgres":
                assert service["read_only"] is True
                assert service["cap_drop"] == ["ALL"]
                assert service["security_opt"] == ["no-new-privileges:true"]
            for port in service.get("ports", []):
                assert port.startswith("127.0.0.1:"), "Dagster's webserver knows no users"
        lines = (DEPLOY / "dagster" / "Dockerfile").read_text().splitlines()
        assert [line for line in lines if line.startswith("USER")] == ["USER bronze"]
        assert lines.index("USER bronze") < next(n for n, line in enumerate(lines) if line.startswith("CMD"))

    def test_images_are_pinned_and_the_wheel_comes_with_its_versions(self) -> None:
        dockerfile = (DEPLOY / "dagster" / "Dockerfile").read_text()
        images = [*re.findall(r"^FROM (\S+)", dockerfile, re.MULTILINE), compose()["services"]["postgres"]["image"]]
        assert all(re.fullmatch(r"\w+:\d[\w.-]*", image) for image in images)
        assert "pip install --constraint constraints.txt" in dockerfile
        pins = dict(line.split("==") for line in (CHECKOUT / "constraints.txt").read_text().split())
        assert pins["dagster-postgres"].split(".")[-1] == pins["dagster"].split(".")[-1], "one release of Dagster"

    def test_the_instance_is_that_of_the_checkout_but_for_where_things_lie(self) -> None:
        here = yaml.safe_load((CHECKOUT / "dagster.yaml").read_text())
        # Of `make ui`, which keeps a process for it; a team's runs start in the container of its code.
        assert here.pop("run_launcher")["class"] == "WarmRunLauncher"
        there = yaml.safe_load((DEPLOY / "dagster" / "dagster.yaml").read_text())
        places = {"storage", "local_artifact_storage", "compute_logs"}
        assert {k: v for k, v in there.items() if k not in places} == {k: v for k, v in here.items() if k not in places}
        assert set(there) == set(here)
        database = there["storage"]["postgres"]["postgres_db"]
        assert database.pop("scheme") == "postgresql+psycopg2"
        assert all(set(value) == {"env"} for value in database.values()), "nothing of it is written down"
        given = compose()["x-bronze"]["environment"]
        assert {value["env"] for value in database.values()} <= set(given)


def workflow(name: str) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((WORKFLOWS / f"{name}.yaml").read_text())
    return found


class TestWorkflows:
    def test_are_workflows(self) -> None:
        check_schema("vendor.github-workflows", *sorted(WORKFLOWS.iterdir()))

    def test_have_no_known_weakness(self) -> None:
        command = [
            str(Path(sys.executable).with_name("zizmor")),
            "--offline",
            "--no-progress",
            "--min-severity",
            "medium",
        ]
        done = subprocess.run([*command, str(WORKFLOWS)], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr

    def test_use_actions_by_commit(self) -> None:
        used = re.findall(r"uses: (\S+)", "".join(path.read_text() for path in WORKFLOWS.iterdir()))
        assert used
        for action in used:
            assert action.startswith("./.github/workflows/") or re.fullmatch(r"[\w-]+/[\w-]+@[0-9a-f]{40}", action)
            if action.startswith("./"):
                assert (CHECKOUT / action).is_file()

    def test_a_pull_request_is_linted_and_tested_on_both_pythons(self) -> None:
        job = workflow("pull_request")["jobs"]["test"]
        assert job["strategy"]["matrix"] == {"python": ["3.11", "3.12"]}
        assert [step["run"] for step in job["steps"] if "run" in step] == ["make lint", "make test"]
        # YAML 1.1 reads the key `on` as true.
        assert "pull_request" in workflow("pull_request")[True]  # type: ignore[index]

    def test_a_pull_request_is_tested_on_each_spark_that_is_pinned(self) -> None:
        job = workflow("pull_request")["jobs"]["spark"]
        pinned = sorted(path.stem.rpartition("-")[2] for path in CHECKOUT.glob("constraints-databricks-*.txt"))
        assert job["strategy"]["matrix"] == {"databricks": pinned}
        assert [step["run"] for step in job["steps"] if "run" in step] == ['make test DATABRICKS="$RUNTIME"']

    def test_environments_come_one_after_the_other(self) -> None:
        jobs = workflow("release")["jobs"]
        assert jobs["build"]["needs"] == "test"
        assert {name: jobs[name]["needs"] for name in ("dev", "qa", "prod")} == {
            "dev": "build",
            "qa": ["build", "dev"],
            "prod": ["build", "qa"],
        }
        for name in ENVIRONMENTS:
            assert jobs[name]["with"]["environment"] == name
        # Approval is the GitHub environment's.
        assert workflow("deploy")["jobs"]["deploy"]["environment"] == "${{ inputs.environment }}"

    def test_what_fails_or_is_refused_is_rolled_back(self) -> None:
        steps = workflow("deploy")["jobs"]["deploy"]["steps"]
        assert [step.get("name") for step in steps[1:]] == [
            "Install",
            "Activate",
            "Quality gate",
            "Accept",
            "Roll back",
        ]
        assert steps[-1]["if"] == "${{ !success() && steps.activate.outcome != 'skipped' }}"

    def test_call_the_scripts_as_they_are_to_be_called(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Every call of a script in a workflow is understood by its parser."""
        called = []
        for name in ("deploy", "rollback", "release"):
            for job in workflow(name)["jobs"].values():
                for step in job.get("steps", []):
                    called += re.findall(r"python3? \S*(release|gate)\.py\"? (.*)", step.get("run", ""))
        assert len(called) == 8
        reached: list[str] = []

        def stop(name: str, error: Exception) -> Any:
            def instead(*_: Any, **__: Any) -> None:
                reached.append(name)
                raise error

            return instead

        monkeypatch.setattr(release, "pack", stop("release", ReleaseError("reached.", "none.")))
        monkeypatch.setattr(release, "_held", stop("release", ReleaseError("reached.", "none.")))
        monkeypatch.setattr(gate, "backfill", stop("gate", gate.GateError("reached.")))
        for script, line in called:
            words = [word for word in line.replace('"', "").split() if word != "${to[@]}"]
            main = release.main if script == "release" else gate.main
            assert main(["dev" if word == "$TARGET" else word for word in words]) == 1
        assert reached == [script for script, _ in called]


@pytest.fixture
def a_release(tmp_path: Path) -> Path:
    """A packed release named `1.0+aaa`."""
    return packed(tmp_path, "1.0+aaa")


def packed(folder: Path, name: str) -> Path:
    wheel = folder / f"bronze_assets-{name.partition('+')[0]}-py3-none-any.whl"
    wheel.write_text(f"the wheel of {name}")
    return release.pack(wheel, name, folder / "built")


class Commands:
    """Notes commands instead of running them; the one that holds `failing` fails."""

    def __init__(self) -> None:
        self.failing: str | None = None
        self.ran: list[tuple[str, str, str]] = []

    def __call__(self, command: Sequence[str], folder: Path, environment: dict[str, str]) -> None:
        if self.failing and self.failing in folder.parts:
            raise subprocess.CalledProcessError(1, list(command))
        (folder / ("compose.yaml" if command[0] == "docker" else "databricks.yml")).read_text()
        self.ran.append((command[0], folder.parent.name, environment["BRONZE_IMAGE_TAG"]))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "root"
    (folder / "releases").mkdir(parents=True)
    (folder / "settings.env").write_text("BRONZE_ENV=dev\nBRONZE_SETTINGS_FILE=/etc/bronze/dev.toml\n")
    return folder


class TestRelease:
    def test_holds_all_that_a_deployment_needs(self, a_release: Path) -> None:
        found = {str(path.relative_to(a_release)) for path in a_release.rglob("*") if path.is_file()}
        assert found == {
            "release.json",
            "release.py",
            "gate.py",
            "bundle/databricks.yml",
            "bundle/resources/maintenance.job.yml",
            "bundle/resources/monitoring.dashboard.yml",
            "bundle/src/maintenance.py",
            "bundle/src/monitoring.lvdash.json",
            *(f"dagster/{name}" for name in (".dockerignore", "Dockerfile", "compose.yaml", "constraints.txt")),
            *(f"dagster/{name}" for name in ("dagster.yaml", "settings.env.example", "workspace.yaml")),
            "dagster/bronze_assets-1.0-py3-none-any.whl",
        }
        copied = re.findall(r"^COPY (.*) \S+$", (a_release / "dagster" / "Dockerfile").read_text(), re.MULTILINE)
        sent = (a_release / "dagster" / ".dockerignore").read_text()
        for pattern in " ".join(copied).split():
            assert list((a_release / "dagster").glob(pattern)), pattern
            assert f"!{pattern}\n" in sent
        assert release.verify(a_release) == "1.0+aaa"

    @pytest.mark.parametrize("fault", ["changed", "missing", "more"])
    def test_one_that_is_not_as_it_was_packed_is_refused(self, a_release: Path, root: Path, fault: str) -> None:
        match fault:
            case "changed":
                (a_release / "bundle" / "src" / "maintenance.py").write_text("import os\n")
            case "missing":
                (a_release / "dagster" / "constraints.txt").unlink()
            case "more":
                (a_release / "dagster" / "bronze_assets-9.9-py3-none-any.whl").write_text("")
        with pytest.raises(ReleaseError, match=r"is not as it was packed: \S+\. Fix: fetch it again"):
            release.install(a_release, root)
        assert not list((root / "releases").iterdir())

    def test_what_was_changed_on_the_machine_is_not_deployed(self, a_release: Path, root: Path) -> None:
        name = release.install(a_release, root)
        (root / "releases" / name / "dagster" / "compose.yaml").write_text("services: {}\n")
        commands = Commands()
        with pytest.raises(ReleaseError, match=r"dagster/compose\.yaml"):
            release.activate(root, name, "dev", commands)
        assert commands.ran == []

    def test_installing_again_changes_nothing_and_another_of_that_name_is_refused(
        self, a_release: Path, root: Path, tmp_path: Path
    ) -> None:
        assert release.install(a_release, root) == release.install(a_release, root) == "1.0+aaa"
        shutil.rmtree(a_release)
        (tmp_path / "bronze_assets-1.0-py3-none-any.whl").write_text("other")
        other = release.pack(tmp_path / "bronze_assets-1.0-py3-none-any.whl", "1.0+aaa", tmp_path / "other")
        with pytest.raises(ReleaseError, match="another release named"):
            release.install(other, root)

    @pytest.mark.parametrize(
        ("settings", "missing"),
        [
            ("", "BRONZE_SOURCE_URL_FILE"),
            ("# BRONZE_SETTINGS_FILE=/s\nBRONZE_SETTINGS_FILE=''\nBRONZE_MASTER_KEY=x\n", "BRONZE_SOURCE_URL_FILE"),
            ("BRONZE_SOURCE_URL_FILE=/s/url\n", "BRONZE_MASTER_KEY_FILE or BRONZE_MASTER_KEY"),
            ("BRONZE_SOURCE_URL_FILE=/s/url\nBRONZE_MASTER_KEY=azure-keyvault://vault/key\n", None),
            ("BRONZE_SOURCE_URL_FILE=/s/url\nBRONZE_MASTER_KEY_FILE=/s/key\n", None),
            ("BRONZE_SETTINGS_FILE=/s/dev.toml\n", None),
        ],
    )
    def test_where_the_secrets_are_must_be_told(
        self, a_release: Path, root: Path, settings: str, missing: str | None
    ) -> None:
        name = release.install(a_release, root)
        (root / "settings.env").write_text(f"BRONZE_ENV=dev\n{settings}")
        commands = Commands()
        if missing is None:
            release.activate(root, name, "dev", commands, ["dagster"])
            return
        with pytest.raises(ReleaseError, match=f"has neither BRONZE_SETTINGS_FILE nor {missing}\\."):
            release.activate(root, name, "dev", commands, ["dagster"])
        assert commands.ran == []
        release.activate(root, name, "dev", commands, ["bundle"])

    @pytest.mark.parametrize("name", ["../1.0", "", ".1", "a b", "a/b"])
    def test_names_stay_within_the_root(self, root: Path, name: str) -> None:
        with pytest.raises(ReleaseError, match="is no name of a release"):
            release.activate(root, name, "dev", Commands())

    def test_a_refused_release_gives_way_to_the_last_good_one_bundle_and_wheel(
        self, root: Path, tmp_path: Path
    ) -> None:
        commands = Commands()
        for name in ("1.0+aaa", "1.1+bbb", "1.2+ccc"):
            release.install(packed(tmp_path, name), root)
            release.activate(root, name, "prod", commands)
            if name != "1.2+ccc":
                release.accept(root, name)
        assert State.read(root) == State(current="1.2+ccc", good=["1.0+aaa", "1.1+bbb"])
        commands.ran.clear()
        assert release.roll_back(root, "prod", commands) == "1.1+bbb"
        assert commands.ran == [
            ("docker", "1.1+bbb", "1.1-bbb"),
            ("databricks", "1.1+bbb", "1.1-bbb"),
            ("databricks", "1.1+bbb", "1.1-bbb"),
        ]
        assert State.read(root) == State(current="1.1+bbb", good=["1.0+aaa", "1.1+bbb"])
        # Somebody finds later that this one was not good either.
        assert release.roll_back(root, "prod", commands) == "1.0+aaa"
        assert State.read(root) == State(current="1.0+aaa", good=["1.0+aaa"])
        with pytest.raises(ReleaseError, match="no good release to go back to"):
            release.roll_back(root, "prod", commands)

    @pytest.mark.parametrize("step", ["dagster", "bundle"])
    def test_an_activation_that_breaks_off_is_known_and_taken_back(self, root: Path, tmp_path: Path, step: str) -> None:
        commands = Commands()
        for name in ("1.0+aaa", "1.1+bbb"):
            release.install(packed(tmp_path, name), root)
        release.activate(root, "1.0+aaa", "dev", commands)
        release.accept(root, "1.0+aaa")
        commands.failing = step
        with pytest.raises(subprocess.CalledProcessError):
            release.activate(root, "1.1+bbb", "dev", commands)
        assert State.read(root) == State(current="1.0+aaa", activating="1.1+bbb", good=["1.0+aaa"])
        with pytest.raises(ReleaseError, match=r"1\.1\+bbb has not ended"):
            release.accept(root, "1.0+aaa")
        commands.failing = None
        # Half of the new one may be there: the old one is deployed again although it is noted as current.
        assert release.roll_back(root, "dev", commands) == "1.0+aaa"
        assert State.read(root) == State(current="1.0+aaa", good=["1.0+aaa"])

    def test_runs_the_real_commands_in_the_releases_folders(
        self, a_release: Path, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Through the script itself, with a docker and a databricks that note how they are called."""
        tools = tmp_path / "tools"
        tools.mkdir()
        for tool in ("docker", "databricks"):
            (tools / tool).write_text(
                f'#!/bin/sh\necho "{tool} $* in $PWD tag $BRONZE_IMAGE_TAG release $BUNDLE_VAR_release" >>'
                f" {tools}/log\n"
                f"test ! -e {tools}/{tool}-fails\n"
            )
            (tools / tool).chmod(0o755)
        monkeypatch.setenv("PATH", f"{tools}:/usr/bin:/bin")

        def call(*words: str) -> int:
            script = root / "releases" / "1.0+aaa" / "release.py"
            source = script if script.is_file() else a_release / "release.py"
            return subprocess.run([sys.executable, str(source), *words, "--root", str(root)], check=False).returncode

        assert call("install", str(a_release)) == 0
        assert call("activate", "1.0+aaa", "--target", "qa") == 0
        place = root.resolve() / "releases" / "1.0+aaa"
        end = "tag 1.0-aaa release 1.0+aaa"
        assert (tools / "log").read_text().splitlines() == [
            f"docker compose --file compose.yaml --env-file {root}/settings.env up --detach --build --wait"
            f" --wait-timeout 300 --remove-orphans in {place}/dagster {end}",
            f"databricks bundle validate --strict --target qa in {place}/bundle {end}",
            f"databricks bundle deploy --target qa in {place}/bundle {end}",
        ]
        assert call("accept", "1.0+aaa") == call("status") == 0
        (tools / "docker-fails").touch()
        assert call("activate", "1.0+aaa", "--target", "qa", "--steps", "dagster") == 1
        assert State.read(root).activating == "1.0+aaa"
        assert call("activate", "9.9", "--target", "qa") == 1
        (tools / "databricks").unlink()
        assert call("activate", "1.0+aaa", "--target", "qa", "--steps", "bundle") == 1


FAKED = """
import datetime as dt
from bronze_assets import load as walk
from bronze_assets.audit import LoadRecord

def fake(table, partition, bench, run, options=walk.Options()):
    now = dt.datetime.now(dt.UTC)
    # One table loses a row on its way.
    loaded = 9 if table.name == "bz_products" else 10
    return LoadRecord(table.name, table.schema, partition, f"{partition}/1", "full", now, now, read=10, loaded=loaded,
                      score_sum=1000, table_rows=10, partition_rows=10)

walk.load = fake
from bronze_assets.definitions import defs
"""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where this checkout's wheel is installed, as the image does it but for what it depends on."""
    folder = tmp_path_factory.mktemp("wheel")
    wheel = build_wheel(copy_of_checkout(folder / "source"), folder / "dist")
    return install_wheel(wheel, folder / "site")


@pytest.fixture
def deployment(site: Path, server: Server, tmp_path: Path) -> Iterator[Deployment]:
    url = server.make_database()
    (tmp_path / "faked.py").write_text(FAKED)
    key = tmp_path / "master.key"
    key.write_text(json.dumps({"versions": {"1": "A" * 43 + "="}}))
    key.chmod(0o400)
    settings = {
        "BRONZE_ENV": "dev",
        "BRONZE_SOURCE_URL": "postgresql://nobody@127.0.0.1:1/none",
        "BRONZE_MASTER_KEY": f"file:{key}",
    }
    yield Deployment(site, tmp_path, url, "faked", settings)
    server.drop_database(url)


def judge(deployment: Deployment, *tables: str) -> int:
    """The gate's exit code for the latest partition of some tables."""
    names = [f"inventory_bronze/{name}" for name in tables]
    return gate.main(["--url", deployment.dagster.url, "--timeout", "300", "--assets", *names])


def test_a_deployment_runs_and_is_healthy(deployment: Deployment) -> None:
    with deployment.running("code", "daemon", "webserver"):
        nodes = deployment.dagster.ask("{ assetNodes { isExecutable assetKey { path } } }")["assetNodes"]
        executable = {"/".join(node["assetKey"]["path"]) for node in nodes if node["isExecutable"]}
        reports = {f"{table.schema}/kpi_report" for table in TABLES}
        assert executable == {f"{table.schema}/{table.name}" for table in TABLES} | reports
        for service in ("code", "webserver", "daemon"):
            until(functools.partial(deployment.healthy, service), PATIENCE, deployment.folder / f"{service}.log")
        instance = deployment.dagster.ask("{ instance { daemonHealth { allDaemonStatuses { daemonType } } } }")
        daemons = {found["daemonType"] for found in instance["instance"]["daemonHealth"]["allDaemonStatuses"]}
        assert {"QUEUED_RUN_COORDINATOR", "SCHEDULER", "SENSOR", "BACKFILL", "FRESHNESS_DAEMON"} <= daemons
    with postgres.connect(deployment.storage) as connection, connection.cursor() as cursor:
        cursor.execute("select count(*) from daemon_heartbeats")
        assert cursor.fetchone() == (len(daemons),)
    # The containers' own file systems are read-only: what is written lies in volumes, /tmp and PostgreSQL.
    assert sorted(path.name for path in deployment.home.iterdir()) == ["dagster.yaml", "workspace.yaml"]
    assert list(deployment.user_home.iterdir()) == []
    assert judge(deployment, "bz_orders") == 1, "nobody answers"


@pytest.mark.slow
def test_a_deployment_is_judged_by_its_gate(deployment: Deployment, capsys: pytest.CaptureFixture[str]) -> None:
    with deployment.running("code", "daemon", "webserver"):
        assert judge(deployment, "bz_orders", "bz_customers") == 0
        assert re.search(r"\n\d+ checks in 1 runs: passed\.\n", capsys.readouterr().out)
        assert judge(deployment, "bz_orders", "bz_products") == 1
        told = capsys.readouterr()
        assert "inventory_bronze/bz_products: the check conservation failed (ERROR)\n" in told.err
        assert "bz_orders" not in told.err
        assert judge(deployment, "bz_nothing") == 1
        assert "the deployment has no asset inventory_bronze/bz_nothing" in capsys.readouterr().err
    with postgres.connect(deployment.storage) as connection, connection.cursor() as cursor:
        cursor.execute("select status, count(*) from runs group by status")
        assert dict(cursor.fetchall()) == {"SUCCESS": 2}


CONTROL_TABLES = """
import datetime as dt, sys
from pathlib import Path
from bronze_assets import audit
from bronze_assets.audit import LoadRecord
from bronze_assets.batches import BatchLog
from bronze_assets.catalog import TABLES
from bronze_assets.demo import postgres
from bronze_assets.lakehouse import Lakehouse
from bronze_assets.sources.ledger import FileEvent, FileState, Ledger
from bronze_assets.sources.scope import Scope

lake = Lakehouse(Path(sys.argv[1]))
tables = {table.name: table for table in TABLES}
orders, sensors = tables["bz_orders"], tables["bz_sensor_data"]
now = dt.datetime(2026, 3, 10, 12, tzinfo=dt.UTC)
clock = lambda: dt.datetime.now(dt.UTC)

def load(rows):
    log = BatchLog(lake, orders, clock, "2026-03-10")
    name = log.next_id("2026-03-10")
    batch = log.begin(name, "2026-03-10", "run", Scope(), "epoch")
    record = LoadRecord("bz_orders", orders.schema, "2026-03-10", name, "full", now, now, read=rows, loaded=rows,
                        source_position=name)
    log.note(batch, "done", run_id="run", record=record)
    audit.write_success(lake, orders, record, run_id="run", trigger="test")
    ledger = Ledger(lake, sensors, clock, "run")
    if not ledger.files:
        ledger.record([FileState("raw/sensor-data/a.json", FileEvent.SEEN, 10, now, "2026-03-10")], FileEvent.SEEN)
    return name

def told():
    log = BatchLog(lake, orders, clock, "2026-03-10")
    rows = lake.rows(orders.schema, audit.AUDIT_LOG, ["batch_id", "record_count"], "status = 'SUCCESS'")
    return {
        "batches": [[b.id, b.done, b.record.read] for b in log.batches],
        "partition_rows": log.partition_rows("2026-03-10"),
        "audit": sorted([row["batch_id"], row["record_count"]] for row in rows),
        "files": {path: str(state.event) for path, state in Ledger(lake, sensors, clock).files.items()},
    }
"""
NEWER = {
    "pyproject.toml": ('\nversion = "', '\nversion = "9.'),
    # A column and a field more: what a next release adds at the least.
    "bronze_assets/audit.py": (
        '        ("status", pa.string()),\n',
        '        ("status", pa.string()),\n        ("release_name", pa.string()),\n',
    ),
    "bronze_assets/batches.py": ("record=record.to_json() if record else None,", "record=_with_more(record),"),
}
WITH_MORE = """

def _with_more(record: LoadRecord | None) -> str | None:
    import json
    return json.dumps(json.loads(record.to_json()) | {"carbon_grams": 3}) if record else None
"""


@pytest.fixture(scope="module")
def newer_site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A release after this one: its wheel is of this checkout with a column, a field and a version more."""
    folder = tmp_path_factory.mktemp("newer wheel")
    source = copy_of_checkout(folder / "source")
    for name, (old, new) in NEWER.items():
        text = (source / name).read_text()
        assert text.count(old) == 1, name
        (source / name).write_text(text.replace(old, new))
    with (source / "bronze_assets" / "batches.py").open("a") as file:
        file.write(WITH_MORE)
    return install_wheel(build_wheel(source, folder / "dist"), folder / "site")


def version_of(site: Path) -> str:
    return run_python(site, "from importlib.metadata import version; print(version('bronze-assets'))").strip()


def in_lake(site: Path, lake: Path, expression: str) -> Any:
    """What a release answers to an expression over the control tables of a lake."""
    words = f"import json, sys\nsys.argv = ['', {str(lake)!r}]\n{CONTROL_TABLES}\nprint(json.dumps({expression}))"
    return json.loads(run_python(site, words))


@pytest.fixture
def written_by_newer(newer_site: Path, tmp_path: Path) -> Path:
    """A lake whose control tables the newer release made and wrote."""
    lake = tmp_path / "a lake"
    assert in_lake(newer_site, lake, "load(10)") == "2026-03-10/1"
    assert "release_name" in lake_reader.column_types(lake / "inventory_bronze" / "bz_audit_log")
    (event,) = lake_reader.read(lake / "inventory_bronze" / "bz_batches", "select record from t where event = 'done'")
    assert json.loads(event["record"])["carbon_grams"] == 3
    return lake


class TestRollback:
    """Over state that the newer release wrote. Which release runs is told by the version of what is installed."""

    def test_the_older_release_reads_the_control_tables_of_the_newer(
        self, site: Path, newer_site: Path, written_by_newer: Path
    ) -> None:
        assert version_of(newer_site) == f"9.{version_of(site)}"
        told = in_lake(site, written_by_newer, "told()")
        assert told == {
            "batches": [["2026-03-10/1", True, 10]],
            "partition_rows": 10,
            "audit": [["2026-03-10/1", 10]],
            "files": {"raw/sensor-data/a.json": "seen"},
        }
        assert in_lake(newer_site, written_by_newer, "told()") == told

    def test_the_older_release_writes_the_control_tables_of_the_newer(self, site: Path, written_by_newer: Path) -> None:
        assert in_lake(site, written_by_newer, "load(5)") == "2026-03-10/2"
        assert in_lake(site, written_by_newer, "told()")["audit"] == [["2026-03-10/1", 10], ["2026-03-10/2", 5]]

    @pytest.mark.slow
    def test_the_older_deployment_goes_on_with_the_runs_and_assets_of_the_newer(
        self, deployment: Deployment, newer_site: Path
    ) -> None:
        older_site = deployment.site
        runs = "{ runsOrError { ... on Runs { results { runId status } } } }"
        seen: list[dict[str, str]] = []
        for site, expected in ((newer_site, 1), (older_site, 2)):
            deployment.site = site
            with deployment.running("code", "daemon", "webserver"):
                before = {run["runId"]: run["status"] for run in deployment.dagster.ask(runs)["runsOrError"]["results"]}
                assert judge(deployment, "bz_orders") == 0
                after = {run["runId"]: run["status"] for run in deployment.dagster.ask(runs)["runsOrError"]["results"]}
            assert before == (seen[-1] if seen else {})
            assert before.items() <= after.items()
            assert list(after.values()) == ["SUCCESS"] * expected
            seen.append(after)
