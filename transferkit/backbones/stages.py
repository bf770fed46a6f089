"""The stages of a backbone: rules that find them in a module, and the stage of each parameter."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from torch import nn

from transferkit.backbones.spec import Stage, find_spec
from transferkit.heads import find_head
from transferkit.module_tree import find_module, named_children, named_parameters


@dataclass(frozen=True)
class Each:
    """A rule: every child of a container that has parameters is a stage of its own.

    Attributes:
        name: What the stages are called, with a number after it that counts on from rule to rule.
        container: Path of the container.
    """

    name: str
    container: str


@dataclass(frozen=True)
class CutAfter:
    """A rule: the children of a container are grouped; a child of one type ends each group.

    Attributes:
        name: What the stages are called, with a number after it.
        container: Path of the container.
        last: The type that ends a group, such as a pooling layer.
    """

    name: str
    container: str
    last: type[nn.Module]


Rule = Stage | Each | CutAfter
"""How to find stages in a module; a ``Stage`` stands for itself."""


def span(container: str, first: int, last: int) -> tuple[str, ...]:
    """Return the paths of some consecutive children of a numbered container.

    >>> span("features", 2, 4)
    ('features.2', 'features.3', 'features.4')
    """
    return tuple(f"{container}.{number}" for number in range(first, last + 1))


def find_stages(module: nn.Module, rules: Iterable[Rule]) -> tuple[Stage, ...]:
    """Apply rules to a module.

    Modules without parameters are left out, and so are members that the module does not
    have: a builder's arguments may change how many blocks there are.

    >>> find_stages(nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2)), [Each("layer", "")])
    (Stage(name='layer1', members=('0',)), Stage(name='layer2', members=('2',)))
    """
    stages: list[Stage] = []
    numbers: dict[str, int] = {}
    for rule in rules:
        for members in _groups(module, rule):
            found = tuple(path for path in members if _has_parameters(find_module(module, path)))
            if found:
                name = rule.name
                if not isinstance(rule, Stage):
                    numbers[name] = numbers.get(name, 0) + 1
                    name = f"{name}{numbers[name]}"
                stages.append(Stage(name, found))
    return tuple(stages)


def default_stages(module: nn.Module, head: str) -> tuple[Stage, ...]:
    """Return the stages of a module of which only the head is known.

    They are the modules beside the path to the head. Where there is only one, such as a whole
    backbone in front of a head, its children are the stages.

    >>> default_stages(nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 8), nn.Linear(8, 2)), "2")
    (Stage(name='0', members=('0',)), Stage(name='1', members=('1',)))
    """
    paths = list(_beside(module, "", head))
    while len(paths) == 1:
        inner = find_module(module, paths[0])
        children = [] if inner is None else list(_beside(inner, paths[0], head))
        if not children:
            break
        paths = children
    return tuple(Stage(path, (path,)) for path in paths)


def stage_indices(model: nn.Module) -> dict[str, int]:
    """Return the stage of each parameter, counted from the input.

    A parameter that no stage lists follows the one registered before it: those before the first
    stage belong to the first, those after the last to the last.

    Args:
        model: Any module of which the head is known, compiled or not. Without stages in a spec
            the whole backbone is one.

    Returns:
        For each name of a parameter, its stage: 0 to n - 1 in the backbone, n in the head. Names
        do not show the wrappers of ``torch.compile``; a tied parameter has all of its names.

    Raises:
        SelectorError: The head cannot be told.

    >>> stage_indices(nn.Sequential(nn.Linear(4, 8, bias=False), nn.Linear(8, 2, bias=False)))
    {'0.weight': 0, '1.weight': 1}
    """
    spec = find_spec(model)
    stages = () if spec is None else spec.stages
    owners = {member: number for number, stage in enumerate(stages) for member in stage.members}
    owners[find_head(model)] = after = max(1, len(stages))
    indices: dict[str, int] = {}
    current = 0
    for name, _ in named_parameters(model):
        owner = next((owners[path] for path in _parents(name) if path in owners), current)
        indices[name] = owner
        if owner != after:
            current = owner
    return indices


def _groups(module: nn.Module, rule: Rule) -> Iterator[tuple[str, ...]]:
    """Yield the members of each stage that a rule finds."""
    if isinstance(rule, Stage):
        yield rule.members
        return
    container = find_module(module, rule.container)
    group: list[str] = []
    for name, child in () if container is None else named_children(container):
        group.append(f"{rule.container}.{name}".removeprefix("."))
        if isinstance(rule, Each) or isinstance(child, rule.last):
            yield tuple(group)
            group = []
    yield tuple(group)


def _beside(module: nn.Module, path: str, head: str) -> Iterator[str]:
    """Yield the paths of the modules with parameters that do not hold the head."""
    for name, child in named_children(module):
        inner = f"{path}.{name}".removeprefix(".")
        if f"{head}.".startswith(f"{inner}."):
            yield from _beside(child, inner, head) if inner != head else ()
        elif _has_parameters(child):
            yield inner


def _has_parameters(module: nn.Module | None) -> bool:
    return module is not None and next(module.parameters(), None) is not None


def _parents(name: str) -> Iterator[str]:
    """Yield the paths of the modules that hold a parameter, the innermost first."""
    while name:
        name = name.rpartition(".")[0]
        yield name
