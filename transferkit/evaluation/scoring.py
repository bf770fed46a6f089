"""Run a model over data and score it: each sample exactly once."""

from __future__ import annotations

import copy
import os
from typing import Any

import torch
from torch import Tensor, nn

from transferkit.backbones.spec import find_spec, spec_of
from transferkit.checks import check_int
from transferkit.classification import logits_of
from transferkit.datasets.base import Part, Splits
from transferkit.errors import ClassMismatchError, DataError
from transferkit.evaluation.report import Report
from transferkit.features.extract import head_inputs
from transferkit.features.split import NoSplit
from transferkit.features.stored import Unfit
from transferkit.heads import class_names
from transferkit.inference import fast_model, small_execution
from transferkit.loading.batches import BatchSource
from transferkit.loading.checked import Skipped, check_on_error, usable
from transferkit.loading.loader_batches import dead_workers_told
from transferkit.loading.row_batches import RowBatches
from transferkit.loading.sources import DatasetPart, batches_of, image_batches, part_of, warn_if_ready
from transferkit.modes import modes_kept
from transferkit.runtime import Execution, given_execution
from transferkit.training.steps import eval_step


def collect_logits(model: nn.Module, source: BatchSource, execution: Execution) -> tuple[Tensor, Tensor]:
    """Run a model in inference mode over every batch of a source.

    Returns:
        Logits, float32 ``[N, C]``, and targets, int64 ``[N]``, both on the CPU, in the order
        of the source. The model is left in the mode in which it was.

    Raises:
        DataError: There was no batch.
        LoaderError: A loader of the user's own gave up.
    """
    with modes_kept(model), dead_workers_told():
        model.eval()
        rows = [(eval_step(model, batch, execution=execution), batch.targets) for batch in source.epoch(0)]
    if not rows:
        raise DataError("There is nothing to evaluate: the data gave no batch.")
    return torch.cat([row[0] for row in rows]).cpu(), torch.cat([row[1] for row in rows]).cpu()


def _holds_the_images_of(fingerprint: str, part: Part) -> bool:
    """Whether a part is the one of a fingerprint, be it loaded with its data set or from its own folder."""
    name, source = part.ids[0], part.source(0)
    # In the whole data set, the names of images begin with the folder of the part, which only its path tells.
    path = os.fspath(source) if isinstance(source, str | os.PathLike) else ""
    folder = os.path.basename(path.removesuffix(name).rstrip(os.sep)) if path.endswith(name) else ""
    named = copy.copy(part)
    named.ids = tuple(f"{folder}/{each}" for each in part.ids)
    return fingerprint in (part.fingerprint(), named.fingerprint())


@torch.no_grad()
def part_logits(
    model: nn.Module, part: Part, execution: Execution, *, batch_size: int, workers: int | None
) -> Tensor:
    """Run a model with a spec over the images of a part, all but its head through the cache.

    So the same model and images give the same logits, whether it was just trained or loaded.

    Returns:
        Logits, float32 ``[N, C]``, on the CPU. The model is left in the mode in which it was.
    """
    if not len(part):
        raise DataError("There is nothing to evaluate: the data gave no batch.")
    spec = spec_of(model)
    try:
        if not part.fixed:
            raise NoSplit("the images may vary")
        found = head_inputs(model, part, execution, workers=workers)
        rows = RowBatches(found.rows, part.targets, device=execution.device, batch_size=batch_size)
        small = small_execution(found.suffix, tuple(found.rows.shape[1:]), execution)
        with small.arithmetic():
            return collect_logits(found.suffix, rows, small)[0]
    except (NoSplit, Unfit):
        pass
    source = image_batches(
        part, spec.preprocessing, execution, batch_size=batch_size, workers=workers, keep=False
    )
    with modes_kept(model):
        forward = fast_model(model.eval(), spec.preprocessing.size, len(part), batch_size, execution)
        return torch.cat([logits_of(forward(batch.inputs)).float().cpu() for batch in source.epoch(0)])


def in_the_models_order(model: nn.Module, part: Part) -> Part:
    """Return a part whose targets count through the model's classes, matched by name.

    Where the model's classes are unknown, or the data has no names, positions are what counts.

    Raises:
        ClassMismatchError: There are images of a class that the model does not know.
    """
    known = class_names(model)
    if known is None or (isinstance(part, DatasetPart) and not part.has_names):
        return part
    return part.with_classes(known)


def evaluate(
    model: nn.Module,
    data: Any,
    *,
    batch_size: int = 64,
    device: str | torch.device = "auto",
    precision: str = "auto",
    compile: bool | str = "auto",
    execution: Execution | None = None,
    workers: int | None = None,
    on_error: str = "raise",
) -> Report:
    """Score a classifier on data, each sample exactly once.

    Args:
        model: A model with a spec, or any module whose data is ready for it. It is moved to
            the device and left in the mode in which it was.
        data: ``Splits`` (the test part, or where there is none the validation part), one
            part, a map-style data set of (image, class index), or a ``DataLoader``.
        batch_size: Images in a batch; it changes the speed and nothing else.
        device: ``"auto"``, ``"cpu"``, ``"cuda"`` …
        precision: ``"auto"``, ``"fp32"``, ``"bf16"`` or ``"fp16"``.
        compile: ``True``, ``False``, or ``"auto"`` for where it pays, which is nowhere on a CPU.
        execution: How to run instead of the three before; see ``resolve_execution``.
        workers: Number of decoding threads; ``None`` stands for one for each processor.
        on_error: What an image that cannot be decoded does: ``"raise"``, or ``"skip"`` to be left
            out, which the report says.

    Raises:
        ClassMismatchError: The data has classes that the model does not know.
        DataError: There is nothing to evaluate.

    >>> import numpy as np, transferkit as tk
    >>> model = tk.load_backbone("mini", weights=None, num_classes=10)
    >>> images = np.zeros((12, 32, 32, 3), dtype=np.uint8)
    >>> tk.evaluate(model, tk.Part(images, [0, 1] * 6, [str(digit) for digit in range(10)])).n
    12
    """
    check_int("evaluate", "batch_size", batch_size, 1)
    if workers is not None:
        check_int("evaluate", "workers", workers)
    if isinstance(data, Splits):
        chosen = data.test if data.test is not None else data.val
        if chosen is None:
            raise DataError(
                "The splits have neither a test nor a validation part; pass the part to evaluate."
            )
        data = chosen
    execution = given_execution(
        model, execution, owner="evaluate", device=device, precision=precision, compile=compile
    )
    execution.place(model)
    spec = find_spec(model)
    preprocessing = None if spec is None else spec.preprocessing
    part = part_of(data) if hasattr(data, "__getitem__") else None
    warn_if_ready(data, part, preprocessing)
    check_on_error("evaluate", on_error, part)
    skipped: tuple[Skipped, ...] = ()
    if part is not None:
        part, skipped = usable(part, on_error=on_error, workers=workers)
    matched = None if part is None else in_the_models_order(model, part)
    with execution.arithmetic():
        if part is not None and spec is not None:
            logits = part_logits(model, part, execution, batch_size=batch_size, workers=workers)
            targets = torch.from_numpy(part.targets)
        else:
            source = batches_of(data, preprocessing, device=execution.device, batch_size=batch_size)
            logits, targets = collect_logits(model, source, execution)
    classes, outputs = class_names(model), logits.shape[1]
    if matched is not None:
        targets, classes = torch.from_numpy(matched.targets), matched.classes
    if int(targets.max()) >= outputs:
        raise ClassMismatchError(
            f"The model has {outputs} outputs, but a target is {int(targets.max())}; "
            "give the model a head of the right size with replace_head(model, num_classes)."
        )
    if classes is None or len(classes) != outputs:
        classes = tuple(str(number) for number in range(outputs))
    selected = None
    if spec is not None and part is not None and spec.selected_on is not None:
        selected = _holds_the_images_of(spec.selected_on, part)
    name = part.name if part is not None else "data"
    ids = part.ids if part is not None else None
    return Report.from_logits(
        logits, targets, classes, split=name, selected=selected, ids=ids, skipped=skipped
    )
