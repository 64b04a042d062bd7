"""The checks of a capture's replication slot: how they are judged, by a run and while no run is at work."""

from __future__ import annotations

import datetime as dt
import time
from collections.abc import Sequence
from typing import Any

import dagster as dg

from bronze_assets import runbook
from bronze_assets.capture import Capture, SlotStatus, manifest
from bronze_assets.capture_files import Restart
from bronze_assets.errors import BronzeError
from bronze_assets.thresholds import MAX_LAG_BYTES, MAX_LAG_SECONDS

LAG, WENT_ON = "slot_lag", "slot_went_on"
_TOLD = "restarted_at"


def check_specs(asset: dg.AssetKey) -> list[dg.AssetCheckSpec]:
    """The checks of the captured changes of a schema."""
    return [
        dg.AssetCheckSpec(
            WENT_ON,
            asset=asset,
            description="The replication slot was there; else the tables are loaded from a snapshot.",
        ),
        dg.AssetCheckSpec(
            LAG,
            asset=asset,
            description=(
                f"The slot is less than {MAX_LAG_BYTES // 2**20} MB and {MAX_LAG_SECONDS / 60:g} minutes behind."
            ),
        ),
    ]


def slot_metadata(status: SlotStatus) -> dict[str, Any]:
    """How the capture stands, as typed entries."""
    entries: dict[str, Any] = {
        "slot": status.slot,
        "slot_lag_bytes": status.lag_bytes,
        "slot_retained_bytes": status.retained_bytes,
        "slot_lag_seconds": status.lag_seconds,
        "confirmed_at": None if status.confirmed_at is None else dg.MetadataValue.timestamp(status.confirmed_at),
        "wal_status": status.wal_status,
    }
    return {name: value for name, value in entries.items() if value is not None}


def slot_lag(status: SlotStatus) -> dg.AssetCheckResult:
    """Whether a slot keeps up."""
    return dg.AssetCheckResult(
        check_name=LAG,
        passed=status.retained_bytes < MAX_LAG_BYTES and (status.lag_seconds or 0.0) < MAX_LAG_SECONDS,
        severity=dg.AssetCheckSeverity.ERROR,
        metadata={**slot_metadata(status), "runbook": runbook.link(LAG)},
    )


def lag_at_present(capture: Capture, landing: str, schema: str) -> dg.AssetCheckResult | None:
    """Whether a slot keeps up, as far as it can be told whatever is wrong: by the manifest alone where the source gives
    no answer. None if nothing was ever captured.

    Args:
        landing: where the capture's files go.
        schema: the captured one.
    """
    try:
        status = capture.status()
        return slot_lag(status) if status.present or status.confirmed_at is not None else None
    except BronzeError as error:
        return _lag_of_files(landing, schema, f"Judged by what is in files alone. {error}")


def _lag_of_files(landing: str, schema: str, why: str) -> dg.AssetCheckResult | None:
    try:
        state = manifest(landing, schema)
    except BronzeError:
        return None
    if state is None or state.confirmed_at is None:
        return None
    seconds = (dt.datetime.now(dt.UTC) - state.confirmed_at).total_seconds()
    return dg.AssetCheckResult(
        check_name=LAG,
        passed=seconds < MAX_LAG_SECONDS,
        severity=dg.AssetCheckSeverity.ERROR,
        description=why,
        metadata={
            "slot": state.slot,
            "slot_lag_seconds": seconds,
            "confirmed_at": dg.MetadataValue.timestamp(state.confirmed_at),
            "runbook": runbook.link(LAG),
        },
    )


def went_on(instance: dg.DagsterInstance, asset: dg.AssetKey, restarts: Sequence[Restart]) -> dg.AssetCheckResult:
    """Whether a slot has gone on since a run last told so; a run that was killed has told nothing.

    Args:
        restarts: as `Manifest.restarts`.
    """
    record = _last_judged(instance, asset, WENT_ON)
    entry = record.evaluation.metadata.get(_TOLD) if record is not None else None
    told = entry.value if isinstance(entry, dg.TimestampMetadataValue) else None
    untold = [restart for restart in restarts if told is None or restart.at.timestamp() > told]
    told_until = {_TOLD: dg.MetadataValue.timestamp(restarts[-1].at)} if restarts else {}
    return dg.AssetCheckResult(
        check_name=WENT_ON,
        passed=not untold,
        severity=dg.AssetCheckSeverity.WARN,
        description="; ".join(f"{one.reason} (found at {one.at:%F %T} UTC)" for one in untold) or None,
        metadata={**told_until, "runbook": runbook.link(WENT_ON)},
    )


def evaluation(result: dg.AssetCheckResult, asset: dg.AssetKey) -> dg.AssetCheckEvaluation:
    """A judgement as an event of its own: of results a step may have one for each check, of these any number."""
    assert result.check_name is not None
    return dg.AssetCheckEvaluation(
        asset_key=asset,
        check_name=result.check_name,
        passed=result.passed,
        metadata=result.metadata,
        severity=result.severity,
        description=result.description,
    )


def lag_was_judged(instance: dg.DagsterInstance, asset: dg.AssetKey, seconds: float) -> bool:
    """Whether the lag was judged within the last seconds."""
    record = _last_judged(instance, asset, LAG)
    return record is not None and time.time() - record.event.timestamp < seconds


def _last_judged(instance: dg.DagsterInstance, asset: dg.AssetKey, name: str) -> Any:
    """The record of the last judgement, without those that a run still owes."""
    key = dg.AssetCheckKey(asset, name)
    return instance.event_log_storage.get_asset_check_summary_records([key])[key].last_completed_check_execution_record
