"""Settings that a run leaves out, in words."""

from __future__ import annotations

from ray_gossip.config.checkpoint import CheckpointConfig
from ray_gossip.config.data import DataConfig
from ray_gossip.config.gossip import GossipConfig
from ray_gossip.config.schema import Config

_SHIPPED_LACKS = [
    "schedule",
    "cross_every",
    "weight_by_samples",
    "average_momentum",
    "compression",
    "fragments",
    "warmup_rounds",
    "exact_every",
    "consensus_target",
    "outer",
    "robust",
]


def skipped(config: Config) -> list[str]:
    """A sentence for each setting of the user's that this run leaves out."""
    sentences = _skipped_in_data(config.data)
    if config.model.name in ("cnn", "mlp") and config.model.norm != "batch":
        sentences.append(
            f"model.norm={config.model.norm} is skipped: model.name={config.model.name} normalises nothing"
        )
    if config.model.factory is not None and config.model.norm != "batch":
        sentences.append(f"model.norm={config.model.norm} is skipped: model.factory takes model.args")
    if config.engine == "hivemind" and config.checkpoint != CheckpointConfig():
        sentences.append("checkpoint.* is skipped: engine=hivemind makes no checkpoints")
    if config.engine == "hivemind":
        sentences += [
            f"gossip.{key}={getattr(config.gossip, key)} is skipped: engine=hivemind has no such setting"
            for key in _SHIPPED_LACKS
            if getattr(config.gossip, key) != GossipConfig.model_fields[key].default
        ]
    return sentences


def _skipped_in_data(data: DataConfig) -> list[str]:
    augments = data.augments
    origin = f"name={data.name} is shipped with a package" if data.name else "data.factory takes data.args"
    used = {
        "root": (data.is_published or data.factory is not None, origin),
        "download": (data.is_published, origin),
        "cache": (data.name == "tiny_imagenet", f"name={data.name} is not decoded" if data.name else origin),
        "crop_padding": (augments, "images are not augmented"),
        "cutout": (augments, "images are not augmented"),
        "dirichlet_alpha": (data.shards == "dirichlet", f"shards={data.shards}"),
    }
    return [
        f"data.{key}={getattr(data, key)} is skipped: {why}"
        for key, (is_used, why) in used.items()
        if not is_used and getattr(data, key) != DataConfig.model_fields[key].default
    ]
