"""The monthly assessment: through Dagster on real tables with planted faults, and its numbers against plain Python."""

from __future__ import annotations

import copy
import dataclasses
import datetime as dt
import json
import math
import re
import statistics
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dagster as dg
import pandera.pyspark as pandera
import pyarrow as pa
import pyspark.sql.types as T
import pytest
from deltalake import write_deltalake

from bronze_assets import quality
from bronze_assets.definitions import build_definitions
from bronze_assets.errors import LakeError
from bronze_assets.operations import assessment_report
from bronze_assets.operations.assessment import Assessed, Level, assess
from bronze_assets.operations.assessment_facts import Measured, Profile
from bronze_assets.operations.drift import Drift, drift_of
from bronze_assets.settings import Environment, Settings
from bronze_assets.table import BronzeTable, Cadence, Pii, column
from bronze_assets_tests.conftest import settings_for

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

SCHEMA = "club_bronze"
NOW = dt.datetime.now(dt.UTC)
CANARY = "Zoë Canary"


class Visits(pandera.DataFrameModel):
    visit_id: T.LongType = column(key=True, gt=0, description="Identifies a visit.")
    name: T.StringType = column(pii=Pii.HIGH, str_matches="^[A-Z]", description="Who came.")
    city: T.StringType = column(pii=Pii.LOW, str_length={"max_value": 30}, description="Where from.")
    kind: T.StringType = column(isin=["walk", "swim", "ride"], description="What for.")
    minutes: T.IntegerType = column(ge=0, description="How long.")
    paid: T.DecimalType = column(dtype_kwargs={"precision": 12, "scale": 2}, description="How much.")
    day: T.DateType = column(not_in_future=True, max_age_days=1_000, description="When.")
    good: T.BooleanType = column(description="Whether it was nice.")


VISITS = BronzeTable(SCHEMA, "club.Visits", Visits, Cadence.DAILY, "Visits.")
NEVER = BronzeTable(SCHEMA, "club.Never", Visits, Cadence.DAILY, "Never loaded.")
FIELDS = pa.schema(
    [
        ("visit_id", pa.int64()),
        *((name, pa.string()) for name in ("name", "city", "kind")),
        ("minutes", pa.int32()),
        ("paid", pa.decimal128(12, 2)),
        ("day", pa.date32()),
        ("good", pa.bool_()),
        ("load_timestamp", pa.timestamp("us", tz="UTC")),
        ("record_status", pa.string()),
        ("source_position", pa.string()),
    ]
)
Row = dict[str, Any]


def visit(number: int, **values: Any) -> Row:
    """A row that breaks nothing; sealed where a load would seal it."""
    return {
        "visit_id": number,
        "name": f"enc:1:s:{CANARY}",
        "city": f"{CANARY} {number % 7}",
        "kind": ("walk", "swim", "ride", None)[number % 4],
        "minutes": number % 90,
        "paid": None if number % 5 == 0 else Decimal(number % 13) + Decimal("0.25"),
        "day": NOW.date() - dt.timedelta(days=number % 40),
        "good": number % 3 == 0,
        "load_timestamp": NOW,
        "record_status": "ACTIVE",
        "source_position": "00000001/1",
    } | values


def write(settings: Settings, rows: Sequence[Row], table: BronzeTable = VISITS) -> None:
    """The bronze table anew."""
    place = settings.lake / table.schema / table.name
    write_deltalake(str(place), pa.Table.from_pylist(list(rows), schema=FIELDS), mode="overwrite")


@pytest.fixture
def instance() -> Iterator[dg.DagsterInstance]:
    with dg.DagsterInstance.ephemeral() as made:
        yield made


class Run:
    """One run of the job."""

    def __init__(self, settings: Settings, instance: dg.DagsterInstance, tables: Sequence[BronzeTable], *names: str):
        job = build_definitions(settings, tables).resolve_job_def("assess_quality")
        config = {"ops": {"measure_quality": {"config": {"tables": list(names)}}}}
        self.result = job.execute_in_process(instance=instance, run_config=config, raise_on_error=False)
        self.checks = {
            e.asset_check_evaluation_data.asset_key.path[-1]: e.asset_check_evaluation_data
            for e in self.result.all_events
            if e.event_type is dg.DagsterEventType.ASSET_CHECK_EVALUATION
        }

    @property
    def failure(self) -> str:
        (event,) = [e for e in self.result.all_events if e.is_step_failure]
        assert event.step_failure_data.user_failure_data is not None
        return str(event.step_failure_data.user_failure_data.description)

    @property
    def page(self) -> Path:
        return Path(str(self.checks[VISITS.name].metadata["path"].value))

    @property
    def told(self) -> dict[str, Any]:
        report = json.loads(self.page.with_suffix(".json").read_text(encoding="utf-8"))
        found: dict[str, Any] = next(one for one in report["tables"] if one["table"] == VISITS.name)
        return found

    def findings(self) -> list[tuple[str, str, str]]:
        return [(one["level"], one["column"], one["words"]) for one in self.told["findings"]]


def broken_by(told: Mapping[str, Any]) -> dict[str, tuple[int, bool, bool]]:
    return {one["rule"]: (one["broken"], one["pandera"], one["agrees"]) for one in told["rules"]}


def test_planted_faults_are_found_by_both_and_numbers_are_those_of_the_rows(
    settings: Settings, spark: SparkSession, instance: dg.DagsterInstance
) -> None:
    sound = [visit(number) for number in range(1, 201)]
    faults = [
        visit(201, kind="fly"),
        visit(202, kind="fly"),
        visit(203, minutes=-1),
        visit(204, day=NOW.date() + dt.timedelta(days=9)),
        visit(205, day=NOW.date() - dt.timedelta(days=2_000)),
    ]
    stale = [
        visit(1, minutes=-5, source_position="00000001/0"),
        visit(300, minutes=-5, record_status="ERASED"),
        visit(301, minutes=-5, record_status="DELETED"),
    ]
    write(settings, [*stale, *sound, *faults])

    run = Run(settings, instance, [VISITS, NEVER])

    assert run.result.success
    assert run.page == settings.home / f"reports/assessment/{NOW:%Y-%m}/{SCHEMA}.html"
    check = run.checks[VISITS.name]
    assert (check.check_name, check.passed, check.severity) == ("assessment", False, dg.AssetCheckSeverity.WARN)
    assert check.metadata["runbook"].value == "docs/runbook.md#assessment"
    assert run.checks[NEVER.name].passed
    told = run.told
    rows = [*sound, *faults]
    assert told["rows"] == len(rows)
    assert broken_by(told) == {
        "key": (0, True, True),
        "city_length": (0, True, True),
        "kind_isin": (2, False, True),
        "minutes_ge": (1, False, True),
        "day_not_in_future": (1, False, True),
        "day_max_age_days": (1, False, True),
    }
    assert told["unjudged"] == ["name_matches"]
    assert [(level, about) for level, about, _ in run.findings()] == [
        ("warning", "kind"),
        ("warning", "minutes"),
        ("warning", "day"),
        # It has grown old, which no load could have known.
        ("info", "day"),
    ]
    assert "2 rows break rule `kind_isin`" in run.findings()[0][2]
    for profile in told["columns"]:
        expect_profile(profile, [row[profile["column"]] for row in rows])
    text = run.page.read_text(encoding="utf-8") + run.page.with_suffix(".json").read_text(encoding="utf-8")
    assert "2 rows break rule" in text
    assert not re.search("Canary|enc:1", text + str(check.metadata) + str(check.description))
    assert not re.search("Canary|enc:1", str([record.event_log_entry for record in records(instance, run)]))


def records(instance: dg.DagsterInstance, run: Run) -> Sequence[Any]:
    return instance.get_records_for_run(run.result.run_id).records


def text_of(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def expect_profile(profile: Mapping[str, Any], values: Sequence[Any]) -> None:
    """The profile, counted once more by Python's own means."""
    name, there = profile["column"], [value for value in values if value is not None]
    pii = Visits.to_schema().columns[name].metadata["pii"]
    assert profile["nulls"] == len(values) - len(there)
    if pii.protected:
        assert profile["distinct"] is None
    else:
        # Of so few values HyperLogLog++ with Spark's 5 % hardly errs.
        assert profile["distinct"] == pytest.approx(len(set(there)), rel=0.15)
    if pii is not Pii.NONE:
        assert [profile[one] for one in ("least", "most", "mean", "deviation", "top")] == [None, None, None, None, []]
        return
    assert (profile["least"], profile["most"]) == (text_of(min(there)), text_of(max(there)))
    if name in ("minutes", "paid", "visit_id"):
        numbers = [float(value) for value in there]
        assert profile["mean"] == pytest.approx(statistics.fmean(numbers))
        assert profile["deviation"] == pytest.approx(statistics.stdev(numbers))
    else:
        assert profile["mean"] is profile["deviation"] is None
    if name == "visit_id":
        assert profile["top"] == []
        return
    counts = sorted(Counter(map(text_of, there)).items(), key=lambda one: (-one[1], one[0]))
    assert profile["top"] == [list(one) for one in counts[:30]]
    assert profile["top_is_all"] == (len(counts) <= 30)


def test_a_rule_that_is_compiled_wrongly_is_a_finding_of_its_own(
    settings: Settings, spark: SparkSession, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(settings, [visit(1), visit(2, minutes=-1), visit(3)])
    holds = quality._holds

    def wrong(about: Any, check: str, *rest: Any) -> Any:
        # As if somebody had mistaken >= for <.
        return holds(about, "less_than" if about.name == "minutes" else check, *wrong_arguments(about, rest))

    def wrong_arguments(about: Any, rest: tuple[Any, ...]) -> tuple[Any, ...]:
        return ({"max_value": 10**6}, *rest[1:]) if about.name == "minutes" else rest

    monkeypatch.setattr(quality, "_holds", wrong)
    run = Run(settings, instance, [VISITS])

    assert run.result.success
    (finding,) = run.findings()
    assert finding[:2] == ("critical", "minutes")
    assert "`minutes_ge`: pandera finds it broken, the platform 0 rows that break it" in finding[2]
    assert run.checks[VISITS.name].metadata["level"].value == "critical"


def test_what_moved_since_last_month_is_found_and_what_did_not_is_not(
    settings: Settings, spark: SparkSession, instance: dg.DagsterInstance
) -> None:
    rows = [visit(number) for number in range(1, 2_001)]
    write(settings, rows)
    first = Run(settings, instance, [VISITS])
    assert first.checks[VISITS.name].passed
    assert first.told["drift"] == []
    # As if it had been last month.
    earlier = settings.home / "reports/assessment" / "2020-01"
    first.page.parent.rename(earlier)

    again = Run(settings, instance, [VISITS])
    assert again.checks[VISITS.name].passed
    assert {(one["kind"], one["level"]) for one in again.told["drift"]} == {
        ("rows", ""),
        ("nulls", ""),
        ("mean", ""),
        ("psi", ""),
    }

    swim = [row | {"kind": "swim", "minutes": row["minutes"] + 60, "good": None} for row in rows[:1_700]]
    write(settings, swim)
    moved = Run(settings, instance, [VISITS], VISITS.name)

    assert not moved.checks[VISITS.name].passed
    found = {(one["column"], one["kind"]): one for one in moved.told["drift"] if one["level"]}
    assert set(found) == {("", "rows"), ("minutes", "mean"), ("kind", "nulls"), ("kind", "psi"), ("good", "nulls")} | {
        key for key in found if key == ("minutes", "psi")
    }
    assert found["", "rows"]["value"] == pytest.approx(-0.15)
    before = [row["minutes"] for row in rows]
    shift = (statistics.fmean(row["minutes"] for row in swim) - statistics.fmean(before)) / statistics.stdev(before)
    assert found["minutes", "mean"]["value"] == pytest.approx(shift)
    # 1/3 each before, all of one now.
    expected = 2 * (1e-4 - 1 / 3) * math.log(1e-4 * 3) + (1 - 1 / 3) * math.log(3)
    assert found["kind", "psi"]["value"] == pytest.approx(expected, rel=1e-3)
    assert found["good", "nulls"]["value"] == 1


def test_an_unknown_table_is_refused_with_the_known_ones(settings: Settings, instance: dg.DagsterInstance) -> None:
    run = Run(settings, instance, [VISITS, NEVER], "bz_visits", "bz_visit")

    assert not run.result.success
    assert run.failure.startswith("'bz_visit' is no table; nothing was assessed. Fix: use some of bz_visits, bz_never.")
    assert not (settings.home / "reports").exists()


def test_the_schedule_is_monthly_and_runs_where_local() -> None:
    settings = settings_for(Path("nowhere"))
    schedule = build_definitions(settings, [VISITS]).resolve_schedule_def("assess_quality_schedule")
    assert (schedule.cron_schedule, schedule.execution_timezone) == ("5 5 1 * *", "UTC")
    assert schedule.default_status is dg.DefaultScheduleStatus.RUNNING
    elsewhere = dataclasses.replace(settings, environment=Environment.PROD)
    stopped = build_definitions(elsewhere, [VISITS]).resolve_schedule_def("assess_quality_schedule")
    assert stopped.default_status is dg.DefaultScheduleStatus.STOPPED


# -------------------------------------------------------------------------------------------------------- without Spark


def measured(rows: int = 5_000, at: dt.datetime = NOW, table: str = "bz_visits", **changes: Any) -> Measured:
    kind = Profile("kind", "string", "None", False, 0, 3, top=(("swim", 3_000), ("walk", 2_000)), top_is_all=True)
    return Measured(SCHEMA, table, at, rows, columns=(dataclasses.replace(kind, **changes),))


def moved(now: Measured, before: Measured) -> dict[str, Drift]:
    return {one.kind: one for one in drift_of(now, before)}


@pytest.mark.parametrize(
    ("rows", "level"), [(4_501, ""), (4_499, "warning"), (7_500, ""), (7_501, "warning"), (0, "warning")]
)
def test_the_number_of_rows_may_move_so_far(rows: int, level: str) -> None:
    assert moved(measured(rows), measured(5_000))["rows"].level == level


@pytest.mark.parametrize(
    ("walk", "level"), [(2_000, ""), (1_300, ""), (1_200, "info"), (900, "info"), (800, "warning")]
)
def test_the_psi_has_the_levels_of_the_books(walk: int, level: str) -> None:
    swim = 5_000 - walk
    by_hand = sum((n / 5e3 - o / 5e3) * math.log(n / o) for n, o in ((swim, 3_000), (walk, 2_000)))

    found = moved(measured(top=(("swim", swim), ("walk", walk))), measured())["psi"]

    assert found.value == pytest.approx(by_hand)
    assert found.level == level


def test_values_that_one_list_had_no_room_for_are_not_taken_for_gone() -> None:
    # Both lists end before their values do: what is in one alone may well be in the other, below its end.
    before = measured(top=(("a", 60), ("b", 50)), top_is_all=False)
    now = measured(top=(("a", 60), ("c", 50)), top_is_all=False)
    gone = measured(top=(("a", 2_500), ("c", 2_500)), top_is_all=True)

    assert moved(now, before)["psi"].value == pytest.approx(0, abs=1e-12)
    assert moved(gone, before)["psi"].level == "warning"


def test_few_rows_keys_and_days_are_not_judged_by_their_spread() -> None:
    other: dict[str, Any] = {"top": (("walk", 1),)}

    assert "psi" in moved(measured(1_000, **other), measured(1_000))
    assert "psi" not in moved(measured(999, **other), measured(1_000))
    assert "psi" not in moved(measured(key=True, **other), measured(key=True))
    assert "psi" not in moved(measured(type="date", **other), measured(type="date"))
    assert "nulls" not in moved(measured(type="int"), measured())


def test_a_number_that_was_the_same_everywhere_and_is_not_any_more_is_told_of() -> None:
    constant = measured(type="int", mean=7.0, deviation=0.0)

    assert "mean" not in moved(constant, constant)
    found = moved(measured(type="int", mean=7.1, deviation=0.3), constant)["mean"]
    assert (found.value, found.level) == (None, "warning")


def test_a_month_keeps_its_other_tables_and_is_compared_with_the_month_before(tmp_path: Path) -> None:
    june, july = (dt.datetime(2026, month, 1, tzinfo=dt.UTC) for month in (6, 7))

    def written(one: Measured) -> Assessed:
        (found,) = assessment_report.judged(tmp_path, [one])
        assessment_report.write(tmp_path, SCHEMA, assessment_report.month_of(one.at), [found])
        return found

    assert written(measured(at=june)).since is None
    # Again in June: not compared with itself.
    assert written(measured(at=june, rows=1)).since is None
    assert written(measured(at=june, table="bz_other")).since is None
    found = written(measured(at=july))

    assert found.since == june
    assert [(one.level, one.column) for one in found.findings] == [(Level.WARNING, "")]
    told = json.loads((tmp_path / "2026-06" / f"{SCHEMA}.json").read_text(encoding="utf-8"))
    assert sorted(one["table"] for one in told["tables"]) == ["bz_other", "bz_visits"]


@pytest.mark.parametrize("content", ["", "{", "[]", '{"tables": [{"table": "bz_visits"}]}'])
def test_a_damaged_earlier_assessment_is_named(tmp_path: Path, content: str) -> None:
    path = tmp_path / "2020-01" / f"{SCHEMA}.json"
    path.parent.mkdir()
    path.write_text(content)

    with pytest.raises(LakeError, match=f"{re.escape(str(path))} cannot be read.*Fix: "):
        assessment_report.judged(tmp_path, [measured()])


def test_what_was_measured_comes_back_from_json() -> None:
    one = measured()
    told = json.loads(json.dumps(copy.deepcopy(one.to_dict())))

    assert Measured.from_dict(told) == one
    assert assess(one, None).findings == ()


def test_the_page_shows_values_as_text_and_findings_before_what_is_well(tmp_path: Path) -> None:
    bad = measured(10, table="bz_visits", top=(("<script>alert(1)</script>", 9),), top_is_all=True)
    earlier = measured(100, at=dt.datetime(2020, 1, 1, tzinfo=dt.UTC))
    well = measured(10, table="bz_a")

    page = assessment_report.write(tmp_path, SCHEMA, "2026-07", [assess(well, None), assess(bad, earlier)])
    text = page.read_text(encoding="utf-8")

    assert "<script" not in text
    assert "&lt;script&gt;alert(1)" in text
    assert text.index("<h3>bz_visits</h3>") < text.index("<h3>bz_a</h3>")
    assert "1 of 2 tables has findings." in text
    assert "10 rows, 100 before (-90.0%)." in text
