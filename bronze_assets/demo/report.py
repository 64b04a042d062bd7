"""The report that a local load ends with, as plain text for a terminal."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from bronze_assets.audit import LoadOutcome

_BOLD, _RED, _YELLOW, _GREEN, _DIM, _PLAIN = "\033[1m", "\033[31m", "\033[33m", "\033[32m", "\033[2m", "\033[0m"
_OUTCOMES = ("loaded", "quarantined", "duplicates", "unchanged", "erased")
_COUNTS = ("read", "loaded", "quarantined", "duplicates", "unchanged", "deleted")
_HEADINGS = ("table", *_COUNTS, "score", "checks", "seconds")


_FILE_HEADINGS = (
    "from files",
    "files",
    "bad",
    "read",
    "loaded",
    "deleted",
    "quarantined",
    "waiting",
    "p50",
    "p95",
    "max",
)


def render(
    outcomes: Sequence[LoadOutcome],
    *,
    arrived: Sequence[LoadOutcome] = (),
    lake: Path,
    kpis: Sequence[Path] = (),
    make: str = "make",
    seconds: float | None = None,
    colour: bool = False,
) -> str:
    """The report, without a newline at its end.

    Args:
        outcomes: one for each table, in the order to show.
        arrived: what was loaded from files after that.
        lake: the folder of the bronze schemas.
        kpis: the KPI pages that were written.
        make: how to call make for the same state, variables included.
        seconds: wall-clock time of everything; the sum of the loads when None.
        colour: whether to use ANSI colours; say so for a terminal only.
    """

    def paint(text: str, style: str) -> str:
        return f"{style}{text}{_PLAIN}" if colour and text else text

    good = [outcome.record for outcome in outcomes if outcome.record is not None]
    failed = [outcome for outcome in [*outcomes, *arrived] if outcome.record is None]
    total = {name: sum(getattr(record, name) for record in good) for name in ("read", *_OUTCOMES, "deleted")}
    score = sum(record.score_sum for record in good) / total["read"] if total["read"] else None
    whole = sum(record.seconds for record in good) if seconds is None else seconds
    failures = sum(len(outcome.failed_checks) for outcome in outcomes)

    rows = [_cells(outcome) for outcome in outcomes]
    rows.append(
        ("total", *(f"{total[name]:,}" for name in _COUNTS), _score(score), _failures(failures), f"{whole:.1f}")
    )
    widths = [max(len(row[column]) for row in (_HEADINGS, *rows)) for column in range(len(_HEADINGS))]
    rule = paint("-" * (sum(widths) + 2 * (len(widths) - 1)), _DIM)
    text = [paint(_aligned(_HEADINGS, widths), _BOLD), rule]
    for outcome, row in zip(outcomes, rows, strict=False):
        style = _RED if outcome.record is None else _YELLOW if outcome.failed_checks else ""
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
        and not any(o.record.loaded or o.record.deleted for o in arrived if o.record is not None)
    ):
        text.append(paint("Nothing changed: every row that can be loaded is in its table already.", _GREEN))
    text += _files([*outcomes, *arrived], paint)
    troubled = _merged([outcome for outcome in [*outcomes, *arrived] if outcome.failed_checks])
    if troubled:
        # Breaking a rule stops nothing: the row is loaded with a lower score, or quarantined.
        text += ["", paint("Failed checks (see each in the UI: how many rows, and examples of their keys)", _BOLD)]
        width = max(len(table) for table in troubled)
        text += [f"  {table:<{width}}  {', '.join(checks)}" for table, checks in troubled.items()]
    if failed:
        text += ["", paint("Not loaded", _BOLD)]
        text += [paint(f"  {outcome.table}: {_reason(outcome)}", _RED) for outcome in failed]
    text += [
        "",
        f"The tables   {lake}",
        *(f"{'The KPIs' if not number else '':<13}{page}" for number, page in enumerate(kpis)),
        f"The UI       {make} ui",
        f"Start over   {make} clean",
    ]
    return "\n".join(text)


def _files(outcomes: Sequence[LoadOutcome], paint: Callable[[str, str], str]) -> list[str]:
    """What files brought: a line for each table that had any."""
    records = [o.record for o in outcomes if o.record is not None and (o.record.files or o.record.backlog_files)]
    if not records:
        return []
    rows = [
        (
            record.table,
            *(f"{n:,}" for n in (record.files, record.files_quarantined, record.read, record.loaded, record.deleted)),
            f"{record.quarantined:,}",
            f"{record.backlog_files:,}",
            *(_seconds(age) for age in (record.latency_p50, record.latency_p95, record.latency_max)),
        )
        for record in records
    ]
    widths = [max(len(row[column]) for row in (_FILE_HEADINGS, *rows)) for column in range(len(_FILE_HEADINGS))]
    rule = paint("-" * (sum(widths) + 2 * (len(widths) - 1)), _DIM)
    return [
        "",
        paint(_aligned(_FILE_HEADINGS, widths), _BOLD),
        rule,
        *(paint(_aligned(row, widths), _YELLOW if row[2] != "0" else "") for row in rows),
        rule,
        "p50, p95, max: seconds from a row's commit at the source, or its file's last write, to the end of its load.",
        "bad: files that could not be read at all; they stay in the landing zone, and the quarantine says why.",
    ]


def _merged(outcomes: Sequence[LoadOutcome]) -> dict[str, list[str]]:
    """Table → its failed checks, each once."""
    found: dict[str, list[str]] = {}
    for outcome in outcomes:
        known = found.setdefault(outcome.table, [])
        known += [check for check in outcome.failed_checks if check not in known]
    return found


def _seconds(age: float | None) -> str:
    return "-" if age is None else f"{age:.1f}"


def _cells(outcome: LoadOutcome) -> tuple[str, ...]:
    record = outcome.record
    if record is None:
        return (outcome.table, *["-"] * 7, "not loaded", "-")
    counts = (f"{getattr(record, name):,}" for name in _COUNTS)
    checks = _failures(len(outcome.failed_checks))
    return (outcome.table, *counts, _score(record.average_score), checks, f"{record.seconds:.1f}")


def _failures(count: int) -> str:
    return f"{count} failed" if count else "ok"


def _reason(outcome: LoadOutcome) -> str:
    return (outcome.error or "no reason given").removeprefix(f"{outcome.table}: ")


def _aligned(cells: Sequence[str], widths: Sequence[int]) -> str:
    first, *others = zip(cells, widths, strict=True)
    return "  ".join([f"{first[0]:<{first[1]}}", *(f"{cell:>{width}}" for cell, width in others)])


def _score(score: float | None) -> str:
    return "-" if score is None else f"{score:.1f}"


def _conservation(total: dict[str, int]) -> str:
    outcomes = sum(total[name] for name in _OUTCOMES)
    sign = "=" if outcomes == total["read"] else "is NOT"
    return f"{total['read']:,} read {sign} " + " + ".join(f"{total[name]:,} {name}" for name in _OUTCOMES)


def _rows(count: int) -> str:
    return f"{count:,} row is" if count == 1 else f"{count:,} rows are"
