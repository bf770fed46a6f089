"""One run: its phases in turn, over a model and data, saved where it was asked for."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from transferkit.augmentations import Augmentation
from transferkit.backbones.spec import find_spec, unwrapped
from transferkit.batch_norm import measured_norms
from transferkit.checks import require
from transferkit.classification import CrossEntropy, class_weights_of
from transferkit.datasets.base import Part
from transferkit.errors import ArgumentError, CheckpointCorruptError, DataError, DeviceMemoryError
from transferkit.inference import small_execution
from transferkit.loading.memory import is_out_of_memory
from transferkit.param_groups import parameter_groups
from transferkit.runtime import Execution
from transferkit.training.activations import blocks_of
from transferkit.training.averaging import AveragedWeights
from transferkit.training.batch_size import largest_batch_size
from transferkit.training.best import BestWeights
from transferkit.training.callbacks import Callback
from transferkit.training.checkpoint_files import Checkpoint, CheckpointFolder
from transferkit.training.compiled_steps import CompiledSteps, compiles_steps, released_at_the_end
from transferkit.training.data import TrainingData
from transferkit.training.freeze_plan import apply_plan
from transferkit.training.history import History
from transferkit.training.keeping import Checkpoints, Interrupted, Interrupts, Keeper, RunKeeper
from transferkit.training.linear_phase import fit_head, why_not_linear, why_not_solved
from transferkit.training.loop import PhaseTools, random_state_of, run_phase, steps_of
from transferkit.training.mixing import Mixing
from transferkit.training.norm_folding import NormFolding
from transferkit.training.norm_statistics import measure_statistics, suit_statistics
from transferkit.training.optimizers import build_optimizer
from transferkit.training.phase_batches import PhaseBatches, phase_batches
from transferkit.training.phases import Phase, epochs_of
from transferkit.training.run_directory import RunDirectory
from transferkit.training.run_state import (
    Progress,
    copy_of,
    optimizer_tensors,
    packed,
    put_back,
    random_state,
    restore_optimizer,
    restore_random_state,
    unpacked,
)
from transferkit.training.schedules import build_scheduler
from transferkit.training.settings import RESUMED


@dataclass
class Run:
    """What one ``fit`` works on, and how far it is.

    Attributes:
        model: Trained in place; it is on the execution's device.
        phases: With all rates and epochs filled in.
        asked: The phases as they were asked for.
        data: Training and validation data.
        execution: How the model runs.
        augmentation_of: Returns how the images of a phase vary.
        callbacks: Told of phases, epochs and steps.
        seed: What all random numbers follow from.
        config: What ``config.json`` holds; decisions are added to it.
        directory: Where it is written, if anywhere.
        adapts: Whether batch norm's statistics are measured anew at the beginning; ``"auto"`` stands for
            where a head trains first and they are foreign to the images.
        history: The rows so far.
        phase: Number of the phase that is next, or under way.
    """

    model: nn.Module
    phases: list[Phase]
    asked: Sequence[Phase]
    data: TrainingData
    execution: Execution
    augmentation_of: Callable[[Phase], Augmentation | None]
    callbacks: Sequence[Callback]
    seed: int
    config: dict[str, Any]
    directory: RunDirectory | None
    adapts: bool | str = False
    history: History = field(default_factory=History)

    def __post_init__(self) -> None:
        self._best = BestWeights()
        self._keeper: Keeper = Keeper()
        self.phase = 0
        self._tools: PhaseTools | None = None
        self._resumed: Checkpoint | None = None
        for phase in self.phases:
            _check_possible(phase, self.model, self.data)
        if self.adapts is True:
            _check_adapts(self.model, self.data)

    def restore(self, checkpoint: Checkpoint) -> None:
        """Put model, best weights, history and place in the run where a checkpoint has them.

        Raises:
            CheckpointCorruptError: The checkpoint is not of such a run.
            ResumeMismatchError: It is of another model.
        """
        state = checkpoint.state
        try:
            put_back(self.model.state_dict(), unpacked(checkpoint.tensors, "model."), what="model")
            if state["best"] is not None:
                self._best.put(state["best"], copy_of(self.model, checkpoint.best))
            for row in state["history"]:
                self.history.append(row)
            self.phase = int(state["phase"])
            self.config["decisions"] = checkpoint.config["decisions"][: self.phase]
            self.config["batch_norm"] = checkpoint.config["batch_norm"]
        except (KeyError, TypeError, ValueError) as error:
            raise CheckpointCorruptError(
                f"The checkpoint {checkpoint.path} is damaged: {error!r}."
            ) from error
        self._resumed = None if state["progress"] is None else checkpoint
        if "random" in state:
            restore_random_state(state["random"], self.data.train, self.data.val)

    def go(self, checkpoints: Checkpoints) -> None:
        """Run the phases that are left; with a run directory, so that they can be resumed."""
        if self.directory is None:
            self._run_phases()
            return
        self._folder = CheckpointFolder(self.directory.checkpoints, checkpoints.keep)
        # Weights twice, since the best are kept, and about twice again for the optimizer.
        size = 4 * sum(value.nbytes for value in self.model.state_dict().values())
        with Interrupts() as interrupts:
            keeper = self._keeper = RunKeeper(checkpoints, interrupts, self._save, size=size)
            try:
                self._run_phases()
            except Interrupted:
                keeper.interrupted()

    def _run_phases(self) -> None:
        for number in range(self.phase, len(self.phases)):
            self.phase = number
            self._run_phase(number)
            self._best.restore(self.model)
            self._tools = None
            self.phase = number + 1
            self._keeper.phase_over()

    def _run_phase(self, number: int) -> None:
        """Freeze what the phase freezes, then build what it trains with, then train: in this order."""
        phase, execution = self.phases[number], self.execution
        apply_plan(self.model, phase)
        with self._keeper.interruptible():
            if number == 0 and self._resumed is None:
                self.config["batch_norm"] = self._adapt(phase)
            batches = phase_batches(self.model, phase, self.data, execution, self.augmentation_of(phase))
        if number == 0 and self.config["batch_norm"] is not None:
            batches = dataclasses.replace(batches, how=f"{batches.how}; {self.config['batch_norm']}")
        phase, batches = self._solved_or_by_steps(number, batches)
        tools = self._build_tools(phase, batches)
        self._announce(number, phase, tools, batches.how)
        for callback in self.callbacks:
            callback.phase_ready(self.model, tools)
        progress = Progress(1 + epochs_of(self.phases[:number]))
        if self._resumed is not None:
            progress = self._resume_tools(tools, self._resumed)
            self._resumed = None
        self._tools = tools
        with tools.execution.arithmetic(), released_at_the_end(tools.forward):
            if phase.solver == "lbfgs":
                row: dict[str, Any] = {"epoch": epochs_of(self.phases[:number])}
                with self._keeper.interruptible():
                    row |= fit_head(self.model, batches, self.data, phase, seed=self.seed)
                self._finish_epoch(row)
            else:
                self._train(phase, tools, progress)

    def _adapt(self, phase: Phase) -> str | None:
        """Measure batch norm's statistics anew, if that is asked for or they are foreign to the images."""
        part = self.data.train_part
        if part is None or not self.adapts:
            return None
        how: dict[str, Any] = {"seed": self.seed, "workers": self.data.workers}
        if self.adapts is True:
            return measure_statistics(self.model, part, self.execution, **how)
        suits = phase.head_only and find_spec(self.model) is not None
        return suit_statistics(self.model, part, self.execution, **how) if suits else None

    def _solved_or_by_steps(self, number: int, batches: PhaseBatches) -> tuple[Phase, PhaseBatches]:
        """Let a phase that no solver can fit train by steps, and say why."""
        phase = self.phases[number]
        reason = why_not_linear(self.model, batches) if phase.solver == "lbfgs" else None
        if phase.solver != self.asked[number].solver:
            reason = why_not_solved(self.model, self.data) or "epochs were given"
        if reason is not None:
            phase = self.phases[number] = dataclasses.replace(phase, solver="sgd")
            self.config["phases"][number] = phase.to_dict()
            batches = dataclasses.replace(batches, how=f"{batches.how}; by steps, because {reason}")
        return phase, batches

    def _announce(self, number: int, phase: Phase, tools: PhaseTools, how: str) -> None:
        groups = tools.optimizer.param_groups
        trainable = sum(parameter.numel() for group in groups for parameter in group["params"])
        by = f"{phase.optimizer}, lr {phase.lr:g}, batches of {self.data.batch_size}"
        by = "L-BFGS" if phase.solver == "lbfgs" else by
        note = f"train {phase.train} ({trainable:,} parameters, {by}) {how}"
        self.config["decisions"].append(note)
        if self.directory is not None:
            self.directory.write_config(self.config)
        for callback in self.callbacks:
            callback.phase_start(number, phase, note)

    def _train(self, phase: Phase, tools: PhaseTools, progress: Progress) -> None:
        try:
            run_phase(
                phase,
                tools,
                first_epoch=1 + epochs_of(self.phases[: self.phase]),
                seed=self.seed,
                callbacks=self.callbacks,
                finish_epoch=self._finish_epoch,
                progress=progress,
                keeper=self._keeper,
            )
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            reason = str(error).splitlines()[0].rstrip(".")
        else:
            if tools.averages is not None:
                tools.averages.leave_in_place()
            return
        # Only here is the failed step's own memory free again.
        raise DeviceMemoryError(self._memory_advice(reason))

    def _memory_advice(self, reason: str) -> str:
        """Say what batch size fits."""
        spec, part, size = find_spec(self.model), self.data.train_part, self.data.batch_size
        self._tools = None
        advice = "take smaller batches"
        if spec is not None and part is not None:
            side = spec.preprocessing.size
            fits = largest_batch_size(self.model, (3, side, side), self.execution, images=len(part))
            advice = f"batch_size={min(fits, max(1, size // 2))} fits"
        return (
            f"A batch of {size} images does not fit in the memory of {self.execution.device}; "
            f"{advice} ({reason})."
        )

    def _finish_epoch(self, row: dict[str, Any]) -> bool:
        """Record an epoch, or a solver's fit; return whether it gave the best weights so far."""
        better = False
        if row["val_loss"] is not None:
            better = self._best.consider(self.model, accuracy=row["val_accuracy"], loss=row["val_loss"])
        train = str(self.phases[self.phase].train)
        row |= {"phase": self.phase, "train": train, "best": better, "epochs": epochs_of(self.phases)}
        self.history.append(row)
        if self.directory is not None:
            self.directory.append_history(row)
        for callback in self.callbacks:
            callback.epoch_end(dict(row))
        return better

    def _build_tools(self, phase: Phase, batches: PhaseBatches) -> PhaseTools:
        assert phase.lr is not None  # with_default_rates has set it
        groups = parameter_groups(
            self.model,
            lr=phase.lr,
            head_lr=phase.head_lr,
            layer_decay=phase.layer_decay,
            weight_decay=phase.weight_decay,
        )
        optimizer = build_optimizer(phase, groups)
        # Gradients that a loop of the user's own, or an interrupted fit, has left are no part of this run.
        optimizer.zero_grad(set_to_none=True)
        part, weights = self.data.train_part, None
        if phase.class_weights is not None:
            if part is None:
                raise DataError("Class weights need a part or data set whose targets are known.")
            weights = class_weights_of(phase.class_weights, part.targets, len(part.classes))
        execution, module = self.execution, batches.module
        # Rows of a lower precision need the autocast under which they were made.
        if batches.features is not None and batches.features.dtype == torch.float32:
            execution = small_execution(module, tuple(batches.features.shape[1:]), execution)
        compiled = self._compiled_steps(phase, batches)
        kind = torch.device(execution.device).type
        return PhaseTools(
            module,
            batches.train,
            batches.val,
            optimizer,
            build_scheduler(optimizer, phase, steps_of(batches.train, phase)),
            CrossEntropy(phase.label_smoothing, weights).to(execution.device),
            execution,
            torch.amp.GradScaler(kind) if execution.precision == "fp16" else None,
            None if part is None else part.ids,
            averages=AveragedWeights(self.model, phase.ema) if phase.ema else None,
            mixing=Mixing(phase.mix, phase.mix_alpha) if phase.mix is not None else None,
            blocks=blocks_of(self.model) if phase.checkpoint_activations else (),
            # A compiler fuses batch norm with what is around it by itself.
            folding=NormFolding(module, execution) if compiled is None else None,
            forward=compiled,
        )

    def _compiled_steps(self, phase: Phase, batches: PhaseBatches) -> CompiledSteps | None:
        """Return the compiled model, where its steps are compiled."""
        if phase.checkpoint_activations or batches.module is not self.model:
            return None
        samples = batches.train.samples()
        images = None if samples is None else phase.epochs * samples
        if not compiles_steps(self.model, self.execution, images):
            return None
        # A loader has a batch size of its own.
        batch_size = None if self.data.train_part is None else self.data.batch_size
        return CompiledSteps(self.model, batch_size, graphs=phase.accumulate == 1)

    def _save(self, progress: Progress | None) -> str:
        """Write a checkpoint of a place in the present phase, or before it."""
        tools = self._tools
        tensors = packed(self.model.state_dict(), "model.")
        state: dict[str, Any] = {
            "phase": self.phase,
            "progress": None if progress is None else progress.to_dict(),
            "config": {name: self.config[name] for name in RESUMED},
            "best": self._best.rank,
            "history": list(self.history),
        }
        if progress is not None and tools is not None:
            if not progress.random:
                # The epoch has not begun, and will with what the generators give now.
                state["progress"]["random"] = random_state_of(tools)
            tensors |= optimizer_tensors(tools.optimizer, "optimizer.")
            state |= {
                "rates": [group["lr"] for group in tools.optimizer.param_groups],
                "scheduler": tools.scheduler.state_dict(),
                "scaler": None if tools.scaler is None else tools.scaler.state_dict(),
            }
            if tools.averages is not None:
                tensors |= packed(tools.averages.state, "ema.")
                state["averaged"] = tools.averages.updates
        elif not all(
            isinstance(each, Part) and each.fixed for each in (self.data.train, self.data.val) if each
        ):
            state["random"] = random_state(self.data.train, self.data.val)
        return str(self._folder.write(state, tensors, packed(self._best.state, "")))

    def _resume_tools(self, tools: PhaseTools, checkpoint: Checkpoint) -> Progress:
        """Give optimizer, schedule and scaler the state of a checkpoint; return how far its epoch is."""
        state = checkpoint.state
        try:
            restore_optimizer(tools.optimizer, unpacked(checkpoint.tensors, "optimizer."), state["rates"])
            tools.scheduler.load_state_dict(state["scheduler"])
            if tools.scaler is not None:
                tools.scaler.load_state_dict(state["scaler"])
            if tools.averages is not None:
                put_back(tools.averages.state, unpacked(checkpoint.tensors, "ema."), what="averages")
                tools.averages.updates = int(state["averaged"])
            return Progress.from_dict(state["progress"], torch.device(tools.execution.device))
        except (KeyError, TypeError, ValueError) as error:
            raise CheckpointCorruptError(
                f"The checkpoint {checkpoint.path} is damaged: {error!r}."
            ) from error


def _check_possible(phase: Phase, model: nn.Module, data: TrainingData) -> None:
    """Refuse, before any work is done, what a phase asks for and model or data do not have.

    Raises:
        DataError: Something is missing in the data.
        ArgumentError: The model has nothing to checkpoint.
    """
    if phase.schedule == "plateau" and data.val is None:
        raise DataError("The schedule 'plateau' follows the validation loss, so it needs a validation part.")
    if phase.sampling == "balanced" and data.train_part is None:
        raise DataError("Balanced sampling needs a part or data set whose targets are known.")
    if phase.checkpoint_activations and not blocks_of(model):
        raise ArgumentError(
            "The 'checkpoint_activations' parameter of Phase must be False for a model without blocks of "
            f"several layers, such as this {type(unwrapped(model)).__name__}. Got True instead."
        )


def _check_adapts(model: nn.Module, data: TrainingData) -> None:
    """Refuse to measure batch norm anew without batch norm, or images that are prepared for the model."""
    reason = None
    if find_spec(model) is None:
        reason = "a model without a spec"
    elif data.train_part is None:
        reason = "data that is ready for the model"
    elif not measured_norms(model):
        reason = f"a model without batch norm, such as this {type(unwrapped(model)).__name__}"
    require(reason is None, "Trainer", "adapt_batch_norm", f"'auto' or False for {reason}", True)
