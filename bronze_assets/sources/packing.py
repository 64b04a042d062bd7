"""Small files of JSON lines, packed for Spark: opening a file takes it longer than reading a hundred lines.

Lines of a usual form are packed apart from the others: flat objects, whose names are in the order of one of a few
lines, and whose values have one reading only. `from_json` reads these as `files` reads any line, in a fraction of the
time; which lines they are, one regular expression tells.
"""

from __future__ import annotations

import hashlib
import json
import re
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pyspark.sql import types as T

from bronze_assets.errors import FileChanged
from bronze_assets.sources.inspection import Inspected
from bronze_assets.sources.landing import LandingZone, staged
from bronze_assets.table import DATE_FORMAT, TIMESTAMP_FORMAT, Feed

FILE = "__file"
ARRIVED = "__arrived"
SMALL = 4 * 2**20
"""Bytes up to which a file is packed with others. One row group is about as large."""
_PACK = pa.schema([("value", pa.binary()), (FILE, pa.string()), (ARRIVED, pa.timestamp("us", tz="UTC"))])
_SAMPLES = 16
_FORMS = 8

NATURAL = "0|[1-9][0-9]{0,17}"
_TEXT = r'"[^"\\\x00-\x1f]*"'
# `-0` has two readings: a double keeps its sign.
_INTEGER = "0|-?[1-9][0-9]{0,17}"
ANY = f"{_TEXT}|null|true|false|{_INTEGER}"


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
            return _INTEGER
        case T.BooleanType():
            return "true|false"
        case T.DateType() if feed.date_format == DATE_FORMAT:
            return f'"{_DAY}"'
        case T.TimestampType() if feed.timestamp_format == TIMESTAMP_FORMAT:
            return f'"{_DAY}[ T]{_TIME}"'
    return None


@dataclass(frozen=True)
class UsualLines:
    """What lines of a usual form look like.

    Attributes:
        schema: of the object, as `from_json` takes it.
        values: name → regular expression (RE2) of the JSON values that are usual for it.
        exact: columns of which a usual value is the column's, or its text, and needs a cast and no parser.
        any_of: names of which a line has one at least; empty for none.
    """

    schema: T.StructType
    values: Mapping[str, str]
    exact: frozenset[str]
    any_of: frozenset[str] = frozenset()

    @staticmethod
    def of(
        types: Mapping[str, T.DataType], feed: Feed, told: Mapping[str, str] | None = None, any_of: Iterable[str] = ()
    ) -> UsualLines:
        """Those of a feed: decimals are numbers, or texts where they are captured changes.

        Args:
            types: columns that the table has.
            told: name → usual values, of what stands beside the columns.
            any_of: of these, the names of which a line has one at least.
        """
        values, exact = dict(told or {}), set[str]()
        kinds: dict[str, T.DataType] = dict.fromkeys(values, T.StringType())
        for name, kind in types.items():
            usual = _usual_values(kind, feed)
            values[name] = ANY if usual is None else f"null|{usual}"
            if usual is not None:
                exact.add(name)
            # Not as a text: `from_json` makes that of a double.
            number = isinstance(kind, T.DecimalType) and not feed.captured
            kinds[name] = kind if number else T.StringType()
        # Names are compared in lower case; one that is declared otherwise has to be found first.
        values = {name: value for name, value in values.items() if name == name.lower()}
        schema = T.StructType([T.StructField(name, kind) for name, kind in kinds.items()])
        return UsualLines(schema, values, frozenset(exact), frozenset(any_of))

    def form(self, line: str) -> str | None:
        """A regular expression of the lines that have the names of this one, in its order; None if it is not usual."""
        try:
            pairs = json.loads(line, object_pairs_hook=_Pairs)
        except (ValueError, RecursionError):
            return None
        names = [name for name, _ in pairs] if isinstance(pairs, _Pairs) else []
        if not names or len({*names}) < len(names) or not self.values.keys() >= {*names}:
            return None
        if self.any_of and self.any_of.isdisjoint(names):
            return None
        # The names are columns', and hold nothing that JSON escapes.
        members = (f'"{re.escape(name)}": ?(?:{self.values[name]})' for name in names)
        return r"^\{" + ", ?".join(members) + r"\}\r?$"


class _Pairs(list[tuple[str, Any]]):
    pass


@dataclass(frozen=True)
class Packed:
    """Parquet files with `value`, a line, and its `FILE` and `ARRIVED`; None where there is no such line."""

    usual: str | None
    others: str | None


def is_packed(file: Inspected, feed: Feed) -> bool:
    """Whether the file is one of those that are packed."""
    plain = file.file.format == "json" and not file.file.path.lower().endswith(".gz")
    return plain and not feed.multiline and file.file.size <= SMALL


def pack(zone: LandingZone, files: Sequence[Inspected], staging: Path, usual: UsualLines) -> Packed:
    """Write the lines of files into Parquet files below `staging`. Empty lines are left out.

    Raises:
        FileChanged: a file is not what was inspected.
    """
    # A name of its own: Spark remembers the files of a path.
    name = uuid.uuid4().hex
    places = [staged(staging, number, f"-{name}.parquet") for number in range(2)]
    written: list[pq.ParquetWriter | None] = [None, None]
    forms: list[str] = []
    try:
        for held in _together(zone, files):
            for number, part in enumerate(_apart(held, usual, forms)):
                if not part.num_rows:
                    continue
                writer = written[number]
                if writer is None:
                    writer = pq.ParquetWriter(places[number], _PACK, compression="none", use_dictionary=_PACK.names[1:])
                    written[number] = writer
                writer.write_table(part)
    finally:
        for writer in written:
            if writer is not None:
                writer.close()
    if written == [None, None]:
        # Files of blank lines are readable, and have no rows.
        pq.write_table(_PACK.empty_table(), places[1])
        return Packed(None, str(places[1]))
    there = [None if writer is None else str(place) for writer, place in zip(written, places, strict=True)]
    return Packed(there[0], there[1])


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


def _apart(files: Sequence[tuple[Inspected, bytes]], usual: UsualLines, forms: list[str]) -> tuple[pa.Table, pa.Table]:
    """The usual lines and the others; `forms` gains what is found on the way."""
    lines = [content.split(b"\n") for _, content in files]
    owner = pa.array([number for number, mine in enumerate(lines) for _ in mine], pa.int32())
    values = pa.array([line for mine in lines for line in mine], pa.binary())
    filled = pc.greater(pc.binary_length(values), 0)
    values, owner = values.filter(filled), owner.filter(filled)
    names = pa.array([file.file.path for file, _ in files])
    moments = pa.array([file.file.modified for file, _ in files], _PACK.field(ARRIVED).type)
    table = pa.table([values, names.take(owner), moments.take(owner)], schema=_PACK)
    # Files with bytes that are no text can wait for the slower way as a whole.
    readable = pa.array([_is_utf8(content) for _, content in files]).take(owner)
    texts = pc.if_else(readable, values, pa.scalar(b"")).cast(pa.string())
    are_usual = _are_usual(texts, usual, forms)
    return table.filter(are_usual), table.filter(pc.invert(are_usual))


def _is_utf8(content: bytes) -> bool:
    try:
        content.decode()
    except UnicodeDecodeError:
        return False
    return True


def _are_usual(texts: pa.Array, usual: UsualLines, forms: list[str]) -> pa.Array:
    found = pc.equal(pc.binary_length(texts), -1)
    for form in forms:
        found = pc.or_(found, pc.match_substring_regex(texts, form))
    rest = texts.filter(pc.invert(found))
    for line in rest[:: max(1, len(rest) // _SAMPLES)].to_pylist():
        new = usual.form(line) if len(forms) < _FORMS else None
        if new is not None and new not in forms:
            forms.append(new)
            found = pc.or_(found, pc.match_substring_regex(texts, new))
    return found
