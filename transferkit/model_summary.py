"""A table of what a model holds and of what trains."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from torch import nn

from transferkit.backbones.spec import find_spec, unwrapped
from transferkit.backbones.stages import stage_indices
from transferkit.checks import check_module
from transferkit.heads import find_head
from transferkit.modes import is_held
from transferkit.module_tree import find_module, has_parameters, named_children, named_parameters

_REST = "other"


class SummaryRow(NamedTuple):
    """One line of a summary.

    Attributes:
        stage: Name of the stage, or of a direct child where the model has no stages.
        parameters: Number of values in all of its parameters; those of a tied parameter are
            counted in the first row that has it.
        trainable: How many of them train.
        mode: ``"frozen"`` is inference mode whatever ``model.train()`` is called;
            ``"training"`` and ``"inference"`` are the modes that the caller chose, and
            ``"mixed"`` is more than one of these.
    """

    stage: str
    parameters: int
    trainable: int
    mode: str


@dataclass(frozen=True)
class Summary:
    """What a model holds, as ``summary`` found it; its text is a table.

    Attributes:
        model: Name of the model's spec, or of its class.
        rows: One for each stage, from input to output, then the head. Without a spec ``other``
            is what no child holds.
    """

    model: str
    rows: tuple[SummaryRow, ...]

    @property
    def parameters(self) -> int:
        """Number of values in all parameters."""
        return sum(row.parameters for row in self.rows)

    @property
    def trainable(self) -> int:
        """Number of values that train."""
        return sum(row.trainable for row in self.rows)

    def __str__(self) -> str:
        header = (self.model, "parameters", "trainable", "mode")
        body = [(row.stage, f"{row.parameters:,}", f"{row.trainable:,}", row.mode) for row in self.rows]
        body.append(("total", f"{self.parameters:,}", f"{self.trainable:,}", ""))
        widths = [max(len(line[column]) for line in (header, *body)) for column in range(4)]
        lines = [
            f"{stage:<{widths[0]}}  {count:>{widths[1]}}  {trains:>{widths[2]}}  {mode}".rstrip()
            for stage, count, trains, mode in (header, *body)
        ]
        rule = "-" * max(len(line) for line in lines)
        return "\n".join([lines[0], rule, *lines[1:-1], rule, lines[-1]])


def summary(model: nn.Module) -> Summary:
    """Count the parameters of a model's stages, and say which train and in which mode they are.

    Args:
        model: Any module, compiled or not. With a spec the rows are its stages and its head,
            otherwise the direct children of the model.

    Raises:
        ArgumentError: The model is no module, or a lazy one that has not seen its first batch.
        SelectorError: The head that the spec names is gone.

    >>> from transferkit.freezing import freeze
    >>> print(summary(freeze(nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 2)))))
    Sequential  parameters  trainable  mode
    -------------------------------------------
    0                   40          0  frozen
    1                   18         18  training
    -------------------------------------------
    total               58         18
    """
    check_module("summary", model)
    places, stage_of = _stages(model)
    counts = {stage: [0, 0] for stage in places}
    seen: set[int] = set()
    for name, parameter in named_parameters(model):
        if id(parameter) not in seen:
            seen.add(id(parameter))
            count = counts.setdefault(stage_of.get(name, _REST), [0, 0])
            count[0] += parameter.numel()
            count[1] += parameter.numel() * parameter.requires_grad
    rows = (
        SummaryRow(stage, held, trains, _mode_of(model, places.get(stage, ())))
        for stage, (held, trains) in counts.items()
    )
    spec = find_spec(model)
    name = type(unwrapped(model)).__name__ if spec is None or spec.name == "custom" else spec.name
    return Summary(name, tuple(rows))


def _stages(model: nn.Module) -> tuple[dict[str, tuple[str, ...]], dict[str, str]]:
    """Return the paths of the modules of each row, in order, and the row of each parameter."""
    spec = find_spec(model)
    if spec is not None and spec.stages:
        places = {stage.name: stage.members for stage in spec.stages} | {"head": (find_head(model),)}
        rows = list(places)
        return places, {name: rows[number] for name, number in stage_indices(model).items()}
    children = [name for name, child in named_children(unwrapped(model)) if has_parameters(child)]
    row_of = {name: name.partition(".")[0] for name, _ in named_parameters(model) if "." in name}
    return {name: (name,) for name in children}, row_of


def _mode_of(model: nn.Module, paths: tuple[str, ...]) -> str:
    found = [module for path in paths if (module := find_module(model, path)) is not None]
    modes = {
        "frozen" if is_held(module) else "training" if module.training else "inference"
        for top in found
        for module in top.modules()
        if unwrapped(module) is module
    }
    return modes.pop() if len(modes) == 1 else "mixed" if modes else ""
