from __future__ import annotations

import datetime as dt
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pytest

from bronze_assets.demo import postgres
from bronze_assets.demo.generate import PLANTED, ensure_sample_data, generate, generate_orders, planted
from bronze_assets_tests.conftest import Server

if TYPE_CHECKING:
    from psycopg2.extensions import connection as Connection

# How each fault is found in the source, said anew here.
FOUND = {
    ("products", "nonpositive_key"): "product_id <= 0",
    ("products", "nan"): "unit_price = 'NaN'",
    ("suppliers", "null_key"): "supplier_id is null",
    ("suppliers", "nonpositive_key"): "supplier_id <= 0",
    ("suppliers", "bad_contact_number"): r"contact_number !~ '^\+?[0-9 ().-]{6,20}$'",
    ("inventory", "negative_quantity"): "quantity_available < 0",
    ("orders", "future_date"): "order_date = '2099-01-01'",
    ("orders", "infinite_date"): "not isfinite(order_date)",
    ("order_details", "negative_quantity"): "quantity_ordered < 0",
    ("order_details", "nan"): "unit_price = 'NaN'",
    ("shipments", "infinite_date"): "not isfinite(shipment_date)",
    ("returns", "null_key"): "return_id is null",
    ("returns", "nonpositive_key"): "return_id <= 0",
    ("stock_levels", "null_key"): "stock_level_id is null",
    ("stock_levels", "negative_quantity"): "quantity_on_hand < 0",
    ("customers", "bad_email"): r"email !~ '^[^@\s]+@[^@\s]+\.[^@\s]+$'",
}
COPIES = ("exact_duplicate", "changed_duplicate")
QUARANTINED = ("null_key", "nonpositive_key", "nan", "infinite_date")


@pytest.fixture(scope="module")
def demo_data(server: Server) -> Iterator[Connection]:
    """The demo's whole sample data."""
    url = server.make_database()
    with postgres.connect(url) as connection:
        generate(connection)
        yield connection
    server.drop_database(url)


def test_ten_tables_with_at_least_two_hundred_thousand_rows(demo_data: Connection) -> None:
    for table, counts in PLANTED.items():
        assert scalar(demo_data, f"select count(*) from tests.{table}") == counts["rows"], table
    assert len(PLANTED) == 10
    assert sum(counts["rows"] for counts in PLANTED.values()) >= 200_000


def test_every_fault_is_there_as_often_as_stated(demo_data: Connection) -> None:
    for table, counts in PLANTED.items():
        for kind, count in counts.items():
            if kind == "rows" or kind in COPIES:
                continue
            where = FOUND.get((table, kind)) or f"{kind.removeprefix('null_')} is null"
            assert scalar(demo_data, f"select count(*) from tests.{table} where {where}") == count, (table, kind)


def test_duplicates_are_second_rows_of_a_key_the_same_or_not(demo_data: Connection) -> None:
    for table, counts in PLANTED.items():
        key = scalar(
            demo_data, f"select attname from pg_attribute where attrelid = 'tests.{table}'::regclass and attnum = 1"
        )
        same_key = f"select count(*) - count(distinct {key}) from tests.{table} where {key} is not null"
        same_row = f"select count(*) - count(distinct t::text) from tests.{table} t where {key} is not null"
        exact, changed = (counts.get(kind, 0) for kind in COPIES)
        assert scalar(demo_data, same_row) == exact, table
        assert scalar(demo_data, same_key) == exact + changed, table


def test_one_table_alone_has_more_than_two_percent_to_quarantine(demo_data: Connection) -> None:
    above = [t for t, c in PLANTED.items() if sum(c.get(kind, 0) for kind in QUARANTINED) > 0.02 * c["rows"]]

    assert above == ["returns"]


def test_one_column_alone_is_null_in_more_than_five_percent(demo_data: Connection) -> None:
    above = [(t, kind) for t, c in PLANTED.items() for kind, n in c.items() if "null_" in kind and n > 0.05 * c["rows"]]

    assert above == [("shipments", "null_carrier")]


def test_dates_lie_in_two_months_but_for_the_planted_ones(demo_data: Connection) -> None:
    for table, column in (("orders", "order_date"), ("shipments", "shipment_date"), ("returns", "return_date")):
        good = f"from tests.{table} where isfinite({column}) and {column} <> '2099-01-01'"
        assert scalar(demo_data, f"select min({column}) {good}") >= dt.date(2026, 1, 1)
        assert scalar(demo_data, f"select max({column}) {good}") <= dt.date(2026, 2, 28)


def test_names_are_not_ascii_only(demo_data: Connection) -> None:
    assert scalar(demo_data, "select count(*) from tests.customers where customer_name ~ '[^ -~]'") > 1000


def test_the_same_rows_come_out_in_every_database(server: Server) -> None:
    digests = []
    for _ in range(2):
        url = server.make_database()
        with postgres.connect(url) as connection:
            generate(connection, scale=0.05)
            digests.append([digest(connection, table) for table in PLANTED])
        server.drop_database(url)

    assert digests[0] == digests[1]


@pytest.mark.parametrize("scale", [0.001, 0.01, 0.3])
def test_a_scaled_source_keeps_every_kind_of_fault(source: Connection, scale: float) -> None:
    generate(source, scale=scale)

    for table, counts in planted(scale).items():
        assert scalar(source, f"select count(*) from tests.{table}") == counts["rows"]
        assert set(counts) == set(PLANTED[table])
        for kind, count in counts.items():
            if (where := FOUND.get((table, kind))) is not None:
                assert scalar(source, f"select count(*) from tests.{table} where {where}") == count >= 1, (table, kind)


def test_edits_survive_a_second_call_and_a_dropped_table_comes_back(source_url: str, source: Connection) -> None:
    said: list[str] = []
    assert len(ensure_sample_data(source_url, said.append)) == 10
    assert said == [f"Made {sum(c['rows'] for c in PLANTED.values()):,} sample rows in 10 tables of schema tests."]
    with source.cursor() as cursor:
        cursor.execute("update tests.products set category = 'Mine' where product_id = 100; drop table tests.returns")

    assert ensure_sample_data(source_url, said.append) == ["returns"]
    assert scalar(source, "select category from tests.products where product_id = 100") == "Mine"
    assert ensure_sample_data(source_url, said.append) == []
    assert len(said) == 2


def test_benchmark_orders_are_faultless_and_span_sixty_days(source: Connection) -> None:
    generate_orders(source, 6_000)

    assert scalar(source, "select count(*) from tests.orders") == 6_000
    assert scalar(source, "select count(distinct order_date) from tests.orders") == 60
    assert scalar(source, "select min(order_date) from tests.orders") == dt.date(2026, 1, 1)
    assert scalar(source, "select count(*) from tests.orders t where t.* is null or order_id <= 0") == 0
    assert (
        scalar(source, "select count(*) from tests.orders where num_nulls(customer_id, order_date, order_status) > 0")
        == 0
    )


def scalar(connection: Connection, query: str) -> Any:
    with connection.cursor() as cursor:
        cursor.execute(query)
        row = cursor.fetchone()
    assert row is not None
    return row[0]


def digest(connection: Connection, table: str) -> Any:
    return scalar(connection, f"select md5(string_agg(t::text, '|' order by t::text)) from tests.{table} t")
