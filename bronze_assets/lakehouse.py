"""The lake: bronze tables and their quarantines, beside control and private tables; nothing else writes Delta.

Bronze and quarantine rows go through Spark. What only looks at a table's log is up to the `storage`, which also knows
what tables are called: `open_lake` picks it.

Every commit of rows carries `userMetadata = <batch_id> <token>`, a token for each attempt, since a process that was
paused may wake up when another has committed the same batch. It is fenced: `txnVersion` is one more than that of the
table at the base version, so that a load whose base has been overtaken commits nothing, which its absence from the
history then tells. (Counted in loads and not in table versions: an OPTIMIZE between two bases would let both commit.)
"""

from __future__ import annotations

import contextlib
import datetime as dt
import functools
import logging
import uuid
from collections.abc import Callable, Mapping, Sequence

import delta.tables
from pyspark.errors import AnalysisException
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F
from pyspark.sql import types as T

from bronze_assets import engine
from bronze_assets.arrow_schema import arrow_schema
from bronze_assets.catalog_storage import CatalogStorage
from bronze_assets.errors import StaleBase
from bronze_assets.private_tables import INCOMING, PrivateTables, merge
from bronze_assets.settings import Settings
from bronze_assets.spark_errors import SPARK_ERRORS
from bronze_assets.storage import (
    OVERTAKEN,
    Commit,
    Conflict,
    Described,
    FolderStorage,
    Rewritten,
    TableSize,
    spark_literal,
    sql_literal,
)
from bronze_assets.table import LOAD_DATE, METADATA_COLUMNS, RESCUED, BronzeTable, Pii

PROPERTIES = {
    "delta.deletedFileRetentionDuration": "interval 30 days",
    "delta.logRetentionDuration": "interval 30 days",
    # Deletion vectors would keep erased rows readable in the files.
    "delta.enableDeletionVectors": "false",
    "delta.enableChangeDataFeed": "true",
}
"""Of bronze tables and quarantines."""
_STATISTICS = "delta.dataSkippingStatsColumns"
SMALL_FILE = 128 * 2**20
"""Bytes below which a file is small."""
LARGE_FILE = 2**30
"""Most bytes of a file that maintenance writes."""
logger = logging.getLogger(__name__)

_LOAD_DATE_OF = "cast(load_timestamp as date)"
_LOAD_DATE_COMMENT = "Day of loading."
_RESCUED_COMMENT = "Values of columns that the table does not have, as JSON."
_RESCUED_COLUMN = f"`{RESCUED}` string comment '{_RESCUED_COMMENT}'"
_MARK = "spark.databricks.delta.commitInfo.userMetadata"
_RECENT = 20
_SINCE_A_BATCH = 1000
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
RESTORE = "restore to version"
RECOVERED = "recovered"
"""With what the marks of restores begin, in place and beside the table."""
QUARANTINE_IDENTITY = ("row_key", "row_hash", "rule_set", "file_name", "source_position")


class Lakehouse(PrivateTables):
    """The Delta tables of one lake."""

    def check_writable(self, table: BronzeTable) -> None:
        """Raise `LakeError` unless tables of the table's schema can be made and written."""
        self.storage.check_writable(table.schema, table.name)

    def ensure(self, session: SparkSession, table: BronzeTable) -> None:
        """Make the bronze table and its quarantine where they are missing."""
        if not self.exists(table.schema, table.name):
            self._make(session, table)
        elif table.feed is not None and RESCUED not in self._names(table):
            session.sql(f"alter table {self.identifier(table.schema, table.name)} add columns ({_RESCUED_COLUMN})")
        place = self.location(table.schema, table.quarantine_name)
        if not self.storage.exists(place):
            self.storage.create(
                place,
                arrow_schema(QUARANTINE),
                {**PROPERTIES, _STATISTICS: "row_key,batch_id,last_batch_id"},
                description=f"Rows of {table.source} that could not be loaded into {table.name}, and why.",
            )
            return
        there = self.storage.columns(place)
        missing = [field for field in QUARANTINE.fields if field.name not in there]
        if missing:
            columns = ", ".join(f"`{field.name}` {field.dataType.simpleString()}" for field in missing)
            session.sql(f"alter table {self.identifier(table.schema, table.quarantine_name)} add columns ({columns})")

    def read(self, session: SparkSession, schema: str, name: str, *, version: int | None = None) -> DataFrame:
        """A table, at a version if one is given."""
        return self.storage.frame(session, self.location(schema, name), version)

    def size(self, schema: str, name: str) -> TableSize:
        """Rows, bytes and files of the current version."""
        return self.storage.size(self.location(schema, name))

    def committed(self, schema: str, name: str, batch_id: str) -> int | None:
        """The version in which the batch was committed; None if it was not."""
        place = self.location(schema, name)
        if not self.storage.exists(place):
            return None
        # A batch that is not done is not old: the next load settles it.
        commits = self.storage.history(place, _SINCE_A_BATCH)
        return next((one.version for one in commits if one.mark.split(" ")[0] == batch_id), None)

    def append(
        self,
        frame: DataFrame,
        table: BronzeTable,
        batch_id: str,
        *,
        base: int,
        replace_where: str | None = None,
        new_columns: bool = False,
    ) -> Commit:
        """Commit a batch's rows to the bronze table, fenced against `base`.

        Args:
            frame: the rows.
            base: the version that the rows were compared with.
            replace_where: put them in the place of the rows that hold this condition, as the new ones must too: what an
                earlier attempt of this batch left, or earlier rows of the same files. None appends.
            new_columns: whether the frame has columns that the table does not have yet.

        Returns:
            What was committed.

        Raises:
            StaleBase: another load has committed since `base`; nothing was written.
        """
        place = self.location(table.schema, table.name)
        loads = f"bronze/{table.name}"
        own = f"{batch_id} {uuid.uuid4().hex}"
        options = {
            "userMetadata": own,
            "txnAppId": loads,
            "txnVersion": str(self.storage.next_load(place, loads, base)),
            "mergeSchema": str(new_columns).lower(),
        }
        try:
            if replace_where is None:
                self.storage.save(frame.write.format("delta").options(**options).mode("append"), place)
            else:
                self.storage.replace(frame, place, replace_where, options)
        except SPARK_ERRORS as error:
            if OVERTAKEN.search(str(error)[:2000]):
                raise self._stale(table) from error
            raise
        commit = self._marked(place, lambda mark: mark == own, base)
        if commit is None:
            raise self._stale(table)
        return commit

    def rewrite(
        self, frame: DataFrame, table: BronzeTable, mark: str, options: Mapping[str, str] | None = None
    ) -> None:
        """Put the same row versions with other values, and maybe types, of some columns in the place of all.

        Args:
            frame: made of a version of the bronze table.
            mark: of the commit, in its `userMetadata`.
            options: of Delta's writer.
        """
        # Spark knows neither of them of what it has read.
        keys = {c.name: F.coalesce(F.col(c.name), F.lit(0).cast(c.type)).alias(c.name) for c in table.key}
        frame = frame.withColumns(keys)
        layout = table.layout.partition_by
        if layout == LOAD_DATE:
            generated = {"delta.generationExpression": _LOAD_DATE_OF, "comment": _LOAD_DATE_COMMENT}
            frame = frame.withColumn(LOAD_DATE, F.col(LOAD_DATE).alias(LOAD_DATE, metadata=generated))
        writer = frame.write.format("delta").mode("overwrite").option("overwriteSchema", "true")
        writer = writer.option("userMetadata", f"{mark} {uuid.uuid4().hex}").options(**options or {})
        if layout:
            writer = writer.partitionBy(layout)
        self.storage.save(writer, self.location(table.schema, table.name))

    def undeclared(self, table: BronzeTable) -> list[str]:
        """Columns of the bronze table that neither its declaration nor the platform knows."""
        return [name for name in self._names(table) if not table.knows(name) and name != RESCUED]

    def _names(self, table: BronzeTable) -> list[str]:
        return self.storage.columns(self.location(table.schema, table.name))

    def quarantine(self, rows: DataFrame, table: BronzeTable, batch_id: str) -> None:
        """Commit a batch's quarantined rows; a row that is there already is seen again, and open again if it had been
        replayed. One that was dismissed stays so.

        Args:
            rows: columns of `QUARANTINE`, one per (row_key, row_hash, rule_set, file_name), and of a file, position.
        """
        name = self.identifier(table.schema, table.quarantine_name)
        if self.size(table.schema, table.quarantine_name).rows == 0:
            writer = rows.write.format("delta").mode("append").option("userMetadata", batch_id)
            self.storage.save(writer, self.location(table.schema, table.quarantine_name))
        else:
            _merge(
                rows,
                batch_id,
                f"merge into {name} as q using {INCOMING} as n on q.row_key <=> n.row_key"
                " and q.row_hash = n.row_hash and q.rule_set = n.rule_set and q.file_name <=> n.file_name"
                " and (n.file_name is null or q.source_position <=> n.source_position)"
                " when matched then update set q.last_seen = n.last_seen, q.last_batch_id = n.last_batch_id,"
                # Another value may have been there in between: the row is to go where it was seen last.
                " q.source_position = n.source_position,"
                f" q.state = if(q.state = '{REPLAYED}', '{OPEN}', q.state),"
                # A batch is one sighting, however often it is done again.
                " q.sightings = q.sightings + if(q.last_batch_id = n.last_batch_id, 0, 1),"
                " q.rows_in_batch = n.rows_in_batch"
                " when not matched then insert *",
            )

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
        name = self.identifier(table.schema, table.quarantine_name)
        kept = ("reasons", "replay_batch_id", "dismissed_by", "dismissed_at", "dismissed_because")
        blank = ("row_key", "row_hash", "raw_row", "reasons", "rescued_data")
        tried = "q.attempts = coalesce(q.attempts, 0) + n.tried"
        return _merge(
            fates,
            f"{mark} {uuid.uuid4().hex}",
            f"merge into {name} as q using {INCOMING} as n on q.row_hash = n.row_hash"
            + "".join(f" and q.{name} <=> n.{name}" for name in QUARANTINE_IDENTITY if name != "row_hash")
            + f" and coalesce(q.state, '{OPEN}') = '{OPEN}'"
            f" when matched and n.fate = '{FOLDED}' then delete"
            # Nothing of a person may stay.
            f" when matched and n.fate = 'erased' then update set q.state = n.fate, {tried},"
            f" q.replay_batch_id = n.replay_batch_id, {', '.join(f'q.{name} = null' for name in blank)}"
            f" when matched then update set q.state = n.fate, {tried},"
            " q.rule_set = coalesce(n.new_rule_set, q.rule_set), "
            + ", ".join(f"q.{name} = coalesce(n.{name}, q.{name})" for name in kept),
        )

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

    def restore(self, table: BronzeTable, version: int, rows: DataFrame | None = None) -> Commit:
        """Put the bronze table back to a version in one commit, which fences off every load that was decided before.

        Args:
            rows: that version with some values emptied, which is written instead; by the log alone without.

        Raises:
            StaleBase: somebody has committed meanwhile; nothing was changed.
        """
        place, own = self.location(table.schema, table.name), f"{RESTORE} {version} {uuid.uuid4().hex}"
        loads, base = f"bronze/{table.name}", self.storage.version(place)
        number = self.storage.next_load(place, loads, base)
        try:
            if rows is None:
                self.storage.restore(place, version, mark=own, loads=loads, number=number)
            else:
                self.rewrite(rows, table, own, {"userMetadata": own, "txnAppId": loads, "txnVersion": str(number)})
        except Conflict:
            raise self._stale(table) from None
        except SPARK_ERRORS as error:
            if OVERTAKEN.search(str(error)[:2000]):
                raise self._stale(table) from error
            raise
        # By its place where nobody may mark it.
        commit = self._marked(place, lambda mark: mark == own, base) or self.storage.history(place, 1)[0]
        if commit.mark != own and commit.operation != "RESTORE":
            raise self._stale(table)
        return commit

    def restore_quarantine(self, rows: DataFrame, table: BronzeTable, version: int) -> None:
        """Put these rows in the place of all in the quarantine.

        Args:
            rows: columns of `QUARANTINE`.
            version: of the quarantine that they are of.
        """
        writer = rows.write.format("delta").mode("overwrite")
        writer = writer.option("userMetadata", f"{RESTORE} {version} {uuid.uuid4().hex}")
        self.storage.save(writer, self.location(table.schema, table.quarantine_name))

    def write_recovered(self, rows: DataFrame, table: BronzeTable, version: int) -> int:
        """Write rows of a version beside the bronze table, in the place of what was recovered there before.

        Returns:
            The version of the table beside it.
        """
        place = self.location(table.schema, recovered_name(table))
        writer = rows.write.format("delta").mode("overwrite").option("overwriteSchema", "true")
        statistics = ",".join([*(c.name for c in table.key), "batch_id"])
        # A change feed would keep what an erasure takes out of it.
        told = {"delta.enableChangeDataFeed": "false", "delta.dataSkippingStatsColumns": statistics}
        writer = writer.options(**PROPERTIES | told)
        writer = writer.option("userMetadata", f"{RECOVERED} {table.name} {version} {uuid.uuid4().hex}")
        self.storage.save(writer, place)
        return self.storage.version(place)

    def blank(
        self,
        session: SparkSession,
        table: BronzeTable,
        keys: Sequence[str],
        mark: str,
        columns: Sequence[str],
        *,
        location: str | None = None,
    ) -> int:
        """Empty these columns and the hash in all versions of the rows of these keys, and mark them `ERASED`.

        Args:
            keys: key texts; they enter no statement, since the log keeps those.
            mark: of the commit, in its `userMetadata`.
            location: of a copy of the table, to do it there.

        Returns:
            How many row versions were not empty yet.
        """
        blanks = [*columns, "record_hash"]
        key = ", ".join(f"coalesce(cast(t.`{c.name}` as string), 'NULL')" for c in table.key)
        return self._merge_keys(
            session,
            location or self.location(table.schema, table.name),
            keys,
            mark,
            f"concat_ws(', ', {key}) = n.key",
            "when matched and t.record_status = 'ACTIVE' then update set record_status = 'ERASED',"
            " update_timestamp = current_timestamp(), " + ", ".join(f"`{name}` = null" for name in blanks),
        )

    def remove_quarantined(
        self,
        session: SparkSession,
        table: BronzeTable,
        keys: Sequence[str],
        hashes: Sequence[str],
        mark: str,
        *,
        location: str | None = None,
    ) -> int:
        """Remove the quarantined rows of these keys, and those with these row hashes; returns how many there were.

        Args:
            location: of a copy of the quarantine, to do it there.
        """
        place = location or self.location(table.schema, table.quarantine_name)
        statement = "when matched then delete"
        removed = self._merge_keys(session, place, keys, mark, "t.row_key = n.key", statement)
        if hashes:
            removed += self._merge_keys(session, place, hashes, mark, "t.row_hash = n.key", statement)
        return removed

    def remove_rows(
        self, rows: DataFrame, schema: str, name: str, *, on: Sequence[str], mark: str, bound: str = "true"
    ) -> int:
        """Delete rows of a table, in one commit; its generated columns and change feed stay as they are.

        Args:
            rows: the columns `on` of those that go.
            on: tell a row apart, NULLs too.
            mark: the commit's `userMetadata`.
            bound: SQL condition that they all hold, of the table `t`, by which files are left out.

        Returns:
            How many rows that was; without any, nothing is committed.
        """
        same = " and ".join(f"t.`{column}` <=> n.`{column}`" for column in on)
        target = self.identifier(schema, name)
        return _merge(
            rows.select(*on),
            mark,
            f"merge into {target} as t using {INCOMING} as n on {same} and {bound} when matched then delete",
        )

    def marked(self, schema: str, name: str, mark: str) -> Commit | None:
        """The commit with that `userMetadata`; None if the table's history has none."""
        place = self.location(schema, name)
        return self._marked(place, lambda found: found == mark, -1) if self.storage.exists(place) else None

    def described(self, location: str) -> Described | None:
        """A Delta table of somebody else's, by path or URI; None if there is none.

        Raises:
            LakeError: its log cannot be read.
        """
        return self.storage.describe(location)

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
            return self._merge_keys(session, location, keys, mark, on, "when matched then delete")
        names = [f"t.`{name}`" for name in blanks]
        # In the condition, so that a second time no file is written anew.
        on += f" and ({' or '.join(f'{name} is not null' for name in names)})"
        action = f"when matched then update set {', '.join(f'{name} = null' for name in names)}"
        return self._merge_keys(session, location, keys, mark, on, action)

    def vacuum(self, location: str, retention: dt.timedelta, *, dry_run: bool = False) -> int:
        """Remove the files that a table has had for no version since its retention, its change data among them.

        Args:
            location: path or URI.
            retention: of the table.
            dry_run: only count them.

        Returns:
            How many files that was.

        Raises:
            LakeError: they cannot be removed.
        """
        return self.storage.vacuum(location, retention, dry_run=dry_run)

    def optimize(
        self, session: SparkSession, location: str, *, where: str | None = None, z_order: Sequence[str] = ()
    ) -> Rewritten:
        """Put files below `SMALL_FILE` together into files of up to `LARGE_FILE`; see `Storage.optimize`.

        Raises:
            Conflict: another has changed the same files meanwhile; nothing was written.
            LakeError: the files cannot be written.
        """
        return self.storage.optimize(
            session, location, where=where, z_order=z_order, small=SMALL_FILE, large=LARGE_FILE
        )

    def ensure_statistics(self, session: SparkSession, table: BronzeTable) -> None:
        """See that Delta keeps statistics of the columns by which the table is clustered: it clusters by no others.

        Raises:
            Conflict: another has committed meanwhile; nothing was written.
        """
        described = self.described(self.location(table.schema, table.name))
        known = described.properties.get(_STATISTICS, "").split(",") if described else []
        if set(clustered_by(table)) <= set(known):
            return
        name = self.identifier(table.schema, table.name)
        try:
            session.sql(f"alter table {name} set tblproperties ('{_STATISTICS}' = '{_statistics(table)}')")
        except SPARK_ERRORS as error:
            if OVERTAKEN.search(str(error)[:2000]):
                raise Conflict(name) from None
            raise

    def _merge_keys(
        self, session: SparkSession, location: str, keys: Sequence[str], mark: str, on: str, action: str
    ) -> int:
        return _merge(
            session.createDataFrame([(key,) for key in keys], "key string").distinct(),
            f"{mark} {uuid.uuid4().hex}",
            f"merge into {self.storage.identifier(location)} as t using {INCOMING} as n on {on} {action}",
        )

    def _marked(self, location: str, wanted: Callable[[str], bool], after: int) -> Commit | None:
        """The latest commit after the version `after` whose `userMetadata` is wanted; None if there is none."""
        commits = self.storage.history(location, _RECENT)
        if len(commits) == _RECENT and commits[-1].version > after + 1:
            commits = self.storage.history(location)
        return next((one for one in commits if one.version > after and wanted(one.mark)), None)

    def _make(self, session: SparkSession, table: BronzeTable) -> None:
        # In SQL, Delta knows generated columns only from 4.4 on.
        made = self.storage.named(
            delta.tables.DeltaTable.createIfNotExists(session), self.location(table.schema, table.name)
        )
        made = made.comment(table.description)
        for column in table.columns:
            made = made.addColumn(column.name, column.type, nullable=not column.key, comment=column.description)
        for name, (kind, text) in METADATA_COLUMNS.items():
            made = made.addColumn(name, kind, comment=text)
        if table.feed is not None:
            made = made.addColumn(RESCUED, "string", comment=_RESCUED_COMMENT)
        layout = table.layout.partition_by
        if layout == LOAD_DATE:
            made = made.addColumn(LOAD_DATE, "date", generatedAlwaysAs=_LOAD_DATE_OF, comment=_LOAD_DATE_COMMENT)
        if layout:
            made = made.partitionedBy(layout)
        for name, value in {**PROPERTIES, _STATISTICS: _statistics(table)}.items():
            made = made.property(name, value)
        made.execute()

    @staticmethod
    def _stale(table: BronzeTable) -> StaleBase:
        return StaleBase(
            "another load committed while this one was reading; nothing was written.",
            "load the partition again; loads of one table belong into one Dagster pool.",
            table=table.name,
        )


def clustered_by(table: BronzeTable) -> list[str]:
    """The columns by which the table's files are clustered: those declared, but for the column that partitions it, and
    for personal data, whose least and greatest values would stand in the log.
    """
    columns = (table.column(name) for name in table.layout.z_order)
    return [c.name for c in columns if c.name != table.layout.partition_by and c.pii is Pii.NONE]


def _statistics(table: BronzeTable) -> str:
    return ",".join(dict.fromkeys([*(c.name for c in table.key), "batch_id", *clustered_by(table)]))


def recovered_name(table: BronzeTable) -> str:
    """The table beside a bronze table that earlier versions are brought back to."""
    return f"{table.name}_recovered"


def _merge(rows: DataFrame, mark: str, statement: str) -> int:
    """`merge` in a commit with that `userMetadata`, which serverless compute lets nobody set."""
    conf = rows.sparkSession.conf
    try:
        with contextlib.suppress(AnalysisException):
            conf.set(_MARK, mark)
        return merge(rows, statement)
    finally:
        with contextlib.suppress(AnalysisException):
            conf.unset(_MARK)


def open_lake(settings: Settings, session: Callable[[], SparkSession] | None = None) -> Lakehouse:
    """The lake of these settings: a folder, or on Databricks a catalog. Opening it reads nothing.

    Args:
        session: gives the Spark session, where there is one already.
    """
    if settings.in_catalog:
        start = session or functools.partial(engine.start_session, settings)
        # `[databricks]` and a process on a cluster have one.
        return Lakehouse(CatalogStorage(settings.catalog or "", start, settings.lease_seconds))
    return Lakehouse(FolderStorage(settings.lake))
