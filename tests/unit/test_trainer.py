"""Local SGD on one device."""

from __future__ import annotations

import copy
import io
import itertools
import math
from collections.abc import Iterator
from functools import partial
from typing import Any, Literal

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ray_gossip import data, models
from ray_gossip.config import Config, DataConfig, OptimizerConfig, parse
from ray_gossip.errors import ConfigError
from ray_gossip.optimizer import check_optimizer, lr_factor
from ray_gossip.trainer import Trainer

CPU = torch.device("cpu")
DIGITS = data.load(DataConfig())
EVERYTHING = torch.arange(DIGITS.num_train)


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """A network this small trains faster on one thread than on several that share busy cores."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def build_model(config: Config) -> nn.Module:
    return models.build(config.model, in_shape=DIGITS.in_shape, num_classes=10, seed=config.seed)


def make_trainer(
    *, shard: Tensor = EVERYTHING, model: nn.Module | None = None, device: torch.device = CPU, **sections: Any
) -> Trainer:
    config = parse(sections)
    model = model or build_model(config)
    return Trainer(config, model=model, dataset=DIGITS, shard=shard, device=device)


def with_batch_norm() -> nn.Module:
    """Parameters, floating-point buffers, and one integer buffer."""
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 10))


def state_of(trainer: Trainer) -> Tensor:
    flat = torch.empty(trainer.averaged.size)
    trainer.read_state(flat)
    return flat


@pytest.mark.parametrize("schedule", ["constant", "cosine"])
def test_one_peer_with_no_averaging_equals_plain_pytorch_sgd_bit_for_bit(
    schedule: Literal["constant", "cosine"],
) -> None:
    num_steps, lr, momentum, weight_decay = 50, 0.03, 0.8, 1e-3
    config = parse(
        {
            "optimizer": {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "schedule": schedule},
            "train": {"local_steps": num_steps},
        }
    )
    shard = data.deal(DIGITS.train_labels, 4, seed=config.seed)[2]
    trainer = Trainer(config, model=build_model(config), dataset=DIGITS, shard=shard, device=CPU)
    for _ in range(num_steps):
        trainer.step()

    model = build_model(config)
    sgd = torch.optim.SGD(model.parameters(), lr=lr, momentum=momentum, weight_decay=weight_decay)
    batches = data.Batches(
        DIGITS.train_inputs[shard], DIGITS.train_labels[shard], batch_size=32, seed=config.seed, device=CPU
    )
    for step, (images, labels) in enumerate(itertools.islice(batches, num_steps)):
        if schedule == "cosine":
            sgd.param_groups[0]["lr"] = lr * (1 + math.cos(math.pi * step / num_steps)) / 2
        sgd.zero_grad()
        loss: Any = nn.CrossEntropyLoss()(model(images), labels)
        loss.backward()
        sgd.step()

    assert all(map(torch.equal, trainer.model.parameters(), model.parameters()))
    assert not any(map(torch.equal, trainer.model.parameters(), build_model(config).parameters()))


@pytest.mark.parametrize(("num_shards", "at_least"), [(1, 0.97), (4, 0.93)])
def test_a_cnn_alone_learns_digits_in_400_steps(num_shards: int, at_least: float) -> None:
    trainer = make_trainer(shard=data.deal(DIGITS.train_labels, num_shards, seed=0)[0])
    for _ in range(400):
        trainer.step()
    accuracy, loss = trainer.evaluate()
    assert accuracy >= at_least
    assert loss < 0.25
    assert trainer.take_progress().loss < 0.5


def test_progress_counts_and_its_mean_loss_starts_afresh() -> None:
    trainer = make_trainer(shard=torch.arange(64), optimizer={"lr": 0.1}, train={"local_steps": 10})
    same_batches = make_trainer(shard=torch.arange(64)).batches
    losses = []
    for images, labels in itertools.islice(same_batches, 3):
        losses.append(F.cross_entropy(trainer.model(images), labels).item())
        trainer.step()
        if trainer.local_step == 1:
            assert trainer.take_progress().loss == pytest.approx(losses[0], rel=1e-5)
    progress = trainer.take_progress()
    assert progress.loss == pytest.approx((losses[1] + losses[2]) / 2, rel=1e-5)
    assert (progress.local_step, progress.samples, progress.data_epoch) == (3, 96, 1.5)
    assert progress.lr == pytest.approx(0.1 * lr_factor(3, schedule="cosine", local_steps=10, warmup_steps=0))
    assert progress.samples_per_s > 0


def test_progress_without_a_local_step_has_no_loss() -> None:
    progress = make_trainer().take_progress()
    assert math.isnan(progress.loss)
    assert (progress.local_step, progress.samples_per_s) == (0, 0.0)


def test_evaluation_does_not_change_training() -> None:
    evaluated, plain = make_trainer(), make_trainer()
    for _ in range(5):
        evaluated.step()
        plain.step()
        evaluated.evaluate()
    assert state_of(evaluated).equal(state_of(plain))
    assert evaluated.model.training


def test_evaluation_leaves_batch_norm_statistics_alone() -> None:
    trainer = make_trainer(model=with_batch_norm())
    trainer.step()
    before = trainer.model_state()
    trainer.evaluate()
    assert all(map(torch.equal, before.values(), trainer.model_state().values()))
    assert trainer.model.training


def test_evaluation_gives_the_accuracy_and_mean_loss_of_the_test_split() -> None:
    trainer = make_trainer()
    logits = trainer.model(DIGITS.test_inputs)
    accuracy, loss = trainer.evaluate()
    assert accuracy == pytest.approx((logits.argmax(1) == DIGITS.test_labels).float().mean().item())
    assert loss == pytest.approx(F.cross_entropy(logits, DIGITS.test_labels).item(), rel=1e-5)


def test_an_evaluation_on_fewer_samples_takes_them_from_the_whole_test_split() -> None:
    trainer = make_trainer(train={"eval_samples": 100})
    chosen = [index * len(DIGITS.test_labels) // 100 for index in range(100)]
    logits = trainer.model(DIGITS.test_inputs[chosen])
    assert trainer.evaluate()[1] == pytest.approx(F.cross_entropy(logits, DIGITS.test_labels[chosen]).item(), rel=1e-5)
    assert make_trainer(train={"eval_samples": 10**6}).evaluate() == make_trainer().evaluate()


def test_a_state_that_is_written_is_read_again() -> None:
    trainer = make_trainer(model=with_batch_norm())
    written = torch.randn(trainer.averaged.size)
    trainer.write_state(written)
    assert state_of(trainer).equal(written)
    named = trainer.model.state_dict()
    parts = trainer.averaged.tensors()
    for part, piece in zip(parts, torch.split(written, [part.num_bytes // 4 for part in parts]), strict=True):
        assert named[part.name].equal(piece.view(part.shape))


def test_a_delta_is_added_to_every_element_of_the_state() -> None:
    trainer = make_trainer(model=with_batch_norm())
    before, delta = state_of(trainer), torch.randn(trainer.averaged.size)
    trainer.add_to_state(delta)
    assert state_of(trainer).equal(before + delta)
    assert all(parameter.requires_grad for parameter in trainer.model.parameters())


def test_a_state_that_was_read_does_not_follow_training() -> None:
    trainer = make_trainer()
    before = state_of(trainer)
    copy = before.clone()
    trainer.step()
    assert before.equal(copy)
    assert not state_of(trainer).equal(copy)


def test_counters_of_batches_stay_each_peers_own() -> None:
    trainer = make_trainer(model=with_batch_norm())
    trainer.step()
    trainer.write_state(torch.zeros(trainer.averaged.size))
    assert trainer.model_state()["2.num_batches_tracked"].item() == 1


def test_a_saved_model_loads_with_plain_torch() -> None:
    trainer = make_trainer(model=with_batch_norm())
    buffer = io.BytesIO()
    torch.save(trainer.model_state(), buffer)
    trainer.step()
    buffer.seek(0)
    fresh = with_batch_norm()
    fresh.load_state_dict(torch.load(buffer, weights_only=True))
    assert fresh.state_dict()["2.num_batches_tracked"].item() == 0
    assert not next(fresh.parameters()).equal(next(trainer.model.parameters()))


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


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.filterwarnings("ignore:Synchronization debug mode is a prototype")
def test_a_local_step_never_waits_for_the_gpu() -> None:
    augmented = parse({"data": {"augment": "standard"}, "train": {"precision": "bf16"}, "model": {"name": "resnet20"}})
    model = models.build(augmented.model, in_shape=(3, 32, 32), num_classes=10, seed=0)
    cuda = torch.device("cuda")
    for trainer in (
        make_trainer(device=cuda),
        Trainer(augmented, model=model, dataset=in_colour(), shard=torch.arange(100), device=cuda),
    ):
        trainer.step()
        torch.cuda.set_sync_debug_mode("error")
        try:
            for _ in range(100):
                trainer.step()
        finally:
            torch.cuda.set_sync_debug_mode("default")
        assert math.isfinite(trainer.take_progress().loss)


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


def in_colour(num_train: int = 120, num_test: int = 40) -> data.Dataset:
    """Images in uint8 whose brightness tells their class."""
    generator = torch.Generator().manual_seed(0)

    def split(number: int) -> tuple[Tensor, Tensor]:
        labels = torch.arange(number) % 10
        noise = torch.randint(0, 20, (number, 3, 32, 32), generator=generator)
        return (noise + 20 * labels.view(-1, 1, 1, 1)).to(torch.uint8), labels

    (train_inputs, train_labels), (test_inputs, test_labels) = split(num_train), split(num_test)
    return data.Dataset(
        train_inputs=train_inputs,
        train_labels=train_labels,
        test_inputs=test_inputs,
        test_labels=test_labels,
        num_classes=10,
        scale=data.Scale(mean=(0.4, 0.4, 0.4), std=(0.25, 0.25, 0.25)),
    )


def test_inputs_in_bytes_are_normalised_for_training_and_for_evaluation() -> None:
    dataset = in_colour()
    config = parse(
        {"data": {"augment": "standard", "cutout": 4}, "train": {"local_steps": 60}, "optimizer": {"lr": 0.1}}
    )
    model = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 64), nn.ReLU(), nn.Linear(64, 10))
    trainer = Trainer(config, model=model, dataset=dataset, shard=torch.arange(100), device=CPU)
    seen: list[Tensor] = []
    trainer.model.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0]))
    before = trainer.evaluate()[1]
    for _ in range(60):
        trainer.step()
    assert trainer.evaluate()[1] < 0.8 * before
    assert all(images.dtype == torch.float32 and images.abs().max() < 3 for images in seen)
    assert seen[0].mean().abs() < 0.2


@pytest.mark.parametrize(("optimizer", "average_momentum"), [("SGD", False), ("SGD", True), ("AdamW", False)])
def test_who_goes_on_from_a_snapshot_takes_the_same_steps_as_if_there_had_been_no_break(
    optimizer: str, average_momentum: bool
) -> None:
    sections: dict[str, Any] = {
        "optimizer": {"name": optimizer, "lr": 0.01},
        "gossip": {"average_momentum": average_momentum},
        "data": {"batch_size": 64, "augment": "standard"},
        "train": {"local_steps": 50},
    }
    shard = EVERYTHING[:200]  # so that there are several passes over it
    first = make_trainer(shard=shard, model=with_batch_norm(), **sections)
    for _ in range(11):
        first.step()
    snapshot = first.snapshot()

    second = make_trainer(shard=shard, model=with_batch_norm(), **sections)
    second.load(snapshot)
    assert (second.local_step, second.samples, second.lr) == (11, first.samples, first.lr)
    for _ in range(9):
        first.step()
        second.step()
    for mine, theirs in zip(second.model.state_dict().values(), first.model.state_dict().values(), strict=True):
        assert torch.equal(mine, theirs)
    flats = [torch.empty(first.averaged.size) for _ in range(2)]
    for trainer, flat in zip((first, second), flats, strict=True):
        trainer.read_state(flat)
    assert torch.equal(*flats)


def test_who_goes_on_from_a_snapshot_does_so_under_its_own_hyperparameters() -> None:
    first = make_trainer(optimizer={"lr": 0.1, "momentum": 0.0, "schedule": "linear"}, train={"local_steps": 20})
    for _ in range(5):
        first.step()
    second = make_trainer(optimizer={"lr": 0.02, "schedule": "linear"}, train={"local_steps": 20})
    second.load(first.snapshot())
    assert second.lr == pytest.approx(0.02 * 15 / 20)
    second.step()
    assert second.optimizer.param_groups[0]["momentum"] == 0.9


def test_bf16_trains_in_half_precision_and_keeps_a_state_of_float32() -> None:
    trainer, exact = make_trainer(train={"precision": "bf16"}), make_trainer()
    types: list[torch.dtype] = []
    trainer.model.register_forward_hook(lambda module, inputs, output: types.append(output.dtype))
    for _ in range(30):
        trainer.step()
        exact.step()
    assert set(types) == {torch.bfloat16}
    assert all(tensor.dtype == torch.float32 for tensor in trainer.model.parameters())
    assert trainer.take_progress().loss == pytest.approx(exact.take_progress().loss, rel=0.05)
    assert trainer.evaluate()[0] == pytest.approx(exact.evaluate()[0], abs=0.1)


def test_a_compiled_model_takes_the_same_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))  # the others need a C++ compiler
    compiled, plain = make_trainer(train={"compile": True}), make_trainer()
    for _ in range(3):
        compiled.step()
        plain.step()
    assert state_of(compiled).equal(state_of(plain))
    assert compiled.evaluate() == plain.evaluate()
    assert compiled.model_state().keys() == plain.model_state().keys()


def test_a_state_in_channels_last_is_read_and_written_in_the_order_of_the_model() -> None:
    plain, last = make_trainer(), make_trainer()
    last.model.to(memory_format=torch.channels_last)
    written = torch.randn(plain.averaged.size)
    for trainer in (plain, last):
        trainer.write_state(written)
        trainer.add_to_state(torch.ones_like(written))
    assert not last.model[2].weight.is_contiguous()  # type: ignore[index]
    assert state_of(last).equal(state_of(plain))
    assert all(map(torch.equal, last.model.parameters(), plain.model.parameters()))


def test_statistics_are_the_mean_of_the_peers_unless_they_are_measured_afresh() -> None:
    assert make_trainer().settle_statistics() == "none"
    averaged = make_trainer(model=with_batch_norm(), train={"recalibrate_samples": 0})
    before = averaged.model_state()
    assert averaged.settle_statistics() == "averaged"
    assert all(map(torch.equal, before.values(), averaged.model_state().values()))

    fresh = make_trainer(model=with_batch_norm(), train={"recalibrate_samples": 300}, seed=5)
    for _ in range(20):
        fresh.step()
    assert fresh.settle_statistics() == "recalibrated"
    chosen = torch.randperm(DIGITS.num_train, generator=torch.Generator().manual_seed(5))[:300]
    linear, norm = fresh.model[1], fresh.model[2]  # type: ignore[index]
    features = linear(DIGITS.train_inputs[chosen].flatten(1)).detach()
    torch.testing.assert_close(norm.running_mean, features.mean(0))
    torch.testing.assert_close(norm.running_var, features.var(0))
    assert fresh.model.training
    assert norm.momentum == 0.1


def test_peers_with_other_shards_measure_the_same_statistics() -> None:
    model = with_batch_norm()
    first, second = (
        make_trainer(model=copy.deepcopy(model), shard=shard, train={"recalibrate_samples": 100})
        for shard in (torch.arange(100), torch.arange(500, 700))
    )
    for trainer in (first, second):
        trainer.settle_statistics()
    assert state_of(first).equal(state_of(second))


def test_samples_to_measure_statistics_are_skipped_where_there_are_none() -> None:
    trainer = make_trainer(train={"recalibrate_samples": 100})
    assert trainer.notices == ["train.recalibrate_samples=100 is skipped: the model has no BatchNorm in training mode"]


@pytest.mark.parametrize("shards", ["iid", "dirichlet"])
def test_a_merged_model_with_batch_norm_is_no_worse_than_its_peers(shards: Literal["iid", "dirichlet"]) -> None:
    config = parse(
        {
            "data": {"shards": shards, "dirichlet_alpha": 0.3},
            "model": {"name": "resnet20"},
            "train": {"local_steps": 12, "recalibrate_samples": 500},
        }
    )
    dealt = data.deal(DIGITS.train_labels, 4, config=config.data, seed=0)
    peers = [Trainer(config, model=build_model(config), dataset=DIGITS, shard=shard, device=CPU) for shard in dealt]
    for _ in range(2):
        for peer in peers:
            for _ in range(6):
                peer.step()
        accuracies = [peer.evaluate()[0] for peer in peers]
        mean = torch.stack([state_of(peer) for peer in peers]).mean(0)
        for peer in peers:
            peer.write_state(mean)
    averaged = peers[0].evaluate()[0]
    assert peers[0].settle_statistics() == "recalibrated"
    recalibrated = peers[0].evaluate()[0]
    assert min(averaged, recalibrated) >= sum(accuracies) / 4


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
