"""How old a table may get and how far behind a capture may be: numbers that Dagster's policies and the KPIs share.

What a single load is judged by stands in `audit`.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping
from typing import Final

from bronze_assets.table import BronzeTable, Cadence

WINDOWS: Final[Mapping[Cadence, tuple[dt.timedelta, dt.timedelta]]] = {
    Cadence.STREAMING: (dt.timedelta(minutes=30), dt.timedelta(minutes=60)),
    Cadence.HOURLY: (dt.timedelta(minutes=90), dt.timedelta(hours=3)),
    Cadence.DAILY: (dt.timedelta(hours=26), dt.timedelta(hours=50)),
}
"""Time since the last load after which a table warns, and fails."""

FILE_WINDOW: Final = (dt.timedelta(minutes=15), dt.timedelta(minutes=60))
"""Likewise for a feed of files: time since the last one was loaded."""

MAX_LAG_BYTES: Final = 2**30
MAX_LAG_SECONDS: Final = 900.0
"""How far a capture may be behind its source."""


def freshness_window(table: BronzeTable) -> tuple[dt.timedelta, dt.timedelta]:
    """Time since its last load after which the table warns, and fails."""
    return WINDOWS[table.cadence] if table.files is None else FILE_WINDOW
