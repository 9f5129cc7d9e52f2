"""The page `docs/benchmarks/README.md` from what `compare.py` has written there: text and tables; `--pictures` draws
them, too. `tests/unit/test_benchmark_page.py` fails when the page says anything else than the files.

    python benchmarks/compare.py --out docs/benchmarks/digits.json && python benchmarks/page.py --pictures
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import plots
from methods.tables import table_of

FOLDER = Path(__file__).parent.parent / "docs" / "benchmarks"
HEAD = """# What a user would pick instead

One task for all: the same network, data, batches, learning rates and local steps, in several processes; each method
through its own public interface, as its documentation has it (`benchmarks/methods/`). Wins and losses alike: this page
is written by `python benchmarks/page.py` from the files beside it, and those by `python benchmarks/compare.py`.

*accuracy*: of the processes' own models, mean; *of the mean*: of the mean of their parameters. *s to …*: until the own
models are that good. *MB sent*: by all, counted by the kernel. *MB a process*: with all that belongs to it, the most at
once; memory that is shared counts once.

*slow-link* is a network of more parameters (270,000): of a small one, a slow link is filled by nobody. Start and memory
of ours are those of peers that are alone on their machine; peers that share one have much of it in common
(`start_up.py`: eight of them do their first step when eight bare Ray actors have imported torch and hivemind, with
276 MB each).

*cifar10-jpeg-copy* is a JPEG copy of CIFAR-10, and local steps that keep both cores busy all the time.

Not run yet: hivemind's averaging of gradients, which takes ten times as long, and one slow process. One seed each.
"""


def page(folder: Path) -> str:
    return "\n".join([HEAD, *(line for path in sorted(folder.glob("*.json")) for line in _section(path))])


def _section(path: Path) -> Iterator[str]:
    found: dict[str, Any] = json.loads(path.read_text())
    settings = found["settings"]
    yield f"## {path.stem}"
    yield ""
    versions = ", ".join(f"{name} {version}" for name, version in found["versions"].items() if version)
    yield f"{found['date']}, {found['machine']}; {versions}."
    yield f"`{', '.join(f'{key}={value}' for key, value in settings.items() if value != '')}`"
    yield ""
    for condition in dict.fromkeys(row["condition"] for row in found["rows"]):
        table = table_of(condition, found["rows"])
        yield f"### {path.stem}, {condition}"
        yield ""
        if table.rows:
            yield f"![{condition}]({plots.name_of(path, condition)})"
            yield ""
            yield f"| {' | '.join(table.header)} |"
            yield f"|{' --- |' * len(table.header)}"
            yield from (f"| {' | '.join(row)} |" for row in table.rows)
            yield ""
        yield from (f"- {name}: {why}" for name, why in table.missing.items())
        yield ""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", action="store_true", help="draw them again")
    options = parser.parse_args()
    (FOLDER / "README.md").write_text(page(FOLDER))
    for path in sorted(FOLDER.glob("*.json")) if options.pictures else ():
        plots.draw(path)


if __name__ == "__main__":
    main()
