"""The ordinals of source epochs: positions of a server that came later sort behind, whatever files come late."""

from __future__ import annotations

import datetime as dt
import itertools
from pathlib import Path

import pytest

from bronze_assets.batches import BatchLog
from bronze_assets.catalog.inventory import TABLES
from bronze_assets.lakehouse import Lakehouse
from bronze_assets.sources.scope import FULL, FileScope

ORDERS = next(table for table in TABLES if table.name == "bz_orders")


@pytest.mark.parametrize(
    ("story", "ordinals"),
    [
        ("snapshot A, files A, files A", [1, 1, 1]),
        ("snapshot A, files A, snapshot B, files A, files B", [1, 1, 2, 1, 2]),
        ("snapshot A, files B, snapshot B", [1, 2, 2]),
        ("snapshot A, snapshot B, files A, snapshot B, files B", [1, 2, 1, 2, 2]),
        ("snapshot A, snapshot B, snapshot A, files A", [1, 2, 3, 3]),
        ("files A, snapshot A", [1, 1]),
        ("snapshot A, snapshot B, files of nobody", [1, 2, 2]),
        ("files of nobody, snapshot A", [1, 1]),
        # Of one server, with the moment at which the slot was made.
        ("snapshot S/1/20, files S/1/20, files S/1/30, snapshot S/1/30", [1, 1, 2, 2]),
        ("snapshot S/1/30, files S/1/20, files S/1/20, files S/1/30, files S/1/40", [1, 0, 0, 1, 2]),
        ("snapshot S/1/30, files S/1/20, files S/1/10, snapshot S/1/30", [1, 0, 0, 1]),
        ("snapshot S/1, snapshot S/1/30, files S/1/20, files S/1/10, snapshot S/1/30", [1, 2, 1, 0, 2]),
        ("snapshot S/1/30, files S/2/20, snapshot T/1/5", [1, 2, 3]),
    ],
)
def test_an_epoch_has_one_ordinal_for_its_snapshots_and_its_changes(
    tmp_path: Path, story: str, ordinals: list[int]
) -> None:
    moments = (dt.datetime(2026, 3, 1, tzinfo=dt.UTC) + dt.timedelta(seconds=n) for n in itertools.count())
    found = []
    for number, step in enumerate(story.split(", "), 1):
        kind, *rest = step.split(" ")
        epoch = "" if rest == ["of", "nobody"] else rest[0]
        log = BatchLog(Lakehouse(tmp_path), ORDERS, lambda: next(moments), "2026-03-01")
        scope = FULL if kind == "snapshot" else FileScope(1)
        batch = log.begin(f"2026-03-01/{number}", "2026-03-01", "run", scope, epoch)
        expected = log.epoch(epoch) if kind == "snapshot" else log.epoch_of_changes(epoch)
        assert batch.epoch == expected
        log.note(batch, "done", run_id="run")
        found.append(batch.epoch)
    assert found == ordinals
