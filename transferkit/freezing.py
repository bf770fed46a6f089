"""Choose what trains: freeze and unfreeze parameters by name, pattern, stage or predicate."""

from __future__ import annotations

from collections.abc import Callable, Collection
from fnmatch import fnmatchcase
from typing import Any, TypeVar

from torch import Tensor, nn

from transferkit.backbones.spec import find_spec, unwrapped
from transferkit.backbones.stages import stage_indices
from transferkit.checks import check_module, require
from transferkit.errors import SelectorError
from transferkit.heads import find_head
from transferkit.modes import hold_frozen_modules
from transferkit.module_tree import can_train, named_parameters, plain_name
from transferkit.registry import nearest

M = TypeVar("M", bound=nn.Module)

Selector = str | Callable[[str, nn.Parameter], bool]
Selectors = Selector | Collection[Selector]


def freeze(model: M, *, except_: Selectors | None = "head") -> M:
    """Train only what ``except_`` selects, and hold everything else fixed.

    A module whose parameters are all frozen stays in inference mode from now on (batch-norm
    statistics, dropout, stochastic depth), whatever ``model.train()`` is called, so that it
    gives the same outputs in training as in use. A later call replaces the whole plan.

    Args:
        model: Any module, compiled or not; nothing but its training changes.
        except_: What trains; see ``select_parameters``. ``None`` freezes everything.

    Returns:
        The same model.

    Raises:
        SelectorError: A selector matches nothing, or ``"head"`` cannot be told; nothing was changed.
        ArgumentError: Something else than selectors was given, or a lazy module has no shape yet.

    Source:
        Batch norm that moves though it is frozen: https://github.com/pytorch/pytorch/issues/86590.

    >>> model = freeze(nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 2)))
    >>> [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    ['2.weight', '2.bias']
    >>> [layer.training for layer in model.train()]
    [False, False, True]
    """
    check_module("freeze", model)
    parameters = named_parameters(model)
    chosen = set() if except_ is None else _select(model, parameters, except_, "freeze", "except_")
    # A tied parameter has several names; to select one of them is enough.
    trains = {id(parameter) for name, parameter in parameters if name in chosen}
    for _, parameter in parameters:
        if can_train(parameter):
            parameter.requires_grad_(id(parameter) in trains)
            if not parameter.requires_grad:
                # With a gradient left over, an optimizer that holds the parameter would move it.
                parameter.grad = None
    return hold_frozen_modules(model)


def unfreeze(model: M, *, only: Selectors | None = None) -> M:
    """Make parameters train again; their modules follow ``model.train()`` as they did before.

    Args:
        model: A module on which ``freeze`` was called; on another it changes nothing but
            parameters that were frozen by hand.
        only: What to unfreeze; see ``select_parameters``. ``None`` unfreezes everything.

    Returns:
        The same model.

    Raises:
        SelectorError: A selector matches nothing; nothing was changed.
        ArgumentError: Something else than selectors was given.

    >>> model = freeze(nn.Sequential(nn.Linear(4, 8), nn.Dropout(), nn.Linear(8, 2)), except_=None)
    >>> [layer.training for layer in unfreeze(model, only="2").train()]
    [False, True, True]
    """
    check_module("unfreeze", model)
    parameters = named_parameters(model)
    every = {name for name, _ in parameters}
    chosen = every if only is None else _select(model, parameters, only, "unfreeze", "only")
    for name, parameter in parameters:
        if name in chosen and can_train(parameter):
            parameter.requires_grad_(True)
    return hold_frozen_modules(model)


def select_parameters(model: nn.Module, selectors: Selectors) -> set[str]:
    """Return the names of the parameters that selectors match.

    Args:
        model: Any module; names are those of the model inside ``torch.compile``.
        selectors: One of the following, or a list, tuple or set of them.

            - ``"head"``: the model's head, whatever its attribute is called. Where there is no
              spec and an attribute is called ``head``, all of that attribute.
            - A name: it matches on dot boundaries, so ``"layer4"`` matches
              ``layer4.0.conv1.weight`` but not ``layer40.weight``. The name of a stage of the
              model's spec matches all of that stage, as ``summary`` shows it.
            - A pattern, which contains ``*``, ``?`` or ``[``: it must match the whole name of
              the parameter or of a module that the parameter is in.
            - A callable that gets the name and the parameter and returns whether it is meant.

    Raises:
        SelectorError: A selector matches nothing, or ``"head"`` cannot be told.
        ArgumentError: Something else was given.

    >>> model = nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 2))
    >>> sorted(select_parameters(model, ["head", "*.weight"]))
    ['0.weight', '1.bias', '1.weight']
    """
    return _select(model, named_parameters(model), selectors, "select_parameters", "selectors")


def _select(
    model: nn.Module,
    parameters: list[tuple[str, nn.Parameter]],
    selectors: Selectors,
    owner: str,
    argument: str,
) -> set[str]:
    # A module or tensor can be a collection, and a module is a callable, but its giver means neither.
    if isinstance(selectors, Collection) and not isinstance(selectors, (str, nn.Module, Tensor)):
        several: list[Any] = list(selectors)
    else:
        several = [selectors]
    require(bool(several), owner, argument, "at least one selector", selectors)
    chosen: set[str] = set()
    for selector in several:
        valid = isinstance(selector, str) or (callable(selector) and not isinstance(selector, nn.Module))
        require(valid, owner, argument, "names, patterns or callables (name, parameter) -> bool", selector)
        if isinstance(selector, str):
            found = _match_text(model, [name for name, _ in parameters], plain_name(selector))
        else:
            found = {name for name, parameter in parameters if selector(name, parameter)}
        if not found:
            kind = type(unwrapped(model)).__name__
            text = isinstance(selector, str)
            shown = repr(selector) if text else getattr(selector, "__name__", repr(selector))
            hint = f" {nearest(str(selector), _all_names(model, parameters))}" if text else ""
            raise SelectorError(
                f"The {argument!r} parameter of {owner} must match parameters of this {kind}. "
                f"Got {shown}, which matches none.{hint}"
            )
        chosen |= found
    return chosen


def _match_text(model: nn.Module, names: list[str], selector: str) -> set[str]:
    if selector == "head":
        literal = {name for name in names if _is_below(name, "head")}
        # In a user's own module the attribute called head is meant, all of it.
        if find_spec(model) is not None or not literal:
            head = find_head(model)
            return {name for name in names if _is_below(name, head)}
        return literal
    if any(sign in selector for sign in "*?["):
        return {name for name in names if any(fnmatchcase(part, selector) for part in _prefixes(name))}
    found = {name for name in names if _is_below(name, selector)}
    spec = find_spec(model)
    stages = [stage.name for stage in spec.stages] if spec else []
    if selector in stages:
        found |= {name for name, number in stage_indices(model).items() if number == stages.index(selector)}
    return found


def _is_below(name: str, place: str) -> bool:
    return name == place or name.startswith(f"{place}.")


def _prefixes(name: str) -> list[str]:
    parts = name.split(".")
    return [".".join(parts[: count + 1]) for count in range(len(parts))]


def _all_names(model: nn.Module, parameters: list[tuple[str, nn.Parameter]]) -> set[str]:
    spec = find_spec(model)
    stages = {stage.name for stage in spec.stages} if spec else set()
    return {"head"} | stages | {part for name, _ in parameters for part in _prefixes(name)}
