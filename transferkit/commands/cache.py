"""Show and clear what is kept on disk; imports neither torch nor NumPy."""

from __future__ import annotations

import os
from datetime import datetime
from pathlib import Path
from typing import Any

from transferkit.commands.common import Options, show
from transferkit.errors import OutputError
from transferkit.loading.cache import Entry, cache_limit, cache_root, clear, entries, readable_size


def cache(options: Options) -> None:
    """Show what the cache holds, or remove it."""
    if options.action == "clear":
        _clear(options)
    else:
        _show(options)


def _show(options: Options) -> None:
    root, limit = _root(), cache_limit()
    found = entries(root, options.kind)
    total = sum(entry.nbytes for entry in found)
    head = f"{root}: {readable_size(total)} of {readable_size(limit)}"
    result = {"root": str(root), "limit": limit, "total": total, "entries": [_record(e) for e in found]}
    show(options, "\n".join([head, *_table(found)]), result)


def _clear(options: Options) -> None:
    root = _root()
    before = entries(root, options.kind)
    clear(root, options.kind)
    left = entries(root, options.kind)
    freed = sum(entry.nbytes for entry in before) - sum(entry.nbytes for entry in left)
    lines = [f"{root}: removed {readable_size(freed)}"]
    if left:
        lines += ["in use, or not to be removed:", *_table(left)]
    result = {"root": str(root), "removed": freed, "left": [_record(entry) for entry in left]}
    show(options, "\n".join(lines), result)


def _root() -> Path:
    """Return the folder of the cache, which can be read or is not there yet."""
    root = cache_root()
    try:
        os.scandir(root).close()
    except FileNotFoundError:
        pass
    except OSError as error:
        raise OutputError(
            f"The cache in {root} cannot be read: {error.strerror or error}; "
            "the variable TRANSFERKIT_CACHE can name another place."
        ) from error
    return root


def _record(entry: Entry) -> dict[str, Any]:
    return {
        "kind": entry.kind,
        "description": entry.description,
        "rows": entry.rows,
        "bytes": entry.nbytes,
        "last_used": _time(entry).isoformat(timespec="seconds"),
        "path": str(entry.path),
    }


def _table(found: list[Entry]) -> list[str]:
    if not found:
        return []
    lines = [
        (
            entry.kind,
            f"{entry.description}, {entry.rows:,} rows",
            readable_size(entry.nbytes),
            f"{_time(entry):%Y-%m-%d %H:%M}",
        )
        for entry in found
    ]
    table = [("kind", "what", "size", "last used"), *lines]
    widths = [max(len(line[column]) for line in table) for column in range(4)]
    return [
        f"{kind:{widths[0]}}  {what:{widths[1]}}  {size:>{widths[2]}}  {used}"
        for kind, what, size, used in table
    ]


def _time(entry: Entry) -> datetime:
    """Return when an entry was last used, in local time."""
    return datetime.fromtimestamp(entry.last_used).astimezone()
