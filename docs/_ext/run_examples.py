"""Directives that run an example while the pages are built, and show what it prints and draws.

``{example-output} NAME ARGUMENTS…`` runs ``examples/NAME`` in an empty folder, without real data, and
shows its output; ``{example-figure} NAME PATH`` shows a figure that it left there. Nothing is written
beside the pages: the folders lie where Sphinx keeps its doctrees.

With ``-D run_examples=0`` nothing is run, and the pages show the commands alone, without figures.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

from docutils import nodes
from docutils.parsers.rst import directives
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

EXAMPLES = Path(__file__).parents[2] / "examples"


class ExampleDirective(SphinxDirective):
    """Knows where an example runs."""

    def folder(self, name: str) -> Path:
        return Path(self.env.doctreedir, "examples", Path(name).stem)


class ExampleOutput(ExampleDirective):
    """Runs an example and shows its command and what it prints."""

    required_arguments = 1
    optional_arguments = 1
    final_argument_whitespace = True
    option_spec = {"lines": directives.nonnegative_int}  # noqa: RUF012  # reason: docutils wants a plain dict

    def run(self) -> list[nodes.Node]:
        name, arguments = self.arguments[0], shlex.split(" ".join(self.arguments[1:]))
        self.env.note_dependency(str(EXAMPLES / name))
        program = "bash" if name.endswith(".sh") else "python"
        lines = [f"$ {shlex.join([program, f'examples/{name}', *arguments])}"]
        if self.config.run_examples:
            printed = self.printed(program, name, arguments)
            most = self.options.get("lines", len(printed))
            lines += [*printed[:most], *(["…"] if most < len(printed) else [])]
        text = "\n".join(lines)
        return [nodes.literal_block(text, text, language="none")]

    def printed(self, program: str, name: str, arguments: list[str]) -> list[str]:
        """Run an example in an empty folder and return the lines that it prints."""
        folder = self.folder(name)
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        environment = {key: value for key, value in os.environ.items() if key != "TRANSFERKIT_TEST_DATA"}
        environment["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), environment.get("PATH", "")])
        environment["TRANSFERKIT_CACHE"] = str(folder / "cache")
        done = subprocess.run(
            [program, str(EXAMPLES / name), *arguments],
            cwd=folder,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise self.error(f"examples/{name} ended with {done.returncode}:\n{done.stderr}")
        return done.stdout.strip("\n").splitlines()


class ExampleFigure(ExampleDirective):
    """Shows a figure of an example that has run further up on the page; the content is its caption."""

    required_arguments = 2
    has_content = True

    def run(self) -> list[nodes.Node]:
        if not self.config.run_examples:
            return []
        path = self.folder(self.arguments[0]) / self.arguments[1]
        if not path.is_file():
            raise self.error(f"examples/{self.arguments[0]} has left no {self.arguments[1]}.")
        caption = " ".join(self.content)
        beside = os.path.relpath(path, Path(self.env.doc2path(self.env.docname)).parent)
        image = nodes.image("", uri=beside, alt=caption)
        return [nodes.figure("", image, nodes.caption(caption, caption))]


def setup(app: Sphinx) -> dict[str, bool]:
    app.add_config_value("run_examples", True, "env", bool)
    app.add_directive("example-output", ExampleOutput)
    app.add_directive("example-figure", ExampleFigure)
    # Two pages never run the same example, but each run takes all processors.
    return {"parallel_read_safe": False}
