"""A tiny random model whose steps take a millisecond, and engines over it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from batchmill.engine import Engine, EngineConfig, RequestOutput
from batchmill.engine.loading.loading import LoadedModel, load_model

from ..support.byte_tokenizer import save_byte_tokenizer

#: A token whose embedding is NaN: a prompt that holds it gets logits that are not finite.
POISON = 259
CHAT_TEMPLATE = (
    "{% for m in messages %}<a>{{ m['role'] }}:{{ m['content'] }}{% endfor %}"
    "{% if add_generation_prompt %}<b>{% endif %}"
)


class Fuse:
    """Makes the model raise while the fuse is blown, or in steps with too many tokens."""

    def __init__(self) -> None:
        self.is_blown = False
        self.error: Exception = RuntimeError("the device is lost")
        #: Steps with more tokens raise; None: no step does.
        self.max_num_tokens: int | None = None

    def reset(self) -> None:
        """Let the model work again."""
        Fuse.__init__(self)

    def linear(self, weight: Tensor, bias: Tensor | None) -> Callable[[Tensor], Tensor]:
        """Return a matrix product that the fuse guards, as `load_model` takes it."""

        def apply(x: Tensor) -> Tensor:
            is_too_large = self.max_num_tokens is not None and len(x) > self.max_num_tokens
            if self.is_blown or is_too_large:
                raise self.error
            return torch.nn.functional.linear(x, weight, bias)

        return apply


def save_model(folder: Path) -> LlamaForCausalLM:
    """Save a model of two layers with random weights, and a tokenizer with one token per byte."""
    save_tokenizer(folder)
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=264,
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=256,
            initializer_range=0.4,
            eos_token_id=256,
            bos_token_id=None,
        )
    )
    with torch.no_grad():
        model.model.embed_tokens.weight[POISON] = torch.nan
        model.lm_head.weight[POISON] = 0  # hardly ever the largest, so it is not generated
    model.save_pretrained(folder)
    model.eval()
    return model


def save_tokenizer(folder: Path) -> None:
    save_byte_tokenizer(folder, ["<a>", "<b>", "<poison>"], CHAT_TEMPLATE)


def load(folder: Path, fuse: Fuse) -> LoadedModel:
    """Load the saved model in float32, with every matrix product behind the fuse."""
    return load_model(str(folder), dtype="float32", device="cpu", linear=fuse.linear)


def tiny_engine(loaded: LoadedModel, num_blocks: int = 64, **settings: Any) -> Engine:
    """Return an engine with `num_blocks` blocks, of 4 tokens unless `block_size` is given."""
    block_size = settings.setdefault("block_size", 4)
    block_bytes = 2 * 2 * block_size * 2 * 8 * 4  # k+v, layers, tokens, kv heads, dim, float32
    defaults = {
        "model": "tiny",
        "dtype": "float32",
        "device": "cpu",
        "max_model_len": 64,
        "max_num_seqs": 8,
        "max_num_batched_tokens": 256,
        "kv_cache_bytes": num_blocks * block_bytes,
    }
    engine = Engine(EngineConfig(**{**defaults, **settings}), loaded=loaded)
    assert engine.stats().num_blocks == num_blocks
    return engine


def check_nothing_is_lost(engine: Engine) -> None:
    """Run the unfinished requests, then assert that every block is free again."""
    while engine.has_unfinished():
        engine.step()
    assert engine._pipeline.num_in_flight == 0
    assert engine.num_free_blocks == engine.stats().num_blocks
    engine._scheduler.check_invariants()


def run(engine: Engine) -> dict[str, list[RequestOutput]]:
    """Step until nothing is left; return each request's outputs in order."""
    outputs: dict[str, list[RequestOutput]] = {}
    while engine.has_unfinished():
        for output in engine.step():
            outputs.setdefault(output.request_id, []).append(output)
        engine._scheduler.check_invariants()
    return outputs
