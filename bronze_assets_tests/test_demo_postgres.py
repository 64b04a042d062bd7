from __future__ import annotations

import contextlib
import os
import signal
import socket
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import psutil
import pytest

from bronze_assets.demo import postgres
from bronze_assets.errors import SourceUnreachable
from bronze_assets.settings import Settings
from bronze_assets_tests.conftest import Server, settings_for


@pytest.fixture
def own(tmp_path: Path) -> Iterator[Settings]:
    """Settings of a home whose path has spaces and is longer than a socket's may be; its server is removed after."""
    settings = settings_for(tmp_path / f"a {'long ' * 30}home" / ".bronze")
    yield settings
    postgres.remove(settings)


def silent(line: str) -> None:
    pass


def pid_of(settings: Settings) -> int:
    return int((settings.home / "postgres" / "data" / "postmaster.pid").read_text(encoding="utf-8").split()[0])


def has_ended(pid: int) -> bool:
    return not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


def ask(url: str, query: str) -> tuple[object, ...]:
    with postgres.connect(url) as connection, connection.cursor() as cursor:
        cursor.execute(query)
        row = cursor.fetchone()
    assert row is not None
    return tuple(row)


def test_the_database_is_a_plain_roles_own_and_ready_for_capture(own: Settings) -> None:
    url = postgres.start(own, silent)

    assert ask(url, "select current_user, current_database()") == ("bronze", "DE")
    assert ask(url, "select rolsuper, rolreplication from pg_roles where rolname = current_user") == (False, True)
    assert ask(url, "select pg_get_userbyid(datdba) from pg_database where datname = 'DE'") == ("bronze",)
    admin_url = (own.home / "postgres" / "admin_url").read_text(encoding="utf-8")
    for name, value in (
        ("wal_level", "logical"),
        ("TimeZone", "UTC"),
        ("listen_addresses", "127.0.0.1"),
        ("unix_socket_directories", ""),
        ("password_encryption", "scram-sha-256"),
    ):
        assert ask(admin_url, f"select current_setting('{name}')") == (value,)
    assert ask(url, "select datlocale, pg_encoding_to_char(encoding) from pg_database where datname = 'DE'") == (
        "C.UTF-8",
        "UTF8",
    )


def test_urls_lie_in_files_for_the_owner_alone_and_nowhere_in_process_arguments(own: Settings) -> None:
    url = postgres.start(own, silent)

    folder = own.home / "postgres"
    assert (folder / "source_url").read_text(encoding="utf-8") == url
    assert own.source_url == f"file:{folder / 'source_url'}"
    for name in ("source_url", "admin_url"):
        assert stat.S_IMODE((folder / name).stat().st_mode) == 0o600
    assert not stat.S_IMODE(folder.stat().st_mode) & 0o066
    assert not (folder / "initial_password").exists()
    password = urlsplit(url).password or "?"
    server = psutil.Process(pid_of(own))
    for process in (server, *server.children()):
        # A worker may end while it is looked at.
        with contextlib.suppress(psutil.NoSuchProcess):
            assert all(password not in argument for argument in process.cmdline())
    assert password not in (folder / "data" / "server.log").read_text(encoding="utf-8")


def test_a_wrong_password_is_refused(own: Settings) -> None:
    url = postgres.start(own, silent)
    wrong = url.replace(urlsplit(url).password or "?", "wrong")

    with pytest.raises(SourceUnreachable, match="password authentication failed"), postgres.connect(wrong):
        pass


def test_starting_twice_is_one_server_and_stopping_twice_is_fine(own: Settings) -> None:
    assert postgres.stop(own) is False
    url = postgres.start(own, silent)
    pid = pid_of(own)

    assert postgres.start(own, silent) == url
    assert pid_of(own) == pid
    assert postgres.stop(own) is True
    assert has_ended(pid)
    assert postgres.stop(own) is False


def test_stopping_touches_no_other_server(own: Settings, server: Server) -> None:
    postgres.start(own, silent)
    postgres.stop(own)

    assert ask(server.url, "select 1") == (1,)


def test_rows_and_port_survive_a_restart(own: Settings) -> None:
    url = postgres.start(own, silent)
    with postgres.connect(url) as connection, connection.cursor() as cursor:
        cursor.execute("create table kept as select 42 as answer")
    postgres.stop(own)

    assert postgres.start(own, silent) == url
    assert ask(url, "select answer from kept") == (42,)


def test_it_comes_back_after_kill_9(own: Settings) -> None:
    url = postgres.start(own, silent)
    with postgres.connect(url) as connection, connection.cursor() as cursor:
        cursor.execute("create table kept as select 42 as answer")
    postgres.stop(own)
    postgres.start(own, silent)
    os.kill(pid_of(own), signal.SIGKILL)

    assert ask(postgres.start(own, silent), "select answer from kept") == (42,)


def test_a_stale_pid_file_that_names_a_living_stranger_does_not_matter(own: Settings) -> None:
    postgres.start(own, silent)
    pid_file = own.home / "postgres" / "data" / "postmaster.pid"
    text = pid_file.read_text(encoding="utf-8")
    postgres.stop(own)
    pid_file.write_text("\n".join([str(os.getpid()), *text.split("\n")[1:]]), encoding="utf-8")

    assert postgres.stop(own) is False
    assert ask(postgres.start(own, silent), "select 1") == (1,)


def test_a_taken_port_is_avoided_said_and_the_new_one_remembered(own: Settings) -> None:
    port = urlsplit(postgres.start(own, silent)).port
    postgres.stop(own)
    said: list[str] = []
    with socket.socket() as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        other.bind(("127.0.0.1", port))
        other.listen()
        url = postgres.start(own, said.append)
    postgres.stop(own)

    new = urlsplit(url).port
    assert said == [f"Port {port} is taken; PostgreSQL listens on port {new} instead."]
    assert postgres.start(own, said.append) == url
    assert (own.home / "postgres" / "source_url").read_text(encoding="utf-8") == url
    assert len(said) == 1


def test_an_interrupted_making_starts_anew(own: Settings) -> None:
    half_made = own.home / "postgres" / "data.part"
    half_made.mkdir(parents=True)
    (half_made / "PG_VERSION").write_text("18\n", encoding="utf-8")

    assert ask(postgres.start(own, silent), "select 1") == (1,)


def test_a_lost_url_file_gets_a_new_password_and_the_rows_stay(own: Settings) -> None:
    url = postgres.start(own, silent)
    with postgres.connect(url) as connection, connection.cursor() as cursor:
        cursor.execute("create table kept as select 42 as answer")
    (own.home / "postgres" / "source_url").unlink()

    new = postgres.start(own, silent)
    assert new != url
    assert ask(new, "select answer from kept") == (42,)


def test_the_server_runs_until_its_last_user_leaves_also_by_kill_9(own: Settings) -> None:
    program = (
        "import sys, time; from pathlib import Path\n"
        "from bronze_assets.demo import postgres; from bronze_assets.settings import Settings\n"
        "settings = Settings.from_environment({'BRONZE_HOME': sys.argv[1]})\n"
        "with postgres.running(settings, lambda line: None):\n    print('in', flush=True); time.sleep(600)\n"
    )
    with postgres.running(own, silent) as url:
        with subprocess.Popen(
            [sys.executable, "-c", program, str(own.home)],
            stdout=subprocess.PIPE,
            cwd=Path(__file__).parents[1],
        ) as other:
            assert other.stdout is not None
            assert other.stdout.readline() == b"in\n"
            other.send_signal(signal.SIGINT)
        assert ask(url, "select 1") == (1,)
        with subprocess.Popen(
            [sys.executable, "-c", program, str(own.home)],
            stdout=subprocess.PIPE,
            cwd=Path(__file__).parents[1],
        ) as other:
            assert other.stdout is not None
            assert other.stdout.readline() == b"in\n"
            other.kill()
        pid = pid_of(own)
    assert has_ended(pid)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root's server runs as another user")
def test_a_home_that_the_system_user_cannot_reach_keeps_its_data_elsewhere_and_says_so(tmp_path: Path) -> None:
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o700)
    tmp_path.chmod(0o700)
    own = settings_for(closed / "home")
    said: list[str] = []
    try:
        url = postgres.start(own, said.append)
        outside = (own.home / "postgres" / "data").readlink().parent
        assert str(outside) in said[0]
        assert ask(url, "select 1") == (1,)
        assert postgres.start(own, said.append) == url
    finally:
        postgres.remove(own)
    assert not outside.exists()
    assert not (own.home / "postgres").exists()
