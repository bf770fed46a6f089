"""What a phase trains on: images through the whole model, or stored outputs of what is frozen."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from transferkit.augmentations import Augmentation
from transferkit.backbones.spec import find_spec
from transferkit.features.split import NoSplit, Split, split_model
from transferkit.features.stored import BATCH_SIZE, FrozenPrefix, Unfit, Views
from transferkit.loading.batches import Batch, BatchSource
from transferkit.loading.row_store import Rows
from transferkit.runtime import Execution
from transferkit.training.data import TrainingData
from transferkit.training.phases import Phase

# Operations of the frozen part in all epochs from which its fastest form saves more time than cutting and
# comparing take.
_PAYS = {"cpu": 5e12, "cuda": 5e14}


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

    Where part of the model is frozen before all that trains, stored outputs of that part take the place
    of images, if these are the same in each epoch or come in a fixed number of views, and storing pays.
    Where the images vary, the part runs by itself in its fastest form, if that pays. In a few images the
    cut model is compared with the whole one before it is trusted.

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
        varies = augmentation is not None and phase.views == 1
        if varies and not _has_frozen_layers(model):
            raise NoSplit("the images vary in each epoch")
        split = _split(model, phase, data)
        if varies:
            assert augmentation is not None
            return _computed_anew(split, phase, data, execution, augmentation)
        return _stored(split, phase, data, execution, augmentation)
    except (NoSplit, Unfit) as error:
        reason = str(error)
    shown = "plain" if augmentation is None else augmentation.name
    return PhaseBatches(
        model,
        data.training_batches(augmentation, balanced=phase.sampling == "balanced"),
        data.validation_batches(),
        f"on images, {shown}: {reason}",
    )


def _split(model: nn.Module, phase: Phase, data: TrainingData) -> Split:
    """Return the cut model, or raise ``NoSplit`` with the reason."""
    part = data.train_part
    if find_spec(model) is None or part is None or not part.fixed:
        raise NoSplit("the images may vary")
    if data.val is not None and data.val_part is None:
        raise NoSplit("the validation data is ready for the whole model")
    if phase.mix is not None:
        raise NoSplit("the images are mixed in each step")
    return split_model(model)


def _has_frozen_layers(model: nn.Module) -> bool:
    """Whether weights of layers are frozen, and not those of norms alone."""
    return any(each.ndim > 1 and not each.requires_grad for each in model.parameters())


def _stored(
    split: Split,
    phase: Phase,
    data: TrainingData,
    execution: Execution,
    augmentation: Augmentation | None,
) -> PhaseBatches:
    """Return batches of what the frozen part gives for each image, computed once."""
    part, spec = data.train_part, find_spec(split.model)
    assert part is not None
    assert spec is not None
    images = phase.views * len(part) + (0 if data.val_part is None else len(data.val_part))
    prefix = FrozenPrefix(split, spec.preprocessing, execution, images=images, name=spec.name)
    reason = prefix.why_not()
    if reason is not None:
        raise NoSplit(reason)
    views = Views(augmentation, phase.views, data.seed) if phase.views > 1 else Views()
    rows = prefix.rows(part, data.prefix_batches(part, BATCH_SIZE, views.augmentation), views)
    shown = "" if views.augmentation is None else f"{views.count} views by {views.augmentation.name!r}; "
    how = f"on stored outputs of what is frozen, {split.where} ({shown}{prefix.note})"
    balanced = phase.sampling == "balanced"
    train = data.row_batches(rows, part.targets, shuffle=True, views=phase.views, balanced=balanced)
    val: BatchSource | None = None
    if data.val_part is not None:
        source = data.prefix_batches(data.val_part, BATCH_SIZE, None)
        val = data.row_batches(prefix.rows(data.val_part, source), data.val_part.targets, shuffle=False)
    return PhaseBatches(split.suffix, train, val, how, rows)


def _computed_anew(
    split: Split, phase: Phase, data: TrainingData, execution: Execution, augmentation: Augmentation
) -> PhaseBatches:
    """Return batches of what the frozen part, in its fastest form, gives for images that vary."""
    part, spec = data.train_part, find_spec(split.model)
    assert part is not None
    assert spec is not None
    prefix = FrozenPrefix(
        split,
        spec.preprocessing,
        execution,
        images=phase.epochs * len(part),
        name=spec.name,
        batch_size=data.batch_size,
    )
    if prefix.operations < _PAYS.get(torch.device(execution.device).type, 0):
        raise NoSplit("the images vary in each epoch")
    forward = prefix.forward(data.prefix_batches(part, data.batch_size, augmentation))
    how = f"on images, {augmentation.name}; what is frozen, {split.where}, runs by itself ({prefix.form})"
    train = data.training_batches(augmentation, balanced=phase.sampling == "balanced")
    val = data.validation_batches()
    return PhaseBatches(
        split.suffix,
        ThroughPrefix(train, forward),
        None if val is None else ThroughPrefix(val, forward),
        how,
    )


class ThroughPrefix:
    """Batches of images after what is frozen has run on them.

    Args:
        source: The batches of images.
        forward: What is frozen.

    Attributes:
        targets: Those of the source.
        replayed: As for the source.
    """

    def __init__(self, source: BatchSource, forward: Callable[[Tensor], Tensor]) -> None:
        self._source = source
        self._forward = forward
        self.targets = source.targets
        self.replayed = source.replayed

    def __len__(self) -> int:
        return len(self._source)

    def samples(self) -> int | None:
        """Return the number of samples in an epoch, where it is known."""
        return self._source.samples()

    def epoch(self, number: int, start: int = 0) -> Iterator[Batch]:
        """Yield the batches of one epoch from batch ``start`` on."""
        for batch in self._source.epoch(number, start):
            yield batch._replace(inputs=self._forward(batch.inputs))
