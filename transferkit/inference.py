"""The fastest form of a module that does not train: folded, in low precision, packed or compiled."""

from __future__ import annotations

import copy
import dataclasses
import math
import threading
import warnings
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.fx import GraphModule
from torch.nn.modules.batchnorm import _BatchNorm

from transferkit.checks import first_line, warn_caller
from transferkit.classification import logits_of
from transferkit.packing import can_pack, packed
from transferkit.runtime import Execution
from transferkit.tracing import ThreadTracer

# Operations from which folding a whole model saves more than the second that tracing and copying take.
_FOLDING_PAYS = 1e12
# Seconds that compiling saves for each 10^12 floating-point operations, measured on ResNets, and
# seconds that it takes: so many at least, and so many more for each layer with parameters. On a CPU it
# saves nothing over packing, and vision transformers are slower for it.
_SAVED_ON_CUDA = 0.002
_BASE_SECONDS, _SECONDS_PER_LAYER = 4.0, 0.1
# Threads that share a form wait until it is ready. One lock for all, because none can be copied.
_FIRST_CALL = threading.RLock()


@dataclass(frozen=True)
class Form:
    """How a frozen module runs; it changes bits, so it is part of what names stored features.

    Attributes:
        precision: Of weights and images: ``"fp32"``, ``"bf16"`` or ``"fp16"``.
        folded: Whether batch norm is folded into the convolution before it.
        compiled: Whether it is compiled.
        batch_size: Images that go through at once.
        packed: Whether convolutions are laid out for the CPU beforehand; see ``packing``.
    """

    precision: str
    folded: bool
    compiled: bool
    batch_size: int
    packed: bool = False

    @property
    def changes(self) -> bool:
        """Whether anything but the precision differs from the module itself."""
        return self.folded or self.packed or self.compiled

    def __str__(self) -> str:
        words = [
            self.precision,
            *(["folded"] if self.folded else []),
            *(["packed"] if self.packed else []),
            *(["compiled"] if self.compiled else []),
        ]
        return ", ".join(words)


@dataclass(frozen=True)
class Work:
    """What a module does for one image.

    Attributes:
        operations: Floating-point operations, two for each multiplication with its addition.
        shape: Shape of its output, without the batch.
    """

    operations: int
    shape: tuple[int, ...]


def work_of(module: nn.Module, size: int) -> Work:
    """Count what a module does for an image of ``size`` pixels, without computing it.

    >>> work_of(nn.Sequential(nn.Flatten(), nn.Linear(12, 5)), 2)
    Work(operations=120, shape=(5,))
    """
    from torch.utils.flop_counter import FlopCounterMode

    counter = FlopCounterMode(display=False)
    with torch.no_grad(), counter:
        try:
            # A copy without values: another thread may be using the module itself.
            output = _without_values(module)(torch.empty(1, 3, size, size, device="meta"))
        except (RuntimeError, NotImplementedError, TypeError):  # by tensors of its own, which mix devices
            # It is asked with a real image.
            like = next(module.parameters(), torch.empty(0))
            output = module(torch.zeros(1, 3, size, size, device=like.device))
    shape = getattr(getattr(output, "logits", output), "shape", (1,))
    return Work(counter.get_total_flops(), tuple(shape[1:]))


def _without_values(module: nn.Module) -> nn.Module:
    """Return a copy whose parameters and buffers have shapes and no values."""
    empty: dict[int, Any] = {}
    for parameter in module.parameters():
        empty[id(parameter)] = nn.Parameter(parameter.detach().to("meta"), requires_grad=False)
    for buffer in module.buffers():
        empty[id(buffer)] = buffer.to("meta")
    return copy.deepcopy(module, empty)


def pays_to_compile(module: nn.Module, operations: int, execution: Execution) -> bool:
    """Whether compiling saves more time than it takes.

    Args:
        module: What would be compiled.
        operations: Floating-point operations for all images together.
        execution: The device and precision decide what an operation costs.
    """
    saved = _SAVED_ON_CUDA if torch.device(execution.device).type == "cuda" else 0.0
    layers = sum(1 for each in module.modules() if each._parameters)
    seconds = _BASE_SECONDS + _SECONDS_PER_LAYER * layers
    return operations / 1e12 * saved > seconds


def choose_form(module: nn.Module, execution: Execution, *, operations: int, batch_size: int) -> Form:
    """Decide the form of a frozen module from what is known before the first batch.

    Args:
        module: The module.
        execution: What was decided for the run as a whole.
        operations: Floating-point operations for all images together.
        batch_size: Images that go through at once.
    """
    folds = execution.fold and any(isinstance(each, _BatchNorm) for each in module.modules())
    compiles = execution.compile
    if compiles == "auto":
        compiles = pays_to_compile(module, operations, execution)
    # The compiler packs by itself.
    packs = execution.fold and not compiles and execution.precision != "fp16"
    packs = packs and can_pack(module, execution.device)
    return Form(execution.precision, folds, bool(compiles), batch_size, packs)


class FastForward:
    """A module that does not train, in its fastest form; the module itself stays as it is.

    Args:
        module: It is on the execution's device, in inference mode, and keeps its weights from now on.
        form: How it runs.
        execution: Device and memory format.

    Attributes:
        form: How it runs; what of the form that was asked for could not be had is left out.
        notes: Why something could not be had.

    >>> module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten()).eval()
    >>> execution = Execution("cpu", "fp32", channels_last=True)
    >>> forward = FastForward(module, Form("fp32", True, False, 2), execution)
    >>> forward(torch.zeros(2, 3, 8, 8)).shape
    torch.Size([2, 144])
    """

    def __init__(self, module: nn.Module, form: Form, execution: Execution) -> None:
        self.form = form
        self.execution = execution
        self.notes: list[str] = []
        self._module = module
        self._call: Callable[[Tensor], Any] = self._as_it_is
        self._tried = True
        self._plain = module
        if not form.changes:
            return
        self._module = self._arranged()
        if self.form.compiled:
            # With freezing, inductor takes the weights for constants and lays them out for the kernels.
            options: dict[str, Any] = {"freezing": True}
            compiled = torch.compile(self._module, dynamic=False, options=options)
            self._call = cast(Callable[[Tensor], Any], compiled)
        self._tried = not (self.form.compiled or self.form.packed)

    def _arranged(self) -> nn.Module:
        """Return a copy in the form's precision, folded if it is to be, or the module if nothing changes."""
        changed: nn.Module | None = None
        if self.form.folded or self.form.packed:
            try:
                changed = _graph_of(self._plain, folded=self.form.folded)
            except Exception as error:  # tracing runs the module's own code, which may raise anything
                self.notes.append(f"it could be neither folded nor packed ({first_line(error)})")
                self.form = dataclasses.replace(self.form, folded=False, packed=False)
        if not self.form.changes:
            return self._plain
        changed = copy.deepcopy(self._plain) if changed is None else changed
        changed = changed.eval().requires_grad_(False).to(self.execution.dtype)
        return changed.to(memory_format=self.execution.memory_format)

    def _as_it_is(self, images: Tensor) -> Any:
        with nullcontext() if self.form.changes else self.execution.autocast():
            return self._module(images)

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        """Return the module's output, of shape ``[N, ...]``.

        Args:
            images: Prepared images ``[N, 3, H, W]``, on the device, of any floating-point type; where
                the form is compiled, at most ``batch_size`` of them.
        """
        images = images.to(self.execution.dtype, memory_format=self.execution.memory_format)
        count = len(images)
        if self.form.compiled and count < self.form.batch_size:
            # One shape alone, so that it is compiled once.
            filling = images.new_zeros((self.form.batch_size - count, *images.shape[1:]))
            images = torch.cat([images, filling]).contiguous(memory_format=self.execution.memory_format)
        output = _tensor_of(self._first(images) if not self._tried else self._call(images))
        return output[:count]

    def _first(self, images: Tensor) -> Any:
        """Pack or compile, or say why that failed and go on without."""
        with _FIRST_CALL:
            if self._tried:
                return self._call(images)
            try:
                if self.form.packed:
                    self._module = packed(cast(GraphModule, self._module), images, self.form.batch_size)
                return self._call(images)
            except Exception as error:  # compilers fail in many ways, and none of them is the user's
                what = "packing" if self.form.packed else "compiling"
                self.notes.append(f"{what} failed ({first_line(error)}), so it runs without that")
                self.form = dataclasses.replace(self.form, packed=False, compiled=False)
                self._module = self._arranged()
                self._call = self._as_it_is
                return self._call(images)
            finally:
                self._tried = True


def _tensor_of(output: Any) -> Tensor:
    """Return what a module gave, or the logits of a record, as a tensor."""
    return output if isinstance(output, Tensor) and output.ndim > 0 else logits_of(output)


def _graph_of(module: nn.Module, *, folded: bool) -> GraphModule:
    """Return a copy as a graph of single layers, each batch norm folded into the convolution before it."""
    plain = copy.deepcopy(module).eval()
    # The tracer that fuse itself would take disturbs other threads.
    traced = GraphModule(plain, ThreadTracer().trace(plain))
    if not folded:
        return traced
    with warnings.catch_warnings():
        # Importing it, torch up to 2.11 warns of something that it still uses itself.
        warnings.simplefilter("ignore", DeprecationWarning)
        from torch.fx.experimental.optimization import fuse

    return cast(GraphModule, fuse(traced, inplace=True, no_trace=True))


@torch.no_grad()
def why_not_fast(forward: FastForward, module: nn.Module, images: Tensor) -> str | None:
    """Compare a fast form with the module itself on some images.

    Args:
        forward: The fast form.
        module: The module, in inference mode.
        images: Prepared images ``[N, 3, H, W]``, float32.

    Returns:
        ``None`` where they agree within the rounding of the precision; otherwise the reason.
    """
    try:
        fast = forward(images).float()
    except (RuntimeError, TypeError, ValueError) as error:
        return f"its fast form failed ({first_line(error)})"
    exact = _tensor_of(module(images)).float()
    if fast.shape != exact.shape:
        return f"its fast form gives the shape {list(fast.shape)} instead of {list(exact.shape)}"
    tolerance = 1e-4 if forward.form.precision == "fp32" else 0.1
    difference = float((fast - exact).norm() / exact.norm().clamp_min(1e-12))
    if not difference <= tolerance:
        return f"its fast form differs by {difference:.1%}"
    return None


def fast_model(
    model: nn.Module, size: int, images: int, batch_size: int, execution: Execution
) -> FastForward:
    """Return a whole model in the fastest form for a number of images.

    Args:
        model: In inference mode, on the execution's device.
        size: Side of the images, in pixels.
        images: How many will go through it.
        batch_size: How many at once.
        execution: How the run as a whole was decided to be executed.
    """
    plain = Form(execution.precision, False, False, batch_size)
    # A single image is not worth the count of what it takes.
    asked = execution.compile is True
    if images < batch_size and not asked:
        return FastForward(model, plain, execution)
    operations = images * work_of(model, size).operations
    form = choose_form(model, execution, operations=operations, batch_size=batch_size)
    if not form.compiled and operations < _FOLDING_PAYS:
        return FastForward(model, plain, execution)
    forward = FastForward(model, form, execution)
    if not forward.form.changes:
        return forward
    like = next(model.parameters())
    # Noise shows a form that went wrong as well as photos do.
    noise = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0)).to(like.device)
    reason = why_not_fast(forward, model, noise)
    if reason is not None or (form.compiled and not forward.form.compiled):
        notes = "; ".join([*forward.notes, *([] if reason is None else [reason])])
        warn_caller(f"The model runs more slowly than it could: {notes}.")
    return forward if reason is None else FastForward(model, plain, execution)


# Up to so many operations for an image, threads cost more than they gain, and so does low precision.
_SMALL = 2e6


def small_execution(module: nn.Module, shape: tuple[int, ...], execution: Execution) -> Execution:
    """Return how a head or suffix runs: a small one in float32 on one thread, another as the model does.

    Args:
        module: What runs on stored rows.
        shape: That of a row.
        execution: How the model runs.
    """
    weights = sum(each.numel() for each in module.parameters())
    # Each weight meets each position of a map at most once, going forward and twice going backward.
    if 6 * weights * math.prod(shape[1:]) > _SMALL:
        return execution
    return dataclasses.replace(execution, threads=1, precision="fp32")
