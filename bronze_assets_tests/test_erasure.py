"""The right to be forgotten: who is erased is nowhere, and comes back by no load, restore, archive or kill."""

from __future__ import annotations

import gzip
import io
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as arrow
import pyarrow.parquet as pq
import pytest
from deltalake import DeltaTable

from bronze_assets.errors import LakeError, PrivacyRefused
from bronze_assets.lakehouse import Lakehouse
from bronze_assets.privacy import erasure
from bronze_assets.privacy.archive import open_encrypted
from bronze_assets.privacy.data_keys import DataKeys
from bronze_assets.privacy.keys import key_ring
from bronze_assets.privacy.redaction import without
from bronze_assets.settings import Settings
from bronze_assets.sources.landing import LandingZone
from bronze_assets.workbench import Workbench
from bronze_assets_tests import lake_reader
from bronze_assets_tests.file_tables import HEADER, json_lines, row, things
from bronze_assets_tests.people import NAME, NOW, SCHEMA, Keys, drop, loaded, path, people, person

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

GONE = ["Zoë Nr. 2", "zoe.2@example.org"]


def erased(settings: Settings, *keys: str, **told: Any) -> erasure.Evidence:
    bench = Workbench(settings, clock=lambda: NOW)
    try:
        return erasure.erase(bench, people(), keys, **{"reason": "asked for", "who": "dpo"} | told)
    finally:
        bench.close()


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
    settings: Settings, keys: list[str], told: dict[str, str], why: str
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
