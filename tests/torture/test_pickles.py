"""Malicious pickles, offered wherever a file is accepted: nothing of them runs, and one sentence says so."""

from __future__ import annotations

import contextlib
import copyreg
import hashlib
import json
import pickle
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from attacks import EXTENSION, INERT, LIVE, USUAL, attacks
from PIL import Image

import transferkit as tk
from transferkit.cli import main
from transferkit.errors import (
    CheckpointCorruptError,
    CheckpointError,
    ImageDecodeError,
    TransferkitError,
    UnsafeCheckpointError,
)
from transferkit.evaluation.report import Report
from transferkit.loading.decode import decode
from transferkit.loading.row_store import RowStore
from transferkit.loading.weights import read_weights

pytest.importorskip("posix", reason="the attacks name the commands of POSIX systems")

pytestmark = pytest.mark.torture


@pytest.fixture
def canary(tmp_path: Path) -> Path:
    return tmp_path / "canary"


@pytest.fixture(autouse=True)
def extension() -> Iterator[None]:
    """Let ``copyreg`` know a command by a number, as some other package might."""
    copyreg.add_extension("posix", "system", EXTENSION)
    yield
    copyreg.remove_extension("posix", "system", EXTENSION)


@pytest.mark.parametrize("make", LIVE, ids=lambda make: make.__name__)
def test_the_attacks_work_where_pickles_are_trusted(make, canary):
    with contextlib.suppress(Exception):  # what comes after the command is of no interest
        pickle.loads(make(canary))
    assert canary.exists()


def test_there_are_enough_of_them(canary):
    assert len(LIVE) >= 20
    assert len(attacks(canary)) >= len(USUAL) * len((*LIVE, *INERT))


# --- the places: each takes the bytes of an attack and returns how it was refused


class Places:
    """A model, data and a cache, in each file of which an attack can be put."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.model = tk.load_backbone("mini", weights=None, num_classes=2)
        tk.save_model(self.model, root / "model")
        self.data = root / "data"
        for name in ("ant", "bee"):
            (self.data / name).mkdir(parents=True)
            for number in range(3):
                Image.new("RGB", (8, 8), (number * 40, 90, 10)).save(self.data / name / f"{number}.png")

    def weights(self, data: bytes, suffix: str) -> Path:
        path = self.root / f"evil{suffix}"
        path.write_bytes(data)
        return path

    def folder(self, name: str, data: bytes) -> Path:
        """Return a copy of the model in which one file is the attack, and no checksum tells of it."""
        folder = self.root / "forged"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(self.root / "model", folder)
        record = json.loads((folder / "model.json").read_text())
        digest = hashlib.sha256(data).hexdigest()
        record |= {"weights": {"bytes": len(data), "sha256": digest}, "checksum": None}
        (folder / "model.json").write_text(json.dumps(record))
        (folder / name).write_bytes(data)
        return folder

    def run(self, data: bytes) -> Path:
        """Return a run directory whose ``config.json`` is the attack."""
        folder = self.root / "run"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(self.root / "model", folder / "model")
        (folder / "config.json").write_bytes(data)
        return folder

    def run_of(self, name: str, data: bytes) -> Path:
        """Return a run directory whose model has the attack in a file."""
        folder = self.run(b'{"data": {"source": null}}')
        shutil.rmtree(folder / "model")
        shutil.copytree(self.folder(name, data), folder / "model")
        return folder

    def image(self, data: bytes) -> Path:
        path = self.data / "ant" / "1.png"
        path.write_bytes(data)
        return path


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> Places:
    return Places(tmp_path_factory.mktemp("places"))


Offer = Callable[[Places, bytes], object]

AS_WEIGHTS: dict[str, Offer] = {
    "read_weights": lambda at, data: read_weights(at.weights(data, ".pth")),
    "load_backbone": lambda at, data: tk.load_backbone("mini", weights=at.weights(data, ".pt")),
}
AS_SAFETENSORS: dict[str, Offer] = {
    "a .safetensors file": lambda at, data: read_weights(at.weights(data, ".safetensors")),
    "weights of load_backbone": lambda at, data: tk.load_backbone(
        "resnet18", weights=at.weights(data, ".safetensors")
    ),
    "weights of load_model": lambda at, data: tk.load_model(at.folder("weights.safetensors", data)),
    "weights for a module": lambda at, data: tk.load_model(
        at.folder("weights.safetensors", data), into=tk.load_backbone("mini", weights=None, num_classes=2)
    ),
    "weights of Predictor": lambda at, data: tk.Predictor.load(at.folder("weights.safetensors", data)),
}
AS_JSON: dict[str, Offer] = {
    "model.json": lambda at, data: tk.load_model(at.folder("model.json", data)),
    "record of Predictor": lambda at, data: tk.Predictor.load(at.folder("model.json", data)),
    "report.json": lambda at, data: Report.from_json(at.weights(data, ".json")),
}
AS_IMAGES: dict[str, Offer] = {
    "decode of a path": lambda at, data: decode(at.weights(data, ".jpg")),
    "decode of bytes": lambda at, data: decode(data),
    "Predictor": lambda at, data: tk.Predictor(at.model, device="cpu")(at.weights(data, ".webp")),
    "a data set": lambda at, data: tk.evaluate(at.model, at_part(at, data), device="cpu"),
}


def at_part(at: Places, data: bytes) -> tk.Part:
    at.image(data)
    return tk.load_dataset(at.data, val=0).train


def offer(place: str, act: Offer, expected: type[TransferkitError], places: Places, canary: Path) -> None:
    for name, data in attacks(canary).items():
        with pytest.raises(TransferkitError) as caught:
            act(places, data)
        assert not canary.exists(), f"{name} ran in {place}"
        assert isinstance(caught.value, expected), f"{name} in {place}: {caught.value!r}"
        assert "\n" not in str(caught.value), f"{name} in {place}: {caught.value}"
        assert str(caught.value).endswith("."), f"{name} in {place}: {caught.value}"


@pytest.mark.parametrize("place", AS_WEIGHTS)
def test_weights_run_nothing(place, places, canary):
    offer(place, AS_WEIGHTS[place], CheckpointError, places, canary)


@pytest.mark.parametrize("place", AS_SAFETENSORS)
def test_safetensors_run_nothing(place, places, canary):
    offer(place, AS_SAFETENSORS[place], CheckpointError, places, canary)


@pytest.mark.parametrize("place", AS_JSON)
def test_json_runs_nothing(place, places, canary):
    offer(place, AS_JSON[place], CheckpointCorruptError, places, canary)


@pytest.mark.parametrize("place", AS_IMAGES)
def test_images_run_nothing(place, places, canary):
    offer(place, AS_IMAGES[place], ImageDecodeError, places, canary)


@pytest.mark.parametrize("pack", USUAL, ids=lambda pack: pack.__name__)
@pytest.mark.parametrize("make", LIVE, ids=lambda make: make.__name__)
def test_what_would_run_code_is_called_unsafe(make, pack, tmp_path, canary):
    path = tmp_path / "evil.pth"
    path.write_bytes(pack(make(canary)))
    with pytest.raises(UnsafeCheckpointError, match=r"evil.pth was not loaded, because it would have to run"):
        read_weights(path)
    assert not canary.exists()


COMMANDS: dict[str, tuple[Callable[[Places, bytes], list[str]], int]] = {
    "train": (
        lambda at, data: ["train", at.data, "--weights", at.weights(data, ".pth"), "--out", at.root / "new"],
        4,
    ),
    "probe": (lambda at, data: ["probe", at.data, "--weights", at.weights(data, ".pth")], 4),
    "evaluate weights": (lambda at, data: ["evaluate", at.run_of("weights.safetensors", data), at.data], 4),
    "evaluate record": (lambda at, data: ["evaluate", at.run_of("model.json", data), at.data], 4),
    "evaluate config": (lambda at, data: ["evaluate", at.run(data), at.data], 4),
    "predict weights": (
        lambda at, data: ["predict", at.folder("weights.safetensors", data), at.data / "bee" / "1.png"],
        4,
    ),
    "predict record": (
        lambda at, data: ["predict", at.folder("model.json", data), at.data / "bee" / "1.png"],
        4,
    ),
    "predict image": (lambda at, data: ["predict", at.root / "model", at.weights(data, ".png")], 3),
}


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_run_nothing(command, tmp_path, canary, capsys):
    arguments, code = COMMANDS[command]
    places = Places(tmp_path / "places")
    for name, data in attacks(canary).items():
        assert main([str(each) for each in arguments(places, data)]) == code, name
        lines = capsys.readouterr().err.strip().splitlines()
        assert not canary.exists(), f"{name} ran in {command}"
        assert lines[-1].startswith("transferkit: "), f"{name} in {command}: {lines}"
        assert not any("Traceback" in line for line in lines), f"{name} in {command}: {lines}"


@pytest.mark.parametrize("file", ["rows.npy", "ids.npy", "index.json", "../recipe.json"])
def test_a_cache_with_a_pickle_in_it_is_made_again(file, tmp_path, canary):
    ids, rows = ["a", "b", "c"], torch.arange(12, dtype=torch.float32).reshape(3, 4)
    for name, data in attacks(canary).items():
        store = RowStore("features", {"backbone": "mini"}, root=tmp_path / "cache")
        if len(store.missing(ids)):
            assert store.add(ids, [rows])
        (segment,) = (path for path in store.folder.iterdir() if path.is_dir())
        (segment / file).write_bytes(data)
        again = RowStore("features", {"backbone": "mini"}, root=tmp_path / "cache")
        assert len(again.missing(ids)) == 3, f"{name} in {file}"
        assert again.add(ids, [rows])
        assert torch.equal(again.rows(ids).whole(), rows)
        assert not canary.exists(), f"{name} ran in {file}"


def test_arrays_of_objects_are_refused_as_images(canary, places):
    array = np.array([[[object()] * 3] * 4] * 4, dtype=object)
    with pytest.raises(TransferkitError):
        tk.Predictor(places.model, device="cpu")(array)
