"""The KPIs of the tables of a schema: what is known of each (`kpi_facts`), judged against its threshold and target.

`judge` makes a report of what the lake and Dagster know. What is not known is None and says so: no number is made up.
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
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from bronze_assets import audit
from bronze_assets.errors import LakeError
from bronze_assets.operations import kpi_page
from bronze_assets.operations.kpi_facts import PERIOD, Facts, Known, Load
from bronze_assets.page import shown_bytes
from bronze_assets.settings import CaptureMode
from bronze_assets.table import BronzeTable, Cadence
from bronze_assets.thresholds import MAX_LAG_SECONDS, freshness_window

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
