"""The KPIs of the tables of a schema: what is known of each, judged against its threshold and target.

`facts_of_lake` reads batch log, audit log, ledger, quarantine and Delta; what only Dagster knows comes in as `Known`.
`judge` makes a report of both. What is not known is None and says so: no number is made up. Nothing here needs Spark.
"""

from __future__ import annotations

import dataclasses
import datetime as dt
import enum
import json
import math
import os
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from bronze_assets import audit
from bronze_assets.audit import AUDIT_LOG, LoadRecord
from bronze_assets.batches import BATCHES
from bronze_assets.errors import LakeError
from bronze_assets.lakehouse import OPEN, Lakehouse
from bronze_assets.operations import kpi_page
from bronze_assets.page import shown_bytes
from bronze_assets.settings import CaptureMode
from bronze_assets.sources.ledger import LEDGER
from bronze_assets.storage import sql_literal
from bronze_assets.table import BronzeTable, Cadence
from bronze_assets.thresholds import MAX_LAG_SECONDS, freshness_window

PERIOD: Final = dt.timedelta(days=30)
"""Of availability and of the charts."""
TREND: Final = dt.timedelta(days=7)
"""A trend compares the last seven days with the seven before."""
MOST_POINTS: Final = 40
"""Loads up to which a chart has a point for each; above, one for each day."""

FRESHNESS_TARGET: Final[Mapping[Cadence, dt.timedelta]] = {
    Cadence.STREAMING: dt.timedelta(minutes=15),
    Cadence.HOURLY: dt.timedelta(hours=1),
    Cadence.DAILY: dt.timedelta(days=1),
}
MAX_LATENCY_SECONDS: Final = 300.0
MAX_TIME_TO_INSIGHT_SECONDS: Final = 1800.0
TARGET_SCORE: Final = 95.0
MIN_AVAILABILITY: Final = 0.999
MIN_ROWS_PER_HOUR: Final = 1_000_000.0
ENOUGH_ROWS: Final = 10_000
"""Rows from which the pace of a load tells something: below, most of its time is that of any load."""
MAX_COST_PER_GB: Final = 0.10
MIN_COMPLIANCE: Final = 100.0
QUARANTINE_AGES: Final = (dt.timedelta(days=7), dt.timedelta(days=30))
"""Age of the oldest open row in quarantine from which somebody is to look, and from which it has been forgotten."""

_DAY = dt.timedelta(days=1)
_LATE = dt.timedelta(seconds=audit.MAX_PROCESSING_SECONDS)


class State(enum.StrEnum):
    """How a KPI stands."""

    OK = "ok"
    WARNING = "warning"
    CRITICAL = "critical"
    UNKNOWN = "unknown"

    @property
    def breaches(self) -> bool:
        """Whether a threshold is broken."""
        return self in (State.WARNING, State.CRITICAL)


_WORST_FIRST: Final = (State.CRITICAL, State.WARNING, State.OK, State.UNKNOWN)


class Unit(enum.StrEnum):
    """What a KPI is measured in. A share is 0 to 1, a score and a percentage 0 to 100."""

    SECONDS = "seconds"
    SHARE = "share"
    SCORE = "score"
    PERCENT = "percent"
    COUNT = "count"
    PER_HOUR = "rows an hour"
    PER_GB = "per GB"


@dataclass(frozen=True)
class Kind:
    """A KPI as such; `name` is its check, and its section in docs/runbook.md.

    Attributes:
        least: whether it must not fall below its threshold; else it must not rise above.
        level: of a breach: info, warning or critical.
    """

    name: str
    title: str
    unit: Unit
    level: str
    description: str
    least: bool = False


KINDS: Final[Mapping[str, Kind]] = {
    kind.name: kind
    for kind in (
        Kind("freshness", "Freshness", Unit.SECONDS, "critical", "Time since the last load."),
        Kind("error_rate", "Error rate", Unit.SHARE, "critical", "Rows quarantined, of those that the last load read."),
        Kind("processing_time", "Processing time", Unit.SECONDS, "critical", "How long the last load took."),
        Kind("failed_checks", "Failed checks", Unit.COUNT, "critical", "Checks that the table's last load failed."),
        Kind("backlog", "Backlog", Unit.SECONDS, "critical", "How long the oldest file has waited to be loaded."),
        Kind("capture_lag", "Capture lag", Unit.SECONDS, "critical", "Since all changes were last known to be files."),
        Kind("compliance", "Compliance", Unit.PERCENT, "critical", "Controls over personal data that hold.", True),
        Kind("quality_score", "Quality score", Unit.SCORE, "warning", "Average score of the last load's rows.", True),
        Kind("quarantine", "Quarantine", Unit.SECONDS, "warning", "Age of the oldest open row in quarantine."),
        Kind("availability", "Availability", Unit.SHARE, "warning", "Partitions loaded in time, over 30 days.", True),
        Kind("latency", "Feed latency", Unit.SECONDS, "warning", "Commit or arrival to loaded, 95 % of the rows."),
        Kind("time_to_insight", "Time to insight", Unit.SECONDS, "warning", "Commit or arrival to loaded, all rows."),
        Kind("throughput", "Throughput", Unit.PER_HOUR, "warning", "Rows read in an hour of loading.", True),
        Kind("cost", "Cost", Unit.PER_GB, "warning", "What the last load cost, by data written."),
        Kind("storage_growth", "Storage growth", Unit.SHARE, "info", "Growth of the table within a day."),
    )
}
"""KPI kinds by name, the most urgent first."""


@dataclass(frozen=True)
class Kpi:
    """One KPI of one table.

    Attributes:
        value: in the kind's unit; None where it is not known.
        warning, critical: from where on it is so; None where there is no such level.
        target: what it should be.
        reason: what the state follows from, or why nothing is known; a sentence.
    """

    name: str
    value: float | None
    state: State
    reason: str
    warning: float | None = None
    critical: float | None = None
    target: float | None = None

    @property
    def kind(self) -> Kind:
        """Its kind."""
        return KINDS[self.name]

    @property
    def on_target(self) -> bool | None:
        """Whether it reaches its target; None where it has none, or is not known."""
        if self.value is None or self.target is None:
            return None
        return self.value >= self.target if self.kind.least else self.value <= self.target

    @property
    def threshold(self) -> float | None:
        """The threshold that it broke, or the first that it would break."""
        if self.state is State.CRITICAL and self.critical is not None:
            return self.critical
        return self.critical if self.warning is None else self.warning

    def told(self) -> dict[str, Any]:
        """For JSON: the fields, and unit, level and numbers in words."""
        kind = self.kind
        return dataclasses.asdict(self) | {
            "title": kind.title,
            "unit": kind.unit.value,
            "level": kind.level,
            "least": kind.least,
            "on_target": self.on_target,
            "shown": shown(self.value, kind.unit),
            "threshold": self.threshold,
            "threshold_shown": shown(self.threshold, kind.unit),
            "target_shown": shown(self.target, kind.unit),
        }


@dataclass(frozen=True)
class Load:
    """What one load did, as far as the KPIs want it. Counts are rows, times seconds.

    Attributes:
        score: average of the rows read; None for an empty batch.
    """

    partition: str
    ended: dt.datetime
    seconds: float
    read: int
    quarantined: int
    score: float | None
    table_rows: int | None = None
    table_bytes: int | None = None
    latency_p95: float | None = None
    latency_max: float | None = None
    backlog_files: int | None = None
    backlog_seconds: float | None = None

    @property
    def error_rate(self) -> float:
        """Share of the rows read that were quarantined; 0 for an empty batch."""
        return self.quarantined / self.read if self.read else 0.0


@dataclass(frozen=True)
class Facts:
    """What is known of one table, wherever from.

    Attributes:
        loads: that ended within the period, oldest first.
        first_load, last_load: whenever they were.
        done: partition → when its first load ended, of the period; None where nobody tells.
        arrived: partition → when its first file was written, of the period; None for a table without files.
        open_rows, oldest_open: of the quarantine. `open_rows` is None where it cannot be counted from here.
        waiting_files, waiting_since: that the ledger has seen, and the loads have not taken.
        failed_attempts, last_failure: within the last day; the last one's message if no load has ended since.
        unknown: why the lake is not known from here; empty where it is.
    """

    loads: tuple[Load, ...] = ()
    first_load: dt.datetime | None = None
    last_load: dt.datetime | None = None
    done: Mapping[str, dt.datetime] | None = None
    arrived: Mapping[str, dt.datetime] | None = None
    open_rows: int | None = None
    oldest_open: dt.datetime | None = None
    waiting_files: int | None = None
    waiting_since: dt.datetime | None = None
    rows: int | None = None
    bytes: int | None = None
    version: int | None = None
    failed_attempts: int | None = None
    last_failure: str | None = None
    unknown: str = ""


@dataclass(frozen=True)
class Known:
    """What only Dagster and the home know of a table; None and empty where they do not.

    Attributes:
        materialised: the load that its last materialisation tells of, also one for which nothing was outstanding.
        freshness: what Dagster's policy says, e.g. `PASS`.
        failed_checks: name → whether it is an error and not a warning; None where no check was ever evaluated.
        cost_per_gb, currency: of the last load that has a bill.
        captured_at: when all committed changes were last known to be in files.
        capture_failed: whether the slot has been found to be too far behind since.
        compliance: score of the last report over personal data, in percent.
        compliance_at: when that was made.
    """

    materialised: Load | None = None
    freshness: str | None = None
    failed_checks: Mapping[str, bool] | None = None
    cost_per_gb: float | None = None
    currency: str | None = None
    captured_at: dt.datetime | None = None
    capture_failed: bool = False
    compliance: float | None = None
    compliance_at: dt.datetime | None = None


@dataclass(frozen=True)
class Point:
    """A load, or the loads of a day: average score, seconds of the slowest, bytes of the table after the last."""

    at: dt.datetime
    score: float | None
    seconds: float
    bytes: int | None


@dataclass(frozen=True)
class TableKpis:
    """The KPIs of one table.

    Attributes:
        kpis: one of each kind, those that break a threshold first.
        points: of the charts, over the period.
        score_change: of the average score, the last seven days against the seven before; None without both.
        seconds_change: likewise of the average time of a load, as a share.
    """

    table: str
    cadence: str
    last_load: dt.datetime | None
    rows: int | None
    bytes: int | None
    version: int | None
    open_rows: int | None
    oldest_open: dt.datetime | None
    failed_attempts: int | None
    last_failure: str | None
    freshness_policy: str | None
    kpis: tuple[Kpi, ...]
    points: tuple[Point, ...]
    score_change: float | None
    seconds_change: float | None

    @property
    def state(self) -> State:
        """The worst of its KPIs; unknown where none is known."""
        states = {kpi.state for kpi in self.kpis}
        return next(state for state in _WORST_FIRST if state in states)

    def kpi(self, name: str) -> Kpi:
        """The KPI of that kind."""
        return next(kpi for kpi in self.kpis if kpi.name == name)

    @property
    def _urgency(self) -> tuple[int, int, int, str]:
        states = [kpi.state for kpi in self.kpis]
        # What was never loaded is looked at before what is well.
        loaded = self.last_load is not None
        return -states.count(State.CRITICAL), -states.count(State.WARNING), int(loaded), self.table


@dataclass(frozen=True)
class KpiReport:
    """The KPIs of a schema.

    Attributes:
        at: when they were taken, UTC.
        tables: the worst first.
        limits: what cannot be known from where this was made; empty where everything can.
    """

    schema: str
    at: dt.datetime
    tables: tuple[TableKpis, ...]
    limits: str = ""

    @property
    def troubled(self) -> tuple[TableKpis, ...]:
        """The tables that break a threshold, the worst first."""
        return tuple(table for table in self.tables if table.state.breaches)

    @property
    def headline(self) -> str:
        """How the schema stands, in a sentence."""
        count, never = len(self.troubled), sum(table.last_load is None for table in self.tables)
        if count:
            return f"{count} of {len(self.tables)} tables {'needs' if count == 1 else 'need'} attention."
        if never:
            return f"{never} of {len(self.tables)} tables {'has' if never == 1 else 'have'} never been loaded."
        return f"All {len(self.tables)} tables are within their thresholds."

    def breaches(self, name: str) -> list[tuple[str, Kpi]]:
        """The tables that break the thresholds of a KPI, critical ones first."""
        found = [(table.table, table.kpi(name)) for table in self.troubled if table.kpi(name).state.breaches]
        return sorted(found, key=lambda one: one[1].state is not State.CRITICAL)

    def lines(self) -> list[str]:
        """The headline and a line for each table that breaks a threshold, for a terminal."""
        lines = [f"{self.schema}: {self.headline}"]
        for table in self.troubled:
            worst = [f"{kpi.kind.title.lower()} {shown(kpi.value, kpi.kind.unit)}" for kpi in _breaking(table.kpis)]
            lines.append(f"  {table.state.value.upper():<8}  {table.table}: {', '.join(worst)}")
        return lines

    def to_json(self) -> str:
        """As JSON: the fields of this class, the headline, each KPI's numbers in words too, times in ISO 8601."""
        tables = [
            dataclasses.asdict(table) | {"state": table.state, "kpis": [kpi.told() for kpi in table.kpis]}
            for table in self.tables
        ]
        told = {
            "schema": self.schema,
            "at": self.at,
            "headline": self.headline,
            "limits": self.limits,
            "troubled": len(self.troubled),
            "tables": tables,
        }
        return json.dumps(told, ensure_ascii=False, indent=1, default=lambda moment: moment.isoformat()) + "\n"

    def to_html(self, *, runbook: str = "docs/runbook.md", others: Sequence[str] = ()) -> str:
        """As one page that needs nothing else.

        Args:
            runbook: address of the runbook; each KPI has a section of its name there.
            others: schemas whose pages lie beside this one.
        """
        return kpi_page.page(json.loads(self.to_json()), runbook=runbook, others=others)

    def write(self, folder: Path, *, runbook: str = "docs/runbook.md", others: Sequence[str] = ()) -> Path:
        """Write `kpi_<schema>.html` and `.json` into a folder, which is made when missing; a reader sees the old or the
        new ones, never a part.

        Returns:
            The page's path.

        Raises:
            LakeError: they cannot be written.
        """
        page = folder / page_name(self.schema)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            for path, text in (
                (page.with_suffix(".json"), self.to_json()),
                (page, self.to_html(runbook=runbook, others=others)),
            ):
                unfinished = path.with_name(f".{path.name}.{os.getpid()}")
                unfinished.write_text(text, encoding="utf-8")
                unfinished.replace(path)
        except OSError as error:
            raise LakeError(
                f"{folder} cannot be written ({error.strerror}).", "give the process access, or free space there."
            ) from None
        return page


def page_name(schema: str) -> str:
    """The file name of a schema's page."""
    return f"kpi_{schema}.html"


def loaded_by_files(table: BronzeTable, capture: CaptureMode) -> bool:
    """Whether the table is loaded when files arrive, and not by a schedule."""
    return table.files is not None or (capture is not CaptureMode.OFF and table.feed is not None)


def judge(
    schema: str,
    tables: Sequence[BronzeTable],
    facts: Mapping[str, Facts],
    known: Mapping[str, Known],
    now: dt.datetime,
    *,
    start_date: dt.date,
    capture: CaptureMode = CaptureMode.OFF,
    limits: str = "",
) -> KpiReport:
    """The report over the tables of a schema.

    Args:
        facts, known: by table name; a missing one is that of a table of which nothing is known.
        start_date: the first partition.
        capture: how changes of a database come.
        limits: see `KpiReport`.
    """
    found = [
        _judged(table, facts.get(table.name, Facts()), known.get(table.name, Known()), now, start_date, capture)
        for table in tables
    ]
    return KpiReport(schema, now, tuple(sorted(found, key=lambda one: one._urgency)), limits)


def _judged(
    table: BronzeTable, facts: Facts, known: Known, now: dt.datetime, start_date: dt.date, capture: CaptureMode
) -> TableKpis:
    kpis = _Judge(table, facts, known, now, start_date, capture).kpis()
    # Stable: within a state, the order of KINDS.
    ordered = sorted(kpis, key=lambda kpi: _WORST_FIRST.index(kpi.state))
    last = known.materialised
    return TableKpis(
        table=table.name,
        cadence=table.cadence.value,
        last_load=_latest(facts, known),
        rows=facts.rows if facts.rows is not None else last.table_rows if last else None,
        bytes=_bytes(facts, known),
        version=facts.version,
        open_rows=facts.open_rows,
        oldest_open=facts.oldest_open,
        failed_attempts=facts.failed_attempts,
        last_failure=facts.last_failure,
        freshness_policy=known.freshness,
        kpis=tuple(ordered),
        points=_points(facts.loads),
        score_change=_change(facts.loads, now, _mean_score, lambda new, old: new - old),
        seconds_change=_change(facts.loads, now, _mean_seconds, lambda new, old: new / old - 1 if old else None),
    )


def _latest(facts: Facts, known: Known) -> dt.datetime | None:
    moments = [facts.last_load, known.materialised.ended if known.materialised else None]
    return max((moment for moment in moments if moment is not None), default=None)


def _bytes(facts: Facts, known: Known) -> int | None:
    return facts.bytes if facts.bytes is not None or known.materialised is None else known.materialised.table_bytes


@dataclass(frozen=True)
class _Judge:
    """Judges one table."""

    table: BronzeTable
    facts: Facts
    known: Known
    now: dt.datetime
    start_date: dt.date
    capture: CaptureMode

    def kpis(self) -> list[Kpi]:
        return [getattr(self, f"_{name}")() for name in KINDS]

    @property
    def _last(self) -> Load | None:
        """The last load that read rows: one without says nothing of quality and pace."""
        return next((load for load in reversed(self.facts.loads) if load.read), None)

    def _freshness(self) -> Kpi:
        warn, fail = freshness_window(self.table)
        target = FRESHNESS_TARGET[self.table.cadence]
        limits = warn.total_seconds(), fail.total_seconds(), target.total_seconds()
        last = _latest(self.facts, self.known)
        if last is None:
            return _kpi("freshness", None, "It has never been loaded, so far as is known here.", *limits)
        age = max(0.0, (self.now - last).total_seconds())
        failure = f" The last attempt failed: {self.facts.last_failure}" if self.facts.last_failure else ""
        return _kpi("freshness", age, f"Last loaded at {last:%F %H:%M} UTC.{failure}", *limits)

    def _error_rate(self) -> Kpi:
        most = audit.max_error_rate(self.table)
        if self._last is None:
            return self._not_loaded("error_rate", critical=most)
        reason = f"{self._last.quarantined:,} of {self._last.read:,} rows were quarantined by the last load."
        return _kpi("error_rate", self._last.error_rate, reason, critical=most)

    def _processing_time(self) -> Kpi:
        most = audit.MAX_PROCESSING_SECONDS
        if self._last is None:
            return self._not_loaded("processing_time", critical=most)
        return _kpi("processing_time", self._last.seconds, f"For {self._last.read:,} rows.", critical=most)

    def _quality_score(self) -> Kpi:
        limits = {"warning": audit.MIN_AVERAGE_SCORE, "target": TARGET_SCORE}
        if self._last is None or self._last.score is None:
            return self._not_loaded("quality_score", **limits)
        return _kpi("quality_score", self._last.score, f"Of {self._last.read:,} rows read.", **limits)

    def _throughput(self) -> Kpi:
        limits = {"warning": MIN_ROWS_PER_HOUR, "target": MIN_ROWS_PER_HOUR}
        enough = [load for load in self.facts.loads if load.read >= ENOUGH_ROWS and load.seconds > 0]
        if not enough:
            none = f"No load of the last {PERIOD.days} days read {ENOUGH_ROWS:,} rows: smaller ones do not tell."
            return _kpi("throughput", None, none, **limits)
        load = enough[-1]
        reason = f"{load.read:,} rows in {shown(load.seconds, Unit.SECONDS)}, the last load of {ENOUGH_ROWS:,} or more."
        return _kpi("throughput", load.read / load.seconds * 3600, reason, **limits)

    def _latency(self) -> Kpi:
        return self._from_source("latency", lambda load: load.latency_p95, MAX_LATENCY_SECONDS)

    def _time_to_insight(self) -> Kpi:
        return self._from_source("time_to_insight", lambda load: load.latency_max, MAX_TIME_TO_INSIGHT_SECONDS)

    def _from_source(self, name: str, of: Callable[[Load], float | None], most: float) -> Kpi:
        for load in reversed(self.facts.loads):
            value = of(load)
            if value is not None:
                return _kpi(name, value, f"By the load that ended at {load.ended:%F %H:%M} UTC.", warning=most)
        reason = (
            f"No files were loaded in the last {PERIOD.days} days."
            if loaded_by_files(self.table, self.capture)
            else "Does not apply: a snapshot does not tell when a row was committed."
        )
        return _kpi(name, None, reason, warning=most)

    def _storage_growth(self) -> Kpi:
        most = audit.MAX_STORAGE_GROWTH
        size = _bytes(self.facts, self.known)
        before = [one for one in self.facts.loads if one.ended <= self.now - _DAY and one.table_bytes]
        if size is None or not before:
            return _kpi("storage_growth", None, "Nothing was loaded a day ago to compare with.", warning=most)
        # Between two loads a table does not change: what the last one left is what was there a day ago.
        then = before[-1].table_bytes or 0
        reason = f"From {shown_bytes(then)} to {shown_bytes(size)} within a day."
        return _kpi("storage_growth", size / then - 1, reason, warning=most)

    def _quarantine(self) -> Kpi:
        look, forgotten = QUARANTINE_AGES
        limits = look.total_seconds(), forgotten.total_seconds(), 0.0
        if self.facts.open_rows is None:
            return _kpi("quarantine", None, self.facts.unknown or "There is no quarantine yet.", *limits)
        oldest = self.facts.oldest_open
        if not self.facts.open_rows or oldest is None:
            return _kpi("quarantine", 0.0, "No row is open.", *limits)
        age = (self.now - oldest).total_seconds()
        count = "1 row is" if self.facts.open_rows == 1 else f"{self.facts.open_rows:,} rows are"
        return _kpi("quarantine", age, f"{count} open, the oldest since {oldest:%F}.", *limits)

    def _failed_checks(self) -> Kpi:
        failed = self.known.failed_checks
        if failed is None:
            return _kpi("failed_checks", None, "Dagster has not evaluated any check.", 0.0, 0.0, 0.0)
        if not failed:
            return _kpi("failed_checks", 0.0, "Every check passed.", 0.0, 0.0, 0.0)
        state = State.CRITICAL if any(failed.values()) else State.WARNING
        # Errors first.
        names = sorted(failed, key=lambda name: (not failed[name], name))
        more = f" and {len(names) - 5} more" if len(names) > 5 else ""
        return Kpi("failed_checks", float(len(failed)), state, f"{', '.join(names[:5])}{more}.", 0.0, 0.0, 0.0)

    def _backlog(self) -> Kpi:
        most = audit.MAX_BACKLOG_SECONDS
        if not loaded_by_files(self.table, self.capture):
            return _kpi("backlog", None, "Does not apply: the table is not loaded from files.", critical=most)
        found: list[tuple[int, dt.datetime]] = []
        if self.facts.waiting_files and self.facts.waiting_since:
            found.append((self.facts.waiting_files, self.facts.waiting_since))
        told = [load for load in (*self.facts.loads[-1:], self.known.materialised) if load is not None]
        told = sorted((load for load in told if load.backlog_files is not None), key=lambda load: load.ended)
        if told and told[-1].backlog_files and told[-1].backlog_seconds is not None:
            # They wait until the next load, which would have told otherwise.
            found.append((told[-1].backlog_files, told[-1].ended - dt.timedelta(seconds=told[-1].backlog_seconds)))
        if found:
            count, since = min(found, key=lambda one: one[1])
            reason = (
                f"{'1 file waits' if count == 1 else f'{count:,} files wait'}, the oldest since {since:%F %H:%M} UTC."
            )
            return _kpi("backlog", (self.now - since).total_seconds(), reason, critical=most, target=0.0)
        if told or self.facts.waiting_files is not None:
            return _kpi("backlog", 0.0, "No file is known to wait.", critical=most, target=0.0)
        return _kpi("backlog", None, "No file of it has been seen yet.", critical=most, target=0.0)

    def _capture_lag(self) -> Kpi:
        captured = self.table.feed is not None and self.table.feed.captured
        if not captured or self.capture is CaptureMode.OFF:
            return _kpi("capture_lag", None, "Does not apply: its changes are not captured.", critical=MAX_LAG_SECONDS)
        if self.capture is CaptureMode.EXTERNAL:
            reason = "A connector of somebody else's captures; its own monitoring tells."
            return _kpi("capture_lag", None, reason, critical=MAX_LAG_SECONDS)
        at = self.known.captured_at
        if at is None:
            return _kpi("capture_lag", None, "Nothing has been captured yet.", critical=MAX_LAG_SECONDS)
        lag = max(0.0, (self.now - at).total_seconds())
        reason = f"All changes until {at:%F %H:%M} UTC are in files."
        if self.known.capture_failed:
            reason = f"The slot keeps more of the source's log than it may. {reason}"
            return Kpi("capture_lag", lag, State.CRITICAL, reason, critical=MAX_LAG_SECONDS)
        return _kpi("capture_lag", lag, reason, critical=MAX_LAG_SECONDS)

    def _compliance(self) -> Kpi:
        limits = {"critical": MIN_COMPLIANCE, "target": MIN_COMPLIANCE}
        if not self.table.has_personal_data:
            return _kpi("compliance", None, "Does not apply: it holds no personal data.", **limits)
        at = self.known.compliance_at
        if self.known.compliance is None or at is None:
            reason = "No compliance report has been made here: run the job `compliance_report`."
            return _kpi("compliance", None, reason, **limits)
        return _kpi(
            "compliance", self.known.compliance, f"By the report of {at:%F %H:%M} UTC, of all tables.", **limits
        )

    def _cost(self) -> Kpi:
        if self.known.cost_per_gb is None:
            return _kpi("cost", None, "No load has a bill: that takes a cluster, and prices.", warning=MAX_COST_PER_GB)
        return _kpi("cost", self.known.cost_per_gb, f"In {self.known.currency or '?'}.", warning=MAX_COST_PER_GB)

    def _availability(self) -> Kpi:
        limits = {"warning": MIN_AVAILABILITY, "target": MIN_AVAILABILITY}
        if self.facts.done is None:
            return _kpi("availability", None, self.facts.unknown or "Nobody tells which loads were done.", **limits)
        counted = availability(self.table, self.facts, self.now, self.start_date, self.capture)
        if counted is None:
            return _kpi("availability", None, "No partition has fallen due since the first load.", **limits)
        met, due = counted
        return _kpi("availability", met / due, f"{met:,} of {due:,} partitions were loaded in time.", **limits)

    def _not_loaded(self, name: str, **limits: float) -> Kpi:
        return _kpi(name, None, f"No load of the last {PERIOD.days} days read any row.", **limits)


def availability(
    table: BronzeTable, facts: Facts, now: dt.datetime, start_date: dt.date, capture: CaptureMode
) -> tuple[int, int] | None:
    """Partitions loaded in time, and partitions due, over the last 30 days; None where none was due.

    A partition's window is its day or hour of arrival, UTC. It is due when its window and the hour after have passed
    (60 minutes are what a load may take, and one may begin in the window's last moment), and began neither before the
    last 30 days, nor `BRONZE_START_DATE`, nor the window of the table's first load. It was loaded in time if the first
    batch of it was done by then.

    Of a table that is loaded when files arrive, only the partitions that files arrived in are due; and where its first
    file was written after the window, as in a backfill, the hour counts from there. A table that was down for a part of
    a window and came back within it counts as available: `freshness` tells of that. A failed attempt does not count,
    where another was in time.
    """
    if facts.done is None or facts.first_load is None:
        return None
    hourly = table.cadence is Cadence.HOURLY
    step = dt.timedelta(hours=1) if hourly else _DAY
    pattern = "%Y-%m-%d-%H:00" if hourly else "%Y-%m-%d"
    first = max(now - PERIOD, facts.first_load - step, dt.datetime.combine(start_date, dt.time(), dt.UTC) - step)
    window = _window(first, hourly) + step
    by_files = loaded_by_files(table, capture)
    met = due = 0
    while window + step + _LATE <= now:
        key = window.strftime(pattern)
        end = window + step
        window = end
        if by_files:
            arrived = (facts.arrived or {}).get(key)
            if arrived is None:
                continue
            end = max(end, arrived)
        if end + _LATE > now:
            continue
        due += 1
        met += key in facts.done and facts.done[key] <= end + _LATE
    return (met, due) if due else None


def _window(moment: dt.datetime, hourly: bool) -> dt.datetime:
    return moment.replace(hour=moment.hour if hourly else 0, minute=0, second=0, microsecond=0)


def _kpi(
    name: str,
    value: float | None,
    reason: str,
    warning: float | None = None,
    critical: float | None = None,
    target: float | None = None,
) -> Kpi:
    """A KPI, judged by its thresholds."""
    state = State.UNKNOWN if value is None else State.OK
    if value is not None:
        least = KINDS[name].least

        def broken(threshold: float | None) -> bool:
            return threshold is not None and (value < threshold if least else value > threshold)

        state = State.CRITICAL if broken(critical) else State.WARNING if broken(warning) else State.OK
    return Kpi(name, value, state, reason, warning, critical, target)


def _breaking(kpis: Iterable[Kpi]) -> list[Kpi]:
    return [kpi for kpi in kpis if kpi.state.breaches]


def _mean_score(loads: Sequence[Load]) -> float | None:
    scored = [(load.score, load.read) for load in loads if load.score is not None]
    read = sum(rows for _, rows in scored)
    return sum(score * rows for score, rows in scored) / read if read else None


def _mean_seconds(loads: Sequence[Load]) -> float | None:
    return sum(load.seconds for load in loads) / len(loads) if loads else None


def _change(
    loads: Sequence[Load],
    now: dt.datetime,
    mean: Callable[[Sequence[Load]], float | None],
    compare: Callable[[float, float], float | None],
) -> float | None:
    new = mean([load for load in loads if load.read and load.ended > now - TREND])
    old = mean([load for load in loads if load.read and now - 2 * TREND < load.ended <= now - TREND])
    return None if new is None or old is None else compare(new, old)


def _points(loads: Sequence[Load]) -> tuple[Point, ...]:
    if len(loads) <= MOST_POINTS:
        return tuple(Point(load.ended, load.score, load.seconds, load.table_bytes) for load in loads)
    days: dict[dt.date, list[Load]] = defaultdict(list)
    for load in loads:
        days[load.ended.date()].append(load)
    return tuple(
        Point(
            dt.datetime.combine(day, dt.time(12), dt.UTC),
            _mean_score(of_day),
            max(load.seconds for load in of_day),
            of_day[-1].table_bytes,
        )
        for day, of_day in sorted(days.items())
    )


def facts_of_lake(lake: Lakehouse, tables: Sequence[BronzeTable], now: dt.datetime) -> dict[str, Facts]:
    """What the lake knows of the tables of one schema, by name; without Spark where the lake is a folder.

    Raises:
        LakeError: a table of the lake cannot be read.
    """
    schema = tables[0].schema
    since = f"to_timestamp({sql_literal((now - PERIOD - _DAY).isoformat())})"
    facts = {table.name: _Found() for table in tables}

    def found(schema_table: str, columns: Sequence[str], where: str = "true", grouped: str = "") -> list[Any]:
        query = f"select {', '.join(columns)} from t where {where}{grouped}"
        answer = lake.query(schema, schema_table, query)
        return [] if answer is None else [row for row in answer.to_pylist() if row["table_name"] in facts]

    done = "event = 'done'"
    ends = ["table_name", "min(event_time) as first", "max(event_time) as last"]
    for row in found(BATCHES, ends, done, " group by table_name"):
        facts[row["table_name"]].first_load, facts[row["table_name"]].last_load = row["first"], row["last"]
    firsts = ["table_name", "partition_key", "min(event_time) as first"]
    # By the name of the partition: one of the period may have been loaded late.
    period = f"partition_key >= {sql_literal(f'{now - PERIOD - _DAY:%F}')}"
    for row in found(BATCHES, firsts, f"{done} and {period}", " group by table_name, partition_key"):
        facts[row["table_name"]].done[row["partition_key"]] = row["first"]
    for row in found(BATCHES, ["table_name", "record"], f"{done} and record is not null and event_time > {since}"):
        facts[row["table_name"]].loads.append(_load(json.loads(row["record"])))
    arrivals = ["table_name", "partition_key", "min(modified) as first"]
    for row in found(LEDGER, arrivals, period, " group by table_name, partition_key"):
        facts[row["table_name"]].arrived[row["partition_key"]] = row["first"]
    for row in _waiting(lake, schema):
        if row["table_name"] in facts:
            one = facts[row["table_name"]]
            one.waiting_files, one.waiting_since = row["files"], row["oldest"]
    attempts = ["table_name", "status", "processing_end_time", "error_message"]
    day = f"processing_end_time > to_timestamp({sql_literal((now - _DAY).isoformat())}) and status = 'FAILED'"
    for row in sorted(found(AUDIT_LOG, attempts, day), key=lambda row: row["processing_end_time"]):
        facts[row["table_name"]].failures.append((row["processing_end_time"], row["error_message"]))
    return {table.name: facts[table.name].of(lake, table) for table in tables}


@dataclass
class _Found:
    loads: list[Load] = field(default_factory=list)
    first_load: dt.datetime | None = None
    last_load: dt.datetime | None = None
    done: dict[str, dt.datetime] = field(default_factory=dict)
    arrived: dict[str, dt.datetime] = field(default_factory=dict)
    waiting_files: int = 0
    waiting_since: dt.datetime | None = None
    failures: list[tuple[dt.datetime, str | None]] = field(default_factory=list)

    def of(self, lake: Lakehouse, table: BronzeTable) -> Facts:
        size = lake.size(table.schema, table.name) if lake.exists(table.schema, table.name) else None
        open_rows, oldest = _open(lake, table)
        failure = self.failures[-1] if self.failures else None
        mended = failure is not None and self.last_load is not None and self.last_load > failure[0]
        return Facts(
            loads=tuple(sorted(self.loads, key=lambda load: load.ended)),
            first_load=self.first_load,
            last_load=self.last_load,
            done=self.done,
            arrived=self.arrived,
            open_rows=open_rows,
            oldest_open=oldest,
            waiting_files=self.waiting_files,
            waiting_since=self.waiting_since,
            rows=size.rows if size else None,
            bytes=size.bytes if size else None,
            version=size.version if size else None,
            failed_attempts=len(self.failures),
            last_failure=None if failure is None or mended else failure[1],
        )


def _waiting(lake: Lakehouse, schema: str) -> list[dict[str, Any]]:
    """By table, the files whose latest event says that they are to be loaded."""
    answer = lake.query(
        schema,
        LEDGER,
        "select t.table_name, count(distinct t.path) as files, min(t.modified) as oldest from t join"
        " (select table_name, path, max(number) as latest from t group by table_name, path) as l"
        " on t.table_name = l.table_name and t.path = l.path and t.number = l.latest"
        " where t.event in ('seen', 'changed', 'failed') group by t.table_name",
    )
    found: list[dict[str, Any]] = [] if answer is None else answer.to_pylist()
    return found


def _open(lake: Lakehouse, table: BronzeTable) -> tuple[int | None, dt.datetime | None]:
    """Open rows of the quarantine and when the first was first seen; None where there is no quarantine."""
    nothing = lake.query(table.schema, table.quarantine_name, "select * from t limit 0")
    if nothing is None:
        return None, None
    # A quarantine of before there were states has none.
    is_open = f"coalesce(state, '{OPEN}') = '{OPEN}'" if "state" in nothing.column_names else "true"
    counted = ["count(*) as n", "min(first_seen) as oldest"]
    (row,) = lake.rows(table.schema, table.quarantine_name, counted, is_open)
    return row["n"], row["oldest"]


def load_of(record: LoadRecord) -> Load:
    """A load, of its record."""
    return _load(json.loads(record.to_json()))


def _load(told: Mapping[str, Any]) -> Load:
    """A load, of its record as the batch log keeps it; of an older release some fields may be missing."""
    started, ended = (dt.datetime.fromisoformat(told[name]) for name in ("started", "ended"))
    with_files = bool(told.get("has_files"))
    return Load(
        partition=told["partition"],
        ended=ended,
        seconds=(ended - started).total_seconds(),
        read=told.get("read", 0),
        quarantined=told.get("quarantined", 0),
        score=told.get("score_sum", 0) / told["read"] if told.get("read") else None,
        table_rows=told.get("table_rows"),
        table_bytes=told.get("table_bytes"),
        latency_p95=told.get("latency_p95"),
        latency_max=told.get("latency_max"),
        backlog_files=told.get("backlog_files") if with_files else None,
        backlog_seconds=told.get("backlog_seconds") if with_files else None,
    )


def shown(value: float | None, unit: Unit) -> str:
    """A number for a person; `not known` for None."""
    if value is None:
        return "not known"
    match unit:
        case Unit.SECONDS:
            return _duration(value)
        case Unit.SHARE:
            # Rounded towards what is worse: 100 % only where all are.
            share = math.floor(value * 1000) / 10 if 0.9 < value < 1 else round(value * 100, 1)
            return f"{share:g} %"
        case Unit.SCORE:
            return f"{value:.1f}"
        case Unit.PERCENT:
            return f"{value:g} %"
        case Unit.PER_HOUR:
            return f"{value:,.0f}/h"
        case Unit.PER_GB:
            return f"{value:.2f} per GB"
        case Unit.COUNT:
            return f"{value:,.0f}"


def _duration(seconds: float) -> str:
    for size, name in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= (2 if size != 60 else 1) * size:
            return f"{math.floor(seconds / size * 10) / 10:g} {name}"
    return f"{seconds:.1f} s" if 0 < seconds < 10 else f"{seconds:.0f} s"
