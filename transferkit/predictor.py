"""Prediction in one call: an image, a path, a list or a folder in; labels and scores out."""

from __future__ import annotations

import csv
import io
import math
import os
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from transferkit.backbones.spec import spec_of
from transferkit.checks import check_choice, check_int, require, warn_caller
from transferkit.classification import logits_of
from transferkit.datasets.base import listed
from transferkit.datasets.scan import Scan
from transferkit.errors import DataError, ImageDecodeError
from transferkit.heads import class_names
from transferkit.inference import FastForward, fast_model
from transferkit.loading.checked import ON_ERROR, is_the_machines
from transferkit.loading.decode import reason_of
from transferkit.loading.image_pixels import pixels_of
from transferkit.loading.normalize import normalized
from transferkit.runtime import Execution, available_processors, given_execution
from transferkit.saved_model import load_model

_EMPTY = "There is no image to predict: the list is empty."

Prediction = list[dict[str, Any]]
"""The best labels of one image with their scores, the best first."""


class Predictor:
    """Predicts with a model, under the preprocessing that travels with its weights.

    Args:
        model: A model with a spec.
        device: ``"auto"``, ``"cpu"``, ``"cuda"`` …
        precision: ``"auto"``, ``"fp32"``, ``"bf16"`` or ``"fp16"``.
        compile: ``True``, ``False``, or ``"auto"`` for calls with so many images that it
            pays, which is nowhere on a CPU.
        execution: How to run instead of the three before; see ``resolve_execution``.
        batch_size: Images that go through the model at once.
        workers: Number of decoding threads; ``None`` stands for one for each processor.
        on_error: What an image that cannot be decoded does: ``"raise"``, or ``"skip"`` to get an empty
            list in place of labels, and a warning that names it.

    Raises:
        ArgumentError: The model has no spec, or an argument has a value that makes no sense.

    >>> import transferkit as tk
    >>> predictor = Predictor(tk.load_backbone("mini"))
    >>> prediction = predictor(np.zeros((48, 64, 3), dtype=np.uint8), top_k=2)
    >>> len(prediction), sorted(prediction[0])
    (2, ['label', 'score'])
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        device: str | torch.device = "auto",
        precision: str = "auto",
        compile: bool | str = "auto",
        execution: Execution | None = None,
        batch_size: int = 64,
        workers: int | None = None,
        on_error: str = "raise",
    ) -> None:
        self.preprocessing = spec_of(model).preprocessing
        self.batch_size = check_int("Predictor", "batch_size", batch_size, 1)
        self.workers = (
            available_processors() if workers is None else check_int("Predictor", "workers", workers)
        )
        self.on_error = check_choice("Predictor", "on_error", on_error, ON_ERROR)
        self.execution = given_execution(
            model, execution, owner="Predictor", device=device, precision=precision, compile=compile
        )
        self.model = self.execution.place(model).eval()
        self._fast: FastForward | None = None
        self._fast_of: tuple[tuple[int, int], ...] = ()
        self.classes = class_names(model)

    @classmethod
    def load(cls, source: str | os.PathLike[str] | nn.Module, **options: Any) -> Predictor:
        """Make a predictor of a model, or of a run directory or model folder.

        Args:
            source: A model with a spec, or the folder that a run or ``save_model`` wrote.
            options: What ``Predictor`` takes.

        Raises:
            CheckpointError: There is no model in the folder.
        """
        return cls(source if isinstance(source, nn.Module) else load_model(source), **options)

    def __call__(self, images: Any, *, top_k: int = 5) -> Prediction | list[Prediction]:
        """Predict the best labels.

        Args:
            images: One image, or many. One: a path, an encoded image as bytes, a PIL image, an
                array ``[H, W, 3]`` or ``[H, W]``, or a tensor ``[3, H, W]``. Many: a list of
                these, a folder (its images in sorted order, those of sub-folders included), an
                array ``[N, H, W, 3]`` or a tensor ``[N, 3, H, W]``. Values are uint8, or floats in [0, 1].
            top_k: How many labels each image gets, at most the number of classes.

        Returns:
            For one image a list of ``{"label": str, "score": float}``, the best first; for
            many a list of such lists. Scores are probabilities.

        Raises:
            ImageDecodeError: A file is not an image, and ``on_error`` is ``"raise"``; the message names it.
            DataError: A path does not exist, or a folder holds no image.
        """
        many, sources = _sources(images)
        predictions = self.predict_many(sources, top_k=top_k)
        return predictions if many else predictions[0]

    def predict_many(self, images: Sequence[Any], *, top_k: int = 5) -> list[Prediction]:
        """Predict the best labels of each image of a sequence; see ``__call__``.

        Raises:
            DataError: There is no image in it.
        """
        probabilities, decoded = self._run(images)
        classes = self.classes or tuple(str(number) for number in range(probabilities.shape[1]))
        found = iter(ranked(probabilities, classes, top_k=top_k))
        return [next(found) if each else [] for each in decoded]

    def probabilities(self, images: Sequence[Any]) -> Tensor:
        """Return the probability of each class: float32 ``[N, C]``, on the CPU.

        The row of an image that is skipped holds NaN.

        Raises:
            DataError: There is no image, or all were skipped.
        """
        found, decoded = self._run(images)
        if not len(found):
            raise DataError("There is nothing to predict: no image can be decoded.")
        rows = found.new_full((len(decoded), found.shape[1]), math.nan)
        rows[torch.tensor(decoded)] = found
        return rows

    def _run(self, images: Sequence[Any]) -> tuple[Tensor, list[bool]]:
        """Return the probabilities ``[n, C]`` of what can be decoded, and of each image whether it can."""
        if not len(images):
            raise DataError(_EMPTY)
        batches = [
            images[start : start + self.batch_size] for start in range(0, len(images), self.batch_size)
        ]
        rows = [torch.empty(0, len(self.classes or ()))]
        failures: list[tuple[int, ImageDecodeError]] = []
        decoded: list[bool] = []
        with self.execution.arithmetic():
            forward = self._forward_for(len(images))
            for batch in batches:
                found = self._decode(batch)
                pixels = [each for each in found if isinstance(each, Tensor)]
                failures += [
                    (len(decoded) + place, each)
                    for place, each in enumerate(found)
                    if not isinstance(each, Tensor)
                ]
                decoded += [isinstance(each, Tensor) for each in found]
                if pixels:
                    rows.append(logits_of(forward(self._prepared(pixels))).float().softmax(dim=1).cpu())
        if failures:
            _warn_of(failures, images)
        return torch.cat(rows[1:] or rows), decoded

    def _forward_for(self, images: int) -> FastForward:
        """Return the model in the form that suits a number of images; one that took time to make is kept."""
        state = [*self.model.parameters(), *self.model.buffers()]
        weights = tuple((each.data_ptr(), each._version) for each in state)
        # A model that has been trained on since is not the one of which the form was made.
        if self._fast is not None and images >= self.batch_size and self._fast_of == weights:
            return self._fast
        forward = fast_model(self.model, self.preprocessing.size, images, self.batch_size, self.execution)
        if forward.form.changes:
            self._fast, self._fast_of = forward, weights
        return forward

    def __getstate__(self) -> dict[str, Any]:
        # Weights that are laid out for this processor cannot be copied; the form is made anew.
        return {**vars(self), "_fast": None, "_fast_of": ()}

    def _prepared(self, images: Sequence[Tensor]) -> Tensor:
        pixels = torch.stack(list(images)).to(self.execution.device)
        form = self.execution
        return normalized(pixels, self.preprocessing, dtype=form.dtype, channels_last=form.channels_last)

    def _decode(self, images: Sequence[Any]) -> list[Tensor | ImageDecodeError]:
        # A PIL image may read its file only now, which two threads must not do at once.
        apart = all(isinstance(image, (str, os.PathLike, bytes, np.ndarray)) for image in images)
        if apart and self.workers > 1 and len(images) > 1:
            with ThreadPoolExecutor(self.workers) as pool:
                return list(pool.map(self._decode_one, images))
        return [self._decode_one(image) for image in images]

    def _decode_one(self, image: Any) -> Tensor | ImageDecodeError:
        name = str(image) if isinstance(image, (str, os.PathLike)) else ""
        try:
            return pixels_of(image, self.preprocessing, name=name, decode=self.execution.decode)
        except ImageDecodeError as error:
            if self.on_error == "raise" or is_the_machines(error):
                raise
            return error


def _warn_of(failures: Sequence[tuple[int, ImageDecodeError]], images: Sequence[Any]) -> None:
    names = [
        str(images[place]) if isinstance(images[place], (str, os.PathLike)) else f"image {place}"
        for place, _ in failures
    ]
    reason = reason_of(failures[0][1].__cause__ or failures[0][1])
    warn_caller(f"No labels for {listed(names, 'image')} that cannot be decoded (the first: {reason}).")


def ranked(probabilities: npt.ArrayLike, classes: Sequence[str], *, top_k: int) -> list[Prediction]:
    """Return the best labels of each image, the best first.

    Args:
        probabilities: Shape ``[N, C]``.
        classes: Name of each class.
        top_k: How many labels each image gets, at most the number of classes.

    >>> ranked([[0.25, 0.75]], ["ant", "bee"], top_k=1)
    [[{'label': 'bee', 'score': 0.75}]]
    """
    check_int("Predictor", "top_k", top_k, 1)
    values = np.asarray(probabilities)
    best = np.argsort(-values, axis=1, kind="stable")[:, :top_k]
    return [
        [{"label": classes[index], "score": float(row[index])} for index in order]
        for row, order in zip(values, best, strict=True)
    ]


def find_images(folder: str | os.PathLike[str]) -> list[Path]:
    """Return the image files in a folder and below it, in sorted order.

    Raises:
        DataError: There is no such folder, or it holds no image.
    """
    root = Path(folder).expanduser()
    if not root.is_dir():
        raise DataError(f"There is no image or folder at {root}.")
    found = [root / name for name in Scan(root).images("")]
    if not found:
        raise DataError(f"The folder {root} holds no image.")
    return found


def _sources(images: Any) -> tuple[bool, Sequence[Any]]:
    """Return whether many images were meant, and each as something that ``decode`` takes."""
    if isinstance(images, (str, os.PathLike)):
        path = Path(images).expanduser()
        return (False, [path]) if path.is_file() else (True, find_images(path))
    if isinstance(images, Tensor):
        images = images.detach().cpu()
        require(
            images.ndim in (3, 4), "Predictor", "images", "a tensor [3, H, W] or [N, 3, H, W]", images.shape
        )
        images = images.movedim(-3, -1).numpy()
    if isinstance(images, np.ndarray):
        require(
            images.ndim in (2, 3, 4),
            "Predictor",
            "images",
            "an array [H, W, 3] or [N, H, W, 3]",
            images.shape,
        )
        images = _as_uint8(images)
        return (True, list(images)) if images.ndim == 4 else (False, [images])
    if isinstance(images, (bytes, bytearray, memoryview)):
        return False, [bytes(images)]
    if isinstance(images, Iterable):
        sources = [source for image in images for source in _sources(image)[1]]
        if not sources:
            raise DataError(_EMPTY)
        return True, sources
    return False, [images]


def _as_uint8(images: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    if images.dtype == np.uint8:
        return images
    unit = np.issubdtype(images.dtype, np.floating) and images.size > 0
    unit = unit and float(images.min()) >= 0 and float(images.max()) <= 1
    require(unit, "Predictor", "images", "uint8, or floats in [0, 1]", f"{images.dtype} values")
    scaled: np.ndarray[Any, Any] = np.rint(images * 255).astype(np.uint8)
    return scaled


def predictions_csv(paths: Sequence[str], predictions: Sequence[Prediction]) -> str:
    """Return predictions as a CSV table with the columns ``path,label,score,label_2,score_2,…``.

    Where there is no prediction, label and score are empty.

    >>> print(predictions_csv(["a.jpg"], [[{"label": "ant", "score": 0.75}]]), end="")
    path,label,score
    a.jpg,ant,0.750000
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    ranks = range(2, max((len(prediction) for prediction in predictions), default=1) + 1)
    extra = [f"{name}_{rank}" for rank in ranks for name in ("label", "score")]
    writer.writerow(["path", "label", "score", *extra])
    for name, prediction in zip(paths, predictions, strict=True):
        cells = [cell for entry in prediction for cell in (entry["label"], f"{entry['score']:.6f}")]
        # An image without labels has a row of the same length.
        writer.writerow([name, *cells, *[""] * (2 + len(extra) - len(cells))])
    return text.getvalue()
