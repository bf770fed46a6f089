"""Compare backbones by how well simple classifiers do on their features."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from transferkit.backbones.load import load_backbone
from transferkit.backbones.registry import BACKBONES
from transferkit.backbones.spec import spec_of
from transferkit.checks import check_int, require
from transferkit.datasets.base import Part, Splits
from transferkit.errors import DataError
from transferkit.evaluation.metrics import wilson_interval
from transferkit.features.extract import extract_features
from transferkit.features.linear_solver import fit_linear
from transferkit.features.quick_probes import nearest_neighbours, ridge
from transferkit.runtime import resolve_device

_CLASSIFIERS = ("neighbours", "ridge", "logistic")


@dataclass(frozen=True)
class BackboneProbe:
    """What simple classifiers reach on the frozen features of one backbone.

    Attributes:
        backbone: Its name, as it was given.
        features: Number of features of an image.
        neighbours: Accuracy of the 20 nearest neighbours, by a weighted vote.
        ridge: Accuracy of ridge regression on the classes.
        logistic: Accuracy of logistic regression.
        log_loss: Mean negative logarithm of the probability that logistic regression gave to the
            right class.
        c: Inverse strength of its regularization.
        n: Number of images that were scored.
        seconds: How long it took, features included.
    """

    backbone: str
    features: int
    neighbours: float
    ridge: float
    logistic: float
    log_loss: float
    c: float
    n: int
    seconds: float

    def interval(self, classifier: str) -> tuple[float, float]:
        """Return the ends of the 95% interval (Wilson) of a classifier's accuracy, by its attribute."""
        return wilson_interval(round(getattr(self, classifier) * self.n), self.n)


@dataclass(frozen=True)
class ProbeTable:
    """A comparison of backbones; it prints as a table.

    Attributes:
        rows: One for each backbone, in the order in which they were given.
        split: Name of the part that was scored.
        fitted: Number of images that the classifiers were fitted to.
        n: Number of images that were scored.
    """

    rows: tuple[BackboneProbe, ...]
    split: str
    fitted: int
    n: int

    def __str__(self) -> str:
        head = ("backbone", "features", "nearest neighbours", "ridge", "logistic regression", "log loss", "s")
        lines = [head, *(self._line(row) for row in self.rows)]
        widths = [max(len(line[column]) for line in lines) for column in range(len(head))]
        left = (0, 2, 3, 4)  # names and accuracies; numbers stand on the right
        table = [
            "  ".join(
                cell.ljust(width) if column in left else cell.rjust(width)
                for column, (cell, width) in enumerate(zip(line, widths, strict=True))
            )
            for line in lines
        ]
        note = f"accuracy with its 95% interval on {self.n} images ({self.split}), fitted to {self.fitted}"
        return "\n".join([*table, note])

    def _line(self, row: BackboneProbe) -> tuple[str, ...]:
        accuracies = []
        for name in _CLASSIFIERS:
            low, high = row.interval(name)
            accuracies.append(f"{getattr(row, name):.1%} [{100 * low:.1f}, {100 * high:.1f}]")
        name, own, weights = row.backbone.partition("=")
        label = f"{name}{own}{Path(weights).name}"
        return (label, str(row.features), *accuracies, f"{row.log_loss:.3f}", f"{row.seconds:.1f}")

    def to_dict(self) -> dict[str, Any]:
        """Return the figures as values that JSON can hold."""
        rows = [
            dataclasses.asdict(row) | {f"{name}_interval": list(row.interval(name)) for name in _CLASSIFIERS}
            for row in self.rows
        ]
        return {"split": self.split, "fitted": self.fitted, "n": self.n, "backbones": rows}


def probe_backbones(
    data: Splits,
    backbones: Sequence[str | nn.Module],
    *,
    weights: str | None = "default",
    image_size: int | None = None,
    seed: int = 0,
    device: str | torch.device = "auto",
    precision: str = "auto",
    workers: int | None = None,
    tell: Callable[[str], None] | None = None,
) -> ProbeTable:
    """Compare backbones by simple classifiers on their frozen features.

    The classifiers are fitted to the training part and scored on the test part, or on the
    validation part where there is no test part. Nothing is chosen on the part that is scored:
    the regularization of logistic regression is chosen by folds of the training part, or on the
    validation part where it is not the one that is scored.

    Args:
        data: The splits; one of a validation and a test part must be there.
        backbones: Names as ``load_backbone`` takes them, such as ``"resnet18"``; names with their own
            weights, such as ``"resnet18=photos.safetensors"`` or ``"resnet18=none"``; or models
            with a spec.
        weights: Weights of the names without their own; ``None`` or ``"none"`` are random ones.
        image_size: Side of the images in pixels; ``None`` takes that of the weights. Models keep theirs.
        seed: What the folds and random weights follow from.
        device: ``"auto"``, ``"cpu"``, ``"cuda"`` …
        precision: In which the backbones run: ``"auto"``, ``"fp32"``, ``"bf16"`` or ``"fp16"``.
        workers: Number of decoding threads; ``None`` stands for one for each processor.
        tell: Called with a line of progress for each backbone.

    Raises:
        ArgumentError: An argument makes no sense.
        DataError: There is neither a test nor a validation part, or an image cannot be decoded.
        UnknownNameError: There is no backbone of a name.
        CheckpointError: A file of weights cannot be used.

    >>> import transferkit as tk
    >>> splits = tk.load_dataset("digits", shots=5)
    >>> table = probe_backbones(splits, ["mini", "mini=none"], device="cpu")
    >>> table.rows[0].logistic > table.rows[1].logistic
    True
    """
    owner = "probe_backbones"
    check_int(owner, "seed", seed)
    if workers is not None:
        check_int(owner, "workers", workers)
    require(isinstance(data, Splits), owner, "data", "splits, such as load_dataset returns", data)
    # A text and a module have a length too.
    several = isinstance(backbones, Collection) and not isinstance(backbones, (str, nn.Module, Mapping))
    valid = several and len(backbones) > 0 and all(isinstance(each, (str, nn.Module)) for each in backbones)
    require(valid, owner, "backbones", "a list of names or models, at least one", backbones)
    valid = tell is None or callable(tell)
    require(valid, owner, "tell", "a function that takes a line, or None", tell)
    scored = data.val if data.test is None else data.test
    if scored is None:
        raise DataError("Backbones are compared on a test or validation part, and the data has neither.")
    for each in backbones:
        if isinstance(each, str):
            BACKBONES[each.partition("=")[0]]  # a wrong name is better met before the work than after it
    chosen_on = None if data.test is None else data.val
    place = resolve_device(device)
    rows = []
    for each in backbones:
        started = time.perf_counter()
        if isinstance(each, str):
            name, own, file = each.partition("=")
            model = _load(name, file if own else weights, image_size, seed)
        else:
            model = each
        label = each if isinstance(each, str) else spec_of(model).name

        def features(part: Part, model: nn.Module = model) -> tuple[Tensor, Tensor]:
            found = extract_features(model, part, device=place, precision=precision, workers=workers)
            return torch.tensor(found.x, device=place), torch.tensor(found.y, device=place)

        fitted, test = features(data.train), features(scored)
        val = None if chosen_on is None else features(chosen_on)
        row = _compare(label, fitted, val, test, len(data.classes), seed, started)
        rows.append(row)
        if tell is not None:
            tell(f"{label}: logistic regression {row.logistic:.1%}, in {row.seconds:.1f} s")
    return ProbeTable(tuple(rows), scored.name, len(data.train), len(scored))


def _load(name: str, weights: str | None, image_size: int | None, seed: int) -> nn.Module:
    weights = None if isinstance(weights, str) and weights == "none" else weights
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return load_backbone(name, weights=weights, image_size=image_size)


def _compare(
    label: str,
    fitted: tuple[Tensor, Tensor],
    val: tuple[Tensor, Tensor] | None,
    test: tuple[Tensor, Tensor],
    classes: int,
    seed: int,
    started: float,
) -> BackboneProbe:
    """Fit and score the classifiers on one backbone's features."""
    fit = fit_linear(*fitted, classes, val=val, seed=seed)
    logits = fit.logits(test[0])
    return BackboneProbe(
        backbone=label,
        features=test[0].shape[1],
        neighbours=nearest_neighbours(*fitted, *test, classes).accuracy,
        ridge=ridge(*fitted, *test, classes).accuracy,
        logistic=int((logits.argmax(dim=1) == test[1]).sum()) / len(logits),
        log_loss=float(F.cross_entropy(logits.double(), test[1])),
        c=fit.c,
        n=len(logits),
        seconds=time.perf_counter() - started,
    )
