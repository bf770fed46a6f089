"""Time what has to be imported before anything happens, each in fresh processes that take turns.

    python -m benchmarks.imports

Names of transferkit resolve on first use, so that the first that is used pays for torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from benchmarks import common
from benchmarks.common import ChildRun, cell, statistic

TORCH = "import torch"
LOAD = "import transferkit; transferkit.load_backbone('resnet18', weights=None)"
CASES = {
    "python alone": ["-c", "pass"],
    TORCH: ["-c", "import torch"],
    "import torch, torchvision": ["-c", "import torch, torchvision"],
    "import transferkit": ["-c", "import transferkit"],
    "every name of transferkit": ["-c", "from transferkit import *"],
    "load_backbone('resnet18', weights=None)": ["-c", LOAD],
    "transferkit --help": ["-m", "transferkit", "--help"],
}


def _run(arguments: list[str], _: int) -> ChildRun:
    return common.run_child(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = common.make_parser(__doc__)
    parser.add_argument("--only", nargs="+", choices=tuple(CASES), default=tuple(CASES), metavar="CASE")
    parser.set_defaults(repeats=7)
    options = common.parse(parser, arguments, only=["python alone", "transferkit --help"])
    runs = {name: partial(_run, CASES[name]) for name in options.only}
    if not options.smoke:
        common.note("once, so that bytecode is written and files are read")
        for run in runs.values():
            run(0)
    results = common.alternate(runs, options.repeats)
    rows: list[dict[str, Any]] = []
    for name, done in results.items():
        over = None
        if TORCH in results:
            pairs = zip(done, results[TORCH], strict=True)
            over = statistic([own.seconds - torch.seconds for own, torch in pairs])
        rows.append({"case": name, "seconds": statistic([run.seconds for run in done]), "over_torch": over})
    lines = [[row["case"], cell(row["seconds"], 2), cell(row["over_torch"], 2)] for row in rows]
    common.print_table("Whole processes", ["case", "seconds", "over import torch"], lines)
    common.write_results("imports", options, rows=rows)


if __name__ == "__main__":
    main()
