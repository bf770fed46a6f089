from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from transferkit.cli import main
from transferkit.datasets import load_dataset, restore_splits
from transferkit.datasets.base import Part
from transferkit.datasets.table import read_table
from transferkit.errors import ArgumentError, DataError

PHOTOS = ("a.jpg", "b.jpg", "more/c.jpg", "d.png")


@pytest.fixture
def photos(lay_out: Callable[..., Path]) -> Path:
    return lay_out(*PHOTOS)


def write(photos: Path, text: str, name: str = "labels.csv") -> Path:
    table = photos / name
    table.write_text(text, encoding="utf-8")
    return table


def labels(part: Part) -> dict[str, str]:
    return {name: part.classes[target] for name, target in zip(part.ids, part.targets, strict=True)}


def test_paths_and_labels(photos: Path) -> None:
    table = write(photos, "path,label\nd.png,wasp\n./more/c.jpg,bee\na.jpg,bee\n")
    part = read_table(table).parts["train"]
    assert labels(part) == {"a.jpg": "bee", "d.png": "wasp", "more/c.jpg": "bee"}
    assert list(part.ids) == sorted(part.ids)
    assert part.sources[0] == photos / "a.jpg"
    assert part.classes == ("bee", "wasp")


def test_parts_are_called_by_their_usual_names(photos: Path) -> None:
    table = write(photos, "Split;File;Class\nTrain;a.jpg;x\n VALIDATION ;b.jpg;y\ntest;d.png;x\n")
    contents = read_table(table, delimiter=";")
    assert {name: labels(part) for name, part in contents.parts.items()} == {
        "train": {"a.jpg": "x"},
        "val": {"b.jpg": "y"},
        "test": {"d.png": "x"},
    }


@pytest.mark.parametrize("path", ["path", "file", "filename", "Image", "image_path", " IMG "])
@pytest.mark.parametrize("label", ["label", "Class", "target"])
def test_the_usual_names_of_columns(photos: Path, path: str, label: str) -> None:
    table = write(photos, f"id,{label},{path}\n1,x,a.jpg\n2,y,b.jpg\n")
    assert labels(read_table(table).parts["train"]) == {"a.jpg": "x", "b.jpg": "y"}


def test_columns_may_be_named(photos: Path) -> None:
    table = write(photos, "photo,path,label,breed,fold\na.jpg,?,0,pug,train\nb.jpg,?,0,cat,test\n")
    contents = read_table(table, path="photo", label="breed", split="fold")
    assert labels(contents.parts["train"]) == {"a.jpg": "pug"}
    assert labels(contents.parts["test"]) == {"b.jpg": "cat"}
    with pytest.raises(ArgumentError, match=r"'label' parameter of load_dataset must be one of the columns"):
        read_table(table, label="race")


@pytest.mark.parametrize(
    ("name", "mark"), [("t.csv", ","), ("t.tsv", "\t"), ("T.TSV", "\t"), ("t.tab", "\t")]
)
def test_the_suffix_says_what_separates_columns(photos: Path, name: str, mark: str) -> None:
    table = write(photos, f"path{mark}label\na.jpg{mark}x\nb.jpg{mark}y\n", name)
    assert labels(read_table(table).parts["train"]) == {"a.jpg": "x", "b.jpg": "y"}


@pytest.mark.parametrize("mark", [";", "\t", "|", ","])
def test_what_separates_columns_is_found_out_if_asked(photos: Path, mark: str) -> None:
    table = write(photos, f"path{mark}label\na.jpg{mark}x\nb.jpg{mark}y\n")
    assert labels(read_table(table, delimiter="auto").parts["train"]) == {"a.jpg": "x", "b.jpg": "y"}
    for wrong in (";;", "", '"', "\n", "\r"):
        with pytest.raises(
            ArgumentError, match="'delimiter' parameter of load_dataset must be a single char"
        ):
            read_table(table, delimiter=wrong)


def test_another_mark_is_suggested(photos: Path) -> None:
    table = write(photos, "path;label\na.jpg;x\n")
    with pytest.raises(DataError, match=r"single column, 'path;label'; if its columns .* give delimiter=';'"):
        read_table(table)


def test_what_spreadsheets_do(photos: Path) -> None:
    table = write(photos, '\ufeffpath,label\r\n"a.jpg","a, b"\r\n\r\nb.jpg, c \r\n,\r\n')
    assert labels(read_table(table).parts["train"]) == {"a.jpg": "a, b", "b.jpg": "c"}


def test_paths_may_be_absolute(photos: Path, tmp_path: Path) -> None:
    table = tmp_path / "elsewhere.csv"
    table.write_text(f"path,label\n{photos / 'a.jpg'},x\nphotos/b.jpg,y\n", encoding="utf-8")
    part = read_table(table).parts["train"]
    assert set(part.ids) == {(photos / "a.jpg").as_posix(), "photos/b.jpg"}
    assert all(source.is_file() for source in part.sources)


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ("a.jpg,x\nz.jpg,y", r"line 3 names 'z\.jpg', but there is no file '.*z\.jpg'\."),
        ("more,x", "line 2 names 'more', but there is no file"),
        ("a.jpg,x\nb.jpg,y\na.jpg,x", r"line 4 names 'a\.jpg' again after line 2\."),
        ("a.jpg,x\n./a.jpg,y", r"line 3 names 'a\.jpg' again after line 2, as 'y' instead of 'x'\."),
        ("a.jpg,x\nb.jpg, ", r"line 3 has no label for 'b\.jpg'\."),
        (",x", r"line 2 has no path\."),
        ("a.jpg,x,1", r"line 2 has 3 columns, and the first line has 2\."),
        ("a.jpg,x\n\n\nb.jpg", r"line 5 has 1 columns, and the first line has 2\."),
        ("z.jpg,x\na.jpg,y\nb.jpg,", r"line 2 names 'z\.jpg', .*; 1 more lines are wrong\."),
    ],
)
def test_a_wrong_line_is_named(photos: Path, lines: str, message: str) -> None:
    with pytest.raises(DataError, match=rf"labels\.csv' cannot be used: {message}"):
        read_table(write(photos, f"path,label\n{lines}\n"))


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ("a.jpg,x,dev", r"line 2 puts 'a\.jpg' into the part 'dev', and parts are train, val, valid, "),
        ("a.jpg,x,", r"line 2 puts 'a\.jpg' into the part ''"),
        ("a.jpg,x,train\na.jpg,x,test", r"line 3 names 'a\.jpg' again after line 2, in 'test' instead of"),
        ("a.jpg,x,test", r"names no training images, only 1 part \('test'\)\."),
        ("", r"names no training images\."),
    ],
)
def test_a_wrong_part_is_named(photos: Path, lines: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        read_table(write(photos, f"path,label,split\n{lines}\n"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "name,label\na.jpg,x",
            r"needs one column of paths, called path, .*none among its columns, \['name'",
        ),
        ("path,breed\na.jpg,x", r"needs one column of labels, .*name it with label="),
        ("path,file,label\na.jpg,b.jpg,x", r"has several: \['path', 'file'\]"),
        ("", r"needs one column of paths.*columns, \[\]"),
        ('path,label\na.jpg,"x\n', r"Line \d of .* cannot be read: unexpected end of data"),
        ('path,label\na.jpg,"x"y\n', r"Line 2 of .* cannot be read"),
    ],
)
def test_a_table_that_cannot_be_read(photos: Path, text: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        read_table(write(photos, text))


def test_a_table_in_another_encoding(photos: Path) -> None:
    table = photos / "labels.csv"
    table.write_bytes("path,label\na.jpg,Käfer\n".encode("latin-1"))
    with pytest.raises(DataError, match=r"labels\.csv' cannot be read: it is no text in UTF-8\."):
        read_table(table)


def test_a_table_loads_like_the_folder_that_it_describes(lay_out: Callable[..., Path]) -> None:
    root = lay_out(*(f"{name}/{index}.jpg" for name in ("ant", "bee") for index in range(10)))
    rows = sorted(root.glob("*/*.jpg"), reverse=True)
    text = "".join(f"{row.relative_to(root)},{row.parent.name}\n" for row in rows)
    table = write(root, f"path,label\n{text}")
    by_table = load_dataset(table, val=0.3, seed=5)
    with pytest.warns(UserWarning, match=r"left out 1 entry \(no image file: 'labels\.csv'\)"):
        by_folder = load_dataset(root, val=0.3, seed=5)
    assert by_table.train.ids == by_folder.train.ids
    assert by_table.val.fingerprint() == by_folder.val.fingerprint()
    record = json.loads(json.dumps(by_table.record))
    assert (record["layout"], record["source"]) == ("table", str(table))
    assert restore_splits(table, record).val.ids == by_table.val.ids


def test_what_a_table_does_not_take(photos: Path) -> None:
    table = write(photos, "path,label\na.jpg,x\nb.jpg,y\n")
    with pytest.raises(
        ArgumentError, match="'label_from' parameter of load_dataset must be None for a table"
    ):
        load_dataset(table, label_from="(.)")
    with pytest.raises(ArgumentError, match="for a table: got an unexpected keyword argument 'labels'"):
        load_dataset(table, labels="label")
    with pytest.raises(DataError, match=r"There is no file '.*lables\.csv'\."):
        load_dataset(str(photos / "lables.csv"))


def test_the_command_line_trains_and_evaluates_on_a_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    colors = {"cold": "blue", "mild": "lime", "warm": "red"}

    def tell(table: str, classes: list[str]) -> None:
        rows = []
        for index, label in enumerate(classes * 8):
            Image.new("RGB", (8, 8), colors[label]).save(f"{table}{index}.png")
            rows.append(f"{table}{index}.png,{label}\n")
        Path(f"{table}.csv").write_text(f"image,class\n{''.join(rows)}", encoding="utf-8")

    tell("seen", ["cold", "mild", "warm"])
    tell("other", ["warm", "mild"])
    quiet = ["--quiet", "--json", "--device", "cpu", "--workers", "0"]
    assert main(["train", "seen.csv", "--recipe", "linear-probe", "--out", "run", *quiet]) == 0
    capsys.readouterr()
    # Its classes are the second and third of the run: by position nearly all would be wrong.
    assert main(["evaluate", "run", "other.csv", *quiet]) == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["n"], report["accuracy"]) == (16, 1.0)
