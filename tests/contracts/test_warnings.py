"""Warnings: errors in the package's own tests, and for a user one line that points at the user's."""

from __future__ import annotations

import ast
import inspect
import tomllib
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import TensorDataset

import transferkit as tk
from transferkit.checks import warn_caller

PACKAGE = Path(tk.__file__).parent
PROJECT = Path(__file__).parents[2]


def calls_of_warn() -> Iterator[tuple[str, ast.Call]]:
    """Give each call of ``warnings.warn`` in the package, with where it is."""
    for path in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and ast.unparse(node.func) in ("warnings.warn", "warn"):
                yield path.relative_to(PACKAGE).as_posix(), node


def test_warnings_are_errors_in_the_packages_own_tests(pytestconfig):
    options = tomllib.loads((PROJECT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["pytest"]
    assert options["ini_options"]["filterwarnings"] == ["error"]
    assert pytestconfig.getini("filterwarnings") == ["error"]
    with pytest.raises(UserWarning, match="an error here"):
        warnings.warn("an error here", stacklevel=1)


def test_every_warning_has_a_category_and_says_whose_line_it_is():
    found = list(calls_of_warn())
    # All others go through warn_caller, which finds the line however deep it is called from; a command's
    # warnings are printed without a line.
    places = {place for place, _ in found if not place.startswith("commands/")}
    assert places == {"checks.py"}
    for place, call in found:
        assert len(call.args) >= 2 or any(each.arg == "category" for each in call.keywords), place
        assert any(each.arg == "stacklevel" for each in call.keywords), place


def test_nothing_silences_warnings_for_the_user():
    """The package catches warnings where it must, and never changes the user's filters for good."""
    for path in sorted(PACKAGE.rglob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        catching = [
            node
            for node in ast.walk(tree)
            if isinstance(node, ast.With)
            and any("catch_warnings" in ast.unparse(item.context_expr) for item in node.items)
        ]
        inside = {id(each) for block in catching for each in ast.walk(block)}
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and ast.unparse(node.func).startswith(
                ("warnings.simplefilter", "warnings.filterwarnings", "warnings.resetwarnings")
            ):
                assert id(node) in inside, f"{path.relative_to(PACKAGE)}:{node.lineno}"


def recorded(act, match: str) -> None:
    """Run ``act`` and check that it warns, and that the warning points at a line of this file."""
    with pytest.warns(UserWarning, match=match) as found:
        act()
    (warning,) = [each for each in found if issubclass(each.category, UserWarning)]
    assert warning.filename == __file__, f"it points at {warning.filename}:{warning.lineno}"
    lines, first = inspect.getsourcelines(act)
    assert first <= warning.lineno < first + len(lines)


def test_a_warning_points_at_the_first_line_outside_of_the_package(monkeypatch):
    inner = {"__name__": "transferkit.somewhere", "warn_caller": warn_caller}
    exec("def inner():\n    warn_caller('from within')\ndef outer():\n    inner()", inner)
    recorded(lambda: inner["outer"](), "from within")
    recorded(lambda: warn_caller("at once"), "at once")


@pytest.fixture
def float_data() -> TensorDataset:
    return TensorDataset(torch.randn(8, 3, 8, 8), torch.tensor([0, 1] * 4))


def test_a_stray_file(tmp_path):
    for name in ("ant", "bee"):
        (tmp_path / name).mkdir()
        for index in range(4):
            (tmp_path / name / f"{index}.png").touch()
    (tmp_path / "ant" / "notes.txt").touch()
    recorded(lambda: tk.load_dataset(tmp_path), "left out 1 entry")


def test_epochs_without_a_use(tiny_model, tiny_part):
    phase = tk.Phase(train="head", solver="lbfgs")
    trainer = tk.Trainer(tiny_model(), recipe=phase, progress=False, device="cpu")
    recorded(lambda: trainer.fit(tiny_part(), epochs=3), "epochs=3 is not used")


def test_float_data_in_evaluate(tiny_model, float_data):
    recorded(lambda: tk.evaluate(tiny_model(), float_data, device="cpu"), "gives float tensors")


def test_float_data_in_fit(tiny_model, float_data):
    trainer = tk.Trainer(tiny_model(), recipe=tk.Phase(), progress=False, device="cpu")
    recorded(lambda: trainer.fit(float_data), "gives float tensors")


def test_features_that_cannot_be_kept(tiny_model, tiny_part, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("TRANSFERKIT_CACHE", str(tmp_path / "file"))
    recorded(lambda: tk.extract_features(tiny_model(), tiny_part(), device="cpu"), "are not kept")


def test_features_that_cannot_be_kept_in_evaluate(tiny_model, tiny_part, tmp_path, monkeypatch):
    """Between the user's line and the warning are decorators of torch's."""
    (tmp_path / "file").touch()
    monkeypatch.setenv("TRANSFERKIT_CACHE", str(tmp_path / "file"))
    recorded(lambda: tk.evaluate(tiny_model(), tiny_part(), device="cpu"), "are not kept")


def test_a_model_that_runs_more_slowly_than_it_could(monkeypatch, tiny_model):
    monkeypatch.setattr("transferkit.inference._FOLDING_PAYS", 0.0)
    monkeypatch.setattr("transferkit.inference.why_not_fast", lambda *_: "its fast form differs")
    predictor = tk.Predictor(tiny_model(), device="cpu", precision="fp32", compile=False, batch_size=2)
    images = np.zeros((4, 8, 8, 3), dtype=np.uint8)
    recorded(lambda: predictor(images), "runs more slowly than it could")
