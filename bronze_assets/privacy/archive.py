"""Files of the archive, encrypted: their format, and reading them as if they were plain.

    "BZE1" || version of the master key (2 bytes, big-endian) || file id (12 random bytes) || chunks

Each chunk is 1 MiB of the plain file, the last one what is left of it (the one chunk of an empty file is empty, no
other is), as AES-256-GCM gives it (NIST SP 800-38D): ciphertext || tag (16). The construction is STREAM (Hoang,
Reyhanitabar, Rogaway, Vizár: "Online Authenticated-Encryption and its Nonce-Reuse Misuse-Resistance", CRYPTO 2015),
with nonces and a key of each file's own as in the payload of age (https://c2sp.org/age):

- key: HKDF-SHA-256 (RFC 5869) of `KeyRing.derive("archive", version)`; salt: the file id; info: `bronze_assets/archive
  file`
- nonce: the chunk's number, from 0 (11 bytes, big-endian) || 1 in the last chunk, 0 in the others
- additional data: the header, which is all before the chunks

So a chunk that is missing, moved, repeated or of another file does not open, nor does the one before the place where a
file was cut off. The plain size follows from the size.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
from secrets import token_bytes
from typing import Any, BinaryIO, Final, cast

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from bronze_assets.errors import KeyRefused
from bronze_assets.privacy.keys import KEY_BYTES, NONCE_BYTES, TAG_BYTES, VERSION_BYTES, KeyRing

ENCRYPTED: Final = ".enc"
"""What the name of an encrypted file has behind the plain one's."""
CHUNK: Final = 2**20
_MAGIC: Final = b"BZE1"
_ID_BYTES: Final = 12
_HEADER: Final = len(_MAGIC) + VERSION_BYTES + _ID_BYTES
_SEALED_CHUNK: Final = CHUNK + TAG_BYTES
_INFO: Final = b"bronze_assets/archive file"


def encrypt(source: BinaryIO, target: BinaryIO, ring: KeyRing) -> str:
    """Write what is left of a stream into another, encrypted with the current version of the master key.

    Returns:
        SHA-256 of the plain bytes, as hex.
    """
    header = _MAGIC + ring.current.to_bytes(VERSION_BYTES, "big") + token_bytes(_ID_BYTES)
    cipher = _cipher(ring, header)
    digest = hashlib.sha256()
    target.write(header)
    chunk, number, last = _read(source, CHUNK), 0, False
    while not last:
        digest.update(chunk)
        following = _read(source, CHUNK)
        last = not following
        target.write(cipher.encrypt(_nonce(number, last), chunk, header))
        chunk, number = following, number + 1
    return digest.hexdigest()


def open_encrypted(stream: BinaryIO, ring: KeyRing, *, name: str = "a file of the archive") -> BinaryIO:
    """The plain file in an encrypted one, to read and seek in; holds a chunk of it at a time.

    Whether the file has its whole length is told here, and by each read whether what it gives is as it was written.
    Closing it leaves the stream open.

    Args:
        stream: the encrypted file, seekable.
        name: of the file, for errors.

    Raises:
        KeyRefused: (also by a read) the key is another one or not here, or bytes are damaged, missing or too many.
    """
    return cast(BinaryIO, _Plain(stream, ring, name))


def plain_size(size: int) -> int:
    """How many bytes the plain file has, from the size of the encrypted one; of a damaged one, about."""
    return max(0, _shape(size)[1])


def _shape(size: int) -> tuple[int, int]:
    """How many chunks and plain bytes are in an encrypted file of this size."""
    chunks = max(1, -(-(size - _HEADER) // _SEALED_CHUNK))
    return chunks, size - _HEADER - chunks * TAG_BYTES


def _cipher(ring: KeyRing, header: bytes) -> AESGCM:
    """The cipher of one file. Holds no key in a variable, see `keys`."""
    version = int.from_bytes(header[len(_MAGIC) : -_ID_BYTES], "big")
    return AESGCM(HKDF(SHA256(), KEY_BYTES, header[-_ID_BYTES:], _INFO).derive(ring.derive("archive", version)))


def _nonce(number: int, last: bool) -> bytes:
    return number.to_bytes(NONCE_BYTES - 1, "big") + bytes([last])


def _read(stream: BinaryIO, size: int) -> bytes:
    """So many bytes, or what is left: a stream may give less at a time."""
    found = stream.read(size)
    while len(found) < size and (more := stream.read(size - len(found))):
        found += more
    return found


class _Plain(io.BufferedIOBase):
    """Reads the plain bytes of an encrypted stream. A read that fails gives nothing and moves nothing."""

    def __init__(self, stream: BinaryIO, ring: KeyRing, name: str) -> None:
        self._stream = stream
        self._name = name
        self._position = 0
        self._number = -1
        self._chunk = b""
        self._chunks, self._size = _shape(stream.seek(0, os.SEEK_END))
        stream.seek(0)
        self._header = _read(stream, _HEADER)
        if len(self._header) < _HEADER or not self._header.startswith(_MAGIC):
            raise self._refused("is no file that was encrypted for the archive")
        if self._size <= CHUNK * (self._chunks - 1) and (self._chunks, self._size) != (1, 0):
            raise self._refused("is cut short")
        self._cipher = _cipher(ring, self._header)
        # The size is only certain when the last chunk says that it is the last.
        self._opened(self._chunks - 1)

    def readable(self) -> bool:
        return not self._is_closed()

    def seekable(self) -> bool:
        return not self._is_closed()

    def tell(self) -> int:
        self._is_closed()
        return self._position

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        self._is_closed()
        starts = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._size}
        if whence not in starts or starts[whence] + offset < 0:
            raise ValueError("not a place in the file")
        self._position = starts[whence] + offset
        return self._position

    def read(self, size: int | None = -1, /) -> bytes:
        self._is_closed()
        left = max(0, self._size - self._position)
        size = left if size is None or size < 0 else min(size, left)
        found, parts = 0, []
        while found < size:
            number, offset = divmod(self._position + found, CHUNK)
            parts.append(self._opened(number)[offset : offset + size - found])
            found += len(parts[-1])
        self._position += found
        return b"".join(parts)

    def read1(self, size: int = -1, /) -> bytes:
        return self.read(CHUNK if size < 0 else size)

    def readinto(self, buffer: Any, /) -> int:
        view = memoryview(buffer).cast("B")
        found = self.read(len(view))
        view[: len(found)] = found
        return len(found)

    def close(self) -> None:
        self._chunk = b""
        super().close()

    def _is_closed(self) -> bool:
        if self.closed:
            raise ValueError("the file is closed")
        return False

    def _opened(self, number: int) -> bytes:
        """The plain bytes of a chunk."""
        if number != self._number:
            self._stream.seek(_HEADER + number * _SEALED_CHUNK)
            sealed = _read(self._stream, min(_SEALED_CHUNK, self._size - number * CHUNK + TAG_BYTES))
            with contextlib.suppress(InvalidTag):
                nonce = _nonce(number, number == self._chunks - 1)
                self._chunk = self._cipher.decrypt(nonce, sealed, self._header)
                self._number = number
        if number != self._number:
            raise self._refused(
                "does not open: bytes are damaged, missing or of another file, or it was encrypted with another key"
            )
        return self._chunk

    def _refused(self, why: str) -> KeyRefused:
        return KeyRefused(
            f"{self._name} {why}.",
            "put back a copy of it; if others do not open either, let BRONZE_MASTER_KEY name the key of this lake.",
        )
