"""Names and forms of sampling parameters in other APIs, and their names and forms here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from .errors import ContractError

#: Name in another API -> name here; from Hugging Face, OpenAI, llama.cpp, Qwen's API and old
#: versions of vLLM. If a job
#: has several names of one parameter, errors blame those that come later here.
ALIASES: Final[Mapping[str, str]] = {
    "bad_words_ids": "bad_words",
    "eos_token_id": "stop_token_ids",
    "max_completion_tokens": "max_tokens",
    "max_output_tokens": "max_tokens",
    "max_new_tokens": "max_tokens",
    "min_new_tokens": "min_tokens",
    "num_return_sequences": "n",
    "thinking_budget": "thinking_token_budget",
    "thinking_budget_tokens": "thinking_token_budget",
    "stop_strings": "stop",
    "stop_sequences": "stop",
}


def names_of(name: str) -> tuple[str, ...]:
    """Return every name of a parameter, its own name first."""
    return name, *(alias for alias, meant in ALIASES.items() if meant == name)


def read_other_forms(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Return arguments in which `do_sample` and OpenAI's `logprobs` are replaced by our forms.

    Hugging Face's `do_sample: false` is greedy, whatever the temperature. In OpenAI's chat API,
    `logprobs` is true or false and `top_logprobs` is a number.

    Raises:
        ContractError: one of them has a wrong value.
    """
    read = dict(arguments)
    do_sample = read.pop("do_sample", None)
    if do_sample is False:
        read["temperature"] = 0.0
    elif do_sample is not None and do_sample is not True:
        raise ContractError("do_sample must be true or false")
    top, logprobs = read.pop("top_logprobs", None), read.get("logprobs")
    if logprobs is True:
        read["logprobs"] = 0 if top is None else top
    elif top not in (None, 0):
        raise ContractError("top_logprobs is given without logprobs: set logprobs to true")
    elif logprobs is False:
        del read["logprobs"]
    return read
