"""What a trial reports to Tune: the same numbers every time, nan where there is none yet. Pure.

| metric | what it is |
| --- | --- |
| `local_step` | of the latest evaluation that all live peers have done; schedulers compare trials at it |
| `peer_accuracy`, `peer_loss` | of the peers' own models in it, mean over the live peers |
| `train_loss` | mean over the live peers |
| `merged_accuracy`, `merged_loss` | of the merged model, at the end |
| `bytes_sent` | by all peers so far |
| `train_s` | seconds since the first local step of any peer |
| `seconds_to_target`, `bytes_to_target` | when the accuracy was seen to have reached `tune.target_accuracy` |
| `consensus_distance` | after the latest complete round; in the end, of what the peers ended with |
| `rounds_averaged`, `_partial`, `_alone`, `_failed` | peer-rounds so far |
| `samples_per_s`, `live_peers` | now |
| `finished` | 1 when the trial did all its local steps, else 0 |

What a loop of the user's own reports stands at its own name, as the mean over the live peers, unless ours has a value
there; below `reported/` where the name steers Tune, such as `done`.

A trial that goes on from a checkpoint counts on from there: what it cost to get to that state, in whatever trial.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from ray_gossip.config.mistakes import hint
from ray_gossip.errors import ConfigError
from ray_gossip.telemetry import PeerState, Summary, SwarmState, means
from ray_gossip.tuning.settings import OF_ACCURACY, OF_TUNE, Objective, is_reported, larger_is_better, metric_of

Metrics = dict[str, float]

# of any trial
METRICS = (
    "merged_accuracy",
    "merged_loss",
    "peer_accuracy",
    "peer_loss",
    "train_loss",
    "bytes_sent",
    "train_s",
    "seconds_to_target",
    "bytes_to_target",
    "consensus_distance",
    "rounds_averaged",
    "rounds_failed",
    "local_step",
    "finished",
)


def shown(objectives: Iterable[Objective]) -> tuple[str, ...]:
    """What HParams and the report show of a trial of a sweep with these objectives."""
    return tuple(dict.fromkeys([*METRICS, *(metric_of(each) for each in objectives if is_reported(each))]))


class Scores:
    """The metrics of one trial, read off the state of its swarm.

    Args:
        before: the metrics of the checkpoint from which it goes on, if any.
        objectives: of the sweep.
    """

    def __init__(
        self,
        state: SwarmState,
        *,
        target_accuracy: float | None,
        before: Metrics | None = None,
        objectives: Sequence[Objective] = (),
    ) -> None:
        self._state, self._target, self._before = state, target_accuracy, before or {}
        self._wanting = [objective for objective in objectives if objective in OF_ACCURACY]
        self._reported = [objective for objective in objectives if is_reported(objective)]
        # train_s and bytes_sent at the target
        self._reached = tuple(self._before.get(key, math.nan) for key in ("seconds_to_target", "bytes_to_target"))

    def evaluated_step(self) -> int:
        """The local step up to which every live peer has been evaluated, or has reported; 0: none."""
        return min((peer.measured_step for peer in self._state.live_peers()), default=0)

    def metrics(self, *, local_step: int, summary: Summary | None = None) -> Metrics:
        """What there is to say now.

        Args:
            local_step: what to report as such.
            summary: of the run, once it has finished.

        Raises:
            ConfigError: an objective needs an accuracy, and there is none; or, at the end, something that was never
                reported.
        """
        state, before, peers = self._state, self._before, self._state.live_peers()
        evaluated = [peer.evaluation for peer in peers if peer.evaluation]
        if self._wanting and any(each.accuracy is None for each in evaluated):
            raise ConfigError(
                f"tune.objectives={self._wanting[0]} needs an accuracy, and what this sweep learns has none; set "
                "tune.objectives=merged_loss"
            )
        accuracy = _mean(each.accuracy for each in evaluated) if evaluated else before.get("peer_accuracy", math.nan)
        loss = _mean(each.loss for each in evaluated) if evaluated else before.get("peer_loss", math.nan)
        merged = summary["merged_accuracy"] if summary else None
        distance = state.last_round.consensus_distance if state.last_round else math.nan
        train_s = before.get("train_s", 0.0) + _train_s(state, peers)
        bytes_sent = before.get("bytes_sent", 0) + state.bytes_sent
        best = max((each for each in (accuracy, merged) if each is not None and math.isfinite(each)), default=0.0)
        if self._target is not None and best >= self._target and math.isnan(self._reached[0]):
            self._reached = (train_s, float(bytes_sent))
        reported = means(peer.reported for peer in peers) | means(each.metrics for each in evaluated)
        if summary is not None:
            self._check_reported(reported)
        rounds = {f"rounds_{outcome}": count for outcome, count in state.rounds.items()}
        ours = {
            "local_step": local_step,
            "peer_accuracy": accuracy,
            "peer_loss": loss,
            "train_loss": _mean(peer.loss for peer in peers),
            "merged_accuracy": _number(merged),
            "merged_loss": _number(summary["merged_loss"] if summary else None),
            "bytes_sent": bytes_sent,
            "train_s": train_s,
            "seconds_to_target": self._reached[0],
            "bytes_to_target": self._reached[1],
            "consensus_distance": _number(summary["consensus_distance"]) if summary else distance,
            **{name: before.get(name, 0) + count for name, count in rounds.items()},
            "samples_per_s": sum(peer.samples_per_s for peer in peers),
            "live_peers": len(peers),
            "finished": int(summary is not None),
        }
        known = {f"reported/{name}" if name in OF_TUNE else name: value for name, value in reported.items()}
        return ours | {name: value for name, value in known.items() if math.isnan(ours.get(name, math.nan))}

    def _check_reported(self, reported: Metrics) -> None:
        for objective in self._reported:
            if metric_of(objective) not in reported:
                known = hint(metric_of(objective), reported) if reported else "nothing was"
                raise ConfigError(f"tune.objectives={objective} was never reported; {known}")


def comparable(objective: Objective, metrics: Metrics) -> float:
    """An objective as a number that can be compared. A trial that was stopped early has no merged model: its peers'
    own stand for it. A target that was not reached is infinitely far."""
    stand_ins = {"merged_accuracy": "peer_accuracy", "merged_loss": "peer_loss"}
    worst = -math.inf if larger_is_better(objective) else math.inf
    for key in (metric_of(objective), stand_ins.get(objective, objective)):
        value = metrics.get(key)
        if value is not None and math.isfinite(value):
            return float(value)
    return worst


def _train_s(state: SwarmState, peers: Iterable[PeerState]) -> float:
    times = [record.wall_time for peer in peers for record in (peer.progress, peer.evaluation) if record]
    return max(times) - state.first_step_time if times and state.first_step_time is not None else 0.0


def _mean(values: Iterable[float | None]) -> float:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else math.nan


def _number(value: float | None) -> float:
    return math.nan if value is None else value
