"""Models of which only the shapes matter, however large they are."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pytest
from torch import nn


@contextlib.contextmanager
def without_values() -> Iterator[None]:
    """Build modules whose parameters have shapes alone; torch.device("meta") is too much for RegNet."""
    register = nn.Module.register_parameter

    def on_meta(module, name, parameter):
        if parameter is not None and parameter.device.type != "meta":
            parameter = nn.Parameter(parameter.to("meta"), requires_grad=parameter.requires_grad)
        register(module, name, parameter)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(nn.Module, "register_parameter", on_meta)
        yield
