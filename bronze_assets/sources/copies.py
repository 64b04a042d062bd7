"""Whether rows can be copies of each other, told by the texts of their keys.

What cannot have a copy needs no shuffle to look for one. Where it cannot be told, copies are looked for: else a row
might be loaded twice.
"""

from __future__ import annotations

from collections.abc import Mapping

import pyarrow as pa
import pyarrow.compute as pc
from pyspark.sql import types as T

from bronze_assets.table import DATE_FORMAT, TIMESTAMP_FORMAT, Feed

MOST_ROWS = 1_000_000
"""Rows up to which it is told: their keys are kept in memory."""
INTEGER = "0|-?[1-9][0-9]{0,17}"
"""Regular expression (RE2) of the usual texts of whole numbers: no two of them are one number."""
_DAY = len("2026-06-01")
_MOMENT = len("2026-06-01 10:00:00")


def told_apart(texts: pa.ChunkedArray, kind: T.DataType, feed: Feed) -> pa.ChunkedArray | None:
    """The texts of a key's column, two of which are never one value; None where one value may have several.

    A text that is no value of the type at all may be among them: its row has no key, and is quarantined.
    """
    match kind:
        case T.StringType():
            return texts
        case T.IntegerType() | T.LongType():
            return texts if _all(pc.match_substring_regex(texts, f"^(?:{INTEGER})$")) else None
        case T.DateType() if feed.date_format == DATE_FORMAT:
            # Without a zone, and as a timestamp without a fraction too.
            return texts if _all(pc.equal(pc.binary_length(texts), _DAY)) else None
        case T.TimestampType() if feed.timestamp_format == TIMESTAMP_FORMAT:
            return pc.replace_substring(texts, "T", " ") if _all(pc.equal(pc.binary_length(texts), _MOMENT)) else None
    return None


def differ(keys: Mapping[str, pa.ChunkedArray]) -> bool:
    """Whether no two rows have the same texts; NULL is like NULL.

    Args:
        keys: column → texts, all of the same length.
    """
    rows = pa.table(dict(keys))
    # With threads of its own, which files share, it would take twice as long and as much memory.
    return bool(rows.group_by(rows.column_names, use_threads=False).aggregate([]).num_rows == rows.num_rows)


def _all(truths: pa.ChunkedArray) -> bool:
    """Whether all are true, or NULL."""
    return pc.all(truths, min_count=0).as_py() is not False
