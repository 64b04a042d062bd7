"""The master key: its versions, what is derived from and wrapped by them, and the places where they are kept.

Knows nothing of Spark, tables or persons. A frame that an error can leave through holds no key in a variable, because
some tools print the variables of a traceback; and what a vault's client raises is never passed on, because it may hold
the answer.
"""

from __future__ import annotations

import base64
import contextlib
import fcntl
import io
import json
import os
import re
import shlex
import stat
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from secrets import token_bytes
from typing import TYPE_CHECKING, Any, Final, NoReturn

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from bronze_assets.errors import KeyMissing, KeyRefused, SettingsError
from bronze_assets.secret_places import SECRET_PLACE
from bronze_assets.settings import Environment, Settings
from bronze_assets.vaults import databricks_secret, key_vault, reason

if TYPE_CHECKING:
    from azure.keyvault.secrets import SecretClient

KEY_BYTES: Final = 32
VERSION_BYTES: Final = 2
NONCE_BYTES: Final = 12
TAG_BYTES: Final = 16
_LAST_VERSION: Final = 2 ** (8 * VERSION_BYTES) - 1


class KeyRing:
    """The versions of the master key, numbered from 1; new secrets are wrapped with the highest, `current`.

    Its text shows the numbers only. It cannot be pickled, so that no closure carries it to a worker; hand out what
    `derive` gives for one purpose instead. Safe to share between threads.
    """

    __slots__ = ("_ciphers", "_keys")

    def __init__(self, keys: Mapping[int, bytes]) -> None:
        """A ring of these keys, 32 bytes each, by version.

        Raises:
            KeyRefused: there is none, one has another length, two are the same, or a version is not 1 to 65535.
        """
        self._keys = {version: _Hidden(key) for version, key in sorted(keys.items())}
        self._ciphers: dict[int, AESGCM] = {}
        fault = _fault(keys)
        del keys
        if fault:
            raise KeyRefused(f"These are no versions of a master key: {fault}.", "give each version its own 32 bytes.")

    @property
    def versions(self) -> tuple[int, ...]:
        """The versions that are here, ascending; gaps are retired ones."""
        return tuple(self._keys)

    @property
    def current(self) -> int:
        """The highest version."""
        return self.versions[-1]

    def derive(self, purpose: str, version: int | None = None) -> bytes:
        """The 32 bytes of a version for one purpose: HKDF-SHA256 (RFC 5869) without salt, info
        `bronze_assets/<purpose>` in UTF-8.

        Args:
            purpose: what the derived key is for; different purposes have unrelated keys. `wrap` is that of `wrap`.
            version: of the master key; default the current one.

        Raises:
            KeyRefused: that version is not here.
        """
        info = b"bronze_assets/" + purpose.encode()
        return HKDF(SHA256(), KEY_BYTES, None, info).derive(self._key(self.current if version is None else version))

    def wrap(self, secret: bytes, *, context: str) -> bytes:
        """A secret, encrypted with the current version and bound to a context.

        AES-256-GCM (NIST SP 800-38D) with the key `derive("wrap")`, a random nonce of 96 bits and the context in UTF-8
        as additional authenticated data. The layout is

            version (2 bytes, big-endian) || nonce (12) || ciphertext (as long as the secret) || tag (16)

        What follows the version is exactly what Spark reads with
        `aes_decrypt(substring(wrapped, 3), key, 'GCM', 'DEFAULT', context)`, `key` being `derive("wrap", version)`.
        Under random nonces one version may wrap 2^32 secrets (SP 800-38D, 8.3); rotate before that.
        """
        return self.wrap_many([secret], [context])[0]

    def wrap_many(self, secrets: Sequence[bytes], contexts: Sequence[str]) -> list[bytes]:
        """Each secret wrapped, as `wrap` does it, with the context at its place.

        Raises:
            ValueError: not as many contexts as secrets.
        """
        if len(secrets) != len(contexts):
            raise ValueError(f"{len(secrets)} secrets cannot be bound to {len(contexts)} contexts")
        version = self.current.to_bytes(VERSION_BYTES, "big")
        encrypt = self._cipher(self.current).encrypt
        # One read for all: a system call each would cost as much as the encryption.
        random = token_bytes(NONCE_BYTES * len(secrets))
        nonces = (random[at : at + NONCE_BYTES] for at in range(0, len(random), NONCE_BYTES))
        return [
            version + nonce + encrypt(nonce, secret, context.encode())
            for nonce, secret, context in zip(nonces, secrets, contexts, strict=True)
        ]

    def unwrap(self, wrapped: bytes, *, context: str) -> bytes:
        """The secret that `wrap` wrapped, with whichever version it was, in the same context.

        Raises:
            KeyRefused: its version is not here, the context or the key is another one, or bytes are damaged.
        """
        if len(wrapped) < VERSION_BYTES + NONCE_BYTES + TAG_BYTES:
            raise KeyRefused(
                f"A wrapped secret of {len(wrapped)} bytes is cut short.",
                "restore the row from an earlier version.",
            )
        version = int.from_bytes(wrapped[:VERSION_BYTES], "big")
        cipher = self._cipher(version)
        body = wrapped[VERSION_BYTES:]
        with contextlib.suppress(InvalidTag):
            return cipher.decrypt(body[:NONCE_BYTES], body[NONCE_BYTES:], context.encode())
        raise KeyRefused(
            f"A secret wrapped with version {version} of the master key does not open: it belongs to another place, "
            "its bytes are damaged, or that version was another key when it was wrapped.",
            "check that BRONZE_MASTER_KEY names the key of this lake; if so, restore the row from an earlier version.",
        )

    def __repr__(self) -> str:
        return f"KeyRing(versions={list(self._keys)})"

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        raise TypeError("a KeyRing is not pickled or copied; pass on what derive() gives for one purpose")

    def __getstate__(self) -> NoReturn:
        raise TypeError("a KeyRing does not give its state away")

    def _key(self, version: int) -> bytes:
        if version not in self._keys:
            here = ", ".join(map(str, self._keys))
            raise KeyRefused(
                f"Version {version} of the master key is needed and not here (here: {here}).",
                "enable or restore that version where BRONZE_MASTER_KEY points; a retired one is only in a backup.",
            )
        return self._keys[version].value

    def _cipher(self, version: int) -> AESGCM:
        if version not in self._ciphers:
            self._ciphers[version] = AESGCM(self.derive("wrap", version))
        return self._ciphers[version]


def key_ring(settings: Settings) -> KeyRing:
    """The master key that `settings.master_key` names.

    - `file:<path>`: JSON, `{"versions": {"1": "<base64 of 32 bytes>", …}}`, readable by its owner only. In the local
      environment a file that is not there is made, in a folder of mode 0700, unless keys are there that it wrapped.
    - `azure-keyvault://<vault>/<secret>`: each version of that secret is the base64 of 32 bytes. They are numbered by
      creation, disabled ones included, so that disabling one renumbers none; enabled ones are in the ring.
    - `databricks-secret://<scope>/<key>`: the same JSON as the file's.

    Raises:
        KeyMissing: there is no key, or the place cannot be reached.
        KeyRefused: what is there is damaged, or others can read the file. It is never replaced.
        SettingsError: a package that the place needs is not installed.
    """
    # Late, since what reads the landing zone needs this module.
    from bronze_assets.access import SUBJECT_KEYS

    first = not any(settings.lake.glob(f"*/{SUBJECT_KEYS}/_delta_log"))
    return _ring(settings, make=first and settings.environment is Environment.LOCAL)


def existing_ring(settings: Settings) -> KeyRing:
    """The master key, which is not made where it is missing: whoever only looks would hide that it was lost.

    Raises:
        KeyMissing: there is none, in the local environment too.
        KeyRefused, SettingsError: as `key_ring` does.
    """
    return _ring(settings, make=False)


def _ring(settings: Settings, *, make: bool) -> KeyRing:
    place = _place(settings)
    if place["path"]:
        return _of_file(Path(place["path"]), make=make)
    if place["vault"]:
        return _of_key_vault(place["vault"], place["secret"])
    return _of_databricks(place["scope"], place["key"], settings.databricks_host)


def rotated(settings: Settings) -> KeyRing:
    """The ring after a new version was added to its file; the old ones stay.

    Two rotations at once add two versions. A process killed meanwhile leaves the old file or the new one.

    Raises:
        KeyMissing: there is no file yet, or it cannot be written.
        KeyRefused: the file is damaged or readable by others, or the place is no file; the fix says what to do there.
    """
    place = _place(settings)
    path = _file(
        place,
        "gets no new version from here",
        vault=f"make a new version of that secret: `openssl rand -base64 32 | az keyvault secret set --vault-name "
        f"{place['vault']} --name {place['secret']} --file /dev/stdin`.",
        databricks=f"add a version, the base64 of 32 random bytes, to its JSON and store that with `databricks secrets "
        f"put-secret {place['scope']} {place['key']}`.",
    )
    with _locked(path):
        ring = _kept(path)
        _write(path, KeyRing({**_raw(ring), ring.current + 1: token_bytes(KEY_BYTES)}))
        return _kept(path)


def retire(settings: Settings, version: int) -> KeyRing:
    """The ring after an old version was removed from its file; what it still wraps is then lost.

    Raises:
        KeyMissing: there is no file, or it cannot be written.
        KeyRefused: the version is the current one or not here, or the place is no file; the fix says what to do there.
    """
    place = _place(settings)
    path = _file(
        place,
        "loses no version from here",
        vault=f"disable that version of the secret: `az keyvault secret set-attributes --vault-name {place['vault']} "
        f"--name {place['secret']} --version <id> --enabled false`.",
        databricks=f"remove the version from its JSON and store that with `databricks secrets put-secret "
        f"{place['scope']} {place['key']}`.",
    )
    with _locked(path):
        ring = _kept(path)
        if version == ring.current:
            raise KeyRefused(
                f"Version {version} of the master key is the current one and cannot be retired.",
                "rotate first, and rewrap what it wraps.",
            )
        if version not in ring.versions:
            here = ", ".join(map(str, ring.versions))
            raise KeyRefused(f"Version {version} of the master key is not here (here: {here}).", "name one that is.")
        _write(path, KeyRing({number: key for number, key in _raw(ring).items() if number != version}))
        return _kept(path)


class _Hidden:
    """A key whose text does not show it."""

    __slots__ = ("value",)

    def __init__(self, value: bytes) -> None:
        self.value = value

    def __repr__(self) -> str:
        return "<hidden>"


def _raw(ring: KeyRing) -> dict[int, bytes]:
    return {version: ring._key(version) for version in ring.versions}


def _fault(keys: Mapping[int, bytes]) -> str | None:
    if not keys:
        return "there is none"
    if any(not 1 <= version <= _LAST_VERSION for version in keys):
        return f"a version is not a number from 1 to {_LAST_VERSION}"
    for version, key in keys.items():
        if len(key) != KEY_BYTES:
            return f"version {version} has {len(key)} bytes instead of {KEY_BYTES}"
    # A rotation to the same key would be none.
    if len(set(keys.values())) < len(keys):
        return "two versions are the same key"
    return None


def _parsed(text: bytes) -> KeyRing | str:
    """The ring in this JSON, or what is wrong with it, without a word of it. Raises nothing, since it holds keys."""
    try:
        document = json.loads(text, object_pairs_hook=_once)
    except (ValueError, RecursionError):
        return "it is not JSON, or names something twice"
    versions = document.get("versions") if isinstance(document, dict) and set(document) == {"versions"} else None
    if not isinstance(versions, dict):
        return 'it is not {"versions": {"1": "<base64 of 32 bytes>"}}'
    keys = {}
    for name, value in versions.items():
        if not re.fullmatch("[1-9][0-9]{0,4}", name):
            return f"a version is not a number from 1 to {_LAST_VERSION}"
        key = _decoded(value)
        if key is None:
            return f"version {name} is not base64"
        keys[int(name)] = key
    return _fault(keys) or KeyRing(keys)


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(dict(pairs)) < len(pairs):
        raise ValueError
    return dict(pairs)


def _decoded(value: object) -> bytes | None:
    if isinstance(value, str):
        with contextlib.suppress(ValueError):
            return base64.b64decode(value.strip(), validate=True)
    return None


def _text(ring: KeyRing) -> bytes:
    versions = {str(version): base64.b64encode(key).decode() for version, key in _raw(ring).items()}
    return json.dumps({"versions": versions}, indent=1).encode() + b"\n"


def _place(settings: Settings) -> re.Match[str]:
    place = SECRET_PLACE.fullmatch(settings.master_key)
    if place is None:
        raise KeyMissing(
            "BRONZE_MASTER_KEY does not name a place of the master key.",
            "use file:<path>, azure-keyvault://<vault>/<secret> or databricks-secret://<scope>/<key>.",
        )
    return place


def _file(place: re.Match[str], refused: str, *, vault: str, databricks: str) -> Path:
    if place["path"]:
        # A link stays one: its target is what is replaced.
        return Path(place["path"]).resolve()
    raise KeyRefused(f"The master key at {place[0]} {refused}.", vault if place["vault"] else databricks)


def _of_file(path: Path, *, make: bool) -> KeyRing:
    ring = _read(path)
    # A link that leads nowhere is a volume that is not mounted, not a first use.
    if ring is None and make and not path.is_symlink():
        _make_folder(path.parent)
        with _locked(path):
            if _read(path) is None:
                _write(path, KeyRing({1: token_bytes(KEY_BYTES)}))
        ring = _read(path)
    if ring is None:
        raise _absent(path)
    return ring


def _kept(path: Path) -> KeyRing:
    return _of_file(path, make=False)


def _read(path: Path) -> KeyRing | None:
    """The ring in this file; None without one."""
    try:
        with io.FileIO(path, opener=_at_once) as file:
            # Of what is open, not of what the path leads to by then.
            state = os.fstat(file.fileno())
            if not stat.S_ISREG(state.st_mode):
                raise KeyRefused(f"The master key {path} is not a file.", "name a file.")
            if state.st_mode & 0o077:
                raise KeyRefused(
                    f"The master key {path} can be reached by others (mode {stat.S_IMODE(state.st_mode):04o}).",
                    f"run `chmod 600 {shlex.quote(str(path))}`; if somebody may have read it, rotate it too.",
                )
            ring = _parsed(file.readall())
    except FileNotFoundError:
        return None
    except OSError as error:
        raise _unusable(path, "read", error) from None
    if isinstance(ring, str):
        raise KeyRefused(
            f"The master key {path} is damaged: {ring}.",
            "put back a copy of it. It is never replaced by a new one, which could not read what is protected.",
        )
    return ring


def _at_once(path: str, flags: int) -> int:
    # A named pipe would otherwise wait for a writer for ever.
    return os.open(path, flags | os.O_NONBLOCK)


def _make_folder(folder: Path) -> None:
    try:
        if not folder.is_dir():
            folder.parent.mkdir(parents=True, exist_ok=True)
            folder.mkdir(mode=0o700, exist_ok=True)
            _sync(folder.parent)
    except OSError as error:
        raise _unusable(folder, "made", error) from None


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Alone among the processes and threads that write this file; waits for the others."""
    try:
        lock = os.open(path.with_name(f".{path.name}.lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except FileNotFoundError:
        raise _absent(path) from None
    except OSError as error:
        raise _unusable(path, "locked", error) from None
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
        except OSError as error:
            raise _unusable(path, "locked", error) from None
        yield
    finally:
        os.close(lock)


def _write(path: Path, ring: KeyRing) -> None:
    """Put this ring where the file is, whole or not at all, and on the disk before anything depends on it."""
    fresh = path.with_name(f".{path.name}.new")
    try:
        # A process that was killed here may have left its own.
        fresh.unlink(missing_ok=True)
        number = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with os.fdopen(number, "wb") as file:
            file.write(_text(ring))
            file.flush()
            os.fsync(number)
        fresh.replace(path)
        _sync(path.parent)
    except OSError as error:
        with contextlib.suppress(OSError):
            fresh.unlink(missing_ok=True)
        raise _unusable(path, "written", error) from None


def _sync(folder: Path) -> None:
    number = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(number)
    finally:
        os.close(number)


def _absent(path: Path) -> KeyMissing:
    return KeyMissing(
        f"There is no master key at {path}.",
        "put it there, or let BRONZE_MASTER_KEY name where it is. Only the local environment makes one, at first use:"
        " a new one could not read what the lost one protects.",
    )


def _unusable(path: Path, what: str, error: OSError) -> KeyMissing:
    return KeyMissing(
        f"The master key {path} cannot be {what} ({error.strerror}).",
        "give the user of this process the right to it, or let BRONZE_MASTER_KEY name another place.",
    )


def _of_key_vault(vault: str, secret: str) -> KeyRing:
    place = f"azure-keyvault://{vault}/{secret}"
    ring: KeyRing | str | None = None
    try:
        with key_vault(vault, meaning=f"BRONZE_MASTER_KEY={place}") as client:
            ring = _newest_last(client, secret)
    except SettingsError:
        raise
    except Exception as error:
        why = reason(error)
    if ring is None:
        raise KeyMissing(
            f"The master key {place} cannot be fetched ({why}).",
            "check the vault's and the secret's name, the network, who is signed in, and that they may get and list "
            "secrets (role Key Vault Secrets User).",
        )
    if isinstance(ring, str):
        raise KeyRefused(
            f"The master key {place} is not one: {ring}.",
            "let each enabled version hold the base64 of its own 32 random bytes, and disable those that do not.",
        )
    return ring


def _newest_last(client: SecretClient, secret: str) -> KeyRing | str:
    listed = []
    for one in client.list_properties_of_secret_versions(secret):
        if one.created_on is None or not one.version:
            return "a version has no id or no time of creation"
        # Vaults tell whole seconds; the id decides between two of one second, the same way each time.
        listed.append((one.created_on, one.version, one.enabled is not False))
    keys = {}
    for number, (_, version, enabled) in enumerate(sorted(listed), start=1):
        if enabled:
            key = _decoded(client.get_secret(secret, version).value)
            if key is None:
                return f"version {number} ({version}) is not base64"
            keys[number] = key
    return _fault(keys) or KeyRing(keys)


def _of_databricks(scope: str, key: str, host: str | None) -> KeyRing:
    place = f"databricks-secret://{scope}/{key}"
    ring: KeyRing | str | None = None
    try:
        ring = _parsed(databricks_secret(scope, key, meaning=f"BRONZE_MASTER_KEY={place}", host=host))
    except SettingsError:
        raise
    except Exception as error:
        why = reason(error)
    if ring is None:
        raise KeyMissing(
            f"The master key {place} cannot be fetched ({why}).",
            "check the scope's and the key's name, the network, who is signed in, and that they may READ the scope.",
        )
    if isinstance(ring, str):
        raise KeyRefused(f"The master key {place} is damaged: {ring}.", "store a copy of it again.")
    return ring
