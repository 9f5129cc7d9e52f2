"""Who has nothing but a peer's address: does it get in, and does the swarm beside it notice?

Four real peers train with local steps of a fixed time and average every second. First they are left alone. Then
strangers try every door of theirs, each many times: the DHT (get, store), the averager's calls (meet, coming, tell) and
streams (join_group, aggregate, download). A stranger is

    plain       hivemind's client as shipped
    made up     speaks our wire format, with tokens of random bytes
    other run   has the secret of another run
    replayed    repeats tokens that were let in once, its own and those of a member for another

Let in is whoever gets an answer. Wanted: nobody; the swarm keeps 0.97 of its local steps and averages 0.99 of its
rounds. In the end one that has the secret tries the same doors, and must be let in: else nothing was shown.

What tokens cost: the time of a round in a swarm with closed doors and in an open one, in turns.

    python benchmarks/stranger.py                 1,000 tries each: about 5 minutes on two cores
    python benchmarks/stranger.py --tries 20      to try it
"""

from __future__ import annotations

import argparse
import asyncio
import sys
from collections.abc import Sequence
from functools import partial
from typing import Any

from beside import TURN_S, WAIT_S, Member, Summed, Turn, start_member, start_members, turns, while_they_train
from doors import DOORS, Door
from forged_tokens import Guesses, OtherRuns, Recorded
from harness import all_at_once, conclude, print_table
from hivemind.p2p import P2P, PeerID

from ray_gossip.config import parse
from ray_gossip.gossip.admission import Secret, Tokens
from ray_gossip.hive import quiet_hivemind
from ray_gossip.hive.doors import ClosedClient
from ray_gossip.testing import RemotePeer

NUM_PEERS, SIZE, STEP_S, H = 4, 100_000, 0.05, 20
QUIET_S = 60.0
ANSWER_S = 3.0  # of a door; a stream that is closed answers nothing
AT_ONCE = 8  # tries of one stranger
STEPS, AVERAGED, COST, COSTS = 0.97, 0.99, 0.02, 2
CONFIG = parse({"swarm": {"num_peers": NUM_PEERS}, "gossip": {"group_size": NUM_PEERS, "steps": H}})
STRANGERS = ("plain", "made up", "other run", "replayed")
MEMBER = "with the secret"


class Stranger:
    """A libp2p node of its own, which knows the addresses of the members, and the swarm's name.

    Args:
        secret: of the swarm; used as far as this kind of stranger has seen something of it.
    """

    def __init__(self, kind: str, multiaddrs: Sequence[str], secret: Secret) -> None:
        quiet_hivemind()
        self._loop = asyncio.new_event_loop()
        self._loop.run_until_complete(self._connect(kind, multiaddrs, secret))

    async def _connect(self, kind: str, multiaddrs: Sequence[str], secret: Secret) -> None:
        self._p2p = await P2P.create(initial_peers=list(multiaddrs))
        self._callees = [PeerID.from_base58(address.rpartition("/")[2]) for address in multiaddrs]
        own, members = self._p2p.peer_id.to_bytes(), [callee.to_bytes() for callee in self._callees]
        self._recorded = Recorded(secret, own=own, members=members)
        tokens = {
            "plain": None,
            "made up": Guesses(secret, own=own),
            "other run": OtherRuns(Secret.new(), own=own),
            "replayed": self._recorded,
            MEMBER: Tokens(secret, own=own),
        }[kind]
        if tokens is not None:
            self._p2p._client = ClosedClient(self._p2p._client, tokens)

    def try_doors(self, tries: int) -> dict[str, int]:
        """How often each door let this one in."""
        return {name: self._loop.run_until_complete(self._try(door, tries)) for name, door in DOORS.items()}

    async def _try(self, door: Door, tries: int) -> int:
        at_once = asyncio.Semaphore(AT_ONCE)

        async def once(number: int) -> bool:
            async with at_once:
                try:
                    await asyncio.wait_for(door(self._p2p, self._callees[number % len(self._callees)]), ANSWER_S)
                except Exception:  # whatever it is: this one was not let in
                    return False
                return True

        self._recorded.is_recording = True  # which only tokens of this kind heed; of each peer called
        await asyncio.gather(*map(once, range(len(self._callees))))
        self._recorded.is_recording = False
        return sum(await asyncio.gather(*map(once, range(tries))))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tries", type=int, default=1000, help="of each stranger, at each door")
    options = parser.parse_args()
    secret, members, guests = Secret.new(), list[RemotePeer](), list[RemotePeer]()
    of_each: dict[str, Any] = {"size": SIZE, "step_s": STEP_S, "secret": secret}
    try:
        addresses = start_members(CONFIG, members, **of_each)
        quiet = turns(members, QUIET_S)
        let_in: dict[str, dict[str, int]] = {}
        attacked: list[Turn] = []
        for kind in STRANGERS:
            guests.append(_guest(kind, addresses, secret))
        for kind, guest in zip(STRANGERS, guests, strict=True):
            let_in[kind], beside = while_they_train(members, partial(_tried, guest, options.tries))
            attacked += beside
        guests.append(_guest(MEMBER, addresses, secret))
        let_in[MEMBER] = _tried(guests[-1], 2 * NUM_PEERS)
        start_member(CONFIG, members, addresses[:1], **of_each)
        for member in members[:-1]:
            member.send(Member.turn, 2 * TURN_S)
        joined_at = members[-1].call(Member.join_running)
        for member in members[:-1]:
            member.receive(WAIT_S)
        all_at_once(members, Member.close, wait_s=WAIT_S)
    finally:
        for each in (*guests, *members):
            each.close()
    return _conclude(options.tries, let_in, quiet, attacked, joined_at, round_s())


def round_s() -> dict[str, float]:
    """Median seconds of a round, of open and of closed swarms."""
    found: dict[str, list[Turn]] = {"open": [], "closed": []}
    for kind in ("open", "closed") * COSTS:
        members: list[RemotePeer] = []
        try:
            start_members(
                CONFIG, members, size=SIZE, step_s=STEP_S / 4, secret=Secret.new() if kind == "closed" else None
            )
            found[kind] += turns(members, QUIET_S / 2)
            all_at_once(members, Member.close, wait_s=WAIT_S)
        finally:
            for member in members:
                member.close()
    return {kind: Summed.of(each).round_s for kind, each in found.items()}


def _guest(kind: str, addresses: Sequence[str], secret: Secret) -> RemotePeer:
    guest = RemotePeer(Stranger, kind, addresses, secret)
    guest.receive(WAIT_S)
    return guest


def _tried(guest: RemotePeer, tries: int) -> dict[str, int]:
    guest.send(Stranger.try_doors, tries)
    found: dict[str, int] = guest.receive(len(DOORS) * (10.0 + tries * ANSWER_S / AT_ONCE))
    return found


def _conclude(
    tries: int,
    let_in: dict[str, dict[str, int]],
    quiet: Sequence[Turn],
    attacked: Sequence[Turn],
    joined_at: int,
    round_s: dict[str, float],
) -> int:
    rows = [[kind, *(found[door] for door in DOORS)] for kind, found in let_in.items()]
    print_table(f"let in, of {tries} tries ({2 * NUM_PEERS} {MEMBER})", ["", *DOORS], rows)
    before, beside = Summed.of(quiet), Summed.of(attacked)
    print_table(
        f"{NUM_PEERS} peers, a local step {STEP_S:g} s, a round every {H * STEP_S:g} s",
        ["", "local steps/s of a peer", "rounds averaged"],
        [["quiet", before.steps_per_s, before.averaged], ["strangers beside it", beside.steps_per_s, beside.averaged]],
    )
    notices = [notice for turn in attacked for notice in turn.notices]
    print(f"\nA newcomer with the secret came in at local step {joined_at}. {len(notices)} notices, as: {notices[:1]}")
    cost = round_s["closed"] / round_s["open"] - 1
    print(f"A round takes {round_s['closed']:.4f} s with closed doors, {round_s['open']:.4f} s in an open swarm.")
    failures = [
        f"{kind} was let in {count} times by {door}"
        for kind in STRANGERS
        for door, count in let_in[kind].items()
        if count
    ]
    known = ("get", "store", "tell", "download")  # to which a member alone gets an answer by itself
    failures += [f"one {MEMBER} was not let in by {door}" for door in known if not let_in[MEMBER][door]]
    kept = beside.steps_per_s / before.steps_per_s
    if kept < STEPS:
        failures.append(f"the swarm kept {kept:.3f} of its local steps")
    if beside.averaged < AVERAGED:
        failures.append(f"{beside.averaged:.3f} of the rounds were averaged: {beside.causes[:2]}")
    if not notices:
        failures.append("nobody was told")
    if cost > COST:
        failures.append(f"tokens cost {cost:.3f} of a round's time")
    figures = {"round_s": round_s, "tries": tries, "let_in": let_in, "steps_kept": kept, "averaged": beside.averaged}
    return conclude({**figures, "averaged_quiet": before.averaged, "joined_at": joined_at}, failures)


if __name__ == "__main__":
    sys.exit(main())
