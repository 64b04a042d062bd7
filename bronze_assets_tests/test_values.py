"""The texts of protected values, against published vectors and against AES-GCM as `cryptography` has it."""

from __future__ import annotations

import base64
import re
import traceback
from collections.abc import Callable

import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from hypothesis import given
from hypothesis import strategies as st

from bronze_assets.errors import KeyRefused
from bronze_assets.privacy import values
from bronze_assets.privacy.values import open_sealed, parse, place, seal, token

KEY = bytes(range(32))
WHERE = place("inventory_bronze", "bz_customers", "email", "123")

# RFC 4231, test cases 1, 2, 6 and 7: those whose data is text.
HMACS = [
    (b"\x0b" * 20, "Hi There", "b0344c61d8db38535ca8afceaf0bf12b881dc200c9833da726e9376c2e32cff7"),
    (b"Jefe", "what do ya want for nothing?", "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843"),
    (
        b"\xaa" * 131,
        "Test Using Larger Than Block-Size Key - Hash Key First",
        "60e431591ee0b67f0d8a26aacbf5b77f8e0bc6213728c5140546040f0ee37f54",
    ),
    (
        b"\xaa" * 131,
        "This is a test using a larger than block-size key and a larger than block-size data. The key needs to be "
        "hashed before being used by the HMAC algorithm.",
        "9b09ffa71b942fcb27635fbcd5b0e944bfdc63644f0713938a7f51535c3a35e2",
    ),
]
# Of the vectors of AES-256-GCM that NIST published with the mode's proposal, 13 and 14: those whose plain text is text.
GCM = [
    ("", "530f8afbc74536b9a963b4f1c4cb738b"),
    ("\0" * 16, "cea7403d4d606b6e074ec5d3baf39d18d0d1c8a799996bf0265b98b5d48ab919"),
]


@pytest.mark.parametrize(("key", "value", "expected"), HMACS)
def test_tokens_are_the_hmacs_of_rfc_4231(key: bytes, value: str, expected: str) -> None:
    assert token(key, value) == f"tok:{expected}"


@pytest.mark.parametrize(("plain", "sealed"), GCM)
def test_what_nist_encrypted_opens(plain: str, sealed: str) -> None:
    body = base64.b64encode(bytes(12) + bytes.fromhex(sealed)).decode()
    assert open_sealed(f"enc:1:s:{body}", bytes(32), "") == plain


def test_a_sealed_value_is_what_the_design_says() -> None:
    text = seal("maria@example.com", KEY, version=3, kind="s", where=WHERE)

    found = re.fullmatch(r"enc:3:s:([A-Za-z0-9+/]+=*)", text)
    assert found
    body = base64.b64decode(found[1])
    assert len(body) == 12 + len("maria@example.com") + 16
    decryptor = Cipher(algorithms.AES(KEY), modes.GCM(body[:12], body[-16:])).decryptor()
    decryptor.authenticate_additional_data(b"inventory_bronze.bz_customers/email/123")
    assert decryptor.update(body[12:-16]) + decryptor.finalize() == b"maria@example.com"


@given(
    value=st.text(),
    key=st.binary(min_size=32, max_size=32),
    where=st.text(),
    version=st.integers(1, 65535),
    kind=st.sampled_from(("s", "t")),
)
def test_every_value_comes_back(value: str, key: bytes, where: str, version: int, kind: values.Kind) -> None:
    text = seal(value, key, version=version, kind=kind, where=where)

    assert open_sealed(text, key, where) == value
    parts = parse(text, where)
    assert (parts.version, parts.kind) == (version, kind)
    assert seal(value, key, version=version, kind=kind, where=where) != text


@pytest.mark.parametrize(
    "other",
    [
        place("inventory_bronze", "bz_customers", "email", "124"),
        place("inventory_bronze", "bz_customers", "customer_name", "123"),
        place("inventory_bronze", "bz_suppliers", "email", "123"),
        place("manufacturing_bronze", "bz_customers", "email", "123"),
    ],
)
def test_a_value_that_was_copied_elsewhere_does_not_open(other: str) -> None:
    text = seal("maria@example.com", KEY, version=1, kind="s", where=WHERE)
    with pytest.raises(KeyRefused, match="does not open") as refused:
        open_sealed(text, KEY, other)
    assert other in str(refused.value)


def test_a_value_opens_with_its_own_key_only() -> None:
    with pytest.raises(KeyRefused, match="does not open"):
        open_sealed(seal("maria", KEY, version=1, kind="s", where=WHERE), bytes(32), WHERE)


@given(data=st.data())
def test_a_damaged_value_does_not_open(data: st.DataObject) -> None:
    text = seal("maria", KEY, version=1, kind="s", where=WHERE)
    body = bytearray(base64.b64decode(text[8:]))
    at = data.draw(st.integers(0, len(body) - 1))
    body[at] ^= data.draw(st.integers(1, 255))
    with pytest.raises(KeyRefused, match="does not open"):
        open_sealed(text[:8] + base64.b64encode(body).decode(), KEY, WHERE)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "maria@example.com",
        "enc:1:s:",
        "enc:1:s:not base64!",
        "enc:1:s:QUJD",
        "enc:0:s:" + "A" * 40,
        "enc:01:s:" + "A" * 40,
        "enc:1:x:" + "A" * 40,
        "enc:1:s:" + "A" * 41,
        "enc:1:s:" + "A" * 40 + "\n",
        "enc:１:s:" + "A" * 40,
        " enc:1:s:" + "A" * 40,
        "tok:" + "0" * 64,
    ],
)
def test_what_is_no_sealed_value_is_refused_without_showing_it(text: str) -> None:
    with pytest.raises(KeyRefused, match="no sealed value") as refused:
        open_sealed(text, KEY, WHERE)
    assert not text or text not in "".join(traceback.format_exception(refused.value))


def test_half_a_character_is_refused_without_showing_the_value() -> None:
    works: list[Callable[[], str]] = [
        lambda: seal("maria\ud800", KEY, version=1, kind="s", where=WHERE),
        lambda: token(KEY, "maria\ud800"),
    ]
    for work in works:
        with pytest.raises(KeyRefused, match="half a character") as refused:
            work()
        assert refused.value.__context__ is None
        assert "maria" not in str(refused.value)


def test_bytes_that_are_no_text_are_refused_without_showing_them() -> None:
    encryptor = Cipher(algorithms.AES(KEY), modes.GCM(bytes(12))).encryptor()
    encryptor.authenticate_additional_data(WHERE.encode())
    sealed = bytes(12) + encryptor.update(b"maria\xff") + encryptor.finalize() + encryptor.tag
    with pytest.raises(KeyRefused, match="does not open") as refused:
        open_sealed(f"enc:1:s:{base64.b64encode(sealed).decode()}", KEY, WHERE)
    assert refused.value.__context__ is None


def test_a_token_tells_equal_values_and_nothing_else() -> None:
    assert token(KEY, "+49 30 1") == token(KEY, "+49 30 1")
    assert len({token(KEY, "+49 30 1"), token(KEY, "+49 30 2"), token(bytes(32), "+49 30 1")}) == 3


def test_the_parts_of_a_value_show_no_bytes() -> None:
    assert "body" not in repr(parse(seal("maria", KEY, version=1, kind="t", where=WHERE), WHERE))
