"""The assessments of a schema's tables of one month, kept as `<home>/reports/assessment/<YYYY-MM>/<schema>.json`
and as a page beside it. The JSON is what the next month is compared with.
"""

from __future__ import annotations

import dataclasses
import datetime as dt
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from bronze_assets.errors import LakeError
from bronze_assets.operations import assessment_page
from bronze_assets.operations.assessment import Assessed, assess
from bronze_assets.operations.assessment_facts import Measured

FOLDER: Final = "reports/assessment"
"""Below the home."""


def judged(folder: Path, measured: Sequence[Measured]) -> list[Assessed]:
    """Each table against its last assessment of an earlier month.

    Raises:
        LakeError: an earlier assessment cannot be read; names the file.
    """
    return [assess(one, _before(folder, one)) for one in measured]


def write(folder: Path, schema: str, month: str, assessed: Sequence[Assessed]) -> Path:
    """Write the month's JSON and page of a schema; tables assessed earlier in that month stay in it.

    Args:
        folder: of all months; made when missing.
        month: `YYYY-MM`.

    Returns:
        The page's path.

    Raises:
        LakeError: the month's files cannot be read or written; names which.
    """
    path = folder / month / f"{schema}.json"
    told = {one["table"]: one for one in (_read(path)["tables"] if path.is_file() else [])}
    told |= {one.measured.table: _told(one) for one in assessed}
    # What needs somebody stands first.
    tables = sorted(told.values(), key=lambda one: (one["passed"], one["rows"] is None, one["table"]))
    report = {"schema": schema, "month": month, "tables": tables}
    page = path.with_suffix(".html")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        for target, text in (
            (path, json.dumps(report, ensure_ascii=False, indent=1) + "\n"),
            (page, assessment_page.page(report)),
        ):
            unfinished = target.with_name(f".{target.name}.{os.getpid()}")
            unfinished.write_text(text, encoding="utf-8")
            unfinished.replace(target)
    except OSError as error:
        raise LakeError(
            f"{path.parent} cannot be written ({error.strerror}).", "give the process access, or free space there."
        ) from None
    return page


def month_of(moment: dt.datetime) -> str:
    """The month that an assessment belongs to."""
    return f"{moment:%Y-%m}"


def _before(folder: Path, measured: Measured) -> Measured | None:
    this = month_of(measured.at)
    # Folders of a later month are there where a clock went back; they are not of before.
    for path in sorted(folder.glob(f"[0-9]*-[0-9]*/{measured.schema}.json"), reverse=True):
        if path.parent.name >= this:
            continue
        for one in _read(path)["tables"]:
            if one["table"] == measured.table and one["rows"] is not None:
                return _measured(path, one)
    return None


def _measured(path: Path, told: dict[str, Any]) -> Measured:
    try:
        return Measured.from_dict(told)
    except (KeyError, TypeError, ValueError):
        raise _damaged(path) from None


def _read(path: Path) -> dict[str, Any]:
    try:
        told: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        for one in told["tables"]:
            _ = one["table"], one["rows"], one["passed"]
    except (OSError, ValueError, KeyError, TypeError):
        raise _damaged(path) from None
    return told


def _damaged(path: Path) -> LakeError:
    return LakeError(
        f"The assessment {path} cannot be read.",
        "bring it back from a copy, or move it away: tables are then compared with the month before it.",
    )


def _told(one: Assessed) -> dict[str, Any]:
    return one.measured.to_dict() | {
        "passed": one.passed,
        "since": None if one.since is None else one.since.isoformat(),
        "drift": [dataclasses.asdict(moved) for moved in one.drift],
        "findings": [dataclasses.asdict(finding) for finding in one.findings],
    }
