"""A new version of the master key, and an end to an old one, across the schemas whose personal data it protects.

What is wrapped anew are the keys of subjects: values, in tables, vaults and files, stay as they are.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import fsspec

from bronze_assets.access import schemas
from bronze_assets.errors import KeyRefused, LakeError
from bronze_assets.lakehouse import Lakehouse
from bronze_assets.privacy import keys
from bronze_assets.privacy.archive import ENCRYPTED
from bronze_assets.privacy.data_keys import DataKeys
from bronze_assets.privacy.keys import VERSION_BYTES, KeyRing
from bronze_assets.settings import Settings
from bronze_assets.table import BronzeTable

# What an encrypted file of the archive begins with (see `archive`); the version follows.
_MAGIC = b"BZE1"


@dataclass(frozen=True)
class Rotation:
    """What a rotation did.

    Attributes:
        version: the current one now.
        rewrapped: schema → how many keys were wrapped anew.
        needed: older version → what still needs it; nothing needs those with an empty list.
    """

    version: int
    rewrapped: dict[str, int]
    needed: dict[int, list[str]]

    def lines(self) -> list[str]:
        """The same in words."""
        counts = ", ".join(f"{count:,} keys of {schema}" for schema, count in self.rewrapped.items()) or "no keys"
        lines = [f"Version {self.version} of the master key now wraps every key; wrapped anew: {counts}."]
        for version, reasons in self.needed.items():
            if reasons:
                lines.append(f"Version {version} is still needed: {'; '.join(reasons)}.")
            else:
                lines.append(
                    f"Nothing needs version {version}: `python -m bronze_assets rotate-keys --retire {version}`."
                )
        return lines


def rotate(
    settings: Settings, lake: Lakehouse, tables: Sequence[BronzeTable], clock: Callable[[], dt.datetime]
) -> Rotation:
    """Wrap every subject's key with a new version of the master key.

    A file gets the version from here. Where somebody else has made it, as in a vault, or where an earlier rotation was
    killed, keys are left under an older one: then those are wrapped anew and no version is added. Values are untouched.

    Raises:
        KeyMissing: there is no master key.
        KeyRefused: it does not open the keys that are there, or a vault has no new version yet: the fix says how it
            gets one. Nothing was changed.
        TableBusy: a load held a schema's keys for minutes; do it again.
    """
    ring = keys.key_ring(settings)
    held = _data_keys(lake, ring, tables, clock)
    for one in held.values():
        one.check()
    if all(set(one.versions()) <= {ring.current} for one in held.values()):
        ring = keys.rotated(settings)
        held = _data_keys(lake, ring, tables, clock)
    rewrapped = {schema: one.rewrap() for schema, one in held.items()}
    needed = _needed(settings, ring, held)
    return Rotation(ring.current, rewrapped, {version: needed[version] for version in ring.versions[:-1]})


def retire(
    settings: Settings, lake: Lakehouse, tables: Sequence[BronzeTable], clock: Callable[[], dt.datetime], version: int
) -> KeyRing:
    """Remove an old version of the master key that nothing needs any more.

    Runs that began before the last rotation must be over.

    Raises:
        KeyMissing: there is no master key.
        KeyRefused: something needs it, it is the current one or not here; or the key is in a vault: the fix says what
            to do there.
    """
    ring = keys.key_ring(settings)
    reasons = _needed(settings, ring, _data_keys(lake, ring, tables, clock)).get(version)
    if reasons:
        raise KeyRefused(
            f"Version {version} of the master key is still needed: {'; '.join(reasons)}.",
            "run `python -m bronze_assets rotate-keys` for keys; let archived files go before, or keep the version.",
        )
    return keys.retire(settings, version)


def _data_keys(
    lake: Lakehouse, ring: KeyRing, tables: Sequence[BronzeTable], clock: Callable[[], dt.datetime]
) -> dict[str, DataKeys]:
    """Schema → its keys, of the schemas that have protected columns."""
    protected = [table for table in tables if any(column.pii.protected for column in table.columns)]
    return {schema: DataKeys(lake, ring, schema, clock) for schema in schemas(protected)}


def _needed(settings: Settings, ring: KeyRing, held: dict[str, DataKeys]) -> dict[int, list[str]]:
    """Version → what needs it."""
    found: dict[int, list[str]] = {version: [] for version in ring.versions}
    for schema, one in held.items():
        versions = one.versions()
        for version, count in versions.items():
            found.setdefault(version, []).append(f"{count:,} keys of {schema}")
        if not versions:
            found.setdefault(1, []).append(f"the first load of {schema}, whose tokens derive from it")
    for version, count in _archived(settings.archive).items():
        found.setdefault(version, []).append(f"{count:,} archived files")
    return found


def _archived(archive: str) -> dict[int, int]:
    """Version → how many files of the archive are encrypted under it."""
    found: dict[int, int] = {}
    try:
        files, root = fsspec.core.url_to_fs(archive)
        files.invalidate_cache()
        for path in files.find(root):
            if path.endswith(ENCRYPTED):
                with files.open(path, "rb") as file:
                    head = file.read(len(_MAGIC) + VERSION_BYTES)
                if len(head) < len(_MAGIC) + VERSION_BYTES or not head.startswith(_MAGIC):
                    raise LakeError(
                        f"{path} in the archive is not one of its encrypted files.", "move it out of the archive."
                    )
                version = int.from_bytes(head[len(_MAGIC) :], "big")
                found[version] = found.get(version, 0) + 1
    except LakeError:
        raise
    except Exception as error:  # each fsspec file system has errors of its own
        raise LakeError(
            f"the archive cannot be read ({type(error).__name__}).",
            "give the process read access, or check BRONZE_ARCHIVE.",
        ) from None
    return found
