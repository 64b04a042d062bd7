"""The frames of a file batch: rows of files as they are, or captured changes in the order of their commits."""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from pyspark.sql import Column as SparkColumn
from pyspark.sql import DataFrame, SparkSession, Window
from pyspark.sql import functions as F
from pyspark.sql import types as T

from bronze_assets import quality
from bronze_assets.audit import LoadRecord
from bronze_assets.frames import ACTIVE, OUTCOME, OUTCOMES, READ, Frames
from bronze_assets.lakehouse import OPEN, QUARANTINE
from bronze_assets.privacy.protection import Protection
from bronze_assets.quality import EXPECTED, LINE, raw_column
from bronze_assets.schema_versions import USABLE_NAME
from bronze_assets.sources.files import (
    CARRIED,
    OPERATION,
    POSITION,
    UNKNOWN,
    ClaimedFiles,
    previous_key,
)
from bronze_assets.sources.inspection import Inspected
from bronze_assets.sources.packing import ARRIVED, FILE
from bronze_assets.sources.scope import FileScope
from bronze_assets.table import RESCUED, BronzeTable

_PERCENTILES = (0.5, 0.05, 0.0)
# From `operation` on, the columns of the quarantine.
_OPEN_FILE = (None, None, OPEN, 0, None, None, None, None)


class PlacedFrames(Frames):
    """The frames of rows that each have a `FILE` and a `POSITION` of their own."""

    def _can_be_null(self, _column: str) -> bool:
        return True

    def _source_column(self, name: str, _columns: Sequence[str], deleted: SparkColumn) -> SparkColumn:
        # A captured deletion may carry the row as it was.
        return F.col(name) if name in self._keys else F.when(~deleted, F.col(name))

    def _file_name(self) -> SparkColumn:
        return F.col(FILE)

    def _position(self, _batch_position: str) -> SparkColumn:
        return F.col(POSITION)


class FileFrames(PlacedFrames):
    """Every frame of one file batch.

    Args:
        now: the moment of the load.
        today: the business date then.
        extra: undeclared columns that the table has, and their types.
        versions: the row versions that the table has, without this batch's own; None if it has none.
        held_back: `row_key` and `source_position` of the rows that earlier batches have quarantined; None if there
            are none, or no change leaves values as they were.
        redelivered: whether changes may be there again that earlier files held, as Debezium's may.
    """

    def __init__(
        self,
        session: SparkSession,
        table: BronzeTable,
        files: ClaimedFiles,
        *,
        now: dt.datetime,
        today: dt.date,
        extra: Mapping[str, T.DataType],
        versions: DataFrame | None,
        held_back: DataFrame | None,
        redelivered: bool,
        protection: Protection | None,
    ) -> None:
        names = [file.file.path for file in files.files]
        super().__init__(
            session,
            table,
            scope=str(FileScope(len(names))),
            now=now,
            today=today,
            extra=list(extra),
            protection=protection,
        )
        self.files = files
        self._types = {name: extra[name] for name in self.extra}
        self._versions = versions
        self._held_back = held_back
        self._redelivered = redelivered
        feed = table.feed
        assert feed is not None
        self._feed = feed

    def judged(self) -> DataFrame:
        """The rows of all files with broken rules, score and hash; a captured deletion has no `READ`."""
        frame = self._read().where(~F.col(OPERATION).eqNullSafe("t"))
        if self._feed.captured:
            # A deletion stands outside the rules: whatever values it brings along, the key is gone.
            keys = {*self._keys, *map(raw_column, self._keys)}
            names = [c.name for c in self._table.columns] + list(self.extra)
            values = [n for name in names for n in (name, raw_column(name)) if n in frame.columns and n not in keys]
            deletes = F.col(OPERATION).eqNullSafe("d")
            frame = frame.withColumns({name: F.when(~deletes, F.col(name)) for name in values})
        if any(file.unchanged for file in self.files.files):
            frame = self._carried(frame)
        judged = self._judge(frame)
        deletion = F.col(OPERATION).eqNullSafe("d") & ~F.col(quality.QUARANTINED)
        return judged.withColumn(READ, F.when(~deletion, True))

    def outcomes(self, judged: DataFrame, _versions: DataFrame | None) -> DataFrame:
        """The judged rows with their outcome, and a row `deleted` for each key that a TRUNCATE removed."""
        if self.files.unique(self._feed):
            # The shuffle and the sort would cost as much as everything else.
            duplicate = F.lit(False)
        else:
            ranked = Window.partitionBy(*self._keys, POSITION).orderBy(F.col(quality.QUARANTINED), F.col("record_hash"))
            judged = judged.withColumn("__rank", F.row_number().over(ranked))
            duplicate = F.col("__rank") > 1
        if self._redelivered and self._versions is not None:
            there = self._versions.select(
                *(F.col(k).alias(f"__there_{k}") for k in self._keys), F.col("source_position").alias("__there")
            ).distinct()
            same = [F.col(k) == F.col(f"__there_{k}") for k in self._keys] + [F.col(POSITION) == F.col("__there")]
            judged = judged.join(there, same, "left")
            duplicate = duplicate | F.col("__there").isNotNull()
        # A deletion that is there twice counts as a row, or it would be lost from the counts.
        judged = judged.withColumn(READ, F.when(F.col(READ).isNotNull() | duplicate, True))
        outcome = (
            F.when(F.col(quality.QUARANTINED), OUTCOMES["quarantined"])
            .when(duplicate, OUTCOMES["duplicates"])
            .when(F.col(READ).isNull(), OUTCOMES["deleted"])
            .otherwise(OUTCOMES["loaded"])
        )
        found = judged.withColumn(OUTCOME, self._outcome(outcome))
        if any(file.truncates for file in self.files.files):
            return self._with_truncated(found)
        return found

    def whole_files(self, files: Sequence[Inspected], batch_id: str, now: dt.datetime) -> DataFrame:
        """Quarantine rows for files that cannot be read at all, with the columns of `lakehouse.QUARANTINE`."""
        rule_set = quality.fingerprint(self._table)
        rows = [
            (
                file.file.path,
                file.content_hash,
                rule_set,
                None,
                [("file", None, "a whole, readable file", file.problem)],
                batch_id,
                self._table.source_system,
                None,
                file.file.path,
                now,
                now,
                batch_id,
                1,
                0,
                *_OPEN_FILE,
            )
            for file in files
        ]
        return self._session.createDataFrame(rows, QUARANTINE)

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

        def array(name: str) -> list[Any]:
            text = counts.get(name)
            return list(json.loads(text)) if isinstance(text, str) else []

        sets = [json.loads(text) for text in array("unknown")]
        # Others cannot be columns, and may be values: of somebody who uses addresses as names, say.
        new = sorted({name for names in sets for name in names if USABLE_NAME.fullmatch(name)} - set(self.extra))
        last = counts.get("position")
        ages: list[float | None] = [ended.timestamp() - float(at) for at in array("arrived")]
        ages = ages or [None] * 3
        return replace(
            super().record(counts, partition, batch_id, started, ended, last if isinstance(last, str) else position),
            new_columns=tuple(new),
            files=len(self.files.files),
            latency_p50=ages[0],
            latency_p95=ages[1],
            latency_max=ages[2],
        )

    def _read(self) -> DataFrame:
        return self.files.read(self._session, self._table, self._types)

    def _carried(self, frame: DataFrame) -> DataFrame:
        """Values that a change leaves as they were, from the version before it."""
        names = [c.name for c in self._table.columns if not c.key] + list(self.extra)
        mine = frame.withColumns({"__stored": F.lit(False), "__lost": F.lit(False)})
        if self._versions is not None:
            active = self._versions.where(F.col("record_status") == ACTIVE)
            stored = (active if self._protection is None else self._protection.opened(active)).select(
                *self._keys, *names, F.col("source_position").alias(POSITION), F.lit(True).alias("__stored")
            )
            mine = mine.unionByName(stored, allowMissingColumns=True)
        # After a change of the key, from the version under the key before it.
        moved = F.col(previous_key(self._keys[0])).isNotNull()
        before_keys = [F.coalesce(F.col(previous_key(k)), F.col(k)) for k in self._keys]
        mine = self._with_held_back(mine, before_keys)
        for keys, rows in ((before_keys, moved), ([F.col(k) for k in self._keys], ~moved)):
            mine = self._filled(mine, names, keys, rows)
        return (
            mine.where(~F.col("__stored"))
            .withColumns(
                {
                    raw_column(LINE): F.when(F.col("__lost"), F.to_json(F.struct(*self._keys))).otherwise(
                        F.col(raw_column(LINE))
                    ),
                    EXPECTED: F.when(
                        F.col("__lost"), "an earlier version, with the values that the change left as they were"
                    ).otherwise(F.col(EXPECTED)),
                }
            )
            .drop("__stored", "__before", "__lost", "__held_back")
        )

    def _with_held_back(self, mine: DataFrame, keys: Sequence[SparkColumn]) -> DataFrame:
        """The same rows with the positions, `__held_back`, at which their key has a version in the quarantine only."""
        if self._held_back is None:
            return mine.withColumn("__held_back", F.array().cast("array<string>"))
        held = self._held_back.groupBy("row_key").agg(F.collect_set("source_position").alias("__held_back"))
        return mine.join(held, quality.as_key_text(keys) == F.col("row_key"), "left").drop("row_key")

    @staticmethod
    def _filled(mine: DataFrame, names: Sequence[str], keys: Sequence[SparkColumn], rows: SparkColumn) -> DataFrame:
        """The same rows; those that `rows` selects with the values that they left out, from the row before by key."""
        order = Window.partitionBy(*keys).orderBy(POSITION).rowsBetween(Window.unboundedPreceding, -1)
        for name in names:
            left = F.coalesce(F.array_contains(CARRIED, name), F.lit(False))
            raw = raw_column(name)
            both = [n for n in (name, raw) if n in mine.columns]
            # A deletion has no values: one goes before the new row in a change of the key.
            gives = ~left & ~F.col(OPERATION).eqNullSafe("d")
            last = F.last(F.when(gives, F.struct(*both, POSITION)), ignorenulls=True).over(order)
            mine = mine.withColumn("__before", last)
            before = F.col("__before")
            # What lies in the quarantine in between had another value, maybe.
            positions = F.filter("__held_back", lambda at: at < F.col(POSITION))
            between = F.array_max(positions) > before[POSITION]
            lost = left & rows & (before.isNull() | F.coalesce(between, F.lit(False)))
            mine = mine.withColumns(
                {n: F.when(left & rows, before[n]).otherwise(F.col(n)) for n in both}
                | {"__lost": F.coalesce(F.col("__lost"), F.lit(False)) | lost}
            )
        return mine.withColumn(CARRIED, F.when(~F.coalesce(rows, F.lit(False)), F.col(CARRIED)))

    def _with_truncated(self, outcomes: DataFrame) -> DataFrame:
        """A row `deleted` at the position of each TRUNCATE for every key that was live then."""
        events = self._read().where(F.col(OPERATION) == "t").select(POSITION, FILE, ARRIVED).distinct()
        live = outcomes.where(F.col(OUTCOME).isin(OUTCOMES["loaded"], OUTCOMES["deleted"])).select(
            *self._keys, POSITION, (F.col(OUTCOME) == OUTCOMES["loaded"]).alias("__live")
        )
        if self._versions is not None:
            status = (F.col("record_status") == ACTIVE).alias("__live")
            live = live.unionByName(
                self._versions.select(*self._keys, F.col("source_position").alias(POSITION), status)
            )
        for event in sorted(events.collect(), key=lambda row: str(row[POSITION])):
            # A TRUNCATE that is there twice has its keys deleted at that position already.
            before = live.where(F.col(POSITION) <= event[POSITION])
            gone = (
                before.groupBy(*self._keys)
                .agg(F.max_by("__live", POSITION).alias("__live"))
                .where("__live")
                .select(*self._keys, F.lit(event[POSITION]).alias(POSITION), F.lit(False).alias("__live"))
            )
            rows = gone.drop("__live").withColumns(
                {
                    FILE: F.lit(event[FILE]),
                    ARRIVED: F.lit(event[ARRIVED]),
                    OUTCOME: F.lit(OUTCOMES["deleted"]),
                    quality.QUARANTINED: F.lit(False),
                }
            )
            outcomes = outcomes.unionByName(rows, allowMissingColumns=True)
            live = live.unionByName(gone)
        return outcomes

    def _possible(self, _outcomes: DataFrame) -> list[str]:
        return ["loaded", "quarantined", "duplicates"] + (["deleted"] if self._feed.captured else [])

    def _told_of_file_row(self, columns: Sequence[str]) -> list[SparkColumn]:
        rescued = F.col(RESCUED) if RESCUED in columns else F.lit(None).cast("string")
        if self._protection is not None:
            rescued = self._protection.sealed(RESCUED, rescued)
        return [F.col(OPERATION), rescued]

    def _added(self) -> list[SparkColumn]:
        return [self._rescued()]

    def _more_counts(self) -> list[SparkColumn]:
        names = F.when(F.col(UNKNOWN).isNotNull(), F.to_json(UNKNOWN))
        # The oldest row waited longest: the 5th percentile of the moments is the 95th of the ages.
        moments = F.percentile_approx(F.col(ARRIVED).cast("double"), list(_PERCENTILES), 1000)
        # As JSON: an array would come as an object of the JVM's from Spark 4.0.
        return [
            F.to_json(F.collect_set(names)).alias("unknown"),
            F.max(POSITION).alias("position"),
            F.to_json(moments).alias("arrived"),
        ]
