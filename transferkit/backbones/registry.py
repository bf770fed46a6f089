"""Backbones by name."""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Mapping
from typing import Any, Protocol, runtime_checkable

from torch import Tensor, nn

from transferkit.backbones.other_tasks import other_task
from transferkit.backbones.spec import BackboneSpec
from transferkit.checks import require
from transferkit.errors import UnknownNameError
from transferkit.registry import Registry

BackboneFactory = Callable[..., tuple[nn.Module, BackboneSpec]]
"""``factory(*, weights, num_classes, image_size, **builder_kwargs) -> (module, spec)``."""


class _Backbones(Registry[BackboneFactory]):
    """Says what a model of torchvision's is for where it is no classifier of images."""

    def __getitem__(self, name: str) -> BackboneFactory:
        try:
            return super().__getitem__(name)
        except UnknownNameError:
            task = other_task(name)
            if task is None:
                raise
            plain = name.removeprefix("quantized_")
            hint = f", such as {plain!r}" if plain in self else ""
            raise UnknownNameError(
                f"There is no backbone {name!r}: torchvision's model of that name {task}, and transferkit "
                f"offers models that classify images{hint}."
            ) from None


BACKBONES = _Backbones(
    "backbone", sources=("transferkit.backbones.torchvision", "transferkit.backbones.embedded")
)


@runtime_checkable
class ReadsFiles(Protocol):
    """What a factory may offer besides, where files of its weights need some care."""

    @property
    def file_arguments(self) -> Mapping[str, Any]:
        """Builder arguments that apply where weights come from a file."""

    def fit_state(
        self, state: dict[str, Tensor], module: nn.Module, *, image_size: int | None
    ) -> dict[str, Tensor]:
        """Return the tensors of a file under the names, and at the sizes, that the module has."""


def register_backbone(name: str) -> Callable[[BackboneFactory], BackboneFactory]:
    """Decorate a factory of a backbone, so that ``load_backbone`` finds it by name.

    The factory takes ``weights`` (``"default"``, a name of its own, or ``None`` for random
    ones), ``num_classes`` (which counts only for random weights), ``image_size`` and
    arguments of its own, all by keyword. It returns the module and its ``BackboneSpec``.
    Files of weights, new heads and devices are left to ``load_backbone``.

    Args:
        name: What users call it; it must be free.

    Raises:
        ArgumentError: The name is taken or empty.

    >>> from transferkit.backbones.preprocessing import Preprocessing
    >>> @register_backbone("one-pixel")
    ... def one_pixel(*, weights=None, num_classes=None, image_size=None):
    ...     outputs = num_classes or 10
    ...     module = nn.Sequential(nn.Flatten(), nn.Linear(3, outputs))
    ...     return module, BackboneSpec("one-pixel", "1", Preprocessing(size=1), num_classes=outputs)
    >>> list_backbones("one-*")
    ['one-pixel']
    """
    return BACKBONES.register(name)


def list_backbones(pattern: str = "*") -> list[str]:
    """Return the names of all backbones that match a glob pattern, sorted.

    Args:
        pattern: Such as ``"resnet*"``.

    Raises:
        ArgumentError: It is no text.

    >>> list_backbones("resnet*")
    ['resnet101', 'resnet152', 'resnet18', 'resnet34', 'resnet50']
    """
    require(isinstance(pattern, str), "list_backbones", "pattern", "a glob such as 'resnet*'", pattern)
    return sorted(fnmatch.filter(BACKBONES, pattern))
