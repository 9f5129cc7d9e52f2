"""What the config says about data and models: mistakes, and settings that are left out."""

from __future__ import annotations

from pathlib import Path

import pytest

from ray_gossip import data, driver
from ray_gossip.config import DataConfig, dump, load, parse, skipped
from ray_gossip.errors import ConfigError, DataError

CONFIGS = Path(__file__).parents[2] / "configs"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("data.name=cifar10", "set data.root to the folder that holds it"),
        ("data.name=cifar", "should be 'digits', 'cifar10' or 'tiny_imagenet'"),
        ("data.shards=by_size", "set both, or neither"),
        ("data.dirichlet_alpha=0", "should be greater than or equal to"),
        ("model.name=resnet34", "resnet18"),
    ],
)
def test_a_mistake_is_one_line_that_names_the_fix(override: str, message: str) -> None:
    with pytest.raises(ConfigError) as error:
        load(None, [override])
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_a_batch_larger_than_all_samples_is_refused() -> None:
    num_train = data.load(DataConfig()).num_train
    load(None, [f"data.batch_size={num_train}"])
    with pytest.raises(
        ConfigError, match=rf"^data: batch_size={num_train + 1} is above the 1,433 samples of digits; low"
    ):
        load(None, [f"data.batch_size={num_train + 1}"])


def test_published_data_that_is_not_on_this_machine_is_told_before_anything_starts(tmp_path: Path) -> None:
    config = load(None, ["data.name=cifar10", f"data.root={tmp_path}"])
    with pytest.raises(
        DataError, match=rf"^data\.name=cifar10: there is no {tmp_path}/cifar-10-batches-py; unpack it in"
    ):
        driver.check_config(config, address=None)
    driver.check_config(config, address="a-cluster:6379")  # whose nodes may have it
    (tmp_path / "cifar-10-batches-py").mkdir()
    driver.check_config(config, address=None)


def test_a_relative_root_counts_from_here_and_a_home_is_that_of_each_node() -> None:
    here = load(None, ["data.name=cifar10", "data.root=some/folder"])
    assert here.data.root == Path.cwd() / "some" / "folder"
    assert load(None, ["data.name=cifar10", "data.root=~/data"]).data.root == Path("~/data")


@pytest.mark.parametrize(
    ("overrides", "sentences"),
    [
        (["data.download=true"], ["data.download=True is skipped: name=digits is shipped with a package"]),
        (["data.cutout=2"], ["data.cutout=2 is skipped: images are not augmented"]),
        (["data.cutout=2", "data.augment=standard"], []),
        (["data.dirichlet_alpha=0.1"], ["data.dirichlet_alpha=0.1 is skipped: shards=iid"]),
        (
            ["data.name=cifar10", "data.root=/d", "data.cache=/c"],
            ["data.cache=/c is skipped: name=cifar10 is not decoded"],
        ),
        (["model.norm=group"], ["model.norm=group is skipped: model.name=cnn normalises nothing"]),
        (["model.norm=group", "model.name=resnet20"], []),
    ],
)
def test_a_setting_that_changes_nothing_is_told(overrides: list[str], sentences: list[str]) -> None:
    assert skipped(load(None, overrides)) == sentences


@pytest.mark.parametrize(
    "path", sorted(set(CONFIGS.glob("*.yaml")) - set(CONFIGS.glob("tune_*.yaml"))), ids=lambda path: path.stem
)
def test_every_config_is_read_again_as_it_was_written_and_skips_nothing(path: Path) -> None:
    import yaml

    config = load(path)
    assert parse(yaml.safe_load(dump(config))) == config
    assert skipped(config) == []
