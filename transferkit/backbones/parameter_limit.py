"""Bound the work of a builder that follows what a file says."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator

from torch import nn
from torch.nn.modules.module import register_module_parameter_registration_hook


@contextlib.contextmanager
def limit_parameters(tensors: int) -> Iterator[None]:
    """Stop a builder that makes far more parameters than a file of weights has for them.

    A file can ask for layers without end; even under ``torch.device("meta")`` each of them takes time.

    Args:
        tensors: How many the file has. Twice as many may be made, because a new head takes the place of
            another, and a thousand more.

    Raises:
        ValueError: This thread makes more.

    >>> with limit_parameters(1), contextlib.suppress(ValueError):
    ...     for made in range(10**9):
    ...         _ = nn.Linear(1, 1)
    >>> made
    501
    """
    most, made, builder = 2 * tensors + 1000, 0, threading.get_ident()

    def count(module: nn.Module, name: str, parameter: nn.Parameter) -> None:
        nonlocal made
        made += threading.get_ident() == builder
        if made > most:
            raise ValueError("it would have more layers than there are weights")

    hook = register_module_parameter_registration_hook(count)
    try:
        yield
    finally:
        hook.remove()
