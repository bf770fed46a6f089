"""Fixtures that every test may use."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

DEVICES = ["cpu"] + (["cuda"] if torch.cuda.is_available() else [])


@pytest.fixture(params=DEVICES)
def device(request: pytest.FixtureRequest) -> torch.device:
    """Each device that this machine has."""
    return torch.device(request.param)


@pytest.fixture(autouse=True)
def isolated_random_state() -> Iterator[None]:
    """Every test starts from the same random state and leaves none behind."""
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()  # noqa: NPY002 (saves global state)
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002 (the global state is what is isolated)
    torch.manual_seed(0)
    yield
    random.setstate(states[0])
    np.random.set_state(states[1])  # noqa: NPY002
    torch.set_rng_state(states[2])


@pytest.fixture
def real_data() -> Path:
    """The folder of real photos and weights, where there is one."""
    folder = os.environ.get("TRANSFERKIT_TEST_DATA")
    if not folder:
        pytest.skip("TRANSFERKIT_TEST_DATA is not set")
    return Path(folder)
