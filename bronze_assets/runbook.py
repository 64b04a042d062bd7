"""Where docs/runbook.md says what an alert, a check, a KPI or an error means and what to do."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from bronze_assets.quality import rules
from bronze_assets.table import BronzeTable

PAGE: Final = "docs/runbook.md"
RULES: Final = "rules"
"""The section of all rules: their names are those of the tables' columns."""


def link(name: str) -> str:
    """The section of a check, KPI, event, situation or error class, as a path in the checkout."""
    return f"{PAGE}#{name.lower()}"


def check_link(table: BronzeTable, check: str) -> str:
    """The section of one of a table's checks."""
    return link(RULES if check in {rule.name for rule in rules(table)} else check)


def address() -> str:
    """The runbook for a page on this machine; sections follow after a `#`."""
    page = Path(__file__).parents[1] / PAGE
    # A wheel has no docs: the page then names the section that a checkout has.
    return page.as_uri() if page.is_file() else PAGE
