"""Tables that are damaged are found, brought back, and equal to what they were; what is known of them follows.

The lake is read with the `deltalake` package and damaged with it; loads, checks and restores run through Dagster.
"""

from __future__ import annotations

import dataclasses
import datetime as dt
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dagster as dg
import pyarrow as arrow
import pytest
from deltalake import CommitProperties, DeltaTable, QueryBuilder, write_deltalake

from bronze_assets import __main__ as command_line
from bronze_assets import audit, quarantine
from bronze_assets.batches import BatchLog
from bronze_assets.catalog import TABLES
from bronze_assets.definitions import build_definitions
from bronze_assets.errors import BronzeError, LakeError, LoadRefused, StaleBase, TableBusy
from bronze_assets.lakehouse import Lakehouse, open_lake
from bronze_assets.leases import lease
from bronze_assets.operations import intact, recovery
from bronze_assets.orchestration.assets import asset_key, partitions
from bronze_assets.orchestration.runs import TRIGGER_TAG
from bronze_assets.privacy import derived
from bronze_assets.quarantine import Selection
from bronze_assets.settings import Settings
from bronze_assets.sources.ledger import Ledger
from bronze_assets.table import BronzeTable, Overwritten
from bronze_assets.workbench import Run, Workbench
from bronze_assets_tests import lake_reader, people
from bronze_assets_tests.conftest import IN_BOTH, settings_for
from bronze_assets_tests.file_tables import (
    DAY,
    NOW,
    archive,
    drop,
    ids,
    json_lines,
    loaded,
    row,
    states,
    table_path,
    things,
)
from bronze_assets_tests.people import person
from bronze_assets_tests.test_load import Lab, lab  # noqa: F401  a fixture
from bronze_assets_tests.test_replay import strict

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

TODAY = f"{dt.datetime.now(dt.UTC):%F}"
YESTERDAY = f"{dt.datetime.now(dt.UTC) - dt.timedelta(days=1):%F}"
VALUES = (
    "thing_id, name, amount, made_on, made_at, good, record_status, data_quality_score, file_name, record_hash,"
    " source_position"
)


@pytest.fixture
def instance(tmp_path: Path) -> Iterator[dg.DagsterInstance]:
    (tmp_path / "dagster").mkdir()
    with dg.DagsterInstance.local_temp(str(tmp_path / "dagster")) as instance:
        yield instance


class Dagster:
    """The definitions of one table, as people use them."""

    def __init__(self, settings: Settings, instance: dg.DagsterInstance, table: BronzeTable) -> None:
        self.settings, self.instance, self.table = settings, instance, table
        self.definitions = build_definitions(settings, [table])

    def load(self, partition: str = TODAY) -> dict[str, Any]:
        """What the materialisation of a partition says."""
        job = self.definitions.resolve_job_def(f"load_{self.table.schema}_files")
        result = job.execute_in_process(instance=self.instance, partition_key=partition)
        (event,) = [
            e.step_materialization_data.materialization
            for e in result.get_asset_materialization_events()
            if e.asset_key == asset_key(self.table)
        ]
        return {name: value.value for name, value in event.metadata.items()}

    def check(self) -> dg.AssetCheckEvaluation:
        result = self.definitions.resolve_job_def("check_tables").execute_in_process(instance=self.instance)
        (found,) = result.get_asset_check_evaluations()
        assert found.check_name == "intact"
        return found

    def restore(self, *, raise_on_error: bool = True, **config: Any) -> dg.ExecuteInProcessResult:
        told = {"table": self.table.name, "by": "dpo", "reason": "damaged", "only_show": False} | config
        return self.definitions.resolve_job_def("restore").execute_in_process(
            instance=self.instance,
            run_config={"ops": {"restore_table": {"config": told}}},
            raise_on_error=raise_on_error,
        )

    def alerted(self) -> str:
        """What the alerts' sensor adds to the log of a home whose channel that is."""
        path = self.settings.home / "alerts.log"
        before = path.stat().st_size if path.exists() else 0
        sensor = self.definitions.get_repository_def().get_sensor_def("alerts")
        context = dg.build_sensor_context(self.instance, repository_def=self.definitions.get_repository_def())
        assert isinstance(sensor(context), dg.SkipReason)
        return path.read_text(encoding="utf-8")[before:] if path.exists() else ""

    def statuses(self, *days: str) -> list[str]:
        key, kept = asset_key(self.table), partitions(self.table.cadence, self.settings)
        found = self.instance.get_status_by_partition(key, list(days), kept) or {}
        return [getattr(found.get(day), "value", "MISSING") for day in days]


def everything(path: Path) -> list[tuple[Any, ...]]:
    return lake_reader.tuples(path, "*")


def numbers(evaluation: dg.AssetCheckEvaluation) -> dict[str, Any]:
    return {name: value.value for name, value in evaluation.metadata.items()}


def at_bench(settings: Settings, work: Callable[[Workbench], Any]) -> Any:
    bench = Workbench(settings, clock=lambda: NOW)
    try:
        return work(bench)
    finally:
        bench.close()


def restored(settings: Settings, table: BronzeTable, **target: Any) -> recovery.Restored:
    told: dict[str, Any] = {"in_place": True, "who": "dpo", "reason": "damaged"} | target
    done: recovery.Restored = at_bench(settings, lambda b: recovery.restore(b, table, Run("r", "cli"), **told))
    return done


def judged(settings: Settings, table: BronzeTable) -> intact.Integrity:
    found = at_bench(settings, lambda bench: intact.judge(bench, table))
    assert isinstance(found, intact.Integrity)
    return found


def batches(settings: Settings, schema: str = "shop_bronze") -> dict[str, str]:
    """Batch → its last event that says how it stands."""
    rows = lake_reader.read(settings.lake / schema / "bz_batches", "select * from t order by event_time")
    return {one["batch_id"]: one["event"] for one in rows}


def bad(number: int) -> dict[str, Any]:
    return row(number, amount=-1)


def test_damage_is_found_restored_and_proved_equal(
    spark: SparkSession, settings: Settings, instance: dg.DagsterInstance
) -> None:
    dagster = Dagster(settings, instance, things())
    drop(settings, f"{YESTERDAY}/a.json", json_lines(*map(row, range(1, 6))))
    first = dagster.load(YESTERDAY)
    drop(settings, f"{TODAY}/b.json", json_lines(*map(row, range(6, 9))))
    dagster.load()
    path = table_path(settings)
    before, version = everything(path), lake_reader.version(path)
    values = lake_reader.tuples(path, VALUES)
    assert dagster.check().passed
    dagster.alerted()
    DeltaTable(str(path)).delete("thing_id in (2, 3, 7)")
    found = dagster.check()
    assert not found.passed
    assert found.severity is dg.AssetCheckSeverity.ERROR
    told = numbers(found)
    assert (told["missing"], told["extra"]) == ({f"{YESTERDAY}/1": 2, f"{TODAY}/1": 1}, {})
    assert told["foreign_commits"] == [f"{version + 1} DELETE"]
    assert told["last_intact_version"] == version
    (alert,) = [line for line in dagster.alerted().splitlines() if "check intact failed" in line]
    assert "critical" in alert
    assert f"{things().name}: check intact failed" in alert
    # A bad batch, of somebody else.
    answer = QueryBuilder().register("t", DeltaTable(str(path))).execute("select * from t limit 2")
    rows = arrow.table(answer.read_all())
    place = rows.column_names.index("batch_id")
    write_deltalake(str(path), rows.set_column(place, "batch_id", arrow.array(["x/1", "x/1"])), mode="append")
    assert numbers(dagster.check())["extra"] == {"x/1": 2}
    dagster.restore(version=version, only_show=True, in_place=True)
    assert lake_reader.version(path) == version + 2, "it was only shown"
    dagster.restore(version=version, in_place=True)
    assert everything(path) == before
    assert dagster.load()["loaded"] == 0
    assert everything(path) == before
    assert dagster.check().passed
    assert "check intact failed (well again, after" in dagster.alerted()
    assert dagster.statuses(YESTERDAY, TODAY) == ["MATERIALIZED", "MATERIALIZED"]
    # Back to where the second file had not come.
    result = dagster.restore(version=first["delta_version"], in_place=True)
    assert ids(settings) == [1, 2, 3, 4, 5]
    assert states(settings) == {f"{YESTERDAY}/a.json": "archived", f"{TODAY}/b.json": "undone"}
    assert dagster.statuses(YESTERDAY, TODAY) == ["MATERIALIZED", "FAILED"]
    (run,) = instance.get_runs(dg.RunsFilter(tags={TRIGGER_TAG: "restore"}))
    assert run.status is dg.DagsterRunStatus.FAILURE
    assert run.tags["dagster/max_retries"] == "0"
    (observed,) = [
        record.asset_observation for record in instance.fetch_observations(asset_key(dagster.table), limit=1).records
    ]
    assert observed is not None
    assert observed.metadata["batches_undone"].value == [f"{TODAY}/1"]
    assert observed.metadata["bytes"].value == sum(
        arrow.table(DeltaTable(str(path)).get_add_actions())["size_bytes"].to_pylist()
    )
    assert result.success
    assert dagster.check().passed
    assert dagster.load()["loaded"] == 3
    assert dagster.statuses(YESTERDAY, TODAY) == ["MATERIALIZED", "MATERIALIZED"]
    assert lake_reader.tuples(path, VALUES) == values
    assert ids(settings) == [1, 2, 3, 4, 5, 6, 7, 8]
    assert dagster.check().passed
    assert dagster.load()["loaded"] == 0
    failed = dagster.restore(version=99, raise_on_error=False)
    assert not failed.success
    log = lake_reader.read(table_path(settings, "bz_audit_log"), "select * from t order by processing_end_time")
    assert [
        (one["operation_type"], one["status"], one["batch_id"]) for one in log if "restore" in one["operation_type"]
    ] == [
        (f"restore to version {version}", "SUCCESS", None),
        (f"restore to version {first['delta_version']}", "SUCCESS", None),
    ]


def copied(settings: Settings, target: Path) -> Settings:
    """The same home elsewhere."""
    shutil.copytree(settings.home, target)
    return settings_for(target, {"BRONZE_JARS": str(settings.jars)})


def two_loads(settings: Settings, table: BronzeTable) -> int:
    """Two files, each with a bad row, and a replay of the first; returns the version of before the second."""
    drop(settings, "a.json", json_lines(row(1), row(2), bad(3)))
    version = loaded(settings, table).delta_version
    assert version is not None
    drop(settings, "b.json", json_lines(row(4), bad(5)))
    loaded(settings, table)
    at_bench(settings, lambda b: quarantine.replay(b, things(), Selection(), Run("p", "cli")))
    return version


def signature(settings: Settings) -> tuple[Any, ...]:
    quarantined = lake_reader.tuples(
        table_path(settings, "bz_things_quarantine"), "row_key", "state", "sightings", "batch_id", "last_batch_id"
    )
    return everything(table_path(settings)), quarantined, states(settings), batches(settings)


@pytest.mark.slow
def test_a_killed_restore_is_finished_by_the_same_again(
    spark: SparkSession, settings: Settings, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    table = strict()
    version = two_loads(settings, table)
    other = copied(settings, tmp_path / "undisturbed")
    plan = restored(other, table, version=version).plan
    assert [batch.id for batch in plan.undone] == [f"{DAY}/2", f"{DAY}/3"]
    assert (plan.rows_now, plan.rows_then, plan.going, plan.coming) == (5, 2, 3, 0)
    assert plan.pending == ("raw/things/b.json",)
    assert ids(other) == [1, 2]
    assert signature(other)[1] == [("3", "open", 1, f"{DAY}/1", f"{DAY}/1")]
    assert signature(other)[3] == {f"{DAY}/1": "done", f"{DAY}/2": "undone", f"{DAY}/3": "undone"}
    steps: list[tuple[Any, str]] = [
        (Lakehouse, "restore_quarantine"),
        (Lakehouse, "restore"),
        (Ledger, "record"),
        (BatchLog, "note"),
        (audit, "write_restore"),
    ]
    for owner, name in steps:
        real = getattr(owner, name)

        def killed(*arguments: Any, real: Any = real, **named: Any) -> None:
            real(*arguments, **named)
            raise KeyboardInterrupt

        with monkeypatch.context() as patched:
            patched.setattr(owner, name, killed)
            with pytest.raises(KeyboardInterrupt):
                restored(settings, table, version=version)
    done = restored(settings, table, version=version)
    assert done.plan.nothing
    assert signature(settings) == signature(other)
    for one in (settings, other):
        assert judged(one, table).intact
        record = loaded(one, table)
        assert (record.read, record.loaded, record.quarantined) == (2, 1, 1)
    assert lake_reader.tuples(table_path(settings), VALUES) == lake_reader.tuples(table_path(other), VALUES)
    assert ids(settings) == [1, 2, 4]
    quarantined = lake_reader.tuples(table_path(settings, "bz_things_quarantine"), "row_key", "state")
    assert quarantined == [("3", "open"), ("5", "open")]
    # What the restore undid can be brought back as well: both replayed rows.
    assert restored(settings, table, version=version + 2).plan.redone
    assert ids(settings) == [1, 2, 3, 4, 5]
    assert batches(settings)[f"{DAY}/3"] == "done"
    assert states(settings)["b.json"] == "archived"
    assert loaded(settings, table).loaded == 0
    assert judged(settings, table).intact


def test_no_table_shows_a_forgotten_person_again(spark: SparkSession, settings: Settings) -> None:
    table = people.people()
    people.drop(settings, "a.json", person(1), person(2), person(2, visits=-1), person(3, visits=-1))
    people.loaded(settings)
    path = people.path(settings)
    version = lake_reader.version(path)
    people.drop(settings, "b.json", person(2, city="Bonn"), person(4), person(4, visits=-2))
    people.loaded(settings)
    people.erased(settings, "2")
    before = lake_reader.version(path)
    restored(settings, table, version=version, in_place=False)
    beside = people.path(settings, "bz_people_recovered")
    assert [len(lake_reader.read(beside)), lake_reader.version(path)] == [2, before]
    done = restored(settings, table, version=version)
    assert (done.plan.erased_versions, done.plan.erased_subjects, done.plan.by_log) == (1, 1, False)
    now = lake_reader.version(path)
    assert now == before + 1
    blanks = ("name", "email", "phone", "city", "record_hash")
    for one in (path, beside):
        (mine,) = lake_reader.read(one, "select * from t where person_id = 2")
        assert (mine["record_status"], *(mine[name] for name in blanks)) == ("ERASED", *[None] * len(blanks))
        (other,) = lake_reader.read(one, "select * from t where person_id = 1")
        assert (other["record_status"], other["city"]) == ("ACTIVE", "Köln")
    kept = lake_reader.tuples(people.path(settings, "bz_people_quarantine"), "row_key")
    assert kept == [("3",)]
    assert judged(settings, table).intact
    record = people.loaded(settings)
    # Their row has left the file as well.
    assert (record.read, record.loaded, record.quarantined) == (2, 1, 1)
    assert sorted(people.versions(settings)) == [1, 2, 4]
    assert judged(settings, table).intact
    # Who is forgotten later leaves the copy too.
    (registered,) = derived.registered(open_lake(settings, lambda: spark), table)
    assert registered.place == "club_bronze.bz_people_recovered"
    people.erased(settings, "1")
    assert [one["person_id"] for one in lake_reader.read(beside)] == [2]
    properties = lake_reader.properties(path)
    assert properties["delta.deletedFileRetentionDuration"] == "interval 30 days"


def test_what_cannot_be_restored_is_said_before_anything_is_written(spark: SparkSession, settings: Settings) -> None:
    table = things()
    with pytest.raises(LakeError, match=r"bz_things: there is no table at .* Fix: load it first"):
        restored(settings, table, version=0)
    drop(settings, "a.json", json_lines(row(1)))
    loaded(settings, table)
    drop(settings, "b.json", json_lines(row(2)))
    loaded(settings, table)
    path, lake = table_path(settings), Lakehouse(settings.lake)
    last = lake_reader.version(path)
    (first, *_, late) = [one["timestamp"] for one in reversed(DeltaTable(str(path)).history())]

    def at(milliseconds: float) -> dt.datetime:
        return dt.datetime.fromtimestamp(milliseconds / 1000, dt.UTC)

    refused: list[tuple[type[BronzeError], str, dict[str, Any]]] = [
        (
            LakeError,
            f"version 99 is not there. Fix: choose another: it has the versions 0 .* to {last}",
            {"version": 99},
        ),
        (LakeError, "lies before its first known version", {"at": at(first - 1)}),
        (LakeError, "lies after its last known version", {"at": at(late + 1)}),
        (LoadRefused, "needs a reason and somebody", {"version": 1, "reason": " "}),
        (LoadRefused, "give one of both", {}),
        (LoadRefused, "give one of both", {"version": 1, "at": at(late)}),
    ]
    for kind, words, target in refused:
        for in_place in (True, False):
            with pytest.raises(kind, match=words):
                restored(settings, table, **target, in_place=in_place)
    # A load holds the table, and beats every third of a second.
    quick = dataclasses.replace(settings, lease_seconds=10)
    with lease(lake, table.schema, table.name, "a load", 1.0), pytest.raises(TableBusy, match="run a load on"):
        restored(quick, table, version=1)
    write_deltalake(str(path.with_name("bz_things_recovered")), arrow.table({"a": [1]}))
    with pytest.raises(LoadRefused, match="there is a table bz_things_recovered that no restore has made"):
        restored(settings, table, version=1, in_place=False)
    shutil.rmtree(path.with_name("bz_things_recovered"))
    # What a vacuum has removed.
    gone = Path(DeltaTable(str(path), version=1).file_uris()[0]).name
    DeltaTable(str(path)).delete("thing_id = 1")
    (path / gone).unlink()
    for in_place in (True, False):
        with pytest.raises(LakeError, match=f"version 1 cannot be restored: its files are gone, '{gone}'"):
            restored(settings, table, version=1, in_place=in_place)
    assert lake_reader.version(path) == last + 1
    assert judged(settings, table).missing == {f"{DAY}/1": 1}
    log = lake_reader.read(table_path(settings, "bz_audit_log"))
    failed = [one for one in log if "restore" in one["operation_type"]]
    assert {one["status"] for one in failed} == {"FAILED"}
    assert "its files are gone" in " ".join(one["error_message"] for one in failed)


@IN_BOTH
def test_a_load_that_was_decided_before_commits_nothing_after(spark: SparkSession, settings: Settings) -> None:
    table = things()
    drop(settings, "a.json", json_lines(row(1)))
    loaded(settings, table)
    drop(settings, "b.json", json_lines(row(2)))
    loaded(settings, table)
    lake = open_lake(settings, lambda: spark)
    base = lake.version(table.schema, table.name)
    late = lake.read(spark, table.schema, table.name, version=base)
    restored(settings, table, version=base - 1)
    with pytest.raises(StaleBase):
        lake.append(late, table, f"{DAY}/9", base=base)
    assert ids(settings) == [1]
    assert loaded(settings, table).loaded == 1
    assert ids(settings) == [1, 2]


def test_nothing_that_the_platform_does_looks_like_damage(spark: SparkSession, settings: Settings) -> None:
    table = strict(overwritten=Overwritten.RELOAD)
    drop(settings, "a.json", json_lines(row(1), row(2), bad(3)))
    first = loaded(settings, table).delta_version
    drop(settings, "b.json", json_lines(row(4), row(5)))
    loaded(settings, table)
    assert judged(settings, table).intact
    lenient = things(overwritten=Overwritten.RELOAD)
    at_bench(settings, lambda b: quarantine.replay(b, lenient, Selection(), Run("p", "cli")))
    assert judged(settings, table).intact
    loaded(settings, table, reload=True)
    assert judged(settings, table).intact
    drop(settings, "b.json", json_lines(row(4, name="other"), row(6), row(7)))
    loaded(settings, table)
    assert judged(settings, table).intact
    path = table_path(settings)
    DeltaTable(str(path)).optimize.compact()
    told = CommitProperties(custom_metadata={"userMetadata": "retention of 30 days 0123"})
    DeltaTable(str(path)).delete("thing_id = 6", commit_properties=told)
    assert judged(settings, table).intact
    version = lake_reader.version(path)
    drop(settings, "c.json", json_lines(row(8)))
    loaded(settings, table)
    restored(settings, table, version=version)
    assert judged(settings, table).intact
    rows = sorted(ids(settings))
    assert rows == [1, 2, 4, 7]
    # And damage in the midst of it is seen.
    DeltaTable(str(path)).update({"name": "'x'"}, predicate="thing_id = 7")
    found = judged(settings, table)
    assert [one.operation for one in found.foreign] == ["UPDATE"]
    assert (found.missing, found.extra) == ({}, {})
    restored(settings, table, version=found.last_intact)
    # Somebody who brings back an older version by hand loses what came after it, and is seen.
    assert first is not None
    DeltaTable(str(path)).restore(first)
    back = judged(settings, table)
    assert [one.operation for one in back.foreign] == ["RESTORE"]
    assert back.missing
    restored(settings, table, version=back.last_intact)
    assert judged(settings, table).intact
    assert sorted(ids(settings)) == rows
    for file in path.glob("*.parquet"):
        if file.name in {Path(one).name for one in DeltaTable(str(path)).file_uris()}:
            file.unlink()
    assert judged(settings, table).missing_files


def test_a_file_that_was_overwritten_takes_its_place_again(spark: SparkSession, settings: Settings) -> None:
    table = things(overwritten=Overwritten.RELOAD)
    drop(settings, "a.json", json_lines(row(1), row(2)))
    version = loaded(settings, table).delta_version
    drop(settings, "a.json", json_lines(row(1, name="new"), row(3)))
    loaded(settings, table)
    assert ids(settings) == [1, 3]
    restored(settings, table, version=version)
    assert ids(settings) == [1, 2]
    assert judged(settings, table).intact
    assert len(archive(settings)) == 2
    record = loaded(settings, table)
    assert (record.loaded, record.replaced) == (2, 2)
    assert ids(settings) == [1, 3]
    assert lake_reader.read(table_path(settings), "select name from t where thing_id = 1") == [{"name": "new"}]
    assert judged(settings, table).intact
    assert loaded(settings, table).loaded == 0
    # Rows whose time is over are no damage; one more is.
    path = str(table_path(settings))
    told = CommitProperties(custom_metadata={"userMetadata": "retention of 30 days 0123"})
    DeltaTable(path).delete("thing_id = 1", commit_properties=told)
    assert judged(settings, table).intact
    DeltaTable(path).delete("thing_id = 3")
    assert judged(settings, table).missing == {"": 1}


def test_a_snapshot_table_gets_what_is_outstanding(lab: Lab) -> None:  # noqa: F811
    (table,) = (one for one in TABLES if one.name == "bz_warehouses")
    lab.make("warehouses", [(1, "Köln", 5), (2, "Bonn", 6)])
    version = lab.load(table).delta_version
    lab.sql("update tests.warehouses set capacity = 7 where warehouse_id = 2")
    lab.insert("warehouses", [(3, "Ulm", 8)])
    lab.load(table)
    undisturbed = lab.current(table, "warehouse_id", "location", "capacity")
    bench = Workbench(lab.settings, clock=lab.clock)
    recovery.restore(bench, table, Run("r", "cli"), version=version, in_place=True, who="dpo", reason="damaged")
    assert lab.rows(table, "warehouse_id") == [(1,), (2,)]
    record = lab.load(table)
    assert (record.loaded, record.unchanged, record.partition_rows) == (2, 1, 4)
    assert lab.current(table, "warehouse_id", "location", "capacity") == undisturbed
    found = intact.judge(bench, table)
    assert found is not None
    assert found.intact


def test_the_command_shows_and_restores(
    lab: Lab,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (table,) = (one for one in TABLES if one.name == "bz_customers")
    # Partitioned by a generated column, which not every writer of Delta knows.
    lab.make("customers", [(1, "Ada", "ada@example.org")])
    version = lab.load(table).delta_version
    monkeypatch.setattr(Settings, "from_environment", lambda: lab.settings)
    DeltaTable(str(lab.path(table.name))).delete()
    assert command_line.main(["restore", table.name, "--version", str(version), "--in-place"]) == 0
    told = capsys.readouterr().out
    assert "Row versions: 0 now, 1 then; 0 go, 1 come back." in told
    assert "Nothing was changed." in told
    assert lab.rows(table, "customer_id") == []
    arguments = ["restore", table.name, "--version", str(version), "--in-place", "--yes", "--reason", "damaged"]
    assert command_line.main(arguments) == 0
    assert lab.rows(table, "customer_id") == [(1,)]
    with dg.DagsterInstance.from_config(str(lab.settings.dagster_home)) as instance:
        (record,) = instance.fetch_observations(asset_key(table), limit=1).records
    assert record.asset_observation is not None
    assert record.asset_observation.metadata["rows_coming_back"].value == 1
    assert command_line.main(["restore", table.name, "--at", "yesterday"]) == 1
    assert "'yesterday' is no moment" in capsys.readouterr().err
