"""The process of a rank that does not sample: loads its shard, then computes rank 0's steps.

Started by `RankProcesses` as `python -m batchmill.engine.parallel.rank PARENT_PID CONNECTION_FD
BUFFER_FD`. It ends when rank 0's process ends, however that happens: the kernel kills it, and its
socket closes.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import sys
from multiprocessing.connection import Connection
from pathlib import Path
from typing import NoReturn, TypeAlias

import torch

from batchmill.engine.errors import EngineError, is_out_of_memory
from batchmill.engine.execution.kv_cache_sizing import kv_cache_torch_dtype
from batchmill.engine.loading.computation import load_shard
from batchmill.engine.loading.load_options import LoadOptions, resolve_device
from batchmill.engine.memory.device_memory import CudaMemory
from batchmill.engine.memory.kv_cache import KVCache
from batchmill.engine.offload.host_blocks import HostBlocks

from .collectives import Collectives
from .messages import (
    Connect,
    Done,
    FromRank,
    MakeCache,
    MeasureMemory,
    Memory,
    RankFailed,
    RankSpec,
    RestoreBlocks,
    Step,
    StoreBlocks,
    ToRank,
    ZeroBlocks,
)
from .rendezvous import join_store
from .step_buffer import StepBuffer

#: From linux/prctl.h.
_PR_SET_PDEATHSIG = 1
#: Longest part of a library's error that a message has.
_MAX_ERROR_CHARS = 400

# Generic for the type checker only.
_Connection: TypeAlias = "Connection[FromRank, ToRank]"


class Rank:
    """One rank's shard, its part of the KV cache, and the loop over rank 0's messages."""

    def __init__(self, spec: RankSpec, connection: _Connection, buffer_fd: int) -> None:
        """Load the shard.

        Raises:
            EngineError: the model or the configuration cannot work.
        """
        config = spec.config
        self._device = resolve_device(config.device)
        self._collectives = Collectives(spec.rank, config.tensor_parallel_size, self._device)
        options = LoadOptions.checked(
            dtype=config.dtype,
            device=config.device,
            quantization=None,
            model_impl=config.model_impl,
            max_model_len=config.max_model_len,
            linear=None,
            ranks=self._collectives,
        )
        self._model = load_shard(Path(config.model), options)
        self._config = config
        self._connection = connection
        self._buffer = StepBuffer(buffer_fd, spec.half_bytes, self._collectives, self._device)
        # Rank 0 measures the memory of its largest step over a cache of one block.
        self._kv_cache = self._make_cache(MakeCache(1, config.block_size))
        self._host_blocks: HostBlocks | None = None
        self._memory = CudaMemory(self._device) if self._device.type == "cuda" else None

    def serve(self) -> None:
        """Handle messages until rank 0 is gone (EOFError, OSError)."""
        self._connection.send(Done())
        while True:
            message = self._connection.recv()
            if isinstance(message, Step):
                self._compute(message)
            elif isinstance(message, ZeroBlocks | StoreBlocks | RestoreBlocks):
                self._change_blocks(message)
            elif isinstance(message, Connect):
                num_ranks = self._collectives.num_ranks
                self._collectives.connect(join_store(message.port, num_ranks))
                self._connection.send(Done())
            elif isinstance(message, MakeCache):
                del self._kv_cache, self._host_blocks  # their memory is needed for the next
                self._kv_cache = self._make_cache(message)
                self._host_blocks = None
                if message.num_host_blocks:
                    self._host_blocks = HostBlocks(self._kv_cache, message.num_host_blocks)
                self._connection.send(Done())
            elif isinstance(message, MeasureMemory):
                self._connection.send(self._measure(message))

    def _compute(self, step: Step) -> None:
        inputs = self._buffer.take(step)
        with torch.inference_mode():
            # Only rank 0 has logits.
            self._model.forward(inputs, self._kv_cache, torch.empty(0, device=self._device))

    def _change_blocks(self, message: ZeroBlocks | StoreBlocks | RestoreBlocks) -> None:
        host_blocks = self._host_blocks
        if isinstance(message, ZeroBlocks):
            self._kv_cache.zero_blocks(message.block_ids)
            if host_blocks is not None:
                host_blocks.wait_for_zeros()
            return
        assert host_blocks is not None, "only ranks with host memory copy blocks"
        if isinstance(message, StoreBlocks):
            host_blocks.store(message.block_ids, message.slots)
        else:
            host_blocks.restore(message.block_ids, message.slots)

    def _make_cache(self, message: MakeCache) -> KVCache:
        shape, model = self._model.config, self._model
        return KVCache(
            num_layers=shape.num_layers,
            num_blocks=message.num_blocks,
            block_size=message.block_size,
            num_kv_heads=shape.num_kv_heads,
            head_dim=shape.head_dim,
            dtype=kv_cache_torch_dtype(self._config.kv_cache_dtype, model.dtype, model.device),
            device=model.device,
        )

    def _measure(self, message: MeasureMemory) -> Memory:
        memory = self._memory
        assert memory is not None, "only the memory of GPUs is measured"
        if message.reset:
            memory.reset_peak()
            peak_bytes = 0
        else:
            peak_bytes = memory.peak_growth_bytes()
        total, free = memory.total_bytes(), memory.free_bytes()
        return Memory(total, free, memory.process_bytes(), peak_bytes)


def main(arguments: list[str]) -> None:
    """Run the process of a rank.

    Args:
        arguments: process id of rank 0, and the descriptors of the connection and the step buffer.
    """
    parent_pid, connection_fd, buffer_fd = map(int, arguments)
    _tie_to(parent_pid)
    connection: _Connection = Connection(connection_fd)
    try:
        spec = connection.recv()
        assert isinstance(spec, RankSpec)
        torch.set_num_threads(spec.num_threads)
        Rank(spec, connection, buffer_fd).serve()
    except (EOFError, ConnectionError):
        _leave(0)  # rank 0 is gone
    except BaseException as error:
        with contextlib.suppress(OSError):
            connection.send(RankFailed(_describe(error), is_out_of_memory(error)))
        _leave(1)


def _tie_to(parent_pid: int) -> None:
    """Let the kernel kill this process when rank 0's ends, even if this one is stopped."""
    # Rank 0 decides when this process ends: a Ctrl-C reaches the whole group.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGQUIT):
        signal.signal(number, signal.SIG_IGN)
    if ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG) failed")
    if os.getppid() != parent_pid:  # it died before the request was made
        _leave(0)


def _describe(error: BaseException) -> str:
    if isinstance(error, EngineError):
        return str(error)
    return f"{type(error).__name__}: {' '.join(str(error).split())[:_MAX_ERROR_CHARS]}"


def _leave(status: int) -> NoReturn:
    """End at once: destructors of the libraries of a GPU may hang, and nothing is to be saved."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


if __name__ == "__main__":
    main(sys.argv[1:])
