"""The KPI page of each schema as an asset, its checks (one for each KPI), its job and its schedule."""

# No postponed annotations here: Dagster reads those of an asset's function as objects.

import datetime as dt
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import dagster as dg

from bronze_assets import audit, runbook
from bronze_assets.capture import manifest
from bronze_assets.errors import BronzeError
from bronze_assets.lakehouse import open_lake
from bronze_assets.operations.kpi_facts import PERIOD, Facts, Known, Load, facts_of_lake
from bronze_assets.operations.kpis import KINDS, KpiReport, State, judge, loaded_by_files, shown
from bronze_assets.orchestration.assets import asset_key
from bronze_assets.orchestration.capture import changes_key
from bronze_assets.orchestration.recovery import INTACT
from bronze_assets.orchestration.runs import without_values
from bronze_assets.orchestration.schedules import job_schedule
from bronze_assets.orchestration.slot_checks import LAG
from bronze_assets.privacy.compliance import FOLDER
from bronze_assets.settings import CaptureMode, Settings
from bronze_assets.table import BronzeTable

JOB = "kpi_report"

_MOST_LOADS = 200
_FROM_DAGSTER = (
    "The lake is a catalog that this host cannot read without Spark: the numbers are those that the loads told Dagster."
    " Availability, quarantine and failed attempts are not known from here; the view `bz_monitoring` has the latter."
)


def report_key(schema: str) -> dg.AssetKey:
    """The KPI report of a schema."""
    return dg.AssetKey([schema, "kpi_report"])


def kpis_definitions(settings: Settings, tables: Sequence[BronzeTable]) -> dg.Definitions:
    """The asset `<schema>/kpi_report` of each schema, the job `kpi_report` over all of them, and its schedule: every 15
    minutes, running where the environment is local, stopped elsewhere.
    """
    schemas = list(dict.fromkeys(table.schema for table in tables))
    if not schemas:
        return dg.Definitions()
    job = dg.define_asset_job(
        JOB,
        selection=dg.AssetSelection.assets(*map(report_key, schemas)),
        description="Writes the KPI page of each schema; a broken threshold fails no run, but a check.",
    )
    schedule = job_schedule(job, "*/15 * * * *", "Writes the KPI pages anew.", settings)
    assets = [_report_asset(schema, tables, schemas, settings) for schema in schemas]
    return dg.Definitions(assets=assets, jobs=[job], schedules=[schedule])


def _report_asset(
    schema: str, tables: Sequence[BronzeTable], schemas: Sequence[str], settings: Settings
) -> dg.AssetsDefinition:
    key = report_key(schema)
    members = [table for table in tables if table.schema == schema]

    @dg.asset(
        key=key,
        description=(
            f"One page, and a JSON of the same numbers: how the {len(members)} tables of {schema} stand against their "
            "thresholds. Each KPI is a check."
        ),
        deps=[asset_key(table) for table in members],
        group_name=members[0].group,
        owners=list(dict.fromkeys(owner for table in members for owner in table.owners)),
        kinds={"html", "json"},
        check_specs=[
            dg.AssetCheckSpec(kind.name, asset=key, description=f"{kind.description} Within its threshold?")
            for kind in KINDS.values()
        ],
    )
    def kpi_report(context: dg.AssetExecutionContext) -> Iterator[dg.MaterializeResult[Any]]:
        def make() -> dg.MaterializeResult[Any]:
            report = report_of(context.instance, settings, members)
            others = [one for one in schemas if one != schema]
            page = report.write(settings.home / FOLDER, runbook=runbook.address(), others=others)
            for line in report.lines():
                context.log.info(line)
            return dg.MaterializeResult(
                asset_key=key, metadata=_metadata(report, page), check_results=list(_checks(report, key))
            )

        yield without_values(make)

    return kpi_report


def report_of(instance: dg.DagsterInstance, settings: Settings, tables: Sequence[BronzeTable]) -> KpiReport:
    """The KPIs of one schema's tables at this moment.

    Raises:
        LakeError: a table of the lake cannot be read.
    """
    now = dt.datetime.now(dt.UTC)
    schema = tables[0].schema
    captured_at, capture_failed = _captured(instance, settings, schema)
    compliance, compliance_at = _compliance(settings)
    states = instance.get_freshness_state_records([asset_key(table) for table in tables])
    failed = _failed_checks(instance, tables)
    known = {}
    for table in tables:
        event = instance.get_latest_materialization_event(asset_key(table))
        last = event.asset_materialization if event is not None else None
        told = _values(last.metadata) if last is not None else {}
        state = states.get(asset_key(table))
        known[table.name] = Known(
            materialised=_load(told, last.partition) if last is not None else None,
            freshness=state.freshness_state.value if state is not None else None,
            failed_checks=failed[table.name],
            cost_per_gb=told.get("databricks/cost_per_gb"),
            currency=told.get("databricks/currency"),
            captured_at=captured_at,
            capture_failed=capture_failed,
            compliance=compliance,
            compliance_at=compliance_at,
        )
    from_lake = not settings.in_catalog
    facts = (
        facts_of_lake(open_lake(settings), tables, now)
        if from_lake
        else {table.name: _facts(instance, table, settings, now) for table in tables}
    )
    return judge(
        schema,
        tables,
        facts,
        known,
        now,
        start_date=settings.start_date,
        capture=settings.capture,
        limits="" if from_lake else _FROM_DAGSTER,
    )


def _values(metadata: Mapping[str, dg.MetadataValue[Any]]) -> dict[str, Any]:
    return {name: entry.value for name, entry in metadata.items()}


def _load(told: Mapping[str, Any], partition: str | None) -> Load | None:
    """A load, of the metadata that `record_metadata` gave its materialisation."""
    if "ended" not in told or "seconds" not in told:
        return None
    return Load(
        partition=partition or "",
        ended=dt.datetime.fromtimestamp(told["ended"], dt.UTC),
        seconds=told["seconds"],
        read=told.get("read", 0),
        quarantined=told.get("quarantined", 0),
        score=told.get("average_score"),
        table_rows=told.get("dagster/row_count"),
        table_bytes=told.get("table_bytes"),
        latency_p95=told.get("latency_p95_seconds"),
        latency_max=told.get("latency_max_seconds"),
        backlog_files=told.get("backlog_files"),
        backlog_seconds=told.get("backlog_seconds"),
    )


def _facts(instance: dg.DagsterInstance, table: BronzeTable, settings: Settings, now: dt.datetime) -> Facts:
    """What Dagster's instance holds of a table, whose loads ran elsewhere."""
    wanted = dg.AssetRecordsFilter(asset_key(table), after_timestamp=(now - PERIOD).timestamp())
    loads = []
    for record in instance.fetch_materializations(wanted, limit=_MOST_LOADS).records:
        event = record.asset_materialization
        load = _load(_values(event.metadata), event.partition) if event is not None else None
        # Where nothing was outstanding, there was no load.
        if load is not None and event is not None and "batch_id" in event.metadata:
            loads.append(load)
    loads.sort(key=lambda load: load.ended)
    return Facts(
        loads=tuple(loads),
        last_load=loads[-1].ended if loads else None,
        waiting_files=loads[-1].backlog_files if loads and loaded_by_files(table, settings.capture) else None,
        unknown="Not known from this host: the lake is a catalog.",
    )


def _failed_checks(instance: dg.DagsterInstance, tables: Sequence[BronzeTable]) -> dict[str, dict[str, bool] | None]:
    """Table → failed checks → whether that is an error; None where none was evaluated."""
    keys = {
        dg.AssetCheckKey(asset_key(table), name): table.name
        for table in tables
        for name in (*(check.name for check in audit.checks(table)), INTACT)
    }
    found: dict[str, dict[str, bool] | None] = {table.name: None for table in tables}
    for key, summary in instance.event_log_storage.get_asset_check_summary_records(list(keys)).items():
        record: Any = summary.last_completed_check_execution_record
        evaluation = record.evaluation if record is not None else None
        if evaluation is None:
            continue
        failed = found[keys[key]]
        if failed is None:
            failed = found[keys[key]] = {}
        if not evaluation.passed:
            failed[key.name] = evaluation.severity is dg.AssetCheckSeverity.ERROR
    return found


def _captured(instance: dg.DagsterInstance, settings: Settings, schema: str) -> tuple[dt.datetime | None, bool]:
    """When all changes were last known to be in files, and whether the slot was found too far behind."""
    if settings.capture is not CaptureMode.BUILTIN:
        return None, False
    try:
        state = manifest(settings.landing, schema)
    except BronzeError:
        return None, False
    key = dg.AssetCheckKey(changes_key(schema), LAG)
    summary = instance.event_log_storage.get_asset_check_summary_records([key])[key]
    record: Any = summary.last_completed_check_execution_record
    evaluation = record.evaluation if record is not None else None
    confirmed = state.confirmed_at if state is not None else None
    failed = evaluation is not None and not evaluation.passed
    # What has been captured since makes an earlier finding good.
    return confirmed, failed and (confirmed is None or record.event.timestamp >= confirmed.timestamp())


def _compliance(settings: Settings) -> tuple[float | None, dt.datetime | None]:
    """Score and moment of the last report over personal data that was written here."""
    try:
        told = json.loads((settings.home / FOLDER / "compliance.json").read_text(encoding="utf-8"))
        return float(told["score"]), dt.datetime.fromisoformat(told["at"])
    except (OSError, ValueError, KeyError, TypeError):
        return None, None


def _metadata(report: KpiReport, page: Path) -> dict[str, Any]:
    states = [table.state for table in report.tables]
    rows = [
        dg.TableRecord(
            {
                "table": table.table,
                "state": table.state.value,
                "last_load": f"{table.last_load:%F %T}" if table.last_load else "never",
                "freshness": _shown(report, table.table, "freshness"),
                "quality_score": _shown(report, table.table, "quality_score"),
                "error_rate": _shown(report, table.table, "error_rate"),
                "breaks": ", ".join(kpi.name for kpi in table.kpis if kpi.state.breaches) or "nothing",
            }
        )
        for table in report.tables
    ]
    return {
        "path": dg.MetadataValue.path(page),
        "page": dg.MetadataValue.url(page.as_uri()),
        "headline": report.headline,
        "troubled": len(report.troubled),
        "told": dg.MetadataValue.text("\n".join(report.lines())),
        **{f"tables_{state.value}": states.count(state) for state in State},
        "tables": dg.MetadataValue.table(
            rows, dg.TableSchema([dg.TableColumn(name, "string") for name in rows[0].data])
        ),
    }


def _shown(report: KpiReport, table: str, name: str) -> str:
    (found,) = [one.kpi(name) for one in report.tables if one.table == table]
    return shown(found.value, found.kind.unit)


def _checks(report: KpiReport, key: dg.AssetKey) -> Iterator[dg.AssetCheckResult]:
    """For each KPI, whether a table breaks its threshold; which, with number and threshold, stands in the metadata."""
    for kind in KINDS.values():
        broken = report.breaches(kind.name)
        unknown = [one.table for one in report.tables if one.kpi(kind.name).state is State.UNKNOWN]
        critical = any(kpi.state is State.CRITICAL for _, kpi in broken)
        words = [f"{table} ({shown(kpi.value, kind.unit)})" for table, kpi in broken]
        yield dg.AssetCheckResult(
            asset_key=key,
            check_name=kind.name,
            passed=not broken,
            severity=dg.AssetCheckSeverity.ERROR if critical else dg.AssetCheckSeverity.WARN,
            description=f"{kind.title}: {', '.join(words)}" if words else None,
            metadata={
                "level": State.CRITICAL.value if critical else kind.level if broken else State.OK.value,
                "count": len(broken),
                "unknown": len(unknown),
                "runbook": runbook.link(kind.name),
                "unit": kind.unit.value,
                "tables": {
                    table: {
                        "state": kpi.state.value,
                        "value": kpi.value,
                        "shown": shown(kpi.value, kind.unit),
                        "threshold": kpi.threshold,
                        "threshold_shown": shown(kpi.threshold, kind.unit),
                        "reason": kpi.reason,
                    }
                    for table, kpi in broken
                },
            },
        )
