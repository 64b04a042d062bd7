"""The keys of data subjects: `bz_subject_keys`, and what is derived from a schema's HMAC root (docs/adr/0018).

A subject is `<table>/<key text>`, a table's name alone for the table's own key, or `*` for the root. Each has a row
with its key, wrapped by the master key. Every change of the table is decided on a version of it and committed only if
nobody else has committed since, so that a key is made once, whoever makes it at the same time.

Who reads or makes keys holds the table (`held`), together with others; who drops or wraps them anew holds it alone,
because that removes the files of earlier versions at once.
"""

from __future__ import annotations

import contextlib
import datetime as dt
from collections.abc import Callable, Iterator, Sequence
from secrets import token_bytes
from typing import Final

import pyarrow as pa
import pyarrow.compute as pc
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from bronze_assets.access import SUBJECT_KEYS
from bronze_assets.errors import KeyRefused
from bronze_assets.lakehouse import Lakehouse
from bronze_assets.privacy.keys import KEY_BYTES, VERSION_BYTES, KeyRing
from bronze_assets.storage import Change

ROOT: Final = "*"
_SCHEMA = pa.schema([("subject", pa.string()), ("wrapped", pa.binary()), ("created", pa.timestamp("us", tz="UTC"))])
# More are looked for in all rows instead: a list in SQL is parsed.
_MOST_NAMED = 1000


class DataKeys:
    """The keys of one schema's subjects.

    Args:
        ring: the master key.
        clock: gives the present moment, in UTC.
    """

    def __init__(self, lake: Lakehouse, ring: KeyRing, schema: str, clock: Callable[[], dt.datetime]) -> None:
        self._lake = lake
        self._ring = ring
        self._schema = schema
        self._clock = clock

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """While this is open, no key is dropped or wrapped anew, and no file of the table is removed.

        A load opens it before it looks for tombstones and closes it when its rows are written: whoever erases a person
        after writing their tombstone then waits for it in `drop`, and later loads see the tombstone. May be nested.

        Raises:
            TableBusy: keys are being dropped or wrapped anew, for minutes.
        """
        with self._lake.held(self._schema):
            yield
        self._lake.tidy_private(self._schema, SUBJECT_KEYS)

    def ensure(self, subjects: Sequence[str] | pa.ChunkedArray) -> None:
        """Make the keys that are missing, each 32 random bytes, and the root with the first of them.

        A table without rows counts as new; `check` looks without making anything.

        Raises:
            KeyRefused: the master key is not that of the keys that are there; none was made.
            LakeError, StaleBase: the table cannot be written.
        """

        def missing(version: int) -> pa.Table:
            names = pa.chunked_array([subjects] if isinstance(subjects, Sequence) else subjects.chunks, pa.string())
            names = names.combine_chunks()
            if self._root(version) is None:
                names = pa.concat_arrays([names, pa.array([ROOT])])
            known = self._rows(names, ["subject"], version)["subject"]
            names = pc.unique(names)
            return self._made(names.filter(pc.invert(pc.is_in(names, known))))

        with self.held():
            self._lake.change_private(self._schema, SUBJECT_KEYS, _SCHEMA, missing, on="subject", change="insert")

    def check(self) -> None:
        """Raise `KeyRefused` unless the master key is that of the schema's keys, if there are any."""
        with self.held():
            self._root()

    def key(self, subject: str) -> bytes | None:
        """The key of a subject; None if it has none, or none any more.

        Raises:
            KeyRefused: it cannot be unwrapped.
        """
        return self.keys([subject]).get(subject)

    def keys(self, subjects: Sequence[str]) -> dict[str, bytes]:
        """The keys of those of the subjects that have one.

        Raises:
            KeyRefused: one cannot be unwrapped.
        """
        with self.held():
            found = self._rows(pa.array(subjects, pa.string()), ["subject", "wrapped"])
        pairs = zip(found["subject"].to_pylist(), found["wrapped"].to_pylist(), strict=True)
        return {subject: self._unwrapped(subject, wrapped) for subject, wrapped in pairs}

    def hmac_key(self, purpose: str) -> bytes:
        """The key of the HMACs for one purpose: HKDF-SHA256 (RFC 5869) of the root, info `bronze_assets/<purpose>`.

        The root is made when missing, and is the same in every schema and environment that shares the master key.

        Args:
            purpose: `token`, `hash` or `tombstone`.

        Raises:
            KeyRefused: the master key is not that of this schema, or its version 1 has been retired and the schema has
                no root yet.
        """
        self.ensure([])
        with self.held():
            return HKDF(SHA256(), KEY_BYTES, None, b"bronze_assets/" + purpose.encode()).derive(self._root() or b"")

    def drop(self, subjects: Sequence[str]) -> int:
        """Remove the keys of these subjects, for good: no file holds them afterwards. Waits for all who hold the table.

        Killed in between, it is finished by doing it again.

        Returns:
            How many keys were there.

        Raises:
            TableBusy: somebody held the table for minutes; nothing was removed.
            ValueError: the root is among them, which every token hangs on.
        """
        if ROOT in subjects:
            raise ValueError("the HMAC root belongs to no subject and is not dropped")
        if not self._lake.exists(self._schema, SUBJECT_KEYS):
            return 0

        def there(version: int) -> pa.Table:
            names = pa.array(subjects, pa.string())
            return self._rows(names, ["subject"], version)

        return self._change_alone(there, "delete")

    def rewrap(self) -> int:
        """Wrap every key that an older version of the master key wraps with the current one, in one commit.

        Afterwards no file holds a key under an older version, and a process that still has a ring without the current
        version is refused by `ensure`.

        Returns:
            How many keys were wrapped anew.

        Raises:
            KeyRefused: one cannot be unwrapped; nothing was changed.
            TableBusy: somebody held the table for minutes; nothing was changed.
        """
        if not self._lake.exists(self._schema, SUBJECT_KEYS):
            return 0
        current = self._ring.current.to_bytes(VERSION_BYTES, "big")

        def older(version: int) -> pa.Table:
            rows = self._all(["subject", "wrapped", "created"], version)
            return self._rewrapped(
                rows.filter(pc.not_equal(pc.binary_slice(rows["wrapped"], 0, VERSION_BYTES), current))
            )

        return self._change_alone(older, "update")

    def versions(self) -> dict[int, int]:
        """How many keys each version of the master key wraps; empty without keys."""
        with self.held():
            counted = self._all(["wrapped"])
        heads = pc.value_counts(pc.binary_slice(counted["wrapped"], 0, VERSION_BYTES)).to_pylist()
        return {int.from_bytes(head["values"], "big"): head["counts"] for head in heads}

    def _change_alone(self, decide: Callable[[int], pa.Table], change: Change) -> int:
        with self._lake.held(self._schema, alone=True):
            changed = self._lake.change_private(
                self._schema, SUBJECT_KEYS, _SCHEMA, decide, on="subject", change=change
            )
            # Also where nothing was left to change: who changed it may have been killed before this.
            self._lake.purge(self._schema, SUBJECT_KEYS)
        return changed

    def _made(self, subjects: pa.Array) -> pa.Table:
        names = subjects.to_pylist()
        # One read for all: a system call each would cost as much as the encryption.
        random = token_bytes(KEY_BYTES * len(names))
        made = [random[at : at + KEY_BYTES] for at in range(0, len(random), KEY_BYTES)]
        if ROOT in names:
            made[names.index(ROOT)] = self._ring.derive("hmac root", 1)
        wrapped = self._ring.wrap_many(made, [f"{self._schema}/{name}" for name in names])
        return pa.table([subjects, wrapped, [self._clock()] * len(names)], schema=_SCHEMA)

    def _rewrapped(self, rows: pa.Table) -> pa.Table:
        names = rows["subject"].to_pylist()
        keys = [self._unwrapped(name, one) for name, one in zip(names, rows["wrapped"].to_pylist(), strict=True)]
        wrapped = self._ring.wrap_many(keys, [f"{self._schema}/{name}" for name in names])
        return pa.table([rows["subject"], wrapped, rows["created"]], schema=_SCHEMA)

    def _unwrapped(self, subject: str, wrapped: bytes) -> bytes:
        try:
            return self._ring.unwrap(wrapped, context=f"{self._schema}/{subject}")
        except KeyRefused as error:
            culprit, fix = error.culprit, error.fix
        raise KeyRefused(culprit, fix, table=f"{self._schema}.{SUBJECT_KEYS}")

    def _root(self, version: int | None = None) -> bytes | None:
        """The root; None of a table without rows."""
        wrapped = self._rows(pa.array([ROOT]), ["wrapped"], version)["wrapped"].to_pylist()
        if wrapped:
            return self._unwrapped(ROOT, wrapped[0])
        if self._all(["subject"], version, "true limit 1").num_rows:
            raise KeyRefused(
                "The root of the HMACs is missing, and keys are there.",
                "restore the table to an earlier version: a new root would give equal values other tokens.",
                table=f"{self._schema}.{SUBJECT_KEYS}",
            )
        return None

    def _rows(self, subjects: pa.Array, columns: Sequence[str], version: int | None = None) -> pa.Table:
        """The rows of these subjects."""
        if len(subjects) > _MOST_NAMED:
            found = self._all(("subject", *columns), version)
            return found.filter(pc.is_in(found["subject"], subjects)).select(list(columns))
        columns = tuple(dict.fromkeys(columns))
        place = self._lake.location(self._schema, SUBJECT_KEYS)
        found = self._lake.storage.among(place, "subject", subjects, columns, version)
        wanted = pa.schema([_SCHEMA.field(name) for name in columns])
        return wanted.empty_table() if found is None else found.cast(wanted)

    def _all(self, columns: Sequence[str], version: int | None = None, where: str = "true") -> pa.Table:
        columns = tuple(dict.fromkeys(columns))
        query = f"select {', '.join(columns)} from t where {where}"
        found = self._lake.query(self._schema, SUBJECT_KEYS, query, version=version)
        wanted = pa.schema([_SCHEMA.field(name) for name in columns])
        return wanted.empty_table() if found is None else found.cast(wanted)
