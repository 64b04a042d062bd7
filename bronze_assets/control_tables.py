"""Control tables: small Delta tables (batches, leases, ledger, logs); rows are appended, or kept one for each key.

On a path they need no JVM, and a commit takes milliseconds. Any table of the lake can be read here.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from bronze_assets.errors import StaleBase
from bronze_assets.storage import Conflict, FolderStorage, Storage, sql_literal

_APPEND_ONLY = {"delta.appendOnly": "true"}


class ControlTables:
    """The tables of one lake, as far as no rows are computed.

    Args:
        storage: where they lie; a folder is that of `<root>/<schema>/<table>`.
    """

    def __init__(self, storage: Storage | Path) -> None:
        self.storage = FolderStorage(storage) if isinstance(storage, Path) else storage

    def location(self, schema: str, name: str) -> str:
        """What names a table everywhere: its path, or its name in the catalog."""
        return self.storage.location(schema, name)

    def identifier(self, schema: str, name: str) -> str:
        """The table's name in Spark SQL."""
        return self.storage.identifier(self.location(schema, name))

    def exists(self, schema: str, name: str) -> bool:
        """Whether the table has been made."""
        return self.storage.exists(self.location(schema, name))

    def version(self, schema: str, name: str) -> int:
        """The current version."""
        return self.storage.version(self.location(schema, name))

    def append_rows(self, schema: str, name: str, arrow_schema: pa.Schema, rows: Sequence[Mapping[str, Any]]) -> None:
        """Append rows to a control table, which is made append-only when missing, and gets columns that it lacks."""
        place = self.location(schema, name)
        data = pa.Table.from_pylist([dict(row) for row in rows], schema=arrow_schema)

        def commit() -> None:
            self.storage.create(place, arrow_schema, _APPEND_ONLY)
            self.storage.append(place, data)

        retried(commit)
        self.storage.tidy(place, compact=True)

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
            number: higher than any before of this writer, and the same for all who decided on `base`.
            base: the version that the rows were decided on; None if the table was missing.

        Returns:
            A version that holds the rows.

        Raises:
            StaleBase: the writer has appended since; nothing was written.
        """
        place = self.location(schema, name)
        try:
            if base is None:
                self.storage.create(place, rows.schema, _APPEND_ONLY, partition_by=partition_by)
                base = 0
            version = self.storage.append_fenced(place, rows, writer=writer, number=number, base=base)
        except Conflict:
            raise StaleBase(
                f"another load wrote to {name} while this one was deciding; nothing was written.",
                "load the partition again; loads of one table belong into one Dagster pool.",
                table=writer,
            ) from None
        self.storage.tidy(place, compact=True)
        return version

    def rows(
        self,
        schema: str,
        name: str,
        columns: Sequence[str] = ("*",),
        where: str = "true",
        *,
        version: int | None = None,
    ) -> list[dict[str, Any]]:
        """Rows of a table; none if it is missing.

        Args:
            columns: SQL expressions.
            where: SQL condition; see `sql_literal`.
            version: of the table; the current one by default.
        """
        answer = self.query(schema, name, f"select {', '.join(columns)} from t where {where}", version=version)
        found: list[dict[str, Any]] = [] if answer is None else answer.to_pylist()
        return found

    def query(self, schema: str, name: str, query: str, *, version: int | None = None) -> pa.Table | None:
        """The answer to a query of one table, called `t` there; None if it is missing.

        Args:
            query: SQL as DataFusion reads it.
            version: of the table; the current one by default.
        """
        return self.storage.query(self.location(schema, name), query, version=version)

    def merge_row(
        self, schema: str, name: str, arrow_schema: pa.Schema, row: Mapping[str, Any], *, on: str, when: str
    ) -> dict[str, Any]:
        """Put a row into a control table keyed by `on`: inserted if new, updated where `when` holds (`t` is the row
        there, `s` the new one). The row that is there afterwards is returned, read back.
        """
        place = self.location(schema, name)
        data = pa.Table.from_pylist([dict(row)], schema=arrow_schema)

        def commit() -> None:
            self.storage.create(place, arrow_schema, {})
            self.storage.merge(place, data, ("update", "insert"), on=on, value=row[on], where=when)

        try:
            retried(commit)
        except Conflict:
            raise StaleBase(
                "other processes kept changing it; nothing was written.", "try again.", table=f"{schema}.{name}"
            ) from None
        self.storage.tidy(place, compact=False)
        (found,) = self.rows(schema, name, where=f"{on} = {sql_literal(row[on])}")
        return found


def retried(commit: Callable[[], None], attempts: int = 8) -> None:
    """Commit, again where another process was faster.

    Raises:
        Conflict: others were, each time.
    """
    for attempt in range(attempts):
        try:
            commit()
            return
        except Conflict:
            if attempt == attempts - 1:
                raise
            time.sleep(0.05 * 2**attempt)
