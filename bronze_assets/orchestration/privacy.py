"""The jobs with which a person's values are revealed, and with which keys are rotated.

Dagster keeps every log and every config of a run, so neither ever holds a value or a key.
"""

# No postponed annotations here: Dagster reads those of an op's function as objects.

import datetime as dt
from collections.abc import Sequence

import dagster as dg
from pydantic import Field

from bronze_assets.errors import PrivacyRefused
from bronze_assets.lakehouse import open_lake
from bronze_assets.orchestration.runs import without_values
from bronze_assets.privacy import reveal, rotation
from bronze_assets.privacy.keys import existing_ring
from bronze_assets.settings import Settings
from bronze_assets.table import BronzeTable


class RevealConfig(dg.Config):
    """Whose values, why, and who asks."""

    table: str = Field(description="Name of the bronze table.")
    key: str = Field(description="Key of the row; several values separated by ', '.")
    purpose: str = Field(description="Why, for the access log.")
    by: str = Field(description="Who asks, for the access log.")
    columns: list[str] = Field(default=[], description="Only these columns; all declared ones when left out.")


class RotateConfig(dg.Config):
    """Whether an old version is to go instead."""

    retire: int = Field(default=0, description="Remove this old version, if nothing needs it, instead of rotating.")


def privacy_jobs(settings: Settings, tables: Sequence[BronzeTable]) -> list[dg.JobDefinition]:
    """The jobs `reveal` and `rotate_keys`; none where no table holds personal data."""
    personal = {table.name: table for table in tables if table.has_personal_data}
    return [_reveal_job(settings, personal), _rotate_job(settings, tables)] if personal else []


def _reveal_job(settings: Settings, tables: dict[str, BronzeTable]) -> dg.JobDefinition:
    @dg.op(description="Writes a person's values into a file that only the platform's user can read.")
    def reveal_values(context: dg.OpExecutionContext, config: RevealConfig) -> None:
        def answer() -> str:
            reveal.remove_old_answers(settings.home, _now())
            table = tables.get(config.table)
            if table is None:
                raise PrivacyRefused(
                    f"{config.table!r} is no table with personal data.", f"use one of {', '.join(tables)}."
                )
            rows = reveal.reveal(
                open_lake(settings),
                lambda: existing_ring(settings),
                _now,
                table,
                config.key,
                purpose=config.purpose,
                who=config.by,
                columns=config.columns,
                run_id=context.run_id,
            )
            path = reveal.write_answer(settings.home, rows, context.run_id)
            return f"{len(rows)} row versions are in {path}; remove the file when you have read it."

        context.log.info(without_values(answer))

    @dg.job(
        name="reveal", description="Reveals a person's values, with a purpose.", executor_def=dg.in_process_executor
    )
    def reveal_job() -> None:
        reveal_values()

    return reveal_job


def _rotate_job(settings: Settings, tables: Sequence[BronzeTable]) -> dg.JobDefinition:
    @dg.op(description="Wraps all keys with a new version of the master key, or removes an old one.")
    def wrap_keys_anew(context: dg.OpExecutionContext, config: RotateConfig) -> None:
        def done() -> str:
            lake = open_lake(settings)
            if config.retire:
                rotation.retire(settings, lake, tables, _now, config.retire)
                return f"Version {config.retire} of the master key is removed."
            return "\n".join(rotation.rotate(settings, lake, tables, _now).lines())

        for line in without_values(done).splitlines():
            context.log.info(line)

    @dg.job(description="Wraps all keys with a new version of the master key.", executor_def=dg.in_process_executor)
    def rotate_keys() -> None:
        wrap_keys_anew()

    return rotate_keys


def _now() -> dt.datetime:
    return dt.datetime.now(dt.UTC)
