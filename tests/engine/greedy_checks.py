"""Compares greedy tokens of an engine and of transformers, for every way to compute them."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

from transformers import GenerationConfig, PreTrainedModel

from batchmill.engine import Engine, EngineConfig, SamplingParams
from batchmill.engine.loading.loading import LoadedModel

from ..support.tiny_models import VOCAB_SIZE
from ..support.transformers_greedy import transformers_greedy

NUM_OUTPUT_TOKENS = 10
GREEDY = SamplingParams(temperature=0, max_tokens=NUM_OUTPUT_TOKENS, ignore_eos=True)
_RNG = random.Random(7)
PROMPTS = [[_RNG.randrange(2, VOCAB_SIZE) for _ in range(length)] for length in (1, 7, 33, 16, 40)]
_MAX_MODEL_LEN, _BLOCK_SIZE = 64, 4

Tokens = list[list[int]]


def greedy_of_transformers(model: PreTrainedModel) -> Tokens:
    """Return the tokens that transformers generates greedily for each prompt alone."""
    # Without an end token: min_new_tokens would keep it from being chosen, ignore_eos does not.
    config = GenerationConfig(max_new_tokens=NUM_OUTPUT_TOKENS, pad_token_id=0)
    model.generation_config = config
    return [transformers_greedy(model, prompt, generation_config=config) for prompt in PROMPTS]


def _engine(folder: Path, loaded: LoadedModel, num_blocks: int = 100, **settings: Any) -> Engine:
    shape = loaded.config
    item_bytes = loaded.model.dtype.itemsize
    block_bytes = 2 * shape.num_layers * _BLOCK_SIZE * shape.num_kv_heads * shape.head_dim
    return Engine(
        EngineConfig(
            model=str(folder),
            dtype=str(loaded.model.dtype).removeprefix("torch."),
            device="cpu",
            max_model_len=_MAX_MODEL_LEN,
            block_size=_BLOCK_SIZE,
            kv_cache_bytes=num_blocks * block_bytes * item_bytes,
            **settings,
        ),
        loaded=loaded,
    )


def _tokens(engine: Engine) -> Tokens:
    return [output.token_ids for output in engine.generate(PROMPTS, GREEDY)]


def alone(folder: Path, loaded: LoadedModel, expected: Tokens) -> Tokens:
    """Run one request at a time."""
    engine = _engine(folder, loaded)
    return [engine.generate([prompt], GREEDY)[0].token_ids for prompt in PROMPTS]


def batched(folder: Path, loaded: LoadedModel, expected: Tokens) -> Tokens:
    """Run all requests at once, then again from the prefix cache."""
    engine = _engine(folder, loaded)
    first, again = _tokens(engine), _tokens(engine)
    assert engine.generate(PROMPTS[4:], GREEDY)[0].usage.cached_tokens > 0
    return again if first == expected else first


def chunked(folder: Path, loaded: LoadedModel, expected: Tokens) -> Tokens:
    """Run prompts in chunks beside decodes."""
    return _tokens(_engine(folder, loaded, max_num_seqs=5, max_num_batched_tokens=7))


def preempted(folder: Path, loaded: LoadedModel, expected: Tokens) -> Tokens:
    """Run with a cache that is too small for all outputs."""
    engine = _engine(folder, loaded, num_blocks=16)
    tokens = _tokens(engine)
    assert engine.stats().num_preemptions > 0
    return tokens


def resumed(folder: Path, loaded: LoadedModel, expected: Tokens) -> Tokens:
    """Resume every request after a part of its output, in one batch."""
    engine = _engine(folder, loaded, num_blocks=400)
    cuts = (1, NUM_OUTPUT_TOKENS // 2, NUM_OUTPUT_TOKENS - 1)
    for index, prompt in enumerate(PROMPTS):
        for cut in cuts:
            engine.add_request(f"{index} {cut}", prompt, GREEDY, expected[index][:cut])
    finished = {}
    while engine.has_unfinished():
        for output in engine.step():
            if output.finished:
                finished[output.request_id] = output.token_ids
    assert len(finished) == len(PROMPTS) * len(cuts)
    wrong = {int(name.split()[0]): tokens for name, tokens in finished.items()}
    for name, tokens in finished.items():
        index = int(name.split()[0])
        if tokens != expected[index]:
            wrong[index] = tokens
    return [wrong[index] for index in range(len(PROMPTS))]


#: Each takes the folder, the loaded model and the expected tokens, and returns tokens.
WAYS: dict[str, Callable[[Path, LoadedModel, Tokens], Tokens]] = {
    "alone": alone,
    "batched": batched,
    "chunked": chunked,
    "preempted": preempted,
    "resumed": resumed,
}
