"""Deterministic sample data for the ten source tables, with known faults in them.

Every value is arithmetic on the row's number: the same rows on every machine, made by PostgreSQL itself in seconds.

As a command: files for the manufacturing feeds, or changes in the demo's tables, at a given rate.
"""

from __future__ import annotations

import argparse
import datetime as dt
import math
import re
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from psycopg2 import sql

from bronze_assets.demo.postgres import Say, connect

if TYPE_CHECKING:
    from psycopg2.extensions import connection as Connection

SCHEMA = "tests"
_PROGRESS_SECONDS = 5


@dataclass(frozen=True)
class _Sample:
    """How one table is made: expressions over `g`, the row's number from 0, and the faults planted in it.

    Attributes:
        columns: name, type and expression of each column, the key first.
        rows: how many at scale 1.
        primary_key: whether the source declares the key; not where faults break it.
        faults: kind to rows. `null_<column>` needs no expression; another kind replaces a column's value as
            `replacements` says, where `i` counts that kind's rows from 0.
        replacements: kind to column and expression.
        copies: kind to the rows that are there once more, as they are or with one column changed (its expression).
    """

    columns: Sequence[tuple[str, str, str]]
    rows: int
    primary_key: bool = True
    faults: Mapping[str, int] = field(default_factory=dict)
    replacements: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    copies: Mapping[str, tuple[int, Mapping[str, str]]] = field(default_factory=dict)


def _pick(words: Sequence[str], step: str = "g") -> str:
    quoted = ", ".join("'" + word.replace("'", "''") + "'" for word in words)
    return f"(array[{quoted}])[1 + ({step}) % {len(words)}]"


_FIRST_NAMES = (
    "Zoë",
    "José",
    "Łukasz",
    "Aylin",
    "Søren",
    "Иван",
    "Nguyễn",
    "小明",
    "Maeve",
    "D'Arcy",
    "Chiamaka",
    "Noor",
)
_LAST_NAMES = (
    "Müller",
    "García",
    "Nowak",
    "Yılmaz",
    "Østergaard",
    "Петров",
    "Trần",
    "王",
    "O’Brien",
    "van Dijk",
    "Okafor",
)
_CITIES = ("Köln", "Łódź", "São Paulo", "Reykjavík", "Zürich", "東京", "Montréal", "Malmö", "Čakovec", "Izmir", "Lagos")
_MATERIALS = ("Brass", "Oak", "Steel", "Crème", "Cotton", "Graphite", "Bamboo", "Emaille", "Glass", "Wool", "Cork")
_GOODS = ("Lamp", "Chair", "Kettle", "Drill", "Rucksack", "Notebook", "Étagère", "Clock", "Blanket", "Scale", "Vase")
_BAD_EMAILS = (
    "no-at-sign.example.org",
    "two@@signs.example.org",
    "a blank@example.org",
    "nodot@localhost",
    "@example.org",
)
_BAD_NUMBERS = ("call me", "12", "+49 30 1234567890 1234567", "030/1234567", "n/a")

_SAMPLES: Mapping[str, _Sample] = {
    "products": _Sample(
        columns=(
            ("product_id", "int", "g + 1"),
            (
                "product_name",
                "text",
                f"{_pick(_MATERIALS)} || ' ' || {_pick(_GOODS, 'g / 11')} || ' ' || (g / 121 + 1)",
            ),
            ("category", "text", _pick(("Home", "Garden", "Tools", "Café", "Office", "Outdoor"), "g / 7")),
            ("unit_price", "numeric(12,2)", "((g * 7919) % 249900 + 99) / 100.0"),
        ),
        rows=2_000,
        faults={"nonpositive_key": 6, "nan": 9, "null_category": 40, "null_unit_price": 20},
        replacements={"nonpositive_key": ("product_id", "-5 * i"), "nan": ("unit_price", "'NaN'")},
    ),
    "suppliers": _Sample(
        columns=(
            ("supplier_id", "int", "g + 1"),
            ("supplier_name", "text", f"{_pick(_LAST_NAMES)} || ' & ' || {_pick(_CITIES, 'g / 11')} || ' Trading'"),
            ("contact_number", "text", "'+49 (' || (30 + g % 60) || ') ' || (1000000 + (g * 7919) % 8999999)"),
            ("product_id", "int", "(g * 37) % 2000 + 1"),
        ),
        rows=500,
        primary_key=False,
        faults={
            "null_key": 3,
            "nonpositive_key": 2,
            "bad_contact_number": 9,
            "null_contact_number": 10,
            "null_product_id": 5,
        },
        replacements={
            "null_key": ("supplier_id", "null"),
            "nonpositive_key": ("supplier_id", "-5 * i"),
            "bad_contact_number": ("contact_number", _pick(_BAD_NUMBERS, "i")),
        },
        copies={
            "exact_duplicate": (4, {}),
            "changed_duplicate": (4, {"supplier_name": "supplier_name || ' (old)'"}),
        },
    ),
    "warehouses": _Sample(
        columns=(
            ("warehouse_id", "int", "g + 1"),
            ("location", "text", f"{_pick(_CITIES)} || ' ' || (g / 11 + 1)"),
            ("capacity", "int", "5000 + (g * 791) % 20000"),
        ),
        rows=50,
        faults={"null_capacity": 1},
    ),
    "inventory": _Sample(
        columns=(
            ("inventory_id", "int", "g + 1"),
            ("product_id", "int", "g % 2000 + 1"),
            ("warehouse_id", "int", "(g / 2000 + g) % 50 + 1"),
            ("quantity_available", "int", "(g * 7919) % 500"),
        ),
        rows=30_000,
        faults={"negative_quantity": 150, "null_quantity_available": 300},
        replacements={"negative_quantity": ("quantity_available", "-1 - i")},
    ),
    "orders": _Sample(
        columns=(
            ("order_id", "bigint", "g + 1"),
            ("customer_id", "int", "(g * 7919) % 12000 + 1"),
            ("order_date", "date", "date '2026-01-01' + (g * 59 / {n})::int"),
            (
                "order_status",
                "text",
                _pick(("NEW", "PAID", "PICKED", "SENT", "DELIVERED", "CANCELLED"), "g / 5 + g"),
            ),
        ),
        rows=60_000,
        faults={"future_date": 90, "infinite_date": 12, "null_customer_id": 600, "null_order_status": 300},
        replacements={
            "future_date": ("order_date", "date '2099-01-01'"),
            "infinite_date": ("order_date", "case when i % 2 = 0 then date 'infinity' else date '-infinity' end"),
        },
    ),
    "order_details": _Sample(
        columns=(
            ("order_detail_id", "bigint", "g + 1"),
            ("order_id", "bigint", "g * 2 / 3 + 1"),
            ("product_id", "int", "(g * 7919) % 2000 + 1"),
            ("quantity_ordered", "int", "g % 9 + 1"),
            ("unit_price", "numeric(12,2)", "((g * 7919) % 249900 + 99) / 100.0"),
        ),
        rows=90_000,
        faults={"negative_quantity": 180, "nan": 45, "null_unit_price": 450},
        replacements={"negative_quantity": ("quantity_ordered", "-1 - i % 9"), "nan": ("unit_price", "'NaN'")},
    ),
    "shipments": _Sample(
        columns=(
            ("shipment_id", "bigint", "g + 1"),
            ("order_id", "bigint", "g * 2 + 1"),
            ("shipment_date", "date", "date '2026-01-01' + least(g * 59 / {n} + 1 + g % 3, 58)::int"),
            ("carrier", "text", _pick(("DHL", "UPS", "La Poste", "PostNord", "Česká pošta"), "g / 3")),
        ),
        rows=30_000,
        # 8 %: above the 5 % of NULL that a column may have.
        faults={"infinite_date": 15, "null_carrier": 2_400},
        replacements={"infinite_date": ("shipment_date", "date 'infinity'")},
    ),
    "returns": _Sample(
        columns=(
            ("return_id", "bigint", "g + 1"),
            ("order_id", "bigint", "g * 10 + 1"),
            ("return_date", "date", "date '2026-01-01' + least(g * 59 / {n} + 5, 58)::int"),
            (
                "return_reason",
                "text",
                _pick(("damaged", "too late", "wrong size", "won’t start", "déjà vu"), "g / 2"),
            ),
        ),
        rows=6_000,
        primary_key=False,
        # 2.7 % without a usable key: the one table above the 2 % of quarantined rows that are tolerated.
        faults={"null_key": 150, "nonpositive_key": 12, "null_return_date": 30, "null_return_reason": 180},
        replacements={"null_key": ("return_id", "null"), "nonpositive_key": ("return_id", "-5 * i")},
        copies={"exact_duplicate": (25, {})},
    ),
    "stock_levels": _Sample(
        columns=(
            ("stock_level_id", "int", "g + 1"),
            ("warehouse_id", "int", "g % 50 + 1"),
            ("product_id", "int", "(g / 50 + g) % 2000 + 1"),
            ("quantity_on_hand", "int", "(g * 7919) % 900"),
            ("reorder_threshold", "int", "20 + g % 80"),
        ),
        rows=10_000,
        primary_key=False,
        faults={"null_key": 20, "negative_quantity": 100, "null_reorder_threshold": 200},
        replacements={
            "null_key": ("stock_level_id", "null"),
            "negative_quantity": ("quantity_on_hand", "-1 - i"),
        },
        copies={
            "exact_duplicate": (30, {}),
            "changed_duplicate": (20, {"quantity_on_hand": "quantity_on_hand + 1"}),
        },
    ),
    "customers": _Sample(
        columns=(
            ("customer_id", "int", "g + 1"),
            ("customer_name", "text", f"{_pick(_FIRST_NAMES)} || ' ' || {_pick(_LAST_NAMES, 'g / 12')}"),
            ("email", "text", "'customer.' || (g + 1) || '@example.org'"),
        ),
        rows=12_000,
        faults={"bad_email": 120, "null_customer_name": 36, "null_email": 240},
        replacements={"bad_email": ("email", _pick(_BAD_EMAILS, "i"))},
    ),
}


def _scaled(count: int, scale: float) -> int:
    return max(1, round(count * scale))


def planted(scale: float = 1.0) -> dict[str, dict[str, int]]:
    """What `generate` puts into each table at that scale: `rows`, all of them, and the rows with each kind of fault.

    A row has one fault at most. The kinds:

    - `null_key`, `nonpositive_key` (0, -5, -10 …): the key is not usable.
    - `exact_duplicate`, `changed_duplicate`: a second row with the key of a faultless one, the same in every column or
      not; the number counts the second rows alone.
    - `nan`: `unit_price` is NaN. `infinite_date`: the date is infinity or -infinity. Neither parses as its type.
    - `future_date`: `order_date` is 2099-01-01.
    - `negative_quantity`, `bad_email`, `bad_contact_number`.
    - `null_<column>`: that column is NULL.
    """
    counts = {}
    for name, sample in _SAMPLES.items():
        kinds = {kind: _scaled(count, scale) for kind, count in sample.faults.items()}
        kinds |= {kind: _scaled(count, scale) for kind, (count, _) in sample.copies.items()}
        second_rows = sum(kinds[kind] for kind in sample.copies)
        base = max(_scaled(sample.rows, scale), sum(kinds.values()))
        counts[name] = {"rows": base + second_rows, **kinds}
    return counts


PLANTED: Mapping[str, Mapping[str, int]] = planted()
"""What lies in each table of the demo: all its rows, and how many have which fault. See `planted` for the kinds."""


def generate(connection: Connection, *, scale: float = 1.0) -> list[str]:
    """Make schema `tests` and those of the ten tables that are not there, with their rows.

    Each table comes whole or not at all, also on a connection that commits by itself. A table that exists is left
    alone, whatever it holds.

    Args:
        connection: to the database; nothing is committed here.
        scale: factor to the numbers of `PLANTED`; each kind of fault keeps one row at least.

    Returns:
        The tables that were made.
    """
    made = []
    with connection.cursor() as cursor:
        cursor.execute(sql.SQL("create schema if not exists {}").format(sql.Identifier(SCHEMA)))
        for name, counts in planted(scale).items():
            cursor.execute("select to_regclass(%s) is null", (f"{SCHEMA}.{name}",))
            row = cursor.fetchone()
            if row is not None and row[0]:
                cursor.execute(_statements(name, _SAMPLES[name], counts))
                made.append(name)
    return made


def ensure_sample_data(url: str, say: Say) -> list[str]:
    """Make the sample tables that are not there, in the database of that URL; edits of the others survive.

    Args:
        url: of a database whose user may create a schema.
        say: hears how many rows are made.

    Returns:
        The tables that were made.
    """
    with connect(url) as connection:
        made = generate(connection)
    if made:
        rows = sum(PLANTED[name]["rows"] for name in made)
        say(f"Made {rows:,} sample rows in {len(made)} tables of schema {SCHEMA}.")
    return made


def generate_orders(connection: Connection, rows: int, table: str = "orders") -> None:
    """Make `tests.<table>` anew, with faultless orders over the 60 days from 2026-01-01 on; for benchmarks.

    Args:
        connection: to the database; nothing is committed here.
        rows: how many.
        table: its name. A table of that name is dropped.
    """
    sample = _SAMPLES["orders"]
    columns = ", ".join(f"{name} {kind}" for name, kind, _ in sample.columns)
    values = ", ".join(
        expression.replace("* 59", "* 60").replace("{n}", str(rows)) for _, _, expression in sample.columns
    )
    with connection.cursor() as cursor:
        cursor.execute(
            sql.SQL(
                "create schema if not exists {schema}; drop table if exists {table}; create table {table} ({columns});"
                "insert into {table} select {values} from generate_series(0::bigint, {last}) g;"
                "alter table {table} add primary key ({key}); analyze {table}"
            ).format(
                schema=sql.Identifier(SCHEMA),
                table=sql.Identifier(SCHEMA, table),
                columns=sql.SQL(columns),
                values=sql.SQL(values),
                last=sql.Literal(rows - 1),
                key=sql.Identifier(sample.columns[0][0]),
            )
        )


def new_row(table: str) -> str:
    """An INSERT of one faultless row into `tests.<table>`; its parameter is the key, a positive number."""
    sample = _SAMPLES[table]
    # As the last of so many rows: its date is the last of the sample's.
    values = ", ".join(f"({expression.replace('{n}', '(g + 1)')})::{kind}" for _, kind, expression in sample.columns)
    values = values.replace("%", "%%")
    return f"insert into {SCHEMA}.{table} select {values} from (select %s::bigint - 1 as g) numbered"


def _statements(name: str, sample: _Sample, counts: Mapping[str, int]) -> str:
    """All that makes one table, as one string: PostgreSQL runs that as one transaction."""
    table = f"{SCHEMA}.{name}"
    n = counts["rows"] - sum(counts[kind] for kind in sample.copies)
    # r is a permutation of the row numbers: a stretch of it is scattered over the table, two stretches never meet.
    stretches: dict[str, tuple[int, int]] = {}
    begin = 0
    for kind, count in counts.items():
        if kind != "rows":
            stretches[kind] = (begin, begin + count)
            begin += count
    values = []
    for column, type_name, expression in sample.columns:
        cases = ""
        for kind in sample.faults:
            target, replacement = sample.replacements.get(kind, (kind.removeprefix("null_"), "null"))
            if target == column:
                low, high = stretches[kind]
                value = re.sub(r"\bi\b", f"(r - {low})", replacement)
                cases += f" when r >= {low} and r < {high} then ({value})::{type_name}"
        plain = f"({expression.replace('{n}', str(n))})::{type_name}"
        values.append(f"case{cases} else {plain} end" if cases else plain)
    names = [column for column, _, _ in sample.columns]
    numbered = (
        f"(select g, (g * {_multiplier(n)} + {n // 2}) % {n} as r from generate_series(0::bigint, {n - 1}) g) numbered"
    )
    key = names[0]
    statements = [
        f"create table {table} ({', '.join(f'{column} {kind}' for column, kind, _ in sample.columns)})",
        f"insert into {table} select {', '.join(values)} from {numbered}",
    ]
    for kind, (_, changes) in sample.copies.items():
        low, high = stretches[kind]
        copied = ", ".join(changes.get(column, column) for column in names)
        statements.append(
            f"insert into {table} select {copied} from {table} where {key} in "
            f"(select g + 1 from {numbered} where r >= {low} and r < {high})"
        )
    if sample.primary_key:
        statements.append(f"alter table {table} add primary key ({key})")
    statements.append(f"analyze {table}")
    return "; ".join(statements)


def _multiplier(n: int) -> int:
    """A number that has no factor in common with n, so that multiplying by it permutes 0 … n-1."""
    return next(candidate for candidate in range(7919, 7919 + n + 2) if math.gcd(candidate, n) == 1)


def main(arguments: Sequence[str] | None = None) -> int:
    """Make files, or changes, as the arguments say.

    Returns:
        The exit code: 0, 1 for an error, 130 after Ctrl-C.
    """
    # Imported late: those modules use this one.
    from bronze_assets.demo.changes import make_changes
    from bronze_assets.demo.files import FEEDS, make_files
    from bronze_assets.settings import Settings
    from bronze_assets.terminal import run_command, say

    parser = argparse.ArgumentParser(
        prog="python -m bronze_assets.demo.generate",
        description="Make files for the manufacturing feeds; with --changes-per-second, changes in the demo's tables.",
    )
    parser.add_argument("--landing", help="folder of the landing zone (default: the setting BRONZE_LANDING)")
    parser.add_argument("--feed", choices=[*FEEDS, "all"], default="all", help="default: all")
    parser.add_argument("--files", type=_number(int, 0), default=10, help="of each feed; 0 until Ctrl-C (default: 10)")
    parser.add_argument("--rows-per-file", type=_number(int, 1), default=200, metavar="ROWS", help="default: 200")
    parser.add_argument(
        "--rate",
        type=_number(float, 0),
        default=0.0,
        metavar="FILES_PER_SECOND",
        help="0: as fast as possible (default)",
    )
    parser.add_argument(
        "--faults", type=_number(float, 0, 1), default=0.0, metavar="SHARE", help="of faulty rows, 0 to 1"
    )
    parser.add_argument(
        "--bad-files", type=_number(float, 0, 1), default=0.0, metavar="SHARE", help="of bad files, 0 to 1"
    )
    parser.add_argument("--seed", type=int, default=0, help="decides which rows are faulty, and the keys")
    parser.add_argument("--dated", action="store_true", help="into a folder named after today (UTC)")
    parser.add_argument(
        "--changes-per-second",
        type=_number(float, 0.01),
        metavar="RATE",
        help="update, insert and delete rows in the demo's tables",
    )
    parser.add_argument(
        "--seconds", type=_number(float, 0), default=60.0, help="for how long to make changes (default: 60)"
    )
    options = parser.parse_args(arguments)

    def command(settings: Settings) -> int:
        if options.changes_per_second is not None:
            make_changes(settings, rate=options.changes_per_second, seconds=options.seconds, say=say)
            return 0
        landing: str = options.landing or settings.landing
        began = said = time.monotonic()
        files = bad = 0
        feeds = FEEDS if options.feed == "all" else (options.feed,)
        for planted_file in make_files(
            landing,
            feeds,
            now=dt.datetime.now(dt.UTC),
            files=options.files,
            rows=options.rows_per_file,
            faults=options.faults,
            bad_files=options.bad_files,
            seed=options.seed,
            dated=options.dated,
        ):
            files += 1
            bad += planted_file.counts["bad_files"]
            if time.monotonic() - said >= _PROGRESS_SECONDS:
                said = time.monotonic()
                say(f"{files:,} files, {bad:,} of them bad.")
            if options.rate:
                time.sleep(max(0.0, began + files / options.rate - time.monotonic()))
        say(f"Made {files:,} files, {bad:,} of them bad, in {landing}.")
        return 0

    return run_command(command, interrupted="Interrupted; every file that was made is complete.")


def _number(kind: Callable[[str], float], least: float, most: float = math.inf) -> Callable[[str], Any]:
    def parse(text: str) -> float:
        try:
            value = kind(text)
        except ValueError:
            value = math.nan
        # Not least > value: that would let NaN pass.
        if not least <= value <= most or math.isinf(value):
            bounds = f"from {least:g} to {most:g}" if most < math.inf else f"of at least {least:g}"
            raise argparse.ArgumentTypeError(f"{text!r} is not a {'whole ' if kind is int else ''}number {bounds}")
        return value

    return parse


if __name__ == "__main__":
    sys.exit(main())
