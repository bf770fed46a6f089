"""Statistics of batch norm, measured anew on other images."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from transferkit.backbones.spec import spec_of
from transferkit.checks import check_int, check_module
from transferkit.datasets.base import Part
from transferkit.errors import ArgumentError
from transferkit.loading.batches import Batch
from transferkit.loading.sources import image_batches, part_of
from transferkit.modes import modes_kept
from transferkit.runtime import Execution, resolve_execution


def adapt_batch_norm(
    model: nn.Module,
    data: Any,
    *,
    images: int = 128,
    batch_size: int = 64,
    device: str | torch.device = "auto",
    precision: str = "auto",
    seed: int = 0,
) -> nn.Module:
    """Measure the means and variances of a model's batch norm anew, on images of your own.

    A frozen backbone keeps the statistics of the images that it was pretrained on. Where yours are darker,
    have less contrast or are shown larger, its features may fit worse than they could, and this mends it.
    Where they are like those, it takes some of what the weights have learned, so a comparison is worth its
    time. ``Trainer`` does it unasked where statistics are foreign to the images, by a rule that the page
    on recipes gives. Labels play no role, and weights stay as they are.

    Args:
        model: A model with a spec; its statistics change in place, frozen or not.
        data: A part of ``load_dataset``, such as ``splits.train``, or a map-style data set of images.
        images: How many of them are looked at, drawn at random.
        batch_size: Images in a batch.
        device: Where to compute.
        precision: As for ``Trainer``; the statistics are float32 in any case.
        seed: What the draw follows from.

    Returns:
        The model, on the device.

    Raises:
        ArgumentError: The model has no batch norm, or an argument makes no sense.
        DataError: There are no images.

    Source:
        Li et al. (2016), https://arxiv.org/abs/1603.04779.

    >>> from transferkit import Part, load_backbone
    >>> pixels = np.random.default_rng(0).integers(0, 256, (8, 32, 32, 3), dtype=np.uint8)
    >>> model = adapt_batch_norm(load_backbone("mini"), Part(pixels, [0, 1] * 4, ["ant", "bee"]))
    """
    check_module("adapt_batch_norm", model)
    count = check_int("adapt_batch_norm", "images", images, 2)
    seed = check_int("adapt_batch_norm", "seed", seed)
    preprocessing = spec_of(model).preprocessing
    norms = measured_norms(model)
    if not norms:
        raise ArgumentError(
            f"The 'model' parameter of adapt_batch_norm must be a model with batch norm. "
            f"Got a {type(model).__name__} without any instead."
        )
    part = part_of(data)
    if part is None:
        raise ArgumentError(
            "The 'data' parameter of adapt_batch_norm must be images. Got tensors ready for a model instead."
        )
    execution = resolve_execution(model, device=device, precision=precision, compile=False)
    execution.place(model)
    batches = image_batches(
        drawn(part, count, seed),
        preprocessing,
        execution,
        # Shuffled, so that a last batch of one joins the one before it, which batch norm needs.
        batch_size=check_int("adapt_batch_norm", "batch_size", batch_size, 2),
        shuffle=True,
        seed=seed,
        keep=False,
    )
    with execution.arithmetic():
        measure(model, norms, batches.epoch(0), execution)
    return model


def measured_norms(model: nn.Module) -> list[_BatchNorm]:
    """Return the batch norm that keeps statistics, in the order of the model's modules."""
    return [each for each in model.modules() if isinstance(each, _BatchNorm) and each.track_running_stats]


def drawn(part: Part, count: int, seed: int) -> Part:
    """Return some images of a part, drawn at random and in their own order."""
    chosen = np.random.default_rng(seed).permutation(len(part))[:count]
    return part.take(np.sort(chosen))


@torch.no_grad()
def measure(
    model: nn.Module, norms: Sequence[_BatchNorm], batches: Iterable[Batch], execution: Execution
) -> None:
    """Put the means over all batches into the statistics of some of a model's batch norm.

    What no batch reaches keeps its own, and all do if anything goes wrong.
    """
    kept = {norm: [buffer.clone() for buffer in norm.buffers()] for norm in norms}
    momenta = [norm.momentum for norm in norms]
    reached = False
    with modes_kept(model), execution.autocast():
        model.eval()
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None  # the plain mean over all batches
            nn.Module.train(norm)  # not its own, which keeps what is frozen in inference mode
        try:
            for batch in batches:
                model(batch.inputs)
            reached = True
        finally:
            for norm, momentum in zip(norms, momenta, strict=True):
                norm.momentum = momentum
                if not reached or not norm.num_batches_tracked:
                    for buffer, before in zip(norm.buffers(), kept[norm], strict=True):
                        buffer.copy_(before)
