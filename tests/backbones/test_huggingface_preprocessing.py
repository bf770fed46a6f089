"""An image processor's file becomes a record that does the same to an image, or is refused."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_models import HF_PROCESSOR

from transferkit.backbones.huggingface_preprocessing import preprocessing_from
from transferkit.backbones.preprocessing import Preprocessing

CROPPED = HF_PROCESSOR | {
    "size": {"shortest_edge": 40},
    "do_center_crop": True,
    "crop_size": {"height": 32, "width": 32},
}
# Each with the processor of transformers that it is for.
PROCESSORS = {
    "squash": ("ViTImageProcessorPil", {}),
    "bicubic": ("ViTImageProcessorPil", {"resample": 3}),
    "plain": ("ViTImageProcessorPil", {"do_normalize": False}),
    "scaled": ("ViTImageProcessorPil", {"rescale_factor": 1 / 127.5, "image_mean": [1.0] * 3}),
    "squash and crop": (
        "DeiTImageProcessorPil",
        {
            "size": {"height": 40, "width": 40},
            "do_center_crop": True,
            "crop_size": {"height": 32, "width": 32},
        },
    ),
    "crop that goes without saying": (
        "DeiTImageProcessorPil",
        {"size": {"height": 40, "width": 40}, "crop_size": {"height": 32, "width": 32}},
    ),
    "shorter side and crop": ("BitImageProcessorPil", CROPPED),
    "mobilenet": ("MobileNetV2ImageProcessorPil", CROPPED),
    "convnext": ("ConvNextImageProcessorPil", {"size": {"shortest_edge": 32}, "crop_pct": 0.8}),
    "large convnext": ("ConvNextImageProcessorPil", {"size": {"shortest_edge": 384}}),
    "efficientnet": ("EfficientNetImageProcessorPil", {"include_top": True, "image_std": [0.5, 0.6, 0.7]}),
    "efficientnet without its top": ("EfficientNetImageProcessorPil", {"include_top": False}),
    "poolformer": ("PoolFormerImageProcessorPil", CROPPED | {"crop_pct": 0.8}),
    "levit": ("LevitImageProcessorPil", CROPPED | {"size": {"shortest_edge": 35}}),
}


@pytest.fixture
def photo():
    """Even differences between sizes: where they are odd, transformers crops one pixel off the middle."""
    pixels = np.random.default_rng(0).integers(0, 256, (60, 60, 3), dtype=np.uint8)
    smooth = Image.fromarray(pixels).resize((96, 96), Image.Resampling.BICUBIC)
    return smooth.crop((0, 0, 96, 80))


@pytest.mark.parametrize("case", PROCESSORS)
def test_a_record_does_what_the_processor_does(case, photo, tmp_path):
    transformers = pytest.importorskip("transformers", reason="needs the extra 'hf'")
    kind, changes = PROCESSORS[case]
    # Before its version 5 those that resize by PIL had the plain names.
    found = getattr(transformers, kind, None) or getattr(transformers, kind.removesuffix("Pil"))
    processor = found(**HF_PROCESSOR | changes)
    processor.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "preprocessor_config.json").read_text())
    if case == "crop that goes without saying":
        del saved["do_center_crop"]  # as in files that people have written
    expected = torch.from_numpy(np.asarray(processor(photo, return_tensors="np")["pixel_values"]))[0].float()
    prepared = preprocessing_from(saved)(photo)
    assert prepared.shape == expected.shape
    # Both resize by PIL, to whole numbers; only the order of the arithmetic after that differs.
    torch.testing.assert_close(prepared, expected, rtol=0, atol=2e-6)


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        # As in facebook/deit-tiny-patch16-224, google/vit-base-patch16-224 and facebook/convnext-tiny-224.
        (
            {
                "feature_extractor_type": "DeiTFeatureExtractor",
                "size": 256,
                "do_center_crop": True,
                "crop_size": 224,
                "resample": 3,
                "image_mean": [0.485, 0.456, 0.406],
                "image_std": [0.229, 0.224, 0.225],
            },
            Preprocessing(224, 256, interpolation="bicubic", crop="squash"),
        ),
        (
            {
                "feature_extractor_type": "ViTFeatureExtractor",
                "size": 224,
                "resample": 2,
                "do_normalize": True,
            }
            | {"image_mean": [0.5] * 3, "image_std": [0.5] * 3},
            Preprocessing(224, 224, (0.5,) * 3, (0.5,) * 3, crop="squash"),
        ),
        (
            {"feature_extractor_type": "ConvNextFeatureExtractor", "size": 224, "crop_pct": 0.875}
            | {"resample": 3, "image_mean": [0.5] * 3, "image_std": [0.5] * 3},
            Preprocessing(224, 256, (0.5,) * 3, (0.5,) * 3, "bicubic"),
        ),
    ],
)
def test_old_files_have_one_number_for_the_size(fields, expected):
    assert preprocessing_from(fields) == expected


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"do_resize": False}, "its step 'do_resize' is left out"),
        ({"do_rescale": False}, "its step 'do_rescale' is left out"),
        ({"do_pad": True}, "it has the step 'do_pad'"),
        ({"do_flip_channel_order": True}, "it has the step 'do_flip_channel_order'"),
        ({"resample": 1}, r"its 'resample' is 1, which is none of \[0, 2, 3\]"),
        ({"resample": None}, "its 'resample' is None"),
        ({"size": {"height": 32, "width": 48}}, "its images are not square"),
        ({"size": {"longest_edge": 32}}, "its 'size' is"),
        ({"size": "32"}, "its 'size' is '32'"),
        ({"size": {"shortest_edge": 0}}, "its 'size' is"),
        ({"size": {"shortest_edge": 32}}, "it neither crops nor squares images"),
        ({"do_center_crop": True, "crop_size": 40}, "it pads images of 32 px to 40 px"),
        ({"do_center_crop": True, "crop_size": {"height": 8, "width": 9}}, "its 'crop_size' is"),
        ({"resample": [2]}, r"its 'resample' is \[2\]"),
        ({"resample": {}}, "its 'resample' is {}"),
        ({"resample": False}, "its 'resample' is False"),
        ({"do_center_crop": True, "crop_size": [[1], [2]]}, "its 'crop_size' is"),
        ({"do_center_crop": True, "crop_size": {"height": [1]}}, "its 'crop_size' is"),
        ({"crop_size": 16}, "it has a 'crop_size' and does not say in 'do_center_crop' whether it crops"),
        ({"size": 2**14 + 1}, "its 'size' is 16385"),
        ({"size": [[[1]]]}, "its 'size' is"),
        (
            {"image_processor_type": "ConvNextImageProcessor", "size": 32, "crop_pct": 1e-310},
            "its 'crop_pct' is 1e-310",
        ),
        (
            {"image_processor_type": "ConvNextImageProcessor", "size": 32, "crop_pct": 1e-3},
            "it makes images of 32000 pixels",
        ),
        ({"image_mean": [0.5]}, r"its 'image_mean' is \[0.5\]"),
        ({"image_std": None}, "its 'image_std' is None"),
        ({"rescale_factor": "1"}, "its 'rescale_factor' is '1'"),
    ],
)
def test_what_a_record_cannot_do_is_told(changes, message):
    with pytest.raises(ValueError, match=message):
        preprocessing_from(HF_PROCESSOR | changes)
