"""Images are decoded once, and only when asked for."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from PIL import Image

import transferkit as tk
from transferkit.errors import ArgumentError, ImageDecodeError
from transferkit.loading import image_pixels
from transferkit.loading import pixels as pixels_module
from transferkit.loading.pixels import Pixels
from transferkit.loading.sources import DatasetPart

PREPROCESSING = tk.Preprocessing(size=8, resize=10)
LARGER = tk.Preprocessing(size=40, resize=44)
EVERYTHING = np.arange(6)


def part_of_sizes(*sizes):
    generator = np.random.default_rng(0)
    images = [generator.integers(0, 256, (*size, 3), dtype=np.uint8) for size in sizes]
    return tk.Part(images, [0] * len(images), ["only"])


@pytest.fixture
def part():
    return part_of_sizes(*[(12, 14)] * 6)


@pytest.fixture
def decoded(monkeypatch):
    """The names of the images that were decoded, in order."""
    names = []
    original = image_pixels.decode_image

    def counted(source, *, name="", **options):
        names.append(name)
        return original(source, name=name, **options)

    monkeypatch.setattr(image_pixels, "decode_image", counted)
    return names


@pytest.fixture
def no_memory(monkeypatch):
    monkeypatch.setattr(pixels_module, "available_memory", lambda: 0)


def levels_apart(first, second):
    return int((first.int() - second.int()).abs().max())


@pytest.mark.parametrize("decode", ["fast", "exact"])
@pytest.mark.parametrize("keep", [True, False])
def test_pixels_are_those_of_the_preprocessing(part, decode, keep):
    rows = Pixels(part, PREPROCESSING, decode=decode, keep=keep)[np.array([4, 1])]
    assert rows.dtype == torch.uint8
    for row, index in zip(rows, (4, 1), strict=True):
        assert levels_apart(row, PREPROCESSING.pixels(part[index][0])) <= (decode == "fast")


def test_another_decoding_is_refused(part):
    with pytest.raises(ArgumentError, match="'decode' parameter of Pixels must be one of 'fast', 'exact'"):
        Pixels(part, PREPROCESSING, decode="quick")


def test_each_image_is_decoded_once(part, decoded):
    pixels = Pixels(part, PREPROCESSING, workers=0)
    assert decoded == []
    pixels[np.array([3, 3, 5])]
    pixels[np.array([5, 0])]
    pixels[EVERYTHING]
    assert sorted(decoded) == ["0", "1", "2", "3", "4", "5"]


def test_a_single_pass_keeps_nothing(part, decoded):
    pixels = Pixels(part, PREPROCESSING, workers=0, keep=False)
    assert torch.equal(pixels[EVERYTHING], pixels[EVERYTHING])
    assert len(decoded) == 12
    assert pixels.kept_on(torch.device("cpu")) is None


def test_what_does_not_fit_in_memory_is_kept_on_disk(part, decoded, no_memory):
    pixels = Pixels(part, PREPROCESSING, workers=0)
    first = pixels[EVERYTHING]
    decoded.clear()
    assert torch.equal(pixels[np.array([5, 0, 0])], first[[5, 0, 0]])
    # Another run finds them, and of a larger part decodes only what is new.
    assert torch.equal(Pixels(part, PREPROCESSING, workers=0)[EVERYTHING], first)
    assert decoded == []
    more = tk.Part([part.sources[2], np.zeros((9, 9, 3), np.uint8)], [0, 0], ["only"], ids=["old", "new"])
    assert torch.equal(Pixels(more, PREPROCESSING, workers=0)[np.array([0])], first[[2]])
    assert "new" in decoded


@pytest.mark.parametrize(
    "other",
    [
        {"decode": "exact"},
        {"reduced": True},
        {"preprocessing": tk.Preprocessing(size=8, resize=11)},
        {"preprocessing": tk.Preprocessing(size=8, resize=10, interpolation="bicubic")},
        {"preprocessing": tk.Preprocessing(size=8, resize=10, crop="squash")},
    ],
)
def test_what_makes_other_pixels_is_kept_apart_on_disk(part, decoded, no_memory, other):
    Pixels(part, PREPROCESSING, workers=0)[EVERYTHING]
    decoded.clear()
    options = {"preprocessing": PREPROCESSING, "workers": 0} | other
    Pixels(part, **options)[EVERYTHING]
    assert set(decoded) == {"0", "1", "2", "3", "4", "5"}


def test_mean_and_std_make_no_other_pixels(part, decoded, no_memory):
    Pixels(part, PREPROCESSING, workers=0)[EVERYTHING]
    decoded.clear()
    Pixels(part, tk.Preprocessing(size=8, resize=10, mean=(0, 0, 0), std=(1, 1, 1)), workers=0)[EVERYTHING]
    assert set(decoded) == set()


def test_what_fits_nowhere_is_decoded_each_time(part, decoded, no_memory, monkeypatch):
    monkeypatch.setenv("TRANSFERKIT_CACHE_SIZE", "100")
    pixels = Pixels(part, PREPROCESSING, workers=0)
    first = pixels[EVERYTHING]
    decoded.clear()
    assert torch.equal(pixels[EVERYTHING], first)
    assert decoded == ["0", "1", "2", "3", "4", "5"]


def test_a_disk_that_cannot_be_written_costs_speed_alone(part, no_memory, monkeypatch, tmp_path):
    blocked = tmp_path / "file"
    blocked.write_text("")
    monkeypatch.setenv("TRANSFERKIT_CACHE", str(blocked))
    pixels = Pixels(part, PREPROCESSING)
    with pytest.warns(UserWarning, match="decoded anew in each epoch: The cache in .* cannot be written"):
        first = pixels[EVERYTHING]
    assert torch.equal(pixels[EVERYTHING], first)


def test_small_images_take_the_memory_of_their_own_pixels(decoded, monkeypatch):
    part = part_of_sizes(*[(16, 20)] * 6)
    # Six images of 40 x 40 pixels would take 28,800 bytes, as they are they take 5,760.
    monkeypatch.setattr(pixels_module, "available_memory", lambda: 2 * 5_800)
    pixels = Pixels(part, LARGER, workers=0)
    first = pixels[EVERYTHING]
    decoded.clear()
    assert torch.equal(pixels[EVERYTHING], first)
    assert decoded == []
    for index in EVERYTHING:
        assert levels_apart(first[index], LARGER.pixels(part[index][0])) <= 1


@pytest.mark.parametrize("workers", [0, 3])
@pytest.mark.parametrize("crop", ["center", "squash"])
def test_an_image_does_not_depend_on_what_else_is_in_the_part(workers, crop):
    sizes = [(16, 20), (90, 70), (20, 20), (4, 18), (16, 20), (40, 40)]
    preprocessing = tk.Preprocessing(size=40, resize=44, crop=crop)
    part = part_of_sizes(*sizes)
    together = Pixels(part, preprocessing, workers=workers)
    order = np.array([5, 2, 0, 1, 4, 3])
    for _ in range(2):
        rows = together[order]
        for row, index in zip(rows, order, strict=True):
            alone = Pixels(part.take([index]), preprocessing, keep=False)[np.array([0])][0]
            assert torch.equal(row, alone)
            assert levels_apart(row, preprocessing.pixels(part[index][0])) <= 1


@pytest.mark.parametrize("workers", [0, 1, 4])
@pytest.mark.parametrize("keep", [True, False])
def test_errors_name_the_image(workers, keep, tmp_path):
    whole = io.BytesIO()
    Image.fromarray(np.zeros((12, 12, 3), np.uint8)).save(whole, "JPEG")
    paths = [tmp_path / f"{number}.jpg" for number in range(12)]
    for number, path in enumerate(paths):
        path.write_bytes(whole.getvalue()[: 200 if number in (7, 9) else None])
    pixels = Pixels(tk.Part(paths, [0] * 12, ["only"]), PREPROCESSING, workers=workers, keep=keep)
    assert pixels[np.arange(7)].shape == (7, 3, 8, 8)
    with pytest.raises(ImageDecodeError, match=r"7\.jpg' cannot be decoded"):
        pixels[np.arange(12)]
    in_memory = tk.Part([whole.getvalue()[:200]], [0], ["only"], ids=["set/first"])
    with pytest.raises(ImageDecodeError, match="The image 'set/first' cannot be decoded"):
        Pixels(in_memory, PREPROCESSING, workers=workers, keep=keep)[np.array([0])]


class Varying:
    """A data set of the user's own, other in each access."""

    classes = ("only",)
    targets = (0, 0, 0)

    def __init__(self):
        self.asked = []

    def __len__(self):
        return 3

    def __getitem__(self, index):
        self.asked.append(index)
        return Image.fromarray(np.full((12, 12, 3), len(self.asked), np.uint8)), 0


def test_images_that_may_vary_are_asked_for_one_by_one_each_time():
    dataset = Varying()
    pixels = Pixels(DatasetPart(dataset), PREPROCESSING, workers=4)
    assert pixels[np.array([2, 0, 0])][:, 0, 0, 0].tolist() == [1, 2, 3]
    assert pixels[np.array([1, 2])][:, 0, 0, 0].tolist() == [4, 5]
    assert dataset.asked == [2, 0, 0, 1, 2]
