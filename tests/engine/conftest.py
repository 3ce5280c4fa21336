"""The demo model, loaded once for all engine tests."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from batchmill.engine import Engine, EngineConfig
from batchmill.engine.loading.loading import LoadedModel, load_model
from batchmill.engine.loading.model_source import model_folder

from .tiny_model import Fuse, check_nothing_is_lost, load, save_model, tiny_engine


@pytest.fixture(scope="session")
def demo_model_path() -> Path:
    """The demo model as a Hugging Face folder; the first run on a machine converts it (20 s)."""
    return model_folder("demo")


@pytest.fixture(scope="session")
def hf_demo_model_fp32(demo_model_path: Path) -> PreTrainedModel:
    """The demo model as transformers runs it, in float32."""
    model = AutoModelForCausalLM.from_pretrained(demo_model_path, dtype=torch.float32)
    model.eval()
    return model


@pytest.fixture(scope="session")
def byte_model_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Hugging Face folder: two layers of random weights, and a token for each byte."""
    folder = tmp_path_factory.mktemp("byte-model")
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(["<eos>", "<also eos>"])
    PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<eos>").save_pretrained(folder)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=264,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=1024,
        initializer_range=0.3,
        eos_token_id=[256, 257],
        bos_token_id=None,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def byte_model(byte_model_path: Path) -> LoadedModel:
    """The byte model in float32."""
    return load_model(str(byte_model_path), dtype="float32", device="cpu")


@pytest.fixture
def byte_engine(byte_model: LoadedModel) -> Iterator[Callable[..., Engine]]:
    """Makes engines over the byte model; afterwards none of them may have lost a block."""
    engines: list[Engine] = []

    def make(**settings: Any) -> Engine:
        defaults = {
            "model": "bytes",
            "dtype": "float32",
            "device": "cpu",
            "max_model_len": 512,
            "max_num_seqs": 16,
            "block_size": 4,
            "kv_cache_bytes": 4 << 20,
        }
        engine = Engine(EngineConfig(**{**defaults, **settings}), loaded=byte_model)
        engines.append(engine)
        return engine

    yield make
    for engine in engines:
        assert not engine.has_unfinished()
        engine._scheduler.check_invariants()
        assert engine.num_free_blocks == engine.stats().num_blocks


@pytest.fixture(scope="module")
def fuse() -> Fuse:
    """Makes the tiny model fail."""
    return Fuse()


@pytest.fixture(scope="module")
def tiny_model(tmp_path_factory: pytest.TempPathFactory, fuse: Fuse) -> LoadedModel:
    """The tiny model of `tiny_model.py`, behind the fuse."""
    folder = tmp_path_factory.mktemp("tiny-model")
    save_model(folder)
    return load(folder, fuse)


@pytest.fixture
def make_engine(tiny_model: LoadedModel, fuse: Fuse) -> Iterator[Callable[..., Engine]]:
    """Engines over the tiny model; afterwards none of them may have lost a block."""
    engines: list[Engine] = []

    def make(num_blocks: int = 64, **settings: Any) -> Engine:
        engines.append(tiny_engine(tiny_model, num_blocks, **settings))
        return engines[-1]

    yield make
    fuse.reset()
    for engine in engines:
        check_nothing_is_lost(engine)
