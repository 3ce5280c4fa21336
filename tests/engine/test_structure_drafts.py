"""Draft tokens of structured outputs change no token, and save the steps of forced ones."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from batchmill.engine import Engine, RequestOutput, SamplingParams

from .text.structures import SCHEMAS

MakeEngine = Callable[..., Engine]
PROMPT = 'Repeat: {"name": "abcabc", "age": 12}'
NAMES = ("flat object", "optional properties", "several types", "enum of texts", "boolean")
RECORD = {
    "type": "object",
    "properties": {
        "category": {"enum": ["refund", "complaint", "question"]},
        "is_urgent": {"type": "boolean"},
    },
    "required": ["category", "is_urgent"],
    "additionalProperties": False,
}


def params_of(schema: dict[str, Any], **others: Any) -> SamplingParams:
    base: dict[str, Any] = {"temperature": 1.3, "seed": 7, "max_tokens": 120}
    structure = {"json": schema, "disable_any_whitespace": True}
    return SamplingParams(**{**base, "structured_outputs": structure, **others})


CASES = [
    *(params_of(SCHEMAS[name], seed=seed) for name in NAMES for seed in (1, 2)),
    params_of(RECORD),
    params_of(RECORD, temperature=0),
    params_of(RECORD, watermark="press"),
    params_of(RECORD, max_tokens=13),
    params_of(RECORD, min_p=0.1, logit_bias={65: 5.0}),
    params_of(RECORD, repetition_penalty=1.3),
    SamplingParams(seed=4, max_tokens=40, ignore_eos=True),
]


def run(engine: Engine) -> list[tuple[Any, ...]]:
    outputs = engine.generate([PROMPT] * len(CASES), CASES)
    return [(each.token_ids, each.text, each.finish_reason) for each in outputs]


@pytest.mark.feature("structured_outputs")
def test_drafts_change_no_output_and_forced_tokens_save_steps(byte_engine: MakeEngine) -> None:
    keys = {"watermark_keys": {"press": "a secret of the operator"}}
    plain = byte_engine(num_forced_tokens=0, **keys)
    expected = run(plain)
    assert plain.stats().num_draft_tokens == 0
    engines = [
        byte_engine(**keys),
        byte_engine(num_speculative_tokens=4, prompt_lookup_min=1, **keys),
        byte_engine(num_forced_tokens=0, num_speculative_tokens=4, prompt_lookup_min=1, **keys),
        byte_engine(
            kv_cache_bytes=44 * 1024, max_model_len=160, enable_prefix_caching=False, **keys
        ),
        byte_engine(overlap=True, decode_graphs=True, **keys),
    ]
    for engine in engines:
        assert run(engine) == expected
        stats = engine.stats()
        assert 0 < stats.num_accepted_tokens <= stats.num_draft_tokens
    assert engines[3].stats().num_preemptions > 0
    # A byte is a token of this model, so no other token fits where a byte is forced.
    forced = engines[0].stats()
    assert forced.num_accepted_tokens >= 0.9 * forced.num_draft_tokens
    assert forced.num_steps < plain.stats().num_steps


@pytest.mark.feature("structured_outputs")
def test_a_resumed_request_takes_forced_tokens_as_before(byte_engine: MakeEngine) -> None:
    engine = byte_engine()
    (whole,) = engine.generate([PROMPT], params_of(RECORD))
    assert whole.finish_reason == "stop"
    for cut in range(0, len(whole.token_ids), 5):
        engine.add_request(str(cut), PROMPT, params_of(RECORD), whole.token_ids[:cut])
    ends: list[RequestOutput] = []
    while engine.has_unfinished():
        ends += [output for output in engine.step() if output.finished]
    assert {tuple(output.token_ids) for output in ends} == {tuple(whole.token_ids)}


@pytest.mark.feature("structured_outputs")
def test_many_requests_take_forced_tokens_and_look_up_no_others(byte_engine: MakeEngine) -> None:
    engine = byte_engine(num_speculative_tokens=4, speculative_max_num_seqs=1)
    free = SamplingParams(seed=4, max_tokens=30, temperature=0, ignore_eos=True)
    engine.generate([PROMPT] * 3, [free] * 3)
    assert engine.stats().num_draft_tokens == 0
    engine.generate([PROMPT] * 3, [params_of(RECORD)] * 3)
    assert engine.stats().num_accepted_tokens > 0
