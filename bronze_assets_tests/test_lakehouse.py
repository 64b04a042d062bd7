"""Control tables: many small commits stay readable, and readers are not disturbed by the tidying."""

from __future__ import annotations

import threading
from pathlib import Path

import pyarrow as pa
import pytest
from deltalake import DeltaTable

from bronze_assets import storage
from bronze_assets.lakehouse import Lakehouse
from bronze_assets.storage import sql_literal

SCHEMA = pa.schema([("name", pa.string()), ("number", pa.int64())])


def test_a_control_table_keeps_every_row_while_its_small_files_are_put_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storage, "TIDY_EVERY", 10)
    lake = Lakehouse(tmp_path / "a lake")

    for number in range(25):
        lake.append_rows("schema", "log", SCHEMA, [{"name": "it's", "number": number}])

    quoted = sql_literal("it's")
    found = lake.rows("schema", "log", ["number"], f"name = {quoted} and number >= 5")
    assert sorted(row["number"] for row in found) == list(range(5, 25))
    assert lake.rows("schema", "log", where="name = 'other'") == []
    files = DeltaTable(lake.location("schema", "log")).file_uris()
    assert len(files) < 12


def test_rows_that_several_writers_append_at_once_are_all_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage, "TIDY_EVERY", 5)
    lake = Lakehouse(tmp_path)

    def append(writer: int) -> None:
        for number in range(8):
            lake.append_rows("schema", "log", SCHEMA, [{"name": str(writer), "number": number}])

    threads = [threading.Thread(target=append, args=(writer,)) for writer in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    found = sorted((row["name"], row["number"]) for row in lake.rows("schema", "log"))
    assert found == [(str(writer), number) for writer in range(3) for number in range(8)]


def test_a_row_is_replaced_only_where_the_condition_holds(tmp_path: Path) -> None:
    lake = Lakehouse(tmp_path)

    def put(name: str, number: int) -> int:
        row = {"name": name, "number": number}
        return int(lake.merge_row("schema", "keyed", SCHEMA, row, on="name", when="s.number > t.number")["number"])

    assert put("a", 2) == 2
    assert put("b", 1) == 1
    assert put("a", 1) == 2
    assert put("a", 3) == 3
    assert sorted(row["number"] for row in lake.rows("schema", "keyed")) == [1, 3]


MORE = pa.schema([*SCHEMA, ("added", pa.string())])


@pytest.mark.parametrize("releases", [(SCHEMA, MORE, SCHEMA), (MORE, SCHEMA, MORE)])
def test_releases_with_other_columns_write_the_same_tables_in_turn(
    tmp_path: Path, releases: tuple[pa.Schema, ...]
) -> None:
    """A release that is rolled back finds a column that it does not know, and the one after it a table without one."""
    lake = Lakehouse(tmp_path)
    for number, schema in enumerate(releases):
        row = {"name": "n", "number": number, "added": f"of {number}"}
        mine = {name: row[name] for name in schema.names}
        lake.append_rows("schema", "log", schema, [mine])
        base = lake.control_version("schema", "fenced")
        rows = pa.Table.from_pylist([mine], schema=schema)
        lake.append_fenced("schema", "fenced", rows, writer="w", number=number, base=base, partition_by="name")
        kept = lake.merge_row("schema", "keyed", schema, mine, on="name", when="true")
        assert kept["number"] == number
    for table in ("log", "fenced"):
        found = sorted((row["number"], row["added"]) for row in lake.rows("schema", table))
        assert found == [(n, f"of {n}" if "added" in schema.names else None) for n, schema in enumerate(releases)]
