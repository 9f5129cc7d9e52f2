"""What `ray-gossip init` writes: a config and a training loop that run as they are."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

from ray_gossip.errors import ConfigError

FILES = ("config.yaml", "train.py")


def write_starter(folder: Path) -> None:
    """Write them into a folder, which is made if missing.

    Raises:
        ConfigError: one of them is there already, or the folder cannot be written to.
    """
    try:
        for name in FILES:
            if (folder / name).exists():
                raise ConfigError(f"{folder / name} is there already: move it away, or name another folder")
        folder.mkdir(parents=True, exist_ok=True)
        for name in FILES:
            (folder / name).write_text(resources.files("ray_gossip").joinpath("templates", name).read_text())
    except OSError as error:
        raise ConfigError(f"cannot write to {folder}: {error.strerror}") from None
