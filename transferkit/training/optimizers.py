"""Optimizers by name, and the learning rates that fit where the user gives none."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from transferkit.training.phases import Phase

# Peak learning rates for batches of about 64 images, by what normalizes the backbone:
# batch norm bears larger steps than layer norm, and a network without norms the smallest.
# Those for batch norm and for heads were found on the data sets of docs/recipes.md; the others
# keep the customary ratio to them.
_BACKBONE_LR = {
    "adamw": {"batch-norm": 3e-4, "layer-norm": 5e-5, "none": 3e-5},
    "sgd": {"batch-norm": 2e-3, "layer-norm": 1e-3, "none": 5e-4},
}
_HEAD_LR = {"adamw": 3e-3, "sgd": 0.02}
# A new head starts from noise, so beside a backbone it learns faster than that.
_HEAD_FACTOR = 10.0


def norm_kind(model: nn.Module) -> str:
    """Return ``"batch-norm"``, ``"layer-norm"`` or ``"none"``: what normalizes the model most.

    >>> norm_kind(nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)))
    'batch-norm'
    """
    batch = sum(isinstance(module, _BatchNorm) for module in model.modules())
    layer = sum(isinstance(module, (nn.LayerNorm, nn.GroupNorm)) for module in model.modules())
    if batch == layer == 0:
        return "none"
    return "batch-norm" if batch >= layer else "layer-norm"


def with_default_rates(phase: Phase, model: nn.Module, *, fitted_head: bool) -> Phase:
    """Fill in the learning rates that a phase leaves open.

    Args:
        phase: The phase.
        model: What trains; its kind of normalization decides.
        fitted_head: Whether an earlier phase has trained the head already.

    Returns:
        The phase with ``lr`` and ``head_lr`` set. A rate that the user gave is kept; a given
        ``lr`` alone also holds for the head.
    """
    family = "sgd" if phase.optimizer == "sgd" else "adamw"
    if phase.head_only:
        rate = phase.head_lr or phase.lr or _HEAD_LR[family]
        return dataclasses.replace(phase, lr=rate, head_lr=rate)
    lr = phase.lr or _BACKBONE_LR[family][norm_kind(model)]
    raised = phase.lr is None and not fitted_head
    head_lr = phase.head_lr or (lr * _HEAD_FACTOR if raised else lr)
    return dataclasses.replace(phase, lr=lr, head_lr=head_lr)


def build_optimizer(phase: Phase, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
    """Return torch's optimizer for a phase over groups as ``parameter_groups`` gives them.

    It is fused where torch offers that: one pass over the memory instead of one for each operation.
    """
    parameters = [parameter for group in groups for parameter in group["params"]]
    fused = True if _can_fuse(parameters) else None
    optimizer: torch.optim.Optimizer
    if phase.optimizer == "sgd":
        optimizer = torch.optim.SGD(groups, momentum=0.9, nesterov=True, fused=fused)
        if fused:
            # Without these, a first update that is left out would leave momentum that nobody has set.
            for parameter in parameters:
                optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
    else:
        kind = torch.optim.AdamW if phase.optimizer == "adamw" else torch.optim.Adam
        optimizer = kind(groups, fused=fused)
    if fused:
        optimizer.register_step_pre_hook(_lay_out_state)
        if parameters[0].is_cuda:
            optimizer.register_step_pre_hook(_lay_out_gradients)
    return optimizer


def _can_fuse(parameters: list[nn.Parameter]) -> bool:
    """Whether all parameters are floating, without gaps in memory, and on one device with fused kernels."""
    devices = {parameter.device for parameter in parameters}
    return (
        len(devices) == 1
        and devices.pop().type in ("cpu", "cuda")
        and all(each.is_floating_point() and _is_dense(each) for each in parameters)
    )


def _is_dense(tensor: Tensor) -> bool:
    # Only a tensor whose elements fill its memory hands its strides on.
    return torch.empty_like(tensor, device="meta").stride() == tensor.stride()


def _lay_out_state(optimizer: torch.optim.Optimizer, *_: Any) -> None:
    """Give state the memory order of its parameter, which loading it or a new memory format may have parted.

    Fused kernels of the CPU go through memory in its own order, and would mix up elements unsaid.
    """
    for parameter, state in optimizer.state.items():
        for name, value in state.items():
            if value.ndim and value.stride() != parameter.stride():
                state[name] = torch.empty_like(parameter).copy_(value)


def _lay_out_gradients(optimizer: torch.optim.Optimizer, *_: Any) -> None:
    """Give gradients the strides of their parameters, which fused kernels of CUDA refuse to do without.

    Autograd sees to that, except along sides of length 1, which many kernels of convolutions have.
    """
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            gradient = parameter.grad
            if gradient is not None and gradient.stride() != parameter.stride():
                parameter.grad = torch.empty_like(parameter).copy_(gradient)
