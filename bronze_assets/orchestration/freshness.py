"""How old a table may get: the KPI table's thresholds, stated once."""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping

import dagster as dg

from bronze_assets.table import BronzeTable, Cadence

WINDOWS: Mapping[Cadence, tuple[dt.timedelta, dt.timedelta]] = {
    Cadence.STREAMING: (dt.timedelta(minutes=30), dt.timedelta(minutes=60)),
    Cadence.HOURLY: (dt.timedelta(minutes=90), dt.timedelta(hours=3)),
    Cadence.DAILY: (dt.timedelta(hours=26), dt.timedelta(hours=50)),
}
"""Time since the last load after which a table warns, and fails."""


FILE_WINDOW = (dt.timedelta(minutes=15), dt.timedelta(minutes=60))
"""Likewise for a feed of files: time since the last one was loaded."""


def freshness_policy(table: BronzeTable) -> dg.FreshnessPolicy:
    """Dagster's freshness policy for a table."""
    warn, fail = WINDOWS[table.cadence] if table.files is None else FILE_WINDOW
    return dg.FreshnessPolicy.time_window(fail_window=fail, warn_window=warn)
