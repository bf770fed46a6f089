"""Images that cannot be decoded are left out by name, or end the work; nothing takes their place."""

from __future__ import annotations

import errno
import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import transferkit as tk
from transferkit.errors import ArgumentError, DataError, ImageDecodeError
from transferkit.loading import checked
from transferkit.loading.checked import Skipped, check_on_error, skipped_csv, usable
from transferkit.loading.sources import DatasetPart


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Four ants and four bees, of which one ant is empty and one bee is a text."""
    for label, color in (("ants", 60), ("bees", 200)):
        (tmp_path / label).mkdir()
        for number in range(4):
            pixels = np.full((12, 10, 3), color + number, dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / label / f"{number}.png")
    (tmp_path / "ants" / "1.png").write_bytes(b"")
    (tmp_path / "bees" / "3.png").write_text("no image")
    return tmp_path


def part_of(folder: Path) -> tk.Part:
    return tk.load_dataset(folder, val=0).train


def contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in sorted(folder.rglob("*.png"))}


@pytest.mark.parametrize("workers", [0, 1, 3, None])
def test_what_cannot_be_decoded_is_left_out_by_name(folder, workers):
    part, before = part_of(folder), contents(folder)
    with pytest.warns(UserWarning, match="Left out") as warned:
        kept, skipped = usable(part, on_error="skip", workers=workers)
    assert [each.id for each in skipped] == ["ants/1.png", "bees/3.png"]
    assert [Path(each.path) for each in skipped] == [folder / each.id for each in skipped]
    assert skipped[0].reason == "it is empty"
    assert "no known image format" in skipped[1].reason
    assert list(kept.ids) == [name for name in part.ids if name not in ("ants/1.png", "bees/3.png")]
    for index, name in enumerate(kept.ids):
        place = part.ids.index(name)
        assert np.array_equal(kept[index][0], part[place][0])
        assert kept.targets[index] == part.targets[place]
    assert kept.name == part.name
    assert kept.classes == part.classes
    assert contents(folder) == before
    (warning,) = warned
    assert str(warning.message) == (
        "Left out 2 images ('ants/1.png', 'bees/3.png') of the 'train' part that cannot be decoded "
        "(the first: it is empty)."
    )
    assert warning.filename == __file__


def test_by_default_nothing_is_decoded_ahead(folder, monkeypatch):
    part = part_of(folder)
    monkeypatch.setattr(checked, "decode", lambda *_, **__: pytest.fail("decoded"))
    assert usable(part, on_error="raise") == (part, ())


def test_a_part_without_faults_stays_as_it_is(tiny_part):
    part = tiny_part(6)
    assert usable(part, on_error="skip") == (part, ())


def test_a_class_that_loses_all_its_images_is_an_error(folder):
    for path in (folder / "bees").iterdir():
        path.write_bytes(path.read_bytes()[:20])
    with pytest.raises(DataError, match=r"No image of 1 class \('bees'\) in the 'train' part can be decoded"):
        usable(part_of(folder), on_error="skip")
    for path in (folder / "ants").iterdir():
        path.write_bytes(b"")
    with pytest.raises(DataError, match=r"No image of the 'train' part .*ants.0\.png': it is empty"):
        usable(part_of(folder), on_error="skip")


def test_a_class_that_had_no_images_loses_none(folder):
    part = part_of(folder)
    more = tk.Part(part.sources, part.targets, [*part.classes, "wasps"], ids=part.ids)
    with pytest.warns(UserWarning, match="Left out 2 images"):
        assert len(usable(more, on_error="skip")[0]) == 6


def test_encoded_images_in_memory_have_no_path(folder):
    data = [path.read_bytes() for path in sorted(folder.rglob("*.png"))]
    part = tk.Part(data, [0] * 4 + [1] * 4, ["ant", "bee"])
    with pytest.warns(UserWarning, match="Left out 2 images"):
        kept, skipped = usable(part, on_error="skip")
    assert [(each.id, each.path) for each in skipped] == [("1", ""), ("7", "")]
    assert len(kept) == 6


@pytest.mark.parametrize("cause", [MemoryError(), OSError(errno.EMFILE, "Too many open files")])
def test_what_the_machine_lacks_is_no_fault_of_an_image(folder, monkeypatch, cause):
    def fails(*_: object, **__: object) -> None:
        raise ImageDecodeError("The image cannot be decoded.") from cause

    part = part_of(folder)
    monkeypatch.setattr(checked, "decode", fails)
    with pytest.raises(ImageDecodeError):
        usable(part, on_error="skip")


def test_choices(tiny_part):
    part = tiny_part(4)
    check_on_error("evaluate", "skip", part)
    check_on_error("evaluate", "raise", None)
    with pytest.raises(
        ArgumentError, match=r"'on_error' parameter of evaluate must be one of 'raise', 'skip'"
    ):
        check_on_error("evaluate", "ignore", part)
    own = DatasetPart([(np.zeros((4, 4, 3), dtype=np.uint8), 0)])
    for data in (None, own):
        with pytest.raises(ArgumentError, match="must be 'raise' for a data set or loader of your own"):
            check_on_error("evaluate", "skip", data)


def test_the_table_of_what_was_skipped():
    table = skipped_csv([Skipped("a.jpg", "photos/a.jpg", "it is empty"), Skipped("7", "", 'no, "never"')])
    assert table == 'path,reason\nphotos/a.jpg,it is empty\n7,"no, ""never"""\n'
    assert skipped_csv([]) == "path,reason\n"


def test_evaluation_scores_what_is_left_and_says_so(folder, tiny_model):
    model = tk.replace_head(tiny_model(2), 2, classes=["ants", "bees"])
    part = part_of(folder)
    with pytest.raises(ImageDecodeError, match=r"ants.1\.png' cannot be decoded: it is empty"):
        tk.evaluate(model, part, device="cpu")
    with pytest.warns(UserWarning, match="Left out 2 images"):
        report = tk.evaluate(model, part, device="cpu", on_error="skip")
    whole = part.take(
        [index for index, name in enumerate(part.ids) if name not in ("ants/1.png", "bees/3.png")]
    )
    expected = tk.evaluate(model, whole, device="cpu")
    np.testing.assert_array_equal(report.probabilities, expected.probabilities)
    assert (report.n, report.ids) == (6, expected.ids)
    assert [each.id for each in report.skipped] == ["ants/1.png", "bees/3.png"]
    assert "Left out, because they cannot be decoded: 2 images ('ants/1.png', 'bees/3.png')." in str(report)
    assert expected.skipped == ()
    assert "Left out" not in str(expected)


def test_features_say_which_images_have_none(folder, tiny_model):
    model, part = tiny_model(2), part_of(folder)
    with pytest.raises(ImageDecodeError, match=r"1\.png"):
        tk.extract_features(model, part, device="cpu")
    with pytest.warns(UserWarning, match="Left out 2 images"):
        features = tk.extract_features(model, part, device="cpu", on_error="skip")
    assert [each.id for each in features.skipped] == ["ants/1.png", "bees/3.png"]
    assert features.ids == tuple(name for name in part.ids if name not in ("ants/1.png", "bees/3.png"))
    assert len(features.x) == len(features.y) == len(features.ids) == 6
    assert features.y.tolist() == [0, 0, 0, 1, 1, 1]


def test_the_files_are_looked_at_and_never_changed(folder, tiny_model):
    before = {path: path.stat().st_mtime_ns for path in sorted(folder.rglob("*"))}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        tk.evaluate(tiny_model(2), part_of(folder), device="cpu", on_error="skip")
    assert {path: path.stat().st_mtime_ns for path in sorted(folder.rglob("*"))} == before
