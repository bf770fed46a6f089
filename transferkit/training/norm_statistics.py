"""Frozen batch norm whose statistics are foreign to the images is given theirs before a run begins."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any

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
from transferkit.loading.batches import Batch
from transferkit.loading.row_store import RowStore
from transferkit.loading.sources import image_batches
from transferkit.modes import is_held, modes_kept
from transferkit.runtime import Execution
from transferkit.training.run_directory import versions

# Images on which statistics are compared, those on which they are measured, and the least there must be.
_COMPARED, _MEASURED, _LEAST = 8, 128, 64
# Divergence from which statistics are foreign: a layer is given what varies some ten times as much as it did
# in pretraining. docs/recipes.md has what this follows from.
_FOREIGN = 5.0


def suit_statistics(
    model: nn.Module, part: Part, execution: Execution, *, seed: int, workers: int | None = None
) -> str | None:
    """Measure the statistics of frozen batch norm anew where they are foreign to the images.

    Weights that were trained on much smaller images, say, have such statistics.

    Args:
        model: A model with a spec, on the execution's device; only its head trains.
        part: Training images that are the same each time; fewer than 64 are too few to measure.
        execution: How the model runs.
        seed: What the draw of images follows from.
        workers: Number of decoding threads; ``None`` stands for one for each processor.

    Returns:
        What was done, in a few words, or ``None`` where the statistics stay as they are.
    """
    norms = [each for each in measured_norms(model) if is_held(each) and _has_learned(each)]
    if not norms or not part.fixed or len(part) < _LEAST or unwrapped(model) is not model:
        return None
    part = drawn(part, _MEASURED, seed)
    store = _store(model, execution, seed)
    ids = ["\n".join(part.identity(index) for index in range(len(part)))]
    if store is not None and not len(store.missing(ids)):
        row = store.rows(ids).whole()[0]
    else:
        row = _compared(model, norms, part, execution, seed, workers)
        if store is not None:
            # That the cache cannot be written is told where features are kept.
            with contextlib.suppress(OutputError):
                store.add(ids, [row[None]])
    apart = float(row[-1])
    if not apart > _FOREIGN:
        return None
    _put(norms, row)
    return f"batch norm measured anew on {len(part)} images, to which it was foreign (divergence {apart:.1f})"


def _compared(
    model: nn.Module,
    norms: Sequence[_BatchNorm],
    part: Part,
    execution: Execution,
    seed: int,
    workers: int | None,
) -> Tensor:
    """Return the statistics of the images if the model's own are foreign to them, and the divergence.

    The model keeps its own.
    """
    row = before = _packed(norms)
    preprocessing = spec_of(model).preprocessing
    spread = np.linspace(0, len(part) - 1, _COMPARED).astype(int)  # images may be sorted by their class
    few = image_batches(part.take(spread), preprocessing, execution, batch_size=_COMPARED, workers=workers)
    # Shuffled, so that a last batch of one joins the one before it, which batch norm needs.
    order: dict[str, Any] = {"batch_size": BATCH_SIZE, "shuffle": True, "seed": seed, "keep": False}
    batches = image_batches(part, preprocessing, execution, workers=workers, **order)
    first = next(few.epoch(0))
    try:
        # No random number of a model is drawn here that it would not draw where all is in the cache.
        with torch.random.fork_rng(devices=[first.inputs.device] if first.inputs.is_cuda else []):
            apart = divergence(model, norms, first, execution)
            if apart > _FOREIGN:
                measure(model, norms, batches.epoch(0), execution)
                row = _packed(norms)
    finally:
        _put(norms, before)
    return torch.cat((row, torch.tensor([apart])))


@torch.no_grad()
def divergence(model: nn.Module, norms: Sequence[_BatchNorm], batch: Batch, execution: Execution) -> float:
    """Return how far what batch norm is given lies from its statistics, in inference mode.

    Returns:
        The largest over ``norms`` of the mean over their channels of the Kullback-Leibler divergence of the
        normal distribution with the statistics from that with the mean and variance of the inputs.
    """
    apart: list[float] = []

    def compare(norm: _BatchNorm, inputs: tuple[Tensor, ...]) -> None:
        channels = inputs[0].float().transpose(0, 1).flatten(1)
        variance, mean = torch.var_mean(channels, dim=1, correction=0)
        assert norm.running_mean is not None
        assert norm.running_var is not None
        scale = norm.running_var + norm.eps
        ratio = (variance + norm.eps) / scale
        shift = (mean - norm.running_mean).square() / scale
        apart.append(float((ratio - ratio.log() - 1 + shift).mean() / 2))

    handles = [norm.register_forward_pre_hook(compare) for norm in norms]
    try:
        with modes_kept(model), execution.autocast():
            model.eval()
            model(batch.inputs)
    finally:
        for handle in handles:
            handle.remove()
    return max(apart, default=0.0)


def _has_learned(norm: _BatchNorm) -> bool:
    # Random weights have statistics that no image has been through.
    mean = norm.running_mean
    return mean is not None and mean.dtype == torch.float32 and bool(mean.any())


def _packed(norms: Sequence[_BatchNorm]) -> Tensor:
    """Return all buffers of some norms in one row, float32."""
    return torch.cat([buffer.detach().flatten().float().cpu() for norm in norms for buffer in norm.buffers()])


@torch.no_grad()
def _put(norms: Sequence[_BatchNorm], row: Tensor) -> None:
    start = 0
    for norm in norms:
        for buffer in norm.buffers():
            buffer.copy_(row[start : start + buffer.numel()].view_as(buffer))
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
