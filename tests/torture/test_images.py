"""Damaged images and bombs end in ``ImageDecodeError``: no crash, no hang, no other exception, no memory.

They are decoded in processes of their own, since what damages do to decoders written in C is to end the
process. ``TRANSFERKIT_TORTURE=1`` decodes 10,000 damaged images, and else 400. Image number ``i`` is
made again by ``python decode_mutants.py FOLDER mutants SEED i i+1``.
"""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from image_seeds import bombs, encoded, photo, seeds
from PIL import Image

import transferkit as tk
from transferkit.errors import ImageDecodeError
from transferkit.loading.decode import decode

pytest.importorskip("resource", reason="the memory of a process is read with resource")

pytestmark = pytest.mark.torture

WHOLE = os.environ.get("TRANSFERKIT_TORTURE") == "1"
SEED = 20
IMAGES, IN_A_PROCESS = (10_000, 1_000) if WHOLE else (400, 400)
EVERY = 7 if WHOLE else 97  # bytes between one cut and the next
SECONDS = 600  # for a process; one image may take 30
GROWTH = 100  # MB by which decoding small images may enlarge a process, however large they say they are


def in_a_process(folder: Path, *arguments: object) -> dict[str, Any]:
    """Return what ``decode_mutants.py`` prints; an error says which image has ended it."""
    script = Path(__file__).with_name("decode_mutants.py")
    command = [sys.executable, str(script), str(folder), *map(str, arguments)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=SECONDS, check=False, env=environment
        )
        code, errors = done.returncode, done.stderr
    except subprocess.TimeoutExpired as error:
        code, errors = "none in time", str(error.stderr)
    now = folder / "now"
    name = now.read_text() if now.is_file() else "the first image"
    assert code == 0, f"seed {SEED}, {arguments}: exit code {code} at {name}\n{errors[-3000:]}"
    return json.loads(done.stdout)


@pytest.mark.parametrize("first", range(0, IMAGES, IN_A_PROCESS))
def test_damaged_images_give_an_image_or_the_one_error(first, tmp_path):
    result = in_a_process(tmp_path, "mutants", SEED, first, first + IN_A_PROCESS)
    assert result["wrong"] == [], f"seed {SEED}"
    assert sum(result["counts"].values()) == IN_A_PROCESS
    assert min(result["counts"].values()) > IN_A_PROCESS / 20  # of either kind there are many
    assert result["grown"] < GROWTH
    print(f"{result['counts']}, {result['grown']:.0f} MB more, at most {result['slowest']:.2f} s an image")


def test_images_cut_anywhere_give_the_whole_image_or_the_one_error(tmp_path):
    """Behind the first picture of an animation nothing is missed."""
    result = in_a_process(tmp_path, "cut", EVERY)
    assert result["wrong"] == []
    assert result["counts"]["refused"] > result["counts"]["image"]
    assert result["grown"] < GROWTH
    print(f"{result['counts']}, {result['grown']:.0f} MB more, at most {result['slowest']:.2f} s an image")


def test_bombs_are_refused_before_they_are_decoded(tmp_path):
    files = bombs()
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    result = in_a_process(tmp_path, "files")
    assert set(result) == set(files)
    for name, found in result.items():
        outcome = {found[way] for way in ("decode", "check", "fast", "exact")}
        # A text that is not there is no part of the picture.
        assert outcome == ({"image"} if name == "tiff 3 GB tag" else {"refused"}), f"{name}: {found}"
        assert found["grown"] < GROWTH, f"{name}: {found}"
        if name not in ("avif", "png profile", "png text", "tiff 3 GB tag"):
            assert "limit" in found["reason"] or "strip" in found["reason"], f"{name}: {found}"


def test_every_kind_decodes_as_long_as_it_is_whole():
    kinds = seeds()
    assert {"jpeg", "png", "webp", "tiff", "gif", "bmp"} <= set(kinds)
    for kind, data in kinds.items():
        expected = (40, 56) if kind in ("jpeg turned", "png alpha", "webp lossless") else (56, 40)
        assert decode(data).size == expected, kind
        assert decode(data).mode == "RGB", kind


def test_an_image_is_known_by_its_content_not_by_its_name(tmp_path):
    for kind, data in seeds().items():
        for extension in (".jpg", ".png", ".tiff"):
            path = tmp_path / f"photo{extension}"
            path.write_bytes(data)
            assert np.array_equal(decode(path), decode(data)), (kind, extension)
    for extension in (".jpg", ".png", ".webp", ".tiff", ".bmp"):
        path = tmp_path / f"text{extension}"
        for content, reason in ((b"", "it is empty"), (b"a text", "no known image format")):
            path.write_bytes(content)
            with pytest.raises(ImageDecodeError, match=rf"text\{extension}' cannot be decoded: .*{reason}"):
                decode(path)


@pytest.mark.parametrize("shape", [(1, 1001), (1001, 1), (3, 3004)])
def test_a_strip_is_refused_because_it_would_grow(shape):
    strip = np.zeros((*shape, 3), dtype=np.uint8)
    for source in (strip, Image.fromarray(strip), encoded(Image.fromarray(strip), "PNG")):
        with pytest.raises(ImageDecodeError, match="it is a strip of"):
            decode(source)
    assert decode(strip[:1000, :1000]).size[::-1] == strip[:1000, :1000].shape[:2]


def test_what_is_trained_on_and_scored_is_what_is_left(tmp_path, tiny_model):
    """A folder with one file of every kind of fault, as a new user might have it."""
    whole = encoded(Image.fromarray(photo()), "JPEG")
    faults = {
        "empty.jpg": b"",
        "text.jpg": b"no image",
        "page.png": b"<!DOCTYPE html><html>",
        "cut.jpg": whole[: len(whole) // 2],
        "bomb.png": bombs()["png"],
        "deep.tif": bombs()["tiff 3 GB strip"],
        "strip.png": encoded(Image.new("L", (5000, 1)), "PNG"),
    }
    for label in ("ant", "bee"):
        (tmp_path / label).mkdir()
        for number in range(3):
            (tmp_path / label / f"{number}.jpg").write_bytes(whole)
    for name, data in faults.items():
        (tmp_path / "bee" / name).write_bytes(data)
    part = tk.load_dataset(tmp_path, val=0).train
    model = tk.replace_head(tiny_model(2), 2, classes=["ant", "bee"])
    with pytest.raises(ImageDecodeError):
        tk.evaluate(model, part, device="cpu")
    with pytest.warns(UserWarning, match="Left out 7 images"):
        report = tk.evaluate(model, part, device="cpu", on_error="skip")
    assert [each.id for each in report.skipped] == sorted(f"bee/{name}" for name in faults)
    assert report.n == 6
    assert report.targets.tolist() == [0, 0, 0, 1, 1, 1]
    assert {name: (tmp_path / "bee" / name).read_bytes() for name in faults} == faults
    with Image.open(io.BytesIO(whole)) as expected:
        assert np.array_equal(decode(tmp_path / "bee" / "0.jpg"), expected)
