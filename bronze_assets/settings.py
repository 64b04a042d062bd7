"""Settings of a process: where the source and the lake are, and how much of the machine a load may take.

The only module that reads the environment. Everything may come from variables; what is the same for everybody in an
environment, and all that concerns Databricks, comes from a settings file (`environment_file`).
"""

from __future__ import annotations

import datetime as dt
import enum
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from bronze_assets.alert_settings import LOG, Alerts
from bronze_assets.databricks_settings import Databricks, Launch, Prices
from bronze_assets.errors import SettingsError
from bronze_assets.secret_places import SECRET_PLACE

_LEAST_MEGABYTES = 512

CATALOG_NAME = re.compile(r"[^\s./;`'\x00-\x1f\x7f]{1,255}")
WAREHOUSE_ID = re.compile("[A-Za-z0-9-]{1,64}")

CLUSTER_HOME = Path("/tmp/bronze_assets")
"""The home of a process on a cluster, on the driver's own disk: it goes with the cluster."""


class Environment(enum.StrEnum):
    """Where the platform runs: on this machine alone (`local`), or one of the environments of a team."""

    LOCAL = "local"
    DEV = "dev"
    QA = "qa"
    PROD = "prod"


class CaptureMode(enum.StrEnum):
    """How the changes of the streaming tables come: not at all, by our own capture, or as Debezium's files."""

    OFF = "off"
    BUILTIN = "builtin"
    EXTERNAL = "external"


class Discovery(enum.StrEnum):
    """How loads find new files: by listing, by Spark's own file stream, or by Databricks Auto Loader."""

    LISTING = "listing"
    STREAM = "stream"
    AUTOLOADER = "autoloader"


@dataclass(frozen=True)
class Settings:
    """Everything a process needs to know, read once.

    Attributes:
        environment: `BRONZE_ENV`, default `local`.
        home: `BRONZE_HOME`, the one folder for everything made locally; absolute. Default `.bronze`.
        lake: `BRONZE_LAKE`, the folder of the bronze schemas; absolute. Default `<home>/lake`.
        source_url: `BRONZE_SOURCE_URL`, a PostgreSQL URL, or where one is kept: `file:<path>`,
            `azure-keyvault://<vault>/<secret>` or `databricks-secret://<scope>/<key>` (`vaults.resolve_secret`).
            Default: the file that the embedded server of `make demo` writes. May hold a password: never shown.
        capture: `BRONZE_CAPTURE`: `builtin` captures the changes through a replication slot, `external`
            expects the files of a Debezium connector, `off` compares snapshots. Default: `builtin` for the embedded
            server, `off` for a server named by `BRONZE_SOURCE_URL`.
        landing: `BRONZE_LANDING`, where files arrive: a folder or an fsspec URL (`s3://bucket/prefix`).
            Default `<home>/landing`.
        archive: `BRONZE_ARCHIVE`, where loaded files are moved to, on the same file system. Default: `archive` beside
            the landing zone.
        copies: `BRONZE_COPY`, where the tables are copied to daily, in another region: a folder or an fsspec URL; of
            tables in a catalog, the catalog of the copies. Default `<home>/copy`; none with a catalog.
        cold: `BRONZE_COLD`, where they are archived weekly, likewise. Default `<home>/cold`; none with a catalog.
        discovery: `BRONZE_DISCOVERY`: how a load finds new files, `listing`, `stream` (Spark's file stream) or
            `autoloader` (on Databricks only). Whatever finds them, the ledger decides. Default `listing`.
        master_key: `BRONZE_MASTER_KEY`, where the key that protects personal data is kept, never the key itself:
            `file:<path>`, `azure-keyvault://<vault>/<secret>` or `databricks-secret://<scope>/<key>`, as
            `SECRET_PLACE` reads it. Default `file:<home>/keys/master.key`, in the local environment only; the
            others must name one. `privacy.keys` reads what is there.
        catalog: `BRONZE_CATALOG`, the catalog of the tables on Unity Catalog. Default None: there is no Unity Catalog.
        sql_warehouse: `BRONZE_SQL_WAREHOUSE`, the id of the Databricks SQL warehouse that is asked for grants and for
            reads by SQL. No default.
        platform_principals: `BRONZE_PLATFORM_PRINCIPALS`, separated by commas: the application ids of the service
            principals under which the platform loads and reveals, whose reads are logged already. No default.
        start_date: `BRONZE_START_DATE`, the first partition (UTC). Default 2026-01-01.
        business_time_zone: `BRONZE_TIME_ZONE`, in which "today" is taken for business dates. Default UTC.
        read_connections: `BRONZE_READ_CONNECTIONS`, parallel JDBC reads of one large table. Default 2.
        range_rows: `BRONZE_RANGE_ROWS`, rows from which a first snapshot is loaded in resumable key ranges of
            about this size. Default 20,000,000.
        lease_seconds: `BRONZE_LEASE_SECONDS`, silence after which a load on another machine counts as dead.
        driver_memory: `BRONZE_DRIVER_MEMORY`, heap of the local Spark driver. Default `1200m`.
        jars: `BRONZE_JARS`, a folder with the pinned jars, for machines without network.
        maven_mirror: `BRONZE_MAVEN_MIRROR`, the address of a Maven repository to fetch the jars from.
            May hold a password: never shown.
        ca_bundle: `SSL_CERT_FILE` or `REQUESTS_CA_BUNDLE`, the certificate authorities to trust in downloads.
        java_home: `JAVA_HOME`.
        java_options: what `JAVA_TOOL_OPTIONS`, `JDK_JAVA_OPTIONS` and `_JAVA_OPTIONS` give to every JVM.
        search_path: `PATH`, where `java` is looked for.
        settings_file: `BRONZE_SETTINGS`, the TOML file of the environment; absolute. Its keys stand for the variables
            above, which override them. Default None.
        alerts: the file's section `[alerts]`: where messages go. `BRONZE_ALERTS`, places separated by commas, gets all
            of them instead. Default: all to the file `<home>/alerts.log`.
        databricks: the file's section `[databricks]`: loads run there. None without one.
        databricks_host: `DATABRICKS_HOST`, else the host of the section: the workspace, with `https://`.
        on_cluster: `BRONZE_ON_CLUSTER=1`, set by the launcher: this process runs on Databricks, where all settings are
            variables (`remote_environment`).
        serverless: `BRONZE_SERVERLESS=1`, set by the launcher: this process runs on Databricks without a cluster.
        prices: of the section, for the estimate of what a load costs; on a cluster `BRONZE_PRICES`, as JSON.
        shipped: `BRONZE_SHIPPED`, set by the launcher: what this process on a cluster should be (`shipping`).
    """

    environment: Environment
    home: Path
    lake: Path
    source_url: str = field(repr=False)
    landing: str
    archive: str
    copies: str = ""
    cold: str = ""
    capture: CaptureMode = CaptureMode.OFF
    discovery: Discovery = Discovery.LISTING
    catalog: str | None = None
    sql_warehouse: str | None = None
    platform_principals: frozenset[str] = frozenset()
    start_date: dt.date = dt.date(2026, 1, 1)
    business_time_zone: str = "UTC"
    read_connections: int = 2
    range_rows: int = 20_000_000
    lease_seconds: int = 60
    driver_memory: str = "1200m"
    jars: Path | None = None
    maven_mirror: str | None = field(default=None, repr=False)
    ca_bundle: Path | None = None
    java_home: Path | None = None
    java_options: str = ""
    search_path: str | None = None
    # Validated to be a place when it comes from the environment; a key pasted here by hand is not to show either.
    master_key: str = field(default="", repr=False)
    settings_file: Path | None = None
    # Not hashed: they hold mappings.
    alerts: Alerts = field(default_factory=lambda: Alerts.to([LOG]), hash=False)
    databricks: Databricks | None = field(default=None, hash=False)
    databricks_host: str | None = None
    on_cluster: bool = False
    serverless: bool = False
    prices: Prices | None = field(default=None, hash=False)
    shipped: str = ""

    @classmethod
    def from_environment(cls, environ: Mapping[str, str] = os.environ) -> Settings:
        """Read and validate the settings: the variables, and the file that one of them may name.

        Raises:
            SettingsError: a value is malformed, or the master key of an environment that is not local is missing, or
                the file is another environment's; the message names the variable or the file and its key, and never
                shows the source URL or what should name the key.
        """
        path = environ.get("BRONZE_SETTINGS")
        if not path:
            return cls._of_variables(environ, None)
        # Here, because the file's module knows this one's words.
        from bronze_assets import environment_file

        if environ.get("BRONZE_ON_CLUSTER"):
            raise SettingsError(
                "BRONZE_SETTINGS is set on a cluster, where there is no settings file.",
                "remove it from the cluster's variables: whoever starts the run brings all settings.",
            )
        file = environment_file.read(Path(path).expanduser().absolute())
        given = environ.get("BRONZE_ENV", "local")
        if given != file.environment:
            raise SettingsError(
                f"{path} is the settings file of {file.environment}, and BRONZE_ENV is {given}.",
                f"set BRONZE_ENV={file.environment} if that is where you want to work, or name another file.",
            )
        # Compose gives empty variables for what nobody has set.
        of_file = {name: value for name, value in file.variables().items() if not environ.get(name)}
        try:
            return cls._of_variables(
                {**environ, **of_file}, file.databricks, Path(path).expanduser().absolute(), file.alerts
            )
        except SettingsError as error:
            named = [
                key for key, name in environment_file.VARIABLES.items() if name in of_file and name in error.culprit
            ]
            if not named:
                raise
            # Whoever reads it has not set the variable.
            raise SettingsError(f"{error.culprit} ({path} has {', '.join(named)}.)", error.fix) from None

    @classmethod
    def _of_variables(
        cls,
        environ: Mapping[str, str],
        databricks: Databricks | None,
        settings_file: Path | None = None,
        alerts: Alerts | None = None,
    ) -> Settings:
        name = environ.get("BRONZE_ENV", "local")
        try:
            environment = Environment(name)
        except ValueError:
            known = ", ".join(Environment)
            raise SettingsError(f"BRONZE_ENV={name!r} is not an environment.", f"use one of {known}.") from None
        on_cluster = environ.get("BRONZE_ON_CLUSTER") or "0"
        if on_cluster not in ("0", "1"):
            raise SettingsError(
                f"BRONZE_ON_CLUSTER={on_cluster!r} is neither 0 nor 1.", "leave it to whoever starts the run."
            )
        home = Path(environ.get("BRONZE_HOME") or ".bronze").expanduser().absolute()
        if "%" in str(home):
            raise SettingsError(
                f"BRONZE_HOME={str(home)!r} holds a '%', which Dagster's storage takes for the beginning of a code.",
                "name another folder.",
            )
        lake = environ.get("BRONZE_LAKE") or str(home / "lake")
        if "://" in lake:
            raise SettingsError(
                f"BRONZE_LAKE={lake!r} is not a folder.", "name a local folder; object stores are not served yet."
            )
        zone = environ.get("BRONZE_TIME_ZONE") or "UTC"
        if not is_time_zone(zone):
            raise SettingsError(
                f"BRONZE_TIME_ZONE={zone!r} is not a time zone.", "use an IANA name such as Europe/Berlin."
            )
        own_source = environ.get("BRONZE_SOURCE_URL")
        mode = environ.get("BRONZE_CAPTURE") or (CaptureMode.OFF if own_source else CaptureMode.BUILTIN)
        if mode not in list(CaptureMode):
            known = ", ".join(CaptureMode)
            raise SettingsError(f"BRONZE_CAPTURE={mode!r} is not a way to capture.", f"use one of {known}.")
        discovery = environ.get("BRONZE_DISCOVERY") or Discovery.LISTING
        if discovery not in list(Discovery):
            known = ", ".join(Discovery)
            raise SettingsError(f"BRONZE_DISCOVERY={discovery!r} is not a way to find files.", f"use one of {known}.")
        if discovery == Discovery.AUTOLOADER and environment is Environment.LOCAL:
            raise SettingsError("BRONZE_DISCOVERY=autoloader needs Databricks.", "use listing or stream here.")
        landing = _location(environ.get("BRONZE_LANDING") or str(home / "landing"))
        start = environ.get("BRONZE_START_DATE") or "2026-01-01"
        try:
            start_date = dt.date.fromisoformat(start)
        except ValueError:
            raise SettingsError(f"BRONZE_START_DATE={start!r} is not a date.", "write it as YYYY-MM-DD.") from None

        def optional_path(variable: str) -> Path | None:
            value = environ.get(variable)
            return Path(value).expanduser().absolute() if value else None

        catalog = _catalog(environ)
        archive = _archive(environ, landing)
        copies, cold = _copies(environ, home, lake, catalog if databricks is not None or on_cluster == "1" else None)
        if databricks is not None:
            _require_reachable_by_clusters(environ, catalog, landing, archive)
        return cls(
            environment=environment,
            home=home,
            lake=Path(lake).expanduser().absolute(),
            source_url=own_source or f"file:{home / 'postgres' / 'source_url'}",
            landing=landing,
            archive=archive,
            copies=copies,
            cold=cold,
            capture=CaptureMode(mode),
            discovery=Discovery(discovery),
            catalog=catalog,
            sql_warehouse=_sql_warehouse(environ),
            platform_principals=frozenset(
                name.strip() for name in environ.get("BRONZE_PLATFORM_PRINCIPALS", "").split(",") if name.strip()
            ),
            start_date=start_date,
            business_time_zone=zone,
            read_connections=_positive(environ, "BRONZE_READ_CONNECTIONS", 2),
            range_rows=_positive(environ, "BRONZE_RANGE_ROWS", 20_000_000),
            lease_seconds=_positive(environ, "BRONZE_LEASE_SECONDS", 60),
            driver_memory=_memory(environ, "BRONZE_DRIVER_MEMORY", "1200m"),
            jars=optional_path("BRONZE_JARS"),
            maven_mirror=environ.get("BRONZE_MAVEN_MIRROR") or None,
            ca_bundle=optional_path("SSL_CERT_FILE") or optional_path("REQUESTS_CA_BUNDLE"),
            java_home=optional_path("JAVA_HOME"),
            java_options=" ".join(
                environ.get(name, "") for name in ("JAVA_TOOL_OPTIONS", "JDK_JAVA_OPTIONS", "_JAVA_OPTIONS")
            ).strip(),
            search_path=environ.get("PATH"),
            master_key=_master_key(environ, environment, home),
            settings_file=settings_file,
            alerts=_alerts(environ, alerts),
            databricks=databricks,
            databricks_host=_host(environ.get("DATABRICKS_HOST") or (databricks.host if databricks else None)),
            on_cluster=on_cluster == "1",
            serverless=environ.get("BRONZE_SERVERLESS") == "1",
            prices=databricks.prices if databricks else _prices(environ),
            shipped=environ.get("BRONZE_SHIPPED", ""),
        )

    def require_local(self) -> None:
        """Raise `SettingsError` unless the environment is local, in which this process itself may load."""
        if self.environment is not Environment.LOCAL:
            raise SettingsError(
                f"BRONZE_ENV={self.environment} does not load by a command of this machine.",
                "start its jobs in Dagster's UI; or unset BRONZE_ENV to load here.",
            )

    def remote_environment(self) -> dict[str, str]:
        """The variables from which `from_environment` gives a process on a cluster these settings.

        They hold no secret: a cluster fetches source URL and master key from their places by itself. What concerns
        only the host (its home, its Java, the settings file) is left out.

        Raises:
            SettingsError: source URL or master key cannot be had there, or there is no catalog.
        """
        if self.catalog is None:
            raise SettingsError(
                "there is no catalog, and a cluster keeps tables nowhere else.",
                "set catalog in the settings file, or BRONZE_CATALOG.",
            )
        for variable, key, reference in (
            ("BRONZE_SOURCE_URL", "source_url", self.source_url),
            ("BRONZE_MASTER_KEY", "master_key", self.master_key),
        ):
            if problem := place_fault(reference):
                raise SettingsError(
                    f"{variable} {problem}.",
                    f"keep it in a secret scope, and set {key} in the settings file to"
                    " databricks-secret://<scope>/<key>.",
                )
        return {
            "BRONZE_ENV": self.environment.value,
            "BRONZE_ON_CLUSTER": "1",
            "BRONZE_HOME": self._home_on_cluster(),
            "BRONZE_SOURCE_URL": self.source_url,
            "BRONZE_MASTER_KEY": self.master_key,
            "BRONZE_LANDING": self.landing,
            "BRONZE_ARCHIVE": self.archive,
            # Without `[databricks]` they are folders of the host.
            "BRONZE_COPY": self.copies if self.in_catalog else "",
            "BRONZE_COLD": self.cold if self.in_catalog else "",
            "BRONZE_CAPTURE": self.capture.value,
            "BRONZE_DISCOVERY": self.discovery.value,
            "BRONZE_CATALOG": self.catalog,
            "BRONZE_SQL_WAREHOUSE": self.sql_warehouse or "",
            "BRONZE_PLATFORM_PRINCIPALS": ",".join(sorted(self.platform_principals)),
            "BRONZE_START_DATE": self.start_date.isoformat(),
            "BRONZE_TIME_ZONE": self.business_time_zone,
            "BRONZE_READ_CONNECTIONS": str(self.read_connections),
            "BRONZE_RANGE_ROWS": str(self.range_rows),
            "BRONZE_LEASE_SECONDS": str(self.lease_seconds),
            "BRONZE_SERVERLESS": "1" if self.databricks and self.databricks.launch is Launch.SERVERLESS else "",
            "BRONZE_PRICES": self.prices.model_dump_json() if self.prices else "",
        }

    def _home_on_cluster(self) -> str:
        there = self.databricks
        if there is None or (there.scratch is None and there.staging_volume is None):
            return str(CLUSTER_HOME)
        return there.scratch or f"{there.staging_volume}/scratch"

    @property
    def launch(self) -> Launch | None:
        """How this process gives its loads to Databricks; None where it loads by itself, as on a cluster."""
        return None if self.databricks is None or self.on_cluster else self.databricks.launch

    @property
    def in_catalog(self) -> bool:
        """Whether the lake is a catalog of Databricks; else it is a folder."""
        return self.on_cluster or self.databricks is not None

    @property
    def embedded(self) -> bool:
        """Whether the source is the home's own embedded server."""
        return self.source_url == f"file:{self.home / 'postgres' / 'source_url'}"

    @property
    def dagster_home(self) -> Path:
        """Dagster's storage folder."""
        return self.home / "dagster"


def _alerts(environ: Mapping[str, str], of_file: Alerts | None) -> Alerts:
    given = [place.strip() for place in environ.get("BRONZE_ALERTS", "").split(",") if place.strip()]
    if not given:
        return of_file or Alerts.to([LOG])
    try:
        return Alerts.to(given)
    except ValueError:
        pass
    # What was given is not shown: it may be the secret.
    raise SettingsError(
        "BRONZE_ALERTS names neither log nor a place of a secret.",
        "put the apprise URL of a channel into a file or a vault, and write where: file:/<path>,"
        " databricks-secret://<scope>/<key> or azure-keyvault://<vault>/<secret>; several separated by commas.",
    )


def _prices(environ: Mapping[str, str]) -> Prices | None:
    text = environ.get("BRONZE_PRICES")
    try:
        return Prices.model_validate_json(text) if text else None
    except ValueError:
        raise SettingsError(
            "BRONZE_PRICES is not what a launcher writes.", "leave it to whoever starts the run; both need one version."
        ) from None


def is_time_zone(name: str) -> bool:
    """Whether that is the name of a time zone."""
    try:
        ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        return False
    return True


def place_fault(reference: str) -> str | None:
    """Why a cluster cannot fetch the secret that a setting names; None where it can. Never shows the setting."""
    if reference.startswith("file:"):
        return "is kept in a file of this machine, which no cluster can read"
    if not SECRET_PLACE.fullmatch(reference):
        return "is a secret itself, and none is given to a cluster"
    return None


def reachable_by_clusters(place: str) -> bool:
    """Whether a folder may be one that a cluster reaches: of a volume, or of an object store."""
    return place.startswith("/Volumes/") or "://" in place


def _require_reachable_by_clusters(environ: Mapping[str, str], catalog: str | None, landing: str, archive: str) -> None:
    if catalog is None:
        raise SettingsError(
            "[databricks] needs a catalog, and there is none.", "set catalog in the settings file, or BRONZE_CATALOG."
        )
    for variable, key, place in (("BRONZE_LANDING", "landing", landing), ("BRONZE_ARCHIVE", "archive", archive)):
        if reachable_by_clusters(place):
            continue
        given = f"{variable}={place}" if environ.get(variable) else f"{variable} is not set, and its default {place}"
        raise SettingsError(
            f"{given} is a folder of this machine, which no cluster can read.",
            f"set {key} in the settings file to a folder of a volume (/Volumes/…) or of an object store (abfss://…).",
        )
    if environ.get("BRONZE_CAPTURE") == CaptureMode.BUILTIN and landing.startswith("/Volumes/"):
        raise SettingsError(
            "capture = builtin writes into the landing zone from this machine, which has no volume.",
            "set landing to a folder of an object store (abfss://…), or capture to off or external.",
        )


def _host(text: str | None) -> str | None:
    """The address of a workspace as the SDK takes it, which may be given without its protocol."""
    text = (text or "").strip().rstrip("/")
    return (text if "://" in text else f"https://{text}") if text else None


def _location(text: str) -> str:
    """A folder as an absolute path, a URL as it is; neither ends with a slash."""
    return text.rstrip("/") if "://" in text else str(Path(text).expanduser().absolute())


def _archive(environ: Mapping[str, str], landing: str) -> str:
    protocol, _, path = landing.rpartition("://")
    # Beside the landing zone; within it where that is a whole bucket.
    beside = f"{landing.rpartition('/')[0]}/archive" if not protocol or "/" in path else f"{landing}/archive"
    archive = _location(environ.get("BRONZE_ARCHIVE") or beside)
    if archive.rpartition("://")[0] != protocol:
        raise SettingsError(
            "BRONZE_ARCHIVE and BRONZE_LANDING lie on different file systems.", "name two folders of one file system."
        )
    if archive == landing:
        raise SettingsError("BRONZE_ARCHIVE is BRONZE_LANDING.", "name another folder for what has been loaded.")
    for name, place in (("BRONZE_LANDING", landing), ("BRONZE_ARCHIVE", archive)):
        if protocol and "@" in place.split("://", 1)[1].split("/", 1)[0] and not protocol.startswith("abfs"):
            raise SettingsError(
                f"{name} holds a user or a password.",
                "give credentials in variables of the file system's own.",
            )
    return archive


def _copies(environ: Mapping[str, str], home: Path, lake: str, catalog: str | None) -> tuple[str, str]:
    """Where copies and archive of the tables are; empty where they are to be in catalogs and none is named."""
    named = {name: environ.get(name) or "" for name in ("BRONZE_COPY", "BRONZE_COLD")}
    if catalog is not None:
        for name, place in named.items():
            if place and (not CATALOG_NAME.fullmatch(place) or place == catalog):
                raise SettingsError(
                    f"{name}={place!r} is not another catalog.",
                    "name a catalog of its own: tables of a catalog are copied by Databricks, into a catalog.",
                )
        copies, cold = named.values()
    else:
        defaults = {"BRONZE_COPY": home / "copy", "BRONZE_COLD": home / "cold"}
        for name, place in named.items():
            protocol, _, path = place.rpartition("://")
            if protocol and "@" in path.split("/", 1)[0] and not protocol.startswith("abfs"):
                raise SettingsError(
                    f"{name} holds a user or a password.", "give credentials in variables of the file system's own."
                )
        copies, cold = (_location(named[name] or str(default)) for name, default in defaults.items())
        inside = str(Path(lake).expanduser().absolute())
        for name, place in (("BRONZE_COPY", copies), ("BRONZE_COLD", cold)):
            plain = place.removeprefix("file://").removeprefix("local://")
            if "://" not in plain and (Path(plain).is_relative_to(inside) or Path(inside).is_relative_to(plain)):
                raise SettingsError(
                    f"{name}={place} and the lake {inside} lie within each other.",
                    "name a folder that is not lost together with the lake, at best in another region.",
                )
    if copies and cold and (f"{copies}/".startswith(f"{cold}/") or f"{cold}/".startswith(f"{copies}/")):
        raise SettingsError(
            "BRONZE_COPY and BRONZE_COLD lie within each other.", "name two places: one is to survive the other."
        )
    return copies, cold


def _master_key(environ: Mapping[str, str], environment: Environment, home: Path) -> str:
    reference = environ.get("BRONZE_MASTER_KEY")
    places = "file:<path>, azure-keyvault://<vault>/<secret> or databricks-secret://<scope>/<key>"
    if not reference:
        if environment is not Environment.LOCAL:
            raise SettingsError(
                f"BRONZE_MASTER_KEY is not set, and BRONZE_ENV={environment} has no master key by default.",
                f"name where it is kept: {places}.",
            )
        return f"file:{home / 'keys' / 'master.key'}"
    if reference.startswith("file:"):
        path = reference.removeprefix("file:").removeprefix("//")
        reference = f"file:{Path(path).expanduser().absolute()}" if path else ""
    if not SECRET_PLACE.fullmatch(reference):
        # What was given is not shown: it may be the key.
        raise SettingsError("BRONZE_MASTER_KEY does not name a place.", f"use {places}, never the key itself.")
    return reference


def _catalog(environ: Mapping[str, str]) -> str | None:
    name = environ.get("BRONZE_CATALOG")
    if name and not CATALOG_NAME.fullmatch(name):
        raise SettingsError(
            f"BRONZE_CATALOG={name!r} is no name that Unity Catalog takes.",
            "name a catalog, without spaces, periods, semicolons, slashes and quotes.",
        )
    return name or None


def _sql_warehouse(environ: Mapping[str, str]) -> str | None:
    name = environ.get("BRONZE_SQL_WAREHOUSE")
    if name and not WAREHOUSE_ID.fullmatch(name):
        raise SettingsError(
            f"BRONZE_SQL_WAREHOUSE={name!r} is not the id of a warehouse.",
            "use what stands after /warehouses/ in its HTTP path, for example 1234567890abcdef.",
        )
    return name or None


def _positive(environ: Mapping[str, str], variable: str, default: int) -> int:
    text = environ.get(variable)
    if not text:
        return default
    try:
        value = int(text)
    except ValueError:
        value = 0
    if value < 1:
        raise SettingsError(f"{variable}={text!r} is not a positive whole number.", f"use for example {default}.")
    return value


def _memory(environ: Mapping[str, str], variable: str, default: str) -> str:
    text = environ.get(variable) or default
    size = re.fullmatch(r"(\d{1,6})([mMgG])", text)
    if size is None or int(size[1]) * (1024 if size[2] in "gG" else 1) < _LEAST_MEGABYTES:
        raise SettingsError(
            f"{variable}={text!r} is not an amount of memory that Spark starts with.",
            f"use at least {_LEAST_MEGABYTES}m, for example {default} or 2g.",
        )
    return text
