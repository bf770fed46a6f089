"""Build image classifiers of transformers from what a config says of them, and load weights into them."""

from __future__ import annotations

import contextlib
import json
import logging
import math
from collections.abc import Iterable, Iterator, Mapping
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from transferkit.backbones.foreign_records import HF_TYPES, check_architecture, is_refused
from transferkit.backbones.numbers_on_cpu import NumbersOnCpu
from transferkit.backbones.outputs import outputs_in
from transferkit.backbones.parameter_limit import limit_parameters
from transferkit.checks import import_extra, require
from transferkit.errors import ArgumentError, WeightsMismatchError
from transferkit.heads import find_head
from transferkit.loading.wording import first_line, printable
from transferkit.registry import shown

_log = logging.getLogger("transferkit")

# These have a position embedding for each patch of an image of one size; others take images of any size,
# BEiT of none but its own.
_WITH_POSITIONS = {"deit", "vit", "vit_msn"}
_OF_ONE_SIZE = {"beit"}
_POSITIONS = "embeddings.position_embeddings"
# Buffers that need not be in a file, or are in that of an older version; most of them hold whole numbers.
_COMPUTED = {
    *("attn_mask", "num_batches_tracked", "position_ids", "relative_coords_table"),
    *("relative_position_index",),
}
# A new head for many classes and position embeddings of large images have fewer numbers (0.5 GB of them).
_MOST_NEW = 2**27


def transformers(name: str) -> ModuleType:
    """Import transformers for a backbone, or say which extra brings it."""
    return import_extra("transformers", "hf", f"The backbone {name!r}")


def architecture_of(config: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Return what a config says of the architecture, and nothing else of what it says.

    Raises:
        ArgumentError: The model is not one that is offered.
    """
    kind = config.get("model_type")
    if kind not in HF_TYPES:
        own_code = " It has code of its own, which is never run." if "auto_map" in config else ""
        raise ArgumentError(
            f"The model type of {name!r} must be one of {', '.join(HF_TYPES)}. "
            f"Got {shown(kind)} instead.{own_code}"
        )
    known = transformers(name).AutoConfig.for_model(kind).to_dict()
    chosen = {each: value for each, value in config.items() if each in known and not is_refused(each)}
    try:
        plain: dict[str, Any] = json.loads(json.dumps({"model_type": kind, **chosen}))
        check_architecture(plain)
    except (TypeError, ValueError) as error:
        raise ArgumentError(f"The config of {name!r} cannot be used: {first_line(error)}.") from error
    return plain


def set_size(architecture: dict[str, Any], size: int, name: str) -> bool:
    """Put the size of images into a config whose model has to know it, and return whether it was that."""
    kind = architecture["model_type"]
    own = architecture.get("image_size")
    if kind in _OF_ONE_SIZE and own is not None:
        require(size == own, "load_backbone", "image_size", f"{shown(own)} for {name!r}", size)
    if kind not in _WITH_POSITIONS:
        return size == own
    patch = architecture.get("patch_size", 16)
    if type(patch) is not int or patch < 1:
        raise ArgumentError(f"The config of {name!r} cannot be used: its 'patch_size' is {shown(patch)}.")
    require(
        size >= patch and size % patch == 0,
        "load_backbone",
        "image_size",
        f"a multiple of {patch} for {name!r}",
        size,
    )
    architecture["image_size"] = size
    return True


def random_model(architecture: Mapping[str, Any], num_labels: int, name: str) -> Any:
    """Build a model of transformers with random weights.

    Raises:
        ArgumentError: transformers cannot build it.
    """
    library = transformers(name)
    fields = dict(architecture)
    kind = fields.pop("model_type")
    try:
        config = library.AutoConfig.for_model(kind, **fields, num_labels=num_labels)
        known = library.MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING[type(config)]
        # Of DeiT there is one with a second head, for distillation.
        config.architectures = [(known[0] if isinstance(known, (list, tuple)) else known).__name__]
        with NumbersOnCpu(torch.linspace):
            return library.AutoModelForImageClassification.from_config(config)
    except Exception as error:  # what makes no sense in a config can fail in any way
        raise ArgumentError(
            f"transformers cannot build the {kind!r} of {name!r}: {first_line(error)}."
        ) from error


def model_with_weights(
    architecture: Mapping[str, Any],
    state: dict[str, Tensor],
    outputs: int,
    origin: str,
    name: str,
) -> tuple[Any, bool]:
    """Build a model of transformers with weights.

    Args:
        architecture: As ``architecture_of`` returns it.
        state: What files of weights hold.
        outputs: Of the head, if it has no weights.
        origin: What the weights are from, for messages.
        name: The backbone, for messages.

    Returns:
        The model, and whether its head has weights too.

    Raises:
        WeightsMismatchError: The weights are of another architecture.
    """
    empty = _model_without_numbers(architecture, 2, len(state), name)
    head = find_head(empty)
    pretrained_classes = outputs_in(state, empty, head)
    model, missing = loaded_model(architecture, state, pretrained_classes or outputs, origin, name)
    lost = sorted(key for key in missing if not key.startswith(f"{head}."))
    if lost:
        listed = ", ".join(map(printable, lost[:8]))
        raise WeightsMismatchError(f"{origin} does not fit this {type(model).__name__}; missing: {listed}.")
    return model, f"{head}.weight" in state


def loaded_model(
    architecture: Mapping[str, Any], state: Mapping[str, Tensor], num_labels: int, origin: str, name: str
) -> tuple[Any, set[str]]:
    """Build a model of transformers, and load tensors under any of the names that it has given them.

    Returns:
        The model in training mode, float32, and the names of its tensors for which there is none.

    Raises:
        WeightsMismatchError: Shapes or kinds of number differ, the tensors are of more layers than the model
            has, or it would be far larger than they are.
    """
    empty = _model_without_numbers(architecture, num_labels, len(state), name)
    unfit = f"{origin} does not fit this {type(empty).__name__}"
    _check_tensors(state, empty, unfit)
    # Copied, because transformers keeps what it is given, and what a file holds does not lie as torch has it.
    floats = {
        key: each.to(torch.float32 if each.is_floating_point() else each.dtype, copy=True)
        for key, each in state.items()
    }
    patch = architecture.get("patch_size")
    try:
        if architecture["model_type"] in _WITH_POSITIONS and isinstance(patch, int):
            _fit_positions(floats, empty, patch)
        with _quiet(name):
            model, found = type(empty).from_pretrained(
                None,
                config=empty.config,
                state_dict=floats,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # they are told below
            )
    except Exception as error:  # what does not fit can fail in any way
        raise WeightsMismatchError(f"{unfit}: {first_line(error)}.") from error
    wrong = sorted(found["mismatched_keys"])
    if wrong:
        key, held, own = wrong[0]
        more = f", and {len(wrong) - 1} more" if len(wrong) > 1 else ""
        raise WeightsMismatchError(
            f"{unfit}; of another shape: {printable(key)} "
            f"({list(held)} in the file, {list(own)} in the model){more}."
        )
    unused = sorted(found["unexpected_keys"])
    lost = _within_layers(unused, empty)
    if lost:
        more = f", and {len(lost) - 1} more" if len(lost) > 1 else ""
        raise WeightsMismatchError(f"{unfit}; unexpected: {printable(lost[0])}{more}.")
    if unused:
        _log.info(
            "%s holds %d tensors that are not used, such as %s.", origin, len(unused), printable(unused[0])
        )
    return model.train(), set(found["missing_keys"])


def _model_without_numbers(architecture: Mapping[str, Any], num_labels: int, tensors: int, name: str) -> Any:
    """Build a model on the device ``"meta"``, unless a file of so many tensors is of far fewer layers."""
    with torch.device("meta"), limit_parameters(tensors):
        return random_model(architecture, num_labels, name)


def _check_tensors(state: Mapping[str, Tensor], model: nn.Module, unfit: str) -> None:
    """Raise ``WeightsMismatchError`` for weights of another kind, or far fewer than a model has."""
    own = sum(each.numel() for each in model.parameters())
    held = sum(each.numel() for each in state.values())
    if own - held > _MOST_NEW:
        raise WeightsMismatchError(f"{unfit}: it has {held:,} numbers, and the model {own:,}.")
    # By the last part of their names, because transformers changes the others.
    whole = _COMPUTED | {
        key.rpartition(".")[2] for key, each in model.state_dict().items() if not each.is_floating_point()
    }
    for key, each in state.items():
        if not each.is_floating_point() and (each.is_complex() or key.rpartition(".")[2] not in whole):
            # Such as quantized weights, which are nothing without their scales.
            raise WeightsMismatchError(
                f"{unfit}; of another kind: {printable(key)} ({each.dtype} in the file)."
            )


def _within_layers(names: Iterable[str], model: Any) -> list[str]:
    """Return which names are in a model's lists of layers; others are of heads for other tasks."""
    body = f"{model.base_model_prefix}."
    lists = [path for path, each in model.named_modules() if isinstance(each, nn.ModuleList)]
    inside = tuple(f"{path.removeprefix(body)}." for path in lists)
    return [
        name
        for name in names
        if name.removeprefix(body).startswith(inside) and name.rpartition(".")[2] not in _COMPUTED
    ]


def _fit_positions(state: dict[str, Tensor], model: nn.Module, patch: int) -> None:
    """Bring position embeddings to the size of images that a model is for, in place, where they can be."""
    own = {key: each for key, each in model.state_dict().items() if key.endswith(_POSITIONS)}
    config: Any = model.config
    for key, found in [item for item in state.items() if item[0].endswith(_POSITIONS)]:
        wanted = next(iter(own.values())).shape
        side = config.image_size // patch
        tokens = wanted[1] - side**2  # of the class, and of distillation
        before = math.isqrt(max(found.shape[1] - tokens, 0)) if found.ndim == 3 else 0
        # Anything else stays as it is, and is found not to fit.
        if found.shape == wanted or not before or found.shape != (wanted[0], before**2 + tokens, wanted[2]):
            continue
        grid = found[:, tokens:].reshape(1, before, before, -1).permute(0, 3, 1, 2)
        # As transformers does it where it is asked to in each forward.
        grid = nn.functional.interpolate(grid, (side, side), mode="bicubic", align_corners=False)
        state[key] = torch.cat([found[:, :tokens], grid.flatten(2).transpose(1, 2)], dim=1)


@contextlib.contextmanager
def _quiet(name: str) -> Iterator[None]:
    """Keep transformers from printing what is told here by other means."""
    settings = import_extra("transformers.utils.logging", "hf", f"The backbone {name!r}")
    level, bar = settings.get_verbosity(), settings.is_progress_bar_enabled()
    settings.set_verbosity_error()
    settings.disable_progress_bar()
    try:
        yield
    finally:
        settings.set_verbosity(level)
        if bar:
            settings.enable_progress_bar()
