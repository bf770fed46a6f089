"""What the readme and the documentation show is tried: Python is run, commands are parsed."""

from __future__ import annotations

import contextlib
import io
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from torch import nn

import transferkit as tk
from transferkit.augmentations import AUGMENTATIONS
from transferkit.backbones.registry import BACKBONES
from transferkit.cli import build_parser
from transferkit.datasets.registry import DATASETS
from transferkit.training.optimizers import with_default_rates
from transferkit.training.recipes import RECIPES

PROJECT = Path(__file__).parents[1]
DOCS = PROJECT / "docs"
PAGES = [
    PROJECT / "README.md",
    *(page for page in sorted(DOCS.rglob("*.md")) if "_build" not in page.relative_to(DOCS).parts),
]


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(
        rf"^```{language}\n(.*?)^```$", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL
    )


WITH_PYTHON = [page for page in PAGES[1:] if blocks(page, "python")]
COMMANDS = [
    pytest.param(line, id=line)
    for page in PAGES
    for block in blocks(page, "console")
    for line in re.findall(r"^\$ (transferkit .+)$", block, re.MULTILINE)
]


@pytest.fixture
def photos(tmp_path, monkeypatch) -> Path:
    """A working directory with ``photos/`` in class folders and ``flat_photos/`` with labels in the names."""
    generator = np.random.default_rng(0)
    for label, color in (("ants", (160, 60, 20)), ("bees", (240, 200, 40))):
        for number in range(10):
            pixels = np.clip(generator.normal(color, 30, (40, 48, 3)), 0, 255).astype(np.uint8)
            for path in (f"photos/{label}/{number}.png", f"flat_photos/{label}.{number}.png"):
                (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(pixels).save(tmp_path / path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def same_registries_afterwards() -> Iterator[None]:
    """Take out what a page registers."""
    registries = [AUGMENTATIONS, BACKBONES, DATASETS, RECIPES]
    before = [set(registry) for registry in registries]
    yield
    for registry, names in zip(registries, before, strict=True):
        for name in set(registry) - names:
            del registry._factories[name]


@pytest.mark.slow
@pytest.mark.parametrize("page", WITH_PYTHON, ids=lambda page: page.name)
def test_python_of_a_page_runs_from_top_to_bottom(page, photos, same_registries_afterwards):
    namespace = {"__name__": "page"}
    with contextlib.redirect_stdout(io.StringIO()):
        for number, block in enumerate(blocks(page, "python"), start=1):
            exec(compile(block, f"{page.name}, block {number}", "exec"), namespace)


@pytest.mark.slow
def test_the_readme_example_learns_digits(photos, capsys):
    (example,) = blocks(PROJECT / "README.md", "python")
    assert len(example.splitlines()) == 15
    namespace = {"__name__": "readme"}
    exec(compile(example, "README.md", "exec"), namespace)
    report = tk.evaluate(namespace["model"], namespace["splits"].test)
    assert report.accuracy > 0.5  # ten classes: chance is 0.1
    assert f"{report.accuracy:.1%}" in capsys.readouterr().out
    assert (photos / "digits-run" / "model" / "weights.safetensors").is_file()


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_that_is_shown_is_one_that_is_understood(command):
    assert build_parser().parse_args(shlex.split(command)[1:]).command


def test_the_command_line_page_has_every_command_and_option():
    page = (PROJECT / "docs" / "command-line.md").read_text(encoding="utf-8")
    (commands,) = [
        action.choices for action in build_parser()._actions if action.dest == "command" and action.choices
    ]
    for name, parser in commands.items():
        assert f"transferkit {name}" in page
        for action in parser._actions:
            for option in action.option_strings:
                assert option == "-h" or re.search(rf"`{option}[` ]", page), f"{name} {option}"


def anchors(page: Path) -> set[str]:
    """Return the anchors of a page's headings, as GitHub and MyST make them."""
    text = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    found: set[str] = set()
    for heading in re.findall(r"^#{1,3} (.+)$", text, re.MULTILINE):
        plain = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading).lower()
        name = "".join(sign for sign in plain.replace(" ", "-") if sign.isalnum() or sign in "-_")
        number = 0
        while (anchor := f"{name}-{number}" if number else name) in found:
            number += 1
        found.add(anchor)
    return found


@pytest.mark.parametrize(
    "page",
    [*PAGES[1:], *sorted(PROJECT.glob("*.md")), *sorted((PROJECT / "benchmarks").glob("*.md"))],
    ids=lambda page: str(page.relative_to(PROJECT)),
)
def test_links_lead_to_files_and_headings(page):
    text = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    text = re.sub(r"`[^`\n]+`", "", text)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if target.startswith("https://"):
            continue
        place, _, anchor = target.partition("#")
        file = page.parent / place if place else page
        assert file.is_file(), f"{target} leads to no file"
        if anchor:
            assert anchor in anchors(file), f"{target} leads to no heading"


def test_the_contents_list_every_page():
    listed = set()
    for index in (DOCS / "index.md", DOCS / "tutorials" / "index.md"):
        for block in re.findall(
            r"^```{toctree}\n(.*?)^```$", index.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL
        ):
            names = [line for line in block.splitlines() if line and not line.startswith(":")]
            listed |= {(index.parent / f"{name}.md") for name in names}
    assert listed | {DOCS / "index.md"} == set(PAGES[1:])


def test_the_tutorials_show_examples_that_exist():
    shown = set()
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        for target in re.findall(r"^```{literalinclude} (\S+)$", text, re.MULTILINE):
            assert (page.parent / target).is_file(), f"{page.name}: {target}"
        for function in re.findall(r"^:pyobject: (\S+)$", text, re.MULTILINE):
            (script,) = set(re.findall(r"^```{literalinclude} (\S+)$", text, re.MULTILINE))
            assert f"\ndef {function}(" in (page.parent / script).read_text(encoding="utf-8")
        shown |= set(re.findall(r"^```{example-output} (\S+)", text, re.MULTILINE))
    assert len(shown) == 5
    assert all((PROJECT / "examples" / name).is_file() for name in shown)


def test_the_recipe_page_shows_the_real_recipes():
    page = (PROJECT / "docs" / "recipes.md").read_text(encoding="utf-8")
    for name, recipe in RECIPES.items():
        (row,) = re.findall(rf"^\| `{name}`.*$", page, re.MULTILINE)
        shown = [int(number) for number in re.findall(r"(\d+) epochs", row)]
        assert shown == [phase.epochs for phase in recipe()], name
        for phase in recipe():
            if phase.train == "all":
                assert f"use the augmentation `{phase.augmentation}` unless" in page
                assert f"(`freeze_batch_norm={phase.freeze_batch_norm}`)" in page


@pytest.mark.parametrize(
    ("row", "model"),
    [
        ("batch norm", nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Linear(4, 2))),
        ("layer norm", nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.Linear(4, 2))),
        ("without either", nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))),
    ],
    ids=["batch norm", "layer norm", "no norm"],
)
def test_the_recipe_page_shows_the_real_learning_rates(row, model):
    page = (PROJECT / "docs" / "recipes.md").read_text(encoding="utf-8")
    (backbone,) = re.findall(rf"^\| a backbone.* {row}.*\| (\S+) \| (\S+) \|$", page, re.MULTILINE)
    (head,) = re.findall(r"^\| the head alone \| (\S+) \| (\S+) \|$", page, re.MULTILINE)
    for column, optimizers in enumerate([["adamw", "adam"], ["sgd"]]):
        for optimizer in optimizers:
            alone = with_default_rates(tk.Phase(train="head", optimizer=optimizer), model, fitted_head=False)
            assert alone.lr == float(head[column])
            all_of_it = tk.Phase(train="all", optimizer=optimizer)
            new = with_default_rates(all_of_it, model, fitted_head=False)
            assert (new.lr, new.head_lr) == pytest.approx(
                (float(backbone[column]), 10 * float(backbone[column]))
            )
            fitted = with_default_rates(all_of_it, model, fitted_head=True)
            assert fitted.lr == fitted.head_lr == float(backbone[column])
