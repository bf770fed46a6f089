"""The package as a whole: its public names, what importing it costs, its readme and changelog."""

from __future__ import annotations

import ast
import pkgutil
import re
import subprocess
import sys
from operator import attrgetter
from pathlib import Path

import pytest

import transferkit as tk

PROJECT = Path(__file__).parents[1]
ROOT = Path(tk.__file__)
PUBLIC = [name for name in tk.__all__ if name != "__version__"]


def run_python(code: str, folder: Path) -> str:
    """Run code in a fresh interpreter that finds the same package."""
    path = f"import sys; sys.path.insert(0, {str(ROOT.parents[1])!r})\n"
    done = subprocess.run([sys.executable, "-c", path + code], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("name", PUBLIC)
def test_public_name_resolves_to_what_its_module_defines(name):
    value = getattr(tk, name)
    assert value.__module__ == tk._HOMES[name]
    assert value.__name__ == name
    assert value.__doc__


def test_no_public_name_is_the_name_of_a_submodule():
    submodules = {module.name for module in pkgutil.iter_modules([str(ROOT.parent)])}
    assert len(submodules) > 10
    assert not submodules & set(PUBLIC)


def test_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'load_backbones'"):
        attrgetter("load_backbones")(tk)
    assert dir(tk) == sorted(tk.__all__)


def test_type_checkers_see_the_names_that_users_get():
    tree = ast.parse(ROOT.read_text(encoding="utf-8"))
    blocks = [
        node for node in tree.body if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
    ]
    seen = {}
    for node in [statement for block in blocks for statement in block.body]:
        assert isinstance(node, ast.ImportFrom)
        for alias in node.names:
            assert alias.asname == alias.name, f"{alias.name} is not exported without 'as {alias.name}'"
            seen[alias.name] = node.module
    assert seen == tk._HOMES


@pytest.mark.parametrize("name", PUBLIC)
def test_public_name_is_in_the_reference(name):
    reference = (PROJECT / "docs" / "api.md").read_text(encoding="utf-8")
    assert re.search(rf"^\.\. auto(function|class):: {name}$|`transferkit\.{name}`", reference, re.MULTILINE)


def test_the_reference_names_nothing_else():
    reference = (PROJECT / "docs" / "api.md").read_text(encoding="utf-8")
    assert set(re.findall(r"^\.\. auto(?:function|class):: (\S+)$", reference, re.MULTILINE)) <= set(PUBLIC)


def test_importing_the_package_imports_nothing_heavy(tmp_path):
    heavy = ["torch", "torchvision", "numpy", "sklearn", "PIL", "matplotlib", "tqdm", "safetensors"]
    code = f"import transferkit; print([name for name in {heavy} if name in sys.modules])"
    assert run_python(code, tmp_path).strip() == "[]"


def test_the_command_answers_for_help_without_torch(tmp_path):
    code = (
        "from transferkit.cli import main\n"
        "try:\n    main(['--help'])\n"
        "except SystemExit as exit:\n    print(exit.code, 'torch' in sys.modules)"
    )
    output = run_python(code, tmp_path)
    assert "quickstart" in output
    assert output.splitlines()[-1] == "0 False"


def test_importing_every_part_leaves_scikit_learn_and_matplotlib_alone(tmp_path):
    code = (
        "import transferkit as tk\n"
        "for name in tk.__all__:\n    getattr(tk, name)\n"
        "print([name for name in ['sklearn', 'matplotlib'] if name in sys.modules])"
    )
    assert run_python(code, tmp_path).strip() == "[]"


def test_the_changelog_has_this_version():
    changelog = (PROJECT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert re.search(rf"\b{re.escape(tk.__version__)}\b", changelog)
    assert changelog.index("## [Unreleased]") < changelog.index("### Added")


def test_the_readme_starts_with_two_complete_shell_blocks():
    readme = (PROJECT / "README.md").read_text(encoding="utf-8")
    fences = re.findall(r"^```(\w*)\n(.*?)^```$", readme, re.MULTILINE | re.DOTALL)
    assert [language for language, _ in fences[:3]] == ["bash", "bash", "python"]
    assert [language for language, _ in fences].count("bash") == 2
    assert readme.index("```") < readme.index("\n## ")
    for _, block in fences[:2]:
        assert block.startswith("python3 -m venv .venv\n. .venv/bin/activate\npip install ")
    assert fences[0][1].endswith("\ntransferkit quickstart\n")
    assert fences[1][1].endswith("\npython -m pytest\n")


def test_ci_runs_what_the_contributing_guide_says():
    guide = (PROJECT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    block = guide.split("These are the checks")[1].split("```")[1]
    commands = re.findall(r"^\$ (.+)$", block, re.MULTILINE)
    assert len(commands) >= 5
    # The same programs with the same arguments; ci keeps caches and results in a folder of its own.
    script = (PROJECT / ".ci" / "run").read_text(encoding="utf-8")
    script += (PROJECT / "README.md").read_text(encoding="utf-8")
    for command in commands:
        start = command.split(" docs ")[0]
        assert re.search(rf"^{re.escape(start)}( |$)", script, re.MULTILINE), command
