"""What a peer raised, as a value: it crosses from its actor to the driver whole, and nobody has to read a traceback."""

from __future__ import annotations

import traceback
from dataclasses import dataclass

from ray_gossip.errors import UserError, one_line


@dataclass(frozen=True)
class Failure:
    cause: str  # one line: the name of the exception, and what it says
    traceback: str
    mistake: UserError | None  # the exception itself, where the user can mend it

    @classmethod
    def of(cls, error: Exception) -> Failure:
        cause = one_line(f"{type(error).__name__}: {error}".rstrip(": "))
        trace = "".join(traceback.format_exception(error)).rstrip()
        return cls(cause, trace, error if isinstance(error, UserError) else None)

    def __str__(self) -> str:
        """A sentence, and below it where it happened."""
        return f"{self.cause}\n{self.traceback}"
