"""Groups for any torch optimizer: a learning rate for each stage, weight decay where it belongs."""

from __future__ import annotations

import math
from typing import Any

from torch import nn

from transferkit.backbones.spec import find_spec, unwrapped
from transferkit.backbones.stages import stage_indices
from transferkit.checks import check_module, check_non_negative, check_positive, require
from transferkit.errors import ArgumentError
from transferkit.freezing import select_parameters
from transferkit.module_tree import named_parameters

# Parameters that say where something is, or stand for a token, are no weights to be kept small.
_POSITIONS_AND_TOKENS = frozenset(
    {
        "absolute_pos_embed",
        "class_embedding",
        "class_token",
        "cls_token",
        "dist_token",
        "distillation_token",
        "layer_scale",  # [C, 1, 1] in torchvision's ConvNeXt
        "logit_scale",  # [heads, 1, 1] in Swin V2
        "mask_token",
        "pos_embed",
        "pos_embedding",
        "position_embedding",
        "position_embeddings",
        "reg_token",
        "register_tokens",
        "relative_position_bias_table",
    }
)


def parameter_groups(
    model: nn.Module,
    *,
    lr: float,
    head_lr: float | None = None,
    layer_decay: float = 1.0,
    weight_decay: float = 0.0,
) -> list[dict[str, Any]]:
    """Group the parameters that train, for any optimizer of torch.

    Args:
        model: Any module of which the head is known; its spec's stages are the layers of
            ``layer_decay``, and without a spec the whole backbone is one stage.
        lr: Learning rate of the backbone's last stage.
        head_lr: Learning rate of the head; ``None`` stands for ``lr``.
        layer_decay: Factor on the learning rate from each stage to the one before it.
        weight_decay: Weight decay of matrices and kernels. Biases, parameters of one
            dimension (norms), position embeddings and class tokens get none.

    Returns:
        Dictionaries with ``params``, ``lr``, ``weight_decay`` and ``name``, from input to
        output. Parameters that do not train are left out; a tied one comes once, and with
        the head if it is in there.

    Raises:
        ArgumentError: A number makes no sense, or nothing trains.
        SelectorError: The head cannot be told.

    Source:
        Bao et al. (2022), https://arxiv.org/abs/2106.08254 (layer-wise decay of BEiT);
        Liu et al. (2021), https://arxiv.org/abs/2103.14030 (what Swin leaves undecayed).

    >>> model = nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 2))
    >>> groups = parameter_groups(model, lr=0.01, head_lr=0.1)
    >>> [(group["name"], group["lr"], len(group["params"])) for group in groups]
    [('backbone', 0.01, 2), ('head', 0.1, 2)]
    """
    check_module("parameter_groups", model)
    check_positive("parameter_groups", "lr", lr)
    check_positive("parameter_groups", "layer_decay", layer_decay)
    check_non_negative("parameter_groups", "weight_decay", weight_decay)
    if head_lr is not None:
        check_positive("parameter_groups", "head_lr", head_lr)
    parameters = named_parameters(model)
    head = select_parameters(model, "head")
    spec = find_spec(model)
    stages = max(1, len(spec.stages)) if spec is not None else 1
    stage_of = stage_indices(model) if spec is not None else {name: 0 for name, _ in parameters}
    names_of: dict[int, list[str]] = {}
    for name, parameter in parameters:
        names_of.setdefault(id(parameter), []).append(name)
    groups: dict[tuple[int, bool], dict[str, Any]] = {}
    for name, parameter in parameters:
        names = names_of[id(parameter)]
        if not parameter.requires_grad or name != names[0]:
            continue
        in_head = not head.isdisjoint(names)
        stage = stages if in_head else max(stage_of[each] for each in names)
        rate = (
            (lr if head_lr is None else head_lr) if in_head else _decayed(lr, layer_decay, stages - 1 - stage)
        )
        # With one learning rate the backbone is one group: an optimizer updates it in fewer calls.
        named_stages = layer_decay != 1 and spec is not None and spec.stages
        label = "head" if in_head else spec.stages[stage].name if spec and named_stages else "backbone"
        bare = weight_decay > 0 and any(_is_undecayed(each, parameter) for each in names)
        group = groups.setdefault(
            (stage if in_head or named_stages else 0, bare),
            {
                "params": [],
                "lr": float(rate),
                "weight_decay": 0.0 if bare else float(weight_decay),
                "name": f"{label}.no_decay" if bare else label,
            },
        )
        group["params"].append(parameter)
    if not groups:
        raise ArgumentError(
            f"No parameter of this {type(unwrapped(model)).__name__} trains; "
            "say which should with transferkit.freeze(model, except_=...) or transferkit.unfreeze(model)."
        )
    return [groups[key] for key in sorted(groups)]


def _decayed(lr: float, layer_decay: float, steps: int) -> float:
    try:
        rate = lr * float(layer_decay) ** steps
    except OverflowError:
        rate = math.inf
    finite = math.isfinite(rate)
    require(finite, "parameter_groups", "layer_decay", "a factor that keeps each rate finite", layer_decay)
    return rate


def _is_undecayed(name: str, parameter: nn.Parameter) -> bool:
    parts = name.split(".")
    return parameter.ndim <= 1 or parts[-1] == "bias" or not _POSITIONS_AND_TOKENS.isdisjoint(parts)
