"""What judging and protecting a row costs: encryption against none, forty rules against five."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import pandera.pyspark as pa
import pyspark.sql.types as T

from benchmarks.ground import Ground, loads_anew
from benchmarks.measure import Comparison, Scenario, Side
from bronze_assets.catalog.inventory import EMAIL, SCHEMA, TABLES
from bronze_assets.quality import KEY, PARSED, rules
from bronze_assets.table import BronzeTable, Cadence, Impact, column

(CUSTOMERS,) = (table for table in TABLES if table.name == "bz_customers")
_BY_DEFAULT = {KEY, PARSED}


class Unprotected(pa.DataFrameModel):  # type: ignore[type-arg]
    """The customers, as if nothing of them were personal."""

    customer_id: T.IntegerType = column(key=True, gt=0, description="Identifies a customer.")
    customer_name: T.StringType = column(description="Full name.")
    email: T.StringType = column(str_matches=EMAIL, impact=Impact.MEDIUM, description="Address for order mail.")


class FiveRules(pa.DataFrameModel):  # type: ignore[type-arg]
    item_id: T.LongType = column(key=True, gt=0, description="Identifies an item.")
    code: T.StringType = column(str_matches=r"^[A-Z]{2}-[0-9]+-X$", description="Code of the item.")
    name: T.StringType = column(description="Name of the item.")
    state: T.StringType = column(isin=["NEW", "USED", "SOLD"], description="State of the item.")
    amount: T.IntegerType = column(ge=0, description="How many there are.")
    weight: T.IntegerType = column(gt=0, description="Weight in grams.")
    length: T.IntegerType = column(description="Length in millimetres.")
    made_on: T.DateType = column(not_in_future=True, description="Day on which it was made.")


_TEXT: dict[str, Any] = {
    "str_matches": r"^[A-Za-z0-9 -]+$",
    "str_length": {"min_value": 1, "max_value": 40},
    "notin": ["?", "-", "n/a"],
    "ne": "none",
}
_NUMBER: dict[str, Any] = {
    "ge": 0,
    "gt": -1,
    "le": 1_000_000,
    "lt": 1_000_001,
    "ne": 999_999,
    "notin": [666_666, 777_777],
}


class FortyRules(pa.DataFrameModel):  # type: ignore[type-arg]
    """The same columns. Each rule reads the column's value anew, as rules that somebody writes do."""

    item_id: T.LongType = column(key=True, gt=0, description="Identifies an item.")
    code: T.StringType = column(
        **_TEXT, str_contains="-", str_startswith="A", str_endswith="-X", description="Code of the item."
    )
    name: T.StringType = column(
        **_TEXT, str_contains=" ", str_startswith="item", str_endswith="shop", description="Name of the item."
    )
    state: T.StringType = column(**_TEXT, isin=["NEW", "USED", "SOLD"], description="State of the item.")
    amount: T.IntegerType = column(
        **_NUMBER, in_range={"min_value": 0, "max_value": 10_000}, description="How many there are."
    )
    weight: T.IntegerType = column(**_NUMBER, description="Weight in grams.")
    length: T.IntegerType = column(**_NUMBER, description="Length in millimetres.")
    made_on: T.DateType = column(not_in_future=True, max_age_days=30_000, description="Day on which it was made.")


def protection(ground: Ground) -> Iterator[Scenario]:
    """New customers with two encrypted columns, against the same ones without."""
    rows = ground.sizes.customers
    ground.execute(
        "create schema if not exists tests",
        "drop table if exists tests.customers",
        "create table tests.customers (customer_id int primary key, customer_name text, email text)",
        "insert into tests.customers select i, 'Zoë Customer ' || i, 'customer.' || i || '@example.org'"
        f" from generate_series(1, {rows}) i",
        "vacuum analyze tests.customers",
    )
    bench = ground.workbench("lake")
    unprotected = dataclasses.replace(CUSTOMERS, model=Unprotected)
    yield Scenario(
        [
            Side("unprotected", loads_anew(bench, unprotected, rows), rows),
            Side("protected", loads_anew(bench, CUSTOMERS, rows), rows),
        ],
        [Comparison("encryption, new customers", "protected", "unprotected", 2.5)],
    )
    ground.forget("tests.customers")


def quality(ground: Ground) -> Iterator[Scenario]:
    """The same rows under forty rules and under five."""
    rows = ground.sizes.judged
    ground.execute(
        "create schema if not exists tests",
        "drop table if exists tests.items",
        "create table tests.items (item_id bigint primary key, code text, name text, state text,"
        " amount int, weight int, length int, made_on date)",
        "insert into tests.items select i, 'AB-' || i || '-X', 'item ' || i || ' of the shop',"
        " (array['NEW', 'USED', 'SOLD'])[i % 3 + 1],"
        " i % 1000, i % 5000 + 1, i % 777, current_date - (i % 1000)::int"
        f" from generate_series(1, {rows}) i",
        "vacuum analyze tests.items",
    )
    bench = ground.workbench("lake")
    few, many = (_items(model, count) for model, count in ((FiveRules, 5), (FortyRules, 40)))
    yield Scenario(
        [
            Side("5 rules", loads_anew(bench, few, rows), rows),
            Side("40 rules", loads_anew(bench, many, rows), rows),
        ],
        [Comparison("40 rules", "40 rules", "5 rules", 1.5)],
    )
    ground.forget("tests.items")


def _items(model: type[pa.DataFrameModel], count: int) -> BronzeTable:  # type: ignore[type-arg]
    table = BronzeTable(SCHEMA, "tests.Items", model, Cadence.DAILY, "Items of many kinds.")
    stated = [rule for rule in rules(table) if rule.name not in _BY_DEFAULT]
    assert len(stated) == count, [rule.name for rule in stated]
    return table
