"""Trace a module with torch.fx while other threads go on using modules."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from torch import fx, nn

# Two tracings at once would each take the other's replacements for what was there before.
_LOCK = threading.RLock()


class ThreadTracer(fx.Tracer):
    """Records what its own thread does, and lets all other threads through.

    While it traces, torch.fx replaces ``nn.Module.__call__`` and ``nn.Module.__getattr__`` for the
    whole process. Only one such tracer works at a time; others wait.

    >>> graph = ThreadTracer().trace(nn.Sequential(nn.Linear(2, 2), nn.ReLU()))
    >>> [str(node.target) for node in graph.nodes]
    ['input', '0', '1', 'output']
    """

    _thread: int | None = None

    def trace(
        self, root: nn.Module | Callable[..., Any], concrete_args: dict[str, Any] | None = None
    ) -> fx.Graph:
        """Return the graph of what a module does; see ``fx.Tracer.trace``."""
        with _LOCK:
            self._thread = threading.get_ident()
            try:
                return super().trace(root, concrete_args)
            finally:
                # A replacement that someone else's tracing has put back finds nothing to record.
                self._thread = None

    def traces_here(self) -> bool:
        """Whether the thread that asks is the one that traces."""
        return self._thread == threading.get_ident()

    def call_module(
        self, m: nn.Module, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """Record a call, or make it where another thread does."""
        if not self.traces_here():
            return forward(*args, **kwargs)
        return super().call_module(m, forward, args, kwargs)

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, fx.Proxy]) -> Any:
        """Record the use of a weight, or give the weight itself where another thread asks."""
        if not self.traces_here():
            return attr_val
        return super().getattr(attr, attr_val, parameter_proxy_cache)
