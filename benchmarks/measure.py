"""What is measured and how: sides that are run in turn, the medians of their seconds, ratios, verdicts, and the table.

A ratio is ours by theirs and comes from one run: both sides had the same machine in the same minutes. Seconds of two
runs say little about each other.
"""

from __future__ import annotations

import dataclasses
import datetime as dt
import json
import os
import platform
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.memory import peak_memory

GROSS = 3.0
"""How many times the recorded ratio is a regression that nobody's other work on the machine explains."""


@dataclass(frozen=True)
class Side:
    """One way to do a piece of work.

    Attributes:
        name: unique in its scenario.
        run: does it once and returns the seconds of what counts.
        rows: that one run is about.
        process: whose memory counts, with that of its children; None for this process and its JVM.
        check: raises if the result is not what it should be; called when the memory has been read.
    """

    name: str
    run: Callable[[], float]
    rows: int
    process: Callable[[], int] | None = None
    check: Callable[[], None] = lambda: None


@dataclass(frozen=True)
class Comparison:
    """A line of the table.

    Attributes:
        label: unique in its family.
        ours: name of a side.
        theirs: likewise; None if the goal is a time.
        goal: the most that the ratio may be, or the seconds where there is none; None without a goal.
        per_row: whether the ratio is one of times per row.
    """

    label: str
    ours: str
    theirs: str | None = None
    goal: float | None = None
    per_row: bool = False


@dataclass(frozen=True)
class Scenario:
    """Sides that are run in turn.

    Attributes:
        rounds: counted ones, where they are not those that the caller asks for.
        uncounted: rounds before them, which pay for the JIT and the caches on all sides.
        note: is told with the figures; called after the last round.
    """

    sides: Sequence[Side]
    comparisons: Sequence[Comparison]
    rounds: int | None = None
    uncounted: int = 1
    note: Callable[[], str] = lambda: ""


@dataclass(frozen=True)
class Figure:
    """A measured line of the table.

    Attributes:
        our_times, their_times: seconds of each counted round.
        our_megabytes, their_megabytes: peak resident memory of the median round; 0 where the system does not tell.
        pace: rows of ours by rows of theirs, where the ratio is one of times per row, else 1.
    """

    family: str
    label: str
    rows: int
    ours: str
    our_times: tuple[float, ...]
    our_megabytes: int
    theirs: str | None
    their_times: tuple[float, ...]
    their_megabytes: int
    goal: float | None
    pace: float
    note: str
    date: str

    @property
    def name(self) -> str:
        """Family and label: what the figure is found by."""
        return f"{self.family}: {self.label}, against {self.theirs}" if self.theirs else f"{self.family}: {self.label}"

    @property
    def our_seconds(self) -> float:
        """The median of ours."""
        return statistics.median(self.our_times)

    @property
    def their_seconds(self) -> float | None:
        """The median of theirs."""
        return statistics.median(self.their_times) if self.their_times else None

    @property
    def ratio(self) -> float | None:
        """Ours by theirs."""
        return self.our_seconds / self.their_seconds / self.pace if self.their_seconds else None

    @property
    def met(self) -> bool | None:
        """Whether the goal is met; None without one."""
        if self.goal is None:
            return None
        return (self.our_seconds if self.ratio is None else self.ratio) <= self.goal

    def to_json(self) -> dict[str, Any]:
        """Its fields, and what follows from them."""
        told = {"our_seconds": self.our_seconds, "their_seconds": self.their_seconds, "ratio": self.ratio}
        return dataclasses.asdict(self) | told | {"met": self.met}

    @classmethod
    def from_json(cls, told: Mapping[str, Any]) -> Figure:
        """Back from `to_json`."""
        values = {field.name: told[field.name] for field in dataclasses.fields(cls)}
        return cls(**values | {name: tuple(values[name]) for name in ("our_times", "their_times")})


def measure(family: str, scenario: Scenario, runs: int, say: Callable[[str], None]) -> list[Figure]:
    """Run the sides in turn, each round from another one on, and compare the medians.

    Args:
        runs: counted rounds, if the scenario has none of its own.
        say: hears the seconds of each round.
    """
    times: dict[str, list[float]] = {side.name: [] for side in scenario.sides}
    peaks: dict[str, list[int]] = {side.name: [] for side in scenario.sides}
    for number in range(scenario.uncounted + (scenario.rounds or runs)):
        counted = number >= scenario.uncounted
        # Whoever comes second may find pages to be written, or read, that the first has left.
        first = number % len(scenario.sides)
        for side in (*scenario.sides[first:], *scenario.sides[:first]):
            with peak_memory(side.process() if side.process else None) as peak:
                seconds = side.run()
            side.check()
            say(f"{family}: {side.name} {seconds:.2f} s, {peak():,} MB{'' if counted else ', not counted'}")
            if counted:
                times[side.name].append(seconds)
                peaks[side.name].append(peak())
    rows = {side.name: side.rows for side in scenario.sides}
    note, today = scenario.note(), dt.date.today().isoformat()

    def megabytes(side: str | None) -> int:
        return round(statistics.median(peaks[side])) if side else 0

    return [
        Figure(
            family,
            one.label,
            rows[one.ours],
            one.ours,
            tuple(times[one.ours]),
            megabytes(one.ours),
            one.theirs,
            tuple(times[one.theirs]) if one.theirs else (),
            megabytes(one.theirs),
            one.goal,
            rows[one.ours] / rows[one.theirs] if one.per_row and one.theirs else 1.0,
            note,
            today,
        )
        for one in scenario.comparisons
    ]


def machine() -> str:
    """What the figures were measured on, in words."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return f"{os.cpu_count()} cores, {memory:.0f} GB, {platform.machine()}, Python {platform.python_version()}"


_HEADINGS = ("what", "rows", "ours s", "against", "s", "ratio", "goal", "met", "peak MB (theirs)", "note")


def _cells(figure: Figure) -> tuple[str, ...]:
    goal = ""
    if figure.goal is not None:
        goal = f"≤ {figure.goal:g} s" if figure.theirs is None else f"≤ {figure.goal:.2f}"
    memory = f"{figure.our_megabytes:,}" if figure.our_megabytes else "–"
    if figure.their_megabytes:
        memory += f" ({figure.their_megabytes:,})"
    return (
        figure.label,
        f"{figure.rows:,}" if figure.rows else "",
        f"{figure.our_seconds:.2f}",
        figure.theirs or "",
        f"{figure.their_seconds:.2f}" if figure.their_seconds is not None else "",
        f"{figure.ratio:.2f}" if figure.ratio is not None else "",
        goal,
        {True: "yes", False: "no", None: ""}[figure.met],
        memory,
        figure.note,
    )


def as_text(figures: Iterable[Figure]) -> str:
    """The table, for a terminal."""
    rows = [_HEADINGS, *map(_cells, figures)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    words = (0, 3, 9)
    lines = []
    for row in rows:
        cells = (
            cell.ljust(width) if place in words else cell.rjust(width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def as_markdown(figures: Iterable[Figure]) -> str:
    """The table, for the documentation."""
    rows = [_HEADINGS, ("---", "---:", "---:", "---", *("---:",) * 3, "---", "---:", "---"), *map(_cells, figures)]
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def merged(path: Path, figures: Sequence[Figure], families: Iterable[str]) -> list[Figure]:
    """Those that a file has of other families of the same machine, and these, in the order of the families."""
    try:
        told = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        told = {"machine": None}
    measured = {figure.family for figure in figures}
    kept = told["figures"] if told["machine"] == machine() else []
    others = [figure for figure in map(Figure.from_json, kept) if figure.family not in measured]
    order = list(families)
    return sorted((*others, *figures), key=lambda figure: order.index(figure.family))


def write_results(path: Path, figures: Sequence[Figure]) -> None:
    """Write the figures as JSON, and beside that file as a Markdown table."""
    path.parent.mkdir(parents=True, exist_ok=True)
    told = {"machine": machine(), "figures": [figure.to_json() for figure in figures]}
    path.write_text(json.dumps(told, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    path.with_suffix(".md").write_text(as_markdown(figures), encoding="utf-8")


def regressions(figures: Iterable[Figure], recorded: Mapping[str, float]) -> list[str]:
    """What has become more than `GROSS` times as slow, by its ratio, or has not been measured, in words.

    Args:
        recorded: name of a figure → its ratio.
    """
    now = {figure.name: figure.ratio for figure in figures}
    found = []
    for name, before in recorded.items():
        ratio = now.get(name)
        if ratio is None:
            found.append(f"{name}: has not been measured.")
        elif ratio > GROSS * before:
            found.append(f"{name}: the ratio is {ratio:.2f}, more than {GROSS:g} times the recorded {before:.2f}.")
    return found
