"""What every benchmark shares: children that take turns, medians, tables, JSON, the machine."""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any, TypeVar

ROOT = Path(__file__).parents[1]

T = TypeVar("T")
Statistic = dict[str, Any]

_VERSIONS = ("torch", "torchvision", "transferkit", "fastai", "transformers", "accelerate", "pillow", "numpy")
_CPU_FLAGS = ("avx2", "avx512f", "avx512_bf16", "amx_bf16")


@dataclass(frozen=True)
class ChildRun:
    """One process: its time from start to exit, and the JSON object that it printed last."""

    seconds: float
    report: dict[str, Any]


def run_child(arguments: Sequence[str], *, env: Mapping[str, str] | None = None) -> ChildRun:
    """Run Python with these arguments in a process of its own, from the root of the clone.

    Raises:
        SystemExit: The process failed; the message has the end of what it wrote.
    """
    command = [sys.executable, *arguments]
    started = time.perf_counter()
    done = subprocess.run(
        command, cwd=ROOT, env={**os.environ, **(env or {})}, capture_output=True, text=True, check=False
    )
    seconds = time.perf_counter() - started
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} exited with {done.returncode}:\n{done.stderr[-4000:]}")
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    return ChildRun(seconds, json.loads(lines[-1]) if lines else {})


def run_variant(
    name: str, options: Mapping[str, object], *, env: Mapping[str, str] | None = None
) -> ChildRun:
    """Run ``benchmarks/variants/NAME.py`` with options; those that are ``None`` are left out."""
    arguments = [f"--{key.replace('_', '-')}={value}" for key, value in options.items() if value is not None]
    return run_child(["-m", f"benchmarks.variants.{name}", *arguments], env=env)


def alternate(variants: Mapping[str, Callable[[int], T]], repeats: int) -> dict[str, list[T]]:
    """Run every variant once, then every variant again, so that what slows the machine slows all.

    Args:
        variants: Each takes the number of the round, from 0.
        repeats: Number of rounds.
    """
    results: dict[str, list[T]] = {name: [] for name in variants}
    for number in range(repeats):
        for name, run in variants.items():
            note(f"round {number + 1} of {repeats}: {name}")
            results[name].append(run(number))
    return results


def statistic(values: Sequence[float]) -> Statistic:
    """Return median, least and largest of some values, and the values themselves."""
    return {
        "median": statistics.median(values),
        "min": min(values),
        "max": max(values),
        "values": list(values),
    }


def paired_ratio(above: Sequence[float], below: Sequence[float]) -> Statistic:
    """Divide what was measured in the same round, and return the statistic of the ratios."""
    return statistic([one / other for one, other in zip(above, below, strict=True)])


def cell(value: Statistic | float | None, digits: int = 1) -> str:
    """Show a statistic as its median, with the least and the largest value where there are several."""
    if value is None:
        return "-"
    if isinstance(value, (int, float)):
        return f"{value:,.{digits}f}"
    middle = f"{value['median']:,.{digits}f}"
    if len(value["values"]) == 1:
        return middle
    return f"{middle} ({value['min']:,.{digits}f} to {value['max']:,.{digits}f})"


def print_table(title: str, headings: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print rows of text under headings; all but the first column stand to the right."""
    widths = [max(len(row[column]) for row in [headings, *rows]) for column in range(len(headings))]
    print(f"\n{title}")
    for row in [headings, ["-" * width for width in widths], *rows]:
        first = row[0].ljust(widths[0])
        rest = [text.rjust(width) for text, width in zip(row[1:], widths[1:], strict=True)]
        print("  ".join([first, *rest]))


def note(text: str) -> None:
    """Tell of progress on standard error."""
    print(text, file=sys.stderr, flush=True)


def make_parser(description: str | None) -> argparse.ArgumentParser:
    """Return a parser with the options that every benchmark has."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", type=Path, metavar="OUT", help="write the results to this file too")
    parser.add_argument("--repeats", type=int, default=3, help="rounds in which all variants take turns")
    parser.add_argument(
        "--smoke", action="store_true", help="tiny sizes: shows that it runs, measures nothing"
    )
    return parser


def parse(
    parser: argparse.ArgumentParser, arguments: Sequence[str] | None, **smoke: object
) -> argparse.Namespace:
    """Parse arguments, or the command line; with ``--smoke``, sizes given here take the defaults' place."""
    options = parser.parse_args(arguments)
    if options.smoke:
        parser.set_defaults(**{"repeats": 1, **smoke})
        options = parser.parse_args(arguments)
    return options


def cache_variables(folder: Path) -> dict[str, str]:
    """Return the environment variables that put the caches of transferkit and the compiler into a folder."""
    return {
        "TRANSFERKIT_CACHE": str(folder / "transferkit"),
        "TORCHINDUCTOR_CACHE_DIR": str(folder / "inductor"),
    }


def write_results(benchmark: str, options: argparse.Namespace, **results: Any) -> None:
    """Write what was measured as JSON, with the options and the machine, if ``--json`` asks for it."""
    if options.json is None:
        return
    record = {
        "benchmark": benchmark,
        "written": datetime.now(UTC).isoformat(timespec="seconds"),
        "smoke": options.smoke,
        "options": {name: _plain(value) for name, value in vars(options).items()},
        "machine": describe_machine(),
        **results,
    }
    options.json.parent.mkdir(parents=True, exist_ok=True)
    options.json.write_text(json.dumps(record, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    note(f"written to {options.json}")


def describe_machine() -> dict[str, Any]:
    """Return processor, cores, memory, accelerator and versions: what figures depend on."""
    flags, model = _processor()
    has_affinity = hasattr(os, "sched_getaffinity")
    return {
        "processor": model,
        "cores": len(os.sched_getaffinity(0)) if has_affinity else os.cpu_count(),
        "flags": [flag for flag in _CPU_FLAGS if flag in flags],
        "memory_gib": round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30, 1),
        "accelerator": _accelerator(),
        "system": platform.platform(),
        "python": platform.python_version(),
        "versions": _versions(),
        "threads": {name: os.environ.get(name) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")},
    }


def _processor() -> tuple[set[str], str]:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return set(), platform.processor()
    fields = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    return set(fields.get("flags", "").split()), fields.get("model name", platform.processor())


def _accelerator() -> str | None:
    if shutil.which("nvidia-smi") is None:
        return None
    command = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return "; ".join(done.stdout.split("\n")).strip("; ") or None


def _versions() -> dict[str, str]:
    found = {}
    for name in _VERSIONS:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def _plain(value: object) -> object:
    return str(value) if isinstance(value, Path) else value
