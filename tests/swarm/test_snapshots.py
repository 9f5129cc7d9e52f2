"""Swarms that go on from the state of one peer, on real peers that train digits."""

from __future__ import annotations

import io
import threading
from collections.abc import Sequence
from typing import Any

import pytest
import torch

from ray_gossip import config, data, models
from ray_gossip.causes import IS_DONE
from ray_gossip.config import Config
from ray_gossip.errors import ConfigError
from ray_gossip.gossip.seat import Founder, Listen
from ray_gossip.peer import Peer
from ray_gossip.records import Evaluation, PeerFinished, Record, RoundReport
from ray_gossip.testing import START_S, Peers, RemotePeer
from ray_gossip.training.trainer import Trainer

Snapshot = dict[str, Any]


SLOW = ("model.factory=tests.job.networks:Slow", "model.args.step_s=0.03")  # a round ends within an interval


def settings(num_peers: int, *overrides: str) -> Config:
    fixed = ("train.eval_every=50", "gossip.steps=10", "gossip.group_size=2", "data.batch_size=16")
    return config.load(overrides=[f"swarm.num_peers={num_peers}", *fixed, *overrides])


def start_peer(options: Config, index: int, initial_peers: Sequence[str], start: bytes | None) -> Peer:
    torch.set_num_threads(1)
    founder = Founder(run_id="test", peer_index=index, has_driver=True)
    return Peer(options, listen=Listen(), initial_peers=lambda: initial_peers, founder=founder, start=start)


def start_peers(options: Config, *, start: bytes | None = None) -> Peers:
    first = RemotePeer(start_peer, options, 0, [], start)
    first.receive(START_S)
    addresses = first.call(Peer.multiaddrs)
    others = [RemotePeer(start_peer, options, index, addresses, start) for index in range(1, options.swarm.num_peers)]
    for other in others:
        other.receive(START_S)
    return Peers([first, *others])


def run(peer: Peer) -> list[Record]:
    return [record for records in peer.run(founders=peer.config.swarm.num_peers) for record in records]


def run_and_take_snapshots(peer: Peer) -> list[bytes]:
    """Snapshots that another thread takes while the peer trains, as fast as it can, and one more at the end."""
    training = threading.Thread(target=run, args=(peer,))
    training.start()
    taken = [peer.snapshot()]
    while training.is_alive():
        taken.append(peer.snapshot())
    return [*taken, peer.snapshot()]


def opened(snapshot: bytes) -> Snapshot:
    found: Snapshot = torch.load(io.BytesIO(snapshot), weights_only=True)
    return found


def alone_up_to(options: Config, local_step: int) -> Snapshot:
    """What a peer of the same config has after so many local steps: without other peers, they are all there is."""
    dataset = data.load(options.data)
    model = models.build(options.model, in_shape=dataset.in_shape, num_classes=10, seed=options.seed)
    (shard,) = data.deal(dataset.train_labels, 1, config=options.data, seed=options.seed)
    trainer = Trainer(options, model=model, dataset=dataset, shard=shard, device=torch.device("cpu"))
    for _ in range(local_step):
        trainer.step()
    return opened(trainer.snapshot())


def assert_equal(one: Snapshot, other: Snapshot) -> None:
    assert one["local_step"] == other["local_step"]
    for name, tensor in one["model"].items():
        assert torch.equal(tensor, other["model"][name]), name
    for index, memory in one["optimizer"].items():
        assert torch.equal(memory["momentum_buffer"], other["optimizer"][index]["momentum_buffer"])


def test_a_snapshot_is_the_state_between_two_local_steps_at_whatever_moment_it_is_taken() -> None:
    options = settings(1, *SLOW, "train.local_steps=100")  # slow: that a busy machine lets a thread wait, too
    with start_peers(options) as (peer,):
        assert_equal(opened(peer.call(Peer.snapshot)), alone_up_to(options, 0))
        taken = {found["local_step"]: found for found in map(opened, peer.call(run_and_take_snapshots))}
    torch.set_num_threads(1)
    assert len(taken) > 50, "the loop of local steps lets others wait"
    assert max(taken) == 100
    for local_step in [sorted(taken)[len(taken) // 2], 100]:
        assert_equal(taken[local_step], alone_up_to(options, local_step))


def test_peers_that_start_from_a_snapshot_have_exactly_its_parameters_and_go_on_at_its_local_step() -> None:
    options = settings(2, *SLOW, "train.local_steps=100", "gossip.steps=7")
    with start_peers(settings(1, *SLOW, "train.local_steps=60")) as (source,):
        source.call(run)
        snapshot = source.call(Peer.snapshot)
    with start_peers(options, start=snapshot) as peers:
        for found in peers.all(Peer.snapshot):
            assert_equal(opened(found), opened(snapshot))
        assert [started.local_step for started in peers.all(Peer.started)] == [60, 60]
        for records in peers.all(run):
            reports = [record for record in records if isinstance(record, RoundReport)]
            assert [each.round for each in reports[:2]] == [8, 9]
            assert reports[0].local_step == pytest.approx(63, abs=3)  # a peer that is called begins with the faster one
            spoilt = [each.cause for each in reports if each.outcome != "averaged"]
            assert all(IS_DONE in cause for cause in spoilt), spoilt
            (finished,) = (record for record in records if isinstance(record, PeerFinished))
            assert (finished.local_step, finished.samples, finished.final_outcome) == (100, 100 * 16, "averaged")
            assert all((record.accuracy or 0) > 0.5 for record in records if isinstance(record, Evaluation))


def test_the_engine_of_hivemind_is_refused_a_snapshot() -> None:
    with pytest.raises(ConfigError, match="engine=hivemind cannot go on from a snapshot"):
        start_peer(settings(1, "engine=hivemind"), 0, [], b"")
