from __future__ import annotations

import json
import shutil
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from transferkit.datasets import Splits, load_dataset, restore_splits
from transferkit.datasets.base import Part
from transferkit.errors import ArgumentError, ClassMismatchError, DataError, UnknownNameError

LayOut = Callable[..., Path]


def files(**counts: int) -> list[str]:
    """Names below class folders; two underscores stand for a slash."""
    return [
        f"{name.replace('__', '/')}/{index}.jpg" for name, count in counts.items() for index in range(count)
    ]


def per_class(part: Part) -> dict[str, int]:
    return dict(Counter(part.classes[target] for target in part.targets))


def ids(splits: Splits) -> list[tuple[str, ...] | None]:
    return [part and part.ids for part in (splits.train, splits.val, splits.test)]


def test_a_validation_part_is_drawn_where_there_is_none(lay_out: LayOut) -> None:
    root = lay_out(*files(train__a=40, train__b=20, test__a=5, test__b=5))
    splits = load_dataset(root, val=0.25)
    assert per_class(splits.train) == {"a": 30, "b": 15}
    assert per_class(splits.val) == {"a": 10, "b": 5}
    assert per_class(splits.test) == {"a": 5, "b": 5}
    assert not set(splits.train.ids) & set(splits.val.ids)
    assert [part.name for part in (splits.train, splits.val, splits.test)] == ["train", "val", "test"]


@pytest.mark.parametrize("val", [0, None, 0.0])
def test_no_validation_part(lay_out: LayOut, val: float | None) -> None:
    splits = load_dataset(lay_out(*files(a=4, b=4)), val=val)
    assert (len(splits.train), splits.val, splits.test) == (8, None, None)


def test_a_validation_part_that_is_there_is_taken_as_it_is(lay_out: LayOut) -> None:
    splits = load_dataset(lay_out(*files(train__a=9, train__b=9, val__a=2)), val=0.5)
    assert (len(splits.train), splits.val.ids) == (18, ("val/a/0.jpg", "val/a/1.jpg"))
    assert splits.val.classes == ("a", "b")
    assert splits.record["val_drawn"] is False
    assert splits.record["ids"] == {}


def test_classes_are_matched_by_name(lay_out: LayOut) -> None:
    splits = load_dataset(lay_out(*files(train__a=2, train__b=2, train__c=2, val__c=2, test__b=1)))
    assert splits.val.targets.tolist() == [2, 2]
    assert splits.test.targets.tolist() == [1]


def test_classes_that_are_not_trained_on(lay_out: LayOut) -> None:
    root = lay_out(*files(train__a=2, train__b=2, test__a=2, test__wasp=3))
    with pytest.raises(
        ClassMismatchError,
        match=r"'test' part.*1 class \('wasp'\) besides the expected 2 classes \('a', 'b'\)",
    ):
        load_dataset(root)


def test_one_class_is_not_enough(lay_out: LayOut) -> None:
    with pytest.raises(DataError, match="only one class, 'a', and a classifier needs at least two"):
        load_dataset(lay_out(*files(train__a=5)))
    root = lay_out(*files(data__train__a=2, data__train__b=2), folder="outer")
    with pytest.raises(DataError, match=f"if '{root / 'data'}' is the folder that holds the classes"):
        load_dataset(root)
    assert len(load_dataset(root / "data", val=0).train) == 4


def test_subset_thins_every_part(lay_out: LayOut) -> None:
    root = lay_out(*files(train__a=100, train__b=50, val__a=20, val__b=1, test__a=30, test__b=30))
    splits = load_dataset(root, subset=0.1)
    assert per_class(splits.train) == {"a": 10, "b": 5}
    assert per_class(splits.val) == {"a": 2, "b": 1}
    assert per_class(splits.test) == {"a": 3, "b": 3}
    assert len(load_dataset(root, subset=1).train) == 150
    assert set(load_dataset(root, subset=1).record["ids"]) == set()


def test_shots_are_drawn_after_the_validation_part(lay_out: LayOut) -> None:
    root = lay_out(*files(a=40, b=20))
    few, all_of_them = load_dataset(root, val=0.25, shots=5), load_dataset(root, val=0.25)
    assert per_class(few.train) == {"a": 5, "b": 5}
    assert few.val.ids == all_of_them.val.ids
    assert set(few.train.ids) < set(all_of_them.train.ids)


def test_a_class_with_fewer_images_than_shots_gives_all(lay_out: LayOut) -> None:
    with pytest.warns(UserWarning, match=r"kept all images of 1 class \('b: 3'\) with fewer than 10"):
        splits = load_dataset(lay_out(*files(a=20, b=3)), val=0, shots=10)
    assert per_class(splits.train) == {"a": 10, "b": 3}
    assert len(splits.record["remarks"]) == 1


def test_a_single_image_stays_in_training(lay_out: LayOut) -> None:
    with pytest.warns(UserWarning, match=r"kept the only image of 1 class \('b'\) for training"):
        splits = load_dataset(lay_out(*files(a=20, b=1)), val=0.2)
    assert per_class(splits.train) == {"a": 16, "b": 1}
    with pytest.warns(UserWarning, match="2 classes"):
        assert load_dataset(lay_out(*files(a=1, b=1), folder="pair")).val is None


def test_same_seed_same_splits_wherever_the_folder_lies(lay_out: LayOut, tmp_path: Path) -> None:
    root = lay_out(*files(a=30, b=30))
    first = load_dataset(root, seed=5, subset=0.5, shots=4)
    shutil.copytree(root, tmp_path / "elsewhere" / "copy")
    assert ids(load_dataset(tmp_path / "elsewhere" / "copy", seed=5, subset=0.5, shots=4)) == ids(first)
    assert ids(load_dataset(root, seed=6, subset=0.5, shots=4)) != ids(first)


def test_one_warning_counts_and_names_what_is_left_out(lay_out: LayOut) -> None:
    strays = [f"a/{index}.txt" for index in range(7)]
    root = lay_out(*files(a=5, b=5), *strays, ".DS_Store")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        splits = load_dataset(root)
    (warning,) = caught
    assert warning.category is UserWarning
    assert warning.filename == __file__
    assert str(warning.message) == (
        f"'{root}': left out 8 entries "
        "(hidden: '.DS_Store'; no image file: 'a/0.txt', 'a/1.txt', 'a/2.txt' and 4 more)."
    )
    assert splits.record["left_out"] == {"count": 8, "names": [".DS_Store", *strays]}


def test_the_record_tells_json_how_the_parts_came_to_be(lay_out: LayOut) -> None:
    root = lay_out(*files(train__a=10, train__b=10, test__a=3, test__b=3))
    record = load_dataset(root, val=0.2, shots=5, seed=2).record
    assert json.loads(json.dumps(record)) == record
    assert record["source"] == str(root)
    assert (record["val"], record["subset"], record["shots"], record["seed"]) == (0.2, None, 5, 2)
    assert record["classes"] == ["a", "b"]
    assert record["counts"] == {"train": 10, "val": 4, "test": 6}
    assert {name: len(names) for name, names in record["ids"].items()} == {"train": 10, "val": 4}


def test_splits_are_restored_from_their_record(lay_out: LayOut, tmp_path: Path) -> None:
    root = lay_out(*files(train__a=30, train__b=30, test__a=9, test__b=9))
    splits = load_dataset(root, subset=0.5, shots=6, seed=9)
    record = json.loads(json.dumps(splits.record))
    shutil.move(root, tmp_path / "moved")
    # Images that came later belong to no part.
    (tmp_path / "moved" / "train" / "a" / "new.jpg").touch()
    restored = restore_splits(tmp_path / "moved", record)
    assert ids(restored) == ids(splits)
    assert restored.val.targets.tolist() == splits.val.targets.tolist()
    assert restored.train.sources[0].exists()
    assert restored.record["source"] == str(tmp_path / "moved")


def test_restoring_a_changed_folder_says_what_changed(lay_out: LayOut) -> None:
    root = lay_out(*files(train__a=9, train__b=9, val__a=3, val__b=3))
    record = load_dataset(root, shots=9).record
    (root / "val" / "a" / "new.jpg").touch()
    with pytest.raises(DataError, match=r"'val' part.*has changed.*holds 7 images \(recorded: 6\)"):
        restore_splits(root, record)
    (root / "train" / "b" / "3.jpg").unlink()
    with pytest.raises(DataError, match=r"'train' part.*lacks 1 recorded image \('train/b/3\.jpg'\)"):
        restore_splits(root, record)
    shutil.rmtree(root / "val")
    (root / "train" / "b" / "3.jpg").touch()
    with pytest.raises(DataError, match="has no 'val' part, though one is recorded"):
        restore_splits(root, record)
    (root / "train" / "c").mkdir()
    (root / "train" / "c" / "1.jpg").touch()
    with pytest.raises(ClassMismatchError, match="'c'"):
        restore_splits(root, record)


def test_restoring_labels_that_come_from_names(lay_out: LayOut) -> None:
    root = lay_out(*(f"{name}.{index}.jpg" for name in ("cat", "dog") for index in range(9)))
    splits = load_dataset(root, label_from=r"^(\w+)\.", val=0.3)
    assert ids(restore_splits(root, splits.record)) == ids(splits)


def test_arrays_are_split_and_restored() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (40, 4, 4, 3), dtype=np.uint8)
    data = (pixels, [0, 1] * 20)
    splits = load_dataset(data, val=0.25, classes=["even", "odd"])
    assert (len(splits.train), len(splits.val), splits.classes) == (30, 10, ("even", "odd"))
    for part in (splits.train, splits.val):
        for index, (image, target) in enumerate(part):
            assert np.array_equal(np.asarray(image), pixels[int(part.ids[index])])
            assert target == int(part.ids[index]) % 2
    assert ids(restore_splits(data, splits.record)) == ids(splits)
    with pytest.raises(DataError, match="or their labels differ"):
        restore_splits((pixels, [1, 0] * 20), splits.record)
    with pytest.raises(ArgumentError, match="arrays: got an unexpected keyword argument 'clases'"):
        load_dataset(data, clases=["even", "odd"])
    with pytest.raises(ArgumentError, match="'label_from' parameter of load_dataset must be None for arrays"):
        load_dataset(data, label_from="(.)")


def test_a_path_that_exists_wins_over_a_name(lay_out: LayOut, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(lay_out(*files(digits__a=3, digits__b=3)))
    assert load_dataset("digits", val=0).classes == ("a", "b")
    assert load_dataset("digits/", val=0).train.sources[0].is_absolute()
    monkeypatch.setenv("HOME", str(Path.cwd()))
    assert load_dataset("~/digits", val=0).classes == ("a", "b")


@pytest.mark.parametrize("path", ["./digit", "photos/", "~/no-such-folder", Path("digits")])
def test_paths_that_are_not_there(path: str | Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match="There is no folder"):
        load_dataset(path)


def test_unknown_names_suggest_known_ones() -> None:
    with pytest.raises(UnknownNameError, match=r"no folder and no data set 'digit'\. Did you mean 'digits'"):
        load_dataset("digit")
    with pytest.raises(UnknownNameError, match=r"There are: .*cifar10, .*digits"):
        load_dataset("photographs")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"val": 1}, "'val' parameter.*at least 0 and below 1.*Got 1"),
        ({"val": -0.1}, "'val'"),
        ({"val": "0.2"}, "'val'"),
        ({"val": float("nan")}, "'val'"),
        ({"subset": 0}, "'subset' parameter.*above 0 and at most 1"),
        ({"subset": 1.5}, "'subset'"),
        ({"subset": True}, "'subset'"),
        ({"subset": float("nan")}, "'subset'"),
        ({"shots": 0}, "'shots' parameter.*int of at least 1"),
        ({"shots": 2.5}, "'shots'"),
        ({"seed": -1}, "'seed' parameter.*int of at least 0"),
        ({"seed": None}, "'seed'"),
        ({"root": "x"}, "takes no argument 'root' for a folder"),
    ],
)
def test_arguments_that_make_no_sense(lay_out: LayOut, options: dict[str, object], message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        load_dataset(lay_out(*files(a=3, b=3)), **options)


@pytest.mark.parametrize("data", ["", None, 3, {1, 2}])
def test_what_is_no_data(data: object) -> None:
    with pytest.raises(ArgumentError, match="'name_or_path' parameter of load_dataset must be a folder"):
        load_dataset(data)


def test_parts_show_themselves_briefly(lay_out: LayOut) -> None:
    assert len(repr(load_dataset(lay_out(*files(a=300, b=300))))) < 300
