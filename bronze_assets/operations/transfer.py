"""Brings the data files of a table from one folder into another, each read back and counted."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import BinaryIO, Final, cast

from pyarrow import ArrowException

from bronze_assets.errors import BronzeError, CopyFailed
from bronze_assets.operations.delta_log import Action, Folder, name_of, records

_AT_ONCE: Final = 4


@dataclass(frozen=True)
class Brought:
    """What has become of a file.

    Attributes:
        copied: bytes; None if the file was there.
        hash: SHA-256 of its bytes, as hex.
        rows: as its footer says.
    """

    copied: int | None
    hash: str
    rows: int


def bring(
    table: str,
    files: Mapping[str, Action],
    source: Folder,
    target: Folder,
    there: Mapping[str, int],
    expected: Mapping[str, str],
    *,
    reached: Callable[[str], AbstractContextManager[None]],
    say: Callable[[str], None],
) -> dict[str, Brought]:
    """Bring files from one folder into another; by path of the log, what has become of them.

    Args:
        table: for errors.
        files: path of the log → `add` action.
        there: those that lie in the target already, with their sizes; taken if their bytes are the same.
        expected: path of the log → SHA-256, where it is known.
        reached: tells what the target's storage raises as a `CopyFailed`; gets the file.
        say: is told of each file.

    Raises:
        CopyFailed: a file cannot be read, written, or is not what the log says. Whole files stay for the next try.
    """
    done: dict[str, Brought] = {}
    pool = ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="copy")
    try:
        tasks = {
            pool.submit(_bring, table, add, source, target, there.get(name_of(path)), expected.get(path), reached): path
            for path, add in files.items()
        }
        for task in as_completed(tasks):
            done[tasks[task]] = task.result()
            say(f"{table}: {len(done)} of {len(files)} files")
    finally:
        pool.shutdown(cancel_futures=True)
    return done


def _bring(
    table: str,
    add: Action,
    source: Folder,
    target: Folder,
    there: int | None,
    expected: str | None,
    reached: Callable[[str], AbstractContextManager[None]],
) -> Brought:
    name, size = name_of(add["path"]), int(add["size"])
    what = f"{source.url}/{name}"
    with reached(f"{target.url}/{name}"):
        if there == size:
            with _readable(table, what):
                original = source.digest(name)
            if original == target.digest(name) and expected in (None, original[1]):
                return Brought(None, original[1], target.rows(name))
        with _readable(table, what):
            stream = source.open(name)
        with contextlib.closing(stream):
            written = target.take(name, cast(BinaryIO, _Reading(stream, lambda: _readable(table, what))))
        if written[0] != size or expected not in (None, written[1]):
            target.remove([name])
            raise _damaged(table, what, "its bytes are not those that were written there")
        if target.digest(name) != written:
            target.remove([name])
            raise CopyFailed(f"{target.url}/{name} is not what was written there.", "run it again.", table=table)
        told = records(add)
        try:
            rows = target.rows(name)
        except (ArrowException, OSError):
            rows = -1
        if rows < 0 or told not in (None, rows):
            target.remove([name])
            raise _damaged(table, what, "it has no footer" if rows < 0 else f"it has {rows} rows, not {told}")
    return Brought(size, written[1], rows)


def _damaged(table: str, what: str, why: str) -> CopyFailed:
    return CopyFailed(
        f"{what} is damaged: {why}.", "restore another version, or from another place, that is whole.", table=table
    )


class _Reading:
    """A stream of the source, whose errors are told as the source's, and not as those of where it goes."""

    def __init__(self, stream: BinaryIO, told: Callable[[], AbstractContextManager[None]]) -> None:
        self._stream = stream
        self._told = told

    def read(self, size: int) -> bytes:
        with self._told():
            return self._stream.read(size)


@contextlib.contextmanager
def _readable(table: str, what: str) -> Iterator[None]:
    try:
        yield
    except BronzeError:
        raise
    except Exception as error:  # fsspec raises what the storage behind a URI raises
        kind = type(error).__name__
    else:
        return
    raise CopyFailed(
        f"{what} cannot be read ({kind}).",
        "run it again; if the file is gone for good, restore the table from a copy.",
        table=table,
    )
