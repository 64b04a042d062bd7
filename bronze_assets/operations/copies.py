"""Copies of the lake's tables: daily in another region for 90 days, weekly in a cold archive for seven years.

One copier for both. Below `<target>/<schema>/<table>` lies a Delta table whose files are the source's, byte for byte,
and whose commits are ours, one for each version that was copied (docs/adr/0029). Files first, the commit last: a reader
never sees a version whose files are not all there, and whatever a killed copy has left is finished by the next one.

What does not belong here: tables of a catalog, which Databricks copies itself (`clones`).
"""

from __future__ import annotations

import contextlib
import datetime as dt
import enum
import hashlib
import json
import logging
import shutil
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Final

import pyarrow as pa
from pyspark.sql import SparkSession

from bronze_assets.access import CONTROLS, COPY_LOG, ERASURE_LOG, SUBJECT_KEYS, TOKEN_VAULT, TOMBSTONES
from bronze_assets.audit import safe_message
from bronze_assets.control_tables import ControlTables
from bronze_assets.errors import BronzeError, CopyFailed, LakeError, SettingsError
from bronze_assets.lakehouse import Lakehouse
from bronze_assets.leases import LEASES, lease
from bronze_assets.operations.delta_log import HASH, LOG, Action, DeltaLog, Folder, State, name_of, records
from bronze_assets.operations.forgetting import Forgetting, unavailable
from bronze_assets.operations.transfer import Brought, bring
from bronze_assets.privacy.keys import KeyRing
from bronze_assets.storage import sql_literal
from bronze_assets.table import BronzeTable, Pii

logger = logging.getLogger(__name__)

PRIVATE: Final = frozenset({SUBJECT_KEYS, TOKEN_VAULT})
"""Tables that are never archived, and of which a copy keeps nothing but the current version."""
_NO_SESSION: Final = unavailable("Spark session")
_NO_KEY: Final = unavailable("master key")
_OWN: Final = "_bronze"
_DAMAGED: Final = f"{_OWN}/damaged.json"
_TIME = pa.timestamp("us", tz="UTC")
_LOG = pa.schema(
    [
        ("at", _TIME),
        ("kind", pa.string()),
        ("table_name", pa.string()),
        ("source_version", pa.int64()),
        ("target_version", pa.int64()),
        ("files", pa.int64()),
        ("bytes", pa.int64()),
        ("files_removed", pa.int64()),
        ("rows", pa.int64()),
        ("seconds", pa.float64()),
        ("verified", pa.bool_()),
        ("error", pa.string()),
        ("run_id", pa.string()),
    ]
)


class Kind(enum.StrEnum):
    """Which of the two copies."""

    COPY = "copy"
    ARCHIVE = "archive"

    @property
    def keep(self) -> dt.timedelta:
        """For how long every version that was copied can be restored."""
        return {"copy": dt.timedelta(days=90), "archive": dt.timedelta(days=7 * 365 + 2)}[self.value]


@dataclass(frozen=True)
class Unit:
    """A table to copy.

    Attributes:
        declared: the bronze table that it is or whose quarantine it is; None for a control table.
    """

    schema: str
    name: str
    declared: BronzeTable | None = None

    @property
    def private(self) -> bool:
        """Whether nothing that was removed from it may stay."""
        return self.name in PRIVATE

    @property
    def plain(self) -> bool:
        """Whether it holds personal data that no key protects."""
        return self.declared is not None and any(c.pii is Pii.LOW for c in self.declared.columns)

    def __str__(self) -> str:
        return f"{self.schema}.{self.name}"


@dataclass(frozen=True)
class Copied:
    """What one copy of one table did.

    Attributes:
        files, bytes: that were copied, and those only.
        files_removed: that no version needs any more which is to be kept.
        rows: of the version.
        content: SHA-256 of the version's files: of their names, sizes and SHA-256.
    """

    kind: str
    table: str
    source_version: int
    target_version: int
    files: int
    bytes: int
    files_removed: int
    rows: int
    content: str
    seconds: float

    @property
    def words(self) -> str:
        """One line for people."""
        return (
            f"{self.table}: version {self.source_version} is there ({self.rows} rows); {self.files} files and"
            f" {self.bytes} bytes copied, {self.files_removed} files removed, {self.seconds:.1f} s."
        )


@dataclass(frozen=True)
class Verified:
    """What a look at every file of a copied version found.

    Attributes:
        damaged: file → what is wrong with it.
        same: whether the source's version still has the same content; None if the lake has not got it any more.
    """

    table: str
    source_version: int
    target_version: int
    files: int
    bytes: int
    rows: int
    content: str
    damaged: Mapping[str, str]
    same: bool | None

    @property
    def passed(self) -> bool:
        """Whether the copy is whole and equal to its source."""
        return not self.damaged and self.same is not False


@dataclass(frozen=True)
class Restored:
    """What was restored, or would be.

    Attributes:
        into: the table's new name, or its own where the lake had lost it.
        source_version: of the table when it was copied.
        copied_at: when that was read.
        erased: rows that were blanked or removed, because their subject has been forgotten.
        done: whether it was; else only shown.
    """

    kind: str
    table: str
    into: str
    source_version: int
    target_version: int
    copied_at: dt.datetime
    files: int
    bytes: int
    rows: int
    content: str
    erased: int
    seconds: float
    done: bool

    @property
    def words(self) -> str:
        """One line for people."""
        what = f"{self.table} of version {self.source_version}, copied {self.copied_at:%F %H:%M} UTC"
        if not self.done:
            return f"{what}: {self.files} files and {self.bytes} bytes would be restored as {self.into}."
        return (
            f"{what}: restored as {self.into}, {self.rows} rows, {self.files} files, {self.bytes} bytes in"
            f" {self.seconds:.1f} s; {self.erased} rows of forgotten subjects blanked."
        )


def units(tables: Sequence[BronzeTable], *, private: bool = True) -> list[Unit]:
    """What is copied, in this order: bronze tables, quarantines, control tables, and at last what is private, so that
    a copy has the keys of all rows that it has. Leases say who is at work, and are of no use later.
    """
    found = [Unit(table.schema, table.name, table) for table in tables]
    found += [Unit(table.schema, table.quarantine_name, table) for table in tables]
    controls = [one.name for one in CONTROLS if one.name != LEASES]
    controls.sort(key=lambda name: name in PRIVATE)
    schemas = dict.fromkeys(table.schema for table in tables)
    found += [Unit(schema, name) for schema in schemas for name in controls if private or name not in PRIVATE]
    return found


def chosen(known: Sequence[Unit], names: Sequence[str]) -> list[Unit]:
    """Those of the units that are named, as `<table>` or `<schema>.<table>`; all without names.

    Raises:
        SettingsError: there is none of that name; the known ones are told.
    """
    for name in names:
        if not any(name in (unit.name, str(unit)) for unit in known):
            listed = ", ".join(sorted({unit.name for unit in known}))
            raise SettingsError(f"there is no table {name!r} to copy or restore.", f"name one of {listed}.")
    return [unit for unit in known if not names or unit.name in names or str(unit) in names]


class Copies:
    """One of the two copies of a lake in a folder.

    Args:
        lake: whose tables they are.
        tables: the declared ones.
        target: a folder, or a URL of fsspec.
        clock: gives the present moment, in UTC.
        session: gives a Spark session; asked when rows of forgotten subjects are to be blanked.
        ring: gives the master key; asked likewise.
        lease_seconds: silence after which another copier counts as dead.
        run_id: for the evidence.
        say: is told of each file.
    """

    def __init__(
        self,
        lake: Lakehouse,
        tables: Sequence[BronzeTable],
        kind: Kind,
        target: str,
        clock: Callable[[], dt.datetime],
        *,
        session: Callable[[], SparkSession] = _NO_SESSION,
        ring: Callable[[], KeyRing] = _NO_KEY,
        lease_seconds: float = 60,
        run_id: str = "",
        say: Callable[[str], None] = logger.debug,
    ) -> None:
        self.kind = kind
        self.target = target
        self.units = units(tables, private=kind is Kind.COPY)
        self._lake = lake
        self._clock = clock
        self._forgetting = Forgetting(lake, session, ring, clock, run_id)
        self._lease_seconds = lease_seconds
        self._run_id = run_id
        self._say = say

    def copy(self, names: Sequence[str] = ()) -> list[Copied]:
        """Bring each table's current version to the target, and prune there; evidence is in `bz_copy_log`.

        A table that was never made is passed over.

        Raises:
            SettingsError: a name is unknown.
            CopyFailed, LakeError, TableBusy: a table was not copied, the first of them; the others were.
        """
        found: list[Copied] = []
        failed: list[BronzeError] = []
        for unit in chosen(self.units, names):
            try:
                copied = self.copy_table(unit)
            except BronzeError as error:
                failed.append(error)
                continue
            if copied is not None:
                found.append(copied)
                logger.info("%s", copied.words)
        if failed:
            first = failed[0]
            more = f" {len(failed) - 1} more tables were not copied either." if len(failed) > 1 else ""
            raise type(first)(f"{first.culprit}{more}", first.fix, table=first.table)
        return found

    def copy_table(self, unit: Unit) -> Copied | None:
        """Bring one table's current version to the target; None if neither lake nor target have it.

        Raises:
            CopyFailed, LakeError, TableBusy
        """
        start = time.monotonic()
        try:
            copied = self._copied_alone(unit, start)
        except Exception as error:
            failed = {"verified": False, "error": safe_message(error), "seconds": time.monotonic() - start}
            self._record(unit, self.kind, failed)
            raise
        if copied is not None:
            done = {name: getattr(copied, name) for name in _LOG.names if hasattr(copied, name)}
            self._record(unit, self.kind, done | {"verified": True})
        return copied

    def _copied_alone(self, unit: Unit, start: float) -> Copied | None:
        if self._lake.exists(unit.schema, unit.name):
            with lease(self._lake, unit.schema, f"{self.kind} of {unit.name}", self._run_id, self._lease_seconds):
                return self._copied(unit, start)
        with self._reached(unit):
            there = self._log(unit).versions()
        if not there:
            return None
        raise LakeError(
            "the lake has lost it; its copies stay as they are.",
            f"restore it (job restore_from_copy, source {self.kind}).",
            table=unit.name,
        )

    def verify_all(self, names: Sequence[str] = ()) -> list[str]:
        """Verify the latest copy of each table; a line for each that is not whole or not equal to its source."""
        found = []
        for unit in chosen(self.units, names):
            if self.latest(str(unit)) is None:
                continue
            one = self.verify(str(unit))
            if not one.passed:
                what = next((f"{file} ({why})" for file, why in one.damaged.items()), "it differs from the lake")
                found.append(
                    f"{unit.name}: {len(one.damaged)} files of version {one.source_version} are damaged: {what}"
                )
                logger.warning("%s", found[-1])
        return found

    def verify(self, name: str, version: int | None = None) -> Verified:
        """Read every file of a copied version, and compare it with what was copied and with the lake.

        A damaged file is noted at the target: the next copy replaces it if the lake still has it.

        Args:
            name: of the table.
            version: of the source; the latest that was copied by default.

        Raises:
            SettingsError, CopyFailed
        """
        unit = self._unit(name)
        log = self._log(unit)
        with self._reached(unit):
            target_version, told = self._find(unit, log, version, None)
            state = log.state(target_version)
            assert state is not None
            sizes = log.folder.sizes()
            damaged, hashes, rows = {}, {}, 0
            for path, add in state.files.items():
                file = name_of(path)
                if file not in sizes:
                    damaged[file] = "it is missing"
                    continue
                size, hashes[path] = log.folder.digest(file)
                if (size, hashes[path]) != (add["size"], add["tags"][HASH]):
                    damaged[file] = f"its {size} bytes are not the {add['size']} that were copied"
                else:
                    rows += log.folder.rows(file)
            if damaged:
                known = self._noted(log.folder)
                log.folder.put(_DAMAGED, json.dumps(sorted({*known, *damaged})).encode())
        if not damaged and rows != told["rows"]:
            damaged[LOG] = f"there are {rows} rows, and {told['rows']} were copied"
        here = self._in_lake(unit, int(told["source_version"]))
        return Verified(
            unit.name,
            int(told["source_version"]),
            target_version,
            len(state.files),
            state.bytes,
            rows,
            told["content"],
            damaged,
            None if here is None else here == told["content"],
        )

    def restore(
        self,
        name: str,
        *,
        version: int | None = None,
        timestamp: dt.datetime | None = None,
        into: str | None = None,
        only_show: bool = False,
    ) -> Restored:
        """Bring a copied version back, beside the table or, where the lake has lost it, in its place.

        It gets its name when it is whole, verified, and rows of forgotten subjects are blanked. Killed before, it is
        done again, and takes what is there already.

        Args:
            name: of the table.
            version: of the source when it was copied.
            timestamp: the latest copy of what the table was then; the latest of all by default.
            into: another name for the restored table; `<table>_recovered` or the table's own by default.
            only_show: say what would be done.

        Raises:
            SettingsError: a name is unknown, or there is no such version or a table of that name.
            CopyFailed: the copy cannot be reached or is damaged; nothing was restored.
        """
        unit, start = self._unit(name), time.monotonic()
        lost = not self._lake.exists(unit.schema, unit.name)
        into = into or (unit.name if lost else f"{unit.name}_recovered")
        self._check_name(unit, into, lost=lost)
        log = self._log(unit)
        with self._reached(unit):
            target_version, told = self._find(unit, log, version, timestamp)
            state = log.state(target_version)
        assert state is not None
        shown = Restored(
            self.kind,
            unit.name,
            into,
            int(told["source_version"]),
            target_version,
            dt.datetime.fromisoformat(told["read_at"]),
            len(state.files),
            state.bytes,
            int(told["rows"]),
            told["content"],
            0,
            0.0,
            done=False,
        )
        if only_show:
            return shown
        self._check_erasable(unit)
        place = Path(self._lake.location(unit.schema, into))
        hidden = place.with_name(f".restoring_{into}")
        if place.exists():
            raise LakeError(f"there are files in {place}, which is no table.", "move them away.", table=unit.name)
        with lease(self._lake, unit.schema, f"restore {into}", self._run_id, self._lease_seconds):
            self.materialise(unit, state, told, hidden, fresh_id=into != unit.name)
            erased = self._forgotten(unit, hidden)
            hidden.rename(place)
            if unit.private:
                erased += self._forgetting.drop(unit.schema, unit.name)
        done = replace(shown, erased=erased, seconds=time.monotonic() - start, done=True)
        evidence = {name: getattr(done, name) for name in _LOG.names if hasattr(done, name)}
        self._record(unit, f"restore from {self.kind}", evidence | {"verified": True})
        logger.info("%s", done.words)
        return done

    def latest(self, name: str) -> tuple[Unit, State, dict[str, Any]] | None:
        """The latest copied version of a table, and what its commit tells; None if there is none."""
        unit = self._unit(name)
        log = self._log(unit)
        with self._reached(unit):
            if not log.versions():
                return None
            target_version, told = self._find(unit, log, None, None)
            state = log.state(target_version)
        assert state is not None
        return unit, state, told

    def materialise(
        self, unit: Unit, state: State, told: Mapping[str, Any], place: Path, *, fresh_id: bool = True
    ) -> None:
        """Make a Delta table of a copied version in a folder, verified by counts and hashes.

        Raises:
            CopyFailed: the copy cannot be reached or is damaged.
        """
        here, there = Folder(str(place)), self._log(unit).folder
        sizes = here.sizes()
        here.remove(name for name in sizes if name.startswith(f"{LOG}/"))
        wanted = {name_of(path): path for path in state.files}
        here.remove(name for name in sizes if not name.startswith(f"{LOG}/") and name not in wanted)
        hashes = {path: add["tags"][HASH] for path, add in state.files.items()}
        left = {name: sizes[name] for name in wanted if name in sizes}
        found = self._brought(unit, there, here, state.files, left, hashes)
        rows = sum(one.rows for one in found.values())
        if rows != told["rows"]:
            raise CopyFailed(
                f"{there.url} has {rows} rows in version {told['source_version']}, and {told['rows']} were copied.",
                f"restore another version, or from {'the archive' if self.kind is Kind.COPY else 'the copy'}.",
                table=unit.name,
            )
        files = {path: _untagged(add) for path, add in state.files.items()}
        metadata = state.metadata | ({"id": str(uuid.uuid4())} if fresh_id else {})
        whole = replace(state, files=files, metadata=metadata)
        origin = {"restored_from": self.kind, "source_version": told["source_version"]}
        DeltaLog(here).commit(None, whole, origin, moment=_millis(self._clock()))

    def _copied(self, unit: Unit, start: float) -> Copied:
        source = DeltaLog(Folder(self._lake.location(unit.schema, unit.name)))
        with contextlib.ExitStack() as stack:
            if unit.private:
                # Whoever drops a key removes its file at once.
                stack.enter_context(self._lake.held(unit.schema))
            # Before the state is read, so that what was done until then is in it.
            read_at = self._clock()
            state = source.state()
            assert state is not None
            log = self._log(unit)
            with self._reached(unit):
                before = log.state()
                told = None if before is None else self._told(unit, before.mark)
                sizes, damaged = log.folder.sizes(), self._noted(log.folder)
            known = {} if before is None else {path: add["tags"][HASH] for path, add in before.files.items()}
            there = {
                path: known[path]
                for path, add in state.files.items()
                if path in known and sizes.get(name_of(path)) == add["size"] and name_of(path) not in damaged
            }
            missing = {path: add for path, add in state.files.items() if path not in there}
            unsure = {name_of(path): sizes[name_of(path)] for path in missing if name_of(path) in sizes}
            found = self._brought(unit, source.folder, log.folder, missing, unsure, known)
        hashes = there | {path: one.hash for path, one in found.items()}
        with self._reached(unit):
            files = {
                path: add | {"tags": add.get("tags", {}) | {HASH: hashes[path]}} for path, add in state.files.items()
            }
            rows = 0
            for path, add in files.items():
                counted = found[path].rows if path in found else records(add)
                rows += log.folder.rows(name_of(path)) if counted is None else counted
            after = replace(state, files=files)
            if damaged:
                log.folder.remove([_DAMAGED])
            if (
                before is None
                or told is None
                or told["source_version"] != state.version
                or files.keys() != known.keys()
            ):
                moment = state.committed or _millis(read_at)
                words = {
                    "kind": self.kind.value,
                    "source_version": state.version,
                    "source_time": dt.datetime.fromtimestamp(moment / 1000, dt.UTC).isoformat(),
                    "read_at": read_at.isoformat(),
                    "rows": rows,
                    "content": content(after),
                }
                version = log.commit(before, after, words, moment=_millis(read_at))
            else:
                version = before.version
            removed = self._pruned(unit, log)
        return Copied(
            self.kind,
            unit.name,
            state.version,
            version,
            sum(one.copied is not None for one in found.values()),
            sum(one.copied or 0 for one in found.values()),
            removed,
            rows,
            content(after),
            time.monotonic() - start,
        )

    def _pruned(self, unit: Unit, log: DeltaLog) -> int:
        """Remove versions that need not be kept, and files that no version has; after a copy, so that the latest
        version is the present one.
        """
        now = self._clock()
        read = {version: _read_at(self._told(unit, mark)) for version, (_, mark) in log.marks().items()}
        latest = max(read)
        if unit.private:
            first = latest
        else:
            # What was copied last before that is what the table was then.
            older = [version for version, moment in read.items() if moment <= now - self.kind.keep]
            first = max(older, default=min(read))
            erased_at = erased_before(self._lake, unit, now)
            if erased_at is not None:
                first = max(first, min((v for v, moment in read.items() if moment >= erased_at), default=latest))
        state = log.state(first)
        assert state is not None
        if first > min(read):
            log.begin_at(state)
        kept = {name_of(path) for path in log.files_since(state)}
        gone = [
            name for name in log.folder.sizes() if name not in kept and not name.startswith((f"{LOG}/", f"{_OWN}/"))
        ]
        log.folder.remove(gone)
        return len(gone)

    def _brought(
        self,
        unit: Unit,
        source: Folder,
        target: Folder,
        files: Mapping[str, Action],
        there: Mapping[str, int],
        expected: Mapping[str, str],
    ) -> dict[str, Brought]:
        reached = partial(self._reached, unit)
        return bring(unit.name, files, source, target, there, expected, reached=reached, say=self._say)

    @contextlib.contextmanager
    def _reached(self, unit: Unit, place: str | None = None) -> Iterator[None]:
        """What the copy's storage raises is told with the target and the table."""
        try:
            yield
        except BronzeError:
            raise
        except Exception as error:  # fsspec raises what the storage behind a URI raises
            kind = type(error).__name__
        else:
            return
        raise CopyFailed(
            f"{place or f'{self.target}/{unit.schema}/{unit.name}'} of the {self.kind} at {self.target} cannot be"
            f" reached ({kind}). The lake is untouched, and what was copied before is whole.",
            f"see that {'BRONZE_COPY' if self.kind is Kind.COPY else 'BRONZE_COLD'} names a place that answers and has"
            " room, then run the job again: it goes on where it was.",
            table=unit.name,
        )

    def _log(self, unit: Unit) -> DeltaLog:
        return DeltaLog(Folder(f"{self.target}/{unit.schema}/{unit.name}"))

    def _unit(self, name: str) -> Unit:
        found = chosen(self.units, [name])
        if len(found) > 1:
            raise SettingsError(
                f"{name!r} is in several schemas.", f"name one of {', '.join(str(unit) for unit in found)}."
            )
        return found[0]

    def _told(self, unit: Unit, mark: str) -> dict[str, Any]:
        with contextlib.suppress(ValueError):
            told = json.loads(mark)
            if isinstance(told, dict) and {"source_version", "read_at", "rows", "content"} <= told.keys():
                return told
        raise CopyFailed(
            f"{self.target}/{unit.schema}/{unit.name} holds versions that no copy has written.",
            "move that table away, or name another place.",
            table=unit.name,
        )

    def _find(
        self, unit: Unit, log: DeltaLog, version: int | None, timestamp: dt.datetime | None
    ) -> tuple[int, dict[str, Any]]:
        """The copied version that is asked for, and what its commit tells."""
        found = {number: self._told(unit, mark) for number, (_, mark) in log.marks().items()}
        wanted = [
            number
            for number, told in found.items()
            if (version is None or told["source_version"] == version)
            and (timestamp is None or dt.datetime.fromisoformat(told["source_time"]) <= timestamp)
        ]
        if not wanted:
            listed = ", ".join(f"{one['source_version']} ({one['source_time'][:16]})" for one in found.values())
            asked = f"of version {version}" if version is not None else f"of {timestamp}" if timestamp else ""
            raise SettingsError(
                f"{unit.name}: the {self.kind} at {self.target} has nothing {asked}".rstrip() + ".",
                f"name one of the versions {listed}." if listed else "run the job that copies it first.",
            )
        return max(wanted), found[max(wanted)]

    def _noted(self, folder: Folder) -> set[str]:
        """Files that were found damaged."""
        if not folder.fs.exists(folder.at(_DAMAGED)):
            return set()
        with folder.open(_DAMAGED) as stream:
            return set(json.loads(stream.read()))

    def _in_lake(self, unit: Unit, version: int) -> str | None:
        """The content of a version as the lake has it, read in full; None if it has not got it any more."""
        if not self._lake.exists(unit.schema, unit.name):
            return None
        with contextlib.suppress(LakeError, OSError):
            return content_of(Folder(self._lake.location(unit.schema, unit.name)), version)
        return None

    def _check_name(self, unit: Unit, into: str, *, lost: bool) -> None:
        if unit.private and not lost:
            raise SettingsError(
                f"{unit.name} is in the lake, and keys are never restored beside or over it: that would bring back what"
                " erasures removed.",
                "restore it only where the lake has lost it.",
            )
        if (not lost and into == unit.name) or self._lake.exists(unit.schema, into):
            raise SettingsError(
                f"there is a table {unit.schema}.{into} already, which a copy never replaces.",
                "drop it, or restore into another name.",
            )
        if not into.isidentifier():
            raise SettingsError(f"{into!r} is no name of a table.", "use letters, digits and underscores.")

    def _check_erasable(self, unit: Unit) -> None:
        """Raise unless it can be told who has been forgotten."""
        if not (unit.private or (unit.declared is not None and unit.declared.has_personal_data)):
            return
        missing = self._forgetting.missing(unit.schema, unit.name)
        if missing == TOMBSTONES:
            with self._reached(unit):
                # Nobody has been forgotten where there never were any.
                missing = TOMBSTONES if self._log(Unit(unit.schema, TOMBSTONES)).versions() else None
        if missing is not None:
            raise SettingsError(
                f"{unit.name} holds personal data, and the lake has no {unit.schema}.{missing}, by which to tell who"
                " has been forgotten.",
                f"restore {TOMBSTONES} first, then {SUBJECT_KEYS} (from the copy), then this table.",
            )

    def _forgotten(self, unit: Unit, place: Path) -> int:
        """Blank the rows of forgotten subjects in a table that is being restored, and leave no file of before."""
        if unit.declared is None:
            return 0
        found = self._forgetting.blank(unit.declared, str(place), quarantine=unit.name != unit.declared.name)
        if found:
            _collapse(place, _millis(self._clock()))
        return found

    def _record(self, unit: Unit, kind: str, evidence: Mapping[str, Any]) -> None:
        row = {"at": self._clock(), "run_id": self._run_id} | dict(evidence)
        row |= {"kind": kind, "table_name": unit.name}
        record(self._lake, unit.schema, row)


def erased_before(lake: ControlTables, unit: Unit, now: dt.datetime) -> dt.datetime | None:
    """When the last erasure was done whose time has come, of a table whose files of before hold what no key protects;
    None if there was none.
    """
    if not unit.plain or unit.declared is None:
        return None
    mine = f"table_name = {sql_literal(unit.declared.name)} and event = 'done'"
    rows = lake.rows(unit.schema, ERASURE_LOG, ["at", "until"], mine)
    return max((row["at"] for row in rows if row["until"] is not None and row["until"] <= now), default=None)


def record(lake: ControlTables, schema: str, row: Mapping[str, Any]) -> None:
    """Append evidence of a copy or a restore to the schema's `bz_copy_log`."""
    lake.append_rows(schema, COPY_LOG, _LOG, [dict.fromkeys(_LOG.names) | dict(row)])


def content(state: State) -> str:
    """SHA-256 of a copied version's files: of their names, sizes and SHA-256."""
    return _content({path: (add["size"], add["tags"][HASH]) for path, add in state.files.items()})


def content_of(folder: Folder, version: int | None = None) -> str:
    """The same of any table, of which every file is read.

    Raises:
        LakeError: there is no such version.
        OSError: a file is gone.
    """
    state = DeltaLog(folder).state(version)
    if state is None:
        raise LakeError(f"there is no table at {folder.url}.", "name a table.")
    return _content({path: folder.digest(name_of(path)) for path in state.files})


def _content(files: Mapping[str, tuple[int, str]]) -> str:
    lines = sorted(f"{name_of(path)}\t{size}\t{hash_}\n" for path, (size, hash_) in files.items())
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def _collapse(place: Path, moment: int) -> None:
    """Leave a table's current version alone: no file and no commit of before."""
    folder = Folder(str(place))
    log = DeltaLog(folder)
    state = log.state()
    assert state is not None
    kept = {name_of(path) for path in state.files}
    shutil.rmtree(place / LOG)
    log.commit(None, state, {"restored": True}, moment=moment)
    folder.remove(name for name in folder.sizes() if not name.startswith(f"{LOG}/") and name not in kept)


def _untagged(add: Action) -> Action:
    tags = {name: value for name, value in add.get("tags", {}).items() if name != HASH}
    return {name: value for name, value in add.items() if name != "tags"} | ({"tags": tags} if tags else {})


def _read_at(told: Mapping[str, Any]) -> dt.datetime:
    return dt.datetime.fromisoformat(told["read_at"])


def _millis(moment: dt.datetime) -> int:
    return int(moment.timestamp() * 1000)
