"""The right to be forgotten: who is erased is nowhere, and comes back by no load, restore, archive or kill."""

from __future__ import annotations

import dataclasses
import gzip
import hashlib
import io
import json
import os
import re
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as arrow
import pyarrow.parquet as pq
import pytest
from deltalake import DeltaTable

from bronze_assets import storage
from bronze_assets.errors import LakeError, PrivacyRefused, TableBusy
from bronze_assets.lakehouse import Lakehouse
from bronze_assets.privacy import erasure
from bronze_assets.privacy.archive import open_encrypted
from bronze_assets.privacy.data_keys import DataKeys
from bronze_assets.privacy.keys import key_ring
from bronze_assets.privacy.redaction import without
from bronze_assets.settings import Settings
from bronze_assets.sources.landing import LandedFile, LandingZone
from bronze_assets.table import BronzeTable, Loaded, Overwritten
from bronze_assets_tests import lake_reader
from bronze_assets_tests.conftest import IN_BOTH
from bronze_assets_tests.file_tables import HEADER, json_lines, row, things
from bronze_assets_tests.people import NAME, NOW, SCHEMA, Keys, drop, erased, loaded, path, people, person

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

GONE = ["Zoë Nr. 2", "zoe.2@example.org"]


def stocked(settings: Settings) -> None:
    """Person 2 in two versions, in the quarantine, a cut-off line, the vault, the archive and a new file."""
    drop(settings, "a.json", person(1), person(2), person(3, visits=-1), '{"person_id": 2, "name": "Zoë Nr. 2')
    loaded(settings)
    drop(settings, "b.json", person(2, city="Bonn"), person(2, name="Zoë Nr. 2 the elder", visits=-2))
    loaded(settings)
    drop(settings, "c.json", person(2, city="Ulm"), person(4))


def rows(settings: Settings, name: str = NAME) -> list[dict[str, Any]]:
    return lake_reader.read(path(settings, name))


def plain_archive(settings: Settings) -> str:
    ring = key_ring(settings)
    texts = []
    for file in Path(settings.archive).rglob("*.enc"):
        with file.open("rb") as stream, open_encrypted(stream, ring) as plain:
            texts.append(plain.read().decode())
    return "".join(texts)


@IN_BOTH
def test_a_person_leaves_every_table_and_file_and_nobody_else_does(spark: SparkSession, settings: Settings) -> None:
    stocked(settings)
    before = {r["person_id"]: r for r in rows(settings) if r["person_id"] != 2}
    assert all(word in plain_archive(settings) for word in GONE)
    evidence = erased(settings, "2")
    assert (evidence.versions, evidence.quarantined, evidence.tokens, evidence.keys) == (2, 2, 1, 1)
    assert (evidence.files, evidence.rows_in_files) == (3, 5)
    mine = [r for r in rows(settings) if r["person_id"] == 2]
    assert len(mine) == 2
    for r in mine:
        blanks = ("name", "email", "phone", "city", "record_hash", "_rescued_data")
        assert (r["record_status"], *(r[name] for name in blanks)) == ("ERASED", *[None] * len(blanks))
    assert {r["person_id"]: r for r in rows(settings) if r["person_id"] != 2} == before
    assert [r["row_key"] for r in rows(settings, f"{NAME}_quarantine")] == ["3"]
    assert {r["subject"] for r in rows(settings, "bz_token_vault")} == {f"{NAME}/1", f"{NAME}/3"}
    assert f"{NAME}/2" not in Keys(settings).subjects
    kept = plain_archive(settings)
    assert not [word for word in GONE if word in kept]
    assert "Zoë Nr. 1" in kept
    landing = "".join(file.read_text() for file in Path(settings.landing).rglob("*.json"))
    assert [json.loads(line)["person_id"] for line in landing.splitlines() if line] == [4]


def test_the_evidence_says_what_was_done_and_never_who(spark: SparkSession, settings: Settings) -> None:
    stocked(settings)
    erased(settings, "2", run_id="a run")
    begun, done = sorted(rows(settings, "bz_erasure_log"), key=lambda r: r["event"])
    assert (begun["event"], done["event"]) == ("begun", "done")
    assert (done["who"], done["reason"], done["subjects"], done["versions"], done["run_id"]) == (
        *("dpo", "asked for", 1, 2, "a run"),
    )
    assert done["subject_hmacs"] == [Keys(settings).hmac("tombstone", f"{SCHEMA}/{NAME}/2")]
    assert done["until"] > NOW
    log = path(settings, "bz_erasure_log")
    content = b"".join(file.read_bytes() for file in log.rglob("*") if file.is_file())
    assert not [word for word in [*GONE, f"{NAME}/2"] if word.encode() in content]
    assert lake_reader.properties(log)["delta.appendOnly"] == "true"


def test_nobody_comes_back_by_a_load_a_reload_or_a_restore(spark: SparkSession, settings: Settings) -> None:
    stocked(settings)
    ciphertexts = [r["name"] for r in rows(settings) if r["person_id"] == 2]
    version = DeltaTable(str(path(settings))).version()
    keys = Keys(settings)
    erased(settings, "2")
    drop(settings, "d.json", person(2), person(5))
    record = loaded(settings)
    assert (record.read, record.loaded, record.erased) == (3, 2, 1)
    loaded(settings, reload=True)
    assert not [r for r in rows(settings) if r["person_id"] == 2 and r["record_status"] == "ACTIVE"]
    # As of then the ciphertext is there again, and opens with no key that there is.
    DeltaTable(str(path(settings))).restore(version)
    assert ciphertexts == [r["name"] for r in rows(settings) if r["person_id"] == 2]
    assert f"{NAME}/2" not in Keys(settings).subjects
    private = path(settings, "bz_subject_keys")
    everything = b"".join(file.read_bytes() for file in private.rglob("*") if file.is_file())
    assert keys.subjects[f"{NAME}/2"] not in everything
    files = {Path(name).name for name in DeltaTable(str(private)).file_uris()}
    assert {file.name for file in private.glob("*.parquet")} == files, "no file of an earlier version is left"


@IN_BOTH
@pytest.mark.slow
def test_erasing_again_changes_nothing_and_a_killed_one_is_finished(
    spark: SparkSession, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    stocked(settings)
    steps = (
        (Lakehouse, "blank"),
        (Lakehouse, "remove_quarantined"),
        (Lakehouse, "purge"),
        (LandingZone, "write"),
        (DataKeys, "drop"),
    )
    for owner, name in steps:
        real = getattr(owner, name)

        def killed(*arguments: Any, real: Any = real, **named: Any) -> None:
            real(*arguments, **named)
            raise KeyboardInterrupt

        with monkeypatch.context() as patched:
            patched.setattr(owner, name, killed)
            with pytest.raises(KeyboardInterrupt):
                erased(settings, "2")
    erased(settings, "2")
    assert not [r for r in rows(settings) if r["person_id"] == 2 and r["record_status"] == "ACTIVE"]
    assert not [word for word in GONE if word in plain_archive(settings)]
    assert f"{NAME}/2" not in Keys(settings).subjects
    state = rows(settings)
    evidence = erased(settings, "2")
    assert (evidence.versions, evidence.quarantined, evidence.tokens, evidence.files, evidence.keys) == (0, 0, 0, 0, 0)
    assert rows(settings) == state
    assert len(rows(settings, "bz_tombstones")) == 1


def test_a_copy_out_of_reach_fails_loudly_and_a_later_call_finishes(spark: SparkSession, settings: Settings) -> None:
    stocked(settings)
    (file, *_) = sorted(Path(settings.archive).rglob("*.enc"))
    content = file.read_bytes()
    file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(LakeError, match=r"bz_people: .*\.enc' could not be searched for the person"):
        erased(settings, "2")
    assert [r["event"] for r in rows(settings, "bz_erasure_log")].count("failed") == 1
    # Nothing brings the person back meanwhile.
    drop(settings, "d.json", person(2))
    assert loaded(settings).erased == 1
    file.write_bytes(content)
    assert erased(settings, "2").keys == 1


def test_the_session_encrypts_what_it_spills(spark: SparkSession) -> None:
    """Shuffles hold rows before they are protected."""
    assert spark._jvm is not None
    key = spark._jvm.org.apache.spark.SparkEnv.get().securityManager().getIOEncryptionKey()
    assert key.isDefined()


def open_lines(settings: Settings) -> list[str]:
    texts = [json.loads(row["raw_row"]).get("_line") for row in rows(settings, f"{NAME}_quarantine")]
    return [text for text in texts if text is not None]


def test_a_sealed_line_that_does_not_open_fails_loudly(spark: SparkSession, settings: Settings) -> None:
    stocked(settings)
    (line,) = open_lines(settings)
    assert line.startswith("enc:")
    name, at = f"delta.`{path(settings, f'{NAME}_quarantine')}`", DeltaTable(str(path(settings, f"{NAME}_quarantine")))
    version, damaged = at.version(), line[:-8] + ("AAAA" if line[-8:-4] != "AAAA" else "BBBB") + line[-4:]
    spark.sql(f"update {name} set raw_row = replace(raw_row, '{line}', '{damaged}')")
    (row,) = [r for r in rows(settings, f"{NAME}_quarantine") if "_line" in r["raw_row"]]
    with pytest.raises(LakeError, match=f"bz_people: 1 sealed lines of bz_people_quarantine, '{row['row_hash']}'"):
        erased(settings, "2")
    assert not [r for r in rows(settings) if r["person_id"] == 2 and r["record_status"] == "ACTIVE"]
    assert not [word for word in GONE if word in plain_archive(settings)]
    assert f"{NAME}/2" in Keys(settings).subjects
    DeltaTable(str(path(settings, f"{NAME}_quarantine"))).restore(version)
    evidence = erased(settings, "2")
    assert (evidence.quarantined, evidence.keys) == (2, 1)
    assert open_lines(settings) == []


def test_a_line_whose_key_is_gone_for_good_stands_in_nobodys_way(spark: SparkSession, settings: Settings) -> None:
    stocked(settings)
    DataKeys(Lakehouse(settings.lake), key_ring(settings), SCHEMA, lambda: NOW).drop([NAME])
    evidence = erased(settings, "2")
    assert (evidence.quarantined, evidence.keys) == (1, 1)
    assert len(open_lines(settings)) == 1


# -------------------------------------------------------------------------------------------------- ledger and files


def ledger(settings: Settings) -> list[dict[str, Any]]:
    return rows(settings, "bz_file_ledger")


def states(settings: Settings) -> dict[str, dict[str, Any]]:
    """File → its latest event."""
    return {Path(row["path"]).name: row for row in sorted(ledger(settings), key=lambda row: row["number"])}


def leaving(overwritten: Overwritten = Overwritten.RELOAD) -> BronzeTable:
    """A table whose loaded files stay in the landing zone."""
    return people(loaded=Loaded.LEAVE, overwritten=overwritten)


def landed(settings: Settings, name: str) -> bytes:
    return (Path(settings.landing) / "raw/people" / name).read_bytes()


def test_the_ledger_hears_of_all_rewritten_files_at_once(spark: SparkSession, settings: Settings) -> None:
    stocked(settings)
    drop(settings, "d.json.gz.json", person(2, city="Bern"))
    before = DeltaTable(str(path(settings, "bz_file_ledger"))).version()
    assert erased(settings, "2").files == 4
    assert DeltaTable(str(path(settings, "bz_file_ledger"))).version() == before + 1
    ring = key_ring(settings)
    for name in ("a.json", "b.json"):
        (file,) = Path(settings.archive).rglob(f"{name}.enc")
        with file.open("rb") as stream, open_encrypted(stream, ring) as plain:
            assert states(settings)[name]["content_hash"] == hashlib.sha256(plain.read()).hexdigest()
    assert {name: state["event"] for name, state in states(settings).items()} == {
        "a.json": "archived",
        "b.json": "archived",
    }


@pytest.mark.parametrize(
    ("overwritten", "point"),
    [
        (Overwritten.STOP, "told"),
        (Overwritten.RELOAD, "first written"),
        (Overwritten.STOP, "first written"),
        (Overwritten.RELOAD, "all written"),
    ],
)
def test_a_file_that_a_killed_erasure_wrote_is_not_loaded_as_a_changed_one(
    spark: SparkSession,
    settings: Settings,
    monkeypatch: pytest.MonkeyPatch,
    overwritten: Overwritten,
    point: str,
) -> None:
    table = leaving(overwritten)
    for name in ("a.json", "b.json.gz"):
        file = drop(settings, name, person(1 if name == "a.json" else 3), person(2), person(5, visits=9))
        if name.endswith(".gz"):
            moment = file.stat().st_mtime
            file.write_bytes(gzip.compress(file.read_bytes()))
            os.utime(file, (moment, moment))
    loaded(settings, table)
    version = DeltaTable(str(path(settings))).version()
    write, written = LandingZone.write, []

    def killed(self: LandingZone, file: LandedFile, content: bytes) -> LandedFile:
        if point == "told":
            raise KeyboardInterrupt
        written.append(write(self, file, content))
        if point == "first written" or len(written) == 2:
            raise KeyboardInterrupt
        return written[-1]

    with monkeypatch.context() as patched:
        patched.setattr(LandingZone, "write", killed)
        with pytest.raises(KeyboardInterrupt):
            erased(settings, "2", table=table)
    batches = len(rows(settings, "bz_batches"))
    assert loaded(settings, table).read == 0
    # Of more persons than the first time.
    assert erased(settings, "2", "5", table=table).keys == 2
    assert loaded(settings, table).read == 0
    assert len(rows(settings, "bz_batches")) == batches, "nothing was loaded"
    assert [r["person_id"] for r in rows(settings) if r["record_status"] == "ACTIVE"] == [1, 3]
    assert DeltaTable(str(path(settings))).version() >= version
    left = [landed(settings, "a.json"), gzip.decompress(landed(settings, "b.json.gz"))]
    assert [json.loads(one)["person_id"] for one in left] == [1, 3]


def test_a_new_file_under_the_name_of_a_loaded_one_is_still_loaded(spark: SparkSession, settings: Settings) -> None:
    drop(settings, "a.json", person(1))
    loaded(settings)
    drop(settings, "a.json", person(1, city="Ulm"), person(2), person(3))
    assert erased(settings, "2").files == 1
    record = loaded(settings)
    assert (record.read, record.erased) == (2, 0)
    assert {r["person_id"]: r["city"] for r in rows(settings) if r["record_status"] == "ACTIVE"} == {
        1: "Ulm",
        3: "Köln",
    }


def test_an_ignored_file_stays_ignored(spark: SparkSession, settings: Settings) -> None:
    table = leaving(Overwritten.IGNORE)
    drop(settings, "a.json", person(1), person(2))
    loaded(settings, table)
    drop(settings, "a.json", person(1, city="Ulm"), person(2), person(3))
    loaded(settings, table)
    loaded_hash = states(settings)["a.json"]["content_hash"]
    erased(settings, "2", table=table)
    assert loaded(settings, table).read == 0
    assert (states(settings)["a.json"]["event"], states(settings)["a.json"]["content_hash"]) == ("ignored", loaded_hash)
    assert [r["person_id"] for r in rows(settings) if r["record_status"] == "ACTIVE"] == [1]


# ------------------------------------------------------------------------------------------------- at the same time


class Paused:
    """A method of which the first call stands still until `go`, in whichever thread it is."""

    def __init__(self, patch: pytest.MonkeyPatch, owner: type, name: str) -> None:
        self._reached, self._go = threading.Event(), threading.Event()
        real = getattr(owner, name)

        def standing(*arguments: Any, **named: Any) -> Any:
            if not self._reached.is_set():
                self._reached.set()
                assert self._go.wait(120)
            return real(*arguments, **named)

        patch.setattr(owner, name, standing)

    def reached(self) -> None:
        assert self._reached.wait(120)

    def go(self) -> None:
        self._go.set()


def test_an_erasure_during_a_load_is_refused_by_name_and_nobody_comes_back(
    spark: SparkSession, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = dataclasses.replace(settings, lease_seconds=2)
    drop(settings, "a.json", person(1), person(2))
    loaded(settings)
    drop(settings, "b.json", person(2, city="Ulm"), person(3))
    paused = Paused(monkeypatch, Lakehouse, "append")
    with ThreadPoolExecutor(1) as others:
        load = others.submit(loaded, settings)
        paused.reached()
        try:
            with pytest.raises(TableBusy, match=r"bz_people: run run on .* is at work on it"):
                erased(settings, "2")
        finally:
            paused.go()
        assert load.result().loaded == 2
    assert erased(settings, "2").keys == 1
    drop(settings, "c.json", person(2))
    assert loaded(settings).erased == 1
    assert sorted(r["person_id"] for r in rows(settings) if r["record_status"] == "ACTIVE") == [1, 3]
    assert f"{NAME}/2" not in Keys(settings).subjects


def test_of_two_erasures_at_once_one_is_refused_by_name_and_done_when_repeated(
    spark: SparkSession, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = dataclasses.replace(settings, lease_seconds=2)
    drop(settings, "a.json", person(1), person(2), person(3))
    loaded(settings)
    paused = Paused(monkeypatch, LandingZone, "write")
    with ThreadPoolExecutor(1) as others:
        first = others.submit(erased, settings, "2", run_id="the first")
        paused.reached()
        try:
            with pytest.raises(TableBusy, match=r"bz_people: run the first on .* is at work on it"):
                erased(settings, "3")
        finally:
            paused.go()
        assert first.result().keys == 1
    assert erased(settings, "3").keys == 1
    assert [r["person_id"] for r in rows(settings) if r["record_status"] == "ACTIVE"] == [1]
    assert set(Keys(settings).subjects) == {"*", NAME, f"{NAME}/1"}


def test_no_key_is_dropped_while_a_load_is_at_work(
    spark: SparkSession, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    drop(settings, "a.json", person(1), person(2))
    paused = Paused(monkeypatch, Lakehouse, "append")
    monkeypatch.setattr(storage, "HOLD_SECONDS", 1.0)
    keys = DataKeys(Lakehouse(settings.lake), key_ring(settings), SCHEMA, lambda: NOW)
    with ThreadPoolExecutor(1) as others:
        load = others.submit(loaded, settings)
        paused.reached()
        try:
            # Not stopped by the lease, as the erasure of another table of the schema would not be.
            with pytest.raises(TableBusy, match=f"the keys of {SCHEMA} have been held by others"):
                keys.drop([f"{NAME}/2"])
        finally:
            paused.go()
        assert load.result().loaded == 2
    assert keys.drop([f"{NAME}/2"]) == 1


@pytest.mark.parametrize(
    ("keys", "told", "why"),
    [
        ([], {}, "no key says who"),
        ([" "], {}, "no key says who"),
        (["2"], {"reason": " "}, "needs a reason"),
        (["2"], {"who": ""}, "needs a reason and somebody"),
    ],
)
def test_an_erasure_without_a_person_or_a_reason_is_refused(
    settings: Settings, keys: list[str], told: dict[str, Any], why: str
) -> None:
    with pytest.raises(PrivacyRefused, match=f"bz_people: .*{why}"):
        erased(settings, *keys, **told)


@pytest.mark.slow
def test_thousands_are_erased_in_one_pass(spark: SparkSession, settings: Settings) -> None:
    drop(settings, "a.json", *(person(number) for number in range(1, 3001)))
    loaded(settings)
    before = DeltaTable(str(path(settings))).version()
    evidence = erased(settings, *(str(number) for number in range(1, 2501)))
    assert (evidence.versions, evidence.keys, evidence.tokens, evidence.rows_in_files) == (2500,) * 4
    assert DeltaTable(str(path(settings))).version() == before + 1
    assert sum(r["record_status"] == "ACTIVE" for r in rows(settings)) == 500


def things_without(content: bytes, name: str, *keys: str) -> tuple[bytes, int]:
    return without(content, name, things(), frozenset(keys))


def test_every_kind_of_file_loses_the_rows_of_a_key_and_no_other() -> None:
    left, removed = things_without(json_lines(row(1), row(2), row(12)), "a.json", "2")
    assert ([json.loads(line)["thing_id"] for line in left.splitlines()], removed) == ([1, 12], 1)
    lines = b"\xef\xbb\xbf" + json_lines({"THING_ID": "2"}) + b'{"thing_id": 2, "na\n{"thing_id": 22, "na\nnull\n'
    assert things_without(lines, "a.json", "2") == (b'{"thing_id": 22, "na\nnull\n', 2)
    moved = json_lines(row(3) | {"__previous_key": json.dumps({"thing_id": 2})})
    assert things_without(moved, "a.json", "2") == (b"", 1)
    text = f"{HEADER}\r\n2,x,1,,,\r\n".encode() + b'3,"a\nb",1,,,\r\n'
    left, removed = things_without(text, "a.csv", "2")
    assert (left, removed) == (f'{HEADER}\n3,"a\nb",1,,,\n'.encode(), 1)
    packed, removed = things_without(gzip.compress(json_lines(row(1), row(2))), "a.json.gz", "2")
    assert (gzip.decompress(packed), removed) == (json_lines(row(1)), 1)
    target = io.BytesIO()
    pq.write_table(arrow.table({"thing_id": [1, 2, None], "name": ["a", "b", "c"]}), target)
    left, removed = things_without(target.getvalue(), "a.parquet", "2")
    assert (pq.read_table(io.BytesIO(left)).to_pylist(), removed) == (
        [{"thing_id": 1, "name": "a"}, {"thing_id": None, "name": "c"}],
        1,
    )
    whole = json.dumps([row(1), row(2)], indent=1).encode()
    left, removed = without(whole, "a.json", things(multiline=True), frozenset({"2"}))
    assert ([one["thing_id"] for one in json.loads(left)], removed) == ([1], 1)


def test_a_file_without_them_stays_as_it_is_byte_for_byte() -> None:
    for name, content in {
        "a.json": b"\xef\xbb\xbf" + json_lines(row(1)) + b"\n\n",
        "a.csv": f"{HEADER}\r\n1,x,1,,,".encode(),
        "a.json.gz": gzip.compress(json_lines(row(1)), mtime=7),
    }.items():
        assert things_without(content, name, "2") == (content, 0)


@pytest.mark.parametrize("name", ["a.json.gz", "a.parquet", "a.csv"])
def test_a_file_that_nobody_can_read_is_not_taken_for_one_without_them(name: str) -> None:
    with pytest.raises(ValueError, match=f"'{name}' cannot be read"):
        things_without(b"\xff\xfe broken", name, "2")


def test_subjects_are_written_as_table_and_key() -> None:
    assert erasure.subjects_of(["bz_people:1", "bz_people:2, x"], [people()]) == {NAME: ["1", "2, x"]}
    for wrong in ("bz_people", "bz_people:", "bz_others:1", ":1"):
        with pytest.raises(PrivacyRefused, match="is no subject"):
            erasure.subjects_of([wrong], [people(), things()])


def test_a_key_that_nobody_can_have_is_refused_and_one_that_nobody_has_is_told(
    spark: SparkSession, settings: Settings
) -> None:
    drop(settings, "a.json", person(102))
    loaded(settings)
    for key in ("0102", "102.0", "abc", "1e2", "102, 3"):
        with pytest.raises(PrivacyRefused, match=f"{re.escape(repr(key))} can be nobody's key.*<person_id, int>"):
            erased(settings, key)
    assert erased(settings, "987").words.startswith("bz_people: nothing of 1 named was found; nothing of them will be")
    assert [row["record_status"] for row in rows(settings)] == ["ACTIVE"]
    assert "1 row versions blanked" in erased(settings, " 102 ").words
