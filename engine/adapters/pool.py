"""The adapters that are in memory, bounded in bytes, and loading them ahead of their requests."""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor
from concurrent.futures import wait as wait_for
from dataclasses import dataclass
from pathlib import Path
from weakref import WeakKeyDictionary, WeakValueDictionary

import torch

from batchmill.engine.errors import AdapterError, RequestError
from batchmill.engine.request.adapter import Adapter
from batchmill.kernels.ops.lora import LoraWeights

from .folder import AdapterFiles, check_unchanged, find_files
from .weights import PlacedModule, Sites, load_weights, place_modules, resident_bytes

_log = logging.getLogger(__name__)
#: Longest wait for an adapter while no request can run. Then the engine looks for new requests.
_WAIT_S = 0.05


@dataclass(frozen=True, slots=True)
class _Source:
    files: AdapterFiles
    modules: list[PlacedModule]


class AdapterPool:
    """Owns the weights of resident adapters.

    An adapter is resident, is being loaded by a thread, or is only on disk. The first two take
    bytes of the bound. Adapters that are used least recently make room for others; those in use
    never do. Call it from the engine's thread.
    """

    def __init__(
        self,
        folder: Path,
        sites: Sites,
        *,
        dtype: torch.dtype,
        device: torch.device,
        max_bytes: int,
        max_rank: int,
    ) -> None:
        """Make an empty pool.

        Args:
            folder: Has every adapter under its digest.
            sites: Where the model takes adapters.
            dtype: Of the model's activations.
            device: Of the model.
            max_bytes: Most memory of all resident adapters.
            max_rank: Largest rank of a module.
        """
        self._folder = folder
        self._sites = sites
        self._dtype = dtype
        self._device = device
        self._max_bytes = max_bytes
        self._max_rank = max_rank
        self._known: WeakValueDictionary[str, Adapter] = WeakValueDictionary()
        self._sources: WeakKeyDictionary[Adapter, _Source] = WeakKeyDictionary()
        # Resident and loading ones, the least recently used first.
        self._held: dict[Adapter, Future[LoraWeights] | None] = {}
        self._num_bytes = 0
        self._num_loads = 0
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="adapters")

    @property
    def resident(self) -> list[str]:
        """Digests of the adapters whose weights are in memory."""
        return [each.digest for each in self._held if each.weights is not None]

    @property
    def num_bytes(self) -> int:
        """Memory of the adapters that are resident or being loaded."""
        return self._num_bytes

    @property
    def num_loads(self) -> int:
        """How often an adapter was loaded."""
        return self._num_loads

    def find(self, digest: str) -> Adapter:
        """Return the adapter with a digest, checked against the model; do not load it yet.

        Its content is compared with the digest each time that it is loaded, by the thread.

        Raises:
            RequestError: `unsupported_parameter` or `invalid_request`: it is not there, is of a
                kind that is not computed, does not suit the model, or is too large.
        """
        known = self._known.get(digest)
        if known is not None and known.problem is None:
            return known
        try:
            source = self._read(digest)
        except AdapterError as error:
            raise RequestError("unsupported_parameter", f"adapter {digest}: {error}") from error
        num_bytes = resident_bytes(source.modules, self._sites, self._dtype)
        if num_bytes > self._max_bytes:
            raise RequestError(
                "unsupported_parameter",
                f"adapter {digest}: it takes {num_bytes} bytes, and lora_bytes is "
                f"{self._max_bytes}: raise it",
            )
        adapter = self._known[digest] = Adapter(digest, num_bytes)
        self._sources[adapter] = source
        return adapter

    def _read(self, digest: str) -> _Source:
        files = find_files(self._folder, digest)
        if files.rank > self._max_rank:
            raise AdapterError(
                f"its rank is {files.rank}, and max_lora_rank is {self._max_rank}: raise it"
            )
        return _Source(files, place_modules(files, self._sites))

    def is_ready(self, adapter: Adapter) -> bool:
        """Return whether an adapter's weights are in memory, or could not be read."""
        loading = self._held.get(adapter)
        if loading is not None and loading.done():
            self._take(adapter, loading)
        return adapter.weights is not None or adapter.problem is not None

    def use(self, adapter: Adapter) -> None:
        """Note that a request with the adapter begins, so that it leaves memory last."""
        self._held[adapter] = self._held.pop(adapter)

    def load_ahead(self, wanted: Iterable[Adapter], kept: Collection[Adapter]) -> None:
        """Begin to load adapters of waiting requests, as far as there is room.

        Args:
            wanted: The adapters of the next requests, the first in rank first.
            kept: Adapters in use, which stay.
        """
        stay = set(kept)
        for adapter in wanted:
            stay.add(adapter)
            if adapter not in self._held and adapter.problem is None:
                if not self._make_room(adapter.num_bytes, stay):
                    return
                self._begin(adapter)

    def wait(self) -> None:
        """Wait a short time until any of the adapters that are being loaded is ready."""
        loading = [each for each in self._held.values() if each is not None]
        wait_for(loading, _WAIT_S, FIRST_COMPLETED)

    def _begin(self, adapter: Adapter) -> None:
        source = self._sources[adapter]
        self._num_bytes += adapter.num_bytes
        self._num_loads += 1
        self._held[adapter] = self._thread.submit(self._load, source)

    def _load(self, source: _Source) -> LoraWeights:
        """Read an adapter's matrices, in the thread."""
        check_unchanged(source.files)
        return load_weights(source.files, source.modules, self._sites, self._dtype, self._device)

    def _take(self, adapter: Adapter, loading: Future[LoraWeights]) -> None:
        """Take the weights that the thread has read, or note why it could not."""
        try:
            adapter.weights = loading.result()
            self._held[adapter] = None
        except Exception as error:
            _log.exception("adapter %s cannot be loaded", adapter.digest)
            why = str(error) if isinstance(error, AdapterError) else type(error).__name__
            adapter.problem = f"adapter {adapter.digest} cannot be loaded: {why}"
            self._drop(adapter)

    def _make_room(self, num_bytes: int, kept: Collection[Adapter]) -> bool:
        """Drop adapters until so many bytes are free; drop none if that is not enough."""
        self._take_loaded()
        excess = self._num_bytes + num_bytes - self._max_bytes
        dropped = []
        for adapter, loading in self._held.items():
            if excess <= 0:
                break
            if adapter not in kept and loading is None:
                dropped.append(adapter)
                excess -= adapter.num_bytes
        if excess > 0:
            return False
        for adapter in dropped:
            self._drop(adapter)
        return True

    def _take_loaded(self) -> None:
        """Take what the thread has read; perhaps no request waits for it any more."""
        for adapter, loading in list(self._held.items()):
            if loading is not None and loading.done():
                self._take(adapter, loading)

    def _drop(self, adapter: Adapter) -> None:
        del self._held[adapter]
        adapter.weights = None
        self._num_bytes -= adapter.num_bytes
