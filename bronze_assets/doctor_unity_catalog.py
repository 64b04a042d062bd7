"""What `doctor_databricks` looks at on Unity Catalog: whether catalog, schemas, volumes and external locations are
there, and what is not granted on them to whoever is signed in, as the statements that grant it.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote

from bronze_assets import access
from bronze_assets.databricks_settings import VOLUME_PATH
from bronze_assets.databricks_workspace import Kind, Refused, Workspace, asked
from bronze_assets.findings import Finding
from bronze_assets.table import BronzeTable

if TYPE_CHECKING:
    from databricks.sdk import WorkspaceClient
    from databricks.sdk.service.catalog import EffectivePermissionsList

# What each object must grant, in the order in which to grant it.
_OF_CATALOG: Final = ("USE CATALOG",)
_OF_TABLES: Final = ("USE SCHEMA", "CREATE TABLE", "SELECT", "MODIFY")
_OF_FILES: Final = ("USE SCHEMA",)
_OF_VOLUME: Final = ("READ VOLUME", "WRITE VOLUME")
_OF_LOCATION: Final = ("READ FILES", "WRITE FILES")
_ALL: Final = "ALL PRIVILEGES"


@dataclass(frozen=True)
class _Object:
    """An object of Unity Catalog.

    Attributes:
        kind: in the words of GRANT, e.g. `EXTERNAL LOCATION`.
        path: its name, from the catalog down.
        needs: privileges on it, in the words of GRANT.
    """

    kind: str
    path: tuple[str, ...]
    needs: tuple[str, ...]

    @property
    def of(self) -> str:
        return self.kind.lower()

    @property
    def full_name(self) -> str:
        return ".".join(self.path)

    def owner(self, api: WorkspaceClient) -> str | None:
        """Who owns it, which says that it is there."""
        read: Mapping[str, Callable[[str], Any]] = {
            "CATALOG": api.catalogs.get,
            "SCHEMA": api.schemas.get,
            "VOLUME": api.volumes.read,
            "EXTERNAL LOCATION": api.external_locations.get,
        }
        owner: str | None = read[self.kind](self.full_name).owner
        return owner


def look_at_tables(workspace: Workspace, catalog: str, tables: Sequence[BronzeTable]) -> list[Finding]:
    """The catalog and the schemas of the tables."""
    quoted = access.quoted(catalog)
    make = f"let Terraform make it (docs/deploy.md), or run: CREATE CATALOG {quoted};"
    findings = [_look_at(workspace, _Object("CATALOG", (catalog,), _OF_CATALOG), make)]
    for schema in access.schemas(tables):
        wanted = _Object("SCHEMA", (catalog, schema), _OF_TABLES)
        make = f"let the catalog's owner run: CREATE SCHEMA {access.quoted(*wanted.path)};"
        findings.append(_look_at(workspace, wanted, make))
    return findings


def look_at_files(workspace: Workspace, catalog: str | None, places: Mapping[str, str]) -> list[Finding]:
    """The volumes and external locations of some folders, with what leads to them.

    Args:
        catalog: that of the tables, which is looked at already.
        places: the folders, by the keys that name them.
    """
    findings: list[Finding] = []
    wanted: dict[_Object, str] = {}
    for key, place in places.items():
        if volume := VOLUME_PATH.fullmatch(place):
            path = volume["catalog"], volume["schema"], volume["volume"]
            make = f"correct {key} in the settings, let Terraform make it, or run: CREATE"
            if path[0] != catalog:
                wanted.setdefault(_Object("CATALOG", path[:1], _OF_CATALOG), f"correct {key} in the settings.")
            schema, files = _Object("SCHEMA", path[:2], _OF_FILES), _Object("VOLUME", path, _OF_VOLUME)
            wanted.setdefault(schema, f"{make} SCHEMA {access.quoted(*schema.path)};")
            wanted.setdefault(files, f"{make} VOLUME {access.quoted(*files.path)};")
        elif re.match("(abfss|s3|gs)://", place):
            found = _location_of(workspace, key, place)
            if isinstance(found, Finding):
                findings.append(found)
            else:
                wanted.setdefault(found, "run doctor again.")
        else:
            words = f"{key} is {place}, which no cluster can read."
            fix = f"set {key} to a folder of a volume (/Volumes/<catalog>/<schema>/<volume>/…) or an abfss:// URL."
            findings.append(Finding("files", words, fix))
    return findings + [_look_at(workspace, one, make) for one, make in wanted.items()]


def _location_of(workspace: Workspace, key: str, url: str) -> _Object | Finding:
    """The external location that holds a URL."""
    of = "external location"
    try:
        found = asked(lambda: list(workspace.client.external_locations.list()))
    except Refused as refused:
        return refused.finding(
            of, f"external location of {key}", missing="run doctor again.", denied="run doctor again."
        )
    above = {
        location.url.rstrip("/"): location.name
        for location in found
        if location.name and location.url and f"{url}/".startswith(f"{location.url.rstrip('/')}/")
    }
    if not above:
        words = f"none that {workspace.name} can see holds {key}, {url}."
        return Finding(of, words, "let Terraform make one, or name a folder of a volume, /Volumes/….")
    return _Object("EXTERNAL LOCATION", (above[max(above, key=len)],), _OF_LOCATION)


def _look_at(workspace: Workspace, wanted: _Object, make: str) -> Finding:
    """Whether the object is there, and what is not granted on it.

    Args:
        make: what to do where there is none.
    """
    name, there = access.quoted(*wanted.path), "is there"
    try:
        owner = asked(lambda: wanted.owner(workspace.client))
        held, whole = ({_ALL}, True) if workspace.is_me(owner) else _held(workspace, wanted)
    except Refused as refused:
        if refused.kind is Kind.MISSING:
            return Finding(wanted.of, f"{name} is not there.", make)
        if refused.kind is not Kind.DENIED:
            return refused.finding(wanted.of, f"{wanted.of} {name}", missing=make, denied=make)
        # Who has no privilege on an object does not see it.
        held, whole, there = set(), True, "cannot be seen"
    missing = [] if _ALL in held else [privilege for privilege in wanted.needs if privilege not in held]
    if not missing:
        return Finding(wanted.of, f"{name} {there}, with {', '.join(wanted.needs)}.")
    grants = [access.Grant(wanted.kind, wanted.path, privilege, workspace.grantee) for privilege in missing]
    doubt = "" if whole else " (not all grants could be seen)"
    return Finding(
        wanted.of,
        f"{name} {there}; {workspace.name} lacks {', '.join(missing)}{doubt}.",
        f"let its owner run: {' '.join(f'{grant.statement};' for grant in grants)}",
    )


def _held(workspace: Workspace, wanted: _Object) -> tuple[set[str], bool]:
    """Privileges of whoever is signed in, inherited ones and those of their groups too, until all that are wanted are
    found; and whether everything that was asked was answered.
    """
    held: set[str] = set()
    whole = True
    # Whether the answer for a person has what their groups have is not documented, so groups are asked for too.
    for principal in (workspace.name, *workspace.groups):
        try:
            held |= asked(functools.partial(_granted, workspace.client, wanted, principal))
        except Refused as refused:
            if refused.kind not in (Kind.DENIED, Kind.MISSING):
                raise
            whole = False
        if _ALL in held or held >= set(wanted.needs):
            break
    return held, whole


def _granted(api: WorkspaceClient, wanted: _Object, principal: str) -> set[str]:
    """What one principal has on an object, in the words of GRANT."""
    from databricks.sdk.service.catalog import EffectivePermissionsList, SecurableType

    kind = SecurableType[wanted.kind.replace(" ", "_")].value
    # Not `grants.get_effective`, whose first argument is of another type in other versions of the SDK.
    path = f"/api/2.1/unity-catalog/effective-permissions/{kind}/{quote(wanted.full_name, safe='')}"
    query = {"principal": principal}
    granted: set[str] = set()
    while True:
        answer = api.api_client.do("GET", path, query=query, headers={"Accept": "application/json"})
        found: EffectivePermissionsList = EffectivePermissionsList.from_dict(answer if isinstance(answer, dict) else {})
        granted |= {
            one.privilege.value.replace("_", " ")
            for assignment in found.privilege_assignments or []
            for one in assignment.privileges or []
            if one.privilege
        }
        if not found.next_page_token:
            return granted
        query["page_token"] = found.next_page_token
