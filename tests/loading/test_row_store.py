"""Stored rows: what was computed once comes back to the bit, whoever else writes, clears or dies."""

from __future__ import annotations

import json
import multiprocessing
import os
import tempfile
import tracemalloc
import weakref
from pathlib import Path

import numpy as np
import pytest
import torch

from transferkit.errors import ArgumentError, OutputError
from transferkit.loading.cache import clear, entries
from transferkit.loading.row_segments import RowType
from transferkit.loading.row_store import RowStore

RECIPE = {"backbone": "resnet18", "precision": "fp32", "weights": "0" * 64}
IDS = [f"photos/{number}.jpg" for number in range(6)]


@pytest.fixture
def root(tmp_path):
    return tmp_path / "cache"


def store_in(root, **changes):
    return RowStore("features", RECIPE | changes, root=root)


def rows_of(count, *shape, seed=0):
    return torch.randn((count, *shape), generator=torch.Generator().manual_seed(seed))


def files_below(root):
    return [path for path in root.rglob("*") if not path.is_dir()]


def test_rows_come_back_in_another_process_s_store(root):
    rows = rows_of(6, 3)
    store = store_in(root)
    assert store.missing(IDS).tolist() == [0, 1, 2, 3, 4, 5]
    assert store.add(IDS, rows.split(4))
    again = store_in(root)
    assert again.missing(IDS).tolist() == []
    stored = again.rows(IDS)
    assert (len(stored), stored.shape, stored.dtype, stored.nbytes) == (6, (6, 3), torch.float32, 72)
    assert torch.equal(stored.whole(), rows)
    assert torch.equal(stored[np.array([5, 0, 0])], rows[[5, 0, 0]])


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32, torch.float16, torch.bfloat16])
def test_every_dtype_comes_back_to_the_bit(dtype, root, device):
    # Random bits: NaN with a payload, infinities, -0.0 and subnormal numbers are among them.
    bits = torch.randint(0, 256, (500, 2, 3 * dtype.itemsize), dtype=torch.uint8)
    rows = bits.view(dtype)
    ids = [str(number) for number in range(500)]
    store_in(root).add(ids, rows.to(device).split(64))
    store = store_in(root)
    for stored in (store.rows(ids).whole(), store.rows(ids)[np.arange(500)]):
        assert stored.dtype is dtype
        assert torch.equal(stored.view(torch.uint8), bits)
    backwards = store.rows(ids[::-1])
    assert torch.equal(backwards.whole().view(torch.uint8), bits.flip(0))


def test_bfloat16_becomes_float32_where_numpy_is_asked_for(root):
    rows = rows_of(6, 3).to(torch.bfloat16)
    store = store_in(root)
    store.add(IDS, [rows])
    array = store.rows(IDS).numpy()
    assert array.dtype == np.float32
    assert torch.equal(torch.from_numpy(array), rows.float())


@pytest.mark.parametrize("shape", [(), (1,), (2, 3, 4)])
def test_rows_of_any_shape(shape, root):
    rows = rows_of(6, *shape)
    store = store_in(root)
    store.add(IDS, rows.split([2, 0, 4]))
    assert store.rows(IDS).shape == (6, *shape)
    assert torch.equal(store.rows(IDS).whole(), rows)


def test_tensors_that_are_not_contiguous_and_need_gradients(root):
    rows = rows_of(6, 4, 3).transpose(1, 2).requires_grad_()
    store = store_in(root)
    store.add(IDS, [rows])
    assert torch.equal(store.rows(IDS).whole(), rows)


def test_rows_in_order_are_the_map_itself(root):
    rows = rows_of(6, 3)
    store = store_in(root)
    store.add(IDS, [rows])
    for chosen in (slice(0, 6), slice(2, 5)):
        mapped = store_in(root).rows(IDS[chosen]).numpy()
        assert isinstance(mapped, np.memmap)
        assert np.array_equal(mapped, rows[chosen].numpy())
        mapped[:] = 0  # a user who scales features in place changes memory, never the file
        assert np.array_equal(store_in(root).rows(IDS[chosen]).numpy(), rows[chosen].numpy())
    gathered = store.rows([IDS[3], IDS[2]]).numpy()
    assert not isinstance(gathered, np.memmap)
    assert np.array_equal(gathered, rows[[3, 2]].numpy())


def test_ids_in_several_segments_other_orders_and_twice(root):
    rows = rows_of(9, 3)
    names = [f"{number}" for number in range(9)]
    for part in ([0, 1, 2], [7, 3], [8, 4, 5, 6]):
        store_in(root).add([names[number] for number in part], [rows[part]])
    store = store_in(root)
    order = [8, 0, 3, 3, 7, 1, 6, 0]
    stored = store.rows([names[number] for number in order])
    assert torch.equal(stored.whole(), rows[order])
    assert torch.equal(stored[np.array([7, 1, 2])], rows[[0, 0, 3]])
    assert store.missing(["new", names[4], "newer", "new"]).tolist() == [0, 2, 3]


def test_an_id_that_is_given_twice_is_stored_and_found(root):
    names = ["a", "b", "a"]
    rows = rows_of(2, 3)[[0, 1, 0]]
    store = store_in(root)
    store.add(names, [rows])
    assert torch.equal(store.rows(names).whole(), rows)
    assert torch.equal(store.rows(["b", "a"]).whole(), rows[[1, 0]])


def test_ids_need_not_be_valid_unicode(root):
    names = [os.fsdecode(b"caf\xe9.jpg"), "café.jpg", "cafe.jpg"]
    rows = rows_of(3, 2)
    store_in(root).add(names, [rows])
    assert torch.equal(store_in(root).rows(names[::-1]).whole(), rows.flip(0))


def test_what_has_no_row_is_a_key_error(root):
    store = store_in(root)
    with pytest.raises(KeyError, match="6 of 6 images have no row"):
        store.rows(IDS)
    store.add(IDS[:4], [rows_of(4, 3)])
    with pytest.raises(KeyError, match="2 of 6"):
        store.rows(IDS)
    assert store.missing([]).tolist() == []


@pytest.mark.parametrize("change", [{"precision": "bf16"}, {"weights": "1" * 64}, {"views": 2}])
def test_another_recipe_has_other_rows(change, root):
    rows = rows_of(6, 3)
    store_in(root).add(IDS, [rows])
    other = store_in(root, **change)
    assert len(other.missing(IDS)) == 6
    other.add(IDS, [rows + 1])
    assert torch.equal(store_in(root).rows(IDS).whole(), rows)
    assert torch.equal(store_in(root, **change).rows(IDS).whole(), rows + 1)


def test_a_recipe_is_the_same_in_any_order_and_another_for_another_kind(root):
    store_in(root).add(IDS, [rows_of(6, 3)])
    turned = dict(reversed(RECIPE.items()))
    assert len(RowStore("features", turned, root=root).missing(IDS)) == 0
    assert len(RowStore("pixels", RECIPE, root=root).missing(IDS)) == 6


def test_the_recipe_can_be_read_by_people(root):
    store = store_in(root)
    store.add(IDS, [rows_of(6, 3)])
    text = (store.folder / "recipe.json").read_text()
    assert json.loads(text) == RECIPE
    assert len(text.splitlines()) == 2 + len(RECIPE)


@pytest.mark.parametrize("content", ['{"backbone": "vgg16"}', "", "[", "3"])
def test_a_folder_that_names_another_recipe_is_taken_for_absent(content, root):
    rows = rows_of(6, 3)
    store = store_in(root)
    store.add(IDS, [rows])
    (store.folder / "recipe.json").write_text(content)
    again = store_in(root)
    assert len(again.missing(IDS)) == 6
    again.add(IDS, [rows])
    assert json.loads((store.folder / "recipe.json").read_text()) == RECIPE
    assert torch.equal(store_in(root).rows(IDS).whole(), rows)


def test_a_segment_in_the_wrong_folder_is_not_used(root):
    store, other = store_in(root), store_in(root, precision="bf16")
    store.add(IDS, [rows_of(6, 3)])
    other.add(IDS[:2], [rows_of(2, 3)])
    (segment,) = (path for path in store.folder.iterdir() if path.is_dir())
    segment.rename(other.folder / segment.name)
    again = store_in(root, precision="bf16")
    assert again.missing(IDS).tolist() == [2, 3, 4, 5]


def test_memory_does_not_grow_with_the_number_of_rows(root):
    count, block_bytes = 64, 2**20
    alive: list[weakref.ref[torch.Tensor]] = []

    def blocks():
        for number in range(count):
            block = torch.from_numpy(np.full((4, block_bytes // 4), number, dtype=np.uint8))
            alive.append(weakref.ref(block))
            yield block
            del block
            assert sum(ref() is not None for ref in alive) <= 1  # that which is being written

    ids = [str(number) for number in range(4 * count)]
    tracemalloc.start()
    try:
        store_in(root).add(ids, blocks())
        _, peak_of_writing = tracemalloc.get_traced_memory()
        tracemalloc.reset_peak()
        before, _ = tracemalloc.get_traced_memory()
        stored = store_in(root).rows(ids)
        _, peak_of_reading = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert stored.nbytes == count * block_bytes
    assert peak_of_writing < 4 * block_bytes
    assert peak_of_reading - before < 4 * block_bytes
    assert stored[np.array([4 * count - 1])].unique().tolist() == [count - 1]


@pytest.mark.parametrize(
    ("blocks", "sentence"),
    [
        ([rows_of(4, 3)], "must be 6 rows, one for each id. Got 4 instead."),
        ([rows_of(4, 3), rows_of(4, 3)], "must be 6 rows, one for each id. Got 8 instead."),
        ([rows_of(4, 3), rows_of(2, 4)], "rows of shape [3] and torch.float32. Got (torch.float32, (4,))"),
        ([rows_of(4, 3), rows_of(2, 3).half()], "Got (torch.float16, (3,)) instead."),
        ([rows_of(6, 3).double()], "must be tensors [n, *shape] of uint8, float32, float16, bfloat16."),
        ([torch.tensor(1.0)], "must be tensors [n, *shape] of"),
        ([], "must be rows of images. Got 'none' instead."),
    ],
)
def test_blocks_that_do_not_fit_leave_nothing(blocks, sentence, root):
    store = store_in(root)
    with pytest.raises(ArgumentError) as caught:
        store.add(IDS, iter(blocks))
    assert str(caught.value).startswith("The 'blocks' parameter of RowStore.add must be ")
    assert sentence in str(caught.value)
    assert len(store.missing(IDS)) == 6
    assert files_below(root) == []


def test_an_unknown_kind_is_named(root):
    with pytest.raises(ArgumentError, match=r"must be one of 'features', 'pixels'\. Got 'feature'"):
        RowStore("feature", RECIPE, root=root)


class Broken(Exception):
    pass


@pytest.mark.parametrize("error", [Broken(), KeyboardInterrupt(), FileNotFoundError(2, "no photo")])
def test_what_goes_wrong_in_computing_is_passed_on_and_leaves_nothing(error, root):
    def blocks():
        yield rows_of(4, 3)
        raise error

    store = store_in(root)
    with pytest.raises(type(error)) as caught:
        store.add(IDS, blocks())
    assert caught.value is error
    assert len(store.missing(IDS)) == 6
    assert files_below(root) == []


def kill_while_writing(root):
    def blocks():
        yield rows_of(4, 3)
        os._exit(9)

    store_in(root).add(IDS, blocks())


@pytest.mark.slow
def test_a_killed_writer_leaves_nothing_visible_and_is_swept_later(root):
    context = multiprocessing.get_context("spawn")
    process = context.Process(target=kill_while_writing, args=(root,))
    process.start()
    process.join(120)
    assert process.exitcode == 9
    (left,) = (root / "features").iterdir()
    assert left.name.startswith(".writing-")
    store = store_in(root)
    assert len(store.missing(IDS)) == 6
    assert entries(root) == []
    store.add(IDS, [rows_of(6, 3)])
    assert not left.exists()
    assert torch.equal(store_in(root).rows(IDS).whole(), rows_of(6, 3))


def write_at_the_same_time(root, barrier, results):
    def blocks():
        for block in rows_of(6, 3).split(3):
            barrier.wait(120)  # both are in the middle of their segment
            yield block

    store = store_in(root)
    stored = store.add(IDS, blocks())
    results.put((stored, torch.equal(store.rows(IDS).whole(), rows_of(6, 3))))


@pytest.mark.slow
def test_two_processes_that_write_the_same_rows_leave_one_segment(root):
    context = multiprocessing.get_context("spawn")
    barrier, results = context.Barrier(2), context.Queue()
    processes = [
        context.Process(target=write_at_the_same_time, args=(root, barrier, results)) for _ in range(2)
    ]
    for process in processes:
        process.start()
    found = [results.get(timeout=120) for _ in processes]
    for process in processes:
        process.join(120)
        assert process.exitcode == 0
    assert found == [(True, True), (True, True)]
    store = store_in(root)
    assert sorted(path.name for path in (root / "features").iterdir()) == [store.folder.name]
    assert sum(path.is_dir() for path in store.folder.iterdir()) == 1
    assert torch.equal(store.rows(IDS).whole(), rows_of(6, 3))


def test_the_first_of_two_writers_wins_unless_its_segment_is_damaged(root):
    rows = rows_of(6, 3)

    def blocks(damage):
        yield rows[:3]
        store_in(root).add(IDS, [rows])
        if damage:
            (path,) = store_in(root).folder.glob("*/rows.npy")
            path.write_bytes(path.read_bytes()[:-1])
        yield rows[3:]

    for damage in (False, True):
        store = store_in(root)
        assert store.add(IDS, blocks(damage))
        assert torch.equal(store.rows(IDS).whole(), rows)
        assert torch.equal(store_in(root).rows(IDS).whole(), rows)
        assert len(files_below(root)) == 4
        clear(root)


def test_clearing_between_two_blocks_does_not_disturb_a_writer(root):
    rows = rows_of(6, 3)
    store_in(root).add(IDS[:2], [rows[:2]])

    def blocks():
        yield rows[:3]
        clear(root)
        yield rows[3:]

    assert store_in(root).add(IDS, blocks())
    assert torch.equal(store_in(root).rows(IDS).whole(), rows)
    assert json.loads((store_in(root).folder / "recipe.json").read_text()) == RECIPE


@pytest.mark.skipif(os.name == "nt", reason="Windows does not remove files that are mapped")
def test_a_reader_keeps_its_rows_when_the_cache_is_cleared(root):
    rows = rows_of(6, 3)
    store_in(root).add(IDS, [rows])
    store = store_in(root)
    stored = store.rows(IDS)
    looked_up = store_in(root)
    assert len(looked_up.missing(IDS)) == 0
    clear(root)
    assert files_below(root) == []
    assert torch.equal(stored.whole(), rows)
    assert torch.equal(stored[np.array([4])], rows[[4]])
    assert torch.equal(looked_up.rows(IDS).whole(), rows)
    assert len(store_in(root).missing(IDS)) == 6


def test_rows_that_do_not_fit_are_not_written(root, monkeypatch):
    monkeypatch.setenv("TRANSFERKIT_CACHE_SIZE", "71")
    store = store_in(root)
    blocks = iter(rows_of(6, 3).split(2))
    assert not store.fits(6, RowType(torch.float32, (3,)))
    assert store.add(IDS, blocks) is False
    assert len(list(blocks)) == 2
    assert not root.exists()
    monkeypatch.setenv("TRANSFERKIT_CACHE_SIZE", "72")
    assert store.fits(6, RowType(torch.float32, (3,)))
    assert store.add(IDS, rows_of(6, 3).split(2)) is True
    assert len(store_in(root).missing(IDS)) == 0


def test_a_limit_of_nothing_stores_nothing(root, monkeypatch):
    monkeypatch.setenv("TRANSFERKIT_CACHE_SIZE", "0")
    assert store_in(root).add(IDS, [rows_of(6, 3)]) is False
    assert not root.exists()


def age(store, seconds):
    """Let the segments of a store have been used for the last time some seconds after 1970."""
    for path in store.folder.glob("*/index.json"):
        os.utime(path, (seconds, seconds))


def test_what_was_used_least_recently_is_evicted(root, monkeypatch):
    stores = [store_in(root, number=number) for number in range(4)]
    rows = rows_of(500, 100)  # 200 kB
    ids = [str(number) for number in range(500)]
    for number in (0, 1, 2):
        stores[number].add(ids, [rows])
        age(stores[number], 1_000_000 + number)
    store_in(root, number=0).rows(ids)  # now 1 is the oldest, and 2 the next
    monkeypatch.setenv("TRANSFERKIT_CACHE_SIZE", "700kB")
    stores[3].add(ids, [rows])
    kept = [len(store_in(root, number=number).missing(ids)) == 0 for number in range(4)]
    assert kept == [True, False, True, True]
    assert not stores[1].folder.exists()


def test_what_a_store_uses_is_never_evicted_for_its_own_new_rows(root, monkeypatch):
    store_in(root).add(IDS[:4], [rows_of(4, 3)])
    age(store_in(root), 1_000_000)
    monkeypatch.setenv("TRANSFERKIT_CACHE_SIZE", "80")  # 48 bytes of rows are there, 24 come
    store = store_in(root)
    assert store.missing(IDS).tolist() == [4, 5]
    assert store.add(IDS[4:], [rows_of(2, 3, seed=1)])
    expected = torch.cat([rows_of(4, 3), rows_of(2, 3, seed=1)])
    assert torch.equal(store.rows(IDS).whole(), expected)
    monkeypatch.setenv("TRANSFERKIT_CACHE_SIZE", "71")
    store = store_in(root)
    assert len(store.missing([*IDS, "one more"])) == 1
    assert store.add(["one more"], [rows_of(1, 3)]) is False


@pytest.mark.parametrize("kind", ["file in the way", "full disk"])
def test_what_cannot_be_written_is_one_sentence_and_leaves_nothing(kind, root):
    rows = rows_of(500, 100)
    ids = [str(number) for number in range(500)]
    store = store_in(root)
    if kind == "file in the way":
        root.write_text("not a folder")
        reason = "Not a directory"
        with pytest.raises(OutputError) as caught:
            store.add(ids, rows.split(50))
        root.unlink()
    else:
        resource = pytest.importorskip("resource")
        reason = "File too large"
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
        try:
            with pytest.raises(OutputError) as caught:
                store.add(ids, rows.split(50))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        assert files_below(root) == []
    assert str(caught.value) == (
        f"The cache in {root / 'features'} cannot be written: {reason}; "
        "the variable TRANSFERKIT_CACHE can name another place."
    )
    assert store.add(ids, rows.split(50))
    assert torch.equal(store_in(root).rows(ids).whole(), rows)


@pytest.fixture
def other_users_root():
    """The root of a cache that can be read but not written, even where the tests run as root."""
    if os.name == "nt":
        pytest.skip("Windows has no such permissions")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        root = folder / "cache"
        store_in(root).add(IDS, [rows_of(6, 3)])
        paths = [folder, root, *root.rglob("*")]
        user = os.geteuid()
        for path in paths:
            path.chmod(0o555 if path.is_dir() else 0o444)
        if user == 0:
            os.seteuid(65534)
        try:
            if not os.access(root, os.R_OK, effective_ids=True):
                pytest.skip("the folder for temporary files is closed to other users")
            yield root
        finally:
            os.seteuid(user)
            for path in paths:
                path.chmod(0o755)


def test_reading_needs_no_permission_to_write(other_users_root):
    store = store_in(other_users_root)
    assert len(store.missing(IDS)) == 0
    assert torch.equal(store.rows(IDS).whole(), rows_of(6, 3))
    with pytest.raises(OutputError, match="cannot be written: Permission denied"):
        store.add(["new"], [rows_of(1, 3)])
    clear(other_users_root)
    assert torch.equal(store_in(other_users_root).rows(IDS).whole(), rows_of(6, 3))
