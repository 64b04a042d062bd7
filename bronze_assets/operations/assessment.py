"""The monthly assessment of a table's data: pandera's own full validation beside our rules, a profile, and drift.

`measure` needs Spark and looks at the latest version of each key. `assess` compares what it found with the assessment
before, and says what is to be looked at.
"""

from __future__ import annotations

import datetime as dt
import enum
from collections.abc import Sequence
from dataclasses import dataclass

from bronze_assets import quality
from bronze_assets.load import current
from bronze_assets.operations import assessment_frames as frames
from bronze_assets.operations.assessment_facts import Measured, RuleVerdict
from bronze_assets.operations.drift import Drift, drift_of
from bronze_assets.quality import KEY, PARSED, Rule
from bronze_assets.table import TIMELY_CHECKS, BronzeTable
from bronze_assets.workbench import Workbench

_AGE = "max_age_days"
_NOT_NULL = "not_nullable"


class Level(enum.StrEnum):
    """How urgent a finding is; from `warning` on, the table's check fails."""

    CRITICAL = "critical"
    WARNING = "warning"
    INFO = "info"


@dataclass(frozen=True)
class Finding:
    """What somebody should look at, in a sentence."""

    level: Level
    column: str
    words: str


@dataclass(frozen=True)
class Assessed:
    """One table, judged: what was measured, how it moved, and what is to be looked at, the most urgent first.

    Attributes:
        since: when it was assessed before; None if it never was.
    """

    measured: Measured
    since: dt.datetime | None
    drift: tuple[Drift, ...]
    findings: tuple[Finding, ...]

    @property
    def passed(self) -> bool:
        """Whether there is nothing but information."""
        return all(finding.level is Level.INFO for finding in self.findings)


def measure(bench: Workbench, table: BronzeTable) -> Measured:
    """What stands in a table now: one pass for our rules and the profile, one for frequent values, and pandera's own.

    Raises:
        LakeError: the table cannot be read.
    """
    at = bench.clock()
    if not bench.lake.exists(table.schema, table.name):
        return Measured(table.schema, table.name, at, None)
    rows = current(bench, table)
    there = [column for column in table.columns if column.name in rows.columns]
    rules = [rule for rule in quality.rules(table) if rule.check != PARSED]
    readable = [rule for rule in rules if not any(column.pii.protected for column in rule.columns)]
    with frames.kept(rows.select(*(column.name for column in there)), bench.settings) as kept:
        moment = bench.clock()
        counts, profiles = frames.counted(kept, table, readable, there, bench.business_date(moment), moment)
        profiles = frames.with_top(kept, profiles, there, counts.rows)
        found = frames.by_pandera(kept, table)
        verdicts = [_verdict(rule, counts.broken[rule.name], found) for rule in readable]
        # Time went by between the two: a row may have come of age in it.
        timely = [one for one, rule in zip(verdicts, readable, strict=True) if rule.check in TIMELY_CHECKS]
        if any(not one.agrees for one in timely):
            moment = bench.clock()
            again, _ = frames.counted(kept, table, readable, [], bench.business_date(moment), moment)
            names = {one.rule for one in timely}
            verdicts = [
                _verdict(rule, again.broken[rule.name], found) if rule.name in names and not one.agrees else one
                for one, rule in zip(verdicts, readable, strict=True)
            ]
    said = {pair for rule in readable for pair in _in_pandera(rule)}
    return Measured(
        table.schema,
        table.name,
        at,
        counts.rows,
        rules=tuple(verdicts),
        unjudged=tuple(rule.name for rule in rules if rule not in readable),
        only_pandera=tuple(sorted(found - said)),
        columns=tuple(profiles),
    )


def assess(measured: Measured, before: Measured | None) -> Assessed:
    """Judge a table: its rules, and how it moved since the assessment before."""
    moved = drift_of(measured, before)
    findings = [*_of_rules(measured), *(Finding(Level(one.level), one.column, one.words) for one in moved if one.level)]
    if measured.rows is None:
        findings.append(Finding(Level.INFO, "", "The table has never been loaded."))
    order = list(Level)
    return Assessed(
        measured,
        before.at if before is not None else None,
        moved,
        tuple(sorted(findings, key=lambda finding: order.index(finding.level))),
    )


def _in_pandera(rule: Rule) -> set[tuple[str, str]]:
    """Column and check of pandera that say the same as a rule."""
    if rule.check != KEY:
        return {(column.name, rule.check) for column in rule.columns}
    checks = {(column.name, name) for column in rule.columns for name in column.checks if name not in TIMELY_CHECKS}
    return checks | {(column.name, _NOT_NULL) for column in rule.columns}


def _verdict(rule: Rule, broken: int, found: set[tuple[str, str]]) -> RuleVerdict:
    holds = not found & _in_pandera(rule)
    return RuleVerdict(
        rule.name,
        tuple(column.name for column in rule.columns),
        rule.expected,
        str(rule.impact),
        broken,
        holds,
        agrees=holds == (broken == 0),
        ages=rule.check == _AGE,
    )


def _of_rules(measured: Measured) -> Sequence[Finding]:
    findings = []
    for one in measured.rules:
        about = ", ".join(one.columns)
        if not one.agrees:
            theirs, ours = "held" if one.pandera else "broken", f"{one.broken:,} rows that break it"
            words = f"Rule `{one.rule}`: pandera finds it {theirs}, the platform {ours}. This is a defect: report it."
            findings.append(Finding(Level.CRITICAL, about, words))
        if one.broken and one.ages:
            words = f"{one.broken:,} rows have come of age: expected is `{one.expected}`."
            findings.append(Finding(Level.INFO, about, words))
        elif one.broken:
            words = f"{_rows(one.broken)} rule `{one.rule}`: expected is `{one.expected}` ({one.impact})."
            findings.append(Finding(Level.WARNING, about, words))
    for column, check in measured.only_pandera:
        words = f"Pandera finds `{check}` broken, of which no rule speaks: the table is not as its model says."
        findings.append(Finding(Level.CRITICAL, column, words))
    return findings


def _rows(count: int) -> str:
    return "1 row breaks" if count == 1 else f"{count:,} rows break"
