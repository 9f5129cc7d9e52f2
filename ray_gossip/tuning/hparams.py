"""TensorBoard's HParams table of a sweep, and one run per trial beside those of its peers.

Written when a trial starts and at each result, so that trials that are stopped early, or killed, stand in it too.
"""

from __future__ import annotations

import math
import numbers
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ray.tune.experiment import Trial
from ray.tune.logger import LoggerCallback
from tensorboard.backend.event_processing.event_file_loader import LegacyEventFileLoader
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.plugins.hparams import api_pb2, metadata, plugin_data_pb2
from tensorboard.plugins.hparams import summary_v2 as hparams
from tensorboard.summary.writer.event_file_writer import EventFileWriter
from tensorboard.summary.writer.record_writer import RecordWriter

from ray_gossip.tuning.metrics import shown
from ray_gossip.tuning.space import Distribution, Range
from ray_gossip.tuning.sweep import BASELINE, NO_BASELINE, Point, Sweep

_FILE = "events.out.tfevents.trial"  # the name by which TensorBoard knows its files
_RESULT = "trial/"  # what the tags of results begin with


def write_columns(folder: Path, sweep: Sweep, points: Sequence[Point]) -> None:
    """Write which hyperparameters and which metrics the table of this folder's trials has."""
    values: dict[str, list[Any]] = {key: [] for key in sweep.space}
    if sweep.settings.tune.baselines:
        values[BASELINE] = [NO_BASELINE]  # with searcher=optuna, the points that are no baselines come later
    for point in points:
        for key, value in point.items():
            values.setdefault(key, []).append(value)
    columns = [hparams.HParam(_name(key), _domain(sweep.space.get(key), seen)) for key, seen in values.items()]
    metrics = [hparams.Metric(f"{_RESULT}{name}", display_name=name) for name in shown(sweep.settings.tune.objectives)]
    writer = EventFileWriter(str(folder))
    writer.add_event(_event(hparams.hparams_config_pb(columns, metrics)))
    writer.close()


class HParamsLogger(LoggerCallback):
    """Writes each trial's values and metrics into the trial's folder.

    TensorBoard believes the first values that it reads of a trial. Since they may have changed when a trial is started
    again, its file is then written anew.
    """

    def __init__(self, sweep: Sweep) -> None:
        self._files: dict[str, _EventFile] = {}
        self._metrics = shown(sweep.settings.tune.objectives)

    def log_trial_start(self, trial: Trial) -> None:
        values = {_name(key): _value(value) for key, value in trial.config.items()}
        file = self._files.get(trial.trial_id)
        if file is None:
            trial.init_local_path()
            path = Path(trial.local_path, _FILE)
            if not path.exists():  # the sweep is resumed: a trial that goes on from a checkpoint has results already
                self._restore_from_remote(_FILE, trial)
            file = self._files[trial.trial_id] = _EventFile(path)
        file.begin(_event(hparams.hparams_pb(values, trial_id=str(trial))))

    def log_trial_result(self, iteration: int, trial: Trial, result: dict[str, Any]) -> None:
        if trial.trial_id not in self._files:
            self.log_trial_start(trial)
        values = [
            Summary.Value(tag=f"{_RESULT}{name}", simple_value=result[name])
            for name in self._metrics
            if math.isfinite(result.get(name, math.nan))
        ]
        self._files[trial.trial_id].add(_event(Summary(value=values), step=int(result["local_step"])))

    def log_trial_end(self, trial: Trial, failed: bool = False) -> None:
        file = self._files.pop(trial.trial_id, None)
        if file:
            status = api_pb2.STATUS_FAILURE if failed else api_pb2.STATUS_SUCCESS
            file.add(_event(_session_end(status)))


class _EventFile:
    """What TensorBoard reads: a first event, which can be exchanged, and others; on disk when `begin` or `add` returns.

    The results of a sweep that is resumed come after those that are there. No file stays open, because Tune pickles
    the sweep.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._others = [event.SerializeToString() for event in _results(path)] if path.exists() else []

    def begin(self, first: Event) -> None:
        """Write all anew."""
        version = Event(wall_time=first.wall_time, file_version="brain.Event:2")
        self._write("wb", version.SerializeToString(), first.SerializeToString(), *self._others)

    def add(self, event: Event) -> None:
        self._others.append(event.SerializeToString())
        self._write("ab", self._others[-1])

    def _write(self, mode: str, *records: bytes) -> None:
        with self._path.open(mode) as file:
            writer = RecordWriter(file)
            for record in records:
                writer.write(record)


def _results(path: Path) -> Iterator[Event]:
    """Without the trial's values and its end, of which TensorBoard believes the first that it reads."""
    for event in LegacyEventFileLoader(str(path)).Load():
        if any(value.tag.startswith(_RESULT) for value in event.summary.value):
            yield event


def _name(key: str) -> str:
    """TensorBoard sorts the columns by name and shows the first five: those of gossip shall be among them."""
    return "trial.baseline" if key == BASELINE else key


def _session_end(status: Any) -> Summary:
    """What TensorBoard itself writes only where TensorFlow is installed."""
    end = plugin_data_pb2.SessionEndInfo(status=status, end_time_secs=time.time())
    data = metadata.create_summary_metadata(plugin_data_pb2.HParamsPluginData(session_end_info=end))
    value = Summary.Value(tag=metadata.SESSION_END_INFO_TAG, metadata=data, tensor=metadata.NULL_TENSOR)
    return Summary(value=[value])


def _domain(distribution: Distribution | None, values: Sequence[Any]) -> Any:
    if isinstance(distribution, Range):
        numbers_seen = [float(distribution.low), float(distribution.high), *map(float, values)]
        return hparams.RealInterval(min(numbers_seen), max(numbers_seen))  # a baseline may lie outside the range
    if distribution is not None:
        values = [*distribution.values, *values]
    seen = sorted({_value(value) for value in values}, key=lambda value: (str(type(value)), value))
    if len({type(value) for value in seen}) > 1:  # the table knows one type a column
        return None
    return hparams.Discrete(seen)


def _value(value: Any) -> bool | float | str:
    """What TensorBoard can show: whole numbers become floats, and what is none of these its text."""
    if isinstance(value, (bool, str)):
        return value
    return float(value) if isinstance(value, numbers.Real) else str(value)


def _event(summary: Summary, *, step: int = 0) -> Event:
    return Event(wall_time=time.time(), step=step, summary=summary)
