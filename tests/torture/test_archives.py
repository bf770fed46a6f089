"""Damaged and hostile archives: whatever comes, nothing lands outside and nothing is left half done."""

from __future__ import annotations

import io
import os
import shutil
import tarfile
import zipfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mutations import mutated
from PIL import Image

from transferkit.datasets.archives import extract
from transferkit.datasets.folder import read_folder
from transferkit.errors import ArchiveError, DataError

WHOLE = os.environ.get("TRANSFERKIT_TORTURE") == "1"
ROUNDS = 3_000 if WHOLE else 150

pytestmark = pytest.mark.torture


def photo(seed: int) -> bytes:
    stream = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()


FILES = {f"{label}/{index}.png": photo(index) for label in ("ants", "bees") for index in range(3)}


def a_zip(method: int) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", method) as archive:
        for name, content in FILES.items():
            archive.writestr(name, content)
    return stream.getvalue()


def a_tar(mode: str) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode=mode) as archive:
        for name, content in FILES.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return stream.getvalue()


FORMS: dict[str, Callable[[], bytes]] = {
    "stored": lambda: a_zip(zipfile.ZIP_STORED),
    "deflated": lambda: a_zip(zipfile.ZIP_DEFLATED),
    "tar": lambda: a_tar("w"),
    "gz": lambda: a_tar("w:gz"),
    "bz2": lambda: a_tar("w:bz2"),
    "xz": lambda: a_tar("w:xz"),
}


def unpacked(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def attempt(kind: type[Exception], work: Callable[..., Any], *given: Any) -> tuple[Any, str | None]:
    """Return what some work gives, and what is said where it is refused."""
    try:
        return work(*given), None
    except kind as error:
        return None, str(error)


@pytest.mark.parametrize("form", FORMS)
def test_a_damaged_archive_is_unpacked_whole_or_refused(form: str, tmp_path: Path) -> None:
    good, inner = FORMS[form](), tmp_path / "outer" / "inner"
    inner.mkdir(parents=True)
    archive, target = inner / "archive", inner / "out"
    refused = 0
    for seed in range(ROUNDS):
        archive.write_bytes(mutated(good, np.random.default_rng(seed)))
        before = set(tmp_path.rglob("*"))
        _, said = attempt(ArchiveError, partial(extract, max_size=2**24), archive, target)
        outside = {path for path in tmp_path.rglob("*") if target not in (path, *path.parents)}
        assert outside == before, f"seed {seed}"
        if said is not None:
            refused += 1
            assert "\n" not in said, f"seed {seed}"
            assert not target.exists(), f"seed {seed}"
            continue
        # A tar has checksums of its headers alone; the other forms have one of each file or of everything.
        for name, content in unpacked(target).items():
            assert form == "tar" or FILES.get(name, content) == content, f"seed {seed}"
        for path in sorted(target.rglob("*"), reverse=True):
            assert not path.is_symlink(), f"seed {seed}"
        shutil.rmtree(target)
    assert refused > ROUNDS / 4


@pytest.mark.parametrize("form", FORMS)
def test_an_archive_that_is_cut_anywhere_is_refused(form: str, tmp_path: Path) -> None:
    good = FORMS[form]()
    lengths = range(len(good)) if WHOLE else sorted({*range(0, len(good), 97), len(good) - 1})
    # A tar may end after the first of its blocks of zeros; what follows is padding.
    least = len(good) if form != "tar" else len(good.rstrip(b"\0")) + 512
    for length in lengths:
        if length >= least:
            continue
        (tmp_path / "archive").write_bytes(good[:length])
        with pytest.raises(ArchiveError):
            extract(tmp_path / "archive", tmp_path / "out")
        assert [path.name for path in tmp_path.iterdir()] == ["archive"], f"length {length}"


@pytest.mark.parametrize("form", ["stored", "deflated"])
def test_a_damaged_archive_is_read_in_place_or_refused(form: str, tmp_path: Path) -> None:
    good, path = FORMS[form](), tmp_path / "photos.zip"
    read = 0
    for seed in range(ROUNDS):
        path.write_bytes(mutated(good, np.random.default_rng(seed)))
        contents, _ = attempt(DataError, read_folder, path)
        for part in () if contents is None else contents.parts.values():
            for index in range(len(part)):
                _, said = attempt(DataError, part.__getitem__, index)
                assert said is None or str(path) in said, f"seed {seed}"
                if said is None:
                    read += 1
                    content = part.source(index)
                    assert FILES.get(part.ids[index], content) == content, f"seed {seed}"
        assert [each.name for each in tmp_path.iterdir()] == ["photos.zip"], f"seed {seed}"
    assert read > ROUNDS / 10
