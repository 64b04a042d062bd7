"""The master key. Key Vault and Databricks: their real clients against a strict server of our own (`Vaults`)."""

from __future__ import annotations

import base64
import copy
import dataclasses
import functools
import hashlib
import json
import logging
import os
import pickle
import re
import stat
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import parse_qs, urlsplit

import pytest
from azure.core.credentials import AccessToken
from azure.core.pipeline.transport import RequestsTransport
from azure.keyvault.secrets import SecretClient
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from hypothesis import given
from hypothesis import strategies as st

from bronze_assets.errors import BronzeError, KeyMissing, KeyRefused, SettingsError
from bronze_assets.privacy import keys
from bronze_assets.privacy.keys import KeyRing, key_ring, retire, rotated
from bronze_assets.settings import Settings
from bronze_assets.vaults import resolve_secret

ONE, TWO, THREE = (hashlib.sha256(name).digest() for name in (b"one", b"two", b"three"))
RING = KeyRing({1: ONE, 2: TWO})


def local(tmp_path: Path, **variables: str) -> Settings:
    return Settings.from_environment({"BRONZE_HOME": str(tmp_path / "home"), **variables})


def at(place: str, environment: str = "prod") -> Settings:
    return Settings.from_environment({"BRONZE_ENV": environment, "BRONZE_MASTER_KEY": place})


def kept(path: Path, content: object, mode: int = 0o600) -> Settings:
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    path.chmod(mode)
    return at(f"file:{path}")


def encoded(*secrets: bytes) -> dict[str, dict[str, str]]:
    return {"versions": {str(n): base64.b64encode(secret).decode() for n, secret in enumerate(secrets, start=1)}}


# What is derived and wrapped


@pytest.mark.parametrize(
    ("secret", "salt", "info", "derived"),
    [
        # RFC 5869, A.1 to A.3.
        (
            "0b" * 22,
            "000102030405060708090a0b0c",
            "f0f1f2f3f4f5f6f7f8f9",
            "3cb25f25faacd57a90434f64d0362f2a2d2d0a90cf1a5a4c5db02d56ecc4c5bf34007208d5b887185865",
        ),
        (
            bytes(range(0x50)).hex(),
            bytes(range(0x60, 0xB0)).hex(),
            bytes(range(0xB0, 0x100)).hex(),
            "b11e398dc80327a1c8e7f78c596a49344f012eda2d4efad8a050cc4c19afa97c59045a99cac7827271cb41c65e590e09"
            "da3275600c2f09b8367793a9aca3db71cc30c58179ec3e87c14c01d5c1f3434f1d87",
        ),
        (
            "0b" * 22,
            "",
            "",
            "8da4e775a563c18f715f802a063c5a31b8a11f5c5ee1879ec3454e5f3c738d2d9d201395faa4b61a96c8",
        ),
    ],
)
def test_the_derivation_is_that_of_rfc_5869(secret: str, salt: str, info: str, derived: str) -> None:
    length = len(derived) // 2
    function = HKDF(SHA256(), length, bytes.fromhex(salt) or None, bytes.fromhex(info))

    assert function.derive(bytes.fromhex(secret)).hex() == derived


def test_a_purpose_has_the_key_that_hkdf_gives_for_our_info() -> None:
    for version, secret in ((1, ONE), (2, TWO)):
        expected = HKDF(SHA256(), 32, None, b"bronze_assets/tokens").derive(secret)
        assert RING.derive("tokens", version) == expected
    assert RING.derive("tokens") == RING.derive("tokens", 2)


def test_the_key_of_a_purpose_never_changes() -> None:
    # Written down once: a change here makes every lake unreadable. HMAC by hand gives the same (RFC 5869, 2.2 and 2.3).
    import hmac

    extracted = hmac.digest(bytes(32), ONE, "sha256")
    assert RING.derive("wrap", 1) == hmac.digest(extracted, b"bronze_assets/wrap\x01", "sha256")


@given(st.text(), st.text())
def test_purposes_have_keys_of_their_own(one: str, other: str) -> None:
    assert (RING.derive(one) == RING.derive(other)) == (one == other)


class Known(KeyRing):
    """A ring whose wrapping key is that of a published answer."""

    __slots__ = ("answer",)
    answer: bytes

    def derive(self, purpose: str, version: int | None = None) -> bytes:
        assert (purpose, version) == ("wrap", 1)
        return self.answer


FEFFE = "feffe9928665731c6d6a8f9467308308" * 2
TEXT = (
    "d9313225f88406e5a55909c5aff5269a86a7a9531534f7da2e4c303d8a318a72"
    "1c3c0c95956809532fcf0e2449a6b525b16aedf5aa0de657ba637b391aafd255"
)
CIPHER = (
    "522dc1f099567d07f47f37a32a84427d643a8cdcbfe5c0c97598a2bd2555d1aa"
    "8cb08e48590dbb3da7b08b1056828838c5f61e6393ba7a0abcc9f662898015ad"
)


@pytest.mark.parametrize(
    ("key", "nonce", "text", "cipher", "tag"),
    [
        # Test cases 13 to 15 of McGrew and Viega's submission of GCM to NIST.
        ("00" * 32, "00" * 12, "", "", "530f8afbc74536b9a963b4f1c4cb738b"),
        ("00" * 32, "00" * 12, "00" * 16, "cea7403d4d606b6e074ec5d3baf39d18", "d0d1c8a799996bf0265b98b5d48ab919"),
        (FEFFE, "cafebabefacedbaddecaf888", TEXT, CIPHER, "b094dac5d93471bdec1a502270e3cc6c"),
    ],
)
def test_wrapping_gives_the_published_answers_behind_the_version(
    key: str, nonce: str, text: str, cipher: str, tag: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    ring = Known({1: ONE})
    ring.answer = bytes.fromhex(key)
    monkeypatch.setattr(keys, "token_bytes", lambda size: bytes.fromhex(nonce) * (size // 12))

    wrapped = ring.wrap(bytes.fromhex(text), context="")

    assert wrapped.hex() == f"0001{nonce}{cipher}{tag}"
    assert ring.unwrap(wrapped, context="").hex() == text


def test_the_cipher_beneath_gives_the_published_answer_with_additional_data() -> None:
    # Test case 16; its additional data is no text, as a context is.
    additional = bytes.fromhex("feedfacedeadbeeffeedfacedeadbeefabaddad2")
    nonce = bytes.fromhex("cafebabefacedbaddecaf888")

    found = AESGCM(bytes.fromhex(FEFFE)).encrypt(nonce, bytes.fromhex(TEXT[:120]), additional)

    assert found.hex() == CIPHER[:120] + "76fc6ece0f4e1768cddf8853bb2d551b"


@given(st.binary(max_size=200), st.text())
def test_what_was_wrapped_opens_by_hand_and_what_was_wrapped_by_hand_opens(secret: bytes, context: str) -> None:
    wrapped = RING.wrap(secret, context=context)
    assert len(wrapped) == 2 + 12 + len(secret) + 16
    assert wrapped[:2] == b"\0\2"
    by_hand = AESGCM(RING.derive("wrap", 2))
    assert by_hand.decrypt(wrapped[2:14], wrapped[14:], context.encode()) == secret

    nonce = os.urandom(12)
    for version in (1, 2):
        cipher = AESGCM(RING.derive("wrap", version))
        foreign = version.to_bytes(2, "big") + nonce + cipher.encrypt(nonce, secret, context.encode())
        assert RING.unwrap(foreign, context=context) == secret


@given(st.lists(st.tuples(st.binary(max_size=40), st.text(max_size=10)), max_size=30))
def test_many_are_wrapped_as_one_by_one_each_under_a_nonce_of_its_own(pairs: list[tuple[bytes, str]]) -> None:
    wrapped = RING.wrap_many([secret for secret, _ in pairs], [context for _, context in pairs])

    opened = [RING.unwrap(one, context=context) for one, (_, context) in zip(wrapped, pairs, strict=True)]
    assert opened == [secret for secret, _ in pairs]
    assert len({one[2:14] for one in wrapped}) == len(pairs)


def test_many_secrets_need_as_many_contexts() -> None:
    with pytest.raises(ValueError, match="2 secrets cannot be bound to 1 contexts"):
        RING.wrap_many([b"a", b"b"], ["x"])


def test_threads_share_a_ring() -> None:
    ring = KeyRing({1: ONE, 2: TWO})

    def walk(number: int) -> bool:
        names = [f"{number}/{n}" for n in range(500)]
        wrapped = ring.wrap_many([name.encode() for name in names], names)
        return all(ring.unwrap(one, context=name) == name.encode() for one, name in zip(wrapped, names, strict=True))

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(walk, range(16)))


@given(st.binary(max_size=40), st.text(), st.text())
def test_another_context_does_not_open(secret: bytes, context: str, other: str) -> None:
    if context == other:
        return
    with pytest.raises(KeyRefused, match="version 2 of the master key does not open: it belongs to another place"):
        RING.unwrap(RING.wrap(secret, context=context), context=other)


def test_no_flipped_bit_and_no_cut_goes_unnoticed() -> None:
    wrapped = RING.wrap(b"secret of a person", context="bz_customers/7")

    for bit in range(8 * len(wrapped)):
        damaged = bytearray(wrapped)
        damaged[bit // 8] ^= 1 << bit % 8
        with pytest.raises(KeyRefused):
            RING.unwrap(bytes(damaged), context="bz_customers/7")
    for length in range(len(wrapped)):
        with pytest.raises(KeyRefused):
            RING.unwrap(wrapped[:length], context="bz_customers/7")
    with pytest.raises(KeyRefused):
        RING.unwrap(wrapped + b"\0", context="bz_customers/7")


def test_another_version_does_not_open_and_a_missing_one_is_named_with_those_that_are_there() -> None:
    wrapped = RING.wrap(b"secret", context="x")

    with pytest.raises(KeyRefused, match="version 1 of the master key does not open"):
        RING.unwrap(b"\0\1" + wrapped[2:], context="x")
    with pytest.raises(KeyRefused, match=r"Version 2 of the master key is needed and not here \(here: 1, 3\)"):
        KeyRing({1: ONE, 3: THREE}).unwrap(wrapped, context="x")
    with pytest.raises(KeyRefused, match="Version 9 "):
        RING.derive("tokens", 9)


@pytest.mark.parametrize(
    ("versions", "wrong"),
    [
        ({}, "there is none"),
        ({0: ONE}, "not a number from 1 to 65535"),
        ({65536: ONE}, "not a number from 1 to 65535"),
        ({1: ONE[:31]}, "version 1 has 31 bytes instead of 32"),
        ({1: ONE, 2: ONE}, "two versions are the same key"),
    ],
)
def test_a_ring_of_something_else_is_refused(versions: dict[int, bytes], wrong: str) -> None:
    with pytest.raises(KeyRefused, match=wrong) as caught:
        KeyRing(versions)
    assert_hidden(shown(caught.value), ONE)


def test_the_highest_version_is_current_and_the_last_possible_one_wraps() -> None:
    ring = KeyRing({65535: TWO, 3: ONE})

    assert (ring.versions, ring.current) == ((3, 65535), 65535)
    assert ring.unwrap(ring.wrap(b"x", context="c"), context="c") == b"x"


# What is never shown


def traces(secret: bytes) -> list[str]:
    """Pieces of a key as they would show in a text, whatever wrote it."""
    whole = base64.b64encode(secret).decode()
    return [
        secret.hex()[:16],
        secret.hex()[:16].upper(),
        whole[:12],
        whole[-12:],
        base64.urlsafe_b64encode(secret).decode()[:12],
        repr(secret[:6])[2:-1],
        repr(secret[-6:])[2:-1],
        str(list(secret[:4]))[1:-1],
        str(int.from_bytes(secret, "big"))[:16],
    ]


def assert_hidden(text: str, *secrets: bytes) -> None:
    for secret in secrets:
        assert not [trace for trace in traces(secret) if trace in text], "a key shows"


def shown(error: BaseException) -> str:
    """All that a tool could tell of an error: its text, attributes and causes, the variables of the frames below."""
    seen: list[str] = []
    pending: list[BaseException | None] = [error]
    while pending:
        one = pending.pop()
        if one is None:
            continue
        # The first frame is the test's own.
        below = one.__traceback__.tb_next if one is error and one.__traceback__ else one.__traceback__
        told = traceback.TracebackException(type(one), one, below, capture_locals=True)
        seen += [*told.format(), str(one), repr(one), repr(one.args), repr(vars(one))]
        pending += [one.__cause__, one.__context__]
    return "\n".join(seen)


def test_the_search_for_traces_of_a_key_finds_them() -> None:
    for text in (repr(ONE), ONE.hex(), base64.b64encode(ONE).decode(), repr(list(ONE)), repr({"key": ONE})):
        with pytest.raises(AssertionError, match="a key shows"):
            assert_hidden(text, ONE)


def test_the_search_for_traces_looks_into_the_frames() -> None:
    def fails() -> None:
        key = ONE
        raise ValueError(len(key))

    with pytest.raises(ValueError, match="32") as caught:
        fails()
    with pytest.raises(AssertionError, match="a key shows"):
        assert_hidden(shown(caught.value), ONE)


def test_no_text_of_a_ring_shows_a_key() -> None:
    texts = [repr(RING), str(RING), f"{RING}", f"{RING!a:>80}", "%s" % RING, repr([RING]), repr({"ring": RING})]  # noqa: UP031

    assert set(texts[:3]) == {"KeyRing(versions=[1, 2])"}
    assert_hidden("".join(texts), ONE, TWO)
    slots = [repr(getattr(RING, name)) for name in KeyRing.__slots__]
    assert_hidden("".join(slots), ONE, TWO, RING.derive("wrap", 1), RING.derive("wrap", 2))


def test_a_ring_is_neither_pickled_nor_copied_also_not_within_a_closure() -> None:
    from pyspark import cloudpickle

    dumps: Callable[[object], bytes] = cloudpickle.dumps
    attempts: list[Callable[[], object]] = [
        *(functools.partial(pickle.dumps, RING, protocol) for protocol in range(pickle.HIGHEST_PROTOCOL + 1)),
        lambda: pickle.dumps({"ring": [RING]}),
        lambda: dumps(lambda: RING.current),
        lambda: copy.copy(RING),
        lambda: copy.deepcopy(RING),
        lambda: RING.__getstate__(),
    ]
    ring = RING
    attempts.append(lambda: dumps(lambda: ring.current))
    for attempt in attempts:
        with pytest.raises((TypeError, pickle.PicklingError), match="KeyRing") as caught:
            attempt()
        assert_hidden(shown(caught.value), ONE, TWO)


def test_no_refusal_shows_a_key_or_what_it_protects() -> None:
    secret = hashlib.sha256(b"a person's").digest()
    wrapped = RING.wrap(secret, context="bz_customers/7")
    refusals: list[Callable[[], object]] = [
        lambda: RING.unwrap(wrapped, context="bz_customers/8"),
        lambda: RING.unwrap(wrapped[:20], context="bz_customers/7"),
        lambda: RING.unwrap(b"\0\x09" + wrapped[2:], context="bz_customers/7"),
        lambda: RING.derive("tokens", 3),
    ]
    for refusal in refusals:
        with pytest.raises(KeyRefused) as caught:
            refusal()
        told = shown(caught.value)
        assert_hidden(told, ONE, TWO, secret, RING.derive("wrap", 1), RING.derive("wrap", 2), RING.derive("tokens"))
        assert "Fix: " in str(caught.value)


# Files


def test_the_first_use_makes_a_key_only_its_owner_reads_and_the_second_finds_it(tmp_path: Path) -> None:
    settings = local(tmp_path)
    before = os.umask(0)
    try:
        ring = key_ring(settings)
    finally:
        os.umask(before)

    path = tmp_path / "home" / "keys" / "master.key"
    assert ring.versions == (1,)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    (text,) = json.loads(path.read_text())["versions"].values()
    assert KeyRing({1: base64.b64decode(text)}).derive("x") == ring.derive("x") == key_ring(settings).derive("x")
    assert key_ring(local(tmp_path / "other")).derive("x") != ring.derive("x")
    assert {name.name for name in path.parent.iterdir()} == {"master.key", ".master.key.lock"}


def test_only_the_local_environment_makes_a_key(tmp_path: Path) -> None:
    for environment in ("dev", "qa", "prod"):
        with pytest.raises(KeyMissing, match=r"There is no master key at .*new/master.key"):
            key_ring(at(f"file:{tmp_path}/new/master.key", environment))
    assert not (tmp_path / "new").exists()
    assert key_ring(at(f"file:{tmp_path}/new/master.key", "local")).versions == (1,)


def test_a_link_that_leads_nowhere_is_no_first_use(tmp_path: Path) -> None:
    (tmp_path / "master.key").symlink_to(tmp_path / "not mounted" / "master.key")

    with pytest.raises(KeyMissing, match="There is no master key at"):
        key_ring(at(f"file:{tmp_path}/master.key", "local"))
    assert not (tmp_path / "not mounted").exists()


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o610, 0o644, 0o777])
def test_a_file_that_others_can_reach_is_refused_with_what_to_run(tmp_path: Path, mode: int) -> None:
    settings = kept(tmp_path / "the key", encoded(ONE), mode)

    with pytest.raises(KeyRefused, match=rf"mode {mode:04o}\).* run `chmod 600 '{tmp_path}/the key'`") as caught:
        key_ring(settings)
    assert_hidden(shown(caught.value), ONE)
    (tmp_path / "the key").chmod(0o400)
    assert key_ring(settings).derive("x") == KeyRing({1: ONE}).derive("x")


@pytest.mark.parametrize(
    ("content", "wrong"),
    [
        ("", "it is not JSON"),
        (json.dumps(encoded(ONE))[:-9], "it is not JSON"),
        ("[" * 100_000, "it is not JSON"),
        ("\ud800".encode("utf-8", "surrogatepass").decode("latin-1"), "it is not JSON"),
        (base64.b64encode(ONE).decode(), "it is not JSON"),
        ([], r'it is not \{"versions"'),
        ({}, r'it is not \{"versions"'),
        ({"versions": [1]}, r'it is not \{"versions"'),
        ({**encoded(ONE), "note": "mine"}, r'it is not \{"versions"'),
        ({"versions": {}}, "there is none"),
        ({"versions": {"0": ""}}, "not a number from 1 to 65535"),
        ({"versions": {"01": ""}}, "not a number from 1 to 65535"),
        ({"versions": {"70000": base64.b64encode(ONE).decode()}}, "not a number from 1 to 65535"),
        ({"versions": {"1": 7}}, "version 1 is not base64"),
        ({"versions": {"1": base64.b64encode(ONE).decode()[:-3] + "*"}}, "version 1 is not base64"),
        (encoded(ONE[:16]), "version 1 has 16 bytes instead of 32"),
        (encoded(ONE, ONE), "two versions are the same key"),
        (json.dumps(encoded(ONE)).replace("}}", ', "1": "x"}}'), "names something twice"),
    ],
)
def test_a_damaged_file_is_refused_and_left_as_it_is(tmp_path: Path, content: object, wrong: str) -> None:
    path = tmp_path / "home" / "keys" / "master.key"
    path.parent.mkdir(parents=True)
    kept(path, content)
    before = path.read_bytes()

    for attempt in (key_ring, rotated, functools.partial(retire, version=1)):
        with pytest.raises(KeyRefused, match=f"The master key .*master.key is damaged: .*{wrong}") as caught:
            attempt(local(tmp_path))
        assert_hidden(shown(caught.value), ONE)
    assert path.read_bytes() == before


def test_what_is_no_file_is_refused_without_waiting(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe", 0o600)

    with pytest.raises(KeyRefused, match="is not a file"):
        key_ring(at(f"file:{tmp_path}/pipe", "local"))
    with pytest.raises(KeyMissing, match=r"cannot be read \(Is a directory\)"):
        key_ring(at(f"file:{tmp_path}", "local"))


def test_a_place_that_cannot_be_written_or_read_is_named(tmp_path: Path) -> None:
    (tmp_path / "home").write_text("in the way")

    with pytest.raises(KeyMissing, match=r"keys/master.key cannot be read \(Not a directory\)"):
        key_ring(local(tmp_path))


def test_a_lost_key_is_not_replaced_while_keys_are_there_that_it_wrapped(tmp_path: Path) -> None:
    settings = dataclasses.replace(at(f"file:{tmp_path}/keys/master.key", "local"), lake=tmp_path / "lake")
    ring = key_ring(settings)
    (tmp_path / "lake/any_bronze/bz_subject_keys/_delta_log").mkdir(parents=True)
    assert key_ring(settings).derive("x") == ring.derive("x")
    (tmp_path / "keys/master.key").rename(tmp_path / "lost")
    with pytest.raises(KeyMissing, match=r"There is no master key at .*a new one could not read what the lost one"):
        key_ring(settings)
    assert not (tmp_path / "keys/master.key").exists()


def test_a_full_disk_leaves_no_half_of_a_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    ring = key_ring(local(tmp_path))
    monkeypatch.setattr(os, "fsync", full)

    with pytest.raises(KeyMissing, match=r"cannot be written \(No space left on device\)"):
        rotated(local(tmp_path))
    with pytest.raises(KeyMissing, match=r"cannot be \w+ \(No space left on device\)"):
        key_ring(local(tmp_path / "other"))
    monkeypatch.undo()
    assert key_ring(local(tmp_path)).derive("x") == ring.derive("x")
    assert sorted(path.name for path in (tmp_path / "home" / "keys").iterdir()) == [".master.key.lock", "master.key"]
    assert not (tmp_path / "other" / "home" / "keys" / "master.key").exists()


# Each process waits for the same moments of the clock, and tells what it found there.
_AT_ONCE = """
import sys, time
from bronze_assets.privacy.keys import key_ring, rotated
from bronze_assets.settings import Settings
do, start, homes = {"use": key_ring, "rotate": rotated}[sys.argv[1]], float(sys.argv[2]), sys.argv[3:]
for n, home in enumerate(homes):
    settings = Settings.from_environment({"BRONZE_HOME": home})
    while time.time() < start + n * 0.03:
        pass
    ring = do(settings)
    print(ring.derive("test", 1).hex(), ring.derive("test").hex())
"""


def at_once(do: str, homes: list[Path], processes: int = 2) -> list[list[str]]:
    start = time.time() + 2
    command = [sys.executable, "-c", _AT_ONCE, do, str(start), *map(str, homes)]
    started = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(processes)]
    found = [process.communicate(timeout=120)[0].splitlines() for process in started]
    assert [process.returncode for process in started] == [0] * processes
    return found


def test_processes_at_first_use_end_with_one_and_the_same_key(tmp_path: Path) -> None:
    homes = [tmp_path / str(n) for n in range(60)]

    first, second = at_once("use", homes)

    assert first == second
    assert len(set(first)) == len(homes)
    on_disk = [key_ring(Settings.from_environment({"BRONZE_HOME": str(home)})).derive("test").hex() for home in homes]
    assert [line.split()[1] for line in first] == on_disk


def test_threads_at_first_use_end_with_one_and_the_same_key(tmp_path: Path) -> None:
    for n in range(20):
        gate = threading.Barrier(4)

        def use(folder: Path, gate: threading.Barrier = gate) -> bytes:
            gate.wait()
            return key_ring(local(folder)).derive("test")

        with ThreadPoolExecutor(4) as pool:
            assert len(set(pool.map(use, [tmp_path / str(n)] * 4))) == 1


def test_rotations_at_once_lose_no_version(tmp_path: Path) -> None:
    home = tmp_path / "home"
    original = key_ring(local(tmp_path)).derive("test").hex()

    found = at_once("rotate", [home] * 20)

    ring = key_ring(local(tmp_path))
    assert ring.versions == tuple(range(1, 42))
    lines = [line.split() for lines in found for line in lines]
    assert {first for first, _ in lines} == {original}
    # Whatever a rotation answered with is there for good.
    assert {last for _, last in lines} <= {ring.derive("test", version).hex() for version in ring.versions}


def test_rotation_adds_a_version_and_what_the_old_one_wrapped_still_opens(tmp_path: Path) -> None:
    settings = local(tmp_path)
    old = key_ring(settings)
    wrapped = old.wrap(b"secret", context="x")
    path = tmp_path / "home" / "keys" / "master.key"
    # What a process killed in a rotation leaves.
    (path.parent / ".master.key.new").write_text("half")

    new = rotated(settings)

    assert (new.versions, new.current) == ((1, 2), 2)
    assert new.derive("x", 1) == old.derive("x")
    assert new.derive("x") != old.derive("x")
    assert new.unwrap(wrapped, context="x") == b"secret"
    with pytest.raises(KeyRefused, match="Version 2 "):
        old.unwrap(new.wrap(b"secret", context="x"), context="x")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert not (path.parent / ".master.key.new").exists()


def test_a_linked_file_is_rotated_where_it_lies(tmp_path: Path) -> None:
    kept(tmp_path / "real", encoded(ONE))
    (tmp_path / "link").symlink_to("real")

    assert rotated(at(f"file:{tmp_path}/link")).versions == (1, 2)

    assert (tmp_path / "link").is_symlink()
    assert key_ring(at(f"file:{tmp_path}/real")).versions == (1, 2)


def test_an_old_version_is_retired_the_current_one_never_and_no_number_comes_twice(tmp_path: Path) -> None:
    settings = kept(tmp_path / "master.key", encoded(ONE, TWO))
    wrapped = KeyRing({1: ONE}).wrap(b"secret", context="x")

    with pytest.raises(KeyRefused, match="Version 2 of the master key is the current one"):
        retire(settings, 2)
    with pytest.raises(KeyRefused, match=r"Version 3 .* is not here \(here: 1, 2\)"):
        retire(settings, 3)
    ring = retire(settings, 1)

    assert ring.versions == key_ring(settings).versions == (2,)
    assert base64.b64encode(ONE) not in (tmp_path / "master.key").read_bytes()
    with pytest.raises(KeyRefused, match="Version 1 of the master key is needed and not here"):
        ring.unwrap(wrapped, context="x")
    with pytest.raises(KeyRefused, match="current"):
        retire(settings, 2)
    assert rotated(settings).versions == (2, 3)


def test_there_is_nothing_to_rotate_or_retire_without_a_key(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    for folder in ("there", "not there"):
        for attempt in (rotated, functools.partial(retire, version=1)):
            with pytest.raises(KeyMissing, match="There is no master key at"):
                attempt(at(f"file:{tmp_path}/{folder}/master.key", "local"))


@pytest.mark.parametrize(
    ("place", "new", "old"),
    [
        ("azure-keyvault://vault-1/master", "az keyvault secret set --vault-name vault-1", "set-attributes"),
        ("databricks-secret://bronze/master", "databricks secrets put-secret bronze master", "remove the version"),
    ],
)
def test_elsewhere_the_fix_says_how_versions_come_and_go(place: str, new: str, old: str) -> None:
    with pytest.raises(KeyRefused, match=f"{place} gets no new version from here.* Fix: .*{new}"):
        rotated(at(place))
    with pytest.raises(KeyRefused, match=f"{place} loses no version from here.* Fix: .*{old}"):
        retire(at(place), 1)


# Settings


def test_the_default_lies_under_the_home_and_other_places_are_taken_as_they_are(tmp_path: Path) -> None:
    assert local(tmp_path).master_key == f"file:{tmp_path}/home/keys/master.key"
    assert at("file:keys/a key").master_key == f"file:{Path('keys/a key').absolute()}"
    assert at("file:///etc/bronze.key").master_key == "file:/etc/bronze.key"
    for place in ("azure-keyvault://company-kv1/bronze-master", "databricks-secret://bronze.x/master_key"):
        assert at(place).master_key == place


@pytest.mark.parametrize("environment", ["dev", "qa", "prod"])
def test_every_other_environment_must_name_its_key(environment: str) -> None:
    with pytest.raises(SettingsError, match=f"BRONZE_MASTER_KEY is not set, and BRONZE_ENV={environment}"):
        Settings.from_environment({"BRONZE_ENV": environment})


@pytest.mark.parametrize(
    "place",
    [
        base64.b64encode(ONE).decode(),
        ONE.hex(),
        "file:",
        "file://",
        "azure-keyvault://vault",
        "azure-keyvault://evil.example.com/secret",
        "azure-keyvault://vault/secret/version",
        "azure-keyvault://v@ult/secret",
        "databricks-secret://scope",
        "databricks-secret://scope/a key",
        "https://vault.vault.azure.net/secrets/x",
    ],
)
def test_what_names_no_place_is_refused_and_not_shown(place: str) -> None:
    with pytest.raises(SettingsError, match=r"BRONZE_MASTER_KEY does not name a place\. Fix: ") as caught:
        at(place)
    assert_hidden(str(caught.value), ONE)
    assert place not in str(caught.value).replace("azure-keyvault://<vault>/<secret>", "").replace("file:<path>", "")


def test_settings_made_by_hand_without_a_place_have_no_key_and_do_not_show_what_is_none(tmp_path: Path) -> None:
    import dataclasses

    settings = dataclasses.replace(local(tmp_path), master_key=base64.b64encode(ONE).decode())

    assert_hidden(repr(settings), ONE)
    with pytest.raises(KeyMissing, match="does not name a place") as caught:
        key_ring(settings)
    assert_hidden(str(caught.value), ONE)


# Key Vault and Databricks


@dataclass
class Vaults:
    """What the server holds and was asked. A request it does not expect in every detail is answered with 400."""

    # Version id -> (creation in seconds, enabled, value), listed as they stand here.
    versions: dict[str, tuple[int, bool, str]] = field(default_factory=dict)
    page_size: int = 25
    scopes: dict[tuple[str, str], bytes] = field(default_factory=dict)
    status: int = 200
    asked: list[str] = field(default_factory=list)
    port: int = 0

    HOST: ClassVar[str] = "company-kv.vault.azure.net"

    def azure(self, path: str, query: dict[str, list[str]], headers: Any) -> tuple[int, object, dict[str, str]]:
        if headers.get("Authorization") != "Bearer token-of-azure":
            challenge = 'Bearer authorization="https://login.microsoftonline.com/t", resource="https://vault.azure.net"'
            return 401, {}, {"WWW-Authenticate": challenge}
        self.asked.append(path)
        if self.status != 200:
            # An answer that says too much, as one of a proxy may.
            return self.status, {"error": {"code": "Odd", "message": str(self.versions)}}, {}
        if not set(query) <= {"api-version", "maxresults", "skip"} or not query.get("api-version"):
            return 400, {}, {}
        if path == "/secrets/bronze-master/versions":
            skip = int(query.get("skip", ["0"])[0])
            page = list(self.versions)[skip : skip + self.page_size]
            more = skip + self.page_size < len(self.versions)
            link = f"https://{self.HOST}{path}?api-version={query['api-version'][0]}&skip={skip + self.page_size}"
            return 200, {"value": [self.item(name) for name in page], "nextLink": link if more else None}, {}
        # Without a version, the newest.
        name = path.removeprefix("/secrets/bronze-master").removeprefix("/") or list(self.versions)[-1]
        if name not in self.versions:
            return 404, {"error": {"code": "SecretNotFound", "message": "no such secret"}}, {}
        if not self.versions[name][1]:
            return 403, {"error": {"code": "Forbidden", "message": "disabled"}}, {}
        return 200, {**self.item(name), "value": self.versions[name][2]}, {}

    def item(self, name: str) -> dict[str, object]:
        created, enabled, _ = self.versions[name]
        attributes = {"enabled": enabled, "created": created, "updated": created + 9, "recoveryLevel": "Recoverable"}
        return {"id": f"https://{self.HOST}/secrets/bronze-master/{name}", "attributes": attributes}

    def databricks(self, path: str, query: dict[str, list[str]], headers: Any) -> tuple[int, object, dict[str, str]]:
        if path != "/api/2.0/secrets/get":
            return 404, {"error_code": "ENDPOINT_NOT_FOUND", "message": "no such endpoint"}, {}
        self.asked.append(path)
        if headers.get("Authorization") != "Bearer token-of-databricks" or set(query) != {"scope", "key"}:
            return 400, {"error_code": "BAD_REQUEST", "message": "odd"}, {}
        value = self.scopes.get((query["scope"][0], query["key"][0]))
        if value is None:
            return 404, {"error_code": "RESOURCE_DOES_NOT_EXIST", "message": str(self.scopes)}, {}
        return 200, {"key": query["key"][0], "value": base64.b64encode(value).decode()}, {}


@pytest.fixture
def vaults() -> Iterator[Vaults]:
    state = Vaults()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            url = urlsplit(self.path)
            answer = state.azure if self.headers.get("X-Vault") == Vaults.HOST else state.databricks
            status, body, headers = answer(url.path, parse_qs(url.query), self.headers)
            content = json.dumps(body).encode()
            self.send_response(status)
            for name, value in {
                "Content-Type": "application/json",
                "Content-Length": str(len(content)),
                **headers,
            }.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    state.port = server.server_address[1]
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    yield state
    server.shutdown()
    thread.join()
    server.server_close()


class ToOurs(RequestsTransport):  # type: ignore[misc]  # untyped
    """Azure's own transport, led to the server of the test beneath everything that insists on TLS."""

    def __init__(self, port: int) -> None:
        super().__init__()
        self.ours = port

    def send(self, request: Any, **options: Any) -> Any:
        asked, url = request.url, urlsplit(request.url)
        assert url.scheme == "https"
        request.headers["X-Vault"] = url.netloc
        request.url = f"http://127.0.0.1:{self.ours}{url.path}?{url.query}"
        try:
            return super().send(request, **options)
        finally:
            # The policies above send the same request again, with a token.
            request.url = asked


class Signed:
    """A credential that gives a token for the vault, and for nothing else."""

    def __enter__(self) -> Signed:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def get_token(self, *scopes: str, **options: object) -> AccessToken:
        assert scopes == ("https://vault.azure.net/.default",)
        return AccessToken("token-of-azure", int(time.time()) + 3600)


@pytest.fixture
def azure(vaults: Vaults, monkeypatch: pytest.MonkeyPatch) -> Settings:
    from azure.keyvault.secrets._shared import http_challenge_cache

    http_challenge_cache.clear()

    def client(url: str, credential: Any) -> SecretClient:
        return SecretClient(url, credential, transport=ToOurs(vaults.port), retry_total=0)

    monkeypatch.setattr("azure.keyvault.secrets.SecretClient", client)
    monkeypatch.setattr("azure.identity.DefaultAzureCredential", Signed)
    return at("azure-keyvault://company-kv/bronze-master")


def secret(key: bytes, created: int, *, enabled: bool = True) -> tuple[int, bool, str]:
    # With the line end that `openssl rand -base64 32` writes.
    return created, enabled, base64.b64encode(key).decode() + "\n"


def test_the_versions_of_a_vaults_secret_are_numbered_by_their_creation(vaults: Vaults, azure: Settings) -> None:
    vaults.versions = {"aa": secret(THREE, 300), "bb": secret(ONE, 100), "cc": secret(TWO, 200)}
    vaults.page_size = 2

    ring = key_ring(azure)

    expected = KeyRing({1: ONE, 2: TWO, 3: THREE})
    assert ring.versions == (1, 2, 3)
    assert [ring.derive("x", n) for n in ring.versions] == [expected.derive("x", n) for n in ring.versions]


def test_disabling_a_version_takes_it_away_and_renumbers_none(vaults: Vaults, azure: Settings) -> None:
    vaults.versions = {"aa": secret(ONE, 100, enabled=False), "bb": secret(TWO, 200), "cc": secret(THREE, 300)}
    wrapped = KeyRing({1: ONE, 2: TWO}).wrap(b"secret", context="x")

    ring = key_ring(azure)

    assert ring.versions == (2, 3)
    assert ring.unwrap(wrapped, context="x") == b"secret"
    # A disabled version is not even asked for.
    assert not [path for path in vaults.asked if path.endswith("/aa")]


def test_two_versions_of_one_second_have_the_same_order_each_time(vaults: Vaults, azure: Settings) -> None:
    vaults.versions = {"bb": secret(TWO, 100), "aa": secret(ONE, 100)}
    first = key_ring(azure)
    vaults.versions = dict(reversed(vaults.versions.items()))

    assert first.derive("x", 1) == key_ring(azure).derive("x", 1) == KeyRing({1: ONE}).derive("x")


@pytest.mark.parametrize(
    ("versions", "wrong"),
    [
        ({}, "there is none"),
        ({"aa": secret(ONE, 1, enabled=False)}, "there is none"),
        ({"aa": secret(ONE, 1), "bb": (2, True, "pass word")}, r"version 2 \(bb\) is not base64"),
        ({"aa": secret(ONE[:24], 1)}, "version 1 has 24 bytes"),
        ({"aa": secret(ONE, 1), "bb": secret(ONE, 2)}, "two versions are the same key"),
    ],
)
def test_a_vaults_secret_that_is_no_key_is_refused(
    versions: dict[str, tuple[int, bool, str]], wrong: str, vaults: Vaults, azure: Settings
) -> None:
    vaults.versions = versions

    with pytest.raises(KeyRefused, match=f"azure-keyvault://company-kv/bronze-master is not one: {wrong}") as caught:
        key_ring(azure)
    assert_hidden(shown(caught.value), ONE, ONE[:24])
    assert "pass word" not in shown(caught.value)


@pytest.mark.parametrize("status", [401, 403, 404, 500])
def test_a_vault_that_says_no_is_named_without_what_it_said(status: int, vaults: Vaults, azure: Settings) -> None:
    vaults.versions = {"aa": secret(ONE, 1)}
    vaults.status = status

    with pytest.raises(
        KeyMissing, match=rf"company-kv/bronze-master cannot be fetched \(\w+, HTTP {status}\)"
    ) as caught:
        key_ring(azure)
    assert_hidden(shown(caught.value), ONE)


def test_a_vault_that_is_away_is_named(azure: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    unreachable = functools.partial(SecretClient, transport=ToOurs(1), retry_total=0)
    monkeypatch.setattr("azure.keyvault.secrets.SecretClient", unreachable)
    with pytest.raises(KeyMissing, match=r"cannot be fetched \(ServiceRequestError\)"):
        key_ring(azure)


def test_the_source_may_be_kept_in_a_vault(vaults: Vaults, azure: Settings, databricks: Settings) -> None:
    url = "postgresql://bronze:s3cret@db/DE"
    vaults.versions = {"aa": (1, True, "postgresql://old"), "bb": (2, True, f"{url}\n")}
    vaults.scopes = {("bronze", "source"): url.encode()}
    for place in ("azure-keyvault://company-kv/bronze-master", "databricks-secret://bronze/source"):
        assert resolve_secret(place, meaning="BRONZE_SOURCE_URL") == url


@pytest.mark.parametrize(
    ("place", "why"),
    [
        ("azure-keyvault://company-kv/bronze-master", "which cannot be fetched (HttpResponseError, HTTP 403)"),
        ("databricks-secret://bronze/none", "which cannot be fetched (ResourceDoesNotExist)"),
        ("databricks-secret://bronze/empty", "which is empty"),
    ],
)
def test_a_source_that_a_vault_does_not_give_is_named(
    vaults: Vaults, azure: Settings, databricks: Settings, place: str, why: str
) -> None:
    vaults.versions = {"aa": (1, False, "postgresql://bronze:s3cret@db/DE")}
    vaults.scopes = {("bronze", "empty"): b" \n"}
    with pytest.raises(SettingsError, match=re.escape(f"BRONZE_SOURCE_URL points to {place}, {why}")) as refused:
        resolve_secret(place, meaning="BRONZE_SOURCE_URL")
    assert "s3cret" not in shown(refused.value)


def test_nothing_of_a_vault_is_logged(
    vaults: Vaults, azure: Settings, caplog: pytest.LogCaptureFixture, databricks: Settings
) -> None:
    vaults.versions = {"aa": secret(ONE, 1)}
    vaults.scopes = {("bronze", "master"): json.dumps(encoded(TWO)).encode()}
    with caplog.at_level(logging.DEBUG):
        key_ring(azure)
        key_ring(databricks)

    assert "/secrets/bronze-master/aa" in caplog.text
    assert "/api/2.0/secrets/get" in caplog.text
    assert_hidden(caplog.text, ONE, TWO)
    # The REST API's base64 of the JSON with the key in base64.
    assert base64.b64encode(json.dumps(encoded(TWO)).encode()).decode()[:20] not in caplog.text


@pytest.fixture
def databricks(vaults: Vaults, monkeypatch: pytest.MonkeyPatch) -> Settings:
    for name in [name for name in os.environ if name.startswith("DATABRICKS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("DATABRICKS_HOST", f"http://127.0.0.1:{vaults.port}")
    monkeypatch.setenv("DATABRICKS_TOKEN", "token-of-databricks")
    return at("databricks-secret://bronze/master")


def test_a_databricks_secret_holds_what_the_file_holds(vaults: Vaults, databricks: Settings) -> None:
    vaults.scopes = {("bronze", "master"): json.dumps(encoded(ONE, TWO)).encode()}

    ring = key_ring(databricks)

    assert (ring.versions, ring.derive("x")) == ((1, 2), RING.derive("x"))
    assert vaults.asked == ["/api/2.0/secrets/get"]


def test_a_databricks_secret_is_in_the_workspace_of_the_settings(
    vaults: Vaults, databricks: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    vaults.scopes = {("bronze", "master"): json.dumps(encoded(ONE)).encode(), ("bronze", "source"): b"a URL"}
    host = os.environ["DATABRICKS_HOST"]
    monkeypatch.delenv("DATABRICKS_HOST")

    assert key_ring(dataclasses.replace(databricks, databricks_host=host)).versions == (1,)
    assert resolve_secret("databricks-secret://bronze/source", meaning="X", host=host) == "a URL"


def test_a_databricks_secret_that_is_missing_or_damaged_is_named(vaults: Vaults, databricks: Settings) -> None:
    vaults.scopes = {("bronze", "other"): json.dumps(encoded(ONE)).encode()}
    with pytest.raises(
        KeyMissing, match=r"databricks-secret://bronze/master cannot be fetched \(ResourceDoesNotExist\)"
    ) as missing:
        key_ring(databricks)

    vaults.scopes = {("bronze", "master"): json.dumps(encoded(ONE)).encode()[:-4]}
    with pytest.raises(KeyRefused, match="databricks-secret://bronze/master is damaged: it is not JSON") as damaged:
        key_ring(databricks)

    assert_hidden(shown(missing.value) + shown(damaged.value), ONE)


class Cluster:
    """The workspace client as a cluster's runtime has it: `dbutils` is the runtime's own, or there is none."""

    def __init__(self, dbutils: object, rest: str | None) -> None:
        self.dbutils = dbutils
        self.secrets = self
        self.rest = rest

    def __call__(self, *, host: str | None) -> Cluster:
        # The cluster's own workspace.
        assert host is None
        return self

    def get_secret(self, scope: str, key: str) -> Cluster:
        assert (scope, key, self.rest is not None) == ("bronze", "master", True)
        return self

    @property
    def value(self) -> str | None:
        return self.rest


class Runtime:
    """`dbutils.secrets` of a runtime."""

    def __init__(self, held: str) -> None:
        self.secrets = self
        self.held = held

    def get(self, scope: str, key: str) -> str:
        assert (scope, key) == ("bronze", "master")
        return self.held


def test_on_a_cluster_the_runtimes_own_secrets_are_read_and_else_the_rest_api(monkeypatch: pytest.MonkeyPatch) -> None:
    text = json.dumps(encoded(ONE))
    rest = base64.b64encode(json.dumps(encoded(TWO)).encode()).decode()

    for client, expected in ((Cluster(Runtime(text), None), ONE), (Cluster(None, rest), TWO)):
        monkeypatch.setattr("databricks.sdk.WorkspaceClient", client)
        ring = key_ring(at("databricks-secret://bronze/master"))
        assert ring.derive("x") == KeyRing({1: expected}).derive("x")

    monkeypatch.setattr("databricks.sdk.WorkspaceClient", Cluster(None, None))
    with pytest.raises(KeyMissing, match=r"cannot be fetched \(AssertionError\)"):
        key_ring(at("databricks-secret://bronze/master"))


@pytest.mark.parametrize(
    ("place", "module", "extra"),
    [
        ("azure-keyvault://vault/secret", "azure.identity", "azure"),
        ("azure-keyvault://vault/secret", "azure.keyvault.secrets", "azure"),
        ("databricks-secret://scope/key", "databricks.sdk", "databricks"),
    ],
)
def test_a_missing_package_is_named_by_its_extra(
    place: str, module: str, extra: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, module, None)

    with pytest.raises(SettingsError, match=rf"{place} needs packages .* Fix: .*bronze-assets\[{extra}\]"):
        key_ring(at(place))


def test_no_client_is_imported_before_it_is_needed() -> None:
    code = (
        "import sys, bronze_assets.privacy.keys\n"
        "found = {name.split('.')[0] for name in sys.modules}\n"
        "assert not found & {'azure', 'databricks', 'pyspark', 'dagster', 'requests'}, found\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_every_error_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(BronzeError, match="Fix: ") as caught:
        key_ring(at(f"file:{tmp_path}/none"))
    assert not caught.value.retryable
