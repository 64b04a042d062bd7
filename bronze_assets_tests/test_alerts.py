"""Alerts: decided once, delivered whatever fails, over real SMTP and HTTP, of loads that ran through Dagster."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime as dt
import json
import socket
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dagster as dg
import pytest
from aiosmtpd.controller import Controller
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from bronze_assets.alert_settings import Alerts, Level
from bronze_assets.definitions import build_definitions
from bronze_assets.errors import SettingsError
from bronze_assets.operations.alerts import KEPT, Alert, Book, Message, decide, deliver, grouped
from bronze_assets.operations.channels import log_path, look_at_channels, sender
from bronze_assets.orchestration.alerts import BOOK, alerts_definitions
from bronze_assets.settings import Settings
from bronze_assets_tests.conftest import settings_for
from bronze_assets_tests.people import SCHEMA, drop, people, person

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

NOON = dt.datetime(2026, 6, 15, 12, tzinfo=dt.UTC)
TWO = Alerts(channels={"one": "log", "two": "file:/nowhere"}, info=("one",), warning=("one",), critical=("one", "two"))


def alert(key: str = "check/a", level: Level = Level.WARNING, **changes: Any) -> Alert:
    return Alert(key, level, f"{key} is wrong", ("count 3",), "quality_score", "http://ui/x", **changes)


def told(book: Book, name: str = "one") -> list[tuple[Level, str]]:
    box = book.outboxes.get(name)
    return [(message.level, message.title) for message in box.messages] if box else []


def emptied(book: Book, now: dt.datetime) -> list[tuple[str, Message]]:
    sent: list[tuple[str, Message]] = []

    def send(name: str, message: Message) -> bool:
        sent.append((name, message))
        return True

    deliver(book, now, send, lambda: None)
    return sent


def test_what_is_wrong_is_told_once_and_again_after_a_time_and_when_it_is_well_again() -> None:
    book, now = Book(), NOON

    decide(book, [alert()], [], now, TWO)
    assert told(book) == [(Level.WARNING, "check/a is wrong")]
    assert "docs/runbook.md#quality_score" in book.outboxes["one"].messages[0].body
    emptied(book, now)
    for minutes in (1, 60, 60 * 23):
        decide(book, [alert()], [], now + dt.timedelta(minutes=minutes), TWO)
    assert told(book) == []

    decide(book, [alert()], [], now + dt.timedelta(hours=24), TWO)
    assert told(book) == [(Level.WARNING, "check/a is wrong (still so since 2026-06-15 12:00 UTC)")]
    emptied(book, now)
    decide(book, [], [], now + dt.timedelta(hours=25), TWO)
    assert told(book) == [(Level.INFO, "check/a is wrong (well again, after 25 h)")]
    emptied(book, now)
    decide(book, [], [], now + dt.timedelta(hours=26), TWO)
    assert told(book) == []


def test_worse_and_better_are_changes_of_state_and_go_where_their_level_goes() -> None:
    book = Book()
    decide(book, [alert()], [], NOON, TWO)
    assert told(book, "two") == [], "no channel of warnings"
    emptied(book, NOON)

    decide(book, [alert(level=Level.CRITICAL)], [], NOON, TWO)
    assert told(book, "two") == told(book) == [(Level.CRITICAL, "check/a is wrong (worse, was warning)")]
    emptied(book, NOON)
    decide(book, [alert()], [], NOON, TWO)
    assert told(book) == [(Level.WARNING, "check/a is wrong (better, was critical)")]


def test_an_event_is_told_once_and_is_never_well_again() -> None:
    book = Book()
    for _ in range(3):
        decide(book, [], [alert("run/1", Level.CRITICAL)], NOON, TWO)
    assert told(book) == [(Level.CRITICAL, "run/1 is wrong")]
    emptied(book, NOON)

    decide(book, [], [], NOON + dt.timedelta(days=1), TWO)

    assert told(book) == []


def test_a_hundred_failures_are_one_message_with_the_worst_first() -> None:
    book = Book()
    many = [alert(f"check/{n}") for n in range(99)] + [alert("check/worst", Level.CRITICAL)]

    decide(book, many, [], NOON, TWO)

    ((_, message), _) = emptied(book, NOON)
    assert message.title == "100 messages: 1 critical, 99 warning"
    assert message.lines[0] == "critical: check/worst is wrong"
    assert message.lines[-1].startswith("and 80 more")


def test_a_channel_that_fails_is_tried_again_later_and_the_other_is_told_once() -> None:
    book, sent = Book(), Counter[str]()
    broken = True

    def send(name: str, _: Message) -> bool:
        sent[name] += 1
        return not (broken and name == "two")

    decide(book, [alert(level=Level.CRITICAL)], [], NOON, TWO)
    assert deliver(book, NOON, send, lambda: None) == ["two"]
    # Not at each tick: pauses double.
    for seconds in range(30, 181, 30):
        deliver(book, NOON + dt.timedelta(seconds=seconds), send, lambda: None)
    assert sent == {"one": 1, "two": 3}
    broken = False
    assert deliver(book, NOON + dt.timedelta(hours=1), send, lambda: None) == []
    assert sent == {"one": 1, "two": 4}
    deliver(book, NOON + dt.timedelta(hours=2), send, lambda: None)
    assert sent == {"one": 1, "two": 4}


def test_a_channel_that_fails_for_an_hour_is_told_on_the_others_and_not_on_itself() -> None:
    book = Book()
    only_one = lambda name, _: name == "one"  # noqa: E731
    decide(book, [alert(level=Level.CRITICAL)], [], NOON, TWO)
    for minutes in range(0, 70, 10):
        now = NOON + dt.timedelta(minutes=minutes)
        decide(book, [alert(level=Level.CRITICAL)], [], now, TWO)
        last = [title for _, title in told(book)]
        deliver(book, now, only_one, lambda: None)
    assert last == ["channel two: no message gets through"]
    assert all("channel two" not in title for _, title in told(book, "two"))

    emptied(book, NOON + dt.timedelta(hours=9))
    decide(book, [alert(level=Level.CRITICAL)], [], NOON + dt.timedelta(hours=3), TWO)

    assert any("channel two" in title and "well again" in title for _, title in told(book))


def test_what_a_silent_channel_missed_is_bounded_and_counted() -> None:
    book = Book()
    for number in range(KEPT + 7):
        decide(book, [], [alert(f"run/{number}", Level.CRITICAL)], NOON, TWO)

    box = book.outboxes["two"]
    assert (len(box.messages), box.dropped) == (KEPT, 7)
    message = grouped(box.messages, box.dropped, NOON)
    assert message.title.startswith(f"{KEPT + 7} messages")
    assert message.lines[-1] == "7 older ones could not be kept."


KEYS = st.sampled_from(["a", "b", "c"])
STEP = st.tuples(
    st.dictionaries(KEYS, st.sampled_from(list(Level)), max_size=3), st.booleans(), st.booleans(), st.booleans()
)


@given(st.lists(STEP, max_size=12))
def test_each_change_reaches_each_channel_exactly_once_whatever_fails_on_the_way(steps: Sequence[Any]) -> None:
    both = Alerts.to(["log", "file:/nowhere"])
    book, now = Book(), NOON
    heard: dict[str, list[str]] = {name: [] for name in both.channels}
    state: dict[str, Level] = {}
    expected: list[str] = []
    for levels, works_one, works_two, crashes in [*steps, ({}, True, True, False)]:
        now += dt.timedelta(minutes=70)
        for key, level in levels.items():
            before = state.get(key)
            if before is None:
                expected.append(f"{key} new")
            elif before is not level:
                expected.append(f"{key} changed")
        expected += [f"{key} well" for key in state if key not in levels]
        state = dict(levels)
        # No reminders: not what is looked at here.
        quiet = both.model_copy(update={"remind_critical_hours": 1e6, "remind_warning_hours": 1e6})
        decide(book, [alert(key, level) for key, level in levels.items()], [], now, quiet)
        book = Book.from_json(book.to_json())
        if crashes:
            continue
        works = dict(zip(both.channels, (works_one, works_two), strict=True))

        def send(name: str, message: Message, works: dict[str, bool] = works) -> bool:
            if works[name]:
                heard[name] += [message.title, *message.lines]
            return works[name]

        deliver(book, now, send, lambda: None)
    for name in heard:
        lines = [line for line in heard[name] if " is wrong" in line and "channel" not in line]
        kinds = Counter(
            f"{line.partition(' is wrong')[0].rpartition(' ')[2]}"
            f" {'well' if 'well again' in line else 'changed' if ', was ' in line else 'new'}"
            for line in lines
        )
        # What more than twenty messages told together is only counted.
        if not any(line.startswith("and ") for line in heard[name]):
            assert kinds == Counter(expected)


class Http:
    """An HTTP server that keeps what is posted to it."""

    def __init__(self) -> None:
        self.got: list[dict[str, Any]] = []
        self.status = 200
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                if outer.status == 200:
                    outer.got.append(json.loads(body))
                self.send_response(outer.status)
                self.end_headers()

            def log_message(self, *_: Any) -> None: ...

        self.server = HTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"json://127.0.0.1:{self.server.server_port}/hook?token=very-secret"


@pytest.fixture
def http() -> Iterator[Http]:
    made = Http()
    thread = threading.Thread(target=made.server.serve_forever, daemon=True)
    thread.start()
    yield made
    made.server.shutdown()
    made.server.server_close()


class Mail:
    """What an SMTP server hands to."""

    def __init__(self) -> None:
        self.got: list[str] = []
        self.refuses = False

    async def handle_DATA(self, server: Any, session: Any, envelope: Any) -> str:  # noqa: N802
        if self.refuses:
            return "550 no"
        self.got.append(envelope.content.decode())
        return "250 OK"


@pytest.fixture
def smtp() -> Iterator[tuple[Mail, str]]:
    mail = Mail()
    controller = Controller(mail, hostname="127.0.0.1", port=free_port())
    controller.start()
    yield mail, f"mailto://127.0.0.1:{controller.port}?from=bronze@example.org&to=duty@example.org&mode=insecure"
    controller.stop()


def free_port() -> int:
    with contextlib.closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def with_channels(settings: Settings, **urls: str) -> Settings:
    """The settings with channels whose URLs lie in files, and that all hear everything."""
    places = {}
    settings.home.mkdir(parents=True, exist_ok=True)
    for name, url in urls.items():
        if url == "log":
            places[name] = url
            continue
        (settings.home / f"{name}.url").write_text(url)
        places[name] = f"file:{settings.home / f'{name}.url'}"
    names = tuple(places)
    return dataclasses.replace(settings, alerts=Alerts(channels=places, info=names, warning=names, critical=names))


def test_messages_go_out_over_smtp_and_http_and_into_a_file(
    home: Path, http: Http, smtp: tuple[Mail, str], caplog: pytest.LogCaptureFixture
) -> None:
    mail, url = smtp
    settings = with_channels(settings_for(home), hook=http.url, mail=url, here="log")
    send = sender(settings)
    message = Message(Level.CRITICAL, "bz_orders: not fresh", ("threshold 1 h",), NOON)

    assert all(send(name, message) for name in ("hook", "mail", "here"))

    (posted,) = http.got
    assert (posted["title"], posted["message"], posted["type"]) == (
        "[local] bz_orders: not fresh",
        "threshold 1 h",
        "failure",
    )
    (sent,) = mail.got
    assert "bz_orders: not fresh" in sent
    assert "duty@example.org" in sent
    assert log_path(settings).read_text() == (
        "2026-06-15 12:00:00 UTC  critical  bz_orders: not fresh\n    threshold 1 h\n"
    )
    mail.refuses, http.status = True, 500
    assert not send("hook", message)
    assert not send("mail", message)
    closed = with_channels(settings_for(home), mail=f"mailto://127.0.0.1:{free_port()}?from=a@b.org&to=c@d.org")
    assert not sender(closed)("mail", message)
    assert "very-secret" not in caplog.text


def test_a_slack_webhook_is_known_as_one_and_doctor_tells_which_channel_is_not(home: Path) -> None:
    slack = "https://hooks.slack.com/services/T1JJ3T3L2/A1BRTD4JD/TIiajkdnlazkcOXrIdevi7FQ"
    settings = with_channels(settings_for(home), team=slack, odd="nothing://very-secret", here="log")
    (home / "gone.url").unlink(missing_ok=True)
    channels = {**settings.alerts.channels, "gone": f"file:{home / 'gone.url'}"}
    settings = dataclasses.replace(settings, alerts=settings.alerts.model_copy(update={"channels": channels}))

    found = dict(zip(channels, look_at_channels(settings), strict=True))

    assert found["team"].words.startswith("team: Slack")
    assert found["team"].fix is None
    assert "no address that apprise knows" in found["odd"].words
    assert found["gone"].fix is not None
    assert "very-secret" not in "".join(map(str, found.values()))
    assert not sender(settings)("odd", Message(Level.INFO, "x", (), NOON))


@pytest.mark.parametrize("given_places", ["slack://very-secret", "log,https://very-secret"])
def test_an_address_in_the_settings_themselves_is_refused_without_being_shown(home: Path, given_places: str) -> None:
    with pytest.raises(SettingsError, match="BRONZE_ALERTS") as raised:
        settings_for(home, {"BRONZE_ALERTS": given_places})
    assert "very-secret" not in str(raised.value)


def test_the_settings_file_routes_levels_to_channels(home: Path, tmp_path: Path) -> None:
    path = tmp_path / "local.toml"
    path.write_text(
        'environment = "local"\n[alerts]\nchannels = { here = "log", team = "file:/etc/slack" }\n'
        'critical = ["here", "team"]\nwarning = ["here"]\nremind_critical_hours = 2\n'
    )
    settings = settings_for(home, {"BRONZE_SETTINGS": str(path)})
    assert settings.alerts.routes == {Level.INFO: (), Level.WARNING: ("here",), Level.CRITICAL: ("here", "team")}
    path.write_text('environment = "local"\n[alerts]\nchannels = { team = "slack://x" }\ncritical = ["team", "tema"]\n')
    with pytest.raises(SettingsError) as raised:
        settings_for(home, {"BRONZE_SETTINGS": str(path)})
    assert "alerts.channels.team" in str(raised.value)
    assert "slack" not in str(raised.value).replace("slack://…", "")
    with pytest.raises(ValidationError, match="tema"):
        Alerts(channels={"team": "log"}, critical=("tema",))


class Duty:
    """A sensor at work on an instance, with a clock of its own."""

    def __init__(self, settings: Settings, instance: dg.DagsterInstance) -> None:
        self.settings = settings
        self.instance = instance
        # Runs bear the time of the machine.
        self.now = dt.datetime.now(dt.UTC)
        self.definitions = build_definitions(settings, [people()])
        self.sensor = alerts_definitions(settings, [people()], clock=lambda: self.now).get_unresolved_sensor_def(
            "alerts"
        )

    def tick(self) -> str:
        context = dg.build_sensor_context(self.instance, repository_def=self.definitions.get_repository_def())
        answer = self.sensor(context)
        assert isinstance(answer, dg.SkipReason)
        return answer.skip_message or ""

    def load(self) -> dg.ExecuteInProcessResult:
        job = self.definitions.resolve_job_def(f"load_{SCHEMA}_files")
        return job.execute_in_process(
            instance=self.instance, partition_key=f"{dt.datetime.now(dt.UTC):%Y-%m-%d}", raise_on_error=False
        )


@pytest.fixture
def instance(tmp_path: Path) -> Iterator[dg.DagsterInstance]:
    (tmp_path / "dagster").mkdir()
    with dg.DagsterInstance.local_temp(str(tmp_path / "dagster")) as made:
        yield made


def test_a_load_with_bad_rows_is_told_and_told_well_when_it_is(
    settings: Settings, spark: SparkSession, instance: dg.DagsterInstance, http: Http
) -> None:
    settings = with_channels(settings, hook=http.url, down=f"json://127.0.0.1:{free_port()}/", here="log")
    duty = Duty(settings, instance)
    duty.tick()
    drop(settings, "one.json", *(person(n) for n in range(1, 9)), person(9, visits=-1), person(10, email="zoe"))

    assert duty.load().success, "what its rows broke, and a channel that is down, fail no load"
    said = duty.tick()

    assert "Channel down fails" in said
    posted = http.got.copy()
    text = "\n".join(f"{one['title']}\n{one['message']}" for one in posted)
    assert "bz_people: check visits_ge failed" in text
    assert "bz_people: check error_rate failed" in text
    assert "docs/runbook.md#" in text or "messages" in posted[0]["title"]
    # Ten rows were read: one is quarantined for its visits, and a second has no address.
    everything = text + log_path(settings).read_text() + str(instance.daemon_cursor_storage.get_cursor_values({BOOK}))
    for value in ("Zoë", "example.org", "+49", "Köln"):
        assert value not in everything

    duty.now += dt.timedelta(seconds=30)
    duty.tick()
    assert http.got == posted, "told once"
    duty.now += dt.timedelta(hours=5)
    duty.tick()
    assert "still so since" in json.dumps(http.got[len(posted) :])

    before = len(http.got)
    drop(settings, "two.json", *(person(n) for n in range(11, 20)))
    assert duty.load().success
    duty.now += dt.timedelta(minutes=1)
    duty.tick()
    assert "check error_rate failed (well again" in json.dumps(http.got[before:])


def test_a_failed_run_is_told_with_our_words_and_no_others(
    settings: Settings, spark: SparkSession, instance: dg.DagsterInstance, http: Http, monkeypatch: pytest.MonkeyPatch
) -> None:
    duty = Duty(with_channels(settings, hook=http.url), instance)
    duty.tick()
    drop(settings, "one.json", person(1))
    monkeypatch.setattr("bronze_assets.load.load", lambda *_: (_ for _ in ()).throw(ValueError("Zoë Nr. 1")))

    assert not duty.load().success
    duty.now += dt.timedelta(minutes=1)
    duty.tick()

    text = json.dumps(http.got, ensure_ascii=False)
    assert f"the run of load_{SCHEMA}_files failed" in text
    assert "table bz_people" in text
    assert "ValueError" in text
    assert "Zoë" not in text
    assert "/runs/" in text


def test_what_concerns_personal_data_is_told(
    settings: Settings, spark: SparkSession, instance: dg.DagsterInstance, http: Http
) -> None:
    duty = Duty(with_channels(settings, hook=http.url), instance)
    duty.tick()
    drop(settings, "one.json", person(1), person(2))
    assert duty.load().success
    run = {"subjects": ["bz_people:1"], "reason": "asked for", "by": "duty"}
    erased = duty.definitions.resolve_job_def("erase").execute_in_process(
        instance=instance, run_config={"ops": {"erase_subjects": {"config": run}}}, raise_on_error=False
    )
    revealed = duty.definitions.resolve_job_def("reveal").execute_in_process(
        instance=instance,
        run_config={
            "ops": {"reveal_values": {"config": {"table": "bz_people", "key": "2", "purpose": " ", "by": "x"}}}
        },
        raise_on_error=False,
    )
    assert erased.success
    assert not revealed.success, "without a purpose"

    duty.now = dt.datetime.now(dt.UTC)
    duty.tick()

    text = json.dumps(http.got, ensure_ascii=False)
    assert "bz_people: an erasure is done" in text
    assert "bz_people: a reveal was refused" in text
    assert "docs/runbook.md#security_event" in text or "messages" in text


def test_the_job_says_which_channel_failed(settings: Settings, instance: dg.DagsterInstance, http: Http) -> None:
    settings = with_channels(settings, hook=http.url, down=f"json://127.0.0.1:{free_port()}/")
    job = alerts_definitions(settings, [people()]).get_job_def("test_alerts")

    result = job.execute_in_process(instance=instance, raise_on_error=False)

    assert not result.success
    (failure,) = [event for event in result.all_events if event.is_step_failure]
    assert "Nothing got through to down." in str(failure.step_failure_data.user_failure_data)
    assert [one["title"] for one in http.got] == ["[local] a test message"]
