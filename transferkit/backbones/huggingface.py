"""Image classifiers of Hugging Face transformers, from the hub or from a folder."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from transferkit.backbones.class_labels import distinct, warn_of_new_head
from transferkit.backbones.foreign_records import LARGEST, is_refused
from transferkit.backbones.huggingface_files import ModelFiles
from transferkit.backbones.huggingface_models import (
    architecture_of,
    loaded_model,
    model_with_weights,
    random_model,
    set_size,
    transformers,
)
from transferkit.backbones.outputs import outputs_in
from transferkit.backbones.preprocessing import Preprocessing
from transferkit.backbones.sizes import check_size_works
from transferkit.backbones.spec import BackboneSpec, Stage
from transferkit.backbones.stages import Each, default_stages, find_stages
from transferkit.checks import require
from transferkit.errors import ArgumentError, UnknownNameError
from transferkit.heads import find_head
from transferkit.registry import shown


class HuggingFaceClassifier(nn.Module):
    """A classifier of transformers that gives its logits alone.

    What transformers' own forward returns is a record, which ``cross_entropy``, ``nn.Sequential``
    and exporters cannot take. Nothing else is changed: the model itself is ``model``.

    Args:
        model: An image classifier of transformers.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        """Map images ``[N, 3, H, W]`` to logits ``[N, C]``."""
        logits: Tensor = self.model(pixel_values=images).logits
        return logits


def factory(name: str) -> HuggingFaceFactory:
    """Return what builds ``hf/NAME_OR_FOLDER``.

    Raises:
        UnknownNameError: There is nothing after the prefix.
    """
    model = name.removeprefix("hf/")
    if not model or "\0" in model:
        raise UnknownNameError(
            f"There is no backbone {shown(name)}. After 'hf/' stands a folder that save_pretrained wrote, or "
            "the name of a model on huggingface.co, such as 'hf/google/vit-base-patch16-224'."
        )
    return HuggingFaceFactory(name, ModelFiles(model))


@dataclass(frozen=True)
class HuggingFaceFactory:
    """Builds one model of transformers, with its spec.

    Attributes:
        name: The backbone's whole name.
        files: Where its files are.
    """

    name: str
    files: ModelFiles

    def __call__(
        self,
        *,
        weights: str | None = "default",
        num_classes: int | None = None,
        image_size: int | None = None,
        preprocessing: Preprocessing | None = None,
        config: Mapping[str, Any] | None = None,
    ) -> tuple[nn.Module, BackboneSpec]:
        """Build the model; see ``register_backbone`` for the arguments.

        Args:
            weights: ``"default"`` or ``None``.
            num_classes: Counts for random weights, and for weights without a head.
            image_size: Side of the images.
            preprocessing: Stands for the file that says how images are prepared.
            config: Stands for ``config.json``: then no file is read.
        """
        owner = f"load_backbone({self.name!r})"
        transformers(self.name)
        if weights is not None:
            wanted = "'default', the path of a file, or None for random ones"
            require(weights == "default", owner, "weights", wanted, weights)
        if config is None:
            given = self.files.config()
        else:
            require(isinstance(config, Mapping), owner, "config", "a dict as in config.json", config)
            require(weights is None, owner, "config", "left out where weights are loaded", config)
            require(preprocessing is not None, owner, "preprocessing", "given beside config", preprocessing)
            given = dict(config)
        architecture = architecture_of(given, self.name)
        record = self.files.preprocessing() if preprocessing is None else preprocessing
        record = record if image_size is None else record.with_size(image_size)
        native_size = set_size(architecture, record.size, self.name)
        labels = _labels(given, self.name)
        classes, origin = None, None
        if weights is None:
            module = HuggingFaceClassifier(random_model(architecture, num_classes or len(labels), self.name))
        else:
            module, classes, origin = self._pretrained(architecture, labels, num_classes)
        if image_size is not None and config is None and not native_size:
            check_size_works(module, record.size, self.name)
        inner: Any = module.model
        head = f"model.{find_head(inner)}"
        return module, BackboneSpec(
            name=self.name,
            head=head,
            preprocessing=record,
            stages=_stages(module, head),
            classes=classes,
            num_classes=inner.config.num_labels,
            weights=origin,
            builder_kwargs={"config": architecture},
        )

    def _pretrained(
        self, architecture: Mapping[str, Any], labels: Sequence[str], num_classes: int | None
    ) -> tuple[HuggingFaceClassifier, tuple[str, ...] | None, str]:
        """Return the model with the weights beside it, the names of its classes, and what it is from."""
        state, origin = self.files.weights()
        inner, has_head = model_with_weights(
            architecture, state, num_classes or len(labels), origin, self.name
        )
        outputs = inner.config.num_labels
        if not has_head and num_classes is None:
            warn_of_new_head(self.name, outputs)
        named = has_head and len(labels) == outputs and not _are_placeholders(labels)
        return HuggingFaceClassifier(inner), distinct(labels) if named else None, origin

    def fit_state(
        self, state: dict[str, Tensor], module: nn.Module, *, image_size: int | None, source: str
    ) -> dict[str, Tensor]:
        """Return the tensors of one of transformers' files under the names that the module has.

        transformers renames what it saves, and others of its versions have other names in a saved model too;
        position embeddings are brought to the module's size.
        """
        own = module.state_dict()
        if state.keys() == own.keys():
            return state
        inner: Any = module.get_submodule("model")
        config = inner.config.to_dict()
        architecture = {name: value for name, value in config.items() if not is_refused(name)}
        if all(key.startswith("model.") for key in state):  # from save_model
            state = {key.removeprefix("model."): value for key, value in state.items()}
        outputs = outputs_in(state, inner, find_head(inner)) or inner.config.num_labels
        loaded, missing = loaded_model(architecture, state, outputs, source, self.name)
        return {f"model.{key}": value for key, value in loaded.state_dict().items() if key not in missing}


def _labels(config: Mapping[str, Any], name: str) -> list[str]:
    """Return the names of the classes in a config, by number."""
    names = config.get("id2label")
    if isinstance(names, Mapping) and names and all(map(_is_number, names)):
        return [str(names[key]) for key in sorted(names, key=int)]
    count = config.get("num_labels", 2)  # as transformers has it, which leaves out the names of two
    if type(count) is not int or count < 1:
        count = 2
    if count > LARGEST:
        raise ArgumentError(f"The config of {name!r} cannot be used: its 'num_labels' is {shown(count)}.")
    return [f"LABEL_{number}" for number in range(count)]


def _is_number(key: object) -> bool:
    """Whether a key in JSON is the number of a class; of thousands of digits none is."""
    text = str(key)
    return text.isdecimal() and len(text) < 10


def _are_placeholders(names: Sequence[str]) -> bool:
    """Whether names only number the classes, as transformers does where it knows none."""
    return all(re.fullmatch(r"LABEL_\d+", name) for name in names)


def _stages(module: nn.Module, head: str) -> tuple[Stage, ...]:
    """Return a stage for what stands before the blocks of a model, and one for each of them.

    The blocks, or stages of blocks, are in the list that holds the most parameters.
    """
    lists = [(path, each) for path, each in module.named_modules() if isinstance(each, nn.ModuleList)]
    if not lists:
        return default_stages(module, head)
    blocks = max(lists, key=lambda item: sum(each.numel() for each in item[1].parameters()))[0]
    parts = blocks.split(".")
    above = {".".join(parts[:depth]) for depth in range(len(parts))}
    paths = [path for path, _ in module.named_modules()]
    before = [
        path
        for path in paths[: paths.index(blocks)]
        if path not in above and path.rpartition(".")[0] in above and not f"{head}.".startswith(f"{path}.")
    ]
    return find_stages(module, (Stage("stem", tuple(before)), Each("block", blocks)))
