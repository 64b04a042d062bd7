"""The monitoring query, run by Spark over a real audit log, and the dashboard that shows it."""

from __future__ import annotations

import datetime as dt
import json
from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import sqlglot
import yaml
from databricks.bundles.dashboards import Dashboard
from sqlglot import exp

from bronze_assets import access
from bronze_assets.access import Role
from bronze_assets.audit import AUDIT_LOG
from bronze_assets.catalog import TABLES
from bronze_assets.lakehouse import Lakehouse
from bronze_assets.operations.monitoring import VIEW, monitoring_query, monitoring_script
from bronze_assets_tests import lake_reader
from bronze_assets_tests.conftest import CHECKOUT
from bronze_assets_tests.kpi_lake import DAY, attempts

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

SCHEMA = "shop_bronze"
BUNDLE = CHECKOUT / "deploy" / "bundle"


def test_it_tells_of_today_by_table_what_plain_python_counts(spark: SparkSession, tmp_path: Path) -> None:
    lake = Lakehouse(tmp_path)
    zone = spark.conf.get("spark.sql.session.timeZone")
    assert zone == "UTC"
    now = dt.datetime.now(dt.UTC)
    midnight = now.replace(hour=0, minute=0, second=0, microsecond=0)
    today = midnight + (now - midnight) / 2
    attempts(
        lake,
        SCHEMA,
        ("bz_a", "SUCCESS", today, 1_000, 99.0, None),
        ("bz_a", "SUCCESS", midnight, 10, 50.0, None),
        ("bz_a", "FAILED", now, 0, None, "bz_a: no source"),
        # Empty: without a score, and no reason to call the quality bad.
        ("bz_a", "SUCCESS", midnight, 0, None, None),
        ("bz_b", "FAILED", today, 0, None, "bz_b: no source"),
        ("bz_c", "SUCCESS", midnight - dt.timedelta(seconds=1), 77, 80.0, None),
        ("bz_d", "SUCCESS", now - DAY, 5, 80.0, None),
    )

    query = monitoring_query(lake.identifier(SCHEMA, AUDIT_LOG))
    found = {row["table_name"]: row.asDict() for row in spark.sql(query).collect()}

    rows: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in lake_reader.read(tmp_path / SCHEMA / AUDIT_LOG):
        if row["processing_end_time"].astimezone(dt.UTC).date() == now.date():
            rows[row["table_name"]].append(row)
    assert set(found) == set(rows) == {"bz_a", "bz_b"}
    for name, mine in rows.items():
        good = [row for row in mine if row["status"] == "SUCCESS"]
        scored = [row for row in good if row["data_quality_avg_score"] is not None]
        points = sum(row["data_quality_avg_score"] * row["record_count"] for row in scored)
        last = max((row["processing_end_time"] for row in good), default=None)
        told = found[name]
        assert told["records"] == sum(row["record_count"] for row in mine)
        count = sum(row["record_count"] for row in scored)
        assert told["average_quality"] == (round(points / count, 2) if count else None)
        assert (told["loads"], told["failed_attempts"]) == (len(good), len(mine) - len(good))
        if last is None:
            assert told["last_load"] is told["minutes_since"] is None
        else:
            # Spark gives the moment in this process's time zone, without saying so.
            assert told["last_load"].timestamp() == last.timestamp()
            assert 0 <= told["minutes_since"] - int((now - last).total_seconds() // 60) <= 1


def test_the_view_is_the_query_of_each_schema() -> None:
    views = sqlglot.parse(monitoring_script(TABLES, "prod"), dialect="databricks")
    assert [view.this.sql("databricks") for view in views if view is not None] == [
        f"`prod`.`{schema}`.`{VIEW}`" for schema in access.schemas(TABLES)
    ]
    for view in views:
        assert view is not None
        (log,) = view.expression.find_all(exp.Table)
        assert (log.db, log.name) == (view.this.db, AUDIT_LOG)


class TestDashboard:
    def body(self) -> dict[str, Any]:
        text = (BUNDLE / "resources" / "monitoring.dashboard.yml").read_text()
        (body,) = yaml.safe_load(text)["resources"]["dashboards"].values()
        assert isinstance(body, dict)
        return body

    def definition(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((BUNDLE / "resources" / self.body()["file_path"]).read_text())
        return found

    def test_is_one_as_databricks_knows_it(self) -> None:
        # Raises for a field that does not exist, at any depth.
        body: Any = self.body()
        assert Dashboard.from_dict(body).as_dict() == body

    def test_is_read_by_those_who_may_read_the_audit_log(self) -> None:
        readers = {one["group_name"] for one in self.body()["permissions"]}
        assert {one["level"] for one in self.body()["permissions"]} == {"CAN_READ"}
        (log,) = (control for control in access.CONTROLS if control.name == AUDIT_LOG)
        assert readers <= {str(role) for role in log.readers}
        assert readers == {str(Role.ENGINEERS), str(Role.AUDITORS)}

    def test_asks_the_view_of_every_schema_and_nothing_else(self) -> None:
        for dataset in self.definition()["datasets"]:
            query = sqlglot.parse_one("".join(dataset["queryLines"]), dialect="databricks")
            asked = [(table.db, table.name) for table in query.find_all(exp.Table)]
            assert sorted(asked) == sorted((schema, VIEW) for schema in access.schemas(TABLES))
            assert {table.catalog for table in query.find_all(exp.Table)} == {""}

    def test_shows_only_columns_that_the_query_has(self) -> None:
        definition = self.definition()
        query: Any = sqlglot.parse_one(monitoring_query("t"), dialect="databricks")
        columns = {*query.named_selects, "schema"}
        (dataset,) = definition["datasets"]
        selected: Any = sqlglot.parse_one("".join(dataset["queryLines"]), dialect="databricks")
        assert set(selected.named_selects) == columns
        names = set()
        for page in definition["pages"]:
            for placed in page["layout"]:
                widget, position = placed["widget"], placed["position"]
                assert position["x"] + position["width"] <= 6
                names.add(widget["name"])
                (asked,) = widget["queries"]
                assert asked["query"]["datasetName"] == dataset["name"]
                fields = {field["name"]: field["expression"] for field in asked["query"]["fields"]}
                for expression in fields.values():
                    parsed = sqlglot.parse_one(expression, dialect="databricks")
                    assert {column.name for column in parsed.find_all(exp.Column)} <= columns
                encodings = widget["spec"]["encodings"]
                used = encodings.get("columns") or list(encodings.values())
                assert {one["fieldName"] for one in used} == set(fields)
        assert len(names) == sum(len(page["layout"]) for page in definition["pages"])
