"""What others do with the same rows: dlt and ADBC, from PostgreSQL into Delta. Runs in an environment of its own.

One process for all rounds, so that no import is measured. It answers each line of JSON on stdin with one on stdout:
`{"copy": "adbc", "url", "schema", "table", "target", "partition_by"}` → `{"seconds", "rows"}`. The rows are read back
from the Delta table when the clock has stopped. Imports nothing of this checkout.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path

CHUNK_ROWS = 100_000


def main() -> None:
    """Answer until stdin ends."""
    # Whatever a library prints goes to stderr; stdout is for answers.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for line in sys.stdin:
        asked = json.loads(line)
        target = Path(asked["target"])
        shutil.rmtree(target, ignore_errors=True)
        target.mkdir(parents=True)
        answer: dict[str, object]
        try:
            answer = _measured(COPIES[asked["copy"]], asked, target)
        except Exception as error:
            answer = {"error": f"{type(error).__name__}: {error}"}
        shutil.rmtree(target, ignore_errors=True)
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


def _measured(copy: Callable[[dict[str, str], Path], Path], asked: dict[str, str], target: Path) -> dict[str, object]:
    from deltalake import DeltaTable

    began = time.perf_counter()
    table = copy(asked, target)
    seconds = time.perf_counter() - began
    # As the log counts them; nothing is read into this process, whose memory is measured too.
    return {"seconds": seconds, "rows": DeltaTable(str(table)).count()}


def _adbc(asked: dict[str, str], target: Path) -> Path:
    from adbc_driver_postgresql import dbapi
    from deltalake import write_deltalake

    by = [asked["partition_by"]] if asked["partition_by"] else None
    with dbapi.connect(asked["url"]) as connection, connection.cursor() as cursor:
        cursor.execute(f"select * from {asked['schema']}.{asked['table']}")
        write_deltalake(str(target / "table"), cursor.fetch_record_batch(), partition_by=by)
    return target / "table"


def _dlt(backend: str) -> Callable[[dict[str, str], Path], Path]:
    def copy(asked: dict[str, str], target: Path) -> Path:
        import dlt
        from dlt.sources.sql_database import sql_table

        rows = sql_table(
            # SQLAlchemy would look for psycopg 3.
            credentials=asked["url"].replace("postgresql:", "postgresql+psycopg2:", 1),
            table=asked["table"],
            schema=asked["schema"],
            backend=backend,
            chunk_size=CHUNK_ROWS,
            # As dlt's documentation has it for this backend.
            backend_kwargs={"return_type": "arrow_stream"} if backend == "connectorx" else None,
        )
        if asked["partition_by"]:
            rows.apply_hints(columns={asked["partition_by"]: {"partition": True}})
        pipeline = dlt.pipeline(
            "bench",
            pipelines_dir=str(target / "pipelines"),
            destination=dlt.destinations.filesystem(f"file://{target / 'lake'}"),
            dataset_name="bronze",
        )
        pipeline.run(rows, table_format="delta", write_disposition="replace").raise_on_failed_jobs()
        return target / "lake" / "bronze" / asked["table"]

    return copy


COPIES: dict[str, Callable[[dict[str, str], Path], Path]] = {
    "adbc": _adbc,
    "dlt-connectorx": _dlt("connectorx"),
    "dlt-pyarrow": _dlt("pyarrow"),
}

if __name__ == "__main__":
    main()
