"""The bench's arithmetic: medians, ratios, verdicts, and when the small bench fails."""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from benchmarks import __main__ as bench
from benchmarks.ground import Sizes
from benchmarks.measure import Comparison, Figure, Scenario, Side, as_markdown, as_text, measure, merged, write_results
from benchmarks.memory import peak_memory


def side(name: str, seconds: Sequence[float], calls: list[str], rows: int = 100) -> Side:
    """A side that takes these seconds, one after the other."""
    told = itertools.cycle(seconds)

    def run() -> float:
        calls.append(name)
        return next(told)

    return Side(name, run, rows)


def figure(ours: Sequence[float], theirs: Sequence[float] = (), **changes: object) -> Figure:
    values: dict[str, object] = {
        "family": "full",
        "label": "orders",
        "rows": 100,
        "ours": "load",
        "our_times": tuple(ours),
        "our_megabytes": 7,
        "theirs": "copy" if theirs else None,
        "their_times": tuple(theirs),
        "their_megabytes": 0,
        "goal": None,
        "pace": 1.0,
        "note": "",
        "date": "2026-11-27",
    }
    return Figure(**values | changes)  # type: ignore[arg-type]


def test_sides_are_run_in_turn_and_the_first_round_is_not_counted() -> None:
    calls: list[str] = []
    sides = [side("load", [90, 3, 1, 2], calls), side("copy", [80, 1, 1, 4], calls)]

    (found,) = measure("full", Scenario(sides, [Comparison("orders", "load", "copy", 1.5)]), 3, lambda _: None)

    assert calls == ["load", "copy", "copy", "load"] * 2
    assert (found.our_times, found.their_times) == ((3, 1, 2), (1, 1, 4))
    assert (found.our_seconds, found.their_seconds, found.ratio, found.met) == (2, 1, 2, False)
    assert found.name == "full: orders, against copy"


def test_a_scenario_may_have_rounds_and_a_note_of_its_own() -> None:
    calls: list[str] = []
    once = Scenario([side("load", [5], calls)], [Comparison("day", "load")], 1, 0, lambda: f"{len(calls)} run")

    (found,) = measure("sensors", once, 5, lambda _: None)

    assert (found.our_times, found.note, found.ratio, found.met) == ((5,), "1 run", None, None)


def test_times_per_row_are_compared_per_row() -> None:
    calls: list[str] = []
    sides = [side("small", [1], calls, rows=1_000), side("large", [3.6], calls, rows=3_000)]
    line = Comparison("growth", "large", "small", 1.1, per_row=True)

    (found,) = measure("growth", Scenario(sides, [line]), 1, lambda _: None)

    assert found.ratio == pytest.approx(1.2)
    assert found.met is False


@pytest.mark.parametrize(
    ("found", "met"),
    [
        (figure([3, 1, 2], [2, 2], goal=1.0), True),
        (figure([3, 1, 2.1], [2, 2], goal=1.0), False),
        (figure([4.9], goal=5), True),
        (figure([5.1], goal=5), False),
        (figure([1], [1]), None),
    ],
)
def test_a_goal_is_the_most_that_a_ratio_or_else_a_time_may_be(found: Figure, met: bool | None) -> None:
    assert found.met is met


def test_the_table_says_what_is_measured() -> None:
    found = [figure([3, 1, 2], [4], goal=1.5, rows=3_000_000), figure([16], label="start", goal=15, our_megabytes=0)]

    assert as_markdown(found).splitlines()[2:] == [
        "| orders | 3,000,000 | 2.00 | copy | 4.00 | 0.50 | ≤ 1.50 | yes | 7 |  |",
        "| start | 100 | 16.00 |  |  |  | ≤ 15 s | no | – |  |",
    ]
    assert [line.split() for line in as_text(found).splitlines()[1:]] == [
        ["orders", "3,000,000", "2.00", "copy", "4.00", "0.50", "≤", "1.50", "yes", "7"],
        ["start", "100", "16.00", "≤", "15", "s", "no", "–"],
    ]


def test_results_of_other_families_stay_unless_the_machine_is_another(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    full, files, again = figure([1], [2]), figure([4], family="files"), figure([3], [2])
    write_results(path, [files, full])

    assert merged(path, [again], ["full", "files"]) == [again, files]
    told = json.loads(path.read_text())
    assert [one["ratio"] for one in told["figures"]] == [None, 0.5]

    path.write_text(json.dumps(told | {"machine": "another"}))
    assert merged(path, [again], ["full", "files"]) == [again]
    assert merged(tmp_path / "none.json", [again], ["full", "files"]) == [again]


@pytest.fixture
def quick(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """Runs `--quick` of one family whose load takes these seconds, against a copy of one second."""
    monkeypatch.setattr(bench, "RECORDED", tmp_path / "recorded.json")
    monkeypatch.setattr(bench, "OF_QUICK", ("full",))
    monkeypatch.setenv("BRONZE_HOME", str(tmp_path / "home"))

    def run(seconds: float, *arguments: str, fails: bool = False) -> int:
        def measured(*_: object) -> tuple[list[Figure], list[str]]:
            return ([], ["full"]) if fails else ([figure([seconds], [1.0])], [])

        monkeypatch.setattr(bench, "_measured", measured)
        return bench.main(["--quick", *arguments])

    return run


def test_the_small_bench_fails_on_three_times_the_recorded_ratio_and_not_before(
    quick: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert quick(2.0, "--record") == 0
    assert quick(5.9) == 0
    assert "No ratio is more than three times the recorded one" in capsys.readouterr().out

    assert quick(6.1) == 1
    assert capsys.readouterr().err == (
        "full: orders, against copy: the ratio is 6.10, more than 3 times the recorded 2.00.\n"
    )


def test_the_small_bench_fails_if_it_has_not_measured_what_is_recorded(
    quick: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    quick(2.0, "--record")
    capsys.readouterr()

    assert quick(2.0, fails=True) == 1
    assert capsys.readouterr().err.splitlines() == [
        "full could not be measured.",
        "full: orders, against copy: has not been measured.",
    ]


def test_what_is_recorded_is_what_the_small_bench_measures() -> None:
    told = json.loads(bench.RECORDED.read_text())
    assert {name.partition(":")[0] for name in told["ratios"]} == set(bench.OF_QUICK)
    assert told["machine"]
    assert told["date"]


def test_a_part_of_everything_but_the_rows_of_a_file() -> None:
    part = Sizes().scaled(0.1)
    assert (part.orders, part.changed, part.growth[2], part.rows_of_file) == (300_000, 1_000, 1_000_000, 100)
    assert Sizes().scaled(1) == Sizes()


@pytest.mark.skipif(not Path(f"/proc/{os.getpid()}/clear_refs").exists(), reason="the system does not tell")
def test_peak_memory_is_that_of_the_block_alone() -> None:
    def take(megabytes: int) -> None:
        pages = bytearray(megabytes * 2**20)
        pages[:: 2**12] = b"x" * len(pages[:: 2**12])

    take(300)
    with peak_memory() as before:
        pass
    with peak_memory() as during:
        take(100)
    assert before() + 90 < during() < before() + 200
