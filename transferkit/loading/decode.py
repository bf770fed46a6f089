"""Files, bytes and arrays to RGB images."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from PIL import Image


def decode(
    source: str | Path | bytes | npt.NDArray[np.uint8] | Image.Image, *, name: str = ""
) -> Image.Image:
    """Return an image in RGB, upright."""
    from PIL import Image, ImageOps

    if isinstance(source, np.ndarray):
        return Image.fromarray(source).convert("RGB")
    return ImageOps.exif_transpose(Image.open(source)).convert("RGB")
