"""The paged KV cache: its tensors, and how many blocks fit into a number of bytes."""

from __future__ import annotations

import logging
import resource
from collections.abc import Sequence

import torch
from torch import Tensor

from batchmill.engine.errors import ConfigError
from batchmill.engine.model_shape import ModelShape

from .host_memory import available_memory_bytes
from .host_pages import PageProvider, map_zeros

#: On a CPU, the default cache takes this share of the memory that is left when it is made ...
CPU_MEMORY_SHARE = 0.25
#: ... but no more than this: beyond it a CPU is compute-bound long before the cache is full.
MAX_DEFAULT_CPU_BYTES = 4 * 1024**3

_log = logging.getLogger(__name__)


class KVCache:
    """Owns the keys and values of every layer, as blocks that the block pool hands out by number.

    Invariant: slots that no sequence holds contain finite numbers (they start as zeros), because
    attention may read masked slots of a sequence's last block. After a request failed with NaN,
    call `zero_blocks` on its blocks before they are used again.

    In eight bits (float8_e4m3fn) a number x of the model is stored as x / scale, cut to +-448. The
    scale is 1: keys and values behind norms are far below 448, and what is below 2**-6 keeps an
    absolute precision of 2**-10.

    Attributes:
        layers: Per layer (keys, values), each [num_blocks, block_size, num_kv_heads, head_dim].
        k_scale: What one unit in an eight-bit key stands for.
        v_scale: The same for values.
        num_blocks: Blocks a layer has.
        block_size: Tokens a block holds.

    Source: PagedAttention, Kwon et al. 2023, section 4.
    """

    def __init__(
        self,
        *,
        num_layers: int,
        num_blocks: int,
        block_size: int,
        num_kv_heads: int,
        head_dim: int,
        dtype: torch.dtype,
        device: torch.device | str,
        k_scale: float = 1.0,
        v_scale: float = 1.0,
    ) -> None:
        shape = (num_blocks, block_size, num_kv_heads, head_dim)
        self.layers: list[tuple[Tensor, Tensor]] = [
            (_zeros(shape, dtype, device), _zeros(shape, dtype, device)) for _ in range(num_layers)
        ]
        tensors = [tensor for layer in self.layers for tensor in layer]
        is_on_host = torch.device(device).type == "cpu"
        self._pages = PageProvider(tensors) if is_on_host else None
        self.k_scale = k_scale
        self.v_scale = v_scale
        self.num_blocks = num_blocks
        self.block_size = block_size

    @classmethod
    def allocate(
        cls,
        *,
        num_layers: int,
        num_kv_heads: int,
        head_dim: int,
        dtype: torch.dtype,
        device: torch.device | str,
        block_size: int,
        max_model_len: int,
        kv_cache_bytes: int,
    ) -> KVCache:
        """Allocate as many blocks as fit into `kv_cache_bytes`.

        Args:
            num_layers: Layers with attention.
            num_kv_heads: Key/value heads of a layer.
            head_dim: Numbers in one head's key.
            dtype: The model's dtype, or float8_e4m3fn on a GPU.
            device: The model's device.
            block_size: Tokens a block holds.
            max_model_len: Most tokens a request may have; the cache must hold at least one such.
            kv_cache_bytes: Size of the whole cache.

        Raises:
            ConfigError: not even one request of `max_model_len` tokens fits, or the system maps no
                such memory, as under a limit on address space.
        """
        block_bytes = 2 * num_layers * block_size * num_kv_heads * head_dim * dtype.itemsize
        num_blocks = kv_cache_bytes // block_bytes
        least = -(-max_model_len // block_size)
        if num_blocks < least:
            raise ConfigError(
                f"kv_cache_bytes is {kv_cache_bytes}, which holds {num_blocks} blocks of "
                f"{block_size} tokens; max_model_len {max_model_len} needs {least} blocks: raise "
                f"kv_cache_bytes to at least {least * block_bytes} or lower max_model_len"
            )
        try:
            kv_cache = cls(
                num_layers=num_layers,
                num_blocks=num_blocks,
                block_size=block_size,
                num_kv_heads=num_kv_heads,
                head_dim=head_dim,
                dtype=dtype,
                device=device,
            )
        except OSError as error:
            raise _cannot_map(kv_cache_bytes, error) from error
        kv_cache._log_size()
        return kv_cache

    @property
    def num_tokens(self) -> int:
        """Tokens that the whole cache holds."""
        return self.num_blocks * self.block_size

    @property
    def num_bytes(self) -> int:
        """Bytes of all layers' keys and values."""
        return sum(tensor.nbytes for layer in self.layers for tensor in layer)

    def provide_pages(self, timeout_s: float, *, num_threads: int = 1) -> bool:
        """Have the system provide memory that it only promised; see `PageProvider.provide`.

        Returns:
            Whether there is nothing left to provide.
        """
        if self._pages is None:
            return True
        self._pages.provide(timeout_s, num_threads=num_threads)
        return self._pages.is_done

    def zero_blocks(self, block_ids: Sequence[int]) -> None:
        """Overwrite blocks with zeros, so that a failed request's NaN reaches nobody else."""
        if not block_ids:
            return
        device = self.layers[0][0].device
        index = torch.tensor(list(block_ids), dtype=torch.int64, device=device)
        for keys, values in self.layers:
            # As bytes: torch's CPU cannot fill eight-bit floats.
            keys.view(torch.uint8).index_fill_(0, index, 0)
            values.view(torch.uint8).index_fill_(0, index, 0)

    def _log_size(self) -> None:
        _log.info(
            "KV cache: %d blocks of %d tokens, %d tokens in %.2f GiB on %s",
            self.num_blocks,
            self.block_size,
            self.num_tokens,
            self.num_bytes / 1024**3,
            self.layers[0][0].device,
        )


def kv_block_bytes(config: ModelShape, dtype: torch.dtype, block_size: int) -> int:
    """Bytes of one block: keys and values of all layers."""
    numbers = config.num_layers * config.num_kv_heads * config.head_dim * block_size
    return 2 * numbers * dtype.itemsize


def default_cpu_kv_cache_bytes() -> int:
    """How large the cache is on a CPU when nobody says: a share of the memory that is free now."""
    return min(int(available_memory_bytes() * CPU_MEMORY_SHARE), MAX_DEFAULT_CPU_BYTES)


def _cannot_map(kv_cache_bytes: int, error: OSError) -> ConfigError:
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    told = "none" if limit == resource.RLIM_INFINITY else f"{limit} bytes"
    return ConfigError(
        f"kv_cache_bytes is {kv_cache_bytes}, which the system does not map ({error.strerror}); "
        f"the limit on this process's address space is {told}: lower kv_cache_bytes, or raise the "
        "limit (ulimit -v)"
    )


def _zeros(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device | str) -> Tensor:
    if torch.device(device).type == "cpu":
        return map_zeros(shape, dtype)
    return torch.zeros(shape, dtype=dtype, device=device)
