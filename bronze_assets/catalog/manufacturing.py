"""The three feeds of files from the shop floor: schema `manufacturing_bronze`.

Two decisions hold for all three:

- Measurements are decimals: a double has no canonical text, so the hash of one value could differ between two readers.
- A row is loaded whatever its clock says. A moment in the future or too long ago is what a wrong clock, or a file that
  is loaded again after a year in the archive, looks like: the measurement may still be right. It costs points and shows
  in a check; quarantining it would make the outcome of a file depend on the day on which it is loaded.

What does not belong here: how files are found, read, judged or written. Only what is so for each table.
"""

from __future__ import annotations

import pandera.pyspark as pa
import pyspark.sql.types as T

from bronze_assets.table import LOAD_DATE, BronzeTable, Cadence, Feed, Impact, Layout, Retention, column

SCHEMA = "manufacturing_bronze"
SOURCE_SYSTEM = "Manufacturing_Files"
GROUP = "manufacturing"
MEASUREMENT = {"precision": 12, "scale": 4}
VALUE = {"precision": 18, "scale": 6}
YEAR = 365
SENSOR_YEAR = Retention(
    rows_days=400,
    quarantine_days=400,
    archive_days=400,
    reason="A measurement is compared with the same season a year before, and a late one may be a year old; and a month"
    " for who looks late. What is asked for longer belongs into a table derived from it.",
)
MACHINE_LOGS = Retention(
    rows_days=730,
    quarantine_days=400,
    archive_days=730,
    reason="A failure is traced back over two services of a machine, which are a year apart.",
)
PRODUCTION_EVIDENCE = Retention(
    superseded_days=2557,
    quarantine_days=400,
    archive_days=2557,
    reason="What was measured last of a batch is evidence of its quality and stays; corrected values and their files go"
    " with the records of trade, after seven years.",
)


class SensorData(pa.DataFrameModel):
    """Plausible ranges are those of the sensors' own scales: what lies outside is a broken sensor, not a hot day."""

    sensor_id: T.StringType = column(key=True, description="Identifies a sensor.")
    timestamp: T.TimestampType = column(
        key=True, not_in_future=True, max_age_days=YEAR, impact=Impact.MEDIUM, description="When it measured (UTC)."
    )
    temperature: T.DecimalType = column(
        dtype_kwargs=MEASUREMENT,
        in_range={"min_value": -60, "max_value": 150},
        impact=Impact.MEDIUM,
        description="Temperature in °C.",
    )
    humidity: T.DecimalType = column(
        dtype_kwargs=MEASUREMENT,
        in_range={"min_value": 0, "max_value": 100},
        impact=Impact.MEDIUM,
        description="Relative humidity in %.",
    )
    pressure: T.DecimalType = column(
        dtype_kwargs=MEASUREMENT,
        in_range={"min_value": 800, "max_value": 1200},
        impact=Impact.MEDIUM,
        description="Air pressure in hPa.",
    )


class EquipmentLogs(pa.DataFrameModel):
    log_id: T.StringType = column(key=True, description="Identifies a log entry.")
    equipment_id: T.StringType = column(description="The machine that wrote it.")
    logged_at: T.TimestampType = column(
        not_in_future=True, max_age_days=YEAR, impact=Impact.MEDIUM, description="When it was written (UTC)."
    )
    level: T.StringType = column(
        isin=["INFO", "WARN", "ERROR", "FATAL"], impact=Impact.MEDIUM, description="How grave it is."
    )
    message: T.StringType = column(description="What happened.")


class QualityMetrics(pa.DataFrameModel):
    metric_id: T.LongType = column(key=True, gt=0, description="Identifies a measurement.")
    batch_number: T.StringType = column(description="The production batch measured.")
    measured_at: T.TimestampType = column(
        not_in_future=True, max_age_days=YEAR, impact=Impact.MEDIUM, description="When it was measured (UTC)."
    )
    metric: T.StringType = column(description="What was measured, with its unit.")
    value: T.DecimalType = column(dtype_kwargs=VALUE, description="The measured value.")
    passed: T.BooleanType = column(description="Whether it lies within the batch's tolerance.")


TABLES: tuple[BronzeTable, ...] = (
    BronzeTable(
        SCHEMA,
        "manufacturing.Sensor_Data",
        SensorData,
        Cadence.STREAMING,
        "Measurements of the sensors on the shop floor.",
        layout=Layout(partition_by=LOAD_DATE, z_order=("sensor_id", "timestamp")),
        files=Feed("raw/sensor-data", event_time="timestamp"),
        source_system=SOURCE_SYSTEM,
        group=GROUP,
        retention=SENSOR_YEAR,
    ),
    BronzeTable(
        SCHEMA,
        "manufacturing.Equipment_Logs",
        EquipmentLogs,
        Cadence.STREAMING,
        "What the machines log.",
        layout=Layout(partition_by=LOAD_DATE, z_order=("equipment_id",)),
        files=Feed("raw/equipment-logs", event_time="logged_at"),
        source_system=SOURCE_SYSTEM,
        group=GROUP,
        retention=MACHINE_LOGS,
    ),
    BronzeTable(
        SCHEMA,
        "manufacturing.Quality_Metrics",
        QualityMetrics,
        Cadence.STREAMING,
        "Quality measurements of production batches.",
        layout=Layout(z_order=("batch_number",)),
        files=Feed("raw/quality-metrics", event_time="measured_at"),
        source_system=SOURCE_SYSTEM,
        group=GROUP,
        retention=PRODUCTION_EVIDENCE,
    ),
)
