"""A phase in which a solver fits a linear head on stored features, to convergence."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from transferkit.backbones.spec import find_spec
from transferkit.classification import class_weights_of, count_correct
from transferkit.datasets.base import Part
from transferkit.features.linear_solver import fit_linear
from transferkit.heads import head_module
from transferkit.loading.row_store import Rows
from transferkit.training.data import TrainingData
from transferkit.training.phase_batches import PhaseBatches
from transferkit.training.phases import Phase


def why_not_solved(model: nn.Module, data: TrainingData) -> str | None:
    """Return why a solver cannot fit the head, as far as model and data tell before any feature is there.

    Args:
        model: The model.
        data: Its training part must be images that are the same each time.
    """
    head = head_module(model)
    if type(head) is not nn.Linear or head.bias is None:
        return "the head is not a single linear layer with a bias"
    if find_spec(model) is None or data.train_part is None or not data.train_part.fixed:
        return "the images may vary"
    return None


def why_not_linear(model: nn.Module, batches: PhaseBatches) -> str | None:
    """Return why what trains is not just the linear head on stored features."""
    head = head_module(model)
    if batches.features is None or not isinstance(head, nn.Linear):
        return "there are no stored features"
    some = batches.features[np.arange(min(8, len(batches.features)))].float().to(head.weight.device)
    batches.module.train()
    devices = [some.device] if some.is_cuda else []
    with torch.no_grad(), torch.random.fork_rng(devices=devices):
        given = batches.module(some)
        expected = head(some) if some.ndim == 2 else None
    if expected is None or given.shape != expected.shape or not torch.equal(given, expected):
        return "dropout or another layer trains with the head"
    return None


@torch.no_grad()
def fit_head(
    model: nn.Module, batches: PhaseBatches, data: TrainingData, phase: Phase, *, seed: int
) -> dict[str, Any]:
    """Fit the head and return the row that goes into the history.

    Args:
        model: Its head is a linear layer, which is fitted in place.
        batches: Stored features, view after view.
        data: Their targets.
        phase: Its class weights and label smoothing are used.
        seed: What folds follow from.
    """
    started = time.perf_counter()
    part, head = data.train_part, head_module(model)
    assert part is not None
    assert batches.features is not None
    assert isinstance(head, nn.Linear)
    device = head.weight.device
    x = _whole(batches.features, device)
    y = torch.from_numpy(part.targets).to(device).repeat(phase.views)
    val = None if batches.val is None else _validation(batches, device)
    weights = class_weights_of(phase.class_weights, part.targets, len(part.classes))
    fit = fit_linear(
        x,
        y,
        len(part.classes),
        class_weights=None if weights is None else weights.to(device),
        label_smoothing=phase.label_smoothing,
        val=val,
        groups=_groups(part, phase.views),
        seed=seed,
    )
    head.weight.copy_(fit.weight)
    head.bias.copy_(fit.bias)
    row: dict[str, Any] = {"lr": None, "c": fit.c, "iterations": fit.iterations, "images_per_second": None}
    row |= _scores("train", head(x), y)
    row |= {"val_loss": None, "val_accuracy": None} if val is None else _scores("val", head(val[0]), val[1])
    return row | {"seconds": time.perf_counter() - started}


def _groups(part: Part, views: int) -> Tensor | None:
    """Return which image each row shows, where it is shown by several: they belong in one fold."""
    return None if views == 1 else torch.arange(len(part)).repeat(views)


def _validation(batches: PhaseBatches, device: torch.device) -> tuple[Tensor, Tensor]:
    assert batches.val is not None
    every = list(batches.val.epoch(0))
    x = torch.cat([batch.inputs for batch in every]).float().to(device)
    return x, torch.cat([batch.targets for batch in every]).to(device)


def _whole(features: Tensor | Rows, device: torch.device) -> Tensor:
    whole = features.whole() if isinstance(features, Rows) else features
    return whole.float().to(device)


def _scores(part: str, logits: Tensor, targets: Tensor) -> dict[str, float]:
    return {
        f"{part}_loss": float(F.cross_entropy(logits.double(), targets)),
        f"{part}_accuracy": float(count_correct(logits, targets)) / len(targets),
    }
