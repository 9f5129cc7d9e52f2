"""What a round sends, and what it makes of the group's mean."""

from __future__ import annotations

import pytest
import torch
from hivemind.compression import CompressionInfo, Uniform8BitQuantization, deserialize_torch_tensor

from ray_gossip.config import GossipConfig
from ray_gossip.errors import ConfigError
from ray_gossip.hive.mixer import Mixer, check_codec

START = torch.linspace(-5, 5, 1000)
STATE = START + 0.01 * torch.sin(torch.arange(1000.0))


def mixer(**gossip: object) -> Mixer:
    made = Mixer(GossipConfig.model_validate(gossip))
    made.start(START, is_founder=True)
    return made


def test_without_compression_parameters_travel_as_they_are() -> None:
    sent, _ = mixer().outgoing(STATE, exact=False, anchors=frozenset({0}))
    assert torch.equal(sent, STATE)


def test_eight_bits_are_on_the_difference_from_the_shared_anchor() -> None:
    sent, codec = mixer(compression="int8").outgoing(STATE, exact=False, anchors=frozenset({0}))
    decoded = deserialize_torch_tensor(codec.compress(sent, CompressionInfo.from_tensor(sent)))
    assert torch.equal(sent, STATE - START)
    assert (decoded - sent).abs().max() < 1e-3, "a hundredth of what 8 bits on the parameters would lose"


@pytest.mark.parametrize("anchors", [frozenset({0, 7}), frozenset({7}), frozenset({-1, 0})])
def test_without_a_common_anchor_eight_bits_are_never_on_parameters(anchors: frozenset[int]) -> None:
    sent, codec = mixer(compression="int8").outgoing(STATE, exact=False, anchors=anchors)
    assert torch.equal(sent, STATE)
    assert not isinstance(codec, Uniform8BitQuantization)


def test_an_exact_round_loses_nothing_and_becomes_the_next_anchor() -> None:
    mixing = mixer(compression="int8")
    sent, codec = mixing.outgoing(STATE, exact=True, anchors=frozenset({0}))
    assert torch.equal(deserialize_torch_tensor(codec.compress(sent, CompressionInfo.from_tensor(sent))), STATE)
    mixing.set_anchor(STATE, 8)
    later, _ = mixing.outgoing(STATE + 1, exact=False, anchors=frozenset({8}))
    torch.testing.assert_close(later, torch.ones(1000))


def test_alpha_moves_a_peer_part_of_the_way() -> None:
    change = mixer(alpha=0.25).change(STATE, torch.ones(1000), alpha=0.25, plain=False)
    assert (change == 0.25).all()


def test_outer_momentum_moves_past_the_mean_and_final_rounds_do_not() -> None:
    mixing = mixer(outer="nesterov", outer_lr=1.0, outer_momentum=0.5)
    mean = START + 1.0
    assert mixing.change(START, mean - START, alpha=1.0, plain=True) == pytest.approx(1.0)
    assert mixing.change(START, mean - START, alpha=1.0, plain=False) == pytest.approx(1.5)


@pytest.mark.parametrize("codec", ["none", "fp16", "int8"])
def test_every_codec_decodes_here(codec: str) -> None:
    check_codec(codec)


def test_a_codec_that_cannot_decode_is_found_at_start(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(self: object, serialized: object) -> torch.Tensor:
        raise TypeError("only 0-dimensional arrays can be converted")

    monkeypatch.setattr(Uniform8BitQuantization, "extract", broken)
    with pytest.raises(ConfigError, match=r"gossip.compression=int8 cannot decode .* use fp16 or none"):
        check_codec("int8")
