"""Local SGD on one device."""

from __future__ import annotations

import io
import itertools
import math
from functools import partial
from typing import Any, Literal

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ray_gossip import data, models
from ray_gossip.config import parse
from ray_gossip.training.optimizer import lr_factor
from ray_gossip.training.trainer import Trainer
from tests.unit.trainers import (
    CPU,
    DIGITS,
    EVERYTHING,
    build_model,
    make_trainer,
    state_of,
    with_batch_norm,
)


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
    accuracy, loss, _ = trainer.evaluate()
    assert accuracy is not None
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
    assert not make_trainer().has_progress
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
    accuracy, loss, _ = trainer.evaluate()
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
    before, delta = state_of(trainer), torch.rand(trainer.averaged.size)  # upwards: no variance falls below zero
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
def test_a_trainer_that_goes_on_from_a_snapshot_takes_the_same_steps_as_without_a_break(
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


def test_a_trainer_that_goes_on_from_a_snapshot_does_so_under_its_own_hyperparameters() -> None:
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
