"""Whatever a user calls data becomes batches, or is refused in one sentence."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import Dataset, TensorDataset

import transferkit as tk
from transferkit.errors import DataError
from transferkit.loading.sources import batches_of, part_of

PREPROCESSING = tk.Preprocessing(size=8)
OPTIONS = {"device": "cpu", "batch_size": 4}


class Photos(Dataset):
    """Ten small images of the kinds that data sets give."""

    def __init__(self, kind):
        self.kind = kind
        self.asked = 0

    def __len__(self):
        return 10

    def __getitem__(self, index):
        self.asked += 1
        array = np.full((8, 8, 3), index * 20, dtype=np.uint8)
        tensor = torch.from_numpy(array).permute(2, 0, 1)
        image = {"pil": Image.fromarray(array), "array": array, "tensor": tensor, "float": tensor / 255}
        return image[self.kind], index % 2


@pytest.mark.parametrize("kind", ["pil", "array", "tensor"])
def test_a_map_style_data_set_of_images_is_preprocessed(kind):
    batches = list(batches_of(Photos(kind), PREPROCESSING, **OPTIONS).epoch(0))
    images = torch.cat([batch.inputs for batch in batches])
    expected = torch.stack([PREPROCESSING(Photos("pil")[index][0]) for index in range(10)])
    torch.testing.assert_close(images, expected)
    assert torch.cat([batch.targets for batch in batches]).tolist() == [0, 1] * 5


def test_a_data_set_of_the_users_own_is_asked_anew_in_each_epoch():
    photos = Photos("pil")
    source = batches_of(photos, PREPROCESSING, **OPTIONS)
    photos.asked = 0
    for epoch in (1, 2):
        list(source.epoch(epoch))
    assert photos.asked == 20


def test_float_tensors_are_taken_as_ready_for_the_model():
    batches = list(batches_of(Photos("float"), PREPROCESSING, **OPTIONS).epoch(0))
    expected = torch.stack([Photos("float")[index][0] for index in range(10)])
    torch.testing.assert_close(torch.cat([batch.inputs for batch in batches]), expected)


def test_images_without_preprocessing_are_refused():
    with pytest.raises(DataError, match=r"give it one with transferkit\.attach_spec"):
        batches_of(Photos("pil"), None, **OPTIONS)


@pytest.mark.parametrize("bad", ["folder", 3, None, np.zeros(3), (1, 2)])
def test_what_is_no_data_is_refused(bad):
    with pytest.raises(DataError, match="Data must be a part of load_dataset"):
        part_of(bad)


def test_samples_must_be_pairs():
    with pytest.raises(DataError, match="A sample must be a pair of an image and a class index"):
        part_of([1, 2, 3])
    with pytest.raises(DataError, match="The data set is empty"):
        part_of([])


def test_a_tensor_data_set_of_floats_needs_no_preprocessing():
    data = TensorDataset(torch.randn(5, 3, 8, 8), torch.tensor([0, 1, 0, 1, 0]))
    batches = list(batches_of(data, None, **OPTIONS).epoch(0))
    assert [len(batch.targets) for batch in batches] == [4, 1]
