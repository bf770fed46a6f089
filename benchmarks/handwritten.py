"""The fastest loops that one would write by hand on plain PyTorch: what the library is measured against."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx.experimental.optimization import fuse
from torch.nn import functional as F

from benchmarks import models

Forward = Callable[[Tensor], Tensor]


class TrainingLoop:
    """Fine-tuning everything: autocast, channels last, a fused optimizer, no waiting for the device.

    Batch norm keeps its statistics, scale and shift, as in transferkit's recipe; loss and hits are
    added up on the device and read once an epoch; a cosine schedule follows the steps.

    Args:
        model: A torchvision model with its new head; it is changed in place.
        device: Where it runs.
        bf16: Whether the forward pass runs under autocast to bfloat16.
        total_steps: Length of the schedule.
        lr: Learning rate of AdamW.
        compiled: Whether the model is compiled.
    """

    def __init__(
        self,
        model: nn.Module,
        device: str | torch.device,
        *,
        bf16: bool,
        total_steps: int,
        lr: float = 3e-4,
        compiled: bool = False,
    ) -> None:
        self.model = model.to(device).to(memory_format=torch.channels_last).train()
        for module in self.model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eval().requires_grad_(False)
        self.trained = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        self._optimizer = torch.optim.AdamW(self.trained, lr=lr, fused=True)
        self._scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(self._optimizer, total_steps)
        self._device, self._bf16 = torch.device(device), bf16
        self._forward: Forward = torch.compile(self.model, dynamic=False) if compiled else self.model
        self.loss_sum = torch.zeros((), device=device)
        self.correct = torch.zeros((), device=device, dtype=torch.int64)

    def step(self, images: Tensor, targets: Tensor) -> None:
        """Take one step."""
        images = images.to(self._device, memory_format=torch.channels_last, non_blocking=True)
        targets = targets.to(self._device, non_blocking=True)
        with self._autocast():
            logits = self._forward(images)
        loss = F.cross_entropy(logits.float(), targets)
        loss.backward()
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        self._scheduler.step()
        self.loss_sum += loss.detach() * len(targets)
        self.correct += (logits.detach().argmax(dim=1) == targets).sum()

    def _autocast(self) -> AbstractContextManager[Any]:
        return torch.autocast(self._device.type, dtype=torch.bfloat16) if self._bf16 else nullcontext()


def without_head(model: nn.Module) -> nn.Module:
    """Return a copy in inference mode that ends before the head, with nothing that trains."""
    model = copy.deepcopy(model).eval().requires_grad_(False)
    model.set_submodule(models.last_linear(model), nn.Identity())
    return model


def feature_forms(
    model: nn.Module, device: str | torch.device, *, bf16: bool, compiled: bool
) -> dict[str, Forward]:
    """Return ways to compute features, from the plain one to the fastest that is known.

    Args:
        model: A torchvision model.
        device: Where they run.
        bf16: Whether to offer bfloat16.
        compiled: Whether to offer compiled forms.

    Returns:
        For each way a function from float32 images to features. Convolution and batch norm are
        folded in float32, before the weights are rounded.
    """
    plain = without_head(model).to(device)
    folded = fuse(copy.deepcopy(plain)) if has_batch_norm(plain) else copy.deepcopy(plain)
    folded = folded.to(memory_format=torch.channels_last)
    forms = {
        "plain fp32": _cast(plain, torch.float32, torch.contiguous_format),
        "folded fp32": _cast(folded, torch.float32, torch.channels_last),
    }
    if compiled:
        forms["compiled fp32"] = _compiled(folded, torch.float32)
    if bf16:
        half = copy.deepcopy(folded).to(torch.bfloat16)
        forms["folded bf16"] = _cast(half, torch.bfloat16, torch.channels_last)
        if compiled:
            forms["compiled bf16"] = _compiled(half, torch.bfloat16)
    return forms


def has_batch_norm(model: nn.Module) -> bool:
    return any(isinstance(module, nn.BatchNorm2d) for module in model.modules())


def _cast(module: Callable[[Tensor], Tensor], dtype: torch.dtype, layout: torch.memory_format) -> Forward:
    @torch.inference_mode()
    def forward(images: Tensor) -> Tensor:
        return module(images.to(dtype=dtype, memory_format=layout))

    return forward


def _compiled(module: nn.Module, dtype: torch.dtype) -> Forward:
    """Compile with the weights as constants, so that they are laid out for the kernels beforehand."""
    from torch._inductor import config

    compiled = torch.compile(module, dynamic=False)
    inner = _cast(compiled, dtype, torch.channels_last)

    def forward(images: Tensor) -> Tensor:
        # Compiling happens at the first call, and must find the setting.
        with config.patch(freezing=True), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return inner(images)

    return forward
