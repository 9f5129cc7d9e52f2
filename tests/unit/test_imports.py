"""Who may import whom: files further down may use those above, and each heavy library has its homes."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "ray_gossip"
FILES = sorted(PACKAGE.rglob("*.py"))

# files and folders in the order in which they build on each other
ORDER = [
    *(
        "errors",
        "addresses",
        "records",
        "config",
        "checkpoint",
        "schedule",
        "mixing",
        "data",
        "models",
        "trainer",
        "hive",
    ),
    *("telemetry", "peer", "console", "resources", "swarm", "run", "tuning", "driver", "standalone", "cli", "testing"),
]

HOMES = {
    "ray": {"swarm", "run", "tuning"},
    "hivemind": {"hive"},
    "optuna": {"tuning"},
    "torch": {"data", "models", "trainer", "hive", "peer", "standalone", "testing", "mixing"},
}

LIGHT = ["config.py", "resources.py", "driver.py", "cli.py", "tuning/settings.py", "tuning/space.py", "tuning/sweep.py"]


def imports(file: Path, *, at_the_top: bool = False) -> Iterator[str]:
    """The modules that a file imports; for types only does not count."""
    tree = ast.parse(file.read_text())
    typing_only = {
        node
        for block in tree.body
        if isinstance(block, ast.If) and ast.unparse(block.test) == "TYPE_CHECKING"
        for node in ast.walk(block)
    }
    for node in tree.body if at_the_top else ast.walk(tree):
        if node in typing_only:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def place(file: Path) -> str:
    return file.relative_to(PACKAGE).parts[0].removesuffix(".py")


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(PACKAGE)))
def test_imports_point_up_and_heavy_libraries_stay_in_their_homes(file: Path) -> None:
    mine = place(file)
    for module in imports(file):
        library, *inside = module.split(".")
        if library == "ray_gossip" and inside[0] in ORDER and mine != "__init__":
            assert ORDER.index(inside[0]) <= ORDER.index(mine), f"{mine} imports {module}"
        assert mine in HOMES.get(library, {mine}), f"{mine} imports {module}"


@pytest.mark.parametrize("name", LIGHT)
def test_what_answers_a_mistake_loads_nothing_heavy(name: str) -> None:
    """Neither itself nor through what it imports at its top."""
    seen: set[Path] = set()
    waiting = [PACKAGE / name]
    while waiting:
        file = waiting.pop()
        if file in seen:
            continue
        seen.add(file)
        for module in imports(file, at_the_top=True):
            library, *inside = module.split(".")
            assert library not in HOMES, f"{name} loads {module} through {file}"
            if library == "ray_gossip":
                candidates = [PACKAGE.joinpath(*inside[:length]) for length in range(1, len(inside) + 1)]
                waiting += [
                    path for c in candidates for path in (c.with_suffix(".py"), c / "__init__.py") if path.exists()
                ]
