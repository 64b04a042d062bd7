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
import zlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from bronze_assets.sources.landing import LandedFile, LandingZone
from bronze_assets.table import BronzeTable

_CHUNK = 4 * 2**20
_THREADS = 8
_LONGEST_MARK = 64


@dataclass(frozen=True)
class Inspected:
    """What the bytes of a file say.

    Attributes:
        content_hash: SHA-256, as hex.
        problem: why the file cannot be read at all, in words; None if it can. Holds no values of rows.
        moving: whether the file changed while it was read: it is still being written.
        columns: names in the header of a CSV or the schema of a Parquet file, as written; empty for JSON.
        multiline: whether values of a CSV file span lines.
        epoch: source epoch of captured changes.
        truncates, unchanged: whether captured changes hold a TRUNCATE, or values that the source left out as unchanged.
    """

    file: LandedFile
    content_hash: str
    problem: str | None = None
    moving: bool = False
    columns: tuple[str, ...] = ()
    multiline: bool = False
    epoch: str = ""
    truncates: bool = False
    unchanged: bool = False


class _Unreadable(Exception):
    """The file cannot be read, and why."""


def inspect(zone: LandingZone, table: BronzeTable, files: Sequence[LandedFile]) -> list[Inspected]:
    """Inspect files, several at once; the answers are in their order. A file that is gone is left out."""
    with ThreadPoolExecutor(_THREADS) as pool:
        answers = pool.map(lambda file: _inspect(zone, table, file), files)
        return [answer for answer in answers if answer is not None]


def _inspect(zone: LandingZone, table: BronzeTable, file: LandedFile) -> Inspected | None:
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
            return _text(found, zone, table, head if whole else None)
        except _Unreadable as why:
            return Inspected(file, digest.hexdigest(), problem=str(why))
    except FileNotFoundError:
        return None


def _parquet(found: Inspected, zone: LandingZone, table: BronzeTable, content: bytes | None) -> Inspected:
    with zone.open(found.file) as stream:
        try:
            parquet = pq.ParquetFile(io.BytesIO(content) if content is not None else stream)
            for _ in parquet.iter_batches(batch_size=65_536):
                pass
        except (pa.ArrowException, OSError, ValueError):
            # The exception's own text may quote bytes of the file.
            raise _Unreadable("the file is not a whole Parquet file (damaged or cut off)") from None
        columns = tuple(parquet.schema_arrow.names)
    _check_columns(columns, table, "schema")
    return Inspected(found.file, found.content_hash, columns=columns)


def _text(found: Inspected, zone: LandingZone, table: BronzeTable, content: bytes | None) -> Inspected:
    csv_file = found.file.format == "csv"
    captured = table.feed is not None and table.feed.captured
    utf8 = codecs.getincrementaldecoder("utf-8")()
    position = 0
    tail = b""
    first = b""
    quotes = multiline = truncates = unchanged = False
    odd = 0
    for chunk in _decompressed(found.file, zone, content):
        if len(first) < _CHUNK:
            first += chunk
        if csv_file:
            try:
                utf8.decode(chunk)
            except UnicodeDecodeError as error:
                raise _Unreadable(f"the file is not UTF-8 text (near byte {position + error.start})") from None
            if not quotes and b'"' in chunk:
                quotes = True
            if quotes and not multiline:
                # A quoted value that goes on in the next line leaves an odd number of quotes behind.
                for line in chunk.split(b"\n")[:-1]:
                    odd += line.count(b'"')
                    if odd % 2:
                        multiline = True
                        break
                    odd = 0
                else:
                    odd += chunk.rsplit(b"\n", 1)[-1].count(b'"')
        elif captured:
            window = tail + chunk
            truncates = truncates or b'"__op": "t"' in window or b'"__op":"t"' in window
            unchanged = unchanged or b'"__unchanged"' in window
            tail = window[-_LONGEST_MARK:]
        position += len(chunk)
    if csv_file and utf8.getstate()[0]:
        raise _Unreadable("the file is not UTF-8 text (it ends within a character)")
    columns: tuple[str, ...] = ()
    epoch = ""
    if csv_file:
        columns = _header(first)
        _check_columns(columns, table, "header")
    elif captured:
        epoch = _epoch(first)
    return Inspected(
        found.file,
        found.content_hash,
        columns=columns,
        multiline=multiline,
        epoch=epoch,
        truncates=truncates,
        unchanged=unchanged,
    )


def _decompressed(file: LandedFile, zone: LandingZone, content: bytes | None) -> Iterator[bytes]:
    with zone.open(file) as opened:
        stream: BinaryIO = io.BytesIO(content) if content is not None else opened
        if not file.path.lower().endswith(".gz"):
            while chunk := stream.read(_CHUNK):
                yield chunk
            return
        try:
            with gzip.GzipFile(fileobj=stream) as unpacked:
                while chunk := unpacked.read(_CHUNK):
                    yield chunk
        except (OSError, EOFError, zlib.error):
            raise _Unreadable("the file is not a whole gzip file (damaged or cut off)") from None


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
        raise _Unreadable(f"its {where} names {', '.join(map(repr, twice))} more than once")
    missing = [c.name for c in table.columns if c.name not in names and not c.added]
    if missing:
        hint = "; is the delimiter a comma?" if where == "header" and len(columns) == 1 else ""
        raise _Unreadable(f"its {where} lacks {', '.join(map(repr, missing))}{hint}")
