"""The maths of gossip rounds without a network: closed forms, spread, outer momentum, a swarm on arrays."""

from ray_gossip.mixing.closed_form import (
    FailureMode,
    SteadySpread,
    bytes_per_round,
    contraction,
    contraction_with_failures,
    grid_contraction,
    injected_spread,
    outer_contraction,
    pipelined_contraction,
    ring_contraction,
    steady_spread,
)
from ray_gossip.mixing.outer import OuterMomentum
from ray_gossip.mixing.spread import (
    SKETCH_SIZE,
    Sketch,
    consensus_distance,
    folded,
    spread_of_sketches,
    squared_spread,
)
from ray_gossip.mixing.twin import Failures, Simulation, average_round, lossless, simulate

__all__ = [
    "SKETCH_SIZE",
    "FailureMode",
    "Failures",
    "OuterMomentum",
    "Simulation",
    "Sketch",
    "SteadySpread",
    "average_round",
    "bytes_per_round",
    "consensus_distance",
    "contraction",
    "contraction_with_failures",
    "folded",
    "grid_contraction",
    "injected_spread",
    "lossless",
    "outer_contraction",
    "pipelined_contraction",
    "ring_contraction",
    "simulate",
    "spread_of_sketches",
    "squared_spread",
    "steady_spread",
]
