"""Why a peer is lost. What it raised is a value, which crosses from its actor to the driver whole: nobody has to read a
traceback."""

from __future__ import annotations

import os
import re
import sysconfig
import traceback
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import ray

from ray_gossip.errors import DivergedError, RayGossipError, SwarmError, UserError, one_line


@dataclass(frozen=True)
class Failure:
    cause: str  # one line: the name of the exception, what it says, and the user's own line that led to it
    traceback: str
    mistake: UserError | None  # the exception itself, where the user can mend it
    would_recur: bool  # in any process that takes this one's place

    @classmethod
    def of(cls, error: Exception) -> Failure:
        place = "" if isinstance(error, RayGossipError) else _own_line(error)
        cause = one_line(f"{type(error).__name__}: {error}".rstrip(": ") + place)
        trace = "".join(traceback.format_exception(error)).rstrip()
        mistake = error if isinstance(error, UserError) else None
        return cls(cause, trace, mistake, would_recur=isinstance(error, (UserError, DivergedError)))

    def __str__(self) -> str:
        """A sentence, and below it where it happened."""
        return f"{self.cause}\n{self.traceback}"


def nobody_came_up(causes: Mapping[int, str], mistakes: Mapping[int, UserError]) -> RayGossipError:
    """What is raised when no peer has started. By peer: why, and what the user can mend."""
    first = min(causes)  # the others join through it: its cause is behind theirs
    why = f"no peer came up; peer {first}: {causes[first].splitlines()[0]}"
    return mistakes.get(first) or SwarmError(why)


def _own_line(error: Exception) -> str:
    """Where code of the user's own was when it happened; empty if it was nowhere."""
    libraries = (
        str(Path(__file__).parents[1]),
        *(sysconfig.get_path(name) for name in ("stdlib", "purelib", "platlib")),
    )
    frames = traceback.extract_tb(error.__traceback__)
    own = [
        frame for frame in frames if not frame.filename.startswith(("<", *(f"{each}{os.sep}" for each in libraries)))
    ]
    return f" ({own[-1].filename}, line {own[-1].lineno})" if own else ""


def cause_of(error: ray.exceptions.RayError) -> str:
    """Why Ray lost a peer: a sentence, and what Ray knows below it."""
    text = re.sub(r"\x1b\[\d*m", "", str(error)).strip()
    text = text.partition(" Some common causes include")[0]  # a paragraph of guesses
    if isinstance(error, ray.exceptions.RayTaskError):
        return f"it raised {type(error.cause).__name__}: {error.cause}\n{text}"
    return f"its {'node' if 'node has died' in text else 'process'} died\n{text}"
