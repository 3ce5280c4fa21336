"""The demo model in float32: the engine's tokens are those of transformers, however computed."""

from __future__ import annotations

from typing import Any

import pytest
from transformers import PreTrainedModel

from batchmill.engine import Engine, EngineConfig, SamplingParams
from batchmill.engine.loading.loading import LoadedModel, load_model

from ..support.transformers_greedy import transformers_greedy

NUM_OUTPUT_TOKENS = 12
PROMPTS = [
    "The capital of France is",
    "def fibonacci(n):\n    ",
    "一二三四五六七",
    "List three colours, one a line, and nothing else.\n1.",
    "Once upon a time there was a miller who had three sons. When he died, they shared what he "
    "left: the eldest took the mill, the second took the donkey, and the youngest had to take",
    "Water boils at a lower temperature on a mountain than at the sea, because the air above it "
    "weighs less. A pressure cooker does the opposite: its lid keeps the steam in, the pressure "
    "rises, and the water gets hotter than it could in an open pot. That is why beans cook in it "
    "in a quarter of the time. Explained to a child, in one sentence: a pressure cooker",
]
GREEDY = SamplingParams(temperature=0, max_tokens=NUM_OUTPUT_TOKENS, ignore_eos=True)
#: Bytes of one block of 16 tokens: k and v, 30 layers, 3 heads of 64 float32 numbers.
BLOCK_BYTES = 2 * 30 * 16 * 3 * 64 * 4


@pytest.fixture(scope="module")
def loaded() -> LoadedModel:
    return load_model("demo", dtype="float32", device="cpu")


@pytest.fixture(scope="module")
def oracle(loaded: LoadedModel, hf_demo_model_fp32: PreTrainedModel) -> list[list[int]]:
    """The tokens that transformers generates greedily for each prompt alone."""
    return [
        transformers_greedy(
            hf_demo_model_fp32,
            loaded.tokenizer.encode(prompt),
            max_new_tokens=NUM_OUTPUT_TOKENS,
            min_new_tokens=NUM_OUTPUT_TOKENS,
            pad_token_id=0,
        )
        for prompt in PROMPTS
    ]


def make_engine(loaded: LoadedModel, num_blocks: int = 100, **settings: Any) -> Engine:
    config = {"max_model_len": 128, "max_num_seqs": 64, **settings}
    return Engine(
        EngineConfig(
            model="demo",
            dtype="float32",
            device="cpu",
            kv_cache_bytes=num_blocks * BLOCK_BYTES,
            **config,
        ),
        loaded=loaded,
    )


def test_alone(loaded: LoadedModel, oracle: list[list[int]]) -> None:
    engine = make_engine(loaded, num_blocks=8)
    for prompt, expected in zip(PROMPTS, oracle, strict=True):
        (output,) = engine.generate([prompt], GREEDY)
        assert output.token_ids == expected
        assert output.text == loaded.tokenizer.decode(expected)


def test_batched_and_again_from_the_prefix_cache(
    loaded: LoadedModel, oracle: list[list[int]]
) -> None:
    engine = make_engine(loaded)
    for _ in range(2):
        outputs = engine.generate(PROMPTS, GREEDY)
        assert [output.token_ids for output in outputs] == oracle
    assert outputs[-1].usage.cached_tokens >= 64
    assert engine.num_free_blocks == 100


def test_prompts_cut_into_chunks_beside_decodes(
    loaded: LoadedModel, oracle: list[list[int]]
) -> None:
    engine = make_engine(loaded, max_num_seqs=6, max_num_batched_tokens=11)
    assert [output.token_ids for output in engine.generate(PROMPTS, GREEDY)] == oracle


@pytest.mark.parametrize("enable_prefix_caching", [True, False])
def test_preempted(
    loaded: LoadedModel, oracle: list[list[int]], enable_prefix_caching: bool
) -> None:
    # 16 blocks of 4 tokens: the prompts fit, their outputs do not.
    engine = make_engine(
        loaded,
        num_blocks=4,
        block_size=4,
        max_model_len=64,
        enable_prefix_caching=enable_prefix_caching,
    )
    order = [3, 1, 2, 0]
    outputs = engine.generate([PROMPTS[index] for index in order], GREEDY)
    assert [output.token_ids for output in outputs] == [oracle[index] for index in order]
    assert engine.stats().num_preemptions > 0


def test_resumed(loaded: LoadedModel, oracle: list[list[int]]) -> None:
    engine = make_engine(loaded, num_blocks=200)
    cuts = (1, 2, 7, NUM_OUTPUT_TOKENS - 1, NUM_OUTPUT_TOKENS)
    for index in (0, 2, 4):
        for cut in cuts:
            engine.add_request(f"{index} {cut}", PROMPTS[index], GREEDY, oracle[index][:cut])
    num_finished = 0
    while engine.has_unfinished():
        for output in engine.step():
            index = int(output.request_id.split()[0])
            assert output.token_ids == oracle[index][: len(output.token_ids)]
            if output.finished:
                num_finished += 1
                assert output.text == loaded.tokenizer.decode(oracle[index])
    assert num_finished == 3 * len(cuts)


def test_sampled_and_resumed(loaded: LoadedModel) -> None:
    params = [
        SamplingParams(seed=1, temperature=0.9, max_tokens=NUM_OUTPUT_TOKENS),
        SamplingParams(seed=2, temperature=1.3, top_k=40, max_tokens=NUM_OUTPUT_TOKENS),
        SamplingParams(seed=3, top_p=0.8, max_tokens=NUM_OUTPUT_TOKENS),
        SamplingParams(max_tokens=NUM_OUTPUT_TOKENS),
    ]
    prompt = PROMPTS[3]
    whole: dict[str, list[int]] = {}
    for cut in (None, 1, 8):
        engine = make_engine(loaded)
        for index, each in enumerate(params):
            resumed = [] if cut is None else whole[f"job-{index}"][:cut]
            engine.add_request(f"job-{index}", prompt, each, resumed)
        while engine.has_unfinished():
            for output in engine.step():
                if output.finished and cut is None:
                    whole[output.request_id] = output.token_ids
                elif output.finished:
                    assert output.token_ids == whole[output.request_id]
    assert len({tuple(tokens) for tokens in whole.values()}) == len(params)
