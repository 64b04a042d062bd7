"""Maintenance through Dagster, on Delta tables that real loads have made; looked at by `deltalake` alone."""

from __future__ import annotations

import dataclasses
import datetime as dt
import json
import os
import shutil
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

import dagster as dg
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from deltalake import DeltaTable, QueryBuilder, write_deltalake

from bronze_assets.access import ERASURE_LOG, MAINTENANCE_LOG, SUBJECT_KEYS, TOKEN_VAULT
from bronze_assets.audit import AUDIT_LOG
from bronze_assets.errors import StaleBase
from bronze_assets.lakehouse import Lakehouse
from bronze_assets.leases import LEASES, forget_released, lease
from bronze_assets.operations import maintenance
from bronze_assets.orchestration import maintenance as orchestration
from bronze_assets.orchestration.maintenance import maintenance_definitions
from bronze_assets.settings import Discovery, Settings
from bronze_assets.storage import Conflict
from bronze_assets.table import BronzeTable, Layout
from bronze_assets_tests import file_tables, lake_reader, people
from bronze_assets_tests.conftest import settings_for
from bronze_assets_tests.file_tables import SCHEMA, drop, json_lines, loaded, row, table_path
from bronze_assets_tests.test_removal import age, files_with

if TYPE_CHECKING:
    from collections.abc import Callable

    from pyspark.sql import SparkSession

NAME = "bz_things"
MONTH = dt.timedelta(days=30)
TODAY = dt.datetime.now(dt.UTC).date()


def things() -> BronzeTable:
    layout = Layout(partition_by="made_on", z_order=("amount", "thing_id"))
    return dataclasses.replace(file_tables.things(), layout=layout)


def run(
    settings: Settings,
    job: str,
    *tables: BronzeTable,
    instance: dg.DagsterInstance | None = None,
    fails: bool = False,
    **config: Any,
) -> dict[str, Any]:
    """A run of a job; the metadata of its op, and of `tables` the rows."""
    definitions = maintenance_definitions(settings, tables or [things()])
    definition = definitions.get_job_def(job)
    (op,) = definition.graph.node_dict
    result = definition.execute_in_process(
        run_config={"ops": {op: {"config": config}}}, instance=instance, raise_on_error=False
    )
    assert result.success is not fails
    kind = "STEP_FAILURE" if fails else "STEP_OUTPUT"
    (event,) = (event for event in result.all_events if event.event_type_value == kind)
    if fails:
        failure = event.step_failure_data.user_failure_data
        assert failure is not None
        told = {**failure.metadata, "error": dg.MetadataValue.text(failure.description or "")}
    else:
        told = dict(event.step_output_data.metadata)
    return {
        name: [record.data for record in value.records] if isinstance(value, dg.TableMetadataValue) else value.value
        for name, value in told.items()
    }


def rows(path: Path) -> list[str]:
    return sorted(map(str, lake_reader.read(path)))


def files(path: Path, day: str | None = None) -> int:
    """How many files the current version has, or its partition of that day."""
    if day is None:
        return len(DeltaTable(str(path)).file_uris())
    days = pa.table(DeltaTable(str(path)).get_add_actions(flatten=True))["partition.made_on"].to_pylist()
    return [str(one) for one in days].count(day)


def read_at(path: Path, version: int) -> list[str]:
    answer = QueryBuilder().register("t", DeltaTable(str(path), version=version)).execute("select * from t")
    return sorted(map(str, pa.table(answer.read_all()).to_pylist()))


def history(path: Path) -> list[dict[str, Any]]:
    """Newest first."""
    return DeltaTable(str(path)).history()


def maintained(settings: Settings, schema: str = SCHEMA) -> list[dict[str, Any]]:
    return lake_reader.read(settings.lake / schema / MAINTENANCE_LOG, "select * from t order by at, version")


@pytest.fixture(scope="module")
def prepared(spark: SparkSession, tmp_path_factory: pytest.TempPathFactory, jars: Path) -> Callable[..., Settings]:
    """Makes a home once and copies it."""
    made: dict[str, Settings] = {}

    def copied(make: Callable[[Settings], None], settings: Settings) -> Settings:
        if make.__name__ not in made:
            home = tmp_path_factory.mktemp(make.__name__)
            made[make.__name__] = settings_for(home, {"BRONZE_JARS": str(jars)})
            make(made[make.__name__])
        shutil.copytree(made[make.__name__].home, settings.home)
        return settings

    return copied


@pytest.fixture
def loads(prepared: Callable[..., Settings], settings: Settings) -> Settings:
    """A home in which three loads brought rows of two past days, of today and of no day, and bad ones."""
    return prepared(three_loads, settings)


def three_loads(settings: Settings) -> None:
    for number in range(3):
        days = ["2026-06-01", "2026-06-02", str(TODAY), None]
        good = [row(10 * number + n + 1, made_on=day, amount=n + 0.5) for n, day in enumerate(days)]
        drop(settings, f"{number}.json", json_lines(*good, row(-number - 1)))
        loaded(settings, things())


def test_small_files_become_few_and_every_row_stays(loads: Settings) -> None:
    path, bad = table_path(loads), table_path(loads, f"{NAME}_quarantine")
    before, held_back, version = rows(path), rows(bad), lake_reader.version(path)
    assert files(path, "2026-06-01") == 3
    assert files(bad) > 1

    intended = run(loads, "optimize_tables", dry_run=True)
    assert {one["table"]: one["action"] for one in intended["tables"]} == {
        NAME: "OPTIMIZE ZORDER",
        f"{NAME}_quarantine": "OPTIMIZE",
    }
    assert intended["done"] == 0
    assert lake_reader.version(path) == version
    assert not lake_reader.is_table(table_path(loads, MAINTENANCE_LOG))

    done = run(loads, "optimize_tables")
    assert (done["done"], done["failed"]) == (2, 0)
    assert rows(path) == before
    assert rows(bad) == held_back
    assert [files(path, day) for day in ("2026-06-01", "2026-06-02", str(TODAY))] == [1, 1, 3]
    assert files(bad) == 1
    latest = history(path)[0]
    assert latest["operation"] == "OPTIMIZE"
    assert json.loads(latest["operationParameters"]["zOrderBy"]) == ["amount", "thing_id"]
    # Delta tells of every version what it held.
    assert read_at(path, version) == before

    told = {one["table"]: one for one in done["tables"]}
    assert (told[NAME]["files_before"], told[NAME]["files_after"]) == (6, 2)
    assert told[NAME]["bytes_after"] < told[NAME]["bytes_before"]
    logged = {one["table_name"]: one for one in maintained(loads)}
    assert set(logged[NAME]["partitions"]) == {"2026-06-01", "2026-06-02"}
    assert logged[NAME]["version"] == latest["version"]
    assert (logged[NAME]["files_before"], logged[NAME]["files_after"]) == (6, 2)
    assert logged[f"{NAME}_quarantine"]["partitions"] is None

    again = run(loads, "optimize_tables")
    assert (again["done"], again["skipped"]) == (0, 2)
    assert {one["table"]: one["skipped"] for one in again["tables"]} == {
        NAME: "2 partitions: younger than a day; 2 partitions: one file cannot become fewer",
        f"{NAME}_quarantine": "one file cannot become fewer",
    }
    assert history(path)[0]["version"] == latest["version"]


def test_a_table_of_an_earlier_release_is_given_the_statistics_that_clustering_needs(loads: Settings) -> None:
    path = table_path(loads)
    DeltaTable(str(path)).alter.set_table_properties({"delta.dataSkippingStatsColumns": "thing_id,batch_id"})
    assert run(loads, "optimize_tables", tables=[NAME])["done"] == 2
    assert lake_reader.properties(path)["delta.dataSkippingStatsColumns"] == "thing_id,batch_id,amount"
    told = pa.table(DeltaTable(str(path)).get_add_actions(flatten=True)).to_pylist()
    (one,) = [file for file in told if str(file["partition.made_on"]) == "2026-06-01"]
    assert float(one["min.amount"]) == 0.5


def test_new_rows_are_clustered_where_they_are_many_and_compacted_where_few(loads: Settings) -> None:
    run(loads, "optimize_tables")
    many = [row(100 + n, made_on="2026-06-01", amount=n, name=os.urandom(400).hex()) for n in range(50)]
    drop(loads, "more.json", json_lines(*many))
    loaded(loads, things())
    (one, _) = maintenance.plan(Lakehouse(loads.lake), things(), dt.datetime.now(dt.UTC))
    assert {part.value: part.action for part in one.parts if part.files > 1} == {
        "2026-06-01": "OPTIMIZE ZORDER",
        str(TODAY): None,
        None: None,
    }
    run(loads, "optimize_tables")
    drop(loads, "few.json", json_lines(row(200, made_on="2026-06-01")))
    loaded(loads, things())
    before = rows(table_path(loads))
    (told, _) = run(loads, "optimize_tables")["tables"]
    assert (told["action"], told["files_before"], told["files_after"]) == ("OPTIMIZE", 2, 1)
    assert rows(table_path(loads)) == before
    assert json.loads(history(table_path(loads))[0]["operationParameters"].get("zOrderBy", "[]")) == []


def test_a_table_that_is_being_loaded_is_left_out(loads: Settings) -> None:
    version = lake_reader.version(table_path(loads))
    with lease(Lakehouse(loads.lake), SCHEMA, NAME, "the load", loads.lease_seconds):
        found = run(loads, "optimize_tables")
    assert {one["skipped"] for one in found["tables"]} == {
        "since run the load is at work on it; the next maintenance does it"
    }
    assert lake_reader.version(table_path(loads)) == version
    assert run(loads, "optimize_tables")["done"] == 2


def test_of_two_maintenance_runs_the_second_is_refused(loads: Settings) -> None:
    settings = dataclasses.replace(loads, lease_seconds=3)
    version = lake_reader.version(table_path(loads))
    with lease(Lakehouse(loads.lake), SCHEMA, f"maintenance/{SCHEMA}", "the first", settings.lease_seconds):
        for job in ("optimize_tables", "vacuum_tables", "clean_control_tables"):
            error = run(settings, job, fails=True)["error"]
            assert f"maintenance of {SCHEMA} runs already: run the first on " in error
            assert "Nothing was done. Fix: wait until it has ended" in error
        # Who only looks is in nobody's way.
        assert run(settings, "optimize_tables", dry_run=True)["failed"] == 0
    assert lake_reader.version(table_path(loads)) == version


def test_an_unknown_table_is_an_error_that_lists_the_known(settings: Settings) -> None:
    for job in ("optimize_tables", "vacuum_tables"):
        error = run(settings, job, things(), people.people(), fails=True, tables=["bz_thing"])["error"]
        assert error == "there is no table 'bz_thing'. Fix: use some of bz_things, bz_people."


DAYS = [str(dt.date(2026, 1, 1) + dt.timedelta(days=n)) for n in range(16)]


@pytest.fixture
def many(prepared: Callable[..., Settings], settings: Settings) -> Settings:
    """A home with two files in each of sixteen partitions: an OPTIMIZE of it takes a while."""
    return prepared(sixteen_days, settings)


def sixteen_days(settings: Settings) -> None:
    for number in range(2):
        drop(settings, f"{number}.json", json_lines(*(row(16 * number + n + 1, made_on=d) for n, d in enumerate(DAYS))))
        loaded(settings, things())


def test_loads_during_an_optimize_lose_no_row(many: Settings, spark: SparkSession) -> None:
    path, lake = table_path(many), Lakehouse(many.lake)
    stop = threading.Event()
    conflicts: list[Conflict] = []
    done: list[int | None] = []

    def optimise() -> None:
        while not stop.is_set():
            try:
                done.append(lake.optimize(spark, str(path), z_order=["amount"]).version)
            except Conflict as error:
                conflicts.append(error)
            stop.wait(0.2)

    def until_through(**options: Any) -> int:
        """As Dagster tries again what is retryable."""
        for attempt in range(3):
            try:
                loaded(many, things(), **options)
            except StaleBase:
                # One OPTIMIZE is enough for it to be overtaken, and none comes again so soon.
                stop.set()
                thread.join()
            else:
                return attempt
        raise AssertionError("always overtaken")

    before = lake_reader.version(path)
    thread = threading.Thread(target=optimise)
    thread.start()
    try:
        drop(many, "late.json", json_lines(*(row(100 + n, made_on=day) for n, day in enumerate(DAYS))))
        until_through()
        # All rows are deleted and come again.
        until_through(reload=True)
    finally:
        stop.set()
        thread.join()
    assert sorted(file_tables.ids(many)) == [*range(1, 33), *range(100, 116)]
    operations = [one["operation"] for one in reversed(history(path)) if one["version"] > before]
    writes = [n for n, name in enumerate(operations) if name != "OPTIMIZE"]
    assert len(writes) >= 2
    assert operations.count("OPTIMIZE") == len(done)
    assert "OPTIMIZE" in operations[: writes[-1]], "they did not meet"


def test_what_a_load_has_overtaken_is_tried_once_more(many: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    path = table_path(many)
    optimize = Lakehouse.optimize
    conflicts: list[Conflict] = []

    def beside_a_delete(lake: Lakehouse, session: SparkSession, location: str, **told: Any) -> Any:
        there = set(path.rglob("*.parquet"))

        def delete() -> None:
            while not set(path.rglob("*.parquet")) - there:
                time.sleep(0.005)
            # By another engine, which needs a hundredth of the time.
            DeltaTable(str(path)).delete(f"made_on = '{DAYS[-1]}'")

        thread = threading.Thread(target=delete, daemon=True)
        if not conflicts and location == str(path):
            thread.start()
        try:
            return optimize(lake, session, location, **told)
        except Conflict as error:
            conflicts.append(error)
            raise
        finally:
            if thread.ident:
                thread.join()

    monkeypatch.setattr(Lakehouse, "optimize", beside_a_delete)
    found = run(many, "optimize_tables")
    assert len(conflicts) == 1
    assert (found["done"], found["failed"]) == (1, 0)
    assert sorted(file_tables.ids(many)) == [n for n in range(1, 33) if n % 16]
    assert files(path) == len(DAYS) - 1
    (logged,) = maintained(many)
    assert set(logged["partitions"]) == set(DAYS[:-1])

    def overtaken(*_: Any, **__: Any) -> None:
        raise Conflict

    drop(many, "more.json", json_lines(*(row(200 + n, made_on=DAYS[0]) for n in range(9))))
    loaded(many, things())
    monkeypatch.setattr(Lakehouse, "optimize", overtaken)
    told = {one["table"]: one for one in run(many, "optimize_tables")["tables"]}
    assert told[NAME]["skipped"] == "loads were faster twice, nothing was written; the next maintenance tries it"


def test_one_table_that_fails_does_not_stop_the_others(loads: Settings) -> None:
    log = max(table_path(loads).joinpath("_delta_log").glob("*.json"))
    log.write_bytes(b"{")
    found = run(loads, "vacuum_tables", fails=True)
    assert {one["table"]: bool(one["error"]) for one in found["tables"]} == {NAME: True, f"{NAME}_quarantine": False}
    assert f"maintenance of {NAME} failed; the others are done." in found["error"]


def test_vacuum_leaves_what_the_last_thirty_days_need(loads: Settings) -> None:
    path = table_path(loads)
    version, before = lake_reader.version(path), rows(path)
    run(loads, "optimize_tables")
    age(path, written=60, removed=29)
    listed = lake_reader.listing(path)
    assert run(loads, "vacuum_tables")["done"] == 0
    assert lake_reader.listing(path) == listed
    assert read_at(path, version) == before

    age(path, written=60, removed=31)
    intended = run(loads, "vacuum_tables", dry_run=True)
    assert lake_reader.listing(path) == listed
    (meant, _) = intended["tables"]
    done = run(loads, "vacuum_tables")
    (told, _) = done["tables"]
    assert meant["skipped"] == f"since this is a dry run; {told['removed']} files would go"
    assert told["files_before"] - told["files_after"] == told["removed"] == 6
    assert told["bytes_before"] > told["bytes_after"]
    assert rows(path) == before
    with pytest.raises(Exception, match=r"(?i)not found|no such file"):
        read_at(path, version)


def test_vacuum_refuses_a_table_that_would_lose_its_time_travel(loads: Settings) -> None:
    path = table_path(loads)
    run(loads, "optimize_tables")
    DeltaTable(str(path)).alter.set_table_properties({"delta.deletedFileRetentionDuration": "interval 7 days"})
    age(path, written=60, removed=20)
    listed = lake_reader.listing(path)
    found = run(loads, "vacuum_tables", fails=True)
    assert "keeps removed files for 7 days only" in found["error"]
    assert NAME in found["error"]
    assert lake_reader.listing(path) == listed


@pytest.fixture
def forgotten(prepared: Callable[..., Settings], settings: Settings) -> Settings:
    """A home in which two persons were erased, a month ago by the clock of its files."""
    return prepared(an_erasure, settings)


def an_erasure(settings: Settings) -> None:
    persons = [people.person(1), people.person(2, city=CITY), people.person(3, city=CITY, visits=-1)]
    people.drop(settings, "a.json", *persons)
    people.loaded(settings)
    people.erased(settings, "2", "3")
    for name in (people.NAME, f"{people.NAME}_quarantine"):
        age(people.path(settings, name), written=60, removed=31)


CITY = "Castrop-Rauxel"


def test_vacuum_removes_what_erasures_left_and_says_so(forgotten: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    path = people.path(forgotten)
    assert files_with(path, CITY)
    monkeypatch.setattr(orchestration, "_now", lambda: people.NOW + MONTH)
    listed = lake_reader.listing(path)
    assert "1 erasures have come of age" in str(run(forgotten, "vacuum_tables", people.people(), dry_run=True))
    assert lake_reader.listing(path) == listed
    found = run(forgotten, "vacuum_tables", people.people())
    assert [one["action"] for one in found["tables"]] == ["VACUUM", "VACUUM", "REMOVE ERASED, 1 erasures"]
    for name in (people.NAME, f"{people.NAME}_quarantine"):
        assert files_with(people.path(forgotten, name), CITY) == []
    evidence = lake_reader.read(people.path(forgotten, ERASURE_LOG), "select * from t where event = 'vacuumed'")
    assert [one["who"] for one in evidence] == ["vacuum_tables"]
    again = run(forgotten, "vacuum_tables", people.people())
    assert again["tables"][-1]["skipped"] == "no erasure of bz_erasure_log has come of age"


def test_compaction_does_not_keep_what_an_erasure_took_out(
    forgotten: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    people.drop(forgotten, "b.json", people.person(4), people.person(5))
    people.loaded(forgotten)
    secret = (
        lake_reader.listing(people.path(forgotten, SUBJECT_KEYS)),
        lake_reader.listing(people.path(forgotten, TOKEN_VAULT)),
    )
    before = rows(people.path(forgotten))
    assert run(forgotten, "optimize_tables", people.people())["done"] >= 1
    assert rows(people.path(forgotten)) == before
    assert files(people.path(forgotten)) == 1
    live = [unquote(uri.removeprefix("file://")) for uri in DeltaTable(str(people.path(forgotten))).file_uris()]
    assert not any(CITY in str(one) for file in live for one in pq.read_table(file).to_pylist())
    assert secret == (
        lake_reader.listing(people.path(forgotten, SUBJECT_KEYS)),
        lake_reader.listing(people.path(forgotten, TOKEN_VAULT)),
    )


def test_control_tables_become_few_in_files_and_keep_every_row(
    forgotten: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    audit = people.path(forgotten, AUDIT_LOG)
    (one,) = lake_reader.read(audit)
    for number in range(20):
        again = pa.Table.from_pylist([one | {"audit_id": str(number)}], schema=arrow_of(audit))
        write_deltalake(str(audit), again, mode="append")
    before, count = rows(audit), files(audit)
    assert count == 21
    private = [
        lake_reader.listing(people.path(forgotten, name)) for name in (SUBJECT_KEYS, TOKEN_VAULT, "bz_tombstones")
    ]
    monkeypatch.setattr(orchestration, "_now", lambda: dt.datetime.now(dt.UTC) + dt.timedelta(days=2))
    assert {one["table_name"] for one in leases(forgotten)} >= {people.NAME}

    assert run(forgotten, "clean_control_tables", people.people(), dry_run=True)["done"] == 0
    assert (files(audit), len(leases(forgotten))) == (count, 1)
    with lease(Lakehouse(forgotten.lake), people.SCHEMA, "bz_other", "a load", 60):
        found = run(forgotten, "clean_control_tables", people.people())
        assert {one["table_name"] for one in leases(forgotten) if not one["released"]} == {"bz_other"}
    told = {one["table"]: one for one in found["tables"]}
    assert (told[AUDIT_LOG]["files_before"], told[AUDIT_LOG]["files_after"]) == (21, 1)
    assert rows(audit) == before
    assert lake_reader.properties(audit)["delta.appendOnly"] == "true"
    assert audit.joinpath("_delta_log", "_last_checkpoint").exists()
    assert people.NAME not in {one["table_name"] for one in leases(forgotten)}
    assert private == [
        lake_reader.listing(people.path(forgotten, name)) for name in (SUBJECT_KEYS, TOKEN_VAULT, "bz_tombstones")
    ]
    # A month and a half later.
    logs = list(audit.joinpath("_delta_log").glob("0*"))
    for log in logs:
        os.utime(log, (time.time() - 45 * 86400,) * 2)
    # What is clean can be loaded into.
    people.drop(forgotten, "b.json", people.person(7))
    assert people.loaded(forgotten).loaded == 1
    assert run(forgotten, "clean_control_tables", people.people())["failed"] == 0
    # The latest of them and its checkpoint: what came after is told from there.
    assert len([log for log in logs if log.exists()]) <= 2
    assert len(lake_reader.read(audit)) == 22
    assert set(before) <= set(rows(audit))


def leases(settings: Settings) -> list[dict[str, Any]]:
    return lake_reader.read(people.path(settings, LEASES))


def arrow_of(path: Path) -> pa.Schema:
    return pa.schema(DeltaTable(str(path)).schema().to_arrow())


def test_a_lease_that_is_taken_anew_is_not_forgotten(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    lake = Lakehouse(settings.lake)
    with lease(lake, SCHEMA, NAME, "first", 60):
        pass
    seen = lake.rows(SCHEMA, LEASES)
    later = dt.datetime.now(dt.UTC) + dt.timedelta(days=2)
    with lease(lake, SCHEMA, NAME, "second", 60):
        # What was read before the second came.
        monkeypatch.setattr(lake, "rows", lambda *_, **__: seen)
        forget_released(lake, SCHEMA, later)
        monkeypatch.undo()
        assert [one["run_id"] for one in lake.rows(SCHEMA, LEASES)] == ["second"]
    assert forget_released(lake, SCHEMA, later) == 1
    assert lake.rows(SCHEMA, LEASES) == []


def test_the_state_of_a_stream_goes_when_no_table_uses_it(
    spark: SparkSession, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    streaming = dataclasses.replace(settings, discovery=Discovery.STREAM)
    drop(settings, "a.json", json_lines(row(1)))
    loaded(streaming, things())
    state = settings.lake / "_discovery" / SCHEMA / NAME
    assert list(state.rglob("offsets"))
    assert run(settings, "clean_control_tables")["failed"] == 0
    assert state.exists(), "somebody may just have switched"
    monkeypatch.setattr(orchestration, "_now", lambda: dt.datetime.now(dt.UTC) + dt.timedelta(days=2))
    run(streaming, "clean_control_tables")
    assert state.exists()
    run(settings, "clean_control_tables", dry_run=True)
    assert state.exists()
    run(settings, "clean_control_tables")
    assert not state.exists()
    # It finds everything again, and loads nothing twice.
    drop(settings, "b.json", json_lines(row(2)))
    assert loaded(streaming, things()).loaded == 1
    assert file_tables.ids(settings) == [1, 2]


@dg.asset(
    partitions_def=dg.StaticPartitionsDefinition(["p1", "p2"]),
    check_specs=[dg.AssetCheckSpec("fine", asset="thing")],
    name="thing",
)
def thing() -> dg.MaterializeResult:
    return dg.MaterializeResult(check_results=[dg.AssetCheckResult(check_name="fine", passed=True)])


@dg.job
def nothing() -> None:
    pass


@dg.op
def fail() -> None:
    raise ValueError


@dg.job
def failing() -> None:
    fail()


def test_old_runs_go_and_the_state_of_each_partition_stays(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    with dg.instance_for_test() as instance:
        superseded = dg.materialize([thing], partition_key="p1", instance=instance).run_id
        first = dg.materialize([thing], partition_key="p1", instance=instance).run_id
        second = dg.materialize([thing], partition_key="p2", instance=instance).run_id
        failed = failing.execute_in_process(instance=instance, raise_on_error=False).run_id
        waiting = instance.create_run_for_job(nothing, status=dg.DagsterRunStatus.STARTED).run_id
        runs = {superseded, first, second, failed, waiting}

        def left() -> set[str]:
            return runs & {one.run_id for one in instance.get_runs()}

        assert run(settings, "purge_dagster", instance=instance)["deleted"] == 0
        assert left() == runs
        in_90_days = dt.datetime.now(dt.UTC) + dt.timedelta(days=91)
        monkeypatch.setattr(orchestration, "_now", lambda: in_90_days)
        dry = run(settings, "purge_dagster", instance=instance, dry_run=True)
        # The purges themselves have ended too: the first of this one, both of the next.
        assert (dry["deleted"], dry["kept"], left()) == (3, 2, runs)
        done = run(settings, "purge_dagster", instance=instance)
        assert (done["deleted"], done["kept"], left()) == (4, 2, {first, second, waiting})
        assert instance.get_materialized_partitions(thing.key) == {"p1", "p2"}
        event = instance.get_latest_materialization_event(thing.key)
        assert event is not None
        assert event.run_id == second
        check = dg.AssetCheckKey(thing.key, "fine")
        found = instance.event_log_storage.get_latest_asset_check_execution_by_key([check])[check]
        assert found.run_id == second
        assert instance.all_logs(superseded) == []
        assert len(instance.all_logs(first)) > 0
        assert run(settings, "purge_dagster", instance=instance, days=100)["deleted"] == 0


def test_the_jobs_have_a_pool_and_schedules_off_peak(settings: Settings, tmp_path: Path) -> None:
    definitions = maintenance_definitions(settings, [things()])
    schedules = {one.job_name: one for one in definitions.schedules or [] if isinstance(one, dg.ScheduleDefinition)}
    assert {name: one.cron_schedule for name, one in schedules.items()} == {
        "optimize_tables": "15 2 * * 0",
        "vacuum_tables": "15 4 * * 0",
        "clean_control_tables": "50 3 * * *",
        "purge_dagster": "15 5 * * 0",
    }
    assert {one.default_status for one in schedules.values()} == {dg.DefaultScheduleStatus.RUNNING}
    for name in schedules:
        assert [node.definition.pools for node in definitions.get_job_def(name).graph.nodes] == [{"maintenance"}]
    elsewhere = settings_for(tmp_path / "dev", {"BRONZE_ENV": "dev", "BRONZE_MASTER_KEY": f"file:{tmp_path}/key"})
    stopped = {one.default_status for one in maintenance_definitions(elsewhere, [things()]).schedules or []}
    assert stopped == {dg.DefaultScheduleStatus.STOPPED}


@pytest.mark.slow
@pytest.mark.parametrize("settings", ["catalog"], indirect=True)
def test_tables_of_a_catalog_are_maintained_through_spark(spark: SparkSession, settings: Settings) -> None:
    three_loads(settings)
    path, audit = table_path(settings), table_path(settings, AUDIT_LOG)
    before, told_before = rows(path), rows(audit)
    intended = run(settings, "optimize_tables", dry_run=True)
    done = run(settings, "optimize_tables")
    assert [one["action"] for one in done["tables"]] == [one["action"] for one in intended["tables"]]
    assert rows(path) == before
    assert [files(path, day) for day in ("2026-06-01", "2026-06-02", str(TODAY))] == [1, 1, 3]
    assert history(path)[0]["operation"] == "OPTIMIZE"
    assert run(settings, "optimize_tables")["done"] == 0
    assert run(settings, "vacuum_tables")["failed"] == 0
    assert run(settings, "clean_control_tables")["failed"] == 0
    assert files(audit) == 1
    assert rows(audit) == told_before
    assert rows(path) == before
