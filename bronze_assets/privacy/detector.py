"""Columns that look personal and are not classified, and columns that nobody declared. Answers never hold a value."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Final

import pyarrow as pa

from bronze_assets.lakehouse import Lakehouse
from bronze_assets.table import LOAD_DATE, METADATA_COLUMNS, RESCUED, BronzeTable, Pii

SAMPLE_ROWS: Final = 10_000
"""Values that are looked at in each column: a share of 2 % is told within half a point, in well under a second."""
SAMPLE_LENGTH: Final = 1_000
"""Characters of each value that are looked at: a document in a column must not hold the report up."""
LEAST_MATCHES: Final = 3
"""Fewer say nothing about a column: one clerk once typed an address into a field of remarks."""
THRESHOLDS: Final[Mapping[str, float]] = {
    # Nothing else has that form, so also a field of remarks with some addresses counts.
    "e-mail": 0.02,
    # One random text in a hundred passes the check digits.
    "iban": 0.05,
    # One random number in ten passes the Luhn check, and a third of those begin as a card does.
    "card": 0.2,
    # Article numbers look like it now and then; columns of numbers of telephones, nearly throughout.
    "phone": 0.3,
}
"""Kind → the share of matching values from which a column counts as one of that kind."""

_SEALED = re.compile(r"enc:[1-9][0-9]{0,4}:[st]:[A-Za-z0-9+/]+={0,2}|tok:[0-9a-f]{64}")
_EMAIL = re.compile(
    r"[^\s@<>()\[\],:;\"\\]{1,64}@(?:\w[\w-]{0,62}\.)+(?:[^\W\d_]{2,63}|xn--[\w-]{1,59})(?![\w-])", re.IGNORECASE
)
# `+49 30 123`, `0049 30 123`, `030/12 34-56` or `(555) 123-4567`; a bare row of digits is any number.
_PHONE = re.compile(
    r"\+ ?[1-9](?:[ ()./-]{0,3}[0-9])+|\(?0[0-9]+\)?[ /-](?:[ ()/-]{0,3}[0-9])+"
    r"|\(?[2-9][0-9]{2}\)?[ .-]{1,2}[0-9]{3}[ .-][0-9]{4}"
)
_PHONE_DIGITS = range(7, 16)
_DATE = re.compile(r"[0-9]{1,4}([./ -])[0-9]{1,2}\1[0-9]{1,4}")
_CARD = re.compile(r"(?<![0-9])[2-6][0-9](?:[ -]?[0-9]){11,17}(?![0-9])")
# Issuer → lengths (ISO/IEC 7812): Visa, Mastercard, American Express, Diners, JCB, Discover and Maestro.
_ISSUERS = (
    (re.compile("4"), (13, 16, 19)),
    (re.compile("5[1-5]|222[1-9]|22[3-9]|2[3-6]|27[01]|2720"), (16,)),
    (re.compile("3[47]"), (15,)),
    (re.compile("30[0-5]|3[689]"), (14,)),
    (re.compile("35"), (16, 17, 18, 19)),
    (re.compile("5018|5020|5038|6"), (16, 17, 18, 19)),
)
_IBAN = re.compile(r"(?<![A-Z0-9])[A-Z]{2}[0-9]{2}(?: ?[A-Z0-9]){11,30}(?![A-Z0-9])")


@dataclass(frozen=True)
class Suspect:
    """A column that looks personal and is not classified.

    Attributes:
        kind: `e-mail`, `phone`, `card` or `iban`.
        share: of the values looked at that match, from 0 to 1.
        looked_at: how many values that were.
    """

    schema: str
    table: str
    column: str
    kind: str
    share: float
    looked_at: int


@dataclass(frozen=True)
class Unclassified:
    """A column of a table that nobody declared, so that nobody said whether it is personal.

    Attributes:
        values: how many rows have one.
    """

    schema: str
    table: str
    column: str
    values: int


def is_email(text: str) -> bool:
    """Whether an e-mail address stands in the text."""
    return "@" in text and _EMAIL.search(text) is not None


def is_phone(text: str) -> bool:
    """Whether the text is a telephone number, as people write them; a bare row of digits is none, nor is a date."""
    text = text.strip()
    digits = sum(map(str.isdigit, text))
    return digits in _PHONE_DIGITS and _PHONE.fullmatch(text) is not None and _DATE.fullmatch(text) is None


def is_card(text: str) -> bool:
    """Whether a payment card's number stands in the text: of an issuer's form, with a right Luhn digit."""
    for found in _CARD.finditer(text):
        digits = re.sub("[ -]", "", found[0])
        if passes_luhn(digits) and any(len(digits) in sizes and issuer.match(digits) for issuer, sizes in _ISSUERS):
            return True
    return False


def passes_luhn(digits: str) -> bool:
    """Whether the last of these digits is the check digit of the others (ISO/IEC 7812-1, annex B)."""
    numbers = [int(digit) for digit in reversed(digits)]
    return sum(numbers[::2]) % 10 == -sum(sum(divmod(2 * number, 10)) for number in numbers[1::2]) % 10


def is_iban(text: str) -> bool:
    """Whether an IBAN (ISO 13616) with right check digits stands in the text."""
    return any(_has_check_digits(found[0].replace(" ", "")) for found in _IBAN.finditer(text.upper()))


def _has_check_digits(iban: str) -> bool:
    """ISO 7064, MOD 97-10; a word that follows the number after a blank is no part of it."""
    return any(
        int("".join(str(int(sign, 36)) for sign in iban[4:end] + iban[:4])) % 97 == 1
        for end in range(15, min(len(iban), 34) + 1)
    )


_KINDS: Mapping[str, Callable[[str], bool]] = {"e-mail": is_email, "iban": is_iban, "card": is_card, "phone": is_phone}


def looks_like(values: Iterable[str]) -> tuple[str, float] | None:
    """What a column with these values looks like: of the kinds whose threshold it passes, that of most values."""
    texts = list(values)
    found = []
    for kind, matches in _KINDS.items():
        count = sum(map(matches, texts))
        if count >= LEAST_MATCHES and count / len(texts) >= THRESHOLDS[kind]:
            found.append((count / len(texts), kind))
    if not found:
        return None
    share, kind = max(found, key=lambda one: one[0])
    return kind, share


def suspects(lake: Lakehouse, table: BronzeTable) -> list[Suspect]:
    """The STRING columns of a bronze table that look personal and are not classified; none of a missing table.

    Left out are classified columns, the platform's own and sealed texts. At most `SAMPLE_ROWS` values of a column are
    looked at, so a column with fewer than one personal value in some hundreds may pass.
    """
    left_out = {c.name for c in table.columns if c.pii is not Pii.NONE} | {*METADATA_COLUMNS, LOAD_DATE}
    found = []
    for field in _stored(lake, table):
        if field.name in left_out or not _is_text(field.type):
            continue
        name = quoted(field.name)
        query = f"select substr({name}, 1, {SAMPLE_LENGTH}) as v from t where {name} is not null limit {SAMPLE_ROWS}"
        answer = lake.query(table.schema, table.name, query)
        texts = [] if answer is None else [text for text in answer["v"].to_pylist() if not _SEALED.fullmatch(text)]
        if looks := looks_like(texts):
            found.append(Suspect(table.schema, table.name, field.name, *looks, len(texts)))
    return found


def unclassified(lake: Lakehouse, table: BronzeTable) -> list[Unclassified]:
    """The columns of a bronze table that nobody declared: those that joined it, and `_rescued_data` where a value is
    in it; none of a missing table.
    """
    names = [field.name for field in _stored(lake, table) if not table.knows(field.name)]
    if not names:
        return []
    counts = ", ".join(f'count({quoted(name)}) as "n{number}"' for number, name in enumerate(names))
    answer = lake.query(table.schema, table.name, f"select {counts} from t")
    row = {} if answer is None else answer.to_pylist()[0]
    found = [Unclassified(table.schema, table.name, name, row[f"n{number}"]) for number, name in enumerate(names)]
    # Every table of files has that column.
    return [one for one in found if one.values or one.column != RESCUED]


def quoted(name: str) -> str:
    """A column's name in the SQL of `Lakehouse.query`."""
    return '"' + name.replace('"', '""') + '"'


def _stored(lake: Lakehouse, table: BronzeTable) -> list[pa.Field]:
    answer = lake.query(table.schema, table.name, "select * from t limit 0")
    return [] if answer is None else list(answer.schema)


def _is_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))
