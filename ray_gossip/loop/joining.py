"""The way of a training loop into a swarm: it founds one, joins one, or takes the place that a driver has given it.

The loop keeps its model, data, optimizer and device. What it adds is an engine, the same as under `ray-gossip train`:
rounds run in another process while local steps go on, and each changes the model's parameters in place.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn
from torch.optim import Optimizer

from ray_gossip import models
from ray_gossip.addresses import check_multiaddr
from ray_gossip.config import Config, read
from ray_gossip.errors import UserError
from ray_gossip.gossip.admission import OPEN, Secret
from ray_gossip.gossip.charter import Charter
from ray_gossip.gossip.engine import GossipEngine
from ray_gossip.gossip.protocols import StateShape
from ray_gossip.gossip.seat import Listen, Place
from ray_gossip.loop.peer import LoopPeer
from ray_gossip.loop.saved import Saved
from ray_gossip.loop.session import Session, current
from ray_gossip.loop.voice import Driver, Screen
from ray_gossip.resources import machine_id
from ray_gossip.secret_file import given_for, keep
from ray_gossip.sidecar.network import Network
from ray_gossip.training.averaged import ModelState


def join(
    model: nn.Module,
    *,
    optimizer: Optimizer | None = None,
    initial_peers: Sequence[str] = (),
    founders: int = 1,
    config: Config | Mapping[str, Any] | Path | str | None = None,
    host_maddrs: Sequence[str] = Listen.host_maddrs,
    announce_maddrs: Sequence[str] = (),
    identity_path: Path | None = None,
    secret_file: Path | str | None = None,
    resumed: Mapping[str, Any] | None = None,
) -> LoopPeer:
    """Found a swarm or join one, and say on standard error how others join this peer. In a loop that a driver has
    started (`GossipTrainer(train_loop)`, `train.loop`), take the place in its swarm: then all but model and optimizer
    is given already.

    In any thread, at any time, with the model on any device: the network side is a program of its own.

    Args:
        model: its parameters that train (float32) and the running statistics of its layers in training mode are
            averaged, see `ray_gossip/training/averaged.py`: freeze what is to be frozen before. A newcomer starts from
            the swarm's.
        optimizer: whose steps are counted, each as one `step()` of one sample; None: the loop calls `peer.step()`.
        initial_peers: multiaddrs of peers that are there already, under Ray or not, one is enough; none: found a swarm.
        founders: peers that begin together, this one included: waits for them, at most `swarm.start_s`. A peer that
            comes when the swarm runs waits for nobody. 1: begin at once.
        config: its sections `gossip`, `swarm` (only start_s, final_s, open and port_range) and `seed` count, and peers
            must have the same. A Config, a mapping such as {"gossip": {"steps": 10}}, or a YAML file.
        host_maddrs: where to listen, such as /ip4/0.0.0.0/tcp/4011 for peers on other machines. Default: a free port
            of 127.0.0.1.
        announce_maddrs: what others are told instead, behind a NAT or in a container.
        identity_path: file with the key of its peer id, made if missing: its address stays the same.
        secret_file: holds the secret of the swarm, as the peer says that founds it; None: it is in the environment
            (RAY_GOSSIP_SECRET_FILE, or RAY_GOSSIP_SECRET itself), or who founds a swarm makes one.
        resumed: what `peer.state_dict()` gave before the loop was interrupted: go on from there. Who comes to a swarm
            that runs goes on from that one's model. A driver that resumes a run gives it by itself.

    Raises:
        UserError: the model, the config or an address is none that will do.
        SwarmError: it cannot listen, or finds no swarm, or one that trains another model.
    """
    if (session := current()) is not None:
        own = {
            "initial_peers": bool(initial_peers),
            "founders": founders != 1,
            "config": config is not None,
            "host_maddrs": tuple(host_maddrs) != Listen.host_maddrs,
            "announce_maddrs": bool(announce_maddrs),
            "identity_path": identity_path is not None,
            "secret_file": secret_file is not None,
            "resumed": resumed is not None,
        }
        return _take_place(session, model, optimizer, given=[name for name, is_given in own.items() if is_given])
    settings = read(config)
    _check(model, optimizer, settings)
    if not isinstance(founders, int) or founders < 1:
        raise UserError(f"founders={founders!r}: it counts this peer, so give 1 or more")
    averaged = ModelState(model)
    saved = Saved(model, optimizer) if resumed is None else Saved.given(model, optimizer, resumed)
    for option, addresses in (
        ("host_maddrs", host_maddrs),
        ("announce_maddrs", announce_maddrs),
        ("initial_peers", initial_peers),
    ):
        if isinstance(addresses, str) or not isinstance(addresses, Sequence):
            raise UserError(f"{option}={addresses}: give a list of addresses, {option}=[...]")
        for address in addresses:
            check_multiaddr(option, address, names_peer=option == "initial_peers")
    place = None if initial_peers else Place(_founded(settings), 0)
    secret = given_for(settings.swarm, secret_file, option="secret_file")
    kept = f"; {OPEN}" if secret is None else ""
    if secret is None and place is not None and not settings.swarm.open:
        secret = Secret.new()
        kept = f", and secret_file={str(keep(secret, run_id=place.charter.run_id))!r}"
    network = Network(
        settings,
        listen=Listen(tuple(host_maddrs), tuple(announce_maddrs), identity_path, secret),
        initial_peers=initial_peers,
        place=place,
        shared=("engine", "seed", "gossip."),  # data, model and steps are each loop's own
    )
    try:
        network.open(StateShape.of(averaged), node=machine_id())
        engine = GossipEngine(settings, network, network.seat)
        voice = Screen(settings, network.seat.peer_index)
        peer = LoopPeer(model, averaged, engine, network.seat, voice, saved, optimizer=optimizer, seed=settings.seed)
    except BaseException:
        network.end()
        raise
    try:
        waits = founders > 1 and not initial_peers
        awaited = f"waits for {founders - 1} more, at most swarm.start_s={settings.swarm.start_s:g} s; "
        how = f"others join with its address as initial_peers: {' '.join(peer.multiaddrs)}{kept}"
        voice.tell(f"this is peer {peer.peer_index}; {awaited if waits else ''}{how}")
        if initial_peers:
            peer.begin_at(engine.enter(founders=founders))
        else:
            _found(engine, saved, founders=founders)
            peer.begin_at(saved.local_step)
    except BaseException:
        peer.leave(agree=False)
        raise
    return peer


def _take_place(session: Session, model: nn.Module, optimizer: Optimizer | None, *, given: Sequence[str]) -> LoopPeer:
    """The place of a loop that a driver has started."""
    if given:
        raise UserError(
            f"join({given[0]}=...): this loop was started by a driver, which has a swarm for it: leave it out"
        )
    if session.peer is not None:
        raise UserError(
            "this loop has joined already: in a run of a driver there is one training, so one join, or one Trainer.fit "
            "or Trainer.train"
        )
    _check(model, optimizer, session.config)
    averaged, network, resumed = ModelState(model), session.network, session.resumed
    saved = Saved(model, optimizer) if resumed is None else Saved.of(model, optimizer, resumed)
    network.open(StateShape.of(averaged), node=session.node)
    engine = GossipEngine(session.config, network, network.seat)
    peer = LoopPeer(
        model,
        averaged,
        engine,
        network.seat,
        Driver(session),
        saved,
        optimizer=optimizer,
        session=session,
        device=session.device,
        seed=session.config.seed,
    )
    session.peer = peer
    if network.seat.place.incarnation:
        peer.begin_at(engine.join_running())
    else:
        _found(engine, saved, founders=session.founders)
        peer.begin_at(saved.local_step)
    return peer


def _found(engine: GossipEngine, saved: Saved, *, founders: int) -> None:
    """Begin a swarm, or begin it again where it was interrupted: then each has its own model."""
    if saved.kept is not None:
        engine.averager.keep(saved.kept)
    engine.join(founders=founders, local_step=saved.local_step, has_taken_over=saved.own is not None)


def _founded(config: Config) -> Charter:
    """What a swarm of loops agrees on that begins with this one."""
    return replace(Charter.of(config, run_id=f"loop-{secrets.token_hex(4)}", has_driver=False), num_peers=1)


def _check(model: nn.Module, optimizer: Optimizer | None, config: Config) -> None:
    if config.engine != "gossip" or config.gossip.average_momentum:
        key = "gossip.average_momentum" if config.engine == "gossip" else "engine=hivemind"
        raise UserError(f"{key} needs the optimizer, which a loop of your own keeps to itself: leave it out")
    if not isinstance(model, nn.Module):
        raise UserError(f"the model is {type(model).__name__}, not a torch.nn.Module: give the model itself")
    if optimizer is not None and not isinstance(optimizer, Optimizer):
        raise UserError(f"the optimizer is {type(optimizer).__name__}, not a torch.optim.Optimizer")
    models.check(model, called="the model")
