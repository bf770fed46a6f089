"""Batch norm that is frozen, folded into the convolution before it while that goes on training."""

from __future__ import annotations

import dataclasses
import functools
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeGuard, TypeVar

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from transferkit.backbones.spec import unwrapped
from transferkit.checks import first_line, warn_caller
from transferkit.classification import logits_of
from transferkit.features.frozen_graph import TracedModel, Untraceable, acts_differently, mode_of, trace_model
from transferkit.modes import is_held
from transferkit.runtime import Execution

# Images on which the folded model is compared with the model itself.
_CHECKED = 4
# How far float32 outputs may be apart, by the norm.
_SAME = 1e-4

M = TypeVar("M", bound=nn.Module)
Pair = tuple[nn.Conv2d, nn.BatchNorm2d]


class NormFolding:
    """Lets convolutions compute what they and the frozen batch norm after them would compute together.

    Frozen batch norm is a factor and a summand for each channel. The factor goes into the weights in each
    step, so that gradients reach them as they would have; no map of activations is read and written again
    for it. The modules, their weights and what is saved of them stay as they are.

    Args:
        module: What trains; it is on the execution's device.
        execution: Nothing is folded in float32, which stays exact, or where the record says so.

    Attributes:
        pairs: Each convolution whose batch norm is folded, with it.

    >>> from transferkit.freezing import freeze
    >>> net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(144, 2))
    >>> net, images = freeze(net, except_=["0.*", "3.*"]), torch.rand(2, 3, 8, 8)
    >>> expected = net(images)
    >>> with NormFolding(net, Execution("cpu", "bf16", channels_last=True)).active():
    ...     torch.allclose(net(images), expected, atol=1e-5)
    True
    """

    def __init__(self, module: nn.Module, execution: Execution) -> None:
        self._module = module
        self._execution = execution
        self._folds, self._checked = True, False
        # While the model is compared with itself: what each norm is to be given, and whether it was.
        self._due: dict[nn.Module, Tensor] | None = None
        self._astray = False
        self.pairs = _pairs(module) if execution.fold and execution.precision != "fp32" else []
        self._forwards: list[tuple[nn.Module, Callable[[Tensor], Tensor]]] = []
        self.refresh()

    def refresh(self) -> None:
        """Take the factors and summands from batch norm as it is now; they are kept from then on."""
        self._forwards = []
        for conv, norm in self.pairs:
            # Someone may have given them hooks since, which are to see what each computes.
            if _is_plain_convolution(conv) and _is_frozen_norm(norm):
                both = functools.partial(self._convolve, conv, norm, *_scale_and_shift(norm))
                self._forwards += [(conv, both), (norm, functools.partial(self._pass_on, norm))]

    @contextmanager
    def active(self) -> Iterator[None]:
        """Fold for as long as the context lasts.

        That is to be one step: who copies a layer meanwhile, or calls it alone, meets what stands in for it.
        """
        for layer, forward in self._forwards:
            # An entry of the instance, so that the class and the names of its modules stay as they are.
            layer.__dict__["forward"] = forward
        try:
            yield
        finally:
            for layer, _ in self._forwards:
                layer.__dict__.pop("forward", None)

    def check(self, inputs: Tensor) -> None:
        """Compare with the module itself on a first batch, and fold nothing from then on where they differ.

        Args:
            inputs: What the module takes, ``[N, ...]``.
        """
        if self._checked or not self.pairs:
            return
        self._checked = True
        try:
            reason = self._why_not(inputs[:_CHECKED].float())
        except Exception as error:  # a model may do for its usual batches alone
            reason = f"a part of a batch cannot go through the model in inference mode ({first_line(error)})"
        if reason is not None:
            self._folds = False
            warn_caller(f"Batch norm is not folded, so that training is slower than it could be: {reason}.")

    @torch.no_grad()
    def _why_not(self, inputs: Tensor) -> str | None:
        module = self._module
        exact = dataclasses.replace(self._execution, precision="fp32")
        # Those of inference mode cannot change, nor be written to.
        buffers = [(each, each.clone()) for each in module.buffers() if not each.is_inference()]
        try:
            with mode_of(module, training=False), self.active():
                with exact.arithmetic():
                    self._folds = False
                    expected = self._logits(inputs)
                    self._folds = True
                    folded = self._logits(inputs)
                # A forward may look at the precision, in which outputs cannot be compared as closely.
                astray = self._goes_astray(inputs)
        finally:
            self._folds = True
            for buffer, before in buffers:
                buffer.copy_(before)
        difference = float((folded - expected).norm() / expected.norm().clamp_min(1e-12))
        if not difference <= _SAME:
            return f"the outputs would differ by {difference:.1%}"
        return "a norm is given something else than its convolution's output" if astray else None

    def _logits(self, inputs: Tensor) -> Tensor:
        # The same random numbers each time, where a model draws some in inference mode too.
        with torch.random.fork_rng(devices=[inputs.device] if inputs.is_cuda else []):
            return logits_of(self._module(inputs))

    def _goes_astray(self, inputs: Tensor) -> bool:
        """Whether a norm is not given what its convolution has just returned."""
        self._due, self._astray = {}, False
        try:
            with self._execution.autocast():
                self._logits(inputs)
            return self._astray or bool(self._due)
        finally:
            self._due = None

    def _convolve(
        self, conv: nn.Conv2d, norm: nn.BatchNorm2d, scale: Tensor, shift: Tensor, inputs: Tensor
    ) -> Tensor:
        if not self._folds or _is_released(norm):
            return nn.Conv2d.forward(conv, inputs)
        weight = conv.weight * scale.view(-1, 1, 1, 1)
        bias = shift if conv.bias is None else shift + conv.bias * scale
        output = F.conv2d(inputs, weight, bias, conv.stride, conv.padding, conv.dilation, conv.groups)
        if self._due is not None:
            self._due[norm] = output
        return output

    def _pass_on(self, norm: nn.BatchNorm2d, inputs: Tensor) -> Tensor:
        if not self._folds or _is_released(norm):
            return nn.BatchNorm2d.forward(norm, inputs)
        if self._due is not None and self._due.pop(norm, None) is not inputs:
            self._astray = True
        return inputs


def _pairs(module: nn.Module) -> list[Pair]:
    """Find each convolution whose output one frozen batch norm takes, and nothing else."""
    modules = list(module.modules())
    if any(_is_wrapped(each) for each in modules):
        return []
    if not any(_is_frozen_norm(each) for each in modules) or acts_differently(module):
        return []
    if any(each.dtype != torch.float32 for each in module.parameters()):
        return []
    try:
        # What is frozen as a whole has pairs too.
        training, inference = (_pairs_in(form) for form in trace_model(module, modules))
    except Untraceable:
        return []
    return [pair for pair in training if pair in inference]


def _is_wrapped(module: nn.Module) -> bool:
    # A compiler fuses it by itself; data parallelism runs copies, which would use these weights.
    return unwrapped(module) is not module or module._compiled_call_impl is not None


def _pairs_in(form: TracedModel) -> list[Pair]:
    called = [node for node in form.graph.nodes if node.op == "call_module"]
    modules = {node: form.root.get_submodule(str(node.target)) for node in called}
    # A layer may also be called within a module that is one operation here.
    calls = Counter(each for module in modules.values() for each in set(module.modules()))
    pairs = []
    for node, norm in modules.items():
        source = node.args[0] if node.args else None
        if not isinstance(source, fx.Node) or len(source.users) > 1:
            continue
        conv = modules.get(source)
        if _is_plain_convolution(conv) and _is_frozen_norm(norm) and calls[conv] == calls[norm] == 1:
            pairs.append((conv, norm))
    return pairs


def _is_plain_convolution(module: nn.Module | None) -> TypeGuard[nn.Conv2d]:
    return _is_exactly(module, nn.Conv2d) and module.padding_mode == "zeros"


def _is_frozen_norm(module: nn.Module) -> TypeGuard[nn.BatchNorm2d]:
    if not _is_exactly(module, nn.BatchNorm2d) or module.running_mean is None:
        return False
    return is_held(module) and not _is_released(module)


def _is_released(norm: nn.BatchNorm2d) -> bool:
    return norm.training or any(each.requires_grad for each in norm.parameters())


def _is_exactly(module: nn.Module | None, kind: type[M]) -> TypeGuard[M]:
    # A class of its own, a parametrized one too, may compute something else.
    return type(module) is kind and "forward" not in vars(module) and not acts_differently(module)


@torch.no_grad()
def _scale_and_shift(norm: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """Return what frozen batch norm multiplies each channel by and then adds to it."""
    assert norm.running_mean is not None
    assert norm.running_var is not None
    scale = torch.rsqrt(norm.running_var + norm.eps)
    if norm.weight is not None:
        scale = scale * norm.weight
    shift = -norm.running_mean * scale
    if norm.bias is not None:
        shift = shift + norm.bias
    return scale, shift
