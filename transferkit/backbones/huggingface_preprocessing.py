"""What the ``preprocessor_config.json`` of a Hugging Face model says, as a ``Preprocessing``."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from transferkit.backbones.preprocessing import LARGEST_IMAGE, Preprocessing
from transferkit.checks import is_number
from transferkit.registry import shown

_Channels = tuple[float, float, float]
# By PIL's numbers; it knows Lanczos, box and Hamming too.
_INTERPOLATIONS = {0: "nearest", 2: "bilinear", 3: "bicubic"}
# Of these steps, what is not looked at below changes nothing that an RGB image and its class would show.
_STEPS = {"do_resize", "do_rescale", "do_normalize", "do_center_crop", "do_convert_rgb", "do_reduce_labels"}
# In old files the size is one number, which for these is that of the shorter side, and of both for others.
_SHORTER_SIDE = {"Bit", "CLIP", "ConvNext", "Levit", "MobileNetV1", "MobileNetV2", "PoolFormer"}
# These crop unless the file says that they do not.
_CROPPING = {"Bit", "CLIP", "DeiT", "Levit", "MobileNetV1", "MobileNetV2", "PoolFormer"}


def preprocessing_from(fields: Mapping[str, Any]) -> Preprocessing:
    """Return the record that does what an image processor of transformers does.

    Args:
        fields: What the file holds. The type of the processor is looked at only where its steps mean
            something special (``ConvNext``, ``EfficientNet``, ``Levit``, ``PoolFormer``).

    Raises:
        ValueError: It does something that a ``Preprocessing`` cannot; the message says what.

    >>> fields = {"size": {"shortest_edge": 256}, "crop_size": {"height": 224, "width": 224}, "resample": 3}
    >>> fields |= {"do_center_crop": True, "image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    >>> record = preprocessing_from(fields)
    >>> record.resize, record.size, record.interpolation, record.crop
    (256, 224, 'bicubic', 'center')
    """
    others = sorted(name for name, on in fields.items() if name[:3] == "do_" and on and name not in _STEPS)
    if others:
        raise ValueError(f"it has the step {shown(others[0])}")
    for step in ("do_resize", "do_rescale"):
        if not fields.get(step, True):
            raise ValueError(f"its step {step!r} is left out")
    resample = fields.get("resample")
    if type(resample) is not int or resample not in _INTERPOLATIONS:
        raise ValueError(f"its 'resample' is {shown(resample)}, which is none of {list(_INTERPOLATIONS)}")
    kind = str(fields.get("image_processor_type") or fields.get("feature_extractor_type") or "")
    kind = re.sub(r"(ImageProcessor|FeatureExtractor)(Fast|Pil)?$", "", kind)
    size, resize, crop = _geometry(fields, kind)
    mean, std = _normalization(fields, kind)
    return Preprocessing(size, resize, mean, std, _INTERPOLATIONS[resample], crop)


def _geometry(fields: Mapping[str, Any], kind: str) -> tuple[int, int, str]:
    """Return the side of the result, that to which images are resized first, and the kind of crop."""
    given = fields.get("size")
    if _is_side(given):
        sides = ("shortest_edge",) if kind in _SHORTER_SIDE else ("height", "width")
        given = dict.fromkeys(sides, given)
    found = {name: each for name, each in given.items() if each} if isinstance(given, Mapping) else {}
    if found.keys() not in ({"shortest_edge"}, {"height", "width"}) or not all(map(_is_side, found.values())):
        raise ValueError(f"its 'size' is {shown(given)}")
    if len(set(found.values())) > 1:
        raise ValueError(f"its images are not square but {shown(given)}")
    side: int = next(iter(found.values()))
    cut = _crop_side(fields.get("crop_size")) if _crops(fields, kind) else None
    if "height" in found:
        return _cut(side, cut or side, "squash")
    if kind == "ConvNext":
        # Of a size of 384 px and more these models see the whole image, out of proportion.
        return _cut(side, side, "squash") if side >= 384 else _cut(int(side / _ratio(fields)), side, "center")
    if kind == "Levit":
        side = int(256 / 224 * side)
    if kind == "PoolFormer":
        side = int(side / _ratio(fields))
    if cut is None:
        raise ValueError("it neither crops nor squares images, so that they keep shapes of their own")
    return _cut(side, cut, "center")


def _crops(fields: Mapping[str, Any], kind: str) -> bool:
    told = fields.get("do_center_crop")
    if told is None and fields.get("crop_size") and kind not in _CROPPING:
        raise ValueError("it has a 'crop_size' and does not say in 'do_center_crop' whether it crops")
    return kind in _CROPPING if told is None else bool(told)


def _cut(resize: int, size: int, crop: str) -> tuple[int, int, str]:
    if resize > LARGEST_IMAGE:
        raise ValueError(f"it makes images of {resize} pixels")
    if size > resize:
        raise ValueError(f"it pads images of {resize} px to {size} px")
    return size, resize, crop


def _ratio(fields: Mapping[str, Any]) -> float:
    ratio = fields.get("crop_pct") or 224 / 256
    if not is_number(ratio) or not 1 / LARGEST_IMAGE <= ratio <= 1:
        raise ValueError(f"its 'crop_pct' is {shown(ratio)}")
    return ratio


def _crop_side(given: Any) -> int:
    sides = list(given.values()) if isinstance(given, Mapping) else [given]
    if not all(map(_is_side, sides)) or len(set(sides)) != 1:
        raise ValueError(f"its 'crop_size' is {shown(given)}")
    side: int = sides[0]
    return side


def _is_side(value: object) -> bool:
    return type(value) is int and 0 < value <= LARGEST_IMAGE


def _normalization(fields: Mapping[str, Any], kind: str) -> tuple[_Channels, _Channels]:
    """Return mean and standard deviation for values in [0, 1], to which rescaling need not lead here."""
    normalizes = fields.get("do_normalize", "image_mean" in fields)
    mean = _channels(fields, "image_mean") if normalizes else (0.0, 0.0, 0.0)
    std = _channels(fields, "image_std") if normalizes else (1.0, 1.0, 1.0)
    if kind == "EfficientNet" and fields.get("include_top", True):
        std = _each(lambda value: value**2, std)  # it divides by the deviation once more
    factor = fields.get("rescale_factor", 1 / 255)
    if not is_number(factor) or factor <= 0:
        raise ValueError(f"its 'rescale_factor' is {shown(factor)}")
    scale, offset = 255 * factor, 1.0 if fields.get("rescale_offset") else 0.0
    return _each(lambda value: (value + offset) / scale, mean), _each(lambda value: value / scale, std)


def _channels(fields: Mapping[str, Any], name: str) -> _Channels:
    values = fields.get(name)
    if not isinstance(values, (list, tuple)) or len(values) != 3 or not all(map(is_number, values)):
        raise ValueError(f"its {name!r} is {shown(values)}")
    return _each(float, values)


def _each(change: Callable[[float], float], values: Sequence[float]) -> _Channels:
    red, green, blue = values
    return change(red), change(green), change(blue)
