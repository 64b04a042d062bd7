"""Deterministic files for the three manufacturing feeds, with known faults in them.

Every value is arithmetic on the row's number and on a given moment: the same files on every machine. A file appears
under its name when it is complete.
"""

from __future__ import annotations

import contextlib
import csv
import datetime as dt
import gzip
import io
import itertools
import json
import random
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as arrow
import pyarrow.parquet as parquet

from bronze_assets.errors import SettingsError

Row = dict[str, Any]
_Maker = Callable[[int, str, dt.datetime], Row]

_SAMPLE_FILES = 12
_SAMPLE_ROWS = 200
_SENSORS = 50
_SPAN_SECONDS = 3 * 86_400
_FAR = dt.timedelta(days=30)
_LONG_AGO = dt.timedelta(days=400)

_ALWAYS = ("files", "bad_files", "rows", "loaded", "quarantined", "duplicates", "warned")
_QUARANTINED = ("missing_key", "unparseable")
_WARNED = ("out_of_range", "unknown_level", "future", "too_old")
_WHOLE = {
    "empty": "",
    "truncated_gzip": ".gz",
    "wrong_delimiter": ".csv",
    "duplicate_headers": ".csv",
    "corrupt_parquet": ".parquet",
}
"""Kinds of files that go to quarantine whole, and how their names must end."""
_MALFORMED = "malformed_lines"


@dataclass(frozen=True)
class Planted:
    """One file that was made.

    Attributes:
        path: where it lies.
        counts: what is in it; see `planted_files`.
    """

    path: Path
    counts: Mapping[str, int]


@dataclass(frozen=True)
class _Feed:
    """How the files of one feed are made.

    Attributes:
        folder: below the landing zone.
        suffixes: of good files, in turn.
        bad: kinds of bad files; `malformed_lines` is one of which the good lines load.
        make: row number, the run's tag and its moment → a faultless row, the key first.
        faults: kind to column and value; a function gets the faultless one. `duplicate` needs none.
        types: of the columns in Parquet.
    """

    folder: str
    suffixes: Sequence[str]
    bad: Sequence[str]
    make: _Maker
    faults: Mapping[str, tuple[str, Any]]
    types: Mapping[str, Any] = field(default_factory=dict)


def _moment(number: int, now: dt.datetime) -> dt.datetime:
    return now.replace(microsecond=0) - dt.timedelta(seconds=60 + number % _SPAN_SECONDS)


def _sensor_row(n: int, tag: str, now: dt.datetime) -> Row:
    return {
        "sensor_id": f"{tag}-S{n % _SENSORS:02}",
        "timestamp": _moment(n // _SENSORS, now),
        "temperature": Decimal(1800 + n * 7919 % 1200) / 100,
        "humidity": Decimal(300 + n * 104_729 % 500) / 10,
        "pressure": Decimal(9900 + n * 1299 % 350) / 10,
    }


_MESSAGES = ("spindle started", "Kühlmittel unter 20 %", 'door "B" opened', "tool changed, cycle 12", "axis referenced")


def _log_row(n: int, tag: str, now: dt.datetime) -> Row:
    return {
        "log_id": f"{tag}-{n:08}",
        "equipment_id": f"M-{n % 17:03}",
        "logged_at": _moment(n, now),
        "level": ("INFO", "INFO", "INFO", "WARN", "INFO", "ERROR", "INFO", "FATAL")[n * 7 % 8],
        "message": _MESSAGES[n // 3 % len(_MESSAGES)],
    }


def _metric_row(n: int, tag: str, now: dt.datetime) -> Row:
    value = Decimal(n * 7919 % 2_000_000) / 1_000_000 + 9
    return {
        "metric_id": int(tag[1:], 16) * 1_000_000_000 + n + 1,
        "batch_number": f"{tag}-B{n // 20:05}",
        "measured_at": _moment(n, now),
        "metric": ("diameter mm", "hardness HRC", "roughness µm")[n % 3],
        "value": value,
        "passed": value < Decimal("10.9"),
    }


# Of the row's own moment: two rows of one sensor stay two keys.
def _after(moment: dt.datetime) -> dt.datetime:
    return moment + _FAR


def _before(moment: dt.datetime) -> dt.datetime:
    return moment - _LONG_AGO


_FEEDS: Mapping[str, _Feed] = {
    "sensor_data": _Feed(
        "raw/sensor-data",
        (".csv", ".json", ".csv.gz", ".json.gz"),
        ("empty", "truncated_gzip", "wrong_delimiter", "duplicate_headers", _MALFORMED),
        _sensor_row,
        {
            "out_of_range": ("temperature", Decimal("999.9")),
            "missing_key": ("sensor_id", None),
            "unparseable": ("humidity", "n/a"),
            "future": ("timestamp", _after),
            "too_old": ("timestamp", _before),
            "null": ("pressure", None),
        },
    ),
    "equipment_logs": _Feed(
        "raw/equipment-logs",
        (".json", ".jsonl", ".json.gz"),
        ("empty", "truncated_gzip", _MALFORMED),
        _log_row,
        {
            "unknown_level": ("level", "NOTICE"),
            "missing_key": ("log_id", None),
            "unparseable": ("logged_at", "yesterday"),
            "future": ("logged_at", _after),
            "too_old": ("logged_at", _before),
            "null": ("message", None),
        },
    ),
    "quality_metrics": _Feed(
        "raw/quality-metrics",
        (".parquet", ".csv"),
        ("empty", "truncated_gzip", "wrong_delimiter", "duplicate_headers", "corrupt_parquet"),
        _metric_row,
        {
            "missing_key": ("metric_id", None),
            "unparseable": ("value", "n/a"),
            "future": ("measured_at", _after),
            "too_old": ("measured_at", _before),
            "null": ("batch_number", None),
        },
        {
            "metric_id": arrow.int64(),
            "batch_number": arrow.string(),
            "measured_at": arrow.timestamp("us", tz="UTC"),
            "metric": arrow.string(),
            "value": arrow.decimal128(18, 6),
            "passed": arrow.bool_(),
        },
    ),
}

FEEDS = tuple(_FEEDS)
"""The feeds of which files can be made: the names of their tables without `bz_`."""


def planted_files() -> dict[str, dict[str, int]]:
    """What `drop_sample_files` puts into each feed, at whatever moment. Kinds of faults that do not occur are left out.

    - `files`: all of them; `bad_files`: those that cannot be read as what they are named, each under its kind too:
      `empty` (0 bytes), `truncated_gzip`, `wrong_delimiter`, `duplicate_headers`, `corrupt_parquet`. None of their rows
      is counted.
    - `rows`: of the others, malformed lines included = `loaded` + `quarantined` + `duplicates`.
    - `warned`: loaded, but a rule is broken: `out_of_range`, `unknown_level`, `future` (30 days), `too_old` (400 days).
    - quarantined are `missing_key`, `unparseable` and `malformed_lines` (truncated object, bare scalar, one name twice,
      invalid UTF-8, in turn).
    - `null`: loaded, with a NULL in a column that is not the key. `duplicate`: the second row of a key in its file.
    """
    now = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)
    return {name: _total(content.counts for content in _sample(name, now)) for name in _FEEDS}


def drop_sample_files(landing: str, archive: str, *, now: dt.datetime) -> dict[str, dict[str, int]]:
    """Put the demo's files into the landing zone: 12 a feed, of 200 rows, once and never again.

    Args:
        landing: the folder of the landing zone.
        archive: where loaded files are moved to: a feed of which a sample file lies there is left alone.
        now: the moment before which the rows' timestamps lie, within three days. UTC.

    Returns:
        For each feed of which files were made what they hold, as `planted_files` counts. A file that is still there
        from an earlier call is not made again.

    Raises:
        SettingsError: the landing zone is no local folder, or cannot be written.
    """
    root, archived = _folder(landing), Path(archive)
    made: dict[str, dict[str, int]] = {}
    for name, feed in _FEEDS.items():
        marker = f"{name}-sample-"
        if any(marker in path.name for path in archived.rglob(f"*{marker}*")):
            continue
        missing = [content for content in _sample(name, now) if not (root / feed.folder / content.name).exists()]
        for content in missing:
            _write(root / feed.folder / content.name, content.data)
        if missing:
            made[name] = _total(content.counts for content in missing)
    return made


def make_files(
    landing: str,
    feeds: Sequence[str],
    *,
    now: dt.datetime,
    files: int,
    rows: int,
    faults: float = 0.0,
    bad_files: float = 0.0,
    seed: int = 0,
    dated: bool = False,
) -> Iterator[Planted]:
    """Put files into the landing zone, one at each step, the feeds in turn.

    Two runs with another moment or seed make other files with other keys.

    Args:
        landing: the folder of the landing zone.
        feeds: some of `FEEDS`.
        now: the moment before which the rows' timestamps lie, within three days. UTC.
        files: how many of each feed; 0 for ever more.
        rows: of each file.
        faults: share of the rows with a fault, 0 to 1.
        bad_files: share of the files that are bad, 0 to 1.
        seed: decides which rows those are.
        dated: into a folder named after the day of `now`, not into the feed's folder itself.

    Raises:
        SettingsError: the landing zone is no local folder, or cannot be written.
    """
    root = _folder(landing)
    tag = f"L{zlib.crc32(f'{seed}/{now.isoformat()}'.encode()) & 0xFFFFF:05x}"
    for number in itertools.count() if files == 0 else range(files):
        for name in feeds:
            feed = _FEEDS[name]
            chance = random.Random(f"{seed}/{name}/{number}")
            # Spread evenly, all kinds in turn: few files have their share too.
            before, after = int(number * bad_files), int((number + 1) * bad_files)
            bad = feed.bad[before % len(feed.bad)] if after > before else None
            kinds = [*feed.faults, "duplicate"]
            planned = {at: chance.choice(kinds) for at in range(rows) if chance.random() < faults}
            stem = f"{name}-{now:%Y%m%dT%H%M%S}-{tag}-{number:06}"
            content = _content(feed, stem, number, rows, planned, bad, tag, now)
            folder = root / feed.folder
            path = (folder / f"{now:%Y-%m-%d}" if dated else folder) / content.name
            _write(path, content.data)
            yield Planted(path, content.counts)


@dataclass(frozen=True)
class _Content:
    name: str
    data: bytes
    counts: Mapping[str, int]


def _sample(name: str, now: dt.datetime) -> Iterator[_Content]:
    feed = _FEEDS[name]
    good = _SAMPLE_FILES - len(feed.bad)
    kinds = [*feed.faults, "duplicate"]
    for number in range(_SAMPLE_FILES):
        bad = feed.bad[number - good] if number >= good else None
        # Seven of 200 rows at most, in the first and the third file of each format.
        step = number // len(feed.suffixes)
        planned = {20 * (at + 1): kind for at, kind in enumerate(kinds)} if bad is None and step % 2 == 0 else {}
        yield _content(feed, f"{name}-sample-{number + 1:02}", number, _SAMPLE_ROWS, planned, bad, "L1", now)


def _content(
    feed: _Feed,
    stem: str,
    number: int,
    size: int,
    planned: Mapping[int, str],
    bad: str | None,
    tag: str,
    now: dt.datetime,
) -> _Content:
    """One file. A fault that its format cannot express, or that has no faultless row before it, is left out."""
    suffix = _suffix(feed, number, bad)
    counts: Counter[str] = Counter(dict.fromkeys(_ALWAYS, 0) | {"files": 1})
    rows = [feed.make(number * size + at, tag, now) for at in range(size)]
    if bad in _WHOLE:
        counts.update({"bad_files": 1, bad: 1})
    else:
        faulty = _bend(feed, rows, planned, text=not suffix.startswith(".parquet"))
        counts.update(faulty)
        if malformed := min(4, size) if bad == _MALFORMED else 0:
            counts[_MALFORMED] = malformed
        quarantined = sum(faulty[kind] for kind in _QUARANTINED) + malformed
        counts.update(
            {
                "rows": size + malformed,
                "loaded": size + malformed - quarantined - faulty["duplicate"],
                "quarantined": quarantined,
                "duplicates": faulty["duplicate"],
                "warned": sum(faulty[kind] for kind in _WARNED),
            }
        )
    return _Content(stem + suffix, _bytes(feed, rows, suffix, bad), counts)


def _total(counts: Iterable[Mapping[str, int]]) -> dict[str, int]:
    total: Counter[str] = Counter()
    for some in counts:
        total.update(some)
    return dict(total)


def _suffix(feed: _Feed, number: int, bad: str | None) -> str:
    suffixes = list(feed.suffixes)
    if bad == _MALFORMED:
        suffixes = [".json"]
    elif bad == "truncated_gzip":
        suffixes = [s for s in suffixes if s.endswith(".gz")] or [".csv.gz"]
    elif bad is not None:
        suffixes = [suffix for suffix in suffixes if suffix.endswith(_WHOLE[bad]) and not suffix.endswith(".gz")]
    return suffixes[number % len(suffixes)]


def _bend(feed: _Feed, rows: list[Row], planned: Mapping[int, str], *, text: bool) -> Counter[str]:
    """Put the planned faults into the rows; says how many of each kind there are now."""
    counts: Counter[str] = Counter()
    for at, kind in sorted(planned.items()):
        if kind == "duplicate":
            if at == 0 or at - 1 in planned:
                continue
            rows[at] = dict(rows[at - 1])
        elif kind == "unparseable" and not text:
            continue
        else:
            column, value = feed.faults[kind]
            rows[at][column] = value(rows[at][column]) if callable(value) else value
        counts[kind] += 1
    return counts


def _bytes(feed: _Feed, rows: list[Row], suffix: str, bad: str | None) -> bytes:
    if bad == "empty":
        return b""
    names = list(rows[0]) if rows else list(feed.make(0, "", dt.datetime(2026, 1, 1, tzinfo=dt.UTC)))
    if suffix.startswith(".parquet"):
        data = _parquet(feed, rows)
        # Without its end, where the footer is, as a writer leaves it that dies.
        return data[: len(data) * 2 // 3] if bad == "corrupt_parquet" else data
    if suffix.startswith(".csv"):
        headers = [names[0], names[1], *names[1:-1]] if bad == "duplicate_headers" else names
        data = _csv(headers, names, rows, ";" if bad == "wrong_delimiter" else ",")
    else:
        lines = [json.dumps(row, default=_json, ensure_ascii=False).encode() for row in rows]
        if bad == _MALFORMED and rows:
            for step, line in enumerate(_malformed(names, lines[0])[: len(rows)]):
                lines.insert((step + 1) * len(rows) // 5 + step, line)
        data = b"".join(line + b"\n" for line in lines)
    if suffix.endswith(".gz"):
        # No time of its own in the header: the same rows, the same bytes.
        data = gzip.compress(data, mtime=0)
    return data[: len(data) * 2 // 3] if bad == "truncated_gzip" else data


def _malformed(names: Sequence[str], line: bytes) -> list[bytes]:
    key = names[0].encode()
    return [
        line[: len(line) // 2],
        b"42",
        b'{"' + key + b'": "once", ' + line[1:],
        b'{"' + key + b'": "\xff\xfe", ' + line[line.index(b", ") + 2 :],
    ]


def _parquet(feed: _Feed, rows: Sequence[Row]) -> bytes:
    schema = arrow.schema([arrow.field(name, kind) for name, kind in feed.types.items()])
    sink = io.BytesIO()
    parquet.write_table(arrow.Table.from_pylist(list(rows), schema=schema), sink)
    return sink.getvalue()


def _csv(headers: Sequence[str], names: Sequence[str], rows: Sequence[Row], delimiter: str) -> bytes:
    out = io.StringIO()
    writer = csv.writer(out, delimiter=delimiter, lineterminator="\n")
    writer.writerow(headers)
    writer.writerows([_text(row[name]) for name in names] for row in rows)
    return out.getvalue().encode()


def _text(value: Any) -> Any:
    match value:
        case bool():
            return "true" if value else "false"
        case dt.datetime():
            return f"{value:%Y-%m-%d %H:%M:%S}"
        case _:
            return value


def _json(value: Any) -> Any:
    return float(value) if isinstance(value, Decimal) else _text(value)


def _folder(landing: str) -> Path:
    if "://" in landing:
        raise SettingsError(f"{landing!r} is not a folder.", "files are made in local folders only: name one.")
    return Path(landing)


def _write(path: Path, data: bytes) -> None:
    # A hidden name until it is complete: nobody loads a file whose name begins with a dot.
    part = path.with_name(f".{path.name}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        part.write_bytes(data)
        part.rename(path)
    except OSError as error:
        raise SettingsError(
            f"{path} cannot be written ({error.strerror}).", "let BRONZE_LANDING name a folder that can be written."
        ) from None
    finally:
        with contextlib.suppress(OSError):
            part.unlink()
