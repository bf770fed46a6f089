"""Rows of one shape and dtype, one for each image id, kept on disk under a key.

What is expensive to compute once, such as features or decoded pixels, is looked up here first.
A row is never wrong: whatever is damaged on the disk is left out, removed and computed again.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from transferkit.checks import check_choice, require
from transferkit.files import sync_folder
from transferkit.loading.cache import (
    KINDS,
    RECIPE,
    cache_limit,
    cache_root,
    evict,
    make_way,
    open_file,
    output_errors,
    remove_damaged,
    segment_folders,
    writing_folder,
)
from transferkit.loading.row_segments import (
    RowType,
    Segment,
    SegmentWriter,
    as_array,
    as_tensor,
    digests_of,
    open_segment,
    segment_name,
    write_synced,
)

# Raised whenever the layout on disk changes: what another version wrote is then not found.
_FORMAT = 1


class Rows:
    """Stored rows, read-only; a row comes into memory when it is asked for.

    Args:
        maps: Arrays of rows, on disk as a rule.
        places: For each row the number of its map and its position in it, shape ``[N, 2]``;
            ``None`` stands for all rows of the one map there is.
        dtype: What the rows are as tensors.

    Attributes:
        shape: ``(N, *shape of a row)``.
        dtype: uint8, float32, float16 or bfloat16.
        nbytes: What all of them take in memory.
    """

    def __init__(
        self,
        maps: Sequence[npt.NDArray[Any]],
        places: npt.NDArray[np.int64] | None,
        dtype: torch.dtype,
    ) -> None:
        self._maps = maps
        self._places = places
        self.dtype = dtype
        self.shape: tuple[int, ...] = (len(maps[0]) if places is None else len(places), *maps[0].shape[1:])
        self.nbytes = math.prod(self.shape) * dtype.itemsize

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, indices: npt.NDArray[np.int64]) -> Tensor:
        """Return a copy of the rows at ``indices``: shape ``[n, *shape of a row]``."""
        return as_tensor(self._gather(indices), self.dtype)

    def whole(self) -> Tensor:
        """Return all rows in memory: shape ``[N, *shape of a row]``."""
        return as_tensor(self._in_memory(), self.dtype)

    def numpy(self) -> npt.NDArray[Any]:
        """Return all rows as an array; what is written to it stays in memory.

        It is the map itself, without a copy, where the rows lie in order in one segment.
        bfloat16, which NumPy lacks, comes as float32.
        """
        if self.dtype is torch.bfloat16:
            return as_array(self.whole().float())
        return self._maps[0] if self._places is None else self._in_memory()

    def _in_memory(self) -> npt.NDArray[Any]:
        return np.array(self._maps[0]) if self._places is None else self._gather(np.arange(len(self)))

    def _gather(self, indices: npt.NDArray[np.int64]) -> npt.NDArray[Any]:
        if self._places is None:
            return _take(self._maps[0], indices)
        numbers, positions = self._places[indices].T
        if len(self._maps) == 1:
            return _take(self._maps[0], positions)
        gathered = np.empty((len(positions), *self.shape[1:]), self._maps[0].dtype)
        for number in np.unique(numbers):
            taken = np.flatnonzero(numbers == number)
            gathered[taken] = _take(self._maps[number], positions[taken])
        return gathered


class RowStore:
    """Rows that were made by one recipe, shared by all processes that use the same cache.

    Several processes may read, write and clear at the same time: each sees whole segments or
    none. What this object has found stays readable for it, even after it was removed on disk
    (on Windows it cannot be removed meanwhile). One thread at a time uses an object.

    Args:
        kind: ``"features"`` or ``"pixels"``.
        recipe: Everything that changes a bit of the rows, as JSON can hold it. Its first three
            short texts and numbers, in the order given, describe the entry in listings.
        root: The folder of the cache; ``None`` stands for ``cache_root()``.
    """

    def __init__(self, kind: str, recipe: Mapping[str, Any], *, root: Path | None = None) -> None:
        check_choice("RowStore", "kind", kind, KINDS)
        self._root = cache_root() if root is None else root.absolute()
        self._recipe = json.dumps(dict(recipe), indent=2, allow_nan=False) + "\n"
        canonical = json.dumps([_FORMAT, kind, json.loads(self._recipe)], sort_keys=True)
        self._key = hashlib.sha256(canonical.encode()).hexdigest()
        self.folder = self._root / kind / self._key[:20]
        self._segments: dict[str, Segment | None] = {}  # None: damaged, and it could not be removed
        self._used: set[str] = set()

    def missing(self, ids: Sequence[str]) -> npt.NDArray[np.int64]:
        """Return the positions in ``ids`` of the images that have no row."""
        _, places = self._find(ids)
        return np.flatnonzero(places[:, 0] < 0)

    def fits(self, rows: int, row_type: RowType) -> bool:
        """Whether the cache has room for more rows, beside those that this object has found."""
        used = sum(segment.nbytes for name in self._used if (segment := self._segments[name]))
        return used + rows * row_type.nbytes <= cache_limit()

    def add(self, ids: Sequence[str], blocks: Iterable[Tensor]) -> bool:
        """Write rows as they are computed: all of them, or nothing if anything goes wrong.

        Memory does not grow with the number of rows. Afterwards the segments that were used least
        recently are removed until the cache is within its limit; never one that this object has used.

        Args:
            ids: The images, at least one.
            blocks: Their rows in the same order, ``[n, *shape]`` of one shape and dtype, on any device.

        Returns:
            Whether the rows are stored. ``False`` means that they do not fit in the cache; then
            nothing is written and only the first block was taken from ``blocks`` (``fits`` tells
            before). Or the cache was cleared in the very moment in which they were stored.

        Raises:
            ArgumentError: The blocks are not of one shape and dtype, or not one row for each id.
            OutputError: They cannot be written; the message names the path and the reason.
        """
        digests = digests_of(ids)
        remaining = iter(blocks)
        first = next(remaining, None)
        require(first is not None and len(digests) > 0, "RowStore.add", "blocks", "rows of images", "none")
        assert first is not None
        row_type = RowType.of(first)
        if not self.fits(len(digests), row_type):
            return False
        name = segment_name(digests)
        with writing_folder(self.folder.parent) as folder:
            writer = SegmentWriter(folder, self._key, digests, row_type)
            with contextlib.closing(writer):
                writer.add(first)
                del first
                for block in remaining:
                    writer.add(block)
                writer.finish()
            with output_errors(self._root):
                self._segments[name] = self._publish(folder, name)
        if self._segments[name] is None:
            return False
        self._used.add(name)
        evict(self._root, cache_limit(), keep={self.folder / used for used in self._used})
        return True

    def rows(self, ids: Sequence[str]) -> Rows:
        """Return the rows of ``ids``, in their order; an id may stand there several times.

        Where they lie in that order in one segment, they are mapped as they are; otherwise they
        are gathered as they are asked for.

        Raises:
            KeyError: An id has no row; ``missing`` tells which.
        """
        segments, places = self._find(ids)
        absent = np.flatnonzero(places[:, 0] < 0)
        if len(absent) or not segments:
            raise KeyError(f"{len(absent)} of {len(ids)} images have no row in {self.folder}")
        for segment in segments:
            segment.touch()
        maps = [segment.rows for segment in segments]
        start, stop = places[0, 1], places[0, 1] + len(places)
        if len(maps) == 1 and np.array_equal(places[:, 1], np.arange(start, stop)):
            return Rows([maps[0][start:stop]], None, segments[0].type.dtype)
        return Rows(maps, places, segments[0].type.dtype)

    def _find(self, ids: Sequence[str]) -> tuple[list[Segment], npt.NDArray[np.int64]]:
        """Return the segments that hold rows of ``ids``, and where each row is, shape ``[N, 2]``.

        A place is the number of a segment and the row in it; the number is -1 where there is none.
        """
        digests = digests_of(ids)
        places = np.full((len(digests), 2), -1, dtype=np.int64)
        segments: list[Segment] = []
        for name in self._names(first=segment_name(digests)):
            left = np.flatnonzero(places[:, 0] < 0)
            if not len(left):
                break
            segment = self._open(name)
            found = None if segment is None else segment.find(digests[left])
            if segment is None or found is None or (found < 0).all():
                continue
            # The rows are read through only now, when some of them are needed.
            same_type = not segments or segment.type == segments[0].type
            if not (same_type and segment.is_whole()):
                self._segments[name] = None
                continue
            hit = found >= 0
            places[left[hit], 0] = len(segments)
            places[left[hit], 1] = found[hit]
            segments.append(segment)
            self._used.add(name)
        return segments, places

    def _names(self, *, first: str) -> Iterator[str]:
        """Yield the names of all segments; the one that holds just these rows comes first."""
        on_disk = [] if self._is_others() else [folder.name for folder in segment_folders(self.folder)]
        names = {*self._segments, *on_disk}
        if first in names:
            yield first
        yield from sorted(names - {first})

    def _open(self, name: str) -> Segment | None:
        if name not in self._segments:
            self._segments[name] = open_segment(self.folder / name, self._key)
        return self._segments[name]

    def _is_others(self) -> bool:
        """Whether the folder is said to hold rows of another recipe; without a word, its segments tell."""
        try:
            with open_file(self.folder / RECIPE) as file:
                return bool(json.loads(file.read()) != json.loads(self._recipe))
        except FileNotFoundError:
            return False
        except (OSError, ValueError, RecursionError):
            return True

    def _publish(self, written: Path, name: str) -> Segment | None:
        """Put a finished segment in its place at once, unless another process was first.

        Returns:
            The segment that is there now, or ``None`` where it has been removed again already.
        """
        target = self.folder / name
        for last in (False, False, True):
            try:
                self.folder.mkdir(parents=True, exist_ok=True)
                if self._is_others() or not (self.folder / RECIPE).exists():
                    write_synced(written / RECIPE, self._recipe)
                    make_way(self.folder / RECIPE)
                    (written / RECIPE).replace(self.folder / RECIPE)
                written.rename(target)
            except OSError:
                present = open_segment(target, self._key)
                if present is not None and present.is_whole():
                    return present
                remove_damaged(target)  # or else the folder has just been removed by another process
                if last:
                    raise
            else:
                break
        with contextlib.suppress(FileNotFoundError):
            sync_folder(self.folder)
        segment = open_segment(target, self._key, check=False)
        return segment if segment is not None and segment.is_whole() else None


def _take(rows: npt.NDArray[Any], indices: npt.NDArray[np.int64]) -> npt.NDArray[Any]:
    """Return a copy of some rows; for whole rows of bytes much faster than torch's indexing."""
    taken: npt.NDArray[Any] = np.take(np.asarray(rows), indices, axis=0)
    return taken
