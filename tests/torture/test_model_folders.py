"""Model folders that are damaged, forged or half written: the right model, or one sentence.

``TRANSFERKIT_TORTURE=1`` loads 2,000 damaged folders, and else 150. A failure names the seed of the damage,
which ``mutated(data, np.random.default_rng(seed))`` makes again.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

pytest.importorskip("resource", reason="time and memory of a trial are watched with resource and signal")

import resource

from disks import small_disk
from mutations import mutated
from watch import at_most, peak_memory

import transferkit as tk
from transferkit import files
from transferkit.errors import (
    CheckpointCorruptError,
    CheckpointError,
    OutputError,
    TransferkitError,
    WeightsMismatchError,
)
from transferkit.loading import model_folder

pytestmark = pytest.mark.torture

WHOLE = os.environ.get("TRANSFERKIT_TORTURE") == "1"
SEED = 5
FOLDERS = 2000 if WHOLE else 150
KILLS = 30 if WHOLE else 2
SECONDS = 20
GROWTH = 300 * 2**20  # bytes
FILES = ["model.json", "weights.safetensors"]


def make(seed: int, classes: tuple[str, ...] = ("ant", "bee")) -> nn.Module:
    torch.manual_seed(seed)
    model = tk.load_backbone("mini", weights=None, image_size=16)
    return tk.replace_head(model, len(classes), classes=classes)


def make_small(seed: int) -> nn.Module:
    """A model of the user's own, of a few hundred bytes, for what is done very often."""
    torch.manual_seed(seed)
    net = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2)
    )
    return tk.attach_spec(
        net, head="4", preprocessing=tk.Preprocessing(size=8), classes=["ant", f"bee{seed}"]
    )


def load_small(folder: Path) -> nn.Module:
    return tk.load_model(folder, into=make_small(0))


def is_same(model: nn.Module, expected: nn.Module) -> bool:
    """Whether two models agree in every bit of their weights, and in all that is known of them."""
    own, other = model.state_dict(), expected.state_dict()
    weights = own.keys() == other.keys() and all(torch.equal(own[name], other[name]) for name in own)
    return weights and tk.spec_of(model) == tk.spec_of(expected)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that holds ``make(1)``."""
    return tk.save_model(make(1), tmp_path_factory.mktemp("whole"))


@pytest.mark.parametrize("name", FILES)
def test_damaged_folders_give_the_right_model_or_one_sentence(name, whole, tmp_path):
    folder, expected = tmp_path / "model", make(1)
    shutil.copytree(whole, folder)
    data = (whole / name).read_bytes()
    outcomes = {"refused": 0, "the same": 0}
    for number in range(FOLDERS // 2):
        seed = [SEED, FILES.index(name), number]
        (folder / name).write_bytes(mutated(data, np.random.default_rng(seed)))
        with at_most(SECONDS, f"seed {seed}"):
            try:
                model = tk.load_model(folder)
            except TransferkitError as error:
                refused = error
            else:
                assert is_same(model, expected), f"seed {seed}: another model was loaded, silently"
                outcomes["the same"] += 1
                continue
        assert isinstance(refused, CheckpointError), f"seed {seed}: {refused!r}"
        assert "\n" not in str(refused), f"seed {seed}: {refused}"
        outcomes["refused"] += 1
    assert outcomes["refused"] > 0
    if WHOLE:
        print(name, outcomes)


# --- forged records: every field as someone might write it by hand, its checksum put out of force


def forged(whole: Path, folder: Path, change: Callable[[dict[str, Any]], object]) -> Path:
    shutil.copytree(whole, folder, dirs_exist_ok=True)
    record = json.loads((folder / "model.json").read_text())
    record["checksum"] = None
    change(record)
    (folder / "model.json").write_text(json.dumps(record))
    return folder


def sets(*path: str, value: object) -> Callable[[dict[str, Any]], object]:
    def change(record: dict[str, Any]) -> None:
        for key in path[:-1]:
            record = record[key]
        record[path[-1]] = value

    return change


ODD_VALUES: list[object] = [
    *(None, True, 0, 1, -1, 10**9, 10**18, 10**30, 0.5, float("nan"), float("inf"), 1e308),
    *("", "x", "x" * 10_000, "\ud800", "os.system", "../../etc", [], [[]], [1], ["x"], [["x", ["y"]]]),
    *({}, {"x": 1}, {"__class__": "os.system"}, [None] * 1000, [float("nan")] * 3, [10**400] * 3),
]
FIELDS = [
    *((name,) for name in ("format", "spec", "aliases", "rebuildable", "weights", "checksum")),
    *(
        ("spec", name)
        for name in ("name", "head", "preprocessing", "stages", "classes", "num_classes", "weights")
    ),
    *(("spec", name) for name in ("builder_kwargs", "head_kind", "head_dropout", "selected_on")),
    *(("spec", "preprocessing", name) for name in ("size", "resize", "mean", "std", "interpolation", "crop")),
    *(("weights", name) for name in ("bytes", "sha256")),
]


@pytest.mark.parametrize("path", FIELDS, ids="-".join)
def test_odd_values_in_a_record_are_refused_or_harmless(path, whole, tmp_path):
    """What is not refused has the weights of the model, and builds the model that the record tells of."""
    expected, before = make(1), peak_memory()
    for value in ODD_VALUES:
        folder = forged(whole, tmp_path / "model", sets(*path, value=value))
        what = f"{'.'.join(path)} = {value!r}"[:200]
        with at_most(SECONDS, what):
            try:
                model = tk.load_model(folder)
            except TransferkitError as error:
                refused: TransferkitError | None = error
            else:
                refused = None
        if refused is None:
            own, other = model.state_dict(), expected.state_dict()
            assert all(torch.equal(own[name], other[name]) for name in other), what
        else:
            # ArgumentError where the record says that the model cannot be built: "rebuildable": false.
            assert refused.exit_code == 4 or path == ("rebuildable",), f"{what}: {refused!r}"
            assert "\n" not in str(refused), f"{what}: {refused}"
            assert len(str(refused)) < 1000, what
    assert peak_memory() - before < GROWTH


BUILDERS: dict[str, tuple[str, dict[str, Any]]] = {
    "a weights file": ("mini", {"weights": "/etc/passwd"}),
    "a device": ("mini", {"device": "cuda"}),
    "another name": ("mini", {"name": "resnet18"}),
    "an unknown argument": ("mini", {"trust_remote_code": True}),
    "pretrained weights": ("resnet18", {"pretrained": True}),
    "a function by name": ("resnet18", {"norm_layer": "os.system"}),
    "a module by name": ("resnet18", {"block": "torchvision.models.resnet.BasicBlock"}),
    "layers of exabytes": ("resnet18", {"width_per_group": 2**40}),
    "layers without end": ("mobilenet_v2", {"inverted_residual_setting": [[6, 8, 10**9, 1]]}),
    "layers that are wide without end": ("mobilenet_v2", {"width_mult": 1e12}),
    "a growth without end": ("densenet121", {"growth_rate": 10**9}),
    "a size without end": ("vit_b_32", {"image_size": 32 * 10**9}),
}


@pytest.mark.parametrize("what", BUILDERS)
def test_builder_arguments_from_a_stranger_are_refused_at_once(what, whole, tmp_path):
    name, arguments = BUILDERS[what]

    def change(record: dict[str, Any]) -> None:
        record["spec"] |= {"name": name, "builder_kwargs": arguments, "head": "fc", "stages": []}

    before = peak_memory()
    with at_most(SECONDS, what), pytest.raises(CheckpointError) as caught:
        tk.load_model(forged(whole, tmp_path, change))
    assert "\n" not in str(caught.value)
    assert peak_memory() - before < GROWTH


@pytest.mark.parametrize("count", [1000, 10**9, 2**62])
def test_more_classes_than_there_are_weights_are_refused_at_once(count, whole, tmp_path):
    def change(record: dict[str, Any]) -> None:
        record["spec"] |= {"num_classes": count, "classes": None}

    before = peak_memory()
    with at_most(SECONDS, str(count)), pytest.raises(CheckpointError):
        tk.load_model(forged(whole, tmp_path, change))
    assert peak_memory() - before < GROWTH


def test_a_backbone_that_is_not_registered_is_named(whole, tmp_path):
    folder = forged(whole, tmp_path, sets("spec", "name", value="mimi"))
    with pytest.raises(
        CheckpointError, match=r"model\.json is of a backbone .*There is no backbone 'mimi'\. Did"
    ):
        tk.load_model(folder)


def test_a_record_that_was_edited_says_how_to_say_so(whole, tmp_path):
    folder = forged(whole, tmp_path, sets("spec", "classes", value=["bee", "ant"]))
    assert tk.class_names(tk.load_model(folder)) == ("bee", "ant")
    record = json.loads((folder / "model.json").read_text())
    record["checksum"] = json.loads((whole / "model.json").read_text())["checksum"]
    (folder / "model.json").write_text(json.dumps(record))
    with pytest.raises(
        CheckpointCorruptError, match=r'it was changed after .* set its "checksum" to null\)\.$'
    ):
        tk.load_model(folder)


@pytest.mark.parametrize("text", ["[" * 10**6, "9" * 10**6, "{}", "null", '"x"', "", "\0" * 100, "{" * 10**5])
def test_a_record_that_is_something_else_is_damaged(text, whole, tmp_path):
    shutil.copytree(whole, tmp_path, dirs_exist_ok=True)
    (tmp_path / "model.json").write_text(text)
    with pytest.raises(CheckpointCorruptError, match=r"model\.json is damaged"):
        tk.load_model(tmp_path)


def test_a_record_of_a_later_version_is_left_to_it(whole, tmp_path):
    with pytest.raises(CheckpointError, match=r"written by a later version of transferkit, in format 3"):
        tk.load_model(forged(whole, tmp_path, sets("format", value=3)))


def test_the_weights_of_another_model_are_noticed(whole, tmp_path):
    shutil.copytree(whole, tmp_path, dirs_exist_ok=True)
    other = tk.save_model(make(2), tmp_path / "other")
    shutil.copy(other / "weights.safetensors", tmp_path / "weights.safetensors")
    with pytest.raises(
        CheckpointCorruptError, match=r"is not of the model in model\.json: its checksum is an"
    ):
        tk.load_model(tmp_path)


def test_weights_that_are_replaced_while_they_are_read_are_noticed(whole, tmp_path, monkeypatch):
    """Between the comparison and the reading, another process saves another model of the same shape."""
    folder = tk.save_model(make(1), tmp_path / "model")
    digest = model_folder.file_digest

    def replaced(path: Path) -> str:
        found = digest(path)
        monkeypatch.setattr(model_folder, "file_digest", digest)
        tk.save_model(make(2), folder)
        return found

    monkeypatch.setattr(model_folder, "file_digest", replaced)
    with pytest.raises(CheckpointError, match="was replaced while it was read; load it again"):
        tk.load_model(folder)
    assert is_same(tk.load_model(folder), make(2))


# --- folders of earlier versions


def as_earlier_versions_wrote(folder: Path) -> Path:
    record = json.loads((folder / "model.json").read_text())
    del record["weights"], record["checksum"]
    (folder / "model.json").write_text(json.dumps(record | {"format": 1}, indent=2))
    return folder


def test_a_folder_without_checksums_still_loads(tmp_path):
    assert is_same(tk.load_model(as_earlier_versions_wrote(tk.save_model(make(1), tmp_path))), make(1))


# --- writers that fail or are killed


class Injected(OSError):
    pass


def operations(monkeypatch: pytest.MonkeyPatch, before: Callable[[int, str], None]) -> None:
    """Call ``before(number, name)`` ahead of each operation of a writer on the disk."""
    count = 0

    def watched(owner: object, name: str) -> None:
        original = getattr(owner, name)

        def act(*arguments: Any, **named: Any) -> Any:
            nonlocal count
            count += 1
            before(count, name)
            return original(*arguments, **named)

        monkeypatch.setattr(owner, name, act)

    for name in ("mkdir", "touch", "chmod", "replace", "write_bytes"):
        watched(Path, name)
    watched(os, "fsync")
    watched(model_folder, "write_tensors")
    watched(model_folder, "file_digest")


def states(folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[Path]:
    """Save ``make_small(2)`` over a folder; return copies of it as a kill at each moment would leave it."""
    copies: list[Path] = []
    quiet = False

    def copy(number: int, name: str) -> None:
        nonlocal quiet
        if quiet:  # copying uses the same operations
            return
        quiet = True
        target = tmp_path / f"killed-{number}-{name}"
        shutil.copytree(folder, target)
        copies.append(target)
        quiet = False

    with monkeypatch.context() as patch:
        operations(patch, copy)
        tk.save_model(make_small(2), folder)
    return copies


@pytest.mark.parametrize("earlier", [False, True])
def test_a_kill_at_any_moment_leaves_the_old_model_or_the_new_one(earlier, tmp_path, monkeypatch):
    folder = tk.save_model(make_small(1), tmp_path / "model")
    if earlier:
        as_earlier_versions_wrote(folder)
    left = states(folder, monkeypatch, tmp_path)
    found = []
    for each in left:
        model = load_small(each)
        found.append(1 if is_same(model, make_small(1)) else 2)
        assert found[-1] == 1 or is_same(model, make_small(2)), each.name
        # The next writer gets along with what was left, and is interrupted as well.
        for after in states(each, monkeypatch, each.with_name(f"again-{each.name}")):
            model = load_small(after)
            assert is_same(model, make_small(found[-1])) or is_same(model, make_small(2)), after
        assert is_same(load_small(each), make_small(2)), each.name
        shutil.rmtree(each.with_name(f"again-{each.name}"))
    assert found == sorted(found)
    assert set(found) == {1, 2}
    assert is_same(load_small(folder), make_small(2))
    assert sorted(path.name for path in folder.iterdir()) == FILES


def test_a_kill_while_the_first_model_is_written_leaves_none_or_the_model(tmp_path, monkeypatch):
    folder = tmp_path / "model"
    folder.mkdir()
    for each in states(folder, monkeypatch, tmp_path):
        told = ""
        try:
            assert is_same(load_small(each), make_small(2)), each.name
        except CheckpointError as error:
            told = str(error)
        assert not told or told.startswith("There is no model in"), each.name


def test_a_failure_at_any_operation_leaves_the_old_model_and_nothing_else(tmp_path, monkeypatch):
    folder = tk.save_model(make_small(1), tmp_path / "model")
    failures = 0
    for wanted in range(1, 100):
        with monkeypatch.context() as patch:

            def fail(number: int, name: str, wanted: int = wanted) -> None:
                if number == wanted:
                    raise Injected(errno.ENOSPC, os.strerror(errno.ENOSPC))

            operations(patch, fail)
            try:
                tk.save_model(make_small(2), folder)
            except OutputError as error:
                text = str(error)
            else:
                break
        failures += 1
        assert str(folder) in text, wanted
        assert "No space left on device" in text, wanted
        model = load_small(folder)
        assert is_same(model, make_small(1)) or is_same(model, make_small(2)), wanted
        left = {path.name for path in folder.iterdir()}
        # The last step of all may fail: then the new model is there, under the name that it is read by.
        assert left in (set(FILES), {*FILES, "weights.next.safetensors"}), wanted
        assert "weights.next.safetensors" not in left or is_same(model, make_small(2)), wanted
        tk.save_model(make_small(1), folder)
    assert failures > 10
    assert is_same(load_small(folder), make_small(2))
    assert sorted(path.name for path in folder.iterdir()) == FILES


@pytest.fixture
def small_files() -> Iterator[None]:
    """No file may grow beyond 100 kB, as on a disk that is full."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_is_named_and_leaves_nothing(tmp_path, small_files):
    (tmp_path / "kept").mkdir()
    with pytest.raises(OutputError, match=r"weights.*safetensors cannot be written: File too large\.$"):
        tk.save_model(make(1), tmp_path / "kept")
    assert list((tmp_path / "kept").iterdir()) == []
    with pytest.raises(OutputError, match=r"table\.csv cannot be written: File too large\.$"):
        files.write_text(tmp_path / "table.csv", "x" * 200_000)
    assert [path.name for path in tmp_path.iterdir()] == ["kept"]


def test_a_small_disk_that_is_full_keeps_the_old_model(tmp_path):
    """A real file system of 8 MB: the second model does not fit beside the first."""
    with small_disk(tmp_path / "disk", 8) as place:
        folder = tk.save_model(make(1), place / "model")
        with pytest.raises(
            OutputError, match=r"weights.*safetensors cannot be written: No space left on device"
        ):
            tk.save_model(make(2), folder)
        assert is_same(tk.load_model(folder), make(1))
        assert sorted(path.name for path in folder.iterdir()) == FILES


SAVER = """
import sys, torch
sys.path.insert(0, sys.argv[2])
import test_model_folders as tests, transferkit as tk
models = [tests.make_small(1), tests.make_small(2)]
print("ready", flush=True)
while True:
    for model in models:
        tk.save_model(model, sys.argv[1])
"""


def test_real_kills_leave_one_of_the_models(tmp_path):
    """A process that saves two models in turn is really killed, at random moments."""
    folder = tk.save_model(make_small(1), tmp_path / "model")
    rng = np.random.default_rng(SEED)
    for kill in range(KILLS):
        command = [sys.executable, "-c", SAVER, str(folder), str(Path(__file__).parent)]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, env=os.environ | {"OMP_NUM_THREADS": "1"})
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == b"ready\n"
            time.sleep(rng.uniform(0, 0.2))
            process.send_signal(signal.SIGKILL)
        finally:
            process.kill()
            process.communicate()
        model = load_small(folder)
        assert is_same(model, make_small(1)) or is_same(model, make_small(2)), f"seed {SEED}, kill {kill}"
    tk.save_model(make_small(1), folder)
    assert is_same(load_small(folder), make_small(1))


# --- types of numbers


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16, torch.float64], ids=str)
def test_other_floating_types_keep_their_values(kind, tmp_path):
    model = make(1).to(kind)
    again = tk.load_model(tk.save_model(model, tmp_path)).state_dict()
    for name, value in model.state_dict().items():
        assert torch.equal(again[name].double(), value.double()), name


def test_a_module_that_would_round_the_weights_does_not_take_them(tmp_path):
    tk.save_model(make(1).double(), tmp_path)
    with pytest.raises(WeightsMismatchError, match="do not fit the model, first at"):
        tk.load_model(tmp_path, into=make(1))
