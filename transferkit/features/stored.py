"""What is frozen, computed once for each image, and read from disk where it has been computed before."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from transferkit.augmentations import Augmentation, is_built_in
from transferkit.backbones.preprocessing import Preprocessing
from transferkit.checks import warn_caller
from transferkit.datasets.base import Part
from transferkit.errors import OutputError
from transferkit.features.fingerprint import is_versioned, module_fingerprint
from transferkit.features.split import Split, why_not_split
from transferkit.inference import FastForward, choose_form, why_not_fast, work_of
from transferkit.loading.batches import ImageBatches
from transferkit.loading.cache import cache_limit
from transferkit.loading.memory import available_memory
from transferkit.loading.row_store import Rows, RowStore
from transferkit.runtime import Execution
from transferkit.training.run_directory import versions

# Images that go through a frozen module at once. It changes bits, so it is the same for every run.
BATCH_SIZE = 32
# Images on which the cut and the fast form are compared with the model itself.
_CHECKED = 8
# How far stored rows may be from fresh ones, by the norm: rounding differs with the batch.
_SAME = {"fp32": 1e-3, "bf16": 0.05, "fp16": 0.01}
# Operations for each stored byte from which reading a result is quicker than computing it anew:
# a CPU does hundreds in the time in which it reads a byte, a GPU tens of thousands.
_OPERATIONS_PER_BYTE = {"cpu": 200, "cuda": 20_000}


@dataclass(frozen=True)
class Views:
    """Which views of each image are stored.

    Attributes:
        augmentation: Gives the views; ``None`` for the image as it is.
        count: Views of each image.
        seed: What the views follow from.
    """

    augmentation: Augmentation | None = None
    count: int = 1
    seed: int = 0

    def ids(self, identities: Sequence[str], view: int) -> list[str]:
        """Return what names a view of each image in the store."""
        if self.augmentation is None:
            return list(identities)
        name = self.augmentation.name
        return [f"{each}|{name}|{self.seed}|{index}|{view}" for index, each in enumerate(identities)]

    def storable(self, preprocessing: Preprocessing) -> bool:
        """Whether the views are known by name to be the same in another process."""
        return self.augmentation is None or is_built_in(self.augmentation, preprocessing)


class FrozenPrefix:
    """The frozen part of a model, run once over each image.

    Args:
        split: The model, cut; it is on the execution's device.
        preprocessing: That of the model.
        execution: How the run as a whole was decided to be executed.
        images: How many images there are in all; compiling has to pay for these.
        name: What the store calls the model.

    Attributes:
        note: How the outputs came to be, in a few words.
    """

    def __init__(
        self,
        split: Split,
        preprocessing: Preprocessing,
        execution: Execution,
        *,
        images: int,
        name: str = "custom",
    ) -> None:
        self.split = split
        self.execution = execution
        self.note = ""
        self._name = name
        self._images = images
        self._preprocessing = preprocessing
        self._work = work_of(split.prefix, preprocessing.size)
        self.form = choose_form(
            split.prefix, execution, operations=images * self._work.operations, batch_size=BATCH_SIZE
        )
        self._forward: FastForward | None = None
        self._fingerprint: str | None = None
        self._storable = True

    @property
    def bytes_per_image(self) -> int:
        """Size of what is stored for one view of one image."""
        return math.prod(self._work.shape) * self._dtype.itemsize

    @property
    def _dtype(self) -> torch.dtype:
        """The type of what is stored: what a head is given is float32, as scikit-learn takes it."""
        return torch.float32 if len(self._work.shape) == 1 else self.execution.dtype

    def why_not(self) -> str | None:
        """Return why the outputs should not be stored, by rule; ``None`` where they should."""
        kind = torch.device(self.execution.device).type
        larger = self.bytes_per_image > 3 * self._preprocessing.size**2  # than the image's own pixels
        if larger and self._work.operations < _OPERATIONS_PER_BYTE.get(kind, 0) * self.bytes_per_image:
            return "computing the frozen part again takes less than reading its outputs"
        total = self._images * self.bytes_per_image
        if not self._fits_in_memory(total) and not self._fits_on_disk(total):
            size = f"{total / 1e9:.1f} GB"
            return f"the outputs of the frozen part take {size}, which fit in neither memory nor cache"
        return None

    def _fits_in_memory(self, size: int) -> bool:
        return size <= available_memory() // 2

    def _fits_on_disk(self, size: int) -> bool:
        return size <= cache_limit() // 2

    def rows(self, part: Part, source: ImageBatches, views: Views | None = None) -> Tensor | Rows:
        """Return the outputs for every image of a part: view 0 of each, then view 1 of each, and so on.

        Args:
            part: The images, the same each time they are asked for.
            source: Gives them as the model takes them.
            views: Which views of each; by default the image as it is.

        Raises:
            Unfit: The model cannot be cut as it was; it must run whole.
        """
        views = views or Views()
        total = len(part) * views.count * self.bytes_per_image
        identities = [part.identity(index) for index in range(len(part))]
        ids = [name for view in range(views.count) for name in views.ids(identities, view)]
        store = self._store(views, total)
        if store is not None and len(store.missing(ids)):
            # What is known of the form only once it runs is part of the key too.
            self._prepare(source)
            store = self._store(views, total)
        if store is not None:
            missing = store.missing(ids)
            known = np.setdiff1d(np.arange(len(ids)), missing)
            if len(known) and not self._still_right(store, ids, known, source, len(part)):
                store = None
            elif not len(missing):
                self.note = "read from the cache"
                return store.rows(ids)
        if store is not None:
            blocks = self._blocks(source, missing, len(part))
            if self._keep(store, [ids[index] for index in missing], blocks):
                shown = f"{len(known):,} from the cache, " if len(known) else ""
                self.note = f"{self.form}; {shown}kept in the cache"
                return store.rows(ids)
        everything = np.arange(len(ids))
        self.note = f"{self.form}; kept for this run alone"
        return _collected(self._blocks(source, everything, len(part)), len(ids))

    def _keep(self, store: RowStore, ids: Sequence[str], blocks: Iterator[Tensor]) -> bool:
        try:
            return store.add(ids, blocks)
        except OutputError as error:
            warn_caller(f"Features are not kept for later runs: {error}")
            return False

    def _still_right(
        self,
        store: RowStore,
        ids: Sequence[str],
        known: npt.NDArray[np.int64],
        source: ImageBatches,
        images: int,
    ) -> bool:
        """Compare some stored rows with fresh ones where no version stands for the code of the model."""
        if is_versioned(self.split.model):
            return True
        self._prepare(source)
        chosen = known[:_CHECKED]
        fresh = torch.cat(list(self._blocks(source, chosen, images))).float()
        kept = store.rows([ids[index] for index in chosen]).whole().float()
        right = kept.shape == fresh.shape
        right = right and bool((kept - fresh).norm() <= _SAME[self.form.precision] * fresh.norm())
        if not right:
            warn_caller(
                "Stored features are not what the model gives now, so they are computed anew for this run: "
                "something has changed that does not show in its weights, settings and own files."
            )
        return right

    def _store(self, views: Views, total: int) -> RowStore | None:
        """Return the store of these outputs, or ``None`` where they are not kept beyond the run."""
        fits = self._storable and views.storable(self._preprocessing) and self._fits_on_disk(total)
        if not fits:
            return None
        self._fingerprint = self._fingerprint or module_fingerprint(self.split.prefix)
        if self._fingerprint is None:
            return None
        return RowStore("features", self._recipe())

    def _recipe(self) -> dict[str, Any]:
        """Return everything that changes the bits of the outputs, besides the images themselves."""
        execution = self.execution
        return {
            "model": f"{self._name} at {self._preprocessing.size} px",
            "where": self.split.where,
            "how": f"{self.form}{', exact decoding' if execution.decode == 'exact' else ''}",
            "module": self._fingerprint,
            "preprocessing": self._preprocessing.to_dict(),
            "form": dataclasses.asdict(self.form),
            "device": unit_of(execution.device),
            "channels_last": execution.channels_last,
            "threads": execution.threads,
            "decode": execution.decode,
            "versions": versions(),
        }

    def _blocks(self, source: ImageBatches, chosen: npt.NDArray[np.int64], images: int) -> Iterator[Tensor]:
        """Compute the outputs at ``chosen``, which counts through view after view."""
        for view in np.unique(chosen // images):
            positions = chosen[chosen // images == view] % images
            for batch in source.visit(positions, int(view)):
                if self._forward is None:
                    self._check(batch.inputs[:_CHECKED])
                assert self._forward is not None
                yield self._forward(batch.inputs).to("cpu", self._dtype)

    def _prepare(self, source: ImageBatches) -> None:
        """Make sure that the frozen part is ready, on the first images of a source."""
        if self._forward is None:
            positions = np.arange(min(_CHECKED, source.samples() or 0))
            self._check(next(source.visit(positions, 0)).inputs)

    def _check(self, images: Tensor) -> None:
        """Compare the cut with the model on some images, and put the frozen part into its fastest form."""
        images = images.float()
        reason = why_not_split(self.split, images, self.execution)
        if reason is not None:
            raise Unfit(reason)
        prefix, execution = self.split.prefix, self.execution
        fast = FastForward(prefix, self.form, execution)
        reason = why_not_fast(fast, prefix, images) if self.form.changes else None
        if reason is not None:
            # A form that is only wrong here and now must not be what is found under its key.
            self._storable = False
            fast.notes.append(reason)
            plain = dataclasses.replace(self.form, folded=False, compiled=False, packed=False)
            fast = FastForward(prefix, plain, execution)
        if reason is not None or (self.form.compiled and not fast.form.compiled):
            notes = "; ".join(fast.notes if reason is None else [reason])
            warn_caller(f"The frozen part runs more slowly than it could: {notes}.")
        self._forward, self.form = fast, fast.form


def unit_of(device: str) -> str:
    """Return what computes, as far as its bits may depend on it, such as ``"cpu AVX512"``."""
    kind = torch.device(device).type
    unit = torch.cuda.get_device_name(device) if kind == "cuda" else torch.backends.cpu.get_cpu_capability()
    return f"{kind} {unit}"


class Unfit(Exception):
    """A model gives something else when it is cut; the text says what, in a few words."""


def _collected(blocks: Iterator[Tensor], count: int) -> Tensor:
    """Return blocks of rows as one tensor, filled as they come."""
    rows: Tensor | None = None
    filled = 0
    for block in blocks:
        if rows is None:
            rows = block.new_empty((count, *block.shape[1:]))
        rows[filled : filled + len(block)] = block
        filled += len(block)
    assert rows is not None
    return rows
