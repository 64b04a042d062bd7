"""What is ingested: one module per source system. A new table is one more `BronzeTable` in its module's tuple."""

from __future__ import annotations

from bronze_assets.catalog import inventory, manufacturing

TABLES = (*inventory.TABLES, *manufacturing.TABLES)
