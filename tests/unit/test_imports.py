"""Who may import whom: imports point one way, each heavy library has one home, the config is light."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "ray_gossip"

# A module may import those on lines above its own, and those of its own folder.
ORDER = """
errors
causes records storage folders screen stopping tensor_memory
addresses board forking
config
resources usage factory starter checkpoints
mixing data
training
rehearsal models
gossip
hive
sidecar
telemetry
testing peer
loop
integrations
resume
lines
console
status swarm
run
tuning
driver
ray_train arguments
standalone gossip_trainer
cli
__main__
templates
"""

HOMES = {
    "hivemind": {"hive"},
    "ray": {"swarm", "run", "tuning"},
    "optuna": {"tuning"},
    "pyarrow": {"storage"},
    "tensorboard": {"telemetry", "tuning"},
    "torchvision": {"data", "models"},
    "sklearn": {"data", "templates"},
    "lightning": {"integrations"},
    "transformers": {"integrations"},
    "pydantic": {"checkpoints", "config", "gossip", "records", "tuning"},
}

HEAVY = {"torch", "ray", "hivemind"}

RANK = {name: rank for rank, line in enumerate(ORDER.strip().splitlines()) for name in line.split()}


def noun(path: Path) -> str:
    """data/digits.py belongs to data."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


MODULES = sorted(path for path in PACKAGE.rglob("*.py") if noun(path) != "__init__")


def imported(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute here"
            if node.module == "ray_gossip":
                yield from (f"ray_gossip.{alias.name}" for alias in node.names)
            elif node.module:
                yield node.module


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_one_way(path: Path) -> None:
    for name in imported(path):
        package, _, rest = name.partition(".")
        other = rest.partition(".")[0]
        if package == "ray_gossip" and other not in ("", "__version__", noun(path)):
            assert RANK[other] < RANK[noun(path)], f"{noun(path)} imports {other}, which stands below it"


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_heavy_library_has_one_home(path: Path) -> None:
    for name in imported(path):
        library = name.partition(".")[0]
        assert noun(path) in HOMES.get(library, {noun(path)}), f"{library} is imported by {noun(path)}"


@pytest.mark.parametrize("module", ["config", "cli", "records", "driver", "status", "tuning.sweep"])
def test_what_answers_mistakes_loads_nothing_heavy(module: str) -> None:
    code = f"import ray_gossip.{module}, sys; print(*(set(sys.modules) & {HEAVY!r}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []
