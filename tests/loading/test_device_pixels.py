"""The ways of pixels to a device give the same pixels."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

import transferkit as tk
from transferkit.errors import ImageDecodeError
from transferkit.loading import pixels as pixels_module
from transferkit.loading.device_pixels import assembled, batches_on_device, picked, staged
from transferkit.loading.pixels import Pixels
from transferkit.loading.prefetch import prefetched
from transferkit.loading.sources import DatasetPart

RECORD = tk.Preprocessing(size=24, resize=28)
SIZES = [(40, 30), (12, 10), (28, 28), (12, 10), (9, 9), (33, 60), (12, 12)]
BATCHES = [np.array([4, 0, 1]), np.array([3]), np.array([2, 6, 5]), np.array([1, 3, 3])]


@pytest.fixture
def part():
    generator = np.random.default_rng(0)
    images = [generator.integers(0, 256, (*size, 3), dtype=np.uint8) for size in SIZES]
    return tk.Part(images, [0] * len(images), ["only"])


def expected(part, indices):
    return torch.stack([RECORD.pixels(Image.fromarray(part.sources[index])) for index in indices])


def arrived(batch):
    """Wait until a batch is on its device."""
    if batch.ready is not None:
        batch.ready.synchronize()


def check(part, batches):
    batches = list(batches)
    assert [batch.indices.tolist() for batch in batches] == [indices.tolist() for indices in BATCHES]
    for batch in batches:
        arrived(batch)
        images = assembled(batch.groups, RECORD).cpu()
        assert images.dtype == torch.uint8
        assert int((images.int() - expected(part, batch.indices).int()).abs().max()) <= 1


@pytest.mark.parametrize("keep", [True, False])
def test_staged_batches(part, keep, device):
    check(part, staged(Pixels(part, RECORD, keep=keep), BATCHES, device))
    check(part, prefetched(staged(Pixels(part, RECORD, keep=keep), BATCHES, device)))


def test_small_images_go_to_the_device_as_they_are(part, device):
    batch = next(staged(Pixels(part, RECORD), [np.array([1, 0, 3, 6])], device))
    shapes = {tuple(group.images.shape): group.positions.tolist() for group in batch.groups}
    assert shapes == {(2, 12, 10, 3): [0, 2], (1, 24, 24, 3): [1], (1, 12, 12, 3): [3]}
    arrived(batch)
    images = assembled(batch.groups, RECORD).cpu()
    # Enlarged there, they are Pillow's to the bit.
    assert torch.equal(images[[0, 2, 3]], expected(part, [1, 3, 6]))


def test_all_images_are_kept_on_the_device_once_they_are_in_memory(part, device):
    pixels = Pixels(part, RECORD)
    assert pixels.kept_on(device) is None
    pixels[np.array([0, 1])]
    assert pixels.kept_on(device) is None
    pixels[np.arange(len(part))]
    groups = pixels.kept_on(device)
    assert sum(len(group.positions) for group in groups) == len(part)
    assert all(group.images.device.type == device.type for group in groups)
    assert pixels.kept_on(device) is groups
    check(part, picked(groups, BATCHES))


def test_what_takes_too_much_is_not_kept_on_the_device(part, device, monkeypatch):
    pixels = Pixels(part, RECORD)
    pixels[np.arange(len(part))]
    size = sum(group.images.numel() for group in pixels.groups(np.arange(len(part))))
    monkeypatch.setattr(pixels_module, "free_memory", lambda _: 4 * size - 1)
    assert pixels.kept_on(device) is None
    monkeypatch.setattr(pixels_module, "free_memory", lambda _: 4 * size)
    assert pixels.kept_on(device) is not None


def test_every_epoch_gives_the_same_pixels(part, device):
    for keep in (True, False):
        pixels = Pixels(part, RECORD, keep=keep)
        for _ in range(3):
            for indices, images in batches_on_device(pixels, BATCHES, device):
                assert images.device.type == device.type
                assert int((images.cpu().int() - expected(part, indices).int()).abs().max()) <= 1


def test_errors_keep_their_type_and_name(device):
    part = tk.Part([np.zeros((8, 8, 3), np.uint8), b"no image"], [0, 0], ["only"], ids=["a", "b"])
    batches = batches_on_device(Pixels(part, RECORD), [np.array([0]), np.array([1])], device)
    next(batches)
    with pytest.raises(ImageDecodeError, match="The image 'b' cannot be decoded"):
        next(batches)


class Drawn:
    """A data set of the user's own whose images come from a random generator."""

    classes = ("only",)
    targets = (0,) * 6

    def __len__(self):
        return 6

    def __getitem__(self, index):
        return torch.randint(0, 256, (3, 24, 24), dtype=torch.uint8), 0


def test_random_images_come_from_the_calling_thread(device):
    """Otherwise what a model draws, and what the images draw, would meet in any order."""
    pixels = Pixels(DatasetPart(Drawn()), tk.Preprocessing(size=24), workers=4)
    batches = [np.array([0, 1]), np.array([2, 3]), np.array([4, 5])]
    torch.manual_seed(7)
    together = []
    for _, images in batches_on_device(pixels, batches, device):
        together += [images.cpu(), torch.rand(1)]
    torch.manual_seed(7)
    for images, number in zip(together[0::2], together[1::2], strict=True):
        drawn = [torch.randint(0, 256, (3, 24, 24), dtype=torch.uint8) for _ in range(2)]
        assert torch.equal(images, torch.stack(drawn))
        assert torch.equal(number, torch.rand(1))
