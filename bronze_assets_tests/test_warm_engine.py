"""The warm engine: processes that share one JVM, and what becomes of them when one of the two is killed."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from deltalake import DeltaTable

from bronze_assets import warm_engine
from bronze_assets.processes import process_identity, still_alive
from bronze_assets_tests import lake_reader
from bronze_assets_tests.conftest import settings_for
from bronze_assets_tests.engines import PATIENCE, Engine, ready, started, wait_until


@pytest.fixture(scope="module")
def engine(jars: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    with started(tmp_path_factory.mktemp("warm home"), jars) as engine:
        yield engine


def test_its_secret_is_for_its_owner_alone(engine: Engine) -> None:
    folder = engine.settings.home / "engine"
    assert (folder.stat().st_mode & 0o777, (folder / "engine.json").stat().st_mode & 0o777) == (0o700, 0o600)


def test_ten_clients_work_at_once_each_with_settings_and_views_of_its_own(engine: Engine, tmp_path: Path) -> None:
    code = """
session.conf.set("spark.databricks.delta.commitInfo.userMetadata", target)
session.range(5).createOrReplaceTempView("mine")
(home / f"{pathlib.Path(target).name} ready").touch()
import time
while not (home / "go").exists(): time.sleep(0.05)
for _ in range(3):
    session.sql("select id from mine").write.format("delta").mode("append").save(target)
print("views", [view.name for view in session.catalog.listTables() if view.isTemporary], flush=True)
"""
    targets = [tmp_path / f"client {number}" for number in range(10)]
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(engine.client(code, target)) for target in targets]
        for target in targets:
            wait_until(engine.settings.home / f"{target.name} ready")
        (engine.settings.home / "go").touch()
        for client in clients:
            said, _ = client.communicate(timeout=PATIENCE)
            assert said.splitlines()[-1] == "views ['mine']"
    for target in targets:
        assert sorted(lake_reader.tuples(target, "id")) == sorted([(n,) for n in range(5)] * 3)
        assert {commit.get("userMetadata") for commit in DeltaTable(str(target)).history()} == {str(target)}


def test_the_job_of_a_client_that_is_killed_is_cancelled_and_the_others_go_on(engine: Engine, tmp_path: Path) -> None:
    endless = """
(home / "endless").touch()
rows = session.range(0, 10**13, 1, 2).selectExpr("sum(hash(id)) as s")
rows.write.format("delta").mode("append").save(target)
"""
    with engine.client(endless, tmp_path / "endless") as client:
        wait_until(engine.settings.home / "endless")
        deadline = time.monotonic() + PATIENCE
        while engine.jvm.cpu_percent(1) < 80:
            assert time.monotonic() < deadline, "the job never ran"
        client.kill()
        client.wait()
    while engine.jvm.cpu_percent(1) > 50:
        assert time.monotonic() < deadline, "the job still runs"
    assert not (tmp_path / "endless" / "_delta_log" / "00000000000000000000.json").exists()
    with engine.client("session.range(3).write.format('delta').save(target)", tmp_path / "after") as client:
        assert client.wait(PATIENCE) == 0
    assert len(lake_reader.tuples(tmp_path / "after", "id")) == 3


def test_ctrl_c_ends_one_client_and_no_other(engine: Engine, tmp_path: Path) -> None:
    slow = """
(home / pathlib.Path(target).name).touch()
rows = session.range(0, 3 * 10**9, 1, 1).selectExpr("sum(hash(id)) as s")
rows.write.format("delta").mode("append").save(target)
"""
    with engine.client(slow, tmp_path / "stopped") as stopped, engine.client(slow, tmp_path / "going on") as other:
        for name in ("stopped", "going on"):
            wait_until(engine.settings.home / name)
        time.sleep(2)
        stopped.send_signal(2)
        assert stopped.wait(PATIENCE) != 0
        assert other.wait(PATIENCE) == 0, other.communicate()[0]


def test_other_settings_get_no_session_and_start_a_jvm_of_their_own(engine: Engine) -> None:
    other = dataclasses.replace(engine.settings, driver_memory="777m")
    assert warm_engine.connect(other) is None


def test_the_jvm_ends_when_nobody_uses_it_and_the_next_client_has_another(jars: Path, tmp_path: Path) -> None:
    with started(tmp_path, jars, idle=2) as engine:
        first, process = engine.jvm, engine.process
        code = "session.range(3).write.format('delta').mode('append').save(target); import time; time.sleep(5)"
        with engine.client(code, tmp_path / "rows") as client:
            # Longer than it is patient: a client is no less one for doing nothing.
            assert client.wait(PATIENCE) == 0, client.communicate()[0]
        assert first.is_running()
        first.wait(PATIENCE)
        assert (engine.told()["port"], process.is_running(), engine.children("java")) == (None, True, [])
        other = dataclasses.replace(engine.settings, driver_memory="777m")
        assert warm_engine.connect(other) is None, "and does not wake it"
        with engine.client(code, tmp_path / "rows") as client:
            assert client.wait(PATIENCE) == 0, client.communicate()[0]
        assert engine.process == process
    assert len(lake_reader.tuples(tmp_path / "rows", "id")) == 6


def test_an_engine_that_rests_writes_its_note_again(jars: Path, tmp_path: Path) -> None:
    with started(tmp_path, jars, idle=1) as engine:
        engine.jvm.wait(PATIENCE)
        note = tmp_path / "engine" / "engine.json"
        while not engine.told()["resting"]:
            time.sleep(0.05)
        note.unlink()
        wait_until(note)
        with engine.client("session.range(3).write.format('delta').save(target)", tmp_path / "rows") as client:
            assert client.wait(PATIENCE) == 0, client.communicate()[0]


AT_WORK = """
from bronze_assets.audit import safe_message
(home / "at work").touch()
try:
    session.range(0, 10**13, 1, 2).selectExpr("sum(hash(id))").collect()
except Exception as error:
    print(safe_message(error), flush=True)
"""


@pytest.mark.parametrize("victim", ["jvm", "process"])
def test_an_engine_that_is_killed_is_started_again(
    jars: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, victim: str
) -> None:
    settings = settings_for(tmp_path, {"BRONZE_JARS": str(jars)})
    monkeypatch.setenv("BRONZE_JARS", str(jars))
    monkeypatch.setenv("BRONZE_DRIVER_MEMORY", settings.driver_memory)
    with warm_engine.kept_running(settings):
        first = ready(settings)
        jvm = first.jvm
        with first.client(AT_WORK, tmp_path / "nothing") as client:
            wait_until(tmp_path / "at work")
            time.sleep(1)
            (jvm if victim == "jvm" else first.process).kill()
            # It does not outlive who started it.
            psutil.wait_procs([jvm, first.process], timeout=PATIENCE)
            assert not still_alive([jvm], 0)
            said, _ = client.communicate(timeout=PATIENCE)
            assert said.splitlines()[-1].startswith("Spark's JVM has ended while it was at work")
        second = ready(settings, other_than=first)
        with second.client("session.range(3).write.format('delta').save(target)", tmp_path / "rows") as client:
            assert client.wait(PATIENCE) == 0, client.communicate()[0]
        jvm = second.jvm
    assert not still_alive([jvm, second.process], 0)


def test_a_home_whose_engine_was_killed_has_none(jars: Path, tmp_path: Path) -> None:
    home = tmp_path / "home"
    (home / "engine").mkdir(parents=True)
    settings = settings_for(home, {"BRONZE_JARS": str(jars)})
    assert warm_engine.connect(settings) is None
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    told = {"process": process_identity(process.pid), "settings": warm_engine._fingerprint(settings)}
    (home / "engine" / "engine.json").write_text(json.dumps(told | {"port": 1, "secret": "x"}))
    (home / "engine" / "clients").mkdir()
    assert warm_engine.connect(settings) is None, "nobody answers at its port"
    process.kill()
    process.wait()
    assert warm_engine.connect(settings) is None, "it is gone"
