"""What the controls over personal data have in common: what one says, and what it looks at.

`protection_controls` judges what is stored and the keys, `record_controls` what is declared, logged and granted. None
starts Spark. What they say names tables, columns, counts and ids of evidence, and never a value, a key or a row.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from bronze_assets.errors import BronzeError
from bronze_assets.lakehouse import Lakehouse
from bronze_assets.settings import Settings
from bronze_assets.storage import Described
from bronze_assets.table import BronzeTable


@dataclass(frozen=True)
class Control:
    """One control.

    Attributes:
        name: for programs, stable.
        title: what is to hold.
        holds: whether it does; None where it does not apply.
        sentence: what was found.
        fix: what to do; empty unless it fails.
    """

    name: str
    title: str
    holds: bool | None
    sentence: str
    fix: str = ""


class Controls:
    """Some controls over one lake at one moment.

    Attributes:
        tables: all declared ones.
        personal: those with personal data.
        protected: those with High or Medium columns.
        now: the moment, UTC.
    """

    def __init__(self, settings: Settings, lake: Lakehouse, tables: Sequence[BronzeTable], now: dt.datetime) -> None:
        self.settings = settings
        self.lake = lake
        self.tables = tables
        self.personal = [table for table in tables if table.has_personal_data]
        self.protected = [table for table in tables if any(c.pii.protected for c in table.columns)]
        self.now = now

    def names(self, schema: str, name: str) -> list[str]:
        """The columns of a table; none if it is missing."""
        answer = self.lake.query(schema, name, "select * from t limit 0")
        return [] if answer is None else list(answer.schema.names)

    def described(self, schema: str, name: str) -> Described | None:
        """What is known of a table of the lake; None if it is missing."""
        return self.lake.described(self.lake.location(schema, name))


def checked(name: str, title: str, check: Callable[[], tuple[str, str | None]]) -> Control:
    """The control, by what its check found and the fix for it (None: it does not apply); one that cannot be checked
    does not hold.
    """
    try:
        sentence, fix = check()
    except BronzeError as error:
        sentence, fix = error.culprit, error.fix
    except Exception as error:  # of delta-rs and file systems, which may quote what they read
        sentence = f"This could not be checked ({type(error).__name__})."
        fix = "see that lake, landing zone and archive can be read, and make the report again."
    return Control(name, title, None if fix is None else not fix, sentence, fix or "")


def listed(names: Sequence[str], most: int = 8) -> str:
    """Some names, and how many more there are."""
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
