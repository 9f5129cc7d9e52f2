"""One run, from the first peer to the summary: what `train` shows on a terminal, and what a trial of a sweep is."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from functools import partial
from itertools import chain
from pathlib import Path

from ray.util.placement_group import PlacementGroup

from ray_gossip.checkpoints.keeper import Keeper
from ray_gossip.checkpoints.manifest import latest_sound
from ray_gossip.config import Config, skipped
from ray_gossip.errors import SwarmError, one_line
from ray_gossip.factory import NAMED, Factories
from ray_gossip.gossip.admission import OPEN, Secret
from ray_gossip.records import Fault, Notice, Record
from ray_gossip.resume import Resumption
from ray_gossip.secret_file import OPTION, forget, keep
from ray_gossip.swarm import Saves, Storm, Swarm
from ray_gossip.telemetry import Observer, RunLog, Summary, SwarmState, means

_BEGINS = Resumption()


class Run:
    """A swarm and the log of what it does. Use as a context manager: leaving it ends every peer and closes every file.

    Its iterators yield each record once it is written, and None when there is nothing to tell for a moment.

    Args:
        started_at: in seconds since 1970; the summary's durations count from there.
        group: bundles that somebody else reserved for the peers; None: the run reserves its own.
        factories: the user's own model and data, where they are handed over instead of named in the config.
        start: a snapshot that all peers go on from, at its local step; None: they begin with a new model.
        checkpoints: where its peers save themselves now and then; None: nowhere.
        resumption: where an interrupted run goes on.
    """

    def __init__(
        self,
        config: Config,
        *,
        run_id: str,
        run_dir: Path,
        started_at: float,
        group: PlacementGroup | None = None,
        factories: Factories = NAMED,
        start: bytes | None = None,
        checkpoints: str | None = None,
        resumption: Resumption = _BEGINS,
    ) -> None:
        self.config, self.run_dir = config, run_dir
        self.summary: Summary | None = None  # once it has finished or was stopped
        self._observer, self._resumption = Observer(config), resumption
        for record in resumption.records:
            self._observer.see(record)
        kept = resumption.steps()
        self._log = RunLog(run_dir, self._observer, run_id=run_id, started_at=started_at, kept_until=kept)
        self._storm = Storm(
            config.faults, num_peers=config.swarm.num_peers, seed=config.seed, happened=_faults(resumption)
        )
        self._run_id, self._secret = run_id, None if config.swarm.open else Secret.new()
        self._again = partial(
            Swarm,
            config,
            run_id=run_id,
            group=group,
            factories=factories,
            storm=self._storm,
            secret=self._secret,
        )
        saves = Saves(place=checkpoints, resumed=resumption.peers(config.swarm.num_peers))
        self._swarm = self._again(start=start, saves=saves)
        self._num_restored = 0
        self._keeper: Keeper | None = None
        if checkpoints is not None:
            self._keeper = Keeper(
                config,
                place=checkpoints,
                run_id=run_id,
                ask=lambda mark: self._swarm.save(mark),  # of a later swarm, perhaps
                measured=lambda: means(peer.measures for peer in self.state.live_peers()),
            )
            self._keeper.resume(resumption.manifest)
        self._open: ExitStack

    @property
    def state(self) -> SwarmState:
        return self._observer.state

    def __enter__(self) -> Run:
        with ExitStack() as entered:  # closes what is open already if the next cannot be opened
            entered.enter_context(self._log)
            entered.enter_context(self._swarm)
            self._open = entered.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()

    def records(self) -> Iterator[Record | None]:
        """Start the peers and let them train, until each has finished or is lost."""
        yield from self._written(self._resumption.begins(self.config.swarm.num_peers))
        yield from self._written([*self._resumption.told(), *map(Notice.now, skipped(self.config))])
        while True:
            yield from self._written(self._swarm.start())
            if self.config.engine == "gossip":
                yield from self._written([*self._open_to_all(), Notice.now(self._how_to_join())])
            yield from self._written(self._swarm.run())
            if not (before := self._before_all_were_lost()):
                yield from self._written(self._left_of_the_plan())
                return
            yield from self._written(before.told())

    def snapshot(self) -> bytes:
        """What another run can `start` from: one peer's model, optimizer and local step, taken between two local steps.
        The swarm goes on meanwhile.

        Raises:
            SwarmError: no peer is there to give its state.
        """
        snapshot = self._swarm.snapshot()
        if snapshot is None:
            raise SwarmError(f"no peer is there to give its state; {self.run_dir / 'events.jsonl'} says why")
        return snapshot

    def calm(self) -> bool:
        """No more faults on purpose; returns whether the run has got over those there were."""
        self._storm.end()
        return self._observer.is_whole

    def finish(self) -> Summary:
        """Save the merged model and write the summary.

        Raises:
            SwarmError: no peer is left to give its model, or the disk does not take it.
        """
        model = self._swarm.model()
        if model is None:
            causes = [peer.lost.cause.splitlines() for peer in self.state.peers.values() if peer.lost]
            why = f": {one_line(causes[0][0])}" if causes and causes[0] else ""
            raise SwarmError(f"every peer was lost{why}; more is in {self.run_dir / 'events.jsonl'}")
        self.summary = self._log.write_summary(model=self._log.save("model.pt", model))
        return self.summary

    def stop(self, why: str | None = None, *, show: Callable[[], None] = lambda: None) -> None:
        """Stop in order, for at most half of `swarm.stop_s`, and write the summary. If that is cut short, leaving the
        context kills what is left at once.

        Args:
            why: a notice that goes before everything else.
            show: called after every record, and when there is none as well.
        """
        try:
            keeper = self._keeper
            ending = self._swarm.stop(keeper.last_mark if keeper is not None else None)
            kept = self._kept(keeper) if keeper is not None else []
            for _ in self._written(chain([Notice.now(why)] if why else [], ending, kept)):
                show()
        except BaseException:
            self._swarm.give_up()
            raise
        finally:
            self.summary = self._log.write_summary()

    def _left_of_the_plan(self) -> Iterator[Record]:
        if left := self._storm.num_planned:
            yield Notice.now(f"{left} of {len(self.config.faults.plan)} faults of faults.plan did not happen")

    def _before_all_were_lost(self) -> Resumption | None:
        """Where nobody is left, all begin again from the latest checkpoint; not for ever."""
        keeper, swarm = self._keeper, self._swarm
        if keeper is None or swarm.has_finished or swarm.would_recur:
            return None
        if self._num_restored >= self.config.max_replacements:
            return None
        notices: list[str] = []
        manifest = latest_sound(keeper.place, model=self.config.model.model_dump(mode="json"), notices=notices)
        if manifest is None:
            return None
        self._num_restored += 1
        keeper.resume(manifest)
        notices.append(f"every peer was lost: all go on from checkpoint {manifest.mark}")
        before = Resumption(manifest=manifest, place=keeper.place, notices=notices)
        swarm.close()
        saves = Saves(place=keeper.place, resumed=before.peers(self.config.swarm.num_peers))
        self._swarm = self._open.enter_context(self._again(saves=saves))
        return before

    def _kept(self, keeper: Keeper) -> Iterator[Record]:
        """How to go on after a stop, for which peers were asked to save themselves."""
        yield from keeper.close()
        if keeper.latest >= 0:
            where = shlex.join(["--run-dir", str(self.run_dir), "--resume"])
            what = "is saved" if keeper.is_up_to_date else "is the latest, and what came after it is lost"
            yield Notice.now(f"checkpoint {keeper.latest} {what}; to go on, give the same command with {where}")
        elif not keeper.is_up_to_date:
            yield Notice.now("no checkpoint was saved, before the stop or in it: there is nothing to go on from")

    def _open_to_all(self) -> Iterator[Record]:
        if self.config.swarm.open:
            yield Notice.now(OPEN)

    def _how_to_join(self) -> str:
        address = next(peer.started for peer in self.state.live_peers() if peer.started).multiaddrs[0]
        path = self._kept_secret()
        if self.config.train.loop is not None:
            also = f", secret_file='{path}'" if path is not None else ""
            return f"a loop elsewhere joins with ray_gossip.join(model, initial_peers=['{address}']{also})"
        words = ["ray-gossip", "peer", str((self.run_dir / "config.yaml").absolute()), "--initial_peer", address]
        words += [OPTION, str(path)] if path is not None else []
        return f"from another shell, join with: {shlex.join(words)}"

    def _kept_secret(self) -> Path | None:
        """The file with it, until this run is left; None: the run is open to all."""
        if self._secret is None:
            return None
        path = keep(self._secret, run_id=self._run_id, run_dir=self.run_dir)
        self._open.callback(forget, path)
        return path

    def _written(self, records: Iterable[Record | None]) -> Iterator[Record | None]:
        for record in records:
            if record is not None:
                self._log.write(record)
                for notice in self._keeper.see(record) if self._keeper is not None else ():
                    self._log.write(notice)
            if self._keeper is not None:
                self._keeper.look(lambda: _local_step(self.state))
            yield record


def _local_step(state: SwarmState) -> int:
    """How far the swarm is."""
    return max((peer.local_step for peer in state.live_peers()), default=0)


def _faults(resumption: Resumption) -> list[Fault]:
    return [record for record in resumption.records if isinstance(record, Fault)]
