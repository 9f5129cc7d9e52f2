"""Whatever comes from the network is a message, or Malformed: never anything else."""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any

import msgpack
import pytest
from hivemind.p2p import PeerID
from hivemind.proto import averaging_pb2
from hivemind.utils import ValueWithExpiration
from hypothesis import given
from hypothesis import strategies as st

from ray_gossip.errors import SwarmError
from ray_gossip.gossip.guests import GuestBook, pack, pack_all, unpack_all
from ray_gossip.gossip.handover import Damaged
from ray_gossip.gossip.members import Member
from ray_gossip.gossip.messages import (
    Answering,
    Arriving,
    Asking,
    Described,
    Gathered,
    Malformed,
    Offered,
    from_wire,
    plain,
    to_wire,
)
from ray_gossip.hive import charter, indices
from ray_gossip.hive.download import receive
from ray_gossip.hive.membership import declarations
from ray_gossip.records import KINDS, Notice, RoundReport

STAGE = (False, 7, 0)
MESSAGES: list[Any] = [
    Arriving(STAGE, ("A", "B"), "", 2**55, 0.0, 1.5),
    Gathered(("A", "B"), {"C": "is busy"}, (-1, 5), 6, ""),
    Asking(STAGE, True),
    Answering("is already in a later round", 9, False),
    Offered(3, True, "abc", 100, (Described("mask", "float32", (3, 4)),), ()),
]
LEAVES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**63), 2**64 - 1),
    st.floats(),
    st.text(max_size=20),
    st.binary(max_size=20),
)
ANYTHING = st.recursive(
    LEAVES, lambda each: st.lists(each, max_size=6) | st.dictionaries(st.text(max_size=5), each, max_size=4)
)
WIRE = st.one_of(st.binary(max_size=300), ANYTHING.map(msgpack.packb))
FORMS = st.sampled_from([Arriving, Gathered, Asking, Answering, Offered])


def altered(message: Any) -> st.SearchStrategy[bytes]:
    """A message of ours with some of its fields replaced: nearer to the truth than any random bytes."""
    fields = [*message]
    return st.dictionaries(st.integers(0, len(fields) - 1), ANYTHING, min_size=1, max_size=3).map(
        lambda others: msgpack.packb([others.get(i, field) for i, field in enumerate(fields)])
    )


@pytest.mark.parametrize("message", MESSAGES, ids=lambda message: type(message).__name__)
def test_a_message_comes_as_it_was_sent(message: Any) -> None:
    assert from_wire(type(message), to_wire(message)) == message


@given(FORMS, WIRE | st.one_of([altered(message) for message in MESSAGES]))
def test_what_is_no_message_is_malformed(form: Any, wire: bytes) -> None:
    with contextlib.suppress(Malformed):
        message = from_wire(form, wire)
        assert from_wire(form, to_wire(message)) == message


@pytest.mark.parametrize(
    "message",
    [
        MESSAGES[0]._replace(wait_s=math.nan),
        MESSAGES[0]._replace(due_in_s=-1.0),
        MESSAGES[0]._replace(group=("A",) * 20_000),
        MESSAGES[0]._replace(excuse="x" * 5000),
        MESSAGES[0]._replace(stage=(0, 7, 0)),
        MESSAGES[1]._replace(ahead=2**63),
        MESSAGES[4]._replace(rest=(Described("mask", "float32", (-3,)),)),
    ],
)
def test_what_is_beyond_all_bounds_is_malformed(message: Any) -> None:
    with pytest.raises(Malformed):
        from_wire(type(message), to_wire(message))


@pytest.mark.parametrize(
    "wire", [b"\x91" * 100_000, b"\xc1", b"\xd4\x05\x00", b"\xdf\xff\xff\xff\xff", b"\xdd\xff\xff\xff\xff"]
)
def test_what_would_cost_much_to_unpack_is_malformed(wire: bytes) -> None:
    with pytest.raises(Malformed, match="cannot be unpacked"):
        plain(wire)


def test_what_a_terminal_would_obey_is_a_question_mark() -> None:
    sent = Notice(peer_index=5, wall_time=1.0, text="\x1b]0;mine\x07größe\n\tand \x9b2Jmore")
    (came,) = unpack_all(pack_all([pack(sent)]))
    assert came == Notice(peer_index=5, wall_time=1.0, text="?]0;mine?größe\n\tand ?2Jmore")


RECORDS = st.builds(
    lambda kind, fields: {"event": kind, **fields},
    st.sampled_from([*KINDS, "Other"]),
    st.dictionaries(
        st.sampled_from(["peer_index", "wall_time", "round", "group", "local_step", "text", "cause", "sketch_before"]),
        ANYTHING,
    ),
)


@given(
    st.one_of(
        WIRE, st.lists(WIRE, max_size=4).map(msgpack.packb), st.lists(RECORDS.map(msgpack.packb)).map(msgpack.packb)
    )
)
def test_what_a_guest_tells_is_records_or_malformed(wire: bytes) -> None:
    book = GuestBook(num_peers=4)
    with contextlib.suppress(Malformed):
        book.write("A", unpack_all(wire))


def test_a_sketch_of_another_length_is_none() -> None:
    report = RoundReport(
        peer_index=5, wall_time=1.0, round=7, outcome="averaged", cause="", group=(1, 5), local_step=140,
        staleness_steps=2, matchmaking_s=0.1, allreduce_s=0.2, blocked_s=0.0, bytes_sent=10**6, moved=0.5,
        sketch_before=(0.5,) * 100,
    )  # fmt: skip
    with pytest.raises(Malformed, match="a sketch has 256 numbers"):
        unpack_all(pack_all([pack(report)]))


@given(st.dictionaries(st.binary(max_size=40) | st.text(max_size=10), ANYTHING, max_size=4))
def test_what_stands_in_the_dht_is_members_or_left_out(values: dict[Any, Any]) -> None:
    entries = {key: SimpleNamespace(value=value, expiration_time=1.0) for key, value in values.items()}
    record = ValueWithExpiration(entries, 1.0)
    for member, _ in declarations(record):
        assert isinstance(member, Member)
    assert indices._is_index(next(iter(values), None), next(iter(values.values()), None)) in (True, False)


@pytest.mark.parametrize(
    "changed",
    [{"peer_index": -1}, {"peer_index": 2**40}, {"round": 2**60}, {"stretch": 0}, {"node": "x" * 1000}, {"other": 1}],
)
def test_a_declaration_beyond_all_bounds_is_left_out(changed: dict[str, Any]) -> None:
    own = Member(peer_id="A", peer_index=3)
    assert Member.from_wire("A", own.to_wire()) == own
    assert Member.from_wire("A", own.to_wire() | changed) is None


@given(ANYTHING | st.text() | ANYTHING.map(lambda value: json.dumps(value, default=str)))
def test_what_is_no_charter_is_none(wire: Any) -> None:
    assert charter._read(wire) is None


@pytest.mark.parametrize(
    "wire", ["[" * 100_000, json.dumps(["../../etc", 4, True, {}]), json.dumps(["a/b", 4, True, {}])]
)
def test_a_charter_that_costs_much_or_names_another_folder_is_none(wire: str) -> None:
    assert charter._read(wire) is None
    assert charter._read(json.dumps(["20261128-1", 4, True, {}])) is not None


async def messages_of(*sent: Any) -> AsyncIterator[averaging_pb2.DownloadData]:
    for each in sent:
        yield averaging_pb2.DownloadData(metadata=each)


@given(WIRE | altered(MESSAGES[4]))
def test_what_is_no_model_is_damaged_or_another(wire: bytes) -> None:
    with contextlib.suppress(Damaged, SwarmError, EOFError):
        asyncio.run(receive(messages_of(wire), size=100, layout="abc", takes_old=True))


@pytest.mark.parametrize(
    ("described", "says"),
    [
        (Described("mask", "load", ()), "types that torch does not know"),
        (Described("mask", "float32", (2**40,)), "and this machine has"),
    ],
)
def test_a_model_that_cannot_be_held_is_not_begun(described: Described, says: str) -> None:
    offered = MESSAGES[4]._replace(rest=(described,))
    with pytest.raises(Damaged, match=says):
        asyncio.run(receive(messages_of(to_wire(offered)), size=100, layout="abc"))


def test_a_peer_id_of_any_bytes_has_a_name() -> None:
    assert PeerID(b"\xff" * 10).to_base58()
