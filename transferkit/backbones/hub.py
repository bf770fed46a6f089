"""Files on the Hugging Face hub, or in its cache; what can go wrong there is told in one sentence."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from http.client import HTTPException
from pathlib import Path
from types import ModuleType
from urllib.error import URLError

from transferkit.checks import import_extra
from transferkit.errors import DownloadError, OutputError, TransferkitError, UnknownNameError
from transferkit.loading.wording import first_line
from transferkit.registry import shown

# Whose errors tell that a server was not reached; which of them is in use depends on the version of the hub.
_CLIENTS = ("httpx", "httpx2", "requests", "urllib3")


def hub_file(repository: str, file: str) -> Path | None:
    """Return where a file of a repository lies on this machine, fetched if it is not there yet.

    Args:
        repository: Such as ``"google/vit-base-patch16-224"``.
        file: Its name in the repository.

    Returns:
        Its path in the cache of ``huggingface_hub``; ``None`` where the repository has no such file.

    Raises:
        UnknownNameError: There is no such repository, or it is private.
        DownloadError: The hub cannot be reached, and the file is not in the cache.
        OutputError: The file cannot be stored.
    """
    hub, errors = _library(repository)
    with hub_errors(repository, instead="pass a folder that holds it, as 'hf/./folder'"):
        try:
            check_reachable(repository, file)
            return Path(hub.hf_hub_download(repository, file))
        except errors.LocalEntryNotFoundError:  # a subclass of the next, which says that nobody has answered
            raise
        except errors.EntryNotFoundError:
            return None


def check_reachable(repository: str, *files: str) -> None:
    """Ask the hub for one of some files, unless one of them is in the cache already.

    Without a network the hub's own download tries again and again, for half a minute.

    Raises:
        Exception: What the hub raises where it cannot be reached; ``hub_errors`` tells it.
    """
    hub, errors = _library(repository)
    if any(isinstance(hub.try_to_load_from_cache(repository, file), str) for file in files):
        return
    try:
        hub.get_hf_file_metadata(hub.hf_hub_url(repository, files[0]))
    except errors.LocalEntryNotFoundError:  # as above
        raise
    except errors.EntryNotFoundError:
        pass  # the hub has answered


def _library(model: str) -> tuple[ModuleType, ModuleType]:
    """Return ``huggingface_hub`` and the module of its errors."""
    purpose = f"The model {model!r}"
    library = import_extra("huggingface_hub", "hf", purpose)
    return library, import_extra("huggingface_hub.errors", "hf", purpose)


@contextlib.contextmanager
def hub_errors(model: str, *, instead: str) -> Iterator[None]:
    """Turn the many errors of a download into one of transferkit's.

    Args:
        model: What was to be fetched.
        instead: What a user without a network can do.

    Raises:
        UnknownNameError: There is no such model.
        DownloadError: It could not be fetched.
        OutputError: It could not be stored.
    """
    try:
        yield
    except TransferkitError:
        raise
    except Exception as error:
        told = _told(error, model, instead)
        if told is None:
            raise
        raise told from error


def _told(error: Exception, model: str, instead: str) -> TransferkitError | None:
    """Return the error that says the same in one sentence, if it is one of a download."""
    _, errors = _library(model)
    if isinstance(error, errors.GatedRepoError):
        return DownloadError(
            f"The model {shown(model)} is gated: accept its terms on huggingface.co, log in with "
            "'hf auth login', and try again."
        )
    if isinstance(error, (errors.RepositoryNotFoundError, errors.HFValidationError)):
        return UnknownNameError(
            f"There is no model {shown(model)} on huggingface.co, or it is private; {instead}."
        )
    missing = isinstance(error, (errors.LocalEntryNotFoundError, errors.HfHubHTTPError))
    client = type(error).__module__.partition(".")[0] in _CLIENTS
    if missing or client or isinstance(error, (ConnectionError, TimeoutError, URLError, HTTPException)):
        cause = error.__cause__ if isinstance(error.__cause__, Exception) else error
        return DownloadError(
            f"The model {shown(model)} is not in the cache and could not be fetched from huggingface.co "
            f"({first_line(cause)}); {instead}."
        )
    if isinstance(error, OSError):
        return OutputError(f"The model {shown(model)} could not be stored: {error.strerror or error}.")
    return None
