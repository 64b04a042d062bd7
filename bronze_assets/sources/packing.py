"""Small files of JSON lines, packed for Spark: opening a file takes it longer than reading a hundred lines.

Lines of a usual form are packed apart from the others, as texts by column: flat objects, whose names are in the order
of one of a few lines, and whose values have one reading only. Which lines they are, one regular expression tells, and
its groups are the texts. Whether two of their rows can be copies of each other is seen at the same time.
"""

from __future__ import annotations

import functools
import hashlib
import json
import re
import uuid
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pyspark.sql import types as T

from bronze_assets.errors import FileChanged
from bronze_assets.sources import copies
from bronze_assets.sources.inspection import Inspected
from bronze_assets.sources.landing import LandingZone, staged
from bronze_assets.table import DATE_FORMAT, TIMESTAMP_FORMAT, Feed

T1 = TypeVar("T1")
T2 = TypeVar("T2")
FILE = "__file"
ARRIVED = "__arrived"
SMALL = 4 * 2**20
"""Bytes up to which a file is packed with others. One row group is about as large."""
_FROM = [(FILE, pa.string()), (ARRIVED, pa.timestamp("us", tz="UTC"))]
_LINES = pa.schema([("value", pa.binary()), *_FROM])
_AT_ONCE = 2
_SAMPLES = 16
_FORMS = 8

_SURE = (T.BooleanType, T.DecimalType, T.LongType)
_SEQUENCE = "^(?:0|[1-9][0-9]{0,9})$"
NATURAL = "0|[1-9][0-9]{0,17}"
_TEXT = r'"[^"\\\x00-\x1f]*"'
# `-0` has two readings: a double keeps its sign.
ANY = f"{_TEXT}|null|true|false|{copies.INTEGER}"


_DAY = "(?:[1-9][0-9]{3}|0[1-9][0-9]{2}|00[1-9][0-9]|000[1-9])-[0-9]{2}-[0-9]{2}"
_TIME = r"[0-9]{2}:[0-9]{2}:[0-9]{2}(?:\.[0-9]{1,6})?(?:Z|[+-][0-9]{2}(?::?[0-9]{2})?)?"


def _numbers(kind: T.DecimalType) -> str:
    """Those that the type holds without rounding, with one reading each."""
    before, after = min(kind.precision - kind.scale, 15), kind.scale
    whole = rf"0|-?[1-9][0-9]{{0,{before - 1}}}" if before else "0"
    if not after:
        return whole
    small = rf"0\.[0-9]{{1,{after}}}|-0\.[0-9]{{0,{after - 1}}}[1-9]"
    return f"{whole}|{small}" + (rf"|-?[1-9][0-9]{{0,{before - 1}}}\.[0-9]{{1,{after}}}" if before else "")


def _usual_values(kind: T.DataType, feed: Feed) -> str | None:
    """The JSON values that are usual for a type, but NULL; None where only a parser can tell."""
    match kind:
        case T.DecimalType():
            return f'"(?:{_numbers(kind)})"' if feed.captured else _numbers(kind)
        case T.IntegerType() | T.LongType():
            return copies.INTEGER
        case T.BooleanType():
            return "true|false"
        case T.DateType() if feed.date_format == DATE_FORMAT:
            return f'"{_DAY}"'
        case T.TimestampType() if feed.timestamp_format == TIMESTAMP_FORMAT:
            return f'"{_DAY}[ T]{_TIME}"'
    return None


@dataclass(frozen=True)
class Form:
    """Lines with the same names in the same order.

    Attributes:
        pattern: a regular expression (RE2) with a group for each value, `v0`, `v1`, ….
        names: of these values.
    """

    pattern: str
    names: tuple[str, ...]


@dataclass(frozen=True)
class UsualLines:
    """What lines of a usual form look like.

    Attributes:
        values: name → regular expression (RE2) of the JSON values that are usual for it.
        exact: columns of which a usual value is the column's, or its text, and needs a cast and no parser.
        sure: those of them of which it always is one: no day that a month does not have, and nothing too large.
        key: name → type of the columns of the table's key.
        captured: whether the lines are captured changes.
        any_of: names of which a line has one at least; empty for none.
    """

    values: Mapping[str, str]
    exact: frozenset[str]
    sure: frozenset[str]
    key: Mapping[str, T.DataType]
    captured: bool = False
    any_of: tuple[str, ...] = ()

    @staticmethod
    def of(
        types: Mapping[str, T.DataType],
        feed: Feed,
        key: Iterable[str],
        told: Mapping[str, str] | None = None,
        any_of: Sequence[str] = (),
    ) -> UsualLines:
        """Those of a feed: decimals are numbers, or texts where they are captured changes.

        Args:
            types: columns that the table has.
            key: those that make the table's key.
            told: name → usual values, of what stands beside the columns.
            any_of: of these, the names of which a line has one at least: the first of them is its position.
        """
        values, exact = dict(told or {}), set[str]()
        for name, kind in types.items():
            usual = _usual_values(kind, feed)
            values[name] = ANY if usual is None else f"null|{usual}"
            if usual is not None:
                exact.add(name)
        # Names are compared in lower case; one that is declared otherwise has to be found first.
        values = {name: value for name, value in values.items() if name == name.lower()}
        sure = {name for name in exact if isinstance(types[name], _SURE)}
        keys = {name: types[name] for name in key}
        return UsualLines(values, frozenset(exact), frozenset(sure), keys, feed.captured, tuple(any_of))

    @functools.cached_property
    def columns(self) -> dict[str, str]:
        """Name → the column of the pack that holds its texts."""
        return {name: f"__text_{number}" for number, name in enumerate(self.values)}

    def form(self, line: str) -> Form | None:
        """The form of the lines that have the names of this one, in its order; None if it is not usual."""
        try:
            pairs = json.loads(line, object_pairs_hook=_Pairs)
        except (ValueError, RecursionError):
            return None
        names = tuple(name for name, _ in pairs) if isinstance(pairs, _Pairs) else ()
        if not names or len({*names}) < len(names) or not self.values.keys() >= {*names}:
            return None
        if self.any_of and {*self.any_of}.isdisjoint(names):
            return None
        # The names are columns', and hold nothing that JSON escapes.
        members = (f'"{re.escape(name)}": ?(?P<v{n}>{self.values[name]})' for n, name in enumerate(names))
        return Form(r"^\{" + ", ?".join(members) + r"\}\r?$", names)


class _Pairs(list[tuple[str, Any]]):
    pass


@dataclass(frozen=True)
class Packed:
    """Parquet files, each with the `FILE` and `ARRIVED` of its lines; None where there is no such line.

    Attributes:
        usual: with the texts of usual lines in `UsualLines.columns`.
        others: with the other lines as `value`.
        unique: whether no two rows have the same key and position, as far as can be told without parsing them.
    """

    usual: str | None
    others: str | None
    unique: bool


def is_packed(file: Inspected, feed: Feed) -> bool:
    """Whether the file is one of those that are packed."""
    plain = file.file.format == "json" and not file.file.path.lower().endswith(".gz")
    return plain and not feed.multiline and file.file.size <= SMALL


def pack(zone: LandingZone, files: Sequence[Inspected], staging: Path, usual: UsualLines, feed: Feed) -> Packed:
    """Write the lines of files into Parquet files below `staging`. Empty lines are left out.

    Raises:
        FileChanged: a file is not what was inspected.
    """
    # A name of its own: Spark remembers the files of a path.
    name = uuid.uuid4().hex
    places = [staged(staging, number, f"-{name}.parquet") for number in range(2)]
    schemas = [pa.schema([(column, pa.string()) for column in usual.columns.values()] + _FROM), _LINES]
    written: list[pq.ParquetWriter | None] = [None, None]
    forms: list[Form] = []
    seen = _Seen(usual, feed)
    try:
        for parts in _in_turn(_together(zone, files), lambda held: _apart(held, usual, forms)):
            seen.add(*parts)
            for number, part in enumerate(parts):
                if not part.num_rows:
                    continue
                writer = written[number]
                if writer is None:
                    names = [FILE, ARRIVED]
                    writer = pq.ParquetWriter(places[number], schemas[number], compression="none", use_dictionary=names)
                    written[number] = writer
                writer.write_table(part)
    finally:
        for writer in written:
            if writer is not None:
                writer.close()
    if written == [None, None]:
        # Files of blank lines are readable, and have no rows.
        pq.write_table(_LINES.empty_table(), places[1])
        return Packed(None, str(places[1]), True)
    there = [None if writer is None else str(place) for writer, place in zip(written, places, strict=True)]
    return Packed(there[0], there[1], seen.unique())


def _in_turn(groups: Iterable[T1], work: Callable[[T1], T2]) -> Iterator[T2]:
    """What `work` makes of each group, in their order, while the next groups are being read and worked on."""
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        waiting: deque[Future[T2]] = deque()
        for group in groups:
            waiting.append(pool.submit(work, group))
            if len(waiting) > _AT_ONCE:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


class _Seen:
    """Whether two rows have the same key and position, by the texts of usual lines.

    The position of a row of a file names the file, so that rows of one key are told apart by their files; where one
    file has two of them, they may be copies. The position of a change is its own.
    """

    def __init__(self, usual: UsualLines, feed: Feed) -> None:
        self._usual = usual
        self._feed = feed
        self._kept: list[pa.Table] = []
        self._rows = 0
        self._may_be_unique = usual.key.keys() <= usual.values.keys()

    def add(self, rows: pa.Table, others: pa.Table) -> None:
        """Look at further rows: all those of their files, and the lines of these that are not usual."""
        # What such a line holds is not known here.
        self._may_be_unique = self._may_be_unique and not others.num_rows
        if not self._may_be_unique or not rows.num_rows:
            return
        columns, texts = self._usual.columns, dict[str, pa.ChunkedArray]()
        for name, kind in self._usual.key.items():
            told = copies.told_apart(rows[columns[name]], kind, self._feed)
            if told is None:
                self._may_be_unique = False
                return
            texts[name] = told
        if not self._usual.captured:
            texts[FILE] = rows[FILE].combine_chunks().dictionary_encode()
            self._may_be_unique = copies.differ(texts)
            return
        sequence = pc.fill_null(rows[columns["__seq"]], "1")
        texts |= {"__position": pc.coalesce(*(rows[columns[name]] for name in self._usual.any_of)), "__seq": sequence}
        self._kept.append(pa.table(texts))
        self._rows += rows.num_rows
        # More digits are cut off in a position.
        short = pc.all(pc.match_substring_regex(sequence, _SEQUENCE)).as_py()
        self._may_be_unique = short and self._rows <= copies.MOST_ROWS

    def unique(self) -> bool:
        """Whether no two of all these rows can be copies of each other."""
        if not self._may_be_unique or not self._kept:
            return self._may_be_unique
        kept = pa.concat_tables(self._kept)
        return copies.differ(dict(zip(kept.column_names, kept.columns, strict=True)))


def _together(zone: LandingZone, files: Sequence[Inspected]) -> Iterator[list[tuple[Inspected, bytes]]]:
    held: list[tuple[Inspected, bytes]] = []
    size = 0
    for file in files:
        held.append((file, _content(zone, file)))
        size += file.file.size
        if size >= SMALL:
            yield held
            held, size = [], 0
    if held:
        yield held


def _content(zone: LandingZone, file: Inspected) -> bytes:
    """The bytes that were inspected."""
    try:
        with zone.open(file.file) as stream:
            content = stream.read()
    except FileNotFoundError:
        content = b""
    if hashlib.sha256(content).hexdigest() != file.content_hash:
        raise FileChanged(
            f"{file.file.path!r} was changed or removed while it was being loaded.",
            "none needed, the next try takes it as it is then; see that files are given their name when complete.",
        )
    return content


def _apart(files: Sequence[tuple[Inspected, bytes]], usual: UsualLines, forms: list[Form]) -> tuple[pa.Table, pa.Table]:
    """The usual lines, as texts by column, and the others.

    Args:
        forms: of files before these; gains what is found on the way, which may be there already.
    """
    lines = [content.split(b"\n") for _, content in files]
    owner = pa.array([number for number, mine in enumerate(lines) for _ in mine], pa.int32())
    values = pa.array([line for mine in lines for line in mine], pa.binary())
    filled = pc.greater(pc.binary_length(values), 0)
    values, owner = values.filter(filled), owner.filter(filled)
    # Files with bytes that are no text can wait for the slower way as a whole.
    readable = pa.array([_is_utf8(content) for _, content in files]).take(owner)
    texts = pc.if_else(readable, values, pa.scalar(b"")).cast(pa.string())
    names = pa.array([file.file.path for file, _ in files])
    moments = pa.array([file.file.modified for file, _ in files], _FROM[1][1])
    rest = pa.table({"text": texts, "value": values, FILE: names.take(owner), ARRIVED: moments.take(owner)})
    parts: list[pa.Table] = []
    tried: set[Form] = set()

    def take(form: Form) -> None:
        nonlocal rest
        tried.add(form)
        found = pc.extract_regex(rest["text"], form.pattern).combine_chunks()
        matched = found.is_valid()
        if matched.true_count:
            parts.append(_as_columns(found.filter(matched), form, usual, rest.filter(matched)))
            rest = rest.filter(pc.invert(matched))

    for form in dict.fromkeys(forms):
        take(form)
    for line in rest["text"].to_pylist()[:: max(1, rest.num_rows // _SAMPLES)]:
        new = usual.form(line) if len(tried) < _FORMS else None
        if new is not None and new not in tried:
            # Others may be at work on other files, and find it too.
            forms.append(new)
            take(new)
    rows = pa.concat_tables(parts) if parts else _LINES.empty_table()
    return rows, rest.select(_LINES.names)


def _as_columns(found: pa.StructArray, form: Form, usual: UsualLines, rows: pa.Table) -> pa.Table:
    """The texts of lines of one form, in the columns of the pack; NULL where a name is missing or its value null."""
    columns: dict[str, pa.Array] = {}
    for name, column in usual.columns.items():
        if name not in form.names:
            columns[column] = pa.nulls(len(found), pa.string())
            continue
        # An escape would be a quote within a text, and such a line is not usual.
        value = found.field(f"v{form.names.index(name)}")
        text = pc.utf8_trim(value, '"') if '"' in usual.values[name] else value
        columns[column] = pc.if_else(pc.equal(value, "null"), None, text)
    return pa.table({**columns, FILE: rows[FILE], ARRIVED: rows[ARRIVED]})


def _is_utf8(content: bytes) -> bool:
    try:
        content.decode()
    except UnicodeDecodeError:
        return False
    return True
