"""A step's tensors on their way from rank 0 to the others, packed one after another."""

from __future__ import annotations

import mmap
import os

import torch
from torch import Tensor

from batchmill.engine.config import EngineConfig
from batchmill.engine.errors import EngineError
from batchmill.engine.step.step_inputs import StepInputs

from .collectives import Collectives
from .messages import Step


def largest_step_bytes(config: EngineConfig) -> int:
    """Return the bytes of the largest step: each of its tokens may be a sequence of its own.

    Memory is taken only for what is written.
    """
    most = config.max_num_batched_tokens
    num_blocks = -(-config.max_model_len // config.block_size)
    num_bytes = most * (4 * 8 + 4 * num_blocks + 2 * 4) + 4
    return -(-num_bytes // mmap.PAGESIZE) * mmap.PAGESIZE


class StepBuffer:
    """Carries steps between ranks on one host.

    On a CPU it is shared memory in two halves, which steps use in turn: rank 0 writes one half
    while a slower rank still reads the other. Rank 0 cannot be two steps ahead, because each step
    adds up embeddings of all ranks. The memory has no name, so that engines cannot collide and
    nothing is left of one that was killed.

    On a GPU the tensors are packed into one on the device, and rank 0 broadcasts it: reading them
    on the host would wait for the step before.
    """

    def __init__(
        self, fd: int, half_bytes: int, collectives: Collectives, device: torch.device
    ) -> None:
        """Map the memory behind a descriptor, which the caller keeps."""
        self._memory = torch.frombuffer(mmap.mmap(fd, 2 * half_bytes), dtype=torch.uint8)
        self._half_bytes = half_bytes
        self._collectives = collectives
        self._device = device
        self._half = 0

    @staticmethod
    def create_file(half_bytes: int) -> int:
        """Return the descriptor of new memory for rank 0 and its children."""
        fd = os.memfd_create("batchmill-steps")
        os.ftruncate(fd, 2 * half_bytes)
        return fd

    def put(self, inputs: StepInputs) -> Step:
        """Write a step on rank 0; on a GPU call `publish` once the message is sent.

        Raises:
            EngineError: it is larger than the configuration that the ranks were started with.
        """
        parts = [part.contiguous().view(-1).view(torch.uint8) for part in _tensors(inputs)]
        self._packed = torch.cat(parts)
        if self._device.type == "cpu":
            if len(self._packed) > self._half_bytes:
                raise EngineError(
                    f"a step takes {len(self._packed)} bytes, and the ranks were started with "
                    f"{self._half_bytes}: start the engine with its own limits"
                )
            self._next_half()[: len(self._packed)] = self._packed
        return Step(
            num_tokens=len(inputs.input_ids),
            num_seqs=len(inputs.seq_lens),
            num_blocks=inputs.block_tables.shape[1],
            num_samples=len(inputs.sample_rows),
            num_states=inputs.num_states,
            max_query_len=inputs.max_query_len,
            max_seq_len=inputs.max_seq_len,
        )

    def publish(self) -> None:
        """Send the step that was put to the other ranks, unless shared memory has it."""
        if self._device.type != "cpu":
            self._collectives.broadcast(self._packed)

    def take(self, step: Step) -> StepInputs:
        """Read a step on another rank; on a CPU it is valid until the step after the next."""
        shapes = _shapes(step)
        sizes = [dtype.itemsize * _count(shape) for shape, dtype in shapes]
        if self._device.type == "cpu":
            packed = self._next_half()[: sum(sizes)]
        else:
            packed = torch.empty(sum(sizes), dtype=torch.uint8, device=self._device)
            self._collectives.broadcast(packed)
        ids, positions, slots, rows, tables, starts, lengths = (
            part.view(dtype).view(shape)
            for part, (shape, dtype) in zip(packed.split(sizes), shapes, strict=True)
        )
        return StepInputs(
            input_ids=ids,
            positions=positions,
            slot_mapping=slots,
            sample_rows=rows,
            block_tables=tables,
            cu_seqlens_q=starts,
            seq_lens=lengths,
            max_query_len=step.max_query_len,
            max_seq_len=step.max_seq_len,
            num_states=step.num_states,
        )

    def _next_half(self) -> Tensor:
        start = self._half * self._half_bytes
        self._half = 1 - self._half
        return self._memory[start : start + self._half_bytes]


def _tensors(inputs: StepInputs) -> list[Tensor]:
    """Return a step's tensors; those of 8 bytes come first, so that all are aligned."""
    return [
        *(inputs.input_ids, inputs.positions, inputs.slot_mapping, inputs.sample_rows),
        *(inputs.block_tables, inputs.cu_seqlens_q, inputs.seq_lens),
    ]


def _shapes(step: Step) -> list[tuple[tuple[int, ...], torch.dtype]]:
    """Return shapes and dtypes of `_tensors`."""
    num_tokens, num_seqs = (step.num_tokens,), (step.num_seqs,)
    return [
        *((shape, torch.int64) for shape in (*[num_tokens] * 3, (step.num_samples,))),
        ((step.num_seqs, step.num_blocks), torch.int32),
        ((step.num_seqs + 1,), torch.int32),
        (num_seqs, torch.int32),
    ]


def _count(shape: tuple[int, ...]) -> int:
    return torch.Size(shape).numel()
