"""The time of a perfect schedule: every class of kernels at the device's ceiling.

The floor of a step is the sum over its classes (matrices, LM head, attention, sampling) of
max(bytes / copy rate, operations / matrix rate): they run one after another. The best engines of
the field take 1.2 to 1.4 times as long.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

import numpy as np
from gpu_report import Ceilings
from numpy.typing import NDArray

from batchmill.engine.models.model_config import ModelConfig

Numbers = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Work:
    """Requests that all arrive at once."""

    prompt_lens: list[int]
    output_lens: list[int]


def recipe_a(num_requests: int = 256, least: int = 100, most: int = 1024) -> Work:
    """Return the offline recipe of nano-vllm and mini-sglang, with their numbers.

    Source: nano-vllm `bench.py`, mini-sglang `benchmark/offline/bench.py`.
    """
    rng = random.Random(0)
    prompt_lens = []
    for _ in range(num_requests):
        prompt_lens.append(rng.randint(least, most))
        for _ in range(prompt_lens[-1]):
            rng.randint(0, 10000)  # the recipe samples token ids between the lengths
    return Work(prompt_lens, [rng.randint(least, most) for _ in range(num_requests)])


def matrix_numbers(config: ModelConfig) -> int:
    """Return the number of weights in all layers' matrices."""
    heads = (2 * config.num_heads + 2 * config.num_kv_heads) * config.head_dim
    return config.num_layers * config.hidden_size * (heads + 3 * config.intermediate_size)


def head_numbers(config: ModelConfig) -> int:
    """Return the number of weights of the LM head."""
    return config.vocab_size * config.hidden_size


def kv_bytes_per_token(config: ModelConfig, kv_bytes: int = 2) -> int:
    """Return the bytes of one token in the cache."""
    return 2 * config.num_layers * config.num_kv_heads * config.head_dim * kv_bytes


def decode_floor_s(
    config: ModelConfig,
    ceilings: Ceilings,
    batch: Numbers,
    cached_tokens: Numbers,
    *,
    kv_bytes: int = 2,
    weight_bytes: int = 2,
) -> Numbers:
    """Compute floors of decode steps.

    Args:
        config: The model.
        ceilings: The device.
        batch: Sequences of each step.
        cached_tokens: Tokens that each step reads from the cache, all sequences together.
        kv_bytes: Bytes of a cached number.
        weight_bytes: Bytes of a weight.

    Returns:
        Seconds of each step.
    """

    def either(num_bytes: Numbers | float, operations: Numbers, num_bits: int = 16) -> Numbers:
        by_bytes = num_bytes / ceilings.copy_bytes_per_s
        return np.maximum(by_bytes, operations / matrix_rate(ceilings, num_bits))

    matrices, head = matrix_numbers(config), head_numbers(config)
    attention_flop = 4 * cached_tokens * config.num_layers * config.num_heads * config.head_dim
    logits_bytes = 2 * 4 * batch * config.vocab_size  # float32, written and read
    return (
        either(matrices * weight_bytes, 2 * matrices * batch, 8 * weight_bytes)
        + either(head * 2, 2 * head * batch)
        + either(cached_tokens * kv_bytes_per_token(config, kv_bytes), attention_flop)
        + logits_bytes / ceilings.copy_bytes_per_s
    )


def matrix_rate(ceilings: Ceilings, num_bits: int) -> float:
    """Return operations per second of products of numbers of 16 or 8 bits."""
    return ceilings.fp8_flop_per_s if num_bits == 8 else ceilings.bf16_flop_per_s


def prefill_floor_s(
    config: ModelConfig, ceilings: Ceilings, prompt_lens: list[int], *, weight_bytes: int = 2
) -> float:
    """Return the floor of prompts: arithmetic only, attention over half of each square."""
    tokens = sum(prompt_lens)
    squares = sum(length * length for length in prompt_lens) / 2
    attention = 4 * squares * config.num_layers * config.num_heads * config.head_dim
    matrices_s = 2 * matrix_numbers(config) * tokens / matrix_rate(ceilings, 8 * weight_bytes)
    return matrices_s + attention / ceilings.bf16_flop_per_s


def work_floor_s(
    config: ModelConfig, ceilings: Ceilings, work: Work, *, kv_bytes: int = 2, weight_bytes: int = 2
) -> float:
    """Return the floor of a whole recipe whose requests all run together."""
    prompts, outputs = np.array(work.prompt_lens), np.array(work.output_lens)
    # The prompt's step samples the first token; a decode step reads the cache with its own token.
    steps = np.arange(1, outputs.max())
    running = outputs[None, :] > steps[:, None]
    batch = running.sum(axis=1).astype(np.float64)
    cached = ((prompts[None, :] + steps[:, None]) * running).sum(axis=1).astype(np.float64)
    decode = decode_floor_s(
        config, ceilings, batch, cached, kv_bytes=kv_bytes, weight_bytes=weight_bytes
    )
    prefill_s = prefill_floor_s(config, ceilings, work.prompt_lens, weight_bytes=weight_bytes)
    return float(decode.sum()) + prefill_s
