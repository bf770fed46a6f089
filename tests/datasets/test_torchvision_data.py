from __future__ import annotations

import io
import tarfile
import urllib.request
from pathlib import Path
from urllib.error import URLError

import numpy as np
import pytest
import torchvision
from fake_torchvision import MAKERS, cifar100, emnist, idx, write
from PIL import Image

import transferkit as tk
from transferkit.datasets import DATASETS, load_dataset
from transferkit.datasets.base import Part
from transferkit.datasets.torchvision import _KNOWN
from transferkit.errors import ArchiveError, ArgumentError, DataError, DownloadError, UnknownNameError


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Note which addresses are asked for, and answer as a machine without a network does."""
    asked: list[str] = []

    def refuse(request: urllib.request.Request, *_: object, **__: object) -> None:
        asked.append(request.full_url)
        raise URLError("Name or service not known")

    monkeypatch.setattr(urllib.request, "urlopen", refuse)
    return asked


def test_every_name_has_a_copy_to_be_tried_on() -> None:
    assert MAKERS.keys() == _KNOWN.keys() == set(DATASETS) - {"digits"}


@pytest.mark.parametrize("name", MAKERS)
def test_a_data_set_is_read_where_it_lies(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_network: list[str]
) -> None:
    expected = MAKERS[name](tmp_path, monkeypatch)
    parts = DATASETS[name](root=tmp_path)
    assert no_network == []
    assert list(parts) == [part for part in ("train", "val", "test") if part in expected]
    for part, samples in expected.items():
        found = parts[part]
        assert isinstance(found, Part)
        assert type(found) is Part
        assert found.name == part
        assert len(found) == len(samples)
        assert all(isinstance(label, str) for label in found.classes)
        given = [(found.classes[target], np.asarray(image)) for image, target in found]
        wanted = [(label, np.asarray(Image.fromarray(pixels).convert("RGB"))) for label, pixels in samples]
        if not isinstance(found.sources, np.ndarray):  # torchvision's order of files is its own
            given, wanted = (sorted(each, key=lambda sample: sample[1].tobytes()) for each in (given, wanted))
        assert [label for label, _ in given] == [label for label, _ in wanted]
        assert all(np.array_equal(one[1], other[1]) for one, other in zip(given, wanted, strict=True))


@pytest.mark.parametrize("name", MAKERS)
def test_images_are_what_decoding_and_caches_work_on(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    MAKERS[name](tmp_path, monkeypatch)
    train = DATASETS[name](root=tmp_path, download=False)["train"]
    sources = [train.source(index) for index in range(len(train))]
    assert all(
        isinstance(each, np.ndarray) or (isinstance(each, Path) and each.is_file()) for each in sources
    )
    assert len({train.identity(index) for index in range(len(train))}) == len(train)
    assert len(set(train.ids)) == len(train)
    assert not any(str(tmp_path) in each for each in train.ids)


@pytest.mark.parametrize("name", MAKERS)
def test_without_a_network_one_sentence_says_what_is_looked_for_where(name: str, tmp_path: Path) -> None:
    place = tmp_path / "new" / _KNOWN[name].place
    with pytest.raises(DownloadError) as raised:
        load_dataset(name, root=tmp_path / "new")
    text = str(raised.value)
    assert text.startswith(f"{_KNOWN[name].title} is not in '{place}', where it is looked for, and could not")
    assert "Name or service not known" in text
    assert "\n" not in text
    with pytest.raises(DataError, match=r"does not hold .*download=True\.$") as refused:
        load_dataset(name, root=tmp_path / "other", download=False)
    assert not isinstance(refused.value, DownloadError)
    assert str(tmp_path / "other" / _KNOWN[name].place) in str(refused.value)


def test_the_place_by_default(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    cifar100(tmp_path / ".cache" / "transferkit" / "datasets", monkeypatch)
    splits = load_dataset("cifar100", val=0.2)
    assert (len(splits.train), len(splits.val), len(splits.test)) == (17, 3, 20)


def test_what_was_fetched_is_not_unpacked_unless_its_sum_is_right(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An archive that leads out of the folder, given in place of the one that was asked for."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz") as archive:
        archive.addfile(tarfile.TarInfo("../outside"))
    evil = stream.getvalue()

    class Response(io.BytesIO):
        url, length = None, len(evil)

    monkeypatch.setattr(urllib.request, "urlopen", lambda *_, **__: Response(evil))
    for name in ("cifar100", "food101", "flowers102", "dtd", "stl10"):
        with pytest.raises(DownloadError, match="File not found or corrupted"):
            load_dataset(name, root=tmp_path / "inner" / name)
    with pytest.raises(
        DownloadError, match=r"'\.\./outside' has a name that may lead out of the folder"
    ) as raised:
        load_dataset("fgvc-aircraft", root=tmp_path / "inner" / "fgvc-aircraft")
    assert isinstance(raised.value.__cause__, ArchiveError)
    assert [path.name for path in tmp_path.rglob("outside")] == []
    assert list((tmp_path / "inner" / "fgvc-aircraft").iterdir()) == []


def test_aircraft_are_unpacked_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = MAKERS["fgvc-aircraft"](tmp_path / "made", monkeypatch)
    with tarfile.open(tmp_path / "planes.tar.gz", "w:gz") as archive:
        archive.add(tmp_path / "made" / "fgvc-aircraft-2013b", "fgvc-aircraft-2013b")
    content = (tmp_path / "planes.tar.gz").read_bytes()

    class Response(io.BytesIO):
        url, length = None, len(content)

    monkeypatch.setattr(urllib.request, "urlopen", lambda *_, **__: Response(content))
    parts = DATASETS["fgvc-aircraft"](root=tmp_path / "fetched")
    assert {name: len(part) for name, part in parts.items()} == {
        name: len(samples) for name, samples in expected.items()
    }
    left = sorted(path.name for path in (tmp_path / "fetched").iterdir())
    assert left == ["fgvc-aircraft-2013b", "fgvc-aircraft-2013b.tar.gz"]


def test_a_damaged_copy_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    MAKERS["food101"](tmp_path, monkeypatch)
    (tmp_path / "food-101" / "meta" / "test.json").write_text("{")
    with pytest.raises(DataError, match="does not hold Food-101, or a damaged copy of it"):
        load_dataset("food101", root=tmp_path, download=False)
    cifar100(tmp_path, monkeypatch)
    (tmp_path / "cifar-100-python" / "test").write_bytes(b"other bytes")
    with pytest.raises(DownloadError, match=r"CIFAR-100 is not in .*Name or service not known"):
        load_dataset("cifar100", root=tmp_path)


def test_some_have_arguments_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    MAKERS["dtd"](tmp_path, monkeypatch)
    labels = tmp_path / "dtd" / "dtd" / "labels"
    for part, line in (
        ("train", "zigzagged/zigzagged_test"),
        ("val", "banded/banded_val"),
        ("test", "banded/x"),
    ):
        (labels / f"{part}2.txt").write_text(f"{line}.jpg\n")
    parts = DATASETS["dtd"](root=tmp_path, partition=2)
    assert parts["train"].ids == ("dtd/dtd/images/zigzagged/zigzagged_test.jpg",)
    with pytest.raises(ArgumentError, match="'dtd': got an unexpected keyword argument 'fold'"):
        load_dataset("dtd", root=tmp_path, fold=2)
    with pytest.raises(ArgumentError, match="'cifar100': got an unexpected keyword argument 'train'"):
        load_dataset("cifar100", train=False)


def test_the_letters_of_emnist_count_from_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    emnist(tmp_path, monkeypatch)
    for part in ("train", "test"):
        for what, values in (
            ("images-idx3", np.zeros((4, 28, 28), dtype=np.uint8)),
            ("labels-idx1", np.array([1, 26, 2, 1], dtype=np.uint8)),
        ):
            write(tmp_path / "EMNIST" / "raw" / f"emnist-letters-{part}-{what}-ubyte", idx(values))
    part = DATASETS["emnist"](root=tmp_path, split="letters")["train"]
    assert [part.classes[target] for target in part.targets] == ["a", "z", "b", "a"]
    assert len(part.classes) == 26


@pytest.mark.parametrize(
    ("wrong", "right"),
    [
        ("cifar-100", "cifar100"),
        ("FashionMNIST", "fashion-mnist"),
        ("oxford_pets", "oxford-iiit-pet"),
        ("oxford_iiit_pet", "oxford-iiit-pet"),
        ("flowers", "flowers102"),
        ("food-101", "food101"),
        ("fgvc_aircraft", "fgvc-aircraft"),
        ("imagenet", "imagenette"),
    ],
)
def test_names_that_are_nearly_right(wrong: str, right: str) -> None:
    with pytest.raises(UnknownNameError, match=f"Did you mean .*'{right}'"):
        load_dataset(wrong)


def test_torchvisions_own_objects_give_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cifar100(tmp_path, monkeypatch)
    own = torchvision.datasets.CIFAR100(tmp_path, train=False)
    part = load_dataset("cifar100", root=tmp_path).test
    for index in range(len(own)):
        assert np.array_equal(np.asarray(part[index][0]), np.asarray(own[index][0]))
        assert part[index][1] == own[index][1]
    # The object itself is data too.
    splits = tk.load_dataset({"train": torchvision.datasets.CIFAR100(tmp_path), "test": own}, val=0.2)
    assert (len(splits.train), len(splits.val), len(splits.test)) == (17, 3, 20)
    assert splits.classes == ("apple", "aquarium_fish", "baby")
    assert np.array_equal(np.asarray(splits.test[3][0]), np.asarray(own[3][0]))
