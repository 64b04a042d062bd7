"""Where the lake's Delta tables lie, what they are called, and how their logs and small rows are read and written.

A location is what names a table everywhere: a path under the lake's folder (`FolderStorage`, through delta-rs, which
needs no JVM and takes milliseconds), or `<catalog>.<schema>.<table>` (`catalog_storage.CatalogStorage`, through Spark).
"""

from __future__ import annotations

import contextlib
import datetime as dt
import fcntl
import json
import logging
import math
import re
import threading
import time
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Any, Literal
from urllib.parse import unquote

import pyarrow as pa
from delta.tables import DeltaTableBuilder
from deltalake import CommitProperties, DeltaTable, QueryBuilder, Transaction, write_deltalake
from deltalake.exceptions import CommitFailedError, DeltaError
from pyspark.errors import AnalysisException
from pyspark.sql import DataFrame, DataFrameWriter, SparkSession
from typing_extensions import override

from bronze_assets.errors import LakeError, TableBusy
from bronze_assets.spark_errors import SPARK_ERRORS

logger = logging.getLogger(__name__)

TIDY_EVERY = 100
TIDY_FILES = 100
HOLD_SECONDS = 600.0
"""How long somebody waits to hold a schema's private tables."""
Change = Literal["insert", "update", "delete"]
OVERTAKEN = re.compile(
    r"io\.delta\.exceptions\.(Concurrent|MetadataChanged|ProtocolChanged)"
    r"|\[DELTA_(CONCURRENT_|METADATA_CHANGED|PROTOCOL_CHANGED)"
)
"""What Spark says when another process has committed first."""


class Conflict(Exception):
    """Another process has committed to the table first; nothing was written."""


@dataclass(frozen=True)
class Commit:
    """A version of a table.

    Attributes:
        mark: its `userMetadata`.
        metrics: what the operation counted.
        parameters: of the operation.
        time: when it was committed, UTC.
    """

    version: int
    mark: str
    metrics: Mapping[str, Any]
    operation: str
    parameters: Mapping[str, Any]
    time: dt.datetime


@dataclass(frozen=True)
class TableSize:
    """A table's current version: row versions, bytes and files."""

    version: int
    rows: int
    bytes: int
    files: int


@dataclass(frozen=True)
class Described:
    """What the log of a Delta table says of it.

    Attributes:
        types: column → type, in Spark's words; `struct`, `array` or `map` for a nested one.
        required: columns that cannot be NULL.
        properties: of the table.
        soft_deleted: whether files of the current version hold rows that deletion vectors only hide.
        statistics: whether its files' values are told in the log.
        retention: for how long removed files stay, at least.
    """

    types: Mapping[str, str]
    required: frozenset[str]
    properties: Mapping[str, str]
    soft_deleted: bool
    statistics: bool
    retention: dt.timedelta


@dataclass(frozen=True)
class DataFile:
    """A file of a version of a table.

    Attributes:
        partition: the text of its value of the column that the table is partitioned by; None for NULL, and where the
            table is not partitioned.
    """

    partition: str | None
    bytes: int
    modified: dt.datetime


@dataclass(frozen=True)
class Rewritten:
    """What an OPTIMIZE put in the place of files; `version` is None where it found nothing to do."""

    removed: int
    added: int
    removed_bytes: int
    added_bytes: int
    version: int | None


class Storage(ABC):
    """The tables of one lake, each by its location."""

    @abstractmethod
    def location(self, schema: str, name: str) -> str:
        """What names a table everywhere."""

    @abstractmethod
    def identifier(self, location: str) -> str:
        """The table's name in Spark SQL."""

    @abstractmethod
    def owns(self, location: str) -> bool:
        """Whether that is a table of one of the lake's schemas."""

    @abstractmethod
    def check_writable(self, schema: str, name: str) -> None:
        """Raise `LakeError` unless tables of the schema can be made and written."""

    @abstractmethod
    def exists(self, location: str) -> bool:
        """Whether the table has been made."""

    @abstractmethod
    def version(self, location: str) -> int:
        """The current version."""

    @abstractmethod
    def history(self, location: str, count: int | None = None) -> list[Commit]:
        """The latest commits, all that are known by default, newest first."""

    @abstractmethod
    def missing_files(self, location: str, version: int) -> list[str]:
        """Data files of a version that are gone, or as much of it as can be told; by name.

        Raises:
            LakeError: the version cannot be read from the log.
        """

    @abstractmethod
    def restore(self, location: str, version: int, *, mark: str, loads: str, number: int) -> int:
        """Put a table back to a version, by its log alone, so that no load commits that was decided before.

        Args:
            mark: `userMetadata` of the commit, where somebody may set it.
            loads: their `txnAppId`.
            number: as `next_load` gives it for the current version.

        Returns:
            The new version.

        Raises:
            Conflict, LakeError
        """

    @abstractmethod
    def bytes_of(self, location: str, version: int) -> int:
        """Bytes of a version's data files."""

    @abstractmethod
    def counts(self, location: str, column: str, version: int) -> dict[str | None, int]:
        """Value of a text column → how many rows have it."""

    @abstractmethod
    def columns(self, location: str) -> list[str]:
        """The names of the current version's columns."""

    @abstractmethod
    def size(self, location: str) -> TableSize:
        """Rows, bytes and files of the current version."""

    @abstractmethod
    def describe(self, location: str) -> Described | None:
        """What is known of a table, also of somebody else's; None if there is none.

        Raises:
            LakeError: its log cannot be read.
        """

    @abstractmethod
    def create(
        self,
        location: str,
        schema: pa.Schema,
        properties: Mapping[str, str],
        *,
        partition_by: str | None = None,
        description: str | None = None,
    ) -> None:
        """Make a table unless it is there.

        Raises:
            Conflict, LakeError
        """

    @abstractmethod
    def append(self, location: str, rows: pa.Table) -> None:
        """Append rows, and columns that the table does not have yet.

        Raises:
            Conflict, LakeError
        """

    @abstractmethod
    def append_fenced(self, location: str, rows: pa.Table, *, writer: str, number: int, base: int) -> int:
        """Append rows unless the same writer has appended since the version `base`.

        Args:
            number: higher than in any append of the writer that was seen at `base`, and the same for all who saw that.

        Returns:
            A version that holds the rows.

        Raises:
            Conflict: the writer has appended since; nothing was written.
            LakeError: the table cannot be written.
        """

    @abstractmethod
    def merge(
        self,
        location: str,
        rows: pa.Table,
        changes: Sequence[Change],
        *,
        on: str,
        value: object = None,
        where: str = "true",
    ) -> None:
        """Insert rows that are not there, and update or delete those that are, in one commit.

        Args:
            on: the column that tells rows apart.
            value: of that column, where all rows have the same.
            where: condition of an update or delete; `t` is the row there, `s` the new one.

        Raises:
            Conflict, LakeError
        """

    @abstractmethod
    def query(self, location: str, query: str, *, version: int | None = None) -> pa.Table | None:
        """The answer to a query of one table, called `t` there; None if it is missing.

        Args:
            query: SQL as DataFusion reads it; see `sql_literal`.
            version: of the table; the current one by default.
        """

    @abstractmethod
    def among(
        self, location: str, on: str, values: pa.Array, columns: Sequence[str], version: int | None = None
    ) -> pa.Table | None:
        """Columns of the rows with one of some values, which enter nothing that is kept; None if the table is missing.

        Args:
            on: the column.
            values: texts.
        """

    @abstractmethod
    def frame(self, session: SparkSession, location: str, version: int | None = None) -> DataFrame:
        """The table, at a version if one is given."""

    @abstractmethod
    def save(self, writer: DataFrameWriter, location: str) -> None:
        """Write rows by Spark."""

    @abstractmethod
    def replace(self, rows: DataFrame, location: str, condition: str, options: Mapping[str, str]) -> None:
        """Put rows, by Spark, in the place of those that hold a condition, as the new ones must too.

        What is observed of the rows is told when this has ended.

        Args:
            condition: `column = literal` or `column in (literals)`, or several of these joined by `or`.
            options: of Delta's writer.
        """

    @abstractmethod
    def named(self, builder: DeltaTableBuilder, location: str) -> DeltaTableBuilder:
        """The builder of a table that is to be there."""

    @abstractmethod
    def next_load(self, location: str, loads: str, base: int) -> int:
        """The `txnVersion` of a load that was decided on the version `base`, the same for all that were.

        Args:
            loads: their `txnAppId`.
        """

    @abstractmethod
    def vacuum(self, location: str, retention: dt.timedelta, *, dry_run: bool = False) -> int:
        """Remove files of which the table has had no use since its retention; returns how many, as far as is known.

        Args:
            dry_run: only count them.

        Raises:
            LakeError: they cannot be removed.
        """

    def optimize(
        self,
        session: SparkSession,
        location: str,
        *,
        where: str | None = None,
        z_order: Sequence[str] = (),
        small: int,
        large: int,
    ) -> Rewritten:
        """Put small files together, by Spark; rows stay as they are, and nobody waits for it.

        Args:
            where: of the column that the table is partitioned by; None takes all files.
            z_order: columns to cluster by; all files that `where` leaves are written anew then.
            small: bytes from which a file stays as it is, unless clustered.
            large: most bytes of a new file.

        Raises:
            Conflict: another has changed the same files meanwhile; nothing was written.
            LakeError: the files cannot be written.
        """
        statement = f"optimize {self.identifier(location)}"
        statement += f" where {where}" if where else ""
        statement += f" zorder by ({', '.join(f'`{name}`' for name in z_order)})" if z_order else ""
        sizes = {"minFileSize": str(small), "maxFileSize": str(large)}
        try:
            with _configured(session, {f"spark.databricks.delta.optimize.{name}": n for name, n in sizes.items()}):
                told = session.sql(statement).collect()[0]["metrics"]
        except SPARK_ERRORS as error:
            if OVERTAKEN.search(str(error)[:2000]):
                raise Conflict(location) from None
            raise unwritable(location, error) from error
        removed, added = int(told["numFilesRemoved"]), int(told["numFilesAdded"])
        if not removed:
            return Rewritten(0, 0, 0, 0, None)
        version = next((one.version for one in self.history(location, 20) if one.operation == "OPTIMIZE"), None)
        sizes_of = (told["filesRemoved"]["totalSize"], told["filesAdded"]["totalSize"])
        return Rewritten(removed, added, int(sizes_of[0] or 0), int(sizes_of[1] or 0), version)

    @abstractmethod
    def files(self, location: str, partition_by: str | None = None) -> list[DataFile]:
        """The files of the current version.

        Args:
            partition_by: the column that the table is partitioned by.
        """

    @abstractmethod
    def stored(self, location: str) -> tuple[int, int] | None:
        """Data files and their bytes as they lie there, those of earlier versions too; None where nobody tells."""

    @abstractmethod
    def analyze(self, location: str) -> bool:
        """Let the catalog compute the statistics by which queries are planned; whether there is one that does."""

    @abstractmethod
    def clean(self, location: str, *, compact: bool) -> bool:
        """Put a control table's small files together, write a checkpoint, and remove what of files and log has had its
        retention; False if somebody is at it already.

        Args:
            compact: whether rows are appended only.

        Raises:
            LakeError: a file cannot be read or written.
        """

    @abstractmethod
    def purge(self, location: str) -> None:
        """Remove every file that is not of the current version.

        Raises:
            LakeError: a file cannot be removed.
        """

    @abstractmethod
    def tidy(self, location: str, *, compact: bool) -> None:
        """Put a control table's small files together, if it is time."""

    @abstractmethod
    def tidy_private(self, schema: str, location: str) -> None:
        """Put a private table's small files together, if there are many and nobody holds it."""

    @abstractmethod
    def held(self, schema: str, *, alone: bool) -> contextlib.AbstractContextManager[None]:
        """Hold a schema's private tables, with others or alone, against those who want the opposite.

        With others it may be nested in one thread; alone it may not be held by who holds it already.

        Raises:
            TableBusy: it took `HOLD_SECONDS`.
        """


class FolderStorage(Storage):
    """The tables under one folder, `<root>/<schema>/<table>`; other locations are paths or URIs.

    Args:
        root: made when first written to.
    """

    def __init__(self, root: Path) -> None:
        self.root = root

    @override
    def location(self, schema: str, name: str) -> str:
        return str(self.root / schema / name)

    @override
    def identifier(self, location: str) -> str:
        return path_identifier(location)

    @override
    def owns(self, location: str) -> bool:
        return PurePosixPath(location.removeprefix("file://")).parent.parent == PurePosixPath(self.root)

    @override
    def check_writable(self, schema: str, name: str) -> None:
        folder = self.root / schema
        try:
            folder.mkdir(parents=True, exist_ok=True)
            probe = folder / f".probe_{name}_{time.time_ns()}"
            probe.touch()
            probe.unlink()
        except OSError as error:
            raise LakeError(
                f"the lake folder {folder} cannot be written ({error.strerror}).",
                "give the process write access, free disk space, or set BRONZE_LAKE to another folder.",
                table=name,
            ) from None

    @override
    def exists(self, location: str) -> bool:
        return DeltaTable.is_deltatable(location)

    @override
    def version(self, location: str) -> int:
        return DeltaTable(location).version()

    @override
    def history(self, location: str, count: int | None = None) -> list[Commit]:
        return [
            Commit(
                int(one["version"]),
                one.get("userMetadata") or "",
                one.get("operationMetrics") or {},
                str(one.get("operation", "")),
                one.get("operationParameters") or {},
                dt.datetime.fromtimestamp(int(one.get("timestamp") or 0) / 1000, dt.UTC),
            )
            for one in DeltaTable(location).history(count)
        ]

    @override
    def missing_files(self, location: str, version: int) -> list[str]:
        try:
            files = pa.table(DeltaTable(location, version=version).get_add_actions(flatten=True))["path"].to_pylist()
        except (DeltaError, OSError) as error:
            raise unreadable_version(location, version, error) from None
        return sorted(path for path in files if not (Path(location) / unquote(path)).is_file())

    @override
    def restore(self, location: str, version: int, *, mark: str, loads: str, number: int) -> int:
        told = CommitProperties(custom_metadata={"userMetadata": mark}, app_transactions=[Transaction(loads, number)])
        with _written(location):
            table = DeltaTable(location)
            table.restore(version, commit_properties=told)
        return self.version(location)

    @override
    def bytes_of(self, location: str, version: int) -> int:
        files = pa.table(DeltaTable(location, version=version).get_add_actions(flatten=True))
        return sum(files["size_bytes"].to_pylist())

    @override
    def counts(self, location: str, column: str, version: int) -> dict[str | None, int]:
        files = pa.table(DeltaTable(location, version=version).get_add_actions(flatten=True))
        least, most, nulls = (f"{part}.{column}" for part in ("min", "max", "null_count"))
        if {least, most, nulls}.issubset(files.column_names):
            rows = files.select([least, most, nulls, "num_records"]).to_pylist()
            # Longer texts are cut short there.
            if all(r[least] and r[least] == r[most] and len(r[least]) < 32 and r[nulls] == 0 for r in rows):
                told: Counter[str | None] = Counter()
                for row in rows:
                    told[row[least]] += row["num_records"]
                return dict(told)
        return counted(self.query(location, f"select {column}, count(*) as n from t group by 1", version=version))

    @override
    def columns(self, location: str) -> list[str]:
        return [one.name for one in DeltaTable(location).schema().fields]

    @override
    def size(self, location: str) -> TableSize:
        table = DeltaTable(location)
        files = pa.table(table.get_add_actions(flatten=True))
        rows = sum(files["num_records"].to_pylist())
        return TableSize(table.version(), rows, sum(files["size_bytes"].to_pylist()), files.num_rows)

    @override
    def describe(self, location: str) -> Described | None:
        try:
            if not DeltaTable.is_deltatable(location):
                return None
            table = DeltaTable(location)
            fields = json.loads(table.schema().to_json())["fields"]
            hidden = pa.table(table.deletion_vectors()).num_rows > 0
            told = table.metadata().configuration
            actions = pa.table(table.get_add_actions(flatten=True)).column_names
        except Exception as error:  # delta-rs raises what the storage behind a URI raises
            kind = type(error).__name__
        else:
            return Described(
                {one["name"]: _spark_type(one["type"]) for one in fields},
                frozenset(one["name"] for one in fields if not one["nullable"]),
                told,
                hidden,
                any(column.startswith(("min.", "max.")) for column in actions),
                retention_of(told),
            )
        raise LakeError(
            f"the Delta table {location} cannot be read ({kind}).",
            "see whether its files are there, and give the process access.",
        )

    @override
    def create(
        self,
        location: str,
        schema: pa.Schema,
        properties: Mapping[str, str],
        *,
        partition_by: str | None = None,
        description: str | None = None,
    ) -> None:
        if self.exists(location):
            return
        with _written(location):
            DeltaTable.create(
                location,
                schema,
                mode="ignore",
                configuration=dict(properties),
                partition_by=partition_by,
                description=description,
            )

    @override
    def append(self, location: str, rows: pa.Table) -> None:
        with _written(location):
            table = DeltaTable(location)
            write_deltalake(table, rows, mode="append", schema_mode=_schema_mode(table, rows))

    @override
    def append_fenced(self, location: str, rows: pa.Table, *, writer: str, number: int, base: int) -> int:
        fence = CommitProperties(app_transactions=[Transaction(f"bronze/{writer}", number)])
        with _written(location):
            table = DeltaTable(location, version=base)
            mode = _schema_mode(table, rows)
            write_deltalake(table, rows, mode="append", schema_mode=mode, commit_properties=fence)
        return table.version()

    @override
    def merge(
        self,
        location: str,
        rows: pa.Table,
        changes: Sequence[Change],
        *,
        on: str,
        value: object = None,
        where: str = "true",
    ) -> None:
        same = f"t.{on} = s.{on}" + ("" if value is None else f" and t.{on} = {sql_literal(value)}")
        with _written(location):
            merger = DeltaTable(location).merge(rows, same, source_alias="s", target_alias="t")
            for change in changes:
                match change:
                    case "insert":
                        merger = merger.when_not_matched_insert_all()
                    case "update":
                        merger = merger.when_matched_update_all(predicate=None if where == "true" else where)
                    case "delete":
                        merger = merger.when_matched_delete(predicate=None if where == "true" else where)
            merger.execute()

    @override
    def query(self, location: str, query: str, *, version: int | None = None) -> pa.Table | None:
        if not DeltaTable.is_deltatable(location):
            return None
        # Not `to_pyarrow_table`: its threads abort the interpreter at exit in five of eight tries (deltalake 1.6.6).
        reader = QueryBuilder().register("t", DeltaTable(location, version=version)).execute(query)
        return pa.table(reader.read_all())

    @override
    def among(
        self, location: str, on: str, values: pa.Array, columns: Sequence[str], version: int | None = None
    ) -> pa.Table | None:
        # Asked within this process.
        named = ", ".join(map(sql_literal, values.to_pylist()))
        where = f"{on} in ({named})" if named else "false"
        return self.query(location, f"select {', '.join(columns)} from t where {where}", version=version)

    @override
    def frame(self, session: SparkSession, location: str, version: int | None = None) -> DataFrame:
        reader = session.read.format("delta")
        if version is not None:
            reader = reader.option("versionAsOf", version)
        return reader.load(location)

    @override
    def save(self, writer: DataFrameWriter, location: str) -> None:
        writer.save(location)

    @override
    def replace(self, rows: DataFrame, location: str, condition: str, options: Mapping[str, str]) -> None:
        writer = rows.write.format("delta").options(**options).option("replaceWhere", condition)
        writer.mode("overwrite").save(location)

    @override
    def named(self, builder: DeltaTableBuilder, location: str) -> DeltaTableBuilder:
        return builder.location(location)

    @override
    def next_load(self, location: str, loads: str, base: int) -> int:
        before = DeltaTable(location, version=base).transaction_version(loads)
        return 1 if before is None else before + 1

    @override
    def vacuum(self, location: str, retention: dt.timedelta, *, dry_run: bool = False) -> int:
        try:
            table = DeltaTable(location)
            # Of files that the log has forgotten, as after a checkpoint, nobody can tell whether a writer is about to
            # commit them: they have to be a week old.
            hours = math.ceil(max(retention, dt.timedelta(days=7)) / dt.timedelta(hours=1))
            there = None if "://" in location else {path.name for path in Path(location).rglob("*.parquet")}
            told = [*table.vacuum(dry_run=dry_run), *table.vacuum(hours, dry_run=dry_run, full=True)]
            # Both name a file, each in its own way, and again when it is gone (tried, deltalake 1.6.6).
            names = {name.rsplit("/", 1)[-1] for name in told}
            return len(names if there is None else names & there)
        except Exception as error:  # delta-rs raises what the storage behind a URI raises
            kind = type(error).__name__
        raise not_vacuumed(location, kind)

    @override
    def files(self, location: str, partition_by: str | None = None) -> list[DataFile]:
        actions = pa.table(DeltaTable(location).get_add_actions(flatten=True))
        parts = actions[f"partition.{partition_by}"].to_pylist() if partition_by else [None] * actions.num_rows
        told = zip(parts, actions["size_bytes"].to_pylist(), actions["modification_time"].to_pylist(), strict=True)
        return [
            DataFile(None if part is None else str(part), size, dt.datetime.fromtimestamp(moment / 1000, dt.UTC))
            for part, size, moment in told
        ]

    @override
    def stored(self, location: str) -> tuple[int, int] | None:
        sizes = []
        for file in Path(location).rglob("*.parquet"):
            if "_delta_log" not in file.parts:
                # It may be gone by now.
                with contextlib.suppress(FileNotFoundError):
                    sizes.append(file.stat().st_size)
        return len(sizes), sum(sizes)

    @override
    def analyze(self, location: str) -> bool:
        return False

    @override
    def purge(self, location: str) -> None:
        try:
            current = set(pa.table(DeltaTable(location).get_add_actions(flatten=True))["path"].to_pylist())
            for file in Path(location).iterdir():
                # Not by VACUUM: it leaves what a killed process had not finished writing (`…parquet#1`).
                if file.is_file() and file.name not in current:
                    file.unlink()
        except (DeltaError, OSError) as error:
            raise unwritable(location, error) from error

    @override
    def tidy(self, location: str, *, compact: bool) -> None:
        """Every hundredth commit: each of them is a file."""
        if DeltaTable(location).version() % TIDY_EVERY:
            return
        try:
            self._cleaned(location, compact)
        except (DeltaError, OSError) as error:
            # Files that stay small cost time, not rows; the next hundredth commit comes.
            logger.debug("%s was not tidied (%s)", location, type(error).__name__)

    @override
    def clean(self, location: str, *, compact: bool) -> bool:
        try:
            return self._cleaned(location, compact, expire=True)
        except (DeltaError, OSError) as error:
            raise unwritable(location, error) from error

    def _cleaned(self, location: str, compact: bool, *, expire: bool = False) -> bool:
        # delta-rs does not notice two compactions of the same files, whose rows are there twice then (tried, 1.6.6):
        # one at a time, and none of a table whose rows are replaced. The lock's file is hidden, so that whoever lists
        # the schema's folder finds tables alone.
        with Path(location).with_name(f".{Path(location).name}.tidy").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                return False
            table = DeltaTable(location)
            if compact:
                table.optimize.compact()
            table.vacuum(dry_run=False)
            table.create_checkpoint()
            if expire:
                table.cleanup_metadata()
            return True

    @override
    def tidy_private(self, schema: str, location: str) -> None:
        if not self.exists(location) or len(DeltaTable(location).file_uris()) < TIDY_FILES:
            return
        with self._lock_file(schema, "held") as lock:
            if _locked(lock, alone=True):
                DeltaTable(location).optimize.compact()
                self.purge(location)

    @override
    @contextlib.contextmanager
    def held(self, schema: str, *, alone: bool) -> Iterator[None]:
        """Against those on this machine."""
        place, until = str(self.root / schema), time.monotonic() + HOLD_SECONDS
        with self._lock_file(schema, "turn") as turn, self._lock_file(schema, "held") as held:
            # Who waits to be alone keeps those out who come later, or loads that overlap would never let it in;
            # but nobody who is in already: that one would wait for itself.
            gate = [] if not alone and this_thread.holds[place] else [turn]
            for lock in (*gate, held):
                while not _locked(lock, alone=alone):
                    if time.monotonic() > until:
                        raise busy(schema)
                    time.sleep(0.02)
            if not alone:
                fcntl.flock(turn, fcntl.LOCK_UN)
            this_thread.holds[place] += 1
            try:
                yield
            finally:
                this_thread.holds[place] -= 1

    def _lock_file(self, schema: str, name: str) -> IO[str]:
        folder = self.root / schema
        try:
            folder.mkdir(parents=True, exist_ok=True)
            # Hidden, so that whoever lists the folder finds tables alone.
            return (folder / f".private.{name}").open("w")
        except OSError as error:
            raise LakeError(
                f"the lake folder {folder} cannot be written ({error.strerror}).",
                "give the process write access, or free disk space.",
            ) from None


def path_identifier(path: str) -> str:
    """A Delta table's name in Spark SQL, by where it lies."""
    return "delta.`" + path.replace("`", "``") + "`"


def sql_literal(text: object) -> str:
    """A text as a literal of `Storage.query`."""
    return "'" + str(text).replace("'", "''") + "'"


def spark_literal(text: str) -> str:
    """A text as a literal in Spark SQL, which knows no doubled quotes."""
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"


def retention_of(properties: Mapping[str, str]) -> dt.timedelta:
    """For how long a table of these properties keeps removed files; a week is Delta's default.

    Raises:
        LakeError: Delta does not write a duration so.
    """
    text = properties.get("delta.deletedFileRetentionDuration", "interval 1 week")
    found = re.findall(r"(\d+)\s+(week|day|hour|minute|second|millisecond)s?\b", text.lower())
    if not found:
        raise LakeError(f"the retention {text!r} is no interval.", "set delta.deletedFileRetentionDuration anew.")
    return sum((dt.timedelta(**{f"{unit}s": int(number)}) for number, unit in found), dt.timedelta())


def busy(schema: str) -> TableBusy:
    """What a person hears who has waited too long for a schema's private tables."""
    return TableBusy(
        f"the keys of {schema} have been held by others for {HOLD_SECONDS / 60:.0f} minutes.",
        "try again when the loads, erasures and rotations of the schema that run now are over.",
    )


def unwritable(location: str, error: Exception) -> LakeError:
    """What a person hears when a control or private table cannot be written."""
    return LakeError(
        f"the table {location} cannot be written ({type(error).__name__}).",
        "check the lake's free space and the permissions of the process.",
    )


def unreadable_version(location: str, version: int, error: Exception) -> LakeError:
    """What a person hears when the log does not lead to a version."""
    return LakeError(
        f"version {version} of {location} cannot be read ({type(error).__name__}).",
        "choose a later version: the log keeps 30 days.",
    )


def counted(answer: pa.Table | None) -> dict[str | None, int]:
    """The answer to a query of values and their counts."""
    if answer is None:
        return {}
    values, counts = (column.to_pylist() for column in answer.columns)
    return {value: int(count) for value, count in zip(values, counts, strict=True)}


def not_vacuumed(location: str, kind: str) -> LakeError:
    """What a person hears when removed files stay."""
    return LakeError(
        f"removed files of {location} cannot be vacuumed ({kind}).", "give the process access to the table's folder."
    )


class _Thread(threading.local):
    """How often this thread holds the private tables of each schema, by folder or name."""

    def __init__(self) -> None:
        self.holds: Counter[str] = Counter()


this_thread = _Thread()


def _locked(lock: IO[str], *, alone: bool) -> bool:
    try:
        fcntl.flock(lock, (fcntl.LOCK_EX if alone else fcntl.LOCK_SH) | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


@contextlib.contextmanager
def _configured(session: SparkSession, values: Mapping[str, str]) -> Iterator[None]:
    """A session with other values of its configuration; serverless compute keeps its own."""
    before = {name: session.conf.get(name, None) for name in values}
    try:
        for name, value in values.items():
            with contextlib.suppress(AnalysisException):
                session.conf.set(name, value)
        yield
    finally:
        for name, old in before.items():
            with contextlib.suppress(AnalysisException):
                session.conf.unset(name) if old is None else session.conf.set(name, old)


@contextlib.contextmanager
def _written(location: str) -> Iterator[None]:
    try:
        yield
    except (CommitFailedError, FileExistsError) as error:
        raise Conflict(location) from error
    except (DeltaError, OSError) as error:
        raise unwritable(location, error) from error


def _schema_mode(table: DeltaTable, data: pa.Table) -> Literal["merge"] | None:
    """How rows of other columns than the table's are written: an older release or a newer one has written there."""
    same = {one.name for one in table.schema().fields} == set(data.column_names)
    return None if same else "merge"


def _spark_type(kind: Any) -> str:
    """A type of the Delta log in Spark's words."""
    if isinstance(kind, dict):
        return str(kind["type"])
    return {"integer": "int", "long": "bigint", "short": "smallint", "byte": "tinyint"}.get(kind, str(kind))
