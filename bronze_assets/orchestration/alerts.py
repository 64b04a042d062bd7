"""The sensor that tells people what is wrong, and the job with which they try their channels."""

# No postponed annotations here: Dagster reads those of an op's function as objects.

import datetime as dt
import urllib.parse
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import dagster as dg

from bronze_assets.access import ACCESS_LOG, ERASURE_LOG
from bronze_assets.alert_settings import Level
from bronze_assets.errors import BronzeError, KeyMissing, KeyRefused, PrivacyRefused
from bronze_assets.lakehouse import open_lake
from bronze_assets.operations.alerts import Alert, Book, Message, decide, deliver
from bronze_assets.operations.channels import sender
from bronze_assets.orchestration.assessment import CHECK as ASSESSMENT
from bronze_assets.orchestration.assets import asset_key
from bronze_assets.orchestration.kpis import report_key
from bronze_assets.orchestration.recovery import INTACT
from bronze_assets.orchestration.runs import RESTORED, TABLE_TAG, TRIGGER_TAG
from bronze_assets.settings import Environment, Settings
from bronze_assets.storage import sql_literal
from bronze_assets.table import BronzeTable
from bronze_assets.thresholds import freshness_window

SENSOR = "alerts"
JOB = "test_alerts"
BOOK = "bronze_assets/alerts"
"""Where Dagster's key-value store has the book."""
_SECONDS = 30
_OVERLAP = dt.timedelta(minutes=10)
"""Events are looked for this far back again: one may be written after it happened. None is told twice."""
_MOST_RUNS = 500
_INFORMATION = frozenset({"storage_growth", "file_size"})
"""Checks whose KPI is of the level Info (tables.md)."""
_EVOLUTION = "schema_evolution"
_ELSEWHERE = frozenset({"failed_checks"})
"""KPIs of the report that other alerts tell in full."""
_SECURITY_JOBS = frozenset({"erase", "reveal", "rotate_keys"})
_REFUSALS = frozenset(kind.__name__ for kind in (KeyMissing, KeyRefused, PrivacyRefused))


def alerts_definitions(
    settings: Settings,
    tables: Sequence[BronzeTable],
    *,
    clock: Callable[[], dt.datetime] = lambda: dt.datetime.now(dt.UTC),
) -> dg.Definitions:
    """The sensor `alerts`, running where the environment is local, and the job `test_alerts`."""
    if not tables:
        return dg.Definitions()

    @dg.sensor(
        name=SENSOR,
        minimum_interval_seconds=_SECONDS,
        description=(
            "Tells failed checks, broken KPIs, tables that are not fresh, failed runs and what concerns personal data:"
            " once, again after a time, and when it is well again. docs/runbook.md."
        ),
        default_status=(
            dg.DefaultSensorStatus.RUNNING
            if settings.environment is Environment.LOCAL
            else dg.DefaultSensorStatus.STOPPED
        ),
    )
    def alerts(context: dg.SensorEvaluationContext) -> dg.SkipReason:
        now = clock()
        repository = context.repository_def
        declared = repository.asset_graph.asset_check_keys if repository is not None else set()
        # Of jobs, which no asset declares.
        told = (dg.AssetCheckKey(asset_key(table), name) for table in tables for name in (INTACT, ASSESSMENT))
        checks = sorted({*declared, *told})
        look = _Look(context.instance, settings, tables, checks)
        store = context.instance.daemon_cursor_storage
        kept = store.get_cursor_values({BOOK}).get(BOOK)
        book = Book.from_json(kept) if kept else Book(looked=now)

        def save() -> None:
            store.set_cursor_values({BOOK: book.to_json()})

        since = (book.looked or now) - _OVERLAP
        # What happened before anybody was to be told is no news.
        first = kept is None
        standing = list(look.standing())
        events = [] if first else list(look.events(since))
        decide(book, standing, events, now, settings.alerts)
        book.looked = now
        # Before anything is sent: what is sent twice after a crash is told twice, and nothing is lost.
        save()
        failed = deliver(book, now, sender(settings), save)
        waiting = sum(len(box.messages) for box in book.outboxes.values())
        words = f"{len(book.standing)} alerts stand, {waiting} messages wait."
        for name in failed:
            words += f" Channel {name} fails since {book.outboxes[name].failing_since:%F %T} UTC."
        return dg.SkipReason(words)

    @dg.op(description="Sends one message to each channel.", out=dg.Out(dg.Nothing))
    def send_test_messages(context: dg.OpExecutionContext) -> None:
        send = sender(settings)
        message = Message(Level.INFO, "a test message", ("Somebody tries the channels of Bronze Assets.",), clock())
        failed = []
        for name in settings.alerts.channels:
            sent = send(name, message)
            context.log.info(f"{name}: {'sent' if sent else 'failed'}")
            failed += [] if sent else [name]
        if failed:
            raise dg.Failure(
                f"Nothing got through to {', '.join(failed)}. Fix: see this run's warnings, and"
                " `python -m bronze_assets doctor`.",
                allow_retries=False,
            )

    @dg.job(name=JOB, description="Sends a test message to each alert channel.", executor_def=dg.in_process_executor)
    def test_alerts() -> None:
        send_test_messages()

    return dg.Definitions(sensors=[alerts], jobs=[test_alerts])


class _Look:
    """What is wrong at one moment, as far as Dagster's instance and the lake's logs tell.

    Args:
        checks: all that may have failed.
    """

    def __init__(
        self,
        instance: dg.DagsterInstance,
        settings: Settings,
        tables: Sequence[BronzeTable],
        checks: Sequence[dg.AssetCheckKey],
    ) -> None:
        self._instance = instance
        self._settings = settings
        self._tables = {asset_key(table): table for table in tables}
        self._reports = {report_key(table.schema) for table in tables}
        self._failed = list(self._failed_checks(checks))

    def standing(self) -> Iterator[Alert]:
        """Failed checks, broken KPIs, tables that are not fresh."""
        told: set[tuple[str, str]] = set()
        kpis: list[Alert] = []
        for key, evaluation, run_id in self._failed:
            if key.asset_key in self._reports:
                kpis += self._kpis(key, evaluation)
            elif key.name != _EVOLUTION:
                told.add((key.asset_key.path[-1], key.name))
                yield self._check(key, evaluation, run_id)
        for alert in self._not_fresh():
            told.add((alert.key.rpartition("/")[2], "freshness"))
            yield alert
        # A KPI that a table's own check or policy tells is not told again.
        yield from (alert for alert in kpis if tuple(alert.key.split("/")[2:]) not in told)

    def events(self, since: dt.datetime) -> Iterator[Alert]:
        """Failed runs, new columns, erasures, reveals and refusals since that moment."""
        for key, evaluation, run_id in self._failed:
            if key.name == _EVOLUTION and key.asset_key not in self._reports:
                yield self._check(key, evaluation, run_id, event=True)
        yield from self._runs(since)
        if not self._settings.in_catalog:
            yield from self._security(since)

    def _failed_checks(
        self, checks: Sequence[dg.AssetCheckKey]
    ) -> Iterator[tuple[dg.AssetCheckKey, dg.AssetCheckEvaluation, str]]:
        found = self._instance.event_log_storage.get_asset_check_summary_records(list(checks))
        for key, summary in found.items():
            record: Any = summary.last_completed_check_execution_record
            evaluation = record.evaluation if record is not None else None
            if evaluation is not None and not evaluation.passed:
                yield key, evaluation, record.run_id

    def _check(
        self, key: dg.AssetCheckKey, evaluation: dg.AssetCheckEvaluation, run_id: str, *, event: bool = False
    ) -> Alert:
        asset = key.asset_key
        name = "/".join(asset.path[1:]) or asset.path[0]
        critical = evaluation.severity is dg.AssetCheckSeverity.ERROR
        level = Level.CRITICAL if critical else Level.INFO if key.name in _INFORMATION else Level.WARNING
        numbers = {label: entry.value for label, entry in evaluation.metadata.items()}
        lines = [evaluation.description] if evaluation.description else []
        # Of the metadata only what are counts: examples are keys.
        if isinstance(numbers.get("count"), int):
            share = numbers.get("share")
            lines.append(f"count {numbers['count']:,}" + (f", {share:.1%}" if isinstance(share, float) else ""))
        details = numbers.get("details")
        limits = details if isinstance(details, dict) else {}
        lines += [f"{label}: {limits[label]}" for label in ("threshold", "threshold_seconds") if label in limits]
        table = self._tables.get(asset)
        rule = table is not None and any(key.name.startswith(f"{column.name}_") for column in table.columns)
        return Alert(
            # A schema that has changed is news each time that it does.
            f"evolution/{'/'.join(asset.path)}/{run_id}" if event else f"check/{'/'.join(asset.path)}/{key.name}",
            level,
            f"{name}: the files have new columns" if event else f"{name}: check {key.name} failed",
            tuple(line[:300] for line in lines),
            "rules" if rule else key.name,
            self._asset_link(asset, f"?view=checks&checkDetail={urllib.parse.quote(key.name)}"),
        )

    def _kpis(self, key: dg.AssetCheckKey, evaluation: dg.AssetCheckEvaluation) -> Iterator[Alert]:
        if key.name in _ELSEWHERE:
            return
        told = evaluation.metadata.get("tables")
        tables = told.value if told is not None and isinstance(told.value, dict) else {}
        level = evaluation.metadata.get("level")
        info = level is not None and level.value == Level.INFO
        for table, found in tables.items():
            critical = found["state"] == Level.CRITICAL
            yield Alert(
                f"kpi/{key.asset_key.path[0]}/{table}/{key.name}",
                Level.CRITICAL if critical else Level.INFO if info else Level.WARNING,
                f"{table}: {key.name} is {found['shown']}",
                (f"threshold {found['threshold_shown']}", *([found["reason"]] if found["reason"] else [])),
                key.name,
                self._asset_link(key.asset_key, ""),
            )

    def _not_fresh(self) -> Iterator[Alert]:
        levels = {"FAIL": Level.CRITICAL, "WARN": Level.WARNING}
        for key, record in self._instance.get_freshness_state_records(list(self._tables)).items():
            level = levels.get(record.freshness_state.name)
            if level is None:
                continue
            table = self._tables[key]
            warns, fails = freshness_window(table)
            event = self._instance.get_latest_materialization_event(key)
            last = None if event is None else dt.datetime.fromtimestamp(event.timestamp, dt.UTC)
            yield Alert(
                f"freshness/{'/'.join(key.path)}",
                level,
                f"{table.name}: not fresh",
                (
                    "never loaded" if last is None else f"last loaded {last:%F %H:%M} UTC",
                    f"threshold {fails if level is Level.CRITICAL else warns}",
                ),
                "freshness",
                self._asset_link(key, ""),
            )

    def _runs(self, since: dt.datetime) -> Iterator[Alert]:
        statuses = [dg.DagsterRunStatus.FAILURE]
        if self._settings.in_catalog:
            statuses.append(dg.DagsterRunStatus.SUCCESS)
        filters = dg.RunsFilter(statuses=statuses, updated_after=since)
        for record in self._instance.get_run_records(filters=filters, limit=_MOST_RUNS):
            run = record.dagster_run
            if run.tags.get(TRIGGER_TAG) == RESTORED:
                # It shows that a partition was undone, and nobody ran it.
                continue
            link = f"{self._settings.alerts.ui_url}/runs/{run.run_id}"
            if run.status is dg.DagsterRunStatus.SUCCESS:
                if run.job_name in _SECURITY_JOBS:
                    title = f"the job {run.job_name} has run"
                    yield Alert(f"run/{run.run_id}", Level.INFO, title, (), "security_event", link)
                continue
            kinds, words = self._why(run.run_id)
            refused = bool(kinds & _REFUSALS) or run.job_name in _SECURITY_JOBS
            about = [
                f"{label} {run.tags[tag]}"
                for label, tag in (("table", TABLE_TAG), ("partition", "dagster/partition"))
                if tag in run.tags
            ]
            yield Alert(
                f"run/{run.run_id}",
                Level.CRITICAL,
                f"the run of {run.job_name} failed",
                (*([", ".join(about)] if about else []), *words),
                "security_event" if refused else "failed_run",
                link,
            )

    def _why(self, run_id: str) -> tuple[set[str], list[str]]:
        """Names of the errors that our steps ended with, and what they said. Others' words may quote values."""
        kinds: set[str] = set()
        words: list[str] = []
        for record in self._instance.get_records_for_run(run_id, of_type=dg.DagsterEventType.STEP_FAILURE).records:
            event = record.event_log_entry.dagster_event
            said = event.step_failure_data.user_failure_data if event is not None else None
            if said is None:
                continue
            kinds |= {str(entry.value) for label, entry in said.metadata.items() if label == "error"}
            words += [said.description[:300]] if said.description else []
        return kinds, words[:5]

    def _security(self, since: dt.datetime) -> Iterator[Alert]:
        lake = open_lake(self._settings)
        after = f"at > to_timestamp({sql_literal(since.isoformat())})"
        for schema in dict.fromkeys(table.schema for table in self._tables.values() if table.has_personal_data):
            try:
                erasures = lake.rows(
                    schema,
                    ERASURE_LOG,
                    ["erasure_id", "event", "table_name", "who", "subjects"],
                    f"{after} and event in ('done', 'failed', 'held')",
                )
                reads = lake.rows(
                    schema,
                    ACCESS_LOG,
                    ["event_id", "table_name", "who", "outcome", "rows"],
                    f"{after} and how = 'reveal'",
                )
            except BronzeError:
                # Its log cannot be read: that is for the loads, which fail then, and for doctor.
                continue
            for row in erasures:
                done = row["event"] == "done"
                yield Alert(
                    f"erasure/{row['erasure_id']}/{row['event']}",
                    Level.INFO if done else Level.CRITICAL,
                    f"{row['table_name']}: an erasure is {row['event']}",
                    (f"{row['subjects']} subjects, asked for by {row['who']}, evidence {row['erasure_id']}",),
                    "security_event",
                )
            for row in reads:
                answered = row["outcome"] == "answered"
                yield Alert(
                    f"reveal/{row['event_id']}",
                    Level.INFO if answered else Level.WARNING,
                    f"{row['table_name']}: a reveal was {row['outcome']}",
                    (f"asked by {row['who']}, row {row['event_id']} of bz_access_log",),
                    "security_event",
                )

    def _asset_link(self, key: dg.AssetKey, rest: str) -> str:
        return f"{self._settings.alerts.ui_url}/assets/{'/'.join(map(urllib.parse.quote, key.path))}{rest}"
