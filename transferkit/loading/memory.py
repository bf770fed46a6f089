"""How much memory is free, on the machine and on a device."""

from __future__ import annotations

import os
from pathlib import Path

import torch

_UNKNOWN = 2 * 1024**3
_EXHAUSTED = ("can't allocate memory", "_STATUS_ALLOC_FAILED")


def available_memory() -> int:
    """Return the bytes of main memory that can be had without swapping, or a careful guess.

    Pages that only cache files count as free, as in Linux's MemAvailable.
    """
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration, ValueError, IndexError):
        pass
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return _UNKNOWN


def is_out_of_memory(error: RuntimeError) -> bool:
    """Whether an error says that memory is exhausted, on the machine or on a device.

    >>> is_out_of_memory(RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate"))
    True
    """
    # The CPU's allocator and NVIDIA's libraries have no class of their own.
    return isinstance(error, torch.OutOfMemoryError) or any(text in str(error) for text in _EXHAUSTED)


def free_memory(device: torch.device) -> int:
    """Return the bytes that are free on a device."""
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else available_memory()
