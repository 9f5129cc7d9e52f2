"""One peer: local steps, rounds, reports. A trainer and an engine side by side; knows nothing of Ray."""

from __future__ import annotations

import io
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal

import torch

from ray_gossip import data, models
from ray_gossip.causes import lacking
from ray_gossip.checkpoints.saving import Resumed, Saving
from ray_gossip.config import Config
from ray_gossip.errors import ConfigError
from ray_gossip.factory import NAMED, Factories
from ray_gossip.gossip.protocols import StateShape
from ray_gossip.gossip.seat import Founder, Listen
from ray_gossip.peer import reports
from ray_gossip.peer.dealing import Dealing
from ray_gossip.peer.engines import build_engine
from ray_gossip.peer.going_on import go_on
from ray_gossip.peer.turns import Turns
from ray_gossip.records import (
    Evaluation,
    Notice,
    PeerLeft,
    PeerStarted,
    Progress,
    Record,
    RoundReport,
    Statistics,
)
from ray_gossip.sidecar.network import Network
from ray_gossip.training.optimizer import build_optimizer
from ray_gossip.training.spikes import SpikeGuard
from ray_gossip.training.trainer import Trainer, averaged_state
from ray_gossip.training.whole import seed_random_numbers, whole_state

_LEAVE_S = 2.0  # longest that a peer which leaves waits for its round


class Peer:
    """A member of the swarm: a trainer and its network side, ready to run.

    With engine=hivemind, build it on the main thread, and before CUDA is used: hivemind forks this process.

    Args:
        listen: where others can dial it.
        initial_peers: asked for the multiaddrs to dial only when everything else is ready; empty founds a swarm.
        founder: its place in a swarm that begins; None: it joins one that runs.
        node: peers with the same node share a machine.
        factories: the user's own model and data, where they were handed over instead of named in the config.
        start: a snapshot to go on from, the same for all founders, or its own if it comes from another node; None:
            begin with a new model, or with that of the swarm that it joins.
        checkpoints: where this peer saves itself; None: nowhere.
        resumed: from what of them it goes on; None: it begins.

    Raises:
        ConfigError: it does not fit into the swarm that it joins.
        SwarmError: it cannot listen, or finds no swarm.
    """

    def __init__(
        self,
        config: Config,
        *,
        listen: Listen,
        initial_peers: Callable[[], Sequence[str]],
        founder: Founder | None,
        node: str = "",
        factories: Factories = NAMED,
        start: bytes | None = None,
        checkpoints: str | None = None,
        resumed: Resumed | None = None,
    ) -> None:
        if start is not None and config.engine == "hivemind":
            raise ConfigError("engine=hivemind cannot go on from a snapshot; use engine=gossip")
        self.config = config
        self._stopping, self._spikes = threading.Event(), SpikeGuard(config.train.loss_spike)
        self._turns, self._leaves, self._saves_within_s = Turns(), False, 0.0
        self._dataset = dataset = data.load(config.data, factory=factories.data)
        model = models.build(
            config.model,
            in_shape=dataset.in_shape,
            num_classes=dataset.num_classes,
            num_outputs=dataset.num_outputs,
            seed=config.seed,
            factory=factories.model,
            input_type=dataset.train_inputs.dtype if dataset.scale is None else torch.float32,
        )
        averaged = averaged_state(config, model, build_optimizer(config.optimizer, model)[0])
        if config.engine == "hivemind" and torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
            raise ConfigError(
                "data.factory or model.factory has used CUDA before engine=hivemind forks: leave all on the CPU"
            )
        self._network = Network(
            config,
            listen=listen,
            initial_peers=initial_peers(),
            place=founder.place(config) if founder else None,
        )
        self.peer_index, self.charter = self._network.seat.peer_index, self._network.seat.charter
        try:
            self._network.open(StateShape.of(averaged), node=node, data=dataset.digest())
            self.engine = build_engine(config, self._network, data=dataset.digest())
        except BaseException:
            self._network.end()
            raise
        self._finished = False
        self._joins_running = founder is None or (founder.incarnation > 0 and not founder.begins_again)
        self._dealing = Dealing(config, dataset, peer_index=self.peer_index, founders=self.charter.num_peers)
        shard = self._dealing.shard()
        self._class_counts = data.class_counts(dataset.train_labels[shard], num_classes=dataset.num_classes)
        device = torch.device("cuda:0" if config.swarm.gpus_per_peer > 0 and torch.cuda.is_available() else "cpu")
        self.trainer = Trainer(config, model=model, dataset=dataset, shard=shard, device=device)
        self._meter = reports.meter(self._network, place=checkpoints, device=device)
        self._has_model = start is not None
        if start is not None:
            self.trainer.load(start)
        elif founder is not None and resumed is None:
            self.trainer.batches.skip(founder.samples)
        self._goes_on = resumed is not None or (founder is not None and founder.begins_again)
        mark = resumed.mark if resumed is not None else 0
        seed_random_numbers(config.seed, self.peer_index, self._network.seat.place.incarnation, mark)
        if resumed is not None:
            go_on(self.trainer, self._network, resumed, dealt_to=self._dealing.peers)
        self._samples_before = self.trainer.samples
        self._saving = Saving(checkpoints, every_steps=config.checkpoint.every_steps, peer_index=self.peer_index)
        self.engine.attach(self.trainer)

    def started(self) -> PeerStarted:
        """What this peer is, and where."""
        return reports.started(
            self.trainer, self._network.seat, class_counts=self._class_counts, samples=self._samples_before
        )

    def multiaddrs(self) -> tuple[str, ...]:
        """Where other peers can dial this one."""
        return self._network.seat.multiaddrs

    def run(self, *, founders: int) -> Iterator[list[Record]]:
        """Train until `train.local_steps` or `stop()`; yields what happened every `train.report_s` seconds, also in
        peers that joined by themselves and report through this one.

        Ends with the final rounds, unless it was stopped.

        Args:
            founders: peers, this one included, that begin together: the first step waits for them. Of no meaning to a
                peer that joins a running swarm: it goes on at the local step at which the others are.
        """
        config, trainer = self.config, self.trainer
        if self._joins_running:
            trainer.skip_to(self.engine.join_running(has_model=self._has_model))
        else:
            self.engine.join(founders=founders, local_step=trainer.local_step, has_taken_over=self._goes_on)
        if self._network.seat.place.incarnation:
            yield [self.started()]
        trainer.take_progress()  # keeps the wait for the others out of the first rate
        records: list[Record] = [
            self._notice(text) for text in (*trainer.notices, *reports.device_notices(config, trainer.device))
        ]
        records += self._deal_anew()
        bytes_sent, started, reported = 0, time.monotonic(), float("-inf")
        while trainer.local_step < config.train.local_steps and not self._stopping.is_set():
            with self._turns.mine():
                trainer.step()
                ended = self.engine.after_step(trainer.local_step)
                if not self._stopping.is_set():
                    self._saving.after_step(trainer.local_step, self._whole_state)
            while self.engine.notices:
                records.append(self._notice(self.engine.notices.pop(0)))
            for report in ended:
                bytes_sent += report.bytes_sent
                records += [report, *self._deal_anew()]
            last = trainer.local_step == config.train.local_steps
            if trainer.local_step % config.train.eval_every == 0 and not last:
                records.append(self._evaluate("peer"))
            if time.monotonic() - reported >= config.train.report_s or last:
                reported = time.monotonic()
                progress = self._progress()
                ended = self._look_at(progress)
                bytes_sent += sum(report.bytes_sent for report in ended)
                usage = self._meter.take(peer_index=self.peer_index, local_step=trainer.local_step)
                records += [progress, *ended, *usage, *self._saving.told(), *self.engine.guest_records()]
                yield records
                records = []
        train_s = time.monotonic() - started
        if self._leaves:
            yield [*records, *self._leave()]
            return
        if self._stopping.is_set():
            yield [*records, *([self._progress()] if trainer.has_progress else [])]
            self._saving.last(self._whole_state, within_s=self._saves_within_s)
            yield list(self._saving.told())
            return
        yield [*records, self._evaluate("peer")]
        with self._turns.mine():
            final = self.engine.finish(trainer.local_step)
            batch_norm = trainer.settle_statistics() if final.agreed else "none"
        bytes_sent += final.bytes_sent + sum(report.bytes_sent for report in final.reports)
        finished = reports.finished(trainer, self.peer_index, final, train_s=train_s, bytes_sent=bytes_sent)
        merged = [self._evaluate("merged", batch_norm=batch_norm)] if final.agreed else []
        notices = [self._notice(lacking(final.silent))] if final.silent and not self.charter.has_driver else []
        self._finished = True
        self._saving.finish()
        yield [*final.reports, *notices, *merged, *self._saving.told(), finished, *self.engine.guest_records()]

    @property
    def is_finished(self) -> bool:
        """It has done all its local steps and the final rounds."""
        return self._finished

    def save(self, mark: int) -> None:
        """Ask for this peer's part of a checkpoint, after the present local step. From any thread."""
        self._saving.ask(mark)

    def save_last(self, mark: int) -> None:
        """What a peer that was asked to stop and save itself waits for. From any thread."""
        self._saving.ask_last(mark)

    def stop(self, *, saves: bool = False) -> int:
        """Ask `run()` to end after the present local step; returns the local step past which this peer saves itself no
        more by itself. From any thread.

        Args:
            saves: it waits then for `save_last`, for a quarter of `swarm.stop_s` at most.
        """
        self._saves_within_s = self.config.swarm.stop_s / 4 if saves else 0.0
        self._stopping.set()
        return self.trainer.local_step

    def leave(self) -> None:
        """Ask `run()` to end after the present local step, and to leave the swarm, which goes on. From any thread."""
        self._leaves = True
        self._stopping.set()

    def model(self) -> bytes:
        """The model as `torch.save` writes its state_dict."""
        torch.save(self.trainer.model_state(), buffer := io.BytesIO())
        return buffer.getvalue()

    def snapshot(self) -> bytes:
        """What other peers can `start` from: this peer's model, its optimizer's memory and its local step, as they are
        between two local steps. From any thread, before `run`, during it, and after it; waits for the present local
        step, and in the end for the final rounds.

        It stands for the whole swarm, whose peers differ a little between two rounds: as it does for a newcomer. What
        the engine remembers beside the model, such as outer momentum, is not in it.
        """
        with self._turns.mine():
            return self.trainer.snapshot()

    def shutdown(self) -> None:
        """Leave the swarm and end every process of this peer."""
        self._stopping.set()
        self.engine.shutdown()

    def _leave(self) -> list[Record]:
        """Nothing is lost of what this peer has seen: the round in flight is waited for, if it ends soon."""
        with self._turns.mine():
            ended = self.engine.settle(self.trainer.local_step, within_s=_LEAVE_S)
        self.engine.shutdown()
        progress = [self._progress()] if self.trainer.has_progress else []
        left = PeerLeft(peer_index=self.peer_index, wall_time=time.time(), local_step=self.trainer.local_step)
        return [*ended, *progress, left]

    def _whole_state(self) -> dict[str, Any]:
        return whole_state(self.trainer, kept=self._network.kept.clone()) | {"dealt_to": list(self._dealing.peers)}

    def _deal_anew(self) -> list[Record]:
        """Take another shard if the swarm has grown or shrunk, so that every sample is still seen."""
        if not self._dealing.changes_to(self.engine.members):
            return []
        peers = self._dealing.peers
        self.trainer.take_shard(self._dealing.shard())
        if self.peer_index != peers[0]:  # one says it for all
            return []
        return [self._notice(f"the samples are dealt anew, to {len(peers)} peers: {self.trainer.num_samples:,} here")]

    def _look_at(self, progress: Progress) -> list[RoundReport]:
        """Where the loss says that the training has diverged, go on with a neighbour's model; returns the rounds that
        have ended over it."""
        why = self._spikes.see(progress.loss) if progress.loss is not None else ""
        if not why or self.config.engine != "gossip":
            return []
        with self._turns.mine():
            return self.engine.restore(progress.local_step, f"at local step {progress.local_step} {why}")

    def _progress(self) -> Progress:
        progress = self.trainer.take_progress()
        return Progress(peer_index=self.peer_index, wall_time=time.time(), **progress._asdict())

    def _evaluate(self, model: Literal["peer", "merged"], *, batch_norm: Statistics = "none") -> Evaluation:
        return reports.evaluation(self.trainer, self.peer_index, model=model, batch_norm=batch_norm)

    def _notice(self, text: str) -> Notice:
        return Notice.now(text, peer_index=self.peer_index)
