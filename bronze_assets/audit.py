"""What one load did: `LoadRecord`, the verdicts that follow from it, and the audit row.

Counted once, in the load's own pass; the audit row, the Dagster metadata and the check results all come from here.
"""

from __future__ import annotations

import datetime as dt
import json
import re
import uuid
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, Literal

import pyarrow as pa

from bronze_assets.errors import BronzeError
from bronze_assets.lakehouse import Lakehouse
from bronze_assets.quality import KEY_UNIQUE, rules
from bronze_assets.sources.scope import DISMISSAL, REPLAY, FileScope
from bronze_assets.spark_errors import condition_of, is_of_lost_jvm
from bronze_assets.storage import sql_literal
from bronze_assets.table import BronzeTable, Impact

MAX_NULL_SHARE = 0.05
MIN_AVERAGE_SCORE = 85.0
MAX_ERROR_RATE = 0.02
MAX_FILE_ERROR_RATE = 0.05
MAX_PROCESSING_SECONDS = 3600.0
MAX_BACKLOG_SECONDS = 3600.0
FILE_BYTES = (128 * 2**20, 2**30)
MAX_STORAGE_GROWTH = 0.20

_FILES = re.compile(r"(, )?[\d,]+ files?( again)?$")

Severity = Literal["WARN", "ERROR"]


@dataclass(frozen=True)
class RuleCount:
    """How many rows read broke a rule, and up to five of their keys as text (never protected values)."""

    broken: int = 0
    examples: tuple[str, ...] = ()


@dataclass(frozen=True)
class LoadRecord:
    """What one batch did. Counts are rows.

    Attributes:
        scope: what of the source the batch read: `full`, `order_date = …` or a key range.
        deleted: `DELETED` versions appended, counted apart from the rows read.
        warned: rows read that broke a rule and were not quarantined for it.
        score_sum: sum of the scores of all rows read.
        nulls: column → NULLs among the rows read.
        new_columns: columns at the source that the table does not declare.
        unclassified: columns of a table with personal data that are sealed, since nobody has declared them.
        replaced: row versions of this partition in whose place the batch put those of the same files.
        partition_rows: row versions that all batches of this partition have written, without the replaced ones.
        table_rows, table_bytes, table_files: the whole table after the load.
        bytes_written: of the bronze table's files, as Delta counts them; 0 where the storage does not tell.
        files, files_quarantined: files of the batch, and those of them that could not be read at all.
        latency_p50, latency_p95, latency_max: seconds from a row's commit at the source, or from its file's last
            write, to the end of the load; over the rows of files. None without any.
        backlog_files, backlog_seconds: files that still wait after the load, and for how long the oldest has; in all
            partitions. None without any.
        waiting_partitions: of those files, but for what waits for a person.
        stuck_files, stuck: loaded files that could not be moved out of the landing zone, and why the first could not.
        bytes_day_ago: the table's size at its last load at least a day before; None if there was none.
    """

    table: str
    schema: str
    partition: str
    batch_id: str
    scope: str
    started: dt.datetime
    ended: dt.datetime
    source_position: str = ""
    read: int = 0
    loaded: int = 0
    quarantined: int = 0
    duplicates: int = 0
    unchanged: int = 0
    erased: int = 0
    deleted: int = 0
    replaced: int = 0
    warned: int = 0
    score_sum: int = 0
    rules: dict[str, RuleCount] = field(default_factory=dict)
    nulls: dict[str, int] = field(default_factory=dict)
    new_columns: tuple[str, ...] = ()
    unclassified: tuple[str, ...] = ()
    resumed: bool = False
    dry_run: bool = False
    partition_rows: int = 0
    table_rows: int = 0
    table_bytes: int = 0
    table_files: int = 0
    bytes_day_ago: int | None = None
    delta_version: int | None = None
    bytes_written: int = 0
    files: int = 0
    files_quarantined: int = 0
    latency_p50: float | None = None
    latency_p95: float | None = None
    latency_max: float | None = None
    waiting_partitions: tuple[str, ...] = ()
    has_files: bool = False
    backlog_files: int = 0
    backlog_seconds: float | None = None
    stuck_files: int = 0
    stuck: str | None = None

    @property
    def average_score(self) -> float | None:
        """Average score of the rows read; None for an empty batch."""
        return self.score_sum / self.read if self.read else None

    @property
    def error_rate(self) -> float:
        """Share of the rows read that were quarantined; 0 for an empty batch."""
        return self.quarantined / self.read if self.read else 0.0

    @property
    def seconds(self) -> float:
        """Wall-clock time of the load."""
        return (self.ended - self.started).total_seconds()

    @property
    def storage_growth(self) -> float | None:
        """Growth of the table's bytes over a day, as a share; None without a measurement a day old."""
        if not self.bytes_day_ago:
            return None
        return self.table_bytes / self.bytes_day_ago - 1

    @property
    def conserved(self) -> bool:
        """Read = loaded + quarantined + duplicates + unchanged + erased."""
        return self.read == self.loaded + self.quarantined + self.duplicates + self.unchanged + self.erased

    def to_json(self) -> str:
        """As one JSON object, for the batch log."""
        return json.dumps(asdict(self), default=lambda value: value.isoformat())

    @classmethod
    def from_json(cls, text: str) -> LoadRecord:
        """Back from `to_json`."""
        data: dict[str, Any] = json.loads(text)
        data["started"] = dt.datetime.fromisoformat(data["started"])
        data["ended"] = dt.datetime.fromisoformat(data["ended"])
        data["rules"] = {
            name: RuleCount(count["broken"], tuple(count["examples"])) for name, count in data["rules"].items()
        }
        for name in ("new_columns", "unclassified", "waiting_partitions"):
            data[name] = tuple(data.get(name, ()))
        # A lake outlives versions of this class.
        known = {field.name for field in fields(cls)}
        return cls(**{name: value for name, value in data.items() if name in known})


@dataclass(frozen=True)
class LoadOutcome:
    """How the load of one table ended.

    Attributes:
        table: name of the bronze table.
        record: what the load did; None if it failed.
        failed_checks: names of the asset checks that failed.
        error: why the load failed, in the user's words; None if it did not.
    """

    table: str
    record: LoadRecord | None = None
    failed_checks: tuple[str, ...] = ()
    error: str | None = None


def combine(records: Sequence[LoadRecord]) -> LoadRecord:
    """The records of one partition's batches (key ranges of a first load, files) as one: counts added, the last's
    state.
    """
    total = records[0]
    for record in records[1:]:
        rules_ = dict(total.rules)
        for name, count in record.rules.items():
            before = rules_.get(name, RuleCount())
            rules_[name] = RuleCount(before.broken + count.broken, (before.examples + count.examples)[:5])
        names = {**total.nulls, **record.nulls}
        total = replace(
            record,
            scope=_both(total, record),
            started=total.started,
            rules=rules_,
            nulls={name: total.nulls.get(name, 0) + record.nulls.get(name, 0) for name in names},
            resumed=total.resumed or record.resumed,
            new_columns=tuple(dict.fromkeys(total.new_columns + record.new_columns)),
            # Percentiles of parts cannot be added: the worse one is never too good.
            latency_p50=_worse(total.latency_p50, record.latency_p50),
            latency_p95=_worse(total.latency_p95, record.latency_p95),
            latency_max=_worse(total.latency_max, record.latency_max),
            **{
                name: getattr(total, name) + getattr(record, name)
                for name in (
                    "read",
                    "loaded",
                    "quarantined",
                    "duplicates",
                    "unchanged",
                    "erased",
                    "deleted",
                    "replaced",
                    "bytes_written",
                    "warned",
                    "score_sum",
                    "files",
                    "files_quarantined",
                )
            },
        )
    return total


def _both(total: LoadRecord, record: LoadRecord) -> str:
    """What both read: `full` for key ranges, and the files of both counted."""
    snapshots = {_FILES.sub("", part.scope) for part in (total, record)} - {""}
    scopes = ["full" if len(snapshots) > 1 else scope for scope in sorted(snapshots)[:1]]
    if any(_FILES.search(part.scope) for part in (total, record)):
        scopes.append(str(FileScope(total.files + record.files)))
    return ", ".join(scopes)


def _worse(one: float | None, other: float | None) -> float | None:
    return max((value for value in (one, other) if value is not None), default=None)


@dataclass(frozen=True)
class Check:
    """A check that every load of a table answers; `name` is stable and unique within the table."""

    name: str
    description: str
    severity: Severity
    blocking: bool = False


@dataclass(frozen=True)
class Verdict:
    """The answer of one load to one `Check`.

    Attributes:
        count: what was counted (rows, columns, or 0 where nothing is counted).
        share: of the rows read, 0 to 1, where there is one.
        examples: up to five keys as text.
        details: numbers behind the answer.
    """

    name: str
    passed: bool
    severity: Severity
    count: int = 0
    share: float | None = None
    examples: tuple[str, ...] = ()
    details: dict[str, Any] = field(default_factory=dict)


def checks(table: BronzeTable) -> tuple[Check, ...]:
    """Every check of a table: the contract, one per rule, one per KPI (tables.md)."""
    per_rule = tuple(
        Check(rule.name, f"{rule.expected} ({rule.impact})", _severity(rule.impact)) for rule in rules(table)
    )
    return (
        Check("schema", "Required columns exist with a compatible type.", "ERROR", blocking=True),
        *(_PERSONAL_CHECKS if table.has_personal_data else ()),
        Check("conservation", "read = loaded + quarantined + duplicates + unchanged + erased.", "ERROR"),
        *per_rule,
        Check(KEY_UNIQUE, "The key is unique within the batch (High).", "ERROR"),
        Check("null_share", f"No column is NULL in more than {MAX_NULL_SHARE:.0%} of the rows read.", "WARN"),
        Check("quality_score", f"The average score is at least {MIN_AVERAGE_SCORE:g}.", "WARN"),
        Check("error_rate", f"At most {max_error_rate(table):.0%} of the rows read are quarantined.", "ERROR"),
        Check("processing_time", f"The load takes at most {MAX_PROCESSING_SECONDS / 60:g} minutes.", "ERROR"),
        Check("storage_growth", f"The table grows by at most {MAX_STORAGE_GROWTH:.0%} a day.", "WARN"),
        *(_FILE_CHECKS if table.feed is not None else ()),
    )


_PERSONAL_CHECKS = (
    Check("classified", "Every column is declared, so that its class of personal data is known.", "WARN"),
)
_FILE_CHECKS = (
    Check("unreadable_files", "Every file of the batch could be read.", "WARN"),
    Check("schema_evolution", "The files have no columns that the table did not have.", "WARN"),
    Check("moved_away", "Every loaded file has left the landing zone, as the table's policy says.", "ERROR"),
    Check("backlog", f"No file waits for more than {MAX_BACKLOG_SECONDS / 3600:g} hour.", "ERROR"),
    Check(
        "file_size",
        "For information: Delta files are between 128 MB and 1 GB on average, in a table of more than that.",
        "WARN",
    ),
)


def max_error_rate(table: BronzeTable) -> float:
    """The share of the rows read that may be quarantined."""
    return MAX_ERROR_RATE if table.files is None else MAX_FILE_ERROR_RATE


def verdicts(table: BronzeTable, record: LoadRecord) -> tuple[Verdict, ...]:
    """The answers of one load to `checks(table)`, in the same order. An empty batch passes."""
    read = record.read
    shares = {name: count / read if read else 0.0 for name, count in record.nulls.items()}
    too_null = {name: share for name, share in shares.items() if share > MAX_NULL_SHARE}
    average = record.average_score
    growth = record.storage_growth
    answers: dict[str, Verdict] = {
        "schema": Verdict(
            "schema",
            True,
            "ERROR",
            len(record.new_columns),
            details={"new_columns": list(record.new_columns)},
        ),
        "classified": Verdict(
            "classified",
            not record.unclassified,
            "WARN",
            len(record.unclassified),
            details={"unclassified": list(record.unclassified)},
        ),
        "conservation": Verdict(
            "conservation",
            record.conserved,
            "ERROR",
            read,
            details={
                name: getattr(record, name)
                for name in ("loaded", "quarantined", "duplicates", "unchanged", "erased", "deleted")
            },
        ),
        "null_share": Verdict(
            "null_share",
            not too_null,
            "WARN",
            len(too_null),
            max(shares.values(), default=0.0),
            details={"null_shares": {name: round(share, 6) for name, share in shares.items()}},
        ),
        "quality_score": Verdict(
            "quality_score",
            average is None or average >= MIN_AVERAGE_SCORE,
            "WARN",
            read,
            details={"average_score": average, "threshold": MIN_AVERAGE_SCORE},
        ),
        "error_rate": Verdict(
            "error_rate",
            record.error_rate <= max_error_rate(table),
            "ERROR",
            record.quarantined,
            record.error_rate,
            details={"threshold": max_error_rate(table)},
        ),
        "processing_time": Verdict(
            "processing_time",
            record.seconds <= MAX_PROCESSING_SECONDS,
            "ERROR",
            details={"seconds": record.seconds, "threshold_seconds": MAX_PROCESSING_SECONDS},
        ),
        "storage_growth": Verdict(
            "storage_growth",
            growth is None or growth <= MAX_STORAGE_GROWTH,
            "WARN",
            details={"bytes": record.table_bytes, "bytes_day_ago": record.bytes_day_ago, "growth": growth},
        ),
    }
    average_bytes = record.table_bytes / record.table_files if record.table_files else 0.0
    smallest, largest = FILE_BYTES
    answers |= {
        "unreadable_files": Verdict(
            "unreadable_files",
            not record.files_quarantined,
            "WARN",
            record.files_quarantined,
            details={"files": record.files},
        ),
        "schema_evolution": Verdict(
            "schema_evolution",
            not record.new_columns,
            "WARN",
            len(record.new_columns),
            details={"new_columns": list(record.new_columns)},
        ),
        "moved_away": Verdict(
            "moved_away", not record.stuck_files, "ERROR", record.stuck_files, details={"first": record.stuck}
        ),
        "backlog": Verdict(
            "backlog",
            (record.backlog_seconds or 0.0) <= MAX_BACKLOG_SECONDS,
            "ERROR",
            record.backlog_files,
            details={"seconds": record.backlog_seconds, "threshold_seconds": MAX_BACKLOG_SECONDS},
        ),
        "file_size": Verdict(
            "file_size",
            record.table_bytes < smallest or smallest <= average_bytes <= largest,
            "WARN",
            record.table_files,
            details={"average_bytes": average_bytes, "smallest": smallest, "largest": largest},
        ),
    }
    for check in checks(table):
        if check.name not in answers:
            count = record.rules.get(check.name, RuleCount())
            answers[check.name] = Verdict(
                check.name,
                count.broken == 0,
                check.severity,
                count.broken,
                count.broken / read if read else 0.0,
                count.examples,
            )
    return tuple(answers[check.name] for check in checks(table))


def _severity(impact: Impact) -> Severity:
    return "ERROR" if impact is Impact.HIGH else "WARN"


AUDIT_LOG = "bz_audit_log"
_AUDIT = pa.schema(
    [
        ("audit_id", pa.string()),
        ("table_name", pa.string()),
        ("operation_type", pa.string()),
        ("record_count", pa.int64()),
        ("processing_start_time", pa.timestamp("us", tz="UTC")),
        ("processing_end_time", pa.timestamp("us", tz="UTC")),
        ("processing_duration_seconds", pa.int32()),
        ("data_quality_avg_score", pa.float64()),
        ("error_count", pa.int32()),
        ("warning_count", pa.int32()),
        ("batch_id", pa.string()),
        ("pipeline_run_id", pa.string()),
        ("source_system", pa.string()),
        ("target_location", pa.string()),
        ("created_by", pa.string()),
        ("status", pa.string()),
        ("error_message", pa.string()),
    ]
)


def write_success(lake: Lakehouse, table: BronzeTable, record: LoadRecord, *, run_id: str, trigger: str) -> None:
    """Append the audit row of a finished batch: `record_count` is the rows read, `error_count` those quarantined,
    `warning_count` those that broke a rule and were not.
    """
    _write(
        lake,
        table,
        operation_type=_operation(record.scope),
        record_count=record.read,
        processing_start_time=record.started,
        processing_end_time=record.ended,
        data_quality_avg_score=record.average_score,
        error_count=record.quarantined,
        warning_count=record.warned,
        batch_id=record.batch_id,
        pipeline_run_id=run_id,
        created_by=f"bronze_assets/{trigger}",
        status="SUCCESS",
    )


def write_failure(
    lake: Lakehouse,
    table: BronzeTable,
    message: str,
    *,
    started: dt.datetime,
    ended: dt.datetime,
    batch_id: str | None,
    run_id: str,
    trigger: str,
) -> None:
    """Append the audit row of an attempt that failed. The message must not hold values of rows."""
    _write(
        lake,
        table,
        operation_type="load",
        record_count=0,
        processing_start_time=started,
        processing_end_time=ended,
        error_count=1,
        warning_count=0,
        batch_id=batch_id,
        pipeline_run_id=run_id,
        created_by=f"bronze_assets/{trigger}",
        status="FAILED",
        error_message=message,
    )


def write_restore(
    lake: Lakehouse,
    table: BronzeTable,
    operation: str,
    *,
    rows: int,
    started: dt.datetime,
    ended: dt.datetime,
    run_id: str,
    who: str,
    message: str,
    failed: bool,
) -> None:
    """Append the audit row of a restore: `record_count` is the row versions that the table has then.

    Args:
        message: why it was wanted, or why it failed; no value of a row.
    """
    _write(
        lake,
        table,
        operation_type=operation,
        record_count=rows,
        processing_start_time=started,
        processing_end_time=ended,
        error_count=int(failed),
        pipeline_run_id=run_id,
        created_by=who,
        status="FAILED" if failed else "SUCCESS",
        error_message=message,
    )


def has_success(lake: Lakehouse, table: BronzeTable, batch_id: str) -> bool:
    """Whether the audit log has the SUCCESS row of a batch."""
    same = f"table_name = {sql_literal(table.name)} and batch_id = {sql_literal(batch_id)} and status = 'SUCCESS'"
    return bool(lake.rows(table.schema, AUDIT_LOG, ["audit_id"], same))


def safe_message(error: BaseException) -> str:
    """What may be kept of an error: our own words, else its kind, since a foreign message may quote a row's values."""
    if isinstance(error, BronzeError):
        return str(error)
    if isinstance(error, KeyboardInterrupt):
        return "The load was interrupted. Fix: none needed, the next load finishes or takes back what was begun."
    if is_of_lost_jvm(error):
        return (
            "Spark's JVM has ended while it was at work (killed, or out of memory). Fix: load again, which finishes or"
            " takes back what was begun; if it happens again, raise BRONZE_DRIVER_MEMORY."
        )
    condition = condition_of(error)
    return f"{type(error).__name__}{f' [{condition}]' if condition else ''}; the run's log has the details."


def _operation(scope: str) -> str:
    if scope == "full":
        return "snapshot load"
    if scope.startswith((f"{REPLAY}, ", f"{DISMISSAL}, ")):
        return scope
    return f"file load, {scope}" if re.match(r"[\d,]+ files?\b", scope) else f"snapshot load, {scope}"


def _write(lake: Lakehouse, table: BronzeTable, **values: Any) -> None:
    duration = values["processing_end_time"] - values["processing_start_time"]
    row = dict.fromkeys(_AUDIT.names) | values
    row |= {
        "audit_id": str(uuid.uuid4()),
        "table_name": table.name,
        "processing_duration_seconds": round(duration.total_seconds()),
        "source_system": table.source_system,
        "target_location": lake.location(table.schema, table.name),
    }
    lake.append_rows(table.schema, AUDIT_LOG, _AUDIT, [row])
