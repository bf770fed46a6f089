"""Stand-ins for the classes of ``datasets``, which need not be installed; with it, its own are tried too."""

from __future__ import annotations

import importlib.util
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image as PillowImage

import transferkit as tk
from transferkit.datasets import load_dataset, restore_splits
from transferkit.errors import ArgumentError, ClassMismatchError, DataError


class Image:
    def __init__(self, decode: bool = True) -> None:
        self.decode = decode


class ClassLabel:
    def __init__(self, names: list[str]) -> None:
        self.names = names


class Value:
    pass


class Dataset:
    """What is used of ``datasets.Dataset``; it counts how many images it decodes."""

    decoded = 0

    def __init__(self, features: dict[str, Any], rows: list[dict[str, Any]], kind: str | None = None) -> None:
        self.features, self.rows, self.format = features, rows, {"type": kind}

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, key: int | str) -> Any:
        if isinstance(key, str):
            return [self._value(row, key) for row in self.rows]
        return {column: self._value(self.rows[key], column) for column in self.features}

    def _value(self, row: dict[str, Any], column: str) -> Any:
        feature = self.features[column]
        if not isinstance(feature, Image):
            return row[column]
        if not feature.decode:
            return row[column]
        Dataset.decoded += 1
        return PillowImage.open(io.BytesIO(row[column]["bytes"]))

    def with_format(self, kind: str | None) -> Dataset:
        return Dataset(self.features, self.rows, kind)

    def select_columns(self, columns: list[str]) -> Dataset:
        return Dataset({name: self.features[name] for name in columns}, self.rows)

    def cast_column(self, column: str, feature: Image) -> Dataset:
        return Dataset({**self.features, column: feature}, self.rows)


class Rows:
    """What has features and rows and nothing else."""

    def __init__(self, dataset: Dataset) -> None:
        self.features, self._dataset = dataset.features, dataset

    def __len__(self) -> int:
        return len(self._dataset)

    def __getitem__(self, key: int | str) -> Any:
        return self._dataset[key]


def pixels(index: int) -> np.ndarray:
    return np.random.default_rng(index).integers(0, 256, (6, 7, 3), dtype=np.uint8)


def png(index: int) -> bytes:
    stream = io.BytesIO()
    PillowImage.fromarray(pixels(index)).save(stream, "PNG")
    return stream.getvalue()


def dataset(
    labels: list[Any], label: Any = None, *, columns: tuple[str, str] = ("image", "label"), start: int = 0
) -> Dataset:
    image_name, label_name = columns
    features = {"id": Value(), image_name: Image(), label_name: label or ClassLabel(["ant", "bee"])}
    rows = [
        {"id": index, image_name: {"bytes": png(start + index), "path": None}, label_name: value}
        for index, value in enumerate(labels)
    ]
    return Dataset(features, rows)


@pytest.mark.parametrize("form", [lambda data: data, Rows])
def test_a_dataset_gives_images_and_names(form: Any) -> None:
    splits = load_dataset(form(dataset([0, 1] * 10)), val=0.3)
    assert splits.classes == ("ant", "bee")
    assert (len(splits.train), len(splits.val)) == (14, 6)
    for part in (splits.train, splits.val):
        for index, (image, target) in enumerate(part):
            row = int(part.ids[index].removeprefix("train/"))
            assert target == row % 2
            assert np.array_equal(np.asarray(image), pixels(row))


def test_images_stay_encoded_until_they_are_asked_for() -> None:
    Dataset.decoded = 0
    splits = load_dataset(dataset([0, 1] * 10), val=0.3)
    assert splits.train.source(0) == png(int(splits.train.ids[0].removeprefix("train/")))
    assert splits.train.identity(0) != splits.train.identity(1)
    assert Dataset.decoded == 0


def test_images_may_be_files(tmp_path: Path) -> None:
    data = dataset([0, 1] * 4)
    for index, row in enumerate(data.rows):
        (tmp_path / f"{index}.png").write_bytes(png(index))
        row["image"] = {"bytes": None, "path": str(tmp_path / f"{index}.png")}
    part = load_dataset(data, val=0).train
    assert part.source(3) == tmp_path / "3.png"
    assert np.array_equal(np.asarray(part[3][0]), pixels(3))


def test_a_dict_of_splits() -> None:
    data = {
        "train": dataset([0, 1] * 5),
        "validation": dataset([1, 0] * 2, start=100),
        "test": dataset([1, 1, 0], start=200),
    }
    splits = load_dataset(data, shots=2, seed=1)
    assert [len(part) for part in (splits.train, splits.val, splits.test)] == [4, 4, 3]
    assert splits.val.ids[0] == "validation/0"
    assert np.array_equal(np.asarray(splits.test[0][0]), pixels(200))
    assert restore_splits(data, splits.record).train.ids == splits.train.ids
    data["train"].rows[0]["image"] = {"bytes": png(999), "path": None}
    whole = load_dataset(data).record
    data["train"].rows[0]["image"] = {"bytes": png(998), "path": None}
    with pytest.raises(DataError, match="has changed since it was recorded"):
        restore_splits(data, whole)


def test_classes_are_matched_by_name() -> None:
    data = {"train": dataset([0, 1] * 5), "test": dataset([0, 0], ClassLabel(["bee", "ant"]))}
    assert load_dataset(data).test.targets.tolist() == [1, 1]
    data["test"] = dataset([0, 1], ClassLabel(["bee", "wasp"]))
    with pytest.raises(ClassMismatchError, match="'wasp'"):
        load_dataset(data)


def test_splits_that_are_none_of_the_three_or_have_no_labels() -> None:
    data = {"train": dataset([0, 1] * 5), "unsupervised": dataset([-1]), "test": dataset([-1, -1])}
    with pytest.warns(UserWarning, match=r"left out the split 'unsupervised'.*took no 'test' part.*all -1"):
        splits = load_dataset(data)
    assert splits.test is None
    with pytest.raises(DataError, match=r"has no 'train' split, only \['test'\]"):
        load_dataset({"test": dataset([0, 1])})
    with pytest.raises(DataError, match="two 'val' splits, 'valid' and 'validation'"):
        load_dataset({name: dataset([0, 1]) for name in ("train", "valid", "validation")})
    with pytest.raises(DataError, match=r"at least 0 and below 2.*Got -1 for train/2"):
        load_dataset(dataset([0, 1, -1]))


@pytest.mark.parametrize(
    ("labels", "classes"), [(["b", "a"] * 3, ("a", "b")), ([1, 0] * 3, ("0", "1"))], ids=["texts", "integers"]
)
def test_labels_without_a_list_of_names(labels: list[Any], classes: tuple[str, ...]) -> None:
    data = {"train": dataset(labels, Value()), "test": dataset(labels[:1], Value())}
    splits = load_dataset(data)
    assert splits.classes == classes
    assert classes[splits.test.targets[0]] == str(labels[0])


@pytest.mark.parametrize("columns", [("img", "label"), ("photo", "kind"), ("image", "labels")])
def test_columns_are_found_by_type(columns: tuple[str, str]) -> None:
    assert load_dataset(dataset([0, 1] * 3, columns=columns), val=0).train.targets.tolist() == [0, 1] * 3


def test_columns_that_cannot_be_told_apart() -> None:
    data = dataset([0, 1] * 3, columns=("img", "fine_label"))
    data.features["coarse_label"] = ClassLabel(["insect", "other"])
    for row in data.rows:
        row["coarse_label"] = 0
    with pytest.raises(
        DataError, match=r"has 2 columns \('fine_label', 'coarse_label'\) of labels.*label=\.\.\."
    ):
        load_dataset(data)
    assert load_dataset(data, label="fine_label", val=0).classes == ("ant", "bee")
    with pytest.raises(
        ArgumentError, match=r"'label' parameter of load_dataset must be one of the columns \['id'"
    ):
        load_dataset(data, label="fine")
    with pytest.raises(DataError, match="has no such column of images"):
        load_dataset(Dataset({"text": Value(), "label": ClassLabel(["a"])}, [{"text": "x", "label": 0}]))


def test_streams_and_transforms_are_refused() -> None:
    class Stream:
        features = {"image": Image(), "label": ClassLabel(["a", "b"])}

    with pytest.raises(DataError, match="is a stream"):
        load_dataset(Stream())
    transformed = dataset([0, 1] * 3)
    transformed.format = {"type": "custom"}
    with pytest.raises(DataError, match=r"has a transform of its own; take it off with dataset\.with_format"):
        load_dataset(transformed)
    as_tensors = dataset([0, 1] * 3)
    as_tensors.format = {"type": "torch"}
    assert load_dataset(as_tensors, val=0).train[0][0].size == (7, 6)


def test_what_it_does_not_take() -> None:
    with pytest.raises(ArgumentError, match=r"'label_from' parameter.*None for a Hugging Face data set"):
        load_dataset(dataset([0, 1]), label_from="(.)")
    with pytest.raises(
        ArgumentError, match="Hugging Face data set: got an unexpected keyword argument 'img'"
    ):
        load_dataset(dataset([0, 1]), img="image")


def test_it_trains(tiny_model: Any) -> None:
    splits = load_dataset(dataset([0, 1] * 10), val=0.2)
    trainer = tk.Trainer(
        tiny_model(), recipe=tk.Phase(train="head"), progress=False, device="cpu", batch_size=4
    )
    assert len(trainer.fit(splits)) == 1


# A folder of tests has that name too, but no file to import.
INSTALLED = getattr(importlib.util.find_spec("datasets"), "origin", None) is not None


@pytest.mark.skipif(not INSTALLED, reason="datasets is not installed")
@pytest.mark.filterwarnings("ignore")  # those of the package and of what it needs
def test_the_real_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    import datasets

    for start, split in ((0, "train"), (100, "test")):
        for index in range(8):
            file = tmp_path / "photos" / split / ("ant", "bee")[index % 2] / f"{index}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(png(start + index))
    where = {"data_dir": str(tmp_path / "photos"), "cache_dir": str(tmp_path / "cache")}
    made = datasets.load_dataset("imagefolder", **where)
    made.save_to_disk(tmp_path / "saved")
    for data in (made, datasets.load_from_disk(tmp_path / "saved"), made.with_format("torch")):
        splits = load_dataset(data, val=0.25)
        assert (len(splits.train), len(splits.val), splits.classes) == (6, 2, ("ant", "bee"))
        found = {np.asarray(image).tobytes(): target for image, target in splits.test}
        assert found == {pixels(100 + index).tobytes(): index % 2 for index in range(8)}
    assert isinstance(load_dataset(made).test.source(0), Path)
    assert load_dataset(datasets.load_from_disk(tmp_path / "saved")).test.source(0).startswith(b"\x89PNG")
    with pytest.raises(DataError, match="is a stream"):
        load_dataset(datasets.load_dataset("imagefolder", streaming=True, **where)["train"])
    with pytest.raises(DataError, match="a transform of its own"):
        load_dataset(made["train"].with_transform(len))
