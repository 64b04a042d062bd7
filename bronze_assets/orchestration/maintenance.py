"""The jobs that keep tables, control tables and Dagster's own history small, and their schedules.

They have a pool of their own: of two only one runs, and no load waits for it.
"""

# No postponed annotations here: Dagster reads those of an op's function as objects.

import datetime as dt
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import dagster as dg
from pydantic import Field

from bronze_assets.lakehouse import open_lake
from bronze_assets.operations import maintenance
from bronze_assets.operations.maintenance import Outcome
from bronze_assets.orchestration.databricks import step_launcher
from bronze_assets.orchestration.resources import LOGGER, STEP_LAUNCHER
from bronze_assets.orchestration.runs import without_values
from bronze_assets.orchestration.schedules import job_schedule
from bronze_assets.settings import Settings
from bronze_assets.table import BronzeTable
from bronze_assets.workbench import Workbench

POOL = "maintenance"
_ENDED = [dg.DagsterRunStatus.SUCCESS, dg.DagsterRunStatus.FAILURE, dg.DagsterRunStatus.CANCELED]
_KEPT = {
    dg.DagsterEventType.ASSET_MATERIALIZATION,
    dg.DagsterEventType.ASSET_OBSERVATION,
    dg.DagsterEventType.ASSET_CHECK_EVALUATION,
}
_BACKFILL = "dagster/backfill"
_GOING = frozenset({"REQUESTED", "CANCELING", "FAILING"})
"""Status of a backfill that has not ended."""
_PAGE = 200
_TOLD = (
    "table",
    "action",
    "files_before",
    "files_after",
    "bytes_before",
    "bytes_after",
    "removed",
    "version",
    "seconds",
    "skipped",
    "error",
)
_NUMBERS = frozenset({"files_before", "files_after", "bytes_before", "bytes_after", "removed", "version"})


class TablesConfig(dg.Config):
    """Which tables, and whether anything is to be changed."""

    tables: list[str] = Field(default=[], description="Names of bronze tables; all without any.")
    dry_run: bool = Field(default=False, description="Only say what would be done.")


class CleanConfig(dg.Config):
    """Whether anything is to be changed."""

    dry_run: bool = Field(default=False, description="Only say what there is.")


class PurgeConfig(dg.Config):
    """Which runs are to go."""

    days: int = Field(default=90, ge=1, description="Runs that ended longer ago go.")
    dry_run: bool = Field(default=False, description="Only count them.")


def maintenance_definitions(settings: Settings, tables: Sequence[BronzeTable]) -> dg.Definitions:
    """The jobs `optimize_tables`, `vacuum_tables`, `clean_control_tables` and `purge_dagster`, and their schedules:
    running where the environment is local, stopped elsewhere.
    """
    here = {STEP_LAUNCHER}

    @dg.op(
        description="Compacts and clusters files where it pays.",
        out=dg.Out(dg.Nothing),
        required_resource_keys=here,
        pool=POOL,
    )
    def optimize_files(context: dg.OpExecutionContext, config: TablesConfig) -> None:
        def work() -> list[Outcome]:
            wanted = maintenance.chosen(tables, config.tables)
            with Workbench.open(settings, say=LOGGER.info) as bench:
                return maintenance.optimize_tables(
                    bench, wanted, context.run_id, dry_run=config.dry_run, say=context.log.info
                )

        _show(context, work)

    @dg.op(
        description="Removes files that time travel no longer needs, and notes of which erasures that was the end.",
        out=dg.Out(dg.Nothing),
        required_resource_keys=here,
        pool=POOL,
    )
    def vacuum_files(context: dg.OpExecutionContext, config: TablesConfig) -> None:
        def work() -> list[Outcome]:
            wanted = maintenance.chosen(tables, config.tables)
            return maintenance.vacuum_tables(
                open_lake(settings),
                settings,
                wanted,
                _now,
                context.run_id,
                dry_run=config.dry_run,
                say=context.log.info,
            )

        _show(context, work)

    @dg.op(
        description="Compacts control tables; removes old log files, released leases and unused stream states.",
        out=dg.Out(dg.Nothing),
        required_resource_keys=here,
        pool=POOL,
    )
    def clean_controls(context: dg.OpExecutionContext, config: CleanConfig) -> None:
        def work() -> list[Outcome]:
            return maintenance.clean_control_tables(
                open_lake(settings),
                settings,
                tables,
                _now(),
                context.run_id,
                dry_run=config.dry_run,
                say=context.log.info,
            )

        _show(context, work)

    @dg.op(description="Deletes runs that ended long ago.", out=dg.Out(dg.Nothing), pool=POOL)
    def purge_runs(context: dg.OpExecutionContext, config: PurgeConfig) -> None:
        purged = purge(context.instance, _now() - dt.timedelta(days=config.days), dry_run=config.dry_run)
        context.log.info(purged.words)
        context.add_output_metadata(
            {"deleted": purged.deleted, "kept": purged.kept, "oldest": purged.oldest or "none", "dry run": purged.dry}
        )

    launcher = {STEP_LAUNCHER: step_launcher(settings)}

    @dg.job(
        description="Compacts and clusters the files of bronze tables and quarantines where it pays. Loads never wait.",
        executor_def=dg.in_process_executor,
        resource_defs=launcher,
    )
    def optimize_tables() -> None:
        optimize_files()

    @dg.job(
        description="Vacuums bronze tables and quarantines; 30 days of time travel and the dates of erasures are kept.",
        executor_def=dg.in_process_executor,
        resource_defs=launcher,
    )
    def vacuum_tables() -> None:
        vacuum_files()

    @dg.job(
        description="Compacts control tables, writes checkpoints and lets logs expire; rows of evidence stay.",
        executor_def=dg.in_process_executor,
        resource_defs=launcher,
    )
    def clean_control_tables() -> None:
        clean_controls()

    @dg.job(
        description="Deletes old runs with their logs; the last materialisation and check of each partition stay.",
        executor_def=dg.in_process_executor,
    )
    def purge_dagster() -> None:
        purge_runs()

    crons = {
        optimize_tables: "15 2 * * 0",
        vacuum_tables: "15 4 * * 0",
        clean_control_tables: "50 3 * * *",
        purge_dagster: "15 5 * * 0",
    }
    schedules = [job_schedule(job, cron, job.description or "", settings) for job, cron in crons.items()]
    return dg.Definitions(jobs=list(crons), schedules=schedules)


@dataclass(frozen=True)
class Purged:
    """What a purge did.

    Attributes:
        deleted: runs that are gone, or would be.
        kept: runs as old that stay: what the UI shows of a partition comes from them, or their backfill goes on.
        oldest: the day on which the oldest of the deleted was made.
        dry: whether nothing was deleted.
    """

    deleted: int
    kept: int
    oldest: str | None
    dry: bool

    @property
    def words(self) -> str:
        """One line for people."""
        done = "would be deleted" if self.dry else "deleted"
        since = f", the oldest of {self.oldest}" if self.oldest else ""
        return f"{self.deleted:,} runs {done}{since}; {self.kept:,} stay, of which the UI shows what a partition holds."


def purge(instance: dg.DagsterInstance, before: dt.datetime, *, dry_run: bool = False) -> Purged:
    """Delete runs that ended before a moment, with their events and the output of their steps.

    Dagster forgets a materialisation with its run, and the partition is missing then. So a run stays that has the last
    materialisation, observation or check evaluation of an asset or one of its partitions, and one of a backfill that
    goes on.

    Args:
        dry_run: only count.
    """
    going = {one.backfill_id for one in instance.get_backfills() if one.status.name in _GOING}
    shown = _Shown(instance)
    deleted: list[dg.RunRecord] = []
    kept = 0
    for record in _ended(instance, before):
        run = record.dagster_run
        if run.tags.get(_BACKFILL) in going or shown.has(run.run_id):
            kept += 1
        else:
            deleted.append(record)
    oldest = min((record.create_timestamp for record in deleted), default=None)
    for run_id in [] if dry_run else [record.dagster_run.run_id for record in deleted]:
        instance.delete_run(run_id)
        instance.compute_log_manager.delete_logs(prefix=[run_id])
    return Purged(len(deleted), kept, None if oldest is None else f"{oldest:%F}", dry_run)


def _ended(instance: dg.DagsterInstance, before: dt.datetime) -> Iterator[dg.RunRecord]:
    """The runs that ended before a moment."""
    cursor: str | None = None
    # Not `updated_before`: a tag that comes later is an update too.
    filters = dg.RunsFilter(statuses=_ENDED, created_before=before)
    while page := instance.get_run_records(filters, limit=_PAGE, cursor=cursor):
        cursor = page[-1].dagster_run.run_id
        yield from (one for one in page if (one.end_time or one.create_timestamp.timestamp()) < before.timestamp())


class _Shown:
    """Which runs have what the UI shows of an asset or a partition: the last event of its kind."""

    def __init__(self, instance: dg.DagsterInstance) -> None:
        self._instance = instance
        self._runs: dict[tuple[object, ...], str | None] = {}

    def has(self, run_id: str) -> bool:
        """Whether the run has one."""
        for record in self._instance.get_records_for_run(run_id, of_type=_KEPT).records:
            event = record.event_log_entry.dagster_event
            if event is not None and self._last(event) == run_id:
                return True
        return False

    def _last(self, event: dg.DagsterEvent) -> str | None:
        """The run of the last event of that kind for the same asset, partition or check."""
        if event.event_type is dg.DagsterEventType.ASSET_CHECK_EVALUATION:
            check = event.asset_check_evaluation_data
            return self._of(
                (check.asset_key, check.check_name),
                lambda: self._check(dg.AssetCheckKey(check.asset_key, check.check_name)),
            )
        asset, partition = event.asset_key, event.partition
        if asset is None:
            return None
        wanted = dg.AssetRecordsFilter(asset_key=asset, asset_partitions=None if partition is None else [partition])
        fetch = (
            self._instance.fetch_observations
            if event.event_type is dg.DagsterEventType.ASSET_OBSERVATION
            else self._instance.fetch_materializations
        )
        return self._of(
            (event.event_type, asset, partition),
            lambda: next((one.run_id for one in fetch(wanted, limit=1).records), None),
        )

    def _check(self, key: dg.AssetCheckKey) -> str | None:
        found = self._instance.event_log_storage.get_latest_asset_check_execution_by_key([key]).get(key)
        return None if found is None else found.run_id

    def _of(self, key: tuple[object, ...], find: Callable[[], str | None]) -> str | None:
        if key not in self._runs:
            self._runs[key] = find()
        return self._runs[key]


def _show(context: dg.OpExecutionContext, work: Callable[[], list[Outcome]]) -> None:
    """Run the work and put what it did into the op's metadata.

    Raises:
        Failure: a table failed; the others are done.
    """
    outcomes = without_values(work)
    records = [dg.TableRecord({name: _cell(getattr(one, name)) for name in _TOLD}) for one in outcomes]
    columns = [dg.TableColumn(name, "int" if name in _NUMBERS else "string") for name in _TOLD]
    told: dict[str, dg.MetadataValue[Any] | int] = {
        "tables": dg.MetadataValue.table(records, schema=dg.TableSchema(columns=columns)),
        "done": sum(not one.skipped and one.error is None for one in outcomes),
        "skipped": sum(bool(one.skipped) for one in outcomes),
        "failed": sum(one.error is not None for one in outcomes),
    }
    error = maintenance.failure(outcomes)
    if error is not None:
        raise dg.Failure(description=str(error), metadata=told, allow_retries=False)
    context.add_output_metadata(told)


def _cell(value: object) -> str | int | float:
    return value if isinstance(value, str | int | float) else ""


def _now() -> dt.datetime:
    return dt.datetime.now(dt.UTC)
