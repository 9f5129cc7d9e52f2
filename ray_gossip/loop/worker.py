"""A peer whose training is a loop of the user's own, under a driver. Knows nothing of Ray.

The loop runs in a thread; what it reports, and what its rounds come to, goes to the driver as of any other peer.
"""

from __future__ import annotations

import inspect
import io
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import torch

from ray_gossip.causes import lacking
from ray_gossip.checkpoints.saving import Resumed, Saving
from ray_gossip.config import Config
from ray_gossip.errors import UserError
from ray_gossip.factory import Factories, find, loop_arguments
from ray_gossip.gossip.seat import Founder, Listen
from ray_gossip.loop.session import Session, Stopped, within
from ray_gossip.records import PeerFinished, PeerLeft, PeerStarted, Record
from ray_gossip.resources import pid_namespace
from ray_gossip.sidecar.network import Network
from ray_gossip.usage import Meter

_POLL_S = 0.05


class LoopWorker:
    """A seat in a swarm, and the loop that takes it.

    Args:
        initial_peers: asked for the multiaddrs to dial when this process is ready; empty founds a swarm.
        founder: its place in the swarm.
        node: peers with the same node share a machine.
        factories: the loop, where it was handed over instead of named in the config.
        checkpoints: where this peer saves itself, when its loop does; None: nowhere.
        resumed: from what of them it goes on; None: it begins.
    """

    def __init__(
        self,
        config: Config,
        *,
        listen: Listen,
        initial_peers: Callable[[], Sequence[str]],
        founder: Founder,
        node: str,
        factories: Factories,
        checkpoints: str | None = None,
        resumed: Resumed | None = None,
    ) -> None:
        self._config = config
        self._name = config.train.loop or ""
        self._loop = factories.loop or find("train.loop", self._name)
        self._argument = dict(config.train.loop_args) if factories.loop_config is None else factories.loop_config
        network = Network(config, listen=listen, initial_peers=initial_peers(), place=founder.place(config))
        has_gpu = config.swarm.gpus_per_peer > 0 and torch.cuda.is_available()
        self._saving = Saving(checkpoints, every_steps=config.checkpoint.every_steps, peer_index=founder.peer_index)
        self._session = Session(
            config,
            network=network,
            founders=config.swarm.num_peers,
            device=torch.device("cuda:0" if has_gpu else "cpu"),
            node=node,
            samples=founder.samples,
            saving=self._saving,
            resumed=resumed,
        )
        reserved = torch.cuda.max_memory_reserved if has_gpu else None
        self._meter = Meter(network_pid=lambda: network.pid, place=checkpoints, device_bytes=reserved)
        self._error: BaseException | None = None
        self._is_introduced = self._leaves = False
        self._model: bytes | None = None

    def started(self) -> PeerStarted:
        """That this process is ready; the loop has not begun, and there is no model yet."""
        device = self._session.device
        name = f"{device} ({torch.cuda.get_device_name(device)})" if device.type == "cuda" else "cpu"
        return PeerStarted(
            peer_index=self._session.peer_index,
            wall_time=time.time(),
            peer_id=self._session.network.seat.peer_id,
            multiaddrs=self.multiaddrs(),
            pid=os.getpid(),
            node=socket.gethostname(),
            device=name,
            num_parameters=0,
            num_samples=0,
            incarnation=self._session.network.seat.place.incarnation,
            samples=self._session.samples,
            pid_namespace=pid_namespace(),
        )

    def multiaddrs(self) -> tuple[str, ...]:
        return self._session.network.seat.multiaddrs

    def run(self, *, founders: int) -> Iterator[list[Record]]:
        """Run the loop to its end; yields what happened every `train.report_s` seconds.

        Raises:
            UserError: the loop never joined.
            BaseException: what the loop raises.
        """
        session = self._session
        session.founders = founders  # those that came up
        thread = threading.Thread(target=self._run_loop, name="train loop", daemon=True)
        thread.start()
        reported = time.monotonic()
        while thread.is_alive():
            thread.join(_POLL_S)
            if time.monotonic() - reported >= self._config.train.report_s:
                reported = time.monotonic()
                yield self._taken()
        self._saving.finish()
        yield self._taken()
        if self._leaves:
            self.shutdown()
            step = session.peer.local_step if session.peer is not None else 0
            yield [PeerLeft(peer_index=session.peer_index, wall_time=time.time(), local_step=step)]
            return
        if self._error is not None and not isinstance(self._error, Stopped):
            raise self._error

    def save(self, mark: int) -> None:
        """Ask for this peer's part of a checkpoint at the loop's next `checkpoint`. From any thread."""
        self._session.save(mark)

    def save_last(self, mark: int) -> None:
        """What a loop that was asked to stop and save itself waits for. From any thread."""
        self._saving.ask_last(mark)

    def stop(self, *, saves: bool = False) -> int:
        """Ask the loop to end at its next `step` or `report`; returns the local step past which this peer saves itself
        no more by itself. From any thread.

        Args:
            saves: where it saves itself, it ends at its next `checkpoint` instead, if that comes within a quarter of
                `swarm.stop_s`, and waits there for `save_last`.
        """
        self._session.stop(saves_within_s=self._config.swarm.stop_s / 4 if saves else 0.0)
        return self._session.peer.local_step if self._session.peer is not None else 0

    def leave(self) -> None:
        """Ask the loop to end at its next `step` or `report`, and to leave its swarm. From any thread."""
        self._leaves = True
        self.stop()

    def model(self) -> bytes:
        """The model as `torch.save` writes its state_dict, as it was when the loop ended."""
        assert self._model is not None
        return self._model

    def snapshot(self) -> bytes:
        raise UserError("a loop of one's own has no snapshot")

    def shutdown(self) -> None:
        """Leave the swarm and end every process of this peer."""
        self.stop()
        if self._session.peer is not None:
            self._session.peer.leave(agree=False)  # which ends the network, unless it has left already
        else:
            self._session.network.end()

    def _run_loop(self) -> None:
        session = self._session
        try:
            with within(session):
                self._call_loop()
                if session.peer is None:
                    raise UserError("train.loop ended without ray_gossip.join(model): nothing was averaged")
                self._finish()
        except BaseException as error:  # of another thread: `run` raises it
            self._error = error

    def _call_loop(self) -> None:
        try:
            self._loop(*loop_arguments("train.loop", self._name, inspect.signature(self._loop), self._argument))
        except SystemExit as end:  # else Ray takes it for the end of the process
            if end.code not in (None, 0):
                raise UserError(f"the loop called sys.exit({end.code!r})") from end

    def _finish(self) -> None:
        """The final rounds, unless the loop has left by itself, and what it ends with."""
        session, peer = self._session, self._session.peer
        peer.leave()
        buffer = io.BytesIO()
        torch.save({name: tensor.to("cpu", copy=True) for name, tensor in peer.model.state_dict().items()}, buffer)
        self._model = buffer.getvalue()
        final = peer.final
        if final is not None and final.silent:
            session.say(lacking(final.silent))
        session.records.put(
            PeerFinished(
                peer_index=session.peer_index,
                wall_time=time.time(),
                local_step=peer.local_step,
                samples=session.samples + peer.samples,
                train_s=peer.train_s,
                bytes_sent=peer.bytes_sent,
                final_outcome=final.outcome if final is not None else "alone",
                final_cause=final.cause if final is not None else "the loop left by itself",
                sketch=final.sketch if final is not None else (),
            )
        )

    def _taken(self) -> list[Record]:
        session, records = self._session, list[Record]()
        if session.peer is not None and session.peer.has_begun and not self._is_introduced:
            self._is_introduced = True
            averaged = session.peer.averaged
            records.append(
                replace(
                    self.started(),
                    local_step=session.peer.began_at_step,
                    num_parameters=sum(parameter.numel() for parameter in session.peer.model.parameters()),
                    averaged_bytes=4 * averaged.size,
                    averaged=averaged.tensors() if session.peer_index == 0 else (),
                )
            )
        num_waiting = session.records.qsize()
        progress = session.peer.progress() if session.peer is not None else []
        records += progress  # before the end, which may be among those that wait
        records += [session.records.get_nowait() for _ in range(num_waiting)]
        if session.peer is not None and session.peer.has_begun:
            records += self._meter.take(peer_index=session.peer_index, local_step=session.peer.local_step)
        return [*records, *self._saving.told()]
