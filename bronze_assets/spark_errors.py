"""What Spark raises when something goes wrong in it."""

from __future__ import annotations

import re
from traceback import walk_tb

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


# What Spark says of a job that was at work, of one that was about to begin, and of any other call.
_STOPPED = re.compile("SparkContext (?:was shut down|has been shutdown)|stopped SparkContext")


def is_of_lost_jvm(error: BaseException) -> bool:
    """Whether the JVM that was at work does not answer any more, or was ending."""
    kind = type(error).__name__
    if isinstance(error, ConnectionError):
        # What py4j had sent was not answered, and when it tried again nobody was there.
        return any(frame.f_globals.get("__name__", "").startswith("py4j.") for frame, _ in walk_tb(error.__traceback__))
    if kind == "Py4JJavaError":
        try:
            return _STOPPED.search(str(error)) is not None
        except Exception:
            # The JVM is asked for the text.
            return True
    return kind == "Py4JNetworkError"


def condition_of(error: BaseException) -> str | None:
    """The name that Spark has for what went wrong, if the error has one; it never holds a value."""
    condition = getattr(error, "getCondition", lambda: None)()
    return str(condition) if condition else None
