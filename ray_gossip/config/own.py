"""Keys that name something of the user's own: `factory` in place of `name`, and its `args`."""

from __future__ import annotations

import re
from typing import Any


def name_or_factory(values: Any) -> Any:
    """Where there is a factory, there is no name."""
    if isinstance(values, dict) and values.get("factory") is not None:
        if values.get("name") is not None:
            raise ValueError(f"name={values['name']} and factory={values['factory']} are both set; keep one of them")
        values = {**values, "name": None}
    return values


def check_factory(name: str | None, factory: str | None, args: dict[str, Any]) -> None:
    if name is None and factory is None:
        raise ValueError("neither name nor factory is set; set one of them")
    if factory is not None and not re.fullmatch(r"[\w.]+:[^:\s]+", factory):
        raise ValueError(f"factory={factory} should be package.module:function")
    if args and factory is None:
        raise ValueError(f"args={args} are for a factory; set factory, or leave them out")
