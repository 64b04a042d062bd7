"""The section `[alerts]` of a settings file: where messages go, and which go where."""

from __future__ import annotations

import enum
import re
from collections.abc import Mapping, Sequence
from typing import Annotated, Final

from pydantic import BaseModel, ConfigDict, Field, model_validator

from bronze_assets.databricks_settings import Fault, faulty, matching
from bronze_assets.secret_places import SECRET_PLACE

LOG: Final = "log"
"""The channel that is a file of the home, `<home>/alerts.log`."""
_PLACE = re.compile(f"{LOG}|{SECRET_PLACE.pattern}")
_NAME = re.compile(r"[A-Za-z][\w-]*")


class Level(enum.StrEnum):
    """How much an alert matters, and so where it goes."""

    INFO = "info"
    WARNING = "warning"
    CRITICAL = "critical"

    @property
    def rank(self) -> int:
        """0 for the least."""
        return list(Level).index(self)


Where = Annotated[
    str,
    matching(
        _PLACE,
        "is neither log nor a place of a secret",
        "put the apprise URL (slack://…, mailtos://…, jsons://…) into a file, a secret scope or a vault, and write"
        " where: file:/<path>, databricks-secret://<scope>/<key> or azure-keyvault://<vault>/<secret>; or write log.",
    ),
]


class Alerts(BaseModel):
    """Channels, and the levels that go to each."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, hide_input_in_errors=True)

    channels: Annotated[
        dict[str, Where],
        Field(
            description="Name → where its apprise URL is kept (Slack, e-mail, webhook, …), or `log` for the file"
            " `<home>/alerts.log`.",
            examples=['{ log = "log", team = "databricks-secret://bronze/slack" }'],
        ),
    ]
    info: Annotated[
        tuple[str, ...],
        Field(strict=False, description="Channels that hear what is only for information.", examples=['["log"]']),
    ] = ()
    warning: Annotated[
        tuple[str, ...], Field(strict=False, description="Channels that hear warnings.", examples=['["log", "team"]'])
    ] = ()
    critical: Annotated[
        tuple[str, ...],
        Field(strict=False, description="Channels that hear what is critical.", examples=['["log", "team"]']),
    ] = ()
    remind_critical_hours: Annotated[
        float,
        Field(
            gt=0,
            strict=False,
            description="Hours after which something critical that stands is told again.",
            examples=["4"],
            json_schema_extra={"default": "`4`"},
        ),
    ] = 4.0
    remind_warning_hours: Annotated[
        float,
        Field(
            gt=0,
            strict=False,
            description="The same for warnings. What is for information is told once.",
            examples=["24"],
            json_schema_extra={"default": "`24`"},
        ),
    ] = 24.0
    ui_url: Annotated[
        str,
        matching(re.compile(r"https?://[^\s@]+"), "is no address", 'write for example "https://dagster.example.org".'),
        Field(
            description="Address of Dagster's UI, for the links in messages.",
            examples=['"https://dagster.example.org"'],
            json_schema_extra={"default": "`http://127.0.0.1:3000`"},
        ),
    ] = "http://127.0.0.1:3000"

    @model_validator(mode="after")
    def _makes_sense(self) -> Alerts:
        faults = [
            Fault(f"channels.{name}", "is no name", "use letters, digits, - and _.")
            for name in self.channels
            if not _NAME.fullmatch(name)
        ]
        for level in Level:
            unknown = [name for name in self.routes[level] if name not in self.channels]
            if unknown:
                known = ", ".join(self.channels) or "none"
                faults.append(
                    Fault(level.value, f"names {', '.join(map(repr, unknown))}, which is no channel", f"use {known}.")
                )
        if faults:
            raise faulty(*faults)
        return self

    @property
    def routes(self) -> Mapping[Level, Sequence[str]]:
        """Level → the channels that hear it."""
        return {Level.INFO: self.info, Level.WARNING: self.warning, Level.CRITICAL: self.critical}

    @classmethod
    def to(cls, places: Sequence[str]) -> Alerts:
        """All levels to each of these places.

        Raises:
            ValueError: one of them is none.
        """
        channels = {LOG if place == LOG else f"channel-{number}": place for number, place in enumerate(places, 1)}
        names = tuple(channels)
        return cls(channels=channels, info=names, warning=names, critical=names)
