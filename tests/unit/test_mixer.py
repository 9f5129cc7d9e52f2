"""What a round sends, and what it makes of the group's mean."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from hivemind.compression import (
    CompressionBase,
    CompressionInfo,
    NoCompression,
    Uniform8BitQuantization,
    deserialize_torch_tensor,
    serialize_torch_tensor,
)

from ray_gossip.config import GossipConfig
from ray_gossip.errors import ConfigError
from ray_gossip.gossip.memory import num_kept
from ray_gossip.hive.codec import WholeRange8Bit
from ray_gossip.hive.mixer import NO_ANCHOR, Mixer, anchor_id, check_codec

NUM_PARAMETERS, NUM_OTHERS = 1000, 8
START = torch.linspace(-5, 5, NUM_PARAMETERS + NUM_OTHERS)
STATE = START + 0.01 * torch.sin(torch.arange(len(START), dtype=torch.float32))


def mixer(start: torch.Tensor = START, *, is_founder: bool = True, **gossip: object) -> Mixer:
    made = Mixer(GossipConfig.model_validate(gossip), num_parameters=NUM_PARAMETERS)
    made.start(start, is_founder=is_founder)
    return made


def sent_by(
    made: Mixer, state: torch.Tensor = STATE, *, exact: bool = False
) -> list[tuple[torch.Tensor, CompressionBase]]:
    return made.outgoing(state, exact=exact, anchors=frozenset({made.anchor_id}))


def through(codec: CompressionBase, values: torch.Tensor) -> torch.Tensor:
    decoded: torch.Tensor = deserialize_torch_tensor(codec.compress(values, CompressionInfo.from_tensor(values)))
    return decoded


def pair_mean(made: Mixer, state: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Two identical peers after a round, as hivemind's reducer does it: the mean of its own values and of the decoded
    ones of the other, which gets the difference back, encoded again."""
    ends: list[list[torch.Tensor]] = [[], []]
    for tensor, codec in sent_by(made, state):
        wire = codec.compress(tensor, CompressionInfo.from_tensor(tensor))
        decoded = deserialize_torch_tensor(wire)
        mean = (tensor + decoded) / 2
        answer = deserialize_torch_tensor(serialize_torch_tensor(mean - decoded, wire.compression))
        ends[0].append(mean - tensor)
        ends[1].append(answer)
    first, second = (state + torch.cat(end) for end in ends)
    return first, second


def test_without_compression_a_state_travels_as_it_is() -> None:
    ((sent, codec),) = sent_by(mixer())
    assert torch.equal(sent, STATE)
    assert isinstance(codec, NoCompression)


@pytest.mark.parametrize(("compression", "refuses"), [("none", False), ("fp16", True), ("int8", True)])
@pytest.mark.parametrize("value", [1e5, -1e5])
def test_a_parameter_that_a_codec_would_clip_is_refused_and_a_statistic_is_not(
    compression: str, refuses: bool, value: float
) -> None:
    made, state = mixer(compression=compression), STATE.clone()
    assert made.refusal(state) == ""
    state[NUM_PARAMETERS:] = value
    assert made.refusal(state) == ""
    state[3] = value
    assert ("beyond the range of gossip.compression, 65504: 1e+05" in made.refusal(state)) == refuses


def test_where_the_swarm_has_agreed_the_outer_step_begins_anew() -> None:
    """A founder that took over another's model, or an exact round: nobody moves for where it stood before."""
    made = mixer(outer="nesterov")
    made.set_anchor(STATE)
    still = made.change(STATE, torch.zeros_like(STATE), alpha=1.0, plain=False)
    assert not still.any()


def test_eight_bits_are_on_the_difference_from_the_shared_anchor() -> None:
    (sent, codec), _ = sent_by(mixer(compression="int8"))
    assert torch.equal(sent, (STATE - START)[:NUM_PARAMETERS])
    assert (through(codec, sent) - sent).abs().max() < 1e-3, "a hundredth of what 8 bits on the parameters would lose"


@pytest.mark.parametrize("compression", ["int8", "fp16"])
def test_statistics_and_momentum_never_travel_compressed(compression: str) -> None:
    state = torch.cat((STATE[:NUM_PARAMETERS], torch.full((NUM_OTHERS,), 1e6)))  # more than 16 bits hold
    _, (sent, codec) = sent_by(mixer(compression=compression), state)
    assert through(codec, sent).equal(state[NUM_PARAMETERS:])
    for end in pair_mean(mixer(compression=compression), state):
        assert end[NUM_PARAMETERS:].equal(state[NUM_PARAMETERS:])


def test_two_identical_peers_that_average_in_eight_bits_stay_as_they_are_but_for_a_hundredth_of_a_difference() -> None:
    """With hivemind's own codec, which clips at three sigma, a value of 30 sigma ends at 16 or at 46."""
    state = STATE.clone()
    state[7] = START[7] + 0.3
    for end in pair_mean(mixer(compression="int8"), state):
        assert (end - state).norm() < 0.02 * (state - START).norm()
        assert (end - state).abs().max() < 0.01 * 0.3


@pytest.mark.parametrize("anchors", [{7}, {NO_ANCHOR}, {7, 0}])
def test_without_a_common_anchor_eight_bits_are_never_on_parameters(anchors: set[int]) -> None:
    made = mixer(compression="int8")
    for given in (anchors, {*anchors, made.anchor_id}):
        (sent, codec), _ = made.outgoing(STATE, exact=False, anchors=frozenset(given))
        assert torch.equal(sent, STATE[:NUM_PARAMETERS])
        assert not isinstance(codec, Uniform8BitQuantization)


def test_a_newcomer_has_no_anchor_and_a_state_without_statistics_is_one_tensor() -> None:
    assert mixer(compression="int8", is_founder=False).anchor_id == NO_ANCHOR
    made = Mixer(GossipConfig(compression="int8"), num_parameters=len(START))
    made.start(START, is_founder=True)
    assert [len(tensor) for tensor, _ in sent_by(made)] == [len(START)]


@pytest.mark.parametrize("compression", ["none", "fp16", "int8"])
@pytest.mark.parametrize("cuts", [(0, 300, 700, 1008), (0, 1000, 1004, 1008), (0, 1, 1003, 1008)])
def test_pieces_travel_as_the_whole_does(compression: str, cuts: tuple[int, ...]) -> None:
    made = mixer(compression=compression)
    whole = sent_by(made)
    pieces = [
        made.outgoing(STATE[begin:end], exact=False, anchors=frozenset({made.anchor_id}), begin=begin)
        for begin, end in itertools.pairwise(cuts)
    ]
    assert torch.cat([tensor for piece in pieces for tensor, _ in piece]).equal(torch.cat([each for each, _ in whole]))
    for begin, piece in zip(cuts, pieces, strict=False):
        assert all(len(tensor) for tensor, _ in piece)
        is_parameters = begin < NUM_PARAMETERS
        assert isinstance(piece[0][1], NoCompression) == (compression == "none" or not is_parameters)


@pytest.mark.parametrize("cuts", [(0, 300, 700, 1008), (0, 1000, 1004, 1008)])
def test_outer_steps_on_pieces_come_to_the_same_as_on_the_whole(cuts: tuple[int, ...]) -> None:
    whole, by_pieces = (mixer(outer="nesterov") for _ in range(2))
    for turn in range(3):
        difference = torch.sin(torch.arange(len(STATE), dtype=torch.float32) + turn)
        change = whole.change(STATE, difference, alpha=1.0, plain=False)
        pieces = [
            by_pieces.change(STATE[begin:end], difference[begin:end], alpha=1.0, plain=False, begin=begin)
            for begin, end in itertools.pairwise(cuts)
        ]
        assert np.concatenate(pieces) == pytest.approx(change)


def test_an_anchor_is_shared_by_those_whose_states_differ_by_rounding_and_by_nobody_else() -> None:
    """After an exact round no two peers hold the same bits: each computes x + (mean - x) with another x."""
    generator, shared, distinct = torch.Generator().manual_seed(0), 0, set()
    for _ in range(100):
        base = torch.randn(2000, generator=generator)
        peers = [base + 0.01 * torch.randn(2000, generator=generator) for _ in range(3)]
        mean = torch.stack(peers).mean(0)
        ends = [peer + (mean - peer) for peer in peers]
        assert not ends[0].equal(ends[1])
        ids = set(map(anchor_id, ends))
        shared += len(ids) == 1
        distinct.add(min(ids))
        away = mean + 1e-3 * torch.randn(2000, generator=generator)
        assert anchor_id(away) not in ids
    assert shared >= 98
    assert len(distinct) == 100


def test_an_exact_round_loses_nothing_and_becomes_the_next_anchor() -> None:
    mixing = mixer(compression="int8")
    ((sent, codec),) = sent_by(mixing, exact=True)
    assert torch.equal(through(codec, sent), STATE)
    before = mixing.anchor_id
    mixing.set_anchor(STATE)
    assert mixing.anchor_id != before
    (later, _), _ = sent_by(mixing, STATE + 1)
    torch.testing.assert_close(later, torch.ones(NUM_PARAMETERS))


@pytest.mark.parametrize("is_founder", [True, False])
@pytest.mark.parametrize("outer", ["none", "nesterov"])
@pytest.mark.parametrize("compression", ["none", "int8"])
def test_one_that_is_started_again_goes_on_with_what_was_kept(compression: str, outer: str, is_founder: bool) -> None:
    gossip = GossipConfig.model_validate({"compression": compression, "outer": outer})
    first = mixer(is_founder=is_founder, **gossip.model_dump())
    kept = torch.full((num_kept(gossip, NUM_PARAMETERS),), math.nan)
    for turn in range(3):
        first.change(STATE + turn, torch.full_like(STATE, 0.1), alpha=1.0, plain=False)
    first.keep(kept)
    assert torch.isfinite(kept).all() or not is_founder  # there may be no anchor yet
    second = mixer(torch.zeros_like(START), is_founder=False, **gossip.model_dump())
    second.restore(kept)
    assert second.anchor_id == first.anchor_id
    for (sent, codec), (again, same_codec) in zip(sent_by(first), sent_by(second), strict=True):
        assert torch.equal(sent, again)
        assert codec is same_codec
    for _ in range(2):
        one, other = (
            each.change(STATE, torch.full_like(STATE, 0.2), alpha=1.0, plain=False) for each in (first, second)
        )
        assert np.array_equal(one, other)


def test_alpha_moves_a_peer_part_of_the_way() -> None:
    change = mixer(alpha=0.25).change(STATE, torch.ones(len(STATE)), alpha=0.25, plain=False)
    assert (change == 0.25).all()


def test_the_outer_step_moves_parameters_and_nothing_else() -> None:
    mixing = mixer(outer="nesterov", outer_lr=1.0, outer_momentum=0.5)
    state = START.clone()
    state[NUM_PARAMETERS:] = 1.0  # running variances, which with an outer step would become negative
    for _ in range(10):
        difference = torch.full_like(state, -0.05)
        change = mixing.change(state, difference, alpha=1.0, plain=False)
        assert (change[NUM_PARAMETERS:] == np.float32(-0.05)).all()
        state += torch.from_numpy(change)
    assert (state[:NUM_PARAMETERS] - START[:NUM_PARAMETERS]).max() < -0.6
    torch.testing.assert_close(state[NUM_PARAMETERS:], torch.full((NUM_OTHERS,), 0.5))


def test_outer_momentum_moves_past_the_mean_and_final_rounds_do_not() -> None:
    mixing = mixer(outer="nesterov", outer_lr=1.0, outer_momentum=0.5)
    mean = START + 1.0
    assert mixing.change(START, mean - START, alpha=1.0, plain=True) == pytest.approx(1.0)
    moved = mixing.change(START, mean - START, alpha=1.0, plain=False)
    assert moved[:NUM_PARAMETERS] == pytest.approx(1.5)


@pytest.mark.parametrize("codec", ["none", "fp16", "int8"])
def test_every_codec_decodes_here(codec: str) -> None:
    check_codec(codec)


def test_a_codec_that_cannot_decode_is_found_at_start(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(self: object, serialized: object) -> torch.Tensor:
        raise TypeError("only 0-dimensional arrays can be converted")

    monkeypatch.setattr(Uniform8BitQuantization, "extract", broken)
    with pytest.raises(ConfigError, match=r"gossip.compression=int8 cannot decode .* use fp16 or none"):
        check_codec("int8")


def heavy_tailed(size: int) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(0).standard_t(3, size)).float()


@pytest.mark.parametrize(
    "values",
    [
        heavy_tailed(2**16),
        torch.randn(5000, generator=torch.Generator().manual_seed(0)) + 3,
        torch.tensor([0.0, 0.0, 0.0, 1e30]),
        torch.tensor([-1e-40, 1e-40]),
        torch.full((300_000,), 0.1),
        torch.zeros(7),
        torch.tensor([2.5]),
    ],
    ids=["heavy tails", "away from zero", "one is huge", "subnormal", "constant", "zeros", "one"],
)
def test_eight_bits_clip_nothing_keep_the_sum_and_are_decoded_by_hivemind_as_shipped(values: torch.Tensor) -> None:
    codec, shipped = WholeRange8Bit(), Uniform8BitQuantization()
    decoded = shipped.extract(codec.compress(values, CompressionInfo.from_tensor(values)))
    assert decoded.shape == values.shape
    error = (decoded - values).double()
    assert error.norm() <= 0.02 * values.double().norm() + 1e-45
    assert (error.abs() <= 0.02 * values.double().abs() + 0.05 * values.double().std(correction=0).nan_to_num()).all()
    assert abs(error.sum().item()) <= 1e-6 * values.double().abs().sum().item()


def test_eight_bits_lose_a_tenth_of_what_hivemind_loses_where_tails_are_heavy() -> None:
    values = heavy_tailed(2**16)
    mine, shipped = (
        (codec.extract(codec.compress(values, CompressionInfo.from_tensor(values))) - values).norm() / values.norm()
        for codec in (WholeRange8Bit(), Uniform8BitQuantization())
    )
    assert mine < 0.02 < 10 * mine < shipped


def test_reducers_answer_in_a_codec_that_does_not_clip() -> None:
    values = heavy_tailed(5000)
    request = WholeRange8Bit().compress(values, CompressionInfo.from_tensor(values))
    answer = deserialize_torch_tensor(serialize_torch_tensor(values, request.compression))
    assert math.isclose(float(answer.max()), float(values.max()), rel_tol=1e-6)
