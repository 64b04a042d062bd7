"""What Spark raises when something goes wrong in it."""

from __future__ import annotations

from pyspark.errors import PySparkException

SPARK_ERRORS: tuple[type[Exception], ...] = (PySparkException,)
"""Delta's own exceptions and those of failed tasks come as py4j's in classic Spark. Over Spark Connect all are
pyspark's, and a client need not have py4j."""

try:
    from py4j.protocol import Py4JError
except ImportError:
    pass
else:
    SPARK_ERRORS += (Py4JError,)


def condition_of(error: BaseException) -> str | None:
    """The name that Spark has for what went wrong, if the error has one; it never holds a value."""
    condition = getattr(error, "getCondition", lambda: None)()
    return str(condition) if condition else None
