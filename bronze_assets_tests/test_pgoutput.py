from __future__ import annotations

import struct
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bronze_assets.sources.pgoutput import (
    UNCHANGED,
    Begin,
    Commit,
    Delete,
    Insert,
    MalformedMessage,
    Message,
    Origin,
    Relation,
    RelationColumn,
    Row,
    Truncate,
    Type,
    Update,
    decode,
)

if TYPE_CHECKING:
    from psycopg2.extensions import connection as Connection

YEAR_2000_US = 946_684_800_000_000

# Written down from the chapter "Logical Replication Message Formats" of PostgreSQL's manual.
EXAMPLES: list[tuple[str, Message]] = [
    ("42 0000000100000002 0000000000000001 0000000a", Begin(0x1_0000_0002, YEAR_2000_US + 1, 10)),
    ("42 0000000100000002 ffffffffffffffff 0000000a", Begin(0x1_0000_0002, YEAR_2000_US - 1, 10)),
    (
        "43 00 0000000000000010 0000000000000020 0000000000000003",
        Commit(0x10, 0x20, YEAR_2000_US + 3),
    ),
    ("4f 0000000000000010 61 62 00", Origin(0x10, "ab")),
    (
        "52 00000007 73 00 c3a4 00 64 0002  01 69 00 00000017 ffffffff  00 76 00 000006a4 0000000c",
        Relation(7, "s", "ä", "d", (RelationColumn("i", 23, -1, True), RelationColumn("v", 1700, 12, False))),
    ),
    ("52 00000007 00 74 00 66 0000", Relation(7, "pg_catalog", "t", "f", ())),
    ("59 00000007 73 00 6d6f6f64 00", Type(7, "s", "mood")),
    ("49 00000007 4e 0003 74 00000001 37 6e 75", Insert(7, (b"7", None, UNCHANGED))),
    ("49 00000007 4e 0001 74 00000000", Insert(7, (b"",))),
    ("55 00000007 4e 0001 6e", Update(7, (None,), None, False)),
    ("55 00000007 4b 0001 74 00000001 38 4e 0001 74 00000001 39", Update(7, (b"9",), (b"8",), False)),
    ("55 00000007 4f 0001 6e 4e 0001 75", Update(7, (UNCHANGED,), (None,), True)),
    ("44 00000007 4b 0001 74 00000001 38", Delete(7, (b"8",), False)),
    ("44 00000007 4f 0001 74 00000001 38", Delete(7, (b"8",), True)),
    ("54 00000002 03 00000007 00000008", Truncate((7, 8), True, True)),
    ("54 00000000 00", Truncate((), False, False)),
]


@pytest.mark.parametrize(("hexadecimal", "message"), EXAMPLES, ids=lambda value: type(value).__name__)
def test_each_kind_of_message_is_read_as_the_manual_writes_it(hexadecimal: str, message: Message) -> None:
    assert decode(bytes.fromhex(hexadecimal)) == message


@pytest.mark.parametrize(("hexadecimal", "message"), EXAMPLES, ids=lambda value: type(value).__name__)
def test_a_message_of_another_length_is_refused(hexadecimal: str, message: Message) -> None:
    data = bytes.fromhex(hexadecimal)

    for end in range(len(data)):
        with pytest.raises(MalformedMessage):
            decode(data[:end])
    with pytest.raises(MalformedMessage, match="ends at byte"):
        decode(data + b"\0")


@pytest.mark.parametrize("kind", ["M", "S", "?"])
def test_an_unknown_kind_is_refused_by_name(kind: str) -> None:
    with pytest.raises(MalformedMessage, match=f"unknown kind '[{kind}]'"):
        decode(kind.encode() + b"secret")


def test_no_refusal_shows_a_value() -> None:
    whole = bytes.fromhex("49 00000007 4e 0002 74 00000006") + b"secret" + b"t\0\0\0\x06secret"

    for data in (whole[:-1], whole + b"secret", whole.replace(b"t\0\0", b"s\0\0"), b"R\0\0\0\x07sec\xffret\0"):
        with pytest.raises(MalformedMessage) as caught:
            decode(data)
        assert "sec" not in str(caught.value)
        assert caught.value.__cause__ is None


def test_any_row_is_read_back() -> None:
    values = st.one_of(st.none(), st.just(UNCHANGED), st.binary(max_size=300))
    rows = st.lists(values, max_size=20).map(tuple)

    @given(rows, rows, st.sampled_from("KO"), st.integers(0, 2**32 - 1))
    def read_back(old: Row, new: Row, marker: str, oid: int) -> None:
        head = struct.pack(">I", oid)
        old_bytes, new_bytes = marker.encode() + written(old), b"N" + written(new)
        assert decode(b"U" + head + old_bytes + new_bytes) == Update(oid, new, old, marker == "O")
        assert decode(b"D" + head + old_bytes) == Delete(oid, old, marker == "O")
        assert decode(b"I" + head + new_bytes) == Insert(oid, new)

    read_back()


def written(row: Row) -> bytes:
    """A row as the protocol has it."""
    data = struct.pack(">H", len(row))
    for value in row:
        if value is None:
            data += b"n"
        elif isinstance(value, bytes):
            data += b"t" + struct.pack(">I", len(value)) + value
        else:
            data += b"u"
    return data


def test_what_a_server_sends_is_read_to_the_end(source: Connection) -> None:
    with source.cursor() as cursor:
        cursor.execute(
            "create schema tests; create type tests.mood as enum ('glad');"
            " create table tests.things (thing_id int primary key, label text, mood tests.mood);"
            " create publication everything for table tests.things"
        )
        cursor.execute("select pg_create_logical_replication_slot('reading', 'pgoutput')")
        cursor.execute(
            "insert into tests.things values (1, 'ä', 'glad'), (2, null, null);"
            " update tests.things set thing_id = 3 where thing_id = 1;"
            " delete from tests.things where thing_id = 2; truncate tests.things"
        )
        cursor.execute(
            "select data from pg_logical_slot_peek_binary_changes('reading', null, null, 'proto_version', '1',"
            " 'publication_names', 'everything')"
        )
        messages = [decode(bytes(data)) for (data,) in cursor.fetchall()]
        cursor.execute("select 'tests.things'::regclass::oid::bigint, 'tests.mood'::regtype::oid::bigint")
        ((table, mood),) = cursor.fetchall()

    begin, kind, relation, *changes, commit = messages
    assert isinstance(begin, Begin)
    assert isinstance(commit, Commit)
    assert begin.commit_lsn == commit.commit_lsn < commit.end_lsn
    assert kind == Type(mood, "tests", "mood")
    assert isinstance(relation, Relation)
    assert (relation.schema, relation.name, relation.replica_identity) == ("tests", "things", "d")
    assert [(column.name, column.identity) for column in relation.columns] == [
        ("thing_id", True),
        ("label", False),
        ("mood", False),
    ]
    # TRUNCATE gives the table new storage, of which the server tells anew.
    assert [change for change in changes if not isinstance(change, Relation | Type)] == [
        Insert(table, (b"1", "ä".encode(), b"glad")),
        Insert(table, (b"2", None, None)),
        Update(table, (b"3", "ä".encode(), b"glad"), (b"1", None, None), False),
        Delete(table, (b"2", None, None), False),
        Truncate((table,), False, False),
    ]
