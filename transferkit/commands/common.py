"""What the commands share: results to standard output, progress to standard error."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transferkit.errors import ArgumentError, ImageDecodeError
from transferkit.files import write_stdout

if TYPE_CHECKING:
    from torch import nn

Options = argparse.Namespace


def tell(options: Options, text: str) -> None:
    """Print a line of progress on standard error, unless the user wants quiet."""
    if not options.quiet:
        print(text, file=sys.stderr)


def show(options: Options, text: str, value: dict[str, Any]) -> None:
    """Print a result on standard output: as text, or as JSON for scripts."""
    shown = json.dumps(value, indent=2, ensure_ascii=False) if options.json else text
    write_stdout(f"{shown}\n")


@contextmanager
def skip_hinted(options: Options) -> Iterator[None]:
    """Let an error of an image that cannot be decoded say what ``--on-error skip`` would do."""
    from transferkit.loading.checked import is_the_machines

    try:
        yield
    except ImageDecodeError as error:
        if options.on_error == "skip" or is_the_machines(error):
            raise
        hint = "To go on without such images, give --on-error skip."
        raise ImageDecodeError(f"{error} {hint}") from error


def check_backbones(named: Iterable[tuple[str, str]]) -> None:
    """Raise now, rather than once the data is read, if there is no such backbone or file of weights.

    Args:
        named: Names of backbones, each with its weights.

    Raises:
        UnknownNameError: There is no backbone of a name.
        CheckpointError: A file of weights is missing, or has a name that does not tell its format.
    """
    from transferkit.backbones.registry import BACKBONES
    from transferkit.loading.weights import is_path, weights_file

    for name, weights in named:
        BACKBONES[name]
        if is_path(weights):
            weights_file(weights)


def table_arguments(options: Options) -> dict[str, Any]:
    """Return what ``load_dataset`` is told of a table.

    Raises:
        ArgumentError: The user says how the columns of something else are separated.
    """
    from transferkit.datasets.table import DELIMITERS

    if options.delimiter is None:
        return {}
    if Path(options.data).suffix.lower() not in DELIMITERS:
        raise ArgumentError(
            f"--delimiter is for tables, files that end in {', '.join(DELIMITERS)}; "
            f"DATA is {options.data!r}, so leave it out."
        )
    # A shell has no easy way to give the character itself.
    return {"delimiter": "\t" if options.delimiter in ("tab", r"\t") else options.delimiter}


def run_options(options: Options, model: nn.Module) -> dict[str, Any]:
    """Return what every command that runs a model says of how to run it."""
    from transferkit.runtime import resolve_execution

    execution = resolve_execution(
        model,
        device=options.device,
        precision=options.precision,
        compile={"yes": True, "no": False}.get(options.compile, "auto"),
        decode=options.decode,
    )
    return {"execution": execution, "batch_size": options.batch_size, "workers": options.workers}
