"""Many yes-or-no columns of a row in few numbers, a bit each.

Spark makes one method of a projection, and the JVM compiles none that is long: forty columns of rules, each counted,
weighed and shown on its own, were interpreted (docs/adr/0031). Of a number, what is asked of all of them is one
comparison.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Iterable, Iterator, Mapping, Sequence

from pyspark.sql import Column as SparkColumn
from pyspark.sql import functions as F

_BITS = 62


class Flags:
    """Named flags in BIGINT columns.

    Args:
        prefix: of the columns' names.
        names: of the flags.
    """

    def __init__(self, prefix: str, names: Sequence[str]) -> None:
        self._places = {name: (f"{prefix}{at // _BITS}", 1 << at % _BITS) for at, name in enumerate(names)}

    def columns(self, conditions: Mapping[str, SparkColumn]) -> dict[str, SparkColumn]:
        """The columns by name; a condition that is NULL sets no flag.

        Args:
            conditions: of every flag, by its name.
        """
        words: dict[str, list[SparkColumn]] = {}
        for name, (word, bit) in self._places.items():
            words.setdefault(word, []).append(F.when(conditions[name], F.lit(bit)).otherwise(F.lit(0)).cast("long"))
        return {word: functools.reduce(SparkColumn.bitwiseOR, bits) for word, bits in words.items()}

    def is_set(self, name: str) -> SparkColumn:
        """Whether a row has the flag; NULL in a row without flags."""
        return self.any_set([name])

    def any_set(self, names: Iterable[str]) -> SparkColumn:
        """Whether a row has any of the flags; NULL in a row without flags."""
        found = (bits != 0 for bits in self._of(names))
        return functools.reduce(operator.or_, found, F.lit(False))

    def number_set(self, names: Iterable[str]) -> SparkColumn:
        """How many of the flags a row has."""
        return functools.reduce(operator.add, map(F.bit_count, self._of(names)), F.lit(0))

    def _of(self, names: Iterable[str]) -> Iterator[SparkColumn]:
        masks: dict[str, int] = {}
        for name in names:
            word, bit = self._places[name]
            masks[word] = masks.get(word, 0) | bit
        for word, mask in masks.items():
            yield F.col(word).bitwiseAND(F.lit(mask).cast("long"))
