"""The composition root of one peer without Ray: it runs in this process, and writes what a driver would write."""

from __future__ import annotations

import ipaddress
import itertools
import shlex
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from ray_gossip.addresses import check_free, check_identity, check_multiaddr
from ray_gossip.config import Config
from ray_gossip.console import open_view
from ray_gossip.driver import check, new_run_id
from ray_gossip.errors import ConfigError
from ray_gossip.gossip.admission import OPEN, Secret
from ray_gossip.lines import print_summary
from ray_gossip.records import PeerLeft, Record
from ray_gossip.rehearsal import perform
from ray_gossip.resources import machine_id
from ray_gossip.secret_file import OPTION, given_for, keep
from ray_gossip.telemetry import Observer, RunLog

if TYPE_CHECKING:
    from ray_gossip.peer import Peer

_GOODBYE_S = 2.0  # the last records to the driver must not hold up the end for longer


def run_peer(
    config: Config,
    *,
    host_maddrs: Sequence[str] = (),
    announce_maddrs: Sequence[str] = (),
    initial_peers: Sequence[str] = (),
    identity_path: Path | None = None,
    secret_file: Path | None = None,
    run_dir: Path | None = None,
    stream: TextIO,
    join_command: str,
) -> dict[str, Any]:
    """Found a swarm, or join the one at `initial_peers`; train, show it on `stream`, and leave.

    Args:
        secret_file: holds the swarm's secret; None: it is in the environment, or one that founds a swarm makes one.
        run_dir: new folder for this run; None: `runs/<run id>-peer-<index>`.
        join_command: how others join; the address is added.

    Returns:
        What `summary.json` holds: the view of this one peer.

    Raises:
        UserError: it cannot begin; nothing was started.
        SwarmError: it cannot listen, finds no swarm, or cannot go on.
        KeyboardInterrupt: after it has left the swarm in order.
    """
    started = time.time()
    config = config.model_copy(update={"swarm": config.swarm.model_copy(update={"num_peers": 1})})
    for name, addresses in (
        ("--host_maddr", host_maddrs),
        ("--announce_maddr", announce_maddrs),
        ("--initial_peer", initial_peers),
    ):
        for address in addresses:
            check_multiaddr(name, address, names_peer=name == "--initial_peer")
    for address in host_maddrs:
        check_free("--host_maddr", address)
    if identity_path is not None:
        check_identity("--identity_path", identity_path)
    if config.engine != "gossip":
        raise ConfigError(f"engine={config.engine} cannot be joined by single peers: give engine=gossip")
    secret = given_for(config.swarm, secret_file)
    check(config, address="", run_dir=run_dir or Path("runs") / new_run_id())

    import torch  # what follows loads it, and hivemind: after what can be checked without

    perform(config)

    from ray_gossip.gossip.seat import Founder, Listen
    from ray_gossip.peer import Peer

    torch.set_num_threads(max(1, int(config.swarm.cpus_per_peer)))  # as Ray does: peers may share this machine
    founder = None if initial_peers else Founder(run_id=new_run_id(), peer_index=0, has_driver=False)
    if secret is None and founder is not None and not config.swarm.open:
        secret = Secret.new()
        path = keep(secret, run_id=founder.run_id)
        join_command = f"{join_command.removesuffix('--initial_peer')}{OPTION} {shlex.quote(str(path))} --initial_peer"
    peer = Peer(
        config,
        listen=Listen(tuple(host_maddrs) or Listen.host_maddrs, tuple(announce_maddrs), identity_path, secret),
        initial_peers=lambda: initial_peers,
        founder=founder,
        node=machine_id(),
    )
    summary: dict[str, Any] | None = None
    run_id = peer.charter.run_id
    run_dir = run_dir or _new_folder(Path("runs") / f"{run_id}-peer-{peer.peer_index:02d}")
    observer = Observer(config, peers=[peer.peer_index])
    try:
        _say_where(peer, join_command, stream, is_open=secret is None)
        with (
            open_view(stream) as view,
            RunLog(run_dir, observer, run_id=run_id, started_at=started) as log,
        ):

            def follow(records: Iterable[Record], *, wait_s: float = 0.0) -> None:
                own = [record for record in records if record.peer_index == peer.peer_index]
                peer.engine.tell_driver(own, wait_s=wait_s)
                for record in own:
                    log.write(record)
                view.update(observer.state)

            introduced = False
            try:
                for records in peer.run(founders=1):
                    if not introduced:  # not before it is in the swarm: nobody would pass it on
                        follow([peer.started()])
                        introduced = True
                    follow(records, wait_s=_GOODBYE_S if peer.is_finished else 0.0)
                summary = log.write_summary(model=log.save("model.pt", peer.model()))
            except BaseException:
                step = peer.trainer.local_step
                left = PeerLeft(peer_index=peer.peer_index, wall_time=time.time(), local_step=step)
                follow([left], wait_s=_GOODBYE_S)
                summary = log.write_summary()
                raise
    finally:
        peer.shutdown()
        if summary is not None:
            print_summary(summary, run_dir, stream=stream)
    return summary


def _new_folder(folder: Path) -> Path:
    """This one, or the next of its name: a peer that comes back has the index that it had, and a folder already."""
    names = itertools.chain([folder], (folder.with_name(f"{folder.name}-{number}") for number in itertools.count(2)))
    return next(each for each in names if not each.exists())


def _say_where(peer: Peer, join_command: str, stream: TextIO, *, is_open: bool) -> None:
    addresses = sorted(peer.multiaddrs(), key=_is_loopback)
    lines = [f"peer {peer.peer_index} of run {peer.charter.run_id} listens on", *(f"  {each}" for each in addresses)]
    lines += ["others join it with", f"  {join_command} {addresses[0]}", *([OPEN] if is_open else []), "", ""]
    stream.write("\n".join(lines))
    stream.flush()


def _is_loopback(address: str) -> bool:
    _, protocol, host, *_ = address.split("/")
    return protocol in ("ip4", "ip6") and ipaddress.ip_address(host).is_loopback
