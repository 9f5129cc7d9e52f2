"""Whether a swarm fits on the nodes of a cluster, in numbers that a person can mend."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from ray_gossip.config import Config, load, parse
from ray_gossip.errors import ConfigError, ResourceError
from ray_gossip.resources import bundle, check_fits, in_words, num_that_fit, this_machine

H100 = {"CPU": 16.0, "GPU": 8.0, "accelerator_type:H100": 1.0, "fast_network": 4.0}
A100 = {"CPU": 16.0, "GPU": 8.0, "accelerator_type:A100": 1.0}


def swarm(**values: object) -> Config:
    return parse({"swarm": {"cpus_per_peer": 1, "num_peers": 8, **values}})


def complaint(config: Config, *nodes: Mapping[str, float]) -> str:
    with pytest.raises(ResourceError) as refused:
        check_fits(config.swarm, nodes)
    return str(refused.value)


def test_peers_are_placed_on_the_kind_of_gpu_that_was_asked_for_and_only_there() -> None:
    config = swarm(gpus_per_peer=1, accelerator_type="H100")
    assert bundle(config.swarm) == {"CPU": 1.0, "GPU": 1.0, "accelerator_type:H100": 0.001}
    check_fits(config.swarm, [A100, H100])
    assert num_that_fit(config.swarm, [A100, H100]) == 1
    assert num_that_fit(swarm(gpus_per_peer=1).swarm, [A100, H100]) == 2
    assert complaint(config, A100) == "swarm.accelerator_type=H100 is on no node of the cluster; there is A100"
    assert "only 8 peers with 1 CPUs and 1 GPUs and a H100 each" in complaint(
        swarm(gpus_per_peer=1, accelerator_type="H100", num_peers=9), A100, H100
    )


def test_custom_resources_are_counted_on_the_nodes_that_have_them() -> None:
    config = swarm(num_peers=4, resources_per_peer={"fast_network": 1})
    check_fits(config.swarm, [A100, H100])
    assert in_words(config.swarm) == "1 CPUs and 1 fast_network"
    line = complaint(swarm(num_peers=5, resources_per_peer={"fast_network": 1}), A100, H100)
    assert "swarm.num_peers=5 with swarm.resources_per_peer.fast_network=1 needs 5 fast_network but the" in line
    assert line.endswith("cluster has 4: lower swarm.num_peers or swarm.resources_per_peer.fast_network")


def test_a_local_ray_has_no_custom_resources_and_its_gpus_are_seen_when_it_runs() -> None:
    assert "but the cluster has 0" in complaint(swarm(num_peers=1, resources_per_peer={"link": 1}), this_machine())
    check_fits(swarm(num_peers=1, gpus_per_peer=1, accelerator_type="H100").swarm, [{"CPU": 2.0}])


@pytest.mark.parametrize(
    ("override", "line"),
    [
        ("swarm.resources_per_peer={GPU: 1}", "GPU has a key of its own: set swarm.gpus_per_peer"),
        ("swarm.resources_per_peer={link: 0}", "should be greater than or equal to 0.001"),
        ("swarm.silent_s=0", "should be greater than or equal to 0.001"),
    ],
)
def test_a_resource_that_cannot_be_asked_for_is_one_line(override: str, line: str) -> None:
    with pytest.raises(ConfigError, match=line):
        load(None, [override])
