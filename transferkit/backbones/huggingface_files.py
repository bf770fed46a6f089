"""The files of a Hugging Face model, in a folder or on the hub: read as data, never as code."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from transferkit.backbones.hub import hub_file
from transferkit.backbones.huggingface_preprocessing import preprocessing_from
from transferkit.backbones.preprocessing import Preprocessing
from transferkit.errors import ArgumentError, CheckpointCorruptError, CheckpointError
from transferkit.files import parse_json
from transferkit.loading.weights import file_digest, read_weights
from transferkit.loading.wording import first_line, printable
from transferkit.registry import shown

_REPOSITORY = re.compile(r"[\w.-]+(/[\w.-]+)?", re.ASCII)
_LONGEST = 2**24  # bytes of JSON; the names of 21,843 classes are a tenth of that


@dataclass(frozen=True)
class ModelFiles:
    """Where the files of one model are.

    Attributes:
        name: A folder, or the name of a repository on the hub; a folder that exists wins.
    """

    name: str

    def config(self) -> dict[str, Any]:
        """Return what ``config.json`` holds.

        Raises:
            CheckpointError: There is none, or it is damaged.
            DownloadError: It could not be fetched.
        """
        found = self._json("config.json")
        if found is None:
            raise CheckpointError(f"{self.name} holds no config.json, which tells what model it is.")
        return found

    def preprocessing(self) -> Preprocessing:
        """Return what ``preprocessor_config.json`` says of how images are prepared.

        Raises:
            ArgumentError: There is none, or it says something that a ``Preprocessing`` cannot.
            CheckpointError: It is damaged.
            DownloadError: It could not be fetched.
        """
        fields = self._json("preprocessor_config.json")
        if fields is None:
            raise ArgumentError(
                f"{self.name} does not say how images are prepared: it holds no preprocessor_config.json. "
                "Save the image processor there too, or pass preprocessing=..."
            )
        try:
            return preprocessing_from(fields)
        except ValueError as error:
            raise ArgumentError(
                f"The preprocessor_config.json of {self.name} cannot be followed: {first_line(error)}; "
                "pass preprocessing=..."
            ) from error

    def weights(self) -> tuple[dict[str, Tensor], str]:
        """Return the tensors, on the CPU, and what they are from.

        Raises:
            CheckpointError: There are none, or a file is damaged or unsafe (see its subclasses).
            DownloadError: They could not be fetched.
        """
        for file in ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin"):
            path = self._find(file)
            if path is not None:
                shards = [path] if path.suffix != ".json" else self._shards(path)
                state: dict[str, Tensor] = {}
                for shard in shards:
                    state |= read_weights(shard)
                return state, self._origin(path)
        raise CheckpointError(f"{self.name} holds no weights: no model.safetensors and no pytorch_model.bin.")

    def _find(self, file: str) -> Path | None:
        # By os.path: the methods of Path raise where a name is too long, or there is no such user.
        folder = os.path.expanduser(self.name)
        if os.path.isdir(folder):
            path = os.path.join(folder, file)
            return Path(path) if os.path.isfile(path) else None
        if not _REPOSITORY.fullmatch(self.name) or self.name.startswith((".", "~", os.sep)):
            raise CheckpointError(f"There is no folder {printable(folder)}.")
        return hub_file(self.name, file)

    def _json(self, file: str) -> dict[str, Any] | None:
        path = self._find(file)
        if path is None:
            return None
        try:
            if path.stat().st_size > _LONGEST:
                raise ValueError("it is too long")
            found = parse_json(path.read_text("utf-8"))
            if not isinstance(found, dict):
                raise ValueError("it holds no record")
        except OSError as error:
            raise CheckpointError(f"{path} cannot be read: {error.strerror or error}.") from error
        except ValueError as error:
            raise CheckpointCorruptError(f"{path} is damaged: {first_line(error)}.") from error
        return found

    def _shards(self, index: Path) -> list[Path]:
        """Return the files that an index names, each of them beside it."""
        names = (self._json(index.name) or {}).get("weight_map")
        files = sorted(set(map(str, names.values()))) if isinstance(names, Mapping) else []
        if not files:
            raise CheckpointCorruptError(f"{index} is damaged: it names no weights.")
        shards = []
        for file in files:
            # A name with a path in it could lead anywhere.
            plain = file == Path(file).name and file.endswith(".safetensors") and len(file) < 256
            path = self._find(file) if plain else None
            if path is None:
                raise CheckpointCorruptError(f"{index} is damaged: it names the weights {shown(file)}.")
            shards.append(path)
        return shards

    def _origin(self, path: Path) -> str:
        if os.path.isdir(os.path.expanduser(self.name)):
            return f"{path.name} (sha256 {file_digest(path)[:16]})"
        return f"{self.name}@{path.parent.name[:12]}"  # the cache has a folder for each commit
