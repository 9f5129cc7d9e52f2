"""The config: its schema, loading, overrides. Imports nothing heavy, so that a mistake is answered at once.

A run is described by one YAML file plus dotted overrides (`gossip.group_size=2`). The defaults alone are a
complete run. Every section is frozen and refuses unknown keys. The text under a field says its unit, its range
and when to change it.

    swarm.py  gossip.py  data.py  model.py  optimizer.py  train.py  checkpoint.py  faults.py      a section each
    section.py  own.py      what sections have in common
    meaning.py              what a key means beyond the peer that has it
    schema.py               all sections, and what must hold between them
    text.py                 YAML as it is meant here
    loading.py              from words and files to a config, and back
    changes.py              other values of some keys
    mistakes.py             a mistake as one line
    skipped.py              settings that a run leaves out
    catalogue.py            all keys, for a person to read
"""

from __future__ import annotations

from ray_gossip.config.changes import check_key, check_value, replace
from ray_gossip.config.data import DataConfig
from ray_gossip.config.faults import LASTING, FaultKind, FaultsConfig
from ray_gossip.config.gossip import GossipConfig
from ray_gossip.config.loading import dump, load, load_tree, parse_text, read
from ray_gossip.config.model import ModelConfig
from ray_gossip.config.optimizer import OptimizerConfig
from ray_gossip.config.schema import Config, parse, parse_as
from ray_gossip.config.section import Section, meanings
from ray_gossip.config.skipped import skipped
from ray_gossip.config.swarm import SwarmConfig
from ray_gossip.config.text import read_yaml, write_yaml
from ray_gossip.config.train import TrainConfig

__all__ = [
    "LASTING",
    "Config",
    "DataConfig",
    "FaultKind",
    "FaultsConfig",
    "GossipConfig",
    "ModelConfig",
    "OptimizerConfig",
    "Section",
    "SwarmConfig",
    "TrainConfig",
    "check_key",
    "check_value",
    "dump",
    "load",
    "load_tree",
    "meanings",
    "parse",
    "parse_as",
    "parse_text",
    "read",
    "read_yaml",
    "replace",
    "skipped",
    "write_yaml",
]
