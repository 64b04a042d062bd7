"""The landing zone on folders of this machine and on an fsspec file system: what it lists, reads and moves."""

from __future__ import annotations

import datetime as dt
import hashlib
import io
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fsspec.implementations.local import LocalFileSystem

from bronze_assets.errors import KeyMissing, KeyRefused, LakeError
from bronze_assets.privacy.archive import encrypt
from bronze_assets.privacy.keys import KeyRing
from bronze_assets.sources import landing
from bronze_assets.sources.inspection import inspect
from bronze_assets.sources.landing import LandedFile, LandingZone
from bronze_assets.table import Feed
from bronze_assets_tests.file_tables import COLUMNS, csv_text, json_lines, row, things

FEED = Feed("raw/things")
HOUR_AGO = dt.datetime.now(dt.UTC) - dt.timedelta(hours=1)


@pytest.fixture
def zone(tmp_path: Path) -> LandingZone:
    return LandingZone(str(tmp_path / "landing zone"), str(tmp_path / "archive"))


def put(tmp_path: Path, name: str, content: bytes = b"x", *, root: str = "landing zone") -> Path:
    path = tmp_path / root / "raw/things" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    os.utime(path, (HOUR_AGO.timestamp(),) * 2)
    return path


def digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def tree(tmp_path: Path, root: str) -> dict[str, bytes]:
    folder = tmp_path / root
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_files_of_the_folder_and_of_its_days_are_listed_and_nothing_else(
    zone: LandingZone, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("b.json", "2026-06-15/a.CSV.gz", "2026-06-15/c.parquet"):
        put(tmp_path, name)
    for name in (
        ".a.json",
        "_a.json",
        "a.txt",
        "2026-02-30/a.json",
        "2026-6-1/a.json",
        "other/a.json",
        "x.json/a.json",
    ):
        put(tmp_path, name)
    put(tmp_path, "2026-06-15/2026-06-16/a.json")
    found = zone.files(FEED)
    assert [file.path for file in found] == [
        "raw/things/2026-06-15/a.CSV.gz",
        "raw/things/2026-06-15/c.parquet",
        "raw/things/b.json",
    ]
    assert [(file.day, file.format, file.size) for file in found] == [
        ("2026-06-15", "csv", 1),
        ("2026-06-15", "parquet", 1),
        (None, "json", 1),
    ]
    assert abs(found[0].modified - HOUR_AGO) < dt.timedelta(milliseconds=1)
    assert zone.files(Feed("nothing/here")) == []
    # Who has put files there would wait for them in vain.
    zone.files(FEED)
    passed_by = [text.split(" is not looked into")[0] for text in caplog.messages if "not looked into" in text]
    assert sorted(passed_by) == [
        f"{tmp_path}/landing zone/raw/things/{name}/" for name in ("2026-02-30", "2026-6-1", "other", "x.json")
    ]


def test_a_landing_zone_that_is_no_folder_is_told(tmp_path: Path) -> None:
    (tmp_path / "landing").write_text("")
    with pytest.raises(
        LakeError, match=r"the folder raw/things of the landing zone cannot be listed \(Not a directory"
    ):
        LandingZone(str(tmp_path / "landing"), str(tmp_path / "archive")).files(FEED)


def test_a_file_looks_the_same_listed_and_found_also_behind_a_link(zone: LandingZone, tmp_path: Path) -> None:
    put(tmp_path, "a.json", b"abc")
    (tmp_path / "landing zone/raw/things/link.json").symlink_to(tmp_path / "landing zone/raw/things/a.json")
    for file in zone.files(FEED):
        assert zone.find(file.path, None) == file
    assert zone.find("raw/things/none.json", None) is None
    assert zone.find("raw/things", None) is None


def test_archiving_is_safe_to_repeat_and_keeps_every_version(zone: LandingZone, tmp_path: Path) -> None:
    day = "2026-06-15"
    places = []
    for content in (b"one", b"two", b"one"):
        put(tmp_path, "a.json", content)
        (file,) = zone.files(FEED)
        places += [zone.archive(file, day, digest(content)) for _ in range(2)]
        assert zone.files(FEED) == []
    first, second = f"raw/things/{day}/a.json", f"raw/things/{day}/a.{digest(b'two')[:12]}.json"
    assert places == [first, first, second, second, first, first]
    assert tree(tmp_path, "archive") == {first: b"one", second: b"two"}
    found = zone.find("raw/things/a.json", second)
    assert found is not None
    assert (found.archived, zone.content_hash(found)) == (True, digest(b"two"))
    assert [file.path for file in zone.archived(FEED, day)] == [second, first]


def test_a_crash_between_the_copy_and_the_removal_is_made_good(zone: LandingZone, tmp_path: Path) -> None:
    put(tmp_path, "2026-06-15/a.json", b"abc")
    put(tmp_path, "2026-06-15/a.json", b"abc", root="archive")
    (file,) = zone.files(FEED)
    assert zone.archive(file, "2026-06-15", digest(b"abc")) == "raw/things/2026-06-15/a.json"
    assert tree(tmp_path, "landing zone") == {}
    assert tree(tmp_path, "archive") == {"raw/things/2026-06-15/a.json": b"abc"}


def test_the_second_version_of_a_very_long_name_is_archived_too(zone: LandingZone, tmp_path: Path) -> None:
    for name in ("x" * 250 + ".json", "é" * 123 + "x.json.gz"):
        for content in (b"one", b"two"):
            put(tmp_path, name, content)
            (file,) = zone.files(FEED)
            zone.archive(file, "2026-06-15", digest(content))
    assert sorted(tree(tmp_path, "archive").values()) == [b"one", b"one", b"two", b"two"]


def test_of_a_link_the_content_is_archived_and_the_link_goes(zone: LandingZone, tmp_path: Path) -> None:
    target = tmp_path / "elsewhere"
    target.write_bytes(b"abc")
    folder = tmp_path / "landing zone/raw/things"
    folder.mkdir(parents=True)
    (folder / "a.json").symlink_to("../../../elsewhere")
    (file,) = zone.files(FEED)
    zone.archive(file, "2026-06-15", digest(b"abc"))
    target.unlink()
    assert tree(tmp_path, "archive") == {"raw/things/2026-06-15/a.json": b"abc"}
    assert not (folder / "a.json").is_symlink()


@pytest.mark.parametrize("name", ["a b.json", "a%41.json", "[a].json", "a:b.json", "{a}.json", "ä.json", "a\\b.json"])
def test_what_hadoop_cannot_name_is_read_from_a_copy(zone: LandingZone, tmp_path: Path, name: str) -> None:
    put(tmp_path, name, b"abc")
    (file,) = zone.files(FEED)
    path = zone.readable_by_spark(file, tmp_path / "staging", 7)
    assert path == str(tmp_path / "staging/000007.json")
    assert Path(path).read_bytes() == b"abc"


def test_any_other_file_is_read_where_it_lies_unless_the_root_looks_like_a_pattern(tmp_path: Path) -> None:
    for root, staged in (("plain root", False), ("root [1]", True)):
        zone = LandingZone(str(tmp_path / root), str(tmp_path / "archive"))
        put(tmp_path, "a=1_b-c.json", root=root)
        (file,) = zone.files(FEED)
        path = zone.readable_by_spark(file, tmp_path / "staging", 1)
        assert path.startswith(str(tmp_path / "staging")) is staged


@pytest.fixture
def memory() -> Iterator[fsspec.AbstractFileSystem]:
    fs = fsspec.filesystem("memory")
    fs.store.clear()
    fs.pseudo_dirs[:] = [""]
    yield fs
    fs.store.clear()


def test_a_landing_zone_on_another_file_system_is_listed_read_and_archived(
    memory: fsspec.AbstractFileSystem, tmp_path: Path
) -> None:
    zone = LandingZone("memory://bucket/landing", "memory://bucket/archive")
    assert zone.files(FEED) == []
    for name in ("a b.json", "2026-06-15/b.json", "_c.json", "deep/er/d.json"):
        memory.pipe(f"/bucket/landing/raw/things/{name}", name.encode())
    files = zone.files(FEED)
    assert [file.path for file in files] == ["raw/things/2026-06-15/b.json", "raw/things/a b.json"]
    for file in files:
        content = file.path.removeprefix("raw/things/").encode()
        assert zone.find(file.path, None) == file
        copy = Path(zone.readable_by_spark(file, tmp_path / "staging", 1))
        assert copy.read_bytes() == content
        places = [zone.archive(file, "2026-06-16", digest(content)) for _ in range(2)]
        assert places[0] == places[1]
    assert zone.files(FEED) == []
    assert sorted(memory.find("/bucket/archive")) == [
        "/bucket/archive/raw/things/2026-06-15/b.json",
        "/bucket/archive/raw/things/2026-06-16/a b.json",
    ]
    gone = LandedFile("raw/things/x.json", 1, HOUR_AGO, "raw/things/x.json")
    zone.archive(gone, "2026-06-16", digest(b"x"))
    zone.remove(files[0])


RING = KeyRing({1: hashlib.sha256(b"one").digest()})
OTHER = KeyRing({1: hashlib.sha256(b"other").digest()})
CANARY = b'{"name": "canary-7f3a@example.com"}\n'


def never() -> KeyRing:
    raise AssertionError("the key was asked for")


def keyed(tmp_path: Path, ring: KeyRing | None = RING) -> LandingZone:
    given = None if ring is None else (lambda: ring)
    return LandingZone(str(tmp_path / "landing zone"), str(tmp_path / "archive"), given)


def content(zone: LandingZone, file: LandedFile) -> bytes:
    with zone.open(file) as stream:
        return stream.read()


@pytest.mark.parametrize("size", [0, 1, 2**20, 2**20 + 1])
def test_an_encrypted_file_looks_and_reads_like_the_plain_one(tmp_path: Path, size: int) -> None:
    zone, day, plain = keyed(tmp_path), "2026-06-15", (CANARY * (1 + size // len(CANARY)))[:size]
    put(tmp_path, "a.json.gz", plain)
    (landed,) = zone.files(FEED)
    location = zone.archive(landed, day, digest(plain), ring=RING)
    assert location == f"raw/things/{day}/a.json.gz.enc"
    assert (zone.files(FEED), list(tree(tmp_path, "archive"))) == ([], [location])
    (listed,) = zone.archived(FEED, day)
    found = zone.find("raw/things/a.json.gz", location)
    assert found is not None
    assert (listed.path, found.path) == (f"raw/things/{day}/a.json.gz", "raw/things/a.json.gz")
    for file in (listed, found):
        assert (file.size, file.modified, file.location) == (size, landed.modified, location)
        assert (file.format, file.archived, file.encrypted) == ("json", True, True)
        assert content(zone, file) == plain
        assert zone.content_hash(file) == digest(plain)
        copy = zone.readable_by_spark(file, tmp_path / "staging", 7)
        assert copy == str(tmp_path / "staging/000007.json.gz")
        assert Path(copy).read_bytes() == plain


def test_nothing_plain_is_in_the_archive(tmp_path: Path) -> None:
    zone = keyed(tmp_path)
    for name, plain in (("a.json", CANARY * 99_999), ("b.csv", b"name\n" + CANARY), ("2026-06-14/a.json", CANARY)):
        put(tmp_path, name, plain)
    for file in zone.files(FEED):
        zone.archive(file, "2026-06-15", zone.content_hash(file), ring=RING)
    assert tree(tmp_path, "landing zone") == {}
    archived = tree(tmp_path, "archive")
    assert len(archived) == 3
    for name, held in archived.items():
        assert b"canary" not in held, name
        assert b"canary" not in name.encode()


def test_archiving_encrypted_is_safe_to_repeat_and_keeps_every_version(tmp_path: Path) -> None:
    zone, day = keyed(tmp_path), "2026-06-15"
    places = []
    for plain in (b"one", b"two", b"one"):
        put(tmp_path, "a.json", plain)
        (file,) = zone.files(FEED)
        places += [zone.archive(file, day, digest(plain), ring=RING) for _ in range(2)]
        assert zone.files(FEED) == []
    first, second = f"raw/things/{day}/a.json.enc", f"raw/things/{day}/a.{digest(b'two')[:12]}.json.enc"
    assert places == [first, first, second, second, first, first]
    assert sorted(tree(tmp_path, "archive")) == [second, first]
    assert [content(zone, file) for file in zone.archived(FEED, day)] == [b"two", b"one"]


class Killed(BaseException):
    """The process ends here."""


@pytest.mark.parametrize("step", ["encrypt", "fsync", "utime", "replace", "_sync", "rm_file", "none"])
@pytest.mark.parametrize("after", [False, True])
def test_a_crash_at_any_step_of_encrypting_is_made_good(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str, after: bool
) -> None:
    zone = keyed(tmp_path)
    put(tmp_path, "a.json", CANARY)
    (file,) = zone.files(FEED)
    owner: object = {"encrypt": landing, "_sync": landing, "replace": Path, "rm_file": LocalFileSystem}.get(step, os)
    with monkeypatch.context() as patch:
        if step != "none":
            real = getattr(owner, step)

            def killed(*args: Any, **kwargs: Any) -> Any:
                if after:
                    real(*args, **kwargs)
                # Nor does a killed process tidy up.
                patch.setattr(LocalFileSystem, "rm_file", lambda *_: None)
                raise Killed

            patch.setattr(owner, step, killed)
            with pytest.raises(Killed):
                zone.archive(file, "2026-06-15", digest(CANARY), ring=RING)
    held = tree(tmp_path, "archive") | tree(tmp_path, "landing zone")
    assert held
    # What is there under its name is whole.
    for there in zone.archived(FEED, "2026-06-15"):
        assert content(zone, there) == CANARY
    zone.tidy(FEED)
    (place,) = {zone.archive(file, "2026-06-15", digest(CANARY), ring=RING) for _ in range(2)}
    assert list(tree(tmp_path, "archive")) == [place]
    assert tree(tmp_path, "landing zone") == {}
    (there,) = zone.archived(FEED, "2026-06-15")
    assert (content(zone, there), there.modified) == (CANARY, file.modified)


def test_what_a_killed_load_has_half_written_is_removed(tmp_path: Path) -> None:
    zone = keyed(tmp_path)
    zone.tidy(FEED)
    put(tmp_path, ".parts/abc", root="archive")
    put(tmp_path, "2026-06-15/a.json", root="archive")
    zone.tidy(FEED)
    assert list(tree(tmp_path, "archive")) == ["raw/things/2026-06-15/a.json"]


def test_what_cannot_be_removed_is_told_and_holds_nothing_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refused(*_: object) -> None:
        raise PermissionError

    put(tmp_path, ".parts/abc", root="archive")
    monkeypatch.setattr(LocalFileSystem, "rm_file", refused)
    keyed(tmp_path).tidy(FEED)
    assert "raw/things/.parts in the archive cannot be emptied (PermissionError)" in caplog.text


def test_a_file_that_changes_while_it_is_archived_is_not_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    zone = keyed(tmp_path)
    path = put(tmp_path, "a.json", b"new")
    (file,) = zone.files(FEED)
    with pytest.raises(OSError, match="changed after it had been loaded"):
        zone.archive(file, "2026-06-15", digest(b"old"), ring=RING)
    assert (path.read_bytes(), tree(tmp_path, "archive")) == (b"new", {})
    real = encrypt

    def overwritten(*args: Any) -> str:
        found = real(*args)
        path.write_bytes(b"newer")
        return found

    monkeypatch.setattr(landing, "encrypt", overwritten)
    place = zone.archive(file, "2026-06-15", digest(b"new"), ring=RING)
    (there,) = zone.archived(FEED, "2026-06-15")
    assert (there.location, content(zone, there), path.read_bytes()) == (place, b"new", b"newer")


def test_the_copy_that_a_time_without_encryption_left_is_encrypted(tmp_path: Path) -> None:
    zone, day = keyed(tmp_path), "2026-06-15"
    plain = f"raw/things/{day}/a.json"
    put(tmp_path, f"{day}/a.json", CANARY, root="archive")
    for again in (False, True):  # the file itself, and what is left to do once it is gone
        if not again:
            put(tmp_path, "a.json", CANARY)
        file = LandedFile("raw/things/a.json", len(CANARY), HOUR_AGO, "raw/things/a.json")
        assert zone.archive(file, day, digest(CANARY), ring=RING) == f"{plain}.enc"
        assert list(tree(tmp_path, "archive")) == [f"{plain}.enc"]
    # Who has noted the plain place finds it all the same.
    for archived_first in (False, True):
        found = zone.find("raw/things/a.json", plain, archived_first=archived_first)
        assert found is not None
        assert (found.location, content(zone, found)) == (f"{plain}.enc", CANARY)


def test_other_bytes_from_a_time_without_encryption_keep_their_place(tmp_path: Path) -> None:
    zone, day = keyed(tmp_path), "2026-06-15"
    put(tmp_path, f"{day}/a.json", b"old", root="archive")
    put(tmp_path, "a.json", b"new")
    (file,) = zone.files(FEED)
    place = zone.archive(file, day, digest(b"new"), ring=RING)
    assert place == f"raw/things/{day}/a.{digest(b'new')[:12]}.json.enc"
    assert {one.path: content(zone, one) for one in zone.archived(FEED, day)} == {
        f"raw/things/{day}/a.json": b"old",
        place.removesuffix(".enc"): b"new",
    }


def test_a_table_that_is_encrypted_no_longer_meets_what_is(tmp_path: Path) -> None:
    zone, day = keyed(tmp_path), "2026-06-15"
    put(tmp_path, "a.json", b"one")
    zone.archive(zone.files(FEED)[0], day, digest(b"one"), ring=RING)
    for plain, name in ((b"one", "a.json.enc"), (b"two", f"a.{digest(b'two')[:12]}.json")):
        put(tmp_path, "a.json", plain)
        assert zone.archive(zone.files(FEED)[0], day, digest(plain)) == f"raw/things/{day}/{name}"
    assert sorted(content(zone, file) for file in zone.archived(FEED, day)) == [b"one", b"two"]


def test_a_file_that_is_gone_is_archived_without_a_trace(tmp_path: Path) -> None:
    gone = LandedFile("raw/things/x.json", 1, HOUR_AGO, "raw/things/x.json")
    place = keyed(tmp_path).archive(gone, "2026-06-15", digest(b"x"), ring=RING)
    assert place == "raw/things/2026-06-15/x.json.enc"
    assert not (tmp_path / "archive").exists()


def test_a_name_without_room_for_its_ending_gets_its_hash(tmp_path: Path) -> None:
    zone, day = keyed(tmp_path), "2026-06-15"
    for name in ("x" * 246 + ".json", "x" * 247 + ".json", "x" * 250 + ".json", "é" * 123 + "x.json.gz"):
        put(tmp_path, name, name.encode())
        (file,) = zone.files(FEED)
        place = zone.archive(file, day, digest(name.encode()), ring=RING)
        assert ("/" + name + ".enc" in place) == (len(name.encode()) <= 251)
        assert zone.archive(file, day, digest(name.encode()), ring=RING) == place
    assert len(tree(tmp_path, "archive")) == 4


@pytest.mark.parametrize("encrypted", [False, True])
def test_a_file_whose_names_are_taken_stays(tmp_path: Path, encrypted: bool) -> None:
    zone, ring = keyed(tmp_path), RING if encrypted else None
    put(tmp_path, "a.json", b"abc")
    for name in ("a.json", f"a.{digest(b'abc')[:12]}.json"):
        put(tmp_path, f"2026-06-15/{name}" + (".enc" if encrypted else ""), b"damaged", root="archive")
    (file,) = zone.files(FEED)
    with pytest.raises(FileExistsError):
        zone.archive(file, "2026-06-15", digest(b"abc"), ring=ring)
    assert zone.files(FEED) == [file]


def test_what_is_damaged_in_the_archive_holds_no_new_file_back(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    zone = keyed(tmp_path)
    put(tmp_path, "a.json", b"abc")
    put(tmp_path, "2026-06-15/a.json.enc", b"damaged", root="archive")
    (file,) = zone.files(FEED)
    place = zone.archive(file, "2026-06-15", digest(b"abc"), ring=RING)
    assert place == f"raw/things/2026-06-15/a.{digest(b'abc')[:12]}.json.enc"
    assert "'raw/things/2026-06-15/a.json.enc' in the archive is no file that was encrypted" in caplog.text


def test_of_a_link_the_content_is_encrypted_and_the_link_goes(tmp_path: Path) -> None:
    zone = keyed(tmp_path)
    target = tmp_path / "elsewhere"
    target.write_bytes(b"abc")
    link = put(tmp_path, "b.json").with_name("a.json")
    link.symlink_to(target)
    file = zone.files(FEED)[0]
    zone.archive(file, "2026-06-15", digest(b"abc"), ring=RING)
    assert (link.is_symlink(), target.read_bytes()) == (False, b"abc")
    assert content(zone, zone.archived(FEED, "2026-06-15")[0]) == b"abc"


def test_the_key_is_asked_for_when_an_encrypted_file_is_read_and_not_before(tmp_path: Path) -> None:
    put(tmp_path, "a.json", CANARY)
    put(tmp_path, "b.json", CANARY)
    zone, day = LandingZone(str(tmp_path / "landing zone"), str(tmp_path / "archive"), never), "2026-06-15"
    one, two = zone.files(FEED)
    place = zone.archive(one, day, digest(CANARY), ring=RING)
    zone.archive(two, day, digest(CANARY))
    assert zone.archive(one, day, digest(CANARY), ring=RING) == place
    encrypted, plain = zone.archived(FEED, day)
    assert zone.find("raw/things/a.json", place) == replace(encrypted, path="raw/things/a.json")
    assert content(zone, plain) == CANARY
    without = keyed(tmp_path, None)
    assert without.archived(FEED, day) == [encrypted, plain]
    for read in (content, LandingZone.content_hash):
        with pytest.raises(AssertionError):
            read(zone, encrypted)
        with pytest.raises(KeyMissing, match=r"'raw/things/2026-06-15/a\.json\.enc' in the archive is encrypted, and"):
            read(without, encrypted)
        with pytest.raises(KeyRefused, match=r"'raw/things/2026-06-15/a\.json\.enc' in the archive does not open"):
            read(keyed(tmp_path, OTHER), encrypted)


def test_inspection_sees_the_plain_file_and_tells_of_one_that_does_not_open(tmp_path: Path) -> None:
    table, zone, day = things(), keyed(tmp_path), "2026-06-15"
    put(tmp_path, "a.csv", csv_text(row(1)))
    put(tmp_path, "b.json", json_lines(row(2)))
    target = io.BytesIO()
    many = pa.table({name: range(100_000) for name in COLUMNS})
    pq.write_table(many, target, compression="none", use_dictionary=False)
    assert len(target.getvalue()) > 4 * 2**20
    put(tmp_path, "c.parquet", target.getvalue())
    before = inspect(zone, table, zone.files(FEED))
    for one in before:
        zone.archive(one.file, day, one.content_hash, ring=RING)
    archived = zone.archived(FEED, day)
    after = inspect(zone, table, archived)
    assert [one.problem for one in before] == [None] * 3
    assert [replace(one, file=before[n].file) for n, one in enumerate(after)] == before
    for one in inspect(keyed(tmp_path, OTHER), table, archived):
        assert (one.problem, one.content_hash) == (None, "")
        assert str(one.unopened).endswith("or it was encrypted with another key")
    with pytest.raises(KeyMissing):
        inspect(keyed(tmp_path, None), table, archived)


def test_files_on_another_file_system_are_encrypted_too(memory: fsspec.AbstractFileSystem, tmp_path: Path) -> None:
    zone = LandingZone("memory://bucket/landing", "memory://bucket/archive", lambda: RING)
    for plain in (CANARY, b"two", CANARY):
        memory.pipe("/bucket/landing/raw/things/a b.json", plain)
        (file,) = zone.files(FEED)
        places = {zone.archive(file, "2026-06-16", digest(plain), ring=RING) for _ in range(2)}
        assert len(places) == 1
        assert zone.files(FEED) == []
    memory.pipe("/bucket/archive/raw/things/.parts/left", b"x")
    zone.tidy(FEED)
    second, first = zone.archived(FEED, "2026-06-16")
    assert sorted(memory.find("/bucket")) == [f"/bucket/archive/{file.location}" for file in (second, first)]
    assert (second.path, first.path) == (
        f"raw/things/2026-06-16/a b.{digest(b'two')[:12]}.json",
        "raw/things/2026-06-16/a b.json",
    )
    assert (content(zone, second), content(zone, first), first.size) == (b"two", CANARY, len(CANARY))
    assert Path(zone.readable_by_spark(first, tmp_path / "staging", 1)).read_bytes() == CANARY
    assert not any(b"canary" in memory.cat_file(path) for path in memory.find("/bucket"))
