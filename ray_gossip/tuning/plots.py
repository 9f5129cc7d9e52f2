"""The pictures of a sweep."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from itertools import count
from typing import TYPE_CHECKING, Any, NamedTuple

from ray_gossip.tuning.metrics import comparable
from ray_gossip.tuning.outcome import Outcome
from ray_gossip.tuning.settings import is_reported, metric_of
from ray_gossip.tuning.space import Choice, Range
from ray_gossip.tuning.sweep import Sweep

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

NAMES = ("bytes.png", "seconds.png", "parallel.png")

_AXES = {"bytes_sent": ("megabytes sent by all peers", 1e6), "train_s": ("seconds of training", 1.0)}


def draw(
    sweep: Sweep, outcomes: Sequence[Outcome], *, best: Outcome | None, front: Sequence[Outcome]
) -> dict[str, bytes]:
    """The pictures as PNGs by their names, as far as there is something to show."""
    shown = [outcome for outcome in outcomes if outcome.metrics]
    if not shown:
        return {}
    measure = _measure_of(sweep)
    pictures = {
        NAMES[0]: _quality_over("bytes_sent", measure, shown, best=best, front=front),
        NAMES[1]: _quality_over("train_s", measure, shown, best=best, front=front),
    }
    varied = [outcome for outcome in shown if outcome.baseline is None]
    if varied and sweep.space:
        pictures[NAMES[2]] = _parallel(sweep, varied)
    return {name: _as_png(figure) for name, figure in pictures.items()}


class _Measure(NamedTuple):
    """What says how good a trial is, on its way and in the end."""

    label: str
    peers: str  # metric: mean over the peers
    merged: str | None  # metric of the merged model, if it is evaluated


def _measure_of(sweep: Sweep) -> _Measure:
    compared = sweep.settings.compared
    if is_reported(compared):
        return _Measure(metric_of(compared), metric_of(compared), None)
    if compared == "merged_loss":
        return _Measure("test loss", "peer_loss", "merged_loss")
    return _Measure("test accuracy", "peer_accuracy", "merged_accuracy")


def _quality_over(
    metric: str, measure: _Measure, outcomes: Sequence[Outcome], *, best: Outcome | None, front: Sequence[Outcome]
) -> Figure:
    """The measure of every trial on its way, mean of its peers, and that of the merged model where it ended."""
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.0, 5.5), dpi=110, layout="constrained")
    axes = figure.subplots()
    label, unit = _AXES[metric]
    colours = (colormaps["tab10"](index % 10) for index in count())
    lows = []
    for outcome in sorted(outcomes, key=lambda each: each is best):  # the best one on top
        points = [(each[metric] / unit, each.get(measure.peers, math.nan)) for each in outcome.history]
        points = [point for point in points if all(map(math.isfinite, point))]
        if not points:
            continue
        stopped = outcome.end != "finished"
        style: dict[str, Any] = {"color": "0.75", "linewidth": 1.0} if stopped else {"color": next(colours)}
        style |= {"linestyle": "--"} if outcome.baseline else {}
        style |= {"color": "black", "linewidth": 2.2} if outcome is best else {}
        axes.plot(*zip(*points, strict=True), label=_label(outcome, best=best, front=front), **style)
        lows.append(points[-1][1])
        merged = outcome.metrics[measure.merged] if measure.merged is not None else math.nan
        if math.isfinite(merged):
            axes.plot(points[-1][0], merged, marker="*" if outcome in front else "o", color=style["color"])
            axes.plot([points[-1][0]] * 2, [points[-1][1], merged], linestyle=":", linewidth=1.0, color=style["color"])
        elif stopped:
            axes.plot(*points[-1], marker="x", color="0.5")
    axes.set_xlabel(label)
    axes.set_ylabel(measure.label)
    dots = "Dots: the merged model. " if measure.merged is not None else ""
    axes.set_title(f"Lines: mean of the peers' own models. {dots}Crosses: stopped early", fontsize=10)
    if measure.label.endswith("accuracy"):
        axes.set_ylim(top=1.01)
    axes.set_xlim(left=0.0)
    axes.grid(alpha=0.3)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(fontsize=8, loc="lower right")
    return figure


def _label(outcome: Outcome, *, best: Outcome | None, front: Sequence[Outcome]) -> str | None:
    if outcome.end != "finished" and outcome is not best:
        return None
    notes = [f"baseline {outcome.baseline}"] * bool(outcome.baseline)
    notes += ["best"] * (outcome is best) + ["Pareto"] * (outcome in front)
    return outcome.name + (f" ({', '.join(notes)})" if notes else "")


def _parallel(sweep: Sweep, outcomes: Sequence[Outcome]) -> Figure:
    """A line for each trial through its values, coloured by the first objective."""
    from matplotlib import colormaps
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize
    from matplotlib.figure import Figure

    objective = sweep.settings.tune.objectives[0]
    values = {outcome.name: comparable(objective, outcome.metrics) for outcome in outcomes}
    finite = [value for value in values.values() if math.isfinite(value)] or [0.0, 1.0]
    low, high = min(finite), max(finite)
    scale = Normalize(low, high)
    figure = Figure(figsize=(max(6.0, 1.9 * (len(sweep.space) + 1)), 5.0), dpi=110, layout="constrained")
    axes = figure.subplots()
    for outcome in sorted(outcomes, key=lambda each: values[each.name]):
        value = values[outcome.name]
        heights = [_height(sweep, key, outcome.point[key]) for key in sweep.space]
        heights.append(float(scale(value)) if math.isfinite(value) and high > low else 0.5)
        finished = outcome.end == "finished"
        colour = colormaps["viridis"](scale(value)) if math.isfinite(value) else "0.8"
        axes.plot(heights, color=colour, linewidth=2.0 if finished else 1.0, linestyle="-" if finished else ":")
    for place, key in enumerate(sweep.space):
        axes.axvline(place, color="0.3", linewidth=1.0)
        for height, text in _ticks(sweep, key):
            _write(axes, place, height, text)
    axes.axvline(len(sweep.space), color="0.3", linewidth=1.0)
    axes.set_xticks(range(len(sweep.space) + 1), [*sweep.space, objective], fontsize=9)
    axes.set_yticks([])
    axes.set_ylim(-0.05, 1.05)
    axes.set_xlim(-0.15, len(sweep.space) + 0.15)
    axes.spines[["left", "right", "top", "bottom"]].set_visible(False)
    axes.set_title("Every trial's values; dotted: stopped early", fontsize=10)
    figure.colorbar(ScalarMappable(norm=scale, cmap="viridis"), ax=axes, label=objective.replace("_", " "))
    return figure


def _height(sweep: Sweep, key: str, value: Any) -> float:
    distribution = sweep.space[key]
    if isinstance(distribution, Range):
        low, high = distribution.low, distribution.high
        if distribution.kind == "loguniform":
            low, high, value = math.log(low), math.log(high), math.log(value)
        return float((value - low) / (high - low))
    distinct = _distinct(distribution)
    return distinct.index(value) / (len(distinct) - 1) if len(distinct) > 1 else 0.5


def _ticks(sweep: Sweep, key: str) -> list[tuple[float, str]]:
    distribution = sweep.space[key]
    if isinstance(distribution, Range):
        return [(0.0, f"{distribution.low:g}"), (1.0, f"{distribution.high:g}")]
    return [(_height(sweep, key, value), str(value)) for value in _distinct(distribution)]


def _distinct(choice: Choice) -> list[Any]:
    distinct = list(dict.fromkeys(choice.values))
    try:
        return sorted(distinct)
    except TypeError:  # of several types
        return distinct


def _write(axes: Axes, place: float, height: float, text: str) -> None:
    axes.annotate(
        text,
        (place, height),
        xytext=(4, 0),
        textcoords="offset points",
        fontsize=8,
        va="center",
        bbox={"boxstyle": "round,pad=0.1", "facecolor": "white", "edgecolor": "none", "alpha": 0.8},
    )


def _as_png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()
