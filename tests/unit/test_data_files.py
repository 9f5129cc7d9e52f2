"""CIFAR-10 and Tiny ImageNet, read from files in exactly the published formats."""

from __future__ import annotations

import contextlib
import hashlib
import shutil
import tarfile
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torchvision.datasets import CIFAR10

from ray_gossip import data
from ray_gossip.config import DataConfig
from ray_gossip.data import tiny_imagenet
from ray_gossip.data.node_cache import only_one_process
from ray_gossip.errors import DataError
from tests.published import NUM_TRAIN_PER_CLASS, WNIDS, class_of, write_cifar10, write_tiny_imagenet


@pytest.fixture
def cifar10(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> DataConfig:
    """The small one; torchvision is told its checksums instead of those of the published one."""
    md5 = write_cifar10(tmp_path)
    monkeypatch.setattr(CIFAR10, "train_list", [[name, md5[name]] for name, _ in CIFAR10.train_list])
    monkeypatch.setattr(CIFAR10, "test_list", [[name, md5[name]] for name, _ in CIFAR10.test_list])
    monkeypatch.setattr(CIFAR10, "meta", {**CIFAR10.meta, "md5": md5["batches.meta"]})
    return DataConfig(name="cifar10", root=tmp_path)


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_imagenet(tmp_path_factory.mktemp("published")).parent


@pytest.fixture(scope="module")
def cache(tree: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the decoded images of `tree`."""
    folder = tmp_path_factory.mktemp("cache")
    told: list[tuple[int, int]] = []
    config = DataConfig(name="tiny_imagenet", root=tree, cache=folder)
    data.load(config, on_progress=lambda done, total: told.append((done, total)))
    assert told == [(done, 10_400) for done in (*range(500, 10_001, 500), 10_400)]
    return folder


@pytest.fixture
def tiny(tree: Path, cache: Path, tmp_path: Path) -> DataConfig:
    """The tree, and a copy of its cache."""
    for file in cache.iterdir():
        shutil.copy(file, tmp_path / file.name)
    return DataConfig(name="tiny_imagenet", root=tree, cache=tmp_path)


@contextlib.contextmanager
def serving(folder: Path) -> Iterator[str]:
    """The files of a folder, by HTTP; yields the address."""

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, format: str, *arguments: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder))) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def complaint(config: DataConfig) -> str:
    """What loading it raises: one line."""
    with pytest.raises(DataError) as error:
        data.load(config)
    assert "\n" not in str(error.value)
    assert str(error.value).startswith(f"data.name={config.name}: ")
    return str(error.value)


def test_cifar10_has_the_labels_and_the_layout_of_its_files(cifar10: DataConfig) -> None:
    dataset = data.load(cifar10)
    assert dataset.train_inputs.shape == (100, 3, 32, 32)
    assert dataset.test_inputs.shape == (20, 3, 32, 32)
    assert dataset.train_inputs.dtype == torch.uint8
    assert (dataset.num_classes, dataset.in_shape) == (10, (3, 32, 32))
    assert dataset.train_labels[:3].tolist() == [0, 1, 2]  # of data_batch_1
    assert dataset.train_labels[20:23].tolist() == [1, 2, 3]  # of data_batch_2
    assert dataset.test_labels[:3].tolist() == [5, 6, 7]  # of test_batch
    for images, labels in ((dataset.train_inputs, dataset.train_labels), (dataset.test_inputs, dataset.test_labels)):
        assert (images[:, 1:] == labels.view(-1, 1, 1, 1)).all()
        assert (images[:, 0, 2:] == 100 + labels.view(-1, 1, 1)).all()
        assert (images[:, 0, 1] == 250).all()


@pytest.mark.parametrize("name", ["data_batch_3", "test_batch", "batches.meta"])
def test_a_damaged_file_of_cifar10_is_named(cifar10: DataConfig, name: str) -> None:
    assert cifar10.root
    file = cifar10.root / "cifar-10-batches-py" / name
    content = bytearray(file.read_bytes())
    content[-20] ^= 1
    file.write_bytes(content)
    assert f"{file} is damaged, its checksum is wrong; fetch https://" in complaint(cifar10)


def test_a_missing_file_of_cifar10_is_named(cifar10: DataConfig) -> None:
    assert cifar10.root
    file = cifar10.root / "cifar-10-batches-py" / "data_batch_5"
    file.unlink()
    assert f"{file} is missing; fetch https://" in complaint(cifar10)


def test_without_cifar10_it_is_said_what_to_fetch_and_where_to_put_it(tmp_path: Path) -> None:
    assert complaint(DataConfig(name="cifar10", root=tmp_path)) == (
        f"data.name=cifar10: there is no {tmp_path}/cifar-10-batches-py; fetch "
        f"https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz and unpack it in data.root={tmp_path}, "
        "or set data.download=true"
    )


def test_cifar10_is_downloaded_only_where_the_config_asks_for_it(
    cifar10: DataConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    assert cifar10.root
    archive = tmp_path / "cifar-10-python.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(cifar10.root / "cifar-10-batches-py", "cifar-10-batches-py")
    monkeypatch.setattr(CIFAR10, "tgz_md5", hashlib.md5(archive.read_bytes()).hexdigest())
    empty = cifar10.model_copy(update={"root": tmp_path / "empty"})
    with serving(tmp_path) as address:
        monkeypatch.setattr(CIFAR10, "url", f"{address}/{archive.name}")
        assert "set data.download=true" in complaint(empty)
        assert data.load(empty.model_copy(update={"download": True})).num_train == 100
    assert data.load(empty).num_train == 100
    assert capfd.readouterr() == ("", "")


def test_a_download_that_fails_is_one_line(
    cifar10: DataConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere = cifar10.model_copy(update={"root": tmp_path / "empty", "download": True})
    monkeypatch.setattr(CIFAR10, "url", "http://127.0.0.1:1/cifar-10-python.tar.gz")  # nobody listens there
    line = complaint(elsewhere)
    assert "cannot download http://127.0.0.1:1/" in line
    assert "fetch it by other means and unpack it in data.root=" in line


def test_tiny_imagenet_has_the_labels_of_its_tree(tiny: DataConfig) -> None:
    dataset = data.load(tiny)
    assert dataset.train_inputs.shape == (200 * NUM_TRAIN_PER_CLASS, 3, 64, 64)
    assert dataset.test_inputs.shape == (10_000, 3, 64, 64)
    assert dataset.train_inputs.dtype == dataset.test_inputs.dtype == torch.uint8
    assert dataset.num_classes == len(WNIDS) == 200
    assert (dataset.train_labels.bincount() == NUM_TRAIN_PER_CLASS).all()
    assert (dataset.test_labels.bincount() == 50).all()
    assert sorted(WNIDS) != WNIDS
    pixels = dataset.test_inputs[:, :, 5, 60].numpy()
    assert [class_of(pixel) for pixel in pixels] == dataset.test_labels.tolist()
    assert [class_of(pixel) for pixel in dataset.train_inputs[::2, :, 5, 60].numpy()] == list(range(200))


def test_grey_jpegs_become_rgb(tiny: DataConfig) -> None:
    grey = data.load(tiny).train_inputs[1::2].int()
    assert (grey == grey[:, :1]).all()
    assert ((grey[:, 0, 0, 0] - torch.arange(200)).abs() <= 2).all()


def test_decoded_images_are_read_again_without_the_tree(tiny: DataConfig, tmp_path: Path) -> None:
    assert tiny.cache
    before = [(file.name, file.stat().st_mtime_ns) for file in sorted(tiny.cache.glob("tiny*"))]
    gone = tiny.model_copy(update={"root": tmp_path / "gone"})
    assert data.load(gone).num_train == 200 * NUM_TRAIN_PER_CLASS
    assert [(file.name, file.stat().st_mtime_ns) for file in sorted(tiny.cache.glob("tiny*"))] == before


def test_what_is_done_to_loaded_images_does_not_reach_the_disk(tiny: DataConfig) -> None:
    data.load(tiny).train_inputs.zero_()
    assert data.load(tiny).train_inputs.any()


def flip_a_bit(array: Path) -> None:
    with array.open("r+b") as file:
        file.seek(1_000_000)
        byte = file.read(1)[0]
        file.seek(1_000_000)
        file.write(bytes([byte ^ 1]))


def cut_off_a_byte(array: Path) -> None:
    with array.open("r+b") as file:
        file.truncate(array.stat().st_size - 1)


def lose_the_checksum(array: Path) -> None:
    array.with_suffix(".json").unlink()


def garble_the_checksum(array: Path) -> None:
    array.with_suffix(".json").write_text("{")


@pytest.mark.parametrize("damage", [flip_a_bit, cut_off_a_byte, lose_the_checksum, garble_the_checksum])
def test_a_damaged_cache_is_not_used(tiny: DataConfig, damage: Callable[[Path], None]) -> None:
    assert tiny.cache
    damage(tiny.cache / "tiny-imagenet-200.npy")
    gone = tiny.model_copy(update={"root": tiny.cache / "gone"})
    assert "tiny-imagenet-200.zip and unpack it in data.root=" in complaint(gone)


def test_a_damaged_cache_is_made_again_by_one_of_those_that_start_together(
    tiny: DataConfig, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert tiny.cache
    flip_a_bit(tiny.cache / "tiny-imagenet-200.npy")
    decoded = []
    decode = tiny_imagenet._decode

    def counting(*arguments: Any, **options: Any) -> None:
        decoded.append(arguments)
        decode(*arguments, **options)

    monkeypatch.setattr(tiny_imagenet, "_decode", counting)
    with ThreadPoolExecutor(3) as pool:
        datasets = list(pool.map(data.load, [tiny] * 3))
    assert len(decoded) == 1
    assert all(each.train_inputs.equal(datasets[0].train_inputs) for each in datasets)
    assert (tiny.cache / "tiny-imagenet-200.npy").read_bytes() == (cache / "tiny-imagenet-200.npy").read_bytes()
    assert not list(tiny.cache.glob("*.unfinished"))


def edited(tiny: DataConfig, tmp_path: Path, name: str) -> tuple[DataConfig, Path]:
    """A config of a tree like that of `tiny`, of links but for one file that may be changed; and that file."""
    assert tiny.root
    source, copy = tiny.root / "tiny-imagenet-200", tmp_path / "edited" / "tiny-imagenet-200"
    for folder in (Path(name), *Path(name).parents):
        (copy / folder).parent.mkdir(parents=True, exist_ok=True)
    for folder in list(Path(name).parents):
        (copy / folder).mkdir(exist_ok=True)
        for entry in (source / folder).iterdir():
            target = copy / folder / entry.name
            if target.exists() or target.relative_to(copy) in (Path(name), *Path(name).parents):
                continue
            target.symlink_to(entry)
    shutil.copy(source / name, copy / name)
    return tiny.model_copy(update={"root": copy.parent, "cache": tmp_path / "new"}), copy / name


@pytest.mark.parametrize("place", ["val/{wnid}", "val/{wnid}/images", "val/images/{wnid}"])
def test_validation_images_that_are_sorted_into_class_folders_are_the_same_data_in_the_same_order(
    tiny: DataConfig, tmp_path: Path, place: str
) -> None:
    config, folder = sorted_by_class(tiny, tmp_path, place)
    as_published, here = data.load(tiny), data.load(config)
    assert torch.equal(here.test_labels, as_published.test_labels)
    assert torch.equal(here.test_inputs, as_published.test_inputs)
    next(folder.iterdir()).unlink()
    line = complaint(config.model_copy(update={"cache": tmp_path / "newer"}))
    assert f"{folder} has 49 images instead of 50" in line


def sorted_by_class(tiny: DataConfig, tmp_path: Path, place: str) -> tuple[DataConfig, Path]:
    """A config of the same tree, its validation images where this says; and the folder of a class."""
    assert tiny.root
    source, copy = tiny.root / "tiny-imagenet-200", tmp_path / "sorted" / "tiny-imagenet-200"
    copy.mkdir(parents=True)
    for name in ("wnids.txt", "train"):
        (copy / name).symlink_to(source / name)
    for line in (source / "val" / "val_annotations.txt").read_text().splitlines():
        name, wnid, *_ = line.split("\t")
        folder = copy / place.format(wnid=wnid)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / name).symlink_to(source / "val" / "images" / name)
    return tiny.model_copy(update={"root": copy.parent, "cache": tmp_path / "new"}), folder


TRAIN_IMAGE = f"train/{WNIDS[4]}/images/{WNIDS[4]}_0.JPEG"


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("wnids.txt", lambda text: text.split("\n", 1)[1], "names 199 classes instead of 200"),
        ("val/val_annotations.txt", lambda text: text.split("\n", 1)[1], "has 49 images of n"),
        ("val/val_annotations.txt", lambda text: text.replace("\t", " "), "has lines that are not"),
        ("val/images/val_77.JPEG", None, "lacks 1 images that are listed, such as val_77.JPEG"),
        (TRAIN_IMAGE, None, f"lacks 1 images that are listed, such as {WNIDS[4]}_0.JPEG"),
        (f"train/{WNIDS[0]}/{WNIDS[0]}_boxes.txt", None, "is missing or not readable"),
    ],
)
def test_a_tree_that_is_not_as_published_is_one_line(
    tiny: DataConfig, tmp_path: Path, name: str, change: Any, message: str
) -> None:
    config, file = edited(tiny, tmp_path, name)
    if change is None:
        file.unlink()
    else:
        file.write_text(change(file.read_text()))
    line = complaint(config)
    assert message in line
    assert line.endswith(
        f"fetch http://cs231n.stanford.edu/tiny-imagenet-200.zip and unpack it in data.root={config.root}, "
        "or set data.download=true"
    )
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("content", [b"no image", b""])
def test_a_damaged_jpeg_is_named_and_leaves_no_cache(tiny: DataConfig, tmp_path: Path, content: bytes) -> None:
    config, file = edited(tiny, tmp_path, TRAIN_IMAGE)
    file.write_bytes(content)
    assert f"{file} is damaged" in complaint(config)
    assert [path.name for path in (tmp_path / "new").iterdir()] == [".tiny-imagenet-200.lock"]


def test_half_a_jpeg_is_damaged(tiny: DataConfig, tmp_path: Path) -> None:
    config, file = edited(tiny, tmp_path, TRAIN_IMAGE)
    file.write_bytes(file.read_bytes()[:-200])
    assert f"{file} is damaged" in complaint(config)


def test_a_wait_for_another_process_has_a_deadline(tiny: DataConfig, tmp_path: Path) -> None:
    config = tiny.model_copy(update={"cache": tmp_path / "new", "prepare_s": 0.2})
    with (
        only_one_process(tmp_path / "new", "tiny-imagenet-200", config),
        pytest.raises(DataError, match=r"for data\.prepare_s=0\.2 s: run `ray-gossip data prepare`"),
    ):
        data.load(config)


def test_the_cache_is_one_array_of_bytes(tiny: DataConfig) -> None:
    assert tiny.cache
    stored = np.load(tiny.cache / "tiny-imagenet-200.npy", mmap_mode="r")
    assert stored.shape == (10_400, 3, 64, 64)
    assert stored.dtype == np.uint8
