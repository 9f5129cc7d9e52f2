"""What TensorBoard shows under Custom Scalars and under Text: the curves that belong together, a band over the peers
where the swarm's is their mean, and the run's config and end. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ray_gossip.config import Config, dump
from ray_gossip.records import OUTCOMES

BANDS = "bands"  # the group of the lowest and highest values, away from the curves that a person reads


def band(tag: str) -> tuple[str, str, str]:
    """The tags of the mean, the lowest and the highest of the peers' values. The mean has a tag of its own here: of one
    that peers have, too, Custom Scalars complains that they lack the others."""
    return f"{BANDS}/{tag}", f"{BANDS}/{tag}_min", f"{BANDS}/{tag}_max"


def custom_scalars(config: Config) -> Any:
    """The `Summary.Value` that holds the layout."""
    from tensorboard.plugins.custom_scalar.layout_pb2 import Category, Layout

    measures: dict[str, str] = {}  # of a loop of the user's own, nobody knows what it will report
    if config.train.loop is None:
        measures |= {} if config.train.loss == "mse" else {"eval/accuracy": "accuracy on the test split"}
        measures |= {"eval/loss": "loss on the test split", "train/loss": "training loss"}
        measures |= {f"eval/{name}": f"{name} on the test split" for name in config.train.metrics}
    learning = [_margin(f"{title}: mean, lowest and highest of the peers", tag) for tag, title in measures.items()]
    mixing = [
        _lines("consensus distance, before and after a round", "swarm/consensus_distance.*"),
        _lines("rounds so far, counted for each peer", *(f"swarm/rounds_{outcome}" for outcome in OUTCOMES)),
        _lines("kinds of trouble", "swarm/trouble"),
    ]
    speed = [
        _lines("samples per second", "swarm/samples_per_s"),
        _lines("live peers", "swarm/peers"),
        _lines("MB sent so far", "swarm/sent_mb"),
        *([_lines("faults on purpose so far", "swarm/faults")] if config.faults.are_asked_for else []),
    ]
    peers = [_lines(f"{title}, by peer", f"^{tag}$") for tag, title in measures.items()]
    machines = [
        _lines("memory by peer: training, averaging, helpers, in MB", r"usage/(trainer|network|helpers)_mb"),
        _lines("memory left on its machine, by peer, in MB", "usage/memory_free_mb"),
    ]
    categories = {
        "how well it learns": learning,
        "how it mixes": mixing,
        "how fast it is": speed,
        "peers": peers,
        "what it takes": machines,
    }
    shown = {title: charts for title, charts in categories.items() if charts}
    layout = Layout(category=[Category(title=title, chart=charts) for title, charts in shown.items()])
    return _value("custom_scalars__config__", "custom_scalars", layout.SerializeToString())


def config_text(config: Config) -> Any:
    """The config as a `Summary.Value`."""
    return _value("config", "text", f"```yaml\n{dump(config)}```".encode())


def summary_text(summary: Mapping[str, Any]) -> Any:
    """The end of a run as a `Summary.Value`: what is one number, one text, or a few of them by name."""
    values = {key: value for key, value in summary.items() if key != "recovery"}
    values |= {f"recovery: {key}": value for key, value in (summary["recovery"] or {}).items()}
    rows = [
        f"| {key} | {_cell(value)} |"
        for key, value in values.items()
        if not isinstance(value, list) or not value or not isinstance(value[0], dict)
    ]
    troubles = [f"\n**trouble**: {trouble['text']}{' (over)' * trouble['is_over']}" for trouble in summary["troubles"]]
    return _value("summary", "text", "\n".join(["| | |", "|---|---|", *rows, *troubles]).encode(errors="replace"))


def _cell(value: Any) -> str:
    match value:
        case None:
            return "-"
        case float():
            return f"{value:.6g}"
        case dict():
            return ", ".join(f"{key} {_cell(each)}" for key, each in value.items()) or "-"
        case list():
            return ", ".join(map(_cell, value)) or "-"
    return str(value).replace("|", "\\|")


def _margin(title: str, tag: str) -> Any:
    from tensorboard.plugins.custom_scalar.layout_pb2 import Chart, MarginChartContent

    mean, lower, upper = band(tag)
    series = MarginChartContent.Series(value=mean, lower=lower, upper=upper)
    return Chart(title=title, margin=MarginChartContent(series=[series]))


def _lines(title: str, *tags: str) -> Any:
    from tensorboard.plugins.custom_scalar.layout_pb2 import Chart, MultilineChartContent

    return Chart(title=title, multiline=MultilineChartContent(tag=tags))


def _value(tag: str, plugin: str, content: bytes) -> Any:
    from tensorboard.compat.proto.summary_pb2 import Summary, SummaryMetadata
    from tensorboard.compat.proto.tensor_pb2 import TensorProto
    from tensorboard.compat.proto.types_pb2 import DT_STRING

    metadata = SummaryMetadata(plugin_data=SummaryMetadata.PluginData(plugin_name=plugin))
    return Summary.Value(tag=tag, metadata=metadata, tensor=TensorProto(dtype=DT_STRING, string_val=[content]))
