"""What `doctor` finds, look by look; what there is to look at is in `doctor` and `doctor_databricks`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from bronze_assets.errors import BronzeError


@dataclass(frozen=True)
class Finding:
    """What one look has found.

    Attributes:
        of: what was looked at.
        words: how it stands.
        fix: what to do; None where nothing is wrong.
    """

    of: str
    words: str
    fix: str | None = None

    def __str__(self) -> str:
        mark = "ok  " if self.fix is None else "FAIL"
        return f"{mark}  {self.of}: {self.words}" + ("" if self.fix is None else f" Fix: {self.fix}")

    @classmethod
    def of_error(cls, of: str, error: BronzeError) -> Finding:
        """What the error says."""
        return cls(of, str(error).removesuffix(f" Fix: {error.fix}"), error.fix)


Look = tuple[str, Callable[[], Finding | Sequence[Finding]]]
"""What is looked at, and the look."""


def run_looks(looks: Iterable[Look]) -> Iterator[Finding]:
    """Take the looks, one after the other; each is done before the next is asked for.

    Yields:
        The findings, as they are made; a look that cannot be had is one, and does not keep the others back.
    """
    for name, look in looks:
        failure: Finding | None = None
        answer: Finding | Sequence[Finding] = ()
        try:
            answer = look()
        except BronzeError as error:
            failure = Finding.of_error(name, error)
        except Exception as error:
            # Of a library, whose words may hold a secret.
            failure = Finding(name, f"the look failed ({type(error).__name__}).", "report this as a defect.")
        if failure is not None:
            yield failure
        else:
            yield from [answer] if isinstance(answer, Finding) else answer
