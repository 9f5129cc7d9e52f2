"""From words, files and nested dicts to a config, and back to YAML."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ray_gossip.config.changes import ONE_OF_TWO
from ray_gossip.config.schema import Config, parse
from ray_gossip.errors import ConfigError


def load(path: Path | None = None, overrides: Sequence[str] = ()) -> Config:
    """Read a YAML file (or none: the defaults) and apply dotted overrides such as `gossip.group_size=2`.

    Raises:
        ConfigError: one line that names the key and the fix.
    """
    tree = load_tree(path, overrides)
    if isinstance(tree, dict) and tree.keys() & {"space", "tune"}:
        raise ConfigError(f"{path or 'this'} is a sweep, with space: or tune: in it; run it with ray-gossip tune")
    return parse(tree)


def load_tree(path: Path | None = None, overrides: Sequence[str] = ()) -> Any:
    """What `load` parses: plain nested dicts, not checked yet. Raises ConfigError."""
    import yaml
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    tree: Any = OmegaConf.create({})
    if path is not None:
        try:
            tree = OmegaConf.load(path)
        except FileNotFoundError:
            raise ConfigError(f"config file not found: {path}") from None
        except OSError as error:
            raise ConfigError(f"cannot read the config file {path}: {error.strerror}") from None
        except (yaml.YAMLError, UnicodeDecodeError, OmegaConfBaseException) as error:
            raise ConfigError(f"{path} is not readable as YAML: {_first_line(error)}") from None
        if not OmegaConf.is_dict(tree):
            raise ConfigError(f"{path} must hold sections such as 'gossip:', not {type(tree).__name__}")
    for override in overrides:
        if "=" not in override.lstrip("="):
            raise ConfigError(f"cannot read the override {override!r}: write key=value, such as gossip.group_size=2")
    try:
        changes = OmegaConf.from_dotlist(list(overrides))
        for section, one, other in ONE_OF_TWO:
            if OmegaConf.select(changes, f"{section}.{one}") is not None and OmegaConf.is_dict(tree.get(section)):
                tree[section].pop(other, None)  # the override's clock, say, replaces that of the file
        merged = OmegaConf.merge(tree, changes)
        return OmegaConf.to_container(merged, resolve=True)
    except (yaml.YAMLError, OmegaConfBaseException) as error:
        raise ConfigError(f"cannot apply the overrides: {_first_line(error)}") from None


def read(source: Config | Mapping[str, Any] | Path | str | None) -> Config:
    """A config in any form in which Python hands it over: itself, nested dicts, a YAML file, or none: the defaults.

    Raises:
        ConfigError: one line that names the key and the fix.
    """
    if isinstance(source, Config):
        return source
    return parse(dict(source)) if isinstance(source, Mapping) else load(None if source is None else Path(source))


def dump(config: Config) -> str:
    """The resolved config as YAML; `load` of it gives the same config."""
    import yaml

    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return "; ".join(lines[:2]) if lines else type(error).__name__
