"""Files as a source: claimed files as one source frame, whatever their formats.

Every value is read as text and then parsed as its declared type, by the same rules for CSV, JSON and Parquet. So the
same file gives the same rows whatever arrived before it. A value that does not parse is NULL, and its text stands in
`quality.raw_column(name)`; a line that is no row at all stands in `raw_column(LINE)`, and `EXPECTED` says what was
expected there.
"""

from __future__ import annotations

import functools
import itertools
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pyspark.sql import Column as SparkColumn
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F
from pyspark.sql import types as T

from bronze_assets.quality import EXPECTED, LINE, raw_column
from bronze_assets.sources.inspection import Inspected, parquet_file, strange_type
from bronze_assets.sources.landing import LandedFile, LandingZone, staged
from bronze_assets.sources.packing import ANY, ARRIVED, FILE, NATURAL, Packed, UsualLines, is_packed, pack
from bronze_assets.spark_errors import SPARK_ERRORS
from bronze_assets.table import DATE_FORMAT, RESCUED, TIMESTAMP_FORMAT, BronzeTable, Feed

POSITION = "__position"
OPERATION = "__operation"
UNKNOWN = "__unknown"
CARRIED = "__carried"
UNAVAILABLE = "__debezium_unavailable_value"
VALUES = "__values"
"""Texts by column of a row, before they are parsed."""
_KEYS = "__keys"
_UTF8 = "__utf8"
_USUAL = "__usual"
_STRANGE = "__strange"
_POSITIONS = ("__commit_lsn", "__source_lsn")
_SAID = ("__op", "__deleted", "__source_ts_ms", "__seq", "__source_epoch", "__unchanged", "__previous_key")
_CAPTURE_FIELDS = (*_POSITIONS, *_SAID)
_USUAL_FIELDS = dict.fromkeys(_SAID, ANY) | dict.fromkeys(_POSITIONS, NATURAL) | {"__op": '"[crudt]"'}
# `$` would let a line's end pass.
_WHOLE = r"^[+-]?[0-9]+(\.0+)?\z"
# As many digits as a double tells apart.
_EXPONENT = r"^[+-]?[0-9][0-9.]{0,17}[eE][+-]?[0-9]{1,2}\z"
_DATE = r"^(?!0000)[0-9]{4}-[0-9]{2}-[0-9]{2}Z?\z"
_TIMESTAMP = (
    r"^(?!0000)[0-9]{4}-[0-9]{2}-[0-9]{2}[ T][0-9]{2}:[0-9]{2}:[0-9]{2}(\.[0-9]{1,6})?(Z|[+-][0-9]{2}(:?[0-9]{2})?)?\z"
)


SPARKS_OWN = Feed("")
"""Values as Spark writes them as text: what was quarantined or sealed holds them so."""


class UnreadableFiles(Exception):
    """Files that Spark does not read, whatever it reads beside them."""

    def __init__(self, files: Sequence[Inspected]) -> None:
        super().__init__(f"{len(files)} files")
        self.files = files


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
    _places: dict[str, str] = field(default_factory=dict)
    _packs: list[Packed] = field(default_factory=list)

    def read(self, session: SparkSession, table: BronzeTable, extra: Mapping[str, T.DataType]) -> DataFrame:
        """The rows of all files as a source frame: declared and extra columns, raw companions, then

        - `FILE`, the file's name, and `ARRIVED`, when the row was committed at the source or the file was written;
        - `POSITION`, what `source_position` becomes;
        - `OPERATION`, of captured changes: `c`, `u`, `r`, `d` or `t`; NULL otherwise;
        - `UNKNOWN`, names that are neither declared nor extra, as an array; NULL if there are none;
        - `RESCUED`, the values under these names as a JSON object;
        - `CARRIED`, names of the columns that a change leaves as they were; NULL if there are none.

        Args:
            extra: undeclared columns that the table has, and their types.
        """
        feed = table.feed
        assert feed is not None
        known = [*(c.name for c in table.columns), *extra]
        packed: list[Inspected] = []
        groups: dict[tuple[str, tuple[str, ...], str, bool], list[Inspected]] = {}
        for file in self.files:
            if is_packed(file, feed):
                packed.append(file)
            else:
                groups.setdefault((file.file.format, file.columns, file.types, file.multiline), []).append(file)
        usual = [[*known, *_CAPTURE_FIELDS[:-2]], [*known, *_CAPTURE_FIELDS]] if feed.captured else [known]
        types = {c.name: c.type for c in table.columns} | dict(extra)
        columns = _Columns({name: f"__text_{number}" for number, name in enumerate(types)})
        frames: list[DataFrame] = []
        by_column: list[DataFrame] = []
        typed: list[DataFrame] = []
        if packed:
            forms = UsualLines.of(types, feed, [c.name for c in table.key])
            if feed.captured:
                forms = UsualLines.of(types, feed, [c.name for c in table.key], _USUAL_FIELDS, _POSITIONS)
            pack = self._pack(packed, forms, feed)
            if pack.others is not None:
                frames.append(_json(_packed(session, pack.others, ["value"]), feed, usual, (FILE, ARRIVED)))
            if pack.usual is not None:
                rows = _packed(session, pack.usual, forms.columns.values())
                none = F.lit(None).cast("string")
                rows = rows.withColumns({LINE: none, EXPECTED: none})
                packs = _Columns(forms.columns, forms.exact, forms.sure)
                typed.append(_typed(rows, table, feed, types, self.epochs, packs))
        for (kind, header, _, multiline), members in groups.items():
            located = {self.place(file): file for file in members}
            paths = list(located)
            try:
                if kind == "json":
                    # A line separator of its own would end whole texts too.
                    ends = {} if feed.multiline else {"lineSep": "\n"}
                    texts = session.read.text(paths, wholetext=feed.multiline, **ends).select("value", _ending())
                    frame = _json(texts, feed, usual, ("__ending",))
                elif kind == "csv":
                    frame, texts_of = _csv(session, paths, header, multiline)
                else:
                    frame, texts_of = _parquet(session, paths)
            except SPARK_ERRORS as error:
                raise UnreadableFiles(members) from error
            if kind == "json":
                frames.append(self._with_file(session, frame, located))
            elif feed.captured:
                frames.append(self._with_file(session, _by_name(frame, texts_of), located))
            else:
                by_column.append(self._with_file(session, columns.of(frame, texts_of), located))
                columns = replace(columns, strange=columns.strange or not texts_of.keys() <= types.keys())
        if frames:
            together = functools.reduce(DataFrame.unionByName, frames)
            typed.append(_typed(together, table, feed, types, self.epochs))
        if by_column:
            together = functools.reduce(DataFrame.unionByName, by_column)
            typed.append(_typed(together, table, feed, types, self.epochs, columns))
        return functools.reduce(DataFrame.unionByName, typed)

    def unique(self, feed: Feed) -> bool:
        """Whether it is known that no two rows have the same key and position; of packed files it is, once read."""
        packs = bool(self._packs) and all(pack.unique for pack in self._packs)
        return all(packs if is_packed(file, feed) else file.unique for file in self.files)

    def place(self, file: Inspected) -> str:
        """The path under which Spark reads the file."""
        if file.file.path not in self._places:
            number = len(self._places) + 1
            if file.strange:
                place = str(_rewritten(self.zone, file.file, staged(self.staging, number, ".parquet")))
            else:
                place = self.zone.readable_by_spark(file.file, self.staging, number)
            self._places[file.file.path] = place
        return self._places[file.file.path]

    def _pack(self, files: Sequence[Inspected], usual: UsualLines, feed: Feed) -> Packed:
        if not self._packs:
            self._packs.append(pack(self.zone, files, self.staging, usual, feed))
        return self._packs[0]

    @staticmethod
    def _with_file(session: SparkSession, frame: DataFrame, located: Mapping[str, Inspected]) -> DataFrame:
        rows = [("/".join(path.split("/")[-2:]), file.file.path, file.file.modified) for path, file in located.items()]
        names = session.createDataFrame(rows, f"__ending string, {FILE} string, {ARRIVED} timestamp")
        # Left, and loud: an inner join would drop the rows of a file whose name Spark spells in another way.
        missing = F.raise_error(F.lit("a row of a file that was not claimed"))
        joined = frame.join(F.broadcast(names), "__ending", "left").drop("__ending")
        return joined.withColumn(FILE, F.coalesce(F.col(FILE), missing))


@dataclass(frozen=True)
class _Columns:
    """Rows that have a column of texts for each name, in the place of `VALUES`.

    Attributes:
        texts: name → its column.
        exact, sure: as in `UsualLines`.
        strange: whether there are other names, with their texts by name in a map, `__strange`; NULL where there are
            none.
    """

    texts: Mapping[str, str]
    exact: frozenset[str] = frozenset()
    sure: frozenset[str] = frozenset()
    strange: bool = False

    def of(self, frame: DataFrame, texts: Mapping[str, SparkColumn]) -> DataFrame:
        """Rows with these texts by name; none where there is a `LINE`."""
        whole = F.col(LINE).isNull()
        none = F.lit(None).cast("string")
        mine = [F.when(whole, texts.get(name, none)).alias(column) for name, column in self.texts.items()]
        others = F.lit(None).cast("map<string, string>")
        if strange := {name: text for name, text in texts.items() if name not in self.texts}:
            others = F.when(whole, _map(strange))
        return frame.select(*mine, others.alias(_STRANGE), LINE, EXPECTED, "__ending")


def _by_name(frame: DataFrame, texts: Mapping[str, SparkColumn]) -> DataFrame:
    """The same rows with these texts as `VALUES`; NULL where there is a `LINE`."""
    values = F.when(F.col(LINE).isNull(), _map(texts))
    return frame.select(values.alias(VALUES), LINE, EXPECTED, F.lit(False).alias(_USUAL), "__ending")


def _map(texts: Mapping[str, SparkColumn]) -> SparkColumn:
    return F.create_map(*itertools.chain.from_iterable((F.lit(name), text) for name, text in texts.items()))


def _ending() -> SparkColumn:
    return F.substring_index(F.col("_metadata.file_path"), "/", -2).alias("__ending")


def _packed(session: SparkSession, path: str, texts: Iterable[str]) -> DataFrame:
    columns = [*(f"`{name}` string" for name in texts), f"{FILE} string", f"{ARRIVED} timestamp"]
    return session.read.schema(", ".join(columns)).parquet(path)


def _json(texts: DataFrame, feed: Feed, usual_names: Sequence[Sequence[str]], carried: Sequence[str]) -> DataFrame:
    """Text, and not Spark's JSON source: that takes `{"a":1} {"a":2}` for one row, a repeated key for its last value,
    and bends numbers to doubles (tried, 4.2).

    Args:
        texts: `value`, a line or a whole text, beside the columns `carried`.
        usual_names: sets of names, in lower case and all known, that rows are expected to have.
    """
    # Else nobody could read the quarantine: Spark writes whatever bytes there are.
    value = F.make_valid_utf8("value")
    lines = texts.select(
        F.is_valid_utf8("value").alias(_UTF8),
        # Most lines have neither, and the expression takes longer than the parser.
        F.when(value.startswith("\ufeff") | value.endswith("\r"), F.regexp_replace(value, "^\\x{FEFF}|\\r$", ""))
        .otherwise(value)
        .alias(LINE),
        *carried,
    )
    lines = lines.where(F.col(LINE).startswith("{") | ~F.col(LINE).rlike(r"^\s*$"))
    # Before 4.2 the parser writes a question mark for half a character.
    parsed = F.when(~_half_character(LINE), F.try_parse_json(F.col(LINE)))
    whole = _whole(LINE)
    if feed.multiline:
        lines = lines.withColumn("__whole", whole).withColumn("__file", parsed)
        items = F.expr("try_cast(__file as array<variant>)")
        lines = lines.withColumn("__item", F.explode(F.coalesce(F.when(F.col("__whole"), items), F.array("__file"))))
        lines = lines.withColumn(LINE, F.coalesce(F.when(F.col("__whole"), F.expr("to_json(__item)")), F.col(LINE)))
        parsed, whole = F.col("__item"), F.col("__whole")
    values = lines.withColumn("__parsed", parsed).withColumn(
        VALUES, F.expr("try_cast(__parsed as map<string, string>)")
    )
    # Nearly every row is a flat object with the usual names: it is told at a glance, and the rest is left out.
    flat = F.instr(LINE, "}") == F.char_length(LINE)
    usual = F.map_keys(VALUES).isin([F.array(*map(F.lit, sorted(names))) for names in usual_names])
    suspect = F.col(LINE).rlike(r"[0-9][eE][0-9+-]|[0-9.]{39}")
    values = values.withColumn(_USUAL, F.coalesce(F.col(_UTF8) & flat & usual & ~suspect, F.lit(False)))
    values = values.withColumn(_KEYS, F.when(~F.col(_USUAL), F.transform(F.map_keys(VALUES), F.lower)))
    # Beyond that a variant holds a double: the last digits would be made up, or all of them.
    exponent = F.col(LINE).rlike(r"[0-9][0-9.]{14,}[eE]|[0-9.]{39,}|[eE][+-]?[0-9]{3,}")
    bent = exponent & F.expr("schema_of_variant(__parsed)").contains("DOUBLE")
    expected = (
        F.when(F.col(_USUAL), None)
        .when(~F.col(_UTF8), "UTF-8 text")
        .when(F.col("__parsed").isNotNull() & ~whole, "nothing after the JSON object")
        .when(F.col(VALUES).isNull(), _expected_of_no_object())
        .when(F.size(_KEYS) != F.size(F.array_distinct(_KEYS)), "each name once, whatever its case")
        .when(bent, "numbers of at most 38 digits, or 15 with an exponent")
    )
    values = values.withColumn(EXPECTED, expected)
    lower = F.map_from_arrays(_KEYS, F.map_values(VALUES))
    return values.select(
        F.when(F.col(_USUAL), F.col(VALUES)).when(F.col(EXPECTED).isNull(), lower).alias(VALUES),
        F.when(F.col(EXPECTED).isNotNull(), F.col(LINE)).alias(LINE),
        EXPECTED,
        _USUAL,
        *carried,
    )


def lines_again(lines: DataFrame, feed: Feed, known: Sequence[str], carried: Sequence[str]) -> DataFrame:
    """Lines of JSON that were no rows, tried again: `VALUES`, or the line and what was `EXPECTED` of it, and `RESCUED`.

    Args:
        lines: `value`, the line, beside the columns `carried`.
        known: names that are columns of the table.
    """
    rows = _json(lines, replace(feed, multiline=False), [known], carried)
    strange = F.map_filter(F.col(VALUES), lambda key, _: ~key.isin(list(known)))
    return rows.withColumn(RESCUED, F.when(F.size(strange) > 0, F.to_json(strange))).drop(_USUAL)


def _whole(text: str) -> SparkColumn:
    """Whether nothing follows the JSON value: Spark's parsers stop at its end, and at that of what it is put into."""
    alone = F.expr(f"json_array_length(concat('[', {text}, ']')) = 1")
    bracket = F.col(text).rlike(r"[}\]]\s*\]")
    inside = F.expr(f"""size(json_object_keys(concat('{{"":', {text}, '}}'))) = 1""")
    return F.coalesce(alone & (~bracket | inside), F.lit(False))


def _half_character(text: str) -> SparkColumn:
    """Whether one of two surrogates is escaped without the other."""
    whole = r"\\\\|\\u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}"
    half = F.regexp_replace(text, whole, " ").rlike(r"\\u[dD][89a-fA-F]")
    return F.when(F.col(text).contains("\\u"), half).otherwise(F.lit(False))


def _expected_of_no_object() -> SparkColumn:
    keys = F.json_object_keys(F.col(LINE))
    return (
        F.when(F.size(keys) != F.size(F.array_distinct(keys)), "each name once")
        .when(F.col("__parsed").isNull() & F.col(LINE).rlike(r"^\s*[{\[]"), "a whole and valid JSON object")
        .otherwise("a JSON object")
    )


def _csv(
    session: SparkSession, paths: Sequence[str], columns: Sequence[str], multiline: bool
) -> tuple[DataFrame, dict[str, SparkColumn]]:
    """Rows with `LINE`, where they do not have the columns, and `EXPECTED`; and the texts that they have by name."""
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
        # What is quoted and empty is an empty text, what is empty is NULL. (Both would be, were "" the text of NULL.)
        nullValue="\uffff\ufffe",
        emptyValue="",
        maxColumns=max(20_480, 2 * len(columns)),
    )
    expected = F.when(F.col(LINE).isNotNull(), f"the {len(columns)} values of the header")
    frame = reader.csv(list(paths)).select("*", _ending(), expected.alias(EXPECTED))
    return frame, {column.lower(): F.col(name) for column, name in zip(columns, names, strict=True)}


def _parquet(session: SparkSession, paths: Sequence[str]) -> tuple[DataFrame, dict[str, SparkColumn]]:
    """As `_csv`: a `LINE` is a row with texts that are none."""
    frame = session.read.parquet(*paths).select("*", _ending())
    texts: dict[str, SparkColumn] = {}
    valid = F.lit(True)
    for column in frame.schema.fields:
        if column.name == "__ending":
            continue
        value = F.col("`" + column.name.replace("`", "``") + "`")
        nested = isinstance(column.dataType, (T.StructType, T.ArrayType, T.MapType))
        text = F.to_json(value) if nested else value.cast("string")
        if isinstance(column.dataType, (T.FloatType, T.DoubleType)):
            # 12345678 as a double would be the text 1.2345678E7, which is no integer.
            whole = (value == F.floor(value)) & (F.abs(value) < 2**53)
            text = F.when(whole, value.cast("long").cast("string")).otherwise(text)
        texts[column.name.lower()] = text
        if isinstance(column.dataType, (T.StringType, T.BinaryType)):
            valid = valid & F.coalesce(F.is_valid_utf8(text), F.lit(True))
    named = {f"c{number}": (name, text) for number, (name, text) in enumerate(texts.items())}
    frame = frame.select(
        *(text.alias(column) for column, (_, text) in named.items()),
        F.when(~valid, F.make_valid_utf8(F.to_json(_map(texts)))).alias(LINE),
        F.when(~valid, "UTF-8 text").alias(EXPECTED),
        "__ending",
    )
    return frame, {name: F.col(column) for column, (name, _) in named.items()}


def _rewritten(zone: LandingZone, file: LandedFile, target: Path) -> Path:
    """A copy of a Parquet file with texts in the place of the types that Spark does not read."""
    with zone.open(file) as stream:
        parquet = parquet_file(stream)
        columns = [
            pa.field(column.name, pa.string() if strange_type(column.type) else column.type)
            for column in parquet.schema_arrow
        ]
        schema = pa.schema(columns)
        with pq.ParquetWriter(target, schema) as writer:
            for batch in parquet.iter_batches(batch_size=65_536):
                arrays = [_texts(array) if strange_type(array.type) else array for array in batch.columns]
                writer.write_batch(pa.RecordBatch.from_arrays(arrays, schema=schema))
    return target


def _texts(array: pa.Array) -> pa.Array:
    if pa.types.is_nested(array.type):
        texts = [None if value is None else json.dumps(value, default=str) for value in array.to_pylist()]
        return pa.array(texts, pa.string())
    if pa.types.is_float16(array.type):
        array = array.cast(pa.float32())
    if pa.types.is_timestamp(array.type):
        if array.type.tz is not None:
            array = array.cast(pa.timestamp("ns", "UTC"))
        # What is no more exact than microseconds looks as it does in other files.
        return pc.replace_substring_regex(array.cast(pa.string()), r"(\.[0-9]{6})000", r"\1")
    return array.cast(pa.string())


def _typed(
    frame: DataFrame,
    table: BronzeTable,
    feed: Feed,
    types: Mapping[str, T.DataType],
    epochs: Mapping[str, int],
    columns: _Columns | None = None,
) -> DataFrame:
    """The source frame of rows with `VALUES`, or with `columns` of texts in its place."""
    selected: list[SparkColumn] = []

    def said(name: str) -> SparkColumn:
        if columns is None:
            return F.col(VALUES)[name]
        return F.col(columns.texts[name]) if name in columns.texts else F.lit(None).cast("string")

    def value_of(name: str) -> SparkColumn:
        text, kind = said(name), types[name]
        return text.try_cast(kind) if columns is not None and name in columns.exact else parsed(text, kind, feed)

    for name, kind in types.items():
        text, value = said(name), F.col(name)
        raw = F.when(text.isNotNull() & value.isNull(), text)
        if columns is not None and name in columns.sure:
            raw = F.lit(None).cast("string")
        selected.append(value)
        if not isinstance(kind, T.StringType):
            selected.append(raw.alias(raw_column(name)))
    mine = [*types, *(_CAPTURE_FIELDS if feed.captured else ())]
    strange: SparkColumn | None = None
    if columns is None:
        strange = F.when(~F.col(_USUAL), F.map_filter(F.col(VALUES), lambda key, _: ~key.isin(mine)))
    elif columns.strange:
        strange = F.col(_STRANGE)
    if strange is None:
        selected.append(F.lit(None).cast("array<string>").alias(UNKNOWN))
    else:
        strangers = F.array_sort(F.map_keys(strange))
        selected.append(F.when(F.size(strangers) > 0, strangers).alias(UNKNOWN))

    if feed.captured:
        epoch = F.lit(max(epochs.values(), default=1))
        for known_epoch, ordinal in epochs.items():
            epoch = F.when(said("__source_epoch") == known_epoch, ordinal).otherwise(epoch)
        # Debezium's records name the change's own position only.
        lsn = F.coalesce(said("__commit_lsn"), said("__source_lsn")).try_cast("long")
        op = F.lower(F.coalesce(said("__op"), F.lit("c")))
        if columns is None:
            # Without an order, one of two changes of a key would pass for the other's copy.
            ordered = F.coalesce(lsn >= 0, F.lit(False))
            expected = F.when(~ordered, "a change with its position in __source_lsn").when(
                ~op.isin("c", "u", "r", "d", "t"), "a change with c, u, r, d or t in __op"
            )
            frame = _refused(frame, expected)
        sequence = F.coalesce(said("__seq").try_cast("long"), F.lit(1))
        position = F.concat_ws(
            "/",
            F.lpad(epoch.cast("string"), 4, "0"),
            F.lpad(F.hex(F.coalesce(lsn, F.lit(0))), 16, "0"),
            F.lpad(sequence.cast("string"), 10, "0"),
        )
        operation = F.when((said("__deleted") == "true") & (op != "t"), "d").otherwise(op)
        arrived = F.coalesce(F.timestamp_millis(said("__source_ts_ms").try_cast("long")), F.col(ARRIVED))
        carried = _left_out(said, table)
        previous = F.from_json(said("__previous_key"), "map<string, string>")
        selected += [parsed(previous[c.name], c.type, feed).alias(previous_key(c.name)) for c in table.key]
    else:
        moment = F.col(ARRIVED)
        if feed.event_time is not None:
            moment = F.coalesce(F.col(feed.event_time).cast("timestamp"), moment)
        # Of two rows of one moment the later file's comes later, whether one batch has both or two have one each.
        moments = [moment] if feed.event_time is None else [moment, F.col(ARRIVED)]
        position = F.concat_ws("/", *map(micros, moments), F.col(FILE))
        operation = F.lit(None).cast("string")
        arrived = F.col(ARRIVED)
        carried = F.lit(None).cast("array<string>")
    if strange is None:
        selected.append(F.lit(None).cast("string").alias(RESCUED))
    else:
        # Each change names all columns of the source, also those without a value.
        rescued = F.map_filter(strange, lambda _, value: value.isNotNull()) if feed.captured else strange
        selected.append(F.when(F.size(rescued) > 0, F.to_json(rescued)).alias(RESCUED))
    selected += [
        F.col(LINE).alias(raw_column(LINE)),
        F.col(EXPECTED),
        F.col(FILE),
        position.alias(POSITION),
        operation.alias(OPERATION),
        arrived.alias(ARRIVED),
        carried.alias(CARRIED),
    ]
    # In a projection of their own: what is needed of the values here is not parsed again.
    return frame.select("*", *(value_of(name).alias(name) for name in types)).select(*selected)


def micros(moment: SparkColumn) -> SparkColumn:
    """A moment as it stands in a position: 20 digits of microseconds."""
    return F.lpad(F.greatest(F.unix_micros(moment), F.lit(0)).cast("string"), 20, "0")


def previous_key(name: str) -> str:
    """Name of the column with the key that a row had before a change of it, where values are to be carried from."""
    return f"__previous_{name}"


def _left_out(said: Callable[[str], SparkColumn], table: BronzeTable) -> SparkColumn:
    """Names of the columns that a change leaves as they were: our capture names them, Debezium puts a text there."""
    placed = [
        F.when(said(c.name) == UNAVAILABLE, c.name)
        for c in table.columns
        if not c.key and isinstance(c.type, T.StringType)
    ]
    both = F.concat(
        F.coalesce(F.from_json(said("__unchanged"), "array<string>"), F.array().cast("array<string>")),
        F.array_compact(F.array(*placed)) if placed else F.array().cast("array<string>"),
    )
    return F.when(F.size(both) > 0, both)


def _refused(frame: DataFrame, expected: SparkColumn) -> DataFrame:
    """The same rows, in which one of which something else was expected is no row but a line."""
    wrong = F.col(VALUES).isNotNull() & expected.isNotNull()
    return frame.withColumns(
        {
            LINE: F.when(wrong, F.to_json(VALUES)).otherwise(F.col(LINE)),
            EXPECTED: F.when(wrong, expected).otherwise(F.col(EXPECTED)),
            VALUES: F.when(~wrong, F.col(VALUES)),
        }
    )


def parsed(text: SparkColumn, kind: T.DataType, feed: Feed) -> SparkColumn:
    """The value of a text, or NULL where it is none of that type: nothing is rounded, cut or guessed."""
    match kind:
        case T.StringType():
            return text
        case T.BooleanType():
            return F.when(F.lower(text).isin("true", "false"), text.try_cast("boolean"))
        case T.IntegerType() | T.LongType():
            return F.when(text.rlike(_WHOLE), F.substring_index(text, ".", 1).try_cast(kind))
        case T.DecimalType():
            # A cast rounds what has too many places.
            plain = text.rlike(rf"^[+-]?(?=\.?[0-9])[0-9]*\.?[0-9]{{0,{kind.scale}}}0*\z")
            wide = text.try_cast(T.DecimalType(38, 18))
            fitted = wide.try_cast(kind)
            exact = (fitted == wide) & (fitted.cast("double") == text.try_cast("double"))
            return F.when(plain, text.try_cast(kind)).when(text.rlike(_EXPONENT) & exact, fitted)
        case T.DateType():
            if feed.date_format != DATE_FORMAT:
                return F.try_to_timestamp(text, F.lit(feed.date_format)).cast("date")
            value = F.when(text.rlike(_DATE), F.substring(text, 1, 10).try_cast("date"))
            if not feed.captured:
                return value
            # Debezium's default: days since 1970-01-01.
            days = F.when(text.rlike("^-?[0-9]{1,7}$"), F.date_from_unix_date(text.try_cast("int")))
            return F.coalesce(value, F.when(days.between("0001-01-01", "9999-12-31"), days))
        case T.TimestampType():
            if feed.timestamp_format != TIMESTAMP_FORMAT:
                return F.try_to_timestamp(text, F.lit(feed.timestamp_format))
            return F.when(text.rlike(_TIMESTAMP), text.try_cast("timestamp"))
        case _:
            return text.try_cast(kind)
