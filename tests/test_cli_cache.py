"""``transferkit cache``: what it shows, what it removes, and that it needs no torch."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from datetime import datetime

import pytest
import torch

from transferkit.cli import main
from transferkit.loading.row_store import RowStore


@pytest.fixture
def root(tmp_path, monkeypatch):
    monkeypatch.setenv("TRANSFERKIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("TRANSFERKIT_CACHE_SIZE", raising=False)
    return tmp_path / "cache"


@pytest.fixture
def filled(root):
    """A cache with 5,000 rows of features, used long ago, and two images."""
    features = RowStore("features", {"backbone": "resnet18", "precision": "bf16"})
    features.add([str(number) for number in range(5000)], [torch.zeros(5000, 512, dtype=torch.bfloat16)])
    moment = datetime(2024, 5, 6, 7, 8).timestamp()
    for path in features.folder.glob("*/index.json"):
        os.utime(path, (moment, moment))
    pixels = RowStore("pixels", {"size": 224})
    pixels.add(["a", "b"], [torch.zeros(2, 3, 8, 8, dtype=torch.uint8)])
    return root


def files_below(folder):
    return [path for path in folder.rglob("*") if path.is_file()]


def test_show_is_what_it_does_without_more(filled, capsys):
    assert main(["cache"]) == 0
    printed = capsys.readouterr()
    assert printed.err == ""
    head, titles, newest, oldest = printed.out.splitlines()
    assert head == f"{filled}: 5.2 MB of 10.0 GB"
    assert titles.split() == ["kind", "what", "size", "last", "used"]
    assert newest.startswith("pixels    size 224, 2 rows ")
    assert oldest.startswith("features  resnet18, bf16, 5,000 rows  5.2 MB  2024-05-06 07:08")
    assert main(["cache", "show"]) == 0
    assert capsys.readouterr().out == printed.out


def test_show_as_json(filled, capsys):
    assert main(["cache", "show", "--json", "--kind", "features"]) == 0
    result = json.loads(capsys.readouterr().out)
    (entry,) = result.pop("entries")
    assert result == {"root": str(filled), "limit": 10_000_000_000, "total": entry["bytes"]}
    assert (entry["kind"], entry["description"], entry["rows"]) == ("features", "resnet18, bf16", 5000)
    assert 5000 * (1024 + 16) < entry["bytes"] < 5000 * (1024 + 16) + 2000
    moment = datetime.fromisoformat(entry["last_used"])
    assert moment == datetime(2024, 5, 6, 7, 8).astimezone()
    assert entry["path"].startswith(str(filled / "features"))


def test_an_empty_cache(root, capsys):
    assert main(["cache"]) == 0
    assert capsys.readouterr().out == f"{root}: 0 B of 10.0 GB\n"
    assert main(["cache", "clear"]) == 0
    assert capsys.readouterr().out == f"{root}: removed 0 B\n"


def test_clear_removes_one_kind_or_all(filled, capsys):
    assert main(["cache", "clear", "--kind", "features"]) == 0
    assert capsys.readouterr().out == f"{filled}: removed 5.2 MB\n"
    assert [path.relative_to(filled).parts[0] for path in files_below(filled)] == ["pixels"] * 4
    assert main(["cache", "clear", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert (result["root"], result["left"]) == (str(filled), [])
    assert 300 < result["removed"] < 2000
    assert files_below(filled) == []


def test_what_cannot_be_removed_is_told(filled, capsys):
    (segment,) = filled.glob("pixels/*/*/")
    (segment / "rows.npy").unlink()
    (segment / "rows.npy").mkdir()
    assert main(["cache", "clear"]) == 0
    head, reason, _, left = capsys.readouterr().out.splitlines()
    assert head == f"{filled}: removed 5.2 MB"
    assert reason == "in use, or not to be removed:"
    assert left.startswith("pixels")


@pytest.mark.parametrize("arguments", [["cache"], ["cache", "clear"]])
def test_the_command_imports_neither_torch_nor_numpy(arguments, filled):
    code = (
        "import sys\nfrom transferkit.cli import main\nassert main(sys.argv[1:]) == 0\n"
        "assert 'torch' not in sys.modules and 'numpy' not in sys.modules\n"
    )
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "5.2 MB" in done.stdout


def test_a_limit_that_is_no_size_is_one_sentence(filled, capsys, monkeypatch):
    monkeypatch.setenv("TRANSFERKIT_CACHE_SIZE", "many")
    assert main(["cache"]) == 2
    assert capsys.readouterr().err == (
        "transferkit: The 'TRANSFERKIT_CACHE_SIZE' parameter of the environment must be "
        "a size such as '20GB', '500MB' or '0'. Got 'many' instead.\n"
    )
    assert main(["cache", "clear"]) == 0
    assert files_below(filled) == []


@pytest.mark.parametrize("arguments", [["cache"], ["cache", "clear"]])
@pytest.mark.parametrize("below", [".", "folder"])
def test_a_place_that_is_no_folder_is_one_sentence(arguments, below, root, capsys, monkeypatch):
    root.write_text("not a cache")
    monkeypatch.setenv("TRANSFERKIT_CACHE", str(root / below))
    assert main(arguments) == 6
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err == (
        f"transferkit: The cache in {root / below} cannot be read: Not a directory; "
        "the variable TRANSFERKIT_CACHE can name another place.\n"
    )
    assert root.read_text() == "not a cache"


@pytest.mark.parametrize("arguments", [["cache", "remove"], ["cache", "--kind", "weights"]])
def test_usage_errors_come_from_the_parser(arguments, capsys):
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    assert "invalid choice" in capsys.readouterr().err
