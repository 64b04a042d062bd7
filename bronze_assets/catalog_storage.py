"""The lake's tables in Unity Catalog, `<catalog>.<schema>.<table>`, reached through Spark alone.

Only SQL and the DataFrame API, which serverless serves too. A path is never asked for: of a managed table the catalog
gives none away. What delta-rs tells locally from the log comes from `DESCRIBE` here, and where it is not told at all
(the number of a load) from the history; docs/adr/0022 says what that costs.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import re
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence

import pyarrow as pa
from delta.tables import DeltaTableBuilder
from pyspark.sql import DataFrame, DataFrameWriter, SparkSession
from pyspark.sql import functions as F
from pyspark.sql.pandas.types import from_arrow_type
from typing_extensions import override

from bronze_assets.errors import LakeError
from bronze_assets.leases import alone as alone_in
from bronze_assets.leases import beside
from bronze_assets.spark_errors import SPARK_ERRORS, condition_of
from bronze_assets.storage import (
    OVERTAKEN,
    Change,
    Commit,
    Conflict,
    DataFile,
    Described,
    Storage,
    TableSize,
    busy,
    counted,
    not_vacuumed,
    path_identifier,
    retention_of,
    spark_literal,
    this_thread,
    unreadable_version,
)

_LOAD_MARK = re.compile(r"(\d{4}-\d\d-\d\d\S*/\d+|restore to version \d+|restore fence) [0-9a-f]{32}")
"""`userMetadata` of a commit of rows, batch id and token; or of a restore, which loads are fenced off by."""
_RECENT = 200
_TEXTS = re.compile(r"'(?:[^']|'')*'" + r'|"(?:[^"]|"")*"')


class CatalogStorage(Storage):
    """The tables of one catalog.

    Args:
        catalog: its name.
        session: gives the Spark session; asked at first use.
        lease_seconds: silence after which whoever holds private tables counts as dead.
    """

    def __init__(self, catalog: str, session: Callable[[], SparkSession], lease_seconds: int) -> None:
        self._catalog = catalog
        self._session = session
        self._lease_seconds = lease_seconds

    @override
    def location(self, schema: str, name: str) -> str:
        return f"{self._catalog}.{schema}.{name}"

    @override
    def identifier(self, location: str) -> str:
        # Of somebody else's tables, by path.
        if "/" in location:
            return path_identifier(location)
        return ".".join(f"`{part.replace('`', '``')}`" for part in location.split("."))

    @override
    def owns(self, location: str) -> bool:
        return location.startswith(f"{self._catalog}.")

    @override
    def check_writable(self, schema: str, name: str) -> None:
        with _told(f"{self._catalog}.{schema}"):
            there = self._session().catalog.databaseExists(f"`{self._catalog}`.`{schema}`")
        if not there:
            raise LakeError(
                f"the schema {self._catalog}.{schema} is not there, or hidden from who runs this.",
                f"make it (`CREATE SCHEMA `{self._catalog}`.`{schema}``; deploy/terraform does) and grant USE SCHEMA"
                " and CREATE TABLE on it; `python -m bronze_assets doctor` names what is missing.",
                table=name,
            )

    @override
    def exists(self, location: str) -> bool:
        if "/" in location:
            return self._tried(f"describe detail {self.identifier(location)}") is not None
        with _told(location):
            return self._session().catalog.tableExists(self.identifier(location))

    @override
    def version(self, location: str) -> int:
        return self.history(location, 1)[0].version

    @override
    def history(self, location: str, count: int | None = None) -> list[Commit]:
        limit = "" if count is None else f" limit {count}"
        with _told(location):
            rows = self._session().sql(f"describe history {self.identifier(location)}{limit}").collect()
        return [
            Commit(
                int(row["version"]),
                row["userMetadata"] or "",
                row["operationMetrics"] or {},
                row["operation"] or "",
                row["operationParameters"] or {},
                row["timestamp"].astimezone(dt.UTC),
            )
            for row in rows
        ]

    @override
    def missing_files(self, location: str, version: int) -> list[str]:
        """One at most: the first that a scan does not find."""
        try:
            rows = self.frame(self._session(), location, version)
            rows.select(F.hash(rows.columns[0]).alias("one")).agg(F.sum("one")).collect()
        except SPARK_ERRORS as error:
            kind = _kind(error)
            if "FILE" not in kind and "File" not in kind:
                raise unreadable_version(location, version, error) from None
            named = re.search(r"[^/\s]+\.parquet", str(error)[:100_000])
            return [named[0] if named else "a file of that version"]
        return []

    @override
    def restore(self, location: str, version: int, *, mark: str, loads: str, number: int) -> int:
        session, conf = self._session(), "spark.databricks.delta.commitInfo.userMetadata"
        with _written(location):
            # First: a load that was decided before must not come in between. RESTORE leaves its number in force.
            fence = self.frame(session, location).where("false").write.format("delta").mode("append")
            fence = fence.option("userMetadata", f"restore fence {uuid.uuid4().hex}")
            self.save(fence.option("txnAppId", loads).option("txnVersion", number), location)
            try:
                # Serverless compute lets nobody set it: there, the fence before it tells whose the RESTORE is.
                with contextlib.suppress(*SPARK_ERRORS):
                    session.conf.set(conf, mark)
                session.sql(f"restore table {self.identifier(location)} to version as of {version}")
            finally:
                with contextlib.suppress(*SPARK_ERRORS):
                    session.conf.unset(conf)
        return self.version(location)

    @override
    def bytes_of(self, location: str, version: int) -> int:
        with _told(location):
            files = self.frame(self._session(), location, version).select("_metadata.file_path", "_metadata.file_size")
            found = files.distinct().agg(F.sum("file_size").alias("bytes")).collect()[0]["bytes"]
        return int(found or 0)

    @override
    def counts(self, location: str, column: str, version: int) -> dict[str | None, int]:
        return counted(
            self.query(location, f"select {column}, count(*) as n from t group by {column}", version=version)
        )

    @override
    def columns(self, location: str) -> list[str]:
        with _told(location):
            return list(self.frame(self._session(), location).columns)

    @override
    def size(self, location: str) -> TableSize:
        version = self.version(location)
        name = self.identifier(location)
        with _told(location):
            detail = self._session().sql(f"describe detail {name}").select("sizeInBytes", "numFiles").collect()[0]
            # From the log's statistics alone.
            rows = self._session().sql(f"select count(*) as n from {name}").collect()[0]["n"]
        return TableSize(version, int(rows), int(detail["sizeInBytes"]), int(detail["numFiles"]))

    @override
    def describe(self, location: str) -> Described | None:
        if not self.exists(location):
            return None
        with _told(location):
            detail = self._session().sql(f"describe detail {self.identifier(location)}").collect()[0]
            schema = self.frame(self._session(), location).schema
        properties: Mapping[str, str] = detail["properties"] or {}
        return Described(
            {field.name: field.dataType.simpleString().partition("<")[0] for field in schema.fields},
            frozenset(field.name for field in schema.fields if not field.nullable),
            properties,
            properties.get("delta.enableDeletionVectors", "false") != "false",
            properties.get("delta.dataSkippingNumIndexedCols") != "0",
            retention_of(properties),
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
        columns = ", ".join(f"`{one.name}` {from_arrow_type(one.type).simpleString()}" for one in schema)
        told = ", ".join(f"'{key}' = '{value}'" for key, value in properties.items())
        statement = f"create table if not exists {self.identifier(location)} ({columns}) using delta"
        statement += f" partitioned by (`{partition_by}`)" if partition_by else ""
        statement += f" comment {spark_literal(description)}" if description else ""
        statement += f" tblproperties ({told})" if told else ""
        with _written(location):
            self._session().sql(statement)

    @override
    def append(self, location: str, rows: pa.Table) -> None:
        with _written(location):
            self.save(self._appending(rows), location)

    @override
    def append_fenced(self, location: str, rows: pa.Table, *, writer: str, number: int, base: int) -> int:
        own = uuid.uuid4().hex
        with _written(location):
            fenced = self._appending(rows).option("userMetadata", own)
            self.save(fenced.option("txnAppId", f"bronze/{writer}").option("txnVersion", number), location)
        newer = self.version(location) - base
        # Delta passes over a commit whose number has been used, without a word.
        for commit in self.history(location, newer) if newer > 0 else []:
            if commit.mark == own:
                return commit.version
        raise Conflict(location)

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
        session, view = self._session(), f"bronze_assets_{uuid.uuid4().hex}"
        same = f"t.`{on}` = s.`{on}`" + ("" if value is None else f" and t.`{on}` = {spark_literal(str(value))}")
        # What a newer release writes is left out until the table has it, as delta-rs does.
        there = self.columns(location)
        names = [f"`{name}`" for name in rows.column_names if name in there]
        clauses = {
            "insert": f"when not matched then insert ({', '.join(names)})"
            f" values ({', '.join(f's.{name}' for name in names)})",
            "update": f"when matched and ({where}) then update set"
            f" {', '.join(f't.{name} = s.{name}' for name in names)}",
            "delete": f"when matched and ({where}) then delete",
        }
        with _written(location):
            session.createDataFrame(rows).createOrReplaceTempView(view)
            try:
                session.sql(
                    f"merge into {self.identifier(location)} as t using {view} as s on {same} "
                    + " ".join(clauses[change] for change in changes)
                )
            finally:
                session.catalog.dropTempView(view)

    @override
    def query(self, location: str, query: str, *, version: int | None = None) -> pa.Table | None:
        if not self.exists(location):
            return None
        at = "" if version is None else f" version as of {version}"
        table = f"with t as (select * from {self.identifier(location)}{at})"
        with _told(location):
            return self._session().sql(f"{table} {in_spark(query)}").toArrow()

    @override
    def among(
        self, location: str, on: str, values: pa.Array, columns: Sequence[str], version: int | None = None
    ) -> pa.Table | None:
        if not self.exists(location):
            return None
        # By a join: the texts of statements are kept.
        with _told(location):
            wanted = self._session().createDataFrame(pa.table({on: values})).distinct()
            rows = self.frame(self._session(), location, version).join(wanted, on, "left_semi")
            return rows.select(*columns).toArrow()

    @override
    def frame(self, session: SparkSession, location: str, version: int | None = None) -> DataFrame:
        if version is None:
            return session.table(self.identifier(location))
        return session.sql(f"select * from {self.identifier(location)} version as of {version}")

    @override
    def save(self, writer: DataFrameWriter, location: str) -> None:
        writer.saveAsTable(self.identifier(location))

    @override
    def replace(self, rows: DataFrame, location: str, condition: str, options: Mapping[str, str]) -> None:
        # `saveAsTable` would plan the replacing of a table, which Spark ends before Delta runs it: observations are
        # told that there was nothing.
        rows.writeTo(self.identifier(location)).options(**options).overwrite(F.expr(condition))

    @override
    def named(self, builder: DeltaTableBuilder, location: str) -> DeltaTableBuilder:
        # Delta's builder takes names of two parts only, in the session's current catalog.
        self._session().catalog.setCurrentCatalog(self._catalog)
        return builder.tableName(self.identifier(location.partition(".")[2]))

    @override
    def next_load(self, location: str, loads: str, base: int) -> int:
        """One more than the version of the load before, as the history marks it.

        What is still in the history when its retention has passed is the same for all who decided on `base`, but for
        those whose decisions lie on both sides of a clean-up: the lease keeps these apart.
        """
        for count in (_RECENT, None):
            commits = self.history(location, count)
            loaded = [c.version for c in commits if c.version <= base and _LOAD_MARK.fullmatch(c.mark)]
            if loaded:
                return max(loaded) + 1
            if len(commits) < (count or 0):
                break
        return min(c.version for c in commits) + 1

    @override
    def vacuum(self, location: str, retention: dt.timedelta, *, dry_run: bool = False) -> int:
        done = self._tried(f"vacuum {self.identifier(location)}{' dry run' if dry_run else ''}")
        if done is None:
            raise not_vacuumed(location, "VACUUM was refused")
        if dry_run:
            return done.count()
        # How many files went stands in the history where the catalog logs it.
        ended = next((c for c in self.history(location, 5) if c.operation == "VACUUM END"), None)
        return int(ended.metrics.get("numDeletedFiles", 0)) if ended else 0

    @override
    def files(self, location: str, partition_by: str | None = None) -> list[DataFile]:
        # What the log says of single files nobody tells; a file without rows is not seen.
        part = f"cast(`{partition_by}` as string)" if partition_by else "cast(null as string)"
        told = "_metadata.file_path as path, _metadata.file_size as size, _metadata.file_modification_time as modified"
        each = f"select {told}, {part} as part from {self.identifier(location)}"
        with _told(location):
            rows = self._session().sql(
                "select part, max(size) as size, unix_millis(max(modified)) as modified"
                f" from ({each}) group by path, part"
            )
            return [
                DataFile(row["part"], int(row["size"]), dt.datetime.fromtimestamp(row["modified"] / 1000, dt.UTC))
                for row in rows.collect()
            ]

    @override
    def stored(self, location: str) -> tuple[int, int] | None:
        return None

    @override
    def analyze(self, location: str) -> bool:
        # Spark's own catalog refuses it of Delta tables.
        return self._tried(f"analyze table {self.identifier(location)} compute statistics") is not None

    @override
    def clean(self, location: str, *, compact: bool) -> bool:
        """Checkpoints and the log's expiry are Delta's own."""
        if compact:
            with _written(location):
                self._session().sql(f"optimize {self.identifier(location)}")
        self.vacuum(location, dt.timedelta(0))
        return True

    @override
    def purge(self, location: str) -> None:
        """By VACUUM: private tables keep nothing. Whoever may do that is alone, and puts small files together too."""
        self._tried(f"optimize {self.identifier(location)}")
        self.vacuum(location, dt.timedelta(0))

    @override
    def tidy(self, location: str, *, compact: bool) -> None:
        """Left to the jobs of maintenance."""

    @override
    def tidy_private(self, schema: str, location: str) -> None:
        """Left to `purge`: an OPTIMIZE beside others could leave a file that nobody removes."""

    @override
    @contextlib.contextmanager
    def held(self, schema: str, *, alone: bool) -> Iterator[None]:
        """By rows in the schema's table of leases, against those on any machine."""
        place, holds = f"{self._catalog}.{schema}", this_thread.holds
        if holds[place]:
            if alone:
                # It would wait for itself.
                raise busy(schema)
            yield
            return
        with (alone_in if alone else beside)(self, schema, self._lease_seconds):
            holds[place] += 1
            try:
                yield
            finally:
                holds[place] -= 1

    def _appending(self, rows: pa.Table) -> DataFrameWriter:
        # One file: they are few.
        frame = self._session().createDataFrame(rows).coalesce(1)
        return frame.write.format("delta").mode("append").option("mergeSchema", "true")

    def _tried(self, statement: str) -> DataFrame | None:
        try:
            return self._session().sql(statement)
        except SPARK_ERRORS:
            return None


def in_spark(query: str) -> str:
    """A query as DataFusion reads it, in Spark's words: texts and quoted names are written otherwise."""

    def written(found: re.Match[str]) -> str:
        quote, text = found[0][0], found[0][1:-1]
        plain = text.replace(2 * quote, quote)
        return spark_literal(plain) if quote == "'" else "`" + plain.replace("`", "``") + "`"

    return _TEXTS.sub(written, query).replace("starts_with(", "startswith(")


@contextlib.contextmanager
def _told(location: str) -> Iterator[None]:
    """What the catalog refuses is told by kind: its words may quote."""
    try:
        yield
    except SPARK_ERRORS as error:
        raise LakeError(
            f"{location} cannot be read ({_kind(error)}).",
            "see that it is there and that who runs this may use it: `python -m bronze_assets doctor`.",
        ) from None


@contextlib.contextmanager
def _written(location: str) -> Iterator[None]:
    try:
        yield
    except SPARK_ERRORS as error:
        if OVERTAKEN.search(str(error)[:2000]):
            raise Conflict(location) from None
        raise LakeError(
            f"{location} cannot be written ({_kind(error)}).",
            "see what who runs this may do: `python -m bronze_assets doctor`.",
        ) from None


def _kind(error: Exception) -> str:
    return condition_of(error) or type(error).__name__
