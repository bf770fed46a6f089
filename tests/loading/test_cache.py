"""The place of the cache and its limit; what is listed, and what is removed from it and never beside it."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from transferkit.errors import ArgumentError
from transferkit.loading import cache
from transferkit.loading.cache import cache_limit, cache_root, clear, entries, evict, writing_folder
from transferkit.loading.row_store import RowStore

IDS = ["a", "b", "c"]
ROWS = torch.arange(12, dtype=torch.float32).reshape(3, 4)


@pytest.fixture
def root(tmp_path):
    return tmp_path / "cache"


@pytest.fixture
def no_variables(monkeypatch):
    for name in ("TRANSFERKIT_CACHE", "TRANSFERKIT_CACHE_SIZE", "XDG_CACHE_HOME", "LOCALAPPDATA"):
        monkeypatch.delenv(name, raising=False)


def fill(root, *, kind="features", used=None, **recipe):
    """Store three rows; return the folder of their segment."""
    store = RowStore(kind, {"backbone": "resnet18", **recipe}, root=root)
    store.add(IDS, [ROWS])
    (segment,) = (path for path in store.folder.iterdir() if path.is_dir())
    if used is not None:
        os.utime(segment / "index.json", (used, used))
    return segment


def everything_below(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def test_the_place_follows_the_variables(no_variables, monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    assert cache_root() == tmp_path / ".cache" / "transferkit"
    monkeypatch.setattr(sys, "platform", "darwin")
    assert cache_root() == tmp_path / "Library" / "Caches" / "transferkit"
    monkeypatch.setattr(sys, "platform", "win32")
    monkeypatch.setenv("LOCALAPPDATA", str(tmp_path / "local"))
    assert cache_root() == tmp_path / "local" / "transferkit" / "Cache"
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setenv("XDG_CACHE_HOME", "relative/is/ignored")
    assert cache_root() == tmp_path / ".cache" / "transferkit"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_root() == tmp_path / "xdg" / "transferkit"
    monkeypatch.setenv("TRANSFERKIT_CACHE", "")
    assert cache_root() == tmp_path / "xdg" / "transferkit"


def test_a_relative_place_stays_where_it_was_first(no_variables, monkeypatch, tmp_path):
    (tmp_path / "other").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TRANSFERKIT_CACHE", tmp_path.name)
    assert cache_root() == tmp_path / tmp_path.name
    monkeypatch.chdir(tmp_path / "other")
    assert cache_root() == tmp_path / tmp_path.name
    monkeypatch.setenv("TRANSFERKIT_CACHE", f"{tmp_path.name}2")
    assert cache_root() == tmp_path / "other" / f"{tmp_path.name}2"


def test_the_place_may_be_written_from_the_home_directory(no_variables, monkeypatch):
    monkeypatch.setenv("TRANSFERKIT_CACHE", "~/kept")
    assert cache_root() == Path.home() / "kept"


def test_no_home_directory_is_one_sentence(no_variables, monkeypatch):
    def no_home():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", no_home)
    with pytest.raises(ArgumentError, match="the variable TRANSFERKIT_CACHE must name a folder for it"):
        cache_root()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("20GB", 20_000_000_000),
        ("500MB", 500_000_000),
        ("1.5 gb", 1_500_000_000),
        ("64k", 64_000),
        ("2TB", 2_000_000_000_000),
        ("1GiB", 1_073_741_824),
        ("0.1GB", 100_000_000),
        ("123456", 123_456),
        ("10B", 10),
        ("0", 0),
        (" 7 ", 7),
        ("", 10_000_000_000),
    ],
)
def test_sizes(text, expected, monkeypatch):
    monkeypatch.setenv("TRANSFERKIT_CACHE_SIZE", text)
    assert cache_limit() == expected


def test_the_limit_without_a_variable(no_variables):
    assert cache_limit() == 10_000_000_000


@pytest.mark.parametrize("text", ["many", "-1", "20 GBB", "GB", "1e9", "nan", "inf", "1,5GB", "٣GB", "0x10"])
def test_nonsense_is_no_size(text, monkeypatch):
    monkeypatch.setenv("TRANSFERKIT_CACHE_SIZE", text)
    with pytest.raises(ArgumentError) as caught:
        cache_limit()
    assert str(caught.value) == (
        "The 'TRANSFERKIT_CACHE_SIZE' parameter of the environment must be "
        f"a size such as '20GB', '500MB' or '0'. Got {text!r} instead."
    )


def test_entries_say_what_is_kept(root):
    assert entries(root) == []
    fill(root, precision="bf16", weights="0" * 64, used=1_000_000)
    fill(root, kind="pixels", size=224, used=3_000_000)
    RowStore("pixels", {"backbone": "resnet18", "size": 224}, root=root).add(["d", "e"], [ROWS[:2]])
    newest, oldest = entries(root)
    assert (oldest.kind, oldest.description, oldest.rows) == ("features", "resnet18, bf16", 3)
    assert oldest.last_used == 1_000_000
    assert oldest.path.parent == root / "features"
    assert (newest.kind, newest.description, newest.rows) == ("pixels", "resnet18, size 224", 5)
    assert newest.last_used > 3_000_000
    sizes = [path.stat().st_size for path in newest.path.rglob("*") if path.is_file()]
    recipe = (newest.path / "recipe.json").stat().st_size
    assert newest.nbytes == sum(sizes) - recipe
    assert entries(root, "features") == [oldest]


@pytest.mark.parametrize(
    ("recipe", "description"),
    [
        ({"backbone": "vgg16", "precision": "fp32", "size": 224, "views": 2}, "vgg16, fp32, size 224"),
        ({"weights": "0" * 64, "folded": True, "mean": [0.5], "note": "", "size": 32}, "size 32"),
        ({"weights": "0" * 64}, "unknown"),
    ],
)
def test_an_entry_is_described_by_the_short_values_of_its_recipe(recipe, description, root):
    RowStore("features", recipe, root=root).add(IDS, [ROWS])
    (entry,) = entries(root)
    assert entry.description == description


def test_entries_of_a_damaged_cache_are_listed_too(root):
    segment = fill(root)
    (segment.parent / "recipe.json").write_text("{")
    (segment / "index.json").write_text("[]")
    (entry,) = entries(root)
    assert (entry.description, entry.rows) == ("unknown", 0)
    clear(root)
    assert everything_below(root) == ["features"]


def test_clear_removes_everything_or_one_kind(root):
    for kind in ("features", "pixels"):
        fill(root, kind=kind)
    clear(root, "pixels")
    assert [entry.kind for entry in entries(root)] == ["features"]
    assert list((root / "pixels").iterdir()) == []
    clear(root)
    assert everything_below(root) == ["features", "pixels"]
    clear(root)


def test_clear_leaves_what_the_store_did_not_write(root):
    segment = fill(root)
    foreign = [
        root / "thesis.txt",
        root / "features" / "notes.txt",
        root / "features" / "mine" / "rows.npy",
        segment.parent / ".DS_Store",
        segment.parent / "0123" / "rows.npy",
        segment / "rows.npy.bak",
        root / "models" / segment.parent.name / "recipe.json",
    ]
    for path in foreign:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("mine")
    (segment / "index.json").unlink()
    (segment / "index.json").mkdir()
    clear(root)
    assert all(path.read_text() == "mine" for path in foreign)
    assert (segment / "index.json").is_dir()
    assert not (segment / "rows.npy").exists()


def test_clear_follows_no_link(root, tmp_path):
    outside = tmp_path / "outside"
    segment = fill(outside)
    other = fill(outside, kind="pixels")
    before = everything_below(outside)
    inside = fill(root)
    (inside / "rows.npy").unlink()
    (inside / "rows.npy").symlink_to(segment / "rows.npy")
    (root / "features" / ("0" * 20)).symlink_to(segment.parent)
    (inside.parent / ("0" * 32)).symlink_to(segment)
    (root / "pixels").symlink_to(other.parent.parent)
    clear(root)
    evict(root, 0)
    assert everything_below(outside) == before
    assert (inside / "rows.npy").is_symlink()
    assert torch.equal(RowStore("features", {"backbone": "resnet18"}, root=outside).rows(IDS).whole(), ROWS)


def test_the_root_may_be_a_link_to_a_larger_disk(root, tmp_path):
    (tmp_path / "disk").mkdir()
    root.symlink_to(tmp_path / "disk")
    fill(root)
    assert len(entries(root)) == 1
    clear(root)
    assert everything_below(tmp_path / "disk") == ["features"]


def test_evict_removes_the_least_recently_used_first(root):
    segments = [fill(root, number=number, used=1_000_000 + (7 * number) % 5) for number in range(5)]
    by_age = sorted(segments, key=lambda segment: (segment / "index.json").stat().st_mtime)
    each = entries(root)[0].nbytes
    for left, limit in ((5, 5 * each), (3, 3 * each + each // 2), (1, 2 * each - 1), (0, 0)):
        evict(root, limit)
        assert [segment.exists() for segment in by_age] == [False] * (5 - left) + [True] * left
    assert entries(root) == []
    assert list((root / "features").iterdir()) == []


def test_evict_keeps_what_it_is_told_to_keep(root):
    segments = [fill(root, number=number, used=1_000_000 + number) for number in range(3)]
    evict(root, 0, keep={segments[0]})
    assert [segment.exists() for segment in segments] == [True, False, False]


def test_segments_of_one_entry_are_evicted_one_by_one(root):
    old = fill(root, used=1_000_000)
    store = RowStore("features", {"backbone": "resnet18"}, root=root)
    store.add(["d"], [ROWS[:1]])
    evict(root, 1_000)
    assert not old.exists()
    again = RowStore("features", {"backbone": "resnet18"}, root=root)
    assert again.missing([*IDS, "d"]).tolist() == [0, 1, 2]


def leftover(root, name, *, age=0.0):
    folder = root / "features" / name
    folder.mkdir(parents=True)
    (folder / "rows.npy").write_bytes(b"half")
    for path in (folder / "rows.npy", folder):
        os.utime(path, (time.time() - age,) * 2)
    return folder


def process_that_has_ended():
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


@pytest.mark.parametrize("remove", [clear, lambda root: evict(root, 10**9)], ids=["clear", "evict"])
@pytest.mark.skipif(os.name == "nt", reason="on Windows only the age counts")
def test_what_dead_writers_left_is_swept_and_live_ones_are_not_disturbed(remove, root):
    here, day = cache._machine(), 24 * 3600
    dead = [
        leftover(root, f".writing-{here}-{process_that_has_ended()}-00000000"),
        leftover(root, f".writing-{here}-{os.getpid()}-11111111", age=day + 60),
        leftover(root, f".writing-ffffffff-{os.getpid()}-22222222", age=day + 60),
    ]
    alive = [
        leftover(root, f".writing-{here}-{os.getpid()}-33333333", age=day - 60),
        leftover(root, f".writing-ffffffff-{process_that_has_ended()}-44444444", age=day - 60),
        leftover(root, ".writing-mine"),
    ]
    remove(root)
    assert [folder.exists() for folder in dead] == [False] * 3
    assert [(folder / "rows.npy").exists() for folder in alive] == [True] * 3
    with writing_folder(root / "features") as folder:
        (folder / "rows.npy").write_bytes(b"half")
        remove(root)
        assert (folder / "rows.npy").exists()
    assert not folder.exists()


def test_a_writer_that_is_slow_counts_by_its_newest_file(root):
    folder = leftover(root, f".writing-ffffffff-{os.getpid()}-00000000", age=3 * 24 * 3600)
    os.utime(folder / "rows.npy")
    clear(root)
    assert (folder / "rows.npy").exists()
