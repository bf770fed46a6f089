"""Training runs for processes that are killed."""

from __future__ import annotations

import hashlib
import json
import os
import random
import signal
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.utils import check_random_state
from torch.utils.data import DataLoader, Dataset

import transferkit as tk


class RandomTensors(Dataset):
    """Ready tensors that are drawn anew each time, in worker processes too."""

    def __len__(self) -> int:
        return 30

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return torch.randn(3, 32, 32) + index / 30, index % 3


def images(count: int, seed: int) -> tk.Part:
    pixels = np.random.default_rng(seed).integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)
    return tk.Part(pixels, np.arange(count) % 3, ["a", "b", "c"])


LP_FT = [tk.Phase(train="head", epochs=3), tk.Phase(train="all", epochs=3, augmentation="light")]
# Each: phases, number of loader workers (None for images of our own), and other options of the trainer.
CASES: dict[str, tuple[list[tk.Phase], int | None, dict[str, Any]]] = {
    "lp-ft": (LP_FT, None, {}),
    "lp-ft in bfloat16": (LP_FT, None, {"precision": "bf16"}),
    "lp-ft, accumulated": (
        [tk.Phase(epochs=3, accumulate=2, optimizer="sgd", freeze_batch_norm=False)],
        None,
        {},
    ),
    "solver, then all": ([tk.Phase(train="head", solver="lbfgs"), LP_FT[1]], None, {}),
    "loader, 0 workers": ([tk.Phase(train="head", epochs=2), tk.Phase(epochs=2)], 0, {}),
    "loader, 2 workers": ([tk.Phase(train="head", epochs=2), tk.Phase(epochs=2)], 2, {}),
}


def train(case: str, run: str, result: str, kill_in_write: int, cache: str) -> None:
    """Go on with a run as far as it lets us, and write what came out of it.

    Args:
        case: Which of ``CASES``.
        run: The run directory.
        result: Where the digest of weights, buffers and history is written at the end.
        kill_in_write: The process kills itself while it brings a file to the disk for the nth time; 0: never.
        cache: The folder of stored features.
    """
    os.environ["TRANSFERKIT_CACHE"] = cache
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    phases, workers, options = CASES[case]
    if kill_in_write:
        _kill_in_write(kill_in_write)
    random.seed(0)
    check_random_state(None).seed(0)
    torch.manual_seed(0)
    model = tk.load_backbone("mini", num_classes=3)
    trainer = tk.Trainer(
        model,
        recipe=phases,
        batch_size=6,
        run_dir=run,
        checkpoints=tk.Checkpoints(seconds=None, steps=1),
        progress=False,
        **options,
    )
    if workers is None:
        history = trainer.fit(images(40, 0), images(12, 1), resume=True)
    else:
        # Not as this process was started: workers would then be children of a server that outlives us.
        context = "fork" if workers else None
        loader = DataLoader(
            RandomTensors(), 6, shuffle=True, num_workers=workers, multiprocessing_context=context
        )
        history = trainer.fit(loader, resume=True)
    Path(result).write_text(json.dumps(outcome(model, history)))


def outcome(model: torch.nn.Module, history: tk.History) -> dict[str, Any]:
    whole = hashlib.sha256()
    for name, value in model.state_dict().items():
        whole.update(name.encode() + value.contiguous().numpy().tobytes())
    clocks = ("seconds", "images_per_second")
    rows = [{key: value for key, value in row.items() if key not in clocks} for row in history]
    return {"weights": whole.hexdigest(), "history": rows}


def _kill_in_write(nth: int) -> None:
    fsync, calls = os.fsync, 0

    def deadly(handle: int) -> None:
        nonlocal calls
        calls += 1
        if calls == nth:
            os.kill(os.getpid(), signal.SIGKILL)
        fsync(handle)

    os.fsync = deadly
