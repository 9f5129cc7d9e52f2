"""Where a group meets, without peers: in one event loop, asked by coroutines instead of calls."""

from __future__ import annotations

import asyncio
import re
import time
from typing import Any

import pytest

from ray_gossip.causes import SILENT, UNREACHABLE
from ray_gossip.gossip.meeting import CALL_S, PROBE_S, Answer, Arrival, Gathering, Meeting

pytestmark = pytest.mark.timeout(20)

NEVER = 60.0
GROUP = frozenset("ABC")


PATIENT = Arrival(wait_s=NEVER)


async def coming(peer_id: str, calls: bool) -> Answer:
    """Everybody is alive and on the way."""
    return Answer()


class Probe:
    """Says of some members why they are not coming, and remembers who was asked."""

    def __init__(self, **reasons: str) -> None:
        self.reasons, self.asked, self.called = reasons, set[str](), set[str]()

    async def __call__(self, peer_id: str, calls: bool) -> Answer:
        (self.called if calls else self.asked).add(peer_id)
        return Answer(self.reasons.get(peer_id, ""))


def attending(meeting: Meeting, *peer_ids: str, arrival: Arrival = PATIENT) -> list[asyncio.Task[Gathering]]:
    return [asyncio.create_task(meeting.attend(peer_id, arrival)) for peer_id in peer_ids]


async def others_of(meeting: Meeting) -> set[asyncio.Task[Any]]:
    """Tasks that the meeting has left behind, after the event loop has had time to end them."""
    for _ in range(10):
        await asyncio.sleep(0)
    return asyncio.all_tasks() - {asyncio.current_task()}


def test_a_full_meeting_ends_at_once_and_all_hear_the_same() -> None:
    async def test() -> None:
        meeting = Meeting(GROUP, coming, NEVER)
        started = time.monotonic()
        gatherings = await asyncio.gather(*attending(meeting, "A", "B", "C"))
        assert time.monotonic() - started < PROBE_S
        assert gatherings[0] == gatherings[1] == gatherings[2]
        assert sorted(gatherings[0].present) == ["A", "B", "C"]
        assert gatherings[0].absent == {}
        assert not await others_of(meeting)

    asyncio.run(test())


def test_no_two_meetings_have_the_same_group_id() -> None:
    async def test() -> None:
        ids = [(await Meeting(frozenset("A"), coming, NEVER).attend("A", PATIENT)).group_id for _ in range(100)]
        assert len(set(ids)) == 100
        assert all(len(group_id) == 20 for group_id in ids)

    asyncio.run(test())


def test_the_order_of_parts_changes_from_meeting_to_meeting() -> None:
    async def test() -> None:
        orders = set()
        for _ in range(50):
            meeting = Meeting(GROUP, coming, NEVER)
            orders.add((await asyncio.gather(*attending(meeting, "A", "B", "C")))[0].present)
        assert len(orders) > 3

    asyncio.run(test())


def test_anchors_of_those_present_are_told_to_all() -> None:
    async def test() -> None:
        meeting = Meeting(GROUP, coming, NEVER)
        first = asyncio.create_task(meeting.attend("A", Arrival(anchor=7, wait_s=NEVER)))
        second = asyncio.create_task(meeting.attend("B", Arrival(anchor=9, wait_s=NEVER)))
        await meeting.attend("C", Arrival(excuse="its disk is full", anchor=11, wait_s=NEVER))
        assert (await first).anchors == (await second).anchors == {7, 9}

    asyncio.run(test())


def test_a_member_that_does_not_come_is_asked_for_and_waited_for_until_the_deadline() -> None:
    async def test() -> None:
        probe = Probe()
        meeting = Meeting(GROUP, probe, wait_s=0.6)
        gathering, _ = await asyncio.gather(*attending(meeting, "A", "B"))
        assert 0.6 <= meeting.age_s < 0.6 + PROBE_S
        assert sorted(gathering.present) == ["A", "B"]
        assert re.fullmatch(r"did not come within 0\.\d+ s", gathering.absent["C"])  # as long as it really waited
        assert probe.called == {"C"}
        assert not await others_of(meeting)

    asyncio.run(test())


def test_a_final_meeting_waits_for_one_whose_network_side_is_away_and_comes_back() -> None:
    async def test() -> None:
        probe = Probe(C=UNREACHABLE)
        meeting = Meeting(GROUP, probe, NEVER, back_s=NEVER)
        first, second = attending(meeting, "A", "B")
        await asyncio.sleep(2 * PROBE_S)
        second.cancel()  # its network side dies, too
        probe.reasons["B"] = UNREACHABLE
        await asyncio.sleep(2 * PROBE_S)
        assert not meeting.has_ended
        probe.reasons.clear()
        back = attending(meeting, "B", "C")
        assert sorted((await first).present) == ["A", "B", "C"]
        assert (await asyncio.gather(*back))[0].absent == {}

    asyncio.run(test())


def test_a_final_meeting_waits_no_longer_for_one_that_is_gone_than_it_takes_to_come_back() -> None:
    async def test() -> None:
        meeting = Meeting(GROUP, Probe(C=UNREACHABLE), NEVER, back_s=0.5)
        gathering, _ = await asyncio.gather(*attending(meeting, "A", "B"))
        assert 0.5 <= meeting.age_s < 0.5 + 10 * PROBE_S
        assert gathering.absent == {"C": UNREACHABLE}

    asyncio.run(test())


def test_a_dead_member_costs_one_probe_and_not_the_deadline() -> None:
    async def test() -> None:
        meeting = Meeting(GROUP, Probe(C="could not be reached"), NEVER)
        gathering, _ = await asyncio.gather(*attending(meeting, "A", "B"))
        assert meeting.age_s < 2 * PROBE_S
        assert gathering.absent == {"C": "could not be reached"}

    asyncio.run(test())


def test_a_probe_that_hangs_does_not_move_the_deadline() -> None:
    async def hangs(peer_id: str, calls: bool) -> Answer:
        await asyncio.sleep(NEVER)
        return Answer()

    async def test() -> None:
        meeting = Meeting(GROUP, hangs, wait_s=0.5)
        gathering, _ = await asyncio.gather(*attending(meeting, "A", "B"))
        assert 0.5 <= meeting.age_s < 0.5 + PROBE_S
        assert gathering.absent == {"C": SILENT}
        assert not await others_of(meeting)

    asyncio.run(test())


def test_a_probe_that_raises_does_not_move_the_deadline() -> None:
    async def raises(peer_id: str, calls: bool) -> Answer:
        raise RuntimeError("a bug, or nonsense from the network")

    async def test() -> None:
        gathering, _ = await asyncio.gather(*attending(Meeting(GROUP, raises, wait_s=0.5), "A", "B"))
        assert gathering.absent == {"C": SILENT}

    asyncio.run(test())


def test_a_member_that_comes_while_it_is_asked_for_is_present() -> None:
    async def test() -> None:
        async def slow(peer_id: str, calls: bool) -> Answer:
            arrival = asyncio.create_task(meeting.attend("C", PATIENT))
            await asyncio.sleep(0.05)
            await arrival
            return Answer("could not be reached")

        meeting = Meeting(GROUP, slow, NEVER)
        gathering, _ = await asyncio.gather(*attending(meeting, "A", "B"))
        assert sorted(gathering.present) == ["A", "B", "C"]
        assert gathering.absent == {}

    asyncio.run(test())


def test_an_excused_member_is_not_waited_for() -> None:
    async def test() -> None:
        meeting = Meeting(GROUP, coming, NEVER)
        tasks = attending(meeting, "A", "B")
        excused = await meeting.attend("C", Arrival(excuse="its parameters are not finite", wait_s=NEVER))
        assert meeting.age_s < PROBE_S
        for gathering in (excused, *await asyncio.gather(*tasks)):
            assert sorted(gathering.present) == ["A", "B"]
            assert gathering.absent == {"C": "its parameters are not finite"}

    asyncio.run(test())


def test_a_member_given_up_for_dead_may_still_come_before_the_end() -> None:
    async def test() -> None:
        probe = Probe(C="could not be reached")
        meeting = Meeting(GROUP, probe, NEVER)
        (first,) = attending(meeting, "A")
        await asyncio.sleep(1.5 * PROBE_S)
        assert meeting.absent == {"C": "could not be reached"}
        gatherings = await asyncio.gather(first, *attending(meeting, "C", "B"))
        assert sorted(gatherings[0].present) == ["A", "B", "C"]

    asyncio.run(test())


def test_a_latecomer_hears_that_the_meeting_went_on_without_it() -> None:
    async def test() -> None:
        meeting = Meeting(GROUP, Probe(C="could not be reached"), NEVER)
        first, _ = await asyncio.gather(*attending(meeting, "A", "B"))
        late = await meeting.attend("C", PATIENT)
        assert late == first
        assert "C" not in late.present
        assert late.absent == {"C": "could not be reached"}

    asyncio.run(test())


def test_a_member_that_hangs_up_is_not_counted_as_present() -> None:
    async def test() -> None:
        meeting = Meeting(GROUP, coming, NEVER)
        first, impatient = attending(meeting, "A", "B")
        await asyncio.sleep(0)
        impatient.cancel()
        await asyncio.wait([impatient])
        assert (await meeting.attend("C", PATIENT)).absent == {"B": "did not wait for the others"}
        assert sorted((await first).present) == ["A", "C"]

    asyncio.run(test())


def test_a_member_that_hangs_up_after_the_end_changes_nothing() -> None:
    async def test() -> None:
        meeting = Meeting(frozenset("AB"), coming, NEVER)
        (impatient,) = attending(meeting, "A")
        await asyncio.sleep(0)
        gathering = await meeting.attend("B", PATIENT)
        impatient.cancel()
        await asyncio.wait([impatient])
        assert sorted(gathering.present) == ["A", "B"]
        assert gathering.absent == {}

    asyncio.run(test())


def test_nobody_enters_a_meeting_of_others() -> None:
    async def test() -> None:
        meeting = Meeting(GROUP, coming, NEVER)
        with pytest.raises(ValueError, match="Mallory is not in this group"):
            await meeting.attend("Mallory", PATIENT)
        assert not meeting.arrived
        gatherings = await asyncio.gather(*attending(meeting, "A", "B", "C"))
        assert sorted(gatherings[0].present) == ["A", "B", "C"]

    asyncio.run(test())


def test_a_meeting_to_which_nobody_comes_ends_too() -> None:
    async def test() -> None:
        meeting = Meeting(GROUP, coming, wait_s=0.3)
        gathering = await meeting.attend("A", Arrival(excuse="its parameters are not finite", wait_s=NEVER))
        assert gathering.present == ()
        assert gathering.absent.keys() == GROUP

    asyncio.run(test())


def test_the_first_that_can_wait_no_longer_ends_the_meeting() -> None:
    async def test() -> None:
        meeting = Meeting(GROUP, coming, NEVER)
        patient, impatient = *attending(meeting, "A"), *attending(meeting, "B", arrival=Arrival(wait_s=0.4))
        await asyncio.wait([patient, impatient])
        assert 0.4 <= meeting.age_s < 0.4 + CALL_S + PROBE_S
        assert sorted((await patient).present) == ["A", "B"]

    asyncio.run(test())


def test_a_peer_that_is_ahead_calls_nobody_until_it_is_due_itself() -> None:
    async def test() -> None:
        probe = Probe()
        meeting = Meeting(GROUP, probe, NEVER)
        ahead = attending(meeting, "A", arrival=Arrival(due_in_s=0.8, wait_s=NEVER))
        await asyncio.sleep(0.5)
        assert (probe.asked, probe.called) == ({"B", "C"}, set())
        await asyncio.sleep(0.5)
        assert probe.called == {"B", "C"}
        await asyncio.gather(*ahead, *attending(meeting, "B", "C"))

    asyncio.run(test())


def test_one_that_is_due_calls_the_others_at_once() -> None:
    async def test() -> None:
        probe = Probe()
        meeting = Meeting(GROUP, probe, NEVER)
        tasks = attending(meeting, "A", arrival=Arrival(due_in_s=NEVER, wait_s=NEVER))
        await asyncio.sleep(PROBE_S + 0.1)
        tasks += attending(meeting, "B")
        await asyncio.sleep(2 * CALL_S)
        assert probe.called == {"C"}
        await asyncio.gather(*tasks, *attending(meeting, "C"))

    asyncio.run(test())


def test_a_gathering_tells_how_far_the_absent_are_ahead() -> None:
    async def later(peer_id: str, calls: bool) -> Answer:
        return Answer("is already in a later round", {"B": 7, "C": 9}[peer_id])

    async def test() -> None:
        gathering = await Meeting(GROUP, later, NEVER).attend("A", PATIENT)
        assert (gathering.present, gathering.ahead) == (("A",), 9)

    asyncio.run(test())
