"""What the tests share: temporary homes, one Spark session, one PostgreSQL server with a fresh database per test."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import os
import signal
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import pytest
from dagster._core.storage.defs_state.base import set_defs_state_storage
from psycopg2 import sql

from bronze_assets import engine, shipping
from bronze_assets.catalog import TABLES
from bronze_assets.demo import generate, postgres
from bronze_assets.settings import Settings

if TYPE_CHECKING:
    from psycopg2.extensions import connection as Connection
    from pyspark.sql import SparkSession

CHECKOUT = Path(__file__).parents[1]

_numbers = itertools.count(1)


def pytest_addoption(parser: pytest.Parser) -> None:
    """Which storage the tests of loads have."""
    parser.addoption(
        "--catalog", action="store_true", help="keep the tables of `settings` in a catalog, as on Databricks"
    )


def pytest_configure() -> None:
    """A test run that is terminated ends what it started, as it does on Ctrl-C."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)


@dataclasses.dataclass(frozen=True)
class Server:
    """The test run's PostgreSQL."""

    settings: Settings
    url: str
    admin_url: str

    def make_database(self, template: str = "template0") -> str:
        """A new database owned by the role `bronze`, as a copy of the template; returns its URL."""
        name = f"test_{next(_numbers)}"
        with postgres.connect(self.admin_url) as connection, connection.cursor() as cursor:
            cursor.execute(
                # A copy of files: faster than the default, which logs every page.
                sql.SQL("create database {} owner {} template {} strategy file_copy").format(
                    sql.Identifier(name), sql.Identifier(postgres.ROLE), sql.Identifier(template)
                )
            )
        return database_url(self.url, name)

    def drop_database(self, url: str) -> None:
        """Remove that database, whoever is connected to it."""
        with postgres.connect(self.admin_url) as connection, connection.cursor() as cursor:
            cursor.execute(
                sql.SQL("drop database if exists {} with (force)").format(
                    sql.Identifier(urlsplit(url).path.lstrip("/"))
                )
            )


def database_url(url: str, database: str) -> str:
    """The URL of another database on the same server, for the same role."""
    return urlsplit(url)._replace(path=f"/{database}").geturl()


def settings_for(home: Path, environ: Mapping[str, str] | None = None) -> Settings:
    """Settings of that home: none of the caller's own `BRONZE_…` variables reach a test."""
    inherited = {key: value for key, value in os.environ.items() if not key.startswith("BRONZE_")}
    return Settings.from_environment(
        {**inherited, "BRONZE_HOME": str(home), "BRONZE_CAPTURE": "off", **(environ or {})}
    )


@pytest.fixture(scope="session")
def session_settings(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    """Settings of the home in which the session-wide server and Spark session live."""
    return settings_for(tmp_path_factory.mktemp("shared home"))


@pytest.fixture(scope="session")
def jars() -> Path:
    """A folder with the pinned jars: downloaded once for all test runs of this checkout."""
    default = settings_for(CHECKOUT / ".bronze", {k: v for k, v in os.environ.items() if k == "BRONZE_JARS"})
    return engine.ensure_jars(default, print)[0].parent


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A BRONZE_HOME of its own, with a space in its path."""
    return tmp_path / "bronze home"


IN_BOTH = pytest.mark.parametrize(
    "settings", ["folder", pytest.param("catalog", marks=pytest.mark.slow)], indirect=True
)
"""Of tests that are to show the same of paths and of names in a catalog, where all goes through Spark and is slow."""


@pytest.fixture
def settings(home: Path, jars: Path, request: pytest.FixtureRequest) -> Iterator[Settings]:
    """Settings of `home`; its source is `source_url`, when the test asks for that fixture too."""
    own = settings_for(home, {"BRONZE_JARS": str(jars)})
    if "source_url" in request.fixturenames:
        own = dataclasses.replace(own, source_url=request.getfixturevalue("source_url"))
    if request.config.getoption("--catalog") or getattr(request, "param", "folder") == "catalog":
        with in_catalog(own, request.getfixturevalue("spark")) as own:
            yield own
    else:
        yield own


@contextlib.contextmanager
def in_catalog(settings: Settings, spark: SparkSession) -> Iterator[Settings]:
    """Those settings as a cluster has them: tables are names in Spark's own catalog, for want of Unity Catalog.

    The managed tables lie where they would without a catalog, so that tests look at them in the same way.
    """
    schemas = {table.schema for table in TABLES} | {"shop_bronze", "club_bronze", "elsewhere_bronze"}
    for schema in schemas:
        spark.sql(f"create schema spark_catalog.{schema} location '{settings.lake / schema}'")
    try:
        shipped = shipping.manifest(settings)
        yield dataclasses.replace(settings, on_cluster=True, catalog="spark_catalog", shipped=shipped)
    finally:
        for schema in schemas:
            spark.sql(f"drop schema spark_catalog.{schema} cascade")


@pytest.fixture(autouse=True)
def apart_from_other_instances() -> Iterator[None]:
    """Dagster instances that end in another order than they began leave a dead one's state storage to what follows."""
    with set_defs_state_storage(None):
        yield


@pytest.fixture(scope="session", autouse=True)
def as_for_much_data() -> Iterator[None]:
    """Tests have little data, and are to run through the code that much of it runs through."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine, "SMALL_BYTES", 0)
        yield


@pytest.fixture(scope="session")
def spark(session_settings: Settings, jars: Path) -> Iterator[SparkSession]:
    """The one Spark session of the test run."""
    session = engine.start_session(dataclasses.replace(session_settings, jars=jars))
    yield session
    session.stop()


@pytest.fixture(scope="session")
def server(session_settings: Settings) -> Iterator[Server]:
    """An embedded PostgreSQL, stopped and removed at the end."""
    try:
        url = postgres.start(session_settings, print)
        folder = session_settings.home / "postgres"
        yield Server(session_settings, url, (folder / "admin_url").read_text(encoding="utf-8"))
    finally:
        postgres.remove(session_settings)


@pytest.fixture(scope="session")
def sample_template(server: Server) -> str:
    """Name of a database with the demo's sample data at a hundredth of its size, to copy from."""
    url = server.make_database()
    with postgres.connect(url) as connection:
        generate.generate(connection, scale=0.01)
    return urlsplit(url).path.lstrip("/")


@pytest.fixture
def source_url(server: Server) -> Iterator[str]:
    """URL of a fresh, empty database."""
    url = server.make_database()
    yield url
    server.drop_database(url)


@pytest.fixture
def sample_url(server: Server, sample_template: str) -> Iterator[str]:
    """URL of a fresh database with a hundredth of the sample data."""
    url = server.make_database(sample_template)
    yield url
    server.drop_database(url)


@pytest.fixture
def source(source_url: str) -> Iterator[Connection]:
    """An autocommitting connection to the database of `source_url`."""
    with contextlib.ExitStack() as stack:
        yield stack.enter_context(postgres.connect(source_url))
