"""Backbones by name."""

from __future__ import annotations

import fnmatch
import importlib
from collections.abc import Callable
from typing import Protocol, runtime_checkable

from torch import Tensor, nn

from transferkit.backbones.other_tasks import other_task
from transferkit.backbones.spec import BackboneSpec
from transferkit.checks import require
from transferkit.errors import UnknownNameError
from transferkit.registry import Registry, shown

BackboneFactory = Callable[..., tuple[nn.Module, BackboneSpec]]
"""``factory(*, weights, num_classes, image_size, **builder_kwargs) -> (module, spec)``."""


# Other libraries' models: their names are too many to be listed with the others, or are not known here.
_LIBRARIES = {"timm/": "transferkit.backbones.timm", "hf/": "transferkit.backbones.huggingface"}


class _Backbones(Registry[BackboneFactory]):
    """Finds other libraries' models too, and says what a model of torchvision's is for if not to classify."""

    def __getitem__(self, name: str) -> BackboneFactory:
        for prefix, module in _LIBRARIES.items():
            if isinstance(name, str) and name.startswith(prefix):
                found: BackboneFactory = importlib.import_module(module).factory(name)
                return found
        try:
            return super().__getitem__(name)
        except UnknownNameError:
            task = other_task(name)
            if task is None:
                if not isinstance(name, str) or "/" not in name.strip("/"):
                    raise
                raise UnknownNameError(
                    f"There is no backbone {shown(name)}; names of Hugging Face models and of their folders "
                    "begin with 'hf/', those of timm with 'timm/'."
                ) from None
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
    """What a factory may offer besides, where files of its weights need some care.

    Builder arguments that apply only where weights come from a file may be in its ``file_arguments``.
    """

    def fit_state(
        self, state: dict[str, Tensor], module: nn.Module, *, image_size: int | None, source: str
    ) -> dict[str, Tensor]:
        """Return the tensors of a file under the names, and at the sizes, that the module has.

        ``source`` is the path of the file, for messages.
        """


def register_backbone(name: str) -> Callable[[BackboneFactory], BackboneFactory]:
    """Decorate a factory of a backbone, so that ``load_backbone`` finds it by name.

    The factory takes ``weights`` (``"default"``, a name of its own, or ``None`` for random
    ones), ``num_classes`` (which counts only for random weights), ``image_size`` and
    arguments of its own, all by keyword. It returns the module and its ``BackboneSpec``. If it has a
    parameter ``preprocessing``, it is given the record that the user gave, or ``None``.
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
        pattern: Such as ``"resnet*"``. Models of timm are listed where it begins with ``"timm/"``;
            those of Hugging Face (``"hf/…"``) are not listed anywhere but on their hub.

    Raises:
        ArgumentError: It is no text, or begins with ``"hf/"``.
        MissingExtraError: It begins with ``"timm/"``, and timm is not installed.

    >>> list_backbones("resnet*")
    ['resnet101', 'resnet152', 'resnet18', 'resnet34', 'resnet50']
    """
    listed = isinstance(pattern, str) and not pattern.startswith("hf/")
    wanted = "a glob such as 'resnet*' or 'timm/resnet*' (models of Hugging Face are listed on their hub)"
    require(listed, "list_backbones", "pattern", wanted, pattern)
    if pattern.startswith("timm/"):
        found: list[str] = importlib.import_module(_LIBRARIES["timm/"]).names(pattern)
        return found
    return sorted(fnmatch.filter(BACKBONES, pattern))
