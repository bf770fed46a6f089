"""Where and how a model runs: device, precision and memory format, decided in one place.

Everything here follows from facts that are known before the first batch, never from a timing,
so that two runs on one machine take the same path.
"""

from __future__ import annotations

import dataclasses
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import nn

from transferkit.checks import check_choice
from transferkit.errors import ArgumentError

M = TypeVar("M", bound=nn.Module)

PRECISIONS = ("auto", "fp32", "bf16")


@dataclass(frozen=True)
class Execution:
    """How a model runs, as a record that goes into ``config.json``.

    Attributes:
        device: Such as ``"cpu"`` or ``"cuda:0"``.
        precision: ``"fp32"``, or ``"bf16"`` for autocast to bfloat16.
        channels_last: Whether weights and images lie in memory with the channels last.
        reason: Why the precision was chosen, in a few words.
    """

    device: str
    precision: str
    channels_last: bool
    reason: str

    def __str__(self) -> str:
        layout = "channels last" if self.channels_last else "channels first"
        return f"{self.device}, {self.precision} ({self.reason}), {layout}"

    def autocast(self) -> AbstractContextManager[Any]:
        """Return the context in which the forward pass runs."""
        if self.precision == "fp32":
            return nullcontext()
        return torch.autocast(torch.device(self.device).type, dtype=torch.bfloat16)

    def place(self, model: M) -> M:
        """Move a model to the device and into the memory format, in place."""
        memory_format = torch.channels_last if self.channels_last else torch.contiguous_format
        return model.to(self.device).to(memory_format=memory_format)

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as values that JSON can hold."""
        return dataclasses.asdict(self)


def resolve_device(device: str | torch.device = "auto") -> torch.device:
    """Return the device that a name stands for; ``"auto"`` prefers a CUDA device.

    Raises:
        ArgumentError: There is no such device here.

    >>> resolve_device("cpu")
    device(type='cpu')
    """
    if str(device) == "auto":
        return (
            torch.device("cuda", torch.cuda.current_device())
            if torch.cuda.is_available()
            else torch.device("cpu")
        )
    try:
        resolved = torch.device(device)
    except (RuntimeError, TypeError):
        resolved = None
    available = {"cpu": 1, "cuda": torch.cuda.device_count()}
    if resolved is None or (resolved.index or 0) >= available.get(resolved.type, 0):
        here = ", ".join(["'auto'", "'cpu'", *(f"'cuda:{number}'" for number in range(available["cuda"]))])
        raise ArgumentError(f"The 'device' parameter must be one of {here}. Got {str(device)!r} instead.")
    return resolved


def _bf16_support(device: torch.device) -> tuple[bool, str]:
    """Say whether the hardware itself computes in bfloat16, and by what."""
    if device.type == "cuda":
        major, minor = torch.cuda.get_device_capability(device)
        return major >= 8, f"compute capability {major}.{minor}"
    capabilities = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    for feature, shown in (("amx_bf16", "AMX"), ("avx512_bf16", "AVX512-BF16")):
        private = {"amx_bf16": "_is_amx_tile_supported", "avx512_bf16": "_is_avx512_bf16_supported"}[feature]
        probe = getattr(torch.cpu, private, bool)
        if capabilities.get(feature, False) or probe():
            return True, shown
    return False, "this CPU has no bfloat16 arithmetic"


def resolve_execution(
    model: nn.Module, *, device: str | torch.device = "auto", precision: str = "auto"
) -> Execution:
    """Decide how a model runs.

    Args:
        model: The model; convolutions make the channels-last memory format pay.
        device: ``"auto"``, ``"cpu"``, ``"cuda"``, ``"cuda:1"`` …
        precision: ``"auto"`` takes bfloat16 autocast where the hardware computes it,
            ``"fp32"`` is exact, ``"bf16"`` is used wherever it is asked for.

    >>> str(resolve_execution(nn.Linear(2, 2), device="cpu", precision="fp32"))
    'cpu, fp32 (as asked), channels first'
    """
    check_choice("resolve_execution", "precision", precision, PRECISIONS)
    resolved = resolve_device(device)
    reason = "as asked"
    if precision == "auto":
        supported, reason = _bf16_support(resolved)
        precision = "bf16" if supported else "fp32"
    convolutional = any(isinstance(module, nn.Conv2d) for module in model.modules())
    return Execution(str(resolved), precision, convolutional, reason)
