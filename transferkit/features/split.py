"""Cut a model before what trains, so that what is frozen is computed once."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from transferkit.backbones.spec import unwrapped
from transferkit.classification import logits_of
from transferkit.heads import find_head
from transferkit.loading.batches import Batch, BatchSource
from transferkit.modes import modes_kept
from transferkit.runtime import Execution


@dataclass(frozen=True)
class Split:
    """A model cut in two.

    Attributes:
        model: The whole model; everything before the suffix is frozen.
        suffix: What trains: the head, with the parameterless layers that lead to it.
        entry: The first module of the suffix; what it is given are the features.
    """

    model: nn.Module
    suffix: nn.Module
    entry: nn.Module


def split_at_head(model: nn.Module) -> Split:
    """Cut a model before its head, and before the dropout in front of it.

    Where the head stands in an ``nn.Sequential``, such as VGG's classifier, the layers
    between the last one with parameters and the head belong to the suffix.
    """
    plain = unwrapped(model)
    path = find_head(plain)
    head = plain.get_submodule(path)
    parent = plain.get_submodule(path.rpartition(".")[0])
    if not isinstance(parent, nn.Sequential):
        return Split(plain, head, head)
    layers = list(parent.children())
    start = position = next(number for number, layer in enumerate(layers) if layer is head)
    while start > 0 and next(layers[start - 1].parameters(), None) is None:
        start -= 1
    return Split(plain, nn.Sequential(*layers[start : position + 1]), layers[start])


@contextmanager
def _captured(module: nn.Module) -> Iterator[list[Tensor]]:
    """Collect what a module is given, for as long as the context lasts."""
    seen: list[Tensor] = []

    def keep(_: nn.Module, inputs: tuple[Any, ...]) -> None:
        # Some suffixes begin with an activation that works in place.
        seen.append(inputs[0].detach().clone())

    handle = module.register_forward_pre_hook(keep)
    try:
        yield seen
    finally:
        handle.remove()


@torch.no_grad()
def why_not_split(split: Split, batch: Batch, execution: Execution) -> str | None:
    """Compare the cut model with the whole one on a batch.

    Returns:
        ``None`` where features and suffix give what the model gives, in train mode too;
        otherwise the reason why the model must run whole.
    """
    model, suffix = split.model, split.suffix
    inside = set(suffix.modules())
    outside = [module for module in model.modules() if module not in inside]
    if any(own.requires_grad for module in outside for own in module._parameters.values() if own is not None):
        return "something that trains is used before the head too"
    buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]
    devices = [batch.inputs.device] if batch.inputs.is_cuda else []
    try:
        with (
            modes_kept(model),
            torch.random.fork_rng(devices=devices),
            _captured(split.entry) as seen,
            execution.autocast(),
        ):
            model.train()
            model(batch.inputs)
            model.eval()
            first = logits_of(model(batch.inputs))
            if len(seen) != 2:
                return "the head does not run exactly once in a forward pass"
            if not torch.equal(seen[0], seen[1]):
                return "what stands before the head differs between training and use"
            again = suffix(seen[1])
    finally:
        for buffer, before in buffers:
            buffer.copy_(before)
    # Anything but rounding between the two paths means that something follows the head.
    tolerance = 1e-5 if execution.precision == "fp32" else 2e-2
    scale = first.float().abs().max().clamp_min(1e-6)
    if again.shape != first.shape or (again.float() - first.float()).abs().max() > tolerance * scale:
        return "the head is not the model's last operation"
    return None


@torch.no_grad()
def head_features(split: Split, source: BatchSource, execution: Execution) -> tuple[Tensor, Tensor]:
    """Run the frozen part over a source once.

    Returns:
        What the suffix is given, float32 ``[N, ...]``, in the order of the source's epoch 0, and
        the targets ``[N]``, both on the CPU.
    """
    inputs: list[Tensor] = []
    targets: list[Tensor] = []
    with modes_kept(split.model), _captured(split.entry) as seen, execution.autocast():
        split.model.eval()
        for batch in source.epoch(0):
            split.model(batch.inputs)
            inputs.append(seen.pop().float().cpu())
            targets.append(batch.targets.cpu())
    return torch.cat(inputs), torch.cat(targets)
