"""The keys of subjects, looked at through `deltalake` and unwrapped by code of this test's own."""

from __future__ import annotations

import contextlib
import datetime as dt
import hashlib
import hmac
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from deltalake import DeltaTable, write_deltalake
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from bronze_assets import storage
from bronze_assets.errors import KeyRefused, TableBusy
from bronze_assets.lakehouse import Lakehouse
from bronze_assets.privacy.data_keys import DataKeys
from bronze_assets.privacy.keys import KeyRing
from bronze_assets_tests import lake_reader

ONE, TWO = (hashlib.sha256(name).digest() for name in (b"one", b"two"))
OLD, NEW = KeyRing({1: ONE}), KeyRing({1: ONE, 2: TWO})
SCHEMA = "inventory_bronze"
NOW = dt.datetime(2026, 11, 21, 12, tzinfo=dt.UTC)
MARIA, JOSE = "bz_customers/123", "bz_customers/124"

# Two of these begin when both are ready, and print the keys that are then there.
RACE = """
import datetime as dt, sys, time
from pathlib import Path
from bronze_assets.lakehouse import Lakehouse
from bronze_assets.privacy.data_keys import DataKeys
from bronze_assets.privacy.keys import KeyRing
root, first, last, rounds = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
ring = KeyRing({1: bytes.fromhex(sys.argv[5])})
keys = DataKeys(Lakehouse(root), ring, "inventory_bronze", lambda: dt.datetime.now(dt.UTC))
print("ready", flush=True)
sys.stdin.readline()
for number in range(rounds):
    names = [f"bz_customers/{number}-{one}" for one in range(first, last)]
    keys.ensure(names)
    for name, key in keys.keys(names).items():
        print(name, key.hex())
"""


def clock() -> dt.datetime:
    return NOW


@pytest.fixture
def lake(tmp_path: Path) -> Lakehouse:
    return Lakehouse(tmp_path / "a lake")


@pytest.fixture
def keys(lake: Lakehouse) -> DataKeys:
    return DataKeys(lake, OLD, SCHEMA, clock)


@pytest.fixture
def folder(lake: Lakehouse) -> Path:
    return Path(lake.location(SCHEMA, "bz_subject_keys"))


def derived(key: bytes, info: str) -> bytes:
    """HKDF-SHA256 of RFC 5869 without salt, one block, by its two steps."""
    extracted = hmac.digest(bytes(32), key, "sha256")
    return hmac.digest(extracted, info.encode() + b"\x01", "sha256")


def unwrapped(wrapped: bytes, context: str, master: bytes = ONE) -> bytes:
    wrap = AESGCM(derived(master, "bronze_assets/wrap"))
    return wrap.decrypt(wrapped[2:14], wrapped[14:], context.encode())


def stored(folder: Path) -> dict[str, bytes]:
    """Subject → wrapped key; fails if one is there twice."""
    rows = lake_reader.read(folder)
    found = {row["subject"]: bytes(row["wrapped"]) for row in rows}
    assert len(found) == len(rows)
    return found


def everything(folder: Path) -> bytes:
    """All bytes under a table, those in Parquet in plain."""
    found = b""
    for path in folder.rglob("*"):
        if path.is_file():
            found += path.read_bytes()
            if ".parquet" in path.name:
                for row in pq.ParquetFile(path).read(use_threads=False).to_pylist():
                    found += b"|".join(v if isinstance(v, bytes) else str(v).encode() for v in row.values())
    return found


class DataTableVersion:
    """The files of a table as a reader of this moment has listed them."""

    def __init__(self, folder: Path) -> None:
        self._files = [folder / Path(uri).name for uri in DeltaTable(folder).file_uris()]

    def readable(self) -> bool:
        return all(file.exists() for file in self._files)


class TestMakingKeys:
    def test_each_subject_has_a_key_of_its_own_wrapped_for_its_place(self, keys: DataKeys, folder: Path) -> None:
        keys.ensure([MARIA, JOSE, "bz_customers", MARIA])

        found = stored(folder)
        assert found.keys() == {"*", MARIA, JOSE, "bz_customers"}
        plain = {name: unwrapped(wrapped, f"inventory_bronze/{name}") for name, wrapped in found.items()}
        assert len(set(plain.values())) == 4
        assert {len(key) for key in plain.values()} == {32}
        assert {wrapped[:2] for wrapped in found.values()} == {b"\x00\x01"}
        assert keys.key(MARIA) == plain[MARIA]
        assert keys.keys([MARIA, "bz_customers", "nobody"]) == {n: plain[n] for n in (MARIA, "bz_customers")}
        assert keys.key("nobody") is None
        assert {row["created"] for row in lake_reader.read(folder)} == {NOW}
        with pytest.raises(InvalidTag):
            unwrapped(found[MARIA], f"inventory_bronze/{JOSE}")

    def test_a_key_stays_when_it_is_wanted_again(self, keys: DataKeys, folder: Path) -> None:
        keys.ensure([MARIA])
        before = stored(folder)
        keys.ensure([MARIA, JOSE])
        keys.ensure([])
        after = stored(folder)
        assert {name: after[name] for name in before} == before
        assert after.keys() == {"*", MARIA, JOSE}

    def test_what_is_not_there_yet_has_no_keys_and_looking_makes_none(self, keys: DataKeys, folder: Path) -> None:
        keys.check()
        assert keys.key(MARIA) is None
        assert keys.keys([]) == {}
        assert keys.versions() == {}
        assert keys.drop([MARIA]) == 0
        assert keys.rewrap() == 0
        assert not folder.exists()

    def test_the_table_keeps_nothing_that_is_not_needed(self, keys: DataKeys, folder: Path) -> None:
        keys.ensure([MARIA])
        properties = lake_reader.properties(folder)
        assert properties["delta.deletedFileRetentionDuration"] == "interval 0 hours"
        assert properties["delta.enableChangeDataFeed"] == "false"
        assert properties["delta.enableDeletionVectors"] == "false"
        assert properties["delta.dataSkippingNumIndexedCols"] == "0"
        fields = [(field.name, field.type.type) for field in DeltaTable(folder).schema().fields]
        assert fields == [("subject", "string"), ("wrapped", "binary"), ("created", "timestamp")]

    @hypothesis_settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(subjects=st.lists(st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1), min_size=1))
    def test_whatever_a_key_text_looks_like(self, subjects: list[str], keys: DataKeys) -> None:
        names = [f"bz_customers/{subject}" for subject in subjects]
        keys.ensure(names)
        found = keys.keys(names)
        assert found.keys() == set(names)
        assert keys.key(names[0]) == found[names[0]]

    def test_many_at_once_are_like_few(self, keys: DataKeys, folder: Path) -> None:
        names = [f"bz_customers/{number}" for number in range(3000)]
        keys.ensure(names[:10])
        few = keys.keys(names[:10])
        keys.ensure(names)
        many = keys.keys(names)
        assert len(many) == len(set(many.values())) == 3000
        assert {name: many[name] for name in few} == few
        assert len(stored(folder)) == 3001
        assert keys.drop(names[5:]) == 2995
        assert stored(folder).keys() == {"*", *names[:5]}

    @pytest.mark.parametrize("there", [False, True])
    def test_two_processes_at_once_make_each_key_once(
        self, lake: Lakehouse, keys: DataKeys, folder: Path, there: bool
    ) -> None:
        if there:
            keys.ensure([MARIA])
        rounds = 6
        command = [sys.executable, "-c", RACE, str(folder.parent.parent)]
        processes = [
            subprocess.Popen(
                [*command, first, last, str(rounds), ONE.hex()],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            for first, last in (("0", "60"), ("20", "80"))
        ]
        try:
            for process in processes:
                assert process.stdout is not None
                assert process.stdout.readline() == "ready\n"
            answers = []
            for process in processes:
                assert process.stdin is not None
                process.stdin.write("go\n")
                process.stdin.flush()
            for process in processes:
                out, err = process.communicate(timeout=120)
                assert process.returncode == 0, err
                answers.append(dict(line.split(" ") for line in out.splitlines()))
        finally:
            for process in processes:
                process.kill()

        found = stored(folder)
        assert len(found) == 80 * rounds + 1 + there
        for answer in answers:
            assert len(answer) == 60 * rounds
            for name, key in answer.items():
                assert unwrapped(found[name], f"inventory_bronze/{name}").hex() == key

    @pytest.mark.parametrize("own", ["ensure", "drop", "rewrap"])
    @pytest.mark.parametrize("other", ["ensure", "drop", "rewrap", "append"])
    def test_what_another_machine_commits_meanwhile_is_seen(
        self, own: str, other: str, lake: Lakehouse, folder: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        # No lock reaches another machine; nor do files go under a reader there.
        monkeypatch.setattr(Lakehouse, "held", lambda *_, **__: contextlib.nullcontext())
        monkeypatch.setattr(Lakehouse, "purge", lambda *_: None)
        DataKeys(lake, OLD, SCHEMA, clock).ensure([MARIA, JOSE])
        here, there = DataKeys(lake, NEW, SCHEMA, clock), DataKeys(lake, NEW, SCHEMA, clock)

        def commit(keys: DataKeys, work: str, name: str) -> None:
            match work:
                case "ensure":
                    keys.ensure(["bz_customers/new"])
                case "drop":
                    keys.drop([name])
                case "rewrap":
                    keys.rewrap()
                case "append":
                    row = {"subject": ["bz_customers/new"], "wrapped": [NEW.wrap(bytes(32), context="x")]}
                    write_deltalake(folder, pa.table({**row, "created": pa.array([NOW])}), mode="append")

        real, merges = DeltaTable.merge, 0

        def merge(table: DeltaTable, *arguments: Any, **named: Any) -> Any:
            nonlocal merges
            merges += 1
            if merges == 1:
                commit(there, other, JOSE)
            return real(table, *arguments, **named)

        monkeypatch.setattr(DeltaTable, "merge", merge)
        commit(here, own, MARIA)

        done = {own, other}
        expected = {"*", MARIA, JOSE} | ({"bz_customers/new"} if done & {"ensure", "append"} else set())
        expected -= {MARIA} if own == "drop" else set()
        expected -= {JOSE} if other == "drop" else set()
        assert stored(folder).keys() == expected
        if "rewrap" in done:
            assert here.versions() == {2: len(expected)}


class TestTheRoot:
    def test_the_hmac_keys_follow_from_the_master_key_alone(self, lake: Lakehouse, keys: DataKeys) -> None:
        root = derived(ONE, "bronze_assets/hmac root")
        for purpose in ("token", "hash", "tombstone"):
            expected = derived(root, f"bronze_assets/{purpose}")
            assert keys.hmac_key(purpose) == expected
            assert DataKeys(lake, NEW, "other_bronze", clock).hmac_key(purpose) == expected

    def test_they_stay_when_the_master_key_is_rotated_and_its_first_version_retired(
        self, lake: Lakehouse, keys: DataKeys
    ) -> None:
        before = keys.hmac_key("token")
        DataKeys(lake, NEW, SCHEMA, clock).rewrap()
        assert DataKeys(lake, KeyRing({2: TWO}), SCHEMA, clock).hmac_key("token") == before

    def test_a_schema_without_one_cannot_begin_once_that_version_is_retired(self, lake: Lakehouse) -> None:
        with pytest.raises(KeyRefused, match="Version 1 of the master key is needed"):
            DataKeys(lake, KeyRing({2: TWO}), SCHEMA, clock).hmac_key("token")

    def test_it_is_not_dropped(self, keys: DataKeys, folder: Path) -> None:
        keys.ensure([MARIA])
        with pytest.raises(ValueError, match="HMAC root"):
            keys.drop([MARIA, "*"])
        assert stored(folder).keys() == {"*", MARIA}


class TestTheGuard:
    def test_another_master_key_is_refused_before_anything_is_made(
        self, lake: Lakehouse, keys: DataKeys, folder: Path
    ) -> None:
        keys.ensure([MARIA])
        before = stored(folder)
        # As a key file that was lost and made anew.
        other = DataKeys(lake, KeyRing({1: TWO}), SCHEMA, clock)

        works: list[Callable[[], Any]] = [
            other.check,
            lambda: other.ensure([JOSE]),
            lambda: other.ensure([]),
            lambda: other.hmac_key("token"),
            lambda: other.key(MARIA),
        ]
        for work in works:
            with pytest.raises(KeyRefused, match="BRONZE_MASTER_KEY names the key of this lake") as refused:
                work()
            assert str(refused.value).startswith("inventory_bronze.bz_subject_keys: ")
            assert refused.value.__context__ is None
        assert stored(folder) == before

    def test_a_process_that_missed_a_rotation_is_refused(self, lake: Lakehouse, keys: DataKeys, folder: Path) -> None:
        keys.ensure([MARIA])
        DataKeys(lake, NEW, SCHEMA, clock).rewrap()
        before = stored(folder)
        with pytest.raises(KeyRefused, match="Version 2 of the master key is needed"):
            keys.ensure([JOSE])
        assert stored(folder) == before

    def test_keys_without_a_root_are_refused(self, keys: DataKeys, folder: Path) -> None:
        keys.ensure([MARIA])
        DeltaTable(folder).delete("subject = '*'")
        with pytest.raises(KeyRefused, match="root of the HMACs is missing"):
            keys.ensure([JOSE])
        assert stored(folder).keys() == {MARIA}


class TestDropping:
    def test_nothing_of_a_dropped_key_is_left(self, keys: DataKeys, folder: Path) -> None:
        keys.ensure([MARIA, JOSE])
        keys.ensure(["bz_customers/125"])
        version = DataTableVersion(folder)
        wrapped = stored(folder)
        # As a process leaves them that is killed while it writes; a vacuum sees the first alone.
        for file in list(folder.glob("*.parquet")):
            for name in (f"uncommitted-{file.name}", f"{file.name}#1", f".{file.name}", f"_{file.name}"):
                (folder / name).write_bytes(file.read_bytes())
        assert wrapped[MARIA] in everything(folder)

        assert keys.drop([MARIA, "bz_customers/unknown"]) == 1

        assert stored(folder) == {name: one for name, one in wrapped.items() if name != MARIA}
        left = everything(folder)
        assert wrapped[MARIA] not in left
        assert MARIA.encode() not in left
        assert wrapped[JOSE] in left
        assert not version.readable()
        assert keys.key(MARIA) is None
        assert keys.key(JOSE) is not None

    def test_one_that_was_killed_before_it_was_whole_is_finished(
        self, keys: DataKeys, folder: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        keys.ensure([MARIA])
        wrapped = stored(folder)[MARIA]
        with monkeypatch.context() as patch:
            patch.setattr(Lakehouse, "purge", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
            with pytest.raises(KeyboardInterrupt):
                keys.drop([MARIA])
        assert wrapped in everything(folder)

        assert keys.drop([MARIA]) == 0
        assert wrapped not in everything(folder)

    def test_a_key_made_again_is_another(self, keys: DataKeys) -> None:
        keys.ensure([MARIA])
        before = keys.key(MARIA)
        keys.drop([MARIA])
        keys.ensure([MARIA])
        assert keys.key(MARIA) not in (before, None)

    def test_it_waits_for_whoever_holds_the_keys(self, lake: Lakehouse, keys: DataKeys, folder: Path) -> None:
        keys.ensure([MARIA, JOSE])
        dropped = threading.Thread(target=lambda: keys.drop([MARIA]))
        with keys.held():
            held = DeltaTable(folder)
            dropped.start()
            time.sleep(0.3)
            assert dropped.is_alive()
            # A load makes keys and reads the files that it has listed while somebody waits for it.
            keys.ensure(["bz_customers/125"])
            assert keys.key(MARIA) is not None
            assert all((folder / Path(uri).name).is_file() for uri in held.file_uris())
        dropped.join(20)
        assert not dropped.is_alive()
        assert keys.key(MARIA) is None

    def test_it_says_so_when_somebody_holds_them_for_too_long(
        self, keys: DataKeys, folder: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        keys.ensure([MARIA])
        monkeypatch.setattr(storage, "HOLD_SECONDS", 0.1)
        with keys.held():
            works: list[Callable[[], int]] = [lambda: keys.drop([MARIA]), keys.rewrap]
            for work in works:
                with pytest.raises(TableBusy, match=r"keys of inventory_bronze .* Fix: try again"):
                    work()
        assert stored(folder).keys() == {"*", MARIA}

    def test_readers_and_makers_are_not_disturbed(self, lake: Lakehouse, keys: DataKeys, folder: Path) -> None:
        keys.ensure([JOSE, *(f"bz_customers/d{number}" for number in range(12))])
        wanted = keys.key(JOSE)
        errors: list[BaseException] = []
        over = threading.Event()

        def load(own: int) -> None:
            mine, number = DataKeys(lake, OLD, SCHEMA, clock), 0
            try:
                while not over.is_set():
                    number += 1
                    name = f"bz_customers/{own}/{number}"
                    mine.ensure([name])
                    assert mine.keys([JOSE, name]).keys() == {JOSE, name}
                    assert mine.key(JOSE) == wanted
            except BaseException as error:
                errors.append(error)

        loads = [threading.Thread(target=load, args=(own,)) for own in range(2)]
        for one in loads:
            one.start()
        try:
            for number in range(12):
                assert keys.drop([f"bz_customers/d{number}"]) == 1
        finally:
            over.set()
            for one in loads:
                one.join(30)
        assert errors == []
        assert not any(name.startswith("bz_customers/d") for name in stored(folder))

    def test_the_log_names_nobody_and_holds_no_key(
        self, lake: Lakehouse, keys: DataKeys, folder: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        keys.ensure(["bz_customers/canary", MARIA])
        wrapped = stored(folder)["bz_customers/canary"]
        DeltaTable(folder).create_checkpoint()
        keys.drop(["bz_customers/canary"])
        DataKeys(lake, NEW, SCHEMA, clock).rewrap()
        log = everything(folder / "_delta_log")
        assert b"bz_subject_keys" in log
        for trace in (b"canary", wrapped, b"bz_customers/"):
            assert trace not in log


class TestWrappingAnew:
    def test_every_key_stays_and_none_is_left_under_the_old_version(
        self, lake: Lakehouse, keys: DataKeys, folder: Path
    ) -> None:
        keys.ensure([MARIA, JOSE])
        before, plain = stored(folder), keys.keys([MARIA, JOSE, "*"])
        created = lake_reader.tuples(folder, "subject", "created")
        anew = DataKeys(lake, NEW, SCHEMA, clock)
        anew.ensure(["bz_customers/125"])
        assert anew.versions() == {1: 3, 2: 1}

        assert anew.rewrap() == 3

        after = stored(folder)
        assert anew.versions() == {2: 4}
        assert {n: unwrapped(after[n], f"inventory_bronze/{n}", TWO) for n in plain} == plain
        assert anew.keys([MARIA, JOSE, "*"]) == plain
        assert set(created) < set(lake_reader.tuples(folder, "subject", "created"))
        left = everything(folder)
        assert not any(wrapped in left for wrapped in before.values())
        assert anew.rewrap() == 0
        assert stored(folder) == after

    def test_with_a_damaged_key_nothing_is_changed(self, lake: Lakehouse, keys: DataKeys, folder: Path) -> None:
        keys.ensure([MARIA, JOSE])
        DeltaTable(folder).update(
            predicate=f"subject = '{JOSE}'", updates={"wrapped": f"arrow_cast('{'x' * 62}', 'Binary')"}
        )
        before = stored(folder)
        with pytest.raises(KeyRefused):
            DataKeys(lake, NEW, SCHEMA, clock).rewrap()
        assert stored(folder) == before


class TestSmallFiles:
    def test_they_are_put_together_when_nobody_holds_the_table(
        self, keys: DataKeys, folder: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(storage, "TIDY_FILES", 5)
        with keys.held():
            for number in range(12):
                keys.ensure([f"bz_customers/{number}"])
            assert len(DeltaTable(folder).file_uris()) == 12
        assert len(DeltaTable(folder).file_uris()) == 1
        assert len(list(folder.glob("*.parquet"))) == 1
        assert len(stored(folder)) == 13


def test_nothing_shows_a_key(keys: DataKeys) -> None:
    keys.ensure([MARIA])
    assert ONE.hex() not in repr(keys)
    assert "wrapped" not in repr(keys)
