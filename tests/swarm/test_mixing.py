"""What real peers arrive at, held against the arithmetic of rounds without a network."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from ray_gossip.mixing import average_round, squared_spread
from ray_gossip.mixing.schedule import groups
from ray_gossip.records import RoundReport
from ray_gossip.testing import GossipPeer, Peers, start_swarm
from tests.swarm.swarms import blocking

SIZE = 5003  # odd, so that reducers get slices of different lengths
SETTINGS = {
    "grid of pairs": (4, "grid", 2, 1.0),
    "random pairs, alpha 0.5": (4, "random", 2, 0.5),
    "all": (4, "all", 2, 1.0),
    "three peers in pairs": (3, "grid", 2, 1.0),
    "five peers, random groups of 3": (5, "random", 3, 0.5),
    "five peers on a ring": (5, "ring", 2, 1.0),
}
NUM_ROUNDS = 5


@pytest.fixture(scope="module")
def swarm(request: pytest.FixtureRequest) -> Iterator[Swarm]:
    num_peers, schedule, group_size, alpha = request.param
    settings = [f"gossip.schedule={schedule}", f"gossip.group_size={group_size}", f"gossip.alpha={alpha}"]
    settings += ["gossip.matchmaking_s=30", "seed=3"]  # a busy machine shall not decide who meets whom
    with start_swarm(blocking(num_peers, *settings), SIZE) as peers:
        yield Swarm(peers, schedule, group_size, alpha)


class Swarm:
    """Real peers, and the same swarm on arrays."""

    def __init__(self, peers: Peers, schedule: str, group_size: int, alpha: float) -> None:
        self.peers, self.schedule, self.group_size, self.alpha = peers, schedule, group_size, alpha
        self.twin = np.random.default_rng(0).normal(size=(len(peers), SIZE)).astype(np.float32)
        peers.each(GossipPeer.set, [torch.from_numpy(row.copy()) for row in self.twin])

    def round(self) -> list[RoundReport]:
        """One round of both."""
        reports: list[RoundReport] = self.peers.all(GossipPeer.round)
        (round,) = {report.round for report in reports}
        met = groups(self.schedule, round=round, num_members=len(self.peers), group_size=self.group_size, seed=3)
        self.twin = average_round(self.twin, met, self.alpha)
        for report in reports:
            (group,) = [group for group in met if report.peer_index in group]
            assert report.group == group, [(each.peer_index, each.outcome, each.cause) for each in reports]
            assert report.outcome == ("averaged" if len(group) > 1 else "alone")
            assert report.cause == ("" if len(group) > 1 else "scheduled alone")
        return reports

    def values(self) -> NDArray[np.float32]:
        return torch.stack(self.peers.all(GossipPeer.get)).numpy()


@pytest.mark.parametrize("swarm", SETTINGS.values(), ids=SETTINGS, indirect=True, scope="module")
def test_real_rounds_agree_with_the_twin_keep_the_mean_and_never_widen_the_spread(swarm: Swarm) -> None:
    mean = swarm.values().mean(axis=0, dtype=np.float64)
    spread = squared_spread(swarm.values())
    for _ in range(NUM_ROUNDS):
        reports = swarm.round()
        values = swarm.values()
        np.testing.assert_allclose(values, swarm.twin, atol=2e-6)
        np.testing.assert_allclose(values.mean(axis=0, dtype=np.float64), mean, atol=1e-6)
        assert squared_spread(values) <= spread * (1 + 1e-6)
        spread = squared_spread(values)
        sketches = np.array([report.sketch_after for report in reports])
        assert squared_spread(sketches) == pytest.approx(spread, rel=0.5, abs=1e-6)


@pytest.mark.parametrize("swarm", [SETTINGS["grid of pairs"]], ids=["grid of pairs"], indirect=True, scope="module")
def test_two_rounds_on_a_grid_of_pairs_bring_four_peers_to_their_exact_mean(swarm: Swarm) -> None:
    start = torch.randn(4, SIZE, generator=torch.Generator().manual_seed(0))
    swarm.peers.each(GossipPeer.set, list(start))
    for _ in range(2):
        swarm.round()
    after = torch.from_numpy(swarm.values())
    assert squared_spread(after.numpy()) < 1e-12 * squared_spread(start.numpy())
    torch.testing.assert_close(after[0], start.mean(dim=0), atol=1e-6, rtol=0)


def test_in_three_pieces_one_a_round_a_grid_of_pairs_needs_three_times_the_rounds_and_each_sends_a_third() -> None:
    words = ["gossip.schedule=grid", "gossip.group_size=2", "gossip.fragments=3", "gossip.matchmaking_s=30", "seed=3"]
    start = torch.randn(4, SIZE, generator=torch.Generator().manual_seed(0))
    with start_swarm(blocking(4, *words), SIZE) as peers:
        peers.each(GossipPeer.set, list(start))
        sent = np.zeros(4)
        for turn in range(2):
            for piece in range(3):
                before = torch.stack(peers.all(GossipPeer.get))
                reports: list[RoundReport] = peers.all(GossipPeer.round)
                after = torch.stack(peers.all(GossipPeer.get))
                begin, end = piece * SIZE // 3, (piece + 1) * SIZE // 3
                moved = (after != before).any(dim=0).nonzero().squeeze()
                assert (begin, end - 1) == (int(moved.min()), int(moved.max())), f"turn {turn}, piece {piece}"
                met = groups("grid", round=turn, num_members=4, group_size=2, seed=3)
                torch.testing.assert_close(
                    after[:, begin:end],
                    torch.from_numpy(average_round(before.numpy(), met, 1.0))[:, begin:end],
                    atol=2e-6,
                    rtol=0,
                )
                assert [report.outcome for report in reports] == ["averaged"] * 4
                sent += np.array([report.bytes_sent for report in reports])
        assert sent == pytest.approx(2 * 4 * SIZE, rel=0.2), "of all rounds: a last answer may count in the next one"
        torch.testing.assert_close(after, start.mean(dim=0).expand(4, -1), atol=2e-6, rtol=0)
