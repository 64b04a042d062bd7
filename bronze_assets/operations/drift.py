"""How a table's data has moved since the assessment before: rows, NULLs, means, and shares of frequent values."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

from bronze_assets.operations.assessment_facts import Measured, Profile

MAX_NULL_CHANGE: Final = 0.05
"""Of the share of NULLs, up or down."""
MAX_MEAN_SHIFT: Final = 0.5
"""In standard deviations of before: a medium effect (Cohen, Statistical Power Analysis, 1988, ch. 2)."""
PSI: Final = (0.1, 0.25)
"""Population stability index from which a change is moderate, and significant (Siddiqi, Credit Risk Scorecards, 2006;
the bounds go back to Lewis, An Introduction to Credit Scoring, 1994)."""
ENOUGH_ROWS: Final = 1_000
"""Rows below which PSI and means are not judged: these bounds say nothing of few rows (Yurdakul and Naranjo,
Statistical properties of the population stability index, 2020)."""
MAX_FEWER_ROWS: Final = 0.1
MAX_MORE_ROWS: Final = 0.5
"""Change of the number of keys, as shares."""
_LEAST_SHARE: Final = 1e-4
"""Stands for a share of 0, which has no logarithm."""


@dataclass(frozen=True)
class Drift:
    """One number that was compared.

    Attributes:
        column: empty for the table as such.
        kind: `rows`, `nulls`, `mean` or `psi`.
        value: the change: a share, a difference of shares, standard deviations, or the index; None where it cannot be
            told in those.
        level: `warning`, `info`, or empty where it is within its bound.
        words: a sentence.
    """

    column: str
    kind: str
    value: float | None
    level: str
    words: str


def drift_of(now: Measured, before: Measured | None) -> tuple[Drift, ...]:
    """All that can be compared; nothing without an assessment before, or of a table without rows."""
    if before is None or not now.rows or not before.rows:
        gone = before is not None and bool(before.rows) and now.rows == 0
        return (Drift("", "rows", -1.0, "warning", "All rows are gone."),) if gone else ()
    change = now.rows / before.rows - 1
    far = change < -MAX_FEWER_ROWS or change > MAX_MORE_ROWS
    words = f"{now.rows:,} rows, {before.rows:,} before ({change:+.1%})."
    found = [Drift("", "rows", change, "warning" if far else "", words)]
    earlier = {profile.column: profile for profile in before.columns}
    for profile in now.columns:
        other = earlier.get(profile.column)
        if other is None or (other.type, other.pii) != (profile.type, profile.pii):
            continue
        found.append(_nulls(profile, other, now.rows, before.rows))
        # The keys of a table that grows move by themselves.
        if not profile.key and min(now.rows - profile.nulls, before.rows - other.nulls) >= ENOUGH_ROWS:
            found += _mean(profile, other)
            # New days are no change of what the days hold.
            if profile.top and other.top and profile.type not in ("date", "timestamp"):
                found.append(_psi(profile, other, now.rows, before.rows))
    return tuple(found)


def psi(before: dict[str, int], now: dict[str, int], rows_before: int, rows_now: int, *, both: set[str]) -> float:
    """The population stability index over the values of `both`, and all others together.

    Args:
        before, now: value → rows.
        rows_before, rows_now: rows with any value.
    """
    shares = [(before.get(value, 0) / rows_before, now.get(value, 0) / rows_now) for value in both]
    others = 1 - sum(old for old, _ in shares), 1 - sum(new for _, new in shares)
    total = 0.0
    for old, new in [*shares, others]:
        expected, actual = max(old, _LEAST_SHARE), max(new, _LEAST_SHARE)
        total += (actual - expected) * math.log(actual / expected)
    return total


def _nulls(now: Profile, before: Profile, rows: int, rows_before: int) -> Drift:
    share, earlier = now.nulls / rows, before.nulls / rows_before
    change = share - earlier
    level = "warning" if abs(change) >= MAX_NULL_CHANGE else ""
    return Drift(now.column, "nulls", change, level, f"`{now.column}` is NULL in {share:.1%}, {earlier:.1%} before.")


def _mean(now: Profile, before: Profile) -> list[Drift]:
    if now.mean is None or before.mean is None or before.deviation is None:
        return []
    if before.deviation == 0:
        if now.mean == before.mean and not now.deviation:
            return []
        return [
            Drift(now.column, "mean", None, "warning", f"`{now.column}` is no longer {before.mean:,.6g} everywhere.")
        ]
    words = f"The mean of `{now.column}` is {now.mean:,.6g}, {before.mean:,.6g} before"
    shift = (now.mean - before.mean) / before.deviation
    level = "warning" if abs(shift) >= MAX_MEAN_SHIFT else ""
    return [Drift(now.column, "mean", shift, level, f"{words} ({shift:+.2f} standard deviations).")]


def _psi(now: Profile, before: Profile, rows: int, rows_before: int) -> Drift:
    new, old = dict(now.top), dict(before.top)
    # What one list lacks is known to be 0 only where that list has all values; else it is of the others on both sides.
    both = {v for v in new.keys() | old.keys() if (v in new or now.top_is_all) and (v in old or before.top_is_all)}
    index = psi(old, new, rows_before - before.nulls, rows - now.nulls, both=both)
    moderate, significant = PSI
    level = "warning" if index >= significant else "info" if index >= moderate else ""
    words = f"The values of `{now.column}` are spread differently (PSI {index:.2f})."
    if not level:
        words = f"The values of `{now.column}` are spread as before (PSI {index:.2f})."
    return Drift(now.column, "psi", index, level, words)
