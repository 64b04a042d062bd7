"""Asset checks: the load's own verdicts, handed to Dagster. Nothing is judged here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import dagster as dg

from bronze_assets import audit, runbook
from bronze_assets.audit import LoadRecord, Verdict
from bronze_assets.errors import SchemaMismatch
from bronze_assets.table import BronzeTable

MAX_EXAMPLES = 5
SCHEMA = "schema"


def check_specs(table: BronzeTable, key: dg.AssetKey) -> list[dg.AssetCheckSpec]:
    """One spec for each check of the table.

    Unpartitioned, since in a range run Dagster keeps no status per partition: the partitions stand in the metadata.
    """
    return [
        dg.AssetCheckSpec(check.name, asset=key, description=check.description, blocking=check.blocking)
        for check in audit.checks(table)
    ]


def check_results(table: BronzeTable, key: dg.AssetKey, records: Mapping[str, LoadRecord]) -> list[dg.AssetCheckResult]:
    """One result for each check over all partitions of a run: the worst, with each partition's numbers.

    Args:
        table: the table loaded.
        key: its asset.
        records: partition key → what its load did.
    """
    answers = {partition: audit.verdicts(table, record) for partition, record in records.items()}
    return [
        _result(table, key, {partition: verdicts[position] for partition, verdicts in answers.items()})
        for position in range(len(audit.checks(table)))
    ]


def failed_checks(table: BronzeTable, record: LoadRecord) -> tuple[str, ...]:
    """Names of the checks that this load failed."""
    return tuple(verdict.name for verdict in audit.verdicts(table, record) if not verdict.passed)


def schema_mismatch(key: dg.AssetKey, partition: str, error: SchemaMismatch) -> dg.AssetCheckResult:
    """The result of the blocking `schema` check when the load was stopped by it."""
    return dg.AssetCheckResult(
        asset_key=key,
        check_name=SCHEMA,
        passed=False,
        severity=dg.AssetCheckSeverity.ERROR,
        description=str(error),
        metadata={"partition": partition, "culprit": error.culprit, "fix": error.fix, "runbook": runbook.link(SCHEMA)},
    )


def _result(table: BronzeTable, key: dg.AssetKey, by_partition: Mapping[str, Verdict]) -> dg.AssetCheckResult:
    verdicts = list(by_partition.values())
    worst = max(verdicts, key=lambda verdict: (not verdict.passed, verdict.share or 0.0, verdict.count))
    shares = [verdict.share for verdict in verdicts if verdict.share is not None]
    metadata: dict[str, Any] = {
        "count": sum(verdict.count for verdict in verdicts),
        "partitions": {partition: _numbers(verdict) for partition, verdict in by_partition.items()},
        "runbook": runbook.check_link(table, worst.name),
    }
    if shares:
        metadata["share"] = max(shares)
    examples = _examples(verdicts)
    if examples:
        metadata["examples"] = examples
    if worst.details:
        metadata["details"] = dict(worst.details)
    failed = [partition for partition, verdict in by_partition.items() if not verdict.passed]
    return dg.AssetCheckResult(
        asset_key=key,
        check_name=worst.name,
        passed=not failed,
        severity=dg.AssetCheckSeverity[worst.severity],
        description=f"failed in {_names(failed)}" if failed else None,
        metadata=metadata,
    )


def _numbers(verdict: Verdict) -> dict[str, Any]:
    numbers: dict[str, Any] = {"passed": verdict.passed, "count": verdict.count}
    if verdict.share is not None:
        numbers["share"] = verdict.share
    return numbers


def _examples(verdicts: Sequence[Verdict]) -> list[str]:
    distinct = dict.fromkeys(example for verdict in verdicts for example in verdict.examples)
    return list(distinct)[:MAX_EXAMPLES]


def _names(partitions: Sequence[str]) -> str:
    if len(partitions) <= MAX_EXAMPLES:
        return ", ".join(partitions)
    return f"{', '.join(partitions[:MAX_EXAMPLES])} and {len(partitions) - MAX_EXAMPLES} more"
