"""Where a group meets when its host cannot be reached for a moment. The peers are real, the network is not."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence

import msgpack
import pytest
from hivemind.p2p import P2PHandlerError
from hivemind.proto.averaging_pb2 import JoinRequest, MessageFromLeader

from ray_gossip.causes import OTHER_MODEL
from ray_gossip.gossip.meeting import PROBE_S, Arrival, Gathering
from ray_gossip.gossip.round import Stage
from ray_gossip.hive.rendezvous import Rendezvous

pytestmark = pytest.mark.timeout(30)

PATIENT = Arrival(wait_s=60.0)


class Network:
    """Peers that call each other. Calls on the links that are down fail at once, those of slow peers take a moment.

    Args:
        odd: those that average another model.
    """

    def __init__(self, names: Sequence[str], odd: str = "") -> None:
        self.down: set[tuple[str, str]] = set()
        self.slow: set[str] = set()
        self._odd = odd
        self.peers = {name: self._peer(name) for name in names}

    def restart(self, name: str) -> None:
        """Another sidecar takes the place of this peer's: it knows of no meeting."""
        self.peers[name] = self._peer(name)

    async def attend(self, name: str, stage: Stage) -> Gathering:
        """All are one group; they host in the order of their names."""
        group = sorted(self.peers)
        self.peers[name].go_to(stage, group)
        return await self.peers[name].attend(stage, group, PATIENT)

    def _peer(self, name: str) -> Rendezvous:
        return Rendezvous(
            peer_id=name,
            schema_hash=b"odd" if name in self._odd else b"",
            cap_s=lambda _: 60.0,
            stub=lambda other: Stub(self, name, other),
            others=list,
            on_call=lambda _: "",
            furthest=lambda: 100,
        )


class Stub:
    def __init__(self, network: Network, caller: str, called: str) -> None:
        self._network, self._caller, self._called = network, caller, called

    async def _other(self) -> Rendezvous:
        if self._caller in self._network.slow:
            await asyncio.sleep(2 * PROBE_S)
        if (self._caller, self._called) in self._network.down:
            raise P2PHandlerError("no route")
        return self._network.peers[self._called]

    async def rpc_meet(self, request: JoinRequest, timeout: float | None = None) -> MessageFromLeader:
        other = await self._other()
        return await asyncio.wait_for(other.answer_meet(request, self._caller), timeout)

    async def rpc_coming(self, request: JoinRequest, timeout: float | None = None) -> MessageFromLeader:
        return (await self._other()).answer_coming(request, self._caller, has_left=False)


async def gather(tasks: Sequence[asyncio.Task[Gathering]], names: Sequence[str]) -> None:
    started = time.monotonic()
    gatherings = await asyncio.gather(*tasks)
    assert time.monotonic() - started < 20 * PROBE_S
    assert len({each.group_id for each in gatherings}) == 1
    assert all(sorted(each.present) == sorted(names) for each in gatherings)


@pytest.mark.parametrize("names", ["AB", "ABC", "ABCD"])
@pytest.mark.parametrize("stage", [Stage(False, 3), Stage(True, 0)], ids=["usual", "final"])
def test_those_that_cannot_reach_the_host_for_a_moment_meet_it_all_the_same(names: str, stage: Stage) -> None:
    """Else each host waits for the others, which wait at another one, until the round is over."""

    async def test() -> None:
        network = Network(names)
        network.down = {(name, "A") for name in names[1:]}
        tasks = [asyncio.create_task(network.attend(name, stage)) for name in names]
        await asyncio.sleep(PROBE_S / 2)
        network.down.clear()
        await gather(tasks, names)

    asyncio.run(test())


def test_a_host_whose_sidecar_dies_in_a_final_meeting_is_joined_where_it_comes_back() -> None:
    async def test() -> None:
        network, stage = Network("ABC"), Stage(True, 0)
        first, second = (asyncio.create_task(network.attend(name, stage)) for name in "AB")
        await asyncio.sleep(PROBE_S / 2)
        first.cancel()
        network.down = {("B", "A"), ("C", "A")}
        second.cancel()  # its call to the host fails, too
        second, third = (asyncio.create_task(network.attend(name, stage)) for name in "BC")
        await asyncio.sleep(2 * PROBE_S)
        network.restart("A")
        network.down.clear()
        await gather([asyncio.create_task(network.attend("A", stage)), second, third], "ABC")

    asyncio.run(test())


@pytest.mark.parametrize("odd", "ABC")
def test_nobody_averages_with_a_peer_of_another_model_wherever_it_hosts(odd: str) -> None:
    """It may have a meeting of the same group open for a moment, until it hears what the others average."""

    async def test() -> None:
        network = Network("ABC", odd=odd)
        network.slow = {odd}
        gatherings = await asyncio.gather(*(network.attend(name, Stage(False, 3)) for name in "ABC"))
        for name, gathering in zip("ABC", gatherings, strict=True):
            usual = set("ABC") - {odd}
            assert set(gathering.present) == ({odd} if name == odd else usual)
            assert gathering.absent == dict.fromkeys(usual if name == odd else odd, OTHER_MODEL)
        request = JoinRequest(schema_hash=b"another", gather=msgpack.packb([Stage(False, 3), "ABC", "", 0, 0.0, 1.0]))
        with pytest.raises(ValueError, match=OTHER_MODEL):
            await network.peers[odd].answer_meet(request, "B")

    asyncio.run(test())
