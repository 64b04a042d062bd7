"""Encrypted files: the format, what is noticed of damage, and that reading one is like reading the plain file."""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import random
import shutil
import tracemalloc
from collections.abc import Callable
from typing import Any, BinaryIO, cast

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from hypothesis import given, settings
from hypothesis import strategies as st

from bronze_assets.errors import KeyRefused
from bronze_assets.privacy.archive import CHUNK, encrypt, open_encrypted, plain_size
from bronze_assets.privacy.keys import KeyRing

OLD, NEW, OTHER = (hashlib.sha256(name).digest() for name in (b"old", b"new", b"other"))
RING = KeyRing({1: OLD, 7: NEW})
HEADER = 18
SEALED = CHUNK + 16
BYTES = random.Random(1).randbytes(3 * CHUNK + 5)
SIZES = [0, 1, 15, 16, 17, CHUNK - 17, CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK - 1, 2 * CHUNK, 3 * CHUNK + 5]


def sealed(content: bytes, ring: KeyRing = RING) -> bytes:
    target = io.BytesIO()
    assert encrypt(io.BytesIO(content), target, ring) == hashlib.sha256(content).hexdigest()
    return target.getvalue()


def opened(content: bytes, ring: KeyRing = RING) -> BinaryIO:
    return open_encrypted(io.BytesIO(content), ring, name="'a.json'")


def handed_out(content: bytes, ring: KeyRing = RING) -> bytes:
    """What is read before the damage is told; fails if it is not."""
    found: list[bytes] = []

    def read() -> None:
        plain = opened(content, ring)
        while chunk := plain.read(65_536):
            found.append(chunk)

    with pytest.raises(KeyRefused, match=r"'a\.json'|Version"):
        read()
    return b"".join(found)


@pytest.mark.parametrize("size", SIZES)
def test_what_was_encrypted_is_read_whatever_its_size(size: int) -> None:
    content = BYTES[:size]
    encrypted = sealed(content)
    assert encrypted[:6] == b"BZE1\x00\x07"
    assert len(encrypted) == HEADER + size + 16 * max(1, -(-size // CHUNK))
    assert plain_size(len(encrypted)) == size
    plain = opened(encrypted)
    assert plain.read() == content
    assert (plain.tell(), plain.read(), plain.read(1)) == (size, b"", b"")


@settings(max_examples=60, deadline=None)
@given(
    size=st.one_of(st.integers(0, 40), st.integers(CHUNK - 40, CHUNK + 40), st.integers(2 * CHUNK - 5, 2 * CHUNK + 5)),
    steps=st.lists(
        st.tuples(
            st.sampled_from((os.SEEK_SET, os.SEEK_CUR, os.SEEK_END)),
            st.integers(-2 * CHUNK - 9, 2 * CHUNK + 9),
            st.integers(-1, CHUNK + 9),
        ),
        max_size=6,
    ),
)
def test_reading_and_seeking_is_as_in_the_plain_file(size: int, steps: list[tuple[int, int, int]]) -> None:
    plain, expected = opened(sealed(BYTES[:size])), io.BytesIO(BYTES[:size])
    for whence, offset, count in steps:
        start = {os.SEEK_SET: 0, os.SEEK_CUR: expected.tell(), os.SEEK_END: size}[whence]
        if start + offset < 0:
            with pytest.raises(ValueError, match="not a place"):
                plain.seek(offset, whence)
        else:
            assert plain.seek(offset, whence) == expected.seek(offset, whence)
        assert plain.read(count) == expected.read(count)
        assert plain.tell() == expected.tell()


def test_the_format_is_the_documented_one() -> None:
    """Against an implementation of the module's words with the primitives alone."""
    content = BYTES[: CHUNK + 3]
    encrypted = sealed(content)
    header = encrypted[:HEADER]
    archive_key = HKDF(SHA256(), 32, None, b"bronze_assets/archive").derive(NEW)
    cipher = AESGCM(HKDF(SHA256(), 32, header[6:], b"bronze_assets/archive file").derive(archive_key))
    first = cipher.encrypt(bytes(12), content[:CHUNK], header)
    second = cipher.encrypt(bytes(10) + b"\x01\x01", content[CHUNK:], header)
    assert encrypted == header + first + second


def test_two_encryptions_of_one_file_have_nothing_in_common() -> None:
    one, two = sealed(b"x" * 100), sealed(b"x" * 100)
    assert one[6:18] != two[6:18]
    assert one[18:] != two[18:]
    assert opened(one).read() == opened(two).read()


def test_a_file_of_an_earlier_version_is_read_and_one_of_a_retired_version_is_told() -> None:
    encrypted = sealed(b"abc", KeyRing({1: OLD}))
    assert opened(encrypted).read() == b"abc"
    with pytest.raises(KeyRefused, match=r"Version 1 of the master key is needed and not here \(here: 7\)"):
        opened(encrypted, KeyRing({7: NEW}))


def test_another_key_opens_nothing() -> None:
    for content in (b"", b"abc", BYTES):
        assert handed_out(sealed(content), KeyRing({1: OLD, 7: OTHER})) == b""


PLACES = {
    "magic": 0,
    "version": 5,
    "file id": 6,
    "end of the file id": HEADER - 1,
    "first chunk": HEADER,
    "first tag": HEADER + SEALED - 1,
    "second chunk": HEADER + SEALED,
    "middle": HEADER + SEALED + 999,
    "last chunk": HEADER + 3 * SEALED,
    "last byte": -1,
}


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("bit", [0, 7])
def test_a_flipped_bit_is_noticed_and_no_wrong_byte_is_given(place: str, bit: int) -> None:
    damaged = bytearray(sealed(BYTES))
    damaged[PLACES[place]] ^= 1 << bit
    assert BYTES.startswith(handed_out(bytes(damaged)))


@settings(max_examples=100, deadline=None)
@given(st.integers(0, len(BYTES) + HEADER + 4 * 16 - 1), st.integers(1, 255))
def test_a_changed_byte_anywhere_is_noticed(place: int, mask: int) -> None:
    damaged = bytearray(_SEALED)
    damaged[place] ^= mask
    assert BYTES.startswith(handed_out(bytes(damaged)))


@pytest.mark.parametrize("size", [0, 1, CHUNK, CHUNK + 1, 2 * CHUNK, 3 * CHUNK + 5])
def test_a_file_that_was_cut_off_or_continued_gives_nothing(size: int) -> None:
    whole = sealed(BYTES[:size])
    cuts = {0, 1, 4, 17, 18, 19, 33, 34, 35, len(whole) - 16, len(whole) - 1}
    cuts |= {HEADER + number * SEALED + step for number in range(1, 4) for step in (-17, -16, -1, 0, 1, 15, 16, 17)}
    for cut in sorted(one for one in cuts if 0 <= one < len(whole)):
        assert handed_out(whole[:cut]) == b"", cut
    for more in (b"x", bytes(16), bytes(17), whole[HEADER:], whole, bytes(SEALED)):
        assert handed_out(whole + more) == b"", len(more)


def test_a_file_of_a_size_that_none_has_is_called_cut_short() -> None:
    whole = sealed(BYTES[: CHUNK + 1])
    for size in (18, 33, HEADER + SEALED + 1, HEADER + SEALED + 16):
        with pytest.raises(KeyRefused, match=r"'a\.json' is cut short\. Fix: put back a copy"):
            opened(whole[:size])
    assert plain_size(0) == plain_size(20) == 0


_SEALED = sealed(BYTES)


def chunks(content: bytes) -> list[bytes]:
    return [content[start : start + SEALED] for start in range(HEADER, len(content), SEALED)]


@pytest.mark.parametrize(
    "changed",
    [
        lambda mine, _: [mine[1], mine[0], *mine[2:]],
        lambda mine, _: [mine[0], mine[0], *mine[2:]],
        lambda mine, _: mine[1:],
        lambda mine, _: [mine[0], *mine[2:]],
        lambda mine, _: [*mine, mine[-1]],
        lambda mine, _: [*mine[:-1], mine[0], mine[-1]],
        lambda mine, other: [other[0], *mine[1:]],
        lambda mine, other: [*mine[:-1], other[-1]],
        lambda _, other: other,
    ],
)
def test_chunks_in_another_order_or_of_another_file_are_noticed(
    changed: Callable[[list[bytes], list[bytes]], list[bytes]],
) -> None:
    """The other file has the same content and the same key."""
    content = b"".join(changed(chunks(_SEALED), chunks(sealed(BYTES))))
    assert BYTES.startswith(handed_out(_SEALED[:HEADER] + content))


def test_what_is_no_encrypted_file_is_told() -> None:
    for content in (b"", b"BZE1", b'{"thing_id": 1}\n' * 100, b"PAR1" * 100):
        with pytest.raises(
            KeyRefused, match=r"'a\.json' is no file that was encrypted for the archive\. Fix: put back"
        ):
            opened(content)


def test_a_read_that_failed_can_be_tried_again_and_loses_nothing() -> None:
    damaged = bytearray(_SEALED)
    damaged[HEADER + SEALED] ^= 1
    plain = opened(bytes(damaged))
    assert plain.read(10) == BYTES[:10]
    for _ in range(2):
        with pytest.raises(KeyRefused):
            plain.read(2 * CHUNK)
        assert plain.tell() == 10
    assert plain.read(10) == BYTES[10:20]
    plain.seek(2 * CHUNK)
    assert plain.read() == BYTES[2 * CHUNK :]


def test_errors_hold_nothing_of_the_file_or_the_key() -> None:
    with pytest.raises(KeyRefused) as refused:
        opened(sealed(b"canary@example.com"), KeyRing({7: OTHER}))
    words = str(refused.value) + repr(refused.value.__cause__) + repr(refused.value.__context__)
    assert "canary" not in words
    assert NEW.hex() not in words


class Dribble(io.RawIOBase):
    """Gives a few bytes at a time, as some streams do."""

    def __init__(self, content: bytes, most: int = 100_003) -> None:
        self._source = io.BytesIO(content)
        self._most = most

    def read(self, size: int = -1, /) -> bytes:
        return self._source.read(min(size, self._most))

    def seek(self, *place: Any) -> int:
        return self._source.seek(*place)


def test_a_stream_that_gives_less_than_asked_for_is_read_all_the_same() -> None:
    target = io.BytesIO()
    encrypt(cast(BinaryIO, Dribble(BYTES)), target, RING)
    assert len(target.getvalue()) == len(_SEALED)
    assert open_encrypted(cast(BinaryIO, Dribble(target.getvalue())), RING).read() == BYTES


class Zeros(io.RawIOBase):
    def __init__(self, size: int) -> None:
        self._left = size

    def read(self, size: int = -1, /) -> bytes:
        given = min(size, self._left)
        self._left -= given
        return bytes(given)


def test_memory_stays_bounded(tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("large") / "file"
    size = 64 * CHUNK
    tracemalloc.start()
    try:
        with path.open("wb") as target:
            encrypt(cast(BinaryIO, Zeros(size)), target, RING)
        with path.open("rb") as source:
            plain = open_encrypted(source, RING)
            found = 0
            while chunk := plain.read(CHUNK // 3):
                found += len(chunk)
        assert found == size
        assert tracemalloc.get_traced_memory()[1] < 8 * CHUNK
    finally:
        tracemalloc.stop()
        path.unlink(missing_ok=True)


def test_parquet_and_gzip_are_read_from_it() -> None:
    table = pa.table({"n": range(300_000), "t": [f"text {n % 977}" for n in range(300_000)]})
    target = io.BytesIO()
    pq.write_table(table, target, compression="none", use_dictionary=False, row_group_size=50_000)
    assert len(target.getvalue()) > 2 * CHUNK
    with opened(sealed(target.getvalue())) as plain:
        file = pq.ParquetFile(plain)
        assert file.metadata.num_rows == 300_000
        assert pa.Table.from_batches(file.iter_batches(batch_size=65_536)) == table
    with gzip.GzipFile(fileobj=opened(sealed(gzip.compress(BYTES)))) as unpacked:
        assert unpacked.read() == BYTES


def test_it_is_a_file_object_that_only_reads() -> None:
    stream = io.BytesIO(sealed(b"ab\ncd"))
    plain = open_encrypted(stream, RING)
    assert (plain.readable(), plain.seekable(), plain.writable(), plain.closed) == (True, True, False, False)
    assert list(plain) == [b"ab\n", b"cd"]
    plain.seek(0)
    copy = io.BytesIO()
    shutil.copyfileobj(plain, copy)
    assert copy.getvalue() == b"ab\ncd"
    buffer = bytearray(9)
    plain.seek(1)
    assert (cast(io.BufferedIOBase, plain).readinto(buffer), bytes(buffer[:4])) == (4, b"b\ncd")
    plain.close()
    for use in (plain.read, plain.tell, plain.readable, lambda: plain.seek(0)):
        with pytest.raises(ValueError, match="closed"):
            use()
    assert not stream.closed
