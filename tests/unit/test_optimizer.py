"""Optimizers, of torch and of the user's own, their arguments and learning rate, and what is told of them at once."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import pytest
import torch
from torch import nn

from ray_gossip import factory
from ray_gossip.config import OptimizerConfig, dump, load, parse, read_yaml
from ray_gossip.errors import ConfigError
from ray_gossip.training.optimizer import build_optimizer, check_optimizer, lr_factor
from tests.unit.trainers import (
    make_trainer,
    state_of,
    with_batch_norm,
)

OWN = """
import torch


class Signs(torch.optim.SGD):
    def __init__(self, params, lr, scale=1.0, **others):
        super().__init__(params, lr=lr * scale, **others)


def by_dimension(params, decay):
    params = list(params)
    return torch.optim.AdamW([{"params": params[:1], "weight_decay": decay}, {"params": params[1:]}])


def nothing(params):
    pass
"""


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    name = f"own_{tmp_path.name}"
    (tmp_path / f"{name}.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    return name


def test_other_arguments_reach_the_optimizer() -> None:
    config = load(None, ["optimizer.name=AdamW", "optimizer.args={betas: [0.9, 0.98], eps: 1e-6}"]).optimizer
    check_optimizer(config)
    optimizer, notices = build_optimizer(config, nn.Linear(2, 2))
    (group,) = optimizer.param_groups
    assert (tuple(group["betas"]), group["eps"], group["weight_decay"], notices) == ((0.9, 0.98), 1e-6, 5e-4, [])
    optimizer.zero_grad()
    nn.Linear(2, 2)(torch.ones(1, 2)).sum().backward()
    optimizer.step()


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["optimizer.name=sdg"], "optimizer.name=sdg is not in torch.optim; did you mean SGD"),
        (["optimizer.name=LBFGS"], "optimizer.name=LBFGS cannot train here: it evaluates the loss several times"),
        (["optimizer.args={neserov: true}"], "optimizer.args.neserov is unknown to torch.optim.SGD; did you mean nest"),
        (
            ["optimizer.name=AdamW", "optimizer.args={betas: [2, 3]}"],
            "optimizer.args={'betas': [2, 3]}: torch.optim.Ad",
        ),
        (
            ["optimizer.name=AdamW", "optimizer.args={betas: 1}"],
            "optimizer.args={'betas': 1}: torch.optim.AdamW says: ",
        ),
        (
            ["optimizer.momentum=0", "optimizer.args={nesterov: true}"],
            "optimizer.args={'nesterov': True}: torch.optim.",
        ),
    ],
)
def test_what_torch_would_refuse_is_one_line(words: list[str], line: str) -> None:
    config = load(None, words).optimizer
    with pytest.raises(ConfigError) as error:
        check_optimizer(config)
    assert str(error.value).startswith(line)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["optimizer.args={lr: 1}"], "optimizer: args.lr is given to it anyway; leave it out"),
        (
            ["optimizer.args={weight_decay: 1}"],
            "optimizer: args.weight_decay is given to it anyway; leave it out, and set",
        ),
        (["optimizer.name=SGD", "optimizer.factory=a:b"], "optimizer: name=SGD and factory=a:b are both set; keep one"),
        (["optimizer.factory=a.b"], "optimizer: factory=a.b should be package.module:function"),
        (
            ["optimizer.factory=a:b", "gossip.average_momentum=true"],
            "config: gossip.average_momentum needs optimizer.name=SGD with momentum, not a:b with momentum=0.9",
        ),
    ],
)
def test_a_contradiction_is_one_line(words: list[str], line: str) -> None:
    with pytest.raises(ConfigError) as error:
        load(None, words)
    assert str(error.value).startswith(line)


def test_an_optimizer_of_ones_own_gets_the_tensors_the_learning_rate_and_its_arguments(own: str) -> None:
    config = load(None, [f"optimizer.factory={own}:Signs", "optimizer.lr=0.5", "optimizer.args={scale: 0.1}"])
    factory.check(config, how=factory.check_call)
    model = nn.Linear(2, 2)
    optimizer, notices = build_optimizer(config.optimizer, model)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.05)
    assert optimizer.param_groups[0]["params"] == list(model.parameters())
    assert notices == []
    assert parse(read_yaml(dump(config))) == config


def test_a_learning_rate_is_offered_and_a_weight_decay_of_the_config_is_told_to_be_skipped(own: str) -> None:
    words = [f"optimizer.factory={own}:by_dimension", "optimizer.args={decay: 0.3}", "optimizer.weight_decay=0.2"]
    optimizer, notices = build_optimizer(load(None, words).optimizer, nn.Linear(2, 2))
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.3, 0.01]
    assert notices == ["optimizer.weight_decay=0.2 is skipped: a call of optimizer.factory has no weight_decay"]


@pytest.mark.parametrize(
    ("function", "args", "line"),
    [
        (
            "by_dimension",
            "{}",
            "has the parameters (params, decay): missing a required argument: 'decay'; see optimizer.ar",
        ),
        ("by_dimensions", "{}", ": there is no by_dimensions in "),
        (
            "nothing",
            "{x: 1}",
            "has the parameters (params): got an unexpected keyword argument 'x'; see optimizer.args",
        ),
    ],
)
def test_what_is_wrong_with_an_optimizer_of_ones_own_is_one_line(function: str, args: str, line: str, own: str) -> None:
    config = load(None, [f"optimizer.factory={own}:{function}", f"optimizer.args={args}"])
    with pytest.raises(ConfigError, match=r"^optimizer\.factory=own_") as error:
        factory.check(config)
    assert line in str(error.value)


def test_a_function_that_returns_no_optimizer_is_one_line(own: str) -> None:
    with pytest.raises(ConfigError, match=r":nothing returned NoneType, not a torch\.optim\.optimizer\.Optimizer$"):
        build_optimizer(load(None, [f"optimizer.factory={own}:nothing"]).optimizer, nn.Linear(2, 2))


def test_the_schedule_acts_through_a_wrapper_of_the_optimizer() -> None:
    class Wrapper(torch.optim.Optimizer):
        def __init__(self, inner: torch.optim.Optimizer) -> None:
            self.inner = inner

        def step(self, closure: object = None) -> None:  # type: ignore[override]
            self.inner.step()

        def zero_grad(self, set_to_none: bool = True) -> None:
            self.inner.zero_grad(set_to_none)

    wrapped, plain = make_trainer(), make_trainer()
    wrapped.optimizer = Wrapper(wrapped.optimizer)
    for trainer in (wrapped, plain):
        for _ in range(3):
            trainer.step()
    assert wrapped.lr == plain.lr < 0.05
    assert state_of(wrapped).equal(state_of(plain))


@pytest.mark.parametrize("name", ["SGD", "AdamW", "Adam", "RMSprop", "Adagrad", "Adadelta", "NAdam", "ASGD"])
def test_any_optimizer_of_torch_does_local_steps(name: str) -> None:
    trainer = make_trainer(optimizer={"name": name, "lr": 1e-3}, model=with_batch_norm())
    before = state_of(trainer)
    trainer.step()
    assert not state_of(trainer).equal(before)
    assert trainer.notices == []


def test_an_optimizer_gets_the_arguments_that_its_class_has() -> None:
    trainer = make_trainer(optimizer={"name": "RMSprop", "momentum": 0.5, "weight_decay": 0.01})
    assert trainer.optimizer.defaults["momentum"] == 0.5
    assert trainer.optimizer.defaults["weight_decay"] == 0.01


def test_a_skipped_momentum_is_told() -> None:
    trainer = make_trainer(optimizer={"name": "AdamW", "lr": 1e-3, "momentum": 0.5})
    assert trainer.notices == ["optimizer.momentum=0.5 is skipped: torch.optim.AdamW has no momentum"]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("sgd", "did you mean SGD"),
        ("AdamX", "did you mean Adam"),
        ("quux", "there are ASGD, Adadelta"),
        ("Optimizer", "is not in torch.optim"),
        ("LBFGS", "evaluates the loss several times"),
        ("SparseAdam", "sparse gradients"),
    ],
)
def test_an_unusable_optimizer_is_one_line_that_names_the_key(name: str, message: str) -> None:
    with pytest.raises(ConfigError) as error:
        check_optimizer(OptimizerConfig(name=name))
    assert str(error.value).startswith(f"optimizer.name={name} ")
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_the_learning_rate_falls_from_its_highest_to_zero() -> None:
    def factors(schedule: Literal["constant", "cosine", "linear"]) -> list[float]:
        return [lr_factor(step, schedule=schedule, local_steps=4, warmup_steps=0) for step in range(6)]

    assert factors("constant") == [1.0] * 6
    assert factors("linear") == [1.0, 0.75, 0.5, 0.25, 0.0, 0.0]
    assert factors("cosine") == pytest.approx([1.0, (1 + 0.5**0.5) / 2, 0.5, (1 - 0.5**0.5) / 2, 0.0, 0.0])


def test_the_learning_rate_rises_linearly_first() -> None:
    rising = [lr_factor(step, schedule="linear", local_steps=8, warmup_steps=4) for step in range(9)]
    assert rising == [0.25, 0.5, 0.75, 1.0, 1.0, 0.75, 0.5, 0.25, 0.0]
    assert lr_factor(3, schedule="cosine", local_steps=2, warmup_steps=2) == 0.0


def test_momentum_is_averaged_where_the_config_asks_for_it_and_changes_no_local_step() -> None:
    plain, averaging = make_trainer(), make_trainer(gossip={"average_momentum": True})
    for _ in range(5):
        plain.step()
        averaging.step()
    assert all(map(torch.equal, plain.model.parameters(), averaging.model.parameters()))
    flat = torch.empty(averaging.averaged.size)
    averaging.read_state(flat)
    averaging.add_to_state(torch.ones_like(flat))
    after = torch.empty_like(flat)
    averaging.read_state(after)
    torch.testing.assert_close(after, flat + 1)
    buffer = averaging.optimizer.state[next(averaging.model.parameters())]["momentum_buffer"]
    torch.testing.assert_close(buffer.reshape(-1), after[averaging.averaged.num_parameters :][: buffer.numel()])


def test_an_optimizer_takes_the_parameters_that_train() -> None:
    model = with_batch_norm()
    model.get_submodule("1").requires_grad_(False)
    model.register_parameter("codes", nn.Parameter(torch.zeros(3, dtype=torch.uint8), requires_grad=False))
    trainer = make_trainer(model=model)
    before = trainer.model_state()
    trainer.step()
    assert len(trainer.optimizer.param_groups[0]["params"]) == 4
    assert [name for name, value in trainer.model_state().items() if value.equal(before[name])] == [
        *("codes", "1.weight", "1.bias")
    ]
