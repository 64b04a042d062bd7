"""Alerts: what is wrong is told once, again after a time, and when it is well again; whatever fails on the way.

`Book` is the state: which alerts stand, which events have been told, and what each channel has still to hear. `decide`
changes it by what is observed, `deliver` by what was sent. Who calls them saves the book before and after sending, so
that a message is never lost, and after a crash told twice at worst.

Messages hold names of tables, partitions, numbers and our own sentences; never a row's values.
"""

from __future__ import annotations

import dataclasses
import datetime as dt
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from bronze_assets import runbook
from bronze_assets.alert_settings import Alerts, Level

GROUPED: Final = 5
"""More messages than these go out as one."""
SHOWN: Final = 20
"""Of a group, the worst so many are told one by one."""
KEPT: Final = 200
"""So many messages wait for a channel that fails; of older ones only the number is kept."""
FAILING: Final = dt.timedelta(hours=1)
"""A channel that fails for so long is an alert on the others."""
_FIRST_RETRY: Final = dt.timedelta(minutes=1)
_LONGEST_RETRY: Final = dt.timedelta(hours=1)
_EVENTS_KEPT: Final = 2000


@dataclass(frozen=True)
class Alert:
    """Something that a person is to know.

    Attributes:
        key: tells it apart from others, and is the same while it stands.
        title: one line: the table, and what is wrong with it.
        lines: partition, number, threshold.
        runbook: section of docs/runbook.md.
        link: where to look at it.
    """

    key: str
    level: Level
    title: str
    lines: tuple[str, ...] = ()
    runbook: str = ""
    link: str = ""


@dataclass(frozen=True)
class Message:
    """What a channel hears: an alert, and why now."""

    level: Level
    title: str
    lines: tuple[str, ...]
    at: dt.datetime

    @property
    def body(self) -> str:
        """The lines below the title."""
        return "\n".join(self.lines) or self.title


@dataclass
class Standing:
    """An alert that stands: since when, and when it was last told."""

    alert: Alert
    since: dt.datetime
    told: dt.datetime


@dataclass
class Outbox:
    """What a channel has still to hear.

    Attributes:
        dropped: how many older messages had to go.
        failing_since: None where the last sending went well.
    """

    messages: list[Message] = field(default_factory=list)
    dropped: int = 0
    failures: int = 0
    failing_since: dt.datetime | None = None
    retry_at: dt.datetime | None = None


@dataclass
class Book:
    """The state of all alerts.

    Attributes:
        standing: key → alert.
        events: keys of the latest events that were taken in, oldest first.
        outboxes: channel → what it has still to hear.
        looked: up to when events were looked for.
    """

    standing: dict[str, Standing] = field(default_factory=dict)
    events: list[str] = field(default_factory=list)
    outboxes: dict[str, Outbox] = field(default_factory=dict)
    looked: dt.datetime | None = None

    def to_json(self) -> str:
        """The whole book as one JSON object."""
        return json.dumps(dataclasses.asdict(self), default=lambda value: value.isoformat())

    @classmethod
    def from_json(cls, text: str) -> Book:
        """Back from `to_json`."""
        told: dict[str, Any] = json.loads(text)
        return cls(
            {
                key: Standing(_alert(one["alert"]), _time(one["since"]), _time(one["told"]))
                for key, one in told["standing"].items()
            },
            list(told["events"]),
            {
                name: Outbox(
                    [_message(message) for message in box["messages"]],
                    box["dropped"],
                    box["failures"],
                    _maybe(box["failing_since"]),
                    _maybe(box["retry_at"]),
                )
                for name, box in told["outboxes"].items()
            },
            _maybe(told["looked"]),
        )


def decide(book: Book, standing: Iterable[Alert], events: Iterable[Alert], now: dt.datetime, alerts: Alerts) -> None:
    """Put into the outboxes what is to be told: what is new, worse, better or well again, and what stands for long.

    Args:
        standing: everything that is wrong now; what was and is not among them is well again.
        events: what happened; each is told once, by its key, however often it is given.
    """
    wrong = {alert.key: alert for alert in [*standing, *_failing_channels(book, now)]}
    for key, alert in wrong.items():
        before = book.standing.get(key)
        if before is None:
            _tell(book, alert, "", now, alerts)
            book.standing[key] = Standing(alert, now, now)
            continue
        if alert.level is not before.alert.level:
            change = "worse" if alert.level.rank > before.alert.level.rank else "better"
            _tell(book, alert, f"{change}, was {before.alert.level}", now, alerts)
            before.told = now
        elif (pause := _pause(alert.level, alerts)) is not None and now - before.told >= pause:
            _tell(book, alert, f"still so since {before.since:%F %H:%M} UTC", now, alerts)
            before.told = now
        before.alert = alert
    for key in [key for key in book.standing if key not in wrong]:
        gone = book.standing.pop(key)
        _tell(book, gone.alert, f"well again, after {_lasted(now - gone.since)}", now, alerts, well=True)
    known = set(book.events)
    for event in events:
        if event.key not in known:
            known.add(event.key)
            book.events.append(event.key)
            _tell(book, event, "", now, alerts)
    del book.events[:-_EVENTS_KEPT]
    # A channel that is no longer declared hears nothing more.
    for name in [name for name in book.outboxes if name not in alerts.channels]:
        del book.outboxes[name]


def deliver(book: Book, now: dt.datetime, send: Callable[[str, Message], bool], saved: Callable[[], None]) -> list[str]:
    """Send what waits, to each channel by itself.

    Args:
        send: sends a message to a channel; returns whether that went well, and raises nothing.
        saved: is called after each sending.

    Returns:
        The channels that failed now.
    """
    failed = []
    for name, box in book.outboxes.items():
        if not box.messages or (box.retry_at is not None and box.retry_at > now):
            continue
        if send(name, grouped(box.messages, box.dropped, now)):
            book.outboxes[name] = Outbox()
        else:
            failed.append(name)
            box.failures += 1
            box.failing_since = box.failing_since or now
            box.retry_at = now + min(_LONGEST_RETRY, _FIRST_RETRY * 2 ** min(box.failures - 1, 10))
        saved()
    return failed


def grouped(messages: Sequence[Message], dropped: int, now: dt.datetime) -> Message:
    """What waits for a channel as one message: as it is where it is one, the worst first where there are more."""
    if len(messages) == 1 and not dropped:
        return messages[0]
    worst = sorted(messages, key=lambda message: (-message.level.rank, message.at))
    counts = [(level, sum(message.level is level for message in messages)) for level in reversed(Level)]
    total = len(messages) + dropped
    title = f"{total} messages: {', '.join(f'{number} {level}' for level, number in counts if number)}"
    lines: list[str] = []
    for message in worst[:SHOWN]:
        lines.append(f"{message.level}: {message.title}")
        if len(messages) <= GROUPED:
            lines += [f"  {line}" for line in message.lines]
    left = len(worst) - SHOWN
    if left > 0:
        lines.append(f"and {left} more; see the KPI page and the failed checks in Dagster's UI.")
    if dropped:
        lines.append(f"{dropped} older ones could not be kept.")
    return Message(worst[0].level, title, tuple(lines), now)


def _tell(book: Book, alert: Alert, why: str, now: dt.datetime, alerts: Alerts, *, well: bool = False) -> None:
    title = f"{alert.title} ({why})" if why else alert.title
    lines = list(alert.lines)
    if not well and alert.runbook:
        lines.append(f"What to do: {runbook.link(alert.runbook)}")
    if alert.link:
        lines.append(alert.link)
    message = Message(Level.INFO if well else alert.level, title, tuple(lines), now)
    for name in alerts.routes[alert.level]:
        # Not to the channel that fails, which would hear of it when it is well again.
        if alert.key != _channel_key(name):
            box = book.outboxes.setdefault(name, Outbox())
            box.messages.append(message)
            box.dropped += max(0, len(box.messages) - KEPT)
            del box.messages[:-KEPT]


def _failing_channels(book: Book, now: dt.datetime) -> Iterable[Alert]:
    for name, box in book.outboxes.items():
        if box.failing_since is not None and now - box.failing_since >= FAILING:
            yield Alert(
                _channel_key(name),
                Level.CRITICAL,
                f"channel {name}: no message gets through",
                (f"since {box.failing_since:%F %H:%M} UTC, {box.failures} times",),
                "channel_failing",
            )


def _channel_key(name: str) -> str:
    return f"channel/{name}"


def _pause(level: Level, alerts: Alerts) -> dt.timedelta | None:
    match level:
        case Level.CRITICAL:
            return dt.timedelta(hours=alerts.remind_critical_hours)
        case Level.WARNING:
            return dt.timedelta(hours=alerts.remind_warning_hours)
        case Level.INFO:
            return None


def _lasted(time: dt.timedelta) -> str:
    minutes = round(time.total_seconds() / 60)
    if minutes < 120:
        return f"{minutes} min"
    return f"{minutes // 60} h" if minutes < 48 * 60 else f"{minutes // 1440} days"


def _time(text: str) -> dt.datetime:
    return dt.datetime.fromisoformat(text)


def _maybe(text: str | None) -> dt.datetime | None:
    return None if text is None else _time(text)


def _alert(told: Mapping[str, Any]) -> Alert:
    return Alert(told["key"], Level(told["level"]), told["title"], tuple(told["lines"]), told["runbook"], told["link"])


def _message(told: Mapping[str, Any]) -> Message:
    return Message(Level(told["level"]), told["title"], tuple(told["lines"]), _time(told["at"]))
