"""The scales of an eight-bit KV cache that a checkpoint holds."""

from __future__ import annotations

import logging
from dataclasses import dataclass

from batchmill.engine.errors import ConfigError

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class KvScales:
    """What a checkpoint says about an eight-bit cache.

    Attributes:
        keys: The factor from a stored eight-bit key to the key itself, by layer.
        values: The same for values.
        problem: Why they cannot be used; empty if they can.
    """

    keys: tuple[float, ...] = ()
    values: tuple[float, ...] = ()
    problem: str = ""


def check_kv_scales(kv_cache_dtype: str, scales: KvScales | None) -> None:
    """Refuse an eight-bit cache whose scales cannot be used, and say in the log what is done.

    Args:
        kv_cache_dtype: "auto" or "fp8".
        scales: Of the checkpoint; None if it has none.

    Raises:
        ConfigError: the cache has eight bits, and the checkpoint has scales for another one.
    """
    if scales is None:
        return
    if kv_cache_dtype == "fp8" and scales.problem:
        raise ConfigError(
            "kv_cache_dtype is 'fp8', and the checkpoint has scales of a quantized KV cache that "
            f"cannot be used: {scales.problem}; set kv_cache_dtype to 'auto'"
        )
    _log.info(
        "the checkpoint has scales of a quantized KV cache, which %s",
        "are used" if kv_cache_dtype == "fp8" else "only kv_cache_dtype 'fp8' uses, on a GPU",
    )
