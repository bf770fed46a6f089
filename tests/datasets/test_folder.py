from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from transferkit.datasets.base import Part
from transferkit.datasets.folder import read_folder
from transferkit.errors import ArgumentError, DataError

LayOut = Callable[..., Path]


def labels(part: Part) -> dict[str, str]:
    return {name: part.classes[target] for name, target in zip(part.ids, part.targets, strict=True)}


def test_parts_with_class_folders(lay_out: LayOut) -> None:
    root = lay_out("train/cats/1.jpg", "train/dogs/a/b/2.PNG", "valid/dogs/3.jpeg", "Test/cats/4.webp")
    contents = read_folder(root)
    assert {name: labels(part) for name, part in contents.parts.items()} == {
        "train": {"train/cats/1.jpg": "cats", "train/dogs/a/b/2.PNG": "dogs"},
        "val": {"valid/dogs/3.jpeg": "dogs"},
        "test": {"Test/cats/4.webp": "cats"},
    }
    assert contents.parts["train"].sources[1] == root / "train/dogs/a/b/2.PNG"
    assert contents.left_out == ()


def test_class_folders(lay_out: LayOut) -> None:
    root = lay_out("b/2.jpg", "b/10.jpg", "a/x.tif", "a/deep/y.bmp")
    part = read_folder(root).parts["train"]
    assert part.classes == ("a", "b")
    assert part.ids == ("a/deep/y.bmp", "a/x.tif", "b/10.jpg", "b/2.jpg")
    assert part.targets.tolist() == [0, 0, 1, 1]


def test_the_class_is_the_folder_below_the_part_however_deep_an_image_lies(lay_out: LayOut) -> None:
    root = lay_out(
        "train/dogs/poodle/1.jpg", "train/dogs/2.jpg", "train/cats/a/b/3.jpg", "val/dogs/pug/4.jpg"
    )
    contents = read_folder(root)
    assert labels(contents.parts["train"]) == {
        "train/dogs/poodle/1.jpg": "dogs",
        "train/dogs/2.jpg": "dogs",
        "train/cats/a/b/3.jpg": "cats",
    }
    assert labels(contents.parts["val"]) == {"val/dogs/pug/4.jpg": "dogs"}


def test_order_does_not_come_from_the_file_system(lay_out: LayOut, monkeypatch: pytest.MonkeyPatch) -> None:
    root = lay_out(*(f"{name}/{index}.jpg" for name in "cab" for index in range(9)))
    ids = read_folder(root).parts["train"].ids
    scandir = os.scandir

    class Backwards:
        def __init__(self, folder: Path) -> None:
            with scandir(folder) as entries:
                self.entries = sorted(entries, key=lambda entry: entry.name, reverse=True)

        def __enter__(self) -> list[os.DirEntry[str]]:
            return self.entries

        def __exit__(self, *error: object) -> None: ...

    monkeypatch.setattr(os, "scandir", Backwards)
    assert read_folder(root).parts["train"].ids == ids


def test_a_class_may_be_called_train(lay_out: LayOut) -> None:
    root = lay_out("train/1.jpg", "car/2.jpg", "bus/3.jpg")
    assert read_folder(root).parts["train"].classes == ("bus", "car", "train")


@pytest.mark.parametrize(
    ("expression", "expected"),
    [(r"^(\w+)\.", {"cat", "dog"}), (r"(?P<number>\d)\.(?P<label>\w+)$", {"jpg"}), (r"\.(\d+)", {"0", "1"})],
)
def test_labels_from_file_names(lay_out: LayOut, expression: str, expected: set[str]) -> None:
    root = lay_out("cat.0.jpg", "cat.1.jpg", "more/dog.0.jpg")
    contents = read_folder(root, expression)
    assert set(contents.parts["train"].classes) == expected
    assert contents.left_out == ()


def test_labels_from_file_names_in_part_folders(lay_out: LayOut) -> None:
    contents = read_folder(lay_out("train/cat.0.jpg", "train/dog.0.jpg", "test/17.jpg"), r"^([a-z]+)\.")
    assert list(contents.parts) == ["train"]
    assert any("'test/17.jpg'" in remark for remark in contents.remarks)
    assert any("no 'test' part" in remark for remark in contents.remarks)


def test_names_that_do_not_match_are_counted_and_named(lay_out: LayOut) -> None:
    contents = read_folder(lay_out("cat.0.jpg", "dog.0.jpg", "IMG1.jpg", "IMG2.jpg"), r"^([a-z]+)\.")
    assert len(contents.parts["train"]) == 2
    assert contents.remarks == (
        "left out 2 images ('IMG1.jpg', 'IMG2.jpg') whose name label_from does not match",
    )


@pytest.mark.parametrize("expression", ["(", r"^\w+", 3])
def test_expressions_that_cannot_give_a_label(lay_out: LayOut, expression: object) -> None:
    with pytest.raises(ArgumentError, match="'label_from' parameter of load_dataset must be a regular expr"):
        read_folder(lay_out("cat.0.jpg"), expression)


def test_an_expression_that_matches_nothing_shows_a_name(lay_out: LayOut) -> None:
    with pytest.raises(DataError, match=r"matches no file name.*such as 'cat\.0\.jpg'.*give label_from"):
        read_folder(lay_out("cat.0.jpg", "dog.0.jpg"), r"^(\d+)$")


@pytest.mark.parametrize(
    ("names", "classes"),
    [
        (["cat.0.jpg", "cat.1.jpg", "dog.0.jpg"], "'cat', 'dog'"),
        (["american_bulldog_12.jpg", "american_bulldog_3.jpg", "pug_1.jpg"], "'american_bulldog', 'pug'"),
        (["0001_ant.png", "0002_bee.png", "0003_bee.png"], "'ant', 'bee'"),
        (["ant-left.png", "bee-left.png", "bee-right.png"], "'ant', 'bee'"),
    ],
)
def test_a_flat_folder_suggests_an_expression_that_works(
    lay_out: LayOut, names: list[str], classes: str
) -> None:
    root = lay_out(*names)
    with pytest.raises(DataError, match=r"no class folders.*label_from=r'") as raised:
        read_folder(root)
    assert f"2 classes ({classes})" in str(raised.value)
    suggested = str(raised.value).split("label_from=r'")[1].split("'")[0]
    assert ", ".join(map(repr, read_folder(root, suggested).parts["train"].classes)) == classes


def test_a_flat_train_folder_suggests_an_expression(lay_out: LayOut) -> None:
    with pytest.raises(DataError, match=r"label_from=r'.*2 classes \('cat', 'dog'\)"):
        read_folder(lay_out("train/cat.0.jpg", "train/dog.0.jpg", "test/1.jpg"))
    with pytest.raises(DataError, match=r"such as '1\.jpg'; give label_from, a regular expression"):
        read_folder(lay_out("1.jpg", "2.jpg", folder="numbers"))


def test_stray_and_hidden_files_are_left_out(lay_out: LayOut) -> None:
    strays = {
        "notes.txt",
        ".DS_Store",
        "loose.jpg",
        ".ipynb_checkpoints/",
        "__MACOSX/",
        "cats/imageNotFound.gif",
        "cats/._1.jpg",
        "cats/.thumbs/",
        "dogs/Thumbs.db",
    }
    root = lay_out(
        *(name for name in strays if not name.endswith("/")),
        "cats/1.jpg",
        "dogs/2.jpg",
        ".ipynb_checkpoints/cats/1-checkpoint.jpg",
        "__MACOSX/cats/1.jpg",
        "cats/.thumbs/1.jpg",
    )
    contents = read_folder(root)
    assert contents.parts["train"].ids == ("cats/1.jpg", "dogs/2.jpg")
    assert set(contents.left_out) == strays
    assert len(contents.remarks) == 1
    assert contents.remarks[0] == (
        "left out 9 entries (hidden: '.DS_Store', '.ipynb_checkpoints/', '__MACOSX/' and 2 more; "
        "no image file: 'notes.txt', 'cats/imageNotFound.gif', 'dogs/Thumbs.db'; "
        "in no class folder: 'loose.jpg')"
    )


def test_folders_beside_the_parts_are_left_out(lay_out: LayOut) -> None:
    contents = read_folder(lay_out("train/a/1.jpg", "train/b/2.jpg", "unlabeled/3.jpg", "train/4.jpg"))
    assert contents.parts["train"].ids == ("train/a/1.jpg", "train/b/2.jpg")
    assert set(contents.left_out) == {"unlabeled/", "train/4.jpg"}
    (remark,) = contents.remarks
    assert remark == "left out 2 entries (beside the parts: 'unlabeled/'; in no class folder: 'train/4.jpg')"


def test_empty_class_folders(lay_out: LayOut) -> None:
    root = lay_out("cats/1.jpg", "dogs/2.jpg", "wasps/", "bees/bee.gif")
    with pytest.raises(DataError, match=r"2 class folders \('bees/', 'wasps/'\) without any image.*\.jpg"):
        read_folder(root)


def test_a_class_without_training_images_is_kept_if_it_has_others(lay_out: LayOut) -> None:
    contents = read_folder(lay_out("train/a/1.jpg", "train/b/2.jpg", "train/c/", "val/c/3.jpg", "val/a/"))
    assert contents.parts["train"].classes == ("a", "b", "c")
    assert contents.remarks == ("found no training images of 1 class ('c')",)


def test_an_empty_part_is_no_part(lay_out: LayOut) -> None:
    contents = read_folder(lay_out("train/a/1.jpg", "train/b/2.jpg", "val/", "test/"))
    assert list(contents.parts) == ["train"]
    assert len(contents.remarks) == 2


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ((), "holds no images"),
        (("a.gif", "notes.txt"), r"holds no images.*\.jpg"),
        (("cats/", "dogs/"), "holds no images"),
        (("train/cats/", "val/cats/1.jpg"), "train' holds no images"),
        (("test/cats/1.jpg", "test/dogs/1.jpg"), "no 'train/'.*photos/test"),
        (("train/a/1.jpg", "val/a/2.jpg", "validation/a/3.jpg"), "two 'val' folders"),
        (("cats/1.jpg", "dogs/1.jpg", "test/1.jpg"), "'test/' beside class folders such as 'cats/'"),
    ],
)
def test_folders_that_cannot_be_used(lay_out: LayOut, files: tuple[str, ...], message: str) -> None:
    with pytest.raises(DataError, match=message):
        read_folder(lay_out(*files))


def test_a_file_is_no_folder(lay_out: LayOut) -> None:
    with pytest.raises(DataError, match=r"1\.jpg' is a file; load_dataset takes a folder"):
        read_folder(lay_out("1.jpg") / "1.jpg")


def test_a_folder_that_may_not_be_read(lay_out: LayOut, monkeypatch: pytest.MonkeyPatch) -> None:
    root = lay_out("cats/1.jpg")

    def refuse(folder: Path) -> None:
        raise PermissionError(13, "Permission denied", str(folder))

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(DataError, match="photos' cannot be read: Permission denied"):
        read_folder(root)


def test_links_lead_nowhere_twice(lay_out: LayOut) -> None:
    root = lay_out("cats/1.jpg", "dogs/2.jpg", "dogs/more/3.jpg")
    outside = lay_out("4.jpg", folder="outside")
    (root / "cats" / "loop").symlink_to(root)
    (root / "cats" / "self").symlink_to(root / "cats" / "self")
    (root / "cats" / "broken.jpg").symlink_to(root / "gone.jpg")
    (root / "cats" / "linked.jpg").symlink_to(outside / "4.jpg")
    (root / "also_dogs").symlink_to(root / "dogs")
    (root / "dogs" / "outside").symlink_to(outside)
    (outside / "back").symlink_to(outside)
    contents = read_folder(root)
    assert labels(contents.parts["train"]) == {
        "cats/1.jpg": "cats",
        "cats/linked.jpg": "cats",
        "dogs/2.jpg": "dogs",
        "dogs/more/3.jpg": "dogs",
        "dogs/outside/4.jpg": "dogs",
    }
    assert set(contents.left_out) == {
        "also_dogs/",
        "cats/loop/",
        "cats/self",
        "cats/broken.jpg",
        "dogs/outside/back/",
    }
    assert contents.remarks == (
        "left out 5 entries (met before: 'also_dogs/', 'cats/loop/', 'dogs/outside/back/'; "
        "no image file: 'cats/broken.jpg', 'cats/self')",
    )


def test_a_folder_may_be_a_link(lay_out: LayOut, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(lay_out("cats/1.jpg", "dogs/2.jpg"))
    assert len(read_folder(tmp_path / "link").parts["train"]) == 2


def test_names_of_any_bytes(lay_out: LayOut) -> None:
    odd = os.fsdecode(b"\xff\xfe.jpg")
    try:
        root = lay_out(f"cats/{odd}", "dogs/ü ö.jpg")
    except OSError:
        pytest.skip("this file system takes only Unicode names")
    part = read_folder(root).parts["train"]
    assert part.ids == (f"cats/{odd}", "dogs/ü ö.jpg")
    assert part.sources[0].exists()


def test_listing_asks_no_file_for_its_status(lay_out: LayOut, monkeypatch: pytest.MonkeyPatch) -> None:
    root = lay_out(*(f"{name}/{index}.jpg" for name in "ab" for index in range(300)))
    asked = []
    stat = os.stat
    monkeypatch.setattr(os, "stat", lambda *args, **options: asked.append(args) or stat(*args, **options))
    read_folder(root)
    assert 0 < len(asked) < 20


def test_a_folder_of_data_sets_is_refused(lay_out: LayOut) -> None:
    root = lay_out(*(f"{data}/{part}/cat/1.jpg" for data in ("pets", "zoo") for part in ("Train", "val")))
    with pytest.raises(DataError) as caught:
        read_folder(root)
    assert str(caught.value) == (
        f"'{root}' is a folder of data sets, not of classes: each folder in it has parts of its own "
        f"('{root / 'pets'}' holds 'Train/'). Name one of them, such as '{root / 'pets'}'."
    )


def test_a_class_folder_that_looks_like_a_data_set_is_named(lay_out: LayOut) -> None:
    root = lay_out("car/1.jpg", "pets/test/cat/1.jpg", "pets/train/dog/2.jpg")
    contents = read_folder(root)
    assert contents.remarks == (
        f"took 1 folder ('pets') for a class, though '{root / 'pets'}' holds 'test/', as a data set does; "
        f"if it is one, name '{root / 'pets'}'",
    )
    assert len(contents.parts["train"]) == 3
    assert read_folder(lay_out("rail/trains/1.jpg", "road/2.jpg", folder="other")).remarks == ()
