"""One drain in a process of its own; a test's parent process kills it on the way.

Its arguments are one JSON object:

    landing: where the files go.
    tables: names of the tables of the catalog that are captured.
    point: after which step (one of `FIRST_POINTS` or `POINTS`) it is to stand still; empty to run to its end.
    reached: the file that is made when it stands there; it goes on when the file is gone.

The URL of the source comes from the environment, as `BRONZE_SOURCE_URL`. Its last line says how it ended, and how much
memory it took at most.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import time
from pathlib import Path
from typing import Any

from bronze_assets import capture_files
from bronze_assets.capture import Capture
from bronze_assets.catalog import TABLES
from bronze_assets.errors import BronzeError
from bronze_assets.sources.postgres_changes import ChangeSource

FIRST_POINTS = ("connected", "publication made", "slot made", "manifest begun", "flushed", "position noted")
"""The steps of a first drain, in their order."""

POINTS = (
    "intent written",
    "line spooled",
    "spooled",
    "one file published",
    "all files published",
    "manifest written",
    "advanced",
    "intent forgotten",
)
"""The steps of a drain that goes on, in their order."""


def _stand_still_at(point: str, reached: Path, tables: int) -> None:
    stood: list[str] = []  # once
    seen: list[str] = []

    def after(owner: Any, name: str, label: str, label_of_first: str | None = None, last: int = 1) -> None:
        real = getattr(owner, name)

        def stopping(*args: Any, **kwargs: Any) -> Any:
            answer = real(*args, **kwargs)
            seen.append(label)
            times = seen.count(label)
            at = label_of_first if times == 1 and label_of_first else label if times >= last else ""
            if at == point and not stood:
                stood.append(point)
                reached.touch()
                while reached.exists():
                    time.sleep(0.02)
            return answer

        setattr(owner, name, stopping)

    after(ChangeSource, "claim", "connected")
    after(ChangeSource, "publish", "publication made")
    after(ChangeSource, "create_slot", "slot made")
    after(ChangeSource, "flushed", "flushed")
    after(ChangeSource, "advance", "advanced")
    files = capture_files.CaptureFiles
    began = point in FIRST_POINTS
    after(files, "write_manifest", *(("position noted", "manifest begun") if began else ("manifest written",)))
    after(files, "write_intent", "intent written")
    after(files, "publish", "all files published", "one file published", last=tables)
    after(files, "forget_intent", "intent forgotten")
    after(capture_files.Spool, "write", "line spooled", last=3)
    after(capture_files.Spool, "complete", "spooled")


def main(asked: dict[str, Any]) -> None:
    """Drain as asked."""
    tables = [table for table in TABLES if table.name in asked["tables"]]
    if asked["point"]:
        _stand_still_at(asked["point"], Path(asked["reached"]), len(tables))
    try:
        drained = Capture(os.environ["BRONZE_SOURCE_URL"], asked["landing"], tables).drain()
    except BronzeError as error:
        print(f"FAILED {type(error).__name__} {error}")
    else:
        megabytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
        print("DRAINED " + json.dumps({"rows": drained.rows, "peak_megabytes": megabytes}))


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
