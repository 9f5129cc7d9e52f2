"""The maths of rounds: closed forms against published figures, and the network-free twin against closed forms.

Simulations have fixed seeds; they must agree within four standard errors of their mean.
"""

from __future__ import annotations

import functools
import math
from typing import get_args

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from ray_gossip import mixing
from ray_gossip.mixing import FailureMode, Failures, OuterMomentum, Sketch
from ray_gossip.mixing.schedule import groups

Array = NDArray[np.float64]


def _swarm(num_peers: int, size: int = 32, seed: int = 0) -> Array:
    return np.random.default_rng(seed).standard_normal((num_peers, size))


def _agrees(samples: Array, expected: float) -> bool:
    standard_error = samples.std(ddof=1) / np.sqrt(len(samples))
    return bool(abs(samples.mean() - expected) < 4 * standard_error + 1e-12)


# Contraction


def test_contraction_gives_the_known_factors_of_a_random_round() -> None:
    known = {(8, 2, 1): 0.429, (8, 4, 1): 0.143, (8, 4, 0.5): 0.357, (8, 8, 0.5): 0.25, (16, 4, 1): 0.2}
    known[64, 8, 0.7] = 0.191
    for (num_peers, group_size, alpha), factor in known.items():
        assert mixing.contraction(num_peers, num_peers / group_size, alpha) == pytest.approx(factor, abs=5e-4)
        run = mixing.simulate(
            _swarm(num_peers),
            schedule="random",
            group_size=group_size,
            num_rounds=200,
            alpha=alpha,
            noise=1.0,
        )
        assert _agrees(run.after / run.before, mixing.contraction(num_peers, num_peers / group_size, alpha))


def test_a_full_grid_contracts_to_nothing() -> None:
    assert [mixing.grid_contraction((2, 2, 2), k) for k in range(4)] == pytest.approx([1, 3 / 7, 1 / 7, 0])
    assert [mixing.grid_contraction((4, 4), k) for k in (1, 2)] == pytest.approx([0.2, 0])
    for sides in ((2, 2, 2), (4, 4), (5, 4, 3)):
        values = np.eye(math.prod(sides))  # equally far apart in all directions, so that expectations are exact
        run = mixing.simulate(values, schedule="grid", group_size=max(sides), num_rounds=len(sides))
        expected = [mixing.grid_contraction(sides, k + 1) for k in range(len(sides))]
        assert run.after / run.before[0] == pytest.approx(expected, abs=1e-12)


def test_rounds_to_agreement_match_the_published_table() -> None:
    def rounds(schedule: str, num_peers: int, seed: int = 0) -> int:
        run = mixing.simulate(_swarm(num_peers, 8, seed), schedule=schedule, group_size=32, num_rounds=9, seed=seed)
        return int(np.argmax(run.after < 1e-9 * run.before[0])) + 1

    assert np.mean([rounds("random", 512, seed) for seed in range(40)]) == pytest.approx(6.1, abs=0.1)
    assert [rounds("grid", num_peers) for num_peers in (512, 900, 1024)] == [2, 2, 2]  # all full here


def test_a_ring_with_weights_of_a_third_degrades_with_its_length() -> None:
    factors = [mixing.ring_contraction(num_peers) for num_peers in (8, 16, 64)]
    assert factors == pytest.approx([0.648, 0.901, 0.994], abs=5e-4)


def test_failures_cost_what_the_closed_forms_say() -> None:
    known: dict[FailureMode, float] = {"regroup": 0.251, "rest": 0.307, "void": 0.475, "slice": 0.352}
    for mode, factor in known.items():
        closed = mixing.contraction_with_failures(16, 4, 0.1, mode)
        assert closed == pytest.approx(factor, abs=5e-4)
        run = mixing.simulate(
            _swarm(16),
            schedule="random",
            group_size=4,
            num_rounds=300,
            noise=1.0,
            failures=Failures(probability=0.1, mode=mode),
        )
        assert _agrees(run.after / run.before, closed)


def test_without_failures_all_modes_are_plain_averaging() -> None:
    for mode in get_args(FailureMode):
        assert mixing.contraction_with_failures(16, 4, 0.0, mode) == pytest.approx(0.2)
        assert mixing.contraction_with_failures(16, 4, 1.0, mode) == pytest.approx(1.0)


def test_thousands_of_peers_with_failures_agree_with_the_closed_form() -> None:
    run = mixing.simulate(
        _swarm(4096, 64),
        schedule="random",
        group_size=8,
        num_rounds=20,
        failures=Failures(probability=0.05),
    )
    assert _agrees(run.after / run.before, mixing.contraction_with_failures(4096, 8, 0.05, "rest"))


# One round


@given(
    num_peers=st.integers(1, 20),
    group_size=st.integers(1, 8),
    alpha=st.floats(0.01, 1.0),
    seed=st.integers(0, 1000),
)
def test_a_round_keeps_the_swarm_mean_and_never_widens_the_spread(
    num_peers: int, group_size: int, alpha: float, seed: int
) -> None:
    values = _swarm(num_peers, 5, seed)
    met = groups("random", round=0, num_members=num_peers, group_size=group_size, seed=seed)
    after = mixing.average_round(values, met, alpha)
    assert after.mean(axis=0) == pytest.approx(values.mean(axis=0))
    assert mixing.squared_spread(after) <= mixing.squared_spread(values) * (1 + 1e-12)


def test_a_round_moves_by_alpha_to_the_group_mean_and_leaves_the_others_alone() -> None:
    values = np.array([[0.0], [4.0], [7.0], [9.0]])
    assert mixing.average_round(values, ((0, 1), (3,)), alpha=0.25).tolist() == [[0.5], [3.5], [7.0], [9.0]]
    assert values.tolist() == [[0.0], [4.0], [7.0], [9.0]]


def test_what_peers_send_and_the_deltas_they_get_both_pass_the_codec() -> None:
    values = np.array([[0.2], [3.2]])  # sent as 0 and 3, whose deltas to 1.5 come back as 2 and -2
    after = mixing.average_round(values, ((0, 1),), codec=np.round)
    assert after == pytest.approx(np.array([[2.2], [1.2]]))
    run = mixing.simulate(values, schedule="all", group_size=2, num_rounds=1, codec=np.round)
    assert (run.values == after).all()


def test_a_failed_round_leaves_parameters_untouched() -> None:
    values = _swarm(12)
    for mode in get_args(FailureMode):
        run = mixing.simulate(
            values,
            schedule="random",
            group_size=4,
            num_rounds=3,
            failures=Failures(probability=1.0, mode=mode),
            outer=OuterMomentum,
        )
        assert (run.values == values).all()


def test_a_peer_sends_twice_its_model_less_its_own_share() -> None:
    assert [mixing.bytes_per_round(100, group_size) for group_size in (1, 2, 4)] == [0, 100, 150]


# Steady state and overlap


def test_the_steady_state_grows_with_local_steps_and_the_square_of_the_step_size() -> None:
    injected = mixing.injected_spread(16, local_steps=10, lr=0.1, noise_variance=3.0)
    assert injected == pytest.approx(10 * 0.01 * 3 * 15 / 16)
    before = [mixing.steady_spread(1.0, mixing.contraction(16, 16 / m)).before for m in (2, 4, 8)]
    assert before == pytest.approx([1.875, 1.25, 1.071], abs=5e-4)


def test_the_simulated_steady_state_is_the_predicted_one_with_and_without_overlap() -> None:
    size, num_rounds = 64, 400
    injected = mixing.injected_spread(16, local_steps=1, lr=1.0, noise_variance=size)
    for group_size in (2, 4, 8):
        steady = mixing.steady_spread(injected, mixing.contraction(16, 16 / group_size))
        settle = functools.partial(
            mixing.simulate,
            np.zeros((16, size)),
            schedule="random",
            group_size=group_size,
            num_rounds=num_rounds,
            noise=1.0,
        )
        waiting, serial = settle(), settle(overlap="serial")
        # The spread of a few rounds ago still shows, so the error of the mean is wider than of free samples.
        assert waiting.before[20:].mean() == pytest.approx(steady.before, rel=0.04)
        assert waiting.after[20:].mean() == pytest.approx(steady.after, rel=0.04)
        assert serial.after[20:].mean() == pytest.approx(steady.before, rel=0.04)


def test_pipelined_rounds_hardly_contract_at_alpha_one() -> None:
    factors = [mixing.pipelined_contraction(16, 16 / group_size) for group_size in (2, 4, 8, 16)]
    assert factors == pytest.approx([0.855, 0.934, 0.978, 1.0], abs=5e-4)
    # In a large swarm one run shows the expectation. Other modes of the recursion have died out by round 20.
    run = mixing.simulate(_swarm(4096, 8), schedule="random", group_size=2, num_rounds=40, overlap="pipelined")
    factor = (run.after[39] / run.after[19]) ** (1 / 20)
    assert factor == pytest.approx(mixing.pipelined_contraction(4096, 2048), rel=0.01)


def test_pipelined_all_reduce_swings_for_ever_unless_alpha_is_smaller() -> None:
    swing = functools.partial(
        mixing.simulate, _swarm(16), schedule="all", group_size=16, num_rounds=60, overlap="pipelined"
    )
    assert swing().after[59] == pytest.approx(swing().after[5])
    assert swing(alpha=0.5).after[59] < 1e-9


# Outer momentum


def test_outer_momentum_contracts_as_the_table_says() -> None:
    table = {
        (0.7, 0.9, False): (1.086, 0.981, 0.900),
        (0.7, 0.9, True): (0.881, 0.562, 0.270),
        (0.7, 0.5, True): (0.553, 0.328, 0.150),
        (1.0, 0.0, True): (0.467, 0.200, 0.0),  # plain averaging
    }
    for (lr, momentum, nesterov), factors in table.items():
        closed = [
            mixing.outer_contraction(16, 16 / group_size, lr=lr, momentum=momentum, nesterov=nesterov)
            for group_size in (2, 4, 16)
        ]
        assert closed == pytest.approx(factors, abs=6e-4)


def test_the_simulated_outer_momentum_contracts_as_its_closed_form() -> None:
    for nesterov in (False, True):
        run = mixing.simulate(
            _swarm(1024, 8),
            schedule="random",
            group_size=2,
            num_rounds=30,
            outer=functools.partial(OuterMomentum, lr=0.7, momentum=0.9, nesterov=nesterov),
        )
        factor = (run.after[29] / run.after[14]) ** (1 / 15)
        closed = mixing.outer_contraction(1024, 512, lr=0.7, momentum=0.9, nesterov=nesterov)
        assert factor == pytest.approx(closed, rel=0.02)
        assert (factor > 1) == (not nesterov)  # heavy ball diverges in pairs


def test_outer_momentum_is_the_sgd_of_torch_on_the_pseudo_gradient() -> None:
    for nesterov in (False, True):
        start, *means = _swarm(6, 1000).astype(np.float32)
        outer = OuterMomentum(start, lr=0.7, momentum=0.9, nesterov=nesterov)
        anchor = torch.from_numpy(start.copy())
        reference = torch.optim.SGD([anchor], lr=0.7, momentum=0.9, nesterov=nesterov)
        for mean in means:
            target = outer.step(mean)
            anchor.grad = anchor - torch.from_numpy(mean)
            reference.step()
            assert target.dtype == np.float32
            np.testing.assert_allclose(target, anchor.numpy(), rtol=1e-5, atol=1e-5)


def test_outer_momentum_keeps_no_hold_on_the_arrays_of_its_caller() -> None:
    start = np.ones(3, dtype=np.float32)
    outer = OuterMomentum(start, lr=0.5, momentum=0.0)
    start[:] = 9
    target = outer.step(np.zeros(3, dtype=np.float32))
    assert target.tolist() == [0.5, 0.5, 0.5]
    target[:] = 9
    assert outer.step(np.ones(3, dtype=np.float32)).tolist() == [0.75, 0.75, 0.75]


def test_a_peer_that_meets_nobody_takes_no_outer_step() -> None:
    alone = functools.partial(mixing.simulate, _swarm(4), schedule="random", group_size=1, num_rounds=3, noise=1.0)
    assert (alone(outer=OuterMomentum).values == alone().values).all()


# Sketch


def test_every_machine_computes_the_same_sketch() -> None:
    sketch = Sketch(100_000, dim=8, seed=3)(np.arange(100_000.0))
    assert sketch.tolist() == [-7538351, -870772, -594378, -6939220, -3629044, -1962610, 4063203, 8944306]


def test_a_sketched_distance_is_unbiased_and_deviates_by_nine_percent() -> None:
    difference = np.random.default_rng(0).standard_normal(3000)
    true = float(difference @ difference)
    estimates = np.array([float(np.square(Sketch(3000, seed=seed)(difference)).sum()) for seed in range(200)])
    assert _agrees(estimates / true, 1.0)
    assert (estimates / true).std() == pytest.approx(np.sqrt(2 / 256), rel=0.15)


def test_the_spread_of_sketches_estimates_the_spread_of_a_swarm() -> None:
    sketch = Sketch(100_000)
    for values in (_swarm(16, 100_000), np.repeat(_swarm(16, 10), 10_000, axis=1)):
        estimate = mixing.spread_of_sketches([tuple(sketch(row)) for row in values])
        assert estimate == pytest.approx(mixing.squared_spread(values), rel=0.09)


def test_peers_that_almost_agree_are_still_told_apart() -> None:
    size = 2_000_000
    common = np.random.default_rng(1).standard_normal(size)
    values = (1000 * common + 2e-4 * _swarm(4, size)).astype(np.float32)
    sketch = Sketch(size)
    estimate = mixing.spread_of_sketches(np.array([sketch(row) for row in values]))
    assert estimate == pytest.approx(mixing.squared_spread(values), rel=0.2)


def test_consensus_distance_is_the_root_of_the_squared_spread() -> None:
    values = np.array([[0.0, 0.0], [6.0, 8.0]], dtype=np.float32)
    assert mixing.squared_spread(values) == 25
    assert mixing.consensus_distance(values) == 5


def test_a_sketch_refuses_a_model_of_another_size() -> None:
    with pytest.raises(ValueError, match="not \\(4,\\)"):
        Sketch(3)(np.zeros(4))
