"""The frames of one batch: its rows, read and judged once, then counted and split into versions and quarantine.

They run when the load writes them: the pass that writes the versions also counts and brings the quarantined rows along.
What a batch reads, and what its rows are compared with, is for `snapshot_frames` and `file_frames` to say.
"""

from __future__ import annotations

import abc
import datetime as dt
import functools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from pyspark.sql import Column as SparkColumn
from pyspark.sql import DataFrame, Observation, SparkSession, Window
from pyspark.sql import functions as F
from pyspark.sql import types as T

from bronze_assets import quality
from bronze_assets.audit import LoadRecord, RuleCount
from bronze_assets.lakehouse import OPEN, QUARANTINE
from bronze_assets.privacy.protection import ERASED, Protection
from bronze_assets.table import METADATA_COLUMNS, RESCUED, BronzeTable

ACTIVE = "ACTIVE"
DELETED = "DELETED"
EXAMPLES = 5
CAPTURED_ROWS = 1000
CAPTURED_BYTES = 4000
"""Quarantined rows that the counting pass brings along, and how long each may be as text: together at most 4 MB on the
driver. Where more or longer ones are bad, the source is read once more for them."""
# Numbers, since every row's is compared several times.
OUTCOMES = {"loaded": 0, "quarantined": 1, "duplicates": 2, "unchanged": 3, "deleted": 4, "erased": 5}
OUTCOME = "__outcome"
READ = "__read"
_CAPTURED = "captured"
_NOTED = "__noted"
"""A hash of the key of a row that is shown in a sample. By it, the same rows give the same samples whatever order Spark
reads them in."""
_BAD_ROW = T.StructType([QUARANTINE[name] for name in ("row_key", "row_hash", "raw_row", "reasons")])
_ORIGIN = ("file_name", "source_position", "operation", "rescued_data")
_BAD_FILE_ROW = T.StructType([*_BAD_ROW.fields, *(QUARANTINE[name] for name in _ORIGIN)])


@dataclass(frozen=True)
class _Sample:
    """Texts of some rows, which come along with the counts.

    Attributes:
        counted: the count that is 0 where there is none.
        text: is made of the rows that are shown, one by one, and so not compiled with the others' columns.
        order: NULL for rows that are not shown.
        most: so many at most.
    """

    name: str
    counted: str
    text: SparkColumn
    order: SparkColumn
    most: int


def _samples_while_counting(session: SparkSession) -> bool:
    """Whether `min_by` gives several values, as it does since Spark 4.2: no other function keeps a bounded number."""
    major, minor = session.version.split(".")[:2]
    return (int(major), int(minor)) >= (4, 2)


def _count_where(condition: SparkColumn) -> SparkColumn:
    """Like `count_if`, for which Spark adds a column to the rows."""
    return F.count(F.when(condition, F.lit(1)))


def _number(counts: Mapping[str, object], name: str) -> int:
    value = counts.get(name)
    return value if isinstance(value, int) else 0


def _beside_code(moment: dt.datetime, never: SparkColumn) -> SparkColumn:
    """A timestamp that Spark keeps beside the code it generates. A literal would stand in the code itself, so that each
    load had other code than the one before, to be generated, compiled and warmed up anew.

    Args:
        never: a condition of a column that no row holds, but of which Spark does not know that.
    """
    return F.array(F.lit(moment), F.lit(moment))[F.coalesce(never, F.lit(False)).cast("int")]


class Frames(abc.ABC):
    """Every frame of one batch.

    Args:
        session: where they run.
        scope: what of the source they hold, in words.
        now: the moment of the source state.
        today: the business date then.
        extra: columns of the frame that the table does not declare, and that are loaded.
        protection: of a table with protected columns; None for any other.
    """

    def __init__(
        self,
        session: SparkSession,
        table: BronzeTable,
        *,
        scope: str,
        now: dt.datetime,
        today: dt.date,
        extra: Sequence[str],
        protection: Protection | None,
    ) -> None:
        self._session = session
        self._table = table
        self._scope_text = scope
        self._now = now
        self._today = today
        self._keys = [c.name for c in table.key]
        self.extra = tuple(extra)
        self._protection = protection

    @abc.abstractmethod
    def judged(self) -> DataFrame:
        """The batch's rows with broken rules, score and hash; `READ` is NULL where a row is an event and no row."""

    @abc.abstractmethod
    def outcomes(self, judged: DataFrame, versions: DataFrame | None) -> DataFrame:
        """The judged rows with their outcome, and a row `deleted` for each key that is gone from the source.

        Args:
            versions: the row versions that the table has, without this batch's own; None if it has none.
        """

    @abc.abstractmethod
    def _possible(self, outcomes: DataFrame) -> list[str]:
        """The outcomes that there can be. Each count costs time for every row: what cannot be is not counted."""

    @abc.abstractmethod
    def _can_be_null(self, column: str) -> bool:
        """Whether the source may hold NULL there."""

    def _source_column(self, name: str, _columns: Sequence[str], _deleted: SparkColumn) -> SparkColumn:
        return F.col(name)

    def _file_name(self) -> SparkColumn | None:
        """The file of a row; None where rows come from none."""
        return None

    def _position(self, batch_position: str) -> SparkColumn:
        return F.lit(batch_position)

    def _told_of_file_row(self, _columns: Sequence[str]) -> list[SparkColumn]:
        """What the quarantine holds of a row of a file: `operation` and `rescued_data`."""
        return []

    def _more_counts(self) -> list[SparkColumn]:
        return []

    def _judge(self, frame: DataFrame, *, unique: bool = False) -> DataFrame:
        """The rows with broken rules, score and hash.

        Args:
            unique: whether no two of them have the same key.
        """
        if self._protection is not None:
            frame = self._protection.ready(frame, self.extra, unique=unique)
        return quality.judge(
            frame, self._table, extra=self.extra, today=self._today, now=self._now, sealed=self._protection
        )

    def _outcome(self, otherwise: SparkColumn) -> SparkColumn:
        """The outcome of a row, where its subject has not been forgotten."""
        if self._protection is None:
            return otherwise
        erased = F.coalesce(F.col(ERASED), F.lit(False)) & F.col(READ).isNotNull()
        return F.when(erased, OUTCOMES["erased"]).otherwise(otherwise)

    def counted(self, outcomes: DataFrame) -> tuple[DataFrame, Callable[[], dict[str, object]]]:
        """The same rows, and what tells the counts once they have been written."""
        possible = self._possible(outcomes) + ([] if self._protection is None else ["erased"])
        read = F.col(READ).isNotNull() if "deleted" in possible else F.lit(True)
        counts = [
            F.count(F.col(READ)).alias("read"),
            F.sum(F.when(read, F.col("data_quality_score"))).alias("score_sum"),
        ]
        counts += [_count_where(F.col(OUTCOME) == OUTCOMES[outcome]).alias(outcome) for outcome in possible]
        rules, breaks = quality.rules(self._table), quality.broken(self._table)
        warning = [rule.name for rule in rules if not rule.quarantines]
        if warning:
            counts.append(_count_where(breaks.any_set(warning) & ~F.col(quality.QUARANTINED)).alias("warned"))
        broken = {rule.name: breaks.is_set(rule.name) for rule in rules}
        noted = breaks.any_set(broken)
        if "duplicates" in possible:
            broken[quality.KEY_UNIQUE] = F.col(OUTCOME) == OUTCOMES["duplicates"]
            noted = noted | broken[quality.KEY_UNIQUE]
        counts += [_count_where(condition).alias(f"broken {name}") for name, condition in broken.items()]
        misses = quality.missing(self._table)
        for column in self._table.columns:
            if self._can_be_null(column.name):
                counts.append(_count_where(read & misses.is_set(column.name)).alias(f"null {column.name}"))
        counts += self._more_counts()
        noted = F.when(noted & F.col(self._keys[0]).isNotNull(), F.xxhash64(*self._keys))
        outcomes = outcomes.withColumn(_NOTED, noted)
        # As columns, for these are compiled: what `min_by` orders by is interpreted, for each row and each rule.
        orders = {name: f"{_NOTED}_{number}" for number, name in enumerate(broken)}
        outcomes = outcomes.withColumns({orders[name]: F.when(one, F.col(_NOTED)) for name, one in broken.items()})
        samples = [self._bad_rows(outcomes), *(self._examples(name, F.col(column)) for name, column in orders.items())]
        observation = Observation()
        if not _samples_while_counting(self._session):
            return outcomes.observe(observation, *counts), lambda: self._sampled(outcomes, samples, observation.get)
        counts += [
            F.call_function("min_by", sample.text, sample.order, F.lit(sample.most)).alias(sample.name)
            for sample in samples
        ]
        return outcomes.observe(observation, *counts), lambda: observation.get

    def _bad_rows(self, outcomes: DataFrame) -> _Sample:
        """The quarantined rows as JSON; NULL for one that is too long."""
        fitting = F.transform(
            F.array(F.to_json(self._bad_row(outcomes))),
            lambda text: F.when(F.octet_length(text) <= CAPTURED_BYTES, text),
        )
        order = F.when(F.col(OUTCOME) == OUTCOMES["quarantined"], F.lit(0))
        return _Sample(_CAPTURED, "quarantined", fitting[0], order, CAPTURED_ROWS)

    def _examples(self, name: str, order: SparkColumn) -> _Sample:
        text = F.concat_ws(", ", *(F.col(key).cast("string") for key in self._keys))
        return _Sample(f"examples {name}", f"broken {name}", text, order, EXAMPLES)

    def _sampled(
        self, outcomes: DataFrame, samples: Sequence[_Sample], counts: Mapping[str, object]
    ) -> dict[str, object]:
        """The counts with the samples, which take a pass of their own if there is anything to see."""
        # Of more bad rows than fit, none is of use.
        limits = {_CAPTURED: CAPTURED_ROWS}
        wanted = [s for s in samples if 0 < _number(counts, s.counted) <= limits.get(s.name, math.inf)]
        if not wanted:
            return dict(counts)
        each = [
            F.struct(
                F.lit(number).alias("number"),
                F.when(one.order.isNotNull(), one.text).alias("text"),
                one.order.cast("long").alias("order"),
            )
            for number, one in enumerate(wanted)
        ]
        shown = F.explode(F.filter(F.array(*each), lambda one: one["order"].isNotNull())).alias("one")
        rows = outcomes.select(shown).select("one.*")
        first = Window.partitionBy("number").orderBy("order")
        most = max(sample.most for sample in wanted)
        ranked = rows.withColumn("rank", F.row_number().over(first)).where(F.col("rank") <= most)
        found = ranked.agg(F.sort_array(F.collect_list(F.struct("number", "rank", "text")))).first()
        told: dict[str, list[str]] = {sample.name: [] for sample in wanted}
        for number, rank, text in found[0] if found is not None else ():
            if rank <= wanted[number].most:
                told[wanted[number].name].append(text)
        return {**counts, **told}

    def versions(self, counted: DataFrame, batch_id: str, position: str, now: dt.datetime) -> DataFrame:
        """The row versions to write: loaded rows, and a bare `DELETED` version of each key that is gone."""
        deleted = F.col(OUTCOME) == OUTCOMES["deleted"]
        columns = counted.columns
        source = [self._source_column(c.name, columns, deleted).alias(c.name) for c in self._table.columns]
        file_name = self._file_name()
        metadata = {
            "load_timestamp": _beside_code(now, F.col("data_quality_score") < 0),
            "update_timestamp": _beside_code(now, F.col("data_quality_score") < 0),
            "source_system": F.lit(self._table.source_system),
            "record_status": F.when(deleted, DELETED).otherwise(ACTIVE),
            "data_quality_score": F.when(~deleted, F.col("data_quality_score")),
            "batch_id": F.lit(batch_id),
            "file_name": F.lit(None).cast("string") if file_name is None else file_name,
            "record_hash": F.when(~deleted, F.col("record_hash")),
            "source_position": self._position(position),
        }
        rows = counted.where(F.col(OUTCOME).isin(OUTCOMES["loaded"], OUTCOMES["deleted"]))
        if self._protection is not None:
            rows = self._protection.unlocked(rows)
            names = [c.name for c in self._table.columns]
            source = [self._protection.written(n, value).alias(n) for n, value in zip(names, source, strict=True)]
            extra = [self._protection.written(name, F.col(name)).alias(name) for name in self.extra]
        else:
            extra = [F.col(name) for name in self.extra]
        return rows.select(*source, *(metadata[name].alias(name) for name in METADATA_COLUMNS), *extra, *self._added())

    def _rescued(self) -> SparkColumn:
        """Values under names that the table does not have: of a person, maybe, in a table with personal data."""
        rescued = F.col(RESCUED)
        return rescued if self._protection is None else self._protection.sealed(RESCUED, rescued).alias(RESCUED)

    def _added(self) -> list[SparkColumn]:
        """Columns of the table that are neither the source's nor metadata."""
        return []

    def quarantine(
        self, judged: DataFrame, counts: Mapping[str, object], batch_id: str, position: str, now: dt.datetime
    ) -> DataFrame:
        """The quarantined rows, identical ones together, with the columns of `lakehouse.QUARANTINE`.

        Args:
            counts: of the pass that counted; the rows that it brought along are not read again.
        """
        captured = counts.get(_CAPTURED)
        if isinstance(captured, list) and len(captured) == counts["quarantined"] and None not in captured:
            texts = self._session.createDataFrame([(text,) for text in captured], "text string")
            shape = _BAD_ROW if self._file_name() is None else _BAD_FILE_ROW
            parsed = F.from_json("text", shape, {"mode": "FAILFAST"})
        else:
            known = F.lit(False) if self._protection is None else F.col(ERASED)
            texts = judged.where(F.col(quality.QUARANTINED) & ~known)
            parsed = self._bad_row(judged, position)
        # The same values at two positions are two versions: a replay brings both back.
        place = [] if self._file_name() is None else ["file_name", "source_position"]
        identity = ["row_key", "row_hash", "rule_set", *place]
        rule_set = F.lit(quality.fingerprint(self._table)).alias("rule_set")
        bad = texts.select(parsed.alias("row")).select("row.*", rule_set)
        constants = {
            "batch_id": F.lit(batch_id),
            "source_system": F.lit(self._table.source_system),
            "first_seen": _beside_code(now, F.col("rows_in_batch") < 0),
            "last_seen": _beside_code(now, F.col("rows_in_batch") < 0),
            "last_batch_id": F.lit(batch_id),
            "sightings": F.lit(1).cast("long"),
            "state": F.lit(OPEN),
            "attempts": F.lit(0).cast("long"),
        }
        grouped = bad.groupBy(*identity).agg(
            F.any_value("raw_row").alias("raw_row"),
            F.any_value("reasons").alias("reasons"),
            F.count(F.lit(1)).alias("rows_in_batch"),
            *(F.any_value(name).alias(name) for name in _ORIGIN[len(place) :] if place),
        )
        if self._file_name() is None:
            constants |= {"source_position": F.lit(position)}
        there = {*grouped.columns, *constants}
        constants |= {f.name: F.lit(None).cast(f.dataType) for f in QUARANTINE.fields if f.name not in there}
        return grouped.withColumns(constants).select(*QUARANTINE.names)

    def _bad_row(self, judged: DataFrame, position: str = "") -> SparkColumn:
        columns = judged.columns
        file_name = self._file_name()
        origin = [] if file_name is None else [file_name, self._position(position), *self._told_of_file_row(columns)]
        return F.struct(
            quality.key_text(self._table).alias("row_key"),
            quality.row_hash(judged, self._table, self.extra, self._protection).alias("row_hash"),
            quality.raw_row(self._table, columns, self.extra, self._protection).alias("raw_row"),
            quality.reasons(self._table, columns).alias("reasons"),
            *(value.alias(name) for name, value in zip(_ORIGIN, origin, strict=False)),
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
        number = functools.partial(_number, counts)

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
            scope=self._scope_text,
            started=started,
            ended=ended,
            source_position=position,
            read=number("read"),
            loaded=number("loaded"),
            quarantined=number("quarantined"),
            duplicates=number("duplicates"),
            unchanged=number("unchanged"),
            erased=number("erased"),
            deleted=number("deleted"),
            warned=number("warned"),
            score_sum=number("score_sum"),
            rules=found,
            nulls={c.name: number(f"null {c.name}") for c in self._table.columns},
        )
