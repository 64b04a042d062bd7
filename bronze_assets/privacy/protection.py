"""Personal data in Spark: a table's values sealed and tokenised as columns, in bulk (docs/adr/0018).

Keys come as columns of a broadcast frame of one row, never as literals: a literal stands in plans and event logs.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Mapping, Sequence

from pyspark.sql import Column as SparkColumn
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from bronze_assets.access import SUBJECT_KEYS, TOKEN_VAULT, TOMBSTONES
from bronze_assets.lakehouse import Lakehouse
from bronze_assets.privacy.data_keys import DataKeys
from bronze_assets.privacy.keys import VERSION_BYTES, KeyRing
from bronze_assets.quality import LINE, Sealed, key_text, raw_column
from bronze_assets.storage import sql_literal
from bronze_assets.table import RESCUED, BronzeTable, Column, Pii

ERASED = "__erased"
_BLOCK_BYTES = 64
_ONE_LINE = 76 // 4 * 3 - 12 - 16
"""Bytes of a value whose base64, with nonce and tag, is no longer than a line of MIME (RFC 2045)."""
_PURPOSES = ("hash", "token", "tombstone")
_WRAP_KEYS = "__wrap_keys"
_TABLE_KEY = "__table_key"
_SUBJECT = "__subject"
_WRAPPED = "__wrapped"
_KEY = "__key"


class Protection(Sealed):
    """The protection of one table's rows in one load.

    Args:
        session: where frames run.
        ring: the master key.
        clock: gives the present moment, in UTC.
        writes: whether missing keys and vault rows are made; a dry run makes none.

    Raises:
        KeyMissing, KeyRefused: there is no key, or not that of this lake; nothing was written.
    """

    def __init__(
        self,
        session: SparkSession,
        lake: Lakehouse,
        ring: KeyRing,
        table: BronzeTable,
        clock: Callable[[], dt.datetime],
        *,
        writes: bool,
    ) -> None:
        self._session = session
        self._lake = lake
        self._table = table
        self._clock = clock
        self._writes = writes
        self._version = ring.current
        self._high = [c.name for c in table.columns if c.pii is Pii.HIGH]
        self._medium = [c.name for c in table.columns if c.pii is Pii.MEDIUM]
        self._plain = {c.name for c in table.columns if not c.pii.protected}
        self._data_keys = DataKeys(lake, ring, table.schema, clock)
        if writes:
            self._data_keys.ensure([table.name])
        self._secrets = self._one_row(ring)

    def ready(self, frame: DataFrame, extra: Sequence[str] = (), *, unique: bool = False) -> DataFrame:
        """The rows with all that `hashed`, `token`, `sealed` and `ERASED` need; missing keys have been made.

        Args:
            frame: a source frame (see `quality`).
            extra: columns of it that the table does not declare.
            unique: whether no two of them have the same key.
        """
        frame = self._with_subject(frame)
        if self._writes:
            self._make_keys(frame, unique)
        frame = self._with_hashes(self._with_keys(frame), extra)
        if self._writes and self._medium:
            self._fill_vault(frame, self._medium)
        return frame.drop(*(f"__{part}_{purpose}" for purpose in _PURPOSES for part in ("inner", "outer")))

    def forgotten(self, versions: DataFrame) -> DataFrame:
        """Row versions with `ERASED`: whether their subject has been forgotten."""
        return self._with_subject(versions).drop(_SUBJECT)

    def forgotten_keys(self, rows: DataFrame) -> DataFrame:
        """Rows of the quarantine with `ERASED`, by the key text that they had."""
        subject = F.concat(F.lit(f"{self._table.name}/"), F.col("row_key"))
        return self._with_erased(rows.withColumn(_SUBJECT, subject)).drop(_SUBJECT)

    def hashed(self, name: str) -> SparkColumn:
        """What of a protected value enters a hash: its HMAC, as hex."""
        return F.col(_hmac_column("hash", name))

    def written(self, name: str, value: SparkColumn) -> SparkColumn:
        """The text that a column of the bronze table holds for a value."""
        if name in self._medium:
            return F.when(value.isNotNull(), _token(name))
        if name in self._plain:
            return value
        return F.when(value.isNotNull(), self._text(name, self._row(), value, F.col(_SUBJECT).isNotNull(), F.col(_KEY)))

    def unlocked(self, frame: DataFrame) -> DataFrame:
        """The rows that are to be written, with the key that `written` needs, once for all columns."""
        return frame.withColumn(_KEY, self._subject_key())

    def sealed(self, name: str, value: SparkColumn) -> SparkColumn:
        """The value encrypted under the key of the row's subject, or of the table where it has none."""
        subject = F.lit(False) if name == LINE else F.col(_SUBJECT).isNotNull()
        row = F.lit("") if name == LINE else self._row()
        return F.when(value.isNotNull(), self._text(name, row, value, subject, self._subject_key()))

    def opened(self, versions: DataFrame) -> DataFrame:
        """Row versions of the table with readable values; NULL where the key is gone."""
        frame = self._with_keys(self._with_subject(versions))
        unclassified = [name for name in versions.columns if not self._table.knows(name) and name != RESCUED]
        plain = {name: self._opened_text(name, F.col(name)) for name in (*self._high, *unclassified)}
        if self._medium and self._lake.exists(self._table.schema, TOKEN_VAULT):
            vault = self._read(TOKEN_VAULT).select("token", "subject", "value")
            for name in self._medium:
                mine = vault.toDF(f"__found_{name}", f"__owner_{name}", f"__value_{name}")
                same = (F.col(name) == F.col(f"__found_{name}")) & (F.col(_SUBJECT) == F.col(f"__owner_{name}"))
                frame = frame.join(mine, same, "left")
                plain[name] = self._opened_text("token", F.col(f"__value_{name}"), row=F.col(name))
        return frame.withColumns(plain).select(*versions.columns)

    def classified(self, versions: DataFrame, columns: Sequence[Column]) -> DataFrame:
        """Row versions with what was sealed while nobody had declared these columns: readable, as texts; tokens where a
        column is Medium now, with their way back in the vault.

        Args:
            columns: none is High, whose values stay sealed as they are.
        """
        frame = self._with_keys(self._with_subject(versions))
        frame = frame.withColumns({c.name: self._opened_text(c.name, F.col(c.name)) for c in columns})
        medium = [c.name for c in columns if c.pii is Pii.MEDIUM]
        if medium:
            frame = frame.withColumns(
                {_hmac_column("token", name): self._hmac("token", F.col(name)) for name in medium}
            )
            self._fill_vault(frame, medium)
            frame = frame.withColumns({name: F.when(F.col(name).isNotNull(), _token(name)) for name in medium})
        return frame.select(*versions.columns)

    def unsealed(self, rows: DataFrame, names: Mapping[str, str], key: SparkColumn) -> DataFrame:
        """Rows of the quarantine with readable texts in the place of sealed ones; NULL where no key opens them.

        Args:
            names: what was sealed (`sealed`) → the column of `rows` with the sealed text.
            key: the key text that each row had then.
        """
        mine = self._read(SUBJECT_KEYS).where(F.col("subject").startswith(f"{self._table.name}/"))
        keys = mine.select(F.col("subject").alias("__owner"), F.col("wrapped").alias(_WRAPPED))
        secrets = self._secrets.select(_WRAP_KEYS, _TABLE_KEY)
        frame = rows.withColumn("__row", key).withColumn(_SUBJECT, F.concat(F.lit(f"{self._table.name}/"), "__row"))
        frame = frame.crossJoin(F.broadcast(secrets)).join(keys, F.col(_SUBJECT) == F.col("__owner"), "left")
        frame = frame.withColumn("__wrap_key", F.col(_WRAP_KEYS)[F.substring(_WRAPPED, 1, VERSION_BYTES)])
        # What is of the table's key was sealed without a subject, and so without a row.
        rows_then = {
            column: F.when(_of_table(F.col(column)), "").otherwise(F.col("__row")) for column in names.values()
        }
        opened = {column: self._opened_text(name, F.col(column), rows_then[column]) for name, column in names.items()}
        return frame.withColumns(opened).select(*rows.columns)

    def _one_row(self, ring: KeyRing) -> DataFrame:
        # By version, as it stands before a wrapped key.
        wrap_keys = {
            version.to_bytes(VERSION_BYTES, "big"): bytearray(ring.derive("wrap", version)) for version in ring.versions
        }
        table_key = self._data_keys.key(self._table.name)
        row: list[object] = [wrap_keys, None if table_key is None else bytearray(table_key)]
        fields = [f"{_WRAP_KEYS} map<binary, binary>", f"{_TABLE_KEY} binary"]
        for purpose in _PURPOSES:
            row += hmac_pads(self._data_keys.hmac_key(purpose))
            fields += [f"__inner_{purpose} binary", f"__outer_{purpose} binary"]
        return self._session.createDataFrame([tuple(row)], ", ".join(fields))

    def _with_subject(self, frame: DataFrame) -> DataFrame:
        known = F.lit(True)
        for column in self._table.key:
            known = known & F.col(column.name).isNotNull()
        subject = F.concat(F.lit(f"{self._table.name}/"), key_text(self._table))
        return self._with_erased(frame.withColumn(_SUBJECT, F.when(known, subject)))

    def _with_erased(self, frame: DataFrame) -> DataFrame:
        if not self._lake.exists(self._table.schema, TOMBSTONES):
            return frame.withColumn(ERASED, F.lit(False))
        gone = self._read(TOMBSTONES).select(F.col("subject_hmac").alias("__gone")).distinct()
        secrets = [f"__{part}_tombstone" for part in ("inner", "outer")]
        full = F.concat(F.lit(f"{self._table.schema}/"), F.col(_SUBJECT))
        frame = frame.crossJoin(F.broadcast(self._secrets.select(*secrets)))
        frame = frame.withColumn("__subject_hmac", self._hmac("tombstone", full)).drop(*secrets)
        frame = frame.join(F.broadcast(gone), F.col("__subject_hmac") == F.col("__gone"), "left")
        return frame.withColumn(ERASED, F.col("__gone").isNotNull()).drop("__subject_hmac", "__gone")

    def _make_keys(self, frame: DataFrame, unique: bool) -> None:
        wanted = frame.where(F.col(_SUBJECT).isNotNull() & ~F.col(ERASED)).select(_SUBJECT)
        wanted = wanted if unique else wanted.distinct()
        if self._has_subjects():
            known = self._read(SUBJECT_KEYS).select(F.col("subject").alias(_SUBJECT))
            wanted = wanted.join(known, _SUBJECT, "left_anti")
        self._data_keys.ensure(wanted.toArrow()[_SUBJECT])

    def _has_subjects(self) -> bool:
        mine = f"select 1 as one from t where starts_with(subject, {sql_literal(self._table.name + '/')}) limit 1"
        found = self._lake.query(self._table.schema, SUBJECT_KEYS, mine)
        return found is not None and found.num_rows > 0

    def _with_keys(self, frame: DataFrame) -> DataFrame:
        mine = self._read(SUBJECT_KEYS).where(F.col("subject").startswith(f"{self._table.name}/"))
        keys = mine.select(F.col("subject").alias("__owner"), F.col("wrapped").alias(_WRAPPED))
        frame = frame.join(keys, F.col(_SUBJECT) == F.col("__owner"), "left").drop("__owner")
        # After the join: its shuffle would carry hundreds of bytes more with each row.
        frame = frame.crossJoin(F.broadcast(self._secrets))
        return frame.withColumn("__wrap_key", F.col(_WRAP_KEYS)[F.substring(_WRAPPED, 1, VERSION_BYTES)]).drop(
            _WRAP_KEYS
        )

    def _with_hashes(self, frame: DataFrame, extra: Sequence[str]) -> DataFrame:
        names = (*self._high, *self._medium, *extra)
        hashes = {_hmac_column("hash", name): self._hmac("hash", F.col(name)) for name in names}
        tokens = {_hmac_column("token", name): self._hmac("token", F.col(name)) for name in self._medium}
        if raw_column(LINE) in frame.columns:
            hashes[_hmac_column("hash", LINE)] = self._hmac("hash", F.col(raw_column(LINE)))
        return frame.withColumns(hashes | tokens)

    def _fill_vault(self, frame: DataFrame, names: Sequence[str]) -> None:
        parts = [
            frame.where(F.col(name).isNotNull() & F.col(_SUBJECT).isNotNull() & ~F.col(ERASED)).select(
                _token(name).alias("token"),
                F.col(_SUBJECT).alias("subject"),
                F.col(name).alias("__plain"),
                _WRAPPED,
                "__wrap_key",
                _TABLE_KEY,
                F.col(_SUBJECT),
            )
            for name in names
        ]
        rows = parts[0]
        for part in parts[1:]:
            rows = rows.unionByName(part)
        rows = rows.dropDuplicates(["token", "subject"])
        if self._lake.exists(self._table.schema, TOKEN_VAULT):
            known = self._read(TOKEN_VAULT).select("token", "subject")
            rows = rows.join(known, ["token", "subject"], "left_anti")
        value = self._text("token", F.col("token"), F.col("__plain"), F.lit(True), self._subject_key())
        entries = rows.select("token", "subject", value.alias("value"), F.lit(self._clock()).alias("created"))
        self._lake.insert_missing(entries, self._table.schema, TOKEN_VAULT, on=("token", "subject"))

    def _row(self) -> SparkColumn:
        return F.when(F.col(_SUBJECT).isNotNull(), key_text(self._table)).otherwise("")

    def _text(
        self, column: str, row: SparkColumn, value: SparkColumn, subject: SparkColumn, subject_key: SparkColumn
    ) -> SparkColumn:
        # Where somebody is known there must be a key: under another one, nobody could be forgotten.
        lost = F.raise_error(F.lit(f"a subject of {self._table.name} has no key")).cast("binary")
        key = F.when(subject, F.coalesce(subject_key, lost)).otherwise(F.col(_TABLE_KEY))
        plain = value.cast("string").cast("binary")
        sealed = F.aes_encrypt(plain, key, F.lit("GCM"), F.lit("DEFAULT"), F.lit(b""), self._where(column, row))
        kind = F.when(subject, "s").otherwise("t")
        text = F.base64(sealed)
        # Spark breaks long texts into lines, or not, by configuration. (The text itself would be made twice.)
        text = F.when(F.octet_length(plain) > _ONE_LINE, F.translate(text, "\r\n", "")).otherwise(text)
        return F.concat(F.lit(f"enc:{self._version}:"), kind, F.lit(":"), text)

    def _opened_text(self, column: str, text: SparkColumn, row: SparkColumn | None = None) -> SparkColumn:
        sealed = F.unbase64(F.substring_index(text, ":", -1))
        key = F.when(_of_table(text), F.col(_TABLE_KEY)).otherwise(self._subject_key())
        where = self._where(column, key_text(self._table) if row is None else row)
        plain = F.aes_decrypt(sealed, key, F.lit("GCM"), F.lit("DEFAULT"), where)
        return F.when(text.isNotNull() & key.isNotNull(), plain.cast("string"))

    def _subject_key(self) -> SparkColumn:
        context = F.concat(F.lit(f"{self._table.schema}/"), F.col(_SUBJECT)).cast("binary")
        wrapped = F.expr(f"substring({_WRAPPED}, 3)")
        return F.aes_decrypt(wrapped, F.col("__wrap_key"), F.lit("GCM"), F.lit("DEFAULT"), context)

    def _where(self, column: str, row: SparkColumn) -> SparkColumn:
        return F.concat(F.lit(f"{self._table.schema}.{self._table.name}/{column}/"), row).cast("binary")

    @staticmethod
    def _hmac(purpose: str, value: SparkColumn) -> SparkColumn:
        return hmac_column(value, F.col(f"__inner_{purpose}"), F.col(f"__outer_{purpose}"))

    def _read(self, name: str) -> DataFrame:
        return self._lake.read(self._session, self._table.schema, name)


def hmac_pads(key: bytes) -> list[bytearray]:
    """The key as `hmac_column` wants it: inner and outer, each of them a secret as the key is."""
    block = key.ljust(_BLOCK_BYTES, b"\0")
    return [bytearray(byte ^ pad for byte in block) for pad in (0x36, 0x5C)]


def hmac_column(value: SparkColumn, inner: SparkColumn, outer: SparkColumn) -> SparkColumn:
    """HMAC-SHA-256 (RFC 2104) as lower-case hex; Spark has none of its own."""
    digest = F.sha2(F.concat(inner, value.cast("string").cast("binary")), 256)
    return F.sha2(F.concat(outer, F.unhex(digest)), 256)


def _token(name: str) -> SparkColumn:
    return F.concat(F.lit("tok:"), F.col(_hmac_column("token", name)))


def _of_table(text: SparkColumn) -> SparkColumn:
    """Whether a sealed text is under the table's key."""
    return F.split_part(text, F.lit(":"), F.lit(3)) == "t"


def _hmac_column(purpose: str, name: str) -> str:
    return f"__{purpose}_{name}"
