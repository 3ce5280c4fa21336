"""The paged KV cache: its tensors, and how many blocks fit into a number of bytes."""

from __future__ import annotations

import logging
import resource
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from batchmill.engine.errors import ConfigError
from batchmill.engine.model_shape import ModelShape

from .host_memory import available_memory_bytes
from .prefaulted_pages import PrefaultedPages, map_zeros

#: On a CPU, the default cache takes this share of the memory that is available at its creation ...
CPU_MEMORY_SHARE = 0.25
#: ... but no more than this: beyond it a CPU is compute-bound long before the cache is full.
MAX_DEFAULT_CPU_BYTES = 4 * 1024**3

_log = logging.getLogger(__name__)


class KVCache:
    """Owns the keys and values of every layer, as blocks that the block pool hands out by number.

    Invariant: slots that no sequence holds contain finite numbers (they start as zeros), because
    attention may read masked slots of a sequence's last block. After a request failed with NaN,
    call `zero_blocks` on its blocks before they are used again.

    In eight bits (float8_e4m3fn) a number x of the model is stored as x / scale, clamped to +-448.
    The scale is 1 unless the checkpoint has others: keys and values behind norms are far below 448,
    and numbers below 2**-6 keep an absolute precision of 2**-10.

    Attributes:
        layers: Per layer (keys, values), each [num_blocks, block_size, num_kv_heads, head_dim].
        k_scale: The factor from an eight-bit key to the key itself.
        v_scale: The same for values.
        num_blocks: Blocks per layer.
        on_zero: Called with the blocks before they are zeroed, so that other ranks zero theirs; or
            None.
        block_size: Tokens per block.

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
        self._pages = PrefaultedPages(tensors) if is_on_host else None
        self.k_scale = k_scale
        self.v_scale = v_scale
        self.num_blocks = num_blocks
        self.block_size = block_size
        self.on_zero: Callable[[Sequence[int]], None] | None = None

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
        """Allocate the blocks that fit into `kv_cache_bytes`.

        Args:
            num_layers: Layers with attention.
            num_kv_heads: Key/value heads per layer.
            head_dim: Size of one head's key.
            dtype: The model's dtype, or float8_e4m3fn on a GPU.
            device: The model's device.
            block_size: Tokens per block.
            max_model_len: Most tokens of one request; the cache must hold at least one of these.
            kv_cache_bytes: Size of the whole cache.

        Raises:
            ConfigError: not even one request of `max_model_len` tokens fits, or the system refuses
                to map the memory, for example because of a limit on address space.
        """
        block_bytes = 2 * num_layers * block_size * num_kv_heads * head_dim * dtype.itemsize
        num_blocks = kv_cache_bytes // block_bytes
        least = -(-max_model_len // block_size)
        if num_blocks < least:
            raise ConfigError(
                f"kv_cache_bytes is {kv_cache_bytes}, enough for {num_blocks} blocks of "
                f"{block_size} tokens, but one request of max_model_len {max_model_len} tokens "
                f"needs {least} blocks: raise kv_cache_bytes to at least {least * block_bytes}, or "
                f"lower max_model_len"
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
            raise _mapping_error(kv_cache_bytes, error) from error
        kv_cache._log_size()
        return kv_cache

    @property
    def num_tokens(self) -> int:
        """Tokens that fit into the whole cache."""
        return self.num_blocks * self.block_size

    @property
    def num_bytes(self) -> int:
        """Bytes of all layers' keys and values."""
        return sum(tensor.nbytes for layer in self.layers for tensor in layer)

    @property
    def block_bytes(self) -> int:
        """Bytes of one block, over all layers."""
        return self.num_bytes // self.num_blocks

    def prefault(self, timeout_s: float, *, num_threads: int = 1) -> bool:
        """Make memory resident that is only mapped; see `PrefaultedPages.prefault`.

        Returns:
            Whether nothing is left to pre-fault; always true on a GPU.
        """
        if self._pages is None:
            return True
        self._pages.prefault(timeout_s, num_threads=num_threads)
        return self._pages.is_done

    def zero_blocks(self, block_ids: Sequence[int]) -> None:
        """Overwrite blocks with zeros, so that a failed request's NaN reaches no other request."""
        if not block_ids or not self.layers:
            return
        if self.on_zero is not None:
            self.on_zero(block_ids)
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
    """Return the bytes of one block: keys and values of all layers."""
    numbers = config.num_layers * config.num_kv_heads * config.head_dim * block_size
    return 2 * numbers * dtype.itemsize


def default_cpu_kv_cache_bytes(other_bytes: int = 0) -> int:
    """Return the default size of the cache on a CPU: a share of the memory available now.

    Args:
        other_bytes: Memory that is promised to others and not taken yet.
    """
    free_bytes = available_memory_bytes() - other_bytes
    return min(int(free_bytes * CPU_MEMORY_SHARE), MAX_DEFAULT_CPU_BYTES)


def _mapping_error(kv_cache_bytes: int, error: OSError) -> ConfigError:
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    limited = "unlimited" if limit == resource.RLIM_INFINITY else f"limited to {limit} bytes"
    return ConfigError(
        f"kv_cache_bytes is {kv_cache_bytes}, but the system refuses to map that much memory "
        f"({error.strerror}); this process's address space is {limited}: lower kv_cache_bytes, or "
        "raise the limit (ulimit -v)"
    )


def _zeros(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device | str) -> Tensor:
    if torch.device(device).type == "cpu":
        return map_zeros(shape, dtype)
    return torch.zeros(shape, dtype=dtype, device=device)
