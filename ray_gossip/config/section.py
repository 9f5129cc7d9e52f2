"""What all sections of the config have in common."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator

from ray_gossip.config.meaning import Meaning

# Bounds that every machine bears; where less is possible, the key says so.
Seconds = Annotated[float, Field(ge=0.001, le=1_000_000)]  # timers count milliseconds in 31 bits
Peers = Annotated[int, Field(ge=1, le=10_000)]
Count = Annotated[int, Field(ge=0, le=1_000_000_000)]  # of steps, rounds, samples
Positive = Annotated[int, Field(ge=1, le=1_000_000_000)]


class Section(BaseModel):
    """Base of all sections: frozen, unknown keys refused."""

    meaning: ClassVar[Meaning] = Meaning()  # of its keys that do not say otherwise
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _not_a_switch(cls, value: Any, info: ValidationInfo) -> Any:
        """To YAML, yes and on are true; to Python, true is 1."""
        if isinstance(value, bool) and cls.model_fields[info.field_name or ""].annotation is not bool:
            raise ValueError(f"{str(value).lower()} is no value for it, because it is no switch")
        return value


def meanings(schema: type[BaseModel], prefix: str = "") -> dict[str, Meaning]:
    """What each dotted key of a schema means."""
    found: dict[str, Meaning] = {}
    for name, field in schema.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, Section):
            found |= meanings(field.annotation, f"{prefix}{name}.")
        else:
            said = [each for each in field.metadata if isinstance(each, Meaning)]
            found[prefix + name] = said[0] if said else getattr(schema, "meaning", Meaning())
    return found
