"""The pandera model of a table, compiled into Spark columns: broken rules, outcome, reasons, score and hash.

Pandera's own PySpark checks run one Spark action each and answer with one boolean; here each check becomes one
expression, so that all rules, the score and the hash are one projection over one pass. Pandera's own `validate` is the
oracle in the tests.

A source frame has the declared columns with their declared types. A value that could not be had as its type is NULL
there, and its text stands in `raw_column(name)`; a column that always parses has no such companion.
"""

from __future__ import annotations

import functools
import hashlib
import operator
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from typing import Any, Protocol

from pyspark.sql import Column as SparkColumn
from pyspark.sql import DataFrame
from pyspark.sql import functions as F
from pyspark.sql import types as T

from bronze_assets.errors import PrivacyRefused
from bronze_assets.flags import Flags
from bronze_assets.table import TIMELY_CHECKS, BronzeTable, Column, Impact

KEY = "key"
PARSED = "parsed"
KEY_UNIQUE = "key_unique"
QUARANTINED = "__quarantined"
LINE = "_line"
"""Pseudo column of a source frame of files: its `raw_column` holds a line that is no row of the table."""
EXPECTED = "__expected"
"""What would have been expected instead of such a line."""
NULL_PENALTY = 10
_RAW = "__raw_"

_CHECK_SUFFIX = {
    "equal_to": "eq",
    "not_equal_to": "ne",
    "greater_than": "gt",
    "greater_than_or_equal_to": "ge",
    "less_than": "lt",
    "less_than_or_equal_to": "le",
    "str_matches": "matches",
    "str_contains": "contains",
    "str_startswith": "startswith",
    "str_endswith": "endswith",
    "str_length": "length",
}


class Sealed(Protocol):
    """What stands for protected values wherever somebody could read them."""

    def hashed(self, name: str) -> SparkColumn:
        """What of a column's value enters a hash."""

    def sealed(self, name: str, value: SparkColumn) -> SparkColumn:
        """A text that only the holder of the key can read."""


@dataclass(frozen=True)
class Rule:
    """A rule that every row must hold.

    Attributes:
        name: stable; also the name of its asset check.
        columns: what it speaks of.
        check: pandera's check name; `key` and `parsed` for the rules of every table.
        expected: in words.
        quarantines: whether a row that breaks it is quarantined.
    """

    name: str
    columns: tuple[Column, ...]
    check: str
    arguments: Mapping[str, Any]
    expected: str
    impact: Impact
    quarantines: bool


def rules(table: BronzeTable) -> tuple[Rule, ...]:
    """The rules of a table: key and types first, then one for each check of its model.

    The checks of key columns are part of the key's rule, unless they depend on when the load runs.
    """
    on_key = " and ".join(
        [f"{c.name} is present" for c in table.key]
        + [_expected(c, check, arguments) for c, check, arguments in _key_checks(table.key)]
    )
    found = [
        Rule(KEY, table.key, KEY, {}, on_key, Impact.HIGH, True),
        Rule(PARSED, table.columns, PARSED, {}, "every value parses as its declared type", Impact.HIGH, True),
    ]
    for column in table.columns:
        for check, arguments in column.checks.items():
            if column.key and check not in TIMELY_CHECKS:
                continue
            found.append(
                Rule(
                    name=f"{column.name}_{_CHECK_SUFFIX.get(check, check)}",
                    columns=(column,),
                    check=check,
                    arguments=arguments,
                    expected=_expected(column, check, arguments),
                    impact=column.impact,
                    quarantines=column.quarantine,
                )
            )
    return tuple(found)


def _key_checks(key: Iterable[Column]) -> list[tuple[Column, str, Mapping[str, Any]]]:
    return [(c, check, a) for c in key for check, a in c.checks.items() if check not in TIMELY_CHECKS]


def fingerprint(table: BronzeTable) -> str:
    """MD5 of the rule set: names, meanings and declared types. Changes when a verdict could."""
    parts = [f"{c.name}:{c.type.simpleString()}" for c in table.columns]
    parts += [f"{r.name}:{r.expected}:{r.impact}:{r.quarantines}" for r in rules(table)]
    return hashlib.md5("\n".join(parts).encode(), usedforsecurity=False).hexdigest()


def raw_column(name: str) -> str:
    """Name of the companion that holds the text of a value which did not parse."""
    return f"{_RAW}{name}"


def broken(table: BronzeTable) -> Flags:
    """Which rules a judged row breaks, by the rules' names."""
    return Flags("__broken_", [rule.name for rule in rules(table)])


def missing(table: BronzeTable) -> Flags:
    """In which columns the source of a judged row has NULL, by their names; an unparseable value is not."""
    return Flags("__missing_", [column.name for column in table.columns])


def judge(
    frame: DataFrame,
    table: BronzeTable,
    *,
    extra: Sequence[str],
    today: date,
    now: datetime,
    sealed: Sealed | None = None,
) -> DataFrame:
    """Add the columns of `broken` and `missing`, `__quarantined`, `data_quality_score` and `record_hash`.

    Args:
        frame: a source frame (module docstring).
        extra: columns of the frame that the table does not declare; they enter the hash only when not NULL.
        today: the load's business date, with which `not_in_future` and `max_age_days` compare dates.
        now: the load's moment, with its time zone, with which they compare timestamps.
        sealed: for a table with protected columns, what of them enters the hash.
    """
    raw = set(frame.columns)
    all_rules = rules(table)
    breaks, misses = broken(table), missing(table)
    judged = frame.withColumns(
        breaks.columns({rule.name: _breaks(rule, raw, today, now) for rule in all_rules})
        | misses.columns({column.name: _is_null(column.name, raw) for column in table.columns})
    )
    costs: dict[int, list[str]] = {}
    for rule in all_rules:
        costs.setdefault(rule.impact.penalty, []).append(rule.name)
    penalties = [breaks.number_set(names) * penalty for penalty, names in costs.items()]
    nulls = misses.number_set(column.name for column in table.columns) * NULL_PENALTY
    score = F.lit(100) - functools.reduce(operator.add, [*penalties, nulls])
    return judged.withColumns(
        {
            QUARANTINED: breaks.any_set(rule.name for rule in all_rules if rule.quarantines),
            "data_quality_score": F.greatest(F.lit(0), score).cast("int"),
            "record_hash": record_hash(frame, table, extra, sealed),
        }
    )


def _is_null(name: str, columns: Iterable[str]) -> SparkColumn:
    """Whether the source's value is NULL; an unparseable value is not."""
    null = F.col(name).isNull()
    # A line that is no row has no values, which is not the same.
    for raw in (raw_column(name), raw_column(LINE)):
        if raw in columns:
            null = null & F.col(raw).isNull()
    return null


def record_hash(
    frame: DataFrame, table: BronzeTable, extra: Sequence[str], sealed: Sealed | None = None
) -> SparkColumn:
    """MD5, as hex, over the canonical form of the source columns (semantics.md, docs/adr/0005).

    The form has two parts, joined by commas. The head has a field for each declared column, in order: `N` for NULL, the
    length in UTF-8 bytes for a string, and for any other type its text: decimal digits of an integer, days since
    1970-01-01 of a date, microseconds since then of a timestamp, a decimal at its own scale, `true` or `false`. The
    strings follow, in order, NULL ones left out. Columns that came later (declared with `added=True`, or not declared)
    come last, by name and only when not NULL, as `<bytes>:<name><bytes>:<text>`. For a hidden value stands its HMAC: an
    unkeyed hash would give it away.
    """
    types = {f.name: f.dataType for f in frame.schema.fields}
    texts = {c.name: _text(F.col(c.name), types[c.name]) for c in table.columns}
    texts |= {name: _text(F.col(name), types[name]) for name in extra}
    if sealed is not None:
        texts |= {name: sealed.hashed(name) for name in hidden(table, extra)}
    strings = {name for name in texts if isinstance(types[name], T.StringType)}
    return _canonical_md5(texts, strings, {c.name for c in table.columns if c.added} | set(extra))


def row_hash(frame: DataFrame, table: BronzeTable, extra: Sequence[str], sealed: Sealed | None = None) -> SparkColumn:
    """Like `record_hash`, but with the raw text of what did not parse: tells quarantined rows apart."""
    types = {f.name: f.dataType for f in frame.schema.fields}
    names = [*(c.name for c in table.columns), *extra]
    texts = {name: _or_raw(name, _text(F.col(name), types[name]), frame.columns) for name in names}
    if raw_column(LINE) in frame.columns:
        texts[LINE] = F.col(raw_column(LINE)) if sealed is None else sealed.hashed(LINE)
    if sealed is not None:
        texts |= {name: sealed.hashed(name) for name in hidden(table, extra)}
    later = {c.name for c in table.columns if c.added} | set(extra) | ({LINE} & set(texts))
    # A raw text may be anything, so every value counts as a string here.
    return _canonical_md5(texts, set(texts), later)


def raw_row(
    table: BronzeTable, columns: Sequence[str], extra: Sequence[str], sealed: Sealed | None = None
) -> SparkColumn:
    """The row as the source gave it, as JSON text values by column name; protected values sealed, or left out."""
    unread = hidden(table, extra)
    texts = {name: _readable(name, columns) for name in [*(c.name for c in table.columns), *extra]}
    for name in unread:
        value = texts.pop(name)
        if sealed is not None:
            texts[name] = sealed.sealed(name, value)
    row = F.to_json(F.struct(*(text.alias(name) for name, text in texts.items())), {"ignoreNullFields": "false"})
    if raw_column(LINE) not in columns:
        return row
    # Nobody can tell which part of such a line is a protected value.
    line = F.col(raw_column(LINE))
    if unread:
        line = F.lit(None).cast("string") if sealed is None else sealed.sealed(LINE, line)
    return F.when(F.col(raw_column(LINE)).isNull(), row).otherwise(
        F.to_json(F.struct(line.alias(LINE)), {"ignoreNullFields": "false"})
    )


def reasons(table: BronzeTable, columns: Sequence[str]) -> SparkColumn:
    """Why a judged row is quarantined: an array of (rule, column, expected, found), `found` NULL where protected."""
    found: list[SparkColumn] = []
    raw_names = [name.removeprefix(_RAW) for name in columns if name.startswith(_RAW)]
    unread = hidden(table, [name for name in raw_names if not table.knows(name)])
    types = {c.name: c.type.simpleString() for c in table.columns}

    def reason(rule: Rule, column: str, expected: str | SparkColumn) -> SparkColumn:
        value = F.lit(None).cast("string") if column in unread else _readable(column, columns)
        return F.struct(
            F.lit(rule.name).alias("rule"),
            F.lit(column).alias("column"),
            (F.lit(expected) if isinstance(expected, str) else expected).alias("expected"),
            value.alias("found"),
        )

    breaks = broken(table)
    for rule in rules(table):
        if not rule.quarantines:
            continue
        if rule.check == PARSED:
            found += [
                F.when(
                    F.col(raw_column(name)).isNotNull(),
                    reason(rule, name, F.col(EXPECTED) if name == LINE else f"parses as {types.get(name, 'its type')}"),
                )
                for name in raw_names
            ]
        else:
            found += [F.when(breaks.is_set(rule.name), reason(rule, c.name, rule.expected)) for c in rule.columns]
    return F.filter(F.array(*found), lambda item: item.isNotNull())


def protected(table: BronzeTable) -> set[str]:
    """Names of the columns whose values may not be read beside the table."""
    return {c.name for c in table.columns if c.pii.protected}


def hidden(table: BronzeTable, extra: Iterable[str]) -> set[str]:
    """`protected`, and in a table with personal data what it does not declare: nobody has classified that.

    Args:
        extra: names that the table does not declare.
    """
    return protected(table) | (set(extra) if table.has_personal_data else set())


def key_text(table: BronzeTable) -> SparkColumn:
    """The key as people read it: the values, separated by commas; NULL values as `NULL`."""
    return as_key_text([F.col(c.name) for c in table.key])


def as_key_text(values: Sequence[SparkColumn]) -> SparkColumn:
    """`key_text` of other columns than the key's own."""
    return F.concat_ws(", ", *(F.coalesce(value.cast("string"), F.lit("NULL")) for value in values))


def canonical_key(table: BronzeTable, key: str) -> str:
    """The key text, if it can be one of the table's: `0102` is no key, and its row would not be found.

    Raises:
        PrivacyRefused: it can be nobody's.
    """
    parts = key.split(", ") if len(table.key) > 1 else [key]
    whole = (T.IntegerType, T.LongType)
    numbers = [isinstance(column.type, whole) for column in table.key]
    if len(parts) == len(numbers):
        pairs = zip(parts, numbers, strict=True)
        odd = any(number and not re.fullmatch("0|-?[1-9][0-9]*", part) for part, number in pairs)
    else:
        # A text may hold the separator.
        odd = all(numbers)
    if key and odd:
        shape = ", ".join(f"<{column.name}, {column.type.simpleString()}>" for column in table.key)
        raise PrivacyRefused(f"{key!r} can be nobody's key.", f"write it as {shape}.", table=table.name)
    return key


def _breaks(rule: Rule, columns: Iterable[str], today: date, now: datetime) -> SparkColumn:
    if rule.check == PARSED:
        raws = [F.col(name).isNotNull() for name in columns if name.startswith(_RAW)]
        return functools.reduce(operator.or_, raws, F.lit(False))
    if rule.check == KEY:
        conditions = [F.col(c.name).isNotNull() for c in rule.columns]
        conditions += [_holds(c, check, arguments, today, now) for c, check, arguments in _key_checks(rule.columns)]
        broken = ~F.coalesce(functools.reduce(operator.and_, conditions), F.lit(False))
        # A line that is no row breaks one rule, not all of them.
        return broken & F.col(raw_column(LINE)).isNull() if raw_column(LINE) in columns else broken
    # A column that may be NULL and is NULL breaks nothing but costs the 10 points; an unparseable one is NULL here.
    (column,) = rule.columns
    holds = _holds(column, rule.check, rule.arguments, today, now)
    return F.col(column.name).isNotNull() & ~F.coalesce(holds, F.lit(False))


def _holds(column: Column, check: str, arguments: Mapping[str, Any], today: date, now: datetime) -> SparkColumn:
    value = F.col(column.name)
    clock = now if isinstance(column.type, T.TimestampType) else today
    a = dict(arguments)

    def literal(name: str) -> SparkColumn:
        return F.lit(a[name])

    match check:
        case "equal_to":
            return value == literal("value")
        case "not_equal_to":
            return value != literal("value")
        case "greater_than":
            return value > literal("min_value")
        case "greater_than_or_equal_to":
            return value >= literal("min_value")
        case "less_than":
            return value < literal("max_value")
        case "less_than_or_equal_to":
            return value <= literal("max_value")
        case "in_range":
            low = value >= literal("min_value") if a.get("include_min", True) else value > literal("min_value")
            high = value <= literal("max_value") if a.get("include_max", True) else value < literal("max_value")
            return low & high
        case "isin":
            return value.isin(list(a["allowed_values"]))
        case "notin":
            return ~value.isin(list(a["forbidden_values"]))
        case "str_matches":
            pattern = getattr(a["pattern"], "pattern", a["pattern"])
            return value.rlike(pattern if pattern.startswith("^") else f"^{pattern}")
        case "str_contains":
            return value.rlike(getattr(a["pattern"], "pattern", a["pattern"]))
        case "str_startswith":
            return value.startswith(a["string"])
        case "str_endswith":
            return value.endswith(a["string"])
        case "str_length":
            length = F.char_length(value)
            holds = F.lit(True)
            for name, compare in (("min_value", operator.ge), ("max_value", operator.le), ("exact_value", operator.eq)):
                if a.get(name) is not None:
                    holds = holds & compare(length, F.lit(a[name]))
            return holds
        case "not_in_future":
            return value <= F.lit(clock) if a["enabled"] else F.lit(True)
        case "max_age_days":
            return value >= F.lit(clock - timedelta(days=a["days"]))
        case _:  # BronzeTable refuses others when it is built
            raise AssertionError(check)


def _expected(column: Column, check: str, arguments: Mapping[str, Any]) -> str:
    name = column.name
    a = {key: getattr(value, "pattern", value) for key, value in arguments.items()}
    # The words enter `fingerprint`: a set's own order differs from process to process.
    a = {key: sorted(value, key=repr) if isinstance(value, (set, frozenset)) else value for key, value in a.items()}
    clock = "the moment of the load" if isinstance(column.type, T.TimestampType) else "the business date of the load"
    match check:
        case "equal_to":
            return f"{name} = {a['value']}"
        case "not_equal_to":
            return f"{name} <> {a['value']}"
        case "greater_than":
            return f"{name} > {a['min_value']}"
        case "greater_than_or_equal_to":
            return f"{name} >= {a['min_value']}"
        case "less_than":
            return f"{name} < {a['max_value']}"
        case "less_than_or_equal_to":
            return f"{name} <= {a['max_value']}"
        case "str_matches" | "str_contains":
            return f"{name} {'matches' if check == 'str_matches' else 'contains'} {a['pattern']}"
        case "not_in_future":
            return f"{name} <= {clock}"
        case "max_age_days":
            return f"{name} >= {a['days']} days before {clock}"
        case _:
            return f"{name} {check} " + ", ".join(f"{key}={value}" for key, value in a.items())


def _text(value: SparkColumn, kind: T.DataType) -> SparkColumn:
    match kind:
        case T.StringType():
            return value
        case T.DateType():
            return F.unix_date(value).cast("string")
        case T.TimestampType():
            return F.unix_micros(value).cast("string")
        case _:
            return value.cast("string")


def _or_raw(name: str, text: SparkColumn, columns: Iterable[str]) -> SparkColumn:
    return F.coalesce(F.col(raw_column(name)), text) if raw_column(name) in columns else text


def _readable(name: str, columns: Iterable[str]) -> SparkColumn:
    if name == LINE:
        return F.col(raw_column(LINE))
    return _or_raw(name, F.col(name).cast("string"), columns)


def _canonical_md5(texts: Mapping[str, SparkColumn], strings: set[str], later: set[str]) -> SparkColumn:
    declared = {name: text for name, text in texts.items() if name not in later}
    head = [
        F.coalesce(F.octet_length(text).cast("string") if name in strings else text, F.lit("N"))
        for name, text in declared.items()
    ]
    bodies = [text for name, text in declared.items() if name in strings]

    def sized(text: SparkColumn) -> SparkColumn:
        return F.concat(F.octet_length(text).cast("string"), F.lit(":"), text)

    tail = [F.concat(F.lit(f"{len(name.encode())}:{name}"), sized(texts[name])) for name in sorted(later)]
    # concat_ws leaves out what is NULL.
    return F.md5(F.concat_ws(",", *head, *bodies, *tail))
