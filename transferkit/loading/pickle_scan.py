"""What the pickles in a file of weights would do, told by reading their operations; nothing is loaded.

``torch.load(weights_only=True)`` runs no foreign code. What it lets through can still waste memory
or time without bound, or end the process: a key that is a tuple in a tuple a million times over
overflows the stack when it is hashed, and a short file can ask for gigabytes. Weights need
few operations and few names, and these are all that is let through here.
"""

from __future__ import annotations

import pickletools
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO, Any

import torch

# Names that torch.save writes for tensors, and for the plain values that stand beside them.
_NEEDED = re.compile(
    r"collections\.(OrderedDict|Counter)"
    r"|builtins\.(set|complex)|_codecs\.encode"
    r"|torch(\.cuda|\.sparse|\.cuda\.sparse|\.storage)?\.\w+(Storage|Tensor)"
    r"|torch\.(Tensor|Size|device|b?float\w*|half|double|u?int\w*|short|long|bool|complex\w*|q\w*int\w*|per_\w+)"
    r"|torch\.nn\.parameter\.Parameter|torch\.serialization\._get_layout"
    # Not the one that moves a tensor to a device that the file names.
    r"|torch\._utils\._rebuild_(?!device_tensor)\w+|torch\._tensor\._rebuild_from_type_v2"
)
_PYTHON_2 = {"__builtin__": "builtins"}

# Of all that a file of weights nests, the deepest is some ten tuples: Python hashes and compares a
# nest by recursion, without a guard.
_DEEPEST = 100
# Copying and hashing may take some times as many steps as the pickle has bytes; a file that says
# "the same once more" again and again takes more than there is time for.
_WORK_PER_BYTE, _WORK = 16, 10**6
_ENDLESS = 2**62
_LONGEST = 2**26  # bytes: the names and shapes of a hundred thousand tensors are half of that


class WastefulPickle(ValueError):
    """A pickle that would take memory or time out of all proportion to its length."""


@dataclass
class _Value:
    """What is known of a value on the stack: how much it holds if nothing were shared, and its depth."""

    size: int = 1
    depth: int = 0

    def take(self, parts: list[_Value]) -> None:
        """Put parts into a container that there is."""
        self.size = _sum(self.size, parts)


def foreign_names(file: IO[bytes], *, pickles: int = 1) -> list[str]:
    """Return what a series of pickles names that is of no use for weights, in the order of the file.

    Args:
        file: Open where the first begins.
        pickles: How many follow one another.

    Raises:
        WastefulPickle: They would take too much memory or time.
    """
    found: dict[str, None] = {}
    for _ in range(pickles):
        try:
            found.update(dict.fromkeys(_names_in_one(file)))
        except WastefulPickle:
            if found:
                break
            raise
        except Exception:  # what follows is no pickle, or a damaged one
            break
    return list(found)


def _names_in_one(file: IO[bytes]) -> Iterator[str]:
    """Yield the foreign names of the pickle with which a file goes on."""
    start, texts = file.tell(), ["", ""]
    reader: _Reader | None = _Reader()
    allowed = _allowed_by_the_user()
    for operation, argument, position in pickletools.genops(file):
        name = operation.name
        if name in ("GLOBAL", "INST"):
            module, _, attribute = str(argument).partition(" ")
            full = f"{_PYTHON_2.get(module, module)}.{attribute}"
            if name == "INST" or not (_NEEDED.fullmatch(full) or full in allowed):
                yield full
        elif name == "STACK_GLOBAL":  # torch.save writes none
            yield ".".join(texts)
        elif name in ("EXT1", "EXT2", "EXT4"):
            yield f"the registered extension {argument}"
        elif isinstance(argument, str):
            texts = [texts[-1], argument]
        try:
            if reader is not None:
                reader.step(name, argument, (position or start) - start)
        except LookupError:  # torch fails here too; what else it names is told all the same
            reader = None


def _allowed_by_the_user() -> set[str]:
    """Return the names that this process has let torch load, with ``add_safe_globals``."""
    allowed = torch.serialization.get_safe_globals()
    return {
        each[1] if isinstance(each, tuple) else f"{each.__module__}.{each.__qualname__}" for each in allowed
    }


class _Reader:
    """Follows a pickle with the sizes of its values in place of the values."""

    def __init__(self) -> None:
        self._stack: list[_Value] = []
        self._marks: list[list[_Value]] = []
        self._memo: dict[int, _Value] = {}
        self._work = 0

    def step(self, operation: str, argument: Any, read: int) -> None:
        """Follow one operation, of those that torch knows.

        Args:
            operation: Its name.
            argument: What it brings along.
            read: How many bytes of the pickle were read.
        """
        stack = self._stack
        match operation:
            case "MARK":
                self._marks.append(stack)
                self._stack = []
            case "TUPLE":
                self._stack, parts = self._marks.pop(), stack
                self._stack.append(_tuple(parts))
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                count = int(operation[-1])
                stack[-count:] = [_tuple(stack[-count:])]
            case "REDUCE" | "NEWOBJ":
                arguments = stack.pop()
                self._work += arguments.size
                stack[-1] = _Value(arguments.size, arguments.depth)
            case "BUILD" | "APPEND":
                part = stack.pop()
                stack[-1].take([part])
            case "SETITEM":
                value, key = stack.pop(), stack.pop()
                self._work += key.size
                stack[-1].take([key, value])
            case "APPENDS" | "SETITEMS":
                self._stack, parts = self._marks.pop(), stack
                if operation == "SETITEMS":
                    self._work += sum(key.size for key in parts[::2])
                self._stack[-1].take(parts)
            case "BINPERSID":
                stack[-1] = _Value()
            case "BINGET" | "LONG_BINGET":
                stack.append(self._memo[argument])
            case "BINPUT" | "LONG_BINPUT":
                self._memo[argument] = stack[-1]
            case "PROTO" | "STOP":
                pass
            case _:
                stack.append(_Value(1 + len(argument) if isinstance(argument, (str, bytes)) else 1))
        if read > _LONGEST or self._work > _WORK + _WORK_PER_BYTE * read:
            raise WastefulPickle("to load it would take too much memory or time")


def _tuple(parts: list[_Value]) -> _Value:
    value = _Value(_sum(1, parts), 1 + max((part.depth for part in parts), default=0))
    if value.depth > _DEEPEST:
        raise WastefulPickle("it is nested too deeply")
    return value


def _sum(size: int, parts: list[_Value]) -> int:
    return min(size + sum(part.size for part in parts), _ENDLESS)
