from __future__ import annotations

import hashlib
import pickle
import urllib.request
from pathlib import Path
from urllib.error import URLError

import numpy as np
import pytest
import sklearn.datasets
from torchvision.datasets import CIFAR10

from transferkit.datasets import DATASETS, list_datasets, load_dataset, register_dataset
from transferkit.datasets.base import Part
from transferkit.datasets.builtin import cifar10, digits
from transferkit.errors import ArgumentError, DataError, DownloadError

CLASSES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]


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


@pytest.fixture
def tiny_cifar10(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, dict[str, np.ndarray]]:
    """CIFAR-10's own files, with 20 images in each."""
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    rows = {}

    def write(name: str, content: dict[str, object]) -> str:
        data = pickle.dumps(content)
        (folder / name).write_bytes(data)
        return hashlib.md5(data).hexdigest()

    batches = []
    for name in [f"data_batch_{index}" for index in range(1, 6)] + ["test_batch"]:
        rows[name] = np.random.default_rng(len(rows)).integers(0, 256, (20, 3072), dtype=np.uint8)
        batches.append([name, write(name, {"data": rows[name], "labels": [*range(10), *range(10)]})])
    meta = {"filename": "batches.meta", "key": "label_names"}
    monkeypatch.setattr(CIFAR10, "train_list", batches[:5])
    monkeypatch.setattr(CIFAR10, "test_list", batches[5:])
    monkeypatch.setattr(CIFAR10, "meta", meta | {"md5": write("batches.meta", {"label_names": CLASSES})})
    return tmp_path, rows


@pytest.mark.parametrize("download", [False, True])
def test_cifar10_is_read_where_it_lies(
    tiny_cifar10: tuple[Path, dict[str, np.ndarray]], download: bool
) -> None:
    root, rows = tiny_cifar10
    splits = load_dataset("cifar10", root=root, download=download, val=0.1, seed=3)
    assert (len(splits.train), len(splits.val), len(splits.test)) == (90, 10, 20)
    assert splits.classes == tuple(CLASSES)
    assert splits.test.ids[3] == "test/3"
    image, target = splits.test[13]
    assert target == 3
    # A row holds 1024 red, then 1024 green, then 1024 blue values, row by row.
    assert np.array_equal(np.asarray(image)[..., 2].ravel(), rows["test_batch"][13, 2048:])
    assert splits.record["kwargs"] == {"root": str(root), "download": download}


def no_network(*args: object, **options: object) -> None:
    raise URLError("Name or service not known")


def test_cifar10_without_a_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(urllib.request, "urlopen", no_network)
    with pytest.raises(
        DownloadError, match=r"could not be fetched into .*not known.*cifar-10-python"
    ) as raised:
        cifar10(root=tmp_path / "new")
    assert "\n" not in str(raised.value)
    with pytest.raises(DataError, match=r"does not hold CIFAR-10.*download=True"):
        cifar10(root=tmp_path / "new", download=False)


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
    with pytest.raises(ArgumentError, match="no label_from for the data set 'black-and-white'"):
        load_dataset(registered, label_from="(.)")


@pytest.mark.parametrize("name", sorted(set(DATASETS) - {"cifar10"}))
def test_every_data_set_keeps_to_the_contract(name: str) -> None:
    splits = load_dataset(name, subset=0.05)
    for part in (splits.train, splits.val, splits.test):
        image, target = part[0]
        assert image.mode == "RGB"
        assert 0 <= target < len(splits.classes)
        assert part.classes == splits.classes
