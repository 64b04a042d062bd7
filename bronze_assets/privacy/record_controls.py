"""The controls over what is declared, granted and logged: who may read and who has, erasures, columns that nobody
classified, and what waits or stays for too long.
"""

from __future__ import annotations

import datetime as dt
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import pyspark.sql.types as T

from bronze_assets.access import (
    ACCESS_LOG,
    DERIVED_TABLES,
    ERASURE_LOG,
    GRANT_CHECKS,
    LEGAL_HOLDS,
    RETENTION_LOG,
    schemas,
)
from bronze_assets.access_evidence import BY_SQL
from bronze_assets.audit import AUDIT_LOG
from bronze_assets.lakehouse import OPEN, Lakehouse
from bronze_assets.privacy.access_log import Outcome
from bronze_assets.privacy.controls import Control, Controls, checked, listed
from bronze_assets.privacy.detector import Suspect, Unclassified, suspects, unclassified
from bronze_assets.privacy.erasure import HELD
from bronze_assets.privacy.evidence import Difference, last_checks
from bronze_assets.privacy.holds import ALL, in_force
from bronze_assets.privacy.removal import due
from bronze_assets.settings import Settings
from bronze_assets.storage import Commit
from bronze_assets.table import RESCUED, BronzeTable

QUARANTINE_DAYS: Final = 30
"""Days that a row with personal data may wait in quarantine: as long as removed files are kept for time travel."""
ERASURE_HOURS: Final = 24
"""Hours after which an erasure that has begun and not ended counts as killed, and not as at work."""
REMOVAL_DAYS: Final = 2
"""Days that the files of an erasure may stay after its date: a daily schedule may miss one."""
GRANT_DAYS: Final = 7
"""Days after which a comparison of the grants says nothing of those of now."""

_REWRITES = frozenset({"DELETE", "UPDATE", "MERGE", "TRUNCATE", "RESTORE", "REPLACE TABLE", "CREATE OR REPLACE TABLE"})


@dataclass(frozen=True)
class Waiting:
    """The open rows of a quarantine; `oldest` is when the first of them was first seen."""

    schema: str
    table: str
    rows: int
    oldest: dt.datetime | None


@dataclass(frozen=True)
class Erasures:
    """Erasures by how they stand: subjects forgotten, and ids of evidence of those that are not done.

    Attributes:
        held: that a legal hold stopped, and that nobody has done since.
    """

    done: int
    subjects: int
    open: tuple[str, ...]
    failed: tuple[str, ...]
    held: tuple[str, ...] = ()


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


class RecordControls(Controls):
    """These controls, and what they found.

    Attributes:
        unclassified, suspects, waiting, erasures, readers, differences: once `judged`.
    """

    def __init__(self, settings: Settings, lake: Lakehouse, tables: Sequence[BronzeTable], now: dt.datetime) -> None:
        super().__init__(settings, lake, tables, now)
        self.unclassified: list[Unclassified] = []
        self.suspects: list[Suspect] = []
        self.waiting: list[Waiting] = []
        self.erasures = Erasures(0, 0, (), ())
        self.readers: tuple[Reader, ...] = ()
        self.differences: tuple[Difference, ...] = ()

    def judged(self) -> list[Control]:
        """The controls, by what is at stake: who may read, then evidence and order."""
        return [
            checked("grants", "Grants on Unity Catalog are as declared", self._grants),
            checked("erasures_failed", "No erasure has failed", self._failed),
            checked("erasures_open", "Every erasure that began has ended", self._open),
            checked("erasures_held", "No erasure waits that a legal hold stopped and stops no more", self._held),
            checked("suspects", "No unclassified column looks personal", self._look),
            checked("unclassified", "Every column with values has been declared", self._undeclared),
            checked("declared_text", "Every High and Medium column is declared STRING", self._declared),
            checked("append_only", "Logs of loads, access, erasures and grants are append-only", self._append_only),
            checked("purposes", "Who read personal data gave a purpose", self._access),
            checked("retention", "Tables with personal data keep removed files 30 days at most", self._retention),
            checked("erased_files", "What erasures took out of tables leaves the disk in time", self._removed),
            checked("quarantine_age", f"No personal row waits in quarantine over {QUARANTINE_DAYS} days", self._age),
        ]

    def _declared(self) -> tuple[str, str]:
        wrong = [
            f"{table.name}.{c.name}"
            for table in self.protected
            for c in table.columns
            if c.pii.protected and not isinstance(c.type, T.StringType)
        ]
        count = sum(c.pii.protected for table in self.protected for c in table.columns)
        if wrong:
            return (
                f"{listed(wrong)} cannot hold a sealed text or a token.",
                "declare it as T.StringType in bronze_assets/catalog, and load the table anew.",
            )
        return f"{count} columns are protected, all of them STRING.", ""

    def _grants(self) -> tuple[str, str | None]:
        catalog = self.settings.catalog
        if catalog is None:
            return "Does not apply: no Unity Catalog is configured (BRONZE_CATALOG).", None
        again = (
            "run `python -m bronze_assets access --evidence` or the job `access_evidence`; its schedule does so daily."
        )
        checks = last_checks(self.lake, self.tables, catalog)
        if missing := [schema for schema, check in checks.items() if check is None]:
            return f"Nobody has compared those of {', '.join(missing)} in the catalog {catalog} yet.", again
        known = [check for check in checks.values() if check is not None]
        # What concerns a whole catalog stands with each of its schemas.
        self.differences = tuple(dict.fromkeys(one for check in known for one in check.differences))
        oldest = min((check.at for check in known), default=self.now)
        if self.differences:
            # An address is a person's, and this sentence stands in logs; the report's table names it.
            named = [
                f"{'a person' if '@' in one.grantee else one.grantee} {'lacks' if one.missing else 'has'} {one.what}"
                for one in self.differences
            ]
            return (
                f"{len(named)} are different, compared {oldest:%F %H:%M} UTC: {listed(named)}.",
                "run the statements of `compliance.json` (`grants`), or declare the grants in bronze_assets/access.py;"
                f" then {again}",
            )
        if self.now - oldest > dt.timedelta(days=GRANT_DAYS):
            return f"They were last compared {oldest:%F %H:%M} UTC, over {GRANT_DAYS} days ago.", again
        return f"All are as declared, compared {oldest:%F %H:%M} UTC.", ""

    def _append_only(self) -> tuple[str, str]:
        wrong, there = [], 0
        for schema in schemas(self.tables):
            for name in (AUDIT_LOG, ACCESS_LOG, ERASURE_LOG, GRANT_CHECKS, DERIVED_TABLES, LEGAL_HOLDS, RETENTION_LOG):
                if (table := self.described(schema, name)) is None:
                    continue
                there += 1
                if table.properties.get("delta.appendOnly") != "true":
                    wrong.append(f"{schema}.{name} can be changed")
                changed = sum(map(_rewrites, self.lake.storage.history(self.lake.location(schema, name))))
                if changed:
                    wrong.append(f"{schema}.{name} was changed {changed} times")
        if wrong:
            return (
                f"{listed(wrong)}.",
                "set delta.appendOnly = 'true' again, and see in the table's history who changed it; restore its rows"
                " from the version before.",
            )
        return f"{there} logs take new rows only, and nobody has changed one that is there.", ""

    def _retention(self) -> tuple[str, str]:
        wrong, there = [], 0
        for table in self.personal:
            for name in (table.name, table.quarantine_name):
                if (stored := self.described(table.schema, name)) is None:
                    continue
                there += 1
                if stored.retention > dt.timedelta(days=30):
                    wrong.append(f"{name} keeps removed files for longer")
                if stored.properties.get("delta.enableDeletionVectors", "false") != "false":
                    wrong.append(f"{name} has deletion vectors, which leave erased rows in their files")
        if wrong:
            return (
                f"{listed(wrong)}.",
                "set delta.deletedFileRetentionDuration = 'interval 30 days' and delta.enableDeletionVectors = 'false'"
                " on it, then VACUUM.",
            )
        return f"{there} tables and quarantines let removed files go after 30 days or less.", ""

    def _removed(self) -> tuple[str, str]:
        late = [
            row["erasure_id"]
            for table in self.personal
            for row in due(self.lake, table, self.now - dt.timedelta(days=REMOVAL_DAYS))
        ]
        if late:
            return (
                f"Files of {len(late)} erasures are still there, more than {REMOVAL_DAYS} days after their date:"
                f" {listed(late)}.",
                "run `python -m bronze_assets erase --due` or the job `remove_erased`; its schedule does so daily.",
            )
        return "No erasure's date has passed unheeded.", ""

    def _settled(self) -> None:
        """Look at the erasure logs: an erasure is settled once each of its subjects has one that is done."""
        done, subjects, still_open, failed = 0, 0, [], []
        self._stopped: list[tuple[str, bool]] = []
        for schema in schemas(self.personal):
            columns = ["erasure_id", "at", "event", "table_name", "subject_hmacs"]
            rows = self.lake.rows(schema, ERASURE_LOG, columns)
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
                if row["event"] == HELD and not settled:
                    self._stopped.append((row["erasure_id"], self._is_held(row["table_name"], row["subject_hmacs"])))
                if row["event"] == "begun" and not settled:
                    if ends.get(row["erasure_id"]) == "failed":
                        failed.append(row["erasure_id"])
                    elif self.now - row["at"] > dt.timedelta(hours=ERASURE_HOURS):
                        still_open.append(row["erasure_id"])
        stopped = tuple(erasure_id for erasure_id, _ in self._stopped)
        self.erasures = Erasures(done, subjects, tuple(still_open), tuple(failed), stopped)

    def _is_held(self, name: str, hmacs: Sequence[str]) -> bool:
        """Whether a legal hold keeps one of these subjects."""
        there = [hold for table in self.personal if table.name == name for hold in in_force(self.lake, table)]
        return any(hold.key == ALL or hold.hmac in hmacs for hold in there)

    def _held(self) -> tuple[str, str]:
        self._settled()
        waiting = [erasure_id for erasure_id, held in self._stopped if not held]
        kept = [erasure_id for erasure_id, held in self._stopped if held]
        if waiting:
            return (
                f"The holds that stopped {len(waiting)} requests are over, and nobody has erased since:"
                f" {listed(waiting)}.",
                "run the same `python -m bronze_assets erase …` again.",
            )
        if kept:
            return (
                f"{len(kept)} requests wait for a legal hold that is in force (GDPR Art. 17(3)(e)): {listed(kept)}.",
                "",
            )
        return "No request for an erasure waits for a legal hold.", ""

    def _failed(self) -> tuple[str, str]:
        self._settled()
        if self.erasures.failed:
            return (
                f"{len(self.erasures.failed)} failed, and no later one has finished them:"
                f" {listed(self.erasures.failed)}.",
                f"read `error` of these erasure_id in {ERASURE_LOG}, mend that, and run the same"
                " `python -m bronze_assets erase …` again.",
            )
        return f"{self.erasures.done:,} erasures of {self.erasures.subjects:,} persons are done.", ""

    def _open(self) -> tuple[str, str]:
        self._settled()
        if self.erasures.open:
            return (
                f"{len(self.erasures.open)} began over {ERASURE_HOURS} hours ago and have no end:"
                f" {listed(self.erasures.open)}.",
                "run the same `python -m bronze_assets erase …` again: it goes on where it was killed.",
            )
        return "None is left half done.", ""

    def _age(self) -> tuple[str, str]:
        late = []
        for table in self.personal:
            there = self.names(table.schema, table.quarantine_name)
            if not there:
                continue
            is_open = f"coalesce(state, '{OPEN}') = '{OPEN}'" if "state" in there else "true"
            counted = ["count(*) as n", "min(first_seen) as oldest"]
            (row,) = self.lake.rows(table.schema, table.quarantine_name, counted, is_open)
            self.waiting.append(Waiting(table.schema, table.quarantine_name, row["n"], row["oldest"]))
            if row["oldest"] is not None and self.now - row["oldest"] > dt.timedelta(days=QUARANTINE_DAYS):
                late.append(f"{table.quarantine_name} (since {row['oldest']:%F})")
        total = sum(one.rows for one in self.waiting)
        if late:
            return (
                f"Rows wait for longer in {listed(late)}.",
                "`python -m bronze_assets quarantine list <table>`, then replay or dismiss them.",
            )
        return f"{total:,} rows are open.", ""

    def _look(self) -> tuple[str, str]:
        self.suspects = [found for table in self.tables for found in suspects(self.lake, table)]
        if self.suspects:
            named = [f"{one.table}.{one.column} ({one.kind}, {one.share:.0%})" for one in self.suspects]
            return (
                f"These look personal: {listed(named)}.",
                "give the column a class in bronze_assets/catalog: `pii=Pii.HIGH` or `Pii.MEDIUM`, and load the table"
                " anew; or `Pii.LOW`, where everybody may read it.",
            )
        return f"The text columns of {len(self.tables)} tables were looked at.", ""

    def _undeclared(self) -> tuple[str, str]:
        self.unclassified = [found for table in self.tables for found in unclassified(self.lake, table)]
        named = [f"{one.table}.{one.column} ({one.values:,} values)" for one in self.unclassified if one.values]
        if named:
            return (
                f"Nobody has declared {listed(named)}.",
                "declare the column with its class in bronze_assets/catalog (`column(…, added=True)`); what lies in"
                f" {RESCUED} goes when its names are declared, or mended at the producer, and loaded again.",
            )
        return "There is no other.", ""

    def _access(self) -> tuple[str, str]:
        without = 0
        outcomes: dict[str, Counter[str]] = defaultdict(Counter)
        purposes: dict[str, set[str]] = defaultdict(set)
        by_sql: Counter[str] = Counter()
        for schema in schemas(self.personal):
            for row in self.lake.rows(schema, ACCESS_LOG, ["who", "purpose", "outcome"]):
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
        self.readers = tuple(sorted(readers, key=lambda reader: (-reader.attempts, reader.who)))
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


def _rewrites(commit: Commit) -> bool:
    """Whether a commit took rows away that were there."""
    mode = str(commit.parameters.get("mode", "")).strip('"').lower()
    return commit.operation in _REWRITES or mode == "overwrite"
