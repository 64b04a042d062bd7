"""Personal data in the lake: sealed under its subject's key, tokenised, hashed with a key, and nowhere else.

What lies in the lake is opened by `people.Keys`, which shares no code with the platform.
"""

from __future__ import annotations

import base64
import hashlib
import json
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as arrow
import pytest
from cryptography.exceptions import InvalidTag
from deltalake import DeltaTable, write_deltalake

from bronze_assets.errors import KeyMissing, KeyRefused
from bronze_assets.settings import Settings
from bronze_assets_tests import lake_reader
from bronze_assets_tests.conftest import CHECKOUT
from bronze_assets_tests.people import NAME, NOW, SCHEMA, Keys, drop, loaded, path, person, versions

if TYPE_CHECKING:
    from pyspark.sql import SparkSession


def test_values_are_sealed_for_their_row_under_the_key_of_their_subject(
    spark: SparkSession, settings: Settings
) -> None:
    drop(settings, "a.json", person(1), person(2, name=None), person(3, email="", phone=None))
    record = loaded(settings)
    assert (record.read, record.loaded) == (3, 3)
    keys, rows = Keys(settings), versions(settings)
    assert set(keys.subjects) == {"*", NAME, *(f"{NAME}/{n}" for n in (1, 2, 3))}
    assert len(set(keys.subjects.values())) == 5
    for number in (1, 2, 3):
        given = {1: person(1), 2: person(2, name=None), 3: person(3, email="")}[number]
        for column in ("name", "email"):
            text = rows[number][column]
            if given[column] is None:
                assert text is None
                continue
            assert text.startswith("enc:1:s:")
            assert keys.open(text, column, str(number)) == given[column]
            for elsewhere in (("name", "9", str(number)), ("phone", str(number), str(number))):
                with pytest.raises(InvalidTag):
                    keys.open(text, *elsewhere[:2], subject=elsewhere[2])
        assert (rows[number]["city"], rows[number]["visits"]) == ("Köln", number)
    assert rows[3]["phone"] is None


def test_equal_values_have_equal_tokens_and_a_way_back_for_each_subject(
    spark: SparkSession, settings: Settings
) -> None:
    drop(settings, "a.json", person(1, phone="+49 1"), person(2, phone="+49 1"), person(3, phone="+49 2"))
    loaded(settings)
    keys, rows = Keys(settings), versions(settings)
    for number, phone in ((1, "+49 1"), (2, "+49 1"), (3, "+49 2")):
        assert rows[number]["phone"] == f"tok:{keys.hmac('token', phone)}"
    vault = lake_reader.read(path(settings, "bz_token_vault"))
    found = {
        (row["subject"], keys.open(row["value"], "token", row["token"], subject=row["subject"].split("/")[1]))
        for row in vault
    }
    assert found == {(f"{NAME}/1", "+49 1"), (f"{NAME}/2", "+49 1"), (f"{NAME}/3", "+49 2")}
    drop(settings, "b.json", person(1, phone="+49 1", visits=5), person(3, phone="+49 1"))
    loaded(settings)
    assert len(lake_reader.read(path(settings, "bz_token_vault"))) == len(vault) + 1


def test_the_hash_has_the_hmac_of_what_is_protected(spark: SparkSession, settings: Settings) -> None:
    drop(settings, "a.json", person(1))
    loaded(settings)
    keys, one = Keys(settings), person(1)
    hashes = [keys.hmac("hash", one[name]) for name in ("name", "email", "phone")]
    head = ["1", *(str(len(text)) for text in hashes), str(len("Köln".encode())), "1"]
    form = ",".join([*head, *hashes, "Köln"])
    assert versions(settings)[1]["record_hash"] == hashlib.md5(form.encode()).hexdigest()


def test_the_quarantine_holds_sealed_values_and_sealed_lines(spark: SparkSession, settings: Settings) -> None:
    broken = '{"person_id": 4, "name": "Zoë secret'
    drop(settings, "a.json", person(1), person(2, visits=-1), person(0, name="nobody"), broken)
    record = loaded(settings)
    assert (record.loaded, record.quarantined) == (1, 3)
    keys = Keys(settings)
    rows = {row["row_key"]: row for row in lake_reader.read(path(settings, f"{NAME}_quarantine"))}
    raw = {key: json.loads(row["raw_row"]) for key, row in rows.items()}
    assert raw["2"]["visits"] == "-1"
    assert raw["2"]["city"] == "Köln"
    assert keys.open(raw["2"]["name"], "name", "2") == "Zoë Nr. 2"
    assert keys.open(raw["2"]["phone"], "phone", "2") == "+49 30 2"
    assert keys.open(raw["0"]["name"], "name", "0") == "nobody"
    assert raw["NULL"]["_line"].split(":")[2] == "t", "nobody knows whose line it is"
    assert keys.open(raw["NULL"]["_line"], "_line", "") == broken
    for row in rows.values():
        hidden = [reason for reason in row["reasons"] if reason["column"] in ("name", "email", "phone", "_line")]
        assert {reason["found"] for reason in hidden} <= {None}


def test_a_value_under_a_misspelt_name_is_sealed_too(spark: SparkSession, settings: Settings) -> None:
    drop(settings, "a.json", {**person(1), "e-mail": "misspelt@example.org"}, person(2))
    loaded(settings)
    rows = versions(settings)
    assert rows[2]["_rescued_data"] is None
    rescued = Keys(settings).open(rows[1]["_rescued_data"], "_rescued_data", "1")
    assert json.loads(rescued) == {"e-mail": "misspelt@example.org"}


def test_a_changed_row_keeps_its_subjects_key(spark: SparkSession, settings: Settings) -> None:
    drop(settings, "a.json", person(1), person(2))
    loaded(settings)
    before = Keys(settings).subjects
    drop(settings, "b.json", person(1, name="Ada"), person(3))
    loaded(settings)
    keys = Keys(settings)
    assert {name: keys.subjects[name] for name in before} == before
    names = {keys.open(row["name"], "name", "1") for row in lake_reader.read(path(settings)) if row["person_id"] == 1}
    assert names == {"Zoë Nr. 1", "Ada"}


def test_a_forgotten_subject_is_never_loaded_again_and_gets_no_key(spark: SparkSession, settings: Settings) -> None:
    drop(settings, "a.json", person(1))
    loaded(settings)
    gone = [Keys(settings).hmac("tombstone", f"{SCHEMA}/{NAME}/{number}") for number in (2, 3)]
    write_deltalake(str(path(settings, "bz_tombstones")), arrow.table({"subject_hmac": gone, "erased_at": [NOW, NOW]}))
    drop(settings, "b.json", person(2), person(3, visits=-1), person(4))
    record = loaded(settings)
    assert (record.read, record.loaded, record.erased, record.quarantined, record.conserved) == (3, 1, 2, 0, True)
    assert set(versions(settings)) == {1, 4}
    assert not {f"{NAME}/2", f"{NAME}/3"} & set(Keys(settings).subjects)
    assert lake_reader.read(path(settings, f"{NAME}_quarantine")) == []
    assert {row["subject"] for row in lake_reader.read(path(settings, "bz_token_vault"))} == {f"{NAME}/1", f"{NAME}/4"}


def test_without_its_key_nothing_of_a_table_is_written(
    spark: SparkSession, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = settings.home / "keys" / "master.key"
    drop(settings, "a.json", person(1))
    file.parent.mkdir(parents=True)
    file.write_text("{}")
    file.chmod(0o600)
    with pytest.raises((KeyMissing, KeyRefused)):
        loaded(settings)
    assert not (path(settings) / "_delta_log").exists() or lake_reader.read(path(settings)) == []
    file.unlink()
    loaded(settings)
    assert set(versions(settings)) == {1}
    drop(settings, "b.json", person(2))
    # A lost key is missed, and not made anew.
    file.unlink()
    with pytest.raises(KeyMissing):
        loaded(settings)
    assert not file.exists()
    # Another key in the place of the lake's: what it would write, nobody could read together with the rest.
    file.write_text(json.dumps({"versions": {"1": base64.b64encode(bytes(range(32))).decode()}}))
    file.chmod(0o600)
    with pytest.raises(KeyRefused):
        loaded(settings)
    assert set(versions(settings)) == {1}


def test_a_dry_run_makes_no_key_and_writes_no_value(spark: SparkSession, settings: Settings) -> None:
    drop(settings, "a.json", person(1))
    loaded(settings)
    drop(settings, "b.json", person(2))
    before = {p for p in settings.home.rglob("*") if "spark" not in p.parts}
    record = loaded(settings, dry_run=True)
    assert record.loaded == 1
    assert {p for p in settings.home.rglob("*") if "spark" not in p.parts} == before


def test_key_and_vault_tables_keep_no_statistics_no_changes_and_nothing_removed(
    spark: SparkSession, settings: Settings
) -> None:
    drop(settings, "a.json", person(1))
    loaded(settings)
    for name in ("bz_subject_keys", "bz_token_vault"):
        properties = lake_reader.properties(path(settings, name))
        assert properties["delta.enableChangeDataFeed"] == "false"
        assert properties["delta.deletedFileRetentionDuration"] == "interval 0 hours"
        actions = arrow.table(DeltaTable(str(path(settings, name))).get_add_actions(flatten=True))
        assert not [n for n in actions.column_names if n.startswith(("min.", "max."))]


@pytest.mark.slow
def test_neither_keys_nor_values_lie_anywhere_in_the_home(settings: Settings, jars: Path) -> None:
    """A process of its own, whose Spark writes an event log; then every byte of the home, Parquet decoded."""
    canaries = ["Zoë Canary", "canary@example.org", "+49 canary"]
    one = person(1, name=canaries[0], email=canaries[1], phone=canaries[2])
    drop(settings, "a.json", one, {**one, "person_id": 2, "visits": -1}, json.dumps(one)[:-5])
    conf = settings.home / "spark" / "conf"
    (settings.home / "events").mkdir(parents=True)
    conf.mkdir(parents=True)
    (conf / "spark-defaults.conf").write_text(
        f"spark.eventLog.enabled true\nspark.eventLog.dir file:{settings.home}/events\n".replace(" home", "%20home")
    )
    code = (
        "import os\nfrom bronze_assets.settings import Settings\n"
        "from bronze_assets_tests.people import loaded\n"
        "record = loaded(Settings.from_environment())\n"
        "print('LOADED', record.loaded, record.quarantined)\n"
    )
    environment = {"BRONZE_HOME": str(settings.home), "BRONZE_JARS": str(jars), "BRONZE_CAPTURE": "off"}
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=CHECKOUT,
        env={**__import__("os").environ, **environment},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert "LOADED 1 2" in done.stdout, done.stderr[-3000:]
    assert any((settings.home / "events").rglob("*")), "no event log"
    keys = Keys(settings)
    words = [word.encode() for word in canaries]
    secrets = [form for key in keys.secrets() for form in (key, key.hex().encode(), key.hex().upper().encode())]
    for file in settings.home.rglob("*"):
        if not file.is_file() or file == settings.home / "keys" / "master.key":
            continue
        found = contents(file)
        assert not [word for word in words if word in found], file
        assert not [secret for secret in secrets if secret in found], file
    assert not [word for word in canaries if word in done.stdout + done.stderr]


def contents(file: Path) -> bytes:
    """The bytes of a file, and what a Parquet file holds when it is decoded."""
    raw = file.read_bytes()
    if file.suffix != ".parquet":
        return raw
    import pyarrow.parquet as pq

    cells = [value for row in pq.read_table(file).to_pylist() for value in row.values()]
    return raw + b"\n".join(value if isinstance(value, bytes) else str(value).encode() for value in cells)
