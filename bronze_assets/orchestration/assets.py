"""One Dagster asset per bronze table, and the external assets around it: source, quarantine, audit log.

Everything follows from the `BronzeTable` and, at run time, from the `LoadRecord`.
"""

# No postponed annotations here: Dagster reads those of an asset's function as objects.

import datetime as dt
import warnings
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import dagster as dg
from pydantic import Field

from bronze_assets import audit, quality
from bronze_assets.audit import AUDIT_LOG, LoadRecord
from bronze_assets.errors import BronzeError, DeclarationError, LoadRefused, SchemaMismatch
from bronze_assets.lakehouse import open_lake
from bronze_assets.orchestration.checks import check_results, check_specs, failed_checks, schema_mismatch
from bronze_assets.orchestration.freshness import freshness_policy
from bronze_assets.orchestration.resources import Loader
from bronze_assets.orchestration.runs import (
    BATCH_TAG,
    CADENCE_TAG,
    TABLE_TAG,
    begun_tags,
    first_and_last,
    retry_request,
    tag_run,
    trigger_of,
)
from bronze_assets.settings import CaptureMode, Settings
from bronze_assets.table import LOAD_DATE, METADATA_COLUMNS, BronzeTable, Cadence, Pii
from bronze_assets.workbench import Options, Run

WAITING = "waiting_partitions"
"""Metadata of a materialisation: the partitions in which files waited when the load had ended."""

EventOrResult = (
    dg.MaterializeResult[Any] | dg.AssetMaterialization | dg.AssetObservation | dg.AssetCheckResult | dg.Output[None]
)


class LoadConfig(dg.Config):
    """Choices for one load, for the launchpad."""

    dry_run: bool = Field(
        default=False, description="Read and judge the rows, write nothing, and report the counts as an observation."
    )
    full_compare: bool = Field(
        default=False,
        description="Compare every value with the latest version of the row instead of its hash. Slower.",
    )
    max_rows: int | None = Field(
        default=None, description="Refuse the load, before anything is written, when the source holds more rows."
    )
    snapshot: bool = Field(
        default=False, description="Compare a captured table with a snapshot of the source, whatever was captured."
    )
    reload: bool = Field(
        default=False, description="Load all files of the partition again, in the place of the rows that they brought."
    )
    read_connections: int | None = Field(
        default=None, description="Parallel JDBC reads of a large table; BRONZE_READ_CONNECTIONS if left out."
    )


def asset_key(table: BronzeTable) -> dg.AssetKey:
    """`<schema>/<bronze table>`."""
    return dg.AssetKey([table.schema, table.name])


def partitions(cadence: Cadence, settings: Settings) -> dg.TimeWindowPartitionsDefinition:
    """Days or hours of arrival, UTC; the last partition is the one in progress."""
    start = dt.datetime.combine(settings.start_date, dt.time(), tzinfo=dt.UTC)
    if cadence is Cadence.HOURLY:
        return dg.HourlyPartitionsDefinition(start_date=start, timezone="UTC", end_offset=1)
    return dg.DailyPartitionsDefinition(start_date=start, timezone="UTC", end_offset=1)


def assets(settings: Settings, tables: Sequence[BronzeTable]) -> list[dg.AssetsDefinition | dg.AssetSpec]:
    """The asset graph of the tables.

    Raises:
        DeclarationError: two tables are one, or Dagster cannot take a declaration; names the table.
    """
    names = [asset_key(table) for table in tables]
    for table in tables:
        if names.count(asset_key(table)) > 1:
            raise DeclarationError(
                f"{table.schema}.{table.name} is declared more than once.", "declare it once.", table=table.name
            )
    found: list[dg.AssetsDefinition | dg.AssetSpec] = []
    sources: dict[dg.AssetKey, dg.AssetSpec] = {}
    for table in tables:
        try:
            for spec in _source_specs(table, settings):
                sources.setdefault(spec.key, spec)
            with warnings.catch_warnings():
                # Backfill policies are beta in Dagster, which would say so once per table.
                warnings.simplefilter("ignore", dg.BetaWarning)
                found.append(_bronze_asset(table, settings))
            found.append(_quarantine_spec(table, settings))
        except dg.DagsterError as error:
            raise DeclarationError(
                f"Dagster cannot take the declaration: {error}", "correct it in the catalog.", table=table.name
            ) from error
    schemas = dict.fromkeys(table.schema for table in tables)
    logs = [_audit_spec(schema, [t for t in tables if t.schema == schema], settings) for schema in schemas]
    return [*sources.values(), *found, *logs]


def record_metadata(record: LoadRecord) -> dict[str, Any]:
    """Every number of a record as a typed entry, so that Dagster plots it."""
    seconds = record.seconds
    entries: dict[str, Any] = {
        "dagster/row_count": record.table_rows,
        "dagster/partition_row_count": record.partition_rows,
        "rows": record.loaded + record.deleted,
        "batch_id": record.batch_id or None,
        "scope": record.scope,
        "source_position": record.source_position or None,
        "started": dg.MetadataValue.timestamp(record.started),
        "ended": dg.MetadataValue.timestamp(record.ended),
        "seconds": seconds,
        "rows_per_second": record.read / seconds if seconds > 0 else None,
        "read": record.read,
        "loaded": record.loaded,
        "quarantined": record.quarantined,
        "duplicates": record.duplicates,
        "unchanged": record.unchanged,
        "erased": record.erased,
        "deleted": record.deleted,
        "replaced": record.replaced,
        "warned": record.warned,
        "score_sum": record.score_sum,
        "average_score": record.average_score,
        "error_rate": record.error_rate,
        "files": record.files if record.has_files else None,
        "files_quarantined": record.files_quarantined if record.has_files else None,
        "latency_p50_seconds": record.latency_p50,
        "latency_p95_seconds": record.latency_p95,
        "latency_max_seconds": record.latency_max,
        "backlog_files": record.backlog_files if record.has_files else None,
        "backlog_seconds": record.backlog_seconds,
        WAITING: list(record.waiting_partitions) or None,
        "stuck_files": record.stuck_files if record.has_files else None,
        "stuck": record.stuck,
        "table_bytes": record.table_bytes,
        "table_files": record.table_files,
        "bytes_day_ago": record.bytes_day_ago,
        "storage_growth": record.storage_growth,
        "delta_version": record.delta_version,
        "bytes_written": record.bytes_written,
        "resumed": record.resumed,
        **{f"broken/{name}": count.broken for name, count in record.rules.items()},
        **{f"nulls/{name}": count for name, count in record.nulls.items()},
        "new_columns": list(record.new_columns) or None,
        "unclassified": list(record.unclassified) or None,
    }
    return {name: value for name, value in entries.items() if value is not None}


def _bronze_asset(table: BronzeTable, settings: Settings) -> dg.AssetsDefinition:
    key = asset_key(table)

    @dg.asset(
        key=key,
        description=_description(table),
        deps=_sources(table, settings),
        group_name=table.group,
        owners=list(table.owners),
        kinds={"deltalake", "pyspark"},
        tags={CADENCE_TAG: table.cadence.value},
        metadata=_definition_metadata(table, settings),
        # The rules are the code that matters here: Dagster shows a table as out of date when they change.
        code_version=quality.fingerprint(table),
        partitions_def=partitions(table.cadence, settings),
        backfill_policy=dg.BackfillPolicy.single_run(),
        freshness_policy=freshness_policy(table),
        check_specs=check_specs(table, key),
        pool=f"load_{table.name}",
        op_tags={TABLE_TAG: table.name},
        # A dry run ends well and materialises nothing.
        output_required=False,
    )
    def bronze_table(
        context: dg.AssetExecutionContext,
        config: LoadConfig,
        loader: dg.ResourceParam[Loader],
        pyspark_step_launcher: dg.ResourceParam[Any],  # noqa: ARG001  asked for: Dagster gives the step to it
    ) -> Iterator[EventOrResult]:
        yield from _materialise(context, config, loader, table, settings)

    return bronze_table


def _materialise(
    context: dg.AssetExecutionContext, config: LoadConfig, loader: Loader, table: BronzeTable, settings: Settings
) -> Iterator[EventOrResult]:
    key = asset_key(table)
    run = Run(context.run.run_id, trigger_of(context.run.tags))
    tag_run(context.instance, run.id, begun_tags(context.run, table.name, settings))
    records: dict[str, LoadRecord] = {}
    about: dict[str, dict[str, Any]] = {}
    loads = loader.loads(context, table, context.partition_keys, run, _options(config, table))
    for partition in context.partition_keys:
        try:
            record, cost = next(loads)
        except Exception as error:
            # Dagster reports a step's partitions when it ends well; what this one did load is reported here.
            for done in records:
                yield dg.AssetMaterialization(key, partition=done, metadata=about[done])
            if isinstance(error, SchemaMismatch):
                yield schema_mismatch(key, partition, error)
            # Dagster keeps causes, and another's words may quote a person's values.
            private = table.has_personal_data and not isinstance(error, BronzeError)
            raise as_dagster_wants(error, partition, context.retry_number) from None if private else error
        if record.dry_run:
            yield _observation(key, table, partition, record)
            continue
        records[partition] = record
        about[partition] = record_metadata(record) | cost
        if not record.batch_id:
            # Nothing was outstanding: nothing was written beside the table either.
            continue
        yield dg.AssetMaterialization(
            _quarantine_key(table),
            partition=partition,
            metadata={"sightings": record.quarantined, "batch_id": record.batch_id},
        )
        yield dg.AssetMaterialization(
            _audit_key(table.schema),
            metadata={"table": table.name, "partition": partition, "batch_id": record.batch_id},
        )
    if not records:
        # Dagster asks each check for an output; without a result beside it, the check keeps its last answer.
        for output in context.op_execution_context.op_def.output_defs:
            if output.is_required:
                yield dg.Output(None, output_name=output.name)
        return
    batches = [record.batch_id for record in records.values() if record.batch_id]
    if batches:
        tag_run(context.instance, run.id, {BATCH_TAG: first_and_last(batches)})
    for partition, metadata in about.items():
        context.add_asset_metadata(metadata, asset_key=key, partition_key=partition)
    yield dg.MaterializeResult(asset_key=key, check_results=check_results(table, key, records))


def as_dagster_wants(error: Exception, partition: str, retry_number: int) -> Exception:
    """A request for a retry where one may help, else a failure that is final."""
    if isinstance(error, BronzeError) and error.retryable and (again := retry_request(retry_number)):
        return again
    return dg.Failure(
        description=audit.safe_message(error),
        metadata={"partition": partition, "error": type(error).__name__},
        allow_retries=False,
    )


def _observation(key: dg.AssetKey, table: BronzeTable, partition: str, record: LoadRecord) -> dg.AssetObservation:
    return dg.AssetObservation(
        key,
        partition=partition,
        description="Dry run: nothing was written.",
        metadata={
            **record_metadata(record),
            "dry_run": True,
            "would_fail": list(failed_checks(table, record)),
        },
    )


def _options(config: LoadConfig, table: BronzeTable) -> Options:
    for name in ("max_rows", "read_connections"):
        value = getattr(config, name)
        if value is not None and value < 1:
            raise LoadRefused(f"{name}={value} is not positive.", "give a number of at least 1.", table=table.name)
    return Options(
        dry_run=config.dry_run,
        full_compare=config.full_compare,
        max_rows=config.max_rows,
        read_connections=config.read_connections,
        snapshot=config.snapshot,
        reload=config.reload,
    )


def _source_key(table: BronzeTable) -> dg.AssetKey:
    if table.files is not None:
        return dg.AssetKey(["landing", *table.files.path.replace("-", "_").split("/")])
    return dg.AssetKey(["postgres", *table.source.lower().split(".")])


def _sources(table: BronzeTable, settings: Settings) -> list[dg.AssetKey]:
    captured = settings.capture is not CaptureMode.OFF and table.feed is not None and table.feed.captured
    return [_source_key(table)] + ([dg.AssetKey(["landing", table.schema])] if captured else [])


def _source_specs(table: BronzeTable, settings: Settings) -> list[dg.AssetSpec]:
    if table.files is not None:
        return [
            dg.AssetSpec(
                _source_key(table),
                description=f"Files that arrive under {table.files.path}/ in the landing zone. {table.description}",
                group_name=table.group,
                owners=list(table.owners),
                kinds={"file"},
                metadata={
                    "landing": f"{settings.landing}/{table.files.path}",
                    "dagster/column_schema": dg.TableSchema(_source_columns(table)),
                },
            )
        ]
    specs = [_postgres_spec(table)]
    if settings.capture is CaptureMode.EXTERNAL and table.feed is not None:
        specs.append(
            dg.AssetSpec(
                dg.AssetKey(["landing", table.schema]),
                description=f"Changes of {table.source_system}, as files of a Debezium connector. See docs/capture.md.",
                group_name=table.group,
                kinds={"postgres", "json"},
                metadata={"landing": f"{settings.landing}/{table.schema}"},
            )
        )
    return specs


def _postgres_spec(table: BronzeTable) -> dg.AssetSpec:
    return dg.AssetSpec(
        _source_key(table),
        description=f"Table {table.source} of {table.source_system}. {table.description}",
        group_name=table.group,
        owners=list(table.owners),
        kinds={"postgres"},
        metadata={
            "dagster/table_name": table.source,
            "dagster/column_schema": dg.TableSchema(_source_columns(table)),
        },
    )


def _quarantine_key(table: BronzeTable) -> dg.AssetKey:
    return dg.AssetKey([table.schema, table.quarantine_name])


def _quarantine_spec(table: BronzeTable, settings: Settings) -> dg.AssetSpec:
    return dg.AssetSpec(
        _quarantine_key(table),
        deps=[asset_key(table)],
        description=f"Rows of {table.source} that could not be loaded into {table.name}, with their reasons.",
        group_name=table.group,
        owners=list(table.owners),
        kinds={"deltalake"},
        metadata=_location(table.schema, table.quarantine_name, settings),
        partitions_def=partitions(table.cadence, settings),
    )


def _audit_key(schema: str) -> dg.AssetKey:
    return dg.AssetKey([schema, AUDIT_LOG])


def _audit_spec(schema: str, tables: Sequence[BronzeTable], settings: Settings) -> dg.AssetSpec:
    return dg.AssetSpec(
        _audit_key(schema),
        deps=[asset_key(table) for table in tables],
        description=f"One row for each attempt to load a table of {schema}, failed ones too.",
        group_name=tables[0].group,
        owners=list(dict.fromkeys(owner for table in tables for owner in table.owners)),
        kinds={"deltalake"},
        metadata=_location(schema, AUDIT_LOG, settings),
    )


def _description(table: BronzeTable) -> str:
    key = ", ".join(f"`{column.name}`" for column in table.key)
    if table.files is not None:
        return (
            f"{table.description}\n\nEvery version of each row of the files under `{table.files.path}`, by key {key}. "
            "A partition holds the files that arrived on that day; past days can be loaded again from landing zone and "
            "archive."
        )
    past = (
        f"Past days can be loaded again: their rows are those of that `{table.event_date}`."
        if table.event_date
        else "Only the partition in progress can be loaded: the source tells nothing of the past."
    )
    return f"{table.description}\n\nEvery version of each row of `{table.source}`, by key {key}. {past}"


def _definition_metadata(table: BronzeTable, settings: Settings) -> dict[str, Any]:
    return {
        **_location(table.schema, table.name, settings),
        "dagster/column_schema": dg.TableSchema([*_source_columns(table), *_added_columns(table)]),
        "dagster/column_lineage": _lineage(table),
    }


def _location(schema: str, name: str, settings: Settings) -> dict[str, Any]:
    if settings.in_catalog:
        return {"dagster/table_name": open_lake(settings).location(schema, name)}
    return {
        "dagster/table_name": f"{schema}.{name}",
        "dagster/uri": (settings.lake / schema / name).as_uri(),
    }


def _source_columns(table: BronzeTable) -> list[dg.TableColumn]:
    expected: dict[str, list[str]] = {column.name: [] for column in table.columns}
    for rule in quality.rules(table):
        if rule.check != quality.PARSED:
            for column in rule.columns:
                expected[column.name].append(rule.expected)
    return [
        dg.TableColumn(
            column.name,
            column.type.simpleString(),
            column.description,
            dg.TableColumnConstraints(nullable=not column.key, other=expected[column.name]),
            {} if column.pii is Pii.NONE else {"pii": column.pii.value},
        )
        for column in table.columns
    ]


def _added_columns(table: BronzeTable) -> Iterable[dg.TableColumn]:
    for name, (kind, description) in METADATA_COLUMNS.items():
        yield dg.TableColumn(name, kind.simpleString(), description)
    if table.layout.partition_by == LOAD_DATE:
        yield dg.TableColumn(LOAD_DATE, "date", "Date of load_timestamp (UTC); the table is partitioned by it.")


def _lineage(table: BronzeTable) -> dg.TableColumnLineage:
    source = _source_key(table)
    own = {column.name: [dg.TableColumnDep(source, column.name)] for column in table.columns}
    every = [dg.TableColumnDep(source, column.name) for column in table.columns]
    return dg.TableColumnLineage({**own, "data_quality_score": every, "record_hash": every})
