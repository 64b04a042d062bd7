"""The compliance report over a lake that `deltalake` wrote: whole at first, then broken in one place."""

from __future__ import annotations

import dataclasses
import datetime as dt
import json
import re
import shutil
import subprocess
import uuid
from collections.abc import Mapping
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pandera.pyspark as pandera
import pyarrow as pa
import pyspark.sql.types as T
import pytest
from deltalake import DeltaTable, write_deltalake

from bronze_assets import __main__ as command_line
from bronze_assets import lakehouse, private_tables
from bronze_assets.access import ACCESS_LOG, ERASURE_LOG, SUBJECT_KEYS, TOKEN_VAULT
from bronze_assets.arrow_schema import arrow_schema
from bronze_assets.audit import AUDIT_LOG
from bronze_assets.catalog import TABLES
from bronze_assets.demo import home as demo_home
from bronze_assets.lakehouse import Lakehouse
from bronze_assets.orchestration.compliance import compliance_jobs
from bronze_assets.privacy import erasure, keys, rotation
from bronze_assets.privacy.access_log import Access, Outcome, log_access
from bronze_assets.privacy.compliance import Report, compliance
from bronze_assets.privacy.data_keys import DataKeys
from bronze_assets.privacy.keys import existing_ring
from bronze_assets.privacy.values import place, seal, token
from bronze_assets.sources.landing import LandingZone
from bronze_assets.table import BronzeTable, Cadence, Pii, column
from bronze_assets_tests.conftest import settings_for
from bronze_assets_tests.people import NAME, NOW, SCHEMA, drop, people, person

DAY = dt.timedelta(days=1)
QUARANTINE = f"{NAME}_quarantine"
# In every plain value of the lake, so that the report can be searched for it.
CANARY = "Zoë Canary"
NUMBER = "+49 30 5550199"


class Lake:
    """A lake that holds what a load, a quarantine, an erasure and a reveal leave."""

    def __init__(self, home: Path) -> None:
        self.settings = settings_for(home)
        self.lake = Lakehouse(self.settings.lake)
        self.table = people()
        self.ring = keys.key_ring(self.settings)
        self.data_keys = DataKeys(self.lake, self.ring, SCHEMA, lambda: NOW)
        self.data_keys.ensure([NAME, f"{NAME}/1", f"{NAME}/2"])
        self.write(self.row(1), self.row(2), self.row(3) | dict.fromkeys(["name", "email", "phone", "city"]))
        self.quarantine(self.sealed_bad())
        vaulted = {"token": self.token(NUMBER), "subject": f"{NAME}/1", "value": "enc:1:s:AAAA", "created": NOW}
        rows = pa.Table.from_pylist([vaulted], schema=erasure.VAULT)
        self.lake.change_private(SCHEMA, TOKEN_VAULT, erasure.VAULT, lambda _: rows, on="token", change="insert")
        self.archive("monday.jsonl", self.ring)
        self.lake.append_rows(SCHEMA, AUDIT_LOG, pa.schema([("batch_id", pa.string())]), [{"batch_id": "b/1"}])
        self.erasure("begun", "one", at=NOW - 2 * DAY)
        self.erasure("done", "one", at=NOW - 2 * DAY)
        self.access(Outcome.ANSWERED, "a complaint")

    def seal(self, column: str, value: str, number: int = 1) -> str:
        key = self.data_keys.key(f"{NAME}/{min(number, 2)}")
        assert key is not None
        return seal(value, key, version=1, kind="s", where=place(SCHEMA, NAME, column, str(number)))

    def token(self, value: str) -> str:
        return token(self.data_keys.hmac_key("token"), value)

    def row(self, number: int) -> dict[str, Any]:
        return person(number, file_name="raw/people/a.jsonl", load_timestamp=NOW, _rescued_data=None) | {
            "name": self.seal("name", CANARY, number),
            "email": self.seal("email", "canary@example.org", number),
            "phone": self.token(NUMBER),
        }

    def write(self, *rows: Mapping[str, Any], columns: Mapping[str, pa.DataType] | None = None) -> None:
        """The bronze table anew."""
        fields: dict[str, pa.DataType] = {"person_id": pa.int32()} | {
            name: pa.string() for name in ("name", "email", "phone", "city")
        }
        fields |= {"visits": pa.int32(), "file_name": pa.string(), "load_timestamp": pa.timestamp("us", tz="UTC")}
        schema = pa.schema([*fields.items(), ("_rescued_data", pa.string()), *(columns or {}).items()])
        folder = Path(self.lake.location(SCHEMA, NAME))
        shutil.rmtree(folder, ignore_errors=True)
        DeltaTable.create(str(folder), schema, configuration={**lakehouse.PROPERTIES})
        write_deltalake(str(folder), pa.Table.from_pylist([dict(row) for row in rows], schema=schema), mode="append")

    def sealed_bad(self, **values: Any) -> dict[str, Any]:
        texts = {"person_id": "2", "name": self.seal("name", CANARY), "email": None, "phone": self.seal("phone", "x")}
        reason = {"rule": "email_matches", "column": "email", "expected": "^[^@]+@[^@]+$", "found": None}
        return {
            "row_key": "2",
            "raw_row": json.dumps(texts),
            "reasons": [reason],
            "first_seen": NOW - DAY,
            "state": "open",
        } | values

    def quarantine(self, *rows: Mapping[str, Any]) -> None:
        """The quarantine anew."""
        schema = arrow_schema(lakehouse.QUARANTINE)
        folder = Path(self.lake.location(SCHEMA, QUARANTINE))
        shutil.rmtree(folder, ignore_errors=True)
        DeltaTable.create(str(folder), schema, configuration={**lakehouse.PROPERTIES})
        write_deltalake(str(folder), pa.Table.from_pylist([dict(row) for row in rows], schema=schema), mode="append")

    def archive(self, name: str, ring: keys.KeyRing | None) -> None:
        path = drop(self.settings, name, person(1, name=CANARY))
        zone = LandingZone(self.settings.landing, self.settings.archive, lambda: self.ring)
        assert self.table.feed is not None
        (file,) = [file for file in zone.files(self.table.feed) if file.path.endswith(path.name)]
        zone.archive(file, "2026-06-14", zone.content_hash(file), ring=ring)

    def erasure(
        self, event: str, name: str, *, at: dt.datetime, subject: str = "ab" * 32, until: dt.datetime | None = None
    ) -> str:
        erasure_id = str(uuid.uuid5(uuid.NAMESPACE_URL, name))
        told = {"erasure_id": erasure_id, "at": at, "event": event, "table_name": NAME, "until": until}
        row = told | {"subject_hmacs": [subject], "subjects": 1, "who": "an officer", "reason": "request 7"}
        self.lake.append_rows(SCHEMA, ERASURE_LOG, erasure.EVIDENCE, [row])
        return erasure_id

    def access(self, outcome: Outcome, purpose: str, who: str = "officer") -> None:
        log_access(self.lake, Access(NOW, who, SCHEMA, NAME, ("email",), purpose, "reveal", outcome, row_key="1"))

    def delta(self, name: str) -> DeltaTable:
        return DeltaTable(self.lake.location(SCHEMA, name))

    def report(self, *more: BronzeTable) -> Report:
        return compliance(
            self.settings, self.lake, lambda: existing_ring(self.settings), [self.table, *more], lambda: NOW
        )

    def fails(self, *more: BronzeTable) -> list[str]:
        """Names of the failing controls. What fails says what was found and what to do, and no value."""
        report = self.report(*more)
        for control in report.controls:
            assert control.sentence
            assert bool(control.fix) == (control.holds is False)
        for text in (report.to_json(), report.to_html(), "\n".join(report.lines())):
            assert not re.search("Canary|canary|5550199|enc:1|tok:[0-9a-f]", text)
        return [control.name for control in report.failing]

    def sentence(self, name: str) -> str:
        (found,) = (control for control in self.report().controls if control.name == name)
        return found.sentence


@pytest.fixture
def lake(tmp_path: Path) -> Lake:
    return Lake(tmp_path / "home")


def test_everything_holds_in_a_whole_lake(lake: Lake) -> None:
    report = lake.report()

    assert report.failing == ()
    assert (report.score, len(report.controls)) == (100, 19)
    # There is no Unity Catalog.
    assert [one.name for one in report.controls if one.holds is None] == ["grants"]
    assert [(c.column, c.pii, c.values, c.protected) for c in report.columns] == [
        ("name", "High", 2, 2),
        ("email", "High", 2, 2),
        ("phone", "Medium", 2, 2),
        ("city", "Low", 2, None),
    ]
    assert lake.fails() == []


def test_an_empty_lake_has_nothing_to_fail_and_no_key_is_made(tmp_path: Path) -> None:
    settings = settings_for(tmp_path / "home")

    report = compliance(settings, Lakehouse(settings.lake), lambda: existing_ring(settings), TABLES, lambda: NOW)

    assert report.failing == ()
    assert not settings.home.exists()


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("name", CANARY),
        ("name", f"enc: {CANARY}"),
        ("name", "tok:" + "0" * 64),
        ("name", ""),
        ("email", f"enc:1:s:AAAA\n{CANARY}"),
        ("phone", NUMBER),
        ("phone", f"tok:{NUMBER}"),
    ],
)
def test_one_value_that_is_not_protected_fails(lake: Lake, column: str, value: str) -> None:
    lake.write(lake.row(1), lake.row(2) | {column: value})

    assert lake.fails() == ["stored_protected"]
    assert f"{NAME}.{column} (1 of 2 values)" in lake.sentence("stored_protected")
    assert 0 < lake.report().score < 100


def test_a_column_that_cannot_hold_a_text_fails(lake: Lake) -> None:
    class Members(pandera.DataFrameModel):
        member_id: T.IntegerType = column(key=True, description="Identifies a member.")
        born: T.DateType = column(pii=Pii.HIGH, description="When the member was born.")

    wrong = BronzeTable(SCHEMA, "club.Members", Members, Cadence.DAILY, "Members.")

    assert lake.fails(wrong) == ["declared_text"]


def test_a_readable_rescued_value_fails(lake: Lake) -> None:
    lake.write(lake.row(1) | {"_rescued_data": json.dumps({"e-mail": "canary@example.org"})})

    # It also is a value that nobody declared; alone it is too little to look like anything.
    assert lake.fails() == ["rescued_sealed", "unclassified"]


@pytest.mark.parametrize(
    "values",
    [
        {"raw_row": json.dumps({"person_id": "2", "name": CANARY})},
        {"raw_row": json.dumps({"_line": f'{{"name": "{CANARY}'})},
        {"raw_row": CANARY},
        {"raw_row": json.dumps([CANARY])},
        {"raw_row": json.dumps({"phone": 495550199})},
        {"rescued_data": json.dumps({"e-mail": "canary@example.org"})},
        {"reasons": [{"rule": "r", "column": "email", "expected": "x", "found": "canary@example.org"}]},
    ],
)
def test_a_readable_quarantined_value_fails(lake: Lake, values: dict[str, Any]) -> None:
    lake.quarantine(lake.sealed_bad(), lake.sealed_bad(**values))

    assert lake.fails() == ["quarantine_sealed"]


def test_a_quarantined_file_and_a_sealed_line_hold(lake: Lake) -> None:
    line = json.dumps({"_line": lake.seal("_line", CANARY)})
    lake.quarantine(lake.sealed_bad(raw_row=None), lake.sealed_bad(raw_row=line, rescued_data=lake.seal("x", CANARY)))

    assert lake.fails() == []


def test_a_plain_archived_file_fails(lake: Lake) -> None:
    lake.archive("tuesday.jsonl", None)

    assert lake.fails() == ["archive_encrypted"]


def test_a_missing_master_key_fails_and_is_not_made_anew(lake: Lake) -> None:
    path = lake.settings.home / "keys" / "master.key"
    path.unlink()

    assert lake.fails() == ["master_key", "keys_current"]
    assert not path.exists()


def test_somebody_elses_master_key_fails(lake: Lake, tmp_path: Path) -> None:
    other = settings_for(tmp_path / "other")
    keys.key_ring(other)
    (lake.settings.home / "keys" / "master.key").write_bytes((other.home / "keys" / "master.key").read_bytes())

    assert lake.fails() == ["master_key"]


def test_protected_values_without_their_keys_fail(lake: Lake) -> None:
    shutil.rmtree(Path(lake.lake.location(SCHEMA, SUBJECT_KEYS)))

    assert lake.fails() == ["master_key"]


def test_keys_may_be_one_version_behind_and_not_two(lake: Lake) -> None:
    keys.rotated(lake.settings)
    assert lake.fails() == []
    assert "4 keys are still under the one before" in lake.sentence("keys_current")

    keys.rotated(lake.settings)
    assert lake.fails() == ["keys_current"]
    assert "4 keys are more than 1 version behind" in lake.sentence("keys_current")

    rotation.rotate(lake.settings, lake.lake, [lake.table], lambda: NOW)
    assert lake.fails() == []


def test_keys_under_a_version_that_is_gone_fail(lake: Lake) -> None:
    keys.rotated(lake.settings)
    keys.retire(lake.settings, 1)

    assert "keys_current" in lake.fails()


@pytest.mark.parametrize("name", [SUBJECT_KEYS, TOKEN_VAULT])
@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("delta.deletedFileRetentionDuration", "interval 7 days", "keeps removed files"),
        ("delta.enableChangeDataFeed", "true", "has a change feed"),
    ],
)
def test_a_private_table_that_keeps_too_much_fails(lake: Lake, name: str, key: str, value: str, said: str) -> None:
    lake.delta(name).alter.set_table_properties({key: value})

    assert lake.fails() == ["private_tables"]
    assert f"{name} {said}" in lake.sentence("private_tables")


def test_statistics_of_a_private_table_fail(lake: Lake) -> None:
    folder = Path(lake.lake.location(SCHEMA, TOKEN_VAULT))
    rows = DeltaTable(str(folder)).schema()
    shutil.rmtree(folder)
    told = {**private_tables.PRIVATE, "delta.dataSkippingNumIndexedCols": "1"}
    DeltaTable.create(str(folder), rows, configuration=told)
    row = {"token": "tok", "subject": "s", "value": "v", "created": NOW}
    write_deltalake(str(folder), pa.Table.from_pylist([row], schema=erasure.VAULT), mode="append")

    assert lake.fails() == ["private_tables"]
    assert "has statistics" in lake.sentence("private_tables")


def test_files_of_an_erasure_that_stay_beyond_their_date_fail(lake: Lake) -> None:
    late = lake.erasure("done", "two", at=NOW - 33 * DAY, until=NOW - 3 * DAY)
    # A daily schedule may miss one.
    lake.erasure("done", "three", at=NOW - 31 * DAY, until=NOW - DAY)

    assert lake.fails() == ["erased_files"]
    assert f"Files of 1 erasures are still there, more than 2 days after their date: {late}." in lake.sentence(
        "erased_files"
    )

    lake.erasure("vacuumed", "two", at=NOW, until=NOW - 3 * DAY)
    assert lake.fails() == []


@pytest.mark.parametrize("name", [AUDIT_LOG, ACCESS_LOG, ERASURE_LOG])
def test_a_log_that_can_be_changed_fails_and_so_does_one_that_was(lake: Lake, name: str) -> None:
    lake.delta(name).alter.set_table_properties({"delta.appendOnly": "false"})
    assert lake.fails() == ["append_only"]

    lake.delta(name).delete("false")
    lake.delta(name).delete()
    lake.delta(name).alter.set_table_properties({"delta.appendOnly": "true"})
    assert lake.fails() == ["append_only"]
    assert f"{name} was changed" in lake.sentence("append_only")


def test_a_failed_erasure_fails_until_a_later_one_is_done(lake: Lake) -> None:
    lake.erasure("begun", "two", at=NOW - 3 * DAY, subject="cd" * 32)
    failed = lake.erasure("failed", "two", at=NOW - 3 * DAY, subject="cd" * 32)
    assert lake.fails() == ["erasures_failed"]
    assert failed in lake.sentence("erasures_failed")
    assert lake.report().erasures.failed == (failed,)

    lake.erasure("begun", "three", at=NOW - DAY, subject="cd" * 32)
    lake.erasure("done", "three", at=NOW - DAY, subject="cd" * 32)
    assert lake.fails() == []
    assert (lake.report().erasures.done, lake.report().erasures.subjects) == (2, 2)


def test_an_erasure_without_an_end_fails_after_a_day(lake: Lake) -> None:
    lake.erasure("begun", "two", at=NOW - dt.timedelta(hours=1), subject="cd" * 32)
    assert lake.fails() == []

    left = lake.erasure("begun", "three", at=NOW - 2 * DAY, subject="ef" * 32)
    assert lake.fails() == ["erasures_open"]
    assert lake.report().erasures.open == (left,)

    lake.erasure("begun", "four", at=NOW, subject="ef" * 32)
    lake.erasure("done", "four", at=NOW, subject="ef" * 32)
    assert lake.fails() == []


def test_an_earlier_erasure_settles_no_later_one(lake: Lake) -> None:
    lake.erasure("begun", "again", at=NOW - DAY)
    lake.erasure("failed", "again", at=NOW - DAY)

    assert lake.fails() == ["erasures_failed"]


def test_personal_rows_that_wait_too_long_in_quarantine_fail(lake: Lake) -> None:
    old = {"first_seen": NOW - 31 * DAY}
    lake.quarantine(lake.sealed_bad(), lake.sealed_bad(**old, state="dismissed"))
    assert lake.fails() == []
    assert [(one.rows, one.oldest) for one in lake.report().quarantine] == [(1, NOW - DAY)]

    lake.quarantine(lake.sealed_bad(**old, state=None))
    assert lake.fails() == ["quarantine_age"]


def test_an_unclassified_column_fails_and_one_that_looks_personal_twice(lake: Lake) -> None:
    lake.write(lake.row(1) | {"nickname": "Zo"}, columns={"nickname": pa.string()})
    assert lake.fails() == ["unclassified"]

    rows = [lake.row(number) | {"contact": f"canary.{number}@example.org"} for number in range(1, 5)]
    lake.write(*rows, columns={"contact": pa.string()})
    assert lake.fails() == ["suspects", "unclassified"]
    assert [(one.column, one.kind) for one in lake.report().suspects] == [("contact", "e-mail")]


@pytest.mark.parametrize(
    ("key", "value"),
    [("delta.deletedFileRetentionDuration", "interval 31 days"), ("delta.deletedFileRetentionDuration", "for ever")],
)
def test_removed_files_that_stay_for_too_long_fail(lake: Lake, key: str, value: str) -> None:
    schema = DeltaTable(lake.lake.location(SCHEMA, QUARANTINE)).schema()
    shutil.rmtree(Path(lake.lake.location(SCHEMA, QUARANTINE)))
    # Not by delta-rs, which takes no such text.
    DeltaTable.create(lake.lake.location(SCHEMA, QUARANTINE), schema)
    log = Path(lake.lake.location(SCHEMA, QUARANTINE)) / "_delta_log" / "00000000000000000000.json"
    log.write_text(log.read_text().replace('"configuration":{}', json.dumps({"configuration": {key: value}})[1:-1]))

    assert lake.fails() == ["retention"]


def test_deletion_vectors_fail(lake: Lake) -> None:
    schema = DeltaTable(lake.lake.location(SCHEMA, QUARANTINE)).schema()
    shutil.rmtree(Path(lake.lake.location(SCHEMA, QUARANTINE)))
    told: dict[str, str | None] = {"delta.enableDeletionVectors": "true"}
    DeltaTable.create(lake.lake.location(SCHEMA, QUARANTINE), schema, configuration=told)

    assert lake.fails() == ["retention"]


def test_readers_are_counted_and_an_answer_without_a_purpose_fails(lake: Lake) -> None:
    lake.access(Outcome.ANSWERED, "another complaint")
    lake.access(Outcome.REFUSED, "", who="curious")
    lake.access(Outcome.FAILED, "a test", who="curious")

    assert lake.fails() == []
    assert [dataclasses.astuple(one) for one in lake.report().access] == [
        ("curious", 2, 1, 0, 1, 1, 0),
        ("officer", 2, 2, 2, 0, 0, 0),
    ]

    lake.access(Outcome.ANSWERED, " ")
    assert lake.fails() == ["purposes"]


def test_what_cannot_be_checked_does_not_hold(lake: Lake) -> None:
    for file in Path(lake.lake.location(SCHEMA, ERASURE_LOG)).glob("*.parquet"):
        file.write_bytes(b"damaged")

    assert lake.fails() == ["erasures_failed", "erasures_open", "erasures_held", "erased_files"]
    assert lake.sentence("erasures_open").startswith("This could not be checked")


def test_failing_controls_come_first_and_the_worst_of_them_above(lake: Lake) -> None:
    lake.quarantine(lake.sealed_bad(first_seen=NOW - 31 * DAY))
    lake.write(lake.row(1) | {"name": CANARY})

    report = lake.report()

    assert [one.name for one in report.controls[:2]] == ["stored_protected", "quarantine_age"]
    assert report.score == 88
    told = json.loads(report.to_json())
    assert (told["score"], told["controls"][0]["holds"]) == (88, False)
    lines = report.lines()
    assert lines[0] == "Compliance: 88 %; 16 of 18 controls hold."
    assert sum(line.strip().startswith("Fix: ") for line in lines) == 2


class _Page(HTMLParser):
    """Tags that are open, and everything that a page would fetch or run."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.reached: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in ("script", "link", "img", "iframe", "object", "base", "form"):
            self.reached.append(tag)
        self.reached += [name for name, _ in attrs if name in ("src", "href", "style") or name.startswith("on")]
        if tag != "meta":
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_page_is_whole_fetches_nothing_and_writes_strange_names_out(lake: Lake) -> None:
    strange = '<script src="https://example.org">`x`'
    lake.write(lake.row(1) | {strange: "v"}, columns={strange: pa.string()})
    lake.access(Outcome.ANSWERED, "p", who="<b>o'clock</b>")

    text = lake.report().to_html()

    page = _Page()
    page.feed(text)
    assert (page.open, page.reached) == ([], [])
    assert "&lt;script" in text
    assert "url(" not in text
    assert "@import" not in text


@pytest.mark.skipif(shutil.which("chromium") is None, reason="chromium is not installed (apt package chromium)")
@pytest.mark.parametrize("width", [390, 1200])
def test_a_browser_shows_the_page_without_scrolling_sideways(lake: Lake, width: int, tmp_path: Path) -> None:
    lake.write(lake.row(1) | {"name": CANARY, "nickname": "Zo"}, columns={"nickname": pa.string()})
    lake.archive("tuesday.jsonl", None)
    page = lake.report().write(lake.settings.home / "reports")
    # Chromium's own window is never narrower than 500 pixels; a frame is.
    frame = tmp_path / "frame.html"
    measure = "document.title = 'wide ' + f.contentDocument.documentElement.scrollWidth"
    frame.write_text(
        f"<!doctype html><iframe id=f width={width} height=900 style='border:0' src='{page.as_uri()}'"
        f' onload="{measure}"></iframe>'
    )

    def chromium(*options: str) -> str:
        command = ["chromium", "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}"]
        done = subprocess.run([*command, *options], capture_output=True, text=True, timeout=120, check=True)
        return done.stdout

    shown = chromium("--allow-file-access-from-files", "--dump-dom", frame.as_uri())
    assert int(re.findall("<title>wide ([0-9]+)", shown)[0]) <= width
    assert "Fails: Every High and Medium value" in chromium("--dump-dom", page.as_uri())
    picture = tmp_path / "page.png"
    chromium(f"--screenshot={picture}", f"--window-size={max(width, 500)},1600", "--hide-scrollbars", page.as_uri())
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_the_command_prints_writes_and_ends_well_also_where_a_control_fails(
    lake: Lake, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    lake.write(lake.row(1) | {"name": CANARY})
    # The command has a clock of its own.
    lake.quarantine(lake.sealed_bad(state="dismissed"))
    monkeypatch.setattr(command_line, "TABLES", [lake.table, *TABLES])
    monkeypatch.setenv("BRONZE_HOME", str(lake.settings.home))
    for variable in ("BRONZE_LAKE", "BRONZE_LANDING", "BRONZE_ARCHIVE", "BRONZE_MASTER_KEY"):
        monkeypatch.delenv(variable, raising=False)

    assert command_line.main(["compliance"]) == 0

    said = capsys.readouterr().out
    assert said.startswith("Compliance: 94 %; 17 of 18 controls hold.\nFAILS  Every High and Medium value")
    assert "exit code is 0 also where a control fails" in said
    written = lake.settings.home / "reports"
    assert sorted(path.name for path in written.iterdir()) == ["compliance.html", "compliance.json"]
    assert "reports" not in demo_home.strangers(lake.settings.home)

    assert command_line.main(["compliance", "--output", str(tmp_path / "else where")]) == 0
    assert (tmp_path / "else where" / "compliance.html").is_file()

    (tmp_path / "file").touch()
    assert command_line.main(["compliance", "--output", str(tmp_path / "file")]) == 1
    assert "cannot be written" in capsys.readouterr().err


def test_the_job_tells_score_and_path_and_fails_for_no_control(lake: Lake) -> None:
    lake.write(lake.row(1) | {"name": CANARY})
    lake.quarantine(lake.sealed_bad(state="dismissed"))
    (job,) = compliance_jobs(lake.settings, [lake.table])

    result = job.execute_in_process()

    (told,) = [event.step_output_data.metadata for event in result.all_events if event.is_successful_output]
    assert told["score"].value == 94
    assert told["path"].value == str(lake.settings.home / "reports" / "compliance.html")
    assert told["failing"].value == 1
    assert Path(str(told["path"].value)).is_file()
    assert compliance_jobs(lake.settings, [t for t in TABLES if not t.has_personal_data]) == []
