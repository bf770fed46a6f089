"""What ties a model to the data of a run: classes that fit before training, and what it learned after."""

from __future__ import annotations

import dataclasses

from torch import nn

from transferkit.backbones.spec import find_spec, set_spec
from transferkit.errors import ArgumentError, DataError
from transferkit.heads import head_module, head_out_features
from transferkit.loading.sources import DatasetPart
from transferkit.training.data import TrainingData


def check_classes(model: nn.Module, data: TrainingData) -> None:
    """Make sure that there are images, and that their classes are the model's outputs.

    Raises:
        DataError: A part is empty, or the parts have different classes.
        ArgumentError: The model has another number of outputs.
    """
    part = data.train_part
    outputs = None if part is None else head_out_features(head_module(model))
    for each in (data.train_part, data.val_part):
        if each is not None and len(each) == 0:
            raise DataError(f"The {each.name!r} part is empty; at least one image is needed.")
        if isinstance(each, DatasetPart) and not each.has_names and len(each.classes) <= (outputs or 0):
            # Without names, a part that lacks the last classes still has as many as the model.
            each.classes = tuple(str(number) for number in range(outputs or 0))
    if part is not None and outputs is not None and outputs != len(part.classes):
        raise ArgumentError(
            f"The model has {outputs} outputs, but the data has {len(part.classes)} classes; "
            f"give it a new head with transferkit.replace_head(model, {len(part.classes)})."
        )
    if part is not None and data.val_part is not None and data.val_part.classes != part.classes:
        raise DataError("The training and the validation part must have the same classes in the same order.")


def describe(model: nn.Module, data: TrainingData) -> None:
    """Write what the run has taught into the model's spec: class names, and how weights were selected."""
    spec = find_spec(model)
    if spec is None or data.train_part is None:
        return
    selected = None if data.val_part is None else data.val_part.fingerprint()
    classes = data.train_part.classes
    set_spec(
        model,
        dataclasses.replace(spec, classes=classes, num_classes=len(classes), selected_on=selected),
    )
