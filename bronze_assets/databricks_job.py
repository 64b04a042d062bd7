"""A run on Databricks as its Jobs API wants it, from the settings; who submits it is for `orchestration.databricks`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Final

from bronze_assets.databricks_settings import Cluster, Prices, estimate
from bronze_assets.errors import SettingsError
from bronze_assets.settings import Settings
from bronze_assets.spark_errors import SPARK_ERRORS

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

    from bronze_assets.audit import LoadRecord

# Workers alone: without its driver a run is lost.
_SPOT: Final[Mapping[str, Mapping[str, Any]]] = {
    "azure_attributes": {"availability": "SPOT_WITH_FALLBACK_AZURE", "first_on_demand": 1, "spot_bid_max_price": -1.0},
    "gcp_attributes": {"availability": "PREEMPTIBLE_WITH_FALLBACK_GCP"},
    "aws_attributes": {"availability": "SPOT_WITH_FALLBACK", "first_on_demand": 1},
}
# Shuffles hold rows before they are protected.
_CONF: Final = {"spark.io.encryption.enabled": "true"}
_TAGS: Final = "spark.databricks.clusterUsageTags."


def host(settings: Settings) -> str:
    """The workspace.

    Raises:
        SettingsError: none is named.
    """
    if not settings.databricks_host:
        raise SettingsError("no workspace is named.", "set DATABRICKS_HOST, or databricks.host in the settings file.")
    return settings.databricks_host


def new_cluster(cluster: Cluster, workspace: str) -> dict[str, Any]:
    """`new_cluster` of the Jobs API: the cluster that a run gets for itself, and that ends with it."""
    told: dict[str, Any] = {
        name: getattr(cluster, name)
        for name in (
            *("spark_version", "policy_id", "instance_pool_id", "driver_instance_pool_id", "node_type_id"),
            *("driver_node_type_id", "data_security_mode", "single_user_name"),
        )
    }
    told["spark_conf"] = _CONF | cluster.spark_conf
    told["num_workers"] = cluster.workers
    if cluster.autoscale is not None:
        told["autoscale"] = {"min_workers": cluster.autoscale.min, "max_workers": cluster.autoscale.max}
    if cluster.spot:
        told |= spot_attributes(workspace)
    return {name: value for name, value in told.items() if value is not None}


def spot_attributes(workspace: str) -> dict[str, Any]:
    """What puts workers on spot instances in the cloud of a workspace, which its address tells."""
    if ".azuredatabricks." in workspace:
        key = "azure_attributes"
    else:
        key = "gcp_attributes" if ".gcp.databricks.com" in workspace else "aws_attributes"
    return {key: dict(_SPOT[key])}


def cost_facts(conf: Callable[[str], str | None], prices: Prices | None, seconds: float) -> dict[str, Any]:
    """What a load on this cluster is billed by: cluster, node types, workers, seconds, and what that costs about.

    Args:
        conf: gives a setting of the Spark session, None where it is not set: Databricks tells of the cluster there.
        prices: without them there is no estimate.
        seconds: of the load. The cluster's start is not in them; the run's page has it.
    """
    cluster, node, workers = (conf(_TAGS + name) for name in ("clusterId", "clusterNodeType", "clusterWorkers"))
    if cluster is None:
        return {}
    facts: dict[str, Any] = {"databricks/cluster": cluster, "databricks/seconds": seconds}
    if node:
        facts["databricks/node_type"] = node
    count = int(workers) if workers and workers.isdigit() else None
    if count is not None:
        facts["databricks/workers"] = count
    if prices is not None and node and count is not None:
        driver = conf(f"{_TAGS}driverNodeType")
        cost = estimate(prices, node, driver, count, seconds)
        if cost is not None:
            facts |= {"databricks/cost": cost, "databricks/currency": prices.currency}
    return facts


def bill(settings: Settings, session: Callable[[], SparkSession], record: LoadRecord) -> dict[str, Any]:
    """The cost facts of a load in this process, as metadata; none where it is no cluster's.

    Args:
        session: asked on a cluster only, where there is one.
    """
    # Serverless compute has no nodes that anybody sees.
    if not settings.on_cluster or settings.serverless:
        return {}
    conf = session().conf

    def told(name: str) -> str | None:
        try:
            return conf.get(name, None)
        except SPARK_ERRORS:
            # The load is committed: no bill may fail it.
            return None

    facts = cost_facts(told, settings.prices, record.seconds)
    if "databricks/cost" in facts and record.bytes_written:
        facts["databricks/cost_per_gb"] = facts["databricks/cost"] / record.bytes_written * 1e9
    return facts
