"""A sweep as it was asked for: a base config, a space, and the points that are tried. Pure; imports nothing heavy."""

from __future__ import annotations

import contextlib
import itertools
import json
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ray_gossip import config as configs
from ray_gossip import storage
from ray_gossip.config import Config, SwarmConfig
from ray_gossip.errors import ConfigError
from ray_gossip.tuning import rules
from ray_gossip.tuning import space as spaces
from ray_gossip.tuning.settings import Baseline, SweepConfig
from ray_gossip.tuning.space import Choice, Space

Point = dict[str, Any]  # a value for each key of the space, and perhaps BASELINE

BASELINE = "baseline"  # of a point: its name, or NO_BASELINE; no key of the config
NO_BASELINE = "none"

SWEEP_FILE = "sweep.yaml"  # in a sweep's folder, what was asked for; `--resume` needs nothing else
SWEEP_FILES = ("report.json", "best.yaml", "bytes.png", "seconds.png", "parallel.png")  # in its end

_BASELINES: Mapping[Baseline, Point] = {
    "all": {"gossip.schedule": "all"},
    "no_averaging": {"gossip.group_size": 1},
    "hivemind": {"engine": "hivemind"},
    "one_peer": {"swarm.num_peers": 1},
}
_NOTHING = object()
_FEW = 3  # times `tune.reduction`, below which there are too few trials to stop some early
_TRIES = 200  # in a row that give nothing new; then the space has no more points
_SAMPLES = 50  # of what Optuna may suggest; what is wrong with most of them is seen before anything starts


@dataclass(frozen=True)
class Sweep:
    """What is varied, and how.

    Attributes:
        settings: the whole config, its `tune` section included.
        base: the same without `tune`: what `train` would run.
    """

    settings: SweepConfig
    base: Config
    space: Space

    def config(self, point: Mapping[str, Any]) -> Config:
        """The run at a point of the space. Raises ConfigError when its values do not go together."""
        return configs.replace(self.base, {key: value for key, value in point.items() if key != BASELINE})

    def baselines(self) -> list[Point]:
        """The points of the baselines: the base config's values of all swept keys, but for what makes them so."""
        tree = self.base.model_dump(mode="json")
        point = {key: value for key in self.space if (value := _value(tree, key)) is not _NOTHING}
        return [point | _BASELINES[name] | {BASELINE: name} for name in self.settings.tune.baselines]

    def points(self) -> tuple[list[Point], list[str]]:
        """What is tried, baselines first, and a sentence about what is left out. With searcher=optuna: the baselines,
        since the other points depend on how trials end.

        Raises:
            ConfigError: no point of the space is a config.
        """
        tune = self.settings.tune
        if tune.searcher == "optuna":
            return self.baselines(), []
        found, left_out = self._drawn(tune.num_samples)
        points = [*self.baselines(), *map(self._labelled, found)]
        if tune.scheduler == "pbt":
            self._check_population(len(found), num_trials=len(points))
        return points, left_out

    def configs(self, points: Sequence[Point]) -> list[Config]:
        """Those of these points. With searcher=optuna also some that it may suggest: random ones, and each value of
        each key by itself.

        Raises:
            ConfigError: no point of the space is a config.
        """
        found = list(points)
        if self.settings.tune.searcher == "optuna":
            found += self._drawn(_SAMPLES)[0]
            found += [{key: value} for key, distribution in self.space.items() for value in distribution.checked()]
        configs = []
        for point in found:
            with contextlib.suppress(ConfigError):  # a value by itself may need others
                configs.append(self.config(point))
        return configs

    def _drawn(self, num: int) -> tuple[list[Point], list[str]]:
        """So many draws of points that are configs, none of them twice, and a sentence about those that are none."""
        found: list[Point] = []
        left_out: list[str] = []
        seen: set[str] = set()
        num_fruitful = num_in_vain = 0
        for draw, combinations in self._draws():
            num_before, identity = len(found), json.dumps(draw, default=str)
            for combination in combinations if identity not in seen else ():
                point = {key: (draw | combination)[key] for key in self.space}
                try:
                    self.config(point)
                    found.append(point)
                except ConfigError as error:
                    left_out.append(str(error))
            seen.add(identity)
            is_fruitful = len(found) > num_before
            num_fruitful, num_in_vain = num_fruitful + is_fruitful, 0 if is_fruitful else num_in_vain + 1
            if num_fruitful == num or num_in_vain == _TRIES or len(left_out) > spaces.MOST_POINTS:
                break
        return found, [*_told(found, left_out), *self._not_varied(found)]

    def _not_varied(self, found: Sequence[Point]) -> list[str]:
        """A sentence about each key that has the same value everywhere, though it has others."""
        same = {
            key: found[0][key]
            for key, each in self.space.items()
            if len(found) > 1 and len(each.checked()) > 1 and all(point[key] == found[0][key] for point in found)
        }
        return [
            f"space.{key} is {value} in all {len(found)} trials: raise tune.num_samples" for key, value in same.items()
        ]

    def _draws(self) -> Iterator[tuple[Point, list[Point]]]:
        """Draws without end of what is left to chance, and all combinations of what is not; one draw, if nothing is."""
        in_turn = {
            key: each.values for key, each in self.space.items() if isinstance(each, Choice) and self.goes_through(each)
        }
        combinations = [dict(zip(in_turn, values, strict=True)) for values in itertools.product(*in_turn.values())]
        by_chance = {key: distribution for key, distribution in self.space.items() if key not in in_turn}
        chance, num = random.Random(self.base.seed), self.settings.tune.num_samples
        while by_chance:
            spread = {key: distribution.spread(num, chance) for key, distribution in by_chance.items()}
            yield from (({key: values[draw] for key, values in spread.items()}, combinations) for draw in range(num))
        yield {}, combinations

    def goes_through(self, choice: Choice) -> bool:
        """Whether each of its values is tried in turn, instead of one by chance."""
        return choice.each or self.settings.tune.searcher == "grid"

    def _check_population(self, num: int, *, num_trials: int) -> None:
        """Raise ConfigError unless its members can all take part from the start."""
        limit = self.settings.tune.max_concurrent
        if num < 2:
            raise ConfigError(
                f"tune.scheduler=pbt has a population of {num}, and nobody to learn from; raise tune.num_samples"
            )
        if limit is not None and limit < num_trials:
            raise ConfigError(
                f"tune.max_concurrent={limit} is below the {num_trials} trials of tune.scheduler=pbt, which compares "
                "all of them on the way: leave it out, they take turns where the cluster does not hold all at once"
            )

    def swarms(self, points: Sequence[Point]) -> list[SwarmConfig]:
        """Every swarm that may have to fit on the cluster."""
        possible = [self.config(point).swarm for point in points]
        if self.settings.tune.searcher == "optuna":
            sizes = {key: d.checked() for key, d in self.space.items() if key.startswith("swarm.")}
            for values in itertools.product(*sizes.values()):
                with contextlib.suppress(ConfigError):  # Optuna's suggestions of these values are left out too
                    possible.append(configs.replace(self.base, dict(zip(sizes, values, strict=True))).swarm)
        return list({swarm.model_dump_json(): swarm for swarm in possible}.values())

    def dump(self) -> str:
        """The sweep as YAML; `load` of it gives the same sweep."""
        space = {key: distribution.tree() for key, distribution in self.space.items()}
        return configs.write_yaml({**self.settings.model_dump(mode="json"), "space": space})

    def _labelled(self, point: Point) -> Point:
        return point | ({BASELINE: NO_BASELINE} if self.settings.tune.baselines else {})


def load(path: Path | None, overrides: Sequence[str]) -> Sweep:
    """Read a sweep's YAML file and apply dotted overrides; a key that is overridden is not swept.

    Raises:
        ConfigError: one line that names the key and the fix.
    """
    sweep = _parse(configs.load_tree(path, overrides))
    pinned = {override.partition("=")[0] for override in overrides}
    sweep = replace(sweep, space={key: sweep.space[key] for key in sweep.space if key not in pinned})
    rules.check(sweep)
    sweep = _decided(sweep)
    for point in sweep.baselines():
        try:
            sweep.config(point)
        except ConfigError as error:
            raise ConfigError(f"tune.baselines={point[BASELINE]}: {error}") from None
    return sweep


def _decided(sweep: Sweep) -> Sweep:
    """With tune.scheduler=auto, the one that it stands for."""
    tune = sweep.settings.tune
    if tune.scheduler != "auto":
        return sweep

    def scheduled(name: str) -> Sweep:
        tree = sweep.settings.model_dump(mode="json")
        own = {"scheduler": name} | ({} if name == "asha" else dict.fromkeys(("grace_steps", "reduction")))
        tune_tree = {key: value for key, value in (tree["tune"] | own).items() if value is not None}
        return replace(sweep, settings=configs.parse_as(SweepConfig, tree | {"tune": tune_tree}))

    num = tune.num_samples if tune.searcher == "optuna" else len(sweep.points()[0]) - len(tune.baselines)
    with contextlib.suppress(ConfigError):  # too short, or a loop of which nothing is known
        if num >= _FEW * tune.reduction:
            rules.check(asha := scheduled("asha"))
            return asha
    return scheduled("none")


def _parse(tree: Any) -> Sweep:
    space_tree = tree.pop("space", {})
    settings = configs.parse_as(SweepConfig, tree)
    base = configs.parse({key: value for key, value in tree.items() if key != "tune"})
    space = spaces.parse({} if space_tree is None else space_tree, base)
    return Sweep(settings, base, space)


def load_earlier(place: str | None) -> Sweep:
    """The sweep that was begun in this folder, or at this URI. Raises ConfigError when there is none."""
    if place is None:
        raise ConfigError("--resume needs --run-dir: name the folder of the sweep to go on with")
    try:
        if storage.is_uri(place):
            storage.check_uri(place)
        content = storage.read(place, SWEEP_FILE)
    except OSError:
        raise ConfigError(f"--resume: --run-dir {place} holds no sweep ({SWEEP_FILE}); leave --resume out") from None
    return _parse(configs.parse_text(content, called=f"{place}/{SWEEP_FILE}"))


def holds_one(place: str) -> bool:
    """Whether a sweep was begun here."""
    try:
        storage.read(place, SWEEP_FILE)
    except OSError:
        return False
    return True


def _told(found: Sequence[Point], left_out: Sequence[str]) -> list[str]:
    if not left_out:
        return []
    reason = left_out[0]
    if not found:
        raise ConfigError(f"space: none of its points is a config: {reason}")
    return [f"space: {len(left_out)} of its points left out: {reason}"]


def _value(tree: Mapping[str, Any], key: str) -> Any:
    value: Any = tree
    for part in key.split("."):
        value = value.get(part, _NOTHING)
        if value is _NOTHING:
            break  # an argument of the user's own model or data, which has its own default
    return value
