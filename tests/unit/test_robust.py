"""The mean of a group in which one peer may be wrong."""

from __future__ import annotations

import asyncio
import math
from random import Random

import pytest
import torch
from hivemind.averaging.partition import AllreduceException, TensorPartContainer, TensorPartReducer
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from ray_gossip.config import parse
from ray_gossip.errors import ConfigError
from ray_gossip.gossip.robust import REACH, robust_mean
from ray_gossip.hive.parts import BadPart, check_parts, collect
from ray_gossip.hive.robust_reducer import RobustReducer

RULES = ("clip", "trimmed")
VALUES = st.floats(-1e6, 1e6, width=32)
A_LIE = st.floats(width=32)  # infinite or no number, too


def rows(values: st.SearchStrategy[float], num_rows: int, size: int) -> st.SearchStrategy[list[list[float]]]:
    row = st.lists(values, min_size=size, max_size=size)
    return st.lists(row, min_size=num_rows, max_size=num_rows)


@st.composite
def one_liar(draw: st.DrawFn) -> tuple[Tensor, int]:
    """What a group sends, and the row of the one that lies."""
    num_peers, size = draw(st.integers(3, 8)), draw(st.integers(1, 4))
    parts = draw(rows(VALUES, num_peers - 1, size))
    liar = draw(st.integers(0, num_peers - 1))
    parts.insert(liar, draw(st.lists(A_LIE, min_size=size, max_size=size)))
    return torch.tensor(parts, dtype=torch.float32), liar


@pytest.mark.parametrize("rule", RULES)
@given(group=one_liar())
@settings(max_examples=300, deadline=None)
def test_one_liar_moves_the_mean_by_no_more_than_honest_peers_are_apart(rule: str, group: tuple[Tensor, int]) -> None:
    parts, liar = group
    honest = torch.cat([parts[:liar], parts[liar + 1 :]])
    found = robust_mean(rule, parts).values
    if not parts[liar].isfinite().all() and len(honest) < 3:
        assert not found.isfinite().all(), "two are left: the round fails, as it would without a rule"
        return
    low, high = honest.min(dim=0).values, honest.max(dim=0).values
    width, slack = high - low, 1e-5 * honest.abs().max() + 1e-6
    if rule == "trimmed":
        assert (low - slack <= found).all()
        assert (found <= high + slack).all()
    # the centre is between the honest ones, in each element; from there it is clipped to REACH times the usual distance
    apart = torch.linalg.vector_norm(width)
    assert torch.linalg.vector_norm(found - honest.mean(dim=0)) <= (1 + REACH) * apart + slack * len(width)


@pytest.mark.parametrize("rule", RULES)
@given(group=one_liar(), shift=VALUES, order=st.randoms(use_true_random=False))
@settings(max_examples=100, deadline=None)
def test_neither_the_order_nor_a_common_shift_matters(
    rule: str, group: tuple[Tensor, int], shift: float, order: Random
) -> None:
    parts, _ = group
    parts = parts.clamp(-1e6, 1e6).nan_to_num()
    whole = robust_mean(rule, parts)
    rows = list(range(len(parts)))
    order.shuffle(rows)
    mixed = robust_mean(rule, parts[rows])
    assert torch.allclose(mixed.values, whole.values, rtol=1e-4, atol=1e-2)
    moved = robust_mean(rule, parts.double() + shift)
    assert torch.allclose(moved.values - shift, robust_mean(rule, parts.double()).values, rtol=1e-4, atol=1e-2)


@given(st.integers(3, 16), st.integers(0, 2**32))
def test_where_nobody_is_far_clipping_is_the_plain_mean(num_peers: int, seed: int) -> None:
    parts = torch.randn(num_peers, 2000, generator=torch.Generator().manual_seed(seed))
    found = robust_mean("clip", parts)
    assert torch.equal(found.values, parts.mean(dim=0))
    assert found.far == ()


@pytest.mark.parametrize("rule", RULES)
def test_who_is_far_is_named(rule: str) -> None:
    parts = torch.randn(5, 2000, generator=torch.Generator().manual_seed(0))
    parts[1] *= 100
    parts[3, 7] = math.nan
    assert robust_mean(rule, parts).far == (1, 3)


@pytest.mark.parametrize("rule", RULES)
def test_peers_that_are_all_alike_stay_where_they_are(rule: str) -> None:
    parts = torch.ones(4, 10)
    assert torch.equal(robust_mean(rule, parts).values, torch.ones(10))
    parts[2] = 5.0
    found = robust_mean(rule, parts)
    assert torch.equal(found.values, torch.ones(10))
    assert found.far == (2,)


async def reduced(reducer: TensorPartReducer, sent: list[list[Tensor]], weights: list[float]) -> list[Tensor]:
    """What the first sender gets back, part after part."""

    async def send(sender: int) -> list[Tensor]:
        parts = enumerate(sent[sender])
        return [await reducer.accumulate_part(sender, index, part, weights[sender]) for index, part in parts]

    answers: list[list[Tensor]] = await asyncio.wait_for(asyncio.gather(*map(send, range(len(sent)))), 10.0)
    for answer in answers[1:]:
        assert all(torch.equal(one, other) for one, other in zip(answer, answers[0], strict=True))
    return answers[0]


def test_a_reducer_takes_part_after_part_whatever_anybody_weighs() -> None:
    sent = [[torch.full((3,), float(peer)), torch.full((2,), 10.0 * peer)] for peer in range(4)]
    sent[2] = [torch.full((3,), 1e9), torch.full((2,), -1e9)]

    async def run() -> tuple[list[Tensor], list[int]]:
        plain = TensorPartReducer((torch.Size([3]), torch.Size([2])), 4)
        reducer = RobustReducer.in_place_of(plain, rule="trimmed")
        return await reduced(reducer, sent, [1.0, 1.0, 1e9, 1.0]), reducer.far

    (first, second), far = asyncio.run(run())
    assert torch.equal(first, torch.full((3,), 2.0))  # of 0, 1, 3 and a lot: the mean of 1 and 3
    assert torch.equal(second, torch.full((2,), 5.0))  # of 0, 10, 30 and very little: the mean of 0 and 10
    assert far == [2]


@pytest.mark.parametrize(
    ("part", "weight"),
    [(torch.ones(1), 1.0), (torch.ones(4), 1.0), (torch.ones(3, 1), 1.0), (torch.ones(3), 1e9), (torch.ones(3), 0.0)],
)
def test_a_part_of_another_shape_or_weight_is_none(part: Tensor, weight: float) -> None:
    async def run() -> None:
        reducer = TensorPartReducer((torch.Size([3]),), 2)
        check_parts(reducer, weight=1.0)
        with pytest.raises(BadPart):
            await reducer.accumulate_part(0, 0, part, weight)
        with pytest.raises(BadPart):
            await reducer.accumulate_part(0, 1, torch.ones(3), 1.0)
        assert torch.equal((await reduced(reducer, [[torch.ones(3)]] * 2, [1.0, 1.0]))[0], torch.ones(3))

    asyncio.run(run())


@pytest.mark.parametrize("weight", [0.0, -1.0, math.inf, math.nan])
def test_a_weight_that_nothing_can_weigh_is_none(weight: float) -> None:
    async def run() -> None:
        reducer = TensorPartReducer((torch.Size([3]),), 2)
        check_parts(reducer, weight=None)
        with pytest.raises(BadPart):
            await reducer.accumulate_part(0, 0, torch.ones(3), weight)
        assert torch.equal((await reduced(reducer, [[torch.ones(3)]] * 2, [1.0, 3.0]))[0], torch.ones(3))

    asyncio.run(run())


def test_a_mean_of_another_shape_is_none() -> None:
    async def run() -> None:
        container, out = TensorPartContainer((torch.zeros(8),), (0.5, 0.5), part_size_bytes=16), torch.zeros(8)
        collect(container, out)
        with pytest.raises(BadPart):
            container.register_processed_part(0, 0, torch.ones(1))
        for peer in (0, 1):
            container.register_processed_part(peer, 0, torch.ones(4))
        (whole,) = [each async for each in container.iterate_output_tensors()]
        assert whole is out
        assert torch.equal(out, torch.ones(8))

    asyncio.run(run())


@given(
    sizes=st.lists(st.integers(1, 40), min_size=1, max_size=3),
    num_peers=st.integers(1, 5),
    part_size=st.integers(1, 12),
    seed=st.integers(0, 99),
)
def test_what_is_collected_is_what_hivemind_would_put_together(
    sizes: list[int], num_peers: int, part_size: int, seed: int
) -> None:
    def containers() -> TensorPartContainer:
        tensors = tuple(torch.zeros(size) for size in sizes)
        return TensorPartContainer(tensors, (1.0 / num_peers,) * num_peers, part_size_bytes=4 * part_size)

    async def filled(container: TensorPartContainer) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        parts = [[part for part, _ in of_peer] for of_peer in container._input_parts_by_peer]
        answers = [[torch.randn(len(part), generator=generator) for part in of_peer] for of_peer in parts]
        outputs = asyncio.ensure_future(all_of(container))
        for peer in reversed(range(num_peers)):
            for index, answer in enumerate(answers[peer]):
                await asyncio.sleep(0)
                container.register_processed_part(peer, index, answer)
        return torch.cat(await outputs)

    async def all_of(container: TensorPartContainer) -> list[Tensor]:
        return [each async for each in container.iterate_output_tensors()]

    async def run() -> None:
        collects = containers()
        collect(collects, out := torch.full((sum(sizes),), math.nan))
        assert torch.equal(await filled(collects), await filled(containers()))
        assert not out.isnan().any()

    asyncio.run(run())


def test_an_all_reduce_that_is_ended_gives_nothing_of_what_was_collected() -> None:
    async def run() -> None:
        container = TensorPartContainer((torch.zeros(8),), (0.5, 0.5), part_size_bytes=16)
        collect(container, torch.zeros(8))
        container.register_processed_part(0, 0, torch.ones(4))
        outputs = asyncio.ensure_future(anext(container.iterate_output_tensors()))
        await asyncio.sleep(0)
        container.finalize()
        with pytest.raises(AllreduceException):
            await outputs

    asyncio.run(run())


@pytest.mark.parametrize(
    ("gossip", "says"),
    [
        ({"robust": "clip", "group_size": 2}, "group_size=2 is too small for robust=clip"),
        ({"robust": "trimmed", "group_size": 3}, "one of fewer than 4 peers cannot be outvoted; raise group_size"),
        ({"robust": "clip", "weight_by_samples": True}, "weight_by_samples has no effect with robust=clip"),
    ],
)
def test_settings_that_cannot_hold_together_are_refused(gossip: dict[str, object], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        parse({"gossip": gossip})


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({"swarm": {"num_peers": 2}}, "gossip.robust=clip needs swarm.num_peers=3 or more"),
        ({"engine": "hivemind"}, "gossip.robust=clip needs engine=gossip"),
    ],
)
def test_a_swarm_in_which_nobody_can_be_outvoted_is_refused(config: dict[str, object], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        parse({**config, "gossip": {"robust": "clip"}})
