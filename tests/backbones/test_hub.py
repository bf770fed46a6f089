"""What can go wrong on the way from the hub is one sentence; nothing here touches a network."""

from __future__ import annotations

import http.client
import urllib.error

import pytest

from transferkit.backbones.hub import hub_errors, hub_file
from transferkit.errors import DownloadError, OutputError, TransferkitError, UnknownNameError

hub = pytest.importorskip("huggingface_hub", reason="needs the extra 'hf'")
errors = pytest.importorskip("huggingface_hub.errors", reason="needs the extra 'hf'")


class FakeClientError(Exception):
    """As if from the library with which the hub speaks to its server."""


FakeClientError.__module__ = "httpx._exceptions"


def response(status):
    """What the hub's errors are made of, whichever client it has."""

    class Response:
        status_code = status
        headers: dict[str, str] = {}
        request = None
        text = ""

    return Response()


def of(kind, status):
    """Make an error of the hub without asking how its constructor works."""
    error = kind.__new__(kind)
    Exception.__init__(error, f"{status} Client Error")
    error.response = response(status)
    return error


@pytest.fixture
def fails(monkeypatch):
    """Let everything that asks the hub end in an error."""

    def fail(error):
        def ask(*_):
            raise error

        for name in ("hf_hub_download", "get_hf_file_metadata"):
            monkeypatch.setattr(hub, name, ask)

    return fail


def cut_off():
    error = errors.LocalEntryNotFoundError("An error happened.\nPlease check your connection.")
    error.__cause__ = FakeClientError("[Errno -2] Name or service not known")
    return error


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (cut_off(), "[Errno -2] Name or service not known"),
        (errors.OfflineModeIsEnabled("Cannot reach the hub: offline mode is enabled."), "offline mode"),
        (FakeClientError("timed out"), "timed out"),
        (ConnectionResetError("Connection reset by peer"), "Connection reset by peer"),
        (TimeoutError(), "TimeoutError"),
        (urllib.error.URLError("no route"), "no route"),
        (http.client.IncompleteRead(b""), "IncompleteRead"),
        (of(errors.HfHubHTTPError, 503), "503 Client Error"),
    ],
)
def test_no_network_is_one_sentence(fails, error, reason):
    fails(error)
    with pytest.raises(DownloadError) as caught:
        hub_file("google/vit", "config.json")
    text = str(caught.value)
    assert text.startswith("The model 'google/vit' is not in the cache and could not be fetched from hugging")
    assert text.endswith("); pass a folder that holds it, as 'hf/./folder'.")
    assert "\n" not in text
    assert reason in text


def test_a_file_that_a_repository_does_not_have_is_none(fails):
    fails(errors.EntryNotFoundError("404 Client Error"))
    assert hub_file("google/vit", "model.safetensors") is None


def test_what_is_not_in_the_cache_is_asked_for_once(fails, monkeypatch):
    """The hub's own download would try for half a minute where there is no network."""
    fails(cut_off())
    monkeypatch.setattr(hub, "hf_hub_download", lambda *_: pytest.fail("the download was begun"))
    with pytest.raises(DownloadError):
        hub_file("google/vit", "config.json")


def test_what_is_in_the_cache_is_not_asked_for_twice(fails, monkeypatch, tmp_path):
    fails(cut_off())
    monkeypatch.setattr(hub, "try_to_load_from_cache", lambda *_: str(tmp_path / "config.json"))
    monkeypatch.setattr(hub, "hf_hub_download", lambda *_: str(tmp_path / "config.json"))
    assert hub_file("google/vit", "config.json") == tmp_path / "config.json"


@pytest.mark.parametrize(
    ("error", "kind", "message"),
    [
        (
            of(errors.RepositoryNotFoundError, 401),
            UnknownNameError,
            "There is no model 'a/b' on huggingface.co",
        ),
        (errors.HFValidationError("Repo id must be"), UnknownNameError, "There is no model 'a/b' on"),
        (of(errors.GatedRepoError, 403), DownloadError, "The model 'a/b' is gated: accept its terms"),
        (OSError(28, "No space left on device"), OutputError, "could not be stored: No space left on device"),
    ],
)
def test_other_errors_of_a_download(fails, error, kind, message):
    fails(error)
    with pytest.raises(kind, match=message):
        hub_file("a/b", "config.json")


@pytest.mark.parametrize("error", [ZeroDivisionError("a mistake"), TransferkitError("a sentence")])
def test_what_is_no_error_of_a_download_passes(error):
    with pytest.raises(type(error), match=str(error)), hub_errors("a/b", instead="wait"):
        raise error
