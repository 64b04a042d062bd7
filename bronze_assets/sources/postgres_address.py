"""The address of a PostgreSQL server: its URL, taken apart, and what goes wrong in connecting to it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qsl, quote, unquote, urlsplit

import psycopg2
from psycopg2.extras import LogicalReplicationConnection

from bronze_assets.errors import SettingsError, SourceRefused, SourceUnreachable

CONNECT_TIMEOUT_SECONDS = 10
_PASSED_ON = ("sslmode", "sslrootcert", "sslcert", "sslkey")
# libpq's; the JDBC driver knows the same.
_SSL_MODES = ("disable", "allow", "prefer", "require", "verify-ca", "verify-full")
_RETRYABLE_FATAL = (
    "starting up",
    "shutting down",
    "recovery mode",
    "too many",
    "remaining connection slots",
    "SSL SYSCALL",
    "closed unexpectedly",
)


@dataclass(frozen=True)
class Address:
    """Where the server is and who asks; shown without the password."""

    host: str
    port: int
    database: str
    user: str
    options: Mapping[str, str]
    _password: str | None

    def __repr__(self) -> str:
        return f"postgresql://{self.user}@{self.host}:{self.port}/{self.database}"

    @classmethod
    def parse(cls, url: str) -> Address:
        """Take a `postgresql://` URL apart.

        Raises:
            SettingsError: it is malformed; the message does not show it.
        """
        fix = "write postgresql://user:password@host:port/database, special characters percent-encoded."
        try:
            parts = urlsplit(url)
            port = parts.port or 5432
        except ValueError:
            raise SettingsError("BRONZE_SOURCE_URL is malformed (its host or port).", fix) from None
        if parts.scheme not in ("postgresql", "postgres"):
            raise SettingsError("BRONZE_SOURCE_URL is not a postgresql:// URL.", fix)
        database = unquote(parts.path.lstrip("/"))
        # An unencoded `/` in the password ends the host there: what follows is part of the password, not to be shown.
        if re.search(r"[@/:]", parts.path.lstrip("/")) or "@" in parts.fragment or "@" in parts.query:
            raise SettingsError("BRONZE_SOURCE_URL is malformed (its database, or an unencoded password).", fix)
        if not parts.hostname or not parts.username or not database:
            raise SettingsError("BRONZE_SOURCE_URL lacks a host, a user or a database.", fix)
        options = dict(parse_qsl(parts.query))
        unknown = sorted(set(options) - set(_PASSED_ON))
        if unknown:
            raise SettingsError(
                f"BRONZE_SOURCE_URL has unknown parameters: {', '.join(unknown)}.", f"use {', '.join(_PASSED_ON)}."
            )
        if options.get("sslmode", "prefer") not in _SSL_MODES:
            raise SettingsError("BRONZE_SOURCE_URL has an unknown sslmode.", f"use one of {', '.join(_SSL_MODES)}.")
        password = unquote(parts.password) if parts.password is not None else None
        return cls(parts.hostname, port, database, unquote(parts.username), options, password)

    def connect(self, *, replication: bool = False) -> Any:
        """A new connection; with `replication`, one that speaks the protocol of logical replication.

        Raises:
            SourceUnreachable: no answer; worth a retry.
            SourceRefused: the server said no.
        """
        try:
            return psycopg2.connect(
                host=self.host,
                port=self.port,
                dbname=self.database,
                user=self.user,
                password=self._password,
                connect_timeout=CONNECT_TIMEOUT_SECONDS,
                application_name="bronze_assets",
                # The snapshot's transaction is idle while Spark reads through other connections.
                options="-c DateStyle=ISO -c TimeZone=UTC -c idle_in_transaction_session_timeout=0",
                keepalives_idle=30,
                connection_factory=LogicalReplicationConnection if replication else None,
                **dict[str, Any](self.options),
            )
        except psycopg2.OperationalError as error:
            said = str(error)
            fatal = re.search(r"(?:FATAL|certificate|SSL|no password supplied)[^\n]*", said)
            if fatal and not any(word in said for word in _RETRYABLE_FATAL):
                fix = "correct BRONZE_SOURCE_URL, the server's pg_hba.conf or the certificate."
                if re.search("wal ?sender", fatal.group(0), re.IGNORECASE):
                    fix = f'ALTER ROLE "{self.user}" REPLICATION; if it has that, raise max_wal_senders.'
                raise SourceRefused(f"the source {self!r} refused the connection: {fatal.group(0)}.", fix) from None
            raise self.unreachable("it does not answer.", None) from None

    def unreachable(self, what: str, table: str | None) -> SourceUnreachable:
        """The error that says so and why."""
        return SourceUnreachable(
            f"the source {self!r} cannot be reached: {what}",
            "check that the server runs and that BRONZE_SOURCE_URL names it.",
            table=table,
        )

    def jdbc_options(self) -> dict[str, Any]:
        """Options of Spark's JDBC reader for a connection like `connect`'s; the password among them."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        options: dict[str, Any] = {
            "url": f"jdbc:postgresql://{host}:{self.port}/{quote(self.database, safe='')}",
            "driver": "org.postgresql.Driver",
            "user": self.user,
            "connectTimeout": CONNECT_TIMEOUT_SECONDS,
            "tcpKeepAlive": "true",
            "ApplicationName": "bronze_assets",
            # From the first execution on, so that numbers arrive as numbers and not as text.
            "prepareThreshold": -1,
            **self.options,
        }
        if self._password is not None:
            options["password"] = self._password
        return options
