"""Fixtures that every test may use."""

from __future__ import annotations

import os
import random
import signal
import socket
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

# One thread for each process of the tests: small tensors gain nothing from more.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import pytest
import torch
from sklearn.utils import check_random_state
from torch import nn

import transferkit as tk
from transferkit.backbones.spec import set_spec

with warnings.catch_warnings():
    # Importing it, torch up to 2.11 warns of something that it still uses itself.
    warnings.simplefilter("ignore", DeprecationWarning)
    import torch.fx.experimental.optimization

# A shell that starts the tests in the background lets them ignore SIGINT, and their children too.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# The one behind the functions of np.random, on which users' code may draw.
NUMPY = check_random_state(None)

HAS_CUDA = torch.cuda.is_available()
DEVICES = ["cpu", *(["cuda"] if HAS_CUDA else [])]
if HAS_CUDA:
    # Before a test hides the devices from the processes that it starts.
    torch.cuda.init()
    # One way to compute something is compared with another: by default cuDNN would shorten the factors
    # of float32 products, and add up gradients in any order.
    torch.backends.cudnn.conv.fp32_precision = "ieee"
    torch.backends.cudnn.deterministic = True


@pytest.fixture(params=DEVICES)
def device(request: pytest.FixtureRequest) -> torch.device:
    """Each device that this machine has."""
    return torch.device(request.param)


@pytest.fixture(autouse=True)
def automatic_device(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """But for tests on a CUDA device, ``"auto"`` is the CPU, for which alone bits are promised."""
    parameters = getattr(getattr(request.node, "callspec", None), "params", {})
    if HAS_CUDA and parameters.get("device") != "cuda":
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")


@pytest.fixture(autouse=True)
def isolated_random_state() -> Iterator[None]:
    """Every test starts from the same random state and leaves none behind."""
    states = random.getstate(), NUMPY.get_state(), torch.get_rng_state()
    random.seed(0)
    NUMPY.seed(0)
    torch.manual_seed(0)
    yield
    random.setstate(states[0])
    NUMPY.set_state(states[1])
    torch.set_rng_state(states[2])


@pytest.fixture(autouse=True)
def cache_of_its_own(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test reads what another has stored, and none writes into the user's cache."""
    monkeypatch.setenv("TRANSFERKIT_CACHE", str(tmp_path_factory.mktemp("cache")))
    monkeypatch.delenv("TRANSFERKIT_CACHE_SIZE", raising=False)


@pytest.fixture
def real_data() -> Path:
    """The folder of real photos and weights, where there is one."""
    folder = os.environ.get("TRANSFERKIT_TEST_DATA")
    if not folder:
        pytest.skip("TRANSFERKIT_TEST_DATA is not set")
    return Path(folder)


class TinyNet(nn.Module):
    """A convolution with batch norm, and a head."""

    def __init__(self, num_classes: int, *, norm: bool = True) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(3, 8, 3, stride=2, padding=1),
            nn.BatchNorm2d(8) if norm else nn.Identity(),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(2),
            nn.Flatten(),
        )
        self.fc = nn.Linear(32, num_classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.fc(self.body(images))


@pytest.fixture
def tiny_model() -> Callable[..., nn.Module]:
    """Makes a small model with a spec: 8 px images, head ``fc``; the same weights for the same seed."""

    def make(num_classes: int = 2, *, norm: bool = True, seed: int = 0) -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            model = TinyNet(num_classes, norm=norm)
        return set_spec(model, tk.BackboneSpec("custom", "fc", tk.Preprocessing(size=8)))

    return make


@pytest.fixture
def tiny_part() -> Callable[..., tk.Part]:
    """Makes a part of small noisy images whose class shows in their color."""

    def make(
        count: int = 24, *, classes: int = 2, noise: float = 40.0, seed: int = 0, name: str = "train"
    ) -> tk.Part:
        generator = np.random.default_rng(seed)
        targets = np.arange(count) % classes
        images = generator.normal(128, noise, (count, 8, 8, 3))
        images[..., 0] += (targets * 60 - 30)[:, None, None]
        pixels = images.clip(0, 255).astype(np.uint8)
        ids = [f"{name}-{seed}-{index}" for index in range(count)]
        names = [f"class{number}" for number in range(classes)]
        return tk.Part(pixels, targets, names, name=name, ids=ids)

    return make


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever opens a connection, fails."""

    def refuse(*_: object) -> None:
        raise AssertionError("a connection was opened")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
