"""Which of torchvision's models weights are of, told by how many parameters there are."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from torch import Tensor

if TYPE_CHECKING:
    from transferkit.backbones.torchvision_families import Family

# What a state dict holds besides parameters.
_BUFFERS = (
    *("running_mean", "running_var", "num_batches_tracked"),
    *("relative_position_index", "relative_coords_table"),
)
_POSITIONS = "encoder.pos_embedding"


def model_of(state: Mapping[str, Tensor]) -> str | None:
    """Return the name of the model in torchvision that a state dict is of, or ``None``.

    torchvision says how many parameters each of its weights have, and no two models whose heads have
    the same name have equally many; so no model is built. The head may have any number of outputs, and
    the position embeddings of a ViT any number of positions.

    Args:
        state: Tensors by name.

    >>> from torchvision import models
    >>> model_of(models.resnet34(num_classes=7).state_dict())
    'resnet34'
    """
    # Only here: importing torchvision takes a while.
    from torchvision import models

    from transferkit.backbones.torchvision_families import FAMILIES

    for name, family in FAMILIES.items():
        if f"{family.head}.weight" not in state:
            continue
        sizes = {key: tensor.numel() for key, tensor in state.items() if not key.endswith(_BUFFERS)}
        # As if each head had the 1000 outputs of torchvision's weights.
        for path in (family.head, *family.auxiliary_heads):
            for key in sizes.keys() & {f"{path}.weight", f"{path}.bias"}:
                sizes[key] = 1000 * (sizes[key] // max(1, state[key].shape[:1].numel()))
        auxiliary = sum(size for key, size in sizes.items() if key.partition(".")[0] in family.auxiliary)
        for entry in models.get_model_weights(name):
            more = entry.meta["num_params"] - sum(sizes.values()) - _more_positions(state, family, entry)
            # torchvision counts auxiliary classifiers of Inception, and not those of GoogLeNet.
            if more in (0, -auxiliary):
                return name
    return None


def _more_positions(state: Mapping[str, Tensor], family: Family, entry: Any) -> int:
    """Return how many more numbers the position embeddings have at the image size of some weights."""
    found = state.get(_POSITIONS)
    if not family.positions or found is None or found.ndim == 0:
        return 0
    side = entry.meta["min_size"][0] // family.multiple
    return int((side**2 + 1) * found.shape[-1] - found.numel())
