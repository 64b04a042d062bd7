"""Dagster's freshness policies of the tables."""

from __future__ import annotations

import dagster as dg

from bronze_assets.table import BronzeTable
from bronze_assets.thresholds import freshness_window


def freshness_policy(table: BronzeTable) -> dg.FreshnessPolicy:
    """Dagster's freshness policy for a table."""
    warn, fail = freshness_window(table)
    return dg.FreshnessPolicy.time_window(fail_window=fail, warn_window=warn)
