"""How many KV blocks host memory holds, and whether the host has so much memory."""

from __future__ import annotations

from batchmill.engine.config import EngineConfig
from batchmill.engine.errors import ConfigError
from batchmill.engine.memory.device_memory import gib
from batchmill.engine.memory.host_memory import available_memory_bytes


def check_host_memory(config: EngineConfig) -> None:
    """Refuse a size above the free memory of the host, or of its container.

    Raises:
        ConfigError: the blocks of all ranks together do not fit.
    """
    num_ranks = config.tensor_parallel_size
    needed, free_bytes = config.kv_host_bytes * num_ranks, available_memory_bytes()
    if needed > free_bytes:
        ranks = f" for each of {num_ranks} ranks" if num_ranks > 1 else ""
        raise ConfigError(
            f"kv_host_bytes is {config.kv_host_bytes} ({gib(config.kv_host_bytes)} GiB){ranks}, "
            f"and this host (or its container) has {gib(free_bytes)} GiB free: lower it to at most "
            f"{free_bytes // num_ranks}, or set it to 0, which keeps no KV in host memory"
        )


def num_host_blocks(config: EngineConfig, block_bytes: int) -> int:
    """Return the blocks that fit into `kv_host_bytes`; 0 if it is off.

    Args:
        config: Has the size.
        block_bytes: Bytes of one block on one rank.

    Raises:
        ConfigError: not a single block fits.
    """
    num_blocks = config.kv_host_bytes // block_bytes
    if config.kv_host_bytes and not num_blocks:
        raise ConfigError(
            f"kv_host_bytes is {config.kv_host_bytes}, and one KV block takes {block_bytes} bytes: "
            f"raise it to at least {block_bytes}, or set it to 0, which keeps no KV in host memory"
        )
    return num_blocks
