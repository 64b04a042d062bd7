"""Loads on Databricks without DBFS: through Dagster Pipes and a volume, on a cluster or on serverless compute.

The asset is the same. Its loader submits one run for all partitions of a step, with the shipped code from the staging
volume, and reads the records back.
"""

from __future__ import annotations

import dataclasses
import io
import zipfile
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import dagster as dg

from bronze_assets import databricks_job, shipping
from bronze_assets.audit import LoadRecord
from bronze_assets.databricks_settings import Databricks, Launch
from bronze_assets.errors import BronzeError, RemoteFailure, SettingsError
from bronze_assets.orchestration.remote import START, raised, record_of
from bronze_assets.orchestration.runs import DATABRICKS_TAG, tag_run
from bronze_assets.orchestration.watch import Watch
from bronze_assets.settings import Settings
from bronze_assets.table import BronzeTable
from bronze_assets.vaults import not_installed
from bronze_assets.workbench import Options, Run

if TYPE_CHECKING:
    from databricks.sdk import WorkspaceClient
    from databricks.sdk.service.jobs import SubmitTask

_ENVIRONMENT = "bronze"
_ENVIRONMENT_VERSION = "4"
"""Of serverless compute: Python 3.12, https://docs.databricks.com/release-notes/serverless/environment-version."""
_ANSWER_SECONDS = 60
_RETRY_SECONDS = 300


def pipes_loader(settings: Settings) -> dg.ResourceDefinition:
    """The resource `loader` where Pipes loads. Making it asks nobody."""

    @dg.resource(description="Loads on Databricks through Dagster Pipes: one run for all partitions of a step.")
    def loader(_: dg.InitResourceContext) -> PipesLoader:
        return PipesLoader(settings)

    return loader


class PipesLoader:
    """Loads tables in runs on Databricks, and hears how they ended."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings

    def loads(
        self,
        context: dg.AssetExecutionContext,
        table: BronzeTable,
        partitions: Sequence[str],
        run: Run,
        options: Options,
    ) -> Iterator[tuple[LoadRecord, dict[str, Any]]]:
        """Each partition's record, one after the other, and what its load is billed by.

        Raises:
            BronzeError: of the load, as it was raised there; or the run could not be started, or was lost.
        """
        messages, failure = self._run(context, table, partitions, run, options)
        for message in messages:
            if "error" in message:
                raise raised(message["error"])
            yield record_of(message), message["cost"]
        # Also of a run that was lost: what it has told before that has happened.
        raise failure or RemoteFailure(
            f"the run on Databricks told of {len(messages)} partitions, and {len(partitions)} were asked for.",
            "see the driver's log on its page.",
            table=table.name,
        )

    def _run(
        self,
        context: dg.AssetExecutionContext,
        table: BronzeTable,
        partitions: Sequence[str],
        run: Run,
        options: Options,
    ) -> tuple[Sequence[dict[str, Any]], BronzeError | None]:
        """What the run has told, and why it ended badly."""
        there = self._settings.databricks
        assert there is not None
        extras = {
            "environment": self._settings.remote_environment() | {"BRONZE_SHIPPED": shipping.manifest(self._settings)},
            "table": table.name,
            "partitions": list(partitions),
            "run": [run.id, run.trigger],
            "options": dataclasses.asdict(options),
        }
        failure: BronzeError | None = None
        client = _client(self._settings)
        reader = _reader(client, there)
        with Watch(client, self._settings, table.name, lambda page: _tag(context, page)) as watch:
            try:
                task, arguments = self._task(client, there, f"bronze_assets {self._settings.environment} {run.id}")
                _pipes(client, there, reader).run(context=context, extras=extras, task=task, submit_args=arguments)
            except dg.DagsterExecutionInterruptedError:
                raise
            except Exception as error:
                failure = watch.failure(error)
            if failure is None and watch.cancelled:
                # The client swallows it (dagster-databricks 0.29), and Dagster would go on to the next table.
                raise dg.DagsterExecutionInterruptedError
        return reader.messages, failure

    def _task(self, client: WorkspaceClient, there: Databricks, name: str) -> tuple[SubmitTask, dict[str, Any]]:
        """The task, and what else is submitted with it."""
        from databricks.sdk.service.compute import Environment
        from databricks.sdk.service.jobs import JobEnvironment, SubmitTask

        folder = self._staged(client, there)
        told: dict[str, Any] = {
            "task_key": "bronze_assets",
            "spark_python_task": {"python_file": f"{folder}/start.py", "parameters": [f"{folder}/code.zip"]},
        }
        arguments: dict[str, Any] = {"run_name": name, "timeout_seconds": there.run_timeout_seconds}
        libraries = shipping.libraries(self._settings)
        if there.cluster is None:
            told["environment_key"] = _ENVIRONMENT
            spec = Environment(environment_version=_ENVIRONMENT_VERSION, dependencies=libraries)
            arguments["environments"] = [JobEnvironment(_ENVIRONMENT, spec)]
        else:
            told["libraries"] = [{"pypi": {"package": one}} for one in libraries]
            if there.cluster.existing_cluster_id is not None:
                told["existing_cluster_id"] = there.cluster.existing_cluster_id
            else:
                told["new_cluster"] = databricks_job.new_cluster(there.cluster, databricks_job.host(self._settings))
        return SubmitTask.from_dict(told), arguments

    @staticmethod
    def _staged(client: WorkspaceClient, there: Databricks) -> str:
        """The folder of the volume with the code; written where it is not there yet."""
        folder = f"{there.staging_volume}/code/{shipping.code_digest()}"
        start = f"{folder}/start.py"
        from databricks.sdk.errors import NotFound

        try:
            client.files.get_metadata(start)
        except NotFound:
            client.files.create_directory(folder)
            archive = io.BytesIO()
            with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as zipped:
                for name, content in shipping.contents():
                    zipped.writestr(name, content)
            archive.seek(0)
            client.files.upload(f"{folder}/code.zip", archive, overwrite=True)
            # Last: who finds it finds all.
            client.files.upload(start, io.BytesIO(START.encode()), overwrite=True)
        return folder


def _client(settings: Settings) -> WorkspaceClient:
    try:
        from databricks.sdk import WorkspaceClient
        from databricks.sdk.core import Config
    except ImportError:
        raise not_installed("[databricks]", "databricks") from None
    failure: str
    try:
        return WorkspaceClient(
            config=Config(
                host=databricks_job.host(settings),
                http_timeout_seconds=_ANSWER_SECONDS,
                retry_timeout_seconds=_RETRY_SECONDS,
            )
        )
    except SettingsError:
        raise
    except Exception as error:
        failure = type(error).__name__
    raise SettingsError(
        f"nobody is signed in to {settings.databricks_host} ({failure}).",
        "set DATABRICKS_TOKEN, or DATABRICKS_CLIENT_ID and DATABRICKS_CLIENT_SECRET, or ARM_… of a service principal.",
    )


def _reader(client: WorkspaceClient, there: Databricks) -> Any:
    """Reads messages from the volume, and keeps them when the run fails."""
    from dagster_databricks.pipes import PipesUnityCatalogVolumesMessageReader

    class Reader(PipesUnityCatalogVolumesMessageReader):
        handler: Any = None

        def read_messages(self, handler: Any) -> Any:
            self.handler = handler
            return super().read_messages(handler)

        @property
        def messages(self) -> Sequence[dict[str, Any]]:
            return [] if self.handler is None else list(self.handler.get_custom_messages())

    return Reader(
        client=client,
        volume_path=there.staging_volume or "",
        interval=there.poll_seconds,
        # What is printed there may quote rows.
        include_stdio_in_messages=False,
    )


def _pipes(client: WorkspaceClient, there: Databricks, reader: Any) -> Any:
    """The client for this way to run, with all that passes between on the volume."""
    from dagster_databricks import PipesDatabricksClient
    from dagster_databricks.pipes import PipesDatabricksServerlessClient, PipesUnityCatalogVolumesContextInjector

    volume = there.staging_volume or ""
    if there.launch is Launch.SERVERLESS:
        return PipesDatabricksServerlessClient(
            client=client, volume_path=volume, message_reader=reader, poll_interval_seconds=there.poll_seconds
        )
    return PipesDatabricksClient(
        client=client,
        context_injector=PipesUnityCatalogVolumesContextInjector(client=client, volume_path=volume),
        message_reader=reader,
        poll_interval_seconds=there.poll_seconds,
    )


def _tag(context: dg.AssetExecutionContext, page: str) -> None:
    context.log.info("Databricks run: %s", page)
    tag_run(context.instance, context.run.run_id, {DATABRICKS_TAG: page})
