"""List what has a name: backbones, data sets, augmentations, recipes."""

from __future__ import annotations

from collections.abc import Sequence

from transferkit.commands.common import Options, show


def backbones(options: Options) -> None:
    """List the backbones."""
    from transferkit.backbones.registry import list_backbones

    _show_names(options, "backbones", list_backbones(options.pattern))


def datasets(options: Options) -> None:
    """List the data sets that have a name."""
    from transferkit.datasets.registry import list_datasets

    _show_names(options, "datasets", list_datasets())


def augmentations(options: Options) -> None:
    """List the augmentation presets."""
    from transferkit.augmentations import list_augmentations

    _show_names(options, "augmentations", list_augmentations())


def recipes(options: Options) -> None:
    """List the recipes with their phases."""
    from transferkit.training.recipes import list_recipes, recipe_phases

    described = {
        name: [f"{phase.train} for {phase.epochs} epochs" for phase in recipe_phases(name)]
        for name in list_recipes()
    }
    lines = [f"{name}: {', then '.join(phases)}" for name, phases in described.items()]
    show(options, "\n".join(lines), {"recipes": described})


def _show_names(options: Options, kind: str, names: Sequence[str]) -> None:
    show(options, "\n".join(names), {kind: list(names)})
