"""Files without the rows of some persons: what an erasure does to landing zone and archive.

A row is a person's if its key columns have their key text, also a captured change's earlier key. What is no row (a line
cut off) is a person's if it names the key column and, right after it, their key.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import re
from collections.abc import Callable, Container, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from bronze_assets.sources.inspection import parquet_file
from bronze_assets.table import BronzeTable

_PREVIOUS = "__previous_key"


def without(content: bytes, path: str, table: BronzeTable, keys: Container[str]) -> tuple[bytes, int]:
    """The content of a file without the rows of these keys, and how many there were.

    Args:
        path: its name, which tells format and compression.
        keys: key texts (`quality.key_text`).

    Returns:
        The same bytes if no row was theirs.

    Raises:
        ValueError: the file cannot be read, so nobody can tell; holds no value.
    """
    packed = path.lower().endswith(".gz")
    try:
        plain = gzip.decompress(content) if packed else content
        name = path.lower().removesuffix(".gz")
        how: Callable[[bytes, BronzeTable, Container[str]], tuple[bytes, int]] = _json_lines
        if name.endswith(".parquet"):
            how = _parquet
        elif name.endswith(".csv"):
            how = _csv
        elif table.feed is not None and table.feed.multiline:
            how = _json_values
        left, removed = how(plain, table, keys)
    except (OSError, EOFError, ValueError, pa.ArrowException, csv.Error, RecursionError):
        raise ValueError(f"{path!r} cannot be read") from None
    if not removed:
        return content, 0
    # Without a time, equal content has equal bytes: an erasure tells the ledger their hash before it writes them.
    return (gzip.compress(left, mtime=0) if packed else left), removed


def _names(table: BronzeTable) -> list[str]:
    return [column.name for column in table.key]


def _text(values: Sequence[Any]) -> str:
    return ", ".join("NULL" if value is None else str(value) for value in values)


def _is_theirs(row: Any, names: Sequence[str], keys: Container[str]) -> bool:
    if not isinstance(row, dict):
        return False
    lower = {str(name).lower(): value for name, value in row.items()}
    if _text([lower.get(name) for name in names]) in keys:
        return True
    before = lower.get(_PREVIOUS)
    if isinstance(before, str):
        before = json.loads(before)
    return isinstance(before, dict) and _is_theirs(before, names, keys)


def _json_lines(content: bytes, table: BronzeTable, keys: Container[str]) -> tuple[bytes, int]:
    names = _names(table)
    kept, removed = [], 0
    for line in content.split(b"\n"):
        theirs = False
        if line.strip():
            try:
                theirs = _is_theirs(json.loads(line.removeprefix(b"\xef\xbb\xbf")), names, keys)
            except (ValueError, RecursionError):
                theirs = names_key(line.decode("utf-8", "replace"), table, keys)
        removed += theirs
        if not theirs:
            kept.append(line)
    return b"\n".join(kept), removed


def names_key(line: str, table: BronzeTable, keys: Container[str]) -> bool:
    """Whether a line that is no row names the key column and, right after it, one of the keys."""
    parts = []
    for name in _names(table):
        found = re.search(rf'"?{re.escape(name)}"?\s*[:=]\s*"?([^",}}\s]+)', line, re.IGNORECASE)
        if found is None:
            return False
        parts.append(found[1])
    return _text(parts) in keys


def _json_values(content: bytes, table: BronzeTable, keys: Container[str]) -> tuple[bytes, int]:
    names = _names(table)
    value = json.loads(content)
    rows = value if isinstance(value, list) else [value]
    kept = [row for row in rows if not _is_theirs(row, names, keys)]
    return json.dumps(kept, ensure_ascii=False).encode(), len(rows) - len(kept)


def _csv(content: bytes, table: BronzeTable, keys: Container[str]) -> tuple[bytes, int]:
    rows = list(csv.reader(io.StringIO(content.decode("utf-8-sig"), newline="")))
    if not rows:
        return content, 0
    header = [name.strip().lower() for name in rows[0]]
    places = [header.index(name) for name in _names(table)]
    kept = [rows[0]]
    for row in rows[1:]:
        theirs = len(row) > max(places) and _text([row[place].strip() for place in places]) in keys
        if not theirs:
            kept.append(row)
    target = io.StringIO()
    csv.writer(target, lineterminator="\n").writerows(kept)
    return target.getvalue().encode(), len(rows) - len(kept)


def _parquet(content: bytes, table: BronzeTable, keys: Container[str]) -> tuple[bytes, int]:
    read = parquet_file(io.BytesIO(content)).read()
    by_name = {name.lower(): name for name in read.schema.names}
    columns = [read[by_name[name]].to_pylist() for name in _names(table) if name in by_name]
    if len(columns) != len(table.key):
        raise ValueError("it lacks the key")
    mine = [_text(values) not in keys for values in zip(*columns, strict=True)]
    target = io.BytesIO()
    pq.write_table(read.filter(pa.array(mine)), target)
    return target.getvalue(), mine.count(False)
