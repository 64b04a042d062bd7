"""Changes in the demo's eight streaming tables, as applications make them: valid values, in small transactions."""

from __future__ import annotations

import contextlib
import itertools
import random
import time
from collections import Counter, deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import psycopg2

from bronze_assets.demo.generate import SCHEMA, new_row
from bronze_assets.demo.postgres import Say, connect
from bronze_assets.errors import SettingsError, SourceRefused
from bronze_assets.settings import Settings
from bronze_assets.vaults import resolve_secret

if TYPE_CHECKING:
    from psycopg2.extensions import connection as Connection

# How many of each a call of change_sample_rows makes in each table.
_FEW = {"updated": 6, "inserted": 3, "deleted": 1}
_MIX = ("updated", "inserted", "updated", "updated", "inserted", "updated", "deleted", "updated", "inserted", "updated")
_TRANSACTIONS_PER_SECOND = 20
_PROGRESS_SECONDS = 10
# The transaction's number: another value at each update, in whatever process.
_ONCE = "(pg_current_xact_id()::text::bigint)"


def _next(column: str, words: Sequence[str]) -> str:
    """An expression for the word after the present one, the first after the last and after any other value."""
    cases = " ".join(f"when '{word}' then '{after}'" for word, after in itertools.pairwise(words))
    return f"case {column} {cases} else '{words[0]}' end"


@dataclass(frozen=True)
class _Changed:
    """What an update sets to a value that it has not, and which rows hold no fault that would stay."""

    key: str
    column: str
    value: str
    sound: str = "true"


_CHANGED: Mapping[str, _Changed] = {
    "products": _Changed(
        "product_id",
        "unit_price",
        "case when unit_price < 5000 then unit_price + 0.01 else 1.00 end",
        "unit_price <> 'NaN'",
    ),
    "suppliers": _Changed(
        "supplier_id", "contact_number", f"'+49 (30) ' || (1000000 + ({_ONCE} * 7919 + supplier_id) % 8999999)"
    ),
    "inventory": _Changed(
        "inventory_id",
        "quantity_available",
        "case when quantity_available between 0 and 998 then quantity_available + 1 else 0 end",
    ),
    "orders": _Changed(
        "order_id",
        "order_status",
        _next("order_status", ("NEW", "PAID", "PICKED", "SENT", "DELIVERED")),
        "isfinite(order_date) and order_date < '2099-01-01'",
    ),
    "order_details": _Changed(
        "order_detail_id",
        "quantity_ordered",
        "case when quantity_ordered between 1 and 8 then quantity_ordered + 1 else 1 end",
        "unit_price <> 'NaN'",
    ),
    "shipments": _Changed(
        "shipment_id", "carrier", _next("carrier", ("DHL", "UPS", "La Poste", "PostNord")), "isfinite(shipment_date)"
    ),
    "returns": _Changed("return_id", "return_reason", _next("return_reason", ("damaged", "too late", "wrong size"))),
    "customers": _Changed("customer_id", "email", f"'customer.' || customer_id || '.' || {_ONCE} || '@example.org'"),
}


class _Table:
    """One table's rows that may be changed, and the changes. A key that several rows share is left alone."""

    def __init__(self, connection: Connection, name: str) -> None:
        self._connection = connection
        self._name = f"{SCHEMA}.{name}"
        self._changed = changed = _CHANGED[name]
        self._new_row = new_row(name)
        with connection.cursor() as cursor:
            cursor.execute(
                f"select {changed.key} from {self._name} where {changed.key} in"
                f" (select {changed.key} from {self._name} where {changed.key} > 0 group by 1 having count(*) = 1)"
                f" and {changed.sound} order by 1"
            )
            keys = [int(key) for (key,) in cursor.fetchall()]
            cursor.execute(f"select coalesce(max({changed.key}), 0) from {self._name}")
            row = cursor.fetchone()
            self._last = int(row[0]) if row is not None else 0
        # The same order for the same rows, another one on the next call; a row's turn comes when all others had theirs.
        random.Random(self._last).shuffle(keys)
        self._keys = deque(keys)

    def change(self, kind: str) -> str:
        """Make one change in the open transaction; returns its kind: an insert where nothing is left to change."""
        if not self._keys:
            kind = "inserted"
        with self._connection.cursor() as cursor:
            if kind == "inserted":
                self._last += 1
                cursor.execute(self._new_row, (self._last,))
                self._keys.append(self._last)
                return kind
            key = self._keys.popleft()
            changed = self._changed
            if kind == "deleted":
                cursor.execute(f"delete from {self._name} where {changed.key} = %s", (key,))
            else:
                self._keys.append(key)
                assignment = f"{changed.column} = {changed.value}".replace("%", "%%")
                cursor.execute(f"update {self._name} set {assignment} where {changed.key} = %s", (key,))
        return kind


def change_sample_rows(url: str) -> dict[str, dict[str, int]]:
    """Update, insert and delete a few rows of each streaming table, one transaction for each.

    Every call makes a few more. Warehouses and stock levels, which are loaded whole, stay as they are.

    Args:
        url: of the database with the demo's sample data.

    Returns:
        For each table the rows `updated`, `inserted` and `deleted`.

    Raises:
        SourceUnreachable: the server does not answer.
        SourceRefused: it does not make the changes.
    """
    made = {}
    with _database(url) as connection:
        for name in _CHANGED:
            table = _Table(connection, name)
            with _transaction(connection):
                made[name] = dict(Counter(table.change(kind) for kind, count in _FEW.items() for _ in range(count)))
    return made


def make_changes(settings: Settings, *, rate: float, seconds: float, say: Say) -> dict[str, int]:
    """Change rows of the home's embedded server steadily: 60 % updates, 30 % inserts, 10 % deletes.

    They are spread over the eight streaming tables and committed about 20 times a second.

    Args:
        rate: changes a second. A server that cannot keep up gets fewer, as is then said.
        seconds: for how long.
        say: hears how far it is.

    Returns:
        The rows `updated`, `inserted` and `deleted`.

    Raises:
        SettingsError: the source is not the embedded server: nobody else's rows are changed.
        SourceUnreachable: the server does not run.
        SourceRefused: it does not make the changes.
    """
    if settings.source_url != f"file:{settings.home / 'postgres' / 'source_url'}":
        raise SettingsError(
            "BRONZE_SOURCE_URL names a server that is not the demo's, and its rows are not changed here.",
            "unset BRONZE_SOURCE_URL.",
        )
    made: Counter[str] = Counter()
    with _database(resolve_secret(settings.source_url, meaning="BRONZE_SOURCE_URL")) as connection:
        tables = [_Table(connection, name) for name in _CHANGED]
        began = said = time.monotonic()
        done, total = 0, round(rate * seconds)
        size = max(1, round(rate / _TRANSACTIONS_PER_SECOND))
        while done < total and time.monotonic() - began < seconds + 1:
            time.sleep(max(0.0, began + done / rate - time.monotonic()))
            with _transaction(connection):
                for number in range(done, min(done + size, total)):
                    # A round of all tables for each kind: every table sees every kind.
                    kind = _MIX[number // len(tables) % len(_MIX)]
                    made[tables[number % len(tables)].change(kind)] += 1
            done = sum(made.values())
            if time.monotonic() - said >= _PROGRESS_SECONDS:
                said = time.monotonic()
                say(f"{done:,} changes in {said - began:.0f} s.")
        took = time.monotonic() - began
    parts = ", ".join(f"{count:,} {kind}" for kind, count in sorted(made.items()))
    say(f"Made {done:,} changes in {took:.1f} s ({done / max(took, 0.001):.1f} a second): {parts}.")
    return dict(made)


@contextlib.contextmanager
def _database(url: str) -> Iterator[Connection]:
    with connect(url) as connection:
        try:
            yield connection
        except psycopg2.Error as error:
            reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise SourceRefused(f"The demo's rows cannot be changed: {reason}", "run `make demo` first.") from error


@contextlib.contextmanager
def _transaction(connection: Connection) -> Iterator[None]:
    # The connection commits by itself; closing it within the block rolls back.
    with connection.cursor() as cursor:
        cursor.execute("begin")
        yield
        cursor.execute("commit")
