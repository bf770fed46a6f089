"""Grad-CAM: where in an image is what speaks for a class."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from transferkit.backbones.spec import find_spec, unwrapped
from transferkit.backbones.stages import default_stages
from transferkit.checks import check_module, require
from transferkit.classification import logits_of
from transferkit.errors import ArgumentError
from transferkit.head_paths import find_head
from transferkit.modes import modes_kept
from transferkit.module_tree import find_module, named_children

_OWNER = "grad_cam"


def grad_cam(
    model: nn.Module,
    images: Tensor,
    target: int | Sequence[int] | Tensor | None = None,
    *,
    layer: str | None = None,
) -> Tensor:
    """Return how much each place of an image speaks for a class.

    The feature maps of a layer are added up, each weighted by the mean gradient of the class's
    logit in it; what is negative counts as 0, and the largest value of an image is 1. The sum is
    resized to the image, so it is as coarse as the layer's maps.

    The model runs in inference mode. Its mode, what of it is frozen and its gradients are
    afterwards what they were; it may be wholly frozen, and the caller may be in
    ``torch.no_grad()`` or ``torch.inference_mode()``.

    Args:
        model: A classifier with feature maps (CNNs, Swin) or tokens (ViT); compiled or not.
        images: What the model takes, normalized: float ``[N, 3, H, W]``, on its device.
        target: Index of the class for all images, or one for each ``[N]``; ``None`` stands for
            the class with the highest logit.
        layer: A stage of ``spec_of(model).stages`` by name, or the path of a module. ``None``
            takes the last layer before the head whose maps have more than one place; earlier ones
            are finer, and less often right. Of a stage that gives tokens its input norm is taken,
            because behind the last block of a ViT only the class token has a gradient.

    Returns:
        float32 ``[N, H, W]`` in [0, 1], on the images' device; all 0 for an image of which no
        place speaks for the class.

    Raises:
        ArgumentError: There is no such layer, it gives no maps, or a target is not a class.

    Source:
        Selvaraju et al. (2017), https://arxiv.org/abs/1610.02391.

    >>> import transferkit as tk
    >>> model = tk.load_backbone("mini")
    >>> grad_cam(model, torch.zeros(2, 3, 32, 32)).shape
    torch.Size([2, 32, 32])
    """
    check_module(_OWNER, model)
    valid = isinstance(images, Tensor) and images.ndim == 4 and images.is_floating_point() and len(images)
    shown = f"{images.dtype} {list(images.shape)}" if isinstance(images, Tensor) else images
    require(bool(valid), _OWNER, "images", "a float tensor [N, 3, H, W] with N at least 1", shown)
    named = layer is None or isinstance(layer, str)
    require(named, _OWNER, "layer", "the name of a stage, the path of a module or None", layer)
    module, size = unwrapped(model), (images.shape[2], images.shape[3])
    with torch.inference_mode(False), torch.enable_grad(), _inference_mode(module):
        images = images.detach().clone()  # one that was made in inference mode cannot have gradients
        path = _last_layer(module, images[:1]) if layer is None else _layer_at(module, layer, images[:1])
        features, score = _forward(module, images, path, target)
        gradient = torch.autograd.grad(score, features, allow_unused=True)[0] if score.requires_grad else None
    if gradient is None:
        raise ArgumentError(
            f"The 'layer' parameter of {_OWNER} must be a layer that the logits depend on. "
            f"Got {path!r} instead."
        )
    maps, slopes = (_maps(each.detach().float(), size) for each in (features, gradient))
    assert maps is not None
    assert slopes is not None
    heat = F.relu((slopes.mean(dim=(2, 3), keepdim=True) * maps).sum(dim=1, keepdim=True))
    heat = F.interpolate(heat, size, mode="bilinear", align_corners=False)[:, 0]
    largest = heat.amax(dim=(1, 2), keepdim=True)
    return torch.where(largest > 0, heat / largest.clamp_min(torch.finfo(heat.dtype).tiny), 0)


@contextmanager
def _inference_mode(module: nn.Module) -> Iterator[None]:
    with modes_kept(module):
        # Set directly: train() would also change what a frozen module remembers being asked for.
        for each in module.modules():
            each.training = False
        yield


def _forward(
    module: nn.Module, images: Tensor, path: str, target: int | Sequence[int] | Tensor | None
) -> tuple[Tensor, Tensor]:
    """Return the output of a layer, as a leaf of the graph, and the sum of the target's logits."""
    caught: list[Tensor] = []

    def cut(_: nn.Module, inputs: object, output: Tensor) -> Tensor:
        leaf = output.detach().requires_grad_()
        caught.append(leaf)
        return leaf.clone()  # what follows may work in place, which a leaf forbids

    layer = find_module(module, path)
    assert layer is not None
    with layer.register_forward_hook(cut):
        logits = logits_of(module(images)).float()
    targets = _targets(target, logits)
    # A layer that is used several times counts with its last use.
    return caught[-1], logits.gather(1, targets[:, None]).sum()


def _targets(target: int | Sequence[int] | Tensor | None, logits: Tensor) -> Tensor:
    """Return a class index for each image."""
    count, classes = logits.shape
    if target is None:
        return logits.argmax(dim=1)
    wanted = f"a class index below {classes}, or {count} of them, one for each image"
    try:
        given = torch.as_tensor(target)
    except (TypeError, ValueError, RuntimeError):  # what torch cannot make a tensor of, or too large an int
        given = torch.tensor(torch.nan)
    whole = not (given.is_floating_point() or given.is_complex() or given.dtype == torch.bool)
    require(whole and given.shape in ((), (count,)), _OWNER, "target", wanted, target)
    given = given.to(logits.device, torch.int64)
    require(bool(((given >= 0) & (given < classes)).all()), _OWNER, "target", wanted, target)
    return given.expand(count)


def _last_layer(module: nn.Module, images: Tensor) -> str:
    """Return the path of the last layer before the head whose output is maps of more than one place."""
    head, spec = find_head(module), find_spec(module)
    stages = spec.stages if spec is not None and spec.stages else default_stages(module, head)
    members = [path for stage in stages for path in stage.members]
    blocks = [find_module(module, path) for path in members]
    inside = {id(each) for block in blocks if block is not None for each in block.modules()}
    # A norm behind the last stage counts too, as in Swin: its maps are what the head averages.
    norms = [
        path
        for path, each in module.named_modules()
        if isinstance(each, nn.LayerNorm | nn.BatchNorm2d) and id(each) not in inside and path != head
    ]
    outputs = _outputs(module, [*members, *norms], images)
    last = max((place for place, (path, _) in enumerate(outputs) if path in members), default=-1)
    outputs = [each for place, each in enumerate(outputs) if each[0] in members or place > last]
    while outputs:
        chosen = _last_with_places(module, outputs, images)
        if chosen is not None:
            return chosen
        # A stage may end with a single place and still have maps inside.
        holders = [(path, find_module(module, path)) for path, _ in outputs]
        inner = [
            f"{path}.{name}"
            for path, holder in holders
            if holder is not None
            for name, _ in named_children(holder)
        ]
        outputs = _outputs(module, inner, images) if inner else []
    height, width = images.shape[2:]
    raise ArgumentError(
        f"The 'model' parameter of {_OWNER} must have a layer before its head that gives maps [N, C, H, W] "
        f"or tokens [N, T, C] of more than one place for images of {height} x {width} px. "
        f"Got a {type(module).__name__} in which none was found instead."
    )


def _layer_at(module: nn.Module, layer: str, images: Tensor) -> str:
    """Return the path of the layer that a user named, by the name of its stage or by its own."""
    spec = find_spec(module)
    stages = {} if spec is None else {stage.name: stage.members for stage in spec.stages}
    if layer in stages:
        chosen = _last_with_places(module, _outputs(module, stages[layer], images), images)
    else:
        known = ", ".join(stages) or "of which this model has none"
        found = layer != "" and find_module(module, layer) is not None
        require(found, _OWNER, "layer", f"a stage ({known}) or the path of a module", layer)
        outputs = [output for _, output in _outputs(module, [layer], images)]
        chosen = layer if outputs and _has_places(outputs[-1], images) else None
    wanted = "a layer that gives maps [N, C, H, W] or tokens [N, T, C] of more than one place"
    require(chosen is not None, _OWNER, "layer", wanted, layer)
    assert chosen is not None
    return chosen


def _last_with_places(module: nn.Module, outputs: Sequence[tuple[str, Tensor]], images: Tensor) -> str | None:
    """Return the last layer that gives maps, or the input norm of one that gives tokens."""
    for path, output in reversed(outputs):
        if not _has_places(output, images):
            continue
        if output.ndim == 4:
            return path
        norm = _input_norm(module, path)
        if norm is not None:
            return norm
    return None


def _input_norm(module: nn.Module, path: str) -> str | None:
    """Return the path of the first layer norm of what gives tokens, or of the last block in it.

    A norm by itself has none: behind the last block only the class token has a gradient.
    """
    holder = find_module(module, path)
    assert holder is not None
    inner = list(holder.named_modules())
    for name, each in reversed(inner):
        # A stack of blocks, of which the last counts.
        if isinstance(each, nn.Sequential | nn.ModuleList) and len(each):
            last = list(each.named_children())[-1][0]
            norm = _input_norm(module, ".".join(part for part in (path, name, last) if part))
            if norm is not None:
                return norm
    norms = [name for name, each in inner if isinstance(each, nn.LayerNorm)]
    return f"{path}.{norms[0]}" if norms and norms[0] else None


@torch.no_grad()
def _outputs(module: nn.Module, paths: Sequence[str], images: Tensor) -> list[tuple[str, Tensor]]:
    """Return the tensors that some layers give, in the order in which they run."""
    seen: list[tuple[str, Tensor]] = []

    def remember(path: str, output: object) -> None:
        if isinstance(output, Tensor):
            seen.append((path, output))

    with ExitStack() as hooks:
        for path in paths:
            layer = find_module(module, path)
            if layer is not None:
                hooks.enter_context(
                    layer.register_forward_hook(lambda _, inputs, output, path=path: remember(path, output))
                )
        module(images)
    return seen


def _has_places(output: Tensor, images: Tensor) -> bool:
    """Whether what a layer gave is maps of more than one place."""
    maps = _maps(output, (images.shape[2], images.shape[3]))
    return maps is not None and maps.shape[2] * maps.shape[3] > 1


def _maps(output: Tensor, size: tuple[int, int]) -> Tensor | None:
    """Return what a layer gave for images of a size as maps ``[N, C, h, w]``, or ``None`` if it is none.

    Swin has its channels last. Tokens are laid out as the patches of the image; what comes before
    those, such as the class token, is left out.
    """
    height, width = size
    if output.ndim == 4:
        first, last = (
            output.shape[2] * width == output.shape[3] * height,
            (output.shape[1] * width == output.shape[2] * height),
        )
        return output.movedim(3, 1) if last and not first else output
    if output.ndim != 3:
        return None
    tokens = output.shape[1]
    grids = ((height // side, width // side) for side in range(1, min(height, width) + 1))
    grid = next(((rows, columns) for rows, columns in grids if rows * columns <= tokens), None)
    if grid is None:
        return None
    patches = output[:, tokens - grid[0] * grid[1] :]
    return patches.transpose(1, 2).reshape(len(output), -1, *grid)
