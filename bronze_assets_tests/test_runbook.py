"""docs/runbook.md has a section for whatever leads there, and links that lead somewhere."""

from __future__ import annotations

import datetime as dt
import re
from pathlib import Path

import dagster as dg
import pytest

from bronze_assets import __main__ as command_line
from bronze_assets import audit, definitions, errors, quality, runbook
from bronze_assets.audit import LoadRecord
from bronze_assets.catalog import TABLES
from bronze_assets.operations.kpis import KINDS
from bronze_assets.orchestration import checks, slot_checks
from bronze_assets.table import BronzeTable
from bronze_assets_tests.people import people

PAGE = Path(__file__).parents[1] / runbook.PAGE
EVENTS = ["failed_run", "security_event", "channel_failing"]
SITUATIONS = ["slow_loads", "access_denied", "quality_issues", "stuck_capture", "schema_evolution_failures"]
CHECKS_OF_JOBS = ["intact", "assessment", "recovery_time"]


def anchors() -> list[str]:
    """As GitHub makes them of headings: lower case, no punctuation, hyphens for spaces."""
    headings = re.findall(r"^#+ (.+)$", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    return [re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings]


def section(link: str) -> str:
    page, _, anchor = link.partition("#")
    assert page == "docs/runbook.md"
    return anchor


def error_classes() -> list[type[errors.BronzeError]]:
    return [one for one in vars(errors).values() if isinstance(one, type) and issubclass(one, errors.BronzeError)]


@pytest.mark.parametrize("table", [*TABLES, people()], ids=lambda table: str(table.name))
def test_each_check_of_each_table_has_a_section(table: BronzeTable) -> None:
    rules = {rule.name for rule in quality.rules(table)}
    found = {check.name: section(runbook.check_link(table, check.name)) for check in audit.checks(table)}

    assert set(found.values()) <= set(anchors())
    assert {name for name, anchor in found.items() if anchor == "rules"} == rules
    assert all(anchor == name for name, anchor in found.items() if name not in rules)


def test_each_error_kpi_event_situation_and_slot_check_has_a_section() -> None:
    classes = error_classes()
    assert len(classes) > 20
    names = [one.__name__ for one in classes] + [*KINDS, *EVENTS, *SITUATIONS, *CHECKS_OF_JOBS]
    names += [spec.name for spec in slot_checks.check_specs(dg.AssetKey("changes"))]

    assert {section(runbook.link(name)) for name in names} <= set(anchors())


def test_a_heading_leads_to_one_place_and_links_within_the_page_to_one_that_exists() -> None:
    text = PAGE.read_text(encoding="utf-8")
    within = re.findall(r"\]\(#([^)]+)\)", text)
    files = re.findall(r"\]\(([^)#]+)", text)

    assert len(set(anchors())) == len(anchors())
    assert within
    assert set(within) <= set(anchors())
    assert [name for name in files if not (PAGE.parent / name).is_file()] == []


def test_each_result_of_a_load_leads_to_its_section() -> None:
    (table,) = (table for table in TABLES if table.name == "bz_customers")
    now = dt.datetime(2026, 6, 15, 12, tzinfo=dt.UTC)
    record = LoadRecord(table.name, table.schema, "2026-06-15", "2026-06-15/1", "full", started=now, ended=now)
    key = dg.AssetKey([table.schema, table.name])

    links = {r.check_name: r.metadata["runbook"].value for r in checks.check_results(table, key, {"d": record})}
    mismatch = checks.schema_mismatch(key, "d", errors.SchemaMismatch("No column.", "add it."))

    assert links["email_matches"] == "docs/runbook.md#rules"
    assert links["null_share"] == "docs/runbook.md#null_share"
    assert set(links) == {check.name for check in audit.checks(table)}
    assert mismatch.metadata["runbook"].value == "docs/runbook.md#schema"


def test_its_commands_are_there() -> None:
    """Every command line in it is one of the parser's, every target one of the Makefile's, every job Dagster's."""
    text = PAGE.read_text(encoding="utf-8")
    makefile = (PAGE.parents[1] / "Makefile").read_text(encoding="utf-8")
    known = set(re.findall(r"^([a-z-]+):", makefile, re.MULTILINE))
    targets = set(re.findall(r"`make ([a-z-]+)", text))
    assert targets
    assert targets <= known
    told = set(re.findall(r"python\s+-m\s+bronze_assets\s+([a-z-]+)", text))
    assert {"restore", "quarantine", "hold"} <= told
    for command in told:
        with pytest.raises(SystemExit) as ended:
            command_line.main([command, "--help"])
        assert ended.value.code == 0, command
    names = {job.name for job in definitions.defs.resolve_all_job_defs()}
    jobs = set(re.findall(r"(?:Runs|Jobs) → `([a-z_]+)`", text))
    assert jobs
    assert jobs <= names
