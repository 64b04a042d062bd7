"""The landing zone: which files have arrived, what their bytes are, and where they go when they have been loaded.

A file's name is its path below the landing zone, `<feed>/<name>` or `<feed>/<YYYY-MM-DD>/<name>`, also after it has
been archived. In the archive it may lie encrypted, as `<name>.enc`; its size, hash and bytes are still the plain ones.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import errno
import hashlib
import io
import logging
import os
import re
import shutil
import stat
import tempfile
import threading
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO, cast

import fsspec
from upath import UPath

from bronze_assets.errors import KeyMissing, KeyRefused, LakeError, SettingsError
from bronze_assets.privacy.archive import ENCRYPTED, encrypt, open_encrypted, plain_size
from bronze_assets.privacy.keys import KeyRing
from bronze_assets.table import Feed

logger = logging.getLogger(__name__)

# By process: a sensor's ticks would tell of them again and again.
_passed_by: set[str] = set()

FORMATS = {".csv": "csv", ".json": "json", ".jsonl": "json", ".ndjson": "json", ".parquet": "parquet"}
_DAY = re.compile(r"\d{4}-\d{2}-\d{2}", re.ASCII)
_SAFE = re.compile(r"[A-Za-z0-9._=/-]+")
_GLOB = re.compile(r"[*?\[\]{}\\]")
_LONGEST_NAME = 255
_CHUNK = 8 * 2**20
_PARTS = ".parts"
"""Folder in the archive of a feed where encrypted files are written before they get their names."""


@dataclass(frozen=True)
class LandedFile:
    """A file as a listing shows it.

    Attributes:
        path: its name (see the module).
        size: bytes; of an encrypted file, those of the plain one.
        modified: when it was last written, UTC.
        location: where it lies now, below the landing zone or the archive.
        archived: whether it lies in the archive.
    """

    path: str
    size: int
    modified: dt.datetime
    location: str
    archived: bool = False

    @property
    def day(self) -> str | None:
        """The day folder it lies in: its day of arrival. None in a flat prefix."""
        folders = self.path.split("/")[:-1]
        return folders[-1] if folders and _is_day(folders[-1]) else None

    @property
    def format(self) -> str:
        """`csv`, `json` or `parquet`."""
        return FORMATS[_suffix(self.path)]

    @property
    def encrypted(self) -> bool:
        """Whether it lies encrypted in the archive."""
        return self.archived and self.location.endswith(ENCRYPTED)


class LandingZone:
    """Where files arrive, and the archive that loaded ones are moved to.

    Args:
        landing: a folder or an fsspec URL.
        archive: likewise, on the same file system.
        ring: gives the master key; called when an encrypted file is first read. Without it, none can be.

    Attributes:
        is_local: whether both are folders.

    Raises:
        SettingsError: there is no package for such URLs.
    """

    def __init__(self, landing: str, archive: str, ring: Callable[[], KeyRing] | None = None) -> None:
        self._landing = landing
        self._archive = archive
        self._ring = ring
        self._lock = threading.Lock()
        try:
            place = UPath(landing)
            self._fs: fsspec.AbstractFileSystem = place.fs
        except (ImportError, ValueError) as error:
            raise SettingsError(
                f"BRONZE_LANDING={landing}: {error}.",
                "install its fsspec package (s3fs, adlfs, gcsfs, …) beside bronze_assets, or choose another URL.",
            ) from None
        self._roots = {False: place.path.rstrip("/"), True: UPath(archive).path.rstrip("/")}
        self.is_local = "://" not in landing

    def has(self, feed: Feed) -> bool:
        """Whether the feed's folder is there: it comes with the first file."""
        return bool(self._fs.exists(f"{self._roots[False]}/{feed.path}"))

    def files(self, feed: Feed) -> list[LandedFile]:
        """The files of a feed in the landing zone, by name.

        Hidden ones (a name that begins with `.` or `_`), folders and names without a known suffix are left out.

        Raises:
            LakeError: the landing zone cannot be listed.
        """
        return self._files(feed.path, archived=False)

    def archived(self, feed: Feed, day: str) -> list[LandedFile]:
        """The archived files of one day of arrival."""
        return self._files(f"{feed.path}/{day}", archived=True)

    def archived_days(self, feed: Feed) -> list[str]:
        """The days of arrival of which the archive has files of a feed."""
        self._fs.invalidate_cache()
        try:
            places = self._fs.ls(f"{self._roots[True]}/{feed.path}", detail=False)
        except FileNotFoundError:
            return []
        names = (str(place).rstrip("/").rsplit("/", 1)[-1] for place in places)
        return sorted(name for name in names if _is_day(name))

    def _files(self, folder: str, *, archived: bool) -> list[LandedFile]:
        try:
            entries = list(self._entries(folder, archived, deeper=not archived))
        except Exception as error:  # each fsspec file system has errors of its own
            raise LakeError(
                f"the folder {folder} of the {'archive' if archived else 'landing zone'} cannot be listed"
                f" ({getattr(error, 'strerror', None) or type(error).__name__}).",
                "give the process read access, or check BRONZE_LANDING and BRONZE_ARCHIVE.",
            ) from None
        found = []
        for location, size, modified in entries:
            path = location.removesuffix(ENCRYPTED) if archived else location
            if _suffix(path) in FORMATS:
                found.append(_seen(path, size, modified, location, archived))
        return sorted(found, key=lambda file: (file.path, file.location))

    def _entries(self, folder: str, archived: bool, *, deeper: bool) -> Iterator[tuple[str, int, dt.datetime]]:
        """Path below the root, size and modified time of the files in a folder and in the day folders below it."""
        root = f"{self._roots[archived]}/{folder}"
        if self.is_local:
            # Not fsspec: it takes five times as long for 100,000 files.
            with contextlib.suppress(FileNotFoundError), os.scandir(root) as entries:
                for entry in entries:
                    if entry.name[0] in "._":
                        continue
                    if not _is_text(entry.name):
                        # Neither the ledger nor a table can hold such a name.
                        logger.warning("%s/%r is left out: its name is not UTF-8", folder, os.fsencode(entry.name))
                        continue
                    with contextlib.suppress(FileNotFoundError):
                        if entry.is_file():
                            state = entry.stat()
                            moment = dt.datetime.fromtimestamp(state.st_mtime, dt.UTC)
                            yield f"{folder}/{entry.name}", state.st_size, moment
                        elif deeper and entry.is_dir() and self._is_looked_into(folder, entry.name):
                            yield from self._entries(f"{folder}/{entry.name}", archived, deeper=False)
            return
        # Kept listings would hide what has arrived since.
        self._fs.invalidate_cache()
        with contextlib.suppress(FileNotFoundError):
            for item in self._fs.ls(root, detail=True):
                name = item["name"].rstrip("/").rsplit("/", 1)[-1]
                if not name or name[0] in "._":
                    continue
                if item["type"] == "file" and not item["name"].endswith("/"):
                    yield f"{folder}/{name}", int(item["size"]), _modified(item)
                elif deeper and item["type"] == "directory" and self._is_looked_into(folder, name):
                    yield from self._entries(f"{folder}/{name}", archived, deeper=False)

    def _is_looked_into(self, folder: str, name: str) -> bool:
        if _is_day(name):
            return True
        place = f"{self._landing}/{folder}/{name}"
        if place not in _passed_by:
            _passed_by.add(place)
            logger.warning("%s/ is not looked into: only folders named after a day are, such as 2026-06-01", place)
        return False

    def find(self, path: str, archived_as: str | None, *, archived_first: bool = False) -> LandedFile | None:
        """A file by its name, in the landing zone or where it was archived to; None if it is gone.

        What was archived plain may have been encrypted since, beside its place.
        """
        places = [(path, False)]
        if archived_as:
            places += [(archived_as, True)]
            places += [] if archived_as.endswith(ENCRYPTED) else [(archived_as + ENCRYPTED, True)]
        for location, archived in reversed(places) if archived_first else places:
            full = f"{self._roots[archived]}/{location}"
            with contextlib.suppress(FileNotFoundError, NotADirectoryError):
                if self.is_local:
                    # As the listing does: of a link, what it leads to.
                    state = Path(full).stat()
                    if stat.S_ISREG(state.st_mode):
                        moment = dt.datetime.fromtimestamp(state.st_mtime, dt.UTC)
                        return _seen(path, state.st_size, moment, location, archived)
                    continue
                self._fs.invalidate_cache()
                item = self._fs.info(full)
                if item["type"] == "file":
                    return _seen(path, int(item["size"]), _modified(item), location, archived)
        return None

    @contextlib.contextmanager
    def open(self, file: LandedFile) -> Iterator[BinaryIO]:
        """The file's bytes.

        Raises:
            KeyMissing: it is encrypted, and there is no key.
            KeyRefused: (also by a read) it is encrypted, and damaged or of another key.
        """
        with self._plain(file, None) as stream:
            yield stream

    @contextlib.contextmanager
    def _plain(self, file: LandedFile, ring: KeyRing | None) -> Iterator[BinaryIO]:
        with self._opened(file) as stream:
            if not file.encrypted:
                yield stream
                return
            with open_encrypted(stream, ring or self._key(file), name=f"{file.location!r} in the archive") as plain:
                yield plain

    @contextlib.contextmanager
    def _opened(self, file: LandedFile) -> Iterator[BinaryIO]:
        """The bytes as they lie there."""
        if self.is_local:
            with Path(self._full(file)).open("rb") as local:
                yield local
            return
        # A kept listing would cut off what has been written since.
        self._fs.invalidate_cache()
        with self._fs.open(self._full(file), "rb") as stream:
            yield cast(BinaryIO, stream)

    def _key(self, file: LandedFile) -> KeyRing:
        if self._ring is None:
            raise KeyMissing(
                f"{file.location!r} in the archive is encrypted, and this process has no master key.",
                "let BRONZE_MASTER_KEY name it, and read the file through a load.",
            )
        # Several files are opened at once, and the key may have a way to come.
        with self._lock:
            return self._ring()

    def content_hash(self, file: LandedFile) -> str:
        """SHA-256 of the plain bytes, as hex; raises as `open` does."""
        return self._hash(file, None)

    def _hash(self, file: LandedFile, ring: KeyRing | None) -> str:
        digest = hashlib.sha256()
        with self._plain(file, ring) as stream:
            while chunk := stream.read(_CHUNK):
                digest.update(chunk)
        return digest.hexdigest()

    def readable_by_spark(self, file: LandedFile, staging: Path, number: int) -> str:
        """The path under which Spark reads the file.

        A file whose name Hadoop cannot take (`:`, glob characters, …), that is not on this machine's file system, or
        that is encrypted, is copied to the staging folder first.

        Args:
            staging: a folder of this batch.
            number: of the file within the batch.
        """
        named = _SAFE.fullmatch(file.location) and not _GLOB.search(self._roots[file.archived])
        if self.is_local and named and not file.encrypted:
            return self._full(file)
        copied = staged(staging, number, _full_suffix(file.path))
        with self.open(file) as stream, copied.open("wb") as target:
            shutil.copyfileobj(stream, target, _CHUNK)
        return str(copied)

    def archive(self, file: LandedFile, day: str, content_hash: str, *, ring: KeyRing | None = None) -> str:
        """Move a file to the archive's folder of its day of arrival; safe to repeat, also after a crash between copy
        and removal. A different file of that name there keeps its place: this one gets its hash into the name.

        Args:
            content_hash: of the plain bytes.
            ring: encrypts it; the archive then keeps no plain copy under these names.

        Returns:
            Where it lies in the archive.

        Raises:
            OSError: it cannot be moved, both names are taken, or (with a ring) the hash is not that of its bytes.
            KeyMissing: its name is taken by an encrypted file, and the zone has no key to compare with it.
        """
        if ring is not None:
            return self._archive_encrypted(file, day, content_hash, ring)
        for location in _archive_names(file, day, content_hash, _LONGEST_NAME):
            there = self._there(file, location)
            if not any(there.values()):
                self._move(self._full(file), f"{self._roots[True]}/{location}")
                return location
            for one, exists in there.items():
                if exists and self._holds(one, content_hash, None):
                    self.remove(file)
                    return one.location
        raise FileExistsError(errno.EEXIST, "other files have its names in the archive")

    def _archive_encrypted(self, file: LandedFile, day: str, content_hash: str, ring: KeyRing) -> str:
        # As a time without encryption has left them.
        copies: list[LandedFile] = []
        for location in _archive_names(file, day, content_hash, _LONGEST_NAME - len(ENCRYPTED)):
            (plain, is_plain), (encrypted, is_encrypted) = self._there(file, location).items()
            if is_plain:
                if not self._holds(plain, content_hash, ring):
                    continue
                copies.append(plain)
            if is_encrypted and not self._holds(encrypted, content_hash, ring):
                continue
            source = copies[-1] if copies else file
            if not is_encrypted and self._fs.exists(self._full(source)):
                self._encrypt(source, encrypted, content_hash, ring)
            for copy in copies:
                self.remove(copy)
            now = self.find(file.location, None)
            # Another file may have come under its name meanwhile: that one is for the next load.
            if now is not None and (now.size, now.modified) == (file.size, file.modified):
                self.remove(file)
            return encrypted.location
        raise FileExistsError(errno.EEXIST, "other files have its names in the archive")

    def _there(self, file: LandedFile, location: str) -> dict[LandedFile, bool]:
        """The file at this place of the archive, plain and encrypted, and whether each is there."""
        places = (location, location + ENCRYPTED)
        both = [LandedFile(file.path, 0, file.modified, place, archived=True) for place in places]
        return {one: bool(self._fs.exists(self._full(one))) for one in both}

    def _holds(self, file: LandedFile, content_hash: str, ring: KeyRing | None) -> bool:
        try:
            return self._hash(file, ring) == content_hash
        except KeyRefused as why:
            logger.warning("%s", why)
            return False

    def _encrypt(self, source: LandedFile, target: LandedFile, content_hash: str, ring: KeyRing) -> None:
        """Write a file encrypted into the archive: whole or not at all, and on the disk before its source may go."""
        full = self._full(target)
        feed = source.path.split("/")[: -2 if source.day else -1]
        parts = f"{self._roots[True]}/{'/'.join(feed)}/{_PARTS}"
        part = f"{parts}/{content_hash}"
        try:
            if self.is_local:
                Path(parts).mkdir(parents=True, exist_ok=True)
                _make_folder(Path(full).parent)
                with self.open(source) as plain, Path(part).open("wb") as encrypted:
                    found = encrypt(plain, encrypted, ring)
                    encrypted.flush()
                    times = os.fstat(plain.fileno())
                    os.utime(encrypted.fileno(), ns=(times.st_atime_ns, times.st_mtime_ns))
                    os.fsync(encrypted.fileno())
            else:
                with self.open(source) as plain, self._fs.open(part, "wb") as encrypted:
                    found = encrypt(plain, encrypted, ring)
            if found != content_hash:
                raise OSError(errno.EBUSY, "it was changed after it had been loaded")
            if self.is_local:
                Path(part).replace(full)
                _sync(Path(full).parent)
            else:
                self._fs.cp_file(part, full)
        finally:
            with contextlib.suppress(OSError):
                self._fs.rm_file(part)

    def write(self, file: LandedFile, content: bytes) -> LandedFile:
        """Put other plain bytes in the place of a file's, whole or not at all; encrypted if they were.

        Returns:
            The file as it is now.

        Raises:
            OSError: it cannot be written.
        """
        target = io.BytesIO(content)
        if file.encrypted:
            target = io.BytesIO()
            encrypt(io.BytesIO(content), target, self._key(file))
        full = self._full(file)
        if self.is_local:
            # A link's file, and not the link.
            real = Path(full).resolve()
            part = real.with_name(f".{uuid.uuid4().hex}")
            try:
                with part.open("wb") as written:
                    written.write(target.getvalue())
                    written.flush()
                    os.fsync(written.fileno())
                part.replace(real)
            finally:
                part.unlink(missing_ok=True)
            _sync(real.parent)
        else:
            self._fs.pipe_file(full, target.getvalue())
        found = self.find(file.path, file.location if file.archived else None, archived_first=True)
        if found is None:
            raise FileNotFoundError(errno.ENOENT, "it was removed while it was written")
        return found

    def tidy(self, feed: Feed) -> None:
        """Remove what killed loads have left half-written in the archive of a feed, of which no other load is at work.

        It is encrypted, and would still be a copy that nobody knows of.
        """
        self._fs.invalidate_cache()
        try:
            for part in self._fs.find(f"{self._roots[True]}/{feed.path}/{_PARTS}"):
                self._fs.rm_file(part)
        except FileNotFoundError:
            pass
        except OSError as error:
            # As what cannot be archived, it is no reason not to load.
            logger.warning("%s/%s in the archive cannot be emptied (%s)", feed.path, _PARTS, type(error).__name__)

    def remove(self, file: LandedFile) -> None:
        """Remove a file; nothing happens if it is gone."""
        with contextlib.suppress(FileNotFoundError):
            self._fs.rm_file(self._full(file))

    def _move(self, source: str, target: str) -> None:
        if self.is_local:
            folder = Path(target).parent
            if not folder.is_dir():
                folder.mkdir(parents=True, exist_ok=True)
            try:
                if not Path(source).is_symlink():
                    Path(source).replace(target)
                    return
            except FileNotFoundError:
                return
            except OSError as error:
                if error.errno != errno.EXDEV:
                    raise
            # Across file systems, and of a link, a copy: its name is given when it is complete.
            with tempfile.TemporaryDirectory(dir=folder, prefix=".") as hidden:
                part = Path(hidden) / "part"
                try:
                    shutil.copy2(source, part)
                except FileNotFoundError:
                    return
                part.replace(target)
        else:
            with contextlib.suppress(FileNotFoundError):
                self._fs.cp_file(source, target)
        with contextlib.suppress(FileNotFoundError):
            self._fs.rm_file(source)

    def _full(self, file: LandedFile) -> str:
        return f"{self._roots[file.archived]}/{file.location}"


def suffixes(kind: str) -> list[str]:
    """The suffixes that tell a format."""
    return [suffix for suffix, known in FORMATS.items() if known == kind]


def staged(staging: Path, number: int, suffix: str) -> Path:
    """Where a copy of a batch's file goes for Spark to read."""
    staging.mkdir(parents=True, exist_ok=True)
    return staging / f"{number:06d}{suffix}"


def _seen(path: str, size: int, modified: dt.datetime, location: str, archived: bool) -> LandedFile:
    file = LandedFile(path, size, modified, location, archived)
    return replace(file, size=plain_size(size)) if file.encrypted else file


def _archive_names(file: LandedFile, day: str, content_hash: str, longest: int) -> Iterator[str]:
    """The places for a file in the archive, in the order in which they are tried.

    Args:
        longest: bytes that a name may have, where it gets its hash.
    """
    *folders, name = file.path.split("/")
    folders += [] if file.day else [day]
    # A name that is at the limit already would be over it.
    if longest == _LONGEST_NAME or len(name.encode()) <= longest:
        yield "/".join([*folders, name])
    suffix = _full_suffix(name)
    ending = f".{content_hash[:12]}{suffix}"
    stem = name[: len(name) - len(suffix)].encode()[: longest - len(ending)]
    yield "/".join([*folders, stem.decode(errors="ignore") + ending])


def _make_folder(folder: Path) -> None:
    """A folder that is still there after the power has failed."""
    if not folder.is_dir():
        _make_folder(folder.parent)
        folder.mkdir(exist_ok=True)
        _sync(folder.parent)


def _sync(folder: Path) -> None:
    number = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(number)
    finally:
        os.close(number)


def _is_day(name: str) -> bool:
    with contextlib.suppress(ValueError):
        return bool(_DAY.fullmatch(name) and dt.date.fromisoformat(name))
    return False


def _is_text(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def _suffix(path: str) -> str:
    """The suffix that tells the format, lower-case, without `.gz`."""
    name = path.lower().removesuffix(".gz")
    return os.path.splitext(name)[1]  # noqa: PTH122  a name, not a path of this machine


def _full_suffix(path: str) -> str:
    suffix = _suffix(path)
    return suffix + (".gz" if path.lower().endswith(".gz") else "")


def _modified(item: dict[str, Any]) -> dt.datetime:
    # Each fsspec file system has a name of its own for it.
    for name in ("mtime", "LastModified", "last_modified", "updated", "timeModified", "created"):
        value = item.get(name)
        if isinstance(value, (int, float)):
            return dt.datetime.fromtimestamp(value, dt.UTC)
        if isinstance(value, str):
            value = dt.datetime.fromisoformat(value)
        if isinstance(value, dt.datetime):
            return value.astimezone(dt.UTC) if value.tzinfo else value.replace(tzinfo=dt.UTC)
    return dt.datetime.fromtimestamp(0, dt.UTC)
