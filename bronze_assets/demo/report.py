"""The report that a local load ends with, as plain text for a terminal."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from bronze_assets.orchestration.launch import LoadOutcome

_BOLD, _RED, _YELLOW, _GREEN, _DIM, _PLAIN = "\033[1m", "\033[31m", "\033[33m", "\033[32m", "\033[2m", "\033[0m"
_OUTCOMES = ("loaded", "quarantined", "duplicates", "unchanged", "erased")
_HEADINGS = (
    "table",
    "read",
    "loaded",
    "quarantined",
    "duplicates",
    "unchanged",
    "deleted",
    "score",
    "checks",
    "seconds",
)


@dataclass(frozen=True)
class ReportLine:
    """What the load of one table did. Counts are rows.

    Attributes:
        table: name of the bronze table.
        read: rows read; the sum of `loaded`, `quarantined`, `duplicates`, `unchanged` and `erased`.
        deleted: `DELETED` versions written, which are not among the rows read.
        average_score: 0 to 100; None for an empty batch.
        failed_checks: names of the asset checks that failed.
        seconds: wall-clock time of the load.
        error: why the load failed, else None. The numbers of a failed load are not shown.
    """

    table: str
    read: int = 0
    loaded: int = 0
    quarantined: int = 0
    duplicates: int = 0
    unchanged: int = 0
    erased: int = 0
    deleted: int = 0
    average_score: float | None = None
    failed_checks: tuple[str, ...] = ()
    seconds: float = 0.0
    error: str | None = None


def line_of(outcome: LoadOutcome) -> ReportLine:
    """The report's line for the outcome of one load."""
    record = outcome.record
    if record is None:
        return ReportLine(outcome.table, failed_checks=outcome.failed_checks, error=outcome.error or "no reason given")
    return ReportLine(
        table=outcome.table,
        read=record.read,
        loaded=record.loaded,
        quarantined=record.quarantined,
        duplicates=record.duplicates,
        unchanged=record.unchanged,
        erased=record.erased,
        deleted=record.deleted,
        average_score=record.average_score,
        failed_checks=outcome.failed_checks,
        seconds=record.seconds,
        error=outcome.error,
    )


def render(
    lines: Sequence[ReportLine],
    *,
    lake: Path,
    schema: str = "inventory_bronze",
    seconds: float | None = None,
    colour: bool = False,
) -> str:
    """The report, without a newline at its end.

    Args:
        lines: one for each table, in the order to show.
        lake: the folder of the bronze schemas.
        schema: the schema that the tables lie in.
        seconds: wall-clock time of everything; the sum of the loads when None.
        colour: whether to use ANSI colours; say so for a terminal only.
    """

    def paint(text: str, style: str) -> str:
        return f"{style}{text}{_PLAIN}" if colour and text else text

    good = [line for line in lines if line.error is None]
    failed = [line for line in lines if line.error is not None]
    total = {name: sum(getattr(line, name) for line in good) for name in ("read", *_OUTCOMES, "deleted")}
    scored = [(line.average_score, line.read) for line in good if line.average_score is not None and line.read]
    score = sum(average * rows for average, rows in scored) / total["read"] if scored else None
    whole = sum(line.seconds for line in good) if seconds is None else seconds

    rows = [_cells(line) for line in lines]
    rows.append(
        (
            "total",
            *(f"{total[name]:,}" for name in ("read", "loaded", "quarantined", "duplicates", "unchanged", "deleted")),
            _score(score),
            f"{sum(len(line.failed_checks) for line in lines)} failed"
            if any(line.failed_checks for line in lines)
            else "ok",
            f"{whole:.1f}",
        )
    )
    widths = [max(len(row[column]) for row in (_HEADINGS, *rows)) for column in range(len(_HEADINGS))]
    rule = paint("-" * (sum(widths) + 2 * (len(widths) - 1)), _DIM)
    text = [paint(_aligned(_HEADINGS, widths), _BOLD), rule]
    for line, row in zip(lines, rows, strict=False):
        style = _RED if line.error is not None else _YELLOW if line.failed_checks else ""
        text.append(paint(_aligned(row, widths), style))
    text += [rule, paint(_aligned(rows[-1], widths), _BOLD), ""]

    text.append(_conservation(total))
    if total["deleted"]:
        text.append(f"{_rows(total['deleted'])} gone from the source: each got a version marked DELETED.")
    if (
        good
        and not failed
        and total["unchanged"] + total["erased"] + total["quarantined"] + total["duplicates"] == total["read"]
        and not total["deleted"]
    ):
        text.append(paint("Nothing changed: every row that can be loaded is in its table already.", _GREEN))
    troubled = [line for line in lines if line.failed_checks]
    if troubled:
        # Breaking a rule stops nothing: the row is loaded with a lower score, or quarantined.
        text += ["", paint("Failed checks (see each in the UI: how many rows, and examples of their keys)", _BOLD)]
        width = max(len(line.table) for line in troubled)
        text += [f"  {line.table:<{width}}  {', '.join(line.failed_checks)}" for line in troubled]
    if failed:
        text += ["", paint("Not loaded", _BOLD)]
        text += [
            paint(f"  {line.table}: {(line.error or '').removeprefix(f'{line.table}: ')}", _RED) for line in failed
        ]
    text += [
        "",
        f"The tables   {lake / schema}",
        "The UI       make ui",
        "Start over   make clean",
    ]
    return "\n".join(text)


def _cells(line: ReportLine) -> tuple[str, ...]:
    if line.error is not None:
        return (line.table, *["-"] * 7, "not loaded", "-")
    counts = (line.read, line.loaded, line.quarantined, line.duplicates, line.unchanged, line.deleted)
    checks = f"{len(line.failed_checks)} failed" if line.failed_checks else "ok"
    return (line.table, *(f"{count:,}" for count in counts), _score(line.average_score), checks, f"{line.seconds:.1f}")


def _aligned(cells: Sequence[str], widths: Sequence[int]) -> str:
    first, *others = zip(cells, widths, strict=True)
    return "  ".join([f"{first[0]:<{first[1]}}", *(f"{cell:>{width}}" for cell, width in others)])


def _score(score: float | None) -> str:
    return "-" if score is None else f"{score:.1f}"


def _conservation(total: dict[str, int]) -> str:
    names = [name for name in _OUTCOMES if name != "erased" or total[name]]
    outcomes = sum(total[name] for name in _OUTCOMES)
    sign = "=" if outcomes == total["read"] else "is NOT"
    return f"{total['read']:,} read {sign} " + " + ".join(f"{total[name]:,} {name}" for name in names)


def _rows(count: int) -> str:
    return f"{count:,} row is" if count == 1 else f"{count:,} rows are"
