"""The `space:` section: which values each key may take. Pure; imports nothing heavy.

space:
  gossip.group_size: {choice: [2, 4, 8]}        # one of these
  gossip.schedule: {grid: [grid, random]}       # all of these, with each draw of the other keys
  gossip.alpha: {uniform: [0.5, 1.0]}
  optimizer.lr: {loguniform: [0.01, 0.2]}       # its logarithm is uniform
  gossip.steps: {randint: [5, 50]}              # both ends included
"""

from __future__ import annotations

import difflib
import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from ray_gossip import config as configs
from ray_gossip.config import Config
from ray_gossip.config.changes import ONE_OF_TWO
from ray_gossip.errors import ConfigError

Space = Mapping[str, "Distribution"]


@dataclass(frozen=True)
class Choice:
    """A finite set of values."""

    values: tuple[Any, ...]
    each: bool = False  # `grid`: all of them in turn, instead of one by chance

    def spread(self, num: int, chance: random.Random) -> list[Any]:
        """So many draws: each value once before one comes again."""
        drawn: list[Any] = []
        while len(drawn) < num:
            drawn += chance.sample(self.values, len(self.values))
        return drawn[:num]

    def nearest(self, value: Any) -> Any:
        return value

    def checked(self) -> Sequence[Any]:
        return self.values

    def tree(self) -> dict[str, Any]:
        """As it is written in YAML."""
        return {"grid" if self.each else "choice": [list(v) if isinstance(v, tuple) else v for v in self.values]}


@dataclass(frozen=True)
class Range:
    """Numbers from low to high; of integers, both."""

    kind: Literal["uniform", "loguniform", "randint"]
    low: float
    high: float

    def spread(self, num: int, chance: random.Random) -> list[float]:
        """So many draws, one from each of so many equal parts of the range, in any order: a Latin hypercube."""
        return [self._at((part + chance.random()) / num) for part in chance.sample(range(num), num)]

    def _at(self, share: float) -> float:
        """The value below which this share of all draws is, in [0, 1)."""
        match self.kind:
            case "uniform":
                value = self.low + share * (self.high - self.low)
            case "loguniform":
                value = math.exp(math.log(self.low) + share * (math.log(self.high) - math.log(self.low)))
            case "randint":
                return int(self.low) + int(share * (int(self.high) - int(self.low) + 1))
        return min(max(value, self.low), self.high)

    def nearest(self, value: float) -> float:
        """To a value that may lie outside."""
        return min(max(value, self.low), self.high)

    def checked(self) -> Sequence[float]:
        return (self.low, self.high)

    def tree(self) -> dict[str, Any]:
        """As it is written in YAML."""
        return {self.kind: [self.low, self.high]}


MOST_POINTS = 2000  # of a sweep: each is a swarm, which takes seconds to start
_FARTHEST = 1e15  # up to which whole numbers are exact for all that compute with them

Distribution = Choice | Range
_KINDS = ("choice", "grid", "uniform", "loguniform", "randint")


def parse(tree: Any, base: Config) -> dict[str, Distribution]:
    """The distribution of each dotted key; every value of a finite one and both ends of a range are values that the
    schema allows beside those of `base`.

    Raises:
        ConfigError: one line that names the key and the fix.
    """
    if not isinstance(tree, Mapping):
        raise ConfigError(f"space={tree!r} must hold keys such as gossip.group_size: {{choice: [2, 4]}}")
    leaves = _flatten(tree)
    space = {key: _distribution(key, leaf) for key, leaf in leaves}
    _check_keys([key for key, _ in leaves])
    for key, distribution in space.items():
        _check_values(key, distribution, base)
    return space


def _flatten(tree: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    """Keys may be dotted, nested, or both."""
    leaves: list[tuple[str, Any]] = []
    for name, value in tree.items():
        key = f"{prefix}{name}"
        if isinstance(value, Mapping) and value and not set(value) & set(_KINDS):
            leaves += _flatten(value, f"{key}.")
        else:
            leaves.append((key, value))
    return leaves


def _distribution(key: str, leaf: Any) -> Distribution:
    if not isinstance(leaf, Mapping):
        meant = leaf if isinstance(leaf, list) else [leaf]
        kind = key.rpartition(".")[2]
        hint = _meant_kind(kind) if kind not in _KINDS else None
        fix = f"did you mean {hint}?" if hint else f"write {{choice: {meant}}}, or {', '.join(_KINDS[1:])}"
        raise ConfigError(f"space.{key}={leaf!r} says not how to choose; {fix}")
    if len(leaf) != 1:
        raise ConfigError(f"space.{key} has {len(leaf)} distributions ({', '.join(map(str, leaf))}); keep one of them")
    ((kind, values),) = leaf.items()
    if kind not in _KINDS:
        raise ConfigError(f"space.{key}: {kind} is no distribution; known here: {', '.join(_KINDS)}")
    if not isinstance(values, list):
        raise ConfigError(f"space.{key}: {kind} needs a list, not {values!r}; write {{{kind}: [...]}}")
    if kind in ("choice", "grid"):
        if not values:
            raise ConfigError(f"space.{key}: {kind} is empty; give it at least one value")
        if len(values) > MOST_POINTS:
            raise ConfigError(f"space.{key}: {kind} has {len(values)} values, above {MOST_POINTS}; use a range")
        twice = next((value for value in values if values.count(value) > 1), None)
        if twice is not None:
            raise ConfigError(f"space.{key}: {kind} has {twice!r} twice; leave one out")
        return Choice(tuple(_frozen(value) for value in values), each=kind == "grid")
    return _range(key, kind, values)


def _range(key: str, kind: Literal["uniform", "loguniform", "randint"], values: list[Any]) -> Range:
    number = int if kind == "randint" else (int, float)
    if len(values) != 2 or not all(isinstance(v, number) and not isinstance(v, bool) for v in values):
        what = "whole numbers" if kind == "randint" else "numbers"
        raise ConfigError(f"space.{key}: {kind} needs two {what}, not {values}; write {{{kind}: [low, high]}}")
    low, high = values
    if not (abs(low) <= _FARTHEST and abs(high) <= _FARTHEST):
        raise ConfigError(f"space.{key}: {kind}={values} goes beyond {_FARTHEST:g}; lower it")
    if not low < high:
        raise ConfigError(f"space.{key}: {kind}={values} is empty; the first number must be below the second")
    if kind == "loguniform" and low <= 0:
        raise ConfigError(f"space.{key}: loguniform={values} needs bounds above 0; raise {low:g}, or use uniform")
    return Range(kind, low, high)


def _check_keys(keys: Sequence[str]) -> None:
    for key in keys:
        if keys.count(key) > 1:
            raise ConfigError(f"space.{key} is there twice, once dotted and once in a section; keep one of them")
        try:
            configs.check_key(key)
        except ConfigError as error:
            raise ConfigError(f"space: {error}") from None
    for section, one, other in ONE_OF_TWO:
        if {f"{section}.{one}", f"{section}.{other}"} <= set(keys):
            raise ConfigError(f"space.{section}.{one} and {other} are both swept, but a run has one of them; keep one")


def _check_values(key: str, distribution: Distribution, base: Config) -> None:
    try:
        for value in distribution.checked():
            configs.check_value(base, key, value)
    except ConfigError as error:
        raise ConfigError(f"space.{error}") from None
    if isinstance(distribution, Range) and distribution.kind != "randint":
        inner = distribution.low + (distribution.high - distribution.low) / math.sqrt(3.0)  # never a whole number
        try:
            configs.check_value(base, key, inner)
        except ConfigError:
            raise ConfigError(
                f"space.{key}: {distribution.kind} draws fractions, but {key} takes whole numbers; use randint"
            ) from None


def _meant_kind(word: str) -> str | None:
    return next(iter(difflib.get_close_matches(word, _KINDS, n=1)), None)


def _frozen(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value
