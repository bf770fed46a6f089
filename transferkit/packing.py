"""Convolutions whose weights are laid out for the CPU beforehand, each in one operation with what follows it.

torch's own convolutions lay out their weights anew in each call, and every activation or sum after them
reads and writes all of a map once more. oneDNN, which computes them, does both in passing. torch's compiler
reaches as much, but takes many seconds where this takes less than one.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeGuard

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

# Types in which oneDNN's convolutions are tried and tested.
_TYPES = (torch.float32, torch.bfloat16)
_SUMS = (operator.add, operator.iadd, torch.add)


class _Activation(NamedTuple):
    """An activation as oneDNN knows it: its name, its numbers, and which way of computing it."""

    name: str = "none"
    numbers: Sequence[float] = ()
    algorithm: str = ""


_NONE = _Activation()
_ACTIVATIONS: dict[object, Callable[[Any], _Activation]] = {
    nn.ReLU: lambda _: _Activation("relu"),
    nn.ReLU6: lambda _: _Activation("hardtanh", (0.0, 6.0)),
    nn.Hardtanh: lambda layer: _Activation("hardtanh", (layer.min_val, layer.max_val)),
    nn.Hardswish: lambda _: _Activation("hardswish"),
    nn.SiLU: lambda _: _Activation("swish"),
    nn.GELU: lambda layer: _Activation("gelu", (), layer.approximate),
    nn.Sigmoid: lambda _: _Activation("sigmoid"),
    nn.LeakyReLU: lambda layer: _Activation("leaky_relu", (layer.negative_slope,)),
    F.relu: lambda _: _Activation("relu"),
    torch.relu: lambda _: _Activation("relu"),
}


def can_pack(module: nn.Module, device: str | torch.device) -> bool:
    """Whether a module consists of convolutions, for the most part, that can be laid out beforehand.

    >>> can_pack(nn.Linear(2, 2), "cpu")
    False
    """
    convolutions = sum(_is_plain_convolution(each) for each in module.modules())
    others = sum(isinstance(each, nn.Linear) for each in module.modules())
    # Builds of torch without oneDNN lack them.
    operations = ("_convolution_pointwise", "_reorder_convolution_weight")
    offered = all(hasattr(torch.ops.mkldnn, name) for name in operations)
    return torch.device(device).type == "cpu" and convolutions > others and offered


def packed(traced: fx.GraphModule, images: Tensor, batch_size: int) -> fx.GraphModule:
    """Replace convolutions, and what follows them where nothing else needs their own output.

    Args:
        traced: In inference mode, batch norm folded; it is changed in place, and of no use after an error.
        images: An example of what it takes, on the CPU, of the type of its weights; only the shape, the
            type and the memory format play a role.
        batch_size: Images that will go through at once, for which the weights are laid out.

    Returns:
        The same module. It does not train, and cannot be copied. A NaN in front of a ReLU, bounded or not,
        becomes 0.
    """
    shapes = _Shapes(traced)
    shapes.run(_two_like(images))
    modules: dict[str, nn.Module] = dict(traced.named_modules(remove_duplicate=False))
    for number, node in enumerate(list(traced.graph.nodes)):
        conv = modules.get(str(node.target)) if node.op == "call_module" else None
        # One that takes a single image without a batch, or its input by name, stays as it is.
        if conv is None or not _is_plain_convolution(conv) or not node.args or shapes.of[node].ndim != 4:
            continue
        last, added, activation = _what_follows(node, modules, shapes.of)
        shape = shapes.of[node.args[0]].shape
        layer = _PackedConvolution(conv, (batch_size, *shape[1:]), activation)
        name = f"_packed_{number}"
        traced.add_module(name, layer)
        # As early as it has all it needs: what comes later may write into that.
        with traced.graph.inserting_after(node if added is None else _only_user(node)):
            new = traced.graph.call_module(name, (node.args[0], *([] if added is None else [added])))
        shapes.of[new] = shapes.of[last]
        modules[name] = layer
        last.replace_all_uses_with(new)
        for unused in _chain(node, last):
            traced.graph.erase_node(unused)
    traced.graph.lint()
    traced.recompile()
    traced.delete_all_unused_submodules()
    return traced


class _PackedConvolution(nn.Module):
    """A convolution, then a sum with another map if there is one, then an activation."""

    def __init__(self, conv: nn.Conv2d, shape: tuple[int, ...], activation: _Activation) -> None:
        super().__init__()
        self._geometry = (list(conv.padding), list(conv.stride), list(conv.dilation), conv.groups)
        weight = conv.weight.detach()
        self._weight = torch.ops.mkldnn._reorder_convolution_weight(weight, *self._geometry, list(shape))
        self._bias = None if conv.bias is None else conv.bias.detach()
        self._activation = (activation.name, list(activation.numbers), activation.algorithm)

    def forward(self, images: Tensor, added: Tensor | None = None) -> Any:
        common = (self._weight, self._bias, *self._geometry)
        if added is None:
            return torch.ops.mkldnn._convolution_pointwise(images, *common, *self._activation)
        name, numbers, algorithm = self._activation
        after = (None if name == "none" else name, numbers, algorithm)
        return torch.ops.mkldnn._convolution_pointwise.binary(images, added, *common, "add", 1.0, *after)


class _Shapes(fx.Interpreter):
    """Runs a graph once and notes the tensor that each operation gives, without its values.

    Attributes:
        of: A tensor on the device ``meta`` for each operation that gives a tensor.
    """

    def __init__(self, traced: fx.GraphModule) -> None:
        super().__init__(traced)
        self.of: dict[fx.Node, Tensor] = {}

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        if isinstance(result, Tensor):
            self.of[n] = result.to("meta")
        return result


def _two_like(images: Tensor) -> Tensor:
    """Return two images of zeros: with one alone, a map for a whole batch looks like one for each image."""
    last = images.is_contiguous(memory_format=torch.channels_last)
    memory_format = torch.channels_last if last else torch.contiguous_format
    return images.new_zeros((2, *images.shape[1:])).contiguous(memory_format=memory_format)


def _is_plain_convolution(module: nn.Module) -> TypeGuard[nn.Conv2d]:
    if type(module) is not nn.Conv2d or not _does_what_its_class_does(module):
        return False
    simple = module.padding_mode == "zeros" and not isinstance(module.padding, str)
    return simple and module.weight.dtype in _TYPES


def _does_what_its_class_does(module: nn.Module) -> bool:
    return not (module._forward_hooks or module._forward_pre_hooks or "forward" in vars(module))


def _what_follows(
    conv: fx.Node, modules: dict[str, nn.Module], shapes: dict[fx.Node, Tensor]
) -> tuple[fx.Node, fx.Node | None, _Activation]:
    """Return the last operation that can go with a convolution, what it adds, and its activation."""
    after = _only_user(conv)
    if after is None:
        return conv, None, _NONE
    activation = _activation(after, modules)
    if activation is not None:
        return after, None, activation
    added = _added(conv, after, modules, shapes)
    if added is None:
        return conv, None, _NONE
    last = _only_user(after)
    activation = None if last is None else _activation(last, modules)
    # oneDNN computes no other activation after a sum.
    if last is None or activation is None or activation.name != "relu":
        return after, added, _NONE
    return last, added, activation


def _only_user(node: fx.Node) -> fx.Node | None:
    users = list(node.users)
    return users[0] if len(users) == 1 else None


def _activation(node: fx.Node, modules: dict[str, nn.Module]) -> _Activation | None:
    if node.op == "call_module":
        layer = modules[str(node.target)]
        make = _ACTIVATIONS.get(type(layer))
        return make(layer) if make is not None and _does_what_its_class_does(layer) else None
    make = _ACTIVATIONS.get(node.target) if node.op == "call_function" else None
    return None if make is None else make(None)


def _added(
    conv: fx.Node, total: fx.Node, modules: dict[str, nn.Module], shapes: dict[fx.Node, Tensor]
) -> fx.Node | None:
    """Return what is added to the output of a convolution, if nothing can have changed on the way."""
    if total.op != "call_function" or total.target not in _SUMS or total.kwargs or len(total.args) != 2:
        return None
    first, second = total.args
    if second is conv and total.target is not operator.iadd:  # which would write into the other
        first, second = second, first
    if first is not conv or not isinstance(second, fx.Node) or second is conv:
        return None
    one, other = shapes[conv], shapes.get(second)
    if other is None or one.shape != other.shape or one.dtype != other.dtype:
        return None
    # torch 2.11 fails at a single place or channel, and at a single place broadcasting does not show.
    if 1 in (one.shape[1], one.shape[2:].numel()):
        return None
    # The convolution comes later than it did; what stands in between must not write into its input.
    between = conv.next
    while between is not total:
        layer = modules.get(str(between.target)) if between.op == "call_module" else None
        if layer is None or not (_is_plain_convolution(layer) or isinstance(layer, _PackedConvolution)):
            return None
        between = between.next
    return second


def _chain(first: fx.Node, last: fx.Node) -> list[fx.Node]:
    """Return operations that each had one user, from the last to the first."""
    nodes = [first]
    while nodes[-1] is not last:
        nodes.append(next(iter(nodes[-1].users)))
    return nodes[::-1]
