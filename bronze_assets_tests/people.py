"""What the tests of personal data share: a small table of people, and the keys read by hand with `cryptography`."""

from __future__ import annotations

import base64
import datetime as dt
import hashlib
import hmac
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandera.pyspark as pa
import pyspark.sql.types as T
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from bronze_assets.audit import LoadRecord
from bronze_assets.load import load
from bronze_assets.privacy import erasure
from bronze_assets.settings import Settings
from bronze_assets.table import BronzeTable, Cadence, Feed, Pii, column
from bronze_assets.workbench import Options, Run, Workbench
from bronze_assets_tests import lake_reader

SCHEMA = "club_bronze"
NAME = "bz_people"
NOW = dt.datetime(2026, 6, 15, 12, tzinfo=dt.UTC)
DAY = "2026-06-15"


class People(pa.DataFrameModel):
    person_id: T.IntegerType = column(key=True, gt=0, description="Identifies a person.")
    name: T.StringType = column(pii=Pii.HIGH, description="What the person is called.")
    email: T.StringType = column(pii=Pii.HIGH, str_matches="^[^@]+@[^@]+$", description="Where the person reads.")
    phone: T.StringType = column(pii=Pii.MEDIUM, description="Where the person listens.")
    city: T.StringType = column(pii=Pii.LOW, description="Where the person lives.")
    visits: T.IntegerType = column(ge=0, quarantine=True, description="How often the person came.")


def people(**feed: Any) -> BronzeTable:
    """The table of people; arguments of its `Feed`."""
    return BronzeTable(
        SCHEMA, "club.People", People, Cadence.STREAMING, "People.", files=Feed("raw/people", **feed), source_system="S"
    )


def person(number: int, **values: Any) -> dict[str, Any]:
    return {
        "person_id": number,
        "name": f"Zoë Nr. {number}",
        "email": f"zoe.{number}@example.org",
        "phone": f"+49 30 {number % 3}",
        "city": "Köln",
        "visits": number,
    } | values


def drop(settings: Settings, name: str, *lines: Mapping[str, Any] | str) -> Path:
    """A file of people, an hour older than the clock."""
    path = Path(settings.landing) / "raw/people" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    text = (line if isinstance(line, str) else json.dumps(line, ensure_ascii=False) for line in lines)
    path.write_text("".join(f"{line}\n" for line in text), encoding="utf-8")
    moment = (NOW - dt.timedelta(hours=1)).timestamp()
    os.utime(path, (moment, moment))
    return path


def loaded(settings: Settings, table: BronzeTable | None = None, **options: Any) -> LoadRecord:
    """One load, by a workbench of its own."""
    bench = Workbench(settings, clock=lambda: NOW)
    try:
        return load(table or people(), DAY, bench, Run("run", "cli"), Options(**options))
    finally:
        bench.close()


def erased(settings: Settings, *keys: str, table: BronzeTable | None = None, **told: Any) -> erasure.Evidence:
    """One erasure, by a workbench of its own."""
    bench = Workbench(settings, clock=lambda: NOW)
    try:
        return erasure.erase(bench, table or people(), keys, **{"reason": "asked for", "who": "dpo"} | told)
    finally:
        bench.close()


def path(settings: Settings, name: str = NAME) -> Path:
    return settings.lake / SCHEMA / name


def versions(settings: Settings) -> dict[int, dict[str, Any]]:
    """Key → its row version, as it lies in the lake."""
    return {row["person_id"]: row for row in lake_reader.read(path(settings))}


class Keys:
    """The keys of a home, from its key file and its table of wrapped keys, by nothing but `cryptography`."""

    def __init__(self, settings: Settings, schema: str = SCHEMA, table: str = NAME) -> None:
        self._schema, self._table = schema, table
        told = json.loads((settings.home / "keys" / "master.key").read_text())
        self.master = {int(number): base64.b64decode(text) for number, text in told["versions"].items()}
        self.subjects: dict[str, bytes] = {}
        for row in lake_reader.read(settings.lake / schema / "bz_subject_keys"):
            wrapped = bytes(row["wrapped"])
            wrapping = self.derive(self.master[int.from_bytes(wrapped[:2], "big")], "wrap")
            context = f"{schema}/{row['subject']}".encode()
            assert row["subject"] not in self.subjects, "a key is made once"
            self.subjects[row["subject"]] = AESGCM(wrapping).decrypt(wrapped[2:14], wrapped[14:], context)

    @staticmethod
    def derive(key: bytes, purpose: str) -> bytes:
        return HKDF(SHA256(), 32, None, f"bronze_assets/{purpose}".encode()).derive(key)

    def hmac(self, purpose: str, text: str) -> str:
        return hmac.new(self.derive(self.subjects["*"], purpose), text.encode(), hashlib.sha256).hexdigest()

    def open(self, text: str, column: str, key_text: str, *, subject: str | None = None) -> str:
        """The value that a sealed text holds."""
        mark, _, kind, body = text.split(":")
        assert mark == "enc"
        owner = self._table if kind == "t" else f"{self._table}/{subject or key_text}"
        sealed = base64.b64decode(body, validate=True)
        where = f"{self._schema}.{self._table}/{column}/{key_text}".encode()
        return AESGCM(self.subjects[owner]).decrypt(sealed[:12], sealed[12:], where).decode()

    def secrets(self) -> list[bytes]:
        """Every key there is, master keys and what is derived from them."""
        derived = [self.derive(key, p) for key in self.master.values() for p in ("wrap", "archive", "hmac root")]
        hmacs = [self.derive(self.subjects["*"], purpose) for purpose in ("hash", "token", "tombstone")]
        return [*self.master.values(), *derived, *self.subjects.values(), *hmacs]
