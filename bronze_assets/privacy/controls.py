"""The controls over personal data: what is to hold in lake, archive and logs, judged on what lies there.

Read without Spark. What they say names tables, columns, counts and ids of evidence, and never a value, a key or a row.
"""

from __future__ import annotations

import datetime as dt
import json
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import pyarrow as pa
import pyspark.sql.types as T
from deltalake import DeltaTable

from bronze_assets.access import ACCESS_LOG, ERASURE_LOG, GRANT_CHECKS, SUBJECT_KEYS, TOKEN_VAULT, schemas
from bronze_assets.access_evidence import BY_SQL
from bronze_assets.audit import AUDIT_LOG
from bronze_assets.errors import BronzeError
from bronze_assets.lakehouse import OPEN, Lakehouse
from bronze_assets.privacy.access_log import Outcome
from bronze_assets.privacy.data_keys import DataKeys
from bronze_assets.privacy.detector import Suspect, Unclassified, quoted, suspects, unclassified
from bronze_assets.privacy.evidence import Difference, last_checks
from bronze_assets.privacy.keys import KeyRing
from bronze_assets.quality import LINE
from bronze_assets.settings import Settings
from bronze_assets.sources.landing import LandingZone
from bronze_assets.table import RESCUED, BronzeTable, Pii

MOST_BEHIND: Final = 1
"""Versions of the master key that a person's key may be behind: one is a rotation under way, two were forgotten."""
QUARANTINE_DAYS: Final = 30
"""Days that a row with personal data may wait in quarantine: as long as removed files are kept for time travel."""
ERASURE_HOURS: Final = 24
"""Hours after which an erasure that has begun and not ended counts as killed, and not as at work."""
GRANT_DAYS: Final = 7
"""Days after which a comparison of the grants says nothing of those of now."""

# Of DataFusion, in full: a plain text may begin like a sealed one.
_FORMS = {Pii.HIGH: "^enc:[1-9][0-9]{0,4}:[st]:[A-Za-z0-9+/]+={0,2}$", Pii.MEDIUM: "^tok:[0-9a-f]{64}$"}
_SEALED = _FORMS[Pii.HIGH]
_REWRITES = frozenset({"DELETE", "UPDATE", "MERGE", "TRUNCATE", "RESTORE", "REPLACE TABLE", "CREATE OR REPLACE TABLE"})


@dataclass(frozen=True)
class Control:
    """One control.

    Attributes:
        name: for programs, stable.
        title: what is to hold.
        holds: whether it does; None where it does not apply.
        sentence: what was found.
        fix: what to do; empty unless it fails.
    """

    name: str
    title: str
    holds: bool | None
    sentence: str
    fix: str = ""


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


@dataclass(frozen=True)
class Waiting:
    """The open rows of a quarantine; `oldest` is when the first of them was first seen."""

    schema: str
    table: str
    rows: int
    oldest: dt.datetime | None


@dataclass(frozen=True)
class Erasures:
    """Erasures by how they stand: subjects forgotten, and ids of evidence of those that are not done."""

    done: int
    subjects: int
    open: tuple[str, ...]
    failed: tuple[str, ...]


@dataclass(frozen=True)
class Reader:
    """Who read personal data: attempts by outcome, for how many different purposes, and how many of them by SQL."""

    who: str
    attempts: int
    purposes: int
    answered: int
    refused: int
    failed: int
    by_sql: int


@dataclass(frozen=True)
class Findings:
    """The controls, and what was found while they were judged.

    Attributes:
        at: when, UTC.
        controls: failing ones first, those that do not apply last, each part by how much is at stake.
        unclassified, suspects: columns that nobody classified.
        grants: of Unity Catalog, those that were not as declared when they were last compared.
    """

    at: dt.datetime
    controls: tuple[Control, ...]
    columns: tuple[ClassifiedColumn, ...]
    unclassified: tuple[Unclassified, ...]
    suspects: tuple[Suspect, ...]
    quarantine: tuple[Waiting, ...]
    erasures: Erasures
    access: tuple[Reader, ...]
    grants: tuple[Difference, ...]


def judge(
    settings: Settings,
    lake: Lakehouse,
    ring: Callable[[], KeyRing],
    tables: Sequence[BronzeTable],
    clock: Callable[[], dt.datetime],
) -> Findings:
    """Judge every control; one that cannot be checked does not hold. No row of the lake is changed.

    Args:
        ring: gives the master key, and must not make one; called only where there are keys to open.
        tables: all declared ones; those with personal data are judged, and all of them for unclassified columns.
    """
    return _Judge(settings, lake, ring, tables, clock).findings()


class _Judge:
    def __init__(
        self,
        settings: Settings,
        lake: Lakehouse,
        ring: Callable[[], KeyRing],
        tables: Sequence[BronzeTable],
        clock: Callable[[], dt.datetime],
    ) -> None:
        self._settings = settings
        self._lake = lake
        self._ring = ring
        self._tables = tables
        self._personal = [table for table in tables if table.has_personal_data]
        self._protected = [table for table in tables if any(c.pii.protected for c in table.columns)]
        self._clock = clock
        self._now = clock()
        self._columns: list[ClassifiedColumn] = []
        self._unclassified: list[Unclassified] = []
        self._suspects: list[Suspect] = []
        self._waiting: list[Waiting] = []
        self._erasures = Erasures(0, 0, (), ())
        self._readers: tuple[Reader, ...] = ()
        self._differences: tuple[Difference, ...] = ()

    def findings(self) -> Findings:
        # By what is at stake: values that can be read now, then keys, then evidence and order.
        controls = [
            _checked("stored_protected", "Every High and Medium value in the tables is protected", self._stored),
            _checked("rescued_sealed", "Values under unknown names are sealed beside protected columns", self._rescued),
            _checked("quarantine_sealed", "The quarantine holds no protected value in plain text", self._quarantined),
            _checked("archive_encrypted", "The archive of protected tables holds no plain file", self._archived),
            _checked("master_key", "The master key is here and is this lake's", self._master_key),
            _checked("keys_current", "Keys are wrapped with a current version of the master key", self._keys_current),
            _checked("private_tables", "Keys and vault keep no statistics, change feed or removed file", self._private),
            _checked("grants", "Grants on Unity Catalog are as declared", self._grants),
            _checked("erasures_failed", "No erasure has failed", self._failed),
            _checked("erasures_open", "Every erasure that began has ended", self._open),
            _checked("suspects", "No unclassified column looks personal", self._look),
            _checked("unclassified", "Every column with values has been declared", self._undeclared),
            _checked("declared_text", "Every High and Medium column is declared STRING", self._declared),
            _checked("append_only", "Logs of loads, access, erasures and grants are append-only", self._append_only),
            _checked("purposes", "Who read personal data gave a purpose", self._access),
            _checked("retention", "Tables with personal data keep removed files 30 days at most", self._retention),
            _checked("quarantine_age", f"No personal row waits in quarantine over {QUARANTINE_DAYS} days", self._age),
        ]
        return Findings(
            self._now,
            tuple(sorted(controls, key=lambda control: (control.holds is None, control.holds or False))),
            tuple(self._columns),
            tuple(self._unclassified),
            tuple(self._suspects),
            tuple(self._waiting),
            self._erasures,
            self._readers,
            self._differences,
        )

    def _declared(self) -> tuple[str, str]:
        wrong = [
            f"{table.name}.{c.name}"
            for table in self._protected
            for c in table.columns
            if c.pii.protected and not isinstance(c.type, T.StringType)
        ]
        count = sum(c.pii.protected for table in self._protected for c in table.columns)
        if wrong:
            return (
                f"{_listed(wrong)} cannot hold a sealed text or a token.",
                "declare it as T.StringType in bronze_assets/catalog, and load the table anew.",
            )
        return f"{count} columns are protected, all of them STRING.", ""

    def _stored(self) -> tuple[str, str]:
        total, plain = 0, []
        for table in self._personal:
            names = self._names(table.schema, table.name)
            wanted = [c for c in table.columns if c.pii is not Pii.NONE and c.name in names]
            if not wanted:
                continue
            counts = []
            for number, c in enumerate(wanted):
                counts.append(f'count({quoted(c.name)}) as "n{number}"')
                form = _FORMS.get(c.pii)
                counts.append(f'{_count_of(_text(c.name), form)} as "p{number}"' if form else f'0 as "p{number}"')
            (row,) = self._lake.rows(table.schema, table.name, counts)
            for number, c in enumerate(wanted):
                values, protected = row[f"n{number}"], row[f"p{number}"] if c.pii.protected else None
                self._columns.append(ClassifiedColumn(table.schema, table.name, c.name, c.pii, values, protected))
                if protected is not None:
                    total += values
                    if protected < values:
                        plain.append(f"{table.name}.{c.name} ({values - protected:,} of {values:,} values)")
        if plain:
            return (
                f"Not protected: {_listed(plain)}.",
                "they are from before values were protected: load the table again with `python -m bronze_assets load`"
                " into another BRONZE_LAKE, and remove the old one, whose earlier versions hold them too.",
            )
        return f"{total:,} values of the current versions are sealed or tokens.", ""

    def _rescued(self) -> tuple[str, str]:
        plain = []
        for table in self._protected:
            if RESCUED in self._names(table.schema, table.name):
                counted = [f"count({quoted(RESCUED)}) as n", f"{_count_of(_text(RESCUED), _SEALED)} as p"]
                (row,) = self._lake.rows(table.schema, table.name, counted)
                if row["p"] < row["n"]:
                    plain.append(f"{table.name} ({row['n'] - row['p']:,} rows)")
        if plain:
            return (
                f"{RESCUED} is readable in {_listed(plain)}: a misspelt name brings a person's value there.",
                "let the producer correct the names and deliver the files again under their names: they replace those"
                " rows. Earlier versions hold them until they are vacuumed.",
            )
        return "No plain text lies there.", ""

    def _quarantined(self) -> tuple[str, str]:
        rows, plain = 0, Counter[str]()
        for table in self._protected:
            hidden = {c.name for c in table.columns if c.pii.protected}
            for row in self._quarantine_rows(table):
                rows += 1
                for name in _plain_names(row, hidden):
                    plain[f"{table.quarantine_name} ({name})"] += 1
        if plain:
            return (
                f"In plain text: {_listed([f'{name}: {count:,} rows' for name, count in sorted(plain.items())])}.",
                "dismiss or replay the rows with `python -m bronze_assets quarantine`, or load the table anew; they are"
                " from before values were protected.",
            )
        return f"{rows:,} quarantined rows of protected tables hold sealed values only.", ""

    def _quarantine_rows(self, table: BronzeTable) -> Iterator[dict[str, Any]]:
        there = self._names(table.schema, table.quarantine_name)
        wanted = [name for name in ("raw_row", "rescued_data", "reasons") if name in there]
        if wanted:
            yield from self._lake.rows(table.schema, table.quarantine_name, wanted)

    def _archived(self) -> tuple[str, str]:
        zone = LandingZone(self._settings.landing, self._settings.archive)
        files, plain = 0, Counter[str]()
        for table in self._protected:
            if table.feed is None:
                continue
            for day in zone.archived_days(table.feed):
                for file in zone.archived(table.feed, day):
                    files += 1
                    plain[table.name] += not file.encrypted
        named = [f"{table}: {count:,}" for table, count in plain.items() if count]
        if named:
            return (
                f"Plain files: {_listed(named)}.",
                "materialise those days of the table with `reload: true`: its files are archived again, encrypted."
                " Remove what is plain then: no load knows it.",
            )
        return f"{files:,} archived files, all encrypted.", ""

    def _held(self) -> dict[str, DataKeys]:
        """Schema → its keys, of the schemas that have some; asks for the master key only then."""
        there = [one for one in schemas(self._protected) if self._lake.exists(one, SUBJECT_KEYS)]
        if not there:
            return {}
        ring = self._ring()
        return {schema: DataKeys(self._lake, ring, schema, self._clock) for schema in there}

    def _master_key(self) -> tuple[str, str]:
        sealed = {one.schema for one in self._columns if one.protected}
        lost = [schema for schema in sorted(sealed) if not self._lake.exists(schema, SUBJECT_KEYS)]
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
        for schema in schemas(self._protected):
            for name in (SUBJECT_KEYS, TOKEN_VAULT):
                if (table := self._delta(schema, name)) is None:
                    continue
                there += 1
                told = table.metadata().configuration
                actions = pa.table(table.get_add_actions(flatten=True)).column_names
                faults = []
                if not _is_zero(told.get("delta.deletedFileRetentionDuration")):
                    faults.append("keeps removed files")
                if told.get("delta.enableChangeDataFeed", "false") != "false":
                    faults.append("has a change feed")
                if any(column.startswith(("min.", "max.")) for column in actions):
                    faults.append("has statistics")
                if faults:
                    wrong.append(f"{schema}.{name} {' and '.join(faults)}")
        if wrong:
            return (
                f"{_listed(wrong)}.",
                "set its properties back: delta.deletedFileRetentionDuration = 'interval 0 hours',"
                " delta.enableChangeDataFeed = 'false', delta.dataSkippingNumIndexedCols = '0'; then"
                " `python -m bronze_assets rotate-keys` writes the keys' files anew.",
            )
        return f"{there} tables of keys and tokens are kept as they are to be.", ""

    def _grants(self) -> tuple[str, str | None]:
        catalog = self._settings.catalog
        if catalog is None:
            return "Does not apply: no Unity Catalog is configured (BRONZE_CATALOG).", None
        again = (
            "run `python -m bronze_assets access --evidence` or the job `access_evidence`; its schedule does so daily."
        )
        checks = last_checks(self._lake, self._tables, catalog)
        if missing := [schema for schema, check in checks.items() if check is None]:
            return f"Nobody has compared those of {', '.join(missing)} in the catalog {catalog} yet.", again
        known = [check for check in checks.values() if check is not None]
        # What concerns a whole catalog stands with each of its schemas.
        self._differences = tuple(dict.fromkeys(one for check in known for one in check.differences))
        oldest = min((check.at for check in known), default=self._now)
        if self._differences:
            # An address is a person's, and this sentence stands in logs; the report's table names it.
            named = [
                f"{'a person' if '@' in one.grantee else one.grantee} {'lacks' if one.missing else 'has'} {one.what}"
                for one in self._differences
            ]
            return (
                f"{len(named)} are different, compared {oldest:%F %H:%M} UTC: {_listed(named)}.",
                "run the statements of `compliance.json` (`grants`), or declare the grants in bronze_assets/access.py;"
                f" then {again}",
            )
        if self._now - oldest > dt.timedelta(days=GRANT_DAYS):
            return f"They were last compared {oldest:%F %H:%M} UTC, over {GRANT_DAYS} days ago.", again
        return f"All are as declared, compared {oldest:%F %H:%M} UTC.", ""

    def _append_only(self) -> tuple[str, str]:
        wrong, there = [], 0
        for schema in schemas(self._tables):
            for name in (AUDIT_LOG, ACCESS_LOG, ERASURE_LOG, GRANT_CHECKS):
                if (table := self._delta(schema, name)) is None:
                    continue
                there += 1
                if table.metadata().configuration.get("delta.appendOnly") != "true":
                    wrong.append(f"{schema}.{name} can be changed")
                changed = sum(map(_rewrites, table.history()))
                if changed:
                    wrong.append(f"{schema}.{name} was changed {changed} times")
        if wrong:
            return (
                f"{_listed(wrong)}.",
                "set delta.appendOnly = 'true' again, and see in the table's history who changed it; restore its rows"
                " from the version before.",
            )
        return f"{there} logs take new rows only, and nobody has changed one that is there.", ""

    def _retention(self) -> tuple[str, str]:
        wrong, there = [], 0
        for table in self._personal:
            for name in (table.name, table.quarantine_name):
                if (stored := self._delta(table.schema, name)) is None:
                    continue
                there += 1
                told = stored.metadata().configuration
                # A week is Delta's default.
                days = _days(told.get("delta.deletedFileRetentionDuration", "interval 1 weeks"))
                if days is None or days > 30:
                    wrong.append(f"{name} keeps removed files for longer")
                if told.get("delta.enableDeletionVectors", "false") != "false":
                    wrong.append(f"{name} has deletion vectors, which leave erased rows in their files")
        if wrong:
            return (
                f"{_listed(wrong)}.",
                "set delta.deletedFileRetentionDuration = 'interval 30 days' and delta.enableDeletionVectors = 'false'"
                " on it, then VACUUM.",
            )
        return f"{there} tables and quarantines let removed files go after 30 days or less.", ""

    def _settled(self) -> None:
        """Look at the erasure logs: an erasure is settled once each of its subjects has one that is done."""
        done, subjects, still_open, failed = 0, 0, [], []
        for schema in schemas(self._personal):
            columns = ["erasure_id", "at", "event", "table_name", "subject_hmacs"]
            rows = self._lake.rows(schema, ERASURE_LOG, columns)
            ends = {row["erasure_id"]: row["event"] for row in rows if row["event"] != "begun"}
            last: dict[tuple[str, str], dt.datetime] = {}
            for row in rows:
                if row["event"] == "done":
                    done += 1
                    for one in row["subject_hmacs"]:
                        place = row["table_name"], one
                        last[place] = max(last.get(place, row["at"]), row["at"])
            subjects += len(last)
            for row in rows:
                settled = all(
                    (when := last.get((row["table_name"], one))) is not None and when >= row["at"]
                    for one in row["subject_hmacs"]
                )
                if row["event"] == "begun" and not settled:
                    if ends.get(row["erasure_id"]) == "failed":
                        failed.append(row["erasure_id"])
                    elif self._now - row["at"] > dt.timedelta(hours=ERASURE_HOURS):
                        still_open.append(row["erasure_id"])
        self._erasures = Erasures(done, subjects, tuple(still_open), tuple(failed))

    def _failed(self) -> tuple[str, str]:
        self._settled()
        if self._erasures.failed:
            return (
                f"{len(self._erasures.failed)} failed, and no later one has finished them:"
                f" {_listed(self._erasures.failed)}.",
                f"read `error` of these erasure_id in {ERASURE_LOG}, mend that, and run the same"
                " `python -m bronze_assets erase …` again.",
            )
        return f"{self._erasures.done:,} erasures of {self._erasures.subjects:,} persons are done.", ""

    def _open(self) -> tuple[str, str]:
        self._settled()
        if self._erasures.open:
            return (
                f"{len(self._erasures.open)} began over {ERASURE_HOURS} hours ago and have no end:"
                f" {_listed(self._erasures.open)}.",
                "run the same `python -m bronze_assets erase …` again: it goes on where it was killed.",
            )
        return "None is left half done.", ""

    def _age(self) -> tuple[str, str]:
        late = []
        for table in self._personal:
            there = self._names(table.schema, table.quarantine_name)
            if not there:
                continue
            is_open = f"coalesce(state, '{OPEN}') = '{OPEN}'" if "state" in there else "true"
            counted = ["count(*) as n", "min(first_seen) as oldest"]
            (row,) = self._lake.rows(table.schema, table.quarantine_name, counted, is_open)
            self._waiting.append(Waiting(table.schema, table.quarantine_name, row["n"], row["oldest"]))
            if row["oldest"] is not None and self._now - row["oldest"] > dt.timedelta(days=QUARANTINE_DAYS):
                late.append(f"{table.quarantine_name} (since {row['oldest']:%F})")
        total = sum(one.rows for one in self._waiting)
        if late:
            return (
                f"Rows wait for longer in {_listed(late)}.",
                "`python -m bronze_assets quarantine list <table>`, then replay or dismiss them.",
            )
        return f"{total:,} rows are open.", ""

    def _look(self) -> tuple[str, str]:
        self._suspects = [found for table in self._tables for found in suspects(self._lake, table)]
        if self._suspects:
            named = [f"{one.table}.{one.column} ({one.kind}, {one.share:.0%})" for one in self._suspects]
            return (
                f"These look personal: {_listed(named)}.",
                "give the column a class in bronze_assets/catalog: `pii=Pii.HIGH` or `Pii.MEDIUM`, and load the table"
                " anew; or `Pii.LOW`, where everybody may read it.",
            )
        return f"The text columns of {len(self._tables)} tables were looked at.", ""

    def _undeclared(self) -> tuple[str, str]:
        self._unclassified = [found for table in self._tables for found in unclassified(self._lake, table)]
        named = [f"{one.table}.{one.column} ({one.values:,} values)" for one in self._unclassified if one.values]
        if named:
            return (
                f"Nobody has declared {_listed(named)}.",
                "declare the column with its class in bronze_assets/catalog (`column(…, added=True)`); what lies in"
                f" {RESCUED} goes when its names are declared, or mended at the producer, and loaded again.",
            )
        return "There is no other.", ""

    def _access(self) -> tuple[str, str]:
        without = 0
        outcomes: dict[str, Counter[str]] = defaultdict(Counter)
        purposes: dict[str, set[str]] = defaultdict(set)
        by_sql: Counter[str] = Counter()
        for schema in schemas(self._personal):
            for row in self._lake.rows(schema, ACCESS_LOG, ["who", "purpose", "outcome"]):
                outcomes[row["who"]][row["outcome"]] += 1
                purposes[row["who"]].add(row["purpose"].strip())
                by_sql[row["who"]] += row["purpose"] == BY_SQL
                without += row["outcome"] == Outcome.ANSWERED and not row["purpose"].strip()
        readers = [
            Reader(
                who,
                found.total(),
                len(purposes[who] - {"", BY_SQL}),
                found["answered"],
                found["refused"],
                found["failed"],
                by_sql[who],
            )
            for who, found in outcomes.items()
        ]
        self._readers = tuple(sorted(readers, key=lambda reader: (-reader.attempts, reader.who)))
        if without:
            return (
                f"{without:,} reads were answered without a purpose.",
                f"ask who is named in {ACCESS_LOG}: `reveal` refuses without one, so another program wrote these rows.",
            )
        attempts, refused, told = (
            sum(getattr(one, name) for one in readers) for name in ("attempts", "refused", "by_sql")
        )
        return (
            f"{attempts:,} attempts of {len(readers)} readers are logged; {refused:,} were refused, and {told:,} were"
            " reads by SQL, which nobody asks for a purpose.",
            "",
        )

    def _names(self, schema: str, name: str) -> list[str]:
        """The columns of a table; none if it is missing."""
        answer = self._lake.query(schema, name, "select * from t limit 0")
        return [] if answer is None else list(answer.schema.names)

    def _delta(self, schema: str, name: str) -> DeltaTable | None:
        return DeltaTable(str(self._lake.path(schema, name))) if self._lake.exists(schema, name) else None


def _checked(name: str, title: str, check: Callable[[], tuple[str, str | None]]) -> Control:
    """The control, by what its check found and the fix for it (None: it does not apply); one that cannot be checked
    does not hold.
    """
    try:
        sentence, fix = check()
    except BronzeError as error:
        sentence, fix = error.culprit, error.fix
    except Exception as error:  # of delta-rs and file systems, which may quote what they read
        sentence = f"This could not be checked ({type(error).__name__})."
        fix = "see that lake, landing zone and archive can be read, and make the report again."
    return Control(name, title, None if fix is None else not fix, sentence, fix or "")


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


def _listed(names: Sequence[str], most: int = 8) -> str:
    """Some names, and how many more there are."""
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def _is_zero(interval: str | None) -> bool:
    return _days(interval) == 0


def _days(interval: str | None) -> float | None:
    """The days of an interval as Delta writes it, e.g. `interval 30 days`; None of another."""
    hours = {"hour": 1, "day": 24, "week": 168}
    words = (interval or "").lower().removeprefix("interval ").split()
    if len(words) != 2 or not words[0].isdigit() or words[1].rstrip("s") not in hours:
        return None
    return int(words[0]) * hours[words[1].rstrip("s")] / 24


def _rewrites(commit: Mapping[str, Any]) -> bool:
    """Whether a commit took rows away that were there."""
    told = commit.get("operationParameters") or {}
    return commit.get("operation") in _REWRITES or str(told.get("mode", "")).strip('"').lower() == "overwrite"
