"""Copies of tables in a catalog: `DEEP CLONE` by Databricks, which copies by itself only the files that are not there.

The copy's own history says which version of the source each of its versions is. Never run against Databricks: what is
sent is tested, what it does there is not (docs/adr/0029).
"""

from __future__ import annotations

import datetime as dt
import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any, Final

from bronze_assets.access import TOMBSTONES
from bronze_assets.audit import safe_message
from bronze_assets.errors import BronzeError, CopyFailed, LakeError, SettingsError
from bronze_assets.lakehouse import PROPERTIES
from bronze_assets.operations.copies import Copied, Copies, Kind, Restored, Unit, chosen, erased_before, record, units
from bronze_assets.operations.forgetting import Forgetting
from bronze_assets.private_tables import PRIVATE as PRIVATE_PROPERTIES
from bronze_assets.spark_errors import SPARK_ERRORS, condition_of
from bronze_assets.table import BronzeTable
from bronze_assets.workbench import Workbench

logger = logging.getLogger(__name__)

_RETENTIONS: Final = ("delta.deletedFileRetentionDuration", "delta.logRetentionDuration")


@dataclass(frozen=True)
class _Version:
    """A version of a copy, and that of its source."""

    number: int
    source: int
    at: dt.datetime
    files: int
    bytes: int


class Clones:
    """One of the two copies of a catalog, in a catalog of its own.

    Args:
        bench: of the lake.
        tables: the declared ones.
        target: the catalog of the copies.
        run_id: for the evidence.
    """

    def __init__(
        self, bench: Workbench, tables: Sequence[BronzeTable], kind: Kind, target: str, *, run_id: str = ""
    ) -> None:
        self.kind = kind
        self.target = target
        self.units = units(tables, private=kind is Kind.COPY)
        self._bench = bench
        self._lake = bench.lake
        self._run_id = run_id
        self._forgetting = Forgetting(bench.lake, lambda: bench.session, lambda: bench.ring, bench.clock, run_id)

    def copy(self, names: Sequence[str] = ()) -> list[Copied]:
        """Clone each table's current version, and let go at the target what need not be kept. See `Copies.copy`.

        Raises:
            SettingsError, CopyFailed, LakeError
        """
        found: list[Copied] = []
        failed: list[BronzeError] = []
        for unit in chosen(self.units, names):
            if not self._lake.exists(unit.schema, unit.name):
                continue
            start = time.monotonic()
            try:
                copied = self._copied(unit, start)
            except BronzeError as error:
                failed.append(error)
                told: dict[str, Any] = {"verified": False, "error": safe_message(error)}
            else:
                found.append(copied)
                told = {name: getattr(copied, name) for name in ("source_version", "target_version", "files", "bytes")}
                told |= {"files_removed": copied.files_removed, "rows": copied.rows, "verified": True}
                logger.info("%s", copied.words)
            told |= {"at": self._bench.clock(), "kind": self.kind.value, "table_name": unit.name}
            told |= {"seconds": time.monotonic() - start, "run_id": self._run_id}
            record(self._lake, unit.schema, told)
        if failed:
            first = failed[0]
            more = f" {len(failed) - 1} more tables were not copied either." if len(failed) > 1 else ""
            raise type(first)(f"{first.culprit}{more}", first.fix, table=first.table)
        return found

    def verify_all(self, names: Sequence[str] = ()) -> list[str]:
        """Count the rows of each table's latest copy against its source; Databricks answers for the files."""
        found = []
        for unit in chosen(self.units, names):
            versions = self._versions(unit) if self._lake.storage.exists(self._place(unit)) else []
            if not versions:
                continue
            counts = self._rows(self._place(unit)), self._rows(self._source(unit), versions[-1].source)
            if counts[0] != counts[1]:
                found.append(f"{unit.name}: {counts[0]} rows of version {versions[-1].source}, which has {counts[1]}")
        return found

    def restore(
        self,
        name: str,
        *,
        version: int | None = None,
        timestamp: dt.datetime | None = None,
        into: str | None = None,
        only_show: bool = False,
    ) -> Restored:
        """Clone a copied version back. See `Copies.restore`.

        Raises:
            SettingsError, CopyFailed
        """
        (unit,), start = chosen(self.units, [name])[:1], time.monotonic()
        lost = not self._lake.exists(unit.schema, unit.name)
        into = into or (unit.name if lost else f"{unit.name}_recovered")
        if (unit.private and not lost) or self._lake.exists(unit.schema, into):
            raise SettingsError(
                f"there is a table {unit.schema}.{into if not unit.private else unit.name} already, which a copy never"
                " replaces.",
                "drop it, or restore into another name; keys are restored only where the lake has lost them.",
            )
        found = [
            one
            for one in self._versions(unit)
            if (version is None or one.source == version) and (timestamp is None or one.at <= timestamp)
        ]
        if not found:
            raise SettingsError(
                f"{unit.name}: the {self.kind} in {self.target} has no such version.", "name one that it has."
            )
        chosen_one = found[-1]
        shown = Restored(
            self.kind,
            unit.name,
            into,
            chosen_one.source,
            chosen_one.number,
            chosen_one.at,
            chosen_one.files,
            chosen_one.bytes,
            0,
            "",
            0,
            0.0,
            done=False,
        )
        if only_show:
            return shown
        personal = unit.private or (unit.declared is not None and unit.declared.has_personal_data)
        missing = self._forgetting.missing(unit.schema, unit.name) if personal else None
        if missing is not None and (missing != TOMBSTONES or self._lake.storage.exists(self._tombstones(unit))):
            raise SettingsError(
                f"{unit.name} holds personal data, and the lake has no {unit.schema}.{missing}.",
                f"restore {missing} first.",
            )
        hidden = self._lake.location(unit.schema, f"{into}_restoring")
        keep = PRIVATE_PROPERTIES if unit.private else PROPERTIES
        self._run(unit, f"drop table if exists {self._name(hidden)}")
        self._run(
            unit,
            clone(
                self._name(hidden), self._name(self._place(unit)), chosen_one.number, {k: keep[k] for k in _RETENTIONS}
            ),
        )
        rows, expected = self._rows(hidden), self._rows(self._place(unit), chosen_one.number)
        if rows != expected:
            raise CopyFailed(f"{rows} rows came back of {expected}.", "run it again.", table=unit.name)
        erased = 0
        if unit.declared is not None:
            erased = self._forgetting.blank(unit.declared, hidden, quarantine=unit.name != unit.declared.name)
        if erased:
            self._vacuum(unit, hidden, "interval 0 hours", keep[_RETENTIONS[0]])
        self._run(
            unit, f"alter table {self._name(hidden)} rename to {self._name(self._lake.location(unit.schema, into))}"
        )
        if unit.private:
            erased += self._forgetting.drop(unit.schema, unit.name)
        return replace(shown, rows=rows, erased=erased, seconds=time.monotonic() - start, done=True)

    def tried(self, unit: Unit) -> tuple[int, int, int, int]:
        """Clone the latest copy back and drop it again: version of the source, rows, files and bytes.

        Raises:
            CopyFailed, LakeError
        """
        versions = self._versions(unit) if self._lake.storage.exists(self._place(unit)) else []
        if not versions:
            raise LakeError(
                f"there is no {self.kind} of it in {self.target}.", "run the job that makes it.", table=unit.name
            )
        last = versions[-1]
        return last.source, *self._tried(unit, self._place(unit), last.number)

    def tried_time_travel(self, unit: Unit) -> tuple[int, int, int, int]:
        """The same of the table's version before the current one."""
        version = max(0, self._lake.version(unit.schema, unit.name) - 1)
        return version, *self._tried(unit, self._source(unit), version)

    def _tried(self, unit: Unit, source: str, version: int) -> tuple[int, int, int]:
        scratch = self._lake.location(unit.schema, f"{unit.name}_drill")
        self._run(unit, f"drop table if exists {self._name(scratch)}")
        try:
            self._run(unit, clone(self._name(scratch), self._name(source), version, {}))
            rows, expected = self._rows(scratch), self._rows(source, version)
            if rows != expected:
                raise CopyFailed(f"{rows} rows came back of {expected}.", "run it again.", table=unit.name)
            size = self._lake.storage.size(scratch)
            return rows, size.files, size.bytes
        finally:
            self._run(unit, f"drop table if exists {self._name(scratch)}")

    def _copied(self, unit: Unit, start: float) -> Copied:
        place, source = self._place(unit), self._source(unit)
        with ExitStack() as stack:
            if unit.private:
                stack.enter_context(self._lake.held(unit.schema))
            version = self._lake.version(unit.schema, unit.name)
            self._run(unit, f"create schema if not exists `{self.target}`.`{unit.schema}`")
            keep = f"interval {0 if unit.private else self.kind.keep.days} days"
            self._run(unit, clone(self._name(place), self._name(source), version, dict.fromkeys(_RETENTIONS, keep)))
            rows, expected = self._rows(place), self._rows(source, version)
        if rows != expected:
            raise CopyFailed(
                f"the copy in {self.target} has {rows} rows, and version {version} has {expected}.",
                "run the copy again.",
                table=unit.name,
            )
        last = self._versions(unit)[-1]
        removed = self._pruned(unit, keep)
        return Copied(
            self.kind,
            unit.name,
            version,
            last.number,
            last.files,
            last.bytes,
            removed,
            rows,
            "",
            time.monotonic() - start,
        )

    def _pruned(self, unit: Unit, keep: str) -> int:
        now = self._bench.clock()
        erased_at = erased_before(self._lake, unit, now)
        after = [] if erased_at is None else [one.at for one in self._versions(unit) if one.at >= erased_at]
        if not after:
            return self._lake.storage.vacuum(self._place(unit), self.kind.keep)
        hours = int((now - min(after)) / dt.timedelta(hours=1))
        return self._vacuum(unit, self._place(unit), f"interval {hours} hours", keep)

    def _vacuum(self, unit: Unit, place: str, retention: str, afterwards: str) -> int:
        """Vacuum with a shorter retention than the table's own, which VACUUM itself would refuse."""
        name, key = self._name(place), _RETENTIONS[0]
        self._run(unit, f"alter table {name} set tblproperties ('{key}' = '{retention}')")
        try:
            return self._lake.storage.vacuum(place, dt.timedelta(0))
        finally:
            self._run(unit, f"alter table {name} set tblproperties ('{key}' = '{afterwards}')")

    def _versions(self, unit: Unit) -> list[_Version]:
        """The versions of a copy that are clones, oldest first."""
        rows = self._run(unit, f"describe history {self._name(self._place(unit))}")
        return [
            _Version(
                int(row["version"]),
                int(row["operationParameters"]["sourceVersion"]),
                _utc(row["timestamp"]),
                int((row["operationMetrics"] or {}).get("numCopiedFiles", 0)),
                int((row["operationMetrics"] or {}).get("copiedFilesSize", 0)),
            )
            for row in reversed(rows)
            if row["operation"] == "CLONE"
        ]

    def _rows(self, place: str, version: int | None = None) -> int:
        at = "" if version is None else f" version as of {version}"
        with _told(place):
            return int(self._bench.session.sql(f"select count(*) as n from {self._name(place)}{at}").collect()[0]["n"])

    def _run(self, unit: Unit, statement: str) -> list[Any]:
        with _told(f"{self.target}, {unit.name}"):
            return list(self._bench.session.sql(statement).collect())

    def _place(self, unit: Unit) -> str:
        return f"{self.target}.{unit.schema}.{unit.name}"

    def _tombstones(self, unit: Unit) -> str:
        return f"{self.target}.{unit.schema}.{TOMBSTONES}"

    def _source(self, unit: Unit) -> str:
        return self._lake.location(unit.schema, unit.name)

    def _name(self, place: str) -> str:
        return self._lake.storage.identifier(place)


def clone(target: str, source: str, version: int, properties: Mapping[str, str]) -> str:
    """The statement that makes one table a deep clone of a version of another, by their names in SQL."""
    told = ", ".join(f"'{key}' = '{value}'" for key, value in properties.items())
    statement = f"create or replace table {target} deep clone {source} version as of {version}"
    return statement + (f" tblproperties ({told})" if told else "")


def copies_of(
    bench: Workbench,
    tables: Sequence[BronzeTable],
    kind: Kind,
    *,
    run_id: str = "",
    say: Callable[[str], None] = logger.debug,
) -> Copies | Clones:
    """One of the two copies of the lake of these settings. Opens nothing.

    Raises:
        SettingsError: no place for it is named.
    """
    settings = bench.settings
    target = settings.copies if kind is Kind.COPY else settings.cold
    if not target:
        variable, key = ("BRONZE_COPY", "copies") if kind is Kind.COPY else ("BRONZE_COLD", "cold")
        raise SettingsError(
            f"{variable} is not set, so the tables have no {kind}.",
            f"set {key} in the settings file, or {variable}, to a catalog of its own.",
        )
    if settings.in_catalog:
        return Clones(bench, tables, kind, target, run_id=run_id)
    return Copies(
        bench.lake,
        tables,
        kind,
        target,
        bench.clock,
        session=lambda: bench.session,
        ring=lambda: bench.ring,
        lease_seconds=settings.lease_seconds,
        run_id=run_id,
        say=say,
    )


def _utc(moment: dt.datetime) -> dt.datetime:
    return moment.astimezone(dt.UTC) if moment.tzinfo else moment.replace(tzinfo=dt.UTC)


@contextmanager
def _told(what: str) -> Iterator[None]:
    """What Databricks refuses is told by kind: its words may quote."""
    try:
        yield
    except SPARK_ERRORS as error:
        raise CopyFailed(
            f"Databricks refused ({what}: {condition_of(error) or type(error).__name__}).",
            "see that the catalogs are there, and that who runs this may use them and make tables there.",
        ) from None
