"""The head of a model: where it is, what goes in and out, and how it is replaced."""

from __future__ import annotations

import dataclasses
from collections import OrderedDict
from collections.abc import Callable, Collection, Mapping, Sequence, Set
from typing import Any, NamedTuple, TypeVar

from torch import nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.parameter import is_lazy

from transferkit.backbones.spec import find_spec, set_spec, unwrapped
from transferkit.checks import check_between, check_int, check_module, require
from transferkit.errors import ArgumentError, SelectorError
from transferkit.head_paths import HEAD_MARK
from transferkit.head_paths import find_head as find_head
from transferkit.modes import asked_mode, hold_frozen_modules, is_held
from transferkit.module_tree import can_train, find_module, has_parameters, named_children, set_module

M = TypeVar("M", bound=nn.Module)

Head = str | nn.Module | Callable[[int, int], nn.Module]

_NORMS = (_NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)
_WIDEST_HIDDEN_LAYER = 512
# More outputs than any data has classes; beyond it memory ends, or torch says so in words of its own.
_MOST_CLASSES = 10**7


class _Features(NamedTuple):
    """What a head takes and gives."""

    inputs: int
    outputs: int | None
    spatial: bool  # a 1 x 1 convolution on maps [N, C, H, W], pooled later


def head_module(model: nn.Module) -> nn.Module:
    """Return the module that gives the logits; see ``find_head``.

    Raises:
        SelectorError: There is no head, or it cannot be told from several candidates.

    >>> head_module(nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 2)))
    Linear(in_features=8, out_features=2, bias=True)
    """
    module = find_module(model, find_head(model))
    assert module is not None
    return module


def head_in_features(module: nn.Module) -> int:
    """Return how many features a head takes.

    Args:
        module: The head itself, as ``head_module`` returns it.

    Raises:
        SelectorError: It cannot be told.

    >>> head_in_features(nn.Sequential(nn.Dropout(), nn.Linear(8, 2)))
    8
    """
    return _features_of(module).inputs


def head_out_features(module: nn.Module) -> int | None:
    """Return how many outputs a head has, or ``None`` if that cannot be told.

    Args:
        module: The head itself, as ``head_module`` returns it.

    >>> head_out_features(nn.Sequential(nn.Dropout(), nn.Linear(8, 2)))
    2
    """
    marked = module.__dict__.get(HEAD_MARK)
    return _edge(module, last=True)[0] or (None if marked is None else marked.outputs)


def class_names(model: nn.Module) -> tuple[str, ...] | None:
    """Return the names of the outputs in order, or ``None`` where they are not known.

    Where the head has another number of outputs, or is gone, the names are left from an
    earlier head and are not trusted.

    Args:
        model: Any module, compiled or not.

    Raises:
        ArgumentError: It is no module.
    """
    check_module("class_names", model)
    spec = find_spec(model)
    if spec is None or spec.classes is None:
        return None
    try:
        outputs = head_out_features(head_module(model))
    except SelectorError:
        return None
    return spec.classes if outputs in (None, len(spec.classes)) else None


def check_num_classes(owner: str, value: object) -> None:
    """Raise ``ArgumentError`` unless ``value``, the ``num_classes`` of ``owner``, is one a head can have.

    >>> check_num_classes("replace_head", 10**9)
    Traceback (most recent call last):
    ...
    transferkit.errors.ArgumentError: The 'num_classes' parameter of replace_head must be at most \
10000000. Got 1000000000 instead.
    """
    fits = check_int(owner, "num_classes", value, 1) <= _MOST_CLASSES
    require(fits, owner, "num_classes", f"at most {_MOST_CLASSES}", value)


def replace_head(
    model: M,
    num_classes: int,
    *,
    head: Head = "linear",
    dropout: float = 0.0,
    classes: Sequence[str] | None = None,
) -> M:
    """Give a model a new head, in place of its own.

    The new head trains, even where everything else is frozen, and has torch's default
    initialization, drawn on the CPU so that a seed gives the same head on every device. It
    takes over the place, device, floating-point type and mode of the old one. Where that is
    a 1 x 1 convolution (SqueezeNet), the layers of the new one are 1 x 1 convolutions too.
    Auxiliary classifiers that the spec names get new last layers, which train if the old ones did.

    Args:
        model: Any module of which ``find_head`` knows the head.
        num_classes: Number of outputs.
        head: ``"linear"``; ``"mlp"``, with one hidden layer as wide as the features but at
            most 512, and a ReLU; a module; or a callable that gets the number of features
            and ``num_classes`` and returns a module.
        dropout: Probability of dropout before the last layer of ``"linear"`` or ``"mlp"``.
        classes: Names of the outputs, in order.

    Returns:
        The same model; its spec, if it has one, is up to date.

    Raises:
        ArgumentError: An argument makes no sense, or a head of one's own has other numbers
            of features or outputs.
        SelectorError: The head, or the number of its features, cannot be told.

    >>> model = replace_head(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 1000)), 2)
    >>> model[2]
    Linear(in_features=8, out_features=2, bias=True)
    """
    check_module("replace_head", model)
    check_num_classes("replace_head", num_classes)
    check_between("replace_head", "dropout", dropout, 0, 1)
    names = None if classes is None else _checked_classes(classes, num_classes)
    path = find_head(model)
    old = head_module(model)
    features = _features_of(old)
    new = _build(head, features, num_classes, dropout)
    _take_over(new, old)
    object.__setattr__(new, HEAD_MARK, _Features(features.inputs, num_classes, features.spatial))
    root = unwrapped(model)
    set_module(root, path, new)
    spec = find_spec(model)
    for auxiliary in () if spec is None else spec.auxiliary_heads:
        _replace_auxiliary(root, auxiliary, num_classes)
    # A count that the architecture keeps for itself would otherwise be wrong from now on.
    if features.outputs is not None and root.__dict__.get("num_classes") == features.outputs:
        object.__setattr__(root, "num_classes", num_classes)
    if spec is not None:
        kind = head if isinstance(head, str) else "custom"
        counted = dataclasses.replace(spec, head=path, num_classes=num_classes, classes=names)
        set_spec(model, dataclasses.replace(counted, head_kind=kind, head_dropout=float(dropout)))
    if any(is_held(module) for module in root.modules()):
        hold_frozen_modules(model)
    return model


def _edge(module: nn.Module, *, last: bool) -> tuple[int | None, bool]:
    """Return the number of features at the start or end of a module, and whether they are maps."""
    names = ("out_features", "out_channels") if last else ("in_features", "in_channels")
    for name in names:
        if isinstance(found := getattr(module, name, None), int):
            return found or None, isinstance(module, nn.Conv2d)
    children = [child for _, child in named_children(module) if has_parameters(child)]
    # Norms keep the number of features. In other modules than these, order says nothing.
    children = [child for child in children if not isinstance(child, _NORMS)]
    if children and (isinstance(module, nn.Sequential) or len(children) == 1):
        return _edge(children[-1 if last else 0], last=last)
    return None, False


def _features_of(module: nn.Module) -> _Features:
    marked: _Features | None = module.__dict__.get(HEAD_MARK)
    inputs, spatial = _edge(module, last=False)
    if inputs is None:
        if marked is not None:
            return marked
        lazy = any(is_lazy(parameter) for parameter in module.parameters())
        remedy = "run one batch through the model" if lazy else "put a torch.nn.Linear in its place"
        raise SelectorError(
            f"The number of features that the head {type(module).__name__} takes cannot be told; "
            f"{remedy} first."
        )
    return _Features(inputs, head_out_features(module), spatial)


def _checked_classes(classes: Sequence[str], num_classes: int) -> tuple[str, ...]:
    # A set has no order, so it cannot say which output is which.
    valid = isinstance(classes, Collection) and not isinstance(classes, (str, bytes, Set, Mapping))
    valid = valid and all(isinstance(name, str) for name in classes)
    valid = valid and len(classes) == len(set(classes)) == num_classes
    wanted = f"{num_classes} different strings, one for each output"
    require(valid, "replace_head", "classes", wanted, classes)
    return tuple(classes)


def _build(head: Head, features: _Features, num_classes: int, dropout: float) -> nn.Module:
    if isinstance(head, str) and head in ("linear", "mlp"):
        return _build_plain(head, features, num_classes, dropout)
    known = not isinstance(head, str) and (isinstance(head, nn.Module) or callable(head))
    wanted = "'linear', 'mlp', a torch.nn.Module or a callable (in_features, num_classes) -> torch.nn.Module"
    require(known, "replace_head", "head", wanted, head)
    require(dropout == 0, "replace_head", "dropout", "0 beside a head of your own", dropout)
    build: Any = head
    new = head if isinstance(head, nn.Module) else build(features.inputs, num_classes)
    require(isinstance(new, nn.Module), "replace_head", "head", wanted, new)
    (inputs, spatial), (outputs, _) = _edge(new, last=False), _edge(new, last=True)
    if inputs is not None and spatial != features.spatial:
        layers = "1 x 1 convolutions, since it works on maps" if features.spatial else "linear layers"
        raise ArgumentError(
            f"The 'head' parameter of replace_head must be made of {layers}. "
            f"Got a {type(new).__name__} instead."
        )
    if inputs not in (None, features.inputs) or outputs not in (None, num_classes):
        raise ArgumentError(
            f"The 'head' parameter of replace_head must take {features.inputs} features and give "
            f"{num_classes} outputs. Got a {type(new).__name__} that takes {inputs or 'an unknown number'} "
            f"and gives {outputs or 'an unknown number'} instead."
        )
    return new


def _build_plain(kind: str, features: _Features, num_classes: int, dropout: float) -> nn.Module:
    def layer(inputs: int, outputs: int) -> nn.Module:
        return nn.Conv2d(inputs, outputs, 1) if features.spatial else nn.Linear(inputs, outputs)

    if kind == "linear" and dropout == 0:
        return layer(features.inputs, num_classes)
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    width = features.inputs
    if kind == "mlp":
        width = min(features.inputs, _WIDEST_HIDDEN_LAYER)
        layers |= {"hidden": layer(features.inputs, width), "activation": nn.ReLU()}
    if dropout:
        layers["dropout"] = nn.Dropout(dropout)
    layers["output"] = layer(width, num_classes)
    return nn.Sequential(layers)


def _replace_auxiliary(model: nn.Module, path: str, num_classes: int) -> None:
    """Give an auxiliary classifier a last layer with as many outputs as the head has."""
    old = find_module(model, path)
    if isinstance(old, nn.Linear):
        new = nn.Linear(old.in_features, num_classes, bias=old.bias is not None)
        new.requires_grad_(old.weight.requires_grad)
        _take_over(new, old)
        set_module(model, path, new)


def _take_over(new: nn.Module, old: nn.Module) -> None:
    """Give a new head the device, floating-point type and mode of the old one."""
    like = next((parameter for parameter in old.parameters() if can_train(parameter)), None)
    if like is not None:
        new.to(device=like.device, dtype=like.dtype)
    new.train(asked_mode(old))
