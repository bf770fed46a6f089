"""What torchvision's models that are no image classifiers are for."""

from __future__ import annotations

_TASKS = {
    "detection": "detects objects in images",
    "optical_flow": "estimates the motion between two images (optical flow)",
    "quantization": "has 8-bit weights (it is quantized), which cannot be trained",
    "segmentation": "labels each pixel of an image (segmentation)",
    "video": "classifies videos",
}


def other_task(name: object) -> str | None:
    """Return what torchvision's model of a name does instead of classifying images.

    Args:
        name: What someone took for the name of a backbone.

    Returns:
        The rest of a sentence that begins with "This model", or ``None`` where torchvision has no
        model of that name, or one that classifies images.

    >>> other_task("r3d_18")
    'classifies videos'
    """
    from torchvision import models

    if not isinstance(name, str) or name not in models.list_models():
        return None
    package, _, rest = (
        models.get_model_builder(name).__module__.removeprefix("torchvision.models.").partition(".")
    )
    return _TASKS.get(package) if rest else None
