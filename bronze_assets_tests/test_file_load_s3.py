"""Landing zone and archive in an object store: a server that speaks S3."""

from __future__ import annotations

import dataclasses
import hashlib
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import fsspec
import pytest
from moto.server import ThreadedMotoServer

from bronze_assets.privacy.keys import KeyRing
from bronze_assets.settings import Settings
from bronze_assets.sources.landing import LandingZone
from bronze_assets.table import Feed
from bronze_assets_tests import lake_reader
from bronze_assets_tests.file_tables import DAY, NOW, csv_text, ids, json_lines, loaded, quarantine, row, states, things

if TYPE_CHECKING:
    from pyspark.sql import SparkSession


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> Iterator[fsspec.AbstractFileSystem]:
    server = ThreadedMotoServer("127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    for name, value in {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_DEFAULT_REGION": "us-east-1",
    }.items():
        monkeypatch.setenv(name, value)
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    fsspec.filesystem("s3").clear_instance_cache()
    fs = fsspec.filesystem("s3")
    fs.mkdir("shop")
    yield fs
    # moto keeps its buckets in the process, whichever server made them.
    fs.rm("shop", recursive=True)
    fs.clear_instance_cache()
    server.stop()


@pytest.mark.slow
def test_files_in_an_object_store_are_listed_loaded_and_archived(
    spark: SparkSession, settings: Settings, store: fsspec.AbstractFileSystem
) -> None:
    settings = dataclasses.replace(settings, landing="s3://shop/landing", archive="s3://shop/archive")
    folder = "shop/landing/raw/things"
    later = NOW.replace(year=2100)
    table = things()
    assert loaded(settings, table).scope == "nothing new"
    store.pipe(f"{folder}/{DAY}/a.json", json_lines(row(1), row(2, good="yes")))
    store.pipe(f"{folder}/{DAY}/b c%.csv", csv_text(row(3)))
    store.pipe(f"{folder}/{DAY}/bad.parquet", b"PAR1")
    record = loaded(settings, table, DAY, now=later)
    assert (record.read, record.loaded, record.quarantined, record.files_quarantined) == (3, 2, 1, 1)
    assert ids(settings) == [1, 3]
    assert [one["file_name"] for one in quarantine(settings)] == [
        f"raw/things/{DAY}/a.json",
        f"raw/things/{DAY}/bad.parquet",
    ]
    assert sorted(store.find("shop")) == [
        f"shop/archive/raw/things/{DAY}/a.json",
        f"shop/archive/raw/things/{DAY}/b c%.csv",
        f"{folder}/{DAY}/bad.parquet",
    ]
    assert lake_reader.listing(settings.home / "staging") == {}
    # Overwritten, by another process, whatever this one remembers of the listing.
    time.sleep(1.1)  # the store's times have whole seconds
    store.pipe(f"{folder}/{DAY}/bad.parquet", b"")
    store.pipe(f"{folder}/{DAY}/a.json", json_lines(row(1), row(4)))
    record = loaded(settings, table, DAY, now=later)
    assert (record.loaded, record.files, record.files_quarantined) == (2, 2, 1)
    assert ids(settings) == [1, 3, 4]
    assert states(settings)[f"{DAY}/a.json"] == "archived"
    assert len(store.find("shop/archive")) == 3


def test_files_in_an_object_store_are_archived_encrypted(store: fsspec.AbstractFileSystem, tmp_path: Path) -> None:
    ring = KeyRing({1: hashlib.sha256(b"one").digest()})
    zone = LandingZone("s3://shop/landing", "s3://shop/archive", lambda: ring)
    feed = Feed("raw/things")
    zone.tidy(feed)
    # More than one part of an upload.
    large = b"canary-7f3a\n" * (12 * 2**20 // 12)
    for content in (large, b"canary-7f3a", large):
        store.pipe("shop/landing/raw/things/a b%.csv", content)
        (file,) = zone.files(feed)
        digest = hashlib.sha256(content).hexdigest()
        assert len({zone.archive(file, DAY, digest, ring=ring) for _ in range(2)}) == 1
    store.pipe("shop/archive/raw/things/.parts/left", b"x")
    zone.tidy(feed)
    small, big = zone.archived(feed, DAY)
    store.invalidate_cache()
    assert sorted(store.find("shop")) == [f"shop/archive/{file.location}" for file in (small, big)]
    assert (big.path, big.location) == (f"raw/things/{DAY}/a b%.csv", f"raw/things/{DAY}/a b%.csv.enc")
    assert (small.size, big.size) == (11, len(large))
    assert zone.find("raw/things/a b%.csv", big.location) == dataclasses.replace(big, path="raw/things/a b%.csv")
    with zone.open(big) as stream:
        assert (stream.seek(-5, 2), stream.read()) == (len(large) - 5, large[-5:])
    for number, file, expected in ((1, small, b"canary-7f3a"), (2, big, large)):
        assert zone.content_hash(file) == hashlib.sha256(expected).hexdigest()
        assert Path(zone.readable_by_spark(file, tmp_path / "staging", number)).read_bytes() == expected
        assert b"canary" not in store.cat_file(f"shop/archive/{file.location}")
