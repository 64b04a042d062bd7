"""What the command lines refuse, and what `make clean` leaves alone. Whole walks: `test_end_to_end`."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from bronze_assets import __main__ as command_line
from bronze_assets import warm_engine
from bronze_assets.demo import __main__ as demo_line
from bronze_assets.demo import home as demo_home
from bronze_assets.privacy.keys import key_ring
from bronze_assets.settings import Settings
from bronze_assets.terminal import load_and_report


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "home"
    for name in [name for name in os.environ if name.startswith("BRONZE_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("BRONZE_HOME", str(folder))
    return folder


@pytest.mark.parametrize("environment", ["dev", "qa", "prod"])
def test_only_the_local_environment_loads_from_here(
    environment: str, home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("BRONZE_ENV", environment)
    monkeypatch.setenv("BRONZE_MASTER_KEY", "databricks-secret://bronze/master")

    assert command_line.main(["load"]) == 1
    assert demo_line.main(["demo"]) == 1
    assert demo_line.main(["ui"]) == 1

    said = capsys.readouterr().err.splitlines()
    assert (
        said
        == [
            f"BRONZE_ENV={environment} does not load by a command of this machine. Fix: start its jobs in Dagster's UI;"
            " or unset BRONZE_ENV to load here."
        ]
        * 3
    )
    assert not home.exists()


def test_the_ui_has_the_settings_of_a_file_that_was_named_from_elsewhere(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []

    @contextlib.contextmanager
    def child(*_: object) -> Iterator[SimpleNamespace]:
        monkeypatch.chdir("/")
        seen.append(Settings.from_environment())
        yield SimpleNamespace(wait=lambda: 0)

    (tmp_path / "local.toml").write_text('environment = "local"\nrange_rows = 5\n')
    monkeypatch.chdir(tmp_path)
    # What the command sets is taken back with what the test sets.
    for name in ("DAGSTER_HOME", "BRONZE_LAKE", "BRONZE_LANDING", "BRONZE_ARCHIVE"):
        monkeypatch.setenv(name, "")
    monkeypatch.setenv("BRONZE_SETTINGS", "local.toml")
    monkeypatch.setattr(demo_line, "_dagster", child)
    monkeypatch.setattr(warm_engine, "kept_running", lambda _: contextlib.nullcontext())

    assert demo_line.main(["ui"]) == 0

    (settings,) = seen
    assert (settings.range_rows, settings.home) == (5, home)


def test_clean_removes_what_was_made(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    demo_home.mark(home)
    (home / "lake" / "inventory_bronze").mkdir(parents=True)
    key_ring(Settings.from_environment())

    assert demo_line.main(["clean"]) == 0

    assert not home.exists()
    assert demo_line.main(["clean"]) == 0
    assert "nothing to remove" in capsys.readouterr().out


def test_clean_removes_nothing_where_somebody_elses_things_lie_and_names_them(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    demo_home.mark(home)
    (home / "thesis.txt").write_text("years of work")

    assert demo_line.main(["clean"]) == 1

    assert (home / "thesis.txt").read_text() == "years of work"
    assert "(thesis.txt)" in capsys.readouterr().err


def test_clean_removes_no_folder_that_is_not_marked(home: Path) -> None:
    (home / "lake").mkdir(parents=True)

    assert demo_line.main(["clean"]) == 1
    assert (home / "lake").is_dir()


def test_a_folder_with_other_things_in_it_is_not_marked(home: Path) -> None:
    home.mkdir()
    (home / "thesis.txt").touch()
    demo_home.mark(home)
    assert not demo_home.is_ours(home)
    (home / "thesis.txt").unlink()
    assert not demo_home.is_ours(home)


def test_a_home_that_cannot_be_made_is_named(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    home.parent.joinpath("file").touch()
    monkeypatch.setenv("BRONZE_HOME", str(home.parent / "file" / "below"))

    assert command_line.main(["load"]) == 1

    assert "file/below cannot be written" in capsys.readouterr().err


def test_a_table_that_is_not_there_is_named(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command_line.main(["show", "bz_orders"]) == 1
    assert "bz_orders: there is no table at" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("variables", "said"),
    [
        ({}, "make ui"),
        ({"BRONZE_LANDING": "/drop here"}, "BRONZE_LANDING='/drop here' make ui"),
        (
            {"BRONZE_LANDING": "s3://in/box", "BRONZE_ARCHIVE": "s3://old"},
            "BRONZE_LANDING=s3://in/box BRONZE_ARCHIVE=s3://old make ui",
        ),
        ({"BRONZE_LAKE": "/lake"}, "BRONZE_LAKE=/lake make ui"),
    ],
)
def test_the_report_names_every_folder_that_the_next_command_must_share(
    variables: dict[str, str],
    said: str,
    home: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("bronze_assets.orchestration.launch.load_current", lambda *_: [])
    monkeypatch.setattr("bronze_assets.orchestration.launch.report_kpis", lambda *_: [])
    settings = Settings.from_environment({"BRONZE_HOME": str(home), **variables})

    assert load_and_report(settings, began=time.monotonic()) == 0

    (line,) = re.findall(r"^The UI +(.*)$", capsys.readouterr().out, re.MULTILINE)
    assert line == f"BRONZE_HOME={home} {said}"


def test_a_load_ends_with_the_kpi_pages_and_no_report_fails_it(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("bronze_assets.orchestration.launch.load_current", lambda *_: [])
    settings = Settings.from_environment({"BRONZE_HOME": str(home)})

    assert load_and_report(settings, began=time.monotonic()) == 0

    (line,) = re.findall(r"^The KPIs +(.*)$", capsys.readouterr().out, re.MULTILINE)
    assert line == str(home / "reports" / "kpi_inventory_bronze.html")
    assert Path(line).is_file()

    shutil.rmtree(home / "reports")
    (home / "reports").write_text("a file where the folder belongs")

    assert load_and_report(settings, began=time.monotonic()) == 0

    said = capsys.readouterr().out
    assert "reports cannot be written" in said
    assert "The KPIs" not in said
    assert "The UI" in said
