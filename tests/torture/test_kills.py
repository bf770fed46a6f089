"""Training runs that are killed with SIGKILL, again and again, end as runs that never were."""

from __future__ import annotations

import json
import multiprocessing
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import victims

from transferkit.training.checkpoint_files import CheckpointFolder

pytestmark = pytest.mark.torture

# All: at least 100 kills over 30 runs. Else a part that takes some seconds.
WHOLE = os.environ.get("TRANSFERKIT_TORTURE") == "1"
ROUNDS = 5 if WHOLE else 1
KILLS = 6 if WHOLE else 2
SEED = int(os.environ.get("TRANSFERKIT_TORTURE_SEED", "0"))
# A run that hangs is ended, and fails.
LIMIT = 300.0


@pytest.fixture(scope="module")
def processes() -> Any:
    """Makes real processes that have torch imported already."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["transferkit.trainer", "torch.utils.data"])
    return context


def start(processes: Any, folder: Path, case: str, run: str, kill_in_write: int = 0) -> Any:
    arguments = (case, str(folder / run), str(folder / f"{run}.json"), kill_in_write, str(folder / "cache"))
    process = processes.Process(target=victims.train, args=arguments)
    process.start()
    return process


def ended(process: Any, within: float) -> int | None:
    process.join(within)
    return process.exitcode


@pytest.mark.parametrize("case", victims.CASES)
def test_row_1_killed_runs_resume_to_the_bit(case, processes, tmp_path):
    started = time.monotonic()
    assert ended(start(processes, tmp_path, case, "whole"), LIMIT) == 0
    duration = time.monotonic() - started
    whole = json.loads((tmp_path / "whole.json").read_text())
    kills = 0
    for round_ in range(ROUNDS):
        rng = np.random.default_rng([SEED, round_, *case.encode()])
        replay = f"{case}, round {round_}, TRANSFERKIT_TORTURE_SEED={SEED}"
        run = f"run-{round_}"
        for _ in range(KILLS):
            in_write = bool(rng.integers(2))
            # A checkpoint brings some files and folders to the disk, after each of a few tens of steps.
            process = start(processes, tmp_path, case, run, int(rng.integers(1, 60)) if in_write else 0)
            code = ended(process, LIMIT if in_write else float(rng.uniform(0.02, 0.4)) * duration)
            if code is None:
                process.kill()
                code = ended(process, LIMIT)
            assert code in (0, -9), replay
            if code == 0:
                break
            kills += 1
            folder = CheckpointFolder(tmp_path / run / "checkpoints")
            if folder.path.exists():
                # Nothing that was killed in its writing is taken for a checkpoint, and none is damaged.
                folder.newest()
        assert ended(start(processes, tmp_path, case, run), LIMIT) == 0, f"{replay} did not resume"
        assert json.loads((tmp_path / f"{run}.json").read_text()) == whole, replay
        assert not (tmp_path / run / "checkpoints").exists(), replay
    assert kills, f"no process was killed; {case}, TRANSFERKIT_TORTURE_SEED={SEED}"
    print(f"{case}: {ROUNDS} runs, {kills} kills")
