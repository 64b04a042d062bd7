"""The settings file of one environment, TOML, named by `BRONZE_SETTINGS`.

What is in it stands for the variables of the process, which override it (`settings.Settings.from_environment`). It is
committed and read by many, so a secret in it is refused: it holds places of secrets.
"""

from __future__ import annotations

import datetime as dt
import difflib
import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Final, get_args, get_origin

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic.fields import FieldInfo

from bronze_assets.alert_settings import Alerts
from bronze_assets.databricks_settings import Databricks, Fault, faulty, matching
from bronze_assets.errors import SettingsError
from bronze_assets.secret_places import SECRET_PLACE
from bronze_assets.settings import (
    CATALOG_NAME,
    WAREHOUSE_ID,
    CaptureMode,
    Discovery,
    Environment,
    is_time_zone,
)

VARIABLES: Final[Mapping[str, str]] = {
    "environment": "BRONZE_ENV",
    "catalog": "BRONZE_CATALOG",
    "landing": "BRONZE_LANDING",
    "archive": "BRONZE_ARCHIVE",
    "copies": "BRONZE_COPY",
    "cold": "BRONZE_COLD",
    "source_url": "BRONZE_SOURCE_URL",
    "master_key": "BRONZE_MASTER_KEY",
    "sql_warehouse": "BRONZE_SQL_WAREHOUSE",
    "platform_principals": "BRONZE_PLATFORM_PRINCIPALS",
    "capture": "BRONZE_CAPTURE",
    "discovery": "BRONZE_DISCOVERY",
    "start_date": "BRONZE_START_DATE",
    "business_time_zone": "BRONZE_TIME_ZONE",
    "read_connections": "BRONZE_READ_CONNECTIONS",
    "range_rows": "BRONZE_RANGE_ROWS",
    "lease_seconds": "BRONZE_LEASE_SECONDS",
}
"""Key of the file → the variable that overrides it. `databricks.host` is overridden by `DATABRICKS_HOST`."""

_PLACES: Final = "databricks-secret://<scope>/<key>, azure-keyvault://<vault>/<secret> or file:/<path>"
_SECRET_WORDS: Final = r"(?i)(^|[._-])(token|pat|password|passwd|pwd|secret|(access|api|account|shared)[._-]?key|sas)"
_SECRET_NAME = re.compile(f"{_SECRET_WORDS}$")
# Spark's names go on: fs.azure.account.key.<account>.dfs.core.windows.net.
_SECRET_CONF = re.compile(rf"{_SECRET_WORDS}($|\.)")
# Of Databricks: personal access tokens, and secrets of service principals.
_SECRET_VALUE = re.compile(r"\bdapi[0-9A-Za-z_-]{8,}|\bdose[0-9a-f]{16,}|://[^/\s:@]*:[^/\s@]+@|(?i:[?&;]password=)")
_SECRET_REFERENCE = re.compile(r"\{\{secrets/[^/{}\s]+/[^/{}\s]+\}\}")
_PLACEHOLDER: Final = "…"

_Place = Annotated[
    str,
    # What was given is not shown: it may be the secret.
    matching(SECRET_PLACE, "does not name a place of a secret", f"write {_PLACES}, never the secret itself."),
]
_Positive = Annotated[int, Field(gt=0)]


def _time_zone(name: str) -> str:
    if not is_time_zone(name):
        raise faulty(Fault("", f"{name!r} is not a time zone", 'write an IANA name such as "Europe/Berlin".'))
    return name


def _principals(names: tuple[str, ...]) -> tuple[str, ...]:
    if odd := [name for name in names if not re.fullmatch(r"[^\s,]+", name)]:
        raise faulty(
            Fault("", f"{', '.join(map(repr, odd))} is no application id", "write one id in each pair of quotes.")
        )
    return names


class EnvironmentFile(BaseModel):
    """The keys of the file. One that is left out has the default of its variable."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, hide_input_in_errors=True)

    environment: Annotated[
        Environment,
        Field(
            strict=False,
            description="Whose file this is: `local`, `dev`, `qa` or `prod`. Must be what `BRONZE_ENV` says.",
            examples=['"dev"'],
        ),
    ]
    catalog: Annotated[
        Annotated[
            str,
            matching(
                CATALOG_NAME,
                "is no name that Unity Catalog takes",
                "name a catalog, without spaces, periods, semicolons, slashes and quotes.",
            ),
        ]
        | None,
        Field(
            description="The catalog of the tables on Unity Catalog. Needed with `[databricks]`.",
            examples=['"dev_inventory"'],
        ),
    ] = None
    landing: Annotated[
        str | None,
        Field(
            min_length=1,
            description="Where files arrive: `/Volumes/…` or a URL (`abfss://…`) with `[databricks]`, which needs it; "
            "else a folder, or any URL of fsspec.",
            examples=['"/Volumes/dev_inventory/bronze_files/files/landing"'],
            json_schema_extra={"default": "`<home>/landing`"},
        ),
    ] = None
    archive: Annotated[
        str | None,
        Field(
            min_length=1,
            description="Where loaded files are moved to, on the same file system.",
            examples=['"/Volumes/dev_inventory/bronze_files/files/archive"'],
            json_schema_extra={"default": "`archive` beside `landing`"},
        ),
    ] = None
    copies: Annotated[
        str | None,
        Field(
            min_length=1,
            description="Where the tables are copied to daily, in another region: a catalog of its own with "
            "`[databricks]`; else a folder, or any URL of fsspec ([copies.md](copies.md)).",
            examples=['"dev_inventory_copy"'],
            json_schema_extra={"default": "`<home>/copy`; none with `[databricks]`"},
        ),
    ] = None
    cold: Annotated[
        str | None,
        Field(
            min_length=1,
            description="Where they are archived weekly for seven years, likewise.",
            examples=['"dev_inventory_cold"'],
            json_schema_extra={"default": "`<home>/cold`; none with `[databricks]`"},
        ),
    ] = None
    source_url: Annotated[
        _Place | None,
        Field(
            description="Where the PostgreSQL URL is kept; in the file only a place, never the URL.",
            examples=['"databricks-secret://bronze/source-url"'],
            json_schema_extra={"default": "the demo's server"},
        ),
    ] = None
    master_key: Annotated[
        _Place | None,
        Field(
            description="Where the key that protects personal data is kept ([keys.md](keys.md)).",
            examples=['"databricks-secret://bronze/master-key"'],
            json_schema_extra={"default": "`file:<home>/keys/master.key` in `local`; none elsewhere"},
        ),
    ] = None
    sql_warehouse: Annotated[
        Annotated[
            str,
            matching(
                WAREHOUSE_ID,
                "is not the id of a warehouse",
                'use what stands after /warehouses/ in its HTTP path, for example "1234567890abcdef".',
            ),
        ]
        | None,
        Field(
            description="Id of the SQL warehouse that is asked for grants and for reads by SQL.",
            examples=['"1234567890abcdef"'],
        ),
    ] = None
    platform_principals: Annotated[
        Annotated[tuple[str, ...], AfterValidator(_principals)] | None,
        Field(
            strict=False,
            description="Application ids of the service principals under which the platform loads and reveals.",
            examples=['["6f1f2c1e-0000-4000-8000-000000000001"]'],
        ),
    ] = None
    capture: Annotated[
        CaptureMode | None,
        Field(
            strict=False,
            description="How changes are captured: `off`, `builtin` or `external` ([capture.md](capture.md)).",
            examples=['"off"'],
            json_schema_extra={"default": "`off`; `builtin` for the demo's server"},
        ),
    ] = None
    discovery: Annotated[
        Discovery | None,
        Field(
            strict=False,
            description="How loads find new files: `listing`, `stream` or `autoloader` (Databricks only).",
            examples=['"listing"'],
            json_schema_extra={"default": "`listing`"},
        ),
    ] = None
    start_date: Annotated[
        dt.date | None,
        Field(
            description="The first partition, UTC; a date without quotes.",
            examples=["2026-01-01"],
            json_schema_extra={"default": "`2026-01-01`"},
        ),
    ] = None
    business_time_zone: Annotated[
        Annotated[str, AfterValidator(_time_zone)] | None,
        Field(
            description='In which "today" is taken for business dates, an IANA name.',
            examples=['"Europe/Berlin"'],
            json_schema_extra={"default": "`UTC`"},
        ),
    ] = None
    read_connections: Annotated[
        _Positive | None,
        Field(
            description="Parallel JDBC reads of one large table.",
            examples=["8"],
            json_schema_extra={"default": "`2`"},
        ),
    ] = None
    range_rows: Annotated[
        _Positive | None,
        Field(
            description="Rows from which a first snapshot is loaded in resumable key ranges of about this size.",
            examples=["20_000_000"],
            json_schema_extra={"default": "`20000000`"},
        ),
    ] = None
    lease_seconds: Annotated[
        _Positive | None,
        Field(
            description="Silence after which a load on another machine counts as dead.",
            examples=["60"],
            json_schema_extra={"default": "`60`"},
        ),
    ] = None
    alerts: Annotated[Alerts | None, Field(description="Where messages go ([runbook.md](runbook.md)).")] = None
    databricks: Annotated[Databricks | None, Field(description="Loads run on Databricks. Not in `local`.")] = None

    @model_validator(mode="after")
    def _makes_sense(self) -> EnvironmentFile:
        local = self.environment is Environment.LOCAL
        rules = [
            (
                local and self.databricks is not None,
                "databricks",
                "does not go with environment = local",
                "remove the section, or write a file for dev, qa or prod.",
            ),
            (
                local and self.discovery is Discovery.AUTOLOADER,
                "discovery",
                "is autoloader, which needs Databricks",
                "use listing or stream here.",
            ),
        ]
        if faults := [Fault(key, what, how) for wrong, key, what, how in rules if wrong]:
            raise faulty(*faults)
        return self

    def variables(self) -> dict[str, str]:
        """What the file says, as the variables that say the same."""

        def text(value: object) -> str:
            return ",".join(value) if isinstance(value, tuple) else str(value)

        values = {variable: getattr(self, key) for key, variable in VARIABLES.items()}
        return {variable: text(value) for variable, value in values.items() if value is not None}


def read(path: Path) -> EnvironmentFile:
    """Read and validate a settings file.

    Raises:
        SettingsError: it cannot be read, is no TOML, or has faults, which are all told, with how to write it. A value
            that may be a secret is never shown.
    """
    try:
        # Editors on Windows put a mark at the beginning, which TOML does not know.
        found = tomllib.loads(path.read_bytes().decode("utf-8-sig"))
    except OSError as error:
        raise SettingsError(
            f"BRONZE_SETTINGS={path} cannot be read ({error.strerror}).",
            "name the settings file of this environment; deploy/settings holds templates.",
        ) from None
    except UnicodeDecodeError:
        raise SettingsError(f"{path} is not UTF-8 text.", "save it as UTF-8.") from None
    except tomllib.TOMLDecodeError as error:
        # It tells the place and one character, never a value.
        raise SettingsError(f"{path} is no TOML: {error}.", "write texts in quotes, and each key once.") from None
    faults = {fault.key: fault for fault in _forbidden(found, ())}
    parsed: EnvironmentFile | None = None
    try:
        parsed = EnvironmentFile.model_validate(found)
    except ValidationError as error:
        for fault in _told(error):
            # A secret or a placeholder is told as that, and not as a wrong value too, which might be quoted.
            if not any(_within(fault.key, key) or _within(key, fault.key) for key in faults):
                faults[fault.key] = fault
    # Outside of the handler: what pydantic was given would be kept with the error.
    if faults or parsed is None:
        raise _error(path, list(faults.values()))
    return parsed


def _within(key: str, section: str) -> bool:
    return f"{key}.".startswith(f"{section}.")


def _error(path: Path, faults: Sequence[Fault]) -> SettingsError:
    if len(faults) == 1:
        return SettingsError(f"{path}: {faults[0].key} {faults[0].what}.", faults[0].how)
    lines = "".join(f"\n- {fault.key} {fault.what}: {fault.how}" for fault in faults)
    return SettingsError(f"{path} has {len(faults)} faults:{lines}\n", "mend each; docs/settings.md has every key.")


def _forbidden(value: object, at: tuple[str, ...]) -> Iterator[Fault]:
    """Secrets, and what was not filled in, anywhere in the file."""
    key = ".".join(at)
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from _forbidden(inner, (*at, name))
    elif isinstance(value, list):
        for number, inner in enumerate(value):
            yield from _forbidden(inner, (*at, str(number)))
    elif isinstance(value, str):
        named = (_SECRET_CONF if "spark_conf" in at else _SECRET_NAME).search(at[-1])
        if (named and not _SECRET_REFERENCE.fullmatch(value)) or _SECRET_VALUE.search(value):
            yield Fault(key, "holds a secret, or is named like one", _where_it_belongs(at))
        elif _PLACEHOLDER in value:
            field = _field(at)
            meaning = field.description if field and field.description else "what the template's comment says"
            yield Fault(key, "still is what the template has", f"fill it in: {meaning[0].lower()}{meaning[1:]}")


def _where_it_belongs(at: tuple[str, ...]) -> str:
    if at[0] in ("source_url", "master_key"):
        return f"put it into a secret scope or a vault, and write where: {_PLACES}."
    if "spark_conf" in at:
        return "put it into a secret scope, and write {{secrets/<scope>/<key>}}."
    return (
        "take it out, and count it as known to others. Who signs in is told by variables of the process:"
        " DATABRICKS_TOKEN, or DATABRICKS_CLIENT_ID and DATABRICKS_CLIENT_SECRET."
    )


def _told(error: ValidationError) -> Iterator[Fault]:
    """The faults that pydantic has found, without any value but those that validators quote."""
    for one in error.errors(include_url=False, include_context=True, include_input=False):
        at = tuple(str(part) for part in one["loc"])
        key = ".".join(at)
        if one["type"] == "faults":
            for fault in one.get("ctx", {})["all"]:
                yield fault._replace(key=".".join(filter(None, (key, fault.key))))
        elif one["type"] == "extra_forbidden":
            yield Fault(key, "is not known", _instead(at))
        elif one["type"] == "missing":
            yield Fault(key, "is missing", _example(at))
        elif "spark_conf" in at:
            yield Fault(key, "is not a text", 'write the name and the value in quotes: "spark.x.y" = "1".')
        else:
            yield Fault(key, f"is wrong: {one['msg'][0].lower()}{one['msg'][1:]}", _example(at))


def _instead(at: tuple[str, ...]) -> str:
    if at[-1].startswith("autotermination"):
        return "take it out: a job cluster ends with its run, and an existing cluster or its policy has it."
    model = _model(at[:-1])
    close = difflib.get_close_matches(at[-1], model.model_fields if model else [], n=1)
    return f"write {close[0]}." if close else "take it out; docs/settings.md has every key."


def _example(at: tuple[str, ...]) -> str:
    field = _field(at)
    if field is None:
        return "see docs/settings.md."
    if field.examples:
        return f"write for example {at[-1] if not at[-1].isdigit() else at[-2]} = {field.examples[0]}."
    return f"write a section [{'.'.join(at)}]."


def _field(at: tuple[str, ...]) -> FieldInfo | None:
    """The field of a key; of the list, for an item of one."""
    if at and at[-1].isdigit():
        at = at[:-1]
    model = _model(at[:-1]) if at else None
    return model.model_fields.get(at[-1]) if model else None


def _model(at: tuple[str, ...]) -> type[BaseModel] | None:
    """The model of a section."""
    model: type[BaseModel] | None = EnvironmentFile
    keys = iter(at)
    for key in keys:
        field = model.model_fields.get(key) if model else None
        if field is None:
            return None
        model = section(field.annotation)
        if model is not None and _is_table(field.annotation):
            # Whose keys are names.
            next(keys, None)
    return model


def section(annotation: Any) -> type[BaseModel] | None:
    """The model in a field's type: `Model`, `Model | None` or `dict[str, Model]`."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((found for part in get_args(annotation) if (found := section(part))), None)


def _is_table(annotation: Any) -> bool:
    return get_origin(annotation) is dict


def keys(model: type[BaseModel] = EnvironmentFile, under: str = "") -> Iterator[tuple[str, FieldInfo]]:
    """Every key of the file with its field, sections after their keys; `<name>` stands for keys that are names."""
    sections: list[tuple[str, type[BaseModel]]] = []
    for name, field in model.model_fields.items():
        key = f"{under}{name}"
        yield key, field
        if inner := section(field.annotation):
            sections.append((f"{key}.<name>." if _is_table(field.annotation) else f"{key}.", inner))
    for key, inner in sections:
        yield from keys(inner, key)
