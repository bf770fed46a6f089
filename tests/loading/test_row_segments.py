"""A segment on disk: files that others can read, and every change of them noticed."""

from __future__ import annotations

import errno
import io
import json
import os
import shutil
import zlib

import numpy as np
import pytest
import torch

from transferkit.errors import OutputError
from transferkit.loading import row_segments, row_store
from transferkit.loading.cache import entries
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
        {"rows": 0},
        {"rows": -5},
        {"rows": 10**30},
        {"shape": [10**30]},
        {"shape": [-3]},
        {"shape": [0]},
        {"shape": [1] * 40_000},
        {"shape": [4]},
        {"shape": [1.5]},
        {"dtype": "bfloat16"},
        {"recipe": "0" * 64},
    ],
)
def test_an_index_that_says_something_else_is_noticed(change, segment, tmp_path):
    changed_index(segment, **change)
    assert_noticed(tmp_path / "cache", segment, change)


def planted(segment, name, data, **changes):
    """Change a file of a segment with an index that agrees with it."""
    (segment / name).write_bytes(data)
    index = json.loads((segment / "index.json").read_text())
    index["files"][name] = {"bytes": len(data), "crc32": zlib.crc32(data)}
    (segment / "index.json").write_text(json.dumps(index | changes, indent=2) + "\n")


def numpy_header(dtype, *shape):
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        file, {"descr": np.dtype(dtype).str, "fortran_order": False, "shape": shape}
    )
    return file.getvalue()


@pytest.mark.parametrize("shape", [[10**30], [2**62, 4], [-3], [0], [], [4], [1] * 70])
def test_a_shape_that_the_rows_are_not_of_is_noticed(shape, segment, tmp_path):
    body = ROWS.numpy().tobytes()
    planted(segment, "rows.npy", numpy_header("<f4", 5, *shape) + body, shape=shape)
    assert_noticed(tmp_path / "cache", segment, shape)


@pytest.mark.parametrize("rows", [10**30, -1, 0, 6])
def test_a_number_of_rows_that_there_are_not_is_noticed(rows, segment, tmp_path):
    ids = (segment / "ids.npy").read_bytes()[128:]
    planted(segment, "rows.npy", numpy_header("<f4", rows, 3) + ROWS.numpy().tobytes())
    planted(segment, "ids.npy", numpy_header("<u8", rows, 2) + ids, rows=rows)
    assert_noticed(tmp_path / "cache", segment, rows)


def test_a_header_that_is_no_header_is_noticed(segment, tmp_path):
    text = b"(" * 5000 + b"\n"
    head = b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text
    planted(segment, "rows.npy", head + ROWS.numpy().tobytes())
    assert_noticed(tmp_path / "cache", segment, "a header that cannot be parsed")


def put_in_place(path, kind):
    path.unlink()
    if kind == "pipe":
        if not hasattr(os, "mkfifo"):
            pytest.skip("Windows has no named pipes among files")
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    else:
        path.symlink_to(path)


@pytest.mark.parametrize("kind", ["pipe", "folder", "link to itself"])
@pytest.mark.parametrize("name", ["rows.npy", "ids.npy", "index.json", "../recipe.json"])
def test_what_is_no_file_is_replaced(name, kind, segment, tmp_path):
    put_in_place(segment / name, kind)
    assert len(entries(tmp_path / "cache")) == 1
    store = store_in(tmp_path / "cache")
    assert len(store.missing(IDS)) == 5
    assert store.add(IDS, [ROWS])
    assert torch.equal(store_in(tmp_path / "cache").rows(IDS).whole(), ROWS)


@pytest.mark.parametrize("kind", ["file", "link"])
def test_what_stands_in_the_place_of_a_segment_is_replaced(kind, segment, tmp_path):
    shutil.move(segment, tmp_path / "outside")
    if kind == "file":
        segment.write_text("in the way")
    else:
        (tmp_path / "outside" / "rows.npy").write_bytes(b"damaged")
        segment.symlink_to(tmp_path / "outside")
    store = store_in(tmp_path / "cache")
    assert len(store.missing(IDS)) == 5
    assert store.add(IDS, [ROWS])
    assert torch.equal(store_in(tmp_path / "cache").rows(IDS).whole(), ROWS)
    assert len(list((tmp_path / "outside").iterdir())) == 3  # nothing behind a link is removed


def test_a_folder_that_holds_something_is_left_and_told(segment, tmp_path):
    put_in_place(segment / "index.json", "folder")
    (segment / "index.json" / "thesis.txt").write_text("mine")
    store = store_in(tmp_path / "cache")
    assert len(store.missing(IDS)) == 5
    with pytest.raises(OutputError, match="cannot be written"):
        store.add(IDS, [ROWS])
    assert (segment / "index.json" / "thesis.txt").read_text() == "mine"


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
