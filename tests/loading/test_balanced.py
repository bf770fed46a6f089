"""Classes that are shown equally often, whatever their size."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import transferkit as tk
from transferkit.loading.balanced import balanced_order
from transferkit.loading.batches import ImageBatches
from transferkit.loading.pixels import Pixels
from transferkit.loading.row_batches import RowBatches

TARGETS = np.array([0] * 50 + [2] * 7 + [5] * 3)
COUNT = len(TARGETS)


def drawn(seed):
    return balanced_order(TARGETS, np.random.default_rng(seed))


@pytest.mark.parametrize("seed", range(20))
def test_each_class_comes_equally_often_and_each_image_of_it_too(seed):
    order = drawn(seed)
    assert len(order) == COUNT == len(set(order.tolist()))
    positions = order % COUNT
    assert np.bincount(TARGETS[positions], minlength=6).tolist() == [20, 0, 20, 0, 0, 20]
    times = np.bincount(positions, minlength=COUNT)
    for label in (0, 2, 5):
        of_class = times[label == TARGETS]
        assert of_class.max() - of_class.min() <= 1
    # The n-th time that an image comes, its number is n higher by the number of images.
    for position in range(COUNT):
        numbers = sorted(order[positions == position] // COUNT)
        assert numbers == list(range(len(numbers)))


def test_what_does_not_divide_goes_to_a_class_at_random():
    targets = np.array([0] * 5 + [1] * 3)
    orders = (balanced_order(targets[:7], np.random.default_rng(seed)) for seed in range(40))
    counts = {int((targets[order % 7] == 1).sum()) for order in orders}
    assert counts == {3, 4}


def test_the_order_is_mixed_and_another_for_another_seed():
    assert (drawn(0) != drawn(1)).any()
    assert (np.diff(TARGETS[drawn(0) % COUNT]) != 0).sum() > 20
    assert (drawn(0) == drawn(0)).all()


def shown_by(source, epoch, start=0):
    return [(batch.indices.tolist(), batch.inputs.tolist()) for batch in source.epoch(epoch, start)]


def image_source(**options):
    pixels = np.random.default_rng(0).integers(0, 256, (COUNT, 8, 8, 3), dtype=np.uint8)
    part = tk.Part(pixels, TARGETS, list("abcdef"))
    preprocessing = tk.Preprocessing(size=8)
    source = ImageBatches(
        Pixels(part, preprocessing), TARGETS, preprocessing, batch_size=8, shuffle=True, seed=3, **options
    )
    source.balanced = True
    return source


def test_images_are_balanced_and_those_shown_again_are_augmented_anew(device):
    light = tk.augmentation("light", tk.Preprocessing(size=8))
    source = image_source(device=device, augmentation=light)
    batches = list(source.epoch(1))
    indices = np.concatenate([batch.indices for batch in batches])
    labels = torch.cat([batch.targets for batch in batches]).cpu()
    assert torch.bincount(labels).tolist() == [20, 0, 20, 0, 0, 20]
    assert labels.tolist() == TARGETS[indices].tolist()
    images = torch.cat([batch.inputs for batch in batches])[torch.from_numpy(indices == 59)].flatten(1)
    assert len(images) >= 6
    assert len(set(map(tuple, images.tolist()))) > 1


def test_an_epoch_can_begin_at_any_batch(device):
    source = image_source(device=device)
    assert shown_by(source, 2, 3) == shown_by(source, 2)[3:]
    assert shown_by(source, 2) != shown_by(source, 1)


def test_stored_rows_are_balanced_over_their_views(device):
    rows = torch.arange(2 * COUNT, dtype=torch.float32)[:, None]
    source = RowBatches(rows, TARGETS, device=device, batch_size=8, shuffle=True, seed=3, views=2)
    source.balanced = True
    views = set()
    for batch in source.epoch(1):
        assert (batch.inputs[:, 0].cpu().numpy() % COUNT == batch.indices).all()
        assert batch.targets.tolist() == TARGETS[batch.indices].tolist()
        last = torch.from_numpy(batch.indices == 59)
        views |= {int(row) // COUNT for row in batch.inputs.cpu()[last, 0]}
    assert views == {0, 1}
    assert shown_by(source, 2, 3) == shown_by(source, 2)[3:]


def test_an_order_that_is_not_shuffled_is_not_balanced_either(device):
    source = RowBatches(torch.zeros(COUNT, 1), TARGETS, device=device, batch_size=8)
    source.balanced = True
    assert np.concatenate([batch.indices for batch in source.epoch(0)]).tolist() == list(range(COUNT))
