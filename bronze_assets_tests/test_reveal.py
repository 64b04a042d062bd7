"""Going back to a person's values, in a lake that is protected here by `deltalake` and `cryptography` alone."""

from __future__ import annotations

import base64
import datetime as dt
import hashlib
import hmac
import json
import logging
import os
import stat
from collections.abc import Mapping, Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any

import dagster as dg
import pandera.pyspark as pandera
import pyarrow as pa
import pyspark.sql.types as T
import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from deltalake import DeltaTable, write_deltalake

from bronze_assets import __main__ as command_line
from bronze_assets.access_evidence import SqlRead
from bronze_assets.catalog import TABLES
from bronze_assets.definitions import build_definitions
from bronze_assets.errors import KeyMissing, KeyRefused, LakeError, PrivacyRefused
from bronze_assets.lakehouse import Lakehouse
from bronze_assets.privacy.access_log import log_sql_reads
from bronze_assets.privacy.keys import KeyRing, key_ring
from bronze_assets.privacy.reveal import as_lines, remove_old_answers, reveal
from bronze_assets.settings import Settings
from bronze_assets.table import BronzeTable, Cadence, Pii, column
from bronze_assets_tests import lake_reader

BY_NAME = {table.name: table for table in TABLES}
CUSTOMERS, SUPPLIERS, SENSORS = (BY_NAME[name] for name in ("bz_customers", "bz_suppliers", "bz_sensor_data"))
SCHEMA = "inventory_bronze"
MASTER = hashlib.sha256(b"master").digest()
NOW = dt.datetime(2026, 11, 21, 12, tzinfo=dt.UTC)
NAME, EMAIL, PHONE = "María Canary", "canary@example.com", "+49 30 5550100"
SECRETS = (NAME, EMAIL, PHONE)
TIME = pa.timestamp("us", tz="UTC")


def derived(key: bytes, purpose: str) -> bytes:
    extracted = hmac.digest(bytes(32), key, "sha256")
    return hmac.digest(extracted, b"bronze_assets/" + purpose.encode() + b"\x01", "sha256")


def sealed(value: str, subject: str, where: str, *, kind: str = "s") -> str:
    nonce = os.urandom(12)
    body = nonce + AESGCM(own_key(subject)).encrypt(nonce, value.encode(), where.encode())
    return f"enc:1:{kind}:{base64.b64encode(body).decode()}"


def own_key(subject: str) -> bytes:
    return hashlib.sha256(subject.encode()).digest()


def wrapped(key: bytes, subject: str) -> bytes:
    nonce = os.urandom(12)
    return b"\x00\x01" + nonce + AESGCM(derived(MASTER, "wrap")).encrypt(nonce, key, f"{SCHEMA}/{subject}".encode())


class People:
    """A lake with a customer in two versions, a supplier, and others beside them."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.settings = Settings.from_environment({"BRONZE_HOME": str(home)})
        self.lake = Lakehouse(self.settings.lake)
        self.folder = home / "lake" / SCHEMA
        key_file = home / "keys" / "master.key"
        key_file.parent.mkdir(parents=True)
        key_file.write_text(json.dumps({"versions": {"1": base64.b64encode(MASTER).decode()}}))
        key_file.chmod(0o600)
        subjects = ["bz_customers/123", "bz_customers/124", "bz_suppliers/5", "bz_suppliers/6", "bz_customers"]
        keys = {subject: own_key(subject) for subject in subjects} | {"*": derived(MASTER, "hmac root")}
        self.write(
            "bz_subject_keys",
            [{"subject": one, "wrapped": wrapped(key, one), "created": NOW} for one, key in keys.items()],
            {"wrapped": pa.binary(), "created": TIME},
        )
        self.token = "tok:" + hmac.new(derived(keys["*"], "token"), PHONE.encode(), hashlib.sha256).hexdigest()
        self.customer(124, "Somebody Else", "other@example.com", 1)
        self.customer(123, NAME, EMAIL, 2)
        self.customer(123, "Maria Before", EMAIL, 1)
        self.supplier(5)
        self.supplier(6)
        self.vault("bz_suppliers/5", PHONE)
        self.vault("bz_suppliers/6", PHONE)

    def write(self, name: str, rows: Sequence[Mapping[str, Any]], types: Mapping[str, pa.DataType]) -> None:
        schema = pa.schema([(column, types.get(column, pa.string())) for column in rows[0]])
        write_deltalake(self.folder / name, pa.Table.from_pylist(list(rows), schema=schema), mode="append")

    def version(self, name: str, columns: Mapping[str, Any], number: int) -> None:
        row = {
            **columns,
            "load_timestamp": NOW + dt.timedelta(hours=number),
            "record_status": "ACTIVE",
            "source_position": f"{number:016d}",
            "load_date": NOW.date(),
        }
        integers = {column: pa.int32() for column, value in columns.items() if isinstance(value, int)}
        self.write(name, [row], {**integers, "load_timestamp": TIME, "load_date": pa.date32()})

    def customer(self, key: int, name: str | None, email: str | None, number: int, *, subject: str = "") -> None:
        def high(column: str, value: str | None) -> str | None:
            where = f"{SCHEMA}.bz_customers/{column}/{key}"
            kind = "t" if subject else "s"
            return None if value is None else sealed(value, subject or f"bz_customers/{key}", where, kind=kind)

        columns = {"customer_id": key, "customer_name": high("customer_name", name), "email": high("email", email)}
        self.version("bz_customers", columns, number)

    def supplier(self, key: int) -> None:
        columns = {
            "supplier_id": key,
            "supplier_name": "Canary & Sons",
            "contact_number": self.token,
            "product_id": 7,
        }
        self.version("bz_suppliers", columns, 1)

    def vault(self, subject: str, value: str) -> None:
        where = f"{SCHEMA}.bz_suppliers/token/{self.token}"
        row = {"token": self.token, "subject": subject, "value": sealed(value, subject, where), "created": NOW}
        self.write("bz_token_vault", [row], {"created": TIME})

    def reveal(self, table: BronzeTable, key: str, columns: Sequence[str] = (), **changes: Any) -> list[dict[str, Any]]:
        arguments = {"purpose": "complaint 77", "who": "ana", **changes}
        return reveal(self.lake, lambda: key_ring(self.settings), lambda: NOW, table, key, columns=columns, **arguments)

    def log(self) -> list[dict[str, Any]]:
        path = self.folder / "bz_access_log"
        return lake_reader.read(path) if lake_reader.is_table(path) else []


@pytest.fixture
def people(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> People:
    home = tmp_path / "bronze home"
    for name in [name for name in os.environ if name.startswith("BRONZE_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("BRONZE_HOME", str(home))
    return People(home)


class TestAnswers:
    def test_high_values_are_opened_in_every_version_of_the_row(self, people: People) -> None:
        people.customer(123, "Maria After", EMAIL, 3)
        assert people.reveal(CUSTOMERS, "123") == [
            {
                "customer_id": 123,
                "customer_name": name,
                "email": EMAIL,
                "record_status": "ACTIVE",
                "load_timestamp": NOW + dt.timedelta(hours=number),
                "source_position": f"{number:016d}",
            }
            for number, name in ((1, "Maria Before"), (2, NAME), (3, "Maria After"))
        ]

    def test_a_token_leads_through_the_vault_to_the_persons_own_value(self, people: People) -> None:
        (row,) = people.reveal(SUPPLIERS, "5")
        assert row["contact_number"] == PHONE
        assert row["supplier_name"] == "Canary & Sons"
        assert row["product_id"] == 7

    def test_only_the_columns_that_were_asked_for_come_with_the_key(self, people: People) -> None:
        rows = people.reveal(CUSTOMERS, "123", ["email"])
        assert [set(row) for row in rows] == [
            {"customer_id", "email", "record_status", "load_timestamp", "source_position"}
        ] * 2

    def test_null_stays_null_and_the_tables_key_opens_what_has_no_subject(self, people: People) -> None:
        people.customer(123, None, "late@example.com", 3, subject="bz_customers")
        row = people.reveal(CUSTOMERS, "123")[-1]
        assert (row["customer_name"], row["email"]) == (None, "late@example.com")

    def test_a_row_that_is_not_there_has_no_versions(self, people: People) -> None:
        for key in ("999", "12", "1234", "' or true --", ""):
            assert people.reveal(CUSTOMERS, key) == []
        assert [row["rows"] for row in people.log()] == [0] * 5

    def test_a_column_that_nobody_has_classified_is_opened_too(self, people: People) -> None:
        where = f"{SCHEMA}.bz_customers/nickname/300"
        columns = {"customer_id": 300, "nickname": sealed("Canary", "bz_customers/300", where)}
        key = {"subject": "bz_customers/300", "wrapped": wrapped(own_key("bz_customers/300"), "bz_customers/300")}
        people.write("bz_subject_keys", [{**key, "created": NOW}], {"wrapped": pa.binary(), "created": TIME})
        write_deltalake(
            people.folder / "bz_customers",
            pa.Table.from_pylist([columns], schema=pa.schema([("customer_id", pa.int32()), ("nickname", pa.string())])),
            mode="append",
            schema_mode="merge",
        )
        (row,) = people.reveal(CUSTOMERS, "300", ["nickname"])
        assert row["nickname"] == "Canary"


class Readings(pandera.DataFrameModel):
    sensor: T.StringType = column(key=True, description="Part of the key.")
    at: T.TimestampType = column(key=True, description="Part of the key.")
    amount: T.DecimalType = column(key=True, dtype_kwargs={"precision": 5, "scale": 2}, description="Part of the key.")
    day: T.DateType = column(key=True, description="Part of the key.")
    good: T.BooleanType = column(key=True, description="Part of the key.")
    nurse: T.StringType = column(pii=Pii.LOW, description="Who took it.")


@pytest.mark.parametrize(
    ("microsecond", "text"),
    [(0, "12:30:00"), (500_000, "12:30:00.5"), (1, "12:30:00.000001"), (100_200, "12:30:00.1002")],
)
def test_a_key_of_several_columns_is_found_by_the_text_that_spark_gives_it(
    microsecond: int, text: str, people: People
) -> None:
    table = BronzeTable(SCHEMA, "tests.Readings", Readings, Cadence.DAILY, "Readings.")
    at = dt.datetime(2026, 11, 21, 12, 30, 0, microsecond, tzinfo=dt.UTC)
    row = {"sensor": "a, 'b", "at": at, "amount": Decimal("1.50"), "day": at.date(), "good": True, "nurse": "Ida"}
    types = {"at": TIME, "amount": pa.decimal128(5, 2), "day": pa.date32(), "good": pa.bool_()}
    people.write(
        "bz_readings", [{**row, "source_position": "1", "load_timestamp": NOW}], {**types, "load_timestamp": TIME}
    )
    (found,) = people.reveal(table, f"a, 'b, 2026-11-21 {text}, 1.50, 2026-11-21, true")
    assert found["nurse"] == "Ida"


class TestRefusals:
    @pytest.mark.parametrize(
        ("changes", "said"),
        [
            ({"purpose": ""}, "no purpose is given"),
            ({"purpose": " \t"}, "no purpose is given"),
            ({"who": " "}, "nobody is named"),
            ({"columns": ["email", "phone"]}, "no column 'phone'"),
        ],
    )
    def test_what_is_refused_is_logged_and_nothing_answered(
        self, changes: dict[str, Any], said: str, people: People
    ) -> None:
        with pytest.raises(PrivacyRefused, match=said) as refused:
            people.reveal(CUSTOMERS, "123", **changes)
        assert str(refused.value).startswith("bz_customers: ")
        (row,) = people.log()
        assert (row["outcome"], row["rows"], row["error"]) == ("refused", None, str(refused.value))

    def test_a_table_without_personal_data_needs_no_reveal(self, people: People) -> None:
        with pytest.raises(PrivacyRefused, match="no personal data"):
            people.reveal(SENSORS, "1")

    def test_without_the_master_key_nobody_is_answered(self, people: People) -> None:
        def none() -> KeyRing:
            raise KeyMissing("There is no master key.", "put it there.")

        with pytest.raises(KeyMissing):
            reveal(people.lake, none, lambda: NOW, CUSTOMERS, "123", purpose="p", who="ana")
        (row,) = people.log()
        assert (row["outcome"], row["error"]) == ("refused", "There is no master key. Fix: put it there.")

    def test_another_master_key_opens_nothing(self, people: People) -> None:
        file = people.home / "keys" / "master.key"
        file.write_text(json.dumps({"versions": {"1": base64.b64encode(bytes(range(32))).decode()}}))
        with pytest.raises(KeyRefused, match="does not open"):
            people.reveal(CUSTOMERS, "123")
        (row,) = people.log()
        assert row["outcome"] == "refused"

    def test_a_lost_master_key_is_missed_and_not_made_anew(self, people: People) -> None:
        file = people.home / "keys" / "master.key"
        file.unlink()
        with pytest.raises(KeyMissing, match="There is no master key"):
            people.reveal(CUSTOMERS, "123")
        assert not file.exists()

    @pytest.mark.parametrize(
        ("table", "key", "column"), [(CUSTOMERS, "123", "customer_name"), (SUPPLIERS, "5", "contact_number")]
    )
    def test_whose_key_is_gone_is_gone(self, table: BronzeTable, key: str, column: str, people: People) -> None:
        DeltaTable(people.folder / "bz_subject_keys").delete(f"subject = '{table.name}/{key}'")
        with pytest.raises(PrivacyRefused, match=f"what opens '{column}' of {key} is gone"):
            people.reveal(table, key)

    def test_a_value_of_another_subject_in_the_vault_is_not_taken(self, people: People) -> None:
        DeltaTable(people.folder / "bz_token_vault").delete("subject = 'bz_suppliers/5'")
        with pytest.raises(PrivacyRefused, match="is gone"):
            people.reveal(SUPPLIERS, "5")
        assert people.reveal(SUPPLIERS, "5", ["supplier_name"])[0]["supplier_name"] == "Canary & Sons"

    def test_a_value_that_was_copied_to_another_row_does_not_open(self, people: People) -> None:
        copied = sealed(EMAIL, "bz_customers/124", f"{SCHEMA}.bz_customers/email/123")
        people.version("bz_customers", {"customer_id": 124, "customer_name": None, "email": copied}, 9)
        with pytest.raises(KeyRefused, match=r"bz_customers/email/124 holds does not open"):
            people.reveal(CUSTOMERS, "124")

    def test_what_was_never_protected_is_not_shown(self, people: People) -> None:
        people.version("bz_customers", {"customer_id": 200, "customer_name": NAME, "email": None}, 1)
        with pytest.raises(KeyRefused, match="no sealed value") as refused:
            people.reveal(CUSTOMERS, "200")
        assert NAME not in str(refused.value)

    def test_what_cannot_be_read_is_a_failure_without_the_words_of_others(
        self, people: People, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def broken(*_: object, **__: object) -> None:
            raise ValueError(EMAIL)

        monkeypatch.setattr(Lakehouse, "query", broken)
        with pytest.raises(LakeError, match=r"bz_customers cannot be read \(ValueError\)") as failed:
            people.reveal(CUSTOMERS, "123")
        assert failed.value.__context__ is None
        monkeypatch.undo()
        (row,) = people.log()
        assert row["outcome"] == "failed"
        assert EMAIL not in str(row)

    def test_an_interrupted_attempt_is_logged(self, people: People) -> None:
        def interrupted() -> KeyRing:
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            reveal(people.lake, interrupted, lambda: NOW, CUSTOMERS, "123", purpose="p", who="ana")
        (row,) = people.log()
        assert (row["outcome"], row["error"]) == ("failed", "KeyboardInterrupt")

    def test_a_table_that_is_not_there_is_named(self, people: People) -> None:
        people.lake = Lakehouse(people.home / "elsewhere")
        with pytest.raises(LakeError, match="there is no table at"):
            people.reveal(CUSTOMERS, "123")


class TestTheLog:
    def test_it_says_who_saw_what_and_why(self, people: People) -> None:
        people.reveal(CUSTOMERS, "123", ["email"], run_id="run-1")
        people.reveal(CUSTOMERS, "123")
        first, second = sorted(people.log(), key=lambda row: len(row["columns"]))
        assert len({first.pop("event_id"), second["event_id"]}) == 2
        assert first == {
            "at": NOW,
            "who": "ana",
            "schema_name": SCHEMA,
            "table_name": "bz_customers",
            "columns": ["email"],
            "row_key": "123",
            "purpose": "complaint 77",
            "how": "reveal",
            "outcome": "answered",
            "rows": 2,
            "error": None,
            "run_id": "run-1",
        }
        assert second["columns"] == ["customer_id", "customer_name", "email"]
        assert lake_reader.properties(people.folder / "bz_access_log")["delta.appendOnly"] == "true"

    def test_nothing_is_answered_when_it_cannot_be_written(
        self, people: People, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def full(*_: object, **__: object) -> None:
            raise LakeError("the disk is full.", "make room.")

        monkeypatch.setattr(Lakehouse, "append_rows", full)
        with pytest.raises(LakeError, match="the disk is full"):
            people.reveal(CUSTOMERS, "123")

    def test_reads_by_sql_fit_beside_them_once(self, people: People) -> None:
        people.reveal(CUSTOMERS, "123")
        read = SqlRead("e-1", "eve", NOW, f"{SCHEMA}.bz_customers", ("email",), "audit log: READ from 10.0.0.1")
        assert log_sql_reads(people.lake, [read, read]) == 1
        assert log_sql_reads(people.lake, [read]) == 0
        (row,) = (row for row in people.log() if row["event_id"] == "e-1")
        assert (row["who"], row["table_name"], row["columns"]) == ("eve", "bz_customers", ["email"])
        assert (row["purpose"], row["row_key"], row["rows"]) == ("sql", None, None)

    def test_it_holds_no_value(self, people: People) -> None:
        people.reveal(CUSTOMERS, "123")
        people.reveal(SUPPLIERS, "5")
        assert not any(secret in str(row) for row in people.log() for secret in SECRETS)


class TestTheCommand:
    def test_it_prints_the_values_and_logs_none(
        self, people: People, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.set_level(logging.DEBUG)
        line = ["reveal", "--table", "bz_customers", "--key", "123", "--purpose", "complaint 77", "--by", "ana"]
        assert command_line.main(line) == 0
        said = capsys.readouterr()
        header, rule, before, after = said.out.splitlines()
        assert header.split() == [
            *("customer_id", "customer_name", "email"),
            *("record_status", "load_timestamp", "source_position"),
        ]
        assert set(rule) == {"-"}
        assert "Maria Before" in before
        assert NAME in after
        assert EMAIL in after
        assert said.err == ""
        assert not any(secret in caplog.text for secret in SECRETS)
        (row,) = people.log()
        assert (row["who"], row["purpose"], row["run_id"]) == ("ana", "complaint 77", None)

    def test_columns_can_be_named(self, people: People, capsys: pytest.CaptureFixture[str]) -> None:
        line = ["reveal", "--table", "bz_customers", "--key", "123", "--purpose", "p", "--columns", "email"]
        assert command_line.main(line) == 0
        assert NAME not in capsys.readouterr().out

    def test_without_a_purpose_it_refuses_in_words(self, people: People, capsys: pytest.CaptureFixture[str]) -> None:
        assert command_line.main(["reveal", "--table", "bz_customers", "--key", "123"]) == 1
        said = capsys.readouterr()
        assert said.err == (
            "bz_customers: no purpose is given. Fix: say what the values are needed for; the access log keeps it.\n"
        )
        assert said.out == ""
        (row,) = people.log()
        assert row["outcome"] == "refused"

    def test_a_row_that_is_not_there(self, people: People, capsys: pytest.CaptureFixture[str]) -> None:
        assert command_line.main(["reveal", "--table", "bz_customers", "--key", "9", "--purpose", "p"]) == 0
        assert capsys.readouterr().out == "There is no such row.\n"

    def test_what_a_terminal_would_obey_is_written_out(self) -> None:
        assert as_lines([{"a": "x\x1b[2Jy\n", "b": None}])[2] == "x\\x1b[2Jy\\n  NULL"


def run(people: People, job: str, op: str, config: Mapping[str, Any]) -> tuple[dg.ExecuteInProcessResult, str]:
    """The result of a job, and all that Dagster has kept of it."""
    with dg.instance_for_test() as instance:
        definition = build_definitions(people.settings, TABLES).resolve_job_def(job)
        result = definition.execute_in_process(
            run_config={"ops": {op: {"config": dict(config)}}}, instance=instance, raise_on_error=False
        )
        return result, "\n".join(str(record) for record in instance.all_logs(result.run_id))


@pytest.mark.parametrize(
    ("job", "op", "config", "breaks"),
    [
        (
            "reveal",
            "reveal_values",
            {"table": "bz_customers", "key": "1", "purpose": "p", "by": "b"},
            "reveal.write_answer",
        ),
        ("rotate_keys", "wrap_keys_anew", {}, "rotation.rotate"),
        ("erase", "erase_subjects", {"subjects": ["bz_customers:1"], "reason": "r", "by": "b"}, "erasure.erase"),
        ("compliance_report", "judge_controls", {}, "compliance.compliance"),
        ("replay_quarantine", "replay_rows", {"table": "bz_customers"}, "quarantine.summary"),
    ],
)
def test_of_an_error_that_is_not_ours_dagster_keeps_the_kind_alone(
    job: str, op: str, config: dict[str, Any], breaks: str, people: People, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object, **__: object) -> None:
        try:
            raise KeyError(EMAIL)
        except KeyError as error:
            raise ValueError(EMAIL) from error

    monkeypatch.setattr(f"bronze_assets.{'' if breaks.startswith('quarantine') else 'privacy.'}{breaks}", broken)
    result, kept = run(people, job, op, config)
    assert not result.success
    assert "ValueError; the run's log has the details." in kept
    assert EMAIL not in kept


class TestTheJob:
    CONFIG = {"table": "bz_customers", "key": "123", "purpose": "complaint 77", "by": "ana"}  # noqa: RUF012

    def test_the_answer_is_in_a_file_of_its_owners_and_dagster_holds_none_of_it(
        self, people: People, capsys: pytest.CaptureFixture[str]
    ) -> None:
        result, kept = run(people, "reveal", "reveal_values", self.CONFIG)
        assert result.success
        path = people.home / "revealed" / f"{result.run_id}.json"
        assert f"2 row versions are in {path}" in kept
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
        assert [row["customer_name"] for row in json.loads(path.read_text("utf-8"))] == ["Maria Before", NAME]
        said = capsys.readouterr()
        assert not any(secret in kept + said.out + said.err for secret in SECRETS)
        (row,) = people.log()
        assert (row["who"], row["run_id"], row["rows"]) == ("ana", result.run_id, 2)

    @pytest.mark.parametrize(
        ("changes", "said"),
        [({"purpose": ""}, "no purpose is given"), ({"table": "bz_orders"}, "'bz_orders' is no table with personal")],
    )
    def test_it_refuses_in_words(self, changes: dict[str, str], said: str, people: People) -> None:
        result, kept = run(people, "reveal", "reveal_values", self.CONFIG | changes)
        assert not result.success
        assert said in kept
        assert not (people.home / "revealed").exists()

    def test_an_answer_that_nobody_removed_goes_after_a_day(self, people: People) -> None:
        folder = people.home / "revealed"
        folder.mkdir()
        for name, hours in (("old.json", 25), ("young.json", 23)):
            (folder / name).touch()
            then = (NOW - dt.timedelta(hours=hours)).timestamp()
            os.utime(folder / name, (then, then))
        remove_old_answers(people.home, NOW)
        assert [path.name for path in folder.iterdir()] == ["young.json"]
