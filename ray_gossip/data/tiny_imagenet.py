"""Tiny ImageNet as it is published (http://cs231n.stanford.edu/tiny-imagenet-200.zip): a tree of JPEGs.

    wnids.txt                                    200 classes, a WordNet id each
    train/<wnid>/images/*.JPEG                   500 of each class
    train/<wnid>/<wnid>_boxes.txt                names them all
    val/images/*.JPEG, val/val_annotations.txt   50 of each class; its labels
    test/images/*.JPEG                           without labels: not used

The validation images may also have been sorted into a folder for each class, as is usual for torchvision's ImageFolder.
Classes are numbered in the alphabetical order of their ids, as torchvision's ImageFolder does. A few images are grey;
they become RGB. Decoded images are kept on disk, once per node.
"""

from __future__ import annotations

import os
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from ray_gossip.config import DataConfig
from ray_gossip.data.dataset import Dataset, OnProgress, Scale
from ray_gossip.data.download import download
from ray_gossip.data.node_cache import Decoding, Images, cached, root_of
from ray_gossip.errors import DataError

URL = "http://cs231n.stanford.edu/tiny-imagenet-200.zip"
MD5 = "90528d7ca1a48142e341f4ef8d21d0de"
NAME = "tiny-imagenet-200"
NUM_CLASSES = 200
NUM_VAL_PER_CLASS = 50
SHAPE = (3, 64, 64)

# ImageNet's own, as everybody uses: those of this subset differ by a hundredth
_SCALE = Scale(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
_REPORT_EVERY = 500  # images
_SORTED = ("val/{wnid}/images", "val/{wnid}", "val/images/{wnid}")  # where scripts leave the images of a class

Labelled = list[tuple[Path, int]]  # JPEG, class


def load(config: DataConfig, *, on_progress: OnProgress | None = None) -> Dataset:
    """Its training images, and its validation images for testing.

    A cache that is whole is not compared with the tree, which need not be there any more.
    """
    images, numbers = cached(NAME, config, partial(_find, config, on_progress))
    labels = torch.tensor(numbers)
    num_test = NUM_CLASSES * NUM_VAL_PER_CLASS
    return Dataset(
        train_inputs=torch.from_numpy(images[:-num_test]),
        train_labels=labels[:-num_test],
        test_inputs=torch.from_numpy(images[-num_test:]),
        test_labels=labels[-num_test:],
        num_classes=NUM_CLASSES,
        scale=_SCALE,
    )


def _find(config: DataConfig, on_progress: OnProgress | None) -> Decoding:
    """The JPEGs and their labels: training images, then validation images. Raises DataError."""
    root = root_of(config)
    tree = _Tree(root)
    try:
        files = tree.files()
    except DataError:
        if not config.download:
            raise
        _download(root, config, quiet=on_progress is None)
        files = tree.files()
    return Decoding(
        shape=(len(files), *SHAPE),
        labels=[label for _, label in files],
        decode=partial(_decode, [path for path, _ in files], on_progress=on_progress),
    )


class _Tree:
    """The published folder. Whatever is missing in it or is not as published is a DataError."""

    def __init__(self, root: Path) -> None:
        self._root, self._folder = root, root / NAME

    def files(self) -> Labelled:
        if not self._folder.is_dir():
            raise self._error(f"there is no {self._folder}")
        wnids = sorted(self._lines("wnids.txt"))
        if len(set(wnids)) != NUM_CLASSES:
            raise self._error(f"{self._folder / 'wnids.txt'} names {len(set(wnids))} classes instead of {NUM_CLASSES}")
        classes = {wnid: number for number, wnid in enumerate(wnids)}
        return [*self._train_files(classes), *self._val_files(classes)]

    def _train_files(self, classes: dict[str, int]) -> Labelled:
        files: Labelled = []
        for wnid, number in classes.items():
            present = self._names(f"train/{wnid}/images")
            listed = {line.split("\t")[0] for line in self._lines(f"train/{wnid}/{wnid}_boxes.txt")}
            self._require_all(listed, present, f"train/{wnid}/images")
            files += [(self._folder / "train" / wnid / "images" / name, number) for name in sorted(listed)]
        return files

    def _val_files(self, classes: dict[str, int]) -> Labelled:
        """In the order of their names, however they are sorted into folders: all peers number them alike."""
        first = next(iter(classes))
        for place in _SORTED:
            if (self._folder / place.format(wnid=first)).is_dir():
                return self._sorted_val_files(classes, place)
        return self._listed_val_files(classes)

    def _sorted_val_files(self, classes: dict[str, int], place: str) -> Labelled:
        files: Labelled = []
        for wnid, number in classes.items():
            folder = place.format(wnid=wnid)
            names = [name for name in self._names(folder) if name.endswith(".JPEG")]
            if len(names) != NUM_VAL_PER_CLASS:
                raise self._error(f"{self._folder / folder} has {len(names)} images instead of {NUM_VAL_PER_CLASS}")
            files += [(self._folder / folder / name, number) for name in names]
        return sorted(files, key=lambda file: file[0].name)

    def _listed_val_files(self, classes: dict[str, int]) -> Labelled:
        annotations = self._folder / "val" / "val_annotations.txt"
        fields = [line.split("\t") for line in self._lines("val/val_annotations.txt")]
        if any(len(field) < 2 or field[1] not in classes for field in fields):
            raise self._error(f"{annotations} has lines that are not 'image, class of wnids.txt, ...'")
        counts = Counter(field[1] for field in fields)
        for wnid in classes:
            if counts[wnid] != NUM_VAL_PER_CLASS:
                raise self._error(f"{annotations} has {counts[wnid]} images of {wnid} instead of {NUM_VAL_PER_CLASS}")
        self._require_all({field[0] for field in fields}, self._names("val/images"), "val/images")
        return [(self._folder / "val" / "images" / name, classes[wnid]) for name, wnid, *_ in sorted(fields)]

    def _lines(self, name: str) -> list[str]:
        try:
            lines = (self._folder / name).read_text().splitlines()
        except (OSError, UnicodeDecodeError):
            raise self._error(f"{self._folder / name} is missing or not readable") from None
        return [line for line in lines if line.strip()]

    def _names(self, name: str) -> set[str]:
        try:
            return set(os.listdir(self._folder / name))  # noqa: PTH208  (100,000 Path objects cost a second)
        except OSError:
            raise self._error(f"{self._folder / name} is missing or not readable") from None

    def _require_all(self, listed: set[str], present: set[str], name: str) -> None:
        missing = listed - present
        if missing or not listed:
            example = min(missing, default="any at all")
            raise self._error(f"{self._folder / name} lacks {len(missing)} images that are listed, such as {example}")

    def _error(self, what: str) -> DataError:
        return DataError(
            f"data.name=tiny_imagenet: {what}; fetch {URL} and unpack it in data.root={self._root}, or set "
            "data.download=true"
        )


def _decode(files: list[Path], images: Images, *, on_progress: OnProgress | None) -> None:
    """Every file into its place, on all cores: PIL gives up Python's lock while it decodes.

    Threads, not processes: a peer that has started Ray is better not forked for this.
    """

    def decode(index: int) -> None:
        images[index] = _pixels(files[index]).transpose(2, 0, 1)

    with ThreadPoolExecutor(len(os.sched_getaffinity(0)), thread_name_prefix="decode") as pool:
        try:
            for done, _ in enumerate(pool.map(decode, range(len(files))), start=1):
                if on_progress and (done % _REPORT_EVERY == 0 or done == len(files)):
                    on_progress(done, len(files))
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def _pixels(path: Path) -> Images:
    """[height, width, 3]"""
    try:
        with Image.open(path) as image:
            pixels: Images = np.asarray(image.convert("RGB"))
    except (OSError, SyntaxError, ValueError) as error:  # what PIL raises for files that are no images, or half of one
        raise DataError(f"data.name=tiny_imagenet: {path} is damaged ({error}); fetch {URL} again") from None
    if pixels.shape != (*SHAPE[1:], 3):
        raise DataError(f"data.name=tiny_imagenet: {path} is {pixels.shape[1]}x{pixels.shape[0]} instead of 64x64")
    return pixels


def _download(root: Path, config: DataConfig, *, quiet: bool) -> None:
    from torchvision.datasets.utils import download_and_extract_archive  # loading it takes two seconds

    fetch = partial(download_and_extract_archive, URL, str(root), filename=f"{NAME}.zip", md5=MD5)
    download(URL, config, root=root, quiet=quiet, fetch=fetch)
