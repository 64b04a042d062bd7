"""Measures how fast loads are, against others and against goals, and prints one table: `make bench`.

Sides of a comparison are run in turn, after a round that is not counted; the table has the medians, and the ratio of
ours to theirs within that run. It is also written to `<home>/bench/results.json` and `results.md`.

`--quick` is the small bench of CI: it fails if a ratio is more than three times the one in `benchmarks/recorded.json`.
"""

from __future__ import annotations

import argparse
import datetime as dt
import json
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from benchmarks.aged import aged
from benchmarks.changes import incremental
from benchmarks.files import sensor_day, small_files
from benchmarks.full_load import full_loads, growth
from benchmarks.ground import QUICK, RIVALS_PYTHON, Ground, Sizes
from benchmarks.judging import protection, quality
from benchmarks.measure import (
    Figure,
    Scenario,
    as_text,
    machine,
    measure,
    merged,
    regressions,
    write_results,
)
from benchmarks.warm import warm
from bronze_assets.settings import Settings

Family = Callable[[Ground], Iterator[Scenario]]

FAMILIES: dict[str, Family] = {
    "full": full_loads,
    "incremental": incremental,
    "protection": protection,
    "quality": quality,
    "files": small_files,
    "aged": aged,
    "growth": growth,
    "warm": warm,
    "sensors": sensor_day,
}
OF_QUICK = ("full", "protection", "quality", "files")
RECORDED = Path(__file__).with_name("recorded.json")


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print; returns the exit code."""
    asked = _parser().parse_args(arguments)
    settings = Settings.from_environment()
    sizes = QUICK if asked.quick else Sizes(sensor_gigabytes=asked.sensor_gb).scaled(asked.scale)
    families = [name for name in FAMILIES if name in (asked.only or (OF_QUICK if asked.quick else FAMILIES))]
    if "full" in families and not sizes.reduced and not RIVALS_PYTHON.is_file():
        print("dlt and ADBC are not installed. Fix: `python3 bootstrap.py bench`.", file=sys.stderr)
        return 1
    print(f"{machine()}, {dt.date.today()}: {', '.join(families)}", flush=True)
    name = "quick" if asked.quick else "results" if asked.scale == 1 else f"results-{asked.scale:g}"
    path = settings.home / "bench" / f"{name}.json"
    figures, failed = _measured(settings, sizes, families, asked.runs or (2 if asked.quick else 5), path)
    print(as_text(figures))
    print(f"In {path} and {path.with_suffix('.md').name}.")
    for family in failed:
        print(f"{family} could not be measured.", file=sys.stderr)
    if asked.record:
        record(RECORDED, figures)
    elif asked.quick and not RECORDED.is_file():
        print("No ratios are recorded. Fix: `python -m benchmarks --quick --record`.", file=sys.stderr)
        return 1
    elif asked.quick:
        return int(judged(figures, RECORDED, families) or bool(failed))
    return int(bool(failed))


def _parser() -> argparse.ArgumentParser:
    def part(text: str) -> float:
        if not 0 < float(text) <= 1:
            raise argparse.ArgumentTypeError("it is a part of the whole, as 0.1")
        return float(text)

    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--only", nargs="+", choices=list(FAMILIES), metavar="NAME", help=f"of {', '.join(FAMILIES)}")
    parser.add_argument("--runs", type=int, help="rounds that count (default: 5; 2 with --quick)")
    parser.add_argument("--scale", type=part, default=1.0, help="a part of all rows and files, to try the bench itself")
    parser.add_argument("--sensor-gb", type=float, default=10.0, help="a day of sensor data (default: 10)")
    parser.add_argument("--quick", action="store_true", help="the small bench of CI")
    parser.add_argument("--record", action="store_true", help="write the ratios to benchmarks/recorded.json")
    return parser


def _measured(
    settings: Settings, sizes: Sizes, families: Sequence[str], runs: int, path: Path
) -> tuple[list[Figure], list[str]]:
    """The figures of the families, written to the file after each; and the families that failed."""
    figures: list[Figure] = []
    failed = []

    def say(text: str) -> None:
        print(f"{dt.datetime.now():%H:%M:%S} {text}", flush=True)

    with Ground.open(settings, sizes, say) as ground:
        for family in families:
            try:
                for scenario in FAMILIES[family](ground):
                    figures += measure(family, scenario, runs, say)
            except Exception:
                # The others may take an hour, and say what they say without it.
                traceback.print_exc()
                failed.append(family)
                ground.forget()
            write_results(path, merged(path, figures, FAMILIES))
    return figures, failed


def record(path: Path, figures: Sequence[Figure]) -> None:
    """Write the ratios that `judged` holds later ones against."""
    told = {
        "machine": machine(),
        "date": dt.date.today().isoformat(),
        "ratios": {figure.name: round(figure.ratio, 3) for figure in figures if figure.ratio is not None},
    }
    path.write_text(json.dumps(told, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def judged(figures: Sequence[Figure], path: Path, families: Sequence[str]) -> int:
    """Say what has become slower beyond doubt, by ratios alone; returns the exit code.

    Args:
        path: of what `record` has written.
        families: that were to be measured; what is recorded of others is left out.
    """
    told = json.loads(path.read_text(encoding="utf-8"))
    wanted = {name: ratio for name, ratio in told["ratios"].items() if name.partition(":")[0] in families}
    found = regressions(figures, wanted)
    for one in found:
        print(one, file=sys.stderr)
    if not found:
        print(f"No ratio is more than three times the recorded one ({told['machine']}, {told['date']}).")
    return int(bool(found))


if __name__ == "__main__":
    sys.exit(main())
