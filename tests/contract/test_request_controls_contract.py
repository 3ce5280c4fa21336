"""A job accepts and refuses the same controls as the engine: names, defaults, ranges."""

from __future__ import annotations

import math
import subprocess
import sys
from dataclasses import fields
from typing import Any

import pytest

from batchmill.engine import RequestError, SamplingParams
from batchmill.engine.contract.aliases import ALIASES
from batchmill.engine.contract.unsupported import UNSUPPORTED_CONTROLS, UNSUPPORTED_FIELDS
from batchmill.producer.errors import JobRejected
from batchmill.producer.job.controls import SamplingControls
from batchmill.producer.job.document import GenerationJob
from batchmill.producer.job.validation import parse_document, parse_job

#: Deliberately not vLLM's 16, which would cut most outputs of jobs that set no limit.
OTHER_DEFAULTS: dict[str, Any] = {"max_tokens": 256}
#: Useful only to a caller that holds the engine.
ENGINE_ONLY = {"detokenize"}

GOOD: list[dict[str, Any]] = [
    {"n": 3},
    {"num_return_sequences": 3},
    {"min_p": 0.2, "typical_p": 0.5, "top_k": 7},
    {"watermark": "press-2026"},
    {"guidance_scale": 1.5, "negative_prompt": "unlike"},
    {"guidance_scale": 3, "negative_prompt": [1, 2]},
    {"presence_penalty": -2, "frequency_penalty": 2, "repetition_penalty": 1.1},
    {"no_repeat_ngram_size": 3},
    {"logit_bias": {"5": -100, "6": 1.5}},
    {"bad_words": ["a word", [1, 2]]},
    {"bad_words_ids": [[1, 2]]},
    {"allowed_token_ids": [3, 4]},
    {"min_new_tokens": 2, "max_new_tokens": 3},
    {"logprobs": True, "top_logprobs": 4},
    {"logprobs": True},
    {"logprobs": False, "top_logprobs": 0},
    {"logprobs": 0, "prompt_logprobs": 20, "entropy": True},
    {"echo": True, "truncate_prompt_tokens": -1},
    {"truncate_prompt_tokens": 50},
    {"do_sample": False, "temperature": 0.9},
    {"do_sample": True, "temperature": 0.9},
    {"eos_token_id": 5},
    {"stop_strings": "a", "include_stop_str_in_output": True},
    {"response_format": {"type": "text"}, "min_tokens": 3},
    {"response_format": {"type": "json_object"}},
    {"response_format": {"type": "json_schema", "json_schema": {"schema": {"type": "null"}}}},
    {"structured_outputs": {"regex": "[a-z]+"}},
    {"structured_outputs": {"choice": ["yes", "no"]}, "n": 2},
    {"num_beams": 1, "best_of": 1, "truncation_side": "left", "guided_json": None},
    {"n": None, "min_p": None, "logit_bias": None, "response_format": None, "stop": None},
]
BAD: list[tuple[dict[str, Any], str]] = [
    ({"n": 0}, "invalid_request"),
    ({"n": 129}, "invalid_request"),
    ({"min_p": 1.5}, "invalid_request"),
    ({"min_p": math.nan}, "invalid_request"),
    ({"typical_p": 0}, "invalid_request"),
    ({"temperature": 0.0005}, "invalid_request"),
    ({"watermark": "press", "temperature": 0}, "invalid_request"),
    ({"watermark": "press", "do_sample": False}, "invalid_request"),
    ({"watermark": "a key"}, "invalid_request"),
    ({"watermark": True}, "invalid_request"),
    ({"temperature": 101}, "invalid_request"),
    ({"guidance_scale": 0.5}, "invalid_request"),
    ({"negative_prompt": "unlike"}, "invalid_request"),
    ({"guidance_scale": 2, "negative_prompt": ""}, "invalid_request"),
    ({"thinking_token_budget": -1}, "invalid_request"),
    ({"thinking_budget": True}, "invalid_request"),
    ({"presence_penalty": 2.5}, "invalid_request"),
    ({"frequency_penalty": -2.5}, "invalid_request"),
    ({"repetition_penalty": 0}, "invalid_request"),
    ({"no_repeat_ngram_size": -1}, "invalid_request"),
    ({"logit_bias": {"a": 1}}, "invalid_request"),
    ({"logit_bias": {"5": 101}}, "invalid_request"),
    ({"logit_bias": {"5": 1, 5: 1}}, "invalid_request"),
    ({"bad_words": "word"}, "invalid_request"),
    ({"bad_words": [" "]}, "invalid_request"),
    ({"bad_words": [[]]}, "invalid_request"),
    ({"allowed_token_ids": []}, "invalid_request"),
    ({"min_tokens": 5, "max_tokens": 4}, "invalid_request"),
    ({"logprobs": 21}, "invalid_request"),
    ({"prompt_logprobs": True}, "invalid_request"),
    ({"top_logprobs": 4}, "invalid_request"),
    ({"truncate_prompt_tokens": 0}, "invalid_request"),
    ({"do_sample": "no"}, "invalid_request"),
    ({"entropy": 1}, "invalid_request"),
    ({"response_format": {"type": "json_schema"}}, "invalid_request"),
    ({"structured_outputs": {"json": {"uniqueItems": True}}}, "invalid_request"),
    ({"structured_outputs": {"json": {"patternProperties": {"a": {}}}}}, "invalid_request"),
    ({"structured_outputs": {"regex": "(a"}}, "invalid_request"),
    ({"structured_outputs": {}}, "invalid_request"),
    ({"response_format": {}}, "invalid_request"),
    ({"structured_outputs": {"regex": "a"}, "stop": "b"}, "invalid_request"),
    ({"structured_outputs": {"regex": "a"}, "ignore_eos": True}, "invalid_request"),
    (
        {"structured_outputs": {"regex": "a"}, "response_format": {"type": "text"}},
        "invalid_request",
    ),
    ({"structured_outputs": {"structural_tag": "x"}}, "unsupported_parameter"),
    ({"response_format": {"type": "structural_tag"}}, "unsupported_parameter"),
    ({"num_beams": 2}, "unsupported_parameter"),
    ({"guided_regex": "a"}, "unsupported_parameter"),
    ({"max_tokns": 2}, "invalid_request"),
]


def params_of(job: GenerationJob) -> dict[str, Any]:
    """Return a job's controls as its worker passes them to the engine."""
    return job.model_dump(include=set(SamplingControls.model_fields))


def test_a_job_has_the_engines_controls_with_its_defaults() -> None:
    defaults = {field.name: field.default for field in fields(SamplingParams)}
    assert set(SamplingControls.model_fields) == set(defaults) - ENGINE_ONLY
    meant = SamplingParams.from_dict(params_of(parse_job({"prompt": "x"})))
    assert meant == SamplingParams(**OTHER_DEFAULTS)


@pytest.mark.parametrize("given", GOOD)
def test_a_job_and_the_engine_read_controls_alike(given: dict[str, Any]) -> None:
    job = parse_job({"prompt": "x", **given})
    again = parse_document(job.model_dump_json(exclude_none=True))
    assert again == job
    defaults = {} if "max_new_tokens" in given else OTHER_DEFAULTS
    expected = SamplingParams.from_dict({**defaults, **given})
    assert SamplingParams.from_dict(params_of(again)) == expected


@pytest.mark.parametrize(("given", "code"), BAD)
def test_a_job_and_the_engine_refuse_the_same(given: dict[str, Any], code: str) -> None:
    with pytest.raises(JobRejected) as rejected:
        parse_job({"prompt": "x", **given})
    assert rejected.value.code == code
    with pytest.raises(RequestError) as refused:
        SamplingParams.from_dict(given)
    assert refused.value.code == code


def test_unused_controls_take_no_room_in_a_job() -> None:
    document = parse_job({"prompt": "x"}).model_dump_json(exclude_none=True)
    assert len(document) < 400
    assert "logit_bias" not in document


def test_a_job_refuses_every_control_that_the_engine_refuses() -> None:
    for name, control in UNSUPPORTED_CONTROLS.items():
        assert UNSUPPORTED_FIELDS[name].neutral == control.neutral
    assert not ALIASES.keys() & UNSUPPORTED_FIELDS.keys()


def test_a_job_and_the_engine_know_the_same_other_names() -> None:
    names = {
        alias: name
        for name, field in SamplingControls.model_fields.items()
        for alias in getattr(field.validation_alias, "choices", ())
        if alias != name
    }
    assert names == ALIASES


def test_a_schema_is_checked_at_submit_without_torch() -> None:
    program = (
        "import sys\n"
        "from batchmill.producer import GenerationJob\n"
        "assert 'llguidance' not in sys.modules\n"
        "GenerationJob(prompt='x', structured_outputs={'json': {'type': 'object'}})\n"
        "loaded = {'torch', 'transformers', 'numpy'} & set(sys.modules)\n"
        "assert not loaded, loaded\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)
