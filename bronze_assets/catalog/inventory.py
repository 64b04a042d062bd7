"""The ten inventory tables of database `DE`, schema `tests` (design: tables.md).

What does not belong here: how rows are read, judged or written. Only what is so for each table.
"""

from __future__ import annotations

from dataclasses import replace

import pandera.pyspark as pa
import pyspark.sql.types as T

from bronze_assets.table import LOAD_DATE, BronzeTable, Cadence, Impact, Layout, Pii, Retention, column

SCHEMA = "inventory_bronze"
MONEY = {"precision": 12, "scale": 2}
EMAIL = r"^[^@\s]+@[^@\s]+\.[^@\s]+$"
PHONE = r"^\+?[0-9 ().-]{6,20}$"
SEVEN_YEARS = 2557
MASTER_DATA = Retention(
    superseded_days=SEVEN_YEARS,
    quarantine_days=400,
    reason="A trade is explained by the master data of its time, for as long as the archive keeps it: seven years."
    " What has been settled is evidence for the year's audit and the month after.",
)
TRADE = replace(MASTER_DATA, archive_days=SEVEN_YEARS)
PERSONS = replace(
    TRADE,
    quarantine_days=90,
    reason="A trade names its partners as they were then: seven years. What has been settled of a person serves nothing"
    " any more, and stays a quarter for questions.",
)
COUNTS = replace(
    MASTER_DATA,
    superseded_days=730,
    reason="Hourly counts are compared with the same week of the year before, and two years hold any such pair."
    " What has been settled is evidence for the year's audit and the month after.",
)


class Products(pa.DataFrameModel):
    product_id: T.IntegerType = column(key=True, gt=0, description="Identifies a product.")
    product_name: T.StringType = column(description="Name the product is sold under.")
    category: T.StringType = column(description="Product category.")
    unit_price: T.DecimalType = column(dtype_kwargs=MONEY, description="List price of one unit.")


class Suppliers(pa.DataFrameModel):
    supplier_id: T.IntegerType = column(key=True, gt=0, description="Identifies a supplier.")
    supplier_name: T.StringType = column(pii=Pii.LOW, description="Name of the supplier; may be a person.")
    contact_number: T.StringType = column(
        pii=Pii.MEDIUM, str_matches=PHONE, impact=Impact.LOW, description="Telephone number of the contact."
    )
    product_id: T.IntegerType = column(description="The product supplied.")


class Warehouses(pa.DataFrameModel):
    warehouse_id: T.IntegerType = column(key=True, gt=0, description="Identifies a warehouse.")
    location: T.StringType = column(description="Where the warehouse stands.")
    capacity: T.IntegerType = column(description="Units it can hold.")


class Inventory(pa.DataFrameModel):
    inventory_id: T.IntegerType = column(key=True, gt=0, description="Identifies an inventory position.")
    product_id: T.IntegerType = column(description="The product held.")
    warehouse_id: T.IntegerType = column(description="The warehouse that holds it.")
    quantity_available: T.IntegerType = column(ge=0, description="Units free to be sold.")


class Orders(pa.DataFrameModel):
    order_id: T.LongType = column(key=True, gt=0, description="Identifies an order.")
    customer_id: T.IntegerType = column(description="The customer who ordered.")
    order_date: T.DateType = column(
        not_in_future=True, impact=Impact.MEDIUM, description="Day of the order, in business time."
    )
    order_status: T.StringType = column(description="State of the order.")


class OrderDetails(pa.DataFrameModel):
    order_detail_id: T.LongType = column(key=True, gt=0, description="Identifies an order line.")
    order_id: T.LongType = column(description="The order it belongs to.")
    product_id: T.IntegerType = column(description="The product ordered.")
    quantity_ordered: T.IntegerType = column(ge=0, description="Units ordered.")
    unit_price: T.DecimalType = column(dtype_kwargs=MONEY, description="Price of one unit at the time of ordering.")


class Shipments(pa.DataFrameModel):
    shipment_id: T.LongType = column(key=True, gt=0, description="Identifies a shipment.")
    order_id: T.LongType = column(description="The order shipped.")
    shipment_date: T.DateType = column(description="Day it left.")
    carrier: T.StringType = column(description="Who carries it.")


class Returns(pa.DataFrameModel):
    return_id: T.LongType = column(key=True, gt=0, description="Identifies a return.")
    order_id: T.LongType = column(description="The order returned from.")
    return_date: T.DateType = column(description="Day it came back.")
    return_reason: T.StringType = column(description="Why, in the customer's choice of words.")


class StockLevels(pa.DataFrameModel):
    stock_level_id: T.IntegerType = column(key=True, gt=0, description="Identifies a stock count.")
    warehouse_id: T.IntegerType = column(description="Where it was counted.")
    product_id: T.IntegerType = column(description="What was counted.")
    quantity_on_hand: T.IntegerType = column(ge=0, description="Units on the shelf.")
    reorder_threshold: T.IntegerType = column(description="Units below which more is ordered.")


class Customers(pa.DataFrameModel):
    customer_id: T.IntegerType = column(key=True, gt=0, description="Identifies a customer.")
    customer_name: T.StringType = column(pii=Pii.HIGH, description="Full name.")
    email: T.StringType = column(
        pii=Pii.HIGH, str_matches=EMAIL, impact=Impact.MEDIUM, description="Address for order mail."
    )


TABLES: tuple[BronzeTable, ...] = (
    BronzeTable(
        SCHEMA,
        "tests.Products",
        Products,
        Cadence.STREAMING,
        "Products on sale.",
        layout=Layout(z_order=("product_id", "category")),
        retention=TRADE,
    ),
    BronzeTable(
        SCHEMA, "tests.Suppliers", Suppliers, Cadence.STREAMING, "Suppliers and what they supply.", retention=PERSONS
    ),
    BronzeTable(
        SCHEMA, "tests.Warehouses", Warehouses, Cadence.DAILY, "Warehouses and their capacity.", retention=MASTER_DATA
    ),
    BronzeTable(
        SCHEMA,
        "tests.Inventory",
        Inventory,
        Cadence.STREAMING,
        "Units available per product and warehouse.",
        layout=Layout(partition_by=LOAD_DATE, z_order=("product_id", "warehouse_id")),
        retention=TRADE,
    ),
    BronzeTable(
        SCHEMA,
        "tests.Orders",
        Orders,
        Cadence.STREAMING,
        "Orders by customers.",
        event_date="order_date",
        layout=Layout(partition_by="order_date", z_order=("customer_id",)),
        retention=TRADE,
    ),
    BronzeTable(SCHEMA, "tests.Order_Details", OrderDetails, Cadence.STREAMING, "Lines of orders.", retention=TRADE),
    BronzeTable(
        SCHEMA,
        "tests.Shipments",
        Shipments,
        Cadence.STREAMING,
        "Shipments of orders.",
        event_date="shipment_date",
        layout=Layout(partition_by="shipment_date"),
        retention=TRADE,
    ),
    BronzeTable(
        SCHEMA,
        "tests.Returns",
        Returns,
        Cadence.STREAMING,
        "Returns of orders.",
        event_date="return_date",
        retention=TRADE,
    ),
    BronzeTable(SCHEMA, "tests.Stock_Levels", StockLevels, Cadence.HOURLY, "Hourly stock counts.", retention=COUNTS),
    BronzeTable(
        SCHEMA,
        "tests.Customers",
        Customers,
        Cadence.STREAMING,
        "Customers, personal data.",
        layout=Layout(partition_by=LOAD_DATE, z_order=("customer_id",)),
        retention=PERSONS,
    ),
)
