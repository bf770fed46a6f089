"""Imports point down only, and name only packages that the project declares."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

import transferkit

PACKAGE = Path(transferkit.__file__).parent
PROJECT = Path(__file__).parents[1]

# A folder stands for all that is in it. A new module needs a place here before it passes.
LAYERS = {
    0: "checks errors files kept_memory registry seeding",
    1: "augmentation_ops augmentations backbones batch_norm classification datasets freezing head_paths "
    "heads inference loading model_summary modes module_tree packing param_groups runtime saved_model "
    "tracing trivial_augment",
    2: "evaluation features training",
    3: "__main__ cli commands predictor quickstart run_outputs trainer",
}
LAYER_OF = {name: layer for layer, names in LAYERS.items() for name in names.split()}

# The package that brings an import of another name; scipy comes with scikit-learn.
PACKAGE_OF = {
    "sklearn": "scikit-learn",
    "typing_extensions": "typing-extensions",
    "PIL": "pillow",
    "scipy": "scikit-learn",
}


def modules() -> list[str]:
    files = PACKAGE.rglob("*.py")
    names = (".".join(("transferkit", *file.relative_to(PACKAGE).with_suffix("").parts)) for file in files)
    return sorted(name.removesuffix(".__init__") for name in names)


MODULES = modules()


def path_of(module: str) -> Path:
    place = PACKAGE.joinpath(*module.split(".")[1:])
    return place / "__init__.py" if place.is_dir() else place.with_suffix(".py")


def imports(module: str) -> Iterator[tuple[str, ast.stmt]]:
    """Give the full name of what each import statement names, those inside functions included."""
    for node in ast.walk(ast.parse(path_of(module).read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}:{node.lineno} imports relatively"
            yield from ((f"{node.module}.{alias.name}", node) for alias in node.names)


def layer_of(name: str) -> int | None:
    """Return the layer of a module, or of the module that a public name comes from."""
    parts = name.split(".")
    if len(parts) > 1 and parts[1] in transferkit._HOMES:
        parts = transferkit._HOMES[parts[1]].split(".")
    return LAYER_OF.get(parts[1]) if len(parts) > 1 else None


@pytest.mark.parametrize("module", [name for name in MODULES if name != "transferkit"])
def test_imports_point_down(module):
    own = layer_of(module)
    assert own is not None, f"{module} has no layer; give it one in {Path(__file__).name}"
    for name, node in imports(module):
        if not name.startswith("transferkit.") or name == "transferkit.__version__":
            continue
        layer = layer_of(name)
        assert layer is not None, f"{module}:{node.lineno} imports {name}, which has no layer"
        assert layer <= own, f"{module} (layer {own}) imports {name} (layer {layer}) in line {node.lineno}"


def test_every_layered_name_exists():
    assert {name.split(".")[1] for name in MODULES if "." in name} == LAYER_OF.keys()


def test_imports_are_declared_dependencies():
    project = tomllib.loads((PROJECT / "pyproject.toml").read_text(encoding="utf-8"))["project"]

    def names(requirements: list[str]) -> set[str]:
        return {re.split(r"[^\w-]", requirement)[0] for requirement in requirements}

    core = names(project["dependencies"])
    extras = core | names([line for lines in project["optional-dependencies"].values() for line in lines])
    for module in MODULES:
        tree = ast.parse(path_of(module).read_text(encoding="utf-8"))
        for name, node in imports(module):
            top = name.split(".")[0]
            if top in sys.stdlib_module_names or top == "transferkit":
                continue
            # What only an extra brings may be imported where it is used, never when the module is.
            allowed = core if node in tree.body else extras
            assert PACKAGE_OF.get(top, top) in allowed, f"{module}:{node.lineno} imports {top}"
