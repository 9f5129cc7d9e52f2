"""Does a swarm of real peers mix as the formula says, and does it go on mixing?

Eight hivemind peers on this machine average one vector each; `spread` is the squared consensus distance.

(a) Fresh random values before each round: the mean factor of the spread against `mixing.contraction`. Long vectors
    make the sampling error of a round about 1 %. This cannot see groups that stick: any pairs pass it.
(b) Consecutive rounds from one start, which can: ratio of mean spreads, round after round, of `random` and `grid`.
    Every round is also held against the network-free twin, which computes the same groups. The pairs that happen to
    meet make `random` at M=2 vary by about 15 % a round over 8 starts and by 8 % over 32; M=4 with alpha=1 is left out,
    since one lucky pair of rounds already agrees to the last bit. Beside it hivemind's matchmaking, with a pause
    between rounds as local steps make it: peers that ended a round together look for the next one together, meet again,
    and the swarm stalls.
(c) Six peers in groups of four with a matchmaking window of 2 s, all beginning a round together: seconds it takes. As
    shipped, the short group waits the whole window.

    python benchmarks/contraction.py            about 2 minutes on two cores
    python benchmarks/contraction.py --quick    less of hivemind as shipped: a bit over a minute
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from harness import all_at_once, conclude, print_table, start_peers
from numpy.typing import NDArray
from vector_peer import SIZE, VectorPeer

from ray_gossip.config import Config, parse
from ray_gossip.mixing import average_round, contraction, squared_spread
from ray_gossip.mixing.schedule import groups
from ray_gossip.records import RoundReport
from ray_gossip.testing import Peers

NUM_PEERS = 8
WAIT_S = 180.0
PAUSE_S = 0.3
AGREEMENT = 1e-12  # of the spread at the start: what float32 leaves of zero
TWIN_TOLERANCE = 1e-5  # of a value: float32 on one side, float64 on the other

Values = NDArray[np.float64]  # [num_peers, SIZE]


@dataclass(frozen=True, kw_only=True)
class Setting:
    """One swarm of the engine `gossip`."""

    schedule: str
    group_size: int
    alpha: float = 1.0
    num_peers: int = NUM_PEERS
    matchmaking_s: float = 5.0

    @property
    def config(self) -> Config:
        return parse(
            {
                "swarm": {"num_peers": self.num_peers},
                "gossip": {
                    "schedule": self.schedule,
                    "group_size": self.group_size,
                    "alpha": self.alpha,
                    "matchmaking_s": self.matchmaking_s,
                    "steps": 1,
                    "overlap": False,
                },
            }
        )

    @property
    def formula(self) -> float:
        return contraction(self.num_peers, self.num_peers / self.group_size, self.alpha)


class Swarm:
    """The peers with one setting; counts what went wrong and how far they are from the twin."""

    _run_ids = itertools.count()

    def __init__(self, peers: Peers, setting: Setting) -> None:
        self.peers, self.setting = Peers(peers[: setting.num_peers]), setting
        self.not_averaged: list[str] = []
        self.off_twin = 0.0
        self.met_again: list[bool] = []  # of each peer and round: with the same group as in the round before
        self.seconds: list[float] = []  # of each round, for its slowest peer

    def __enter__(self) -> Swarm:
        run_id = f"contraction{next(self._run_ids)}"
        all_at_once(self.peers, VectorPeer.open, self.setting.config, run_id, wait_s=WAIT_S)
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:  # else the peers are killed soon
            all_at_once(self.peers, VectorPeer.close_engine, wait_s=WAIT_S)

    def set(self, values: Values) -> None:
        self.peers.each(VectorPeer.set, list(values.astype(np.float32)))

    def rounds(self, before: Values, num_rounds: int, pause_s: float = 0.0) -> Iterator[Values]:
        """Rounds from the values `before`, which the peers have. With a pause, no peer waits for more than its
        groupmates; without one all begin a round together: a peer that falls a whole round behind leaves one out."""
        answers: list[list[Any]] = [[] for _ in self.peers]
        for at_once in [num_rounds] if pause_s else [1] * num_rounds:
            results_of_each = all_at_once(self.peers, VectorPeer.rounds, at_once, pause_s, wait_s=WAIT_S)
            for answer, results in zip(answers, results_of_each, strict=True):
                answer += results
        for results in answers:
            self.met_again += met_again([report.group for report, _, _ in results])
        for results in zip(*answers, strict=True):  # of one round, from each peer
            reports: list[RoundReport] = [report for report, _, _ in results]
            self.not_averaged += [f"{r.outcome}: {r.cause}" for r in reports if r.outcome != "averaged"]
            self.seconds.append(max(seconds for _, seconds, _ in results))
            after = np.array([values for _, _, values in results], dtype=np.float64)
            if self.setting.schedule != "hivemind":
                met = groups(
                    self.setting.schedule,
                    round=reports[0].round,
                    num_members=self.setting.num_peers,
                    group_size=self.setting.group_size,
                )
                twin = average_round(before, met, self.setting.alpha)
                self.off_twin = max(self.off_twin, float(np.abs(after - twin).max()))
            before = after
            yield after

    def consecutive(
        self, num_starts: int, num_rounds: int, rng: np.random.Generator, pause_s: float = 0.0
    ) -> NDArray[np.float64]:
        """Spreads [num_starts, 1 + num_rounds]."""
        spreads = np.empty((num_starts, 1 + num_rounds))
        for start in range(num_starts):
            values = fresh(rng, self.setting.num_peers)
            self.set(values)
            afterwards = self.rounds(values, num_rounds, pause_s)
            spreads[start] = [squared_spread(x) for x in itertools.chain([values], afterwards)]
        return spreads

    def complaints(self) -> list[str]:
        """Rounds that did not end as they should have."""
        name = f"{self.setting.schedule} M={self.setting.group_size} alpha={self.setting.alpha:g}"
        found = [f"{name}: a round was {outcome}" for outcome in sorted(set(self.not_averaged))]
        if self.off_twin > TWIN_TOLERANCE:
            found.append(f"{name}: values differ from the twin's by up to {self.off_twin:.2g}")
        return found


class ShippedSwarm:
    """The same peers with hivemind's own averagers."""

    _prefixes = itertools.count()

    def __init__(self, peers: Peers, num_peers: int, **options: Any) -> None:
        self.peers, self.options = Peers(peers[:num_peers]), options
        self.met_again: list[bool] = []
        self.seconds: list[float] = []

    def __enter__(self) -> ShippedSwarm:
        options = {"prefix": f"shipped{next(self._prefixes)}", **self.options}
        all_at_once(self.peers, VectorPeer.open_shipped, options, wait_s=WAIT_S)
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            all_at_once(self.peers, VectorPeer.close_shipped, wait_s=WAIT_S)

    def consecutive(
        self, num_starts: int, num_rounds: int, rng: np.random.Generator, pause_s: float = 0.0
    ) -> NDArray[np.float64]:
        """As Swarm.consecutive."""
        spreads = np.empty((num_starts, 1 + num_rounds))
        for start in range(num_starts):
            values = fresh(rng, len(self.peers))
            self.peers.each(VectorPeer.set_shipped, list(values.astype(np.float32)))
            answers = all_at_once(self.peers, VectorPeer.steps_shipped, num_rounds, pause_s, wait_s=WAIT_S)
            for results in answers:
                self.met_again += met_again([group for group, _, _ in results])
            spreads[start, 0] = squared_spread(values)
            for round, results in enumerate(zip(*answers, strict=True)):
                self.seconds.append(max(seconds for _, seconds, _ in results))
                after = np.array([values for _, _, values in results], dtype=np.float64)
                spreads[start, round + 1] = squared_spread(after)
        return spreads


def fresh(rng: np.random.Generator, num_peers: int) -> Values:
    """Standard normal values that float32 holds exactly."""
    return rng.standard_normal((num_peers, SIZE), dtype=np.float32).astype(np.float64)


def met_again(met: Sequence[tuple[Any, ...]]) -> list[bool]:
    """Of each group but the first: is it the one before?"""
    return [now == before for before, now in itertools.pairwise(met)]


def ratios(spreads: NDArray[np.float64]) -> list[float]:
    """Factor of the mean spread per round, from spreads [num_starts, 1 + num_rounds]."""
    mean = spreads.mean(axis=0)
    return [float(factor) for factor in mean[1:] / mean[:-1]]


def from_the_start(spreads: NDArray[np.float64]) -> list[float]:
    """Mean spread after each round over mean spread at the start."""
    mean = spreads.mean(axis=0)
    return [float(share) for share in mean[1:] / mean[0]]


def fresh_values(peers: Peers, num_rounds: int) -> tuple[dict[str, Any], list[str]]:
    """Part (a)."""
    rows, failures, figures = [], [], {}
    for group_size, alpha in itertools.product((2, 4, 8), (1.0, 0.5)):
        setting = Setting(schedule="random", group_size=group_size, alpha=alpha)
        rng = np.random.default_rng(group_size)
        factors = []
        with Swarm(peers, setting) as swarm:
            for _ in range(num_rounds):
                before = fresh(rng, NUM_PEERS)
                swarm.set(before)
                (after,) = swarm.rounds(before, 1)
                factors.append(squared_spread(after) / squared_spread(before))
        measured = statistics.mean(factors)
        holds = abs(measured - setting.formula) <= max(0.05 * setting.formula, AGREEMENT)
        failures += swarm.complaints()
        if not holds:
            failures.append(f"(a) M={group_size} alpha={alpha:g}: {measured:.4g}, formula {setting.formula:.4g}")
        figures[f"M={group_size} alpha={alpha:g}"] = measured
        error = statistics.stdev(factors) / num_rounds**0.5
        rows.append([group_size, alpha, setting.formula, measured, f"{error:.1g}", swarm.off_twin, _word(holds)])
    print_table(
        f"(a) fresh values, {num_rounds} rounds each, schedule random: factor of the squared spread per round",
        ["M", "alpha", "formula", "measured", "std error", "off twin", ""],
        rows,
    )
    return figures, failures


def consecutive_rounds(peers: Peers, *, num_starts: int, num_shipped: int) -> tuple[dict[str, Any], list[str]]:
    """Part (b)."""
    failures: list[str] = []
    figures: dict[str, Any] = {}
    rows: list[list[Any]] = []
    rng = np.random.default_rng(0)
    for group_size, alpha, starts in ((2, 1.0, num_starts), (2, 0.5, num_starts // 2), (4, 0.5, num_starts // 2)):
        setting = Setting(schedule="random", group_size=group_size, alpha=alpha)
        with Swarm(peers, setting) as swarm:
            factors = ratios(swarm.consecutive(starts, 6, rng))
        holds = all(abs(factor / setting.formula - 1) <= 0.15 for factor in factors)
        failures += swarm.complaints()
        name = f"random M={group_size} alpha={alpha:g}"
        if not holds:
            failures.append(f"(b) {name}: {_list(factors)}, formula {setting.formula:.3f}")
        figures[name] = factors
        rows.append([name, starts, *factors, f"{setting.formula:.3f}", _word(holds)])

    with Swarm(peers, Setting(schedule="grid", group_size=2)) as swarm:
        left = from_the_start(swarm.consecutive(8, 3, rng))
    holds = all(abs(share / expected - 1) <= 0.05 for share, expected in zip(left, (3 / 7, 1 / 7), strict=False))
    holds = holds and left[2] < AGREEMENT
    failures += swarm.complaints()
    if not holds:
        failures.append(f"(b) grid M=2: {_list(left)} of the start, expected 3/7, 1/7, 0")
    figures["grid M=2, of the start"] = left
    header = ["", "starts", *(f"round {number}" for number in range(1, 7)), "formula", ""]
    print_table("(b) consecutive rounds: factor of the squared spread in each round", header, rows)
    print_table(
        "(b) consecutive rounds: squared spread after each round, as a share of the start",
        ["", "starts", "round 1", "round 2", "round 3", "formula", ""],
        [["grid M=2", 8, *left, "3/7 1/7 0", _word(holds)]],
    )

    beside: list[list[Any]] = []
    for schedule in ("grid", "random", "hivemind"):
        with Swarm(peers, Setting(schedule=schedule, group_size=2)) as swarm:
            left = from_the_start(swarm.consecutive(num_shipped, 6, rng, PAUSE_S))
        beside.append([f"schedule={schedule}", *left, f"{statistics.mean(swarm.met_again):.0%}"])
        figures[f"schedule={schedule} with a pause, of the start"] = left
    with ShippedSwarm(peers, NUM_PEERS, target_group_size=2) as shipped:
        left = from_the_start(shipped.consecutive(num_shipped, 6, rng, PAUSE_S))
    beside.append(["hivemind as shipped", *left, f"{statistics.mean(shipped.met_again):.0%}"])
    figures["hivemind as shipped with a pause, of the start"] = left
    print_table(
        f"(b) M=2, {PAUSE_S:g} s between rounds, {num_shipped} starts: squared spread as a share of the start; "
        "meeting the same group again (by chance: 14%)",
        ["", *(f"round {number}" for number in range(1, 7)), "again"],
        beside,
    )
    return figures, failures


def short_groups(peers: Peers, *, num_rounds: int, num_shipped: int) -> tuple[dict[str, Any], list[str]]:
    """Part (c)."""
    rng = np.random.default_rng(0)
    rows: list[list[Any]] = []
    failures: list[str] = []
    figures: dict[str, Any] = {}
    for schedule in ("random", "grid", "hivemind"):
        setting = Setting(schedule=schedule, group_size=4, num_peers=6, matchmaking_s=2.0)
        with Swarm(peers, setting) as swarm:
            swarm.consecutive(num_rounds if schedule != "hivemind" else num_shipped, 1, rng)
        median = statistics.median(swarm.seconds)
        holds = median <= 0.5
        if schedule != "hivemind":
            failures += swarm.complaints()
            failures += [] if holds else [f"(c) {schedule}: median round {median:.2f} s, at most 0.5 s wanted"]
        rows.append(_timing(f"schedule={schedule}", swarm.seconds, _word(holds) if schedule != "hivemind" else ""))
        figures[f"schedule={schedule}"] = median
    with ShippedSwarm(peers, 6, target_group_size=4, min_matchmaking_time=2.0, request_timeout=1.0) as shipped:
        shipped.consecutive(num_shipped, 1, rng)
    rows.append(_timing("hivemind as shipped", shipped.seconds, ""))
    figures["hivemind as shipped"] = statistics.median(shipped.seconds)
    print_table(
        "(c) N=6, M=4, a matchmaking window of 2 s: seconds until the last peer of a round is done",
        ["", "rounds", "median", "longest", ""],
        rows,
    )
    return figures, failures


def _timing(name: str, seconds: Sequence[float], word: str) -> list[Any]:
    return [name, len(seconds), statistics.median(seconds), max(seconds), word]


def _word(holds: bool) -> str:
    return "holds" if holds else "DOES NOT HOLD"


def _list(values: Sequence[float]) -> str:
    return ", ".join(f"{value:.3g}" for value in values)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="less of hivemind as shipped")
    quick = parser.parse_args().quick
    started = time.monotonic()
    with start_peers(VectorPeer, NUM_PEERS) as peers:
        print(f"{NUM_PEERS} peers are up after {time.monotonic() - started:.0f} s", flush=True)
        fresh_factors, failures = fresh_values(peers, 20)
        consecutive, more = consecutive_rounds(peers, num_starts=32, num_shipped=1 if quick else 3)
        failures += more
        seconds, more = short_groups(peers, num_rounds=20, num_shipped=3 if quick else 6)
        failures += more
    print(f"\n{time.monotonic() - started:.0f} s in all")
    return conclude(
        {
            "benchmark": "contraction",
            "fresh": fresh_factors,
            "consecutive": consecutive,
            "median_round_s": seconds,
        },
        failures,
    )


if __name__ == "__main__":
    sys.exit(main())
