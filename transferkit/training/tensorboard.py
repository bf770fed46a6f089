"""A callback that writes what a run measures for TensorBoard."""

from __future__ import annotations

import io
import os
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from transferkit.backbones.spec import find_spec
from transferkit.checks import check_path, import_extra
from transferkit.errors import MissingExtraError, OutputError
from transferkit.evaluation.drawing import denormalized
from transferkit.loading.batches import ImageBatches
from transferkit.training.callbacks import Callback
from transferkit.training.steps import StepResult

if TYPE_CHECKING:
    from transferkit.evaluation.report import Report
    from transferkit.training.loop import PhaseTools


class TensorBoard(Callback):
    """Writes losses, accuracy, learning rates, speed, training images and the confusion matrix.

    Everything stands at the number of batches since the run began. After a resume the numbers go on
    where the checkpoint was, and what was written after it is hidden.

    Tags: ``loss/batch`` and ``lr/GROUP`` for some batches of each epoch; ``loss/train``, ``loss/val``,
    ``accuracy/train``, ``accuracy/val``, ``images_per_second`` and ``epoch`` for each epoch;
    ``images/training`` once in each phase that sees images; ``accuracy/SPLIT`` and
    ``confusion_matrix/SPLIT`` with ``add_report``.

    Args:
        folder: Where the event files go, one folder for each run; made if it does not exist.

    Raises:
        ArgumentError: The folder is no path.
        MissingExtraError: tensorboard is not installed.
    """

    # The device is waited for this many times in an epoch at most.
    _READS = 50
    # So many training images are shown.
    _IMAGES = 16

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = check_path("TensorBoard", "folder", folder)
        # First by its own name, because the error would name torch otherwise.
        import_extra("tensorboard", "tensorboard", "TensorBoard")
        self._open: Any = None
        self._model: nn.Module | None = None
        self._tools: PhaseTools | None = None
        self._epoch = self._step = self._steps = 0
        self._show_images = False

    def phase_ready(self, model: nn.Module, tools: PhaseTools) -> None:
        """Keep what has the learning rates and the images."""
        self._model, self._tools = model, tools
        self._show_images = True

    def epoch_start(self, epoch: int, samples: int | None, steps: int) -> None:
        """Count on from the batches of the epochs before."""
        self._epoch, self._steps = epoch, steps
        self._step = (epoch - 1) * steps

    def epoch_resumed(self, steps: int) -> None:
        """Count on from the batches that were done before the interruption."""
        self._step += steps

    def step_end(self, result: StepResult) -> None:
        """Write the loss of every so many batches, the learning rates, and a phase's first images."""
        self._step += 1
        if self._show_images:
            self._show_images = False
            self._write_images()
        every = max(1, -(-self._steps // self._READS))
        if (self._step - 1) % every:
            return
        self._scalar("loss/batch", float(result.loss))
        if self._tools is not None:
            for number, group in enumerate(self._tools.optimizer.param_groups):
                self._scalar(f"lr/{group.get('name', number)}", group["lr"])

    def epoch_end(self, row: dict[str, Any]) -> None:
        """Write the row."""
        for key in ("loss", "accuracy"):
            for part in ("train", "val"):
                self._scalar(f"{key}/{part}", row.get(f"{part}_{key}"))
        self._scalar("images_per_second", row.get("images_per_second"))
        self._scalar("epoch", row["epoch"])
        self.flush()

    def add_report(self, report: Report) -> None:
        """Write the accuracy and, where matplotlib is installed, the confusion matrix of an evaluation."""
        self._scalar(f"accuracy/{report.split}", report.accuracy)
        try:
            figure = report.plot_confusion_matrix()
        except MissingExtraError:
            pass
        else:
            self._writer().add_image(
                f"confusion_matrix/{report.split}", _pixels(figure), self._step, dataformats="HWC"
            )
        self.flush()

    def flush(self) -> None:
        """Write out what is still in memory."""
        if self._open is not None:
            self._open.flush()

    def close(self) -> None:
        """Write out the rest and close the file; what is written later goes into a new one."""
        if self._open is not None:
            self._open.close()
            self._open = None

    def _writer(self) -> Any:
        """Open an event file with the first thing that is written."""
        if self._open is None:
            module = import_extra("torch.utils.tensorboard", "tensorboard", "TensorBoard")
            # What an interrupted run wrote from this step on is written again, so it is hidden.
            purge = self._step if self._steps else None
            try:
                self._open = module.SummaryWriter(str(self.folder), purge_step=purge)
            except OSError as error:
                raise OutputError(f"{self.folder} cannot be written: {error.strerror or error}.") from error
        return self._open

    def _scalar(self, tag: str, value: float | None) -> None:
        if value is not None:
            self._writer().add_scalar(tag, value, self._step)

    def _write_images(self) -> None:
        """Write some training images as the model sees them, from all over the part."""
        source = None if self._tools is None else self._tools.train
        spec = None if self._model is None else find_spec(self._model)
        if spec is None or not isinstance(source, ImageBatches):
            return  # stored features, or images that the user has prepared
        count = source.samples() or 0
        chosen = np.unique(np.linspace(0, count - 1, min(count, self._IMAGES)).astype(np.int64))
        images = [
            denormalized(batch.inputs, spec.preprocessing) for batch in source.visit(chosen, self._epoch)
        ]
        self._writer().add_images("images/training", torch.cat(images).numpy(), self._step)


def _pixels(figure: Any) -> Any:
    """Return a figure as uint8 ``[H, W, 3]``; the writer's own way would import pyplot."""
    from PIL import Image

    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=100)
    with Image.open(buffer) as picture:
        return np.asarray(picture.convert("RGB"))
