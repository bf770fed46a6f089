"""Recipes: named sequences of phases."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Sequence

from transferkit.checks import require
from transferkit.registry import Registry
from transferkit.training.phases import Phase

RECIPES: Registry[Callable[[], Sequence[Phase]]] = Registry("recipe")


def register_recipe(name: str) -> Callable[[Callable[[], Sequence[Phase]]], Callable[[], Sequence[Phase]]]:
    """Decorate a function without arguments that returns the phases of a recipe.

    Raises:
        ArgumentError: The name is taken.

    >>> @register_recipe("doctest-last-stage")
    ... def last_stage():
    ...     '''Train the last stage of a ResNet and its head.'''
    ...     return [Phase(train=("layer4", "head"), epochs=5)]
    >>> "doctest-last-stage" in list_recipes()
    True
    """
    return RECIPES.register(name)


def list_recipes() -> list[str]:
    """Return the names of the registered recipes, sorted.

    >>> "lp-ft" in list_recipes()
    True
    """
    return sorted(RECIPES)


def recipe_phases(recipe: str | Phase | Sequence[Phase]) -> tuple[Phase, ...]:
    """Return the phases of a recipe, given by its name or as the phases themselves.

    Raises:
        UnknownNameError: There is no recipe of that name.
        ArgumentError: There are no phases, or something else is among them.

    >>> [phase.train for phase in recipe_phases("lp-ft")]
    ['head', 'all']
    """
    if isinstance(recipe, str):
        return tuple(RECIPES[recipe]())
    several = isinstance(recipe, Iterable)
    phases = (recipe,) if isinstance(recipe, Phase) else tuple(recipe) if several else ()
    valid = bool(phases) and all(isinstance(phase, Phase) for phase in phases)
    require(valid, "Trainer", "recipe", "the name of a recipe, a Phase or several", recipe)
    return phases


def by_steps(phases: Iterable[Phase]) -> tuple[Phase, ...]:
    """Return phases in which no solver fits the head.

    >>> [phase.solver for phase in by_steps(recipe_phases("linear-probe"))]
    ['sgd']
    """
    return tuple(dataclasses.replace(phase, solver="sgd") for phase in phases)


@register_recipe("linear-probe")
def linear_probe() -> list[Phase]:
    """Train the head on a frozen backbone (feature extraction)."""
    return [Phase(train="head", epochs=20, solver="lbfgs")]


@register_recipe("fine-tune")
def fine_tune() -> list[Phase]:
    """Train everything, the new head faster than the backbone."""
    return [Phase(train="all", epochs=12, freeze_batch_norm=True, augmentation="light")]


@register_recipe("lp-ft")
def probe_then_fine_tune() -> list[Phase]:
    """Train the head first, then everything from there (Kumar et al., 2022, arXiv:2202.10054)."""
    return [
        # By steps: fine-tuning gains less from a head that leaves hardly any loss (docs/recipes.md).
        Phase(train="head", epochs=10),
        Phase(train="all", epochs=10, freeze_batch_norm=True, augmentation="light"),
    ]


@register_recipe("gradual")
def gradual() -> list[Phase]:
    """Train the head, then one more stage in each phase, and in the end everything.

    The phases in between see plain images, so that what they freeze is computed once.

    Source:
        Howard and Ruder (2018), https://arxiv.org/abs/1801.06146, section 3.3: gradual unfreezing.
    """
    return [
        Phase(train="head", epochs=6),
        *(Phase(train=f"last:{count}", epochs=2, freeze_batch_norm=True) for count in (1, 2, 3)),
        Phase(train="all", epochs=8, freeze_batch_norm=True, augmentation="light"),
    ]
