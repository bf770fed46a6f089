"""What the record of another library's model may ask for: nothing from the network, no code, no other file.

A ``model.json`` may be anyone's. The libraries ``timm`` and ``transformers`` would fetch or run what
some names and arguments ask for, so that these are refused before either of them is imported.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from transferkit.registry import shown

TIMM_NAME = re.compile(r"timm/\w+(\.[\w.+-]+)?", re.ASCII)
"""An architecture, and a tag of weights: no ``hf-hub:…``, ``local-dir:…`` or path."""

TIMM_REFUSED = {
    *("pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "pretrained_strict", "pretrained_filter_fn"),
    *("checkpoint_path", "cache_dir", "features_only", "num_classes", "in_chans", "pruned"),
}
"""Arguments with which timm fetches, reads files, or builds something else than a classifier."""

HF_REFUSED = {
    *("architectures", "attn_implementation", "auto_map", "custom_pipelines", "distributed_config", "dtype"),
    *("experts_implementation", "fusion_config", "id2label", "label2id", "name_or_path", "num_labels"),
    *("out_features", "out_indices", "output_attentions", "output_hidden_states", "per_layer_config"),
    *("problem_type", "quantization_config", "return_dict", "stage_names", "tie_word_embeddings"),
    *("torch_dtype", "torchscript", "transformers_version", "transformers_weights", "use_bfloat16"),
}
"""Fields of a config that say nothing of the architecture; some of them name code or kernels to fetch."""

HF_TYPES = (
    *("beit", "convnext", "convnextv2", "deit", "dinov2", "dinov2_with_registers", "efficientnet"),
    *("mobilenet_v1", "mobilenet_v2", "regnet", "resnet", "swin", "swinv2", "vit", "vit_msn"),
)
"""The ``model_type`` of the architectures of transformers that are offered."""

LARGEST = 2**20
"""A larger number of layers, or of anything else, is not one of a model but of an attack on memory."""


def check_library_record(name: str, arguments: Mapping[str, Any]) -> None:
    """Refuse a record of a model of timm or transformers that could be built only from elsewhere.

    Args:
        name: The backbone that a record names.
        arguments: The builder arguments in it.

    Raises:
        ValueError: The record asks for more than an architecture; the message says for what.

    >>> check_library_record("timm/resnet18.a1_in1k", {"drop_rate": 0.1})
    >>> check_library_record("timm/hf-hub:someone/something", {})
    Traceback (most recent call last):
    ...
    ValueError: 'timm/hf-hub:someone/something' is not the name of an architecture of timm
    """
    if name.startswith("timm/"):
        if not TIMM_NAME.fullmatch(name):
            raise ValueError(f"{shown(name)} is not the name of an architecture of timm")
        refused = TIMM_REFUSED & arguments.keys()
        if refused:
            raise ValueError(f"its builder arguments have {min(refused)!r}, which no saved model needs")
        _check_plain(arguments)
    if name.startswith("hf/"):
        if arguments.keys() != {"config"} or not isinstance(arguments["config"], Mapping):
            raise ValueError("the builder arguments of a Hugging Face model are its 'config' and no others")
        check_architecture(arguments["config"])


def check_architecture(config: Mapping[str, Any]) -> None:
    """Refuse what is more than the description of an architecture of transformers.

    Raises:
        ValueError: The message says what else it is.
    """
    kind = config.get("model_type")
    if kind not in HF_TYPES:
        raise ValueError(f"the model type {shown(kind)} is none of {', '.join(HF_TYPES)}")
    refused = sorted(name for name in config if is_refused(name))
    if refused:
        raise ValueError(f"the config has {shown(refused[0])}, which says nothing of an architecture")
    _check_plain(config)


def is_refused(field: object) -> bool:
    """Whether a field of a config of transformers is kept out of records."""
    return not isinstance(field, str) or field.startswith("_") or field in HF_REFUSED


def _check_plain(value: Any) -> None:
    """Raise ``ValueError`` unless a value is made of texts and numbers of a sensible size."""
    if isinstance(value, Mapping):
        for each in value.values():
            _check_plain(each)
    elif isinstance(value, (list, tuple)):
        for each in value:
            _check_plain(each)
        # Depths are added up.
        _check_plain(sum(abs(each) for each in value if isinstance(each, (int, float))))
    elif isinstance(value, (int, float)) and not -LARGEST <= value <= LARGEST:
        raise ValueError(f"its builder arguments have the number {value}, which no architecture needs")
