"""A page shows what an example prints and draws while it is built."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("sphinx", reason="the pages are built with sphinx")

EXTENSION = Path(__file__).parents[1] / "docs" / "_ext"
EXAMPLE = """
import os, sys
from pathlib import Path
from PIL import Image

assert "TRANSFERKIT_TEST_DATA" not in os.environ
assert not list(Path().iterdir())
print(*sys.argv[1:], "the second line", "the third line", sep="\\n")
Image.new("RGB", (4, 4)).save("drawn.png")
sys.exit("out of paint" if "fail" in sys.argv else 0)
"""
PAGE = """
Title
=====

.. example-output:: draw.py {arguments}
   :lines: 2

.. example-figure:: draw.py {figure}

   A caption.
"""


@pytest.fixture
def build(tmp_path, monkeypatch):
    """Builds a page and returns its exit code, what went wrong, and the page."""
    monkeypatch.setenv("TRANSFERKIT_TEST_DATA", str(tmp_path))
    for folder in ("examples", "pages"):
        (tmp_path / folder).mkdir()
    (tmp_path / "examples" / "draw.py").write_text(EXAMPLE)
    (tmp_path / "pages" / "conf.py").write_text(
        f"import pathlib, sys\nsys.path.append({str(EXTENSION)!r})\n"
        f"import run_examples as made\nmade.EXAMPLES = pathlib.Path({str(tmp_path / 'examples')!r})\n"
        "extensions = ['run_examples']\n"
    )

    def built(*options, arguments="'two words'", figure="drawn.png"):
        page = PAGE.format(arguments=arguments, figure=figure)
        (tmp_path / "pages" / "index.rst").write_text(page)
        command = [sys.executable, "-m", "sphinx", "-q", "-W", "-b", "pseudoxml", *options, "pages", "out"]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
        made = tmp_path / "out" / "index.pseudoxml"
        return done.returncode, done.stderr, made.read_text() if made.is_file() else ""

    return built


def test_a_page_shows_the_command_some_lines_and_a_figure(build):
    code, error, page = build()
    assert code == 0, error
    printed = ["$ python examples/draw.py 'two words'", "two words", "the second line", "…"]
    assert [line.strip() for line in page.splitlines() if line.strip() in printed] == printed
    assert "the third line" not in page
    assert "draw/drawn.png" in page
    assert "A caption." in page


def test_a_page_can_be_built_without_running_anything(build):
    code, error, page = build("-D", "run_examples=0")
    assert code == 0, error
    assert "$ python examples/draw.py" in page
    assert "second line" not in page
    assert "drawn.png" not in page


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"arguments": "fail"}, "examples/draw.py ended with 1:\nout of paint"),
        ({"figure": "other.png"}, "examples/draw.py has left no other.png."),
    ],
    ids=["an example that fails", "a figure that is not drawn"],
)
def test_a_page_that_cannot_show_an_example_is_not_built(options, expected, build):
    code, error, _ = build(**options)
    assert code != 0
    assert expected in error
