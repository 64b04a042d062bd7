"""The controls over what is stored: protected values, the archive, and the keys that open them."""

from __future__ import annotations

import datetime as dt
import json
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from bronze_assets.access import SUBJECT_KEYS, TOKEN_VAULT, schemas
from bronze_assets.lakehouse import Lakehouse
from bronze_assets.privacy.controls import Control, Controls, checked, listed
from bronze_assets.privacy.data_keys import DataKeys
from bronze_assets.privacy.detector import quoted
from bronze_assets.privacy.keys import KeyRing
from bronze_assets.quality import LINE
from bronze_assets.settings import Settings
from bronze_assets.sources.landing import LandingZone
from bronze_assets.table import RESCUED, BronzeTable, Pii

MOST_BEHIND: Final = 1
"""Versions of the master key that a person's key may be behind: one is a rotation under way, two were forgotten."""

# Of DataFusion, in full: a plain text may begin like a sealed one.
_FORMS = {Pii.HIGH: "^enc:[1-9][0-9]{0,4}:[st]:[A-Za-z0-9+/]+={0,2}$", Pii.MEDIUM: "^tok:[0-9a-f]{64}$"}
_SEALED = _FORMS[Pii.HIGH]


@dataclass(frozen=True)
class ClassifiedColumn:
    """A classified column and what is stored in it.

    Attributes:
        values: that are not NULL, in the table's current version.
        protected: how many of them are sealed (High) or tokens (Medium); None of a Low column, which is plain.
    """

    schema: str
    table: str
    column: str
    pii: str
    values: int
    protected: int | None


class ProtectionControls(Controls):
    """These controls, and the columns that they found.

    Attributes:
        columns: once `judged`.
    """

    def __init__(
        self,
        settings: Settings,
        lake: Lakehouse,
        tables: Sequence[BronzeTable],
        clock: Callable[[], dt.datetime],
        ring: Callable[[], KeyRing],
    ) -> None:
        super().__init__(settings, lake, tables, clock())
        self._clock = clock
        self._ring = ring
        self.columns: list[ClassifiedColumn] = []

    def judged(self) -> list[Control]:
        """The controls, by what is at stake: values that can be read now, then keys."""
        return [
            checked("stored_protected", "Every High and Medium value in the tables is protected", self._stored),
            checked("rescued_sealed", "Values under unknown names are sealed beside protected columns", self._rescued),
            checked("quarantine_sealed", "The quarantine holds no protected value in plain text", self._quarantined),
            checked("archive_encrypted", "The archive of protected tables holds no plain file", self._archived),
            checked("master_key", "The master key is here and is this lake's", self._master_key),
            checked("keys_current", "Keys are wrapped with a current version of the master key", self._keys_current),
            checked("private_tables", "Keys and vault keep no statistics, change feed or removed file", self._private),
        ]

    def _stored(self) -> tuple[str, str]:
        total, plain = 0, []
        for table in self.personal:
            names = self.names(table.schema, table.name)
            wanted = [c for c in table.columns if c.pii is not Pii.NONE and c.name in names]
            if not wanted:
                continue
            counts = []
            for number, c in enumerate(wanted):
                counts.append(f'count({quoted(c.name)}) as "n{number}"')
                form = _FORMS.get(c.pii)
                counts.append(f'{_count_of(_text(c.name), form)} as "p{number}"' if form else f'0 as "p{number}"')
            (row,) = self.lake.rows(table.schema, table.name, counts)
            for number, c in enumerate(wanted):
                values, protected = row[f"n{number}"], row[f"p{number}"] if c.pii.protected else None
                self.columns.append(ClassifiedColumn(table.schema, table.name, c.name, c.pii, values, protected))
                if protected is not None:
                    total += values
                    if protected < values:
                        plain.append(f"{table.name}.{c.name} ({values - protected:,} of {values:,} values)")
        if plain:
            return (
                f"Not protected: {listed(plain)}.",
                "they are from before values were protected: load the table again with `python -m bronze_assets load`"
                " into another BRONZE_LAKE, and remove the old one, whose earlier versions hold them too.",
            )
        return f"{total:,} values of the current versions are sealed or tokens.", ""

    def _rescued(self) -> tuple[str, str]:
        plain = []
        for table in self.protected:
            if RESCUED in self.names(table.schema, table.name):
                counted = [f"count({quoted(RESCUED)}) as n", f"{_count_of(_text(RESCUED), _SEALED)} as p"]
                (row,) = self.lake.rows(table.schema, table.name, counted)
                if row["p"] < row["n"]:
                    plain.append(f"{table.name} ({row['n'] - row['p']:,} rows)")
        if plain:
            return (
                f"{RESCUED} is readable in {listed(plain)}: a misspelt name brings a person's value there.",
                "let the producer correct the names and deliver the files again under their names: they replace those"
                " rows. Earlier versions hold them until they are vacuumed.",
            )
        return "No plain text lies there.", ""

    def _quarantined(self) -> tuple[str, str]:
        rows, plain = 0, Counter[str]()
        for table in self.protected:
            hidden = {c.name for c in table.columns if c.pii.protected}
            for row in self._quarantine_rows(table):
                rows += 1
                for name in _plain_names(row, hidden):
                    plain[f"{table.quarantine_name} ({name})"] += 1
        if plain:
            return (
                f"In plain text: {listed([f'{name}: {count:,} rows' for name, count in sorted(plain.items())])}.",
                "dismiss or replay the rows with `python -m bronze_assets quarantine`, or load the table anew; they are"
                " from before values were protected.",
            )
        return f"{rows:,} quarantined rows of protected tables hold sealed values only.", ""

    def _quarantine_rows(self, table: BronzeTable) -> Iterator[dict[str, Any]]:
        there = self.names(table.schema, table.quarantine_name)
        wanted = [name for name in ("raw_row", "rescued_data", "reasons") if name in there]
        if wanted:
            yield from self.lake.rows(table.schema, table.quarantine_name, wanted)

    def _archived(self) -> tuple[str, str]:
        zone = LandingZone(self.settings.landing, self.settings.archive)
        files, plain = 0, Counter[str]()
        for table in self.protected:
            if table.feed is None:
                continue
            for day in zone.archived_days(table.feed):
                for file in zone.archived(table.feed, day):
                    files += 1
                    plain[table.name] += not file.encrypted
        named = [f"{table}: {count:,}" for table, count in plain.items() if count]
        if named:
            return (
                f"Plain files: {listed(named)}.",
                "materialise those days of the table with `reload: true`: its files are archived again, encrypted."
                " Remove what is plain then: no load knows it.",
            )
        return f"{files:,} archived files, all encrypted.", ""

    def _held(self) -> dict[str, DataKeys]:
        """Schema → its keys, of the schemas that have some; asks for the master key only then."""
        there = [one for one in schemas(self.protected) if self.lake.exists(one, SUBJECT_KEYS)]
        if not there:
            return {}
        ring = self._ring()
        return {schema: DataKeys(self.lake, ring, schema, self._clock) for schema in there}

    def _master_key(self) -> tuple[str, str]:
        sealed = {one.schema for one in self.columns if one.protected}
        lost = [schema for schema in sorted(sealed) if not self.lake.exists(schema, SUBJECT_KEYS)]
        if lost:
            return (
                f"{', '.join(lost)} has protected values and no {SUBJECT_KEYS}: nobody can read them.",
                f"restore {SUBJECT_KEYS} and {TOKEN_VAULT} from the last backup, and erase again who was erased since.",
            )
        held = self._held()
        for one in held.values():
            one.check()
        return f"It opens the keys of {', '.join(held)}." if held else "There are no keys to open yet.", ""

    def _keys_current(self) -> tuple[str, str]:
        held = self._held()
        if not held:
            return "There are no keys yet.", ""
        versions = self._ring().versions
        older, late, lost = 0, 0, 0
        for one in held.values():
            for version, count in one.versions().items():
                behind = sum(known > version for known in versions)
                older += count * (behind > 0)
                late += count * (behind > MOST_BEHIND)
                lost += count * (version not in versions)
        if lost:
            return (
                f"{lost:,} keys are wrapped with a version of the master key that is not here.",
                "bring the version back to where BRONZE_MASTER_KEY points; then `python -m bronze_assets rotate-keys`.",
            )
        if late:
            return (
                f"{late:,} keys are more than {MOST_BEHIND} version behind the current one, version {versions[-1]}.",
                "run `python -m bronze_assets rotate-keys`.",
            )
        still = f"{older:,} keys are still under the one before" if older else "it wraps all keys"
        return f"Version {versions[-1]} is current; {still}.", ""

    def _private(self) -> tuple[str, str]:
        wrong, there = [], 0
        for schema in schemas(self.protected):
            for name in (SUBJECT_KEYS, TOKEN_VAULT):
                if (table := self.described(schema, name)) is None:
                    continue
                there += 1
                told = table.properties
                faults = []
                if table.retention:
                    faults.append("keeps removed files")
                if told.get("delta.enableChangeDataFeed", "false") != "false":
                    faults.append("has a change feed")
                if table.statistics:
                    faults.append("has statistics")
                if faults:
                    wrong.append(f"{schema}.{name} {' and '.join(faults)}")
        if wrong:
            return (
                f"{listed(wrong)}.",
                "set its properties back: delta.deletedFileRetentionDuration = 'interval 0 hours',"
                " delta.enableChangeDataFeed = 'false', delta.dataSkippingNumIndexedCols = '0'; then"
                " `python -m bronze_assets rotate-keys` writes the keys' files anew.",
            )
        return f"{there} tables of keys and tokens are kept as they are to be.", ""


def _plain_names(row: Mapping[str, Any], hidden: set[str]) -> set[str]:
    """Which of the hidden columns, `_line`, `_rescued_data` and `raw_row` itself stand in plain text in a row."""
    plain = {
        reason["column"]
        for reason in row.get("reasons") or ()
        if reason["column"] in {*hidden, LINE} and reason["found"] is not None
    }
    if not _is_sealed(row.get("rescued_data")):
        plain.add(RESCUED)
    if row.get("raw_row") is not None:
        try:
            values = json.loads(row["raw_row"])
        except ValueError:
            values = None
        if isinstance(values, dict):
            plain |= {name for name in {*hidden, LINE} & set(values) if not _is_sealed(values[name])}
        else:
            plain.add("raw_row")
    return plain


def _is_sealed(value: object) -> bool:
    return value is None or (isinstance(value, str) and re.fullmatch(_SEALED, value) is not None)


def _text(name: str) -> str:
    return f"cast({quoted(name)} as varchar)"


def _count_of(text: str, form: str) -> str:
    return f"count(case when {text} ~ '{form}' then 1 end)"
