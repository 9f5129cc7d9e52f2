"""Small data sets in exactly the formats in which CIFAR-10 and Tiny ImageNet are published."""

from __future__ import annotations

import hashlib
import io
import pickle
import struct
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from PIL import Image

NUM_TRAIN_PER_CLASS = 2  # of the small Tiny ImageNet
WNIDS = [
    f"n{(7919 * 7919 * number) % 10**8:08d}" for number in range(1, 201)
]  # not in alphabetical order, as published


_Pickler: Any = pickle._Pickler  # the one in Python, whose steps can be replaced


class _Python2Pickler(_Pickler):  # type: ignore[misc]
    """Writes what Python 2 wrote: strings of bytes, and numpy under its old name."""

    dispatch: ClassVar[dict[Any, Any]] = dict(_Pickler.dispatch)

    def save_bytes(self, value: bytes) -> None:
        head = b"U" + bytes([len(value)]) if len(value) < 256 else b"T" + struct.pack("<i", len(value))
        self.write(head + value)
        self.memoize(value)

    def save_str(self, value: str) -> None:
        self.save_bytes(value.encode("latin1"))

    def save_global(self, value: Any, name: str | None = None) -> None:
        if getattr(value, "__name__", "") == "_reconstruct":
            self.write(b"cnumpy.core.multiarray\n_reconstruct\n")
            self.memoize(value)
        else:
            super().save_global(value, name)

    dispatch[bytes] = save_bytes
    dispatch[str] = save_str
    dispatch[type(pickle.dumps)] = save_global  # builtin functions
    dispatch[type(save_global)] = save_global


def write_cifar10(root: Path, *, num_per_batch: int = 20) -> dict[str, str]:
    """`root/cifar-10-batches-py`; a pixel's value is its image's label. Returns the md5 of every file."""
    folder = root / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    names = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
    contents: dict[str, Any] = {
        "batches.meta": {"num_cases_per_batch": num_per_batch, "label_names": names, "num_vis": 3072}
    }
    for number, name in enumerate([*(f"data_batch_{number}" for number in range(1, 6)), "test_batch"]):
        labels = [(number + index) % 10 for index in range(num_per_batch)]
        planes = np.repeat(np.array(labels, dtype=np.uint8)[:, None], 3072, axis=1)  # 1024 red, 1024 green, 1024 blue
        planes[:, :1024] += 100
        planes[:, 32:64] = 250  # second row of the red plane
        contents[name] = {
            "batch_label": f"training batch {number + 1} of 5",
            "labels": labels,
            "data": planes,
            "filenames": [f"{names[label]}_s_{index:06d}.png" for index, label in enumerate(labels)],
        }
    for name, content in contents.items():
        with (folder / name).open("wb") as file:
            _Python2Pickler(file, protocol=2).dump(content)
    return {name: hashlib.md5((folder / name).read_bytes()).hexdigest() for name in contents}


def write_tiny_imagenet(root: Path) -> Path:
    """`root/tiny-imagenet-200`: 200 classes with 2 training and 50 validation images each. Their colour tells the
    class, see `class_of`; every training image that ends in `_1` is grey."""
    folder = root / "tiny-imagenet-200"
    (folder / "val" / "images").mkdir(parents=True)
    (folder / "wnids.txt").write_text("\n".join(WNIDS) + "\n")
    (folder / "words.txt").write_text("".join(f"{wnid}\tthing {wnid}\n" for wnid in WNIDS))
    annotations = []
    for number, wnid in enumerate(sorted(WNIDS)):
        coloured = _jpeg(Image.new("RGB", (64, 64), _colour(number)))
        images = folder / "train" / wnid / "images"
        images.mkdir(parents=True)
        (images / f"{wnid}_0.JPEG").write_bytes(coloured)
        (images / f"{wnid}_1.JPEG").write_bytes(_jpeg(Image.new("L", (64, 64), number)))
        boxes = "".join(f"{wnid}_{index}.JPEG\t0\t10\t63\t58\n" for index in range(NUM_TRAIN_PER_CLASS))
        (folder / "train" / wnid / f"{wnid}_boxes.txt").write_text(boxes)
        for index in range(50):
            name = f"val_{200 * index + (37 * number) % 200}.JPEG"
            (folder / "val" / "images" / name).write_bytes(coloured)
            annotations.append(f"{name}\t{wnid}\t0\t32\t44\t62\n")
    (folder / "val" / "val_annotations.txt").write_text("".join(sorted(annotations)))
    return folder


def class_of(pixel: np.ndarray[Any, Any]) -> int:
    """The class that a coloured pixel [3] of Tiny ImageNet tells, JPEG's losses allowed for."""
    return int(pixel[0]) // 16 * 16 + int(pixel[1]) // 16


def _colour(number: int) -> tuple[int, int, int]:
    return number // 16 * 16 + 8, number % 16 * 16 + 8, 128


def _jpeg(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format="JPEG", quality=95)
    return buffer.getvalue()
