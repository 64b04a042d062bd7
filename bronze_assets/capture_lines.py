"""The lines of a capture: PostgreSQL's messages as JSON, one line for each change of a captured table. No I/O."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from json.encoder import encode_basestring

from bronze_assets.errors import SchemaMismatch, SourceRefused
from bronze_assets.sources import pgoutput
from bronze_assets.sources.pgoutput import UNCHANGED, Row, Value
from bronze_assets.table import BronzeTable

_INTEGERS = (20, 21, 23)
_BOOLEAN = 16


@dataclass(frozen=True)
class _Described:
    """A relation as its changes come: where they go and how its values are written."""

    table: BronzeTable
    names: tuple[str, ...]
    prefixes: tuple[str, ...]
    plain: tuple[str, ...]
    identity: tuple[bool, ...]
    key: tuple[int, ...]
    nulls: str
    problems: tuple[str, ...]


class Lines:
    """Turns messages into lines.

    Args:
        tables: those captured; changes of others are passed over.
        domains: oid of each domain → oid of the type that it is over in the end.
        epoch: that the positions belong to.
    """

    def __init__(self, tables: Sequence[BronzeTable], domains: Mapping[int, int], epoch: str) -> None:
        self._tables = {table.source.lower(): table for table in tables}
        self._domains = domains
        self._epoch = json.dumps(epoch)
        self._relations: dict[int, _Described | None] = {}
        self._skipped = True
        self._sequence = 0
        self._commit_lsn = self._commit_ms = 0

    def begin(self, message: pgoutput.Begin, *, skipped: bool) -> None:
        """Start a transaction."""
        self._skipped = skipped
        self._sequence = 0
        self._commit_lsn = message.commit_lsn
        self._commit_ms = message.commit_time_us // 1000

    def lines(self, lsn: int, message: pgoutput.Message) -> Iterator[tuple[str, str]]:
        """Bronze table and line of each change that a message tells."""
        match message:
            case pgoutput.Relation():
                # Seen for skipped transactions too: a relation is told once, before its first change.
                self._relations[message.oid] = self._describe(message)
            case pgoutput.Insert() | pgoutput.Update() | pgoutput.Delete() if not self._skipped:
                described = self._relations[message.relation]
                if described is None:
                    return
                _require_contract(described)
                yield from ((described.table.name, line) for line in self._change(lsn, described, message))
            case pgoutput.Truncate() if not self._skipped:
                for oid in message.relations:
                    described = self._relations.get(oid)
                    if described is not None:
                        _require_contract(described)
                        yield described.table.name, self._line(described.nulls, "t", lsn)

    def _change(
        self, lsn: int, described: _Described, message: pgoutput.Insert | pgoutput.Update | pgoutput.Delete
    ) -> Iterator[str]:
        if isinstance(message, pgoutput.Insert):
            yield self._line(self._row(described, message.new)[0], "c", lsn)
            return
        if isinstance(message, pgoutput.Delete):
            yield self._line(self._only_key(described, message.old), "d", lsn)
            return
        old, new = message.old, message.new
        if old is not None and UNCHANGED in new:
            new = tuple(
                before if value is UNCHANGED and (message.whole or identity) else value
                for value, before, identity in zip(new, old, described.identity, strict=True)
            )
        row, unchanged = self._row(described, new)
        if old is None or all(old[at] == new[at] for at in described.key):
            yield self._line(row, "u", lsn, unchanged)
            return
        yield self._line(self._only_key(described, old), "d", lsn)
        if unchanged:
            # Under the new key there is no version to carry these values over from.
            previous = ",".join(described.prefixes[at] + self._value(described, at, old[at]) for at in described.key)
            unchanged += f',"__previous_key":{{{previous}}}'
        yield self._line(row, "c", lsn, unchanged)

    def _row(self, described: _Described, values: Row) -> tuple[str, str]:
        """The columns of a line, and what tells which were left out."""
        parts, unchanged = [], []
        for at, value in enumerate(values):
            if value is UNCHANGED:
                unchanged.append(described.names[at])
            else:
                parts.append(described.prefixes[at] + self._value(described, at, value))
        told = f',"__unchanged":{json.dumps(unchanged, ensure_ascii=False)}' if unchanged else ""
        return ",".join(parts), told

    def _only_key(self, described: _Described, old: Row) -> str:
        return ",".join(
            prefix + (self._value(described, at, old[at]) if at in described.key else "null")
            for at, prefix in enumerate(described.prefixes)
        )

    def _value(self, described: _Described, at: int, value: Value) -> str:
        if value is None or value is UNCHANGED:
            return "null"
        try:
            text = value.decode("utf-8")
        except UnicodeDecodeError:
            # Without the cause, which shows the value.
            raise SourceRefused(
                f"a value of column {described.names[at]!r} is not UTF-8.",
                "correct it at the source; a database with the encoding SQL_ASCII checks none.",
                table=described.table.name,
            ) from None
        match described.plain[at]:
            case "integer":
                return text
            case "boolean":
                return "true" if text == "t" else "false"
            case _:
                return encode_basestring(text)

    def _line(self, columns: str, op: str, lsn: int, unchanged: str = "") -> str:
        self._sequence += 1
        deleted = "true" if op in ("d", "t") else "false"
        return (
            f'{{{columns},"__op":"{op}","__source_lsn":{lsn},"__source_ts_ms":{self._commit_ms},'
            f'"__deleted":"{deleted}","__commit_lsn":{self._commit_lsn},"__seq":{self._sequence},'
            f'"__source_epoch":{self._epoch}{unchanged}}}\n'
        )

    def _describe(self, relation: pgoutput.Relation) -> _Described | None:
        table = self._tables.get(f"{relation.schema}.{relation.name}".lower())
        if table is None:
            return None
        names = tuple(column.name.lower() for column in relation.columns)
        kinds = []
        for column in relation.columns:
            oid = self._domains.get(column.type_oid, column.type_oid)
            kinds.append("integer" if oid in _INTEGERS else "boolean" if oid == _BOOLEAN else "text")
        problems = [f"column {c.name!r} is missing" for c in table.columns if c.name not in names]
        problems += [f"columns that differ only in case: {name!r}" for name in set(names) if names.count(name) > 1]
        problems += [f"column {name!r} has a name that is taken" for name in names if name.startswith("__")]
        identity = {name for name, column in zip(names, relation.columns, strict=True) if column.identity}
        problems += [
            f"key column {c.name!r} was not in the replica identity"
            for c in table.key
            if c.name in names and c.name not in identity
        ]
        prefixes = tuple(f"{encode_basestring(name)}:" for name in names)
        return _Described(
            table=table,
            names=names,
            prefixes=prefixes,
            plain=tuple(kinds),
            identity=tuple(column.identity for column in relation.columns),
            key=tuple(names.index(column.name) for column in table.key if column.name in names),
            nulls=",".join(f"{prefix}null" for prefix in prefixes),
            problems=tuple(problems),
        )


def _require_contract(described: _Described) -> None:
    if described.problems:
        raise SchemaMismatch(
            f"changes of {described.table.source} do not hold its contract: {'; '.join(described.problems)}."
            " No file was published.",
            "declare the table as it is now; or mend it at the source and start anew with a snapshot"
            " (`Capture.drop`, docs/capture.md), since the changes made meanwhile stay as they are.",
            table=described.table.name,
        )
