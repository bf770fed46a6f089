"""Run the tests and the benchmarks on one GPU, in minutes, and write what came out into a folder.

    python -m benchmarks.cuda results
    python -m benchmarks.cuda results --only finetune one-process
    python -m benchmarks.cuda results --smoke --device cpu

Each step is a process with a time limit of its own. One that fails or takes too long ends alone, and
the next one begins; what all together may take is ``--minutes``. Photos are made once, for all steps.

- tests: those of the tests that run on the device
- finetune: ResNet-50 on ready batches and from JPEG files, and the share of the matrix peak
- compiled: the same from files, with compiled training steps
- one-process: from files once more, against a plain loop whose loader has no worker processes
- overhead: the training loop against the best one written by hand
- probe: whole processes, from start to exit
- features: frozen backbones, as they are and folded

The folder gets a JSON file for each benchmark, ``log.txt`` with all that was printed, and
``summary.json``.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import IO, Any

from benchmarks import common
from benchmarks.images import make_data_set

# A step is not begun with less than this left, in seconds.
_TOO_LITTLE = 10.0
# Processes that share the device, where the tests can be shared out.
_TEST_PROCESSES = 4


@dataclass(frozen=True)
class Step:
    """One process.

    Attributes:
        name: What the summary calls it; its JSON file is named for it.
        arguments: What Python is given.
        limit: Seconds after which it is ended.
    """

    name: str
    arguments: tuple[str, ...]
    limit: float


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out", type=Path, help="the folder for results; it is made if it is not there")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--minutes", type=float, default=8.0, help="for all steps together")
    parser.add_argument("--images", type=int, default=4096, help="training photos of 500 x 400 to make")
    parser.add_argument("--only", nargs="+", choices=STEPS, default=STEPS, metavar="STEP")
    parser.add_argument("--smoke", action="store_true", help="tiny sizes: shows that it runs")
    return parser


STEPS = ("tests", "finetune", "compiled", "one-process", "overhead", "probe", "features")


def steps(options: argparse.Namespace, data: Path) -> Iterator[Step]:
    """Yield the steps in their order, the most important first."""
    yield Step("tests", tuple(_pytest(options)), 110)
    from_files = ["--data", data, "--models", "resnet50", "--batch-size", 128]
    sizes = [*from_files, "--steps", max(1, options.images // 128), "--epochs", 4, "--repeats", 1]
    yield _benchmark("finetune", options, sizes, 145)
    sizes = [*from_files, "--inputs", "files", "--compile", "yes", "--epochs", 4, "--repeats", 1]
    yield _benchmark("compiled", options, sizes, 110, module="finetune")
    sizes = [*from_files, "--inputs", "files", "--epochs", 2, "--workers", 0, "--repeats", 1]
    yield _benchmark("one-process", options, sizes, 90, module="finetune")
    sizes = ["--models", "resnet50", "--batch-size", 64, "--steps", 20, "--repeats", 5]
    yield _benchmark("overhead", options, sizes, 60)
    sizes = ["--data", data, "--backbone", "resnet50", "--plain-epochs", 2, "--repeats", 1]
    sizes += ["--only", "plain", "transferkit-cold", "transferkit-warm"]
    yield _benchmark("probe", options, sizes, 110)
    sizes = ["--models", "resnet50", "vit_b_16", "--batch-size", 256, "--batches", 20, "--no-compile"]
    yield _benchmark("features", options, sizes, 90)


def _pytest(options: argparse.Namespace) -> Iterator[str]:
    yield from ("-m", "pytest", "-m", "not slow and not torture", "--tb=short", "-k", options.device)
    # Not a benchmark of another kind, which refuses to share out tests.
    yield from ("-p", "no:cacheprovider", "-p", "no:benchmark")
    # Other versions of other packages may say that something will change; that is no matter here.
    yield from ("-W", "default::DeprecationWarning", "-W", "default::FutureWarning")
    if options.smoke:
        yield "tests/training/test_steps.py"
    elif find_spec("xdist") is not None:
        yield from ("-n", str(_TEST_PROCESSES))


def _benchmark(
    name: str,
    options: argparse.Namespace,
    sizes: Sequence[object],
    limit: float,
    *,
    module: str | None = None,
) -> Step:
    out = ["--device", options.device, "--json", options.out / f"{name}.json"]
    if options.smoke:
        # The sizes are those of the benchmark's own smoke test.
        sizes = ["--inputs", "files", "--models", "resnet18"] if module == "finetune" else []
        sizes = [*sizes, "--smoke", "--only", "transferkit-cold"] if name == "probe" else [*sizes, "--smoke"]
    arguments = [str(each) for each in ("-m", f"benchmarks.{module or name}", *sizes, *out)]
    return Step(name, tuple(arguments), limit)


def run(step: Step, seconds: float, log: IO[bytes]) -> dict[str, Any]:
    """Run a step for so many seconds at most, and say how that went.

    Args:
        step: What to run.
        seconds: The time that is left for it.
        log: Takes all that it prints.
    """
    if seconds < _TOO_LITTLE:
        return {"step": step.name, "outcome": "left out, for lack of time", "seconds": 0.0}
    log.write(f"\n=== {step.name}: python {' '.join(step.arguments)}\n".encode())
    log.flush()
    started = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, *step.arguments],
        cwd=common.ROOT,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
        stdout=log,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    try:
        code = process.wait(min(seconds, step.limit))
        outcome = "ok" if code == 0 else f"failed with {code}"
    except subprocess.TimeoutExpired:
        outcome = f"ended after {min(seconds, step.limit):.0f} s"
    finally:
        _end(process)
    return {"step": step.name, "outcome": outcome, "seconds": time.perf_counter() - started}


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a process with all that it has started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def findings(name: str, path: Path, log: str) -> list[str]:
    """Return what a step has found, a line for each number that matters."""
    if name == "tests":
        return [line for line in log.splitlines() if line.startswith(("FAILED", "ERROR"))] + [
            line for line in log.splitlines() if " passed" in line or " failed" in line
        ][-1:]
    if not path.exists():
        return []
    rows = json.loads(path.read_text(encoding="utf-8"))["rows"]
    return [line for row in rows for line in _LINES[name](row)]


def _of_training(row: dict[str, Any]) -> Iterator[str]:
    what = f"{row['model']}, {row['input']}, {row['variant']}"
    yield (
        f"{what}: {_middle(row, 'images_per_second'):,.0f} images/s, first epoch "
        f"{_middle(row, 'first_epoch_images_per_second'):,.0f}, "
        f"{_middle(row, 'share_of_bf16_peak'):.1%} of the bf16 matrix peak"
    )
    if row["variant"] != "transferkit":
        return
    if row["ratio_to_ready"] is not None:
        yield f"{what}: {_middle(row, 'ratio_to_ready'):.1%} of the rate on ready batches (wanted: 90%)"
    if row["ratio_to_handwritten"] is not None:
        yield f"{what}: {_middle(row, 'ratio_to_handwritten'):.1%} of the loop by hand (wanted: 97%)"
    if row["ratio_to_plain"] is not None:
        wanted = " (wanted, from files: 10)" if row["input"] == "files" else ""
        yield f"{what}: {_middle(row, 'ratio_to_plain'):.1f} times the plain loop{wanted}"


def _of_overhead(row: dict[str, Any]) -> Iterator[str]:
    yield f"{row['model']}: a step takes {_middle(row, 'ratio') - 1:+.1%} of that by hand (wanted: +3%)"


def _of_probe(row: dict[str, Any]) -> Iterator[str]:
    sign = "~ " if row["extrapolated"] else ""
    accuracy = f"accuracy {_middle(row, 'accuracy'):.1%}"
    yield f"{row['variant']}: {sign}{_middle(row, 'seconds'):.1f} s, {accuracy}"


def _of_features(row: dict[str, Any]) -> Iterator[str]:
    error = "" if row["relative_error"] is None else f", relative error {row['relative_error']:.1e}"
    share = f"{_middle(row, 'share_of_fastest_by_hand'):.0%} of the fastest by hand"
    yield f"{row['model']}, {row['form']}: {_middle(row, 'images_per_second'):,.0f} images/s, {share}{error}"


_LINES = {
    "finetune": _of_training,
    "compiled": _of_training,
    "one-process": _of_training,
    "overhead": _of_overhead,
    "probe": _of_probe,
    "features": _of_features,
}


def _middle(row: dict[str, Any], key: str) -> float:
    return float(row[key]["median"])


def main(arguments: Sequence[str] | None = None) -> None:
    options = build_parser().parse_args(arguments)
    options.out = options.out.resolve()
    options.out.mkdir(parents=True, exist_ok=True)
    until = time.perf_counter() + 60 * options.minutes
    results = []
    path = options.out / "log.txt"
    with tempfile.TemporaryDirectory() as folder, path.open("wb") as log:
        data = Path(folder) / "photos"
        if not options.smoke:
            common.note(f"making {options.images:,} photos")
            sizes = {"train": options.images, "test": options.images // 8, "classes": 16}
            make_data_set(data, **sizes, size=(500, 400), processes=os.cpu_count() or 1)
        for step in steps(options, data):
            if step.name not in options.only:
                continue
            common.note(step.name)
            begin = log.tell()
            result = run(step, until - time.perf_counter(), log)
            printed = path.read_bytes()[begin:].decode(errors="replace")
            result["findings"] = findings(step.name, options.out / f"{step.name}.json", printed)
            results.append(result)
            common.note(f"{step.name}: {result['outcome']}, {result['seconds']:.0f} s")
    for result in results:
        print(f"\n{result['step']}: {result['outcome']}, {result['seconds']:.0f} s")
        print("\n".join(f"  {line}" for line in result["findings"]))
    summary = {"smoke": options.smoke, "machine": common.describe_machine(), "steps": results}
    (options.out / "summary.json").write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
    if any(result["outcome"] != "ok" for result in results):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
