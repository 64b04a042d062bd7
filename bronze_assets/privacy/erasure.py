"""The right to be forgotten: a person leaves bronze, quarantine, vault, files and, for good, the keys.

tombstone → row versions blanked → quarantine → vault → files → key. The tombstone comes first, so that no load brings
the person back; the key comes last, since a killed erasure is done again and needs it for what is left. Each step may
be repeated.
"""

from __future__ import annotations

import datetime as dt
import json
import logging
import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256

import pyarrow as pa

from bronze_assets.access import ERASURE_LOG, TOKEN_VAULT, TOMBSTONES
from bronze_assets.batches import lease
from bronze_assets.errors import BronzeError, KeyRefused, LakeError, PrivacyRefused
from bronze_assets.lakehouse import sql_literal
from bronze_assets.privacy.data_keys import DataKeys
from bronze_assets.privacy.redaction import names_key, without
from bronze_assets.privacy.values import hmac_hex, open_sealed, place
from bronze_assets.quality import LINE
from bronze_assets.sources.landing import LandedFile
from bronze_assets.sources.ledger import Ledger
from bronze_assets.table import BronzeTable, Pii
from bronze_assets.workbench import Workbench

logger = logging.getLogger(__name__)

UNTIL = dt.timedelta(days=30)
"""For so long, removed files stay for time travel: with blanked values' ciphertext, which no key opens any more."""
_LARGEST = 2**30
_TIME = pa.timestamp("us", tz="UTC")
VAULT = pa.schema([("token", pa.string()), ("subject", pa.string()), ("value", pa.string()), ("created", _TIME)])
_TOMBSTONE = pa.schema([("subject_hmac", pa.string()), ("erased_at", _TIME)])
_EVIDENCE = pa.schema(
    [
        ("erasure_id", pa.string()),
        ("at", _TIME),
        ("event", pa.string()),
        ("table_name", pa.string()),
        ("who", pa.string()),
        ("reason", pa.string()),
        ("subject_hmacs", pa.list_(pa.string())),
        ("subjects", pa.int64()),
        ("versions", pa.int64()),
        ("quarantined", pa.int64()),
        ("tokens", pa.int64()),
        ("files", pa.int64()),
        ("rows_in_files", pa.int64()),
        ("keys", pa.int64()),
        ("until", _TIME),
        ("error", pa.string()),
        ("run_id", pa.string()),
    ]
)


@dataclass(frozen=True)
class Evidence:
    """What one erasure did in one table; kept in `bz_erasure_log`, which never names the person.

    Attributes:
        subject_hmacs: HMAC of each subject: who knows the person and holds the key can find the row.
        versions: row versions that were blanked.
        quarantined, tokens, keys: rows removed there.
        files, rows_in_files: files that were written anew, and the rows they lost.
        until: when the last file with the person's ciphertext may be removed by a vacuum.
    """

    erasure_id: str
    table: str
    subject_hmacs: tuple[str, ...]
    versions: int = 0
    quarantined: int = 0
    tokens: int = 0
    files: int = 0
    rows_in_files: int = 0
    keys: int = 0
    until: dt.datetime | None = None

    @property
    def words(self) -> str:
        """One line for people."""
        until = "" if self.until is None else f"; removed files go by {self.until:%F}"
        return (
            f"{self.table}: {len(self.subject_hmacs)} forgotten: {self.versions} row versions blanked,"
            f" {self.quarantined} quarantine rows, {self.tokens} vault rows and {self.keys} keys removed,"
            f" {self.rows_in_files} rows taken out of {self.files} files{until}. Evidence {self.erasure_id}."
        )


def erase(
    bench: Workbench,
    table: BronzeTable,
    keys: Iterable[str],
    *,
    reason: str,
    who: str,
    run_id: str = "",
) -> Evidence:
    """Forget the subjects of these rows of a table; may be done again, and goes on where it was interrupted.

    Args:
        table: one with personal data.
        keys: key texts, as the quarantine shows them; thousands go in one pass.
        reason: for the evidence; not the person's name.
        who: who asked for it.

    Raises:
        PrivacyRefused: there is nothing personal in the table, no key, or no reason.
        KeyMissing, KeyRefused: without the master key, nobody can tell whose row is whose.
        TableBusy: a load of the table is at work.
        LakeError: a copy is out of reach. What could be erased is; the evidence says `failed`, and a later call
            finishes it.
    """
    wanted = frozenset(key.strip() for key in keys)
    _check(table, wanted, reason=reason, who=who)
    erasure = _Erasure(bench, table, wanted, f"{uuid.uuid4()}")
    told = {"who": who, "reason": reason, "run_id": run_id}
    erasure.log("begun", Evidence(erasure.id, table.name, erasure.hmacs), told)
    try:
        with lease(bench.lake, table, run_id or erasure.id, bench.settings.lease_seconds):
            evidence = erasure.run()
    except BaseException as error:
        words = str(error) if isinstance(error, BronzeError) else type(error).__name__
        erasure.log("failed", Evidence(erasure.id, table.name, erasure.hmacs), told | {"error": words})
        raise
    erasure.log("done", evidence, told)
    return evidence


def _check(table: BronzeTable, keys: frozenset[str], *, reason: str, who: str) -> None:
    if not table.has_personal_data:
        raise PrivacyRefused("it holds no personal data.", "name a table that does.", table=table.name)
    if not keys or "" in keys:
        raise PrivacyRefused("no key says who is to be forgotten.", "give the key of a row.", table=table.name)
    if not reason.strip() or not who.strip():
        raise PrivacyRefused("an erasure needs a reason and somebody who asks.", "say both.", table=table.name)


class _Erasure:
    def __init__(self, bench: Workbench, table: BronzeTable, keys: frozenset[str], erasure_id: str) -> None:
        self.id = erasure_id
        self._bench = bench
        self._lake = bench.lake
        self._table = table
        self._keys = keys
        self._data_keys = DataKeys(bench.lake, bench.ring, table.schema, bench.clock)
        self._subjects = sorted(f"{table.name}/{key}" for key in keys)
        secret = self._data_keys.hmac_key("tombstone")
        self.hmacs = tuple(hmac_hex(secret, f"{table.schema}/{subject}") for subject in self._subjects)

    def run(self) -> Evidence:
        self._bury()
        versions = quarantined = 0
        if self._lake.exists(self._table.schema, self._table.name):
            versions = self._lake.blank(self._bench.session, self._table, sorted(self._keys), self.id, self._blanked())
        if self._lake.exists(self._table.schema, self._table.quarantine_name):
            quarantined = self._lake.remove_quarantined(
                self._bench.session, self._table, sorted(self._keys), self._lines(), self.id
            )
        tokens = self._from_vault()
        files, rows, unreachable = self._from_files()
        if unreachable:
            raise LakeError(
                f"{unreachable[0]}{f' and {len(unreachable) - 1} more files' if len(unreachable) > 1 else ''}"
                " could not be searched for the person. Everything else is erased but the key.",
                "make the file readable or remove it, then erase again.",
                table=self._table.name,
            )
        dropped = self._data_keys.drop(self._subjects)
        until = self._bench.clock() + UNTIL
        return Evidence(
            self.id, self._table.name, self.hmacs, versions, quarantined, tokens, files, rows, dropped, until
        )

    def log(self, event: str, evidence: Evidence, told: Mapping[str, str]) -> None:
        row = {name: getattr(evidence, name) for name in _EVIDENCE.names if hasattr(evidence, name)}
        row |= {"at": self._bench.clock(), "event": event, "table_name": evidence.table, **told}
        row |= {"subject_hmacs": list(self.hmacs), "subjects": len(self.hmacs)}
        self._lake.append_rows(self._table.schema, ERASURE_LOG, _EVIDENCE, [row])

    def _bury(self) -> None:
        known = {row["subject_hmac"] for row in self._lake.rows(self._table.schema, TOMBSTONES, ["subject_hmac"])}
        now = self._bench.clock()
        rows = [{"subject_hmac": one, "erased_at": now} for one in self.hmacs if one not in known]
        if rows:
            self._lake.append_rows(self._table.schema, TOMBSTONES, _TOMBSTONE, rows)

    def _blanked(self) -> list[str]:
        """Columns of the table that hold something of a person: classified ones, and those that nobody declared."""
        stored = self._lake.read(self._bench.session, self._table.schema, self._table.name).schema.names
        return [c.name for c in self._table.columns if c.pii is not Pii.NONE and c.name in stored] + [
            name for name in stored if not self._lake.is_known(self._table, name)
        ]

    def _lines(self) -> list[str]:
        """Row hashes of quarantined lines, which are nobody's row, that name one of the keys."""
        found = []
        key = self._data_keys.key(self._table.name)
        where = place(self._table.schema, self._table.name, LINE, "")
        sealed = f"raw_row like {sql_literal('%' + chr(34) + LINE + chr(34) + '%')}"
        rows = self._lake.rows(self._table.schema, self._table.quarantine_name, ["row_hash", "raw_row"], sealed)
        for row in rows:
            text = _line_of(row["raw_row"])
            if text is None or key is None:
                continue
            try:
                line = open_sealed(text, key, where) if text.startswith("enc:") else text
            except KeyRefused:
                continue
            if names_key(line, self._table, self._keys):
                found.append(row["row_hash"])
        return found

    def _from_vault(self) -> int:
        schema = self._table.schema
        if not self._lake.exists(schema, TOKEN_VAULT):
            return 0
        subjects = pa.table({"subject": pa.array(self._subjects, pa.string())})
        names = ", ".join(map(sql_literal, self._subjects))
        held = self._lake.rows(schema, TOKEN_VAULT, ["count(*) as n"], f"subject in ({names})")[0]["n"]
        with self._lake.held(schema, alone=True):
            if held:
                self._lake.change_private(schema, TOKEN_VAULT, VAULT, lambda _: subjects, on="subject", change="delete")
            self._lake.purge(schema, TOKEN_VAULT)
        return int(held)

    def _from_files(self) -> tuple[int, int, list[str]]:
        """Files written anew, rows they lost, and names of files that could not be searched."""
        feed, zone = self._table.feed, self._bench.zone
        if feed is None:
            return 0, 0, []
        # What killed loads have left half-written.
        zone.tidy(feed)
        ledger = Ledger(self._lake, self._table, self._bench.clock, self.id)
        files, rows, unreachable = 0, 0, []
        found = [*zone.files(feed), *(file for day in zone.archived_days(feed) for file in zone.archived(feed, day))]
        for number, file in enumerate(found, 1):
            if number % 1000 == 0:
                logger.info("%s: %d of %d files searched", self._table.name, number, len(found))
            try:
                removed = self._from_file(file, ledger)
            except (OSError, ValueError, KeyRefused):
                unreachable.append(repr(file.location))
                continue
            files += removed > 0
            rows += removed
        return files, rows, unreachable

    def _from_file(self, file: LandedFile, ledger: Ledger) -> int:
        zone = self._bench.zone
        if file.size > _LARGEST:
            raise ValueError("it is too large")
        with zone.open(file) as stream:
            content = stream.read()
        left, removed = without(content, file.path, self._table, self._keys)
        if removed:
            now = zone.write(file, left)
            states = [
                state
                for state in ledger.files.values()
                if (state.archived_as == file.location if file.archived else state.path == file.path and state.settled)
            ]
            for state in states:
                told = replace(state, content_hash=sha256(left).hexdigest())
                told = told if file.archived else replace(told, size=now.size, modified=now.modified)
                ledger.record([told], state.event)
        return removed


def _line_of(raw_row: str) -> str | None:
    value = json.loads(raw_row).get(LINE)
    return value if isinstance(value, str) else None


def subjects_of(texts: Sequence[str], tables: Sequence[BronzeTable]) -> dict[str, list[str]]:
    """Table → keys, of subjects as people write them: `<table>:<key>`.

    Raises:
        PrivacyRefused: one is no subject of these tables.
    """
    known = {table.name: table for table in tables if table.has_personal_data}
    found: dict[str, list[str]] = {}
    for text in texts:
        name, mark, key = text.partition(":")
        if not mark or not key.strip() or name not in known:
            raise PrivacyRefused(
                f"{text!r} is no subject.", f"write <table>:<key>, with one of {', '.join(sorted(known))}."
            )
        found.setdefault(name, []).append(key.strip())
    return found
