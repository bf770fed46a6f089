"""Extract the features of a folder of images with transferkit, and tell the peak of memory."""

from __future__ import annotations

import argparse
import json
import resource
import sys
import time
from pathlib import Path

import numpy as np

import transferkit as tk


def memory(field: str) -> int | None:
    """Return a field of ``/proc/self/status`` in bytes, where there is such a file."""
    try:
        lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:")), None)


def peak_memory() -> int:
    """Return the largest resident memory of this process so far, in bytes."""
    peak = memory("VmHWM")
    if peak is None:  # counted in kilobytes, on macOS in bytes
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return peak


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="holds CLASS/*")
    parser.add_argument("--backbone", default="mini")
    parser.add_argument("--weights", default="default")
    parser.add_argument("--image-size", type=int)
    parser.add_argument("--device", required=True)
    options = parser.parse_args()

    part = tk.load_dataset(options.data, val=0).train
    model = tk.load_backbone(options.backbone, weights=options.weights, image_size=options.image_size)
    before = peak_memory()
    started = time.perf_counter()
    features = tk.extract_features(model, part, device=options.device)
    seconds = time.perf_counter() - started
    # A sum reads every page, as training on the features would.
    total = float(np.sum(features.x, dtype=np.float64))
    fields = {
        "images": len(features.y),
        "seconds": seconds,
        "sum": total,
        "peak_before": before,
        "peak": peak_memory(),
        "anonymous": memory("RssAnon"),
        "mapped": memory("RssFile"),
    }
    print(json.dumps(fields))


if __name__ == "__main__":
    main()
