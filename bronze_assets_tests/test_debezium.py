"""What Debezium's engine makes of the same changes, as the oracle for the capture's lines."""

from __future__ import annotations

import contextlib
import itertools
import json
import random
import re
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

import psutil
import pytest

from bronze_assets.capture import Capture
from bronze_assets.processes import kill_after
from bronze_assets_tests.conftest import CHECKOUT
from bronze_assets_tests.test_capture import CREATE, LONG, ORDERS, PRODUCTS, Landed, ask, execute

if TYPE_CHECKING:
    from psycopg2.extensions import connection as Connection

DEBEZIUM = "3.3.1.Final"
PATIENCE = 120
POM = f"""
<project xmlns="http://maven.apache.org/POM/4.0.0">
  <modelVersion>4.0.0</modelVersion>
  <groupId>bronze-assets</groupId><artifactId>oracle</artifactId><version>1</version><packaging>pom</packaging>
  <dependencies>
    <dependency>
      <groupId>io.debezium</groupId><artifactId>debezium-connector-postgres</artifactId><version>{DEBEZIUM}</version>
    </dependency>
    <dependency>
      <groupId>io.debezium</groupId><artifactId>debezium-embedded</artifactId><version>{DEBEZIUM}</version>
    </dependency>
  </dependencies>
</project>
"""
DOCUMENTED = CHECKOUT / "docs" / "capture.md"
CHANGES = 500
ODD = """'täg "\\ \u2028 €'"""


@pytest.fixture(scope="module")
def debezium_jars() -> Path:
    """A folder with Debezium's engine and connector, downloaded once for all test runs of this checkout."""
    missing = [tool for tool in ("mvn", "javac") if shutil.which(tool) is None]
    if missing:
        pytest.skip(f"Debezium's engine cannot be fetched and compiled without {' and '.join(missing)}")
    folder = CHECKOUT / ".bronze" / f"debezium-{DEBEZIUM}"
    if not folder.is_dir():
        making = folder.with_suffix(".making")
        shutil.rmtree(making, ignore_errors=True)
        making.mkdir(parents=True)
        (making / "pom.xml").write_text(POM, encoding="utf-8")
        fetched = subprocess.run(
            ["mvn", "-q", "-B", "dependency:copy-dependencies", f"-DoutputDirectory={making}"],
            cwd=making,
            capture_output=True,
            text=True,
        )
        if fetched.returncode != 0:
            pytest.skip("Maven could not fetch Debezium's engine (is there a network?)")
        making.rename(folder)
    return folder


def documented_settings() -> dict[str, str]:
    """The connector's settings as the documentation gives them."""
    text = DOCUMENTED.read_text(encoding="utf-8")
    block = text.split("```properties\n")[1].split("```")[0]
    return dict(line.split("=", 1) for line in block.splitlines())


@contextlib.contextmanager
def debezium(jars: Path, folder: Path, url: str, publication: str) -> Iterator[Path]:
    """Runs the engine from a slot of its own on; gives the file that its records go to."""
    parts = urlsplit(url)
    properties: Mapping[str, str] = {
        **documented_settings(),
        "name": "oracle",
        "connector.class": "io.debezium.connector.postgresql.PostgresConnector",
        "offset.storage": "org.apache.kafka.connect.storage.FileOffsetBackingStore",
        "offset.storage.file.filename": str(folder / "offsets"),
        "offset.flush.interval.ms": "1000",
        "topic.prefix": "oracle",
        "database.hostname": str(parts.hostname),
        "database.port": str(parts.port),
        "database.user": unquote(parts.username or ""),
        "database.password": unquote(parts.password or ""),
        "database.dbname": parts.path[1:],
        "publication.autocreate.mode": "disabled",
        "publication.name": publication,
        "slot.name": "oracle",
        "table.include.list": "tests.products,tests.orders",
        "snapshot.mode": "no_data",
        "converter.schemas.enable": "false",
    }
    # A properties file escapes with backslashes; none of these values holds one.
    (folder / "oracle.properties").write_text("".join(f"{k}={v}\n" for k, v in properties.items()), encoding="utf-8")
    records, stop, log = folder / "records", folder / "stop", folder / "log"
    records.touch()
    with log.open("w") as output:
        process = subprocess.Popen(
            [
                *("java", "-cp", f"{jars}/*", str(Path(__file__).with_name("DebeziumOracle.java"))),
                *map(str, (folder / "oracle.properties", records, stop)),
            ],
            stdout=output,
            stderr=subprocess.STDOUT,
        )
        try:
            yield records
        finally:
            stop.touch()
            kill_after([psutil.Process(process.pid)], 20)
            process.wait()


def wait_for(what: Callable[[], object], folder: Path) -> None:
    deadline = time.monotonic() + PATIENCE
    while not what():
        assert time.monotonic() < deadline, (folder / "log").read_text(encoding="utf-8")[-4000:]
        time.sleep(0.1)


def workload(connection: Connection) -> None:
    """About 500 changes of every kind, and some that are taken back."""
    chance = random.Random(20261121)
    execute(connection, "alter table tests.orders replica identity full")
    done = 0
    while done < CHANGES:
        key, price = chance.randrange(40), chance.choice(("1.50", "'NaN'", "0"))
        statements = [
            f"insert into tests.products values ({key}, {ODD}, null, {price})"
            " on conflict (product_id) do update set category = 'again', unit_price = products.unit_price + 1",
            f"update tests.products set product_name = repeat('x', {chance.randrange(100)}) where product_id = {key}",
            f"update tests.products set product_id = product_id + 100 where product_id = {key} and not exists"
            f" (select from tests.products where product_id = {key + 100})",
            f"delete from tests.products where product_id in ({key}, {key + 100})",
            f"insert into tests.orders select {key}, {chance.randrange(9)}, date '2026-01-01' + {key}, {LONG}"
            " on conflict (order_id) do update set customer_id = excluded.customer_id",
            f"update tests.orders set order_id = order_id + 100 where order_id = {key} and not exists"
            f" (select from tests.orders where order_id = {key + 100})",
            f"delete from tests.orders where order_id in ({key}, {key + 100})",
        ]
        execute(connection, "begin")
        with connection.cursor() as cursor:
            for statement in chance.choices(statements, k=chance.choice((1, 1, 3, 10))):
                cursor.execute(statement)
                done += max(cursor.rowcount, 0)
        execute(connection, "rollback" if chance.random() < 0.1 else "commit")


def as_ours(record: dict[str, Any], key: str) -> dict[str, Any]:
    """A flattened record as the capture writes it: the known differences, and no others."""
    row = {name: written_as_ours(value) for name, value in record.items()}
    if row["__op"] == "d":
        # With REPLICA IDENTITY FULL, Debezium tells the whole row that was deleted.
        row = {name: value if name.startswith("__") or name == key else None for name, value in row.items()}
    return row


def written_as_ours(value: Any) -> Any:
    if value == "NAN":
        return "NaN"
    if isinstance(value, str) and re.fullmatch(r"\d{4}-\d\d-\d\d(T[\d:.]+)?Z", value):
        return value[:-1].replace("T", " ")
    return value


@pytest.mark.nightly
def test_the_lines_equal_debeziums_flattened_records(
    source: Connection, source_url: str, tmp_path: Path, debezium_jars: Path
) -> None:
    execute(source, CREATE)
    execute(
        source,
        "alter table tests.products add made_at timestamptz(3) default '2026-02-03 01:02:03.456+02',"
        " add noted_at timestamp default '2026-02-03 01:02:03.456789', add good bool default true, add size int8"
        " default 9007199254740993",
    )
    landed = Landed(tmp_path / "landing")
    capture = Capture(source_url, str(landed.folder), [PRODUCTS, ORDERS])
    capture.drain()
    with debezium(debezium_jars, tmp_path, source_url, capture.publication) as records:
        # It may stand by its slot for a while before it reads.
        numbers = itertools.count(1000)

        def is_heard() -> bool:
            execute(source, f"insert into tests.products values ({next(numbers)})")
            return records.stat().st_size > 0

        wait_for(is_heard, tmp_path)
        ((begun,),) = ask(source, "select (pg_current_wal_insert_lsn() - '0/0')::bigint")
        workload(source)
        execute(source, "insert into tests.products values (-1)")
        wait_for(lambda: '"product_id":-1,' in records.read_text(encoding="utf-8"), tmp_path)
    capture.drain()
    execute(source, "select pg_drop_replication_slot('oracle')")

    theirs: dict[str, list[dict[str, Any]]] = {"tests.products": [], "tests.orders": []}
    for told in records.read_text(encoding="utf-8").split("\n")[:-1]:
        topic, _, value = told.partition("\t")
        record = json.loads(value)
        if record["__source_lsn"] >= begun:
            theirs[topic.removeprefix("oracle.")].append(record)
    for table in (PRODUCTS, ORDERS):
        lines = [line for line in landed.lines(table) if line["__source_lsn"] >= begun]
        for line in lines:
            for name in ("__commit_lsn", "__seq", "__source_epoch"):
                del line[name]
            if line.get("made_at"):
                line["made_at"] = line["made_at"].removesuffix("+00")
        assert len(lines) > CHANGES / 4
        assert {line["__op"] for line in lines} == {"c", "u", "d"}
        assert lines == [as_ours(record, table.key[0].name) for record in theirs[table.source.lower()]]
