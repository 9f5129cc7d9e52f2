"""Does a swarm of thousands mix as the formulas say, with failures and with outer momentum?

No process and no network: the schedules and the arithmetic of real rounds on arrays.

(a) 4,096 peers, of which 5 % fail in each round, in four ways: the survivors form new groups, the rest of each group
    goes on, a group with a failure averages nothing, the part that the dead was to reduce stays as it was. The mean
    factor of the squared spread per round against `mixing.contraction_with_failures`, and seconds per round.
(b) Outer momentum on group means: the factor in the long run, for 16 peers as published tables have it (closed form,
    and the mean of many simulated swarms, which must be on the same side of 1) and for 1,024, where one swarm shows
    the expectation. Above 1 a swarm diverges: heavy ball in pairs, and at M=4 when the swarm is large.

    python benchmarks/mixing_at_scale.py                   half a minute on one core
    python benchmarks/mixing_at_scale.py --num_swarms 20    a quarter of a minute
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Any, get_args

import numpy as np
from harness import conclude, print_table

from ray_gossip.mixing import (
    FailureMode,
    Failures,
    OuterMomentum,
    contraction_with_failures,
    outer_contraction,
    simulate,
)

NUM_PEERS = 4096
FAILURE_P = 0.05
NUM_ROUNDS = 20
SIZE = 64
MAX_ERROR = 0.01  # of a factor, relative; above the sampling error
MAX_SECONDS = 10.0  # for any one simulation of (a)

# lr, momentum, nesterov -> factors for N=16 and M=2, 4, 16; momentum 0 is plain averaging
OUTER: dict[str, tuple[float, float, bool, tuple[float, float, float]]] = {
    "heavy ball lr .7 mu .9": (0.7, 0.9, False, (1.086, 0.981, 0.900)),
    "Nesterov lr .7 mu .9": (0.7, 0.9, True, (0.881, 0.562, 0.270)),
    "Nesterov lr .7 mu .5": (0.7, 0.5, True, (0.553, 0.328, 0.150)),
    "plain averaging": (1.0, 0.0, True, (0.467, 0.200, 0.0)),
}
OUTER_PEERS = 1024
OUTER_ERROR = 0.03  # relative, of the factor for OUTER_PEERS
SETTLED, LAST = 10, 30  # rounds between which the factor is taken: other modes of the recursion have died out


def failures_at_scale() -> tuple[dict[str, Any], list[str]]:
    """Part (a)."""
    values = np.random.default_rng(0).standard_normal((NUM_PEERS, SIZE))
    rows: list[list[Any]] = []
    figures: dict[str, Any] = {}
    complaints: list[str] = []
    for group_size in (2, 4, 8, 16):
        for mode in get_args(FailureMode):
            started = time.monotonic()
            run = simulate(
                values,
                schedule="random",
                group_size=group_size,
                num_rounds=NUM_ROUNDS,
                noise=1.0,
                failures=Failures(probability=FAILURE_P, mode=mode),
            )
            seconds = time.monotonic() - started
            measured = float(statistics.mean(run.after / run.before))
            closed = contraction_with_failures(NUM_PEERS, group_size, FAILURE_P, mode)
            error = measured / closed - 1
            name = f"M={group_size} {mode}"
            figures[name] = {"measured": measured, "closed_form": closed, "seconds": round(seconds, 2)}
            if abs(error) > MAX_ERROR:
                complaints.append(f"(a) {name}: {measured:.4f}, closed form {closed:.4f}")
            if seconds > MAX_SECONDS:
                complaints.append(f"(a) {name}: took {seconds:.1f} s, at most {MAX_SECONDS:g} s wanted")
            rows.append([group_size, mode, closed, measured, f"{error:+.2%}", seconds / NUM_ROUNDS])
    print_table(
        f"(a) {NUM_PEERS:,} peers, {FAILURE_P:.0%} fail a round, {NUM_ROUNDS} rounds: factor of the squared spread",
        ["M", "mode", "closed form", "simulated", "off by", "s a round"],
        rows,
    )
    return figures, complaints


def outer_momentum(num_swarms: int) -> tuple[dict[str, Any], list[str]]:
    """Part (b)."""
    rows: list[list[Any]] = []
    figures: dict[str, Any] = {}
    complaints: list[str] = []
    for name, (lr, momentum, nesterov, published) in OUTER.items():
        outer = partial(OuterMomentum, lr=lr, momentum=momentum, nesterov=nesterov)
        closed_form: Callable[..., float] = partial(outer_contraction, lr=lr, momentum=momentum, nesterov=nesterov)
        for group_size, of_sixteen in zip((2, 4, 16), published, strict=True):
            label = f"{name}, {'one group' if group_size == 16 else f'M={group_size}'}"
            small = closed_form(16, 16 / group_size)
            measured_small = late_factor(16, group_size, outer, num_swarms)
            figures[label] = {"published": of_sixteen, "closed_form": small, "measured": measured_small}
            if abs(small - of_sixteen) > 6e-4:
                complaints.append(f"(b) {label}: {small:.4f} for 16 peers, published {of_sixteen}")
            if (measured_small > 1) != (of_sixteen > 1):
                complaints.append(f"(b) {label}: the simulated factor {measured_small:.3f} is on the wrong side of 1")
            many: list[Any] = ["", ""]
            if group_size < 16:
                closed = closed_form(OUTER_PEERS, OUTER_PEERS / group_size)
                measured = late_factor(OUTER_PEERS, group_size, outer, 1)
                figures[label] |= {"closed_form_many": closed, "measured_many": measured}
                if abs(measured / closed - 1) > OUTER_ERROR:
                    complaints.append(f"(b) {label}: {measured:.4f} for {OUTER_PEERS} peers, closed form {closed:.4f}")
                many = [f"{closed:.3f}", f"{measured:.3f}"]
            word = "diverges" if of_sixteen > 1 else ""
            rows.append([label, f"{of_sixteen:.3f}", f"{small:.3f}", f"{measured_small:.3f}", word, *many])
    print_table(
        f"(b) outer momentum: factor of the squared spread per round; 16 peers (mean of {num_swarms} swarms) and many",
        ["", "published", "closed form", "simulated", "", f"{OUTER_PEERS:,}: closed form", "simulated"],
        rows,
    )
    return figures, complaints


def late_factor(num_peers: int, group_size: int, outer: Callable[..., OuterMomentum], num_swarms: int) -> float:
    """Factor per round of the squared spread, of its mean over the swarms; 0 when they agree before it can be taken."""
    spread = np.zeros(LAST + 1)
    for seed in range(num_swarms):
        values = np.random.default_rng(seed).standard_normal((num_peers, 8))
        run = simulate(values, schedule="random", group_size=group_size, num_rounds=LAST + 1, outer=outer, seed=seed)
        spread += run.after / run.before[0]
    spread /= num_swarms
    return 0.0 if spread[SETTLED] < 1e-28 else float((spread[LAST] / spread[SETTLED]) ** (1 / (LAST - SETTLED)))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num_swarms", type=int, default=200, help="swarms of 16 peers in (b) (default 200)")
    options = parser.parse_args()
    started = time.monotonic()
    at_scale, complaints = failures_at_scale()
    outer, more = outer_momentum(options.num_swarms)
    complaints += more
    print(f"\n{time.monotonic() - started:.0f} s in all")
    return conclude({"benchmark": "mixing_at_scale", "failures": at_scale, "outer": outer}, complaints)


if __name__ == "__main__":
    sys.exit(main())
