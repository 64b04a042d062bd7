"""Who may see what on Unity Catalog: roles, stated once, and the SQL that follows from the tables' declarations.

The class of a column (`Pii`) decides, by `SEES`, who sees its stored form: plain text for None and Low, a token for
Medium, ciphertext for High. Nobody gets from a token or ciphertext to the value by SQL: that is `reveal`, which logs
first.

What does not belong here: keys and ciphers, and what Unity Catalog says happened (`access_evidence`).
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from bronze_assets.audit import AUDIT_LOG
from bronze_assets.batches import BATCHES
from bronze_assets.errors import SettingsError
from bronze_assets.leases import LEASES
from bronze_assets.schema_versions import SCHEMA_VERSIONS
from bronze_assets.settings import CATALOG_NAME
from bronze_assets.sources.ledger import LEDGER
from bronze_assets.table import RESCUED, BronzeTable, Pii

SUBJECT_KEYS = "bz_subject_keys"
TOKEN_VAULT = "bz_token_vault"
TOMBSTONES = "bz_tombstones"
ACCESS_LOG = "bz_access_log"
ERASURE_LOG = "bz_erasure_log"
GRANT_CHECKS = "bz_grant_checks"
DERIVED_TABLES = "bz_derived_tables"
MAINTENANCE_LOG = "bz_maintenance_log"
COPY_LOG = "bz_copy_log"
RESTORE_DRILLS = "bz_restore_drills"
LEGAL_HOLDS = "bz_legal_holds"
RETENTION_LOG = "bz_retention_log"


class Role(enum.StrEnum):
    """Who works with the tables; the value is the name of the account group."""

    PLATFORM = "bronze_platform"
    PRIVACY_OFFICERS = "bronze_privacy_officers"
    ENGINEERS = "bronze_engineers"
    ANALYSTS = "bronze_analysts"
    AUDITORS = "bronze_auditors"

    @property
    def reason(self) -> str:
        """What the role is there for."""
        return {
            Role.PLATFORM: "the service principal that loads, reveals and erases; the only one that holds keys",
            Role.PRIVACY_OFFICERS: "may ask for values with reveal, answer for erasures, check what is stored",
            Role.ENGINEERS: "run the loads and mend them: quarantine, batches, ledger; no need to know a person",
            Role.ANALYSTS: "work with the rows as they are now; no need to know a person or that one was erased",
            Role.AUDITORS: "judge what was done from the logs; no need to see a row",
        }[self]


_READERS = frozenset({Role.PLATFORM, Role.PRIVACY_OFFICERS, Role.ENGINEERS, Role.ANALYSTS})

SEES: Mapping[Pii, frozenset[Role]] = {
    Pii.NONE: _READERS,
    Pii.LOW: _READERS,
    # Equal tokens are equal values: enough to mend a join, and enough to tell a person by how often they appear.
    Pii.MEDIUM: _READERS - {Role.ANALYSTS},
    Pii.HIGH: frozenset({Role.PLATFORM, Role.PRIVACY_OFFICERS}),
}
"""Who sees the stored form of a column of that class; everybody else sees `***` (tables.md, section Personal data)."""

SEES_ERASED = _READERS - {Role.ANALYSTS}
"""Who sees rows whose `record_status` is ERASED: those who have to show that an erasure happened and was whole."""

SEES_QUARANTINE = _READERS - {Role.ANALYSTS}
"""Who sees quarantined rows: those who mend them, and who answer for what is in them."""


@dataclass(frozen=True)
class Control:
    """A control table, one per schema.

    Attributes:
        readers: who may read it beside the platform; nobody else ever writes it.
        reason: why these.
        personal: whether only schemas with personal data have it.
    """

    name: str
    readers: frozenset[Role]
    reason: str
    personal: bool = False


CONTROLS = (
    Control(
        AUDIT_LOG,
        frozenset({Role.ENGINEERS, Role.PRIVACY_OFFICERS, Role.AUDITORS}),
        "what each load did; holds no values",
    ),
    Control(BATCHES, frozenset({Role.ENGINEERS}), "how far each batch came"),
    Control(LEASES, frozenset({Role.ENGINEERS}), "who is loading"),
    Control(LEDGER, frozenset({Role.ENGINEERS}), "what happened to each file"),
    Control(SCHEMA_VERSIONS, frozenset({Role.ENGINEERS, Role.AUDITORS}), "who accepted which column"),
    Control(MAINTENANCE_LOG, frozenset({Role.ENGINEERS, Role.AUDITORS}), "what maintenance did to each table's files"),
    Control(COPY_LOG, frozenset({Role.ENGINEERS, Role.AUDITORS}), "what was copied and restored; holds no values"),
    Control(RESTORE_DRILLS, frozenset({Role.ENGINEERS, Role.AUDITORS}), "how long it took to restore; holds no values"),
    Control(
        GRANT_CHECKS,
        frozenset({Role.PRIVACY_OFFICERS, Role.AUDITORS}),
        "how the grants differed from the declared ones; those who are watched do not read it",
    ),
    Control(
        LEGAL_HOLDS,
        frozenset({Role.PRIVACY_OFFICERS, Role.AUDITORS}),
        "what a claim keeps from removal, and why; names no person",
    ),
    Control(
        RETENTION_LOG,
        frozenset({Role.ENGINEERS, Role.PRIVACY_OFFICERS, Role.AUDITORS}),
        "what has been removed for its age; holds no values",
    ),
    Control(SUBJECT_KEYS, frozenset(), "a key opens every value of its person", personal=True),
    Control(TOKEN_VAULT, frozenset(), "leads from tokens back to values", personal=True),
    Control(TOMBSTONES, frozenset(), "says who has been forgotten", personal=True),
    Control(
        ACCESS_LOG,
        frozenset({Role.PRIVACY_OFFICERS, Role.AUDITORS}),
        "who read whose data; those who are watched do not read it",
        personal=True,
    ),
    Control(ERASURE_LOG, frozenset({Role.PRIVACY_OFFICERS, Role.AUDITORS}), "evidence of erasures", personal=True),
    Control(
        DERIVED_TABLES,
        frozenset({Role.ENGINEERS, Role.PRIVACY_OFFICERS, Role.AUDITORS}),
        "which tables an erasure sweeps too; holds no values",
        personal=True,
    ),
)


@dataclass(frozen=True, order=True)
class Grant:
    """One privilege of one grantee on one object.

    Attributes:
        kind: `CATALOG`, `SCHEMA` or `TABLE`.
        path: the object's name, from the catalog down.
        privilege: in the words of GRANT, e.g. `USE SCHEMA`.
        grantee: an account group's name; in what is there, any principal's.
    """

    kind: str
    path: tuple[str, ...]
    privilege: str
    grantee: str

    @property
    def statement(self) -> str:
        """The GRANT."""
        return f"GRANT {self._what} TO {quoted(self.grantee)}"

    @property
    def revocation(self) -> str:
        """The REVOKE."""
        return f"REVOKE {self._what} FROM {quoted(self.grantee)}"

    @property
    def _what(self) -> str:
        return f"{self.privilege} ON {self.kind} {quoted(*self.path)}"


@dataclass(frozen=True)
class Classified:
    """A stored column that holds personal data, in a bronze table or beside it."""

    schema: str
    relation: str
    column: str
    pii: Pii


def quoted(*path: str) -> str:
    """A name as SQL writes it."""
    return ".".join("`" + part.replace("`", "``") + "`" for part in path)


def literal(text: str) -> str:
    """A text as SQL writes it."""
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"


def checked_catalog(name: str) -> str:
    """The name of a catalog.

    Raises:
        SettingsError: Unity Catalog takes no such name.
    """
    if not CATALOG_NAME.fullmatch(name):
        raise SettingsError(
            f"the catalog {name!r} is no name that Unity Catalog takes.",
            "name a catalog, without spaces, periods, semicolons, slashes and quotes.",
        )
    return name


def highest(classes: Iterable[Pii]) -> Pii:
    """The highest of some classes; None of none."""
    return max(classes, key=list(Pii).index, default=Pii.NONE)


def classified(tables: Iterable[BronzeTable]) -> Iterator[Classified]:
    """Every stored column with personal data: the declared ones, and what may hold them beside the table.

    A row that could not be loaded lies in the quarantine as it came (`raw_row`), and a misspelt name brings a value
    into `_rescued_data`: nothing tells which value it is, so both are of class High where any column is protected.
    """
    for table in tables:
        for column in table.columns:
            if column.pii is not Pii.NONE:
                yield Classified(table.schema, table.name, column.name, column.pii)
        if table.has_personal_data:
            worst = highest(column.pii for column in table.columns)
            beside = Pii.HIGH if worst.protected else worst
            if table.feed is not None:
                yield Classified(table.schema, table.name, RESCUED, beside)
            yield Classified(table.schema, table.quarantine_name, "raw_row", beside)


def controls(tables: Sequence[BronzeTable], schema: str) -> tuple[Control, ...]:
    """The control tables that a schema has."""
    personal = any(table.has_personal_data for table in tables if table.schema == schema)
    return tuple(control for control in CONTROLS if personal or not control.personal)


def grants(tables: Sequence[BronzeTable], catalog: str) -> tuple[Grant, ...]:
    """Every privilege that is declared, in the order in which to grant them.

    Only the platform gets any on a whole schema: what is granted there holds for the keys and the vault too.
    """
    found = [Grant("CATALOG", (catalog,), "USE CATALOG", role) for role in Role]
    for schema in schemas(tables):
        found += [Grant("SCHEMA", (catalog, schema), "USE SCHEMA", role) for role in Role]
        found += [
            Grant("SCHEMA", (catalog, schema), privilege, Role.PLATFORM)
            for privilege in ("CREATE TABLE", "SELECT", "MODIFY")
        ]
        readers: dict[str, frozenset[Role]] = {}
        for table in tables:
            if table.schema == schema:
                readers |= {table.name: SEES[Pii.NONE], table.quarantine_name: SEES_QUARANTINE}
        readers |= {control.name: control.readers for control in controls(tables, schema)}
        found += [
            Grant("TABLE", (catalog, schema, name), "SELECT", role)
            for name, roles in readers.items()
            for role in Role
            if role in roles - {Role.PLATFORM}
        ]
    return tuple(found)


def schemas(tables: Iterable[BronzeTable]) -> tuple[str, ...]:
    """The schemas of the tables, in order of declaration."""
    return tuple(dict.fromkeys(table.schema for table in tables))


PERSONAL_DATA = "personal_data"
ERASURE = "erasure"
STATUS = "record_status"
_ROW_SHOWN = "bz_row_shown"


def scripts(tables: Sequence[BronzeTable], catalog: str) -> dict[str, str]:
    """The SQL, file name → text. Each file has one owner; each statement may be run again.

    Args:
        catalog: the catalog of the tables' schemas.

    Raises:
        SettingsError: the catalog cannot have that name.
    """
    checked_catalog(catalog)
    files = {
        "grants.sql": (_GRANTS, [grant.statement for grant in grants(tables, catalog)]),
        "tags.sql": (_TAGS, _tags(tables, catalog)),
        "functions.sql": (_FUNCTIONS, _functions(tables, catalog)),
        "policies.sql": (_POLICIES, _policies(tables, catalog)),
        "masks.sql": (_MASKS, _masks(tables, catalog)),
        "row_filters.sql": (_ROW_FILTERS, _row_filters(tables, catalog)),
    }
    return {name: script(heading, statements) for name, (heading, statements) in files.items()}


def script(heading: str, statements: Iterable[str]) -> str:
    """A file of statements under a comment."""
    lines = [f"-- {line}" for line in ("Made by `python -m bronze_assets access`.", *heading.splitlines())]
    for statement in statements:
        # One-liners stand close together, like a list.
        if "\n" in statement or lines[-1].startswith("--"):
            lines.append("")
        lines.append(f"{statement};")
    return "\n".join(lines) + "\n"


_GRANTS = "Who may use which table; leave it out where Terraform owns the grants."
_TAGS = "The class of every column with personal data, and of every table. policies.sql goes by these tags."
_FUNCTIONS = "What policies.sql, masks.sql and row_filters.sql call."
_POLICIES = """Masks and row filters for the tables that the platform loads: by tag, with the platform exempt, because a
load reads the history of its tables, which Unity Catalog refuses to everybody whom a mask or row filter concerns.
The tags must be governed tags of the account."""
_MASKS = """Column masks, table by table. INSTEAD of policies.sql, and not on tables that the platform loads: with these
nobody can read the history of a table or travel in time, the platform included."""
_ROW_FILTERS = "Row filters, table by table. They go with masks.sql, and the same holds for them."


def _tags(tables: Sequence[BronzeTable], catalog: str) -> Iterator[str]:
    for table in tables:
        for name in (table.name, table.quarantine_name):
            worst = highest(found.pii for found in classified([table]) if found.relation == name)
            tags = {PERSONAL_DATA: worst, "source_system": table.source_system}
            given = ", ".join(f"{literal(key)} = {literal(value)}" for key, value in tags.items())
            yield f"ALTER TABLE {quoted(catalog, table.schema, name)} SET TAGS ({given})"
    for found in classified(tables):
        yield (
            f"ALTER TABLE {quoted(catalog, found.schema, found.relation)} ALTER COLUMN {quoted(found.column)}"
            f" SET TAGS ({literal(PERSONAL_DATA)} = {literal(found.pii)})"
        )
    for table in _erasable(tables):
        yield (
            f"ALTER TABLE {quoted(catalog, table.schema, table.name)} ALTER COLUMN {quoted(STATUS)}"
            f" SET TAGS ({literal(ERASURE)} = {literal(STATUS)})"
        )


def _functions(tables: Sequence[BronzeTable], catalog: str) -> Iterator[str]:
    for schema, pii in _masked(tables):
        yield (
            # A protected value is stored as text, whatever its type was.
            f"CREATE OR REPLACE FUNCTION {quoted(catalog, schema, _mask(pii))}(value STRING)\n"
            "RETURNS STRING\n"
            f"COMMENT {literal(f'Personal data of class {pii}: as stored for those who may see it, else ***.')}\n"
            "RETURN CASE\n"
            f"  WHEN {_is_one_of(SEES[pii])} THEN value\n"
            "  WHEN value IS NOT NULL THEN '***'\n"
            "END"
        )
    for schema in schemas(_erasable(tables)):
        yield (
            f"CREATE OR REPLACE FUNCTION {quoted(catalog, schema, _ROW_SHOWN)}(record_status STRING)\n"
            "RETURNS BOOLEAN\n"
            "COMMENT 'Whether a row is shown: ERASED ones only to those who answer for erasures.'\n"
            f"RETURN record_status <> 'ERASED' OR {_is_one_of(SEES_ERASED)}"
        )


def _policies(tables: Sequence[BronzeTable], catalog: str) -> Iterator[str]:
    everybody = f"TO `account users`\nEXCEPT {quoted(Role.PLATFORM)}\nFOR TABLES"
    for schema, pii in _masked(tables):
        yield (
            f"CREATE OR REPLACE POLICY {quoted(_mask(pii))}\n"
            f"ON SCHEMA {quoted(catalog, schema)}\n"
            f"COMMENT {literal(f'Masks personal data of class {pii}.')}\n"
            f"COLUMN MASK {quoted(catalog, schema, _mask(pii))}\n"
            f"{everybody}\n"
            f"MATCH COLUMNS has_tag_value({literal(PERSONAL_DATA)}, {literal(pii)}) AS masked\n"
            "ON COLUMN masked"
        )
    for schema in schemas(_erasable(tables)):
        yield (
            f"CREATE OR REPLACE POLICY {quoted(_ROW_SHOWN)}\n"
            f"ON SCHEMA {quoted(catalog, schema)}\n"
            "COMMENT 'Hides rows of erased persons.'\n"
            f"ROW FILTER {quoted(catalog, schema, _ROW_SHOWN)}\n"
            f"{everybody}\n"
            f"MATCH COLUMNS has_tag_value({literal(ERASURE)}, {literal(STATUS)}) AS status\n"
            "USING COLUMNS (status)"
        )


def _masks(tables: Sequence[BronzeTable], catalog: str) -> Iterator[str]:
    for found in classified(tables):
        if found.pii.protected:
            yield (
                f"ALTER TABLE {quoted(catalog, found.schema, found.relation)} ALTER COLUMN {quoted(found.column)}"
                f" SET MASK {quoted(catalog, found.schema, _mask(found.pii))}"
            )


def _row_filters(tables: Sequence[BronzeTable], catalog: str) -> Iterator[str]:
    for table in _erasable(tables):
        yield (
            f"ALTER TABLE {quoted(catalog, table.schema, table.name)}"
            f" SET ROW FILTER {quoted(catalog, table.schema, _ROW_SHOWN)} ON ({quoted(STATUS)})"
        )


def _erasable(tables: Iterable[BronzeTable]) -> tuple[BronzeTable, ...]:
    """Only a table with personal data has rows of an erased person."""
    return tuple(table for table in tables if table.has_personal_data)


def _masked(tables: Iterable[BronzeTable]) -> list[tuple[str, Pii]]:
    return list(dict.fromkeys((found.schema, found.pii) for found in classified(tables) if found.pii.protected))


def _mask(pii: Pii) -> str:
    return f"bz_mask_{pii.lower()}"


def _is_one_of(roles: frozenset[Role]) -> str:
    return " OR ".join(f"is_account_group_member({literal(role)})" for role in Role if role in roles)
