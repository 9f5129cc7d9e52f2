"""What is minimised and measured: classes, numbers, and functions of the user's own."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ray_gossip import data, factory, models
from ray_gossip.config import parse
from ray_gossip.data import Dataset
from ray_gossip.errors import ConfigError, DataError
from ray_gossip.training.trainer import Trainer
from tests.unit.trainers import CPU, make_trainer

YOURS = str(Path(__file__).parents[1] / "yours")


def numbers(*label_shape: int) -> Dataset:
    """y = the sum of x."""
    inputs = torch.randn(200, 4, generator=torch.Generator().manual_seed(0))
    labels = inputs.sum(1).view(-1, *(1 for _ in label_shape)).expand(-1, *label_shape).clone()
    return Dataset(
        train_inputs=inputs[:150], train_labels=labels[:150], test_inputs=inputs[150:], test_labels=labels[150:]
    )


def trainer_of(dataset: Dataset, model: nn.Module, **train: Any) -> Trainer:
    config = parse({"data": {"factory": "my:data"}, "model": {"factory": "my:model"}, "train": train})
    shard = torch.arange(dataset.num_train)
    return Trainer(config, model=model, dataset=dataset, shard=shard, device=CPU)


class Scalar(nn.Linear):
    """One number for a sample, and no dimension for it."""

    def forward(self, inputs: Tensor) -> Tensor:
        return super().forward(inputs).squeeze(-1)


def mean_absolute_error(outputs: Tensor, labels: Tensor) -> Tensor:
    return (outputs - labels).abs().mean()


def named_outputs(outputs: dict[str, Tensor], labels: Tensor) -> Tensor:
    return F.mse_loss(outputs["mean"], labels)


def loses(outputs: Tensor, labels: Tensor) -> Tensor:
    raise RuntimeError("no such weights")


def by_sample(outputs: Tensor, labels: Tensor) -> Tensor:
    return (outputs - labels) ** 2


def of_one(outputs: Tensor) -> Tensor:
    return outputs.mean()


HERE = "tests.unit.test_criterion"


@pytest.mark.parametrize("label_shape", [(), (1,), (3,)])
def test_numbers_are_learned_by_their_mean_squared_error(label_shape: tuple[int, ...]) -> None:
    dataset = numbers(*label_shape)
    model = nn.Linear(4, label_shape[0]) if label_shape else Scalar(4, 1)
    trainer = trainer_of(dataset, model, loss="mse", metrics={"mae": f"{HERE}:mean_absolute_error"})
    before = trainer.evaluate()
    outputs = trainer.model(dataset.test_inputs)
    assert before.accuracy is None
    assert before.loss == pytest.approx(F.mse_loss(outputs, dataset.test_labels).item(), rel=1e-5)
    assert before.metrics == {"mae": pytest.approx((outputs - dataset.test_labels).abs().mean().item(), rel=1e-5)}
    for _ in range(200):
        trainer.step()
    after = trainer.evaluate()
    assert after.loss < before.loss / 100
    assert after.metrics["mae"] < before.metrics["mae"] / 5


def test_a_loss_of_ones_own_takes_whatever_the_model_gives() -> None:
    class Named(nn.Linear):
        def forward(self, inputs: Tensor) -> Any:
            return {"mean": super().forward(inputs)}

    torch.manual_seed(0)
    trainer = trainer_of(numbers(1), Named(4, 1), loss=f"{HERE}:named_outputs")
    torch.manual_seed(0)
    same = trainer_of(numbers(1), nn.Linear(4, 1), loss="mse")
    for _ in range(5):
        trainer.step()
        same.step()
    assert trainer.evaluate() == same.evaluate()
    assert all(map(torch.equal, trainer.model.parameters(), same.model.parameters()))


def test_a_metric_of_ones_own_on_classes_is_weighted_by_samples() -> None:
    trainer = make_trainer(train={"metrics": {"error": f"{HERE}:error_rate"}})
    found = trainer.evaluate()
    assert found.accuracy is not None
    assert found.metrics["error"] == pytest.approx(1 - found.accuracy)


def error_rate(outputs: Tensor, labels: Tensor) -> float:
    return (outputs.argmax(-1) != labels).float().mean().item()


@pytest.mark.parametrize(
    ("dataset", "model", "train", "line"),
    [
        (
            numbers(1),
            nn.Linear(4, 1),
            {},
            "train.loss=cross_entropy is for classes, but the labels are numbers: set",
        ),
        (
            numbers(1),
            nn.Linear(4, 2),
            {"loss": "mse"},
            "the model gives [2, 2], not values [2, 1], which is [batch",
        ),
        (
            numbers(),
            nn.Linear(4, 1),
            {"loss": "mse"},
            "the model gives [2, 1], not values [2], which is [batch_si",
        ),
        (
            numbers(1),
            nn.Linear(4, 1),
            {"loss": f"{HERE}:by_sample"},
            "by_sample returned [2, 1], not one number",
        ),
        (numbers(1), nn.Linear(4, 1), {"loss": f"{HERE}:error_rate"}, "error_rate returned float, not one number"),
        (
            numbers(1),
            nn.Linear(4, 1),
            {"loss": f"{HERE}:loses"},
            ":loses: RuntimeError: no such weights",
        ),
        (
            numbers(1),
            nn.Linear(4, 1),
            {"loss": f"{HERE}:of_one"},
            "has the parameters (outputs), but is called with",
        ),
        (numbers(1), nn.Linear(4, 1), {"loss": f"{HERE}:detached"}, ":detached has no gradient: it must be made of"),
        (numbers(1), nn.Linear(4, 1), {"loss": f"{HERE}:los"}, "there is no los in tests.unit.test_criterion"),
    ],
)
def test_what_does_not_fit_together_is_one_line(
    dataset: Dataset, model: nn.Module, train: dict[str, Any], line: str
) -> None:
    with pytest.raises(ConfigError) as error:
        trainer_of(dataset, model, **train)
    assert line in str(error.value)
    assert "\n" not in str(error.value)


def test_the_users_own_functions_see_float32_in_training_and_in_evaluation_whatever_the_precision() -> None:
    seen.clear()
    trainer = make_trainer(train={"precision": "bf16", "loss": f"{HERE}:contrast"})
    trainer.step()
    trainer.evaluate()
    assert set(seen) == {torch.float32}


seen: list[torch.dtype] = []


def contrast(outputs: Tensor, labels: Tensor) -> Tensor:
    product = outputs @ outputs.T
    seen.append(product.dtype)
    return product.mean()


def test_a_loss_of_one_element_is_a_number() -> None:
    trainer = trainer_of(numbers(1), nn.Linear(4, 1), loss=f"{HERE}:one_element")
    trainer.step()
    assert trainer.take_progress().loss > 0


def one_element(outputs: Tensor, labels: Tensor) -> Tensor:
    return F.mse_loss(outputs, labels).reshape(1)


def detached(outputs: Tensor, labels: Tensor) -> Tensor:
    return F.mse_loss(outputs.detach(), labels)


def test_what_the_model_raises_is_one_line() -> None:
    with pytest.raises(ConfigError, match=r"^model\.factory=my:model: RuntimeError: mat1 and mat2 shapes") as error:
        trainer_of(numbers(1), nn.Linear(5, 1), loss="mse")
    assert "\n" not in str(error.value)


def test_a_metric_that_is_no_number_is_one_line() -> None:
    with pytest.raises(ConfigError, match=r"train\.metrics\.own=.*:by_sample returned Tensor, not one number"):
        trainer_of(numbers(3), nn.Linear(4, 3), loss="mse", metrics={"own": f"{HERE}:by_sample"})


@pytest.mark.parametrize(
    ("train", "line"),
    [
        ({"loss": "mes"}, "train.loss: 'mes' is neither known nor a package.module:function; did you mean mse?"),
        ({"loss": "my.module:"}, "train.loss: my.module: should be package.module:function"),
        ({"metrics": {"loss": "a:b"}}, "loss is the name of a curve that there is already"),
        ({"metrics": {"f 1": "a:b"}}, "f 1"),
        ({"metrics": {"f1": "b"}}, "b should be package.module:function"),
        ({"metrics": ["a:b"]}, "train.metrics"),
    ],
)
def test_a_name_that_is_none_is_one_line_before_anything_starts(train: dict[str, Any], line: str) -> None:
    with pytest.raises(ConfigError) as error:
        parse({"train": train})
    assert line in str(error.value)
    assert "\n" not in str(error.value)


def test_a_function_that_is_not_there_is_seen_in_its_source_before_anything_starts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.syspath_prepend(YOURS)
    for train, line in (
        ({"loss": "diabetes.regression:hubert"}, r"train\.loss=.*there is no hubert in .*did you mean huber\?"),
        ({"metrics": {"mae": "diabetes.regression:mean"}}, r"train\.metrics\.mae=.*there is no mean"),
        ({"loss": "diabetes.regression:load"}, r"has the parameters \(\), but is called with \(outputs, labels\)"),
        ({"loss": "diabetes.regresion:huber"}, r"train\.loss=.*there is no module diabetes\.regresion"),
    ):
        with pytest.raises(ConfigError, match=line):
            factory.check(parse({"train": train}))
    assert "diabetes.regression" not in sys.modules  # nothing of it has run


def test_a_data_set_of_numbers_says_what_is_wrong_with_it() -> None:
    inputs = torch.zeros(4, 2)
    for labels, line in (
        (torch.zeros(4, dtype=torch.int64), "give num_classes and int64 classes, or float32 numbers to be predicted"),
        (torch.zeros(4, dtype=torch.float64), "is torch.float64"),
        (torch.full((4,), torch.nan), "holds numbers that are not finite"),
    ):
        with pytest.raises(DataError, match=line):
            Dataset(train_inputs=inputs, train_labels=labels, test_inputs=inputs, test_labels=labels)


def test_numbers_are_not_dealt_by_class() -> None:
    labels = numbers().train_labels
    config = parse({"data": {"shards": "label_sorted"}}).data
    with pytest.raises(ConfigError, match=r"data\.shards=label_sorted deals by class, but the labels are numbers"):
        data.deal(labels, 2, config=config, seed=0)
    assert data.class_counts(labels, num_classes=None) == ()
    assert sorted(torch.cat(data.deal(labels, 2, seed=0)).tolist()) == [*range(150)]


def test_a_network_by_name_gives_as_many_numbers_as_are_to_be_predicted() -> None:
    config = parse({"model": {"name": "mlp"}}).model
    model = models.build(config, in_shape=(1, 8, 8), num_classes=None, num_outputs=3, seed=0)
    assert model(torch.zeros(2, 1, 8, 8)).shape == (2, 3)
