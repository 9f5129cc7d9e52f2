"""hivemind's own matchmaking, for `gossip.schedule=hivemind`: a group of peers that look for one at the same time."""

from __future__ import annotations

import contextlib

from hivemind import DecentralizedAverager
from hivemind.averaging.control import StepControl
from hivemind.utils import MPFuture, get_dht_time

from ray_gossip.causes import NOBODY_FOUND
from ray_gossip.gossip.meeting import Gathering
from ray_gossip.gossip.messages import Malformed, plain, to_wire
from ray_gossip.gossip.round import NoRound, Stage
from ray_gossip.hive.mixer import NO_ANCHOR, Mixer
from ray_gossip.hive.rendezvous import Rendezvous

WINDOW_S = 5.0  # it looks for so long, unless `gossip.matchmaking_s` says otherwise


async def match(
    averager: DecentralizedAverager,
    stage: Stage,
    excuse: str,
    *,
    mixer: Mixer,
    rendezvous: Rendezvous,
    window_s: float,
) -> Gathering:
    """Find a group for a stage of a round.

    Args:
        excuse: why this peer cannot take part, if it cannot.

    Raises:
        NoRound: it cannot, or there is nobody.
    """
    if excuse:
        raise NoRound("failed", f"nothing was sent: {excuse}")
    deadline = get_dht_time() + 2 * window_s
    step = StepControl(
        scheduled_time=get_dht_time() + window_s,
        deadline=deadline,
        allow_retries=False,
        weight=1.0,
        data_for_gather=to_wire(mixer.anchor_id),
    )
    step.attach(MPFuture(), MPFuture())
    step.allow_allreduce()
    rendezvous.go_to(stage, ())
    found = await averager._matchmaking.look_for_group(step)
    if found is None:
        raise NoRound("alone", f"{NOBODY_FOUND} within {2 * window_s:g} s")
    present = tuple(peer_id.to_base58() for peer_id in found.peer_ids)
    return Gathering(found.group_id, present, {}, frozenset(map(_anchor, found.gathered)))


def _anchor(wire: bytes) -> int:
    with contextlib.suppress(Malformed):
        anchor = plain(wire)
        return anchor if type(anchor) is int else NO_ANCHOR
    return NO_ANCHOR
