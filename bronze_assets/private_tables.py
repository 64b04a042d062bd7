"""Private tables: what leads to persons and must be gone when it is removed (subject keys, the token vault).

They have no change feed and no statistics, and keep no removed file. Who reads or adds rows holds a schema's private
tables together with others; who drops rows holds them alone, since that removes the files of earlier versions at once.
"""

from __future__ import annotations

import contextlib
import fcntl
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO, Literal

import pyarrow as pa
from deltalake import DeltaTable
from deltalake.exceptions import CommitFailedError, DeltaError
from pyspark.sql import DataFrame

from bronze_assets.arrow_schema import arrow_schema
from bronze_assets.control_tables import ControlTables, retried, unwritable
from bronze_assets.errors import LakeError, StaleBase, TableBusy

_PRIVATE: dict[str, str | None] = {
    "delta.deletedFileRetentionDuration": "interval 0 hours",
    "delta.logRetentionDuration": "interval 30 days",
    "delta.enableDeletionVectors": "false",
    "delta.enableChangeDataFeed": "false",
    "delta.dataSkippingNumIndexedCols": "0",
}
TIDY_FILES = 100
HOLD_SECONDS = 600.0
"""How long somebody waits to hold a schema's private tables."""
Change = Literal["insert", "update", "delete"]
_INCOMING = "bronze_assets_incoming"


class PrivateTables(ControlTables):
    """The private tables of the lake's schemas, beside their control tables."""

    def insert_missing(self, rows: DataFrame, schema: str, name: str, *, on: Sequence[str]) -> None:
        """Insert those rows of which the table has none with the same `on`; the table is made when missing, without
        change feed and statistics, and keeps no removed files.
        """
        path = str(self.path(schema, name))
        self._ensure_private(path, arrow_schema(rows.schema))
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
            retried(commit, name)
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
            raise unwritable(name, error) from error

    def tidy_private(self, schema: str, name: str) -> None:
        """Put a private table's small files together, if there are many and nobody holds it."""
        path = str(self.path(schema, name))
        if not self.exists(schema, name) or len(DeltaTable(path).file_uris()) < TIDY_FILES:
            return
        with self._lock_file(schema, "held") as lock:
            if _locked(lock, alone=True):
                DeltaTable(path).optimize.compact()
                self.purge(schema, name)

    @staticmethod
    def _ensure_private(path: str, arrow_schema: pa.Schema) -> None:
        """Make a table of which nothing that was removed may stay behind: keys, and what leads to persons."""
        if not DeltaTable.is_deltatable(path):
            DeltaTable.create(path, arrow_schema, mode="ignore", configuration=_PRIVATE)


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
