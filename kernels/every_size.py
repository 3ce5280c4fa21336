"""Warming up: within `launching_every_size()`, an op launches its kernels for steps of every size.

Some ops choose a kernel, or its tiles, by the number of rows. Each choice is compiled at its first
launch, which takes seconds, and no request should wait for that.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

_is_every_size = ContextVar("_is_every_size", default=False)


@contextmanager
def launching_every_size() -> Iterator[None]:
    """Let ops launch all kernels between which they choose by size, one after another."""
    token = _is_every_size.set(True)
    try:
        yield
    finally:
        _is_every_size.reset(token)


def launches_every_size() -> bool:
    """Return whether an op must launch all of its kernels, not only that of this size."""
    return _is_every_size.get()
