"""The landing zone: which files have arrived, what their bytes are, and where they go when they have been loaded.

A file's name is its path below the landing zone, `<feed>/<name>` or `<feed>/<YYYY-MM-DD>/<name>`, also after it has
been archived.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import errno
import hashlib
import logging
import os
import re
import shutil
import stat
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

import fsspec
from upath import UPath

from bronze_assets.errors import LakeError, SettingsError
from bronze_assets.table import Feed

logger = logging.getLogger(__name__)

FORMATS = {".csv": "csv", ".json": "json", ".jsonl": "json", ".ndjson": "json", ".parquet": "parquet"}
_DAY = re.compile(r"\d{4}-\d{2}-\d{2}", re.ASCII)
_SAFE = re.compile(r"[A-Za-z0-9._=/-]+")
_GLOB = re.compile(r"[*?\[\]{}\\]")
_LONGEST_NAME = 255
_CHUNK = 8 * 2**20


@dataclass(frozen=True)
class LandedFile:
    """A file as a listing shows it.

    Attributes:
        path: its name (see the module).
        size: bytes.
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


class LandingZone:
    """Where files arrive, and the archive that loaded ones are moved to.

    Args:
        landing: a folder or an fsspec URL.
        archive: likewise, on the same file system.

    Raises:
        SettingsError: there is no package for such URLs.
    """

    def __init__(self, landing: str, archive: str) -> None:
        self._landing = landing
        self._archive = archive
        try:
            place = UPath(landing)
            self._fs: fsspec.AbstractFileSystem = place.fs
        except (ImportError, ValueError) as error:
            raise SettingsError(
                f"BRONZE_LANDING={landing}: {error}.",
                "install its fsspec package (s3fs, adlfs, gcsfs, …) beside bronze_assets, or choose another URL.",
            ) from None
        self._roots = {False: place.path.rstrip("/"), True: UPath(archive).path.rstrip("/")}
        self._local = "://" not in landing

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
            if _suffix(location) not in FORMATS:
                continue
            found.append(LandedFile(location, size, modified, location, archived))
        return sorted(found, key=lambda file: file.path)

    def _entries(self, folder: str, archived: bool, *, deeper: bool) -> Iterator[tuple[str, int, dt.datetime]]:
        """Path below the root, size and modified time of the files in a folder and in the day folders below it."""
        root = f"{self._roots[archived]}/{folder}"
        if self._local:
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
                        elif deeper and _is_day(entry.name):
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
                elif deeper and item["type"] == "directory" and _is_day(name):
                    yield from self._entries(f"{folder}/{name}", archived, deeper=False)

    def find(self, path: str, archived_as: str | None, *, archived_first: bool = False) -> LandedFile | None:
        """A file by its name, in the landing zone or where it was archived to; None if it is gone."""
        places = [(path, False)] + ([(archived_as, True)] if archived_as else [])
        for location, archived in reversed(places) if archived_first else places:
            full = f"{self._roots[archived]}/{location}"
            with contextlib.suppress(FileNotFoundError, NotADirectoryError):
                if self._local:
                    # As the listing does: of a link, what it leads to.
                    state = Path(full).stat()
                    if stat.S_ISREG(state.st_mode):
                        moment = dt.datetime.fromtimestamp(state.st_mtime, dt.UTC)
                        return LandedFile(path, state.st_size, moment, location, archived)
                    continue
                self._fs.invalidate_cache()
                item = self._fs.info(full)
                if item["type"] == "file":
                    return LandedFile(path, int(item["size"]), _modified(item), location, archived)
        return None

    @contextlib.contextmanager
    def open(self, file: LandedFile) -> Iterator[BinaryIO]:
        """The file's bytes."""
        if self._local:
            with Path(self._full(file)).open("rb") as local:
                yield local
            return
        # A kept listing would cut off what has been written since.
        self._fs.invalidate_cache()
        with self._fs.open(self._full(file), "rb") as stream:
            yield cast(BinaryIO, stream)

    def content_hash(self, file: LandedFile) -> str:
        """SHA-256 of the bytes, as hex."""
        digest = hashlib.sha256()
        with self.open(file) as stream:
            while chunk := stream.read(_CHUNK):
                digest.update(chunk)
        return digest.hexdigest()

    def readable_by_spark(self, file: LandedFile, staging: Path, number: int) -> str:
        """The path under which Spark reads the file.

        A file whose name Hadoop cannot take (`:`, glob characters, …), or that is not on this machine's file system, is
        copied to the staging folder first.

        Args:
            staging: a folder of this batch.
            number: of the file within the batch.
        """
        if self._local and _SAFE.fullmatch(file.location) and not _GLOB.search(self._roots[file.archived]):
            return self._full(file)
        copied = staged(staging, number, _full_suffix(file.path))
        with self.open(file) as stream, copied.open("wb") as target:
            shutil.copyfileobj(stream, target, _CHUNK)
        return str(copied)

    def archive(self, file: LandedFile, day: str, content_hash: str) -> str:
        """Move a file to the archive's folder of its day of arrival; safe to repeat, also after a crash between copy
        and removal. A different file of that name there keeps its place: this one gets its hash into the name.

        Returns:
            Where it lies in the archive.
        """
        parts = file.path.split("/")
        folders = parts[:-1] if file.day else [*parts[:-1], day]
        suffix = _full_suffix(parts[-1])
        ending = f".{content_hash[:12]}{suffix}"
        stem = parts[-1][: len(parts[-1]) - len(suffix)].encode()[: _LONGEST_NAME - len(ending)]
        for name in (parts[-1], stem.decode(errors="ignore") + ending):
            location = "/".join([*folders, name])
            there = LandedFile(file.path, 0, file.modified, location, archived=True)
            if not self._fs.exists(self._full(there)):
                self._move(self._full(file), self._full(there))
                return location
            if self.content_hash(there) == content_hash:
                break
        with contextlib.suppress(FileNotFoundError):
            self._fs.rm_file(self._full(file))
        return location

    def remove(self, file: LandedFile) -> None:
        """Remove a file; nothing happens if it is gone."""
        with contextlib.suppress(FileNotFoundError):
            self._fs.rm_file(self._full(file))

    def _move(self, source: str, target: str) -> None:
        if self._local:
            Path(target).parent.mkdir(parents=True, exist_ok=True)
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
            with tempfile.TemporaryDirectory(dir=Path(target).parent, prefix=".") as folder:
                part = Path(folder) / "part"
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
