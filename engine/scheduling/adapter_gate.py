"""Admits a request with a LoRA adapter only while the adapter is in memory."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from typing import Protocol

from batchmill.engine.request.adapter import Adapter
from batchmill.engine.request.request import Request

from .waiting_queue import WaitingQueue


class AdapterResidence(Protocol):
    """Which adapters are in memory; `AdapterPool` describes the methods."""

    def is_ready(self, adapter: Adapter) -> bool:
        """Return whether an adapter is in memory."""

    def use(self, adapter: Adapter) -> None:
        """Note that a request with an adapter begins."""

    def load_ahead(self, wanted: Iterable[Adapter], kept: Collection[Adapter]) -> None:
        """Begin to load adapters, as far as there is room beside those to keep."""

    def wait(self) -> None:
        """Wait a short time until any adapter that is being loaded is ready."""


class AdapterGate:
    """Knows the adapters that requests run with, and lets those of waiting requests be loaded.

    Adapters of running requests stay in memory. Those of the next waiting requests are loaded while
    others run; the step does not wait for them. Until an adapter is ready, later requests may
    overtake its requests, as often as `WaitingQueue` allows. Then no more are admitted, running
    requests end, and their adapters make room: so none starves, however many adapters there are.
    """

    def __init__(self, residence: AdapterResidence | None = None) -> None:
        """Make a gate; without a residence no request may have an adapter."""
        self._residence = residence
        #: Unfinished requests with an adapter. While it is 0, steps cost nothing more.
        self.num_requests = 0
        self._used: set[Adapter] = set()

    @property
    def is_used(self) -> bool:
        """Whether any unfinished request has an adapter."""
        return self.num_requests > 0

    def add(self, request: Request) -> None:
        """Count a new request."""
        self.num_requests += request.adapter is not None

    def remove(self, request: Request) -> None:
        """Forget a request that has ended."""
        self.num_requests -= request.adapter is not None

    def prepare(self, running: Sequence[Request], waiting: WaitingQueue) -> None:
        """Let adapters of waiting requests be loaded; wait a little if no request can run."""
        if self._residence is None or not self.is_used:
            return
        self._used = {each.adapter for each in running if each.adapter is not None}
        wanted = [each.adapter for each in waiting.window() if each.adapter is not None]
        self._residence.load_ahead(wanted, self._used)
        if not running and waiting and waiting.next_after(None, _no_hashes, self.is_ready) is None:
            self._residence.wait()

    def is_ready(self, request: Request) -> bool:
        """Return whether a request's adapter is in memory, or it has none."""
        adapter = request.adapter
        if adapter is None or self._residence is None:
            return adapter is None
        return self._residence.is_ready(adapter) and adapter.problem is None

    def admit(self, request: Request) -> bool:
        """Keep the adapter of a request that begins to run; return False if it is not ready."""
        if not self.is_ready(request):
            return False
        if request.adapter is not None and self._residence is not None:
            self._used.add(request.adapter)
            self._residence.use(request.adapter)
        return True

    def holds_back(self, waiting: WaitingQueue) -> bool:
        """Return whether any of the next waiting requests waits for its adapter."""
        return self.is_used and not all(map(self.is_ready, waiting.window()))

    def failed(self, waiting: WaitingQueue) -> list[Request]:
        """Return the next waiting requests whose adapter could not be loaded."""
        if not self.is_used:
            return []
        return [each for each in waiting.window() if each.adapter and each.adapter.problem]


def _no_hashes(request: Request) -> Sequence[bytes]:
    """Return no hashes: prefixes are not compared."""
    return ()
