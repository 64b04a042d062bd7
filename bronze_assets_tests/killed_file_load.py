"""One load of the table of things in a process of its own; a test's parent process kills it on the way.

Its arguments are one JSON object:

    day: the partition.
    point: after which step (one of `POINTS`) it is to stand still; empty to run to its end.
    reached: the file that is made when it stands there; it goes on when the file is gone.

The settings come from the environment. Its last line says what it loaded, or why it failed.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bronze_assets.batches import BatchLog
from bronze_assets.errors import BronzeError
from bronze_assets.lakehouse import Lakehouse
from bronze_assets.settings import Settings
from bronze_assets.sources.landing import LandingZone
from bronze_assets.sources.ledger import Ledger
from bronze_assets_tests.file_tables import loaded, things

POINTS = (
    "begun noted",
    "claimed recorded",
    "rows committed",
    "main noted",
    "quarantine committed",
    "quarantine noted",
    "loaded recorded",
    "quarantined recorded",
    "audited noted",
    "done noted",
    "one archived",
    "archived recorded",
)
"""The steps of a file batch, in their order."""


def _stand_still_at(point: str, reached: Path) -> None:
    stood: list[str] = []  # once

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

    after(BatchLog, "begin", lambda *_, **__: "begun noted")
    after(BatchLog, "note", lambda *args, **_: f"{args[2]} noted")
    after(Lakehouse, "append", lambda *_, **__: "rows committed")
    after(Lakehouse, "quarantine", lambda *_, **__: "quarantine committed")
    after(Ledger, "record", lambda *args, **_: f"{args[2]} recorded" if args[1] else "nothing recorded")
    after(LandingZone, "archive", lambda *_, **__: "one archived")


def main(asked: dict[str, str]) -> None:
    """Load as asked."""
    if asked["point"]:
        _stand_still_at(asked["point"], Path(asked["reached"]))
    try:
        record = loaded(Settings.from_environment(), things(), asked["day"])
        print(f"LOADED {record.loaded}")
    except BronzeError as error:
        print(f"FAILED {type(error).__name__} {error}")


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
