"""Watermarks through the engine: resume, batches, preemption, drafts, samples and refusals."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from batchmill.engine import ConfigError, Engine, EngineConfig, RequestError, SamplingParams
from batchmill.engine.watermark.detection import detect
from batchmill.engine.watermark.key import WatermarkKey

MakeEngine = Callable[..., Engine]
SECRETS = {"press": "a secret of the operator", "shop": "another secret of theirs"}
PROMPTS = ["The quick brown fox", "abcabcabcabc", "x"]
KEY = WatermarkKey("press", SECRETS["press"])


def marked(**others: Any) -> SamplingParams:
    base = {"temperature": 1.2, "seed": 5, "max_tokens": 60, "ignore_eos": True}
    return SamplingParams(**{**base, "watermark": "press", **others})


def tokens(engine: Engine, *params: SamplingParams) -> list[list[int]]:
    outputs = engine.generate(PROMPTS[: len(params)], params)
    assert all(output.finish_reason == "length" for output in outputs)
    return [output.token_ids for output in outputs]


@pytest.mark.feature("watermark")
def test_marks_depend_neither_on_the_batch_nor_on_preemption_overlap_or_drafts(
    byte_engine: MakeEngine,
) -> None:
    params = [marked(), marked(watermark="shop", top_k=3), marked(watermark=None)]
    plain = tokens(byte_engine(), *(marked(watermark=None, top_k=p.top_k) for p in params))
    engine = byte_engine(max_num_seqs=1, watermark_keys=SECRETS)
    alone = tokens(engine, *params)
    tight = byte_engine(kv_cache_bytes=40 * 1024, max_model_len=96, watermark_keys=SECRETS)
    drafting = byte_engine(num_speculative_tokens=4, prompt_lookup_min=1, watermark_keys=SECRETS)
    others = [
        tight,
        drafting,
        byte_engine(overlap=True, watermark_keys=SECRETS),
        byte_engine(decode_graphs=True, watermark_keys=SECRETS),
    ]
    for other in others:
        assert tokens(other, *params) == alone
    assert tight.stats().num_preemptions > 0
    counts = drafting.draft_counts()
    assert counts is not None
    assert counts.num_accepted_tokens > 0
    assert [mine == theirs for mine, theirs in zip(alone, plain, strict=True)] == [
        False,
        False,
        True,
    ]
    assert detect(KEY, alone[0]).p_value < 1e-6


@pytest.mark.feature("watermark")
def test_a_resumed_request_continues_with_the_same_marks(byte_engine: MakeEngine) -> None:
    engine = byte_engine(watermark_keys=SECRETS)
    (whole,) = tokens(engine, marked())
    for cut in (1, 3, 5, 30):
        engine.add_request(f"cut {cut}", PROMPTS[0], marked(), whole[:cut])
    outputs = []
    while engine.has_unfinished():
        outputs += [output for output in engine.step() if output.finished]
    assert [output.token_ids for output in outputs] == [whole] * 4
    assert {output.watermark for output in outputs} == {"press"}


@pytest.mark.feature("watermark")
def test_the_default_key_marks_what_is_sampled_and_names_no_key(byte_engine: MakeEngine) -> None:
    engine = byte_engine(watermark_keys=SECRETS, watermark="press")
    outputs = engine.generate(
        ["a", "a", "a"],
        [
            marked(watermark=None, n=2),
            marked(watermark="shop"),
            marked(watermark=None, temperature=0),
        ],
    )
    assert [output.watermark for output in outputs] == ["press", "shop", None]
    for sample in outputs[0].completions:
        assert detect(KEY, sample.token_ids).p_value < 1e-6
    (same,) = engine.generate(["a"], marked())
    assert same.token_ids == outputs[0].token_ids


@pytest.mark.feature("watermark")
@pytest.mark.parametrize(
    ("params", "problem"),
    [
        ({"temperature": 0}, "a temperature above 0"),
        ({"watermark": "no such name!"}, "must be the name of a key"),
        ({"watermark": 3}, "must be the name of a key"),
    ],
)
def test_a_mark_that_cannot_be_made_is_refused(params: dict[str, Any], problem: str) -> None:
    with pytest.raises(RequestError, match=problem):
        marked(**params)


@pytest.mark.feature("watermark")
def test_a_key_that_the_engine_does_not_hold_is_refused_by_name(byte_engine: MakeEngine) -> None:
    with pytest.raises(RequestError, match="the key 'press', which this worker does not hold"):
        byte_engine().generate(["a"], marked())


def test_keys_are_checked_and_never_shown() -> None:
    config = EngineConfig(model="demo", watermark_keys=SECRETS)
    assert SECRETS["press"] not in repr(config)
    assert SECRETS["press"] not in repr(KEY)
    for settings, problem in (
        ({"watermark_keys": {"a": "short"}}, "'a' has 5 characters, but must have 16"),
        ({"watermark_keys": {"a b": "long enough, all the same"}}, "'a b' must have 1 to 64"),
        ({"watermark": "none", "watermark_keys": SECRETS}, "has no key of this name"),
        ({"watermark": "a/b", "watermark_keys": SECRETS}, "use the name of a key"),
    ):
        with pytest.raises(ConfigError, match=problem):
            EngineConfig(model="demo", **settings)
