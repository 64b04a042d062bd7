"""`python -m deploy.declared`: what Terraform takes from the tables' declarations, as files of variables.

Grants have one owner, Terraform, and one source, `bronze_assets.access`. The files are committed, so that a review sees
what a changed declaration grants and takes away; `--check` says whether they are up to date.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bronze_assets import access
from bronze_assets.catalog import TABLES
from bronze_assets.table import BronzeTable

FOLDER = Path(__file__).parent / "terraform"
NAME = "declared.auto.tfvars.json"
# Catalogs differ between environments, declarations do not.
_ANY = "catalog"


def platform_variables(tables: Sequence[BronzeTable]) -> dict[str, Any]:
    """Variables of `terraform/azure`: schemas and account groups."""
    return {
        "roles": {role.name.lower(): role.value for role in access.Role},
        "schemas": list(access.schemas(tables)),
    }


def grant_variables(tables: Sequence[BronzeTable]) -> dict[str, Any]:
    """Variables of `terraform/grants`: every declared privilege, in Terraform's words (`USE_SCHEMA`)."""
    catalog: dict[str, list[str]] = {}
    schemas: dict[str, dict[str, list[str]]] = {}
    relations: dict[str, dict[str, dict[str, list[str]]]] = {}
    for grant in access.grants(tables, _ANY):
        match grant.path:
            case (_,):
                grantees = catalog
            case (_, schema):
                grantees = schemas.setdefault(schema, {})
            case (_, schema, relation):
                grantees = relations.setdefault(schema, {}).setdefault(relation, {})
        grantees.setdefault(str(grant.grantee), []).append(grant.privilege.replace(" ", "_"))
    return {"catalog_grants": catalog, "schema_grants": schemas, "table_grants": relations}


def files(tables: Sequence[BronzeTable]) -> Mapping[Path, str]:
    """Path below `terraform/` → text."""
    made = {
        Path("azure") / NAME: platform_variables(tables),
        Path("grants") / NAME: grant_variables(tables),
    }
    return {path: json.dumps(variables, indent=2) + "\n" for path, variables in made.items()}


def outdated(folder: Path, tables: Sequence[BronzeTable]) -> list[Path]:
    """Which files below the folder are not what the declarations say."""
    return [
        path
        for path, text in files(tables).items()
        if not (folder / path).is_file() or (folder / path).read_text(encoding="utf-8") != text
    ]


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the files, or check them; returns the exit code: 1 if one is out of date."""
    parser = argparse.ArgumentParser(prog="python -m deploy.declared", description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; exit code 1 if a file is out of date")
    options = parser.parse_args(arguments)
    stale = outdated(FOLDER, TABLES)
    if options.check:
        for path in stale:
            print(f"{path} is not what the tables declare. Fix: python -m deploy.declared", file=sys.stderr)
        return 1 if stale else 0
    for path in stale:
        (FOLDER / path).write_text(files(TABLES)[path], encoding="utf-8")
        print(f"Wrote {path}.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
