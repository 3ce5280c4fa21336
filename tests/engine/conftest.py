"""Models that are loaded once for all engine tests, and engines over them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from batchmill.engine import Engine, EngineConfig
from batchmill.engine.loading.loading import LoadedModel, load_model
from batchmill.engine.loading.model_source import model_folder

from ..support.byte_tokenizer import save_byte_tokenizer
from .tiny_model import Fuse, check_nothing_is_lost, load, save_model, tiny_engine


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    """Compute small models on one thread; tests/kernels and tests/end_to_end use several.

    Their operations are so short that threads cost more than they save (2.5 times the CPU time).
    """
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(num_threads)


@pytest.fixture(scope="session")
def demo_model_path() -> Path:
    """The demo model as a Hugging Face folder; its first use on a machine converts it (20 s)."""
    return model_folder("demo")


@pytest.fixture(scope="session")
def hf_demo_model_fp32(demo_model_path: Path) -> PreTrainedModel:
    """The demo model as transformers computes it, in float32."""
    model = LlamaForCausalLM.from_pretrained(demo_model_path, dtype=torch.float32)
    model.eval()
    return model


@pytest.fixture(scope="session")
def byte_model_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Hugging Face folder: two layers of random weights, and one token per byte."""
    folder = tmp_path_factory.mktemp("byte-model")
    save_byte_tokenizer(folder, ["<also eos>"])
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
    """Yield a maker of engines over the byte model; at the end, all their blocks must be free."""
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
    """The fuse that makes the tiny model fail."""
    return Fuse()


@pytest.fixture(scope="module")
def tiny_model(tmp_path_factory: pytest.TempPathFactory, fuse: Fuse) -> LoadedModel:
    """The tiny model of `tiny_model.py`, behind the fuse."""
    folder = tmp_path_factory.mktemp("tiny-model")
    save_model(folder)
    return load(folder, fuse)


@pytest.fixture
def make_engine(tiny_model: LoadedModel, fuse: Fuse) -> Iterator[Callable[..., Engine]]:
    """Yield a maker of engines over the tiny model; at the end, all their blocks must be free."""
    engines: list[Engine] = []

    def make(num_blocks: int = 64, **settings: Any) -> Engine:
        engines.append(tiny_engine(tiny_model, num_blocks, **settings))
        return engines[-1]

    yield make
    fuse.reset()
    for engine in engines:
        check_nothing_is_lost(engine)
