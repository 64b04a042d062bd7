"""The compliance report: the controls over personal data that hold now and those that do not, a score, HTML and JSON.

It names tables, columns, counts and ids of evidence, and never a value, a key or a row.
"""

from __future__ import annotations

import dataclasses
import datetime as dt
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from bronze_assets.errors import LakeError
from bronze_assets.lakehouse import Lakehouse
from bronze_assets.privacy import compliance_page
from bronze_assets.privacy.controls import Control
from bronze_assets.privacy.detector import Suspect, Unclassified
from bronze_assets.privacy.evidence import Difference
from bronze_assets.privacy.keys import KeyRing
from bronze_assets.privacy.protection_controls import ClassifiedColumn, ProtectionControls
from bronze_assets.privacy.record_controls import Erasures, Reader, RecordControls, Waiting
from bronze_assets.settings import Settings
from bronze_assets.table import BronzeTable

FOLDER: Final = "reports"


@dataclass(frozen=True)
class Report:
    """The report.

    Attributes:
        at: when it was made, UTC.
        controls: failing ones first, those that do not apply last, each part by how much is at stake.
        unclassified, suspects: columns that nobody classified.
        grants: of Unity Catalog, those that were not as declared when they were last compared.
    """

    at: dt.datetime
    controls: tuple[Control, ...]
    columns: tuple[ClassifiedColumn, ...]
    unclassified: tuple[Unclassified, ...]
    suspects: tuple[Suspect, ...]
    quarantine: tuple[Waiting, ...]
    erasures: Erasures
    access: tuple[Reader, ...]
    grants: tuple[Difference, ...]

    @property
    def score(self) -> int:
        """The share of the controls that hold, of those that apply, in percent, rounded down: 100 only where all do."""
        return 100 * (len(self._applying) - len(self.failing)) // max(1, len(self._applying))

    @property
    def failing(self) -> tuple[Control, ...]:
        """The controls that do not hold."""
        return tuple(control for control in self.controls if control.holds is False)

    @property
    def _applying(self) -> tuple[Control, ...]:
        return tuple(control for control in self.controls if control.holds is not None)

    def lines(self) -> list[str]:
        """The score and the failing controls, for a terminal."""
        held = len(self._applying) - len(self.failing)
        lines = [f"Compliance: {self.score} %; {held} of {len(self._applying)} controls hold."]
        for control in self.failing:
            lines += [f"FAILS  {control.title}", f"       {control.sentence}", f"       Fix: {control.fix}"]
        return lines

    def to_json(self) -> str:
        """The report as JSON: the fields of this class, `score`, times in ISO 8601."""
        told = {"score": self.score, **dataclasses.asdict(self)}
        return json.dumps(told, ensure_ascii=False, indent=1, default=lambda moment: moment.isoformat()) + "\n"

    def to_html(self) -> str:
        """The report as one page that needs nothing else."""
        return compliance_page.page(json.loads(self.to_json()))

    def write(self, folder: Path) -> Path:
        """Write `compliance.html` and `compliance.json` into a folder, which is made when missing.

        Returns:
            The page's path.

        Raises:
            LakeError: they cannot be written.
        """
        try:
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "compliance.json").write_text(self.to_json(), encoding="utf-8")
            (folder / "compliance.html").write_text(self.to_html(), encoding="utf-8")
        except OSError as error:
            raise LakeError(f"{folder} cannot be written ({error.strerror}).", "name another folder.") from None
        return folder / "compliance.html"


def compliance(
    settings: Settings,
    lake: Lakehouse,
    ring: Callable[[], KeyRing],
    tables: Sequence[BronzeTable],
    clock: Callable[[], dt.datetime],
) -> Report:
    """Judge every control; one that cannot be checked does not hold. No row of the lake is changed.

    Args:
        ring: gives the master key, and must not make one; called only where there are keys to open.
        tables: all declared ones; those with personal data are judged, and all of them for unclassified columns.
    """
    stored = ProtectionControls(settings, lake, tables, clock, ring)
    records = RecordControls(settings, lake, tables, stored.now)
    controls = [*stored.judged(), *records.judged()]
    return Report(
        stored.now,
        tuple(sorted(controls, key=lambda control: (control.holds is None, control.holds or False))),
        tuple(stored.columns),
        tuple(records.unclassified),
        tuple(records.suspects),
        tuple(records.waiting),
        records.erasures,
        records.readers,
        records.differences,
    )
