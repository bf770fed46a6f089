"""Models of timm, with what timm knows of their heads, stages and preprocessing."""

from __future__ import annotations

import contextlib
import fnmatch
import logging
import math
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from transferkit.backbones.class_labels import distinct, warn_of_new_head
from transferkit.backbones.foreign_records import TIMM_NAME, TIMM_REFUSED
from transferkit.backbones.hub import check_reachable, hub_errors
from transferkit.backbones.numbers_on_cpu import NumbersOnCpu
from transferkit.backbones.preprocessing import Preprocessing
from transferkit.backbones.sizes import check_size_works
from transferkit.backbones.spec import BackboneSpec, Stage
from transferkit.backbones.stages import default_stages
from transferkit.checks import check_choice, import_extra, require
from transferkit.errors import ArgumentError, TransferkitError, UnknownNameError
from transferkit.loading.wording import first_line
from transferkit.module_tree import find_module
from transferkit.registry import nearest, shown

_log = logging.getLogger("transferkit")

# Where timm's weights lie on the hub.
_FILES = ("model.safetensors", "pytorch_model.bin")


def factory(name: str) -> TimmFactory:
    """Return what builds ``timm/ARCHITECTURE`` or ``timm/ARCHITECTURE.TAG``.

    Raises:
        UnknownNameError: timm has no such architecture, or no such tag of it.
    """
    models = _models(name)
    asked = name.removeprefix("timm/")
    architecture, _, tag = asked.partition(".")
    if not TIMM_NAME.fullmatch(name) or not models.is_model(architecture):
        raise UnknownNameError(f"timm has no model {shown(asked)}. {nearest(asked, models.list_models())}")
    tags = _tags(models, architecture)
    if tag and tag not in tags:
        hint = f" {nearest(tag, tags)}" if tags else ""
        raise UnknownNameError(f"timm has no weights {shown(tag)} of {architecture!r}.{hint}")
    return TimmFactory(name)


def names(pattern: str) -> list[str]:
    """Return the names that match a pattern, with and without tags of weights."""
    models = _models("timm")
    every = {*models.list_models(), *models.list_pretrained()}
    return sorted(fnmatch.filter((f"timm/{each}" for each in every), pattern))


@dataclass(frozen=True)
class TimmFactory:
    """Builds one model of timm, with its spec.

    Attributes:
        name: The backbone's whole name.
    """

    name: str

    def __call__(
        self,
        *,
        weights: str | None = "default",
        num_classes: int | None = None,
        image_size: int | None = None,
        preprocessing: Preprocessing | None = None,
        **builder_kwargs: Any,
    ) -> tuple[nn.Module, BackboneSpec]:
        """Build the model; see ``register_backbone`` for the arguments."""
        owner = f"load_backbone({self.name!r})"
        for argument in sorted(TIMM_REFUSED & builder_kwargs.keys()):
            require(False, owner, argument, "left out", builder_kwargs[argument])
        models = _models(self.name)
        asked = self._asked(models, weights)
        source = models.get_pretrained_cfg(asked)
        head = source.classifier
        if head is None:
            raise ArgumentError(f"{self.name!r} is no classifier: timm gives it no head.")
        if not isinstance(head, str):
            raise ArgumentError(
                f"{self.name!r} has the heads {', '.join(head)}, and only models with one head are offered."
            )
        record = _preprocessing_of(source, self.name) if preprocessing is None else preprocessing
        record = record if image_size is None else record.with_size(image_size)
        pretrained_classes = source.num_classes or 0  # weights that were trained without labels have no head
        with_head = weights is not None and pretrained_classes > 0
        outputs = pretrained_classes if with_head else num_classes or pretrained_classes or 1000
        arguments = dict(builder_kwargs)
        native_size = record.size == source.input_size[-1]
        if source.fixed_input_size and not native_size:
            arguments["img_size"] = record.size
        module = self._build(asked, arguments, outputs, None if weights is None else source)
        if find_module(module, head) is None:
            raise ArgumentError(f"{self.name!r} is no classifier as it is built: it has no head at {head!r}.")
        # Not where a record tells the size, as in a saved model: it has worked before.
        if not native_size and preprocessing is None:
            check_size_works(module, record.size, self.name)
        if weights is not None and not with_head and num_classes is None:
            warn_of_new_head(self.name, outputs)
        return module, BackboneSpec(
            name=self.name,
            head=head,
            preprocessing=record,
            stages=_stages(module, head),
            classes=_class_names(outputs) if with_head else None,
            num_classes=outputs,
            weights=None if weights is None else source.tag or "default",
            builder_kwargs=builder_kwargs,
        )

    def fit_state(
        self, state: dict[str, Tensor], module: nn.Module, *, image_size: int | None, source: str
    ) -> dict[str, Tensor]:
        """Return the tensors of a file as the module takes them.

        timm has a function for each architecture that brings older names up to date and position
        embeddings to another size.
        """
        own = module.state_dict()
        built: Any = module
        head = f"{built.pretrained_cfg['classifier']}."
        others = {name: value for name, value in own.items() if not name.startswith(head)}
        if all(name in state and state[name].shape == value.shape for name, value in others.items()):
            return state
        convert = getattr(sys.modules[type(module).__module__], "checkpoint_filter_fn", None)
        if convert is not None:
            try:
                converted: dict[str, Tensor] = convert(dict(state), module)
                return converted
            except Exception as error:  # of a file of another model, which is found not to fit as it is
                _log.info("timm cannot convert %s: %s.", source, first_line(error))
        return state

    def _asked(self, models: ModuleType, weights: str | None) -> str:
        """Return timm's name for the architecture with the weights that were asked for."""
        asked = self.name.removeprefix("timm/")
        architecture, _, tag = asked.partition(".")
        if weights is None or weights == "default":
            return asked
        known = [tag] if tag else _tags(models, architecture)
        check_choice(f"load_backbone({self.name!r})", "weights", weights, ("default", *known))
        return f"{architecture}.{weights}"

    def _build(self, asked: str, arguments: Mapping[str, Any], outputs: int, source: Any) -> nn.Module:
        """Build a model, with the weights of a source unless that is ``None``."""
        library = import_extra("timm", "timm", f"The backbone {self.name!r}")
        instead = "pass weights=<path of a file>, or weights=None for random ones"
        try:
            # What fails where nothing is fetched is no failure of the hub.
            fetching = contextlib.nullcontext() if source is None else hub_errors(self.name, instead=instead)
            with NumbersOnCpu(torch.linspace), fetching:
                if source is not None and source.hf_hub_id:
                    files = (*_FILES, *filter(None, [source.hf_hub_filename]))
                    check_reachable(source.hf_hub_id.partition("@")[0], *files)
                module: nn.Module = library.create_model(
                    asked, pretrained=source is not None, num_classes=outputs, **arguments
                )
        except TransferkitError:
            raise
        except Exception as error:  # arguments that make no sense can fail in any way
            raise ArgumentError(f"timm cannot build {self.name!r} as asked: {first_line(error)}.") from error
        return module


def _models(name: str) -> ModuleType:
    return import_extra("timm.models", "timm", f"The backbone {name!r}")


def _tags(models: ModuleType, architecture: str) -> list[str]:
    """Return the tags of the weights that timm has of an architecture."""
    found = models.list_pretrained(f"{architecture}.*")
    return [each.partition(".")[2] for each in found]


def _preprocessing_of(source: Any, name: str) -> Preprocessing:
    """Return what timm does to images before they reach a model.

    Raises:
        ArgumentError: It does something that a ``Preprocessing`` cannot.
    """
    data = import_extra("timm.data", "timm", f"The backbone {name!r}")
    config = data.resolve_data_config({}, pretrained_cfg=source.to_dict(), verbose=False)
    channels, height, width = config["input_size"]
    mode = config.get("crop_mode") or "center"
    unsupported = {
        "input_size": (channels, height, width) if channels != 3 or height != width else None,
        "crop_mode": mode if mode not in ("center", "squash") else None,
        "interpolation": config["interpolation"]
        if config["interpolation"] not in ("nearest", "bilinear", "bicubic")
        else None,
    }
    for what, value in unsupported.items():
        if value is not None:
            raise ArgumentError(
                f"The images of {name!r} are prepared with {what}={value!r}, which cannot be followed here; "
                "pass preprocessing=..."
            )
    return Preprocessing(
        size=height,
        resize=max(height, math.floor(height / config["crop_pct"])),
        mean=tuple(config["mean"]),
        std=tuple(config["std"]),
        interpolation=config["interpolation"],
        crop=mode,
    )


def _class_names(outputs: int) -> tuple[str, ...] | None:
    """Return the names of ImageNet's classes, where the number of outputs tells of which selection."""
    data = import_extra("timm.data", "timm", "A model of timm")
    subset = data.infer_imagenet_subset({"num_classes": outputs})
    if subset is None:
        return None
    found: list[str] = data.ImageNetInfo(subset).label_descriptions()
    if len(found) != outputs:
        return None
    return distinct(found)


def _stages(module: nn.Module, head: str) -> tuple[Stage, ...]:
    """Return the groups that timm's layer decay has, as stages."""
    matcher = getattr(module, "group_matcher", None)
    if matcher is None:
        return default_stages(module, head)
    try:
        groups_of = matcher(coarse=True)
    except AssertionError:  # a few have fine groups alone
        groups_of = matcher()
    groups: dict[str, int] = _models("timm").group_parameters(module, groups_of, reverse=True)
    after = max((group for name, group in groups.items() if name.startswith(f"{head}.")), default=None)
    members: dict[int, list[str]] = {}

    def visit(path: str, each: nn.Module) -> None:
        """Put the largest modules that are of one group each into it."""
        below = {group for name, group in groups.items() if name.startswith(f"{path}.")}
        if path == head or not below:
            return
        if len(below) == 1 and not head.startswith(f"{path}."):
            members.setdefault(below.pop(), []).append(path)
            return
        for name, child in each.named_children():
            visit(f"{path}.{name}", child)

    for name, child in module.named_children():
        visit(name, child)
    # What is grouped with the head, such as a norm before it, belongs to the last stage.
    beside = members.pop(after, []) if after is not None and len(members) > 1 else []
    stages = [(group, paths) for group, paths in sorted(members.items())]
    if beside and stages:
        stages[-1][1].extend(beside)
    return tuple(
        Stage("stem" if not number else f"stage{number}", tuple(paths))
        for number, (_, paths) in enumerate(stages)
    )
