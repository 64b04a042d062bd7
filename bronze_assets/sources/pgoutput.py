"""The messages of PostgreSQL's output plugin `pgoutput`, protocol version 1, taken apart. No I/O."""

from __future__ import annotations

import enum
import struct
from dataclasses import dataclass
from typing import Final, TypeAlias


class MalformedMessage(ValueError):
    """The bytes are no message of protocol version 1; the text tells the kind and never the content."""


class Unchanged(enum.Enum):
    """Stands for a value kept out of line (TOAST) that the change did not touch, and that is not in the stream."""

    UNCHANGED = "unchanged"


UNCHANGED: Final = Unchanged.UNCHANGED

Value: TypeAlias = bytes | Unchanged | None
"""A column's text in the client's encoding, NULL, or `UNCHANGED`."""

Row: TypeAlias = tuple[Value, ...]
"""Values in the order of the relation's columns."""


@dataclass(frozen=True, slots=True)
class Begin:
    """A transaction begins; only committed ones come.

    Attributes:
        commit_lsn: where its commit record starts.
        commit_time_us: when it was committed, in microseconds since 1970-01-01 UTC.
    """

    commit_lsn: int
    commit_time_us: int
    xid: int


@dataclass(frozen=True, slots=True)
class Commit:
    """The transaction ends.

    Attributes:
        end_lsn: where its commit record ends.
    """

    commit_lsn: int
    end_lsn: int
    commit_time_us: int


@dataclass(frozen=True, slots=True)
class Origin:
    """The transaction came from another server."""

    commit_lsn: int
    name: str


@dataclass(frozen=True, slots=True)
class RelationColumn:
    """A column of a relation.

    Attributes:
        identity: whether it is part of the replica identity.
        type_oid: as in `pg_type`; a domain's own.
    """

    name: str
    type_oid: int
    type_modifier: int
    identity: bool


@dataclass(frozen=True, slots=True)
class Relation:
    """What a table looked like when the changes that follow were made.

    Attributes:
        replica_identity: `d` (primary key), `i` (an index), `f` (whole row) or `n` (nothing).
    """

    oid: int
    schema: str
    name: str
    replica_identity: str
    columns: tuple[RelationColumn, ...]


@dataclass(frozen=True, slots=True)
class Type:
    """The name of a type that is not built in."""

    oid: int
    schema: str
    name: str


@dataclass(frozen=True, slots=True)
class Insert:
    """A row was inserted."""

    relation: int
    new: Row


@dataclass(frozen=True, slots=True)
class Update:
    """A row was updated.

    Attributes:
        old: the old row (`whole`), or its replica identity with NULL elsewhere; None if the identity did not change.
    """

    relation: int
    new: Row
    old: Row | None
    whole: bool


@dataclass(frozen=True, slots=True)
class Delete:
    """A row was deleted.

    Attributes:
        old: the old row (`whole`), or its replica identity with NULL elsewhere.
    """

    relation: int
    old: Row
    whole: bool


@dataclass(frozen=True, slots=True)
class Truncate:
    """Tables were emptied together."""

    relations: tuple[int, ...]
    cascade: bool
    restart_identity: bool


Message: TypeAlias = Begin | Commit | Origin | Relation | Type | Insert | Update | Delete | Truncate

_EPOCH_US = 946_684_800_000_000
"""2000-01-01, from which PostgreSQL counts."""

_U8 = struct.Struct(">B")
_U16 = struct.Struct(">H")
_I32 = struct.Struct(">i")
_U32 = struct.Struct(">I")
_BEGIN = struct.Struct(">QqI")
_COMMIT = struct.Struct(">BQQq")
_U64 = struct.Struct(">Q")
_N, _U, _T = b"nut"
_KEY, _OLD, _NEW = b"KON"


def decode(data: bytes) -> Message:
    """One message.

    Raises:
        MalformedMessage: its kind is unknown, or it ends too early or too late.
    """
    kind = data[:1]
    decoder = _DECODERS.get(kind)
    if decoder is None:
        name = kind.decode("ascii", "backslashreplace")
        raise MalformedMessage(f"pgoutput message of unknown kind {name!r}" if kind else "empty pgoutput message")
    try:
        message, end = decoder(data)
    except (struct.error, IndexError, ValueError) as error:
        # Without the cause: a Unicode error shows the bytes.
        detail = str(error) if isinstance(error, MalformedMessage) else "it is cut off or malformed"
        raise MalformedMessage(f"pgoutput message {kind.decode()!r}: {detail}") from None
    if end != len(data):
        raise MalformedMessage(f"pgoutput message {kind.decode()!r}: it ends at byte {end} of {len(data)}")
    return message


def _begin(data: bytes) -> tuple[Message, int]:
    lsn, time, xid = _BEGIN.unpack_from(data, 1)
    return Begin(lsn, time + _EPOCH_US, xid), 1 + _BEGIN.size


def _commit(data: bytes) -> tuple[Message, int]:
    _, lsn, end_lsn, time = _COMMIT.unpack_from(data, 1)
    return Commit(lsn, end_lsn, time + _EPOCH_US), 1 + _COMMIT.size


def _origin(data: bytes) -> tuple[Message, int]:
    name, end = _string(data, 9)
    return Origin(_U64.unpack_from(data, 1)[0], name), end


def _relation(data: bytes) -> tuple[Message, int]:
    (oid,) = _U32.unpack_from(data, 1)
    schema, at = _string(data, 5)
    name, at = _string(data, at)
    identity = chr(data[at])
    (count,) = _U16.unpack_from(data, at + 1)
    at += 3
    columns = []
    for _ in range(count):
        (flags,) = _U8.unpack_from(data, at)
        column, at = _string(data, at + 1)
        (type_oid,) = _U32.unpack_from(data, at)
        (modifier,) = _I32.unpack_from(data, at + 4)
        at += 8
        columns.append(RelationColumn(column, type_oid, modifier, bool(flags & 1)))
    # The system catalog's schema is sent as an empty name.
    return Relation(oid, schema or "pg_catalog", name, identity, tuple(columns)), at


def _type(data: bytes) -> tuple[Message, int]:
    schema, at = _string(data, 5)
    name, at = _string(data, at)
    return Type(_U32.unpack_from(data, 1)[0], schema or "pg_catalog", name), at


def _insert(data: bytes) -> tuple[Message, int]:
    (oid,) = _U32.unpack_from(data, 1)
    _expect(data, 5, _NEW)
    new, end = _row(data, 6)
    return Insert(oid, new), end


def _update(data: bytes) -> tuple[Message, int]:
    (oid,) = _U32.unpack_from(data, 1)
    marker, at, old = data[5], 5, None
    if marker in (_KEY, _OLD):
        old, at = _row(data, 6)
    _expect(data, at, _NEW)
    new, end = _row(data, at + 1)
    return Update(oid, new, old, marker == _OLD), end


def _delete(data: bytes) -> tuple[Message, int]:
    (oid,) = _U32.unpack_from(data, 1)
    marker = data[5]
    if marker != _OLD:
        _expect(data, 5, _KEY)
    old, end = _row(data, 6)
    return Delete(oid, old, marker == _OLD), end


def _truncate(data: bytes) -> tuple[Message, int]:
    (count,) = _U32.unpack_from(data, 1)
    options = data[5]
    relations = struct.unpack_from(f">{count}I", data, 6)
    return Truncate(relations, bool(options & 1), bool(options & 2)), 6 + 4 * count


def _row(data: bytes, at: int) -> tuple[Row, int]:
    (count,) = _U16.unpack_from(data, at)
    at += 2
    values: list[Value] = []
    for _ in range(count):
        kind = data[at]
        at += 1
        if kind == _T:
            (length,) = _U32.unpack_from(data, at)
            at += 4
            if at + length > len(data):
                raise MalformedMessage("a value is cut off")
            values.append(data[at : at + length])
            at += length
        elif kind == _N:
            values.append(None)
        elif kind == _U:
            values.append(UNCHANGED)
        else:
            raise MalformedMessage(f"a value of unknown kind {chr(kind)!r}")
    return tuple(values), at


def _expect(data: bytes, at: int, marker: int) -> None:
    if data[at] != marker:
        raise MalformedMessage(f"expected {chr(marker)!r}, found {chr(data[at])!r}")


def _string(data: bytes, at: int) -> tuple[str, int]:
    end = data.index(0, at)
    return data[at:end].decode("utf-8"), end + 1


_DECODERS = {
    b"B": _begin,
    b"C": _commit,
    b"O": _origin,
    b"R": _relation,
    b"Y": _type,
    b"I": _insert,
    b"U": _update,
    b"D": _delete,
    b"T": _truncate,
}
