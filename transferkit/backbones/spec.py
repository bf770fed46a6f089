"""What transferkit knows of a model: a small frozen record that travels with it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeVar, cast

from torch import nn
from torch.nn.parallel import DistributedDataParallel

from transferkit.backbones.preprocessing import Preprocessing
from transferkit.checks import check_module
from transferkit.errors import ArgumentError

M = TypeVar("M", bound=nn.Module)

# An entry of the instance's __dict__, so that deepcopy, pickling and .to() carry it along.
_ATTRIBUTE = "_transferkit_spec"


class Stage(NamedTuple):
    """Some consecutive modules of a backbone that freeze, thaw and decay together."""

    name: str
    members: tuple[str, ...]


@dataclass(frozen=True)
class BackboneSpec:
    """What transferkit knows of a model.

    Attributes:
        name: The registered name, or ``"custom"`` for a module of the user's own.
        head: Path of the module that gives the logits, such as ``"fc"`` or ``"classifier.6"``.
        preprocessing: How images become what the model takes.
        stages: The backbone's stages from input to output; each member is the path of a module.
        classes: Names of the outputs, in order, where they are known.
        num_classes: Number of outputs when the record was written.
        weights: Where the weights come from, such as ``"IMAGENET1K_V1"``; ``None`` if random.
        builder_kwargs: Arguments with which the builder makes the same architecture again.
        head_kind: ``"original"``, ``"linear"``, ``"mlp"`` or ``"custom"``.
        head_dropout: Probability of dropout before the head's last layer.
        selected_on: Fingerprint of the part on which the weights were selected, if they were.
        auxiliary_heads: Paths of the layers that give the logits of auxiliary classifiers.
    """

    name: str
    head: str
    preprocessing: Preprocessing
    stages: tuple[Stage, ...] = ()
    classes: tuple[str, ...] | None = None
    num_classes: int | None = None
    weights: str | None = None
    builder_kwargs: Mapping[str, Any] = field(default_factory=dict)
    head_kind: str = "original"
    head_dropout: float = 0.0
    selected_on: str | None = None
    auxiliary_heads: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "auxiliary_heads", tuple(self.auxiliary_heads))  # JSON has lists


def find_spec(model: nn.Module) -> BackboneSpec | None:
    """Return the model's record, or ``None`` if it has none."""
    found = getattr(unwrapped(model), _ATTRIBUTE, None)
    return found if isinstance(found, BackboneSpec) else None


def spec_of(model: nn.Module) -> BackboneSpec:
    """Return the record of a model.

    Raises:
        ArgumentError: The model has none, or is no module; ``attach_spec`` gives it one.
    """
    check_module("spec_of", model)
    found = find_spec(model)
    if found is None:
        raise ArgumentError(
            f"This {type(model).__name__} has no spec; give it one with "
            "transferkit.attach_spec(model, head=..., preprocessing=...)."
        )
    return found


def set_spec(model: M, spec: BackboneSpec) -> M:
    """Put a record on a model, in place of any other, and return the model."""
    object.__setattr__(unwrapped(model), _ATTRIBUTE, spec)
    return model


def unwrapped(model: nn.Module) -> nn.Module:
    """Return the module inside the wrappers of ``torch.compile`` and data parallelism, or itself."""
    while True:
        if isinstance(model, (nn.DataParallel, DistributedDataParallel)):
            model = model.module
        elif "_orig_mod" in model._modules:  # what torch.compile calls the module that it wraps
            model = cast(nn.Module, model._modules["_orig_mod"])
        else:
            return model
