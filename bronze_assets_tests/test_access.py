"""The SQL of access: golden files, parsed; what it lets each role see; and what Unity Catalog's rows say of it.

After a change that is meant: `python -m bronze_assets access --catalog dev --output bronze_assets_tests/golden/access`,
then read the difference line by line.
"""

from __future__ import annotations

import datetime as dt
import logging
import re
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pandera.pyspark as pa
import pyspark.sql.types as T
import pytest
import sqlglot
from sqlglot import exp

from bronze_assets import __main__ as command_line
from bronze_assets import access, access_evidence
from bronze_assets.access import SEES, SEES_ERASED, SEES_QUARANTINE, Grant, Role, classified, grants
from bronze_assets.access_evidence import GrantDifference, grant_differences, sql_reads
from bronze_assets.catalog import TABLES
from bronze_assets.errors import SettingsError
from bronze_assets.lakehouse import QUARANTINE
from bronze_assets.operations.monitoring import monitoring_script
from bronze_assets.table import METADATA_COLUMNS, RESCUED, BronzeTable, Cadence, Feed, Pii, column

GOLDEN = Path(__file__).parent / "golden" / "access"
FILES = [
    *("functions.sql", "grants.sql", "masks.sql", "monitoring.sql", "policies.sql", "queries.sql", "row_filters.sql"),
    "tags.sql",
]


class Drivers(pa.DataFrameModel):
    driver_id: T.IntegerType = column(key=True, gt=0, description="Identifies a driver.")
    licence: T.StringType = column(pii=Pii.MEDIUM, description="Number of the licence.")


DRIVERS = BronzeTable("fleet_bronze", "fleet.Drivers", Drivers, Cadence.DAILY, "Who drives.", files=Feed("raw/drivers"))


def generated(catalog: str = "dev") -> dict[str, str]:
    return {
        **access.scripts(TABLES, catalog),
        "queries.sql": access_evidence.query_script(TABLES, catalog),
        "monitoring.sql": monitoring_script(TABLES, catalog),
    }


def statements(text: str) -> list[str]:
    lines = "\n".join(line for line in text.splitlines() if not line.startswith("--"))
    assert lines.rstrip().endswith(";")
    return [statement.strip() for statement in lines.split(";") if statement.strip()]


# ---------------------------------------------------------------------------------------------------------------- SQL


def test_the_sql_is_the_reviewed_one() -> None:
    assert sorted(path.name for path in GOLDEN.iterdir()) == FILES
    assert generated() == {name: (GOLDEN / name).read_text(encoding="utf-8") for name in generated()}


PART = r"`[A-Za-z0-9_ ]+`"
TEXT = r"'[^'\\;]*'"
TABLE = rf"ALTER TABLE {PART}\.{PART}\.{PART}"
BODY = rf"TO `account users`\nEXCEPT {PART}\nFOR TABLES\nMATCH COLUMNS has_tag_value\({TEXT}, {TEXT}\) AS"
UNKNOWN_TO_SQLGLOT = {
    "grants.sql": [rf"GRANT USE CATALOG ON CATALOG {PART} TO {PART}"],
    "tags.sql": [rf"{TABLE} ALTER COLUMN {PART} SET TAGS \({TEXT} = {TEXT}\)"],
    "masks.sql": [rf"{TABLE} ALTER COLUMN {PART} SET MASK {PART}\.{PART}\.{PART}"],
    "row_filters.sql": [rf"{TABLE} SET ROW FILTER {PART}\.{PART}\.{PART} ON \({PART}\)"],
    "policies.sql": [
        rf"CREATE OR REPLACE POLICY {PART}\nON SCHEMA {PART}\.{PART}\nCOMMENT {TEXT}\n"
        rf"COLUMN MASK {PART}\.{PART}\.{PART}\n{BODY} (\w+)\nON COLUMN \1",
        rf"CREATE OR REPLACE POLICY {PART}\nON SCHEMA {PART}\.{PART}\nCOMMENT {TEXT}\n"
        rf"ROW FILTER {PART}\.{PART}\.{PART}\n{BODY} (\w+)\nUSING COLUMNS \(\1\)",
    ],
}
"""Statements that sqlglot keeps as text, by the grammar of Databricks' SQL reference."""

KNOWN_TO_SQLGLOT: dict[str, tuple[type[exp.Expression], ...]] = {
    "grants.sql": (exp.Grant,),
    "tags.sql": (exp.Alter,),
    "functions.sql": (exp.Create,),
    "queries.sql": (exp.Union, exp.Select),
    "monitoring.sql": (exp.Create,),
}


@pytest.mark.parametrize("name", FILES)
def test_every_statement_is_one_of_databricks(name: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL, logger="sqlglot")
    unused = set(UNKNOWN_TO_SQLGLOT.get(name, []))
    for statement in statements(generated()[name]):
        (parsed,) = sqlglot.parse(statement, dialect="databricks", error_level=sqlglot.ErrorLevel.RAISE)
        if isinstance(parsed, exp.Command):
            fitting = [rule for rule in UNKNOWN_TO_SQLGLOT.get(name, []) if re.fullmatch(rule, statement)]
            assert len(fitting) == 1, statement
            unused -= set(fitting)
        else:
            assert isinstance(parsed, KNOWN_TO_SQLGLOT.get(name, ())), statement
    assert not unused, "no statement needs these rules any more"


@pytest.mark.parametrize(
    "statement", ["ALTER TABLE `a`.`b`.`c` ALTER COLUMN `d` SET MASK `e`", "GRANT ALL ON CATALOG x"]
)
def test_the_grammar_is_strict(statement: str) -> None:
    assert not any(re.fullmatch(rule, statement) for rules in UNKNOWN_TO_SQLGLOT.values() for rule in rules)


@pytest.mark.parametrize("name", ["masks.sql", "policies.sql", "row_filters.sql"])
def test_what_is_called_is_made(name: str) -> None:
    made = re.findall(rf"FUNCTION ({PART}\.{PART}\.{PART})\(", generated()["functions.sql"])
    called = re.findall(rf"(?:MASK|FILTER) ({PART}\.{PART}\.{PART})", generated()[name])
    assert called
    assert set(called) <= set(made)


def test_every_table_and_column_that_is_named_is_there() -> None:
    columns = {table.name: {*(c.name for c in table.columns), *METADATA_COLUMNS} for table in TABLES}
    for table in TABLES:
        if table.feed is not None:
            columns[table.name].add(RESCUED)
    columns |= {table.quarantine_name: set(QUARANTINE.names) for table in TABLES}
    for name in ("tags.sql", "masks.sql", "row_filters.sql"):
        for statement in statements(generated()[name]):
            relation, *more = re.findall(r"TABLE `dev`\.`\w+`\.`(\w+)`(?: ALTER COLUMN `(\w+)`)?", statement)[0]
            assert {*more} - {""} <= columns[relation], statement


def test_every_protected_column_is_tagged_and_masked() -> None:
    for table in TABLES:
        for found in table.columns:
            where = f"ALTER TABLE `dev`.`{table.schema}`.`{table.name}` ALTER COLUMN `{found.name}`"
            assert (f"{where} SET MASK" in generated()["masks.sql"]) is found.pii.protected
            tagged = f"{where} SET TAGS ('personal_data' = '{found.pii}');" in generated()["tags.sql"]
            assert tagged is (found.pii is not Pii.NONE)


def test_what_may_hold_a_protected_value_beside_the_table_is_of_class_high() -> None:
    assert [(found.relation, found.column, found.pii) for found in classified([DRIVERS])] == [
        ("bz_drivers", "licence", Pii.MEDIUM),
        ("bz_drivers", RESCUED, Pii.HIGH),
        ("bz_drivers_quarantine", "raw_row", Pii.HIGH),
    ]


@pytest.mark.parametrize("catalog", ["", "a b", "a.b", "a`b", "a'b", "a/b", "a\nb", "a;b", "a\u2028b"])
def test_a_catalog_that_cannot_be_is_refused(catalog: str) -> None:
    for make in (access.scripts, access_evidence.queries):
        with pytest.raises(SettingsError, match="no name that Unity Catalog takes"):
            make(TABLES, catalog)


def test_a_catalog_with_a_hyphen_is_quoted() -> None:
    assert "ON CATALOG `qa-eu` TO" in generated("qa-eu")["grants.sql"]


def test_the_command_writes_and_prints_the_sql(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command_line.main(["access", "--catalog", "dev", "--output", str(tmp_path / "sql")]) == 0
    assert {path.name: path.read_text(encoding="utf-8") for path in (tmp_path / "sql").iterdir()} == generated()
    capsys.readouterr()
    assert command_line.main(["access", "--catalog", "dev"]) == 0
    printed = capsys.readouterr().out
    assert all(f"-- {name}\n{text}" in printed for name, text in generated().items())


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").touch()
    assert command_line.main(["access", "--catalog", "dev", "--output", str(tmp_path / "file")]) == 1
    assert "file cannot be written" in capsys.readouterr().err


# -------------------------------------------------------------------------------------------------- who may see what


def as_role(function: str, role: str) -> Callable[[str | None], Any]:
    """The generated function as a member of that one group meets it, computed by SQLite."""
    (text,) = (s for s in statements(generated()["functions.sql"]) if f"`{function}`" in s)
    parsed = sqlglot.parse_one(text, dialect="databricks")
    assert isinstance(parsed, exp.Create)
    (argument,) = parsed.this.expressions
    body = parsed.expression
    for call in list(body.find_all(exp.Anonymous)):
        assert call.name.lower() == "is_account_group_member"
        call.replace(exp.Boolean(this=call.expressions[0].name == role))
    returned = body.this if isinstance(body, exp.Return) else body
    query = f"select {returned.sql('sqlite')} from (select ? as {argument.name})"
    return lambda given: sqlite3.connect(":memory:").execute(query, [given]).fetchone()[0]


@pytest.mark.parametrize("role", [*Role, "somebody else"])
@pytest.mark.parametrize("pii", [pii for pii in Pii if pii.protected])
def test_a_mask_shows_what_is_stored_to_those_who_may_see_the_class_and_to_nobody_else(pii: Pii, role: str) -> None:
    mask = as_role(f"bz_mask_{pii.lower()}", role)
    assert mask("stored") == ("stored" if role in SEES[pii] else "***")
    assert mask("") == ("" if role in SEES[pii] else "***")
    assert mask(None) is None


@pytest.mark.parametrize("role", [*Role, "somebody else"])
def test_rows_of_erased_persons_are_hidden(role: str) -> None:
    shown = as_role("bz_row_shown", role)
    assert shown("ACTIVE")
    assert shown("DELETED")
    assert bool(shown("ERASED")) is (role in SEES_ERASED)
    # A filter that yields NULL hides the row.
    assert bool(shown(None)) is (role in SEES_ERASED)


def test_a_higher_class_is_seen_by_fewer() -> None:
    none, low, medium, high = (SEES[pii] for pii in Pii)
    assert none >= low >= medium >= high
    assert Role.AUDITORS not in none
    assert Role.ANALYSTS not in medium
    assert high == {Role.PLATFORM, Role.PRIVACY_OFFICERS}


def readers(name: str) -> set[str]:
    return {grant.grantee for grant in grants(TABLES, "dev") if grant.path[-1] == name and grant.kind == "TABLE"}


def test_only_the_platform_reads_keys_vault_and_tombstones() -> None:
    for name in (access.SUBJECT_KEYS, access.TOKEN_VAULT, access.TOMBSTONES):
        assert readers(name) == set()
    # Whatever is granted on a schema or catalog is granted on these too.
    wide = {grant.grantee for grant in grants(TABLES, "dev") if grant.kind != "TABLE" and "USE" not in grant.privilege}
    assert wide == {Role.PLATFORM}


def test_only_the_platform_writes() -> None:
    writing = {
        grant.grantee
        for grant in grants(TABLES, "dev")
        if grant.privilege not in ("USE CATALOG", "USE SCHEMA", "SELECT")
    }
    assert writing == {Role.PLATFORM}


def test_auditors_read_logs_and_nothing_else() -> None:
    seen = {
        grant.path[-1] for grant in grants(TABLES, "dev") if grant.grantee == Role.AUDITORS and grant.kind == "TABLE"
    }
    logs = {"bz_audit_log", "bz_schema_versions", "bz_maintenance_log", "bz_copy_log", "bz_restore_drills"}
    logs |= {access.ACCESS_LOG, access.ERASURE_LOG, access.GRANT_CHECKS}
    assert seen == logs | {access.DERIVED_TABLES, access.LEGAL_HOLDS, access.RETENTION_LOG}


def test_engineers_do_not_read_who_read_what() -> None:
    assert readers(access.ACCESS_LOG) == {Role.PRIVACY_OFFICERS, Role.AUDITORS}


def test_quarantines_are_not_for_analysts() -> None:
    for table in TABLES:
        assert readers(table.quarantine_name) == SEES_QUARANTINE - {Role.PLATFORM}


def test_only_schemas_with_personal_data_have_keys_and_their_logs() -> None:
    assert {c.name for c in access.controls(TABLES, "manufacturing_bronze")} == {
        c.name for c in access.CONTROLS if not c.personal
    }
    assert access.controls(TABLES, "inventory_bronze") == access.CONTROLS


def test_the_document_says_who_may_see_what() -> None:
    text = (Path(__file__).parents[1] / "docs" / "access.md").read_text(encoding="utf-8")

    def row(name: str, roles: frozenset[Role]) -> str:
        return f"| {name} |" + "".join(" yes |" if role in roles else " |" for role in Role)

    expected = [row(f"{pii} columns, as stored", SEES[pii]) for pii in Pii]
    expected += [row("rows that are ERASED", SEES_ERASED), row("quarantine", SEES_QUARANTINE)]
    expected += [row(f"`{c.name}`", c.readers | {Role.PLATFORM}) for c in access.CONTROLS]
    expected += [f"| `{role}` | {role.reason} |" for role in Role]
    assert [line for line in expected if line not in text.splitlines()] == []


# ------------------------------------------------------------------------------------------------------ actual grants


def rows_of(found: tuple[Grant, ...]) -> Iterator[dict[str, Any]]:
    """As the generated query brings them: inherited privileges are told of the table too."""
    for grant in found:
        path = [*grant.path, None, None][:3]
        yield {
            "grantee": grant.grantee,
            **dict(zip(("table_catalog", "table_schema", "table_name"), path, strict=True)),
            "privilege_type": grant.privilege.replace(" ", "_"),
            "inherited_from": "NONE",
        }
        if grant.kind == "SCHEMA":
            yield {
                "grantee": grant.grantee,
                "table_catalog": grant.path[0],
                "table_schema": grant.path[1],
                "table_name": "bz_orders",
                "privilege_type": grant.privilege.replace(" ", "_"),
                "inherited_from": "SCHEMA",
            }


DECLARED = grants(TABLES, "dev")
KEYS = ("dev", "inventory_bronze", "bz_subject_keys")


def test_grants_as_declared_differ_in_nothing() -> None:
    assert grant_differences(TABLES, "dev", rows_of(DECLARED)) == []
    assert grant_differences(TABLES, "Dev", rows_of(DECLARED)) == []


def test_a_missing_grant_is_named_with_its_statement() -> None:
    (missing,) = grant_differences(TABLES, "dev", rows_of(DECLARED[:-1]))
    assert missing == GrantDifference(DECLARED[-1], missing=True)
    assert str(missing) == (
        "bronze_auditors lacks SELECT on the table dev.manufacturing_bronze.bz_retention_log."
        " Fix: GRANT SELECT ON TABLE `dev`.`manufacturing_bronze`.`bz_retention_log` TO `bronze_auditors`;"
    )


def test_nothing_granted_is_everything_missing() -> None:
    assert [found.grant for found in grant_differences(TABLES, "dev", [])] == list(DECLARED)


def test_an_unexpected_grant_is_named_with_its_statement() -> None:
    rows = [*rows_of(DECLARED), *rows_of((Grant("TABLE", KEYS, "SELECT", "eve@example.com"),))]
    (unexpected,) = grant_differences(TABLES, "dev", rows)
    assert str(unexpected) == (
        "eve@example.com has SELECT on the table dev.inventory_bronze.bz_subject_keys, which is not declared."
        " Fix: REVOKE SELECT ON TABLE `dev`.`inventory_bronze`.`bz_subject_keys` FROM `eve@example.com`;"
    )


def test_a_grant_on_the_catalog_that_tables_inherit_is_one_difference() -> None:
    inherited = [
        {"grantee": "everybody", "privilege_type": "SELECT", "inherited_from": "CATALOG"}
        | {"table_catalog": "dev", "table_schema": "inventory_bronze", "table_name": name}
        for name in ("bz_orders", "bz_subject_keys")
    ]
    (unexpected,) = grant_differences(TABLES, "dev", [*rows_of(DECLARED), *inherited])
    assert unexpected.grant == Grant("CATALOG", ("dev",), "SELECT", "everybody")


def test_a_table_that_nobody_declared_is_no_hole() -> None:
    copy = Grant("TABLE", ("dev", "inventory_bronze", "customers_copy"), "ALL PRIVILEGES", "eve")
    assert [found.grant for found in grant_differences(TABLES, "dev", rows_of((*DECLARED, copy)))] == [copy]


@pytest.mark.parametrize(
    "grant",
    [
        Grant("TABLE", ("dev", "other", "t"), "SELECT", "eve"),
        Grant("TABLE", ("other", "inventory_bronze", "bz_orders"), "SELECT", "eve"),
        Grant("CATALOG", ("dev",), "BROWSE", "account users"),
    ],
)
def test_what_does_not_concern_the_tables_is_passed_over(grant: Grant) -> None:
    assert grant_differences(TABLES, "dev", rows_of((*DECLARED, grant))) == []


def test_show_grants_is_understood() -> None:
    rows = [
        {"Principal": g.grantee, "ActionType": g.privilege, "ObjectType": g.kind, "ObjectKey": ".".join(g.path)}
        for g in DECLARED
    ]
    assert grant_differences(TABLES, "dev", rows) == []
    rows.append({"Principal": "eve", "ActionType": "MODIFY", "ObjectType": "DATABASE", "ObjectKey": "inventory_bronze"})
    assert [found.grant for found in grant_differences(TABLES, "dev", rows)] == [
        Grant("SCHEMA", ("dev", "inventory_bronze"), "MODIFY", "eve")
    ]


def test_schema_and_catalog_privileges_are_understood() -> None:
    rows: list[dict[str, Any]] = [
        {"GRANTEE": "eve", "CATALOG_NAME": "dev", "PRIVILEGE_TYPE": "MANAGE", "INHERITED_FROM": None},
        {"GRANTEE": "eve", "CATALOG_NAME": "dev", "SCHEMA_NAME": "inventory_bronze", "PRIVILEGE_TYPE": "EXECUTE"},
    ]
    found = grant_differences(TABLES, "dev", [*rows_of(DECLARED), *rows])
    assert [(f.grant.kind, f.grant.privilege) for f in found] == [("CATALOG", "MANAGE"), ("SCHEMA", "EXECUTE")]


def test_rows_of_something_else_are_refused() -> None:
    with pytest.raises(KeyError):
        grant_differences(TABLES, "dev", [{"grantee": "eve", "volume_name": "v", "privilege_type": "READ_VOLUME"}])


# ------------------------------------------------------------------------------------------------- reads past `reveal`

NOON = dt.datetime(2026, 11, 21, 12, tzinfo=dt.UTC)
PLATFORM = "6f1f2c1e-0000-4000-8000-000000000001"
CUSTOMERS = "dev.inventory_bronze.bz_customers"


def event(number: int = 1, *, who: str = "ann@example.com", table: str = CUSTOMERS, **changes: Any) -> dict[str, Any]:
    """As in `system.access.audit`."""
    return {
        "event_id": f"e{number}",
        "event_time": NOON + dt.timedelta(minutes=number),
        "user_identity": {"email": who, "subject_name": None},
        "identity_metadata": {"run_by": None, "run_as": None},
        "source_ip_address": "10.0.0.7",
        "action_name": "generateTemporaryTableCredential",
        "request_params": {"table_full_name": table, "operation": "READ", "table_id": "t"},
        "response": {"status_code": 200, "error_message": None, "result": None},
        **changes,
    }


def took(
    column_name: str | None, minute: int = 1, *, who: str = "ann@example.com", statement: str | None = "s1"
) -> dict[str, Any]:
    """As in `system.access.column_lineage`."""
    return {
        "event_id": f"l-{column_name}-{minute}",
        "event_time": NOON + dt.timedelta(minutes=minute),
        "created_by": who,
        "entity_type": "NOTEBOOK",
        "statement_id": statement,
        "source_table_full_name": CUSTOMERS,
        "source_column_name": column_name,
    }


def test_a_read_by_sql_becomes_a_row_of_the_access_log() -> None:
    (read,) = sql_reads(TABLES, "dev", [event()], platform={PLATFORM})
    assert read == access_evidence.SqlRead(
        event_id="e1",
        who="ann@example.com",
        when=NOON + dt.timedelta(minutes=1),
        table="inventory_bronze.bz_customers",
        columns=(),
        how="audit log: READ from 10.0.0.7",
    )
    assert read.purpose == "sql"


def test_lineage_tells_the_columns() -> None:
    lineage = [took("email"), took("customer_name"), took("customer_id"), took("email", 50, statement="s2")]
    first, second = sql_reads(TABLES, "dev", [event()], lineage, platform={PLATFORM})
    assert first.columns == ("customer_name", "email")
    # Compute still had access from before, so the audit log knows nothing of the second.
    assert (second.columns, second.how, second.event_id) == (("email",), "lineage: NOTEBOOK", "l-email-50")


def test_lineage_of_other_columns_or_other_people_is_no_evidence() -> None:
    lineage = [took("customer_id"), took(None), took("email", who=PLATFORM), took("email", 2, who="bob@example.com")]
    ann, bob = sql_reads(TABLES, "dev", [event()], lineage, platform={PLATFORM})
    assert (ann.who, ann.columns) == ("ann@example.com", ())
    assert (bob.who, bob.columns) == ("bob@example.com", ("email",))


@pytest.mark.parametrize(
    "row",
    [
        event(who=PLATFORM),
        event(table="dev.inventory_bronze.bz_orders"),
        event(table="qa.inventory_bronze.bz_customers"),
        event(action_name="getTable"),
        event(response={"status_code": 403, "error_message": "denied", "result": None}),
        event(request_params={"table_id": "t"}),
        event(request_params=None),
    ],
)
def test_what_is_no_read_of_personal_data_past_reveal_is_left_out(row: dict[str, Any]) -> None:
    assert sql_reads(TABLES, "dev", [row], platform={PLATFORM}) == []


@pytest.mark.parametrize(
    "name", ["bz_suppliers", "bz_customers_quarantine", "bz_subject_keys", "bz_token_vault", "bz_tombstones"]
)
def test_quarantines_keys_and_vault_are_watched_too(name: str) -> None:
    (read,) = sql_reads(TABLES, "DEV", [event(table=f"dev.inventory_bronze.{name}")], platform={PLATFORM})
    assert read.table == f"inventory_bronze.{name}"


def test_a_read_without_an_answer_in_the_log_counts() -> None:
    assert len(sql_reads(TABLES, "dev", [event(response=None)], platform={PLATFORM})) == 1


def test_a_person_who_works_as_the_platform_is_named() -> None:
    row = event(who=PLATFORM, identity_metadata={"run_by": "eve@example.com", "run_as": PLATFORM})
    assert [read.who for read in sql_reads(TABLES, "dev", [row], platform={PLATFORM})] == ["eve@example.com"]


def test_an_event_that_is_met_twice_is_one_read() -> None:
    assert len(sql_reads(TABLES, "dev", [event(), event()], [took("email"), took("email")], platform={PLATFORM})) == 1


def test_reads_come_in_order_of_time() -> None:
    reads = sql_reads(TABLES, "dev", [event(3), event(1), event(2)], platform={PLATFORM})
    assert [read.event_id for read in reads] == ["e1", "e2", "e3"]


def test_the_queries_fetch_every_column_that_is_read() -> None:
    privileges, audit, lineage = statements(generated()["queries.sql"])

    def selected(query: str) -> set[str]:
        parsed = sqlglot.parse_one(query, dialect="databricks")
        assert isinstance(parsed, exp.Query)
        return set(parsed.named_selects)

    assert selected(audit) == set(event())
    assert selected(lineage) == set(took("email"))
    assert selected(privileges) == set(next(rows_of(DECLARED)))
