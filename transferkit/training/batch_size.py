"""The largest batch that fits: found from memory alone, without timing, and without changing the model."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, UntypedStorage, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.nn import functional as F
from torch.nn.modules.module import register_module_forward_hook

from transferkit.checks import check_int
from transferkit.classification import loss_of
from transferkit.errors import ArgumentError
from transferkit.loading.memory import available_memory, is_out_of_memory
from transferkit.modes import modes_kept
from transferkit.runtime import Execution

# Beyond this, batches hardly gain speed, and learning rates that fit batches of 64 fit no longer.
_MOST_IMAGES = 512
# An epoch of fewer steps than this would leave a schedule nothing to work with ...
_FEWEST_STEPS = 8
# ... but batches of up to this size are not made smaller for its sake.
_SMALL_BATCH = 8
# Gradients take as much again as what autograd keeps; of what is frozen, two outputs are there at once.
_AT_ONCE = 2
# Adam keeps two numbers beside each parameter.
_OPTIMIZER_STATES = 2
# What cuDNN says where none of its kernels finds the memory that it needs.
_NO_ENGINE = "unable to find an engine to execute"
# Share of a CUDA device that is left to batches on their way, augmentation and gaps between tensors.
_SPARE = 0.1


def largest_batch_size(
    model: nn.Module, sample_shape: tuple[int, ...], execution: Execution, *, images: int
) -> int:
    """Return the largest power of two that fits into memory while a model trains.

    At most 512, and at most an eighth of the images, so that an epoch has eight steps; from 8
    down that eighth plays no role. On CUDA batches that double in size go forward and backward
    until the memory is exhausted. On the CPU what autograd keeps for an image is measured, and
    twice that for the whole batch fits in half of the memory that is available.

    Args:
        model: On the execution's device and frozen as in the phase that needs most memory; its
            weights, buffers, gradients and modes, and the random state, stay as they are.
        sample_shape: Shape of an input without the batch, such as ``(3, 224, 224)``.
        execution: How it trains.
        images: Number of training images.

    Raises:
        ArgumentError: Not even one image fits.

    >>> model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(144, 2))
    >>> execution = Execution("cpu", "fp32", channels_last=False)
    >>> largest_batch_size(model, (3, 8, 8), execution, images=100)
    8
    """
    check_int("largest_batch_size", "images", images, 1)
    most = min(_MOST_IMAGES, max(images // _FEWEST_STEPS, min(_SMALL_BATCH, images)))
    with _left_as_it_is(model, execution):
        if torch.device(execution.device).type == "cuda":
            spare = int(_SPARE * torch.cuda.mem_get_info(execution.device)[1])
            fitting = largest_that_passes(
                lambda size: _go_through(model, sample_shape, size, execution, spare=spare), most
            )
            # What the attempts leave in torch's own pool would be in the way of others.
            torch.cuda.empty_cache()
        else:
            fitting = min(most, _images_that_fit(model, sample_shape, execution))
    if fitting == 0:
        shape = " x ".join(str(side) for side in sample_shape)
        raise ArgumentError(
            f"Not even one image of {shape} fits into the memory of {execution.device} while this "
            f"{type(model).__name__} trains; take a smaller 'image_size' or another device, or freeze more."
        )
    return 1 << (fitting.bit_length() - 1)


def largest_that_passes(attempt: Callable[[int], None], most: int) -> int:
    """Return the largest power of two, up to ``most``, that does not exhaust the memory; 0 if none.

    Args:
        attempt: Given a size, raises ``torch.OutOfMemoryError`` or the like if that is too large.
        most: The largest size to try.
    """

    def passes(size: int, *, smaller_ones_pass: bool = False) -> bool:
        try:
            attempt(size)
        except RuntimeError as error:
            if not (is_out_of_memory(error) or (smaller_ones_pass and _NO_ENGINE in str(error))):
                raise
            return False
        return True

    # Batch norm may refuse a single image, so one is tried only where two are too many.
    size = min(2, most)
    if not passes(size):
        return 1 if size == 2 and passes(1) else 0
    while 2 * size <= most and passes(2 * size, smaller_ones_pass=True):
        size *= 2
    return size


def _go_through(
    model: nn.Module, sample_shape: tuple[int, ...], size: int, execution: Execution, *, spare: int = 0
) -> None:
    """Go forward and backward with a batch, beside what an optimizer takes and ``spare`` bytes more."""
    beside = [torch.empty(spare, dtype=torch.uint8, device=execution.device)]
    for parameter in model.parameters():
        if parameter.requires_grad:
            beside += [torch.empty_like(parameter) for _ in range(_OPTIMIZER_STATES)]
    try:
        _loss(model, sample_shape, size, execution).backward()  # type: ignore[no-untyped-call]  # reason: torch has no types there
    finally:
        model.zero_grad(set_to_none=True)


def _loss(model: nn.Module, sample_shape: tuple[int, ...], size: int, execution: Execution) -> Tensor:
    device = execution.device
    inputs = torch.rand(size, *sample_shape, device=device)
    if inputs.ndim == 4:
        inputs = inputs.to(memory_format=execution.memory_format)
    with execution.autocast():
        output = model(inputs)
    return loss_of(output, torch.zeros(size, dtype=torch.int64, device=device), F.cross_entropy)


def _images_that_fit(model: nn.Module, sample_shape: tuple[int, ...], execution: Execution) -> int:
    """Return how many images fit in half of the memory that is available."""
    two, four = (_kept_bytes(model, sample_shape, size, execution) for size in (2, 4))
    each = max(1, (four - two) // 2)
    fixed = max(0, two - 2 * each)
    return max(0, (available_memory() // 2 // _AT_ONCE - fixed) // each)


def _kept_bytes(model: nn.Module, sample_shape: tuple[int, ...], size: int, execution: Execution) -> int:
    """Return the bytes that autograd keeps of a forward pass, or a module's output if that is larger."""
    own = {each.untyped_storage().data_ptr() for each in (*model.parameters(), *model.buffers())}
    kept: dict[int, UntypedStorage] = {}
    largest = 0

    def keep(saved: Tensor) -> None:
        storage = saved.untyped_storage()
        if storage.data_ptr() not in own:
            # Keeping the storage keeps its address from being given to another.
            kept[storage.data_ptr()] = storage

    def look(module: nn.Module, inputs: Any, output: Any) -> None:
        nonlocal largest
        if isinstance(output, Tensor):
            largest = max(largest, output.nbytes)

    handle = register_module_forward_hook(look)
    try:
        with saved_tensors_hooks(keep, lambda nothing: nothing):
            _loss(model, sample_shape, size, execution)
    finally:
        handle.remove()
    return max(sum(storage.nbytes() for storage in kept.values()), largest)


@contextmanager
def _left_as_it_is(model: nn.Module, execution: Execution) -> Iterator[None]:
    """Put a model into training mode, and give it and the random state back as they were."""
    device = torch.device(execution.device)
    buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]
    gradients = [(parameter, parameter.grad) for parameter in model.parameters()]
    with modes_kept(model), torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        try:
            model.zero_grad(set_to_none=True)
            model.train()
            yield
        finally:
            with torch.no_grad():
                for buffer, before in buffers:
                    buffer.copy_(before)
            for parameter, gradient in gradients:
                parameter.grad = gradient
