"""The messages between rank 0 and another rank, pickled over a socket pair with its own child."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, TypeAlias

from batchmill.engine.config import EngineConfig


class RankSpec(NamedTuple):
    """First message to a new rank: what to load."""

    rank: int
    #: The engine's configuration, with the model's folder and this rank's device.
    config: EngineConfig
    num_threads: int
    #: Size of one half of the step buffer.
    half_bytes: int


class Connect(NamedTuple):
    """All ranks have loaded their shards: connect through the store on this port."""

    port: int


class MakeCache(NamedTuple):
    """Allocate the KV cache, in place of an earlier one."""

    num_blocks: int
    block_size: int
    #: Blocks that fit into the rank's host memory; 0 keeps none there.
    num_host_blocks: int = 0


class ZeroBlocks(NamedTuple):
    """Zero these blocks."""

    block_ids: Sequence[int]


class StoreBlocks(NamedTuple):
    """Copy these blocks into these slots of host memory."""

    block_ids: Sequence[int]
    slots: Sequence[int]


class RestoreBlocks(NamedTuple):
    """Copy these slots of host memory into these blocks."""

    block_ids: Sequence[int]
    slots: Sequence[int]


class Step(NamedTuple):
    """Compute a step; its tensors are in the step buffer, or come by broadcast on a GPU.

    A plain tuple of numbers, because one is sent in every step.
    """

    num_tokens: int
    num_seqs: int
    num_blocks: int
    num_samples: int
    num_states: int
    max_query_len: int
    max_seq_len: int


class MeasureMemory(NamedTuple):
    """Report the memory of this rank's device; with `reset`, start a measurement of its peak."""

    reset: bool


ToRank: TypeAlias = (
    RankSpec | Connect | MakeCache | ZeroBlocks | StoreBlocks | RestoreBlocks | Step | MeasureMemory
)


class Done(NamedTuple):
    """The message before has been handled. Steps, and zeroed or copied blocks, have no reply."""


class Memory(NamedTuple):
    """Figures of a rank's device, see `MemoryProbe`."""

    total_bytes: int
    free_bytes: int
    process_bytes: int
    peak_growth_bytes: int


class RankFailed(NamedTuple):
    """The rank cannot continue; its process ends."""

    message: str
    is_out_of_memory: bool


FromRank: TypeAlias = Done | Memory | RankFailed
