"""Training steps through a compiled module, where so much goes through it that compiling pays."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from transferkit.backbones.spec import find_spec
from transferkit.checks import warn_caller
from transferkit.features.frozen_graph import mode_of
from transferkit.inference import pays_to_compile, work_of
from transferkit.runtime import Execution

# Going backward takes twice the operations of going forward, and is compiled too.
_OPERATIONS, _COMPILING = 3, 2


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
    return pays_to_compile(model, operations * _OPERATIONS // _COMPILING, execution)


class CompiledSteps:
    """Runs batches of the usual size through a compiled module, and smaller ones through the module itself.

    Args:
        module: What trains.
        graphs: Whether all kernels of a pass are started at once, as a CUDA graph. Gradients that are
            added up over several passes must outlive each, which those of a graph do not.
    """

    def __init__(self, module: nn.Module, *, graphs: bool) -> None:
        self._module = module
        mode = "reduce-overhead" if graphs else None
        self._compiled: Any = torch.compile(module, dynamic=False, mode=mode)
        self._batch_size = 0
        self._tried = False

    def __call__(self, inputs: Tensor) -> Any:
        """Return what the module returns."""
        # The last batch of an epoch may be smaller, and is not worth another compilation.
        if self._compiled is None or len(inputs) < self._batch_size:
            return self._module(inputs)
        self._batch_size = len(inputs)
        torch.compiler.cudagraph_mark_step_begin()  # type: ignore[no-untyped-call]  # reason: torch's
        if self._tried:
            return self._compiled(inputs)
        self._tried = True
        try:
            return self._compiled(inputs)
        except Exception as error:  # compilers fail in many ways, and none of them is the user's
            self._compiled = None
            lines = str(error).strip().splitlines() or [type(error).__name__]
            warn_caller(f"Training runs uncompiled, and so more slowly than it could: {lines[0][:200]}.")
            return self._module(inputs)
