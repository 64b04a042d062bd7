"""Columns of a table with personal data that somebody has declared since they joined it.

Until then their values are sealed, whatever their type (semantics.md, values): nobody has said whether they are
personal. The next load brings what is in the table into the declared form, once.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

from pyspark.sql import DataFrame
from pyspark.sql import functions as F
from pyspark.sql import types as T

from bronze_assets.attempt import Attempt
from bronze_assets.errors import LoadRefused
from bronze_assets.schema_versions import SchemaVersions
from bronze_assets.sources.files import SPARKS_OWN, parsed
from bronze_assets.table import Column, Pii

logger = logging.getLogger(__name__)


def classify(attempt: Attempt) -> None:
    """Bring sealed values of columns that are declared by now into their declared form.

    Raises:
        LoadRefused: a value is none of the declared type; nothing was changed.
    """
    bench, table = attempt.bench, attempt.table
    added = [c for c in table.columns if c.added]
    if not added or not table.has_personal_data or not bench.lake.exists(table.schema, table.name):
        return
    known = SchemaVersions(bench.lake, table, bench.clock)
    versions = bench.lake.read(bench.session, table.schema, table.name)
    types = {field.name: field.dataType for field in versions.schema.fields}
    classified = known.classified()
    waiting = [c for c in added if c.name in types and c.name not in classified]
    if not waiting:
        return
    # What is High stays sealed as it is; what was declared before it joined has never been sealed.
    texts = [c for c in waiting if c.pii is not Pii.HIGH and isinstance(types[c.name], T.StringType)]
    sealed = [c for c in texts if types[c.name] != c.type or _holds_sealed(attempt, c)]
    if sealed:
        _unseal(attempt, versions, sealed)
    known.record("classified", {c.name: c.type for c in waiting}, batch_id=None, actor=attempt.run.id)


def _holds_sealed(attempt: Attempt, column: Column) -> bool:
    any_sealed = f"select 1 as one from t where \"{column.name}\" like 'enc:%' limit 1"
    found = attempt.bench.lake.query(attempt.table.schema, attempt.table.name, any_sealed)
    return found is not None and found.num_rows > 0


def _unseal(attempt: Attempt, versions: DataFrame, columns: Sequence[Column]) -> None:
    table, protection = attempt.table, attempt.protection
    assert protection is not None
    texts = protection.classified(versions, columns)
    values = {c.name: parsed(F.col(c.name), c.type, SPARKS_OWN) for c in columns}
    wrong = [F.count_if(F.col(name).isNotNull() & value.isNull()).alias(name) for name, value in values.items()]
    counts = texts.select(*wrong).first()
    for column in columns:
        if counts is not None and counts[column.name]:
            raise LoadRefused(
                f"{counts[column.name]} values of {column.name!r}, sealed before it was declared, are no"
                f" {column.type.simpleString()}. Nothing was changed.",
                "declare it as STRING, or with the type that the source has.",
                table=table.name,
            )
    attempt.bench.lake.rewrite(texts.withColumns(values), table, "classified")
    logger.info("%s: %s: no longer sealed, now as declared", table.name, ", ".join(c.name for c in columns))
