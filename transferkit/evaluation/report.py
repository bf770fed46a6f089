"""What an evaluation found, as one record that prints, plots and is kept as JSON."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from transferkit.checks import require
from transferkit.datasets.base import listed
from transferkit.errors import CheckpointCorruptError, DataError, NonFiniteError, OutputError
from transferkit.evaluation.metrics import expected_calibration_error, wilson_interval
from transferkit.evaluation.report_fields import report_fields
from transferkit.files import parse_json, write_text
from transferkit.loading.checked import Skipped

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_SCORES = ("precision", "recall", "f1", "support")


@dataclass(frozen=True, eq=False)
class Report:
    """How good a classifier is on one part of a data set; every image counts exactly once.

    Attributes:
        split: Name of the part, such as ``"test"``.
        classes: Name of each of the ``C`` classes.
        n: Number of images.
        selected: Whether the weights were selected on this part; ``None`` if that is unknown.
        accuracy: Share of images whose highest score is that of their class.
        accuracy_interval: Ends of its 95% confidence interval (Wilson).
        top5_accuracy: Share whose class is among the five highest scores; ``None`` where
            there are at most five classes.
        log_loss: Mean negative logarithm of the probability given to the right class.
        calibration_error: Expected calibration error over 15 bins.
        confusion_matrix: How many images of each class (row) were predicted as each class
            (column), int64, shape ``[C, C]``.
        skipped: Images that were left out, because they cannot be decoded.
        ids: Name of each image, or ``None``.
        targets: Class index of each image, int64 ``[n]``; ``None`` in a report read from JSON
            that was written without them, as are the next two.
        predictions: Predicted class index of each image, int64 ``[n]``.
        probabilities: Probability of each class for each image, float32 ``[n, C]``.

    >>> logits = torch.tensor([[2.0, 0.0], [0.0, 1.0], [0.0, 3.0]])
    >>> report = Report.from_logits(logits, torch.tensor([0, 1, 0]), ["ant", "bee"], split="val")
    >>> round(report.accuracy, 3), report.confusion_matrix.tolist()
    (0.667, [[1, 1], [0, 1]])
    """

    split: str
    classes: tuple[str, ...]
    n: int
    selected: bool | None
    accuracy: float
    accuracy_interval: tuple[float, float]
    top5_accuracy: float | None
    log_loss: float
    calibration_error: float
    confusion_matrix: npt.NDArray[np.int64]
    skipped: tuple[Skipped, ...] = ()
    ids: tuple[str, ...] | None = field(default=None, repr=False)
    targets: npt.NDArray[np.int64] | None = field(default=None, repr=False)
    predictions: npt.NDArray[np.int64] | None = field(default=None, repr=False)
    probabilities: npt.NDArray[np.float32] | None = field(default=None, repr=False)

    @classmethod
    def from_logits(
        cls,
        logits: Tensor | npt.ArrayLike,
        targets: Tensor | npt.ArrayLike,
        classes: Sequence[str],
        *,
        split: str = "test",
        selected: bool | None = None,
        ids: Sequence[str] | None = None,
        skipped: Sequence[Skipped] = (),
    ) -> Report:
        """Score logits against targets.

        Args:
            logits: Unnormalised scores, shape ``[N, C]``.
            targets: Class indices, shape ``[N]``.
            classes: Name of each class, length ``C``.
            split: Name of the part that the images are from.
            selected: Whether the weights were selected on it; ``None`` if that is unknown.
            ids: Name of each image, length ``N``.
            skipped: Images that were left out.

        Raises:
            DataError: There are no images, or a target is not the index of a class.
            NonFiniteError: A logit is NaN or infinite.
            ArgumentError: The shapes disagree.
        """
        from sklearn.metrics import top_k_accuracy_score

        scores = torch.as_tensor(logits).detach().cpu().double()
        truth = torch.as_tensor(targets).detach().cpu()
        _check(scores, truth, classes, split, ids)
        truth = truth.long()
        labels = np.arange(len(classes))
        predictions = scores.argmax(dim=1)
        correct = predictions == truth
        probabilities = scores.softmax(dim=1)
        # Counted here because scikit-learn warns, wrongly, where there is a single class.
        cells = truth * len(labels) + predictions
        top5 = None
        if len(classes) > 5:
            top5 = float(top_k_accuracy_score(truth.numpy(), scores.numpy(), k=5, labels=labels))
        return cls(
            split=split,
            classes=tuple(str(name) for name in classes),
            n=len(truth),
            selected=selected,
            accuracy=int(correct.sum()) / len(truth),
            accuracy_interval=wilson_interval(int(correct.sum()), len(truth)),
            top5_accuracy=top5,
            # From the logits: through probabilities, sure mistakes would be cut off at log(1e-16).
            log_loss=float(torch.nn.functional.cross_entropy(scores, truth)),
            calibration_error=expected_calibration_error(probabilities.amax(dim=1).numpy(), correct.numpy()),
            confusion_matrix=torch.bincount(cells, minlength=len(labels) ** 2).view(len(labels), -1).numpy(),
            skipped=tuple(skipped),
            ids=None if ids is None else tuple(ids),
            targets=truth.numpy(),
            predictions=predictions.numpy(),
            probabilities=probabilities.float().numpy(),
        )

    def _labels(self) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Return targets and predictions, sorted, as the confusion matrix counts them."""
        rows, columns = np.nonzero(self.confusion_matrix)
        counts = self.confusion_matrix[rows, columns]
        return np.repeat(rows, counts), np.repeat(columns, counts)

    def _scores(self, average: str | None) -> dict[str, Any]:
        from sklearn.metrics import precision_recall_fscore_support

        values = precision_recall_fscore_support(
            *self._labels(), labels=np.arange(len(self.classes)), average=average, zero_division=0
        )
        return dict(zip(_SCORES, values, strict=True))

    @property
    def per_class(self) -> dict[str, npt.NDArray[Any]]:
        """Arrays ``precision``, ``recall``, ``f1`` and ``support``, each of shape ``[C]``.

        A class that was never predicted has precision 0, one without images recall 0.
        """
        return self._scores(None)

    @property
    def macro_average(self) -> dict[str, float]:
        """Mean of ``precision``, ``recall`` and ``f1`` over the classes."""
        return {name: float(value) for name, value in self._scores("macro").items() if name != "support"}

    @property
    def weighted_average(self) -> dict[str, float]:
        """Mean of ``precision``, ``recall`` and ``f1`` over the classes, weighted by support."""
        return {name: float(value) for name, value in self._scores("weighted").items() if name != "support"}

    def __str__(self) -> str:
        from sklearn.metrics import classification_report

        low, high = self.accuracy_interval
        top5 = "" if self.top5_accuracy is None else f", top-5 {self.top5_accuracy:.1%}"
        lines = [
            f"{self.split}: {self.n} image{'s' * (self.n != 1)}, {len(self.classes)} classes",
            f"accuracy {self.accuracy:.1%} (95% interval {low:.1%} to {high:.1%}){top5}",
            f"log loss {self.log_loss:.3f}, calibration error {self.calibration_error:.1%}",
        ]
        if self.selected:
            lines.append("Weights were selected on this split, so its accuracy is optimistic.")
        if self.skipped:
            named = listed([each.id for each in self.skipped], "image")
            lines.append(f"Left out, because they cannot be decoded: {named}.")
        table = classification_report(
            *self._labels(), labels=np.arange(len(self.classes)), target_names=self.classes, zero_division=0
        )
        return "\n".join([*lines, "", table.rstrip()])

    def to_dict(self, *, samples: bool = False) -> dict[str, Any]:
        """Return the report as values that JSON can hold.

        Args:
            samples: Whether to add the name, target, prediction and probabilities of each image.
        """
        arrays = self.per_class
        fields: dict[str, Any] = {
            "split": self.split,
            "n": self.n,
            "selected": self.selected,
            "accuracy": self.accuracy,
            "accuracy_interval": list(self.accuracy_interval),
            "top5_accuracy": self.top5_accuracy,
            "log_loss": self.log_loss,
            "calibration_error": self.calibration_error,
            "macro_average": self.macro_average,
            "weighted_average": self.weighted_average,
            "classes": list(self.classes),
            "per_class": [
                {"class": name, **{score: arrays[score][index].item() for score in _SCORES}}
                for index, name in enumerate(self.classes)
            ],
            "confusion_matrix": self.confusion_matrix.tolist(),
            "skipped": [dataclasses.asdict(each) for each in self.skipped],
        }
        if samples:
            fields["ids"] = None if self.ids is None else list(self.ids)
            for name in ("targets", "predictions", "probabilities"):
                values = getattr(self, name)
                fields[name] = None if values is None else values.tolist()
        return fields

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> Report:
        """Build the record from what ``to_dict`` returned.

        Raises:
            ValueError: A field is missing, or is not what ``to_dict`` returns; the message names it.
        """
        return cls(**report_fields(fields))

    def to_json(self, path: str | os.PathLike[str] | None = None, *, samples: bool = False) -> str:
        """Return the report as JSON, and write it to a file, whole or not at all.

        Args:
            path: The file; ``None`` writes nothing.
            samples: Whether to add the name, target, prediction and probabilities of each image.

        Raises:
            OutputError: The file cannot be written.
        """
        text = _json_text(self.to_dict(samples=samples))
        if path is not None:
            write_text(Path(path).expanduser(), text)
        return text

    @classmethod
    def from_json(cls, path: str | os.PathLike[str]) -> Report:
        """Read a report that ``to_json`` wrote.

        Raises:
            OutputError: The file cannot be read.
            CheckpointCorruptError: It does not hold a report.
        """
        try:
            text = Path(path).expanduser().read_text(encoding="utf-8")
        except OSError as error:
            raise OutputError(f"{path} cannot be read: {error.strerror or error}.") from error
        except UnicodeDecodeError as error:
            raise CheckpointCorruptError(f"{path} does not hold a report: it is not text.") from error
        try:
            return cls.from_dict(parse_json(text))
        except ValueError as error:
            raise CheckpointCorruptError(f"{path} does not hold a report: {error}.") from error

    def plot_confusion_matrix(self) -> Figure:
        """Return a figure of the confusion matrix.

        Raises:
            MissingExtraError: matplotlib is not installed.
        """
        from transferkit.evaluation.plots import plot_confusion_matrix

        return plot_confusion_matrix(self)


def _check(
    scores: Tensor, truth: Tensor, classes: Sequence[str], split: str, ids: Sequence[str] | None
) -> None:
    """Raise unless logits, targets, classes and ids fit together."""
    owner = "Report.from_logits"
    require(scores.ndim == 2, owner, "logits", "of shape [N, C]", list(scores.shape))
    if not len(scores):
        raise DataError(f"There is nothing to report on: the part {split!r} has no images.")
    count, outputs = scores.shape
    require(truth.shape == (count,), owner, "targets", f"of shape [{count}]", list(truth.shape))
    require(not truth.is_floating_point(), owner, "targets", "whole numbers", truth.dtype)
    require(
        not isinstance(classes, str) and len(classes) == outputs > 0,
        owner,
        "classes",
        f"{outputs} names, one for each column of the logits",
        classes,
    )
    require(ids is None or len(ids) == count, owner, "ids", f"{count} names, one for each image", ids)

    def first_of(wrong: Tensor) -> str:
        return repr(ids[int(wrong[0])]) if ids is not None else f"image {int(wrong[0])}"

    wrong = torch.nonzero((truth < 0) | (truth >= outputs)).flatten()
    if len(wrong):
        raise DataError(
            f"Every target must be at least 0 and below {outputs}, the number of classes. "
            f"Got {int(truth[wrong[0]])} for {first_of(wrong)}, and {len(wrong)} such in all."
        )
    wrong = torch.nonzero(~scores.isfinite().all(dim=1)).flatten()
    if len(wrong):
        raise NonFiniteError(
            f"The logits of {len(wrong)} of the {count} images in {split!r} are NaN or infinite, "
            f"the first those of {first_of(wrong)}; the weights or the images are damaged."
        )


def _json_text(fields: Mapping[str, Any]) -> str:
    """Return JSON with one field, and one row of a table, in each line."""

    def dump(value: Any) -> str:
        return json.dumps(value, ensure_ascii=False, allow_nan=False)

    lines = []
    for name, value in fields.items():
        table = isinstance(value, list) and value and isinstance(value[0], (list, dict))
        shown = "[\n    " + ",\n    ".join(dump(row) for row in value) + "\n  ]" if table else dump(value)
        lines.append(f"  {dump(name)}: {shown}")
    return "{\n" + ",\n".join(lines) + "\n}\n"
