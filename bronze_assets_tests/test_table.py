from __future__ import annotations

import re
from typing import Any

import pandera.pyspark as pa
import pyspark.sql.types as T
import pytest

from bronze_assets.catalog import TABLES, inventory, manufacturing
from bronze_assets.errors import DeclarationError
from bronze_assets.table import METADATA_COLUMNS, BronzeTable, Cadence, Impact, Layout, Pii, column

# tables.md, written down a second time. Column: type, and personal data where there is any.
INTEGER, LONG, TEXT, DATE, MONEY = "int", "bigint", "string", "date", "decimal(12,2)"
EXPECTED: dict[str, dict[str, Any]] = {
    "bz_products": {
        "source": "tests.Products",
        "cadence": "streaming",
        "columns": {"product_id": INTEGER, "product_name": TEXT, "category": TEXT, "unit_price": MONEY},
        "z_order": ("product_id", "category"),
    },
    "bz_suppliers": {
        "source": "tests.Suppliers",
        "cadence": "streaming",
        "columns": {"supplier_id": INTEGER, "supplier_name": TEXT, "contact_number": TEXT, "product_id": INTEGER},
        "personal": {"supplier_name": "Low", "contact_number": "Medium"},
        "rules": {"contact_number": ("str_matches", r"^\+?[0-9 ().-]{6,20}$", "Low", 5)},
    },
    "bz_warehouses": {
        "source": "tests.Warehouses",
        "cadence": "daily",
        "columns": {"warehouse_id": INTEGER, "location": TEXT, "capacity": INTEGER},
    },
    "bz_inventory": {
        "source": "tests.Inventory",
        "cadence": "streaming",
        "columns": {
            "inventory_id": INTEGER,
            "product_id": INTEGER,
            "warehouse_id": INTEGER,
            "quantity_available": INTEGER,
        },
        "partition_by": "load_date",
        "z_order": ("product_id", "warehouse_id"),
        "rules": {"quantity_available": ("greater_than_or_equal_to", 0, "High", 25)},
    },
    "bz_orders": {
        "source": "tests.Orders",
        "cadence": "streaming",
        "columns": {"order_id": LONG, "customer_id": INTEGER, "order_date": DATE, "order_status": TEXT},
        "event_date": "order_date",
        "partition_by": "order_date",
        "z_order": ("customer_id",),
        "rules": {"order_date": ("not_in_future", True, "Medium", 15)},
    },
    "bz_order_details": {
        "source": "tests.Order_Details",
        "cadence": "streaming",
        "columns": {
            "order_detail_id": LONG,
            "order_id": LONG,
            "product_id": INTEGER,
            "quantity_ordered": INTEGER,
            "unit_price": MONEY,
        },
        "rules": {"quantity_ordered": ("greater_than_or_equal_to", 0, "High", 25)},
    },
    "bz_shipments": {
        "source": "tests.Shipments",
        "cadence": "streaming",
        "columns": {"shipment_id": LONG, "order_id": LONG, "shipment_date": DATE, "carrier": TEXT},
        "event_date": "shipment_date",
        "partition_by": "shipment_date",
    },
    "bz_returns": {
        "source": "tests.Returns",
        "cadence": "streaming",
        "columns": {"return_id": LONG, "order_id": LONG, "return_date": DATE, "return_reason": TEXT},
        "event_date": "return_date",
    },
    "bz_stock_levels": {
        "source": "tests.Stock_Levels",
        "cadence": "hourly",
        "columns": {
            "stock_level_id": INTEGER,
            "warehouse_id": INTEGER,
            "product_id": INTEGER,
            "quantity_on_hand": INTEGER,
            "reorder_threshold": INTEGER,
        },
        "rules": {"quantity_on_hand": ("greater_than_or_equal_to", 0, "High", 25)},
    },
    "bz_customers": {
        "source": "tests.Customers",
        "cadence": "streaming",
        "columns": {"customer_id": INTEGER, "customer_name": TEXT, "email": TEXT},
        "partition_by": "load_date",
        "z_order": ("customer_id",),
        "personal": {"customer_name": "High", "email": "High"},
        "rules": {"email": ("str_matches", r"^[^@\s]+@[^@\s]+\.[^@\s]+$", "Medium", 15)},
    },
}


def test_there_are_the_ten_tables_of_the_design_the_three_feeds_of_the_issue_and_no_others() -> None:
    assert [table.name for table in TABLES] == [*EXPECTED, *FEEDS]


@pytest.mark.parametrize("table", inventory.TABLES, ids=lambda table: table.name)
def test_each_table_is_what_the_design_says(table: BronzeTable) -> None:
    expected = EXPECTED[table.name]
    (key, *_) = expected["columns"]

    assert table.schema == "inventory_bronze"
    assert table.source == expected["source"]
    assert table.cadence.value == expected["cadence"]
    assert {c.name: c.type.simpleString() for c in table.columns} == expected["columns"]
    assert [c.name for c in table.columns] == list(expected["columns"])
    assert [c.name for c in table.key] == [key]
    assert table.event_date == expected.get("event_date")
    assert table.layout.partition_by == expected.get("partition_by")
    assert table.layout.z_order == expected.get("z_order", ())
    assert {c.name: c.pii.value for c in table.columns if c.pii is not Pii.NONE} == expected.get("personal", {})
    assert table.quarantine_name == f"{table.name}_quarantine"


@pytest.mark.parametrize("table", inventory.TABLES, ids=lambda table: table.name)
def test_each_tables_rules_are_those_of_the_design(table: BronzeTable) -> None:
    expected = EXPECTED[table.name]
    (key, *others) = expected["columns"]

    assert {name: dict(arguments) for name, arguments in table.column(key).checks.items()} == {
        "greater_than": {"min_value": 0}
    }
    stated = {
        name: (check, *arguments.values(), table.column(name).impact.value, table.column(name).impact.penalty)
        for name in others
        for check, arguments in table.column(name).checks.items()
    }
    assert stated == expected.get("rules", {})
    assert not any(c.quarantine or c.added for c in table.columns)


TIMELY = {"not_in_future": {"enabled": True}, "max_age_days": {"days": 365}}


def between(low: int, high: int) -> dict[str, Any]:
    return {"in_range": {"min_value": low, "max_value": high, "include_min": True, "include_max": True}}


# Issue 4, written down a second time: the feed's folder, its event time, and each column's type, with its checks.
FEEDS: dict[str, tuple[str, str, int, dict[str, tuple[str, dict[str, Any]]]]] = {
    "bz_sensor_data": (
        "raw/sensor-data",
        "timestamp",
        2,
        {
            "sensor_id": (TEXT, {}),
            "timestamp": ("timestamp", TIMELY),
            "temperature": ("decimal(12,4)", between(-60, 150)),
            "humidity": ("decimal(12,4)", between(0, 100)),
            "pressure": ("decimal(12,4)", between(800, 1200)),
        },
    ),
    "bz_equipment_logs": (
        "raw/equipment-logs",
        "logged_at",
        1,
        {
            "log_id": (TEXT, {}),
            "equipment_id": (TEXT, {}),
            "logged_at": ("timestamp", TIMELY),
            "level": (TEXT, {"isin": {"allowed_values": ["INFO", "WARN", "ERROR", "FATAL"]}}),
            "message": (TEXT, {}),
        },
    ),
    "bz_quality_metrics": (
        "raw/quality-metrics",
        "measured_at",
        1,
        {
            "metric_id": (LONG, {"greater_than": {"min_value": 0}}),
            "batch_number": (TEXT, {}),
            "measured_at": ("timestamp", TIMELY),
            "metric": (TEXT, {}),
            "value": ("decimal(18,6)", {}),
            "passed": ("boolean", {}),
        },
    ),
}


def test_the_manufacturing_tables_are_those_of_the_issue() -> None:
    found = {}
    for table in manufacturing.TABLES:
        assert table.feed is not None
        columns = {
            c.name: (c.type.simpleString(), {check: dict(given) for check, given in c.checks.items()})
            for c in table.columns
        }
        found[table.name] = (table.feed.path, table.feed.event_time, len(table.key), columns)
        assert (table.schema, table.cadence) == ("manufacturing_bronze", Cadence.STREAMING)
        assert not table.feed.captured
        assert not any(c.quarantine for c in table.columns)
        assert {c.impact.value for c in table.columns if set(c.checks) - {"greater_than"}} == {"Medium"}

    assert found == FEEDS


def test_the_streaming_tables_are_loaded_from_captured_changes_and_the_batch_tables_from_no_files() -> None:
    feeds = {table.name: table.feed for table in inventory.TABLES}
    assert {name for name, feed in feeds.items() if feed is None} == {"bz_warehouses", "bz_stock_levels"}
    for name, feed in feeds.items():
        assert feed is None or (feed.captured and feed.path == f"inventory_bronze/{name}")


def test_a_column_says_everywhere_what_it_holds() -> None:
    for table in TABLES:
        assert table.description
        assert all(c.description.endswith(".") for c in table.columns), table.name


def test_the_metadata_columns_are_those_of_the_design() -> None:
    assert {name: kind.simpleString() for name, (kind, _) in METADATA_COLUMNS.items()} == {
        "load_timestamp": "timestamp",
        "update_timestamp": "timestamp",
        "source_system": "string",
        "record_status": "string",
        "data_quality_score": "int",
        "batch_id": "string",
        "file_name": "string",
        "record_hash": "string",
        "source_position": "string",
    }


def test_the_penalties_are_those_of_the_design() -> None:
    assert {impact.value: impact.penalty for impact in Impact} == {"High": 25, "Medium": 15, "Low": 5}
    assert [pii.value for pii in Pii if pii.protected] == ["Medium", "High"]


# --- broken declarations ----------------------------------------------------------------------------------------------


class Fine(pa.DataFrameModel):
    thing_id: T.IntegerType = column(key=True, gt=0, description="Key.")
    made_on: T.DateType = column(description="Day.")
    label: T.StringType = column(description="Text.")


class NoKey(pa.DataFrameModel):
    thing_id: T.IntegerType = column(description="No key.")


class KeyLast(pa.DataFrameModel):
    label: T.StringType = column(description="Text.")
    thing_id: T.IntegerType = column(key=True, description="Key.")


class UnsupportedType(pa.DataFrameModel):
    thing_id: T.IntegerType = column(key=True, description="Key.")
    weight: T.DoubleType = column(description="Inexact.")


class UnsupportedCheck(pa.DataFrameModel):
    thing_id: T.IntegerType = column(key=True, description="Key.")
    label: T.StringType = column(unique_values_eq=["a"], description="Text.")


class OwnCheck(pa.DataFrameModel):
    thing_id: T.IntegerType = column(key=True, description="Key.")
    label: T.StringType = column(description="Text.")

    @pa.check("label")
    @classmethod
    def label_is_nice(cls, _: Any) -> bool:
        return True


class WholeFrameCheck(pa.DataFrameModel):
    thing_id: T.IntegerType = column(key=True, description="Key.")

    @pa.dataframe_check
    @classmethod
    def all_is_well(cls, _: Any) -> bool:
        return True


class TextualNumber(pa.DataFrameModel):
    thing_id: T.IntegerType = column(key=True, str_matches="^1", description="Key.")


class OrderedText(pa.DataFrameModel):
    thing_id: T.IntegerType = column(key=True, description="Key.")
    label: T.StringType = column(ge=0, description="Text.")


class FutureMoment(pa.DataFrameModel):
    thing_id: T.IntegerType = column(key=True, description="Key.")
    made_at: T.StringType = column(not_in_future=True, description="Moment.")


class ProtectedKey(pa.DataFrameModel):
    email: T.StringType = column(key=True, pii=Pii.MEDIUM, description="Key.")


class MetadataName(pa.DataFrameModel):
    thing_id: T.IntegerType = column(key=True, description="Key.")
    batch_id: T.StringType = column(description="Taken.")


class GeneratedName(pa.DataFrameModel):
    thing_id: T.IntegerType = column(key=True, description="Key.")
    load_date: T.DateType = column(description="Taken.")


class UpperCase(pa.DataFrameModel):
    Thing_Id: T.IntegerType = column(key=True, description="Key.")


class PlainField(pa.DataFrameModel):
    thing_id: T.IntegerType = column(key=True, description="Key.")
    label: T.StringType = pa.Field(nullable=True)


class UnreadableModel(pa.DataFrameModel):
    thing_id: "NoSuchType" = column(key=True, description="Key.")  # type: ignore[name-defined] # noqa: F821, UP037


@pytest.mark.parametrize(
    ("model", "options", "culprit"),
    [
        (NoKey, {}, "no column is the key"),
        (KeyLast, {}, "key columns do not come first"),
        (UnsupportedType, {}, "'weight' has the type DoubleType()"),
        (UnsupportedCheck, {}, "'label' states the check 'unique_values_eq'"),
        (OwnCheck, {}, "'label' states the check 'label_is_nice'"),
        (WholeFrameCheck, {}, "WholeFrameCheck states a check on the whole frame"),
        (TextualNumber, {}, "'thing_id' states the check 'str_matches', which a int has not"),
        (OrderedText, {}, "'label' states the check 'greater_than_or_equal_to', which a string has not"),
        (FutureMoment, {}, "'made_at' states the check 'not_in_future', which a string has not"),
        (ProtectedKey, {}, "key column 'email' is protected personal data"),
        (MetadataName, {}, "column name 'batch_id' cannot be used"),
        (GeneratedName, {}, "column name 'load_date' cannot be used"),
        (UpperCase, {}, "column name 'Thing_Id' cannot be used"),
        (PlainField, {}, "column 'label' is not made with column()"),
        (UnreadableModel, {}, "pandera cannot read the model UnreadableModel"),
        (Fine, {"schema": "Inventory Bronze"}, "schema 'Inventory Bronze' is not snake_case"),
        (Fine, {"event_date": "sold_on"}, "event_date 'sold_on' is not a column"),
        (Fine, {"event_date": "label"}, "event_date 'label' is not a DATE"),
        (Fine, {"layout": Layout(partition_by="colour")}, "layout.partition_by 'colour' is not a column"),
        (Fine, {"layout": Layout(z_order=("label", "colour"))}, "layout.z_order 'colour' is not a column"),
    ],
)
def test_a_broken_declaration_names_table_culprit_and_fix(
    model: type[pa.DataFrameModel], options: dict[str, Any], culprit: str
) -> None:
    stated = {"schema": "inventory_bronze", "source": "tests.Things", **options}

    with pytest.raises(DeclarationError, match=rf"^bz_things: .*{re.escape(culprit)}.* Fix: ") as caught:
        BronzeTable(model=model, cadence=Cadence.DAILY, description="Things.", **stated)

    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "checks",
    [
        {"sounds_nice": True},
        {"unique": True},
        {"in_range": {"low": 1}},
        {"max_age_days": -1},
        {"max_age_days": 1.5},
        {"max_age_days": True},
        {"max_age_days": 36_501},
    ],
)
def test_a_check_that_pandera_does_not_know_names_its_column(checks: dict[str, Any]) -> None:
    with pytest.raises(DeclarationError, match=rf"the column 'Text\.' cannot state .*{next(iter(checks))}.* Fix: "):
        column(description="Text.", **checks)


@pytest.mark.parametrize("source", ["Things", "tests.Things; drop table x", "db.tests.Things", ""])
def test_a_source_that_is_no_schema_and_table_is_refused(source: str) -> None:
    with pytest.raises(DeclarationError, match=re.escape(f"source {source!r} is not <schema>.<table>")):
        BronzeTable("inventory_bronze", source, Fine, Cadence.DAILY, "Things.")


def test_a_sound_declaration_is_accepted_with_every_option() -> None:
    table = BronzeTable(
        "inventory_bronze",
        "tests.Things",
        Fine,
        Cadence.HOURLY,
        "Things.",
        event_date="made_on",
        layout=Layout(partition_by="made_on", z_order=("label", "thing_id")),
    )

    assert table.name == "bz_things"
    assert not table.has_personal_data
    assert table.column("label").type == T.StringType()
    with pytest.raises(KeyError):
        table.column("colour")
