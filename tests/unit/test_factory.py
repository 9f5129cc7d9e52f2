"""Models and data sets of the user's own: what works, and what is said when something is missing."""

from __future__ import annotations

import inspect
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from ray_gossip import data, factory, models
from ray_gossip.config import Config, DataConfig, dump, load, parse, skipped
from ray_gossip.errors import ConfigError
from ray_gossip.factory import NAMED, Factories
from ray_gossip.factory.source import check_source
from ray_gossip.training.trainer import Trainer
from tests.unit.trainers import accuracy_of

YOURS = Path(__file__).parents[1] / "yours"
CPU = torch.device("cpu")


@pytest.fixture
def charlm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A user's package, importable for a while."""
    package = Path(shutil.copytree(YOURS / "charlm", tmp_path / "charlm"))
    monkeypatch.syspath_prepend(tmp_path)
    yield package
    for module in [name for name in sys.modules if name.partition(".")[0] == "charlm"]:
        del sys.modules[module]


def own_config(**sections: Any) -> Config:
    return parse({"data": {"factory": "charlm.text:next_characters"}, **sections})


def trainer_of(config: Config, factories: Factories = NAMED) -> Trainer:
    dataset = data.load(config.data, factory=factories.data)
    model = models.build(
        config.model,
        in_shape=dataset.in_shape,
        num_classes=dataset.num_classes,
        seed=config.seed,
        factory=factories.model,
    )
    return Trainer(config, model=model, dataset=dataset, shard=torch.arange(dataset.num_train), device=CPU)


def test_a_transformer_of_the_users_own_learns_text_of_the_users_own(charlm: Path) -> None:
    config = load(charlm / "config.yaml", ["train.local_steps=40", "data.args.num_characters=20000"])
    factory.check(config, NAMED)
    trainer = trainer_of(config)
    untrained, before = accuracy_of(trainer), trainer.evaluate().loss
    for _ in range(40):
        trainer.step()
    assert accuracy_of(trainer) > untrained + 0.1
    assert trainer.evaluate().loss < before - 0.5


def test_accuracy_and_loss_are_means_over_all_labels_that_are_not_ignored(charlm: Path) -> None:
    config = own_config(model={"factory": "charlm.transformer:build"})
    whole = data.load(config.data)
    labels = whole.test_labels.clone()
    labels[:, ::2] = data.IGNORED

    def padded() -> data.Dataset:
        return data.Dataset(
            train_inputs=whole.train_inputs,
            train_labels=whole.train_labels,
            test_inputs=whole.test_inputs,
            test_labels=labels,
            num_classes=whole.num_classes,
        )

    trainer = trainer_of(config, Factories(data=padded))
    logits = trainer.model(whole.test_inputs)[:, 1::2]
    wanted = whole.test_labels[:, 1::2]
    accuracy, loss, _ = trainer.evaluate()
    assert accuracy == pytest.approx((logits.argmax(-1) == wanted).float().mean().item())
    assert loss == pytest.approx(nn.functional.cross_entropy(logits.flatten(0, 1), wanted.flatten()).item(), rel=1e-5)


def test_texts_with_a_class_each_are_dealt_by_class(charlm: Path) -> None:
    config = parse({"data": {"factory": "charlm.text:topics_of_pieces", "shards": "label_sorted"}})
    labels = data.load(config.data).train_labels
    shards = data.deal(labels, 2, config=config.data, seed=0)
    counts = [data.class_counts(labels[shard], num_classes=2) for shard in shards]
    assert any(0 in count for count in counts)
    assert [sum(column) for column in zip(*counts, strict=True)] == labels.bincount().tolist()


@pytest.mark.parametrize("shards", ["dirichlet", "label_sorted"])
def test_samples_with_many_labels_cannot_be_dealt_by_class(shards: str) -> None:
    with pytest.raises(ConfigError, match=rf"^data\.shards={shards} deals by class, .* has labels \[8\]: set data\."):
        data.deal(torch.zeros(10, 8, dtype=torch.int64), 2, config=parse({"data": {"shards": shards}}).data, seed=0)
    assert data.class_counts(torch.zeros(10, 8, dtype=torch.int64), num_classes=3) == ()


def test_functions_that_are_handed_over_go_before_what_the_config_names(charlm: Path) -> None:
    config = own_config(model={"factory": "nowhere:nothing", "args": {"width": 8}})

    def linear(num_classes: int, width: int) -> nn.Module:
        return nn.Sequential(nn.Embedding(num_classes, width), nn.Linear(width, num_classes))

    factories = Factories(model=linear)
    factory.check(config, factories)
    trainer = trainer_of(config, factories)
    trainer.step()
    assert trainer.model[0].weight.shape[1] == 8  # type: ignore[index]


def test_a_seed_gives_the_same_parameters_of_an_own_model_and_leaves_the_callers_random_numbers_alone() -> None:
    config = parse({"model": {"factory": "torch.nn:Linear", "args": {"in_features": 4, "out_features": 3}}}).model
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    first, second, other = (
        next(models.build(config, in_shape=(4,), num_classes=3, seed=seed).parameters()) for seed in (1, 1, 2)
    )
    assert torch.equal(torch.rand(3), expected)
    assert first.equal(second)
    assert not first.equal(other)


def test_a_data_factory_gets_its_arguments_and_the_root(tmp_path: Path) -> None:
    seen: dict[str, Any] = {}

    def build(**arguments: Any) -> data.Dataset:
        seen.update(arguments)
        return data.load(DataConfig())

    config = parse({"data": {"factory": "my:build", "args": {"length": 3}, "root": tmp_path}})
    data.load(config.data, factory=build)
    assert seen == {"length": 3, "root": tmp_path}


def test_a_config_with_factories_is_the_config_again(tmp_path: Path) -> None:
    config = own_config(model={"factory": "charlm.transformer:build", "args": {"dim": 8}})
    assert (config.data.name, config.model.name, config.data.augments) == (None, None, False)
    (tmp_path / "config.yaml").write_text(dump(config))
    assert load(tmp_path / "config.yaml") == config
    assert skipped(config) == []


def test_an_override_by_name_replaces_the_factory_of_the_file_and_the_other_way_round(tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text("model: {factory: 'a:b'}\ndata: {name: digits}\n")
    config = load(file, ["model.name=mlp", "data.factory=c:d"])
    assert (config.model.name, config.model.factory) == ("mlp", None)
    assert (config.data.name, config.data.factory) == (None, "c:d")


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["model.name=cnn", "model.factory=a:b"], "model: name=cnn and factory=a:b are both set; keep one of them"),
        (["data.factory=a.b.c"], "data: factory=a.b.c should be package.module:function"),
        (["model.args.dim=3"], "model: args={'dim': 3} are for a factory; set factory, or leave them out"),
        (["model.name=null"], "model: neither name nor factory is set; set one of them"),
    ],
)
def test_a_contradiction_is_one_line(words: list[str], line: str) -> None:
    with pytest.raises(ConfigError) as error:
        load(None, words)
    assert str(error.value) == line


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("charlm.transformer:buidl", "there is no buidl in {folder}/charlm/transformer.py; did you mean build?"),
        (
            "charlm.tranformer:build",
            "there is no module charlm.tranformer; looked in the folder of the command, beside the config, on ",
        ),
        (
            "charml.transformer:build",
            "there is no module charml; looked in the folder of the command, beside the config, on PYTHONPATH and",
        ),
        (
            "nowhere:build",
            "there is no module nowhere; looked in the folder of the command, beside the config, on PYTHONPATH and ",
        ),
    ],
)
def test_what_is_not_there_is_one_line_before_anything_is_imported(name: str, line: str, charlm: Path) -> None:
    config = own_config(model={"factory": name})
    with pytest.raises(ConfigError) as error:
        factory.check(config, NAMED)
    assert str(error.value).startswith(f"model.factory={name}: {line.format(folder=charlm.parent)}")
    assert "\n" not in str(error.value)
    assert "charlm.transformer" not in sys.modules


@pytest.mark.parametrize(
    ("parameters", "args", "line"),
    [
        ("num_classes, dim", {}, "(num_classes, dim): missing a required argument: 'dim'; see model.args"),
        ("dim=1, *, heads", {"dim": 2}, "(dim, heads): missing a required argument: 'heads'; see model.args"),
        ("in_shape, /, *rest, dim=1", {}, "(in_shape, rest, dim): 'in_shape' parameter is positional only, but was "),
        ("", {"dim": 3}, "(): got an unexpected keyword argument 'dim'; see model.args"),
        ("num_classes, dim=1, *, heads=2", {"dim": 3}, ""),
        ("**all", {"dim": 3}, ""),
    ],
)
def test_wrong_arguments_are_one_line_before_anything_is_imported(
    parameters: str, args: dict[str, Any], line: str, charlm: Path
) -> None:
    (charlm / "mine.py").write_text(f"import a_package_that_is_not_there\n\n\ndef build({parameters}):\n    ...\n")
    config = own_config(model={"factory": "charlm.mine:build", "args": args})
    if not line:
        factory.check(config, NAMED)
        return
    with pytest.raises(ConfigError) as error:
        factory.check(config, NAMED)
    assert str(error.value).startswith(f"model.factory=charlm.mine:build has the parameters {line}")


def test_a_module_that_is_no_python_is_one_line(charlm: Path) -> None:
    (charlm / "broken.py").write_text("def build(:\n")
    with pytest.raises(ConfigError, match=r"broken\.py, line 1: invalid syntax$"):
        factory.check(own_config(model={"factory": "charlm.broken:build"}), NAMED)


def test_a_file_that_is_no_utf8_is_one_line(charlm: Path) -> None:
    (charlm / "latin.py").write_bytes(b"NAME = '\xe9'\n\n\ndef build():\n    ...\n")
    with pytest.raises(ConfigError, match=r"latin\.py: invalid or missing encoding declaration"):
        factory.check(own_config(model={"factory": "charlm.latin:build"}))


@pytest.mark.parametrize("line", ["raise ValueError('no')", "import sys; sys.exit(3)", "while True: pass"])
def test_a_package_is_found_without_running_it(line: str, charlm: Path) -> None:
    (charlm / "__init__.py").write_text(f"{line}\n")
    factory.check(own_config(model={"factory": "charlm.transformer:build"}))
    with pytest.raises(
        ConfigError, match=r"^model\.factory=charlm\.tranformer:build: there is no module charlm\.tranf"
    ):
        factory.check(own_config(model={"factory": "charlm.tranformer:build"}))


def test_a_package_that_is_no_python_is_one_line(charlm: Path) -> None:
    (charlm / "__init__.py").write_text("def build(:\n")
    with pytest.raises(ConfigError, match=r"charlm/__init__\.py, line 1: invalid syntax$"):
        factory.check(own_config(model={"factory": "charlm.transformer:build"}))


def test_a_package_that_looks_for_its_modules_in_its_own_way_is_believed(charlm: Path) -> None:
    (charlm / "__init__.py").write_text("__path__ = []\n")
    factory.check(own_config(model={"factory": "charlm.elsewhere:build"}))


@pytest.mark.parametrize(
    ("code", "line"),
    [
        (
            "import sys\nsys.exit(3)",
            "model.factory=charlm.mine:build: cannot import charlm.mine: SystemExit: 3 ({file}, line 2)",
        ),
        (
            "x",
            "model.factory=charlm.mine:build: cannot import charlm.mine: NameError: name 'x' is not defined ({file}, "
            "line 1)",
        ),
        ("def build():\n    exit('so')", "model.factory=charlm.mine:build: SystemExit: so ({file}, line 2)"),
        (
            "def build():\n    return 1 / 0",
            "model.factory=charlm.mine:build: ZeroDivisionError: division by zero ({file}, line 2)",
        ),
        (
            "def build():\n    raise OSError('a\\nb')",
            "model.factory=charlm.mine:build: OSError: a\\nb ({file}, line 2)",
        ),
    ],
)
def test_what_the_users_code_raises_in_a_peer_is_one_line_with_its_place(code: str, line: str, charlm: Path) -> None:
    (charlm / "mine.py").write_text(f"{code}\n")
    with pytest.raises(ConfigError) as error:
        trainer_of(own_config(model={"factory": "charlm.mine:build"}))
    assert str(error.value) == line.format(file=charlm / "mine.py")


def test_a_module_that_makes_its_names_as_it_runs_is_believed(charlm: Path) -> None:
    (charlm / "made.py").write_text("from charlm.transformer import *\n")
    factory.check(own_config(model={"factory": "charlm.made:build"}), NAMED)


@pytest.mark.parametrize(
    ("name", "args", "line"),
    [
        ("charlm.transformer:buidl", {}, ": there is no buidl in charlm.transformer; did you mean build?"),
        (
            "charlm.lacks:build",
            {},
            ": cannot import charlm.lacks: ModuleNotFoundError: No module named 'a_package_that_is_not_there' (",
        ),
        ("charlm.text:ALPHABET", {}, " cannot be called: it is of type str"),
        ("charlm.transformer:build", {"dimm": 3}, ": got an unexpected keyword argument 'dimm'; see model.args"),
        ("charlm.odd:text", {}, " returned str, not a torch.nn.modules.module.Module"),
        ("torch.nn:Identity", {}, ": there are no parameters to train"),
        ("charlm.odd:half", {}, ": weight is torch.float16, but float32 is what is averaged; for faster steps use "),
    ],
)
def test_what_is_wrong_with_a_model_function_is_one_line(
    name: str, args: dict[str, Any], line: str, charlm: Path
) -> None:
    (charlm / "lacks.py").write_text("import a_package_that_is_not_there\n")
    (charlm / "odd.py").write_text(
        "import torch\n\n\ndef text():\n    return ''\n\n\ndef half():\n    return torch.nn.Linear(2, 2).half()\n"
    )
    with pytest.raises(ConfigError) as error:
        trainer_of(own_config(model={"factory": name, "args": args}))
    assert str(error.value).startswith(f"model.factory={name}")
    assert line in str(error.value)
    assert "\n" not in str(error.value)


def test_logits_of_another_shape_are_one_line(charlm: Path) -> None:
    config = parse(
        {"data": {"factory": "charlm.text:topics_of_pieces"}, "model": {"factory": "charlm.transformer:build"}}
    )
    with pytest.raises(ConfigError) as error:
        trainer_of(config, Factories(model=lambda in_shape, num_classes: nn.Embedding(100, num_classes)))
    assert str(error.value) == (
        "model.factory=charlm.transformer:build: for inputs [2, 16] the model gives [2, 16, 2], not logits [2, 2], "
        "which is [batch_size, *label_shape, num_classes]"
    )


@pytest.mark.parametrize(
    ("sections", "line"),
    [
        ({}, "model.name=cnn is for images [channels, height, width], but samples are [32]: set model.factory"),
        (
            {
                "data": {"factory": "charlm.text:next_characters", "augment": "standard"},
                "model": {"factory": "charlm.transformer:build"},
            },
            "data.augment=standard is for images [channels, height, width], but samples are [32]: "
            "set data.augment=none",
        ),
    ],
)
def test_what_is_for_images_says_so(sections: dict[str, Any], line: str, charlm: Path) -> None:
    with pytest.raises(ConfigError) as error:
        trainer_of(own_config(**sections))
    assert str(error.value) == line


def test_a_function_that_is_handed_over_has_a_name_in_the_config() -> None:
    assert factory.name_of(nn.Linear) == "torch.nn.modules.linear:Linear"
    assert factory.name_of(lambda: None).endswith("<locals>.<lambda>")
    config = parse({"model": {"factory": factory.name_of(lambda: None)}})
    assert config.model.factory is not None


def test_a_loop_without_parameters_is_called_with_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "script_of_mine.py").write_text("def main():\n    pass\n")
    monkeypatch.syspath_prepend(tmp_path)
    for how in (check_source, factory.check_call):
        factory.check(parse({"train": {"loop": "script_of_mine:main"}}), how=how)
        with pytest.raises(ConfigError) as error:
            factory.check(parse({"train": {"loop": "script_of_mine:main", "loop_args": {"lr": 0.1}}}), how=how)
        assert str(error.value) == "train.loop=script_of_mine:main has the parameters (), but is called with (config)"
    for parameters in ("lr=0.1, epochs=2", "config, epochs=2"):
        signature = inspect.signature(eval(f"lambda {parameters}: None"))
        with pytest.raises(ConfigError, match=r"but is called with \(config\)"):
            factory.loop_arguments("train.loop", "mine:main", signature, {"lr": 0.1})
    assert factory.loop_arguments("train.loop", "m:f", inspect.signature(lambda lr=0.1, n=2: None), {}) == ()
    assert factory.loop_arguments("train.loop", "m:f", inspect.signature(lambda config: None), {}) == ({},)
    sys.modules.pop("script_of_mine")
