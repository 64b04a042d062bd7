"""What an assessment finds in one table: plain, so that it goes through JSON, wherever it was found.

No value of personal data is in it: of protected columns nothing but the number of NULLs.
"""

from __future__ import annotations

import dataclasses
import datetime as dt
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from bronze_assets.table import Column, Pii

TOP: Final = 30
"""Most frequent values that are kept of a column."""
MOST_TEXT: Final = 200
"""Characters of a text that are kept."""
NEARLY_UNIQUE: Final = 0.5
"""Share of distinct values above which a column has no frequent ones."""


@dataclass(frozen=True)
class RuleVerdict:
    """How the rows stand to one rule.

    Attributes:
        broken: rows that break it, by the platform's compiled rule.
        pandera: whether pandera's own validation found it held.
        agrees: whether both say the same.
        ages: whether rows break it by growing old, so that broken ones tell nothing of a load.
    """

    rule: str
    columns: tuple[str, ...]
    expected: str
    impact: str
    broken: int
    pandera: bool
    agrees: bool
    ages: bool


@dataclass(frozen=True)
class Profile:
    """One column over all rows.

    Attributes:
        nulls: rows without a value.
        distinct: values apart, approximately; None of protected columns.
        least, most: as text; None of personal columns and without a value.
        mean, deviation: of numbers; the deviation is that of a sample.
        top: the most frequent values as text, with their rows; the most frequent first.
        top_is_all: whether no other value exists.
    """

    column: str
    type: str
    pii: str
    key: bool
    nulls: int
    distinct: int | None = None
    least: str | None = None
    most: str | None = None
    mean: float | None = None
    deviation: float | None = None
    top: tuple[tuple[str, int], ...] = ()
    top_is_all: bool = False


@dataclass(frozen=True)
class Measured:
    """What was found in one table.

    Attributes:
        at: when, UTC.
        rows: latest versions that are active; None where the table was never loaded.
        unjudged: rules over protected columns, whose values nobody can read here.
        only_pandera: column and check of what pandera found and no rule of ours speaks of.
    """

    schema: str
    table: str
    at: dt.datetime
    rows: int | None
    rules: tuple[RuleVerdict, ...] = ()
    unjudged: tuple[str, ...] = ()
    only_pandera: tuple[tuple[str, str], ...] = ()
    columns: tuple[Profile, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return dataclasses.asdict(self) | {"at": self.at.isoformat()}

    @classmethod
    def from_dict(cls, told: Mapping[str, Any]) -> Measured:
        """Back from `to_dict`, also after it was JSON.

        Raises:
            KeyError, TypeError, ValueError: it is nothing of the kind.
        """
        names = [field.name for field in dataclasses.fields(cls)]
        columns = [
            Profile(**one | {"top": tuple((str(value), int(rows)) for value, rows in one["top"])})
            for one in told["columns"]
        ]
        return cls(
            **{name: told[name] for name in names}
            | {
                "at": dt.datetime.fromisoformat(told["at"]),
                "rules": tuple(RuleVerdict(**one | {"columns": tuple(one["columns"])}) for one in told["rules"]),
                "unjudged": tuple(told["unjudged"]),
                "only_pandera": tuple((str(column), str(check)) for column, check in told["only_pandera"]),
                "columns": tuple(columns),
            }
        )


def shows_values(column: Column) -> bool:
    """Whether values of a column may stand in a report."""
    return column.pii is Pii.NONE
