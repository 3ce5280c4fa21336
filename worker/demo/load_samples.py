"""The load of an engine, sampled from the heartbeats of its worker."""

from __future__ import annotations

from batchmill.producer.protocol.records import WorkerInfo


class LoadSamples:
    """Collects loads from heartbeats. The mean batch size leaves out those of an idle engine."""

    def __init__(self) -> None:
        self.num_running = 0
        self._batch_sizes: list[int] = []
        self._kv_uses: list[float] = []

    def add(self, worker: WorkerInfo | None) -> None:
        """Record the present state of a worker; None is ignored."""
        if worker is None:
            return
        self.num_running = int(worker.stats.get("running", 0))
        num_blocks = int(worker.stats.get("blocks", 0))
        if self.num_running > 0:
            self._batch_sizes.append(self.num_running)
        if num_blocks > 0:
            self._kv_uses.append(1 - int(worker.stats.get("free_blocks", 0)) / num_blocks)

    @property
    def mean_batch_size(self) -> float | None:
        """Mean number of requests per batch, while there were any."""
        sizes = self._batch_sizes
        return sum(sizes) / len(sizes) if sizes else None

    @property
    def peak_kv_use(self) -> float | None:
        """Largest share of the KV blocks in use."""
        return max(self._kv_uses, default=None)
