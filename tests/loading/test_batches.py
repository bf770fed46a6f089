"""Batches hold every sample exactly once, in an order that follows from the seed alone."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

import transferkit as tk
from transferkit.augmentations import augmentation
from transferkit.loading.batches import ImageBatches, TensorBatches, batch_slices
from transferkit.loading.pixels import Pixels

PREPROCESSING = tk.Preprocessing(size=16)


@pytest.fixture
def part():
    images = np.random.default_rng(0).integers(0, 256, (21, 20, 24, 3), dtype=np.uint8)
    return tk.Part(images, np.arange(21) % 3, ["a", "b", "c"])


@pytest.mark.parametrize(("samples", "batch_size"), list(itertools.product(range(1, 34), range(1, 9))))
def test_slices_hold_every_sample_once(samples, batch_size):
    for at_least_two in (False, True):
        slices = batch_slices(samples, batch_size, at_least_two=at_least_two)
        held = [index for part in slices for index in range(part.start, part.stop)]
        assert held == list(range(samples))
        sizes = [part.stop - part.start for part in slices]
        if at_least_two and samples > 1 and batch_size > 1:
            assert min(sizes) >= 2
        if not at_least_two:
            assert max(sizes) <= batch_size


def seen(source, epoch):
    return [batch.indices.tolist() for batch in source.epoch(epoch)]


def test_order_follows_from_seed_and_epoch(device):
    def source(seed):
        return TensorBatches(torch.arange(50.0), np.zeros(50, dtype=np.int64), device=device, batch_size=8,
                             shuffle=True, seed=seed)  # fmt: skip

    assert seen(source(0), 1) == seen(source(0), 1)
    assert seen(source(0), 1) != seen(source(0), 2)
    assert seen(source(0), 1) != seen(source(1), 1)
    assert sorted(itertools.chain(*seen(source(0), 1))) == list(range(50))


@pytest.mark.parametrize("workers", [0, 1, 2, 4])
def test_batches_are_the_same_for_any_number_of_workers(part, workers, device):
    def images(count):
        chosen = augmentation("standard", PREPROCESSING)
        pixels = Pixels(part, chosen.stored, workers=count)
        source = ImageBatches(pixels, part.targets, PREPROCESSING, device=device, batch_size=4,
                              augmentation=chosen, shuffle=True, seed=5)  # fmt: skip
        return [batch for epoch in (1, 2) for batch in source.epoch(epoch)]

    for first, second in zip(images(0), images(workers), strict=True):
        assert torch.equal(first.inputs, second.inputs)
        assert torch.equal(first.targets, second.targets)


@pytest.mark.parametrize("decode", ["fast", "exact"])
def test_images_are_what_the_preprocessing_gives_one_by_one(part, decode, device):
    pixels = Pixels(part, PREPROCESSING, decode=decode)
    source = ImageBatches(pixels, part.targets, PREPROCESSING, device=device, batch_size=8)
    grey_level = 1.0001 / 255 / min(PREPROCESSING.std)
    tolerance = grey_level if decode == "fast" else 0 if device.type == "cpu" else 1e-6
    for batch in source.epoch(0):
        for row, index, target in zip(batch.inputs, batch.indices, batch.targets, strict=True):
            image, label = part[int(index)]
            torch.testing.assert_close(row.cpu(), PREPROCESSING(image), atol=tolerance, rtol=0)
            assert int(target) == label


@pytest.mark.parametrize("name", [None, "light", "standard", "strong"])
@pytest.mark.parametrize("channels_last", [False, True])
def test_other_types_are_the_float32_images_rounded(part, name, channels_last, device):
    chosen = None if name is None else augmentation(name, PREPROCESSING)
    pixels = Pixels(part, PREPROCESSING if chosen is None else chosen.stored)

    def images(**options):
        source = ImageBatches(pixels, part.targets, PREPROCESSING, device=device, batch_size=8,
                              augmentation=chosen, **options)  # fmt: skip
        return [batch.inputs for batch in source.epoch(1)]

    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    plain = images()
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        for batch, expected in zip(images(dtype=dtype, channels_last=channels_last), plain, strict=True):
            assert batch.is_contiguous(memory_format=memory_format)
            assert torch.equal(batch, expected.to(dtype))


def test_a_visit_sees_the_images_asked_for_as_in_an_epoch(part, device):
    chosen = augmentation("light", PREPROCESSING)
    source = ImageBatches(Pixels(part, chosen.stored), part.targets, PREPROCESSING, device=device,
                          batch_size=8, augmentation=chosen)  # fmt: skip
    inputs = torch.cat([batch.inputs for batch in source.epoch(3)])
    positions = np.array([20, 3, 3, 0, 7, 8, 9, 10, 11, 12])
    batches = list(source.visit(positions, 3))
    assert [len(batch.inputs) for batch in batches] == [8, 2]
    assert np.concatenate([batch.indices for batch in batches]).tolist() == positions.tolist()
    assert torch.equal(torch.cat([batch.inputs for batch in batches]), inputs[positions])
    assert torch.cat([batch.targets for batch in batches]).tolist() == part.targets[positions].tolist()
