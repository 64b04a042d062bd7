"""What erasures took out of tables leaves the disk: files of earlier versions, once time travel has had its 30 days.

They hold ciphertext that no key opens any more, and Low values and tokens that nobody needs to open.
"""

from __future__ import annotations

import datetime as dt
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from bronze_assets.access import ERASURE_LOG
from bronze_assets.control_tables import sql_literal
from bronze_assets.lakehouse import Lakehouse
from bronze_assets.privacy import derived
from bronze_assets.privacy.erasure import EVIDENCE, UNTIL
from bronze_assets.table import BronzeTable

logger = logging.getLogger(__name__)

VACUUMED: Final = "vacuumed"
"""The event of `bz_erasure_log` that says that the last file is gone; its `files` counts those that went then."""


@dataclass(frozen=True)
class Removed:
    """What one table lost.

    Attributes:
        erasures: whose time had come.
        files: removed from the table, its quarantine and its derived tables.
    """

    table: str
    erasures: int
    files: int

    @property
    def words(self) -> str:
        """One line for people."""
        return f"{self.table}: {self.erasures} erasures came of age, {self.files} removed files are gone."


def remove_due(
    lake: Lakehouse,
    tables: Sequence[BronzeTable],
    clock: Callable[[], dt.datetime],
    *,
    who: str,
    run_id: str = "",
) -> list[Removed]:
    """Vacuum each table of which an erasure's `until` has passed, and say so in the evidence; may be done again.

    Files that a version of the last 30 days needs stay. Needs neither Spark nor a key, and waits for no load.

    Args:
        tables: those with personal data are looked at.
        clock: gives the present moment, in UTC.
        who: started it, for the evidence.

    Raises:
        LakeError: a table cannot be vacuumed; the others before it are done.
    """
    found = []
    for table in tables:
        if not table.has_personal_data or not (erasures := due(lake, table, clock())):
            continue
        files = sum(
            lake.vacuum(str(lake.path(table.schema, name)), UNTIL)
            for name in (table.name, table.quarantine_name)
            if lake.exists(table.schema, name)
        )
        files += derived.vacuum(lake, table)
        told = {"at": clock(), "event": VACUUMED, "who": who, "reason": "its time had come", "run_id": run_id}
        rows = [erasure | told | {"files": files} for erasure in erasures]
        lake.append_rows(table.schema, ERASURE_LOG, EVIDENCE, rows)
        found.append(Removed(table.name, len(rows), files))
        logger.info("%s", found[-1].words)
    return found


def due(lake: Lakehouse, table: BronzeTable, now: dt.datetime) -> list[dict[str, Any]]:
    """The evidence of the table's erasures whose `until` has passed and whose files nobody has removed since."""
    rows = lake.rows(table.schema, ERASURE_LOG, where=f"table_name = {sql_literal(table.name)}")
    gone = {row["erasure_id"] for row in rows if row["event"] == VACUUMED}
    return [
        row
        for row in rows
        if row["event"] == "done" and row["erasure_id"] not in gone and row["until"] is not None and row["until"] <= now
    ]
