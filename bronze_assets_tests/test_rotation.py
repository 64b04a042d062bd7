"""Rotating the master key: keys are wrapped anew, values stay, and an old version goes only when nothing needs it."""

from __future__ import annotations

import dataclasses
import datetime as dt
import os
from pathlib import Path

import dagster as dg
import pytest

from bronze_assets import __main__ as command_line
from bronze_assets.catalog import TABLES
from bronze_assets.definitions import build_definitions
from bronze_assets.errors import KeyRefused, LakeError
from bronze_assets.lakehouse import Lakehouse
from bronze_assets.privacy import keys as key_module
from bronze_assets.privacy.data_keys import DataKeys
from bronze_assets.privacy.keys import key_ring, rotated
from bronze_assets.privacy.rotation import retire, rotate
from bronze_assets.settings import Settings

SCHEMA = "inventory_bronze"
SUBJECTS = ["bz_customers", "bz_customers/123", "bz_suppliers/5"]


def now() -> dt.datetime:
    return dt.datetime.now(dt.UTC)


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    for name in [name for name in os.environ if name.startswith("BRONZE_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("BRONZE_HOME", str(tmp_path / "a home"))
    return Settings.from_environment()


@pytest.fixture
def lake(settings: Settings) -> Lakehouse:
    """A lake whose one schema with protected columns has keys under version 1."""
    lake = Lakehouse(settings.lake)
    data_keys(lake, settings).ensure(SUBJECTS)
    return lake


def data_keys(lake: Lakehouse, settings: Settings) -> DataKeys:
    return DataKeys(lake, key_ring(settings), SCHEMA, now)


def archive(settings: Settings, name: str, head: bytes) -> None:
    path = Path(settings.archive) / "raw" / "2026-11-21" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(head + bytes(100))


class TestRotating:
    def test_a_new_version_wraps_all_keys_which_stay_what_they_are(self, settings: Settings, lake: Lakehouse) -> None:
        before = data_keys(lake, settings).keys([*SUBJECTS, "*"])
        done = rotate(settings, lake, TABLES, now)
        assert (done.version, done.rewrapped, done.needed) == (2, {SCHEMA: 4}, {1: []})
        assert key_ring(settings).versions == (1, 2)
        after = data_keys(lake, settings)
        assert after.versions() == {2: 4}
        assert after.keys([*SUBJECTS, "*"]) == before
        assert done.lines() == [
            "Version 2 of the master key now wraps every key; wrapped anew: 4 keys of inventory_bronze.",
            "Nothing needs version 1: `python -m bronze_assets rotate-keys --retire 1`.",
        ]

    def test_one_that_was_killed_is_finished_without_another_version(self, settings: Settings, lake: Lakehouse) -> None:
        rotated(settings)
        assert rotate(settings, lake, TABLES, now).rewrapped == {SCHEMA: 4}
        assert key_ring(settings).versions == (1, 2)
        assert rotate(settings, lake, TABLES, now).version == 3

    def test_another_master_key_gets_no_version(self, settings: Settings, lake: Lakehouse) -> None:
        other = dataclasses.replace(
            settings, lake=settings.home / "other", master_key=f"file:{settings.home}/other.key"
        )
        key_ring(other)
        (settings.home / "other.key").replace(settings.home / "keys" / "master.key")
        with pytest.raises(KeyRefused, match="does not open"):
            rotate(settings, lake, TABLES, now)
        assert key_ring(settings).versions == (1,)

    def test_a_version_that_a_vault_has_made_is_taken_up_and_none_is_asked_for_in_vain(
        self, settings: Settings, lake: Lakehouse, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        one = key_ring(settings)
        two = rotated(settings)
        there = one
        monkeypatch.setattr(key_module, "key_ring", lambda _: there)
        vault = Settings.from_environment(
            {"BRONZE_HOME": str(settings.home), "BRONZE_MASTER_KEY": "azure-keyvault://vault/secret"}
        )
        with pytest.raises(KeyRefused, match="gets no new version from here"):
            rotate(vault, lake, TABLES, now)
        there = two
        assert rotate(vault, lake, TABLES, now).rewrapped == {SCHEMA: 4}


class TestRetiring:
    def test_a_version_that_nothing_needs_goes(self, settings: Settings, lake: Lakehouse) -> None:
        before = data_keys(lake, settings).keys([*SUBJECTS, "*"])
        rotate(settings, lake, TABLES, now)
        assert retire(settings, lake, TABLES, now, 1).versions == (2,)
        after = data_keys(lake, settings)
        assert after.keys([*SUBJECTS, "*"]) == before
        after.ensure(["bz_customers/124"])

    def test_one_that_wraps_keys_stays(self, settings: Settings, lake: Lakehouse) -> None:
        rotated(settings)
        with pytest.raises(KeyRefused, match=r"Version 1 .* is still needed: 4 keys of inventory_bronze\. Fix: run"):
            retire(settings, lake, TABLES, now, 1)
        assert key_ring(settings).versions == (1, 2)

    def test_one_that_archived_files_need_stays(self, settings: Settings, lake: Lakehouse) -> None:
        done = rotate(settings, lake, TABLES, now)
        archive(settings, "a.csv.enc", b"BZE1\x00\x01")
        archive(settings, "b.csv.enc", b"BZE1\x00\x02")
        archive(settings, "c.csv", b"BZE1\x00\x01")
        assert done.needed == {1: []}
        with pytest.raises(KeyRefused, match="is still needed: 1 archived files"):
            retire(settings, lake, TABLES, now, 1)
        assert key_ring(settings).versions == (1, 2)
        assert rotate(settings, lake, TABLES, now).needed == {1: ["1 archived files"], 2: ["1 archived files"]}

    @pytest.mark.parametrize("head", [b"id,name\n1,x", b"BZE1\x00", b""])
    def test_a_file_of_unknown_form_keeps_every_version(self, head: bytes, settings: Settings, lake: Lakehouse) -> None:
        rotate(settings, lake, TABLES, now)
        path = Path(settings.archive) / "a.csv.enc"
        path.parent.mkdir(parents=True)
        path.write_bytes(head)
        with pytest.raises(LakeError, match=r"a\.csv\.enc in the archive is not one of its encrypted files"):
            retire(settings, lake, TABLES, now, 1)
        assert key_ring(settings).versions == (1, 2)

    def test_the_first_version_stays_until_each_schema_has_its_root(self, settings: Settings) -> None:
        rotate(settings, Lakehouse(settings.lake), TABLES, now)
        with pytest.raises(KeyRefused, match="the first load of inventory_bronze"):
            retire(settings, Lakehouse(settings.lake), TABLES, now, 1)

    @pytest.mark.parametrize("version", [2, 9])
    def test_the_current_one_and_one_that_is_not_there_are_refused(
        self, version: int, settings: Settings, lake: Lakehouse
    ) -> None:
        rotate(settings, lake, TABLES, now)
        with pytest.raises(KeyRefused):
            retire(settings, lake, TABLES, now, version)
        assert key_ring(settings).versions == (1, 2)


def test_the_command_rotates_and_retires(
    settings: Settings, lake: Lakehouse, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command_line.main(["rotate-keys"]) == 0
    assert "Nothing needs version 1" in capsys.readouterr().out
    assert command_line.main(["rotate-keys", "--retire", "1"]) == 0
    assert capsys.readouterr().out == "Version 1 of the master key is removed.\n"
    assert command_line.main(["rotate-keys", "--retire", "2"]) == 1
    assert "still needed: 4 keys of inventory_bronze" in capsys.readouterr().err
    assert key_ring(settings).versions == (2,)


def test_the_job_rotates_and_retires(settings: Settings, lake: Lakehouse) -> None:
    job = build_definitions(settings, TABLES).resolve_job_def("rotate_keys")
    with dg.instance_for_test() as instance:

        def kept(config: dict[str, int], *, success: bool = True) -> str:
            done = job.execute_in_process(
                run_config={"ops": {"wrap_keys_anew": {"config": config}}}, instance=instance, raise_on_error=False
            )
            assert done.success is success
            return "\n".join(str(record) for record in instance.all_logs(done.run_id))

        assert "wrapped anew: 4 keys of inventory_bronze" in kept({})
        assert "Version 1 of the master key is removed" in kept({"retire": 1})
        assert "still needed: 4 keys" in kept({"retire": 2}, success=False)
    assert key_ring(settings).versions == (2,)
