"""Discovery by Databricks Auto Loader: what it finds is proposed, the ledger decides.

A stream over `cloudFiles` finds files without listing the landing zone, and its checkpoint remembers them. Each
micro-batch records the first sighting of its files in the ledger *before* the checkpoint moves on. So a load claims
what the ledger says, a file that the stream has found is never forgotten, and a deleted checkpoint only makes the
stream find everything again, which the ledger knows already.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping
from urllib.parse import unquote, urlsplit

from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from bronze_assets.errors import StaleBase
from bronze_assets.sources.landing import LandedFile, suffixes
from bronze_assets.sources.ledger import FileEvent, FileState, Ledger
from bronze_assets.table import Evolution, Feed

AUTO_LOADER = "cloudFiles"
FILE_STREAM = "binaryFile"
_EVOLUTION = {Evolution.ADD: "addNewColumns", Evolution.RESCUE: "rescue", Evolution.STOP: "failOnNewColumns"}
_BINARY_FILE = "path string, modificationTime timestamp, length long, content binary"
_MOST_RESTARTS = 10


def auto_loader_options(feed: Feed, kind: str, schema_location: str) -> Mapping[str, str]:
    """Options of a `cloudFiles` reader for one format of a feed.

    Args:
        kind: `csv`, `json` or `parquet`.
        schema_location: where Auto Loader keeps the inferred schema and its versions.
    """
    options = {
        "cloudFiles.format": kind,
        "cloudFiles.schemaLocation": schema_location,
        "cloudFiles.inferColumnTypes": "true",
        "cloudFiles.schemaEvolutionMode": _EVOLUTION[feed.evolution],
        "cloudFiles.maxFilesPerTrigger": str(feed.max_files),
        # A file that was written anew is proposed again; the ledger knows its hash and the table's policy.
        "cloudFiles.allowOverwrites": "true",
        "pathGlobFilter": _glob(kind),
        "recursiveFileLookup": "true",
    }
    if kind == "csv":
        options |= {"header": "true", "escape": '"'}
    if kind == "json" and feed.multiline:
        options["multiLine"] = "true"
    if kind != "parquet":
        options |= {"timestampFormat": feed.timestamp_format, "dateFormat": feed.date_format}
    return options


def file_stream_options(feed: Feed, kind: str) -> Mapping[str, str]:
    """Options of Spark's own file stream, for where Auto Loader does not exist. It reads no content."""
    return {
        "maxFilesPerTrigger": str(feed.max_files),
        "pathGlobFilter": _glob(kind),
        "recursiveFileLookup": "true",
    }


def discover(
    session: SparkSession,
    ledger: Ledger,
    feed: Feed,
    *,
    landing: str,
    state: str,
    today: str,
    reader: str = AUTO_LOADER,
) -> int:
    """Run the streams of a feed until they have found all that is there (`availableNow`).

    Args:
        landing: the landing zone, as Spark addresses it.
        state: folder for checkpoints and inferred schemas.
        today: the partition in progress, for files of a flat prefix.
        reader: `AUTO_LOADER`, or `FILE_STREAM` for Spark's own.

    Returns:
        How many files were proposed for the first time.
    """
    proposed = 0

    def propose(found: DataFrame, _number: int) -> None:
        files = [_landed(row["path"], row["size"], row["modified"], feed) for row in found.distinct().collect()]
        for tries in range(_MOST_RESTARTS):
            try:
                record(files)
                return
            except StaleBase:
                # A sensor has seen a file meanwhile.
                if tries == _MOST_RESTARTS - 1:
                    raise

    def record(files: list[LandedFile]) -> None:
        nonlocal proposed
        ledger.refresh()
        waiting = ledger.outstanding(files)
        new = [file for file in waiting if file.path not in ledger.files]
        changed = [ledger.files[file.path] for file in waiting if file.path in ledger.files]
        states = [FileState(file.path, FileEvent.SEEN, file.size, file.modified, file.day or today) for file in new]
        ledger.record(states, FileEvent.SEEN)
        ledger.record([state for state in changed if state.settled], FileEvent.CHANGED)
        proposed += len(new)

    for kind in ("csv", "json", "parquet"):
        folder = f"{state}/{kind}"
        options = (
            auto_loader_options(feed, kind, f"{folder}/schema")
            if reader == AUTO_LOADER
            else file_stream_options(feed, kind)
        )
        for attempt in range(_MOST_RESTARTS):
            opened = session.readStream.format(reader).options(**options)
            if reader != AUTO_LOADER:
                opened = opened.schema(_BINARY_FILE)
            stream = (
                opened.load(f"{landing}/{feed.path}")
                .select(
                    F.col("_metadata.file_path").alias("path"),
                    F.col("_metadata.file_size").alias("size"),
                    F.col("_metadata.file_modification_time").alias("modified"),
                )
                .writeStream.foreachBatch(propose)
                .option("checkpointLocation", f"{folder}/checkpoint")
                .trigger(availableNow=True)
                .start()
            )
            try:
                stream.awaitTermination()
                break
            except Exception as error:
                # With addNewColumns Auto Loader records the new schema, stops, and wants to be started again.
                if "UNKNOWN_FIELD_EXCEPTION" not in str(error) or attempt == _MOST_RESTARTS - 1:
                    raise
    return proposed


def _glob(kind: str) -> str:
    return "*{" + ",".join(f"{suffix},{suffix}.gz" for suffix in suffixes(kind)) + "}"


def _landed(uri: str, size: int, modified: dt.datetime, feed: Feed) -> LandedFile:
    path = unquote(urlsplit(uri).path)
    name = f"{feed.path}/{path.rsplit(f'/{feed.path}/', 1)[-1]}"
    return LandedFile(name, size, modified.replace(tzinfo=dt.UTC), name)
