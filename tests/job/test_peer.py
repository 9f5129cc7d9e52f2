"""`ray-gossip peer`: swarms that are started peer by peer from shells, and guests of a swarm that runs under Ray."""

from __future__ import annotations

import json
import os
import secrets
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from ray_gossip.secret_file import TEXT
from tests.job.networks import PACED
from tests.job.processes import family, wait_until_gone
from tests.job.runs import COMMAND, Run, finish
from tests.job.waiting import wait_for
from tests.published import write_cifar10, write_tiny_imagenet

ENDLESS = "train.local_steps=1000000"
JOIN_S = 60.0
STOP_S = 15.0
EXPIRES_S = 30.0  # a declaration of membership lives 15 s


def address_of(run: Run) -> str:
    """Of the first peer."""
    (address, *_) = run.wait_for("PeerStarted")[0]["multiaddrs"]
    return str(address)


def averaged(run: Run, *, peer_index: int) -> list[dict[str, Any]]:
    return [r for r in run.events("RoundReport") if r["peer_index"] == peer_index and r["outcome"] == "averaged"]


def test_two_shells_found_a_swarm_join_it_and_end_with_one_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(TEXT)  # the first makes a secret, and says where
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    words = ("configs/quickstart.yaml", *PACED, "train.local_steps=2000")  # the second may take long to start
    options = ("--gossip_group_size", "8", "--gossip_min_group_size", "2", "--gossip_alpha", "1.0")
    identity = tmp_path / "identity"
    with Run(
        tmp_path / "first", *words, *options, "--identity_path", str(identity), command="peer", forked=False
    ) as first:
        address = address_of(first)
        (secret,) = (tmp_path / "state" / "ray_gossip").iterdir()
        assert secret.stat().st_mode & 0o777 == 0o600
        joining = (*options, "--secret_file", str(secret), "--initial_peer", address)
        with Run(tmp_path / "second", *words, *joining, command="peer", forked=False) as second:
            assert second.finish().code == 0, second
        assert first.finish().code == 0, first
    assert identity.exists()
    told = first.stderr.splitlines()
    (command,) = (line.strip() for line in told if line.strip().startswith("ray-gossip peer"))
    others = f"--secret_file {secret} --initial_peer {address}"
    assert command.endswith(f"gossip.group_size=8 gossip.min_group_size=2 gossip.alpha=1.0 {others}")
    for run in (first, second):
        assert run.summary["final_outcome"] == ["averaged"]
        assert run.summary["merged_accuracy"] > 0.9
        assert run.summary["rounds"]["failed"] == 0
        assert json.loads(run.stdout.splitlines()[-1]) == run.summary
    assert first.summary["run_id"] == second.summary["run_id"]
    assert [peer["peer_index"] for run in (first, second) for peer in run.events("PeerStarted")] == [0, 1]
    models = [torch.load(run.run_dir / "model.pt", weights_only=True) for run in (first, second)]
    assert all(torch.allclose(models[0][name], models[1][name], atol=1e-5) for name in models[0])
    begun = second.events("RoundReport")[0]["local_step"]
    assert begun > 0  # the newcomer counts on from where the swarm is
    assert any("dealt anew, to 2 peers" in notice["text"] for notice in first.events("Notice"))


@pytest.mark.parametrize("name", ["cifar10", "tiny_imagenet"])
def test_both_data_sets_are_trained_peer_by_peer_from_their_published_files(name: str, tmp_path: Path) -> None:
    program: Sequence[str] = COMMAND
    if name == "cifar10":
        checksums = write_cifar10(tmp_path)
        (tmp_path / "checksums.json").write_text(json.dumps(checksums))
        program = [sys.executable, "-m", "tests.job.with_small_cifar10", str(tmp_path)]
    else:
        write_tiny_imagenet(tmp_path)
    words = (
        f"configs/{name}.yaml",
        "--data_root",
        str(tmp_path),
        "model.name=resnet20",
        "data.batch_size=4",
        "swarm.cpus_per_peer=1",
        "train.precision=fp32",
        "train.eval_samples=20",
        "train.recalibrate_samples=20",
        "gossip.steps=3",
        ENDLESS,
    )
    with Run(tmp_path / "first", *words, command="peer", program=program) as first:
        joining = ("--initial_peer", address_of(first))
        with Run(tmp_path / "second", *words, *joining, command="peer", program=program) as second:
            for peer_index, run in enumerate((first, second)):

                def has_averaged(run: Run = run, peer_index: int = peer_index) -> bool:
                    assert run.running, run.finish()
                    return bool(averaged(run, peer_index=peer_index))

                wait_for(has_averaged, within_s=JOIN_S, what="a round averaged")
            second.press_ctrl_c()
            assert second.finish(within_s=STOP_S).code == 130, second
        first.press_ctrl_c()
        assert first.finish(within_s=STOP_S).code == 130, first


def wait_until_mixed(guest: Run, swarm: Run) -> int:
    """Until the driver has heard that its peer 0 and the guest averaged together, from both; returns its index."""
    peer_index = int(guest.wait_for("PeerStarted", within_s=JOIN_S)[0]["peer_index"])
    since = guest.events("PeerStarted")[0]["wall_time"]

    def has_mixed() -> bool:
        assert guest.running, guest.finish()
        own = [r for r in averaged(swarm, peer_index=peer_index) if r["wall_time"] > since]
        return bool(own) and any(peer_index in r["group"] for r in averaged(swarm, peer_index=0))

    wait_for(has_mixed, within_s=JOIN_S, what=f"a round in which peers 0 and {peer_index} averaged")
    assert guest.events("RoundReport")[0]["local_step"] > 0  # it counts on from where the swarm is
    return peer_index


def test_guests_join_a_swarm_that_runs_under_ray_leave_it_and_die(ray: str, tmp_path: Path) -> None:
    words = (*PACED, "swarm.num_peers=2", "gossip.group_size=4", "train.eval_every=50", ENDLESS)
    with Run(tmp_path / "ray", *words, address=ray) as swarm:
        swarm.wait_until_training()
        (told,) = (n["text"] for n in swarm.events("Notice") if "--initial_peer" in n["text"])
        joining = told.partition("ray-gossip peer ")[2].split()
        with Run(tmp_path / "leaves", *joining, command="peer") as guest:
            leaver = wait_until_mixed(guest, swarm)
            guest.press_ctrl_c()
            assert guest.finish(within_s=STOP_S).code == 130, guest
            (left,) = swarm.wait_for("PeerLeft", within_s=5.0)
            assert left["peer_index"] == leaver
        with Run(tmp_path / "dies", *joining, command="peer") as guest:
            victim = wait_until_mixed(guest, swarm)
            killed = family(guest.pid)
            os.kill(guest.pid, signal.SIGKILL)
            (lost,) = swarm.wait_for("PeerLost", within_s=EXPIRES_S)
            assert lost["peer_index"] == victim
            assert lost["cause"].startswith("it did not renew")
            wait_until_gone(killed, within_s=5.0)
        gone = len(averaged(swarm, peer_index=0))
        wait_for(
            lambda: [r["group"] for r in averaged(swarm, peer_index=0)[gone:]][-1:] == [[0, 1]],
            within_s=JOIN_S,
            what="a round of those who stayed",
        )
        swarm.press_ctrl_c()
        assert swarm.finish(within_s=STOP_S).code == 130, swarm
    assert f"peer {leaver} is up" in swarm.stderr
    assert f"peer {leaver} has left" in swarm.stderr
    assert f"peer {victim} is lost" in swarm.stderr
    assert swarm.summary["peers_joined"] == len({leaver, victim})  # an index that was free again is taken again
    assert (swarm.run_dir / f"peer-{leaver:02d}").is_dir()  # it has curves too


def test_a_guest_meets_the_peers_under_ray_on_its_machine_where_groups_are_local(ray: str, tmp_path: Path) -> None:
    words = (
        *PACED,
        "swarm.num_peers=2",
        "gossip.schedule=local",
        "gossip.cross_every=100000",
        "train.eval_every=1000",
        ENDLESS,
    )
    with Run(tmp_path / "ray", *words, address=ray) as swarm:
        swarm.wait_until_training()
        (told,) = (n["text"] for n in swarm.events("Notice") if "--initial_peer" in n["text"])
        with Run(tmp_path / "guest", *told.partition("ray-gossip peer ")[2].split(), command="peer") as guest:
            assert wait_until_mixed(guest, swarm) == 2
            wait_for(
                lambda: any(r["group"] == [0, 1, 2] for r in averaged(guest, peer_index=2)),
                within_s=JOIN_S,
                what="a round of the whole machine",
            )
            guest.press_ctrl_c()
            assert guest.finish(within_s=STOP_S).code == 130, guest
        swarm.press_ctrl_c()
        assert swarm.finish(within_s=STOP_S).code == 130, swarm


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["--initial_peer", "nonsense"], "--initial_peer nonsense is no multiaddr"),
        (["--initial_peer", "/ip4/127.0.0.1/tcp/4011"], "names no peer id"),
        (["--host_maddr", "127.0.0.1:4011"], "--host_maddr 127.0.0.1:4011 is no multiaddr"),
        (["--gossip_alpha", "2"], "gossip.alpha=2"),
        (["--gosip_alpha", "2"], "unknown option --gosip_alpha"),
        (["engine=hivemind"], "give engine=gossip"),
    ],
)
def test_a_mistake_is_one_line(words: list[str], line: str) -> None:
    done = finish("peer", "configs/quickstart.yaml", *words)
    assert (done.returncode, done.stdout) == (2, "")
    (answer,) = done.stderr.splitlines()
    assert line in answer


def test_a_peer_that_does_not_fit_into_a_swarm_is_told_what_to_give_and_does_not_join(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Run(tmp_path / "first", "train.eval_every=1000000", ENDLESS, command="peer") as first:
        address = address_of(first)
        done = finish("peer", ENDLESS, "model.name=mlp", "gossip.group_size=3", "--initial_peer", address)
        assert done.returncode == 2, done
        (answer,) = done.stderr.splitlines()
        assert answer.endswith("give gossip.group_size=16 model.name=cnn")
        monkeypatch.setenv(TEXT, secrets.token_hex(32))
        done = finish("peer", ENDLESS, "--initial_peer", address)
        assert done.returncode == 1, done
        (answer,) = done.stderr.splitlines()
        why = "its secret is not that of this run; give the secret of that swarm: --secret_file, or"
        assert answer.endswith(f"refused this one, {why} RAY_GOSSIP_SECRET_FILE")
        first.press_ctrl_c()
        assert first.finish(within_s=STOP_S).code == 130, first


def test_a_swarm_that_is_not_there_is_one_line(tmp_path: Path) -> None:
    nobody = "/ip4/127.0.0.1/tcp/9/p2p/12D3KooWGEmPDEnefa7S7RAB7ypZAHcbpSvdsh4tsexWKz3jhUYE"
    done = finish("peer", "swarm.start_s=10", "--initial_peer", nobody, "--run-dir", str(tmp_path / "run"))
    assert done.returncode == 1, done
    assert len(done.stderr.splitlines()) == 1, done
    assert not (tmp_path / "run").exists()
