"""Control tables: small Delta tables (batches, leases, ledger, logs) that delta-rs writes and reads, without a JVM.

A commit takes milliseconds; rows are appended, or kept one for each key. Any table of the lake can be read here.
"""

from __future__ import annotations

import fcntl
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
from deltalake import CommitProperties, DeltaTable, QueryBuilder, Transaction, write_deltalake
from deltalake.exceptions import CommitFailedError, DeltaError

from bronze_assets.errors import LakeError, StaleBase

logger = logging.getLogger(__name__)

TIDY_EVERY = 100


class ControlTables:
    """The Delta tables under one root folder, `<root>/<schema>/<table>`, as far as no Spark is needed.

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
        return delta_identifier(str(self.path(schema, name)))

    def exists(self, schema: str, name: str) -> bool:
        """Whether the table has been made."""
        return DeltaTable.is_deltatable(str(self.path(schema, name)))

    def version(self, schema: str, name: str) -> int:
        """The current version."""
        return DeltaTable(str(self.path(schema, name))).version()

    def append_rows(self, schema: str, name: str, arrow_schema: pa.Schema, rows: Sequence[Mapping[str, Any]]) -> None:
        """Append rows to a control table, which is made append-only when missing, and gets columns that it lacks."""
        path = str(self.path(schema, name))
        data = pa.Table.from_pylist([dict(row) for row in rows], schema=arrow_schema)

        def commit() -> None:
            self._ensure_control(path, arrow_schema, append_only=True)
            table = DeltaTable(path)
            write_deltalake(table, data, mode="append", schema_mode=_schema_mode(table, data))

        retried(commit, name)
        _tidy(path, compact=True)

    def control_version(self, schema: str, name: str) -> int | None:
        """The version of a table, None if it is missing."""
        return self.version(schema, name) if self.exists(schema, name) else None

    def append_fenced(
        self,
        schema: str,
        name: str,
        rows: pa.Table,
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
        fence = CommitProperties(app_transactions=[Transaction(f"bronze/{writer}", number)])
        try:
            if base is None:
                self._ensure_control(path, rows.schema, append_only=True, partition_by=partition_by)
                base = 0
            table = DeltaTable(path, version=base)
            mode = _schema_mode(table, rows)
            write_deltalake(table, rows, mode="append", schema_mode=mode, commit_properties=fence)
        except CommitFailedError:
            raise StaleBase(
                f"another load wrote to {name} while this one was deciding; nothing was written.",
                "load the partition again; loads of one table belong into one Dagster pool.",
                table=writer,
            ) from None
        except (DeltaError, OSError) as error:
            raise unwritable(name, error) from error
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

        retried(commit, name)
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


def delta_identifier(location: str) -> str:
    """A Delta table's name in Spark SQL, by where it lies."""
    return "delta.`" + location.replace("`", "``") + "`"


def _schema_mode(table: DeltaTable, data: pa.Table) -> Literal["merge"] | None:
    """How rows of other columns than the table's are written: an older release or a newer one has written there."""
    same = {field.name for field in table.schema().fields} == set(data.column_names)
    return None if same else "merge"


def unwritable(name: str, error: Exception) -> LakeError:
    """What a person hears when a control table cannot be written."""
    return LakeError(
        f"the control table {name} cannot be written ({type(error).__name__}).",
        "check the lake folder's free space and permissions.",
    )


def sql_literal(text: object) -> str:
    """A text as a literal for `ControlTables.rows`."""
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


def retried(commit: Callable[[], None], name: str, attempts: int = 8) -> None:
    """Commit, again where another process was faster.

    Raises:
        CommitFailedError: others were, each time.
        LakeError: the table cannot be written.
    """
    for attempt in range(attempts):
        try:
            commit()
            return
        except (CommitFailedError, FileExistsError):
            if attempt == attempts - 1:
                raise
            time.sleep(0.05 * 2**attempt)
        except (DeltaError, OSError) as error:
            raise unwritable(name, error) from error
