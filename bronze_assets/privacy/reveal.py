"""Going back from what is stored to a person's values: for one key, with a purpose, and never without a row in the log.

The answer is given only when its row in `bz_access_log` is written. Attempts that were refused or failed have theirs.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pyspark.sql import types as T

from bronze_assets.access import TOKEN_VAULT
from bronze_assets.errors import BronzeError, KeyMissing, KeyRefused, LakeError, PrivacyRefused
from bronze_assets.lakehouse import Lakehouse
from bronze_assets.privacy import values
from bronze_assets.privacy.access_log import Access, Outcome, log_access
from bronze_assets.privacy.data_keys import DataKeys
from bronze_assets.privacy.keys import KeyRing
from bronze_assets.storage import sql_literal
from bronze_assets.table import METADATA_COLUMNS, BronzeTable, Column, Pii

FOLDER = "revealed"
KEPT = dt.timedelta(days=1)
"""How long a file of `write_answer` is kept at most, once somebody reveals again."""

_ABOUT = ("record_status", "load_timestamp", "source_position")
"""Columns beside the asked ones by which the versions of a row are told apart."""


def reveal(
    lake: Lakehouse,
    ring: Callable[[], KeyRing],
    clock: Callable[[], dt.datetime],
    table: BronzeTable,
    key_text: str,
    *,
    purpose: str,
    who: str,
    columns: Sequence[str] = (),
    run_id: str | None = None,
) -> list[dict[str, Any]]:
    """The versions of one row, oldest first: High values opened, Medium ones resolved through the vault.

    Args:
        ring: gives the master key; called within the attempt, so that one without a key is logged too.
        key_text: of the row, as in the quarantine: the key's values, separated by `, `.
        purpose: why, in a few words, for the access log.
        who: asks.
        columns: of the table; all declared ones by default. Key, status, time of loading and position come with them.
        run_id: of the Dagster run, for the log.

    Returns:
        A dictionary for each version; none if there is no such row.

    Raises:
        PrivacyRefused: no purpose, nobody who asks, a column that the table does not have, a table without personal
            data, or a person whose key is gone.
        KeyMissing, KeyRefused: there is no master key, or it does not open what is stored.
        LakeError: the table cannot be read or the log not written.
    """
    asked = tuple(columns) or tuple(column.name for column in table.columns)

    def log(outcome: Outcome, *, rows: int | None = None, error: str | None = None) -> None:
        access = Access(
            at=clock(),
            who=who,
            schema_name=table.schema,
            table_name=table.name,
            columns=asked,
            row_key=key_text,
            purpose=purpose,
            how="reveal",
            outcome=outcome,
            rows=rows,
            error=error,
            run_id=run_id,
        )
        log_access(lake, access)

    try:
        _check(table, purpose=purpose, who=who)
        answer = _Row(lake, ring(), clock, table, key_text).versions(asked, named=bool(columns))
    except BaseException as error:
        refused = isinstance(error, PrivacyRefused | KeyMissing | KeyRefused)
        # Another error's message may quote a value.
        message = str(error) if isinstance(error, BronzeError) else type(error).__name__
        log(Outcome.REFUSED if refused else Outcome.FAILED, error=message)
        raise
    log(Outcome.ANSWERED, rows=len(answer))
    return answer


def _check(table: BronzeTable, *, purpose: str, who: str) -> None:
    if not purpose.strip():
        raise PrivacyRefused(
            "no purpose is given.", "say what the values are needed for; the access log keeps it.", table=table.name
        )
    if not who.strip():
        raise PrivacyRefused("nobody is named who asks.", "name who; the access log keeps it.", table=table.name)
    if not table.has_personal_data:
        raise PrivacyRefused(
            "the table holds no personal data.",
            f"read it as it is: `python -m bronze_assets show {table.name}`.",
            table=table.name,
        )


class _Row:
    """One row of a table, in all its versions."""

    def __init__(
        self, lake: Lakehouse, ring: KeyRing, clock: Callable[[], dt.datetime], table: BronzeTable, key_text: str
    ) -> None:
        self._lake = lake
        self._table = table
        self._key_text = key_text
        self._subject = f"{table.name}/{key_text}"
        self._keys = DataKeys(lake, ring, table.schema, clock)
        self._declared = {column.name: column for column in table.columns}

    def versions(self, columns: Sequence[str], *, named: bool) -> list[dict[str, Any]]:
        """The versions with these columns.

        Args:
            named: whether somebody named the columns; else those that the stored table does not have are left out.
        """
        table, stored = self._table, self._stored()
        unknown = [name for name in columns if name not in stored]
        if unknown and named:
            raise PrivacyRefused(
                f"there is no column {unknown[0]!r}.", f"use some of {', '.join(stored)}.", table=table.name
            )
        wanted = [*(column.name for column in table.key), *columns, *_ABOUT]
        wanted = [name for name in dict.fromkeys(wanted) if name in stored]
        key_text = f"concat_ws(', ', {', '.join(_as_text(column) for column in table.key)})"
        mine = f"{key_text} = {sql_literal(self._key_text)} order by source_position, load_timestamp"
        with self._keys.held():
            rows = self._read(table.name, wanted, mine)
            keys = self._keys.keys([self._subject, table.name]) if rows else {}
            vault = self._vault(rows)
        return [{name: self._opened(name, value, keys, vault) for name, value in row.items()} for row in rows]

    def _stored(self) -> list[str]:
        found = self._query(self._table.name, "select * from t limit 0")
        if found is None:
            raise LakeError(
                f"there is no table at {self._lake.location(self._table.schema, self._table.name)}.",
                "load it first, or check BRONZE_HOME and BRONZE_LAKE.",
                table=self._table.name,
            )
        return list(found.schema.names)

    def _vault(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, str]:
        """Token → sealed value, of this row's tokens."""
        medium = [name for name, column in self._declared.items() if column.pii is Pii.MEDIUM]
        tokens = {row[name] for row in rows for name in medium if row.get(name) is not None}
        if not tokens:
            return {}
        named = ", ".join(sql_literal(token) for token in sorted(tokens))
        found = self._read(
            TOKEN_VAULT, ["token", "value"], f"subject = {sql_literal(self._subject)} and token in ({named})"
        )
        return {row["token"]: row["value"] for row in found}

    def _opened(self, name: str, value: Any, keys: Mapping[str, bytes], vault: Mapping[str, str]) -> Any:
        if value is None:
            return None
        column = self._declared.get(name)
        place = (self._table.schema, self._table.name)
        if column is not None and column.pii is Pii.MEDIUM:
            if value not in vault:
                raise self._gone(name)
            return self._plain(name, values.place(*place, "token", value), vault[value], keys)
        # Nobody has classified what is not declared: it is protected where the table has protected columns.
        undeclared = column is None and name not in METADATA_COLUMNS and str(value).startswith("enc:")
        if undeclared or (column is not None and column.pii is Pii.HIGH):
            return self._plain(name, values.place(*place, name, self._key_text), value, keys)
        return value

    def _plain(self, column: str, where: str, text: str, keys: Mapping[str, bytes]) -> str:
        key = keys.get(self._subject if values.parse(text, where).kind == "s" else self._table.name)
        if key is None:
            raise self._gone(column)
        return values.open_sealed(text, key, where)

    def _gone(self, column: str) -> PrivacyRefused:
        return PrivacyRefused(
            f"what opens {column!r} of {self._key_text} is gone, as after an erasure.",
            "name other columns; an erased person's values come back for nobody.",
            table=self._table.name,
        )

    def _read(self, name: str, columns: Sequence[str], where: str) -> list[dict[str, Any]]:
        listed = ", ".join(f'"{column}"' for column in columns)
        found = self._query(name, f"select {listed} from t where {where}")
        return [] if found is None else list(found.to_pylist())

    def _query(self, name: str, query: str) -> Any:
        try:
            return self._lake.query(self._table.schema, name, query)
        except Exception as error:
            # Of delta-rs, DataFusion and pyarrow, which may quote what they read.
            kind = type(error).__name__
        raise LakeError(
            f"{name} cannot be read ({kind}).", "try again, or see whether its files are there.", table=name
        )


def _as_text(column: Column) -> str:
    """A key column as `quality.key_text` writes it, in the SQL of `Lakehouse.query`."""
    if isinstance(column.type, T.TimestampType):
        # Spark leaves zeros at the end of a fraction out.
        return f"regexp_replace(to_char(\"{column.name}\", '%Y-%m-%d %H:%M:%S%.6f'), '\\.?0+$', '')"
    return f'cast("{column.name}" as varchar)'


def as_lines(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """The answer as a small table, for a terminal; what a terminal would obey is written out."""
    if not rows:
        return ["There is no such row."]
    names = list(rows[0])
    cells = [names, *([_printable(row[name]) for name in names] for row in rows)]
    widths = [max(len(line[at]) for line in cells) for at in range(len(names))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in cells]
    return [lines[0], "-" * (sum(widths) + 2 * len(widths) - 2), *lines[1:]]


def _printable(value: Any) -> str:
    text = "NULL" if value is None else str(value)
    return "".join(one if one.isprintable() else one.encode("unicode_escape").decode() for one in text)


def write_answer(home: Path, rows: Sequence[Mapping[str, Any]], name: str) -> Path:
    """Write an answer as JSON into a file that only its owner reads (mode 0600), in `<home>/revealed`.

    Args:
        name: of the file, without suffix.

    Raises:
        LakeError: it cannot be written.
    """
    path = home / FOLDER / f"{name}.json"
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        number = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with os.fdopen(number, "w", encoding="utf-8") as file:
            json.dump(list(rows), file, ensure_ascii=False, indent=1, default=str)
    except OSError as error:
        raise LakeError(
            f"{path} cannot be written ({error.strerror}).", "give the process the right to it, and free space."
        ) from None
    return path


def remove_old_answers(home: Path, now: dt.datetime) -> None:
    """Remove the files of `write_answer` that are older than `KEPT`."""
    for path in (home / FOLDER).glob("*.json"):
        with contextlib.suppress(OSError):
            if dt.datetime.fromtimestamp(path.stat().st_mtime, dt.UTC) < now - KEPT:
                path.unlink()
