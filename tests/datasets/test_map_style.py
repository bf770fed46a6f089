from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import Dataset, TensorDataset

import transferkit as tk
from transferkit.datasets import Part, load_dataset, restore_splits
from transferkit.errors import ArgumentError, DataError


class Squares(Dataset):
    """Grey squares whose class is whether they are bright."""

    classes = ("dark", "bright")

    def __init__(self, count: int = 20) -> None:
        self.targets = [index % 2 for index in range(count)]

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        target = self.targets[index]
        return Image.new("L", (8, 8), 200 * target + index), target


class Unnamed:
    """Nothing but a length and items."""

    def __len__(self) -> int:
        return 10

    def __getitem__(self, index: int) -> tuple[np.ndarray, int]:
        return np.full((8, 8, 3), index, dtype=np.uint8), index % 2


def test_whatever_has_a_length_and_items_is_data() -> None:
    splits = load_dataset(Squares(), val=0.3)
    assert (len(splits.train), len(splits.val), splits.classes) == (14, 6, ("dark", "bright"))
    for part in (splits.train, splits.val):
        for index, (image, target) in enumerate(part):
            row = int(part.ids[index])
            assert (image.getpixel((0, 0)), target) == ((200 * (row % 2) + row,) * 3, row % 2)
    assert load_dataset(Unnamed(), val=0).classes == ("0", "1")
    restored = restore_splits(Squares(), splits.record)
    assert (restored.train.ids, restored.val.ids) == (splits.train.ids, splits.val.ids)


def test_a_dict_of_them() -> None:
    splits = load_dataset({"train": Squares(), "test": Squares(6)}, val=0, shots=3)
    assert (len(splits.train), splits.val, len(splits.test)) == (6, None, 6)
    assert [part.name for part in (splits.train, splits.test)] == ["train", "test"]
    with pytest.raises(ArgumentError, match=r"must be a dict with the keys 'train'.*Got \['training'\]"):
        load_dataset({"training": Squares()})


def test_a_part_is_split_too(tiny_part: Callable[..., Part]) -> None:
    part = tiny_part(20)
    splits = load_dataset(part, val=0.5)
    assert set(splits.train.ids) | set(splits.val.ids) == set(part.ids)
    assert type(splits.train) is Part


def test_what_gives_no_images() -> None:
    with pytest.raises(DataError, match="gives float tensors, which are taken as ready for the model"):
        load_dataset(TensorDataset(torch.zeros(4, 3, 8, 8), torch.tensor([0, 1, 0, 1])))
    with pytest.raises(DataError, match="A sample must be a pair of an image and a class index"):
        load_dataset(range(5))
    with pytest.raises(DataError, match="The data set is empty"):
        load_dataset(Squares(0))


@pytest.mark.parametrize("options", [{"label_from": "(.)"}, {"classes": ["a", "b"]}])
def test_what_it_does_not_take(options: dict[str, Any]) -> None:
    with pytest.raises(ArgumentError, match=f"'{next(iter(options))}' .*for a map-style data set"):
        load_dataset(Squares(), **options)


@pytest.mark.parametrize("data", [np.zeros((4, 8, 8, 3), dtype=np.uint8), torch.zeros(4, 3, 8, 8), b"abc"])
def test_half_of_a_pair_is_no_data(data: object) -> None:
    with pytest.raises(ArgumentError, match="'name_or_path' parameter of load_dataset must be a folder"):
        load_dataset(data)


def test_it_trains_and_is_evaluated(tiny_model: Callable[..., torch.nn.Module]) -> None:
    splits = load_dataset(Squares(), val=0.3)
    model = tiny_model()
    trainer = tk.Trainer(model, recipe=tk.Phase(train="head"), progress=False, device="cpu", batch_size=4)
    assert len(trainer.fit(splits)) == 1
    assert tk.evaluate(model, splits, device="cpu").n == 6
