"""Batch norm whose statistics are foreign to the images is given theirs before a head is trained."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from transferkit.backbones.spec import spec_of, unwrapped
from transferkit.batch_norm import drawn, measure, measured_norms
from transferkit.datasets.base import Part
from transferkit.errors import OutputError
from transferkit.features.fingerprint import is_versioned, module_fingerprint
from transferkit.features.stored import BATCH_SIZE, unit_of
from transferkit.heads import head_module
from transferkit.loading.batches import Batch, BatchSource
from transferkit.loading.row_store import RowStore
from transferkit.loading.sources import image_batches
from transferkit.modes import modes_kept
from transferkit.runtime import Execution
from transferkit.training.run_directory import versions

# Images on which statistics are compared, those on which they are measured, and the least there must be.
_COMPARED, _MEASURED, _LEAST = 8, 128, 64
# Divergence from which statistics are foreign: that of inputs which vary about 13 times as much as they did
# in pretraining. docs/recipes.md has what this follows from.
_FOREIGN = 5.0


def measure_statistics(
    model: nn.Module, part: Part, execution: Execution, *, seed: int, workers: int | None = None
) -> str:
    """Measure the statistics of batch norm anew on 128 images, and return that in a few words."""
    part = drawn(part, _MEASURED, seed)
    batches = _batches(model, part, execution, seed, workers)
    measure(model, measured_norms(model), batches.epoch(0), execution)
    return f"batch norm measured anew on {len(part)} images"


def suit_statistics(
    model: nn.Module, part: Part, execution: Execution, *, seed: int, workers: int | None = None
) -> str | None:
    """Measure the statistics of a frozen backbone's batch norm anew where they are foreign to the images.

    Weights that were trained on much smaller images, say, have such statistics. Nothing is done for fewer
    than 64 images, images that vary, compiled models and data parallelism.

    Args:
        model: A model with a spec, on the execution's device; only its head trains.
        part: Training images.
        execution: How the model runs.
        seed: What the draw of images follows from.
        workers: Number of decoding threads; ``None`` stands for one for each processor.

    Returns:
        What was done, in a few words, or ``None`` where the statistics stay as they are.
    """
    norms = [each for each in measured_norms(model) if _has_learned(each)]
    if not norms or not part.fixed or len(part) < _LEAST or unwrapped(model) is not model:
        return None
    part = drawn(part, _MEASURED, seed)
    store = _store(model, execution, seed)
    ids = ["\n".join(part.identity(index) for index in range(len(part)))]
    if store is not None and not len(store.missing(ids)):
        row = store.rows(ids).whole()[0]
    else:
        spread = np.linspace(0, len(part) - 1, _COMPARED).astype(int)  # images may be sorted by their class
        few = _batches(model, part.take(spread), execution, seed, workers)
        row = _compared(model, norms, few, _batches(model, part, execution, seed, workers), execution)
        if store is not None:
            # It is measured again each time where the cache cannot be written.
            with contextlib.suppress(OutputError):
                store.add(ids, [row[None]])
    apart, seen = float(row[0]), row[1 : 1 + len(norms)].bool()
    if not apart > _FOREIGN:
        return None
    _put(norms, seen.tolist(), row[1 + len(norms) :])
    found = f"divergence {apart:.1f}, where {_FOREIGN:g} is the limit"
    return f"batch norm measured anew on {len(part)} images, to which it was foreign ({found})"


def _compared(
    model: nn.Module,
    norms: Sequence[_BatchNorm],
    few: BatchSource,
    batches: BatchSource,
    execution: Execution,
) -> Tensor:
    """Return the divergence, for each norm whether it counts, and statistics; the model keeps its own.

    The statistics are those of the images where the model's own are foreign to them. The head may be another
    one when the row is read again, so what runs after it does not count.
    """
    kept = [buffer.clone() for norm in norms for buffer in norm.buffers()]
    first = next(few.epoch(0))
    try:
        # No random number of a model is drawn here that it would not draw where all is in the cache.
        with torch.random.fork_rng(devices=[first.inputs.device] if first.inputs.is_cuda else []):
            found = divergence(model, norms, first, execution)
            apart = max(found.values(), default=0.0)
            if apart > _FOREIGN:
                measure(model, list(found), batches.epoch(0), execution)
            facts = torch.tensor([apart, *(norm in found for norm in norms)])
            # A copy, which is made before the model has its own statistics again.
            statistics = [buffer.flatten().float().cpu() for norm in norms for buffer in norm.buffers()]
            return torch.cat((facts, *statistics))
    finally:
        with torch.no_grad():
            for buffer, before in zip((each for norm in norms for each in norm.buffers()), kept, strict=True):
                buffer.copy_(before)


def _batches(
    model: nn.Module, part: Part, execution: Execution, seed: int, workers: int | None
) -> BatchSource:
    return image_batches(
        part,
        spec_of(model).preprocessing,
        execution,
        batch_size=BATCH_SIZE,
        # So that a last batch of one joins the one before it, which batch norm needs.
        shuffle=True,
        seed=seed,
        workers=workers,
        keep=False,
    )


@torch.no_grad()
def divergence(
    model: nn.Module, norms: Sequence[_BatchNorm], batch: Batch, execution: Execution
) -> dict[_BatchNorm, float]:
    """Return how far what each norm is given lies from its statistics, in inference mode.

    Returns:
        For each of ``norms`` that runs before the head, the median over its channels of the Kullback-Leibler
        divergence of the normal distribution with the statistics from that with the mean and variance of
        the inputs: the median, so that a few channels that were as good as dead in pretraining do not count.
    """
    apart: dict[_BatchNorm, float] = {}
    in_head = [False]

    def compare(norm: _BatchNorm, given: tuple[Tensor, ...], named: dict[str, Tensor]) -> None:
        if in_head[0]:
            return
        inputs = given[0] if given else named["input"]
        variance, mean = torch.var_mean(inputs.float().transpose(0, 1).flatten(1), dim=1, correction=0)
        assert norm.running_mean is not None
        assert norm.running_var is not None
        scale = norm.running_var + norm.eps
        ratio = (variance + norm.eps) / scale
        shift = (mean - norm.running_mean).square() / scale
        apart[norm] = float((ratio - ratio.log() - 1 + shift).median() / 2)

    def enter_head(*_: object) -> None:
        in_head[0] = True

    handles = [norm.register_forward_pre_hook(compare, with_kwargs=True) for norm in norms]
    handles.append(head_module(model).register_forward_pre_hook(enter_head))
    try:
        with modes_kept(model), execution.autocast():
            model.eval()
            model(batch.inputs)
    finally:
        for handle in handles:
            handle.remove()
    return apart


def _has_learned(norm: _BatchNorm) -> bool:
    # Random weights have statistics that no image has been through.
    mean = norm.running_mean
    return mean is not None and mean.dtype == torch.float32 and bool(mean.any()) and norm.eps > 0


@torch.no_grad()
def _put(norms: Sequence[_BatchNorm], seen: Sequence[bool], values: Tensor) -> None:
    start = 0
    for norm, is_seen in zip(norms, seen, strict=True):
        for buffer in norm.buffers():
            if is_seen:
                buffer.copy_(values[start : start + buffer.numel()].view_as(buffer))
            start += buffer.numel()


def _store(model: nn.Module, execution: Execution, seed: int) -> RowStore | None:
    fingerprint = module_fingerprint(model, without=head_module(model)) if is_versioned(model) else None
    if fingerprint is None:
        return None
    spec = spec_of(model)
    recipe = {
        "model": f"{spec.name} at {spec.preprocessing.size} px",
        "where": "batch norm",
        "how": f"statistics, {execution.precision}",
        "module": fingerprint,
        "preprocessing": spec.preprocessing.to_dict(),
        "execution": execution.to_dict(),
        "device": unit_of(execution.device),
        "seed": seed,
        "versions": versions(),
    }
    return RowStore("features", recipe)
