"""What an environment on Databricks is told about its clusters: the section `[databricks]` of its settings file.

Only values and what they must be to make sense together. Reading the file is `environment_file`, asking a workspace
whether they are true is `doctor_databricks`.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Mapping
from typing import Annotated, Final, Literal, NamedTuple

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

RUNTIMES: Final[Mapping[str, str]] = {"17.3": "4.0", "18": "4.1"}
"""Databricks' LTS lines that clusters may have → the Spark that they come with and that the platform is tested on."""

_SPARK_OF_MAJOR: Final = {"18": "4.1", "17": "4.0", "16": "3.5", "15": "3.5", "14": "3.5", "13": "3.4"}
_TESTED: Final = " and ".join(f"{line} LTS (Spark {spark})" for line, spark in RUNTIMES.items())

SECONDS_PER_HOUR: Final = 3600

VOLUME_PATH = re.compile(
    r"/Volumes/(?P<catalog>[^/\s]+)/(?P<schema>[^/\s]+)/(?P<volume>[^/\s]+)(?P<folder>(?:/[^/]+)*)"
)
"""A folder of a volume, without a slash at its end."""

LIBRARY = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?(?:\[[A-Za-z0-9._,-]+\])?==[A-Za-z0-9._+!-]+")


class Launch(enum.StrEnum):
    """How a step gets onto Databricks: as a pickle on DBFS, or by Dagster Pipes on a cluster or on serverless."""

    STEP_LAUNCHER = "step_launcher"
    PIPES = "pipes"
    SERVERLESS = "serverless"


class Fault(NamedTuple):
    """What is wrong with one key. Never holds a value that may be a secret.

    Attributes:
        key: below the section that has been looked at, e.g. `cluster.workers`.
        what: what is wrong, without a full stop.
        how: how to write it, as a sentence that begins small.
    """

    key: str
    what: str
    how: str


def faulty(*faults: Fault) -> PydanticCustomError:
    """The error that a validator raises; `environment_file` tells its faults."""
    return PydanticCustomError("faults", "{told}", {"told": "; ".join(fault.what for fault in faults), "all": faults})


def matching(pattern: re.Pattern[str], what: str, how: str) -> AfterValidator:
    """A validator of texts: what is told of one that does not match as a whole."""

    def check(text: str) -> str:
        if not pattern.fullmatch(text):
            raise faulty(Fault("", what, how))
        return text

    return AfterValidator(check)


def without_slash(text: str) -> str:
    """The path without a slash at its end."""
    return text.rstrip("/") or text


def runtime_fault(spark_version: str) -> str | None:
    """What is wrong with a version of Databricks' runtime, e.g. `17.3.x-scala2.13`; None for a tested line."""
    form = re.fullmatch(
        r"(?P<line>(?P<major>\d+)(?:\.\d+)?)\.x-(?P<kind>(?:[a-z0-9]+-)*)scala(?P<scala>[\d.]+)", spark_version
    )
    if form is None:
        return f"{spark_version!r} is no version of Databricks' runtime"
    if RUNTIMES.keys() & {form["line"], form["major"]} and form["scala"] == "2.13":
        return None
    spark = _SPARK_OF_MAJOR.get(form["major"])
    comes = f"comes with Spark {spark} and Scala {form['scala']}" if spark else "comes with a Spark not known here"
    return f"{spark_version!r} {comes}; tested are {_TESTED}"


def _tested_runtime(spark_version: str) -> str:
    if what := runtime_fault(spark_version):
        raise faulty(Fault("", what, 'use for example "17.3.x-scala2.13".'))
    return spark_version


class _Section(BaseModel):
    """Frozen, strict (no text for a number), and no key that is not known."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, hide_input_in_errors=True)


_Id = Annotated[
    str,
    matching(re.compile(r"[A-Za-z0-9_-]{1,128}"), "is no id of Databricks", "copy it from its page in the workspace."),
]
_NodeType = Annotated[
    str, matching(re.compile(r"[A-Za-z0-9_.-]{1,128}"), "is no node type", 'write for example "Standard_D4ds_v5".')
]
_Positive = Annotated[int, Field(gt=0)]
_Price = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class Autoscale(_Section):
    """Between how many workers a cluster scales."""

    min: Annotated[int, Field(ge=1, description="Fewest workers.", examples=["1"])]
    max: Annotated[int, Field(ge=1, description="Most workers.", examples=["4"])]

    @model_validator(mode="after")
    def _ordered(self) -> Autoscale:
        if self.min > self.max:
            raise faulty(
                Fault("", f"min = {self.min} is more than max = {self.max}", "write the smaller number as min.")
            )
        return self


class Cluster(_Section):
    """An existing cluster, or the job cluster that each run gets and that ends with it."""

    existing_cluster_id: Annotated[
        _Id | None,
        Field(
            description="An all-purpose cluster that is there; excludes all other keys of this section.",
            examples=['"1127-101010-abcdefgh"'],
        ),
    ] = None
    spark_version: Annotated[
        Annotated[str, AfterValidator(_tested_runtime)] | None,
        Field(description=f"Databricks' runtime, of a tested line: {_TESTED}.", examples=['"17.3.x-scala2.13"']),
    ] = None
    policy_id: Annotated[_Id | None, Field(description="The cluster policy.", examples=['"0123456789ABCDEF"'])] = None
    instance_pool_id: Annotated[
        _Id | None,
        Field(
            description="The pool of the workers, and of the driver unless it has one.", examples=['"1127-pool-abc"']
        ),
    ] = None
    driver_instance_pool_id: Annotated[
        _Id | None, Field(description="The driver's pool.", examples=['"1127-pool-abc"'])
    ] = None
    node_type_id: Annotated[
        _NodeType | None, Field(description="Node type, instead of a pool.", examples=['"Standard_D4ds_v5"'])
    ] = None
    driver_node_type_id: Annotated[
        _NodeType | None,
        Field(description="The driver's node type; that of the workers by default.", examples=['"Standard_D8ds_v5"']),
    ] = None
    workers: Annotated[
        _Positive | None, Field(description="How many workers, instead of `autoscale`.", examples=["2"])
    ] = None
    autoscale: Annotated[
        Autoscale | None,
        Field(description="Between how many workers the cluster scales.", examples=["{min = 1, max = 4}"]),
    ] = None
    spot: Annotated[
        bool,
        Field(
            description="Workers on spot instances, on demand where there are none; the driver is on demand. "
            "With a pool the pool says it.",
            examples=["true"],
        ),
    ] = False
    single_user_name: Annotated[
        str | None,
        Field(
            min_length=1,
            description="Who may use a cluster of one user: a user, or a service principal's application id. Whoever "
            "the run is of, by default.",
            examples=['"6f1f2c1e-0000-4000-8000-000000000001"'],
        ),
    ] = None
    data_security_mode: Annotated[
        Literal["SINGLE_USER", "USER_ISOLATION", "DATA_SECURITY_MODE_DEDICATED", "DATA_SECURITY_MODE_STANDARD"],
        Field(description="Access mode; one of those with Unity Catalog.", examples=['"SINGLE_USER"']),
    ] = "SINGLE_USER"
    spark_conf: Annotated[
        dict[str, str],
        Field(
            description="Spark's settings; a secret is written as `{{secrets/<scope>/<key>}}`.",
            examples=['{"spark.sql.shuffle.partitions" = "8"}'],
        ),
    ] = {}

    @model_validator(mode="after")
    def _makes_sense(self) -> Cluster:
        if faults := list(self._existing() if self.existing_cluster_id else self._job()):
            raise faulty(*faults)
        return self

    def _existing(self) -> list[Fault]:
        others = sorted(self.model_fields_set - {"existing_cluster_id"})
        return [
            Fault(key, "does not go with existing_cluster_id", "remove it: that cluster has settings of its own.")
            for key in others
        ]

    def _job(self) -> list[Fault]:
        pool, node = self.instance_pool_id is not None, self.node_type_id is not None
        sizes = (self.workers is not None) + (self.autoscale is not None)
        rules = [
            (self.spark_version is None, "spark_version", "is missing", 'write for example "17.3.x-scala2.13".'),
            (sizes == 0, "workers", "is missing", "write workers = 2, or autoscale = {min = 1, max = 4}."),
            (sizes == 2, "workers", "does not go with autoscale", "remove one of them."),
            (
                not pool and not node,
                "node_type_id",
                "is missing, and there is no pool",
                'write instance_pool_id, or node_type_id = "Standard_D4ds_v5".',
            ),
            (pool and node, "node_type_id", "does not go with instance_pool_id", "remove one: a pool has a node type."),
            (
                self.driver_instance_pool_id is not None and not pool,
                "driver_instance_pool_id",
                "needs instance_pool_id",
                "write the workers' pool too.",
            ),
            (
                self.driver_node_type_id is not None and pool,
                "driver_node_type_id",
                "does not go with instance_pool_id",
                "name a driver_instance_pool_id instead.",
            ),
            (
                self.driver_node_type_id is not None and not pool and not node,
                "driver_node_type_id",
                "needs node_type_id",
                "write the workers' node type too.",
            ),
            (self.spot and pool, "spot", "does not go with instance_pool_id", "remove it: the pool says it."),
            (
                self.single_user_name is not None
                and self.data_security_mode not in ("SINGLE_USER", "DATA_SECURITY_MODE_DEDICATED"),
                "single_user_name",
                f"does not go with data_security_mode {self.data_security_mode}",
                "remove it, or use SINGLE_USER.",
            ),
        ]
        return [Fault(key, what, how) for wrong, key, what, how in rules if wrong]


class NodePrice(_Section):
    """What one node of a type takes."""

    dbu_per_hour: Annotated[_Price, Field(description="DBUs of a node of this type, per hour.", examples=["1.0"])]
    vm_per_hour: Annotated[_Price, Field(description="Price of its virtual machine, per hour.", examples=["0.25"])]


class Prices(_Section):
    """What an hour costs, for the estimate of a run's cost. Taxes, disks and network are not in it."""

    currency: Annotated[
        str,
        matching(re.compile("[A-Z]{3}"), "is no currency", 'write its three letters, for example "EUR".'),
        Field(description="Currency of all prices, ISO 4217.", examples=['"EUR"']),
    ]
    dbu: Annotated[
        _Price,
        Field(
            description="Price of one DBU of the workspace's tier and the cluster's kind (jobs compute).",
            examples=["0.30"],
        ),
    ]
    nodes: Annotated[
        dict[str, NodePrice],
        Field(
            description="Node type → what one node takes.",
            examples=["{Standard_D4ds_v5 = {dbu_per_hour = 1.0, vm_per_hour = 0.25}}"],
        ),
    ]


def estimate(
    prices: Prices, node_type: str, driver_node_type: str | None, workers: float, seconds: float
) -> float | None:
    """About what a run costs, in the currency of the prices.

    Databricks bills DBUs, and the cloud the virtual machines, each by the second and for every node, the driver
    included (https://azure.microsoft.com/pricing/details/databricks: "virtual machines provisioned in clusters and
    Databricks Units based on the VM instance selected"):

        hours × (DBU price × (driver's DBUs + workers × node's DBUs) + driver's VM + workers × node's VM)

    Args:
        prices: as declared.
        node_type: of the workers.
        driver_node_type: of the driver; None for that of the workers.
        workers: how many, on average where the cluster scales.
        seconds: how long the nodes were there, their start included.

    Returns:
        None where a node type has no price.

    Raises:
        ValueError: workers or seconds are less than 0.
    """
    if not (workers >= 0 and seconds >= 0):
        raise ValueError(f"{workers} workers for {seconds} seconds cost nothing that can be told.")
    node, driver = prices.nodes.get(node_type), prices.nodes.get(driver_node_type or node_type)
    if node is None or driver is None:
        return None
    dbus = driver.dbu_per_hour + workers * node.dbu_per_hour
    machines = driver.vm_per_hour + workers * node.vm_per_hour
    return seconds / SECONDS_PER_HOUR * (prices.dbu * dbus + machines)


def _staging_volume(text: str) -> str:
    path = without_slash(text)
    if not VOLUME_PATH.fullmatch(path):
        raise faulty(
            Fault("", f"{text!r} is no folder of a volume", "begin it with /Volumes/<catalog>/<schema>/<volume>.")
        )
    return path


def _staging_prefix(text: str) -> str:
    path = without_slash(text)
    if not re.fullmatch(r"(?!/dbfs(/|$)|/Volumes(/|$))(/[^/\s:]+)+", path):
        raise faulty(
            Fault("", f"{text!r} is no folder on DBFS", 'write it without "dbfs:", for example "/dagster_staging".')
        )
    return path


def _exact(libraries: tuple[str, ...]) -> tuple[str, ...]:
    if loose := [library for library in libraries if not LIBRARY.fullmatch(library)]:
        raise faulty(
            Fault(
                "",
                f"{', '.join(map(repr, loose))}: no exact version",
                'write name==version, for example "tzdata==2026.1".',
            )
        )
    return libraries


class Databricks(_Section):
    """Where loads run, and how they get there. Nothing of it is a secret."""

    host: Annotated[
        str,
        AfterValidator(without_slash),
        matching(
            re.compile(r"https://[A-Za-z0-9.-]+(:\d+)?|http://(127\.0\.0\.1|localhost)(:\d+)?"),
            "is no address of a workspace",
            'write for example "https://adb-1234567890123456.7.azuredatabricks.net", without a path.',
        ),
        Field(
            description="The workspace.",
            examples=['"https://adb-1234567890123456.7.azuredatabricks.net"'],
        ),
    ]
    launch: Annotated[
        Launch,
        Field(
            strict=False,
            description="How steps run there: `step_launcher` (a cluster, over DBFS), `pipes` (a cluster, over a "
            "volume) or `serverless` (over a volume).",
            examples=['"step_launcher"'],
        ),
    ] = Launch.STEP_LAUNCHER
    secret_scope: Annotated[
        str,
        matching(
            re.compile(r"[A-Za-z0-9_.@-]{1,128}"),
            "is no name of a secret scope",
            "use letters, digits, '_', '.', '@', '-'.",
        ),
        Field(description="The secret scope of the platform.", examples=['"bronze"']),
    ] = "bronze"
    staging_prefix: Annotated[
        str,
        AfterValidator(_staging_prefix),
        Field(description="Folder on DBFS, for `step_launcher`.", examples=['"/dagster_staging"']),
    ] = "/dagster_staging"
    staging_volume: Annotated[
        Annotated[str, AfterValidator(_staging_volume)] | None,
        Field(
            description="Folder of a volume for what is staged, for `pipes` and `serverless`.",
            examples=['"/Volumes/dev_inventory/platform/staging"'],
        ),
    ] = None
    scratch: Annotated[
        Annotated[
            str,
            matching(
                re.compile(r"/[^\s]+"),
                "is no absolute path",
                "write for example /Volumes/dev_inventory/bronze_files/staging/scratch.",
            ),
        ]
        | None,
        Field(
            description="Folder that driver and executors see, for copies of files while they are loaded: of a volume.",
            examples=['"/Volumes/dev_inventory/bronze_files/staging/scratch"'],
            json_schema_extra={"default": "`scratch` in `staging_volume`"},
        ),
    ] = None
    libraries: Annotated[
        tuple[str, ...],
        AfterValidator(_exact),
        Field(
            strict=False,
            description="Further requirements from PyPI, with exact versions. What loads need themselves comes with the"
            " host's version; another one is refused.",
            examples=['["azure-identity==1.25.1"]'],
        ),
    ] = ()
    run_timeout_seconds: Annotated[
        _Positive, Field(description="Longest that a Databricks run may take, its start included.", examples=["14400"])
    ] = 14_400
    start_timeout_seconds: Annotated[
        _Positive, Field(description="Longest until a run has started, less than the former.", examples=["1800"])
    ] = 1_800
    poll_seconds: Annotated[
        float,
        Field(gt=0, le=300, allow_inf_nan=False, description="Pause between two looks at a run.", examples=["5.0"]),
    ] = 5.0
    cluster: Annotated[Cluster | None, Field(description="The cluster; not with `serverless`.")] = None
    prices: Annotated[Prices | None, Field(description="What an hour costs, for the estimate of a run's cost.")] = None

    @model_validator(mode="after")
    def _makes_sense(self) -> Databricks:
        serverless = self.launch is Launch.SERVERLESS
        rules = [
            (
                serverless and self.cluster is not None,
                "cluster",
                "does not go with launch = serverless",
                "remove the section, or use another launch.",
            ),
            (
                not serverless and self.cluster is None,
                "cluster",
                f"is missing, which launch = {self.launch} needs",
                "write a section [databricks.cluster], or use launch = serverless.",
            ),
            (
                self.launch is not Launch.STEP_LAUNCHER and self.staging_volume is None,
                "staging_volume",
                f"is missing, which launch = {self.launch} needs",
                "name a folder of a volume, for example /Volumes/dev_inventory/platform/staging.",
            ),
            (
                self.launch is Launch.STEP_LAUNCHER
                and self.cluster is not None
                and self.cluster.data_security_mode in ("USER_ISOLATION", "DATA_SECURITY_MODE_STANDARD"),
                "cluster.data_security_mode",
                "is a mode in which a cluster sees no /dbfs, over which launch = step_launcher brings its code",
                "use SINGLE_USER, or launch = pipes.",
            ),
            (
                self.start_timeout_seconds > self.run_timeout_seconds,
                "start_timeout_seconds",
                f"is more than run_timeout_seconds = {self.run_timeout_seconds}",
                "a run's time includes its start: write a smaller number.",
            ),
        ]
        if faults := [Fault(key, what, how) for wrong, key, what, how in rules if wrong]:
            raise faulty(*faults)
        return self
