"""Recorders: work on tensors at fixed addresses, recorded once and replayed."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol

import torch

from batchmill.engine.errors import EngineError

#: Runs before a capture, in which kernels are compiled and libraries choose their algorithms.
NUM_WARM_UPS = 2


class Recorder(Protocol):
    """Records work on tensors with fixed addresses, so that it can be replayed."""

    def record(self, work: Callable[[], None]) -> Callable[[], None]:
        """Run the work, and return a function that runs it again on the same memory."""


class PlainRecorder:
    """Replays the work by calling it: works on any device, and saves nothing."""

    def record(self, work: Callable[[], None]) -> Callable[[], None]:
        """See `Recorder.record`."""
        return work


class CudaGraphRecorder:
    """Captures the work in a CUDA graph; all graphs of a recorder share one memory pool.

    They also share one stream, used for warm-up and capture only: cuBLAS keeps a workspace (32 MiB
    on sm_90) per stream, and some versions of torch free it with any graph that was captured on
    that stream, while other graphs still use it.

    Source: PyTorch, "CUDA Graphs", sections on whole-network capture and on sharing memory; its
    issue 193402 for the workspace.
    """

    def __init__(self) -> None:
        gc.collect()  # frees the graphs and buffers of an engine that was dropped
        self._pool = torch.cuda.graph_pool_handle()
        self._stream = torch.cuda.Stream()

    def record(self, work: Callable[[], None]) -> Callable[[], None]:
        """See `Recorder.record`.

        Raises:
            EngineError: the work cannot be captured.
        """
        self._stream.wait_stream(torch.cuda.current_stream())
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.stream(self._stream):
                for _ in range(NUM_WARM_UPS):
                    work()
            torch.cuda.current_stream().wait_stream(self._stream)
            with (
                _no_garbage_collection(),
                torch.cuda.graph(graph, pool=self._pool, stream=self._stream),
            ):
                work()
        except RuntimeError as error:
            raise EngineError(
                f"a decode step cannot be captured in a CUDA graph ({type(error).__name__}: "
                f"{error}): set decode_graphs=False (BATCHMILL_DECODE_GRAPHS=off) to run steps "
                "kernel by kernel"
            ) from error
        replay: Callable[[], None] = graph.replay
        return replay


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    """Pause garbage collection: it may call the driver, which a capture does not allow."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def recorder_for(device: torch.device) -> Recorder:
    """Return a recorder for a device: CUDA graphs on a GPU, and plain calls elsewhere."""
    return CudaGraphRecorder() if device.type == "cuda" else PlainRecorder()


def reserved_gib(device: torch.device) -> float:
    """Return the GPU memory that this process has reserved, in GiB; 0 without a GPU."""
    return torch.cuda.memory_reserved(device) / 1024**3 if device.type == "cuda" else 0.0
