"""The landing zone on folders of this machine and on an fsspec file system: what it lists, reads and moves."""

from __future__ import annotations

import datetime as dt
import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest

from bronze_assets.errors import LakeError
from bronze_assets.sources.landing import LandedFile, LandingZone
from bronze_assets.table import Feed

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


def test_files_of_the_folder_and_of_its_days_are_listed_and_nothing_else(zone: LandingZone, tmp_path: Path) -> None:
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
