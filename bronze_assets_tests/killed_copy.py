"""One copy of the table of people in a process of its own, which is killed when it has brought some files.

Arguments: folder of the lake, target, after how many files it is killed; 0 lets it run to its end.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

from bronze_assets.lakehouse import Lakehouse
from bronze_assets.operations.copies import Copies, Kind
from bronze_assets_tests.people import NAME, NOW, people


def main(lake: str, target: str, files: int) -> None:
    """Copy, and die on the way."""

    def say(line: str) -> None:
        if line.startswith(f"{NAME}: {files} of "):
            os.kill(os.getpid(), signal.SIGKILL)

    Copies(Lakehouse(Path(lake)), [people()], Kind.COPY, target, lambda: NOW, say=say).copy([NAME])


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
