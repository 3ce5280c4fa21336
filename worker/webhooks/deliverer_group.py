"""The deliverers of all shards in one process, as one: each sends the events of its shard."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from .deliverer import Deliverer


class DelivererGroup:
    """Runs a deliverer per shard in one event loop. They share the sender and the process."""

    def __init__(self, deliverers: Sequence[Deliverer]) -> None:
        """Take the deliverers, at least one; nothing is sent before `run`."""
        self._deliverers = deliverers

    @property
    def broker_silent_s(self) -> float:
        """Seconds for which the broker that has been silent longest has not replied."""
        return max(each.broker_silent_s for each in self._deliverers)

    @property
    def num_in_flight(self) -> int:
        """Deliveries in flight."""
        return sum(each.num_in_flight for each in self._deliverers)

    @property
    def is_stopping(self) -> bool:
        """Whether `stop` was called."""
        return all(each.is_stopping for each in self._deliverers)

    async def run(self) -> None:
        """Deliver until `stop` is called; then finish the attempts in flight."""
        await asyncio.gather(*(each.run() for each in self._deliverers))

    def stop(self) -> None:
        """Ask `run` to end, from the same event loop."""
        for each in self._deliverers:
            each.stop()
