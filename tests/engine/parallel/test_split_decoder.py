"""Tokens and log probabilities of a divided model equal those of one rank."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from transformers import LlamaConfig, PreTrainedConfig

from batchmill.engine import Engine, EngineConfig, SamplingParams
from batchmill.engine.errors import UnsupportedModelError
from batchmill.engine.loading.loading import LoadedModel, load_model
from batchmill.engine.models.families import read_model_config
from batchmill.engine.models.shard import Shard

from ...support.tiny_models import NATIVE, OTHERS, SIZES, architecture_of, random_model
from ..greedy_checks import PROMPTS, WAYS
from .threaded_ranks import load_threaded

SCORED = SamplingParams(temperature=0, max_tokens=8, ignore_eos=True, logprobs=2)
SAMPLED = SamplingParams(temperature=0.9, top_p=0.9, max_tokens=8, ignore_eos=True, seed=3)
#: Ranks add numbers in another order than one rank does.
_TOLERANCE = 1e-4


@dataclass(frozen=True)
class Pair:
    """One model, whole and divided."""

    whole: LoadedModel
    divided: LoadedModel

    def check(
        self, prompts: Sequence[Sequence[int]], params: SamplingParams, **settings: Any
    ) -> None:
        """Assert that both compute the same tokens and log probabilities."""
        config = EngineConfig(
            model="tiny",
            dtype="float32",
            device="cpu",
            max_model_len=64,
            kv_cache_bytes=2**20,
            **settings,
        )
        engines = (Engine(config, loaded=loaded) for loaded in (self.whole, self.divided))
        expected, found = (engine.generate(prompts, params) for engine in engines)
        assert [each.token_ids for each in found] == [each.token_ids for each in expected]
        for ours, theirs in zip(found, expected, strict=True):
            for row, other in zip(ours.logprobs or (), theirs.logprobs or (), strict=True):
                assert row == pytest.approx(other, abs=_TOLERANCE)


def _pair(name: str, folder: Path, num_ranks: int = 2) -> Pair:
    random_model(NATIVE[name], folder)
    whole = load_model(str(folder), dtype="float32", device="cpu")
    return Pair(whole, load_threaded(folder, num_ranks))


@pytest.fixture(
    scope="module",
    params=["Llama", "Qwen3", "Qwen2, tied", "GLM-4", "HunYuan dense"],
    ids=["llama", "normalised-heads", "biases-and-tied-head", "neighbours", "normalised-later"],
)
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    return _pair(request.param, tmp_path_factory.mktemp("model"))


@pytest.mark.parametrize("way", WAYS)
def test_greedy_tokens_equal_those_of_one_rank(pair: Pair, way: str) -> None:
    folder = Path("tiny")
    expected = WAYS["alone"](folder, pair.whole, [])

    assert WAYS[way](folder, pair.divided, expected) == expected


def test_log_probabilities_equal_those_of_one_rank(pair: Pair) -> None:
    pair.check(PROMPTS, SCORED)


def test_samples_equal_those_of_one_rank(pair: Pair) -> None:
    pair.check(PROMPTS, SAMPLED)


def test_draft_tokens_are_accepted_as_by_one_rank(pair: Pair) -> None:
    repeated = [[5, 6, 7, 8] * 6, [9, 10] * 9]

    pair.check(repeated, SCORED, num_speculative_tokens=3, prompt_lookup_min=1)


@pytest.mark.parametrize(
    "name",
    [
        "Llama, every bias, llama3 RoPE, explicit head_dim",
        "Llama, dynamic RoPE, one key head",
        "Mistral, sliding window",
        "Gemma 3 text, capped logits, biases, untied head",
        "Phi-3, longrope, part of each head rotated",
    ],
    ids=["every-bias", "shared-key-head", "window", "capped-logits", "fused-matrices"],
)
def test_families_compute_the_same_on_two_ranks(name: str, tmp_path: Path) -> None:
    pair = _pair(name, tmp_path)

    pair.check(PROMPTS, SCORED)

    assert pair.divided.identity == pair.whole.identity
    assert pair.divided.config.vocab_size == pair.whole.config.vocab_size


@pytest.mark.parametrize(
    ("config", "num_ranks", "problem"),
    [
        (NATIVE["Mixtral"], 2, "is a mixture of experts"),
        (NATIVE["Llama"], 4, "has 6 attention heads: use a divisor of 6"),
        (
            LlamaConfig(**{**SIZES, "num_key_value_heads": 3}),
            2,
            "has 3 key/value heads: use a divisor or a multiple of 3",
        ),
        (NATIVE["Llama"], 3, "has 112 inner columns"),
        (NATIVE["OLMo 2"], 2, "normalises all heads together"),
    ],
    ids=["experts", "heads", "key-heads", "columns", "norms-of-all-heads"],
)
def test_a_model_that_cannot_be_divided_is_refused(
    config: PreTrainedConfig, num_ranks: int, problem: str
) -> None:
    values = {**config.to_dict(), "architectures": [architecture_of(config)]}

    with pytest.raises(UnsupportedModelError, match=problem):
        Shard(read_model_config(values), 0, num_ranks)


def test_a_model_that_transformers_computes_is_refused(tmp_path: Path) -> None:
    random_model(OTHERS["GPT-2"], tmp_path)

    with pytest.raises(UnsupportedModelError, match="this model is computed by transformers"):
        load_threaded(tmp_path, 2)
