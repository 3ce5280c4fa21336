"""The memory of all ranks' GPUs, so that the KV cache fits on each of them."""

from __future__ import annotations

from batchmill.engine.memory.device_memory import MemoryProbe

from .messages import MeasureMemory, Memory
from .rank_processes import RankProcesses

#: Longest wait for figures: a rank may compute its largest step first.
_TIMEOUT_S = 300.0


class MemoryOfRanks:
    """The least free and the most used memory of any rank; implements `MemoryProbe`."""

    def __init__(self, own: MemoryProbe, processes: RankProcesses) -> None:
        """Take rank 0's memory, and the other ranks to ask."""
        self._own = own
        self._processes = processes

    def total_bytes(self) -> int:
        """See `MemoryProbe`."""
        return min(self._own.total_bytes(), *(each.total_bytes for each in self._ask()))

    def free_bytes(self) -> int:
        """See `MemoryProbe`."""
        return min(self._own.free_bytes(), *(each.free_bytes for each in self._ask()))

    def process_bytes(self) -> int:
        """See `MemoryProbe`."""
        return max(self._own.process_bytes(), *(each.process_bytes for each in self._ask()))

    def reset_peak(self) -> None:
        """See `MemoryProbe`."""
        self._own.reset_peak()
        self._ask(reset=True)

    def peak_growth_bytes(self) -> int:
        """See `MemoryProbe`."""
        return max(self._own.peak_growth_bytes(), *(each.peak_growth_bytes for each in self._ask()))

    def _ask(self, *, reset: bool = False) -> list[Memory]:
        self._processes.send(MeasureMemory(reset))
        return self._processes.memories(_TIMEOUT_S)
