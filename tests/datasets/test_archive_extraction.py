from __future__ import annotations

import bz2
import gzip
import io
import os
import stat
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from transferkit.datasets.archives import extract
from transferkit.errors import ArchiveError, ArgumentError, OutputError

FILES = {"photos/ants/1.jpg": b"an ant", "photos/bees/1.jpg": b"a bee", "photos/notes.txt": b""}


def zipped(path: Path, files: dict[str, bytes], *, method: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path


def tarred(path: Path, files: dict[str, bytes], *, mode: str = "w:gz") -> Path:
    with tarfile.open(path, mode) as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


def tarred_member(path: Path, member: tarfile.TarInfo) -> Path:
    with tarfile.open(path, "w") as archive:
        archive.addfile(tarfile.TarInfo("photos/1.jpg"))
        archive.addfile(member)
    return path


def contents(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()
    }


def everything(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


MAKERS: dict[str, Callable[[Path], Path]] = {
    "zip": lambda folder: zipped(folder / "a.zip", FILES),
    "stored": lambda folder: zipped(folder / "a.zip", FILES, method=zipfile.ZIP_STORED),
    "tar": lambda folder: tarred(folder / "a.tar", FILES, mode="w"),
    "gz": lambda folder: tarred(folder / "a.tar.gz", FILES),
    "bz2": lambda folder: tarred(folder / "a.tbz2", FILES, mode="w:bz2"),
    "xz": lambda folder: tarred(folder / "a.tar.xz", FILES, mode="w:xz"),
    "misnamed": lambda folder: tarred(folder / "a.zip", FILES),
}


@pytest.mark.parametrize("kind", MAKERS)
def test_an_archive_is_unpacked_whole(tmp_path: Path, kind: str) -> None:
    archive = MAKERS[kind](tmp_path)
    target = tmp_path / "new" / "photos"
    assert extract(archive, target) == target
    assert contents(target) == FILES
    assert everything(tmp_path / "new")[0] == "photos"
    assert len(list((tmp_path / "new").iterdir())) == 1


def test_what_is_unpacked_has_the_permissions_of_new_files(tmp_path: Path) -> None:
    member = tarfile.TarInfo("run")
    member.mode = 0o6777
    extract(tarred_member(tmp_path / "a.tar", member), tmp_path / "out")
    plain = tmp_path / "plain"
    plain.mkdir()
    (plain / "file").touch()
    assert (tmp_path / "out").stat().st_mode == plain.stat().st_mode
    assert (tmp_path / "out" / "run").stat().st_mode == (plain / "file").stat().st_mode


def test_a_folder_in_use_is_left_alone(tmp_path: Path) -> None:
    archive = zipped(tmp_path / "a.zip", FILES)
    (tmp_path / "empty").mkdir()
    assert contents(extract(archive, tmp_path / "empty")) == FILES
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "mine.txt").write_bytes(b"mine")
    for used in (tmp_path / "used", archive):
        with pytest.raises(ArchiveError, match="is there and not empty"):
            extract(archive, used)
    assert contents(tmp_path / "used") == {"mine.txt": b"mine"}


OUTSIDE = [
    "../evil",
    "a/../../evil",
    "/tmp/evil-of-transferkit",
    "..\\evil",
    "C:\\evil",
    "C:evil",
    "\\evil",
    "..",
]


def link(kind: bytes, target: str) -> tarfile.TarInfo:
    member = tarfile.TarInfo("photos/link")
    member.type, member.linkname = kind, target
    return member


def zip_with(folder: Path, change: Callable[[zipfile.ZipInfo], None]) -> Path:
    info = zipfile.ZipInfo("photos/odd.jpg")
    change(info)
    with zipfile.ZipFile(folder / "a.zip", "w") as archive:
        archive.writestr("photos/1.jpg", b"fine")
        archive.writestr(info, b"/etc/passwd")
    return folder / "a.zip"


def set_mode(kind: int) -> Callable[[zipfile.ZipInfo], None]:
    def change(info: zipfile.ZipInfo) -> None:
        info.create_system, info.external_attr = 3, (kind | 0o777) << 16

    return change


def encrypted(folder: Path) -> Path:
    archive = zipped(folder / "a.zip", {"1.jpg": b"secret"})
    data = bytearray(archive.read_bytes())
    for signature, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        data[data.index(signature) + offset] |= 1
    archive.write_bytes(data)
    return archive


def with_doubles(folder: Path) -> Path:
    with zipfile.ZipFile(folder / "a.zip", "w") as archive:
        archive.writestr("a/1.jpg", b"first")
        with pytest.warns(UserWarning, match="Duplicate name"):
            archive.writestr("a/1.jpg", b"second")
    return folder / "a.zip"


def tar_with_doubles(folder: Path) -> Path:
    with tarfile.open(folder / "a.tar", "w") as archive:
        for _ in range(2):
            archive.addfile(tarfile.TarInfo("a/1.jpg"))
    return folder / "a.tar"


ATTACKS: dict[str, tuple[Callable[[Path], Path], str]] = {
    **{
        f"zip {name}": (
            lambda folder, name=name: zipped(folder / "a.zip", {"1": b"", name: b"x"}),
            "out of the",
        )
        for name in OUTSIDE
    },
    **{
        f"tar {name}": (
            lambda folder, name=name: tarred(folder / "a.tgz", {"1": b"", name: b"x"}),
            "out of the",
        )
        for name in OUTSIDE
    },
    "a link upwards": (
        lambda folder: tarred_member(folder / "a.tar", link(tarfile.SYMTYPE, "../..")),
        "a link",
    ),
    "a link inside": (
        lambda folder: tarred_member(folder / "a.tar", link(tarfile.SYMTYPE, "1.jpg")),
        "a link",
    ),
    "a hard link": (
        lambda folder: tarred_member(folder / "a.tar", link(tarfile.LNKTYPE, "photos/1")),
        "a link",
    ),
    "a device": (lambda folder: tarred_member(folder / "a.tar", link(tarfile.CHRTYPE, "")), "a device"),
    "a pipe": (lambda folder: tarred_member(folder / "a.tar", link(tarfile.FIFOTYPE, "")), "a device"),
    "a link in a zip": (lambda folder: zip_with(folder, set_mode(stat.S_IFLNK)), "a link or a device"),
    "a pipe in a zip": (lambda folder: zip_with(folder, set_mode(stat.S_IFIFO)), "a link or a device"),
    "encrypted": (encrypted, "is encrypted"),
    "twice": (with_doubles, "is there twice"),
    "twice in a tar": (tar_with_doubles, "is there twice"),
    "a file as a folder": (
        lambda folder: tarred(folder / "a.tgz", {"a": b"x", "a/b": b"y"}),
        "as a file and as a folder",
    ),
    "another method": (
        lambda folder: zipped(folder / "a.zip", FILES, method=zipfile.ZIP_LZMA),
        "another method than deflate",
    ),
    "too deep": (lambda folder: zipped(folder / "a.zip", {"a/" * 101 + "1": b"x"}), "too deep"),
}


@pytest.mark.parametrize("attack", ATTACKS)
def test_an_attack_is_refused_and_leaves_nothing(tmp_path: Path, attack: str) -> None:
    inner = tmp_path / "deep" / "deeper"
    inner.mkdir(parents=True)
    make, message = ATTACKS[attack]
    archive = make(inner)
    with pytest.raises(ArchiveError, match=message) as raised:
        extract(archive, inner / "out")
    assert str(archive) in str(raised.value)
    assert everything(tmp_path) == ["deep", "deep/deeper", f"deep/deeper/{archive.name}"]
    assert not Path("/tmp/evil-of-transferkit").exists()


def zeros_in_gzip(folder: Path, size: int) -> Path:
    return tarred(folder / "bomb.tgz", {"zeros": bytes(size)})


def many_empty_files(folder: Path, size: int) -> Path:
    return tarred(folder / "bomb.tgz", {str(number): b"" for number in range(size // 512)})


def a_long_header(folder: Path, size: int) -> Path:
    member = tarfile.TarInfo("1.jpg")
    member.pax_headers = {"comment": "a" * size}
    with tarfile.open(folder / "bomb.tgz", "w:gz", format=tarfile.PAX_FORMAT) as archive:
        archive.addfile(member)
    return folder / "bomb.tgz"


BOMBS: dict[str, Callable[[Path, int], Path]] = {
    "deflate": lambda folder, size: zipped(folder / "bomb.zip", {"zeros": bytes(size)}),
    "gzip": zeros_in_gzip,
    "bzip2": lambda folder, size: tarred(folder / "bomb.tar.bz2", {"zeros": bytes(size)}, mode="w:bz2"),
    "xz": lambda folder, size: tarred(folder / "bomb.tar.xz", {"zeros": bytes(size)}, mode="w:xz"),
    "empty files": many_empty_files,
    "a long header": a_long_header,
}


@pytest.mark.parametrize("bomb", BOMBS)
def test_a_bomb_is_stopped_while_it_is_unpacked(
    tmp_path: Path, bomb: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive = BOMBS[bomb](tmp_path, 2**21)
    monkeypatch.setattr("transferkit.datasets.archives._SLACK", 2**19)
    with pytest.raises(ArchiveError, match=r"become more than \d+, as a decompression bomb's would"):
        extract(archive, tmp_path / "out", max_ratio=2)
    assert everything(tmp_path) == [archive.name]
    # The same passes where it is trusted.
    assert extract(archive, tmp_path / "out", max_ratio=1e6).is_dir()


def test_the_size_is_limited_too(tmp_path: Path) -> None:
    archive = zipped(tmp_path / "a.zip", {"noise": os.urandom(10_000)})
    with pytest.raises(ArchiveError, match="become more than 9000"):
        extract(archive, tmp_path / "out", max_size=9000)
    assert extract(archive, tmp_path / "out", max_size=11_000).is_dir()


def test_a_header_that_claims_less_is_not_believed(tmp_path: Path) -> None:
    archive = zipped(tmp_path / "a.zip", {"zeros": bytes(2**20)})
    data = bytearray(archive.read_bytes())
    for signature, offset in ((b"PK\x03\x04", 22), (b"PK\x01\x02", 24)):
        start = data.index(signature) + offset
        data[start : start + 4] = (10).to_bytes(4, "little")
    archive.write_bytes(data)
    with pytest.raises(ArchiveError, match="is damaged"):
        extract(archive, tmp_path / "out")
    assert everything(tmp_path) == ["a.zip"]


@pytest.mark.parametrize("kind", ["zip", "tar", "gz", "bz2", "xz"])
def test_an_archive_that_ends_early(tmp_path: Path, kind: str) -> None:
    archive = MAKERS[kind](tmp_path)
    data = archive.read_bytes()
    if kind == "tar":
        data = data.rstrip(b"\0")  # zeros follow, and half of them are as good as all
    for length in (0, 1, 5, len(data) // 2, len(data) - 1):
        archive.write_bytes(data[:length])
        with pytest.raises(ArchiveError, match="is damaged, or neither a zip nor a tar archive"):
            extract(archive, tmp_path / "out")
    assert everything(tmp_path) == [archive.name]


def test_a_tar_that_is_cut_between_two_files_or_has_a_damaged_header(tmp_path: Path) -> None:
    archive = tarred(tmp_path / "a.tar", dict.fromkeys("abc", b"x" * 512), mode="w")
    data = archive.read_bytes()
    archive.write_bytes(data[: 2 * 1024])
    with pytest.raises(ArchiveError, match="it ends early"):
        extract(archive, tmp_path / "out")
    archive.write_bytes(data[:1100] + b"\xff" + data[1101:])
    with pytest.raises(ArchiveError, match="a header is damaged"):
        extract(archive, tmp_path / "out")


def test_damaged_content(tmp_path: Path) -> None:
    archive = zipped(tmp_path / "a.zip", {"1.jpg": b"x" * 100}, method=zipfile.ZIP_STORED)
    archive.write_bytes(archive.read_bytes().replace(b"x" * 100, b"x" * 99 + b"y"))
    with pytest.raises(ArchiveError, match="Bad CRC-32"):
        extract(archive, tmp_path / "out")


@pytest.mark.parametrize(
    "content", [b"", b"no archive at all" * 100, gzip.compress(b"text", mtime=0), bz2.compress(b"text")]
)
def test_what_is_no_archive(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.zip").write_bytes(content)
    with pytest.raises(ArchiveError, match="is damaged, or neither a zip nor a tar archive"):
        extract(tmp_path / "a.zip", tmp_path / "out")
    with pytest.raises(ArchiveError, match="cannot be read: No such file"):
        extract(tmp_path / "b.zip", tmp_path / "out")


def test_a_disk_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    archive = zipped(tmp_path / "a.zip", FILES)
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="cannot be written"):
        extract(archive, tmp_path / "file" / "out")
    original = Path.open

    def full(path: Path, mode: str = "r", **options: object) -> io.IOBase:
        if "x" in mode:
            raise OSError(28, "No space left on device")
        return original(path, mode, **options)

    monkeypatch.setattr(Path, "open", full)
    with pytest.raises(OutputError, match=r"1\.jpg cannot be written: No space left"):
        extract(archive, tmp_path / "out")
    assert everything(tmp_path) == ["a.zip", "file"]


@pytest.mark.parametrize("options", [{"max_size": 0}, {"max_ratio": 0}, {"max_ratio": -1.0}])
def test_limits_that_make_no_sense(tmp_path: Path, options: dict[str, float]) -> None:
    with pytest.raises(ArgumentError, match=f"The '{next(iter(options))}' parameter of extract must be"):
        extract(zipped(tmp_path / "a.zip", FILES), tmp_path / "out", **options)
