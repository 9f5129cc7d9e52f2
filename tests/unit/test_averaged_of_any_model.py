"""What holds for every model, composed of what people put into theirs."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.utils import parametrizations, spectral_norm

from ray_gossip.tensor_memory import bytes_of
from ray_gossip.training.averaged import ModelState
from tests import zoo

DTYPES = [
    *(torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64),
    *(torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.complex64),
]

NORM = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")

# A part of a model, and the names of what is averaged of it.
Made = tuple[nn.Module, list[str]]


def buffer(dtype: torch.dtype, persistent: bool) -> Made:
    module = nn.Module()
    module.register_buffer("table", torch.randint(0, 2, (2, 3)).to(dtype), persistent=persistent)
    return module, []


def mask(persistent: bool) -> Made:
    module = nn.Module()
    module.register_buffer("mask", torch.full((3, 3), -torch.inf).triu(1), persistent=persistent)
    return module, []


def expanded() -> Made:
    module = nn.Module()
    module.register_buffer("eye", torch.randn(2, 2).expand(3, 2, 2))
    return module, []


def lazily_made() -> Made:
    module = nn.Module()
    module.register_buffer("cache", None, persistent=False)
    return module, []


def sparse() -> Made:
    module = nn.Module()
    module.register_buffer("graph", torch.eye(3).to_sparse() * torch.rand(1).item())
    return module, []


def quantised() -> Made:
    module = nn.Module()
    module.codes = nn.Parameter(torch.randint(0, 255, (5,), dtype=torch.uint8), requires_grad=False)
    return module, []


def empty() -> Made:
    module = nn.Module()
    module.nothing = nn.Parameter(torch.empty(0, 3))
    return module, []


def linear() -> Made:
    return nn.Linear(2, 3), ["weight", "bias"]


def scalar() -> Made:
    module = nn.Module()
    module.scale = nn.Parameter(torch.randn(()))
    return module, ["scale"]


def frozen() -> Made:
    return nn.Linear(2, 3).requires_grad_(False), []


def strided() -> Made:
    module = nn.Module()
    module.turned, module.sparse = nn.Parameter(torch.randn(2, 3).T), nn.Parameter(torch.randn(3, 4)[:, ::2])
    return module, ["turned", "sparse"]


def recurrent() -> Made:
    return nn.GRU(2, 2), ["weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0"]


def tied(how: str) -> Made:
    first, second = nn.Linear(3, 2, bias=False), nn.Linear(3, 2, bias=False)
    match how:
        case "assignment":
            second.weight = first.weight
        case "data":
            second.weight.data = first.weight.data
        case "transposed":
            second.weight.data = first.weight.data.T
        case "frozen":  # what trains decides
            second.weight.data = first.weight.data
            first.requires_grad_(False)
    return nn.Sequential(first, second), ["1.weight" if how == "frozen" else "0.weight"]


def normed(make: Callable[[], nn.Module], statistics: list[str], in_evaluation: bool) -> Made:
    norm = make()
    for name, tensor in norm.named_buffers():
        tensor.copy_(torch.rand(()) + 1 if name != "num_batches_tracked" else torch.randint(1, 9, ()))
    norm.train(not in_evaluation)
    return norm, [*dict(norm.named_parameters()), *([] if in_evaluation else statistics)]


def instance_norm() -> nn.Module:
    return nn.InstanceNorm2d(2, affine=True, track_running_stats=True)


def double_norm() -> nn.Module:
    return nn.BatchNorm1d(2, affine=False).double()


def parametrized(norm: Callable[[nn.Module], nn.Module]) -> Made:
    module = norm(nn.Linear(3, 2))
    return module, list(dict(module.named_parameters()))


def adapters() -> Made:
    module = nn.Module()
    module.base = nn.Linear(4, 4).requires_grad_(False)
    module.down, module.up = nn.Linear(4, 1, bias=False), nn.Linear(1, 4, bias=False)
    return module, ["down.weight", "up.weight"]


STATISTICS = ["running_mean", "running_var"]
WITH_STATISTICS = [partial(nn.BatchNorm2d, 2), instance_norm, double_norm]
WITHOUT = [partial(nn.GroupNorm, 1, 2), partial(nn.LayerNorm, 2)]
UNVARIED = [expanded, lazily_made, sparse, quantised, empty, linear, scalar, frozen, strided, recurrent, adapters]
PIECES = st.one_of(
    st.builds(partial, st.just(buffer), st.sampled_from(DTYPES), st.booleans()),
    st.builds(partial, st.just(mask), st.booleans()),
    st.builds(partial, st.just(tied), st.sampled_from(["assignment", "data", "transposed", "frozen"])),
    st.builds(partial, st.just(normed), st.sampled_from(WITH_STATISTICS), st.just(STATISTICS), st.booleans()),
    st.builds(partial, st.just(normed), st.sampled_from(WITHOUT), st.just([]), st.booleans()),
    st.builds(
        partial,
        st.just(parametrized),
        st.sampled_from([parametrizations.spectral_norm, parametrizations.weight_norm, spectral_norm]),
    ),
    st.sampled_from(UNVARIED),
)
Recipe = Sequence[Callable[[], Made]]
RECIPES: st.SearchStrategy[Recipe] = st.lists(PIECES, min_size=1, max_size=6).filter(
    lambda recipe: any(part.kind == "parameter" for part in parts_of(recipe))
)


calmly = settings(deadline=None)  # a busy machine may stand still


class Expected(NamedTuple):
    """A tensor that is averaged, and of which kind."""

    name: str
    kind: str


def parts_of(recipe: Recipe) -> list[Expected]:
    """What is averaged of such a model: parameters, then statistics."""
    names = [f"{index}.{name}" for index, make in enumerate(recipe) for name in make()[1]]
    kinds = ["statistic" if name.endswith(tuple(STATISTICS)) else "parameter" for name in names]
    return sorted(map(Expected, names, kinds), key=lambda part: part.kind)


def is_tied(make: Callable[[], Made]) -> bool:
    return isinstance(make, partial) and make.func is tied


def build(recipe: Recipe, seed: int) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(*(make()[0] for make in recipe))


def values(model: nn.Module) -> dict[str, bytes]:
    """All parameters and buffers, bit for bit."""
    named = [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]
    return {name: bytes_of(tensor) for name, tensor in named}


def vector(state: ModelState) -> Tensor:
    flat = torch.full((state.size,), torch.nan)
    state.read(flat)
    return flat


def average(states: Sequence[ModelState]) -> Tensor:
    """A round: each adds the difference between the mean and its own."""
    snapshots = [vector(state) for state in states]
    mean = torch.stack(snapshots).mean(0)
    for state, snapshot in zip(states, snapshots, strict=True):
        state.add(mean - snapshot)
    return mean


@calmly
@given(RECIPES)
def test_the_rule_names_what_is_averaged_and_how_many_bytes_it_has(recipe: Recipe) -> None:
    state, expected = ModelState(build(recipe, 0)), parts_of(recipe)
    assert [(part.name, part.kind) for part in state.tensors()] == expected
    assert sum(part.num_bytes for part in state.tensors()) == 4 * state.size
    parameters = [part.num_bytes for part in state.tensors() if part.kind == "parameter"]
    assert sum(parameters) == 4 * state.num_parameters
    assert ModelState(build(recipe, 1)).layout == state.layout


@calmly
@given(RECIPES)
def test_identical_peers_that_average_stay_bit_for_bit_as_they_are(recipe: Recipe) -> None:
    models = [build(recipe, 0), build(recipe, 0)]
    before = values(models[0])
    average([ModelState(model) for model in models])
    assert values(models[0]) == values(models[1]) == before


@calmly
@given(RECIPES)
def test_peers_that_average_agree_and_what_is_not_averaged_is_untouched(recipe: Recipe) -> None:
    models = [build(recipe, seed) for seed in range(3)]
    states, before = [ModelState(model) for model in models], [values(model) for model in models]
    mean = average(states)
    averaged = {part.name for part in parts_of(recipe)}
    both = {f"{index}.{half}.weight" for index, make in enumerate(recipe) for half in "01" if is_tied(make)}
    for model, state, then in zip(models, states, before, strict=True):
        torch.testing.assert_close(vector(state), mean)
        now = values(model)
        for name in then.keys() - averaged - both:
            assert now[name] == then[name], name


@calmly
@given(RECIPES, st.integers(0, 100))
def test_a_vector_that_is_written_or_added_is_read_again(recipe: Recipe, seed: int) -> None:
    state = ModelState(build(recipe, 0))
    written, added = torch.randn(2, state.size, generator=torch.Generator().manual_seed(seed))
    state.write(written)
    assert vector(state).equal(written)
    state.add(added)
    is_variance = torch.cat(
        [torch.full((part.num_bytes // 4,), part.name.endswith("running_var")) for part in state.tensors()]
    )
    stays = is_variance & (written + added < 0)
    torch.testing.assert_close(vector(state), torch.where(stays, written, written + added))


@calmly
@given(RECIPES)
def test_momentum_is_averaged_for_every_parameter_that_the_optimizer_steps(recipe: Recipe) -> None:
    model = build(recipe, 0)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.SGD(trained, lr=0.1, momentum=0.9)
    plain, state = ModelState(model), ModelState(model, momentum_of=optimizer)
    for parameter in trained:
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    before = vector(state)
    assert (before[plain.size :] == 1).all()
    assert state.size == plain.size + sum(parameter.numel() for parameter in trained)
    state.add(torch.ones(state.size))
    assert vector(state).equal(before + 1)
    assert all((optimizer.state[parameter]["momentum_buffer"] == 2).all() for parameter in trained)


@calmly
@given(RECIPES)
def test_a_newcomer_that_takes_over_vector_and_rest_holds_what_the_donor_holds(recipe: Recipe) -> None:
    donor, newcomer = build(recipe, 0), build(recipe, 1)
    for model, is_donor in ((donor, True), (newcomer, False)):
        for module in model.modules():
            if is_donor and "cache" in module._buffers:
                module.register_buffer("cache", torch.ones(3), persistent=False)
    theirs, mine = ModelState(donor), ModelState(newcomer)
    mine.take_rest(theirs.rest())
    mine.write(vector(theirs))
    assert mine.digest() == theirs.digest()
    here = values(newcomer)
    rounded = {name for name, tensor in donor.named_buffers() if "running" in name and tensor.dtype == torch.float64}
    assert {name: value for name, value in here.items() if name not in rounded} == {
        name: value for name, value in values(donor).items() if name in here and name not in rounded
    }


@pytest.mark.filterwarnings("ignore:Validating sparse tensor invariants")
@calmly
@given(RECIPES)
def test_a_rest_survives_the_way_to_another_process(recipe: Recipe) -> None:
    rest, buffer = ModelState(build(recipe, 0)).rest(), io.BytesIO()
    torch.save(rest, buffer)
    buffer.seek(0)
    loaded = torch.load(buffer, weights_only=True)
    assert {name: bytes_of(tensor) for name, tensor in loaded.items()} == {
        name: bytes_of(tensor) for name, tensor in rest.items()
    }


@pytest.mark.parametrize(
    ("kind", "size", "rest"),
    [
        (zoo.Masked, 4746, {"mask"}),
        (zoo.Growing, 4746, set()),
        (zoo.Expanded, 4746, {"eye"}),
        (zoo.Quantised, 4746, {"codes"}),
        (zoo.TiedByData, 4746, set()),
        (zoo.NumpyInit, 4746, set()),
        (zoo.Frozen, 650, {"body.1.weight", "body.1.bias", *(f"norm.{name}" for name in NORM)}),
    ],
)
def test_models_as_people_have_them_average_what_trains(kind: type[nn.Module], size: int, rest: set[str]) -> None:
    state = ModelState(kind((1, 8, 8), 10).train())
    assert state.size == state.num_parameters == size
    assert set(state.rest()) == rest


def test_a_buffer_that_appears_in_the_first_forward_pass_changes_nothing() -> None:
    model = zoo.Growing((1, 8, 8), 10)
    state = ModelState(model)
    before = vector(state)
    model(torch.zeros(2, 1, 8, 8))
    assert vector(state).equal(before)
    assert set(state.rest()) == {"positions"}


def test_weights_that_no_seed_reaches_are_found_by_their_digest() -> None:
    first, second = (ModelState(zoo.NumpyInit((1, 8, 8), 10)) for _ in range(2))
    assert first.digest() != second.digest()
    second.write(vector(first))
    assert first.digest() == second.digest()
