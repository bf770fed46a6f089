"""What transferkit knows of torchvision's classification models: one record for each family.

A record says what torchvision's code does not: where the head is, what the stages are, which
image sizes work, and what torchvision itself changes when it loads weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from torch import nn

from transferkit.backbones.spec import Stage
from transferkit.backbones.stages import CutAfter, Each, Rule, span


@dataclass(frozen=True)
class Family:
    """What transferkit knows of models that share an architecture.

    Attributes:
        head: Path of the layer that gives the logits.
        stages: Rules that find the stages.
        smallest: Side of the smallest image that works, in pixels.
        smallest_auxiliary: The same where auxiliary classifiers train along.
        multiple: The side must be a multiple of this; for ViT it is the size of a patch.
        size_argument: The builder's argument for the image size, where it has one.
        size_is_pair: Whether that argument is ``[height, width]``.
        positions: Whether there is one position embedding for each patch.
        auxiliary: Paths of the auxiliary classifiers.
        auxiliary_heads: Paths of the layers that give their logits.
        arguments: Builder arguments that differ from torchvision's defaults.
        pretrained_arguments: Builder arguments that apply besides where weights are loaded.
        renames: Pattern and replacement for keys of torchvision's files.
        widths_from_tensors: Whether the builder reads the widths of layers from tensors.
    """

    head: str
    stages: tuple[Rule, ...]
    smallest: int = 1
    smallest_auxiliary: int = 1
    multiple: int = 1
    size_argument: str | None = None
    size_is_pair: bool = False
    positions: bool = False
    auxiliary: tuple[str, ...] = ()
    auxiliary_heads: tuple[str, ...] = ()
    arguments: Mapping[str, Any] = field(default_factory=dict)
    pretrained_arguments: Mapping[str, Any] = field(default_factory=dict)
    renames: tuple[tuple[str, str], ...] = ()
    widths_from_tensors: bool = False


_RESNET = Family(
    head="fc",
    stages=(
        Stage("stem", ("conv1", "bn1")),
        *(Stage(f"layer{number}", (f"layer{number}",)) for number in range(1, 5)),
    ),
)
_VGG = Family(
    head="classifier.6",
    stages=(
        CutAfter("conv", "features", nn.MaxPool2d),
        Stage("fc1", ("classifier.0",)),
        Stage("fc2", ("classifier.3",)),
    ),
    smallest=32,
)
_ALEXNET = replace(
    _VGG,
    stages=(_VGG.stages[0], Stage("fc1", ("classifier.1",)), Stage("fc2", ("classifier.4",))),
    smallest=63,
)
_SQUEEZENET = Family(head="classifier.1", stages=(CutAfter("stage", "features", nn.MaxPool2d),), smallest=21)
_DENSENET = Family(
    head="classifier",
    stages=(
        Stage("stem", ("features.conv0", "features.norm0")),
        *(
            Stage(f"block{number}", (f"features.denseblock{number}", f"features.transition{number}"))
            for number in range(1, 4)
        ),
        Stage("block4", ("features.denseblock4", "features.norm5")),
    ),
    smallest=29,
    # The files are from a time when the names of modules could hold dots.
    renames=((r"^(.*denselayer\d+\.(?:norm|relu|conv))\.([12]\.)", r"\1\2"),),
)
# torchvision builds and loads the auxiliary classifiers even where they are not wanted, and
# its weights expect images normalized as in ImageNet to be normalized anew. An auxiliary
# classifier freezes and thaws with the stage from which it branches off.
_INCEPTION = Family(
    head="fc",
    stages=(
        Stage(
            "stem",
            ("Conv2d_1a_3x3", "Conv2d_2a_3x3", "Conv2d_2b_3x3", "Conv2d_3b_1x1", "Conv2d_4a_3x3"),
        ),
        Stage("mixed5", ("Mixed_5b", "Mixed_5c", "Mixed_5d")),
        Stage("mixed6", ("Mixed_6a", "Mixed_6b", "Mixed_6c", "Mixed_6d", "Mixed_6e", "AuxLogits")),
        Stage("mixed7", ("Mixed_7a", "Mixed_7b", "Mixed_7c")),
    ),
    smallest=75,
    smallest_auxiliary=299,
    auxiliary=("AuxLogits",),
    auxiliary_heads=("AuxLogits.fc",),
    arguments={"aux_logits": False, "transform_input": False, "init_weights": True},
    pretrained_arguments={"transform_input": True},
)
_GOOGLENET = replace(
    _INCEPTION,
    stages=(
        Stage("stem", ("conv1", "conv2", "conv3")),
        Stage("inception3", ("inception3a", "inception3b")),
        Stage("inception4", (*(f"inception4{letter}" for letter in "abcde"), "aux1", "aux2")),
        Stage("inception5", ("inception5a", "inception5b")),
    ),
    smallest=15,
    smallest_auxiliary=15,
    auxiliary=("aux1", "aux2"),
    auxiliary_heads=("aux1.fc2", "aux2.fc2"),
)
_SHUFFLENET = Family(
    head="fc",
    stages=tuple(Stage(name, (name,)) for name in ("conv1", "stage2", "stage3", "stage4", "conv5")),
)
# A stage ends where the resolution is halved.
_MOBILENET_V2 = Family(
    head="classifier.1",
    stages=(
        Stage("stem", span("features", 0, 1)),
        Stage("stage1", span("features", 2, 3)),
        Stage("stage2", span("features", 4, 6)),
        Stage("stage3", span("features", 7, 13)),
        Stage("stage4", span("features", 14, 18)),
    ),
)
_MOBILENET_V3_LARGE = Family(
    head="classifier.3",
    stages=(
        Stage("stem", span("features", 0, 1)),
        Stage("stage1", span("features", 2, 3)),
        Stage("stage2", span("features", 4, 6)),
        Stage("stage3", span("features", 7, 12)),
        Stage("stage4", (*span("features", 13, 16), "classifier.0")),
    ),
)
_MOBILENET_V3_SMALL = replace(
    _MOBILENET_V3_LARGE,
    stages=(
        Stage("stem", span("features", 0, 0)),
        Stage("stage1", span("features", 1, 1)),
        Stage("stage2", span("features", 2, 3)),
        Stage("stage3", span("features", 4, 8)),
        Stage("stage4", (*span("features", 9, 12), "classifier.0")),
    ),
)
_MNASNET = Family(
    head="classifier.1",
    stages=(
        Stage("stem", span("layers", 0, 7)),
        *(Stage(f"stage{number - 7}", span("layers", number, number)) for number in range(8, 13)),
        Stage("stage6", span("layers", 13, 16)),
    ),
)
_EFFICIENTNET = Family(head="classifier.1", stages=(Each("stage", "features"),))
_REGNET = Family(
    head="fc",
    stages=(Stage("stem", ("stem",)), Each("block", "trunk_output")),
    widths_from_tensors=True,
)
_CONVNEXT = Family(
    head="classifier.2",
    stages=(
        Stage("stem", ("features.0",)),
        Stage("stage1", ("features.1",)),
        Stage("stage2", span("features", 2, 3)),
        Stage("stage3", span("features", 4, 5)),
        Stage("stage4", (*span("features", 6, 7), "classifier.0")),
    ),
    smallest=32,
)
_VIT_16 = Family(
    head="heads.head",
    stages=(Stage("stem", ("conv_proj",)), Each("block", "encoder.layers")),
    smallest=16,
    multiple=16,
    size_argument="image_size",
    positions=True,
)
_VIT_14 = replace(_VIT_16, smallest=14, multiple=14)
_VIT_32 = replace(_VIT_16, smallest=32, multiple=32)
_SWIN = Family(
    head="head",
    stages=(
        Stage("stem", ("features.0",)),
        *(Each("block", f"features.{number}") for number in (1, 3, 5, 7)),
    ),
    smallest=4,
)
_MAXVIT = Family(
    head="classifier.5",
    stages=(
        Stage("stem", ("stem",)),
        *(Each("block", f"blocks.{number}.layers") for number in range(4)),
    ),
    smallest=224,
    multiple=224,  # windows of 7, of maps 32 times smaller than the image
    size_argument="input_size",
    size_is_pair=True,
)

FAMILIES: Mapping[str, Family] = {
    "alexnet": _ALEXNET,
    **dict.fromkeys((f"vgg{depth}{norm}" for depth in (11, 13, 16, 19) for norm in ("", "_bn")), _VGG),
    **dict.fromkeys((f"resnet{depth}" for depth in (18, 34, 50, 101, 152)), _RESNET),
    **dict.fromkeys(("resnext50_32x4d", "resnext101_32x8d", "resnext101_64x4d"), _RESNET),
    **dict.fromkeys(("wide_resnet50_2", "wide_resnet101_2"), _RESNET),
    "squeezenet1_0": _SQUEEZENET,
    "squeezenet1_1": replace(_SQUEEZENET, smallest=17),
    **dict.fromkeys((f"densenet{depth}" for depth in (121, 161, 169, 201)), _DENSENET),
    "inception_v3": _INCEPTION,
    "googlenet": _GOOGLENET,
    **dict.fromkeys((f"shufflenet_v2_x{width}" for width in ("0_5", "1_0", "1_5", "2_0")), _SHUFFLENET),
    "mobilenet_v2": _MOBILENET_V2,
    "mobilenet_v3_large": _MOBILENET_V3_LARGE,
    "mobilenet_v3_small": _MOBILENET_V3_SMALL,
    **dict.fromkeys((f"mnasnet{width}" for width in ("0_5", "0_75", "1_0", "1_3")), _MNASNET),
    **dict.fromkeys((f"efficientnet_b{size}" for size in range(8)), _EFFICIENTNET),
    **dict.fromkeys((f"efficientnet_v2_{size}" for size in "sml"), _EFFICIENTNET),
    **dict.fromkeys(
        (
            f"regnet_{kind}_{size}"
            for kind in "xy"
            for size in ("400mf", "800mf", "1_6gf", "3_2gf", "8gf", "16gf", "32gf")
        ),
        _REGNET,
    ),
    "regnet_y_128gf": _REGNET,
    **dict.fromkeys((f"convnext_{size}" for size in ("tiny", "small", "base", "large")), _CONVNEXT),
    **dict.fromkeys(("vit_b_16", "vit_l_16"), _VIT_16),
    **dict.fromkeys(("vit_b_32", "vit_l_32"), _VIT_32),
    "vit_h_14": _VIT_14,
    **dict.fromkeys((f"swin_{kind}{size}" for kind in ("", "v2_") for size in "tsb"), _SWIN),
    "maxvit_t": _MAXVIT,
}
