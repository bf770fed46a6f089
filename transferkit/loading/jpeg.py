"""Plain JPEG, decoded by torchvision: to the bit what Pillow gives, and somewhat faster."""

from __future__ import annotations

import io
import os
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torchvision  # noqa: F401  # reason: defines the operator that decodes

from transferkit.loading.decode import open_image, orientation_of

_SIGNATURE = b"\xff\xd8\xff"
_RGB = 3  # torchvision.io.ImageReadMode.RGB
_LONGEST_FILE = 2**28  # no photo takes more; Pillow reads a file in pieces, and here it is read whole


def plain_jpeg(source: Any, *, least: int | None = None) -> npt.NDArray[np.uint8] | None:
    """Return the pixels of a JPEG that has nothing odd about it, or ``None`` for anything else.

    What is odd is left to Pillow, which decodes it or says what is wrong: other formats, CMYK,
    an orientation other than upright, a damaged or truncated file, one that is too large.

    Args:
        source: Anything that ``decode`` takes.
        least: As for ``decode``; what it would decode at reduced scale is left to it.

    Returns:
        uint8, shape ``[H, W, 3]``.
    """
    try:
        data = _content(source)
        if data is None:
            return None
        # Pillow judges the header, so that what it refuses is never decoded here.
        image = open_image(io.BytesIO(data.data))
        plain = image.mode in ("RGB", "L") and orientation_of(image) == 1
        if not plain or (least is not None and min(image.size) >= 2 * least):
            return None
        # The operator behind torchvision.io.decode_jpeg, which torchvision 0.29 says will go one day:
        # without it there is an AttributeError here, and Pillow decodes everything.
        decoded = torch.ops.image.decode_jpeg(torch.from_numpy(data), _RGB)
    except Exception:  # of whatever kind: Pillow's own decoder has the last word
        return None
    pixels: npt.NDArray[np.uint8] = decoded.permute(1, 2, 0).numpy()
    return pixels if pixels.shape[1::-1] == image.size else None


def _content(source: Any) -> npt.NDArray[np.uint8] | None:
    """Return the bytes of a source if they look like a JPEG; of another file only three are read."""
    if isinstance(source, bytes | bytearray | memoryview):
        if bytes(source[:3]) != _SIGNATURE:
            return None
        content = bytearray(source)
    elif isinstance(source, str | os.PathLike):
        # Without a buffer, and not by numpy.fromfile, which takes twice as long.
        with open(source, "rb", buffering=0) as file:
            begin = file.read(len(_SIGNATURE))
            if begin != _SIGNATURE or os.fstat(file.fileno()).st_size > _LONGEST_FILE:
                return None
            content = bytearray(begin)
            content += file.readall()
    else:
        return None
    return np.frombuffer(content, np.uint8)  # of a bytearray: torch warns of what it may not write to
