"""Crop, flip, cutout and normalisation of whole batches, against plain loops over images."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from ray_gossip import data
from ray_gossip.config import DataConfig, parse
from ray_gossip.data.augment import Augmenter, Normaliser
from ray_gossip.errors import ConfigError

CPU = torch.device("cpu")
SCALE = data.Scale(mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.25))
EVERYTHING = data.Augmentation(padding=4, flip=True, cutout=8)


def pictures(num_images: int, *, channels: int = 3, height: int = 32, width: int = 32) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(1, 256, (num_images, channels, height, width), dtype=torch.uint8, generator=generator)


def batches(
    num_images: int = 100,
    *,
    seed: int = 0,
    device: torch.device = CPU,
    augmentation: data.Augmentation = EVERYTHING,
    batch_size: int = 32,
) -> data.Batches:
    """Of pictures whose label is their number."""
    return data.Batches(
        pictures(num_images),
        torch.arange(num_images),
        batch_size=batch_size,
        seed=seed,
        device=device,
        augmentation=augmentation,
        scale=SCALE,
    )


def one_by_one(images: Tensor, drawn: Tensor, asked: data.Augmentation, scale: data.Scale | None) -> Tensor:
    """What an Augmenter does, with an image at a time."""
    results = []
    _, height, width = images.shape[1:]
    for image, (y, x, flipped, cut_y, cut_x) in zip(images, drawn.T.tolist(), strict=True):
        padded = torch.zeros(len(image), height + 2 * asked.padding, width + 2 * asked.padding, dtype=image.dtype)
        padded[:, asked.padding : asked.padding + height, asked.padding : asked.padding + width] = image
        result = padded[:, y : y + height, x : x + width]
        if asked.flip and flipped:
            result = result.flip(2)
        if scale is not None:
            mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (scale.mean, scale.std))
            result = (result / 255 - mean) / std
        result = result.clone()
        result[:, cut_y : cut_y + asked.cutout, cut_x : cut_x + asked.cutout] = 0
        results.append(result)
    return torch.stack(results)


@pytest.mark.parametrize(
    "asked",
    [
        EVERYTHING,
        data.Augmentation(padding=2),
        data.Augmentation(flip=True),
        data.Augmentation(cutout=5),
        data.Augmentation(padding=1, flip=True),
    ],
)
@pytest.mark.parametrize("scale", [SCALE, None])
def test_a_batch_is_what_a_loop_over_its_images_makes(asked: data.Augmentation, scale: data.Scale | None) -> None:
    images = pictures(50, height=20, width=24)
    if scale is None:
        images = images.float()
    augmenter = Augmenter(images, asked, Normaliser(scale, device=CPU), device=CPU)
    chosen = torch.tensor([49, 0, 7, 7, 3])
    drawn = torch.stack(augmenter.draw(5, torch.Generator().manual_seed(1)))
    torch.testing.assert_close(augmenter(chosen, drawn), one_by_one(images[chosen], drawn, asked, scale))


def test_the_numbers_drawn_reach_every_place_and_no_further() -> None:
    augmenter = Augmenter(pictures(2), EVERYTHING, Normaliser(SCALE, device=CPU), device=CPU)
    drawn = augmenter.draw(5000, torch.Generator().manual_seed(0))
    assert [(int(column.min()), int(column.max())) for column in drawn] == [(0, 8), (0, 8), (0, 1), (0, 24), (0, 24)]
    extreme = torch.tensor([[0, 8], [0, 8], [0, 1], [0, 24], [0, 24]])
    both = torch.arange(2)
    torch.testing.assert_close(augmenter(both, extreme), one_by_one(pictures(2), extreme, EVERYTHING, SCALE))


def test_inputs_without_augmentation_are_normalised_and_else_as_they_are() -> None:
    images, labels = next(batches(augmentation=data.Augmentation()))
    mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (SCALE.mean, SCALE.std))
    torch.testing.assert_close(images, (pictures(100)[labels] / 255 - mean) / std)
    assert images.dtype == torch.float32


def test_a_batch_holds_the_images_of_its_labels() -> None:
    plain = batches(augmentation=data.Augmentation())
    flipped = batches(augmentation=data.Augmentation(flip=True))
    images, labels = next(flipped)
    mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (SCALE.mean, SCALE.std))
    originals = (pictures(100)[labels] / 255 - mean) / std
    as_they_are = (images - originals).abs().amax((1, 2, 3)) < 1e-5
    mirrored = (images - originals.flip(3)).abs().amax((1, 2, 3)) < 1e-5
    assert (as_they_are ^ mirrored).all()
    assert 5 < as_they_are.sum() < 27
    assert next(plain)[1].equal(labels)  # the order of samples does not depend on what is done to them


def test_augmentation_is_drawn_anew_for_every_data_epoch() -> None:
    first, second = itertools.islice(batches(32, batch_size=32), 2)
    first_order, second_order = first[1].argsort(), second[1].argsort()
    same = (first[0][first_order] == second[0][second_order]).flatten(1).all(1)
    assert same.sum() < 4


def test_augmented_batches_depend_on_their_seed_and_on_nothing_else() -> None:
    def drawn(seed: int) -> Tensor:
        return torch.cat([images for images, _ in itertools.islice(batches(seed=seed), 5)])

    first = drawn(1)
    torch.rand(3)
    assert first.equal(drawn(1))
    assert not first.equal(drawn(2))


def test_making_batches_leaves_the_shard_as_it_is() -> None:
    images = pictures(40)
    kept = images.clone()
    made = data.Batches(
        images, torch.arange(40), batch_size=8, seed=0, device=CPU, augmentation=data.Augmentation(), scale=SCALE
    )
    for _ in itertools.islice(made, 10):
        pass
    assert images.equal(kept)


@pytest.mark.parametrize(
    ("config", "in_shape", "expected"),
    [
        (DataConfig(), (1, 8, 8), data.Augmentation()),
        (DataConfig(augment="standard", cutout=0), (1, 8, 8), data.Augmentation(padding=4, flip=True)),
        (DataConfig(name="cifar10", root="/"), (3, 32, 32), EVERYTHING),
        (DataConfig(name="cifar10", root="/", augment="none"), (3, 32, 32), data.Augmentation()),
        (DataConfig(name="tiny_imagenet", root="/"), (3, 64, 64), data.Augmentation(padding=4, flip=True, cutout=16)),
    ],
)
def test_every_data_set_has_a_sensible_augmentation(
    config: DataConfig, in_shape: tuple[int, int, int], expected: data.Augmentation
) -> None:
    assert data.augmentation(config, in_shape=in_shape) == expected


@pytest.mark.parametrize(
    ("key", "line"), [("cutout", r"cutout=32 covers whole"), ("crop_padding", r"crop_padding=32 could crop")]
)
def test_what_would_leave_nothing_of_an_image_is_refused(key: str, line: str) -> None:
    own = {"factory": "my:images", "augment": "standard", key: 32}
    with pytest.raises(ConfigError, match=rf"^data\.{line} images of 32x32"):
        data.augmentation(parse({"data": own}).data, in_shape=(3, 32, 32))
    with pytest.raises(ConfigError, match=rf"^data: {key}=32 covers whole images of 32x32; lower it$"):
        parse({"data": {"name": "cifar10", "root": "/", key: 32}})


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_cpu_and_cuda_give_the_same_augmented_batches() -> None:
    for (here, labels), (there, same_labels) in itertools.islice(
        zip(batches(), batches(device=torch.device("cuda")), strict=True), 10
    ):
        assert there.is_contiguous(memory_format=torch.channels_last)
        assert there.cpu().equal(here)
        assert same_labels.cpu().equal(labels)
