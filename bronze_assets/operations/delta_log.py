"""The log of a Delta table as files behind fsspec: what a version holds, and commits that make a copy equal to it.

Only for copies: a copy's data files are those of the source, byte for byte, and its commits say which of them belong
together. What loads write goes through `lakehouse`. Read here are JSON commits and classic checkpoints, which are what
Spark and delta-rs write; a table that needs more of a reader is refused, not guessed at.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import re
import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, Final, cast
from urllib.parse import unquote

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
from upath import UPath

from bronze_assets.errors import LakeError, SettingsError

LOG: Final = "_delta_log"
HASH: Final = "bronze_assets.sha256"
"""The tag of an `add` that holds the SHA-256 of the file."""
_CHUNK: Final = 8 * 2**20
_COMMIT = re.compile(r"(\d{20})\.json")
_CHECKPOINT = re.compile(r"(\d{20})\.checkpoint(?:\.(\d{10})\.(\d{10}))?\.parquet")
_KNOWN = frozenset(
    {
        "allowColumnDefaults",
        "appendOnly",
        "changeDataFeed",
        "checkConstraints",
        "columnMapping",
        "generatedColumns",
        "identityColumns",
        "invariants",
        "timestampNtz",
    }
)
_TEXTS = pa.map_(pa.string(), pa.string())
_CHECKPOINT_SCHEMA = pa.schema(
    [
        ("txn", pa.struct([("appId", pa.string()), ("version", pa.int64()), ("lastUpdated", pa.int64())])),
        (
            "add",
            pa.struct(
                [
                    ("path", pa.string()),
                    ("partitionValues", _TEXTS),
                    ("size", pa.int64()),
                    ("modificationTime", pa.int64()),
                    ("dataChange", pa.bool_()),
                    ("stats", pa.string()),
                    ("tags", _TEXTS),
                ]
            ),
        ),
        (
            "metaData",
            pa.struct(
                [
                    ("id", pa.string()),
                    ("name", pa.string()),
                    ("description", pa.string()),
                    ("format", pa.struct([("provider", pa.string()), ("options", _TEXTS)])),
                    ("schemaString", pa.string()),
                    ("partitionColumns", pa.list_(pa.string())),
                    ("configuration", _TEXTS),
                    ("createdTime", pa.int64()),
                ]
            ),
        ),
        (
            "protocol",
            pa.struct(
                [
                    ("minReaderVersion", pa.int32()),
                    ("minWriterVersion", pa.int32()),
                    ("readerFeatures", pa.list_(pa.string())),
                    ("writerFeatures", pa.list_(pa.string())),
                ]
            ),
        ),
    ]
)
_MAPS: Final = ("partitionValues", "tags", "options", "configuration")
_ADD: Final = tuple(one.name for one in _CHECKPOINT_SCHEMA.field("add").type)

Action = dict[str, Any]


class Folder:
    """A folder behind fsspec, with what a copy asks of one.

    Args:
        url: a path, or a URL of fsspec.

    Raises:
        SettingsError: there is no package for such URLs.
    """

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")
        try:
            place = UPath(self.url)
            self.fs: fsspec.AbstractFileSystem = place.fs
        except (ImportError, ValueError) as error:
            raise SettingsError(
                f"{url}: {error}.",
                "install its fsspec package (s3fs, adlfs, gcsfs, …) beside bronze_assets, or name another place.",
            ) from None
        self.root = place.path.rstrip("/")
        self.is_local = "://" not in self.url or self.url.startswith(("file://", "local://"))

    def below(self, name: str) -> Folder:
        """A folder in it."""
        return Folder(f"{self.url}/{name}")

    def at(self, path: str) -> str:
        """Where a file of it lies, for `fs`."""
        return f"{self.root}/{path}"

    def sizes(self, under: str = "") -> dict[str, int]:
        """Every file below it, by its path in it, with its size; as it is now."""
        self.fs.invalidate_cache()
        start = self.at(under).rstrip("/")
        try:
            found: Mapping[str, Mapping[str, Any]] = self.fs.find(start, detail=True)
        except FileNotFoundError:
            return {}
        return {name[len(self.root) + 1 :]: int(one["size"]) for name, one in found.items()}

    def open(self, path: str) -> BinaryIO:
        """A file of it, to read."""
        return cast(BinaryIO, self.fs.open(self.at(path), "rb"))

    def put(self, path: str, content: bytes) -> None:
        """Write a file, which is there whole or not at all."""
        with contextlib.closing(io.BytesIO(content)) as stream:
            self.take(path, stream)

    def take(self, path: str, stream: BinaryIO) -> tuple[int, str]:
        """Write a file from a stream; it gets its name when it is whole. Returns its size and SHA-256 as hex."""
        place = self.at(path)
        # An object store shows an upload when it is complete.
        name = f"{place}.{uuid.uuid4().hex}.part" if self.is_local else place
        if self.is_local:
            Path(place).parent.mkdir(parents=True, exist_ok=True)
        size, digest = 0, hashlib.sha256()
        target = self.fs.open(name, "wb")
        try:
            while chunk := stream.read(_CHUNK):
                target.write(chunk)
                digest.update(chunk)
                size += len(chunk)
            if self.is_local:
                target.flush()
                os.fsync(target.fileno())
            target.close()
            if self.is_local:
                Path(name).replace(place)
        except BaseException:
            # Closing an upload would complete it.
            with contextlib.suppress(Exception):
                (target.close if self.is_local else target.discard)()
            with contextlib.suppress(OSError):
                if self.is_local:
                    Path(name).unlink(missing_ok=True)
            raise
        return size, digest.hexdigest()

    def remove(self, paths: Iterable[str]) -> None:
        """Remove files, one after the other; one that is gone already is none."""
        for path in paths:
            with contextlib.suppress(FileNotFoundError):
                self.fs.rm_file(self.at(path))

    def digest(self, path: str) -> tuple[int, str]:
        """A file's size and SHA-256 as hex, of all its bytes."""
        size, digest = 0, hashlib.sha256()
        with self.open(path) as stream:
            while chunk := stream.read(_CHUNK):
                digest.update(chunk)
                size += len(chunk)
        return size, digest.hexdigest()

    def rows(self, path: str) -> int:
        """How many rows a Parquet file has, as its footer says."""
        with self.open(path) as stream:
            return int(pq.ParquetFile(stream).metadata.num_rows)


@dataclass(frozen=True)
class State:
    """What a version of a table is made of.

    Attributes:
        files: path, as the log writes it → its `add` action.
        metadata, protocol: the actions.
        loads: `txn` actions by their `appId`.
        committed: the `timestamp` of the version's commit, in ms; None if it says none.
        mark: its `userMetadata`.
    """

    version: int
    files: Mapping[str, Action]
    metadata: Action
    protocol: Action
    loads: Mapping[str, Action] = field(default_factory=dict)
    committed: int | None = None
    mark: str = ""

    @property
    def bytes(self) -> int:
        """Of all files."""
        return sum(int(add["size"]) for add in self.files.values())

    @property
    def rows(self) -> int | None:
        """Of all files, as their statistics say; None if one has none."""
        counts = [records(add) for add in self.files.values()]
        return None if None in counts else sum(count or 0 for count in counts)


def records(add: Action) -> int | None:
    """How many rows a file has, as its statistics say."""
    told = json.loads(add.get("stats") or "{}").get("numRecords")
    return None if told is None else int(told)


def name_of(path: str) -> str:
    """Where a file lies in the table's folder: the log encodes paths as URLs."""
    return unquote(path)


class DeltaLog:
    """The log of one table.

    Args:
        folder: of the table.

    Raises:
        LakeError: by each method: the log cannot be understood, or no longer tells a version.
    """

    def __init__(self, folder: Folder) -> None:
        self.folder = folder

    def versions(self) -> list[int]:
        """The versions whose commits are there, oldest first."""
        return sorted(int(found[1]) for name in self._names() if (found := _COMMIT.fullmatch(name)))

    def state(self, version: int | None = None) -> State | None:
        """The table at a version, the current one by default; None if there is no table."""
        names = self._names()
        commits = {int(found[1]): name for name in names if (found := _COMMIT.fullmatch(name))}
        if not commits:
            return None
        last = max(commits)
        wanted = last if version is None else version
        start, parts = _checkpoint(names, wanted)
        needed = range(start + 1, wanted + 1)
        if wanted > last or wanted < 0 or any(one not in commits for one in needed):
            raise LakeError(
                f"{self.folder.url} has no version {wanted} (any more); it has up to {last}.",
                "name a version that its history shows.",
            )
        build = _Building()
        for part in parts:
            build.take_checkpoint(self._read(part))
        for one in needed:
            build.commit(self._read(commits[one]))
        if not needed and wanted in commits:
            build.tell(self._read(commits[wanted]))
        return build.state(wanted, self.folder.url)

    def marks(self) -> dict[int, tuple[int | None, str]]:
        """Version → `timestamp` and `userMetadata` of its commit, of those whose commits are there."""
        wanted = {f"{version:020}.json": version for version in self.versions()}
        if not wanted:
            return {}
        found: Mapping[str, bytes] = self.folder.fs.cat([self.folder.at(f"{LOG}/{name}") for name in wanted])
        by_name = {place.rpartition("/")[2]: content for place, content in found.items()}
        return {version: _told(by_name[name]) for name, version in wanted.items()}

    def commit(self, before: State | None, after: State, told: Mapping[str, Any], *, moment: int) -> int:
        """Write the version that follows `before`, and is what `after` says.

        Args:
            told: what its `userMetadata` says, as JSON.
            moment: of the commit, in ms.

        Returns:
            The version.
        """
        version = 0 if before is None else before.version + 1
        name = f"{LOG}/{version:020}.json"
        if self.folder.fs.exists(self.folder.at(name)):
            raise LakeError(
                f"somebody else has written version {version} of {self.folder.url}.", "let one process write copies."
            )
        old: Mapping[str, Action] = {} if before is None else before.files
        # Of an append-only table only a compaction removes files, and that changes no row.
        changes = after.metadata.get("configuration", {}).get("delta.appendOnly") != "true"
        info = {
            "timestamp": moment,
            "operation": "COPY",
            "operationParameters": {},
            "engineInfo": "bronze_assets",
            "isBlindAppend": False,
            "userMetadata": json.dumps(told, sort_keys=True),
        }
        actions: list[Action] = [{"commitInfo": info}]
        if before is None or before.protocol != after.protocol:
            actions.append({"protocol": after.protocol})
        if before is None or before.metadata != after.metadata:
            actions.append({"metaData": after.metadata})
        loads = {} if before is None else before.loads
        actions += [{"txn": load} for app, load in sorted(after.loads.items()) if loads.get(app) != load]
        for path in sorted(old.keys() - after.files.keys()):
            gone = {name: old[path][name] for name in ("path", "partitionValues", "size")}
            gone |= {"deletionTimestamp": moment, "dataChange": changes, "extendedFileMetadata": True}
            actions.append({"remove": gone})
        for path in sorted(after.files.keys() - old.keys()):
            actions.append({"add": after.files[path] | {"dataChange": True}})
        self.folder.put(name, "".join(f"{json.dumps(one)}\n" for one in actions).encode())
        return version

    def begin_at(self, state: State) -> None:
        """Forget all versions before that one. Killed in between, it is finished by doing it again."""
        rows: list[Action] = [{"protocol": state.protocol}, {"metaData": state.metadata}]
        rows += [{"txn": load} for load in state.loads.values()]
        rows += [{"add": add | {"dataChange": False}} for add in state.files.values()]
        content = io.BytesIO()
        pq.write_table(pa.Table.from_pylist(rows, schema=_CHECKPOINT_SCHEMA), content)
        names = self._names()
        whole = f"{state.version:020}.checkpoint.parquet"
        if whole not in names:
            self.folder.put(f"{LOG}/{whole}", content.getvalue())
            told = json.dumps({"version": state.version, "size": len(rows)}).encode()
            self.folder.put(f"{LOG}/_last_checkpoint", told)
        # The oldest first: whatever is left begins at a checkpoint or leads up to one.
        before = [
            name for name in names if (found := re.match(r"\.?(\d{20})\.", name)) and int(found[1]) < state.version
        ]
        self.folder.remove(f"{LOG}/{name}" for name in sorted(before))

    def files_since(self, state: State) -> set[str]:
        """The paths of the files that any version from that one on has."""
        paths = set(state.files)
        for version in self.versions():
            if version > state.version:
                paths |= {
                    action["add"]["path"] for action in _actions(self._read(f"{version:020}.json")) if "add" in action
                }
        return paths

    def _names(self) -> list[str]:
        return [path.removeprefix(f"{LOG}/") for path in self.folder.sizes(LOG)]

    def _read(self, name: str) -> bytes:
        with self.folder.open(f"{LOG}/{name}") as stream:
            return stream.read()


class _Building:
    """Actions, in order, and what has become of the table by them."""

    def __init__(self) -> None:
        self._files: dict[str, Action] = {}
        self._metadata: Action | None = None
        self._protocol: Action | None = None
        self._loads: dict[str, Action] = {}
        self._committed: int | None = None
        self._mark = ""

    def take_checkpoint(self, content: bytes) -> None:
        table = pq.read_table(io.BytesIO(content))
        for row in table.select([name for name in _CHECKPOINT_SCHEMA.names if name in table.column_names]).to_pylist():
            for kind, action in row.items():
                if action is not None:
                    self._take(kind, _plain(action))

    def commit(self, content: bytes) -> None:
        for action in _actions(content):
            for kind, told in action.items():
                self._take(kind, told)
        self.tell(content)

    def tell(self, content: bytes) -> None:
        """What the commit says of itself."""
        self._committed, self._mark = _told(content)

    def _take(self, kind: str, action: Action) -> None:
        match kind:
            case "add":
                if action.get("deletionVector"):
                    raise LakeError(
                        "a file has a deletion vector, which a copy does not carry.",
                        "run `REORG TABLE … APPLY (PURGE)` and set delta.enableDeletionVectors to false.",
                    )
                kept = {name: action[name] for name in _ADD if action.get(name) is not None}
                self._files[action["path"]] = {"partitionValues": {}} | kept
            case "remove":
                self._files.pop(action["path"], None)
            case "metaData":
                self._metadata = action
            case "protocol":
                self._protocol = action
            case "txn":
                self._loads[action["appId"]] = action

    def state(self, version: int, where: str) -> State:
        if self._metadata is None or self._protocol is None:
            raise LakeError(f"the log of {where} is not whole.", "restore the table from a copy.")
        features = {*self._protocol.get("readerFeatures", ()), *self._protocol.get("writerFeatures", ())}
        if unknown := sorted(features - _KNOWN):
            raise LakeError(
                f"{where} uses {', '.join(unknown)}, which a copy does not carry.",
                "drop the feature (`ALTER TABLE … DROP FEATURE`), or copy the table by other means.",
            )
        if outside := next((one for one in self._files if "://" in one or one.startswith("/")), None):
            raise LakeError(
                f"{where} has files outside of its folder, {outside!r} the first.",
                "rewrite the table: a shallow clone has no files of its own.",
            )
        return State(version, self._files, self._metadata, self._protocol, self._loads, self._committed, self._mark)


def _checkpoint(names: Sequence[str], most: int) -> tuple[int, list[str]]:
    """The latest whole checkpoint up to a version, and its files; -1 without one."""
    parts: dict[tuple[int, int], list[str]] = {}
    for name in names:
        if (found := _CHECKPOINT.fullmatch(name)) and int(found[1]) <= most:
            parts.setdefault((int(found[1]), int(found[3] or 1)), []).append(name)
    whole = [key for key, files in parts.items() if len(files) == key[1]]
    return (max(whole)[0], sorted(parts[max(whole)])) if whole else (-1, [])


def _actions(content: bytes) -> list[Action]:
    return [json.loads(line) for line in content.decode().splitlines() if line.strip()]


def _told(content: bytes) -> tuple[int | None, str]:
    info: Action = next((one["commitInfo"] for one in _actions(content) if "commitInfo" in one), {})
    return info.get("timestamp"), info.get("userMetadata") or ""


def _plain(value: Any) -> Any:
    """An action of a checkpoint as it is written in JSON: maps come as pairs there, and what is missing as None."""
    if isinstance(value, dict):
        return {name: dict(one) if name in _MAPS else _plain(one) for name, one in value.items() if one is not None}
    return value
