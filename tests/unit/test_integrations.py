"""Callbacks of other trainers: what they refuse, what they hand on, and which part of the data is whose."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, IterableDataset

import ray_gossip
from ray_gossip.config import parse
from ray_gossip.errors import UserError
from ray_gossip.integrations import membership
from ray_gossip.integrations.membership import Membership, check_one_device, own_folder, size_of
from ray_gossip.loop.session import Session, within
from ray_gossip.records import Notice


def session_of(peer_index: int, num_peers: int) -> Session:
    charter = SimpleNamespace(run_id="a-run")
    network: Any = SimpleNamespace(seat=SimpleNamespace(peer_index=peer_index, charter=charter))
    config = parse({"swarm": {"num_peers": num_peers}})
    return Session(config, network=network, founders=num_peers, device=torch.device("cpu"), node="here")


@pytest.mark.parametrize("num_peers", [1, 2, 3, 7])
@pytest.mark.parametrize("size", [7, 8, 100])
def test_each_sample_is_in_the_shard_of_one_peer(num_peers: int, size: int) -> None:
    shards = []
    for index in range(num_peers):
        with within(session_of(index, num_peers)):
            shard = ray_gossip.shard_of(list(range(size)))
            shards.append([shard[place] for place in range(len(shard))])
    assert sorted(sample for shard in shards for sample in shard) == list(range(size))
    assert max(map(len, shards)) - min(map(len, shards)) <= 1


def test_a_shard_of_hugging_faces_data_set_is_one_too() -> None:
    datasets = pytest.importorskip("datasets")
    whole = datasets.Dataset.from_dict({"text": [f"line {number}" for number in range(10)]})
    with within(session_of(1, 3)):
        shard = ray_gossip.shard_of(whole)
    assert isinstance(shard, datasets.Dataset)
    assert shard["text"][:] == ["line 1", "line 4", "line 7"]


class Stream(IterableDataset[int]):
    def __iter__(self) -> Iterator[int]:
        yield from range(10)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_each_item_of_a_stream_is_in_the_shard_of_one_peer(num_workers: int) -> None:
    items: list[int] = []
    for index in range(3):
        with within(session_of(index, 3)):
            loader = DataLoader(ray_gossip.shard_of(Stream()), batch_size=None, num_workers=num_workers)
        items += [int(item) for item in loader]
    assert sorted(items) == list(range(10))


def test_without_a_driver_or_others_the_data_set_is_whole() -> None:
    samples = [1, 2, 3]
    assert ray_gossip.shard_of(samples) is samples
    with within(session_of(0, 1)):
        assert ray_gossip.shard_of(samples) is samples


def test_a_peer_that_comes_later_has_the_shard_of_one_that_is_there() -> None:
    with within(session_of(5, 2)):
        assert list(ray_gossip.shard_of([0, 1, 2, 3])) == [1, 3]


@pytest.mark.parametrize(
    ("dataset", "line"),
    [
        (3, "shard_of(dataset): a int has neither a length nor an iterator"),
        ([1], "shard_of(dataset): it has 1 samples, and there are 2 peers"),
    ],
)
def test_what_has_no_shards_is_told(dataset: Any, line: str) -> None:
    with within(session_of(0, 2)), pytest.raises(UserError) as error:
        ray_gossip.shard_of(dataset)
    assert str(error.value) == line


def test_peers_of_one_run_write_to_folders_of_their_own() -> None:
    assert own_folder() is None
    with within(session_of(0, 1)):
        assert own_folder() is None
    with within(session_of(3, 4)):
        assert own_folder() == "a-run-peer-03"


def test_a_trainer_of_several_devices_is_refused() -> None:
    check_one_device(1, "how")
    with pytest.raises(UserError, match=r"this trainer uses 2 devices or processes, and a peer has one: how"):
        check_one_device(2, "how")


def test_the_size_of_a_batch_is_that_of_its_first_tensor_with_samples_and_nothing_is_used_up() -> None:
    tensor, stream = torch.zeros(8, 3), iter([torch.zeros(4)])
    for batch in (tensor, [torch.tensor(3.0), tensor], {"scale": np.array(2.0), "text": "ab", "x": (tensor,)}):
        assert size_of(batch) == 8
    unknown: Any
    for unknown in (stream, "text", [], None, torch.tensor(1.0), {"a": np.zeros(3)}):
        assert size_of(unknown) is None
    assert len(list(stream)) == 1


class Peer:
    """What `join` would return."""

    world_size, bytes_sent = 3, 2_500_000

    def __init__(self) -> None:
        self.rounds = {"averaged": 4, "alone": 1}
        self.reported: list[dict[str, float]] = []
        self.left: list[bool] = []

    def report(self, metrics: dict[str, float]) -> None:
        self.reported.append(metrics)

    def leave(self, *, agree: bool) -> None:
        self.left.append(agree)


@pytest.fixture
def joined(monkeypatch: pytest.MonkeyPatch) -> list[Peer]:
    peers: list[Peer] = []

    def join(*_: Any, **__: Any) -> Peer:
        peers.append(Peer())
        return peers[-1]

    monkeypatch.setattr(membership, "join", join)
    return peers


def begun(how_to_deal: str = "dealing it") -> Membership:
    model = nn.Linear(1, 1)
    member = Membership({}, how_to_deal=how_to_deal)
    member.begin(model, torch.optim.SGD(model.parameters(), lr=0.1))
    return member


def test_what_is_logged_is_reported_without_what_is_no_number_or_ours(joined: list[Peer]) -> None:
    ours = begun().report({"loss": 0.5, "text": "none", "gossip/peers": 3.0, "epoch": 1})
    assert joined[0].reported == [{"loss": 0.5, "epoch": 1}]
    assert ours == {
        "gossip/peers": 3.0,
        "gossip/megabytes_sent": 2.5,
        "gossip/rounds_alone": 1.0,
        "gossip/rounds_averaged": 4.0,
    }


def test_before_and_after_training_nothing_is_reported(joined: list[Peer]) -> None:
    assert Membership({}, how_to_deal="").report({"loss": 1.0}) == {}
    member = begun()
    member.end(agree=True)
    member.end(agree=True)
    assert member.report({"loss": 1.0}) == {}
    assert (joined[0].left, joined[0].reported) == ([True], [])


def test_training_that_begins_again_after_a_failure_leaves_the_first_place(joined: list[Peer]) -> None:
    member = begun()
    model = nn.Linear(1, 1)
    member.begin(model, torch.optim.SGD(model.parameters(), lr=0.1))
    assert [peer.left for peer in joined] == [[False], []]


def test_a_peer_that_trains_on_all_data_beside_others_says_so(joined: list[Peer]) -> None:
    session = session_of(0, 2)
    with within(session):
        begun("shard_of(dataset)")
        notice = session.records.get_nowait()
        assert isinstance(notice, Notice)
        assert "it trains on the whole data set" in notice.text
        assert "shard_of(dataset) gives each its part" in notice.text
        ray_gossip.shard_of([1, 2, 3])
        begun()
        assert session.records.empty()
    with within(alone := session_of(0, 1)):
        begun()
        assert alone.records.empty()
