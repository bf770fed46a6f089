"""Freed memory is kept for the next batch while it is asked for, and given back afterwards."""

from __future__ import annotations

import resource
import threading
from pathlib import Path

import pytest
import torch

from transferkit import kept_memory
from transferkit.kept_memory import freed_memory_kept
from transferkit.runtime import Execution

KEPT = {"mmap_max": 0, "trim_threshold": -1}
USUAL = {"mmap_max": 65536, "mmap_threshold": 2**25, "trim_threshold": 2**26}
NAMES = {-1: "trim_threshold", -3: "mmap_threshold", -4: "mmap_max"}

on_glibc = pytest.mark.skipif(kept_memory._glibc() is None, reason="memory is not managed by glibc alone")


class Library:
    """Notes what it is told, in the place of the C library."""

    def __init__(self):
        self.settings, self.trims = {}, 0

    def mallopt(self, parameter, value):
        self.settings[NAMES[parameter]] = value
        return 1

    def malloc_trim(self, pad):
        self.trims += 1
        return 1


@pytest.fixture
def library(monkeypatch):
    made = Library()
    monkeypatch.setattr(kept_memory, "_glibc", lambda: made)
    return made


def page_faults(count=5, *, megabytes=64):
    """Return how often the system had to provide a page while tensors came and went."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(count):
        torch.ones(megabytes * 2**18)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


@on_glibc
def test_tensors_that_come_and_go_take_the_same_pages():
    outside = page_faults()
    with freed_memory_kept():
        # At first the heap may have no room of that size in one piece.
        inside = min(page_faults() for _ in range(4))
    assert outside > 5 * 64 * 2**20 / resource.getpagesize() / 600  # pages may be huge ones
    assert inside < outside / 10


@on_glibc
def test_memory_goes_back_at_the_end(monkeypatch):
    monkeypatch.setattr(kept_memory, "_LONG", 0.0)

    def resident():
        return int(Path("/proc/self/statm").read_text(encoding="utf-8").split()[1]) * resource.getpagesize()

    before = resident()
    with freed_memory_kept():
        torch.ones(2**27)  # 512 MiB
        assert resident() > before + 400 * 2**20
    assert resident() < before + 100 * 2**20


def test_it_lasts_until_the_last_user_is_done(library):
    with freed_memory_kept():
        assert library.settings == KEPT
        with freed_memory_kept():
            pass
        assert library.settings == KEPT
    assert library.settings == KEPT | USUAL


def test_threads_share_it(library):
    entered, leave = threading.Event(), threading.Event()

    def use():
        with freed_memory_kept():
            entered.set()
            leave.wait(10)

    thread = threading.Thread(target=use)
    thread.start()
    assert entered.wait(10)
    with freed_memory_kept():
        pass
    assert library.settings == KEPT
    leave.set()
    thread.join()
    assert library.settings == KEPT | USUAL


def test_an_error_ends_it(library):
    with pytest.raises(RuntimeError, match="mine"), freed_memory_kept():
        raise RuntimeError("mine")
    assert library.settings == KEPT | USUAL


def test_memory_is_given_back_at_once_only_where_there_may_be_much(library, monkeypatch):
    with freed_memory_kept():
        pass
    assert library.trims == 0
    monkeypatch.setattr(kept_memory, "_LONG", 0.0)
    with freed_memory_kept(), freed_memory_kept():
        pass
    assert library.trims == 1


@pytest.mark.parametrize("name", ["MALLOC_ARENA_MAX", "GLIBC_TUNABLES"])
def test_what_the_environment_says_of_memory_is_left_alone(name, monkeypatch):
    monkeypatch.setenv(name, "2")
    assert kept_memory._glibc.__wrapped__() is None


def test_whatever_runs_on_the_cpu_keeps_memory(library):
    with Execution("cpu", "fp32", channels_last=False).arithmetic():
        assert library.settings == KEPT
    assert library.settings == KEPT | USUAL
