"""Does one slow peer hold up the others?

Four peers with local steps of a fixed duration and no CPU; one takes three times as long as the others. Counted are
the samples per second of the whole swarm, against what the same peers do without communication. The swarm must keep
0.95 of the sum with a clock in steps (`gossip.steps`, the default) and with one in seconds (`gossip.seconds`), and all
rounds must average. Beside them hivemind.Optimizer(use_local_updates=True) as shipped, which counts the samples of the
swarm.

    python benchmarks/stragglers.py                 about 2 minutes on two cores
    python benchmarks/stragglers.py --seconds 10    about a minute
"""

from __future__ import annotations

import argparse
import statistics
import sys
from typing import Any

from harness import SteppingPeer, conclude, count_outcomes, measure, print_table, start_peers

from ray_gossip.config import parse

STEP_S = [0.05, 0.05, 0.05, 0.15]
BATCH_SIZE = 32
SIZE = 1_000_000
VARIANTS: dict[str, dict[str, Any]] = {
    "no communication": {"gossip": {"group_size": 1}},
    "gossip.seconds=1": {"gossip": {"group_size": 2, "seconds": 1.0}},
    "gossip.steps=20": {"gossip": {"group_size": 2, "steps": 20}},
    "hivemind as shipped": {"engine": "hivemind", "gossip": {"group_size": 2, "steps": 20}},
}
MIN_SHARE = 0.95


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=20.0, help="of training for each variant (default 20)")
    seconds = parser.parse_args().seconds
    figures: dict[str, dict[str, Any]] = {}
    rows: list[list[Any]] = []
    with start_peers(SteppingPeer, len(STEP_S)) as peers:
        for variant, options in VARIANTS.items():
            config = parse({**options, "swarm": {"num_peers": len(STEP_S)}, "data": {"batch_size": BATCH_SIZE}})
            paces = measure(peers, config, fixed_s=STEP_S, size=SIZE, seconds=seconds)
            steps_per_s = [pace.steps_per_s for pace in paces]
            samples_per_s = BATCH_SIZE * sum(steps_per_s)
            alone = figures["no communication"]["samples_per_s"] if figures else samples_per_s
            rounds = count_outcomes(paces)
            figures[variant] = {
                "samples_per_s": samples_per_s,
                "of_alone": samples_per_s / alone,
                "steps_per_s": steps_per_s,
                "rounds": rounds,
            }
            outcomes = " ".join(f"{number} {outcome}" for outcome, number in rounds.items())
            fast, slow = statistics.mean(steps_per_s[:-1]), steps_per_s[-1]
            rows.append([variant, f"{samples_per_s:.0f}", samples_per_s / alone, fast, slow, outcomes])
    print_table(
        f"{len(STEP_S)} peers, local steps of {', '.join(f'{step_s:g}' for step_s in STEP_S)} s, {seconds:g} s each",
        ["", "samples/s", "of alone", "fast steps/s", "slow steps/s", "rounds"],
        rows,
    )
    failures = []
    for variant in ("gossip.seconds=1", "gossip.steps=20"):
        clock = figures[variant]
        if clock["of_alone"] < MIN_SHARE:
            failures.append(f"{variant}: {clock['of_alone']:.3f} of the sum alone, at least {MIN_SHARE} wanted")
        if set(clock["rounds"]) != {"averaged"}:
            failures.append(f"{variant}: not all rounds averaged: {clock['rounds']}")
    return conclude({"benchmark": "stragglers", **figures}, failures)


if __name__ == "__main__":
    sys.exit(main())
