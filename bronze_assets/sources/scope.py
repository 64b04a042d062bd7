"""What of a source table a batch reads."""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass

from pyspark.sql import Column as SparkColumn
from pyspark.sql import functions as F


@dataclass(frozen=True)
class Scope:
    """What of a source table a batch reads: all of it, or the rows whose `column` lies in [low, high).

    An open `low` includes rows in which the column is NULL.
    """

    column: str | None = None
    low: int | dt.date | None = None
    high: int | dt.date | None = None

    @property
    def kind(self) -> str:
        """`full`, `day` (of an event date) or `range` (of the key)."""
        if self.column is None:
            return "full"
        return "day" if isinstance(self.low, dt.date) else "range"

    def __str__(self) -> str:
        if self.column is None:
            return "full"
        if isinstance(self.low, dt.date):
            return f"{self.column} = {self.low}"
        if self.low is None and self.high is None:
            return f"all of {self.column}"
        low = "" if self.low is None else f"{self.low} <= "
        high = "" if self.high is None else f" < {self.high}"
        return f"{low}{self.column}{high}"

    def sql(self, quoted: str) -> str:
        """As a condition in PostgreSQL on the quoted column."""
        parts = []
        if self.low is not None:
            parts.append(f"{quoted} >= {bound_literal(self.low)}")
        if self.high is not None:
            parts.append(f"{quoted} < {bound_literal(self.high)}")
        if not parts:
            return "true"
        condition = " and ".join(parts)
        return condition if self.low is not None else f"({condition} or {quoted} is null)"

    def condition(self) -> SparkColumn:
        """As a condition on the bronze table."""
        if self.column is None:
            return F.lit(True)
        value = F.col(self.column)
        holds = F.lit(True)
        if self.low is not None:
            holds = holds & (value >= F.lit(self.low))
        if self.high is not None:
            holds = holds & (value < F.lit(self.high))
        return holds if self.low is not None else holds | value.isNull()


FULL = Scope()


@dataclass(frozen=True)
class FileScope:
    """What a file batch reads: so many files.

    Attributes:
        again: whether their rows take the place of those that the same files brought before.
    """

    count: int
    again: bool = False

    @property
    def kind(self) -> str:
        """`files`, or `files again`."""
        return "files again" if self.again else "files"

    def __str__(self) -> str:
        files = "1 file" if self.count == 1 else f"{self.count:,} files"
        return f"{files} again" if self.again else files


@dataclass(frozen=True)
class ReplayScope:
    """What a replay reads: quarantined rows that were chosen so, in words that name no key."""

    chosen: str

    @property
    def kind(self) -> str:
        """`replay`."""
        return REPLAY

    def __str__(self) -> str:
        return f"{REPLAY}, {self.chosen}"


def bound_literal(value: int | dt.date) -> str:
    """A bound as PostgreSQL writes it."""
    return f"date '{value.isoformat()}'" if isinstance(value, dt.date) else str(int(value))


REPLAY = "replay"
DISMISSAL = "dismissal"
FILE_SCOPES = (FileScope(0).kind, FileScope(0, again=True).kind)
