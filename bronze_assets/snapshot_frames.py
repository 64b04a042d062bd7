"""The frames of a snapshot load: the scope's rows, compared with the latest version of each key.

Only the search for keys that are missing from a past day runs by itself.
"""

from __future__ import annotations

import datetime as dt
import functools
import operator
from collections.abc import Mapping, Sequence
from dataclasses import replace

from pyspark.sql import Column as SparkColumn
from pyspark.sql import DataFrame, SparkSession, Window
from pyspark.sql import functions as F

from bronze_assets import quality
from bronze_assets.audit import LoadRecord
from bronze_assets.frames import ACTIVE, OUTCOME, OUTCOMES, READ, Frames
from bronze_assets.privacy.protection import Protection
from bronze_assets.sources.postgres import Snapshot, SourceTable
from bronze_assets.sources.scope import Scope
from bronze_assets.table import BronzeTable

_LATEST = "__latest"


class SnapshotFrames(Frames):
    """Every frame of one snapshot batch.

    Args:
        scope: what of the source they hold.
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
        protection: Protection | None,
    ) -> None:
        super().__init__(
            session,
            table,
            scope=str(scope),
            now=snapshot.taken,
            today=today,
            extra=tuple(source.extra),
            protection=protection,
        )
        self._snapshot = snapshot
        self._scope = scope
        self._connections = connections
        self._full_compare = full_compare
        self._source = source

    def judged(self) -> DataFrame:
        """The scope's rows with broken rules, score and hash."""
        frame = self._snapshot.read(self._session, self._source, self._table, self._scope, self._connections)
        return self._judge(frame, unique=self._source.unique).withColumn(READ, F.lit(True))

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
                # A protected value is compared by its HMAC, in the hash: the same one is another text each time.
                names = [c.name for c in self._table.columns if not (c.key or c.pii.protected)]
                same = functools.reduce(operator.and_, (F.col(n).eqNullSafe(latest[n]) for n in names), same)
            unchanged = F.coalesce((latest["record_status"] == ACTIVE) & same, F.lit(False))
        outcome = (
            F.when(F.col(READ).isNull(), F.when(gone, OUTCOMES["deleted"]))
            .when(F.col(quality.QUARANTINED), OUTCOMES["quarantined"])
            .when(duplicate, OUTCOMES["duplicates"])
            .when(unchanged, OUTCOMES["unchanged"])
            .otherwise(OUTCOMES["loaded"])
        )
        return judged.withColumn(OUTCOME, self._outcome(outcome))

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
        return replace(
            super().record(counts, partition, batch_id, started, ended, position),
            new_columns=self.extra,
        )

    def _possible(self, outcomes: DataFrame) -> list[str]:
        possible = ["loaded", "quarantined"]
        possible += [] if self._source.unique else ["duplicates"]
        return possible + (["unchanged", "deleted"] if _LATEST in outcomes.columns else [])

    def _can_be_null(self, column: str) -> bool:
        return not self._source.columns[column].not_null

    def _source_column(self, name: str, columns: Sequence[str], _deleted: SparkColumn) -> SparkColumn:
        stored = _stored(name)
        return F.coalesce(F.col(name), F.col(stored)) if stored in columns else F.col(name)


def _stored(key: str) -> str:
    return f"__stored_{key}"
