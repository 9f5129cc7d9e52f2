"""A loop's peer: `step()` after every optimizer step, `report()` what is to be seen, `leave()`."""

from __future__ import annotations

import atexit
import os
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence, Sized
from dataclasses import replace
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from ray_gossip.errors import UserError
from ray_gossip.gossip.engine import GossipEngine
from ray_gossip.gossip.protocols import FinalResult
from ray_gossip.gossip.seat import Seat
from ray_gossip.loop.rate import Rate
from ray_gossip.loop.sampler import Item, PeerSampler, PeerStream, deck_of
from ray_gossip.loop.saved import Saved
from ray_gossip.loop.session import Session, numbers
from ray_gossip.loop.shares import Shares
from ray_gossip.loop.state import LoopState
from ray_gossip.loop.voice import Voice, wrong_with
from ray_gossip.records import Outcome, Record, RoundReport
from ray_gossip.training.averaged import ModelState


class LoopPeer:
    """This process as a member of a swarm. Made by `join`; as a context manager, it leaves in the end.

    Args:
        averaged: what of the model is averaged.
        saved: from what it goes on after an interruption, if there was any.
        optimizer: whose steps are counted; None: the loop calls `step`.
        session: of the driver that has started this loop, if one has.
        device: on which the driver expects the model.
        seed: the swarm's.
    """

    def __init__(
        self,
        model: nn.Module,
        averaged: ModelState,
        engine: GossipEngine,
        seat: Seat,
        voice: Voice,
        saved: Saved,
        *,
        optimizer: Optimizer | None = None,
        session: Session | None = None,
        device: torch.device | None = None,
        seed: int = 0,
    ) -> None:
        self.model, self.averaged = model, averaged
        self._engine, self.multiaddrs = engine, seat.multiaddrs  # where others can dial this peer
        self._voice, self._session, self._saved = voice, session, saved
        self._samples_before = session.samples if session is not None else 0  # seen by its earlier processes
        self.peer_index = engine.peer_index
        self.device = device or torch.device("cuda" if torch.cuda.is_available() else "cpu")  # for the loop to use
        self._process = os.getpid()  # a child that is forked from it inherits this object, and is no peer
        self._has_left = self._is_told_left = self.has_begun = False
        self.local_step = 0  # optimizer steps so far; a peer that joins a running swarm begins where the others are
        self.rounds: Counter[Outcome] = Counter()  # that have ended, by outcome
        self._is_told = False  # of samples, by `step` or `saw`
        self._told = self._told_before = 0  # how many; and until the last step
        self.bytes_sent = 0
        self.final: FinalResult | None = None  # how the final rounds ended, if there were any
        self._began_at = self._ended_at = time.monotonic()
        self._rate = Rate()
        self._state, self._optimizer = LoopState(averaged, optimizer), optimizer
        self._counting = None if optimizer is None else optimizer.register_step_post_hook(self._stepped)
        engine.attach(self._state)
        self._seed, self._founders = seed, seat.charter.num_peers
        self._shares: Shares | None = None  # once there is a sampler
        atexit.register(self.leave, agree=False)  # a loop that fails: else others wait for this peer now and then

    @property
    def rank(self) -> int:
        """Its number in the swarm, 0, 1, 2, ...: the peer index."""
        return self.peer_index

    @property
    def world_size(self) -> int:
        """Peers that are in the swarm as of late, this one included."""
        return max(1, len(self._present))

    @property
    def samples(self) -> int:
        """Of its steps so far: as many as `step` was told, else as many as its samplers gave; 0: neither."""
        return self._told or (self._shares.num_given if self._shares is not None else 0)

    @property
    def train_s(self) -> float:
        """Seconds from the beginning to the last step."""
        return self._ended_at - self._began_at

    def begin_at(self, local_step: int) -> None:
        """It is in the swarm, at this local step. Called by `join`."""
        self.local_step = self.began_at_step = local_step
        self.has_begun = True
        self._began_at = self._ended_at = time.monotonic()
        self._rate = Rate(local_step=local_step)
        self._heard([])
        self._saved.begin()

    def step(self, *, samples: int | None = None) -> list[RoundReport]:
        """Tell the swarm that an optimizer step is done; call it after each.

        Mostly it returns at once. When a round is due, it copies the parameters out; when one has ended, it adds what
        came of it; when one is due while the one before is still in flight, it waits for that.

        Args:
            samples: in this step's batch; only `gossip.weight_by_samples` and the speed that a driver shows ask for it.
                None: not known; then each step weighs as one.

        Returns:
            The rounds that have ended. Parameters have changed where `outcome` is "averaged".

        Raises:
            SwarmError: the network side of this peer died again and again.
            UserError: another process has joined, from which this one was forked; or the optimizer counts its steps.
        """
        if self._counting is not None:
            raise UserError("join(optimizer=...) counts the optimizer's steps: leave peer.step() out, or the optimizer")
        if samples is not None:
            self.saw(samples)
        return self._count()

    def saw(self, samples: int) -> None:
        """Tell of samples in the gradient of the step to come, where it is the optimizer whose steps are counted."""
        if samples < 0:
            raise UserError(f"{samples} samples: a batch has 0 or more")
        self._is_told = True
        self._told += samples

    def sampler(self, dataset: Sized, *, shuffle: bool = True) -> PeerSampler:
        """This peer's share of a map-style data set, the same in every peer: `DataLoader(dataset, sampler=...)`. Dealt
        anew when peers come or go. A loop that has several makes them in the same order in every peer.

        Args:
            shuffle: another order in each epoch, by the swarm's `seed`; False: as they come.

        Raises:
            UserError: it is empty.
        """
        deck = deck_of(dataset, founders=self._founders, seed=self._seed, shuffle=shuffle)
        if self._shares is None:
            self._shares = Shares(
                self._engine.averager.tell_members,
                own=self.peer_index,
                present=self._present,
                goes_on=self.resumed is not None,
                num_told=lambda: self._told,
            )
        sampler = PeerSampler(deck, self._shares)
        self._saved.add(sampler)
        return sampler

    def shard_of(self, stream: Iterable[Item]) -> PeerStream[Item]:
        """This peer's share of an iterable data set, the same in every peer: every n-th item of it for one of n peers,
        also in the workers of a DataLoader."""
        return PeerStream(stream, own=self.peer_index, members=lambda: self._present)

    @property
    def _present(self) -> tuple[int, ...]:
        """Peer indices of those that are there as of late."""
        roster = self._engine.roster
        return roster.present if roster is not None else (self.peer_index,)

    @property
    def resumed(self) -> dict[str, Any] | None:
        """What this loop gave to `checkpoint` or `state_dict` before it was interrupted; None: it begins."""
        return self._saved.own

    def checkpoint(self, **own: Any) -> None:
        """Save this peer, if a checkpoint of the run is due: call it after each step, or as often as the loop can go on
        from there. In a loop that no driver has started, it does nothing: save `state_dict` yourself.

        When the run is resumed, `join` gives back model, optimizer, random numbers and `local_step`, and each `sampler`
        goes on at its position (`saw` says how many samples were trained on). The rest is in `resumed`.

        Args:
            own: more that the loop goes on from: a scheduler or another object with a `state_dict()`; tensors, numbers,
                texts, lists and mappings.

        Raises:
            UserError: something in it is neither.
        """
        if self._session is not None and not self._has_left:
            self._session.checkpoint(self.local_step, lambda: self.state_dict(**own))

    def state_dict(self, **own: Any) -> dict[str, Any]:
        """A copy in host memory of all that `join(resumed=...)` goes on from. Arguments, errors: see `checkpoint`."""
        return self._saved.state(
            own,
            local_step=self.local_step,
            samples=self.samples + self._samples_before,
            is_told=self._is_told,
            kept=self._engine.averager.kept.clone(),
            averaged=self.averaged.names(),
        )

    def report(self, metrics: Mapping[str, Any]) -> None:
        """Show numbers of this peer: curves, columns of the table. In a loop that no driver has started, nobody sees.

        Args:
            metrics: name -> number, or tensor with one element, which this waits for.

        Raises:
            TypeError: a value is no number, or a name is none.
        """
        values = numbers(metrics)
        if self._session is not None:
            self._session.report(values, local_step=self.local_step)

    def leave(self, *, agree: bool = True) -> Outcome | None:
        """End this peer's part; the model stays as it is then. Once it has left, it does nothing.

        Args:
            agree: first average with all peers that come to the same end, so that all hold the same model; waits for
                them at most `swarm.final_s`. False: leave at once, while others go on.

        Returns:
            "averaged": all that came within `swarm.final_s` of the first of them agree; those that did not come are
            named on standard error. "alone" when nobody else came; None where that was not asked.
        """
        if self._has_left or os.getpid() != self._process:
            return None
        self._has_left = True
        atexit.unregister(self.leave)
        if self._counting is not None:
            self._counting.remove()
        outcome: Outcome | None = None
        try:
            if self._shares is not None:
                self._shares.tell_last()
            if agree:
                self.final = final = self._engine.finish(self.local_step)
                self._heard(final.reports)
                self.bytes_sent += final.bytes_sent
                outcome = final.outcome
                for text in wrong_with(final, has_met=self._voice.has_met) if self._session is None else ():
                    self._voice.tell(text)
                if outcome == "averaged":
                    self._engine.say_goodbye()
        finally:
            self._engine.shutdown()
        return outcome

    def progress(self) -> Sequence[Record]:
        """What a driver is told now and then: how far the loop is, if it has gone on."""
        return self._rate.take(
            peer_index=self.peer_index,
            local_step=self.local_step,
            samples=self.samples,
            samples_before=self._samples_before,
            optimizer=self._optimizer,
        )

    def __enter__(self) -> LoopPeer:
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        self.leave(agree=error is None)

    def _stepped(self, *_: Any) -> None:
        """Of the optimizer's hook."""
        self._count()

    def _count(self) -> list[RoundReport]:
        if os.getpid() != self._process:
            raise UserError(f"process {self._process} has joined, not this one, which was forked from it: join here")
        if self._session is not None:
            self._session.check()
        if self._has_left:
            if not self._is_told_left:
                self._is_told_left = True
                self._voice.tell("it trains on after leave(): nobody averages with it any more")
            return []
        self.local_step += 1
        self._state.samples += self._told - self._told_before if self._is_told else 1
        self._told_before = self._told
        if self._shares is not None:
            self._shares.exchange()
        reports = self._engine.after_step(self.local_step)
        self._ended_at = time.monotonic()
        return self._heard(reports)

    def _heard(self, reports: Sequence[RoundReport]) -> list[RoundReport]:
        """Without the sketches, which are for a driver: a list of reports would keep 16 KB of each."""
        self.rounds.update(report.outcome for report in reports)
        self.bytes_sent += sum(report.bytes_sent for report in reports)
        self._voice.rounds(reports, self._engine.roster)
        while self._engine.notices:
            self._voice.tell(self._engine.notices.pop(0))
        return [replace(report, sketch_before=(), sketch_after=()) for report in reports]
