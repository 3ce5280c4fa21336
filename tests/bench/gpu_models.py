"""Models of known shapes with random weights, made on the device, and engines over them."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from tokenizers import Tokenizer as BackendTokenizer
from tokenizers import models, pre_tokenizers
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from batchmill.engine import Engine, EngineConfig
from batchmill.engine.loading.loading import LoadedModel
from batchmill.engine.models.decoder import DecoderModel
from batchmill.engine.models.model_config import (
    AttentionConfig,
    LayerConfig,
    ModelConfig,
    RopeConfig,
)
from batchmill.engine.models.weights import (
    DecoderWeights,
    DenseWeights,
    allocate_weights,
    allocated,
)
from batchmill.engine.text.tokenizer import Tokenizer
from batchmill.kernels.ops.dispatch import Backend

#: Tokens per KV block on a GPU: the size of a tile of the attention kernels.
GPU_BLOCK_SIZE = 64


def shape(
    architecture: str,
    *,
    num_layers: int,
    hidden: int,
    inner: int,
    num_heads: int,
    num_kv_heads: int,
    vocab: int,
    head_dim: int = 128,
    tied: bool = False,
    theta: float = 1e6,
) -> ModelConfig:
    """Return a decoder's configuration; the keys that all of these share are added here."""
    layer = LayerConfig(AttentionConfig(RopeConfig(theta)))
    return ModelConfig(
        architecture=architecture,
        vocab_size=vocab,
        num_layers=num_layers,
        num_kv_heads=num_kv_heads,
        head_dim=head_dim,
        max_position_embeddings=40960,
        hidden_size=hidden,
        intermediate_size=inner,
        num_heads=num_heads,
        rms_norm_eps=1e-6,
        layers=(layer,) * num_layers,
        tie_word_embeddings=tied,
        attention_scale=head_dim**-0.5,
        qk_norm=architecture.startswith("Qwen3"),
    )


SHAPES = {
    "Qwen3-0.6B": shape(
        "Qwen3ForCausalLM",
        num_layers=28,
        hidden=1024,
        inner=3072,
        num_heads=16,
        num_kv_heads=8,
        vocab=151936,
        tied=True,
    ),
    "Qwen3-8B": shape(
        "Qwen3ForCausalLM",
        num_layers=36,
        hidden=4096,
        inner=12288,
        num_heads=32,
        num_kv_heads=8,
        vocab=151936,
    ),
    "Qwen3-14B": shape(
        "Qwen3ForCausalLM",
        num_layers=40,
        hidden=5120,
        inner=17408,
        num_heads=40,
        num_kv_heads=8,
        vocab=151936,
    ),
    "Llama-3.1-8B": shape(
        "LlamaForCausalLM",
        num_layers=32,
        hidden=4096,
        inner=14336,
        num_heads=32,
        num_kv_heads=8,
        vocab=128256,
        theta=5e5,
    ),
}
TOY = shape(
    "Qwen3ForCausalLM",
    num_layers=2,
    hidden=64,
    inner=128,
    num_heads=4,
    num_kv_heads=2,
    vocab=300,
    head_dim=16,
    tied=True,
)


def named_shape(name: str, *, toy: bool) -> ModelConfig:
    """Return a shape by name; a toy run uses a tiny one for all names."""
    return TOY if toy else SHAPES[name]


def random_weights(config: ModelConfig, dtype: torch.dtype, device: torch.device) -> DecoderWeights:
    """Return matrices of standard deviation 0.02 and norms of 1, the same numbers in any dtype.

    They are not zeros: a GPU multiplies zeros about 13 % faster than other numbers.
    """

    def fill_random(matrix: Tensor) -> None:
        wide = torch.empty(matrix.shape, dtype=torch.float32, device=device)
        matrix.copy_(wide.normal_(0, 0.02, generator=generator))

    weights = allocate_weights(config, dtype, device)
    generator = torch.Generator(device).manual_seed(0)
    for matrix in (weights.embedding, allocated(weights.head)):
        fill_random(matrix)
    weights.final_norm.fill_(1)
    for layer in weights.layers:
        assert isinstance(layer.feed_forward, DenseWeights), "these shapes are dense"
        for norm in layer.norms:
            norm.fill_(1)
        network = layer.feed_forward
        for each in (layer.qkv, layer.output, network.gate_up, network.down):
            fill_random(allocated(each))
    return weights


def random_model(
    config: ModelConfig,
    device: torch.device,
    *,
    dtype: torch.dtype = torch.bfloat16,
    quantization: str | None = None,
) -> DecoderModel:
    """Return a decoder with random weights; on a CPU plain torch multiplies fp8 ones."""
    backend: Backend = "auto" if quantization is None or device.type == "cuda" else "reference"
    weights = random_weights(config, dtype, device)
    return DecoderModel(config, weights, backend=backend, quantization=quantization)


def random_loaded(model: DecoderModel) -> LoadedModel:
    """Return a model as an engine expects it, with a tokenizer that no request needs."""
    words = {f"w{index}": index for index in range(300)}
    backend = BackendTokenizer(models.WordLevel(words, unk_token="w0"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="w0")
    return LoadedModel(
        model=model,
        config=model.config,
        tokenizer=Tokenizer(tokenizer),
        identity="random",
        eos_token_ids=frozenset(),
    )


def make_engine(model: DecoderModel, *, toy: bool, **settings: Any) -> Engine:
    """Return an engine over a random model, with recipe A's limits unless `settings` differ.

    A setting of None is left to the engine, which decides by the device.

    Raises:
        TypeError: the engine does not have a setting.
    """
    values: dict[str, Any] = {
        "model": "random",
        "device": str(model.device),
        "dtype": {torch.bfloat16: "bfloat16", torch.float32: "float32"}[model.dtype],
        "max_model_len": 128 if toy else 4096,
        "max_num_seqs": 8 if toy else 256,
        "max_num_batched_tokens": 64 if toy else 16384,
        "block_size": 16 if toy else GPU_BLOCK_SIZE,
        "kv_cache_bytes": 2**20 if toy else None,
    }
    given = {name: value for name, value in {**values, **settings}.items() if value is not None}
    return Engine(EngineConfig(**given), loaded=random_loaded(model))


def engine_has(setting: str) -> bool:
    """Return whether this checkout's engine has a setting."""
    return setting in {field.name for field in dataclasses.fields(EngineConfig)}
