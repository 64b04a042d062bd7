"""The texts of protected values in columns, in plain Python: sealed values (High) and tokens (Medium).

The formats are those of docs/adr/0018. Loads write them with Spark's own functions (`protection`); what is here reads
and writes single values, and is what Spark's texts are compared with. No error holds a value or a key.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import hmac
import re
from dataclasses import dataclass, field
from secrets import token_bytes
from typing import Final, Literal

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from bronze_assets.errors import KeyRefused
from bronze_assets.privacy.keys import NONCE_BYTES, TAG_BYTES

Kind = Literal["s", "t"]
"""Whose key: that of the subject, or that of the table for a row without one."""

TOKEN: Final = "tok:"
_SEALED = re.compile(r"enc:([1-9][0-9]{0,4}):([st]):([A-Za-z0-9+/]+={0,2})")


@dataclass(frozen=True)
class Sealed:
    """A sealed value, taken apart.

    Attributes:
        version: of the master key, under which the key was wrapped when the value was sealed.
        kind: whose key opens it.
        body: nonce (12 bytes) || ciphertext || tag (16).
    """

    version: int
    kind: Kind
    body: bytes = field(repr=False)


def place(schema: str, table: str, column: str, key_text: str) -> str:
    """Where a value lies, `<schema>.<table>/<column>/<key text>`: it opens nowhere else.

    Args:
        column: for a token's value in the vault, `token`.
        key_text: of the row, as in the quarantine; for a token's value, the token.
    """
    return f"{schema}.{table}/{column}/{key_text}"


def seal(value: str, key: bytes, *, version: int, kind: Kind, where: str) -> str:
    """A value as a High column holds it: `enc:<version>:<kind>:<base64 of nonce || ciphertext || tag>`.

    AES-256-GCM (NIST SP 800-38D) of its UTF-8 under a random nonce of 96 bits, with `where` as additional data.

    Args:
        key: 32 bytes, of the subject or the table.
        version: of the master key that wraps `key`.
        where: see `place`.

    Raises:
        KeyRefused: the value is no text that UTF-8 can write.
    """
    plain = _utf8(value, where)
    nonce = token_bytes(NONCE_BYTES)
    body = nonce + AESGCM(key).encrypt(nonce, plain, where.encode())
    return f"enc:{version}:{kind}:{base64.b64encode(body).decode()}"


def parse(text: str, where: str) -> Sealed:
    """The parts of a sealed value.

    Args:
        where: it lies, for the error.

    Raises:
        KeyRefused: it is not one.
    """
    found = _SEALED.fullmatch(text)
    if found:
        with contextlib.suppress(ValueError):
            body = base64.b64decode(found[3], validate=True)
            if len(body) >= NONCE_BYTES + TAG_BYTES:
                return Sealed(int(found[1]), "s" if found[2] == "s" else "t", body)
    raise KeyRefused(
        f"What {where} holds is no sealed value.",
        "load the table again if it was loaded before its values were protected; else restore the row.",
    )


def open_sealed(text: str, key: bytes, where: str) -> str:
    """The value that `seal` sealed.

    Raises:
        KeyRefused: it is no sealed value, or it does not open: sealed in another place or under another key, or its
            bytes are damaged.
    """
    body = parse(text, where).body
    with contextlib.suppress(InvalidTag, UnicodeDecodeError):
        return AESGCM(key).decrypt(body[:NONCE_BYTES], body[NONCE_BYTES:], where.encode()).decode()
    raise KeyRefused(
        f"What {where} holds does not open: it was sealed in another place or under another key, or it is damaged.",
        "restore the row from an earlier version; a value that was copied from another row, column or table never "
        "opens.",
    )


def hmac_hex(key: bytes, value: str) -> str:
    """HMAC-SHA-256 (RFC 2104) of a text's UTF-8, as lower-case hex.

    Raises:
        KeyRefused: the value is no text that UTF-8 can write.
    """
    return hmac.new(key, _utf8(value, "a value"), hashlib.sha256).hexdigest()


def token(hmac_key: bytes, value: str) -> str:
    """A value as a Medium column holds it, `tok:<hex>`: equal values have equal tokens.

    Args:
        hmac_key: `DataKeys.hmac_key("token")`.

    Raises:
        KeyRefused: the value is no text that UTF-8 can write.
    """
    return TOKEN + hmac_hex(hmac_key, value)


def _utf8(value: str, where: str) -> bytes:
    # Not from the error, which quotes the value.
    with contextlib.suppress(UnicodeEncodeError):
        return value.encode()
    raise KeyRefused(f"What {where} is to hold is no text: it has half a character.", "correct it at the source.")
