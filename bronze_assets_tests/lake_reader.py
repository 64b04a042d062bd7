"""How tests look into a lake: through the `deltalake` package and the Delta log itself, never through the code under
test.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
from deltalake import DeltaTable, QueryBuilder

SCHEMA = "inventory_bronze"


def read(path: Path, query: str = "select * from t") -> list[dict[str, Any]]:
    """Rows of a Delta table, called `t` in the query."""
    # Not `to_pyarrow_table`: its threads abort the interpreter at exit.
    answer = QueryBuilder().register("t", DeltaTable(str(path))).execute(query)
    found: list[dict[str, Any]] = pa.table(answer.read_all()).to_pylist()
    return found


def tuples(path: Path, *columns: str, where: str = "true") -> list[tuple[Any, ...]]:
    """Those columns of a Delta table, as sorted tuples."""
    rows = read(path, f"select {', '.join(columns)} from t where {where}")
    return sorted((tuple(row.values()) for row in rows), key=repr)


def is_table(path: Path) -> bool:
    """Whether a Delta table has been made there."""
    return DeltaTable.is_deltatable(str(path))


def version(path: Path) -> int:
    """The current version of a table."""
    return DeltaTable(str(path)).version()


def properties(path: Path) -> dict[str, str | None]:
    """A Delta table's properties."""
    return dict(DeltaTable(str(path)).metadata().configuration)


def partition_columns(path: Path) -> list[str]:
    """The columns that a Delta table is partitioned by."""
    return list(DeltaTable(str(path)).metadata().partition_columns)


def column_types(path: Path) -> dict[str, str]:
    """Column → type, as the Delta log spells it."""
    fields = json.loads(DeltaTable(str(path)).schema().to_json())["fields"]
    return {field["name"]: field["type"] for field in fields}


def listing(folder: Path) -> dict[str, int]:
    """Every file below a folder, with its size."""
    return {str(p.relative_to(folder)): p.stat().st_size for p in sorted(folder.rglob("*")) if p.is_file()}
