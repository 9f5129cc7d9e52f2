"""What is averaged of a model, as one vector; and what is not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ray_gossip.errors import UserError
from ray_gossip.training.averaged import ModelState


def vector(state: ModelState) -> Tensor:
    flat = torch.empty(state.size)
    state.read(flat)
    return flat


def names(model: nn.Module) -> list[str]:
    return [part.name for part in ModelState(model).tensors()]


def test_what_training_moves_though_it_is_not_averaged_is_named() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2), nn.Linear(2, 2))
    model[0].register_buffer("codebook", torch.zeros(3))
    model[0].register_buffer("mask", torch.ones(3))
    model[0].register_buffer("cache", torch.zeros(3), persistent=False)
    state = ModelState(model)
    model(torch.randn(4, 2))  # moves statistics, which are averaged, and their count
    model[0].get_buffer("cache").add_(1.0)
    assert state.drifting() == []
    model[0].get_buffer("codebook").add_(0.1)
    assert state.drifting() == ["0.codebook"]
    state.take_rest(state.rest())
    assert state.drifting() == [], "a newcomer begins with the swarm's"


def test_a_model_that_moves_after_its_state_was_made_is_followed() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    state = ModelState(model)
    before = vector(state)
    model._apply(lambda tensor: tensor.detach() + 1)  # type: ignore[no-untyped-call]  # as model.cuda() does
    assert vector(state).equal(before + 1)
    state.add(torch.ones(state.size))
    assert vector(state).equal(before + 1 + 1)
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_a_round_that_took_long_makes_no_variance_negative() -> None:
    """The peers' first round: this one's statistics are those of a new layer in it, and settle while it runs."""
    norm = nn.BatchNorm1d(3)
    model = nn.Sequential(nn.Linear(2, 3), norm)
    state = ModelState(model)
    snapshot, others = vector(state), vector(state)
    others[-3:] = 0.01  # of variance
    for _ in range(50):
        model(0.1 * torch.randn(64, 2))
    assert norm.running_var is not None
    settled = norm.running_var.clone()
    state.add((snapshot + 2 * others) / 3 - snapshot)
    assert norm.running_var.equal(settled)
    assert model.eval()(torch.randn(4, 2)).isfinite().all()
    state.add(torch.full((state.size,), 0.5))
    assert norm.running_var.equal(settled + 0.5)


def test_an_optimizer_that_was_built_before_goes_on_with_what_was_added() -> None:
    model = nn.Linear(3, 4)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    state = ModelState(model)
    state.add(torch.ones(state.size))
    before = model.weight.detach().clone()
    model.weight.grad = torch.ones_like(before)
    optimizer.step()
    assert model.weight.equal(before - 1)


def test_parameters_that_train_come_first_then_running_statistics_then_momentum() -> None:
    model = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3), nn.Linear(3, 2))
    model[2].bias.requires_grad_(False)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    state = ModelState(model, momentum_of=optimizer)
    parameters = ["0.weight", "0.bias", "1.weight", "1.bias", "2.weight"]
    assert [(part.kind, part.name) for part in state.tensors()] == [
        *(("parameter", name) for name in parameters),
        ("statistic", "1.running_mean"),
        ("statistic", "1.running_var"),
        *(("momentum", name) for name in parameters),
    ]
    assert state.num_parameters == 6 + 3 + 3 + 3 + 6
    assert state.size == 2 * state.num_parameters + 6
    assert sum(part.num_bytes for part in state.tensors()) == 4 * state.size


def test_layers_in_evaluation_mode_keep_their_statistics_to_themselves() -> None:
    model = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3), nn.InstanceNorm1d(3, track_running_stats=True))
    model[1].eval()
    assert names(model) == ["0.weight", "0.bias", "1.weight", "1.bias", "2.running_mean", "2.running_var"]


class OwnNorm(nn.Module):
    """Neither torch's nor a subclass of it, but known by what it has."""

    def __init__(self, momentum: float | None) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(2))
        self.register_buffer("running_var", torch.ones(2))
        self.register_buffer("running_mean", torch.zeros(2), persistent=False)
        self.register_buffer("table", torch.arange(4.0))
        if momentum is not None:
            self.momentum = momentum


def test_a_norm_layer_of_ones_own_is_known_by_its_momentum() -> None:
    assert names(OwnNorm(0.1)) == ["scale", "running_var"]
    assert names(OwnNorm(None)) == ["scale"]


def test_frozen_parameters_do_not_travel() -> None:
    model = nn.Sequential(nn.Linear(512, 512), nn.Linear(512, 4), nn.Linear(4, 512))
    model[0].requires_grad_(False)
    assert ModelState(model).size == 512 * 4 + 4 + 4 * 512 + 512


def tied_by_assignment() -> nn.Module:
    model = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False))
    model[1].weight = model[0].weight
    return model


def tied_by_data() -> nn.Module:
    model = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False))
    model[1].weight.data = model[0].weight.data
    return model


def tied_transposed() -> nn.Module:
    model = nn.Sequential(nn.Linear(4, 2, bias=False), nn.Linear(2, 4, bias=False))
    model[1].weight.data = model[0].weight.data.T
    return model


@pytest.mark.parametrize(
    ("tied", "size"),
    [(tied_by_assignment, 16), (tied_by_data, 16), (tied_transposed, 8)],
    ids=["assignment", "data", "transposed"],
)
def test_tied_parameters_are_averaged_once(tied: Callable[[], nn.Module], size: int) -> None:
    model = tied()
    state, before = ModelState(model), [parameter.detach().clone() for parameter in model.parameters()]
    assert state.size == size
    state.add(torch.ones(size))
    assert all(now.equal(then + 1) for now, then in zip(model.parameters(), before, strict=True))


def test_flattened_weights_of_a_recurrent_layer_are_ranges_of_one_storage() -> None:
    model = nn.LSTM(3, 5)
    whole = torch.cat([parameter.detach().flatten() for parameter in model.parameters()])
    pieces = torch.split(whole, [parameter.numel() for parameter in model.parameters()])
    state = ModelState(model)
    for parameter, piece in zip(model.parameters(), pieces, strict=True):
        parameter.data = piece.view_as(parameter)
    assert vector(state).equal(whole)
    assert ModelState(model).layout == state.layout


def test_columns_of_one_matrix_do_not_overlap() -> None:
    whole, model = torch.arange(12.0).view(3, 4), nn.Module()
    model.left, model.right = nn.Parameter(whole[:, :2]), nn.Parameter(whole[:, 2:])
    assert vector(ModelState(model)).tolist() == [0, 1, 4, 5, 8, 9, 2, 3, 6, 7, 10, 11]


def broken(name: str) -> Any:
    model: Any = nn.Linear(4, 4)
    memory = torch.zeros(20)
    match name:
        case "expanded":
            model.weight = nn.Parameter(torch.ones(4).expand(4, 4))
        case "overlapping":
            model.weight, model.bias = nn.Parameter(memory[:16].view(4, 4)), nn.Parameter(memory[14:18])
        case "half precision":
            model.weight = nn.Parameter(torch.zeros(4, 4, dtype=torch.float16))
        case "complex":
            model.weight = nn.Parameter(torch.zeros(4, 4, dtype=torch.complex64))
        case "frozen":
            model.requires_grad_(False)
        case "lazy":
            model = nn.LazyLinear(3)
        case "sparse":
            model.weight = nn.Parameter(torch.eye(4).to_sparse())
    return model


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("expanded", "elements of weight share memory, so it cannot be averaged: give it memory of its own, .clone()"),
        ("overlapping", "weight and bias share some memory: tie them whole, bias = weight, or not at all"),
        ("half precision", "weight is torch.float16, but float32 is what is averaged; for faster steps use autocast"),
        ("complex", "weight is torch.complex64, but float32 is what is averaged"),
        ("frozen", "there are no parameters to train"),
        ("lazy", "weight has no shape yet: run a forward pass first"),
        ("sparse", "weight is sparse, but dense parameters are what is averaged"),
    ],
)
def test_what_cannot_be_averaged_is_one_line_with_its_name(name: str, message: str) -> None:
    with pytest.raises(UserError) as error:
        ModelState(broken(name))
    assert str(error.value).startswith(message)
    assert "\n" not in str(error.value)


def change(name: str, model: Any) -> None:
    match name:
        case "grown":
            model[0].weight = nn.Parameter(torch.zeros(5, 3))
        case "narrowed":
            model.half()
        case "gone":
            del model[0].bias
        case "unfrozen":
            model[2].weight.requires_grad_(True)
        case "new":
            model.scale = nn.Parameter(torch.ones(1))
        case "training":
            model[3].train()
        case "tied":
            model[5].weight.data = model[0].weight.data
        case "untied":
            model[4].weight.data = model[0].weight.data.clone()
        case "expanded":
            model[0].bias.data = torch.ones(1).expand(4)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("grown", "0.weight is [5, 3] torch.float32, but was [4, 3] torch.float32 when this peer joined"),
        ("narrowed", "0.weight is [4, 3] torch.float16, but was [4, 3] torch.float32 when this peer joined"),
        ("gone", "0.bias is gone, but was [4] torch.float32 when this peer joined"),
        ("unfrozen", "2.weight is not averaged, because it did not train when this peer joined: unfreeze it before"),
        ("new", "scale is not averaged, because it did not train when this peer joined"),
        ("training", "3.running_mean is not averaged, because it did not train when this peer joined: call model"),
        ("tied", "0.weight and 5.weight share some memory"),
        ("untied", "4.weight no longer shares memory with 0.weight: tie them by assigning the parameter itself"),
        ("expanded", "elements of 0.bias share memory"),
    ],
)
def test_a_model_that_changes_after_its_peer_joined_is_one_line_and_nothing_is_added(name: str, message: str) -> None:
    model: Any = nn.Sequential(
        *(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 4), nn.BatchNorm1d(4, affine=False), nn.Linear(3, 4)),
        nn.Linear(3, 4),
    )
    model[2].requires_grad_(False)
    model[3].eval()
    model[4].weight.data = model[0].weight.data
    state = ModelState(model)
    change(name, model)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    for act in (state.read, state.add, state.write):
        with pytest.raises(UserError) as error:
            act(torch.ones(state.size))
        assert message in str(error.value)
        assert "\n" not in str(error.value)
    assert all(before[key].equal(value) for key, value in model.state_dict().items())


def test_what_is_frozen_or_put_into_evaluation_later_stays_part_of_the_vector() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    state = ModelState(model)
    before = vector(state)
    model[0].requires_grad_(False)
    model.eval()
    state.add(torch.ones(state.size))
    assert vector(state).equal(before + 1)


def test_peers_with_other_names_shapes_or_types_have_another_layout() -> None:
    models = [nn.Linear(3, 4), nn.Linear(4, 3), nn.Linear(3, 4, bias=False), nn.Sequential(nn.Linear(3, 4))]
    assert len({ModelState(model).layout for model in models}) == 4
    assert ModelState(nn.Linear(3, 4)).layout == ModelState(nn.Linear(3, 4)).layout
    frozen = nn.Linear(3, 4)
    frozen.bias.requires_grad_(False)
    assert ModelState(frozen).layout == ModelState(nn.Linear(3, 4, bias=False)).layout  # what does not travel is free


class Frozen(nn.Module):
    """A head that trains on a body that does not."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(2, 2)
        self.body = nn.Parameter(torch.randn(3), requires_grad=False)
        self.register_buffer("perm", torch.randperm(5))
        self.register_buffer("mask", torch.full((2, 2), -torch.inf), persistent=False)

    perm: Tensor
    mask: Tensor


def test_a_newcomer_takes_over_the_rest_and_nothing_of_it_is_averaged() -> None:
    donor, newcomer = Frozen(), Frozen()
    donor.mask[0, 0] = 0.0
    theirs, mine = ModelState(donor), ModelState(newcomer)
    before = vector(mine)
    mine.take_rest(theirs.rest())
    assert newcomer.body.equal(donor.body)
    assert newcomer.perm.equal(donor.perm)
    assert newcomer.mask.equal(donor.mask)
    assert vector(mine).equal(before)
    assert theirs.rest()["body"].data_ptr() != donor.body.data_ptr()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("missing", "body is [3] torch.float32 here and is missing in the swarm: use the same model"),
        ("longer", "body is [3] torch.float32 here and is [4] torch.float32 in the swarm"),
        ("integers", "perm is [5] torch.int64 here and is [5] torch.int32 in the swarm"),
    ],
)
def test_a_rest_that_does_not_fit_is_one_line_and_nothing_is_taken(name: str, message: str) -> None:
    donor, newcomer = Frozen(), Frozen()
    rest = ModelState(donor).rest()
    match name:
        case "missing":
            del rest["body"]
        case "longer":
            rest["body"] = torch.zeros(4)
        case "integers":
            rest["perm"] = rest["perm"].int()
    before = {key: value.clone() for key, value in newcomer.state_dict().items()}
    with pytest.raises(UserError, match=message.replace("[", r"\[").replace("]", r"\]")):
        ModelState(newcomer).take_rest(rest)
    assert all(before[key].equal(value) for key, value in newcomer.state_dict().items())


def test_a_buffer_that_only_one_of_two_peers_has_made_so_far_is_passed_over() -> None:
    donor, newcomer = Frozen(), Frozen()
    donor.register_buffer("position", torch.arange(4.0), persistent=False)
    newcomer.register_buffer("cache", torch.arange(3.0), persistent=False)
    ModelState(newcomer).take_rest(ModelState(donor).rest())
    assert not hasattr(newcomer, "position")
    assert newcomer.get_buffer("cache").tolist() == [0, 1, 2]


def test_peers_begin_alike_if_they_compute_alike_whatever_they_have_seen() -> None:
    def made() -> Any:
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), Frozen())

    one, other = made(), made()
    other[1](torch.randn(8, 4))  # a forward pass moves statistics and counts
    digest = ModelState(one).digest()
    assert ModelState(other).digest() == digest
    other[1].eval()
    assert ModelState(other).digest() != digest, "in evaluation mode, statistics are constants that count"
    for name, tensor in [*one.named_parameters(), *one.named_buffers()]:
        before = tensor.detach().clone()
        tensor.data.view(-1)[0] += 1
        counts = name not in ("1.running_mean", "1.running_var", "1.num_batches_tracked", "2.mask")
        assert (ModelState(one).digest() != digest) == counts, name
        tensor.data.copy_(before)
