"""Figures of images: what a model trains on, what it predicts, where it is wrong, what it looks at."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from transferkit.augmentations import Augmentation
from transferkit.augmentations import augmentation as registered_augmentation
from transferkit.backbones.preprocessing import Preprocessing
from transferkit.checks import check_int, import_extra, is_number, require
from transferkit.datasets.base import Part
from transferkit.errors import DataError
from transferkit.evaluation.drawing import (
    BLUE,
    VERMILION,
    captions,
    denormalized,
    image_grid,
    shortened,
    show_image,
    thumbnail,
)
from transferkit.evaluation.plots import samples_of
from transferkit.evaluation.report import Report
from transferkit.loading.batches import ImageBatches
from transferkit.loading.decode import decode
from transferkit.loading.sources import stored_pixels

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from transferkit.evaluation.drawing import AnyImage

# How much of an image is covered by the colors of its map.
_COVERED = 0.55


def plot_images(
    images: Sequence[AnyImage] | Tensor,
    labels: Sequence[str],
    *,
    title: str = "Images",
    most: int = 36,
    columns: int | None = None,
) -> Figure:
    """Draw images in a grid, each under its label.

    Args:
        images: PIL images, uint8 arrays ``[H, W, 3]`` or uint8 tensors ``[3, H, W]``.
        labels: Label of each image.
        title: Stands above them.
        most: How many images are drawn at most: the first ones.
        columns: Images in a row; chosen by their number if ``None``.

    Returns:
        A figure; ``figure.savefig("images.png")`` writes it.

    Raises:
        DataError: There are no images.
        ArgumentError: The lengths differ.
        MissingExtraError: matplotlib is not installed.
    """
    owner = "plot_images"
    drawn = _drawn(owner, images, most, labels=labels)
    grid = image_grid(drawn, columns, owner, _heading(owner, title, drawn, len(images)))
    for axes, image, label in zip(grid.cells, images, labels, strict=False):
        show_image(axes, thumbnail(image, owner), shortened(label, 24))
    return grid.figure


def plot_training_images(
    part: Part,
    preprocessing: Preprocessing,
    augmentation: Augmentation | str | None = None,
    *,
    seed: int = 0,
    epoch: int = 1,
    most: int = 16,
) -> Figure:
    """Draw the first training images of an epoch as the model sees them.

    They are resized, cropped and augmented as in a run with the same seed; only the normalization
    is undone, so that they look like images.

    Args:
        part: The training part.
        preprocessing: The model's.
        augmentation: How the images vary, a registered name too; ``None`` leaves them as they are.
        seed: What order and augmentation follow from.
        epoch: Number of the epoch, from 1 over the run.
        most: How many images are drawn at most.

    Raises:
        DataError: The part is empty.
        MissingExtraError: matplotlib is not installed.
    """
    owner = "plot_training_images"
    most = check_int(owner, "most", most, 1)
    check_int(owner, "epoch", epoch, 1)
    require(isinstance(part, Part), owner, "part", "a part, such as splits.train", part)
    record = "a Preprocessing record, such as spec_of(model).preprocessing"
    require(isinstance(preprocessing, Preprocessing), owner, "preprocessing", record, preprocessing)
    if isinstance(augmentation, str):
        augmentation = registered_augmentation(augmentation, preprocessing)
    made = isinstance(augmentation, Augmentation | None)
    wanted = "a registered name, what transferkit.augmentation returns, or None"
    require(made, owner, "augmentation", wanted, augmentation)
    if not len(part):
        raise DataError(f"There are no images to draw: the {part.name!r} part is empty.")
    source = ImageBatches(
        stored_pixels(part, preprocessing, augmentation, keep=False),
        part.targets,
        preprocessing,
        device="cpu",
        batch_size=most,
        augmentation=augmentation,
        shuffle=True,
        seed=check_int(owner, "seed", seed),
    )
    batch = next(source.epoch(epoch))
    inputs, targets = batch.inputs[:most], batch.targets[:most]  # a single image left over had joined them
    labels = [part.classes[target] for target in targets.tolist()]
    how = (
        "plain" if augmentation is None or augmentation.name == "none" else f"augmented ({augmentation.name})"
    )
    size = preprocessing.size
    title = f"Training images as the model sees them: {how}, {size} x {size} px"
    return plot_images(denormalized(inputs, preprocessing), labels, title=title, most=most)


def plot_predictions(
    images: Sequence[AnyImage],
    labels: Sequence[str],
    scores: Sequence[float],
    truths: Sequence[str | None] | None = None,
    *,
    title: str = "Predictions",
    most: int = 36,
    columns: int | None = None,
) -> Figure:
    """Draw images in a grid, each under its predicted label and score.

    A right prediction has a tick and a thin blue frame, a wrong one a cross, a thick dashed
    vermilion frame and the true label.

    Args:
        images: PIL images, uint8 arrays ``[H, W, 3]`` or uint8 tensors ``[3, H, W]``.
        labels: Predicted label of each image.
        scores: Its score, in [0, 1].
        truths: True label of each image, where it is known.
        title: Stands above them.
        most: How many images are drawn at most: the first ones.
        columns: Images in a row; chosen by their number if ``None``.

    Returns:
        A figure; ``figure.savefig("predictions.png")`` writes it.

    Raises:
        DataError: There are no images.
        ArgumentError: The lengths differ.
        MissingExtraError: matplotlib is not installed.
    """
    owner = "plot_predictions"
    drawn = _drawn(owner, images, most, labels=labels, scores=scores, **_given(truths))
    truths = [None] * len(images) if truths is None else truths
    shown = captions(labels[:drawn], scores[:drawn], truths[:drawn])
    lines = max(caption.count("\n") + 1 for caption in shown)
    grid = image_grid(drawn, columns, owner, _heading(owner, title, drawn, len(images)), lines=lines)
    for place, axes in enumerate(grid.cells):
        color, frame = _look(labels[place], truths[place])
        show_image(axes, thumbnail(images[place], owner), shown[place], color=color, frame=frame)
    return grid.figure


def plot_mistakes(report: Report, part: Part, *, most: int = 16) -> Figure:
    """Draw the wrong predictions of an evaluation, those first of which the model was surest.

    What stands first is often a wrong label, a doubtful image or a class that is drawn too wide.

    Args:
        report: Of an evaluation in this process, or read from JSON with its samples.
        part: The images that were evaluated, in the report's order.
        most: How many images are drawn at most.

    Raises:
        DataError: Every image was predicted right.
        ArgumentError: The report lacks its samples, or the part is another.
        MissingExtraError: matplotlib is not installed.
    """
    owner = "plot_mistakes"
    most = check_int(owner, "most", most, 1)
    require(isinstance(part, Part), owner, "part", "the part that was evaluated", part)
    targets, predictions, probabilities = samples_of(report, owner, part)
    wrong = np.flatnonzero(predictions != targets)
    if not len(wrong):
        raise DataError(
            f"There are no mistakes to draw: every image in {report.split!r} was predicted right."
        )
    scores = probabilities[wrong, predictions[wrong]]
    order = np.argsort(-scores, kind="stable")[:most]
    chosen = wrong[order]
    return plot_predictions(
        [decode(part.source(index), name=part.ids[index]) for index in chosen],
        [report.classes[index] for index in predictions[chosen]],
        scores[order].tolist(),
        [report.classes[index] for index in targets[chosen]],
        title=f"Surest mistakes in {shortened(report.split, 16)}: {len(chosen)} of {len(wrong)}",
        most=most,
    )


def plot_grad_cam(
    images: Sequence[AnyImage] | Tensor,
    maps: Tensor,
    labels: Sequence[str],
    scores: Sequence[float],
    truths: Sequence[str | None] | None = None,
    *,
    title: str = "Grad-CAM: what spoke for the predicted label (yellow: most)",
    most: int = 8,
) -> Figure:
    """Draw images, each beside its Grad-CAM map.

    A map that is zero everywhere, where nothing spoke for the label, is a grey image marked "no evidence".

    Args:
        images: PIL images, uint8 arrays ``[H, W, 3]`` or uint8 tensors ``[3, H, W]``, as the model
            sees them: ``spec_of(model).preprocessing.pixels(image)`` gives that.
        maps: What ``grad_cam`` returned, shape ``[N, H, W]``.
        labels: Predicted label of each image.
        scores: Its score, in [0, 1].
        truths: True label of each image, where it is known.
        title: Stands above them.
        most: How many images are drawn at most: the first ones.

    Raises:
        DataError: There are no images.
        ArgumentError: The lengths differ.
        MissingExtraError: matplotlib is not installed.
    """
    owner = "plot_grad_cam"
    drawn = _drawn(owner, images, most, maps=maps, labels=labels, scores=scores, **_given(truths))
    truths = [None] * len(images) if truths is None else truths
    shown = captions(labels[:drawn], scores[:drawn], truths[:drawn])
    lines = max(caption.count("\n") + 1 for caption in shown)
    grid = image_grid(drawn, None, owner, _heading(owner, title, drawn, len(images)), lines=lines, width=2)
    colors = import_extra("matplotlib", "plot", owner).colormaps["viridis"]
    for place, axes in enumerate(grid.cells):
        pixels = thumbnail(images[place], owner)
        require(
            _same_shape(pixels, maps[place]),
            owner,
            "images",
            "what the model saw, as preprocessing.pixels(image) returns it",
            f"an image of other proportions than its map of {list(maps[place].shape)}",
        )
        empty = not bool(maps[place].any())
        right = _grey(pixels) if empty else _covered(pixels, maps[place], colors)
        color, _ = _look(labels[place], truths[place])
        show_image(axes, _beside(pixels, right), shown[place], color=color)
        if empty:
            box = {"facecolor": "white", "edgecolor": "none", "alpha": 0.8}
            axes.text(
                0.75, 0.5, "no evidence", fontsize=9, bbox=box, ha="center", va="center",
                transform=axes.transAxes,
            )  # fmt: skip
    return grid.figure


def _drawn(owner: str, images: Sequence[Any] | Tensor, most: int, **values: Sequence[Any] | Tensor) -> int:
    """Check that there is a value for each image, and return how many are drawn."""
    several = isinstance(images, Sequence | np.ndarray | Tensor) and not isinstance(images, str | bytes)
    require(several, owner, "images", "a sequence of images", images)
    count = len(images)
    if not count:
        raise DataError(f"There is nothing to draw for {owner}: no images were given.")
    for name, given in values.items():
        fits, wanted = _WANTED[name]
        several = isinstance(given, Sequence | np.ndarray | Tensor) and not isinstance(given, str | bytes)
        require(several and all(map(fits, given)), owner, name, wanted, given)
        require(len(given) == count, owner, name, f"of length {count}, as the images are", len(given))
    return min(count, check_int(owner, "most", most, 1))


# What each value that goes with an image must be.
_WANTED: dict[str, tuple[Callable[[Any], bool], str]] = {
    "labels": (lambda each: isinstance(each, str), "a str for each image"),
    "truths": (lambda each: isinstance(each, str | None), "a str or None for each image"),
    "scores": (
        lambda each: is_number(each.item() if isinstance(each, Tensor) else each),
        "a number for each image",
    ),
    "maps": (lambda each: isinstance(each, Tensor) and each.ndim == 2, "a tensor [N, H, W]"),
}


def _given(truths: Sequence[str | None] | None) -> dict[str, Sequence[str | None]]:
    return {} if truths is None else {"truths": truths}


def _heading(owner: str, title: str, drawn: int, count: int) -> str:
    require(isinstance(title, str), owner, "title", "a str", title)
    return title if drawn == count else f"{title} (the first {drawn} of {count})"


def _look(label: str, truth: str | None) -> tuple[str, str | None]:
    """Return color and frame of a prediction."""
    if truth is None:
        return "black", None
    return (BLUE, "-") if label == truth else (VERMILION, "--")


def _same_shape(pixels: npt.NDArray[np.uint8], heat: Tensor) -> bool:
    """Whether an image, which may have been made smaller, has the proportions of its map."""
    height, width = pixels.shape[:2]
    # Sides are rounded where an image is made smaller.
    return bool(abs(height * heat.shape[1] - width * heat.shape[0]) <= max(heat.shape))


def _covered(pixels: npt.NDArray[np.uint8], heat: Tensor, colors: Any) -> npt.NDArray[np.uint8]:
    """Lay the colors of a map over the grey image."""
    height, width = pixels.shape[:2]
    resized = torch.nn.functional.interpolate(
        heat.detach().float().cpu()[None, None], (height, width), mode="bilinear", align_corners=False
    )[0, 0]
    painted = 255 * np.asarray(colors(resized.numpy()))[..., :3]
    grey = pixels.astype(np.float64).mean(axis=2, keepdims=True)
    mixed: npt.NDArray[np.uint8] = (_COVERED * painted + (1 - _COVERED) * grey).round().astype(np.uint8)
    return mixed


def _grey(pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    grey: npt.NDArray[np.uint8] = pixels.mean(axis=2, keepdims=True).round().astype(np.uint8)
    return np.repeat(grey, 3, axis=2)


def _beside(left: npt.NDArray[np.uint8], right: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    gap = np.full((len(left), max(1, left.shape[1] // 40), 3), 255, dtype=np.uint8)
    return np.concatenate([left, gap, right], axis=1)
