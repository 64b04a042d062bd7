"""Files as a source: claimed files as one source frame, whatever their formats.

Every value is read as text and then parsed as its declared type, by the same rules for CSV, JSON and Parquet. So the
same file gives the same rows whatever arrived before it. A value that does not parse is NULL, and its text stands in
`quality.raw_column(name)`; a line that is no row at all stands in `raw_column(LINE)`, and `EXPECTED` says what was
expected there.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pyspark.sql import Column as SparkColumn
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F
from pyspark.sql import types as T

from bronze_assets.quality import EXPECTED, LINE, raw_column
from bronze_assets.sources.inspection import Inspected
from bronze_assets.sources.landing import LandingZone
from bronze_assets.table import RESCUED, BronzeTable, Feed

FILE = "__file"
POSITION = "__position"
ARRIVED = "__arrived"
OPERATION = "__operation"
UNKNOWN = "__unknown"
CARRIED = "__carried"
_VALUES = "__values"
_KEYS = "__keys"
_UTF8 = "__utf8"
_CAPTURE_FIELDS = (
    "__op",
    "__deleted",
    "__source_lsn",
    "__source_ts_ms",
    "__commit_lsn",
    "__seq",
    "__source_epoch",
    "__unchanged",
)
_WHOLE = r"^[+-]?[0-9]+$"
_DATE = r"^[0-9]{4}-[0-9]{2}-[0-9]{2}Z?$"
_TIMESTAMP = r"^[0-9]{4}-[0-9]{2}-[0-9]{2}[ T][0-9]{2}:[0-9]{2}:[0-9]{2}(\.[0-9]{1,6})?(Z|[+-][0-9]{2}(:?[0-9]{2})?)?$"


@dataclass(frozen=True)
class ClaimedFiles:
    """The source state of a file batch: files that it has claimed, all readable.

    Attributes:
        epochs: source epoch → its ordinal, for captured changes.
        staging: a folder of this batch, for copies of files that Spark cannot read where they lie.
    """

    zone: LandingZone
    files: Sequence[Inspected]
    epochs: Mapping[str, int]
    staging: Path

    def read(self, session: SparkSession, table: BronzeTable, extra: Mapping[str, T.DataType]) -> DataFrame:
        """The rows of all files as a source frame: declared and extra columns, raw companions, then

        - `FILE`, the file's name, and `ARRIVED`, when the row was committed at the source or the file was written;
        - `POSITION`, what `source_position` becomes;
        - `OPERATION`, of captured changes: `c`, `u`, `r`, `d` or `t`; NULL otherwise;
        - `UNKNOWN`, names that are neither declared nor extra, as an array; NULL if there are none;
        - `RESCUED`, the values under these names as a JSON object, for a table that is not captured;
        - `CARRIED`, names of the columns that a change leaves as they were; NULL if there are none.

        Args:
            extra: undeclared columns that the table has, and their types.
        """
        feed = table.feed
        assert feed is not None
        known = [*(c.name for c in table.columns), *extra]
        groups: dict[tuple[str, tuple[str, ...], bool], list[Inspected]] = {}
        for file in self.files:
            groups.setdefault((file.file.format, file.columns, file.multiline), []).append(file)
        frames = []
        numbers = itertools.count(1)
        for (kind, columns, multiline), members in groups.items():
            located = self._locate(members, numbers)
            paths = list(located)
            if kind == "json":
                frame = _json(session, paths, feed)
            elif kind == "csv":
                frame = _csv(session, paths, columns, multiline)
            else:
                frame = _parquet(session, paths)
            frames.append(self._with_file(session, frame, located))
        return _typed(functools.reduce(DataFrame.unionByName, frames), table, feed, known, extra, self.epochs)

    def _locate(self, files: Sequence[Inspected], numbers: itertools.count[int]) -> dict[str, tuple[str, Inspected]]:
        """Path for Spark → the path's last two parts, and the file."""
        located = {}
        for file in files:
            path, ending = self.zone.readable_by_spark(file.file, self.staging, next(numbers))
            located[path] = (ending, file)
        return located

    @staticmethod
    def _with_file(session: SparkSession, frame: DataFrame, located: Mapping[str, tuple[str, Inspected]]) -> DataFrame:
        rows = [(ending, file.file.path, file.file.modified) for ending, file in located.values()]
        names = session.createDataFrame(rows, f"__ending string, {FILE} string, {ARRIVED} timestamp")
        return frame.join(F.broadcast(names), "__ending").drop("__ending")


def _ending() -> SparkColumn:
    return F.regexp_extract(F.col("_metadata.file_path"), "([^/]+/[^/]+)$", 1).alias("__ending")


def _json(session: SparkSession, paths: Sequence[str], feed: Feed) -> DataFrame:
    """Text, and not Spark's JSON source: that takes `{"a":1} {"a":2}` for one row, a repeated key for its last value,
    and bends numbers to doubles (tried, 4.2).
    """
    reader = session.read.option("wholetext", str(feed.multiline).lower()).option("lineSep", "\n")
    lines = reader.text(list(paths)).select(
        # Spark's functions on text put U+FFFD in the place of what is not UTF-8, without a word.
        F.is_valid_utf8("value").alias(_UTF8),
        F.regexp_replace(F.col("value"), "^\\x{FEFF}|\\r$", "").alias(LINE),
        _ending(),
    )
    lines = lines.where(~F.col(LINE).rlike(r"^\s*$"))
    parsed = F.try_parse_json(F.col(LINE))
    if feed.multiline:
        items = F.expr(f"coalesce(try_cast(try_parse_json({LINE}) as array<variant>), array(try_parse_json({LINE})))")
        lines = lines.withColumn("__item", F.explode(items))
        parsed = F.col("__item")
        lines = lines.withColumn(LINE, F.coalesce(F.expr("to_json(__item)"), F.col(LINE)))
    values = lines.withColumn("__parsed", parsed).withColumn(
        _VALUES, F.expr("try_cast(__parsed as map<string, string>)")
    )
    keys = F.transform(F.map_keys(_VALUES), F.lower)
    values = values.withColumn(_KEYS, keys)
    whole = F.expr(f"json_array_length(concat('[', {LINE}, ']')) = 1")
    expected = (
        F.when(~F.col(_UTF8), "UTF-8 text")
        .when(F.col(_VALUES).isNull(), _expected_of_no_object())
        .when(~F.coalesce(whole, F.lit(False)), "nothing after the JSON object")
        .when(F.size(_KEYS) != F.size(F.array_distinct(_KEYS)), "each name once, whatever its case")
    )
    return values.select(
        F.when(expected.isNull(), F.map_from_arrays(_KEYS, F.map_values(_VALUES))).alias(_VALUES),
        F.when(expected.isNotNull(), F.col(LINE)).alias(LINE),
        expected.alias(EXPECTED),
        "__ending",
    )


def _expected_of_no_object() -> SparkColumn:
    keys = F.json_object_keys(F.col(LINE))
    return (
        F.when(F.size(keys) != F.size(F.array_distinct(keys)), "each name once")
        .when(F.col(LINE).rlike(r"^\s*\{"), "a whole JSON object")
        .otherwise("a JSON object")
    )


def _csv(session: SparkSession, paths: Sequence[str], columns: Sequence[str], multiline: bool) -> DataFrame:
    names = [f"c{number}" for number in range(len(columns))]
    schema = T.StructType([T.StructField(name, T.StringType()) for name in [*names, LINE]])
    reader = session.read.schema(schema).options(
        header=True,
        enforceSchema=True,
        mode="PERMISSIVE",
        columnNameOfCorruptRecord=LINE,
        # RFC 4180: a quote within quotes is doubled. Spark's default is a backslash.
        escape='"',
        multiLine=multiline,
        maxCharsPerColumn=-1,
        # What is quoted and empty is an empty text, what is empty is NULL.
        nullValue="",
        emptyValue="",
    )
    frame = reader.csv(list(paths)).select("*", _ending())
    pairs = itertools.chain.from_iterable(
        (F.lit(column.lower()), F.col(name)) for column, name in zip(columns, names, strict=True)
    )
    ragged = F.col(LINE).isNotNull()
    return frame.select(
        F.when(~ragged, F.create_map(*pairs)).alias(_VALUES),
        F.col(LINE),
        F.when(ragged, f"the {len(columns)} values of the header").alias(EXPECTED),
        "__ending",
    )


def _parquet(session: SparkSession, paths: Sequence[str]) -> DataFrame:
    frame = session.read.parquet(*paths).select("*", _ending())
    pairs: list[SparkColumn] = []
    for field in frame.schema.fields:
        if field.name == "__ending":
            continue
        value = F.col("`" + field.name.replace("`", "``") + "`")
        nested = isinstance(field.dataType, (T.StructType, T.ArrayType, T.MapType))
        pairs += [F.lit(field.name.lower()), F.to_json(value) if nested else value.cast("string")]
    return frame.select(
        F.create_map(*pairs).alias(_VALUES),
        F.lit(None).cast("string").alias(LINE),
        F.lit(None).cast("string").alias(EXPECTED),
        "__ending",
    )


def _typed(
    frame: DataFrame,
    table: BronzeTable,
    feed: Feed,
    known: Sequence[str],
    extra: Mapping[str, T.DataType],
    epochs: Mapping[str, int],
) -> DataFrame:
    types = {c.name: c.type for c in table.columns} | dict(extra)
    selected: list[SparkColumn] = []
    for name, kind in types.items():
        text = F.col(_VALUES)[name]
        value = _parsed(text, kind, feed)
        selected.append(value.alias(name))
        if not isinstance(kind, T.StringType):
            selected.append(F.when(text.isNotNull() & value.isNull(), text).alias(raw_column(name)))
    selected += [F.col(LINE).alias(raw_column(LINE)), F.col(EXPECTED), F.col(FILE)]
    mine = [*known, *(_CAPTURE_FIELDS if feed.captured else ())]
    strange = F.map_filter(F.col(_VALUES), lambda key, _: ~key.isin(mine))
    strangers = F.array_sort(F.map_keys(strange))
    selected.append(F.when(F.size(strangers) > 0, strangers).alias(UNKNOWN))

    def field(name: str) -> SparkColumn:
        return F.col(_VALUES)[name]

    if feed.captured:
        epoch = F.lit(max(epochs.values(), default=1))
        for known_epoch, ordinal in epochs.items():
            epoch = F.when(field("__source_epoch") == known_epoch, ordinal).otherwise(epoch)
        # Debezium's records name the change's own position only.
        lsn = F.coalesce(field("__commit_lsn"), field("__source_lsn")).try_cast("long")
        sequence = F.coalesce(field("__seq").try_cast("long"), F.lit(1))
        position = F.concat_ws(
            "/",
            F.lpad(epoch.cast("string"), 4, "0"),
            F.lpad(F.hex(F.coalesce(lsn, F.lit(0))), 16, "0"),
            F.lpad(sequence.cast("string"), 10, "0"),
        )
        operation = F.when(field("__deleted") == "true", "d").otherwise(F.coalesce(field("__op"), F.lit("c")))
        arrived = F.coalesce(F.timestamp_millis(field("__source_ts_ms").try_cast("long")), F.col(ARRIVED))
        carried = F.from_json(field("__unchanged"), "array<string>")
    else:
        moment = F.col(ARRIVED)
        if feed.event_time is not None:
            event_time = _parsed(F.col(_VALUES)[feed.event_time], types[feed.event_time], feed)
            moment = F.coalesce(event_time.cast("timestamp"), moment)
        micros = F.lpad(F.greatest(F.unix_micros(moment), F.lit(0)).cast("string"), 20, "0")
        position = micros if feed.event_time is not None else F.concat_ws("/", micros, F.col(FILE))
        operation = F.lit(None).cast("string")
        arrived = F.col(ARRIVED)
        carried = F.lit(None).cast("array<string>")
        selected.append(F.when(F.size(strangers) > 0, F.to_json(strange)).alias(RESCUED))
    selected += [
        position.alias(POSITION),
        operation.alias(OPERATION),
        arrived.alias(ARRIVED),
        carried.alias(CARRIED),
    ]
    return frame.select(*selected)


def _parsed(text: SparkColumn, kind: T.DataType, feed: Feed) -> SparkColumn:
    """The value of a text, or NULL where it is none of that type: nothing is rounded, cut or guessed."""
    match kind:
        case T.StringType():
            return text
        case T.BooleanType():
            return F.when(F.lower(text).isin("true", "false"), text.try_cast("boolean"))
        case T.IntegerType() | T.LongType():
            return F.when(text.rlike(_WHOLE), text.try_cast(kind))
        case T.DecimalType():
            exact = text.try_cast(T.DecimalType(38, 18))
            fitted = exact.try_cast(kind)
            return F.when(fitted == exact, fitted)
        case T.DateType():
            if feed.date_format != "yyyy-MM-dd":
                return F.try_to_timestamp(text, F.lit(feed.date_format)).cast("date")
            value = F.when(text.rlike(_DATE), F.substring(text, 1, 10).try_cast("date"))
            if not feed.captured:
                return value
            # Debezium's default: days since 1970-01-01.
            days = F.when(text.rlike("^-?[0-9]{1,7}$"), F.date_from_unix_date(text.try_cast("int")))
            return F.coalesce(value, F.when(days.between("0001-01-01", "9999-12-31"), days))
        case T.TimestampType():
            if feed.timestamp_format != "yyyy-MM-dd HH:mm:ss":
                return F.try_to_timestamp(text, F.lit(feed.timestamp_format))
            return F.when(text.rlike(_TIMESTAMP), text.try_cast("timestamp"))
        case _:
            return text.try_cast(kind)
