"""The mean of a group of which one peer may be wrong: a broken GPU, a wrong build, a liar.

The plain mean goes wherever a single peer pulls it. Two rules bound that (`gossip.robust`):

clip     centred clipping: each peer's difference from the median is cut to `REACH` times the usual length, so that one
         peer of M moves the mean by no more than REACH / M of it. Where nobody is farther, this is the plain mean.
         S. P. Karimireddy, L. He, M. Jaggi, "Learning from History for Byzantine Robust Optimization", ICML 2021; the
         median as centre takes the place of their momentum, which peers of changing groups do not share.
trimmed  of each element the largest and the smallest quarter are left out, at least one of each. It is never the plain
         mean. D. Yin et al., "Byzantine-Robust Distributed Learning", ICML 2018.

Both need a majority: in a group that is wrong by half, there is no telling which half. Knows nothing of hivemind: see
`hive.robust_reducer`.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ray_gossip.config.gossip import OUTVOTED

REACH = 2.0  # times the usual distance from the median
FAR = 5.0  # the same, of one who is named


class RobustMean(NamedTuple):
    values: Tensor  # float32 [size]
    far: tuple[int, ...]  # the rows that are far from the others, or not finite


def robust_mean(rule: str, parts: Tensor) -> RobustMean:
    """Of parts that are not finite nothing counts; where too few are left, neither is the mean.

    Args:
        rule: clip or trimmed.
        parts: float32 [peers, size].
    """
    is_finite = parts.sum(dim=1).isfinite()
    (rows,), (broken,) = is_finite.nonzero(as_tuple=True), (~is_finite).nonzero(as_tuple=True)
    if len(rows) < OUTVOTED:
        return RobustMean(torch.full_like(parts[0], torch.nan), tuple(broken.tolist()))
    whole = parts[rows] if len(broken) else parts
    ranked = whole.sort(dim=0).values
    centre = (ranked[(len(rows) - 1) // 2] + ranked[len(rows) // 2]) / 2
    distances = torch.linalg.vector_norm(whole - centre, dim=1)
    usual = distances.sort().values[(len(rows) - 1) // 2]
    far = sorted([*rows[distances > FAR * usual].tolist(), *broken.tolist()])
    values = _trimmed(ranked) if rule == "trimmed" else _clipped(whole, centre, distances, usual)
    return RobustMean(values, tuple(far))


def _clipped(whole: Tensor, centre: Tensor, distances: Tensor, usual: Tensor) -> Tensor:
    if bool((distances <= REACH * usual).all()):
        return whole.mean(dim=0)
    kept = (REACH * usual / distances).clamp(max=1.0).nan_to_num(nan=1.0)  # 0 / 0: it is at the centre
    return centre + (kept[:, None] * (whole - centre)).mean(dim=0)


def _trimmed(ranked: Tensor) -> Tensor:
    cut = max(1, len(ranked) // 4)
    return ranked[cut : len(ranked) - cut].mean(dim=0)
