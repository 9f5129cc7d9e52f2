"""Scripts as another library's documentation has them, and what has to be changed in them."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

MOST_LINES = 3


def changed(script: Path, *, to: str) -> Path:
    """The script with the diff beside it, under another name; at most three of its lines are new."""
    diff = script.with_suffix(".diff").read_text()
    new = [line for line in diff.splitlines() if line.startswith("+") and not line.startswith("+++")]
    assert 0 < len(new) <= MOST_LINES
    ours = script.with_name(to)
    shutil.copy(script, ours)
    patch = diff.replace(script.name, ours.name)
    command = ["git", "apply", "--unidiff-zero", "-"]
    subprocess.run(command, cwd=script.parent, input=patch, text=True, check=True, env={"GIT_DIR": "/nowhere"})
    assert ours.read_text() != script.read_text()
    return ours
