"""Tables derived from bronze: whoever is erased leaves them too, and what cannot be swept keeps the key."""

from __future__ import annotations

import datetime as dt
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dagster as dg
import pandera.pyspark as pa
import pyarrow as arrow
import pyspark.sql.types as T
import pytest
from deltalake import DeltaTable, write_deltalake

from bronze_assets import __main__ as command_line
from bronze_assets.catalog import TABLES
from bronze_assets.definitions import build_definitions
from bronze_assets.errors import LakeError, PrivacyRefused
from bronze_assets.lakehouse import Lakehouse
from bronze_assets.privacy import derived, erasure
from bronze_assets.privacy.derived import Derived
from bronze_assets.settings import Settings
from bronze_assets.table import BronzeTable, Cadence, Feed, Pii, column
from bronze_assets_tests import lake_reader
from bronze_assets_tests.people import NAME, NOW, SCHEMA, Keys, drop, erased, loaded, path, people, person

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

PLACE = "club_gold.members"
MEMBERS: list[dict[str, Any]] = [
    {"id": 1, "name": "Ada", "visits": 3},
    {"id": 2, "name": "Zoë", "visits": 4},
    {"id": 2, "name": "Zoë the elder", "visits": 5},
    {"id": None, "name": "nobody", "visits": 6},
]


class Seats(pa.DataFrameModel):
    member_id: T.IntegerType = column(key=True, gt=0, description="Who sits.")
    day: T.DateType = column(key=True, description="When.")
    name: T.StringType = column(pii=Pii.HIGH, description="What the member is called.")


def seats() -> BronzeTable:
    return BronzeTable(
        SCHEMA, "club.Seats", Seats, Cadence.STREAMING, "Seats.", files=Feed("raw/seats"), source_system="S"
    )


def gold(settings: Settings, rows: Sequence[dict[str, Any]] = MEMBERS, place: str = PLACE, **told: Any) -> Path:
    """A derived table, written by somebody else; columns of `schema`, properties of `configuration`."""
    schema, _, name = place.partition(".")
    folder = settings.lake / schema / name
    folder.parent.mkdir(parents=True, exist_ok=True)
    kinds = told.pop("schema", arrow.schema({"id": arrow.int64(), "name": arrow.string(), "visits": arrow.int32()}))
    write_deltalake(str(folder), arrow.Table.from_pylist(list(rows), schema=kinds), **told)
    return folder


def registered(settings: Settings, place: str = PLACE, table: BronzeTable | None = None, **told: Any) -> bool:
    lake = Lakehouse(settings.lake)
    known: dict[str, Any] = {"key": ["id"], "who": "ana", "clock": lambda: NOW} | told
    return derived.register(lake, table or people(), place, **known)


def withdrawn(settings: Settings, place: str = PLACE, **told: Any) -> list[Derived]:
    lake = Lakehouse(settings.lake)
    known: dict[str, Any] = {"who": "ana", "reason": "dropped", "clock": lambda: NOW} | told
    return derived.withdraw(lake, people(), place, **known)


def events(settings: Settings) -> list[tuple[Any, ...]]:
    columns = ("number", "event", "place", "key_columns", "blanked_columns", "who", "reason")
    return lake_reader.tuples(path(settings, "bz_derived_tables"), *columns)


def version(folder: Path) -> int:
    return DeltaTable(str(folder)).version()


# ----------------------------------------------------------------------------------------------------------- registry


def test_a_registration_is_written_once_and_the_latest_event_holds(settings: Settings) -> None:
    gold(settings)
    assert registered(settings, blank=["name", "visits"])
    assert not registered(settings, blank=["visits", "name"])
    assert len(events(settings)) == 1
    assert registered(settings), "deleting rows is another way"
    assert not registered(settings)
    assert withdrawn(settings) == [Derived(PLACE, ("id",))]
    assert derived.registered(Lakehouse(settings.lake), people()) == []
    assert registered(settings)
    assert derived.registered(Lakehouse(settings.lake), people()) == [Derived(PLACE, ("id",))]
    assert events(settings) == [
        (1, "registered", PLACE, ["id"], ["name", "visits"], "ana", None),
        (2, "registered", PLACE, ["id"], [], "ana", None),
        (3, "withdrawn", PLACE, ["id"], [], "ana", "dropped"),
        (4, "registered", PLACE, ["id"], [], "ana", None),
    ]
    assert lake_reader.properties(path(settings, "bz_derived_tables"))["delta.appendOnly"] == "true"


def test_two_persons_of_one_row_are_two_registrations(settings: Settings) -> None:
    gold(settings)
    registered(settings, key=["id"], blank=["name"])
    registered(settings, key=["visits"])
    assert derived.registered(Lakehouse(settings.lake), people()) == [
        Derived(PLACE, ("id",), ("name",)),
        Derived(PLACE, ("visits",)),
    ]
    assert derived.registered(Lakehouse(settings.lake), seats()) == []
    assert len(withdrawn(settings)) == 2


@pytest.mark.parametrize(
    ("place", "why"),
    [
        ("members", "is no place of a table"),
        ("gold/members", "is no place of a table"),
        ("a.b.c", "is no place of a table"),
        ("", "is no place of a table"),
        (f"{SCHEMA}.{NAME}", "is bronze's own"),
        (f"{SCHEMA}.bz_subject_keys", "is bronze's own"),
        ("LAKE/club_bronze/bz_people", "is bronze's own"),
        ("file://LAKE/club_bronze/bz_people", "is bronze's own"),
    ],
)
def test_a_place_that_is_none_or_bronzes_own_is_refused(settings: Settings, place: str, why: str) -> None:
    with pytest.raises(PrivacyRefused, match=f"bz_people: .*{why}"):
        registered(settings, place.replace("LAKE", str(settings.lake)))


@pytest.mark.parametrize(
    ("told", "why"),
    [({"reason": " "}, "needs a reason"), ({"who": ""}, "needs a reason"), ({"place": "a.b"}, "'a.b' is not regist")],
)
def test_a_withdrawal_that_says_too_little_is_refused(settings: Settings, told: dict[str, str], why: str) -> None:
    gold(settings)
    registered(settings)
    with pytest.raises(PrivacyRefused, match=f"bz_people: .*{why}"):
        withdrawn(settings, **told)
    assert len(events(settings)) == 1


FLAWS: dict[str, tuple[dict[str, Any], str]] = {
    "gone": ({"rows": None}, "there is no derived table club_gold.members at"),
    "column": ({"schema": arrow.schema({"id": arrow.int64()})}, "has no column 'name'"),
    "feed": ({"configuration": {"delta.enableChangeDataFeed": "true"}}, "has a change data feed"),
    "vectors": ({"configuration": {"delta.enableDeletionVectors": "true"}}, "has deletion vectors"),
    "append-only": ({"configuration": {"delta.appendOnly": "true"}}, "is append-only"),
    "required": (
        {"rows": [], "schema": arrow.schema([("id", arrow.int64()), arrow.field("name", arrow.string(), False)])},
        "'name' of the derived table club_gold.members cannot be NULL",
    ),
    "type": (
        {"rows": [], "schema": arrow.schema({"id": arrow.float64(), "name": arrow.string()})},
        "'id' of the derived table club_gold.members is DOUBLE and 'person_id' of bz_people is INT",
    ),
}


def flawed(settings: Settings, rows: Sequence[dict[str, Any]] | None = MEMBERS, **told: Any) -> None:
    if rows is not None:
        gold(settings, [{"id": row["id"]} if "schema" in told else row for row in rows], **told)


@pytest.mark.parametrize("flaw", FLAWS)
def test_a_table_that_could_not_be_swept_is_not_registered(settings: Settings, flaw: str) -> None:
    told, why = FLAWS[flaw]
    flawed(settings, **told)
    with pytest.raises(LakeError, match=f"bz_people: .*{why}.* Nothing was registered. Fix: "):
        registered(settings, blank=["name"])
    assert not lake_reader.is_table(path(settings, "bz_derived_tables"))


def test_the_key_has_as_many_columns_as_that_of_bronze(settings: Settings) -> None:
    gold(settings)
    with pytest.raises(LakeError, match="has 2 columns with the key, and the key of bz_people has 1"):
        registered(settings, key=["id", "visits"])


# ------------------------------------------------------------------------------------------------------------- sweeps


def test_the_rows_of_a_person_are_deleted_and_nobody_elses(spark: SparkSession, settings: Settings) -> None:
    folder = gold(settings)
    registered(settings)
    evidence = erased(settings, "2", "1987654321")
    assert lake_reader.tuples(folder, "id", "name") == [(1, "Ada"), (None, "nobody")]
    assert (evidence.derived_tables, evidence.derived_rows) == (1, 2)
    assert "2 rows of 1 derived tables" in evidence.words
    (done,) = lake_reader.read(path(settings, "bz_erasure_log"), "select * from t where event = 'done'")
    assert (done["derived_tables"], done["derived_rows"]) == (1, 2)
    logs = [file.read_text() for file in (settings.lake / "club_gold").rglob("_delta_log/*.json")]
    assert not [text for text in logs if "1987654321" in text]


def test_columns_of_a_person_become_null_and_a_second_time_nothing_is_written(
    spark: SparkSession, settings: Settings
) -> None:
    folder = gold(settings)
    registered(settings, blank=["NAME"])
    assert erased(settings, "2").derived_rows == 2
    expected = [(1, "Ada", 3), (2, None, 4), (2, None, 5), (None, "nobody", 6)]
    assert lake_reader.tuples(folder, "id", "name", "visits") == expected
    before = version(folder)
    assert erased(settings, "2").derived_rows == 0
    assert version(folder) == before


@pytest.mark.parametrize("uri", [False, True])
def test_a_key_of_two_columns_in_a_table_elsewhere(
    spark: SparkSession, settings: Settings, tmp_path: Path, uri: bool
) -> None:
    folder = tmp_path / "somewhere else"
    day, other = dt.date(2026, 5, 1), dt.date(2026, 5, 2)
    rows = [("2", day, "a"), ("02", day, "b"), ("2", other, "c"), ("3", day, "d"), ("x", day, "e"), (None, day, "f")]
    write_deltalake(
        str(folder), arrow.table(dict(zip(("who", "at", "note"), map(list, zip(*rows, strict=True)), strict=True)))
    )
    registered(settings, f"file://{folder}" if uri else str(folder), seats(), key=["who", "at"])
    assert erased(settings, "2, 2026-05-01", "2026-05-01", table=seats()).derived_rows == 2
    assert lake_reader.tuples(folder, "note") == [("c",), ("d",), ("e",), ("f",)]


@pytest.mark.slow
def test_thousands_are_swept_in_one_commit(spark: SparkSession, settings: Settings) -> None:
    folder = gold(settings, [{"id": n, "name": f"n{n}", "visits": n} for n in range(1, 6001)])
    registered(settings)
    before = version(folder)
    assert erased(settings, *(str(n) for n in range(1, 5001))).derived_rows == 5000
    merges = [c for c in DeltaTable(str(folder)).history() if c["operation"] == "MERGE" and c["version"] > before]
    assert len(merges) == 1
    assert [row["id"] for row in lake_reader.read(folder, "select id from t order by id")] == [*range(5001, 6001)]


@pytest.mark.parametrize(("flaw", "restored"), [("gone", True), ("feed", False)])
def test_a_table_that_cannot_be_swept_keeps_the_key_until_it_can_or_is_withdrawn(
    spark: SparkSession, settings: Settings, flaw: str, restored: bool
) -> None:
    folder = gold(settings)
    other = gold(settings, place="club_gold.others")
    registered(settings, blank=["name"])
    registered(settings, "club_gold.others")
    drop(settings, "a.json", person(1), person(2))
    loaded(settings)
    aside = folder.rename(folder.with_name("aside"))
    told, why = FLAWS[flaw]
    flawed(settings, **told)
    with pytest.raises(LakeError, match=rf"bz_people: .*{why}(.|\n)*Everything else is erased but the key. Fix: .*"):
        erased(settings, "2")
    assert lake_reader.tuples(other, "id") == [(1,), (None,)], "the others are swept"
    assert f"{NAME}/2" in Keys(settings).subjects
    (failed,) = lake_reader.read(path(settings, "bz_erasure_log"), "select * from t where event = 'failed'")
    assert (failed["derived_rows"], failed["versions"], failed["keys"]) == (2, 1, 0)
    assert f"derived withdraw {NAME} {PLACE} --reason" in failed["error"]
    if restored:
        shutil.rmtree(folder, ignore_errors=True)
        aside.rename(folder)
    else:
        withdrawn(settings)
    evidence = erased(settings, "2")
    assert (evidence.keys, evidence.derived_rows) == (1, 2 if restored else 0)
    assert f"{NAME}/2" not in Keys(settings).subjects


def test_rows_that_vectors_only_hide_are_no_erased_rows(spark: SparkSession, settings: Settings) -> None:
    folder = gold(settings)
    registered(settings)
    name = f"delta.`{folder}`"
    spark.sql(f"alter table {name} set tblproperties ('delta.enableDeletionVectors' = 'true')")
    spark.sql(f"delete from {name} where name = 'Zoë'")
    spark.sql(f"alter table {name} set tblproperties ('delta.enableDeletionVectors' = 'false')")
    with pytest.raises(LakeError, match="has deletion vectors"):
        erased(settings, "2")
    spark.sql(f"reorg table {name} apply (purge)")
    assert erased(settings, "2").derived_rows == 1


def test_an_unreadable_log_or_registry_is_told_of(spark: SparkSession, settings: Settings) -> None:
    folder = gold(settings)
    registered(settings)
    log = folder / "_delta_log" / f"{0:020}.json"
    content = log.read_text()
    log.write_text("{ no log")
    with pytest.raises(LakeError, match=f"bz_people: the Delta table {folder} cannot be read"):
        erased(settings, "2")
    log.write_text(content)
    for file in path(settings, "bz_derived_tables").glob("*.parquet"):
        file.unlink()
    with pytest.raises(
        LakeError, match=r"bz_people: bz_derived_tables, the registry .* cannot be read(.|\n)*but the key"
    ):
        erased(settings, "2")


def test_a_sweep_that_was_killed_is_done_again(
    spark: SparkSession, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    places = ("club_gold.members", "club_gold.others")
    folders = [gold(settings, place=place) for place in places]
    for place in places:
        registered(settings, place)
    real = Lakehouse.forget_derived

    def killed(*arguments: Any, **named: Any) -> None:
        real(*arguments, **named)
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(Lakehouse, "forget_derived", killed)
        with pytest.raises(KeyboardInterrupt):
            erased(settings, "2")
    assert [len(lake_reader.read(folder)) for folder in folders] == [2, 4]
    evidence = erased(settings, "2")
    assert (evidence.derived_tables, evidence.derived_rows) == (2, 2)
    assert [len(lake_reader.read(folder)) for folder in folders] == [2, 2]


def test_removed_files_go_when_the_retention_has_passed(spark: SparkSession, settings: Settings) -> None:
    kept = gold(
        settings, place="club_gold.kept", configuration={"delta.deletedFileRetentionDuration": "interval 90 days"}
    )
    folder = gold(settings, configuration={"delta.deletedFileRetentionDuration": "interval 0 hours"})
    for place in (PLACE, "club_gold.kept"):
        registered(settings, place)
    assert erased(settings, "2").until == NOW + dt.timedelta(days=90)
    now = {Path(uri).name for uri in DeltaTable(str(folder)).file_uris()}
    assert {file.name for file in folder.glob("*.parquet")} == now
    assert {file.name for file in kept.glob("*.parquet")} > {Path(u).name for u in DeltaTable(str(kept)).file_uris()}


def test_a_log_of_before_there_were_derived_tables_goes_on(spark: SparkSession, settings: Settings) -> None:
    before = arrow.schema([field for field in erasure.EVIDENCE if not field.name.startswith("derived_")])
    old = {"erasure_id": "old", "event": "done", "table_name": NAME, "subject_hmacs": ["ab"], "subjects": 1}
    Lakehouse(settings.lake).append_rows(SCHEMA, "bz_erasure_log", before, [old])
    gold(settings)
    registered(settings)
    erased(settings, "2")
    rows = lake_reader.tuples(path(settings, "bz_erasure_log"), "event", "derived_rows", where="event = 'done'")
    assert rows == [("done", 2), ("done", None)]
    assert lake_reader.properties(path(settings, "bz_erasure_log"))["delta.appendOnly"] == "true"


# ------------------------------------------------------------------------------------------------- commands and the UI


@pytest.fixture
def line(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """Settings whose home the command line works in."""
    monkeypatch.setenv("BRONZE_HOME", str(settings.home))
    return settings


def test_the_command_lists_registers_and_withdraws(line: Settings, capsys: pytest.CaptureFixture[str]) -> None:
    gold(line, place="sales_gold.customers")
    told = ["bz_customers", "sales_gold.customers"]
    assert command_line.main(["derived", "list"]) == 0
    assert command_line.main(["derived", "register", *told, "--key", "id", "--blank", "name", "visits"]) == 0
    assert command_line.main(["derived", "register", *told, "--key", "id", "--blank", "name", "visits"]) == 0
    assert command_line.main(["derived", "list", "bz_customers"]) == 0
    assert command_line.main(["derived", "withdraw", *told]) == 1
    assert command_line.main(["derived", "withdraw", *told, "--reason", "dropped"]) == 0
    said = capsys.readouterr()
    assert said.out.splitlines() == [
        "No derived table is registered.",
        "bz_customers: sales_gold.customers is registered.",
        "bz_customers: sales_gold.customers is registered already.",
        "bz_customers: sales_gold.customers by id: name, visits become NULL",
        "bz_customers: withdrawn: sales_gold.customers by id: name, visits become NULL.",
    ]
    assert "bz_customers: a withdrawal needs a reason" in said.err


def test_the_command_wants_to_hear_what_becomes_of_rows(line: Settings, capsys: pytest.CaptureFixture[str]) -> None:
    for more in ([], ["--delete", "--blank", "name"]):
        with pytest.raises(SystemExit):
            command_line.main(["derived", "register", "bz_customers", "a.b", "--key", "id", *more])
    assert "--delete" in capsys.readouterr().err


def test_the_job_registers_lists_and_withdraws(settings: Settings) -> None:
    gold(settings, place="sales_gold.customers")
    job = build_definitions(settings, TABLES).resolve_job_def("derived_tables")

    def run(**config: Any) -> tuple[bool, str]:
        with dg.instance_for_test() as instance:
            told = {"ops": {"keep_registry": {"config": config}}}
            result = job.execute_in_process(run_config=told, instance=instance, raise_on_error=False)
            return result.success, "\n".join(str(record) for record in instance.all_logs(result.run_id))

    told = {"table": "bz_customers", "place": "sales_gold.customers", "by": "ana"}
    success, kept = run(**told, key=["id"])
    assert not success
    assert "nobody says what is to become of a person's rows" in kept
    assert not run(table="bz_orders", place="a.b", by="ana")[0]
    success, kept = run(**told, key=["id"], delete=True)
    assert success
    assert "bz_customers: sales_gold.customers by id: rows are deleted" in kept
    (row,) = lake_reader.read(settings.lake / "inventory_bronze" / "bz_derived_tables")
    assert (row["who"], row["event"]) == ("ana", "registered")
    assert run(**told, withdraw=True, reason="dropped")[0]
    assert "No derived table is registered." in run()[1]
