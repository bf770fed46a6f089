from __future__ import annotations

import copy
import io
import json
import os
import pickle
import zipfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from transferkit.backbones.preprocessing import Preprocessing
from transferkit.datasets import load_dataset, restore_splits
from transferkit.datasets.base import Part
from transferkit.datasets.folder import read_folder
from transferkit.errors import ArchiveError, ArgumentError, DataError, ImageDecodeError
from transferkit.loading.pixels import Pixels

PREPROCESSING = Preprocessing(size=8)


def encoded(seed: int, form: str = "JPEG") -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (20, 24, 3), dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, form)
    return stream.getvalue()


def zip_of(path: Path, *names: str, method: int = zipfile.ZIP_STORED) -> Path:
    """Write images, each different, and folders where a name ends in a slash."""
    with zipfile.ZipFile(path, "w", method) as archive:
        for index, name in enumerate(names):
            archive.writestr(name, b"" if name.endswith("/") else encoded(index))
    return path


def labels(part: Part) -> dict[str, str]:
    return {name: part.classes[target] for name, target in zip(part.ids, part.targets, strict=True)}


LAYOUTS = {
    "classes": ("ants/1.jpg", "ants/old/2.JPG", "bees/3.jpg"),
    "parts": ("train/ants/1.jpg", "train/bees/2.jpg", "valid/bees/3.jpg", "Test/ants/4.jpg"),
    "strays": (
        "ants/1.jpg",
        "bees/2.jpg",
        "bees/a.txt",
        ".hidden/3.jpg",
        "__MACOSX/ants/._1.jpg",
        "ants/._1.jpg",
    ),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
@pytest.mark.parametrize("wrapper", ["", "photos/", "one/two/"])
def test_an_archive_is_read_like_the_folder_in_it(
    tmp_path: Path, layout: str, method: int, wrapper: str
) -> None:
    path = zip_of(tmp_path / "photos.zip", *(wrapper + name for name in LAYOUTS[layout]), method=method)
    with zipfile.ZipFile(path) as archive:
        archive.extractall(tmp_path / "unpacked")
    packed, unpacked = read_folder(path), read_folder(tmp_path / "unpacked" / wrapper)
    assert packed.layout == unpacked.layout
    assert list(packed.parts) == list(unpacked.parts)
    assert set(packed.left_out) == set(unpacked.left_out)
    for name, part in packed.parts.items():
        assert labels(part) == labels(unpacked.parts[name])
        assert part.fingerprint() == unpacked.parts[name].fingerprint()
        for index, (image, _) in enumerate(part):
            assert np.array_equal(np.asarray(image), np.asarray(unpacked.parts[name][index][0]))


@pytest.mark.parametrize("wrapper", ["", "all/"])
def test_labels_from_file_names_in_an_archive(tmp_path: Path, wrapper: str) -> None:
    names = (f"{wrapper}{name}.{index}.jpg" for name in ("cat", "dog") for index in range(4))
    path = zip_of(tmp_path / "photos.zip", *names)
    splits = load_dataset(path, label_from=r"^(\w+)\.", val=0.5)
    assert splits.classes == ("cat", "dog")
    assert (len(splits.train), len(splits.val)) == (4, 4)
    without = "only one class, 'all'" if wrapper else r"give label_from, for example .* for 2 classes \('cat'"
    with pytest.raises(DataError, match=without):
        load_dataset(path)


def test_a_part_or_a_single_class_is_no_wrapper(tmp_path: Path) -> None:
    only_train = zip_of(tmp_path / "a.zip", "train/ants/1.jpg", "train/bees/2.jpg")
    assert read_folder(only_train).layout == "parts"
    with pytest.raises(DataError, match="only one class, 'ants'"):
        load_dataset(zip_of(tmp_path / "b.zip", "ants/1.jpg", "ants/2.jpg"))
    with pytest.raises(DataError, match=r"1 class folder \('wasps/'\) without any image"):
        load_dataset(zip_of(tmp_path / "c.zip", "ants/1.jpg", "bees/2.jpg", "wasps/"))
    with pytest.raises(DataError, match="holds no images"):
        load_dataset(zip_of(tmp_path / "d.zip"))


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    names = (f"{label}/{index}.jpg" for label in ("ants", "bees") for index in range(20))
    return zip_of(tmp_path / "photos.zip", *names)


def test_splits_are_drawn_and_restored_wherever_the_archive_lies(archive: Path, tmp_path: Path) -> None:
    splits = load_dataset(archive, val=0.25, shots=5, seed=3)
    record = json.loads(json.dumps(splits.record))
    with zipfile.ZipFile(archive) as file:
        file.extractall(tmp_path / "unpacked")
    archive.rename(tmp_path / "moved.zip")
    for place in (tmp_path / "moved.zip", tmp_path / "unpacked"):
        restored = restore_splits(place, record)
        assert (restored.train.ids, restored.val.ids) == (splits.train.ids, splits.val.ids)


def test_an_identity_names_the_archive_and_follows_the_content(archive: Path) -> None:
    part = read_folder(archive).parts["train"]
    first = [part.identity(index) for index in range(len(part))]
    assert len(set(first)) == len(part)
    assert all(str(archive.resolve()) in each for each in first)
    assert [read_folder(archive).parts["train"].identity(index) for index in range(len(part))] == first
    os.utime(archive, ns=(1, 1))
    assert not set(first) & {
        read_folder(archive).parts["train"].identity(index) for index in range(len(part))
    }


def test_threads_read_at_once(archive: Path) -> None:
    part = read_folder(archive).parts["train"]
    expected = [part.source(index) for index in range(len(part))]
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(part.source, [*range(len(part))] * 25))
    assert found == expected * 25


def test_pixels_in_threads_are_those_of_the_files(archive: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(archive) as file:
        file.extractall(tmp_path / "unpacked")
    packed, unpacked = (read_folder(place).parts["train"] for place in (archive, tmp_path / "unpacked"))
    indices = np.arange(len(packed))
    expected = Pixels(unpacked, PREPROCESSING, workers=0)[indices]
    assert torch.equal(Pixels(packed, PREPROCESSING, workers=4)[indices], expected)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda part: pickle.loads(pickle.dumps(part))])
def test_a_part_is_copied_and_pickled_without_its_open_file(
    archive: Path, copied: Callable[[Part], Part]
) -> None:
    part = read_folder(archive).parts["train"]
    expected = [part.source(index) for index in range(len(part))]
    other = copied(part)
    assert [other.source(index) for index in range(len(other))] == expected
    assert len(pickle.dumps(part)) < 20_000  # no image is in it


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the system has no fork")
def test_a_process_that_was_forked_reads_by_itself(archive: Path) -> None:
    part = read_folder(archive).parts["train"]
    expected = [part.source(index) for index in range(len(part))]
    loader = torch.utils.data.DataLoader(
        Sources(part), batch_size=None, num_workers=2, multiprocessing_context="fork"
    )
    assert [bytes(each) for each in loader] == expected


class Sources(torch.utils.data.Dataset):
    def __init__(self, part: Part) -> None:
        self.part = part

    def __len__(self) -> int:
        return len(self.part)

    def __getitem__(self, index: int) -> bytes:
        return self.part.source(index)


def test_a_damaged_entry_is_named_with_its_archive(tmp_path: Path) -> None:
    path = zip_of(tmp_path / "photos.zip", "ants/1.jpg", "bees/2.jpg")
    path.write_bytes(path.read_bytes().replace(encoded(1), encoded(1)[:-2] + b"xx"))
    part = read_folder(path).parts["train"]
    assert part[0][0].size == (24, 20)
    with pytest.raises(ImageDecodeError, match=r"photos\.zip/bees/2\.jpg' cannot be read: Bad CRC-32"):
        part[1]


def test_what_is_no_image_is_named_with_its_archive(tmp_path: Path) -> None:
    path = tmp_path / "photos.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("ants/1.jpg", b"a text")
        archive.writestr("bees/2.jpg", encoded(0)[:300])
    part = read_folder(path).parts["train"]
    for index, name in enumerate(("ants/1", "bees/2")):
        message = rf"{name}\.jpg' cannot be decoded"
        with pytest.raises(ImageDecodeError, match=rf"photos\.zip/{message}"):
            part[index]
        with pytest.raises(ImageDecodeError, match=rf"photos\.zip/{message}"):
            Pixels(part, PREPROCESSING, workers=0)[np.array([index])]


def test_a_bomb_in_an_archive_is_not_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "photos.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("ants/1.jpg", encoded(0))
        archive.writestr("bees/2.jpg", bytes(2**20))
    monkeypatch.setattr("transferkit.datasets.zipped._MAX_BYTES", 2**19)
    part = read_folder(path).parts["train"]
    with pytest.raises(ImageDecodeError, match="its 1048576 bytes exceed the limit of 524288"):
        part[1]
    data = bytearray(path.read_bytes())
    # A header that claims less than there is.
    start = data.index(b"PK\x01\x02", data.index(b"PK\x01\x02") + 1) + 24
    data[start : start + 4] = (1000).to_bytes(4, "little")
    path.write_bytes(data)
    with pytest.raises(ImageDecodeError, match="cannot be read"):
        read_folder(path).parts["train"].source(1)


def test_an_archive_that_changes_or_goes_is_noticed(archive: Path) -> None:
    listed = pickle.dumps(read_folder(archive).parts["train"])
    os.utime(archive, ns=(1, 1))
    with pytest.raises(ImageDecodeError, match="cannot be read: the archive has changed since it was listed"):
        pickle.loads(listed)[0]
    archive.unlink()
    with pytest.raises(ImageDecodeError, match=r"photos\.zip' cannot be read: No such file"):
        pickle.loads(listed)[0]


@pytest.mark.parametrize("content", [b"", b"no archive", b"PK\x03\x04 no archive"])
def test_what_is_no_archive(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "photos.zip").write_bytes(content)
    with pytest.raises(ArchiveError, match=r"photos\.zip' is damaged, or no zip archive"):
        load_dataset(tmp_path / "photos.zip")


@pytest.mark.parametrize("name", ["../1.jpg", "/1.jpg", "bees/../../1.jpg", "bees\\1.jpg"])
def test_names_that_lead_outside_are_refused_here_too(tmp_path: Path, name: str) -> None:
    with pytest.raises(ArchiveError, match="may lead out of the folder"):
        load_dataset(zip_of(tmp_path / "photos.zip", "ants/1.jpg", "bees/2.jpg", name))


def test_what_an_archive_does_not_take(archive: Path, tmp_path: Path) -> None:
    with pytest.raises(ArgumentError, match="takes no argument 'root' for a folder or archive"):
        load_dataset(archive, root="x")
    with pytest.raises(DataError, match=r"There is no file 'photo\.zip'"):
        load_dataset("photo.zip")


def test_a_folder_may_be_called_like_an_archive(tmp_path: Path) -> None:
    for label in ("ants", "bees"):
        (tmp_path / "photos.zip" / label).mkdir(parents=True)
        (tmp_path / "photos.zip" / label / "1.jpg").write_bytes(encoded(0))
    assert load_dataset(tmp_path / "photos.zip", val=0).classes == ("ants", "bees")
