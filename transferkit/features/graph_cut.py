"""Find the last place at which a traced model can be cut, and make two modules of it."""

from __future__ import annotations

import operator
from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx, nn
from torch.fx.node import map_arg

from transferkit.backbones.spec import unwrapped
from transferkit.features.frozen_graph import TracedModel, Untraceable, trace_model, writes_in_place
from transferkit.module_tree import has_parameters, plain_name


class NoCut(Exception):
    """A traced model has no place for a cut; the text says why, in a few words."""


class GraphCut(NamedTuple):
    """Both sides of a cut, and where it is, such as ``"before 'fc'"``."""

    prefix: nn.Module
    suffix: nn.Module
    where: str


class _Place(NamedTuple):
    """A node at which a graph can be cut, and those before it that depend on the images."""

    form: TracedModel
    node: fx.Node
    before: frozenset[fx.Node]


class _ByMode(nn.Module):
    """Does one thing in training and another in inference mode; both share their modules."""

    def __init__(self, training_form: nn.Module, inference_form: nn.Module) -> None:
        super().__init__()
        self.training_form = training_form
        self.inference_form = inference_form
        self.training = training_form.training

    def forward(self, features: Tensor) -> Any:
        return (self.training_form if self.training else self.inference_form)(features)


def cut_graph(model: nn.Module) -> GraphCut:
    """Cut a model at the last frozen tensor on every path from the images to what trains.

    Raises:
        NoCut: There is no such tensor, or nothing with parameters before it.
        Untraceable: The forward of the model cannot be traced.
    """
    opened: set[nn.Module] = set()
    best: GraphCut | None = None
    steps = 0
    while True:
        try:
            training, inference = trace_model(model, opened)
        except Untraceable:
            if best is None:
                raise
            break
        same = _common_start(training, inference)
        places = _last_places(training, inference, same)
        if places is None:
            break
        if len(places[0].before) > steps or best is None:
            steps = len(places[0].before)
            identical = len(same) == len(training.graph.nodes) == len(inference.graph.nodes)
            suffix = _suffix(places[0]) if identical else _ByMode(*map(_suffix, places))
            best = GraphCut(_prefix(places[0]), suffix, _where(places[0]))
        # What trains as a whole may begin with layers that do not, such as the pooling of a head.
        entered = _entered_modules(places[0]) - opened
        if not entered:
            break
        opened |= entered
    if best is not None and has_parameters(best.prefix):
        return best
    if _runs_what_is_frozen(training):
        raise NoCut("no single tensor carries what is frozen to what trains")
    raise NoCut("nothing is frozen before what trains")


def _runs_what_is_frozen(form: TracedModel) -> bool:
    """Whether frozen weights are used on the images, or on what comes of them and is frozen."""
    reached: set[fx.Node] = set()
    for node in form.graph.nodes:
        if node.op == "placeholder":
            reached.add(node)
        elif node in form.frozen and _depends_on(reached, node):
            reached.add(node)
            if node.op == "call_module" and has_parameters(form.root.get_submodule(str(node.target))):
                return True
            weights = [each for each in node.all_input_nodes if each.op == "get_attr"]
            if any(isinstance(_state(form, each), nn.Parameter) for each in weights):
                return True
    return False


def _last_places(
    training: TracedModel, inference: TracedModel, same: dict[fx.Node, fx.Node]
) -> tuple[_Place, _Place] | None:
    for node, twin in reversed(same.items()):
        first, second = _place(training, node), _place(inference, twin)
        if first is not None and second is not None:
            return first, second
    return None


def _common_start(first: TracedModel, second: TracedModel) -> dict[fx.Node, fx.Node]:
    """Pair the nodes of two graphs, in order, for as long as they do the same."""
    pairs: dict[fx.Node, fx.Node] = {}
    twins: dict[fx.Node, fx.Node] = {}
    for node, other in zip(first.graph.nodes, second.graph.nodes, strict=False):
        arguments = map_arg((other.args, other.kwargs), lambda each: twins.get(each, each))
        same_target = node.target == other.target
        if node.op == other.op == "get_attr":
            # Tensors that the forward makes are stored anew by each tracing.
            same_target = _same_tensor(_state(first, node), _state(second, other))
        if node.op != other.op or not same_target or arguments != (node.args, node.kwargs):
            break
        pairs[node], twins[other] = other, node
    return pairs


def _state(form: TracedModel, node: fx.Node) -> Any:
    return operator.attrgetter(str(node.target))(form.root)


def _same_tensor(first: Any, second: Any) -> bool:
    if first is second:
        return True
    both = isinstance(first, Tensor) and isinstance(second, Tensor)
    return both and first.dtype == second.dtype and torch.equal(first, second)


def _place(form: TracedModel, cut: fx.Node) -> _Place | None:
    """Return what depends on the images other than through a node, if the graph can be cut there."""
    if cut not in form.frozen or not _may_be_tensor(cut):
        return None
    before: set[fx.Node] = set()
    passed = False
    for node in form.graph.nodes:
        if node is cut:
            passed = True
        elif node.op == "placeholder" or (_depends_on(before, node) and not _is_batch_size(node)):
            if passed or node not in form.frozen:
                return None
            before.add(node)
    return _Place(form, cut, frozenset(before))


def _depends_on(nodes: Iterable[fx.Node], node: fx.Node) -> bool:
    return not frozenset(node.all_input_nodes).isdisjoint(nodes)


def _may_be_tensor(node: fx.Node) -> bool:
    """Whether nothing shows that what an operation gives is a tuple, a record or a shape."""
    for user in node.users:
        if user.op == "call_function" and user.args[0] is node:
            if user.target is operator.getitem and isinstance(user.args[1], (int, str)):
                return False
            if user.target is getattr and not hasattr(Tensor, str(user.args[1])):
                return False
    return True


def _is_batch_size(node: fx.Node) -> bool:
    """Whether an operation takes the first number of a shape, such as ``x.shape[0]`` or ``x.size(0)``."""
    if node.op == "call_method":
        return node.target == "size" and node.args[1:] == (0,)
    if node.target is not operator.getitem or node.args[1] != 0:
        return False
    (shape,) = node.all_input_nodes
    if shape.op == "call_method":
        return shape.target == "size" and len(shape.args) == 1
    return shape.target is getattr and str(shape.args[1]) == "shape"


def _entered_modules(place: _Place) -> set[nn.Module]:
    """Return the modules of several layers that are given what the cut gives, and train."""
    paths = [str(user.target) for user in place.node.users if user.op == "call_module"]
    modules = [unwrapped(place.form.root.get_submodule(path)) for path in paths]
    trainable = [module for module in modules if any(each.requires_grad for each in module.parameters())]
    return {module for module in trainable if next(module.children(), None) is not None}


def _prefix(place: _Place) -> fx.GraphModule:
    form, cut, before = place
    nodes = list(form.graph.nodes)
    nodes = [node for node in nodes[: nodes.index(cut) + 1] if node in form.frozen]
    graph = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    for node in _needed(form, nodes, before | {cut}):
        copies[node] = graph.node_copy(node, copies.__getitem__)
    graph.output(copies[cut])
    return fx.GraphModule(form.root, graph)


def _suffix(place: _Place) -> fx.GraphModule:
    form, cut, before = place
    nodes = [node for node in form.graph.nodes if node is not cut and node not in before]
    after = {cut}
    for node in nodes:
        if _depends_on(after, node):
            after.add(node)
    # What is frozen and does not depend on the images stands on the side, or sides, that ask for it.
    needed = _needed(form, nodes, {node for node in nodes if node in after or node not in form.frozen})
    graph = fx.Graph()
    features = graph.placeholder("features")
    copies = {cut: features}
    if any(_may_write(form, node) for node in needed):
        copies[cut] = graph.call_method("clone", (features,))
    for node in needed:
        if _is_batch_size(node) and not copies.keys() >= set(node.all_input_nodes):
            copies[node] = graph.call_method("size", (features, 0))
        else:
            copies[node] = graph.node_copy(node, copies.__getitem__)
    return fx.GraphModule(form.root, graph)


def _needed(form: TracedModel, nodes: list[fx.Node], base: Iterable[fx.Node]) -> list[fx.Node]:
    """Return the nodes that are in the base, that these need, or that change something, in order."""
    kept = set(base)
    for node in reversed(nodes):
        if writes_in_place(form.root, node) or not kept.isdisjoint(node.users):
            kept.add(node)
    return [node for node in nodes if node in kept]


def _may_write(form: TracedModel, node: fx.Node) -> bool:
    if node.op == "call_module":
        return may_write(form.root.get_submodule(str(node.target)))
    return writes_in_place(form.root, node)


def may_write(module: nn.Module) -> bool:
    """Whether a module may change its inputs in place; features that are stored must stay."""
    return any(
        getattr(each, "inplace", False) or not type(each).__module__.startswith("torch.nn.")
        for each in module.modules()
    )


def _where(place: _Place) -> str:
    users = list(place.node.users)
    if len(users) == 1 and users[0].op == "call_module":
        return f"before {_shown(users[0])}"
    nodes = list(place.form.graph.nodes)
    modules = [node for node in nodes[: nodes.index(place.node) + 1] if node.op == "call_module"]
    return f"after {_shown(modules[-1])}" if modules else f"after {place.node.name!r}"


def _shown(node: fx.Node) -> str:
    return repr(plain_name(str(node.target).removeprefix("model.")))
