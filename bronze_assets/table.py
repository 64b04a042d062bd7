"""What one bronze table is: `BronzeTable`, its columns and its rules, stated once and validated when built.

A table is declared by a pandera model whose fields are made with `column()`; everything else (rules, penalties, asset,
checks, metadata, layout) follows from that declaration.
"""

from __future__ import annotations

import datetime as dt
import enum
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, cast

import pandera.pyspark as pa
from pandera.api.checks import Check
from pandera.api.pyspark.types import PysparkDataframeColumnObject
from pandera.errors import SchemaInitError
from pyspark.sql import Column as SparkColumn
from pyspark.sql import DataFrame
from pyspark.sql import functions as F
from pyspark.sql import types as T

from bronze_assets.errors import DeclarationError

POSTGRES = "PostgreSQL_DE"
RESCUED = "_rescued_data"
DATE_FORMAT = "yyyy-MM-dd"
TIMESTAMP_FORMAT = "yyyy-MM-dd HH:mm:ss"

METADATA_COLUMNS: Mapping[str, tuple[T.DataType, str]] = {
    "load_timestamp": (T.TimestampType(), "When the row version was first written (UTC)."),
    "update_timestamp": (T.TimestampType(), "Last in-place change; equals load_timestamp at first (UTC)."),
    "source_system": (T.StringType(), "The system the row came from."),
    "record_status": (T.StringType(), "ACTIVE, DELETED (gone at the source) or ERASED."),
    "data_quality_score": (T.IntegerType(), "0 to 100; 100 minus 10 per NULL column and the broken rules' penalties."),
    "batch_id": (T.StringType(), "The load that wrote the row version: <partition key>/<number>."),
    "file_name": (T.StringType(), "The landing file; NULL for rows read over JDBC."),
    "record_hash": (T.StringType(), "MD5 over the canonical form of the source columns."),
    "source_position": (T.StringType(), "Orders the versions of a key: source epoch / commit LSN / sequence."),
}
"""Columns on every bronze table, in order: type and description (tables.md)."""

LOAD_DATE = "load_date"


class Evolution(enum.StrEnum):
    """What happens to a column of a file that the table does not declare.

    `add`: it joins the table as STRING. `rescue`: its values are kept in `_rescued_data`. `stop`: the table is not
    loaded until somebody accepts the column.
    """

    ADD = "add"
    RESCUE = "rescue"
    STOP = "stop"


class Overwritten(enum.StrEnum):
    """What happens to a loaded file that is there again with other content.

    `ignore`: nothing. `reload`: its new rows replace the old ones. `stop`: the table is not loaded until it is gone.
    """

    IGNORE = "ignore"
    RELOAD = "reload"
    STOP = "stop"


class Loaded(enum.StrEnum):
    """What happens to a file that has been loaded: moved to the archive, left, or deleted some days later."""

    ARCHIVE = "archive"
    LEAVE = "leave"
    DELETE = "delete"


@dataclass(frozen=True)
class Feed:
    """Files as a table's source. The format follows from the name: `.csv`, `.json`, `.jsonl`, `.parquet`, `.gz` too.

    Attributes:
        path: the folder below the landing zone; files lie in it, or in folders named after days (`YYYY-MM-DD`).
        captured: whether they are changes of a database table (`__op`, `__source_lsn`, …) and not rows as such.
        event_time: the column that orders the versions of a key; None takes the file's modified time and path.
        multiline: whether one JSON value may span lines: a file is then one object or one array of objects.
        timestamp_format, date_format: of values in text, as Spark's datetime patterns.
        evolution, overwritten, loaded: see the classes.
        delete_after_days: for `Loaded.DELETE`.
        max_files: most files of one batch; a batch is of at most 16 GiB too.
        settle_seconds: a file whose modified time is younger than this waits: it may be half written.
    """

    path: str
    captured: bool = False
    event_time: str | None = None
    multiline: bool = False
    timestamp_format: str = TIMESTAMP_FORMAT
    date_format: str = DATE_FORMAT
    evolution: Evolution = Evolution.ADD
    overwritten: Overwritten = Overwritten.RELOAD
    loaded: Loaded = Loaded.ARCHIVE
    delete_after_days: int = 30
    max_files: int = 10_000
    settle_seconds: int = 5

    def leaves_at(self, loaded_at: dt.datetime) -> dt.datetime | None:
        """When a file is to leave the landing zone that was loaded then; None if it stays."""
        match self.loaded:
            case Loaded.LEAVE:
                return None
            case Loaded.DELETE:
                return loaded_at + dt.timedelta(days=self.delete_after_days)
            case Loaded.ARCHIVE:
                return loaded_at


class Impact(enum.StrEnum):
    """How much a broken rule matters; the penalty is taken off the row's score (tables.md)."""

    HIGH = "High"
    MEDIUM = "Medium"
    LOW = "Low"

    @property
    def penalty(self) -> int:
        """Points off the score of a row that breaks the rule."""
        return {"High": 25, "Medium": 15, "Low": 5}[self.value]


class Pii(enum.StrEnum):
    """Class of personal data; High and Medium values are protected wherever they lie."""

    NONE = "None"
    LOW = "Low"
    MEDIUM = "Medium"
    HIGH = "High"

    @property
    def protected(self) -> bool:
        """Whether values of this class may not be read beside the table (quarantine, messages, samples)."""
        return self in (Pii.MEDIUM, Pii.HIGH)


class Cadence(enum.Enum):
    """How often a table is loaded; decides its Dagster partitions and its freshness thresholds (tables.md)."""

    STREAMING = "streaming"
    DAILY = "daily"
    HOURLY = "hourly"


def column(
    *,
    description: str,
    key: bool = False,
    pii: Pii = Pii.NONE,
    impact: Impact = Impact.HIGH,
    quarantine: bool = False,
    added: bool = False,
    **checks: Any,
) -> Any:
    """A source column of a table: a pandera field plus what the platform needs to know about it.

    Args:
        description: what the column holds, for the catalog and the UI.
        key: part of the key; must be present. Keep `gt=0` on integer keys.
        pii: class of personal data.
        impact: of the rules stated on this column; a broken key rule has high impact whatever is stated.
        quarantine: whether a row that breaks a rule of this column is quarantined instead of loaded; a row without a
            usable key always is.
        added: the column came after the table's first load: it enters `record_hash` only when not NULL, with its name,
            so that the hashes of older rows stay as they are.
        checks: pandera checks, e.g. `ge=0`, `str_matches="^x"`, and `dtype_kwargs`. Of dates and timestamps also
            `not_in_future=True` and `max_age_days=365`: dates are compared with the load's business date, timestamps
            with its moment.

    Raises:
        DeclarationError: pandera knows no such check, or not with such arguments.
    """
    try:
        return pa.Field(
            nullable=not key,
            description=description,
            metadata={"key": key, "pii": pii, "impact": impact, "quarantine": quarantine, "added": added},
            **checks,
        )
    except (SchemaInitError, TypeError, ValueError) as error:
        raise DeclarationError(
            f"the column {description!r} cannot state {checks} ({error}).", "use pandera's checks for PySpark."
        ) from error


def _clock(data: PysparkDataframeColumnObject) -> SparkColumn:
    """What a column's values are compared with: this moment, or today in the session's business time zone."""
    if isinstance(data.dataframe.schema[data.column_name].dataType, T.TimestampType):
        return F.current_timestamp()
    zone = str(data.dataframe.sparkSession.conf.get("bronze.business_time_zone", "UTC"))
    return F.to_date(F.from_utc_timestamp(F.to_utc_timestamp(F.current_timestamp(), F.current_timezone()), zone))


def _none(data: PysparkDataframeColumnObject, broken: SparkColumn) -> bool:
    return cast(DataFrame, data.dataframe).where(broken).limit(1).count() == 0


def _not_in_future(data: PysparkDataframeColumnObject, *, enabled: bool) -> bool:
    """Pandera's own verdict on `not_in_future`: no date lies after today, no timestamp after this moment."""
    return not enabled or _none(data, F.col(data.column_name) > _clock(data))


def _not_in_future_check(enabled: bool, **options: Any) -> Check:
    name = "not_in_future"
    return Check(_not_in_future, name=name, error=f"{name}({enabled})", enabled=enabled, **options)


# The day so long ago must be one that Python's dates have.
_MOST_DAYS = 36_500


def _max_age_days(data: PysparkDataframeColumnObject, *, days: int) -> bool:
    """Pandera's own verdict on `max_age_days`: no date or timestamp lies more than that before today or this moment."""
    return _none(data, F.col(data.column_name) < _clock(data) - F.make_dt_interval(F.lit(days)))


def _max_age_days_check(days: int, **options: Any) -> Check:
    if isinstance(days, bool) or not isinstance(days, int) or not 0 <= days <= _MOST_DAYS:
        raise ValueError(f"max_age_days={days!r} is not a whole number of days from 0 to {_MOST_DAYS}")
    name = "max_age_days"
    return Check(_max_age_days, name=name, error=f"{name}({days})", days=days, **options)


# Not pandera's register_check_method: a check made by that is called without the name of its column.
Check.REGISTERED_CUSTOM_CHECKS["not_in_future"] = _not_in_future_check
Check.REGISTERED_CUSTOM_CHECKS["max_age_days"] = _max_age_days_check


@dataclass(frozen=True)
class Column:
    """A declared source column.

    Attributes:
        name: snake_case, as in the bronze table.
        type: Spark type.
        checks: pandera's check name → its arguments.
    """

    name: str
    type: T.DataType
    key: bool
    pii: Pii
    impact: Impact
    quarantine: bool
    added: bool
    description: str
    checks: Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True)
class Layout:
    """How the Delta table lies on disk.

    Attributes:
        partition_by: a source column, or `load_date` for the generated date of `load_timestamp`.
        z_order: columns by which maintenance clusters the files.
    """

    partition_by: str | None = None
    z_order: tuple[str, ...] = ()


@dataclass(frozen=True)
class Retention:
    """For how many days a table keeps what is no longer its present; None is for ever. A legal hold comes before it.

    Attributes:
        superseded_days: row versions that a newer version of their key has replaced, from its `load_timestamp` on, and
            `DELETED` versions, from their own.
        rows_days: all row versions, the latest too, from their `load_timestamp` on; only of files that are events.
        quarantine_days: quarantined rows that are settled, from when they were.
        open_quarantine_days: quarantined rows that nobody has settled, from when they were last seen.
        archive_days: loaded files in the archive, from when they were moved there.
        reason: why so long, for who answers for it; needed where anything is ever removed.

    Raises:
        DeclarationError: a layer is not kept for a whole number of days, or nobody says why.
    """

    superseded_days: int | None = None
    rows_days: int | None = None
    quarantine_days: int | None = None
    open_quarantine_days: int | None = None
    archive_days: int | None = None
    reason: str = ""

    def __post_init__(self) -> None:
        for name, days in self.days.items():
            if isinstance(days, bool) or not isinstance(days, int) or not 1 <= days <= _MOST_DAYS:
                raise DeclarationError(
                    f"retention: {name}={days!r} is not a whole number of days from 1 to {_MOST_DAYS}.",
                    "give such a number, or None for ever.",
                )
        if self.days and not self.reason.strip():
            raise DeclarationError("retention: nobody says why rows are to go.", "give Retention(reason=…).")

    @property
    def days(self) -> dict[str, int]:
        """Name of the attribute → days, of the layers that anything is ever removed from."""
        names = ("superseded_days", "rows_days", "quarantine_days", "open_quarantine_days", "archive_days")
        return {name: getattr(self, name) for name in names if getattr(self, name) is not None}


SUPPORTED_TYPES: tuple[type[T.DataType], ...] = (
    T.IntegerType,
    T.LongType,
    T.StringType,
    T.DecimalType,
    T.DateType,
    T.TimestampType,
    T.BooleanType,
)

SUPPORTED_CHECKS = frozenset(
    {
        "equal_to",
        "not_equal_to",
        "greater_than",
        "greater_than_or_equal_to",
        "less_than",
        "less_than_or_equal_to",
        "in_range",
        "isin",
        "notin",
        "str_matches",
        "str_contains",
        "str_startswith",
        "str_endswith",
        "str_length",
        "not_in_future",
        "max_age_days",
    }
)

TIMELY_CHECKS = frozenset({"not_in_future", "max_age_days"})
"""Checks whose verdict depends on when the load runs. On a key column too they are rules of their own: a key is usable
or not, whenever it is looked at."""

_ORDERED = (T.IntegerType, T.LongType, T.DecimalType, T.DateType, T.TimestampType)


@dataclass(frozen=True)
class BronzeTable:
    """The declaration of one bronze table.

    Attributes:
        schema: schema of the bronze table, e.g. `inventory_bronze`.
        source: `<schema>.<table>` at the source; matched without regard to case. For a table of files,
            `<system>.<name>`.
        model: pandera model; its fields are made with `column()`, the key columns first.
        cadence: how often it is loaded.
        description: one sentence for the catalog.
        event_date: a DATE column by which past days can be loaded again from the source; None if there is none.
        layout: Delta partitioning and clustering.
        files: the feed of a table whose source is files; None for a PostgreSQL table.
        source_system: the system that the rows come from.
        owners: for Dagster, e-mail addresses or `team:<name>`.
        group: Dagster's asset group.
        retention: for how long it keeps what is no longer its present. No part of the rule set or of the code version.

    Raises:
        DeclarationError: the declaration cannot be what it says; names the table and the culprit.
    """

    schema: str
    source: str
    model: type[pa.DataFrameModel]
    cadence: Cadence
    description: str
    event_date: str | None = None
    layout: Layout = field(default_factory=Layout)
    files: Feed | None = None
    source_system: str = POSTGRES
    owners: tuple[str, ...] = ("team:data-platform",)
    group: str = "inventory"
    retention: Retention = Retention()

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[A-Za-z_]\w*\.[A-Za-z_]\w*", self.source):
            raise DeclarationError(
                f"source {self.source!r} is not <schema>.<table>.", "write it as in 'tests.Orders'.", table=self.source
            )
        if not re.fullmatch(r"[a-z]\w*", self.schema):
            raise self._error(f"schema {self.schema!r} is not snake_case.", "use e.g. inventory_bronze.")
        self.columns  # noqa: B018  built here so that a broken declaration fails at once
        names = [c.name for c in self.columns]
        if not self.key:
            raise self._error("no column is the key.", "give one column(key=True, …).")
        if self.columns[: len(self.key)] != self.key:
            raise self._error("the key columns do not come first.", "declare them before the others.")
        for column in self.columns:
            self._validate_column(column)
        if self.event_date is not None:
            if self.event_date not in names:
                raise self._error(f"event_date {self.event_date!r} is not a column.", f"use one of {names}.")
            if not isinstance(self.column(self.event_date).type, T.DateType):
                raise self._error(f"event_date {self.event_date!r} is not a DATE.", "name a DATE column.")
        if self.layout.partition_by not in (None, LOAD_DATE, *names):
            raise self._error(f"layout.partition_by {self.layout.partition_by!r} is not a column.", f"use {names}.")
        for name in self.layout.z_order:
            if name not in names:
                raise self._error(f"layout.z_order {name!r} is not a column.", f"use some of {names}.")
        if self.retention.rows_days is not None and (self.files is None or self.files.captured):
            raise self._error(
                "retention.rows_days is for files that are events: of a database table, the next snapshot would bring"
                " rows that were removed again.",
                "leave it out; superseded_days removes what has been replaced or deleted.",
            )
        if self.retention.archive_days is not None and (self.feed is None or self.feed.loaded is not Loaded.ARCHIVE):
            raise self._error(
                "retention.archive_days is set, and no file of it is ever archived.", "leave it out of its retention."
            )

    @property
    def name(self) -> str:
        """Name of the bronze table: `bz_` and the source table's name in lower case."""
        return "bz_" + self.source.split(".")[1].lower()

    @cached_property
    def feed(self) -> Feed | None:
        """The files that the table is loaded from: its own, or the captured changes of a streaming PostgreSQL table."""
        if self.files is not None or self.cadence is not Cadence.STREAMING:
            return self.files
        # Our own capture, and Debezium's sinks, name a file when it is complete.
        return Feed(f"{self.schema}/{self.name}", captured=True, settle_seconds=0)

    @property
    def quarantine_name(self) -> str:
        """Name of the quarantine table."""
        return f"{self.name}_quarantine"

    @cached_property
    def columns(self) -> tuple[Column, ...]:
        """The declared source columns, in order."""
        try:
            schema = self.model.to_schema()
        except Exception as error:
            raise self._error(
                f"pandera cannot read the model {self.model.__name__} ({type(error).__name__}: {error}).",
                "correct the model.",
            ) from error
        if schema.checks or schema.unique:
            raise self._error(
                f"the model {self.model.__name__} states a check on the whole frame, which cannot be compiled.",
                "state checks on columns, with column().",
            )
        built = []
        for name, spec in schema.columns.items():
            meta = spec.metadata or {}
            if "pii" not in meta:
                raise self._error(f"column {name!r} is not made with column().", "use bronze_assets.table.column.")
            checks = {check.name: dict(check.statistics or {}) for check in spec.checks}
            built.append(
                Column(
                    name=name,
                    type=spec.dtype.type,
                    key=meta["key"],
                    pii=meta["pii"],
                    impact=meta["impact"],
                    quarantine=meta["quarantine"],
                    added=meta["added"],
                    description=spec.description or "",
                    checks=checks,
                )
            )
        return tuple(built)

    def column(self, name: str) -> Column:
        """The declared column of that name; KeyError if there is none."""
        for column in self.columns:
            if column.name == name:
                return column
        raise KeyError(name)

    @cached_property
    def key(self) -> tuple[Column, ...]:
        """The key columns."""
        return tuple(c for c in self.columns if c.key)

    def knows(self, name: str) -> bool:
        """Whether a column of the bronze table is declared, or one of the platform's own; not what is rescued."""
        return name in {*(c.name for c in self.columns), *METADATA_COLUMNS, LOAD_DATE}

    @property
    def has_personal_data(self) -> bool:
        """Whether any column holds personal data of any class."""
        return any(c.pii is not Pii.NONE for c in self.columns)

    def _validate_column(self, column: Column) -> None:
        if not isinstance(column.type, SUPPORTED_TYPES):
            known = ", ".join(t.__name__ for t in SUPPORTED_TYPES)
            raise self._error(f"column {column.name!r} has the type {column.type}.", f"use one of {known}.")
        if not re.fullmatch(r"[a-z]\w*", column.name) or column.name in {*METADATA_COLUMNS, LOAD_DATE}:
            raise self._error(f"column name {column.name!r} cannot be used.", "use snake_case, no metadata name.")
        if column.key and column.pii.protected:
            raise self._error(
                f"key column {column.name!r} is protected personal data.",
                "use a surrogate key; keys are shown in checks.",
            )
        for check in column.checks:
            if check not in SUPPORTED_CHECKS:
                known = ", ".join(sorted(SUPPORTED_CHECKS))
                raise self._error(
                    f"column {column.name!r} states the check {check!r}, which cannot be compiled.", f"use {known}."
                )
            if not isinstance(column.type, _checked_types(check)):
                raise self._error(
                    f"column {column.name!r} states the check {check!r}, which a {column.type.simpleString()} has not.",
                    "correct the type or leave the check out.",
                )

    def _error(self, culprit: str, fix: str) -> DeclarationError:
        return DeclarationError(culprit, fix, table=self.name)


def _checked_types(check: str) -> tuple[type[T.DataType], ...]:
    """The types whose values a check of `SUPPORTED_CHECKS` can judge; pandera knows them too, but only when it runs."""
    if check.startswith("str_"):
        return (T.StringType,)
    if check in TIMELY_CHECKS:
        return (T.DateType, T.TimestampType)
    if check in ("equal_to", "not_equal_to"):
        return SUPPORTED_TYPES
    return (*_ORDERED, T.StringType) if check in ("isin", "notin") else _ORDERED
