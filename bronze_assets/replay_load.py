"""Replays: quarantined rows, read as the source gave them, judged by the rules of now and loaded where they pass.

One batch, by the walk of every batch: rows → what has become of the quarantined rows → audit row. Its source state is
the quarantine at one version. What an interrupted replay has loaded is taken back, unless the quarantine knows of it.
"""

from __future__ import annotations

import datetime as dt
import functools
import logging
import operator
from collections.abc import Mapping
from dataclasses import replace

from pyspark.sql import Column as SparkColumn
from pyspark.sql import DataFrame, SparkSession, Window
from pyspark.sql import functions as F
from pyspark.sql import types as T

from bronze_assets import quality
from bronze_assets.attempt import Attempt
from bronze_assets.audit import LoadRecord
from bronze_assets.batches import Batch
from bronze_assets.errors import ConservationError
from bronze_assets.file_frames import PlacedFrames
from bronze_assets.frames import ACTIVE, OUTCOME, OUTCOMES, READ
from bronze_assets.lakehouse import FOLDED, OPEN, QUARANTINE, QUARANTINE_IDENTITY, REPLAYED
from bronze_assets.privacy.protection import Protection
from bronze_assets.quality import EXPECTED, LINE, raw_column
from bronze_assets.schema_versions import SchemaVersions
from bronze_assets.sources.files import OPERATION, POSITION, SPARKS_OWN, VALUES, lines_again, micros, parsed
from bronze_assets.sources.packing import FILE
from bronze_assets.sources.scope import ReplayScope
from bronze_assets.table import RESCUED, BronzeTable
from bronze_assets.workbench import current_partition

logger = logging.getLogger(__name__)

HELD = "__held"
"""Which quarantined row a row is of: a struct of `QUARANTINE_IDENTITY`."""
_BEFORE = "__before"
_COPIES = "__copies"
_LAST = "__last"
_FRESH = "__fresh"
_OPENED = "__opened_"
_TEXTS = "map<string, string>"
_POSITION_DIGITS = 20
KEY = "key_text"
CORRECTED = "corrected"


class ReplayFrames(PlacedFrames):
    """Every frame of one replay.

    Args:
        held: quarantined rows, with the columns of `lakehouse.QUARANTINE`.
        corrected: `KEY`, and the texts by column, `CORRECTED`, that come in the place of the quarantined rows of that
            key; None replays the rows as they are.
        versions: the row versions that the table has, without this batch's own; None if it has none.
        extra: undeclared columns that the table has, and their types.
    """

    def __init__(
        self,
        session: SparkSession,
        table: BronzeTable,
        held: DataFrame,
        corrected: DataFrame | None,
        *,
        scope: str,
        now: dt.datetime,
        today: dt.date,
        extra: Mapping[str, T.DataType],
        versions: DataFrame | None,
        protection: Protection | None,
    ) -> None:
        super().__init__(
            session,
            table,
            scope=scope,
            now=now,
            today=today,
            extra=list(extra),
            protection=protection,
        )
        self._types = {c.name: c.type for c in table.columns} | {name: extra[name] for name in self.extra}
        self._hidden = sorted(quality.hidden(table, self.extra))
        self._held = held
        self._corrected = corrected
        self._versions = versions
        self._captured = table.feed is not None and table.feed.captured

    def rows(self) -> DataFrame:
        """The quarantined rows, each once, and in `__copies` how many rows of the source it stands for."""
        copies = F.lit(1) if self._corrected is not None else F.greatest(F.max("rows_in_batch"), F.lit(1)).cast("int")
        rows = self._held.groupBy(*QUARANTINE_IDENTITY).agg(
            F.any_value("raw_row").alias("raw_row"),
            F.any_value("reasons").alias(_BEFORE),
            F.any_value("operation").alias(OPERATION),
            F.any_value("rescued_data").alias(RESCUED),
            F.max(F.struct("last_seen", "last_batch_id")).alias(_LAST),
            copies.alias(_COPIES),
        )
        if self._corrected is not None:
            rows = rows.join(self._corrected, F.col("row_key") == F.col(KEY)).drop(KEY)
        return rows.withColumn(HELD, F.struct(*QUARANTINE_IDENTITY)).drop(*QUARANTINE_IDENTITY)

    def judged(self) -> DataFrame:
        """The quarantined rows with broken rules, score and hash; a captured deletion has no `READ`."""
        rows = self.rows()
        rows = self._as_they_came(rows) if self._corrected is None else self._as_corrected(rows)
        judged = self._judge(self._typed(rows))
        deletion = F.col(OPERATION).eqNullSafe("d") & ~F.col(quality.QUARANTINED)
        return judged.withColumn(READ, F.when(~deletion, True))

    def outcomes(self, judged: DataFrame, _versions: DataFrame | None) -> DataFrame:
        """The judged rows with their outcome."""
        # Snapshots have one position where a server commits asynchronously; when they were taken tells them apart.
        order = [F.col(quality.QUARANTINED), F.col(_LAST)["last_seen"].desc(), F.col("record_hash")]
        ranked = Window.partitionBy(*self._keys, POSITION).orderBy(*order)
        judged = judged.withColumn("__rank", F.row_number().over(ranked))
        duplicate, unchanged = F.col("__rank") > 1, F.lit(False)
        if self._versions is not None:
            versions = self._of_same_keys(self._versions, judged)
            there = versions.groupBy(
                *(F.col(k).alias(f"__there_{k}") for k in self._keys), F.col("source_position").alias("__there")
            ).agg(F.collect_set("batch_id").alias("__there_by"), F.max("load_timestamp").alias("__there_at"))
            same = [F.col(k) == F.col(f"__there_{k}") for k in self._keys] + [F.col(POSITION) == F.col("__there")]
            judged = judged.join(there, same, "left")
            last = F.col(_LAST)
            seen_together = F.array_contains("__there_by", last["last_batch_id"])
            seen = F.col(FILE).isNotNull() | seen_together | (F.col("__there_at") > last["last_seen"])
            duplicate = duplicate | (F.col("__there").isNotNull() & seen)
            if self._table.files is None:
                judged = self._with_neighbours(judged, versions)
                unchanged = F.col(FILE).isNull() & F.coalesce(F.col("__same"), F.lit(False))
        judged = judged.withColumn(READ, F.when(F.col(READ).isNotNull() | duplicate, True))
        outcome = (
            F.when(F.col(quality.QUARANTINED), OUTCOMES["quarantined"])
            .when(duplicate, OUTCOMES["duplicates"])
            .when(F.col(READ).isNull(), OUTCOMES["deleted"])
            .when(unchanged, OUTCOMES["unchanged"])
            .otherwise(OUTCOMES["loaded"])
        )
        return judged.withColumn(OUTCOME, self._outcome(outcome))

    def fates(self, outcomes: DataFrame, batch_id: str) -> DataFrame:
        """What has become of each quarantined row, for `Lakehouse.settle_quarantined`."""
        columns = outcomes.columns
        kept = F.lit(True) if self._corrected is not None else _was_line(F.col(_BEFORE))
        rows = outcomes.withColumn("__reasons", F.when(~kept, quality.reasons(self._table, columns)))
        each = rows.groupBy(HELD).agg(
            F.max(F.col(OUTCOME) == OUTCOMES["quarantined"]).alias("__bad"),
            F.max(F.col(OUTCOME) == OUTCOMES["erased"]).alias("__gone"),
            F.any_value("__reasons", ignoreNulls=True).alias("__reasons"),
        )
        rule_set = quality.fingerprint(self._table)
        fate = F.when(F.col("__gone"), "erased").when(F.col("__bad"), OPEN).otherwise(REPLAYED)
        new_rule_set = F.lit(None).cast("string")
        if self._corrected is None:
            # Under the rules of now they may be one row that was seen under several.
            held = F.col(HELD)
            place = F.when(held["file_name"].isNotNull(), held["source_position"])
            same = Window.partitionBy("__bad", held["row_key"], held["row_hash"], held["file_name"], place)
            latest = [(held["rule_set"] == rule_set).desc(), held["source_position"].desc(), held["rule_set"]]
            each = each.withColumn("__number", F.row_number().over(same.orderBy(*latest)))
            fate = F.when(F.col("__bad") & (F.col("__number") > 1), FOLDED).otherwise(fate)
            new_rule_set = F.when(F.col("__bad"), rule_set)
        return each.select(
            f"{HELD}.*",
            fate.alias("fate"),
            F.lit(1).alias("tried"),
            F.when(F.col("__bad"), F.col("__reasons")).alias("reasons"),
            new_rule_set.alias("new_rule_set"),
            F.lit(batch_id).alias("replay_batch_id"),
            *nothing_said("dismissed_by", "dismissed_at", "dismissed_because"),
        )

    def _as_they_came(self, rows: DataFrame) -> DataFrame:
        """The rows with their texts by column (`VALUES`), or as a line that is none."""
        rows = rows.withColumn(VALUES, F.from_json("raw_row", _TEXTS)).drop("raw_row")
        rows = rows.withColumns({LINE: F.col(VALUES)[LINE], EXPECTED: F.lit(None).cast("string")})
        if self._protection is not None:
            rows = self._opened(rows, self._protection)
        if self._captured:
            # Of rows of before it was recorded: a deletion would come back as a row of nothing.
            others = [F.col(VALUES)[name].isNull() for name in self._types if name not in self._keys]
            file = F.col(HELD)["file_name"].isNotNull()
            nothing = functools.reduce(operator.and_, others, F.col(OPERATION).isNull() & file)
            rows = _refused(rows, nothing, "a change of which is known whether it deletes")
        rows = rows.withColumns({_FRESH: F.lit(False), "__told": F.col(LINE).isNotNull() & F.col(EXPECTED).isNull()})
        feed = self._table.feed
        if feed is not None and not feed.captured:
            rows = _apart(rows)
            json = F.lower(F.col(HELD)["file_name"]).rlike(r"\.jsonl?(\.gz)?$")
            again = F.coalesce(F.col("__told") & json, F.lit(False))
            lines = rows.where(again).withColumn("value", F.col(LINE)).drop(LINE, VALUES, EXPECTED, _FRESH, RESCUED)
            carried = [name for name in lines.columns if name != "value"]
            retried = lines_again(lines, feed, list(self._types), carried).withColumn(_FRESH, F.lit(True))
            rows = rows.where(~again).unionByName(retried)
        expected = F.when(F.col(LINE).isNotNull(), F.col(_BEFORE)[0]["expected"])
        return rows.withColumn(EXPECTED, F.coalesce(EXPECTED, expected)).drop("__told")

    def _opened(self, rows: DataFrame, protection: Protection) -> DataFrame:
        """The rows with readable texts in the place of sealed ones."""
        sealed = {name: F.col(VALUES)[name] for name in self._hidden} | {LINE: F.col(LINE), RESCUED: F.col(RESCUED)}
        rows = rows.withColumns({f"{_OPENED}{name}": text for name, text in sealed.items()})
        opened = protection.unsealed(rows, {name: f"{_OPENED}{name}" for name in sealed}, F.col(HELD)["row_key"])
        lost = [F.col(f"{_OPENED}{name}").isNull() & text.isNotNull() for name, text in sealed.items()]
        # The quarantine did not always hold them; a column that joined later is in no row of before.
        declared = sorted(quality.protected(self._table))
        left_out = [F.col(LINE).isNull() & ~F.map_contains_key(VALUES, F.lit(name)) for name in declared]
        unreadable = functools.reduce(operator.or_, [*lost, *left_out])
        rows = opened.withColumn("__unreadable", F.coalesce(unreadable, F.lit(False)))
        plain = {LINE: F.col(f"{_OPENED}{LINE}"), RESCUED: F.col(f"{_OPENED}{RESCUED}")}
        sealed_line = F.when(F.col("__unreadable"), F.col(LINE))
        rows = rows.withColumns(plain | {"__sealed": sealed_line})
        rows = rows.withColumn(LINE, F.coalesce(LINE, "__sealed")).drop("__sealed")
        return _refused(rows, F.col("__unreadable"), "protected values that a key opens").drop("__unreadable")

    def _as_corrected(self, rows: DataFrame) -> DataFrame:
        nothing = F.lit(None).cast("string")
        return rows.drop("raw_row").withColumns(
            {
                VALUES: F.col(CORRECTED),
                LINE: nothing,
                EXPECTED: nothing,
                OPERATION: nothing,
                RESCUED: nothing,
                _FRESH: F.lit(True),
            }
        )

    def _typed(self, rows: DataFrame) -> DataFrame:
        """The rows as a source frame (see `quality`), a row for each that they stand for."""
        feed = self._table.feed or SPARKS_OWN
        selected: list[SparkColumn] = []
        for name, kind in self._types.items():
            text = F.col(VALUES)[name]
            if f"{_OPENED}{name}" in rows.columns:
                text = F.when(F.col(_FRESH), text).otherwise(F.col(f"{_OPENED}{name}"))
            text = F.when(F.col(LINE).isNull(), text)
            # What did not parse is there as it came, and anything else as Spark writes it.
            as_it_came = F.col(_FRESH) | _did_not_parse(F.col(_BEFORE), name)
            own = parsed(text, kind, SPARKS_OWN)
            theirs = parsed(text, kind, feed)
            value = F.when(as_it_came, theirs).otherwise(F.coalesce(own, theirs))
            selected.append(value.alias(name))
            if not isinstance(kind, T.StringType):
                selected.append(F.when(text.isNotNull() & value.isNull(), text).alias(raw_column(name)))
        held = F.col(HELD)
        kept = [name for name in (RESCUED,) if self._table.feed is not None]
        typed = _apart(rows).select(
            *selected,
            F.col(LINE).alias(raw_column(LINE)),
            EXPECTED,
            HELD,
            _BEFORE,
            _LAST,
            OPERATION,
            *kept,
            held["file_name"].alias(FILE),
            held["source_position"].alias(POSITION),
            F.explode(F.array_repeat(F.lit(1), F.col(_COPIES))).alias("__copy"),
        )
        if self._table.files is None or feed.event_time is None:
            return typed
        # Known only now, maybe: a value that did not parse then.
        rest = F.expr(f"substring({POSITION}, {_POSITION_DIGITS + 1})")
        moment = F.col(feed.event_time).cast("timestamp")
        return typed.withColumn(
            POSITION, F.when(moment.isNotNull(), F.concat(micros(moment), rest)).otherwise(F.col(POSITION))
        )

    def _of_same_keys(self, versions: DataFrame, judged: DataFrame) -> DataFrame:
        keys = judged.select(*(F.col(k).alias(f"__mine_{k}") for k in self._keys)).distinct()
        same = [F.col(k) == F.col(f"__mine_{k}") for k in self._keys]
        return versions.join(F.broadcast(keys), same, "left_semi")

    def _with_neighbours(self, judged: DataFrame, versions: DataFrame) -> DataFrame:
        """The rows with `__same`: whether the version before or after them says the same already."""
        keys = [f"__near_{k}" for k in self._keys]

        def narrow(frame: DataFrame, position: str, active: SparkColumn, *, stored: bool) -> DataFrame:
            return frame.select(
                *(F.col(k).alias(name) for k, name in zip(self._keys, keys, strict=True)),
                F.col(position).alias("__near"),
                F.col("record_hash").alias("__near_hash"),
                active.alias("__active"),
                F.lit(stored).alias("__stored"),
            )

        mine = judged.where(~F.col(quality.QUARANTINED) & (F.col("__rank") == 1))
        status = F.col("record_status") == ACTIVE
        all_rows = narrow(mine, POSITION, F.lit(True), stored=False).unionByName(
            narrow(versions, "source_position", status, stored=True)
        )
        order = Window.partitionBy(*keys).orderBy(F.col("__near"), F.col("__stored").desc())
        said = F.struct("__near_hash", "__active", "__stored")
        before, after = F.lag(said).over(order), F.lead(said).over(order)
        same_before = (before["__near_hash"] == F.col("__near_hash")) & before["__active"]
        same_after = (after["__near_hash"] == F.col("__near_hash")) & after["__active"] & after["__stored"]
        same = F.coalesce(same_before, F.lit(False)) | F.coalesce(same_after, F.lit(False))
        near = all_rows.withColumn("__same", same).where(~F.col("__stored")).drop("__active", "__stored")
        on = [F.col(k) == F.col(name) for k, name in zip(self._keys, keys, strict=True)]
        on += [F.col(POSITION) == F.col("__near"), F.col("record_hash") == F.col("__near_hash")]
        return judged.join(near, on, "left")

    def _bad_row(self, _judged: DataFrame, _position: str = "") -> SparkColumn:
        # The quarantine has the rows.
        return F.struct(F.lit(0).alias("nothing"))

    def _possible(self, _outcomes: DataFrame) -> list[str]:
        return ["loaded", "quarantined", "duplicates", "unchanged"] + (["deleted"] if self._captured else [])

    def _added(self) -> list[SparkColumn]:
        return [self._rescued()] if self._table.feed is not None else []


def nothing_said(*names: str) -> list[SparkColumn]:
    """NULL for these columns of the quarantine."""
    return [F.lit(None).cast(QUARANTINE[name].dataType).alias(name) for name in names]


def _apart(rows: DataFrame) -> DataFrame:
    """The same rows, below which the optimizer moves no filter.

    Before Spark 4.2 it puts the whole expression of a value into a filter wherever that names it, with each step of
    what was opened and refused, until the heap is full of copies. A chance that is none keeps it off; it sees through
    `rand() < 2`.
    """
    return rows.withColumn(_COPIES, F.when(F.rand() + 1 > 0, F.col(_COPIES)))


def _was_line(reasons: SparkColumn) -> SparkColumn:
    return F.exists(reasons, lambda reason: reason["column"].eqNullSafe(LINE))


def _did_not_parse(reasons: SparkColumn, name: str) -> SparkColumn:
    return F.exists(
        reasons, lambda reason: (reason["rule"] == quality.PARSED) & (reason["column"].eqNullSafe(F.lit(name)))
    )


def _refused(rows: DataFrame, refused: SparkColumn, expected: str) -> DataFrame:
    """The same rows; those that are refused are no rows any more, but lines of which something else was expected."""
    return rows.withColumns(
        {
            LINE: F.when(refused, F.coalesce(F.col(LINE), F.to_json(VALUES))).otherwise(F.col(LINE)),
            EXPECTED: F.when(refused, expected).otherwise(F.col(EXPECTED)),
        }
    )


class ReplayLoad:
    """The batch of one replay.

    Args:
        condition: which open rows of the quarantine are replayed.
        chosen: the same in words that name no key.
        corrected: see `ReplayFrames`.
    """

    def __init__(
        self, attempt: Attempt, condition: SparkColumn, chosen: str, corrected: DataFrame | None = None
    ) -> None:
        self._attempt = attempt
        self._condition = condition
        self._scope = ReplayScope(chosen)
        self._corrected = corrected

    def load(self) -> LoadRecord:
        """Replay the rows; nothing is begun if there are none."""
        attempt, bench, table = self._attempt, self._attempt.bench, self._attempt.table
        bench.lake.ensure(bench.session, table)
        size = bench.lake.size(table.schema, table.name)
        frames = self._frames(attempt.versions(size.rows, size.version, without="false"))
        rows, copies = self._expected(frames)
        if not rows:
            return self._nothing()
        started = bench.clock()
        partition = current_partition(table.cadence, bench.moment())
        batch_id = attempt.log.next_id(partition)
        batch = attempt.batch = attempt.log.begin(batch_id, partition, attempt.run.id, self._scope, "")
        logger.info("%s: batch %s: %s, %d quarantined rows", table.name, batch_id, self._scope, rows)

        def complete(record: LoadRecord) -> LoadRecord:
            known = record.read + record.deleted
            if known != copies or not record.conserved:
                raise ConservationError(
                    f"batch {batch_id} replayed {copies} rows, of which {known} are accounted for.",
                    "report this as a defect; the next load takes the batch back.",
                    table=table.name,
                )
            return record

        def settle(_record: LoadRecord) -> None:
            fates = frames.fates(frames.outcomes(frames.judged(), None), batch_id)
            settled = bench.lake.settle_quarantined(fates, table, batch_id)
            if settled != rows:
                raise ConservationError(
                    f"batch {batch_id} replayed {rows} quarantined rows, of which {settled} are settled.",
                    "report this as a defect; the next load takes the batch back.",
                    table=table.name,
                )

        record = attempt.commit(
            batch,
            frames,
            started=started,
            versions=None,
            base=size.version,
            position="",
            replace_where=None,
            input_bytes=size.bytes,
            complete=complete,
            settle=settle,
        )
        assert record is not None
        return attempt.finish(batch, record)

    def dry_run(self) -> LoadRecord:
        """What a replay would do now; nothing is written."""
        attempt, bench, table = self._attempt, self._attempt.bench, self._attempt.table
        size = bench.lake.size(table.schema, table.name)
        frames = self._frames(attempt.versions(size.rows, size.version, without="false"))
        counted, told = frames.counted(frames.outcomes(frames.judged(), None))
        counted.write.format("noop").mode("overwrite").save()
        record = frames.record(told(), attempt.partition, "", attempt.started, bench.clock(), "")
        return replace(record, dry_run=True)

    def _frames(self, versions: DataFrame | None) -> ReplayFrames:
        attempt, bench, table = self._attempt, self._attempt.bench, self._attempt.table
        lake = bench.lake
        version = lake.version(table.schema, table.quarantine_name)
        held = lake.read(bench.session, table.schema, table.quarantine_name, version=version)
        stored = lake.read(bench.session, table.schema, table.name).schema
        return ReplayFrames(
            bench.session,
            table,
            with_all_columns(held).where(self._condition),
            self._corrected,
            scope=str(self._scope),
            now=attempt.started,
            today=bench.business_date(attempt.started),
            extra=SchemaVersions(lake, table, bench.clock).undeclared(stored),
            versions=versions,
            protection=attempt.protection,
        )

    @staticmethod
    def _expected(frames: ReplayFrames) -> tuple[int, int]:
        """Quarantined rows, and the rows of the source that they stand for."""
        found = frames.rows().agg(F.count(F.lit(1)), F.sum(_COPIES)).first()
        assert found is not None
        return int(found[0]), int(found[1] or 0)

    def _nothing(self) -> LoadRecord:
        attempt, table = self._attempt, self._attempt.table
        now = attempt.bench.clock()
        partition = attempt.partition
        return LoadRecord(table.name, table.schema, partition, "", str(self._scope), attempt.started, now)


def with_all_columns(held: DataFrame) -> DataFrame:
    """A quarantine as it is, with the columns that it lacks since it was made earlier."""
    missing = [name for name in QUARANTINE.names if name not in held.columns]
    return held.select("*", *nothing_said(*missing)).withColumn("state", F.coalesce("state", F.lit(OPEN)))


def resume_replay(attempt: Attempt, batch: Batch) -> None:
    """Finish an interrupted replay if the quarantine knows what has become of its rows, else take it back: they are
    open as before, for the next replay.
    """
    lake, table = attempt.bench.lake, attempt.table
    attempt.batch = batch
    if batch.record is not None and lake.committed(table.schema, table.quarantine_name, batch.id) is not None:
        logger.info("%s: batch %s: the replay is settled, finishing it", table.name, batch.id)
        attempt.finish(batch, replace(batch.record, resumed=True))
        return
    logger.info("%s: batch %s: interrupted replay, taking it back", table.name, batch.id)
    if lake.committed(table.schema, table.name, batch.id) is not None:
        lake.remove_batch(attempt.bench.session, table, batch.id)
    attempt.log.note(batch, "failed", run_id=attempt.run.id)
