"""Values that cannot work and unknown names are refused by name."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest

from batchmill.engine import RequestError, SamplingParams


@pytest.mark.feature(
    *("n", "temperature", "top_p", "top_k", "min_p", "typical_p", "presence_penalty"),
    *("frequency_penalty", "repetition_penalty", "no_repeat_ngram_size", "logit_bias"),
    *("bad_words", "allowed_token_ids", "seed", "max_tokens", "min_tokens", "stop"),
    *("stop_token_ids", "ignore_eos", "skip_special_tokens", "logprobs", "prompt_logprobs"),
    *("truncate_prompt_tokens", "echo", "entropy"),
)
@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("temperature", -0.1),
        ("temperature", 1e-9),
        ("temperature", 101),
        ("temperature", math.nan),
        ("temperature", math.inf),
        ("temperature", "hot"),
        ("temperature", True),
        ("top_p", 0),
        ("top_p", 1.01),
        ("top_p", math.nan),
        ("top_k", -2),
        ("top_k", 1.5),
        ("seed", 2**63),
        ("seed", -(2**63) - 1),
        ("seed", 0.5),
        ("max_tokens", 0),
        ("max_tokens", 2.0),
        ("min_tokens", -1),
        ("min_tokens", 17),
        ("stop", ""),
        ("stop", ["a", ""]),
        ("stop", [5]),
        ("stop_token_ids", [-1]),
        ("stop_token_ids", ["a"]),
        ("stop_token_ids", 5),
        ("stop", 5),
        ("n", 0),
        ("n", 129),
        ("n", True),
        ("min_p", -0.1),
        ("min_p", 1.1),
        ("min_p", math.nan),
        ("typical_p", 0),
        ("typical_p", 1.5),
        ("presence_penalty", 2.1),
        ("presence_penalty", math.nan),
        ("frequency_penalty", -2.1),
        ("repetition_penalty", 0),
        ("repetition_penalty", math.inf),
        ("no_repeat_ngram_size", -1),
        ("no_repeat_ngram_size", 2.5),
        ("logit_bias", {1: 101}),
        ("logit_bias", {1: math.nan}),
        ("logit_bias", {-1: 1}),
        ("logit_bias", {"a": 1}),
        ("logit_bias", {"1": 1, 1: 2}),
        ("logit_bias", [1, 2]),
        ("bad_words", "word"),
        ("bad_words", ["word", " "]),
        ("bad_words", [[]]),
        ("bad_words", [[-1]]),
        ("bad_words", [7]),
        ("allowed_token_ids", []),
        ("allowed_token_ids", [-1]),
        ("allowed_token_ids", 3),
        ("logprobs", 21),
        ("logprobs", -1),
        ("logprobs", True),
        ("prompt_logprobs", 21),
        ("truncate_prompt_tokens", 0),
        ("truncate_prompt_tokens", -2),
        ("echo", 1),
        ("entropy", "yes"),
        ("ignore_eos", 1),
        ("skip_special_tokens", None),
        ("thinking_token_budget", -1),
        ("guidance_scale", 0.5),
        ("guidance_scale", 101),
        ("negative_prompt", ""),
    ],
)
def test_value_out_of_range_is_refused_by_name(field: str, value: Any) -> None:
    with pytest.raises(RequestError, match=field) as refused:
        SamplingParams(**{field: value})
    assert refused.value.code == "invalid_request"


def test_unknown_parameter_is_a_type_error() -> None:
    with pytest.raises(TypeError, match="best_of"):
        SamplingParams(best_of=3)  # type: ignore[call-arg]


@pytest.mark.feature("stop", "echo", "thinking_token_budget", "detokenize")
@pytest.mark.parametrize("wanted", [{"stop": "x"}, {"echo": True}, {"thinking_token_budget": 0}])
def test_controls_of_the_text_need_text(wanted: dict[str, Any]) -> None:
    with pytest.raises(RequestError, match="detokenize"):
        SamplingParams(**wanted, detokenize=False)


def test_refusal_does_not_repeat_stop_strings() -> None:
    with pytest.raises(RequestError) as refused:
        SamplingParams(stop=["a secret", ""])
    assert "secret" not in str(refused.value)


def test_single_stop_string_is_accepted_and_lists_become_tuples() -> None:
    params = SamplingParams(stop="END", stop_token_ids=[1, 2])
    assert params.stop_strings == ("END",)
    assert params.stop_token_ids == (1, 2)
    assert hash(params) == hash(SamplingParams(stop=["END"], stop_token_ids=(1, 2)))


def test_top_k_is_off_at_0_and_at_minus_1() -> None:
    assert SamplingParams(top_k=-1).num_top_k == SamplingParams().num_top_k == 0


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ({"max_new_tokens": 5}, {"max_tokens": 5}),
        ({"max_completion_tokens": 5}, {"max_tokens": 5}),
        ({"max_output_tokens": 5}, {"max_tokens": 5}),
        ({"max_tokens": None}, {"max_tokens": None}),
        ({"min_new_tokens": 5}, {"min_tokens": 5}),
        ({"num_return_sequences": 3}, {"n": 3}),
        ({"do_sample": False, "temperature": 0.7}, {"temperature": 0}),
        ({"do_sample": True, "temperature": 0.7}, {"temperature": 0.7}),
        ({"stop_strings": ["a"]}, {"stop": "a"}),
        ({"stop_sequences": ["a"]}, {"stop": "a"}),
        ({"thinking_budget_tokens": 7}, {"thinking_token_budget": 7}),
        ({"eos_token_id": 7}, {"stop_token_ids": [7]}),
        ({"eos_token_id": [7, 8]}, {"stop_token_ids": [7, 8]}),
        ({"bad_words_ids": [[1, 2]]}, {"bad_words": [[1, 2]]}),
        ({"logit_bias": {"5": 1.5}}, {"logit_bias": {5: 1.5}}),
        ({"logprobs": True, "top_logprobs": 3}, {"logprobs": 3}),
        ({"logprobs": True}, {"logprobs": 0}),
        ({"logprobs": False}, {}),
        ({"logprobs": 4}, {"logprobs": 4}),
        ({"temperature": None, "seed": None, "stop": None}, {}),
        ({"num_beams": 1, "use_beam_search": False, "best_of": 1, "guidance_scale": None}, {}),
        ({"response_format": {"type": "text"}}, {"response_format": {"type": "text"}}),
    ],
)
def test_names_of_other_apis_mean_ours(given: dict[str, Any], meant: dict[str, Any]) -> None:
    assert SamplingParams.from_dict(given) == SamplingParams(**meant)


@pytest.mark.parametrize(
    ("given", "code", "match"),
    [
        ({"num_beams": 4}, "unsupported_parameter", "num_beams is not supported"),
        ({"best_of": 2}, "unsupported_parameter", "best_of"),
        ({"best_of": True}, "unsupported_parameter", "best_of"),
        ({"guided_json": {}}, "unsupported_parameter", "use structured_outputs"),
        ({"suppress_tokens": [1]}, "unsupported_parameter", "use bad_words"),
        ({"truncation_side": "right"}, "unsupported_parameter", "truncation_side"),
        ({"temprature": 1}, "invalid_request", "'temprature' is not a sampling parameter"),
        ({"max_tokens": 3, "max_new_tokens": 3}, "invalid_request", "another name for max_tokens"),
        ({"do_sample": "no"}, "invalid_request", "do_sample"),
        ({"top_logprobs": 3}, "invalid_request", "without logprobs"),
        ({"logprobs": False, "top_logprobs": 3}, "invalid_request", "without logprobs"),
        ({"max_new_tokens": 0}, "invalid_request", "max_tokens is 0"),
    ],
)
def test_unknown_and_unsupported_parameters_are_refused_by_name(
    given: dict[str, Any], code: str, match: str
) -> None:
    with pytest.raises(RequestError, match=match) as refused:
        SamplingParams.from_dict(given)
    assert refused.value.code == code


def test_params_equal_themselves_as_a_mapping_and_can_be_hashed() -> None:
    params = SamplingParams(
        logit_bias={3: 1, 1: -2},
        bad_words=["a", [1, 2]],
        allowed_token_ids=[4],
        response_format={"type": "json_object"},
    )
    assert params.logit_bias == ((1, -2), (3, 1))
    assert replace(params) == params
    assert hash(replace(params)) == hash(params)
    given = {name: getattr(params, name) for name in SamplingParams.__dataclass_fields__}
    assert SamplingParams.from_dict(given) == params
