"""One Dagster run that loads one partition in a process of its own; a test's parent process kills it on the way.

Its arguments are one JSON object:

    table, partition: what to load.
    now: the moment at which its clock starts, ISO 8601.
    dagster: folder of the Dagster instance.
    point: after which step (one of `POINTS`) it is to stand still; empty to run to its end. `COMMITTING` is none of
        them: there it goes on.
    reached: the file that is made when it stands there; it goes on when the file is gone.

The settings come from the environment. Its last line says what it loaded, or why it failed.
"""

from __future__ import annotations

import datetime as dt
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dagster as dg

from bronze_assets import audit
from bronze_assets.batches import BatchLog
from bronze_assets.catalog.inventory import TABLES
from bronze_assets.lakehouse import Lakehouse
from bronze_assets.orchestration.assets import asset_key, assets
from bronze_assets.orchestration.resources import STEP_LAUNCHER, Loader
from bronze_assets.settings import Settings
from bronze_assets.table import BronzeTable
from bronze_assets.workbench import Workbench

POINTS = (
    "begun noted",
    "rows committed",
    "main noted",
    "quarantine committed",
    "quarantine noted",
    "audit row written",
    "audited noted",
    "done noted",
)
"""The commits of a batch, in their order."""
COMMITTING = "rows being committed"


QUIET = {"telemetry": {"enabled": False}}
"""How a test's Dagster instance differs from the default."""


def ticking(now: dt.datetime) -> Callable[[], dt.datetime]:
    """A clock that starts at that moment."""
    began = time.monotonic()
    return lambda: now + dt.timedelta(seconds=time.monotonic() - began)


def materialise(
    table: BronzeTable, partition: str, bench: Workbench, instance: dg.DagsterInstance
) -> dg.ExecuteInProcessResult:
    """A new Dagster run of one partition."""
    return dg.materialize(
        assets(bench.settings, [table]),
        selection=[asset_key(table)],
        partition_key=partition,
        resources={"loader": Loader(bench), STEP_LAUNCHER: None},
        instance=instance,
        raise_on_error=False,
    )


def _stand_still_at(point: str, reached: Path) -> None:
    stood: list[str] = []  # once; a retry goes through

    def after(owner: Any, name: str, label: Callable[..., str]) -> None:
        real = getattr(owner, name)

        def stopping(*args: Any, **kwargs: Any) -> Any:
            answer = real(*args, **kwargs)
            if label(*args, **kwargs) == point and not stood:
                stood.append(point)
                reached.touch()
                while reached.exists():
                    time.sleep(0.05)
            return answer

        setattr(owner, name, stopping)

    if point == COMMITTING:
        append = Lakehouse.append

        def noticed(*args: Any, **kwargs: Any) -> Any:
            reached.touch()
            return append(*args, **kwargs)

        setattr(Lakehouse, "append", noticed)  # noqa: B010
        return
    after(BatchLog, "begin", lambda *_, **__: "begun noted")
    after(BatchLog, "note", lambda *args, **_: f"{args[2]} noted")
    after(Lakehouse, "append", lambda *_, **__: "rows committed")
    after(Lakehouse, "quarantine", lambda *_, **__: "quarantine committed")
    after(audit, "write_success", lambda *_, **__: "audit row written")


def main(asked: dict[str, str]) -> None:
    """Load as asked."""
    (table,) = [table for table in TABLES if table.name == asked["table"]]
    bench = Workbench(Settings.from_environment(), clock=ticking(dt.datetime.fromisoformat(asked["now"])))
    if asked["point"]:
        _stand_still_at(asked["point"], Path(asked["reached"]))
    with dg.DagsterInstance.local_temp(asked["dagster"], overrides=QUIET) as instance:
        result = materialise(table, asked["partition"], bench, instance)
        bench.close()
        if result.success:
            (loaded,) = result.asset_materializations_for_node(f"{table.schema}__{table.name}")[-1:]
            counts = {name: loaded.metadata[name].value for name in ("loaded", "unchanged", "deleted")}
            print("LOADED " + json.dumps(counts))
        else:
            errors = [str(failure.step_failure_data.error) for failure in result.get_step_failure_events()]
            print("FAILED " + " ".join(" ".join(errors).split()))


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
