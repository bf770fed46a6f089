"""What is made of a run once it is trained: the report, the table of predictions, the figures."""

from __future__ import annotations

import errno
import importlib.util
import itertools
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from transferkit.augmentations import Augmentation
from transferkit.backbones.preprocessing import Preprocessing
from transferkit.backbones.spec import spec_of
from transferkit.datasets.base import Part
from transferkit.errors import ImageDecodeError, MissingExtraError, OutputError, TransferkitError
from transferkit.evaluation.drawing import new_figure
from transferkit.evaluation.grad_cam import grad_cam
from transferkit.evaluation.image_figures import (
    plot_grad_cam,
    plot_mistakes,
    plot_predictions,
    plot_training_images,
)
from transferkit.evaluation.plots import plot_reliability, samples_of
from transferkit.evaluation.report import Report
from transferkit.files import write_text
from transferkit.loading.decode import decode
from transferkit.loading.image_pixels import pixels_of
from transferkit.predictor import Prediction, predictions_csv, ranked
from transferkit.seeding import stream
from transferkit.training.history import History

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_GRID = 16
_MAPS = 8


def write_report(report: Report, part: Part, out: str | os.PathLike[str]) -> list[str]:
    """Write ``report.json``, ``result.csv`` and the figures of an evaluation.

    These are ``confusion_matrix.png``, ``reliability.png``, ``predictions.png`` and, if there are
    mistakes, ``mistakes.png``.

    Args:
        report: Of the model on the part.
        part: The images that were evaluated, in the report's order.
        out: The run directory.

    Returns:
        What was left out and why: a sentence if matplotlib is not installed.
    """
    out = Path(out)
    report.to_json(out / "report.json")
    targets, predicted, probabilities = samples_of(report, "write_report", part)
    predictions = ranked(probabilities, report.classes, top_k=1)
    write_text(out / "result.csv", predictions_csv(part.ids, predictions))
    chosen = spread(len(part), _GRID)
    truths = [report.classes[targets[index]] for index in chosen]

    def grid() -> Figure:
        return prediction_grid(
            [part.source(index) for index in chosen],
            [predictions[index] for index in chosen],
            truths,
            title=f"Predictions on {len(chosen)} of {report.n} images of {report.split}",
        )

    figures: dict[str, Callable[[], Figure]] = {
        "confusion_matrix.png": report.plot_confusion_matrix,
        "reliability.png": lambda: plot_reliability(report),
        "predictions.png": grid,
    }
    if (predicted != targets).any():
        figures["mistakes.png"] = lambda: plot_mistakes(report, part, most=_GRID)
    return _save_all(out, figures)


def write_figures(
    out: str | os.PathLike[str],
    model: nn.Module,
    train: Part,
    history: History,
    *,
    report: Report | None = None,
    part: Part | None = None,
    augmentation: Augmentation | None = None,
    seed: int = 0,
) -> list[str]:
    """Write the figures of a training run: ``training_images.png``, ``history.png`` and ``grad_cam.png``.

    Args:
        out: The run directory.
        model: As it was trained, with a spec.
        train: What it was trained on.
        history: Of the run.
        report: Of the model on ``part``; without one there is no ``grad_cam.png``.
        part: The images that were evaluated, in the report's order.
        augmentation: How training images varied; ``None`` where they were plain.
        seed: Of the run.

    Returns:
        What was left out and why: a sentence if matplotlib is not installed, one if the model has no
        maps for Grad-CAM.
    """
    figures: dict[str, Callable[[], Figure]] = {
        "training_images.png": lambda: _training_images(
            train, spec_of(model).preprocessing, augmentation, seed
        ),
        "history.png": history.plot,
    }
    if report is not None and part is not None:
        figures["grad_cam.png"] = lambda: grad_cam_grid(model, report, part)
    return _save_all(Path(out), figures)


def _training_images(
    train: Part, preprocessing: Preprocessing, augmentation: Augmentation | None, seed: int
) -> Figure:
    """Draw training images; where some cannot be decoded, the first in the run's order that can."""
    try:
        return plot_training_images(train, preprocessing, augmentation, seed=seed)
    except ImageDecodeError:
        readable = (
            index for index in stream(seed, "order", 1).permutation(len(train)) if _reads(train, index)
        )
        chosen = list(itertools.islice(readable, _GRID))
        if not chosen:
            raise
        return plot_training_images(train.take(chosen), preprocessing, augmentation, seed=seed)


def _reads(part: Part, index: int) -> bool:
    try:
        decode(part.source(index))
    except ImageDecodeError:
        return False
    return True


def grad_cam_grid(model: nn.Module, report: Report, part: Part, *, most: int = _MAPS) -> Figure:
    """Return a figure of some evaluated images with their Grad-CAM maps for the predicted labels.

    Args:
        model: A model with a spec.
        report: Of the model on the part.
        part: The images that were evaluated, in the report's order.
        most: How many images are drawn at most, spread over the part.

    Raises:
        ArgumentError: The model has no maps.
        MissingExtraError: matplotlib is not installed.
    """
    targets, predicted, probabilities = samples_of(report, "grad_cam_grid", part)
    chosen = spread(report.n, most)
    preprocessing = spec_of(model).preprocessing
    pixels = torch.stack(
        [pixels_of(part.source(index), preprocessing, name=part.ids[index]) for index in chosen]
    )
    parameter = next(model.parameters())
    inputs = preprocessing.normalize(pixels).to(parameter.device, parameter.dtype)
    maps = grad_cam(model, inputs, torch.from_numpy(predicted[chosen]))
    return plot_grad_cam(
        pixels,
        maps,
        [report.classes[index] for index in predicted[chosen]],
        probabilities[chosen, predicted[chosen]].tolist(),
        [report.classes[index] for index in targets[chosen]],
        most=most,
    )


def prediction_grid(
    sources: Sequence[Any],
    predictions: Sequence[Prediction],
    truths: Sequence[str] | None = None,
    *,
    title: str = "Predictions",
) -> Figure:
    """Return a figure of images with their best label and its score, and the truth where it is known."""
    images = [decode(source) for source in sources]
    labels = [prediction[0]["label"] for prediction in predictions]
    scores = [prediction[0]["score"] for prediction in predictions]
    return plot_predictions(images, labels, scores, truths, title=title)


def save_figure(path: Path, draw: Callable[[], Figure], *, required: bool = False) -> list[str]:
    """Draw and save a figure.

    Returns:
        Nothing, or a sentence that says why the figure was left out.

    Raises:
        MissingExtraError: matplotlib is not installed and the figure is required.
        OutputError: The file cannot be written.
    """
    try:
        figure = draw()
    except MissingExtraError as error:
        if required:
            raise
        return [f"{path.name} was left out: {error}"]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=120)
    except (OSError, ValueError) as error:
        raise OutputError(f"{path} cannot be written: {_reason(error)}.") from error
    return []


def check_writable(path: Path, *, figure: bool = False) -> None:
    """Raise now, rather than after hours of work, if a file could not be written. Nothing is left behind.

    Args:
        path: The file. Folders above it may be missing.
        figure: Whether it is to hold a figure, of a kind that its name tells.

    Raises:
        OutputError: It cannot be written.
        MissingExtraError: matplotlib is not installed, and it is a figure.
    """
    try:
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, "it is a folder")
        # Figures are written into a file that is there, and other files take its place.
        if figure and path.exists() and not os.access(path, os.W_OK):
            raise PermissionError(errno.EACCES, "Permission denied")
        # The nearest that is there.
        folder = next(above for above in path.absolute().parents if above.exists())
        tempfile.TemporaryFile(dir=folder).close()
        if figure:
            kinds = new_figure(1, 1, "a figure").canvas.get_supported_filetypes()
            kind = path.suffix.removeprefix(".").lower()
            if kind and kind not in kinds:
                raise ValueError(f"'.{kind}' is none of the formats {', '.join(sorted(kinds))}")
    except (OSError, ValueError) as error:
        raise OutputError(f"{path} cannot be written: {_reason(error)}.") from error


def _reason(error: OSError | ValueError) -> str:
    """Say why, without the path, which the sentence has already."""
    return getattr(error, "strerror", None) or str(error)


def spread(count: int, most: int) -> list[int]:
    """Return up to ``most`` positions, spread evenly, so that sorted classes are all seen."""
    few = min(count, most)
    return [round(place * (count - 1) / max(1, few - 1)) for place in range(few)]


def _save_all(out: Path, figures: dict[str, Callable[[], Figure]]) -> list[str]:
    """Draw and save figures; return what was left out, in one sentence if it is for want of matplotlib."""
    if importlib.util.find_spec("matplotlib") is None:
        return [
            "The figures were left out: they need matplotlib, which is not installed; "
            "install it with: pip install 'transferkit[plot]'"
        ]
    return [note for name, draw in figures.items() for note in _saved(out / name, draw)]


def _saved(path: Path, draw: Callable[[], Figure]) -> Iterator[str]:
    """Save a figure; a model of which one cannot be drawn is no reason to end a run that is trained."""
    try:
        yield from save_figure(path, draw)
    except OutputError:
        raise
    except TransferkitError as error:
        yield f"{path.name} was left out: {error}"
