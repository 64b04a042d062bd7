"""Nobody comes back: what a restored table has of subjects that have been forgotten is blanked or removed.

Works on any version of a table that lies beside the lake's own, before it gets a name.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Mapping
from typing import NoReturn

import pyarrow as pa
from pyspark.sql import SparkSession

from bronze_assets.access import SUBJECT_KEYS, TOKEN_VAULT, TOMBSTONES
from bronze_assets.errors import LakeError
from bronze_assets.lakehouse import Lakehouse
from bronze_assets.privacy.data_keys import DataKeys
from bronze_assets.privacy.erasure import VAULT, blanked
from bronze_assets.privacy.keys import KeyRing
from bronze_assets.privacy.values import hmac_hex
from bronze_assets.table import BronzeTable


def unavailable(what: str) -> Callable[[], NoReturn]:
    """Stands for what nobody has given, until it is asked for."""

    def refuse() -> NoReturn:
        raise LakeError(f"no {what} is at hand, by which forgotten subjects are told.", "use the job.")

    return refuse


class Forgetting:
    """What the tombstones of a lake take out of tables.

    Args:
        session: gives a Spark session; asked when rows are to be blanked.
        ring: gives the master key; asked when there is a tombstone.
    """

    def __init__(
        self,
        lake: Lakehouse,
        session: Callable[[], SparkSession],
        ring: Callable[[], KeyRing],
        clock: Callable[[], dt.datetime],
        run_id: str,
    ) -> None:
        self._lake = lake
        self._session = session
        self._ring = ring
        self._clock = clock
        self._mark = f"restore {run_id}".strip()

    def missing(self, schema: str, name: str) -> str | None:
        """The table that the lake lacks to tell who has been forgotten, for one that is to be restored."""
        if not self._lake.exists(schema, TOMBSTONES):
            return TOMBSTONES
        if name != SUBJECT_KEYS and self._buried(schema) and not self._lake.exists(schema, SUBJECT_KEYS):
            return SUBJECT_KEYS
        return None

    def blank(self, table: BronzeTable, location: str, *, quarantine: bool) -> int:
        """Blank the rows of forgotten subjects of a table's version; of a quarantine, remove them.

        A quarantined line that is nobody's row goes too if anybody has been forgotten: whose it is, nobody can tell.

        Returns:
            How many rows that was.
        """
        if not table.has_personal_data or not self._buried(table.schema):
            return 0
        parts = ", ".join(f"coalesce(cast(\"{c.name}\" as varchar), 'NULL')" for c in table.key)
        key = "row_key" if quarantine else f"concat_ws(', ', {parts})"
        where = "row_key is not null" if quarantine else "record_status = 'ACTIVE'"
        subjects = self._values(location, f"select distinct {key} as found from t where {where}")
        gone = self._gone(table.schema, {one: f"{table.name}/{one}" for one in subjects})
        if quarantine:
            lines = self._values(location, "select row_hash as found from t where row_key is null")
            if not gone and not lines:
                return 0
            return self._lake.remove_quarantined(self._session(), table, gone, lines, self._mark, location=location)
        if not gone:
            return 0
        stored = self._lake.storage.columns(location)
        return self._lake.blank(self._session(), table, gone, self._mark, blanked(table, stored), location=location)

    def drop(self, schema: str, name: str) -> int:
        """Remove what a private table of the lake has of forgotten subjects; returns of how many."""
        rows = self._lake.rows(schema, name, ["distinct subject"])
        gone = self._gone(schema, {row["subject"]: row["subject"] for row in rows})
        if not gone:
            return 0
        if name == SUBJECT_KEYS:
            return self._data_keys(schema).drop(gone)
        theirs = pa.table({"subject": pa.array(gone, pa.string())})
        with self._lake.held(schema, alone=True):
            self._lake.change_private(schema, TOKEN_VAULT, VAULT, lambda _: theirs, on="subject", change="delete")
            self._lake.purge(schema, TOKEN_VAULT)
        return len(gone)

    def _values(self, location: str, query: str) -> list[str]:
        answer = self._lake.storage.query(location, query)
        return [] if answer is None else [str(one) for one in answer["found"].to_pylist()]

    def _buried(self, schema: str) -> set[str]:
        return {row["subject_hmac"] for row in self._lake.rows(schema, TOMBSTONES, ["subject_hmac"])}

    def _gone(self, schema: str, subjects: Mapping[str, str]) -> list[str]:
        """Those keys whose subject has been forgotten."""
        buried = self._buried(schema)
        if not buried or not subjects:
            return []
        secret = self._data_keys(schema).hmac_key("tombstone")
        return [key for key, subject in subjects.items() if hmac_hex(secret, f"{schema}/{subject}") in buried]

    def _data_keys(self, schema: str) -> DataKeys:
        return DataKeys(self._lake, self._ring(), schema, self._clock)
