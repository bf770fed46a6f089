"""Builds the classification models of torchvision from the records of their families."""

from __future__ import annotations

import contextlib
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from typing import Any
from urllib.error import URLError

import torch
from torch import Tensor, nn
from torchvision import models

from transferkit.backbones.numbers_on_cpu import NumbersOnCpu
from transferkit.backbones.preprocessing import Preprocessing
from transferkit.backbones.registry import register_backbone
from transferkit.backbones.spec import BackboneSpec
from transferkit.backbones.stages import find_stages
from transferkit.backbones.torchvision_families import FAMILIES, Family
from transferkit.checks import check_choice, check_int, require
from transferkit.errors import ArgumentError, CheckpointCorruptError, DownloadError, OutputError
from transferkit.loading.weights import load_weights
from transferkit.module_tree import find_module


@dataclass(frozen=True)
class TorchvisionFactory:
    """Builds one model of torchvision, with its spec.

    Attributes:
        name: torchvision's name for the model.
        family: The record of its architecture.
    """

    name: str
    family: Family

    def __call__(
        self,
        *,
        weights: str | None = "default",
        num_classes: int | None = None,
        image_size: int | None = None,
        **builder_kwargs: Any,
    ) -> tuple[nn.Module, BackboneSpec]:
        """Build the model; see ``register_backbone`` for the arguments."""
        entry = self._weights(weights)
        preprocessing = _preprocessing_of(self._weights("default") if entry is None else entry)
        if image_size is not None:
            self._check_size(image_size, auxiliary=bool(builder_kwargs.get("aux_logits")))
            preprocessing = preprocessing.with_size(image_size)
        family = self.family
        defaults = {**family.arguments, **({} if entry is None else family.pretrained_arguments)}
        arguments = {**defaults, **builder_kwargs, **self._size_arguments(preprocessing.size)}
        self._check_no_conflict(builder_kwargs, arguments)
        classes = None if entry is None else tuple(entry.meta["categories"])
        outputs = len(classes) if classes else 1000 if num_classes is None else num_classes
        try:
            numbers = NumbersOnCpu(torch.arange, torch.tensor)
            with numbers if family.widths_from_tensors else contextlib.nullcontext():
                module = models.get_model(self.name, weights=None, num_classes=outputs, **arguments)
        except (TypeError, ValueError) as error:
            raise ArgumentError(f"torchvision cannot build {self.name!r} as asked: {error}.") from error
        if entry is not None:
            state = _download(self.name, entry)
            origin = f"{entry.name} of {self.name!r}"
            state = self.fit_state(state, module, image_size=preprocessing.size, source=origin)
            load_weights(module, state, source=origin)
        return module, BackboneSpec(
            name=self.name,
            head=family.head,
            preprocessing=preprocessing,
            stages=find_stages(module, family.stages),
            classes=classes,
            num_classes=outputs,
            weights=None if entry is None else entry.name,
            builder_kwargs=arguments,
            auxiliary_heads=tuple(path for path in family.auxiliary_heads if find_module(module, path)),
        )

    @property
    def file_arguments(self) -> Mapping[str, Any]:
        """Builder arguments that apply where weights come from a file."""
        return self.family.pretrained_arguments

    def fit_state(
        self, state: dict[str, Tensor], module: nn.Module, *, image_size: int | None, source: str
    ) -> dict[str, Tensor]:
        """Return the tensors of one of torchvision's files as the module takes them.

        Old names are brought up to date, and auxiliary classifiers that the module does not have
        are left out. Position embeddings are interpolated if ``image_size`` is given.
        """
        own = module.state_dict().keys()
        fitted = type(state)()
        for name, tensor in state.items():
            for pattern, replacement in self.family.renames:
                name = re.sub(pattern, replacement, name)
            if name in own or not name.startswith(tuple(f"{path}." for path in self.family.auxiliary)):
                fitted[name] = tensor
        if hasattr(state, "_metadata"):
            undeclared: Any = fitted
            undeclared._metadata = state._metadata
        if self.family.positions and image_size is not None:
            _interpolate_positions(fitted, image_size, self.family.multiple)
        return fitted

    def _weights(self, name: str | None) -> Any:
        """Return an entry of torchvision's enum of weights."""
        if name is None:
            return None
        enum = models.get_model_weights(self.name)
        if name == "default":
            return enum.DEFAULT
        # Weights without classes (of VGG-16) hold no numbers from the first linear layer on.
        usable = [entry.name for entry in enum if entry.meta["categories"]]
        return enum[check_choice(f"load_backbone({self.name!r})", "weights", name, ("default", *usable))]

    def _check_size(self, size: int, *, auxiliary: bool) -> None:
        check_int("load_backbone", "image_size", size, 1)
        smallest, multiple = self.family.smallest, self.family.multiple
        if auxiliary:
            smallest = max(smallest, self.family.smallest_auxiliary)
        valid = size >= smallest and size % multiple == 0
        wanted = f"an int of at least {smallest}"
        if multiple > 1:
            below = max(smallest, size // multiple * multiple)
            wanted = f"a multiple of {multiple}, such as {below} or {below + multiple},"
        model = f"{self.name!r} with aux_logits=True" if auxiliary else repr(self.name)
        require(valid, "load_backbone", "image_size", f"{wanted} for {model}", size)

    def _size_arguments(self, size: int) -> dict[str, Any]:
        if self.family.size_argument is None:
            return {}
        return {self.family.size_argument: [size, size] if self.family.size_is_pair else size}

    def _check_no_conflict(self, given: Mapping[str, Any], arguments: Mapping[str, Any]) -> None:
        """Refuse a size among the builder's arguments that is another than the one in use."""
        name = self.family.size_argument
        if name is not None and name in given:
            asked = list(given[name]) if self.family.size_is_pair else given[name]
            wanted = f"left out, or be {arguments[name]!r} as image_size and preprocessing say"
            require(asked == arguments[name], f"load_backbone({self.name!r})", name, wanted, given[name])


def _preprocessing_of(entry: Any) -> Preprocessing:
    """Turn torchvision's transforms for some weights into a record."""
    transforms = entry.transforms()
    return Preprocessing(
        size=transforms.crop_size[0],
        resize=transforms.resize_size[0],
        mean=tuple(transforms.mean),
        std=tuple(transforms.std),
        interpolation=transforms.interpolation.value,
    )


def _download(name: str, entry: Any) -> dict[str, Tensor]:
    """Return torchvision's weights from its cache, or from the network if they are not there."""
    weights = f"The weights {entry.name!r} of {name!r}"
    instead = "pass weights=<path of a file>, or weights=None for random ones"
    stored = Path(torch.hub.get_dir(), "checkpoints", entry.url.rpartition("/")[2])
    try:
        # torch.hub announces a download on standard output, which is for results.
        with contextlib.redirect_stdout(sys.stderr):
            state: dict[str, Tensor] = entry.get_state_dict(
                progress=True, check_hash=True, map_location="cpu", weights_only=True
            )
    except (URLError, HTTPException, TimeoutError, ConnectionError) as error:
        reason = getattr(error, "reason", None) or error or type(error).__name__
        raise DownloadError(
            f"{weights} could not be fetched from {entry.url} ({reason}); {instead}."
        ) from error
    except OSError as error:
        raise OutputError(f"{weights} could not be stored at {stored}: {error.strerror or error}.") from error
    except Exception as error:
        if "invalid hash value" in str(error):
            raise DownloadError(
                f"{weights} came damaged from {entry.url}; try again, or {instead}."
            ) from error
        raise CheckpointCorruptError(
            f"{stored} is damaged; delete it, so that it is fetched anew."
        ) from error
    return state


def _interpolate_positions(state: dict[str, Tensor], image_size: int, patch_size: int) -> None:
    """Bring the position embeddings of a ViT to another image size, in place, where they can be."""
    key = "encoder.pos_embedding"
    found = state.get(key)
    # Anything else stays as it is, and is named when the weights are found not to fit.
    if found is None or found.ndim != 3 or found.shape[0] != 1:
        return
    side = round(max(found.shape[1] - 1, 0) ** 0.5)
    if side > 0 and side * side == found.shape[1] - 1 and side != image_size // patch_size:
        grid = models.vision_transformer.interpolate_embeddings(image_size, patch_size, {key: found.float()})
        state[key] = grid[key]


for _name, _family in FAMILIES.items():
    register_backbone(_name)(TorchvisionFactory(_name, _family))
