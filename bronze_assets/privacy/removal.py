"""What erasures took out of tables leaves the disk: files of earlier versions, once time travel has had its 30 days.

They hold ciphertext that no key opens any more, and Low values and tokens that nobody needs to open.
"""

from __future__ import annotations

import datetime as dt
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from bronze_assets.access import ERASURE_LOG
from bronze_assets.errors import LakeError
from bronze_assets.lakehouse import Lakehouse
from bronze_assets.privacy import derived
from bronze_assets.privacy.erasure import EVIDENCE, UNTIL
from bronze_assets.storage import sql_literal
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

    Files that a version of the last 30 days needs stay, and so do those of a table that has been told since to keep
    them for longer. Needs neither Spark nor a key, and waits for no load.

    Args:
        tables: those with personal data are looked at.
        clock: gives the present moment, in UTC.
        who: started it, for the evidence.

    Raises:
        LakeError: a table, or one derived from it, cannot be vacuumed; it stays due, and the others are done.
    """
    found: list[Removed] = []
    obstacles: list[LakeError] = []
    for table in tables:
        if not table.has_personal_data:
            continue
        try:
            removed = _removed(lake, table, clock(), {"who": who, "run_id": run_id})
        except LakeError as error:
            obstacles.append(error)
            continue
        if removed is not None:
            found.append(removed)
            logger.info("%s", removed.words)
    if obstacles:
        first, *others = obstacles
        more = f" So cannot those of {len(others)} more tables." if others else ""
        raise LakeError(f"{first.culprit}{more}", first.fix, table=first.table)
    return found


def _removed(lake: Lakehouse, table: BronzeTable, now: dt.datetime, told: Mapping[str, str]) -> Removed | None:
    erasures = due(lake, table, now)
    if not erasures:
        return None
    names = [name for name in (table.name, table.quarantine_name) if lake.exists(table.schema, name)]
    places = [lake.location(table.schema, name) for name in names]
    kept = {place: _retention(lake, place) for place in (*places, *derived.locations(lake, table))}
    longest = max([UNTIL, *kept.values()])
    erasures = [erasure for erasure in erasures if erasure["at"] + longest <= now]
    if not erasures:
        return None
    files = sum(lake.vacuum(place, retention) for place, retention in kept.items())
    event = {"at": now, "event": VACUUMED, "reason": "its time had come", "files": files, **told}
    lake.append_rows(table.schema, ERASURE_LOG, EVIDENCE, [erasure | event for erasure in erasures])
    return Removed(table.name, len(erasures), files)


def _retention(lake: Lakehouse, place: str) -> dt.timedelta:
    described = lake.described(place)
    if described is None:
        raise LakeError(
            f"there is no table at {place} any more, of which removed files may still be there.",
            "restore it, or remove what is left of it and withdraw it (`python -m bronze_assets derived withdraw`).",
        )
    return described.retention


def due(lake: Lakehouse, table: BronzeTable, now: dt.datetime) -> list[dict[str, Any]]:
    """The evidence of the table's erasures whose `until` has passed and whose files nobody has removed since."""
    rows = lake.rows(table.schema, ERASURE_LOG, where=f"table_name = {sql_literal(table.name)}")
    gone = {row["erasure_id"] for row in rows if row["event"] == VACUUMED}
    return [
        row
        for row in rows
        if row["event"] == "done" and row["erasure_id"] not in gone and row["until"] is not None and row["until"] <= now
    ]
