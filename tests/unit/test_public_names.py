"""What `import ray_gossip` offers, and that it stays light."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import ray_gossip
from ray_gossip import GossipTrainer
from ray_gossip.config import Config, parse, read
from ray_gossip.errors import ConfigError, UserError


def test_to_import_it_loads_nothing_heavy() -> None:
    program = (
        "import sys, ray_gossip, ray_gossip.config; print({'torch', 'ray', 'hivemind', 'numpy'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60.0)
    assert done.stdout == "set()\n"


def test_the_errors_are_there_and_the_package_is_a_command() -> None:
    assert issubclass(ray_gossip.ConfigError, ray_gossip.UserError)
    assert ray_gossip.UserError is UserError
    command = [sys.executable, "-m", "ray_gossip", "--version"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60.0)
    assert done.stdout == f"ray-gossip {ray_gossip.__version__}\n"


def test_it_has_no_other_names() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'leave'"):
        _ = ray_gossip.leave
    assert all(callable(getattr(ray_gossip, name)) for name in ray_gossip.__all__)


@pytest.mark.parametrize("as_file", [True, False])
def test_a_config_is_read_in_every_form(as_file: bool, tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("gossip: {steps: 7}\n")
    config = read(tmp_path / "config.yaml" if as_file else {"gossip": {"steps": 7}})
    assert (config.gossip.steps, read(config), read(None)) == (7, config, Config())


def test_a_trainers_arguments_go_before_its_config() -> None:
    config = parse({"swarm": {"num_peers": 3, "final_s": 9}, "model": {"name": "mlp"}})
    trainer = GossipTrainer(
        model=lambda: nn.Linear(64, 10),
        data="my.data:load",
        config=config,
        num_peers=2,
        cpus_per_peer=0.5,
        gpus_per_peer=0,
    )
    swarm, model, data = trainer.config.swarm, trainer.config.model, trainer.config.data
    assert (swarm.num_peers, swarm.cpus_per_peer, swarm.final_s) == (2, 0.5, 9)
    assert (model.name, data.name, data.factory) == (None, None, "my.data:load")
    assert str(model.factory).endswith("<lambda>")


def test_a_trainer_without_arguments_trains_the_defaults() -> None:
    assert GossipTrainer().config == Config()


def test_a_trainers_mistakes_are_one_line_before_anything_starts(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"^swarm\.num_peers=0 should be greater than or equal to 1"):
        GossipTrainer(num_peers=0)
    with pytest.raises(ConfigError, match=r"model is a Linear: give a function that makes it, such as model=lambda: "):
        GossipTrainer(model=nn.Linear(2, 2))
    with pytest.raises(ConfigError, match="data is a list: give"):
        GossipTrainer(data=[1])  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"^data\.factory=nowhere:load: there is no module nowhere"):
        GossipTrainer(data="nowhere:load", run_dir=tmp_path / "run").fit()
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("model", "config", "line"),
    [
        (
            nn.Linear(2, 2),
            {"engine": "hivemind"},
            "engine=hivemind needs the optimizer, which a loop of your own keeps",
        ),
        (nn.Linear(2, 2), {"gossip": {"average_momentum": True}}, "gossip.average_momentum needs the optimizer, which"),
        (nn.Linear(2, 2), {"gossip": {"group_size": 0}}, "gossip.group_size=0 should be greater"),
        (nn.Linear(2, 2).double(), None, "the model: weight is torch.float64, but float32 is what is averaged"),
        (nn.ReLU(), None, "the model: there are no parameters to train"),
        (nn.LazyLinear(3), None, "the model: weight has no shape yet: run a forward pass first"),
    ],
)
def test_what_cannot_join_says_so_before_anything_starts(model: nn.Module, config: Any, line: str) -> None:
    with pytest.raises(UserError) as error:
        ray_gossip.join(model, config=config)
    assert str(error.value).startswith(line)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("options", "line"),
    [
        (
            {"initial_peers": ["/ip4/127.0.0.1/tcp/4011"]},
            "initial_peers /ip4/127.0.0.1/tcp/4011 names no peer id; a whole one looks",
        ),
        ({"host_maddrs": ["127.0.0.1:4011"]}, "host_maddrs 127.0.0.1:4011 is no multiaddr; one looks like"),
    ],
)
def test_an_address_that_is_none_says_so_before_anything_starts(options: dict[str, Any], line: str) -> None:
    with pytest.raises(ConfigError) as error:
        ray_gossip.join(nn.Linear(2, 2), **options)
    assert str(error.value).startswith(line)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_peer_joins_after_the_first_use_of_cuda() -> None:
    model = nn.Linear(2, 2).cuda()
    with ray_gossip.join(model) as peer:
        peer.step()
