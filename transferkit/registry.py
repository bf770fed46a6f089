"""Names to factories: how backbones, data sets, augmentations and recipes are found."""

from __future__ import annotations

import difflib
import importlib
import re
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Generic, TypeVar

from transferkit.errors import ArgumentError, UnknownNameError

F = TypeVar("F", bound=Callable[..., object])


def shown(value: object) -> str:
    """Return the ``repr`` of a value as a sentence can hold it: in one line, and cut where it is long.

    >>> shown("a" * 1000) == f"'{'a' * 199}…"
    True
    """
    text = re.sub(r"\s*\n\s*", " ", repr(value))
    return text if len(text) <= 200 else f"{text[:200]}…"


def nearest(name: str, names: Iterable[str]) -> str:
    """Return a sentence that suggests the name meant, or lists what there is.

    >>> nearest("resnet81", ["resnet18", "vgg16"])
    "Did you mean 'resnet18'?"
    >>> nearest("zebra", ["resnet18", "vgg16"])
    'There are: resnet18, vgg16.'
    """
    known = sorted(names)
    if not known:
        return "There is none yet."
    close = difflib.get_close_matches(name, known, n=3, cutoff=0.6)
    if close:
        return f"Did you mean {' or '.join(repr(match) for match in close)}?"
    if len(known) <= 20:
        return f"There are: {', '.join(known)}."
    return f"There are {len(known)} names, from {known[0]!r} to {known[-1]!r}."


class Registry(Mapping[str, F], Generic[F]):
    """Read-only mapping of names to factories; ``register`` is the only way in.

    Args:
        kind: What its entries are called in messages.
        sources: Modules that register entries; they are imported on the first use.

    >>> greetings = Registry("greeting")
    >>> @greetings.register("hello")
    ... def hello() -> str:
    ...     return "hello"
    >>> greetings["hello"]()
    'hello'
    >>> greetings["helo"]
    Traceback (most recent call last):
    ...
    transferkit.errors.UnknownNameError: There is no greeting 'helo'. Did you mean 'hello'?
    """

    def __init__(self, kind: str, sources: tuple[str, ...] = ()) -> None:
        self._kind = kind
        self._sources = sources
        self._factories: dict[str, F] = {}
        self._loaded = False
        self._loading = threading.RLock()

    def _load(self) -> None:
        # Another thread waits here until all is there; this one comes back while it imports.
        with self._loading:
            if self._loaded:
                return
            self._loaded = True
            try:
                for source in self._sources:
                    importlib.import_module(source)
            except BaseException:
                self._loaded = False  # half a registry would say "there is no ..." from now on
                raise

    def register(self, name: str) -> Callable[[F], F]:
        """Decorate a factory.

        Raises:
            ArgumentError: ``name`` is taken or empty, or what is decorated cannot be called.
        """
        if not isinstance(name, str) or not name:
            raise ArgumentError(
                f"The name of a {self._kind} must be a non-empty string. Got {shown(name)} instead."
            )

        self._load()

        def add(factory: F) -> F:
            if not callable(factory):
                raise ArgumentError(
                    f"The {self._kind} {name!r} must be registered with a function. "
                    f"Got {shown(factory)} instead."
                )
            if name in self._factories:
                raise ArgumentError(f"The {self._kind} {name!r} is already registered; choose another name.")
            self._factories[name] = factory
            return factory

        return add

    def __getitem__(self, name: str) -> F:
        self._load()
        try:
            return self._factories[name]
        except (KeyError, TypeError):
            raise UnknownNameError(
                f"There is no {self._kind} {shown(name)}. {nearest(str(name), self._factories)}"
            ) from None

    def __contains__(self, name: object) -> bool:
        self._load()
        return isinstance(name, str) and name in self._factories

    def __iter__(self) -> Iterator[str]:
        self._load()
        return iter(self._factories)

    def __len__(self) -> int:
        self._load()
        return len(self._factories)
