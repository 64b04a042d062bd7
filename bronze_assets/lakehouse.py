"""The lake: the only module that writes Delta.

Bronze and quarantine rows go through Spark. The small control tables (batches, leases, audit log) and everything that
only looks at a table's log go through delta-rs, which needs no JVM and takes milliseconds.

Every commit of rows carries `userMetadata = <batch_id> <token>`, a token for each attempt, since a process that was
paused may wake up when another has committed the same batch. It is fenced: `txnVersion` is one more than that of the
table at the base version, so that a load whose base has been overtaken commits nothing, which its absence from the
history then tells. (Counted in loads and not in table versions: an OPTIMIZE between two bases would let both commit.)
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
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal

import pyarrow as pa
from deltalake import CommitProperties, DeltaTable, QueryBuilder, Transaction, write_deltalake
from deltalake.exceptions import CommitFailedError, DeltaError
from py4j.protocol import Py4JError
from pyspark.errors import PySparkException
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F
from pyspark.sql import types as T
from pyspark.sql.pandas.types import to_arrow_schema

from bronze_assets.errors import LakeError, StaleBase, TableBusy
from bronze_assets.table import LOAD_DATE, METADATA_COLUMNS, RESCUED, BronzeTable

_PROPERTIES = {
    "delta.deletedFileRetentionDuration": "interval 30 days",
    "delta.logRetentionDuration": "interval 30 days",
    # Deletion vectors would keep erased rows readable in the files.
    "delta.enableDeletionVectors": "false",
    "delta.enableChangeDataFeed": "true",
}
_PRIVATE: dict[str, str | None] = {
    "delta.deletedFileRetentionDuration": "interval 0 hours",
    "delta.logRetentionDuration": "interval 30 days",
    "delta.enableDeletionVectors": "false",
    "delta.enableChangeDataFeed": "false",
    "delta.dataSkippingNumIndexedCols": "0",
}
OVERTAKEN = re.compile(r"io\.delta\.exceptions\.Concurrent|\[DELTA_CONCURRENT_")
logger = logging.getLogger(__name__)

_LOAD_DATE_OF = "cast(load_timestamp as date)"
_LOAD_DATE_COMMENT = "Day of loading."
TIDY_EVERY = 100
HOLD_SECONDS = 600.0
"""How long somebody waits to hold a schema's private tables."""
Change = Literal["insert", "update", "delete"]
_INCOMING = "bronze_assets_incoming"
_REASON = T.StructType([T.StructField(name, T.StringType()) for name in ("rule", "column", "expected", "found")])
QUARANTINE = T.StructType(
    [
        T.StructField("row_key", T.StringType()),
        T.StructField("row_hash", T.StringType()),
        T.StructField("rule_set", T.StringType()),
        T.StructField("raw_row", T.StringType()),
        T.StructField("reasons", T.ArrayType(_REASON)),
        T.StructField("batch_id", T.StringType()),
        T.StructField("source_system", T.StringType()),
        T.StructField("source_position", T.StringType()),
        T.StructField("file_name", T.StringType()),
        T.StructField("first_seen", T.TimestampType()),
        T.StructField("last_seen", T.TimestampType()),
        T.StructField("last_batch_id", T.StringType()),
        T.StructField("sightings", T.LongType()),
        T.StructField("rows_in_batch", T.LongType()),
        T.StructField("operation", T.StringType()),
        T.StructField("rescued_data", T.StringType()),
        T.StructField("state", T.StringType()),
        T.StructField("attempts", T.LongType()),
        T.StructField("replay_batch_id", T.StringType()),
        T.StructField("dismissed_by", T.StringType()),
        T.StructField("dismissed_at", T.TimestampType()),
        T.StructField("dismissed_because", T.StringType()),
    ]
)
"""Columns of a quarantine table: the row as the source gave it (protected values sealed), why, and when it was seen.

A row that is still bad at the next load is the same quarantine row, seen again, but not one of another file, which may
be corrected alone; `sightings` counts the batches,
`rows_in_batch` the identical rows in the last of them. `operation` is that of a captured change, `rescued_data` what a
row of a file had under other names. `state` is `open` (NULL in rows of before there was one), `replayed`, `dismissed`
or `erased`; `attempts` counts the replays that tried the row, and `replay_batch_id` is the last of them.
"""
OPEN = "open"
REPLAYED = "replayed"
DISMISSED = "dismissed"
FOLDED = "folded"
"""No state: of two open rows that have become the same one, the one that goes."""
QUARANTINE_IDENTITY = ("row_key", "row_hash", "rule_set", "file_name", "source_position")


@dataclass(frozen=True)
class TableSize:
    """A table's current version: row versions, bytes and files."""

    version: int
    rows: int
    bytes: int
    files: int


@dataclass(frozen=True)
class Described:
    """What the log of a Delta table that somebody else writes says of it.

    Attributes:
        types: column → type, in Spark's words; `struct`, `array` or `map` for a nested one.
        required: columns that cannot be NULL.
        properties: of the table.
        soft_deleted: whether files of the current version hold rows that deletion vectors only hide.
        retention: for how long removed files stay, at least.
    """

    types: Mapping[str, str]
    required: frozenset[str]
    properties: Mapping[str, str]
    soft_deleted: bool
    retention: dt.timedelta


class Lakehouse:
    """The Delta tables under one root folder, `<root>/<schema>/<table>`.

    Args:
        root: the lake's folder; made when first written to.
    """

    def __init__(self, root: Path) -> None:
        self.root = root

    def path(self, schema: str, name: str) -> Path:
        """Where a table lies."""
        return self.root / schema / name

    def identifier(self, schema: str, name: str) -> str:
        """The table's name in Spark SQL."""
        return _identifier(str(self.path(schema, name)))

    def check_writable(self, table: BronzeTable) -> None:
        """Raise `LakeError` unless the table's schema folder can be written."""
        folder = self.root / table.schema
        try:
            folder.mkdir(parents=True, exist_ok=True)
            probe = folder / f".probe_{table.name}_{time.time_ns()}"
            probe.touch()
            probe.unlink()
        except OSError as error:
            raise LakeError(
                f"the lake folder {folder} cannot be written ({error.strerror}).",
                "give the process write access, free disk space, or set BRONZE_LAKE to another folder.",
                table=table.name,
            ) from None

    def exists(self, schema: str, name: str) -> bool:
        """Whether the table has been made."""
        return DeltaTable.is_deltatable(str(self.path(schema, name)))

    def ensure(self, session: SparkSession, table: BronzeTable) -> None:
        """Make the bronze table and its quarantine where they are missing."""
        if not self.exists(table.schema, table.name):
            session.sql(self._create_statement(table))
        if not self.exists(table.schema, table.quarantine_name):
            DeltaTable.create(
                str(self.path(table.schema, table.quarantine_name)),
                to_arrow_schema(QUARANTINE, timezone="UTC"),
                mode="ignore",
                description=f"Rows of {table.source} that could not be loaded into {table.name}, and why.",
                configuration={**_PROPERTIES, "delta.dataSkippingStatsColumns": "row_key,batch_id,last_batch_id"},
            )
            return
        there = {
            field.name for field in DeltaTable(str(self.path(table.schema, table.quarantine_name))).schema().fields
        }
        missing = [field for field in QUARANTINE.fields if field.name not in there]
        if missing:
            columns = ", ".join(f"`{field.name}` {field.dataType.simpleString()}" for field in missing)
            session.sql(f"alter table {self.identifier(table.schema, table.quarantine_name)} add columns ({columns})")

    def read(self, session: SparkSession, schema: str, name: str, *, version: int | None = None) -> DataFrame:
        """A table, at a version if one is given."""
        reader = session.read.format("delta")
        if version is not None:
            reader = reader.option("versionAsOf", version)
        return reader.load(str(self.path(schema, name)))

    def size(self, schema: str, name: str) -> TableSize:
        """Rows, bytes and files of the current version, from its log alone."""
        table = DeltaTable(str(self.path(schema, name)))
        files = pa.table(table.get_add_actions(flatten=True))
        rows = sum(files["num_records"].to_pylist())
        return TableSize(table.version(), rows, sum(files["size_bytes"].to_pylist()), files.num_rows)

    def version(self, schema: str, name: str) -> int:
        """The current version."""
        return DeltaTable(str(self.path(schema, name))).version()

    def committed(self, schema: str, name: str, batch_id: str) -> int | None:
        """The version in which the batch was committed; None if it was not."""
        path = str(self.path(schema, name))
        if not DeltaTable.is_deltatable(path):
            return None
        return _version_marked(path, lambda mark: mark.split(" ")[0] == batch_id, -1)

    def append(
        self,
        frame: DataFrame,
        table: BronzeTable,
        batch_id: str,
        *,
        base: int,
        replace_where: str | None = None,
        new_columns: bool = False,
    ) -> int:
        """Commit a batch's rows to the bronze table, fenced against `base`.

        Args:
            frame: the rows.
            base: the version that the rows were compared with.
            replace_where: put them in the place of the rows that hold this condition, as the new ones must too: what an
                earlier attempt of this batch left, or earlier rows of the same files. None appends.
            new_columns: whether the frame has columns that the table does not have yet.

        Returns:
            The version committed.

        Raises:
            StaleBase: another load has committed since `base`; nothing was written.
        """
        path = str(self.path(table.schema, table.name))
        loads = f"bronze/{table.name}"
        before = DeltaTable(path, version=base).transaction_version(loads)
        own = f"{batch_id} {uuid.uuid4().hex}"
        writer = (
            frame.write.format("delta")
            .option("userMetadata", own)
            .option("txnAppId", loads)
            .option("txnVersion", 1 if before is None else before + 1)
            .option("mergeSchema", str(new_columns).lower())
        )
        if replace_where is not None:
            writer = writer.mode("overwrite").option("replaceWhere", replace_where)
        else:
            writer = writer.mode("append")
        try:
            writer.save(path)
        except (PySparkException, Py4JError) as error:
            # Delta's own exceptions come as py4j's in classic Spark.
            if OVERTAKEN.search(str(error)[:2000]):
                raise self._stale(table) from error
            raise
        version = _version_marked(path, lambda mark: mark == own, base)
        if version is None:
            raise self._stale(table)
        return version

    def rewrite(self, frame: DataFrame, table: BronzeTable, mark: str) -> None:
        """Put the same row versions with other values, and maybe types, of some columns in the place of all.

        Args:
            frame: made of the current version of the bronze table.
            mark: of the commit, in its `userMetadata`.
        """
        # Spark knows neither of them of what it has read.
        keys = {c.name: F.coalesce(F.col(c.name), F.lit(0).cast(c.type)).alias(c.name) for c in table.key}
        frame = frame.withColumns(keys)
        layout = table.layout.partition_by
        if layout == LOAD_DATE:
            generated = {"delta.generationExpression": _LOAD_DATE_OF, "comment": _LOAD_DATE_COMMENT}
            frame = frame.withColumn(LOAD_DATE, F.col(LOAD_DATE).alias(LOAD_DATE, metadata=generated))
        writer = frame.write.format("delta").mode("overwrite").option("overwriteSchema", "true")
        writer = writer.option("userMetadata", f"{mark} {uuid.uuid4().hex}")
        if layout:
            writer = writer.partitionBy(layout)
        writer.save(str(self.path(table.schema, table.name)))

    def undeclared(self, table: BronzeTable) -> list[str]:
        """Columns of the bronze table that neither its declaration nor the platform knows."""
        names = [field.name for field in DeltaTable(str(self.path(table.schema, table.name))).schema().fields]
        return [name for name in names if not table.knows(name) and name != RESCUED]

    def quarantine(self, rows: DataFrame, table: BronzeTable, batch_id: str) -> None:
        """Commit a batch's quarantined rows; a row that is there already is seen again, and open again if it had been
        replayed. One that was dismissed stays so.

        Args:
            rows: columns of `QUARANTINE`, one per (row_key, row_hash, rule_set, file_name), and of a file, position.
        """
        name = self.identifier(table.schema, table.quarantine_name)
        session = rows.sparkSession
        if self.size(table.schema, table.quarantine_name).rows == 0:
            path = str(self.path(table.schema, table.quarantine_name))
            rows.write.format("delta").mode("append").option("userMetadata", batch_id).save(path)
        else:
            session.conf.set("spark.databricks.delta.commitInfo.userMetadata", batch_id)
            rows.createOrReplaceTempView(_INCOMING)
            try:
                session.sql(
                    f"merge into {name} as q using {_INCOMING} as n on q.row_key <=> n.row_key"
                    " and q.row_hash = n.row_hash and q.rule_set = n.rule_set and q.file_name <=> n.file_name"
                    " and (n.file_name is null or q.source_position <=> n.source_position)"
                    " when matched then update set q.last_seen = n.last_seen, q.last_batch_id = n.last_batch_id,"
                    # Another value may have been there in between: the row is to go where it was seen last.
                    " q.source_position = n.source_position,"
                    f" q.state = if(q.state = '{REPLAYED}', '{OPEN}', q.state),"
                    # A batch is one sighting, however often it is done again.
                    " q.sightings = q.sightings + if(q.last_batch_id = n.last_batch_id, 0, 1),"
                    " q.rows_in_batch = n.rows_in_batch"
                    " when not matched then insert *"
                )
            finally:
                session.catalog.dropTempView(_INCOMING)
                session.conf.unset("spark.databricks.delta.commitInfo.userMetadata")

    def quarantined(self, table: BronzeTable, batch_id: str) -> int:
        """How many source rows of a batch the quarantine holds."""
        # A row that was replayed under other rules may have become the same as another one.
        each = (
            f"select max(rows_in_batch) as n from t where last_batch_id = {sql_literal(batch_id)}"
            f" group by {', '.join(QUARANTINE_IDENTITY)}"
        )
        found = self.query(table.schema, table.quarantine_name, f"select sum(n) as held from ({each})")
        return 0 if found is None else int(found["held"][0].as_py() or 0)

    def settle_quarantined(self, fates: DataFrame, table: BronzeTable, mark: str) -> int:
        """Say of open quarantined rows what has become of them, in one commit.

        Args:
            fates: `QUARANTINE_IDENTITY`, one row each; `fate`, a state or `FOLDED`; `tried`, how many replays come to
                its attempts; and what else changes unless it is NULL: `reasons`, `new_rule_set`, `replay_batch_id`,
                `dismissed_by`, `dismissed_at`, `dismissed_because`.
            mark: the first word of the commit's `userMetadata`.

        Returns:
            How many rows that was.
        """
        session, place = fates.sparkSession, (table.schema, table.quarantine_name)
        own = f"{mark} {uuid.uuid4().hex}"
        kept = ("reasons", "replay_batch_id", "dismissed_by", "dismissed_at", "dismissed_because")
        blank = ("row_key", "row_hash", "raw_row", "reasons", "rescued_data")
        tried = "q.attempts = coalesce(q.attempts, 0) + n.tried"
        fates.createOrReplaceTempView(_INCOMING)
        session.conf.set("spark.databricks.delta.commitInfo.userMetadata", own)
        try:
            session.sql(
                f"merge into {self.identifier(*place)} as q using {_INCOMING} as n on q.row_hash = n.row_hash"
                + "".join(f" and q.{name} <=> n.{name}" for name in QUARANTINE_IDENTITY if name != "row_hash")
                + f" and coalesce(q.state, '{OPEN}') = '{OPEN}'"
                f" when matched and n.fate = '{FOLDED}' then delete"
                # Nothing of a person may stay.
                f" when matched and n.fate = 'erased' then update set q.state = n.fate, {tried},"
                f" q.replay_batch_id = n.replay_batch_id, {', '.join(f'q.{name} = null' for name in blank)}"
                f" when matched then update set q.state = n.fate, {tried},"
                " q.rule_set = coalesce(n.new_rule_set, q.rule_set), "
                + ", ".join(f"q.{name} = coalesce(n.{name}, q.{name})" for name in kept)
            )
        finally:
            session.catalog.dropTempView(_INCOMING)
            session.conf.unset("spark.databricks.delta.commitInfo.userMetadata")
        for commit in DeltaTable(str(self.path(*place))).history(5):
            if commit.get("userMetadata") == own:
                metrics = commit["operationMetrics"]
                return int(metrics["numTargetRowsUpdated"]) + int(metrics["numTargetRowsDeleted"])
        return 0

    def empty_quarantine(self, session: SparkSession, table: BronzeTable, batch_id: str) -> None:
        """Take back what a batch put into the quarantine, before it is done again."""
        name = self.identifier(table.schema, table.quarantine_name)
        session.sql(f"delete from {name} where batch_id = {spark_literal(batch_id)}")
        session.sql(
            f"update {name} set sightings = sightings - 1, last_batch_id = batch_id, rows_in_batch = 0"
            f" where last_batch_id = {spark_literal(batch_id)}"
        )

    def forget_quarantined(
        self, session: SparkSession, table: BronzeTable, files: Sequence[str], batch_id: str
    ) -> None:
        """Take out of the quarantine what other batches than this one put there from files that are loaded anew."""
        names = ", ".join(spark_literal(name) for name in files)
        session.sql(
            f"delete from {self.identifier(table.schema, table.quarantine_name)}"
            f" where file_name in ({names}) and last_batch_id <> {spark_literal(batch_id)}"
        )

    def rows_by_file(self, table: BronzeTable, batch_id: str) -> dict[str, int]:
        """How many row versions a batch has from each of its files."""
        mine = f"batch_id = {sql_literal(batch_id)} and file_name is not null group by file_name"
        rows = self.rows(table.schema, table.name, ["file_name", "count(*) as n"], mine)
        return {row["file_name"]: int(row["n"]) for row in rows}

    def remove_batch(
        self, session: SparkSession, table: BronzeTable, batch_id: str, *, where: str | None = None
    ) -> None:
        """Take back the rows of a batch that will not be finished.

        Args:
            where: other rows instead, as an SQL condition.
        """
        base = self.version(table.schema, table.name)
        none = self.read(session, table.schema, table.name).where("false").drop(LOAD_DATE)
        self.append(none, table, batch_id, base=base, replace_where=where or f"batch_id = {spark_literal(batch_id)}")

    def blank(
        self, session: SparkSession, table: BronzeTable, keys: Sequence[str], mark: str, columns: Sequence[str]
    ) -> int:
        """Empty these columns and the hash in all versions of the rows of these keys, and mark them `ERASED`.

        Args:
            keys: key texts; they enter no statement, since the log keeps those.
            mark: of the commit, in its `userMetadata`.

        Returns:
            How many row versions were not empty yet.
        """
        blanks = [*columns, "record_hash"]
        key = ", ".join(f"coalesce(cast(t.`{c.name}` as string), 'NULL')" for c in table.key)
        return self._merge_keys(
            session,
            str(self.path(table.schema, table.name)),
            keys,
            mark,
            f"concat_ws(', ', {key}) = n.key",
            "when matched and t.record_status = 'ACTIVE' then update set record_status = 'ERASED',"
            " update_timestamp = current_timestamp(), " + ", ".join(f"`{name}` = null" for name in blanks),
            "numTargetRowsUpdated",
        )

    def remove_quarantined(
        self, session: SparkSession, table: BronzeTable, keys: Sequence[str], hashes: Sequence[str], mark: str
    ) -> int:
        """Remove the quarantined rows of these keys, and those with these row hashes; returns how many there were."""
        place = str(self.path(table.schema, table.quarantine_name))
        statement = "when matched then delete"
        counted = "numTargetRowsDeleted"
        removed = self._merge_keys(session, place, keys, mark, "t.row_key = n.key", statement, counted)
        if hashes:
            removed += self._merge_keys(session, place, hashes, mark, "t.row_hash = n.key", statement, counted)
        return removed

    def described(self, location: str) -> Described | None:
        """A Delta table of somebody else's, by path or URI; None if there is none.

        Raises:
            LakeError: its log cannot be read.
        """
        try:
            if not DeltaTable.is_deltatable(location):
                return None
            table = DeltaTable(location)
            fields = json.loads(table.schema().to_json())["fields"]
            hidden = pa.table(table.deletion_vectors()).num_rows > 0
            told = table.metadata().configuration
        except Exception as error:  # delta-rs raises what the storage behind a URI raises
            kind = type(error).__name__
        else:
            return Described(
                {field["name"]: _spark_type(field["type"]) for field in fields},
                frozenset(field["name"] for field in fields if not field["nullable"]),
                told,
                hidden,
                _interval(told.get("delta.deletedFileRetentionDuration", "interval 1 week")),
            )
        raise LakeError(
            f"the Delta table {location} cannot be read ({kind}).",
            "see whether its files are there, and give the process access.",
        )

    def forget_derived(
        self,
        session: SparkSession,
        location: str,
        key: Sequence[str],
        keys: Sequence[str],
        mark: str,
        blanks: Sequence[str],
    ) -> int:
        """Delete the rows of these keys in a table derived from bronze, or empty some of their columns.

        Args:
            location: path or URI.
            key: SQL of the table `t`, the text of each part of the key; a row where one is NULL is nobody's.
            keys: key texts; they enter no statement.
            mark: of the commit.
            blanks: columns that become NULL; without any, the rows are deleted.

        Returns:
            How many rows that was; nothing is written if there are none.
        """
        on = " and ".join([f"concat_ws(', ', {', '.join(key)}) = n.key", *(f"{part} is not null" for part in key)])
        if not blanks:
            return self._merge_keys(
                session, location, keys, mark, on, "when matched then delete", "numTargetRowsDeleted"
            )
        names = [f"t.`{name}`" for name in blanks]
        # In the condition, so that a second time no file is written anew.
        on += f" and ({' or '.join(f'{name} is not null' for name in names)})"
        action = f"when matched then update set {', '.join(f'{name} = null' for name in names)}"
        return self._merge_keys(session, location, keys, mark, on, action, "numTargetRowsUpdated")

    def vacuum_derived(self, location: str, retention: dt.timedelta) -> None:
        """Remove the files that a table has had for no version since its retention, so far as that is possible.

        Args:
            retention: of the table.
        """
        try:
            table = DeltaTable(location)
            table.vacuum(dry_run=False)
            # Of files that the log has forgotten, as after a checkpoint, nobody can tell whether a writer is about to
            # commit them: they have to be a week old.
            hours = math.ceil(max(retention, dt.timedelta(days=7)) / dt.timedelta(hours=1))
            table.vacuum(hours, dry_run=False, full=True)
        except Exception as error:  # as in `described`
            # What they hold went with this erasure or an earlier one, and their owner vacuums too.
            logger.warning("%s: removed files cannot be vacuumed (%s)", location, type(error).__name__)

    def _merge_keys(
        self,
        session: SparkSession,
        location: str,
        keys: Sequence[str],
        mark: str,
        on: str,
        action: str,
        counted: str,
    ) -> int:
        session.createDataFrame([(key,) for key in keys], "key string").distinct().createOrReplaceTempView(_INCOMING)
        own = f"{mark} {uuid.uuid4().hex}"
        session.conf.set("spark.databricks.delta.commitInfo.userMetadata", own)
        try:
            session.sql(f"merge into {_identifier(location)} as t using {_INCOMING} as n on {on} {action}")
        finally:
            session.catalog.dropTempView(_INCOMING)
            session.conf.unset("spark.databricks.delta.commitInfo.userMetadata")
        for commit in DeltaTable(location).history(20):
            if commit.get("userMetadata") == own:
                return int(commit["operationMetrics"][counted])
        return 0

    def insert_missing(self, rows: DataFrame, schema: str, name: str, *, on: Sequence[str]) -> None:
        """Insert those rows of which the table has none with the same `on`; the table is made when missing, without
        change feed and statistics, and keeps no removed files.
        """
        path = str(self.path(schema, name))
        self._ensure_private(path, to_arrow_schema(rows.schema, timezone="UTC"))
        same = " and ".join(f"t.`{column}` = n.`{column}`" for column in on)
        rows.createOrReplaceTempView(_INCOMING)
        try:
            rows.sparkSession.sql(
                f"merge into {self.identifier(schema, name)} as t using {_INCOMING} as n on {same}"
                " when not matched then insert *"
            )
        finally:
            rows.sparkSession.catalog.dropTempView(_INCOMING)

    @contextlib.contextmanager
    def held(self, schema: str, *, alone: bool = False) -> Iterator[None]:
        """Hold a schema's private tables, with others or alone, against those on this machine who want the opposite.

        With others it may be nested in one thread; alone it may not be held by who holds it already.

        Raises:
            TableBusy: it took `HOLD_SECONDS`.
        """
        folder, until = self.root / schema, time.monotonic() + HOLD_SECONDS
        with self._lock_file(schema, "turn") as turn, self._lock_file(schema, "held") as held:
            # Who waits to be alone keeps those out who come later, or loads that overlap would never let it in;
            # but nobody who is in already: that one would wait for itself.
            gate = [] if not alone and _thread.holds[folder] else [turn]
            for lock in (*gate, held):
                while not _locked(lock, alone=alone):
                    if time.monotonic() > until:
                        raise TableBusy(
                            f"the keys of {schema} have been held by others for {HOLD_SECONDS / 60:.0f} minutes.",
                            "try again when the loads, erasures and rotations of the schema that run now are over.",
                        )
                    time.sleep(0.02)
            if not alone:
                fcntl.flock(turn, fcntl.LOCK_UN)
            _thread.holds[folder] += 1
            try:
                yield
            finally:
                _thread.holds[folder] -= 1

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

    def change_private(
        self,
        schema: str,
        name: str,
        arrow_schema: pa.Schema,
        decide: Callable[[int], pa.Table],
        *,
        on: str,
        change: Change,
    ) -> int:
        """Insert the rows that are not there, or update or delete those that are, in a private table, in one commit.

        Args:
            decide: the rows, for a version of the table; asked again if another process changed it meanwhile.
            on: the column that tells rows apart.

        Returns:
            How many rows were decided.

        Raises:
            StaleBase: other processes changed it again and again; nothing was written.
        """
        path = str(self.path(schema, name))
        decided = 0

        def commit() -> None:
            nonlocal decided
            self._ensure_private(path, arrow_schema)
            table = DeltaTable(path)
            rows = decide(table.version())
            decided = rows.num_rows
            if decided:
                # A merge looks at all rows, so whatever is committed meanwhile conflicts with it. And it has no
                # condition that names somebody: the log, which outlives the rows, keeps conditions.
                merger = table.merge(rows, f"t.{on} = s.{on}", source_alias="s", target_alias="t")
                match change:
                    case "insert":
                        merger.when_not_matched_insert_all().execute()
                    case "update":
                        merger.when_matched_update_all().execute()
                    case "delete":
                        merger.when_matched_delete().execute()

        try:
            _retry(commit, name)
        except CommitFailedError:
            raise StaleBase(
                "other processes kept changing it; nothing was written.", "try again.", table=f"{schema}.{name}"
            ) from None
        return decided

    def purge(self, schema: str, name: str) -> None:
        """Remove every file of a private table that is not of its current version. For who holds them alone.

        Raises:
            LakeError: a file cannot be removed.
        """
        path = self.path(schema, name)
        try:
            current = set(pa.table(DeltaTable(str(path)).get_add_actions(flatten=True))["path"].to_pylist())
            for file in path.iterdir():
                # Not by VACUUM: it leaves what a killed process had not finished writing (`…parquet#1`).
                if file.is_file() and file.name not in current:
                    file.unlink()
        except (DeltaError, OSError) as error:
            raise _unwritable(name, error) from error

    def tidy_private(self, schema: str, name: str) -> None:
        """Put a private table's small files together, if there are many and nobody holds it."""
        path = str(self.path(schema, name))
        if not self.exists(schema, name) or len(DeltaTable(path).file_uris()) < TIDY_EVERY:
            return
        with self._lock_file(schema, "held") as lock:
            if _locked(lock, alone=True):
                DeltaTable(path).optimize.compact()
                self.purge(schema, name)

    def append_rows(self, schema: str, name: str, arrow_schema: pa.Schema, rows: Sequence[Mapping[str, Any]]) -> None:
        """Append rows to a control table, which is made append-only when missing, and gets columns that it lacks."""
        path = str(self.path(schema, name))
        data = pa.Table.from_pylist([dict(row) for row in rows], schema=arrow_schema)

        def commit() -> None:
            self._ensure_control(path, arrow_schema, append_only=True)
            table = DeltaTable(path)
            # One that was made before a column of it was thought of.
            lacks = set(data.column_names) - {field.name for field in table.schema().fields}
            write_deltalake(table, data, mode="append", schema_mode="merge" if lacks else None)

        _retry(commit, name)
        _tidy(path, compact=True)

    def control_version(self, schema: str, name: str) -> int | None:
        """The version of a table, None if it is missing."""
        return self.version(schema, name) if self.exists(schema, name) else None

    def append_fenced(
        self,
        schema: str,
        name: str,
        arrow_schema: pa.Schema,
        rows: Sequence[Mapping[str, Any]],
        *,
        writer: str,
        number: int,
        base: int | None,
        partition_by: str,
    ) -> int:
        """Append rows to a control table, unless the same writer has appended since `base`.

        Args:
            writer: whose rows they are; appends of others do not matter.
            number: higher than any before of this writer.
            base: the version that the rows were decided on; None if the table was missing.

        Returns:
            A version that holds the rows.

        Raises:
            StaleBase: the writer has appended since; nothing was written.
        """
        path = str(self.path(schema, name))
        data = pa.Table.from_pylist([dict(row) for row in rows], schema=arrow_schema)
        fence = CommitProperties(app_transactions=[Transaction(f"bronze/{writer}", number)])
        try:
            if base is None:
                self._ensure_control(path, arrow_schema, append_only=True, partition_by=partition_by)
                base = 0
            table = DeltaTable(path, version=base)
            write_deltalake(table, data, mode="append", commit_properties=fence)
        except CommitFailedError:
            raise StaleBase(
                f"another load wrote to {name} while this one was deciding; nothing was written.",
                "load the partition again; loads of one table belong into one Dagster pool.",
                table=writer,
            ) from None
        except (DeltaError, OSError) as error:
            raise _unwritable(name, error) from error
        _tidy(path, compact=True)
        return table.version()

    def rows(
        self,
        schema: str,
        name: str,
        columns: Sequence[str] = ("*",),
        where: str = "true",
        *,
        version: int | None = None,
    ) -> list[dict[str, Any]]:
        """Rows of a table, read without Spark; none if it is missing.

        Args:
            columns: SQL expressions.
            where: SQL condition; see `sql_literal`.
            version: of the table; the current one by default.
        """
        answer = self.query(schema, name, f"select {', '.join(columns)} from t where {where}", version=version)
        found: list[dict[str, Any]] = [] if answer is None else answer.to_pylist()
        return found

    def query(self, schema: str, name: str, query: str, *, version: int | None = None) -> pa.Table | None:
        """The answer to a query of one table, called `t` there, without Spark; None if it is missing.

        Args:
            version: of the table; the current one by default.
        """
        path = str(self.path(schema, name))
        if not DeltaTable.is_deltatable(path):
            return None
        # Not `to_pyarrow_table`: its threads abort the interpreter at exit in five of eight tries (deltalake 1.6.6).
        reader = QueryBuilder().register("t", DeltaTable(path, version=version)).execute(query)
        return pa.table(reader.read_all())

    def merge_row(
        self, schema: str, name: str, arrow_schema: pa.Schema, row: Mapping[str, Any], *, on: str, when: str
    ) -> dict[str, Any]:
        """Put a row into a control table keyed by `on`: inserted if new, updated where `when` holds (`t` is the row
        there, `s` the new one). The row that is there afterwards is returned, read back.
        """
        path = str(self.path(schema, name))
        data = pa.Table.from_pylist([dict(row)], schema=arrow_schema)
        same = f"{on} = {sql_literal(row[on])}"

        def commit() -> None:
            self._ensure_control(path, arrow_schema, append_only=False)
            (
                DeltaTable(path)
                .merge(data, predicate=f"t.{on} = s.{on} and t.{same}", source_alias="s", target_alias="t")
                .when_matched_update_all(predicate=when)
                .when_not_matched_insert_all()
                .execute()
            )

        _retry(commit, name)
        _tidy(path, compact=False)
        (found,) = self.rows(schema, name, where=same)
        return found

    @staticmethod
    def _ensure_control(
        path: str, arrow_schema: pa.Schema, *, append_only: bool, partition_by: str | None = None
    ) -> None:
        if not DeltaTable.is_deltatable(path):
            configuration: dict[str, str | None] = {"delta.appendOnly": "true"} if append_only else {}
            DeltaTable.create(path, arrow_schema, mode="ignore", configuration=configuration, partition_by=partition_by)

    @staticmethod
    def _ensure_private(path: str, arrow_schema: pa.Schema) -> None:
        """Make a table of which nothing that was removed may stay behind: keys, and what leads to persons."""
        if not DeltaTable.is_deltatable(path):
            DeltaTable.create(path, arrow_schema, mode="ignore", configuration=_PRIVATE)

    def _create_statement(self, table: BronzeTable) -> str:
        columns = [
            f"`{c.name}` {c.type.simpleString()}{' not null' if c.key else ''} comment {spark_literal(c.description)}"
            for c in table.columns
        ]
        columns += [
            f"`{name}` {kind.simpleString()} comment {spark_literal(text)}"
            for name, (kind, text) in METADATA_COLUMNS.items()
        ]
        if table.files is not None:
            columns.append(f"`{RESCUED}` string comment 'Values of columns that the table does not have, as JSON.'")
        layout = table.layout.partition_by
        if layout == LOAD_DATE:
            columns.append(
                f"{LOAD_DATE} date generated always as ({_LOAD_DATE_OF}) comment {spark_literal(_LOAD_DATE_COMMENT)}"
            )
        statistics = ",".join([*(c.name for c in table.key), "batch_id"])
        return (
            f"create table if not exists {self.identifier(table.schema, table.name)} ({', '.join(columns)}) using delta"
            + (f" partitioned by (`{layout}`)" if layout else "")
            + f" comment {spark_literal(table.description)}"
            + " "
            + _properties({**_PROPERTIES, "delta.dataSkippingStatsColumns": statistics})
        )

    @staticmethod
    def _stale(table: BronzeTable) -> StaleBase:
        return StaleBase(
            "another load committed while this one was reading; nothing was written.",
            "load the partition again; loads of one table belong into one Dagster pool.",
            table=table.name,
        )


class _Thread(threading.local):
    """How often this thread holds the private tables of each schema, by folder."""

    def __init__(self) -> None:
        self.holds: Counter[Path] = Counter()


_thread = _Thread()


def _locked(lock: IO[str], *, alone: bool) -> bool:
    try:
        fcntl.flock(lock, (fcntl.LOCK_EX if alone else fcntl.LOCK_SH) | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _identifier(location: str) -> str:
    return "delta.`" + location.replace("`", "``") + "`"


def _spark_type(kind: Any) -> str:
    """A type of the Delta log in Spark's words."""
    if isinstance(kind, dict):
        return str(kind["type"])
    return {"integer": "int", "long": "bigint", "short": "smallint", "byte": "tinyint"}.get(kind, str(kind))


def _interval(text: str) -> dt.timedelta:
    """A duration as Delta's table properties write it.

    Raises:
        LakeError: Delta does not write it so.
    """
    found = re.findall(r"(\d+)\s+(week|day|hour|minute|second|millisecond)s?\b", text.lower())
    if not found:
        raise LakeError(f"the retention {text!r} is no interval.", "set delta.deletedFileRetentionDuration anew.")
    return sum((dt.timedelta(**{f"{unit}s": int(number)}) for number, unit in found), dt.timedelta())


def _unwritable(name: str, error: Exception) -> LakeError:
    return LakeError(
        f"the control table {name} cannot be written ({type(error).__name__}).",
        "check the lake folder's free space and permissions.",
    )


def sql_literal(text: object) -> str:
    """A text as a literal for `Lakehouse.rows`."""
    return "'" + str(text).replace("'", "''") + "'"


def _tidy(path: str, *, compact: bool) -> None:
    """Every hundredth commit, put a control table's small files together: each commit of it is a file."""
    table = DeltaTable(path)
    if table.version() % TIDY_EVERY:
        return
    # delta-rs does not notice two compactions of the same files, whose rows are there twice then (tried, 1.6.6): one
    # at a time, and none of a table whose rows are replaced. The lock's file is hidden, so that whoever lists the
    # schema's folder finds tables alone.
    with Path(path).with_name(f".{Path(path).name}.tidy").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return
        try:
            table.update_incremental()
            if compact:
                table.optimize.compact()
            table.vacuum(dry_run=False)
            table.create_checkpoint()
        except (DeltaError, OSError) as error:
            # Files that stay small cost time, not rows; the next hundredth commit comes.
            logger.debug("%s was not tidied (%s)", path, type(error).__name__)


def _retry(commit: Any, name: str, attempts: int = 8) -> None:
    for attempt in range(attempts):
        try:
            commit()
            return
        except (CommitFailedError, FileExistsError):
            if attempt == attempts - 1:
                raise
            time.sleep(0.05 * 2**attempt)
        except (DeltaError, OSError) as error:
            raise _unwritable(name, error) from error


def _version_marked(path: str, wanted: Callable[[str], bool], after: int) -> int | None:
    """The latest version after `after` whose `userMetadata` is wanted; None if there is none."""
    table = DeltaTable(path)
    newer = table.version() - after
    for commit in table.history(newer) if newer > 0 else []:
        if commit["version"] > after and wanted(commit.get("userMetadata") or ""):
            return int(commit["version"])
    return None


def spark_literal(text: str) -> str:
    """A text as a literal in Spark SQL, which knows no doubled quotes."""
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"


def _properties(properties: Mapping[str, str]) -> str:
    return "tblproperties (" + ", ".join(f"'{key}' = '{value}'" for key, value in properties.items()) + ")"
