"""What a phase trains on: images through the whole model, or stored outputs of what is frozen."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from transferkit.augmentations import Augmentation
from transferkit.backbones.spec import find_spec
from transferkit.features.split import NoSplit, Split, split_model
from transferkit.features.stored import BATCH_SIZE, FrozenPrefix, Unfit, Views
from transferkit.loading.batches import BatchSource
from transferkit.loading.row_store import Rows
from transferkit.runtime import Execution
from transferkit.training.data import TrainingData
from transferkit.training.phases import Phase


@dataclass(frozen=True)
class PhaseBatches:
    """What takes the batches of a phase, and where they come from.

    Attributes:
        module: The model, or its trainable suffix.
        train: Training batches.
        val: Validation batches, if there are any.
        how: Where they come from, and why, in a few words.
        features: The stored outputs for the training part, where the suffix trains on such.
    """

    module: nn.Module
    train: BatchSource
    val: BatchSource | None
    how: str
    features: Tensor | Rows | None = None


def phase_batches(
    model: nn.Module,
    phase: Phase,
    data: TrainingData,
    execution: Execution,
    augmentation: Augmentation | None,
) -> PhaseBatches:
    """Decide what a phase trains on.

    Stored outputs take the place of images where part of the model is frozen before all that
    trains, the images are the same in each epoch or come in a fixed number of views, and storing
    pays. In a few images the cut model is compared with the whole one before it is trusted.

    Args:
        model: Frozen as the phase wants it, on the execution's device.
        phase: Its ``views``, ``mix`` and ``sampling`` are used.
        data: Training and validation data.
        execution: How the model runs.
        augmentation: How training images vary, if they do.

    Raises:
        DataError: Classes are to be balanced, and the data is a loader or ready for the model.
    """
    try:
        split, prefix = _frozen_prefix(model, phase, data, execution, augmentation)
        views = Views(augmentation, phase.views, data.seed) if phase.views > 1 else Views()
        train_part = data.train_part
        assert train_part is not None
        source = data.prefix_batches(train_part, BATCH_SIZE, views.augmentation)
        rows = prefix.rows(train_part, source, views)
        shown = "" if views.augmentation is None else f"{views.count} views by {views.augmentation.name!r}; "
        how = f"on stored outputs of what is frozen, {split.where} ({shown}{prefix.note})"
        train = data.row_batches(
            rows,
            train_part.targets,
            shuffle=True,
            views=phase.views,
            balanced=phase.sampling == "balanced",
        )
        val: BatchSource | None = None
        if data.val_part is not None:
            source = data.prefix_batches(data.val_part, BATCH_SIZE, None)
            val_rows = prefix.rows(data.val_part, source)
            val = data.row_batches(val_rows, data.val_part.targets, shuffle=False)
        return PhaseBatches(split.suffix, train, val, how, rows)
    except (NoSplit, Unfit) as error:
        reason = str(error)
    shown = "plain" if augmentation is None else augmentation.name
    return PhaseBatches(
        model,
        data.training_batches(augmentation, balanced=phase.sampling == "balanced"),
        data.validation_batches(),
        f"on images, {shown}: {reason}",
    )


def _frozen_prefix(
    model: nn.Module,
    phase: Phase,
    data: TrainingData,
    execution: Execution,
    augmentation: Augmentation | None,
) -> tuple[Split, FrozenPrefix]:
    """Return the cut model and its frozen part, or raise ``NoSplit`` with the reason."""
    spec, part = find_spec(model), data.train_part
    if spec is None or part is None or not part.fixed:
        raise NoSplit("the images may vary")
    if data.val is not None and data.val_part is None:
        raise NoSplit("the validation data is ready for the whole model")
    if phase.mix is not None:
        raise NoSplit("the images are mixed in each step")
    if augmentation is not None and phase.views == 1:
        raise NoSplit("the images vary in each epoch")
    split = split_model(model)
    images = phase.views * len(part) + (0 if data.val_part is None else len(data.val_part))
    prefix = FrozenPrefix(split, spec.preprocessing, execution, images=images, name=spec.name)
    reason = prefix.why_not()
    if reason is not None:
        raise NoSplit(reason)
    return split, prefix
