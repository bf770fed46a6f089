"""Training steps through a compiled module, where so much goes through it that compiling pays."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch._functorch import config

from transferkit.backbones.spec import find_spec
from transferkit.checks import first_line, warn_caller
from transferkit.features.frozen_graph import mode_of
from transferkit.inference import pays_to_compile, work_of
from transferkit.loading.memory import is_out_of_memory
from transferkit.runtime import Execution

# What a step gains by compiling, and what that takes, against going forward alone: three times the
# operations, and two passes to compile.
_GAIN = 3 / 2


def compiles_steps(model: nn.Module, execution: Execution, images: int | None) -> bool:
    """Whether the training steps of a model are compiled.

    On CPUs they never are: compiled steps were measured to be slower there than the kernels of torch.

    Args:
        model: What trains.
        execution: ``compile=True`` compiles on any accelerator, ``"auto"`` where it pays.
        images: How many go through it in all epochs, where that is known.
    """
    if torch.device(execution.device).type == "cpu" or not execution.compile:
        return False
    if execution.compile is True:
        return True
    spec = find_spec(model)
    if spec is None or images is None:
        return False
    with mode_of(model, training=False):
        operations = images * work_of(model, spec.preprocessing.size).operations
    return pays_to_compile(model, round(_GAIN * operations), execution)


class CompiledSteps:
    """Runs batches of one size through a compiled module, and others through the module itself.

    Args:
        module: What trains.
        batch_size: Samples in the batches that are compiled for; ``None`` stands for the first batch's. A
            last batch of another size is not worth another compilation.
        graphs: Whether all kernels of a pass are started at once, as a CUDA graph. Gradients that are
            added up over several passes must outlive each, which those of a graph do not.
    """

    def __init__(self, module: nn.Module, batch_size: int | None, *, graphs: bool) -> None:
        self._module = module
        self._batch_size = batch_size
        mode = "reduce-overhead" if graphs else None
        self._compiled: Any = torch.compile(module, dynamic=False, mode=mode)
        self._tried = False

    def __call__(self, inputs: Tensor) -> Any:
        """Return what the module returns."""
        if self._batch_size is None:
            self._batch_size = len(inputs)
        if self._compiled is None or len(inputs) != self._batch_size:
            return self._module(inputs)
        torch.compiler.cudagraph_mark_step_begin()  # type: ignore[no-untyped-call]  # reason: torch's
        if self._tried:
            return self._compiled(inputs)
        self._tried = True
        try:
            # The pass backward is compiled now too; where it fails later, nobody could go on without.
            with config.patch(force_non_lazy_backward_lowering=True):
                return self._compiled(inputs)
        except Exception as error:  # compilers fail in many ways, and none of them is the user's
            if isinstance(error, RuntimeError) and is_out_of_memory(error):
                raise
            reason = first_line(error)
        self._compiled = None
        warn_caller(f"Training runs uncompiled, and so more slowly than it could: {reason}.")
        return self._module(inputs)


@contextmanager
def released_at_the_end(steps: CompiledSteps | None) -> Iterator[None]:
    """Give up what was compiled, and with it the memory of its graphs; torch does that for all code alone."""
    try:
        yield
    finally:
        if steps is not None:
            torch.compiler.reset()
