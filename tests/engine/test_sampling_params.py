"""Values that cannot work are refused by name; names that are not known are no parameters."""

from __future__ import annotations

import math
from typing import Any

import pytest

from batchmill.engine import RequestError, SamplingParams


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
        ("ignore_eos", 1),
        ("skip_special_tokens", None),
    ],
)
def test_value_out_of_range_is_refused_by_name(field: str, value: Any) -> None:
    with pytest.raises(RequestError, match=field) as refused:
        SamplingParams(**{field: value})
    assert refused.value.code == "invalid_request"


def test_unknown_parameter_is_a_type_error() -> None:
    with pytest.raises(TypeError, match="best_of"):
        SamplingParams(best_of=3)  # type: ignore[call-arg]


def test_stop_strings_need_text() -> None:
    with pytest.raises(RequestError, match="detokenize"):
        SamplingParams(stop="x", detokenize=False)


def test_refusal_does_not_repeat_stop_strings() -> None:
    with pytest.raises(RequestError) as refused:
        SamplingParams(stop=["a secret", ""])
    assert "secret" not in str(refused.value)


def test_one_stop_string_is_one_and_lists_are_kept_immutable() -> None:
    params = SamplingParams(stop="END", stop_token_ids=[1, 2])
    assert params.stop_strings == ("END",)
    assert params.stop_token_ids == (1, 2)
    assert hash(params) == hash(SamplingParams(stop=["END"], stop_token_ids=(1, 2)))


def test_top_k_off_is_0_in_both_spellings() -> None:
    assert SamplingParams(top_k=-1).num_top_k == SamplingParams().num_top_k == 0
