"""Queries on a SQL warehouse of Databricks, through the Statement Execution API of its SDK.

Who is signed in is what the SDK finds (`DATABRICKS_TOKEN` and its like), and so is the workspace if none is named.
What a statement or the SDK says in words is never passed on: it may quote a value; conditions and codes are.
"""

from __future__ import annotations

import datetime as dt
import json
import re
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, Final, TypeVar

from bronze_assets.errors import SettingsError, WarehouseError

if TYPE_CHECKING:
    from databricks.sdk.service.sql import ResultData, ResultManifest, StatementResponse, StatementStatus

PATIENCE: Final = dt.timedelta(minutes=15)
"""How long a statement may take; a warehouse that has to start first takes minutes of it."""

_ANSWER_SECONDS: Final = 60
_SERVER_WAITS: Final = "30s"
_LONGEST_PAUSE: Final = 5.0

T = TypeVar("T")


class SqlWarehouse:
    """A warehouse, by its id, in the workspace `host`; None for the one that the SDK finds (`DATABRICKS_HOST`).

    Raises:
        SettingsError: the SDK is not installed.
        WarehouseError: nobody is signed in, or the workspace is none.
    """

    def __init__(self, warehouse_id: str, *, host: str | None = None, patience: dt.timedelta = PATIENCE) -> None:
        try:
            from databricks.sdk import WorkspaceClient
            from databricks.sdk.core import Config
        except ImportError:
            raise SettingsError(
                f"BRONZE_SQL_WAREHOUSE={warehouse_id} needs a package that is not installed.",
                'install the extra `databricks`: pip install "bronze-assets[databricks]".',
            ) from None

        def sign_in() -> WorkspaceClient:
            # The SDK would try for five minutes to reach a workspace that is misspelt.
            return WorkspaceClient(
                config=Config(host=host, http_timeout_seconds=_ANSWER_SECONDS, retry_timeout_seconds=_ANSWER_SECONDS)
            )

        self._id = warehouse_id
        self._patience = patience
        self._api = self._asked(sign_in).statement_execution

    def rows(self, query: str, **parameters: dt.datetime) -> list[dict[str, Any]]:
        """All rows of a query: structs and maps as dictionaries, timestamps with their zone, everything else as text.

        Args:
            parameters: of the named markers, e.g. `since` for `:since`. They have a zone.

        Raises:
            WarehouseError: the workspace cannot be reached or refuses, the statement fails, is cancelled or takes too
                long (it is cancelled then), or its result is not whole.
        """
        from databricks.sdk.service.sql import (
            Disposition,
            ExecuteStatementRequestOnWaitTimeout,
            Format,
            StatementParameterListItem,
        )

        markers = [
            StatementParameterListItem(name, type="TIMESTAMP", value=moment.astimezone(dt.UTC).isoformat())
            for name, moment in parameters.items()
        ]
        deadline = time.monotonic() + self._patience.total_seconds()
        begun = self._asked(
            lambda: self._api.execute_statement(
                query,
                self._id,
                parameters=markers,
                disposition=Disposition.INLINE,
                format=Format.JSON_ARRAY,
                wait_timeout=_SERVER_WAITS,
                on_wait_timeout=ExecuteStatementRequestOnWaitTimeout.CONTINUE,
            )
        )
        done = self._ended(begun, deadline)
        try:
            return list(self._read(done))
        except (ValueError, TypeError, AttributeError):
            fault = self._odd()
        # Outside of the handler: what could not be read would be kept with the error.
        raise fault

    def _ended(self, response: StatementResponse, deadline: float) -> StatementResponse:
        """The response of a statement that has succeeded."""
        from databricks.sdk.service.sql import StatementState

        pause = 0.2
        statement_id = response.statement_id
        if not statement_id:
            raise self._odd()
        try:
            while (status := response.status) and status.state in (StatementState.PENDING, StatementState.RUNNING):
                if time.monotonic() > deadline:
                    raise WarehouseError(
                        f"The SQL warehouse {self._id} has not answered in"
                        f" {self._patience.total_seconds() / 60:.0f} minutes; the statement is cancelled.",
                        "see in the workspace whether the warehouse starts, and what else it is busy with; then run"
                        " this again.",
                    )
                time.sleep(pause)
                pause = min(2 * pause, _LONGEST_PAUSE)
                response = self._asked(lambda: self._api.get_statement(statement_id))
        except BaseException:
            # Nobody else would stop it, and it costs.
            self._cancel(statement_id)
            raise
        if status is None or status.state is not StatementState.SUCCEEDED:
            raise self._failed(statement_id, status)
        return response

    def _cancel(self, statement_id: str) -> None:
        try:
            self._api.cancel_execution(statement_id)
        except Exception:
            # What stopped the statement is what is to be told.
            return

    def _read(self, response: StatementResponse) -> Iterator[dict[str, Any]]:
        manifest, chunk = response.manifest, response.result
        if manifest is None or response.statement_id is None:
            raise self._odd()
        columns = _columns(manifest)
        count = 0
        while chunk is not None:
            for values in chunk.data_array or []:
                count += 1
                yield {
                    name: None if value is None else read(value)
                    for (name, read), value in zip(columns, values, strict=True)
                }
            chunk = self._next(response.statement_id, chunk)
        if manifest.truncated or count != (manifest.total_row_count or 0):
            raise self._odd()

    def _next(self, statement_id: str, chunk: ResultData) -> ResultData | None:
        index = chunk.next_chunk_index
        if index is None:
            return None
        return self._asked(lambda: self._api.get_statement_result_chunk_n(statement_id, index))

    def _asked(self, ask: Callable[[], T]) -> T:
        """What the SDK answers."""
        try:
            return ask()
        except Exception as error:
            reason = error_reason(error)
        # Outside of the handler: a context would be kept with the error.
        raise WarehouseError(
            f"The SQL warehouse {self._id} cannot be asked ({reason}).",
            "check DATABRICKS_HOST, BRONZE_SQL_WAREHOUSE and the network, who is signed in (DATABRICKS_TOKEN or another"
            " of the SDK's ways), and that they have CAN USE on the warehouse.",
        )

    def _failed(self, statement_id: str, status: StatementStatus | None) -> WarehouseError:
        state = status.state.value if status and status.state else "UNKNOWN"
        error = status.error if status else None
        # Databricks begins its messages with the condition; what follows quotes.
        condition = re.match(r"\[([A-Z][A-Z0-9_.]*)\]", (error.message if error else None) or "")
        told = [
            condition[1] if condition else None,
            error.error_code.value if error and error.error_code else None,
        ]
        said = ", ".join(text for text in told if text)
        return WarehouseError(
            f"A statement on the SQL warehouse {self._id} ended as {state}{f' ({said})' if said else ''}.",
            f"look at statement {statement_id} in the workspace's query history; who runs it needs SELECT on"
            " system.access and all grants of the catalog to see.",
        )

    def _odd(self) -> WarehouseError:
        return WarehouseError(
            f"The SQL warehouse {self._id} has answered with a result that is not whole or not of a form known here.",
            "run it again; if it stays, update the package databricks-sdk.",
        )


def error_reason(error: Exception) -> str:
    """Type and code of an error of the SDK, without its words."""
    code = getattr(error, "error_code", None)
    return type(error).__name__ + (f", {code}" if isinstance(code, str) and code.isidentifier() else "")


def _columns(manifest: ResultManifest) -> list[tuple[str, Callable[[str], Any]]]:
    """The names of the columns, and how to read their texts."""
    from databricks.sdk.service.sql import ColumnInfoTypeName

    nested = (ColumnInfoTypeName.STRUCT, ColumnInfoTypeName.MAP)
    readers: dict[ColumnInfoTypeName | None, Callable[[str], Any]] = {ColumnInfoTypeName.TIMESTAMP: _moment}
    readers |= dict.fromkeys(nested, json.loads)
    found = (manifest.schema.columns if manifest.schema else None) or []
    return [(column.name or "", readers.get(column.type_name, str)) for column in found]


def _moment(text: str) -> dt.datetime:
    moment = dt.datetime.fromisoformat(text)
    # The zone of a warehouse's session is UTC unless an admin has changed it; the API then tells it.
    return moment if moment.tzinfo else moment.replace(tzinfo=dt.UTC)
