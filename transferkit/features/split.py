"""Cut a model into its largest frozen prefix and the suffix that trains."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from transferkit.backbones.spec import find_spec, unwrapped
from transferkit.classification import logits_of
from transferkit.errors import SelectorError
from transferkit.features.frozen_graph import Untraceable, acts_differently, is_frozen, mode_of
from transferkit.features.graph_cut import NoCut, cut_graph, may_write
from transferkit.heads import find_head, head_module
from transferkit.module_tree import can_train, find_module, has_parameters, named_children, plain_name
from transferkit.runtime import Execution


class NoSplit(Exception):
    """A model cannot be cut; the text says why, in a few words. It never reaches users."""


@dataclass(frozen=True)
class Split:
    """A model cut in two; both parts share its modules.

    Attributes:
        model: The whole model, without wrappers.
        prefix: From images to features, one tensor ``[N, ...]``. All of it is frozen, and it
            gives the same in training and in inference mode.
        suffix: From features to what the model returns, or to the field ``logits`` of that. Its
            ``train`` and ``eval`` act as the model's.
        where: Where the cut is, such as ``"before 'fc'"``.
    """

    model: nn.Module
    prefix: nn.Module
    suffix: nn.Module
    where: str


def split_model(model: nn.Module) -> Split:
    """Cut a model at the last tensor that is frozen and on every path from the images to what trains.

    What counts as frozen follows from which parameters require gradients now, and from which
    modules ``freeze`` holds in inference mode. The model is not run. The graph of its forward
    is traced where frozen and trainable modules mix, so that what Python decides there, apart
    from the mode, is decided once: ``why_not_split`` compares the result with the model.

    Args:
        model: Any module, compiled or not, on the device where it stays. Where its forward cannot
            be traced and its head alone trains, the cut is before the head.

    Raises:
        NoSplit: Nothing trains, nothing is frozen before it, no single tensor stands between both,
            or the cut cannot be found.

    >>> from transferkit.freezing import freeze
    >>> net = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(), nn.Linear(8, 2))
    >>> split_model(freeze(net)).where
    "before '3'"
    """
    root = unwrapped(model)
    trains = {each.requires_grad for each in root.parameters() if can_train(each)}
    if True not in trains:
        raise NoSplit("nothing trains")
    if False not in trains:
        raise NoSplit("nothing is frozen")
    if _auxiliary_trains(root):
        raise NoSplit("an auxiliary classifier trains, and the cut would leave out its logits")
    if acts_differently(root):
        raise NoSplit(f"{type(root).__name__} has hooks, or a train method of its own")
    try:
        return Split(root, *cut_graph(root))
    except Untraceable as error:
        return _split_at_head(root, error)
    except NoCut as error:
        raise NoSplit(str(error)) from error


def _auxiliary_trains(model: nn.Module) -> bool:
    """Whether an auxiliary classifier trains; what is traced gives the logits of the head alone."""
    spec = find_spec(model)
    layers = [] if spec is None else [find_module(model, path) for path in spec.auxiliary_heads]
    return any(each.requires_grad for layer in layers if layer is not None for each in layer.parameters())


def why_not_split(split: Split, inputs: Tensor, execution: Execution) -> str | None:
    """Compare the cut model with the whole one on a batch.

    Both run in float32, where rounding hides next to nothing, and then as they will in training.
    Modes, buffers and random state are left as they were.

    Args:
        split: What ``split_model`` gave.
        inputs: Some images, on the device of the model, ``[N, 3, H, W]``; a few are enough.
        execution: How the model runs.

    Returns:
        ``None`` where features and suffix give what the model gives; otherwise the reason why
        the model must run whole.
    """
    low = execution.precision != "fp32"
    weights = [each for each in split.model.parameters() if can_train(each)]
    if low and any(each.dtype != torch.float32 for each in weights):
        return "its weights are not float32"
    reason = _why_not(split, inputs.float(), dataclasses.replace(execution, precision="fp32"))
    if reason is None and low:
        # A forward may ask whether autocast is on; while it was traced it was not.
        reason = _why_not(split, inputs, execution)
    return reason


@torch.no_grad()
def _why_not(split: Split, inputs: Tensor, execution: Execution) -> str | None:
    model, prefix, suffix = parts = split.model, split.prefix, split.suffix
    buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]
    devices = [inputs.device] if inputs.is_cuda else []
    context = (torch.random.fork_rng(devices=devices), execution.arithmetic(), execution.autocast())
    try:
        with mode_of(*parts, training=False), context[0], context[1], context[2]:
            expected = logits_of(model(inputs))
            try:
                with torch.enable_grad():
                    features = prefix(inputs)
                with mode_of(prefix, training=True):
                    in_training = prefix(inputs)
                logits = logits_of(suffix(features))
                alone = prefix(inputs[:1])
                logits_alone = logits_of(suffix(alone))
            except Exception as error:
                # A graph can fail in any way where the model itself, which has just run, does not.
                first_line = next(iter(str(error).splitlines()), type(error).__name__)
                return first_line if isinstance(error, NoSplit) else f"the cut model fails ({first_line})"
    finally:
        for buffer, before in buffers:
            buffer.copy_(before)
    if not isinstance(features, Tensor) or features.shape[:1] != inputs.shape[:1]:
        return "what stands before the cut is not one tensor with a row for each image"
    if features.requires_grad:
        return "something that trains is used before the cut too"
    if not torch.equal(features, in_training):
        return "what stands before the cut differs between training and use"
    exact = execution.precision == "fp32"
    rounding = torch.finfo(execution.dtype).eps
    allowed = (1e-5 if exact else 2e-2) * _spread(expected) + rounding * _largest(expected)
    if not _agree(logits, expected, allowed):
        return "the model does more after the cut than what trains"
    # Other sizes of batches round otherwise; in low precision that tells nothing of the model.
    same = (
        _agree(values, whole[:1], 1e-3 * _spread(whole) + 8 * rounding * _largest(whole))
        for values, whole in ((alone, features), (logits_alone, expected))
    )
    if exact and not all(same):
        return "an image's features depend on the batch that it is in"
    return None


def _spread(values: Tensor) -> float:
    """Return how far values lie apart; a constant that all of them share is no part of that."""
    return float(values.float().amax() - values.float().amin())


def _largest(values: Tensor) -> float:
    return float(values.float().abs().amax())


def _agree(values: Tensor, expected: Tensor, allowed: float) -> bool:
    """Whether tensors have one shape and differ by no more than is allowed."""
    if values.shape != expected.shape:
        return False
    return bool((values.float() - expected.float()).abs().amax() <= allowed)


class _HeadInput(nn.Module):
    """Runs a model and gives what one of its modules is given."""

    def __init__(self, model: nn.Module, path: str) -> None:
        super().__init__()
        self.model = model
        self.path = path

    def forward(self, images: Tensor) -> Tensor:
        seen: list[Any] = []

        def keep(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            # Some suffixes begin with an activation that works in place.
            seen.extend(each.clone() for each in (*args, *kwargs.values()))

        entry = find_module(self.model, self.path)
        assert entry is not None
        handle = entry.register_forward_pre_hook(keep, with_kwargs=True)
        try:
            self.model(images)
        finally:
            handle.remove()
        if len(seen) != 1:
            raise NoSplit("the head does not run exactly once, on one tensor")
        features: Tensor = seen[0]
        return features


class _Copy(nn.Module):
    def forward(self, features: Tensor) -> Tensor:
        return features.clone()


def _split_at_head(model: nn.Module, error: Untraceable) -> Split:
    """Cut before the head, and before the dropout in front of it in an ``nn.Sequential``."""
    try:
        path = find_head(model)
    except SelectorError:
        raise NoSplit(str(error)) from error
    parent_path, _, name = path.rpartition(".")
    head, parent = head_module(model), find_module(model, parent_path)
    if any(each.requires_grad for each in set(model.parameters()) - set(head.parameters())):
        raise NoSplit(f"{error}, and more than the head trains") from error
    layers = [(name, head)]
    if isinstance(parent, nn.Sequential):
        siblings = list(named_children(parent))
        end = start = [sibling for sibling, _ in siblings].index(name)
        while start > 0 and not has_parameters(siblings[start - 1][1]):
            start -= 1
        while start < end and is_frozen(siblings[start][1]):
            start += 1
        layers = siblings[start : end + 1]
    entry = f"{parent_path}.{layers[0][0]}".removeprefix(".")
    modules = [module for _, module in layers]
    copy = [_Copy()] if any(map(may_write, modules)) else []
    suffix = nn.Sequential(*copy, *modules)
    suffix.training = model.training
    return Split(model, _HeadInput(model, entry), suffix, f"before {plain_name(entry)!r}")
