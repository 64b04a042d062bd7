"""Errors a user can meet. Each message names the table (where there is one), the culprit and the fix."""

from __future__ import annotations


class BronzeError(Exception):
    """Base of every error raised on purpose.

    Attributes:
        retryable: whether the same load may succeed when tried again unchanged.
    """

    retryable = False

    def __init__(self, culprit: str, fix: str, *, table: str | None = None) -> None:
        self.culprit = culprit
        self.fix = fix
        self.table = table
        where = f"{table}: " if table else ""
        super().__init__(f"{where}{culprit} Fix: {fix}")


class SettingsError(BronzeError):
    """A setting is missing, malformed or contradicts another."""


class DeclarationError(BronzeError):
    """A `BronzeTable` cannot be what it says; raised when it is built."""


class EngineError(BronzeError):
    """No Spark session can be had: Java or a jar is missing and cannot be brought."""


class SourceUnreachable(BronzeError):
    """The source does not answer; worth a retry."""

    retryable = True


class SourceBusy(BronzeError):
    """Another session locks the source table or has rewritten it; worth a retry."""

    retryable = True


class SourceRefused(BronzeError):
    """The source answered and said no (password, privilege, missing table); a retry would hear the same."""


class SchemaMismatch(BronzeError):
    """A required column is missing or has an incompatible type; nothing was written."""


class PartitionRefused(BronzeError):
    """This partition cannot be loaded: it lies in the past or the future of what the source can tell."""


class LoadRefused(BronzeError):
    """The load was stopped by a limit that its caller set."""


class TableBusy(BronzeError):
    """Another load of the same table is alive."""


class StaleBase(BronzeError):
    """The table moved on under this load, which therefore committed nothing; starting again is safe."""

    retryable = True


class FileChanged(BronzeError):
    """A file was changed or removed while it was being loaded; nothing was written, and the next try takes it as it is
    then.
    """

    retryable = True


class LakeError(BronzeError):
    """The lake cannot be read or written."""


class CaptureBusy(BronzeError):
    """Another process captures the same changes; worth a retry."""

    retryable = True


class KeyMissing(BronzeError):
    """The master key is not where `BRONZE_MASTER_KEY` says, or cannot be fetched from there; nothing was protected."""


class KeyRefused(BronzeError):
    """A key is there and must not be used (damaged, readable by others, of another version), or does not open what it
    was asked to. The message holds no key and nothing that a key protects.
    """


class WarehouseError(BronzeError):
    """A SQL warehouse cannot be asked, or has not answered a query. The message holds none of its words."""


class PrivacyRefused(BronzeError):
    """A person's values were asked for in a way in which they are not given; the attempt is in the access log."""


class RetentionRefused(BronzeError):
    """Rows or files are not removed, or a legal hold not changed, as it was asked for; nothing was changed."""


class ConservationError(BronzeError):
    """Rows read and row outcomes do not add up; a defect, never the user's fault."""


class RemoteFailure(BronzeError):
    """A run on Databricks could not be started or has failed there. The message holds no word of a row."""


class RemoteLost(RemoteFailure):
    """A run on Databricks has lost its driver or a machine; worth a retry."""

    retryable = True


class CopyFailed(BronzeError):
    """A copy could not be written, read or trusted. The lake is as it was, and so is the last whole copy."""

    retryable = True
