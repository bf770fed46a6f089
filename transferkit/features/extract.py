"""Features of images as arrays, for scikit-learn or a loop of one's own."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from transferkit.backbones.spec import spec_of, unwrapped
from transferkit.checks import check_int, check_module
from transferkit.datasets.base import Part, Splits
from transferkit.errors import ArgumentError, DataError, SelectorError
from transferkit.features.split import NoSplit, split_model
from transferkit.features.stored import BATCH_SIZE, FrozenPrefix, Unfit
from transferkit.freezing import freeze
from transferkit.loading.checked import Skipped, check_on_error, usable
from transferkit.loading.row_store import Rows
from transferkit.loading.sources import image_batches, part_of
from transferkit.runtime import Execution, given_execution


@dataclass(frozen=True, repr=False)
class Features:
    """What the head of a model is given for each image of a part.

    Attributes:
        x: float32, shape ``[N, D]``; where they lie in order on disk, a map of the file, of which
            what is read comes into memory, and which nothing that is written to it changes.
        y: Class index of each image, int64, shape ``[N]``.
        classes: Name of each class.
        ids: A name for each image.
        note: How the features came to be, in a few words.
        skipped: Images that were left out, because they cannot be decoded; they have no row.
    """

    x: npt.NDArray[np.float32]
    y: npt.NDArray[np.int64]
    classes: tuple[str, ...]
    ids: tuple[str, ...]
    note: str
    skipped: tuple[Skipped, ...] = ()

    def __len__(self) -> int:
        return len(self.y)

    def __repr__(self) -> str:
        return f"Features({self.x.shape[0]} images, {self.x.shape[1]} numbers each, {self.note})"


def extract_features(
    model: nn.Module,
    data: Any,
    *,
    device: str | torch.device = "auto",
    precision: str = "auto",
    compile: bool | str = "auto",
    execution: Execution | None = None,
    workers: int | None = None,
    on_error: str = "raise",
) -> Features:
    """Run everything but the head of a model over images, once, and return what the head is given.

    The outputs are kept in the cache (see the page on it), so that the same images and weights
    cost nothing the next time. Maps ``[N, C, H, W]``, as SqueezeNet's head takes them, and tokens
    ``[N, T, C]`` are averaged over their positions.

    Args:
        model: A model with a spec; its mode and what of it is frozen play no role and stay as they are.
            It is moved to the device.
        data: ``Splits`` (its training part), a part, or a map-style data set of (image, class index)
            whose images are the same each time.
        device: ``"auto"``, ``"cpu"``, ``"cuda"`` …
        precision: ``"auto"``, ``"fp32"``, ``"bf16"`` or ``"fp16"``; features are float32 in any case.
        compile: ``True``, ``False``, or ``"auto"`` for where it pays, which is nowhere on a CPU.
        execution: How to run instead of the three before; see ``resolve_execution``.
        workers: Number of decoding threads; ``None`` stands for one for each processor.
        on_error: What an image that cannot be decoded does: ``"raise"``, or ``"skip"`` to be left
            out and named in ``skipped``.

    Raises:
        ArgumentError: The model has no spec, or its features cannot be told from its head.
        DataError: There is no image, or an image cannot be decoded.

    >>> import transferkit as tk
    >>> part = tk.Part(np.zeros((4, 32, 32, 3), dtype=np.uint8), [0, 1] * 2, ["ant", "bee"])
    >>> features = extract_features(tk.load_backbone("mini"), part, device="cpu")
    >>> features.x.shape, features.y.tolist()
    ((4, 512), [0, 1, 0, 1])
    """
    check_module("extract_features", model)
    spec_of(model)  # images need its preprocessing
    if workers is not None:
        check_int("extract_features", "workers", workers)
    part = part_of(data.train if isinstance(data, Splits) else data)
    if part is None:
        raise DataError("Features are extracted from images; this data set gives float tensors instead.")
    if not len(part):
        raise DataError(f"The {part.name!r} part is empty; at least one image is needed.")
    check_on_error("extract_features", on_error, part)
    execution = given_execution(
        model, execution, owner="extract_features", device=device, precision=precision, compile=compile
    )
    execution.place(model)
    part, skipped = usable(part, on_error=on_error, workers=workers)
    try:
        with execution.arithmetic():
            found = head_inputs(model, part, execution, workers=workers)
    except (NoSplit, Unfit) as error:
        raise ArgumentError(
            f"The features of this {type(unwrapped(model)).__name__} cannot be told from its head: {error}."
        ) from error
    return Features(_flat(found.rows), part.targets, part.classes, part.ids, found.note, skipped)


class HeadInputs(NamedTuple):
    """What the head of a model is given for each image of a part.

    Attributes:
        rows: Shape ``[N, ...]``.
        suffix: From these to logits; it shares the weights of the model's head.
        note: How they came to be, in a few words.
    """

    rows: Tensor | Rows
    suffix: nn.Module
    note: str


def head_inputs(model: nn.Module, part: Part, execution: Execution, *, workers: int | None) -> HeadInputs:
    """Run everything but the head over the images of a part, or read what that gave from the cache.

    Args:
        model: A model with a spec, on the execution's device; what of it is frozen plays no role.
        part: Images that are the same each time.
        execution: How the model runs.
        workers: Number of decoding threads.

    Raises:
        NoSplit: The model cannot be cut before its head.
        Unfit: The cut changes what the model gives.
    """
    spec = spec_of(model)
    try:
        split = split_model(freeze(_twin(model), except_="head"))
    except SelectorError as error:
        raise NoSplit(str(error)) from error
    prefix = FrozenPrefix(split, spec.preprocessing, execution, images=len(part), name=spec.name)
    source = image_batches(
        part, spec.preprocessing, execution, batch_size=BATCH_SIZE, workers=workers, keep=False
    )
    return HeadInputs(prefix.rows(part, source), split.suffix, prefix.note)


def _twin(model: nn.Module) -> nn.Module:
    """Return a copy that shares the weights, and has its own mind of what trains and in which mode."""
    plain = unwrapped(model)
    shared: dict[int, Any] = {
        id(each): nn.Parameter(each.detach(), each.requires_grad) for each in plain.parameters()
    }
    shared |= {id(each): each for each in plain.buffers()}
    return copy.deepcopy(plain, shared)


def _flat(rows: Tensor | Rows) -> npt.NDArray[np.float32]:
    """Return features as float32 ``[N, D]``, maps averaged over their positions."""
    if len(rows.shape) == 2:
        return np.asarray(rows.numpy(), dtype=np.float32)
    whole = (rows.whole() if isinstance(rows, Rows) else rows).float()
    # Positions come last in maps [N, C, H, W], and first in tokens [N, T, C].
    pooled = whole.mean(dim=1) if whole.ndim == 3 else whole.flatten(2).mean(dim=2)
    array: npt.NDArray[np.float32] = pooled.numpy()
    return array
