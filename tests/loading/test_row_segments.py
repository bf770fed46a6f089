"""A segment on disk: files that others can read, and every change of them noticed."""

from __future__ import annotations

import errno
import json
import os
import shutil

import numpy as np
import pytest
import torch

from transferkit.loading import row_segments, row_store
from transferkit.loading.row_store import RowStore

IDS = ["a", "b", "c", "d", "e"]
ROWS = torch.arange(15, dtype=torch.float32).reshape(5, 3) + 0.5


def store_in(root):
    return RowStore("features", {"backbone": "resnet18"}, root=root)


@pytest.fixture
def segment(tmp_path):
    """The folder of a segment of 5 rows."""
    store = store_in(tmp_path / "cache")
    store.add(IDS, [ROWS])
    (folder,) = (path for path in store.folder.iterdir() if path.is_dir())
    return folder


def test_the_files_are_those_of_numpy_and_json(segment, tmp_path):
    assert sorted(path.name for path in segment.iterdir()) == ["ids.npy", "index.json", "rows.npy"]
    rows = np.load(segment / "rows.npy", mmap_mode="r", allow_pickle=False)
    assert np.array_equal(rows, ROWS.numpy())
    assert np.load(segment / "ids.npy", allow_pickle=False).nbytes == 16 * 5
    index = json.loads((segment / "index.json").read_text())
    assert (index["dtype"], index["shape"], index["rows"]) == ("float32", [3], 5)
    assert index["files"]["rows.npy"]["bytes"] == (segment / "rows.npy").stat().st_size
    store = store_in(tmp_path / "other")
    store.add(IDS, [ROWS.to(torch.bfloat16)])
    (path,) = store.folder.glob("*/rows.npy")
    bits = np.load(path, allow_pickle=False)
    assert bits.dtype == np.uint16
    assert torch.equal(torch.from_numpy(bits).view(torch.bfloat16), ROWS.to(torch.bfloat16))


def assert_noticed(root, segment, what):
    store = store_in(root)
    assert len(store.missing(IDS)) == 5, what
    assert not segment.exists(), what


@pytest.mark.parametrize("name", ["rows.npy", "ids.npy", "index.json"])
def test_every_changed_byte_is_noticed_and_the_rows_are_made_again(name, segment, tmp_path):
    root, copy = tmp_path / "cache", shutil.copytree(segment, tmp_path / "copy")
    whole = (copy / name).read_bytes()
    for offset in range(len(whole)):
        changed = bytearray(whole)
        changed[offset] ^= 1 << (offset % 8)
        shutil.copytree(copy, segment, dirs_exist_ok=True)
        (segment / name).write_bytes(changed)
        assert_noticed(root, segment, f"bit {offset % 8} of byte {offset}")
    store = store_in(root)
    store.add(IDS, [ROWS])
    assert torch.equal(store_in(root).rows(IDS).whole(), ROWS)


@pytest.mark.parametrize("name", ["rows.npy", "ids.npy", "index.json"])
def test_every_missing_or_added_byte_is_noticed(name, segment, tmp_path):
    root, copy = tmp_path / "cache", shutil.copytree(segment, tmp_path / "copy")
    whole = (copy / name).read_bytes()
    for changed in (*(whole[:length] for length in range(0, len(whole), 7)), whole[:-1], whole + b"\0"):
        shutil.copytree(copy, segment, dirs_exist_ok=True)
        (segment / name).write_bytes(changed)
        assert_noticed(root, segment, f"{len(changed)} bytes")
    shutil.copytree(copy, segment, dirs_exist_ok=True)
    (segment / name).unlink()
    assert_noticed(root, segment, "no file")


@pytest.mark.parametrize(
    "text",
    [
        "null",
        "3",
        "[]",
        "{}",
        '{"rows": 5}',
        '{"dtype": []}',
        "[" * 100_000,
        '{"files": 3, "dtype": "uint8"}',
    ],
)
def test_an_index_that_is_something_else_is_noticed(text, segment, tmp_path):
    (segment / "index.json").write_text(text)
    assert_noticed(tmp_path / "cache", segment, text[:20])


def changed_index(segment, **changes):
    index = json.loads((segment / "index.json").read_text())
    text = json.dumps(index | changes, indent=2) + "\n"
    assert text != (segment / "index.json").read_text()
    (segment / "index.json").write_text(text)


@pytest.mark.parametrize(
    "change",
    [
        {"rows": 4},
        {"rows": "5"},
        {"shape": [4]},
        {"shape": [1.5]},
        {"dtype": "bfloat16"},
        {"recipe": "0" * 64},
    ],
)
def test_an_index_that_says_something_else_is_noticed(change, segment, tmp_path):
    changed_index(segment, **change)
    assert_noticed(tmp_path / "cache", segment, change)


def test_ids_of_other_rows_are_noticed(segment, tmp_path):
    other = store_in(tmp_path / "other")
    other.add(IDS[::-1], [ROWS])
    (source,) = (path for path in other.folder.iterdir() if path.is_dir())
    for path in source.iterdir():
        shutil.copy(path, segment / path.name)
    assert_noticed(tmp_path / "cache", segment, "the name of a segment follows from its ids")


def test_a_segment_that_cannot_be_opened_now_is_left_for_later(segment, tmp_path, monkeypatch):
    def no_more_files(path):
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    with monkeypatch.context() as patch:
        patch.setattr(row_segments, "_read_index", no_more_files)
        store = store_in(tmp_path / "cache")
        assert len(store.missing(IDS)) == 5
    assert segment.exists()
    assert torch.equal(store_in(tmp_path / "cache").rows(IDS).whole(), ROWS)


def test_a_segment_that_cannot_be_read_is_replaced(segment, tmp_path, monkeypatch):
    read_index = row_segments._read_index
    denied = (segment / "index.json").stat().st_ino

    def read_unless_denied(path):
        if path.stat().st_ino == denied:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        return read_index(path)

    monkeypatch.setattr(row_segments, "_read_index", read_unless_denied)
    store = store_in(tmp_path / "cache")
    assert len(store.missing(IDS)) == 5
    store.add(IDS, [ROWS])
    assert torch.equal(store.rows(IDS).whole(), ROWS)
    assert torch.equal(store_in(tmp_path / "cache").rows(IDS).whole(), ROWS)


def test_ids_whose_hashes_agree_by_half_are_told_apart(tmp_path, monkeypatch):
    hashes = {"a": (7, 1), "b": (7, 2), "c": (8, 1)}
    monkeypatch.setattr(
        row_store, "digests_of", lambda ids: np.array([hashes[name] for name in ids], dtype=np.uint64)
    )
    store = store_in(tmp_path)
    store.add(["a", "c"], [ROWS[:2]])
    assert store.missing(["b", "c", "a"]).tolist() == [0]


def test_rows_are_read_through_only_when_one_of_them_is_needed(segment, tmp_path):
    store = store_in(tmp_path / "cache")
    store.add(["f"], [ROWS[:1]])
    (segment / "rows.npy").write_bytes(b"damaged")
    again = store_in(tmp_path / "cache")
    assert again.missing(["f"]).tolist() == []
    assert segment.exists()
    assert again.missing(["f", "a"]).tolist() == [1]
    assert not segment.exists()
