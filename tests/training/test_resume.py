"""A run that was interrupted and resumed ends as one that was not, to the bit."""

from __future__ import annotations

import hashlib
import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from sklearn.utils import check_random_state
from torch import nn
from torch.utils.data import DataLoader, TensorDataset, WeightedRandomSampler

import transferkit as tk
from transferkit.errors import (
    ArgumentError,
    CheckpointCorruptError,
    CheckpointError,
    CheckpointWriteError,
    DeviceMemoryError,
    ResumeMismatchError,
    RunDirectoryError,
)
from transferkit.training import run as run_module
from transferkit.training.checkpoint_files import CheckpointFolder, read_checkpoint

CLOCKS = ("seconds", "images_per_second")
EVERY_STEP = tk.Checkpoints(seconds=None, steps=1, keep=3)


@pytest.fixture(autouse=True)
def no_waiting_for_the_disk(monkeypatch):
    """Thousands of checkpoints are written; that each is brought to the disk is held by their own tests."""
    monkeypatch.setattr("os.fsync", lambda handle: None)


class Crash(Exception):
    """Stands for a process that ends."""


class CrashAt(tk.Callback):
    """Ends the run within an update, before what it did can be saved."""

    def __init__(self, *batches: int) -> None:
        self.batches = batches
        self.seen = 0

    def step_end(self, result: Any) -> None:
        self.seen += 1
        if self.seen in self.batches:
            raise Crash


def images(count: int = 21) -> tk.Part:
    pixels = np.random.default_rng(0).integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)
    return tk.Part(pixels, np.arange(count) % 3, ["a", "b", "c"], name="train")


def validation() -> tk.Part:
    pixels = np.random.default_rng(1).integers(0, 256, (9, 32, 32, 3), dtype=np.uint8)
    return tk.Part(pixels, np.arange(9) % 3, ["a", "b", "c"], name="val")


def unequal() -> tk.Part:
    return images(30).take([*range(0, 30, 3), *range(1, 15, 3), 2, 5])


def loader(workers: int = 0, *, persistent: bool = False) -> DataLoader[Any]:
    inputs = torch.randn(21, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    data = TensorDataset(inputs, torch.arange(21) % 3)
    # Without a generator of its own it draws from torch's global state.
    return DataLoader(data, batch_size=4, shuffle=True, num_workers=workers, persistent_workers=persistent)


def loader_with_generator() -> DataLoader[Any]:
    plain = loader()
    return DataLoader(plain.dataset, 4, shuffle=True, generator=torch.Generator().manual_seed(5))


def loader_with_sampler() -> DataLoader[Any]:
    weights = torch.arange(1.0, 22.0)
    generator = torch.Generator().manual_seed(5)
    return DataLoader(loader().dataset, 4, sampler=WeightedRandomSampler(weights, 21, generator=generator))


class RandomPhotos:
    """A data set of the user's own that draws from all three generators that people use."""

    classes = ("a", "b", "c")
    targets = tuple(number % 3 for number in range(21))

    def __len__(self) -> int:
        return 21

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        noise = torch.randint(0, 64, (3, 32, 32), dtype=torch.uint8)
        shift = int(check_random_state(None).randint(0, 64)) + random.randint(0, 64)
        return noise + index + shift, index % 3


class Case(NamedTuple):
    phases: list[tk.Phase]
    train: Callable[[], Any] = images
    val: Callable[[], Any] | None = validation
    head: str = "linear"
    options: dict[str, Any] = {}


HEAD_BALANCED = tk.Phase(train="head", epochs=2, views=2, augmentation="light", sampling="balanced")
HEAD = tk.Phase(train="head", epochs=2)
ALL = tk.Phase(train="all", epochs=2, augmentation="light")
CASES = {
    "probe, then everything": Case([HEAD, ALL]),
    "stages": Case([tk.Phase(train=("head",), epochs=1), tk.Phase(train="head"), ALL]),
    "accumulation": Case([tk.Phase(epochs=2, accumulate=2, clip_norm=1.0)]),
    "sgd with steps": Case(
        [tk.Phase(epochs=4, optimizer="sgd", schedule="step", step_size=1, label_smoothing=0.1)]
    ),
    "one cycle, weighted": Case([tk.Phase(epochs=2, schedule="one-cycle", class_weights=(1.0, 2.0, 3.0))]),
    "patience": Case([tk.Phase(train="head", epochs=8, patience=1, lr=1.0), tk.Phase(epochs=1)]),
    "solver first": Case([tk.Phase(train="head", solver="lbfgs"), tk.Phase(epochs=2)]),
    "views": Case([tk.Phase(train="head", epochs=3, views=3, augmentation="light")]),
    "dropout": Case([HEAD, ALL], head="mlp"),
    "without validation": Case([HEAD, ALL], val=None),
    "bfloat16": Case([HEAD, ALL], options={"precision": "bf16"}),
    "batch norm learns": Case([tk.Phase(epochs=2, freeze_batch_norm=False)]),
    "loader": Case([HEAD, tk.Phase(epochs=2)], train=loader, val=None),
    "loader with a generator": Case([tk.Phase(epochs=2)], train=loader_with_generator, val=None),
    "plateau": Case([tk.Phase(epochs=4, schedule="plateau", step_size=1, gamma=0.5, lr=0.05)]),
    "averaged": Case([tk.Phase(train="head", epochs=2, ema=0.7), tk.Phase(epochs=2, ema=0.9)]),
    "averaged, without validation": Case([tk.Phase(epochs=2, ema=0.9, accumulate=2)], val=None),
    "mixup": Case([tk.Phase(epochs=2, mix="mixup", augmentation="light")], head="mlp"),
    "cutmix": Case([tk.Phase(epochs=2, mix="cutmix", label_smoothing=0.1, class_weights=(1.0, 2.0, 3.0))]),
    "balanced": Case(
        [HEAD_BALANCED, tk.Phase(epochs=2, sampling="balanced", augmentation="light")], train=unequal
    ),
    "checkpointed activations": Case([tk.Phase(epochs=2, checkpoint_activations=True)], head="mlp"),
    "gradual": Case([tk.Phase(train=f"last:{count}") for count in (1, 2, 3)]),
    "persistent workers": Case([tk.Phase(epochs=3)], train=lambda: loader(1, persistent=True), val=None),
    "sampler with a generator": Case([tk.Phase(epochs=3)], train=loader_with_sampler, val=None),
    "validation at random": Case([tk.Phase(epochs=3, schedule="plateau")], val=RandomPhotos),
    "shuffled validation": Case([tk.Phase(epochs=3)], train=loader, val=loader_with_generator),
    "random data set": Case([HEAD, tk.Phase(epochs=2)], train=RandomPhotos, val=None),
}


class Outcome(NamedTuple):
    weights: str
    history: list[dict[str, Any]]
    last: dict[str, Any]
    tensors: str


class SmallNet(nn.Module):
    """So small that saving after every step costs little; its batch norm has learned something."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = self._stage(3, 8)
        self.middle = self._stage(8, 12)
        self.last = self._stage(12, 16)
        self.pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.fc = nn.Linear(16, 3)

    def _stage(self, inputs: int, outputs: int) -> nn.Sequential:
        norm = nn.BatchNorm2d(outputs)
        nn.init.normal_(norm.running_mean, std=0.1)
        return nn.Sequential(nn.Conv2d(inputs, outputs, 3, stride=2, padding=1), norm, nn.ReLU())

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.fc(self.pool(self.last(self.middle(self.stem(images)))))


def build(case: Case) -> nn.Module:
    torch.manual_seed(3)
    stages = [(name, [name]) for name in ("stem", "middle", "last")]
    model = tk.attach_spec(SmallNet(), head="fc", preprocessing=tk.Preprocessing(size=32), stages=stages)
    return tk.replace_head(model, 3, head=case.head, dropout=0.2)


def digest(tensors: dict[str, torch.Tensor]) -> str:
    whole = hashlib.sha256()
    for name, value in sorted(tensors.items()):
        whole.update(name.encode())
        whole.update(value.detach().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return whole.hexdigest()


def without_clocks(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{key: value for key, value in row.items() if key not in CLOCKS} for row in rows]


def go(
    case: Case, run: Path, *callbacks: tk.Callback, resume: bool | Path = False, **options: Any
) -> Outcome:
    """Train in a process's stead: with a model, data and a trainer of its own."""
    random.seed(7)
    check_random_state(None).seed(7)
    model = build(case)
    options = {"checkpoints": EVERY_STEP, **case.options, **options}
    trainer = tk.Trainer(
        model, recipe=case.phases, batch_size=4, run_dir=run, progress=False, callbacks=callbacks, **options
    )
    kept = run.parent / f"{run.name}-last"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            CheckpointFolder, "clear", lambda self: shutil.copytree(self.path, kept, dirs_exist_ok=True)
        )
        history = trainer.fit(case.train(), None if case.val is None else case.val(), resume=resume)
    newest = CheckpointFolder(kept).newest()
    assert newest is not None
    # How a phase was fed, such as from the cache, may differ.
    config = newest.config | {"decisions": len(newest.config["decisions"])}
    state = newest.state | {"history": without_clocks(newest.state["history"]), "config": config}
    return Outcome(
        digest(dict(model.state_dict())), without_clocks(list(history)), state, digest(newest.tensors)
    )


def steps_in(case: Case, run: Path) -> int:
    counter = CrashAt()
    go(case, run, counter)
    return counter.seen


@pytest.mark.parametrize("name", CASES)
@pytest.mark.filterwarnings("ignore:The data set gives float tensors", "ignore:.*validation")
def test_a_resumed_run_ends_as_one_that_was_not_interrupted(name, tmp_path):
    case = CASES[name]
    counter = CrashAt()
    whole = go(case, tmp_path / "whole", counter)
    # In the first update, in the middle, where phases change as a rule, and in the last update.
    for crash in sorted({1, counter.seen // 2 + 1, counter.seen}):
        run = tmp_path / f"crash-{crash}"
        with pytest.raises(Crash):
            go(case, run, CrashAt(crash))
        assert not (run / "model").exists()
        assert go(case, run, resume=True) == whole, f"interrupted in batch {crash} of {counter.seen}"


def test_a_run_may_be_interrupted_again_and_again(tmp_path):
    case = CASES["probe, then everything"]
    whole = go(case, tmp_path / "whole")
    run = tmp_path / "run"
    for _ in range(6):
        with pytest.raises(Crash):
            go(case, run, CrashAt(4), resume=True)
    assert go(case, run, resume=True) == whole


def test_workers_change_nothing(tmp_path):
    cases = [
        Case([tk.Phase(epochs=2)], train=lambda count=count: loader(count), val=None) for count in (0, 2)
    ]
    whole = go(cases[0], tmp_path / "whole")
    with pytest.raises(Crash):
        go(cases[1], tmp_path / "run", CrashAt(7))
    assert go(cases[1], tmp_path / "run", resume=True) == whole


@pytest.mark.filterwarnings("ignore:The data set gives float tensors")
def test_a_loader_gives_another_order_in_each_epoch_that_follows_from_the_seed(tmp_path):
    orders: dict[int, list[list[int]]] = {}
    for seed in (0, 0, 1):
        epochs: list[list[int]] = []

        class Watched(TensorDataset):
            def __getitem__(self, index, epochs=epochs):
                epochs[-1].append(index)
                return super().__getitem__(index)

        class Epochs(tk.Callback):
            def epoch_start(self, epoch, samples, steps, epochs=epochs):
                epochs.append([])

        data = DataLoader(Watched(torch.randn(12, 3, 32, 32), torch.arange(12) % 3), 4, shuffle=True)
        trainer = tk.Trainer(
            build(CASES["loader"]), recipe=tk.Phase(epochs=3), seed=seed, progress=False, callbacks=[Epochs()]
        )
        trainer.fit(data)
        assert all(sorted(order) == list(range(12)) for order in epochs)
        assert len({tuple(order) for order in epochs}) == 3
        assert orders.setdefault(seed, epochs) == epochs
    assert orders[0] != orders[1]


def test_resuming_where_nothing_was_saved_begins(tmp_path):
    case = CASES["probe, then everything"]
    whole = go(case, tmp_path / "whole")
    assert go(case, tmp_path / "new", resume=True) == whole
    # The first batch ends it before anything was saved, but after config.json was written.
    with pytest.raises(Crash):
        go(case, tmp_path / "begun", CrashAt(1))
    assert (tmp_path / "begun" / "config.json").is_file()
    assert go(case, tmp_path / "begun", resume=True) == whole


def test_resuming_a_finished_run_changes_nothing(tmp_path):
    case = CASES["probe, then everything"]
    model = build(case)
    options = {"recipe": case.phases, "batch_size": 4, "run_dir": tmp_path / "run", "progress": False}
    history = tk.Trainer(model, **options).fit(images(), validation())
    before = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
    again = build(case)
    counter = CrashAt()
    rows = tk.Trainer(again, callbacks=[counter], **options).fit(images(), validation(), resume=True)
    assert list(rows) == list(history)
    assert counter.seen == 0
    assert digest(dict(again.state_dict())) == digest(dict(model.state_dict()))
    assert {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()} == before
    assert not again.training
    with pytest.raises(RunDirectoryError, match="is over; give resume=True, or choose a new run directory"):
        tk.Trainer(again, **options).fit(images(), validation(), resume="elsewhere")


def test_checkpoints_of_a_finished_run_are_removed(tmp_path):
    trainer = tk.Trainer(
        build(CASES["dropout"]), recipe=HEAD, run_dir=tmp_path / "run", checkpoints=EVERY_STEP, progress=False
    )
    trainer.fit(images())
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == [
        "config.json",
        "history.jsonl",
        "model",
    ]


def interrupted(tmp_path: Path) -> tuple[Case, Path]:
    case, run = CASES["probe, then everything"], tmp_path / "run"
    with pytest.raises(Crash):
        go(case, run, CrashAt(15))
    return case, run


def test_two_runs_may_go_on_from_one_checkpoint(tmp_path):
    case, run = interrupted(tmp_path)
    shutil.copytree(run, tmp_path / "copy")
    assert go(case, run, resume=True) == go(case, tmp_path / "copy", resume=True)


def test_a_named_checkpoint_is_where_the_run_goes_on(tmp_path):
    case, run = interrupted(tmp_path)
    whole = go(case, tmp_path / "whole")
    counter = CrashAt()
    outcome = go(case, run, counter, resume=run / "checkpoints" / "000012")
    # An update is a batch here, and 20 of them make the run.
    assert counter.seen == 8
    assert outcome.weights == whole.weights
    assert outcome.history == whole.history


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seed": 1}, "seed was 0 and is 1 now"),
        ({"batch_size": 5}, "batch_size was 4 and is 5 now"),
        ({"recipe": [HEAD]}, "phases was 2 and is 1 now"),
        ({"recipe": [HEAD, tk.Phase(epochs=2, lr=0.5)]}, "lr of phase 2 was not given and is 0.5 now"),
        ({"augmentation": "strong"}, "augmentation was not given and is 'strong' now"),
        ({"precision": "bf16"}, "precision was 'fp32' and is 'bf16' now"),
    ],
)
def test_a_run_is_not_resumed_with_other_settings(change, message, tmp_path):
    case, run = CASES["probe, then everything"], tmp_path / "run"
    options = {"recipe": case.phases, "batch_size": 4, "run_dir": run, "progress": False, "precision": "fp32"}
    with pytest.raises(Crash):
        tk.Trainer(build(case), callbacks=[CrashAt(15)], **options).fit(images(), validation())
    with pytest.raises(ResumeMismatchError) as error:
        tk.Trainer(build(case), **(options | change)).fit(images(), validation(), resume=True)
    assert str(error.value).startswith(
        f"The run in {run} can only be resumed with the settings it began with: "
    )
    assert message in str(error.value)
    assert str(error.value).endswith(" Give it those, or choose a new run directory.")


def test_a_run_is_not_resumed_with_other_data_or_another_model(tmp_path):
    case, run = interrupted(tmp_path)
    options = {"recipe": case.phases, "batch_size": 4, "run_dir": run, "progress": False}
    with pytest.raises(
        ResumeMismatchError,
        match="training images are others than when it began: 21 images then and 20 images now",
    ):
        tk.Trainer(build(case), **options).fit(images(20), validation(), resume=True)
    with pytest.raises(ResumeMismatchError, match="validation data was 9 images and is none now"):
        tk.Trainer(build(case), **options).fit(images(), resume=True)
    with pytest.raises(ResumeMismatchError, match="epochs was not given and is 5 now"):
        tk.Trainer(build(case), **options).fit(images(), validation(), epochs=5, resume=True)
    other = build(CASES["dropout"])
    with pytest.raises(ResumeMismatchError, match="kind of the head was 'linear' and is 'mlp' now"):
        tk.Trainer(other, **options).fit(images(), validation(), resume=True)


def test_what_can_be_resumed_is_said(tmp_path):
    case, run = interrupted(tmp_path)
    with pytest.raises(RunDirectoryError) as error:
        go(case, run)
    assert str(error.value) == (
        f"The run directory {run} is already in use; resume the run in it, or choose a new one."
    )
    with pytest.raises(ArgumentError, match=r"'resume' parameter of Trainer\.fit must be False where"):
        tk.Trainer(build(case), progress=False).fit(images(), resume=True)
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.jpg").touch()
    with pytest.raises(RunDirectoryError, match="is already in use; choose a new one"):
        go(case, tmp_path / "photos", resume=True)


def test_what_a_killed_writer_left_is_no_run_and_is_swept(tmp_path):
    case, run = CASES["probe, then everything"], tmp_path / "run"
    whole = go(case, tmp_path / "whole")
    run.mkdir()
    (run / ".config.json.77-0a1b2c3d.tmp").write_text("{")
    assert go(case, run, resume=True) == whole
    assert sorted(path.name for path in run.iterdir()) == [
        "checkpoints",
        "config.json",
        "history.jsonl",
        "model",
    ]


def test_a_damaged_checkpoint_gives_way_to_the_one_before_it(tmp_path):
    case, run = interrupted(tmp_path)
    whole = go(case, tmp_path / "whole")
    newest = run / "checkpoints" / "000014" / "tensors.safetensors"
    newest.write_bytes(newest.read_bytes()[:-7])
    with pytest.raises(CheckpointCorruptError, match=r"000014 is damaged: tensors\.safetensors has changed"):
        go(case, run, resume=newest.parent)
    with pytest.warns(
        UserWarning, match=r"000014 is damaged.* The run goes on from the one before it, .*000013"
    ):
        outcome = go(case, run, resume=True)
    assert (outcome.weights, outcome.history) == (whole.weights, whole.history)


def test_a_run_whose_checkpoints_are_all_damaged_does_not_begin_again_unsaid(tmp_path):
    case, run = interrupted(tmp_path)
    for manifest in (run / "checkpoints").glob("*/manifest.json"):
        manifest.write_text("{}")
    with pytest.raises(
        CheckpointCorruptError, match="No checkpoint before it is valid; start again in another"
    ):
        go(case, run, resume=True)


def test_a_run_is_resumed_without_its_configuration_which_is_in_the_checkpoints_too(tmp_path):
    case, run = interrupted(tmp_path)
    (run / "config.json").unlink()
    assert go(case, run, resume=True) == go(case, tmp_path / "whole")


def test_a_damaged_configuration_stops_a_resume(tmp_path):
    case, run = interrupted(tmp_path)
    (run / "config.json").write_text("[]")
    with pytest.raises(CheckpointCorruptError, match=r"config\.json is damaged"):
        go(case, run, resume=True)


def test_what_a_run_goes_on_with_is_in_its_checkpoints_not_in_a_file_that_anyone_edits(tmp_path):
    case, run = interrupted(tmp_path)
    config = json.loads((run / "config.json").read_text())
    config["batch_size"], config["phases"][1]["lr"] = 8, 1.0
    (run / "config.json").write_text(json.dumps(config))
    assert go(case, run, resume=True) == go(case, tmp_path / "whole")


def test_a_checkpoint_goes_on_in_a_run_directory_of_its_own(tmp_path):
    case, run = interrupted(tmp_path)
    counter = CrashAt()
    outcome = go(case, tmp_path / "new", counter, resume=run / "checkpoints" / "000012")
    assert counter.seen == 8
    assert outcome.weights == go(case, tmp_path / "whole").weights
    with pytest.raises(CheckpointError, match="There is no checkpoint nowhere"):
        go(case, tmp_path / "other", resume=Path("nowhere"))


def test_a_checkpoint_of_another_run_is_refused(tmp_path):
    case, run = interrupted(tmp_path)
    with pytest.raises(Crash):
        go(case, tmp_path / "other", CrashAt(15), seed=1)
    with pytest.raises(ResumeMismatchError, match="seed was 1 and is 0 now"):
        go(case, run, resume=tmp_path / "other" / "checkpoints" / "000014")


def test_a_model_that_has_moved_on_is_not_taken_for_new(tmp_path):
    case = CASES["probe, then everything"]
    trainer = tk.Trainer(
        build(case),
        recipe=case.phases,
        batch_size=4,
        run_dir=tmp_path / "run",
        callbacks=[CrashAt(3)],
        progress=False,
    )
    with pytest.raises(Crash):
        trainer.fit(images(), validation())
    with pytest.raises(
        RunDirectoryError, match="this model is no longer what it began with; make the model and"
    ):
        trainer.fit(images(), validation(), resume=True)


def test_a_model_that_cannot_be_saved_is_told_before_it_is_trained(tmp_path):
    model = build(CASES["dropout"])
    model.register_buffer("phase", torch.zeros(2, dtype=torch.complex128))
    counter = CrashAt()
    trainer = tk.Trainer(model, recipe=HEAD, run_dir=tmp_path / "run", callbacks=[counter], progress=False)
    with pytest.raises(ArgumentError, match=r"plain tensors\. Got torch\.complex128 for 'phase' instead"):
        trainer.fit(images())
    assert counter.seen == 0


def test_a_callback_may_do_with_its_row_what_it_likes(tmp_path):
    class Spoil(tk.Callback):
        def epoch_end(self, row):
            row.clear()
            row["mine"] = np.float32(1)

    case = CASES["probe, then everything"]
    assert go(case, tmp_path / "run", Spoil()) == go(case, tmp_path / "whole")


def test_the_history_file_holds_each_epoch_once(tmp_path):
    case, run = interrupted(tmp_path)
    outcome = go(case, run, resume=True)
    rows = [json.loads(line) for line in (run / "history.jsonl").read_text().splitlines()]
    assert without_clocks(rows) == outcome.history
    assert [row["epoch"] for row in rows] == [1, 2, 3, 4]


def test_a_checkpoint_that_cannot_be_written_ends_the_run_and_leaves_those_before(tmp_path, monkeypatch):
    case, run = CASES["probe, then everything"], tmp_path / "run"

    class FullFrom(tk.Callback):
        def epoch_start(self, epoch, samples, steps):
            if epoch == 2:
                monkeypatch.setattr("transferkit.training.checkpoint_files.os.fsync", full)

    def full(handle):
        raise OSError(28, "No space left on device")

    with pytest.raises(CheckpointWriteError) as error:
        go(case, run, FullFrom())
    assert str(error.value) == (
        f"The checkpoint {run / 'checkpoints' / '000006'} cannot be written: "
        "No space left on device (error 28)."
    )
    monkeypatch.setattr("os.fsync", lambda handle: None)
    assert sorted(path.name for path in (run / "checkpoints").iterdir()) == ["000003", "000004", "000005"]
    assert go(case, run, resume=True) == go(case, tmp_path / "whole")


@pytest.mark.parametrize("kind", [torch.OutOfMemoryError, RuntimeError])
def test_out_of_memory_names_a_batch_size_that_fits(kind, tmp_path, monkeypatch):
    def exhausted(*args, **kwargs):
        raise kind("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 byte.")

    monkeypatch.setattr(run_module, "run_phase", exhausted)
    monkeypatch.setattr(run_module, "largest_batch_size", lambda *args, **kwargs: 16)
    trainer = tk.Trainer(build(CASES["dropout"]), recipe=tk.Phase(), batch_size=64, progress=False)
    with pytest.raises(DeviceMemoryError) as error:
        trainer.fit(images())
    assert str(error.value) == (
        "A batch of 64 images does not fit in the memory of cpu; batch_size=16 fits "
        "(DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 byte)."
    )


def test_another_error_of_torch_stays_what_it_is(monkeypatch):
    def broken(*args, **kwargs):
        raise RuntimeError("shapes differ")

    monkeypatch.setattr(run_module, "run_phase", broken)
    with pytest.raises(RuntimeError, match="shapes differ"):
        tk.Trainer(build(CASES["dropout"]), recipe=tk.Phase(), progress=False).fit(images())


def test_a_checkpoint_holds_no_more_than_it_says(tmp_path):
    _, run = interrupted(tmp_path)
    checkpoint = read_checkpoint(run / "checkpoints" / "000014")
    assert {name.partition(".")[0] for name in checkpoint.tensors} == {"model", "optimizer"}
    assert checkpoint.state["progress"]["epoch"] == 3
    assert checkpoint.state["progress"]["updates"] == 4
    assert checkpoint.best.keys() == build(CASES["probe, then everything"]).state_dict().keys()
