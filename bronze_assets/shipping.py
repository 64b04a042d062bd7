"""What runs on Databricks: a clean copy of this package, the versions of what it needs, and the proof that both are so.

The step launcher zips a folder as it is. Pointed at a checkout it would ship `.git`, `.venv` and data, and nothing at
all from a path that has one of its excluded words in it.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import re
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from bronze_assets.databricks_settings import Launch
from bronze_assets.errors import SettingsError
from bronze_assets.settings import Settings

_PACKAGE = Path(__file__).parent
_DISTRIBUTION = "bronze-assets"
# What the cluster brings (its Spark is Databricks' own), and what only the host needs.
_NOT_SHIPPED = frozenset({"pyspark", "delta-spark", "dagster-webserver", "dagster-graphql"})
_EXTRA = "databricks"


def clean_copy(settings: Settings) -> Path:
    """A folder that holds this package and nothing else, below the home; made where it is not there yet.

    Raises:
        SettingsError: the launcher would leave files of it out, because of words in the home's path.
    """
    folder = settings.home / "databricks" / code_digest()
    _check_path(folder)
    if not folder.is_dir():
        part = folder.with_name(f"{folder.name}.{uuid.uuid4().hex}")
        for name, content in contents():
            target = part / name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(content)
        try:
            part.rename(folder)
        except OSError:
            # Another process was faster.
            shutil.rmtree(part)
    return folder


def contents() -> Iterator[tuple[str, bytes]]:
    """Name and content of each file of the package, as in a zip of it."""
    for file in _files():
        yield f"{_PACKAGE.name}/{file.relative_to(_PACKAGE).as_posix()}", file.read_bytes()


def code_digest() -> str:
    """What tells this package's code from any other: 16 hex digits over names and contents of its files."""
    digest = hashlib.sha256()
    for name, content in contents():
        digest.update(f"{name}\n{len(content)}\n".encode())
        digest.update(content)
    return digest.hexdigest()[:16]


def libraries(settings: Settings) -> list[str]:
    """What is to be installed on a cluster, `<name>==<version of this host>`, and the settings' own requirements.

    Raises:
        SettingsError: the settings ask for another version of what this package needs.
    """
    needed = versions(settings)
    own = list(settings.databricks.libraries) if settings.databricks else []
    more = []
    for library in own:
        requirement = Requirement(library)
        here = needed.get(canonicalize_name(requirement.name))
        if here is None:
            more.append(library)
        elif here not in requirement.specifier:
            raise SettingsError(
                f"databricks.libraries has {library!r}, but this host has {requirement.name} {here}, and loads need"
                " the same on both.",
                f"take it out of databricks.libraries, or install {library} on the host.",
            )
    return [*(f"{name}=={version}" for name, version in needed.items()), *more]


def versions(settings: Settings) -> dict[str, str]:
    """The packages that this one needs where the settings run it, with their versions here."""
    needed = [Requirement(text) for text in importlib.metadata.requires(_DISTRIBUTION) or ()]
    names: set[str] = {
        canonicalize_name(one.name) for one in needed if one.marker is None or one.marker.evaluate({"extra": _EXTRA})
    }
    if settings.databricks is not None and settings.databricks.launch is not Launch.STEP_LAUNCHER:
        # Dagster stays at home. Its packages for Databricks would bring PySpark, which serverless compute must not get.
        names = {name for name in names if not name.startswith("dagster")} | {"dagster-pipes"}
    else:
        names.add("dagster-pyspark")
    return {name: importlib.metadata.version(name) for name in sorted(names - _NOT_SHIPPED)}


def manifest(settings: Settings) -> str:
    """What `check_shipped` compares with, as text."""
    return json.dumps({"code": code_digest(), "versions": versions(settings)}, sort_keys=True)


def check_shipped(settings: Settings) -> None:
    """Raise `SettingsError` unless this process on a cluster has the code and the versions of the host."""
    told = json.loads(settings.shipped or "{}")
    if told.get("code") != code_digest():
        raise SettingsError(
            f"the cluster runs other code than was shipped ({code_digest()} instead of {told.get('code')}).",
            "take bronze-assets off the cluster's libraries and init scripts; each run brings its own.",
        )
    wrong = []
    for name, version in told["versions"].items():
        try:
            here = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            here = "missing"
        if here != version:
            wrong.append(f"{name} {here} instead of {version}")
    if wrong:
        raise SettingsError(
            f"the cluster has other versions than the host: {', '.join(wrong)}.",
            "restart the cluster, which keeps what it once installed, or take them off its libraries.",
        )


def _files() -> Iterator[Path]:
    for file in sorted(_PACKAGE.rglob("*")):
        if file.is_file() and "__pycache__" not in file.parts:
            yield file


def _check_path(folder: Path) -> None:
    from dagster_pyspark.utils import DEFAULT_EXCLUDE

    for file in _files():
        path = str(folder / _PACKAGE.name / file.relative_to(_PACKAGE))
        for pattern in DEFAULT_EXCLUDE:
            if re.search(pattern, path):
                raise SettingsError(
                    f"the step launcher would ship nothing from BRONZE_HOME={folder.parent.parent}: it leaves out"
                    f" every path that matches {pattern!r}.",
                    "let BRONZE_HOME name a folder without that word in its path.",
                )
