"""The trainer: phases over a model and data, with the best weights kept."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from transferkit.augmentations import Augmentation
from transferkit.backbones.spec import find_spec
from transferkit.checks import check_choice, check_int, check_module, check_path, require, warn_caller
from transferkit.datasets.base import Splits
from transferkit.errors import ArgumentError, RunDirectoryError
from transferkit.heads import head_module, head_out_features
from transferkit.loading.checked import ON_ERROR, Skipped, check_on_error, usable
from transferkit.loading.loader_batches import dead_workers_told
from transferkit.runtime import Execution, given_execution
from transferkit.saved_model import check_saveable, load_model, save_model, spec_to_dict
from transferkit.training.augmenting import AugmentationLike, resolve_augmentation
from transferkit.training.callbacks import Callback, ProgressBar
from transferkit.training.checkpoint_files import Checkpoint, CheckpointFolder, read_checkpoint
from transferkit.training.data import TrainingData
from transferkit.training.history import History
from transferkit.training.keeping import Checkpoints
from transferkit.training.model_and_data import check_classes, describe
from transferkit.training.phases import Phase, epochs_of
from transferkit.training.recipes import by_steps, recipe_phases
from transferkit.training.resolving import resolve_batch_size, resolve_phases, with_lr
from transferkit.training.run import Run
from transferkit.training.run_directory import RunDirectory, versions
from transferkit.training.settings import check_same, recorded_execution, recorded_phases, settings_of


class Trainer:
    """Trains a model through the phases of a recipe and keeps the best weights.

    Args:
        model: A backbone with a head of the right size; it stays the plain module that it is
            and is trained in place.
        recipe: The name of a recipe, a ``Phase`` or several.
        lr: Learning rate of the phases that train backbone parameters, or of all phases if
            the head alone trains; ``None`` takes defaults that fit recipe and backbone.
        augmentation: How training images vary while backbone parameters train: a registered
            name, an ``Augmentation``, or a callable from PIL image to PIL image. ``None``
            leaves it to the recipe.
        batch_size: Images in a batch; ``"auto"`` takes the largest power of two that fits in memory, at
            most 512 and at most an eighth of the training images.
        callbacks: Told of phases, epochs and steps.
        device: ``"auto"``, ``"cpu"``, ``"cuda"`` …
        precision: ``"auto"`` (bfloat16 where the hardware computes it), ``"fp32"``, ``"bf16"`` or ``"fp16"``.
        compile: Whether what is frozen is compiled, and on a GPU the steps that train on images too:
            ``True``, ``False``, or ``"auto"`` for where it pays, which is nowhere on a CPU.
        execution: How to run instead of the three before; see ``resolve_execution``.
        seed: What the order of images, augmentation and dropout follow from.
        run_dir: A folder that does not exist or is empty, unless a run is resumed; ``None`` writes no files.
        checkpoints: How often a run with a run directory is saved. While it trains there, SIGINT (Ctrl-C)
            and SIGTERM leave a checkpoint before they end it.
        workers: Number of decoding threads; ``None`` stands for one for each processor.
        adapt_batch_norm: Whether the statistics of batch norm are measured anew on 128 training images before
            the first phase: ``True``, ``False``, or ``"auto"`` for where the head trains first, there are at
            least 64 images, the same each time, and the statistics are foreign to them: what a layer is given
            lies or varies so far from what it was given in pretraining (see the page on recipes).
        on_error: ``"raise"`` ends the run with the first image that cannot be decoded; ``"skip"`` decodes
            all once beforehand, and leaves those out: a warning counts them, and the run directory
            lists them in ``skipped.csv``.
        progress: Whether to show a progress bar on standard error.

    Raises:
        ArgumentError: An argument has a value that makes no sense.

    >>> import numpy as np, transferkit as tk
    >>> model = tk.load_backbone("mini", num_classes=2)
    >>> images = np.random.default_rng(0).integers(0, 256, (16, 32, 32, 3), dtype=np.uint8)
    >>> trainer = Trainer(model, recipe="linear-probe", progress=False)
    >>> len(trainer.fit(tk.Part(images, [0, 1] * 8, ["ant", "bee"]), epochs=2))
    2
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        recipe: str | Phase | Sequence[Phase] = "lp-ft",
        lr: float | None = None,
        augmentation: AugmentationLike | None = None,
        batch_size: int | str = 64,
        callbacks: Sequence[Callback] = (),
        device: str | torch.device = "auto",
        precision: str = "auto",
        compile: bool | str = "auto",
        execution: Execution | None = None,
        seed: int = 0,
        run_dir: str | os.PathLike[str] | None = None,
        checkpoints: Checkpoints | None = None,
        workers: int | None = None,
        adapt_batch_norm: bool | str = "auto",
        on_error: str = "raise",
        progress: bool = True,
    ) -> None:
        check_module("Trainer", model)
        self.model = model
        self.phases = with_lr(recipe_phases(recipe), lr)
        self.recipe = recipe if isinstance(recipe, str) else "custom"
        self._named = isinstance(recipe, str)
        if self._named and lr is not None and not epochs_of(self.phases):
            self.phases = by_steps(self.phases)
        automatic = isinstance(batch_size, str) and batch_size == "auto"
        self.batch_size = batch_size if automatic else check_int("Trainer", "batch_size", batch_size, 1)
        self.seed = check_int("Trainer", "seed", seed)
        self.workers = None if workers is None else check_int("Trainer", "workers", workers)
        automatic = isinstance(adapt_batch_norm, str) and adapt_batch_norm == "auto"
        valid = isinstance(adapt_batch_norm, bool) or automatic
        require(valid, "Trainer", "adapt_batch_norm", "True, False or 'auto'", adapt_batch_norm)
        self.adapt_batch_norm = adapt_batch_norm
        check_choice("Trainer", "on_error", on_error, ON_ERROR)
        self.on_error = on_error
        valid = isinstance(callbacks, Iterable) and all(isinstance(each, Callback) for each in callbacks)
        require(valid, "Trainer", "callbacks", "a sequence of Callback objects", callbacks)
        require(isinstance(progress, bool), "Trainer", "progress", "True or False", progress)
        self.callbacks = (*((ProgressBar(),) if progress else ()), *callbacks)
        self.execution = given_execution(
            model, execution, owner="Trainer", device=device, precision=precision, compile=compile
        )
        self.history = History()
        spec = find_spec(model)
        self._preprocessing = None if spec is None else spec.preprocessing
        self._augmentation = None
        if augmentation is not None:
            self._augmentation = resolve_augmentation(augmentation, self._preprocessing)
        run_dir = None if run_dir is None else check_path("Trainer", "run_dir", run_dir)
        if run_dir is not None and spec is None:
            raise ArgumentError(
                "A run directory needs a model with a spec, to save it; give it one with "
                "transferkit.attach_spec(model, head=..., preprocessing=...)."
            )
        self._unsaved = False  # whether a fit has begun that did not end
        self._run_directory = None if run_dir is None else RunDirectory(run_dir)
        self.checkpoints = Checkpoints() if checkpoints is None else checkpoints
        valid = isinstance(self.checkpoints, Checkpoints)
        require(valid, "Trainer", "checkpoints", "a transferkit.Checkpoints record", checkpoints)

    def fit(
        self,
        train: Any,
        val: Any = None,
        *,
        epochs: int | None = None,
        resume: bool | str | os.PathLike[str] = False,
    ) -> History:
        """Train, and leave the model with the best weights of the run, in inference mode.

        What the last phase froze stays frozen; ``unfreeze`` undoes it.

        Args:
            train: ``Splits`` (whose validation part is used too), one part, a map-style data
                set of (image, class index), or a ``DataLoader`` of batches ready for the model.
            val: Data on which weights are selected; ``None`` takes that of ``Splits``. Without
                any, the last weights stay.
            epochs: Total over all phases that train by steps, shared in proportion to the
                recipe's own; ``None`` takes those. A named recipe in which no phase does, such as
                ``"linear-probe"``, then trains by steps, and so it does with an ``lr``.
            resume: ``True`` goes on from the newest checkpoint in the run directory, with the same model
                and settings; where nothing was saved the run begins, and where it is over nothing is
                done. A path names a checkpoint. On the CPU of one machine the result is the same to the
                bit as without the interruption.

        Returns:
            One row for each epoch; see ``History``.

        Raises:
            ArgumentError: The model's outputs and the data's classes differ in number.
            NonFiniteError: A loss is NaN or infinite.
            RunDirectoryError: The run directory is in use, by an earlier ``fit`` for one.
            OutputError: The run directory cannot be written.
            ResumeMismatchError: The run began with other settings or data.
            CheckpointCorruptError: The named checkpoint is damaged, or all are.
            CheckpointWriteError: A checkpoint cannot be written.
            DeviceMemoryError: A batch does not fit in the memory of the device.
        """
        resume = self._checked_resume(resume)
        directory = self._run_directory
        record: dict[str, Any] = {}
        if isinstance(train, Splits):
            train, val, record = train.train, train.val if val is None else val, train.record
        data = TrainingData(
            train,
            val,
            self._preprocessing,
            execution=self.execution,
            seed=self.seed,
            workers=self.workers,
            num_classes=None if self._preprocessing is None else head_out_features(head_module(self.model)),
        )
        skipped = self._leave_out(data)
        check_classes(self.model, data)
        settings = settings_of(
            self.model,
            self.phases,
            data,
            self.execution,
            augmentation=self._augmentation,
            batch_size=self.batch_size,
            epochs=epochs,
            seed=self.seed,
            adapt_batch_norm=self.adapt_batch_norm,
        )
        checkpoint = None
        if directory is not None and resume:
            recorded = directory.recorded()
            if recorded is not None and recorded.get("finished"):
                return self._as_it_ended(directory, recorded, resume, settings)
            checkpoint = self._checkpoint(directory, recorded, resume, settings)
        if checkpoint is not None:
            self.execution = data.execution = recorded_execution(checkpoint.config)
        self.execution.place(self.model)
        with self.execution.arithmetic():
            run = self._run(data, settings, record, epochs, None if checkpoint is None else checkpoint.config)
            if directory is not None:
                # Better met before the work than after it.
                check_saveable(self.model)
                directory.check_writable()
                directory.sweep()
            if checkpoint is not None:
                run.restore(checkpoint)
                del checkpoint  # nothing holds its tensors while the run goes on
            if directory is not None:
                if run.history or directory.has_history():
                    directory.write_history(run.history)
                if skipped:
                    directory.write_skipped(skipped)
            self.history = run.history
            self._unsaved = True
            with dead_workers_told():
                run.go(self.checkpoints)
        describe(self.model, data)
        self.model.eval()
        if directory is not None:
            save_model(self.model, directory.model)
            directory.write_history(run.history)
            directory.write_config(run.config | {"finished": True})
            CheckpointFolder(directory.checkpoints).clear()
        self._unsaved = False
        return self.history

    def _checked_resume(self, resume: bool | str | os.PathLike[str]) -> bool | Path:
        """Check what is to be resumed against the run directory, before any work is done."""
        directory = self._run_directory
        if not isinstance(resume, bool):
            is_path = isinstance(resume, str | os.PathLike)
            require(is_path, "Trainer.fit", "resume", "True, False or a path", resume)
            resume = check_path("Trainer.fit", "resume", resume)
        if directory is None:
            require(not resume, "Trainer.fit", "resume", "False where the Trainer has no run_dir", resume)
        elif not resume:
            directory.check_unused()
        return resume

    def _checkpoint(
        self,
        directory: RunDirectory,
        recorded: dict[str, Any] | None,
        resume: bool | Path,
        settings: dict[str, Any],
    ) -> Checkpoint | None:
        """Return the checkpoint that is named, or the newest if there is one, of these settings."""
        folder = CheckpointFolder(directory.checkpoints)
        folder.sweep()
        checkpoint = folder.newest() if isinstance(resume, bool) else read_checkpoint(resume)
        if checkpoint is not None:
            self._tell(f"going on from {checkpoint.path}")
            check_same(checkpoint.config, settings, directory.path)
            return checkpoint
        if self._unsaved:
            raise RunDirectoryError(
                f"Nothing was saved of the run in {directory.path}, and this model is no longer what it "
                "began with; make the model and the Trainer anew."
            )
        if recorded is not None:
            check_same(recorded, settings, directory.path)
            if directory.has_history():
                warn_caller(f"Nothing was saved of the run in {directory.path}; it begins again.")
        return None

    def _tell(self, text: str) -> None:
        if any(isinstance(each, ProgressBar) for each in self.callbacks):
            print(text, file=sys.stderr)

    def _leave_out(self, data: TrainingData) -> tuple[Skipped, ...]:
        """Leave out of the data what cannot be decoded, if that is wanted."""
        every: tuple[Skipped, ...] = ()
        if self.on_error == "skip":
            check_on_error("Trainer", self.on_error, data.train_part)
            assert data.train_part is not None
            data.train, every = usable(data.train_part, on_error="skip", workers=self.workers)
            if data.val is not None:
                check_on_error("Trainer", self.on_error, data.val_part)
                assert data.val_part is not None
                data.val, skipped = usable(data.val_part, on_error="skip", workers=self.workers)
                every += skipped
        return every

    def _as_it_ended(
        self,
        directory: RunDirectory,
        recorded: dict[str, Any],
        resume: bool | Path,
        settings: dict[str, Any],
    ) -> History:
        """Put the model where a finished run left it."""
        if not isinstance(resume, bool):
            raise RunDirectoryError(
                f"The run in {directory.path} is over; give resume=True, or choose a new run directory."
            )
        check_same(recorded, settings, directory.path)
        self._tell(f"the run in {directory.path} is over")
        load_model(directory.path, into=self.model)
        self.execution.place(self.model)
        self.history = History(directory.read_history())
        return self.history

    def _run(
        self,
        data: TrainingData,
        settings: dict[str, Any],
        record: dict[str, Any],
        epochs: int | None,
        recorded: dict[str, Any] | None,
    ) -> Run:
        """Fill in what is left open, or take it from the record of the run that is resumed."""
        if recorded is None:
            phases = resolve_phases(self.phases, self.model, data, epochs=epochs, named=self._named)
            data.batch_size = resolve_batch_size(self.batch_size, phases, self.model, data, self.execution)
        else:
            phases = recorded_phases(recorded, self.phases)
            data.batch_size = recorded["batch_size"]
        # Pixels are kept where a later phase goes through the images again.
        data.keep = any(phase.train != "head" for phase in phases)
        config = self._config(phases, data, record)
        return Run(
            self.model,
            phases,
            self.phases,
            data,
            self.execution,
            lambda phase: self._augmentation_of(phase, data),
            self.callbacks,
            self.seed,
            config | {"settings": settings},
            self._run_directory,
            self.adapt_batch_norm,
        )

    def _augmentation_of(self, phase: Phase, data: TrainingData) -> Augmentation | None:
        """Return how the images of a phase vary, or ``None`` where they are plain."""
        if data.train_part is None or (phase.head_only and phase.views == 1):
            return None
        if self._augmentation is not None:
            chosen = self._augmentation
        elif phase.augmentation is not None:
            chosen = resolve_augmentation(phase.augmentation, self._preprocessing)
        elif phase.views > 1:
            chosen = resolve_augmentation("light", self._preprocessing)
        else:
            return None
        return None if chosen.name == "none" else chosen

    def _config(self, phases: Sequence[Phase], data: TrainingData, record: dict[str, Any]) -> dict[str, Any]:
        spec = find_spec(self.model)
        parts = {"train": data.train_part, "val": data.val_part}
        return {
            "recipe": self.recipe,
            "phases": [phase.to_dict() for phase in phases],
            "augmentation": None if self._augmentation is None else self._augmentation.name,
            "batch_size": data.batch_size,
            "seed": self.seed,
            "workers": self.workers,
            "execution": self.execution.to_dict(),
            "batch_norm": None,
            "decisions": [],
            "model": None if spec is None else spec_to_dict(spec),
            "data": record,
            "parts": {
                name: {"images": len(part), "fingerprint": part.fingerprint(), "ids": list(part.ids)}
                for name, part in parts.items()
                if part is not None
            },
            "versions": versions(),
        }
