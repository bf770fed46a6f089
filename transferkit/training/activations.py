"""Gradient checkpointing: blocks that keep their inputs alone, and are computed again going backward."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import nn

from transferkit.backbones.spec import find_spec, unwrapped
from transferkit.module_tree import find_module, has_parameters, named_children


def blocks_of(model: nn.Module) -> list[nn.Module]:
    """Return the blocks of a backbone that are computed again, from input to output.

    They are what the stages of the spec are made of, down to modules of several layers; a single
    layer is left out, because what it would save is kept by the next one. Without stages the
    model's own children stand for them.

    >>> layers = [nn.Sequential(nn.Linear(4, 4), nn.ReLU()) for _ in range(3)]
    >>> len(blocks_of(nn.Sequential(*layers, nn.Linear(4, 2))))
    3
    """
    spec = find_spec(model)
    if spec is not None and spec.stages:
        found = [find_module(model, path) for stage in spec.stages for path in stage.members]
        members = [module for module in found if module is not None]
    else:
        members = [child for _, child in named_children(unwrapped(model))]
    return [block for member in members for block in _blocks_in(member)]


def _blocks_in(module: nn.Module) -> Iterator[nn.Module]:
    children = [child for _, child in named_children(module)]
    if not children or not has_parameters(module):
        return
    nested = any(next(child.children(), None) is not None for child in children)
    # Of a sequence it is known that each child runs by itself.
    if isinstance(module, nn.Sequential) and nested:
        for child in children:
            yield from _blocks_in(child)
    else:
        yield module


@contextmanager
def computed_again(blocks: Sequence[nn.Module]) -> Iterator[None]:
    """Let blocks be computed again in the backward pass, for as long as the context lasts.

    Random numbers are those of the first time. Buffers, such as the statistics of batch norm,
    move the first time alone.

    Source:
        Chen et al. (2016), https://arxiv.org/abs/1604.06174; ``torch.utils.checkpoint`` does it.
    """
    before = [block.__dict__.get("forward") for block in blocks]
    for block in blocks:
        # An entry of the instance, so that the class and the names of its modules stay as they are.
        block.__dict__["forward"] = functools.partial(_forward, block, block.forward)
    try:
        yield
    finally:
        for block, own in zip(blocks, before, strict=True):
            if own is None:
                del block.__dict__["forward"]
            else:
                block.__dict__["forward"] = own


def _forward(block: nn.Module, forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    if not torch.is_grad_enabled():
        return forward(*args, **kwargs)
    from torch.utils.checkpoint import checkpoint

    def contexts() -> tuple[Any, Any]:
        return nullcontext(), _buffers_kept(block)

    return checkpoint(forward, *args, use_reentrant=False, context_fn=contexts, **kwargs)


@contextmanager
def _buffers_kept(block: nn.Module) -> Iterator[None]:
    kept = [(buffer, buffer.clone()) for buffer in block.buffers()]
    try:
        yield
    finally:
        with torch.no_grad():
            for buffer, value in kept:
                buffer.copy_(value)
