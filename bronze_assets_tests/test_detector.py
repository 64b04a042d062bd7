"""Columns that look personal, looked for in tables that `deltalake` wrote. No Spark."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pytest
from deltalake import write_deltalake
from hypothesis import given
from hypothesis import strategies as st

from bronze_assets.lakehouse import Lakehouse
from bronze_assets.privacy import detector
from bronze_assets.privacy.values import seal
from bronze_assets_tests.people import NAME, SCHEMA, people

# Test numbers of the issuers' own, and examples of the IBAN registry.
CARDS = ["4111 1111 1111 1111", "5555-5555-5555-4444", "378282246310005", "30569309025904", "3530111333300000"]
IBANS = ["DE89 3704 0044 0532 0130 00", "GB29NWBK60161331926819", "FR1420041010050500013M02606"]
PHONES = ["+49 30 123456", "0049 30 123456", "(030) 12 34-56", "030/123456", "+1 (555) 123-4567", "555-123-4567"]
NOBODYS = [
    *("2026-01-15", "15.01.2026", "01/02/2026", "12:30:45", "4711", "0012345678", "0.1234567", "10.0.0.1", "-12345678"),
    *("SKU-0815-4711", "4111111111111112", "4006381333931", "DE89370400440532013001", "a@b", "@home", "1,234,567.89"),
    *("6f1c1a52-0f0b-4a9b-9a3b-0242ac120002", "d41d8cd98f00b204e9800998ecf8427e", "", " ", "Zoë", "5 @ 3.50"),
]


@pytest.fixture
def lake(tmp_path: Path) -> Lakehouse:
    return Lakehouse(tmp_path / "lake")


def write(lake: Lakehouse, **columns: Sequence[str | None]) -> None:
    write_deltalake(lake.location(SCHEMA, NAME), pa.table(columns), mode="overwrite", schema_mode="overwrite")


def luhn_digit(digits: str) -> str:
    """By the table of the standard, from the left, unlike the code under test."""
    doubled = [0, 2, 4, 6, 8, 1, 3, 5, 7, 9]
    odd = len(digits) % 2
    total = sum(doubled[int(d)] if at % 2 != odd else int(d) for at, d in enumerate(digits))
    return str((10 - total % 10) % 10)


@given(st.from_regex(r"[0-9]{1,25}", fullmatch=True))
def test_one_check_digit_is_right_and_nine_are_wrong(digits: str) -> None:
    right = luhn_digit(digits)

    assert [d for d in "0123456789" if detector.passes_luhn(digits + d)] == [right]


@given(st.from_regex(r"4[0-9]{14}", fullmatch=True), st.integers(0, 15), st.integers(1, 9))
def test_a_card_with_one_wrong_digit_is_none(digits: str, at: int, more: int) -> None:
    card = digits + luhn_digit(digits)
    assert detector.is_card(card)
    assert detector.is_card(f"card {card[:4]} {card[4:8]} {card[8:12]} {card[12:]}, thanks")

    wrong = card[:at] + str((int(card[at]) + more) % 10) + card[at + 1 :]
    assert not detector.is_card(wrong)


@given(st.emails(), st.sampled_from(["{}", "write to {} please", "<{}>", "{},"]))
def test_every_address_is_seen_as_it_is_and_in_a_text(address: str, text: str) -> None:
    assert detector.is_email(text.format(address))


@given(st.text().filter(lambda text: "@" not in text))
def test_a_text_without_an_at_is_no_address(text: str) -> None:
    assert not detector.is_email(text)


@given(st.text(alphabet="0123456789 ()+-/.ABC@", max_size=40))
def test_any_text_is_judged(text: str) -> None:
    for judge in (detector.is_email, detector.is_phone, detector.is_card, detector.is_iban):
        assert judge(text) in (True, False)


@pytest.mark.parametrize("text", CARDS)
def test_cards(text: str) -> None:
    assert detector.is_card(text)


@pytest.mark.parametrize("text", [*IBANS, "pay to de89370400440532013000 today", "IBAN: GB29 NWBK 6016 1331 9268 19."])
def test_ibans(text: str) -> None:
    assert detector.is_iban(text)


@pytest.mark.parametrize("text", PHONES)
def test_phones(text: str) -> None:
    assert detector.is_phone(text)


@pytest.mark.parametrize("text", NOBODYS)
def test_what_is_nobodys(text: str) -> None:
    assert not any(judge(text) for judge in (detector.is_email, detector.is_phone, detector.is_card, detector.is_iban))


def test_a_long_text_is_judged_at_once() -> None:
    for text in (
        "a" * 1000,
        "a." * 500,
        "1 " * 500,
        "@" * 1000,
        "0 " + "1-" * 500,
        "a@" + "b." * 500,
        "DE89" + "A" * 990,
    ):
        for judge in (detector.is_email, detector.is_phone, detector.is_card, detector.is_iban):
            judge(text)


@pytest.mark.parametrize(
    ("kind", "values"), [("e-mail", ["a.b@example.org"]), ("phone", PHONES), ("card", CARDS), ("iban", IBANS)]
)
def test_a_column_counts_from_its_threshold(kind: str, values: list[str]) -> None:
    total = 200
    enough = round(detector.THRESHOLDS[kind] * total)
    mine = [values[number % len(values)] for number in range(enough)]

    assert detector.looks_like([*mine, *["nothing"] * (total - enough)]) == (kind, enough / total)
    assert detector.looks_like([*mine[1:], *["nothing"] * (total - enough + 1)]) is None


def test_two_values_say_nothing_and_neither_does_an_empty_column() -> None:
    assert detector.looks_like(["a@example.org"] * 2) is None
    assert detector.looks_like([]) is None


def test_columns_of_numbers_do_not_look_like_cards() -> None:
    numbers = random.Random(7)
    for length in (13, 16, 19):
        assert (
            detector.looks_like([str(numbers.randrange(10 ** (length - 1), 10**length)) for _ in range(2000)]) is None
        )


def test_unclassified_columns_are_found_and_no_value_is_told(lake: Lakehouse) -> None:
    addresses = [f"zoe.{number}@example.org" for number in range(10)]
    write(
        lake,
        person_id=[str(n) for n in range(10)],
        contact=addresses,
        remark=["fine"] * 10,
        **{'odd "name"': PHONES + [None] * 4},
    )

    found = detector.suspects(lake, people())

    assert [(one.column, one.kind, one.share, one.looked_at) for one in found] == [
        ("contact", "e-mail", 1.0, 10),
        ('odd "name"', "phone", 1.0, 6),
    ]
    assert "zoe" not in repr(found)


def test_classified_own_and_sealed_columns_are_left_out(lake: Lakehouse) -> None:
    addresses = ["zoe@example.org"] * 10
    sealed = [seal("zoe@example.org", bytes(32), version=1, kind="s", where="x") for _ in range(10)]
    write(lake, email=addresses, city=addresses, file_name=addresses, load_date=addresses, _rescued_data=sealed)

    assert detector.suspects(lake, people()) == []


def test_what_only_begins_like_a_sealed_text_is_looked_at(lake: Lakehouse) -> None:
    write(lake, remark=["enc:1:s:AAAA zoe@example.org"] * 5)

    assert [one.column for one in detector.suspects(lake, people())] == ["remark"]


def test_no_more_values_are_read_than_stated(lake: Lakehouse, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(detector, "SAMPLE_ROWS", 7)
    write(lake, contact=["zoe@example.org"] * 50)

    assert [one.looked_at for one in detector.suspects(lake, people())] == [7]


def test_a_missing_table_has_nothing_to_tell(lake: Lakehouse) -> None:
    assert detector.suspects(lake, people()) == []
    assert detector.unclassified(lake, people()) == []


def test_undeclared_columns_are_told_and_an_empty_rescue_is_not(lake: Lakehouse) -> None:
    write(lake, email=["x"] * 3, nickname=["Zo", None, None], batch_id=["b"] * 3, _rescued_data=["{}", None, None])
    found = {one.column: one.values for one in detector.unclassified(lake, people())}
    assert found == {"nickname": 1, "_rescued_data": 1}

    table = pa.table({"email": ["x"], "_rescued_data": pa.nulls(1, pa.string())})
    write_deltalake(lake.location(SCHEMA, NAME), table, mode="overwrite", schema_mode="overwrite")
    assert detector.unclassified(lake, people()) == []
