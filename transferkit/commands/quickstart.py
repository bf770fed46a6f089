"""Try transferkit on a few digits."""

from __future__ import annotations

from transferkit.commands.common import Options, show, tell
from transferkit.errors import RunDirectoryError


def quickstart(options: Options) -> None:
    """Fine-tune the embedded backbone on a few digits, beside the same network from random weights."""
    from transferkit.quickstart import run_quickstart

    try:
        result = run_quickstart(options.out, device=options.device, tell=lambda line: tell(options, line))
    except RunDirectoryError as error:
        raise RunDirectoryError(f"{error} Name it with --out.") from error
    show(options, str(result), result.to_dict())
