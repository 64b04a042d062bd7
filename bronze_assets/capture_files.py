"""The landing zone as a capture uses it: its manifest and intent, and how complete files of lines appear in it."""

from __future__ import annotations

import contextlib
import datetime as dt
import json
import logging
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, TypeVar

from upath import UPath

from bronze_assets.errors import LakeError
from bronze_assets.table import BronzeTable

logger = logging.getLogger(__name__)

_Read = TypeVar("_Read")


@dataclass(frozen=True)
class Intent:
    """What a drain is about to write: a range of the write-ahead log, and the day that its files are named after.

    Attributes:
        begin, up_to: the range.
        date: as `YYYY-MM-DD`.
        epoch: as in `State`.
    """

    begin: int
    up_to: int
    date: str
    epoch: str

    @property
    def name(self) -> str:
        """The end of a file's path: day and range."""
        return f"{self.date}/{self.begin:016X}-{self.up_to:016X}.json"

    def to_json(self) -> dict[str, Any]:
        """As it is stored."""
        return {
            "from": f"{self.begin:016X}",
            "up_to": f"{self.up_to:016X}",
            "date": self.date,
            "source_epoch": self.epoch,
        }

    @classmethod
    def of_json(cls, stored: Mapping[str, Any]) -> Intent:
        """What was stored."""
        return cls(int(stored["from"], 16), int(stored["up_to"], 16), stored["date"], stored["source_epoch"])


@dataclass(frozen=True)
class Begun:
    """From where on a table's changes are complete, and the membership that this holds for."""

    lsn: int
    member: int


@dataclass(frozen=True)
class LastCommit:
    """The latest transaction that is in files.

    Attributes:
        lsn: where its commit record starts.
        time_us: when it was committed, in microseconds since 1970-01-01 UTC.
    """

    lsn: int
    time_us: int


@dataclass(frozen=True)
class Restart:
    """That a slot was lost and made anew.

    Attributes:
        at: when.
        reason: why, in words.
    """

    at: dt.datetime
    reason: str


@dataclass(frozen=True)
class State:
    """The manifest as it is stored.

    Attributes:
        slot, epoch, start, watermark, confirmed_at, restarts: as in `capture.Manifest`.
        publication: oid of the publication that the slot was made for.
        tables: bronze table → where its changes begin.
        last: None if none has come from this slot yet.
    """

    slot: str
    epoch: str
    start: int
    watermark: int
    confirmed_at: dt.datetime | None
    publication: int
    tables: Mapping[str, Begun] = field(default_factory=dict)
    last: LastCommit | None = None
    restarts: tuple[Restart, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """As it is stored."""
        return {
            "slot": self.slot,
            "source_epoch": self.epoch,
            "start_lsn": f"{self.start:016X}",
            "watermark": f"{self.watermark:016X}",
            "confirmed_at": self.confirmed_at.isoformat() if self.confirmed_at is not None else None,
            "publication": self.publication,
            "tables": {
                name: {"start_lsn": f"{table.lsn:016X}", "member": table.member} for name, table in self.tables.items()
            },
            "last_commit": {"lsn": f"{self.last.lsn:016X}", "time_us": self.last.time_us} if self.last else None,
            "restarts": [{"at": restart.at.isoformat(), "reason": restart.reason} for restart in self.restarts],
        }

    @classmethod
    def of_json(cls, stored: Mapping[str, Any]) -> State:
        """What was stored."""
        confirmed = stored["confirmed_at"]
        # Manifests of before know neither.
        last, restarts = stored.get("last_commit"), stored.get("restarts", [])
        return cls(
            slot=stored["slot"],
            epoch=stored["source_epoch"],
            start=int(stored["start_lsn"], 16),
            watermark=int(stored["watermark"], 16),
            confirmed_at=dt.datetime.fromisoformat(confirmed) if confirmed is not None else None,
            publication=stored["publication"],
            tables={
                name: Begun(int(table["start_lsn"], 16), table["member"]) for name, table in stored["tables"].items()
            },
            last=LastCommit(int(last["lsn"], 16), last["time_us"]) if last is not None else None,
            restarts=tuple(Restart(dt.datetime.fromisoformat(one["at"]), one["reason"]) for one in restarts),
        )


class Spool:
    """Lines on the way to files, one file for each table in a local folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._open: dict[str, IO[str]] = {}
        self._counts: dict[str, int] = {}

    def write(self, table: str, line: str) -> None:
        """Add a line of a table."""
        file = self._open.get(table)
        if file is None:
            path = self.folder / table
            file = self._open[table] = path.open("w", encoding="utf-8", newline="\n", buffering=2**18)
            self._counts[table] = 0
        file.write(line)
        self._counts[table] += 1

    def complete(self) -> Mapping[str, int]:
        """Table → lines, all of them on disk."""
        for file in self._open.values():
            file.flush()
            os.fsync(file.fileno())
        return self._counts

    def close(self) -> None:
        """Close what is open."""
        for file in self._open.values():
            file.close()


class CaptureFiles:
    """The landing zone as a capture uses it: its state in `<schema>/_capture/`, and the files of the feeds.

    Args:
        landing: a folder or an fsspec URL.
        schema: the captured one.

    Attributes:
        root: the landing zone, as it is shown.

    All methods raise `LakeError` if the landing zone cannot be read or written.
    """

    def __init__(self, landing: str, schema: str) -> None:
        place = UPath(landing)
        local = place.protocol in ("", "file", "local")
        self._local = Path(place.path).absolute() if local else None
        self.root = str(self._local or place)
        self._place = UPath(self.root)
        self._state = self._place / schema / "_capture"
        # On the same file system as the files, or they could not be renamed into their places.
        self._hidden = Path(self._state.path) / "spool"

    def manifest(self) -> State | None:
        """The manifest; None if it is missing or not readable."""
        return self._read("manifest.json", State.of_json)

    def write_manifest(self, state: State) -> None:
        """Put this manifest in the place of the one before, for good."""
        self._write("manifest.json", state.to_json())

    def forget_manifest(self) -> None:
        """Remove the manifest."""
        self._remove("manifest.json")

    def intent(self) -> Intent | None:
        """The intent of a drain that is at work or was killed; None if there is none."""
        return self._read("intent.json", Intent.of_json)

    def write_intent(self, intent: Intent) -> None:
        """Note an intent, for good."""
        self._write("intent.json", intent.to_json())

    def forget_intent(self) -> None:
        """Remove the intent."""
        self._remove("intent.json")

    def clear_spool(self) -> None:
        """Remove what a killed drain left."""
        with self._reporting():
            if self._local is not None and self._hidden.is_dir():
                shutil.rmtree(self._hidden)

    @contextlib.contextmanager
    def spool(self) -> Iterator[Spool]:
        """Where lines wait until all of a range are there."""
        with self._reporting(), contextlib.ExitStack() as stack:
            if self._local is None:
                folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bronze-capture-")))
            else:
                folder = self._hidden
                folder.mkdir(parents=True, exist_ok=True)
                stack.callback(self.clear_spool)
            yield stack.enter_context(contextlib.closing(Spool(folder)))

    def publish(self, spool: Spool, table: BronzeTable, intent: Intent) -> str:
        """Make the complete file of a table appear, all at once; returns its path below the landing zone."""
        assert table.feed is not None
        path = f"{table.feed.path}/{intent.name}"
        complete = spool.folder / table.name
        with self._reporting():
            if self._local is not None:
                target = self._local / path
                target.parent.mkdir(parents=True, exist_ok=True)
                complete.replace(target)
                for folder in target.parents[:3]:
                    _sync_folder(folder)
            else:
                remote = self._place / path
                remote.fs.put_file(str(complete), remote.path)
                complete.unlink()
        return path

    def _read(self, name: str, made_of: Callable[[Mapping[str, Any]], _Read]) -> _Read | None:
        path = self._state / name
        with self._reporting():
            try:
                path.fs.invalidate_cache()
                stored = path.fs.cat_file(path.path)
            except FileNotFoundError:
                return None
        try:
            return made_of(json.loads(stored))
        except (ValueError, KeyError, TypeError, AttributeError):
            logger.warning("%s is not readable as what it should be: it counts as missing", path)
            return None

    def _write(self, name: str, content: Mapping[str, Any]) -> None:
        data = (json.dumps(content, indent=1) + "\n").encode()
        with self._reporting():
            if self._local is None:
                path = self._state / name
                path.fs.pipe_file(path.path, data)
                return
            folder = Path(self._state.path)
            folder.mkdir(parents=True, exist_ok=True)
            with (folder / f".{name}").open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            (folder / f".{name}").replace(folder / name)
            _sync_folder(folder)

    def _remove(self, name: str) -> None:
        path = self._state / name
        with self._reporting(), contextlib.suppress(FileNotFoundError):
            path.fs.rm_file(path.path)

    @contextlib.contextmanager
    def _reporting(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise LakeError(
                f"the landing zone {self.root} cannot be used: {error.strerror or type(error).__name__}.",
                "check BRONZE_LANDING, its permissions, credentials and free space.",
            ) from error


def _sync_folder(folder: Path) -> None:
    """Make a rename in it last."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
