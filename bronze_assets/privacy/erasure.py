"""The right to be forgotten: a person leaves bronze, quarantine, vault, derived tables, files and, for good, the keys.

tombstone → row versions blanked → quarantine → vault → derived tables → files → key. The tombstone comes first, so that
no load brings the person back; the key comes last, since a killed erasure is done again and needs it for what is left.
Each step may be repeated.
"""

from __future__ import annotations

import datetime as dt
import json
import logging
import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from typing import Any, Final

import pyarrow as pa

from bronze_assets.access import ERASURE_LOG, TOKEN_VAULT, TOMBSTONES
from bronze_assets.errors import BronzeError, KeyRefused, LakeError, PrivacyRefused
from bronze_assets.leases import lease
from bronze_assets.privacy import derived
from bronze_assets.privacy.archive import ENCRYPTED
from bronze_assets.privacy.data_keys import DataKeys
from bronze_assets.privacy.holds import Holds
from bronze_assets.privacy.redaction import names_key, without
from bronze_assets.privacy.values import hmac_hex, open_sealed, parse, place
from bronze_assets.quality import LINE, canonical_key
from bronze_assets.sources.landing import LandedFile
from bronze_assets.sources.ledger import FileEvent, FileState, Ledger
from bronze_assets.storage import sql_literal
from bronze_assets.table import BronzeTable, Pii
from bronze_assets.workbench import Workbench

logger = logging.getLogger(__name__)

UNTIL = dt.timedelta(days=30)
"""For so long, removed files stay for time travel: with blanked values' ciphertext, which no key opens any more."""
HELD: Final = "held"
"""The event of `bz_erasure_log` that says that a legal hold has stopped a request, of which nothing was done."""
_LARGEST = 2**30
_TIME = pa.timestamp("us", tz="UTC")
VAULT = pa.schema([("token", pa.string()), ("subject", pa.string()), ("value", pa.string()), ("created", _TIME)])
_TOMBSTONE = pa.schema([("subject_hmac", pa.string()), ("erased_at", _TIME)])
EVIDENCE = pa.schema(
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
        # NULL in rows of before there were any.
        ("derived_tables", pa.int64()),
        ("derived_rows", pa.int64()),
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
        derived_tables, derived_rows: registered tables that were swept, and rows deleted or emptied there.
        until: when a vacuum may remove the last file that was taken out of a table: of the bronze table, with the
            person's ciphertext; of a derived one, with what stood there.
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
    derived_tables: int = 0
    derived_rows: int = 0

    @property
    def words(self) -> str:
        """One line for people."""
        found = (self.versions, self.quarantined, self.tokens, self.keys, self.rows_in_files, self.derived_rows)
        if not any(found):
            return (
                f"{self.table}: nothing of {len(self.subject_hmacs)} named was found; nothing of them will be loaded."
                f" Evidence {self.erasure_id}."
            )
        until = "" if self.until is None else f"; removed files go by {self.until:%F}"
        derived = f", {self.derived_rows} rows of {self.derived_tables} derived tables" if self.derived_tables else ""
        return (
            f"{self.table}: {len(self.subject_hmacs)} forgotten: {self.versions} row versions blanked,"
            f" {self.quarantined} quarantine rows, {self.tokens} vault rows and {self.keys} keys removed,"
            f" {self.rows_in_files} rows taken out of {self.files} files{derived}{until}. Evidence {self.erasure_id}."
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
        PrivacyRefused: there is nothing personal in the table, no key, or no reason; or a legal hold keeps one of them:
            then nobody of them is erased, and the evidence says `held`.
        KeyMissing, KeyRefused: without the master key, nobody can tell whose row is whose.
        TableBusy: a load of the table is at work.
        LakeError: a copy is out of reach. What could be erased is; the evidence says `failed`, and a later call
            finishes it.
    """
    wanted = frozenset(canonical_key(table, key.strip()) for key in keys)
    _check(table, wanted, reason=reason, who=who)
    erasure = _Erasure(bench, table, wanted, f"{uuid.uuid4()}")
    told = {"who": who, "reason": reason, "run_id": run_id}
    erasure.refuse_held(told)
    erasure.log("begun", told)
    try:
        with lease(bench.lake, table.schema, table.name, run_id or erasure.id, bench.settings.lease_seconds):
            # A hold may have been placed while this waited.
            erasure.refuse_held(told)
            erasure.run()
    except BaseException as error:
        words = str(error) if isinstance(error, BronzeError) else type(error).__name__
        erasure.log("failed", told | {"error": words})
        raise
    erasure.log("done", told)
    return erasure.evidence


def check_all(
    bench: Workbench,
    wanted: Mapping[str, Sequence[str]],
    tables: Sequence[BronzeTable],
    *,
    reason: str,
    who: str,
    run_id: str = "",
) -> None:
    """Refuse a request over several tables, before anything of it is done, as `erase` would refuse a part of it.

    Args:
        wanted: table → keys, as `subjects_of` gives them.

    Raises:
        PrivacyRefused: see `erase`; refusals by a legal hold are in the evidence.
    """
    parts = []
    for table in tables:
        if table.name in wanted:
            keys = frozenset(canonical_key(table, key.strip()) for key in wanted[table.name])
            _check(table, keys, reason=reason, who=who)
            parts.append((table, keys))
    for table, keys in parts:
        erasure = _Erasure(bench, table, keys, f"{uuid.uuid4()}")
        erasure.refuse_held({"who": who, "reason": reason, "run_id": run_id})


def _check(table: BronzeTable, keys: frozenset[str], *, reason: str, who: str) -> None:
    if not table.has_personal_data:
        raise PrivacyRefused("it holds no personal data.", "name a table that does.", table=table.name)
    if not keys or "" in keys:
        raise PrivacyRefused("no key says who is to be forgotten.", "give the key of a row.", table=table.name)
    if not reason.strip() or not who.strip():
        raise PrivacyRefused("an erasure needs a reason and somebody who asks.", "say both.", table=table.name)


def blanked(table: BronzeTable, stored: Sequence[str]) -> list[str]:
    """Those of the stored columns that hold something of a person: classified ones, and those nobody declared."""
    return [c.name for c in table.columns if c.pii is not Pii.NONE and c.name in stored] + [
        name for name in stored if not table.knows(name)
    ]


class _Erasure:
    def __init__(self, bench: Workbench, table: BronzeTable, keys: frozenset[str], erasure_id: str) -> None:
        self.id = erasure_id
        self._obstacles: list[LakeError] = []
        self._bench = bench
        self._lake = bench.lake
        self._table = table
        self._keys = keys
        self._data_keys = DataKeys(bench.lake, bench.ring, table.schema, bench.clock)
        self._subjects = sorted(f"{table.name}/{key}" for key in keys)
        secret = self._data_keys.hmac_key("tombstone")
        hmacs = tuple(hmac_hex(secret, f"{table.schema}/{subject}") for subject in self._subjects)
        self.evidence = Evidence(erasure_id, table.name, hmacs)

    def refuse_held(self, told: Mapping[str, str]) -> None:
        """Raise `PrivacyRefused`, and say so in the evidence, if a legal hold keeps one of the persons."""
        there = Holds(self._bench, self._table).of(self._keys)
        if not there:
            return
        first = there[0]
        more = f" So do {len(there) - 1} more holds." if len(there) > 1 else ""
        refused = PrivacyRefused(
            f"the legal hold {first.id} ({first.reason}) keeps what is asked to be erased.{more} Nobody of this request"
            " was erased: data that a legal claim needs may stay (GDPR Art. 17(3)(e)).",
            "have the hold released (`python -m bronze_assets hold release`) or wait until it is; or ask again without"
            " whom it keeps.",
            table=self._table.name,
        )
        self.log(HELD, {**told, "error": str(refused)})
        raise refused

    def run(self) -> None:
        """Erase what can be; `evidence` says how far it came, also where it fails."""
        schema, session, keys = self._table.schema, self._bench.session, sorted(self._keys)
        self._bury()
        if self._lake.exists(schema, self._table.name):
            self._note(versions=self._lake.blank(session, self._table, keys, self.id, self._blanked()))
        if self._lake.exists(schema, self._table.quarantine_name):
            lines = self._lines()
            self._note(quarantined=self._lake.remove_quarantined(session, self._table, keys, lines, self.id))
        self._note(tokens=self._from_vault())
        swept = derived.sweep(self._lake, session, self._table, keys, self.id)
        self._obstacles += swept.obstacles
        self._note(derived_tables=swept.tables, derived_rows=swept.rows)
        files, rows = self._from_files()
        self._note(files=files, rows_in_files=rows)
        if self._obstacles:
            raise _together(self._obstacles, self._table)
        self._note(keys=self._data_keys.drop(self._subjects))
        self._note(until=self._bench.clock() + max(UNTIL, swept.retention))

    def _note(self, **found: Any) -> None:
        self.evidence = replace(self.evidence, **found)

    def _cannot(self, culprit: str, fix: str) -> None:
        self._obstacles.append(LakeError(culprit, fix, table=self._table.name))

    def log(self, event: str, told: Mapping[str, str]) -> None:
        """Append what has been done so far to the schema's log."""
        evidence = self.evidence
        row = {name: getattr(evidence, name) for name in EVIDENCE.names if hasattr(evidence, name)}
        row |= {"at": self._bench.clock(), "event": event, "table_name": evidence.table, **told}
        row |= {"subject_hmacs": list(evidence.subject_hmacs), "subjects": len(evidence.subject_hmacs)}
        self._lake.append_rows(self._table.schema, ERASURE_LOG, EVIDENCE, [row])

    def _bury(self) -> None:
        known = {row["subject_hmac"] for row in self._lake.rows(self._table.schema, TOMBSTONES, ["subject_hmac"])}
        now = self._bench.clock()
        rows = [{"subject_hmac": one, "erased_at": now} for one in self.evidence.subject_hmacs if one not in known]
        if rows:
            self._lake.append_rows(self._table.schema, TOMBSTONES, _TOMBSTONE, rows)

    def _blanked(self) -> list[str]:
        return blanked(
            self._table, self._lake.read(self._bench.session, self._table.schema, self._table.name).schema.names
        )

    def _lines(self) -> list[str]:
        """Row hashes of quarantined lines, which are nobody's row, that name one of the keys."""
        found, closed = [], []
        key = self._data_keys.key(self._table.name)
        where = place(self._table.schema, self._table.name, LINE, "")
        seals = any(column.pii.protected for column in self._table.columns)
        lines = f"raw_row like {sql_literal('%' + chr(34) + LINE + chr(34) + '%')}"
        rows = self._lake.rows(self._table.schema, self._table.quarantine_name, ["row_hash", "raw_row"], lines)
        for row in rows:
            text = _line_of(row["raw_row"])
            if text is None:
                continue
            if seals and text.startswith("enc:"):
                try:
                    if key is None and parse(text, where).kind == "t":
                        # Its key is gone for good: it opens for nobody.
                        continue
                    text = open_sealed(text, key or b"", where)
                except (KeyRefused, ValueError):
                    closed.append(row["row_hash"])
                    continue
            if names_key(text, self._table, self._keys):
                found.append(row["row_hash"])
        if closed:
            self._cannot(
                f"{len(closed)} sealed lines of {self._table.quarantine_name}, {closed[0]!r} the first (row_hash), do"
                " not open, so nobody can tell whether they are the person's.",
                "restore them from an earlier version of that table, or delete them.",
            )
        return found

    def _from_vault(self) -> int:
        schema = self._table.schema
        if not self._lake.exists(schema, TOKEN_VAULT):
            return 0
        subjects = pa.table({"subject": pa.array(self._subjects, pa.string())})
        place = self._lake.location(schema, TOKEN_VAULT)
        found = self._lake.storage.among(place, "subject", subjects["subject"].combine_chunks(), ["token"])
        held = 0 if found is None else found.num_rows
        with self._lake.held(schema, alone=True):
            if held:
                self._lake.change_private(schema, TOKEN_VAULT, VAULT, lambda _: subjects, on="subject", change="delete")
            self._lake.purge(schema, TOKEN_VAULT)
        return int(held)

    def _from_files(self) -> tuple[int, int]:
        """Write files anew without their rows; returns how many files and rows that was."""
        feed, zone = self._table.feed, self._bench.zone
        if feed is None:
            return 0, 0
        # What killed loads have left half-written.
        zone.tidy(feed)
        theirs, closed = [], []
        found = [*zone.files(feed), *(file for day in zone.archived_days(feed) for file in zone.archived(feed, day))]
        for number, file in enumerate(found, 1):
            if number % 1000 == 0:
                logger.info("%s: %d of %d files searched", self._table.name, number, len(found))
            try:
                content, left, rows = self._without(file)
            except (OSError, ValueError, KeyRefused):
                closed.append(repr(file.location))
                continue
            if rows:
                theirs.append(_Theirs(file, _sha256(content), _sha256(left), rows))
        # Before the first is written: whoever meets a file that is, or is not yet, if this is killed, takes neither for
        # another one: its hash is the new one, or it looks as it did.
        self._tell_ledger(theirs)
        files, rows = 0, 0
        for one in theirs:
            try:
                _, left, _ = self._without(one.file)
                if _sha256(left) != one.after:
                    raise OSError("it was changed meanwhile")
                zone.write(one.file, left)
            except (OSError, ValueError, KeyRefused):
                closed.append(repr(one.file.location))
                continue
            files, rows = files + 1, rows + one.rows
        if closed:
            more = f" and {len(closed) - 1} more files" if len(closed) > 1 else ""
            self._cannot(
                f"{closed[0]}{more} could not be searched for the person, or not be written.",
                "give the process access, mend the file or remove it.",
            )
        return files, rows

    def _without(self, file: LandedFile) -> tuple[bytes, bytes, int]:
        """A file's bytes, those without the persons' rows, and how many rows that is."""
        if file.size > _LARGEST:
            raise ValueError("it is too large")
        with self._bench.zone.open(file) as stream:
            content = stream.read()
        return content, *without(content, file.path, self._table, self._keys)

    def _tell_ledger(self, theirs: Sequence[_Theirs]) -> None:
        """Record what the files will be, in one commit, where the ledger speaks of what they are now."""
        if not theirs:
            return
        ledger = Ledger(self._lake, self._table, self._bench.clock, self.id)
        archived = {state.archived_as: state for state in ledger.files.values() if state.archived_as is not None}
        told = {}
        for one in theirs:
            file = one.file
            state = ledger.files.get(file.path)
            if file.archived:
                # What was archived plain may have been encrypted since.
                state = archived.get(file.location) or archived.get(file.location.removesuffix(ENCRYPTED))
            if state is not None and state.content_hash != one.after and one.is_told_of_by(state):
                told[state.path] = replace(state, content_hash=one.after)
        ledger.record(list(told.values()), None)


@dataclass(frozen=True)
class _Theirs:
    """A file with rows of the persons.

    Attributes:
        before, after: SHA-256 of its plain bytes with these rows and without.
    """

    file: LandedFile
    before: str
    after: str
    rows: int

    def is_told_of_by(self, state: FileState) -> bool:
        """Whether a state of the ledger is that of the file as it is now, and not of another content of its name."""
        if not (state.settled or state.event is FileEvent.CLAIMED):
            # It is loaded anew, whatever its hash is.
            return False
        if state.content_hash == self.before:
            return True
        # An erasure that was killed may have told of the file without fewer persons. The hash of one that was ignored
        # is that of the content that was loaded, which is another.
        looks = state.event is FileEvent.ARCHIVED if self.file.archived else state.is_of(self.file)
        return looks and state.event is not FileEvent.IGNORED


def _sha256(content: bytes) -> str:
    return sha256(content).hexdigest()


def _together(obstacles: Sequence[LakeError], table: BronzeTable) -> LakeError:
    """One error for all that stood in the way."""
    shown = obstacles[:3]
    more = f" And {len(obstacles) - len(shown)} more." if len(obstacles) > len(shown) else ""
    culprits = " ".join(dict.fromkeys(error.culprit for error in shown))
    fixes = "; ".join(dict.fromkeys(error.fix.removesuffix(".") for error in shown))
    return LakeError(
        f"{culprits}{more} Everything else is erased but the key.", f"{fixes}; then erase again.", table=table.name
    )


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
