"""A stand-in for the parts of `torch.cuda` that record graphs; it records the calls instead."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch


class Stream:
    """A stream that records which streams it waited for."""

    def __init__(self) -> None:
        self.waited_for: list[Any] = []

    def wait_stream(self, other: Any) -> None:
        self.waited_for.append(other)


class Graph:
    """A graph that counts its replays."""

    def __init__(self) -> None:
        self.num_replays = 0

    def replay(self) -> None:
        self.num_replays += 1


class CudaStandIn:
    """Replaces streams and graphs, and records the context of each call of the work.

    Attributes:
        default: The current stream outside of `torch.cuda.stream`.
        calls: Per call: stream, pool (None outside a capture), whether garbage collection was on.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.default = Stream()
        self.calls: list[tuple[Stream, object, bool]] = []
        self._stream: Stream = self.default
        self._pool: object = None
        for name, value in (
            ("Stream", Stream),
            ("CUDAGraph", Graph),
            ("stream", self._on),
            ("graph", self._capture),
            ("current_stream", lambda: self._stream),
            ("graph_pool_handle", object),
        ):
            monkeypatch.setattr(torch.cuda, name, value)

    def work(self) -> None:
        """Record the context of this call."""
        self.calls.append((self._stream, self._pool, gc.isenabled()))

    @contextmanager
    def _on(self, stream: Stream) -> Iterator[None]:
        before, self._stream = self._stream, stream
        try:
            yield
        finally:
            self._stream = before

    @contextmanager
    def _capture(self, graph: Graph, *, pool: object, stream: Stream) -> Iterator[None]:
        self._pool = pool
        try:
            with self._on(stream):
                yield
        finally:
            self._pool = None
