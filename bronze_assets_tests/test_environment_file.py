"""The settings file of an environment: what it may say, what is told of its faults, and what a cluster gets of it."""

from __future__ import annotations

import datetime as dt
import enum
import re
import tempfile
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from pydantic.fields import FieldInfo

from bronze_assets.databricks_settings import RUNTIMES, Launch, NodePrice, Prices, estimate, runtime_fault
from bronze_assets.environment_file import VARIABLES, keys, section
from bronze_assets.errors import SettingsError
from bronze_assets.settings import CaptureMode, Discovery, Environment, Settings
from bronze_assets_tests.conftest import CHECKOUT

TEMPLATES = CHECKOUT / "deploy" / "settings"
CATALOGS = {"dev": "dev_inventory", "qa": "qa_inventory", "prod": "workspace"}

HEAD = """
environment = "dev"
catalog = "dev_inventory"
landing = "/Volumes/dev_inventory/bronze_files/files/landing"
source_url = "databricks-secret://bronze/source-url"
master_key = "azure-keyvault://vault/master-key"
"""
DATABRICKS = """
[databricks]
host = "https://adb-1234567890123456.7.azuredatabricks.net"
"""
CLUSTER = """
[databricks.cluster]
spark_version = "17.3.x-scala2.13"
"""
JOB = f"{DATABRICKS}{CLUSTER}workers = 2\nnode_type_id = 'Standard_D4ds_v5'\n"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path


def load(folder: Path, text: str, **more: str) -> Settings:
    path = folder / "dev.toml"
    path.write_text(text, encoding="utf-8")
    return Settings.from_environment({"BRONZE_ENV": "dev", "BRONZE_SETTINGS": str(path), **more})


def refusal(folder: Path, text: str, **more: str) -> str:
    """What is told of a file that is refused."""
    with pytest.raises(SettingsError) as caught:
        load(folder, text, **more)
    # Neither what was read nor an error that holds it stays with it.
    assert caught.value.__cause__ is None
    assert caught.value.__context__ is None or caught.value.__suppress_context__
    return str(caught.value)


class TestKeys:
    def test_stand_for_the_variables(self, folder: Path) -> None:
        settings = load(
            folder,
            HEAD
            + """
archive = "/Volumes/dev_inventory/bronze_files/files/old"
sql_warehouse = "1234567890abcdef"
platform_principals = ["6f1f2c1e", "7a7a7a7a"]
capture = "external"
discovery = "autoloader"
start_date = 2026-02-03
business_time_zone = "Europe/Berlin"
read_connections = 8
range_rows = 5_000
lease_seconds = 90
""",
        )
        assert settings.environment is Environment.DEV
        assert settings.catalog == "dev_inventory"
        assert settings.landing == "/Volumes/dev_inventory/bronze_files/files/landing"
        assert settings.archive == "/Volumes/dev_inventory/bronze_files/files/old"
        assert settings.source_url == "databricks-secret://bronze/source-url"
        assert settings.master_key == "azure-keyvault://vault/master-key"
        assert settings.sql_warehouse == "1234567890abcdef"
        assert settings.platform_principals == {"6f1f2c1e", "7a7a7a7a"}
        assert settings.capture is CaptureMode.EXTERNAL
        assert settings.discovery is Discovery.AUTOLOADER
        assert settings.start_date == dt.date(2026, 2, 3)
        assert settings.business_time_zone == "Europe/Berlin"
        assert (settings.read_connections, settings.range_rows, settings.lease_seconds) == (8, 5_000, 90)
        assert settings.settings_file == folder / "dev.toml"
        assert (settings.databricks, settings.databricks_host) == (None, None)

    def test_are_overridden_by_variables_but_not_by_empty_ones(self, folder: Path) -> None:
        settings = load(
            folder, HEAD + JOB, BRONZE_CATALOG="mine", BRONZE_LANDING="", DATABRICKS_HOST="adb-9.9.azuredatabricks.net/"
        )
        assert settings.catalog == "mine"
        assert settings.landing == "/Volumes/dev_inventory/bronze_files/files/landing"
        assert settings.databricks_host == "https://adb-9.9.azuredatabricks.net"

    def test_left_out_have_the_variables_defaults(self, folder: Path) -> None:
        (folder / "local.toml").write_text('environment = "local"')
        own = {"BRONZE_HOME": str(folder / "home")}
        with_file = Settings.from_environment({**own, "BRONZE_SETTINGS": str(folder / "local.toml")})
        without = Settings.from_environment(own)
        for field in fields(Settings):
            if field.name != "settings_file":
                assert getattr(with_file, field.name) == getattr(without, field.name), field.name

    def test_of_databricks_have_defaults_or_what_the_file_says(self, folder: Path) -> None:
        databricks = load(folder, HEAD + JOB).databricks
        assert databricks is not None
        assert databricks.host == "https://adb-1234567890123456.7.azuredatabricks.net"
        assert databricks.launch is Launch.STEP_LAUNCHER
        assert (databricks.secret_scope, databricks.staging_prefix) == ("bronze", "/dagster_staging")
        assert (databricks.staging_volume, databricks.libraries, databricks.prices) == (None, (), None)
        assert (databricks.run_timeout_seconds, databricks.start_timeout_seconds) == (14_400, 1_800)
        assert databricks.poll_seconds == 5.0
        assert databricks.cluster is not None
        assert (databricks.cluster.workers, databricks.cluster.spot) == (2, False)
        assert databricks.cluster.data_security_mode == "SINGLE_USER"
        everything = load(
            folder,
            f"""{HEAD}{DATABRICKS}
launch = "pipes"
secret_scope = "other"
staging_prefix = "/staging/"
staging_volume = "/Volumes/dev_inventory/platform/staging/"
libraries = ["azure-identity==1.25.1", "name[a,b]==2.0rc1"]
run_timeout_seconds = 60
start_timeout_seconds = 60
poll_seconds = 1
{CLUSTER}
policy_id = "0123456789ABCDEF"
instance_pool_id = "1127-101010-pool"
driver_instance_pool_id = "1127-101010-pool"
autoscale = {{min = 1, max = 4}}
single_user_name = "6f1f2c1e"
spark_conf = {{"spark.sql.shuffle.partitions" = "8"}}
[databricks.prices]
currency = "EUR"
dbu = 0.30
nodes = {{ Standard_D4ds_v5 = {{dbu_per_hour = 1.0, vm_per_hour = 0.25}} }}
""",
        ).databricks
        assert everything is not None
        assert everything.staging_prefix == "/staging"
        assert everything.staging_volume == "/Volumes/dev_inventory/platform/staging"
        assert everything.libraries == ("azure-identity==1.25.1", "name[a,b]==2.0rc1")
        assert everything.cluster is not None
        assert everything.cluster.autoscale is not None
        assert (everything.cluster.autoscale.min, everything.cluster.autoscale.max) == (1, 4)
        assert everything.cluster.spark_conf == {"spark.sql.shuffle.partitions": "8"}
        assert everything.prices is not None
        assert everything.prices.nodes["Standard_D4ds_v5"].vm_per_hour == 0.25

    def test_cannot_be_changed_and_settings_can_still_be_hashed(self, folder: Path) -> None:
        settings = load(folder, HEAD + JOB)
        assert settings.databricks is not None
        with pytest.raises(ValueError, match="frozen"):
            settings.databricks.host = "https://elsewhere"
        hash(settings)


class TestTheFileItself:
    def test_of_another_environment_is_refused(self, folder: Path) -> None:
        told = refusal(folder, HEAD.replace('"dev"', '"prod"'))
        assert "is the settings file of prod, and BRONZE_ENV is dev" in told
        (folder / "dev.toml").write_text(HEAD)
        with pytest.raises(SettingsError, match=r"of dev, and BRONZE_ENV is local\. Fix: set BRONZE_ENV=dev"):
            Settings.from_environment({"BRONZE_SETTINGS": str(folder / "dev.toml")})

    def test_that_is_missing_or_no_toml_is_named(self, folder: Path) -> None:
        with pytest.raises(SettingsError, match=r"BRONZE_SETTINGS=.*none\.toml cannot be read \(No such file"):
            Settings.from_environment({"BRONZE_ENV": "dev", "BRONZE_SETTINGS": str(folder / "none.toml")})
        assert "dev.toml is no TOML: " in refusal(folder, "source_url = postgresql://u:hunter2@h/d")
        assert "hunter2" not in refusal(folder, "source_url = postgresql://u:hunter2@h/d")
        assert "is no TOML" in refusal(folder, 'environment = "dev"\nenvironment = "dev"')
        (folder / "odd.toml").write_bytes(b"environment = '\xff'")
        with pytest.raises(SettingsError, match="not UTF-8"):
            Settings.from_environment({"BRONZE_ENV": "dev", "BRONZE_SETTINGS": str(folder / "odd.toml")})

    def test_may_come_from_an_editor_on_windows(self, folder: Path) -> None:
        path = folder / "dev.toml"
        path.write_bytes(b"\xef\xbb\xbf" + HEAD.replace("\n", "\r\n").encode())
        settings = Settings.from_environment({"BRONZE_ENV": "dev", "BRONZE_SETTINGS": str(path)})
        assert settings.catalog == "dev_inventory"

    def test_is_not_read_on_a_cluster(self, folder: Path) -> None:
        told = refusal(folder, HEAD, BRONZE_ON_CLUSTER="1")
        assert "BRONZE_SETTINGS is set on a cluster" in told

    def test_several_faults_are_told_together_each_with_how_to_write_it(self, folder: Path) -> None:
        told = refusal(
            folder,
            """
environment = "dev"
catlog = "dev_inventory"
landing = 7
start_date = "2026-01-01"
read_connections = 0
[databricks]
launch = "pies"
""",
        )
        assert "dev.toml has 6 faults:" in told
        assert "\n- catlog is not known: write catalog." in told
        assert '\n- landing is wrong: input should be a valid string: write for example landing = "/Volumes/' in told
        assert (
            "\n- start_date is wrong: input should be a valid date: write for example start_date = 2026-01-01." in told
        )
        assert "\n- read_connections is wrong: input should be greater than 0: write for example" in told
        assert "\n- databricks.host is missing: write for example host = " in told
        assert "\n- databricks.launch is wrong: input should be 'step_launcher', 'pipes' or 'serverless'" in told

    def test_a_wrong_value_that_shows_only_with_the_variables_is_traced_to_its_key(self, folder: Path) -> None:
        told = refusal(folder, HEAD, BRONZE_ARCHIVE="s3://elsewhere/archive")
        assert "different file systems" in told
        assert "dev.toml has landing.)" in told


def edited(base: str, **changes: str | None) -> str:
    """The file with lines `key = value` changed, or removed for None."""
    for key, value in changes.items():
        base = re.sub(rf"^{key} = .*\n", "" if value is None else f"{key} = {value}\n", base, flags=re.MULTILINE)
    return base


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ('catalog = "a.b"', "catalog is no name that Unity Catalog takes."),
        ('sql_warehouse = "/sql/1"', "sql_warehouse is not the id of a warehouse."),
        ('business_time_zone = "Mars/Olympus"', "business_time_zone 'Mars/Olympus' is not a time zone."),
        ('platform_principals = ["a, b"]', "platform_principals 'a, b' is no application id."),
        ("read_connections = true", "read_connections is wrong: input should be a valid integer"),
        ('range_rows = "5"', "range_rows is wrong: input should be a valid integer"),
        ("start_date = 2026-01-01T00:00:00", "start_date is wrong"),
        ("databricks = 1", "databricks is wrong"),
        (JOB.replace("https://", ""), "databricks.host is no address of a workspace."),
        (JOB.replace(".net", ".net/?o=1"), "databricks.host is no address of a workspace."),
        (JOB.replace("https://", "http://"), "databricks.host is no address of a workspace."),
        (
            f"{JOB}autotermination_minutes = 10",
            "autotermination_minutes is not known. Fix: take it out: a job cluster ends",
        ),
        (f"{DATABRICKS}", "databricks.cluster is missing, which launch = step_launcher needs. Fix: write a section"),
        (f'{DATABRICKS}launch = "serverless"', "databricks.staging_volume is missing, which launch = serverless needs"),
        (JOB.replace("[databricks.c", 'launch = "pipes"\n[databricks.c'), "databricks.staging_volume is missing"),
        (
            JOB.replace("[databricks.c", 'launch = "serverless"\nstaging_volume = "/Volumes/a/b/c"\n[databricks.c'),
            "databricks.cluster does not go with launch = serverless",
        ),
        (
            JOB.replace("[databricks.c", 'staging_volume = "/dbfs/a"\n[databricks.c'),
            "'/dbfs/a' is no folder of a volume",
        ),
        (JOB.replace("[databricks.c", 'staging_volume = "/Volumes/a/b"\n[databricks.c'), "is no folder of a volume"),
        (JOB.replace("[databricks.c", 'staging_prefix = "dbfs:/a"\n[databricks.c'), "'dbfs:/a' is no folder on DBFS"),
        (JOB.replace("[databricks.c", 'staging_prefix = "/Volumes/a/b/c"\n[databricks.c'), "is no folder on DBFS"),
        (JOB.replace("[databricks.c", 'libraries = ["tzdata"]\n[databricks.c'), "libraries 'tzdata': no exact version"),
        (JOB.replace("[databricks.c", 'libraries = ["a>=1"]\n[databricks.c'), "libraries 'a>=1': no exact version"),
        (JOB.replace("[databricks.c", 'libraries = ["a==1.*"]\n[databricks.c'), "libraries 'a==1.*': no exact version"),
        (JOB.replace("[databricks.c", "run_timeout_seconds = 60\n[databricks.c"), "start_timeout_seconds is more than"),
        (JOB.replace("[databricks.c", "poll_seconds = 0\n[databricks.c"), "poll_seconds is wrong"),
        (f'{JOB}existing_cluster_id = "1127-a"', "databricks.cluster.workers does not go with existing_cluster_id"),
        (f"{DATABRICKS}{CLUSTER}", "databricks.cluster.workers is missing"),
        (f"{DATABRICKS}{CLUSTER}workers = 2", "databricks.cluster.node_type_id is missing, and there is no pool"),
        (JOB.replace('spark_version = "17.3.x-scala2.13"', ""), "databricks.cluster.spark_version is missing"),
        (f"{JOB}autoscale = {{min = 1, max = 2}}", "databricks.cluster.workers does not go with autoscale"),
        (
            JOB.replace("workers = 2", "autoscale = {min = 3, max = 2}"),
            "cluster.autoscale min = 3 is more than max = 2",
        ),
        (JOB.replace("workers = 2", "workers = 0"), "databricks.cluster.workers is wrong"),
        (f'{JOB}instance_pool_id = "a"', "databricks.cluster.node_type_id does not go with instance_pool_id"),
        (f'{JOB}driver_instance_pool_id = "a"', "driver_instance_pool_id needs instance_pool_id"),
        (
            f'{DATABRICKS}{CLUSTER}workers = 2\ninstance_pool_id = "a"\ndriver_node_type_id = "b"',
            "driver_node_type_id does not go with instance_pool_id",
        ),
        (
            f'{DATABRICKS}{CLUSTER}workers = 2\ninstance_pool_id = "a"\nspot = true',
            "spot does not go with instance_pool_id",
        ),
        (f'{JOB}data_security_mode = "NONE"', "data_security_mode is wrong"),
        (
            f'{JOB}data_security_mode = "USER_ISOLATION"\nsingle_user_name = "a"',
            "single_user_name does not go with data_security_mode USER_ISOLATION",
        ),
        (f"{JOB}spark_conf = {{spark.a = 1}}", "spark_conf.spark is not a text"),
        (JOB.replace("17.3.x-scala2.13", "16.4.x-scala2.12"), "'16.4.x-scala2.12' comes with Spark 3.5 and Scala 2.12"),
        (JOB.replace("17.3.x-scala2.13", "17.2.x-scala2.13"), "'17.2.x-scala2.13' comes with Spark 4.0 and Scala 2.13"),
        (JOB.replace("2.13", "2.12"), "'17.3.x-scala2.12' comes with Spark 4.0 and Scala 2.12"),
        (JOB.replace("17.3.x-scala2.13", "17.3"), "'17.3' is no version of Databricks' runtime"),
        (
            f'{JOB}[databricks.prices]\ncurrency = "€"\ndbu = 0.3\nnodes = {{}}',
            "databricks.prices.currency is no currency",
        ),
        (f'{JOB}[databricks.prices]\ncurrency = "EUR"\ndbu = nan\nnodes = {{}}', "databricks.prices.dbu is wrong"),
    ],
)
def test_what_makes_no_sense_is_named_by_its_key(folder: Path, text: str, told: str) -> None:
    head = HEAD if not text.startswith("catalog") else HEAD.replace('catalog = "dev_inventory"\n', "")
    assert told in refusal(folder, f"{head}{text}\n")


class TestDatabricks:
    def test_is_not_for_local(self, folder: Path) -> None:
        told = refusal(folder, HEAD.replace('"dev"', '"local"') + JOB, BRONZE_ENV="local")
        assert "databricks does not go with environment = local" in told
        assert "discovery is autoloader, which needs Databricks" in refusal(
            folder, 'environment = "local"\ndiscovery = "autoloader"', BRONZE_ENV="local"
        )

    def test_needs_a_catalog_from_the_file_or_a_variable(self, folder: Path) -> None:
        without = edited(HEAD, catalog=None) + JOB
        assert "[databricks] needs a catalog" in refusal(folder, without)
        assert load(folder, without, BRONZE_CATALOG="mine").catalog == "mine"

    def test_needs_files_where_a_cluster_can_read_them(self, folder: Path) -> None:
        without = edited(HEAD, landing=None) + JOB
        told = refusal(folder, without)
        assert "BRONZE_LANDING is not set, and its default " in told
        assert "which no cluster can read. Fix: set landing in the settings file" in told
        assert "BRONZE_LANDING=/data is a folder of this machine" in refusal(folder, without, BRONZE_LANDING="/data")
        for place in ("/Volumes/a/b/c/landing", "abfss://box@account.dfs.core.windows.net/landing"):
            assert load(folder, without, BRONZE_LANDING=place).landing == place

    def test_runs_on_a_cluster_that_is_there_or_on_serverless(self, folder: Path) -> None:
        existing = load(folder, f'{HEAD}{DATABRICKS}[databricks.cluster]\nexisting_cluster_id = "1127-101010-abc"')
        assert existing.databricks is not None
        assert existing.databricks.cluster is not None
        assert existing.databricks.cluster.existing_cluster_id == "1127-101010-abc"
        serverless = load(folder, f'{HEAD}{DATABRICKS}launch = "serverless"\nstaging_volume = "/Volumes/a/b/c/folder"')
        assert serverless.databricks is not None
        assert serverless.databricks.cluster is None

    def test_has_the_runtimes_that_are_tested(self) -> None:
        assert RUNTIMES == {"17.3": "4.0", "18": "4.1"}
        for good in ("17.3.x-scala2.13", "17.3.x-photon-scala2.13", "17.3.x-cpu-ml-scala2.13", "18.x-scala2.13"):
            assert runtime_fault(good) is None
        assert runtime_fault("18.0.x-scala2.13") is None
        for spark, bad in (("3.5", "15.4.x-scala2.12"), ("3.4", "13.3.x-scala2.12"), ("4.0", "17.0.x-scala2.13")):
            assert f"comes with Spark {spark}" in str(runtime_fault(bad))
        assert "not known here" in str(runtime_fault("19.0.x-scala2.13"))
        assert "17.3 LTS (Spark 4.0) and 18 LTS (Spark 4.1)" in str(runtime_fault("19.0.x-scala2.13"))


class TestSecrets:
    @pytest.mark.parametrize(
        ("text", "place"),
        [
            ('source_url = "postgresql://bronze:hunter2hunter2@db/DE"', "secret scope or a vault"),
            ('source_url = "hunter2hunter2"', "never the secret itself"),
            ('master_key = "hunter2hunter2"', "never the secret itself"),
            ('landing = "sftp://bronze:hunter2hunter2@host/landing"', "DATABRICKS_TOKEN"),
            ('token = "hunter2hunter2"', "DATABRICKS_TOKEN"),
            ('[databricks]\nclient_secret = "hunter2hunter2"', "DATABRICKS_CLIENT_SECRET"),
            ('[databricks]\nhost = "dapihunter2hunter2"', "DATABRICKS_TOKEN"),
            ('[databricks]\nlibraries = ["a==1", "dapihunter2hunter2"]', "DATABRICKS_TOKEN"),
            ('[databricks.cluster]\nspark_conf = {"a.password" = "hunter2hunter2"}', "{{secrets/<scope>/<key>}}"),
            (
                '[databricks.cluster]\nspark_conf = {"fs.azure.account.key.box.net" = "hunter2hunter2"}',
                "{{secrets/<scope>/<key>}}",
            ),
        ],
    )
    def test_are_refused_and_never_shown(self, folder: Path, text: str, place: str) -> None:
        told = refusal(folder, edited(HEAD, **{text.partition(" = ")[0]: None}) + text)
        assert place in told
        assert "hunter2" not in told

    def test_are_named_by_their_places_in_sparks_settings(self, folder: Path) -> None:
        conf = """{"fs.azure.account.key.box" = "{{secrets/bronze/box-key}}"}"""
        databricks = load(folder, f"{HEAD}{JOB}spark_conf = {conf}\n").databricks
        assert databricks is not None
        assert databricks.cluster is not None
        assert databricks.cluster.spark_conf == {"fs.azure.account.key.box": "{{secrets/bronze/box-key}}"}

    @hypothesis_settings(deadline=None)
    @given(st.text(st.characters(codec="utf-8", exclude_characters="…", categories=("L", "N", "P"))))
    def test_that_a_place_was_expected_for_are_not_shown_whatever_they_are(self, more: str) -> None:
        secret = f"hunter2{more}"
        text = "".join(f"{key} = {quoted(secret)}\n" for key in ("source_url", "master_key"))
        # Not a fixture's folder: that would be one for all examples.
        with tempfile.TemporaryDirectory() as folder:
            assert secret not in refusal(Path(folder), f'environment = "dev"\n{text}')


def quoted(text: str) -> str:
    """As TOML writes a text."""
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


WORDS = st.from_regex(r"[a-z][a-z0-9_-]{0,20}", fullmatch=True)
SECRET = st.one_of(
    st.builds("databricks-secret://{}/{}".format, WORDS, WORDS),
    st.builds("azure-keyvault://{}ab/{}".format, st.from_regex("[a-z]{1,10}", fullmatch=True), st.just("name")),
)
FOLDER = st.one_of(
    st.builds("/Volumes/{}/{}/files".format, WORDS, WORDS),
    st.builds("abfss://{}@account.dfs.core.windows.net/{}".format, WORDS, WORDS),
)


@st.composite
def hosts_variables(draw: st.DrawFn) -> dict[str, str]:
    folder = draw(FOLDER)
    given: dict[str, Any] = {
        "BRONZE_ENV": draw(st.sampled_from(["dev", "qa", "prod"])),
        "BRONZE_CATALOG": draw(WORDS),
        "BRONZE_SOURCE_URL": draw(SECRET),
        "BRONZE_MASTER_KEY": draw(SECRET),
        "BRONZE_LANDING": f"{folder}/landing",
        "BRONZE_ARCHIVE": draw(st.sampled_from([None, f"{folder}/old/"])),
        "BRONZE_CAPTURE": draw(st.sampled_from([None, *CaptureMode])),
        "BRONZE_DISCOVERY": draw(st.sampled_from([None, *Discovery])),
        "BRONZE_SQL_WAREHOUSE": draw(st.none() | st.from_regex("[a-f0-9]{16}", fullmatch=True)),
        "BRONZE_PLATFORM_PRINCIPALS": draw(st.lists(WORDS).map(",".join)),
        "BRONZE_START_DATE": draw(st.none() | st.dates().map(str)),
        "BRONZE_TIME_ZONE": draw(st.sampled_from([None, "Europe/Berlin"])),
        "BRONZE_READ_CONNECTIONS": draw(st.none() | st.integers(1, 64)),
        "BRONZE_RANGE_ROWS": draw(st.none() | st.integers(1)),
        "BRONZE_LEASE_SECONDS": draw(st.none() | st.integers(1)),
    }
    return {name: str(value) for name, value in given.items() if value is not None}


ONLY_OF_THE_HOST = {
    "home",
    "lake",
    "driver_memory",
    "jars",
    "maven_mirror",
    "ca_bundle",
    "java_home",
    "java_options",
    "search_path",
    "settings_file",
    "databricks",
    "databricks_host",
    "on_cluster",
    # Of a host without `[databricks]`, as here, they are folders.
    "copies",
    "cold",
}


class TestOnACluster:
    @hypothesis_settings(deadline=None)
    @given(hosts_variables())
    def test_settings_are_those_of_the_host(self, environ: dict[str, str]) -> None:
        host = Settings.from_environment(environ)
        remote = host.remote_environment()
        cluster = Settings.from_environment(remote)
        for field in fields(Settings):
            if field.name not in ONLY_OF_THE_HOST:
                assert getattr(cluster, field.name) == getattr(host, field.name), field.name
        assert cluster.on_cluster
        assert not host.on_cluster
        assert cluster.home.is_relative_to("/tmp")
        # From a process on a cluster to one beside it.
        assert cluster.remote_environment() == remote

    def test_the_files_keys_are_there_and_the_file_is_not(self, folder: Path) -> None:
        settings = load(folder, 'copies = "dev_copy"\ncold = "dev_cold"\n' + HEAD + JOB)
        remote = settings.remote_environment()
        assert remote["BRONZE_ON_CLUSTER"] == "1"
        assert (remote["BRONZE_COPY"], remote["BRONZE_COLD"]) == ("dev_copy", "dev_cold")
        assert remote["BRONZE_CATALOG"] == "dev_inventory"
        assert "BRONZE_SETTINGS" not in remote
        assert str(folder) not in str(remote)
        assert set(VARIABLES.values()) <= set(remote)

    @pytest.mark.parametrize(
        ("variable", "value", "told"),
        [
            ("BRONZE_SOURCE_URL", "postgresql://bronze:hunter2@db/DE", "is a secret itself"),
            ("BRONZE_SOURCE_URL", "file:/run/secrets/hunter2", "is kept in a file of this machine"),
            ("BRONZE_SOURCE_URL", "", "is kept in a file of this machine"),
            ("BRONZE_MASTER_KEY", "file:/run/secrets/hunter2", "is kept in a file of this machine"),
        ],
    )
    def test_no_secret_of_the_host_is_sent(self, folder: Path, variable: str, value: str, told: str) -> None:
        settings = load(
            folder,
            edited(HEAD, source_url=None) + JOB,
            **{"BRONZE_SOURCE_URL": "databricks-secret://a/b", variable: value},
        )
        with pytest.raises(SettingsError, match=f"{variable} {told}.* Fix: keep it in a secret scope") as caught:
            settings.remote_environment()
        assert "hunter2" not in str(caught.value)

    def test_tables_need_a_catalog(self, folder: Path) -> None:
        with pytest.raises(SettingsError, match="there is no catalog"):
            load(folder, edited(HEAD, catalog=None)).remote_environment()

    def test_prices_come_along_or_are_refused(self, folder: Path) -> None:
        prices = (
            '[databricks.prices]\ncurrency = "EUR"\ndbu = 0.3\nnodes = {a = {dbu_per_hour = 1.0, vm_per_hour = 0.25}}'
        )
        host = load(folder, f"{HEAD}{JOB}{prices}")
        remote = host.remote_environment()
        cluster = Settings.from_environment(remote)
        assert cluster.prices is not None
        assert cluster.prices == host.prices
        assert cluster.remote_environment() == remote
        with pytest.raises(SettingsError, match="BRONZE_PRICES is not what a launcher writes"):
            Settings.from_environment({**remote, "BRONZE_PRICES": "{}"})

    def test_the_switch_is_read_strictly(self) -> None:
        assert not Settings.from_environment({"BRONZE_ON_CLUSTER": "0"}).on_cluster
        with pytest.raises(SettingsError, match="BRONZE_ON_CLUSTER='yes' is neither 0 nor 1"):
            Settings.from_environment({"BRONZE_ON_CLUSTER": "yes"})


AMOUNTS = st.floats(0, 1e6)
NODES = st.builds(NodePrice, dbu_per_hour=AMOUNTS, vm_per_hour=AMOUNTS)


class TestEstimate:
    PRICES = Prices(
        currency="EUR",
        dbu=0.30,
        nodes={
            "small": NodePrice(dbu_per_hour=1.0, vm_per_hour=0.25),
            "large": NodePrice(dbu_per_hour=2.0, vm_per_hour=0.50),
        },
    )

    def test_is_dbus_and_machines_of_workers_and_driver(self) -> None:
        # By hand: (1 + 2 × 1) × 0.30 + 3 × 0.25 for an hour.
        assert estimate(self.PRICES, "small", None, 2, 3600) == pytest.approx(1.65)
        assert estimate(self.PRICES, "small", "large", 2, 1800) == pytest.approx((4 * 0.30 + 1.0) / 2)
        assert estimate(self.PRICES, "small", "large", 0, 3600) == pytest.approx(2 * 0.30 + 0.5)

    def test_is_not_made_up_where_a_price_is_missing(self) -> None:
        assert estimate(self.PRICES, "huge", "small", 1, 60) is None
        assert estimate(self.PRICES, "small", "huge", 1, 60) is None

    @pytest.mark.parametrize(("workers", "seconds"), [(-1, 60), (1, -60), (float("nan"), 60), (1, float("nan"))])
    def test_needs_amounts(self, workers: float, seconds: float) -> None:
        with pytest.raises(ValueError, match="cost nothing that can be told"):
            estimate(self.PRICES, "small", None, workers, seconds)

    @hypothesis_settings(deadline=None)
    @given(AMOUNTS, NODES, NODES, st.integers(0, 1000), AMOUNTS, AMOUNTS)
    def test_grows_with_time_workers_and_prices_and_adds_up(
        self, dbu: float, node: NodePrice, driver: NodePrice, workers: int, seconds: float, more: float
    ) -> None:
        def cost(workers: float, seconds: float, dbu: float = dbu, driver: str | None = "driver") -> float:
            prices = Prices(currency="EUR", dbu=dbu, nodes={"node": node, "driver": drivers})
            found = estimate(prices, "node", driver, workers, seconds)
            assert found is not None
            return found

        drivers = driver
        whole = cost(workers, seconds)
        assert whole >= 0
        assert cost(workers, seconds + more) >= whole
        assert cost(workers + 1, seconds) >= whole
        assert cost(workers, seconds, dbu=dbu + more) >= whole
        assert cost(workers, seconds) + cost(workers, more) == pytest.approx(cost(workers, seconds + more))
        # A driver of the workers' type is one node more.
        alone = estimate(Prices(currency="EUR", dbu=dbu, nodes={"node": node}), "node", None, 0, seconds)
        assert cost(workers, seconds, driver=None) == pytest.approx((workers + 1) * (alone or 0))


class TestTemplates:
    @staticmethod
    def filled(text: str) -> str:
        text = text.replace("adb-…", "adb-1234567890123456.7")
        return text.replace('"…"', '"1127abcdef"')

    def test_there_is_one_for_each_environment_in_which_loads_run_on_databricks(self) -> None:
        assert {path.stem for path in TEMPLATES.glob("*")} == set(CATALOGS)

    @pytest.mark.parametrize("environment", CATALOGS)
    def test_that_is_filled_in_is_good_for_its_environment_and_no_other(self, folder: Path, environment: str) -> None:
        text = self.filled((TEMPLATES / f"{environment}.toml").read_text(encoding="utf-8"))
        settings = load(folder, text, BRONZE_ENV=environment)
        assert settings.environment == environment
        assert settings.catalog == CATALOGS[environment]
        for place in (settings.landing, settings.archive):
            assert place.startswith(f"/Volumes/{settings.catalog}/bronze_files/files/")
        assert settings.databricks is not None
        assert settings.databricks.staging_volume == f"/Volumes/{settings.catalog}/bronze_files/staging"
        assert settings.remote_environment()["BRONZE_ENV"] == environment
        for other in set(CATALOGS) - {environment}:
            assert f"is the settings file of {environment}" in refusal(folder, text, BRONZE_ENV=other)
        prices = text.replace("# [databricks.prices]", "[databricks.prices]")
        prices = re.sub(r"^# (currency|dbu|\[databricks.prices.nodes\]|Standard)", r"\1", prices, flags=re.MULTILINE)
        priced = load(folder, prices, BRONZE_ENV=environment)
        assert priced.databricks is not None
        assert priced.databricks.prices is not None
        assert estimate(priced.databricks.prices, "Standard_D4ds_v5", None, 2, 3600)

    @pytest.mark.parametrize("environment", CATALOGS)
    def test_that_is_not_filled_in_says_what_to_fill_in(self, folder: Path, environment: str) -> None:
        text = (TEMPLATES / f"{environment}.toml").read_text(encoding="utf-8")
        told = refusal(folder, text, BRONZE_ENV=environment)
        empty = re.findall(r"^(\w+) = .*…", text, re.MULTILINE)
        assert {"host", "sql_warehouse", "platform_principals", "policy_id", "single_user_name"} <= set(empty)
        for key in empty:
            assert re.search(rf"\n- [\w.]*{key}[.0]* still is what the template has: fill it in: ", told), key
        assert f"has {len(empty)} faults" in told


class TestDocumentation:
    DOCS = CHECKOUT / "docs" / "settings.md"

    @staticmethod
    def default(field: FieldInfo) -> str:
        extra = field.json_schema_extra if isinstance(field.json_schema_extra, dict) else {}
        value = field.get_default(call_default_factory=True, validated_data={})
        if field.is_required():
            return "needed"
        if value in (None, (), {}):
            return str(extra.get("default", "–"))
        if isinstance(value, bool):
            return f"`{str(value).lower()}`"
        return f"`{value.value if isinstance(value, enum.Enum) else value}`"

    def rows(self) -> Iterator[str]:
        for key, field in keys():
            variable = {**VARIABLES, "databricks.host": "DATABRICKS_HOST"}.get(key)
            assert field.description, key
            assert field.examples or section(field.annotation), f"{key}: what a fault of it says"
            name = f"`{variable}`" if variable else "–"
            yield f"| `{key}` | {name} | {self.default(field)} | {field.description} |"

    def test_has_every_key_as_the_models_have_it(self) -> None:
        text = self.DOCS.read_text(encoding="utf-8").partition("\n## Keys\n")[2].partition("\n## ")[0]
        table = re.findall(r"^\| `[a-z_.<>]+` \|.*\|$", text, re.MULTILINE)
        assert table == list(self.rows())

    def test_has_every_variable(self) -> None:
        known = set(
            re.findall(r"BRONZE_[A-Z_]+|DATABRICKS_HOST", (CHECKOUT / "bronze_assets" / "settings.py").read_text())
        )
        assert known <= set(re.findall(r"[A-Z]+_[A-Z_]+", self.DOCS.read_text(encoding="utf-8")))

    @pytest.mark.parametrize("key", [key for key, field in keys() if field.examples])
    def test_the_example_that_a_fault_gives_is_none_itself(self, folder: Path, key: str) -> None:
        examples = dict(keys())[key].examples
        assert examples
        (example,) = examples
        *sections, name = key.replace("<name>", "x").split(".")
        line = f"{name} = {example}\n"
        text = f"{HEAD}[{'.'.join(sections)}]\n{line}" if sections else edited(HEAD, **{name: None}) + line
        told = ""
        try:
            load(folder, text)
        except SettingsError as error:
            # The rest of its section is missing.
            told = str(error)
        assert not re.search(rf"{'.'.join([*sections, name])} (?!is missing|needs)", told)
