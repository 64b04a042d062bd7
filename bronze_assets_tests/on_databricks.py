"""What the tests of Databricks and `make demo-databricks` share: an environment `dev` whose workspace is the fake one.

Its cluster's Spark has no Unity Catalog. Spark's own catalog stands for it, under its only name, `spark_catalog`.
"""

from __future__ import annotations

import base64
import json
import os
import secrets
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import dagster as dg

from bronze_assets.catalog import TABLES
from bronze_assets_tests.fake_workspace import CLUSTER, FakeWorkspace

CATALOG = "spark_catalog"
SCOPE = "bronze"
DAGSTER_YAML = """\
storage:
  sqlite:
    base_dir: {folder}
telemetry:
  enabled: false
"""


@dataclass
class Environment:
    """One environment with `[databricks]`, seen from the host.

    Attributes:
        home: of the host; no word of its path is one that the launcher leaves out.
        lake: where the catalog's managed tables lie, for who looks at them from outside.
        workspace: the fake.
        databricks: lines of the section, beside those that all tests have.
        cluster: lines of its cluster; none for serverless.
    """

    home: Path
    lake: Path
    workspace: FakeWorkspace
    databricks: Sequence[str] = ()
    cluster: Sequence[str] = (f'existing_cluster_id = "{CLUSTER}"',)

    def write_settings(self) -> Path:
        """The settings file of the environment."""
        self.home.mkdir(parents=True, exist_ok=True)
        landing = self.workspace.volumes / CATALOG / "platform" / "files"
        (landing / "landing").mkdir(parents=True, exist_ok=True)
        section = [f'host = "{self.workspace.url}"', "poll_seconds = 0.5", f'scratch = "{self.home / "scratch"}"']
        section += self.databricks
        lines = [
            'environment = "dev"',
            f'catalog = "{CATALOG}"',
            f'landing = "file://{landing}/landing"',
            f'archive = "file://{landing}/archive"',
            f'source_url = "databricks-secret://{SCOPE}/source-url"',
            f'master_key = "databricks-secret://{SCOPE}/master-key"',
            'capture = "off"',
            "lease_seconds = 10",
            "[databricks]",
            *section,
            *(["[databricks.cluster]", *self.cluster] if self.cluster else []),
        ]
        path = self.home / "dev.toml"
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
        dagster = self.home / "dagster"
        dagster.mkdir(exist_ok=True)
        (dagster / "dagster.yaml").write_text(DAGSTER_YAML.format(folder=dagster / "storage"), encoding="utf-8")
        return path

    @property
    def variables(self) -> dict[str, str]:
        """The host's environment."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("BRONZE_", "DATABRICKS_"))}
        return kept | {
            "BRONZE_ENV": "dev",
            "BRONZE_HOME": str(self.home),
            "BRONZE_SETTINGS": str(self.write_settings()),
            "DAGSTER_HOME": str(self.home / "dagster"),
            "DATABRICKS_TOKEN": self.workspace.token,
            # Of this checkout, wherever an editable install points.
            "PYTHONPATH": str(Path(__file__).parents[1]),
        }

    def materialise(
        self, *tables: str, partition: str, partition_range: bool = False, timeout: float = 300
    ) -> subprocess.CompletedProcess[str]:
        """Dagster's own command line, in a process of its own, on a partition or a range `first...last`."""
        return subprocess.run(
            command(tables, "--partition-range" if partition_range else "--partition", partition),
            env=self.variables,
            cwd=self.home,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )

    def started(self, *tables: str, partition: str) -> subprocess.Popen[bytes]:
        """The same, not waited for; what it says is lost."""
        return subprocess.Popen(
            command(tables, "--partition", partition),
            env=self.variables,
            cwd=self.home,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )

    def instance(self) -> dg.DagsterInstance:
        """The host's Dagster instance."""
        self.write_settings()
        return dg.DagsterInstance.from_config(str(self.home / "dagster"))


def command(tables: Sequence[str], option: str, partition: str) -> list[str]:
    """Dagster's command line that materialises these bronze tables."""
    keys = [f"{table.schema}/{table.name}" for table in TABLES if table.name in tables]
    assert len(keys) == len(tables)
    told = [sys.executable, "-m", "dagster", "asset", "materialize", "-m", "bronze_assets.definitions"]
    return [*told, "--select", ",".join(f"key:{key}" for key in keys), option, partition]


def secret_values(source_url: str) -> Mapping[str, Mapping[str, str]]:
    """What the workspace's secret scope holds."""
    key = base64.b64encode(secrets.token_bytes(32)).decode()
    return {SCOPE: {"source-url": source_url, "master-key": json.dumps({"versions": {"1": key}})}}
