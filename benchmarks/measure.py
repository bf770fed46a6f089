"""Timing with torch: steady rates, batches that are ready, and the device's matrix peak."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

# Batches that are left out of a steady rate: they allocate, choose kernels and compile.
WARM_UP = 2


def wait_for(device: str | torch.device) -> None:
    """Wait until an accelerator has done what it was given; a CPU always has."""
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)


def seconds_of(work: Callable[[], object], device: str | torch.device) -> float:
    """Return how long a function takes, the device included."""
    wait_for(device)
    started = time.perf_counter()
    work()
    wait_for(device)
    return time.perf_counter() - started


class ReadyBatches:
    """A loader whose batches are made beforehand: two of them, in turn.

    Args:
        batch_size: Images in a batch.
        image_size: Side of the images, in pixels.
        steps: How many batches an epoch has.
        device: Where they lie.
        classes: Number of classes among the targets.
    """

    def __init__(
        self, batch_size: int, image_size: int, steps: int, device: str | torch.device, *, classes: int = 10
    ) -> None:
        generator = torch.Generator().manual_seed(0)
        shape = (batch_size, 3, image_size, image_size)
        self.batches = [
            (
                torch.randn(shape, generator=generator).to(device),
                torch.randint(classes, (batch_size,), generator=generator).to(device),
            )
            for _ in range(2)
        ]
        self.batch_size, self._steps = batch_size, steps

    def __len__(self) -> int:
        return self._steps

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return (self.batches[step % len(self.batches)] for step in range(self._steps))


def matrix_peak(device: str | torch.device, dtype: torch.dtype, *, side: int | None = None) -> float:
    """Return the operations per second that a product of two matrices reaches, a multiply-add as two.

    Args:
        device: Where they are multiplied.
        dtype: Of the matrices.
        side: Of the matrices; ``None`` takes one that is large for the device.
    """
    if side is None:
        side = 8192 if torch.device(device).type == "cuda" else 2048
    one = torch.randn(side, side, device=device, dtype=dtype)
    other = torch.randn(side, side, device=device, dtype=dtype)
    one @ other
    fastest = min(seconds_of(lambda: one @ other, device) for _ in range(5))
    return 2 * side**3 / fastest


def operations(model: nn.Module, image_size: int) -> float:
    """Return the operations that one image takes on its way forward, a multiply-add as two.

    Only those of matrix products and convolutions are counted; they are nearly all.

    Args:
        model: Its parameters require gradients, because fused kernels for inference are not counted.
        image_size: Side of the image, in pixels.
    """
    # The counter knows no fused attention of CPUs.
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        model.eval()(torch.randn(1, 3, image_size, image_size))
    return float(counter.get_total_flops())


def computes_bf16(device: str | torch.device) -> bool:
    """Whether the device multiplies bfloat16 matrices at twice the rate of float32 or more.

    A loop written by hand is given the type that is faster here, so this one is measured.
    """
    device = torch.device(device)
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    return matrix_peak(device, torch.bfloat16, side=512) > matrix_peak(device, torch.float32, side=512)


def relative_error(found: Tensor, expected: Tensor) -> float:
    """Return the norm of the difference by the norm of what is expected, in float64."""
    found, expected = found.double().cpu(), expected.double().cpu()
    return float((found - expected).norm() / expected.norm())
