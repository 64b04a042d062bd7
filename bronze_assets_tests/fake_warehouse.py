"""A Databricks workspace with one SQL warehouse, as its public REST API shows it: the Statement Execution API alone.

It is strict: what the API does not document, a wrong token, a warehouse that is not there, a statement that does not
parse, and a marker without its parameter (or the other way round) are refused. The SDK in front of it is the real one.
"""

from __future__ import annotations

import datetime as dt
import json
import re
import threading
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import sqlglot
from sqlglot import exp

TOKEN = "dapi-token-of-the-test"
ID = "1234567890abcdef"

# Of the public system tables.
PRIVILEGES = dict.fromkeys(
    ["grantee", "table_catalog", "table_schema", "table_name", "privilege_type", "inherited_from"], "STRING"
)
AUDIT = {
    "event_id": "STRING",
    "event_time": "TIMESTAMP",
    "user_identity": "STRUCT",
    "identity_metadata": "STRUCT",
    "source_ip_address": "STRING",
    "action_name": "STRING",
    "request_params": "MAP",
    "response": "STRUCT",
}
LINEAGE = {
    "event_id": "STRING",
    "event_time": "TIMESTAMP",
    "created_by": "STRING",
    "entity_type": "STRING",
    "statement_id": "STRING",
    "source_table_full_name": "STRING",
    "source_column_name": "STRING",
}
_TABLES = {"audit": AUDIT, "column_lineage": LINEAGE, "table_privileges": PRIVILEGES}


@dataclass
class FakeWarehouse:
    """What the warehouse holds, how it behaves and what it was asked.

    Attributes:
        tables: rows of `audit`, `column_lineage` and `table_privileges`.
        polls: how often a statement is told to run still before it has ended.
        end: how statements end, as `status` of the API.
        chunk: rows of a chunk.
        lost: rows that are counted and not sent.
        texts: what is sent of these columns, whatever they hold.
        asked: the bodies of the statements.
        cancelled: ids of statements.
        odd: requests that nobody documents.
    """

    tables: dict[str, list[Mapping[str, Any]]] = field(default_factory=lambda: {name: [] for name in _TABLES})
    polls: int = 0
    end: Mapping[str, Any] = field(default_factory=lambda: {"state": "SUCCEEDED"})
    chunk: int = 2
    lost: int = 0
    texts: dict[str, str] = field(default_factory=dict)
    asked: list[dict[str, Any]] = field(default_factory=list)
    cancelled: list[str] = field(default_factory=list)
    odd: list[str] = field(default_factory=list)
    port: int = 0
    _statements: dict[str, tuple[dict[str, Any], list[list[str | None]]]] = field(default_factory=dict)
    _left: dict[str, int] = field(default_factory=dict)

    @property
    def environ(self) -> dict[str, str]:
        """What the SDK finds the workspace and the token by."""
        return {"DATABRICKS_HOST": f"http://127.0.0.1:{self.port}", "DATABRICKS_TOKEN": TOKEN}

    def answer(self, method: str, path: str, headers: Any, body: bytes) -> tuple[int, object]:
        """The status and the JSON of a request."""
        if (method, path) == ("GET", "/.well-known/databricks-config"):
            # The SDK asks each host who it is, before anybody is signed in.
            host = f"http://127.0.0.1:{self.port}"
            return 200, {"oidc_endpoint": f"{host}/oidc", "account_id": str(uuid.UUID(int=1)), "workspace_id": "7"}
        if headers.get("X-Databricks-Workspace-Id") not in (None, "7"):
            return 400, {"error_code": "BAD_REQUEST", "message": "another workspace"}
        if headers.get("Authorization") != f"Bearer {TOKEN}":
            return 403, {"error_code": "PERMISSION_DENIED", "message": f"Invalid token {headers.get('Authorization')}"}
        # Documented with the slash, which newer versions of the SDK leave out.
        if (method, path.removesuffix("/")) == ("POST", "/api/2.0/sql/statements"):
            return self._execute(json.loads(body))
        known = re.fullmatch(r"/api/2\.0/sql/statements/([0-9a-f-]{36})(/cancel|/result/chunks/(\d+))?", path)
        if known and known[1] in self._statements:
            if method == "POST" and known[2] == "/cancel":
                self.cancelled.append(known[1])
                return 200, {}
            if method == "GET" and known[2] is None:
                return 200, self._told(known[1])
            if method == "GET" and known[3]:
                return 200, self._chunk(known[1], int(known[3]))
        self.odd.append(f"{method} {path}")
        return 404, {"error_code": "ENDPOINT_NOT_FOUND", "message": "no such endpoint"}

    def _execute(self, body: dict[str, Any]) -> tuple[int, object]:
        self.asked.append(body)
        if body.pop("warehouse_id", None) != ID:
            return 404, {"error_code": "RESOURCE_DOES_NOT_EXIST", "message": "SQL warehouse does not exist"}
        named = {one["name"]: _parameter(one) for one in body.get("parameters", [])}
        parsed = sqlglot.parse_one(body["statement"], dialect="databricks")
        markers = {found.name for found in parsed.find_all(exp.Placeholder)}
        wait = re.fullmatch(r"(\d+)s", body.get("wait_timeout", "10s"))
        faults = [
            set(body) - {"statement", "parameters", "disposition", "format", "wait_timeout", "on_wait_timeout"},
            body["disposition"] != "INLINE" or body["format"] != "JSON_ARRAY",
            wait is None or not (int(wait[1]) == 0 or 5 <= int(wait[1]) <= 50),
            body.get("on_wait_timeout") not in ("CONTINUE", "CANCEL"),
            markers != set(named),
        ]
        if any(faults):
            self.odd.append(f"{body} {faults}")
            return 400, {"error_code": "INVALID_PARAMETER_VALUE", "message": f"{faults}"}
        assert isinstance(parsed, exp.Query)
        names = {table.name for table in parsed.find_all(exp.Table)}
        (name,) = names & set(_TABLES)
        types = {column: _TABLES[name][column] for column in parsed.named_selects}
        rows = [
            [
                self.texts.get(column) or (None if row[column] is None else _text(row[column], kind))
                for column, kind in types.items()
            ]
            for row in self.tables[name]
            if "since" not in named or named["since"] <= row["event_time"] < named["until"]
        ]
        statement_id = str(uuid.uuid4())
        self._statements[statement_id] = (types, rows)
        self._left[statement_id] = self.polls
        return 200, self._told(statement_id)

    def _told(self, statement_id: str) -> dict[str, Any]:
        types, rows = self._statements[statement_id]
        self._left[statement_id] -= 1
        if self._left[statement_id] >= 0:
            state = "PENDING" if self._left[statement_id] else "RUNNING"
            return {"statement_id": statement_id, "status": {"state": state}}
        if self.end["state"] != "SUCCEEDED":
            return {"statement_id": statement_id, "status": dict(self.end)}
        columns = [
            {"name": name, "position": at, "type_name": kind, "type_text": kind}
            for at, (name, kind) in enumerate(types.items())
        ]
        manifest = {
            "format": "JSON_ARRAY",
            "schema": {"column_count": len(columns), "columns": columns},
            "total_row_count": len(rows) + self.lost,
            "total_chunk_count": -(-len(rows) // self.chunk),
            "truncated": False,
        }
        return {
            "statement_id": statement_id,
            "status": dict(self.end),
            "manifest": manifest,
            "result": self._chunk(statement_id, 0) if rows else {},
        }

    def _chunk(self, statement_id: str, index: int) -> dict[str, Any]:
        rows = self._statements[statement_id][1]
        here = rows[index * self.chunk : (index + 1) * self.chunk]
        told: dict[str, Any] = {
            "chunk_index": index,
            "row_offset": index * self.chunk,
            "row_count": len(here),
            "data_array": here,
        }
        if (index + 1) * self.chunk < len(rows):
            link = f"/api/2.0/sql/statements/{statement_id}/result/chunks/{index + 1}?row_offset={len(here)}"
            told |= {"next_chunk_index": index + 1, "next_chunk_internal_link": link}
        return told


def _parameter(one: Mapping[str, Any]) -> dt.datetime:
    assert set(one) == {"name", "type", "value"}
    assert one["type"] == "TIMESTAMP"
    moment = dt.datetime.fromisoformat(one["value"])
    assert moment.tzinfo is not None
    return moment


def _text(value: Any, kind: str) -> str:
    """As in JSON_ARRAY: timestamps in ISO 8601 with milliseconds, structs and maps as JSON of texts."""
    if kind == "TIMESTAMP":
        return str(value.astimezone(dt.UTC).strftime("%Y-%m-%dT%H:%M:%S.") + f"{value.microsecond // 1000:03}Z")
    if kind in ("STRUCT", "MAP"):
        return json.dumps({name: None if one is None else str(one) for name, one in value.items()})
    return str(value)


@contextmanager
def serving(rows: Mapping[str, Sequence[Mapping[str, Any]]] | None = None) -> Iterator[FakeWarehouse]:
    """A warehouse with these rows; nobody may have asked it for what is not documented."""
    state = FakeWarehouse()
    for name, found in (rows or {}).items():
        state.tables[name].extend(found)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._answer("GET")

        def do_POST(self) -> None:
            self._answer("POST")

        def _answer(self, method: str) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            status, told = state.answer(method, self.path, self.headers, body)
            content = json.dumps(told).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002
            pass

    with listening(Handler) as state.port:
        yield state
    assert state.odd == []


@contextmanager
def listening(handler: type[BaseHTTPRequestHandler]) -> Iterator[int]:
    """A server on this machine's loopback; its port."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
