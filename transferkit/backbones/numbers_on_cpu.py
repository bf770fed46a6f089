"""Build a module under ``torch.device("meta")`` whose builder computes with tensors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.overrides import TorchFunctionMode


class NumbersOnCpu(TorchFunctionMode):
    """Keeps tensors that are made to compute with on the CPU, so that they can be read.

    Some builders read the widths or drop rates of their blocks from tensors, which have no values
    under ``torch.device("meta")``. Modules say ``device=None`` for theirs, which follow that device.

    Args:
        makers: What makes such tensors: ``torch.arange``, ``torch.linspace`` or ``torch.tensor``.

    >>> import torch
    >>> with torch.device("meta"), NumbersOnCpu(torch.linspace):
    ...     print(torch.linspace(0, 1, 3)[1].item(), torch.nn.Linear(2, 2).weight.device)
    0.5 meta
    """

    def __init__(self, *makers: Callable[..., Tensor]) -> None:
        super().__init__()
        self._makers = makers

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Call ``func``, on the CPU if it is one of the makers and no device is named."""
        named = dict(kwargs or {})
        if func in self._makers:
            named.setdefault("device", "cpu")
        return func(*args, **named)
