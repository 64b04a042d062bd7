"""Private tables: what leads to persons and must be gone when it is removed (subject keys, the token vault).

They have no change feed and no statistics, and keep no removed file. Who reads or adds rows holds a schema's private
tables together with others; who drops rows holds them alone, since that removes the files of earlier versions at once.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence

import pyarrow as pa
from pyspark.sql import DataFrame

from bronze_assets.arrow_schema import arrow_schema
from bronze_assets.control_tables import ControlTables, retried
from bronze_assets.errors import StaleBase
from bronze_assets.storage import Change, Conflict

PRIVATE = {
    "delta.deletedFileRetentionDuration": "interval 0 hours",
    "delta.logRetentionDuration": "interval 30 days",
    "delta.enableDeletionVectors": "false",
    "delta.enableChangeDataFeed": "false",
    "delta.dataSkippingNumIndexedCols": "0",
}
"""Properties of a table of which nothing that was removed may stay behind."""
INCOMING = "bronze_assets_incoming"
"""What the statement of `merge` calls the rows."""


class PrivateTables(ControlTables):
    """The private tables of the lake's schemas, beside their control tables."""

    def insert_missing(self, rows: DataFrame, schema: str, name: str, *, on: Sequence[str]) -> None:
        """Insert those rows of which the table has none with the same `on`; the table is made when missing, without
        change feed and statistics, and keeps no removed files.
        """
        place = self.location(schema, name)
        self.storage.create(place, arrow_schema(rows.schema), PRIVATE)
        same = " and ".join(f"t.`{column}` = n.`{column}`" for column in on)
        merge(
            rows,
            f"merge into {self.storage.identifier(place)} as t using {INCOMING} as n on {same}"
            " when not matched then insert *",
        )

    def held(self, schema: str, *, alone: bool = False) -> contextlib.AbstractContextManager[None]:
        """Hold a schema's private tables, with others or alone, against those who want the opposite.

        With others it may be nested in one thread; alone it may not be held by who holds it already.

        Raises:
            TableBusy: it took `storage.HOLD_SECONDS`.
        """
        return self.storage.held(schema, alone=alone)

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
        place = self.location(schema, name)
        decided = 0

        def commit() -> None:
            nonlocal decided
            self.storage.create(place, arrow_schema, PRIVATE)
            rows = decide(self.storage.version(place))
            decided = rows.num_rows
            if decided:
                # A merge looks at all rows, so whatever is committed meanwhile conflicts with it. And it has no
                # condition that names somebody: the log, which outlives the rows, keeps conditions.
                self.storage.merge(place, rows, (change,), on=on)

        try:
            retried(commit)
        except Conflict:
            raise StaleBase(
                "other processes kept changing it; nothing was written.", "try again.", table=f"{schema}.{name}"
            ) from None
        return decided

    def purge(self, schema: str, name: str) -> None:
        """Remove every file of a private table that is not of its current version. For who holds them alone.

        Raises:
            LakeError: a file cannot be removed.
        """
        self.storage.purge(self.location(schema, name))

    def tidy_private(self, schema: str, name: str) -> None:
        """Put a private table's small files together, if there are many and nobody holds it."""
        self.storage.tidy_private(schema, self.location(schema, name))


def merge(rows: DataFrame, statement: str) -> int:
    """Merge rows, which the statement calls `INCOMING`, in one commit; returns how many rows were changed."""
    session = rows.sparkSession
    rows.createOrReplaceTempView(INCOMING)
    try:
        return int(session.sql(statement).collect()[0]["num_affected_rows"])
    finally:
        session.catalog.dropTempView(INCOMING)
