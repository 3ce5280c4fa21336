"""A configuration that cannot work is refused when it is made."""

from __future__ import annotations

from typing import Any

import pytest

from batchmill.engine import ConfigError, EngineConfig


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("model", ""),
        ("dtype", "int8"),
        ("max_model_len", 1),
        ("max_num_seqs", 0),
        ("max_num_batched_tokens", 2.5),
        ("kv_cache_bytes", 0),
        ("block_size", True),
        ("seed", "x"),
    ],
)
def test_value_that_cannot_work_is_refused_by_name(field: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=field):
        EngineConfig(**{"model": "demo", field: value})


def test_budget_must_hold_a_token_for_each_running_request() -> None:
    with pytest.raises(ConfigError, match="max_num_batched_tokens is 32, fewer than max_num_seqs"):
        EngineConfig(model="demo", max_num_batched_tokens=32, max_num_seqs=64)


def test_unknown_setting_is_a_type_error() -> None:
    with pytest.raises(TypeError, match="gpu_memory_fraction"):
        EngineConfig(model="demo", gpu_memory_fraction=0.9)  # type: ignore[call-arg]
