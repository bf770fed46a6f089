"""Load a backbone by name, with weights from its registry, from a file, or random."""

from __future__ import annotations

import dataclasses
import inspect
import logging
import os
from pathlib import Path
from typing import Any

import torch
from torch import nn

from transferkit.backbones.outputs import outputs_in
from transferkit.backbones.preprocessing import Preprocessing
from transferkit.backbones.preprocessing import preprocessing as resolve_preprocessing
from transferkit.backbones.registry import BACKBONES, BackboneFactory, ReadsFiles
from transferkit.backbones.spec import BackboneSpec, set_spec
from transferkit.checks import check_int, require
from transferkit.errors import ArgumentError
from transferkit.heads import check_num_classes, replace_head
from transferkit.loading.weights import file_digest, is_path, load_weights, read_weights
from transferkit.runtime import resolve_device

_log = logging.getLogger("transferkit")


def load_backbone(
    name: str,
    *,
    weights: str | os.PathLike[str] | None = "default",
    num_classes: int | None = None,
    image_size: int | None = None,
    preprocessing: str | Preprocessing | None = None,
    device: str | torch.device | None = None,
    **builder_kwargs: Any,
) -> nn.Module:
    """Load a backbone: a plain module, with what transferkit knows of it in its spec.

    Args:
        name: One of ``list_backbones()``; ``"timm/NAME"`` for a model of timm; ``"hf/NAME"`` for an
            image classifier on the Hugging Face hub, or in a folder that ``save_pretrained`` wrote.
        weights: ``"default"``, another name of weights, or ``None`` for random ones; or the path
            of a ``.safetensors`` or ``.pth`` file, of which only tensors are read.
        num_classes: Number of outputs; ``None`` takes that of the weights, from a file too. With
            any other number all weights but the head's are kept, and the log says so.
        image_size: Side of the square images, in pixels. The ratio of resize to crop,
            interpolation, mean and standard deviation stay those of the weights; position
            embeddings are interpolated. ``None`` takes the size of ``preprocessing``.
        preprocessing: A record, or the name of one, in place of that of the weights. Random
            weights and files have that of the default weights.
        device: Where the model goes, such as ``"cuda"``; ``None`` leaves it on the CPU. Random
            numbers are drawn on the CPU, so that a seed gives the same weights everywhere.
        builder_kwargs: Passed to the builder of the architecture. Inception and GoogLeNet have
            no auxiliary classifiers unless ``aux_logits=True``; then they return a record in
            training mode, whose losses ``train_step`` adds up. With weights, from a file too,
            their ``transform_input`` is ``True`` unless given, as torchvision's weights need it.
            A Hugging Face model takes ``config``, a dict, in place of its files, with ``weights=None``.

    Returns:
        The model in training mode, as its builder leaves it; ``spec_of(model)`` is its spec.

    Raises:
        UnknownNameError: There is no such backbone, or preprocessing.
        MissingExtraError: The library that a name begins with is not installed.
        ArgumentError: An argument makes no sense; sizes that would do are named.
        DownloadError: The weights could not be fetched.
        CheckpointError: A file is missing, damaged, unsafe, or does not fit (see its subclasses).

    >>> model = load_backbone("resnet18", weights=None, num_classes=7, image_size=64)
    >>> model.fc
    Linear(in_features=512, out_features=7, bias=True)
    >>> from transferkit.backbones.spec import spec_of
    >>> spec_of(model).preprocessing.resize
    73
    """
    factory = BACKBONES[name]
    _check_arguments(weights, num_classes, image_size)
    place = None if device is None else resolve_device(device)
    wanted = None if preprocessing is None else resolve_preprocessing(preprocessing)
    if image_size is None and wanted is not None:
        image_size = wanted.size
    arguments = {"image_size": image_size, **builder_kwargs}
    if "preprocessing" in inspect.signature(factory).parameters:
        arguments["preprocessing"] = wanted
    if weights is not None and is_path(weights):
        model, spec = _from_file(name, factory, Path(weights), num_classes, arguments)
    else:
        model, spec = _build(name, factory, weights=weights, num_classes=num_classes, **arguments)
    if wanted is not None:
        spec = dataclasses.replace(
            spec, preprocessing=wanted if image_size is None else wanted.with_size(image_size)
        )
    set_spec(model, spec)
    if num_classes is not None and spec.num_classes != num_classes:
        _log.info(
            "The head of %s is new, with %d outputs where its weights have %s; all else is kept.",
            name,
            num_classes,
            spec.num_classes,
        )
        replace_head(model, num_classes)
    return model if place is None else model.to(place)


def _from_file(
    name: str, factory: BackboneFactory, path: Path, num_classes: int | None, arguments: dict[str, Any]
) -> tuple[nn.Module, BackboneSpec]:
    """Build a backbone with as many outputs as the file has, and load it."""
    state = read_weights(path)
    arguments = {**getattr(factory, "file_arguments", {}), **arguments}
    model, spec = _build(name, factory, weights=None, num_classes=num_classes, **arguments)
    if isinstance(factory, ReadsFiles):
        state = factory.fit_state(state, model, image_size=arguments["image_size"], source=str(path))
    outputs = outputs_in(state, model, spec.head)
    if outputs is not None and outputs != spec.num_classes:
        model, spec = _build(name, factory, weights=None, num_classes=outputs, **arguments)
    # A file without a head serves where the number of outputs is given: the head is new then.
    headless = num_classes is not None and not any(key.startswith(f"{spec.head}.") for key in state)
    load_weights(model, state, source=path, without=spec.head if headless else None)
    if headless:
        _log.info("%s has no head for %s; it is new, with %d outputs.", path, name, spec.num_classes)
    return model, dataclasses.replace(
        spec, classes=None, weights=f"{path.name} (sha256 {file_digest(path.expanduser())[:16]})"
    )


def _build(name: str, factory: BackboneFactory, **arguments: Any) -> tuple[nn.Module, BackboneSpec]:
    try:
        inspect.signature(factory).bind(**arguments)
    except TypeError as error:
        raise ArgumentError(
            f"The backbone {name!r} cannot be built with these arguments: {error}."
        ) from error
    return factory(**arguments)


def _check_arguments(weights: object, num_classes: object, image_size: object) -> None:
    named = weights is None or isinstance(weights, (str, os.PathLike))
    require(
        named and weights != "",
        "load_backbone",
        "weights",
        "'default', the name of weights, the path of a file, or None for random ones",
        weights,
    )
    if num_classes is not None:
        check_num_classes("load_backbone", num_classes)
    if image_size is not None:
        check_int("load_backbone", "image_size", image_size, 1)
