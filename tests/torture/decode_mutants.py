"""Run in a process of its own: decodes damaged images, and prints what came of it as JSON.

    python decode_mutants.py FOLDER mutants SEED FIRST LAST
    python decode_mutants.py FOLDER cut STEP
    python decode_mutants.py FOLDER files

The last decodes what lies in the folder. Image number ``i`` of the mutants follows from the seed and
``i`` alone. What is in hand stands in FOLDER/now, so that it is known which image has ended the process.
"""

from __future__ import annotations

import faulthandler
import json
import resource
import sys
import time
import warnings
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from image_seeds import seeds
from mutations import mutated
from PIL import Image

import transferkit as tk
from transferkit.errors import ImageDecodeError
from transferkit.loading.checked import is_the_machines
from transferkit.loading.decode import decode
from transferkit.loading.image_pixels import pixels_of

SECONDS = 30  # for one image
PREPROCESSING = tk.Preprocessing(size=32, resize=36)


class Damaged(NamedTuple):
    """A damaged image; ``whole`` is what it was, where nothing else may be seen of it."""

    name: str
    data: bytes
    whole: bytes | None = None


def mutants(seed: int, first: int, last: int) -> Iterator[Damaged]:
    whole = seeds()
    kinds = sorted(whole)
    for number in range(first, last):
        kind = kinds[number % len(kinds)]
        yield Damaged(f"{number} ({kind})", mutated(whole[kind], np.random.default_rng([seed, number])))


def cut(step: int) -> Iterator[Damaged]:
    for kind, data in seeds().items():
        # OpenJPEG takes a file that ends where its first tile begins for one with an empty tile.
        whole = None if kind == "jpeg 2000" else data
        for length in range(0, len(data), step):
            yield Damaged(f"{kind} cut to {length} of {len(data)} bytes", data[:length], whole)


def outcomes(source: Any) -> dict[str, str]:
    """Return what each way to decode an image gives: ``"image"``, ``"refused"`` or what else it raises."""
    part = tk.Part([source], [0], ["only"])
    ways = {
        "decode": lambda: decode(source).mode == "RGB",
        "check": lambda: decode(source, least=1).mode == "RGB",
        "fast": lambda: pixels_of(source, PREPROCESSING).shape == (3, 32, 32),
        "exact": lambda: pixels_of(source, PREPROCESSING, decode="exact").shape == (3, 32, 32),
        "identity": lambda: isinstance(part.identity(0), str),
    }
    found = {}
    for way, run in ways.items():
        try:
            found[way] = "image" if run() else "another form"
        except ImageDecodeError as error:
            found[way] = "no memory" if is_the_machines(error) else "refused"
            if "\n" in str(error):
                found[way] = f"a message of several lines: {error!r}"
        except Exception as error:  # what must not happen, and is to be told
            found[way] = f"{type(error).__name__}: {error}"
    return found


def peak_memory() -> float:
    """Return the most memory that this process has taken, in MB."""
    unit = 2**20 if sys.platform == "darwin" else 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit


def decode_all(images: Iterator[Damaged], folder: Path) -> dict[str, Any]:
    """Decode images, every second one from a file; return how many were images, and what went wrong."""
    Image.MAX_IMAGE_PIXELS = 2**20
    for data in seeds().values():  # what is loaded once counts for nothing
        outcomes(data)
    before, slowest = peak_memory(), 0.0
    counts: Counter[str] = Counter()
    wrong = []
    for number, (name, data, whole) in enumerate(images):
        (folder / "now").write_text(name)
        faulthandler.dump_traceback_later(SECONDS, exit=True)
        source: Any = data
        if number % 2:
            source = folder / "damaged.jpg"
            source.write_bytes(data)
        started = time.perf_counter()
        found = outcomes(source)
        slowest = max(slowest, time.perf_counter() - started)
        if isinstance(source, Path) and source.read_bytes() != data:
            found["file"] = "changed"
        if whole is not None and found["decode"] == "image" and decode(data) != decode(whole):
            found["pixels"] = "others"
        verdicts = {found[way] for way in ("decode", "check", "fast", "exact")}
        counts[found["decode"]] += 1
        same = verdicts in ({"image"}, {"refused"})
        if not same or found["identity"] != "image" or {"file", "pixels"} & found.keys():
            wrong.append({"name": name} | found)
    faulthandler.cancel_dump_traceback_later()
    return {"counts": counts, "wrong": wrong, "grown": peak_memory() - before, "slowest": slowest}


def decode_files(folder: Path) -> dict[str, Any]:
    """Decode files; return of each what came of it, the seconds and the MB by which the process grew."""
    for data in seeds().values():
        outcomes(data)
    found = {}
    for path in sorted(folder.iterdir()):
        faulthandler.dump_traceback_later(SECONDS, exit=True)
        before, started = peak_memory(), time.perf_counter()
        try:
            reason = f"an image of {decode(path).size}"
        except ImageDecodeError as error:
            reason = str(error)
        both = outcomes(path)
        found[path.name] = {
            "reason": reason,
            "seconds": time.perf_counter() - started,
            "grown": peak_memory() - before,
        } | both
    faulthandler.cancel_dump_traceback_later()
    return found


def main(folder: Path, what: str, *numbers: int) -> None:
    faulthandler.enable()
    warnings.simplefilter("ignore")  # Pillow's, of damaged metadata
    if what == "files":
        print(json.dumps(decode_files(folder)))
    else:
        print(json.dumps(decode_all({"mutants": mutants, "cut": cut}[what](*numbers), folder)))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], *map(int, sys.argv[3:]))
