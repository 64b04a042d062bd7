"""The frames of one batch: the scope's rows, read and judged once, then counted and split into versions and quarantine.

They run when the load writes them: the pass that writes the versions also counts and brings the quarantined rows along.
Only the search for keys that are missing from a past day runs by itself.
"""

from __future__ import annotations

import datetime as dt
import functools
import operator
from collections.abc import Mapping
from dataclasses import replace

from pyspark.sql import Column as SparkColumn
from pyspark.sql import DataFrame, Observation, SparkSession, Window
from pyspark.sql import functions as F
from pyspark.sql import types as T

from bronze_assets import quality
from bronze_assets.audit import LoadRecord, RuleCount
from bronze_assets.lakehouse import QUARANTINE
from bronze_assets.sources.postgres import Snapshot, SourceTable
from bronze_assets.sources.scope import Scope
from bronze_assets.table import METADATA_COLUMNS, BronzeTable

ACTIVE = "ACTIVE"
DELETED = "DELETED"
EXAMPLES = 5
CAPTURED_ROWS = 1000
CAPTURED_BYTES = 4000
"""Quarantined rows that the counting pass brings along, and how long each may be as text: together at most 4 MB on the
driver. Where more or longer ones are bad, the source is read once more for them."""
# Numbers, since every row's is compared several times.
_OUTCOMES = {"loaded": 0, "quarantined": 1, "duplicates": 2, "unchanged": 3, "deleted": 4}
_OUTCOME = "__outcome"
_READ = "__read"
_LATEST = "__latest"
_CAPTURED = "__captured"
_BAD_ROW = T.StructType([QUARANTINE[name] for name in ("row_key", "row_hash", "raw_row", "reasons")])


class Frames:
    """Every frame of one batch.

    Args:
        session: where they run.
        scope: what of the source they hold.
        today: the business date against which `not_in_future` holds.
        connections: parallel JDBC reads.
        full_compare: compare every value with the latest version of its row, not the hash alone.
    """

    def __init__(
        self,
        session: SparkSession,
        table: BronzeTable,
        snapshot: Snapshot,
        source: SourceTable,
        scope: Scope,
        *,
        today: dt.date,
        connections: int,
        full_compare: bool,
    ) -> None:
        self._session = session
        self._table = table
        self._snapshot = snapshot
        self._scope = scope
        self._today = today
        self._connections = connections
        self._full_compare = full_compare
        self._keys = [c.name for c in table.key]
        self._new_columns = tuple(source.extra)
        # Nobody has said whether a new column is personal; until the protection of unclassified columns exists,
        # it stays out of a table that holds personal data.
        self.extra = () if table.has_personal_data else self._new_columns
        self._source = replace(source, extra={name: source.extra[name] for name in self.extra})

    def judged(self) -> DataFrame:
        """The scope's rows with broken rules, score and hash."""
        frame = self._snapshot.read(self._session, self._source, self._table, self._scope, self._connections)
        judged = quality.judge(frame, self._table, extra=self.extra, today=self._today, now=self._snapshot.taken)
        return judged.withColumn(_READ, F.lit(True))

    def outcomes(self, judged: DataFrame, versions: DataFrame | None) -> DataFrame:
        """The judged rows with their outcome, and a row `deleted` for each key that is gone from the source."""
        duplicate = F.lit(False)
        if not self._source.unique:
            ranked = Window.partitionBy(*self._keys).orderBy(F.col(quality.QUARANTINED), F.col("record_hash"))
            judged = judged.withColumn("__rank", F.row_number().over(ranked))
            duplicate = F.col("__rank") > 1
        unchanged = F.lit(False)
        gone = F.lit(False)
        if versions is not None:
            judged, gone = self._with_latest(judged, versions)
            latest = F.col(_LATEST)
            same = F.col("record_hash") == latest["record_hash"]
            if self._full_compare:
                names = [c.name for c in self._table.columns if not c.key]
                same = functools.reduce(operator.and_, (F.col(n).eqNullSafe(latest[n]) for n in names), same)
            unchanged = F.coalesce((latest["record_status"] == ACTIVE) & same, F.lit(False))
        return judged.withColumn(
            _OUTCOME,
            F.when(F.col(_READ).isNull(), F.when(gone, _OUTCOMES["deleted"]))
            .when(F.col(quality.QUARANTINED), _OUTCOMES["quarantined"])
            .when(duplicate, _OUTCOMES["duplicates"])
            .when(unchanged, _OUTCOMES["unchanged"])
            .otherwise(_OUTCOMES["loaded"]),
        )

    def _with_latest(self, judged: DataFrame, versions: DataFrame) -> tuple[DataFrame, SparkColumn]:
        """Join each key's latest version; says which of the keys without a source row are gone."""
        compared = ["record_hash", "record_status"]
        if self._full_compare:
            compared += [c.name for c in self._table.columns if not c.key]
        if self._scope.kind == "day" and self._scope.column not in compared:
            compared.append(str(self._scope.column))
        if self._scope.kind == "range":
            versions = versions.where(self._scope.condition())
        latest = versions.groupBy(*(F.col(k).alias(_stored(k)) for k in self._keys)).agg(
            F.max_by(F.struct(*compared), F.struct("source_position", "load_timestamp")).alias(_LATEST)
        )
        active = F.col(_LATEST)["record_status"] == ACTIVE
        gone = active
        if self._scope.kind == "day":
            in_day = active & self._day(F.col(_LATEST)[str(self._scope.column)])
            gone = in_day
            candidates = latest.where(in_day).join(judged, self._on(), "left_anti")
            first = _stored(self._keys[0])
            found = candidates.agg(F.count(F.lit(1)), F.min(first), F.max(first)).first()
            if found is not None and found[0]:
                # Its date may have moved: a key is gone only when the source has it on no day at all.
                present = self._snapshot.read_keys(self._session, self._source, self._table, found[1], found[2])
                present = present.select(*(F.col(k).alias(f"__present_{k}") for k in self._keys))
                latest = latest.join(
                    present,
                    [F.col(_stored(k)) == F.col(f"__present_{k}") for k in self._keys],
                    "left",
                )
                gone = in_day & F.col(f"__present_{self._keys[0]}").isNull()
        return judged.join(latest, self._on(), "full_outer"), gone

    def _day(self, value: SparkColumn) -> SparkColumn:
        return (value >= F.lit(self._scope.low)) & (value < F.lit(self._scope.high))

    def _on(self) -> list[SparkColumn]:
        return [F.col(k) == F.col(_stored(k)) for k in self._keys]

    def counted(self, outcomes: DataFrame) -> tuple[DataFrame, Observation]:
        """The same rows, and the counts that are known once they have been written."""
        # Each count costs time for every row: what cannot be (duplicates of a unique key, NULLs in a NOT NULL column,
        # deletions from an empty table) is not counted.
        compared = _LATEST in outcomes.columns
        read = F.col(_READ).isNotNull() if compared else F.lit(True)
        bad = F.to_json(self._bad_row(outcomes))
        outcomes = outcomes.withColumn(_CAPTURED, F.when(F.col(quality.QUARANTINED), bad))
        possible = ["loaded", "quarantined"]
        possible += [] if self._source.unique else ["duplicates"]
        possible += ["unchanged", "deleted"] if compared else []
        counts = [
            F.count(F.col(_READ)).alias("read"),
            F.sum(F.when(read, F.col("data_quality_score"))).alias("score_sum"),
        ]
        short = f"case when octet_length({_CAPTURED}) <= {CAPTURED_BYTES} then xxhash64({_CAPTURED}) end"
        counts.append(F.expr(f"min_by({_CAPTURED}, {short}, {CAPTURED_ROWS})").alias(_CAPTURED))
        counts += [F.count_if(F.col(_OUTCOME) == _OUTCOMES[outcome]).alias(outcome) for outcome in possible]
        rules = quality.rules(self._table)
        warned = [F.col(quality.broken_column(rule.name)) for rule in rules if not rule.quarantines]
        if warned:
            any_warned = functools.reduce(operator.or_, warned) & ~F.col(quality.QUARANTINED)
            counts.append(F.count_if(any_warned).alias("warned"))
        broken = {rule.name: f"`{quality.broken_column(rule.name)}`" for rule in rules}
        if "duplicates" in possible:
            broken[quality.KEY_UNIQUE] = f"{_OUTCOME} = {_OUTCOMES['duplicates']}"
        for name, condition in broken.items():
            counts.append(F.count_if(F.expr(condition)).alias(f"broken {name}"))
            counts.append(self._examples(condition).alias(f"examples {name}"))
        for column in self._table.columns:
            if not self._source.columns[column.name].not_null:
                null = quality.is_null(column.name, outcomes.columns)
                counts.append(F.count_if(read & null).alias(f"null {column.name}"))
        observation = Observation()
        return outcomes.observe(observation, *counts), observation

    def _examples(self, condition: str) -> SparkColumn:
        # Ordered by a hash, so that the same rows give the same examples whatever order Spark reads them in.
        key = "concat_ws(', ', " + ", ".join(f"cast(`{k}` as string)" for k in self._keys) + ")"
        shown = f"{condition} and `{self._keys[0]}` is not null"
        return F.expr(f"min_by({key}, case when {shown} then xxhash64({key}) end, {EXAMPLES})")

    def versions(self, counted: DataFrame, batch_id: str, position: str, now: dt.datetime) -> DataFrame:
        """The row versions to write: loaded rows, and a bare `DELETED` version of each key that is gone."""
        deleted = F.col(_OUTCOME) == _OUTCOMES["deleted"]
        stored = set(counted.columns)
        source = [
            (F.coalesce(F.col(k), F.col(_stored(k))) if _stored(k) in stored else F.col(k)).alias(k) for k in self._keys
        ]
        source += [F.col(c.name) for c in self._table.columns if not c.key]
        metadata = {
            "load_timestamp": F.lit(now),
            "update_timestamp": F.lit(now),
            "source_system": F.lit(self._table.source_system),
            "record_status": F.when(deleted, DELETED).otherwise(ACTIVE),
            "data_quality_score": F.when(~deleted, F.col("data_quality_score")),
            "batch_id": F.lit(batch_id),
            "file_name": F.lit(None).cast("string"),
            "record_hash": F.when(~deleted, F.col("record_hash")),
            "source_position": F.lit(position),
        }
        return counted.where(F.col(_OUTCOME).isin(_OUTCOMES["loaded"], _OUTCOMES["deleted"])).select(
            *source, *(metadata[name].alias(name) for name in METADATA_COLUMNS), *self.extra
        )

    def quarantine(
        self, judged: DataFrame, counts: Mapping[str, object], batch_id: str, position: str, now: dt.datetime
    ) -> DataFrame:
        """The quarantined rows, identical ones together, with the columns of `lakehouse.QUARANTINE`.

        Args:
            counts: of the pass that counted; the rows that it brought along are not read again.
        """
        captured = counts.get(_CAPTURED)
        if isinstance(captured, list) and len(captured) == counts["quarantined"]:
            texts = self._session.createDataFrame([(text,) for text in captured], "text string")
            parsed = F.from_json("text", _BAD_ROW, {"mode": "FAILFAST"})
        else:
            texts = judged.where(F.col(quality.QUARANTINED))
            parsed = self._bad_row(judged)
        identity = ["row_key", "row_hash", "rule_set"]
        rule_set = F.lit(quality.fingerprint(self._table)).alias("rule_set")
        bad = texts.select(parsed.alias("row")).select("row.*", rule_set)
        constants = {
            "batch_id": F.lit(batch_id),
            "source_system": F.lit(self._table.source_system),
            "source_position": F.lit(position),
            "file_name": F.lit(None).cast("string"),
            "first_seen": F.lit(now),
            "last_seen": F.lit(now),
            "last_batch_id": F.lit(batch_id),
            "sightings": F.lit(1).cast("long"),
        }
        return (
            bad.groupBy(*identity)
            .agg(
                F.any_value("raw_row").alias("raw_row"),
                F.any_value("reasons").alias("reasons"),
                F.count(F.lit(1)).alias("rows_in_batch"),
            )
            .withColumns(constants)
            .select(*QUARANTINE.names)
        )

    def _bad_row(self, judged: DataFrame) -> SparkColumn:
        columns = judged.columns
        return F.struct(
            quality.key_text(self._table).alias("row_key"),
            quality.row_hash(judged, self._table, self.extra).alias("row_hash"),
            quality.raw_row(self._table, columns, self.extra).alias("raw_row"),
            quality.reasons(self._table, columns).alias("reasons"),
        )

    def record(
        self,
        counts: Mapping[str, object],
        partition: str,
        batch_id: str,
        started: dt.datetime,
        ended: dt.datetime,
        position: str,
    ) -> LoadRecord:
        """The record of the pass that counted."""

        def number(name: str) -> int:
            value = counts.get(name)
            return value if isinstance(value, int) else 0

        def examples(name: str) -> tuple[str, ...]:
            value = counts.get(f"examples {name}")
            return tuple(str(item) for item in value) if isinstance(value, (list, tuple)) else ()

        found = {
            rule.name: RuleCount(number(f"broken {rule.name}"), examples(rule.name))
            for rule in quality.rules(self._table)
        }
        found[quality.KEY_UNIQUE] = RuleCount(number(f"broken {quality.KEY_UNIQUE}"), examples(quality.KEY_UNIQUE))
        return LoadRecord(
            table=self._table.name,
            schema=self._table.schema,
            partition=partition,
            batch_id=batch_id,
            scope=str(self._scope),
            started=started,
            ended=ended,
            source_position=position,
            read=number("read"),
            loaded=number("loaded"),
            quarantined=number("quarantined"),
            duplicates=number("duplicates"),
            unchanged=number("unchanged"),
            deleted=number("deleted"),
            warned=number("warned"),
            score_sum=number("score_sum"),
            rules=found,
            nulls={c.name: number(f"null {c.name}") for c in self._table.columns},
            new_columns=self._new_columns,
            left_out=tuple(name for name in self._new_columns if name not in self.extra),
        )


def _stored(key: str) -> str:
    return f"__stored_{key}"
