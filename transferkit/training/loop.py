"""The loop of a phase: ``run_phase`` → ``run_epoch`` → ``train_step``."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from itertools import count, islice
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LRScheduler

from transferkit.classification import CrossEntropy
from transferkit.errors import NonFiniteError
from transferkit.evaluation.scoring import collect_logits
from transferkit.loading.batches import Batch, BatchSource
from transferkit.runtime import Execution
from transferkit.seeding import stream
from transferkit.training.activations import computed_again
from transferkit.training.averaging import AveragedWeights
from transferkit.training.callbacks import Callback
from transferkit.training.compiled_steps import CompiledSteps
from transferkit.training.keeping import Keeper
from transferkit.training.mixing import Mixing
from transferkit.training.norm_folding import NormFolding
from transferkit.training.phases import Phase
from transferkit.training.run_state import Progress, random_state, restore_random_state
from transferkit.training.schedules import after_validation
from transferkit.training.steps import StepResult, train_step

T = TypeVar("T")

# A scaler halves its factor, 65536 at first, with each overflow; below this it is overflow alone.
_SMALLEST_SCALE = 1e-4


@dataclass(frozen=True)
class PhaseTools:
    """What one phase trains with.

    Attributes:
        module: What takes the batches: the model, or its trainable suffix on stored features.
        train: The training batches.
        val: The validation batches, if there are any.
        optimizer: Holds the parameters that train.
        scheduler: Stepped after each step of the optimizer.
        criterion: From logits and targets to the mean loss.
        execution: Device and precision.
        scaler: Scales the loss where the precision is float16.
        names: What errors call the training samples; ``None`` stands for their positions.
        averages: Averages of the weights, which are what is validated, if they are kept.
        mixing: Mixes the images of each batch, if they are to be mixed.
        blocks: Modules whose activations are computed again in the backward pass.
        folding: Folds frozen batch norm in the training steps, if any is to be folded.
        forward: What runs the module in the training steps; ``None`` stands for the module itself.
    """

    module: nn.Module
    train: BatchSource
    val: BatchSource | None
    optimizer: torch.optim.Optimizer
    scheduler: LRScheduler
    criterion: Callable[[Tensor, Tensor], Tensor]
    execution: Execution
    scaler: torch.amp.GradScaler | None = None
    names: Sequence[str] | None = None
    averages: AveragedWeights | None = None
    mixing: Mixing | None = None
    blocks: Sequence[nn.Module] = ()
    folding: NormFolding | None = None
    forward: CompiledSteps | None = None


def steps_of(source: BatchSource, phase: Phase) -> int:
    """Return the number of optimizer steps in an epoch."""
    return -(-len(source) // phase.accumulate)


def run_phase(
    phase: Phase,
    tools: PhaseTools,
    *,
    first_epoch: int,
    seed: int,
    callbacks: Sequence[Callback],
    finish_epoch: Callable[[dict[str, Any]], bool],
    progress: Progress | None = None,
    keeper: Keeper | None = None,
) -> None:
    """Train for the epochs of a phase, or until its patience is over.

    Args:
        phase: Its epochs, accumulation, clipping and patience are used.
        tools: What it trains with.
        first_epoch: Number of the first epoch, counted over the run from 1.
        seed: What the random numbers of every step follow from.
        callbacks: Told of epochs and steps.
        finish_epoch: Takes the row of an epoch, completes and records it, and returns whether
            the epoch gave the best weights so far.
        progress: Where an interrupted phase goes on; ``None`` begins with the first epoch.
        keeper: Told after each update and epoch how far the run is, so that it can be saved there.
    """
    progress = Progress(first_epoch) if progress is None else progress
    keeper = Keeper() if keeper is None else keeper
    while progress.epoch < first_epoch + phase.epochs:
        if phase.patience is not None and progress.waited >= phase.patience:
            break
        started = time.perf_counter()
        row = run_epoch(
            phase,
            tools,
            epoch=progress.epoch,
            seed=seed,
            callbacks=callbacks,
            progress=progress,
            keeper=keeper,
        )
        row = {"epoch": progress.epoch, "lr": progress.lr} | row
        # What is validated is also what is kept if it is the best.
        with nullcontext() if tools.averages is None else tools.averages.in_place():
            with keeper.interruptible():
                row |= _validated(tools, epoch=progress.epoch, seed=seed)
            row["seconds"] = time.perf_counter() - started
            better = finish_epoch(row)
        after_validation(tools.scheduler, row["val_loss"])
        waited = 0 if better or row["val_loss"] is None else progress.waited + 1
        progress = Progress(progress.epoch + 1, waited=waited)
        keeper.reached(progress)


def run_epoch(
    phase: Phase,
    tools: PhaseTools,
    *,
    epoch: int,
    seed: int,
    callbacks: Sequence[Callback] = (),
    progress: Progress | None = None,
    keeper: Keeper | None = None,
) -> dict[str, Any]:
    """Train on every batch once.

    Args:
        phase: Its accumulation and clipping are used.
        tools: What it trains with.
        epoch: Its number, counted over the run from 1.
        seed: What the random numbers of every step follow from.
        callbacks: Told of the epoch and its steps.
        progress: Where an interrupted epoch goes on; it is brought up to date after each update.
        keeper: Told of that.

    Returns:
        ``train_loss``, ``train_accuracy`` and ``images_per_second`` of the epoch.

    Raises:
        NonFiniteError: A loss or gradient is NaN or infinite; the message names phase, epoch, step
            and samples. No update was made from that step on, though on an accelerator the epoch
            is over before it is noticed.
    """
    progress = Progress(epoch) if progress is None else progress
    keeper = Keeper() if keeper is None else keeper
    for callback in callbacks:
        callback.epoch_start(epoch, tools.train.samples(), len(tools.train))
        if progress.updates:
            callback.epoch_resumed(progress.updates * phase.accumulate)
    started = time.perf_counter()
    device = torch.device(tools.execution.device)
    # Nothing of this is read before the epoch is over, because reading waits for an accelerator.
    progress.begin(device, lr=max(group["lr"] for group in tools.optimizer.param_groups))
    seen = progress.count
    watch = None
    if _reading_waits(device) and _is_fused(tools.optimizer):
        watch = _Watch(device, phase, tools, progress)
    tools.module.train()
    if tools.folding is not None:
        tools.folding.refresh()
    # Dropout draws from a stream of its own for each step, and the caller's state is left alone.
    with _own_random_state(device), computed_again(tools.blocks):
        for update, batches in _updates(phase, tools, progress, seed):
            if tools.folding is not None:
                tools.folding.check(batches[0].inputs)
            for result in _update(phase, tools, batches, epoch, update, watch):
                progress.add(result)
                for callback in callbacks:
                    callback.step_end(result)
            tools.scheduler.step()
            if tools.averages is not None:
                tools.averages.update()
            progress.updates = update + 1
            keeper.reached(progress, None if watch is None else watch.report)
    if watch is not None:
        watch.report()
    if tools.scaler is not None and tools.scaler.get_scale() < _SMALLEST_SCALE:
        raise NonFiniteError(
            f"The gradients overflow float16 in epoch {epoch}, however small the loss is scaled; "
            "lower the learning rate, or train with precision='fp32'."
        )
    # A resumed epoch may have had its last update before.
    speed = (progress.count - seen) / (time.perf_counter() - started) if progress.count > seen else None
    return {**progress.means(), "images_per_second": speed}


def _reading_waits(device: torch.device) -> bool:
    return device.type != "cpu"


def _is_fused(optimizer: torch.optim.Optimizer) -> bool:
    return all(group.get("fused") for group in optimizer.param_groups)


def _generators(device: torch.device) -> list[torch.Generator]:
    """Return what random numbers come from; torch.manual_seed would prepare those of every device."""
    generators = [torch.default_generator]
    if device.type == "cuda":
        index = torch.cuda.current_device() if device.index is None else device.index
        generators.append(torch.cuda.default_generators[index])
    return generators


def _updates(
    phase: Phase, tools: PhaseTools, progress: Progress, seed: int
) -> Iterator[tuple[int, list[Batch]]]:
    """Yield the number and the batches of every update that is left in an epoch.

    torch's random numbers are seeded before the batches are made, which a data set of the user's own
    may use, and again before they are yielded: those of an update depend on none before it.
    """
    source, epoch = tools.train, progress.epoch
    if progress.random:
        restore_random_state(progress.random, *loaders_of(tools))
    else:
        progress.random = random_state_of(tools)
    generators = _generators(torch.device(tools.execution.device))
    data_seed, step_seed = (int(stream(seed, use, epoch).integers(2**62)) for use in ("data", "step"))
    first = 0 if source.replayed else progress.updates
    groups = _grouped(source.epoch(epoch, first * phase.accumulate), phase.accumulate)
    for update in count(first):
        _seed(generators, data_seed + update)
        batches = next(groups, None)
        if batches is None:
            return
        if update >= progress.updates:
            _seed(generators, step_seed + update)
            yield update, batches


def random_state_of(tools: PhaseTools) -> dict[str, Any]:
    """Return the states of what data of the user's own may draw from; empty where there is no such data."""
    sources = [source for source in (tools.train, tools.val) if source is not None]
    return random_state(*loaders_of(tools)) if any(source.replayed for source in sources) else {}


def loaders_of(tools: PhaseTools) -> list[object]:
    """Return the loaders behind the batches of a phase."""
    return [getattr(source, "loader", None) for source in (tools.train, tools.val)]


def _own_random_state(device: torch.device) -> AbstractContextManager[None]:
    """Leave the caller's torch generators alone."""
    return torch.random.fork_rng(devices=[device] if device.type == "cuda" else [])


def _validated(tools: PhaseTools, *, epoch: int, seed: int) -> dict[str, Any]:
    """Validate, with random numbers that follow from the seed, which data of the user's own may use."""
    device = torch.device(tools.execution.device)
    with _own_random_state(device):
        _seed(_generators(device), int(stream(seed, "validation", epoch).integers(2**62)))
        return validate(tools)


def _seed(generators: Iterable[torch.Generator], seed: int) -> None:
    for generator in generators:
        generator.manual_seed(seed)


def _update(
    phase: Phase, tools: PhaseTools, batches: list[Batch], epoch: int, update: int, watch: _Watch | None
) -> Iterator[StepResult]:
    """Add up the gradients of some batches, each by its share of the images, and step once."""
    total = sum(len(batch.targets) for batch in batches)
    for number, batch in enumerate(batches):
        criterion = tools.criterion
        if tools.mixing is not None:
            batch, criterion = tools.mixing(batch, criterion)
        try:
            with nullcontext() if tools.folding is None else tools.folding.active():
                result = train_step(
                    tools.forward or tools.module,
                    batch,
                    tools.optimizer,
                    criterion=criterion,
                    execution=tools.execution,
                    clip_norm=phase.clip_norm,
                    weight=len(batch.targets) / total,
                    update=number == len(batches) - 1,
                    scaler=tools.scaler,
                    failed=None if watch is None else watch.failed,
                )
            yield result
        except NonFiniteError as error:
            raise NonFiniteError(f"{error} {_where(phase, tools, epoch, update, batch.indices)}") from None
    if watch is not None:
        watch.after_update(batches)


class _Watch:
    """Notices on the device the first update that is left out because something is not finite.

    It is read once an epoch. From that update on all are left out, so that nothing is lost by waiting.
    """

    def __init__(self, device: torch.device, phase: Phase, tools: PhaseTools, progress: Progress) -> None:
        self._phase, self._tools = phase, tools
        self._epoch, self._first = progress.epoch, progress.updates
        self.failed = torch.zeros((), device=device)
        self._updates = torch.zeros((), device=device)
        self._indices: list[npt.NDArray[np.int64]] = []

    def after_update(self, batches: list[Batch]) -> None:
        self._updates.add_(1 - self.failed)
        self._indices.append(np.concatenate([batch.indices for batch in batches]))

    def report(self) -> None:
        if self.failed:
            update = int(self._updates)
            raise NonFiniteError(
                "The loss or a gradient is not finite; lower the learning rate or look at the inputs. "
                + _where(self._phase, self._tools, self._epoch, self._first + update, self._indices[update])
            )


def _where(phase: Phase, tools: PhaseTools, epoch: int, update: int, indices: npt.NDArray[np.int64]) -> str:
    names = tools.names
    samples = ", ".join(str(index) if names is None else names[index] for index in indices[:16])
    if len(indices) > 16:
        samples += f" and {len(indices) - 16} more"
    where = f"the phase that trains {phase.to_dict()['train']!r}, epoch {epoch}, step {update + 1}"
    return f"It was met in {where}, samples {samples}."


def _grouped(batches: Iterator[T], size: int) -> Iterator[list[T]]:
    while group := list(islice(batches, size)):
        yield group


def validate(tools: PhaseTools) -> dict[str, Any]:
    """Return ``val_loss`` (log loss) and ``val_accuracy``; both ``None`` without validation batches.

    Raises:
        NonFiniteError: The log loss is NaN or infinite.
    """
    if tools.val is None:
        return {"val_loss": None, "val_accuracy": None}
    logits, targets = collect_logits(tools.module, tools.val, tools.execution)
    loss = float(CrossEntropy()(logits, targets))
    if not math.isfinite(loss):
        raise NonFiniteError(f"The log loss of the validation part is {loss}; lower the learning rate.")
    return {
        "val_loss": loss,
        "val_accuracy": float((logits.argmax(dim=1) == targets).double().mean()),
    }
