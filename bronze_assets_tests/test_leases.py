"""Leases as their holder's heartbeat keeps them; who succeeds whom is in `test_load`, over both storages."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from bronze_assets.control_tables import ControlTables
from bronze_assets.leases import LEASES, lease
from bronze_assets.storage import FolderStorage
from bronze_assets_tests.dagster_client import until

SECONDS = 0.6
"""Of silence; a beat comes after a third of it."""
PATIENCE = 60


@pytest.fixture
def lake(tmp_path: Path) -> ControlTables:
    return ControlTables(FolderStorage(tmp_path / "lake"))


def told(lake: ControlTables, column: str) -> Any:
    (row,) = lake.rows("s", LEASES, [column], "table_name = 'bz_things'")
    return row[column]


def test_a_beat_that_is_not_heard_is_told_and_the_next_one_counts(
    lake: ControlTables, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    merge = ControlTables.merge_row
    refused: list[int] = []

    def deaf(self: ControlTables, schema: str, name: str, shape: Any, row: Mapping[str, Any], **how: Any) -> Any:
        if 0 < row["beat"] < 3:
            refused.append(row["beat"])
            raise OSError("private words of a driver")
        return merge(self, schema, name, shape, row, **how)

    monkeypatch.setattr(ControlTables, "merge_row", deaf)
    with caplog.at_level(logging.WARNING), lease(lake, "s", "bz_things", "run-1", SECONDS):
        until(lambda: told(lake, "beat") >= 3, PATIENCE)

    assert refused == [1, 2]
    assert caplog.messages == ["bz_things: no heartbeat (OSError)"] * 2
    assert told(lake, "released") is True


def test_who_was_taken_over_is_told_and_lets_the_other_go_on(
    lake: ControlTables, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING), lease(lake, "s", "bz_things", "run-1", SECONDS):
        row = lake.rows("s", LEASES)[0] | {"token": "another", "run_id": "run-2", "beat": 0}
        shape = lake.storage.query(lake.location("s", LEASES), "select * from t").schema  # type: ignore[union-attr]
        lake.merge_row("s", LEASES, shape, row, on="table_name", when="true")
        until(lambda: caplog.messages, PATIENCE)

    assert caplog.messages == ["bz_things: taken over by run run-2"]
    assert (told(lake, "token"), told(lake, "released")) == ("another", False)
