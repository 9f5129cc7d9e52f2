"""What a round does to the squared spread Xi^2 = (1/N) sum ||x_i - mean||^2, in closed form.

N peers (2 or more) meet in groups of M and move by alpha to their group's mean. A *contraction* is the factor of
E[Xi^2] per round: 0 is agreement, 1 no progress, above 1 divergence. It holds for groups drawn afresh each round,
independent of the values, every peer with the same chances: the schedule `random` when M divides N, any schedule in
its first round.

One argument covers it all. Let Q x = x - W x be what averaging takes away from the swarm (W: each peer's
group mean). Around the swarm mean E[Q] = c I with c = (N - K) / (N - 1) for K groups, and Q Q = Q. A round
z' = (F + G Q) z of a peer's state z (parameters, momentum, ...) therefore maps its second moments S to

    S' = F S F^T + c (F S G^T + G S F^T + G S G^T),

and the contraction is the spectral radius of this map. Plain averaging is F = 1, G = -alpha.

References:
    Ryabinin et al., Moshpit SGD, https://arxiv.org/abs/2103.03239: random groups, alpha = 1.
    Kong et al., Consensus Control, https://arxiv.org/abs/2102.04828: why Xi matters.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np

FailureMode = Literal["regroup", "rest", "void", "slice"]
"""What becomes of a round in which members fail, each independently with the same probability.

regroup: the survivors form new random groups of at least M. rest: the rest of each group goes on. void: a
group with a failure averages nothing. slice: the part of the vector that a failed member was to reduce stays
as it was; the others are averaged over the survivors.
"""

_Matrix = Sequence[Sequence[float]]


class SteadySpread(NamedTuple):
    """Squared spread in the steady state, just before and just after a round."""

    before: float
    after: float


def contraction(num_peers: int, num_groups: float, alpha: float = 1.0) -> float:
    """lambda = 1 - alpha (2 - alpha) (N - K) / (N - 1). Lone peers count in K; a mean number will do."""
    return 1 - alpha * (2 - alpha) * _taken_away(num_peers, num_groups)


def grid_contraction(radices: Sequence[int], num_rounds: int) -> float:
    """Factor of E[Xi^2] over k rounds of a full grid: (N / (r_1 ... r_k) - 1) / (N - 1), 0 when k = d.

    An upper bound where the schedule joins lines, i.e. where a side is at most half of group_size.
    """
    num_peers = math.prod(radices)
    return contraction(num_peers, num_peers / math.prod(radices[:num_rounds]))


def ring_contraction(num_peers: int) -> float:
    """A fixed ring with weights 1/3, for comparison: the square of its second eigenvalue, 1 - O(1/N^2).

    References:
        Lian et al., D-PSGD, https://arxiv.org/abs/1705.09056.
    """
    return ((1 + 2 * math.cos(2 * math.pi / num_peers)) / 3) ** 2


def contraction_with_failures(
    num_peers: int, group_size: int, failure_p: float, mode: FailureMode, alpha: float = 1.0
) -> float:
    """Contraction when members fail with probability p: 1 - alpha (2 - alpha) B N / (N - 1); M divides N.

    Failed members keep their values and count in the spread. With q = 1 - p and A ~ Binomial(N, q):

        regroup  B = E[(A - floor(A/M)) 1(A >= M)] / N
        rest     B = q - (1 - p^M) / M
        void     B = (1 - 1/M) q^M
        slice    B = (1 - 1/M) q^2
    """
    p, q = failure_p, 1 - failure_p
    if mode == "regroup":
        moved = sum(
            _binomial(alive, num_peers, q) * (alive - alive // group_size) for alive in range(group_size, num_peers + 1)
        )
        share = moved / num_peers
    elif mode == "rest":
        share = q - (1 - p**group_size) / group_size
    else:
        share = (1 - 1 / group_size) * q ** (group_size if mode == "void" else 2)
    return contraction(num_peers, num_peers * (1 - share), alpha)


def pipelined_contraction(num_peers: int, num_groups: float, alpha: float = 1.0) -> float:
    """Contraction when a round's snapshot is taken before the delta of the round before is added.

    x_{r+1} = x_r - alpha Q x_{r-1}. With alpha = 1 and one group nothing is ever contracted: 1.
    """
    # The state is x_r and x_{r-1}.
    stay: _Matrix = [[1, 0], [1, 0]]
    leave: _Matrix = [[0, -alpha], [0, 0]]
    return _spectral_radius(stay, leave, _taken_away(num_peers, num_groups))


def outer_contraction(num_peers: int, num_groups: float, *, lr: float, momentum: float, nesterov: bool = True) -> float:
    """Contraction of `OuterMomentum` on group means, without local steps.

    Heavy ball diverges in pairs (1.086 for N = 16, lr 0.7, momentum 0.9).

    References:
        Douillard et al., DiLoCo, https://arxiv.org/abs/2311.08105 (one group).
        Kolehmainen et al., NoLoCo, https://arxiv.org/abs/2506.10911 (pairs).
    """
    of_gradient, of_velocity = (1 + momentum, momentum**2) if nesterov else (1, momentum)
    # The state is anchor and velocity; the gradient is Q anchor.
    stay: _Matrix = [[1, -lr * of_velocity], [0, momentum]]
    leave: _Matrix = [[-lr * of_gradient, 0], [1, 0]]
    return _spectral_radius(stay, leave, _taken_away(num_peers, num_groups))


def injected_spread(num_peers: int, local_steps: int, lr: float, noise_variance: float) -> float:
    """Squared spread S = H eta^2 s^2 (1 - 1/N) that H local SGD steps add on a flat loss.

    Args:
        noise_variance: s^2, of one stochastic gradient as a whole vector.
    """
    return local_steps * lr**2 * noise_variance * (1 - 1 / num_peers)


def steady_spread(injected: float, contraction: float) -> SteadySpread:
    """S / (1 - lambda) before a round, lambda S / (1 - lambda) after it; `before` throughout with overlap."""
    before = injected / (1 - contraction)
    return SteadySpread(before=before, after=contraction * before)


def bytes_per_round(model_bytes: float, group_size: int) -> float:
    """What a peer sends in one all-reduce of its group, 2 (M - 1) / M P; it receives as much."""
    return 2 * (group_size - 1) / group_size * model_bytes


def _taken_away(num_peers: int, num_groups: float) -> float:
    """c: the part of the squared spread that lies within groups."""
    return (num_peers - num_groups) / (num_peers - 1)


def _binomial(successes: int, trials: int, p: float) -> float:
    """The binomial distribution, by logarithms so that it holds for thousands of trials."""
    if p in (0, 1):
        return float(successes == trials * p)
    failures = trials - successes
    log_count = math.lgamma(trials + 1) - math.lgamma(successes + 1) - math.lgamma(failures + 1)
    return math.exp(log_count + successes * math.log(p) + failures * math.log1p(-p))


def _spectral_radius(stay: _Matrix, leave: _Matrix, taken_away: float) -> float:
    f, g = np.array(stay), np.array(leave)
    moments = np.kron(f, f) + taken_away * (np.kron(f, g) + np.kron(g, f) + np.kron(g, g))
    return float(np.abs(np.linalg.eigvals(moments)).max())
