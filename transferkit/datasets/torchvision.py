"""torchvision's data sets by name, as parts: their files and arrays, without their own loading of images.

torchvision fetches a data set where there is a network, and compares each archive with the MD5 sum
that it knows before it unpacks it. The one archive for which it knows none, that of FGVC-Aircraft,
is unpacked by ``extract``.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from transferkit.datasets.archives import extract
from transferkit.datasets.base import Part
from transferkit.datasets.registry import register_dataset
from transferkit.errors import ArchiveError, ArgumentError, DataError, DownloadError, OutputError

CACHE = "~/.cache/transferkit/datasets"
"""Where data sets are looked for, and fetched to, unless ``root`` says otherwise."""

Samples = tuple[Sequence[Any] | npt.NDArray[np.uint8], Sequence[int] | npt.NDArray[np.int64]]

_BY_TRAIN: Mapping[str, dict[str, Any]] = {"train": {"train": True}, "test": {"train": False}}
_BY_SPLIT: Mapping[str, dict[str, Any]] = {"train": {"split": "train"}, "test": {"split": "test"}}
_WITH_VAL: Mapping[str, dict[str, Any]] = {name: {"split": name} for name in ("train", "val", "test")}


@dataclass(frozen=True)
class _Known:
    """A data set that torchvision has.

    Attributes:
        title: What people call it.
        kind: Its class in ``torchvision.datasets``.
        place: The folder or file below the root that holds it.
        parts: What the class is given for each part.
        samples: Takes sources and targets from an object of the class.
        classes: Takes the names of the classes; by default its attribute ``classes``.
        options: Arguments of the class that may be given, with their defaults.
    """

    title: str
    kind: str
    place: str
    parts: Mapping[str, dict[str, Any]]
    samples: Callable[[Any], Samples]
    classes: Callable[[Any], Sequence[str]] = lambda data: data.classes
    options: Mapping[str, Any] = field(default_factory=dict)


def _rows(data: Any) -> Samples:
    """Images of shape ``[N, H, W, 3]`` or ``[N, H, W]``."""
    return np.ascontiguousarray(data.data), np.asarray(data.targets)


def _turned_rows(data: Any) -> Samples:
    """EMNIST's images, which its files hold with rows and columns swapped."""
    images, targets = _rows(data)
    first = 1 if data.classes[0] == "N/A" else 0  # the letters count from 1
    return np.ascontiguousarray(np.asarray(images).transpose(0, 2, 1)), np.asarray(targets) - first


def _channels_first(data: Any) -> Samples:
    """Images of shape ``[N, 3, H, W]``."""
    return np.ascontiguousarray(np.asarray(data.data).transpose(0, 2, 3, 1)), data.labels.astype(np.int64)


def _files(data: Any) -> Samples:
    return data._image_files, data._labels


def _pets(data: Any) -> Samples:
    return data._images, data._labels


def _pairs(data: Any) -> Samples:
    pairs = data.samples if hasattr(data, "samples") else data._samples
    return [path for path, _ in pairs], [target for _, target in pairs]


def _caltech(data: Any) -> Samples:
    folder = Path(data.root) / "101_ObjectCategories"
    numbered = zip(data.y, data.index, strict=True)
    return [folder / data.categories[label] / f"image_{number:04d}.jpg" for label, number in numbered], data.y


def _numbers(count: int) -> Callable[[Any], Sequence[str]]:
    return lambda _: [str(number) for number in range(count)]


_KNOWN: Mapping[str, _Known] = {
    "cifar10": _Known("CIFAR-10", "CIFAR10", "cifar-10-batches-py", _BY_TRAIN, _rows),
    "cifar100": _Known("CIFAR-100", "CIFAR100", "cifar-100-python", _BY_TRAIN, _rows),
    "mnist": _Known("MNIST", "MNIST", "MNIST/raw", _BY_TRAIN, _rows, _numbers(10)),
    "fashion-mnist": _Known("Fashion-MNIST", "FashionMNIST", "FashionMNIST/raw", _BY_TRAIN, _rows),
    "kmnist": _Known("KMNIST", "KMNIST", "KMNIST/raw", _BY_TRAIN, _rows),
    "emnist": _Known(
        *("EMNIST", "EMNIST", "EMNIST/raw", _BY_TRAIN, _turned_rows),
        classes=lambda data: [name for name in data.classes if name != "N/A"],
        options={"split": "balanced"},
    ),
    "stl10": _Known("STL-10", "STL10", "stl10_binary", _BY_SPLIT, _channels_first),
    "svhn": _Known("SVHN", "SVHN", "train_32x32.mat", _BY_SPLIT, _channels_first, _numbers(10)),
    "flowers102": _Known("Flowers-102", "Flowers102", "flowers-102", _WITH_VAL, _files),
    "oxford-iiit-pet": _Known(
        *("Oxford-IIIT Pet", "OxfordIIITPet", "oxford-iiit-pet"),
        *({"train": {"split": "trainval"}, "test": {"split": "test"}}, _pets),
    ),
    "food101": _Known("Food-101", "Food101", "food-101", _BY_SPLIT, _files),
    "dtd": _Known("DTD", "DTD", "dtd/dtd", _WITH_VAL, _files, options={"partition": 1}),
    "eurosat": _Known("EuroSAT", "EuroSAT", "eurosat/2750", {"train": {}}, _pairs),
    "gtsrb": _Known("GTSRB", "GTSRB", "gtsrb", _BY_SPLIT, _pairs, _numbers(43)),
    "fgvc-aircraft": _Known(
        *("FGVC-Aircraft", "FGVCAircraft", "fgvc-aircraft-2013b", _WITH_VAL, _files),
        options={"annotation_level": "variant"},
    ),
    "caltech101": _Known(
        *("Caltech-101", "Caltech101", "caltech101/101_ObjectCategories", {"train": {}}, _caltech),
        classes=lambda data: data.categories,
    ),
    "country211": _Known(
        *("Country211", "Country211", "country211"),
        *({"train": {"split": "train"}, "val": {"split": "valid"}, "test": {"split": "test"}}, _pairs),
    ),
    "rendered-sst2": _Known("Rendered SST2", "RenderedSST2", "rendered-sst2", _WITH_VAL, _pairs),
    "imagenette": _Known(
        *("Imagenette", "Imagenette", "imagenette2"),
        *({"train": {"split": "train"}, "val": {"split": "val"}}, _pairs),
        classes=lambda data: [names[0] for names in data.classes],
    ),
}


def _load(
    name: str, *, root: str | os.PathLike[str] = CACHE, download: bool = True, **options: Any
) -> dict[str, Part]:
    """Return the parts that a data set defines.

    Args:
        name: Its name here.
        root: The folder that holds the data set, or will hold it.
        download: Whether to fetch what is not there yet.
        options: Arguments of this data set alone.

    Raises:
        ArgumentError: The data set has no such argument.
        DownloadError: It is not there, and could not be fetched.
        DataError: It is not there or damaged, and was not to be fetched.
    """
    known = _KNOWN[name]
    unknown = sorted(options.keys() - known.options.keys())
    if unknown:
        raise ArgumentError(
            f"Arguments of load_dataset for the data set {name!r}: "
            f"got an unexpected keyword argument {unknown[0]!r}."
        )
    folder = Path(os.path.abspath(Path(root).expanduser()))
    # Looked for first, so that what is there is read without a network, whatever torchvision would fetch.
    found, failure = _try(known, folder, options, download=False)
    if found is None and download:
        found, failure = _try(known, folder, options, download=True)
    if found is not None:
        return {part: _part(known, data, part, folder) for part, data in found.items()}
    place = folder / known.place
    if not download:
        raise DataError(
            f"'{place}' does not hold {known.title}, or a damaged copy of it; name the folder around it "
            "with root=..., or let it be fetched with download=True."
        ) from failure
    raise DownloadError(
        f"{known.title} is not in '{place}', where it is looked for, and could not be fetched "
        f"({_reason(failure)}); connect to the network, or put it there yourself."
    ) from failure


def _try(
    known: _Known, folder: Path, options: Mapping[str, Any], *, download: bool
) -> tuple[dict[str, Any] | None, Exception | None]:
    """Return torchvision's object for each part, or why there is none."""
    from torchvision import datasets

    kind = getattr(datasets, known.kind)
    try:
        if download and known.kind == "FGVCAircraft":
            _fetch_aircraft(kind, folder)
            download = False
        made = {
            part: kind(folder, download=download, **{**known.options, **options, **arguments})
            for part, arguments in known.parts.items()
        }
    except OutputError:
        raise
    except Exception as error:  # torchvision, urllib and scipy raise all kinds for what is missing or damaged
        return None, error
    return made, None


def _fetch_aircraft(kind: Any, folder: Path) -> None:
    from torchvision.datasets.utils import download_url

    target = folder / _KNOWN["fgvc-aircraft"].place
    if target.exists():
        return
    archive = folder / Path(kind._URL).name
    download_url(kind._URL, folder)
    with tempfile.TemporaryDirectory(dir=folder) as place:
        try:
            extract(archive, Path(place) / "content")
        except ArchiveError:
            archive.unlink()  # half of one would be taken for the whole the next time
            raise
        (Path(place) / "content" / target.name).rename(target)


def _part(known: _Known, data: Any, name: str, folder: Path) -> Part:
    sources, targets = known.samples(data)
    if isinstance(sources, np.ndarray):
        ids = [f"{name}/{index}" for index in range(len(sources))]
    else:
        sources = [Path(source) for source in sources]
        ids = [source.relative_to(folder).as_posix() for source in sources]
    return Part(sources, targets, known.classes(data), name=name, ids=ids)


def _reason(error: Exception | None) -> str:
    """Return the last line of what torchvision says, which is the cause where it lists several."""
    lines = str(error).strip().splitlines()
    return lines[-1].strip("<>. ") if lines else type(error).__name__


def _register(name: str) -> None:
    def load(
        *, root: str | os.PathLike[str] = CACHE, download: bool = True, **options: Any
    ) -> dict[str, Part]:
        return _load(name, root=root, download=download, **options)

    load.__name__ = load.__qualname__ = name
    load.__doc__ = f"Return {_KNOWN[name].title}, through ``torchvision.datasets.{_KNOWN[name].kind}``."
    register_dataset(name)(load)


for _name in _KNOWN:
    _register(_name)
