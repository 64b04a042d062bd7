"""Steps on Databricks: the step launcher around the same assets, and `none_resource()` where they run in this process.

The launcher is dagster-databricks' own, unchanged. Around it: settings become its configuration, its errors are told in
our words, a run that does not start is ended, and the Dagster run is tagged by the host, since what a step says to its
instance on the cluster stays there.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import dagster as dg

from bronze_assets import databricks_job, shipping
from bronze_assets.databricks_settings import Databricks, Launch
from bronze_assets.errors import BronzeError
from bronze_assets.orchestration.runs import (
    BATCH_TAG,
    DATABRICKS_TAG,
    TABLE_TAG,
    begun_tags,
    first_and_last,
    retry_request,
    tag_run,
)
from bronze_assets.orchestration.watch import Watch
from bronze_assets.settings import Settings
from bronze_assets.vaults import not_installed

if TYPE_CHECKING:
    from dagster._core.execution.context.system import StepExecutionContext
    from dagster_databricks import DatabricksPySparkStepLauncher


_ENDS = (dg.DagsterEventType.STEP_SUCCESS, dg.DagsterEventType.STEP_FAILURE, dg.DagsterEventType.STEP_UP_FOR_RETRY)


def step_launcher(settings: Settings) -> dg.ResourceDefinition:
    """The resource of all steps that touch the lake: the step launcher, or nothing where they run in this process."""
    if settings.launch is not Launch.STEP_LAUNCHER:
        return dg.ResourceDefinition.none_resource()

    @dg.resource(description="Runs the step on Databricks (dagster-databricks' step launcher).")
    def pyspark_step_launcher(context: dg.InitResourceContext) -> LaunchedSteps:
        return LaunchedSteps(_real_launcher(settings, context.run_id or ""), settings)

    return pyspark_step_launcher


def launcher_config(settings: Settings, run_id: str) -> dict[str, Any]:
    """The configuration of `databricks_pyspark_step_launcher`. It holds no secret: all of it is staged on DBFS, and who
    signs in is found by the SDK, as `DATABRICKS_TOKEN` or `DATABRICKS_CLIENT_ID`.

    Raises:
        SettingsError: the settings do not do for a cluster, or nothing would be shipped.
    """
    there = settings.databricks
    assert there is not None
    assert there.cluster is not None
    return {
        "databricks_host": databricks_job.host(settings),
        "run_config": {
            "run_name": f"bronze_assets {settings.environment} {run_id}",
            "cluster": _cluster(there, databricks_job.host(settings)),
            "libraries": [{"pypi": {"package": one}} for one in shipping.libraries(settings)],
            "timeout_seconds": there.run_timeout_seconds,
        },
        "permissions": {},
        "env_variables": settings.remote_environment() | {"BRONZE_SHIPPED": shipping.manifest(settings)},
        "secrets_to_env_variables": [],
        "local_dagster_job_package_path": str(shipping.clean_copy(settings)),
        "staging_prefix": there.staging_prefix,
        "poll_interval_sec": there.poll_seconds,
        # Databricks ends the run; this is for when it does not.
        "max_completion_wait_time_seconds": there.run_timeout_seconds + 300,
        "verbose_logs": False,
        "add_dagster_env_variables": False,
    }


def _cluster(there: Databricks, workspace: str) -> dict[str, Any]:
    """The cluster in the launcher's words; the watch puts it on spot instances."""
    assert there.cluster is not None
    if there.cluster.existing_cluster_id is not None:
        return {"existing": there.cluster.existing_cluster_id}
    told = databricks_job.new_cluster(there.cluster.model_copy(update={"spot": False}), workspace)
    pools: dict[str, Any] = {
        name: told.pop(name) for name in ("instance_pool_id", "driver_instance_pool_id") if name in told
    }
    types = {name: told.pop(name) for name in ("node_type_id", "driver_node_type_id") if name in told}
    sizes = {name: told.pop(name) for name in ("num_workers", "autoscale") if name in told}
    return {"new": told | {"nodes": pools or {"node_types": types}, "size": sizes}}


def _real_launcher(settings: Settings, run_id: str) -> DatabricksPySparkStepLauncher:
    try:
        from dagster_databricks import databricks_pyspark_step_launcher
    except ImportError:
        raise not_installed("[databricks]", "databricks") from None
    with warnings.catch_warnings():
        # Step launchers are superseded by Pipes in Dagster, which says so at each use; docs/adr/0023.
        warnings.simplefilter("ignore", dg.SupersessionWarning)
        # Left to the garbage collector, its ephemeral instance would end when another is at work.
        with dg.build_init_resource_context(config=launcher_config(settings, run_id)) as context:
            launcher: DatabricksPySparkStepLauncher = databricks_pyspark_step_launcher(context)
    # What is printed there may quote rows; who may see it finds it on the run's page.
    launcher.log_compute_logs = lambda *_: None  # type: ignore[method-assign]
    return launcher


class LaunchedSteps(dg.StepLauncher):
    """Steps given to a launcher of dagster-databricks."""

    def __init__(self, launcher: DatabricksPySparkStepLauncher, settings: Settings) -> None:
        self._launcher = launcher
        self._settings = settings

    def launch_step(self, step_context: StepExecutionContext) -> Iterator[dg.DagsterEvent]:
        """The step's events, as they come back from the cluster."""
        instance, run = step_context.instance, step_context.dagster_run
        table = step_context.step.tags.get(TABLE_TAG)
        if table is not None:
            tag_run(instance, run.run_id, begun_tags(run, table, self._settings))
        batches: dict[str, None] = {}

        def started(page: str) -> None:
            tag_run(instance, run.run_id, {DATABRICKS_TAG: page})

        client = self._launcher.databricks_runner.client.workspace_client
        ended = False
        failure: BronzeError | None = None
        with Watch(client, self._settings, table or step_context.step.key, started) as watch:
            try:
                for event in self._launcher.launch_step(step_context):
                    if table is not None and (batch := _batch(event, table)):
                        batches[batch] = None
                        tag_run(instance, run.run_id, {BATCH_TAG: first_and_last([*batches])})
                    ended = ended or event.event_type in _ENDS
                    yield event
                if not ended:
                    failure = watch.without_end()
            except dg.DagsterExecutionInterruptedError:
                raise
            except Exception as error:
                failure = watch.failure(error)
            finally:
                # It names persons where the step is about them, and everybody in the workspace can read it.
                with contextlib.suppress(Exception):
                    folder = f"{self._launcher.staging_prefix}/{run.run_id}/{step_context.step.key}"
                    client.dbfs.delete(folder, recursive=True)
        if failure is None:
            return
        # Outside of the handler: what the SDK says in words would be kept as the cause.
        if failure.retryable and (again := retry_request(step_context.previous_attempt_count)):
            raise again
        page = {"databricks_run_url": dg.MetadataValue.url(watch.url)} if watch.url else {}
        raise dg.Failure(description=str(failure), metadata=page, allow_retries=False)


def _batch(event: dg.DagsterEvent, table: str) -> str | None:
    """The batch of a partition that the step has loaded."""
    if not event.is_step_materialization:
        return None
    told = event.step_materialization_data.materialization
    if told.asset_key is None or told.asset_key.path[-1] != table:
        return None
    batch = told.metadata.get("batch_id")
    return None if batch is None else str(batch.value)
