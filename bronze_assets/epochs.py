"""Source epochs: which server's log a position belongs to, and through which replication slot it was read.

`<system identifier>/<timeline>` for a server; `<system identifier>/<timeline>/<milliseconds since 1970>` for what a
slot tells, with the moment at which it was made. A server that was set back to a copy of its disk has the same
identifier and timeline, and gives the same positions to other transactions.
"""

from __future__ import annotations

import datetime as dt


def of_slot(server: str, made: dt.datetime) -> str:
    """The epoch of a slot that was made on a server at a moment."""
    return f"{server}/{int(made.timestamp() * 1000)}"


def server_of(epoch: str) -> str:
    """The server's part of an epoch."""
    return "/".join(epoch.split("/")[:2])


def is_before(epoch: str, other: str) -> bool:
    """Whether both are of one server, and the slot of the first is the older one; False where nothing tells."""
    return server_of(epoch) == server_of(other) and _made(epoch) < _made(other)


def _made(epoch: str) -> int:
    _, _, made = epoch.removeprefix(server_of(epoch)).partition("/")
    # Slots had none at first.
    return int(made) if made.isdigit() else -1
