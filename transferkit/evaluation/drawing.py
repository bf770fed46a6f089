"""What all figures share: figures without pyplot, short names, a grid of images, colors for everyone."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from transferkit.backbones.preprocessing import Preprocessing
from transferkit.checks import check_int, import_extra, require

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.text import Text
    from PIL import Image

    AnyImage = Image.Image | npt.NDArray[np.uint8] | Tensor

# Of Okabe and Ito, https://jfly.uni-koeln.de/color/: told apart with every kind of color vision.
BLUE, VERMILION, GREY = "#0072B2", "#D55E00", "#595959"

# All in inches.
_CELL, _GAP, _LINE, _HEADING, _NARROWEST = 2.0, 0.16, 0.17, 0.42, 4.4
# Of a line of the heading, and of a letter in it on average.
_HEADING_LINE, _LETTER = 0.2, 0.09


def new_figure(width: float, height: float, purpose: str, *, constrained: bool = True) -> Figure:
    """Return an empty figure that no display and no global state knows of.

    Args:
        width: In inches.
        height: In inches.
        purpose: Who needs it, for the error.
        constrained: Whether matplotlib places what is in it; otherwise the caller does.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    module = import_extra("matplotlib.figure", "plot", purpose)
    layout = "constrained" if constrained else None
    figure: Figure = module.Figure(figsize=(width, height), layout=layout)
    return figure


def shortened(text: str, most: int) -> str:
    """Return a text, cut to ``most`` characters where it is longer.

    >>> shortened("a long name", 7)
    'a long…'
    """
    return text if len(text) <= most else text[: most - 1] + "…"


def denormalized(inputs: Tensor, preprocessing: Preprocessing) -> Tensor:
    """Turn what a model takes back into pixels: the inverse of ``preprocessing.normalize``.

    Args:
        inputs: Normalized images, shape ``[..., 3, H, W]``.
        preprocessing: Its mean and std are used.

    Returns:
        uint8, of the same shape, on the CPU.
    """
    mean, std = (torch.tensor(values)[:, None, None] for values in (preprocessing.mean, preprocessing.std))
    scaled = inputs.detach().float().cpu() * std + mean
    return scaled.mul(255).round().clamp(0, 255).to(torch.uint8)


def thumbnail(image: AnyImage, owner: str, side: int = 256) -> npt.NDArray[np.uint8]:
    """Return an image as an array ``[H, W, 3]`` that is no larger than a figure can show.

    Raises:
        ArgumentError: It is not a PIL image, a uint8 array ``[H, W, 3]`` or a uint8 tensor ``[3, H, W]``.
    """
    from PIL import Image

    given: Any = image
    if isinstance(given, Tensor):
        given = given.detach().cpu().permute(1, 2, 0).numpy() if given.ndim == 3 else given.numpy()
    if not isinstance(given, Image.Image):
        require(
            isinstance(given, np.ndarray)
            and given.dtype == np.uint8
            and given.ndim == 3
            and given.shape[2] == 3,
            owner,
            "images",
            "PIL images, uint8 arrays [H, W, 3] or uint8 tensors [3, H, W]",
            getattr(given, "dtype", given),
        )
        given = Image.fromarray(np.ascontiguousarray(given))
    given = given.convert("RGB")
    given.thumbnail((side, side))
    return np.asarray(given)


class Grid(NamedTuple):
    """A figure with a place for each image.

    Attributes:
        figure: The figure.
        cells: Its axes, row by row.
    """

    figure: Figure
    cells: list[Axes]


def image_grid(
    count: int, columns: int | None, owner: str, heading: str, *, lines: int = 1, width: int = 1
) -> Grid:
    """Lay out images under a heading, each with room for a caption above it.

    The places are computed here, because matplotlib's own layout takes a second for a few dozen of them.

    Args:
        count: Number of images.
        columns: Images in a row; chosen by their number if ``None``.
        owner: Who needs it, for errors.
        heading: Stands above the images.
        lines: Lines of a caption.
        width: How many times as wide as high a place is.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    if columns is None:
        columns = min(math.ceil(math.sqrt(count / width)), 6)
    columns = min(check_int(owner, "columns", columns, 1), count)
    rows = math.ceil(count / columns)
    across, caption = width * _CELL, lines * _LINE + 0.06
    content = columns * across + (columns + 1) * _GAP
    total_width = max(content, _NARROWEST)
    titles = textwrap.wrap(heading, int((total_width - 2 * _GAP) / _LETTER)) or [""]
    above = _HEADING + (len(titles) - 1) * _HEADING_LINE
    total_height = above + rows * (caption + _CELL + _GAP)
    figure = new_figure(total_width, total_height, owner, constrained=False)
    title = figure.suptitle(
        "\n".join(titles), fontsize=11, y=1 - 0.1 / total_height, va="top", parse_math=False
    )
    _fit(title, 11, figure.bbox.width * (1 - _GAP / total_width))
    cells = []
    for place in range(count):
        row, column = divmod(place, columns)
        left = (total_width - content) / 2 + _GAP + column * (across + _GAP)
        top = above + row * (caption + _CELL + _GAP) + caption
        bottom = total_height - top - _CELL
        box = (left / total_width, bottom / total_height, across / total_width, _CELL / total_height)
        axes = figure.add_axes(box, anchor="N", xticks=[], yticks=[])
        cells.append(axes)
    return Grid(figure, cells)


def show_image(
    axes: Axes, pixels: npt.NDArray[Any], caption: str, *, color: str = "black", frame: str | None = None
) -> None:
    """Draw an image with its caption.

    Args:
        axes: Its place.
        pixels: Shape ``[H, W, 3]``.
        caption: Stands above it.
        color: Of the caption, and of a frame.
        frame: Style of the frame's lines, such as ``"--"``; ``None`` draws none.
    """
    axes.imshow(pixels)
    title = axes.set_title(caption, fontsize=9, color=color, pad=3, parse_math=False)
    # A name of wide letters would run into the next one's.
    _fit(title, 9, axes.bbox.width)
    for spine in axes.spines.values():
        spine.set_visible(frame is not None)
        if frame is not None:
            spine.set(color=color, linestyle=frame, linewidth=1.5 if frame == "-" else 3.0)


def _fit(text: Text, size: float, width: float) -> None:
    """Make a text smaller than ``size``, in points, where it is wider than ``width``, in pixels."""
    text.set_fontsize(size * min(1.0, width / max(1.0, text.get_window_extent().width)))


def captions(labels: Sequence[str], scores: Sequence[float], truths: Sequence[str | None]) -> list[str]:
    r"""Say of each prediction what it is, whether it is right, and if not what would be.

    >>> captions(["ant", "bee"], [0.9, 0.6], ["ant", "ant"])
    ['✓ ant (90%)', '✗ bee (60%)\ntruth: ant']
    """
    result = []
    for label, score, truth in zip(labels, scores, truths, strict=True):
        shown = f"{shortened(label, 16)} ({score:.0%})"
        if truth is not None:
            shown = f"✓ {shown}" if truth == label else f"✗ {shown}\ntruth: {shortened(truth, 17)}"
        result.append(shown)
    return result
