"""One look at a file's bytes before Spark reads it: its hash, whether it is whole, and what its reader must know.

A file that cannot be read is found here, so that it never holds back or spoils its neighbours.
"""

from __future__ import annotations

import codecs
import csv
import gzip
import hashlib
import io
import itertools
import json
import re
import time
import zlib
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import BinaryIO, cast

import pyarrow as pa
import pyarrow.csv as csv_files
import pyarrow.parquet as pq

from bronze_assets.errors import KeyRefused
from bronze_assets.sources import copies
from bronze_assets.sources.landing import LandedFile, LandingZone
from bronze_assets.table import BronzeTable

_CHUNK = 4 * 2**20
_THREADS = 8
_SLOW = 0.002
"""Seconds for a file on average, beyond which several are looked at at once."""
_PATIENCE = 8
_LONGEST_MARK = 64
_AT_KEYS = 2
"""Threads that look at keys, of which those of a whole file are in memory then: the others are for what takes long to
open."""
_TRUNCATES = re.compile(rb'"__op"\s*:\s*"t"', re.IGNORECASE)
_UNCHANGED = re.compile(rb'"__unchanged"|__debezium_unavailable_value', re.IGNORECASE)


@dataclass(frozen=True)
class Inspected:
    """What the bytes of a file say.

    Attributes:
        content_hash: SHA-256, as hex.
        problem: why the file cannot be read at all, in words; None if it can. Holds no values of rows.
        moving: whether the file changed while it was read: it is still being written.
        columns: names in the header of a CSV or the schema of a Parquet file, as written; empty for JSON.
        multiline: whether values of a CSV file span lines.
        types: of a Parquet file's columns, in words: files of one reading must agree in them.
        strange: whether Spark does not read some of these types.
        unopened: why the file could not even be opened; it is to be tried again.
        unique: whether it is known that no two rows of a CSV file have the same key.
        epoch: source epoch of captured changes.
        truncates, unchanged: whether captured changes hold a TRUNCATE, or values that the source left out as unchanged.
    """

    file: LandedFile
    content_hash: str
    problem: str | None = None
    moving: bool = False
    columns: tuple[str, ...] = ()
    multiline: bool = False
    unique: bool = False
    epoch: str = ""
    truncates: bool = False
    unchanged: bool = False
    types: str = ""
    strange: bool = False
    unopened: str | None = None


class _Unreadable(Exception):
    """The file cannot be read, and why."""


def inspect(zone: LandingZone, table: BronzeTable, files: Sequence[LandedFile]) -> list[Inspected]:
    """Inspect files, several at once; the answers are in their order. A file that is gone is left out."""
    answers: list[Inspected | None] = []
    with ThreadPoolExecutor(_AT_KEYS) as keys, ThreadPoolExecutor(_THREADS) as pool:
        began = time.perf_counter()
        # On a disk, threads wait for each other more than for small files; where opening one takes long, they pay.
        while zone.is_local and len(answers) < len(files) and files[len(answers)].size <= _CHUNK:
            if time.perf_counter() - began > _SLOW * (len(answers) + _PATIENCE):
                break
            answers.append(_inspect(zone, table, files[len(answers)], keys))
        answers += pool.map(lambda file: _inspect(zone, table, file, keys), files[len(answers) :])
    # Each of the threads has had its share, which would be kept for it.
    pa.default_memory_pool().release_unused()
    return [answer for answer in answers if answer is not None]


def _inspect(zone: LandingZone, table: BronzeTable, file: LandedFile, keys: Executor) -> Inspected | None:
    digest = hashlib.sha256()
    try:
        with zone.open(file) as stream:
            head = stream.read(_CHUNK)
            digest.update(head)
            whole = len(head) < _CHUNK
            size = len(head)
            if not whole:
                while chunk := stream.read(_CHUNK):
                    digest.update(chunk)
                    size += len(chunk)
        now = zone.find(file.location, None) if not file.archived else file
        moving = now is None or size != file.size or (now.size, now.modified) != (file.size, file.modified)
        found = Inspected(file, digest.hexdigest(), moving=moving)
        if moving:
            return found
        try:
            if size == 0:
                raise _Unreadable("the file is empty (0 bytes)")
            if file.format == "parquet":
                return _parquet(found, zone, table, head if whole else None)
            return _text(found, zone, table, head if whole else None, keys)
        except _Unreadable as why:
            return replace(found, problem=str(why))
    except FileNotFoundError:
        return None
    except OSError as error:
        # Of one file, and maybe only for now: neither its neighbours nor its own next try are to suffer.
        return Inspected(file, "", unopened=f"it cannot be opened ({error.strerror or type(error).__name__})")
    except KeyRefused as error:
        return Inspected(file, "", unopened=error.culprit.removesuffix("."))


def _parquet(found: Inspected, zone: LandingZone, table: BronzeTable, content: bytes | None) -> Inspected:
    with zone.open(found.file) as stream:
        try:
            parquet = parquet_file(io.BytesIO(content) if content is not None else stream)
            for _ in parquet.iter_batches(batch_size=65_536):
                pass
        except (pa.ArrowException, OSError, ValueError):
            # The exception's own text may quote bytes of the file.
            raise _Unreadable("the file is not a whole Parquet file (damaged or cut off)") from None
        schema = parquet.schema_arrow
        columns = tuple(schema.names)
        # One such column would fail the files beside it.
        strange = any(strange_type(kind) for kind in schema.types)
    _check_columns(columns, table, "schema")
    types = ", ".join(str(field.type) for field in schema)
    return replace(found, columns=columns, types=types, strange=strange)


def parquet_file(stream: BinaryIO) -> pq.ParquetFile:
    """An open Parquet file."""
    # Arrow would call these timestamps nanoseconds, which do not reach the year 9999; Spark reads them.
    return pq.ParquetFile(stream, coerce_int96_timestamp_unit="us")


def strange_type(kind: pa.DataType) -> bool:
    """Whether Spark does not read a column of this Arrow type from Parquet."""
    if pa.types.is_nested(kind):
        return any(strange_type(kind.field(number).type) for number in range(kind.num_fields))
    if pa.types.is_timestamp(kind):
        return bool(kind.unit == "ns")
    return bool(pa.types.is_time(kind) or pa.types.is_float16(kind) or pa.types.is_decimal256(kind))


def _text(found: Inspected, zone: LandingZone, table: BronzeTable, content: bytes | None, keys: Executor) -> Inspected:
    csv_file = found.file.format == "csv"
    captured = table.feed is not None and table.feed.captured
    utf8 = codecs.getincrementaldecoder("utf-8")()
    position = 0
    tail = b""
    first = b""
    quotes = zeros = multiline = truncates = unchanged = False
    for chunk in _decompressed(found.file, zone, content):
        if len(first) < _CHUNK:
            first += chunk
        if csv_file:
            try:
                utf8.decode(chunk)
            except UnicodeDecodeError as error:
                raise _Unreadable(f"the file is not UTF-8 text (near byte {position + error.start})") from None
            quotes = quotes or b'"' in chunk
            zeros = zeros or b"\0" in chunk
        elif captured:
            window = tail + chunk
            truncates = truncates or _TRUNCATES.search(window) is not None
            unchanged = unchanged or _UNCHANGED.search(window) is not None
            tail = window[-_LONGEST_MARK:]
        position += len(chunk)
    if csv_file and utf8.getstate()[0]:
        raise _Unreadable("the file is not UTF-8 text (it ends within a character)")
    columns: tuple[str, ...] = ()
    epoch = ""
    unique = False
    if csv_file:
        if quotes:
            multiline = _spans_lines(found.file, zone, content)
        columns = _header(first)
        _check_columns(columns, table, "header")
        # Spark drops a NUL from some quoted values, and so may make two of them one.
        if not multiline and not captured and not zeros:
            unique = keys.submit(_keys_differ, found.file, zone, table, columns, content).result()
    elif captured:
        epoch = _epoch(first)
    return replace(
        found,
        columns=columns,
        multiline=multiline,
        unique=unique,
        epoch=epoch,
        truncates=truncates,
        unchanged=unchanged,
    )


@contextmanager
def _opened(file: LandedFile, zone: LandingZone, content: bytes | None) -> Iterator[BinaryIO]:
    """What the file holds, uncompressed."""
    with zone.open(file) as opened:
        stream: BinaryIO = io.BytesIO(content) if content is not None else opened
        if not file.path.lower().endswith(".gz"):
            yield stream
            return
        try:
            with gzip.GzipFile(fileobj=stream) as unpacked:
                yield cast(BinaryIO, unpacked)
        except (OSError, EOFError, zlib.error):
            raise _Unreadable("the file is not a whole gzip file (damaged or cut off)") from None


def _decompressed(file: LandedFile, zone: LandingZone, content: bytes | None) -> Iterator[bytes]:
    with _opened(file, zone, content) as stream:
        while chunk := stream.read(_CHUNK):
            yield chunk


def _keys_differ(
    file: LandedFile, zone: LandingZone, table: BronzeTable, header: Sequence[str], content: bytes | None
) -> bool:
    """Whether it is known that no two rows of a CSV file, of one line each, have the same key."""
    assert table.feed is not None
    names = {name.lower(): f"c{number}" for number, name in enumerate(header)}
    if not all(column.name in names for column in table.key):
        return False
    reading = csv_files.ReadOptions(use_threads=False, block_size=_CHUNK, skip_rows=1, column_names=[*names.values()])
    mine = [names[column.name] for column in table.key]
    texts = csv_files.ConvertOptions(column_types=dict.fromkeys(mine, pa.string()), include_columns=mine)
    kept: list[pa.RecordBatch] = []
    try:
        with _opened(file, zone, content) as stream:
            reader = csv_files.open_csv(stream, reading, convert_options=texts)
            for batch in reader:
                kept.append(batch)
                if sum(map(len, kept)) > copies.MOST_ROWS:
                    return False
    except pa.ArrowException:
        # There are lines that are no rows.
        return False
    rows = pa.Table.from_batches(kept, reader.schema)
    told = {c.name: copies.told_apart(rows[name], c.type, table.feed) for c, name in zip(table.key, mine, strict=True)}
    known = {name: keys for name, keys in told.items() if keys is not None}
    return len(known) == len(told) and copies.differ(known)


def _each_alone(chunks: Iterable[bytes]) -> bool:
    """Whether every line of a CSV file with a quote in it is whole by itself: most files have a few such lines."""
    rows = csv.reader(_quoted_lines(chunks), strict=True)
    try:
        return all(rows.line_num == number for number, _ in enumerate(rows, 1))
    except csv.Error:
        return False


def _quoted_lines(chunks: Iterable[bytes]) -> Iterator[str]:
    """The lines with a quote in them."""
    rest = b""
    mark = codecs.BOM_UTF8
    for chunk in itertools.chain(chunks, [b"\n"]):
        body, newline, rest = (rest + chunk.replace(b"\r", b"\n")).rpartition(b"\n")
        end = 0
        while (quote := body.find(b'"', end)) >= 0:
            begin = body.rfind(b"\n", end, quote) + 1
            end = body.find(b"\n", quote)
            if end < 0:
                end = len(body)
            yield body[begin:end].removeprefix(mark if begin == 0 else b"").decode()
        mark = b"" if newline else mark


def _spans_lines(file: LandedFile, zone: LandingZone, content: bytes | None) -> bool:
    """Whether a quoted value spans lines.

    Where a quote is never closed, or text follows a closing one, nobody can tell where the rows are: Spark takes all
    lines up to the next quote for one value, without a word (tried, 4.2). Where values span lines, it takes the first
    end of a line for that of all: of others, it would make one row of several, or leave half of the end to a value.
    """
    if _each_alone(_decompressed(file, zone, content)):
        return False
    csv.field_size_limit(2**31 - 1)
    last = ""

    def lines() -> Iterator[str]:
        nonlocal last
        for line in _lines(codecs.iterdecode(_decompressed(file, zone, content), "utf-8-sig")):
            last = line
            yield line

    rows = csv.reader(lines(), strict=True)
    spans = False
    ends: set[str] = set()
    try:
        for number, _ in enumerate(rows, 1):
            spans = spans or rows.line_num != number
            ends.add(last[len(last.rstrip("\r\n")) :])
    except csv.Error:
        raise _Unreadable(
            f"a quote is not closed, or text follows a closing one (seen at line {rows.line_num})"
        ) from None
    different = sorted(map(repr, ends - {""}))
    if spans and len(different) > 1:
        raise _Unreadable(f"values span lines, and its rows end in different ways ({', '.join(different)})")
    return spans


def _lines(chunks: Iterable[str]) -> Iterator[str]:
    rest = ""
    for chunk in chunks:
        lines = list(io.StringIO(rest + chunk, newline=""))
        # Its end may come with the next chunk, or one half of it.
        rest = lines.pop() if lines else ""
        yield from lines
    if rest:
        yield rest


def _header(first: bytes) -> tuple[str, ...]:
    text = first.decode("utf-8", "replace").removeprefix("\ufeff")
    rows = csv.reader(io.StringIO(text, newline=""))
    try:
        header = next(row for row in itertools.islice(rows, 1))
    except (StopIteration, csv.Error):
        raise _Unreadable("the file has no header line") from None
    return tuple(name.strip() for name in header)


def _epoch(first: bytes) -> str:
    """The source epoch that our own capture writes into each line; a file is of one."""
    try:
        line = json.loads(first.split(b"\n", 1)[0])
    except (ValueError, RecursionError):
        return ""
    epoch = line.get("__source_epoch") if isinstance(line, dict) else None
    return epoch if isinstance(epoch, str) else ""


def _check_columns(columns: Sequence[str], table: BronzeTable, where: str) -> None:
    names = [name.lower() for name in columns]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        # Where there is no header, the first row would be taken for one: only what is declared is no value.
        declared = [c.name for c in table.columns if c.name in twice]
        shown = ", ".join(map(repr, declared)) or f"{len(twice)} columns"
        raise _Unreadable(f"its {where} names {shown} more than once")
    missing = [c.name for c in table.columns if c.name not in names and not c.added]
    if missing:
        hint = "; is the delimiter a comma?" if where == "header" and len(columns) == 1 else ""
        raise _Unreadable(f"its {where} lacks {', '.join(map(repr, missing))}{hint}")
