"""The thread that makes items ahead ends whenever its consumer does."""

from __future__ import annotations

import threading

import pytest

from transferkit.errors import ImageDecodeError
from transferkit.loading.prefetch import prefetched


def running():
    return [thread for thread in threading.enumerate() if thread.name == "prefetch"]


@pytest.fixture(autouse=True)
def no_thread_is_left():
    assert running() == []
    yield
    assert running() == []


@pytest.mark.parametrize("count", [0, 1, 2, 7])
def test_all_items_come_in_order(count):
    assert list(prefetched(range(count))) == list(range(count))


@pytest.mark.parametrize("ahead", [2, 3, 5])
def test_it_keeps_ahead_and_no_further(ahead):
    asked = 1
    lead = []
    far = threading.Event()

    def items():
        for made in range(1, 21):
            lead.append(made - asked)
            if made == ahead + 1:
                far.set()
            yield made

    iterator = prefetched(items(), ahead=ahead)
    for expected in range(1, 21):
        assert next(iterator) == expected
        if expected == 1:
            # Nothing more was asked for, and yet so many are made.
            assert far.wait(30)
        asked += 1
    assert list(iterator) == []
    assert max(lead) <= ahead


def test_items_are_made_in_another_thread():
    makers = list(prefetched(threading.get_ident() for _ in range(3)))
    assert set(makers) != {threading.get_ident()}
    assert len(set(makers)) == 1


def test_an_error_arrives_at_its_place_with_its_type():
    def items():
        yield 1
        yield 2
        raise ImageDecodeError("The image 'x.jpg' cannot be decoded: it is empty.")

    iterator = prefetched(items())
    assert [next(iterator), next(iterator)] == [1, 2]
    with pytest.raises(ImageDecodeError, match=r"x\.jpg"):
        next(iterator)


class Endless:
    """Items without end, which say when nobody makes them any more."""

    def __init__(self):
        self.closed = threading.Event()

    def __iter__(self):
        try:
            number = 0
            while True:
                yield number
                number += 1
        finally:
            self.closed.set()


def test_the_thread_ends_when_the_consumer_stops():
    items = Endless()
    for item in prefetched(items):
        if item == 3:
            break
    assert running() == []
    assert items.closed.wait(30)


def test_the_thread_ends_when_the_consumer_raises():
    def consume(iterator):
        for item in iterator:
            if item == 2:
                raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match="out of memory"):
        consume(prefetched(Endless()))


def test_the_thread_ends_when_the_iterator_is_closed_or_dropped():
    iterator = prefetched(Endless())
    next(iterator)
    assert len(running()) == 1
    iterator.close()
    assert running() == []
    iterator = prefetched(Endless())
    next(iterator)
    del iterator
    assert running() == []


def test_nothing_runs_before_the_first_item_is_asked_for():
    iterator = prefetched(Endless())
    assert running() == []
    del iterator
