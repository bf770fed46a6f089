"""Batches of stored rows follow the order that images would have."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from transferkit.loading import row_batches
from transferkit.loading.batches import TensorBatches
from transferkit.loading.row_batches import RowBatches
from transferkit.loading.row_store import RowStore

TARGETS = np.arange(11) % 3


def stored(rows):
    store = RowStore("features", {"model": "test"})
    ids = [f"image {index}" for index in range(len(rows))]
    assert store.add(ids, [rows])
    return store.rows(ids)


@pytest.mark.parametrize("share", [1.0, 0.0])
def test_rows_on_disk_and_in_memory_give_the_batches_of_a_tensor(share, device, monkeypatch):
    monkeypatch.setattr(row_batches, "_SHARE", share)
    rows = torch.randn(11, 4)
    options = {"device": device, "batch_size": 4, "shuffle": True, "seed": 3}
    expected = TensorBatches(rows, TARGETS, **options)
    for source in (RowBatches(rows, TARGETS, **options), RowBatches(stored(rows), TARGETS, **options)):
        for epoch in (1, 2):
            for batch, other in zip(source.epoch(epoch), expected.epoch(epoch), strict=True):
                assert torch.equal(batch.inputs, other.inputs)
                assert torch.equal(batch.targets, other.targets)
                assert np.array_equal(batch.indices, other.indices)
                assert batch.inputs.device.type == device.type


def test_each_epoch_draws_one_view_of_each_image():
    rows = torch.arange(33.0)[:, None]  # view v of image i is 11 v + i
    source = RowBatches(rows, TARGETS, device="cpu", batch_size=4, shuffle=True, seed=1, views=3)
    seen = []
    for epoch in range(200):
        inputs = torch.cat([batch.inputs for batch in source.epoch(epoch)])[:, 0].long()
        indices = np.concatenate([batch.indices for batch in source.epoch(epoch)])
        assert sorted(indices) == list(range(11))
        assert np.array_equal(inputs.numpy() % 11, indices)
        seen.append(inputs)
    counts = torch.bincount(torch.cat(seen), minlength=33)
    assert counts.min() > 35  # each of 33 views is drawn 67 times on average
    assert counts.max() < 105
