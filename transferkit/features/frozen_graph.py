"""Trace a model to a graph of operations, and tell which of them are frozen."""

from __future__ import annotations

import copy
import inspect
import operator
import random
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.dropout import _DropoutNd
from torch.utils._python_dispatch import TorchDispatchMode

from transferkit.backbones.spec import unwrapped
from transferkit.modes import is_held, modes_kept
from transferkit.module_tree import can_train
from transferkit.tracing import ThreadTracer

# Functions of Python's operator module that change their first argument.
_OPERATORS_IN_PLACE = {
    *("setitem", "delitem", "iadd", "isub", "imul", "imatmul", "itruediv", "ifloordiv", "imod", "ipow"),
    *("iand", "ior", "ixor", "ilshift", "irshift", "iconcat"),
}
# Where ``train`` sets flags and nothing else that the forward of the same module looks at.
_PLAIN_TRAIN = ("torch.nn.modules.module", "transformers.modeling_utils")


class Untraceable(Exception):
    """The forward of a module does something that a graph cannot hold."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__(f"the forward of {type(module).__name__} cannot be traced")
        self.module = module


@dataclass(frozen=True)
class TracedModel:
    """What a model does in one mode.

    Attributes:
        root: The module in which the targets of the graph are paths; it holds the model as ``model``.
        graph: From the images to the logits. A module that is frozen as a whole, trains as a
            whole or has no parameters is one operation, so that its forward may do anything.
        frozen: The operations that give the same for the same images, in every mode and for as
            long as the training lasts.
    """

    root: nn.Module
    graph: fx.Graph
    frozen: frozenset[fx.Node]


def trace_model(model: nn.Module, opened: Collection[nn.Module] = ()) -> tuple[TracedModel, TracedModel]:
    """Trace a model in training and in inference mode.

    Where the forward of a module inside cannot be traced, it becomes one operation that trains.
    The model itself is left alone: another thread may be using it.

    Args:
        model: A module without wrappers, which has parameters of both kinds.
        opened: What is traced into besides the modules that have parameters of both kinds.

    Raises:
        Untraceable: The model cannot be copied, or its own forward cannot be traced.
    """
    opaque: set[nn.Module] = set()
    twin, originals = _twin(model)
    while True:
        try:
            training = _trace(model, twin, _Tracer(originals, opened, opaque), training=True)
            return training, _trace(model, twin, _Tracer(originals, opened, opaque), training=False)
        except Untraceable as error:
            if error.module is model:
                raise
            opaque.add(error.module)


@contextmanager
def mode_of(*models: nn.Module, training: bool) -> Iterator[None]:
    """Put all that is not held into a mode for as long as the context lasts.

    Flags are set and no ``train`` is called, so that each module still knows what it was asked last.
    """
    with ExitStack() as stack:
        for model in models:
            stack.enter_context(modes_kept(model))
        for model in models:
            for module in model.modules():
                if not is_held(module):
                    module.training = training
        yield


def is_frozen(module: nn.Module) -> bool:
    """Whether nothing in a module trains, and it is held or does not look at its mode."""
    trains = any(parameter.requires_grad for parameter in module.parameters())
    return not trains and (is_held(module) or not _mentions_training(module))


def acts_differently(module: nn.Module) -> bool:
    """Whether calling a module does more than its forward, or ``train`` more than set flags."""
    own_train = getattr(type(module).train, "__module__", None) not in _PLAIN_TRAIN
    replaced = "train" in vars(module) and not is_held(module)
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return own_train or replaced or any(getattr(module, name) for name in hooks)


def writes_in_place(root: nn.Module, node: fx.Node) -> bool:
    """Whether an operation changes what it is given."""
    if node.op == "call_module":
        return bool(getattr(root.get_submodule(str(node.target)), "inplace", False))
    if node.op == "call_method":
        name = str(node.target)
        return name.endswith("_") and not name.endswith("__")
    if node.op != "call_function":
        return False
    name = getattr(node.target, "__name__", "")
    if getattr(node.target, "__module__", "") == "_operator":
        return name in _OPERATORS_IN_PLACE
    arguments = _arguments(node)
    return name.endswith("_") or bool(arguments.get("inplace")) or arguments.get("out") is not None


class _LogitsOf(nn.Module):
    """Takes images alone and gives the logits alone, whatever else a model may take and give."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Any:
        output = self.model(images)
        return output if isinstance(output, fx.Proxy) else getattr(output, "logits", output)


class _Draws(TorchDispatchMode):  # type: ignore[no-untyped-call]  # reason: its base has no types
    """Counts the random draws of its own thread; the random state is that of the whole process."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += torch.Tag.nondeterministic_seeded in func.tags
        return func(*args, **(kwargs or {}))


class _Tracer(ThreadTracer):
    """Traces into mixed modules of a twin, and into others where told.

    Args:
        originals: The model and all modules in it, by their twins.
        opened: Originals to trace into besides.
        opaque: Originals not to trace into.
    """

    # Otherwise a forward that counts in a buffer would do so now, and never again.
    proxy_buffer_attributes = True

    def __init__(
        self,
        originals: Mapping[nn.Module, nn.Module],
        opened: Collection[nn.Module],
        opaque: Collection[nn.Module],
    ) -> None:
        super().__init__()
        self._originals = originals
        self._model = next(iter(originals))
        self.draws = _Draws()  # type: ignore[no-untyped-call]  # reason: its base has no types
        self._opened = opened
        self._opaque = opaque

    def to_bool(self, obj: fx.Proxy) -> bool:
        # Models ask whether the images have the type of their weights, which they have.
        if obj.node.target in (operator.eq, operator.ne):
            types = [self._type_of(each) for each in obj.node.args]
            if None not in types:
                return (types[0] == types[1]) == (obj.node.target is operator.eq)
        return super().to_bool(obj)

    def _type_of(self, value: Any) -> torch.dtype | None:
        if isinstance(value, fx.Node) and value.target is getattr and value.args[1] == "dtype":
            parameters = dict(self.root.named_parameters())
            owner = cast(fx.Node, value.args[0])
            if owner.op == "placeholder":
                return next(each.dtype for each in parameters.values() if can_train(each))
            value = parameters[str(owner.target)].dtype if owner.target in parameters else None
        return value if isinstance(value, torch.dtype) else None

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        if m is self._model:
            return False
        # PyTorch's own modules, attention for one, are full of control flow.
        closed = self._original(m) in self._opaque or super().is_leaf_module(m, module_qualified_name)
        return closed or acts_differently(m) or not (_is_mixed(m) or self._original(m) in self._opened)

    def _original(self, module: nn.Module) -> nn.Module:
        return self._originals.get(module, module)

    def call_module(
        self, m: nn.Module, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        if not self.traces_here():
            return forward(*args, **kwargs)
        inner = unwrapped(m)
        if inner is not m and not self.is_leaf_module(inner, ""):
            return inner(*args, **kwargs)
        if self.is_leaf_module(m, ""):
            return super().call_module(m, forward, args, kwargs)
        before = (self.draws.count, random.getstate())
        try:
            # Not the call itself: it may be compiled.
            result = super().call_module(m, m.forward, args, kwargs)
        except Untraceable:
            raise
        except Exception as error:
            # A proxy in the place of a tensor can break a forward in any way.
            raise Untraceable(self._original(m)) from error
        if (self.draws.count, random.getstate()) != before:
            # What it has drawn here would hold for ever.
            raise Untraceable(self._original(m))
        return result


def _twin(model: nn.Module) -> tuple[nn.Module, dict[nn.Module, nn.Module]]:
    """Return a copy that shares parameters and buffers, and which module each of its modules stands for."""
    values = [value for module in model.modules() for value in vars(module).values()]
    # What a forward with gradients has left behind cannot be copied.
    left = [value for value in values if isinstance(value, Tensor) and not value.is_leaf]
    shared: dict[int, Any] = {id(each): each for each in (*model.parameters(), *model.buffers())}
    shared |= {id(each): each.detach() for each in left}
    try:
        twin = copy.deepcopy(model, shared)
    except Exception as error:  # copying runs the modules' own code
        raise Untraceable(model) from error
    return twin, dict(zip(twin.modules(), model.modules(), strict=True))


def _trace(model: nn.Module, twin: nn.Module, tracer: _Tracer, *, training: bool) -> TracedModel:
    root, traced = _LogitsOf(model), _LogitsOf(twin)
    state, torch_state = random.getstate(), torch.get_rng_state()
    with mode_of(twin, training=training), _attributes_kept(twin):
        try:
            with tracer.draws:
                graph = tracer.trace(traced)
        except Untraceable:
            raise
        except Exception as error:
            raise Untraceable(model) from error
        finally:
            random.setstate(state)
            if tracer.draws.count:
                torch.set_rng_state(torch_state)
    # Tensors that the forward makes are stored on what is traced.
    vars(root).update((name, value) for name, value in vars(traced).items() if name not in vars(root))
    frozen = _frozen_nodes(root, graph)
    # Auxiliary outputs that nobody asks for, assertions, and comparisons that are decided.
    for node in reversed(graph.nodes):
        pure = node in frozen or node.op == "get_attr" or node.target in (operator.eq, operator.ne, getattr)
        if pure and not node.users and node.op != "placeholder" and not writes_in_place(root, node):
            graph.erase_node(node)
    root.training = model.training
    return TracedModel(root, graph, frozenset(frozen.intersection(graph.nodes)))


@contextmanager
def _attributes_kept(model: nn.Module) -> Iterator[None]:
    """Take away what a forward has left behind on its module; it is of no use outside the tracing."""
    attributes = [(vars(module), dict(vars(module))) for module in model.modules()]
    try:
        yield
    finally:
        for now, before in attributes:
            for name in now.keys() - before.keys():
                del now[name]
            now.update(before)


def _frozen_nodes(root: nn.Module, graph: fx.Graph) -> set[fx.Node]:
    changed = {
        node.args[0].target
        for node in graph.nodes
        if writes_in_place(root, node) and node.args and isinstance(node.args[0], fx.Node)
    }
    frozen: set[fx.Node] = set()
    for node in graph.nodes:
        stays = node.op != "get_attr" or node.target not in changed
        if stays and frozen.issuperset(node.all_input_nodes) and _gives_the_same_again(root, node):
            frozen.add(node)
    return frozen


def _gives_the_same_again(root: nn.Module, node: fx.Node) -> bool:
    """Whether an operation depends on its inputs alone."""
    if node.op == "get_attr":
        path, _, name = str(node.target).rpartition(".")
        return not getattr(getattr(root.get_submodule(path), name), "requires_grad", False)
    if node.op == "call_module":
        return is_frozen(root.get_submodule(str(node.target)))
    return node.op == "placeholder" or (node.op != "output" and not _is_random(node))


def _is_mixed(module: nn.Module) -> bool:
    """Whether some parameters of a module are frozen and others train."""
    return len({each.requires_grad for each in module.parameters() if can_train(each)}) == 2


def _mentions_training(module: nn.Module) -> bool:
    """Whether the code of a module, descendants included, looks at its mode."""
    # Dropout of nothing is how architectures leave a place for dropout.
    modules = (each for each in module.modules() if not (isinstance(each, _DropoutNd) and each.p == 0))
    for kind in {base for each in modules for base in type(each).__mro__}:
        if not issubclass(kind, nn.Module) or kind is nn.Module:
            continue
        for member in vars(kind).values():
            code = getattr(inspect.unwrap(member), "__code__", None) if callable(member) else None
            if code is not None and "training" in code.co_names:
                return True
    return False


def _is_random(node: fx.Node) -> bool:
    """Whether a function or method draws random numbers, or is told that it is used in training."""
    arguments = _arguments(node)
    if "training" in arguments:
        return arguments["training"] is not False
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
    packet = getattr(torch.ops.aten, name, None)
    overloads = [getattr(packet, each) for each in getattr(packet, "overloads", list)()]
    return any(torch.Tag.nondeterministic_seeded in overload.tags for overload in overloads)


def _arguments(node: fx.Node) -> dict[str, Any]:
    """Return the arguments of a function by name, defaults included where its signature is known."""
    try:
        assert callable(node.target)
        bound = inspect.signature(node.target).bind(*node.args, **node.kwargs)
    except (AssertionError, TypeError, ValueError):
        return dict(node.kwargs)
    bound.apply_defaults()
    return bound.arguments
