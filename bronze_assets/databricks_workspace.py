"""A workspace of Databricks, for those who only ask it something: who is signed in, and why it has not answered.

What the SDK or the workspace says in words is never passed on, because it may quote a secret; kinds and codes are.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Final, TypeVar

from bronze_assets.access import Role
from bronze_assets.findings import Finding
from bronze_assets.sql_warehouse import error_reason

if TYPE_CHECKING:
    from databricks.sdk import WorkspaceClient

ANSWER_SECONDS: Final = 20
"""How long one answer is waited for, repetitions included."""

_EVERYBODY: Final = "account users"
ADMINS: Final = "admins"
"""The group of a workspace's admins, who may do everything in it; but not on Unity Catalog."""

T = TypeVar("T")


class Kind(enum.Enum):
    """Why the workspace has not answered a question."""

    MISSING = enum.auto()
    DENIED = enum.auto()
    EXPIRED = enum.auto()
    DBFS_OFF = enum.auto()
    UNREACHABLE = enum.auto()
    NOBODY = enum.auto()
    OTHER = enum.auto()


class Refused(Exception):
    """The workspace has not answered. Holds nothing that was said in words.

    Attributes:
        kind: why.
        reason: the error's type and code.
    """

    def __init__(self, kind: Kind, reason: str) -> None:
        super().__init__(reason)
        self.kind, self.reason = kind, reason

    def finding(self, of: str, what: str, *, missing: str, denied: str) -> Finding:
        """What was found: that `what` is not there, may not be used, or cannot be looked at.

        Args:
            of: what is looked at.
            what: for example `cluster 1127-a`.
            missing: the fix where there is none.
            denied: the fix where it may not be used.
        """
        words, fix = {
            Kind.MISSING: (f"there is no {what}", missing),
            Kind.DENIED: (f"the {what} may not be used", denied),
        }.get(
            self.kind, (f"the {what} cannot be looked at", "run doctor again; if it stays, see the workspace's status.")
        )
        return Finding(of, f"{words} ({self.reason}).", fix)


def asked(ask: Callable[[], T]) -> T:
    """What the SDK answers.

    Raises:
        Refused: it has not.
    """
    try:
        return ask()
    except Exception as error:
        refused = Refused(_kind(error), error_reason(error))
    # Outside of the handler: a context would be kept with the error.
    raise refused


def _kind(error: Exception) -> Kind:
    from databricks.sdk.errors import InvalidParameterValue, NotFound, PermissionDenied, Unauthenticated
    from databricks.sdk.errors.base import DatabricksError

    # Only looked at, never shown.
    words = str(error).lower()
    if isinstance(error, DatabricksError):
        if "dbfs root is disabled" in words:
            return Kind.DBFS_OFF
        if isinstance(error, Unauthenticated | PermissionDenied):
            return Kind.EXPIRED if re.search("token.*expir|expir.*token", words) else Kind.DENIED
        # Of clusters and pools that are not there, a parameter is wrong.
        absent = isinstance(error, InvalidParameterValue) and re.search("does not exist|can't find", words)
        return Kind.MISSING if absent or isinstance(error, NotFound) else Kind.OTHER
    # The SDK's own: it has found no way to sign in, or two.
    if isinstance(error, ValueError):
        return Kind.NOBODY
    # It has tried until its time was over, or there is no such host.
    return Kind.UNREACHABLE if isinstance(error, OSError) else Kind.OTHER


class Workspace:
    """The workspace, as somebody who is signed in.

    Attributes:
        client: of the SDK, with little patience.
        host: the workspace's address.
        name: who is signed in, as grants name them: a user, or a service principal's application id.
        display_name: how people call them.
        groups: theirs, those of the platform first, the group of all at the end.
    """

    def __init__(self, host: str) -> None:
        """Sign in.

        Raises:
            Refused: the workspace does not answer, or not to whoever signs in.
        """
        from databricks.sdk import WorkspaceClient
        from databricks.sdk.core import Config

        def sign_in() -> WorkspaceClient:
            # The SDK would try for five minutes to reach a workspace that is misspelt.
            config = Config(host=host, http_timeout_seconds=ANSWER_SECONDS, retry_timeout_seconds=ANSWER_SECONDS)
            return WorkspaceClient(config=config)

        self.host = host
        self.client = asked(sign_in)
        me = asked(self.client.current_user.me)
        self.name = me.user_name or ""
        self.display_name = me.display_name or self.name
        mine = {group.display for group in me.groups or [] if group.display}
        ours = [role.value for role in Role if role in mine]
        self.groups = [*ours, *sorted(mine.difference(ours)), _EVERYBODY]

    @property
    def grantee(self) -> str:
        """To whom to grant what is missing: the platform's group for who is in it."""
        return Role.PLATFORM.value if Role.PLATFORM in self.groups else self.name

    def is_me(self, principal: str | None) -> bool:
        """Whether that is whoever is signed in, or a group of theirs."""
        return principal is not None and principal in (self.name, *self.groups)


def not_signed_in(host: str, refused: Refused) -> Finding:
    """Why nobody is signed in, and what to do."""
    words, fix = {
        Kind.EXPIRED: (
            f"the token for {host} has expired",
            "make a new one and set DATABRICKS_TOKEN; DATABRICKS_CLIENT_ID and DATABRICKS_CLIENT_SECRET of a service"
            " principal last longer.",
        ),
        Kind.DENIED: (
            f"{host} refuses who signs in",
            "check DATABRICKS_TOKEN, or DATABRICKS_CLIENT_ID and DATABRICKS_CLIENT_SECRET: they must be of this"
            " workspace.",
        ),
        Kind.NOBODY: (
            f"there is no one way to sign in to {host}",
            "set DATABRICKS_TOKEN, or DATABRICKS_CLIENT_ID and DATABRICKS_CLIENT_SECRET, and not both.",
        ),
        Kind.UNREACHABLE: (
            f"{host} does not answer within {ANSWER_SECONDS} seconds",
            "check databricks.host in the settings file, DATABRICKS_HOST, the network and its proxy.",
        ),
    }.get(
        refused.kind,
        (
            f"{host} does not answer as a workspace of Databricks",
            "check databricks.host in the settings file and DATABRICKS_HOST.",
        ),
    )
    return Finding("workspace", f"{words} ({refused.reason}).", fix)
