"""Tiny copies of the data sets that torchvision knows, in the very files that it looks for.

Each maker writes one below a folder, and returns what each part should hold: labels, and the pixels
of each image. The MD5 sums that torchvision checks are replaced by those of the copies.
"""

from __future__ import annotations

import hashlib
import json
import pickle
import struct
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import pytest
import scipy.io
from PIL import Image
from torchvision import datasets

Expected = dict[str, list[tuple[str, np.ndarray]]]
Maker = Callable[[Path, pytest.MonkeyPatch], Expected]
PARTS = ("train", "test")


def noise(*where: int | str, size: tuple[int, ...] = (9, 8, 3)) -> np.ndarray:
    seed = int.from_bytes(hashlib.md5(repr(where).encode()).digest()[:4], "little")
    return np.random.default_rng(seed).integers(0, 256, size, dtype=np.uint8)


def write(path: Path, data: bytes) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return hashlib.md5(data).hexdigest()


def photo(path: Path, pixels: np.ndarray) -> None:
    """Write pixels that any decoder gives back, whatever the suffix says."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, "PPM" if path.suffix == ".ppm" else "PNG")


def photos(folder: Path, names: Iterable[tuple[str, str]]) -> list[tuple[str, np.ndarray]]:
    """Write a photo for each pair of label and path."""
    written = []
    for label, name in names:
        written.append((label, noise(name)))
        photo(folder / name, written[-1][1])
    return written


def rows_of(images: np.ndarray) -> np.ndarray:
    """Return images [N, H, W, 3] as CIFAR keeps them: all red values, then all green, then all blue."""
    return images.transpose(0, 3, 1, 2).reshape(len(images), -1)


def cifar(
    folder: Path,
    patch: pytest.MonkeyPatch,
    kind: type,
    key: str,
    names: dict[str, list[str]],
    labels: list[str],
) -> Expected:
    expected: Expected = {}
    for part, files in names.items():
        lines, expected[part] = [], []
        for name in files:
            images = noise(name, size=(20, 32, 32, 3))
            targets = [index % len(labels) for index in range(20)]
            content = {"data": rows_of(images), key: targets}
            lines.append([name, write(folder / kind.base_folder / name, pickle.dumps(content))])
            expected[part] += [(labels[target], image) for target, image in zip(targets, images, strict=True)]
        patch.setattr(kind, f"{part}_list", lines)
    meta = pickle.dumps({kind.meta["key"]: labels})
    digest = write(folder / kind.base_folder / kind.meta["filename"], meta)
    patch.setattr(kind, "meta", {**kind.meta, "md5": digest})
    return expected


def cifar10(folder: Path, patch: pytest.MonkeyPatch) -> Expected:
    names = {"train": [f"data_batch_{index}" for index in range(1, 6)], "test": ["test_batch"]}
    return cifar(folder, patch, datasets.CIFAR10, "labels", names, ["airplane", "automobile", "bird", "cat"])


def cifar100(folder: Path, patch: pytest.MonkeyPatch) -> Expected:
    names = {"train": ["train"], "test": ["test"]}
    return cifar(folder, patch, datasets.CIFAR100, "fine_labels", names, ["apple", "aquarium_fish", "baby"])


def idx(values: np.ndarray) -> bytes:
    return struct.pack(f">HBB{values.ndim}I", 0, 8, values.ndim, *values.shape) + values.tobytes()


def mnist(kind: str, classes: list[str]) -> Maker:
    def make(folder: Path, patch: pytest.MonkeyPatch) -> Expected:
        expected: Expected = {}
        for part, name in (("train", "train"), ("test", "t10k")):
            images = noise(kind, part, size=(20, 28, 28))
            targets = np.arange(20, dtype=np.uint8) % 10
            write(folder / kind / "raw" / f"{name}-images-idx3-ubyte", idx(images))
            write(folder / kind / "raw" / f"{name}-labels-idx1-ubyte", idx(targets))
            expected[part] = [(classes[target], image) for target, image in zip(targets, images, strict=True)]
        return expected

    return make


def emnist(folder: Path, patch: pytest.MonkeyPatch) -> Expected:
    expected: Expected = {}
    classes = datasets.EMNIST.classes_split_dict["balanced"]
    for part in PARTS:
        images = noise(part, size=(20, 28, 28))
        targets = np.arange(20, dtype=np.uint8)
        for what, values in (("images-idx3", images.transpose(0, 2, 1)), ("labels-idx1", targets)):
            content = idx(np.ascontiguousarray(values))
            write(folder / "EMNIST" / "raw" / f"emnist-balanced-{part}-{what}-ubyte", content)
        expected[part] = [(classes[target], image) for target, image in zip(targets, images, strict=True)]
    return expected


def stl10(folder: Path, patch: pytest.MonkeyPatch) -> Expected:
    base, labels, expected = folder / "stl10_binary", ["airplane", "bird", "car"], {}
    lists = {}
    for part in PARTS:
        images = noise(part, size=(6, 96, 96, 3))
        targets = np.array([1, 2, 3, 3, 2, 1], dtype=np.uint8)
        # Each image is its channels, and in each the columns one after another.
        content = images.transpose(0, 3, 2, 1).tobytes()
        lists[part] = [
            [f"{part}_X.bin", write(base / f"{part}_X.bin", content)],
            [f"{part}_y.bin", write(base / f"{part}_y.bin", targets.tobytes())],
        ]
        expected[part] = [(labels[target - 1], image) for target, image in zip(targets, images, strict=True)]
    unlabelled = ["unlabeled_X.bin", write(base / "unlabeled_X.bin", b"")]
    patch.setattr(datasets.STL10, "train_list", [*lists["train"], unlabelled])
    patch.setattr(datasets.STL10, "test_list", lists["test"])
    write(base / "class_names.txt", "\n".join(labels).encode())
    return expected


def matlab(path: Path, **arrays: np.ndarray) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    scipy.io.savemat(path, arrays)
    return hashlib.md5(path.read_bytes()).hexdigest()


def svhn(folder: Path, patch: pytest.MonkeyPatch) -> Expected:
    expected, files = {}, dict(datasets.SVHN.split_list)
    for part in PARTS:
        images = noise(part, size=(20, 32, 32, 3))
        targets = np.arange(20) % 10 + 1  # ten stands for zero
        name = f"{part}_32x32.mat"
        digest = matlab(folder / name, X=images.transpose(1, 2, 3, 0), y=targets.astype(np.uint8)[:, None])
        files[part] = ["https://nowhere.invalid", name, digest]
        expected[part] = [(str(t % 10), image) for t, image in zip(targets, images, strict=True)]
    patch.setattr(datasets.SVHN, "split_list", files)
    return expected


def flowers102(folder: Path, patch: pytest.MonkeyPatch) -> Expected:
    base, classes = folder / "flowers-102", datasets.Flowers102.classes
    numbers = {"train": [3, 1], "val": [2, 6], "test": [4, 5]}
    labels = [102, 1, 1, 1, 102, 102]
    expected = {
        part: photos(base / "jpg", [(classes[labels[n - 1] - 1], f"image_{n:05d}.jpg") for n in chosen])
        for part, chosen in numbers.items()
    }
    digests = {
        "label": matlab(base / "imagelabels.mat", labels=np.array(labels, dtype=np.uint8)),
        "setid": matlab(
            base / "setid.mat",
            **{
                key: np.array(numbers[part], dtype=np.uint16)
                for part, key in (("train", "trnid"), ("val", "valid"), ("test", "tstid"))
            },
        ),
    }
    known = {
        key: (name, digests.get(key, md5)) for key, (name, md5) in datasets.Flowers102._file_dict.items()
    }
    patch.setattr(datasets.Flowers102, "_file_dict", known)
    return expected


def pets(folder: Path, patch: pytest.MonkeyPatch) -> Expected:
    base, expected = folder / "oxford-iiit-pet", {}
    animals = [("Abyssinian", 1, 1), ("american_bulldog", 2, 2), ("Abyssinian", 1, 1)]
    for part, name in (("train", "trainval"), ("test", "test")):
        chosen = [(animal, *rest, f"{animal}_{part}{index}") for index, (animal, *rest) in enumerate(animals)]
        lines = [f"{file} {label} {kind} 1\n" for _, label, kind, file in chosen]
        write(base / "annotations" / f"{name}.txt", "".join(lines).encode())
        pairs = [(animal.replace("_", " ").title(), f"{file}.jpg") for animal, _, _, file in chosen]
        expected[part] = photos(base / "images", pairs)
    return expected


def food101(folder: Path, patch: pytest.MonkeyPatch) -> Expected:
    base, expected = folder / "food-101", {}
    for part in PARTS:
        names = {
            label: [f"{label}/{part}{index}" for index in range(2)] for label in ("apple_pie", "waffles")
        }
        write(base / "meta" / f"{part}.json", json.dumps(names).encode())
        pairs = [(label, f"{name}.jpg") for label, found in names.items() for name in found]
        expected[part] = photos(base / "images", pairs)
    return expected


def dtd(folder: Path, patch: pytest.MonkeyPatch) -> Expected:
    base, expected = folder / "dtd" / "dtd", {}
    for part in ("train", "val", "test"):
        pairs = [(label, f"{label}/{label}_{part}.jpg") for label in ("zigzagged", "banded")]
        write(base / "labels" / f"{part}1.txt", "".join(f"{name}\n" for _, name in pairs).encode())
        expected[part] = photos(base / "images", pairs)
    return expected


def eurosat(folder: Path, patch: pytest.MonkeyPatch) -> Expected:
    pairs = [(label, f"{label}/{label}_{n}.jpg") for label in ("AnnualCrop", "Forest") for n in range(2)]
    return {"train": photos(folder / "eurosat" / "2750", pairs)}


def gtsrb(folder: Path, patch: pytest.MonkeyPatch) -> Expected:
    base = folder / "gtsrb"
    train = [(str(n), f"Training/{n:05d}/{n:05d}_00000.ppm") for n in range(3)]
    test = [("2", "Final_Test/Images/00000.ppm"), ("0", "Final_Test/Images/00001.ppm")]
    table = "Filename;Width;ClassId\n" + "".join(f"{Path(name).name};9;{label}\n" for label, name in test)
    write(base / "GT-final_test.csv", table.encode())
    return {"train": photos(base / "GTSRB", train), "test": photos(base / "GTSRB", test)}


def aircraft(folder: Path, patch: pytest.MonkeyPatch) -> Expected:
    base, expected = folder / "fgvc-aircraft-2013b" / "data", {}
    write(base / "variants.txt", b"A300B4\nCessna 172\n")
    for index, part in enumerate(("train", "val", "test")):
        pairs = [("Cessna 172", f"{index}1.jpg"), ("A300B4", f"{index}2.jpg")]
        lines = [f"{name.removesuffix('.jpg')} {label}\n" for label, name in pairs]
        write(base / f"images_variant_{part}.txt", "".join(lines).encode())
        expected[part] = photos(base / "images", pairs)
    return expected


def caltech101(folder: Path, patch: pytest.MonkeyPatch) -> Expected:
    base = folder / "caltech101" / "101_ObjectCategories"
    photos(base, [("", "BACKGROUND_Google/image_0001.jpg")])
    pairs = [(label, f"{label}/image_{n:04d}.jpg") for label in ("accordion", "wrench") for n in (1, 2)]
    return {"train": photos(base, pairs)}


def class_folders(place: str, classes: dict[str, str], parts: dict[str, str], suffix: str) -> Maker:
    """A folder for each part, and in it one for each class: the names are those of the folders."""

    def make(folder: Path, patch: pytest.MonkeyPatch) -> Expected:
        expected = {}
        for part, name in parts.items():
            pairs = [(label, f"{name}/{below}/{part}.{suffix}") for below, label in sorted(classes.items())]
            expected[part] = photos(folder / place, pairs)
        return expected

    return make


FASHION = ["T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"]
FASHION += ["Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"]

MAKERS: dict[str, Maker] = {
    "cifar10": cifar10,
    "cifar100": cifar100,
    "mnist": mnist("MNIST", list("0123456789")),
    "fashion-mnist": mnist("FashionMNIST", FASHION),
    "kmnist": mnist("KMNIST", ["o", "ki", "su", "tsu", "na", "ha", "ma", "ya", "re", "wo"]),
    "emnist": emnist,
    "stl10": stl10,
    "svhn": svhn,
    "flowers102": flowers102,
    "oxford-iiit-pet": pets,
    "food101": food101,
    "dtd": dtd,
    "eurosat": eurosat,
    "gtsrb": gtsrb,
    "fgvc-aircraft": aircraft,
    "caltech101": caltech101,
    "country211": class_folders(
        "country211", {"AD": "AD", "ZW": "ZW"}, {"train": "train", "val": "valid", "test": "test"}, "jpg"
    ),
    "rendered-sst2": class_folders(
        "rendered-sst2",
        {"negative": "negative", "positive": "positive"},
        {"train": "train", "val": "valid", "test": "test"},
        "png",
    ),
    "imagenette": class_folders(
        "imagenette2",
        {"n01440764": "tench", "n03888257": "parachute"},
        {"train": "train", "val": "val"},
        "JPEG",
    ),
}
