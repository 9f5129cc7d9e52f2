"""Checkpoints without a swarm: when one is whole, what is kept, what is sound, who goes on from what."""

from __future__ import annotations

import json
import queue
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ray_gossip import storage
from ray_gossip.checkpoints import manifest as manifests
from ray_gossip.checkpoints.keeper import Keeper
from ray_gossip.checkpoints.manifest import Manifest, PeerFile, all_in, deal, latest_sound, prune, save, wrong_with
from ray_gossip.checkpoints.writer import Writer, load
from ray_gossip.config import parse
from ray_gossip.errors import ConfigError, SwarmError
from ray_gossip.records import Saved
from tests.unit.telemetry_records import lost, progress, started

MODEL: dict[str, Any] = {"name": "mlp"}


def written(place: Path, mark: int, *, peers: int = 2, model: Mapping[str, Any] = MODEL, **fields: Any) -> Manifest:
    """A whole checkpoint."""
    files = []
    for index in range(peers):
        writer = Writer(str(place), peer_index=index)
        writer.write(mark, {"local_step": mark, "samples": 10 * mark + index, "values": torch.arange(5) + index})
        writer.wait()
        files.append(PeerFile.of(writer.told.get()))
    of_run = {"run_id": "r", "wall_time": 1.0, "model": dict(model), "num_peers": peers}
    manifest = Manifest(mark=mark, peers=tuple(files), **{**of_run, **fields})
    save(str(place), manifest)
    return manifest


class TestAManifest:
    def test_says_which_checkpoints_there_are_and_one_without_it_is_none(self, tmp_path: Path) -> None:
        first, second = written(tmp_path, 100), written(tmp_path, 1000)
        (tmp_path / "000002000").mkdir()
        (tmp_path / "notes").mkdir()
        assert all_in(str(tmp_path)) == [second, first]
        assert all_in(str(tmp_path / "nowhere")) == []
        assert wrong_with(str(tmp_path), second) == ""
        found = load(str(tmp_path), 1000, second.peers[1].name)
        assert (found["samples"], found["values"].tolist()) == (10001, [1, 2, 3, 4, 5])

    @pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"mark": 5}', b"\xff\xfe"])
    def test_that_is_damaged_is_a_notice_and_the_one_before_counts(self, tmp_path: Path, content: bytes) -> None:
        before = written(tmp_path, 100)
        written(tmp_path, 200)
        (tmp_path / "000000200" / "manifest.json").write_bytes(content)
        notices: list[str] = []
        assert latest_sound(str(tmp_path), model=MODEL, notices=notices) == before
        assert len(notices) == 1
        assert notices[0].startswith("checkpoint 200 is passed over: its manifest is damaged")

    def test_of_another_model_or_with_files_that_are_not_as_they_were_is_passed_over(self, tmp_path: Path) -> None:
        before = written(tmp_path, 100)
        for mark in (200, 300, 400):
            written(tmp_path, mark)
        written(tmp_path, 500, model={"name": "cnn"})
        next((tmp_path / "000000200").glob("peer-00-*")).unlink()
        file = next((tmp_path / "000000300").glob("peer-01-*"))
        content = bytearray(file.read_bytes())
        content[len(content) // 2] ^= 1
        file.write_bytes(content)
        file = next((tmp_path / "000000400").glob("peer-01-*"))
        file.write_bytes(file.read_bytes()[:-100])
        notices: list[str] = []
        assert latest_sound(str(tmp_path), model=MODEL, notices=notices) == before
        for notice, words in zip(
            notices,
            ["500 is passed over: it is of another model", "400 .*bytes instead of", "300 .*other bytes", "200 .*read"],
            strict=True,
        ):
            assert re.search(words, notice), notice

    def test_prune_keeps_the_latest_the_best_and_what_is_being_written(self, tmp_path: Path) -> None:
        for mark, accuracy in ((100, 0.5), (200, 0.9), (300, 0.7), (400, 0.8)):
            written(tmp_path, mark, metrics={"accuracy": accuracy})
        (tmp_path / "000000050").mkdir()  # of a peer that was lost over it
        (tmp_path / "000000500").mkdir()
        own = prune(str(tmp_path), [100, 200, 300, 400], keep=2, better=lambda each: each.metrics["accuracy"])
        assert own == [200, 300, 400]
        assert manifests.marks_in(str(tmp_path)) == [500, 400, 300, 200]

    def test_prune_leaves_alone_what_is_not_the_runs_own(self, tmp_path: Path) -> None:
        """Such as what `--resume` has passed over: it may be damaged, and would take the place of what is sound."""
        for mark in (100, 150, 200, 300):
            written(tmp_path, mark)
        (tmp_path / "2023").mkdir()
        assert prune(str(tmp_path), [150], keep=1) == [150]
        assert manifests.marks_in(str(tmp_path)) == [300, 200, 150, 100]
        assert (tmp_path / "2023").is_dir()

    @pytest.mark.parametrize(
        ("key", "value"),
        [
            ("name", "../../evil.pt"),
            ("name", "/etc/passwd"),
            ("name", "peer-00\0.pt"),
            ("samples", -5),
            ("samples", 10**30),
            ("samples", True),
            ("local_step", "7"),
            ("peer_index", 1),
        ],
    )
    def test_that_names_what_no_peer_has_written_is_damaged(self, tmp_path: Path, key: str, value: object) -> None:
        before = written(tmp_path, 100)
        written(tmp_path, 200)
        file = tmp_path / "000000200" / "manifest.json"
        values = json.loads(file.read_text())
        values["peers"][0][key] = value
        file.write_text(json.dumps(values))
        notices: list[str] = []
        assert latest_sound(str(tmp_path), model=MODEL, notices=notices) == before
        assert notices[0].startswith("checkpoint 200 is passed over: its manifest is damaged: ")

    def test_in_a_place_with_other_folders_and_one_that_is_nested_without_end(self, tmp_path: Path) -> None:
        before = written(tmp_path, 100)
        (tmp_path / "²").mkdir()
        (tmp_path / "000000200").mkdir()
        (tmp_path / "000000200" / "manifest.json").write_text("[" * 200_000)
        assert latest_sound(str(tmp_path), model=MODEL, notices=[]) == before


@given(
    samples=st.lists(st.integers(0, 10**9), min_size=1, max_size=9),
    num_peers=st.integers(1, 12),
    lost=st.integers(0, 2),
)
def test_what_was_seen_is_counted_once_whatever_the_number_of_peers(
    samples: list[int], num_peers: int, lost: int
) -> None:
    files = tuple(
        PeerFile(peer_index=index, name=f"{index}", num_bytes=0, digest="", local_step=5, samples=count)
        for index, count in enumerate(samples)
    )
    before = len(samples) + lost
    manifest = Manifest(
        mark=5, run_id="", wall_time=0.0, model={}, num_peers=before, peers=files, other_samples=17 * lost
    )
    dealt = deal(manifest, num_peers=num_peers)
    assert len(dealt) == num_peers
    assert sum(share.samples for share in dealt) == sum(samples) + 17 * lost
    assert {share.file.peer_index for share in dealt} == set(range(min(len(samples), num_peers)))
    for index, share in enumerate(dealt):
        assert share.is_own == (num_peers == before and share.file.peer_index == index)
    if num_peers == before and not lost:
        assert [share.samples for share in dealt] == samples


class TestAWriter:
    def test_writes_one_at_a_time_and_says_what_it_left_out(self, tmp_path: Path) -> None:
        writer, entered, release = Writer(str(tmp_path), peer_index=0), queue.Queue[None](), queue.Queue[None]()

        class Slow:
            def __reduce__(self) -> Any:
                entered.put(None)
                release.get(timeout=10)
                return (dict, ())

        writer.write(1, {"local_step": 1, "samples": 1, "slow": Slow()})
        entered.get(timeout=10)
        writer.write(2, {"local_step": 2, "samples": 2})
        assert "still being written" in writer.told.get(timeout=10).cause
        release.put(None)
        writer.wait()
        assert writer.told.get(timeout=10).cause == ""

    def test_tells_of_a_disk_that_does_not_take_it_and_leaves_nothing(self, tmp_path: Path) -> None:
        (tmp_path / "000000001").write_text("in the way")
        writer = Writer(str(tmp_path), peer_index=0)
        writer.write(1, {"local_step": 1, "samples": 1})
        writer.wait()
        assert writer.told.get(timeout=10).cause.startswith("could not be saved: ")

    def test_what_it_cannot_read_again_is_one_line(self, tmp_path: Path) -> None:
        (tmp_path / "000000001").mkdir()
        (tmp_path / "000000001" / "peer-00.pt").write_bytes(b"no checkpoint")
        with pytest.raises(SwarmError, match=r"checkpoint 1: peer-00\.pt cannot be read"):
            load(str(tmp_path), 1, "peer-00.pt")


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def press_ctrl_c(*_: Any) -> None:
    raise KeyboardInterrupt


class TestAKeeper:
    @pytest.fixture(autouse=True)
    def _place(self, tmp_path: Path) -> None:
        self.place, self.clock, self.asked = tmp_path, Clock(), list[int]()

    def keeper(self, *, num_peers: int = 2, **settings: Any) -> Keeper:
        return Keeper(
            parse({"swarm": {"num_peers": num_peers}, "checkpoint": settings}),
            place=str(self.place),
            run_id="r",
            ask=self.asked.append,
            measured=lambda: {"accuracy": 0.5, "loss": float("nan")},
            clock=self.clock,
        )

    def marks(self) -> list[int]:
        return [manifest.mark for manifest in all_in(str(self.place))]

    def saved(self, index: int, mark: int, *, cause: str = "") -> Saved:
        name = f"peer-{index:02d}-0123abcd.pt"
        if not cause:
            storage.write(manifests.folder_of(str(self.place), mark), name, b"x")
        size, digest = manifests.measured(iter([b"x"]))
        return Saved(
            peer_index=index, wall_time=1.0, mark=mark, local_step=mark, samples=mark, name=name, num_bytes=size,
            digest=digest, cause=cause,
        )  # fmt: skip

    def test_a_checkpoint_is_whole_when_every_peer_that_is_there_has_saved(self) -> None:
        keeper = self.keeper()
        for record in (started(0), started(1), self.saved(0, 100)):
            assert list(keeper.see(record)) == []
        assert self.marks() == []
        assert list(keeper.see(self.saved(1, 100))) == []
        (manifest,) = all_in(str(self.place))
        assert ([peer.peer_index for peer in manifest.peers], manifest.metrics) == ([0, 1], {"accuracy": 0.5})
        assert wrong_with(str(self.place), manifest) == ""

    def test_nobody_waits_for_the_dead_for_guests_or_for_those_that_came_later(self) -> None:
        keeper = self.keeper()
        late = replace(started(1), local_step=150)
        for record in (started(0), started(1), replace(started(7), peer_index=7), self.saved(0, 100)):
            list(keeper.see(record))
        assert self.marks() == []
        list(keeper.see(lost(1)))
        assert self.marks() == [100]
        for record in (late, self.saved(0, 150)):
            list(keeper.see(record))
        assert self.marks() == [150, 100]

    def test_one_that_lacks_a_peer_that_is_there_does_not_count_and_nothing_makes_room_for_it(self) -> None:
        keeper = self.keeper(keep=1)
        for record in (started(0), started(1), self.saved(0, 100), self.saved(1, 100), self.saved(0, 200)):
            assert list(keeper.see(record)) == []
        (told,) = keeper.see(self.saved(1, 200, cause="could not be saved: No space left on device"))
        assert told.text == (
            "checkpoint 200 is incomplete and does not count: could not be saved: No space left on device; the one "
            "before, 100, counts; training goes on"
        )
        assert self.marks() == [100]

    def test_what_the_dead_had_seen_is_counted(self) -> None:
        keeper = self.keeper()
        for record in (started(0), started(1), progress(1, 70), lost(1), self.saved(0, 100)):
            list(keeper.see(record))
        (manifest,) = all_in(str(self.place))
        assert (manifest.num_peers, len(manifest.peers)) == (2, 1)
        assert manifest.samples == 100 + manifest.other_samples > 100

    def test_a_run_that_goes_back_keeps_what_it_goes_back_to(self) -> None:
        keeper = self.keeper(keep=2)
        for mark in (100, 200, 300):
            for record in (started(0), started(1), self.saved(0, mark), self.saved(1, mark)):
                list(keeper.see(record))
        assert self.marks() == [300, 200]
        (self.place / "000000300" / "peer-00-0123abcd.pt").write_bytes(b"y")
        (before,) = [manifest for manifest in all_in(str(self.place)) if manifest.mark == 200]
        keeper.resume(before)
        for record in (replace(started(0), local_step=200), replace(started(1), local_step=200)):
            list(keeper.see(record))
        for index in (0, 1):
            list(keeper.see(self.saved(index, 250)))
        assert self.marks() == [300, 250, 200], "300 is damaged, and nobody's to remove"

    def test_by_time_it_asks_when_the_swarm_has_gone_on(self) -> None:
        keeper = self.keeper(every_s=10.0)
        for now, local_step in ((0.0, 0), (9.0, 90), (10.0, 100), (19.0, 190), (21.0, 200), (35.0, 200), (36.0, 300)):
            self.clock.now = now
            keeper.look(lambda step=local_step: step)  # type: ignore[misc]
        assert self.asked == [100, 200, 300]

    @pytest.mark.parametrize(("reached", "latest"), [(90, 100), (100, 100), (130, 100), (0, -1)])
    def test_the_last_one_is_later_than_any_periodic_one(self, reached: int, latest: int) -> None:
        keeper = self.keeper(every_s=10.0)
        for record in (started(0), started(1), *(self.saved(index, latest) for index in (0, 1) if latest > 0)):
            list(keeper.see(record))
        mark = keeper.last_mark(reached)
        assert mark == max(reached, latest) + 1
        for index in (0, 1):
            assert not keeper.is_up_to_date
            list(keeper.see(self.saved(index, mark)))
        assert keeper.is_up_to_date
        assert max(self.marks()) == mark

    def test_a_last_one_does_not_make_a_peer_one_that_saves_itself_at_other_steps(self) -> None:
        keeper = self.keeper()
        for record in (started(0), started(1), self.saved(0, 50)):
            list(keeper.see(record))
        mark = keeper.last_mark(50)
        assert [notice for index in (1, 0) for notice in keeper.see(self.saved(index, mark))] == []
        assert [*self.marks(), *keeper.close()] == [mark]

    def test_one_whose_end_was_interrupted_is_whole_in_the_end(self, monkeypatch: pytest.MonkeyPatch) -> None:
        keeper = self.keeper()
        for record in (started(0), started(1), self.saved(0, 100)):
            list(keeper.see(record))
        with monkeypatch.context() as interrupted:
            interrupted.setattr("ray_gossip.checkpoints.keeper.save", press_ctrl_c)
            with pytest.raises(KeyboardInterrupt):
                list(keeper.see(self.saved(1, 100)))
        assert self.marks() == []
        assert list(keeper.close()) == []
        assert self.marks() == [100]

    def test_of_those_that_come_too_fast_one_is_told_and_the_others_are_counted(self) -> None:
        keeper = self.keeper(num_peers=1)
        list(keeper.see(started(0)))
        busy = [self.saved(0, mark, cause=manifests.BUSY) for mark in (1, 2, 4)]
        (told,) = [notice for record in (*busy, self.saved(0, 5)) for notice in keeper.see(record)]
        assert "checkpoint 1 is incomplete and does not count: the one before is still being written" in told.text
        (count,) = keeper.close()
        assert count.text.startswith("2 more checkpoints were incomplete: ")
        assert self.marks() == [5]

    def test_what_is_incomplete_in_the_end_is_told(self) -> None:
        keeper = self.keeper()
        for record in (started(0), started(1), self.saved(0, 100)):
            list(keeper.see(record))
        (told,) = keeper.close()
        assert "checkpoint 100 is incomplete and does not count: 1 of 2 peers have saved" in told.text
        assert self.marks() == []

    def test_many_that_are_incomplete_in_the_end_are_one_line(self) -> None:
        keeper = self.keeper()
        for record in (started(0), started(1), self.saved(0, 100), self.saved(0, 200), self.saved(0, 300)):
            assert list(keeper.see(record)) == []
        (told,) = keeper.close()
        assert "checkpoint 300 is incomplete and does not count: 1 of 2 peers have saved (as 2 before it)" in told.text

    def test_a_peer_that_never_saves_itself_is_told_once(self) -> None:
        keeper = self.keeper()
        marks = [self.saved(0, mark) for mark in range(100, 1000, 100)]
        (told,) = [notice for record in (started(0), started(1), *marks) for notice in keeper.see(record)]
        assert "peer 1 has never saved itself: does its loop call peer.checkpoint?" in told.text

    def test_peers_that_save_themselves_at_other_steps_are_told_once(self) -> None:
        keeper = self.keeper()
        marks = [self.saved(index, 100 * turn + 20 * index) for turn in range(1, 6) for index in (0, 1)]
        (told,) = [notice for record in (started(0), started(1), *marks) for notice in keeper.see(record)]
        assert "saves itself at other local steps: call peer.checkpoint after each step" in told.text
        assert self.marks() == []

    def test_an_earlier_one_that_comes_late_does_not_count(self) -> None:
        keeper = self.keeper()
        for record in (started(0), started(1), self.saved(0, 200), self.saved(1, 200), self.saved(0, 100)):
            list(keeper.see(record))
        list(keeper.see(self.saved(1, 100)))
        assert self.marks() == [200]


def test_the_settings_are_checked() -> None:
    assert parse({}).checkpoint.every_s == 600
    by_steps = parse({"checkpoint": {"every_steps": 50}}).checkpoint
    assert (by_steps.every_s, by_steps.every_steps, by_steps.is_on) == (None, 50, True)
    assert not parse({"checkpoint": {"every_s": None}}).checkpoint.is_on
    assert parse(parse({"checkpoint": {"every_steps": 50}}).model_dump()).checkpoint == by_steps
    for wrong in ({"every_s": 5, "every_steps": 5}, {"best_by": "accuracy"}, {"keep": 0}, {"every_s": 0}):
        with pytest.raises(ConfigError, match="checkpoint"):
            parse({"checkpoint": wrong})
