"""What `torch.cuda` is to the recorder of graphs, where there is no GPU: it notes the calls."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch


class Stream:
    """A stream by identity."""

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
    """Stands in for streams and graphs, and says under what each call of the work ran.

    Attributes:
        default: The stream that is current outside.
        calls: (stream, pool or None outside a capture, whether garbage was collected) of each call.
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
        """What is recorded."""
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
