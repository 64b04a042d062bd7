"""Arrow schemas of tables that Spark describes, for those who make them without Spark."""

from __future__ import annotations

import pyarrow as pa
from deltalake import Schema
from pyspark.sql import types as T


def arrow_schema(schema: T.StructType) -> pa.Schema:
    """The same columns for Arrow, with timestamps in UTC."""
    # Spark and Delta write schemas in the same JSON. (Spark's own `to_arrow_schema` differs from line to line.)
    return pa.schema(Schema.from_json(schema.json()).to_arrow())
