from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from transferkit.datasets.base import Part, class_indices
from transferkit.errors import ClassMismatchError, DataError, ImageDecodeError


def pixels(count: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, 4, 5, 3), dtype=np.uint8)


@pytest.mark.parametrize(
    "targets",
    [
        [0.0, 1.0, 0.0],
        [0, 1, float("nan")],
        np.array([[1, 0], [0, 1], [1, 0]]),
        ["a", "b", "a"],
        [True, False, True],
        [0, [1, 2], 0],
        torch.tensor([0.0, 1.0, 0.0]),
    ],
)
def test_targets_that_are_no_class_indices(targets: object) -> None:
    with pytest.raises(DataError, match="Targets must be integers, one class index for each image"):
        Part(pixels(3), targets, ["a", "b"])


@pytest.mark.parametrize("wrong", [-1, 2])
def test_targets_outside_of_the_classes(wrong: int) -> None:
    with pytest.raises(DataError, match=f"at least 0 and below 2.*Got {wrong} for y.jpg, and 1 such"):
        Part(pixels(3), [0, wrong, 1], ["a", "b"], ids=["x.jpg", "y.jpg", "z.jpg"])


@pytest.mark.parametrize("dtype", [np.uint8, np.int32, np.int64])
def test_every_integer_type_is_a_target(dtype: type) -> None:
    assert class_indices(np.array([0, 2], dtype=dtype)).tolist() == [0, 2]
    assert class_indices(torch.tensor([0, 2])).dtype == np.int64
    assert class_indices([]).shape == (0,)


def test_lengths_and_names_have_to_fit() -> None:
    with pytest.raises(DataError, match="Got 3 images, 2 targets and 3 ids"):
        Part(pixels(3), [0, 1], ["a", "b"])


def test_an_item_is_an_image_and_its_class() -> None:
    part = Part(pixels(3), [0, 1, 0], ["a", "b"])
    image, target = part[1]
    assert (image.mode, target) == ("RGB", 1)
    assert np.array_equal(np.asarray(image), pixels(3)[1])
    assert [item[1] for item in part] == [0, 1, 0]


def test_an_error_names_the_sample(tmp_path: Path) -> None:
    part = Part([tmp_path / "gone.jpg", b"no image"], [0, 1], ["a", "b"], ids=["a/gone.jpg", "b/broken.jpg"])
    with pytest.raises(ImageDecodeError, match=r"gone\.jpg"):
        part[0]
    with pytest.raises(ImageDecodeError, match=r"b/broken\.jpg"):
        part[1]
    with pytest.raises(ImageDecodeError, match=r"gone\.jpg"):
        part.identity(0)


def test_identity_follows_the_image(tmp_path: Path) -> None:
    path = tmp_path / "photo.png"
    Image.new("RGB", (4, 4)).save(path)
    part = Part([path, path.read_bytes(), pixels(1)[0]], [0, 0, 1], ["a", "b"])
    before = [part.identity(index) for index in range(3)]
    assert len(set(before)) == 3
    assert before == [part.identity(index) for index in range(3)]
    os.utime(path, ns=(1, 1))
    assert part.identity(0) != before[0]
    assert Part([pixels(2)[1]], [0], ["a"]).identity(0) != before[2]


def test_identity_is_of_the_shape_and_the_kind_of_an_image_in_memory() -> None:
    square = np.random.default_rng(0).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    sources = [square, square.reshape(4, 9, 3), square.reshape(6, 18), square.reshape(6, 18, 1)]
    sources += [square.tobytes(), square.view(np.int8)]
    part = Part(sources, [0] * 6, ["a"])
    assert len({part.identity(index) for index in range(6)}) == 6
    assert Part(sources[:1], [0], ["a"]).fingerprint() != Part(sources[1:2], [0], ["a"]).fingerprint()
    assert Part([np.asfortranarray(square)], [0], ["a"]).identity(0) == part.identity(0)


def test_identity_of_a_pil_image_is_of_what_is_seen_of_it() -> None:
    grey = Image.fromarray(pixels(1)[0, :, :, 0])
    palette, other = grey.convert("P"), grey.convert("P")
    other.putpalette(list(range(255, -1, -1)) * 3)
    turned = grey.copy()
    turned.getexif()[0x0112] = 6
    images = [grey, palette, other, turned, grey.resize((4, 5))]
    part = Part(images, [0] * 5, ["a"])
    names = [part.identity(index) for index in range(5)]
    assert names[0] == names[1]  # the same picture, decoded to the same pixels
    assert len(set(names)) == 4
    with pytest.raises(ImageDecodeError, match="The image 'x' cannot be decoded: it must be a path, bytes"):
        Part([3], [0], ["a"], ids=["x"]).identity(0)


def test_a_path_may_be_text_or_like_one(tmp_path: Path) -> None:
    class Located:
        def __fspath__(self) -> str:
            return str(path)

    path = tmp_path / "photo.png"
    Image.new("RGB", (4, 4)).save(path)
    parts = [Part([source], [0], ["a"]) for source in (path, str(path), Located())]
    before = {part.identity(0) for part in parts}
    prints = {part.fingerprint() for part in parts}
    assert (len(before), len(prints)) == (1, 1)
    Image.new("RGB", (4, 5)).save(path)
    assert {part.identity(0) for part in parts}.isdisjoint(before)
    assert {part.fingerprint() for part in parts} == prints  # of names and labels alone
    path.unlink()
    with pytest.raises(ImageDecodeError, match=r"photo\.png' cannot be read"):
        parts[1].identity(0)


def test_a_source_of_ones_own_is_what_counts(tmp_path: Path) -> None:
    class Inverted(Part):
        def source(self, index: int) -> np.ndarray:
            return 255 - self.sources[index]

    class InFolder(Part):
        def source(self, index: int) -> Path:
            return tmp_path / self.ids[index]

    plain, inverted = (kind(pixels(2), [0, 1], ["a", "b"]) for kind in (Part, Inverted))
    assert np.array_equal(np.asarray(inverted[1][0]), 255 - pixels(2)[1])
    assert inverted.identity(1) == Part(255 - pixels(2), [0, 1], ["a", "b"]).identity(1)
    assert inverted.fingerprint() == Part(255 - pixels(2), [0, 1], ["a", "b"]).fingerprint()
    assert inverted.fingerprint() != plain.fingerprint()
    part = InFolder([b"not", b"used"], [0, 1], ["a", "b"], ids=["0.png", "1.png"])
    assert part.fingerprint() == InFolder([b"also", b"not"], [0, 1], ["a", "b"], ids=part.ids).fingerprint()


def test_fingerprint_sees_pixels_behind_a_file(tmp_path: Path) -> None:
    prints = {Part([tmp_path / "x", image], [0, 0], ["a"]).fingerprint() for image in pixels(2)}
    assert len(prints) == 2


def test_take_keeps_what_belongs_together() -> None:
    for sources in (pixels(4), list(pixels(4))):
        taken = Part(sources, [0, 1, 0, 1], ["a", "b"]).take([3, 0], name="val")
        assert (taken.name, taken.ids, taken.targets.tolist()) == ("val", ("3", "0"), [1, 0])
        assert np.array_equal(np.asarray(taken[0][0]), pixels(4)[3])


def test_classes_are_matched_by_name() -> None:
    part = Part(pixels(3), [0, 2, 0], ["a", "unused", "b"])
    matched = part.with_classes(["b", "c", "a"])
    assert (matched.targets.tolist(), matched.classes) == ([2, 0, 2], ("b", "c", "a"))
    assert part.targets.tolist() == [0, 2, 0]
    with pytest.raises(ClassMismatchError, match=r"has 1 class \('b'\) besides the expected 1 class \('a'\)"):
        part.with_classes(["a"])
    with pytest.raises(DataError, match="two have the same"):
        part.with_classes(["a", "b", "b"])


def test_a_kind_of_part_of_ones_own_stays_one() -> None:
    class Volatile(Part):
        fixed = False

    part = Volatile(pixels(3), [0, 1, 0], ["a", "b"])
    assert part.take([0]).fixed is False
    assert part.with_classes(["b", "a"]).fixed is False


def test_fingerprint_is_of_ids_and_labels() -> None:
    part = Part(pixels(2), [0, 1], ["a", "b"])
    assert part.fingerprint() == part.take([1, 0]).fingerprint()
    assert part.fingerprint() == Part(pixels(2), [1, 0], ["b", "a"]).fingerprint()
    assert part.fingerprint() != Part(pixels(2), [1, 0], ["a", "b"]).fingerprint()
    assert Part(pixels(1), [0], ["a"], ids=[os.fsdecode(b"\xff.jpg")]).fingerprint()
