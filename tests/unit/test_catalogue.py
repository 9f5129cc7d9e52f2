"""`ray-gossip keys`: every key, as a person reads it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from ray_gossip import cli
from ray_gossip.config import Config, meanings
from ray_gossip.config.catalogue import catalogue
from ray_gossip.errors import ConfigError
from ray_gossip.tuning.settings import SweepConfig


def test_holds_every_key_with_its_values_default_and_text() -> None:
    entries = catalogue(SweepConfig).split("\n\n")
    heads = [entry.partition("\n")[0] for entry in entries]
    assert [re.split(r"[= ]", head)[0] for head in heads] == [*meanings(SweepConfig)]
    assert all(re.fullmatch(r"\S+( \S+)*    \(.+\)", head) for head in heads), heads
    assert all("\n    " in entry for entry in entries), entries  # each key has its text
    assert not any(word in head for head in heads for word in ("typing", "Annotated", "Field", "class", "NoneType"))


def test_of_a_key_says_what_one_may_type() -> None:
    assert catalogue(Config, "gossip.alpha").startswith("gossip.alpha=1.0    (number, above 0, at most 1)\n    How far")
    assert catalogue(Config, "gossip.compression").startswith("gossip.compression=none    (none | fp16 | int8)\n")
    assert catalogue(Config, "swarm.num_peers").startswith("swarm.num_peers=4    (whole number, 1 or more, at most")
    assert catalogue(Config, "train.clip_norm").startswith("train.clip_norm    (number | unset, 1e-09 or more, at")


def test_a_prefix_chooses(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert cli.main(["keys", "gossip.m"]) == 0
    shown = capsys.readouterr().out.splitlines()
    assert [line.partition("=")[0].split()[0] for line in shown if line[:1].strip()] == [
        "gossip.min_group_size",
        "gossip.matchmaking_s",
    ]
    assert max(map(len, shown)) <= 80
    assert cli.main(["keys", "gosip"]) == 2
    assert capsys.readouterr().err == "ray-gossip: no key begins with gosip; did you mean gossip?\n"
    with pytest.raises(ConfigError, match=r"no key begins with gossip\.grop; did you mean"):
        catalogue(Config, "gossip.grop")


def test_stands_in_the_docs_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """Written anew by: COLUMNS=100 ray-gossip keys, between the lines of the block."""
    monkeypatch.setenv("COLUMNS", "100")
    text = (Path(__file__).parents[2] / "docs" / "keys.md").read_text()
    assert text.partition("```text\n")[2].partition("\n```")[0] == catalogue(SweepConfig)
