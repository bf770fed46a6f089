"""Give a spec to a module of the user's own."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence, Set
from typing import TypeVar

from torch import nn

from transferkit.backbones.preprocessing import Preprocessing
from transferkit.backbones.preprocessing import preprocessing as resolve_preprocessing
from transferkit.backbones.spec import BackboneSpec, Stage, set_spec, unwrapped
from transferkit.backbones.stages import default_stages
from transferkit.checks import check_module, require
from transferkit.errors import SelectorError
from transferkit.heads import head_out_features
from transferkit.module_tree import find_module, plain_name
from transferkit.registry import nearest

M = TypeVar("M", bound=nn.Module)

Stages = Mapping[str, Sequence[str]] | Sequence[tuple[str, Sequence[str]]]
"""Names of stages, from input to output, with the paths of the modules in each."""


def attach_spec(
    model: M,
    *,
    head: str,
    preprocessing: str | Preprocessing,
    stages: Stages | None = None,
    classes: Sequence[str] | None = None,
) -> M:
    """Tell transferkit what it cannot see of a module: its head, and the images that it takes.

    Args:
        model: Any module that maps images ``[N, 3, size, size]`` to logits.
        head: Path of the module that gives the logits, such as ``"classifier.2"``.
        preprocessing: How images become what the model takes: a record, or ``"imagenet"``,
            ``"cifar10"`` or ``"squash"``.
        stages: Name and modules of each stage, from input to output. ``None`` makes a stage of
            each module beside the path to the head.
        classes: Names of the outputs, in order.

    Returns:
        The same model, with a spec in place of any other.

    Raises:
        SelectorError: A path names no module of the model.
        ArgumentError: An argument makes no sense.
        UnknownNameError: There is no preprocessing of that name.

    >>> net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 2))
    >>> net = attach_spec(net, head="3", preprocessing="cifar10", classes=["ant", "bee"])
    >>> from transferkit.backbones.spec import spec_of
    >>> spec_of(net).stages
    (Stage(name='0', members=('0',)),)
    """
    check_module("attach_spec", model)
    record = resolve_preprocessing(preprocessing)
    require(isinstance(head, str) and head != "", "attach_spec", "head", "the path of a module", head)
    outputs = head_out_features(_module_at(model, head))
    found = default_stages(unwrapped(model), head) if stages is None else _checked_stages(model, stages, head)
    spec = BackboneSpec(
        name="custom",
        head=head,
        preprocessing=record,
        stages=found,
        classes=None if classes is None else _checked_classes(classes, outputs),
        num_classes=outputs,
    )
    return set_spec(model, spec)


def _module_at(model: nn.Module, path: str) -> nn.Module:
    module = find_module(model, path)
    if module is None:
        paths = [plain_name(name) for name, _ in unwrapped(model).named_modules() if name]
        hint = f" {nearest(path, paths)}" if paths else ""
        raise SelectorError(f"This {type(unwrapped(model)).__name__} has no module {path!r}.{hint}")
    return module


def _checked_stages(model: nn.Module, stages: Stages, head: str) -> tuple[Stage, ...]:
    given = list(stages.items()) if isinstance(stages, Mapping) else stages
    valid = isinstance(given, (list, tuple)) and len(given) > 0 and all(_is_stage(each) for each in given)
    require(valid, "attach_spec", "stages", "names, each with a list of paths of modules", stages)
    pairs = [(name, tuple(paths)) for name, paths in given]
    names = [name for name, _ in pairs]
    require(len(set(names)) == len(names), "attach_spec", "stages", "stages of different names", names)
    members = [path for _, paths in pairs for path in paths]
    for path in members:
        _module_at(model, path)
        outside = not f"{path}.".startswith(f"{head}.") and not f"{head}.".startswith(f"{path}.")
        require(outside, "attach_spec", "stages", f"modules outside the head {head!r}", path)
    require(len(set(members)) == len(members), "attach_spec", "stages", "modules of one stage each", members)
    return tuple(Stage(name, paths) for name, paths in pairs)


def _is_stage(value: object) -> bool:
    """Whether a value is a name with paths of modules."""
    if not isinstance(value, tuple) or len(value) != 2:
        return False
    name, paths = value
    listed = isinstance(name, str) and isinstance(paths, (list, tuple)) and len(paths) > 0
    return listed and all(isinstance(path, str) and path != "" for path in paths)


def _checked_classes(classes: Sequence[str], outputs: int | None) -> tuple[str, ...]:
    # A set has no order, so it cannot say which output is which.
    several = isinstance(classes, Collection) and not isinstance(classes, (str, bytes, Set, Mapping))
    names = tuple(classes) if several else ()
    valid = bool(names) and all(isinstance(name, str) for name in names) and len(set(names)) == len(names)
    require(valid, "attach_spec", "classes", "a list of different names", classes)
    fits = outputs is None or len(names) == outputs
    require(fits, "attach_spec", "classes", f"{outputs} names, one for each output of the head", classes)
    return names
