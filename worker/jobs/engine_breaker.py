"""Decides whether the engine's deaths are the worker's fault, not its jobs'."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

#: Jobs that would have to be at fault, each on its own, before the worker counts as at fault.
MAX_GUILTY_JOBS: Final = 5
#: Tokens of one engine that show that it works, although no job has finished.
_PROGRESS_TOKENS: Final = 512
#: Deaths that are remembered; those with the most jobs say the least and are forgotten first.
_MAX_DEATHS: Final = 64


class EngineBreaker:
    """Counts deaths of the engine that no single job explains, while no job makes progress.

    A job that ends engines is in every death that it causes, and it dies alone in the end. So if
    different jobs die one after another and none gets anywhere, the device, its driver or the
    memory of this machine is at fault, and the jobs would run elsewhere.

    Not thread-safe: the thread of the engine link calls it.
    """

    def __init__(self) -> None:
        #: The jobs of each death, the smallest first.
        self._deaths: list[frozenset[str]] = []
        self._num_tokens = 0

    def note_finished(self) -> None:
        """Note that a job finished: the engine works."""
        self._deaths.clear()

    def note_tokens(self, num_tokens: int) -> None:
        """Note that the engine computed tokens."""
        self._num_tokens += num_tokens
        if self._num_tokens >= _PROGRESS_TOKENS:
            self._deaths.clear()

    def note_death(self, job_ids: Iterable[str]) -> str | None:
        """Note that the engine died while it ran jobs.

        Returns:
            Why the worker must end, for people; None if jobs may be at fault.
        """
        self._num_tokens = 0
        died = frozenset(job_ids)
        if not died:
            return None
        self._deaths = sorted([*self._deaths, died], key=len)[:_MAX_DEATHS]
        if self._num_guilty() < MAX_GUILTY_JOBS:
            return None
        return (
            f"the engine died with {MAX_GUILTY_JOBS} different jobs, and no job made progress in "
            "between: this machine is at fault, not the jobs. They are given back. Check its "
            "device, driver and memory (`batchmill doctor`) before the worker is started again"
        )

    def _num_guilty(self) -> int:
        """Return how many jobs it takes at least to explain the deaths: deaths that share none."""
        explained: set[str] = set()
        num = 0
        for died in self._deaths:
            if not died & explained:
                explained |= died
                num += 1
        return num
