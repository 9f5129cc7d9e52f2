"""A peer whose model is one vector, with the engine `gossip` or with hivemind's averager as shipped."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import torch
from harness import BenchmarkPeer
from numpy.typing import NDArray

from ray_gossip.config import Config
from ray_gossip.records import RoundReport
from ray_gossip.testing import VectorState

SIZE = 10_000
STEP_S = 10.0  # for shipped steps, which retry for ever by default


class VectorPeer(BenchmarkPeer):
    """A peer whose model is one vector, averaged in blocking rounds."""

    averager: Any  # hivemind's own, as shipped

    def open(self, config: Config, run_id: str) -> None:
        self.state = VectorState(torch.zeros(SIZE))
        self.rounds_begun = 0
        self.open_engine(config, run_id, self.state, SIZE)

    def set(self, values: NDArray[np.float32]) -> None:
        self.state.values = torch.from_numpy(values)

    def rounds(self, num_rounds: int, pause_s: float) -> list[tuple[RoundReport, float, NDArray[np.float32]]]:
        """Rounds, each after a pause: its report, seconds, and the values after it."""
        results = []
        for _ in range(num_rounds):
            time.sleep(pause_s)
            self.rounds_begun += 1
            started = time.monotonic()
            (report,) = self.engine.after_step(self.rounds_begun)
            results.append((report, time.monotonic() - started, self.state.values.numpy().copy()))
        return results

    def open_shipped(self, options: dict[str, Any]) -> None:
        """hivemind's averager, with its own defaults for whatever `options` does not say."""
        import hivemind

        self.averager = hivemind.DecentralizedAverager([torch.zeros(SIZE)], self.dht, start=True, **options)

    def set_shipped(self, values: NDArray[np.float32]) -> None:
        with self.averager.get_tensors() as (vector,):
            vector[:] = torch.from_numpy(values)

    def steps_shipped(self, num_steps: int, pause_s: float) -> list[tuple[tuple[str, ...], float, NDArray[np.float32]]]:
        """Steps as hivemind's users write them, each after a pause: group's peer ids, seconds, values after it."""
        results = []
        for _ in range(num_steps):
            time.sleep(pause_s)
            started = time.monotonic()
            try:
                gathered = self.averager.step(timeout=STEP_S)
            except Exception:  # nobody was left to meet; where the docstring promises None, it raises
                gathered = {}
            seconds = time.monotonic() - started
            with self.averager.get_tensors() as (vector,):
                results.append((tuple(sorted(map(str, gathered))), seconds, vector.numpy().copy()))
        return results

    def close_shipped(self) -> None:
        self.averager.shutdown()
