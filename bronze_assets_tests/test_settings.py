from __future__ import annotations

import datetime as dt
from pathlib import Path

import pytest

from bronze_assets.errors import SettingsError
from bronze_assets.settings import CaptureMode, Discovery, Environment, Settings
from bronze_assets.vaults import resolve_secret


def test_a_home_that_dagster_cannot_open_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"BRONZE_HOME='.*/h %20' holds a '%'"):
        Settings.from_environment({"BRONZE_HOME": f"{tmp_path}/h %20"})


def test_without_any_variable_everything_lies_under_dot_bronze() -> None:
    settings = Settings.from_environment({})

    home = Path(".bronze").absolute()
    assert settings.environment is Environment.LOCAL
    assert settings.home == home
    assert settings.lake == home / "lake"
    assert settings.landing == f"{home}/landing"
    assert settings.archive == f"{home}/archive"
    assert settings.dagster_home == home / "dagster"
    assert settings.source_url == f"file:{home}/postgres/source_url"
    assert settings.start_date == dt.date(2026, 1, 1)


def test_variables_override_the_defaults(tmp_path: Path) -> None:
    settings = Settings.from_environment(
        {
            "BRONZE_HOME": str(tmp_path),
            "BRONZE_LAKE": str(tmp_path / "a lake"),
            "BRONZE_START_DATE": "2026-02-03",
            "BRONZE_TIME_ZONE": "Europe/Berlin",
            "BRONZE_READ_CONNECTIONS": "7",
        }
    )

    assert settings.lake == tmp_path / "a lake"
    assert settings.start_date == dt.date(2026, 2, 3)
    assert settings.business_time_zone == "Europe/Berlin"
    assert settings.read_connections == 7


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("BRONZE_ENV", "production"),
        ("BRONZE_CAPTURE", "on"),
        ("BRONZE_DISCOVERY", "guess"),
        ("BRONZE_LAKE", "s3://bucket/lake"),
        ("BRONZE_TIME_ZONE", "Mars/Olympus"),
        ("BRONZE_START_DATE", "01.02.2026"),
        ("BRONZE_READ_CONNECTIONS", "0"),
        ("BRONZE_RANGE_ROWS", "many"),
        ("BRONZE_DRIVER_MEMORY", "banana"),
        ("BRONZE_DRIVER_MEMORY", "10m"),
        ("BRONZE_DRIVER_MEMORY", "0g"),
    ],
)
def test_a_malformed_variable_is_named_with_its_value_and_a_fix(variable: str, value: str) -> None:
    with pytest.raises(SettingsError, match=f"{variable}='{value}'.* Fix: "):
        Settings.from_environment({variable: value})


def test_changes_are_captured_from_the_embedded_server_and_from_another_only_when_asked() -> None:
    own = {"BRONZE_SOURCE_URL": "postgresql://db/DE"}

    assert Settings.from_environment({}).capture is CaptureMode.BUILTIN
    assert Settings.from_environment(own).capture is CaptureMode.OFF
    for mode in CaptureMode:
        assert Settings.from_environment({**own, "BRONZE_CAPTURE": mode.value}).capture is mode


@pytest.mark.parametrize(
    ("landing", "archive"),
    [
        ("/data/landing/", "/data/archive"),
        ("s3://company/in/landing", "s3://company/in/archive"),
        ("abfss://box@account.dfs.core.windows.net/landing/", "abfss://box@account.dfs.core.windows.net/archive"),
    ],
)
def test_the_archive_lies_beside_the_landing_zone_wherever_that_is(landing: str, archive: str) -> None:
    settings = Settings.from_environment({"BRONZE_LANDING": landing})

    assert (settings.landing, settings.archive) == (landing.rstrip("/"), archive)
    elsewhere = Settings.from_environment({"BRONZE_LANDING": landing, "BRONZE_ARCHIVE": f"{archive}/old/"})
    assert elsewhere.archive == f"{archive}/old"


@pytest.mark.parametrize(
    ("landing", "archive", "wrong"),
    [
        ("s3://company/landing", "/old", "different file systems"),
        ("/landing", "s3://company/old", "different file systems"),
        ("/landing", "/landing/", "BRONZE_ARCHIVE is BRONZE_LANDING"),
        ("sftp://somebody:secret-word@host/landing", None, "BRONZE_LANDING holds a user or a password"),
    ],
)
def test_an_archive_that_cannot_be_one_is_refused(landing: str, archive: str | None, wrong: str) -> None:
    with pytest.raises(SettingsError, match=wrong) as caught:
        Settings.from_environment({"BRONZE_LANDING": landing} | ({"BRONZE_ARCHIVE": archive} if archive else {}))

    assert "secret-word" not in str(caught.value)


def test_the_archive_of_a_whole_bucket_lies_in_it() -> None:
    assert Settings.from_environment({"BRONZE_LANDING": "s3://company"}).archive == "s3://company/archive"


def test_auto_loader_is_refused_where_there_is_none() -> None:
    with pytest.raises(SettingsError, match="BRONZE_DISCOVERY=autoloader needs Databricks"):
        Settings.from_environment({"BRONZE_DISCOVERY": "autoloader"})
    there = Settings.from_environment(
        {
            "BRONZE_ENV": "prod",
            "BRONZE_DISCOVERY": "autoloader",
            "BRONZE_MASTER_KEY": "databricks-secret://bronze/master",
        }
    )
    assert there.discovery is Discovery.AUTOLOADER


def test_neither_the_source_nor_the_mirror_shows_in_the_settings_text() -> None:
    settings = Settings.from_environment(
        {
            "BRONZE_SOURCE_URL": "postgresql://user:hunter2@db/DE",
            "BRONZE_MAVEN_MIRROR": "https://user:hunter2@mirror/maven2",
        }
    )

    assert "hunter2" not in repr(settings)


def test_requests_bundle_counts_where_openssls_is_not_set() -> None:
    assert Settings.from_environment({"REQUESTS_CA_BUNDLE": "/a.pem"}).ca_bundle == Path("/a.pem")
    both = {"REQUESTS_CA_BUNDLE": "/a.pem", "SSL_CERT_FILE": "/b.pem"}
    assert Settings.from_environment(both).ca_bundle == Path("/b.pem")


def test_a_secret_is_itself_or_the_stripped_text_of_a_file(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("hunter2\n", encoding="utf-8")

    assert resolve_secret("hunter2", meaning="X") == "hunter2"
    assert resolve_secret(f"file:{tmp_path}/secret", meaning="X") == "hunter2"
    assert resolve_secret(f"file://{tmp_path}/secret", meaning="X") == "hunter2"


def test_a_secret_file_that_is_missing_empty_or_binary_is_named(tmp_path: Path) -> None:
    (tmp_path / "empty").write_text("\n", encoding="utf-8")
    (tmp_path / "binary").write_bytes(b"\xff\xfe")

    for name, reason in (("missing", "No such file"), ("empty", "empty"), ("binary", "not UTF-8")):
        with pytest.raises(SettingsError, match=f"BRONZE_SOURCE_URL points to .*{name}.*{reason}"):
            resolve_secret(f"file:{tmp_path / name}", meaning="BRONZE_SOURCE_URL")
