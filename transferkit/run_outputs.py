"""What is made of a run once it is trained: the report, the table of predictions, the figures."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transferkit.datasets.base import Part
from transferkit.errors import MissingExtraError, OutputError
from transferkit.evaluation.plots import plot_predictions
from transferkit.evaluation.report import Report
from transferkit.files import write_text
from transferkit.loading.decode import decode
from transferkit.predictor import Prediction, predictions_csv, ranked

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_GRID = 16


def write_report(report: Report, part: Part, out: str | os.PathLike[str]) -> list[str]:
    """Write ``report.json``, ``result.csv``, ``confusion_matrix.png`` and ``predictions.png``.

    Args:
        report: Of the model on the part.
        part: The images that were evaluated, in the report's order.
        out: The run directory.

    Returns:
        A sentence for each file that was left out because matplotlib is not installed.
    """
    out = Path(out)
    report.to_json(out / "report.json")
    assert report.probabilities is not None  # only a report that was read from a file has none
    predictions = ranked(report.probabilities, report.classes, top_k=1)
    write_text(out / "result.csv", predictions_csv(part.ids, predictions))
    chosen = [round(place * (len(part) - 1) / (_GRID - 1)) for place in range(_GRID)]
    chosen = sorted(set(chosen))
    truths = [part.classes[part.targets[index]] for index in chosen]

    def grid() -> Figure:
        return prediction_grid(
            [part.source(index) for index in chosen], [predictions[index] for index in chosen], truths
        )

    return [
        *save_figure(out / "confusion_matrix.png", report.plot_confusion_matrix),
        *save_figure(out / "predictions.png", grid),
    ]


def prediction_grid(
    sources: Sequence[Any], predictions: Sequence[Prediction], truths: Sequence[str] | None = None
) -> Figure:
    """Return a figure of images with their best label and its score, and the truth where it is known."""
    images = [decode(source) for source in sources]
    labels = [prediction[0]["label"] for prediction in predictions]
    scores = [prediction[0]["score"] for prediction in predictions]
    return plot_predictions(images, labels, scores, truths)


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
        raise OutputError(f"{path} cannot be written: {error}.") from error
    return []
