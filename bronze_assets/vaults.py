"""Secrets as Azure Key Vault and Databricks keep them.

Errors of their clients are never passed on, because they may hold the answer; `reason` says what kind they were.
"""

from __future__ import annotations

import base64
import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from bronze_assets.errors import SettingsError
from bronze_assets.secret_places import SECRET_PLACE

if TYPE_CHECKING:
    from azure.keyvault.secrets import SecretClient


def resolve_secret(reference: str, *, meaning: str, host: str | None = None) -> str:
    """The secret behind a reference: what is kept at a `SECRET_PLACE`; anything else is the secret itself.

    Args:
        reference: what the user gave.
        meaning: the setting's name, for errors.
        host: the workspace of Databricks' secrets, as for `databricks_secret`.

    Raises:
        SettingsError: it cannot be read or is empty. The message shows the place, never a secret.
    """
    place = SECRET_PLACE.fullmatch(reference)
    if reference.startswith("file:"):
        return _of_file(Path(reference.removeprefix("file:").removeprefix("//")).expanduser(), meaning)
    if place is None:
        return reference
    secret: str | None = None
    try:
        if place["vault"]:
            with key_vault(place["vault"], meaning=f"{meaning}={reference}") as client:
                secret = client.get_secret(place["secret"]).value
        else:
            meant = f"{meaning}={reference}"
            secret = databricks_secret(place["scope"], place["key"], meaning=meant, host=host).decode()
    except SettingsError:
        raise
    except Exception as error:
        why = reason(error)
    if secret is None:
        raise SettingsError(
            f"{meaning} points to {reference}, which cannot be fetched ({why}).",
            "check its name, the network, who is signed in, and that they may read it.",
        )
    if not secret.strip():
        raise SettingsError(f"{meaning} points to {reference}, which is empty.", "store the value there.")
    return secret.strip()


def _of_file(path: Path, meaning: str) -> str:
    try:
        secret = path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise SettingsError(
            f"{meaning} points to {path}, which cannot be read ({why}).",
            "write the value into that file, set the variable itself, or run `make demo`, which makes it.",
        ) from None
    if not secret:
        raise SettingsError(f"{meaning} points to {path}, which is empty.", "write the value into that file.")
    return secret


@contextlib.contextmanager
def key_vault(vault: str, *, meaning: str) -> Iterator[SecretClient]:
    """A client of this vault, signed in as whoever the process is (`DefaultAzureCredential`).

    Args:
        meaning: the setting that names the vault, for errors.

    Raises:
        SettingsError: the extra `azure` is not installed.
    """
    try:
        from azure.identity import DefaultAzureCredential
        from azure.keyvault.secrets import SecretClient
    except ImportError:
        raise not_installed(meaning, "azure") from None
    with (
        DefaultAzureCredential() as credential,
        SecretClient(f"https://{vault}.vault.azure.net", credential) as client,
    ):
        yield client


def databricks_secret(scope: str, key: str, *, meaning: str, host: str | None = None) -> bytes:
    """A secret of a Databricks scope: from the runtime on a cluster, over the REST API elsewhere.

    Args:
        meaning: the setting that names the secret, for errors.
        host: the workspace; None for the one that the SDK finds (`DATABRICKS_HOST`, or that of the cluster).

    Raises:
        SettingsError: the extra `databricks` is not installed.
        Exception: of the client.
    """
    try:
        from databricks.sdk import WorkspaceClient
    except ImportError:
        raise not_installed(meaning, "databricks") from None
    client = WorkspaceClient(host=host)
    try:
        # On a cluster this is the runtime's own, which needs no network.
        return bytes(client.dbutils.secrets.get(scope, key).encode())
    except Exception:
        return base64.b64decode(client.secrets.get_secret(scope, key).value or "")


def reason(error: Exception) -> str:
    """The kind of a client's error, without its text."""
    status = getattr(error, "status_code", None)
    return f"{type(error).__name__}, HTTP {status}" if isinstance(status, int) else type(error).__name__


def not_installed(meaning: str, extra: str) -> SettingsError:
    """What a person hears whose settings need packages of an extra.

    Args:
        meaning: the setting.
    """
    return SettingsError(
        f"{meaning} needs packages that are not installed.",
        f'install the extra `{extra}`: pip install "bronze-assets[{extra}]".',
    )
