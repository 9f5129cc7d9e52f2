"""Records of guests: over the wire, and in the book of the peer that passes them on."""

from __future__ import annotations

import pytest

from ray_gossip.gossip.guests import GuestBook, pack, unpack
from ray_gossip.gossip.members import Member, View
from ray_gossip.records import Notice, PeerFinished, PeerLeft, PeerLost, Progress, RoundReport


def progress(peer_index: int) -> Progress:
    return Progress(
        peer_index=peer_index, wall_time=1.79e9 + 0.25, local_step=3, samples=96, data_epoch=0.5, loss=float("inf"),
        lr=0.1, samples_per_s=7.5,
    )  # fmt: skip


def report() -> RoundReport:
    return RoundReport(
        peer_index=5, wall_time=1.79e9 + 0.25, round=7, outcome="averaged", cause="", group=(1, 5), local_step=140,
        staleness_steps=2, matchmaking_s=0.1, allreduce_s=0.2, blocked_s=0.0, bytes_sent=10**6, moved=0.5,
        sketch_before=tuple(0.5 * i for i in range(256)), sketch_after=tuple(0.25 * i for i in range(256)),
    )  # fmt: skip


def view(*peer_ids: str) -> View:
    return View(tuple(Member(peer_id=peer_id, peer_index=index) for index, peer_id in enumerate(peer_ids)))


@pytest.mark.parametrize("record", [progress(4), report(), PeerLeft(peer_index=4, wall_time=1.0, local_step=9)])
def test_a_record_comes_over_the_wire_as_it_is(record: Progress | RoundReport | PeerLeft) -> None:
    assert unpack(pack(record)) == record


def test_a_report_fits_into_a_message_between_processes() -> None:
    assert len(pack(report())) < 12_000


@pytest.mark.parametrize(
    "wire", [b"", b"nonsense", b"\x93\x01\x02\x03", pack(progress(4)).replace(b"local_step", b"local_stop")]
)
def test_what_is_no_record_is_refused(wire: bytes) -> None:
    with pytest.raises(ValueError, match="this is no record"):
        unpack(wire)


def test_the_book_gives_what_was_written_once() -> None:
    book = GuestBook(num_peers=4)
    book.write("A", [progress(4), report_of(4)])
    assert [type(record) for record in book.take(view("A"))] == [Progress, Notice]
    assert book.take(view("A")) == []


def report_of(peer_index: int) -> Notice:
    return Notice(peer_index=peer_index, wall_time=0.0, text="here")


@pytest.mark.parametrize("indices", [(3,), (4, 5), ()])
def test_records_of_others_than_one_guest_are_refused(indices: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="sends records of the peers"):
        GuestBook(num_peers=4).write("A", [progress(index) for index in indices])


def test_a_guest_cannot_become_another_one() -> None:
    book = GuestBook(num_peers=4)
    book.write("A", [progress(4)])
    with pytest.raises(ValueError, match="sends records"):
        book.write("A", [progress(5)])


def test_a_guest_that_was_seen_and_is_gone_without_a_word_is_lost() -> None:
    book = GuestBook(num_peers=4)
    book.write("A", [progress(4)])
    assert book.take(view()) == [progress(4)]  # its declaration may not have spread yet
    book.take(view("A"))
    (lost,) = book.take(view("B"))
    assert isinstance(lost, PeerLost)
    assert lost.peer_index == 4
    assert book.take(view("B")) == []


@pytest.mark.parametrize("goodbye", [PeerLeft, PeerFinished])
def test_a_guest_that_said_goodbye_is_not_lost(goodbye: type) -> None:
    book = GuestBook(num_peers=4)
    book.write("A", [progress(4)])
    book.take(view("A"))
    common = {"peer_index": 4, "wall_time": 0.0, "local_step": 9}
    more = {
        "samples": 1, "train_s": 1.0, "bytes_sent": 0, "final_outcome": "averaged", "final_cause": "", "sketch": (),
    }  # fmt: skip
    book.write("A", [goodbye(**common, **(more if goodbye is PeerFinished else {}))])
    assert [type(record) for record in book.take(view("B"))] == [goodbye]
