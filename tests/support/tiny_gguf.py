"""Tiny GGUF files: complete ones, and some that lack a weight or scale positions."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path

import gguf
import numpy as np

SHAPES = {
    "token_embd.weight": (300, 32),
    "output_norm.weight": (32,),
    "output.weight": (300, 32),
    "blk.0.attn_norm.weight": (32,),
    "blk.0.attn_q.weight": (32, 32),
    "blk.0.attn_k.weight": (16, 32),
    "blk.0.attn_v.weight": (16, 32),
    "blk.0.attn_output.weight": (32, 32),
    "blk.0.ffn_norm.weight": (32,),
    "blk.0.ffn_gate.weight": (48, 32),
    "blk.0.ffn_up.weight": (48, 32),
    "blk.0.ffn_down.weight": (32, 48),
}


def write_gguf(
    path: Path,
    *,
    rope_freq_base: float = 10000.0,
    without: str | Collection[str] = (),
    more: Mapping[str, np.ndarray] | None = None,
    metadata: Mapping[str, str | float | int] | None = None,
) -> dict[str, np.ndarray]:
    """Write a one-layer model with random weights and a byte-level vocabulary.

    Args:
        path: Of the file.
        rope_freq_base: Base of the rotary embedding.
        without: Weights to leave out.
        more: Further tensors.
        metadata: Further metadata.

    Returns:
        The weights.
    """
    rng = np.random.default_rng(0)
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(64)
    writer.add_embedding_length(32)
    writer.add_block_count(1)
    writer.add_feed_forward_length(48)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(rope_freq_base)
    writer.add_vocab_size(300)
    letters = [chr(256 + index) for index in range(297)]
    tokens = ["<s>", "</s>", *letters, letters[0] + letters[1]]
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(tokens)
    writer.add_token_types([3, 3] + [1] * 298)
    writer.add_token_merges([f"{letters[0]} {letters[1]}"])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(1)
    weights = {name: rng.normal(size=shape).astype(np.float32) for name, shape in SHAPES.items()}
    weights |= more or {}
    for name in (without,) if isinstance(without, str) else without:
        del weights[name]
    for name, weight in weights.items():
        writer.add_tensor(name, weight)
    for name, value in (metadata or {}).items():
        add = {str: writer.add_string, float: writer.add_float32, int: writer.add_uint32}
        add[type(value)](name, value)  # type: ignore[operator]
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return weights
