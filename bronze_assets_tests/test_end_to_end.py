"""What a user does, as they do it: the command line, the real `dagster dev` on `workspace.yaml`, nothing replaced.

One story over one home: a load that is ended half way, another, one that finds nothing new, the UI with what it shows
and starts, and the home's removal.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import pytest

from bronze_assets.catalog import TABLES, inventory, manufacturing
from bronze_assets.demo import postgres
from bronze_assets.demo.files import drop_sample_files
from bronze_assets.processes import still_alive
from bronze_assets_tests import lake_reader
from bronze_assets_tests.conftest import CHECKOUT, Server
from bronze_assets_tests.dagster_client import (
    BACKFILL,
    BACKFILLED,
    MATERIALISE,
    Dagster,
    an_execution,
    answers,
    until,
)

if TYPE_CHECKING:
    from psycopg2.extensions import connection as Connection

PATIENCE = 300
NAMES = [table.name for table in TABLES]
CAPTURED = [table.name for table in inventory.TABLES if table.feed is not None]
FEEDS = [table.name for table in manufacturing.TABLES]

STATE = """{ assetNodes {
  assetKey { path } isExecutable partitionKeys
  partitionStats { numMaterialized }
  freshnessStatusInfo { freshnessStatus }
  assetChecksOrError { ... on AssetChecks { checks { name executionForLatestMaterialization { status evaluation {
    success severity metadataEntries { label } } } } } }
} }"""

FAILURES = """query ($id: ID!) { runOrError(runId: $id) { ... on Run { status eventConnection(limit: 1000) { events {
  __typename ... on ExecutionStepFailureEvent { error { message } failureMetadata { description } }
} } } } }"""


@dataclass
class Story:
    """The home of one user, and the commands they give."""

    home: Path
    url: str
    source: Connection
    jars: Path
    variables: dict[str, str] = field(init=False)

    def __post_init__(self) -> None:
        inherited = {k: v for k, v in os.environ.items() if not k.startswith(("BRONZE_", "DAGSTER_"))}
        self.variables = inherited | {
            "BRONZE_HOME": str(self.home),
            "BRONZE_SOURCE_URL": self.url,
            "BRONZE_JARS": str(self.jars),
            "BRONZE_DRIVER_MEMORY": "1g",
        }

    def start(self, *command: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-u", "-m", *command],
            cwd=CHECKOUT,
            env=self.variables,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            # A background process of a non-interactive shell ignores Ctrl-C, and so would its children.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        )

    def run(self, *command: str) -> tuple[int, str]:
        process = self.start(*command)
        output, _ = process.communicate(timeout=PATIENCE)
        return process.returncode, output

    def ask(self, query: str) -> list[tuple[Any, ...]]:
        with self.source.cursor() as cursor:
            cursor.execute(query)
            return cursor.fetchall() if cursor.description else []

    def rows(self, table: str, columns: str = "count(*)", where: str = "true") -> list[tuple[Any, ...]]:
        schema = "manufacturing_bronze" if table.removesuffix("_quarantine") in FEEDS else lake_reader.SCHEMA
        return lake_reader.tuples(self.home / "lake" / schema / table, columns, where=where)

    def report(self, output: str, *, files: bool = False) -> dict[str, list[int]]:
        """Table → its counts as the report shows them: six of the load, or seven of what files brought."""
        loads, _, arrived = output.partition("\nfrom files ")
        lines = re.findall(r"^(bz_\w+)((?: +[\d,]+){6,7}) ", arrived if files else loads, re.MULTILINE)
        return {table: [int(n.replace(",", "")) for n in counts.split()] for table, counts in lines}


@pytest.fixture(scope="module")
def story(
    server: Server, sample_template: str, jars: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Story]:
    url = server.make_database(sample_template)
    home = tmp_path_factory.mktemp("a user's home") / "bronze"
    with postgres.connect(url) as source:
        yield Story(home, url, source, jars)
    server.drop_database(url)


def offspring(process: subprocess.Popen[str]) -> list[psutil.Process]:
    return psutil.Process(process.pid).children(recursive=True)


@pytest.mark.slow
def test_what_a_user_does_from_the_first_load_to_the_last_folder(story: Story) -> None:
    home = story.home

    # A load that is ended half way.
    process = story.start("bronze_assets", "load")
    assert process.stdout is not None
    told = [""]
    while not re.match(r"bz_\w+: read ", told[-1]):
        told.append(process.stdout.readline())
        assert told[-1], told
    family = offspring(process)
    assert "java" in [child.name() for child in family]
    process.terminate()
    output, _ = process.communicate(timeout=PATIENCE)
    assert process.returncode == 130, output
    assert "Interrupted. The next load finishes or takes back what was begun." in output
    assert not still_alive(family, 0), "the JVM has ended when the command has"

    # The next one brings everything.
    code, output = story.run("bronze_assets", "load")
    assert code == 0, output
    first = story.report(output)
    assert list(first) == NAMES
    assert [first[name] for name in FEEDS] == [[0] * 6] * 3, "no file has arrived"
    for table in inventory.TABLES:
        read, loaded, quarantined, duplicates, unchanged, deleted = first[table.name]
        assert read == story.ask(f"select count(*) from {table.source}")[0][0]
        assert read == loaded + quarantined + duplicates + unchanged
        assert deleted == 0
        assert story.rows(table.name) == [(loaded + unchanged,)], "also what the ended load left"
        assert story.rows(table.quarantine_name, "coalesce(sum(rows_in_batch), 0)") == [(quarantined,)]
    assert sum(counts[0] for counts in first.values()) > 2000
    assert "make ui" in output
    assert story.url not in output
    assert ": bz_" not in output, "a table's name stands once in a line of progress"

    # And the one after that, nothing.
    code, output = story.run("bronze_assets", "load")
    assert code == 0, output
    assert "Nothing changed" in output
    for name, counts in story.report(output).items():
        assert counts[1] == 0
        if name in FEEDS:
            continue
        assert story.rows(name) == [(first[name][1] + first[name][4],)]

    # The UI shows it, and loads thirty past days in one run.
    days = [
        day
        for (day,) in story.ask(
            "select distinct order_date::text from tests.orders where order_date between '2026-01-05' and '2026-03-01'"
            " order by 1 limit 30"
        )
    ]
    story.ask(
        f"update tests.orders set order_status = 'moved' where order_id in"
        f" (select min(order_id) from tests.orders where order_date in ('{days[0]}', '{days[7]}') group by order_date)"
    )
    story.ask(f"insert into tests.orders values (900001, 1, '{days[29]}', 'late')")
    process = story.start("bronze_assets.demo", "ui")
    assert process.stdout is not None
    line = ""
    while "http://" not in line:
        line = process.stdout.readline()
        assert line
    dagster = Dagster(re.search(r"http://[\d.:]+", line).group(0))  # type: ignore[union-attr]
    try:
        until(lambda: answers(dagster), 120)
        see_what_was_loaded(dagster, first)
        with counted_jvms(process) as jvms:
            fail_a_past_window(dagster)
            backfill(dagster, [day for day in dagster_days(dagster) if day in days])
        # That of the warm engine, which the runs shared.
        assert set(jvms) == {1}
    finally:
        family = offspring(process)
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=60)
    _, alive = psutil.wait_procs(family, timeout=20)
    assert not alive
    new = story.rows("bz_orders", "order_id, order_status, batch_id", "order_status in ('moved', 'late')")
    assert sorted((row[2], row[1]) for row in new) == [
        (f"{days[0]}/1", "moved"),
        (f"{days[7]}/1", "moved"),
        (f"{days[29]}/1", "late"),
    ]
    audited = lake_reader.tuples(
        home / "lake" / lake_reader.SCHEMA / "bz_audit_log", "batch_id", where="created_by = 'bronze_assets/backfill'"
    )
    assert audited == [(f"{day}/1",) for day in days]

    # And at last nothing is left.
    code, output = story.run("bronze_assets.demo", "clean")
    assert code == 0, output
    assert not home.exists()


@pytest.mark.slow
def test_the_demo_loads_a_server_of_its_own_reports_and_leaves_nothing_running(story: Story, tmp_path: Path) -> None:
    demo = Story(tmp_path / "demo home", story.url, story.source, story.jars)
    planted = drop_sample_files(str(tmp_path / "again"), str(tmp_path / "none"), now=dt.datetime.now(dt.UTC))

    # The first time: everything, then what applications change meanwhile.
    output = run_and_watch(demo)
    assert "BRONZE_SOURCE_URL and BRONZE_CAPTURE are not used here" in output
    report, files = demo.report(output), demo.report(output, files=True)
    assert list(report) == NAMES
    assert sum(report[table.name][0] for table in inventory.TABLES) == 240_633
    for name, counts in report.items():
        assert counts[0] == sum(counts[1:5])
        changed = 10 if name in CAPTURED else 0
        assert demo.rows(name) == [(counts[1] + changed,)]
    see_what_files_brought(demo, files, planted)
    # Six rows updated, three inserted and one deleted in each table: read, loaded, and deleted, which is counted apart.
    for name in CAPTURED:
        assert files[name][2:5] == [9, 9, 1]
        kinds = demo.rows(name, "record_status, count(*)", "file_name is not null group by 1")
        assert kinds == [("ACTIVE", 9), ("DELETED", 1)]

    # The second time: no snapshot of a captured table, no file twice, only what has changed since.
    output = run_and_watch(demo)
    again = demo.report(output)
    assert {name: again[name][1] for name in NAMES} == dict.fromkeys(NAMES, 0)
    assert {name: again[name][0] for name in (*CAPTURED, *FEEDS)} == dict.fromkeys((*CAPTURED, *FEEDS), 0)
    files = demo.report(output, files=True)
    assert [files[name][2:5] for name in CAPTURED] == [[9, 9, 1]] * 8
    assert not set(files) & set(FEEDS)
    for name in CAPTURED:
        assert demo.rows(name) == [(report[name][1] + 20,)]
    batches = demo.rows("bz_batches", "table_name, scope_kind, count(*)", "event = 'done' group by 1, 2")
    assert [row for row in batches if row[0] in CAPTURED] == sorted(
        [(name, "files", 2) for name in CAPTURED] + [(name, "full", 1) for name in CAPTURED], key=repr
    )
    # The story's own server was left alone.
    assert story.ask("select 1") == [(1,)]


def run_and_watch(demo: Story) -> str:
    """What `make demo` says; it must end well and leave no process behind."""
    process = demo.start("bronze_assets.demo", "demo")
    family: dict[int, psutil.Process] = {}
    lines = []
    assert process.stdout is not None
    for line in process.stdout:
        lines.append(line)
        family |= {child.pid: child for child in offspring(process)}
    assert process.wait(PATIENCE) == 0, lines
    assert not still_alive(list(family.values()), 20)
    return "".join(lines)


@contextlib.contextmanager
def counted_jvms(process: subprocess.Popen[str]) -> Iterator[list[int]]:
    """How many JVMs a process has below it, looked at again and again."""
    seen: list[int] = []
    done = threading.Event()

    def look() -> None:
        while not done.wait(0.2):
            # A process that ends while it is looked at was none of them.
            with contextlib.suppress(psutil.NoSuchProcess):
                java = [child.cmdline() for child in offspring(process) if child.name() == "java"]
                seen.append(sum("-version" not in command for command in java))

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield seen
    finally:
        done.set()
        thread.join()


def see_what_files_brought(demo: Story, files: dict[str, list[int]], planted: Mapping[str, Mapping[str, int]]) -> None:
    """Every planted file is in its table, or it stands in the quarantine and stays where it lay."""
    for name, counts in planted.items():
        table = f"bz_{name}"
        assert files[table][:2] == [counts["files"], counts["bad_files"]]
        assert files[table][2] == counts["rows"]
        assert files[table][3] == counts["loaded"]
        assert demo.rows(table) == [(counts["loaded"],)]
        assert demo.rows(table, "count(distinct file_name)") == [(counts["files"] - counts["bad_files"],)]
        folder = f"raw/{name.replace('_', '-')}"
        left = [path for path in (demo.home / "landing" / folder).rglob("*") if path.is_file()]
        archived = [path for path in (demo.home / "archive" / folder).rglob("*") if path.is_file()]
        assert len(left) == counts["bad_files"]
        assert len(archived) == counts["files"] - counts["bad_files"]


def see_what_was_loaded(dagster: Dagster, first: dict[str, list[int]]) -> None:
    """Checks, partitions and freshness of all tables are to be read over GraphQL."""
    nodes = {node["assetKey"]["path"][-1]: node for node in dagster.ask(STATE)["assetNodes"] if node["isExecutable"]}
    assert sorted(nodes) == sorted(NAMES)
    for name, node in nodes.items():
        assert node["partitionStats"]["numMaterialized"] == 1
        assert node["freshnessStatusInfo"]["freshnessStatus"] in ("HEALTHY", "UNKNOWN"), node
        answers_ = {
            check["name"]: check["executionForLatestMaterialization"] for check in node["assetChecksOrError"]["checks"]
        }
        assert {"schema", "conservation", "key_unique", "null_share", "error_rate"} <= set(answers_)
        assert answers_["conservation"]["status"] == "SUCCEEDED"
        duplicates = answers_["key_unique"]["evaluation"]
        assert duplicates["success"] is (first[name][3] == 0)
        assert {"count", "share"} <= {entry["label"] for entry in duplicates["metadataEntries"]}

    def fresh() -> bool:
        nodes = [node for node in dagster.ask(STATE)["assetNodes"] if node["isExecutable"]]
        return {node["freshnessStatusInfo"]["freshnessStatus"] for node in nodes} == {"HEALTHY"}

    until(fresh, 120)


def fail_a_past_window(dagster: Dagster) -> None:
    launched = dagster.ask(MATERIALISE, parameters=an_execution("bz_products", "2026-01-15", "bronze_assets"))
    run_id = launched["launchPipelineExecution"]["run"]["runId"]

    def ended() -> Any:
        run = dagster.ask(FAILURES, id=run_id)["runOrError"]
        return run if run["status"] in ("SUCCESS", "FAILURE") else None

    run = until(ended, 120)
    assert run["status"] == "FAILURE"
    failures = [
        event for event in run["eventConnection"]["events"] if event["__typename"] == "ExecutionStepFailureEvent"
    ]
    assert len(failures) == 1, "not tried again"
    assert "bz_products: partition 2026-01-15 has passed" in str(failures[0])
    assert "materialise the current partition" in str(failures[0])


def dagster_days(dagster: Dagster) -> list[str]:
    nodes = {node["assetKey"]["path"][-1]: node for node in dagster.ask(STATE)["assetNodes"]}
    days: list[str] = nodes["bz_orders"]["partitionKeys"]
    return days


def backfill(dagster: Dagster, days: list[str]) -> None:
    assert len(days) == 30
    parameters = {"assetSelection": [{"path": ["inventory_bronze", "bz_orders"]}], "partitionNames": days}
    started = dagster.ask(BACKFILL, parameters=parameters)["launchPartitionBackfill"]
    assert "backfillId" in started, started

    def ended() -> Any:
        found = dagster.ask(BACKFILLED, id=started["backfillId"])["partitionBackfillOrError"]
        return found if found["status"] not in ("REQUESTED", "FAILING", "CANCELING") else None

    found = until(ended, PATIENCE)
    assert [run["status"] for run in found["runs"]] == ["SUCCESS"], "thirty days are one run"
    assert found["assetBackfillData"]["assetBackfillStatuses"] == [{"numPartitionsMaterialized": 30}]
