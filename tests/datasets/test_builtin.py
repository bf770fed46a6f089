from __future__ import annotations

import numpy as np
import pytest
import sklearn.datasets

from transferkit.datasets import DATASETS, list_datasets, load_dataset, register_dataset
from transferkit.datasets.base import Part
from transferkit.datasets.builtin import digits
from transferkit.errors import ArgumentError, DataError


def test_digits_are_those_of_scikit_learn() -> None:
    data = sklearn.datasets.load_digits()
    parts = digits()
    assert (len(parts["train"]), len(parts["test"])) == (1258, 539)
    assert sorted(parts["train"].ids + parts["test"].ids, key=int) == [str(index) for index in range(1797)]
    for part in parts.values():
        assert part.classes == tuple("0123456789")
        assert np.bincount(part.targets).min() > 0.09 * len(part)
        for index in (0, len(part) - 1):
            image, target = part[index]
            original = int(part.ids[index])
            assert target == data.target[original]
            assert np.abs(np.asarray(image)[..., 1] - data.images[original] * 255 / 16).max() <= 0.5


def test_the_test_digits_do_not_depend_on_the_seed() -> None:
    first, second = (load_dataset("digits", shots=10, seed=seed) for seed in (0, 1))
    assert first.test.ids == second.test.ids
    assert first.train.ids != second.train.ids
    assert not set(first.test.ids) & {*first.train.ids, *first.val.ids}


def black_and_white(**options: object) -> dict[str, Part]:
    images = np.repeat(np.array([0, 255], dtype=np.uint8), 10)[:, None, None].repeat(8, 1).repeat(8, 2)
    return {"train": Part(images, [0] * 10 + [1] * 10, ["black", "white"])}


@pytest.fixture
def registered(monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(DATASETS, "_factories", dict(DATASETS))

    @register_dataset("black-and-white")
    def plug_in(*, test: bool = False, wrong: bool = False) -> object:
        parts = black_and_white()
        if test:
            whole = black_and_white()["train"]
            parts["test"] = Part(whole.sources, 1 - whole.targets, ["white", "black"])
        return ["no", "parts"] if wrong else parts

    return "black-and-white"


def test_a_registered_data_set_loads_by_name(registered: str) -> None:
    assert registered in list_datasets()
    splits = load_dataset(registered, val=0.3)
    assert (len(splits.train), len(splits.val), splits.test) == (14, 6, None)
    assert splits.val.name == "val"
    with pytest.raises(ArgumentError, match="already registered"):
        register_dataset(registered)(black_and_white)


def test_parts_are_matched_by_the_names_of_their_classes(registered: str) -> None:
    splits = load_dataset(registered, test=True)
    assert splits.test.classes == ("black", "white")
    for image, target in splits.test:
        assert image.getpixel((0, 0))[0] == 255 * target


def test_a_registered_data_set_says_what_it_cannot_take(registered: str) -> None:
    with pytest.raises(ArgumentError, match="'black-and-white': got an unexpected keyword argument 'tset'"):
        load_dataset(registered, tset=True)
    with pytest.raises(DataError, match="must give a dict of Parts"):
        load_dataset(registered, wrong=True)
    with pytest.raises(
        ArgumentError, match=r"'label_from' parameter.*None for the data set 'black-and-white'"
    ):
        load_dataset(registered, label_from="(.)")


def test_the_data_set_that_comes_along_keeps_to_the_contract() -> None:
    splits = load_dataset("digits", subset=0.05)
    for part in (splits.train, splits.val, splits.test):
        image, target = part[0]
        assert image.mode == "RGB"
        assert 0 <= target < len(splits.classes)
        assert part.classes == splits.classes
