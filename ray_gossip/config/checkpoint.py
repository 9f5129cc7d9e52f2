"""The `checkpoint:` section."""

from __future__ import annotations

import re
from typing import Any

from pydantic import Field, field_validator, model_validator

from ray_gossip.config.section import Positive, Seconds, Section

_OBJECTIVE = re.compile(r"(max|min):.+")


class CheckpointConfig(Section):
    """What a run that is interrupted goes on from, with --resume: the state of every peer."""

    every_s: Seconds | None = 600.0
    """Seconds between two checkpoints. What a run that dies has done since the last one is lost; a run that is stopped
    in order (Ctrl-C, SIGTERM) saves once more. Unset, with every_steps unset: never."""
    every_steps: Positive | None = None
    """Local steps between two checkpoints, instead of every_s."""
    keep: Positive = 2
    """The latest so many are kept; older ones are removed."""
    best_by: str | None = None
    """One more is kept: the best by the mean over the peers of what they were evaluated at or reported last, such as
    max:accuracy or min:loss."""
    place: str | None = Field(None, min_length=1, max_length=2000)
    """Where they lie, below the name of the run's folder: a folder that all nodes share, or a URI such as
    s3://bucket/name. Unset: checkpoints/ in the run's folder, where those of a sweep's trials always are."""

    @model_validator(mode="before")
    @classmethod
    def _one_clock(cls, values: Any) -> Any:
        if isinstance(values, dict) and values.get("every_steps") is not None:
            if values.get("every_s") not in (None, cls.model_fields["every_s"].default):
                raise ValueError("every_s and every_steps are both set; keep one of them")
            values = {**values, "every_s": None}
        return values

    @field_validator("best_by")
    @classmethod
    def _objective(cls, best_by: str | None) -> str | None:
        if best_by is not None and not _OBJECTIVE.fullmatch(best_by):
            raise ValueError(f"{best_by} is no objective; write max:accuracy, min:loss, or what is reported")
        return best_by

    @property
    def is_on(self) -> bool:
        return self.every_s is not None or self.every_steps is not None
