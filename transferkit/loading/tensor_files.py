"""Tensors in safetensors files: written, looked at without taking memory, and read."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from transferkit.errors import CheckpointCorruptError
from transferkit.loading.wording import first_line

_TYPES = {
    **{"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16},
    **{"I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8},
    **{"BOOL": torch.bool, "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2},
    **{"U16": torch.uint16, "U32": torch.uint32, "U64": torch.uint64, "C64": torch.complex64},
}

DTYPES = frozenset(_TYPES.values())


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write tensors to a safetensors file.

    Args:
        path: Where it goes; see ``write_whole`` for how it is written whole or not at all.
        tensors: Contiguous, none sharing memory with another.

    Raises:
        OSError: It cannot be written.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    try:
        save_file(dict(tensors), path)
    except SafetensorError as error:
        # The number of the system's error is all that is left of it in the text.
        number = re.search(r"os error (\d+)|code: (\d+)", str(error))
        if number is None:
            raise OSError(errno.EIO, str(error)) from error
        code = int(number[1] or number[2])
        raise OSError(code, os.strerror(code)) from error


def tensors_in(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a safetensors file without their values, on the device ``"meta"``.

    No memory is taken for them: what they ask for can be compared with what there should be.

    Raises:
        CheckpointCorruptError: It is damaged.
        OSError: It cannot be read.
    """
    from safetensors import safe_open

    try:
        with safe_open(path, "pt") as file:
            found = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118  # reason: it is no dict
            return {
                name: torch.empty(each.get_shape(), dtype=_TYPES[each.get_dtype()], device="meta")
                for name, each in found.items()
            }
    except OSError:
        raise
    except Exception as error:  # a damaged header can fail in any way
        raise _not_safetensors(path, error) from error


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a safetensors file.

    Raises:
        CheckpointCorruptError: It is damaged.
        OSError: It cannot be read.
    """
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except OSError:
        raise
    except Exception as error:  # a damaged header can fail in any way
        raise _not_safetensors(path, error) from error


def _not_safetensors(path: Path, error: Exception) -> CheckpointCorruptError:
    return CheckpointCorruptError(f"{path} is damaged, or is no safetensors file: {first_line(error)}.")
